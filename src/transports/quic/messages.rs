//! What endpoints, connections and handles tell each other.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use super::actor_qlog::Log;
use super::codec::Cid;
use super::handle::Connection;
use super::session::{Application, End, Event, Info, OpenError, StreamError, StreamId, StreamKind};
use super::settings::Terms;
use super::state_credit::Credit;
use super::state_datagrams::{Datagram, NotQueued};
use super::state_kept::Answered;
use super::state_streams::Priority;
use crate::actors::{Mail, Reply};
use crate::transports::tls;

/// Datagrams of one sender to one connection, as one read of the socket gave them.
#[derive(Debug)]
pub(super) struct Packets {
    /// The datagrams are in front; what is behind `len` is not meant.
    pub(super) buffer: Vec<u8>,
    pub(super) len: usize,
    /// The length of each but the last, which may be shorter. Never zero.
    pub(super) stride: usize,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// Came from another arbiter.
    pub(super) forwarded: bool,
}

/// A connection as its endpoint knows it; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotId {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

/// What a connection is told.
pub(super) enum ToConnection {
    Packets(Packets),
    /// The socket takes datagrams again.
    Writable,
    /// Ids that the endpoint knows as this connection's, with their reset tokens.
    Ids(Vec<(Cid, u128)>),
    /// The socket it has asked for, or none.
    Opened(Option<SocketAddr>),
    Request(Request),
}

/// What a handle asks for.
pub(super) enum Request {
    /// What concerns streams, datagrams, events and readings.
    OfStreams(Asked),
    Close {
        code: u64,
        text: Arc<str>,
    },
    /// The last handle is gone.
    Abandoned,
    /// Answered when the connection has ended and its close has left.
    Join(Reply<Farewell>),
    /// To another socket; answers its address.
    Migrate(Reply<Result<SocketAddr, MigrateError>>),
    /// For the application inside.
    Tell(Box<dyn Any + Send>),
}

/// What those with handles ask of a connection's streams and datagrams.
pub(super) enum Asked {
    /// Credit was taken for the bytes.
    Write {
        stream: StreamId,
        bytes: Bytes,
        done: Option<Reply<Result<(), StreamError>>>,
    },
    Credit {
        stream: StreamId,
        bytes: usize,
        reply: Reply<Result<Granted, StreamError>>,
    },
    Finish(StreamId),
    Reset(StreamId, u64),
    Prioritise(StreamId, Priority),
    Expire(StreamId, Option<Instant>, u64),
    Read {
        stream: StreamId,
        max: usize,
        reply: Reply<Answered>,
    },
    Stop(StreamId, u64),
    /// The last handle of a direction is gone.
    Released(StreamId, Direction),
    Open {
        kind: StreamKind,
        priority: Priority,
        reply: Reply<Result<NewStream, OpenError>>,
    },
    Accept {
        kind: StreamKind,
        reply: Reply<Result<NewStream, OpenError>>,
    },
    Datagram {
        datagram: Datagram,
        reply: Option<Reply<Result<(), NotQueued>>>,
    },
    Datagrams(Reply<Vec<Bytes>>),
    MaxDatagram(Reply<Option<usize>>),
    /// Events are wanted from now on.
    Watch,
    Events(Reply<Vec<Event>>),
    Info(Reply<Info>),
    Session(Reply<Option<Bytes>>),
    /// An answer that nobody took.
    Back(Back),
}

/// Answers that are not lost when nobody takes them.
pub(super) enum Back {
    Read(StreamId, Answered),
    Opened(Result<NewStream, OpenError>),
    Accepted(Result<NewStream, OpenError>),
    /// The credit is given back with it.
    Credit(Result<Granted, StreamError>),
    Datagrams(Vec<Bytes>),
    Events(Vec<Event>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Send,
    Receive,
}

/// A connection's last words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Farewell {
    /// Why it ended.
    pub end: End,
    /// What it had been like.
    pub info: Info,
}

/// What the handles and the actor share about the send side of a stream.
#[derive(Debug)]
pub(super) struct SendShared {
    pub(super) credit: Credit,
    /// Why nothing more can be written, once that is so.
    pub(super) fate: OnceLock<StreamError>,
}

/// A stream for a handle.
#[derive(Debug)]
pub(super) struct NewStream {
    pub(super) stream: StreamId,
    pub(super) send: Option<Arc<SendShared>>,
}

/// Credit taken for somebody who waited for it; given back if it is not used.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) stream: Arc<SendShared>,
    pub(super) connection: Arc<Credit>,
    pub(super) bytes: usize,
}

impl Granted {
    /// Keeps at most `bytes` and gives the rest back; answers how many are kept.
    pub(super) fn keep(&mut self, bytes: usize) -> usize {
        let surplus = self.bytes.saturating_sub(bytes);
        self.stream.credit.give(surplus);
        self.connection.give(surplus);
        self.bytes -= surplus;
        self.bytes
    }

    /// The credit is used: it goes with the bytes.
    pub(super) fn spend(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.stream.credit.give(self.bytes);
        self.connection.give(self.bytes);
    }
}

/// What an endpoint is told.
pub(super) enum ToEndpoint {
    /// From another arbiter, to whose socket the kernel gave them.
    Forwarded(Packets),
    /// The handshake is done; with the token by which the peer would tell that it has lost the connection.
    Established(SlotId, Option<u128>),
    Gone(SlotId),
    WantIds(SlotId, usize),
    Retired(SlotId, Vec<Cid>),
    /// The socket took no more from this connection.
    Blocked(SlotId),
    Connect(Box<Connect>),
    /// A connection wants a socket of its own.
    Open(SlotId),
    /// It does not use that one any more.
    Leave(SlotId, SocketAddr),
    Reload(tls::Reload<Terms>),
    /// The mailboxes of all connections, at most this many.
    List(usize, Reply<Vec<Mail<ToConnection>>>),
    Status(Reply<Status>),
}

/// Makes what runs inside a connection that this end began.
pub(super) type Made = Box<dyn FnOnce(&Info) -> Box<dyn Application> + Send>;

/// A connection to be made.
pub(super) struct Connect {
    pub(super) to: SocketAddr,
    pub(super) tls: Arc<tls::ClientSettings>,
    pub(super) session: Option<Bytes>,
    /// Where it is logged, instead of where the client's are.
    pub(super) log: Option<Log>,
    pub(super) reply: Reply<Result<Connection, ConnectError>>,
    /// What runs inside the connection, if not its handle's users.
    pub(super) application: Option<Made>,
}

/// How an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The arbiter it is on.
    pub arbiter: usize,
    /// Connections on it.
    pub connections: usize,
    /// Of these, handshakes that are not done.
    pub half_open: usize,
    /// The kernel's receive and send buffers, in bytes.
    pub buffers: (usize, usize),
    /// Datagrams the kernel dropped for want of room; `None` where it does not say.
    pub kernel_dropped: Option<u32>,
    /// Whether trains of datagrams leave in one call.
    pub gso: bool,
    /// The generation of certificates in use; zero on a client.
    pub generation: u64,
}

/// Why a connection has not moved. It is where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MigrateError {
    /// Only clients move (RFC 9000, section 9).
    Server,
    /// The peer does not allow it.
    Forbidden,
    /// The connection is not established, draining, or on a move already.
    NotNow,
    /// The peer has given no spare connection id yet: later there may be one.
    NoIds,
    /// The connection has moved seven times: quiche keeps its paths.
    TooOften,
    /// No socket could be bound, or the client has as many as it may.
    NoSocket,
    /// The peer did not answer on the new path.
    Unreachable,
    /// The connection has ended.
    Closed,
}

impl std::fmt::Display for MigrateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Server => "only a client can move its connection",
            Self::Forbidden => "the peer does not allow it",
            Self::NotNow => "the connection is not open, or on a move already",
            Self::TooOften => "the connection has moved as often as it can",
            Self::NoIds => "the peer has given no spare connection id yet",
            Self::NoSocket => "no other socket could be had",
            Self::Unreachable => "the peer did not answer on the new path",
            Self::Closed => "the connection has ended",
        })
    }
}

impl std::error::Error for MigrateError {}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// It ended before it was established.
    Ended(End),
    /// The TLS settings cannot be used.
    Tls(tls::TlsError),
    /// QUIC refused to begin, for this reason.
    Quic(&'static str),
    /// There is no socket for this kind of address.
    NoSocket,
    /// As many connections as the client allows on this arbiter.
    Full,
    /// The client has been stopped.
    Closed,
    /// Not in the time allowed.
    Timeout,
    /// A blocking call on a thread that runs an event loop.
    OnArbiter,
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(end) => write!(f, "not connected: {end}"),
            Self::Tls(error) => error.fmt(f),
            Self::Quic(reason) => write!(f, "QUIC refuses to begin: {reason}"),
            Self::NoSocket => f.write_str("no socket for this kind of address"),
            Self::Full => f.write_str("as many connections as the client allows"),
            Self::Closed => f.write_str("the client has been stopped"),
            Self::Timeout => f.write_str("no connection in the time allowed"),
            Self::OnArbiter => f.write_str("a blocking call on a thread that runs an event loop"),
        }
    }
}

impl std::error::Error for ConnectError {}
