//! Ends that come with data that were read before, between two engines.

use bytes::Bytes;

use super::super::actor_engine::tests::Ends;
use super::super::session::{Read, Session, StreamKind};
use super::super::state_streams::Priority;
use super::*;
use crate::actors::clock::now;

/// The client writes, the server reads, and the client hears nothing of it until it sends again what it has sent; by then
/// the stream has ended.
fn sent_again(ends: &mut Ends, kind: StreamKind) -> StreamId {
    ends.settle();
    let stream = ends.client.open(kind, Priority::default()).expect("one more");
    if kind == StreamKind::Bidirectional {
        // The other direction is over before.
        ends.client.write(stream, Bytes::from_static(b"question")).unwrap();
        ends.settle();
        assert_eq!(ends.server.read(stream, 100), Ok(Read::Data(Bytes::from_static(b"question"))));
        ends.server.write_last(stream, Bytes::from_static(b"answer")).unwrap();
        ends.settle();
        assert_eq!(ends.client.read(stream, 100), Ok(Read::Data(Bytes::from_static(b"answer"))));
        assert_eq!(ends.client.read(stream, 100), Ok(Read::End));
    }
    ends.client.write(stream, Bytes::from_static(b"data")).unwrap();
    ends.say();
    assert_eq!(ends.server.read(stream, 100), Ok(Read::Data(Bytes::from_static(b"data"))));
    assert_eq!(ends.server.read(stream, 100), Ok(Read::Nothing));
    ends.server.events.clear();
    let probes = |ends: &Ends| ends.client.quic.path_stats().map(|path| path.total_pto_count).sum::<usize>();
    let before = probes(ends);
    // quiche reads the clock by itself.
    while probes(ends) == before {
        let timeout = ends.client.quic.timeout_instant().expect("it waits for an acknowledgement");
        std::thread::sleep(timeout.saturating_duration_since(now()));
        ends.client.quic.on_timeout();
    }
    ends.client.finish(stream).unwrap();
    ends.tell();
    assert!(ends.server.quic.stream_finished(stream.0) && !ends.server.quic.stream_readable(stream.0));
    stream
}

#[test]
fn an_end_that_comes_with_data_that_were_read_is_told_once() {
    for kind in [StreamKind::Unidirectional, StreamKind::Bidirectional] {
        let mut ends = Ends::new(|_, _| ());
        let stream = sent_again(&mut ends, kind);
        ends.server.learn();
        assert_eq!(ends.server.events.drain(..).collect::<Vec<_>>(), [Event::Readable(stream)]);
        ends.server.heard = true;
        ends.server.learn();
        assert_eq!(ends.server.events.len(), 0, "once");
        assert_eq!(ends.server.read(stream, 100), Ok(Read::End));
        assert!(ends.server.events.contains(&Event::Finished(stream)));
        assert!(!ends.server.streams.contains_key(&stream));
        assert_eq!(ends.server.silent_due(), None);
    }
}

/// To look through many streams in each turn would cost too much: they are when some time has passed, in a turn that no
/// packet has brought.
#[test]
fn ends_among_many_streams_are_told_a_little_later() {
    let mut ends = Ends::new(|_, _| ());
    for _ in 0..FEW {
        let stream = ends.client.open(StreamKind::Unidirectional, Priority::default()).unwrap();
        ends.client.write(stream, Bytes::from_static(b"open")).unwrap();
    }
    let stream = sent_again(&mut ends, StreamKind::Unidirectional);
    ends.server.learn();
    let due = ends.server.silent_due().expect("a time");
    assert_eq!(ends.server.events.len(), 0);
    assert!(due <= ends.server.now + EVERY);
    ends.server.now = due;
    ends.server.learn();
    assert_eq!(ends.server.events.drain(..).collect::<Vec<_>>(), [Event::Readable(stream)]);
    assert_eq!(ends.server.read(stream, 100), Ok(Read::End));
    assert_eq!((ends.server.streams.len(), ends.server.silent_due()), (FEW, None));
    // A connection that ends has no time to keep.
    let more = ends.client.open(StreamKind::Unidirectional, Priority::default()).unwrap();
    ends.client.write(more, Bytes::from_static(b"more")).unwrap();
    ends.say();
    assert!(ends.server.silent_due().is_some());
    ends.server.close(0, "");
    assert_eq!(ends.server.silent_due(), None);
}

#[test]
fn bidirectional_streams_whose_end_came_so_leave_room_for_others() {
    let mut ends = Ends::new(|server, _| server.bidirectional = 2);
    for _ in 0..5 {
        let stream = sent_again(&mut ends, StreamKind::Bidirectional);
        ends.server.learn();
        assert_eq!(ends.server.read(stream, 100), Ok(Read::End));
        ends.settle();
    }
    assert_eq!((ends.server.streams.len(), ends.client.streams.len()), (0, 0));
}

/// A limit of quiche 0.30 that docs/quic.md names. When this fails, it is gone.
#[test]
fn a_unidirectional_stream_whose_end_came_so_takes_up_room_for_ever() {
    let mut ends = Ends::new(|server, _| server.unidirectional = 2);
    for _ in 0..2 {
        let stream = sent_again(&mut ends, StreamKind::Unidirectional);
        ends.server.learn();
        assert_eq!(ends.server.read(stream, 100), Ok(Read::End));
        ends.settle();
    }
    assert!(ends.client.open(StreamKind::Unidirectional, Priority::default()).is_err());
}
