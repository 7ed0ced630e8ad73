//! The actor tree as plain data, collected by asking each arbiter.
//!
//! An arbiter that does not answer within a second is shown as such: it is held up by a turn that does not end, which
//! is itself the news.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::clock;
use super::local::Local;
use super::mailbox::ActorId;
use super::mesh::Mesh;
use super::metrics::Totals;
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

fn read(local: &Local) -> Vec<ActorView> {
    let now = clock::now();
    local
        .entries()
        .iter()
        .map(|entry| {
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
                restarts: entry.restarts.get(),
                last_failure: entry.last_failure.get(),
            }
        })
        .collect()
}
