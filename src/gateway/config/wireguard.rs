//! `[listener.wireguard]`, checked: an interface, its peers and what it serves inside.
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::{Framed, Relay};
use crate::transports::wireguard::uapi::FOLDER;
use crate::transports::wireguard::{DEFAULT_MTU, Network, PeerSettings, PeerToPeer, SecretKey};

/// `[listener.wireguard]`.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub struct Wireguard {
    /// The private key.
    pub key: Key,
    /// Our addresses inside, with their networks: at least one, at most eight.
    pub addresses: Vec<(IpAddr, Network)>,
    /// The largest packet inside, 576 to 9,000. Default 1,420.
    pub mtu: u16,
    /// What is inside. Default `auto`.
    pub mode: Mode,
    /// Which threads carry it. Default `auto`.
    pub threading: ThreadingMode,
    /// Whether peers reach each other through this interface. Default `deny`.
    pub peer_to_peer: PeerToPeer,
    /// Handshakes per second, of all sources together, before each source has to prove its address. Default 1,024.
    pub handshakes: u64,
    /// Whether trains of datagrams leave in one system call where the system can. Default `true`.
    pub gso: bool,
    /// Mode `tun`: whether what leaves by another interface gets that one's address. Default `false`.
    pub masquerade: bool,
    /// Super-packets on the interface, in modes `private` and `tun`. Default `auto`.
    pub offload: Offload,
    /// The congestion control of TCP in a private network, by the kernel's word for it. Default: the system's.
    pub congestion: Option<String>,
    /// The node by which TUN interfaces are made. Default `/dev/net/tun`.
    pub tun_node: PathBuf,
    /// The folder of the socket by which `wg` sees and changes the interface; none: there is no socket. Default
    /// `/var/run/wireguard`, where `wg` looks.
    pub uapi: Option<PathBuf>,
    /// Networks to which connections and datagrams of peers are forwarded, by sockets of this machine. Default none.
    pub forward: Vec<Network>,
    /// Who may connect.
    pub peers: Vec<Peer>,
    /// What peers find inside.
    pub services: Vec<InsideService>,
    /// What somebody should look at: key files that others can read, words of a wg-quick file that are not obeyed.
    pub warnings: Vec<String>,
}

/// Where a private key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// From a file.
    Given(SecretKey),
    /// Made when the interface starts; peers learn it from the log, and have to again after a restart.
    Generated,
}

/// What is inside a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// A private network if this host allows one, else a netstack.
    #[default]
    Auto,
    /// A network namespace of this process's own, without root.
    Private,
    /// A TCP stack in this process.
    Netstack,
    /// An interface of the host, which needs CAP_NET_ADMIN.
    Tun,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Private => "private",
            Self::Netstack => "netstack",
            Self::Tun => "tun",
        })
    }
}

/// Super-packets on a TUN interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// As far as the kernel has them.
    #[default]
    Auto,
    /// TCP only, for kernels that mistreat those of UDP.
    Tcp,
    /// One packet at a time.
    Off,
}

/// Which threads carry an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThreadingMode {
    /// One arbiter with up to two cores, else three or more.
    #[default]
    Auto,
    /// One arbiter.
    Single,
    /// Receiving, cryptography and sending on arbiters of their own.
    Pipeline,
}

/// `[[listener.wireguard.peer]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Keys, networks, limits.
    pub settings: PeerSettings,
    /// An endpoint whose host is a name: looked up when the interface starts, and every minute.
    pub endpoint_name: Option<(String, u16)>,
}

/// `[[listener.wireguard.service]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsideService {
    /// One of the interface's addresses, and a port.
    pub listen: SocketAddr,
    /// What is spoken there.
    pub speaks: Speaks,
}

/// What a service inside a tunnel speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaks {
    /// Length-prefixed messages.
    Framed(Framed),
    /// Byte streams, handed to a server of an upstream.
    Relay(Relay),
    /// HTTP/1.1 and HTTP/2, by routes of its own.
    #[cfg(feature = "http")]
    Http(Box<super::Http>),
    /// Datagrams, handed to a server of this upstream over UDP.
    Udp(String),
}

impl Default for Wireguard {
    fn default() -> Self {
        Self {
            key: Key::Generated,
            addresses: Vec::new(),
            mtu: DEFAULT_MTU,
            mode: Mode::default(),
            threading: ThreadingMode::default(),
            peer_to_peer: PeerToPeer::default(),
            handshakes: 1_024,
            gso: true,
            masquerade: false,
            offload: Offload::default(),
            congestion: None,
            tun_node: crate::gateway::tunnels::kernel::default_node(),
            uapi: Some(PathBuf::from(FOLDER)),
            forward: Vec::new(),
            peers: Vec::new(),
            services: Vec::new(),
            warnings: Vec::new(),
        }
    }
}
