//! The decisions, driven by hand: no socket, no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::actors::clock;
use crate::memory::Pool;

const S: Duration = Duration::from_secs(1);

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

fn state(change: impl FnOnce(&mut Settings)) -> (State, Instant) {
    let mut settings = Settings::default();
    change(&mut settings);
    let now = clock::now();
    (State::new(Arc::new(settings), now), now)
}

fn written(state: &mut State, now: Instant) -> Vec<u8> {
    let mut all = Vec::new();
    while let Next::Write(bytes) = state.poll() {
        all.extend_from_slice(bytes);
        let count = bytes.len();
        state.handle(Input::Written(count), now, &mut Echo);
    }
    all
}

fn reason(state: &State) -> Option<&'static str> {
    match state.poll() {
        Next::Close(close) => Some(close.reason),
        Next::Wait | Next::Write(_) | Next::ShutdownWrite => None,
    }
}

/// Moves time to the deadline and says what came of it.
fn expire(state: &mut State) -> Option<&'static str> {
    let at = state.deadline()?;
    state.handle(Input::Deadline, at, &mut Echo);
    reason(state)
}

#[test]
fn a_state_is_small() {
    assert!(size_of::<State>() <= 400, "{}", size_of::<State>());
}

#[test]
fn four_gibibytes_are_refused_at_once_and_without_memory() {
    let (mut state, now) = state(|_| {});
    let mut input = frame(b"good");
    input.extend_from_slice(&[0xff; 4]);
    state.handle(Input::Bytes(&input), now, &mut Echo);
    assert_eq!(written(&mut state, now), frame(b"good"), "what came before is answered");
    assert_eq!(state.poll(), Next::ShutdownWrite);
    state.write_is_shut();
    assert!(state.held() < 100);
    state.handle(Input::Bytes(&[0; 1000]), now, &mut Echo);
    state.handle(Input::Eof, now, &mut Echo);
    assert_eq!(reason(&state), Some("frame_too_large"));
}

#[test]
fn silence_ends_by_the_timer_that_fits() {
    let (mut quiet, _) = state(|_| {});
    assert_eq!(expire(&mut quiet), Some("first_message_timeout"));

    let (mut half, now) = state(|s| s.first_message = None);
    half.handle(Input::Bytes(&[0, 0, 0, 9]), now + S, &mut Echo);
    assert_eq!(half.deadline(), Some(now + S + 30 * S));
    half.handle(Input::Bytes(&[1, 2]), now + 20 * S, &mut Echo);
    assert_eq!(half.deadline(), Some(now + S + 30 * S), "more of it does not buy more time");
    assert_eq!(expire(&mut half), Some("message_timeout"));

    let (mut idle, now) = state(|_| {});
    idle.handle(Input::Bytes(&frame(b"x")), now + S, &mut Echo);
    written(&mut idle, now + 2 * S);
    assert_eq!(idle.deadline(), Some(now + 2 * S + 300 * S));
    assert_eq!(expire(&mut idle), Some("idle"));
}

#[test]
fn no_timer_overflows() {
    let (state, _) = state(|s| {
        s.first_message = Some(Duration::MAX);
        s.idle = Some(Duration::MAX);
    });
    assert_eq!(state.deadline(), None);
}

#[test]
fn the_ends_of_a_stream_have_their_reasons() {
    let end = |input: &[u8], how: Input<'_>| {
        let (mut state, now) = state(|_| {});
        state.handle(Input::Bytes(input), now, &mut Echo);
        state.handle(how, now, &mut Echo);
        let out = written(&mut state, now);
        (reason(&state).unwrap(), out.len())
    };
    assert_eq!(end(&frame(b"abc"), Input::Eof), ("eof", 7));
    assert_eq!(end(&frame(b"abc")[..5], Input::Eof), ("eof_in_message", 0));
    assert_eq!(end(&frame(b"abc")[..4], Input::Reset), ("reset", 0));
}

#[test]
fn a_peer_that_never_reads_stops_being_read_and_is_closed() {
    let (mut state, now) = state(|s| s.outbound = 100);
    let input = frame(&[7; 36]).repeat(10);
    state.handle(Input::Bytes(&input), now, &mut Echo);
    assert!(!state.wants_read());
    let Next::Write(bytes) = state.poll() else { panic!("it has answers") };
    assert_eq!(bytes.len(), 80, "as many answers as fit, exactly");
    // A little progress buys time; none does not.
    state.handle(Input::Written(1), now + 9 * S, &mut Echo);
    assert_eq!(state.deadline(), Some(now + 19 * S));
    assert_eq!(expire(&mut state), Some("slow_reader"));
}

#[test]
fn a_peer_that_reads_late_gets_everything() {
    let (mut state, now) = state(|s| s.outbound = 100);
    let input = frame(&[7; 36]).repeat(10);
    state.handle(Input::Bytes(&input), now, &mut Echo);
    assert_eq!(written(&mut state, now + S), input);
    assert!(state.wants_read());
    assert_eq!(state.take_moved().messages_in, 10);
}

#[test]
fn what_others_push_follows_the_policy() {
    for (policy, closes) in [(WhenSlow::Close, true), (WhenSlow::DropOldest, false), (WhenSlow::DropNewest, false)] {
        let (mut state, now) = state(|s| {
            s.outbound = 50;
            s.when_slow = policy;
        });
        for _ in 0..10 {
            state.handle(Input::Push(b"0123456789"), now, &mut Echo);
        }
        assert_eq!(reason(&state), closes.then_some("slow_reader"));
        if !closes {
            let moved = state.take_moved();
            assert_eq!(moved.dropped, 7);
            assert_eq!(written(&mut state, now).len(), 42);
        }
    }
}

#[test]
fn a_drain_answers_what_has_come_and_lingers() {
    let (mut state, now) = state(|_| {});
    state.handle(Input::Bytes(&frame(b"one")), now, &mut Echo);
    state.handle(Input::Drain(now + 10 * S), now, &mut Echo);
    assert!(state.wants_read() && state.wants_last_read());
    state.handle(Input::Bytes(&[frame(b"two"), vec![0, 0]].concat()), now, &mut Echo);
    state.handle(Input::ReadDone, now, &mut Echo);
    assert!(!state.wants_last_read());
    state.handle(Input::Bytes(&frame(b"late")), now, &mut Echo);
    assert_eq!(written(&mut state, now), [frame(b"one"), frame(b"two")].concat());
    assert_eq!(state.poll(), Next::ShutdownWrite);
    state.write_is_shut();
    assert_eq!(state.poll(), Next::Wait);
    assert_eq!(state.deadline(), Some(now + 2 * S));
    assert_eq!(expire(&mut state), Some("drained"));
}

#[test]
fn a_drain_of_a_peer_that_never_pauses_ends() {
    let (mut state, now) = state(|_| {});
    state.handle(Input::Bytes(&frame(b"one")), now, &mut Echo);
    state.handle(Input::Drain(now + 60 * S), now, &mut Echo);
    let chunk = frame(&[1; 65_532]);
    let mut chunks = 0;
    while state.wants_last_read() {
        state.handle(Input::Bytes(&chunk), now, &mut Echo);
        written(&mut state, now);
        chunks += 1;
        assert!(chunks < 1_000, "it reads for ever");
    }
    assert_eq!(state.poll(), Next::ShutdownWrite);
    assert_eq!(state.take_moved().messages_in, 1 + 96, "what a socket can hold, and no more");
}

#[test]
fn a_service_with_large_answers_waits_for_their_room() {
    struct Tenfold;
    impl Service for Tenfold {
        fn message(&mut self, body: &[u8], out: &mut Outbox) {
            out.push(&body.repeat(10));
        }
        fn reply_room(&self, body: usize) -> usize {
            body * 10
        }
    }
    let (mut state, now) = state(|s| s.outbound = 250);
    state.handle(Input::Bytes(&frame(&[1; 10]).repeat(5)), now, &mut Tenfold);
    let mut answers = 0;
    while let Next::Write(bytes) = state.poll() {
        assert!(bytes.len() <= 250);
        let count = bytes.len().min(104);
        answers += usize::from(count == 104);
        state.handle(Input::Written(count), now, &mut Tenfold);
    }
    assert_eq!((answers, reason(&state)), (5, None));
}

#[test]
fn a_drain_of_a_stalled_peer_goes_on_when_it_reads() {
    let (mut state, now) = state(|s| s.outbound = 100);
    let input = frame(&[7; 36]).repeat(5);
    state.handle(Input::Bytes(&input), now, &mut Echo);
    state.handle(Input::Drain(now + 60 * S), now, &mut Echo);
    state.handle(Input::ReadDone, now, &mut Echo);
    assert!(state.wants_last_read(), "not while answers are held back");
    assert_eq!(written(&mut state, now), input);
    state.handle(Input::ReadDone, now, &mut Echo);
    assert_eq!(state.poll(), Next::ShutdownWrite);
}

#[test]
fn an_idle_connection_holds_no_memory() {
    let (mut state, now) = state(|_| {});
    let pool = Pool::new(4_096, 2, None);
    let message = frame(&[1; 500]);
    state.read(&message[..100], now, &mut Echo, |_| pool.lease().unwrap());
    state.read(&message[100..], now, &mut Echo, |_| pool.lease().unwrap());
    written(&mut state, now);
    assert_eq!((state.own_bytes(), state.held(), pool.stats().out), (0, 8_192, 2));
    state.free_unused();
    assert_eq!((state.held(), pool.stats().out), (0, 0));
}

#[test]
fn parts_move_to_larger_buffers_and_none_is_lost_to_its_pool() {
    let (mut state, now) = state(|_| {});
    let pools = [64, 512, 4_096].map(|size| Pool::new(size, 2, None));
    let get = |bytes: usize| {
        let pool = pools.iter().find(|pool| pool.stats().size >= bytes);
        pool.map(|pool| pool.lease().unwrap()).unwrap_or_default()
    };
    let input = [frame(&[1; 10]), frame(&[2; 6_000]), frame(&[3; 20])].concat();
    let mut out = Vec::new();
    for chunk in input.chunks(40) {
        state.read(chunk, now, &mut Echo, get);
        out.extend(written(&mut state, now));
        state.free_unused();
        assert!(pools.iter().map(|pool| pool.stats().out).sum::<u64>() <= 1, "one for the part, and none for answers");
    }
    assert_eq!(out, input);
    assert_eq!(pools.map(|pool| (pool.stats().out, pool.stats().resized)), [(0, 0); 3]);
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answers(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
        cuts in proptest::collection::vec(1..400usize, 1..60),
        takes in proptest::collection::vec(1..400usize, 1..60),
        outbound in 310..2_000usize,
    ) {
        let (mut state, now) = state(|s| s.outbound = outbound);
        let input: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
        let (mut rest, mut out) = (&input[..], Vec::new());
        let (mut cuts, mut takes) = (cuts.iter().cycle(), takes.iter().cycle());
        loop {
            if state.wants_read() && !rest.is_empty() {
                let (chunk, more) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = more;
                state.handle(Input::Bytes(chunk), now, &mut Echo);
            }
            match state.poll() {
                Next::Write(bytes) => {
                    prop_assert!(bytes.len() <= outbound);
                    let take = (*takes.next().unwrap()).min(bytes.len());
                    out.extend_from_slice(&bytes[..take]);
                    state.handle(Input::Written(take), now, &mut Echo);
                }
                Next::Wait if rest.is_empty() => break,
                Next::Wait => {}
                other @ (Next::ShutdownWrite | Next::Close(_)) => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(out, input);
    }

    #[test]
    fn no_input_panics_and_the_bounds_hold(
        steps in proptest::collection::vec((0..8u8, proptest::collection::vec(any::<u8>(), 0..100)), 0..100),
    ) {
        let (mut state, start) = state(|s| {
            s.outbound = 200;
            s.format = Format::new(LengthBytes::One, ByteOrder::Big, false, 150).unwrap();
        });
        let mut now = start;
        for (what, bytes) in steps {
            now += Duration::from_millis(300);
            let input = match what {
                0..=3 if state.wants_read() => Input::Bytes(&bytes),
                4 => Input::Push(&bytes),
                5 => Input::Deadline,
                6 => match state.poll() {
                    Next::Write(out) => Input::Written(out.len().min(bytes.len())),
                    Next::Wait | Next::ShutdownWrite | Next::Close(_) => Input::ReadDone,
                },
                7 if bytes.len() > 90 => Input::Drain(now + S),
                7 if bytes.len() > 80 => Input::Eof,
                _ => Input::ReadDone,
            };
            state.handle(input, now, &mut Echo);
            if let Next::Write(out) = state.poll() {
                prop_assert!(out.len() <= 200);
            }
            // The outbound bound, and one message and one read, in buffers that grow by doubling.
            prop_assert!(state.held() <= 2 * (200 + 151 + 100), "{}", state.held());
        }
    }
}
