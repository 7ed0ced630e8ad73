//! The actor library: arbiters, mailboxes and the hosts that run protocols on them.

pub mod clock;
pub mod sim_link;
mod sim_link_datagram;
mod sim_link_stream;
pub mod sim_random;
