//! A relay's stream with TLS around it: a client's, taken off by a listener, or one to a server.
//!
//! An end in order is a close_notify, in each direction on its own (RFC 8446, section 6.1). An end of TCP without one is
//! [`io::ErrorKind::UnexpectedEof`]: what is missing nobody can tell. An alert and what is no record of TLS are
//! [`io::ErrorKind::InvalidData`]. BoringSSL keeps one record each way at most, and none while nothing is on its way.
//!
//! A handshake with a server is part of connecting to it: under the same limit, and a reason to try the next one.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use boring::ssl::Ssl;
use boring::x509::X509VerifyError;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_boring::{HandshakeError, SslStream, SslStreamBuilder};

use super::dial::{NotShielded, Upstream, Wire, poll_connected};
use super::state::Failure;

/// See the top of the file.
pub struct Shielded<S> {
    tls: Box<SslStream<Under<S>>>,
    /// close_notify was sent.
    told: bool,
}

impl<S> fmt::Debug for Shielded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shielded").finish_non_exhaustive()
    }
}

impl<S: Wire> Shielded<S> {
    /// Makes the handshake of a listener with a client.
    pub(super) async fn accept(ssl: Ssl, stream: S) -> Result<Self, String> {
        let tls = SslStreamBuilder::new(ssl, Under::new(stream)).accept().await;
        tls.map(Self::new).map_err(|error| error.to_string())
    }

    fn new(tls: SslStream<Under<S>>) -> Self {
        Self { tls: Box::new(tls), told: false }
    }
}

impl<S: Wire> Wire for Shielded<S> {
    fn abort(&mut self) {
        self.tls.get_mut().stream.abort();
    }

    fn is_broken(&self) -> bool {
        self.tls.get_ref().stream.is_broken()
    }
}

impl<S: Wire> AsyncRead for Shielded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut *self.tls).poll_read(cx, buf)).map_err(fault)?;
        // BoringSSL reads record by record: behind a close_notify it has seen no end.
        if buf.filled().len() == before && self.tls.get_ref().ended {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Wire> AsyncWrite for Shielded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tls).poll_write(cx, bytes).map_err(fault)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_flush(cx).map_err(fault)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.told {
            ready!(Pin::new(&mut *self.tls).poll_shutdown(cx)).map_err(fault)?;
            self.told = true;
        }
        Pin::new(&mut self.tls.get_mut().stream).poll_shutdown(cx)
    }
}

/// What the socket says stays as it is; what BoringSSL says is the other side's fault.
fn fault(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::Other { io::Error::new(io::ErrorKind::InvalidData, error) } else { error }
}

/// The stream below TLS. Its end is not TLS's affair: asked for close_notify once more because the stream was not ready
/// to end, BoringSSL would begin to look for that of the other side.
struct Under<S> {
    stream: S,
    /// Nothing more can be read of it.
    ended: bool,
}

impl<S> Under<S> {
    const fn new(stream: S) -> Self {
        Self { stream, ended: false }
    }
}

impl<S: Wire> AsyncRead for Under<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.ended = buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: Wire> AsyncWrite for Under<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl<S> fmt::Debug for Under<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Under").finish_non_exhaustive()
    }
}

type Shaking =
    Pin<Box<dyn Future<Output = Result<SslStream<Under<Upstream>>, HandshakeError<Under<Upstream>>>> + Send>>;

/// A stream to a server with TLS around it: first awaited, then used.
pub struct Shielding(Stage);

enum Stage {
    /// The server is being connected to, and then told what goes ahead of TLS.
    Reaching {
        stream: Upstream,
        ssl: Ssl,
        ahead: Vec<u8>,
        told: usize,
    },
    Shaking(Shaking),
    Open(Shielded<Upstream>),
    Over,
}

impl fmt::Debug for Shielding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shielding").finish_non_exhaustive()
    }
}

impl Shielding {
    pub(super) const fn new(stream: Upstream, ssl: Ssl) -> Self {
        Self(Stage::Reaching { stream, ssl, ahead: Vec::new(), told: 0 })
    }

    /// Says this to the server before TLS begins.
    pub(super) fn goes_ahead(&mut self, bytes: &[u8]) {
        if let Stage::Reaching { ahead, .. } = &mut self.0 {
            ahead.extend_from_slice(bytes);
        }
    }

    /// Whether the server has accepted, and TLS has not begun to be used.
    pub(super) const fn is_shaking(&self) -> bool {
        matches!(self.0, Stage::Shaking(_))
    }

    /// Whether it is ready to use.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Stage::Reaching { stream, ahead, told, .. } = &mut self.0 {
            ready!(poll_connected(stream, cx))?;
            while let Some(rest) = ahead.get(*told..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => *told += count,
                }
            }
            if let Stage::Reaching { stream, ssl, .. } = std::mem::replace(&mut self.0, Stage::Over) {
                self.0 = Stage::Shaking(Box::pin(SslStreamBuilder::new(ssl, Under::new(stream)).connect()));
            }
        }
        if let Stage::Shaking(shaking) = &mut self.0 {
            match ready!(shaking.as_mut().poll(cx)) {
                Ok(tls) => self.0 = Stage::Open(Shielded::new(tls)),
                Err(error) => {
                    self.0 = Stage::Over;
                    return Poll::Ready(Err(io::Error::other(NotShielded::of(&error))));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn open(&mut self) -> io::Result<&mut Shielded<Upstream>> {
        match &mut self.0 {
            Stage::Open(shielded) => Ok(shielded),
            Stage::Reaching { .. } | Stage::Shaking(_) | Stage::Over => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Wire for Shielding {
    /// Before it is used there is nothing that a server could take for an end.
    fn abort(&mut self) {
        if let Ok(shielded) = self.open() {
            shielded.abort();
        }
    }

    fn is_broken(&self) -> bool {
        matches!(&self.0, Stage::Open(shielded) if shielded.is_broken())
    }
}

impl AsyncRead for Shielding {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.open()?).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shielding {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.open()?).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.open()?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.open()?).poll_shutdown(cx)
    }
}

impl NotShielded {
    fn of<S: fmt::Debug>(error: &HandshakeError<S>) -> Self {
        let unverified = error.ssl().is_some_and(|ssl| {
            // Nothing was verified as long as no certificate has come.
            ssl.verify_result().is_err_and(|why| why != X509VerifyError::INVALID_CALL)
        });
        let failure = if unverified {
            Failure::Certificate
        } else if speaks_something_else(error) {
            Failure::NotTls
        } else {
            Failure::Handshake
        };
        Self::new(failure, error.to_string())
    }
}

/// Whether the server's first bytes were no record of TLS.
fn speaks_something_else<S: fmt::Debug>(error: &HandshakeError<S>) -> bool {
    let error = error.source().and_then(|error| error.downcast_ref::<boring::ssl::Error>());
    let reasons = error.and_then(boring::ssl::Error::ssl_error).map(|stack| stack.errors());
    reasons.into_iter().flatten().any(|error| error.reason() == Some("WRONG_VERSION_NUMBER"))
}
