//! The lock of the mailbox lane, in one place so that loom can stand in for it (`tests/loom`).

pub(crate) use parking_lot::Mutex;
