//! Token buckets: of each source of handshakes, before any cryptography, and of each peer's packets and bytes.
//!
//! A bucket fills with time and is asked before work is done. The table of sources is bounded: when it is full, buckets
//! that have filled up again are forgotten, and if none has, a new source shares one bucket with all others that find no
//! place. `now` comes in; nothing reads a clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Fills at `rate` per second up to `burst`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: u64, burst: u64, now: Instant) -> Self {
        // Both stay far below 2⁵³, where a float counts exactly.
        Self { rate: rate as f64, burst: burst as f64, level: burst as f64, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.burst);
        self.at = now;
    }

    /// Takes `amount` if it is there.
    pub fn take(&mut self, amount: u64, now: Instant) -> bool {
        self.fill(now);
        let amount = amount as f64;
        if self.level < amount {
            return false;
        }
        self.level -= amount;
        true
    }

    fn is_full(&self, now: Instant) -> bool {
        let mut later = *self;
        later.fill(now);
        later.level >= later.burst
    }
}

/// What one peer may move in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerLimit {
    /// Bytes of inner packets per second; `None`: any.
    pub bytes: Option<u64>,
    /// Bytes that may pass at once, where `bytes` is given. At least one packet of 64 KiB is always allowed.
    pub burst: u64,
    /// Packets per second; `None`: any. As many may pass at once.
    pub packets: Option<u64>,
}

/// The buckets of one peer in one direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerBuckets {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl PeerBuckets {
    /// Full buckets.
    #[must_use]
    pub fn new(limit: PeerLimit, now: Instant) -> Self {
        let bytes = limit.bytes.map(|rate| Bucket::new(rate, limit.burst.max(u64::from(u16::MAX)), now));
        let packets = limit.packets.map(|rate| Bucket::new(rate, rate.max(1), now));
        Self { bytes, packets }
    }

    /// Whether a packet of this length may pass now.
    pub fn take(&mut self, length: usize, now: Instant) -> bool {
        let fits = |bucket: &mut Option<Bucket>, amount| bucket.as_mut().is_none_or(|bucket| bucket.take(amount, now));
        fits(&mut self.packets, 1) && fits(&mut self.bytes, length as u64)
    }
}

/// Handshakes by source: an IPv4 address, or the first 64 bits of an IPv6 address.
#[derive(Debug)]
pub struct Sources {
    buckets: HashMap<IpAddr, Bucket>,
    shared: Bucket,
    rate: u64,
    burst: u64,
    most: usize,
    swept: Instant,
}

/// A full table is searched for buckets to forget at most this often.
const SWEEP: Duration = Duration::from_millis(100);

impl Sources {
    /// For at most `most` sources at a time.
    #[must_use]
    pub fn new(rate: u64, burst: u64, most: usize, now: Instant) -> Self {
        Self { buckets: HashMap::new(), shared: Bucket::new(rate, burst, now), rate, burst, most, swept: now }
    }

    /// Whether one more handshake of this source may be looked at.
    pub fn take(&mut self, from: IpAddr, now: Instant) -> bool {
        let source = source(from);
        if let Some(bucket) = self.buckets.get_mut(&source) {
            return bucket.take(1, now);
        }
        if self.buckets.len() >= self.most && now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if self.buckets.len() >= self.most {
            return self.shared.take(1, now);
        }
        let mut bucket = Bucket::new(self.rate, self.burst, now);
        let taken = bucket.take(1, now);
        self.buckets.insert(source, bucket);
        taken
    }

    /// How many sources are known now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

/// Who counts as one: whoever has an IPv6 network can send from any address of it.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_fills_with_time_and_not_beyond_its_burst() {
        let now = clock::now();
        let mut bucket = Bucket::new(10, 5, now);
        assert_eq!((0..9).filter(|_| bucket.take(1, now)).count(), 5);
        assert!(!bucket.take(1, now + SECOND / 20));
        assert!(bucket.take(1, now + SECOND / 10));
        assert_eq!((0..9).filter(|_| bucket.take(1, now + 9 * SECOND)).count(), 5);
        assert!(!bucket.take(1, now), "time that goes back gives nothing");
    }

    #[test]
    fn each_source_has_its_own() {
        let now = clock::now();
        let mut sources = Sources::new(20, 5, 100, now);
        let mut take = |from: &str, n: usize| (0..n).filter(|_| sources.take(from.parse().unwrap(), now)).count();
        assert_eq!(take("192.0.2.1", 20_000), 5);
        assert_eq!(take("192.0.2.2", 3), 3);
        assert_eq!(take("::ffff:192.0.2.2", 3), 2, "the same source");
        assert_eq!(take("2001:db8::1", 4), 4);
        assert_eq!(take("2001:db8::ffff:1", 4), 1, "the same network");
        assert_eq!(take("2001:db8:0:1::1", 4), 4);
    }

    #[test]
    fn the_table_is_bounded_and_heals() {
        let now = clock::now();
        let mut sources = Sources::new(10, 2, 50, now);
        let of = |n: u32| IpAddr::V4(n.into());
        let passed = (0..10_000).filter(|n| sources.take(of(*n), now)).count();
        assert_eq!((passed, sources.len()), (52, 50), "those without a place share one bucket");
        assert!(sources.take(of(20_000), now + SECOND));
        assert_eq!(sources.len(), 1);
    }

    #[test]
    fn a_peer_is_held_to_both_of_its_limits() {
        let now = clock::now();
        let limit = PeerLimit { bytes: Some(100_000), burst: 0, packets: Some(50) };
        let mut buckets = PeerBuckets::new(limit, now);
        assert_eq!((0..100).filter(|_| buckets.take(100, now)).count(), 50);
        let mut buckets = PeerBuckets::new(limit, now);
        assert_eq!((0..49).filter(|_| buckets.take(10_000, now)).count(), 6, "65,535 bytes at once");
        assert!(buckets.take(10_000, now + SECOND));
        let mut free = PeerBuckets::new(PeerLimit::default(), now);
        assert!((0..1_000).all(|_| free.take(65_000, now)));
    }
}
