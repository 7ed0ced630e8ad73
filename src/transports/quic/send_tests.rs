//! Trains: nothing that QUIC has made is lost or sent twice, however the socket and the pacer cut it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::actor_engine::tests::Ends;
use super::super::session::{Event, Read, Session, StreamId, StreamKind};
use super::super::state_streams::Priority;
use super::*;
use crate::actors::clock::now;

/// A socket that takes all, some or nothing of a train, as its seed says.
struct Fickle {
    seed: Cell<u64>,
    /// Of eight trains, how many are not taken whole.
    refuses: Cell<u64>,
    most: usize,
    gone: RefCell<Vec<Vec<u8>>>,
    calls: Cell<usize>,
    counters: Counters,
}

impl Fickle {
    fn new(seed: u64, refuses: u64, most: usize) -> Self {
        Self {
            seed: Cell::new(seed),
            refuses: Cell::new(refuses),
            most,
            gone: RefCell::default(),
            calls: Cell::new(0),
            counters: Counters::default(),
        }
    }

    fn random(&self) -> u64 {
        // Xorshift, which never reaches zero.
        let mut x = self.seed.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.seed.set(x);
        x >> 16
    }
}

impl Way for Fickle {
    fn most(&self) -> usize {
        self.most
    }

    fn take(&self, bytes: &[u8], segment: Option<usize>, _: SocketAddr, _: SocketAddr) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        let segment = segment.unwrap_or(bytes.len());
        let count = bytes.len().div_ceil(segment);
        assert!(count <= self.most && bytes.len() <= 65_507, "{count} datagrams, {} bytes", bytes.len());
        let taken = if self.random() % 8 < self.refuses.get() { self.random() as usize % count } else { count };
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let bytes = &bytes[..bytes.len().min(taken * segment)];
        self.gone.borrow_mut().extend(bytes.chunks(segment).map(<[u8]>::to_vec));
        Ok(bytes.len())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

fn text(stream: u64, length: usize) -> Bytes {
    (0..length).map(|n| (stream as usize * 7 + n * 31 % 251) as u8).collect()
}

struct Sums {
    paced: usize,
    blocked: usize,
    packets: usize,
    calls: usize,
}

/// The server answers on many streams, with lengths as the seed says, and the client reads them all.
fn serve(ends: &mut Ends, way: &Fickle, streams: usize, length: impl Fn(u64) -> usize, pause: impl Fn()) -> Sums {
    let mut outlet = Outlet::new(now());
    let mut buffer = vec![0; 1 << 16];
    let mut expected = BTreeMap::new();
    for _ in 0..streams {
        let stream = ends.server.open(StreamKind::Unidirectional, Priority::default()).unwrap();
        let text = text(stream.0, length(way.random()));
        ends.server.write(stream, text.clone()).unwrap();
        ends.server.finish(stream).unwrap();
        expected.insert(stream, text);
    }
    let mut got = BTreeMap::<StreamId, Vec<u8>>::new();
    let mut sums = Sums { paced: 0, blocked: 0, packets: 0, calls: 0 };
    let mut ended = 0;
    let mut virtually = now();
    while ended < streams {
        ends.server.now = virtually;
        ends.server.learn();
        ends.server.feed();
        match outlet.send(&mut ends.server, way, &mut buffer, true) {
            Sent::Paced(at) => {
                assert!(at > virtually, "woken at once");
                (virtually, sums.paced) = (at, sums.paced + 1);
            }
            Sent::Blocked => sums.blocked += 1,
            Sent::All | Sent::More => {}
        }
        assert_eq!(outlet.is_blocked(), sums.blocked > 0 && !outlet.pending.is_empty());
        pause();
        for mut packet in way.gone.borrow_mut().drain(..) {
            sums.packets += 1;
            ends.deliver(&mut packet);
        }
        ends.client.learn();
        while let Some(event) = ends.client.events.pop_front() {
            if let Event::Readable(stream) = event {
                loop {
                    match ends.client.read(stream, 1 << 20).unwrap() {
                        Read::Data(bytes) => got.entry(stream).or_default().extend(bytes),
                        Read::End => break ended += 1,
                        Read::Nothing => break,
                    }
                }
            }
        }
        ends.answer();
        outlet.heard();
    }
    way.refuses.set(0);
    outlet.send(&mut ends.server, way, &mut buffer, true);
    sums.packets += way.gone.borrow().len();
    for (stream, text) in expected {
        assert!(got.get(&stream).map_or(text.is_empty(), |got| *got == text), "stream {stream} came otherwise");
    }
    let stats = ends.server.quic.stats();
    assert_eq!((stats.lost, stats.retrans), (0, 0), "QUIC missed packets");
    assert_eq!(sums.packets as u64, way.counters.packets_out.get(), "made and gone");
    sums.calls = way.calls.get();
    sums
}

#[test]
fn whatever_the_socket_refuses_every_packet_leaves_once() {
    for seed in 1..40 {
        for refuses in [0, 2, 6] {
            let mut ends = Ends::new(|server, client| (server.pacing, client.unidirectional) = (false, 1_000));
            let way = Fickle::new(seed, refuses, 64);
            let sums = serve(&mut ends, &way, 100, |n| (n % 3_000) as usize, || ());
            assert_eq!(sums.blocked > 0, refuses > 0, "seed {seed}");
        }
    }
}

#[test]
fn answers_of_one_length_share_trains() {
    let mut ends = Ends::new(|server, client| {
        (server.pacing, server.initial_window, client.unidirectional) = (false, 1_000, 1_000);
    });
    let way = Fickle::new(1, 0, 64);
    let sums = serve(&mut ends, &way, 512, |_| 900, || ());
    assert!(sums.packets >= 512, "{} packets", sums.packets);
    assert!(sums.calls * 8 < sums.packets, "{} calls for {} packets", sums.calls, sums.packets);
}

#[test]
fn a_socket_without_trains_gets_each_packet_alone() {
    let mut ends = Ends::new(|server, client| (server.pacing, client.unidirectional) = (false, 1_000));
    let way = Fickle::new(5, 3, 1);
    let sums = serve(&mut ends, &way, 100, |n| (n % 3_000) as usize, || ());
    assert!(sums.calls >= sums.packets);
}

#[test]
fn the_pacer_cuts_trains_and_loses_nothing() {
    for seed in 1..4 {
        let mut ends = Ends::new(|_, client| client.unidirectional = 1_000);
        let way = Fickle::new(seed, 2, 64);
        // A path of some milliseconds: below one there is no pacing.
        let pause = || std::thread::sleep(std::time::Duration::from_millis(4));
        let sums = serve(&mut ends, &way, 100, |n| (n % 3_000) as usize, pause);
        assert!(sums.paced > 0, "seed {seed}: never paced");
    }
}

/// What a connection that sends as fast as it can puts into one turn.
#[test]
fn a_turn_beside_others_is_about_a_train() {
    for (alone, least, most) in [(true, 3 * TRAIN_BYTES, 5 * TRAIN_BYTES), (false, SHARED, SHARED + TRAIN_BYTES)] {
        let mut ends = Ends::new(|server, client| {
            (server.pacing, server.initial_window, client.stream_window) = (false, 1_000, 1 << 20);
        });
        let way = Fickle::new(1, 0, 64);
        let stream = ends.server.open(StreamKind::Unidirectional, Priority::default()).unwrap();
        ends.server.queue(stream, text(stream.0, 1 << 20), None);
        ends.server.feed();
        let mut outlet = Outlet::new(now());
        let mut buffer = vec![0; 1 << 16];
        let how = outlet.send(&mut ends.server, &way, &mut buffer, alone);
        let sent: usize = way.gone.borrow().iter().map(Vec::len).sum();
        assert_eq!(how, Sent::More, "alone: {alone}");
        assert!((least..most).contains(&sent), "{sent} bytes, alone: {alone}");
    }
}
