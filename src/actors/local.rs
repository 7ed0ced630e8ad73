//! What one arbiter knows of its own: its actors, counters and buffers. Never shared with another thread.
//!
//! Plain cells, no atomics: whoever wants to read them from elsewhere sends a closure to the arbiter. The one thing
//! others see directly is `Load`, which placement needs without asking.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::buffers::Buffers;
use super::clock;
use super::drain::Unfinished;
use super::mailbox::{ActorId, Controlled};
use super::mesh::Mesh;
use super::metrics::Counters;
use super::protocol::Traffic;
use super::ticker::Tick;
use crate::memory::{Key, PoolGauge, PoolStats, Table, limit_waits};

/// Size of the read buffer that all actors of an arbiter share.
pub(crate) const SCRATCH: usize = 64 << 10;

/// The longest that an actor may wait for a lock: the others on its arbiter wait too.
const LONGEST_WAIT: Duration = Duration::from_micros(100);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

/// The arbiter this thread is, if it is one.
pub(crate) fn current() -> Option<Rc<Local>> {
    CURRENT.try_with(|c| c.try_borrow().ok().and_then(|c| c.clone())).ok().flatten()
}

/// Makes `local` the thread's arbiter (or none); answers what was before.
pub(crate) fn replace(local: Option<Rc<Local>>) -> Option<Rc<Local>> {
    limit_waits(local.is_some().then_some(LONGEST_WAIT));
    CURRENT.with(|c| c.replace(local))
}

/// True where a blocking wait would stop actors.
pub(crate) fn on_event_loop() -> bool {
    current().is_some() || clock::is_virtual() || actix_rt::Arbiter::try_current().is_some()
}

/// What other threads may read of an arbiter at any time.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Actors alive or on their way.
    pub(crate) live: AtomicUsize,
    /// CPU time of the thread per thousand of wall time, over the last tick.
    pub(crate) busy_permille: AtomicU32,
    /// How long the last tick waited for its answer: what a message waits for.
    pub(crate) delay_us: AtomicU32,
    pub(crate) tick: Tick,
    /// The statistics of its pools, once it has started.
    pub(crate) pools: OnceLock<Vec<PoolGauge>>,
}

impl Load {
    pub(crate) fn pools(&self) -> Vec<PoolStats> {
        self.pools.get().into_iter().flatten().map(PoolGauge::stats).collect()
    }
}

/// One actor in the eyes of its arbiter.
pub(crate) struct Entry {
    pub(crate) id: ActorId,
    pub(crate) kind: &'static str,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) parent: Option<ActorId>,
    pub(crate) depth: u16,
    /// When a drain asks it to finish: the highest first.
    pub(crate) level: u16,
    pub(crate) born: Instant,
    pub(crate) control: Arc<dyn Controlled>,
    pub(crate) turns: Cell<u64>,
    pub(crate) handled: Cell<u64>,
    pub(crate) busy: Cell<Duration>,
    pub(crate) longest: Cell<Duration>,
    pub(crate) held: Cell<usize>,
    pub(crate) traffic: Cell<Traffic>,
    /// At the last turn more than half of the messages waited that its mailbox takes.
    pub(crate) crowded: Cell<bool>,
    pub(crate) draining: Cell<bool>,
    pub(crate) restarts: Cell<u32>,
    /// Why it failed the last time, if it is supervised and did.
    pub(crate) last_failure: Cell<Option<&'static str>>,
}

impl Entry {
    pub(crate) fn unfinished(&self, arbiter: usize) -> Unfinished {
        let inbox = self.control.depth().messages;
        Unfinished { id: self.id, kind: self.kind, name: self.name.clone(), arbiter, inbox }
    }
}

pub(crate) struct Local {
    pub(crate) mesh: Mesh,
    pub(crate) index: usize,
    /// Hosts run on the simulator's executor instead of actix's.
    pub(crate) simulated: bool,
    pub(crate) load: Arc<Load>,
    pub(crate) counters: Counters,
    pub(crate) buffers: Buffers,
    pub(crate) scratch: Cell<Vec<u8>>,
    /// Turns of all actors so far.
    pub(crate) turns: Cell<u64>,
    /// Who was ended because a drain had no more time.
    pub(crate) overdue: RefCell<Vec<Unfinished>>,
    entries: RefCell<Entries>,
}

struct Entries {
    /// Bounded by the number of actors of the mesh.
    actors: Table<Rc<Entry>>,
    /// How many live at each level.
    by_level: Vec<usize>,
    waiting: Vec<(u16, oneshot::Sender<()>)>,
}

impl Local {
    pub(crate) fn new(mesh: Mesh, index: usize, simulated: bool, load: Arc<Load>) -> Rc<Self> {
        let buffers = Buffers::new(&mesh.inner.buffers);
        load.pools.get_or_init(|| buffers.gauges());
        Rc::new(Self {
            mesh,
            index,
            simulated,
            load,
            counters: Counters::default(),
            buffers,
            scratch: Cell::default(),
            turns: Cell::default(),
            overdue: RefCell::default(),
            entries: RefCell::new(Entries {
                actors: Table::new(usize::MAX),
                by_level: Vec::new(),
                waiting: Vec::new(),
            }),
        })
    }

    /// Answers the key to leave with.
    pub(crate) fn enter(&self, entry: Rc<Entry>) -> Option<Key> {
        let mut entries = self.entries.borrow_mut();
        let level = usize::from(entry.level);
        if entries.by_level.len() <= level {
            entries.by_level.resize(level + 1, 0);
        }
        if let Some(count) = entries.by_level.get_mut(level) {
            *count += 1;
        }
        entries.actors.insert(entry).ok()
    }

    pub(crate) fn leave(&self, key: Option<Key>, level: u16) {
        let mut entries = self.entries.borrow_mut();
        key.and_then(|key| entries.actors.remove(key));
        if let Some(count) = entries.by_level.get_mut(usize::from(level)) {
            *count = count.saturating_sub(1);
        }
        self.load.live.fetch_sub(1, Ordering::Relaxed);
        self.mesh.one_less();
        if !entries.waiting.is_empty() {
            let waiting = std::mem::take(&mut entries.waiting);
            let (done, still): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(l, _)| entries.none_from(*l));
            entries.waiting = still;
            for (_, tell) in done {
                let _gone = tell.send(());
            }
        }
    }

    /// Remembers, for the report of a drain of the whole mesh, who was ended at its deadline.
    pub(crate) fn note_overdue(&self, entry: &Entry) {
        if self.mesh.inner.draining.load(Ordering::Relaxed) {
            self.overdue.borrow_mut().push(entry.unfinished(self.index));
        }
    }

    pub(crate) fn entries(&self) -> Vec<Rc<Entry>> {
        self.entries.borrow().actors.iter().map(|(_, entry)| entry.clone()).collect()
    }

    pub(crate) fn find_entry(&self, number: u64) -> Option<Rc<Entry>> {
        let entries = self.entries.borrow();
        entries.actors.iter().map(|(_, entry)| entry).find(|entry| entry.id.0 == number).cloned()
    }

    /// Looks at each actor, in no order, without keeping any.
    pub(crate) fn each_entry(&self, mut look: impl FnMut(&Entry)) {
        self.entries.borrow().actors.iter().for_each(|(_, entry)| look(entry));
    }

    pub(crate) fn highest_level(&self) -> Option<u16> {
        let entries = self.entries.borrow();
        entries.by_level.iter().rposition(|&n| n > 0).and_then(|level| u16::try_from(level).ok())
    }

    /// Tells when no actor lives at `level` or higher.
    pub(crate) fn when_none_from(&self, level: u16, tell: oneshot::Sender<()>) {
        let mut entries = self.entries.borrow_mut();
        if entries.none_from(level) {
            let _gone = tell.send(());
        } else {
            entries.waiting.push((level, tell));
        }
    }
}

impl Entries {
    fn none_from(&self, level: u16) -> bool {
        self.by_level.iter().skip(usize::from(level)).all(|&n| n == 0)
    }
}

/// Waits for `future` on a thread that runs no event loop. `None` when `within` passed first.
pub(crate) fn block_on_plain_thread<F: Future>(within: Duration, future: F) -> Option<F::Output> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let end = clock::later(clock::now(), within);
    let mut future = Box::pin(future);
    loop {
        if let Poll::Ready(out) = Pin::as_mut(&mut future).poll(&mut cx) {
            return Some(out);
        }
        let left = end.saturating_duration_since(clock::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}
