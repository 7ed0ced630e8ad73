//! The buffers of a [`Pool`](super::Pool), and how they find home.
//!
//! The free buffers of a thread's pools lie in a thread-local table, and each buffer knows its place there: a buffer
//! dropped on its own thread goes back without a look at its pool. On another thread the same place belongs to
//! somebody else or to nobody; then the buffer goes home over the pool's list.

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::budget::Budget;
use super::pool::PoolStats;
use super::returns::Returns;

/// Pools that one thread may have; buffers of a further one come home over its list.
pub(super) const POOLS: usize = 64;

thread_local! {
    /// The free buffers of this thread's pools. Each pool empties its place when it ends, so there is nothing to drop, and
    /// with that no access has to ask whether the thread has come to its end.
    pub(super) static HERE: ManuallyDrop<[Free; POOLS]> = const { ManuallyDrop::new([const { Free::new() }; POOLS]) };
}

/// A place of this thread that no pool has, or one that does not exist.
pub(super) fn take_place() -> usize {
    HERE.with(|here| here.iter().position(|place| place.owner.get().is_null())).unwrap_or(usize::MAX)
}

/// Says whose place it is from now on.
pub(super) fn own(place: usize, owner: *const Home) {
    HERE.with(|here| {
        if let Some(place) = here.get(place) {
            place.owner.set(owner);
        }
    });
}

/// The free buffers of one pool. The last one back is the next one out.
pub(super) struct Free {
    /// Whose they are. Only compared: a buffer that asks keeps its own home alive, so no other has its address.
    owner: Cell<*const Home>,
    /// The last one back, ready to be used: mostly there is no need to go on.
    last: Cell<Option<Box<Slot>>>,
    /// The first of the others, each of which holds the next. One that has lost its memory is only here.
    others: Cell<Option<Box<Slot>>>,
}

impl Free {
    pub(super) const fn new() -> Self {
        Self { owner: Cell::new(ptr::null()), last: Cell::new(None), others: Cell::new(None) }
    }

    #[inline]
    pub(super) fn take_last(&self, counts: &Counts) -> Option<Box<Slot>> {
        let slot = self.last.take()?;
        counts.own_last.store(OUT, Ordering::Relaxed);
        Some(slot)
    }

    pub(super) fn take_other(&self, counts: &Counts) -> Option<Box<Slot>> {
        let slot = self.unlink()?;
        change(&counts.own_others, |others| others.saturating_sub(1));
        Some(slot)
    }

    pub(super) fn take(&self, counts: &Counts) -> Option<Box<Slot>> {
        self.take_last(counts).or_else(|| self.take_other(counts))
    }

    /// Takes one that is ready to be used.
    #[inline]
    pub(super) fn put(&self, slot: Box<Slot>) {
        if let Some(home) = &slot.home {
            home.counts.own_last.store(FREE, Ordering::Relaxed);
        }
        if let Some(before) = self.last.replace(Some(slot)) {
            self.put_behind(before);
        }
    }

    #[inline(never)]
    pub(super) fn put_behind(&self, mut slot: Box<Slot>) {
        if let Some(home) = &slot.home {
            change(&home.counts.own_others, |others| others + 1);
        }
        slot.next = self.others.take();
        self.others.set(Some(slot));
    }

    fn unlink(&self) -> Option<Box<Slot>> {
        let mut slot = self.others.take()?;
        self.others.set(slot.next.take());
        Some(slot)
    }
}

/// One buffer of a pool.
pub(super) struct Slot {
    pub(super) bytes: Vec<u8>,
    pub(super) next: Option<Box<Self>>,
    /// As in `home`, one step nearer.
    place: usize,
    /// `None`: without a pool.
    home: Option<Arc<Home>>,
}

impl Slot {
    pub(super) fn of(bytes: Vec<u8>, home: &Arc<Home>) -> Self {
        Self { bytes, next: None, place: home.place, home: Some(home.clone()) }
    }

    /// It has another size than its pool's.
    fn forget_memory(&mut self) {
        if let Some(home) = &self.home {
            home.counts.resized.fetch_add(1, Ordering::Relaxed);
        }
        self.bytes = Vec::new();
    }

    const fn alone(bytes: Vec<u8>) -> Self {
        Self { bytes, next: None, place: usize::MAX, home: None }
    }
}

/// What buffers know of their pool, wherever they are.
pub(super) struct Home {
    /// Where its thread keeps its free buffers; [`POOLS`] or more: nowhere.
    pub(super) place: usize,
    pub(super) size: usize,
    pub(super) limit: usize,
    /// What each buffer that is made takes its size of.
    pub(super) budget: Option<Budget>,
    pub(super) returns: Returns<Box<Slot>>,
    pub(super) counts: Counts,
}

impl Home {
    /// A buffer is freed: its share of the budget is.
    pub(super) fn uncharge(&self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.size);
        }
    }

    /// A buffer that came home when there was no pool any more is freed.
    pub(super) fn freed_after_the_end(&self) {
        // In this order who reads meanwhile sees rather one too many out.
        self.counts.own_found.fetch_add(1, Ordering::Relaxed);
        self.counts.own_made.fetch_sub(1, Ordering::Relaxed);
        self.uncharge();
    }

    pub(super) fn stats(&self) -> PoolStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { own_made, own_last, own_others, own_high, own_exhausted, own_found, came_home, resized } =
            &self.counts;
        // Read while another thread counts, these may not fit together for a moment.
        let on_the_way = read(came_home).saturating_sub(read(own_found));
        let free = read(own_others) + u64::from(own_last.load(Ordering::Relaxed) != OUT);
        PoolStats {
            size: self.size,
            limit: self.limit,
            made: read(own_made),
            out: read(own_made).saturating_sub(free + on_the_way),
            high: read(own_high),
            exhausted: read(own_exhausted),
            came_home: read(came_home),
            resized: read(resized),
        }
    }
}

/// The last one back is out again, or there was none.
pub(super) const OUT: u8 = 0;
/// The last one back is free.
pub(super) const FREE: u8 = 1;
/// The same, and nobody has needed it since the last trim.
pub(super) const UNTOUCHED: u8 = 2;

/// Those called `own` are written by the pool's own thread alone, with plain stores, for as long as there is the pool.
/// What is out follows from what is free: a buffer that is taken and comes back then costs two stores that wait for
/// nothing.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) own_made: AtomicU64,
    /// [`OUT`], [`FREE`] or [`UNTOUCHED`].
    pub(super) own_last: AtomicU8,
    /// How many are free besides.
    pub(super) own_others: AtomicU64,
    pub(super) own_high: AtomicU64,
    pub(super) own_exhausted: AtomicU64,
    /// Of those that came home, how many were found there.
    pub(super) own_found: AtomicU64,
    pub(super) came_home: AtomicU64,
    pub(super) resized: AtomicU64,
}

/// Changes a number that no other thread writes.
#[inline]
pub(super) fn change(own: &AtomicU64, by: impl FnOnce(u64) -> u64) -> u64 {
    let now = by(own.load(Ordering::Relaxed));
    own.store(now, Ordering::Relaxed);
    now
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
pub struct Buf(
    // One pointer: larger values are written in parts and read as a whole, which stalls the processor.
    Option<Box<Slot>>,
);

/// What an empty buffer without memory looks like.
static NOTHING: Vec<u8> = Vec::new();

impl Buf {
    #[inline]
    pub(super) const fn of(slot: Box<Slot>) -> Self {
        Self(Some(slot))
    }

    /// Bytes of memory held beyond what its pool answers for.
    ///
    /// ```
    /// # use portway::memory::Buf;
    /// assert_eq!(Buf::from(Vec::with_capacity(10)).own_bytes(), 10);
    /// ```
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        let pooled = self.0.as_ref().and_then(|slot| slot.home.as_ref()).map_or(0, |home| home.size);
        self.capacity().saturating_sub(pooled)
    }
}

impl From<Vec<u8>> for Buf {
    /// A buffer without a pool.
    fn from(bytes: Vec<u8>) -> Self {
        Self(Some(Box::new(Slot::alone(bytes))))
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            go_home(slot);
        }
    }
}

#[inline]
fn go_home(mut slot: Box<Slot>) {
    HERE.with(|here| {
        let Some(home) = &slot.home else { return };
        let Some(free) = here.get(slot.place).filter(|free| ptr::eq(free.owner.get(), Arc::as_ptr(home))) else {
            return go_home_from_elsewhere(slot);
        };
        if slot.bytes.capacity() != home.size {
            return go_home_resized(slot, free);
        }
        slot.bytes.clear();
        free.put(slot);
    });
}

#[cold]
fn go_home_resized(mut slot: Box<Slot>, free: &Free) {
    slot.forget_memory();
    free.put_behind(slot);
}

#[cold]
fn go_home_from_elsewhere(mut slot: Box<Slot>) {
    let Some(home) = slot.home.clone() else { return };
    if slot.bytes.capacity() == home.size {
        slot.bytes.clear();
    } else {
        slot.forget_memory();
    }
    home.counts.came_home.fetch_add(1, Ordering::Relaxed);
    // Refused when the pool has ended: then it is freed here.
    if let Err(slot) = home.returns.give(slot) {
        drop(slot);
        home.freed_after_the_end();
    }
}

impl Deref for Buf {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        self.0.as_ref().map_or(&NOTHING, |slot| &slot.bytes)
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0.get_or_insert_with(|| Box::new(Slot::alone(Vec::new()))).bytes
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("pooled", &self.0.as_ref().is_some_and(|slot| slot.home.is_some()))
            .finish()
    }
}
