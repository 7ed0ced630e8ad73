//! Which flows have something to do: a bit for each, set from any thread, and one actor to wake.
//!
//! A waker that belongs to a flow sets its bit and wakes the actor only while that sleeps, so that what rings during a
//! turn costs a bit and nothing else. Looking for set bits costs a word per 64 flows.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

/// Bits, and who is told.
pub(super) struct Bells {
    words: Box<[AtomicU64]>,
    asleep: AtomicBool,
    actor: AtomicWaker,
}

impl fmt::Debug for Bells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bells").finish_non_exhaustive()
    }
}

struct Bell {
    bells: Arc<Bells>,
    flow: usize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bells.ring(self.flow);
    }
}

impl Bells {
    pub(super) fn new(flows: usize) -> Arc<Self> {
        let words = (0..flows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { words, asleep: AtomicBool::new(false), actor: AtomicWaker::new() })
    }

    /// The waker of one flow.
    pub(super) fn waker(self: &Arc<Self>, flow: usize) -> Waker {
        Waker::from(Arc::new(Bell { bells: self.clone(), flow }))
    }

    pub(super) fn ring(&self, flow: usize) {
        if let Some(word) = self.words.get(flow / 64) {
            word.fetch_or(1 << (flow % 64), Ordering::AcqRel);
        }
        if self.asleep.swap(false, Ordering::AcqRel) {
            self.actor.wake();
        }
    }

    /// Takes all flows that rang, in the order of their numbers.
    pub(super) fn take(&self, into: &mut Vec<usize>) {
        into.clear();
        for (n, word) in self.words.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                into.push(n * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// From now on a bell wakes the actor. Says whether one rang before that was noticed: then it is awake.
    pub(super) fn sleep(&self, actor: &Waker) -> bool {
        self.actor.register(actor);
        self.asleep.store(true, Ordering::Release);
        let rang = self.words.iter().any(|word| word.load(Ordering::Acquire) != 0);
        if rang {
            self.asleep.store(false, Ordering::Release);
        }
        rang
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn bells_are_taken_once_and_wake_only_a_sleeper() {
        let bells = Bells::new(130);
        let count = Arc::new(Count::default());
        let actor = Waker::from(count.clone());
        let wakers: Vec<_> = (0..130).map(|n| bells.waker(n)).collect();
        wakers[129].wake_by_ref();
        wakers[3].wake_by_ref();
        wakers[3].wake_by_ref();
        assert!(bells.sleep(&actor), "something rang already");
        let mut taken = Vec::new();
        bells.take(&mut taken);
        assert_eq!((taken.as_slice(), count.0.load(Ordering::Relaxed)), (&[3, 129][..], 0));
        assert!(!bells.sleep(&actor));
        wakers[64].wake_by_ref();
        wakers[65].wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "once is enough");
        bells.take(&mut taken);
        assert_eq!(taken, [64, 65]);
    }
}
