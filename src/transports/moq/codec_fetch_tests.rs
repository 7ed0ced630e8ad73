//! Streams of fetches go both ways in either order, however they are cut; what refers to nothing ends the session.

use proptest::prelude::*;

use super::super::codec_samples::{drafts, location, pieces, properties};
use super::*;

fn object(at: Location, subgroup: Option<u64>, priority: u8) -> FetchItem {
    FetchItem::Object(FetchObject { at, subgroup, priority, properties: Properties::default(), length: 0 })
}

fn encoded(items: &[FetchItem], order: GroupOrder, draft: Draft) -> Bytes {
    let mut out = BytesMut::new();
    let mut encoder = FetchEncoder::new(order, draft);
    for item in items {
        encoder.put(item, &mut out).unwrap();
    }
    out.freeze()
}

fn decoded(bytes: &[u8], order: GroupOrder, draft: Draft) -> Result<Vec<FetchItem>, Mistake> {
    let mut input = Bytes::copy_from_slice(bytes);
    let mut decoder = FetchDecoder::new(order, draft);
    let mut found = Vec::new();
    while let Some(piece) = decoder.decode(&mut input)? {
        if let Piece::Head(item) = piece {
            found.push(item);
        }
    }
    decoder.finish()?;
    Ok(found)
}

#[test]
fn objects_leave_out_what_is_as_before() {
    let at = Location::new;
    let items = [
        object(at(5, 0), Some(0), 128),
        object(at(5, 1), Some(0), 128),
        object(at(5, 4), Some(7), 128),
        object(at(5, 5), Some(7), 128),
        object(at(5, 6), Some(8), 9),
        object(at(7, 0), None, 9),
    ];
    let bytes = encoded(&items, GroupOrder::Ascending, Draft::D18);
    let expected =
        [&[0x1c, 5, 0, 128, 0][..], &[0x00, 0], &[0x07, 7, 3, 0], &[0x01, 0], &[0x12, 9, 0], &[0x4c, 1, 0, 0]].concat();
    assert_eq!(bytes, expected);
    assert_eq!(decoded(&bytes, GroupOrder::Ascending, Draft::D18), Ok(items.to_vec()));
}

#[test]
fn gaps_say_why_as_far_as_the_draft_can() {
    let gap = |why| FetchItem::Gap { end: Location::new(3, 9), why };
    for (why, flags, draft) in [
        (Gap::Missing, &[0x80, 0x8c][..], Draft::D18),
        (Gap::Unknown, &[0x81, 0x0c], Draft::D18),
        (Gap::TimedOut, &[0x81, 0x0c], Draft::D18),
        (Gap::TimedOut, &[0x82, 0x0c], Draft::D20),
    ] {
        let bytes = encoded(&[gap(why)], GroupOrder::Ascending, draft);
        assert_eq!(bytes, [flags, &[3, 9]].concat());
    }
    let late = [0x82, 0x0c, 3, 9];
    assert_eq!(decoded(&late, GroupOrder::Ascending, Draft::D20), Ok(vec![gap(Gap::TimedOut)]));
    assert_eq!(decoded(&late, GroupOrder::Ascending, Draft::D18), Err(Mistake::UnknownFetchFlags(0x20c)));
}

#[test]
fn after_a_gap_the_object_before_it_counts_for_the_rest() {
    let items = [
        object(Location::new(1, 0), Some(4), 7),
        FetchItem::Gap { end: Location::new(2, 5), why: Gap::Unknown },
        object(Location::new(2, 6), Some(4), 7),
    ];
    let bytes = encoded(&items, GroupOrder::Ascending, Draft::D20);
    assert_eq!(bytes[bytes.len() - 2..], [0x01, 0]);
    assert_eq!(decoded(&bytes, GroupOrder::Ascending, Draft::D20), Ok(items.to_vec()));
    // Without one before it, priority and subgroup cannot be as before.
    for flags in [0x0c, 0x1d, 0x1e] {
        let bytes = [0x80, 0x8c, 2, 5, flags, 1, 1, 1, 1];
        assert_eq!(decoded(&bytes, GroupOrder::Ascending, Draft::D18), Err(Mistake::NothingBefore), "{flags:#x}");
    }
}

#[test]
fn the_first_object_refers_to_nothing() {
    for flags in [0x00, 0x04, 0x08, 0x10, 0x14, 0x18, 0x0c, 0x1d, 0x1e] {
        let bytes = [flags, 1, 1, 1, 1, 1];
        assert_eq!(decoded(&bytes, GroupOrder::Ascending, Draft::D18), Err(Mistake::NothingBefore), "{flags:#x}");
    }
    for flags in [0x80u64, 0x8d, 0x10d, 0xffff] {
        let mut bytes = BytesMut::new();
        put_varint(flags, &mut bytes);
        assert_eq!(decoded(&bytes, GroupOrder::Ascending, Draft::D20), Err(Mistake::UnknownFetchFlags(flags)));
    }
}

#[test]
fn numbers_beyond_their_range_end_the_session() {
    let first = [0x1c, 5, 9, 128, 0];
    let then = |more: &[u8], order| decoded(&[&first[..], more].concat(), order, Draft::D18);
    assert_eq!(then(&[0x0c, 5, 0, 0], GroupOrder::Descending), Err(Mistake::Overflow));
    assert!(then(&[0x0c, 4, 0, 0], GroupOrder::Descending).is_ok());
    let most = [0xff; 9];
    assert_eq!(then(&[&[0x0c][..], &most].concat(), GroupOrder::Ascending), Err(Mistake::Overflow));
    assert_eq!(then(&[&[0x04][..], &most].concat(), GroupOrder::Ascending), Err(Mistake::Overflow));
}

#[test]
fn a_fetch_cut_off_ends_the_session() {
    for bytes in [&[0x1c, 5, 9, 128, 3, 1, 2][..], &[0x1c, 5], &[0x80]] {
        assert_eq!(decoded(bytes, GroupOrder::Ascending, Draft::D18), Err(Mistake::CutOff), "{bytes:x?}");
    }
}

#[test]
fn what_does_not_follow_is_not_written() {
    let at = Location::new;
    for (order, first, second) in [
        (GroupOrder::Ascending, at(5, 1), at(4, 0)),
        (GroupOrder::Descending, at(5, 1), at(6, 0)),
        (GroupOrder::Ascending, at(5, 1), at(5, 1)),
        (GroupOrder::Descending, at(5, 1), at(5, 0)),
    ] {
        let mut out = BytesMut::new();
        let mut encoder = FetchEncoder::new(order, Draft::D18);
        encoder.put(&object(first, Some(0), 1), &mut out).unwrap();
        let written = out.clone();
        assert!(encoder.put(&object(second, Some(0), 1), &mut out).is_err());
        assert_eq!(out, written);
    }
}

fn items() -> impl Strategy<Value = Vec<(FetchItem, Vec<u8>)>> {
    let subgroup = prop_oneof![Just(None), (0..4u64).prop_map(Some)];
    let payload = proptest::collection::vec(any::<u8>(), 0..30);
    let object = (location(), subgroup, 0..3u8, properties(), payload).prop_map(
        |(at, subgroup, priority, properties, payload)| {
            let length = payload.len() as u64;
            (FetchItem::Object(FetchObject { at, subgroup, priority, properties, length }), payload)
        },
    );
    let gap = (location(), prop_oneof![Just(Gap::Missing), Just(Gap::Unknown)])
        .prop_map(|(end, why)| (FetchItem::Gap { end, why }, Vec::new()));
    proptest::collection::vec(prop_oneof![4 => object, 1 => gap], 0..8)
}

proptest! {
    #[test]
    fn fetches_go_both_ways_cut_anywhere(
        draft in drafts(),
        descending in any::<bool>(),
        mut items in items(),
        small in any::<bool>(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let order = if descending { GroupOrder::Descending } else { GroupOrder::Ascending };
        for (item, _) in &mut items {
            // Near each other, so that most follow closely.
            let at = match item {
                FetchItem::Object(object) => &mut object.at,
                FetchItem::Gap { end, .. } => end,
            };
            if small {
                *at = Location::new(at.group % 3, at.object % 16);
            }
        }
        items.sort_by_key(|(item, _)| {
            let at = item.at();
            (if descending { u64::MAX - at.group } else { at.group }, at.object)
        });
        items.dedup_by_key(|(item, _)| item.at());
        let mut out = BytesMut::new();
        let mut encoder = FetchEncoder::new(order, draft);
        for (item, payload) in &items {
            encoder.put(item, &mut out).unwrap();
            out.extend_from_slice(payload);
        }
        let mut decoder = FetchDecoder::new(order, draft);
        let mut found: Vec<(FetchItem, Vec<u8>)> = Vec::new();
        for mut piece in pieces(&out.freeze(), &cuts) {
            while let Some(next) = decoder.decode(&mut piece).unwrap() {
                match next {
                    Piece::Head(item) => found.push((item, Vec::new())),
                    Piece::Payload { bytes, .. } => found.last_mut().unwrap().1.extend_from_slice(&bytes),
                }
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(found, items);
    }

    #[test]
    fn any_bytes_are_items_or_mistakes(
        draft in drafts(),
        descending in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let order = if descending { GroupOrder::Descending } else { GroupOrder::Ascending };
        if let Ok(items) = decoded(&bytes, order, draft) {
            prop_assert!(items.len() <= bytes.len());
        }
    }
}
