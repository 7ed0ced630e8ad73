//! Counters of one arbiter: raised without atomics, summed over arbiters when somebody reads them.
//!
//! A counter is named by a family, a scope (the listener, the kind of actor) and a reason. The number of names is
//! bounded: a name beyond the bound is counted under the reason `other`, so that nothing goes uncounted.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// How many names one arbiter keeps.
pub const COUNTERS: usize = 4_096;

/// One number that only grows. Stays on its arbiter.
#[derive(Clone, Default)]
pub struct Counter(Rc<Cell<u64>>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }

    /// The present value on this arbiter.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counter({})", self.get())
    }
}

/// What a counter counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterName {
    /// What is counted, for instance `frames_in`.
    pub family: &'static str,
    /// Where: the name of a listener, or a kind of actor.
    pub scope: Arc<str>,
    /// Which case of it; empty where a family has only one.
    pub reason: &'static str,
}

/// Counters by name, summed over arbiters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals(pub(crate) BTreeMap<CounterName, u64>);

impl Totals {
    /// All counters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&CounterName, u64)> {
        self.0.iter().map(|(name, value)| (name, *value))
    }

    /// One counter; zero if it was never raised.
    #[must_use]
    pub fn get(&self, family: &str, scope: &str, reason: &str) -> u64 {
        self.iter()
            .filter(|(n, _)| n.family == family && &*n.scope == scope && n.reason == reason)
            .map(|(_, value)| value)
            .sum()
    }

    /// The sum of a family over all scopes and reasons.
    #[must_use]
    pub fn family(&self, family: &str) -> u64 {
        self.iter().filter(|(n, _)| n.family == family).map(|(_, value)| value).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    by_name: RefCell<BTreeMap<CounterName, Counter>>,
}

impl Counters {
    pub(crate) fn counter(&self, family: &'static str, scope: &Arc<str>, reason: &'static str) -> Counter {
        let mut by_name = self.by_name.borrow_mut();
        let mut name = CounterName { family, scope: scope.clone(), reason };
        if let Some(counter) = by_name.get(&name) {
            return counter.clone();
        }
        if by_name.len() >= COUNTERS {
            name = CounterName { family: "other", scope: Arc::from(""), reason: "other" };
        }
        by_name.entry(name).or_default().clone()
    }

    pub(crate) fn raise(&self, family: &'static str, scope: &str, reason: &'static str) {
        self.counter(family, &Arc::from(scope), reason).add(1);
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals(self.by_name.borrow().iter().map(|(name, counter)| (name.clone(), counter.get())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_are_counted_as_other() {
        let counters = Counters::default();
        for n in 0..COUNTERS + 10 {
            counters.raise("family", &n.to_string(), "reason");
        }
        let totals = counters.totals();
        assert_eq!(totals.family("family"), COUNTERS as u64);
        assert_eq!(totals.get("other", "", "other"), 10);
    }

    #[test]
    fn totals_add_up() {
        let (a, b) = (Counters::default(), Counters::default());
        a.raise("in", "x", "");
        b.raise("in", "x", "");
        b.raise("in", "y", "");
        let mut sum = a.totals();
        sum.add(&b.totals());
        assert_eq!((sum.get("in", "x", ""), sum.get("in", "y", ""), sum.family("in")), (2, 1, 3));
    }
}
