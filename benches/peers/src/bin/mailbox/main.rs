//! What one message costs in CPU time: our mailbox beside actix, kameo, ractor and a bare tokio channel.
//!
//!     mailbox pairs [--pairs 10] [--case tell] [--systems ours,actix]
//!     mailbox instructions [--case tell-same]            (needs valgrind)
//!     mailbox one SYSTEM CASE N
//!
//! `one` is one run in a process of its own and prints `cpu_ns wall_ns allocations` per message. `pairs` runs the
//! systems in turn, round after round (ours, actix, ..., ours, actix, ...), and answers with the median of each and
//! the median of the ratios within a round, which a machine that drifts does not spoil.

mod actix_peer;
mod kameo_peer;
mod ours;
mod ractor_peer;
mod tokio_peer;

use std::process::Command;
use std::time::Instant;

use portway_peers::{Args, allocations, cpu, load_average, median};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Every message carries 32 bytes.
#[derive(Clone, Copy)]
pub struct Load([u64; 4]);

impl Load {
    pub fn new(n: u64) -> Self {
        Self([n; 4])
    }

    pub fn last(&self) -> u64 {
        self.0[3]
    }
}

/// Told before the sender waits for one answer: keeps the queues short and equal, as back-pressure would.
pub const WINDOW: u64 = 512;
/// Messages per batch.
pub const BATCH: u64 = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Tell,
    /// A batch by the mailbox's own means where it has any (`tell_many`), else as one message.
    Many,
    /// A batch as one message that carries a vector.
    Vector,
    Ask,
}

/// Where sender and receiver run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On one arbiter.
    Same,
    /// On an arbiter each, which share a CPU: what the code itself costs.
    Shared,
    /// On an arbiter and a CPU each: that, and what it costs to wake another CPU.
    Apart,
}

#[derive(Clone, Copy)]
pub struct Case {
    pub verb: Verb,
    pub place: Place,
    name: &'static str,
    messages: u64,
}

impl Case {
    const fn new(name: &'static str, verb: Verb, place: Place, messages: u64) -> Self {
        Self { verb, place, name, messages }
    }

    pub fn cross(&self) -> bool {
        self.place != Place::Same
    }
}

const CASES: &[Case] = &[
    Case::new("tell-same", Verb::Tell, Place::Same, 4 << 20),
    Case::new("tell-shared", Verb::Tell, Place::Shared, 2 << 20),
    Case::new("tell-apart", Verb::Tell, Place::Apart, 1 << 20),
    Case::new("many-same", Verb::Many, Place::Same, 4 << 20),
    Case::new("many-shared", Verb::Many, Place::Shared, 4 << 20),
    Case::new("many-apart", Verb::Many, Place::Apart, 1 << 20),
    Case::new("vector-same", Verb::Vector, Place::Same, 8 << 20),
    Case::new("vector-shared", Verb::Vector, Place::Shared, 4 << 20),
    Case::new("vector-apart", Verb::Vector, Place::Apart, 1 << 20),
    Case::new("ask-same", Verb::Ask, Place::Same, 200_000),
    Case::new("ask-shared", Verb::Ask, Place::Shared, 100_000),
    Case::new("ask-apart", Verb::Ask, Place::Apart, 10_000),
];

type Run = fn(Case, u64);

const SYSTEMS: &[(&str, Run)] = &[
    ("ours", ours::run),
    ("actix", actix_peer::run),
    ("kameo", kameo_peer::run),
    ("ractor", ractor_peer::run),
    ("tokio", tokio_peer::run),
];

/// From after the warm-up to the answer to the last message.
pub struct Account {
    messages: u64,
    wall: Instant,
    cpu: std::time::Duration,
    allocations: u64,
}

impl Account {
    pub fn open(messages: u64) -> Self {
        Self { messages, allocations: allocations::count(), cpu: cpu::own(), wall: Instant::now() }
    }

    pub fn close(self) {
        let wall = self.wall.elapsed().as_nanos() as f64;
        let cpu = cpu::own().saturating_sub(self.cpu).as_nanos() as f64;
        let allocations = (allocations::count() - self.allocations) as f64;
        let n = self.messages as f64;
        println!("{:.2} {:.2} {:.4}", cpu / n, wall / n, allocations / n);
    }
}

fn main() {
    let args = Args::parse();
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    match words[..] {
        ["one", system, case, messages] => one(system, case, messages.parse().expect("how many messages")),
        ["pairs"] => pairs(&args),
        ["instructions"] => instructions(&args),
        _ => {
            eprintln!("mailbox pairs | instructions | one SYSTEM CASE N");
            std::process::exit(2);
        }
    }
}

fn one(system: &str, case: &str, messages: u64) {
    if std::env::var_os("COUNT_ALLOCATIONS").is_some() {
        allocations::start();
    }
    let case = CASES.iter().find(|c| c.name == case).expect("a known case");
    place(case.place);
    // A process with one thread gets a cheaper malloc from glibc. No program with arbiters is one.
    std::thread::spawn(std::thread::park);
    let (_, run) = SYSTEMS.iter().find(|(name, _)| *name == system).expect("a known system");
    run(*case, messages.next_multiple_of(WINDOW));
}

/// Leaves this process one CPU, or two. Where the kernel is free to choose, it puts two threads on one CPU now and then,
/// and a run measures the one thing or the other.
fn place(place: Place) {
    let all = sched_getaffinity(None).expect("the CPUs of this process");
    let mut chosen = CpuSet::new();
    let last = (0..CpuSet::MAX_CPU).rev().filter(|cpu| all.is_set(*cpu));
    last.take(if place == Place::Apart { 2 } else { 1 }).for_each(|cpu| chosen.set(cpu));
    sched_setaffinity(None, &chosen).expect("fewer CPUs");
}

/// Pins the calling thread to the nth of the CPUs that `place` left. The receiver is 0, the sender 1 (or also 0).
pub fn pin(n: usize) {
    let all = sched_getaffinity(None).expect("the CPUs of this process");
    let mut one = CpuSet::new();
    (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).nth(n).into_iter().for_each(|cpu| one.set(cpu));
    if one.count() == 1 {
        sched_setaffinity(None, &one).expect("one CPU");
    }
}

/// `cpu_ns wall_ns allocations` of one run in a process of its own.
fn child(system: &str, case: &Case, messages: u64, counting: bool) -> [f64; 3] {
    let mut command = Command::new(std::env::current_exe().expect("this program's path"));
    command.args(["one", system, case.name, &messages.to_string()]);
    if counting {
        command.env("COUNT_ALLOCATIONS", "1");
    }
    let out = command.output().expect("a child process");
    let text = String::from_utf8_lossy(&out.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let failed = |_| panic!("{system} {}: {}", case.name, String::from_utf8_lossy(&out.stderr));
    numbers.try_into().unwrap_or_else(failed)
}

fn wanted(args: &Args) -> (Vec<&'static Case>, Vec<&'static str>) {
    let case = args.text("case", "");
    let systems = args.text("systems", "ours,actix,kameo,ractor,tokio");
    let cases = CASES.iter().filter(|c| c.name.starts_with(&case)).collect();
    let systems = SYSTEMS.iter().map(|(name, _)| *name).filter(|s| systems.split(',').any(|w| w == *s)).collect();
    (cases, systems)
}

fn pairs(args: &Args) {
    let (cases, systems) = wanted(args);
    let rounds = args.number("pairs", 10);
    println!("load average before: {}\n", load_average());
    println!("| case | system | CPU ns/message | lowest–highest | wall ns/message | ours ÷ it | allocations/message |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for case in cases {
        let runs: Vec<Vec<[f64; 3]>> = (0..rounds)
            .map(|_| systems.iter().map(|system| child(system, case, case.messages, false)).collect())
            .collect();
        for (n, system) in systems.iter().enumerate() {
            let cpu: Vec<f64> = runs.iter().map(|round| round[n][0]).collect();
            let wall: Vec<f64> = runs.iter().map(|round| round[n][1]).collect();
            let ratios: Vec<f64> = runs.iter().map(|round| round[0][0] / round[n][0]).collect();
            let allocations = child(system, case, case.messages / 8, true)[2];
            let (low, high) = cpu.iter().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
            let ratio = if n == 0 { String::new() } else { format!("{:.2}", median(&ratios)) };
            println!(
                "| {} | {system} | {:.1} | {low:.1}–{high:.1} | {:.1} | {ratio} | {allocations:.3} |",
                case.name,
                median(&cpu),
                median(&wall),
            );
        }
    }
    println!("\nload average after: {}", load_average());
}

/// Instructions per message, from two runs of different length: what starts and warms up cancels out.
fn instructions(args: &Args) {
    const SHORT: u64 = 20_480;
    const LONG: u64 = 3 * SHORT;
    let (cases, systems) = wanted(args);
    println!("| case | system | instructions/message | ours ÷ it |");
    println!("|---|---|---:|---:|");
    for case in cases {
        let mut first = None;
        for system in &systems {
            let per = (collected(system, case, LONG) - collected(system, case, SHORT)) / (LONG - SHORT) as f64;
            let ratio = first.map_or(String::new(), |ours: f64| format!("{:.2}", ours / per));
            first.get_or_insert(per);
            println!("| {} | {system} | {per:.0} | {ratio} |", case.name);
        }
    }
}

fn collected(system: &str, case: &Case, messages: u64) -> f64 {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program's path"))
        .args(["one", system, case.name, &messages.to_string()])
        .output()
        .expect("valgrind");
    let text = String::from_utf8_lossy(&out.stderr);
    let line = text.lines().find_map(|l| l.split("Collected :").nth(1));
    line.and_then(|l| l.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
}
