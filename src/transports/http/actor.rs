//! The actor of one client's connection: handshake, which version is spoken, hyper's connection, its limits, its end.
//!
//! hyper decides nothing about who may stay: the watch does, by one alarm. A drain tells the client that no more
//! requests are taken (GOAWAY, or `Connection: close`) and ends the connection when the last is answered.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Version};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::codec_forward::{Sender, Way};
use super::codec_frames::{AnswerWatch, FrameWatch};
use super::codec_head::{Guard, Refusal, Stage};
use super::exchange::Service;
use super::nursery::{Brood, Nursery};
use super::pool::{Pool, by};
use super::record::{Record, Tallies};
use super::site::{Published, Settings, Site, Upstream};
use super::state_watch::{Late, Watch};
use super::tunnel::Tunnel;
use super::wire::{ByteStream, ClientSocket, ClientStream, Looked, Notes, Wire};
use super::workers::Workers;
use crate::actors::clock::later;
use crate::actors::{Driver, Fault, Kind, Place, SpawnError, Spec, Turn, shelf};
use crate::memory::View;
use crate::transports::kit::admission::Ticket;
use crate::transports::tcp::{Accepted, Never, OnAccept};

/// How a client says that it speaks HTTP/2 without being asked (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long, and for how many bytes, a client that is told off is listened to, so that it hears the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// What HTTP/2 lets a client send ahead on a stream, and on all of them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of answers that wait on one stream of HTTP/2.
const STREAM_BUFFER: usize = 64 << 10;
/// Streams that a client reset before they were looked at; more in a row end the connection (rapid reset).
const RESETS: usize = 32;

/// The kind of a client's connection.
#[derive(Debug)]
pub struct Connection;
impl Kind for Connection {
    const KIND: &'static str = "http";
}

/// Starts an actor for each connection of a listener.
pub struct Connections {
    shared: Arc<Shared>,
    random: RandomState,
    count: u64,
}

struct Shared {
    settings: Arc<Settings>,
    site: Arc<Published>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("listener", &self.shared.settings.listener).finish_non_exhaustive()
    }
}

impl Connections {
    /// For a listener with these settings; each request asks for the site anew.
    #[must_use]
    pub fn new(settings: Arc<Settings>, site: Arc<Published>) -> Self {
        Self { shared: Arc::new(Shared { settings, site }), random: RandomState::new(), count: 0 }
    }

    /// Starts the actor of a client that comes over something else than a socket of TCP, on this arbiter.
    ///
    /// # Errors
    /// When no actor can be started.
    pub fn inside<M: Send + 'static>(
        &mut self,
        stream: impl ByteStream + 'static,
        peer: SocketAddr,
        ticket: Ticket,
        turn: &Turn<'_, M>,
    ) -> Result<(), SpawnError> {
        self.enter(Comes { over: Over::Inner(Box::new(stream)), peer, ticket }, Place::Here, turn)
    }

    fn enter<M: Send + 'static>(&mut self, comes: Comes, place: Place, turn: &Turn<'_, M>) -> Result<(), SpawnError> {
        self.count += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count);
        let (shared, random) = (self.shared.clone(), hasher.finish());
        let make = move |driver| connection(driver, shared, comes, random);
        turn.drive::<Connection, _>(place, Spec::default(), make).map(drop)
    }
}

impl OnAccept for Connections {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        let Accepted { stream, peer, ticket } = accepted;
        self.enter(Comes { over: Over::Tcp(stream), peer, ticket }, Place::LeastLoaded, turn)
    }
}

/// A client on its way to its arbiter.
struct Comes {
    over: Over,
    peer: SocketAddr,
    ticket: Ticket,
}

enum Over {
    Tcp(std::net::TcpStream),
    Inner(Box<dyn ByteStream>),
}

/// What the requests of a connection share.
pub(super) struct Client {
    pub(super) notes: Rc<Notes>,
    pub(super) settings: Arc<Settings>,
    pub(super) peer: SocketAddr,
    pub(super) tls: bool,
    pub(super) version: Version,
    pub(super) trusted: bool,
    /// What runs beside the requests of HTTP/2.
    pub(super) nursery: Nursery,
    site: Arc<Published>,
    /// Once a request has come.
    seen: RefCell<Option<Seen>>,
    ticket: RefCell<Ticket>,
    tunnel: RefCell<Option<Tunnel>>,
    requests: Cell<u64>,
    random: Cell<u64>,
    pub(super) workers: Rc<Workers>,
    /// Of the last request.
    sender: RefCell<Option<Rc<Sender>>>,
    pool: RefCell<Option<Pooled>>,
}

/// An upstream and its connections. Neither lives for the sake of a client that asks for nothing more.
type Pooled = (Weak<Upstream>, std::rc::Weak<Pool>);

/// The site of the last request, and where its arbiter sees the next.
struct Seen {
    view: Rc<RefCell<View<Site>>>,
    site: Arc<Site>,
    tallies: Rc<Tallies>,
}

/// Who has come, and how.
pub(super) struct Came {
    pub(super) peer: SocketAddr,
    pub(super) tls: bool,
    pub(super) version: Version,
    pub(super) ticket: Ticket,
    pub(super) random: u64,
}

impl Client {
    pub(super) fn new(notes: Rc<Notes>, settings: Arc<Settings>, site: Arc<Published>, came: Came) -> Rc<Self> {
        Rc::new(Self {
            notes,
            peer: came.peer,
            tls: came.tls,
            version: came.version,
            trusted: settings.trusted.iter().any(|network| network.contains(came.peer.ip())),
            workers: Workers::of(&settings),
            settings,
            nursery: Nursery::default(),
            site,
            seen: RefCell::default(),
            ticket: RefCell::new(came.ticket),
            tunnel: RefCell::default(),
            requests: Cell::new(0),
            random: Cell::new(came.random),
            sender: RefCell::default(),
            pool: RefCell::default(),
        })
    }

    /// The connections to the servers of this upstream.
    pub(super) fn pool(&self, upstream: &Arc<Upstream>) -> Rc<Pool> {
        let mut last = self.pool.borrow_mut();
        let known = last.as_ref().filter(|(of, _)| Weak::as_ptr(of) == Arc::as_ptr(upstream));
        if let Some(pool) = known.and_then(|(_, pool)| pool.upgrade()) {
            return pool;
        }
        let pool = Pool::of(upstream);
        *last = Some((Arc::downgrade(upstream), Rc::downgrade(&pool)));
        pool
    }

    /// Who sends a request for this authority; nothing if no field could name it.
    pub(super) fn sender(&self, authority: &str) -> Option<Rc<Sender>> {
        let mut last = self.sender.borrow_mut();
        if let Some(sender) = last.as_ref().filter(|sender| sender.authority() == authority) {
            return Some(sender.clone());
        }
        let way = Way { address: self.peer.ip(), tls: self.tls, trusted: self.trusted, version: self.version };
        *last = Sender::new(way, authority).map(Rc::new);
        last.clone()
    }

    /// Whether each request has a stream of its own: not so in HTTP/1.1.
    pub(super) fn has_streams(&self) -> bool {
        self.version != Version::HTTP_11
    }

    /// A request has come.
    pub(super) fn begin(&self) -> Rc<Record> {
        if self.requests.get() == 0 {
            self.ticket.borrow_mut().complete();
        }
        self.requests.set(self.requests.get() + 1);
        if self.settings.requests > 0 && self.requests.get() >= self.settings.requests {
            self.notes.closing.set(true);
        }
        self.notes.watch.borrow_mut().began();
        let tallies = self.tallies();
        Record::new(self.notes.clone(), self.settings.clone(), tallies, self.peer)
    }

    fn tallies(&self) -> Rc<Tallies> {
        let mut seen = self.seen.borrow_mut();
        let view = match &*seen {
            Some(seen) => seen.view.clone(),
            None => shelf(&self.site, || RefCell::new(self.site.view())),
        };
        let mut now = view.borrow_mut();
        let site = now.shared();
        if let Some(seen) = &*seen
            && Arc::ptr_eq(&seen.site, site)
        {
            return seen.tallies.clone();
        }
        let make = || Tallies::new(&self.notes.driver, &self.settings.listener, site);
        let tallies = shelf(site, make);
        *seen = Some(Seen { view: view.clone(), site: site.clone(), tallies: tallies.clone() });
        tallies
    }

    /// The site, as it was when the request came.
    pub(super) fn site(&self) -> Arc<Site> {
        self.seen.borrow().as_ref().map_or_else(|| self.site.keep(), |seen| seen.site.clone())
    }

    /// How many requests have come.
    pub(super) const fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Another random number (splitmix64, seeded by the listener's hasher).
    pub(super) fn random(&self) -> u64 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut z = self.random.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A name for a request.
    pub(super) fn request_id(&self) -> HeaderValue {
        let number = u128::from(self.random()) << 64 | u128::from(self.random());
        let mut text = [b'0'; 32];
        for (digit, shift) in text.iter_mut().zip((0..32).rev()) {
            let value = u8::try_from(number >> (4 * shift) & 15).unwrap_or(0);
            *digit = if value < 10 { b'0' + value } else { b'a' + (value - 10) };
        }
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
    }

    /// The server has switched protocols: join the client to it once it was told.
    pub(super) fn tunnel(&self, tunnel: Tunnel) {
        self.notes.opened.set(true);
        *self.tunnel.borrow_mut() = Some(tunnel);
    }
}

/// How hyper's connection ended.
enum End {
    Hyper(hyper::Result<()>),
    Late(Late),
}

async fn connection(driver: Driver, shared: Arc<Shared>, comes: Comes, random: u64) -> Result<(), Fault> {
    let settings = shared.settings.clone();
    let result = serve(&driver, &shared, comes, random).await;
    let reason = match &result {
        Ok(()) => "normal",
        Err(fault) => fault.reason,
    };
    driver.raise("connections_closed", &settings.listener, reason);
    result
}

async fn serve(driver: &Driver, shared: &Arc<Shared>, comes: Comes, random: u64) -> Result<(), Fault> {
    let settings = &shared.settings;
    let Comes { over, peer, ticket } = comes;
    driver.speaks_to(peer);
    let socket = match over {
        Over::Tcp(stream) => TcpStream::from_std(stream).map(ClientSocket::Tcp),
        Over::Inner(stream) => Ok(ClientSocket::Inner(stream)),
    };
    let socket = socket.map_err(|error| Fault::local("no_event_loop", error.to_string()))?;
    let watch = Watch::new(settings.times, driver.now());
    let by_head = later(driver.now(), settings.times.head);
    // What a connection does once has a place of its own, so that it takes none for as long as the connection lives.
    let begun =
        by(driver, by_head, Box::pin(begin(shared, socket))).await.ok_or_else(|| Fault::peer("head_timeout", ""))??;
    let notes = Notes::new(driver.clone(), settings.listener.clone(), watch);
    let version = if begun.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let tls = matches!(begun.stream, ClientStream::Tls(_));
    let came = Came { peer, tls, version, ticket, random };
    let client = Client::new(notes, settings.clone(), shared.site.clone(), came);
    if begun.http2 { Box::pin(serve_two(&client, begun)).await } else { serve_one(&client, begun).await }
}

/// A stream whose version is known.
struct Begun {
    stream: ClientStream,
    prefix: Vec<u8>,
    http2: bool,
}

async fn begin(shared: &Arc<Shared>, mut socket: ClientSocket) -> Result<Begun, Fault> {
    let reset = |error: std::io::Error| Fault::peer("reset", error.to_string());
    if let Some(tls) = &shared.settings.tls {
        let local = |what: String| Fault::local("tls", what);
        let context = shelf(tls, || tls.builder().map(|builder| builder.build()));
        let context = context.as_ref().as_ref().map_err(|error| local(error.to_string()))?;
        let ssl = boring::ssl::Ssl::new(context).map_err(|error| local(error.to_string()))?;
        let stream = tokio_boring::SslStreamBuilder::new(ssl, socket).accept().await;
        let stream = stream.map_err(|error| Fault::peer("handshake", error.to_string()))?;
        let http2 = stream.ssl().selected_alpn_protocol() == Some(b"h2");
        return Ok(Begun { stream: ClientStream::Tls(Box::new(stream)), prefix: Vec::new(), http2 });
    }
    // Only a client that begins as HTTP/2 does is asked for more than its first bytes.
    let mut prefix = Vec::new();
    let mut piece = [0; PREFACE.len()];
    while prefix.len() < PREFACE.len() && PREFACE.starts_with(&prefix) {
        let room = piece.get_mut(..PREFACE.len() - prefix.len()).unwrap_or_default();
        let count = socket.read(room).await.map_err(reset)?;
        if count == 0 {
            break;
        }
        prefix.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    let http2 = prefix == PREFACE;
    Ok(Begun { stream: ClientStream::Plain(socket), prefix, http2 })
}

async fn serve_one(client: &Rc<Client>, begun: Begun) -> Result<(), Fault> {
    let (notes, settings) = (&client.notes, &client.settings);
    let guard = Guard::new(settings.head);
    let mut wire = Wire::new(begun.stream, begun.prefix, Looked::Heads(guard), notes.clone());
    loop {
        let mut conn = http1::Builder::new()
            .max_headers(settings.head.fields)
            .max_header_size(settings.head.bytes)
            .serve_connection(TokioIo::new(wire), Service(client.clone()));
        let mut told = false;
        let end = poll_fn(|cx| {
            if !told && notes.driver.draining().is_some() {
                Pin::new(&mut conn).graceful_shutdown();
                told = true;
            }
            if let Poll::Ready(result) = conn.poll_without_shutdown(cx) {
                return Poll::Ready(Some(End::Hyper(result)));
            }
            let rest = notes.rest_at().filter(|_| !told);
            if rest.is_some_and(|at| at <= notes.driver.now()) {
                return Poll::Ready(None);
            }
            wait(notes, settings.times.send, rest).map(Some)
        })
        .await;
        let parts = conn.into_parts();
        wire = parts.io.into_inner();
        if let Some(end) = end {
            return Box::pin(ended(client, end, wire, parts.read_buf)).await;
        }
        wire.ahead(&parts.read_buf);
        drop(parts.read_buf);
        if let Some(end) = rest(client, &mut wire).await? {
            return Box::pin(ended(client, end, wire, Bytes::new())).await;
        }
    }
}

/// A client that has asked for nothing for a while is waited for without hyper: that has a buffer for each direction,
/// which is most of what an idle connection would hold. How the connection ended, if it did before the client asked.
async fn rest(client: &Rc<Client>, wire: &mut Wire) -> Result<Option<End>, Fault> {
    let notes = &client.notes;
    client.sender.take();
    poll_fn(|cx| {
        if notes.driver.draining().is_some() {
            return Poll::Ready(Ok(Some(End::Hyper(Ok(())))));
        }
        match wire.poll_rest(cx) {
            Poll::Ready(Ok(true)) => Poll::Ready(Ok(None)),
            Poll::Ready(Ok(false)) => Poll::Ready(Ok(Some(End::Hyper(Ok(()))))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(Fault::peer("reset", error.to_string()))),
            Poll::Pending => wait(notes, client.settings.times.send, None).map(|end| Ok(Some(end))),
        }
    })
    .await
}

/// What is left to be done when hyper is: a tunnel to be joined, a client to be told.
async fn ended(client: &Rc<Client>, end: End, mut wire: Wire, ahead: Bytes) -> Result<(), Fault> {
    let notes = &client.notes;
    let tunnel = client.tunnel.take();
    match end {
        End::Hyper(Ok(())) => match tunnel {
            Some(tunnel) => tunnel.run(client, wire, ahead).await.map_err(|why| Fault::peer(why, "tunnel")),
            None => {
                let half_read = notes.watch.borrow().stage() != Stage::Between;
                linger(client, wire, half_read).await;
                Ok(())
            }
        },
        End::Hyper(Err(error)) => {
            let fault = fault_of(client, &error);
            linger(client, wire, true).await;
            Err(fault)
        }
        End::Late(late) => {
            if late == Late::Head && notes.watch.borrow().stage() == Stage::Head {
                let told =
                    wire.write_all(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                // Whoever is late may not take it either.
                let _late = by(&notes.driver, later(notes.driver.now(), LINGER), told).await;
            }
            if late == Late::Idle { Ok(()) } else { Err(Fault::peer(late.reason(), "")) }
        }
    }
}

async fn serve_two(client: &Rc<Client>, begun: Begun) -> Result<(), Fault> {
    let (notes, settings) = (&client.notes, &client.settings);
    let frames = Looked::Frames(FrameWatch::new(PREFACE.len()), AnswerWatch::default());
    let wire = Wire::new(begun.stream, begun.prefix, frames, notes.clone());
    let nursery = client.nursery.clone();
    // However it ends, its requests end with it.
    let _brood = Brood(nursery.clone());
    let mut conn = http2::Builder::new(nursery.clone())
        .max_concurrent_streams(settings.streams)
        .max_header_list_size(u32::try_from(settings.head.bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(wire), Service(client.clone()));
    let mut told = false;
    notes.cork();
    let end = poll_fn(|cx| {
        if !told && (notes.driver.draining().is_some() || notes.closing.get()) {
            Pin::new(&mut conn).graceful_shutdown();
            told = true;
        }
        let mut done = Pin::new(&mut conn).poll(cx);
        if nursery.poll(cx) && done.is_pending() {
            done = Pin::new(&mut conn).poll(cx);
        }
        if done.is_pending() && notes.uncork() {
            done = Pin::new(&mut conn).poll(cx);
            notes.cork();
        }
        match done {
            Poll::Ready(result) => Poll::Ready(End::Hyper(result)),
            Poll::Pending => wait(notes, settings.times.send, None),
        }
    })
    .await;
    match end {
        End::Hyper(Ok(())) | End::Late(Late::Idle) => Ok(()),
        End::Hyper(Err(error)) => Err(fault_of(client, &error)),
        End::Late(late) => Err(Fault::peer(late.reason(), "")),
    }
}

fn wait(notes: &Notes, send: Duration, rest: Option<Instant>) -> Poll<End> {
    let mut next = notes.tick().into_iter().chain(rest).min();
    if let Some(stalled) = notes.stalled().map(|since| later(since, send)) {
        if stalled <= notes.driver.now() {
            return Poll::Ready(End::Late(Late::Send));
        }
        next = next.into_iter().chain([stalled]).min();
    }
    if let Some(late) = notes.watch.borrow().late(notes.driver.now()) {
        return Poll::Ready(End::Late(late));
    }
    notes.driver.alarm(next);
    Poll::Pending
}

fn fault_of(client: &Client, error: &hyper::Error) -> Fault {
    let reason = match client.notes.refused.get() {
        Some(refusal) => refusal.reason(),
        None if error.is_parse_too_large() => "head_too_large",
        None if error.is_parse() => "bad_request",
        None if error.is_incomplete_message() => "truncated",
        None if error.is_user() => "answer_broke",
        None if is_flood(error) => Refusal::Flood.reason(),
        None if client.has_streams() => "protocol",
        None => "reset",
    };
    // What the guard refused is counted already.
    if client.notes.refused.get().is_none() && (error.is_parse() || reason == Refusal::Flood.reason()) {
        client.notes.driver.raise("http_refused", &client.settings.listener, reason);
    }
    Fault::peer(reason, error.to_string())
}

/// Whether the library for HTTP/2 ends a connection because it costs more than it is worth: resets, continuations, empty
/// frames.
fn is_flood(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|h2| h2.is_library() && h2.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Ends the stream. A client that has more to say is listened to for a moment: a socket that is closed over unread
/// bytes resets, and the answer would be lost on the way.
async fn linger(client: &Client, mut wire: Wire, listen: bool) {
    let driver = &client.notes.driver;
    let until = later(driver.now(), LINGER);
    let ended = by(driver, until, wire.shutdown()).await;
    if !listen || !matches!(ended, Some(Ok(()))) {
        return;
    }
    let mut stream = wire.into_stream();
    let mut piece = [0; 4_096];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match by(driver, until, stream.read(&mut piece)).await {
            Some(Ok(count)) if count > 0 => left = left.saturating_sub(count),
            Some(_) | None => return,
        }
    }
}
