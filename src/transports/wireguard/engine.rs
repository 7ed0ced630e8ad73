//! One end of one WireGuard session, as the actors see it: packets in, datagrams out, and the other way round.
//!
//! [`Engine`] is small so that another implementation can take the place of boringtun, and so that the conformance tests
//! run against whatever implements it. An engine knows keys, counters and timers; addresses, routes and sockets are the
//! business of the actors. Every call takes the time and buffers of the caller; a buffer that is too small is an error,
//! never a panic.

use std::time::{Duration, Instant};

use super::codec_message::INITIATION;

/// Bytes that an output buffer must have at least, whatever the input: a handshake initiation may be the answer.
pub const LEAST_ROOM: usize = INITIATION;

/// A packet that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// It is in the buffer, as a datagram of this length.
    Datagram(usize),
    /// There is no session yet: the engine keeps the packet. If a length is given, the buffer holds an initiation that
    /// is to be sent.
    Waits(Option<usize>),
}

/// Which message was authentic: whether its source may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentic {
    /// An initiation. It may be an old one that somebody has recorded, if this engine is new: its answer goes where it
    /// came from, but the peer is not taken to be there.
    Initiation,
    /// The answer to an initiation of ours.
    Response,
    /// A cookie reply. It proves a network path, not the peer.
    Cookie,
    /// Data or a keepalive.
    Data,
}

impl Authentic {
    /// Whether the peer is where this came from.
    #[must_use]
    pub const fn roams(self) -> bool {
        matches!(self, Self::Response | Self::Data)
    }
}

/// What an authentic datagram leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Nothing more.
    Nothing,
    /// The buffer holds an IP packet of this length.
    Packet(usize),
    /// The buffer holds a datagram of this length that goes back to where this one came from.
    Reply(usize),
}

/// Why a datagram or a packet came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EngineError {
    /// No message of WireGuard has this type and length.
    Malformed,
    /// `mac1` is wrong: whoever sent it does not know our public key.
    Mac,
    /// An initiation with another static key than the peer's, or one that does not decrypt.
    Key,
    /// An initiation not newer than the last one.
    OldInitiation,
    /// A response or cookie to nothing that we sent.
    Unexpected,
    /// Data for a session that is not there, or not any more.
    NoSession,
    /// The session is older than 180 s or has carried too many messages.
    SessionOver,
    /// Data that does not authenticate.
    Tag,
    /// A counter that came before.
    Replayed,
    /// A counter too far behind the newest to tell.
    TooLate,
    /// What was inside is no IP packet, or shorter than it says.
    Inner,
    /// More packets wait for a session than the engine keeps.
    QueueFull,
    /// The buffer of the caller is too small.
    Room,
    /// A fault of the engine.
    Bug,
}

impl EngineError {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Mac => "mac",
            Self::Key => "key",
            Self::OldInitiation => "old_initiation",
            Self::Unexpected => "unexpected",
            Self::NoSession => "no_session",
            Self::SessionOver => "session_over",
            Self::Tag => "tag",
            Self::Replayed => "replayed",
            Self::TooLate => "too_late",
            Self::Inner => "inner",
            Self::QueueFull => "queue_full",
            Self::Room => "room",
            Self::Bug => "bug",
        }
    }
}

/// What a timer of the engine wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticked {
    /// Nothing now.
    Nothing,
    /// The buffer holds a datagram of this length for the peer.
    Datagram(usize),
    /// The peer has not answered for 90 s, or there was no new session for 540 s: all keys are gone. This many packets
    /// that waited were dropped.
    Expired(usize),
}

/// Limits of a session. The defaults are those of the whitepaper, section 6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The age at which whoever began a session begins the next, if the present one is used. Default 120 s; shorter
    /// costs two handshakes more often.
    pub rekey_after: Duration,
    /// The age from which a session takes and gives nothing, whatever timers did. Default 180 s.
    pub reject_after: Duration,
    /// Messages after which a new session is wanted. Default 2⁶⁰.
    pub rekey_messages: u64,
    /// Messages after which a session takes and gives nothing. Default 2⁶⁴ − 2¹³ − 1.
    pub reject_messages: u64,
    /// Packets that wait for a session, at most; the next is refused. Default 128.
    pub waiting: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rekey_after: Duration::from_secs(120),
            reject_after: Duration::from_secs(180),
            rekey_messages: 1 << 60,
            reject_messages: u64::MAX - (1 << 13),
            waiting: 128,
        }
    }
}

/// One end of a session with one peer. See the top of the file.
///
/// The order of calls: after each [`open`](Self::open) of a handshake message, [`waiting`](Self::waiting) until it gives
/// nothing; [`tick`](Self::tick) at [`deadline`](Self::deadline).
pub trait Engine: 'static {
    /// Encrypts a packet. It must be padded already: to a multiple of 16 bytes, or to the MTU of the tunnel. An empty
    /// one is a keepalive. `out` needs the packet's length and 32 bytes, and at least [`LEAST_ROOM`].
    ///
    /// # Errors
    /// [`EngineError::Room`], [`EngineError::QueueFull`], [`EngineError::SessionOver`].
    fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Result<Sealed, EngineError>;

    /// Takes a datagram whose `mac1` and source were judged before. `out` needs the datagram's length, and at least
    /// [`LEAST_ROOM`].
    ///
    /// # Errors
    /// Whatever is wrong with the datagram; nothing has changed then.
    fn open(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Result<(Authentic, Opened), EngineError>;

    /// Encrypts the next of the packets that waited for a session, if there is a session now and one waits. `out` needs
    /// 65,535 bytes.
    ///
    /// # Errors
    /// [`EngineError::Room`].
    fn waiting(&mut self, out: &mut [u8], now: Instant) -> Result<Option<usize>, EngineError>;

    /// Begins a handshake unless one was begun less than 5 s ago.
    ///
    /// # Errors
    /// [`EngineError::Room`].
    fn initiate(&mut self, out: &mut [u8], now: Instant) -> Result<Option<usize>, EngineError>;

    /// Runs the timers. May have more to say: call again until it says [`Ticked::Nothing`] or [`Ticked::Expired`].
    ///
    /// # Errors
    /// [`EngineError::Room`].
    fn tick(&mut self, out: &mut [u8], now: Instant) -> Result<Ticked, EngineError>;

    /// When to call [`tick`](Self::tick).
    fn deadline(&self) -> Instant;

    /// When the present session was established, if there is one.
    fn established(&self) -> Option<Instant>;
}
