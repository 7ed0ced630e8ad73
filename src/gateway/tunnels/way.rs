//! Streams into tunnels whose inside is a network of the kernel: sockets of that network, opened without waiting.
//!
//! A private network's sockets are made by its helper, which is asked by an actor on the system's thread, where waiting
//! some 50 µs holds up no data. On the host a socket is bound to the interface, so that nothing meant for the tunnel
//! leaves beside it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::actors::{Control, Fault, Mail, Mesh, Place, Protocol, Reply, SpawnError, Spec, Turn};
use crate::transports::relay::{Detour, Way, Wire};
use crate::transports::tun::PrivateNetwork;

/// Sockets that wait to be made, at most.
const INBOX: usize = 1_024;
/// How long the helper may take, with all who came before.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the keeper of a private network is told.
pub(crate) enum ToKeeper {
    /// A TCP socket to connect with, over IPv6 or IPv4.
    Tcp { v6: bool, reply: Reply<io::Result<Socket>> },
    /// A TCP socket that listens.
    Listen { at: SocketAddr, reply: Reply<io::Result<TcpListener>> },
}

/// The actor that holds a private network and makes sockets in it. Its end is the network's.
struct Keeper {
    network: PrivateNetwork,
}

impl Protocol for Keeper {
    type Msg = ToKeeper;
    const KIND: &'static str = "private_network";

    fn on(&mut self, m: ToKeeper, _: &mut Turn<'_, ToKeeper>) -> Result<(), Fault> {
        // Nobody waits any more if the attempt was given up.
        let _given_up = match m {
            ToKeeper::Tcp { v6, reply } => reply.send(self.network.tcp_socket(v6).map_err(io::Error::other)).is_err(),
            ToKeeper::Listen { at, reply } => {
                reply.send(self.network.tcp_listener(at, false).map_err(io::Error::other)).is_err()
            }
        };
        Ok(())
    }
}

/// A private network in the hands of its keeper, who ends with this.
pub(crate) struct Kept(Mail<ToKeeper>);

impl Kept {
    pub(crate) fn new(mesh: &Mesh, name: &str, network: PrivateNetwork) -> Result<Self, SpawnError> {
        let spec = Spec::named(name).inbox(INBOX, 0);
        mesh.spawn(Place::System, spec, move || Keeper { network }).map(Self)
    }

    pub(crate) fn way(&self) -> Arc<dyn Way> {
        Arc::new(Inside(self.0.clone()))
    }

    /// A listening socket in it. Waits for the keeper: not on an arbiter.
    pub(crate) fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        let asked = self.0.ask_blocking(|reply| ToKeeper::Listen { at, reply }, PATIENCE);
        asked.map_err(|_| io::Error::from(io::ErrorKind::NetworkDown))?
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.control(Control::Stop);
    }
}

/// Into a private network.
struct Inside(Mail<ToKeeper>);

impl Way for Inside {
    fn open(&self, to: SocketAddr) -> io::Result<Box<dyn Detour>> {
        let keeper = self.0.clone();
        let asked = async move {
            let question = |reply| ToKeeper::Tcp { v6: to.is_ipv6(), reply };
            let socket =
                keeper.ask(question, PATIENCE).await.map_err(|_| io::Error::from(io::ErrorKind::NetworkDown))??;
            connect(socket, to)
        };
        Ok(Box::new(Opening::Asks(Box::pin(asked))))
    }
}

/// Through an interface of the host.
pub(crate) struct Bound(pub(crate) Arc<str>);

impl Way for Bound {
    fn open(&self, to: SocketAddr) -> io::Result<Box<dyn Detour>> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
        socket.bind_device(Some(self.0.as_bytes()))?;
        Ok(Box::new(Opening::Connects(Some(connect(socket, to)?))))
    }
}

fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    TcpStream::from_std(socket.into())
}

type Asks = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// A socket on its way. It is given away when it is connected; before that nothing can be read or written.
enum Opening {
    Asks(Asks),
    Connects(Option<TcpStream>),
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

impl Detour for Opening {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<TcpStream>>> {
        if let Self::Asks(asks) = self {
            let socket = ready!(asks.as_mut().poll(cx))?;
            *self = Self::Connects(Some(socket));
        }
        let Self::Connects(slot) = self else { return Poll::Pending };
        let Some(socket) = slot else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        ready!(socket.poll_write_ready(cx))?;
        match socket.take_error()? {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(slot.take())),
        }
    }
}

impl Wire for Opening {
    fn abort(&mut self) {
        if let Self::Connects(Some(socket)) = self {
            socket.abort();
        }
    }
}

impl AsyncRead for Opening {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

impl AsyncWrite for Opening {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
