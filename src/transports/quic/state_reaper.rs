//! Notices a peer that acknowledges nothing: it may send forever and so keep the idle timeout away, while what was
//! sent to it is held for retransmission.
//!
//! It is looked at only after a probe timeout fired, so a connection that is quiet costs nothing.

use std::time::{Duration, Instant};

/// What one connection knows about acknowledgements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reaper {
    limit: Duration,
    acked: u64,
    probes: usize,
    /// Since when probes went unanswered.
    since: Option<Instant>,
}

impl Reaper {
    /// For a peer that has `limit` from the first unanswered probe on.
    #[must_use]
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit, acked: 0, probes: 0, since: None }
    }

    /// Takes note of the bytes acknowledged and the probes sent so far. True when the peer's time is up.
    pub(super) fn look(&mut self, acked: u64, probes: usize, now: Instant) -> bool {
        if acked != self.acked {
            self.acked = acked;
            self.probes = probes;
            self.since = None;
            return false;
        }
        if probes != self.probes {
            self.probes = probes;
            self.since.get_or_insert(now);
        }
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.limit)
    }

    /// When to look again.
    #[must_use]
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since.and_then(|since| since.checked_add(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_acknowledges_nothing_has_its_time() {
        let start = crate::actors::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reaper = Reaper::new(Duration::from_secs(60));
        assert!(!reaper.look(0, 0, at(0)));
        assert_eq!(reaper.deadline(), None, "nothing is unanswered yet");
        assert!(!reaper.look(0, 1, at(10)));
        assert_eq!(reaper.deadline(), Some(at(70)));
        assert!(!reaper.look(0, 4, at(69)));
        assert!(reaper.look(0, 5, at(70)));
    }

    #[test]
    fn any_progress_starts_anew() {
        let start = crate::actors::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reaper = Reaper::new(Duration::from_secs(60));
        assert!(!reaper.look(0, 1, at(0)));
        assert!(!reaper.look(1, 3, at(59)));
        assert_eq!(reaper.deadline(), None);
        assert!(!reaper.look(1, 3, at(1_000)), "no probe, nothing owed");
        assert!(!reaper.look(1, 4, at(1_001)));
        assert!(reaper.look(1, 5, at(1_061)));
    }
}
