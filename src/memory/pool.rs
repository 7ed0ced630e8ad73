//! Buffers of one size, made once and used again and again.
//!
//! A pool belongs to one thread. Taking a buffer and dropping it there costs neither a lock nor an atomic operation
//! that others could contend for; one dropped on another thread comes home over a list that the pool empties when it
//! has nothing else. A buffer dropped after the end of its pool frees its memory.
//!
//! Bounded by a number of buffers and by a memory budget; a pool with nothing left says so, counts it, and allocates
//! nothing. A buffer is a `Vec` and may grow; it is then no longer of the pool's size, its memory is freed instead of
//! kept, and that is counted. Contents are forgotten, not wiped: see [`Secret`](super::Secret).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::budget::{Budget, Lease};
use super::returns::Returns;
use super::table::{Key, Table};

/// Pools that one thread may have; buffers of a further one come home over its list.
const POOLS: usize = 64;

thread_local! {
    /// The pools of this thread: how a dropped buffer finds home.
    static HERE: RefCell<Table<Option<Rc<Inner>>>> = const { RefCell::new(Table::new(POOLS)) };
}

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
    inner: Rc<Inner>,
}

struct Inner {
    free: RefCell<Vec<(Vec<u8>, Arc<Home>)>>,
    home: Arc<Home>,
    /// The fewest that were free since the last trim.
    fewest: Cell<usize>,
    lease: RefCell<Option<Lease>>,
}

/// What buffers know of their pool, wherever they are.
struct Home {
    key: Option<Key>,
    size: usize,
    limit: usize,
    returns: Returns<Vec<u8>>,
    counts: Counts,
}

/// Those named so are written by the pool's own thread alone, with plain stores.
#[derive(Default)]
struct Counts {
    own_made: AtomicUsize,
    own_taken: AtomicU64,
    own_back: AtomicU64,
    own_high: AtomicU64,
    own_exhausted: AtomicU64,
    came_home: AtomicU64,
    resized: AtomicU64,
}

/// Adds to a number that no other thread writes.
fn add(own: &AtomicU64, n: u64) -> u64 {
    let sum = own.load(Ordering::Relaxed).wrapping_add(n);
    own.store(sum, Ordering::Relaxed);
    sum
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
    /// Buffers it has, in or out.
    pub made: usize,
    /// Buffers that are out now.
    pub out: u64,
    /// The most that ever were out at once.
    pub high: u64,
    /// Buffers given out.
    pub taken: u64,
    /// Times it had none to give.
    pub exhausted: u64,
    /// Buffers dropped on another thread, or after the end of the pool.
    pub came_home: u64,
    /// Buffers that came back with another size.
    pub resized: u64,
}

impl Pool {
    /// A pool of the calling thread for at most `limit` buffers of `size` bytes, of which none is made yet. Each buffer
    /// made takes its size of `budget`, until it is trimmed.
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
        let key = with_here(|here| here.insert(None).ok());
        let inner = Rc::new(Inner {
            free: RefCell::default(),
            home: Arc::new(Home { key, size, limit, returns: Returns::new(), counts: Counts::default() }),
            fewest: Cell::new(0),
            lease: RefCell::new(budget.and_then(|budget| budget.lease(0).ok())),
        });
        if let Some(key) = key {
            with_here(|here| here.get_mut(key).map(|place| *place = Some(inner.clone())));
        }
        Self { inner }
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
    pub fn lease(&self) -> Result<Buf, Exhausted> {
        let Inner { free, home, fewest, .. } = &*self.inner;
        let mut free = free.borrow_mut();
        let found = match free.pop() {
            Some(found) if found.0.capacity() > 0 => Ok(found),
            found => self.inner.make(&mut free, found),
        };
        fewest.set(fewest.get().min(free.len()));
        let counts = &home.counts;
        match found {
            Ok((bytes, home)) => {
                let taken = add(&counts.own_taken, 1);
                let out = taken.wrapping_sub(counts.back());
                if out > counts.own_high.load(Ordering::Relaxed) {
                    counts.own_high.store(out, Ordering::Relaxed);
                }
                Ok(Buf { bytes, home: Some(home) })
            }
            Err(exhausted) => {
                add(&counts.own_exhausted, 1);
                Err(exhausted)
            }
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
        let Inner { free, home, fewest, lease } = &*self.inner;
        let mut free = free.borrow_mut();
        home.returns.take(|bytes| free.push((bytes, home.clone())));
        // Those at the front were used longest ago.
        let idle = fewest.get().min(free.len()).div_ceil(2);
        free.drain(..idle);
        fewest.set(free.len());
        let made = &home.counts.own_made;
        made.store(made.load(Ordering::Relaxed).saturating_sub(idle), Ordering::Relaxed);
        if let Some(lease) = &mut *lease.borrow_mut() {
            lease.force(lease.bytes().saturating_sub(idle * home.size));
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
        self.inner.home.stats()
    }

    /// Reads its statistics on any thread, and after its end.
    ///
    /// ```
    /// # use portway::memory::Pool;
    /// let pool = Pool::new(1_500, 64, None);
    /// let gauge = pool.gauge();
    /// let kept = pool.lease().unwrap();
    /// drop(pool);
    /// assert_eq!(gauge.stats().out, 1, "somebody still has it");
    /// drop(kept);
    /// assert_eq!(gauge.stats().out, 0);
    /// ```
    #[must_use]
    pub fn gauge(&self) -> PoolGauge {
        PoolGauge(self.inner.home.clone())
    }
}

impl Inner {
    /// A buffer when none is ready: one that came home, a new one, or none.
    #[cold]
    fn make(
        &self,
        free: &mut Vec<(Vec<u8>, Arc<Home>)>,
        found: Option<(Vec<u8>, Arc<Home>)>,
    ) -> Result<(Vec<u8>, Arc<Home>), Exhausted> {
        let home = &self.home;
        if found.is_none() {
            home.returns.take(|bytes| free.push((bytes, home.clone())));
        }
        // One that had grown has lost its memory, and its place still counts as made.
        let found = found.or_else(|| free.pop());
        let is_new = found.is_none();
        let made = home.counts.own_made.load(Ordering::Relaxed);
        let mut lease = self.lease.borrow_mut();
        if is_new {
            if made >= home.limit {
                return Err(Exhausted::Limit);
            }
            if let Some(lease) = &mut *lease {
                lease.resize(lease.bytes().saturating_add(home.size)).map_err(|_| Exhausted::Memory)?;
            }
        }
        let (mut bytes, home) = found.unwrap_or_else(|| (Vec::new(), home.clone()));
        if bytes.try_reserve_exact(home.size).is_err() {
            if !is_new {
                free.push((bytes, home));
            } else if let Some(lease) = &mut *lease {
                lease.force(lease.bytes().saturating_sub(home.size));
            }
            return Err(Exhausted::Memory);
        }
        home.counts.own_made.store(made + usize::from(is_new), Ordering::Relaxed);
        Ok((bytes, home))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let home = &self.inner.home;
        if let Some(key) = home.key {
            with_here(|here| here.remove(key));
        }
        drop(home.returns.close());
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

/// The pools of this thread, unless it is ending.
fn with_here<R>(f: impl FnOnce(&mut Table<Option<Rc<Inner>>>) -> Option<R>) -> Option<R> {
    HERE.try_with(|here| here.try_borrow_mut().ok().and_then(|mut here| f(&mut here))).ok().flatten()
}

impl Counts {
    fn back(&self) -> u64 {
        self.own_back.load(Ordering::Relaxed).wrapping_add(self.came_home.load(Ordering::Relaxed))
    }
}

impl Home {
    fn stats(&self) -> PoolStats {
        let Counts { own_made, own_taken, own_high, own_exhausted, came_home, resized, .. } = &self.counts;
        let back = self.counts.back();
        let taken = own_taken.load(Ordering::Relaxed);
        PoolStats {
            size: self.size,
            limit: self.limit,
            made: own_made.load(Ordering::Relaxed),
            // Read while another thread counts, the two may not fit together for a moment.
            out: taken.saturating_sub(back),
            high: own_high.load(Ordering::Relaxed),
            taken,
            exhausted: own_exhausted.load(Ordering::Relaxed),
            came_home: came_home.load(Ordering::Relaxed),
            resized: resized.load(Ordering::Relaxed),
        }
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

/// A buffer: a `Vec` that goes home when dropped, if it has one.
///
/// ```
/// use portway::memory::{Buf, Pool};
///
/// let pool = Pool::new(1_500, 64, None);
/// // Who must have a buffer in any case takes one of its own when the pool is empty.
/// let mut buffer = pool.lease().unwrap_or_default();
/// buffer.push(1);
/// assert_eq!(buffer.own_bytes(), 0, "the pool answers for its memory");
/// # let _: &Buf = &buffer;
/// ```
#[derive(Default)]
pub struct Buf {
    bytes: Vec<u8>,
    home: Option<Arc<Home>>,
}

impl Buf {
    /// Bytes of memory held beyond what its pool answers for.
    ///
    /// ```
    /// # use portway::memory::Buf;
    /// assert_eq!(Buf::from(Vec::with_capacity(10)).own_bytes(), 10);
    /// ```
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        self.bytes.capacity().saturating_sub(self.home.as_ref().map_or(0, |home| home.size))
    }
}

impl From<Vec<u8>> for Buf {
    /// A buffer without a pool.
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, home: None }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        if bytes.capacity() != home.size {
            home.counts.resized.fetch_add(1, Ordering::Relaxed);
            bytes = Vec::new();
        }
        let mut back = Some((bytes, home));
        let here = HERE.try_with(|here| {
            let here = here.try_borrow().ok()?;
            let home = &back.as_ref()?.1;
            let inner = here.get(home.key?)?.as_ref().filter(|inner| Arc::ptr_eq(&inner.home, home))?;
            let mut free = inner.free.try_borrow_mut().ok()?;
            add(&inner.home.counts.own_back, 1);
            free.extend(back.take());
            Some(())
        });
        if let (Ok(None) | Err(_), Some((bytes, home))) = (here, back) {
            home.counts.came_home.fetch_add(1, Ordering::Relaxed);
            // Refused when the pool has ended: then it is freed here.
            drop(home.returns.give(bytes));
        }
    }
}

impl Deref for Buf {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.bytes.len())
            .field("capacity", &self.bytes.capacity())
            .field("pooled", &self.home.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        // A later pool of this thread in the same place, with another generation.
        let later = Pool::new(100, 1, None);
        drop(buffer);
        assert_eq!((gauge.stats().out, later.stats().taken, later.stats().came_home), (0, 0, 0));
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
            assert_eq!((gauge.stats().taken, gauge.stats().out), (1, 0));
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
        assert_eq!(budget.used(), 0);
        drop(one);
    }

    #[test]
    fn more_pools_than_a_thread_may_have_work_all_the_same() {
        let pools: Vec<_> = (0..POOLS + 2).map(|_| Pool::new(10, 1, None)).collect();
        for pool in &pools {
            drop(pool.lease().unwrap());
            drop(pool.lease().unwrap());
            assert_eq!((pool.stats().made, pool.stats().out, pool.stats().taken), (1, 0, 2));
        }
        assert_eq!(pools.iter().map(|pool| pool.stats().came_home).sum::<u64>(), 4);
    }

    proptest! {
        /// Never two holders of one memory, never more than the limit, and nothing is lost.
        #[test]
        fn every_buffer_is_in_one_place(steps in proptest::collection::vec((0..5u8, 0..6usize), 1..100)) {
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
                prop_assert!(stats.made >= out.len() && stats.made <= 4);
                prop_assert_eq!(budget.used(), stats.made * 64);
            }
        }
    }
}
