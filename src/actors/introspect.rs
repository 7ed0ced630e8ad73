//! The actor tree as plain data, collected by asking each arbiter.
//!
//! An arbiter that does not answer within a second is shown as such: it is held up by a turn that does not end, which
//! is itself the news.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::clock;
use super::lane::StopCause;
use super::local::{Entry, Local};
use super::mailbox::{ActorId, Control};
use super::mesh::Mesh;
use super::metrics::Totals;
use super::protocol::Traffic;
use crate::memory::PoolStats;

const PATIENCE: Duration = Duration::from_secs(1);

/// One actor.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActorView {
    /// Who it is.
    pub id: ActorId,
    /// Its kind, as its protocol names it.
    pub kind: &'static str,
    /// Its own name, if it has one.
    pub name: Option<Arc<str>>,
    /// Who started it, if an actor did.
    pub parent: Option<ActorId>,
    /// Steps from the root of the tree.
    pub depth: u16,
    /// The arbiter it is pinned to.
    pub arbiter: usize,
    /// How long it has lived.
    pub age: Duration,
    /// Messages that wait or are in work.
    pub inbox: usize,
    /// Their bytes.
    pub inbox_bytes: usize,
    /// The most that ever waited.
    pub inbox_high: usize,
    /// How long the oldest of them has waited.
    pub inbox_oldest: Option<Duration>,
    /// Messages given back to their senders.
    pub refused: u64,
    /// Messages handled.
    pub handled: u64,
    /// Turns taken.
    pub turns: u64,
    /// Time spent in turns.
    pub busy: Duration,
    /// The longest turn.
    pub longest_turn: Duration,
    /// Bytes in buffers of its own.
    pub held: usize,
    /// With whom it speaks and what it has moved.
    pub traffic: Traffic,
    /// Whether it was asked to finish.
    pub draining: bool,
    /// How often it was made anew after a failure.
    pub restarts: u32,
    /// Why it failed the last time.
    pub last_failure: Option<&'static str>,
}

/// One arbiter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ArbiterView {
    /// Its number; the last one is the System's thread.
    pub index: usize,
    /// The name of its thread.
    pub name: Arc<str>,
    /// Whether it answered within a second.
    pub answered: bool,
    /// Actors alive or on their way.
    pub live: usize,
    /// CPU time per thousand of wall time, over the last 100 ms.
    pub busy_permille: u32,
    /// What a message waits for at least, measured every 100 ms.
    pub delay: Duration,
    /// Its buffer pools, by size.
    pub pools: Vec<PoolStats>,
    /// Its actors, in the order of their identities.
    pub actors: Vec<ActorView>,
}

/// One actor in short, for a picture of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ActorGlance {
    /// Who it is.
    pub id: ActorId,
    /// Its kind, as its protocol names it.
    pub kind: &'static str,
    /// Bytes it has moved, both ways.
    pub bytes: u64,
    /// Turns taken.
    pub turns: u64,
    /// How often it was made anew after a failure.
    pub restarts: u32,
    /// In its last turn more than half of the messages waited that its mailbox takes.
    pub crowded: bool,
    /// Whether it was asked to finish.
    pub draining: bool,
}

/// One arbiter in short.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ArbiterGlance {
    /// The name of its thread.
    pub name: Arc<str>,
    /// CPU time per thousand of wall time, over the last 100 ms.
    pub busy_permille: u32,
    /// What a message waits for at least, measured every 100 ms.
    pub delay: Duration,
    /// Its actors in the order of their identities; `None` if it did not answer within a second.
    pub actors: Option<Vec<ActorGlance>>,
}

/// A reading of a whole mesh.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MeshView {
    /// All arbiters in order.
    pub arbiters: Vec<ArbiterView>,
    /// All counters, summed over the arbiters that answered.
    pub totals: Totals,
}

impl MeshView {
    /// All actors of all arbiters.
    pub fn actors(&self) -> impl Iterator<Item = &ActorView> {
        self.arbiters.iter().flat_map(|arbiter| &arbiter.actors)
    }

    /// The actors of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a ActorView> {
        self.actors().filter(move |actor| actor.kind == kind)
    }
}

impl Mesh {
    /// Whether every arbiter, and the System's thread, answers within `time`.
    pub async fn answers(&self, time: Duration) -> bool {
        let everywhere = vec![true; self.inner.seats.len()];
        let answers = self.on_each(&everywhere, clock::later(clock::now(), time), |_| ()).await;
        answers.iter().all(Option::is_some)
    }

    /// Reads the whole mesh. Costs each arbiter a walk over its actors: not for data paths.
    pub async fn view(&self) -> MeshView {
        let everywhere = vec![true; self.inner.seats.len()];
        let by = clock::later(clock::now(), PATIENCE);
        let answers = self.on_each(&everywhere, by, |here| (read(here), here.counters.totals())).await;
        let mut view = MeshView::default();
        for ((index, seat), answer) in self.inner.seats.iter().enumerate().zip(answers) {
            let answered = answer.is_some();
            let (mut actors, totals) = answer.unwrap_or_default();
            actors.sort_by_key(|actor| actor.id);
            view.totals.add(&totals);
            view.arbiters.push(ArbiterView {
                index,
                name: seat.name.clone(),
                answered,
                live: seat.load.live.load(Ordering::Relaxed),
                busy_permille: seat.load.busy_permille.load(Ordering::Relaxed),
                delay: Duration::from_micros(u64::from(seat.load.delay_us.load(Ordering::Relaxed))),
                pools: seat.load.pools(),
                actors,
            });
        }
        view
    }
}

impl Mesh {
    /// All actors in short, and all counters. Costs each arbiter a walk over its actors that reads cells of its own and
    /// takes no lock; what needs order is done where this is awaited.
    pub async fn glance(&self) -> (Vec<ArbiterGlance>, Totals) {
        let everywhere = vec![true; self.inner.seats.len()];
        let by = clock::later(clock::now(), PATIENCE);
        let answers = self.on_each(&everywhere, by, |here| (glance(here), here.counters.totals())).await;
        let mut totals = Totals::default();
        let mut arbiters = Vec::with_capacity(answers.len());
        for (seat, answer) in self.inner.seats.iter().zip(answers) {
            let actors = answer.map(|(mut actors, counted)| {
                totals.add(&counted);
                actors.sort_unstable_by_key(|actor| actor.id);
                actors
            });
            arbiters.push(ArbiterGlance {
                name: seat.name.clone(),
                busy_permille: seat.load.busy_permille.load(Ordering::Relaxed),
                delay: Duration::from_micros(u64::from(seat.load.delay_us.load(Ordering::Relaxed))),
                actors,
            });
        }
        (arbiters, totals)
    }

    /// One actor; `None` if it has ended, or its arbiter did not answer within a second.
    pub async fn actor(&self, id: u64) -> Option<ActorView> {
        self.at_actor(id, |here, entry| view_of(here, entry, clock::now())).await
    }

    /// Asks one actor to finish, or ends it. Answers its kind; `None` as [`actor`](Self::actor), or if `may` refuses its
    /// kind.
    pub async fn control(&self, id: u64, control: Control, may: fn(&str) -> bool) -> Option<&'static str> {
        let done = self.at_actor(id, move |_, entry| {
            if !may(entry.kind) {
                return None;
            }
            match control {
                Control::Stop => entry.control.stop(StopCause::Asked),
                Control::Drain(by) => entry.control.drain(by),
                Control::Quiesce => entry.control.quiesce(),
            }
            Some(entry.kind)
        });
        done.await.flatten()
    }

    async fn at_actor<R: Send + 'static>(
        &self,
        id: u64,
        f: impl FnOnce(&Local, &Entry) -> R + Clone + Send + 'static,
    ) -> Option<R> {
        let everywhere = vec![true; self.inner.seats.len()];
        let by = clock::later(clock::now(), PATIENCE);
        let answers = self.on_each(&everywhere, by, move |here| {
            let entry = here.find_entry(id)?;
            Some((f.clone())(here, &entry))
        });
        answers.await.into_iter().flatten().flatten().next()
    }
}

fn glance(local: &Local) -> Vec<ActorGlance> {
    let mut all = Vec::with_capacity(local.load.live.load(Ordering::Relaxed));
    local.each_entry(|entry| {
        let traffic = entry.traffic.get();
        all.push(ActorGlance {
            id: entry.id,
            kind: entry.kind,
            bytes: traffic.bytes_in.wrapping_add(traffic.bytes_out),
            turns: entry.turns.get(),
            restarts: entry.restarts.get(),
            crowded: entry.crowded.get(),
            draining: entry.draining.get(),
        });
    });
    all
}

fn read(local: &Local) -> Vec<ActorView> {
    let now = clock::now();
    local.entries().iter().map(|entry| view_of(local, entry, now)).collect()
}

fn view_of(local: &Local, entry: &Entry, now: Instant) -> ActorView {
    let depth = entry.control.depth();
    ActorView {
        id: entry.id,
        kind: entry.kind,
        name: entry.name.clone(),
        parent: entry.parent,
        depth: entry.depth,
        arbiter: local.index,
        age: now.saturating_duration_since(entry.born),
        inbox: depth.messages,
        inbox_bytes: depth.bytes,
        inbox_high: depth.high,
        inbox_oldest: depth.since.map(|since| now.saturating_duration_since(since)),
        refused: depth.refused,
        handled: entry.handled.get(),
        turns: entry.turns.get(),
        busy: entry.busy.get(),
        longest_turn: entry.longest.get(),
        held: entry.held.get(),
        traffic: entry.traffic.get(),
        draining: entry.draining.get(),
        restarts: entry.restarts.get(),
        last_failure: entry.last_failure.get(),
    }
}
