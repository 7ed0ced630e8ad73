//! Memory: how values are shared, who may hold how much, and where buffers come from.
//!
//! | you have | take |
//! |---|---|
//! | a value that is handed on and sometimes edited | [`Managed`]: a clone is a snapshot, edited in place by its only holder |
//! | one value that several must see and change | [`Shared`]: a lock that answers [`Busy`] instead of blocking or panicking |
//! | a value that is rarely replaced and read all the time | [`Snapshot`], and a [`View`] for each reader |
//! | values found by an id that may be out of date | [`Table`]: a stale [`Key`] finds nothing in its own table; another table may find a value that is not meant |
//! | packet and stream buffers | [`Pool`]: equal-sized, leased, empty (length 0, not zeros), they come home by themselves |
//! | a key, a token, a password | [`Secret`]: wiped, never printed, compared in constant time |
//! | a limit on what all of them hold together | [`Budget`]: grants up to 80 % of its limit, the rest is for what cannot be refused |
//!
//! `Managed` and `Shared` take a policy, [`SingleThreaded`] or [`ThreadSafe`]; code that is generic over
//! [`AtomicPolicy`] works for both. Most of what looks like a use for `Shared` is better served by an actor that owns
//! the value.
//!
//! # What is charged
//! A [`Pool`] with a budget charges each buffer's size from when it is made until its memory is freed, even when that is
//! after the end of the pool. A [`Buf`] is a `Vec` and grows when it is told to: what it has grown is charged only once its
//! holder leases [`Buf::own_bytes`]. [`Budget::lease`] and [`Lease::resize`] are refused from 80 % of the limit on;
//! [`Lease::force`] never is, and counts what is held already.
//!
//! # Never a panic
//! Nothing here panics whatever it is given, and a refusal ([`Busy`], [`Full`], [`Exhausted`], [`OverBudget`]) allocates
//! nothing. A closure or a `Clone` of the caller's that panics leaves other holders' values as they were.
//!
//! Uses nothing else of this crate, and no `unsafe`.
#![forbid(unsafe_code)]

mod budget;
mod cell;
#[cfg(feature = "deadlock")]
mod deadlock;
mod managed;
mod policy;
mod pool;
mod pool_buf;
mod ranks;
mod returns;
mod secret;
mod shared;
mod snapshot;
mod sync;
mod table;

pub use budget::{Budget, Lease, Level, OverBudget};
pub use cell::{Busy, CellLike, limit_waits};
#[cfg(feature = "deadlock")]
pub use deadlock::{DeadlockWatch, Waiting};
pub use managed::Managed;
pub use policy::{AtomicPolicy, Count, SingleThreaded, ThreadSafe};
pub use pool::{Exhausted, Pool, PoolGauge, PoolStats};
pub use pool_buf::Buf;
pub use secret::Secret;
pub use shared::{Contention, Reading, Shared, Writing};
pub use snapshot::{Overtaken, Snapshot, Version, View};
pub use table::{Full, Key, Table};
