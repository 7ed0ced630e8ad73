//! Memory: who may hold how much.
//!
//! Uses nothing else of this crate. Today it is the budget that buffers and credits lease from.
#![forbid(unsafe_code)]

mod budget;

pub use budget::{Budget, Lease, Level, OverBudget};
