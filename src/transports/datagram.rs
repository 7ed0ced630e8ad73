//! UDP relay: each client's datagrams to one server of an upstream, and the answers back from the address it asked.
//!
//! `codec` cuts and joins trains of datagrams, `state` decides for one flow, `state_table` knows the flows of one arbiter,
//! `actor_door` reads the port, `actor_flow` is one flow, `server` is the handle on all of it.
//!
//! # Flows
//! A flow is a client's address and port together with the address it sent to. Each arbiter has a socket of the port, its
//! door; the kernel gives all datagrams of a flow to the same one. A flow is an actor beside its door, with a socket of
//! its own that is connected to a server: a datagram makes the flow if there is none. The flow ends when it is idle, and
//! when the network says that nobody listens at its server; the next datagram then makes another.
//!
//! # What is full
//! Datagrams are never queued beyond a mailbox: what finds no room there, or in the kernel's buffer, is dropped and counted
//! as `udp_dropped` with its reason. Of flows there are as many as [`Caps`](crate::transports::kit::admission::Caps)
//! allow: of all, of one source, and without an answer (half open); a datagram that would need one more is dropped,
//! counted as `connections_refused`. Nobody else loses anything.
//!
//! # Lengths
//! One datagram goes on as one datagram, also an empty one. Trains stay trains where the kernel cuts and joins them.

mod actor_door;
mod actor_flow;
mod codec;
mod counts;
mod server;
mod settings;
mod state;
mod state_table;

pub use codec::LONGEST;
pub use server::{StartError, UdpServer};
pub use settings::{Settings, Terms, To};
pub use state::FlowTerms;
