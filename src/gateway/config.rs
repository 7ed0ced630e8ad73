//! The checked configuration: what the program sees once the file has no mistakes left.
//!
//! Plain data with every default filled in; how it is written in a file is the business of `raw` and [`check`]. Each
//! default stands in a `Default` impl here and, as words, in `config.toml`; a test holds the two together.
//!
//! [`check`]: super::check
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The whole configuration of a gateway.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// Threads, memory, shutdown.
    pub runtime: Runtime,
    /// The admin listener; `None` if the file has no `[admin]`.
    pub admin: Option<Admin>,
    /// What is logged, and how.
    pub log: Log,
    /// The listeners in the order of the file, with distinct names and addresses.
    pub listeners: Vec<Listener>,
}

/// `[runtime]`: threads, memory, shutdown.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Number of arbiters (threads that carry connections), 1 to 256. Default `None`: one per core.
    pub arbiters: Option<NonZeroUsize>,
    /// Whether each arbiter is bound to one core. Default `false`.
    pub pin_cores: bool,
    /// Bytes that buffers may take in total. Default `None`: half of what the machine has.
    pub memory: Option<u64>,
    /// How long connections may finish after a request to stop; zero ends them at once. Default 30 s.
    pub drain: Duration,
}

impl Default for Runtime {
    fn default() -> Self {
        Self { arbiters: None, pin_cores: false, memory: None, drain: Duration::from_secs(30) }
    }
}

/// `[admin]`: where metrics and the state of the gateway can be read.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Where the file says so, for a failure to bind.
    pub place: Place,
}

/// `[log]`: what is logged, and how.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// The least severe level that is written. Default `info`.
    pub level: Level,
    /// One line of text or one JSON object per event. Default text.
    pub format: LogFormat,
}

/// How much is logged: each level includes those before it.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Somebody may have to act.
    Warn,
    /// Start, stop, reload.
    #[default]
    Info,
    /// Each decision.
    Debug,
    /// Each message.
    Trace,
}

/// The shape of a log line.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[[listener]]`: one address and what is spoken there.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Distinct; 1 to 64 of `A-Z a-z 0-9 _ . -`, since it becomes a metric label.
    pub name: String,
    /// The address to listen on; no other listener of the file overlaps with it.
    pub listen: SocketAddr,
    /// Where the file says `listen`, for a failure to bind.
    pub place: Place,
    /// What one listener may cost.
    pub limits: Limits,
    /// What is spoken, with its own settings.
    pub protocol: Protocol,
}

/// `[listener.limits]`: what one listener may cost.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time, 1 to 10 000 000. Default 10 000.
    pub connections: usize,
    /// Connections at the same time from one source address. Default: the same as `connections`.
    pub per_source: usize,
    /// Connections that have not yet completed a first message. Default 1 024.
    pub half_open: usize,
    /// How long a connection may take to complete its first message. Default 10 s.
    pub first_message: Duration,
    /// How long a connection may be silent between messages; **zero means without limit**. Default 5 min.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            per_source: 10_000,
            half_open: 1_024,
            first_message: Duration::from_secs(10),
            idle: Duration::from_secs(5 * 60),
        }
    }
}

/// What a listener speaks.
///
/// `Debug` shows the keys of custom options but not their values, which may be secrets.
#[non_exhaustive]
#[derive(Clone, PartialEq)]
pub enum Protocol {
    /// Length-prefixed messages over TCP.
    Framed(Framed),
    /// A protocol that the embedding program has registered in [`Known`](super::check::Known).
    #[non_exhaustive]
    Custom {
        /// Its registered name.
        protocol: String,
        /// `[listener.options]`, with references expanded; empty if the file has none.
        options: toml::Table,
    },
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Framed(framed) => f.debug_tuple("Framed").field(framed).finish(),
            Self::Custom { protocol, options } => {
                let keys: Vec<_> = options.keys().collect();
                f.debug_struct("Custom").field("protocol", protocol).field("options", &keys).finish()
            }
        }
    }
}

/// `[listener.framed]`: how messages are delimited, and what a slow or silent peer costs.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framed {
    /// What happens to a message. No default.
    pub service: FramedService,
    /// Size of the length header in bytes: 1, 2, 4 or 8. Default 4.
    pub length_bytes: u8,
    /// Byte order of the length header. Default big-endian.
    pub byte_order: ByteOrder,
    /// Whether the length counts the header too. Default `false`.
    pub length_includes_header: bool,
    /// Largest message in bytes, without its header, at most 1 GiB. Default 1 MiB, or what the header can express if
    /// that is less.
    pub max_message: usize,
    /// How long a peer may be silent in the middle of a message (in its header or its body). Default 30 s.
    pub message_timeout: Duration,
    /// Bytes that may wait for a slow reader, at least `max_message` + 8. Default 4 MiB.
    pub outbound: usize,
    /// What happens when `outbound` is full. Default close.
    pub when_slow: WhenSlow,
    /// With [`WhenSlow::Close`]: how long `outbound` may stay full, with reading paused. Default 10 s.
    pub slow_after: Duration,
}

impl Default for Framed {
    fn default() -> Self {
        Self {
            service: FramedService::Echo,
            length_bytes: 4,
            byte_order: ByteOrder::Big,
            length_includes_header: false,
            max_message: MIB,
            message_timeout: Duration::from_secs(30),
            outbound: 4 * MIB,
            when_slow: WhenSlow::Close,
            slow_after: Duration::from_secs(10),
        }
    }
}

/// What happens to a message of a framed listener.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramedService {
    /// It goes back to its sender.
    Echo,
}

/// Byte order of a length header.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ByteOrder {
    /// Most significant byte first.
    #[default]
    Big,
    /// Least significant byte first.
    Little,
}

/// What happens when the bytes waiting for a slow reader reach their limit.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenSlow {
    /// Reading pauses, and after `slow_after` the connection is closed.
    #[default]
    Close,
    /// The oldest waiting messages are dropped.
    DropOldest,
    /// The message that does not fit is dropped.
    DropNewest,
}

/// A place in a configuration file; `Display` gives `file:line:column`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
