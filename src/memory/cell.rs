//! A cell that answers instead of panicking, why it may refuse, and how long a thread may wait for one.
//!
//! Associated functions, not methods: the lock types have methods of nearly the same names, and a call must not mean
//! the one or the other depending on what is in scope.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Why a value could not be had now. Small and `Copy`: a refusal allocates nothing.
///
/// ```
/// use portway::memory::{Busy, Shared, SingleThreaded};
///
/// let shared: Shared<u8, SingleThreaded> = Shared::new(1);
/// let reading = shared.read()?;
/// assert_eq!(shared.write().err(), Some(Busy::Borrowed));
/// # Ok::<(), Busy>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Busy {
    /// This thread, the only one there is, holds it.
    Borrowed,
    /// It is held: by another thread, or by this one. A lock does not know by whom.
    Contended,
    /// It was held for as long as this thread may wait, by another or by this one itself.
    TimedOut,
    /// Waiting could be for ever: this thread holds a lock of the same rank or of a higher one. Debug builds only.
    WouldDeadlock {
        /// Where it took that lock.
        held: &'static Location<'static>,
        /// Where it wanted to wait.
        wanted: &'static Location<'static>,
    },
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Borrowed => f.write_str("this thread holds the value"),
            Self::Contended => f.write_str("another thread holds the value, or this one does"),
            Self::TimedOut => f.write_str("the value was held for as long as this thread may wait"),
            Self::WouldDeadlock { held, wanted } => {
                write!(f, "{wanted} may not wait for this lock: the thread holds one of no lower rank since {held}")
            }
        }
    }
}

impl Error for Busy {}

/// A cell that many may read or one may write.
///
/// ```
/// use std::cell::RefCell;
/// use portway::memory::{Busy, CellLike};
///
/// let cell = RefCell::new(1);
/// *RefCell::write_now(&cell)? += 1;
/// assert_eq!(*RefCell::read_now(&cell)?, 2);
/// # Ok::<(), Busy>(())
/// ```
pub trait CellLike<T> {
    /// Holds the value for reading until dropped.
    type Read<'a>: Deref<Target = T>
    where
        Self: 'a,
        T: 'a;
    /// Holds the value for writing until dropped.
    type Write<'a>: DerefMut<Target = T>
    where
        Self: 'a,
        T: 'a;

    /// A cell with this value.
    ///
    /// ```
    /// # use portway::memory::CellLike;
    /// let cell: parking_lot::RwLock<u8> = CellLike::cell(1);
    /// assert_eq!(*cell.read(), 1);
    /// ```
    fn cell(value: T) -> Self;

    /// Reads, or answers at once.
    ///
    /// # Errors
    /// Why it cannot be had now.
    ///
    /// ```
    /// # use portway::memory::{Busy, CellLike};
    /// let cell = std::cell::RefCell::new(1);
    /// let _writing = cell.borrow_mut();
    /// assert_eq!(CellLike::read_now(&cell).err(), Some(Busy::Borrowed));
    /// ```
    fn read_now(cell: &Self) -> Result<Self::Read<'_>, Busy>;

    /// Writes, or answers at once.
    ///
    /// # Errors
    /// Why it cannot be had now.
    ///
    /// ```
    /// # use portway::memory::{Busy, CellLike};
    /// let cell = parking_lot::RwLock::new(1);
    /// let _reading = cell.read();
    /// assert_eq!(CellLike::write_now(&cell).err(), Some(Busy::Contended));
    /// ```
    fn write_now(cell: &Self) -> Result<Self::Write<'_>, Busy>;

    /// Reads, after waiting for this long at most. A cell of one thread does not wait: nobody but the waiting thread
    /// could give it back.
    ///
    /// # Errors
    /// Why it could not be had in time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use portway::memory::{Busy, CellLike};
    /// let cell = parking_lot::RwLock::new(1);
    /// assert_eq!(*CellLike::read_within(&cell, Duration::from_micros(50))?, 1);
    /// # Ok::<(), Busy>(())
    /// ```
    fn read_within(cell: &Self, _time: Duration) -> Result<Self::Read<'_>, Busy> {
        Self::read_now(cell)
    }

    /// Writes, after waiting for this long at most, else as [`read_within`](Self::read_within).
    ///
    /// # Errors
    /// Why it could not be had in time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use portway::memory::{Busy, CellLike};
    /// let cell = parking_lot::RwLock::new(1);
    /// let _reading = cell.read();
    /// assert_eq!(CellLike::write_within(&cell, Duration::from_micros(50)).err(), Some(Busy::TimedOut));
    /// ```
    fn write_within(cell: &Self, _time: Duration) -> Result<Self::Write<'_>, Busy> {
        Self::write_now(cell)
    }
}

impl<T> CellLike<T> for RefCell<T> {
    type Read<'a>
        = Ref<'a, T>
    where
        T: 'a;
    type Write<'a>
        = RefMut<'a, T>
    where
        T: 'a;

    fn cell(value: T) -> Self {
        Self::new(value)
    }

    fn read_now(cell: &Self) -> Result<Ref<'_, T>, Busy> {
        cell.try_borrow().map_err(|_| Busy::Borrowed)
    }

    fn write_now(cell: &Self) -> Result<RefMut<'_, T>, Busy> {
        cell.try_borrow_mut().map_err(|_| Busy::Borrowed)
    }
}

impl<T> CellLike<T> for RwLock<T> {
    type Read<'a>
        = RwLockReadGuard<'a, T>
    where
        T: 'a;
    type Write<'a>
        = RwLockWriteGuard<'a, T>
    where
        T: 'a;

    fn cell(value: T) -> Self {
        Self::new(value)
    }

    fn read_now(cell: &Self) -> Result<RwLockReadGuard<'_, T>, Busy> {
        cell.try_read().ok_or(Busy::Contended)
    }

    fn write_now(cell: &Self) -> Result<RwLockWriteGuard<'_, T>, Busy> {
        cell.try_write().ok_or(Busy::Contended)
    }

    fn read_within(cell: &Self, time: Duration) -> Result<RwLockReadGuard<'_, T>, Busy> {
        cell.try_read_for(time).ok_or(Busy::TimedOut)
    }

    fn write_within(cell: &Self, time: Duration) -> Result<RwLockWriteGuard<'_, T>, Busy> {
        cell.try_write_for(time).ok_or(Busy::TimedOut)
    }
}

thread_local! {
    static LONGEST_WAIT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// The longest that `read_within` and `write_within` wait on this thread from now on, whatever they are asked for;
/// `None`: as long as they are asked. A thread that runs many actors is told so by its arbiter: 100 µs.
///
/// ```
/// use std::time::Duration;
///
/// portway::memory::limit_waits(Some(Duration::from_micros(100)));
/// # portway::memory::limit_waits(None);
/// ```
pub fn limit_waits(longest: Option<Duration>) {
    LONGEST_WAIT.set(longest);
}

pub(super) fn allowed(time: Duration) -> Duration {
    LONGEST_WAIT.get().map_or(time, |longest| time.min(longest))
}
