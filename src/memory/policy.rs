//! For one thread or for many: the choice that [`Managed`](super::Managed) and [`Shared`](super::Shared) are made with.
//!
//! A policy names a pointer that counts its holders, a cell, and a number that counts. Whether what is built from them
//! may cross threads follows by itself: the compiler sees through the policy.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cell::CellLike;

/// What sharing is made of. Functions take the policy as a parameter and work for one thread and for many.
///
/// ```
/// use portway::memory::{AtomicPolicy, Managed, SingleThreaded, ThreadSafe};
///
/// fn doubled<P: AtomicPolicy>(values: Managed<Vec<u32>, P>) -> Managed<Vec<u32>, P> {
///     values.update(|values| values.iter_mut().for_each(|value| *value *= 2))
/// }
/// assert_eq!(*doubled::<SingleThreaded>(Managed::new(vec![1, 2])), [2, 4]);
/// assert_eq!(*doubled::<ThreadSafe>(Managed::new(vec![1, 2])), [2, 4]);
/// ```
pub trait AtomicPolicy: Sized + 'static {
    /// A pointer that counts its holders.
    type Ptr<T>: Clone + Deref<Target = T>;
    /// A cell that many may read or one may write.
    type Cell<T>: CellLike<T>;
    /// A number that only grows.
    type Count: Count;

    /// A pointer with one holder.
    ///
    /// ```
    /// # use portway::memory::{AtomicPolicy, ThreadSafe};
    /// let pointer = ThreadSafe::ptr(1);
    /// assert_eq!(*pointer, 1);
    /// ```
    fn ptr<T>(value: T) -> Self::Ptr<T>;
    /// The value, if it has one holder.
    ///
    /// ```
    /// # use portway::memory::{AtomicPolicy, ThreadSafe};
    /// let mut pointer = ThreadSafe::ptr(1);
    /// assert!(ThreadSafe::get_mut(&mut pointer).is_some());
    /// let _another = pointer.clone();
    /// assert!(ThreadSafe::get_mut(&mut pointer).is_none());
    /// ```
    fn get_mut<T>(ptr: &mut Self::Ptr<T>) -> Option<&mut T>;
    /// The value, cloned first if it has other holders.
    ///
    /// ```
    /// # use portway::memory::{AtomicPolicy, SingleThreaded};
    /// let mut pointer = SingleThreaded::ptr(1);
    /// let before = pointer.clone();
    /// *SingleThreaded::make_mut(&mut pointer) = 2;
    /// assert_eq!((*before, *pointer), (1, 2));
    /// ```
    fn make_mut<T: Clone>(ptr: &mut Self::Ptr<T>) -> &mut T;
    /// The value, or the pointer again if there are other holders.
    ///
    /// # Errors
    /// The pointer.
    ///
    /// ```
    /// # use portway::memory::{AtomicPolicy, SingleThreaded};
    /// let pointer = SingleThreaded::ptr(1);
    /// let another = pointer.clone();
    /// let pointer = SingleThreaded::try_unwrap(pointer).unwrap_err();
    /// drop(another);
    /// assert_eq!(SingleThreaded::try_unwrap(pointer), Ok(1));
    /// ```
    fn try_unwrap<T>(ptr: Self::Ptr<T>) -> Result<T, Self::Ptr<T>>;
    /// Gives a pointer up; of all holders the last to do so gets the value.
    ///
    /// ```
    /// # use portway::memory::{AtomicPolicy, ThreadSafe};
    /// let pointer = ThreadSafe::ptr(1);
    /// let another = pointer.clone();
    /// assert_eq!(ThreadSafe::into_inner(pointer), None);
    /// assert_eq!(ThreadSafe::into_inner(another), Some(1));
    /// ```
    fn into_inner<T>(ptr: Self::Ptr<T>) -> Option<T>;
    /// Whether both lead to one value.
    ///
    /// ```
    /// # use portway::memory::{AtomicPolicy, ThreadSafe};
    /// let pointer = ThreadSafe::ptr(1);
    /// assert!(ThreadSafe::same(&pointer, &pointer.clone()));
    /// assert!(!ThreadSafe::same(&pointer, &ThreadSafe::ptr(1)));
    /// ```
    fn same<T>(a: &Self::Ptr<T>, b: &Self::Ptr<T>) -> bool;
}

/// One thread: `Rc`, `RefCell` and `Cell`. The compiler refuses to carry it to another thread.
///
/// ```
/// use portway::memory::{Managed, SingleThreaded};
///
/// let here: Managed<u8, SingleThreaded> = Managed::new(1);
/// assert_eq!(*here, 1);
/// ```
#[derive(Debug)]
pub enum SingleThreaded {}

/// Any thread: `triomphe::Arc`, parking_lot's `RwLock` and an atomic.
///
/// ```
/// use portway::memory::{Managed, ThreadSafe};
///
/// let anywhere: Managed<u8, ThreadSafe> = Managed::new(1);
/// let there = anywhere.clone();
/// assert_eq!(std::thread::spawn(move || *there).join().unwrap(), 1);
/// ```
#[derive(Debug)]
pub enum ThreadSafe {}

impl AtomicPolicy for SingleThreaded {
    type Ptr<T> = Rc<T>;
    type Cell<T> = RefCell<T>;
    type Count = Cell<u64>;

    fn ptr<T>(value: T) -> Rc<T> {
        Rc::new(value)
    }

    fn get_mut<T>(ptr: &mut Rc<T>) -> Option<&mut T> {
        Rc::get_mut(ptr)
    }

    fn make_mut<T: Clone>(ptr: &mut Rc<T>) -> &mut T {
        Rc::make_mut(ptr)
    }

    fn try_unwrap<T>(ptr: Rc<T>) -> Result<T, Rc<T>> {
        Rc::try_unwrap(ptr)
    }

    fn into_inner<T>(ptr: Rc<T>) -> Option<T> {
        Rc::into_inner(ptr)
    }

    fn same<T>(a: &Rc<T>, b: &Rc<T>) -> bool {
        Rc::ptr_eq(a, b)
    }
}

impl AtomicPolicy for ThreadSafe {
    type Ptr<T> = triomphe::Arc<T>;
    type Cell<T> = parking_lot::RwLock<T>;
    type Count = AtomicU64;

    fn ptr<T>(value: T) -> triomphe::Arc<T> {
        triomphe::Arc::new(value)
    }

    fn get_mut<T>(ptr: &mut triomphe::Arc<T>) -> Option<&mut T> {
        triomphe::Arc::get_mut(ptr)
    }

    fn make_mut<T: Clone>(ptr: &mut triomphe::Arc<T>) -> &mut T {
        triomphe::Arc::make_mut(ptr)
    }

    fn try_unwrap<T>(ptr: triomphe::Arc<T>) -> Result<T, triomphe::Arc<T>> {
        triomphe::Arc::try_unwrap(ptr)
    }

    fn into_inner<T>(ptr: triomphe::Arc<T>) -> Option<T> {
        triomphe::Arc::into_unique(ptr).map(triomphe::UniqueArc::into_inner)
    }

    fn same<T>(a: &triomphe::Arc<T>, b: &triomphe::Arc<T>) -> bool {
        triomphe::Arc::ptr_eq(a, b)
    }
}

/// A number that only grows.
///
/// ```
/// use portway::memory::Count;
///
/// let count = std::cell::Cell::new(0);
/// count.add_one();
/// assert_eq!(Count::get(&count), 1);
/// ```
pub trait Count: Default {
    /// Adds one.
    ///
    /// ```
    /// # use portway::memory::Count;
    /// let count = std::sync::atomic::AtomicU64::new(41);
    /// count.add_one();
    /// assert_eq!(count.into_inner(), 42);
    /// ```
    fn add_one(&self);
    /// The number now.
    ///
    /// ```
    /// # use portway::memory::Count;
    /// assert_eq!(Count::get(&std::cell::Cell::new(7)), 7);
    /// ```
    fn get(&self) -> u64;
}

impl Count for Cell<u64> {
    fn add_one(&self) {
        self.set(self.get().wrapping_add(1));
    }

    fn get(&self) -> u64 {
        Self::get(self)
    }
}

impl Count for AtomicU64 {
    fn add_one(&self) {
        self.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}
