//! The way home for what was taken on one thread and is given back on another.
//!
//! Any thread gives back, one thread takes all of it at once. After the owner has closed it, who gives something back
//! gets it again, so nothing lies here that nobody would ever take. What may be under way at once is the owner's bound.

use super::sync::{AtomicBool, Mutex, Ordering};

pub(super) struct Returns<T> {
    list: Mutex<List<T>>,
    /// Whether to look: the owner looks often, and mostly nothing has come.
    any: AtomicBool,
}

struct List<T> {
    values: Vec<T>,
    closed: bool,
}

impl<T> Returns<T> {
    pub(super) fn new() -> Self {
        Self { list: Mutex::new(List { values: Vec::new(), closed: false }), any: AtomicBool::new(false) }
    }

    /// Gives something back, or gets it again if the owner is gone.
    pub(super) fn give(&self, value: T) -> Result<(), T> {
        let mut list = self.list.lock();
        if list.closed {
            return Err(value);
        }
        list.values.push(value);
        self.any.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What has come since the last time. Misses what is given at this very moment; the next call finds it.
    pub(super) fn take(&self, mut each: impl FnMut(T)) {
        // The flag is only a hint: the list is read and written under the lock.
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.list.lock();
        self.any.store(false, Ordering::Relaxed);
        list.values.drain(..).for_each(&mut each);
    }

    /// The owner goes: what has come, and nothing comes any more.
    pub(super) fn close(&self) -> Vec<T> {
        let mut list = self.list.lock();
        list.closed = true;
        std::mem::take(&mut list.values)
    }
}
