//! Who may begin a handshake on one arbiter: decides for each first Initial between letting in, asking to prove the
//! address (Retry), and dropping.
//!
//! A flood is met in the order of what it costs us: a late arbiter takes nobody, then each source has a token bucket,
//! then a cap on handshakes that have not finished, then a Retry from a quarter of that cap on. A source that has proved
//! its address draws from a bucket of its own, so that somebody who sends with its address cannot use it up. The table
//! of sources is bounded; when it is full of active ones, the rest share one bucket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// When clients are asked to prove their address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetryMode {
    /// From a quarter of the half-open cap on, and for sources above their rate.
    #[default]
    Auto,
    /// Each client: one more round trip for everybody.
    Always,
    /// None.
    Never,
}

/// What one arbiter allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Handshakes that have begun and not finished.
    pub half_open: usize,
    /// First Initials per second from one source (an IPv4 address, or an IPv6 network of 64 bits).
    pub rate: u32,
    /// As many may come at once.
    pub burst: u32,
    /// Asking for proof.
    pub retry: RetryMode,
    /// An arbiter later than this takes nobody.
    pub shed_delay: Duration,
    /// Sources remembered.
    pub sources: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            half_open: 1_000,
            rate: 500,
            burst: 1_000,
            retry: RetryMode::Auto,
            shed_delay: Duration::from_millis(50),
            sources: 65_536,
        }
    }
}

/// What to do with a first Initial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Begin the handshake.
    Accept,
    /// Ask the source to come back with a token.
    Retry,
    /// Drop it, for this reason.
    Drop(&'static str),
}

/// What is known when an Initial arrives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Whence it came.
    pub source: IpAddr,
    /// Whether it brought a valid token.
    pub proved: bool,
    /// Connections on this arbiter.
    pub connections: usize,
    /// Handshakes not finished on it.
    pub half_open: usize,
    /// By how much the arbiter is late.
    pub delay: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a token.
    level: u64,
    at: Instant,
}

impl Bucket {
    /// Fills up to `now` and takes one, if there is one.
    fn take(&mut self, now: Instant, limits: &Limits) -> bool {
        let full = u64::from(limits.burst) * 1_000;
        let passed = now.saturating_duration_since(self.at).as_millis().min(u128::from(u32::MAX)) as u64;
        // Thousandths per millisecond are tokens per second. What is less than a millisecond is left for later.
        self.level = full.min(self.level.saturating_add(passed * u64::from(limits.rate)));
        self.at += Duration::from_millis(passed);
        let some = self.level >= 1_000;
        if some {
            self.level -= 1_000;
        }
        some
    }

    fn is_full(&self, now: Instant, limits: &Limits) -> bool {
        let passed = now.saturating_duration_since(self.at).as_millis() as u64;
        self.level.saturating_add(passed.saturating_mul(u64::from(limits.rate))) >= u64::from(limits.burst) * 1_000
    }
}

/// The doorkeeper of one arbiter.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    sources: HashMap<(IpAddr, bool), Bucket>,
    others: Bucket,
    swept: Instant,
}

/// How often the table of sources is looked through when it is full.
const SWEEP: Duration = Duration::from_millis(100);

impl Admission {
    /// A doorkeeper who knows nobody.
    #[must_use]
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let others = Bucket { level: u64::from(limits.burst) * 1_000, at: now };
        Self { limits, sources: HashMap::new(), others, swept: now }
    }

    /// Other limits from now on. Sources keep what they have used up.
    pub(super) const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Decides.
    pub(super) fn decide(&mut self, asked: &Asked, now: Instant) -> Verdict {
        let limits = self.limits;
        if asked.delay > limits.shed_delay {
            return Verdict::Drop("overload");
        }
        if asked.connections >= limits.connections {
            return Verdict::Drop("limit_connections");
        }
        let within_rate = self.bucket(asked, now).take(now, &limits);
        if !within_rate {
            return Verdict::Drop("rate_limited");
        }
        if asked.half_open >= limits.half_open {
            return Verdict::Drop("limit_half_open");
        }
        let wants_proof = match limits.retry {
            RetryMode::Always => true,
            RetryMode::Never => false,
            RetryMode::Auto => asked.half_open >= limits.half_open / 4,
        };
        if wants_proof && !asked.proved { Verdict::Retry } else { Verdict::Accept }
    }

    fn bucket(&mut self, asked: &Asked, now: Instant) -> &mut Bucket {
        let limits = self.limits;
        let key = (network_of(asked.source), asked.proved);
        if self.sources.len() >= limits.sources && !self.sources.contains_key(&key) {
            if now.saturating_duration_since(self.swept) >= SWEEP {
                self.swept = now;
                self.sources.retain(|_, bucket| !bucket.is_full(now, &limits));
            }
            if self.sources.len() >= limits.sources {
                return &mut self.others;
            }
        }
        self.sources.entry(key).or_insert_with(|| Bucket { level: u64::from(limits.burst) * 1_000, at: now })
    }
}

/// What one host is given: an IPv4 address, or 64 bits of IPv6.
fn network_of(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        crate::actors::clock::now()
    }

    fn limits() -> Limits {
        Limits { connections: 100, half_open: 8, rate: 10, burst: 5, sources: 4, ..Limits::default() }
    }

    fn asked(source: u32) -> Asked {
        Asked { source: IpAddr::V4(source.into()), proved: false, connections: 0, half_open: 0, delay: Duration::ZERO }
    }

    #[test]
    fn each_reason_has_its_word() {
        let now = start();
        let mut keeper = Admission::new(limits(), now);
        assert_eq!(keeper.decide(&asked(1), now), Verdict::Accept);
        let late = Asked { delay: Duration::from_millis(51), ..asked(1) };
        assert_eq!(keeper.decide(&late, now), Verdict::Drop("overload"));
        assert_eq!(keeper.decide(&Asked { connections: 100, ..asked(1) }, now), Verdict::Drop("limit_connections"));
        assert_eq!(keeper.decide(&Asked { half_open: 2, ..asked(1) }, now), Verdict::Retry);
        assert_eq!(keeper.decide(&Asked { half_open: 2, proved: true, ..asked(1) }, now), Verdict::Accept);
        let full = Asked { half_open: 8, proved: true, ..asked(1) };
        assert_eq!(keeper.decide(&full, now), Verdict::Drop("limit_half_open"));
    }

    #[test]
    fn modes_of_retry() {
        let now = start();
        let mut always = Admission::new(Limits { retry: RetryMode::Always, ..limits() }, now);
        assert_eq!(always.decide(&asked(1), now), Verdict::Retry);
        assert_eq!(always.decide(&Asked { proved: true, ..asked(1) }, now), Verdict::Accept);
        let mut never = Admission::new(Limits { retry: RetryMode::Never, ..limits() }, now);
        assert_eq!(never.decide(&Asked { half_open: 7, ..asked(1) }, now), Verdict::Accept);
    }

    #[test]
    fn a_source_has_its_rate_and_hurts_nobody_else() {
        let mut now = start();
        let mut keeper = Admission::new(limits(), now);
        let accepted = (0..50_000).filter(|_| keeper.decide(&asked(1), now) == Verdict::Accept).count();
        assert_eq!(accepted, 5, "the burst");
        assert_eq!(keeper.decide(&asked(1), now), Verdict::Drop("rate_limited"));
        assert_eq!(keeper.decide(&asked(2), now), Verdict::Accept);
        // The same source with a proved address is somebody else: anybody can send with its address.
        assert_eq!(keeper.decide(&Asked { proved: true, ..asked(1) }, now), Verdict::Accept);
        for _ in 0..30 {
            now += Duration::from_millis(50);
            let accepted = (0..100).filter(|_| keeper.decide(&asked(1), now) == Verdict::Accept).count();
            assert!(accepted <= 1);
        }
        let accepted = (0..100).filter(|_| keeper.decide(&asked(1), now + Duration::from_secs(9)) == Verdict::Accept);
        assert_eq!(accepted.count(), 5, "no more than the burst is saved up");
    }

    #[test]
    fn a_full_table_shares_one_bucket_until_it_is_swept() {
        let now = start();
        let mut keeper = Admission::new(limits(), now);
        for source in 0..4 {
            assert_eq!(keeper.decide(&asked(source), now), Verdict::Accept);
        }
        let accepted = (4..1_000).filter(|n| keeper.decide(&asked(*n), now) == Verdict::Accept).count();
        assert_eq!((accepted, keeper.sources.len()), (5, 4));
        let later = now + Duration::from_secs(1);
        assert_eq!(keeper.decide(&asked(5_000), later), Verdict::Accept);
        assert_eq!(keeper.sources.len(), 1, "those who had not been back were forgotten");
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        assert_eq!(network_of("2001:db8::1".parse().unwrap()), network_of("2001:db8::ffff".parse().unwrap()));
        assert_ne!(network_of("2001:db8::1".parse().unwrap()), network_of("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(network_of("::ffff:10.0.0.1".parse().unwrap()), network_of("10.0.0.1".parse().unwrap()));
    }
}
