//! Streams that are stopped, between two engines.

use super::super::actor_engine::tests::Ends;
use super::super::session::{Read, Session};
use super::super::state_streams::Priority;
use super::*;

/// More than may be open at once.
const ROUNDS: usize = 40;

/// Few streams may be open at once.
fn narrow() -> Ends {
    Ends::new(|server, _| (server.bidirectional, server.unidirectional) = (7, 7))
}

fn happened(engine: &mut Engine) -> Vec<Event> {
    engine.events.drain(..).collect()
}

fn open(ends: &mut Ends, kind: StreamKind) -> StreamId {
    ends.client.open(kind, Priority::default()).expect("one more may be opened")
}

#[test]
fn a_stop_that_comes_with_the_acknowledgement_is_told() {
    let mut ends = narrow();
    let stream = open(&mut ends, StreamKind::Unidirectional);
    ends.client.write(stream, Bytes::from_static(b"x")).unwrap();
    // As it is when another stream was held back meanwhile: then all streams that can be written are asked for.
    while ends.client.quic.stream_writable_next().is_some() {}
    ends.say();
    ends.server.stop(stream, 77).unwrap();
    ends.settle();
    let news = happened(&mut ends.client);
    // quiche has forgotten the code.
    assert!(news.contains(&Event::Stopped(stream, 0)), "{news:?}");
    assert_eq!(ends.client.write(stream, Bytes::from_static(b"y")), Err(StreamError::Unknown));
}

#[test]
fn streams_that_are_stopped_after_their_end_leave_room_for_others() {
    let mut ends = narrow();
    for round in 0..ROUNDS {
        let stream = open(&mut ends, StreamKind::Bidirectional);
        ends.client.finish(stream).unwrap();
        ends.settle();
        assert_eq!(ends.server.read(stream, 1), Ok(Read::End), "round {round}");
        ends.server.write_last(stream, Bytes::from_static(b"answer")).unwrap();
        // Nobody reads the answer; its end was written before the stop came.
        ends.client.stop(stream, 5).unwrap();
        ends.settle();
        assert_eq!((ends.server.info().streams, ends.client.info().streams), (0, 0), "round {round}");
    }
}

#[test]
fn streams_whose_reading_was_stopped_leave_room_for_others() {
    let mut ends = narrow();
    for round in 0..ROUNDS {
        let stream = open(&mut ends, StreamKind::Bidirectional);
        ends.client.write(stream, Bytes::from_static(b"some")).unwrap();
        ends.settle();
        // The answer is there, and acknowledged, before the peer has ended what nobody reads.
        ends.server.write_last(stream, Bytes::from_static(b"no more")).unwrap();
        ends.settle();
        ends.server.stop(stream, 5).unwrap();
        ends.settle();
        let news = happened(&mut ends.client);
        assert!(news.contains(&Event::Stopped(stream, 5)), "{news:?}");
        assert!(matches!(ends.client.read(stream, 100), Ok(Read::Data(_))));
        assert_eq!(ends.client.read(stream, 100), Ok(Read::End));
        ends.settle();
        assert_eq!((ends.server.info().streams, ends.client.info().streams), (0, 0), "round {round}");
    }
}

#[test]
fn streams_that_are_given_up_both_ways_leave_room_for_others() {
    let mut ends = narrow();
    for round in 0..ROUNDS {
        let stream = open(&mut ends, StreamKind::Bidirectional);
        ends.client.write(stream, Bytes::from_static(b"some")).unwrap();
        ends.settle();
        ends.server.reset(stream, 6).unwrap();
        ends.settle();
        ends.server.stop(stream, 5).unwrap();
        ends.settle();
        assert_eq!(ends.client.read(stream, 100), Err(StreamError::Reset(6)));
        ends.settle();
        assert_eq!((ends.server.info().streams, ends.client.info().streams), (0, 0), "round {round}");
    }
}

#[test]
fn a_stream_that_has_ended_unread_leaves_room_for_others() {
    let mut ends = narrow();
    for round in 0..ROUNDS {
        for kind in [StreamKind::Bidirectional, StreamKind::Unidirectional] {
            let stream = open(&mut ends, kind);
            ends.client.write(stream, Bytes::from_static(b"some")).unwrap();
            if round % 2 == 0 {
                ends.client.finish(stream).unwrap();
            }
            ends.settle();
            if round % 2 == 1 {
                ends.client.reset(stream, 9).unwrap();
                ends.settle();
            }
            assert!(ends.server.quic.stream_readable(stream.0), "nobody has read it");
            ends.server.stop(stream, 5).unwrap();
            if kind == StreamKind::Bidirectional {
                ends.server.finish(stream).unwrap();
                ends.settle();
                assert_eq!(ends.client.read(stream, 100), Ok(Read::End));
            }
            ends.settle();
            let news = happened(&mut ends.client);
            assert!(!news.contains(&Event::Stopped(stream, 5)), "all of it was here: there is nothing to stop");
            assert_eq!((ends.server.info().streams, ends.client.info().streams), (0, 0), "round {round}");
        }
    }
}

/// A limit of quiche 0.30 that docs/quic.md names. When this fails, it is gone.
#[test]
fn a_unidirectional_stream_that_is_stopped_midway_takes_up_room_for_ever() {
    let mut ends = narrow();
    for _ in 0..7 {
        let stream = open(&mut ends, StreamKind::Unidirectional);
        ends.client.write(stream, Bytes::from_static(b"some")).unwrap();
        ends.settle();
        ends.server.stop(stream, 5).unwrap();
        ends.settle();
        assert!(happened(&mut ends.client).contains(&Event::Stopped(stream, 5)));
    }
    assert!(ends.client.open(StreamKind::Unidirectional, Priority::default()).is_err());
}
