//! The only reader of time: real on an arbiter, virtual inside a simulation.
//!
//! Everything that needs an instant or a timer takes it from here, so the same code runs under `Mesh::sim`, where the
//! hands of the clock are moved by the simulator. Outside a simulation a timer is tokio's: it needs a running tokio
//! time driver (tokio panics without one) and fires at most about a millisecond late on an idle thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

thread_local! {
    static VIRTUAL: RefCell<Option<Arc<VirtualClock>>> = const { RefCell::new(None) };
    /// The same fact as `VIRTUAL`, readable without a borrow: `now` is called on every turn.
    static IS_VIRTUAL: Cell<bool> = const { Cell::new(false) };
}

/// The current instant: monotonic time on an arbiter, the simulator's time inside a simulation.
#[must_use]
pub fn now() -> Instant {
    if IS_VIRTUAL.get()
        && let Some(at) = VIRTUAL.with(|v| v.try_borrow().ok().and_then(|v| v.as_ref().map(|v| v.now())))
    {
        return at;
    }
    real_now()
}

/// True on a thread that a simulation rules.
pub(crate) fn is_virtual() -> bool {
    IS_VIRTUAL.get()
}

#[expect(clippy::disallowed_methods, reason = "this file is the one place that reads the clock")]
fn real_now() -> Instant {
    Instant::now()
}

/// The wall clock, as time since 1970: for what must be understood by another process or after a restart. It may jump.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this file is the one place that reads the clock")]
pub fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// A future that is ready at `at`.
#[must_use]
pub fn sleep_until(at: Instant) -> Sleep {
    let virtual_clock = VIRTUAL.with(|v| v.borrow().clone());
    match virtual_clock {
        Some(clock) => Sleep { kind: Kind::Virtual { clock, at, key: None } },
        None => Sleep { kind: Kind::Real(Box::pin(tokio::time::sleep_until(at.into()))) },
    }
}

/// A future that is ready after `time`.
#[must_use]
pub fn sleep(time: Duration) -> Sleep {
    sleep_until(later(now(), time))
}

/// `from + time`, or a century later where that would overflow.
#[must_use]
pub fn later(from: Instant, time: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    from.checked_add(time).or_else(|| from.checked_add(CENTURY)).unwrap_or(from)
}

/// The answer of [`within`] when time ran out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time allowed has passed")
    }
}

impl std::error::Error for Elapsed {}

/// Waits for `future`, at most for `time`.
///
/// # Errors
/// [`Elapsed`] if `time` passed first; the future is dropped then.
pub async fn within<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut alarm = sleep(time);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(out) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(out));
        }
        Pin::new(&mut alarm).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// A timer; see [`sleep_until`].
pub struct Sleep {
    kind: Kind,
}

enum Kind {
    Real(Pin<Box<tokio::time::Sleep>>),
    Virtual { clock: Arc<VirtualClock>, at: Instant, key: Option<TimerKey> },
}

impl Sleep {
    /// Moves the timer to `at`. It must be polled again to be armed.
    pub fn reset(&mut self, to: Instant) {
        match &mut self.kind {
            Kind::Real(sleep) => sleep.as_mut().reset(to.into()),
            Kind::Virtual { clock, at, key } => {
                if let Some(key) = key.take() {
                    clock.forget(key);
                }
                *at = to;
            }
        }
    }
}

impl Sleep {
    /// True once the time has come.
    #[must_use]
    pub fn is_elapsed(&self) -> bool {
        match &self.kind {
            Kind::Real(sleep) => sleep.is_elapsed(),
            Kind::Virtual { clock, at, .. } => clock.now() >= *at,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            // A task that has used up its share of the event loop is told Pending here and called once more at once, but the
            // timer then calls nobody: whoever asks only when something changes would never be called.
            Kind::Real(sleep) => pin!(tokio::task::coop::unconstrained(sleep.as_mut())).poll(cx),
            Kind::Virtual { clock, at, key } => {
                if let Some(key) = key.take() {
                    clock.forget(key);
                }
                if clock.now() >= *at {
                    return Poll::Ready(());
                }
                *key = Some(clock.remember(*at, cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Kind::Virtual { clock, key: Some(key), .. } = &self.kind {
            clock.forget(*key);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").finish_non_exhaustive()
    }
}

type TimerKey = (Instant, u64);

/// The clock of one simulation; its owner moves it from timer to timer. Locked, so that futures which hold a timer
/// stay `Send`; a simulation has one thread, so nobody ever waits for the lock.
pub(crate) struct VirtualClock {
    hands: Mutex<Hands>,
}

struct Hands {
    now: Instant,
    timers: BTreeMap<TimerKey, Waker>,
    sequence: u64,
}

impl VirtualClock {
    pub(crate) fn new() -> Arc<Self> {
        let hands = Hands { now: real_now(), timers: BTreeMap::new(), sequence: 0 };
        Arc::new(Self { hands: Mutex::new(hands) })
    }

    pub(crate) fn now(&self) -> Instant {
        self.hands.lock().now
    }

    /// When the next timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.hands.lock().timers.first_key_value().map(|(key, _)| key.0)
    }

    /// Moves time forward to `to` and wakes what is due by then.
    pub(crate) fn advance(&self, to: Instant) {
        loop {
            let due = {
                let mut hands = self.hands.lock();
                hands.now = hands.now.max(to);
                match hands.timers.first_key_value() {
                    Some((key, _)) if key.0 <= to => hands.timers.pop_first(),
                    Some(_) | None => None,
                }
            };
            match due {
                Some((_, waker)) => waker.wake(),
                None => return,
            }
        }
    }

    /// Makes this clock the thread's, for as long as the guard lives.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        let before = VIRTUAL.with(|v| v.borrow_mut().replace(self.clone()));
        IS_VIRTUAL.set(true);
        Entered { before }
    }

    fn remember(&self, at: Instant, waker: Waker) -> TimerKey {
        let mut hands = self.hands.lock();
        let key = (at, hands.sequence);
        hands.sequence = hands.sequence.wrapping_add(1);
        hands.timers.insert(key, waker);
        key
    }

    fn forget(&self, key: TimerKey) {
        let waker = self.hands.lock().timers.remove(&key);
        // Outside the lock: the waker may be the last owner of a task that holds another timer.
        drop(waker);
    }
}

/// Ends the rule of a virtual clock over its thread when dropped.
pub(crate) struct Entered {
    before: Option<Arc<VirtualClock>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        IS_VIRTUAL.set(before.is_some());
        VIRTUAL.with(|v| *v.borrow_mut() = before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_timers_fire_in_order_and_only_when_due() {
        let clock = VirtualClock::new();
        let _entered = clock.enter();
        let start = now();
        let mut late = sleep(Duration::from_secs(2));
        let mut soon = sleep(Duration::from_secs(1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut late).poll(&mut cx).is_pending());
        assert!(Pin::new(&mut soon).poll(&mut cx).is_pending());
        assert_eq!(clock.next(), Some(start + Duration::from_secs(1)));
        clock.advance(start + Duration::from_secs(1));
        assert!(Pin::new(&mut soon).poll(&mut cx).is_ready());
        assert!(Pin::new(&mut late).poll(&mut cx).is_pending());
        drop(late);
        assert_eq!(clock.next(), None, "a dropped timer leaves nothing behind");
    }
}
