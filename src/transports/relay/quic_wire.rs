//! A stream of a QUIC connection in the shape of a socket, for the relay: one that a client opened, or one that is being
//! opened to a server.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::Wire;
use crate::transports::quic::Duplex;

/// The application error code of a stream whose other side was reset or could not be reached.
pub const GIVEN_UP: u64 = 0x101;
/// The application error code of what is not let in: a connection beyond the limits, a kind of stream that no server
/// takes.
pub const REFUSED: u64 = 0x102;

impl Wire for Duplex {
    fn ends_as_one(&self) -> bool {
        false
    }

    fn abort(&mut self) {
        Self::abort(self, GIVEN_UP);
    }

    fn refuse(&mut self) {
        Self::refuse(self, GIVEN_UP);
    }

    fn is_broken(&self) -> bool {
        self.send().connection().end().is_some()
    }
}

type Opens = Pin<Box<dyn Future<Output = io::Result<Duplex>> + Send>>;

/// A stream to a server: first awaited, then used.
pub struct Opening(State);

enum State {
    Awaited(Opens),
    Open(Box<Duplex>),
    Failed,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Awaited(_) => "Awaited",
            State::Open(_) => "Open",
            State::Failed => "Failed",
        })
    }
}

impl Opening {
    pub(super) fn new(opens: impl Future<Output = io::Result<Duplex>> + Send + 'static) -> Self {
        Self(State::Awaited(Box::pin(opens)))
    }

    /// Ready once there is a stream, or why there is none.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let opened = match &mut self.0 {
            State::Awaited(opens) => ready!(opens.as_mut().poll(cx)),
            State::Open(_) => return Poll::Ready(Ok(())),
            State::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        Poll::Ready(match opened {
            Ok(stream) => {
                self.0 = State::Open(Box::new(stream));
                Ok(())
            }
            Err(error) => {
                self.0 = State::Failed;
                Err(error)
            }
        })
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Duplex>> {
        match &mut self.0 {
            State::Open(stream) => Ok(Pin::new(stream)),
            State::Awaited(_) | State::Failed => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Wire for Opening {
    fn abort(&mut self) {
        if let State::Open(stream) = &mut self.0 {
            Wire::abort(&mut **stream);
        }
    }

    fn refuse(&mut self) {
        if let State::Open(stream) = &mut self.0 {
            Wire::refuse(&mut **stream);
        }
    }

    fn is_broken(&self) -> bool {
        matches!(&self.0, State::Open(stream) if stream.is_broken())
    }
}

impl AsyncRead for Opening {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Opening {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().stream()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_shutdown(cx)
    }
}
