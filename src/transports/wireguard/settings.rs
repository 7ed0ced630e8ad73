//! What an interface and its peers are told: keys, networks, limits. Plain data; a checked configuration fills it in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::codec_keys::{PublicKey, SecretKey};
use super::engine::Rules;
use super::state_limits::PeerLimit;
use crate::transports::kit::routes::Network;

/// The MTU that fits every path of 1,500 bytes, with IPv6 outside.
pub const DEFAULT_MTU: u16 = 1420;

/// Whether packets of one peer may go to another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerToPeer {
    /// They are dropped and counted.
    #[default]
    Deny,
    /// They go from session to session, with their hop limit lowered.
    Direct,
}

/// Which arbiters carry an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Threading {
    /// One carries all of it: the socket, the sessions, what is inside.
    Single {
        /// Its number.
        arbiter: usize,
    },
    /// Receiving, cryptography and sending have arbiters of their own. A session stays on one of those for
    /// cryptography, so packets of a peer stay in order.
    Pipeline {
        /// Where the socket is read and handshakes are judged.
        rx: usize,
        /// Where sessions live, each on the one that has the fewest; at least one.
        crypto: Vec<usize>,
        /// Where datagrams are sent.
        tx: usize,
    },
}

impl Threading {
    pub(super) const fn rx(&self) -> usize {
        match self {
            Self::Single { arbiter } => *arbiter,
            Self::Pipeline { rx, .. } => *rx,
        }
    }

    pub(super) const fn tx(&self) -> usize {
        match self {
            Self::Single { arbiter } => *arbiter,
            Self::Pipeline { tx, .. } => *tx,
        }
    }

    pub(super) fn crypto(&self) -> &[usize] {
        match self {
            Self::Single { arbiter } => std::slice::from_ref(arbiter),
            Self::Pipeline { crypto, .. } => crypto,
        }
    }
}

/// An interface.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The scope of its counters.
    pub name: Arc<str>,
    /// Its private key.
    pub secret: SecretKey,
    /// Its own addresses inside, with their networks: packets to these are never for a peer.
    pub addresses: Vec<(IpAddr, Network)>,
    /// The largest inner packet, 576 to 65,455.
    pub mtu: u16,
    /// Whether peers reach each other.
    pub peer_to_peer: PeerToPeer,
    /// Limits of sessions.
    pub rules: Rules,
    /// Handshakes per second before cookies are asked for, over all sources. Default 1,024.
    pub handshakes: u64,
    /// Handshakes per second of one source (an IPv4 address, an IPv6 /64). Default 12, and as many at once: fewer than
    /// its share of all, so that one source cannot bring others under cookies.
    pub handshakes_per_source: u64,
    /// Which arbiters carry it.
    pub threading: Threading,
    /// Whether trains of datagrams leave in one system call where the system can. Default true.
    pub gso: bool,
}

impl Settings {
    /// An interface on one arbiter, with the defaults of everything else.
    #[must_use]
    pub fn new(name: &str, secret: SecretKey) -> Self {
        Self {
            name: Arc::from(name),
            secret,
            addresses: Vec::new(),
            mtu: DEFAULT_MTU,
            peer_to_peer: PeerToPeer::default(),
            rules: Rules::default(),
            handshakes: 1_024,
            handshakes_per_source: 12,
            threading: Threading::Single { arbiter: 0 },
            gso: true,
        }
    }
}

/// A peer of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// What people call it; a label of metrics where the configuration asks for it.
    pub name: Option<Arc<str>>,
    /// Who it is.
    pub public_key: PublicKey,
    /// The key both have beside.
    pub preshared_key: Option<SecretKey>,
    /// From where it may send, and what is sent to it. A network belongs to one peer: the last that names it.
    pub allowed: Vec<Network>,
    /// Where it is, before it has said so itself.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; `None`: only as the protocol needs them.
    pub keepalive: Option<u16>,
    /// What it may send.
    pub limit_in: PeerLimit,
    /// What may be sent to it.
    pub limit_out: PeerLimit,
    /// Seconds since 1970 from which on it is refused.
    pub expires: Option<u64>,
    /// Whether its bytes are counted under its name.
    pub metrics: bool,
}

impl PeerSettings {
    /// A peer that may use these networks.
    #[must_use]
    pub fn new(public_key: PublicKey, allowed: Vec<Network>) -> Self {
        Self {
            name: None,
            public_key,
            preshared_key: None,
            allowed,
            endpoint: None,
            keepalive: None,
            limit_in: PeerLimit::default(),
            limit_out: PeerLimit::default(),
            expires: None,
            metrics: false,
        }
    }

    pub(super) fn is_expired(&self, wall: u64) -> bool {
        self.expires.is_some_and(|at| wall >= at)
    }
}
