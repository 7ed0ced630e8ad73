//! The words of the [`Balancer`](super::balance::Balancer): what it is told, and what it answers.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
    /// A QUIC endpoint.
    Quic {
        /// Its UDP address.
        address: SocketAddr,
        /// Whom its certificate must name.
        name: Arc<str>,
    },
    /// A UDP address that takes datagrams.
    Udp(SocketAddr),
    /// A TCP address behind which TLS is spoken.
    Tls {
        /// The address.
        address: SocketAddr,
        /// Whom its certificate must name.
        name: Arc<str>,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Tls { address, .. } => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Quic { address, .. } => write!(f, "quic://{address}"),
            Self::Udp(address) => write!(f, "udp://{address}"),
        }
    }
}

/// How a server is chosen among those that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest connections; by turns where several have as few. Looks at every server.
    LeastConnections,
    /// Of two picked at random, the one with fewer connections (two choices: Mitzenmacher, 2001).
    RandomOfTwo,
    /// The same for each source, as long as it may be picked (rendezvous hashing: Thaler and Ravishankar, 1998). When a
    /// server goes, only its own sources get others; the same in every process. See [`Balancer::seed`](super::balance::Balancer::seed).
    Source,
}

/// What a balancer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceSettings {
    /// How a server is chosen. Default round robin.
    pub policy: Policy,
    /// Connections at once per server. Default 10 000.
    pub max_connections: usize,
    /// Failures in a row after which a server is ejected; 0 = never. Default 3.
    pub eject_after: u32,
    /// How long the first time; each further ejection doubles it, up to ten times this. The count starts anew when a
    /// server succeeds after having been back for as long as it was out. Default 10 s.
    pub eject_for: Duration,
    /// Percent of the servers that stay whatever fails: at most the others are ejected at once, rounded down, so one
    /// server alone never is. Default 50.
    pub keep: u8,
    /// How long a server that has come, or come back, gets less than its share: from a tenth of it at first to all of it
    /// at the end. Not with [`Policy::Source`], which is not to move sources twice. Zero: all at once. Default zero.
    pub slow_start: Duration,
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            policy: Policy::RoundRobin,
            max_connections: 10_000,
            eject_after: 3,
            eject_for: Duration::from_secs(10),
            keep: 50,
            slow_start: Duration::ZERO,
        }
    }
}

/// A server of one balancer, for as long as the balancer lives; never given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub(super) u64);

/// Why there is no server for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoServer {
    /// The upstream has no servers: names have not been resolved.
    Empty,
    /// Every server has been tried by this connection.
    AllTried,
    /// Every server that was not tried is ejected or was found down.
    AllEjected,
    /// Every server that could be used has as many connections as it may.
    Full,
}

impl NoServer {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Empty => "no_servers",
            Self::AllTried => "all_tried",
            Self::AllEjected => "all_ejected",
            Self::Full => "all_full",
        }
    }
}

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for NoServer {}

/// One server at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerView {
    /// Which one.
    pub id: ServerId,
    /// Where it listens.
    pub address: Address,
    /// Connections it has from us.
    pub connections: usize,
    /// What the active checks found last; `true` without checks.
    pub healthy: bool,
    /// Failures in a row.
    pub failures: u32,
    /// How long it stays ejected, if it is.
    pub ejected: Option<Duration>,
}
