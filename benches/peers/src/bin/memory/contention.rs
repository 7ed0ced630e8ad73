//! Several threads on one value, nine of ten looks being reads: how much gets done, and how much is refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use portway::memory::{Pool, Shared, Snapshot, ThreadSafe};
use portway_peers::Args;

fn seen(value: u64) {
    std::hint::black_box(value);
}

/// Millions of operations in a second of `threads`, of which so many were refused.
fn stress(threads: u64, time: Duration, one: impl Fn(u64) -> bool + Send + Sync) -> (f64, f64) {
    let (over, done, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let ready = Barrier::new(threads as usize + 1);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (over, done, refused, ready, one) = (&over, &done, &refused, &ready, &one);
            scope.spawn(move || {
                ready.wait();
                let (mut n, mut no) = (thread, 0);
                while !over.load(Ordering::Relaxed) {
                    no += u64::from(!one(n));
                    n += 1;
                }
                done.fetch_add(n - thread, Ordering::Relaxed);
                refused.fetch_add(no, Ordering::Relaxed);
            });
        }
        ready.wait();
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
    });
    let (done, refused) = (done.into_inner() as f64, refused.into_inner() as f64);
    (done / time.as_secs_f64() / 1e6, refused * 100.0 / done)
}

pub(crate) fn run(args: &Args) {
    let time = args.seconds("seconds", 0.5);
    println!(
        "| 1 write in 10 | threads | million/s | refused % | had to wait | timed out |\n|---|---:|---:|---:|---:|---:|"
    );
    let print = |name: &str, threads: u64, (rate, refused): (f64, f64), waited: &str| {
        println!("| {name} | {threads} | {rate:.2} | {refused:.3} | {waited} |");
    };
    for threads in [2, 4, 8] {
        let lock = parking_lot::RwLock::new([0_u64; 8]);
        let plain = stress(threads, time, |n| {
            if n % 10 == 0 {
                lock.write()[0] += 1
            } else {
                seen(lock.read()[0])
            }
            true
        });
        print("parking_lot RwLock, waiting without end", threads, plain, "– | –");
        for wait in [None, Some(Duration::from_micros(100))] {
            let shared: Shared<[u64; 8], ThreadSafe> = Shared::new([0; 8]);
            let result = stress(threads, time, |n| match (n % 10 == 0, wait) {
                (true, None) => shared.write().map(|mut value| value[0] += 1).is_ok(),
                (false, None) => shared.read().map(|value| seen(value[0])).is_ok(),
                (true, Some(wait)) => shared.write_within(wait).map(|mut value| value[0] += 1).is_ok(),
                (false, Some(wait)) => shared.read_within(wait).map(|value| seen(value[0])).is_ok(),
            });
            let counted = shared.contention();
            let name = if wait.is_some() { "Shared, within 100 µs" } else { "Shared, at once" };
            print(name, threads, result, &format!("{} | {}", counted.waited, counted.timed_out));
        }
        let snapshot = Snapshot::new([0_u64; 8]);
        let result = stress(threads, time, |n| {
            if n % 10 == 0 {
                snapshot.publish([n; 8])
            } else {
                seen(snapshot.read()[0])
            }
            true
        });
        print("Snapshot, read and publish", threads, result, "– | –");
        away(threads, time);
        away_with_malloc(threads, time);
    }
}

/// As `away`, without a pool.
fn away_with_malloc(threads: u64, time: Duration) {
    let taken = hand_over(threads, time, || Some(Vec::<u8>::with_capacity(1_500))).0;
    let rate = taken as f64 / time.as_secs_f64() / 1e6;
    println!("| malloc, freed on {} other threads | {threads} | {rate:.2} | 0.000 | – | – |", threads - 1);
}

/// Buffers taken on one thread and dropped on others: how many there were, and how often there was none.
fn hand_over<B: Send + 'static>(threads: u64, time: Duration, mut take: impl FnMut() -> Option<B>) -> (u64, u64) {
    let over = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (1..threads)
        .map(|_| {
            let (send, receive) = std::sync::mpsc::sync_channel(256);
            let thread = std::thread::spawn(move || receive.iter().for_each(drop));
            (send, thread)
        })
        .collect();
    let stop = over.clone();
    let timer = std::thread::spawn(move || {
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    let (mut taken, mut none) = (0_u64, 0_u64);
    while !over.load(Ordering::Relaxed) {
        for (send, _) in &senders {
            match take() {
                Some(buffer) => {
                    taken += 1;
                    send.send(buffer).expect("it receives");
                }
                None => none += 1,
            }
        }
    }
    for (send, thread) in senders {
        drop(send);
        thread.join().expect("no panic");
    }
    timer.join().expect("no panic");
    (taken, none)
}

/// Buffers of a pool taken on one thread and dropped on others.
fn away(threads: u64, time: Duration) {
    let pool = Pool::new(1_500, 1_024, None);
    let (taken, none) = hand_over(threads, time, || pool.lease().ok());
    let stats = pool.stats();
    assert_eq!((stats.out, stats.came_home), (0, taken), "all came home");
    println!(
        "| Pool, dropped on {} other threads | {threads} | {:.2} | {:.3} | – | – |",
        threads - 1,
        taken as f64 / time.as_secs_f64() / 1e6,
        none as f64 * 100.0 / (taken + none) as f64
    );
}
