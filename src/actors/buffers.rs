//! The buffers of one arbiter: a pool for each size that streams need.
//!
//! An actor that must keep bytes asks here. When the pools have nothing, or what is wanted is larger than they keep, it
//! gets an empty buffer that takes memory of its own as it grows; that memory is for the actor to account for.

use crate::memory::{Budget, Buf, Pool, PoolGauge};

/// Bytes of the buffers, by pool. The largest takes what a read with offloads brings, cut into packets.
const SIZES: [usize; 4] = [2 << 10, 16 << 10, 64 << 10, 100 << 10];

/// What the pools of an arbiter are made with.
#[derive(Debug, Clone)]
pub(crate) struct BufferLimits {
    /// Buffers of each size.
    pub(crate) each: usize,
    /// What they take their memory from.
    pub(crate) budget: Option<Budget>,
}

/// The pools of the arbiter that this is made on.
pub(crate) struct Buffers(Vec<Pool>);

impl Buffers {
    pub(crate) fn new(limits: &BufferLimits) -> Self {
        Self(SIZES.iter().map(|size| Pool::new(*size, limits.each, limits.budget.as_ref())).collect())
    }

    pub(crate) fn gauges(&self) -> Vec<PoolGauge> {
        self.0.iter().map(Pool::gauge).collect()
    }

    /// An empty buffer for this many bytes.
    pub(crate) fn get(&self, bytes: usize) -> Buf {
        let pools = self.0.iter().zip(SIZES).filter(|(_, size)| *size >= bytes);
        // The next larger one, if those of the right size are all out: not a large one for a few bytes.
        pools.take(2).map(|(pool, _)| pool.lease()).find_map(Result::ok).unwrap_or_default()
    }

    pub(crate) fn trim(&self) {
        self.0.iter().for_each(Pool::trim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_is_large_enough_or_one_of_its_own() {
        let buffers = Buffers::new(&BufferLimits { each: 1, budget: None });
        let small = buffers.get(100);
        let next = buffers.get(100);
        assert_eq!((small.capacity(), next.capacity()), (SIZES[0], SIZES[1]));
        assert_eq!((buffers.get(100).capacity(), buffers.get(SIZES[3] + 1).capacity()), (0, 0));
        assert_eq!(buffers.get(SIZES[0] + 1).capacity(), SIZES[2], "that of the right size is out");
        drop((small, next));
        assert_eq!(buffers.get(SIZES[1] + 1).capacity(), SIZES[2]);
        assert_eq!(buffers.gauges().iter().map(|gauge| gauge.stats().out).sum::<u64>(), 0);
    }
}
