//! How much a connection may send now, where the congestion control does not say itself: CUBIC and Reno of quiche fill
//! their window at once, and a burst of a whole window is lost at the first small queue.
//!
//! A bucket that fills with 1.25 × window / round-trip time and holds ten packets or two milliseconds, whichever is more.
//! Below a round-trip time of one millisecond there is nothing to spread and it is off.

use std::time::{Duration, Instant};

/// A path shorter than this is not paced.
const SHORTEST: Duration = Duration::from_millis(1);
/// The bucket holds what is sent in this time, at least.
const BURST_TIME_MS: u64 = 2;
/// And as many packets, at least.
const BURST_PACKETS: u64 = 10;

/// The path as the congestion control sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// Bytes that may be on the way.
    pub window: usize,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Bytes of a full datagram.
    pub packet: usize,
}

/// The pacer of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pacer {
    /// Bytes that may leave now. May fall below zero: a train is not cut in the middle of a packet.
    level: i64,
    at: Instant,
    /// Bytes per second; none when it is off.
    rate: Option<u64>,
    burst: u64,
}

impl Pacer {
    /// A pacer that is off until it has seen a path.
    #[must_use]
    pub(super) const fn new(now: Instant) -> Self {
        Self { level: 0, at: now, rate: None, burst: 0 }
    }

    /// Follows the path and fills the bucket. Once per turn that sends.
    pub(super) fn update(&mut self, path: Path, now: Instant) {
        if path.rtt < SHORTEST {
            self.rate = None;
            return;
        }
        let was_off = self.rate.is_none();
        let us = path.rtt.as_micros().max(1);
        let rate = u64::try_from(path.window as u128 * 1_250_000 / us).unwrap_or(u64::MAX).max(1);
        self.rate = Some(rate);
        self.burst = (rate / 1_000 * BURST_TIME_MS).max(path.packet as u64 * BURST_PACKETS);
        let full = i64::try_from(self.burst).unwrap_or(i64::MAX);
        let passed = now.saturating_duration_since(self.at).as_micros();
        let gained = i64::try_from(u128::from(rate) * passed / 1_000_000).unwrap_or(i64::MAX);
        if was_off {
            self.level = full;
            self.at = now;
        } else if gained > 0 {
            self.level = self.level.saturating_add(gained).min(full);
            self.at = now;
        }
    }

    /// Bytes that may leave now; all of them while it is off.
    #[must_use]
    pub(super) fn allowance(&self) -> usize {
        match self.rate {
            Some(_) => usize::try_from(self.level).unwrap_or(0),
            None => usize::MAX,
        }
    }

    /// Bytes have left.
    pub(super) fn spent(&mut self, bytes: usize) {
        if self.rate.is_some() {
            self.level = self.level.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// When a bucket that is empty holds half a burst again: to wake for less costs more than it sends.
    #[must_use]
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let rate = self.rate?;
        let half = i64::try_from(self.burst / 2).unwrap_or(i64::MAX);
        let missing = u64::try_from(half.saturating_sub(self.level)).unwrap_or(0);
        self.at.checked_add(Duration::from_micros(missing.saturating_mul(1_000_000) / rate))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(window: usize, rtt_ms: u64) -> Path {
        Path { window, rtt: Duration::from_millis(rtt_ms), packet: 1_350 }
    }

    #[test]
    fn a_short_path_is_not_paced() {
        let now = crate::actors::clock::now();
        let mut pacer = Pacer::new(now);
        assert_eq!(pacer.allowance(), usize::MAX);
        pacer.update(Path { rtt: Duration::from_micros(999), ..path(13_500, 0) }, now);
        pacer.spent(1 << 30);
        assert_eq!((pacer.allowance(), pacer.ready_at()), (usize::MAX, None));
    }

    #[test]
    fn the_first_burst_is_ten_packets() {
        let now = crate::actors::clock::now();
        let mut pacer = Pacer::new(now);
        pacer.update(path(13_500, 100), now);
        assert_eq!(pacer.allowance(), 13_500);
        pacer.spent(13_500);
        assert_eq!(pacer.allowance(), 0);
        let at = pacer.ready_at().unwrap();
        pacer.update(path(13_500, 100), at);
        assert!((6_749..=6_751).contains(&pacer.allowance()), "{}", pacer.allowance());
    }

    proptest! {
        /// Over a second, what leaves is the rate and one burst.
        #[test]
        fn what_leaves_is_the_rate(window in 13_500_usize..2_000_000, rtt in 2_u64..300, step in 50_u64..5_000) {
            let start = crate::actors::clock::now();
            let mut pacer = Pacer::new(start);
            let mut sent = 0_u64;
            let mut us = 0;
            while us < 1_000_000 {
                pacer.update(path(window, rtt), start + Duration::from_micros(us));
                let now = pacer.allowance() as u64;
                sent += now;
                pacer.spent(now as usize);
                us += step;
            }
            let rate = window as u64 * 1_250 / rtt;
            let burst = (rate / 500).max(13_500);
            prop_assert!(sent <= rate + burst, "{sent} above {rate} + {burst}");
            // Waking less often than a burst lasts leaves some unsent; that is the caller's choice.
            if step <= 1_000 {
                prop_assert!(sent * 100 >= rate * 95, "{sent} of {rate}");
            }
        }
    }
}
