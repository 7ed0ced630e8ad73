//! Initiations that were seen: a replay is known also when the session it once made is gone.
//!
//! A session knows the newest timestamp of its peer and refuses older initiations, but a session that expired and is made
//! anew has forgotten it. So the ephemeral keys of the last accepted initiations of all peers are kept beside: as many as
//! the bound says, oldest forgotten first. The key is random, so its first 16 bytes tell as much as all of it.

use std::collections::{HashSet, VecDeque};

/// A bounded memory of initiations.
#[derive(Debug)]
pub struct Seen {
    known: HashSet<[u8; 16]>,
    order: VecDeque<[u8; 16]>,
    most: usize,
}

impl Seen {
    /// Remembers the last `most` initiations, at about 80 bytes each.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { known: HashSet::new(), order: VecDeque::new(), most }
    }

    /// Whether this ephemeral key came before; from now on it did.
    pub fn note(&mut self, ephemeral: &[u8; 32]) -> bool {
        let Some(short) = ephemeral.first_chunk::<16>() else { return true };
        if !self.known.insert(*short) {
            return true;
        }
        self.order.push_back(*short);
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        false
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> [u8; 32] {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[test]
    fn each_is_new_once_and_the_oldest_is_forgotten() {
        let mut seen = Seen::new(3);
        for n in 0..3 {
            assert!(!seen.note(&key(n)));
            assert!(seen.note(&key(n)));
        }
        assert!(!seen.note(&key(3)));
        assert_eq!(seen.len(), 3);
        assert!(seen.note(&key(1)) && seen.note(&key(2)) && seen.note(&key(3)));
        assert!(!seen.note(&key(0)), "forgotten");
    }
}
