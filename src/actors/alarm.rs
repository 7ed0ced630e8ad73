//! The one timer of an actor, kept away from the event loop while its time is far.
//!
//! An event loop with any timer set gives `epoll_wait` a time-out, and the kernel then sets and clears a timer of its
//! own in every round: about 0.4 µs of a 10 µs echo. Most deadlines are idle limits, minutes away. So an alarm that is
//! far waits in a table of its arbiter, which the ticker looks through every 100 ms; only within [`NEAR`] of its time
//! does it become a timer of the event loop, with that one's exactness. A far alarm therefore costs its actor one
//! early turn, in which nothing is due. Where no ticker runs (a simulation) every alarm is a timer at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::clock;

/// From here on an alarm is a timer of the event loop. More than two ticks, so that one late tick is not a late alarm.
const NEAR: Duration = Duration::from_millis(250);

type Key = (Instant, u64);

thread_local! {
    static FAR: RefCell<Option<Far>> = const { RefCell::new(None) };
}

/// The far alarms of one arbiter.
#[derive(Default)]
struct Far {
    waiting: BTreeMap<Key, Waker>,
    sequence: u64,
}

/// From now on somebody calls [`tick`] on this thread.
pub(super) fn ticks_here() {
    FAR.set(Some(Far::default()));
}

/// Wakes the owners of all alarms that are near now.
pub(super) fn tick(now: Instant) {
    let horizon = clock::later(now, NEAR);
    // One at a time: waking runs code of the executor, under which nothing may be borrowed.
    while let Some(waker) = FAR.with_borrow_mut(|far| {
        let first = far.as_mut()?.waiting.first_entry()?;
        (first.key().0 <= horizon).then(|| first.remove())
    }) {
        waker.wake();
    }
}

/// See the top of the file. Must be used on the thread it was first armed on.
#[derive(Default)]
pub(super) struct Alarm {
    at: Option<Instant>,
    place: Place,
}

#[derive(Default)]
enum Place {
    #[default]
    Nowhere,
    Far(Key),
    Near(clock::Sleep),
}

impl Alarm {
    /// Asks for a turn at `at`. An alarm set for an earlier time stays as it is: it costs one early turn, where moving
    /// it would cost every turn. True if the time has come already.
    pub(super) fn arm(&mut self, at: Instant, now: Instant, cx: &mut Context<'_>) -> bool {
        if at <= now {
            return true;
        }
        let at = self.at.filter(|earlier| *earlier <= at && self.is_set()).unwrap_or(at);
        let far = at.saturating_duration_since(now) > NEAR;
        match &mut self.place {
            Place::Far(key) if far && self.at == Some(at) && is_waiting(key) => return false,
            Place::Near(sleep) if !far || self.at == Some(at) => {
                if self.at == Some(at) && !sleep.is_elapsed() {
                    return false;
                }
                sleep.reset(at);
                self.at = Some(at);
                return Pin::new(sleep).poll(cx).is_ready();
            }
            Place::Nowhere | Place::Far(_) | Place::Near(_) => {}
        }
        self.clear();
        self.at = Some(at);
        if far && let Some(key) = wait(at, cx.waker()) {
            self.place = Place::Far(key);
            return false;
        }
        let mut sleep = clock::sleep_until(at);
        let due = Pin::new(&mut sleep).poll(cx).is_ready();
        self.place = Place::Near(sleep);
        due
    }

    /// Whether it still will call for a turn.
    fn is_set(&self) -> bool {
        match &self.place {
            Place::Nowhere => false,
            Place::Far(key) => is_waiting(key),
            Place::Near(sleep) => !sleep.is_elapsed(),
        }
    }

    /// No turn is wanted any more.
    pub(super) fn clear(&mut self) {
        if let Place::Far(key) = std::mem::take(&mut self.place) {
            // Not there any more when it has been called, nor while the thread's locals are being dropped.
            let _gone = FAR.try_with(|far| {
                far.try_borrow_mut().ok().and_then(|mut far| far.as_mut().and_then(|far| far.waiting.remove(&key)))
            });
        }
        self.at = None;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Puts an alarm into the table. `None` where nobody looks through one.
fn wait(at: Instant, waker: &Waker) -> Option<Key> {
    FAR.with_borrow_mut(|far| {
        let far = far.as_mut()?;
        let key = (at, far.sequence);
        far.sequence += 1;
        far.waiting.insert(key, waker.clone());
        Some(key)
    })
}

fn is_waiting(key: &Key) -> bool {
    FAR.with_borrow(|far| far.as_ref().is_some_and(|far| far.waiting.contains_key(key)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn with(test: impl FnOnce(Instant, &Arc<Calls>, &mut Context<'_>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        ticks_here();
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(calls.clone());
        test(clock::now(), &calls, &mut Context::from_waker(&waker));
        FAR.with_borrow(|far| assert!(far.as_ref().unwrap().waiting.is_empty(), "an alarm left its entry behind"));
    }

    #[test]
    fn a_far_alarm_calls_a_little_early_and_then_is_exact() {
        with(|now, calls, cx| {
            let mut alarm = Alarm::default();
            let at = now + 60 * SECOND;
            assert!(!alarm.arm(at, now, cx));
            assert!(matches!(alarm.place, Place::Far(_)));
            tick(now + 59 * SECOND);
            assert_eq!(calls.0.load(Ordering::Relaxed), 0);
            let close = at - NEAR / 2;
            tick(close);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1);
            assert!(!alarm.arm(at, close, cx));
            assert!(matches!(alarm.place, Place::Near(_)), "now it is a timer of the event loop");
        });
    }

    #[test]
    fn an_earlier_alarm_stays_and_a_later_time_is_taken_up_after_it() {
        with(|now, calls, cx| {
            let mut alarm = Alarm::default();
            alarm.arm(now + 10 * SECOND, now, cx);
            alarm.arm(now + 20 * SECOND, now, cx);
            assert_eq!(alarm.at, Some(now + 10 * SECOND), "moving it would cost every turn");
            alarm.arm(now + 5 * SECOND, now, cx);
            assert_eq!(alarm.at, Some(now + 5 * SECOND));
            let then = now + 5 * SECOND;
            tick(then);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1);
            alarm.arm(now + 20 * SECOND, then, cx);
            assert_eq!(alarm.at, Some(now + 20 * SECOND));
            assert!(matches!(alarm.place, Place::Far(_)));
            tick(then);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1, "the time left behind calls nobody");
        });
    }

    #[test]
    fn a_time_that_has_come_is_told_at_once() {
        with(|now, _, cx| {
            assert!(Alarm::default().arm(now, now, cx));
            let mut alarm = Alarm::default();
            alarm.arm(now + 10 * SECOND, now, cx);
            assert!(alarm.arm(now, now, cx));
        });
    }

    #[test]
    fn a_dropped_alarm_calls_nobody() {
        with(|now, calls, cx| {
            let mut alarm = Alarm::default();
            alarm.arm(now + SECOND, now, cx);
            drop(alarm);
            tick(now + SECOND);
            assert_eq!(calls.0.load(Ordering::Relaxed), 0);
        });
    }
}
