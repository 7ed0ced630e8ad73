//! How often something may happen: a token bucket for all, or one for each source of it.
//!
//! Each bucket is one number, the time at which it would be full again (the generic cell rate algorithm), changed
//! without a lock, so that all arbiters share one bound. The table of sources never grows: [`SETS`] sets of [`WAYS`]
//! places each. A source takes the place of one whose bucket is full again. When a set has no such place, newcomers
//! share one bucket of the set until one is free: a flood of addresses costs other newcomers, and never memory.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sets of places for sources.
pub const SETS: usize = 4_096;
/// Places in a set.
pub const WAYS: usize = 4;

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many times, at least 1,
    pub count: u32,
    /// in this time.
    pub per: Duration,
    /// So many at once, at least 1.
    pub burst: u32,
}

impl Rate {
    /// Nanoseconds between two in the long run.
    fn step(&self) -> u64 {
        (nanos(self.per) / u64::from(self.count.max(1))).max(1)
    }

    /// How far a bucket may be from being full, in nanoseconds.
    fn depth(&self) -> u64 {
        self.step().saturating_mul(u64::from(self.burst.max(1)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Debug, Default)]
struct Place {
    /// Whose it is; 0: nobody's.
    source: AtomicU64,
    full_at: AtomicU64,
}

#[derive(Debug, Default)]
struct Set {
    places: [Place; WAYS],
    shared: AtomicU64,
}

/// A limiter: of everything, or of each source.
pub struct Limiter {
    rate: Rate,
    epoch: OnceLock<Instant>,
    all: AtomicU64,
    sources: Option<Box<[Set]>>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Limiter {
    /// One bucket for all.
    #[must_use]
    pub const fn of_all(rate: Rate) -> Self {
        Self { rate, epoch: OnceLock::new(), all: AtomicU64::new(0), sources: None }
    }

    /// A bucket for each source. Takes 288 KiB.
    #[must_use]
    pub fn of_sources(rate: Rate) -> Self {
        let sources = (0..SETS).map(|_| Set::default()).collect();
        Self { sources: Some(sources), ..Self::of_all(rate) }
    }

    /// Takes one from the bucket. `source` is a number nobody can choose, made of the source and a secret; it is not
    /// looked at where there is one bucket for all.
    ///
    /// # Errors
    /// How long to wait until there is one.
    pub fn take(&self, source: u64, now: Instant) -> Result<(), Duration> {
        let epoch = *self.epoch.get_or_init(|| now);
        // Never 0: that is a bucket nobody has used.
        let now = nanos(now.saturating_duration_since(epoch)).saturating_add(1);
        match &self.sources {
            None => self.from(&self.all, now),
            Some(sets) => {
                let at = usize::try_from(source % SETS as u64).unwrap_or(0);
                let Some(set) = sets.get(at) else { return Ok(()) };
                self.from(set.bucket(source.max(1), now), now)
            }
        }
    }

    fn from(&self, bucket: &AtomicU64, now: u64) -> Result<(), Duration> {
        let (step, depth) = (self.rate.step(), self.rate.depth());
        let taken = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let next = full_at.max(now).saturating_add(step);
            (next <= now.saturating_add(depth)).then_some(next)
        });
        match taken {
            Ok(_) => Ok(()),
            Err(full_at) => {
                let next = full_at.max(now).saturating_add(step);
                Err(Duration::from_nanos(next.saturating_sub(now.saturating_add(depth)).max(1)))
            }
        }
    }
}

impl Set {
    fn bucket(&self, source: u64, now: u64) -> &AtomicU64 {
        let is = |place: &&Place| place.source.load(Ordering::Relaxed) == source;
        if let Some(place) = self.places.iter().find(is) {
            return &place.full_at;
        }
        for place in &self.places {
            let before = place.source.load(Ordering::Relaxed);
            // A bucket that is full again knows nothing that a new one would not.
            if place.full_at.load(Ordering::Relaxed) <= now
                && place.source.compare_exchange(before, source, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return &place.full_at;
            }
        }
        &self.shared
    }
}

/// A bucket of one owner, of which several are taken at once: bytes, say. Exact at any rate.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// In a second.
    rate: u64,
    /// How many it holds, in billionths: a nanosecond adds `rate` of them.
    depth: u128,
    level: u128,
    at: Instant,
}

/// Billionths in one.
const ONE: u128 = 1_000_000_000;

impl Bucket {
    /// A full bucket that holds `depth` and gets `rate` more in each second.
    #[must_use]
    pub fn new(rate: u64, depth: u64, now: Instant) -> Self {
        let depth = u128::from(depth) * ONE;
        Self { rate, depth, level: depth, at: now }
    }

    /// Takes `n` from it, or nothing and answers false if it does not hold so many.
    pub fn take(&mut self, n: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let gained = passed.as_nanos().saturating_mul(u128::from(self.rate));
        self.level = self.level.saturating_add(gained).min(self.depth);
        match self.level.checked_sub(u128::from(n) * ONE) {
            Some(left) => {
                self.level = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock;

    const RATE: Rate = Rate { count: 10, per: Duration::from_secs(1), burst: 3 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let limiter = Limiter::of_all(RATE);
        let start = clock::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!([(); 3].map(|()| limiter.take(0, at(0))), [Ok(()); 3]);
        assert_eq!(limiter.take(0, at(0)), Err(Duration::from_millis(100)));
        assert_eq!(limiter.take(0, at(60)), Err(Duration::from_millis(40)));
        assert_eq!((limiter.take(0, at(100)), limiter.take(0, at(100)).is_ok()), (Ok(()), false));
        let given = (101..10_101).filter(|ms| limiter.take(0, at(*ms)).is_ok()).count();
        assert!((99..=101).contains(&given), "{given} in ten seconds");
        assert_eq!([(); 3].map(|()| limiter.take(0, at(20_000))), [Ok(()); 3]);
        assert!(limiter.take(0, at(20_000)).is_err(), "no more than the burst is saved up");
    }

    #[test]
    fn sources_do_not_pay_for_each_other_while_there_is_room() {
        let limiter = Limiter::of_sources(RATE);
        let now = clock::now();
        let set = |n: u64| n * SETS as u64 + 7;
        for source in (1..=WAYS as u64).map(set) {
            assert_eq!([(); 4].map(|()| limiter.take(source, now).is_ok()), [true, true, true, false]);
        }
        // The set is full: newcomers share.
        assert_eq!([90, 91, 92, 93].map(|n| limiter.take(set(n), now).is_ok()), [true, true, true, false]);
        assert!(limiter.take(8, now).is_ok(), "another set");
        // Those of before are full again, so a newcomer gets a place of its own.
        let later = now + Duration::from_millis(301);
        assert_eq!([(); 4].map(|()| limiter.take(set(94), later).is_ok()), [true, true, true, false]);
    }

    #[test]
    fn a_bucket_of_one_owner_gives_exactly_its_rate() {
        for rate in [7, 1_000, 3_000_000_000] {
            let start = clock::now();
            let mut bucket = Bucket::new(rate, rate, start);
            assert!(bucket.take(rate, start) && !bucket.take(1, start), "what it held, once");
            let mut given = 0;
            for ms in 1..=10_000 {
                let now = start + Duration::from_millis(ms);
                let piece = (rate / 1_000).max(1);
                while bucket.take(piece, now) {
                    given += piece;
                }
            }
            assert_eq!(given, rate * 10);
            assert!(!bucket.take(rate + 1, start + Duration::from_secs(1_000)), "no more than it holds is saved up");
            assert!(bucket.take(0, start), "an earlier time is none");
        }
    }

    #[test]
    fn arbiters_share_the_bound() {
        let limiter = Limiter::of_all(Rate { count: 1, per: Duration::from_secs(3_600), burst: 1_000 });
        let now = clock::now();
        let given = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1_000).filter(|_| limiter.take(0, now).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(given, 1_000);
    }
}
