//! A bidirectional stream as tokio's `AsyncRead` and `AsyncWrite`: for relays and for libraries that speak over any
//! stream. Bytes are copied at this border, and only here.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handle_stream::{RecvStream, SendStream};
use super::messages::{Granted, ToConnection};
use super::session::StreamError;
use crate::actors::Permit;

/// Bytes asked for and written at once.
const PIECE: usize = 64 << 10;

type Waiting<T> = Pin<Box<dyn Future<Output = Result<T, StreamError>> + Send>>;

/// Both directions of a stream.
pub struct Duplex {
    send: SendStream,
    receive: RecvStream,
    held: Bytes,
    reading: Option<Waiting<Option<Bytes>>>,
    writing: Option<Waiting<(Granted, Permit<ToConnection>)>>,
    finishing: Option<Waiting<()>>,
    at_end: bool,
    /// What codes are on the wire.
    codes: fn(u64) -> u64,
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplex").field("id", &self.send.id()).finish_non_exhaustive()
    }
}

impl Duplex {
    /// Joins the two directions of one stream, or of two.
    #[must_use]
    pub const fn new(send: SendStream, receive: RecvStream) -> Self {
        let (reading, writing, finishing) = (None, None, None);
        let codes = std::convert::identity;
        Self { send, receive, held: Bytes::new(), reading, writing, finishing, at_end: false, codes }
    }

    /// A stream inside a session: `ahead` was read of it already, and `codes` says what its codes are outside.
    #[cfg(feature = "http")]
    #[must_use]
    pub(crate) fn inside(self, ahead: Bytes, codes: fn(u64) -> u64) -> Self {
        Self { held: ahead, codes, ..self }
    }

    /// The direction in which this end writes.
    #[must_use]
    pub const fn send(&self) -> &SendStream {
        &self.send
    }

    /// The direction in which the peer writes.
    #[must_use]
    pub const fn receive(&self) -> &RecvStream {
        &self.receive
    }

    /// Wants no more of what the peer writes, without waiting; what this end writes goes on.
    pub fn refuse(&self, code: u64) {
        self.receive.stop_now((self.codes)(code));
    }

    /// Gives both directions up with this code, without waiting. What is over stays as it is.
    pub fn abort(&self, code: u64) {
        let code = (self.codes)(code);
        self.send.reset_now(code);
        self.receive.stop_now(code);
    }
}

fn error(error: StreamError) -> io::Error {
    let kind = match error {
        StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
        StreamError::Stopped(_) | StreamError::Finished | StreamError::Expired => io::ErrorKind::BrokenPipe,
        StreamError::Closed | StreamError::Unknown => io::ErrorKind::ConnectionAborted,
        StreamError::Full(_) | StreamError::Busy => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for Duplex {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.held.is_empty() {
                let count = this.held.len().min(buffer.remaining());
                buffer.put_slice(this.held.get(..count).unwrap_or_default());
                this.held.advance(count);
                return Poll::Ready(Ok(()));
            }
            if this.at_end || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let reading = this.reading.get_or_insert_with(|| {
                let receive = this.receive.clone();
                let max = buffer.remaining().clamp(1, PIECE);
                Box::pin(async move { receive.read(max).await })
            });
            let read = ready!(reading.as_mut().poll(cx));
            this.reading = None;
            match read.map_err(error)? {
                Some(bytes) => this.held = bytes,
                None => this.at_end = true,
            }
        }
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = bytes.len().min(PIECE);
        let writing = this.writing.get_or_insert_with(|| {
            let send = this.send.clone();
            Box::pin(async move { send.reserve(wanted).await })
        });
        let reserved = ready!(writing.as_mut().poll(cx));
        this.writing = None;
        let (mut granted, room) = reserved.map_err(error)?;
        // The caller may have come back with less than it asked room for.
        let count = granted.keep(wanted);
        let piece = Bytes::copy_from_slice(bytes.get(..count).unwrap_or_default());
        this.send.write_reserved((granted, room), piece).map_err(error)?;
        Poll::Ready(Ok(count))
    }

    /// What is written is on its way to the connection already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let finishing = this.finishing.get_or_insert_with(|| {
            let send = this.send.clone();
            Box::pin(async move { send.finish().await })
        });
        let finished = ready!(finishing.as_mut().poll(cx));
        this.finishing = Some(Box::pin(std::future::ready(Ok(()))));
        Poll::Ready(finished.map_err(error))
    }
}
