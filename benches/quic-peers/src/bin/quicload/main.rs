//! Loads a QUIC server that speaks the protocol of this crate and keeps the account: CPU per unit of work, latency,
//! memory. The client is quinn on aws-lc, the same for every server, on CPUs of its own.
//!
//!     quicload certificate DIR                                                     cert.pem and key.pem, ECDSA P-256
//!     quicload --target 127.0.0.1:9001 --pid P --mode bulk --streams 100 --bytes 1000000000       bytes in all
//!     quicload ... --mode requests --conns 32 --streams 1 --size 1024 --seconds 3                 closed loop
//!     quicload ... --mode handshakes --inflight 16 --seconds 3 [--confirm]
//!     quicload ... --mode flood --count 20000                      handshakes closed at once, and what is left of them
//!     quicload ... --mode idle --conns 2000                                        memory of a silent connection
//!     quicload ... --mode neighbours --conns 500 --hog down                        500 at half load, one without limit
//!
//! `--cpus 1,2` pins a thread to each of these CPUs and shares the connections out among the threads. The client offers
//! X25519 and AES-128-GCM only, so that no server does other cryptography than the next; it does not check
//! certificates. Every byte that comes back is compared with what it must be; a mismatch ends the run.

mod client;
mod modes;
mod neighbours;

use std::net::SocketAddr;
use std::process::exit;
use std::sync::Barrier;
use std::time::Duration;

use portway_quic_peers::kit::cpu::Meter;
use portway_quic_peers::kit::{Args, Line};

/// What the modes share.
pub(crate) struct Load {
    pub(crate) target: SocketAddr,
    pub(crate) server: Option<u32>,
    pub(crate) name: String,
    pub(crate) cpus: Vec<usize>,
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    pub(crate) time: Duration,
    pub(crate) args: Args,
}

fn main() {
    // A thread that panics would leave the others waiting for it.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        exit(1);
    }));
    let args = Args::parse();
    if args.words.first().is_some_and(|word| word == "certificate") {
        return certificate(args.words.get(1).map_or(".", String::as_str));
    }
    let load = Load {
        target: args.text("target", "127.0.0.1:9001").parse().expect("--target: an address and a port"),
        server: args.has("pid").then(|| args.number("pid", 0) as u32),
        name: args.text("name", "quicload"),
        cpus: args.text("cpus", "1").split(',').map(|cpu| cpu.parse().expect("--cpus: numbers")).collect(),
        connections: args.number("conns", 1) as usize,
        streams: args.number("streams", 1) as usize,
        time: args.seconds("seconds", 3.0),
        args,
    };
    match load.args.text("mode", "bulk").as_str() {
        "bulk" => modes::bulk(&load),
        "requests" => modes::requests(&load),
        "handshakes" => modes::handshakes(&load),
        "flood" => modes::flood(&load),
        "idle" => modes::idle(&load),
        "neighbours" => neighbours::run(&load),
        mode => panic!("--mode {mode}: bulk, requests, handshakes, flood, idle or neighbours"),
    }
}

fn certificate(dir: &str) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    std::fs::write(format!("{dir}/cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(format!("{dir}/key.pem"), made.signing_key.serialize_pem()).expect("written");
}

impl Load {
    pub(crate) fn meter(&self) -> Meter {
        Meter::start(self.server)
    }

    pub(crate) fn line(&self) -> Line {
        Line::new(&self.name)
    }

    /// Connections of thread `thread` of `threads`.
    pub(crate) fn share(&self, thread: usize, threads: usize) -> usize {
        self.connections / threads + usize::from(thread < self.connections % threads)
    }

    /// Runs `work` on a pinned thread for each CPU: first `prepare`, then, when all are ready, the work under one meter.
    pub(crate) fn measure<P: Send, R: Send>(
        &self,
        prepare: impl Fn(usize, &client::Client) -> P + Sync,
        work: impl Fn(P, &client::Client) -> R + Sync,
    ) -> (Vec<R>, portway_quic_peers::kit::cpu::Spent) {
        let barrier = Barrier::new(self.cpus.len() + 1);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.cpus.len())
                .map(|thread| {
                    let (barrier, prepare, work) = (&barrier, &prepare, &work);
                    scope.spawn(move || {
                        let client = client::Client::pinned(self, thread);
                        let ready = prepare(thread, &client);
                        barrier.wait();
                        barrier.wait();
                        let done = work(ready, &client);
                        barrier.wait();
                        client.farewell();
                        done
                    })
                })
                .collect();
            barrier.wait();
            let meter = self.meter();
            barrier.wait();
            barrier.wait();
            let spent = meter.stop();
            (threads.into_iter().map(|thread| thread.join().expect("no panic")).collect(), spent)
        })
    }
}
