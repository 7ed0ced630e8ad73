//! Bodies on their way: of a request to a server, of an answer to a client. They are pulled, so a side that takes
//! nothing holds up the side that sends, and nothing is stored but the piece on its way.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::pool::{Lent, Pool};
use super::record::Record;
use super::site::Upstream;
use super::state_exchange::Failure;
use super::wire::{Notes, Timer};
use crate::actors::clock::later;
use crate::transports::kit::balance::Picked;

/// Bytes of a file that are read at once.
const FILE_PIECE: usize = 32 << 10;

/// Why a body broke off. Whoever reads it sees that it is not whole.
#[derive(Debug)]
pub(super) struct Broken(&'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {}

/// The body of a request to a server.
pub(super) enum ToServer {
    Empty,
    Stream(Box<Request>),
}

/// A client's body, as its version of HTTP gives it.
pub(super) enum FromClient {
    /// HTTP/1.1 and 2.
    Hyper(Incoming),
    /// HTTP/3.
    #[cfg(feature = "quic")]
    Three(crate::transports::http3::Incoming),
}

impl Body for FromClient {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let broken = Broken("the client's body broke off");
        match self.get_mut() {
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(|_| broken),
            #[cfg(feature = "quic")]
            Self::Three(body) => Pin::new(body).poll_frame(cx).map_err(|_| broken),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            #[cfg(feature = "quic")]
            Self::Three(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            #[cfg(feature = "quic")]
            Self::Three(body) => body.size_hint(),
        }
    }
}

/// A client's body on its way, with what it may be.
pub(super) struct Request {
    pub(super) incoming: FromClient,
    /// Bytes that may still come.
    pub(super) left: u64,
    /// How long the client may be silent.
    pub(super) silence: Duration,
    pub(super) record: Rc<Record>,
    /// What was wrong with it, for whoever waits for the answer.
    pub(super) fault: Rc<Cell<Option<Failure>>>,
    pub(super) timer: Timer,
    pub(super) since: Option<std::time::Instant>,
}

impl Request {
    fn fail(&self, why: Failure) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.fault.set(Some(why));
        Poll::Ready(Some(Err(Broken(why.reason()))))
    }
}

impl Body for ToServer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Self::Stream(body) = self.get_mut() else { return Poll::Ready(None) };
        let notes = body.record.notes().clone();
        match Pin::new(&mut body.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                body.since = None;
                body.timer.clear(&notes);
                if let Some(data) = frame.data_ref() {
                    let Some(left) = body.left.checked_sub(data.len() as u64) else {
                        return body.fail(Failure::LargeBody);
                    };
                    body.left = left;
                    body.record.up(data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => body.fail(Failure::BadBody),
            Poll::Ready(None) => {
                body.timer.clear(&notes);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let since = *body.since.get_or_insert_with(|| notes.driver.now());
                if body.timer.poll(&notes, later(since, body.silence), cx).is_ready() {
                    return body.fail(Failure::SlowBody);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body) => body.incoming.size_hint(),
        }
    }
}

/// The body of an answer. The exchange ends when it is dropped.
pub(super) struct ToClient {
    kind: Answer,
    record: Rc<Record>,
}

enum Answer {
    Whole(Bytes),
    Server(Box<FromServer>),
    File(FilePart),
}

/// The body of a server's answer, and the connection it comes from.
pub(super) struct FromServer {
    incoming: Incoming,
    source: Source,
    silence: Duration,
    timer: Timer,
    since: Option<std::time::Instant>,
}

type OwnConnection = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// What keeps the answer coming.
pub(super) enum Source {
    /// A connection of the pool.
    Pool { lent: Option<Lent>, pool: Rc<Pool>, upstream: Arc<Upstream>, picked: Option<Picked> },
    /// A connection of this exchange alone.
    Own { connection: Option<OwnConnection>, picked: Option<Picked> },
}

impl Source {
    /// The answer has ended, whole or not.
    fn ended(&mut self, whole: bool, notes: &Notes) {
        match self {
            Self::Pool { lent, pool, upstream, picked } => {
                drop(picked.take());
                if let Some(lent) = lent.take()
                    && whole
                {
                    pool.keep(lent, notes.driver.now(), upstream.idle_connections);
                }
            }
            Self::Own { connection, picked } => {
                drop(picked.take());
                drop(connection.take());
            }
        }
    }

    /// A connection that nobody else polls.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::Own { connection, .. } = self
            && let Some(running) = connection
            && running.as_mut().poll(cx).is_ready()
        {
            // What it ended with shows in the body.
            *connection = None;
        }
    }
}

/// A part of a file.
pub(super) struct FilePart {
    pub(super) file: File,
    pub(super) at: u64,
    pub(super) left: u64,
}

impl ToClient {
    pub(super) const fn whole(body: Bytes, record: Rc<Record>) -> Self {
        Self { kind: Answer::Whole(body), record }
    }

    pub(super) const fn file(part: FilePart, record: Rc<Record>) -> Self {
        Self { kind: Answer::File(part), record }
    }

    pub(super) fn server(incoming: Incoming, mut source: Source, silence: Duration, record: Rc<Record>) -> Self {
        if incoming.is_end_stream() {
            source.ended(true, record.notes());
            return Self::whole(Bytes::new(), record);
        }
        let body = FromServer { incoming, source, silence, timer: Timer::default(), since: None };
        Self { kind: Answer::Server(Box::new(body)), record }
    }
}

impl FromServer {
    fn poll(&mut self, cx: &mut Context<'_>, record: &Record) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let notes = record.notes();
        self.source.poll(cx);
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.since = None;
                self.timer.clear(notes);
                if let Some(data) = frame.data_ref() {
                    record.down(data.len());
                }
                // Behind trailers comes nothing, and nobody asks again.
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.source.ended(true, notes);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                self.source.ended(false, notes);
                record.broke("truncated");
                Poll::Ready(Some(Err(Broken("the server broke off"))))
            }
            Poll::Ready(None) => {
                self.timer.clear(notes);
                self.source.ended(true, notes);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let since = *self.since.get_or_insert_with(|| notes.driver.now());
                if self.timer.poll(notes, later(since, self.silence), cx).is_ready() {
                    self.source.ended(false, notes);
                    record.broke("stalled");
                    return Poll::Ready(Some(Err(Broken("the server is silent"))));
                }
                Poll::Pending
            }
        }
    }
}

impl FilePart {
    fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.left == 0 {
            return None;
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(FILE_PIECE);
        let mut piece = vec![0; wanted];
        match self.file.read_at(&mut piece, self.at) {
            // It has become shorter than it was said to be.
            Ok(0) | Err(_) => {
                self.left = 0;
                Some(Err(Broken("the file cannot be read on")))
            }
            Ok(count) => {
                piece.truncate(count);
                self.at += count as u64;
                self.left -= count as u64;
                Some(Ok(piece.into()))
            }
        }
    }
}

impl Body for ToClient {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = self.get_mut();
        match &mut body.kind {
            Answer::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Answer::Whole(bytes) => {
                body.record.down(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Answer::Server(server) => server.poll(cx, &body.record),
            Answer::File(part) => {
                let next = part.next();
                match &next {
                    Some(Ok(piece)) => body.record.down(piece.len()),
                    Some(Err(_)) => body.record.broke("file"),
                    None => {}
                }
                Poll::Ready(next.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Answer::Whole(bytes) => bytes.is_empty(),
            Answer::Server(server) => server.incoming.is_end_stream(),
            Answer::File(part) => part.left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Answer::Server(server) => server.incoming.size_hint(),
            Answer::File(part) => SizeHint::with_exact(part.left),
        }
    }
}

impl Drop for ToClient {
    fn drop(&mut self) {
        if let Answer::Server(server) = &mut self.kind {
            server.timer.clear(self.record.notes());
        }
    }
}
