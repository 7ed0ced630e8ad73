//! The two ends of a relay as streams that can be cut, and how one is opened to a server without waiting for it.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
#[cfg(feature = "http")]
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::detour::{Detour, Through};
use super::pipe::Plain;
#[cfg(feature = "http")]
use super::shielded::Shielding;
use super::state::Failure;
use crate::transports::kit::balance::Address;
#[cfg(feature = "http")]
use crate::transports::tls::{ClientSettings, PeerName, handshake};

/// A stream that can be cut.
pub trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Makes the stream end in a reset when it is dropped, where its kind knows resets.
    fn abort(&mut self);

    /// Tells the other end that nothing it sends is wanted any more, where its kind can say so while the other direction
    /// goes on.
    fn refuse(&mut self) {}

    /// Whether the stream is known to be broken, without reading it. The answer is given once.
    fn is_broken(&self) -> bool {
        false
    }

    /// Whether a reset ends both directions, as TCP's does.
    fn ends_as_one(&self) -> bool {
        true
    }

    /// The socket, if what is read and written is what goes over it: then the kernel may move it.
    fn plain(&self) -> Option<Plain<'_>> {
        None
    }
}

impl Wire for TcpStream {
    fn abort(&mut self) {
        // It fails only on a socket that is gone already.
        let _gone = self.set_zero_linger();
    }

    fn is_broken(&self) -> bool {
        !matches!(self.take_error(), Ok(None))
    }

    fn plain(&self) -> Option<Plain<'_>> {
        Some(Plain::Tcp(self))
    }
}

impl Wire for UnixStream {
    /// Unix sockets know no resets; closed over unread bytes they do much the same.
    fn abort(&mut self) {}

    fn plain(&self) -> Option<Plain<'_>> {
        Some(Plain::Unix(self))
    }
}

impl Wire for crate::actors::sim_link::Stream {
    fn abort(&mut self) {
        self.reset();
    }
}

/// Opens streams to servers.
pub trait Dial: 'static {
    /// What it opens.
    type Stream: Wire + 'static;

    /// Begins to connect. It must not wait.
    ///
    /// # Errors
    /// Why it failed at once.
    fn dial(&mut self, to: &Address) -> io::Result<Self::Stream>;

    /// Takes what the server is to be told before the stream says anything of its own, such as a TLS handshake. False if
    /// it has nothing of its own to say: then it is written to the stream like anything else.
    fn goes_ahead(&mut self, _: &mut Self::Stream, _: &[u8]) -> bool {
        false
    }

    /// Whether the stream is connected.
    fn poll_connected(&mut self, stream: &mut Self::Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Whether the server has accepted a stream that is not connected, and a handshake goes on.
    fn is_shaking(&self, _: &Self::Stream) -> bool {
        false
    }
}

/// Opens TCP and Unix sockets, with TLS around them where it is told what to say, and streams of QUIC connections where
/// it is given a way to make these.
#[derive(Debug, Clone, Default)]
pub struct Network {
    #[cfg(feature = "quic")]
    pub(super) links: Option<super::quic_links::Links>,
    through: Option<Through>,
    #[cfg(feature = "http")]
    tls: Option<Arc<ClientSettings>>,
}

impl Network {
    /// One that also reaches servers over QUIC, by this way.
    #[cfg(feature = "quic")]
    #[must_use]
    pub fn over(links: super::quic_links::Links) -> Self {
        Self { links: Some(links), ..Self::default() }
    }

    /// One that reaches servers over TCP by this way alone.
    #[must_use]
    pub const fn through(way: Through) -> Self {
        Self {
            #[cfg(feature = "quic")]
            links: None,
            through: Some(way),
            #[cfg(feature = "http")]
            tls: None,
        }
    }

    /// The same, with TLS around what goes to servers over TCP and Unix sockets. Addresses of TLS say whom the
    /// certificate must name, `tls` says it for the others.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn shielded(self, tls: Arc<ClientSettings>) -> Self {
        Self { tls: Some(tls), ..self }
    }

    fn plain(&self, to: &Address) -> io::Result<Upstream> {
        if let (Some(way), Address::Tcp(address)) = (&self.through, to) {
            return way.open(*address).map(Upstream::Through);
        }
        let (domain, address) = match to {
            _ if self.through.is_some() => return Err(io::ErrorKind::Unsupported.into()),
            Address::Tcp(address) => (Domain::for_address(*address), SockAddr::from(*address)),
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
            #[cfg(feature = "quic")]
            Address::Quic { address, name } if let Some(links) = &self.links => {
                return Ok(Upstream::Quic(Box::new(links.open(*address, name.clone()))));
            }
            // TLS needs settings.
            Address::Quic { .. } | Address::Udp(_) | Address::Tls { .. } => {
                return Err(io::ErrorKind::Unsupported.into());
            }
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        if domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        match socket.connect(&address) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        if domain == Domain::UNIX {
            UnixStream::from_std(socket.into()).map(Upstream::Unix)
        } else {
            TcpStream::from_std(socket.into()).map(Upstream::Tcp)
        }
    }
}

/// A socket to a server.
pub enum Upstream {
    /// Over TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// A stream of a QUIC connection.
    #[cfg(feature = "quic")]
    Quic(Box<super::quic_wire::Opening>),
    /// One of the others with TLS around it.
    #[cfg(feature = "http")]
    Shielded(Box<Shielding>),
    /// A stream through a tunnel.
    Through(Box<dyn Detour>),
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Unix(_) => "Unix",
            #[cfg(feature = "quic")]
            Self::Quic(_) => "Quic",
            #[cfg(feature = "http")]
            Self::Shielded(_) => "Shielded",
            Self::Through(_) => "Through",
        })
    }
}

impl Dial for Network {
    type Stream = Upstream;

    fn dial(&mut self, to: &Address) -> io::Result<Upstream> {
        #[cfg(feature = "http")]
        if let Some(tls) = &self.tls {
            let protocols: Vec<&[u8]> = tls.protocols.iter().map(Vec::as_slice).collect();
            let (to, name) = match to {
                Address::Tls { address, name } => (&Address::Tcp(*address), PeerName::new(name)),
                Address::Tcp(_) | Address::Unix(_) | Address::Quic { .. } | Address::Udp(_) => (to, tls.name.clone()),
            };
            let ssl = handshake(tls, &protocols, &name).map_err(io::Error::other)?;
            return Ok(Upstream::Shielded(Box::new(Shielding::new(self.plain(to)?, ssl))));
        }
        self.plain(to)
    }

    #[cfg(feature = "http")]
    fn goes_ahead(&mut self, stream: &mut Upstream, bytes: &[u8]) -> bool {
        let Upstream::Shielded(shielding) = stream else { return false };
        shielding.goes_ahead(bytes);
        true
    }

    fn poll_connected(&mut self, stream: &mut Upstream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_connected(stream, cx)
    }

    #[cfg(feature = "http")]
    fn is_shaking(&self, stream: &Upstream) -> bool {
        matches!(stream, Upstream::Shielded(shielding) if shielding.is_shaking())
    }
}

/// Whether a stream is ready to use.
pub(super) fn poll_connected(stream: &mut Upstream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let (writable, readable) = match stream {
        Upstream::Tcp(tcp) => (tcp.poll_write_ready(cx), tcp.poll_read_ready(cx)),
        Upstream::Unix(unix) => (unix.poll_write_ready(cx), unix.poll_read_ready(cx)),
        #[cfg(feature = "quic")]
        Upstream::Quic(opening) => return opening.poll_open(cx),
        #[cfg(feature = "http")]
        Upstream::Shielded(shielding) => return shielding.poll_open(cx),
        Upstream::Through(detour) => {
            return detour.poll_open(cx).map_ok(|socket| {
                if let Some(socket) = socket {
                    *stream = Upstream::Tcp(socket);
                }
            });
        }
    };
    // A socket becomes writable whether its connection came about or not. One that failed is readable as well, since
    // reading would tell; only then is its error asked for, which is a system call.
    writable.map(|ready| {
        ready?;
        if readable.is_pending() {
            return Ok(());
        }
        let error = match stream {
            Upstream::Tcp(tcp) => tcp.take_error(),
            Upstream::Unix(unix) => unix.take_error(),
            #[cfg(feature = "quic")]
            Upstream::Quic(_) => Ok(None),
            #[cfg(feature = "http")]
            Upstream::Shielded(_) => Ok(None),
            Upstream::Through(_) => Ok(None),
        };
        error?.map_or(Ok(()), Err)
    })
}

/// Why TLS with a server did not come about, over TCP or in QUIC.
#[cfg(any(feature = "http", feature = "quic"))]
#[derive(Debug)]
pub(super) struct NotShielded {
    failure: Failure,
    why: String,
}

#[cfg(any(feature = "http", feature = "quic"))]
impl NotShielded {
    pub(super) const fn new(failure: Failure, why: String) -> Self {
        Self { failure, why }
    }
}

#[cfg(any(feature = "http", feature = "quic"))]
impl fmt::Display for NotShielded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

#[cfg(any(feature = "http", feature = "quic"))]
impl std::error::Error for NotShielded {}

/// What the error of a connection attempt means.
pub(super) fn failure_of(error: &io::Error) -> Failure {
    #[cfg(any(feature = "http", feature = "quic"))]
    if let Some(not) = error.get_ref().and_then(|inner| inner.downcast_ref::<NotShielded>()) {
        return not.failure;
    }
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOENT | Errno::AGAIN) => Failure::Refused,
        Some(Errno::TIMEDOUT) => Failure::Timeout,
        Some(
            Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::ADDRNOTAVAIL
            | Errno::ACCESS
            | Errno::PERM,
        ) => Failure::Local,
        Some(_) => Failure::Unreachable,
        None if error.kind() == io::ErrorKind::ConnectionRefused => Failure::Refused,
        None if error.kind() == io::ErrorKind::TimedOut => Failure::Timeout,
        None => Failure::Local,
    }
}

impl Wire for Upstream {
    fn ends_as_one(&self) -> bool {
        #[cfg(feature = "quic")]
        if matches!(self, Self::Quic(_)) {
            return false;
        }
        true
    }

    fn abort(&mut self) {
        match self {
            Self::Tcp(tcp) => tcp.abort(),
            Self::Unix(unix) => unix.abort(),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => quic.abort(),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => shielded.abort(),
            Self::Through(detour) => detour.abort(),
        }
    }

    fn refuse(&mut self) {
        #[cfg(feature = "quic")]
        if let Self::Quic(quic) = self {
            quic.refuse();
        }
    }

    fn is_broken(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_broken(),
            Self::Unix(unix) => unix.is_broken(),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => quic.is_broken(),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => shielded.is_broken(),
            Self::Through(detour) => detour.is_broken(),
        }
    }

    fn plain(&self) -> Option<Plain<'_>> {
        match self {
            Self::Tcp(tcp) => tcp.plain(),
            Self::Unix(unix) => unix.plain(),
            #[cfg(feature = "quic")]
            Self::Quic(_) => None,
            #[cfg(feature = "http")]
            Self::Shielded(_) => None,
            Self::Through(detour) => detour.plain(),
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => Pin::new(quic).poll_read(cx, buf),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => Pin::new(shielded).poll_read(cx, buf),
            Self::Through(detour) => Pin::new(detour).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => Pin::new(quic).poll_write(cx, buf),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => Pin::new(shielded).poll_write(cx, buf),
            Self::Through(detour) => Pin::new(detour).poll_write(cx, buf),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Unix(unix) => unix.is_write_vectored(),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => quic.is_write_vectored(),
            #[cfg(feature = "http")]
            Self::Shielded(_) => false,
            Self::Through(detour) => detour.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => Pin::new(quic).poll_write_vectored(cx, bufs),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => Pin::new(shielded).poll_write_vectored(cx, bufs),
            Self::Through(detour) => Pin::new(detour).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Through(detour) => Pin::new(detour).poll_flush(cx),
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "quic")]
            Self::Quic(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => Pin::new(shielded).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            #[cfg(feature = "quic")]
            Self::Quic(quic) => Pin::new(quic).poll_shutdown(cx),
            #[cfg(feature = "http")]
            Self::Shielded(shielded) => Pin::new(shielded).poll_shutdown(cx),
            Self::Through(detour) => Pin::new(detour).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};

    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    async fn connect(to: &Address) -> io::Result<Upstream> {
        let mut network = Network::default();
        let mut stream = network.dial(to)?;
        poll_fn(|cx| network.poll_connected(&mut stream, cx)).await?;
        Ok(stream)
    }

    #[test]
    fn a_reset_is_known_without_reading_even_behind_bytes() {
        run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = connect(&Address::Tcp(listener.local_addr().unwrap())).await.unwrap();
            let (mut other, _) = listener.accept().await.unwrap();
            other.try_write(b"unread").unwrap();
            assert!(!stream.is_broken());
            other.abort();
            drop(other);
            let Upstream::Tcp(tcp) = &stream else { panic!("over TCP") };
            tcp.ready(tokio::io::Interest::ERROR).await.unwrap();
            assert!(stream.is_broken());
        });
    }

    #[test]
    fn each_failure_has_its_kind() {
        run(async {
            let kept = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            kept.bind(&SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
            let nobody = kept.local_addr().unwrap().as_socket().unwrap();
            let broadcast = std::net::SocketAddr::from(([255, 255, 255, 255], 1));
            for (to, failure) in [
                (Address::Tcp(nobody), Failure::Refused),
                (Address::Unix("/nonexistent/portway.sock".into()), Failure::Refused),
                (Address::Tcp(broadcast), Failure::Unreachable),
            ] {
                let error = connect(&to).await.unwrap_err();
                assert_eq!(failure_of(&error), failure, "{to:?}: {error}");
            }
        });
    }
}
