//! Tests of datagram links on virtual time.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::time::Duration;

use proptest::prelude::*;

use super::super::clock::{now, sleep, within};
use super::super::sim_link::tests::{MS, Task, any_faults, block_on, noise, run};
use super::*;

/// Everything that arrives within a minute of silence, and when.
async fn hear(socket: &DatagramSocket) -> Vec<(Duration, Vec<u8>)> {
    let start = now();
    let mut heard = Vec::new();
    let mut buf = [0; 2048];
    while let Ok(len) = within(Duration::from_secs(60), socket.recv(&mut buf)).await {
        heard.push((now() - start, buf[..len.unwrap()].to_vec()));
    }
    heard
}

/// Sends `count` numbered datagrams, one per `gap`, and gives what was heard with the counts.
fn send_many(seed: u64, faults: Faults, count: u32, gap: Duration) -> (Vec<(Duration, Vec<u8>)>, Stats) {
    let (a, b) = datagram_link(seed, faults, Faults::none());
    let b = b.receive_buffer(usize::MAX, usize::MAX);
    let heard = RefCell::new(Vec::new());
    let control = a.control();
    run([
        Box::pin(async {
            let a = a.open();
            for number in 0..count {
                let mut datagram = [0; 100];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                a.send(&datagram).await.unwrap();
                sleep(gap).await;
            }
        }) as Task<'_>,
        Box::pin(async { *heard.borrow_mut() = hear(&b.open()).await }),
    ]);
    let stats = control.sent();
    let heard = heard.into_inner();
    assert_eq!(stats.sent, u64::from(count));
    assert_eq!(stats.delivered, heard.len() as u64);
    assert_eq!(stats.bytes, heard.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    let gone = stats.lost + stats.dropped_full + stats.dropped_mtu;
    assert_eq!(stats.sent + stats.duplicated, stats.delivered + gone, "{stats:?}");
    (heard, stats)
}

fn number(datagram: &[u8]) -> u32 {
    u32::from_be_bytes(datagram[..4].try_into().unwrap())
}

#[test]
fn sim_datagrams_replay_from_their_seed() {
    let bad = Faults::none().delay(20 * MS).jitter(15 * MS).loss(0.1).duplicate(0.1).corrupt(0.1);
    let bad = bad.reorder(0.1, 40 * MS).rate(200_000).queue(5_000);
    let (first, stats) = send_many(1, bad, 1_000, MS);
    assert_eq!((&first, stats), (&send_many(1, bad, 1_000, MS).0, send_many(1, bad, 1_000, MS).1));
    assert_ne!(first, send_many(2, bad, 1_000, MS).0);
}

#[test]
fn sim_datagrams_on_a_perfect_link_arrive_at_once_and_in_order() {
    let (heard, stats) = send_many(3, Faults::none(), 500, Duration::ZERO);
    assert!(heard.iter().all(|(at, _)| at.is_zero()));
    assert_eq!(heard.iter().map(|(_, d)| number(d)).collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
    assert_eq!((stats.delivered, stats.reordered, stats.corrupted), (500, 0, 0));
}

#[test]
fn sim_datagrams_are_lost_as_often_as_asked() {
    for (seed, p) in [(4, 0.01), (5, 0.05), (6, 0.5)] {
        let (_, stats) = send_many(seed, Faults::none().loss(p), 10_000, MS);
        let share = stats.lost as f64 / 10_000.0;
        assert!((share - p).abs() < 0.015, "{share} instead of {p}");
        assert!(stats.lost > 0);
    }
    assert_eq!(send_many(7, Faults::none().loss(1.0), 100, MS).1.lost, 100);
}

#[test]
fn sim_datagrams_are_lost_no_more_than_so_many_in_a_row() {
    let (heard, stats) = send_many(7, Faults::none().loss(1.0).in_a_row(2), 9, MS);
    assert_eq!(heard.iter().map(|(_, d)| number(d)).collect::<Vec<_>>(), [2, 5, 8]);
    assert_eq!(stats.lost, 6);
}

#[test]
fn sim_datagrams_keep_their_fate_when_another_fault_is_added() {
    let gone = |faults| {
        let (heard, _) = send_many(8, faults, 500, MS);
        let mut numbers: Vec<_> = heard.iter().map(|(_, d)| number(d)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    let lossy = Faults::none().loss(0.2);
    assert_eq!(gone(lossy), gone(lossy.jitter(9 * MS).duplicate(0.3).reorder(0.3, 5 * MS)));
}

#[test]
fn sim_datagrams_are_damaged_in_one_bit() {
    let (a, b) = datagram_link(9, Faults::none().corrupt(1.0), Faults::none());
    let (a, b) = (a.open(), b.open());
    let mut places = std::collections::BTreeSet::new();
    block_on(async {
        for round in 0..300 {
            let sent = noise(round, 40);
            a.send(&sent).await.unwrap();
            let mut got = [0; 40];
            assert_eq!(b.recv(&mut got).await.unwrap(), 40);
            let flipped: Vec<_> = sent.iter().zip(got).map(|(x, y)| x ^ y).collect();
            assert_eq!(flipped.iter().map(|x| x.count_ones()).sum::<u32>(), 1);
            places.insert(flipped);
        }
        a.send(&[]).await.unwrap();
        assert_eq!(b.recv(&mut [0; 40]).await.unwrap(), 0, "nothing to damage");
    });
    assert_eq!(a.stats().corrupted, 300);
    assert!(places.len() > 150, "the bit is not always the same: {}", places.len());
}

#[test]
fn sim_datagrams_are_doubled() {
    let (heard, stats) = send_many(10, Faults::none().duplicate(1.0), 100, MS);
    assert_eq!((heard.len(), stats.duplicated), (200, 100));
    let (_, stats) = send_many(11, Faults::none().duplicate(0.1), 10_000, MS);
    assert!((850..1_150).contains(&stats.duplicated), "{stats:?}");
}

#[test]
fn sim_datagrams_overtake_those_that_are_held_back() {
    let (heard, stats) = send_many(12, Faults::none().reorder(0.1, 10 * MS), 10_000, MS);
    assert!((850..1_150).contains(&stats.reordered), "{stats:?}");
    let late = heard.windows(2).filter(|pair| number(&pair[1].1) < number(&pair[0].1)).count();
    assert!((600..1_150).contains(&late), "{late}");
    assert_eq!(send_many(13, Faults::none().delay(10 * MS), 1_000, MS).1.reordered, 0);
    assert!(send_many(14, Faults::none().jitter(10 * MS), 1_000, MS).1.reordered > 100);
}

#[test]
fn sim_datagrams_jitter_evenly_within_bounds() {
    let (heard, _) = send_many(15, Faults::none().delay(50 * MS).jitter(10 * MS), 2_000, 100 * MS);
    let extra = |at: Duration, number: u32| at.checked_sub(100 * MS * number).and_then(|t| t.checked_sub(50 * MS));
    let extras: Vec<_> = heard.iter().map(|(at, d)| extra(*at, number(d)).expect("not early")).collect();
    assert!(extras.iter().all(|extra| *extra < 10 * MS));
    let mean = extras.iter().sum::<Duration>() / 2_000;
    assert!(mean > 4 * MS && mean < 6 * MS, "{mean:?}");
}

#[test]
fn sim_datagrams_obey_rate_queue_and_mtu() {
    let faults = Faults::none().rate(100_000).queue(2_000_000);
    let (heard, stats) = send_many(16, faults, 10_000, Duration::ZERO);
    let took = heard.last().unwrap().0;
    assert!(took > Duration::from_millis(9_500) && took < Duration::from_millis(10_500), "{took:?}");
    assert_eq!((heard.len(), stats.dropped_full), (10_000, 0));

    let (heard, stats) = send_many(17, faults.queue(1_000), 100, Duration::ZERO);
    assert_eq!((heard.len(), stats.dropped_full), (10, 90), "what does not fit the queue is dropped");
    assert_eq!(send_many(17, faults.queue(0), 3, MS).1.delivered, 3, "an idle sender takes anything");

    assert_eq!(send_many(18, Faults::none().mtu(99), 10, MS).1.dropped_mtu, 10);
    assert_eq!(send_many(18, Faults::none().mtu(100), 10, MS).1.delivered, 10);
    let (a, _b) = datagram_link(19, Faults::none(), Faults::none());
    assert_eq!(a.open().try_send(&vec![0; 65_508]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn sim_datagrams_fill_the_receive_buffer_and_no_more() {
    for (messages, bytes, fit) in [(3, 1_000, 3), (1_000, 250, 2), (0, 1_000, 0)] {
        let (a, b) = datagram_link(20, Faults::none(), Faults::none());
        let (a, b) = (a.open(), b.receive_buffer(messages, bytes).open());
        block_on(async {
            for _ in 0..10 {
                a.send(&[7; 100]).await.unwrap();
            }
            assert_eq!(hear(&b).await.len(), fit);
            assert_eq!(a.stats().dropped_full, 10 - fit as u64);
        });
    }
}

#[test]
fn sim_datagrams_that_are_read_make_room() {
    let (a, b) = datagram_link(20, Faults::none(), Faults::none());
    let (a, b) = (a.open(), b.receive_buffer(2, 250).open());
    block_on(async {
        for _ in 0..5 {
            a.send(&[7; 100]).await.unwrap();
            a.send(&[7; 100]).await.unwrap();
            assert_eq!(b.recv(&mut [0; 100]).await.unwrap(), 100);
            assert_eq!(b.recv(&mut [0; 100]).await.unwrap(), 100);
        }
        assert_eq!(a.stats().delivered, 10);
    });
}

#[test]
fn sim_datagrams_under_way_are_bounded() {
    let (a, _b) = datagram_link(20, Faults::none().delay(MS), Faults::none());
    let a = a.open();
    block_on(async {
        for _ in 0..65_540 {
            a.try_send(&[]).unwrap();
        }
        assert_eq!(a.stats().dropped_full, 4);
    });
}

#[test]
fn sim_datagrams_that_overtake_wake_the_reader_in_time() {
    let (a, b) = datagram_link(20, Faults::none().delay(50 * MS), Faults::none());
    let control = a.control();
    let (a, b) = (a.open(), b.open());
    run([
        Box::pin(async {
            let mut buf = [0; 9];
            let start = now();
            assert_eq!((b.recv(&mut buf).await.unwrap(), now() - start), (4, 6 * MS));
            assert_eq!((b.recv(&mut buf).await.unwrap(), now() - start), (5, 50 * MS));
        }) as Task<'_>,
        Box::pin(async {
            a.send(b"first").await.unwrap();
            sleep(5 * MS).await;
            control.set_faults(Faults::none().delay(MS), Faults::none());
            a.send(b"next").await.unwrap();
        }),
    ]);
    assert_eq!(a.stats().reordered, 1);
}

#[test]
fn sim_datagrams_do_not_save_up_an_idle_rate() {
    let (a, b) = datagram_link(20, Faults::none().rate(1_000), Faults::none());
    let (a, b) = (a.open(), b.open());
    block_on(async {
        for _ in 0..2 {
            let start = now();
            a.send(&[7; 500]).await.unwrap();
            a.send(&[7; 500]).await.unwrap();
            assert_eq!(b.recv(&mut [0; 500]).await.unwrap(), 500);
            assert_eq!(now() - start, 500 * MS);
            assert_eq!(b.recv(&mut [0; 500]).await.unwrap(), 500);
            assert_eq!(now() - start, 1_000 * MS);
            sleep(Duration::from_secs(10)).await;
        }
    });
}

#[test]
fn sim_datagrams_are_cut_by_a_short_buffer() {
    let (a, b) = datagram_link(21, Faults::none(), Faults::none());
    let (a, b) = (a.open(), b.open());
    block_on(async {
        a.send(b"too long").await.unwrap();
        a.send(b"next").await.unwrap();
        let mut buf = [0; 3];
        assert_eq!((b.recv(&mut buf).await.unwrap(), &buf), (3, b"too"));
        assert_eq!((b.recv(&mut buf).await.unwrap(), &buf), (3, b"nex"));
    });
}

#[test]
fn sim_datagrams_to_a_dropped_end_are_lost_and_a_split_heals() {
    let (a, b) = datagram_link(22, Faults::none(), Faults::none());
    let control = a.control();
    let (a, b) = (a.open(), b.open());
    block_on(async {
        let none = Faults::none();
        control.set_faults(none.loss(1.0), none);
        a.send(b"1").await.unwrap();
        b.send(b"2").await.unwrap();
        assert_eq!(a.recv(&mut [0; 9]).await.unwrap(), 1);
        control.set_faults(none, none);
        a.send(b"3").await.unwrap();
        assert_eq!(hear(&b).await.len(), 1);
        a.send(b"4").await.unwrap();
        drop(b);
        a.send(b"5").await.unwrap();
        assert_eq!((control.sent().lost, control.sent().delivered, control.received().sent), (3, 1, 1));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sim_datagrams_are_all_accounted_for(seed: u64, faults in any_faults(), gap in 0..3_u32) {
        send_many(seed, faults, 200, gap * MS);
    }
}
