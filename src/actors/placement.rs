//! Where a new actor goes. Pure: loads in, a number out.

/// Where an actor is to live. It stays there for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// On the arbiter of the caller; on the least loaded one if the caller is no actor.
    Here,
    /// On this arbiter, counted from 0.
    On(usize),
    /// On the arbiter that this key always leads to.
    Hash(u64),
    /// On the less loaded of two arbiters picked by turns.
    LeastLoaded,
    /// On the arbiter named by these bits of an identity that travels with packets (a QUIC connection id, a
    /// WireGuard index): the number modulo the number of arbiters.
    Id(u64),
    /// On the thread for rare work: administration, names, files. Never carries data.
    System,
}

/// How busy an arbiter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Weight {
    pub(crate) live: usize,
    pub(crate) busy_permille: u32,
}

impl Weight {
    /// Live actors change at once and busy time only every tick: the product keeps a burst of new actors from all
    /// going to the arbiter that was idle at the last tick.
    fn score(self) -> u64 {
        (self.live as u64 + 1).saturating_mul(1_000 + u64::from(self.busy_permille) * 4)
    }
}

/// The less loaded of two candidates; `turn` picks them (two choices: Mitzenmacher, 2001).
pub(crate) fn least_loaded(weights: &[Weight], turn: u64) -> usize {
    let n = weights.len() as u64;
    if n < 2 {
        return 0;
    }
    let first = mix(turn) % n;
    let second = (first + 1 + mix(turn.wrapping_add(0x5bd1_e995)) % (n - 1)) % n;
    let score = |i: u64| weights.get(i as usize).map_or(u64::MAX, |w| w.score());
    (if score(second) < score(first) { second } else { first }) as usize
}

/// The arbiter a key leads to.
pub(crate) fn by_hash(key: u64, arbiters: usize) -> usize {
    (mix(key) % arbiters.max(1) as u64) as usize
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): spreads neighbouring numbers.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_spreads_over_equal_arbiters() {
        let mut weights = [Weight::default(); 4];
        for turn in 0..1_000 {
            let at = least_loaded(&weights, turn);
            weights[at].live += 1;
        }
        assert!(weights.iter().all(|w| (200..=300).contains(&w.live)), "{weights:?}");
    }

    #[test]
    fn a_busy_arbiter_gets_less() {
        let mut weights = [Weight { live: 0, busy_permille: 1_000 }, Weight::default()];
        for turn in 0..1_000 {
            let at = least_loaded(&weights, turn);
            weights[at].live += 1;
        }
        assert!(weights[0].live * 3 < weights[1].live, "{weights:?}");
    }

    #[test]
    fn a_hash_is_stable_and_within_bounds() {
        for key in 0..100 {
            assert_eq!(by_hash(key, 3), by_hash(key, 3));
            assert!(by_hash(key, 3) < 3);
        }
        assert_eq!(by_hash(7, 0), 0);
        assert_eq!(least_loaded(&[], 1), 0);
    }
}
