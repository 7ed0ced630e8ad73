//! Values that belong to one thread, and the explicit way to hand them over.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A value pinned to the thread that made it: neither `Send` nor `Sync`, whatever `T` is. Debug builds check the
/// thread at each access as well, for code that gets around the compiler.
///
/// ```
/// use portway::actors::Pinned;
///
/// let mut session = Pinned::new(vec![1, 2]);
/// session.push(3);
/// let parcel = session.detach();
/// let sum = std::thread::spawn(move || parcel.bind().iter().sum::<i32>()).join();
/// assert_eq!(sum.ok(), Some(6));
/// ```
pub struct Pinned<T> {
    value: T,
    #[cfg(debug_assertions)]
    owner: std::thread::ThreadId,
    _pinned: PhantomData<*const ()>,
}

impl<T> Pinned<T> {
    /// Pins a value to the calling thread.
    pub fn new(value: T) -> Self {
        Self {
            value,
            #[cfg(debug_assertions)]
            owner: std::thread::current().id(),
            _pinned: PhantomData,
        }
    }

    /// Ends the pinning, to hand the value to another thread.
    pub fn detach(self) -> Detached<T> {
        self.check();
        Detached { value: self.value }
    }

    #[inline]
    fn check(&self) {
        #[cfg(debug_assertions)]
        debug_assert_eq!(self.owner, std::thread::current().id(), "a pinned value was touched off its thread");
    }
}

impl<T> Deref for Pinned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.check();
        &self.value
    }
}

impl<T> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.check();
        &mut self.value
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

/// A value on its way from one thread to another: `Send` if `T` is, and useless until bound.
pub struct Detached<T> {
    value: T,
}

impl<T> Detached<T> {
    /// Wraps a value that was never pinned.
    pub const fn new(value: T) -> Self {
        Self { value }
    }

    /// Pins the value to the calling thread.
    pub fn bind(self) -> Pinned<T> {
        Pinned::new(self.value)
    }
}

impl<T> fmt::Debug for Detached<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detached").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use super::*;
    use crate::actors::{Host, Protocol, Turn};

    struct Sendable;
    impl Protocol for Sendable {
        type Msg = ();
        const KIND: &'static str = "sendable";
        fn on(&mut self, (): (), _: &mut Turn<'_, ()>) -> Result<(), crate::actors::Fault> {
            Ok(())
        }
    }

    // Even for a value and a protocol that are `Send` themselves.
    assert_impl_all!(Sendable: Send, Sync);
    assert_not_impl_any!(Pinned<u8>: Send, Sync);
    assert_not_impl_any!(Host<Sendable>: Send, Sync);
    assert_not_impl_any!(Turn<'static, u8>: Send, Sync);
    assert_impl_all!(Detached<u8>: Send);
    assert_not_impl_any!(Detached<std::rc::Rc<u8>>: Send);
}
