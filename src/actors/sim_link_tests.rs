//! Tests of both kinds of links, on a clock that moves only when nobody has anything to do.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::clock::{VirtualClock, now, sleep, within};
use super::*;

assert_impl_all!(DatagramPlug: Send);
assert_impl_all!(DatagramControl: Send, Sync);
assert_impl_all!(StreamPlug: Send);
assert_impl_all!(StreamControl: Send, Sync);
assert_not_impl_any!(DatagramSocket: Send, Sync);
assert_not_impl_any!(Stream: Send, Sync);

const MS: Duration = Duration::from_millis(1);

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs all tasks to their end on virtual time. A task is polled only after it was woken; panics if none ever is.
fn run<'a>(tasks: impl IntoIterator<Item = Task<'a>>) {
    let clock = VirtualClock::new();
    let _entered = clock.enter();
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (Arc::new(Flag(AtomicBool::new(true))), task)).collect();
    while !tasks.is_empty() {
        let mut idle = true;
        tasks.retain_mut(|(flag, task)| {
            if !flag.0.swap(false, Ordering::Relaxed) {
                return true;
            }
            idle = false;
            task.as_mut().poll(&mut Context::from_waker(&Waker::from(flag.clone()))).is_pending()
        });
        if idle {
            clock.advance(clock.next().expect("a task that is never woken"));
        }
    }
    assert_eq!(clock.next(), None, "a timer is left behind");
}

fn block_on<'a>(task: impl Future<Output = ()> + 'a) {
    run([Box::pin(task) as Task<'a>]);
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(seed).fill(&mut bytes);
    bytes
}

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

fn pair(seed: u64, faults: Faults, buffer: usize) -> (Stream, Stream) {
    let (a, b) = stream_link(seed, faults, faults, buffer);
    (a.open(), b.open())
}

/// Carries `data` from one end to the other while an echo of its length comes back; says how long it took.
fn carry(seed: u64, faults: Faults, buffer: usize, data: &[u8], step: usize) -> (Vec<u8>, Duration, Vec<usize>) {
    let (mut a, mut b) = pair(seed, faults, buffer);
    let (got, took) = (RefCell::new(Vec::new()), RefCell::new(Duration::ZERO));
    let sizes = RefCell::new(Vec::new());
    run([
        Box::pin(async {
            for part in data.chunks(step.max(1)) {
                a.write_all(part).await.unwrap();
            }
            a.shutdown().await.unwrap();
            assert_eq!(a.read_u64().await.unwrap(), data.len() as u64);
        }) as Task<'_>,
        Box::pin(async {
            let start = now();
            let mut buf = vec![0; step.max(1)];
            loop {
                let len = b.read(&mut buf).await.unwrap();
                if len == 0 {
                    break;
                }
                sizes.borrow_mut().push(len);
                got.borrow_mut().extend_from_slice(&buf[..len]);
                assert!(data.starts_with(&got.borrow()), "in order and unharmed at each step");
            }
            *took.borrow_mut() = now() - start;
            b.write_u64(data.len() as u64).await.unwrap();
        }),
    ]);
    (got.into_inner(), took.into_inner(), sizes.into_inner())
}

#[test]
fn sim_stream_carries_a_mebibyte_through_chop_delay_jitter_and_rate() {
    let data = noise(30, 1 << 20);
    let faults = Faults::none().chop(0.5).delay(7 * MS).jitter(5 * MS).rate(10_000_000);
    let (got, took, sizes) = carry(31, faults, 64 * 1024, &data, 9_000);
    assert!(got == data);
    let (_, again, same) = carry(31, faults, 64 * 1024, &data, 9_000);
    assert_eq!((took, &sizes), (again, &same), "a seed replays");
    assert_ne!(sizes, carry(32, faults, 64 * 1024, &data, 9_000).2);
}

#[test]
fn sim_stream_obeys_its_rate() {
    let data = noise(33, 1_000_000);
    let (got, took, _) = carry(34, Faults::none().rate(100_000), 32 * 1024, &data, 8_192);
    assert!(got == data);
    assert!(took > Duration::from_millis(9_500) && took < Duration::from_millis(10_500), "{took:?}");
}

#[test]
fn sim_stream_chops_reads_and_writes() {
    let (mut a, mut b) = pair(35, Faults::none().chop(1.0), 1 << 20);
    block_on(async {
        let (mut short, mut buf) = (0, [0; 500]);
        for _ in 0..50 {
            let written = a.write(&[1; 1_000]).await.unwrap();
            assert!((1..1_000).contains(&written));
            let read = b.read(&mut buf).await.unwrap();
            assert!((1..=500).contains(&read));
            short += usize::from(read < 500);
        }
        assert!(short > 25);
    });
}

fn try_write(stream: &mut Stream, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
    Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), bytes)
}

#[test]
fn sim_stream_blocks_its_writer_exactly_at_the_bound() {
    let (mut a, mut b) = pair(36, Faults::none().delay(MS), 1_000);
    block_on(async {
        assert!(matches!(try_write(&mut a, &[1; 600]), Poll::Ready(Ok(600))));
        let parts = [IoSlice::new(&[2; 300]), IoSlice::new(&[]), IoSlice::new(&[3; 300])];
        assert!(a.is_write_vectored());
        assert_eq!(a.write_vectored(&parts).await.unwrap(), 400, "what there is room for");
        assert!(try_write(&mut a, &[4]).is_pending());
        assert_eq!(b.control().unread(), 1_000);
        let mut buf = [0; 1_000];
        b.read_exact(&mut buf[..1]).await.unwrap();
        assert!(matches!(try_write(&mut a, &[4; 9]), Poll::Ready(Ok(1))));
        assert!(try_write(&mut a, &[4]).is_pending());
        b.read_exact(&mut buf).await.unwrap();
        assert_eq!((&buf[..599], &buf[599..899], &buf[899..999]), (&[1; 599][..], &[2; 300][..], &[3; 100][..]));
        assert_eq!(buf[999], 4);
    });
}

#[test]
fn sim_stream_closes_one_direction_at_a_time() {
    let (mut a, mut b) = pair(37, Faults::none().delay(5 * MS), 1_000);
    block_on(async {
        a.write_all(b"request").await.unwrap();
        a.shutdown().await.unwrap();
        a.shutdown().await.unwrap();
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut text = String::new();
        b.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), b.read(&mut [0; 9]).await.unwrap()), ("request", 0));
        b.write_all(b"answer").await.unwrap();
        drop(b);
        text.clear();
        a.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    });
}

async fn read_error(stream: &mut Stream) -> ErrorKind {
    stream.read(&mut [0; 100]).await.unwrap_err().kind()
}

#[test]
fn sim_stream_reset_takes_unread_data_with_it() {
    let (mut a, mut b) = pair(38, Faults::none().delay(5 * MS), 100);
    let start = RefCell::new(None::<Instant>);
    run([
        Box::pin(async {
            a.write_all(b"unread").await.unwrap();
            sleep(20 * MS).await;
            *start.borrow_mut() = Some(now());
            a.reset();
            assert_eq!(read_error(&mut a).await, ErrorKind::ConnectionReset, "at once on this side");
            assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(a.shutdown().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }) as Task<'_>,
        Box::pin(async {
            // A writer that waits for room hears of the reset too, one delay later.
            let kind = b.write_all(&[9; 500]).await.unwrap_err().kind();
            assert_eq!((kind, now() - start.borrow().unwrap()), (ErrorKind::ConnectionReset, 5 * MS));
            assert_eq!(read_error(&mut b).await, ErrorKind::ConnectionReset);
        }),
    ]);
}

#[test]
fn sim_stream_reset_wakes_a_reader() {
    let (a, b) = stream_link(39, Faults::none(), Faults::none(), 100);
    let (control, _a) = (a.control(), a.open());
    let mut b = b.open();
    run([
        Box::pin(async { assert_eq!(read_error(&mut b).await, ErrorKind::ConnectionReset) }) as Task<'_>,
        Box::pin(async {
            sleep(MS).await;
            control.reset();
        }),
    ]);
}

#[test]
fn sim_stream_dropped_with_unread_data_resets() {
    let (mut a, mut b) = pair(40, Faults::none(), 100);
    block_on(async {
        a.write_all(b"never read").await.unwrap();
        b.write_all(b"lost").await.unwrap();
        drop(b);
        assert_eq!(read_error(&mut a).await, ErrorKind::ConnectionReset);
    });
}

#[test]
fn sim_stream_dropped_clean_ends_and_resets_later_writes() {
    let (mut a, b) = pair(41, Faults::none().delay(5 * MS), 100);
    block_on(async {
        drop(b);
        assert_eq!(a.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!(a.write(b"anyone there?").await.unwrap(), 13);
        sleep(9 * MS).await;
        assert_eq!(a.read(&mut [0; 9]).await.unwrap(), 0, "the answer is still under way");
        sleep(MS).await;
        assert_eq!(read_error(&mut a).await, ErrorKind::ConnectionReset);
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn sim_stream_dropped_before_data_arrive_answers_them_with_a_reset() {
    let (mut a, mut b) = pair(42, Faults::none().delay(5 * MS), 4);
    run([Box::pin(async {
        b.write_all(b"bye").await.unwrap();
        assert_eq!(a.write(b"late").await.unwrap(), 4);
        let start = now();
        drop(b);
        // The buffer is full, so the second write waits for the reset.
        assert_eq!(a.write(b"later").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(now() - start, 10 * MS);
    }) as Task<'_>]);
}

#[test]
fn sim_stream_plug_dropped_unopened_is_an_end() {
    let (a, b) = stream_link(43, Faults::none(), Faults::none(), 100);
    drop(a);
    let mut b = b.open();
    block_on(async { assert_eq!(b.read(&mut [0; 9]).await.unwrap(), 0) });
}

#[test]
fn sim_stream_stalled_end_takes_nothing() {
    let (mut a, mut b) = pair(44, Faults::none(), 10);
    let control = b.control();
    run([
        Box::pin(async {
            control.stall(true);
            let start = now();
            a.write_all(&[5; 25]).await.unwrap();
            assert_eq!(now() - start, 50 * MS);
            a.shutdown().await.unwrap();
        }) as Task<'_>,
        Box::pin(async {
            let mut all = Vec::new();
            b.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, [5; 25]);
        }),
        Box::pin(async {
            sleep(50 * MS).await;
            assert_eq!(control.unread(), 10);
            control.stall(false);
        }),
    ]);
}

#[test]
fn sim_link_types_tell_about_themselves() {
    let (a, b) = stream_link(45, Faults::none(), Faults::none(), 10);
    let (c, d) = datagram_link(45, Faults::none(), Faults::none());
    let texts = [format!("{a:?}"), format!("{:?}", b.control()), format!("{:?}", c.control()), format!("{c:?}")];
    let texts = [&texts[..], &[format!("{:?}", b.open()), format!("{:?}", d.open())]].concat();
    assert!(texts.iter().all(|text| text.contains("Stream") || text.contains("Datagram")), "{texts:?}");
}

prop_compose! {
    fn any_faults()(
        delay in 0..30_u32,
        jitter in 0..30_u32,
        p in prop::array::uniform5(0.0..1.0_f64),
        rate in prop_oneof![Just(0), 1_000..1_000_000_u64],
        mtu in prop::option::of(0..3_000_usize),
        queue in 0..100_000_usize,
    ) -> Faults {
        let faults = Faults { mtu, ..Faults::none().delay(delay * MS).jitter(jitter * MS).chop(p[0]).loss(p[1]) };
        faults.duplicate(p[2]).corrupt(p[3]).reorder(p[4], 10 * MS).rate(rate).queue(queue)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sim_stream_is_always_an_ordered_copy(
        seed: u64,
        faults in any_faults(),
        buffer in 1..5_000_usize,
        len in 0..20_000_usize,
        step in 1..5_000_usize,
    ) {
        let data = noise(seed, len);
        prop_assert!(carry(seed, faults, buffer, &data, step).0 == data);
    }

    #[test]
    fn sim_stream_broken_anywhere_leaves_a_prefix(seed: u64, faults in any_faults(), len in 0..20_000_usize, at in 0..200_u32) {
        let data = noise(seed, len);
        let (mut a, mut b) = pair(seed, faults, 3_000);
        let (control, got) = (a.control(), RefCell::new(Vec::new()));
        run([
            Box::pin(async {
                // An error is the reset; either way the end stays open until all is over.
                let _ = a.write_all(&data).await;
                let _ = a.shutdown().await;
                let _ = a.read(&mut [0]).await;
            }) as Task<'_>,
            Box::pin(async {
                let mut buf = [0; 700];
                while let Ok(len @ 1..) = b.read(&mut buf).await {
                    got.borrow_mut().extend_from_slice(&buf[..len]);
                }
                let _ = b.shutdown().await;
            }),
            Box::pin(async {
                sleep(at * MS).await;
                control.reset();
            }),
        ]);
        prop_assert!(data.starts_with(&got.into_inner()));
    }

    #[test]
    fn sim_datagrams_are_all_accounted_for(seed: u64, faults in any_faults(), gap in 0..3_u32) {
        send_many(seed, faults, 200, gap * MS);
    }
}

#[test]
fn sim_links_work_on_real_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let slow = Faults::none().delay(3 * MS);
        let (a, b) = datagram_link(46, slow, slow);
        let (a, b) = (a.open(), b.open());
        let start = now();
        a.send(b"hello").await.unwrap();
        assert_eq!(b.recv(&mut [0; 9]).await.unwrap(), 5);
        assert!(now() - start >= 3 * MS);
        let (mut c, mut d) = pair(47, slow, 4);
        let mut all = Vec::new();
        let mut write = pin!(async {
            c.write_all(b"0123456789").await.unwrap();
            c.shutdown().await.unwrap();
        });
        let mut read = pin!(d.read_to_end(&mut all));
        let mut written = false;
        poll_fn(|cx| {
            written = written || write.as_mut().poll(cx).is_ready();
            read.as_mut().poll(cx)
        })
        .await
        .unwrap();
        assert_eq!(all, b"0123456789");
    });
}

#[test]
fn sim_faults_are_plain_data() {
    let faults = Rc::new(Faults::none().rate(7));
    assert_eq!(faults.rate.map(NonZeroU64::get), Some(7));
    assert_eq!(faults.rate(0), Faults::default());
}
