//! TCP relay: each client's stream joined to one server of an upstream, byte for byte.
//!
//! `codec` reads and writes PROXY protocol headers, `state` decides, `state_way` is one of its two directions, `actor`
//! does the I/O, `dial` opens the stream to a server, `pipe` lets the kernel move the bytes, `onward` relays to where a
//! client wanted to. Either end may be a stream of a QUIC connection: `quic_wire` gives it the shape of a socket,
//! `quic_links` keeps the connections to servers, `quic_session` starts a relay for each stream of a client and carries
//! its datagrams.
//!
//! In front of it TLS may be looked into, to route by what clients want, and terminated: `codec_hello` reads a
//! ClientHello, `hello` waits for it. Servers may be spoken to in TLS as well: `shielded` is either end of that.
//!
//! # Ends
//! The two directions end on their own: the end of one is passed on as a half-close, behind all its bytes. A reset is
//! passed on as a reset, at once: what has not been delivered by then is lost, as it would be without a relay in
//! between. A stream that could not be joined to any server is reset as well, so that its client cannot take that for
//! an empty answer.
//!
//! Over TLS an end is close_notify. A TCP end without one is none: what came before it is delivered, and then the other side is
//! reset, so that nobody takes half an answer for a whole one (`client_truncated`, `upstream_truncated`).
//!
//! Over QUIC an end is FIN, a reset is RESET_STREAM and STOP_SENDING, with the code `GIVEN_UP`. A side that takes no
//! more while it still sends is told to the other one as STOP_SENDING, if that is over QUIC; TCP has no word for it, and
//! is not read any more.
//!
//! # Back-pressure
//! A direction is read only when all that was read of it has been written: it holds what one read gave, at most
//! 64 KiB in a buffer or 256 KiB in a pipe, and nothing while both sides keep up. A stream on which nothing moves for the idle limit is cut, which is
//! also what becomes of a side that stalls for good.
//!
//! # Messages
//! With [`RelaySettings::frames`] only whole messages pass, in both directions (`state_gate`; the actor's kind is
//! `forward`): a direction holds one message and one read at most. Who breaks the rules of messages ends the stream, and
//! the reason says who that was; what came whole before that is delivered.
//!
//! # Drain
//! A relay cannot know where a message ends. On a drain bytes flow on until both sides have ended; what is still open
//! at the deadline is reset and reported as unfinished.

mod actor;
mod codec;
#[cfg(feature = "tls")]
pub mod codec_hello;
mod detour;
mod dial;
mod forward;
#[cfg(feature = "http")]
mod hello;
mod onward;
mod pipe;
#[cfg(feature = "quic")]
mod quic_datagrams;
#[cfg(feature = "quic")]
mod quic_inside;
#[cfg(feature = "quic")]
mod quic_links;
#[cfg(feature = "quic")]
mod quic_session;
#[cfg(feature = "quic")]
mod quic_wire;
#[cfg(feature = "http")]
mod shielded;
mod state;
mod state_gate;
mod state_way;
mod state_words;

pub use actor::{Connections, Relay};
pub use codec::{Header, MAX_V1, MAX_V2, Malformed, ProxyVersion};
pub use detour::{Detour, Through, Way};
pub use dial::{Dial, Network, Upstream, Wire};
pub use forward::Forward;
#[cfg(feature = "http")]
pub use hello::{HelloConnections, HelloRoute, HelloSettings, Waiting};
pub use onward::Onward;
pub use pipe::Plain;
#[cfg(feature = "quic")]
pub use quic_inside::Inside;
#[cfg(feature = "quic")]
pub use quic_links::{LinkSettings, Links};
#[cfg(feature = "quic")]
pub use quic_session::{QuicSession, Target, ToSession};
#[cfg(feature = "quic")]
pub use quic_wire::{GIVEN_UP, Opening, REFUSED};
#[cfg(feature = "http")]
pub use shielded::{Shielded, Shielding};
pub use state::{Blame, End, Failure, Input, Moved, Next, RelaySettings, Side, State};
pub use state_gate::Frames;
