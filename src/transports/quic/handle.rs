//! A connection for those outside its actor: cheap to clone, usable from any thread and any task.
//!
//! Everything goes through the actor's mailbox. A handle keeps room there for its last word, so that the actor always
//! learns when nobody holds the connection any more: then it is closed with code 0. Waiting calls have no time limit of
//! their own and end when the connection does; they need no particular event loop. Plain threads use `blocking`.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::actor_engine::Engine;
use super::handle_io::Duplex;
use super::handle_kept::Kept;
use super::handle_stream::{RecvStream, SendStream};
use super::messages::{Asked, Back, Farewell, MigrateError, NewStream, Request, ToConnection};
use super::session::{Code, End, Event, Info, OpenError, Role, Session, StreamId, StreamKind, Who};
use super::state_credit::Credit;
use super::state_datagrams::{Datagram, NotQueued};
use super::state_streams::Priority;
use crate::actors::{Mail, Permit, Refused, Reply};

/// A connection. See the top of the file.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    mail: Mail<ToConnection>,
    credit: Arc<Credit>,
    ended: Arc<OnceLock<Farewell>>,
    role: Role,
    alpn: Bytes,
    server_name: Option<Arc<str>>,
    peer: SocketAddr,
    arbiter: usize,
    release: Option<Permit<ToConnection>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            // Refused only by a connection that has ended.
            let _ended = release.tell(ToConnection::Request(Request::Abandoned));
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.inner.mail.id())
            .field("peer", &self.inner.peer)
            .finish_non_exhaustive()
    }
}

/// The connection has ended; [`Connection::end`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection has ended")
    }
}

impl std::error::Error for Closed {}

/// Why a datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatagramError {
    /// Larger than the path allows now.
    TooLarge {
        /// What it allows; 0 if the peer takes no datagrams.
        max: usize,
    },
    /// No room: it was dropped, and counted.
    Dropped,
    /// The connection has ended.
    Closed,
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { max } => write!(f, "the path allows {max} bytes"),
            Self::Dropped => f.write_str("no room in the queue"),
            Self::Closed => Closed.fmt(f),
        }
    }
}

impl std::error::Error for DatagramError {}

/// What handles of one connection are made of.
pub(super) struct Origin {
    pub(super) mail: Mail<ToConnection>,
    pub(super) ended: Arc<OnceLock<Farewell>>,
}

impl Connection {
    /// A stream for somebody outside the actor, if the mailbox has room to keep for it and both directions are open.
    pub(super) fn stream(engine: &mut Engine, stream: StreamId) -> Option<Duplex> {
        let Origin { mail, ended } = engine.origin.as_ref()?;
        let (mail, ended) = (mail.clone(), ended.clone());
        let connection = Self::new(mail.clone(), engine, ended)?;
        let (sending, receiving) = (mail.try_permit(0).ok()?, mail.try_permit(0).ok()?);
        let shared = engine.share(stream)?;
        let send = SendStream::new(connection.clone(), stream, shared, sending);
        Some(Duplex::new(send, RecvStream::new(connection, stream, receiving)))
    }

    /// A handle, if the mailbox has room to keep for it.
    pub(super) fn new(mail: Mail<ToConnection>, engine: &Engine, ended: Arc<OnceLock<Farewell>>) -> Option<Self> {
        let release = mail.try_permit(0).ok()?;
        let info = engine.info();
        Some(Self {
            inner: Arc::new(Inner {
                mail,
                credit: engine.credit.clone(),
                ended,
                role: info.role,
                alpn: info.alpn,
                server_name: info.server_name,
                peer: info.peer,
                arbiter: info.arbiter,
                release: Some(release),
            }),
        })
    }

    pub(super) fn credit(&self) -> &Arc<Credit> {
        &self.inner.credit
    }

    pub(super) fn mail(&self) -> &Mail<ToConnection> {
        &self.inner.mail
    }

    /// As [`tell`](Self::tell), for what concerns streams.
    pub(super) async fn tell_asked(&self, asked: Asked) -> Result<(), Closed> {
        self.tell(Request::OfStreams(asked)).await
    }

    /// Tells the actor what must not wait; past data if the mailbox is full.
    pub(super) fn insist(&self, asked: Asked) {
        let told = self.inner.mail.tell(ToConnection::Request(Request::OfStreams(asked)));
        if let Err(Refused::Full(m)) = told {
            let _ended = self.inner.mail.urgent(m);
        }
    }

    /// Tells the actor, waiting for room in its mailbox if need be.
    pub(super) async fn tell(&self, request: Request) -> Result<(), Closed> {
        match self.inner.mail.tell(ToConnection::Request(request)) {
            Ok(()) => Ok(()),
            Err(Refused::Full(m)) => {
                let room = self.inner.mail.permit(0).await.map_err(|_| Closed)?;
                room.tell(m).map_err(|_| Closed)
            }
            Err(Refused::TooLarge(_) | Refused::Closed(_)) => Err(Closed),
        }
    }

    /// Tells the actor something that brings an answer.
    pub(super) async fn answer<R>(&self, make: impl FnOnce(Reply<R>) -> Asked) -> Result<R, Closed> {
        let (reply, answer) = Reply::new();
        self.tell_asked(make(reply)).await?;
        answer.0.await.map_err(|_| Closed)
    }

    /// As [`answer`](Self::answer), for an answer that takes something from the connection: if nobody takes it, it goes
    /// back.
    pub(super) async fn answer_kept<R: Send>(
        &self,
        make: impl FnOnce(Reply<R>) -> Asked,
        back: impl FnOnce(R) -> Back,
    ) -> Result<R, Closed> {
        let room = self.inner.mail.permit(0).await.map_err(|_| Closed)?;
        let (reply, answer) = Reply::new();
        let back = |answer| ToConnection::Request(Request::OfStreams(Asked::Back(back(answer))));
        let kept = Kept::new(answer, room, back);
        self.tell_asked(make(reply)).await?;
        kept.answer().await
    }

    /// Which end this is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.inner.role
    }

    /// The application protocol that was agreed on.
    #[must_use]
    pub fn alpn(&self) -> &[u8] {
        &self.inner.alpn
    }

    /// The name the client asked for.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.inner.server_name.as_deref()
    }

    /// The peer's address when the connection was established; see [`info`](Self::info) for the present one.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.inner.peer
    }

    /// The arbiter its actor is pinned to.
    #[must_use]
    pub fn arbiter(&self) -> usize {
        self.inner.arbiter
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.inner.ended.get().map(|farewell| farewell.end.clone())
    }

    /// Opens a bidirectional stream; waits until the peer allows one. A call that is given up leaves none open.
    ///
    /// # Errors
    /// See [`OpenError`]; never `Limit`.
    pub async fn open(&self, priority: Priority) -> Result<(SendStream, RecvStream), OpenError> {
        let rooms = [self.room().await?, self.room().await?];
        self.both(self.opened(StreamKind::Bidirectional, priority).await?, rooms)
    }

    /// Opens a unidirectional stream; waits until the peer allows one. A call that is given up leaves none open.
    ///
    /// # Errors
    /// See [`OpenError`]; never `Limit`.
    pub async fn open_uni(&self, priority: Priority) -> Result<SendStream, OpenError> {
        let room = self.room().await?;
        self.send_stream(self.opened(StreamKind::Unidirectional, priority).await?, room)
    }

    /// Takes a bidirectional stream the peer has opened; waits for one. A stream that its peer gives up before it is
    /// taken is given up here too, and not handed out. A call that is given up leaves its stream for the next.
    ///
    /// # Errors
    /// See [`OpenError`]; never `Limit`.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), OpenError> {
        let rooms = [self.room().await?, self.room().await?];
        self.both(self.accepted(StreamKind::Bidirectional).await?, rooms)
    }

    /// Takes a unidirectional stream the peer has opened; waits for one. One that its peer gives up before it is taken
    /// is not handed out. A call that is given up leaves its stream for the next.
    ///
    /// # Errors
    /// See [`OpenError`]; never `Limit`.
    pub async fn accept_uni(&self) -> Result<RecvStream, OpenError> {
        let room = self.room().await?;
        let new = self.accepted(StreamKind::Unidirectional).await?;
        Ok(RecvStream::new(self.clone(), new.stream, room))
    }

    async fn opened(&self, kind: StreamKind, priority: Priority) -> Result<NewStream, OpenError> {
        let answer = self.answer_kept(|reply| Asked::Open { kind, priority, reply }, Back::Opened).await;
        answer.map_err(|_| OpenError::Closed)?
    }

    async fn accepted(&self, kind: StreamKind) -> Result<NewStream, OpenError> {
        let answer = self.answer_kept(|reply| Asked::Accept { kind, reply }, Back::Accepted).await;
        answer.map_err(|_| OpenError::Closed)?
    }

    /// The room for the last word of its handles was kept before the stream was asked for: nothing waits any more once
    /// it is here.
    fn both(
        &self,
        new: NewStream,
        [sending, receiving]: [Permit<ToConnection>; 2],
    ) -> Result<(SendStream, RecvStream), OpenError> {
        let receive = RecvStream::new(self.clone(), new.stream, receiving);
        Ok((self.send_stream(new, sending)?, receive))
    }

    fn send_stream(&self, new: NewStream, room: Permit<ToConnection>) -> Result<SendStream, OpenError> {
        // A stream without a send side was stopped before it came here.
        let shared = new.send.ok_or(OpenError::Closed)?;
        Ok(SendStream::new(self.clone(), new.stream, shared, room))
    }

    async fn room(&self) -> Result<Permit<ToConnection>, OpenError> {
        self.inner.mail.permit(0).await.map_err(|_| OpenError::Closed)
    }

    /// Sends a datagram. If the queue is one to wait for ([`WhenFull::Wait`](super::WhenFull)), waits.
    ///
    /// # Errors
    /// See [`DatagramError`].
    pub async fn send_datagram(&self, datagram: Datagram) -> Result<(), DatagramError> {
        let queued = self.answer(|reply| Asked::Datagram { datagram, reply: Some(reply) }).await;
        match queued {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) if self.inner.ended.get().is_some() => Err(DatagramError::Closed),
            Ok(Err(NotQueued::TooLarge { max })) => Err(DatagramError::TooLarge { max }),
            Ok(Err(NotQueued::Full(_) | NotQueued::Dropped)) => Err(DatagramError::Dropped),
            Err(Closed) => Err(DatagramError::Closed),
        }
    }

    /// Sends a datagram and does not wait to learn what became of it: what cannot be queued is dropped, and counted.
    ///
    /// # Errors
    /// [`DatagramError::Dropped`] if the mailbox is full, or `Closed`.
    pub fn cast_datagram(&self, datagram: Datagram) -> Result<(), DatagramError> {
        let told =
            self.inner.mail.tell(ToConnection::Request(Request::OfStreams(Asked::Datagram { datagram, reply: None })));
        told.map_err(|refused| if refused.is_full() { DatagramError::Dropped } else { DatagramError::Closed })
    }

    /// The longest datagram the path allows now; `None` if the peer takes none.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn max_datagram(&self) -> Result<Option<usize>, Closed> {
        self.answer(Asked::MaxDatagram).await
    }

    /// Waits for datagrams; answers at least one and at most 64, in the order they came. A call that is given up loses
    /// none.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn datagrams(&self) -> Result<Vec<Bytes>, Closed> {
        self.answer_kept(Asked::Datagrams, Back::Datagrams).await
    }

    /// What happens from now on. One reader at a time: a second one takes over from the first.
    #[must_use]
    pub fn events(&self) -> Events {
        // Told at once: what happens before the first is asked for is to be among them.
        self.insist(Asked::Watch);
        Events { connection: self.clone(), queue: VecDeque::new(), over: false }
    }

    /// A reading of the connection.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn info(&self) -> Result<Info, Closed> {
        self.answer(Asked::Info).await
    }

    /// The session to resume with, once the server has sent one: for [`connect`](super::QuicClient::connect).
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn session(&self) -> Result<Option<Bytes>, Closed> {
        self.answer(Asked::Session).await
    }

    /// Hands a message to the application that runs inside the connection. Dropped if there is none.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn message(&self, m: Box<dyn Any + Send>) -> Result<(), Closed> {
        self.tell(Request::Tell(m)).await
    }

    /// Moves a client's connection to another socket, and so to another port: its streams go on. The old path is used
    /// until the peer has answered on the new one. Answers the new local address.
    ///
    /// Takes a round trip; a path on which nobody answers is given up after three probe timeouts. Right after the
    /// handshake the peer may have given no spare id yet: [`MigrateError::NoIds`], try again.
    ///
    /// # Errors
    /// See [`MigrateError`].
    pub async fn migrate(&self) -> Result<SocketAddr, MigrateError> {
        let (reply, answer) = Reply::new();
        self.tell(Request::Migrate(reply)).await.map_err(|_| MigrateError::Closed)?;
        answer.0.await.unwrap_or(Err(MigrateError::Closed))
    }

    /// Closes the connection: what was not sent is dropped, and the peer is told the code and the text. Does not wait;
    /// see [`join`](Self::join). One that has ended stays as it is.
    pub fn close(&self, code: u64, text: &str) {
        let request = ToConnection::Request(Request::Close { code, text: text.into() });
        // Urgent, so that a full mailbox does not hold it up; with many others waiting to close, data order will do.
        if let Err(refused) = self.inner.mail.urgent(request) {
            let _ended = self.inner.mail.tell(refused.into_inner());
        }
    }

    /// Waits until the connection has ended and its close has left; answers why, and its last reading.
    pub async fn join(&self) -> Farewell {
        let (reply, answer) = Reply::new();
        let asked = self.tell(Request::Join(reply)).await;
        let answer = if asked.is_ok() { answer.0.await.ok() } else { None };
        answer.unwrap_or_else(|| self.farewell())
    }

    /// What is known of a connection that is no more.
    pub(super) fn farewell(&self) -> Farewell {
        self.inner.ended.get().cloned().unwrap_or_else(|| Farewell {
            // Its actor ended without a word: by a panic.
            end: End { who: Who::Local, code: Code::None, text: "".into(), reason: "panic" },
            info: Info {
                role: self.inner.role,
                state: "closing",
                arbiter: self.inner.arbiter,
                alpn: self.inner.alpn.clone(),
                server_name: self.inner.server_name.clone(),
                local: SocketAddr::from(([0, 0, 0, 0], 0)),
                peer: self.inner.peer,
                rtt: std::time::Duration::ZERO,
                window: 0,
                bandwidth: None,
                mtu: 0,
                packets: [0; 3],
                bytes: [0; 3],
                streams: 0,
                queued: 0,
                resumed: false,
                age: std::time::Duration::ZERO,
            },
        })
    }
}

/// The events of a connection, one after the other; the end comes once and last.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
    queue: VecDeque<Event>,
    over: bool,
}

impl Events {
    /// Whether the end was told, or another reader has taken over.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// The next event; `None` after the end. A call that is given up loses none.
    pub async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        if self.queue.is_empty() {
            match self.connection.answer_kept(Asked::Events, Back::Events).await {
                Ok(events) => self.queue.extend(events),
                Err(Closed) if self.connection.mail().is_closed() => {
                    self.queue.push_back(Event::Closed(self.connection.farewell().end));
                }
                // Another reader has taken over.
                Err(Closed) => self.over = true,
            }
        }
        let event = self.queue.pop_front();
        self.over |= matches!(event, Some(Event::Closed(_)));
        event
    }
}
