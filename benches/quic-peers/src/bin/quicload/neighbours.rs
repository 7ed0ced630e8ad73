//! Many connections at half of what the server can do, first alone, then beside one that takes all it can get.
//!
//! Requests come at random moments with the rate that keeps the server's CPU half busy, found by trying; latency counts
//! from the moment a request was due, so that a server that stalls is charged for all who wait. The last CPU is the
//! greedy connection's alone.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portway_quic_peers::kit::cpu::Spent;
use portway_quic_peers::kit::histogram::Histogram;
use portway_quic_peers::{PERIOD, matches};
use quinn::Connection;

use crate::Load;
use crate::client::{Client, fetch};
use crate::modes::merged;

/// Answers that may be waited for at once, in a thread; a server that owes more cannot keep up.
const OWED: usize = 50_000;

/// What all threads do next, told by the main one.
struct Script {
    barrier: Barrier,
    /// Requests per second of each thread.
    rate: AtomicU64,
    millis: AtomicU64,
    greedy: AtomicBool,
    over: AtomicBool,
}

pub(crate) fn run(load: &Load) {
    let [cpus @ .., _] = load.cpus.as_slice() else { unreachable!("there is always one") };
    let threads = cpus.len();
    assert!(threads > 0, "--cpus: one for the neighbours, one for the greedy connection");
    let script = Script {
        barrier: Barrier::new(load.cpus.len() + 1),
        rate: AtomicU64::new(0),
        millis: AtomicU64::new(0),
        greedy: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let neighbours: Vec<_> = (0..threads)
            .map(|n| {
                scope.spawn({
                    let script = &script;
                    move || neighbour(load, n, threads, script)
                })
            })
            .collect();
        let greedy = scope.spawn(|| greedy(load, threads, &script));
        script.barrier.wait();

        let rate = half(load, threads, &script);
        let seconds = load.time.as_secs_f64();
        let alone = phase(load, &script, rate, threads, seconds, false);
        let beside = phase(load, &script, rate, threads, seconds, true);
        script.over.store(true, Ordering::SeqCst);
        script.barrier.wait();

        let seen: Vec<Vec<Histogram>> = neighbours.into_iter().map(|n| n.join().expect("no panic")).collect();
        let of = |phase_from_end: usize| {
            merged(&seen.iter().map(|all| all[all.len() - phase_from_end].clone()).collect::<Vec<_>>())
        };
        let (quiet, loaded) = (of(2), of(1));
        let bytes = greedy.join().expect("no panic");
        load.line()
            .with("req_s", rate)
            .with("busy_alone", alone.server / alone.wall)
            .with("busy_beside", beside.server / beside.wall)
            .with("p50_alone_us", quiet.quantile(0.5))
            .with("p99_alone_us", quiet.quantile(0.99))
            .with("p50_beside_us", loaded.quantile(0.5))
            .with("p99_beside_us", loaded.quantile(0.99))
            .with("p99_ratio", loaded.quantile(0.99) / quiet.quantile(0.99))
            .with("greedy_gbit_s", bytes as f64 * 8e-9 / beside.wall)
            .with("others_busy", beside.others / beside.wall)
            .print();
    });
}

/// The rate, of all threads together, that keeps the server half busy.
fn half(load: &Load, threads: usize, script: &Script) -> f64 {
    let given = load.args.number("rate", 0);
    if given > 0 {
        return given as f64;
    }
    let mut rate = 5_000.0;
    for _ in 0..5 {
        let spent = phase(load, script, rate, threads, 0.7, false);
        rate *= (0.5 * spent.wall / spent.server.max(0.01)).clamp(0.3, 2.0);
    }
    rate
}

fn phase(load: &Load, script: &Script, rate: f64, threads: usize, seconds: f64, greedy: bool) -> Spent {
    script.rate.store((rate / threads as f64) as u64, Ordering::SeqCst);
    script.millis.store((seconds * 1e3) as u64, Ordering::SeqCst);
    script.greedy.store(greedy, Ordering::SeqCst);
    let meter = load.meter();
    script.barrier.wait();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let spent = meter.stop();
    script.barrier.wait();
    spent
}

/// One histogram for each phase.
fn neighbour(load: &Load, thread: usize, threads: usize, script: &Script) -> Vec<Histogram> {
    let client = Client::pinned(load, thread);
    let connections = client.connect(load.share(thread, threads));
    script.barrier.wait();
    let size = load.args.number("size", 1_024);
    let mut seen = Vec::new();
    loop {
        script.barrier.wait();
        if script.over.load(Ordering::SeqCst) {
            client.farewell();
            return seen;
        }
        let time = Duration::from_millis(script.millis.load(Ordering::SeqCst));
        let rate = script.rate.load(Ordering::SeqCst) as f64;
        seen.push(client.block_on(open_loop(&connections, size, rate, time, thread as u64 + 1)));
        script.barrier.wait();
    }
}

async fn open_loop(connections: &[Connection], size: u64, rate: f64, time: Duration, seed: u64) -> Histogram {
    let seen = Rc::new(RefCell::new(Histogram::default()));
    let owed = Rc::new(Cell::new(0_usize));
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let begin = Instant::now();
    let mut due = begin;
    for n in 0.. {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let uniform = ((random >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        due += Duration::from_secs_f64(-uniform.ln() / rate);
        if due >= begin + time {
            break;
        }
        while Instant::now() < due {
            // Spins rather than sleeps: a timer here has a grain of a millisecond.
            tokio::task::yield_now().await;
        }
        assert!(owed.get() < OWED, "the server cannot keep up with {rate} requests a second");
        owed.set(owed.get() + 1);
        let (connection, seen, owed) = (connections[n % connections.len()].clone(), seen.clone(), owed.clone());
        tokio::task::spawn_local(async move {
            fetch(&connection, size).await;
            seen.borrow_mut().add(due.elapsed());
            owed.set(owed.get() - 1);
        });
    }
    while owed.get() > 0 {
        tokio::task::yield_now().await;
    }
    seen.take()
}

/// Bytes it moved in all.
fn greedy(load: &Load, thread: usize, script: &Script) -> u64 {
    let client = Client::pinned(load, thread);
    let connection = client.connect(1).pop().expect("one");
    script.barrier.wait();
    let mut moved = 0;
    loop {
        script.barrier.wait();
        if script.over.load(Ordering::SeqCst) {
            client.farewell();
            return moved;
        }
        let time = Duration::from_millis(script.millis.load(Ordering::SeqCst));
        if script.greedy.load(Ordering::SeqCst) {
            moved += client.block_on(async {
                match load.args.text("hog", "down").as_str() {
                    "down" => take(&connection, Instant::now() + time).await,
                    "up" => give(&connection, Instant::now() + time).await,
                    other => panic!("--hog {other}: up or down"),
                }
            });
        }
        script.barrier.wait();
    }
}

async fn take(connection: &Connection, end: Instant) -> u64 {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    send.write_all(&(1_u64 << 50).to_be_bytes()).await.expect("sent");
    send.finish().expect("an end");
    let mut got = 0;
    while Instant::now() < end {
        let chunk = receive.read_chunk(usize::MAX, true).await.expect("the answer").expect("no end yet");
        assert!(matches(got, &chunk.bytes), "wrong bytes near {got}");
        got += chunk.bytes.len() as u64;
    }
    // The server is told to stop; what is on its way is thrown away.
    let _ = receive.stop(0_u32.into());
    got
}

async fn give(connection: &Connection, end: Instant) -> u64 {
    let (mut send, receive) = connection.open_bi().await.expect("a stream");
    send.write_all(&0_u64.to_be_bytes()).await.expect("sent");
    let mut given = 0;
    while Instant::now() < end {
        let part = portway_quic_peers::body(given, PERIOD as u64);
        given += part.len() as u64;
        send.write_chunk(part).await.expect("taken");
    }
    send.finish().expect("an end");
    drop(receive);
    given
}
