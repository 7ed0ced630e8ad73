//! The other side: a client for framed TCP, usable from any tokio runtime.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::codec::{Format, FrameError};

/// How much is read at once.
const READ: usize = 16 << 10;

/// A client of a framed server.
///
/// Messages are written as they are sent: send several with [`send_many`](Self::send_many) to save system calls. At
/// most one message is held while it is incomplete.
pub struct FramedClient<S = TcpStream> {
    stream: S,
    format: Format,
    received: BytesMut,
}

/// Why a client could not go on. The connection is of no use after that.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The stream failed, or ended inside a message (`UnexpectedEof`).
    Io(io::Error),
    /// The server's frame, or a message to be sent, does not fit the format.
    Frame(FrameError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Frame(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FrameError> for ClientError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl FramedClient {
    /// Connects, with Nagle's algorithm off.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(to: SocketAddr, format: Format) -> Result<Self, ClientError> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream, format))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> FramedClient<S> {
    /// A client over a stream that is connected already.
    pub fn over(stream: S, format: Format) -> Self {
        Self { stream, format, received: BytesMut::new() }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`ClientError::Frame`] if it is longer than the format allows: then nothing was sent and the connection is
    /// still good. Not cancel-safe: a message may have been sent in part.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), ClientError> {
        self.send_many([message]).await
    }

    /// Sends messages with one write.
    ///
    /// # Errors
    /// As [`send`](Self::send); if any of them is too long, none is sent.
    pub async fn send_many<'a>(&mut self, messages: impl IntoIterator<Item = &'a [u8]>) -> Result<(), ClientError> {
        let mut out = Vec::new();
        for message in messages {
            out.extend_from_slice(self.format.encode(message.len())?.as_bytes());
            out.extend_from_slice(message);
        }
        self.stream.write_all(&out).await?;
        Ok(())
    }

    /// Receives one message; `None` when the server has closed between messages. Cancel-safe.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(frame) = self.format.decode(&self.received)?
                && self.received.len() >= frame.total()
            {
                self.received.advance(frame.header);
                return Ok(Some(self.received.split_to(frame.body).freeze()));
            }
            self.received.reserve(READ);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                if self.received.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Tells the server that no more comes; its answers can still be received.
    ///
    /// # Errors
    /// What the system says.
    pub async fn finish(&mut self) -> Result<(), ClientError> {
        self.stream.shutdown().await?;
        Ok(())
    }

    /// The stream, and what was received and not yet asked for.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.received.freeze())
    }
}

impl<S> fmt::Debug for FramedClient<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedClient").field("format", &self.format).finish_non_exhaustive()
    }
}
