//! TUN interfaces: IP packets in batches between the kernel and an actor, on the host or in a private network.
//!
//! `codec` is the virtio header in front of each read and write, `codec_split` cuts the kernel's super-packets,
//! `codec_merge` joins packets to such, `codec_rtnetlink` and `codec_request` are the words for the kernel and for the
//! helper; `state` decides what becomes of failed writes; `device` opens the interface, `interface` gives it addresses
//! and routes, `actor` moves the packets.
//!
//! # The private network
//! A helper process (`namespace`: the program started again, with one thread) makes a user and a network namespace,
//! in which an unprivileged user may make interfaces, and hands their descriptors over; `private` is the gateway's
//! end of it. The host's own network shows nothing of it. A socket stays in the network it was made in, whoever holds
//! it, so the kernel's TCP of that network serves the gateway's actors.

mod actor;
mod codec;
mod codec_merge;
mod codec_request;
mod codec_rtnetlink;
mod codec_split;
mod device;
mod host;
mod interface;
mod namespace;
mod private;
mod state;
#[cfg(test)]
mod tests;

pub use actor::{ToTun, TunActor, TunMsg};
pub use codec::{Gso, LONGEST_READ, Malformed, VIRTIO_HEADER, VirtioHeader};
pub use codec_merge::{Item, Joins, LONGEST_HEADERS, MOST_JOINED, Merge};
pub use codec_request::{MAX_REQUEST, Prefix, PrefixError, Request, RequestError};
pub use codec_split::Cut;
pub use device::{OffloadKnob, Offloads, Tun, TunError};
pub use host::{HostError, HostNetwork, HostSettings};
pub use interface::{Interface, configure};
pub use namespace::serve_private_network;
pub use private::{PrivateError, PrivateNetwork, PrivateSettings};
pub use state::{After, State};
