//! The admin listener: what runs, as pages for people and programs, and the few changes that can be made over HTTP. On
//! the System's thread, never on a data arbiter.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the dashboard: one page that lives on `/api/events` |
//! | `/healthz` | 200 while the process answers at all |
//! | `/readyz` | 200 while every listener accepts; 503 otherwise and while draining |
//! | `/metrics` | counters and gauges in the OpenMetrics text format |
//! | `/api` | the list of what follows, as text |
//! | `/api/actors` | the actor tree as JSON; `?kind=` and `?limit=` (default 1,000) narrow it |
//! | `/api/actors/ID` | one actor, with what it moved and, of QUIC, its path |
//! | `/api/config` | which configuration runs, and how the last reload went |
//! | `/api/connections` | the QUIC connections |
//! | `/api/events` | differences of the whole picture each second, as server-sent events; eight readers at most |
//! | `/api/listeners` | the listeners with what they took and refused |
//! | `/api/moq` | relays of Media over QUIC: namespaces, tracks, subscribers, caches |
//! | `/api/status` | all of it in short: what `portway status` shows |
//! | `/api/wireguard` | interfaces and peers |
//! | POST `/api/reload` | reads the configuration file again; answers when that is done or refused |
//! | POST `/api/actors/ID/close` | ends one session |
//! | POST `/api/actors/ID/drain` | asks one session to finish within the drain time |
//!
//! Who may do what is decided in `access`: reading is free on loopback, whatever changes something needs the token, or a
//! client certificate where there is none, and is logged as an `audit` line. With a `certificate` it speaks TLS. 64
//! connections at once: one more ends the oldest, and so does one for which there is no descriptor, after those that are
//! kept back for it. One that has not shaken hands or sent its request in 10 seconds is
//! closed, and any after 30, but for streams, as long as they are read.

mod access;
mod actions;
mod api;
mod api_actor;
#[cfg(feature = "quic")]
mod api_connections;
mod events;
mod metrics;
mod metrics_memory;
mod sample;
mod sampler;
mod terms;
#[cfg(feature = "http")]
mod tls;
#[cfg(not(feature = "http"))]
#[path = "admin/no_tls.rs"]
mod tls;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use sampler::Hub;
pub(crate) use terms::Terms;

use super::spare::{Spare, is_shortage};
use super::{Overview, Status};
use crate::actors::{Control, Driver, Fault, Kind, Mail, Mesh, Place, SpawnError, Spec, clock};
use access::{Refused, Rules, Wish};
use events::{Answer, Events, Progress};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

const CONNECTIONS: usize = 64;
/// So many are let in although all descriptors are in use.
const KEPT_BACK: usize = 4;
/// How soon a descriptor that came free is kept back again: listeners that lack one look ten times a second.
const RETAKE: Duration = Duration::from_millis(5);
const HEADER_TIME: Duration = Duration::from_secs(10);
/// A connection ends after this long, whatever it is doing: reading an answer takes milliseconds. One that streams ends
/// when it has read nothing for so long.
const LIFETIME: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// What the dashboard may do in a browser: be itself, and talk to where it comes from.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct Listener;
impl Kind for Listener {
    const KIND: &'static str = "admin";
}

struct Connection;
impl Kind for Connection {
    const KIND: &'static str = "admin_connection";
}

/// Starts serving on a socket that is bound already.
pub(super) fn start(
    mesh: &Mesh,
    socket: Arc<std::net::TcpListener>,
    status: Arc<Status>,
) -> Result<Mail<Infallible>, SpawnError> {
    sampler::start(mesh, status.clone(), status.watched.clone())?;
    let inner = mesh.clone();
    mesh.drive::<Listener, _>(Place::System, Spec::named("admin"), move |driver| accept(inner, socket, status, driver))
}

async fn accept(
    mesh: Mesh,
    socket: Arc<std::net::TcpListener>,
    status: Arc<Status>,
    driver: Driver,
) -> Result<(), Fault> {
    let local = |error: io::Error| Fault::local("admin_listener", error.to_string());
    let socket = socket.try_clone().and_then(tokio::net::TcpListener::from_std).map_err(local)?;
    // In the order in which they came: when there are too many the oldest has to go, so that whoever holds
    // connections open keeps nobody from looking in.
    let mut connections: VecDeque<Mail<Infallible>> = VecDeque::new();
    let (mut complained, mut spare) = (false, Spare::new(KEPT_BACK));
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            // Not before an attempt: it would take back what was given up for it.
            () = clock::sleep(RETAKE), if !spare.is_full() => {
                spare.refill();
                continue;
            }
            () = driver.drained() => return Ok(()),
        };
        let (stream, peer) = match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok(accepted) => accepted,
            Err(error) if spare.makes_room(&error) => continue,
            Err(error) => {
                connections.retain(|connection| !connection.is_closed());
                if is_shortage(&error)
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.control(Control::Stop);
                    driver.raise("admin_evicted", "admin", "");
                    clock::sleep(RETAKE).await;
                    continue;
                }
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, "the admin listener cannot accept");
                }
                clock::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        complained = false;
        connections.retain(|connection| !connection.is_closed());
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.control(Control::Stop);
            driver.raise("admin_evicted", "admin", "");
        }
        let (inner, status) = (mesh.clone(), status.clone());
        let started = mesh.drive::<Connection, _>(Place::System, Spec::default(), move |driver| async move {
            let stream = tokio::net::TcpStream::from_std(stream).map_err(local)?;
            driver.speaks_to(peer);
            let tls = status.terms.read().tls.clone();
            let progress = Progress::default();
            let (watched, current) = (progress.clone(), status.clone());
            let shared = Shared { mesh: inner, status, driver: driver.clone(), peer, progress, tls: tls.clone() };
            let served = async {
                let Some(secured) = &tls else { return serve(shared, stream).await };
                let shaken = clock::within(HEADER_TIME, secured.accept(stream)).await;
                let shaken = shaken.unwrap_or_else(|clock::Elapsed| Err(Fault::peer("handshake_timeout", "")));
                let stream = shaken.inspect_err(|fault| driver.raise("admin_refused", "admin", fault.reason))?;
                serve(shared, stream).await
            };
            tokio::select! {
                served = served => served,
                fault = stuck(&watched, || current.terms.read().still(tls.as_ref())) => Err(fault),
            }
        });
        match started {
            Ok(connection) => connections.push_back(connection),
            Err(error) => tracing::warn!(%error, "an admin connection was refused"),
        }
    }
}

/// Ready when a connection has lasted too long without reading a stream, or is not by the terms that hold any more.
async fn stuck(progress: &Progress, still: impl Fn() -> bool) -> Fault {
    let began = clock::now();
    loop {
        clock::sleep(LOOK).await;
        if !still() {
            return Fault::local("terms", "");
        }
        let since = progress.get().unwrap_or(began);
        if clock::now().saturating_duration_since(since) >= LIFETIME {
            return Fault::peer(if progress.get().is_some() { "slow_reader" } else { "lifetime" }, "");
        }
    }
}

/// What the requests of one connection are answered with.
struct Shared {
    mesh: Mesh,
    status: Arc<Status>,
    driver: Driver,
    peer: SocketAddr,
    progress: Progress,
    /// What the connection began with.
    tls: Option<Arc<tls::Secured>>,
}

async fn serve<S>(shared: Shared, stream: S) -> Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let shared = Rc::new(shared);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, &request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| {
            let reason = if error.is_timeout() {
                "header_timeout"
            } else if error.is_parse() {
                "bad_request"
            } else {
                "reset"
            };
            Fault::peer(reason, error.to_string())
        })
}

async fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Answer> {
    let Shared { mesh, status, driver, .. } = shared;
    let action = actions::of(request.uri().path());
    let allowed = access::wish(request.method(), request.uri().path(), action.is_some()).and_then(|wish| {
        let terms = status.terms.read();
        if !terms.still(shared.tls.as_ref()) {
            return Err(access::OTHER_TERMS);
        }
        let rules = Rules {
            token: terms.token.as_ref(),
            local: status.admin_is_local,
            names: shared.tls.as_ref().map(|tls| tls.names()),
            certified: shared.tls.as_ref().is_some_and(|tls| tls.demands_certificate()),
        };
        access::judge(wish, request.headers(), rules).map(|()| wish)
    });
    match (allowed, action) {
        (Err(refused), action) => {
            driver.raise("admin_refused", "admin", refused.reason);
            if let Some(action) = &action {
                tracing::warn!(target: "audit", peer = %shared.peer, %action, why = refused.reason, "audit: refused");
            }
            refusal(refused, action.is_some())
        }
        (Ok(Wish::Change), Some(action)) => actions::done(action, mesh, status, shared.peer).await,
        (Ok(_), _) => page(shared, request).await,
    }
}

async fn page(shared: &Shared, request: &Request<Incoming>) -> Response<Answer> {
    let Shared { mesh, status, .. } = shared;
    match request.uri().path() {
        "/" => dashboard(),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match status.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => match metrics::render(&mesh.view().await, status) {
            Ok(body) => with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
        },
        "/api" => text(StatusCode::OK, LIST),
        "/api/actors" => match api::Filter::parse(request.uri().query()) {
            Ok(filter) => json(api::actors(&mesh.view().await, &filter)),
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        "/api/config" => json(api::config(status)),
        "/api/connections" => json(connections(status).await),
        "/api/events" => events(shared),
        "/api/listeners" => json(api::listeners(&mesh.view().await, status)),
        "/api/status" => json(serde_json::to_string_pretty(&Overview::of(&mesh.view().await, status))),
        "/api/wireguard" => json(super::tunnels::api(&status.tunnels()).await),
        #[cfg(feature = "moq")]
        "/api/moq" => json(super::moq::api::api(status.upstreams().relays()).await),
        path => match path.strip_prefix("/api/actors/").and_then(|id| id.parse().ok()) {
            Some(id) => match api_actor::actor(mesh, status, id).await {
                Some(actor) => json(serde_json::to_string_pretty(&actor)),
                None => text(StatusCode::NOT_FOUND, "there is no such actor, or not any more\n"),
            },
            None => text(StatusCode::NOT_FOUND, "no such page; /api lists what there is\n"),
        },
    }
}

/// What `/api` says.
const LIST: &str = "GET  /\nGET  /healthz\nGET  /readyz\nGET  /metrics\nGET  /api\nGET  /api/actors?kind=KIND&limit=N\n\
    GET  /api/actors/ID\nGET  /api/config\nGET  /api/connections\nGET  /api/events\nGET  /api/listeners\n\
    GET  /api/moq\nGET  /api/status\nGET  /api/wireguard\nPOST /api/reload\nPOST /api/actors/ID/close\nPOST /api/actors/ID/drain\n";

fn dashboard() -> Response<Answer> {
    let mut response = with_type(StatusCode::OK, "text/html; charset=utf-8", include_str!("admin/dashboard.html"));
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("content-security-policy"), HeaderValue::from_static(POLICY));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
    response
}

fn events(shared: &Shared) -> Response<Answer> {
    let Some(seat) = shared.status.watched.sit() else {
        shared.driver.raise("admin_refused", "admin", "watchers");
        return text(StatusCode::SERVICE_UNAVAILABLE, "eight are watching already\n");
    };
    let events = Events::new(seat, shared.progress.clone(), shared.driver.clone());
    let mut response = Response::new(Answer::Events(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refusal(refused: Refused, changes: bool) -> Response<Answer> {
    let mut response = text(refused.status, refused.words);
    let headers = response.headers_mut();
    if refused.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static(if changes { "POST" } else { "GET, HEAD" }));
    } else if refused.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(feature = "quic")]
async fn connections(status: &Status) -> Result<String, serde_json::Error> {
    api_connections::connections(status).await
}

#[cfg(not(feature = "quic"))]
#[expect(clippy::unused_async, reason = "with QUIC it waits for the arbiters")]
async fn connections(_: &Status) -> Result<String, serde_json::Error> {
    Ok("[]".to_owned())
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Answer> {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn json(body: Result<String, serde_json::Error>) -> Response<Answer> {
    match body {
        Ok(body) => with_type(StatusCode::OK, "application/json", body),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written\n"),
    }
}

fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::from(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
