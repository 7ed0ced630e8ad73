//! The words of a relayed stream's decisions: its settings, what happens to it, what is to be done, how it ends.

use std::sync::Arc;
use std::time::Duration;

use super::codec::ProxyVersion;
use super::state_gate::Frames;
use crate::transports::framed::FrameError;
use crate::transports::kit::balance::Balancer;

/// What a relay may do.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Which servers there are.
    pub upstream: Arc<Balancer>,
    /// The name of the upstream: the scope of its counters.
    pub upstream_name: Arc<str>,
    /// A server that has not accepted after this long is given up and the next one is tried.
    pub connect_timeout: Duration,
    /// Servers tried per stream, at most.
    pub attempts: usize,
    /// A stream on which nothing moves for this long is closed.
    pub idle: Option<Duration>,
    /// Clients send a PROXY header first.
    pub proxy_in: bool,
    /// The PROXY header must be whole after this long.
    pub proxy_timeout: Duration,
    /// Servers are sent a PROXY header first.
    pub proxy_out: Option<ProxyVersion>,
    /// Only whole messages pass. Not together with `proxy_in`.
    pub frames: Option<Frames>,
}

impl RelaySettings {
    /// The defaults: 5 s to connect, three servers tried, no idle limit, no PROXY headers.
    #[must_use]
    pub fn new(upstream: Arc<Balancer>, upstream_name: Arc<str>) -> Self {
        Self {
            upstream,
            upstream_name,
            connect_timeout: Duration::from_secs(5),
            attempts: 3,
            idle: None,
            proxy_in: false,
            proxy_timeout: Duration::from_secs(5),
            proxy_out: None,
            frames: None,
        }
    }
}

/// One of the two sides of a relayed stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Client,
    /// The server we connected to.
    Upstream,
}

impl Side {
    /// The side that gets what this one sends.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }

    pub(super) const fn reset(self) -> &'static str {
        match self {
            Self::Client => "client_reset",
            Self::Upstream => "upstream_reset",
        }
    }

    pub(super) const fn truncated(self) -> &'static str {
        match self {
            Self::Client => "client_truncated",
            Self::Upstream => "upstream_truncated",
        }
    }

    pub(super) const fn broke_tls(self) -> &'static str {
        match self {
            Self::Client => "client_tls",
            Self::Upstream => "upstream_tls",
        }
    }

    pub(super) const fn ended_in_message(self) -> &'static str {
        match self {
            Self::Client => "eof_in_message",
            Self::Upstream => "upstream_eof_in_message",
        }
    }

    pub(super) const fn broke_frames(self, error: FrameError) -> &'static str {
        match (self, error) {
            (Self::Client, _) => error.reason(),
            (Self::Upstream, FrameError::TooLarge { .. }) => "upstream_frame_too_large",
            (Self::Upstream, FrameError::Malformed { .. }) => "upstream_frame_malformed",
        }
    }
}

/// Why a server could not be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It refused.
    Refused,
    /// It did not answer in time.
    Timeout,
    /// There is no way to it.
    Unreachable,
    /// This machine lacks something: no fault of the server's.
    Local,
    /// Its certificate is not one that is trusted, or names somebody else.
    Certificate,
    /// It accepted, and the TLS handshake was not over in time.
    HandshakeTimeout,
    /// It accepted and said something that is not TLS.
    NotTls,
    /// It accepted and broke the TLS handshake off, or we could not agree.
    Handshake,
}

impl Failure {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Refused => "connect_refused",
            Self::Timeout => "connect_timeout",
            Self::Unreachable => "connect_unreachable",
            Self::Local => "connect_local",
            Self::Certificate => "tls_certificate",
            Self::HandshakeTimeout => "tls_timeout",
            Self::NotTls => "tls_not_spoken",
            Self::Handshake => "tls_refused",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// Bytes came from a side; the other one took the first `taken` of them at once.
    Bytes {
        /// Whose.
        from: Side,
        /// All that came.
        bytes: &'a [u8],
        /// How many of them have been passed on already; only where [`State::passes`](super::State::passes) allows any.
        taken: usize,
    },
    /// So many bytes of a side wait in a pipe now; only where [`State::splices`](super::State::splices) allows it.
    Piped(Side, usize),
    /// There is no pipe for the bytes of a side: they are copied.
    NoPipe(Side),
    /// A side took so many of the bytes that wait for it in a pipe.
    Unpiped(Side, usize),
    /// A side sends no more.
    Eof(Side),
    /// Reading a side failed: it is gone.
    Reset(Side),
    /// The stream below a side's TLS has ended, and TLS has not.
    Truncated(Side),
    /// A side broke TLS off with an alert, or said what is no record of it.
    BrokeTls(Side),
    /// A side took so many of the bytes that `poll` gave.
    Written(Side, usize),
    /// Writing to a side failed. What it has sent is read nevertheless.
    WriteFailed(Side),
    /// The same because it had reset the stream: what it has sent is read, and the end of that is a reset.
    WriteReset(Side),
    /// A side has been told that no more comes.
    FinSent(Side),
    /// The server that was dialled is told about the client by somebody else.
    HeaderTaken,
    /// The server that was dialled has accepted, and a handshake goes on.
    Accepted,
    /// The server that was dialled is connected.
    Connected,
    /// It is not.
    ConnectFailed(Failure),
    /// The deadline may have passed.
    Deadline,
    /// Finish: see the front page.
    Drain,
}

/// What to do for one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing.
    Wait,
    /// Write these bytes to it, then say how many it took.
    Write(&'a [u8]),
    /// Move these many bytes to it from their pipe, then say how many it took.
    Splice(usize),
    /// Tell it that no more comes; go on reading.
    Finish,
}

/// Whose doing the end of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It ended as streams do.
    Nobody,
    /// The client's or the server's.
    Peer,
}

/// Why a stream ended, and how to close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The word that counters use: `finished`, `drained`, `idle`, `client_reset`, `upstream_reset`, `no_upstream`,
    /// `proxy_malformed`, `proxy_timeout` or one of [`Failure::reason`]; over TLS also `client_truncated`,
    /// `upstream_truncated`, `client_tls` and `upstream_tls`; with messages also `frame_too_large`,
    /// `frame_malformed`, `eof_in_message`, `first_message_timeout`, `message_timeout` and `slow_reader`, which are the
    /// client's doing, and `upstream_frame_too_large`, `upstream_frame_malformed`, `upstream_eof_in_message`,
    /// `upstream_message_timeout` and `upstream_slow`.
    pub reason: &'static str,
    /// Whose doing it is.
    pub blame: Blame,
}

/// Bytes delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// To the server.
    pub up: u64,
    /// To the client.
    pub down: u64,
}
