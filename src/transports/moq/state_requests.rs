//! What a session knows of requests as such: their numbers, prefixes that must not overlap, and aliases of tracks.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Side;
use super::model_names::Namespace;

/// Numbers of the peer that may have come before those that are missing.
const AHEAD: usize = 4_096;

/// The numbers of requests (draft, section 10.1).
#[derive(Debug)]
pub struct Numbers {
    side: Side,
    next: u64,
    /// All of the peer's below were seen.
    seen: u64,
    ahead: BTreeSet<u64>,
}

impl Numbers {
    /// Of this end.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self { side, next: side.first_request(), seen: side.peer().first_request(), ahead: BTreeSet::new() }
    }

    /// The next of ours.
    pub const fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 2;
        number
    }

    /// The first of the peer's that was not seen.
    #[must_use]
    pub fn first_unseen(&self) -> u64 {
        self.ahead.last().map_or(self.seen, |last| last.saturating_add(2))
    }

    /// One of the peer's. False if it may not be: of the wrong parity, or there before, or too far ahead.
    #[must_use]
    pub fn came(&mut self, number: u64) -> bool {
        if !self.side.peer().owns_request(number) || number < self.seen || !self.ahead.insert(number) {
            return false;
        }
        while self.ahead.first() == Some(&self.seen) {
            self.ahead.pop_first();
            self.seen = self.seen.saturating_add(2);
        }
        self.ahead.len() <= AHEAD
    }
}

/// Prefixes that one kind of request holds in a session: none may begin another (draft, sections 10.18 and 10.19).
#[derive(Debug, Default)]
pub struct Prefixes {
    of: BTreeMap<u64, Namespace>,
}

impl Prefixes {
    /// Whether a prefix may be added, by a request that may hold one already.
    #[must_use]
    pub fn fits(&self, prefix: &Namespace, by: u64) -> bool {
        let mut others = self.of.iter().filter(|(request, _)| **request != by);
        others.all(|(_, other)| !other.starts_with(prefix) && !prefix.starts_with(other))
    }

    /// Adds or replaces that of a request.
    pub fn put(&mut self, by: u64, prefix: Namespace) {
        self.of.insert(by, prefix);
    }

    /// Forgets it.
    pub fn remove(&mut self, by: u64) -> Option<Namespace> {
        self.of.remove(&by)
    }
}

/// Aliases by which the peer names tracks that it sends (draft, section 11.1).
#[derive(Debug, Default)]
pub struct Aliases {
    of: BTreeMap<u64, u64>,
    /// Those of subscriptions that ended lately: what still comes is dropped.
    over: BTreeSet<u64>,
}

/// What an alias names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// The subscription of this request.
    Request(u64),
    /// One that has ended.
    Over,
    /// Nothing yet.
    Nothing,
}

impl Aliases {
    /// How many that have ended are remembered.
    const OVER: usize = 1_024;

    /// A request has this alias from now on. False if another has it.
    #[must_use]
    pub fn put(&mut self, alias: u64, request: u64) -> bool {
        if self.of.contains_key(&alias) {
            return false;
        }
        self.over.remove(&alias);
        self.of.insert(alias, request);
        true
    }

    /// What it names.
    #[must_use]
    pub fn get(&self, alias: u64) -> Named {
        match self.of.get(&alias) {
            Some(request) => Named::Request(*request),
            None if self.over.contains(&alias) => Named::Over,
            None => Named::Nothing,
        }
    }

    /// Its subscription has ended.
    pub fn end(&mut self, alias: u64) {
        if self.of.remove(&alias).is_some() {
            self.over.insert(alias);
            while self.over.len() > Self::OVER {
                self.over.pop_first();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_parity_and_come_once() {
        let mut server = Numbers::new(Side::Server);
        assert_eq!((server.take(), server.take()), (1, 3));
        assert!(server.came(0) && server.came(4) && server.came(2));
        assert!(!server.came(2), "it was there before");
        assert!(!server.came(4), "so was this, ahead of the others");
        assert!(!server.came(1), "that is one of ours");
        assert_eq!(server.first_unseen(), 6);
        assert!(server.came(10));
        assert_eq!(server.first_unseen(), 12);
        let far = (0..=AHEAD as u64 + 1).all(|number| server.came(100 + 2 * number));
        assert!(!far, "what is missing is not awaited without bound");
    }

    #[test]
    fn prefixes_of_one_kind_do_not_overlap() {
        let of = |fields: &[&str]| Namespace::new(fields).unwrap();
        let mut prefixes = Prefixes::default();
        prefixes.put(1, of(&["a", "b"]));
        assert!(!prefixes.fits(&of(&["a"]), 2) && !prefixes.fits(&of(&["a", "b", "c"]), 2));
        assert!(!prefixes.fits(&Namespace::default(), 2), "the empty one overlaps all");
        assert!(prefixes.fits(&of(&["a", "bc"]), 2) && prefixes.fits(&of(&["a"]), 1));
        assert_eq!(prefixes.remove(1), Some(of(&["a", "b"])));
        assert!(prefixes.fits(&of(&["a"]), 2));
    }

    #[test]
    fn an_alias_is_one_track_and_what_comes_late_is_known() {
        let mut aliases = Aliases::default();
        assert!(aliases.put(7, 1) && !aliases.put(7, 2));
        assert_eq!((aliases.get(7), aliases.get(8)), (Named::Request(1), Named::Nothing));
        aliases.end(7);
        assert_eq!(aliases.get(7), Named::Over);
        assert!(aliases.put(7, 3), "it may be used again");
        assert_eq!(aliases.get(7), Named::Request(3));
    }
}
