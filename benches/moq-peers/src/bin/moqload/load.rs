//! One thread of the load: a pinned event loop with its share of the subscribers, and on the first the publisher.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use portway_moq_peers::connection::Session;
use portway_moq_peers::kit::histogram::Histogram;
use portway_moq_peers::wire::{self, GroupReader};
use tokio::task::{LocalSet, spawn_local};

/// Windows of time: nothing counts in number 0.
pub(crate) const MEASURED: usize = 1;
pub(crate) const WITH_STALLED: usize = 2;
const WINDOWS: usize = 3;

/// How often a thread looks for what the main thread wants.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    pub(crate) rate: f64,
    pub(crate) size: usize,
    pub(crate) subscribers: usize,
    pub(crate) cpus: Vec<usize>,
}

/// What the threads tell each other.
pub(crate) struct Shared {
    began: Instant,
    /// The window that time is in.
    pub(crate) window: AtomicUsize,
    /// Subscribers that may be there, and that have got an object.
    pub(crate) admitted: AtomicUsize,
    pub(crate) ready: AtomicUsize,
    published: AtomicBool,
    /// The publisher is to be silent.
    pub(crate) paused: AtomicBool,
    /// Objects, by window.
    pub(crate) sent: [AtomicU64; WINDOWS],
    /// One more subscriber is to stop reading; it has; the relay has ended its session.
    pub(crate) stall: AtomicBool,
    pub(crate) stalled: AtomicBool,
    pub(crate) stalled_closed: AtomicBool,
    pub(crate) stop: AtomicBool,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            window: AtomicUsize::new(0),
            admitted: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            published: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            sent: Default::default(),
            stall: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            stalled_closed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }
}

#[derive(Default)]
pub(crate) struct Window {
    /// Until a subscriber had the whole object.
    pub(crate) took: Histogram,
    /// Until the relay had acknowledged it to the publisher.
    pub(crate) acked: Histogram,
    pub(crate) bytes: u64,
}

#[derive(Default)]
pub(crate) struct Account {
    pub(crate) windows: [Window; WINDOWS],
}

impl Account {
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, other) in self.windows.iter_mut().zip(&other.windows) {
            mine.took.merge(&other.took);
            mine.acked.merge(&other.acked);
            mine.bytes += other.bytes;
        }
    }
}

/// Everything of one thread, until it is told to stop.
pub(crate) fn run(plan: &'static Plan, shared: &'static Shared, thread: usize) -> Account {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(plan.cpus[thread]);
    rustix::thread::sched_setaffinity(None, &cpus).expect("--cpus: there is such a CPU");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let account = Rc::new(RefCell::new(Account::default()));
    LocalSet::new().block_on(&runtime, async {
        if thread == 0 {
            spawn_local(publish(plan, shared, account.clone()));
        }
        for number in (thread..plan.subscribers).step_by(plan.cpus.len()) {
            while !shared.published.load(Relaxed) || shared.admitted.load(Relaxed) <= number {
                tokio::time::sleep(LOOK).await;
            }
            spawn_local(subscribe(plan, shared, account.clone()));
        }
        let last = thread + 1 == plan.cpus.len();
        while !shared.stop.load(Relaxed) {
            if last && shared.stall.load(Relaxed) {
                stall(plan, shared).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    account.take()
}

/// Publishes at its pace, whatever becomes of it.
async fn publish(plan: &'static Plan, shared: &'static Shared, account: Rc<RefCell<Account>>) {
    let session = Rc::new(Session::open(plan.target, true).await);
    let _kept = session.ask(&wire::publish_namespace()).await;
    spawn_local({
        let session = session.clone();
        async move {
            session.answer().await;
        }
    });
    shared.published.store(true, Relaxed);
    let mut object = Vec::new();
    let begin = Instant::now();
    for sequence in 0_u64.. {
        let at = begin + Duration::from_secs_f64(sequence as f64 / plan.rate);
        if at > Instant::now() {
            tokio::time::sleep_until(at.into()).await;
        }
        if shared.paused.load(Relaxed) {
            continue;
        }
        let (window, sent) = (shared.window.load(Relaxed), Instant::now());
        wire::group(sequence, sent - shared.began, plan.size, &mut object);
        let mut stream = session.connection.open_uni().await.expect("the relay keeps the publisher");
        stream.write_all(&object).await.expect("the relay reads");
        stream.finish().expect("not yet finished");
        shared.sent[window].fetch_add(1, Relaxed);
        let account = account.clone();
        spawn_local(async move {
            let code = stream.stopped().await.expect("the relay keeps the publisher");
            assert!(code.is_none(), "the relay wants no object: {code:?}");
            account.borrow_mut().windows[window].acked.add(sent.elapsed());
        });
    }
}

/// Reads all there is of the track.
async fn subscribe(plan: &'static Plan, shared: &'static Shared, account: Rc<RefCell<Account>>) {
    let session = Session::open(plan.target, true).await;
    let _kept = session.ask(&wire::subscribe()).await;
    let none_yet = Rc::new(Cell::new(true));
    loop {
        let mut stream = session.connection.accept_uni().await.expect("the relay keeps its subscribers");
        let (account, none_yet) = (account.clone(), none_yet.clone());
        // Groups that overtake each other are none the later for it.
        spawn_local(async move {
            let mut reader = GroupReader::default();
            while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                let Some((sent, length)) = reader.take(&chunk.bytes) else { continue };
                let mut account = account.borrow_mut();
                let window = &mut account.windows[shared.window.load(Relaxed)];
                window.took.add(shared.began.elapsed().saturating_sub(sent));
                window.bytes += length;
                if none_yet.replace(false) {
                    shared.ready.fetch_add(1, Relaxed);
                }
            }
        });
    }
}

/// Subscribes, and reads nothing from the first object on, until it is told to go.
async fn stall(plan: &'static Plan, shared: &'static Shared) {
    let session = Session::open(plan.target, false).await;
    let _kept = session.ask(&wire::subscribe()).await;
    // The relay's control stream and the first group; to let go of one would be to stop it.
    let mut held = Vec::new();
    while held.len() < 2 {
        held.push(session.connection.accept_uni().await.expect("a stream"));
    }
    shared.stalled.store(true, Relaxed);
    while shared.stall.load(Relaxed) && !shared.stop.load(Relaxed) {
        tokio::time::sleep(LOOK).await;
        if session.connection.close_reason().is_some() {
            shared.stalled_closed.store(true, Relaxed);
        }
    }
    session.connection.close(0_u32.into(), b"");
}
