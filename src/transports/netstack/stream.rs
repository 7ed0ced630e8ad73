//! A TCP connection of the netstack as a byte stream: bounded both ways, ended as TCP ends.
//!
//! One end is an ordinary stream that any actor may own, on any arbiter; the other belongs to the netstack. A side that
//! does not read stops the other after [`BUFFER`] bytes, and TCP's window closes behind it. A reset is told apart from an
//! end in order, in both directions.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::transports::relay::Wire;

/// Bytes that wait in each direction, at most.
pub const BUFFER: usize = 64 << 10;

const CONNECTING: u8 = 0;
const CONNECTED: u8 = 1;
const REFUSED: u8 = 2;

/// What both ends know.
#[derive(Default)]
struct Known {
    /// How far the connection has come.
    phase: AtomicU8,
    /// The peer reset it.
    reset: AtomicU8,
    /// Our side wants it reset.
    aborted: AtomicU8,
    waiting: AtomicWaker,
}

/// The end that the gateway's actors use.
pub struct NetStream {
    pipe: DuplexStream,
    known: Arc<Known>,
}

/// The end that the netstack keeps. Dropped before the connection stands, it tells the other end that it does not.
pub struct Far {
    pub(super) pipe: DuplexStream,
    known: Arc<Known>,
}

impl fmt::Debug for NetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetStream").finish_non_exhaustive()
    }
}

impl fmt::Debug for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Far").finish_non_exhaustive()
    }
}

/// The two ends of a connection that is not there yet.
pub(super) fn pair() -> (NetStream, Far) {
    let (near, far) = tokio::io::duplex(BUFFER);
    let known = Arc::new(Known::default());
    (NetStream { pipe: near, known: known.clone() }, Far { pipe: far, known })
}

impl Far {
    pub(super) fn connected(&self) {
        self.known.phase.store(CONNECTED, Ordering::Release);
        self.known.waiting.wake();
    }

    /// The peer reset the connection. Drop this end after that.
    pub(super) fn reset(&self) {
        self.known.reset.store(1, Ordering::Release);
    }

    pub(super) fn aborted(&self) -> bool {
        self.known.aborted.load(Ordering::Acquire) != 0
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _was = self.known.phase.compare_exchange(CONNECTING, REFUSED, Ordering::AcqRel, Ordering::Acquire);
        self.known.waiting.wake();
    }
}

impl NetStream {
    /// Whether a connection that was asked for has come about.
    ///
    /// # Errors
    /// `ConnectionRefused` when it has not, for whatever reason.
    pub fn poll_connected(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.known.waiting.register(cx.waker());
        match self.known.phase.load(Ordering::Acquire) {
            CONNECTED => Poll::Ready(Ok(())),
            REFUSED => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            _ => Poll::Pending,
        }
    }

    fn is_reset(&self) -> bool {
        self.known.reset.load(Ordering::Acquire) != 0
    }
}

impl AsyncRead for NetStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.pipe).poll_read(cx, buffer);
        // What came before a reset is still delivered; only the end is another one.
        if matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before && self.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        read
    }
}

impl AsyncWrite for NetStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.pipe).poll_write(cx, bytes);
        // The pipe knows only that its other end is gone; a kernel's socket would name the reset, whichever call is
        // the first to meet it.
        if matches!(written, Poll::Ready(Err(_))) && self.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl Wire for NetStream {
    fn abort(&mut self) {
        self.known.aborted.store(1, Ordering::Release);
    }

    fn is_broken(&self) -> bool {
        self.is_reset()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Like a kernel's socket: whichever call is the first to meet it.
    #[tokio::test]
    async fn a_reset_is_told_to_readers_and_to_writers_after_what_came_before_it() {
        let (mut near, mut far) = pair();
        far.connected();
        far.pipe.write_all(b"last words").await.unwrap();
        far.reset();
        drop(far);
        let kind = |error: io::Error| error.kind();
        assert_eq!(near.write(b"x").await.map_err(kind), Err(io::ErrorKind::ConnectionReset));
        let mut words = [0; 10];
        near.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"last words");
        assert_eq!(near.read(&mut words).await.map_err(kind), Err(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn an_end_in_order_is_not_a_reset() {
        let (mut near, far) = pair();
        far.connected();
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(near.write(b"x").await.map_err(|error| error.kind()), Err(io::ErrorKind::BrokenPipe));
    }
}
