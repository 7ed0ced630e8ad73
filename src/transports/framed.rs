//! Length-prefixed messages over TCP.

pub mod codec;
pub mod state;
