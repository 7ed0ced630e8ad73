//! A value whose memory is overwritten with zeroes when it is dropped: sessions with their keys live in it.
//!
//! boringtun wipes its X25519 secrets but neither preshared keys nor chaining keys nor session keys, all of which lie
//! inline in `Tunn`. The value is put on the heap, where nothing moves it, dropped in place and then overwritten. What
//! cannot be reached this way is listed in docs/wireguard.md.
#![allow(unsafe_code, reason = "dropping a value in place and then writing over it needs raw pointers")]

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// A boxed value, wiped after its destructor has run.
pub(super) struct Wiped<T> {
    value: ManuallyDrop<Box<T>>,
}

impl<T> Wiped<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(Box::new(value)) }
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> fmt::Debug for Wiped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: `value` is not used after this: the struct is being dropped, and nothing else takes it out.
        let raw = Box::into_raw(unsafe { ManuallyDrop::take(&mut self.value) });
        // SAFETY: `raw` comes from a `Box<T>`, so it points to one `T` in an allocation of `T`'s layout. `MaybeUninit<T>`
        // has the same layout, so the allocation may be owned, and freed, as a box of it; it drops no `T` by itself.
        let memory = unsafe { Box::from_raw(raw.cast::<MaybeUninit<T>>()) };
        // SAFETY: the value is still in it.
        drop(unsafe { drop_and_wipe(memory) });
    }
}

/// Drops the value and answers its memory, which is all zeroes.
///
/// # Safety
/// The memory must hold a value.
unsafe fn drop_and_wipe<T>(memory: Box<MaybeUninit<T>>) -> Box<MaybeUninit<T>> {
    /// Wipes also when the destructor panics.
    struct Wipe<T>(Option<Box<MaybeUninit<T>>>);

    impl<T> Wipe<T> {
        fn now(&mut self) -> Option<Box<MaybeUninit<T>>> {
            let mut memory = self.0.take()?;
            let start = (&raw mut *memory).cast::<MaybeUninit<u8>>();
            // SAFETY: the box owns `size_of::<T>()` bytes at `start`, nobody else refers to them while `memory` is
            // borrowed mutably here, and bytes that may be uninitialised are what `MaybeUninit<u8>` stands for.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start, size_of::<T>()) };
            bytes.zeroize();
            Some(memory)
        }
    }

    impl<T> Drop for Wipe<T> {
        fn drop(&mut self) {
            drop(self.now());
        }
    }

    let mut wipe = Wipe(Some(memory));
    if let Some(memory) = &mut wipe.0 {
        // SAFETY: the caller says that a value is there; it is dropped once, here, and from here on the memory is only
        // ever treated as bytes.
        unsafe { memory.assume_init_drop() };
    }
    wipe.now().unwrap_or_else(Box::new_uninit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boringtun::noise::Tunn;
    use boringtun::x25519::{PublicKey, StaticSecret};

    fn bytes_of<T>(memory: &MaybeUninit<T>) -> &[u8] {
        // SAFETY: called in these tests only with memory of which every byte has been written: a type without padding,
        // or memory that was wiped.
        unsafe { std::slice::from_raw_parts((&raw const *memory).cast::<u8>(), size_of::<T>()) }
    }

    /// No padding, and a destructor, so that it is seen to run.
    struct Marked<'a>([usize; 8], &'a std::cell::Cell<u32>);

    impl Drop for Marked<'_> {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
        }
    }

    #[test]
    fn the_memory_is_zero_after_the_destructor_ran_once() {
        let drops = std::cell::Cell::new(0);
        let memory = Box::new(MaybeUninit::new(Marked([usize::MAX; 8], &drops)));
        // SAFETY: a value is in it.
        assert_eq!(unsafe { memory.assume_init_ref() }.0, [usize::MAX; 8]);
        assert!(bytes_of(&memory).iter().filter(|byte| **byte == 0xff).count() >= 64, "it was there");
        // SAFETY: a value is in it.
        let memory = unsafe { drop_and_wipe(memory) };
        assert_eq!(drops.get(), 1);
        assert!(bytes_of(&memory).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_session_leaves_no_key_behind() {
        let secret = StaticSecret::from([0x11; 32]);
        let peer = PublicKey::from(&StaticSecret::from([0x22; 32]));
        let tunn = Tunn::new(secret, peer, Some([0xa5; 32]), None, 1, None);
        // SAFETY: a value is in it.
        let memory = unsafe { drop_and_wipe(Box::new(MaybeUninit::new(tunn))) };
        assert_eq!(bytes_of(&memory).len(), size_of::<Tunn>());
        assert!(bytes_of(&memory).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_destructor_that_panics_is_wiped_as_well() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("told to");
            }
        }
        let drops = std::cell::Cell::new(0);
        let value = Wiped::new((Marked([7; 8], &drops), Panics));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(value)));
        assert!(result.is_err());
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn it_is_used_like_the_value() {
        let mut value = Wiped::new([1, 2]);
        value[0] = 3;
        assert_eq!(*value, [3, 2]);
        assert_eq!(format!("{value:?}"), "***");
    }
}
