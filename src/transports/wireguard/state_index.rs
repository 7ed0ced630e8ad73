//! Receiver indices: from the number in a datagram to the session it is for.
//!
//! An engine uses 256 indices that share their upper 24 bits. Which 24 bits a peer gets is random, so that indices tell
//! an observer nothing about how many peers there are or which of them came when; the random numbers come from the
//! caller. At most 2²⁴ − 1 peers can have one.

use std::collections::HashMap;

/// Peers by the upper 24 bits of their indices.
#[derive(Debug, Default)]
pub struct Indices {
    peers: HashMap<u32, u32>,
}

impl Indices {
    /// Gives a peer an index that nobody else has: `random` is asked until one is free, and neighbours are tried after
    /// some vain attempts. Nothing if all are taken.
    pub fn assign(&mut self, peer: u32, mut random: impl FnMut() -> u32) -> Option<u32> {
        const SPACE: u32 = 1 << 24;
        if self.peers.len() as u64 >= u64::from(SPACE) - 1 {
            return None;
        }
        let mut index = 0;
        for _ in 0..8 {
            index = random() % SPACE;
            if !self.peers.contains_key(&index) {
                break;
            }
        }
        while self.peers.contains_key(&index) {
            index = (index + 1) % SPACE;
        }
        self.peers.insert(index, peer);
        Some(index)
    }

    /// The peer that a datagram's receiver index leads to.
    #[must_use]
    pub fn peer(&self, receiver: u32) -> Option<u32> {
        self.peers.get(&(receiver >> 8)).copied()
    }

    /// The index is free again.
    pub fn release(&mut self, index: u32) {
        self.peers.remove(&index);
    }

    /// How many are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_leads_to_its_peer_until_it_is_released() {
        let mut indices = Indices::default();
        let one = indices.assign(10, || 0xab_cdef).unwrap();
        let two = indices.assign(11, || 0xab_cdef).unwrap();
        assert_eq!((one, two), (0xab_cdef, 0xab_cdf0), "a taken one leads to its neighbour");
        assert_eq!(indices.peer(0xabcd_ef07), Some(10));
        assert_eq!(indices.peer(0xabcd_f0ff), Some(11));
        assert_eq!(indices.peer(0x0000_00ff), None);
        indices.release(one);
        assert_eq!(indices.peer(0xabcd_ef07), None);
        assert_eq!(indices.len(), 1);
        let last = indices.assign(12, || u32::MAX).unwrap();
        assert_eq!(last, 0xff_ffff);
        assert_eq!(indices.assign(13, || u32::MAX), Some(0), "round the end");
    }
}
