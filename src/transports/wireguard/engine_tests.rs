//! What every engine must do, and what boringtun does not do by itself.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::codec_keys::{PublicKey, SecretKey};
use super::codec_message::{COOKIE, INITIATION, Message, OVERHEAD, RESPONSE, sender};
use super::engine::{Authentic, Engine, EngineError, LEAST_ROOM, Opened, Rules, Sealed, Ticked};
use super::engine_boring::{Boring, Material, no_limit, public_key};
use super::engine_guard::{Guard, Verdict};
use crate::actors::clock;

const ROOM: usize = 65_535;

fn secret(n: u8) -> SecretKey {
    SecretKey::new([n; 32])
}

fn material(ours: u8, theirs: u8, rules: Rules) -> Material {
    Material {
        secret: secret(ours),
        peer: public_key(&secret(theirs)),
        preshared: Some(secret(0xa5)),
        keepalive: None,
        index: 0x00ab_cd00 | u32::from(ours),
        seed: u64::from(ours) << 32 | 77,
        rules,
    }
}

fn engine(material: &Material, now: Instant) -> Boring {
    Boring::new(material, no_limit(&material.secret), now)
}

/// Two ends, and what one sends to the other.
struct Pair<E> {
    ends: [E; 2],
    now: Instant,
    out: Vec<u8>,
    delivered: [Vec<Vec<u8>>; 2],
    authentic: Vec<Authentic>,
}

fn boring(rules: Rules) -> Pair<Boring> {
    let now = clock::now();
    Pair::of(engine(&material(1, 2, rules), now), engine(&material(2, 1, rules), now), now)
}

fn up(rules: Rules) -> Pair<Boring> {
    let mut pair = boring(rules);
    pair.connect(0);
    pair
}

impl<E: Engine> Pair<E> {
    fn of(a: E, b: E, now: Instant) -> Self {
        Self { ends: [a, b], now, out: vec![0; ROOM], delivered: [Vec::new(), Vec::new()], authentic: Vec::new() }
    }

    fn bytes(&self, length: usize) -> Vec<u8> {
        self.out[..length].to_vec()
    }

    fn seal(&mut self, at: usize, packet: &[u8]) -> Result<Sealed, EngineError> {
        self.ends[at].seal(packet, &mut self.out, self.now)
    }

    fn sealed(&mut self, at: usize, packet: &[u8]) -> Vec<u8> {
        match self.seal(at, packet) {
            Ok(Sealed::Datagram(length)) => self.bytes(length),
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, at: usize, datagram: &[u8]) -> Result<(Authentic, Opened), EngineError> {
        self.ends[at].open(datagram, &mut self.out, self.now)
    }

    /// Delivers a datagram to one end and all that follows from it.
    fn deliver(&mut self, to: usize, datagram: Vec<u8>) {
        let mut ways = VecDeque::from([(to, datagram)]);
        while let Some((at, datagram)) = ways.pop_front() {
            let Ok((authentic, opened)) = self.open(at, &datagram) else { continue };
            self.authentic.push(authentic);
            match opened {
                Opened::Nothing => {}
                Opened::Packet(length) => {
                    let packet = self.bytes(length);
                    self.delivered[at].push(packet);
                }
                Opened::Reply(length) => ways.push_back((1 - at, self.bytes(length))),
            }
            while let Some(length) = self.ends[at].waiting(&mut self.out, self.now).unwrap() {
                ways.push_back((1 - at, self.bytes(length)));
            }
        }
    }

    fn initiation(&mut self, at: usize) -> Vec<u8> {
        let length = self.ends[at].initiate(&mut self.out, self.now).unwrap().expect("it is time");
        assert_eq!(length, INITIATION);
        self.bytes(length)
    }

    fn connect(&mut self, from: usize) {
        let initiation = self.initiation(from);
        self.deliver(1 - from, initiation);
        assert!(self.ends.iter().all(|end| end.established().is_some()));
    }

    /// Ticks one end until it has nothing more to say, at its deadline or now, whichever is later.
    fn tick(&mut self, at: usize) -> Vec<Ticked> {
        let now = self.now.max(self.ends[at].deadline());
        let mut all = Vec::new();
        loop {
            match self.ends[at].tick(&mut self.out, now).unwrap() {
                Ticked::Nothing => return all,
                done @ Ticked::Expired(_) => {
                    all.push(done);
                    return all;
                }
                more @ Ticked::Datagram(_) => all.push(more),
            }
        }
    }
}

/// An IPv4 packet of this length, padded as the tunnel does.
fn packet(length: usize, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet.resize(length.next_multiple_of(16), 0);
    packet
}

#[test]
fn a_handshake_and_packets_both_ways() {
    let mut pair = up(Rules::default());
    assert_eq!(pair.authentic, [Authentic::Initiation, Authentic::Response, Authentic::Data]);
    for (from, length) in [(0, 100), (1, 20), (0, 1420), (1, 9_000)] {
        let sealed = pair.sealed(from, &packet(length, 7));
        assert_eq!(sealed.len(), length.next_multiple_of(16) + OVERHEAD, "padded");
        pair.deliver(1 - from, sealed);
        let got = pair.delivered[1 - from].pop().unwrap();
        assert_eq!(got, packet(length, 7)[..length], "and the padding is gone again");
    }
}

#[test]
fn only_responses_and_data_say_where_the_peer_is() {
    let roams = [Authentic::Initiation, Authentic::Response, Authentic::Cookie, Authentic::Data].map(Authentic::roams);
    assert_eq!(roams, [false, true, false, true]);
}

#[test]
fn an_ipv6_packet_passes() {
    let mut pair = up(Rules::default());
    let mut inner = vec![9; 48];
    inner[0] = 0x60;
    inner[4..6].copy_from_slice(&8u16.to_be_bytes());
    let sealed = pair.sealed(0, &inner);
    pair.deliver(1, sealed);
    assert_eq!(pair.delivered[1], [inner]);
}

#[test]
fn a_small_buffer_is_an_error_and_never_a_panic() {
    let mut pair = up(Rules::default());
    let (now, sealed) = (pair.now, pair.sealed(0, &packet(200, 1)));
    let initiation = boring(Rules::default()).initiation(0);
    let mut small = vec![0; LEAST_ROOM - 1];
    for end in &mut pair.ends {
        assert_eq!(end.seal(&packet(20, 1), &mut small, now), Err(EngineError::Room));
        assert_eq!(end.open(&sealed, &mut small, now).err(), Some(EngineError::Room));
        assert_eq!(end.open(&initiation, &mut small, now).err(), Some(EngineError::Room));
        assert_eq!(end.initiate(&mut small, now), Err(EngineError::Room));
        assert_eq!(end.tick(&mut small, now), Err(EngineError::Room));
    }
    let mut short = vec![0; 208 + OVERHEAD - 1];
    assert_eq!(pair.ends[0].seal(&packet(200, 1), &mut short, now), Err(EngineError::Room));
    assert_eq!(pair.ends[1].open(&sealed, &mut short, now).err(), Some(EngineError::Room));
    pair.deliver(1, sealed);
    assert_eq!(pair.delivered[1].len(), 1, "and the datagram is still good");
}

#[test]
fn packets_wait_for_a_session_in_order_up_to_a_bound() {
    let mut pair = boring(Rules { waiting: 3, ..Rules::default() });
    let Ok(Sealed::Waits(Some(INITIATION))) = pair.seal(0, &packet(20, 0)) else { panic!("it begins") };
    let initiation = pair.bytes(INITIATION);
    assert_eq!(pair.seal(0, &packet(20, 1)), Ok(Sealed::Waits(None)), "it does not begin twice");
    assert_eq!(pair.seal(0, &packet(20, 2)), Ok(Sealed::Waits(None)));
    assert_eq!(pair.seal(0, &packet(20, 3)), Err(EngineError::QueueFull));
    pair.deliver(1, initiation);
    let marks: Vec<u8> = pair.delivered[1].iter().map(|packet| packet[19]).collect();
    assert_eq!(marks, [0, 1, 2]);
}

#[test]
fn a_session_ends_by_age_whatever_timers_did() {
    let mut pair = up(Rules::default());
    let late = pair.sealed(0, &packet(20, 1));
    pair.now += Duration::from_secs(179);
    assert!(matches!(pair.seal(0, &packet(20, 2)), Ok(Sealed::Waits(_))), "it would arrive too late");
    pair.now += Duration::from_secs(1);
    assert_eq!(pair.open(1, &late), Err(EngineError::SessionOver));
    pair.now -= Duration::from_secs(1);
    pair.deliver(1, late);
    assert_eq!(pair.delivered[1].len(), 1, "one second before it was still good");
}

#[test]
fn a_session_ends_by_messages() {
    let mut pair = up(Rules { rekey_messages: 5, reject_messages: 10, ..Rules::default() });
    // The keepalive of the handshake was message 0.
    for _ in 1..4 {
        pair.sealed(0, &packet(20, 1));
    }
    pair.now += Duration::from_secs(6);
    assert_eq!(pair.tick(0), []);
    pair.sealed(0, &packet(20, 1));
    assert_eq!(pair.tick(0), [Ticked::Datagram(INITIATION)], "a new one is wanted");
    for _ in 5..10 {
        pair.sealed(0, &packet(20, 1));
    }
    assert_eq!(pair.seal(0, &packet(20, 1)), Ok(Sealed::Waits(None)), "and needed");
}

#[test]
fn counters_at_the_end_of_their_range_are_refused_before_they_wrap() {
    let mut pair = up(Rules::default());
    let mut sealed = pair.sealed(0, &packet(20, 1));
    for counter in [u64::MAX, u64::MAX - (1 << 13)] {
        sealed[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(pair.open(1, &sealed), Err(EngineError::SessionOver));
    }
    sealed[8..16].copy_from_slice(&(u64::MAX - (1 << 13) - 1).to_le_bytes());
    assert_eq!(pair.open(1, &sealed), Err(EngineError::Tag), "below it the tag decides");
}

#[test]
fn a_used_session_is_renewed_by_whoever_began_it() {
    let mut pair = up(Rules { rekey_after: Duration::from_secs(5), ..Rules::default() });
    pair.now += Duration::from_secs(6);
    assert_eq!((pair.tick(0), pair.tick(1)), (vec![], vec![]), "nobody uses it");
    let sealed = pair.sealed(0, &packet(20, 1));
    pair.deliver(1, sealed);
    let answer = pair.sealed(1, &packet(20, 1));
    pair.deliver(0, answer);
    assert_eq!((pair.tick(0), pair.tick(1)), (vec![Ticked::Datagram(INITIATION)], vec![]));
    let before = pair.ends[0].established();
    let initiation = pair.bytes(INITIATION);
    // `tick` of end 1 did not write, so the buffer still holds it.
    pair.deliver(1, initiation);
    assert!(pair.ends[0].established() > before);
    pair.now += Duration::from_secs(1);
    assert_eq!(pair.tick(0), [], "once is enough");
}

#[test]
fn replays_are_told_from_late_ones() {
    let mut pair = up(Rules::default());
    let first = pair.sealed(0, &packet(20, 1));
    pair.deliver(1, first.clone());
    assert_eq!(pair.open(1, &first), Err(EngineError::Replayed));
    let mut last = Vec::new();
    for _ in 0..1_100 {
        last = pair.sealed(0, &packet(20, 2));
    }
    pair.deliver(1, last);
    assert_eq!(pair.open(1, &first), Err(EngineError::TooLate));
    assert_eq!(pair.delivered[1].len(), 2);
}

#[test]
fn an_initiation_works_once() {
    let mut pair = boring(Rules::default());
    let initiation = pair.initiation(0);
    assert!(pair.open(1, &initiation).is_ok());
    assert_eq!(pair.open(1, &initiation), Err(EngineError::OldInitiation));
}

#[test]
fn errors_are_told_apart() {
    let mut pair = up(Rules::default());
    let sealed = pair.sealed(0, &packet(20, 1));
    let changed = |at: usize| {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        changed
    };
    assert_eq!(pair.open(1, &changed(20)), Err(EngineError::Tag));
    assert_eq!(pair.open(1, &changed(0)), Err(EngineError::Malformed));
    assert_eq!(pair.open(1, &changed(4)), Err(EngineError::NoSession), "another slot");
    assert_eq!(pair.open(1, &changed(5)), Err(EngineError::NoSession), "the same slot of another index");
    assert_eq!(pair.open(1, &[4, 0, 0, 0]), Err(EngineError::Malformed));
    for inner in [&[0x45; 16][..], &[0x75; 32], &[0; 16], &packet(48, 1)[..32]] {
        let sealed = pair.sealed(0, inner);
        assert_eq!(pair.open(1, &sealed), Err(EngineError::Inner), "{inner:?}");
    }
    let other = boring(Rules::default()).initiation(1);
    assert_eq!(pair.open(1, &other).map(drop), Err(EngineError::Mac), "not for this key");
    let mut stranger = engine(&material(3, 2, Rules::default()), pair.now);
    let length = stranger.initiate(&mut pair.out, pair.now).unwrap().unwrap();
    let initiation = pair.bytes(length);
    assert_eq!(pair.open(1, &initiation), Err(EngineError::Key), "for this key, from another");
    let mut response = vec![0; RESPONSE];
    response[0] = 2;
    assert_eq!(pair.open(0, &response), Err(EngineError::Mac));
}

#[test]
fn another_preshared_key_makes_no_session() {
    let now = clock::now();
    let mut theirs = material(2, 1, Rules::default());
    theirs.preshared = None;
    let mut pair = Pair::of(engine(&material(1, 2, Rules::default()), now), engine(&theirs, now), now);
    let initiation = pair.initiation(0);
    let (_, opened) = pair.open(1, &initiation).unwrap();
    let Opened::Reply(length) = opened else { panic!("{opened:?}") };
    let response = pair.bytes(length);
    assert_eq!(pair.open(0, &response), Err(EngineError::Key));
    assert!(pair.ends[0].established().is_none());
}

#[test]
fn ticks_are_spread() {
    let now = clock::now();
    let waits: Vec<Duration> = (0..200)
        .map(|n| engine(&Material { seed: n * 7919, ..material(1, 2, Rules::default()) }, now).deadline() - now)
        .collect();
    let (least, most) = (Duration::from_millis(250), Duration::from_millis(583));
    assert!(waits.iter().all(|wait| (least..=most).contains(wait)));
    let spread = waits.iter().max().unwrap().abs_diff(*waits.iter().min().unwrap());
    assert!(spread > Duration::from_millis(250), "{spread:?}");
}

#[test]
fn indices_route_to_their_engine() {
    let mut pair = boring(Rules::default());
    for _ in 0..3 {
        let initiation = pair.initiation(0);
        assert_eq!(sender(&initiation).map(|index| index >> 8), Some(0x00ab_cd01));
        pair.now += Duration::from_secs(5);
    }
}

#[test]
fn no_key_in_any_debug_text() {
    let material = material(0x5a, 2, Rules::default());
    let engine = engine(&material, clock::now());
    let guard = Guard::new(&material.secret, 1);
    let text = format!("{engine:?} {material:?} {guard:?}");
    for key in ["90, 90", "165, 165", "5a5a", "a5a5", "Wlpa", "paWl"] {
        assert!(!text.contains(key), "{text}");
    }
}

#[test]
fn two_hundred_thousand_random_datagrams() {
    let mut pair = up(Rules::default());
    let (mut random, mut errors) = (0x9e37_79b9_7f4a_7c15_u64, 0);
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut datagram = Vec::new();
    for n in 0..200_000_u32 {
        let length = match next() % 4 {
            0 => [INITIATION, RESPONSE, COOKIE, OVERHEAD][(next() % 4) as usize],
            _ => (next() % 220) as usize,
        };
        datagram.clear();
        datagram.extend((0..length).map(|_| (next() >> 32) as u8));
        if let Some(head) = datagram.get_mut(..4) {
            head.copy_from_slice(&(n % 6).to_le_bytes());
        }
        errors += usize::from(pair.open(1, &datagram).is_err());
    }
    assert_eq!(errors, 200_000);
    let sealed = pair.sealed(0, &packet(20, 1));
    pair.deliver(1, sealed);
    assert_eq!(pair.delivered[1].len(), 1, "the session lost nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is lost, comes twice or late: each packet arrives at most once and as it was, and what was neither lost
    /// nor too late arrives.
    #[test]
    fn a_bad_network_repeats_and_changes_nothing(
        fates in proptest::collection::vec((0..2usize, 0..10u8, 0..40usize, 1..80usize), 1..120),
    ) {
        let mut pair = up(Rules::default());
        let mut wires = [Vec::new(), Vec::new()];
        let mut expected = [Vec::new(), Vec::new()];
        for (n, (from, fate, hold, length)) in fates.into_iter().enumerate() {
            let inner = packet(20 + length, n as u8);
            let sealed = pair.sealed(from, &inner);
            let copies = match fate { 0 => 0, 1 => 2, _ => 1 };
            if copies > 0 {
                expected[1 - from].push(inner[..20 + length].to_vec());
            }
            for copy in 0..copies {
                wires[1 - from].push((n + hold * (copy + 1), sealed.clone()));
            }
        }
        for (to, mut wire) in wires.into_iter().enumerate() {
            wire.sort_by_key(|(at, _)| *at);
            for (_, sealed) in wire {
                pair.deliver(to, sealed);
            }
        }
        for (mut got, mut expected) in pair.delivered.into_iter().zip(expected) {
            got.sort();
            expected.sort();
            prop_assert_eq!(got, expected);
        }
    }

    /// A handshake comes about in the end, whichever of its messages are lost.
    #[test]
    fn a_handshake_survives_loss(lost in proptest::collection::vec(any::<bool>(), 0..8)) {
        let mut pair = boring(Rules::default());
        let mut lost = lost.into_iter();
        for _ in 0..20 {
            let mut ways = VecDeque::from([(1, pair.initiation(0))]);
            while let Some((at, datagram)) = ways.pop_front() {
                if lost.next().unwrap_or(false) {
                    continue;
                }
                if let Ok((_, Opened::Reply(length))) = pair.open(at, &datagram) {
                    ways.push_back((1 - at, pair.bytes(length)));
                }
            }
            pair.now += Duration::from_secs(5);
            if pair.ends.iter().all(|end| end.established().is_some()) {
                return Ok(());
            }
        }
        prop_assert!(false, "no session");
    }
}

fn judge(guard: &Guard, from: &str, datagram: &[u8]) -> (Verdict, [u8; COOKIE]) {
    let mut cookie = [0; COOKIE];
    let verdict = guard.judge(from.parse::<IpAddr>().unwrap(), datagram, &mut cookie);
    (verdict, cookie)
}

#[test]
fn the_guard_knows_who_begins() {
    let guard = Guard::new(&secret(2), 640);
    let initiation = boring(Rules::default()).initiation(0);
    assert_eq!(judge(&guard, "192.0.2.1", &initiation).0, Verdict::Pass);
    assert_eq!(guard.initiator(&initiation), Some(public_key(&secret(1))));
    let other = Guard::new(&secret(3), 640);
    assert_eq!(judge(&other, "192.0.2.1", &initiation).0, Verdict::Refused(EngineError::Mac));
    assert_eq!(other.initiator(&initiation), None);
    assert_eq!(judge(&guard, "192.0.2.1", &initiation[..100]).0, Verdict::Refused(EngineError::Malformed));
}

#[test]
fn a_flooder_meets_cookies_and_others_do_not() {
    let guard = Guard::new(&secret(2), 64 * 4);
    let mut pair = boring(Rules::default());
    let initiation = pair.initiation(0);
    for _ in 0..4 {
        assert_eq!(judge(&guard, "192.0.2.1", &initiation).0, Verdict::Pass, "what passes is counted once");
    }
    let (verdict, cookie) = judge(&guard, "192.0.2.1", &initiation);
    assert_eq!(verdict, Verdict::Cookie);
    // At most one of these meets the same shard.
    let others = (2..32).filter(|n| judge(&guard, &format!("198.51.100.{n}"), &initiation).0 == Verdict::Pass).count();
    assert!(others >= 20, "{others}");
    // With the cookie the same source gets through, and nobody else does with it.
    assert_eq!(pair.open(0, &cookie), Ok((Authentic::Cookie, Opened::Nothing)));
    let again = pair.initiation(0);
    assert!(matches!(Message::parse(&again), Some(Message::Initiation { .. })));
    assert_eq!(judge(&guard, "192.0.2.1", &again).0, Verdict::Pass);
    let end = clock::now() + Duration::from_secs(5);
    loop {
        guard.reset();
        match judge(&guard, "192.0.2.1", &initiation).0 {
            Verdict::Pass => break,
            refused @ (Verdict::Cookie | Verdict::Refused(_)) => {
                assert!(clock::now() < end, "still {refused:?} after a second")
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_cookie_of_another_source_is_worth_nothing() {
    let guard = Guard::new(&secret(2), 1);
    let mut pair = boring(Rules::default());
    let initiation = pair.initiation(0);
    judge(&guard, "192.0.2.1", &initiation);
    let (verdict, cookie) = judge(&guard, "192.0.2.1", &initiation);
    assert_eq!(verdict, Verdict::Cookie);
    pair.open(0, &cookie).unwrap();
    let again = pair.initiation(0);
    for n in 0..3 {
        let (verdict, _) = judge(&guard, "203.0.113.9", &again);
        assert!(n == 0 || verdict == Verdict::Cookie, "{n}: {verdict:?}");
    }
}

#[test]
fn public_keys_are_those_of_wg() {
    // A pair made by wg(8), for this test alone.
    let secret = SecretKey::from_base64("QAkBhosdetZOyyT2L+xd1cMsM9AJs0NVmN4GtZRTv0M=").unwrap();
    assert_eq!(Some(public_key(&secret)), PublicKey::from_base64("0wI3Oe2XVtgLdlL96GpDNusUeNnba/AL80ElHzLWyWo="));
}
