//! The same for plain threads: each call waits, at most as long as it is told, and any number of threads may call at
//! once. On a thread that runs an event loop every call answers `OnArbiter` instead of stopping all actors on it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::handle::{Closed, DatagramError};
use super::messages::{ConnectError, Farewell, MigrateError};
use super::session::{End, Event, Info, OpenError, StreamError};
use super::state_datagrams::Datagram;
use super::state_streams::Priority;
use super::{client, handle, handle_stream, server};
use crate::actors::{AskError, wait_blocking};
use crate::transports::tls;

/// Why a blocking call has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failed<E> {
    /// What the call itself can fail with.
    Error(E),
    /// Not in the time allowed. What the call had begun may still happen.
    Timeout,
    /// Called on a thread that runs an event loop.
    OnArbiter,
}

impl<E: fmt::Display> fmt::Display for Failed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Timeout => f.write_str("not in the time allowed"),
            Self::OnArbiter => f.write_str("a blocking call on a thread that runs an event loop"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for Failed<E> {}

fn wait<T, E>(within: Duration, future: impl Future<Output = Result<T, E>>) -> Result<T, Failed<E>> {
    match wait_blocking(within, future) {
        Ok(out) => out.map_err(Failed::Error),
        Err(AskError::OnArbiter) => Err(Failed::OnArbiter),
        Err(_) => Err(Failed::Timeout),
    }
}

/// Connects. Like [`client::QuicClient::connect`].
///
/// # Errors
/// See [`ConnectError`].
pub fn connect(
    client: &client::QuicClient,
    to: SocketAddr,
    tls: Arc<tls::ClientSettings>,
    within: Duration,
) -> Result<Connection, ConnectError> {
    match wait(within, client.connect(to, tls)) {
        Ok(handle) => Ok(Connection { handle }),
        Err(Failed::Error(error)) => Err(error),
        Err(Failed::Timeout) => Err(ConnectError::Timeout),
        Err(Failed::OnArbiter) => Err(ConnectError::OnArbiter),
    }
}

/// Takes a connection that came in. Like [`server::QuicServer::accept`].
///
/// # Errors
/// [`Closed`], or see [`Failed`].
pub fn accept(server: &server::QuicServer, within: Duration) -> Result<Connection, Failed<Closed>> {
    wait(within, server.accept()).map(|handle| Connection { handle })
}

/// A connection, for plain threads. A clone is the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    handle: handle::Connection,
}

impl From<handle::Connection> for Connection {
    fn from(handle: handle::Connection) -> Self {
        Self { handle }
    }
}

impl Connection {
    /// The handle for tasks.
    #[must_use]
    pub const fn handle(&self) -> &handle::Connection {
        &self.handle
    }

    /// Opens a bidirectional stream.
    ///
    /// # Errors
    /// See [`OpenError`] and [`Failed`].
    pub fn open(&self, priority: Priority, within: Duration) -> Result<(SendStream, RecvStream), Failed<OpenError>> {
        wait(within, self.handle.open(priority)).map(both)
    }

    /// Opens a unidirectional stream.
    ///
    /// # Errors
    /// See [`OpenError`] and [`Failed`].
    pub fn open_uni(&self, priority: Priority, within: Duration) -> Result<SendStream, Failed<OpenError>> {
        wait(within, self.handle.open_uni(priority)).map(|handle| SendStream { handle })
    }

    /// Takes a bidirectional stream the peer has opened.
    ///
    /// # Errors
    /// See [`OpenError`] and [`Failed`].
    pub fn accept(&self, within: Duration) -> Result<(SendStream, RecvStream), Failed<OpenError>> {
        wait(within, self.handle.accept()).map(both)
    }

    /// Takes a unidirectional stream the peer has opened.
    ///
    /// # Errors
    /// See [`OpenError`] and [`Failed`].
    pub fn accept_uni(&self, within: Duration) -> Result<RecvStream, Failed<OpenError>> {
        wait(within, self.handle.accept_uni()).map(|handle| RecvStream { handle })
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// See [`DatagramError`] and [`Failed`].
    pub fn send_datagram(&self, datagram: Datagram, within: Duration) -> Result<(), Failed<DatagramError>> {
        wait(within, self.handle.send_datagram(datagram))
    }

    /// Takes datagrams that have come.
    ///
    /// # Errors
    /// See [`Failed`].
    pub fn datagrams(&self, within: Duration) -> Result<Vec<Bytes>, Failed<Closed>> {
        wait(within, self.handle.datagrams())
    }

    /// What happens from now on; each step waits at most `each`.
    #[must_use]
    pub fn events(&self, each: Duration) -> Events {
        Events { events: self.handle.events(), each }
    }

    /// Moves a client's connection to another socket; answers its address.
    ///
    /// # Errors
    /// See [`MigrateError`] and [`Failed`].
    pub fn migrate(&self, within: Duration) -> Result<SocketAddr, Failed<MigrateError>> {
        wait(within, self.handle.migrate())
    }

    /// A reading of the connection.
    ///
    /// # Errors
    /// See [`Failed`].
    pub fn info(&self, within: Duration) -> Result<Info, Failed<Closed>> {
        wait(within, self.handle.info())
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.handle.end()
    }

    /// Closes the connection. Does not wait: see [`join`](Self::join). May be called on any thread.
    pub fn close(&self, code: u64, text: &str) {
        self.handle.close(code, text);
    }

    /// Waits until the connection has ended and its close has left; answers why, and its last reading.
    ///
    /// # Errors
    /// See [`Failed`]; never `Error`.
    pub fn join(&self, within: Duration) -> Result<Farewell, Failed<Closed>> {
        wait(within, async { Ok(self.handle.join().await) })
    }
}

fn both((send, receive): (handle_stream::SendStream, handle_stream::RecvStream)) -> (SendStream, RecvStream) {
    (SendStream { handle: send }, RecvStream { handle: receive })
}

/// The events of a connection, one after the other. Ends with the connection, or when one step had to wait too long;
/// [`is_over`](Self::is_over) tells which.
#[derive(Debug)]
pub struct Events {
    events: handle::Events,
    each: Duration,
}

impl Events {
    /// Whether the end of the connection was told.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.events.is_over()
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        wait(self.each, async { Ok::<_, Closed>(self.events.next().await) }).ok().flatten()
    }
}

/// The direction of a stream in which this end writes, for plain threads.
#[derive(Debug, Clone)]
pub struct SendStream {
    handle: handle_stream::SendStream,
}

impl SendStream {
    /// The handle for tasks.
    #[must_use]
    pub const fn handle(&self) -> &handle_stream::SendStream {
        &self.handle
    }

    /// Writes bytes; waits for credit. `Ok` means accepted.
    ///
    /// # Errors
    /// See [`StreamError`] and [`Failed`]. After a timeout a beginning of the bytes may have been accepted.
    pub fn write(&self, bytes: impl Into<Bytes>, within: Duration) -> Result<(), Failed<StreamError>> {
        wait(within, self.handle.write(bytes))
    }

    /// Writes bytes and waits until they are on their way.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_flushed(&self, bytes: impl Into<Bytes>, within: Duration) -> Result<(), Failed<StreamError>> {
        wait(within, async { self.handle.write_tracked(bytes).await?.flushed().await })
    }

    /// Writes the end of the stream.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finish(&self, within: Duration) -> Result<(), Failed<StreamError>> {
        wait(within, self.handle.finish())
    }

    /// Gives the stream up.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn reset(&self, code: u64, within: Duration) -> Result<(), Failed<StreamError>> {
        wait(within, self.handle.reset(code))
    }
}

/// The direction of a stream in which the peer writes, for plain threads.
#[derive(Debug, Clone)]
pub struct RecvStream {
    handle: handle_stream::RecvStream,
}

impl RecvStream {
    /// The handle for tasks.
    #[must_use]
    pub const fn handle(&self) -> &handle_stream::RecvStream {
        &self.handle
    }

    /// Waits for data: at most `max` bytes, or `None` at the end.
    ///
    /// # Errors
    /// See [`StreamError`] and [`Failed`].
    pub fn read(&self, max: usize, within: Duration) -> Result<Option<Bytes>, Failed<StreamError>> {
        wait(within, self.handle.read(max))
    }

    /// Reads to the end, at most `limit` bytes.
    ///
    /// # Errors
    /// See [`StreamError`] and [`Failed`].
    pub fn read_to_end(&self, limit: usize, within: Duration) -> Result<Bytes, Failed<StreamError>> {
        wait(within, self.handle.read_to_end(limit))
    }

    /// Wants no more.
    ///
    /// # Errors
    /// See [`StreamError`] and [`Failed`].
    pub fn stop(&self, code: u64, within: Duration) -> Result<(), Failed<StreamError>> {
        wait(within, self.handle.stop(code))
    }
}
