//! What a QUIC server or client can be told, with the defaults and what they cost.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boring::ssl::SslContextBuilder;

use super::actor_engine::SharedBytes;
use super::codec::{CID_LEN, MAX_CID_LEN, MIN_CLIENT_DCID};
use super::codec_token::Secrets;
use super::state_admission::Limits;
use super::state_datagrams::DatagramLimits;
use crate::memory::{Budget, Secret};
use crate::transports::tls;

/// Which congestion control is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// CUBIC, paced by us.
    #[default]
    Cubic,
    /// Reno, paced by us.
    Reno,
    /// BBR version 2, which paces itself.
    Bbr2,
}

/// What both ends of a connection have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// A connection without a packet from the peer for this long ends. Default 30 s; zero: never.
    pub idle_timeout: Duration,
    /// A handshake that takes longer ends. Default 10 s.
    pub handshake_timeout: Duration,
    /// How often a quiet connection says that it lives; oftener where the idle timeout of either end asks for it. Default
    /// never.
    pub keep_alive: Option<Duration>,
    /// A peer that acknowledges nothing for this long, though asked, is dropped. Default 60 s.
    pub acknowledge_within: Duration,
    /// Bidirectional streams the peer may have open at once. Default 128.
    pub bidirectional: u64,
    /// Unidirectional streams the peer may have open at once. Default 128.
    pub unidirectional: u64,
    /// Bytes the peer may send on a stream before they are read, to begin with. Default 256 KiB.
    pub stream_window: u64,
    /// To how many they grow while they are read fast. Default 4 MiB.
    pub stream_window_max: u64,
    /// Bytes the peer may send on all streams before they are read, to begin with. Default 1 MiB.
    pub window: u64,
    /// To how many they grow. Default 16 MiB: this many a connection may hold while its application does not read.
    pub window_max: u64,
    /// Bytes that may wait to be sent on one stream. Default 256 KiB.
    pub stream_credit: usize,
    /// Bytes that may wait to be sent on all streams of a connection. Default 4 MiB.
    pub credit: usize,
    /// Datagrams that may wait to be sent.
    pub datagrams: DatagramLimits,
    /// Datagrams that may wait to be read; the oldest are dropped, and counted. Zero: none are taken. Default 256.
    pub datagrams_in: usize,
    /// Congestion control. Default CUBIC.
    pub congestion: Congestion,
    /// Packets of the first congestion window. Default 10.
    pub initial_window: usize,
    /// Whether CUBIC and Reno are spread over the round-trip time. Default yes.
    pub pacing: bool,
    /// Bytes of a UDP payload to begin with, 1,200 to 65,000. Default 1,350.
    pub datagram_size: usize,
    /// Whether to look for larger ones; the upper bound is `datagram_size`. Default no.
    pub discover_mtu: bool,
    /// Whether the peer may move to another address on purpose. Default yes.
    pub migration: bool,
    /// Packets that may wait for one connection, in bytes; more are dropped, counted, and sent again by the peer.
    /// Default 1 MiB.
    pub inbox: usize,
    /// Bytes of the kernel's buffers to ask for. Default 4 MiB.
    pub socket_buffer: usize,
    /// Whether trains of datagrams are handed to the kernel in one call. Default yes.
    pub gso: bool,
    /// Where each connection is logged. Default nowhere.
    #[cfg(feature = "qlog")]
    pub qlog: Option<super::Qlog>,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: None,
            acknowledge_within: Duration::from_secs(60),
            bidirectional: 128,
            unidirectional: 128,
            stream_window: 256 << 10,
            stream_window_max: 4 << 20,
            window: 1 << 20,
            window_max: 16 << 20,
            stream_credit: 256 << 10,
            credit: 4 << 20,
            datagrams: DatagramLimits::default(),
            datagrams_in: 256,
            congestion: Congestion::Cubic,
            initial_window: 10,
            pacing: true,
            datagram_size: 1_350,
            discover_mtu: false,
            migration: true,
            inbox: 1 << 20,
            socket_buffer: 4 << 20,
            gso: true,
            #[cfg(feature = "qlog")]
            qlog: None,
        }
    }
}

/// What a server is told.
#[derive(Clone)]
pub struct ServerSettings {
    /// The scope of its counters and the name of its actors.
    pub name: Arc<str>,
    /// Where it listens; port 0: one of the kernel's choice.
    pub listen: SocketAddr,
    /// Its certificates and what belongs to them; the ALPN it speaks is a part of it.
    pub tls: Arc<tls::ServerSettings>,
    /// What a connection may do.
    pub transport: Transport,
    /// Who may begin one, on each arbiter.
    pub limits: Limits,
    /// Whether the kernel is asked to hand each datagram to its arbiter. Default yes; without, they are forwarded.
    pub steer: bool,
    /// The secret of Retry tokens and stateless resets. With one, both survive a restart; without, random.
    pub secret: Option<Secret>,
    /// How long a client has to come back with a Retry token. Default 30 s.
    pub retry_life: Duration,
    /// Connections that may wait to be accepted; more are closed, and counted. Default 1,024.
    pub backlog: usize,
    /// What connections lease of, for bytes that wait to be sent. Default none: each has its credit.
    pub budget: Option<Budget>,
}

impl ServerSettings {
    /// A server with all defaults.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, listen: SocketAddr, tls: Arc<tls::ServerSettings>) -> Self {
        Self {
            name: name.into(),
            listen,
            tls,
            transport: Transport::default(),
            limits: Limits::default(),
            steer: true,
            secret: None,
            retry_life: Duration::from_secs(30),
            backlog: 1_024,
            budget: None,
        }
    }
}

/// What new connections of a server begin with: replaced as a whole, on all arbiters or on none.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) generation: u64,
    pub(super) tls: Arc<tls::ServerSettings>,
    pub(super) transport: Arc<Transport>,
    pub(super) limits: Limits,
    pub(super) retry_life: Duration,
    /// From what `secrets` were made, if it was configured.
    pub(super) secret: Option<Secret>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) log: Option<super::actor_qlog::Log>,
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSettings").field("name", &self.name).field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// What a client is told.
#[derive(Clone)]
pub struct ClientSettings {
    /// The scope of its counters and the name of its actors.
    pub name: Arc<str>,
    /// The IPv4 address its sockets are bound to; port 0, since there is one for each arbiter.
    pub local_v4: Option<SocketAddr>,
    /// The IPv6 address its sockets are bound to.
    pub local_v6: Option<SocketAddr>,
    /// What a connection may do.
    pub transport: Transport,
    /// Connections at once, on each arbiter. Default 100,000.
    pub connections: usize,
    /// What connections lease of, for bytes that wait to be sent. Default none: each has its credit.
    pub budget: Option<Budget>,
}

impl ClientSettings {
    /// A client with all defaults.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            local_v4: Some(SocketAddr::from(([0, 0, 0, 0], 0))),
            local_v6: Some(SocketAddr::from(([0_u16; 8], 0))),
            transport: Transport::default(),
            connections: 100_000,
            budget: None,
        }
    }
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSettings").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Transport {
    /// Whether QUIC can be configured with this: tried with the longest transport parameters there can be.
    pub(super) fn check(&self, tls: SslContextBuilder) -> quiche::Result<()> {
        let mut config = self.config(tls)?;
        config.set_stateless_reset_token(Some(0));
        let (ours, theirs) = ([0; CID_LEN], [0; MAX_CID_LEN]);
        let retry = quiche::RetryConnectionIds {
            original_destination_cid: &quiche::ConnectionId::from_ref(&theirs),
            retry_source_cid: &quiche::ConnectionId::from_ref(&[0; MIN_CLIENT_DCID]),
        };
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let ours = quiche::ConnectionId::from_ref(&ours);
        quiche::accept_with_retry::<SharedBytes>(&ours, retry, nobody, nobody, &mut config).map(drop)
    }

    /// QUIC's own configuration, around a TLS context. Numbers beyond 2³⁰ are taken as that: all transport parameters
    /// together must fit into the 128 bytes that quiche has for them, and it panics above 2⁶².
    pub(super) fn config(&self, tls: SslContextBuilder) -> quiche::Result<quiche::Config> {
        let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)?;
        let number = |number: u64| number.min(LARGEST);
        config.set_max_idle_timeout(u64::try_from(self.idle_timeout.as_millis()).map_or(LARGEST, number));
        // Not said: then it is 65,527 (RFC 9000, section 18.2). With discovery it is said, because quiche takes the
        // number for the upper bound of what it tries itself; this one is the largest that two bytes hold.
        config.set_max_recv_udp_payload_size(if self.discover_mtu { DISCOVERED } else { 0 });
        config.set_max_send_udp_payload_size(self.datagram_size.clamp(1_200, 65_000));
        config.set_initial_max_data(number(self.window));
        config.set_initial_max_stream_data_bidi_local(number(self.stream_window));
        config.set_initial_max_stream_data_bidi_remote(number(self.stream_window));
        config.set_initial_max_stream_data_uni(number(self.stream_window));
        config.set_max_connection_window(self.window_max.max(self.window));
        config.set_max_stream_window(self.stream_window_max.max(self.stream_window));
        config.set_initial_max_streams_bidi(number(self.bidirectional));
        config.set_initial_max_streams_uni(number(self.unidirectional));
        config.set_active_connection_id_limit(PATHS as u64);
        config.set_disable_active_migration(!self.migration);
        config.set_cc_algorithm(match self.congestion {
            Congestion::Cubic => quiche::CongestionControlAlgorithm::CUBIC,
            Congestion::Reno => quiche::CongestionControlAlgorithm::Reno,
            Congestion::Bbr2 => quiche::CongestionControlAlgorithm::Bbr2Gcongestion,
        });
        config.set_initial_congestion_window_packets(self.initial_window);
        config.enable_pacing(self.congestion == Congestion::Bbr2);
        config.discover_pmtu(self.discover_mtu);
        config.set_enable_send_streams_blocked(true);
        // Its own queue is kept short, so that what is late can still be dropped here.
        config.enable_dgram(self.datagrams_in > 0, self.datagrams_in.max(1), QUICHE_DATAGRAMS);
        Ok(config)
    }
}

/// Paths of one connection, in use and of before, and ids of the peer: quiche has one number for both.
pub(super) const PATHS: usize = 8;

/// The largest datagram that discovery finds.
const DISCOVERED: usize = (1 << 14) - 1;

/// The largest transport parameter: four bytes hold it (RFC 9000, section 16).
const LARGEST: u64 = (1 << 30) - 1;

/// Datagrams handed to QUIC at once.
pub(super) const QUICHE_DATAGRAMS: usize = 16;
