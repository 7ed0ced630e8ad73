//! The one timer of an actor, kept away from the event loop while its time is far.
//!
//! An event loop with any timer set gives `epoll_wait` a time-out, and the kernel then sets and clears a timer of its
//! own in every round: about 0.4 µs of a 10 µs echo. Most deadlines are idle limits, minutes away. So an alarm that is
//! far waits in a slot of its arbiter with those of about the same time, and the ticker looks for slots every 100 ms;
//! only within [`NEAR`] of its time does it become a timer of the event loop, with that one's exactness. A far alarm
//! therefore costs its actor one early turn, in which nothing is due. One that is near and not wanted any more, since
//! what it stood by for has come, costs none: it stays where it is, behind a far one, and calls nobody. Whether an alarm
//! still waits is asked in every turn, so that answer stands beside the alarm and is not looked up. Where no ticker runs (a
//! simulation) every alarm is a timer at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
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
    far: Option<(Instant, Rc<Entry>)>,
    near: Option<Near>,
}

/// A timer of the event loop.
struct Near {
    at: Instant,
    sleep: clock::Sleep,
    call: Arc<Call>,
    waker: Waker,
}

/// Whom a timer calls, as long as it is wanted.
struct Call {
    wanted: AtomicBool,
    waker: Waker,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.wanted.load(Ordering::Relaxed) {
            self.waker.wake_by_ref();
        }
    }
}

impl Near {
    fn new(at: Instant, waker: &Waker) -> Self {
        let call = Arc::new(Call { wanted: AtomicBool::new(true), waker: waker.clone() });
        Self { at, sleep: clock::sleep_until(at), waker: Waker::from(call.clone()), call }
    }

    /// Calls at `at`, or before that if half of the time is still left to when it was to call. True if `at` has come.
    fn arm(&mut self, at: Instant, now: Instant) -> bool {
        self.call.wanted.store(true, Ordering::Relaxed);
        let (left, wanted) = (self.at.saturating_duration_since(now), at.saturating_duration_since(now));
        if self.at <= at && left >= wanted / 2 && !self.sleep.is_elapsed() {
            return false;
        }
        self.at = at;
        self.sleep.reset(at);
        self.poll()
    }

    fn poll(&mut self) -> bool {
        Pin::new(&mut self.sleep).poll(&mut Context::from_waker(&self.waker)).is_ready()
    }
}

impl Alarm {
    /// Asks for a turn at `at`. An alarm set for an earlier time may stay as it is: it costs one early turn, where moving
    /// it would cost every turn. But a timer that was set while something was under way, and is not wanted any more
    /// because that came, does not call: a far alarm takes its place. True if the time has come already.
    pub(super) fn arm(&mut self, at: Instant, now: Instant, cx: &Context<'_>) -> bool {
        if at <= now {
            return true;
        }
        if at.saturating_duration_since(now) > NEAR && self.wait(at, cx.waker()) {
            if let Some(near) = &self.near {
                near.call.wanted.store(false, Ordering::Relaxed);
            }
            return false;
        }
        match &mut self.near {
            Some(near) if near.call.waker.will_wake(cx.waker()) => near.arm(at, now),
            Some(_) | None => self.near.insert(Near::new(at, cx.waker())).poll(),
        }
    }

    /// Sees to it that a far alarm waits for `at` or an earlier time. False where nobody looks for those.
    fn wait(&mut self, at: Instant, waker: &Waker) -> bool {
        if self.far.as_ref().is_some_and(|(earlier, entry)| *earlier <= at && entry.place.get().is_some()) {
            return true;
        }
        self.leave();
        self.far = FAR.with_borrow_mut(|far| Some((at, far.as_mut()?.wait(at, waker))));
        self.far.is_some()
    }

    /// Takes the far alarm out of its slot.
    fn leave(&mut self) {
        if let Some((_, entry)) = self.far.take() {
            // Not there any more when it has been called, nor while the thread's locals are being dropped.
            let _gone = FAR.try_with(|far| {
                if let Ok(mut far) = far.try_borrow_mut()
                    && let Some(far) = far.as_mut()
                {
                    far.forget(&entry);
                }
            });
        }
    }

    /// No turn is wanted any more.
    pub(super) fn clear(&mut self) {
        self.leave();
        self.near = None;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn with(test: impl FnOnce(Instant, &Arc<Calls>, &Context<'_>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        ticks_here();
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(calls.clone());
        test(clock::now(), &calls, &Context::from_waker(&waker));
        FAR.with_borrow(|far| assert!(far.as_ref().unwrap().slots.is_empty(), "an alarm left its entry behind"));
    }

    fn far(alarm: &Alarm) -> Option<Instant> {
        alarm.far.as_ref().map(|(at, _)| *at)
    }

    fn near(alarm: &Alarm) -> Option<Instant> {
        alarm.near.as_ref().map(|near| near.at)
    }

    #[test]
    fn a_far_alarm_calls_a_little_early_and_then_is_exact() {
        with(|now, calls, cx| {
            let mut alarm = Alarm::default();
            let at = now + 60 * SECOND;
            assert!(!alarm.arm(at, now, cx));
            assert!(alarm.far.is_some() && alarm.near.is_none());
            tick(now + 59 * SECOND);
            assert_eq!(calls.0.load(Ordering::Relaxed), 0);
            let close = at - NEAR / 2;
            tick(close);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1);
            assert!(!alarm.arm(at, close, cx));
            assert_eq!(alarm.near.as_ref().map(|near| near.at), Some(at), "now it is a timer of the event loop");
        });
    }

    #[test]
    fn an_earlier_alarm_stays_and_a_later_time_is_taken_up_after_it() {
        with(|now, calls, cx| {
            let mut alarm = Alarm::default();
            alarm.arm(now + 10 * SECOND, now, cx);
            alarm.arm(now + 20 * SECOND, now, cx);
            assert_eq!(far(&alarm), Some(now + 10 * SECOND), "moving it would cost every turn");
            alarm.arm(now + 5 * SECOND, now, cx);
            assert_eq!(far(&alarm), Some(now + 5 * SECOND));
            let then = now + 5 * SECOND;
            tick(then);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1);
            alarm.arm(now + 20 * SECOND, then, cx);
            assert_eq!(far(&alarm), Some(now + 20 * SECOND));
            assert!(alarm.near.is_none());
            tick(then);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1, "the time left behind calls nobody");
        });
    }

    /// As of a connection that sends, has it acknowledged, and sends again, thirty times a second.
    #[test]
    fn a_timer_that_is_not_wanted_any_more_calls_nobody() {
        with(|now, calls, cx| {
            let ms = Duration::from_millis;
            let mut alarm = Alarm::default();
            let calls = || calls.0.load(Ordering::Relaxed);
            // What the event loop does when the timer's time has come.
            let fire = |alarm: &Alarm| alarm.near.as_ref().unwrap().waker.wake_by_ref();
            assert!(!alarm.arm(now + ms(30), now, cx));
            fire(&alarm);
            assert_eq!(calls(), 1, "nothing came");
            assert!(!alarm.arm(now + 30 * SECOND, now + ms(2), cx));
            assert_eq!(far(&alarm), Some(now + 30 * SECOND));
            fire(&alarm);
            assert_eq!(calls(), 1);
            // It is wanted again, and the far alarm stays.
            assert!(!alarm.arm(now + ms(63), now + ms(33), cx));
            assert_eq!((near(&alarm), far(&alarm)), (Some(now + ms(63)), Some(now + 30 * SECOND)));
            fire(&alarm);
            assert_eq!(calls(), 2);
            tick(now + 30 * SECOND);
            assert_eq!(calls(), 3);
        });
    }

    #[test]
    fn a_timer_moves_when_half_of_its_time_is_over_or_for_an_earlier_time() {
        with(|now, _, cx| {
            let ms = Duration::from_millis;
            let mut alarm = Alarm::default();
            alarm.arm(now + ms(100), now, cx);
            alarm.arm(now + ms(120), now + ms(20), cx);
            assert_eq!(near(&alarm), Some(now + ms(100)), "moving it would cost every turn");
            alarm.arm(now + ms(160), now + ms(60), cx);
            assert_eq!(near(&alarm), Some(now + ms(160)));
            alarm.arm(now + ms(90), now + ms(70), cx);
            assert_eq!(near(&alarm), Some(now + ms(90)));
        });
    }

    #[test]
    fn an_alarm_that_is_armed_at_the_end_of_a_long_turn_calls() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(calls.clone());
        let mut alarm = Alarm::default();
        let at = clock::now() + Duration::from_millis(30);
        runtime.block_on(async {
            std::future::poll_fn(|cx| {
                while std::pin::pin!(tokio::task::coop::consume_budget()).poll(cx).is_ready() {}
                assert!(!alarm.arm(at, clock::now(), &Context::from_waker(&waker)));
                std::task::Poll::Ready(())
            })
            .await;
            // The next turn, in which nothing is due.
            tokio::task::yield_now().await;
            assert!(!alarm.arm(at, clock::now(), &Context::from_waker(&waker)));
            let before = calls.0.load(Ordering::Relaxed);
            clock::sleep_until(at + Duration::from_millis(20)).await;
            assert_eq!(calls.0.load(Ordering::Relaxed), before + 1);
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
