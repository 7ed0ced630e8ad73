//! Bulk, requests, handshakes, floods of them, and silence.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use portway_quic_peers::kit::cpu::{Spent, resident};
use portway_quic_peers::kit::histogram::Histogram;
use quinn::Connection;
use tokio::task::JoinSet;

use crate::Load;
use crate::client::{Client, fetch};

const MIB: f64 = (1 << 20) as f64;
/// What is fetched before the account is opened: the path's MTU is known then and slow start is over.
const WARM: u64 = 32_000_000;

async fn all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
}

async fn download(connections: &[Connection], streams: usize, bytes: u64) {
    let mut tasks = JoinSet::new();
    for connection in connections {
        for _ in 0..streams {
            let connection = connection.clone();
            tasks.spawn_local(async move { fetch(&connection, bytes).await });
        }
    }
    all(&mut tasks).await;
}

pub(crate) fn bulk(load: &Load) {
    let bytes = load.args.number("bytes", 1_000_000_000);
    let of_each = bytes / (load.connections * load.streams) as u64;
    let threads = load.cpus.len();
    let (paths, spent) = load.measure(
        |thread, client| {
            let connections = client.connect(load.share(thread, threads));
            let warm = WARM / (load.connections * load.streams) as u64;
            client.block_on(download(&connections, load.streams, warm));
            connections
        },
        |connections, client| {
            client.block_on(download(&connections, load.streams, of_each));
            connections.first().map(Connection::stats)
        },
    );
    let gigabytes = (of_each * (load.connections * load.streams) as u64) as f64 / 1e9;
    let line = load
        .line()
        .with("gbit_s", gigabytes * 8.0 / spent.wall)
        .with("srv_s_per_gb", spent.server / gigabytes)
        .with("cli_s_per_gb", spent.own / gigabytes);
    let line = match paths.into_iter().flatten().next() {
        None => line,
        Some(path) => line
            .with("bytes_per_datagram", path.udp_rx.bytes as f64 / path.udp_rx.datagrams.max(1) as f64)
            .with("acks_per_datagram", path.udp_tx.datagrams as f64 / path.udp_rx.datagrams.max(1) as f64),
    };
    finish(line, &spent, load).print();
}

fn finish(line: portway_quic_peers::kit::Line, spent: &Spent, load: &Load) -> portway_quic_peers::kit::Line {
    let line = line
        .with("srv_busy", spent.server / spent.wall)
        .with("cli_busy", spent.own / spent.wall)
        .with("others_busy", spent.others / spent.wall);
    match load.server {
        None => line,
        Some(pid) => line.with("srv_rss_mib", resident(pid) as f64 / MIB),
    }
}

/// Each of `streams` tasks on each connection asks, waits for the answer, and asks again on a new stream.
pub(crate) fn requests(load: &Load) {
    let size = load.args.number("size", 1_024);
    let threads = load.cpus.len();
    let (seen, spent) = load.measure(
        |thread, client| client.connect(load.share(thread, threads)),
        |connections, client| {
            let seen = Rc::new(RefCell::new(Histogram::default()));
            let stop = Rc::new(Cell::new(false));
            let end = Instant::now() + load.time;
            client.block_on(async {
                let mut tasks = JoinSet::new();
                for connection in connections {
                    for _ in 0..load.streams {
                        let (connection, seen, stop) = (connection.clone(), seen.clone(), stop.clone());
                        tasks.spawn_local(async move {
                            while !stop.get() {
                                let asked = Instant::now();
                                fetch(&connection, size).await;
                                let now = Instant::now();
                                seen.borrow_mut().add(now - asked);
                                stop.set(now >= end);
                            }
                        });
                    }
                }
                all(&mut tasks).await;
            });
            seen.take()
        },
    );
    let seen = merged(&seen);
    let done = seen.count() as f64;
    let line = load
        .line()
        .with("req_s", done / spent.wall)
        .with("srv_ms_per_kreq", spent.server * 1e6 / done)
        .with("cli_ms_per_kreq", spent.own * 1e6 / done)
        .with("p50_us", seen.quantile(0.5))
        .with("p99_us", seen.quantile(0.99));
    finish(line, &spent, load).print();
}

pub(crate) fn merged(all: &[Histogram]) -> Histogram {
    let mut sum = Histogram::default();
    for one in all {
        sum.merge(one);
    }
    sum
}

/// Full handshakes until `go_on` says no, `inflight` at a time, each closed at once; how long they took.
fn shake(client: &Client, inflight: usize, confirm: bool, go_on: impl Fn() -> bool + 'static) -> Histogram {
    let seen = Rc::new(RefCell::new(Histogram::default()));
    let go_on = Rc::new(go_on);
    client.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..inflight {
            let (dialer, seen, go_on) = (client.dialer(), seen.clone(), go_on.clone());
            tasks.spawn_local(async move {
                while go_on() {
                    let asked = Instant::now();
                    let connection = dialer.dial().await.expect("a handshake");
                    seen.borrow_mut().add(asked.elapsed());
                    if confirm {
                        fetch(&connection, 1).await;
                    }
                    connection.close(0_u32.into(), b"");
                }
            });
        }
        all(&mut tasks).await;
    });
    seen.take()
}

pub(crate) fn handshakes(load: &Load) {
    let inflight = load.args.number("inflight", 16) as usize;
    let confirm = load.args.has("confirm");
    let (seen, spent) = load.measure(
        |_, client| drop(client.connect(1)),
        |(), client| {
            let end = Instant::now() + load.time;
            shake(client, inflight, confirm, move || Instant::now() < end)
        },
    );
    let seen = merged(&seen);
    let done = seen.count() as f64;
    let line = load
        .line()
        .with("hs_s", done / spent.wall)
        .with("srv_ms_per_hs", spent.server * 1e3 / done)
        .with("cli_ms_per_hs", spent.own * 1e3 / done)
        .with("p50_us", seen.quantile(0.5))
        .with("p99_us", seen.quantile(0.99));
    finish(line, &spent, load).print();
}

/// `count` clients that close as soon as they are through, and the server's memory before, after, and 10 s later.
pub(crate) fn flood(load: &Load) {
    let server = load.server.expect("--pid");
    let count = load.args.number("count", 20_000);
    let of_each = count / load.cpus.len() as u64;
    let inflight = load.args.number("inflight", 16) as usize;
    let before = Cell::new(resident(server));
    let (seen, spent) = load.measure(
        |_, client| drop(client.connect(1)),
        |(), client| {
            let left = Cell::new(of_each);
            shake(client, inflight, false, move || {
                let some = left.get() > 0;
                left.set(left.get().saturating_sub(1));
                some
            })
        },
    );
    let after = resident(server);
    std::thread::sleep(Duration::from_secs(10));
    let later = resident(server);
    load.line()
        .with("handshakes", merged(&seen).count() as f64)
        .with("srv_ms_per_hs", spent.server * 1e3 / merged(&seen).count() as f64)
        .with("rss_before_mib", before.get() as f64 / MIB)
        .with("rss_after_mib", after as f64 / MIB)
        .with("rss_later_mib", later as f64 / MIB)
        .with("grown_mib", later.saturating_sub(before.get()) as f64 / MIB)
        .print();
}

/// Memory of connections that have had one answer and are silent since.
pub(crate) fn idle(load: &Load) {
    let server = load.server.expect("--pid");
    let threads = load.cpus.len();
    // Only the first thread reads the server's memory; the others have connected long before it does so again.
    let (grown, _) = load.measure(
        |thread, client| {
            drop(client.connect(1));
            (thread, resident(server))
        },
        |(thread, before), client| {
            let connections = client.connect(load.share(thread, threads));
            client.block_on(async { tokio::time::sleep(Duration::from_secs(3)).await });
            let grown = if thread == 0 { resident(server).saturating_sub(before) } else { 0 };
            drop(connections);
            grown
        },
    );
    let grown: u64 = grown.into_iter().sum();
    load.line()
        .with("conns", load.connections as f64)
        .with("kib_per_conn", grown as f64 / 1_024.0 / load.connections as f64)
        .print();
}
