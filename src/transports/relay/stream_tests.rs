//! A relayed stream without sockets: each way it can go, step by step.

use proptest::prelude::*;

use super::super::codec::ProxyVersion;
use super::super::state_gate::Frames;
use super::*;
use crate::actors::clock;
use crate::transports::framed::Format;
use crate::transports::kit::balance::{BalanceSettings, Balancer};

fn settings() -> RelaySettings {
    let servers = (1..=3).map(|port| Address::Tcp(([127, 0, 0, 1], port).into())).collect();
    RelaySettings::new(Balancer::new(servers, BalanceSettings::default()), Arc::from("app"))
}

fn start() -> Instant {
    clock::now()
}

fn open(settings: RelaySettings, now: Instant) -> State {
    let mut state = State::new(Arc::new(settings), Header::Local, 1, now);
    assert!(state.dial(now).is_some());
    state.handle(Input::Connected, now);
    state
}

fn reason(state: &State) -> Option<&'static str> {
    state.end().map(|end| end.reason)
}

fn came(from: Side, bytes: &[u8], taken: usize) -> Input<'_> {
    Input::Bytes { from, bytes, taken }
}

#[test]
fn each_server_is_tried_once_and_at_most_so_many() {
    let now = start();
    for attempts in 0..5 {
        let mut state = State::new(Arc::new(RelaySettings { attempts, ..settings() }), Header::Local, 1, now);
        let mut dialled = Vec::new();
        while let Some(address) = state.dial(now) {
            assert!(!dialled.contains(&address));
            dialled.push(address);
            assert_eq!(state.deadline(), Some(now + Duration::from_secs(5)));
            state.handle(Input::Deadline, now + Duration::from_secs(4));
            assert!(state.connecting(), "not yet");
            state.handle(Input::Deadline, now + Duration::from_secs(5));
        }
        assert_eq!(dialled.len(), attempts.clamp(1, 3));
        assert_eq!(reason(&state), Some("connect_timeout"));
        assert_eq!(state.take_failures(), vec!["connect_timeout"; dialled.len()]);
    }
}

#[test]
fn an_answer_that_came_before_the_server_broke_is_delivered_to_its_end() {
    let now = start();
    let mut state = open(settings(), now);
    state.handle(came(Side::Client, b"upload", 0), now);
    state.handle(Input::WriteFailed(Side::Upstream), now);
    assert_eq!(reason(&state), None);
    assert!(!state.wants_read(Side::Client), "nobody takes it");
    assert_eq!(state.poll(Side::Upstream), Next::Wait);
    state.handle(came(Side::Upstream, b"no, thanks", 3), now);
    assert_eq!(state.poll(Side::Client), Next::Write(b" thanks"));
    state.handle(Input::Written(Side::Client, 7), now);
    state.handle(Input::Eof(Side::Upstream), now);
    assert_eq!(state.poll(Side::Client), Next::Finish);
    state.handle(Input::FinSent(Side::Client), now);
    assert_eq!(reason(&state), Some("upstream_reset"));
    assert!(!state.aborts(Side::Client, true), "the kernel may still hold the answer");
    assert_eq!(state.take_failures(), ["upstream_reset"]);
}

#[test]
fn a_reset_that_a_write_met_first_is_passed_on_as_one() {
    let now = start();
    let mut state = open(settings(), now);
    state.handle(came(Side::Client, b"upload", 0), now);
    state.handle(Input::WriteReset(Side::Upstream), now);
    state.handle(came(Side::Upstream, b"half an ans", 11), now);
    assert_eq!(reason(&state), None, "what was sent before it is delivered");
    state.handle(Input::Eof(Side::Upstream), now);
    assert_eq!(reason(&state), Some("upstream_reset"));
    assert!(state.aborts(Side::Client, true) && !state.aborts(Side::Upstream, true));
    assert_eq!(state.take_failures(), ["upstream_reset"], "counted once");
}

#[test]
fn a_server_that_accepts_and_then_takes_too_long_is_named_otherwise() {
    let now = start();
    let mut state = State::new(Arc::new(RelaySettings { attempts: 2, ..settings() }), Header::Local, 1, now);
    state.dial(now);
    state.handle(Input::Accepted, now);
    let late = now + Duration::from_secs(5);
    assert_eq!(state.deadline(), Some(late), "one limit for both");
    state.handle(Input::Deadline, late);
    state.dial(late);
    state.handle(Input::Deadline, late + Duration::from_secs(5));
    assert_eq!(state.take_failures(), ["tls_timeout", "connect_timeout"]);
    assert_eq!(state.dial(late + Duration::from_secs(5)), None, "two were tried");
    assert_eq!(reason(&state), Some("connect_timeout"));
}

#[test]
fn what_was_cut_off_is_delivered_and_is_no_end() {
    let now = start();
    for (from, to) in [(Side::Client, Side::Upstream), (Side::Upstream, Side::Client)] {
        let mut state = open(settings(), now);
        state.handle(came(from, b"half an ans", 5), now);
        state.handle(Input::Truncated(from), now);
        assert_eq!(reason(&state), None, "what came is on its way");
        assert_eq!(state.poll(to), Next::Write(b"an ans"));
        assert!(!state.wants_read(from));
        state.handle(Input::Written(to, 6), now);
        assert_eq!(reason(&state), Some(from.truncated()), "and no Finish before it");
        assert!(state.aborts(Side::Client, true) && state.aborts(Side::Upstream, true));
        let blamed = state.take_failures();
        assert_eq!(blamed, if from == Side::Upstream { vec!["upstream_truncated"] } else { Vec::new() });
        // With nothing on its way, at once; and before there is a server.
        let mut state = open(settings(), now);
        state.handle(Input::Truncated(from), now);
        assert_eq!(reason(&state), Some(from.truncated()));
    }
    let mut state = State::new(Arc::new(settings()), Header::Local, 1, now);
    state.dial(now);
    state.handle(Input::Truncated(Side::Client), now);
    assert_eq!(reason(&state), Some("client_truncated"));
}

#[test]
fn a_header_that_went_ahead_is_not_said_again() {
    let now = start();
    let set = RelaySettings { proxy_out: Some(ProxyVersion::V1), ..settings() };
    let mut state = State::new(Arc::new(set), Header::Local, 1, now);
    state.dial(now);
    state.handle(Input::HeaderTaken, now);
    state.handle(Input::ConnectFailed(Failure::Certificate), now);
    // Another server has not been told.
    state.dial(now);
    state.handle(Input::Connected, now);
    assert_eq!(state.poll(Side::Upstream), Next::Write(b"PROXY UNKNOWN\r\n"));
    let set = RelaySettings { proxy_out: Some(ProxyVersion::V1), ..settings() };
    let mut state = State::new(Arc::new(set), Header::Local, 1, now);
    state.dial(now);
    state.handle(Input::HeaderTaken, now);
    state.handle(Input::Connected, now);
    assert_eq!(state.poll(Side::Upstream), Next::Wait);
}

#[test]
fn a_side_that_is_not_read_is_looked_after() {
    let now = start();
    let mut state = open(settings(), now);
    assert_eq!(state.deadline(), None);
    state.handle(came(Side::Client, b"stalled", 0), now);
    let at = state.deadline().unwrap();
    state.handle(Input::Deadline, at);
    assert!(state.take_probe() && !state.take_probe());
    assert!(state.deadline().unwrap() > at);
    state.handle(Input::Written(Side::Upstream, 7), at);
    assert_eq!(state.deadline(), None);
}

#[test]
fn a_header_for_the_server_goes_ahead_of_what_came_early() {
    let now = start();
    let set = RelaySettings { proxy_out: Some(ProxyVersion::V1), ..settings() };
    let mut state = State::new(Arc::new(set), Header::Local, 1, now);
    state.handle(came(Side::Client, b"early", 0), now);
    assert!(!state.wants_read(Side::Client), "once");
    state.dial(now);
    state.handle(Input::Connected, now);
    assert_eq!(state.poll(Side::Upstream), Next::Write(b"PROXY UNKNOWN\r\nearly"));
    state.handle(Input::Written(Side::Upstream, 16), now);
    state.handle(Input::Written(Side::Upstream, 4), now);
    assert_eq!(state.take_moved(), Moved { up: 5, down: 0 }, "the header is not counted");
}

fn framed(now: Instant) -> State {
    let frames = Frames {
        format: Format::default(),
        first_message: Some(Duration::from_secs(1)),
        message_timeout: Some(Duration::from_secs(2)),
        slow_after: Duration::from_secs(3),
    };
    open(RelaySettings { frames: Some(frames), ..settings() }, now)
}

#[test]
fn only_whole_messages_pass_and_none_of_it_is_passed_by() {
    let now = start();
    let mut state = framed(now);
    assert!(!state.passes(Side::Client) && !state.splices(Side::Client));
    state.handle(came(Side::Client, b"\0\0\0\x03abc\0\0\0\x02d", 0), now);
    assert_eq!(state.poll(Side::Upstream), Next::Write(b"\0\0\0\x03abc"));
    assert!(!state.wants_read(Side::Client), "while a message waits");
    state.handle(Input::Written(Side::Upstream, 7), now);
    assert_eq!(state.poll(Side::Upstream), Next::Wait);
    assert!(state.wants_read(Side::Client));
    state.handle(came(Side::Client, b"e", 0), now);
    assert_eq!(state.poll(Side::Upstream), Next::Write(b"\0\0\0\x02de"));
    assert_eq!((state.take_messages(), state.take_messages()), ((2, 0), (0, 0)));
}

#[test]
fn each_timer_of_messages_leads_to_its_end() {
    let now = start();
    let part = b"\0\0\0\x03a";
    let whole = b"\0\0\0\x01a";
    type Events<'a> = &'a [(Side, &'a [u8])];
    let cases: [(Events<'_>, u64, &str); 5] = [
        (&[], 1, "first_message_timeout"),
        (&[(Side::Upstream, part), (Side::Client, whole)], 2, "upstream_message_timeout"),
        (&[(Side::Upstream, whole)], 1, "first_message_timeout"),
        (&[(Side::Client, whole)], 3, "upstream_slow"),
        (&[(Side::Client, &[0, 0, 0, 1, b'a', 0]), (Side::Upstream, whole)], 3, "slow_reader"),
    ];
    for (events, seconds, end) in cases {
        let mut state = framed(now);
        for (from, bytes) in events {
            state.handle(came(*from, bytes, 0), now);
        }
        let at = now + Duration::from_secs(seconds);
        assert_eq!(state.deadline(), Some(at), "{end}");
        state.handle(Input::Deadline, at);
        assert_eq!(reason(&state), Some(end));
    }
    // What is taken in time starts the clock anew.
    let mut state = framed(now);
    state.handle(came(Side::Client, &[0, 0, 0, 1, b'a', 0], 0), now);
    let later = now + Duration::from_secs(1);
    state.handle(Input::Written(Side::Upstream, 5), later);
    assert_eq!(state.deadline(), Some(later + Duration::from_secs(2)), "now the next message is awaited");
}

proptest! {
    #[test]
    fn any_cuts_of_any_messages_give_the_same_messages(
        sizes in proptest::collection::vec(0usize..40, 0..20),
        cuts in proptest::collection::vec(1usize..50, 1..50),
    ) {
        let now = start();
        let mut state = framed(now);
        let frame = |size: &usize| [&(*size as u32).to_be_bytes()[..], &vec![*size as u8; *size]].concat();
        let sent: Vec<u8> = sizes.iter().flat_map(frame).collect();
        let (mut at, mut got, mut cuts) = (0, Vec::new(), cuts.iter().cycle());
        while got.len() < sent.len() {
            if state.wants_read(Side::Client) {
                let end = (at + cuts.next().unwrap()).min(sent.len());
                state.handle(came(Side::Client, &sent[at..end], 0), now);
                at = end;
            }
            if let Next::Write(bytes) = state.poll(Side::Upstream) {
                let count = (*cuts.next().unwrap()).min(bytes.len());
                got.extend_from_slice(&bytes[..count]);
                state.handle(Input::Written(Side::Upstream, count), now);
            }
        }
        prop_assert_eq!(&got, &sent);
        prop_assert_eq!(state.take_messages(), (sizes.len() as u64, 0));
        state.handle(Input::Eof(Side::Client), now);
        prop_assert_eq!(state.poll(Side::Upstream), Next::Finish);
    }
}

/// A direction that may use a pipe.
fn streaming(now: Instant) -> State {
    let mut state = open(settings(), now);
    let bytes = vec![0; 16 << 10];
    for n in 0..4 {
        assert!(!state.splices(Side::Client), "{n}");
        state.handle(came(Side::Client, &bytes, bytes.len()), now);
    }
    assert!(state.splices(Side::Client));
    assert!(!state.splices(Side::Upstream), "the other direction has moved nothing");
    state
}

#[test]
fn a_pipe_is_for_large_pieces_of_what_has_moved_much() {
    let now = start();
    let mut state = streaming(now);
    state.handle(came(Side::Client, &[0; 100], 100), now);
    assert!(!state.splices(Side::Client), "small pieces");
    state.handle(came(Side::Client, &[0; 16 << 10], 100), now);
    assert!(!state.splices(Side::Client), "something waits");
    state.handle(Input::Written(Side::Upstream, (16 << 10) - 100), now);
    assert!(state.splices(Side::Client));
    state.handle(Input::NoPipe(Side::Client), now);
    for n in 0..64 {
        assert!(!state.splices(Side::Client), "{n}: there was none");
        state.handle(came(Side::Client, &[0; 16 << 10], 16 << 10), now);
    }
    assert!(state.splices(Side::Client), "after a megabyte it asks again");
}

#[test]
fn what_waits_in_a_pipe_counts_like_what_waits_in_memory() {
    let now = start();
    let mut state = streaming(now);
    state.take_moved();
    state.handle(Input::Piped(Side::Client, 100_000), now);
    assert_eq!((state.held(), state.take_moved()), (100_000, Moved::default()));
    assert!(!state.wants_read(Side::Client) && !state.splices(Side::Client) && !state.passes(Side::Client));
    assert!(state.deadline().is_some(), "a side that is not read is looked after");
    state.handle(Input::Unpiped(Side::Upstream, 40_000), now);
    assert_eq!((state.held(), state.poll(Side::Upstream)), (60_000, Next::Splice(60_000)));
    state.handle(Input::Eof(Side::Client), now);
    assert_eq!(state.poll(Side::Upstream), Next::Splice(60_000), "the end comes behind all bytes");
    state.handle(Input::Unpiped(Side::Upstream, 60_000), now);
    assert_eq!(state.poll(Side::Upstream), Next::Finish);
    assert_eq!((state.held(), state.take_moved()), (0, Moved { up: 100_000, down: 0 }));
    assert!(state.pipe_is_empty(Side::Upstream));
}

#[test]
fn a_side_that_breaks_over_a_full_pipe_leaves_nothing_behind() {
    let now = start();
    let mut state = streaming(now);
    state.handle(Input::Piped(Side::Client, 100_000), now);
    state.handle(Input::WriteFailed(Side::Upstream), now);
    assert_eq!((state.held(), state.poll(Side::Upstream)), (0, Next::Wait));
    state.handle(Input::Unpiped(Side::Upstream, 100_000), now);
    assert_eq!(state.delivered().up, 64 << 10, "none of it was delivered");
}

proptest! {
    /// Whatever happens in whatever order: bytes come out as they went in, nothing moves after the end, and who
    /// is not to be read holds one read at most.
    #[test]
    fn any_course_of_events(steps in proptest::collection::vec((0u8..12, any::<bool>(), 0usize..50), 0..200)) {
        let now = start();
        let mut state = open(settings(), now);
        // Bytes in pipes, by the side they go to.
        let mut piped = [Vec::new(), Vec::new()];
        let mut sent = [Vec::new(), Vec::new()];
        let mut got = [Vec::new(), Vec::new()];
        let mut next = 0u8;
        for (what, client, count) in steps {
            let side = if client { Side::Client } else { Side::Upstream };
            let to = usize::from(client);
            if state.end().is_some() {
                prop_assert!(!state.wants_read(side) && !state.passes(side) && !state.wants_dial());
                prop_assert_eq!(state.poll(side), Next::Wait);
                prop_assert_eq!(state.deadline(), None);
            }
            match what {
                0..=3 if state.wants_read(side) => {
                    let bytes: Vec<u8> = (0..count.max(1)).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let taken = if state.passes(side) { bytes.len() / 2 } else { 0 };
                    sent[to].extend_from_slice(&bytes);
                    got[to].extend_from_slice(&bytes[..taken]);
                    state.handle(came(side, &bytes, taken), now);
                    prop_assert!(taken == bytes.len() || !state.wants_read(side));
                }
                4..=7 => match state.poll(side.other()) {
                    Next::Write(bytes) => {
                        let count = count.clamp(1, bytes.len());
                        got[to].extend_from_slice(&bytes[..count]);
                        state.handle(Input::Written(side.other(), count), now);
                    }
                    Next::Finish => {
                        prop_assert_eq!(&sent[to], &got[to], "an end comes behind all bytes");
                        state.handle(Input::FinSent(side.other()), now);
                    }
                    Next::Splice(waiting) => {
                        prop_assert_eq!(waiting, piped[to].len());
                        let count = count.clamp(1, waiting);
                        got[to].extend(piped[to].drain(..count));
                        state.handle(Input::Unpiped(side.other(), count), now);
                    }
                    Next::Wait => {}
                },
                // Whether it is worth it is for others to say: here whatever may be read may go into a pipe.
                10.. if state.passes(side) => {
                    let bytes: Vec<u8> = (0..count.max(1)).map(|_| { next = next.wrapping_add(1); next }).collect();
                    sent[to].extend_from_slice(&bytes);
                    state.handle(Input::Piped(side, bytes.len()), now);
                    piped[to] = bytes;
                    prop_assert!(!state.wants_read(side) && !state.passes(side));
                }
                8 if state.wants_read(side) && count < 10 => state.handle(Input::Eof(side), now),
                9 if count == 0 => state.handle(Input::Reset(side), now),
                9 if count == 1 => {
                    state.handle(Input::WriteFailed(side), now);
                    piped[usize::from(!client)].clear();
                }
                _ => {}
            }
        }
        for way in 0..2 {
            prop_assert!(sent[way].starts_with(&got[way]));
        }
        if reason(&state) == Some("finished") {
            prop_assert_eq!(sent, got);
        }
    }
}
