//! WireGuard: an actor for each peer, on boringtun's cryptography and nothing else of it.
//!
//! `codec_message` is the outside of a datagram, `codec_inner` the header of a packet within, `codec_keys` keys as text;
//! the `state_*` files decide: routes, indices, limits, replays, trains. `engine` is one end of a session, `engine_boring`
//! implements it, `engine_guard` judges who may begin one. `actor_device` reads the socket and starts an `actor_session`
//! for each active peer; `actor_sender` writes. `router` leads packets from inside to sessions; `interface` starts it all.
//!
//! # Order and loss
//! Packets of one peer stay in order: one session, one mailbox each way. A full mailbox or buffer drops what comes next
//! and counts it under `wireguard_dropped` with its reason; nothing is sent twice.

mod actor_device;
mod actor_device_peers;
mod actor_sender;
mod actor_session;
pub mod codec_conf;
pub mod codec_inner;
pub mod codec_keys;
pub mod codec_message;
pub mod codec_uapi;
mod counts;
pub mod engine;
mod engine_boring;
mod engine_guard;
#[cfg(test)]
mod engine_tests;
mod engine_wipe;
mod inside;
mod interface;
mod peers;
mod router;
mod settings;
pub mod state_index;
pub mod state_limits;
pub mod state_replay;
pub mod state_train;
mod state_uapi;
mod table;
pub mod uapi;
mod uapi_device;

pub use crate::transports::kit::routes::{Network, Routes};
pub use actor_device::{DeviceMsg, PeerView, Report};
pub use codec_keys::{PublicKey, SecretKey};
pub use counts::DROPPED;
pub use engine::{Authentic, Engine, EngineError, Opened, Rules, Sealed, Ticked};
pub use engine_boring::{Boring, Material, no_limit, public_key};
pub use engine_guard::{Guard, Verdict};
pub use inside::{IntoStack, start_netstack, start_netstack_beside};
pub use interface::{Interface, StartError, bind};
pub use peers::MOST_PEERS;
pub use router::Router;
pub use settings::{DEFAULT_MTU, PeerSettings, PeerToPeer, Settings, Threading};
pub use state_limits::PeerLimit;
pub use uapi_device::Live;
