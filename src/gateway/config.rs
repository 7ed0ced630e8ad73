//! The checked configuration: what the program sees once the file has no mistakes left.
//!
//! Plain data with every default filled in; how it is written in a file is the business of `raw` and [`check`]. Each
//! default stands in a `Default` impl here and, as words, in `config.toml`; a test holds the two together.
//!
//! [`check`]: super::check

pub(super) mod http;
pub(super) mod moq;
pub(super) mod quic;
pub(super) mod udp;
#[cfg(feature = "wireguard")]
pub(super) mod wireguard;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::memory::Secret;

pub use http::{
    Http, HttpAction, HttpEdits, HttpGuards, HttpPath, HttpRate, HttpRoute, HttpSettings, HttpTokens, HttpVersion,
    UpstreamHttp,
};
pub use quic::{
    Certificate, CertificateSource, Congestion, ListenerTls, Quic, QuicService, QuicSettings, Retry, Route, UpstreamTls,
};

pub use moq::{Moq, MoqOrigin, MoqScope, MoqToken, MoqWhenSlow};
pub use udp::Udp;
#[cfg(feature = "wireguard")]
pub use wireguard::{InsideService, Key, Mode, Offload, Peer, Speaks, ThreadingMode, Wireguard};

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
    /// The certificates in the order of the file, with distinct names; one that nobody names is fine.
    pub certificates: Vec<Certificate>,
    /// The upstreams in the order of the file, with distinct names; one that no listener names is fine.
    pub upstreams: Vec<Upstream>,
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
    /// The path of the control socket, for `portway reload`; `None` = there is none.
    pub control: Option<PathBuf>,
    /// What a caller must show who changes something, and, where others than this machine can listen in, who reads and
    /// shows no certificate. Default: nobody may change anything over HTTP, but who shows a certificate.
    pub token: Option<Secret>,
    /// Whether a changed configuration file is used without being asked to. Default `false`.
    pub watch: bool,
    /// What it says in TLS handshakes; `None` = plain HTTP.
    pub tls: Option<ListenerTls>,
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

/// `[[upstream]]`: servers that listeners hand connections to.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Distinct; 1 to 64 of `A-Z a-z 0-9 _ . -`, since it becomes a metric label.
    pub name: String,
    /// Where the servers are; at least one, each once.
    pub servers: Vec<Server>,
    /// Which server gets the next connection. Default round robin.
    pub balance: Balance,
    /// How often names are looked up again. Default 30 s.
    pub resolve: Duration,
    /// What one server is asked to bear.
    pub limits: UpstreamLimits,
    /// How a server is found to be down.
    pub health: Health,
    /// How servers are spoken to that answer HTTP.
    pub http: UpstreamHttp,
    /// What is demanded of servers, and said to them: always there if they speak QUIC; with servers over TCP it is for
    /// HTTP.
    pub tls: Option<UpstreamTls>,
    /// The WireGuard listener through whose tunnel the servers are reached, all of them over TCP. Default none: by this
    /// machine's own network.
    pub via: Option<String>,
}

impl Upstream {
    /// An upstream of these servers with the defaults of everything else.
    #[must_use]
    pub fn new(name: impl Into<String>, servers: Vec<Server>) -> Self {
        Self {
            name: name.into(),
            servers,
            balance: Balance::default(),
            resolve: Duration::from_secs(30),
            limits: UpstreamLimits::default(),
            health: Health::default(),
            http: UpstreamHttp::default(),
            tls: None,
            via: None,
        }
    }

    /// Whether its servers speak QUIC.
    #[must_use]
    pub fn is_over_quic(&self) -> bool {
        matches!(self.servers.first(), Some(Server::Quic { .. }))
    }
}

/// Where a server of an upstream is.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A name that is looked up, and a port: each address it leads to is a server.
    Name {
        /// The name.
        host: String,
        /// The port, not 0.
        port: u16,
    },
    /// The absolute path of a Unix stream socket.
    Unix(PathBuf),
    /// A server over QUIC: each relayed connection is a stream of one connection to it.
    Quic {
        /// Where; the certificate must name it unless `[upstream.tls]` says otherwise.
        host: Host,
        /// The port, not 0.
        port: u16,
    },
    /// A server that takes datagrams.
    Udp {
        /// Where.
        host: Host,
        /// The port, not 0.
        port: u16,
    },
}

/// An address, or a name that is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Which server of an upstream gets the next connection.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
    /// Of two picked at random, the one with fewer connections.
    RandomOfTwo,
    /// The same for each source address, as long as it is up; the same after a restart, and in every gateway.
    Hash,
}

/// `[upstream.limits]`: what one server is asked to bear.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// Connections at the same time per server, 1 to 10 000 000. Default 10 000.
    pub connections: usize,
    /// How long a server may take to accept a connection. Default 5 s.
    pub connect_timeout: Duration,
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        Self { connections: 10_000, connect_timeout: Duration::from_secs(5) }
    }
}

/// `[upstream.health]`: how a server is found to be down.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Connections in a row that a server did not take before it gets no more for a while; 0 = never. At most half of
    /// the servers are left out at once. Default 3.
    pub eject_after: u32,
    /// How long the first time; twice as long each further time, up to ten times this. Default 10 s.
    pub eject_for: Duration,
    /// Whether servers are asked even when nobody needs them. Default off.
    pub check: Check,
    /// What is asked for with [`Check::Http`]. Default `/`.
    pub path: String,
    /// Time between two checks of a server. Default 10 s.
    pub interval: Duration,
    /// How long a server may take to answer a check. Default 2 s.
    pub timeout: Duration,
    /// Checks in a row that must succeed before a server that was down gets connections. Default 2.
    pub healthy_after: u32,
    /// Checks in a row that must fail before a server gets no more connections. Default 3.
    pub unhealthy_after: u32,
    /// How long a server that has come, or come back, gets less than its share. Default: not at all.
    pub slow_start: Option<Duration>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            eject_after: 3,
            eject_for: Duration::from_secs(10),
            check: Check::Off,
            path: "/".to_owned(),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
            slow_start: None,
        }
    }
}

/// How servers are asked whether they are there.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// Not at all: only connections that are needed tell.
    #[default]
    Off,
    /// By a connection that is closed at once.
    Tcp,
    /// By a request, which a status from 200 to 399 answers.
    Http,
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
    /// Byte streams over TCP, handed to a server of an upstream.
    Relay(Relay),
    /// HTTP/1.1 and HTTP/2.
    #[cfg(feature = "http")]
    Http(Box<Http>),
    /// Streams and datagrams over QUIC.
    Quic(Quic),
    /// Datagrams, handed to a server of an upstream.
    Udp(Udp),
    /// Tunnels, and what is inside.
    #[cfg(feature = "wireguard")]
    Wireguard(Box<Wireguard>),
    /// A protocol that the embedding program has registered in [`Known`](super::check::Known).
    #[non_exhaustive]
    Custom {
        /// Its registered name.
        protocol: String,
        /// `[listener.options]`, with references expanded; empty if the file has none.
        options: super::Options,
    },
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Framed(framed) => f.debug_tuple("Framed").field(framed).finish(),
            Self::Relay(relay) => f.debug_tuple("Relay").field(relay).finish(),
            #[cfg(feature = "http")]
            Self::Http(http) => f.debug_tuple("Http").field(http).finish(),
            Self::Quic(quic) => f.debug_tuple("Quic").field(quic).finish(),
            Self::Udp(udp) => f.debug_tuple("Udp").field(udp).finish(),
            #[cfg(feature = "wireguard")]
            Self::Wireguard(wireguard) => f.debug_tuple("Wireguard").field(wireguard).finish(),
            Self::Custom { protocol, options } => {
                f.debug_struct("Custom").field("protocol", protocol).field("options", options).finish()
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
    /// The upstream that messages are forwarded to; `None` for the other services.
    pub upstream: Option<String>,
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
            upstream: None,
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
    /// It joins a room, or goes to everybody else in it.
    Rooms,
    /// It goes to a server of an upstream that speaks in frames as well, and the answers come back.
    Forward,
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

/// `[listener.relay]`: where connections go, and what is said about where they came from. The longest silence is
/// [`Limits::idle`].
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// The name of an upstream of the same file. No default.
    pub upstream: String,
    /// Whether each connection begins with a PROXY header (version 1 or 2). Default `false`.
    pub proxy_in: bool,
    /// The PROXY header that servers get first. Default none.
    pub proxy_out: ProxyOut,
    /// Servers that are tried for one connection, 1 to 100. Default 3.
    pub attempts: u32,
    /// Where connections go by what a TLS client wants; without any nothing is looked into. Default none.
    pub routes: Vec<HelloRoute>,
    /// Whether connections go to `upstream` that no route fits; else they are closed. Default `true`.
    pub others: bool,
    /// Who the listener is, if TLS ends here. Default: it passes as it is.
    pub tls: Option<ListenerTls>,
}

/// `[[listener.route]]` of a relay.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloRoute {
    /// Whom the client wants (SNI): a name in lower case, or `*.` and one: any below it. Default: any, also none.
    pub sni: Option<String>,
    /// What it must offer (ALPN). Default: anything.
    pub alpn: Option<String>,
    /// The name of an upstream of the same file.
    pub upstream: String,
}

impl Relay {
    /// The names of all upstreams it may lead to.
    pub fn upstreams(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.upstream.as_str()).chain(self.routes.iter().map(|route| route.upstream.as_str()))
    }

    /// A relay to the upstream of this name with the defaults of everything else.
    #[must_use]
    pub fn new(upstream: impl Into<String>) -> Self {
        Self {
            upstream: upstream.into(),
            proxy_in: false,
            proxy_out: ProxyOut::Off,
            attempts: 3,
            routes: Vec::new(),
            others: true,
            tls: None,
        }
    }
}

/// The PROXY header that a server gets before the first byte of a connection.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyOut {
    /// None: the server sees the gateway's address.
    #[default]
    Off,
    /// Version 1, one line of text.
    V1,
    /// Version 2, binary.
    V2,
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
