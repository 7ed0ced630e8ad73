//! Small decisions that several transports share. Pure: no socket, no clock, no runtime.

pub mod admission;
pub mod balance;
mod balance_words;
pub mod limiter;
pub mod packets;
pub mod routes;
