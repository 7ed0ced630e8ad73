//! One value that all holders see, behind a lock that answers.
//!
//! `read` and `write` answer at once; `read_within` and `write_within` wait when asked to, on an arbiter for at most
//! 100 µs since its actors wait too ([`limit_waits`](super::limit_waits)). Who holds a lock may wait only for one of a
//! higher rank; debug builds refuse anything else the first time it is tried, whether or not it would have gone well
//! that time. What is refused or waited for is counted; a lock that was free costs no counting.
//!
//! A lock is not poisoned: a writer that panics leaves the value as far as it got. A guard that is forgotten
//! (`mem::forget`) holds its lock for ever: others are refused from then on, and in debug builds its thread may wait only
//! for locks of a higher rank, as any thread that holds one.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::cell::{Busy, CellLike, allowed};
use super::policy::{AtomicPolicy, Count, SingleThreaded};
use super::ranks::{Held, hold, may_wait};

/// One value that all clones of this lead to.
///
/// ```
/// use std::time::Duration;
/// use portway::memory::{Busy, Shared, ThreadSafe};
///
/// let total: Shared<u64, ThreadSafe> = Shared::new(0);
/// let threads: Vec<_> = (1..=4)
///     .map(|n| {
///         let total = total.clone();
///         std::thread::spawn(move || total.write_within(Duration::from_secs(1)).map(|mut total| *total += n))
///     })
///     .collect();
/// for thread in threads {
///     thread.join().unwrap()?;
/// }
/// assert_eq!(*total.read()?, 10);
/// # Ok::<(), Busy>(())
/// ```
pub struct Shared<T, P: AtomicPolicy = SingleThreaded>(P::Ptr<Inner<T, P>>);

struct Inner<T, P: AtomicPolicy> {
    cell: P::Cell<T>,
    rank: u16,
    refused: P::Count,
    waited: P::Count,
    timed_out: P::Count,
}

/// How often a lock was not free.
///
/// ```
/// use portway::memory::{Contention, Shared};
///
/// let shared: Shared<u8> = Shared::new(1);
/// let _reading = shared.read().unwrap();
/// assert!(shared.write().is_err());
/// assert_eq!(shared.contention(), Contention { refused: 1, waited: 0, timed_out: 0 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contention {
    /// It was refused at once: to who would not wait, or in debug builds might not.
    pub refused: u64,
    /// Somebody had to wait for it.
    pub waited: u64,
    /// So many of these waits were for nothing.
    pub timed_out: u64,
}

type ReadOf<'a, T, P> = <<P as AtomicPolicy>::Cell<T> as CellLike<T>>::Read<'a>;
type WriteOf<'a, T, P> = <<P as AtomicPolicy>::Cell<T> as CellLike<T>>::Write<'a>;

impl<T, P: AtomicPolicy> Shared<T, P> {
    /// A value with the lowest rank: it may be waited for only while no other lock is held.
    ///
    /// ```
    /// # use portway::memory::Shared;
    /// let shared: Shared<u8> = Shared::new(1);
    /// assert_eq!(*shared.read().unwrap(), 1);
    /// ```
    pub fn new(value: T) -> Self {
        Self::ranked(0, value)
    }

    /// A value of this rank: while it is held, only those of a higher rank may be waited for.
    ///
    /// ```
    /// # use portway::memory::{Busy, Shared, ThreadSafe};
    /// # use std::time::Duration;
    /// let accounts: Shared<u8, ThreadSafe> = Shared::ranked(1, 0);
    /// let journal: Shared<u8, ThreadSafe> = Shared::ranked(2, 0);
    /// let writing = journal.write()?;
    /// let refused = accounts.write_within(Duration::from_micros(50)).err();
    /// assert_eq!(matches!(refused, Some(Busy::WouldDeadlock { .. })), cfg!(debug_assertions));
    /// # Ok::<(), Busy>(())
    /// ```
    pub fn ranked(rank: u16, value: T) -> Self {
        Self(P::ptr(Inner {
            cell: <P::Cell<T>>::cell(value),
            rank,
            refused: P::Count::default(),
            waited: P::Count::default(),
            timed_out: P::Count::default(),
        }))
    }

    /// Reads, if nobody writes.
    ///
    /// # Errors
    /// [`Busy`], at once.
    ///
    /// ```
    /// # use portway::memory::{Busy, Shared};
    /// let shared: Shared<u8> = Shared::new(1);
    /// let (a, b) = (shared.read()?, shared.read()?);
    /// assert_eq!(*a + *b, 2);
    /// # Ok::<(), Busy>(())
    /// ```
    #[track_caller]
    pub fn read(&self) -> Result<Reading<'_, T, P>, Busy> {
        match <P::Cell<T>>::read_now(&self.0.cell) {
            Ok(guard) => Ok(Reading { guard, _held: hold(self.0.rank) }),
            Err(busy) => self.refused(busy),
        }
    }

    /// Writes, if nobody reads or writes.
    ///
    /// # Errors
    /// [`Busy`], at once.
    ///
    /// ```
    /// # use portway::memory::{Busy, Shared};
    /// let shared: Shared<u8> = Shared::new(1);
    /// *shared.write()? += 1;
    /// assert_eq!(*shared.read()?, 2);
    /// # Ok::<(), Busy>(())
    /// ```
    #[track_caller]
    pub fn write(&self) -> Result<Writing<'_, T, P>, Busy> {
        match <P::Cell<T>>::write_now(&self.0.cell) {
            Ok(guard) => Ok(Writing { guard, _held: hold(self.0.rank) }),
            Err(busy) => self.refused(busy),
        }
    }

    /// Reads, after waiting for writers for as long as `time` and this thread allow. Under [`SingleThreaded`] it does
    /// not wait: nobody could give the value back meanwhile.
    ///
    /// # Errors
    /// [`Busy`]; [`Busy::WouldDeadlock`] at once.
    ///
    /// ```
    /// # use portway::memory::{Busy, Shared, ThreadSafe};
    /// # use std::time::Duration;
    /// let shared: Shared<u8, ThreadSafe> = Shared::new(1);
    /// assert_eq!(*shared.read_within(Duration::from_millis(1))?, 1);
    /// # Ok::<(), Busy>(())
    /// ```
    #[track_caller]
    pub fn read_within(&self, time: Duration) -> Result<Reading<'_, T, P>, Busy> {
        let Inner { cell, rank, .. } = &*self.0;
        may_wait(*rank).or_else(|busy| self.refused(busy))?;
        let guard = match <P::Cell<T>>::read_now(cell) {
            Ok(guard) => guard,
            Err(_) => self.waited(<P::Cell<T>>::read_within(cell, allowed(time)))?,
        };
        Ok(Reading { guard, _held: hold(*rank) })
    }

    /// Writes, after waiting for readers and writers for as long as `time` and this thread allow; else as
    /// [`read_within`](Self::read_within).
    ///
    /// # Errors
    /// [`Busy`]; [`Busy::WouldDeadlock`] at once.
    ///
    /// ```
    /// # use portway::memory::{Busy, Shared, ThreadSafe};
    /// # use std::time::Duration;
    /// let shared: Shared<u8, ThreadSafe> = Shared::new(1);
    /// *shared.write_within(Duration::from_millis(1))? += 1;
    /// assert_eq!(*shared.read()?, 2);
    /// # Ok::<(), Busy>(())
    /// ```
    #[track_caller]
    pub fn write_within(&self, time: Duration) -> Result<Writing<'_, T, P>, Busy> {
        let Inner { cell, rank, .. } = &*self.0;
        may_wait(*rank).or_else(|busy| self.refused(busy))?;
        let guard = match <P::Cell<T>>::write_now(cell) {
            Ok(guard) => guard,
            Err(_) => self.waited(<P::Cell<T>>::write_within(cell, allowed(time)))?,
        };
        Ok(Writing { guard, _held: hold(*rank) })
    }

    /// How often it was not free, so far.
    ///
    /// ```
    /// # use portway::memory::{Contention, Shared};
    /// let shared: Shared<u8> = Shared::new(1);
    /// assert_eq!(shared.contention(), Contention::default());
    /// ```
    #[must_use]
    pub fn contention(&self) -> Contention {
        let Inner { refused, waited, timed_out, .. } = &*self.0;
        Contention { refused: refused.get(), waited: waited.get(), timed_out: timed_out.get() }
    }

    /// Whether both lead to one value.
    ///
    /// ```
    /// # use portway::memory::Shared;
    /// let shared: Shared<u8> = Shared::new(1);
    /// assert!(shared.same(&shared.clone()));
    /// ```
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        P::same(&self.0, &other.0)
    }

    #[cold]
    fn refused<G>(&self, busy: Busy) -> Result<G, Busy> {
        self.0.refused.add_one();
        Err(busy)
    }

    #[cold]
    fn waited<G>(&self, result: Result<G, Busy>) -> Result<G, Busy> {
        match result {
            Err(busy) if busy != Busy::TimedOut => return self.refused(busy),
            Err(_) => self.0.timed_out.add_one(),
            Ok(_) => {}
        }
        self.0.waited.add_one();
        result
    }
}

impl<T, P: AtomicPolicy> Clone for Shared<T, P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Default, P: AtomicPolicy> Default for Shared<T, P> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T, P: AtomicPolicy> fmt::Debug for Shared<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("rank", &self.0.rank)
            .field("contention", &self.contention())
            .finish_non_exhaustive()
    }
}

/// The value, held for reading until this is dropped. Stays on its thread.
///
/// ```
/// # use portway::memory::Shared;
/// let shared: Shared<String> = Shared::new("here".to_owned());
/// let reading = shared.read().unwrap();
/// assert_eq!(reading.len(), 4);
/// ```
pub struct Reading<'a, T: 'a, P: AtomicPolicy = SingleThreaded> {
    guard: ReadOf<'a, T, P>,
    _held: Held,
}

/// The value, held for writing until this is dropped. Stays on its thread.
///
/// ```
/// # use portway::memory::Shared;
/// let shared: Shared<String> = Shared::new("here".to_owned());
/// shared.write().unwrap().push_str(" and now");
/// assert_eq!(*shared.read().unwrap(), "here and now");
/// ```
pub struct Writing<'a, T: 'a, P: AtomicPolicy = SingleThreaded> {
    guard: WriteOf<'a, T, P>,
    _held: Held,
}

impl<T, P: AtomicPolicy> Deref for Reading<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, P: AtomicPolicy> Deref for Writing<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, P: AtomicPolicy> DerefMut for Writing<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: fmt::Debug, P: AtomicPolicy> fmt::Debug for Reading<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Debug, P: AtomicPolicy> fmt::Debug for Writing<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use super::super::cell::limit_waits;
    use super::super::policy::ThreadSafe;
    use super::*;

    assert_impl_all!(Shared<Vec<u8>, ThreadSafe>: Send, Sync);
    assert_not_impl_any!(Shared<Vec<u8>, SingleThreaded>: Send, Sync);
    assert_not_impl_any!(Reading<'static, u8, ThreadSafe>: Send);
    assert_not_impl_any!(Writing<'static, u8, ThreadSafe>: Send);

    const LONG: Duration = Duration::from_secs(20);

    #[expect(clippy::disallowed_methods, reason = "measures a real wait")]
    fn took(f: impl FnOnce()) -> Duration {
        let began = std::time::Instant::now();
        f();
        began.elapsed()
    }

    fn many_read_or_one_writes<P: AtomicPolicy>(busy: Busy) {
        let shared: Shared<u32, P> = Shared::new(1);
        let other = shared.clone();
        assert!(shared.same(&other) && !shared.same(&Shared::new(1)));
        {
            let (a, b) = (shared.read().unwrap(), other.read().unwrap());
            assert_eq!((*a, *b), (1, 1));
            assert_eq!(shared.write().err(), Some(busy));
        }
        {
            let mut writing = other.write().unwrap();
            *writing = 2;
            assert_eq!(shared.read().err(), Some(busy));
            assert_eq!(shared.write().err(), Some(busy));
        }
        assert_eq!(*shared.read_within(LONG).unwrap(), 2);
        *shared.write_within(Duration::ZERO).unwrap() = 3;
        assert_eq!(*other.read().unwrap(), 3);
        assert_eq!(shared.contention(), Contention { refused: 3, waited: 0, timed_out: 0 });
    }

    #[test]
    fn both_policies_refuse_alike() {
        many_read_or_one_writes::<SingleThreaded>(Busy::Borrowed);
        many_read_or_one_writes::<ThreadSafe>(Busy::Contended);
    }

    /// Holds a lock on another thread until told, and says when it has it.
    fn elsewhere(shared: &Shared<u32, ThreadSafe>) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
        let (has, wait_for) = (mpsc::channel(), mpsc::channel::<()>());
        let held = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut writing = held.write().unwrap();
            has.0.send(()).unwrap();
            let _until_told = wait_for.1.recv();
            *writing += 1;
        });
        has.1.recv().unwrap();
        (wait_for.0, thread)
    }

    #[test]
    fn a_wait_ends_when_the_lock_is_free_or_the_time_over() {
        let shared: Shared<u32, ThreadSafe> = Shared::new(1);
        let (release, thread) = elsewhere(&shared);
        assert_eq!(shared.read().err(), Some(Busy::Contended));
        assert_eq!(shared.read_within(Duration::from_millis(1)).err(), Some(Busy::TimedOut));
        assert_eq!(shared.write_within(Duration::ZERO).err(), Some(Busy::TimedOut));
        drop(release);
        assert_eq!(*shared.read_within(LONG).unwrap(), 2);
        thread.join().unwrap();
        let Contention { refused, waited, timed_out } = shared.contention();
        assert_eq!((refused, timed_out), (1, 2));
        assert!((2..=3).contains(&waited), "the last may have found it free: {waited}");
    }

    #[test]
    fn who_may_not_wait_long_does_not() {
        let shared: Shared<u32, ThreadSafe> = Shared::new(1);
        let (release, thread) = elsewhere(&shared);
        limit_waits(Some(Duration::from_micros(100)));
        let waited = took(|| assert_eq!(shared.write_within(Duration::MAX).err(), Some(Busy::TimedOut)));
        limit_waits(None);
        assert!(waited >= Duration::from_micros(100) && waited < LONG, "{waited:?}");
        drop(release);
        thread.join().unwrap();
    }

    #[test]
    fn a_writer_that_panics_lets_go() {
        let shared: Shared<u32, ThreadSafe> = Shared::new(1);
        let writer = shared.clone();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            *writer.write().unwrap() = 2;
            let _writing = writer.write().unwrap();
            panic!("told to");
        }));
        assert!(panicked.is_err());
        assert_eq!(*shared.write_within(Duration::ZERO).unwrap(), 2);
    }

    #[cfg(debug_assertions)]
    mod ranks {
        use super::*;

        fn refused_out_of_order<P: AtomicPolicy>() {
            let low: Shared<u8, P> = Shared::ranked(1, 0);
            let high: Shared<u8, P> = Shared::ranked(2, 0);
            {
                let _low = low.write_within(LONG).unwrap();
                assert!(high.write_within(LONG).is_ok());
            }
            let line = line!() + 1;
            let holding = high.read().unwrap();
            let Err(Busy::WouldDeadlock { held, wanted }) = low.read_within(LONG) else { panic!("not refused") };
            assert_eq!((held.file(), held.line(), wanted.line()), (file!(), line, line + 1));
            assert!(low.read().is_ok(), "not a wait");
            assert!(low.write_within(LONG).is_err());
            drop(holding);
            assert!(low.read_within(LONG).is_ok());
            assert_eq!(low.contention(), Contention { refused: 2, waited: 0, timed_out: 0 });
            assert_eq!(high.contention(), Contention::default());
        }

        #[test]
        fn a_wait_out_of_order_is_refused_with_both_places() {
            refused_out_of_order::<SingleThreaded>();
            refused_out_of_order::<ThreadSafe>();
        }

        #[test]
        fn a_thread_does_not_wait_for_itself() {
            let shared: Shared<u8, ThreadSafe> = Shared::new(0);
            let _writing = shared.write().unwrap();
            let waited = took(|| assert!(matches!(shared.write_within(LONG), Err(Busy::WouldDeadlock { .. }))));
            assert!(waited < LONG / 2, "{waited:?}");
            assert_eq!(shared.contention(), Contention { refused: 1, waited: 0, timed_out: 0 });
        }

        #[test]
        fn a_forgotten_guard_holds_its_lock_for_ever() {
            let shared: Shared<u8, ThreadSafe> = Shared::new(0);
            let (same, higher): (Shared<u8, ThreadSafe>, _) = (Shared::new(0), Shared::ranked(1, 0));
            // Of this thread alone: it ends with it.
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::mem::forget(shared.write().unwrap());
                    assert!(matches!(same.write_within(LONG), Err(Busy::WouldDeadlock { .. })));
                    let waits: Shared<u8, ThreadSafe> = higher.clone();
                    assert!(same.write().is_ok() && waits.write_within(LONG).is_ok());
                });
            });
            assert_eq!(shared.read().err(), Some(Busy::Contended));
            assert!(same.write_within(LONG).is_ok(), "no other thread minds");
        }

        #[test]
        fn guards_may_be_dropped_in_any_order() {
            let locks: Vec<Shared<u8, ThreadSafe>> = (0..40).map(|rank| Shared::ranked(rank, 0)).collect();
            let mut held: Vec<_> = locks.iter().map(|lock| lock.write_within(LONG).unwrap()).collect();
            while held.len() > 10 {
                held.swap_remove(held.len() / 3);
            }
            held.clear();
            assert!(locks[0].write_within(LONG).is_ok(), "nothing is left on the list");
        }
    }
}
