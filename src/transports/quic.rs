//! QUIC on quiche: an endpoint actor on each arbiter, an actor for each connection, handles usable from any thread.
//!
//! # Who does what
//! A [`QuicServer`] binds one socket for each arbiter to the same port and starts an endpoint on each. An endpoint
//! admits clients, finds the connection each packet belongs to, and hands it over; every connection id names the
//! arbiter of its connection, so that the kernel steers packets, and endpoints forward what it did not steer. The
//! connection's actor owns quiche's state, pinned to its arbiter for life. A [`QuicClient`] is the same without a door.
//!
//! # Three ways to use a connection
//! - an [`Application`] inside its actor: no message lies between it and the streams;
//! - [`Connection`], [`SendStream`], [`RecvStream`]: handles for tasks, on any thread;
//! - [`blocking`]: the same for plain threads.
//!
//! # What is bounded, and what happens when it is full
//! Bytes to be sent: by credit on each stream and connection; writers wait. Bytes received and not read: by QUIC's flow
//! control; the peer waits. Packets for a busy connection, datagrams and connections to be accepted: dropped or refused,
//! counted by reason. See docs/quic.md.
//!
//! # Errors
//! A peer's mistake ends its connection. The end of a connection is stated once ([`Event::Closed`], [`End`]).

mod actor_connection;
mod actor_dial;
mod actor_endpoint;
mod actor_ends;
mod actor_engine;
mod actor_lease;
mod actor_listen;
mod actor_moving;
mod actor_paths;
#[cfg_attr(not(feature = "qlog"), path = "quic/actor_qlog_none.rs")]
mod actor_qlog;
mod actor_remote;
mod actor_send;
mod actor_session;
mod actor_shared;
mod actor_stops;
mod actor_streams;
pub mod blocking;
mod client;
pub mod codec;
pub mod codec_token;
mod echo;
mod handle;
mod handle_io;
mod handle_kept;
mod handle_stream;
mod messages;
mod server;
mod session;
mod settings;
mod state_admission;
mod state_credit;
mod state_datagrams;
mod state_events;
mod state_kept;
mod state_pacer;
mod state_reaper;
mod state_streams;
mod state_unread;

#[cfg(feature = "qlog")]
pub use actor_qlog::Qlog;
pub use client::QuicClient;
pub use echo::Echo;
pub use handle::{Closed, Connection, DatagramError, Events};
pub use handle_io::Duplex;
pub use handle_stream::{Flush, RecvStream, SendStream};
pub use messages::{ConnectError, Farewell, MigrateError, Status};
pub use server::{Applications, QuicServer, StartError};
pub use session::{
    Application, Code, Door, End, Event, Info, OpenError, Read, Role, Session, StreamError, StreamId, StreamKind, Who,
};
pub use settings::{ClientSettings, Congestion, ServerSettings, Transport};
pub use state_admission::{Limits, RetryMode};
pub use state_datagrams::{Datagram, DatagramLimits, NotQueued, WhenFull};
pub use state_streams::Priority;
