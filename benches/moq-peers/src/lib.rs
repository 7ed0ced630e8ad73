//! The client that loads relays of Media over QUIC: draft 18 over quinn, no more of it than one track of one publisher
//! takes, so that little of a CPU goes to the load. It shares no code with any of the relays.

pub mod connection;
#[path = "../../peers/src/lib.rs"]
pub mod kit;
pub mod wire;
