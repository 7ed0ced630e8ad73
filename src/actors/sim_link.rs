//! In-memory links for tests of protocols: what a network does to datagrams and streams, from a seed.
//!
//! [`datagram_link`] and [`stream_link`] each give two plugs. A plug is `Send`: it travels into the closure that
//! creates an actor. There [`DatagramPlug::open`] and [`StreamPlug::open`] turn it into the thing that is read and
//! written. Two types, because the second holds a timer of [`clock`], and a timer follows the clock of
//! the thread, or the simulation, on which it was made.
//!
//! All time is taken from the clock. In a simulation the same seed and the same calls give the same bytes at the same
//! instants; on an arbiter a link works too, on real time, and needs its time driver. Each direction has a generator
//! of its own, so traffic one way does not change what happens the other way. Nothing here is unbounded: datagrams
//! that find no room are dropped and counted, a stream that finds none waits.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::clock::{self, Sleep};
use super::sim_random::{Chance, Random};

pub use super::sim_link_datagram::{DatagramControl, DatagramPlug, DatagramSocket, datagram_link};
pub use super::sim_link_datagram_way::Stats;
pub use super::sim_link_stream::{Stream, StreamControl, StreamPlug, stream_link};

/// What goes wrong in one direction of a link; the default is a perfect one: at once, all, in order, unharmed.
///
/// A datagram meets them in this order: [`mtu`](Self::mtu), [`rate`](Self::rate) and [`queue`](Self::queue), loss,
/// duplication, then for each copy corruption, delay, jitter and reordering. The fate of the n-th datagram follows
/// from the seed and n: asking for one fault more leaves the victims of the others the same.
///
/// A stream is reliable and in order, so loss, duplication, corruption, reordering and the queue do not apply to it;
/// `chop` applies to nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// How long everything is under way.
    pub delay: Duration,
    /// The upper bound of an extra delay, drawn evenly for each datagram or segment. Datagrams that follow each other
    /// closer than that may overtake each other; bytes of a stream do not.
    pub jitter: Duration,
    /// How likely a datagram vanishes.
    pub loss: Chance,
    /// After this many that vanished in a row the next one passes. Default: no limit.
    pub in_a_row: u32,
    /// How likely a datagram arrives twice.
    pub duplicate: Chance,
    /// How likely one random bit of a datagram arrives flipped.
    pub corrupt: Chance,
    /// How likely a datagram is held back by `reorder_by`.
    pub reorder: Chance,
    /// How much longer a datagram that is held back takes.
    pub reorder_by: Duration,
    /// Bytes per second; `None` is no limit. Whatever is sent waits until all before it has left.
    pub rate: Option<NonZeroU64>,
    /// Bytes of datagrams that may wait for the rate limit; a datagram that finds no room is dropped. One that finds
    /// nothing waiting always passes.
    pub queue: usize,
    /// The longest datagram that passes, in bytes of payload; a longer one vanishes silently, as where a router on
    /// the path drops it. With a rate, streams are cut into segments of this length (1500 bytes if `None`).
    pub mtu: Option<usize>,
    /// How likely one read or one write of a stream is cut to a random part of what it could have been.
    pub chop: Chance,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Chance::NEVER,
            in_a_row: u32::MAX,
            duplicate: Chance::NEVER,
            corrupt: Chance::NEVER,
            reorder: Chance::NEVER,
            reorder_by: Duration::ZERO,
            rate: None,
            queue: 256 * 1024,
            mtu: None,
            chop: Chance::NEVER,
        }
    }
}

impl Faults {
    /// A perfect link.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything is under way for `time`.
    #[must_use]
    pub fn delay(self, time: Duration) -> Self {
        Self { delay: time, ..self }
    }

    /// Up to `time` is added to the delay, drawn evenly.
    #[must_use]
    pub fn jitter(self, time: Duration) -> Self {
        Self { jitter: time, ..self }
    }

    /// A datagram vanishes with probability `p`.
    #[must_use]
    pub fn loss(self, p: impl Into<Chance>) -> Self {
        Self { loss: p.into(), ..self }
    }

    /// No more than `most` datagrams in a row vanish, so that what is tried again gets through at last.
    #[must_use]
    pub fn in_a_row(self, most: u32) -> Self {
        Self { in_a_row: most, ..self }
    }

    /// A datagram arrives twice with probability `p`.
    #[must_use]
    pub fn duplicate(self, p: impl Into<Chance>) -> Self {
        Self { duplicate: p.into(), ..self }
    }

    /// One bit of a datagram is flipped with probability `p`.
    #[must_use]
    pub fn corrupt(self, p: impl Into<Chance>) -> Self {
        Self { corrupt: p.into(), ..self }
    }

    /// A datagram takes `by` longer with probability `p`, so that others overtake it.
    #[must_use]
    pub fn reorder(self, p: impl Into<Chance>, by: Duration) -> Self {
        Self { reorder: p.into(), reorder_by: by, ..self }
    }

    /// At most `bytes_per_second` pass; 0 takes the limit away.
    #[must_use]
    pub fn rate(self, bytes_per_second: u64) -> Self {
        Self { rate: NonZeroU64::new(bytes_per_second), ..self }
    }

    /// At most `bytes` of datagrams wait for the rate limit.
    #[must_use]
    pub fn queue(self, bytes: usize) -> Self {
        Self { queue: bytes, ..self }
    }

    /// Datagrams of more than `bytes` of payload do not pass.
    #[must_use]
    pub fn mtu(self, bytes: usize) -> Self {
        Self { mtu: Some(bytes), ..self }
    }

    /// A read or a write of a stream is cut short with probability `p`.
    #[must_use]
    pub fn chop(self, p: impl Into<Chance>) -> Self {
        Self { chop: p.into(), ..self }
    }

    /// A jitter, drawn evenly.
    pub(super) fn draw_jitter(&self, dice: &mut Random) -> Duration {
        Duration::from_nanos(dice.below(u64::try_from(self.jitter.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A sender of limited rate: one thing leaves after the other.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    free_at: Option<Instant>,
}

impl Pacer {
    /// How many bytes have not left yet.
    pub(super) fn backlog(&self, rate: NonZeroU64, now: Instant) -> usize {
        let busy = self.free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let bytes = busy.as_nanos().saturating_mul(u128::from(rate.get())) / NANOS;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Sends `len` bytes and says when the last of them has left.
    pub(super) fn pass(&mut self, rate: NonZeroU64, now: Instant, len: usize) -> Instant {
        let start = self.free_at.map_or(now, |at| at.max(now));
        let nanos = (len as u128).saturating_mul(NANOS).div_ceil(u128::from(rate.get()));
        let left = clock::later(start, Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        self.free_at = Some(left);
        left
    }
}

const NANOS: u128 = 1_000_000_000;

/// The timer of a waiting reader or writer: made when first needed, gone when the wait is over.
#[derive(Default)]
pub(super) struct Alarm(Cell<Option<Sleep>>);

impl Alarm {
    /// Wakes the task at `at`, or never; ready if it is that late already.
    pub(super) fn poll(&self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else {
            self.clear();
            return Poll::Pending;
        };
        let mut sleep = match self.0.take() {
            Some(mut sleep) => {
                sleep.reset(at);
                sleep
            }
            None => clock::sleep_until(at),
        };
        let answer = Pin::new(&mut sleep).poll(cx);
        self.0.set(Some(sleep));
        answer
    }

    /// Takes the timer away: a stale one would hold up a simulation's end.
    pub(super) fn clear(&self) {
        self.0.set(None);
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").finish_non_exhaustive()
    }
}

/// Puts the task's waker into `slot` and gives back the one that was there, for the caller to drop **after** unlocking:
/// the last waker of a task may drop the task, and with it the other end of the same link.
pub(super) fn park(slot: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        Some(_) | None => slot.replace(cx.waker().clone()),
    }
}

/// Wakes whoever waits; to be called after unlocking, since a waker may run anything.
pub(super) fn wake(waiting: impl IntoIterator<Item = Option<Waker>>) {
    for waker in waiting.into_iter().flatten() {
        waker.wake();
    }
}

#[cfg(test)]
#[path = "sim_link_tests.rs"]
pub(super) mod tests;
