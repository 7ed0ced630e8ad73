//! Tests of the cache of a track: bounds, what is known, and copies of it.

use std::time::Duration;

use super::*;

fn head(group: u64, subgroup: u64) -> Head {
    Head { group, subgroup: Some(subgroup), priority: None, properties: false, end_of_group: false, first_object: true }
}

/// Objects of this many bytes each, two of which are their header.
fn put(groups: &mut Groups, no: u64, group: u64, objects: u64, bytes: usize, now: Instant) {
    groups.apply(&Item::Begin { no, head: head(group, 0), at: now });
    let mark = |id: u64| Mark {
        id,
        at: id * bytes as u64,
        delta: 1,
        status: 0,
        properties: 0,
        head: 2,
        payload: bytes as u64 - 2,
        arrived: now,
    };
    for id in 0..objects {
        groups.apply(&Item::Data { no, marks: vec![mark(id)], bytes: Bytes::from(vec![id as u8; bytes]) });
    }
    groups.apply(&Item::End { no, end: End::Complete, at: now });
    groups.shrink(now);
}

fn now() -> Instant {
    crate::actors::clock::now()
}

/// Rule 15: an empty group costs as well, so a flood of them is bounded.
#[test]
fn overhead_counts() {
    let mut groups = Groups::new(Limits { bytes: 100_000, groups: 1_000_000, ..Limits::default() });
    for no in 0..10_000 {
        put(&mut groups, no, no, 0, 2, now());
    }
    assert!(groups.bytes() <= 100_000, "{}", groups.bytes());
    assert!(groups.groups() <= 100_000 / (ENTRY + GROUP) && groups.groups() > 200, "{}", groups.groups());
    assert!(groups.take_evicted() > 9_000);
}

#[test]
fn groups_and_age_are_bounds_too() {
    let begin = now();
    let mut groups = Groups::new(Limits { groups: 3, age: Duration::from_secs(5), ..Limits::default() });
    for no in 0..5 {
        put(&mut groups, no, no, 2, 10, begin);
    }
    assert_eq!(groups.groups_from(0).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(groups.deadline(), Some(begin + Duration::from_secs(5)));
    groups.shrink(begin + Duration::from_secs(5));
    assert_eq!((groups.groups(), groups.bytes()), (0, 0), "nothing is left, and nothing is counted");
    assert_eq!(groups.largest(), Some(Location::new(4, 1)), "that is not forgotten");
}

#[test]
fn one_that_alone_is_too_large_loses_its_front() {
    let mut groups = Groups::new(Limits { bytes: 10_000, ..Limits::default() });
    groups.apply(&Item::Begin { no: 0, head: head(0, 0), at: now() });
    for at in 0..100 {
        let marks = if at == 0 {
            vec![Mark { id: 0, at: 0, delta: 1, status: 0, properties: 0, head: 10, payload: 1 << 62, arrived: now() }]
        } else {
            Vec::new()
        };
        groups.apply(&Item::Data { no: 0, marks, bytes: Bytes::from(vec![0; 1_000]) });
        groups.shrink(now());
        assert!(groups.bytes() <= 11_000, "an announced length takes no memory: {}", groups.bytes());
    }
    let entry = groups.get(0).unwrap();
    assert!(entry.base() > 80_000);
    assert_eq!(entry.read(0, 10), Err(Gone));
    assert_eq!(entry.read(entry.base(), 10).unwrap().len(), 10);
}

#[test]
fn what_is_known_is_known_from_where_it_was_seen() {
    let mut groups = Groups::new(Limits { groups: 2, ..Limits::default() });
    put(&mut groups, 0, 5, 1, 10, now());
    assert!(!groups.is_whole(Location::new(5, 0), 5), "nobody said from where on everything is seen");
    groups.know_from(Location::new(5, 0));
    assert!(groups.is_whole(Location::new(5, 0), 5) && !groups.is_whole(Location::new(4, 0), 5));
    put(&mut groups, 1, 6, 1, 10, now());
    put(&mut groups, 2, 7, 1, 10, now());
    assert!(!groups.is_whole(Location::new(5, 0), 7), "the oldest group went");
    assert!(groups.is_whole(Location::new(6, 0), 7));
    groups.apply(&Item::Begin { no: 3, head: head(7, 1), at: now() });
    groups.apply(&Item::End { no: 3, end: End::Reset(1), at: now() });
    assert!(!groups.is_whole(Location::new(6, 0), 7), "a reset leaves a hole");
}

#[test]
fn a_copy_fed_with_what_is_held_is_the_same() {
    let mut groups = Groups::new(Limits::default());
    for no in 0..4 {
        put(&mut groups, no, no / 2, 3, 20, now());
    }
    let mut copy = Groups::new(Limits::default());
    groups.replay().iter().for_each(|item| copy.apply(item));
    assert_eq!((copy.bytes(), copy.groups(), copy.largest()), (groups.bytes(), groups.groups(), groups.largest()));
    for no in 0..4 {
        let (mine, theirs) = (copy.get(no).unwrap(), groups.get(no).unwrap());
        assert_eq!((&mine.marks, mine.length(), mine.end), (&theirs.marks, theirs.length(), theirs.end));
    }
}
