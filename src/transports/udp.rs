//! Batched UDP for the transports over it: sockets that send and receive trains of datagrams in one system call, and
//! groups of them that share a port, one for each arbiter.
//!
//! `socket` moves bytes and knows no protocol, `group` binds and steers, `options` sets what no other crate sets.

mod group;
mod options;
mod socket;

pub use group::{Group, GroupError, MEMBERS, Member};
pub use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit};
pub use socket::{Options, TRAIN, UdpSocket, trains};
