//! What a server decides about a connection, by plain calls.

use proptest::prelude::*;

use super::*;
use crate::transports::http3::codec::{put_frame, put_varint};

fn control(frames: &[(u64, &[u8])]) -> Bytes {
    let mut out = BytesMut::new();
    put_varint(&mut out, stream::CONTROL);
    for (kind, body) in frames {
        put_frame(&mut out, *kind, body.len());
        out.extend_from_slice(body);
    }
    out.freeze()
}

fn run(connection: &mut Connection, id: u64, bytes: &Bytes, step: usize) -> Result<(Inside, Vec<News>), Code> {
    let mut news = Vec::new();
    let mut inside = Inside::Unknown;
    let mut rest = bytes.clone();
    connection.opened(id);
    while !rest.is_empty() {
        let mut input = rest.split_to(step.min(rest.len()));
        inside = connection.came(id, &mut input, &mut news)?;
    }
    Ok((inside, news))
}

const SETTINGS: (u64, &[u8]) = (frame::SETTINGS, &[0x06, 0x10, 0x33, 0x01]);

#[test]
fn the_control_stream_comes_in_any_pieces() {
    let update = [&[8][..], b"u=1, i"].concat();
    let frames = [SETTINGS, (0x21, &[7; 100]), (frame::PRIORITY_UPDATE, &update), (0x21, b""), (frame::GOAWAY, &[4])];
    let bytes = control(&frames);
    for step in 1..=bytes.len() {
        let mut connection = Connection::new(false);
        for id in [0, 4, 8] {
            assert_eq!(connection.request(id, None), Some(Wanted::default()));
        }
        let (inside, news) = run(&mut connection, 2, &bytes, step).unwrap();
        assert_eq!(inside, Inside::Critical);
        let settings = Settings { field_section: Some(16), datagrams: true, ..Settings::default() };
        let wanted = Wanted { urgency: 1, incremental: true };
        assert_eq!(news, [News::Settings(settings), News::Priority(8, wanted)], "by {step}");
        assert_eq!(connection.settings(), Some(&settings));
    }
}

#[test]
fn what_must_not_be_on_a_control_stream_ends_the_connection() {
    for (frames, code) in [
        (&[(frame::GOAWAY, &[0][..])][..], Code::MissingSettings),
        (&[(frame::DATA, b"")], Code::MissingSettings),
        (&[(0x21, b"")], Code::MissingSettings),
        (&[SETTINGS, SETTINGS], Code::FrameUnexpected),
        (&[SETTINGS, (frame::DATA, b"")], Code::FrameUnexpected),
        (&[SETTINGS, (frame::HEADERS, b"")], Code::FrameUnexpected),
        (&[SETTINGS, (frame::PUSH_PROMISE, b"")], Code::FrameUnexpected),
        (&[SETTINGS, (0x2, b"")], Code::FrameUnexpected),
        (&[SETTINGS, (0x9, b"")], Code::FrameUnexpected),
        (&[SETTINGS, (frame::GOAWAY, &[4]), (frame::GOAWAY, &[8])], Code::IdError),
        (&[SETTINGS, (frame::MAX_PUSH_ID, &[4]), (frame::MAX_PUSH_ID, &[3])], Code::IdError),
        (&[SETTINGS, (frame::CANCEL_PUSH, &[0])], Code::IdError),
        (&[SETTINGS, (frame::GOAWAY, b"")], Code::FrameError),
        (&[SETTINGS, (frame::GOAWAY, &[0, 0])], Code::FrameError),
        (&[SETTINGS, (frame::PRIORITY_UPDATE, &[3])], Code::IdError),
        (&[SETTINGS, (frame::PRIORITY_UPDATE_PUSH, &[0])], Code::IdError),
        (&[(frame::SETTINGS, &[0x02, 0])], Code::SettingsError),
        (&[(frame::SETTINGS, &[0x40, 0x21, 0, 0x21, 0])], Code::SettingsError),
    ] {
        assert_eq!(run(&mut Connection::new(false), 2, &control(frames), 100).err(), Some(code), "{frames:x?}");
    }
}

#[test]
fn critical_streams_are_there_once_and_for_ever() {
    for kind in [stream::CONTROL, stream::ENCODER, stream::DECODER] {
        let mut connection = Connection::new(false);
        let bytes = Bytes::from(vec![u8::try_from(kind).unwrap()]);
        assert_eq!(run(&mut connection, 2, &bytes, 1).unwrap().0, Inside::Critical);
        assert_eq!(run(&mut connection, 6, &bytes, 1).err(), Some(Code::StreamCreationError));
        assert_eq!(connection.ended(2), Err(Code::ClosedCriticalStream));
    }
    let mut connection = Connection::new(true);
    assert_eq!(run(&mut connection, 2, &Bytes::from_static(&[1]), 1).err(), Some(Code::StreamCreationError));
    assert_eq!(run(&mut connection, 6, &Bytes::from_static(&[0x21]), 1).unwrap().0, Inside::Nothing);
    assert_eq!(connection.ended(6), Ok(()));
    assert_eq!(run(&mut connection, 10, &Bytes::from_static(&[0x40, 0x54, 8]), 1).unwrap().0, Inside::Session(8));
    let mut plain = Connection::new(false);
    assert_eq!(run(&mut plain, 10, &Bytes::from_static(&[0x40, 0x54]), 1).unwrap().0, Inside::Nothing);
}

#[test]
fn floods_of_the_control_stream_have_an_end() {
    for flood in [(frame::PRIORITY_UPDATE, &[0][..]), (0x21, b""), (frame::MAX_PUSH_ID, &[1])] {
        let mut frames = vec![SETTINGS];
        frames.extend([flood; 5_000]);
        assert_eq!(run(&mut Connection::new(false), 2, &control(&frames), 999).err(), Some(Code::ExcessiveLoad));
    }
    let mut out = BytesMut::new();
    put_varint(&mut out, stream::CONTROL);
    put_frame(&mut out, frame::SETTINGS, MAX_SETTINGS + 1);
    assert_eq!(run(&mut Connection::new(false), 2, &out.freeze(), 99).err(), Some(Code::ExcessiveLoad));
}

#[test]
fn requests_after_goaway_are_not_taken() {
    let mut connection = Connection::new(false);
    assert_eq!(connection.request(0, Some(b"u=5")), Some(Wanted { urgency: 5, incremental: false }));
    assert_eq!(connection.go_away(), Some(4));
    assert_eq!(connection.go_away(), None, "said once");
    assert_eq!(connection.request(4, None), None);
}

#[test]
fn an_update_may_come_before_its_request() {
    let mut connection = Connection::new(false);
    let bytes = control(&[SETTINGS, (frame::PRIORITY_UPDATE, &[4, b'u', b'=', b'0'])]);
    run(&mut connection, 2, &bytes, 100).unwrap();
    assert_eq!(connection.request(0, None), Some(Wanted::default()));
    assert_eq!(connection.request(4, Some(b"u=7")), Some(Wanted { urgency: 0, incremental: false }));
}

#[test]
fn who_only_gives_up_is_turned_out() {
    let mut connection = Connection::new(false);
    for _ in 0..1_000 {
        assert_eq!(connection.given_up(), Ok(()));
        connection.answered();
    }
    for _ in 0..GIVEN_UP {
        assert_eq!(connection.given_up(), Ok(()));
    }
    assert_eq!(connection.given_up(), Err(Code::ExcessiveLoad));
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_mean_the_same(bytes: Vec<u8>, step in 1_usize..20) {
        let bytes = Bytes::from([&[0, 4, 0][..], &bytes].concat());
        let by_step = run(&mut Connection::new(true), 2, &bytes, step);
        prop_assert_eq!(by_step, run(&mut Connection::new(true), 2, &bytes, bytes.len()));
    }
}
