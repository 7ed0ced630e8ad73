//! Tests of stream links on virtual time.

use std::cell::RefCell;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::clock::{now, sleep};
use super::super::sim_link::tests::{MS, Task, any_faults, block_on, noise, run};
use super::*;

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

fn try_write(stream: &mut Stream, bytes: &[u8]) -> Poll<io::Result<usize>> {
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
fn sim_stream_shutdown_wakes_a_reader() {
    let (mut a, mut b) = pair(39, Faults::none().delay(MS), 100);
    run([
        Box::pin(async { assert_eq!(b.read(&mut [0; 9]).await.unwrap(), 0) }) as Task<'_>,
        Box::pin(async {
            sleep(MS).await;
            a.shutdown().await.unwrap();
            sleep(5 * MS).await;
        }),
    ]);
}

#[test]
fn sim_stream_reset_overtakes_what_is_under_way_and_a_stall() {
    for stalled in [false, true] {
        let (mut a, mut b) = pair(39, Faults::none().delay(5 * MS).rate(100), 1_000);
        let start = RefCell::new(None::<Instant>);
        run([
            Box::pin(async {
                b.stall(stalled);
                let mut all = Vec::new();
                let kind = b.read_to_end(&mut all).await.unwrap_err().kind();
                assert_eq!((kind, all.len()), (ErrorKind::ConnectionReset, 0));
                assert_eq!(now() - start.borrow().unwrap(), 5 * MS);
            }) as Task<'_>,
            Box::pin(async {
                a.write_all(&[1; 1_000]).await.unwrap();
                sleep(MS).await;
                *start.borrow_mut() = Some(now());
                a.reset();
            }),
        ]);
    }
}

#[test]
fn sim_stream_answer_of_a_dropped_end_wakes_a_stalled_reader() {
    let (a, b) = pair(39, Faults::none().delay(5 * MS), 1_000);
    a.stall(true);
    let (mut reader, mut writer) = tokio::io::split(a);
    run([
        Box::pin(async {
            let start = now();
            let kind = reader.read(&mut [0; 9]).await.unwrap_err().kind();
            assert_eq!((kind, now() - start), (ErrorKind::ConnectionReset, 30 * MS));
        }) as Task<'_>,
        Box::pin(async {
            drop(b);
            sleep(20 * MS).await;
            writer.write_all(b"anyone there?").await.unwrap();
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
}
