//! Portway: actors pinned to threads, and the gateway made of them.
//!
//! Each connection, tunnel session and relay stream is an actor created on one arbiter (a thread with its own event
//! loop) and pinned to it for life. For everything outside the actor, its mailbox is the only way in.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::todo)
)]

#[cfg(panic = "abort")]
compile_error!("portway contains panics to one actor; that needs `panic = \"unwind\"` in the build profile");

pub mod actors;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod memory;
pub mod transports;
