//! The host: the actix actor that runs one `Protocol`, turn by turn.
//!
//! A `Runner` holds the protocol, its lane, its jobs and its one timer, and is polled by whoever hosts it: an actix
//! context on an arbiter, the simulator's executor under `Mesh::sim`. Everything of the protocol that can panic runs
//! inside one `catch_unwind` per turn; after a panic no hook runs on the half-changed state, only its destructor,
//! contained as well. A turn that leaves work behind yields through the runtime's driver, so that sockets and timers
//! of the same arbiter are served in between: waking oneself at once would not do that (up to 61 polls per tick).

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::{Actor, ActorContext, AsyncContext, Handler, Message};

use super::alarm::Alarm;
use super::clock;
pub(crate) use super::jobs::Jobs;
use super::jobs::{contain, count_panic};
use super::lane::{Refused, StopCause};
use super::local::{Entry, Local};
use super::mailbox::{ActorId, Shared};
use super::protocol::{Exit, Fault, Progress, Protocol, Traffic, Turn, Whose, Wish};
use super::supervise::{Supervision, Verdict};
use crate::memory::Key;

/// Messages per turn, at most. It is time that keeps turns fair: with 64, a flood of cheap messages spent a third of
/// its time in the yields between turns (benches/RESULTS.md).
const TURN_MESSAGES: usize = 256;
/// Time per turn, at most. Looked at after 8, 16, 32 messages and every 32 from there on while they are cheap, and
/// every 8 once an eighth of it is spent.
const TURN_TIME: Duration = Duration::from_micros(100);
const LOOK_AFTER: usize = 8;
const LOOK_AT_MOST_EVERY: usize = 32;
/// And after as many bytes: eight trains of datagrams would take a third of a millisecond.
const LOOK_AT_BYTES: usize = 64 << 10;
/// Answers of jobs per turn, at most.
const TURN_JOBS: usize = 16;
/// A turn longer than this is logged.
const SLOW_TURN: Duration = Duration::from_millis(5);

/// The reason of actors that end because their arbiter does.
pub(crate) const ARBITER_STOPPED: &str = "arbiter_stopped";

pub(crate) struct Runner<P: Protocol> {
    state: Option<P>,
    batch: VecDeque<P::Msg>,
    urgent: VecDeque<P::Msg>,
    jobs: Jobs<P::Msg>,
    shared: Arc<Shared<P::Msg>>,
    local: Rc<Local>,
    entry: Rc<Entry>,
    place: Option<Key>,
    alarm: Alarm,
    /// What the protocol said at the end of its last turn.
    deadline: Option<Instant>,
    draining: Option<Instant>,
    wish: Wish,
    started: bool,
    /// Bytes of the messages handled in this turn.
    handled_bytes: usize,
    finished: bool,
    keeper: Option<Keeper<P>>,
    #[cfg(debug_assertions)]
    owner: std::thread::ThreadId,
}

/// What makes a supervised protocol anew, and the group that decides whether it may.
pub(crate) struct Keeper<P> {
    make: Box<dyn FnMut() -> P>,
    group: Arc<Supervision>,
    /// The protocol has failed and is to be made anew at this instant.
    revive: Option<Instant>,
}

/// How a turn ended, when it did not end in a panic.
struct Done {
    handled: u64,
    more: bool,
    deadline: Option<Instant>,
    held: usize,
    traffic: Traffic,
    last: &'static str,
}

/// What of a runner's identity its arbiter wants to know.
pub(crate) struct Identity {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) parent: Option<ActorId>,
    pub(crate) depth: u16,
}

impl<P: Protocol> Runner<P> {
    /// Makes the protocol on this thread. If `make` panics, the actor has ended with that panic and there is nothing
    /// to run.
    pub(crate) fn make(
        local: &Rc<Local>,
        shared: Arc<Shared<P::Msg>>,
        identity: Identity,
        make: impl FnOnce() -> P,
    ) -> Option<Self> {
        let mut runner = Self::empty(local, shared, identity);
        match contain(make) {
            Ok(state) => {
                runner.state = Some(state);
                Some(runner)
            }
            Err(message) => {
                count_panic(P::KIND, "factory", &message);
                runner.finish(Exit::Panic(message));
                None
            }
        }
    }

    /// A runner that makes its protocol in its first turn, and again whenever the group says so.
    pub(crate) fn kept(
        local: &Rc<Local>,
        shared: Arc<Shared<P::Msg>>,
        identity: Identity,
        make: Box<dyn FnMut() -> P>,
        group: Arc<Supervision>,
    ) -> Self {
        let mut runner = Self::empty(local, shared, identity);
        runner.keeper = Some(Keeper { make, group, revive: Some(clock::now()) });
        runner
    }

    fn empty(local: &Rc<Local>, shared: Arc<Shared<P::Msg>>, identity: Identity) -> Self {
        let entry = Rc::new(Entry {
            id: shared.id,
            kind: P::KIND,
            name: identity.name,
            parent: identity.parent,
            depth: identity.depth,
            level: P::LAYER.level(identity.depth),
            born: clock::now(),
            control: shared.clone(),
            turns: Cell::new(0),
            handled: Cell::new(0),
            busy: Cell::new(Duration::ZERO),
            longest: Cell::new(Duration::ZERO),
            held: Cell::new(0),
            traffic: Cell::default(),
            crowded: Cell::new(false),
            draining: Cell::new(false),
            restarts: Cell::new(0),
            last_failure: Cell::new(None),
        });
        let place = local.enter(entry.clone());
        Self {
            state: None,
            batch: VecDeque::new(),
            urgent: VecDeque::new(),
            jobs: Jobs::new(P::KIND),
            shared,
            local: local.clone(),
            entry,
            place,
            alarm: Alarm::default(),
            deadline: None,
            draining: None,
            wish: Wish::GoOn,
            started: false,
            handled_bytes: 0,
            finished: false,
            keeper: None,
            #[cfg(debug_assertions)]
            owner: std::thread::current().id(),
        }
    }

    /// One turn. Ready when the actor has ended.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        #[cfg(debug_assertions)]
        debug_assert_eq!(self.owner, std::thread::current().id(), "an actor was polled off its arbiter");
        if self.finished {
            return Poll::Ready(());
        }
        let now = clock::now();
        if let Some(at) = self.keeper.as_ref().and_then(|keeper| keeper.revive)
            && let Some(poll) = self.revive(at, now, cx)
        {
            return poll;
        }
        let signals = self.shared.lane.begin(&mut self.batch, &mut self.urgent);
        self.entry.crowded.set(self.batch.len() > self.shared.lane.capacity() / 2);
        if let Some(cause) = signals.stop {
            self.finish(exit_of(cause));
            return Poll::Ready(());
        }
        if let Some(at) = signals.remake
            && self.keeper.is_some()
        {
            self.put_down(&Exit::Fault(Fault::local("group", "another of its group failed")), at, cx);
            return self.wait_for(at, now, cx);
        }
        let drain = signals.drain.filter(|by| self.draining.is_none_or(|old| *by < old));
        if let Some(by) = drain {
            self.draining = Some(by);
        }
        if self.draining.is_some_and(|by| by <= now) {
            self.finish(Exit::Deadline);
            return Poll::Ready(());
        }

        let place = Cell::new("started");
        let done = match contain(|| self.turn(now, signals.quiesce, drain, cx, &place)) {
            Ok(Ok(done)) => done,
            Ok(Err(exit)) => return self.fail(exit, now, cx),
            Err(message) => {
                count_panic(P::KIND, place.get(), &message);
                return self.fail(Exit::Panic(message), now, cx);
            }
        };
        self.account(now, &done);

        let more = self.shared.lane.end(self.batch.len(), self.handled_bytes, cx.waker()) || done.more;
        match self.wish {
            Wish::Stop => {
                self.finish(Exit::Normal);
                return Poll::Ready(());
            }
            Wish::StopWhenEmpty if !more && self.jobs.is_empty() && self.shared.lane.close_if_empty() => {
                self.finish(Exit::Normal);
                return Poll::Ready(());
            }
            Wish::StopWhenEmpty | Wish::GoOn => {}
        }
        let due = self.arm(done.deadline, now, cx);
        if more || due {
            self.yield_turn(cx);
        }
        Poll::Pending
    }

    fn turn(
        &mut self,
        now: Instant,
        quiesce: bool,
        drain: Option<Instant>,
        cx: &Context<'_>,
        place: &Cell<&'static str>,
    ) -> Result<Done, Exit> {
        self.handled_bytes = 0;
        let Some(state) = &mut self.state else { return Err(Exit::Normal) };
        let mut turn = Turn {
            now,
            waker: cx.waker(),
            shared: &self.shared,
            jobs: &mut self.jobs,
            local: &self.local,
            depth: self.entry.depth,
            wish: self.wish,
            again: false,
            draining: self.draining,
            _pinned: PhantomData,
        };
        let mut done =
            Done { handled: 0, more: false, deadline: None, held: 0, traffic: Traffic::default(), last: "io" };
        if !self.started {
            self.started = true;
            state.started(&mut turn).map_err(Exit::Fault)?;
        }
        if quiesce {
            place.set("quiesce");
            state.quiesce(&mut turn);
        }
        if let Some(by) = drain {
            place.set("drain");
            state.drain(by, &mut turn);
        }
        place.set("handler");
        while turn.wish != Wish::Stop
            && let Some(m) = self.urgent.pop_front()
        {
            done.last = P::label(&m);
            done.handled += 1;
            state.on(m, &mut turn).map_err(Exit::Fault)?;
        }
        // Asked anew only if what it said at the end of its last turn has come: some have many to choose from.
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if turn.wish != Wish::Stop && due(self.deadline) && due(state.deadline()) {
            place.set("deadline");
            state.on_deadline(&mut turn).map_err(Exit::Fault)?;
        }
        if turn.wish != Wish::Stop {
            place.set("io");
            done.more |= state.io(&mut turn).map_err(Exit::Fault)? == Progress::More;
        }
        place.set("handler");
        let mut look = LOOK_AFTER;
        let mut weighed = 0;
        for n in 1..=TURN_MESSAGES {
            if turn.wish == Wish::Stop {
                break;
            }
            let Some(m) = self.batch.pop_front() else { break };
            done.last = P::label(&m);
            // Called by name and not through the lane's pointer: this way it is inlined, mostly to nothing.
            self.handled_bytes += P::size(&m);
            done.handled += 1;
            state.on(m, &mut turn).map_err(Exit::Fault)?;
            if n >= look || self.handled_bytes - weighed >= LOOK_AT_BYTES {
                weighed = self.handled_bytes;
                let took = clock::now().saturating_duration_since(now);
                if took > TURN_TIME {
                    break;
                }
                look = n + if took < TURN_TIME / 8 { n.clamp(LOOK_AFTER, LOOK_AT_MOST_EVERY) } else { LOOK_AFTER };
            }
        }
        for n in 1..=TURN_JOBS {
            if turn.wish == Wish::Stop {
                break;
            }
            let answer = turn.jobs.poll(&mut Context::from_waker(turn.waker));
            let Poll::Ready(Some(answer)) = answer else { break };
            turn.shared.lane.release(0);
            let m = answer.map_err(|message| {
                count_panic(P::KIND, "job", &message);
                Exit::Panic(message)
            })?;
            done.last = P::label(&m);
            done.handled += 1;
            state.on(m, &mut turn).map_err(Exit::Fault)?;
            done.more |= n == TURN_JOBS;
        }
        place.set("flush");
        done.more |= state.flush(&mut turn).map_err(Exit::Fault)? == Progress::More;
        done.more |= turn.again;
        self.wish = turn.wish;
        place.set("deadline");
        done.deadline = state.deadline();
        self.deadline = done.deadline;
        done.held = state.held();
        done.traffic = state.traffic();
        Ok(done)
    }

    /// The protocol has failed: ends the actor, or puts it down until its group lets it be made anew.
    fn fail(&mut self, exit: Exit, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let number = self.shared.id.0;
        let verdict = match &self.keeper {
            Some(keeper) if self.draining.is_none() => keeper.group.failed(number, now),
            Some(_) | None => Verdict::GiveUp,
        };
        match verdict {
            Verdict::GiveUp => {
                self.finish(exit);
                Poll::Ready(())
            }
            Verdict::Revive(at) => {
                tracing::warn!(kind = P::KIND, id = %self.entry.id, %exit, "failed, to be made anew");
                self.put_down(&exit, at, cx);
                self.wait_for(at, now, cx)
            }
        }
    }

    /// Drops the protocol and its jobs; the mailbox and what waits in it stay.
    fn put_down(&mut self, why: &Exit, at: Instant, cx: &Context<'_>) {
        self.close_hook(why);
        let outstanding = self.jobs.len();
        self.drop_state();
        (0..outstanding).for_each(|_| self.shared.lane.release(0));
        self.shared.lane.end(self.batch.len(), self.handled_bytes, cx.waker());
        self.started = false;
        self.deadline = None;
        self.wish = Wish::GoOn;
        if let Some(keeper) = &mut self.keeper {
            keeper.revive = Some(at);
        }
        self.entry.restarts.set(self.entry.restarts.get() + 1);
        self.entry.last_failure.set(Some(why.reason()));
        self.entry.held.set(0);
        self.local.counters.raise("actor_restarts", P::KIND, why.reason());
    }

    fn wait_for(&mut self, at: Instant, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.arm(Some(at), now, cx) {
            self.yield_turn(cx);
        }
        Poll::Pending
    }

    /// Makes the protocol if its time has come. `None`: it is there, go on with the turn.
    fn revive(&mut self, mut at: Instant, now: Instant, cx: &mut Context<'_>) -> Option<Poll<()>> {
        let signals = self.shared.lane.wait(cx.waker());
        let ended =
            signals.stop.map(exit_of).or_else(|| (signals.quiesce || signals.drain.is_some()).then_some(Exit::Normal));
        if let Some(exit) = ended {
            self.finish(exit);
            return Some(Poll::Ready(()));
        }
        let keeper = self.keeper.as_mut()?;
        if let Some(later) = signals.remake {
            at = at.max(later);
            keeper.revive = Some(at);
        }
        if now < at {
            return Some(self.wait_for(at, now, cx));
        }
        keeper.revive = None;
        match contain(&mut keeper.make) {
            Ok(state) => {
                self.state = Some(state);
                None
            }
            Err(message) => {
                count_panic(P::KIND, "factory", &message);
                Some(self.fail(Exit::Panic(message), now, cx))
            }
        }
    }

    fn account(&self, began: Instant, done: &Done) {
        let entry = &*self.entry;
        let took = clock::now().saturating_duration_since(began);
        entry.turns.set(entry.turns.get() + 1);
        self.local.turns.set(self.local.turns.get() + 1);
        entry.handled.set(entry.handled.get() + done.handled);
        entry.busy.set(entry.busy.get() + took);
        entry.held.set(done.held);
        entry.traffic.set(done.traffic);
        entry.draining.set(self.draining.is_some());
        if took > entry.longest.get() {
            entry.longest.set(took);
        }
        if took > SLOW_TURN {
            self.local.counters.raise("actor_slow_turns", P::KIND, done.last);
            tracing::warn!(
                kind = P::KIND, id = %entry.id, message = done.last, ms = took.as_millis() as u64,
                "a turn held its arbiter for long"
            );
        }
    }

    /// Sets the one alarm to the earlier of the protocol's deadline and the end of the drain. True if the time has
    /// come already.
    fn arm(&mut self, deadline: Option<Instant>, now: Instant, cx: &Context<'_>) -> bool {
        let at = match (deadline, self.draining) {
            (Some(a), Some(b)) => a.min(b),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => return false,
        };
        self.alarm.arm(at, now, cx)
    }

    fn yield_turn(&self, cx: &mut Context<'_>) {
        if self.local.simulated {
            cx.waker().wake_by_ref();
        } else {
            // Registers a wake-up for after the driver's next round, in its first poll.
            let _pending = pin!(tokio::task::yield_now()).poll(cx);
        }
    }

    /// Tells the protocol, unless it panicked: then no hook may see its half-changed state.
    fn close_hook(&mut self, why: &Exit) {
        if !matches!(why, Exit::Panic(_))
            && let Some(state) = &mut self.state
            && let Err(message) = contain(|| state.closed(why))
        {
            count_panic(P::KIND, "closed", &message);
        }
    }

    fn drop_state(&mut self) {
        let state = self.state.take();
        let jobs = std::mem::replace(&mut self.jobs, Jobs::new(P::KIND));
        for message in [contain(|| drop(state)), contain(|| drop(jobs))].into_iter().filter_map(Result::err) {
            count_panic(P::KIND, "drop", &message);
        }
    }

    fn finish(&mut self, exit: Exit) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        match &exit {
            Exit::Normal => tracing::trace!(kind = P::KIND, id = %self.entry.id, "ended"),
            Exit::Fault(fault) if fault.reason == ARBITER_STOPPED => {
                tracing::debug!(kind = P::KIND, id = %self.entry.id, "ended with its arbiter");
            }
            Exit::Fault(fault) => match fault.whose {
                Whose::Peer => tracing::debug!(kind = P::KIND, id = %self.entry.id, %fault, "ended"),
                Whose::Local => tracing::warn!(kind = P::KIND, id = %self.entry.id, %fault, "ended"),
                Whose::Bug => tracing::error!(kind = P::KIND, id = %self.entry.id, %fault, "ended"),
            },
            Exit::Panic(message) => tracing::error!(kind = P::KIND, id = %self.entry.id, %message, "ended by a panic"),
            Exit::Deadline => {
                tracing::warn!(kind = P::KIND, id = %self.entry.id, "ended before it was done");
                self.local.note_overdue(&self.entry);
            }
        }
        self.close_hook(&exit);
        // Closed before anything is dropped, so that whoever waits for an answer finds it closed.
        let queued = self.shared.lane.close();
        self.drop_state();
        let mine = (std::mem::take(&mut self.batch), std::mem::take(&mut self.urgent));
        let keeper = self.keeper.take();
        if let Some(keeper) = &keeper {
            keeper.group.leave(self.shared.id.0);
        }
        let dropped = [contain(|| drop(mine)), contain(|| drop(queued)), contain(|| drop(keeper))];
        for message in dropped.into_iter().filter_map(Result::err) {
            count_panic(P::KIND, "drop", &message);
        }
        self.alarm.clear();
        self.local.counters.raise("actor_exits", P::KIND, exit.reason());
        self.local.leave(self.place, self.entry.level);
        self.shared.ended(&exit);
    }
}

/// The end of an actor that was told to stop.
const fn exit_of(cause: StopCause) -> Exit {
    match cause {
        StopCause::Asked => Exit::Normal,
        StopCause::Deadline => Exit::Deadline,
        StopCause::Memory => Exit::Fault(Fault {
            whose: Whose::Local,
            reason: "memory",
            detail: Cow::Borrowed("the memory budget took it back"),
        }),
        StopCause::Group => {
            Exit::Fault(Fault { whose: Whose::Local, reason: "group", detail: Cow::Borrowed("its group has given up") })
        }
    }
}

impl<P: Protocol> Drop for Runner<P> {
    fn drop(&mut self) {
        self.finish(Exit::Fault(Fault::local(ARBITER_STOPPED, "")));
    }
}

impl<P: Protocol> Unpin for Runner<P> {}

impl<P: Protocol> Future for Runner<P> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll(cx)
    }
}

/// The actix actor around a protocol. Its `Addr` takes [`Deliver`] from any stock actix actor.
pub struct Host<P: Protocol> {
    runner: Option<Runner<P>>,
    shared: Arc<Shared<P::Msg>>,
}

impl<P: Protocol> fmt::Debug for Host<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("kind", &P::KIND).field("id", &self.shared.id).finish()
    }
}

impl<P: Protocol> Host<P> {
    pub(crate) const fn new(runner: Option<Runner<P>>, shared: Arc<Shared<P::Msg>>) -> Self {
        Self { runner, shared }
    }
}

impl<P: Protocol> Actor for Host<P> {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Drive);
    }
}

/// The one resident future of a host's context.
struct Drive;

impl<P: Protocol> ActorFuture<Host<P>> for Drive {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        host: &mut Host<P>,
        ctx: &mut actix::Context<Host<P>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let ended = host.runner.as_mut().is_none_or(|runner| runner.poll(cx).is_ready());
        if ended {
            host.runner = None;
            ctx.terminate();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A message for a protocol, sent through the actix address of its host. It goes into the same bounded mailbox.
#[derive(Debug)]
pub struct Deliver<M>(pub M);

impl<M: Send + 'static> Message for Deliver<M> {
    type Result = Result<(), Refused<M>>;
}

impl<P: Protocol> Handler<Deliver<P::Msg>> for Host<P> {
    type Result = Result<(), Refused<P::Msg>>;

    fn handle(&mut self, m: Deliver<P::Msg>, _: &mut Self::Context) -> Self::Result {
        self.shared.lane.tell(m.0)
    }
}

/// Runs `runner` on this thread's event loop.
pub(crate) fn start<P: Protocol>(local: &Rc<Local>, runner: Runner<P>) {
    if local.simulated {
        super::sim::run_local(local.index, runner);
    } else {
        let shared = runner.shared.clone();
        Host::new(Some(runner), shared).start();
    }
}
