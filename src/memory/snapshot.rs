//! A value that is published rarely and read by many threads all the time.
//!
//! A publisher never waits for readers, and readers never for it. Each reader keeps a [`View`]: reading through it
//! costs one look whether something newer was published. A view holds the version it saw last, so one version per idle
//! reader may stay in memory beside the newest; whoever holds a version last drops it, which may be an arbiter.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache, Guard};

/// How often [`Snapshot::update`] tries.
const TRIES: usize = 100;

/// An update was given up: each time it had made a version, another had been published meanwhile. Nothing of it was
/// published.
///
/// ```
/// use portway::memory::{Overtaken, Snapshot};
///
/// let snapshot = Snapshot::new(1);
/// let overtaken = snapshot.update(|n| {
///     // It is overtaken by itself.
///     snapshot.publish(7);
///     n + 1
/// });
/// assert_eq!((overtaken, *snapshot.read()), (Err(Overtaken), 7));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overtaken;

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "another version was published meanwhile, {TRIES} times in a row")
    }
}

impl Error for Overtaken {}

/// The newest version of a value. Clones publish for the same readers.
///
/// ```
/// use portway::memory::Snapshot;
///
/// let routes = Snapshot::new(vec!["/a"]);
/// let mut view = routes.view();
/// assert_eq!(*view.get(), ["/a"]);
/// routes.publish(vec!["/a", "/b"]);
/// assert_eq!(*view.get(), ["/a", "/b"]);
/// ```
pub struct Snapshot<T>(Arc<ArcSwap<T>>);

impl<T> Snapshot<T> {
    /// The first version.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// assert_eq!(*Snapshot::new(1).read(), 1);
    /// ```
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// Makes `value` the newest version: a value, or one that is shared already.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// let snapshot = Snapshot::new(1);
    /// snapshot.publish(2);
    /// assert_eq!(*snapshot.read(), 2);
    /// ```
    pub fn publish(&self, value: impl Into<Arc<T>>) {
        self.0.store(value.into());
    }

    /// Makes a new version from the newest. If another is published meanwhile, `next` is called again with that, up to
    /// 100 times in all; if it panics, nothing is published.
    ///
    /// # Errors
    /// [`Overtaken`] when each of these versions came too late, as that of a `next` which publishes here itself always
    /// does. Publishers that do not would all have to be faster than it, each time.
    ///
    /// ```
    /// # use portway::memory::{Overtaken, Snapshot};
    /// let snapshot = Snapshot::new(vec![1]);
    /// snapshot.update(|list| list.iter().copied().chain([2]).collect())?;
    /// assert_eq!(*snapshot.read(), [1, 2]);
    /// # Ok::<(), Overtaken>(())
    /// ```
    pub fn update(&self, mut next: impl FnMut(&T) -> T) -> Result<(), Overtaken> {
        let mut before = self.0.load();
        for _ in 0..TRIES {
            let found = self.0.compare_and_swap(&*before, Arc::new(next(&before)));
            if Arc::ptr_eq(&before, &found) {
                return Ok(());
            }
            before = found;
        }
        Err(Overtaken)
    }

    /// The newest version, for who reads now and then. Costs about as much as a lock that is free, never waits, and
    /// should be dropped soon: some few at once are cheap.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// let snapshot = Snapshot::new(1);
    /// let before = snapshot.read();
    /// snapshot.publish(2);
    /// assert_eq!((*before, *snapshot.read()), (1, 2));
    /// ```
    #[must_use]
    pub fn read(&self) -> Version<T> {
        Version(self.0.load())
    }

    /// The newest version, to be kept for as long as one likes. Writes to the count of its holders, which all readers
    /// share.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// let snapshot = Snapshot::new(1);
    /// assert_eq!(*snapshot.keep(), 1);
    /// ```
    #[must_use]
    pub fn keep(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// A view of its own for a reader, such as an actor or an arbiter, who reads often.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// let snapshot = Snapshot::new(1);
    /// let mut view = snapshot.view();
    /// assert_eq!(std::thread::spawn(move || *view.get()).join().unwrap(), 1);
    /// ```
    #[must_use]
    pub fn view(&self) -> View<T> {
        View(Cache::new(self.0.clone()))
    }
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> From<Arc<T>> for Snapshot<T> {
    /// A first version that is shared already.
    fn from(value: Arc<T>) -> Self {
        Self(Arc::new(ArcSwap::new(value)))
    }
}

impl<T: Default> Default for Snapshot<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

/// One version of a [`Snapshot`]'s value.
///
/// ```
/// # use portway::memory::{Snapshot, Version};
/// let version: Version<u8> = Snapshot::new(1).read();
/// assert_eq!(*version, 1);
/// ```
pub struct Version<T>(Guard<Arc<T>>);

impl<T> Deref for Version<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Version<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// What one reader sees of a [`Snapshot`].
///
/// ```
/// # use portway::memory::{Snapshot, View};
/// let snapshot = Snapshot::new(1);
/// let mut view: View<u8> = snapshot.view();
/// snapshot.publish(2);
/// assert_eq!(*view.get(), 2);
/// ```
pub struct View<T>(Cache<Arc<ArcSwap<T>>, Arc<T>>);

impl<T> View<T> {
    /// The newest version.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// assert_eq!(*Snapshot::new(1).view().get(), 1);
    /// ```
    #[inline]
    pub fn get(&mut self) -> &T {
        self.0.load()
    }

    /// The newest version, for who wants to keep it: then a clone of what this answers.
    ///
    /// ```
    /// # use portway::memory::Snapshot;
    /// # use std::sync::Arc;
    /// let snapshot = Snapshot::new(1);
    /// let mut view = snapshot.view();
    /// let kept = Arc::clone(view.shared());
    /// snapshot.publish(2);
    /// assert!(!Arc::ptr_eq(&kept, view.shared()));
    /// ```
    #[inline]
    pub fn shared(&mut self) -> &Arc<T> {
        self.0.load()
    }
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for View<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use static_assertions::assert_impl_all;

    use super::*;

    assert_impl_all!(Snapshot<Vec<u8>>: Send, Sync);
    assert_impl_all!(View<Vec<u8>>: Send);

    #[test]
    fn an_update_that_panics_publishes_nothing() {
        let snapshot = Snapshot::new(1);
        let mut view = snapshot.view();
        assert!(catch_unwind(AssertUnwindSafe(|| { snapshot.update(|_| panic!("told to")) })).is_err());
        assert_eq!((*view.get(), *snapshot.read()), (1, 1));
        snapshot.update(|n| n + 1).unwrap();
        assert_eq!(*view.get(), 2);
    }

    #[test]
    fn an_update_that_publishes_itself_ends() {
        let snapshot = Snapshot::new(0);
        let mut calls = 0;
        let itself = snapshot.update(|n| {
            calls += 1;
            snapshot.publish(n + 10);
            -1
        });
        assert_eq!((itself, calls, *snapshot.read()), (Err(Overtaken), 100, 1_000), "it publishes nothing of its own");

        let within = snapshot.update(|n| {
            snapshot.update(|n| n + 1).unwrap();
            n + 1
        });
        assert_eq!((within, *snapshot.read()), (Err(Overtaken), 1_100));

        let another = Snapshot::new(0);
        let other = snapshot.update(|n| {
            another.publish(*n);
            n + 1
        });
        assert_eq!((other, *another.read(), *snapshot.read()), (Ok(()), 1_100, 1_101));

        let mut calls = 0;
        let overtaken_once = snapshot.update(|n| {
            calls += 1;
            if calls == 1 {
                std::thread::scope(|scope| scope.spawn(|| snapshot.publish(5)).join()).unwrap();
            }
            n + 1
        });
        assert_eq!((overtaken_once, calls, *snapshot.read()), (Ok(()), 2, 6), "made again from the newest");
    }

    #[test]
    fn no_update_is_lost_and_views_only_go_forward() {
        const EACH: u32 = if cfg!(miri) { 10 } else { 500 };
        let snapshot = Snapshot::new(0_u32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..EACH).for_each(|_| snapshot.update(|n| n + 1).unwrap()));
            }
            let mut view = snapshot.view();
            let mut last = 0;
            while last < 4 * EACH {
                let now = *view.get();
                assert!(now >= last);
                last = now;
                std::thread::yield_now();
            }
        });
        assert_eq!(*snapshot.read(), 4 * EACH);
    }

    #[test]
    fn a_view_between_versions_writes_to_nothing_that_others_read() {
        let snapshot = Snapshot::new(7_u32);
        let kept = snapshot.keep();
        let mut views: Vec<_> = (0..4).map(|_| snapshot.view()).collect();
        // While a version is being made, which would hold a lock if there was one, others read.
        snapshot
            .update(|n| {
                let holders = Arc::strong_count(&kept);
                for _ in 0..if cfg!(miri) { 5 } else { 100 } {
                    for view in &mut views {
                        let seen = view.get();
                        assert_eq!((*seen, Arc::strong_count(&kept)), (7, holders));
                    }
                }
                n + 1
            })
            .unwrap();
        assert!(views.iter_mut().all(|view| *view.get() == 8));
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn a_version_lives_until_nobody_sees_it() {
        let first = Arc::new(());
        let snapshot = Snapshot::new(first.clone());
        let mut view = snapshot.view();
        let late = view.clone();
        snapshot.publish(Arc::new(()));
        assert_eq!(Arc::strong_count(&first), 2);
        view.get();
        drop(late);
        assert_eq!(Arc::strong_count(&first), 1);
        drop(snapshot);
        assert_eq!(Arc::strong_count(view.get()), 1, "a view outlives its snapshot");
    }
}
