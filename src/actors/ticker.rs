//! The ticker of a mesh: a thread that asks every arbiter ten times a second how late and how busy it is.
//!
//! It is a thread and not a timer of each arbiter, because an arbiter without timers waits for its sockets at less cost
//! (see `alarm`), and because an arbiter's own timer cannot tell how long a message from elsewhere waits. What the
//! arbiter does with a tick: it notes its load, and calls the actors whose alarms are near.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::local::{self, Load};
use super::{alarm, clock};

/// How often every arbiter is asked.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The thread; ends when told to.
pub(crate) struct Ticker {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Ticker {
    /// Ticks for these arbiters until [`stop`](Self::stop).
    pub(crate) fn start(name: String, loads: Vec<Arc<Load>>) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let told = ended.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            while !told.load(Ordering::Acquire) {
                std::thread::park_timeout(TICK);
                for load in &loads {
                    load.tick.ask();
                }
            }
        })?;
        Ok(Self { ended, thread })
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(self) {
        self.ended.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let _joined = self.thread.join();
    }
}

/// A question of the ticker to one arbiter: how late are you?
#[derive(Debug, Default)]
pub(crate) struct Tick {
    asked: parking_lot::Mutex<Option<Instant>>,
    bell: Notify,
}

impl Tick {
    /// Asks; a question still unanswered stays the older one.
    fn ask(&self) {
        self.asked.lock().get_or_insert_with(clock::now);
        self.bell.notify_one();
    }

    /// When the question was asked that has come now.
    async fn asked(&self) -> Instant {
        loop {
            self.bell.notified().await;
            if let Some(at) = self.asked.lock().take() {
                return at;
            }
        }
    }
}

/// Answers the ticks on an arbiter, for as long as that lives.
pub(crate) async fn answer(load: Arc<Load>) {
    alarm::ticks_here();
    let mut before = clock::now();
    let mut cpu_before = thread_cpu();
    loop {
        let asked = load.tick.asked().await;
        let now = clock::now();
        let wall = now.saturating_duration_since(before);
        let cpu = thread_cpu();
        let busy = cpu.saturating_sub(cpu_before).as_micros() * 1_000 / wall.as_micros().max(1);
        load.busy_permille.store(u32::try_from(busy).unwrap_or(1_000).min(1_000), Ordering::Relaxed);
        let late = now.saturating_duration_since(asked).as_micros();
        load.delay_us.store(u32::try_from(late).unwrap_or(u32::MAX), Ordering::Relaxed);
        (before, cpu_before) = (now, cpu);
        alarm::tick(now);
        if let Some(here) = local::current() {
            here.buffers.trim();
        }
    }
}

fn thread_cpu() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
}
