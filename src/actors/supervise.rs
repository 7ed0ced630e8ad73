//! Supervision: what happens after an actor has failed.
//!
//! The default is nothing: the actor has ended, and watchers learn why. That is right for connections and sessions,
//! whose state cannot be made again. An actor that a group supervises is made anew by its factory when it answers a
//! fault or panics; its mailbox stays, with what waits in it (the message that failed is gone), and so do its name,
//! its watchers and everybody's `Mail`. A group also decides what becomes of the others, and gives up when failures
//! come faster than its budget allows: then all its actors end, last started first. An actor that stops by itself, is
//! asked to, or is drained is not made again. There is no supervisor actor: the decision is taken under the group's
//! lock by whoever failed, so it cannot be queued behind anything.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::clock::later;
use super::lane::StopCause;
use super::mailbox::{Controlled, Mail};
use super::mesh::{Mesh, Place, SpawnError, Spec};
use super::protocol::Protocol;

/// Who is made anew when one of a group fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// That one alone.
    OneForOne,
    /// All of the group.
    OneForAll,
    /// That one and those started after it.
    RestForOne,
}

/// How often a group may fail, and how long it waits before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Failures that are mended within `within`; one more and the group gives up.
    pub failures: u32,
    /// The span of time in which they are counted.
    pub within: Duration,
    /// The wait before the first restart; it doubles with each further failure in the span, and each wait is spread
    /// by up to a half in either direction, so that many groups do not come back at the same instant.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
}

impl Default for Budget {
    /// Three failures in ten seconds; waits from 10 ms to 1 s.
    fn default() -> Self {
        Self {
            failures: 3,
            within: Duration::from_secs(10),
            first_wait: Duration::from_millis(10),
            longest_wait: Duration::from_secs(1),
        }
    }
}

/// Actors that are supervised together. Clones share the group.
#[derive(Clone)]
pub struct Group {
    mesh: Mesh,
    inner: Arc<Supervision>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("strategy", &self.inner.strategy).finish_non_exhaustive()
    }
}

impl Mesh {
    /// A group without actors yet.
    #[must_use]
    pub fn group(&self, strategy: Strategy, budget: Budget) -> Group {
        let ledger = Ledger { children: Vec::new(), failures: VecDeque::new(), over: false };
        Group { mesh: self.clone(), inner: Arc::new(Supervision { strategy, budget, ledger: Mutex::new(ledger) }) }
    }

    /// Starts one actor that is made anew when it fails: a group of its own.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn supervise<P: Protocol>(
        &self,
        place: Place,
        spec: Spec,
        budget: Budget,
        make: impl FnMut() -> P + Send + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        self.group(Strategy::OneForOne, budget).spawn(place, spec, make)
    }
}

impl Group {
    /// Starts an actor as the last of the group. `make` runs on its arbiter, now and after each failure; a panic in
    /// it is a failure too.
    ///
    /// # Errors
    /// See [`Mesh::spawn`]; [`SpawnError::Stopped`] when the group has given up.
    pub fn spawn<P: Protocol>(
        &self,
        place: Place,
        spec: Spec,
        make: impl FnMut() -> P + Send + 'static,
    ) -> Result<Mail<P::Msg>, SpawnError> {
        self.mesh.spawn_supervised(self.inner.clone(), place, spec, make)
    }

    /// True once the budget was used up: its actors have ended or are about to.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        self.inner.ledger.lock().over
    }
}

/// The group as its actors see it.
pub(crate) struct Supervision {
    strategy: Strategy,
    budget: Budget,
    ledger: Mutex<Ledger>,
}

struct Ledger {
    children: Vec<Arc<dyn Controlled>>,
    failures: VecDeque<Instant>,
    over: bool,
}

/// What an actor that has failed is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Be made anew at this instant.
    Revive(Instant),
    /// End.
    GiveUp,
}

impl Supervision {
    /// Takes an actor in. False when the group has given up already.
    pub(crate) fn enter(&self, child: Arc<dyn Controlled>) -> bool {
        let mut ledger = self.ledger.lock();
        if !ledger.over {
            ledger.children.push(child);
        }
        !ledger.over
    }

    /// An actor has ended for good.
    pub(crate) fn leave(&self, child: u64) {
        self.ledger.lock().children.retain(|other| other.number() != child);
    }

    /// An actor has failed; decides about it and tells the others.
    pub(crate) fn failed(&self, child: u64, now: Instant) -> Verdict {
        let mut ledger = self.ledger.lock();
        let budget = &self.budget;
        while ledger.failures.front().is_some_and(|at| now.saturating_duration_since(*at) > budget.within) {
            ledger.failures.pop_front();
        }
        if ledger.over || ledger.failures.len() >= budget.failures as usize {
            ledger.over = true;
            for other in ledger.children.iter().rev().filter(|other| other.number() != child) {
                other.stop(StopCause::Group);
            }
            return Verdict::GiveUp;
        }
        ledger.failures.push_back(now);
        let at = later(now, self.wait(ledger.failures.len(), child));
        let mine = ledger.children.iter().position(|other| other.number() == child);
        let first = match self.strategy {
            Strategy::OneForOne => ledger.children.len(),
            Strategy::OneForAll => 0,
            Strategy::RestForOne => mine.map_or(ledger.children.len(), |mine| mine + 1),
        };
        for other in ledger.children.iter().skip(first).filter(|other| other.number() != child) {
            other.remake(at);
        }
        Verdict::Revive(at)
    }

    /// The wait before the nth restart in the span.
    fn wait(&self, nth: usize, salt: u64) -> Duration {
        let doublings = u32::try_from(nth.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
        let wait = self.budget.first_wait.saturating_mul(1 << doublings).min(self.budget.longest_wait);
        // Between one half and three halves; the same actor and number give the same, so a simulation replays.
        let spread = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(nth as u64 * 0x2545_f491) >> 7 & 1_023;
        wait.mul_f64(0.5 + spread as f64 / 1_023.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock;
    use crate::actors::lane::Depth;

    struct Child(u64, Mutex<Vec<&'static str>>);

    impl Controlled for Child {
        fn depth(&self) -> Depth {
            Depth::default()
        }
        fn stop(&self, _: StopCause) {
            self.1.lock().push("stop");
        }
        fn drain(&self, _: Instant) {}
        fn quiesce(&self) {}
        fn remake(&self, _: Instant) {
            self.1.lock().push("remake");
        }
        fn number(&self) -> u64 {
            self.0
        }
    }

    fn group(strategy: Strategy, failures: u32) -> (Supervision, Vec<Arc<Child>>) {
        let budget = Budget { failures, ..Budget::default() };
        let ledger = Ledger { children: Vec::new(), failures: VecDeque::new(), over: false };
        let group = Supervision { strategy, budget, ledger: Mutex::new(ledger) };
        let children: Vec<_> = (0..3).map(|n| Arc::new(Child(n, Mutex::default()))).collect();
        children.iter().for_each(|child| assert!(group.enter(child.clone())));
        (group, children)
    }

    fn told(children: &[Arc<Child>]) -> Vec<Vec<&'static str>> {
        children.iter().map(|child| std::mem::take(&mut *child.1.lock())).collect()
    }

    #[test]
    fn each_strategy_tells_whom_it_says() {
        for (strategy, expected) in
            [(Strategy::OneForOne, [0, 0, 0]), (Strategy::OneForAll, [1, 0, 1]), (Strategy::RestForOne, [0, 0, 1])]
        {
            let (group, children) = group(strategy, 3);
            assert!(matches!(group.failed(1, clock::now()), Verdict::Revive(_)));
            assert_eq!(told(&children).iter().map(Vec::len).collect::<Vec<_>>(), expected, "{strategy:?}");
        }
    }

    #[test]
    fn the_budget_is_a_sliding_span_and_its_end_is_final() {
        let (group, children) = group(Strategy::OneForOne, 2);
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(matches!(group.failed(0, at(0)), Verdict::Revive(_)));
        assert!(matches!(group.failed(0, at(6)), Verdict::Revive(_)));
        assert!(matches!(group.failed(0, at(12)), Verdict::Revive(_)), "the first is out of the span");
        assert_eq!(group.failed(0, at(13)), Verdict::GiveUp);
        assert_eq!(told(&children), [vec![], vec!["stop"], vec!["stop"]]);
        assert_eq!(group.failed(1, at(100)), Verdict::GiveUp);
        assert!(!group.enter(children[0].clone()));
    }

    #[test]
    fn waits_double_are_spread_and_bounded() {
        let (group, _) = group(Strategy::OneForOne, 100);
        let mut seen = std::collections::BTreeSet::new();
        for nth in 1..=40 {
            for salt in 0..50 {
                let wait = group.wait(nth, salt);
                let plain =
                    Duration::from_millis(10).saturating_mul(1 << (nth - 1).min(20)).min(Duration::from_secs(1));
                assert!(wait >= plain / 2 && wait <= plain * 3 / 2 + Duration::from_nanos(10), "{nth} {wait:?}");
                seen.insert(wait);
            }
        }
        assert!(seen.len() > 100, "spread");
    }
}
