//! What a flooded actor does to its neighbours on the same arbiter, and how long an urgent message to it takes.
//!
//!     fairness [--seconds 2] [--rate 200000]
//!
//! One arbiter carries an actor with a deadline every millisecond and one whose handler takes 20 µs. A plain thread
//! floods the second: as fast as it can, then with `--rate` messages per second, four times what it can handle. The
//! same rate then goes to a stock actix actor on the same arbiter; there the flood ends after 1.5 s, but not its queue.

use std::hint::spin_loop;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::{Actor, Handler, Message};
use parking_lot::Mutex;
use portway::actors::{Fault, Kind, Mail, Mesh, MeshConfig, Place, Protocol, Reply, Spec, Turn};
use portway_peers::histogram::Histogram;
use portway_peers::{Args, load_average};

const EVERY: Duration = Duration::from_millis(1);
const WORK: Duration = Duration::from_micros(20);
const ACTIX_FLOOD: Duration = Duration::from_millis(1_500);
/// The longest the program waits for an actix actor to come back from its queue.
const PATIENCE: Duration = Duration::from_secs(30);

fn work() {
    let end = Instant::now() + WORK;
    while Instant::now() < end {
        spin_loop();
    }
}

/// By how much the deadline was missed, each time.
struct Ticker {
    due: Instant,
    lag: Arc<Mutex<Histogram>>,
}

impl Protocol for Ticker {
    type Msg = ();
    const KIND: &'static str = "ticker";

    fn on(&mut self, (): (), _: &mut Turn<'_, ()>) -> Result<(), Fault> {
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.due)
    }

    fn on_deadline(&mut self, _: &mut Turn<'_, ()>) -> Result<(), Fault> {
        let now = Instant::now();
        self.lag.lock().add(now.saturating_duration_since(self.due));
        self.due = now + EVERY;
        Ok(())
    }
}

enum Msg {
    Work,
    Probe(Reply<()>),
}

struct Worker {
    handled: Arc<AtomicU64>,
}

impl Protocol for Worker {
    type Msg = Msg;
    const KIND: &'static str = "worker";

    fn size(_: &Msg) -> usize {
        32
    }

    fn on(&mut self, m: Msg, _: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Work => {
                self.handled.fetch_add(1, Ordering::Relaxed);
                work();
            }
            Msg::Probe(reply) => drop(reply.send(())),
        }
        Ok(())
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Job;

struct Stock {
    handled: Arc<AtomicU64>,
}

impl Actor for Stock {
    type Context = actix::Context<Self>;
}

impl Handler<Job> for Stock {
    type Result = ();

    fn handle(&mut self, _: Job, _: &mut Self::Context) {
        self.handled.fetch_add(1, Ordering::Relaxed);
        work();
    }
}

struct Prober;

impl Kind for Prober {
    const KIND: &'static str = "prober";
}

/// Calls `send` for as long as told: without a pause, or so many times per second. Answers how often.
fn flood(time: Duration, rate: Option<u64>, mut send: impl FnMut()) -> u64 {
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < time {
        let due = rate.map_or(u64::MAX, |rate| (began.elapsed().as_secs_f64() * rate as f64) as u64);
        while sent < due && (rate.is_some() || began.elapsed() < time) {
            send();
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    sent
}

struct Bench {
    mesh: Mesh,
    lag: Arc<Mutex<Histogram>>,
    handled: Arc<AtomicU64>,
}

impl Bench {
    /// Two arbiters: 0 under test, 1 for the one who asks.
    fn start() -> Self {
        let arbiters = NonZeroUsize::new(2);
        let mesh = Mesh::start(MeshConfig { arbiters, ..MeshConfig::default() }).expect("a mesh");
        let lag = Arc::new(Mutex::new(Histogram::default()));
        let seen = lag.clone();
        let ticker = move || Ticker { due: Instant::now() + EVERY, lag: seen };
        mesh.spawn(Place::On(0), Spec::default(), ticker).expect("a ticker");
        std::thread::sleep(Duration::from_millis(200));
        *lag.lock() = Histogram::default();
        Self { mesh, lag, handled: Arc::default() }
    }

    /// Asks the worker urgently, every five milliseconds, until told to stop.
    fn probe(&self, worker: Mail<Msg>, stop: Arc<AtomicBool>) -> Arc<Mutex<Histogram>> {
        let delay = Arc::new(Mutex::new(Histogram::default()));
        let seen = delay.clone();
        let prober = self.mesh.drive::<Prober, _>(Place::On(1), Spec::default(), move |_| async move {
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                worker.ask_urgent(Msg::Probe, PATIENCE).await.expect("an answer");
                seen.lock().add(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        });
        prober.expect("a prober");
        delay
    }

    fn ours(&self, name: &str, time: Duration, rate: Option<u64>) {
        let handled = self.handled.clone();
        let worker = self.mesh.spawn(Place::On(0), Spec::default(), move || Worker { handled }).expect("a worker");
        let stop = Arc::new(AtomicBool::new(false));
        let delay = self.probe(worker.clone(), stop.clone());
        let mut refused = 0_u64;
        let offered = flood(time, rate, || refused += u64::from(worker.tell(Msg::Work).is_err()));
        stop.store(true, Ordering::Relaxed);
        self.report(name, offered, refused, Some(&delay.lock()));
    }

    fn stock(&self, rate: u64) {
        let handled = self.handled.clone();
        let arbiter = self.mesh.actix(0).expect("an arbiter");
        let stock = Stock::start_in_arbiter(&arbiter, move |_| Stock { handled });
        let offered = flood(ACTIX_FLOOD, Some(rate), || stock.do_send(Job));
        let queued = offered - self.handled.load(Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while self.handled.load(Ordering::Relaxed) < offered && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(20));
        let name = format!("actix, {rate}/s for 1.5 s ({queued} queued by then)");
        self.report(&name, offered, 0, None);
    }

    fn report(&self, name: &str, offered: u64, refused: u64, delay: Option<&Histogram>) {
        let row = |h: &Histogram| {
            let ms = |us: f64| us / 1e3;
            format!("{:.2} | {:.2} | {:.2}", ms(h.quantile(0.5)), ms(h.quantile(0.99)), ms(h.longest()))
        };
        let handled = self.handled.load(Ordering::Relaxed);
        let lag = self.lag.lock();
        let urgent = delay.map_or_else(|| "– | – | –".to_owned(), row);
        println!("| {name} | {offered} | {handled} | {refused} | {} | {} | {urgent} |", lag.count(), row(&lag));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.mesh.stop().expect("called from a plain thread");
    }
}

fn main() {
    let args = Args::parse();
    let time = args.seconds("seconds", 2.0);
    let rate = args.number("rate", 200_000);
    println!("load average: {}; times in ms\n", load_average());
    println!(
        "| arbiter | offered | handled | refused | ticks | timer lag p50 | p99 | max | urgent p50 | p99 | max |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    let quiet = Bench::start();
    std::thread::sleep(time);
    quiet.report("quiet", 0, 0, None);
    drop(quiet);
    Bench::start().ours("ours, quiet, asked urgently", time, Some(0));
    Bench::start().ours("ours, flooded without a pause", time, None);
    Bench::start().ours(&format!("ours, {rate}/s"), time, Some(rate));
    Bench::start().stock(rate);
}
