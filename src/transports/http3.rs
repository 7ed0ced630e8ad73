//! HTTP/3 over connections of `transports::quic` (RFC 9114, 9204, 9218, 9220, 9297).
//!
//! `codec*` are the words on the wire, `state*` the rules about who may say what and when, `actor` an application that
//! runs inside the actor of a QUIC connection: no message lies between QUIC and the requests. What answers is a
//! [`Service`]; each of its answers is a future of that same actor, woken when its client has room, and dropped when its
//! client gives the request up.
//!
//! # Bodies
//! They are pulled both ways: of a request one piece is read ahead, of an answer at most 16 KiB wait beside what QUIC
//! may send. Who takes nothing holds up who sends, by QUIC's flow control.
//!
//! # Mistakes
//! A malformed message costs its stream, a broken rule the connection, each with the code of the specification, counted
//! under its name. QPACK's dynamic table is not used, so a section of fields waits for nothing and cannot grow beyond
//! what a head may hold.

mod actor;
mod answer;
pub mod codec;
pub mod codec_fields;
pub mod codec_priority;
pub mod codec_qpack;
mod codec_table;
mod sessions;
pub mod state;
pub mod state_request;
mod stream;

pub use actor::Http3;
pub use answer::{Limits, Service};
pub use sessions::Accepted;
pub use stream::{Broken, Incoming};
