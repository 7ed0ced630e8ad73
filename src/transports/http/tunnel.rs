//! WebSockets: a request that becomes a stream of bytes in both directions.
//!
//! Its connection to the server is no other's, so the client's actor drives it itself. When the server switches
//! protocols, both streams are taken from hyper and joined; bytes that were read too far go first.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
#[cfg(feature = "quic")]
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper::rt::Executor;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};

use super::actor::Client;
use super::body::{FromClient, Source, ToClient, ToServer};
use super::codec_forward::is_framed_once;
use super::dial::{ServerStream, dial};
use super::exchange::{Head, from_server, pick, plain};
use super::pool::Pool;
use super::record::Record;
use super::site::{Route, Upstream, Version};
use super::state_exchange::Failure;
use super::wire::{Notes, Timer, Wire};
use crate::actors::clock::later;
use crate::transports::kit::balance::Picked;

/// A server's stream behind a switch of protocols.
pub(super) struct Tunnel {
    stream: ServerStream,
    /// Read already.
    ahead: Bytes,
    _picked: Picked,
    record: Rc<Record>,
}

/// Asks a server for a WebSocket.
pub(super) async fn open(
    client: &Rc<Client>,
    upstream: &Arc<Upstream>,
    route: &Route,
    mut head: Head,
    (opened, incoming): (Option<OnUpgrade>, FromClient),
    record: &Rc<Record>,
) -> Response<ToClient> {
    let notes = &client.notes;
    // A stream of HTTP/2 or 3, and not a connection that becomes one.
    let streamed = client.has_streams();
    head.fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if streamed {
        // Over HTTP/2 and 3 there is no key (RFC 8441, section 5): whoever speaks HTTP/1.1 brings one.
        let key = [client.random().to_be_bytes(), client.random().to_be_bytes()].concat();
        if let Ok(key) = HeaderValue::try_from(boring::base64::encode_block(&key)) {
            head.fields.insert(header::SEC_WEBSOCKET_KEY, key);
        }
        head.fields.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    }
    let failed = |failure: Failure| {
        notes.driver.raise("http_failures", &upstream.name, failure.reason());
        plain(failure.status(), record)
    };
    if upstream.version == Version::Two && upstream.tls.is_none() {
        // Known to speak HTTP/2 and nothing else.
        return plain(StatusCode::NOT_IMPLEMENTED, record);
    }
    let picked = match pick(client, upstream, &Pool::of(upstream), &[]).await {
        Ok(picked) => picked,
        Err(failure) => return failed(failure),
    };
    let until = later(notes.driver.now(), upstream.connect_timeout);
    // Upgrades are of HTTP/1.1 (RFC 9110, section 7.8), whatever else the server speaks.
    let dialled = match notes.until(until, dial(upstream, Version::One, picked.address())).await {
        Some(Ok(dialled)) => dialled,
        other => {
            picked.failed(notes.driver.now());
            return failed(other.and_then(Result::err).map_or(Failure::NotConnected, |not| not.failure));
        }
    };
    let Ok((mut sender, connection)) = http1::Builder::new().handshake(TokioIo::new(dialled.stream)).await else {
        return failed(Failure::NotConnected);
    };
    let mut connection = Box::new(connection);
    let until = later(notes.driver.now(), route.timeout);
    let answer = {
        let mut asked = std::pin::pin!(sender.send_request(head.request(ToServer::Empty, false, false)));
        let answered = poll_fn(|cx| {
            let ended = connection.poll_without_shutdown(cx);
            match asked.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                // It cannot answer any more.
                Poll::Pending if ended.is_ready() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        notes.until(until, answered).await
    };
    let response = match answer {
        Some(Some(Ok(response))) => response,
        Some(_) => {
            picked.failed(notes.driver.now());
            return failed(Failure::Broken);
        }
        None => {
            picked.failed(notes.driver.now());
            return failed(Failure::TooSlow);
        }
    };
    if !is_framed_once(response.version(), response.headers()) {
        picked.failed(notes.driver.now());
        return failed(Failure::Framing);
    }
    if streamed && response.status().is_success() {
        picked.failed(notes.driver.now());
        // To a client of HTTP/2 or 3 it would say that the WebSocket is open (RFC 8441, section 5).
        return failed(Failure::NoSwitch);
    }
    picked.succeeded(notes.driver.now());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let source = Source::Own { connection: Some(Box::pin(*connection)), picked: Some(picked) };
        return from_server(response, source, route, record);
    }
    let mut fields = response.headers().clone();
    drop(response);
    let parts = connection.into_parts();
    let stream = parts.io.into_inner();
    let tunnel = Tunnel { stream, ahead: parts.read_buf, _picked: picked, record: record.clone() };
    if streamed {
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
            fields.remove(name);
        }
    }
    let switched = if streamed { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS };
    let body = match incoming {
        #[cfg(feature = "quic")]
        FromClient::Three(_) => {
            ToClient::joined(Joined::new(tunnel, incoming, client.settings.times.idle), record.clone())
        }
        FromClient::Hyper(_) => {
            begin(client, tunnel, opened);
            ToClient::whole(Bytes::new(), record.clone())
        }
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = switched;
    *answer.headers_mut() = fields;
    answer
}

/// Opens a tunnel to a server of the upstream, wherever the client wanted to: the configuration says who is behind it.
pub(super) async fn connect(
    client: &Rc<Client>,
    upstream: &Arc<Upstream>,
    route: &Route,
    opened: Option<OnUpgrade>,
    record: &Rc<Record>,
) -> Response<ToClient> {
    let notes = &client.notes;
    let failed = |failure: Failure| {
        notes.driver.raise("http_failures", &upstream.name, failure.reason());
        plain(failure.status(), record)
    };
    let picked = match pick(client, upstream, &Pool::of(upstream), &[]).await {
        Ok(picked) => picked,
        Err(failure) => return failed(failure),
    };
    let until = later(notes.driver.now(), upstream.connect_timeout.min(route.timeout));
    let dialled = match notes.until(until, dial(upstream, Version::One, picked.address())).await {
        Some(Ok(dialled)) => dialled,
        other => {
            picked.failed(notes.driver.now());
            return failed(other.and_then(Result::err).map_or(Failure::NotConnected, |not| not.failure));
        }
    };
    picked.succeeded(notes.driver.now());
    let tunnel = Tunnel { stream: dialled.stream, ahead: Bytes::new(), _picked: picked, record: record.clone() };
    begin(client, tunnel, opened);
    Response::new(ToClient::whole(Bytes::new(), record.clone()))
}

/// Joins both sides once the client was told: its connection, or one stream of it.
fn begin(client: &Rc<Client>, tunnel: Tunnel, opened: Option<OnUpgrade>) {
    let Some(opened) = opened else { return client.tunnel(tunnel) };
    let (notes, idle) = (client.notes.clone(), client.settings.times.idle);
    client.nursery.execute(async move {
        // The client may be gone by then.
        if let Ok(stream) = opened.await
            && let Err(why) = tunnel.run_on(&notes, TokioIo::new(stream), idle).await
        {
            tracing::debug!(why, "a tunnel ended");
        }
    });
}

/// Bytes read from a server at once.
#[cfg(feature = "quic")]
const PIECE: usize = 16 << 10;

/// A WebSocket over HTTP/3: the body of its request goes to the server while that of its answer is asked for.
#[cfg(feature = "quic")]
pub(super) struct Joined {
    tunnel: Tunnel,
    incoming: FromClient,
    /// On its way to the server.
    up: Bytes,
    /// The client has ended, and the server was told.
    ended: bool,
    told: bool,
    idle: Option<Duration>,
    since: Option<std::time::Instant>,
    timer: Timer,
}

#[cfg(feature = "quic")]
impl Joined {
    fn new(tunnel: Tunnel, incoming: FromClient, idle: Option<Duration>) -> Box<Self> {
        let (up, timer) = (Bytes::new(), Timer::default());
        Box::new(Self { tunnel, incoming, up, ended: false, told: false, idle, since: None, timer })
    }

    /// Passes on what the client sends.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<(), &'static str> {
        let Self { tunnel, incoming, up, ended, told, since, .. } = self;
        let mut server = Pin::new(&mut tunnel.stream);
        loop {
            if !up.is_empty() {
                match server.as_mut().poll_write(cx, up) {
                    Poll::Ready(Ok(count @ 1..)) => bytes::Buf::advance(up, count),
                    Poll::Ready(_) => return Err("reset"),
                    Poll::Pending => return Ok(()),
                }
            } else if *ended {
                if !*told && server.as_mut().poll_shutdown(cx).map_err(|_| "reset")?.is_ready() {
                    *told = true;
                }
                return Ok(());
            } else {
                match Pin::new(&mut *incoming).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        *up = frame.into_data().unwrap_or_default();
                        tunnel.record.up(up.len());
                        *since = None;
                    }
                    Poll::Ready(Some(Err(_))) => return Err("client_gone"),
                    Poll::Ready(None) => *ended = true,
                    Poll::Pending => {
                        let _later = server.as_mut().poll_flush(cx).map_err(|_| "reset")?;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What the server sends; ends with it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, &'static str>>> {
        if let Err(why) = self.poll_up(cx) {
            return Poll::Ready(Some(Err(why)));
        }
        if !self.tunnel.ahead.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.tunnel.ahead))));
        }
        let mut piece = [0; PIECE];
        let mut buffer = ReadBuf::new(&mut piece);
        match Pin::new(&mut self.tunnel.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(None),
            Poll::Ready(Ok(())) => {
                self.since = None;
                Poll::Ready(Some(Ok(Bytes::copy_from_slice(buffer.filled()))))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Some(Err("reset"))),
            Poll::Pending => {
                let Some(idle) = self.idle else { return Poll::Pending };
                let notes = self.tunnel.record.notes();
                let since = *self.since.get_or_insert_with(|| notes.driver.now());
                std::task::ready!(self.timer.poll(notes, later(since, idle), cx));
                Poll::Ready(Some(Err("idle")))
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.timer.clear(self.tunnel.record.notes());
    }
}

/// A stream of which is known how much moved.
struct Counted<S> {
    stream: S,
    moved: Rc<Cell<u64>>,
}

impl<S> Counted<S> {
    fn moves(&self, count: usize) {
        self.moved.set(self.moved.get().wrapping_add(count as u64));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.moves(buf.filled().len() - before);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &result {
            self.moves(*count);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Tunnel {
    /// Joins one stream of a client's connection, until both have ended or nothing moved for too long.
    async fn run_on<S>(mut self, notes: &Notes, stream: S, idle: Option<Duration>) -> Result<(), &'static str>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let moved = Rc::new(Cell::new(0));
        let mut stream = Counted { stream, moved: moved.clone() };
        stream.write_all(&self.ahead).await.map_err(|_| "reset")?;
        let mut copied = std::pin::pin!(copy_bidirectional(&mut stream, &mut self.stream));
        let (mut timer, mut seen) = (Timer::default(), (0, notes.driver.now()));
        let result = poll_fn(|cx| {
            if let Poll::Ready(result) = copied.as_mut().poll(cx) {
                return Poll::Ready(result.map(drop).map_err(|_| "reset"));
            }
            let now = notes.driver.now();
            if moved.get() != seen.0 {
                seen = (moved.get(), now);
            }
            match idle.map(|idle| timer.poll(notes, later(seen.1, idle), cx)) {
                Some(Poll::Ready(())) => Poll::Ready(Err("idle")),
                Some(Poll::Pending) | None => Poll::Pending,
            }
        })
        .await;
        timer.clear(notes);
        drop(self.record);
        result
    }

    /// Joins both streams until they end, or nothing moved for too long.
    pub(super) async fn run(mut self, client: &Client, mut wire: Wire, ahead: Bytes) -> Result<(), &'static str> {
        let notes = &client.notes;
        wire.write_all(&self.ahead).await.map_err(|_| "reset")?;
        self.stream.write_all(&ahead).await.map_err(|_| "reset")?;
        let mut copied = std::pin::pin!(copy_bidirectional(&mut wire, &mut self.stream));
        let mut moved = (notes.bytes(), notes.driver.now());
        poll_fn(|cx| {
            if let Poll::Ready(result) = Pin::new(&mut copied).poll(cx) {
                return Poll::Ready(result.map(drop).map_err(|_| "reset"));
            }
            let now = notes.driver.now();
            if notes.bytes() != moved.0 {
                moved = (notes.bytes(), now);
            }
            let until = client.settings.times.idle.map(|idle| later(moved.1, idle));
            if until.is_some_and(|until| now >= until) {
                return Poll::Ready(Err("idle"));
            }
            if notes.driver.draining().is_some_and(|by| now >= by) {
                return Poll::Ready(Err("deadline"));
            }
            notes.driver.alarm(until);
            Poll::Pending
        })
        .await
    }
}
