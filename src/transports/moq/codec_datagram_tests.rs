//! Datagrams go both ways; what is wrong costs the session or the track.

use proptest::prelude::*;

use super::super::codec::Ends;
use super::super::codec_samples::datagram;
use super::*;

fn read_bytes(bytes: &[u8]) -> Result<Datagram, Mistake> {
    read_datagram(&Bytes::copy_from_slice(bytes))
}

#[test]
fn the_type_says_which_fields_there_are() {
    let Ok(Datagram::Object(found)) = read_bytes(&[0x00, 2, 3, 4, 128, b'x']) else { panic!("no object") };
    assert_eq!((found.track_alias, found.at, found.priority), (2, Location::new(3, 4), Some(128)));
    assert_eq!(found.content, Content::Payload(Bytes::from_static(b"x")));
    let Ok(Datagram::Object(found)) = read_bytes(&[0x0e, 2, 3]) else { panic!("no object") };
    assert_eq!((found.at, found.priority, found.end_of_group), (Location::new(3, 0), None, true));
    assert_eq!(found.content, Content::Payload(Bytes::new()));
    let Ok(Datagram::Object(found)) = read_bytes(&[0x2c, 2, 3, 4]) else { panic!("no object") };
    assert_eq!(found.content, Content::Status(ObjectStatus::EndOfTrack));
}

#[test]
fn padding_is_thrown_away() {
    assert_eq!(read_bytes(&[0xf0, 0x13, 0x2b, 0x3e, 0x29, 0, 0, 0]), Ok(Datagram::Padding));
    let mut bytes = Vec::new();
    put_varint(PADDING, &mut bytes);
    bytes.extend_from_slice(&[0; 1000]);
    assert_eq!(read_bytes(&bytes), Ok(Datagram::Padding));
}

#[test]
fn types_that_nobody_knows_end_the_session() {
    for kind in 0..0x200u64 {
        let mut bytes = Vec::new();
        put_varint(kind, &mut bytes);
        bytes.extend_from_slice(&[1, 1, 1, 2, 4, 1, 0]);
        let valid = kind < 0x30 && kind & 0x10 == 0 && kind & 0x22 != 0x22;
        match read_bytes(&bytes) {
            Err(Mistake::UnknownDatagram(found)) => assert!(found == kind && !valid, "{kind:#x}"),
            _ => assert!(valid, "{kind:#x}"),
        }
    }
}

#[test]
fn what_is_wrong_within_costs_what_it_must() {
    let cases: [(&[u8], Mistake); 7] = [
        (&[], Mistake::Truncated),
        (&[0x00, 2, 3], Mistake::Truncated),
        (&[0x0d, 2, 3, 0], Mistake::NoProperties),
        (&[0x0d, 2, 3, 1, 5], Mistake::MalformedObject),
        (&[0x2d, 2, 3, 2, 4, 1, 3], Mistake::PropertiesOfStatus),
        (&[0x2c, 2, 3, 9], Mistake::UnknownStatus(9)),
        (&[0x2c, 2, 3, 3, 0], Mistake::TrailingBytes),
    ];
    for (bytes, expected) in cases {
        assert_eq!(read_bytes(bytes), Err(expected));
        assert_eq!(expected.ends() == Ends::Track, expected == Mistake::MalformedObject);
    }
}

#[test]
fn a_status_that_cannot_be_is_not_written() {
    let Ok(Datagram::Object(mut object)) = read_bytes(&[0x2c, 2, 3, 3]) else { panic!("no object") };
    object.end_of_group = true;
    let mut out = BytesMut::new();
    assert!(object.put(&mut out).is_err());
    assert!(out.is_empty());
}

proptest! {
    #[test]
    fn datagrams_go_both_ways(object in datagram()) {
        let mut out = BytesMut::new();
        object.put(&mut out).unwrap();
        prop_assert_eq!(read_datagram(&out.freeze()), Ok(Datagram::Object(object)));
    }

    #[test]
    fn a_shortened_head_is_a_mistake(object in datagram()) {
        let mut out = BytesMut::new();
        object.put_head(&mut out).unwrap();
        for length in 0..out.len() {
            prop_assert!(read_bytes(&out[..length]).is_err());
        }
    }

    #[test]
    fn any_bytes_are_a_datagram_or_a_mistake(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(Datagram::Object(object)) = read_bytes(&bytes) {
            let mut out = BytesMut::new();
            object.put(&mut out).unwrap();
            prop_assert_eq!(read_datagram(&out.freeze()), Ok(Datagram::Object(object)));
        }
    }
}
