//! The one timer of an actor, kept away from the event loop while its time is far.
//!
//! An event loop with any timer set gives `epoll_wait` a time-out, and the kernel then sets and clears a timer of its
//! own in every round: about 0.4 µs of a 10 µs echo. Most deadlines are idle limits, minutes away. So an alarm that is
//! far waits in a slot of its arbiter with those of about the same time, and the ticker looks for slots every 100 ms;
//! only within [`NEAR`] of its time does it become a timer of the event loop, with that one's exactness. A far alarm
//! therefore costs its actor one early turn, in which nothing is due. Whether an alarm still waits is asked in every
//! turn, so that answer stands beside the alarm and is not looked up. Where no ticker runs (a simulation) every alarm
//! is a timer at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::clock;

/// From here on an alarm is a timer of the event loop. More than a slot and two ticks, so that one late tick is not a
/// late alarm.
const NEAR: Duration = Duration::from_millis(300);
/// The times that share a slot.
const SLOT: Duration = Duration::from_millis(50);

thread_local! {
    static FAR: RefCell<Option<Far>> = const { RefCell::new(None) };
}

/// The far alarms of one arbiter.
struct Far {
    began: Instant,
    /// By the number of the slot. None is empty.
    slots: BTreeMap<u64, Vec<Rc<Entry>>>,
}

/// A far alarm that waits, or has waited.
struct Entry {
    slot: u64,
    /// Where in its slot, as long as it waits.
    place: Cell<Option<usize>>,
    waker: Waker,
}

impl Far {
    fn slot_of(&self, at: Instant) -> u64 {
        let slot = at.saturating_duration_since(self.began).as_millis() / SLOT.as_millis();
        u64::try_from(slot).unwrap_or(u64::MAX)
    }

    fn wait(&mut self, at: Instant, waker: &Waker) -> Rc<Entry> {
        let slot = self.slot_of(at);
        let entries = self.slots.entry(slot).or_default();
        let entry = Rc::new(Entry { slot, place: Cell::new(Some(entries.len())), waker: waker.clone() });
        entries.push(entry.clone());
        entry
    }

    /// Takes one of the alarms that are near at `horizon`.
    fn next(&mut self, horizon: Instant) -> Option<Rc<Entry>> {
        // Of a slot that has only begun, some may be far yet.
        let slot = *self.slots.first_key_value()?.0;
        let entry = if slot < self.slot_of(horizon) { self.slots.get(&slot)?.last()?.clone() } else { return None };
        self.forget(&entry);
        Some(entry)
    }

    fn forget(&mut self, entry: &Entry) {
        let (Some(place), Some(entries)) = (entry.place.take(), self.slots.get_mut(&entry.slot)) else { return };
        entries.swap_remove(place);
        if let Some(moved) = entries.get(place) {
            moved.place.set(Some(place));
        }
        if entries.is_empty() {
            self.slots.remove(&entry.slot);
        }
    }
}

/// From now on somebody calls [`tick`] on this thread.
pub(super) fn ticks_here() {
    FAR.set(Some(Far { began: clock::now(), slots: BTreeMap::new() }));
}

/// Wakes the owners of all alarms that are near now.
pub(super) fn tick(now: Instant) {
    let horizon = clock::later(now, NEAR);
    // One at a time: waking runs code of the executor, under which nothing may be borrowed.
    while let Some(entry) = FAR.with_borrow_mut(|far| far.as_mut()?.next(horizon)) {
        entry.waker.wake_by_ref();
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
    Far(Rc<Entry>),
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
            Place::Far(entry) if far && self.at == Some(at) && entry.place.get().is_some() => return false,
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
        if far && let Some(entry) = wait(at, cx.waker()) {
            self.place = Place::Far(entry);
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
            Place::Far(entry) => entry.place.get().is_some(),
            Place::Near(sleep) => !sleep.is_elapsed(),
        }
    }

    /// No turn is wanted any more.
    pub(super) fn clear(&mut self) {
        if let Place::Far(entry) = std::mem::take(&mut self.place) {
            // Not there any more when it has been called, nor while the thread's locals are being dropped.
            let _gone = FAR.try_with(|far| {
                if let Ok(mut far) = far.try_borrow_mut()
                    && let Some(far) = far.as_mut()
                {
                    far.forget(&entry);
                }
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

/// Puts an alarm into its slot. `None` where nobody looks for it.
fn wait(at: Instant, waker: &Waker) -> Option<Rc<Entry>> {
    FAR.with_borrow_mut(|far| Some(far.as_mut()?.wait(at, waker)))
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
        FAR.with_borrow(|far| assert!(far.as_ref().unwrap().slots.is_empty(), "an alarm left its entry behind"));
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
    fn alarms_of_one_slot_leave_it_in_any_order() {
        with(|now, calls, cx| {
            let mut alarms: Vec<Alarm> = (0..8).map(|_| Alarm::default()).collect();
            for (n, alarm) in alarms.iter_mut().enumerate() {
                alarm.arm(now + 10 * SECOND + Duration::from_millis(n as u64), now, cx);
            }
            alarms.remove(3);
            alarms.remove(0).clear();
            alarms.pop();
            tick(now + 9 * SECOND);
            assert_eq!(calls.0.load(Ordering::Relaxed), 0);
            tick(now + 10 * SECOND);
            assert_eq!(calls.0.load(Ordering::Relaxed), 5, "those that are left, each once");
        });
    }

    #[test]
    fn no_alarm_is_called_so_early_that_it_is_far_again() {
        with(|now, calls, cx| {
            for ms in (10_000..10_100).step_by(7) {
                let mut alarm = Alarm::default();
                let at = now + Duration::from_millis(ms);
                alarm.arm(at, now, cx);
                let before = calls.0.load(Ordering::Relaxed);
                let mut then = now;
                while calls.0.load(Ordering::Relaxed) == before {
                    then += Duration::from_millis(1);
                    tick(then);
                }
                assert!(at - then <= NEAR && at - then >= NEAR - SLOT - Duration::from_millis(1), "{:?}", at - then);
            }
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
