//! Subgroup streams go both ways, however they are cut; payload passes through uncopied; what is wrong costs what it must.

use proptest::prelude::*;

use super::super::codec::{Ends, MAX_VALUE};
use super::super::codec_property::PropertiesBuilder;
use super::super::codec_samples::{number, pieces, properties, subgroup_header};
use super::super::codec_stream::{PADDING, StreamDecoder, StreamStart, put_fetch_header, put_padding_header};
use super::super::model::Draft;
use super::super::model_codes::{ResetCode, SessionCode};
use super::*;

const PLAIN: SubgroupHeader = SubgroupHeader {
    track_alias: 2,
    group: 0,
    subgroup: SubgroupId::Zero,
    priority: Some(0),
    properties: false,
    end_of_group: false,
    first_object: false,
};

fn header_bytes(header: &SubgroupHeader) -> Bytes {
    let mut out = BytesMut::new();
    put_subgroup_header(header, &mut out);
    out.freeze()
}

fn start(bytes: &[u8]) -> Result<Option<StreamStart>, Mistake> {
    StreamDecoder::new(Draft::D18).decode(&mut Bytes::copy_from_slice(bytes))
}

/// The first mistake in these objects.
fn mistake(header: &SubgroupHeader, bytes: &[u8]) -> Mistake {
    let mut input = Bytes::copy_from_slice(bytes);
    let mut decoder = ObjectDecoder::new(header);
    loop {
        match decoder.decode(&mut input) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no mistake in {bytes:x?}"),
            Err(mistake) => return mistake,
        }
    }
}

#[test]
fn the_example_of_the_draft_is_read() {
    // Section 11.6: type 0x14, alias 2, group 0, subgroup 0, priority 0; "abcd", "efgh".
    let mut input = Bytes::from_static(b"\x14\x02\x00\x00\x00\x00\x04abcd\x00\x04efgh");
    let mut stream = StreamDecoder::new(Draft::D18);
    let Ok(Some(StreamStart::Subgroup(header))) = stream.decode(&mut input) else { panic!("no subgroup") };
    assert_eq!(header, SubgroupHeader { subgroup: SubgroupId::Given(0), ..PLAIN });
    let mut decoder = ObjectDecoder::new(&header);
    for (id, payload) in [(0, &b"abcd"[..]), (1, b"efgh")] {
        let Ok(Some(Piece::Head(head))) = decoder.decode(&mut input) else { panic!("no object") };
        assert_eq!((head.id, head.length, head.status), (id, 4, ObjectStatus::Normal));
        let expected = Piece::Payload { bytes: Bytes::from_static(payload), last: true };
        assert_eq!(decoder.decode(&mut input), Ok(Some(expected)));
    }
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));
}

#[test]
fn streams_begin_with_types_that_are_known() {
    for kind in 0u64..0x200 {
        let mut bytes = BytesMut::new();
        put_varint(kind, &mut bytes);
        bytes.extend_from_slice(&[1, 1, 1, 1]);
        let is_subgroup = kind < 0x80 && kind & 0x10 != 0 && kind & 0x06 != 0x06;
        match start(&bytes) {
            Ok(Some(StreamStart::Subgroup(_))) => assert!(is_subgroup, "{kind:#x}"),
            Ok(Some(StreamStart::Fetch { request_id: 1 })) => assert_eq!(kind, 0x05),
            Err(mistake) => {
                assert_eq!(mistake, Mistake::UnknownStream(kind));
                assert_eq!(mistake.ends(), Ends::Session(SessionCode::ProtocolViolation));
                assert!(!is_subgroup && kind != 0x05, "{kind:#x}");
            }
            other => panic!("{kind:#x}: {other:?}"),
        }
    }
    let mut bytes = BytesMut::new();
    put_padding_header(&mut bytes);
    assert!(matches!(start(&bytes), Ok(Some(StreamStart::Padding))));
    assert!(matches!(start(&bytes[..3]), Ok(None)));
    assert_eq!(start(&[0xf0, 0x13, 0x2b, 0x3e, 0x29]).unwrap_err(), Mistake::UnknownStream(PADDING + 1));
    let mut bytes = BytesMut::new();
    put_fetch_header(300, &mut bytes);
    assert!(matches!(start(&bytes), Ok(Some(StreamStart::Fetch { request_id: 300 }))));
}

#[test]
fn a_control_stream_goes_on_with_the_setup_that_it_began_with() {
    let bytes = Bytes::from_static(&[0xaf, 0x00, 0, 2, 4, 9]);
    for cut in 0..bytes.len() {
        let mut stream = StreamDecoder::new(Draft::D18);
        let mut started = None;
        let mut setup = None;
        for mut piece in [bytes.slice(..cut), bytes.slice(cut..)] {
            if started.is_none() {
                started = match stream.decode(&mut piece).unwrap() {
                    Some(StreamStart::Control(decoder)) => Some(decoder),
                    None => None,
                    other => panic!("{other:?}"),
                };
            }
            if let Some(decoder) = &mut started {
                setup = decoder.decode(&mut piece).unwrap();
            }
        }
        assert!(matches!(setup, Some(super::super::model_message::Message::Setup(_))), "cut at {cut}");
    }
}

#[test]
fn an_object_of_2_to_the_62_bytes_allocates_nothing() {
    let mut head = BytesMut::new();
    put_varint(0, &mut head);
    put_varint(1 << 62, &mut head);
    let mut decoder = ObjectDecoder::new(&PLAIN);
    let Ok(Some(Piece::Head(object))) = decoder.decode(&mut head.freeze()) else { panic!("no object") };
    assert_eq!(object.length, 1 << 62);
    for _ in 0..3 {
        let chunk = Bytes::from(vec![7; 1000]);
        let mut input = chunk.clone();
        let Ok(Some(Piece::Payload { bytes, last: false })) = decoder.decode(&mut input) else { panic!("no payload") };
        // The same memory, not a copy of it.
        assert_eq!((bytes.as_ptr(), bytes.len()), (chunk.as_ptr(), 1000));
        assert!(decoder.gather.capacity() == 0 && input.is_empty());
    }
    assert_eq!(decoder.left(), (1 << 62) - 3000);
    assert_eq!(decoder.finish(), Err(Mistake::CutOff));
}

#[test]
fn a_stream_that_ends_in_the_middle_of_an_object_ends_the_session() {
    for bytes in [&[0][..], &[0, 5], &[0, 5, 1, 2, 3, 4], &[0x80]] {
        let mut input = Bytes::copy_from_slice(bytes);
        let mut decoder = ObjectDecoder::new(&PLAIN);
        while let Some(_piece) = decoder.decode(&mut input).unwrap() {}
        assert_eq!(decoder.finish(), Err(Mistake::CutOff), "{bytes:?}");
    }
    assert_eq!(Mistake::CutOff.ends(), Ends::Session(SessionCode::ProtocolViolation));
}

#[test]
fn object_numbers_that_overflow_end_the_session() {
    let mut bytes = BytesMut::new();
    put_varint(u64::MAX, &mut bytes);
    bytes.extend_from_slice(&[0, 0, 0, 0, 0]);
    assert_eq!(mistake(&PLAIN, &bytes), Mistake::Overflow);
}

#[test]
fn a_status_is_one_that_is_known_and_has_no_properties() {
    for status in [1, 2, 5, 0x40] {
        assert_eq!(mistake(&PLAIN, &[0, 0, status]), Mistake::UnknownStatus(u64::from(status)));
    }
    let header = SubgroupHeader { properties: true, ..PLAIN };
    assert_eq!(mistake(&header, &[0, 2, 4, 1, 0, 3]), Mistake::PropertiesOfStatus);
    let mut input = Bytes::from_static(&[0, 2, 4, 1, 0, 0]);
    assert!(matches!(ObjectDecoder::new(&header).decode(&mut input), Ok(Some(Piece::Head(_)))));
}

#[test]
fn nothing_follows_after_an_end() {
    for status in [3, 4] {
        let found = mistake(&PLAIN, &[0, 0, status, 0, 1, 7]);
        assert_eq!(found, Mistake::MalformedObject);
        assert_eq!(found.ends(), Ends::Track);
    }
}

#[test]
fn an_object_with_malformed_properties_is_not_passed_on() {
    let header = SubgroupHeader { properties: true, ..PLAIN };
    let found = mistake(&header, &[0, 1, 5, 4, 1, 2, 3, 4]);
    assert_eq!(found, Mistake::MalformedObject);
    assert_eq!(found.ends(), Ends::Track);
    let mut gap = vec![3, 2, 0x3e, 4, 1, 9];
    assert_eq!(mistake(&header, &gap), Mistake::MalformedObject);
    gap[3] = 3;
    let mut input = Bytes::from(gap);
    assert!(matches!(ObjectDecoder::new(&header).decode(&mut input), Ok(Some(Piece::Head(_)))));
}

#[test]
fn properties_beyond_what_is_read_cost_the_stream() {
    let header = SubgroupHeader { properties: true, ..PLAIN };
    let mut bytes = BytesMut::from(&[0][..]);
    put_varint(MAX_PROPERTIES as u64 + 1, &mut bytes);
    let found = mistake(&header, &bytes);
    assert_eq!(found, Mistake::PropertiesTooLong);
    assert_eq!(found.ends(), Ends::Stream(ResetCode::ExcessiveLoad));
}

#[test]
fn what_cannot_be_is_not_written() {
    let properties = PropertiesBuilder::default().number(4, 1).finish().unwrap();
    let mut out = BytesMut::new();
    let mut plain = ObjectEncoder::new(&PLAIN);
    assert!(plain.put(0, &properties, 1, ObjectStatus::Normal, &mut out).is_err());
    assert!(plain.put(0, &Properties::default(), 1, ObjectStatus::EndOfGroup, &mut out).is_err());
    assert!(plain.put(5, &Properties::default(), 1, ObjectStatus::Normal, &mut out).is_ok());
    let written = out.clone();
    assert!(plain.put(5, &Properties::default(), 1, ObjectStatus::Normal, &mut out).is_err());
    assert!(plain.put(4, &Properties::default(), 1, ObjectStatus::Normal, &mut out).is_err());
    assert_eq!(out, written);
    let mut with = ObjectEncoder::new(&SubgroupHeader { properties: true, ..PLAIN });
    assert!(with.put(0, &properties, 0, ObjectStatus::EndOfTrack, &mut out).is_err());
    let long = PropertiesBuilder::default().bytes(5, vec![0; MAX_VALUE]).number(6, 0).finish().unwrap();
    assert!(with.put(0, &long, 0, ObjectStatus::Normal, &mut out).is_err());
}

#[test]
fn a_head_without_properties_is_as_short_as_promised() {
    let mut out = BytesMut::new();
    let mut encoder = ObjectEncoder::new(&PLAIN);
    encoder.put(u64::MAX, &Properties::default(), u64::MAX, ObjectStatus::Normal, &mut out).unwrap();
    assert!(out.len() <= MAX_PLAIN_HEAD);
}

#[test]
fn the_number_of_a_subgroup_may_be_that_of_its_first_object() {
    assert_eq!(SubgroupId::FirstObject.number(None), None);
    assert_eq!(SubgroupId::FirstObject.number(Some(4)), Some(4));
    assert_eq!(SubgroupId::Given(9).number(Some(4)), Some(9));
    assert_eq!(SubgroupId::Zero.number(None), Some(0));
}

/// Objects of a stream: distance to the one before, properties, payload; and perhaps an end.
type Objects = (Vec<(u64, Properties, Vec<u8>)>, Option<ObjectStatus>);

fn objects() -> impl Strategy<Value = Objects> {
    let object = (number().prop_map(|gap| gap >> 8), properties(), proptest::collection::vec(any::<u8>(), 0..40));
    let end = prop_oneof![Just(None), Just(Some(ObjectStatus::EndOfGroup)), Just(Some(ObjectStatus::EndOfTrack))];
    (proptest::collection::vec(object, 0..5), end)
}

/// An object as it is read: its number, properties, payload, status.
type Found = (u64, Properties, Vec<u8>, ObjectStatus);

/// The stream, and what is on it.
fn written(header: &SubgroupHeader, (objects, end): &Objects) -> (Bytes, Vec<Found>) {
    let mut out = BytesMut::new();
    put_subgroup_header(header, &mut out);
    let mut encoder = ObjectEncoder::new(header);
    let mut expected = Vec::new();
    let mut next = 0;
    for (gap, properties, payload) in objects {
        let properties = if header.properties { properties.clone() } else { Properties::default() };
        let id = next + gap;
        next = id + 1;
        encoder.put(id, &properties, payload.len() as u64, ObjectStatus::Normal, &mut out).unwrap();
        out.extend_from_slice(payload);
        expected.push((id, properties, payload.clone(), ObjectStatus::Normal));
    }
    if let Some(status) = end {
        encoder.put(next, &Properties::default(), 0, *status, &mut out).unwrap();
        expected.push((next, Properties::default(), Vec::new(), *status));
    }
    (out.freeze(), expected)
}

proptest! {
    #[test]
    fn heads_go_both_ways(header in subgroup_header()) {
        let bytes = header_bytes(&header);
        prop_assert!(matches!(start(&bytes), Ok(Some(StreamStart::Subgroup(found))) if found == header));
        for length in 0..bytes.len() {
            prop_assert!(matches!(start(&bytes[..length]), Ok(None)));
        }
    }

    #[test]
    fn objects_go_both_ways_cut_anywhere_and_can_be_forwarded(
        header in subgroup_header(),
        objects in objects(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
        from in 0..3usize,
    ) {
        let (bytes, expected) = written(&header, &objects);
        let mut stream = StreamDecoder::new(Draft::D20);
        let mut decoder = None;
        let mut found: Vec<Found> = Vec::new();
        let mut verbatim = BytesMut::from(&header_bytes(&header)[..]);
        let mut joined = BytesMut::from(&header_bytes(&header)[..]);
        let mut encoder = ObjectEncoder::new(&header);
        for mut piece in pieces(&bytes, &cuts) {
            if decoder.is_none()
                && let Some(StreamStart::Subgroup(found)) = stream.decode(&mut piece).unwrap()
            {
                prop_assert_eq!(found, header);
                decoder = Some(ObjectDecoder::new(&header));
            }
            let Some(decoder) = &mut decoder else { continue };
            while let Some(next) = decoder.decode(&mut piece).unwrap() {
                match next {
                    Piece::Head(head) => {
                        verbatim.extend_from_slice(&head.raw);
                        if found.len() >= from {
                            prop_assert_eq!(encoder.takes_raw(&head), found.len() > from || from == 0 || head.raw[0] == 0 && head.id == 0);
                            encoder.forward(&head, &mut joined).unwrap();
                            prop_assert!(joined.ends_with(&head.after_delta()));
                        }
                        found.push((head.id, head.properties, Vec::new(), head.status));
                    }
                    Piece::Payload { bytes, last } => {
                        prop_assert!(!bytes.is_empty());
                        prop_assert_eq!(last, decoder.left() == 0);
                        verbatim.extend_from_slice(&bytes);
                        if found.len() > from {
                            joined.extend_from_slice(&bytes);
                        }
                        found.last_mut().unwrap().2.extend_from_slice(&bytes);
                    }
                }
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(decoder.unwrap().finish(), Ok(()));
        prop_assert_eq!(verbatim.freeze(), bytes);
        // Who joined later reads the same objects.
        let mut input = joined.freeze();
        StreamDecoder::new(Draft::D18).decode(&mut input).unwrap();
        let mut decoder = ObjectDecoder::new(&header);
        let mut ids = Vec::new();
        while let Some(next) = decoder.decode(&mut input).unwrap() {
            if let Piece::Head(head) = next {
                ids.push(head.id);
            }
        }
        prop_assert_eq!(ids, expected.iter().skip(from).map(|object| object.0).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_objects_or_mistakes(
        header in subgroup_header(),
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut decoder = ObjectDecoder::new(&header);
        'all: for mut piece in pieces(&Bytes::from(bytes), &cuts) {
            loop {
                match decoder.decode(&mut piece) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
        }
    }
}
