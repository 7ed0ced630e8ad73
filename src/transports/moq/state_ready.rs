//! Which of a session's subscriptions and fetches writes next: the one whose key is least.
//!
//! Keys are kept in order and asked for again only where something may have changed, so a step costs the logarithm of how
//! many are ready, however many that are.

use std::collections::{BTreeMap, BTreeSet};

/// See the top of the file.
#[derive(Debug)]
pub struct Ready<K> {
    order: BTreeSet<(K, u64)>,
    keys: BTreeMap<u64, K>,
    /// Those whose key may be another by now.
    marked: BTreeSet<u64>,
}

impl<K> Default for Ready<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), keys: BTreeMap::new(), marked: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Ready<K> {
    /// Something may have changed about this one.
    pub fn mark(&mut self, number: u64) {
        self.marked.insert(number);
    }

    /// It is no more.
    pub fn remove(&mut self, number: u64) {
        self.marked.remove(&number);
        self.put(number, None);
    }

    /// None is any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The one that goes first, with its key. `key` says what is true of one now; those without are not ready, and
    /// appended to `idle`.
    pub fn first(&mut self, mut key: impl FnMut(u64) -> Option<K>, idle: &mut Vec<u64>) -> Option<(u64, K)> {
        while let Some(number) = self.marked.pop_first() {
            let key = key(number);
            if key.is_none() {
                idle.push(number);
            }
            self.put(number, key);
        }
        self.order.first().map(|(key, number)| (*number, *key))
    }

    fn put(&mut self, number: u64, key: Option<K>) {
        if let Some(before) = self.keys.remove(&number) {
            self.order.remove(&(before, number));
        }
        if let Some(key) = key {
            self.keys.insert(number, key);
            self.order.insert((key, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_goes_first_and_only_what_is_marked_is_asked() {
        let mut ready = Ready::default();
        let mut keys = BTreeMap::from([(1, 30), (2, 10), (3, 20)]);
        (1..=4).for_each(|number| ready.mark(number));
        let mut idle = Vec::new();
        assert_eq!(ready.first(|number| keys.get(&number).copied(), &mut idle), Some((2, 10)));
        assert_eq!(idle, [4]);
        assert_eq!(ready.first(|number| panic!("{number} was asked"), &mut idle), Some((2, 10)));
        keys.insert(2, 40);
        ready.mark(2);
        assert_eq!(ready.first(|number| keys.get(&number).copied(), &mut idle), Some((3, 20)));
        ready.remove(3);
        keys.remove(&1);
        ready.mark(1);
        assert_eq!(ready.first(|number| keys.get(&number).copied(), &mut idle), Some((2, 40)));
        assert_eq!(idle, [4, 1]);
        ready.clear();
        assert_eq!(ready.first(|_| None, &mut idle), None);
    }

    /// As many steps as there are ready ask for one key each.
    #[test]
    fn a_step_asks_for_one_key_however_many_are_ready() {
        const MANY: u64 = 10_000;
        let mut ready = Ready::default();
        let mut left: BTreeMap<u64, u64> = (0..MANY).map(|number| (number, number * 7 % MANY)).collect();
        (0..MANY).for_each(|number| ready.mark(number));
        let (mut asked, mut idle, mut last) = (0, Vec::new(), 0);
        while let Some((number, key)) = ready.first(
            |number| {
                asked += 1;
                left.get(&number).copied()
            },
            &mut idle,
        ) {
            assert!(key >= last);
            last = key;
            left.remove(&number);
            ready.mark(number);
        }
        assert_eq!((asked, idle.len() as u64), (2 * MANY, MANY));
    }
}
