//! The codec of `src/transports/moq` held against moq-transport 0.17, which speaks draft 18.
//!
//! `scripts/moq-oracle` runs it. `UPDATE=1` writes what moq-transport says into tests/data/moq, where the unit tests of
//! the codec read it without moq-transport.

#![allow(dead_code, reason = "the codec is compiled for its tests alone")]

mod moq;
