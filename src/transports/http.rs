//! HTTP: a reverse proxy that is strict about what it reads, for HTTP/1.1 and 2 by hyper and for HTTP/3 by `http3`.
//!
//! `codec_head` guards the bytes of HTTP/1.1 clients, `codec_forward` changes fields on the way, `codec_file` reads what
//! is asked of files; `state_routes` finds routes, `state_exchange` decides about attempts, `state_watch` about silence.
//! None of them knows hyper. `actor` is a client's connection over TCP, `over_quic` one over QUIC, `exchange` one request
//! inside either, `pool` the connections of an arbiter to servers, each an actor too.
//!
//! # Bodies
//! Bodies are streamed both ways and pulled: who takes nothing holds up who sends. A server that breaks off in the middle
//! of an answer leaves an answer that is not whole: HTTP/1.1 clients see the connection end too early, HTTP/2 clients a
//! reset of the stream. A client that goes away takes its request to the server with it.
//!
//! # When there is no room
//! Each server takes as many requests at once as its upstream allows; then requests wait, at most `pending` on each
//! arbiter and at most the connect timeout, and beyond that are answered by 503.

mod actor;
mod ask;
mod auth;
mod body;
pub mod codec_edit;
pub mod codec_file;
pub mod codec_forward;
pub mod codec_frames;
pub mod codec_head;
mod dial;
mod early;
mod exchange;
mod files;
mod guards;
mod hook;
mod nursery;
#[cfg(feature = "quic")]
mod over_quic;
mod pool;
mod record;
mod secured;
mod site;
pub mod state_exchange;
pub mod state_routes;
pub mod state_watch;
mod tunnel;
mod wire;
mod workers;

pub use actor::{Connection, Connections};
pub use ask::ask;
pub use auth::{Tokens, Users, users};
pub use guards::{Guards, Limit};
pub use hook::{Asked, Decision, Hook};
#[cfg(feature = "quic")]
pub use over_quic::{OverQuic, Refused};
pub use record::{DURATION_SUM, DURATIONS, LOG_FIELDS, LogFields};
#[cfg(feature = "quic")]
pub use site::Inside;
pub use site::{Action, Published, Route, Settings, Site, Upstream, Version};
pub use wire::ByteStream;
