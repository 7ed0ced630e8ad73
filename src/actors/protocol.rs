//! What the author of an actor writes: `Protocol`, and what it is given in each turn: `Turn`.
//!
//! Handlers are synchronous: no re-entrancy, no deadlock of two actors that ask each other. Work that waits is a job
//! (`Turn::job`) whose answer comes back as a message. A turn cannot be stored, so nothing calls into an actor outside
//! its turn; a protocol need not be `Send`, so nothing carries it to another thread.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::host::Jobs;
use super::lane::Refused;
use super::local::Local;
use super::mailbox::{AskError, Mail, Permit, Reply, Shared, WatchError};
use super::mesh::{Mesh, Place, SpawnError, Spec};
use super::metrics::Counter;
use crate::memory::Buf;

/// What an actor does for others, which decides when a drain of the whole mesh asks it to finish: the actors of a layer
/// are asked when none of the layers before it is left, since those may still send through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Layer {
    /// It does work of its own: a listener, a connection, a relayed stream. The default.
    #[default]
    Application,
    /// It carries the streams of others: a TCP stack, an interface.
    Transport,
    /// It carries the packets of such: a session of a tunnel, its socket.
    Link,
}

impl Layer {
    pub(crate) const ALL: [Self; 3] = [Self::Application, Self::Transport, Self::Link];
    /// Levels of the tree that are told apart in a layer that carries; what lies deeper counts as the last of them.
    const LEVELS: u16 = 4;

    /// The least level of this layer; those of the layers before it are all higher.
    pub(crate) const fn base(self) -> u16 {
        match self {
            Self::Application => 2 * Self::LEVELS,
            Self::Transport => Self::LEVELS,
            Self::Link => 0,
        }
    }

    /// The level at which a drain asks an actor that lies so deep in the tree.
    pub(crate) fn level(self, depth: u16) -> u16 {
        match self {
            Self::Application => self.base().saturating_add(depth),
            Self::Transport | Self::Link => self.base() + depth.min(Self::LEVELS - 1),
        }
    }
}

/// The state and the decisions of one actor.
///
/// It is made on its arbiter and never leaves it. In each turn the host calls, in this order and as far as there is
/// work: `quiesce`, `drain`, `on` for urgent messages, `on_deadline`, `io`, `on` for up to 256 messages or about
/// 100 µs, then `flush` once, then asks for `deadline`. After an error or a panic none of them is called again.
pub trait Protocol: Sized + 'static {
    /// What others tell this actor: best one closed enum.
    type Msg: Send + 'static;

    /// The kind of actor, for logs, metrics and the actor tree.
    const KIND: &'static str;

    /// What it does for others.
    const LAYER: Layer = Layer::Application;

    /// The bytes a message counts against the byte bound of the mailbox. Must answer the same for the same message.
    fn size(_: &Self::Msg) -> usize {
        0
    }

    /// A word for a message, shown when it took too long.
    fn label(_: &Self::Msg) -> &'static str {
        "message"
    }

    /// Called once, before anything else.
    ///
    /// # Errors
    /// A fault ends the actor.
    fn started(&mut self, _: &mut Turn<'_, Self::Msg>) -> Result<(), Fault> {
        Ok(())
    }

    /// Handles one message.
    ///
    /// # Errors
    /// A fault ends the actor.
    fn on(&mut self, m: Self::Msg, turn: &mut Turn<'_, Self::Msg>) -> Result<(), Fault>;

    /// Polls what the actor owns: its socket, its future. Called in every turn, with `Turn::cx` as the task to wake.
    /// It must do a bounded amount of work and answer [`Progress::More`] if some is left.
    ///
    /// # Errors
    /// A fault ends the actor.
    fn io(&mut self, _: &mut Turn<'_, Self::Msg>) -> Result<Progress, Fault> {
        Ok(Progress::Idle)
    }

    /// The one timer of this actor: when `on_deadline` is to be called. Asked after every turn.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    ///
    /// # Errors
    /// A fault ends the actor.
    fn on_deadline(&mut self, _: &mut Turn<'_, Self::Msg>) -> Result<(), Fault> {
        Ok(())
    }

    /// Called once at the end of a turn: here a batch becomes one system call.
    ///
    /// # Errors
    /// A fault ends the actor.
    fn flush(&mut self, _: &mut Turn<'_, Self::Msg>) -> Result<Progress, Fault> {
        Ok(Progress::Idle)
    }

    /// Take no new work from outside from now on: a listener closes its socket. Messages still come.
    fn quiesce(&mut self, _: &mut Turn<'_, Self::Msg>) {}

    /// Finish what was accepted and then call [`Turn::stop`]; at `by` the host ends the actor anyway. The default
    /// handles what is queued in the mailbox now and stops.
    fn drain(&mut self, _by: Instant, turn: &mut Turn<'_, Self::Msg>) {
        turn.stop_when_empty();
    }

    /// The last call, unless the end is a panic: then the state may be half changed and no code of it runs again
    /// but its destructor.
    fn closed(&mut self, _why: &Exit) {}

    /// Bytes this actor holds in buffers of its own, for the memory budget. Asked after every turn.
    fn held(&self) -> usize {
        0
    }

    /// With whom it speaks and how much it has moved, for whoever looks at the actors. Asked after every turn: it
    /// answers from fields.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// What an actor has moved since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// The other end, if there is one.
    pub peer: Option<SocketAddr>,
    /// Bytes that came from it.
    pub bytes_in: u64,
    /// Bytes that went to it.
    pub bytes_out: u64,
}

/// Whether a source of work has more right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more: whatever has work next will wake the task.
    Idle,
    /// The budget of this turn is spent and there is more: call again after others had their turn.
    More,
}

/// Whose fault an error is: it decides what is closed and how loudly it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whose {
    /// The other side: closes that connection, nothing more; logged at debug.
    Peer,
    /// This machine or its configuration: a resource is missing; logged at warn.
    Local,
    /// Our own code: logged at error.
    Bug,
}

impl Whose {
    /// `peer`, `local` or `bug`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Local => "local",
            Self::Bug => "bug",
        }
    }
}

/// Why an actor could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Whose fault it is.
    pub whose: Whose,
    /// A stable word that counters and logs use.
    pub reason: &'static str,
    /// What exactly happened, for the log.
    pub detail: Cow<'static, str>,
}

impl Fault {
    /// The other side misbehaved or went away.
    pub fn peer(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { whose: Whose::Peer, reason, detail: detail.into() }
    }

    /// Something is missing or refused on this machine.
    pub fn local(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { whose: Whose::Local, reason, detail: detail.into() }
    }

    /// Our own mistake.
    pub fn bug(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { whose: Whose::Bug, reason, detail: detail.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.whose.as_str())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl std::error::Error for Fault {}

/// Why an actor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It stopped by itself or was asked to.
    Normal,
    /// It answered an error.
    Fault(Fault),
    /// It panicked, with this message.
    Panic(Arc<str>),
    /// It was still busy when the time allowed for its drain was up.
    Deadline,
}

impl Exit {
    /// A stable word for counters: `normal`, the fault's reason, `panic` or `deadline`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Fault(fault) => fault.reason,
            Self::Panic(_) => "panic",
            Self::Deadline => "deadline",
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Panic(message) => write!(f, "panic: {message}"),
            Self::Deadline => f.write_str("deadline"),
        }
    }
}

/// How a turn wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Wish {
    #[default]
    GoOn,
    /// Stop once the mailbox and the jobs are empty.
    StopWhenEmpty,
    Stop,
}

/// What a job ended with when it did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobPanicked;

impl fmt::Display for JobPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the job panicked")
    }
}

impl std::error::Error for JobPanicked {}

/// The counters of an arbiter, kept by an actor beyond its turn: for what is counted when it ends.
#[derive(Clone)]
pub struct Tally {
    local: Rc<Local>,
}

impl Tally {
    /// Adds one. Costs a map access: not for data paths.
    pub fn raise(&self, family: &'static str, scope: &Arc<str>, reason: &'static str) {
        self.local.counters.counter(family, scope, reason).add(1);
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").finish_non_exhaustive()
    }
}

/// What an actor has at hand during one turn. It cannot outlive the turn.
pub struct Turn<'a, M> {
    pub(crate) now: Instant,
    pub(crate) waker: &'a Waker,
    pub(crate) shared: &'a Arc<Shared<M>>,
    pub(crate) jobs: &'a mut Jobs<M>,
    pub(crate) local: &'a Rc<Local>,
    pub(crate) depth: u16,
    pub(crate) wish: Wish,
    pub(crate) again: bool,
    pub(crate) draining: Option<Instant>,
    pub(crate) _pinned: PhantomData<*const ()>,
}

impl<M> fmt::Debug for Turn<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("id", &self.shared.id).field("now", &self.now).finish_non_exhaustive()
    }
}

impl<M: Send + 'static> Turn<'_, M> {
    /// The time at which this turn began; read once per turn.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// The task to wake, for polling what the actor owns.
    #[must_use]
    pub const fn cx(&self) -> Context<'_> {
        Context::from_waker(self.waker)
    }

    /// Ends the actor after this turn's `flush`. What is still queued is dropped.
    pub const fn stop(&mut self) {
        self.wish = Wish::Stop;
    }

    /// Ends the actor once its mailbox is empty and its jobs are done.
    pub const fn stop_when_empty(&mut self) {
        if matches!(self.wish, Wish::GoOn) {
            self.wish = Wish::StopWhenEmpty;
        }
    }

    /// Asks for another turn after the others on this arbiter had theirs.
    pub const fn again(&mut self) {
        self.again = true;
    }

    /// By when this actor is to be done, if it is draining.
    #[must_use]
    pub const fn draining(&self) -> Option<Instant> {
        self.draining
    }

    /// The actor's own mailbox.
    #[must_use]
    pub fn mail(&self) -> Mail<M> {
        Mail { shared: self.shared.clone() }
    }

    /// The mesh this actor lives in.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.local.mesh
    }

    /// The number of the arbiter this actor is pinned to.
    #[must_use]
    pub fn arbiter(&self) -> usize {
        self.local.index
    }

    /// Turns that all actors of this arbiter have had before this one: by how much it grows between two turns of an actor
    /// says whether others have work as well.
    #[cfg(feature = "quic")]
    pub(crate) fn turns_of_all(&self) -> u64 {
        self.local.turns.get()
    }

    /// A counter of this arbiter, to be kept by the actor and raised without cost. Looking it up costs a map access:
    /// do it when the actor starts. At most 4,096 exist per arbiter; beyond that all new names share `other`.
    #[must_use]
    pub fn counter(&self, family: &'static str, scope: &Arc<str>, reason: &'static str) -> Counter {
        self.local.counters.counter(family, scope, reason)
    }

    /// The counters of this arbiter, for names that are not known beforehand. Stays on the arbiter.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally { local: self.local.clone() }
    }

    /// A buffer for reading, shared by all actors of this arbiter; its contents are undefined between uses.
    ///
    /// `f` gets 64 KiB. A nested use gets a fresh buffer.
    pub fn scratch<R>(&mut self, f: impl FnOnce(&mut Self, &mut [u8]) -> R) -> R {
        let local = self.local.clone();
        let mut scratch = local.scratch.take();
        if scratch.is_empty() {
            scratch = vec![0; super::local::SCRATCH];
        }
        let out = f(self, &mut scratch);
        local.scratch.replace(scratch);
        out
    }

    /// An empty buffer for this many bytes, of the arbiter's pools if they have one; else it takes memory of its own as
    /// it is filled, which [`Buf::own_bytes`] tells. Up to 100 KiB come from pools. It goes back when it is dropped,
    /// wherever that is.
    #[must_use]
    pub fn buffer(&self, bytes: usize) -> Buf {
        self.local.buffers.get(bytes)
    }

    /// Starts an actor as a child of this one.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn spawn<P: Protocol>(
        &self,
        place: Place,
        spec: Spec,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        self.local.mesh.spawn_under(Some((self.shared.id, self.depth)), place, spec, make)
    }

    /// As [`spawn`](Self::spawn) on this actor's own arbiter, with a `make` that may hold what cannot leave it.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn spawn_here<P: Protocol>(
        &self,
        spec: Spec,
        make: impl FnOnce() -> P + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        self.local.mesh.spawn_local(self.local, (self.shared.id, self.depth), spec, make)
    }

    /// Starts work that waits, on this arbiter and as part of this actor: it ends with it. `then` turns the answer
    /// into a message, for which room is reserved now.
    ///
    /// # Errors
    /// [`Refused::Full`] with the work inside when the mailbox has no room to reserve.
    pub fn job<F>(
        &mut self,
        work: F,
        then: impl FnOnce(Result<F::Output, JobPanicked>) -> M + 'static,
    ) -> Result<(), Refused<F>>
    where
        F: Future + 'static,
    {
        match self.shared.lane.reserve(0) {
            Ok(()) => {
                self.jobs.add(work, then);
                self.again = true;
                Ok(())
            }
            Err(Refused::Closed(())) => Err(Refused::Closed(work)),
            Err(Refused::Full(()) | Refused::TooLarge(())) => Err(Refused::Full(work)),
        }
    }

    /// Asks another actor; the answer, or why there is none after `within`, comes back as a message.
    ///
    /// # Errors
    /// [`Refused`] when this actor's own mailbox has no room to reserve for the answer. When the other one has none,
    /// that is the answer.
    pub fn ask_then<N: Send + 'static, R: Send + 'static>(
        &mut self,
        whom: &Mail<N>,
        question: impl FnOnce(Reply<R>) -> N,
        within: Duration,
        then: impl FnOnce(Result<R, AskError>) -> M + 'static,
    ) -> Result<(), Refused<()>> {
        let (reply, answer) = Reply::new();
        let asked = whom.tell(question(reply)).map_err(|refused| AskError::from(&refused));
        let work = async move {
            asked?;
            answer.within(within).await
        };
        self.job(work, |out| then(out.unwrap_or(Err(AskError::Closed)))).map_err(|refused| match refused {
            Refused::Full(_) => Refused::Full(()),
            Refused::TooLarge(_) => Refused::TooLarge(()),
            Refused::Closed(_) => Refused::Closed(()),
        })
    }

    /// Learns of the end of another actor, with the reason, as a message. Room for it is reserved now and the news is
    /// delivered even if its size is beyond the byte bound. If the other has ended already, the news comes at once.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn watch<N: Send + 'static>(
        &self,
        whom: &Mail<N>,
        then: impl FnOnce(&Exit) -> M + Send + 'static,
    ) -> Result<(), WatchError> {
        self.shared.lane.reserve(0).map_err(|_| WatchError::Full)?;
        let permit = Permit::reserved(self.shared.clone());
        whom.shared.on_exit(Box::new(move |exit| {
            // The closure is the watcher's code but runs while another actor ends: its panic must not hurt that one.
            if let Ok(m) = catch_unwind(AssertUnwindSafe(|| then(exit))) {
                drop(permit.tell_answer(m));
            }
        }))
    }
}
