//! Loads a relay of Media over QUIC and keeps the account. One publisher, one track, groups of one object; draft 18.
//!
//!     moqload certificate DIR                                   cert.pem and key.pem, ECDSA P-256
//!     moqload --target 127.0.0.1:4443 --pid P --subs 100 --rate 30 --size 10000 --seconds 10 [--mode fan]
//!     moqload ... --mode memory --subs 500 --rate 4             resident memory for each idle subscriber
//!     moqload ... --mode stalled [--stalled-first]              the same as fan, with and without one who stopped reading
//!
//! `--cpus 1,2` pins a thread to each of these CPUs and shares the subscribers out among them; the publisher is on the
//! first. Latency is from before the publisher opens a stream to the last byte at a subscriber, by one clock. `behind=1`:
//! the publisher sent or the subscribers got less than 99 % of what was due, so the line is no figure.

mod load;

use std::process::exit;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use load::{Account, MEASURED, Plan, Shared, WITH_STALLED};
use portway_moq_peers::kit::cpu::{Meter, Spent, resident};
use portway_moq_peers::kit::{Args, Line};

/// Before anything is measured.
const WARM: Duration = Duration::from_secs(1);
/// Until one who reads no more has no window left: 100 streams or 1 MiB.
const FILLED: Duration = Duration::from_secs(6);
/// Until nothing of what came before moves any more.
const SETTLED: Duration = Duration::from_secs(3);
/// For all subscribers to get a first object.
const READY: Duration = Duration::from_secs(60);

/// Of what is due; less is called behind.
const ENOUGH: f64 = 0.99;

fn main() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        exit(1);
    }));
    let args = Args::parse();
    if args.words.first().is_some_and(|word| word == "certificate") {
        return certificate(args.words.get(1).map_or(".", String::as_str));
    }
    portway_moq_peers::kit::raise_open_files();
    let plan = Plan {
        target: args.text("target", "127.0.0.1:4443").parse().expect("--target: an address and a port"),
        rate: args.number("rate", 30) as f64,
        size: args.number("size", 10_000) as usize,
        subscribers: args.number("subs", 100) as usize,
        cpus: args.text("cpus", "1").split(',').map(|cpu| cpu.parse().expect("--cpus: numbers")).collect(),
    };
    // What threads and their tasks share lives as long as the process.
    let run: &'static Run = Box::leak(Box::new(Run {
        seconds: args.seconds("seconds", 10.0),
        pid: args.has("pid").then(|| args.number("pid", 0) as u32),
        shared: Shared::new(),
        plan,
    }));
    let threads: Vec<_> =
        (0..run.plan.cpus.len()).map(|n| std::thread::spawn(move || load::run(&run.plan, &run.shared, n))).collect();
    let all = || {
        run.shared.stop.store(true, Relaxed);
        let mut all = Account::default();
        threads.into_iter().for_each(|thread| all.merge(&thread.join().expect("no panic")));
        all
    };
    let line = Line::new(&args.text("name", "moqload"));
    match args.text("mode", "fan").as_str() {
        "fan" => run.fan(line, all),
        "memory" => run.memory(line),
        "stalled" => run.stalled(line, args.has("stalled-first"), all),
        other => panic!("no such mode: {other}"),
    }
    // Nobody says goodbye: what is to be known is printed.
    exit(0);
}

fn certificate(dir: &str) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let made = made.expect("a certificate");
    std::fs::write(format!("{dir}/cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(format!("{dir}/key.pem"), made.signing_key.serialize_pem()).expect("written");
}

struct Run {
    plan: Plan,
    shared: Shared,
    seconds: Duration,
    pid: Option<u32>,
}

impl Run {
    /// Lets so many subscribe, and waits until each has got an object.
    fn admit(&self, subscribers: usize) {
        self.shared.admitted.store(subscribers, Relaxed);
        let began = Instant::now();
        while self.shared.ready.load(Relaxed) < subscribers {
            let ready = self.shared.ready.load(Relaxed);
            assert!(began.elapsed() < READY, "only {ready} of {subscribers} subscribers got an object");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(WARM);
    }

    fn measure(&self, window: usize) -> Spent {
        let meter = Meter::start(self.pid);
        self.shared.window.store(window, Relaxed);
        std::thread::sleep(self.seconds);
        self.shared.window.store(0, Relaxed);
        meter.stop()
    }

    /// The part of what was due that came, of the publisher and of the subscribers.
    fn delivered(&self, account: &Account, window: usize, spent: &Spent) -> (f64, f64) {
        let sent = self.shared.sent[window].load(Relaxed) as f64;
        let due = sent * self.plan.subscribers as f64;
        (sent / (self.plan.rate * spent.wall), account.windows[window].took.count() as f64 / due)
    }

    fn fan(&self, line: Line, all: impl FnOnce() -> Account) {
        self.admit(self.plan.subscribers);
        let spent = self.measure(MEASURED);
        let account = all();
        let (sent, got) = self.delivered(&account, MEASURED, &spent);
        let window = &account.windows[MEASURED];
        let gigabytes = window.bytes as f64 / 1e9;
        line.with("cpu_s_per_gb", spent.server / gigabytes)
            .with("p50_us", window.took.quantile(0.5))
            .with("p99_us", window.took.quantile(0.99))
            .with("worst_us", window.took.longest())
            .with("sent", sent)
            .with("got", got)
            .with("behind", f64::from(u8::from(sent < ENOUGH || got < ENOUGH)))
            .with("server_cpu", spent.server / spent.wall)
            .with("load_cpu", spent.own / spent.wall)
            .with("others_s", spent.others)
            .print();
    }

    fn memory(&self, line: Line) {
        let pid = self.pid.expect("--pid: whose memory");
        self.admit(1);
        let settle = || {
            self.shared.paused.store(true, Relaxed);
            std::thread::sleep(SETTLED);
            let resident = resident(pid) as f64 / 1_024.0;
            self.shared.paused.store(false, Relaxed);
            resident
        };
        let before = settle();
        self.admit(self.plan.subscribers);
        let after = settle();
        line.with("kib_per_subscriber", (after - before) / (self.plan.subscribers - 1) as f64)
            .with("kib_before", before)
            .with("kib_after", after)
            .with("behind", 0.0)
            .print();
    }

    fn stalled(&self, line: Line, first: bool, all: impl FnOnce() -> Account) {
        self.admit(self.plan.subscribers);
        let with = || {
            self.shared.stall.store(true, Relaxed);
            let began = Instant::now();
            while !self.shared.stalled.load(Relaxed) {
                assert!(began.elapsed() < READY, "one more subscriber got no object");
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(FILLED);
            let spent = self.measure(WITH_STALLED);
            self.shared.stall.store(false, Relaxed);
            std::thread::sleep(WARM);
            spent
        };
        let (alone, beside);
        if first {
            beside = with();
            alone = self.measure(MEASURED);
        } else {
            alone = self.measure(MEASURED);
            beside = with();
        }
        let closed = self.shared.stalled_closed.load(Relaxed);
        let account = all();
        let shares = [self.delivered(&account, MEASURED, &alone), self.delivered(&account, WITH_STALLED, &beside)];
        let enough = shares.iter().all(|(sent, got)| *sent >= ENOUGH && *got >= ENOUGH);
        let p99 = |window: usize| account.windows[window].took.quantile(0.99);
        let acked = |window: usize| account.windows[window].acked.quantile(0.99);
        line.with("p99_ratio", p99(WITH_STALLED) / p99(MEASURED))
            .with("p99_alone_us", p99(MEASURED))
            .with("p99_beside_us", p99(WITH_STALLED))
            .with("ack_ratio", acked(WITH_STALLED) / acked(MEASURED))
            .with("ack_alone_us", acked(MEASURED))
            .with("ack_beside_us", acked(WITH_STALLED))
            .with("sent", shares[0].0.min(shares[1].0))
            .with("got", shares[0].1.min(shares[1].1))
            .with("behind", f64::from(u8::from(!enough)))
            .with("closed", f64::from(u8::from(closed)))
            .with("server_cpu", beside.server / beside.wall)
            .with("load_cpu", beside.own / beside.wall)
            .with("others_s", alone.others + beside.others)
            .print();
    }
}
