//! Sockets that the service manager has opened and passed on (sd_listen_fds(3), `portway.socket` in systemd's words).
//!
//! A listener on TCP, the admin listener or a tunnel takes the one whose address is its own instead of binding it. The
//! service manager goes on holding it, so it is never shut down, only let go of: whoever connects while no gateway runs
//! waits in the kernel's queue for the next one. Ports on UDP that arbiters share (QUIC, HTTP/3, `udp`) are bound by the
//! gateway itself, since each arbiter has a socket of its own there. What nobody takes is closed, with a warning.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use super::config::{Config, Protocol};
use crate::transports::tcp::Listening;

/// What was passed. A clone holds the same sockets.
#[derive(Debug, Clone, Default)]
pub(super) struct Passed {
    tcp: Arc<Vec<(SocketAddr, Arc<TcpListener>)>>,
    udp: Arc<Vec<(SocketAddr, UdpSocket)>>,
    /// What is wrong with others, for the log.
    unfit: Arc<Vec<String>>,
}

impl Passed {
    /// What stands in the environment, which is cleared of it. Once, while the process has one thread.
    pub(super) fn from_environment() -> Self {
        let mut fds = ListenFd::from_env();
        let (mut tcp, mut udp, mut unfit) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..fds.len() {
            // What is no socket of TCP is left in its place.
            if let Ok(Some(socket)) = fds.take_tcp_listener(number) {
                let listens = socket_acceptconn(&socket).unwrap_or(false);
                match socket.local_addr().and_then(|at| socket.set_nonblocking(true).map(|()| at)) {
                    Ok(at) if listens => tcp.push((at, Arc::new(socket))),
                    Ok(at) => unfit.push(format!("{at}: it does not listen (`Accept=no` is needed)")),
                    Err(error) => unfit.push(format!("number {number}: {error}")),
                }
            } else if let Ok(Some(socket)) = fds.take_udp_socket(number) {
                match socket.local_addr().and_then(|at| socket.set_nonblocking(true).map(|()| at)) {
                    Ok(at) => udp.push((at, socket)),
                    Err(error) => unfit.push(format!("number {number}: {error}")),
                }
            } else {
                unfit.push(format!("number {number}: no socket of TCP or UDP"));
            }
        }
        Self { tcp: Arc::new(tcp), udp: Arc::new(udp), unfit: Arc::new(unfit) }
    }

    /// Those that something of this configuration takes; the others are closed.
    pub(super) fn kept_for(self, config: &Config) -> Self {
        self.unfit.iter().for_each(|what| tracing::warn!(%what, "a socket was passed that cannot be used"));
        let of = |wanted: &dyn Fn(&Protocol) -> bool| {
            let listeners = config.listeners.iter().filter(|listener| wanted(&listener.protocol));
            listeners.map(|listener| listener.listen).collect::<Vec<_>>()
        };
        let (mut tcp, udp) = (of(&is_tcp), of(&is_tunnel));
        tcp.extend(config.admin.as_ref().map(|admin| admin.listen));
        let keeps = |known: &[SocketAddr], kind: &str, address: SocketAddr| {
            let keeps = known.contains(&address);
            if !keeps {
                tracing::warn!(%address, kind, "a socket was passed that no listener takes");
            }
            keeps
        };
        Self {
            tcp: Arc::new(self.tcp.iter().filter(|(at, _)| keeps(&tcp, "TCP", *at)).cloned().collect()),
            udp: Arc::new(
                self.udp
                    .iter()
                    .filter(|(at, _)| keeps(&udp, "UDP", *at))
                    .filter_map(|(at, socket)| Some((*at, socket.try_clone().ok()?)))
                    .collect(),
            ),
            unfit: Arc::default(),
        }
    }

    /// The listening socket on this address.
    pub(super) fn tcp(&self, address: SocketAddr) -> Option<Arc<TcpListener>> {
        self.tcp.iter().find(|(at, _)| *at == address).map(|(_, socket)| socket.clone())
    }

    /// The UDP socket on this address.
    #[cfg(feature = "wireguard")]
    pub(super) fn udp(&self, address: SocketAddr) -> Option<UdpSocket> {
        self.udp.iter().find(|(at, _)| *at == address).and_then(|(_, socket)| socket.try_clone().ok())
    }

    /// The socket, with whether others hold it too.
    pub(super) fn listening(&self, socket: Arc<TcpListener>) -> Listening {
        if self.holds(&socket) { Listening::lent(socket) } else { socket.into() }
    }

    /// Whether a socket was passed.
    pub(super) fn holds(&self, socket: &Arc<TcpListener>) -> bool {
        self.tcp.iter().any(|(_, passed)| Arc::ptr_eq(passed, socket))
    }
}

const fn is_tcp(protocol: &Protocol) -> bool {
    match protocol {
        Protocol::Framed(_) | Protocol::Relay(_) | Protocol::Custom { .. } => true,
        #[cfg(feature = "http")]
        Protocol::Http(_) => true,
        Protocol::Quic(_) | Protocol::Udp(_) => false,
        #[cfg(feature = "wireguard")]
        Protocol::Wireguard(_) => false,
    }
}

const fn is_tunnel(protocol: &Protocol) -> bool {
    match protocol {
        #[cfg(feature = "wireguard")]
        Protocol::Wireguard(_) => true,
        #[cfg(feature = "http")]
        Protocol::Http(_) => false,
        Protocol::Framed(_) | Protocol::Relay(_) | Protocol::Custom { .. } | Protocol::Quic(_) | Protocol::Udp(_) => {
            false
        }
    }
}
