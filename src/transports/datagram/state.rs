//! What becomes of one flow: how long it is remembered, and how much of a train passes.
//!
//! In come the lengths of trains, with the time; out goes which bytes of them pass, when to look again, and why the flow
//! ends. A flow whose server has not answered is forgotten sooner than one that has (RFC 4787, section 4.3: two minutes at
//! least between two that talk). Either direction keeps it. What passes is bounded for each direction on its own.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::codec::LONGEST;
use crate::transports::kit::limiter::Bucket;

/// While it drains, a flow on which nothing moved for so long is over.
pub(super) const DRAIN_IDLE: Duration = Duration::from_secs(2);
/// A bucket holds what passes in this share of a second,
const SHARE: u64 = 10;
/// but never fewer datagrams than this.
const LEAST_BURST: u64 = 64;

/// What holds for each flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTerms {
    /// Silence after which a flow is over in which the server has not answered. Default 60 s.
    pub idle: Duration,
    /// The same once it has. Default 2 min.
    pub idle_answered: Duration,
    /// Bytes of the longest datagram that passes, in either direction. Default [`LONGEST`].
    pub longest: usize,
    /// Datagrams that pass in a second, each way. Default: any number.
    pub datagrams: Option<u64>,
    /// Bytes that pass in a second, each way. Default: any number.
    pub bytes: Option<u64>,
}

impl Default for FlowTerms {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            idle_answered: Duration::from_secs(120),
            longest: LONGEST,
            datagrams: None,
            bytes: None,
        }
    }
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the server.
    Up,
    /// To the client.
    Down,
}

/// Which part of a train passes, and how many datagrams do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passed {
    /// Nothing at all if it is `None`; an empty range is an empty datagram.
    pub(super) range: Option<Range<usize>>,
    pub(super) too_long: u64,
    pub(super) limited: u64,
}

/// What has moved one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Meter {
    datagrams: Option<Bucket>,
    bytes: Option<Bucket>,
    moved: Moved,
}

impl Meter {
    fn new(terms: &FlowTerms, now: Instant) -> Self {
        let bucket = |rate: u64, least: u64| Bucket::new(rate, (rate / SHARE).max(least), now);
        Self {
            datagrams: terms.datagrams.map(|rate| bucket(rate, LEAST_BURST)),
            // Never less than one datagram, or it would never pass.
            bytes: terms.bytes.map(|rate| bucket(rate, LONGEST as u64)),
            moved: Moved::default(),
        }
    }

    fn takes(&mut self, length: usize, now: Instant) -> bool {
        let bytes = self.bytes.as_mut().is_none_or(|bucket| bucket.take(length as u64, now));
        bytes && self.datagrams.as_mut().is_none_or(|bucket| bucket.take(1, now))
    }
}

/// One flow.
#[derive(Debug)]
pub(super) struct State {
    terms: FlowTerms,
    up: Meter,
    down: Meter,
    /// When something last moved, either way.
    moved_at: Instant,
    answered: bool,
    draining: bool,
    refused: bool,
}

impl State {
    pub(super) fn new(terms: FlowTerms, now: Instant) -> Self {
        let meter = || Meter::new(&terms, now);
        let (up, down) = (meter(), meter());
        Self { terms, up, down, moved_at: now, answered: false, draining: false, refused: false }
    }

    const fn meter(&mut self, way: Way) -> &mut Meter {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// A train came: which part of it passes. Whether it passes or not, the flow is not idle.
    pub(super) fn pass(&mut self, way: Way, length: usize, stride: usize, now: Instant) -> Passed {
        self.moved_at = now;
        let stride = stride.max(1);
        let all = super::codec::count(length, stride) as u64;
        let mut passed = Passed { range: Some(0..length), too_long: 0, limited: 0 };
        let longest = self.terms.longest;
        if length.min(stride) > longest {
            // All but the last have this length.
            let last = length - length % stride;
            passed.too_long = all - u64::from(last < length);
            passed.range = (last < length && length - last <= longest).then_some(last..length);
            if passed.range.is_none() {
                passed.too_long = all;
            }
        }
        let meter = self.meter(way);
        if let Some(range) = passed.range.take() {
            passed.range = if meter.datagrams.is_none() && meter.bytes.is_none() {
                Some(range)
            } else {
                let mut end = range.start;
                let mut count = 0;
                while count == 0 || end < range.end {
                    let next = (end + stride).min(range.end);
                    if !meter.takes(next - end, now) {
                        break;
                    }
                    (end, count) = (next, count + 1);
                }
                passed.limited = all - passed.too_long - count;
                (count > 0).then_some(range.start..end)
            };
        }
        passed
    }

    /// So many of these have left.
    pub(super) const fn sent(&mut self, way: Way, datagrams: u64, bytes: u64) {
        let moved = &mut self.meter(way).moved;
        moved.datagrams += datagrams;
        moved.bytes += bytes;
    }

    /// The server has answered; true the first time.
    pub(super) const fn answered(&mut self) -> bool {
        !std::mem::replace(&mut self.answered, true)
    }

    /// Whether the server was sent something, at most so many datagrams, and has not answered.
    pub(super) const fn is_unanswered_after(&self, most: u64) -> bool {
        !self.answered && !self.refused && self.up.moved.datagrams > 0 && self.up.moved.datagrams <= most
    }

    /// Nobody listens at the server: the flow is over.
    pub(super) const fn refused(&mut self) {
        self.refused = true;
    }

    pub(super) const fn drain(&mut self) {
        self.draining = true;
    }

    const fn patience(&self) -> Duration {
        match (self.draining, self.answered) {
            (true, _) => DRAIN_IDLE,
            (false, true) => self.terms.idle_answered,
            (false, false) => self.terms.idle,
        }
    }

    /// When to ask for the end again; nothing if that is too far to be told.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.moved_at.checked_add(self.patience())
    }

    /// Why the flow is over, if it is.
    pub(super) fn end(&self, now: Instant) -> Option<&'static str> {
        if self.refused {
            return Some("refused");
        }
        self.deadline().filter(|at| now >= *at).map(|_| match (self.draining, self.answered) {
            (true, _) => "drained",
            (false, true) => "idle",
            (false, false) => "unanswered",
        })
    }

    /// What has moved up and down.
    pub(super) const fn moved(&self) -> (Moved, Moved) {
        (self.up.moved, self.down.moved)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::actors::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn state(terms: FlowTerms) -> (State, Instant) {
        let now = clock::now();
        (State::new(terms, now), now)
    }

    #[test]
    fn a_flow_is_remembered_longer_once_it_was_answered() {
        let (mut flow, now) = state(FlowTerms::default());
        assert_eq!((flow.deadline(), flow.end(now + 59 * SECOND)), (Some(now + 60 * SECOND), None));
        assert_eq!(flow.end(now + 60 * SECOND), Some("unanswered"));
        flow.pass(Way::Up, 10, 10, now + 50 * SECOND);
        assert_eq!(flow.deadline(), Some(now + 110 * SECOND));
        flow.pass(Way::Down, 10, 10, now + 100 * SECOND);
        assert!(flow.answered() && !flow.answered());
        assert_eq!((flow.deadline(), flow.end(now + 219 * SECOND)), (Some(now + 220 * SECOND), None));
        assert_eq!(flow.end(now + 220 * SECOND), Some("idle"));
        flow.drain();
        assert_eq!((flow.deadline(), flow.end(now + 102 * SECOND)), (Some(now + 102 * SECOND), Some("drained")));
        flow.refused();
        assert_eq!(flow.end(now), Some("refused"));
    }

    #[test]
    fn only_what_is_short_enough_passes() {
        let (mut flow, now) = state(FlowTerms { longest: 100, ..FlowTerms::default() });
        let mut pass = |length, stride| {
            let passed = flow.pass(Way::Up, length, stride, now);
            (passed.range, passed.too_long)
        };
        assert_eq!(pass(0, 1), (Some(0..0), 0));
        assert_eq!(pass(100, 100), (Some(0..100), 0));
        assert_eq!(pass(101, 101), (None, 1));
        assert_eq!(pass(350, 100), (Some(0..350), 0));
        assert_eq!(pass(600, 200), (None, 3));
        assert_eq!(pass(750, 200), (None, 4), "the last one, of 150, is too long as well");
        assert_eq!(pass(650, 200), (Some(600..650), 3), "the last one is short enough");
    }

    #[test]
    fn each_way_has_its_own_limits() {
        let terms = FlowTerms { datagrams: Some(10), bytes: Some(1_000_000), ..FlowTerms::default() };
        let (mut flow, now) = state(terms);
        assert_eq!(flow.pass(Way::Up, 6_400, 100, now), Passed { range: Some(0..6_400), too_long: 0, limited: 0 });
        assert_eq!(flow.pass(Way::Up, 0, 1, now), Passed { range: None, too_long: 0, limited: 1 });
        assert_eq!(flow.pass(Way::Up, 100, 100, now), Passed { range: None, too_long: 0, limited: 1 });
        assert_eq!(flow.pass(Way::Down, 100, 100, now).range, Some(0..100));
        let later = now + SECOND;
        assert_eq!(flow.pass(Way::Up, 1_250, 100, later), Passed { range: Some(0..1_000), too_long: 0, limited: 3 });
        let (mut flow, now) = state(FlowTerms { bytes: Some(1_000), ..FlowTerms::default() });
        assert_eq!(flow.pass(Way::Up, LONGEST, LONGEST, now).range, Some(0..LONGEST), "one always fits");
        assert_eq!(flow.pass(Way::Up, 1_500, 600, now + SECOND).range, Some(0..600));
    }

    proptest! {
        /// Each datagram passes or is counted once, and no limit lets more pass than it says.
        #[test]
        fn every_datagram_is_accounted_for(
            trains in proptest::collection::vec((0..5_000_usize, 1..2_000_usize, 0..500_u64), 1..60),
            longest in 1..2_000_usize,
            datagrams in proptest::option::of(1..500_u64),
            bytes in proptest::option::of(1..200_000_u64),
        ) {
            let (mut flow, start) = state(FlowTerms { longest, datagrams, bytes, ..FlowTerms::default() });
            let (mut now, mut sum) = (start, Moved::default());
            for (length, stride, pause) in trains {
                now += Duration::from_millis(pause);
                let passed = flow.pass(Way::Up, length, stride, now);
                let all = super::super::codec::count(length, stride) as u64;
                let through = passed.range.as_ref().map_or(0, |range| {
                    assert!(range.start.is_multiple_of(stride) && range.end <= length);
                    assert!(range.end == length || range.end.is_multiple_of(stride));
                    assert!(range.len().min(stride) <= longest);
                    sum.bytes += range.len() as u64;
                    super::super::codec::count(range.len(), stride) as u64
                });
                sum.datagrams += through;
                prop_assert_eq!(through + passed.too_long + passed.limited, all);
            }
            let seconds = now.duration_since(start).as_secs_f64();
            if let Some(rate) = datagrams {
                let most = (rate / SHARE).max(LEAST_BURST) as f64 + rate as f64 * seconds + 1.0;
                prop_assert!(sum.datagrams as f64 <= most);
            }
            if let Some(rate) = bytes {
                let most = (rate / SHARE).max(LONGEST as u64) as f64 + rate as f64 * seconds + 1.0;
                prop_assert!(sum.bytes as f64 <= most);
            }
        }
    }
}
