//! TCP over IP packets, without a kernel: connections out of tunnels served by the gateway's own actors, without root.
//!
//! `actor` runs smoltcp on the batches that come in, `flow` is one connection, `phy` is what that takes for a network card, `state_flows` decides who
//! may have a connection, `bells` tell which connections have something to do, `stream` is a connection as a byte stream.
//! `datagrams` takes UDP out before any inside, also a kernel's; each `datagram_flow` joins two endpoints.
//!
//! # What it is not
//! The fallback where neither a TUN nor a private network can be had. smoltcp sends slowly over a path that loses
//! packets: no selective acknowledgement, and a second before it sends anything again. Fragments are not put together.

mod actor;
mod bells;
mod codec_datagram;
mod datagram_flow;
mod datagrams;
mod flow;
mod phy;
mod serve;
pub mod state_flows;
mod stream;

pub use actor::{MakeServe, NetMsg, Serve, Settings, Stack, Uplink, Visitor};
pub use datagrams::{Beside, DatagramSettings, ToDatagrams};
#[cfg(feature = "http")]
pub use serve::Sited;
pub use serve::{Forwarded, Framed, Relayed, Roomed, Via, connect};
pub use state_flows::{FlowLimits, Refusal};
pub use stream::{BUFFER, Far, NetStream};
