//! The deterministic test kit: `Mesh::sim` runs the same protocols on one thread, on a virtual clock, in an order
//! that a seed decides.
//!
//! Hosts bypass actix here: the simulator's own executor picks at random among everything that can run (actors,
//! closures sent to an arbiter, the test's own future), polls it, and lets one microsecond pass. When nothing can
//! run, the clock jumps to the next timer. Two runs with the same seed take the same decisions: compare
//! [`Sim::trace`]. A test made with [`for_seeds`] names the seed it failed with, and `PORTWAY_SEED=n` runs that one
//! alone.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::clock::{Entered, VirtualClock, later};
use super::local::{self, Local};
use super::mesh::Mesh;
use super::sim_random::Random;

/// What one poll costs in virtual time; so a loop that never ends still meets its deadline.
const STEP: Duration = Duration::from_micros(1);

thread_local! {
    static CORE: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// A simulated mesh. It rules the thread it was made on until it is dropped: one at a time.
pub struct Sim {
    mesh: Mesh,
    core: Rc<Core>,
    entered: Option<Entered>,
}

struct Core {
    clock: Arc<VirtualClock>,
    random: RefCell<Random>,
    tasks: RefCell<Vec<Option<Task>>>,
    queue: Arc<Queue>,
    locals: RefCell<Vec<Rc<Local>>>,
    trace: Cell<u64>,
    steps: Cell<u64>,
}

struct Task {
    /// `None`: the test's own future, which lives on no arbiter.
    arbiter: Option<usize>,
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

/// What can run; also reached by wakers and by senders on other threads.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<Runnable>,
}

#[derive(Default)]
struct Runnable {
    tasks: Vec<usize>,
    injected: Vec<VecDeque<Box<dyn FnOnce() + Send>>>,
    over: bool,
}

struct TaskWaker {
    task: usize,
    queue: Arc<Queue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut state = self.queue.state.lock();
        if !state.over && !state.tasks.contains(&self.task) {
            state.tasks.push(self.task);
        }
    }
}

/// The way for closures onto a simulated arbiter.
pub(crate) struct Injector {
    queue: Arc<Queue>,
    arbiter: usize,
}

impl Injector {
    pub(crate) fn run(&self, work: Box<dyn FnOnce() + Send>) -> bool {
        let mut state = self.queue.state.lock();
        if state.over {
            return false;
        }
        match state.injected.get_mut(self.arbiter) {
            Some(waiting) => {
                waiting.push_back(work);
                true
            }
            None => false,
        }
    }
}

enum Pick {
    Task(usize),
    Work(usize, Box<dyn FnOnce() + Send>),
}

impl Mesh {
    /// A simulated mesh of two arbiters.
    #[must_use]
    pub fn sim(seed: u64) -> Sim {
        Self::sim_with(seed, 2)
    }

    /// A simulated mesh of `arbiters` arbiters, all on the calling thread.
    #[must_use]
    pub fn sim_with(seed: u64, arbiters: usize) -> Sim {
        Sim::new(seed, arbiters.max(1))
    }
}

impl Sim {
    fn new(seed: u64, arbiters: usize) -> Self {
        let clock = VirtualClock::new();
        let entered = clock.enter();
        let queue = Arc::new(Queue::default());
        queue.state.lock().injected.resize_with(arbiters + 1, VecDeque::new);
        let injectors = (0..=arbiters)
            .map(|arbiter| (Arc::from(format!("sim-{arbiter}")), Injector { queue: queue.clone(), arbiter }))
            .collect();
        let mesh = Mesh::simulated(injectors);
        let locals = mesh
            .inner
            .seats
            .iter()
            .enumerate()
            .map(|(index, seat)| Local::new(mesh.clone(), index, true, seat.load.clone()))
            .collect();
        let core = Rc::new(Core {
            clock,
            random: RefCell::new(Random::new(seed)),
            tasks: RefCell::default(),
            queue,
            locals: RefCell::new(locals),
            trace: Cell::new(0xcbf2_9ce4_8422_2325),
            steps: Cell::new(0),
        });
        CORE.with(|c| *c.borrow_mut() = Some(core.clone()));
        Self { mesh, core, entered: Some(entered) }
    }

    /// The simulated mesh: give it to the code under test as if it were a real one.
    #[must_use]
    pub const fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.core.clock.now()
    }

    /// A number that stands for all decisions taken so far: equal for equal seeds and equal code.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.core.trace.get()
    }

    /// Polls made so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.core.steps.get()
    }

    /// Randomness for the test itself, decided by the same seed.
    #[must_use]
    pub fn random(&self) -> Random {
        self.core.random.borrow_mut().fork()
    }

    /// Runs one thing that can run. False if nothing can without time passing.
    pub fn step(&mut self) -> bool {
        self.core.step()
    }

    /// Runs for `time` of virtual time.
    pub fn run_for(&mut self, time: Duration) {
        let end = later(self.now(), time);
        self.run_while(end, || true);
    }

    /// Runs until `done` answers true, at most for `time` of virtual time. Answers whether it did.
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut() -> bool) -> bool {
        let end = later(self.now(), time);
        let mut reached = done();
        if !reached {
            self.run_while(end, || {
                reached = done();
                !reached
            });
        }
        reached
    }

    /// Runs until `future` is ready, at most for `time` of virtual time.
    pub fn block_on<T: 'static>(&mut self, time: Duration, future: impl Future<Output = T> + 'static) -> Option<T> {
        let out = Rc::new(RefCell::new(None));
        let result = out.clone();
        self.core.add(None, async move {
            let value = future.await;
            *result.borrow_mut() = Some(value);
        });
        self.run_until(time, || out.borrow().is_some());
        out.borrow_mut().take()
    }

    fn run_while(&self, end: Instant, mut go_on: impl FnMut() -> bool) {
        while self.now() < end {
            if !self.core.step() {
                match self.core.clock.next() {
                    Some(at) if at <= end => self.core.clock.advance(at),
                    Some(_) | None => self.core.clock.advance(end),
                }
            }
            if !go_on() {
                return;
            }
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let left = {
            let mut state = self.core.queue.state.lock();
            state.over = true;
            std::mem::take(&mut state.injected)
        };
        let tasks = std::mem::take(&mut *self.core.tasks.borrow_mut());
        for task in tasks.into_iter().flatten() {
            self.core.on_arbiter(task.arbiter, || drop(task.future));
        }
        drop(left);
        CORE.with(|c| *c.borrow_mut() = None);
        self.core.locals.borrow_mut().clear();
        self.entered = None;
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("steps", &self.steps()).finish_non_exhaustive()
    }
}

impl Core {
    fn add(&self, arbiter: Option<usize>, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        let task = tasks.len();
        let waker = Waker::from(Arc::new(TaskWaker { task, queue: self.queue.clone() }));
        waker.wake_by_ref();
        tasks.push(Some(Task { arbiter, future: Box::pin(future), waker }));
    }

    fn step(&self) -> bool {
        let Some(pick) = self.pick() else { return false };
        self.steps.set(self.steps.get() + 1);
        let now = self.clock.now();
        self.clock.advance(later(now, STEP));
        match pick {
            Pick::Work(arbiter, work) => {
                self.note(arbiter as u64 | 1 << 32);
                self.on_arbiter(Some(arbiter), work);
            }
            Pick::Task(number) => {
                self.note(number as u64);
                self.poll(number);
            }
        }
        true
    }

    fn pick(&self) -> Option<Pick> {
        let mut state = self.queue.state.lock();
        let busy: Vec<usize> =
            state.injected.iter().enumerate().filter(|(_, waiting)| !waiting.is_empty()).map(|(i, _)| i).collect();
        let choices = state.tasks.len() + busy.len();
        if choices == 0 {
            return None;
        }
        let choice = self.random.borrow_mut().below(choices as u64) as usize;
        if choice < state.tasks.len() {
            return Some(Pick::Task(state.tasks.swap_remove(choice)));
        }
        let arbiter = *busy.get(choice - state.tasks.len())?;
        let work = state.injected.get_mut(arbiter)?.pop_front()?;
        Some(Pick::Work(arbiter, work))
    }

    fn poll(&self, number: usize) {
        let task = self.tasks.borrow_mut().get_mut(number).and_then(Option::take);
        let Some(mut task) = task else { return };
        let waker = task.waker.clone();
        let arbiter = task.arbiter;
        let polled = self.on_arbiter(arbiter, || task.future.as_mut().poll(&mut Context::from_waker(&waker)));
        match polled {
            Poll::Ready(()) => self.on_arbiter(arbiter, || drop(task)),
            Poll::Pending => {
                if let Some(place) = self.tasks.borrow_mut().get_mut(number) {
                    *place = Some(task);
                }
            }
        }
    }

    /// Runs `f` as the thread of that arbiter would.
    fn on_arbiter<R>(&self, arbiter: Option<usize>, f: impl FnOnce() -> R) -> R {
        let local = arbiter.and_then(|index| self.locals.borrow().get(index).cloned());
        let before = local::replace(local);
        let out = f();
        local::replace(before);
        out
    }

    fn note(&self, what: u64) {
        let mixed = (self.trace.get() ^ what).wrapping_mul(0x0000_0100_0000_01b3);
        self.trace.set(mixed);
    }
}

/// Runs a host's future on a simulated arbiter.
pub(crate) fn run_local(arbiter: usize, future: impl Future<Output = ()> + 'static) {
    let core = CORE.with(|c| c.borrow().clone());
    if let Some(core) = core {
        core.add(Some(arbiter), future);
    }
}

/// Runs a test with the seeds `0..count`, or with `PORTWAY_SEED` alone if that is set.
///
/// # Panics
/// With the test's own panic, after naming the seed on standard error; and if `PORTWAY_SEED` is not a number.
#[expect(clippy::print_stderr, reason = "a test tells its seed where test output goes")]
#[expect(clippy::panic, reason = "called by tests alone: a seed that is mistyped must not look like a pass")]
pub fn for_seeds(count: u64, mut test: impl FnMut(u64)) {
    let only = std::env::var("PORTWAY_SEED").ok().map(|seed| match seed.parse() {
        Ok(seed) => seed,
        Err(_) => panic!("PORTWAY_SEED={seed} is not a number"),
    });
    let seeds = only.map_or(0..count, |seed: u64| seed..seed.saturating_add(1));
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("failed with seed {seed}: run again with PORTWAY_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
