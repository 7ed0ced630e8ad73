//! The part of the checked configuration that speaks of certificates and QUIC.

use std::path::PathBuf;
use std::time::Duration;

use super::{Moq, Place};

const MIB: usize = 1 << 20;

/// `[[certificate]]`: a certificate with its key.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Distinct; listeners and upstreams use it by this name.
    pub name: String,
    /// Where it comes from.
    pub source: CertificateSource,
    /// Where the file says so, for a failure to read it.
    pub place: Place,
}

/// Where a certificate comes from.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// Two PEM files, read again at each reload.
    Files {
        /// The certificate and those that lead to an authority.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// Made at the start and signed with itself, for these host names and addresses.
    Generated(Vec<String>),
}

/// `[listener.tls]`: what a listener says in its handshakes, beside its certificates.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// The names of certificates; the first one answers clients that name none of the others' hosts.
    pub certificates: Vec<String>,
    /// With it, clients must show a certificate that an authority in this PEM file signed. Default none.
    pub client_ca: Option<PathBuf>,
    /// Key agreement, most wanted first. Default: X25519, P-256, P-384, X25519MLKEM768.
    pub curves: Vec<String>,
    /// A file to which the secrets of all connections are written. Default none.
    pub keylog: Option<PathBuf>,
}

/// `[upstream.tls]`: what is demanded of servers, and said to them.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Authorities in a PEM file. Default: those of the system.
    pub ca: Option<PathBuf>,
    /// The name of a certificate of the same file that is trusted, alone. Excludes `ca`.
    pub trust: Option<String>,
    /// Whom the servers' certificates must name. Default: the host of each server.
    pub name: Option<String>,
    /// The protocol to speak. Empty, to servers over TCP: of HTTP the version that `[upstream.http]` names, of relays none.
    pub alpn: String,
    /// The name of a certificate to show servers that ask. Default none.
    pub certificate: Option<String>,
    /// Key agreement, most wanted first. Default: X25519, P-256, P-384, X25519MLKEM768.
    pub curves: Vec<String>,
    /// A file to which the secrets of all connections are written. Default none.
    pub keylog: Option<PathBuf>,
    /// Of servers over QUIC: a folder in which each connection gets a log in the qlog format, for 256 connections of up to
    /// 4 MiB each. Needs a build with the feature `qlog`. Default none.
    pub qlog: Option<PathBuf>,
}

fn curves() -> Vec<String> {
    ["X25519", "P-256", "P-384", "X25519MLKEM768"].map(String::from).to_vec()
}

impl Default for ListenerTls {
    fn default() -> Self {
        Self { certificates: Vec::new(), client_ca: None, curves: curves(), keylog: None }
    }
}

impl UpstreamTls {
    /// This protocol, with the defaults of everything else.
    #[must_use]
    pub fn new(alpn: impl Into<String>) -> Self {
        Self {
            ca: None,
            trust: None,
            name: None,
            alpn: alpn.into(),
            certificate: None,
            curves: curves(),
            keylog: None,
            qlog: None,
        }
    }
}

/// A listener that speaks QUIC. `[listener.limits]` holds: `half_open` and `first_message` for handshakes, `idle` for
/// relayed streams.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quic {
    /// Who it is.
    pub tls: ListenerTls,
    /// What becomes of a connection, by its protocol; at least one, most wanted first.
    pub routes: Vec<Route>,
    /// How it moves bytes.
    pub settings: QuicSettings,
    /// The relay of Media over QUIC that it is, if its protocol is `moq`.
    pub moq: Option<Box<Moq>>,
}

/// `[[listener.route]]` of a QUIC listener.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The protocol by which it is chosen (ALPN), 1 to 255 bytes, each once.
    pub alpn: String,
    /// What becomes of each stream.
    pub service: QuicService,
    /// The upstream that datagrams go to, its servers over UDP or QUIC. Default: where the streams go if that is over
    /// QUIC, else they are dropped and counted. With an echo they go back.
    pub datagrams: Option<String>,
}

/// What becomes of a stream.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuicService {
    /// Its bytes go back.
    Echo,
    /// It is joined to a connection to a server of this upstream.
    Upstream(String),
    /// It is given up: this route is for datagrams.
    Nothing,
    /// It belongs to a session of Media over QUIC.
    Moq,
}

/// `[listener.quic]`: how QUIC moves bytes.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicSettings {
    /// Silence after which a connection is gone, 1 s to 1 d. Default 30 s.
    pub idle_timeout: Duration,
    /// Streams in both directions that a peer may have open, 1 to 100 000. Default 100.
    pub streams: usize,
    /// Streams in one direction that a peer may have open, 0 to 100 000. Default 100.
    pub uni_streams: usize,
    /// Bytes of one stream that may wait to be read. Default 4 MiB.
    pub stream_window: usize,
    /// Bytes of all streams of a connection that may wait to be read. Default 16 MiB.
    pub connection_window: usize,
    /// Congestion control. Default CUBIC.
    pub congestion: Congestion,
    /// When clients must prove their address first. Default when many handshakes are open.
    pub retry: Retry,
    /// A file with a secret of at least 32 bytes, from which keys of Retry tokens and stateless resets are made, so
    /// that they hold across restarts. Default: random keys.
    pub secret_file: Option<PathBuf>,
    /// Whether clients may move to another address on purpose; a rebinding NAT always may. Default `true`.
    pub migration: bool,
    /// Bytes of the largest datagram sent, 1,200 to 65,000. Default 1,350.
    pub max_datagram: usize,
    /// Whether larger datagrams than 1,200 bytes are tried before they are used. Default `false`.
    pub mtu_discovery: bool,
    /// Whether trains of datagrams are handed to the kernel in one call. Default `true`.
    pub gso: bool,
    /// Whether the kernel steers datagrams to arbiters. Default `true`.
    pub steer: bool,
    /// Bytes of each socket's receive buffer, and of its send buffer. Default 4 MiB.
    pub socket_buffer: usize,
    /// A folder in which each connection gets a log in the qlog format, for 256 connections of up to 4 MiB each. Needs a
    /// build with the feature `qlog`. Default none.
    pub qlog: Option<PathBuf>,
}

impl Default for QuicSettings {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(30),
            streams: 100,
            uni_streams: 100,
            stream_window: 4 * MIB,
            connection_window: 16 * MIB,
            congestion: Congestion::default(),
            retry: Retry::default(),
            secret_file: None,
            migration: true,
            max_datagram: 1_350,
            mtu_discovery: false,
            gso: true,
            steer: true,
            socket_buffer: 4 * MIB,
            qlog: None,
        }
    }
}

/// Congestion control.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// RFC 9438.
    #[default]
    Cubic,
    /// BBR version 2: by measured rate and round trip.
    Bbr2,
}

/// When clients must prove their address before a connection is made.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// When many handshakes are open.
    #[default]
    Auto,
    /// Each time: one more round trip.
    Always,
    /// Not at all.
    Never,
}
