//! How many bytes may wait to be sent, on a stream and on its connection: taken by whoever writes, on any thread, and
//! given back by the connection's actor when QUIC has taken them.
//!
//! Two numbers, no queue: those who find no credit stand in line at the actor. While somebody does, nobody is served
//! past them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The byte credit of one stream or one connection.
#[derive(Debug)]
pub(super) struct Credit {
    limit: usize,
    used: AtomicUsize,
    waiting: AtomicUsize,
}

impl Credit {
    /// Credit for `limit` bytes, none of them used.
    #[must_use]
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), used: AtomicUsize::new(0), waiting: AtomicUsize::new(0) }
    }

    /// The bytes there are in all.
    #[must_use]
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// The bytes that wait now.
    #[must_use]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bytes that may still be taken.
    #[must_use]
    pub(super) fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// Takes `bytes`, all or none.
    #[must_use]
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }

    /// Gives bytes back.
    pub(super) fn give(&self, bytes: usize) {
        let _before =
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }

    /// Whether somebody stands in line for this credit.
    #[must_use]
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// As many stand in line now.
    pub(super) fn await_by(&self, waiting: usize) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }
}

/// Takes `bytes` of both, all or none.
#[must_use]
pub(super) fn take_both(stream: &Credit, connection: &Credit, bytes: usize) -> bool {
    if !stream.take(bytes) {
        return false;
    }
    if connection.take(bytes) {
        return true;
    }
    stream.give(bytes);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_or_none() {
        let (stream, connection) = (Credit::new(10), Credit::new(12));
        assert!(take_both(&stream, &connection, 10));
        assert!(!take_both(&stream, &connection, 1));
        stream.give(10);
        assert!(!take_both(&stream, &connection, 3), "the connection has two");
        assert_eq!((stream.used(), connection.used()), (0, 10), "a refusal takes nothing");
        assert!(take_both(&stream, &connection, 2));
        assert_eq!((stream.free(), connection.free()), (8, 0));
    }

    #[test]
    fn threads_never_take_more_than_there_is() {
        let credit = Credit::new(1_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..10_000 {
                        let bytes = n % 300 + 1;
                        if credit.take(bytes) {
                            assert!(credit.used() <= 1_000);
                            credit.give(bytes);
                        }
                    }
                });
            }
        });
        assert_eq!(credit.used(), 0);
    }
}
