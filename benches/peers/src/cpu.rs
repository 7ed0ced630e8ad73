//! CPU time: of this process, of others, of the whole machine.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// CPU time this process has used, all its threads together.
pub fn own() -> Duration {
    let at = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(at.tv_sec.unsigned_abs(), at.tv_nsec.unsigned_abs() as u32)
}

/// CPU time a living process has used: the scheduler's own account where there is one, else ticks of 10 ms.
pub fn of(pid: u32) -> Duration {
    let mut total = 0;
    if let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) {
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    if total > 0 { Duration::from_nanos(total) } else { ticks(pid) }
}

fn ticks(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    Duration::from_secs_f64((field(11) + field(12)) / rustix::param::clock_ticks_per_second() as f64)
}

/// Bytes of a living process that are in memory.
pub fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

fn machine() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or("").split_whitespace().skip(1);
    let busy: f64 =
        fields.enumerate().filter(|(n, _)| matches!(n, 0..=2 | 5..=7)).filter_map(|(_, f)| f.parse::<f64>().ok()).sum();
    Duration::from_secs_f64(busy / rustix::param::clock_ticks_per_second() as f64)
}

/// An account that runs from `start` to `stop`.
pub struct Meter {
    server: Option<u32>,
    began: Instant,
    own: Duration,
    of_server: Duration,
    all: Duration,
}

/// Seconds spent while a meter ran.
pub struct Spent {
    pub wall: f64,
    pub own: f64,
    pub server: f64,
    /// By neither: above a few percent of `wall` the tail latency of that run is no evidence.
    pub others: f64,
}

impl Meter {
    pub fn start(server: Option<u32>) -> Self {
        let of_server = server.map_or(Duration::ZERO, of);
        Self { server, own: own(), of_server, all: machine(), began: Instant::now() }
    }

    pub fn stop(&self) -> Spent {
        let wall = self.began.elapsed().as_secs_f64();
        let own = own().saturating_sub(self.own).as_secs_f64();
        let server = self.server.map_or(Duration::ZERO, of).saturating_sub(self.of_server).as_secs_f64();
        let others = (machine().saturating_sub(self.all).as_secs_f64() - own - server).max(0.0);
        Spent { wall, own, server, others }
    }
}
