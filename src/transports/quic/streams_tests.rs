//! What the send side must do: order, turns, cancellation, expiry, and that no byte is lost, doubled or reordered.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn priority(urgency: u8, incremental: bool) -> Priority {
    Priority { urgency, incremental }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Takes everything that can be sent, as QUIC would with all the room there is.
fn drain(sending: &mut Sending<u32>) -> Vec<(u64, usize)> {
    let mut sent = Vec::new();
    while let Some(piece) = sending.next() {
        sent.push((piece.stream, piece.bytes.len()));
        sending.taken(piece.bytes.len(), None);
    }
    sent
}

#[test]
fn the_most_urgent_goes_first_whole_streams_in_order_others_in_turns() {
    let mut sending = Sending::default();
    for (stream, p) in [
        (0, priority(3, true)),
        (4, priority(3, true)),
        (8, priority(3, false)),
        (12, priority(3, false)),
        (16, priority(1, true)),
    ] {
        sending.open(stream, p);
        sending.push(stream, Bytes::from(vec![0; 20_000]), None).unwrap();
    }
    let whole = 20_000;
    let (first, rest) = (16_384, 20_000 - 16_384);
    assert_eq!(
        drain(&mut sending),
        [(16, first), (16, rest), (8, whole), (12, whole), (0, first), (4, first), (0, rest), (4, rest)]
    );
    assert_eq!(sending.bytes(), 0);
}

#[test]
fn who_waits_learns_it_with_the_last_byte() {
    let mut sending = Sending::default();
    sending.open(0, Priority::default());
    sending.push(0, bytes("hello"), Some(1)).unwrap();
    let piece = sending.next().unwrap();
    assert_eq!(sending.taken(3, Some(piece.bytes.slice(3..))), None);
    assert_eq!(sending.next(), None, "it stands aside");
    sending.unblock(0);
    let piece = sending.next().unwrap();
    assert_eq!(piece.bytes, "lo");
    assert_eq!(sending.taken(2, None), Some(1));
    assert_eq!(sending.bytes(), 0);
}

#[test]
fn an_end_follows_the_data_and_needs_none() {
    let mut sending = Sending::<u32>::default();
    sending.open(0, Priority::default());
    sending.finish(0).unwrap();
    assert_eq!(sending.finish(0), Err(PushError::Finished));
    assert_eq!(sending.push(0, bytes("x"), Some(3)), Err((PushError::Finished, Some(3))));
    assert_eq!(sending.next(), Some(Piece { stream: 0, bytes: Bytes::new(), fin: true }));
    sending.taken(0, None);
    assert_eq!(sending.push(0, bytes("x"), None), Err((PushError::Unknown, None)));
    sending.open(4, Priority::default());
    sending.push(4, bytes("x"), None).unwrap();
    sending.finish(4).unwrap();
    assert_eq!(sending.next(), Some(Piece { stream: 4, bytes: bytes("x"), fin: true }));
    // QUIC takes the data and not the end.
    sending.taken(1, Some(Bytes::new()));
    sending.unblock(4);
    assert_eq!(sending.next(), Some(Piece { stream: 4, bytes: Bytes::new(), fin: true }));
    sending.taken(0, None);
    assert!(!sending.has_work() && sending.is_empty());
}

#[test]
fn only_streams_with_something_to_send_or_to_expire_are_kept() {
    let later = crate::actors::clock::now() + Duration::from_secs(1);
    let mut sending = Sending::<u32>::default();
    for stream in [0, 4] {
        sending.open(stream, Priority::default());
        sending.expire(stream, Some(later));
        sending.push(stream, bytes("x"), None).unwrap();
    }
    assert!(!sending.is_idle(0) && sending.is_idle(8));
    assert_eq!(drain(&mut sending), [(0, 1), (4, 1)]);
    assert!(sending.is_idle(0) && !sending.is_empty(), "what is written next is to expire as well");
    sending.expire(0, None);
    assert_eq!(sending.expired(later), None);
    assert!(sending.is_empty());
}

#[test]
fn cancelled_data_are_not_sent_and_who_waits_learns_it() {
    let mut sending = Sending::default();
    sending.open(0, Priority::default());
    sending.open(4, Priority::default());
    sending.push(0, bytes("one"), Some(1)).unwrap();
    sending.push(0, bytes("two"), Some(2)).unwrap();
    sending.push(4, bytes("four"), Some(4)).unwrap();
    assert_eq!(sending.cancel(0), Cancelled { bytes: 6, waiting: vec![1, 2] });
    assert_eq!(sending.cancel(0), Cancelled { bytes: 0, waiting: vec![] });
    // The peer stopped the stream while its piece was offered.
    assert_eq!(sending.next().map(|p| p.stream), Some(4));
    assert_eq!(sending.cancel(4), Cancelled { bytes: 4, waiting: vec![4] });
    assert_eq!(sending.taken(0, None), None);
    assert_eq!((sending.bytes(), sending.next()), (0, None));
}

#[test]
fn unsent_data_expire_and_sent_ones_do_not() {
    let now = crate::actors::clock::now();
    let later = now + Duration::from_millis(5);
    let mut sending = Sending::<u32>::default();
    for stream in [0, 4, 8] {
        sending.open(stream, Priority::default());
        sending.expire(stream, Some(later));
    }
    sending.push(0, bytes("late"), None).unwrap();
    sending.push(8, bytes("kept"), None).unwrap();
    sending.expire(8, None);
    assert_eq!(sending.deadline(), Some(later));
    assert_eq!(sending.expired(now), None);
    assert_eq!(sending.expired(later), Some(0));
    assert_eq!(sending.expired(later), None, "4 had nothing left to send");
    assert_eq!(sending.deadline(), None);
}

#[test]
fn a_new_priority_counts_from_the_next_piece_on() {
    let mut sending = Sending::<u32>::default();
    sending.open(0, priority(3, false));
    sending.open(4, priority(3, false));
    sending.push(0, bytes("0"), None).unwrap();
    sending.push(4, bytes("4"), None).unwrap();
    sending.prioritise(4, priority(2, false));
    assert_eq!(drain(&mut sending), [(4, 1), (0, 1)]);
}

#[derive(Debug, Clone)]
enum Step {
    Push(u64, usize),
    Finish(u64),
    /// QUIC takes this many bytes of the next piece.
    Offer(usize),
    Unblock(u64),
    Prioritise(u64, u8, bool),
    Cancel(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = 0_u64..4;
    prop_oneof![
        4 => (stream.clone(), 0_usize..40_000).prop_map(|(s, n)| Step::Push(s, n)),
        1 => stream.clone().prop_map(Step::Finish),
        6 => (0_usize..60_000).prop_map(Step::Offer),
        4 => stream.clone().prop_map(Step::Unblock),
        1 => (stream.clone(), 0_u8..3, any::<bool>()).prop_map(|(s, u, i)| Step::Prioritise(s, u, i)),
        1 => stream.prop_map(Step::Cancel),
    ]
}

proptest! {
    #[test]
    fn every_stream_is_sent_in_order_and_every_waiter_answered_once(steps in proptest::collection::vec(step(), 0..80)) {
        let mut sending = Sending::<usize>::default();
        let mut wrote = [const { Vec::<u8>::new() }; 4];
        let mut sent = [const { Vec::<u8>::new() }; 4];
        let mut cancelled = [false; 4];
        let (mut asked, mut answered) = (0, Vec::new());
        let mut finished = [false; 4];
        let offer = |sending: &mut Sending<usize>, sent: &mut [Vec<u8>; 4], room: usize| {
            let mut piece = sending.next()?;
            let took = room.min(piece.bytes.len());
            let rest = piece.bytes.split_off(took);
            sent[piece.stream as usize].extend(&piece.bytes);
            Some(sending.taken(took, (!rest.is_empty()).then_some(rest)))
        };
        for step in steps {
            match step {
                // Whoever keeps the streams knows which may still be written.
                Step::Push(s, _) | Step::Finish(s) if cancelled[s as usize] || finished[s as usize] => {}
                Step::Push(s, n) => {
                    sending.open(s, Priority::default());
                    let from = wrote[s as usize].len();
                    let data: Vec<u8> = (from..from + n).map(|n| n as u8).collect();
                    if sending.push(s, Bytes::from(data.clone()), Some(asked)).is_ok() {
                        wrote[s as usize].extend(data);
                        asked += 1;
                    }
                }
                Step::Finish(s) => {
                    sending.open(s, Priority::default());
                    finished[s as usize] = true;
                    prop_assert_eq!(sending.finish(s), Ok(()));
                }
                Step::Offer(room) => answered.extend(offer(&mut sending, &mut sent, room).flatten()),
                Step::Unblock(s) => sending.unblock(s),
                Step::Prioritise(s, urgency, incremental) => sending.prioritise(s, priority(urgency, incremental)),
                Step::Cancel(s) => {
                    cancelled[s as usize] = true;
                    answered.extend(sending.cancel(s).waiting);
                }
            }
            let waiting: usize = (0..4).map(|s| sending.bytes_of(s)).sum();
            prop_assert_eq!(waiting, sending.bytes());
        }
        for stream in 0..4 {
            sending.unblock(stream);
        }
        while let Some(done) = offer(&mut sending, &mut sent, usize::MAX) {
            answered.extend(done);
        }
        for stream in 0..4 {
            if cancelled[stream] {
                prop_assert!(wrote[stream].starts_with(&sent[stream]));
            } else {
                prop_assert_eq!(&wrote[stream], &sent[stream]);
            }
        }
        answered.sort_unstable();
        prop_assert_eq!(answered, (0..asked).collect::<Vec<_>>());
        prop_assert_eq!(sending.bytes(), 0);
    }
}
