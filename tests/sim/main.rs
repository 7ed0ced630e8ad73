//! Protocols on a virtual clock, in an order that a seed decides: one test binary.
//!
//! A failure names its seed; `PORTWAY_SEED=n cargo test --test sim` runs that one again.
