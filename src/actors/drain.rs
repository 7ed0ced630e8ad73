//! The gentle end of a mesh: new work refused, actors asked to finish from the leaves to the root, all under one
//! deadline, with a report of who did not make it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::clock;
use super::lane::StopCause;
use super::local;
use super::mailbox::ActorId;
use super::mesh::Mesh;
use super::protocol::Layer;

/// What remains is told to stop at the deadline and gets this long to do so.
const GRACE: Duration = Duration::from_millis(500);

/// How long an arbiter may take to answer at all, at most a quarter of the time for the whole drain.
const PATIENCE: Duration = Duration::from_secs(1);

/// An actor that was still there at the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Who it is.
    pub id: ActorId,
    /// Its kind.
    pub kind: &'static str,
    /// Its own name, if it has one.
    pub name: Option<Arc<str>>,
    /// The arbiter it is pinned to.
    pub arbiter: usize,
    /// Messages that waited in its mailbox.
    pub inbox: usize,
}

/// How a drain went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Actors that were alive when the drain began.
    pub began_with: usize,
    /// Those that were not done at the deadline and were ended then.
    pub unfinished: Vec<Unfinished>,
    /// Arbiters that did not answer, by number: a turn there does not end, and none of the actors there was asked.
    pub stuck: Vec<usize>,
    /// How long it took.
    pub took: Duration,
}

impl DrainReport {
    /// True if everybody finished in time.
    #[must_use]
    pub const fn complete(&self) -> bool {
        self.unfinished.is_empty() && self.stuck.is_empty()
    }
}

impl Mesh {
    /// Ends all actors gently within `time`: spawns are refused, every actor is told to take no new work, then the
    /// actors of the deepest level of the tree are asked to finish, and when they have, the next level; those that carry
    /// what others send come after all of these (see [`Layer`]). At the deadline whoever was asked and is left is ended;
    /// who had to wait for them has half a second each then, for last words. Actors on the System's thread
    /// ([`Place::System`](super::Place::System)) are left alone: they serve the administration, which has to see this.
    /// The arbiters go on: call [`stop`](Self::stop) afterwards.
    pub async fn drain(&self, time: Duration) -> DrainReport {
        let began = clock::now();
        let by = clock::later(began, time);
        self.inner.draining.store(true, Ordering::Release);
        let mut report = DrainReport::default();
        let arbiters = self.carrying();
        let mut alive: Vec<_> = (0..arbiters).map(|_| true).collect();

        // An arbiter held up by one long turn must not use up the time of the others.
        let patience = clock::later(began, (time / 4).min(PATIENCE));
        let counts = self.on_each(&alive, patience, |here| {
            let entries = here.entries();
            entries.iter().for_each(|entry| entry.control.quiesce());
            (entries.len(), here.highest_level())
        });
        let mut highest = None;
        for (index, answer) in counts.await.into_iter().enumerate() {
            match answer {
                Some((count, level)) => {
                    report.began_with += count;
                    highest = highest.max(level);
                }
                None => {
                    report.stuck.push(index);
                    // Nobody can say who they are, but they were there.
                    let live = self.inner.seats.get(index).map_or(0, |seat| seat.load.live.load(Ordering::Relaxed));
                    report.began_with += live;
                    alive.iter_mut().skip(index).take(1).for_each(|alive| *alive = false);
                }
            }
        }
        let mut highest = highest.unwrap_or(0);
        let mut first = true;
        for layer in Layer::ALL {
            for level in (layer.base()..=highest).rev() {
                // Who had to wait for those above has a moment, also when these took all the time: a listener is not
                // late because one of its connections was, and what carries others has their last words to send.
                let moment = if first { by } else { by.max(clock::later(clock::now(), GRACE)) };
                first = false;
                self.drain_level(&alive, level, moment).await;
            }
            report.unfinished.extend(self.end_from(&alive, layer.base()).await);
            highest = layer.base().saturating_sub(1);
        }
        // Whoever was told to end at the deadline may have noted that as well.
        report.unfinished.sort_by_key(|unfinished| unfinished.id);
        report.unfinished.dedup_by_key(|unfinished| unfinished.id);
        report.took = clock::now().saturating_duration_since(began);
        report
    }

    /// Asks the children of an actor to finish by `by`. Does not wait for them.
    pub fn drain_children(&self, parent: ActorId, by: Instant) {
        for seat in &self.inner.seats {
            seat.run(Box::new(move || {
                let Some(here) = local::current() else { return };
                for entry in here.entries().iter().filter(|entry| entry.parent == Some(parent)) {
                    entry.control.drain(by);
                }
            }));
        }
    }

    /// Ends the actors that hold the most in buffers of their own, with the fault `memory`, until they held `bytes`
    /// together. Answers how many that were.
    pub async fn stop_largest(&self, bytes: usize) -> usize {
        let by = clock::later(clock::now(), PATIENCE);
        let everywhere = vec![true; self.carrying()];
        let sizes = self.on_each(&everywhere, by, move |here| {
            let entries = here.entries();
            entries.iter().map(|entry| (entry.held.get(), entry.id)).filter(|(held, _)| *held > 0).collect::<Vec<_>>()
        });
        let mut sizes: Vec<_> = sizes.await.into_iter().flatten().flatten().collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut found = 0;
        let victims: Arc<BTreeSet<ActorId>> = Arc::new(
            sizes
                .into_iter()
                .take_while(|(held, _)| {
                    let wanted = found < bytes;
                    found += held;
                    wanted
                })
                .map(|(_, id)| id)
                .collect(),
        );
        let chosen = victims.clone();
        self.on_each(&everywhere, by, move |here| {
            for entry in here.entries().iter().filter(|entry| chosen.contains(&entry.id)) {
                entry.control.stop(StopCause::Memory);
            }
        })
        .await;
        victims.len()
    }

    /// Asks everybody at `level` or higher to finish, and again whoever was started meanwhile, until none is left or
    /// time is up.
    async fn drain_level(&self, alive: &[bool], level: u16, by: Instant) {
        self.on_each(alive, by, move |here| {
            for entry in here.entries().iter().filter(|entry| entry.level >= level) {
                entry.control.drain(by);
            }
        })
        .await;
        self.none_from(alive, level, by).await;
    }

    /// Ends everybody who is left at `level` or higher; answers who that is, and who was ended at the deadline.
    async fn end_from(&self, alive: &[bool], level: u16) -> Vec<Unfinished> {
        let left = self.on_each(alive, clock::later(clock::now(), GRACE), move |here| {
            let mut unfinished = here.overdue.take();
            for entry in here.entries().iter().filter(|entry| entry.level >= level) {
                entry.control.stop(StopCause::Deadline);
                unfinished.push(entry.unfinished(here.index));
            }
            unfinished
        });
        let unfinished: Vec<_> = left.await.into_iter().flatten().flatten().collect();
        if !unfinished.is_empty() {
            self.none_from(alive, level, clock::later(clock::now(), GRACE)).await;
        }
        unfinished
    }

    async fn none_from(&self, alive: &[bool], level: u16, by: Instant) {
        let mut waiting = Vec::new();
        for (seat, _) in self.inner.seats.iter().zip(alive).filter(|(_, alive)| **alive) {
            let (tell, told) = oneshot::channel();
            seat.run(Box::new(move || {
                if let Some(here) = local::current() {
                    here.when_none_from(level, tell);
                }
            }));
            waiting.push(told);
        }
        for told in waiting {
            let left = by.saturating_duration_since(clock::now());
            // Elapsed or gone: both are seen by the caller, who looks at what is left.
            let _late = clock::within(left, told).await;
        }
    }

    /// Runs `f` on each arbiter that is alive; `None` where no answer came by `by`.
    pub(crate) async fn on_each<R: Send + 'static>(
        &self,
        alive: &[bool],
        by: Instant,
        f: impl Fn(&local::Local) -> R + Clone + Send + 'static,
    ) -> Vec<Option<R>> {
        let asked: Vec<_> = self
            .inner
            .seats
            .iter()
            .zip(alive)
            .map(|(seat, alive)| {
                let (tell, told) = oneshot::channel();
                let f = f.clone();
                let run = *alive
                    && seat.run(Box::new(move || {
                        if let Some(here) = local::current() {
                            let _gone = tell.send(f(&here));
                        }
                    }));
                run.then_some(told)
            })
            .collect();
        let mut answers = Vec::with_capacity(asked.len());
        for told in asked {
            answers.push(match told {
                Some(told) => {
                    let left = by.saturating_duration_since(clock::now());
                    clock::within(left, told).await.ok().and_then(Result::ok)
                }
                None => None,
            });
        }
        answers
    }
}
