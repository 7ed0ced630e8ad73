//! What one request and the connection that carries it share, on one thread: a piece of the request that has come, and
//! what of the answer waits to be sent.
//!
//! The connection never waits here. A request whose body is read and has not come, or whose answer has no room, leaves
//! its waker; the connection calls it when there is more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Frame, SizeHint};

use super::codec::{Code, frame, put_frame};
use super::codec_fields::{put_response, put_trailers};

/// Bytes of an answer that wait here before its body is asked for more.
const ENOUGH: usize = 16 << 10;
/// Pieces up to this are copied behind each other, larger ones are passed on as they are.
const SMALL: usize = 4 << 10;

/// The body of a request did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client gave the request up")
    }
}

impl std::error::Error for Broken {}

/// How far a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Whole,
    Broken,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Finish,
    Reset(Code),
}

#[derive(Debug)]
struct Inner {
    came: Option<Bytes>,
    trailers: Option<HeaderMap>,
    end: End,
    /// What `Content-Length` says is still to come.
    left: Option<u64>,
    /// The client waits for `100 Continue`.
    expects: bool,
    reader: Option<Waker>,
    small: BytesMut,
    out: VecDeque<Bytes>,
    waiting: usize,
    last: Option<Last>,
    writer: Option<Waker>,
    /// Whoever works on the answer, while it waits for somebody else.
    task: Option<Waker>,
    given_up: bool,
    listed: bool,
}

/// The streams that a request has done something with since the connection last looked. A body may be read by another
/// actor of the arbiter, the one that sends it on: then the connection has to be woken.
#[derive(Debug, Default)]
pub(super) struct Touched {
    list: RefCell<Vec<u64>>,
    waker: RefCell<Option<Waker>>,
    /// The connection is in its turn and looks anyway.
    inside: Cell<bool>,
}

impl Touched {
    /// The connection's turn begins: it looks, until it says otherwise.
    pub(super) fn enter(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.inside.set(true);
    }

    pub(super) fn leave(&self) {
        self.inside.set(false);
    }

    pub(super) fn take(&self) -> Vec<u64> {
        self.list.take()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    fn add(&self, id: u64) {
        self.list.borrow_mut().push(id);
        if !self.inside.get()
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Stream {
    id: u64,
    touched: Rc<Touched>,
    inner: RefCell<Inner>,
}

impl Stream {
    pub(super) fn new(id: u64, touched: Rc<Touched>) -> Rc<Self> {
        let inner = Inner {
            came: None,
            trailers: None,
            end: End::Open,
            left: None,
            expects: false,
            reader: None,
            small: BytesMut::new(),
            out: VecDeque::new(),
            waiting: 0,
            last: None,
            writer: None,
            task: None,
            given_up: false,
            listed: false,
        };
        Rc::new(Self { id, touched, inner: RefCell::new(inner) })
    }

    fn touch(&self, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.listed, true) {
            self.touched.add(self.id);
        }
    }

    // The connection's side.

    /// The connection has seen to it.
    pub(super) fn unlist(&self) {
        self.inner.borrow_mut().listed = false;
    }

    /// The head has come.
    pub(super) fn begins(&self, length: Option<u64>, expects: bool) {
        let mut inner = self.inner.borrow_mut();
        inner.left = length;
        inner.expects = expects;
    }

    /// Whether a piece may be put in.
    pub(super) fn takes(&self) -> bool {
        let inner = self.inner.borrow();
        inner.came.is_none() && inner.end == End::Open
    }

    /// A piece of the body.
    pub(super) fn came(&self, piece: Bytes) {
        let mut inner = self.inner.borrow_mut();
        inner.left = inner.left.map(|left| left.saturating_sub(piece.len() as u64));
        inner.came = Some(piece);
        wake(inner.reader.take());
    }

    pub(super) fn trailers(&self, fields: HeaderMap) {
        self.inner.borrow_mut().trailers = Some(fields);
    }

    /// The body is there in full.
    pub(super) fn whole(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.end = End::Whole;
        wake(inner.reader.take());
    }

    /// The client wants no answer, or sends no more of the request: both ways are over.
    pub(super) fn give_up(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.end = End::Broken;
        inner.given_up = true;
        inner.out.clear();
        inner.small.clear();
        inner.waiting = 0;
        let wakers = [inner.reader.take(), inner.writer.take(), inner.task.take()];
        drop(inner);
        wakers.into_iter().for_each(wake);
    }

    /// The next bytes to send, at most this many.
    pub(super) fn next(&self, most: usize) -> Option<Bytes> {
        let mut inner = self.inner.borrow_mut();
        if inner.out.is_empty() && !inner.small.is_empty() {
            let small = inner.small.split().freeze();
            inner.out.push_back(small);
        }
        let first = inner.out.front_mut()?;
        let piece = if first.len() > most { first.split_to(most) } else { std::mem::take(first) };
        if first.is_empty() {
            inner.out.pop_front();
        }
        inner.waiting = inner.waiting.saturating_sub(piece.len());
        if inner.waiting < ENOUGH {
            wake(inner.writer.take());
        }
        Some(piece)
    }

    pub(super) fn has_more(&self) -> bool {
        self.inner.borrow().waiting > 0
    }

    /// How the answer ends, once all before it was taken.
    pub(super) fn last(&self) -> Option<Last> {
        let inner = self.inner.borrow();
        inner.last.filter(|last| inner.waiting == 0 || matches!(last, Last::Reset(_)))
    }

    // The request's side.

    /// Ready when the answer may go on, or when nobody wants it any more.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.inner.borrow_mut();
        if inner.waiting < ENOUGH || inner.given_up {
            return Poll::Ready(());
        }
        inner.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when nobody wants the answer any more.
    pub(super) fn poll_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.inner.borrow_mut();
        if inner.given_up {
            return Poll::Ready(());
        }
        if !inner.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            inner.task = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn put(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut inner = self.inner.borrow_mut();
        if inner.given_up {
            return;
        }
        let before = inner.small.len();
        write(&mut inner.small);
        inner.waiting += inner.small.len() - before;
        self.touch(&mut inner);
    }

    pub(super) fn put_head(&self, status: StatusCode, fields: &HeaderMap) {
        self.put(|out| put_response(out, status, fields));
    }

    pub(super) fn put_data(&self, data: Bytes) {
        let length = data.len();
        if length == 0 {
            return;
        }
        self.put(|out| {
            put_frame(out, frame::DATA, length);
            if length <= SMALL {
                out.extend_from_slice(&data);
            }
        });
        if length > SMALL {
            self.put_raw(data);
        }
    }

    /// Bytes as they are, behind what is there.
    fn put_raw(&self, data: Bytes) {
        let mut inner = self.inner.borrow_mut();
        if inner.given_up {
            return;
        }
        let small = inner.small.split().freeze();
        inner.waiting += data.len();
        inner.out.extend([small, data].into_iter().filter(|bytes| !bytes.is_empty()));
        self.touch(&mut inner);
    }

    pub(super) fn put_trailers(&self, fields: &HeaderMap) {
        self.put(|out| put_trailers(out, fields));
    }

    pub(super) fn ends(&self, last: Last) {
        let mut inner = self.inner.borrow_mut();
        inner.last = Some(last);
        self.touch(&mut inner);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The body of a request. Dropped before its end, the rest is not read.
#[derive(Debug)]
pub struct Incoming {
    pub(super) stream: Rc<Stream>,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let stream = &self.stream;
        if std::mem::take(&mut stream.inner.borrow_mut().expects) {
            // RFC 9114, section 4.1: the client waits to hear that its body is wanted.
            stream.put_head(StatusCode::CONTINUE, &HeaderMap::new());
        }
        let mut inner = stream.inner.borrow_mut();
        if let Some(piece) = inner.came.take() {
            // The next may be read while this one is on its way.
            stream.touch(&mut inner);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match inner.end {
            End::Whole => Poll::Ready(inner.trailers.take().map(|fields| Ok(Frame::trailers(fields)))),
            End::Broken => Poll::Ready(Some(Err(Broken))),
            End::Open => {
                inner.reader = Some(cx.waker().clone());
                stream.touch(&mut inner);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.stream.inner.borrow();
        inner.end == End::Whole && inner.came.is_none() && inner.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.stream.inner.borrow();
        let here = inner.came.as_ref().map_or(0, |piece| piece.len() as u64);
        match (inner.end, inner.left) {
            (End::Whole, _) => SizeHint::with_exact(here),
            (_, Some(left)) => SizeHint::with_exact(here + left),
            (_, None) => SizeHint::default(),
        }
    }
}
