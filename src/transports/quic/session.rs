//! The words of a session: streams, datagrams, priorities, events and its end, the same for raw QUIC and for what will
//! be carried over it.
//!
//! A protocol is written once, as an [`Application`] over a [`Session`], and runs inside the actor of its connection:
//! no message lies between the two. Events are handed over one after the other and never from within a call, so an
//! application may do anything in `on`, even close; the end of a session is the last event and comes exactly once.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::handle_io::Duplex;
use super::messages::{Request, ToConnection};
use super::state_datagrams::{Datagram, NotQueued};
use super::state_streams::Priority;
use crate::actors::{Control, Mail};

/// The number of a stream, as QUIC counts them (RFC 9000, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Whether both ends or one may write on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Both.
    Bidirectional,
    /// The one that opened it.
    Unidirectional,
}

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It was asked.
    Server,
    /// It asked.
    Client,
}

impl StreamId {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> StreamKind {
        if self.0 & 2 == 0 { StreamKind::Bidirectional } else { StreamKind::Unidirectional }
    }

    /// Who opened it.
    #[must_use]
    pub const fn opener(self) -> Role {
        if self.0 & 1 == 0 { Role::Client } else { Role::Server }
    }

    /// Whether this end can write on it.
    #[must_use]
    pub fn is_ours_to_write(self, role: Role) -> bool {
        self.kind() == StreamKind::Bidirectional || self.opener() == role
    }

    /// Whether this end can read from it.
    #[must_use]
    pub fn is_ours_to_read(self, role: Role) -> bool {
        self.kind() == StreamKind::Bidirectional || self.opener() != role
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// This end.
    Local,
    /// The other end.
    Peer,
    /// Neither: a time limit, or a peer that lost its state.
    Nobody,
}

/// The code a connection was closed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The application's own (RFC 9000, section 20.2).
    Application(u64),
    /// One of QUIC or, from 0x100 on, of TLS (RFC 9000, section 20.1).
    Transport(u64),
    /// None was sent.
    None,
}

impl Code {
    /// The TLS alert behind the code (RFC 9001, section 4.8), by its name in RFC 8446, section 6; `other` for one that says
    /// nothing of certificates, names or protocols. `None` if it is no alert.
    #[must_use]
    pub const fn alert(self) -> Option<&'static str> {
        let Self::Transport(code @ 0x100..=0x1ff) = self else { return None };
        Some(match code - 0x100 {
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            48 => "unknown_ca",
            49 => "access_denied",
            51 => "decrypt_error",
            70 => "protocol_version",
            112 => "unrecognized_name",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => "other",
        })
    }
}

/// Why and how a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Who ended it.
    pub who: Who,
    /// With which code.
    pub code: Code,
    /// What the one who closed it says; empty if nothing.
    pub text: Arc<str>,
    /// A stable word for counters: `closed`, `peer_closed`, `peer_error`, `protocol_error`, `idle`,
    /// `handshake_timeout`, `reset`, `no_path`, `no_acknowledgement`, `abandoned`, `drained`, `stopped`, `refused`, `backlog_full`.
    pub reason: &'static str,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        match self.code {
            Code::Application(code) => write!(f, " (application {code:#x})")?,
            Code::Transport(code) => write!(f, " (transport {code:#x})")?,
            Code::None => {}
        }
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

/// What happens in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The handshake is complete.
    Connected,
    /// The peer opened a stream. What it has sent on it is announced by `Readable`.
    Opened(StreamId),
    /// There is something to read: data, the end, or a reset. Said once until `read` answers [`Read::Nothing`].
    Readable(StreamId),
    /// There is room again on a stream whose last write was refused for want of credit.
    Writable(StreamId),
    /// All data of the peer, and its end, were read.
    Finished(StreamId),
    /// The peer gave a stream up; what was not read yet is gone.
    Reset(StreamId, u64),
    /// The peer does not want the rest; what was not sent yet is dropped.
    Stopped(StreamId, u64),
    /// Unsent data of a stream expired, and the stream was reset.
    Expired(StreamId),
    /// More streams may be opened, after an `open` was refused.
    Openable(StreamKind),
    /// Datagrams have come.
    Datagrams,
    /// The connection is on another path now.
    PathChanged {
        /// Our address.
        local: SocketAddr,
        /// The peer's.
        peer: SocketAddr,
    },
    /// News of this many streams were dropped, since nobody read them. Said to readers of events alone.
    Missed(u64),
    /// The session has ended. Nothing comes after this.
    Closed(End),
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Bytes, at least one.
    Data(Bytes),
    /// Nothing now: `Readable` will say when there is.
    Nothing,
    /// The end: all was read.
    End,
}

/// Why a stream cannot be used as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such stream, or this direction of it is over.
    Unknown,
    /// This end has written the stream's end, or has given it up.
    Finished,
    /// The peer gave it up with this code.
    Reset(u64),
    /// The peer does not want more, with this code.
    Stopped(u64),
    /// Its unsent data expired.
    Expired,
    /// No credit for that many bytes now; with how many there are. `Writable` will say when there is more.
    Full(usize),
    /// The connection has ended.
    Closed,
    /// As many wait on this connection as may.
    Busy,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("no such stream, or this direction of it is over"),
            Self::Finished => f.write_str("the stream was finished or given up here"),
            Self::Reset(code) => write!(f, "the peer gave the stream up, code {code:#x}"),
            Self::Stopped(code) => write!(f, "the peer wants no more of the stream, code {code:#x}"),
            Self::Expired => f.write_str("the data expired before they were sent"),
            Self::Full(free) => write!(f, "credit for {free} bytes only"),
            Self::Closed => f.write_str("the connection has ended"),
            Self::Busy => f.write_str("too many wait on this connection already"),
        }
    }
}

impl std::error::Error for StreamError {}

/// Why no stream was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenError {
    /// The peer allows no more at present. `Openable` will say when it does.
    Limit,
    /// The connection is not established yet, draining, or has ended.
    Closed,
    /// As many wait on this connection as may.
    Busy,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "the peer allows no more streams at present",
            Self::Closed => "the connection takes no new streams",
            Self::Busy => "too many wait on this connection already",
        })
    }
}

impl std::error::Error for OpenError {}

/// A reading of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Which end this is.
    pub role: Role,
    /// `handshaking`, `open`, `draining` or `closing`.
    pub state: &'static str,
    /// The arbiter its actor is pinned to.
    pub arbiter: usize,
    /// The application protocol that was agreed on.
    pub alpn: Bytes,
    /// The name the client asked for.
    pub server_name: Option<Arc<str>>,
    /// Our address on its present path.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The congestion window, in bytes.
    pub window: usize,
    /// What congestion control takes for the path's bandwidth, in bytes a second: BBR2 alone does.
    pub bandwidth: Option<u64>,
    /// Bytes of a full datagram.
    pub mtu: usize,
    /// Packets sent, received, and found lost.
    pub packets: [u64; 3],
    /// Bytes sent, received, and found lost.
    pub bytes: [u64; 3],
    /// Streams that are not over.
    pub streams: usize,
    /// Bytes that wait to be sent.
    pub queued: usize,
    /// Whether the handshake was shortened by a session of before.
    pub resumed: bool,
    /// Since when it lives.
    pub age: Duration,
}

/// The way in to the application of a session, from any thread: what is told comes as [`Application::message`].
#[derive(Debug, Clone)]
pub struct Door {
    mail: Mail<ToConnection>,
}

impl Door {
    pub(super) const fn new(mail: Mail<ToConnection>) -> Self {
        Self { mail }
    }

    /// Tells the application something. False if the mailbox of its connection has no room, or has ended.
    #[must_use]
    pub fn tell(&self, m: Box<dyn Any + Send>) -> bool {
        self.mail.tell(ToConnection::Request(Request::Tell(m))).is_ok()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.mail.is_closed()
    }

    /// Ends the connection: for one that is told more than it takes.
    pub fn end(&self) {
        self.mail.control(Control::Stop);
    }
}

/// A session as the protocol on top of it sees it. Today it is a QUIC connection.
pub trait Session {
    /// Which end this is.
    fn role(&self) -> Role;

    /// The time at which this turn began.
    fn now(&self) -> Instant;

    /// The application protocol that was agreed on; empty before `Connected`.
    fn alpn(&self) -> &[u8];

    /// A reading, for logs and metrics: not for each packet.
    fn info(&self) -> Info;

    /// Opens a stream.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(&mut self, kind: StreamKind, priority: Priority) -> Result<StreamId, OpenError>;

    /// Bytes that may be written on a stream now.
    fn room(&self, stream: StreamId) -> usize;

    /// Asks for `Writable` when there is room on a stream: what a refused `write` does by itself.
    fn want_room(&mut self, stream: StreamId);

    /// Writes bytes, all or none. They are kept until QUIC can send them, and are not copied.
    ///
    /// # Errors
    /// [`StreamError::Full`] without credit for all of them; else see [`StreamError`].
    fn write(&mut self, stream: StreamId, bytes: Bytes) -> Result<(), StreamError>;

    /// Writes the end of a stream, after what was written before.
    ///
    /// # Errors
    /// See [`StreamError`].
    fn finish(&mut self, stream: StreamId) -> Result<(), StreamError>;

    /// Writes the last bytes of a stream, all or none, and its end: [`write`](Self::write) and
    /// [`finish`](Self::finish) in one.
    ///
    /// # Errors
    /// As of `write`; without credit nothing was written, and the stream is not finished.
    fn write_last(&mut self, stream: StreamId, bytes: Bytes) -> Result<(), StreamError> {
        self.write(stream, bytes)?;
        self.finish(stream)
    }

    /// Gives a stream up: what was not sent is dropped, and the peer is told `code`.
    ///
    /// # Errors
    /// See [`StreamError`].
    fn reset(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError>;

    /// Reads at most `max` bytes. What is not read stays with QUIC, whose flow control then holds the peer back.
    ///
    /// # Errors
    /// [`StreamError::Reset`] once if the peer gave the stream up; else see [`StreamError`].
    fn read(&mut self, stream: StreamId, max: usize) -> Result<Read, StreamError>;

    /// Wants no more of a stream: what comes is dropped, and the peer is told `code`.
    ///
    /// # Errors
    /// See [`StreamError`].
    fn stop(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError>;

    /// Gives a stream that the peer has opened in both directions away, to whom it may concern: an actor of its own uses
    /// it from then on, and the application has nothing to do with it any more, though it may still hear of it. `None`
    /// if one of its directions is over or there is no room for a handle: the stream is then as it was.
    fn hand_over(&mut self, _stream: StreamId) -> Option<Duplex> {
        None
    }

    /// Whether a stream is not over in both directions, as far as is known.
    fn is_open(&self, _stream: StreamId) -> bool {
        true
    }

    /// Changes the priority of a stream, for what is not sent yet.
    fn prioritise(&mut self, stream: StreamId, priority: Priority);

    /// If data of this stream are unsent at `at`, gives the stream up with `code`. `None` takes it back.
    fn expire(&mut self, stream: StreamId, at: Option<Instant>, code: u64);

    /// Queues a datagram.
    ///
    /// # Errors
    /// See [`NotQueued`].
    fn send_datagram(&mut self, datagram: Datagram) -> Result<(), NotQueued>;

    /// The longest datagram the path allows now; `None` if the peer takes none.
    fn max_datagram(&self) -> Option<usize>;

    /// The oldest datagram that has come.
    fn read_datagram(&mut self) -> Option<Bytes>;

    /// Whether the peer has not acknowledged the end of a stream yet that was finished here.
    fn is_delivering(&mut self) -> bool;

    /// Bytes that were written and that QUIC has not taken yet.
    fn queued(&self) -> usize;

    /// The way in to this session's application, for other actors; `None` if it has none.
    fn door(&self) -> Option<Door>;

    /// Closes the session. What was not sent is dropped. The second call does nothing.
    fn close(&mut self, code: u64, text: &str);
}

/// A protocol over a session: what a connection's actor runs.
pub trait Application: 'static {
    /// Something has happened.
    fn on(&mut self, event: Event, session: &mut dyn Session);

    /// A message from elsewhere, sent with `Connection::tell`. The default drops it.
    fn message(&mut self, _m: Box<dyn Any + Send>, _session: &mut dyn Session) {}

    /// Polls what the application waits for itself, in each turn, behind the events. Answers whether there is more to do
    /// at once. `cx` wakes the actor of the connection.
    fn poll(&mut self, _cx: &mut Context<'_>, _session: &mut dyn Session) -> bool {
        false
    }

    /// The session is to end by `by`: let the peer know if the protocol has words for it. The connection is closed
    /// when no stream is left, and a little before `by` at the latest.
    fn drain(&mut self, _by: Instant, _session: &mut dyn Session) {}

    /// When `on_deadline` is to be called.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn on_deadline(&mut self, _session: &mut dyn Session) {}
}
