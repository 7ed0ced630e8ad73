//! What becomes of one client's QUIC connection at a listener: a relay actor for each stream it opens, and its datagrams
//! to a server and back.
//!
//! Streams in one direction are given up: no server over TCP could take them as what they are. Datagrams go to one
//! server, chosen with the first of them; what finds no room on the way is dropped and counted, as the network would.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::actor::Relay;
use super::dial::Network;
use super::quic_links::Links;
use super::quic_wire::REFUSED;
use super::state::RelaySettings;
use crate::actors::{Counter, Fault, Place, Progress, Protocol, Spec, Turn};
use crate::transports::kit::admission::Ticket;
use crate::transports::kit::balance::{Address, Balancer, Picked};
use crate::transports::quic::{
    Closed, ConnectError, Connection, Datagram, DatagramError, Duplex, OpenError, RecvStream, SendStream,
};

/// Datagrams of a server handled in one turn, at most.
const DATAGRAMS: usize = 64;
/// The longest datagram of a server that is read whole; a longer one is cut, and then too long for any path.
const LONGEST: usize = 65_535;

/// Where the streams and datagrams of a connection go.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where each stream goes; `None`: nowhere, it is given up.
    pub streams: Option<Arc<RelaySettings>>,
    /// How servers are reached.
    pub network: Network,
    /// Where datagrams go; `None`: nowhere, they are dropped and counted.
    pub datagrams: Option<Arc<Balancer>>,
    /// The way to servers that take datagrams over QUIC.
    pub links: Option<Links>,
}

/// The actor of one client's connection. See the top of the file.
pub struct QuicSession {
    connection: Connection,
    listener: Arc<str>,
    target: Arc<Target>,
    ticket: Ticket,
    random: RandomState,
    count: u64,
    to: To,
    counts: Counts,
}

/// Where datagrams go.
enum To {
    /// Nothing was chosen yet.
    Nobody,
    /// A socket of its own, and the place at the server.
    Udp { socket: UdpSocket, _place: Picked },
    /// Until it is there, datagrams are dropped.
    Connecting(Picked),
    /// A connection of its own, and the place at the server.
    Quic { server: Connection, _place: Picked },
}

#[derive(Default)]
struct Counts {
    up: Counter,
    down: Counter,
    no_server: Counter,
    full: Counter,
    too_large: Counter,
}

impl fmt::Debug for QuicSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSession").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// What a session's own work brings.
#[derive(Debug)]
pub enum ToSession {
    /// The client opened a stream.
    Stream(Result<(SendStream, RecvStream), OpenError>),
    /// The client opened a stream in one direction.
    OneWay(Result<RecvStream, OpenError>),
    /// Datagrams of the client.
    Up(Result<Vec<Bytes>, Closed>),
    /// The server over QUIC that takes datagrams.
    Connected(Result<Connection, ConnectError>),
    /// Its datagrams.
    Down(Result<Vec<Bytes>, Closed>),
}

impl QuicSession {
    /// For a connection that was let in with this ticket. `listener` is the scope of its counters.
    #[must_use]
    pub fn new(connection: Connection, listener: Arc<str>, target: Arc<Target>, ticket: Ticket) -> Self {
        Self {
            connection,
            listener,
            target,
            ticket,
            random: RandomState::new(),
            count: 0,
            to: To::Nobody,
            counts: Counts::default(),
        }
    }

    fn wait_for_stream(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let connection = self.connection.clone();
        let work = async move { connection.accept().await };
        turn.job(work, |found| ToSession::Stream(found.unwrap_or(Err(OpenError::Closed)))).map_err(|_| no_room())
    }

    fn wait_for_one_way(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let connection = self.connection.clone();
        let work = async move { connection.accept_uni().await };
        turn.job(work, |found| ToSession::OneWay(found.unwrap_or(Err(OpenError::Closed)))).map_err(|_| no_room())
    }

    fn wait_for_datagrams(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let connection = self.connection.clone();
        let work = async move { connection.datagrams().await };
        turn.job(work, |found| ToSession::Up(found.unwrap_or(Err(Closed)))).map_err(|_| no_room())
    }

    fn relay(&mut self, send: SendStream, receive: RecvStream, turn: &Turn<'_, ToSession>) {
        let stream = Duplex::new(send, receive);
        let Some(settings) = self.target.streams.clone() else {
            stream.abort(REFUSED);
            turn.counter("quic_streams_refused", &self.listener, "no_upstream").add(1);
            return;
        };
        self.count += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count);
        let random = hasher.finish();
        let (listener, network, peer) = (self.listener.clone(), self.target.network.clone(), self.connection.peer());
        let make = move || Relay::stream(stream, peer, network, listener, settings, random);
        // With the actor the stream is dropped, and the client's end of it.
        if turn.spawn(Place::On(turn.arbiter()), Spec::default(), make).is_err() {
            turn.counter("quic_streams_refused", &self.listener, "closing").add(1);
        }
    }

    fn up(&mut self, datagrams: Vec<Bytes>, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        if matches!(self.to, To::Nobody) {
            self.choose(turn)?;
        }
        for datagram in datagrams {
            match &self.to {
                To::Nobody | To::Connecting(_) => self.counts.no_server.add(1),
                // Not by tokio, which refuses before its driver has looked at the socket once.
                To::Udp { socket, .. } => match rustix::net::send(socket, &datagram, SendFlags::empty()) {
                    Ok(_) => self.counts.up.add(1),
                    Err(Errno::AGAIN | Errno::NOBUFS) => self.counts.full.add(1),
                    Err(Errno::MSGSIZE) => self.counts.too_large.add(1),
                    // The server is not there, or was not; it is asked again with the next one.
                    Err(_) => self.counts.no_server.add(1),
                },
                To::Quic { server, .. } => self.cast(server, datagram, &self.counts.up),
            }
        }
        Ok(())
    }

    fn cast(&self, to: &Connection, datagram: Bytes, count: &Counter) {
        match to.cast_datagram(Datagram::new(datagram)) {
            Ok(()) => count.add(1),
            Err(DatagramError::TooLarge { .. }) => self.counts.too_large.add(1),
            Err(_) => self.counts.full.add(1),
        }
    }

    /// Picks the server that takes the datagrams.
    fn choose(&mut self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let Some(balancer) = &self.target.datagrams else { return Ok(()) };
        let random = balancer.seed(self.random.build_hasher().finish(), self.connection.peer().ip());
        let Ok(picked) = balancer.pick(turn.now(), random, &[]) else { return Ok(()) };
        match (picked.address().clone(), &self.target.links) {
            (Address::Udp(address), _) => match socket(address) {
                Ok(socket) => {
                    self.to = To::Udp { socket, _place: picked };
                    // The socket wakes nobody before it was polled once.
                    turn.again();
                }
                Err(error) => tracing::debug!(%address, %error, "no socket for datagrams"),
            },
            (Address::Quic { address, name }, Some(links)) => {
                let links = links.clone();
                let work = async move { links.connect(address, &name).await };
                self.to = To::Connecting(picked);
                turn.job(work, |made| ToSession::Connected(made.unwrap_or(Err(ConnectError::Closed))))
                    .map_err(|_| no_room())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn wait_for_server(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let To::Quic { server, .. } = &self.to else { return Ok(()) };
        let connection = server.clone();
        let work = async move { connection.datagrams().await };
        turn.job(work, |found| ToSession::Down(found.unwrap_or(Err(Closed)))).map_err(|_| no_room())
    }

    /// The connection has ended, or takes no new streams: what it has goes on without this actor.
    fn over(&self, turn: &mut Turn<'_, ToSession>) {
        turn.stop();
    }
}

fn no_room() -> Fault {
    Fault::bug("no_room", "a session has no room for its own work")
}

fn socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let local: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = std::net::UdpSocket::bind(local)?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

impl Protocol for QuicSession {
    type Msg = ToSession;
    const KIND: &'static str = "quic_session";

    fn started(&mut self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        self.ticket.complete();
        let dropped = |reason| turn.counter("quic_datagrams_unrelayed", &self.listener, reason);
        self.counts = Counts {
            up: turn.counter("quic_datagrams_relayed", &self.listener, "up"),
            down: turn.counter("quic_datagrams_relayed", &self.listener, "down"),
            no_server: dropped("no_server"),
            full: dropped("full"),
            too_large: dropped("too_large"),
        };
        self.wait_for_stream(turn)?;
        self.wait_for_one_way(turn)?;
        self.wait_for_datagrams(turn)
    }

    fn on(&mut self, m: ToSession, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        match m {
            ToSession::Stream(Ok((send, receive))) => {
                self.relay(send, receive, turn);
                self.wait_for_stream(turn)
            }
            ToSession::OneWay(Ok(stream)) => {
                // Dropping its handle tells the client that nobody wants it.
                drop(stream);
                turn.counter("quic_streams_refused", &self.listener, "one_way").add(1);
                self.wait_for_one_way(turn)
            }
            ToSession::Up(Ok(datagrams)) => {
                self.up(datagrams, turn)?;
                self.wait_for_datagrams(turn)
            }
            ToSession::Stream(Err(_)) | ToSession::OneWay(Err(_)) | ToSession::Up(Err(_)) => {
                self.over(turn);
                Ok(())
            }
            ToSession::Connected(Ok(server)) => {
                if let To::Connecting(picked) = std::mem::replace(&mut self.to, To::Nobody) {
                    self.to = To::Quic { server, _place: picked };
                }
                self.wait_for_server(turn)
            }
            ToSession::Connected(Err(error)) => {
                tracing::debug!(%error, "no server for datagrams");
                self.to = To::Nobody;
                Ok(())
            }
            ToSession::Down(Ok(datagrams)) => {
                datagrams.into_iter().for_each(|datagram| self.cast(&self.connection, datagram, &self.counts.down));
                self.wait_for_server(turn)
            }
            ToSession::Down(Err(Closed)) => {
                self.to = To::Nobody;
                Ok(())
            }
        }
    }

    fn io(&mut self, turn: &mut Turn<'_, ToSession>) -> Result<Progress, Fault> {
        let To::Udp { socket, .. } = &self.to else { return Ok(Progress::Idle) };
        for _ in 0..DATAGRAMS {
            let received = turn.scratch(|turn, scratch| {
                let room = scratch.len().min(LONGEST);
                let mut buffer = ReadBuf::new(scratch.get_mut(..room).unwrap_or_default());
                match socket.poll_recv(&mut turn.cx(), &mut buffer) {
                    Poll::Pending => None,
                    Poll::Ready(Ok(())) => Some(Some(Bytes::copy_from_slice(buffer.filled()))),
                    // An ICMP answer to a datagram of before: the server was not there.
                    Poll::Ready(Err(_)) => Some(None),
                }
            });
            match received {
                None => return Ok(Progress::Idle),
                Some(Some(datagram)) => self.cast(&self.connection, datagram, &self.counts.down),
                Some(None) => self.counts.no_server.add(1),
            }
        }
        Ok(Progress::More)
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, ToSession>) {
        // Its relays were asked before it and have ended.
        self.over(turn);
    }
}
