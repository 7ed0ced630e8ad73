//! Bodies on their way: of a request to a server, of an answer to a client. They are pulled, so a side that takes
//! nothing holds up the side that sends, and nothing is stored but the piece on its way.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::pool::{Lent, Pool};
use super::record::Record;
use super::site::Upstream;
use super::state_exchange::Failure;
#[cfg(feature = "quic")]
use super::tunnel::Joined;
use super::wire::{Notes, Timer};
use crate::actors::clock::later;
use crate::actors::{NotDone, blocking, clock};
use crate::transports::kit::balance::Picked;

/// Bytes of a file that are read at once.
const FILE_PIECE: usize = 32 << 10;
/// How soon a piece is asked for again when as much is being fetched as may.
const FETCH_AGAIN: Duration = Duration::from_millis(5);

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

/// What whoever waits for an answer wants to know of the body on its way.
#[derive(Default)]
pub(super) struct Sending {
    /// What was wrong with it.
    pub(super) fault: Cell<Option<Failure>>,
    /// Nothing of it is left to be sent.
    over: Cell<bool>,
    /// Pieces of it that were taken, and its end.
    steps: Cell<u64>,
    /// The client is waited for.
    awaited: Cell<bool>,
    /// Who waits for the answer.
    waker: Cell<Option<Waker>>,
}

impl Sending {
    fn step(&self) {
        self.steps.set(self.steps.get().wrapping_add(1));
    }

    /// How far it is. Whoever asks is woken at its end.
    pub(super) fn steps(&self, cx: &Context<'_>) -> u64 {
        self.waker.set((!self.over.get()).then(|| cx.waker().clone()));
        self.steps.get()
    }

    /// Whether more of it is waited for.
    pub(super) const fn is_awaited(&self) -> bool {
        self.awaited.get() && !self.over.get()
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
    pub(super) sending: Rc<Sending>,
    pub(super) timer: Timer,
    pub(super) since: Option<std::time::Instant>,
}

impl Drop for Request {
    fn drop(&mut self) {
        // hyper keeps it for as long as it is to be asked for more.
        self.sending.over.set(true);
        self.sending.step();
        if let Some(waker) = self.sending.waker.take() {
            waker.wake();
        }
    }
}

impl Request {
    fn fail(&self, why: Failure) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.sending.fault.set(Some(why));
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
                body.sending.awaited.set(false);
                body.sending.step();
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
                body.sending.awaited.set(true);
                // Asked for by the actor of the server's connection: the client's may not have had a turn for long.
                let since = *body.since.get_or_insert_with(clock::now);
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
    /// Over HTTP/2: since when a piece of it waits for its stream.
    waits: Option<Rc<Cell<Option<std::time::Instant>>>>,
}

enum Answer {
    Whole(Bytes),
    Server(Box<FromServer>),
    File(Box<FilePart>),
    /// A WebSocket over HTTP/3.
    #[cfg(feature = "quic")]
    Joined(Box<Joined>),
}

/// The body of a server's answer, and the connection it comes from.
pub(super) struct FromServer {
    incoming: Incoming,
    source: Source,
    silence: Duration,
    timer: Timer,
    since: Option<std::time::Instant>,
    /// Nothing more will come, whole or not.
    ended: bool,
}

type OwnConnection = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// What keeps the answer coming.
pub(super) enum Source {
    /// A connection of the pool, and the body of the request if it has one.
    Pool {
        lent: Option<Lent>,
        pool: Rc<Pool>,
        upstream: Arc<Upstream>,
        picked: Option<Picked>,
        sending: Option<Rc<Sending>>,
    },
    /// A connection of this exchange alone.
    Own { connection: Option<OwnConnection>, picked: Option<Picked> },
}

impl Source {
    /// The answer has ended, whole or not.
    fn ended(&mut self, whole: bool, notes: &Notes) {
        match self {
            Self::Pool { lent, pool, upstream, picked, sending } => {
                drop(picked.take());
                // A server that has not heard all of a request may take the rest of it for the next, or hear nothing.
                if let Some(lent) = lent.take()
                    && whole
                    && (sending.as_ref().is_none_or(|sending| sending.over.get()) || lent.is_http2())
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
    file: Arc<File>,
    at: u64,
    left: u64,
    /// A piece that must be waited for.
    fetching: Option<Fetching>,
    /// As much is fetched as may: when to ask again.
    again: Option<std::time::Instant>,
    timer: Timer,
}

type Fetching = Pin<Box<dyn Future<Output = Result<io::Result<Vec<u8>>, NotDone>>>>;

impl ToClient {
    pub(super) const fn whole(body: Bytes, record: Rc<Record>) -> Self {
        Self { kind: Answer::Whole(body), record, waits: None }
    }

    pub(super) fn file(part: FilePart, record: Rc<Record>) -> Self {
        Self { kind: Answer::File(Box::new(part)), record, waits: None }
    }

    #[cfg(feature = "quic")]
    pub(super) const fn joined(joined: Box<Joined>, record: Rc<Record>) -> Self {
        Self { kind: Answer::Joined(joined), record, waits: None }
    }

    pub(super) fn server(incoming: Incoming, mut source: Source, silence: Duration, record: Rc<Record>) -> Self {
        if incoming.is_end_stream() {
            source.ended(true, record.notes());
            return Self::whole(Bytes::new(), record);
        }
        let body = FromServer { incoming, source, silence, timer: Timer::default(), since: None, ended: false };
        Self { kind: Answer::Server(Box::new(body)), record, waits: None }
    }
}

impl ToClient {
    /// From here on it is an answer on a stream of HTTP/2, which asks for a piece only when it takes one.
    pub(super) fn streamed(&mut self) {
        if !self.is_end_stream() {
            self.waits = Some(self.record.notes().sends());
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.kind {
            Answer::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Answer::Whole(bytes) => {
                self.record.down(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Answer::Server(server) => server.poll(cx, &self.record),
            #[cfg(feature = "quic")]
            Answer::Joined(joined) => {
                let next = std::task::ready!(joined.poll(cx));
                match &next {
                    Some(Ok(piece)) => self.record.down(piece.len()),
                    Some(Err(why)) => self.record.broke(why),
                    None => {}
                }
                Poll::Ready(next.map(|piece| piece.map(Frame::data).map_err(Broken)))
            }
            Answer::File(part) => {
                let next = std::task::ready!(part.poll(cx, self.record.notes()));
                match &next {
                    Some(Ok(piece)) => self.record.down(piece.len()),
                    Some(Err(_)) => self.record.broke("file"),
                    None => {}
                }
                Poll::Ready(next.map(|piece| piece.map(Frame::data)))
            }
        }
    }
}

impl FromServer {
    fn over(&mut self, whole: bool, notes: &Notes) {
        self.ended = true;
        self.source.ended(whole, notes);
    }

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
                    self.over(true, notes);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                self.over(false, notes);
                record.broke("truncated");
                Poll::Ready(Some(Err(Broken("the server broke off"))))
            }
            Poll::Ready(None) => {
                self.timer.clear(notes);
                self.over(true, notes);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let since = *self.since.get_or_insert_with(|| notes.driver.now());
                if self.timer.poll(notes, later(since, self.silence), cx).is_ready() {
                    self.over(false, notes);
                    record.broke("stalled");
                    return Poll::Ready(Some(Err(Broken("the server is silent"))));
                }
                Poll::Pending
            }
        }
    }
}

impl FilePart {
    pub(super) fn new(file: File, at: u64, left: u64) -> Self {
        Self { file: Arc::new(file), at, left, fetching: None, again: None, timer: Timer::default() }
    }

    fn poll(&mut self, cx: &mut Context<'_>, notes: &Notes) -> Poll<Option<Result<Bytes, Broken>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(FILE_PIECE);
        let piece = loop {
            if let Some(at) = self.again {
                std::task::ready!(self.timer.poll(notes, at, cx));
                self.again = None;
            }
            if let Some(fetching) = &mut self.fetching {
                let fetched = std::task::ready!(fetching.as_mut().poll(cx));
                self.fetching = None;
                match fetched {
                    Ok(piece) => break piece,
                    Err(NotDone::Full) => self.again = Some(later(notes.driver.now(), FETCH_AGAIN)),
                    Err(NotDone::Lost) => break Err(io::ErrorKind::Other.into()),
                }
                continue;
            }
            let mut piece = vec![0; wanted];
            match preadv2(&*self.file, &mut [IoSliceMut::new(&mut piece)], self.at, ReadWriteFlags::NOWAIT) {
                Ok(count) => {
                    piece.truncate(count);
                    break Ok(piece);
                }
                // Not in memory, or a file system that cannot tell.
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL) => {
                    let (file, at) = (self.file.clone(), self.at);
                    self.fetching = Some(Box::pin(blocking(move || {
                        let count = file.read_at(&mut piece, at)?;
                        piece.truncate(count);
                        Ok(piece)
                    })));
                }
                Err(error) => break Err(error.into()),
            }
        };
        match piece {
            Ok(piece) if !piece.is_empty() => {
                self.at += piece.len() as u64;
                self.left = self.left.saturating_sub(piece.len() as u64);
                Poll::Ready(Some(Ok(piece.into())))
            }
            // It has become shorter than it was said to be.
            Ok(_) | Err(_) => {
                self.left = 0;
                Poll::Ready(Some(Err(Broken("the file cannot be read on"))))
            }
        }
    }
}

impl Body for ToClient {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = self.get_mut();
        let next = body.next(cx);
        if let Some(waits) = &body.waits {
            // Asked for again, the last piece was taken; what is given now waits until the next time.
            waits.set(next.is_ready().then(|| body.record.notes().driver.now()));
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Answer::Whole(bytes) => bytes.is_empty(),
            Answer::Server(server) => server.incoming.is_end_stream(),
            Answer::File(part) => part.left == 0,
            #[cfg(feature = "quic")]
            Answer::Joined(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Answer::Server(server) => server.incoming.size_hint(),
            Answer::File(part) => SizeHint::with_exact(part.left),
            #[cfg(feature = "quic")]
            Answer::Joined(_) => SizeHint::default(),
        }
    }
}

impl Drop for ToClient {
    fn drop(&mut self) {
        if let Some(waits) = &self.waits {
            self.record.notes().sent(waits);
        }
        match &mut self.kind {
            Answer::Server(server) => {
                server.timer.clear(self.record.notes());
                if !server.ended && !server.incoming.is_end_stream() {
                    self.record.broke("client_gone");
                }
            }
            Answer::File(part) => part.timer.clear(self.record.notes()),
            #[cfg(feature = "quic")]
            Answer::Joined(joined) => joined.clear(),
            Answer::Whole(_) => {}
        }
    }
}
