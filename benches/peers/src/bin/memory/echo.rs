//! Framed echo on one arbiter, with the arbiter's pools and without them: every run is a process of its own, on one
//! CPU.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portway::actors::{Mesh, MeshConfig, Place, Spec};
use portway::transports::framed::{Connection, Echo, Settings};
use portway_peers::{Args, allocations, median};

const CLIENTS: usize = 16;
/// Messages that a client has under way.
const WINDOW: usize = 16;

pub(crate) fn run(args: &Args) {
    let pairs = args.number("pairs", 10);
    let seconds = args.text("seconds", "1");
    println!(
        "| message | allocator, server CPU µs/message | pools | pools ÷ allocator | allocations/message, allocator | pools |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    for size in ["100", "1500", "10000"] {
        let mut runs: [Vec<f64>; 2] = Default::default();
        let once = |buffers: &str, count: bool| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args(["echo-once", "--size", size, "--seconds", &seconds, "--buffers", buffers]);
            let out = command.args(count.then_some("--count")).output().expect("it runs");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let value = text.lines().find_map(|line| line.strip_prefix("result="));
            value.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no result: {out:?}"))
        };
        for _ in 0..pairs {
            for (runs, buffers) in runs.iter_mut().zip(["0", "1024"]) {
                runs.push(once(buffers, false));
            }
        }
        let ratios: Vec<f64> = runs[1].iter().zip(&runs[0]).map(|(ours, other)| ours / other).collect();
        println!(
            "| {size} | {:.3} | {:.3} | {:.2} | {:.4} | {:.4} |",
            median(&runs[0]),
            median(&runs[1]),
            median(&ratios),
            once("0", true),
            once("1024", true)
        );
    }
}

/// CPU time of the arbiter for a message, or how many allocations the process made for one.
pub(crate) fn once(args: &Args) {
    let (size, time) = (args.number("size", 100) as usize, args.seconds("seconds", 1.0));
    let count = args.has("count");
    let config = MeshConfig {
        arbiters: NonZeroUsize::new(1),
        buffers: args.number("buffers", 1_024) as usize,
        ..MeshConfig::default()
    };
    // Client and server on one CPU: between two it decides who is awake when, which is not the question here.
    let mut one = rustix::thread::CpuSet::new();
    one.set(1);
    rustix::thread::sched_setaffinity(None, &one).expect("a second CPU");
    let mesh = Mesh::start(config).expect("a mesh");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (name, settings): (Arc<str>, _) = (Arc::from("bench"), Arc::new(Settings::default()));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(TcpStream::connect(listener.local_addr().expect("bound")).expect("it connects"));
        let (stream, _) = listener.accept().expect("a client");
        stream.set_nonblocking(true).expect("a socket option");
        let (name, settings) = (name.clone(), settings.clone());
        mesh.spawn(Place::On(0), Spec::default(), move || {
            let stream = tokio::net::TcpStream::from_std(stream).expect("an event loop");
            Connection::new(stream, name, settings, Echo)
        })
        .expect("room");
    }
    let frame = [&(size as u32).to_be_bytes()[..], &vec![7; size]].concat().repeat(WINDOW);
    let mut answer = vec![0; frame.len()];
    let mut exchange = |clients: &mut [TcpStream]| {
        for client in clients.iter_mut() {
            client.write_all(&frame).expect("sent");
        }
        for client in clients.iter_mut() {
            client.read_exact(&mut answer).expect("an echo");
        }
    };
    let (warm, end) = (Instant::now() + Duration::from_millis(200), Instant::now() + Duration::from_millis(200) + time);
    while Instant::now() < warm {
        exchange(&mut clients);
    }
    if count {
        allocations::start();
    }
    let before = arbiter_cpu();
    let mut messages = 0_u64;
    while Instant::now() < end {
        exchange(&mut clients);
        messages += (CLIENTS * WINDOW) as u64;
    }
    let cpu = arbiter_cpu() - before;
    let result = if count { allocations::count() as f64 } else { cpu * 1e6 };
    println!("result={}", result / messages as f64);
    drop(clients);
    mesh.stop().expect("not on an arbiter");
    assert!(mesh.pools().iter().flat_map(|(_, pools)| pools).all(|pool| pool.out == 0), "all came home");
}

/// Seconds of CPU that the arbiter's thread has used.
fn arbiter_cpu() -> f64 {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task").expect("threads").flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        if read("comm").trim() == "portway-0" {
            nanoseconds = read("schedstat").split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    assert!(nanoseconds > 0, "the arbiter's thread is there");
    nanoseconds as f64 / 1e9
}
