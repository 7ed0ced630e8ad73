//! The lock and the flag of the way home, in one place so that loom can stand in for them (`tests/loom`).

pub(super) use std::sync::atomic::{AtomicBool, Ordering};

pub(super) use parking_lot::Mutex;
