//! Length-prefixed messages over TCP: an actor for each connection, its answers bounded, its ends named.
//!
//! `codec` reads and writes length fields, `state` decides, `outbox` is its bounded outbound queue, `actor` does the
//! I/O, `client` is the other side; `rooms` lets clients talk to each other.

mod actor;
mod client;
mod codec;
mod outbox;
pub mod rooms;
mod rooms_hub;
mod rooms_member;
mod rooms_table;
mod rooms_words;
mod state;
#[cfg(test)]
mod tests;

pub use actor::{Connection, Connections, FramedMsg};
pub use client::{ClientError, FramedClient};
pub use codec::{ByteOrder, Format, FormatError, Frame, FrameError, Header, LengthBytes, MAX_HEADER};
pub use outbox::{Outbox, Queued, WhenSlow};
pub use state::{Blame, Close, Echo, Input, Moved, Next, Service, Settings, State};
