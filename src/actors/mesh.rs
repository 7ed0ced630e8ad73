//! The mesh: a fixed set of arbiters (threads with an event loop each) and the actors on them.
//!
//! `Mesh::start` owns an actix System on a thread of its own, so it works from a plain thread, inside a tokio runtime
//! and beside another actix System, any number of times in one process. The System's thread is an arbiter too, for
//! rare work (`Place::System`), never for data. A `Mesh` is a handle: dropping it stops nothing. Call `drain` or
//! `stop`; after that every spawn is refused and every mailbox is closed.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use actix_rt::{Arbiter, ArbiterHandle, System};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::buffers::BufferLimits;
use super::host::{self, Host, Identity, Runner};
use super::local::{self, Load, Local};
use super::mailbox::{ActorId, Inbox, Mail, Shared};
pub use super::placement::Place;
use super::placement::{self, Weight};
use super::protocol::{Exit, Fault, Protocol};
use super::registry::Registry;
use super::sim::Injector;
use super::supervise::Supervision;
use super::ticker::{self, Ticker};
use crate::memory::{Budget, PoolStats};

/// How a mesh is made.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// Arbiters for data; `None`: one for each core this process may use.
    pub arbiters: Option<NonZeroUsize>,
    /// Arbiters beside those, by name: what asks for one ([`Mesh::apart`]) gets it, and no other actor is placed there
    /// by load, hash or number. They are never pinned.
    pub apart: Vec<String>,
    /// Pins arbiter n to the nth core this process may use.
    pub pin_cores: bool,
    /// Actors that may live at once; more are refused. Default one million.
    pub max_actors: usize,
    /// First part of the thread names. Default `portway`.
    pub name: String,
    /// Buffers of each size (2, 16 and 64 KiB) that an arbiter may have in its pools; 0: no pools, every buffer comes from
    /// the allocator. Default 1,024.
    pub buffers: usize,
    /// What the pools take their memory from; `None`: bounded by `buffers` alone.
    pub memory: Option<Budget>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            arbiters: None,
            apart: Vec::new(),
            pin_cores: false,
            max_actors: 1_000_000,
            name: "portway".to_owned(),
            buffers: 1_024,
            memory: None,
        }
    }
}

/// How one actor is made.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// The bounds of its mailbox.
    pub inbox: Inbox,
    /// A name for the actor tree and logs; need not be unique and reserves nothing (see [`Mesh::register`]).
    pub name: Option<Arc<str>>,
}

impl Spec {
    /// A named actor with the default mailbox.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self { inbox: Inbox::default(), name: Some(name.into()) }
    }

    /// The same with other mailbox bounds.
    #[must_use]
    pub fn inbox(mut self, messages: usize, bytes: usize) -> Self {
        self.inbox = Inbox { messages, bytes };
        self
    }
}

/// Why an actor was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnError {
    /// As many actors live as the mesh allows.
    Full,
    /// The mesh is draining and takes no new work.
    Draining,
    /// The arbiter does not exist or has stopped.
    Stopped,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "as many actors live as the mesh allows",
            Self::Draining => "the mesh is draining",
            Self::Stopped => "the arbiter does not exist or has stopped",
        })
    }
}

impl std::error::Error for SpawnError {}

/// Why a mesh could not start.
#[derive(Debug)]
pub struct MeshError(io::Error);

impl fmt::Display for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a thread or its event loop could not be made: {}", self.0)
    }
}

impl std::error::Error for MeshError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A blocking call was made on a thread that runs actors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnArbiter;

impl fmt::Display for OnArbiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a blocking call on a thread that runs actors")
    }
}

impl std::error::Error for OnArbiter {}

/// A handle of the mesh; clones share it. Dropping it ends nothing: the threads go on until [`stop`](Self::stop) is
/// called.
#[derive(Clone)]
pub struct Mesh {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    /// The data arbiters, those apart, then the System's thread.
    pub(crate) seats: Vec<Seat>,
    /// How many carry data of everybody.
    shared: usize,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) draining: AtomicBool,
    next_id: AtomicU64,
    live: AtomicUsize,
    turn: AtomicU64,
    max_actors: usize,
    pub(crate) buffers: BufferLimits,
    ending: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

/// An arbiter as others see it.
pub(crate) struct Seat {
    pub(crate) name: Arc<str>,
    pub(crate) load: Arc<Load>,
    handle: Handle,
}

enum Handle {
    Actix(ArbiterHandle),
    Simulated(Injector),
}

type Work = Box<dyn FnOnce() + Send>;

impl Seat {
    pub(crate) fn run(&self, work: Work) -> bool {
        match &self.handle {
            Handle::Actix(handle) => handle.spawn_fn(work),
            Handle::Simulated(injector) => injector.run(work),
        }
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("arbiters", &self.arbiters()).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`MeshError`] when the system gives no thread or no event loop; nothing is left running then.
    pub fn start(config: MeshConfig) -> Result<Self, MeshError> {
        let cores = allowed_cores();
        let count = config.arbiters.map_or_else(|| cores.len().max(1), NonZeroUsize::get);
        let (started, starting) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let prefix = config.name.clone();
        let apart = config.apart.len();
        let loads: Vec<Arc<Load>> = (0..=count + apart).map(|_| Arc::default()).collect();
        let ticked = loads.clone();
        let pin = config.pin_cores;
        let thread = std::thread::Builder::new()
            .name(format!("{prefix}-system"))
            .spawn(move || run_system(&prefix, ticked, pin.then_some(cores), &config.apart, &started, stopped))
            .map_err(MeshError)?;
        let handles = match starting.recv() {
            Ok(Ok(handles)) => handles,
            Ok(Err(error)) => {
                let _joined = thread.join();
                return Err(MeshError(error));
            }
            Err(_) => {
                let _joined = thread.join();
                return Err(MeshError(io::Error::other("the system thread ended while it started")));
            }
        };
        let seats = handles
            .into_iter()
            .zip(loads)
            .map(|((name, handle), load)| Seat { name, load, handle: Handle::Actix(handle) })
            .collect();
        let buffers = BufferLimits { each: config.buffers, budget: config.memory };
        let mesh = Self::assemble(seats, apart, config.max_actors, buffers, Some((stop, thread)));
        for (index, seat) in mesh.inner.seats.iter().enumerate() {
            let (mesh, load) = (mesh.clone(), seat.load.clone());
            seat.run(Box::new(move || {
                local::replace(Some(Local::new(mesh, index, false, load.clone())));
                actix_rt::spawn(ticker::answer(load));
            }));
        }
        Ok(mesh)
    }

    pub(crate) fn simulated(injectors: Vec<(Arc<str>, Injector)>) -> Self {
        let seats = injectors
            .into_iter()
            .map(|(name, injector)| Seat { name, load: Arc::default(), handle: Handle::Simulated(injector) })
            .collect();
        let MeshConfig { max_actors, buffers, memory, .. } = MeshConfig::default();
        Self::assemble(seats, 0, max_actors, BufferLimits { each: buffers, budget: memory }, None)
    }

    fn assemble(
        seats: Vec<Seat>,
        apart: usize,
        max_actors: usize,
        buffers: BufferLimits,
        ending: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                shared: seats.len().saturating_sub(1 + apart),
                seats,
                registry: Mutex::default(),
                draining: AtomicBool::new(false),
                next_id: AtomicU64::new(1),
                live: AtomicUsize::new(0),
                turn: AtomicU64::new(0),
                max_actors,
                buffers,
                ending: Mutex::new(ending),
            }),
        }
    }

    /// How many arbiters carry data of everybody.
    #[must_use]
    pub fn arbiters(&self) -> usize {
        self.inner.shared
    }

    /// The number of the arbiter apart that was made with this name.
    #[must_use]
    pub fn apart(&self, name: &str) -> Option<usize> {
        let seats = self.inner.seats.iter().enumerate().take(self.carrying()).skip(self.inner.shared);
        seats.filter(|(_, seat)| *seat.name == *name).map(|(index, _)| index).next()
    }

    /// All arbiters but the System's thread, whose number this is.
    pub(super) fn carrying(&self) -> usize {
        self.inner.seats.len().saturating_sub(1)
    }

    /// The number of the data arbiter the caller runs on, if it is one of this mesh.
    #[must_use]
    pub fn here(&self) -> Option<usize> {
        local::current().filter(|here| here.mesh.is(self) && here.index < self.arbiters()).map(|here| here.index)
    }

    /// What the buffer pools of each arbiter have done, by arbiter, then by size. Readable after the end as well: what
    /// is `out` then was leaked.
    #[must_use]
    pub fn pools(&self) -> Vec<(Arc<str>, Vec<PoolStats>)> {
        self.inner.seats.iter().map(|seat| (seat.name.clone(), seat.load.pools())).collect()
    }

    /// How many actors live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.inner.live.load(Ordering::Relaxed)
    }

    /// By how much the last tick of an arbiter was late: what a message waits for there at least. Measured every
    /// 100 ms; a listener sheds new connections by it.
    #[must_use]
    pub fn delay(&self, arbiter: usize) -> Duration {
        let us = self.inner.seats.get(arbiter).map_or(0, |seat| seat.load.delay_us.load(Ordering::Relaxed));
        Duration::from_micros(u64::from(us))
    }

    /// The actix handle of an arbiter, to start stock actix actors on it with `Actor::start_in_arbiter`. `None` in a
    /// simulation and for a number beyond the last.
    #[must_use]
    pub fn actix(&self, arbiter: usize) -> Option<ArbiterHandle> {
        self.inner.seats.get(arbiter).and_then(|seat| match &seat.handle {
            Handle::Actix(handle) => Some(handle.clone()),
            Handle::Simulated(_) => None,
        })
    }

    /// Starts an actor: `make` runs on the arbiter that `place` names, and what it makes never leaves it. If `make`
    /// panics, the actor has ended with that panic.
    ///
    /// # Errors
    /// See [`SpawnError`]; nothing was started then.
    pub fn spawn<P: Protocol>(
        &self,
        place: Place,
        spec: Spec,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        self.spawn_under(None, place, spec, make)
    }

    pub(crate) fn spawn_under<P: Protocol>(
        &self,
        parent: Option<(ActorId, u16)>,
        place: Place,
        spec: Spec,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        let (unstarted, index, identity) = self.admit::<P>(parent, place, spec)?;
        let mail = unstarted.mail();
        let here = local::current().filter(|here| here.index == index && here.mesh.is(self));
        if let Some(here) = here {
            unstarted.start(&here, identity, make);
            return Ok(mail);
        }
        let seat = self.inner.seats.get(index).ok_or(SpawnError::Stopped)?;
        let sent = seat.run(Box::new(move || {
            if let Some(here) = local::current() {
                unstarted.start(&here, identity, make);
            }
        }));
        if sent { Ok(mail) } else { Err(SpawnError::Stopped) }
    }

    /// Starts an actor on the arbiter `here`, which the caller runs on.
    pub(crate) fn spawn_local<P: Protocol>(
        &self,
        here: &std::rc::Rc<Local>,
        (parent, depth): (ActorId, u16),
        spec: Spec,
        make: impl FnOnce() -> P + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        let (unstarted, _, identity) = self.admit::<P>(Some((parent, depth)), Place::Here, spec)?;
        let mail = unstarted.mail();
        unstarted.start(here, identity, make);
        Ok(mail)
    }

    pub(crate) fn spawn_supervised<P: Protocol>(
        &self,
        group: Arc<Supervision>,
        place: Place,
        spec: Spec,
        make: impl FnMut() -> P + Send + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        let (unstarted, index, identity) = self.admit::<P>(None, place, spec)?;
        if !group.enter(unstarted.shared.clone()) {
            return Err(SpawnError::Stopped);
        }
        let mail = unstarted.mail();
        let seat = self.inner.seats.get(index).ok_or(SpawnError::Stopped)?;
        let keeper = group.clone();
        let sent = seat.run(Box::new(move || {
            if let Some(here) = local::current() {
                unstarted.keep(&here, identity, Box::new(make), keeper);
            }
        }));
        if !sent {
            group.leave(mail.id().0);
            return Err(SpawnError::Stopped);
        }
        Ok(mail)
    }

    /// As [`spawn`](Self::spawn), and answers the actix address of the host as well, through which stock actix actors
    /// reach it with [`Deliver`](super::Deliver).
    ///
    /// # Errors
    /// See [`SpawnError`]. In a simulation there is no actix: `Stopped`.
    pub fn spawn_with_addr<P: Protocol>(
        &self,
        place: Place,
        spec: Spec,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Result<WithAddr<P>, SpawnError> {
        let (unstarted, index, identity) = self.admit::<P>(None, place, spec)?;
        let mail = unstarted.mail();
        let arbiter = self.actix(index).filter(ArbiterHandle::alive).ok_or(SpawnError::Stopped)?;
        let addr = actix::Actor::start_in_arbiter(&arbiter, move |_| {
            let shared = unstarted.shared.clone();
            let runner = local::current().and_then(|here| unstarted.make(&here, identity, make));
            Host::new(runner, shared)
        });
        Ok((mail, addr))
    }

    fn admit<P: Protocol>(
        &self,
        parent: Option<(ActorId, u16)>,
        place: Place,
        spec: Spec,
    ) -> Result<(Unstarted<P>, usize, Identity), SpawnError> {
        if self.inner.draining.load(Ordering::Acquire) && place != Place::System {
            return Err(SpawnError::Draining);
        }
        let index = self.index(place)?;
        let seat = self.inner.seats.get(index).ok_or(SpawnError::Stopped)?;
        if self.inner.live.fetch_add(1, Ordering::Relaxed) >= self.inner.max_actors {
            self.inner.live.fetch_sub(1, Ordering::Relaxed);
            return Err(SpawnError::Full);
        }
        seat.load.live.fetch_add(1, Ordering::Relaxed);
        let id = ActorId(self.inner.next_id.fetch_add(1, Ordering::Relaxed));
        let unstarted = Unstarted {
            shared: Shared::new(id, P::KIND, spec.inbox, P::size),
            mesh: self.clone(),
            load: seat.load.clone(),
            taken: false,
        };
        let identity = Identity {
            name: spec.name,
            parent: parent.map(|(id, _)| id),
            depth: parent.map_or(0, |(_, depth)| depth.saturating_add(1)),
        };
        Ok((unstarted, index, identity))
    }

    fn index(&self, place: Place) -> Result<usize, SpawnError> {
        let (count, carrying) = (self.arbiters(), self.carrying());
        Ok(match place {
            Place::Here => match local::current().filter(|here| here.mesh.is(self)) {
                Some(here) => here.index,
                None => self.least_loaded(),
            },
            Place::On(index) if index < carrying => index,
            Place::On(_) => return Err(SpawnError::Stopped),
            Place::Hash(key) => placement::by_hash(key, count),
            Place::Id(bits) => (bits % count.max(1) as u64) as usize,
            Place::LeastLoaded => self.least_loaded(),
            Place::System => carrying,
        })
    }

    fn least_loaded(&self) -> usize {
        let weights: Vec<Weight> = self
            .inner
            .seats
            .iter()
            .take(self.arbiters())
            .map(|seat| Weight {
                live: seat.load.live.load(Ordering::Relaxed),
                busy_permille: seat.load.busy_permille.load(Ordering::Relaxed),
            })
            .collect();
        placement::least_loaded(&weights, self.inner.turn.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn one_less(&self) {
        self.inner.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends all arbiters and joins their threads. What actors still held is dropped; see `drain` for the gentle way.
    /// A second call does nothing. In a simulation there are no threads to end: its actors end when the `Sim` is
    /// dropped, and this only refuses new ones.
    ///
    /// # Errors
    /// [`OnArbiter`] when called on a thread of this mesh, which cannot wait for itself; nothing is stopped then.
    pub fn stop(&self) -> Result<(), OnArbiter> {
        if local::current().is_some_and(|here| here.mesh.is(self)) {
            return Err(OnArbiter);
        }
        self.inner.draining.store(true, Ordering::Release);
        let ending = self.inner.ending.lock().take();
        if let Some((stop, thread)) = ending {
            let _gone = stop.send(());
            let _joined = thread.join();
        }
        Ok(())
    }
}

/// The mailbox of an actor and the actix address of its host.
pub type WithAddr<P> = (Mail<<P as Protocol>::Msg>, actix::Addr<Host<P>>);

/// An actor admitted and not yet made. If its arbiter never gets to it, whoever holds the mailbox learns that.
struct Unstarted<P: Protocol> {
    shared: Arc<Shared<P::Msg>>,
    mesh: Mesh,
    load: Arc<Load>,
    taken: bool,
}

impl<P: Protocol> Unstarted<P> {
    fn mail(&self) -> Mail<P::Msg> {
        Mail { shared: self.shared.clone() }
    }

    fn make(mut self, here: &std::rc::Rc<Local>, identity: Identity, make: impl FnOnce() -> P) -> Option<Runner<P>> {
        self.taken = true;
        Runner::make(here, self.shared.clone(), identity, make)
    }

    fn keep(
        mut self,
        here: &std::rc::Rc<Local>,
        identity: Identity,
        make: Box<dyn FnMut() -> P>,
        group: Arc<Supervision>,
    ) {
        self.taken = true;
        host::start(here, Runner::kept(here, self.shared.clone(), identity, make, group));
    }

    fn start(self, here: &std::rc::Rc<Local>, identity: Identity, make: impl FnOnce() -> P) {
        if let Some(runner) = self.make(here, identity, make) {
            host::start(here, runner);
        }
    }
}

impl<P: Protocol> Drop for Unstarted<P> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        drop(self.shared.lane.close());
        self.load.live.fetch_sub(1, Ordering::Relaxed);
        self.mesh.one_less();
        self.shared.ended(&Exit::Fault(Fault::local(host::ARBITER_STOPPED, "")));
    }
}

type Started = Result<Vec<(Arc<str>, ArbiterHandle)>, io::Error>;

/// The System's thread: makes an arbiter for each of `loads` but the last, which is its own; waits, stops and joins.
fn run_system(
    prefix: &str,
    loads: Vec<Arc<Load>>,
    cores: Option<Vec<usize>>,
    apart: &[String],
    started: &std::sync::mpsc::SyncSender<Started>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _gone = started.send(Err(error));
            return;
        }
    };
    let count = loads.len().saturating_sub(1);
    let ticker = match Ticker::start(format!("{prefix}-ticker"), loads) {
        Ok(ticker) => ticker,
        Err(error) => {
            let _gone = started.send(Err(error));
            return;
        }
    };
    let system = System::with_tokio_rt(move || runtime);
    let mut arbiters = Vec::with_capacity(count);
    let mut handles = Vec::with_capacity(count + 1);
    let shared = count.saturating_sub(apart.len());
    for index in 0..count {
        let own = index.checked_sub(shared).and_then(|at| apart.get(at));
        let name: Arc<str> = own.map_or_else(|| Arc::from(format!("{prefix}-{index}")), |own| Arc::from(own.as_str()));
        let core = cores.as_ref().filter(|_| own.is_none());
        let core = core.and_then(|cores| cores.get(index % cores.len().max(1)).copied());
        let thread_name = name.clone();
        match Arbiter::try_with_tokio_rt(move || {
            name_thread(&thread_name);
            if let Some(core) = core {
                pin_to(core);
            }
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        }) {
            Ok(arbiter) => {
                handles.push((name, arbiter.handle()));
                arbiters.push(arbiter);
            }
            Err(error) => {
                for arbiter in arbiters {
                    arbiter.stop();
                    let _joined = arbiter.join();
                }
                ticker.stop();
                let _gone = started.send(Err(error));
                return;
            }
        }
    }
    system.block_on(async {
        handles.push((Arc::from(format!("{prefix}-system")), Arbiter::current()));
        let _gone = started.send(Ok(handles));
        let _dropped = stopped.await;
    });
    for arbiter in arbiters {
        arbiter.stop();
        let _joined = arbiter.join();
    }
    ticker.stop();
    local::replace(None);
}

fn name_thread(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name.as_bytes().get(..15).unwrap_or(name.as_bytes()))
        && let Err(error) = rustix::thread::set_name(&name)
    {
        tracing::debug!(%error, "the thread keeps the name it has");
    }
}

fn pin_to(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "the arbiter is not pinned to its core");
    }
}

fn allowed_cores() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, NonZeroUsize::get)).collect(),
    }
}
