//! The TCP listener: one acceptor that decides who comes in and hands each socket to the arbiter with the least load.
//!
//! One acceptor per listener and not one per arbiter: a member of an SO_REUSEPORT group that closes takes the
//! connections in its queue with it, and a group spreads by hash, not by load. What is done with a socket is the
//! business of an [`OnAccept`]; the acceptor knows no protocol.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol as Transport, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::kit::admission::{Admission, Caps, Occupancy, Refusal, Ticket};
use crate::actors::clock::later;
use crate::actors::{
    Budget as Restarts, Counter, Fault, Mail, Mesh, Place, Progress, Protocol, SpawnError, Spec, Turn,
};
use crate::memory::Budget;

/// Connections taken per turn, at most.
const ACCEPTS: usize = 64;
/// Connections the kernel may queue.
const BACKLOG: i32 = 4_096;
/// How long to leave the queue alone when this process has no file descriptor for the next connection.
const FD_PAUSE: Duration = Duration::from_millis(100);
/// After that it goes on when so many descriptors are free, or nobody is connected: the last ones are for those who are
/// let in already, and for who looks in to see what is wrong.
const FD_ROOM: usize = 16;
/// A shortage that comes and goes is logged this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Opens a listening socket: IPv6 sockets take IPv6 only, an address in TIME_WAIT is taken again.
///
/// # Errors
/// What the system says, for instance that the port is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Transport::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Refuses new connections on a listening socket from now on, whoever else holds it; those in its queue are reset by
/// the kernel. Its port can be bound again at once.
pub fn refuse(socket: &impl AsFd) {
    if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
        tracing::debug!(%error, "the listening socket was closed already");
    }
}

/// What becomes of an accepted socket.
pub trait OnAccept: 'static {
    /// Starts the actor of this connection, as a child of the acceptor. The socket does not block; the ticket is the
    /// connection's place in the listener's caps and must live as long as the connection.
    ///
    /// # Errors
    /// When no actor can be started.
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError>;
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, not blocking, with Nagle's algorithm off.
    pub stream: TcpStream,
    /// Who it comes from.
    pub peer: SocketAddr,
    /// Its place.
    pub ticket: Ticket,
}

/// An acceptor takes no messages.
pub type Never = std::convert::Infallible;

/// What an acceptor is told about its listener.
#[derive(Debug, Clone)]
pub struct AcceptorSettings {
    /// The name of the listener: the scope of its counters.
    pub name: Arc<str>,
    /// Who may come in.
    pub caps: Caps,
    /// What connections lease their memory from.
    pub budget: Budget,
    /// New connections are refused when every arbiter is later than this.
    pub shed_delay: Duration,
    /// How many are in, for others to read.
    pub occupancy: Arc<Occupancy>,
}

/// A listening socket for an acceptor.
#[derive(Debug, Clone)]
pub struct Listening {
    socket: Arc<TcpListener>,
    lent: bool,
}

impl From<Arc<TcpListener>> for Listening {
    fn from(socket: Arc<TcpListener>) -> Self {
        Self { socket, lent: false }
    }
}

impl Listening {
    /// One that another process holds as well: it is not shut down at the end, and what waits in its queue stays there.
    #[must_use]
    pub const fn lent(socket: Arc<TcpListener>) -> Self {
        Self { socket, lent: true }
    }
}

/// The acceptor of one listener.
pub struct Acceptor<A> {
    settings: AcceptorSettings,
    lent: bool,
    admission: Admission,
    socket: Option<io::Result<TcpListener>>,
    ready: Option<AsyncFd<TcpListener>>,
    paused: Option<Instant>,
    starved: bool,
    warned: Option<Instant>,
    accepted: Counter,
    on_accept: A,
}

impl<A> fmt::Debug for Acceptor<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl<A: OnAccept> Acceptor<A> {
    /// Starts an acceptor on `place`, supervised: when it fails it is made anew, and connections wait in the kernel's
    /// queue meanwhile. When it has failed as often as `restarts` allows, it ends and the socket is closed. `on_accept`
    /// is made there and need not be `Send`.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn start(
        mesh: &Mesh,
        place: Place,
        socket: impl Into<Listening>,
        settings: AcceptorSettings,
        restarts: Restarts,
        mut on_accept: impl FnMut() -> A + Send + 'static,
    ) -> Result<Mail<Never>, SpawnError> {
        let Listening { socket, lent } = socket.into();
        mesh.supervise(place, Spec::named(settings.name.clone()), restarts, move || Self {
            lent,
            admission: Admission::new(settings.caps, settings.budget.clone(), settings.occupancy.clone()),
            settings: settings.clone(),
            socket: Some(socket.try_clone()),
            ready: None,
            paused: None,
            starved: false,
            warned: None,
            accepted: Counter::default(),
            on_accept: on_accept(),
        })
    }

    /// The socket is shut down and not only closed, since the factory of this acceptor holds it as well.
    fn shut(&mut self) {
        if let Some(ready) = self.ready.take()
            && !self.lent
        {
            refuse(ready.get_ref());
        }
    }

    fn accept(&mut self, ready: &AsyncFd<TcpListener>, turn: &Turn<'_, Never>) -> Result<Progress, Fault> {
        let listener = ready.get_ref();
        if self.starved && self.settings.occupancy.connections() > 0 && !has_room(listener) {
            self.paused = Some(later(turn.now(), FD_PAUSE));
            return Ok(Progress::Idle);
        }
        for _ in 0..ACCEPTS {
            let mut guard = match ready.poll_read_ready(&mut turn.cx()) {
                Poll::Ready(Ok(guard)) => guard,
                Poll::Ready(Err(error)) => return Err(Fault::local("listener", error.to_string())),
                Poll::Pending => return Ok(Progress::Idle),
            };
            match rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((stream, peer)) => {
                    self.starved = false;
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    if let Err(refusal) = self.hand_over(stream, peer, turn) {
                        self.refused(refusal.reason(), turn);
                    }
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    // Once per shortage, however often it is looked at: the connections wait in the kernel's queue.
                    if !std::mem::replace(&mut self.starved, true) {
                        self.refused("no_descriptor", turn);
                        if self.warned.is_none_or(|at| later(at, WARN_EVERY) <= turn.now()) {
                            self.warned = Some(turn.now());
                            tracing::warn!(
                                listener = %self.settings.name,
                                "no file descriptor is left for the next connection: raise the limit of open files"
                            );
                        }
                    }
                    self.paused = Some(later(turn.now(), FD_PAUSE));
                    return Ok(Progress::Idle);
                }
                // accept(2): errors of the new connection itself arrive here and concern nobody else.
                Err(_) => self.refused("aborted", turn),
            }
        }
        Ok(Progress::More)
    }

    fn hand_over(&mut self, stream: OwnedFd, peer: Option<SocketAddr>, turn: &Turn<'_, Never>) -> Result<(), Refusal> {
        let stream = TcpStream::from(stream);
        let peer = peer.ok_or(Refusal::Closing)?;
        let mesh = turn.mesh();
        if (0..mesh.arbiters()).all(|arbiter| mesh.delay(arbiter) > self.settings.shed_delay) {
            return Err(Refusal::Overload);
        }
        let ticket = self.admission.admit(peer.ip())?;
        self.on_accept.accepted(Accepted { stream, peer, ticket }, turn).map_err(|_| Refusal::Closing)?;
        self.accepted.add(1);
        Ok(())
    }

    fn refused(&self, reason: &'static str, turn: &Turn<'_, Never>) {
        turn.counter("connections_refused", &self.settings.name, reason).add(1);
        tracing::debug!(listener = %self.settings.name, reason, "connection refused");
    }
}

/// Whether [`FD_ROOM`] descriptors can be had, found by taking and returning them: it is only asked in a shortage.
fn has_room(of: &impl AsFd) -> bool {
    let mut taken = Vec::with_capacity(FD_ROOM);
    taken.extend((0..FD_ROOM).map_while(|_| rustix::io::fcntl_dupfd_cloexec(of, 0).ok()));
    taken.len() == FD_ROOM
}

impl<A: OnAccept> Protocol for Acceptor<A> {
    type Msg = Never;
    const KIND: &'static str = "listener";

    fn started(&mut self, turn: &mut Turn<'_, Never>) -> Result<(), Fault> {
        self.accepted = turn.counter("connections_accepted", &self.settings.name, "");
        if let Some(socket) = self.socket.take() {
            let socket = socket.map_err(|error| Fault::local("listener", error.to_string()))?;
            // Linux hands this on to every connection (a test shows it): one system
            // call less for each.
            socket2::SockRef::from(&socket)
                .set_tcp_nodelay(true)
                .map_err(|error| Fault::local("listener", error.to_string()))?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe; a std listener keeps its descriptor open, as both ask"
            )]
            let ready = AsyncFd::with_interest(socket, tokio::io::Interest::READABLE)
                .map_err(|error| Fault::local("listener", error.to_string()))?;
            self.ready = Some(ready);
        }
        Ok(())
    }

    fn on(&mut self, m: Never, _: &mut Turn<'_, Never>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        if self.paused.is_some() {
            return Ok(Progress::Idle);
        }
        let Some(ready) = self.ready.take() else { return Ok(Progress::Idle) };
        let progress = self.accept(&ready, turn);
        self.ready = Some(ready);
        progress
    }

    fn deadline(&self) -> Option<Instant> {
        self.paused
    }

    fn on_deadline(&mut self, _: &mut Turn<'_, Never>) -> Result<(), Fault> {
        self.paused = None;
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Turn<'_, Never>) {
        // Those in the socket's queue are reset by the kernel, unless somebody else holds it.
        self.shut();
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, Never>) {
        self.shut();
        turn.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_inherits_nodelay_from_its_listener() {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        socket2::SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        assert!(stream.nodelay().unwrap());
    }
}
