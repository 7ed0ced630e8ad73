//! WireGuard: an actor for each peer, on boringtun's cryptography and nothing else of it.

pub mod codec_conf;
pub mod codec_inner;
pub mod codec_keys;
pub mod codec_message;
pub mod codec_uapi;
pub mod engine;
mod engine_boring;
mod engine_guard;
#[cfg(test)]
mod engine_tests;
mod engine_wipe;
pub mod state_index;
pub mod state_limits;
pub mod state_replay;
pub mod state_routes;
pub mod uapi;

pub use codec_keys::{PublicKey, SecretKey};
pub use engine::{Authentic, Engine, EngineError, Opened, Rules, Sealed, Ticked};
pub use engine_boring::{Boring, Material, no_limit, public_key};
pub use engine_guard::{Guard, Verdict};
