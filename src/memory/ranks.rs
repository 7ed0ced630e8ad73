//! Which locks this thread holds, so that a wait that could close a circle is refused the first time it is tried.
//!
//! While a thread holds a lock it may wait only for one of a higher rank. If all threads keep to that, no circle of
//! waiting threads can form. Taking a lock without waiting is always allowed, since it cannot be part of a circle, and
//! counts as holding it. Debug builds only; in release builds all of this compiles to nothing. Of a thread that holds
//! more than 32 locks at once the further ones are not seen.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::Location;

use super::cell::Busy;

const TRACKED: usize = 32;

type Place = &'static Location<'static>;

thread_local! {
    static HOLDS: [Cell<Option<(u16, Place)>>; TRACKED] = const { [const { Cell::new(None) }; TRACKED] };
}

/// Whether this thread may wait for a lock of this rank.
#[track_caller]
pub(super) fn may_wait(rank: u16) -> Result<(), Busy> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let held = HOLDS.with(|holds| holds.iter().filter_map(Cell::get).max_by_key(|(rank, _)| *rank));
    match held {
        Some((highest, held)) if highest >= rank => Err(Busy::WouldDeadlock { held, wanted: Location::caller() }),
        Some(_) | None => Ok(()),
    }
}

/// Notes that this thread holds a lock of this rank until the answer is dropped.
#[track_caller]
pub(super) fn hold(rank: u16) -> Held {
    let mut slot = None;
    if cfg!(debug_assertions) {
        let place = Location::caller();
        slot = HOLDS.with(|holds| {
            let (at, free) = holds.iter().enumerate().find(|(_, hold)| hold.get().is_none())?;
            free.set(Some((rank, place)));
            Some(at)
        });
    }
    Held { slot, _this_thread: PhantomData }
}

/// A lock that is held. Stays on its thread.
pub(super) struct Held {
    slot: Option<usize>,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if cfg!(debug_assertions)
            && let Some(at) = self.slot
        {
            HOLDS.with(|holds| holds.get(at).map(Cell::take));
        }
    }
}
