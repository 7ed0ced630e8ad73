//! The stream of a client, with the guard before it, and what is noted of the connection on the way.
//!
//! What the guard refuses never reaches hyper. Something that hyper itself refuses stands in its place, so that the
//! answer comes in its turn, behind the answers to what was asked before: 431 for a head that is too large, else 400.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::codec_frames::{AnswerWatch, FrameWatch};
use super::codec_head::{Guard, Refusal, Stage};
use super::secured::Secured;
use super::state_watch::Watch;
use crate::actors::clock::later;
use crate::actors::{Counter, Driver};
use crate::memory::{Shared, ThreadSafe};

/// No parser takes this for the rest of a head, of a chunk, or of trailers: a NUL, and a line feed without its carriage
/// return.
const BAD: &[u8] = b"\0\n\r\n\r\n";

/// How long a connection is quiet before what it takes to read and write is given back.
const REST: Duration = Duration::from_millis(500);

/// What is noted of one connection; its wire, its requests and its actor share it.
pub(super) struct Notes {
    pub(super) driver: Driver,
    listener: Arc<str>,
    pub(super) watch: RefCell<Watch>,
    pub(super) refused: Cell<Option<Refusal>>,
    /// From here on another protocol is spoken.
    pub(super) opened: Cell<bool>,
    /// No more requests are wanted.
    pub(super) closing: Cell<bool>,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    /// Bytes of this connection alone, both ways.
    moved: Cell<u64>,
    timers: RefCell<Vec<(u64, Instant, Waker)>>,
    next_timer: Cell<u64>,
    /// Everything that hyper gave is written.
    clean: Cell<bool>,
    /// What is written is kept until the end of the turn, and whether there is any.
    corked: Cell<bool>,
    kept: Cell<bool>,
    /// Heads of answers before the answer (1xx), for the request that is being answered. Only this arbiter uses it; it
    /// is shared because hyper asks for that.
    early: Arc<Early>,
    /// Since when pieces of answers wait for streams of HTTP/2 to take them, which no socket tells.
    sending: RefCell<Vec<Rc<Cell<Option<Instant>>>>>,
}

impl Notes {
    /// Bytes that moved, both ways.
    pub(super) const fn bytes(&self) -> u64 {
        self.moved.get()
    }

    fn refuse(&self, why: Refusal) {
        self.refused.set(Some(why));
        self.driver.raise("http_refused", &self.listener, why.reason());
    }

    fn came(&self, count: usize) {
        self.bytes_in.add(count as u64);
        self.driver.moved(count as u64, 0);
        self.moved.set(self.moved.get().wrapping_add(count as u64));
    }

    fn went(&self, count: usize) {
        self.bytes_out.add(count as u64);
        self.driver.moved(0, count as u64);
        self.moved.set(self.moved.get().wrapping_add(count as u64));
    }

    pub(super) fn new(driver: Driver, listener: Arc<str>, watch: Watch) -> Rc<Self> {
        let bytes_in = driver.counter("bytes_in", &listener, "");
        let bytes_out = driver.counter("bytes_out", &listener, "");
        Rc::new(Self {
            driver,
            listener,
            watch: RefCell::new(watch),
            refused: Cell::new(None),
            opened: Cell::new(false),
            closing: Cell::new(false),
            bytes_in,
            bytes_out,
            moved: Cell::new(0),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            clean: Cell::new(true),
            corked: Cell::new(false),
            kept: Cell::new(false),
            early: Arc::default(),
            sending: RefCell::default(),
        })
    }

    /// When the connection has been quiet for long enough to rest, unless something happens.
    pub(super) fn rest_at(&self) -> Option<Instant> {
        let since = self.watch.borrow().quiet_since().filter(|_| self.clean.get() && !self.opened.get())?;
        Some(later(since, REST))
    }

    /// Keeps what is written until the end of the turn.
    pub(super) fn cork(&self) {
        self.corked.set(true);
    }

    /// The turn is over: what was kept is written with the next flush. False if nothing was kept.
    pub(super) fn uncork(&self) -> bool {
        if self.kept.get() {
            self.corked.set(false);
        }
        self.kept.get()
    }

    fn take_early(&self) -> Vec<u8> {
        // Asked before each write, and mostly there is none.
        if !self.early.any.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        self.early.heads.write().map(|mut heads| std::mem::take(&mut *heads)).unwrap_or_default()
    }

    /// Where heads go that come before an answer.
    pub(super) fn early(&self) -> Arc<Early> {
        self.early.clone()
    }

    /// The answer has come. What came before it and cannot be written before it is not written at all.
    pub(super) fn answered(&self) {
        if !self.clean.get() && !self.take_early().is_empty() {
            self.driver.raise("http_early_dropped", &self.listener, "");
        }
    }

    /// A place to note since when an answer waits for its stream.
    pub(super) fn sends(&self) -> Rc<Cell<Option<Instant>>> {
        let place = Rc::new(Cell::new(Some(self.driver.now())));
        self.sending.borrow_mut().push(place.clone());
        place
    }

    pub(super) fn sent(&self, place: &Rc<Cell<Option<Instant>>>) {
        self.sending.borrow_mut().retain(|other| !Rc::ptr_eq(other, place));
    }

    /// Since when the answer waits that has waited longest.
    pub(super) fn stalled(&self) -> Option<Instant> {
        self.sending.borrow().iter().filter_map(|since| since.get()).min()
    }

    /// Wakes the requests whose time has come, and says when to look again.
    pub(super) fn tick(&self) -> Option<Instant> {
        let now = self.driver.now();
        let due: Vec<Waker> = {
            let mut timers = self.timers.borrow_mut();
            if timers.iter().any(|(_, at, _)| *at <= now) {
                timers.extract_if(.., |(_, at, _)| *at <= now).map(|(_, _, waker)| waker).collect()
            } else {
                Vec::new()
            }
        };
        due.into_iter().for_each(Waker::wake);
        let first = self.timers.borrow().iter().map(|(_, at, _)| *at).min();
        let watch = self.watch.borrow().deadline();
        first.into_iter().chain(watch).min()
    }

    /// Waits for `future` until `at`, by the alarm of the connection.
    pub(super) async fn until<F: Future>(&self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut timer = Timer::default();
        std::future::poll_fn(|cx| {
            if let Poll::Ready(out) = future.as_mut().poll(cx) {
                timer.clear(self);
                return Poll::Ready(Some(out));
            }
            if timer.poll(self, at, cx).is_ready() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

/// Heads of answers before the answer, and whether there are any.
#[derive(Default)]
pub(super) struct Early {
    heads: Shared<Vec<u8>, ThreadSafe>,
    any: AtomicBool,
}

impl Early {
    /// Keeps another head if there is room for it below `most` bytes; false if not.
    pub(super) fn push(&self, head: &[u8], most: usize) -> bool {
        let Ok(mut heads) = self.heads.write() else { return false };
        let fits = heads.len() + head.len() <= most;
        if fits {
            heads.extend_from_slice(head);
            self.any.store(true, Ordering::Relaxed);
        }
        fits
    }
}

/// One entry in the timers of a connection. Whoever has one clears it; an entry left behind costs one early turn.
#[derive(Debug, Default)]
pub(super) struct Timer {
    key: Option<u64>,
}

impl Timer {
    /// Ready at `at`.
    pub(super) fn poll(&mut self, notes: &Notes, at: Instant, cx: &Context<'_>) -> Poll<()> {
        if notes.driver.now() >= at {
            self.clear(notes);
            return Poll::Ready(());
        }
        let mut timers = notes.timers.borrow_mut();
        let mine = self.key.and_then(|key| timers.iter_mut().find(|(other, _, _)| *other == key));
        match mine {
            Some((_, until, waker)) => {
                *until = at;
                waker.clone_from(cx.waker());
            }
            None => {
                let key = notes.next_timer.get();
                notes.next_timer.set(key.wrapping_add(1));
                self.key = Some(key);
                timers.push((key, at, cx.waker().clone()));
            }
        }
        Poll::Pending
    }

    pub(super) fn clear(&mut self, notes: &Notes) {
        if let Some(key) = self.key.take() {
            notes.timers.borrow_mut().retain(|(other, _, _)| *other != key);
        }
    }
}

/// Bytes both ways that need not be a socket's: a connection inside a tunnel.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

/// What a client's bytes come over.
pub(super) enum ClientSocket {
    Tcp(TcpStream),
    Inner(Box<dyn ByteStream>),
}

impl AsyncRead for ClientSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Inner(inner) => Pin::new(&mut **inner).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Inner(inner) => Pin::new(&mut **inner).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, all: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, all),
            Self::Inner(inner) => Pin::new(&mut **inner).poll_write_vectored(cx, all),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Inner(inner) => inner.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Inner(inner) => Pin::new(&mut **inner).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Inner(inner) => Pin::new(&mut **inner).poll_shutdown(cx),
        }
    }
}

/// A client's stream.
pub(super) type ClientStream = Secured<ClientSocket>;

/// What looks at the bytes of a client.
pub(super) enum Looked {
    /// Of HTTP/1.1.
    Heads(Guard),
    /// Of HTTP/2, whose framing leaves nothing to guess; and what is answered there without us.
    Frames(FrameWatch, AnswerWatch),
}

/// A client's stream as hyper sees it.
pub(super) struct Wire {
    stream: ClientStream,
    /// Read already, to tell the versions apart.
    prefix: Vec<u8>,
    watch: Looked,
    notes: Rc<Notes>,
    /// What is being written of an answer before the answer, and how far.
    early: (Vec<u8>, usize),
    /// What stands in the place of what was refused has been given.
    told: bool,
    /// Frames of this turn, and how far they are written.
    kept: (Vec<u8>, usize),
}

/// Bytes of frames that are kept until the end of a turn, so that one call writes the answers of many streams.
const KEPT: usize = 32 << 10;

impl Wire {
    pub(super) const fn new(stream: ClientStream, prefix: Vec<u8>, watch: Looked, notes: Rc<Notes>) -> Self {
        Self { stream, prefix, watch, notes, early: (Vec::new(), 0), told: false, kept: (Vec::new(), 0) }
    }

    /// Something was read already, behind what was looked at.
    pub(super) fn ahead(&mut self, bytes: &[u8]) {
        self.prefix.extend_from_slice(bytes);
    }

    /// Waits for the client without a buffer to read into. False if it has ended.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.prefix.is_empty() {
            let mut piece = [0; 256];
            let mut buf = ReadBuf::new(&mut piece);
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            self.prefix.extend_from_slice(buf.filled());
        }
        Poll::Ready(Ok(!self.prefix.is_empty()))
    }

    /// The stream under it, when hyper is done.
    pub(super) fn into_stream(self) -> ClientStream {
        self.stream
    }

    fn instead(&mut self, why: Refusal, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if why == Refusal::Flood {
            return Poll::Ready(Err(io::Error::other(why.reason())));
        }
        if why == Refusal::TooLarge {
            // Until hyper's own limit, which is the same, is reached.
            let room = buf.initialize_unfilled();
            room.fill(b'a');
            let filled = room.len();
            buf.advance(filled);
        } else if self.told {
            // It was told, answers and ends.
            return Poll::Pending;
        } else {
            buf.put_slice(BAD.get(..BAD.len().min(buf.remaining())).unwrap_or_default());
        }
        self.told = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if let Some(why) = wire.notes.refused.get() {
            return wire.instead(why, buf);
        }
        let before = buf.filled().len();
        if !wire.prefix.is_empty() {
            let count = wire.prefix.len().min(buf.remaining());
            buf.put_slice(wire.prefix.get(..count).unwrap_or_default());
            wire.prefix.drain(..count);
            // With what followed it, so that lines stay whole as far as they have come.
            if wire.prefix.is_empty() && Pin::new(&mut wire.stream).poll_read(cx, buf)?.is_pending() {
                wire.prefix = Vec::new();
            }
        } else if Pin::new(&mut wire.stream).poll_read(cx, buf)?.is_pending() {
            wire.notes.watch.borrow_mut().reads(wire.notes.driver.now());
            return Poll::Pending;
        }
        let read = buf.filled().get(before..).unwrap_or_default();
        wire.notes.came(read.len());
        let mut stage = Stage::Between;
        match &mut wire.watch {
            Looked::Heads(guard) => {
                if wire.notes.opened.get() {
                    guard.open();
                }
                if let Err(refused) = guard.look(read) {
                    wire.notes.refuse(refused.why);
                    buf.set_filled(before + refused.pass);
                    if refused.pass == 0 {
                        return wire.instead(refused.why, buf);
                    }
                }
                stage = guard.stage();
            }
            Looked::Frames(frames, _) => {
                if frames.look(read).is_err() {
                    wire.notes.refuse(Refusal::Flood);
                    return Poll::Ready(Err(io::Error::other(Refusal::Flood.reason())));
                }
            }
        }
        wire.notes.watch.borrow_mut().read(stage, wire.notes.driver.now());
        Poll::Ready(Ok(()))
    }
}

impl Wire {
    /// Writes what comes before an answer, where one may begin: everything that hyper gave is written.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.early.0.is_empty() && self.notes.clean.get() {
            self.early = (self.notes.take_early(), 0);
        }
        while let Some(rest) = self.early.0.get(self.early.1..).filter(|rest| !rest.is_empty()) {
            let count = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.early.1 += count;
            self.notes.went(count);
        }
        self.early = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Writes what was kept.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.kept.0.get(self.kept.1..).filter(|rest| !rest.is_empty()) {
            let result = Pin::new(&mut self.stream).poll_write(cx, rest);
            let count = std::task::ready!(self.wrote(result))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.1 += count;
        }
        // A connection that is silent keeps no room for it.
        self.kept = (Vec::new(), 0);
        self.notes.kept.set(false);
        Poll::Ready(Ok(()))
    }

    /// Keeps what is to be written, if it is little. What is more is written behind what is kept.
    fn keep(&mut self, all: &[IoSlice<'_>], cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        let count: usize = all.iter().map(|slice| slice.len()).sum();
        if self.notes.corked.get() && self.kept.0.len() + count <= KEPT {
            let (len, room) = (self.kept.0.len(), self.kept.0.capacity() - self.kept.0.len());
            if room < count {
                // One answer, or many: grown step by step, what is kept would be copied with each step.
                self.kept.0.reserve_exact(if len == 0 { count.max(2 << 10) } else { KEPT - len });
            }
            all.iter().for_each(|slice| self.kept.0.extend_from_slice(slice));
            self.goes(all, count);
            self.notes.kept.set(true);
            return Poll::Ready(Ok(Some(count)));
        }
        std::task::ready!(self.poll_kept(cx))?;
        Poll::Ready(Ok(None))
    }

    /// So many bytes of what hyper gave are taken: counts what its library for HTTP/2 refuses by them.
    fn goes(&mut self, all: &[IoSlice<'_>], mut count: usize) {
        let Looked::Frames(_, answers) = &mut self.watch else { return };
        for slice in all {
            let taken = count.min(slice.len());
            let refusals = answers.look(slice.get(..taken).unwrap_or_default());
            for (number, why) in [(refusals.malformed, Refusal::Malformed), (refusals.large, Refusal::TooLarge)] {
                (0..number).for_each(|_| self.notes.driver.raise("http_refused", &self.notes.listener, why.reason()));
            }
            count -= taken;
        }
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.notes.clean.set(false);
        match &result {
            Poll::Ready(Ok(count)) => {
                if let Looked::Frames(frames, _) = &mut self.watch {
                    frames.sent(*count);
                }
                self.notes.went(*count);
                self.notes.watch.borrow_mut().wrote(false, self.notes.driver.now());
            }
            Poll::Pending => self.notes.watch.borrow_mut().wrote(true, self.notes.driver.now()),
            Poll::Ready(Err(_)) => {}
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_early(cx))?;
        if let Some(count) = std::task::ready!(self.keep(&[IoSlice::new(bytes)], cx))? {
            return Poll::Ready(Ok(count));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &result {
            self.goes(&[IoSlice::new(bytes)], *count);
        }
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_early(cx))?;
        if let Some(count) = std::task::ready!(self.keep(all, cx))? {
            return Poll::Ready(Ok(count));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, all);
        if let Poll::Ready(Ok(count)) = &result {
            self.goes(all, *count);
        }
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once it has nothing left to write.
        self.notes.clean.set(true);
        std::task::ready!(self.poll_early(cx))?;
        if self.notes.corked.get() {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
