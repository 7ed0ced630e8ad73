//! WebSockets: a request that becomes a stream of bytes in both directions.
//!
//! Its connection to the server is no other's, so the client's actor drives it itself. When the server switches
//! protocols, both streams are taken from hyper and joined; bytes that were read too far go first.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::actor::Client;
use super::body::{Source, ToClient, ToServer};
use super::exchange::{Head, from_server, pick, plain};
use super::pool::{Pool, dial};
use super::record::Record;
use super::site::{Route, Upstream};
use super::state_exchange::Failure;
use super::wire::Wire;
use crate::actors::clock::later;
use crate::transports::kit::balance::Picked;
use crate::transports::relay::Upstream as ServerStream;

/// A server's stream behind a switch of protocols.
pub(super) struct Tunnel {
    stream: ServerStream,
    /// Read already.
    ahead: Bytes,
    _picked: Picked,
    _record: Rc<Record>,
}

/// Asks a server for a WebSocket.
pub(super) async fn open(
    client: &Rc<Client>,
    upstream: &Arc<Upstream>,
    route: &Route,
    mut head: Head,
    record: &Rc<Record>,
) -> Response<ToClient> {
    let notes = &client.notes;
    head.fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let failed = |failure: Failure| {
        notes.driver.raise("http_failures", &upstream.name, failure.reason());
        plain(failure.status(), record)
    };
    if upstream.http2 {
        // RFC 8441 would be another request.
        return plain(StatusCode::NOT_IMPLEMENTED, record);
    }
    let picked = match pick(client, upstream, &Pool::of(upstream), &[]).await {
        Ok(picked) => picked,
        Err(failure) => return failed(failure),
    };
    let until = later(notes.driver.now(), upstream.connect_timeout);
    let Some(Ok(stream)) = notes.until(until, dial(upstream.network.clone(), picked.address())).await else {
        picked.failed(notes.driver.now());
        return failed(Failure::NotConnected);
    };
    let Ok((mut sender, connection)) = http1::Builder::new().handshake(TokioIo::new(stream)).await else {
        return failed(Failure::NotConnected);
    };
    let mut connection = Box::new(connection);
    let until = later(notes.driver.now(), route.timeout);
    let answer = {
        let mut asked = std::pin::pin!(sender.send_request(head.request(ToServer::Empty, false)));
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
    picked.succeeded(notes.driver.now());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let source = Source::Own { connection: Some(Box::pin(*connection)), picked: Some(picked) };
        return from_server(response, source, route, record);
    }
    let fields = response.headers().clone();
    drop(response);
    let parts = connection.into_parts();
    let stream = parts.io.into_inner();
    client.tunnel(Tunnel { stream, ahead: parts.read_buf, _picked: picked, _record: record.clone() });
    let mut answer = Response::new(ToClient::whole(Bytes::new(), record.clone()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = fields;
    answer
}

impl Tunnel {
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
