//! Streams for those outside the connection's actor. Clones share a stream; it is finished, or not wanted any more,
//! when its last handle is dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::handle::{Closed, Connection};
use super::messages::{Asked, Back, Direction, Granted, Request, SendShared, ToConnection};
use super::session::{Read, StreamError, StreamId};
use super::state_credit::take_both;
use super::state_streams::Priority;
use crate::actors::{Answer, Permit, Refused};

/// The direction of a stream in which this end writes.
#[derive(Clone)]
pub struct SendStream {
    inner: Arc<SendInner>,
}

struct SendInner {
    connection: Connection,
    id: StreamId,
    shared: Arc<SendShared>,
    release: Option<Permit<ToConnection>>,
}

impl Drop for SendInner {
    fn drop(&mut self) {
        if let Some(release) = self.release.take()
            && self.shared.fate.get().is_none()
        {
            let released = Asked::Released(self.id, Direction::Send);
            let _ended = release.tell(ToConnection::Request(Request::OfStreams(released)));
        }
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendStream").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

/// What becomes of bytes that were accepted: [`flushed`](Self::flushed) tells when the last of them is on its way.
#[derive(Debug)]
pub struct Flush {
    answer: Option<Answer<Result<(), StreamError>>>,
}

impl Flush {
    /// Waits until QUIC has taken all of the bytes to send them under its congestion window.
    ///
    /// # Errors
    /// Why they were dropped instead.
    pub async fn flushed(self) -> Result<(), StreamError> {
        match self.answer {
            Some(answer) => answer.0.await.unwrap_or(Err(StreamError::Closed)),
            None => Ok(()),
        }
    }
}

impl SendStream {
    pub(super) fn new(
        connection: Connection,
        id: StreamId,
        shared: Arc<SendShared>,
        release: Permit<ToConnection>,
    ) -> Self {
        Self { inner: Arc::new(SendInner { connection, id, shared, release: Some(release) }) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.inner.id
    }

    /// The connection it belongs to.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// Writes bytes of any number, without copying them; waits for credit. When it comes back they are accepted: they
    /// will be sent in order unless the stream or the connection is given up. A write of at most the stream's credit
    /// (256 KiB by default) stays in one piece; longer ones may be interleaved with those of other handles.
    ///
    /// A call that is given up while it waits has written a beginning, or nothing.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn write(&self, bytes: impl Into<Bytes>) -> Result<(), StreamError> {
        self.write_all(bytes.into(), false).await.map(drop)
    }

    /// As [`write`](Self::write), and answers with what tells when the bytes are on their way.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn write_tracked(&self, bytes: impl Into<Bytes>) -> Result<Flush, StreamError> {
        self.write_all(bytes.into(), true).await
    }

    async fn write_all(&self, mut bytes: Bytes, tracked: bool) -> Result<Flush, StreamError> {
        let most = self.inner.shared.credit.limit().min(self.inner.connection.credit().limit());
        let mut answer = None;
        self.check()?;
        while !bytes.is_empty() {
            let wanted = bytes.len().min(most);
            let granted = self.credit(wanted).await?;
            let piece = bytes.split_to(granted.bytes.min(bytes.len()));
            let done = (tracked && bytes.is_empty()).then(|| {
                let (reply, later) = crate::actors::Reply::new();
                answer = Some(later);
                reply
            });
            let write = Asked::Write { stream: self.inner.id, bytes: piece, done };
            match self.inner.connection.mail().tell(ToConnection::Request(Request::OfStreams(write))) {
                Ok(()) => {}
                Err(Refused::Full(m)) => {
                    let room = self.inner.connection.mail().permit(0).await.map_err(|_| self.why())?;
                    room.tell(m).map_err(|_| self.why())?;
                }
                Err(Refused::TooLarge(_) | Refused::Closed(_)) => return Err(self.why()),
            }
            granted.spend();
        }
        Ok(Flush { answer })
    }

    /// Writes bytes if there is credit and room for all of them now. Never waits.
    ///
    /// # Errors
    /// [`StreamError::Full`] without; nothing was written then. Else see [`StreamError`].
    pub fn try_write(&self, bytes: impl Into<Bytes>) -> Result<(), StreamError> {
        let bytes = bytes.into();
        self.check()?;
        let connection = self.inner.connection.credit();
        let credit = &self.inner.shared.credit;
        if connection.is_awaited() || !take_both(credit, connection, bytes.len()) {
            return Err(StreamError::Full(credit.free().min(connection.free())));
        }
        let length = bytes.len();
        let write = Asked::Write { stream: self.inner.id, bytes, done: None };
        self.inner.connection.mail().tell(ToConnection::Request(Request::OfStreams(write))).map_err(|refused| {
            credit.give(length);
            connection.give(length);
            if refused.is_full() { StreamError::Full(0) } else { self.why() }
        })
    }

    /// Waits for credit for `bytes`, and for room in the mailbox to say it.
    pub(super) async fn reserve(&self, bytes: usize) -> Result<(Granted, Permit<ToConnection>), StreamError> {
        let room = self.inner.connection.mail().permit(0).await.map_err(|_| self.why())?;
        Ok((self.credit(bytes).await?, room))
    }

    /// Writes bytes for which both were reserved.
    pub(super) fn write_reserved(
        &self,
        (granted, room): (Granted, Permit<ToConnection>),
        bytes: Bytes,
    ) -> Result<(), StreamError> {
        let write = Asked::Write { stream: self.inner.id, bytes, done: None };
        room.tell(ToConnection::Request(Request::OfStreams(write))).map_err(|_| self.why())?;
        granted.spend();
        Ok(())
    }

    /// Gives the stream up without waiting.
    pub(super) fn reset_now(&self, code: u64) {
        self.inner.connection.insist(Asked::Reset(self.inner.id, code));
    }

    /// Takes credit, standing in line with others if need be.
    pub(super) async fn credit(&self, bytes: usize) -> Result<Granted, StreamError> {
        self.check()?;
        let connection = self.inner.connection.credit();
        let shared = &self.inner.shared;
        if !connection.is_awaited() && take_both(&shared.credit, connection, bytes) {
            return Ok(Granted { stream: shared.clone(), connection: connection.clone(), bytes });
        }
        let stream = self.inner.id;
        let asked =
            self.inner.connection.answer_kept(|reply| Asked::Credit { stream, bytes, reply }, Back::Credit).await;
        match asked {
            // The actor's word for a stream that is over; the reason is in `fate`.
            Ok(Err(StreamError::Finished)) => Err(self.why_finished()),
            Ok(answer) => answer,
            Err(Closed) => Err(self.why()),
        }
    }

    fn check(&self) -> Result<(), StreamError> {
        self.inner.shared.fate.get().map_or(Ok(()), |fate| Err(*fate))
    }

    fn why(&self) -> StreamError {
        self.inner.shared.fate.get().copied().unwrap_or(StreamError::Closed)
    }

    fn why_finished(&self) -> StreamError {
        self.inner.shared.fate.get().copied().unwrap_or(StreamError::Finished)
    }

    /// Writes the end of the stream, after what was written before. Waits for room in the connection's mailbox only.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn finish(&self) -> Result<(), StreamError> {
        self.check()?;
        self.inner.connection.tell_asked(Asked::Finish(self.inner.id)).await.map_err(|Closed| self.why())
    }

    /// Gives the stream up: what was not sent is dropped, and the peer is told `code`.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn reset(&self, code: u64) -> Result<(), StreamError> {
        self.check()?;
        self.inner.connection.tell_asked(Asked::Reset(self.inner.id, code)).await.map_err(|Closed| self.why())?;
        // From now on, and not only from when the actor has heard of it.
        let _first = self.inner.shared.fate.set(StreamError::Finished);
        Ok(())
    }

    /// Changes the priority, for what is not sent yet.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn prioritise(&self, priority: Priority) -> Result<(), StreamError> {
        self.check()?;
        let request = Asked::Prioritise(self.inner.id, priority);
        self.inner.connection.tell_asked(request).await.map_err(|Closed| self.why())
    }

    /// If data are unsent at `at`, the stream is given up with `code`. `None` takes it back.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn expire(&self, at: Option<Instant>, code: u64) -> Result<(), StreamError> {
        self.check()?;
        let request = Asked::Expire(self.inner.id, at, code);
        self.inner.connection.tell_asked(request).await.map_err(|Closed| self.why())
    }
}

/// The direction of a stream in which the peer writes.
#[derive(Clone)]
pub struct RecvStream {
    inner: Arc<RecvInner>,
}

struct RecvInner {
    connection: Connection,
    id: StreamId,
    release: Option<Permit<ToConnection>>,
}

impl Drop for RecvInner {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            let released = Asked::Released(self.id, Direction::Receive);
            let _ended = release.tell(ToConnection::Request(Request::OfStreams(released)));
        }
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvStream").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl RecvStream {
    pub(super) fn new(connection: Connection, id: StreamId, release: Permit<ToConnection>) -> Self {
        Self { inner: Arc::new(RecvInner { connection, id, release: Some(release) }) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.inner.id
    }

    /// The connection it belongs to.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// Waits for data: at most `max` bytes (1 MiB at most), or `None` at the end. What nobody reads stays with QUIC,
    /// whose flow control then holds the peer back.
    ///
    /// A call that is given up while it waits loses nothing: what it had got is for the next.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn read(&self, max: usize) -> Result<Option<Bytes>, StreamError> {
        let stream = self.inner.id;
        let back = |read| Back::Read(stream, read);
        let read = self.inner.connection.answer_kept(|reply| Asked::Read { stream, max, reply }, back).await;
        match read {
            Ok(Ok(Read::Data(bytes))) => Ok(Some(bytes)),
            Ok(Ok(Read::End | Read::Nothing)) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(Closed) => Err(StreamError::Closed),
        }
    }

    /// Reads to the end, at most `limit` bytes.
    ///
    /// # Errors
    /// [`StreamError::Full`] if there are more; what was read is gone then. Else see [`StreamError`].
    pub async fn read_to_end(&self, limit: usize) -> Result<Bytes, StreamError> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.read(256 << 10).await? {
            if all.len() + bytes.len() > limit {
                return Err(StreamError::Full(limit));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    /// Wants no more, without waiting.
    pub(super) fn stop_now(&self, code: u64) {
        self.inner.connection.insist(Asked::Stop(self.inner.id, code));
    }

    /// Wants no more: what comes is dropped, and the peer is told `code`.
    ///
    /// # Errors
    /// [`StreamError::Closed`].
    pub async fn stop(&self, code: u64) -> Result<(), StreamError> {
        self.inner.connection.tell_asked(Asked::Stop(self.inner.id, code)).await.map_err(|Closed| StreamError::Closed)
    }
}
