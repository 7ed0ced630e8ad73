//! One number for the whole process: how many bytes sessions may hold in buffers, and who holds how many.
//!
//! Sessions lease from it. No lease is granted that would bring it above 80 % ("no new sessions, no new credit"): the rest
//! is for what was accepted before and cannot be given up. From 95 % on the gateway ends the largest holder, again and
//! again, until there is room. A lease is meant to be changed in large steps, so
//! that the one shared atomic is not touched per packet.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much of the budget is used.
///
/// ```
/// use portway::memory::{Budget, Level};
///
/// let lease = Budget::new(100).lease(79)?;
/// assert_eq!(lease.level(), Level::Normal);
/// assert!(Level::Normal < Level::Tight && Level::Tight < Level::Critical);
/// # Ok::<(), portway::memory::OverBudget>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below 80 %: there is room.
    Normal,
    /// From 80 %: no new sessions and no new credit.
    Tight,
    /// From 95 %: the largest holder has to go.
    Critical,
}

/// A lease was refused: more than 80 % of the budget would be used with it.
///
/// ```
/// use portway::memory::{Budget, OverBudget};
///
/// assert_eq!(Budget::new(100).lease(81).err(), Some(OverBudget));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget;

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory budget has no more room")
    }
}

impl std::error::Error for OverBudget {}

/// The budget. Clones share it.
///
/// ```
/// use portway::memory::{Budget, Level};
///
/// let budget = Budget::new(1_000);
/// let mut lease = budget.lease(700)?;
/// assert!(budget.lease(200).is_err(), "that would be more than 80 %");
/// lease.force(960);
/// assert_eq!(budget.level(), Level::Critical);
/// drop(lease);
/// assert_eq!(budget.used(), 0);
/// # Ok::<(), portway::memory::OverBudget>(())
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// assert_eq!(Budget::new(1 << 30).used(), 0);
    /// ```
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { inner: Arc::new(Inner { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }) }
    }

    /// The bytes there are.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// assert_eq!(Budget::new(100).limit(), 100);
    /// ```
    #[must_use]
    pub fn limit(&self) -> usize {
        self.inner.limit.load(Ordering::Relaxed)
    }

    /// Changes how many bytes there are, for all clones. Leases go on as they are, also those that more bytes were granted
    /// for than there are now: nobody new is let in until enough has come back, and whoever keeps the budget ends the
    /// largest holders.
    ///
    /// ```
    /// # use portway::memory::{Budget, Level};
    /// let budget = Budget::new(100);
    /// let lease = budget.lease(60)?;
    /// budget.set_limit(50);
    /// assert_eq!((lease.bytes(), budget.level()), (60, Level::Critical));
    /// budget.set_limit(1_000);
    /// assert_eq!(budget.level(), Level::Normal);
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    pub fn set_limit(&self, bytes: usize) {
        self.inner.limit.store(bytes, Ordering::Relaxed);
    }

    /// The bytes leased now.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// let budget = Budget::new(100);
    /// let (_a, _b) = (budget.lease(30)?, budget.lease(40)?);
    /// assert_eq!(budget.used(), 70);
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    #[must_use]
    pub fn used(&self) -> usize {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// How much of it is used.
    ///
    /// ```
    /// # use portway::memory::{Budget, Level};
    /// let budget = Budget::new(100);
    /// let _lease = budget.lease(80)?;
    /// assert_eq!(budget.level(), Level::Tight);
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    #[must_use]
    pub fn level(&self) -> Level {
        let (used, limit) = (self.used() as u128 * 100, self.limit() as u128);
        if used >= limit * 95 {
            Level::Critical
        } else if used >= limit * 80 {
            Level::Tight
        } else {
            Level::Normal
        }
    }

    /// Leases `bytes`.
    ///
    /// # Errors
    /// [`OverBudget`] when more than 80 % would be used then.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// let budget = Budget::new(100);
    /// assert_eq!(budget.lease(80)?.bytes(), 80);
    /// assert!(budget.lease(81).is_err());
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    pub fn lease(&self, bytes: usize) -> Result<Lease, OverBudget> {
        let mut lease = self.nothing();
        lease.resize(bytes)?;
        Ok(lease)
    }

    /// A lease of nothing yet.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// let budget = Budget::new(0);
    /// assert_eq!(budget.nothing().bytes(), 0, "there is always room for nothing");
    /// ```
    #[must_use]
    pub fn nothing(&self) -> Lease {
        Lease { budget: self.clone(), bytes: 0 }
    }

    /// Takes bytes without a lease; whoever does gives them back himself.
    pub(super) fn take(&self, more: usize) -> Result<(), OverBudget> {
        let ceiling = (self.limit() as u128 * 80 / 100) as usize;
        self.inner
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|sum| *sum <= ceiling)
            })
            .map(|_| ())
            .map_err(|_| OverBudget)
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.inner.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes held by one session; given back when dropped.
///
/// ```
/// use portway::memory::Budget;
///
/// let budget = Budget::new(100);
/// let lease = budget.lease(50)?;
/// drop(lease);
/// assert_eq!(budget.used(), 0);
/// # Ok::<(), portway::memory::OverBudget>(())
/// ```
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    bytes: usize,
}

impl Lease {
    /// The bytes leased.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// assert_eq!(Budget::new(100).lease(50)?.bytes(), 50);
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much of the budget it is from is used.
    ///
    /// ```
    /// # use portway::memory::{Budget, Level};
    /// let budget = Budget::new(100);
    /// let (mine, mut other) = (budget.lease(10)?, budget.nothing());
    /// other.force(85);
    /// assert_eq!(mine.level(), Level::Critical);
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    #[must_use]
    pub fn level(&self) -> Level {
        self.budget.level()
    }

    /// Changes the lease to `bytes`. Less is always granted.
    ///
    /// # Errors
    /// [`OverBudget`] when it is more than before and more than 80 % would be used then; nothing has changed.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// let mut lease = Budget::new(100).lease(50)?;
    /// assert!(lease.resize(81).is_err());
    /// assert_eq!(lease.bytes(), 50);
    /// lease.resize(20)?;
    /// # Ok::<(), portway::memory::OverBudget>(())
    /// ```
    pub fn resize(&mut self, bytes: usize) -> Result<(), OverBudget> {
        if bytes > self.bytes {
            self.budget.take(bytes - self.bytes)?;
            self.bytes = bytes;
        } else {
            self.force(bytes);
        }
        Ok(())
    }

    /// Changes the lease to what is held already, whatever the level: for bytes that cannot be given up without
    /// losing something accepted.
    ///
    /// ```
    /// # use portway::memory::Budget;
    /// let budget = Budget::new(100);
    /// let mut lease = budget.nothing();
    /// lease.force(110);
    /// assert_eq!(budget.used(), 110);
    /// ```
    pub fn force(&mut self, bytes: usize) {
        if bytes >= self.bytes {
            self.budget.inner.used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.budget.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.force(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_new_from_eighty_percent_on() {
        let budget = Budget::new(1_000);
        let mut a = budget.lease(500).unwrap();
        assert_eq!(budget.level(), Level::Normal);
        assert_eq!(a.resize(801), Err(OverBudget));
        assert_eq!(a.bytes(), 500, "a refusal changes nothing");
        a.resize(800).unwrap();
        assert_eq!(budget.level(), Level::Tight);
        assert_eq!(budget.lease(1).err(), Some(OverBudget));
        a.force(950);
        assert_eq!(budget.level(), Level::Critical);
        a.resize(900).unwrap();
        assert_eq!((budget.level(), budget.used()), (Level::Tight, 900));
        drop(a);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_budget_of_nothing_refuses_everything_but_nothing() {
        let budget = Budget::new(0);
        assert!(budget.lease(0).is_ok());
        assert!(budget.lease(1).is_err());
        assert_eq!(budget.level(), Level::Critical);
    }

    #[test]
    fn threads_add_up() {
        // Miri interprets what others run.
        const STEPS: usize = if cfg!(miri) { 30 } else { 1_000 };
        let budget = Budget::new(1 << 30);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..STEPS {
                        let mut lease = budget.lease(n).unwrap();
                        lease.force(n * 2);
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }
}
