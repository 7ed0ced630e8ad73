//! The streams of one connection, beside what QUIC and the send order know of them: what may still be written and
//! read, and how many bytes wait.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, OnceLock};

use super::messages::SendShared;
use super::session::{StreamError, StreamId};
use super::state_credit::Credit;
use super::state_streams::Priority;

/// What is known of one stream.
pub(super) struct Stream {
    /// As long as this end may write.
    pub(super) send: Option<SendSide>,
    pub(super) receive: Receive,
    /// It has something to be read.
    pub(super) unread: bool,
    pub(super) priority: Priority,
    /// The code it is reset with when its data expire.
    pub(super) expiry_code: u64,
    /// Why nothing more can be written, once that is so.
    pub(super) fate: Option<StreamError>,
}

/// The direction in which this end writes.
pub(super) struct SendSide {
    limit: usize,
    /// Bytes that wait, as long as there is no handle to take credit.
    used: usize,
    /// What handles see of it, made for the first of them: most streams of an application have none.
    shared: Option<Arc<SendShared>>,
    /// Its end was written.
    pub(super) finished: bool,
    /// The turn of sending before which QUIC was given the last bytes.
    pub(super) given: u64,
}

/// The direction in which the peer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// Data may come.
    Open,
    /// All was read, and the end with the last bytes: the next read says so.
    AtEnd,
    Over,
}

impl SendSide {
    pub(super) const fn new(limit: usize) -> Self {
        Self { limit, used: 0, shared: None, finished: false, given: 0 }
    }

    /// The bytes that may still be taken.
    pub(super) fn free(&self) -> usize {
        match &self.shared {
            Some(shared) => shared.credit.free(),
            None => self.limit.saturating_sub(self.used),
        }
    }

    /// Takes bytes, all or none.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        if let Some(shared) = &self.shared {
            return shared.credit.take(bytes);
        }
        let fits = bytes <= self.limit.saturating_sub(self.used);
        self.used += if fits { bytes } else { 0 };
        fits
    }

    /// Gives bytes back.
    pub(super) fn give(&mut self, bytes: usize) {
        match &self.shared {
            Some(shared) => shared.credit.give(bytes),
            None => self.used = self.used.saturating_sub(bytes),
        }
    }

    /// What handles see of it.
    pub(super) const fn shared(&self) -> Option<&Arc<SendShared>> {
        self.shared.as_ref()
    }

    /// What handles see of it from now on.
    pub(super) fn share(&mut self) -> Arc<SendShared> {
        let (limit, used) = (self.limit, self.used);
        let make = || {
            let credit = Credit::new(limit);
            // Fits: there was as much credit without a handle.
            let _fits = credit.take(used);
            Arc::new(SendShared { credit, fate: OnceLock::new() })
        };
        self.shared.get_or_insert_with(make).clone()
    }

    /// Nothing more can be written, for this reason: the handles see it.
    pub(super) fn end(self, fate: StreamError) {
        if let Some(shared) = self.shared {
            let _first = shared.fate.set(fate);
        }
    }
}

impl Stream {
    /// What a handle sees of the direction in which this end writes; `None` if there is none.
    pub(super) fn share(&mut self) -> Option<Arc<SendShared>> {
        if let Some(send) = &mut self.send {
            return Some(send.share());
        }
        let over = SendShared { credit: Credit::new(0), fate: OnceLock::from(self.fate?) };
        Some(Arc::new(over))
    }

    /// Whether its two directions are over.
    pub(super) const fn is_over(&self) -> bool {
        self.send.is_none() && matches!(self.receive, Receive::Over)
    }
}

/// The streams of a connection by their numbers.
pub(super) type Streams = HashMap<StreamId, Stream, BuildHasherDefault<ByNumber>>;

/// Spreads the numbers of streams over a table. A peer can choose them, but only among those that QUIC lets it have
/// open, so that collisions cost it nothing and us little.
#[derive(Debug, Default)]
pub(super) struct ByNumber(u64);

impl Hasher for ByNumber {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The table takes its place from the low bits and its tag from the high ones; the odd number is 2⁶⁴ divided by
        // the golden ratio.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_the_same_with_and_without_a_handle() {
        let mut send = SendSide::new(100);
        assert!(send.take(60) && !send.take(41));
        let shared = send.share();
        assert_eq!((shared.credit.free(), send.free()), (40, 40));
        assert!(shared.credit.take(30) && !send.take(11));
        send.give(90);
        assert_eq!((shared.credit.free(), send.free()), (100, 100));
        send.end(StreamError::Stopped(3));
        assert_eq!(shared.fate.get(), Some(&StreamError::Stopped(3)));
    }

    #[test]
    fn a_handle_that_comes_late_learns_why() {
        let stream = |fate| Stream {
            send: None,
            receive: Receive::Open,
            unread: false,
            priority: Priority::default(),
            expiry_code: 0,
            fate,
        };
        assert!(stream(None).share().is_none(), "a stream of the peer's alone");
        let shared = stream(Some(StreamError::Stopped(3))).share().unwrap();
        assert_eq!(shared.fate.get(), Some(&StreamError::Stopped(3)));
    }

    #[test]
    fn numbers_are_spread() {
        let place = |number| {
            let mut hasher = ByNumber::default();
            hasher.write_u64(number);
            hasher.finish()
        };
        for kind in 0..4 {
            let low: std::collections::BTreeSet<u64> = (0..256).map(|n| place(n * 4 + kind) % 512).collect();
            let tags: std::collections::BTreeSet<u64> = (0..256).map(|n| place(n * 4 + kind) >> 57).collect();
            assert!(low.len() > 150 && tags.len() > 90, "{} places, {} tags", low.len(), tags.len());
        }
    }
}
