//! Datagrams that wait to be sent on one connection: atomic, bounded in packets and in bytes, the most important first.
//!
//! They are kept here and not in QUIC's own queue, which knows no order: what is late is dropped before it takes room
//! on the wire. Nothing is dropped uncounted.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

/// What happens to a datagram that finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The oldest of the least important is dropped for it, unless it is itself less important than all.
    #[default]
    DropOldest,
    /// It is dropped itself.
    DropNewest,
    /// It is given back, and its sender waits.
    Wait,
}

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramLimits {
    /// Datagrams that may wait.
    pub packets: usize,
    /// Their bytes.
    pub bytes: usize,
    /// What happens beyond that.
    pub when_full: WhenFull,
}

impl Default for DatagramLimits {
    /// 256 datagrams, 512 KiB, the oldest dropped first.
    fn default() -> Self {
        Self { packets: 256, bytes: 512 << 10, when_full: WhenFull::default() }
    }
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Its contents.
    pub bytes: Bytes,
    /// 0 goes first.
    pub priority: u8,
    /// Of no use after that: dropped then.
    pub expires: Option<Instant>,
    /// If it is larger than the path allows now, wait until the path allows it, instead of being refused.
    pub wait_for_path: bool,
}

impl Datagram {
    /// A datagram of middle priority that does not expire.
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self { bytes, priority: 127, expires: None, wait_for_path: false }
    }
}

/// Why a datagram was not queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotQueued {
    /// Larger than the path allows, or than the whole queue.
    TooLarge {
        /// What would be allowed.
        max: usize,
    },
    /// No room, and the queue is one to wait for: here it is back.
    Full(Datagram),
    /// No room: it was dropped, and counted.
    Dropped,
}

/// How many were dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Dropped {
    /// No room.
    pub full: u64,
    /// Too late.
    pub expired: u64,
    /// The path shrank below them.
    pub too_large: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Datagrams {
    limits: DatagramLimits,
    waiting: BTreeMap<(u8, u64), Datagram>,
    bytes: usize,
    next: u64,
    dropped: Dropped,
}

impl Datagrams {
    /// An empty queue.
    #[must_use]
    pub(super) const fn new(limits: DatagramLimits) -> Self {
        let dropped = Dropped { full: 0, expired: 0, too_large: 0 };
        Self { limits, waiting: BTreeMap::new(), bytes: 0, next: 0, dropped }
    }

    /// Datagrams that wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Their bytes.
    #[must_use]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was dropped since this was last asked.
    pub(super) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    /// Whether a datagram of this length finds room.
    #[must_use]
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() < self.limits.packets && self.bytes + bytes <= self.limits.bytes
    }

    /// Queues a datagram, `max` being what the path allows now.
    ///
    /// # Errors
    /// See [`NotQueued`].
    pub(super) fn push(&mut self, datagram: Datagram, max: usize) -> Result<(), NotQueued> {
        let length = datagram.bytes.len();
        if length > max && !datagram.wait_for_path || length > self.limits.bytes || self.limits.packets == 0 {
            return Err(NotQueued::TooLarge { max: max.min(self.limits.bytes) });
        }
        while !self.has_room(length) {
            match self.limits.when_full {
                WhenFull::Wait => return Err(NotQueued::Full(datagram)),
                WhenFull::DropNewest => {
                    self.dropped.full += 1;
                    return Err(NotQueued::Dropped);
                }
                WhenFull::DropOldest => {
                    self.dropped.full += 1;
                    let worst = self.waiting.last_key_value().map_or(0, |((priority, _), _)| *priority);
                    if worst < datagram.priority {
                        return Err(NotQueued::Dropped);
                    }
                    let oldest = self.waiting.range((worst, 0)..).next().map(|(key, _)| *key);
                    let Some(key) = oldest else { return Err(NotQueued::Dropped) };
                    self.remove(key);
                }
            }
        }
        self.bytes += length;
        self.waiting.insert((datagram.priority, self.next), datagram);
        self.next += 1;
        Ok(())
    }

    /// The next datagram that may leave, `max` being what the path allows now. What has expired, or does not fit any
    /// more and was not to wait for the path, is dropped on the way.
    pub(super) fn pop(&mut self, now: Instant, max: usize) -> Option<Bytes> {
        let mut from = (0, 0);
        while let Some((key, datagram)) = self.waiting.range(from..).next() {
            let key = *key;
            let expired = datagram.expires.is_some_and(|at| at <= now);
            let too_large = datagram.bytes.len() > max;
            if too_large && datagram.wait_for_path && !expired {
                from = (key.0, key.1 + 1);
                continue;
            }
            let datagram = self.remove(key)?;
            if expired {
                self.dropped.expired += 1;
            } else if too_large {
                self.dropped.too_large += 1;
            } else {
                return Some(datagram.bytes);
            }
        }
        None
    }

    fn remove(&mut self, key: (u8, u64)) -> Option<Datagram> {
        let datagram = self.waiting.remove(&key)?;
        self.bytes -= datagram.bytes.len();
        Some(datagram)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        crate::actors::clock::now()
    }

    fn datagram(text: &str, priority: u8) -> Datagram {
        Datagram { priority, ..Datagram::new(Bytes::copy_from_slice(text.as_bytes())) }
    }

    fn queue(packets: usize, bytes: usize, when_full: WhenFull) -> Datagrams {
        Datagrams::new(DatagramLimits { packets, bytes, when_full })
    }

    fn all(queue: &mut Datagrams) -> Vec<Bytes> {
        let now = now();
        std::iter::from_fn(|| queue.pop(now, 1_200)).collect()
    }

    #[test]
    fn the_most_important_leaves_first_and_equals_in_order() {
        let mut queue = queue(10, 100, WhenFull::DropOldest);
        for (text, priority) in [("a", 2), ("b", 1), ("c", 2), ("d", 1)] {
            queue.push(datagram(text, priority), 1_200).unwrap();
        }
        assert_eq!(all(&mut queue), ["b", "d", "a", "c"]);
        assert_eq!((queue.bytes(), queue.take_dropped()), (0, Dropped::default()));
    }

    #[test]
    fn a_full_queue_follows_its_policy() {
        let mut oldest = queue(2, 100, WhenFull::DropOldest);
        for (text, priority) in [("a", 1), ("b", 2), ("c", 2)] {
            oldest.push(datagram(text, priority), 1_200).unwrap();
        }
        assert_eq!(oldest.push(datagram("d", 3), 1_200), Err(NotQueued::Dropped));
        assert_eq!(oldest.take_dropped().full, 2);
        assert_eq!(all(&mut oldest), ["a", "c"]);

        let mut newest = queue(2, 100, WhenFull::DropNewest);
        newest.push(datagram("a", 1), 1_200).unwrap();
        newest.push(datagram("b", 1), 1_200).unwrap();
        assert_eq!(newest.push(datagram("c", 0), 1_200), Err(NotQueued::Dropped));
        assert_eq!((newest.take_dropped().full, all(&mut newest)), (1, vec![Bytes::from("a"), Bytes::from("b")]));

        let mut wait = queue(9, 3, WhenFull::Wait);
        wait.push(datagram("abc", 1), 1_200).unwrap();
        assert_eq!(wait.push(datagram("d", 1), 1_200), Err(NotQueued::Full(datagram("d", 1))));
        assert_eq!(wait.take_dropped(), Dropped::default());
    }

    #[test]
    fn one_larger_than_the_path_is_refused_with_what_it_allows_or_waits() {
        let mut queue = queue(9, 100, WhenFull::DropOldest);
        assert_eq!(queue.push(datagram("12345", 0), 4), Err(NotQueued::TooLarge { max: 4 }));
        queue.push(Datagram { wait_for_path: true, ..datagram("12345", 0) }, 4).unwrap();
        queue.push(datagram("1234", 1), 4).unwrap();
        queue.push(datagram("123", 2), 4).unwrap();
        // The path shrinks.
        assert_eq!(queue.pop(now(), 3), Some(Bytes::from("123")));
        assert_eq!(queue.take_dropped(), Dropped { too_large: 1, ..Dropped::default() });
        assert_eq!(queue.pop(now(), 4), None);
        assert_eq!(queue.pop(now(), 5), Some(Bytes::from("12345")));
        assert_eq!(queue.push(datagram(&"x".repeat(101), 0), 1_200), Err(NotQueued::TooLarge { max: 100 }));
    }

    #[test]
    fn what_is_late_is_dropped_and_counted() {
        let now = now();
        let mut queue = queue(9, 100, WhenFull::DropOldest);
        queue.push(Datagram { expires: Some(now), ..datagram("late", 0) }, 1_200).unwrap();
        queue.push(Datagram { expires: Some(now + Duration::from_secs(1)), ..datagram("kept", 0) }, 1_200).unwrap();
        assert_eq!(queue.pop(now, 1_200), Some(Bytes::from("kept")));
        assert_eq!((queue.take_dropped().expired, queue.len()), (1, 0));
    }

    proptest! {
        /// Each datagram leaves once or is counted once, and the bounds hold throughout.
        #[test]
        fn none_is_lost_uncounted(
            pushes in proptest::collection::vec((0_u8..3, 0_usize..40, any::<bool>()), 0..200), policy in 0..2,
        ) {
            let when_full = if policy == 0 { WhenFull::DropOldest } else { WhenFull::DropNewest };
            let mut queue = queue(8, 100, when_full);
            let (mut left, mut pushed) = (0, 0);
            for (priority, length, pop) in pushes {
                pushed += 1;
                let _counted = queue.push(datagram(&"x".repeat(length), priority), 1_200);
                prop_assert!(queue.len() <= 8 && queue.bytes() <= 100);
                if pop {
                    left += u64::from(queue.pop(now(), 1_200).is_some());
                }
            }
            left += all(&mut queue).len() as u64;
            prop_assert_eq!(left + queue.take_dropped().full, pushed);
            prop_assert_eq!(queue.bytes(), 0);
        }
    }
}
