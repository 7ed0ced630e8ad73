//! The datagrams of one client's session, to a server and back: over a UDP socket, or over a QUIC connection, of its own.
//!
//! The server is chosen with the first datagram. What finds no room on the way is dropped and counted, as the network
//! would. Whoever owns it polls it in its turns.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::quic_session::Target;
use crate::actors::{Counter, Driver};
use crate::transports::kit::balance::{Address, Picked};
use crate::transports::quic::{Closed, ConnectError, Connection, Datagram, DatagramError};

/// Datagrams of a server handled in one turn, at most.
const DATAGRAMS: usize = 64;
/// The longest datagram of a server that is read whole; a longer one is cut, and then too long for any path.
pub(super) const LONGEST: usize = 65_535;

type Work<T> = Pin<Box<dyn Future<Output = T>>>;

/// See the top of the file.
#[derive(Default)]
pub(super) struct Datagrams {
    to: To,
    counts: Counts,
}

/// Where datagrams go.
#[derive(Default)]
enum To {
    /// Nothing was chosen yet.
    #[default]
    Nobody,
    /// A socket of its own, and the place at the server.
    Udp { socket: UdpSocket, _place: Picked },
    /// Until it is there, datagrams are dropped.
    Connecting { picked: Picked, work: Work<Result<Connection, ConnectError>> },
    /// A connection of its own, and the place at the server.
    Quic { server: Connection, work: Work<Result<Vec<Bytes>, Closed>>, place: Picked },
}

#[derive(Default)]
struct Counts {
    up: Counter,
    down: Counter,
    no_server: Counter,
    full: Counter,
    too_large: Counter,
}

impl fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.to {
            To::Nobody => "Nobody",
            To::Udp { .. } => "Udp",
            To::Connecting { .. } => "Connecting",
            To::Quic { .. } => "Quic",
        })
    }
}

/// What became of a datagram to the client.
pub(super) enum Cast {
    Sent,
    TooLarge,
    Full,
}

impl From<Result<(), DatagramError>> for Cast {
    fn from(cast: Result<(), DatagramError>) -> Self {
        match cast {
            Ok(()) => Self::Sent,
            Err(DatagramError::TooLarge { .. }) => Self::TooLarge,
            Err(_) => Self::Full,
        }
    }
}

impl Datagrams {
    /// With the counters of this listener on this arbiter.
    pub(super) fn new(listener: &Arc<str>) -> Self {
        let driver = Driver::default();
        let relayed = |way| driver.counter("quic_datagrams_relayed", listener, way);
        let dropped = |reason| driver.counter("quic_datagrams_unrelayed", listener, reason);
        let counts = Counts {
            up: relayed("up"),
            down: relayed("down"),
            no_server: dropped("no_server"),
            full: dropped("full"),
            too_large: dropped("too_large"),
        };
        Self { to: To::Nobody, counts }
    }

    /// Passes datagrams of the client on; `from` is a random number and the client's address. True if a way was opened
    /// for them, which must be polled once to wake anybody.
    pub(super) fn up(
        &mut self,
        datagrams: impl Iterator<Item = Bytes>,
        target: &Target,
        from: (u64, IpAddr),
        now: Instant,
    ) -> bool {
        let mut opened = false;
        for datagram in datagrams {
            if matches!(self.to, To::Nobody) {
                self.choose(target, from, now);
                opened |= !matches!(self.to, To::Nobody);
            }
            match &self.to {
                To::Nobody | To::Connecting { .. } => self.counts.no_server.add(1),
                // Not by tokio, which refuses before its driver has looked at the socket once.
                To::Udp { socket, .. } => match rustix::net::send(socket, &datagram, SendFlags::empty()) {
                    Ok(_) => self.counts.up.add(1),
                    Err(Errno::AGAIN | Errno::NOBUFS) => self.counts.full.add(1),
                    Err(Errno::MSGSIZE) => self.counts.too_large.add(1),
                    // The server is not there, or was not; it is asked again with the next one.
                    Err(_) => self.counts.no_server.add(1),
                },
                To::Quic { server, .. } => {
                    self.counts.of(server.cast_datagram(Datagram::new(datagram)).into(), &self.counts.up);
                }
            }
        }
        opened
    }

    /// Picks the server that takes the datagrams.
    fn choose(&mut self, target: &Target, (random, source): (u64, IpAddr), now: Instant) {
        let Some(balancer) = &target.datagrams else { return };
        let Ok(picked) = balancer.pick(now, balancer.seed(random, source), &[]) else { return };
        match (picked.address().clone(), &target.links) {
            (Address::Udp(address), _) => match socket(address) {
                Ok(socket) => self.to = To::Udp { socket, _place: picked },
                Err(error) => tracing::debug!(%address, %error, "no socket for datagrams"),
            },
            (Address::Quic { address, name }, Some(links)) => {
                let links = links.clone();
                let work = Box::pin(async move { links.connect(address, &name).await });
                self.to = To::Connecting { picked, work };
            }
            _ => {}
        }
    }

    /// Whether datagrams are read from a socket, for which `poll` needs room for the longest.
    pub(super) const fn needs_scratch(&self) -> bool {
        matches!(self.to, To::Udp { .. })
    }

    /// Hands what servers have sent to `down`. True if there may be more at once.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        mut down: impl FnMut(Bytes) -> Cast,
    ) -> bool {
        let counts = &self.counts;
        for _ in 0..DATAGRAMS {
            match &mut self.to {
                To::Nobody => return false,
                To::Udp { socket, .. } => {
                    let mut buffer = ReadBuf::new(scratch);
                    match socket.poll_recv(cx, &mut buffer) {
                        Poll::Pending => return false,
                        Poll::Ready(Ok(())) => counts.of(down(Bytes::copy_from_slice(buffer.filled())), &counts.down),
                        // An ICMP answer to a datagram of before: the server was not there.
                        Poll::Ready(Err(_)) => counts.no_server.add(1),
                    }
                }
                To::Connecting { work, .. } => match work.as_mut().poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(server)) => {
                        let To::Connecting { picked, .. } = std::mem::take(&mut self.to) else { return false };
                        self.to = To::Quic { work: awaited(&server), server, place: picked };
                    }
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(%error, "no server for datagrams");
                        self.to = To::Nobody;
                    }
                },
                To::Quic { server, work, place } => match work.as_mut().poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(datagrams)) => {
                        *work = awaited(server);
                        datagrams.into_iter().for_each(|datagram| counts.of(down(datagram), &counts.down));
                    }
                    Poll::Ready(Err(Closed)) => {
                        tracing::debug!(server = %place.address(), "the server of datagrams is gone");
                        self.to = To::Nobody;
                    }
                },
            }
        }
        true
    }
}

impl Counts {
    fn of(&self, cast: Cast, sent: &Counter) {
        match cast {
            Cast::Sent => sent.add(1),
            Cast::TooLarge => self.too_large.add(1),
            Cast::Full => self.full.add(1),
        }
    }
}

fn awaited(server: &Connection) -> Work<Result<Vec<Bytes>, Closed>> {
    let server = server.clone();
    Box::pin(async move { server.datagrams().await })
}

fn socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let local: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = std::net::UdpSocket::bind(local)?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}
