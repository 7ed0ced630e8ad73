//! Tests of what publishers bring: numbers, duplicates, contradictions, and who comes back.

use bytes::Bytes;

use super::*;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

fn now() -> Instant {
    crate::actors::clock::now()
}

fn head(group: u64, subgroup: u64) -> Head {
    Head { group, subgroup: Some(subgroup), priority: None, properties: false, end_of_group: false, first_object: true }
}

fn begin(no: u64, head: Head) -> Item {
    Item::Begin { no, head, at: now() }
}

/// An object of ten bytes at a place in its stream.
fn object(no: u64, id: u64, at: u64, status: u8) -> Item {
    let mark = Mark { id, at, delta: 1, status, properties: 0, head: 2, payload: 8, arrived: now() };
    Item::Data { no, marks: vec![mark], bytes: Bytes::from(vec![id as u8; 10]) }
}

fn end(no: u64) -> Item {
    Item::End { no, end: End::Complete, at: now() }
}

fn live() -> Track {
    let mut track = Track::new(Limits::default());
    assert!(track.live(A, None, &Properties::default()));
    track
}

fn take(track: &mut Track, source: SessionId, items: Vec<Item>) -> Result<Vec<Item>, Malformed> {
    let mut new = Vec::new();
    track.take(source, items, now(), &mut new).map(|()| new)
}

fn objects(items: &[Item]) -> Vec<u64> {
    let marks = items.iter().filter_map(|item| if let Item::Data { marks, .. } = item { Some(marks) } else { None });
    marks.flatten().map(|mark| mark.id).collect()
}

#[test]
fn what_comes_is_passed_on_under_numbers_of_its_own() {
    let mut track = live();
    let new = take(&mut track, A, vec![begin(7, head(0, 0)), object(7, 0, 0, 0), end(7)]).unwrap();
    assert_eq!(new.len(), 3);
    assert!(matches!(new[0], Item::Begin { no: 0, .. }));
    let more = take(&mut track, A, vec![begin(8, head(0, 1)), object(8, 1, 0, 0)]).unwrap();
    assert!(matches!(more[0], Item::Begin { no: 1, .. }));
    assert_eq!(track.groups().largest(), Some(Location::new(0, 1)));
}

/// Rule 7: the largest is what was said or seen, whichever is larger, and never less than before.
#[test]
fn the_largest_never_lies() {
    let mut track = Track::new(Limits::default());
    track.live(A, Some(Location::new(9, 9)), &Properties::default());
    take(&mut track, A, vec![begin(0, head(3, 0)), object(0, 0, 0, 0)]).unwrap();
    assert_eq!(track.groups().largest(), Some(Location::new(9, 9)));
    take(&mut track, A, vec![begin(1, head(10, 0)), object(1, 2, 0, 0)]).unwrap();
    assert_eq!(track.groups().largest(), Some(Location::new(10, 2)));
    track.live(B, Some(Location::new(10, 0)), &Properties::default());
    assert_eq!(track.groups().largest(), Some(Location::new(10, 2)));
}

#[test]
fn a_second_publisher_adds_nothing_that_is_there() {
    let mut track = live();
    track.live(B, None, &Properties::default());
    take(&mut track, A, vec![begin(0, head(0, 0)), object(0, 0, 0, 0)]).unwrap();
    let same = take(&mut track, B, vec![begin(0, head(0, 0)), object(0, 0, 0, 0), object(0, 1, 10, 0)]).unwrap();
    assert_eq!((same, track.take_duplicates()), (vec![], 2));
    let other = take(&mut track, B, vec![begin(1, head(1, 0)), object(1, 0, 0, 0)]).unwrap();
    assert_eq!(objects(&other), [0]);
}

/// A publisher that vanishes in the midst of a subgroup and comes back goes on where it was, in another stream.
#[test]
fn who_comes_back_goes_on_where_it_was() {
    let mut track = live();
    take(&mut track, A, vec![begin(0, head(0, 0)), object(0, 0, 0, 0), object(0, 1, 10, 0)]).unwrap();
    let left = track.gone(A, None, now());
    assert!(matches!(left.as_slice(), [Item::End { no: 0, end: End::Reset(_), .. }]));
    assert!(matches!(track.status(), Status::Live(_)), "subscribers wait");
    track.live(B, None, &Properties::default());
    let items = vec![begin(5, head(0, 0)), object(5, 0, 0, 0), object(5, 1, 10, 0), object(5, 2, 20, 0), end(5)];
    let new = take(&mut track, B, items).unwrap();
    assert_eq!(objects(&new), [2]);
    let Some(Item::Begin { no: 1, head, .. }) = new.first() else { panic!("{new:?}") };
    assert!(!head.first_object);
    let Some(Item::Data { marks, bytes, .. }) = new.get(1) else { panic!("{new:?}") };
    assert_eq!((marks[0].at, bytes.len()), (0, 10), "places count from what is kept");
}

#[test]
fn datagrams_are_kept_once() {
    let mut track = live();
    let datagram = |no| vec![begin(no, Head { subgroup: None, ..head(4, 0) }), object(no, 2, 0, 0), end(no)];
    assert_eq!(take(&mut track, A, datagram(0)).unwrap().len(), 3);
    assert_eq!(take(&mut track, A, datagram(1)).unwrap(), vec![]);
    assert_eq!(track.take_duplicates(), 1);
}

/// Rule 12: what contradicts the track is neither kept nor passed on.
#[test]
fn what_contradicts_the_track_is_found() {
    let behind_group =
        vec![begin(0, head(0, 0)), object(0, 0, 0, 0), object(0, 1, 10, 3), begin(1, head(0, 1)), object(1, 5, 0, 0)];
    let mut track = live();
    let mut new = Vec::new();
    assert_eq!(track.take(A, behind_group, now(), &mut new), Err(Malformed("object_behind_end_of_group")));
    assert_eq!(objects(&new), [0, 1], "what came before it is fine");
    assert_eq!(track.groups().largest(), Some(Location::new(0, 1)));

    let mut track = live();
    let items = vec![begin(0, head(1, 0)), object(0, 0, 0, 4), begin(1, head(2, 0)), object(1, 0, 0, 0)];
    assert_eq!(take(&mut track, A, items), Err(Malformed("object_behind_end_of_track")));
    assert_eq!(track.end(), Some(Location::new(1, 0)));

    let mut track = live();
    take(&mut track, A, vec![begin(0, head(0, 0)), object(0, 0, 0, 0), end(0)]).unwrap();
    let again = vec![begin(1, head(0, 0)), object(1, 0, 0, 0), object(1, 1, 10, 0)];
    assert_eq!(take(&mut track, A, again), Err(Malformed("object_behind_end_of_subgroup")));

    let mut track = live();
    take(&mut track, A, vec![begin(0, head(0, 0)), object(0, 0, 0, 0)]).unwrap();
    let other = Head { priority: Some(3), ..head(0, 0) };
    assert_eq!(take(&mut track, A, vec![begin(1, other)]), Err(Malformed("priority_changed")));
}

/// Rule 1: only a publisher that has accepted makes a track live; the last refusal fails it.
#[test]
fn a_track_fails_with_its_last_publisher() {
    let mut track = Track::new(Limits::default());
    track.add(A);
    track.add(B);
    assert_eq!(track.status(), &Status::Pending);
    assert!(!track.refused(A, RequestCode::Unauthorized), "another may accept");
    assert!(track.refused(B, RequestCode::DoesNotExist));
    assert_eq!(track.status(), &Status::Failed(RequestCode::DoesNotExist));
}

#[test]
fn a_last_word_ends_a_track_that_nobody_else_feeds() {
    let mut track = live();
    track.live(B, None, &Properties::default());
    track.gone(A, Some(DoneCode::TrackEnded), now());
    assert!(matches!(track.status(), Status::Live(_)));
    track.gone(B, Some(DoneCode::TrackEnded), now());
    assert_eq!(track.status(), &Status::Ended(DoneCode::TrackEnded));
}
