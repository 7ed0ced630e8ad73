//! Buffers of one size, made once and used again and again.
//!
//! A pool belongs to one thread. Taking a buffer and dropping it there costs neither a lock nor an atomic operation
//! that others could contend for; one dropped on another thread comes home over a list that the pool empties when it
//! has nothing else. A buffer dropped after the end of its pool frees its memory, and only then is its share of the
//! budget free again.
//!
//! Bounded by a number of buffers and by a memory budget; a pool with nothing left says so, counts it, and allocates
//! nothing. A buffer is a `Vec` and may grow, without being asked: what it holds beyond the pool's size is charged to
//! nobody until its holder leases [`Buf::own_bytes`]. It is then no longer of the pool's size, its memory is freed instead
//! of kept, and that is counted. A `Vec` that is taken out of its buffer is charged to nobody either.
//!
//!  Contents are forgotten, not wiped: see [`Secret`](super::Secret).

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::budget::Budget;
use super::pool_buf::{Buf, Counts, FREE, Free, HERE, Home, Slot, UNTOUCHED, change, own, take_place};
use super::returns::Returns;

/// A pool has nothing to give.
///
/// ```
/// use portway::memory::{Exhausted, Pool};
///
/// let pool = Pool::new(1_500, 1, None);
/// let only = pool.lease()?;
/// assert_eq!(pool.lease().err(), Some(Exhausted::Limit));
/// # Ok::<(), Exhausted>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// As many buffers are out as the pool may have.
    Limit,
    /// The memory budget, or the allocator, gives no more.
    Memory,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "as many buffers are out as the pool may have",
            Self::Memory => "there is no memory for another buffer",
        })
    }
}

impl std::error::Error for Exhausted {}

/// The buffers of one thread.
///
/// ```
/// use portway::memory::Pool;
///
/// let pool = Pool::new(1_500, 64, None);
/// let mut packet = pool.lease()?;
/// packet.extend_from_slice(b"hello");
/// // On another thread, say for sending: it comes home by itself.
/// std::thread::spawn(move || assert_eq!(&packet[..], b"hello")).join().unwrap();
/// let next = pool.lease()?;
/// assert!(next.is_empty());
/// assert_eq!(pool.stats().made, 1, "it is the same memory");
/// # Ok::<(), portway::memory::Exhausted>(())
/// ```
pub struct Pool {
    home: Arc<Home>,
    /// As in `home`, one step nearer.
    place: usize,
    /// Its free buffers while it has no place among those of its thread.
    spare: Free,
    /// Of the free ones behind the last one back, the fewest there were since the last trim.
    fewest: Cell<u64>,
    _of_this_thread: PhantomData<Rc<()>>,
}

/// What a pool has done so far.
///
/// ```
/// use portway::memory::Pool;
///
/// let pool = Pool::new(1_500, 64, None);
/// let buffer = pool.lease().unwrap();
/// let stats = pool.stats();
/// assert_eq!((stats.size, stats.limit, stats.made, stats.out, stats.high), (1_500, 64, 1, 1, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PoolStats {
    /// Bytes of a buffer.
    pub size: usize,
    /// Buffers it may have.
    pub limit: usize,
    /// Buffers it has, in or out; after its end those that are still out.
    pub made: u64,
    /// Buffers that are out now.
    pub out: u64,
    /// The most that ever were out at once.
    pub high: u64,
    /// Times it had none to give.
    pub exhausted: u64,
    /// Buffers dropped on another thread, or after the end of the pool.
    pub came_home: u64,
    /// Buffers that came back with another size.
    pub resized: u64,
}

impl Pool {
    /// A pool of the calling thread for at most `limit` buffers of `size` bytes, of which none is made yet. Each buffer
    /// made takes its size of `budget` until it is freed: by [`trim`](Self::trim), or at the end of the pool, or, if it is
    /// out then, when it is dropped. Like every lease none is granted above 80 % of the budget.
    ///
    /// ```
    /// # use portway::memory::{Budget, Exhausted, Pool};
    /// let budget = Budget::new(10_000);
    /// let pool = Pool::new(3_000, 64, Some(&budget));
    /// let (a, b) = (pool.lease().unwrap(), pool.lease().unwrap());
    /// assert_eq!(budget.used(), 6_000);
    /// assert_eq!(pool.lease().err(), Some(Exhausted::Memory), "that would be more than 80 %");
    /// ```
    #[must_use]
    pub fn new(size: usize, limit: usize, budget: Option<&Budget>) -> Self {
        let (place, budget) = (take_place(), budget.cloned());
        let home = Arc::new(Home { place, size, limit, budget, returns: Returns::new(), counts: Counts::default() });
        own(place, Arc::as_ptr(&home));
        Self { home, place, spare: Free::new(), fewest: Cell::new(0), _of_this_thread: PhantomData }
    }

    /// An empty buffer with room for the pool's size.
    ///
    /// # Errors
    /// [`Exhausted`]; nothing was allocated then.
    ///
    /// ```
    /// # use portway::memory::Pool;
    /// let pool = Pool::new(1_500, 64, None);
    /// let buffer = pool.lease()?;
    /// assert_eq!((buffer.len(), buffer.capacity()), (0, 1_500));
    /// # Ok::<(), portway::memory::Exhausted>(())
    /// ```
    #[inline]
    pub fn lease(&self) -> Result<Buf, Exhausted> {
        match HERE.with(|here| here.get(self.place)?.take_last(&self.home.counts)) {
            Some(slot) => Ok(Buf::of(slot)),
            None => self.find(),
        }
    }

    /// Frees half of the buffers that nobody has needed since the last call: memory that was taken for a peak goes
    /// back step by step. To be called now and then.
    ///
    /// ```
    /// # use portway::memory::Pool;
    /// let pool = Pool::new(1_500, 64, None);
    /// drop((pool.lease(), pool.lease()));
    /// pool.trim();
    /// pool.trim();
    /// assert_eq!(pool.stats().made, 1);
    /// ```
    pub fn trim(&self) {
        let counts = &self.home.counts;
        self.collect();
        let untouched = u64::from(counts.own_last.load(Ordering::Relaxed) == UNTOUCHED);
        let unneeded = self.fewest.get() + untouched;
        self.discard(unneeded.div_ceil(2));
        self.fewest.set(counts.own_others.load(Ordering::Relaxed));
        if counts.own_last.load(Ordering::Relaxed) == FREE {
            counts.own_last.store(UNTOUCHED, Ordering::Relaxed);
        }
    }

    /// What it has done so far.
    ///
    /// ```
    /// # use portway::memory::Pool;
    /// assert_eq!(Pool::new(1_500, 64, None).stats().made, 0);
    /// ```
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.home.stats()
    }

    /// Reads its statistics on any thread, and after its end.
    ///
    /// ```
    /// # use portway::memory::Pool;
    /// let pool = Pool::new(1_500, 64, None);
    /// let gauge = pool.gauge();
    /// let kept = pool.lease().unwrap();
    /// drop(pool);
    /// assert_eq!((gauge.stats().made, gauge.stats().out), (1, 1), "somebody still has it");
    /// drop(kept);
    /// assert_eq!((gauge.stats().made, gauge.stats().out), (0, 0));
    /// ```
    #[must_use]
    pub fn gauge(&self) -> PoolGauge {
        PoolGauge(self.home.clone())
    }

    /// Its free buffers.
    fn free<R>(&self, with: impl Fn(&Free) -> R) -> R {
        let here = HERE.with(|here| here.get(self.place).map(&with));
        here.unwrap_or_else(|| with(&self.spare))
    }

    /// Takes over what came home from elsewhere.
    fn collect(&self) {
        let counts = &self.home.counts;
        let mut came = None;
        self.home.returns.take(|mut slot| {
            slot.next = came.take();
            came = Some(slot);
            change(&counts.own_found, |found| found + 1);
        });
        while let Some(mut slot) = came {
            came = slot.next.take();
            self.put(slot);
        }
    }

    fn put(&self, slot: Box<Slot>) {
        let ready = slot.bytes.capacity() == self.home.size;
        let slot = Cell::new(Some(slot));
        self.free(|free| slot.take().map(|slot| if ready { free.put(slot) } else { free.put_behind(slot) }));
    }

    /// Frees so many of the free ones, or all there are.
    fn discard(&self, most: u64) {
        let counts = &self.home.counts;
        for _ in 0..most {
            let Some(slot) = self.free(|free| free.take(counts)) else { return };
            drop(slot);
            change(&counts.own_made, |made| made.saturating_sub(1));
            self.home.uncharge();
        }
    }

    /// A buffer when there is no last one back.
    #[inline(never)]
    fn find(&self) -> Result<Buf, Exhausted> {
        let counts = &self.home.counts;
        let slot = match self.free(|free| free.take(counts)) {
            Some(slot) if slot.bytes.capacity() == self.home.size => slot,
            other => self.make(other)?,
        };
        let others = counts.own_others.load(Ordering::Relaxed);
        if others < self.fewest.get() {
            self.fewest.set(others);
        }
        Ok(Buf::of(slot))
    }

    /// A buffer when none is ready: one that came home, a new one, or none.
    #[cold]
    fn make(&self, found: Option<Box<Slot>>) -> Result<Box<Slot>, Exhausted> {
        let made = self.try_make(found);
        if made.is_err() {
            change(&self.home.counts.own_exhausted, |times| times + 1);
        }
        made
    }

    fn try_make(&self, found: Option<Box<Slot>>) -> Result<Box<Slot>, Exhausted> {
        let Home { size, limit, budget, counts, .. } = &*self.home;
        if found.is_none() {
            self.collect();
        }
        // One that had grown has lost its memory, and still counts as made.
        if let Some(mut slot) = found.or_else(|| self.free(|free| free.take(counts))) {
            if slot.bytes.try_reserve_exact(*size).is_err() {
                self.put(slot);
                return Err(Exhausted::Memory);
            }
            return Ok(slot);
        }
        let made = counts.own_made.load(Ordering::Relaxed);
        if made >= *limit as u64 {
            return Err(Exhausted::Limit);
        }
        budget.as_ref().map_or(Ok(()), |budget| budget.take(*size)).map_err(|_| Exhausted::Memory)?;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(*size).is_err() {
            self.home.uncharge();
            return Err(Exhausted::Memory);
        }
        counts.own_made.store(made + 1, Ordering::Relaxed);
        // One is made only when all others are out.
        change(&counts.own_high, |high| high.max(made + 1));
        Ok(Box::new(Slot::of(bytes, &self.home)))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.discard(u64::MAX);
        own(self.home.place, std::ptr::null());
        // From here on what comes back is freed, counted and given back to the budget where that is.
        for slot in self.home.returns.close() {
            drop(slot);
            self.home.freed_after_the_end();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

/// Reads the statistics of a [`Pool`] from anywhere.
///
/// ```
/// # use portway::memory::Pool;
/// let gauge = Pool::new(1_500, 64, None).gauge();
/// assert_eq!(gauge.stats().size, 1_500);
/// ```
#[derive(Clone)]
pub struct PoolGauge(Arc<Home>);

impl PoolGauge {
    /// What the pool has done so far.
    ///
    /// ```
    /// # use portway::memory::Pool;
    /// assert_eq!(Pool::new(1_500, 64, None).gauge().stats().out, 0);
    /// ```
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.0.stats()
    }
}

impl fmt::Debug for PoolGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolGauge").field(&self.stats()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use super::super::pool_buf::POOLS;
    use super::*;

    assert_not_impl_any!(Pool: Send, Sync);
    assert_impl_all!(Buf: Send, Sync);

    #[test]
    fn the_last_one_back_is_the_next_one_out() {
        let pool = Pool::new(100, 2, None);
        let (mut a, b) = (pool.lease().unwrap(), pool.lease().unwrap());
        a.extend_from_slice(b"left over");
        let (at_a, at_b) = (a.as_ptr(), b.as_ptr());
        drop(b);
        drop(a);
        let (c, d) = (pool.lease().unwrap(), pool.lease().unwrap());
        assert_eq!((c.as_ptr(), d.as_ptr()), (at_a, at_b));
        assert!(c.is_empty(), "contents are forgotten");
        assert_eq!(pool.lease().err(), Some(Exhausted::Limit));
        assert_eq!(pool.stats().exhausted, 1);
    }

    #[test]
    fn buffers_come_home_from_other_threads_and_only_to_their_pool() {
        let pool = Pool::new(100, 1, None);
        let buffer = pool.lease().unwrap();
        let at = buffer.as_ptr() as usize;
        std::thread::spawn(move || {
            // A pool of this thread with the same key.
            let other = Pool::new(100, 1, None);
            drop(buffer);
            assert_eq!(other.stats(), PoolStats { size: 100, limit: 1, ..PoolStats::default() });
        })
        .join()
        .unwrap();
        assert_eq!(pool.stats().out, 0);
        assert_eq!(pool.lease().unwrap().as_ptr() as usize, at);
        assert_eq!(pool.stats().came_home, 1);
    }

    #[test]
    fn a_buffer_outlives_its_pool_and_its_thread() {
        let (buffer, gauge) = std::thread::spawn(|| {
            let pool = Pool::new(100, 1, None);
            (pool.lease().unwrap(), pool.gauge())
        })
        .join()
        .unwrap();
        assert_eq!(gauge.stats().out, 1);
        drop(buffer);
        assert_eq!(gauge.stats().out, 0);

        let pool = Pool::new(100, 1, None);
        let (buffer, gauge) = (pool.lease().unwrap(), pool.gauge());
        drop(pool);
        // A later pool of this thread in the same place, that nobody may take it for.
        let later = Pool::new(100, 1, None);
        drop(buffer);
        assert_eq!((gauge.stats().out, later.stats().made, later.stats().came_home), (0, 0, 0));
    }

    #[test]
    fn pools_may_end_with_their_thread_in_any_order() {
        struct AtExit(RefCell<Option<Pool>>, RefCell<Option<Buf>>);
        impl Drop for AtExit {
            fn drop(&mut self) {
                // The thread's list of pools may be gone by now.
                let late = Pool::new(100, 1, None);
                drop(late.lease());
                drop(self.0.take());
                drop(self.1.take());
            }
        }
        thread_local! {
            static EARLY: AtExit = const { AtExit(RefCell::new(None), RefCell::new(None)) };
        }
        for pool_first in [true, false] {
            let gauge = std::thread::spawn(move || {
                if !pool_first {
                    EARLY.with(|early| assert!(early.0.borrow().is_none()));
                }
                let pool = Pool::new(100, 1, None);
                let gauge = pool.gauge();
                EARLY.with(|early| {
                    early.1.replace(pool.lease().ok());
                    early.0.replace(Some(pool));
                });
                gauge
            })
            .join()
            .unwrap();
            assert_eq!((gauge.stats().made, gauge.stats().out), (0, 0));
        }
    }

    #[test]
    fn one_that_has_grown_loses_its_memory_and_not_its_place() {
        let pool = Pool::new(10, 1, None);
        let mut buffer = pool.lease().unwrap();
        buffer.extend_from_slice(&[0; 11]);
        assert!(buffer.own_bytes() >= 1);
        drop(buffer);
        let mut buffer = pool.lease().unwrap();
        assert_eq!((buffer.capacity(), pool.stats().resized, pool.stats().made), (10, 1, 1));
        let taken = std::mem::take(&mut *buffer);
        drop(buffer);
        assert_eq!(taken.capacity(), 10);
        assert_eq!((pool.lease().unwrap().capacity(), pool.stats().resized), (10, 2));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let pool = Pool::new(usize::MAX, 1, None);
        assert_eq!(pool.lease().err(), Some(Exhausted::Memory));
        assert_eq!((pool.stats().made, pool.stats().out), (0, 0));
        let nothing = Pool::new(0, 1, None);
        drop(nothing.lease().unwrap());
        assert_eq!((nothing.lease().unwrap().len(), nothing.stats().made), (0, 1));
        assert_eq!(Pool::new(1, 0, None).lease().err(), Some(Exhausted::Limit));
    }

    #[test]
    fn the_budget_is_kept_and_given_back() {
        let budget = Budget::new(1_000);
        let pool = Pool::new(100, 100, Some(&budget));
        let all: Vec<_> = std::iter::from_fn(|| pool.lease().ok()).collect();
        assert_eq!((all.len(), budget.used()), (8, 800));
        assert_eq!(pool.lease().err(), Some(Exhausted::Memory));
        drop(all);
        assert_eq!(budget.used(), 800, "kept for the next");
        for _ in 0..6 {
            pool.trim();
        }
        assert_eq!((budget.used(), pool.stats().made), (0, 0));
        let one = pool.lease().unwrap();
        pool.trim();
        assert_eq!(budget.used(), 100, "what is out stays");
        drop(pool);
        assert_eq!(budget.used(), 100, "also after the end of the pool");
        drop(one);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_out_at_the_end_of_its_pool_stays_charged_until_it_is_dropped() {
        let budget = Budget::new(1_000);
        let pool = Pool::new(100, 8, Some(&budget));
        let gauge = pool.gauge();
        let mut out: Vec<_> = (0..6).map(|_| pool.lease().unwrap()).collect();
        // One lies ready, one is on its way home from another thread, one has grown and lost its memory.
        drop(out.pop());
        let away = out.pop();
        std::thread::spawn(move || drop(away)).join().unwrap();
        out[0].reserve_exact(1_000);
        drop(out.swap_remove(0));
        assert_eq!((budget.used(), gauge.stats().made, gauge.stats().out), (600, 6, 3));
        drop(pool);
        assert_eq!((budget.used(), gauge.stats().made, gauge.stats().out), (300, 3, 3));
        drop(out.pop());
        assert_eq!((budget.used(), gauge.stats().made, gauge.stats().out), (200, 2, 2));
        out[0].reserve_exact(1_000);
        std::thread::spawn(move || drop(out)).join().unwrap();
        assert_eq!((budget.used(), gauge.stats().made, gauge.stats().out), (0, 0, 0));
        assert_eq!((gauge.stats().came_home, gauge.stats().resized), (4, 2));
    }

    #[test]
    fn a_pool_that_ends_while_its_buffers_come_back_gives_the_budget_back_once() {
        for _ in 0..if cfg!(miri) { 3 } else { 100 } {
            let budget = Budget::new(10_000);
            let pool = Pool::new(100, 32, Some(&budget));
            let gauge = pool.gauge();
            let mut threads = Vec::new();
            for _ in 0..4 {
                let some: Vec<_> = (0..8).map(|_| pool.lease().unwrap()).collect();
                threads.push(std::thread::spawn(move || some.into_iter().for_each(drop)));
            }
            drop(pool);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let PoolStats { made, out, came_home, .. } = gauge.stats();
            assert_eq!((budget.used(), made, out, came_home), (0, 0, 0, 32));
        }
    }

    /// What is written on the top of this file, that nobody may take it for more.
    #[test]
    fn growth_is_charged_to_nobody_and_told() {
        let budget = Budget::new(1_000);
        let pool = Pool::new(100, 8, Some(&budget));
        let mut buffer = pool.lease().unwrap();
        buffer.reserve_exact(250);
        assert_eq!((budget.used(), buffer.own_bytes()), (100, 150));
        let taken = std::mem::take(&mut *buffer);
        assert_eq!((budget.used(), buffer.own_bytes(), taken.capacity()), (100, 0, 250));
        drop(buffer);
        assert_eq!((budget.used(), pool.stats().resized), (100, 1));
    }

    #[test]
    fn more_pools_than_a_thread_may_have_work_all_the_same() {
        let pools: Vec<_> = (0..POOLS + 2).map(|_| Pool::new(10, 1, None)).collect();
        for pool in &pools {
            drop(pool.lease().unwrap());
            drop(pool.lease().unwrap());
            assert_eq!((pool.stats().made, pool.stats().out), (1, 0));
        }
        assert_eq!(pools.iter().map(|pool| pool.stats().came_home).sum::<u64>(), 4);
    }

    proptest! {
        /// Never two holders of one memory, never more than the limit, and nothing is lost.
        #[test]
        fn every_buffer_is_in_one_place(steps in proptest::collection::vec((0..5u8, 0..6usize), 1..if cfg!(miri) { 20 } else { 100 })) {
            let budget = Budget::new(10_000);
            let pool = Pool::new(64, 4, Some(&budget));
            let mut out: Vec<Buf> = Vec::new();
            for (what, which) in steps {
                match what {
                    0 | 1 => match pool.lease() {
                        Ok(buffer) => {
                            prop_assert!(buffer.is_empty() && buffer.capacity() == 64);
                            prop_assert!(out.iter().all(|other| other.as_ptr() != buffer.as_ptr()));
                            out.push(buffer);
                        }
                        Err(exhausted) => prop_assert_eq!((exhausted, out.len()), (Exhausted::Limit, 4)),
                    },
                    2 if which < out.len() => drop(out.swap_remove(which)),
                    3 if which < out.len() => {
                        let buffer = out.swap_remove(which);
                        std::thread::spawn(move || drop(buffer)).join().unwrap();
                    }
                    4 => pool.trim(),
                    _ => {}
                }
                let stats = pool.stats();
                prop_assert_eq!(stats.out, out.len() as u64);
                prop_assert!(stats.made >= stats.out && stats.made <= 4 && stats.high >= stats.out);
                prop_assert_eq!(budget.used() as u64, stats.made * 64);
            }
        }
    }
}
