//! WebTransport over HTTP/3: a session of streams and datagrams on a connection that carries requests as well
//! (draft-ietf-webtrans-http3; browsers speak drafts 2 and 7 and later, whose wire is the same but for a setting).
//!
//! An [`Application`](crate::transports::quic::Application) runs on it as it does on a QUIC connection: `actor` is the
//! same [`Session`](crate::transports::quic::Session), whose streams carry the number of the session in front and whose
//! codes are translated; `client` is the end that asks for a session. `codec` are the capsules and numbers, `state` says what belongs to the session.
//!
//! # What is bounded
//! One session at a time on a connection; a second one is refused while the first lives. Streams and their bytes are
//! bounded by QUIC. Sixteen streams may come before the session they belong to; what is beyond is given up, and counted.
//!
//! # The end
//! A session ends by a capsule with a code and a text, by the end of its stream, or with its connection. Its application
//! is told once. Streams that are left are given up with `WT_SESSION_GONE`.

mod actor;
mod client;
pub mod codec;
pub mod state;

pub(super) use actor::Running;
pub use client::{Client, Dial};
