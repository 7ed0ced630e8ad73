//! The admin listener: read only, on the System's thread, never on a data arbiter.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process answers at all |
//! | `/readyz` | 200 while every listener accepts; 503 otherwise and while draining |
//! | `/metrics` | counters and gauges in the OpenMetrics text format |
//! | `/api/actors` | the actor tree as JSON; `?kind=` and `?limit=` (default 1,000) narrow it |
//! | `/api/listeners` | the listeners with what they took and refused, as JSON |
//! | `/api/moq` | relays of Media over QUIC: namespaces, tracks, subscribers, caches, as JSON |
//! | `/api/status` | all of it in short, as JSON: what `portway status` shows |
//!
//! Being on loopback does not make it open: a `Host` that is no IP address and not `localhost` is refused, so that a
//! web page cannot reach it through a name of its own (DNS rebinding), and so is any `Origin`. 64 connections at
//! once: one more ends the oldest. One that has not sent its request in 10 seconds is closed, and any after 30.

mod api;
#[cfg(feature = "quic")]
mod api_connections;
mod metrics;
mod metrics_memory;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Overview, Status};
use crate::actors::clock::{Elapsed, within};
use crate::actors::{Control, Driver, Fault, Kind, Mail, Mesh, Place, SpawnError, Spec};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

const CONNECTIONS: usize = 64;
const HEADER_TIME: Duration = Duration::from_secs(10);
/// A connection ends after this long, whatever it is doing: reading an answer takes milliseconds.
const LIFETIME: Duration = Duration::from_secs(30);

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
    socket: std::net::TcpListener,
    status: Arc<Status>,
) -> Result<Mail<Infallible>, SpawnError> {
    let inner = mesh.clone();
    mesh.drive::<Listener, _>(Place::System, Spec::named("admin"), move |driver| accept(inner, socket, status, driver))
}

async fn accept(mesh: Mesh, socket: std::net::TcpListener, status: Arc<Status>, driver: Driver) -> Result<(), Fault> {
    let local = |error: io::Error| Fault::local("admin_listener", error.to_string());
    let socket = tokio::net::TcpListener::from_std(socket).map_err(local)?;
    // In the order in which they came: when there are too many the oldest has to go, so that whoever holds
    // connections open keeps nobody from looking in.
    let mut connections: VecDeque<Mail<Infallible>> = VecDeque::new();
    let mut complained = false;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = driver.drained() => return Ok(()),
        };
        let stream = match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => stream,
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, "the admin listener cannot accept");
                }
                crate::actors::clock::sleep(Duration::from_millis(100)).await;
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
        let started = mesh.drive::<Connection, _>(Place::System, Spec::default(), move |_| async move {
            let stream = tokio::net::TcpStream::from_std(stream).map_err(local)?;
            match within(LIFETIME, serve(inner, stream, status)).await {
                Ok(served) => served,
                Err(Elapsed) => Err(Fault::peer("lifetime", "")),
            }
        });
        match started {
            Ok(connection) => connections.push_back(connection),
            Err(error) => tracing::warn!(%error, "an admin connection was refused"),
        }
    }
}

async fn serve(mesh: Mesh, stream: tokio::net::TcpStream, status: Arc<Status>) -> Result<(), Fault> {
    let shared = Rc::new((mesh, status));
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared.0, &shared.1, &request).await) }
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

async fn answer(mesh: &Mesh, status: &Status, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if let Err(why) = allowed(request) {
        return text(StatusCode::FORBIDDEN, why);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this listener is read only\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match status.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => match metrics::render(&mesh.view().await, status) {
            Ok(body) => with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
        },
        "/api/actors" => match api::Filter::parse(request.uri().query()) {
            Ok(filter) => json(api::actors(&mesh.view().await, &filter)),
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        "/api/status" => json(serde_json::to_string_pretty(&Overview::of(&mesh.view().await, status))),
        "/api/wireguard" => json(super::tunnels::api(&status.tunnels()).await),
        #[cfg(feature = "moq")]
        "/api/moq" => json(super::moq_api::api(status.upstreams().relays()).await),
        "/api/listeners" => json(api::listeners(&mesh.view().await, status)),
        "/api/connections" => json(connections(status).await),
        "/" => text(
            StatusCode::OK,
            "portway admin (read only)\n/healthz\n/readyz\n/metrics\n/api/actors\n/api/connections\n/api/listeners\n\
             /api/moq\n/api/status\n/api/wireguard\n",
        ),
        _ => text(StatusCode::NOT_FOUND, "no such page; / lists what there is\n"),
    }
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

/// RFC 9110 section 7.2 makes `Host` the client's idea of who we are: a browser led here by a foreign name says that
/// name.
fn allowed(request: &Request<Incoming>) -> Result<(), &'static str> {
    if request.headers().contains_key(ORIGIN) {
        return Err("requests of web pages are refused\n");
    }
    if request.headers().get_all(HOST).iter().count() > 1 {
        return Err("one Host, please\n");
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if names_this_machine(host) { Ok(()) } else { Err("the Host must be an IP address or localhost\n") }
}

fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn json(body: Result<String, serde_json::Error>) -> Response<Full<Bytes>> {
    match body {
        Ok(body) => with_type(StatusCode::OK, "application/json", body),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written\n"),
    }
}

fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::names_this_machine;

    #[test]
    fn only_addresses_and_localhost_name_this_machine() {
        for good in ["127.0.0.1", "127.0.0.1:9180", "localhost:9180", "LOCALHOST", "[::1]:9180", "[::1]"] {
            assert!(names_this_machine(good), "{good}");
        }
        for bad in ["", "example.com", "localhost.example.com:9180", "127.0.0.1.example.com", "[::1", "["] {
            assert_eq!(names_this_machine(bad), bad == "[::1", "{bad}");
        }
    }
}
