//! One request and its answer, as hyper hands it over: finds the route, and carries out what it says.
//!
//! Part of the client's connection actor. What waits, waits by the alarm of that connection. When the client goes away
//! hyper drops this, and with it the request to the server.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version, uri};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;

use super::actor::Client;
use super::body::{self, FromClient, Sending, Source, ToClient, ToServer};
use super::codec_forward::{self as forward, Sender};
use super::codec_head::{Refusal, is_authority};
use super::pool::Pool;
use super::record::Record;
use super::site::{Action, Route, Upstream};
use super::state_exchange::{Attempts, Failure, Next};
use super::state_routes::{Wanted, is_plain};
use super::wire::{Notes, Timer};
use super::workers::Running;
use super::{early, files, tunnel};
use crate::actors::clock::later;
use crate::transports::kit::balance::{NoServer, Picked, ServerId};

/// How often a request that waits for a server to have room looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What hyper calls for each request.
pub(super) struct Service(pub(super) Rc<Client>);

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<ToClient>;
    type Error = Infallible;
    type Future = Running;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let record = self.0.begin();
        self.0.workers.begin(self.0.clone(), request, record)
    }
}

pub(super) async fn whole(
    client: &Rc<Client>,
    mut request: Request<Incoming>,
    record: &Rc<Record>,
) -> Response<ToClient> {
    if client.version == Version::HTTP_2
        && let Some(why) = refused(client, request.headers())
    {
        client.notes.driver.raise("http_refused", &client.settings.listener, why.reason());
        let large = why == Refusal::TooLarge;
        let status = if large { StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE } else { StatusCode::BAD_REQUEST };
        record.answers(status);
        return plain(status, record);
    }
    let opens = client.version == Version::HTTP_2 && *request.method() == Method::CONNECT;
    let opened = opens.then(|| hyper::upgrade::on(&mut request));
    let mut response = answer(client, request.map(FromClient::Hyper), opened, record).await;
    record.answers(response.status());
    if client.version == Version::HTTP_2 {
        response.body_mut().streamed();
    } else {
        client.notes.answered();
    }
    if client.notes.closing.get() && !client.has_streams() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(alternative) = &client.settings.alternative {
        response.headers_mut().insert(header::ALT_SVC, alternative.clone());
    }
    response
}

/// What is wrong with the fields of a request of HTTP/2 that its library lets pass. Over HTTP/1.1 and 3 they are looked
/// at before.
fn refused(client: &Client, fields: &HeaderMap) -> Option<Refusal> {
    if fields.len() > client.settings.head.fields {
        return Some(Refusal::TooLarge);
    }
    // Also equal ones: parsers differ (RFC 9110, section 8.6).
    (fields.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()).then_some(Refusal::ContentLength)
}

/// An answer without a body worth the name.
pub(super) fn plain(status: StatusCode, record: &Rc<Record>) -> Response<ToClient> {
    let text = match status.canonical_reason() {
        Some(reason) if !status.is_redirection() => Bytes::from(format!("{} {reason}\n", status.as_u16())),
        Some(_) | None => Bytes::new(),
    };
    let mut response = Response::new(ToClient::whole(text, record.clone()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) async fn answer(
    client: &Rc<Client>,
    request: Request<FromClient>,
    opened: Option<OnUpgrade>,
    record: &Rc<Record>,
) -> Response<ToClient> {
    // CONNECT is of HTTP (RFC 9110, section 9.3.6), or opens a WebSocket over HTTP/2 (RFC 8441, section 4).
    let connects = *request.method() == Method::CONNECT;
    let protocol = request.extensions().get::<hyper::ext::Protocol>().map(|p| p.as_str() == "websocket");
    let (mut head, incoming) = request.into_parts();
    let asks = Asks { opened, websocket: protocol == Some(true), connects: connects && protocol.is_none() };
    if asks.websocket {
        // To its route it is what it would be over HTTP/1.1.
        head.method = Method::GET;
    }
    let site = client.site();
    let sender = authority(&head.uri, &head.headers).and_then(|authority| client.sender(authority));
    let Some(sender) = sender else { return plain(StatusCode::BAD_REQUEST, record) };
    if let Some(line) = &record.line {
        let mut line = line.borrow_mut();
        let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        head.method.as_str().clone_into(&mut line.method);
        head.uri.path().clone_into(&mut line.path);
        sender.authority().clone_into(&mut line.authority);
        line.version = version(client.version);
        line.trace = text("traceparent");
        line.agent = text("user-agent");
        line.referer = text("referer");
    }
    if connects && protocol == Some(false) {
        // Nothing is known of it (RFC 9220, section 3).
        return plain(StatusCode::NOT_IMPLEMENTED, record);
    }
    // An echo of what a gateway's own fields add helps nobody.
    let unknown = connects && protocol.is_none() && client.version == Version::HTTP_3;
    if head.method == Method::TRACE || unknown {
        return plain(StatusCode::METHOD_NOT_ALLOWED, record);
    }
    // The target of CONNECT is an authority and has no path.
    let path = if asks.connects { "/" } else { head.uri.path() };
    if !is_plain(path) {
        return plain(StatusCode::BAD_REQUEST, record);
    }
    let wanted = Wanted { host: sender.host(), path, method: head.method.as_str() };
    let fields = &head.headers;
    let found = site.table.find(wanted, |name| fields.get_all(name).iter().map(HeaderValue::as_bytes));
    let Some((number, route)) = found.and_then(|number| Some((number, site.routes.get(number)?.clone()))) else {
        return plain(StatusCode::NOT_FOUND, record);
    };
    record.routed(number);
    // A tunnel is opened only where a route says in so many words that it takes CONNECT.
    if asks.connects && !(site.table.names_method(number, "CONNECT") && matches!(route.action, Action::Proxy(_))) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, record);
    }
    if head.headers.get(header::EXPECT).is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return plain(StatusCode::EXPECTATION_FAILED, record);
    }
    if incoming.size_hint().lower() > route.max_body {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, record);
    }
    if !route.guards.is_empty()
        && let Some(mut refused) = Box::pin(route.guards.refusal(client, &mut head, record)).await
    {
        route.response.apply(refused.headers_mut());
        return refused;
    }
    let mut response = routed(client, &route, (head, incoming), asks, &sender, record).await;
    route.response.apply(response.headers_mut());
    response
}

/// What a request asks for beside an answer.
struct Asks {
    /// The stream of HTTP/2, once it is opened for both to speak on.
    opened: Option<OnUpgrade>,
    /// A WebSocket over HTTP/2.
    websocket: bool,
    /// A tunnel.
    connects: bool,
}

/// What the route answers to a request that it lets pass.
async fn routed(
    client: &Rc<Client>,
    route: &Arc<Route>,
    (mut head, incoming): (http::request::Parts, FromClient),
    asks: Asks,
    sender: &Sender,
    record: &Rc<Record>,
) -> Response<ToClient> {
    match &route.action {
        // What is rare has a place of its own, so that it takes none with each request.
        Action::Proxy(upstream) if asks.connects => {
            Box::pin(tunnel::connect(client, upstream, route, asks.opened, record)).await
        }
        Action::Proxy(upstream) => {
            let websocket = asks.websocket || (!client.has_streams() && forward::asks_for_websocket(&head.headers));
            if websocket && !client.has_streams() && !incoming.is_end_stream() {
                // What is sent behind the head is the other protocol's already, or a body that nobody waits for.
                let why = Refusal::UpgradeBody.reason();
                client.notes.driver.raise("http_refused", &client.settings.listener, why);
                let mut response = plain(StatusCode::BAD_REQUEST, record);
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                return response;
            }
            if forwarded(client, &mut head, route, sender, record).is_none() {
                return plain(StatusCode::BAD_REQUEST, record);
            }
            let head = Head { method: head.method, uri: head.uri, fields: head.headers };
            if websocket {
                Box::pin(tunnel::open(client, upstream, route, head, (asks.opened, incoming), record)).await
            } else {
                proxy(client, upstream, route, head, incoming, record).await
            }
        }
        Action::Respond { status, body } => {
            let mut response = plain(*status, record);
            if !body.is_empty() {
                *response.body_mut() = ToClient::whole(body.clone(), record.clone());
            }
            response
        }
        Action::Redirect { status, to } => {
            let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            let to = to.replace("{host}", sender.host()).replace("{path}", head.uri.path()).replace("{query}", &query);
            let mut response = plain(*status, record);
            match HeaderValue::try_from(to) {
                Ok(to) => drop(response.headers_mut().insert(header::LOCATION, to)),
                Err(_) => return plain(StatusCode::BAD_REQUEST, record),
            }
            response
        }
        Action::Files { root, index } => match route.rewrite.apply(head.uri.path()) {
            Some(path) => {
                let asked = files::Asked { method: &head.method, path: &path, query: head.uri.query() };
                Box::pin(files::answer(root, index, asked, &head.headers, record)).await
            }
            None => plain(StatusCode::BAD_REQUEST, record),
        },
        Action::Demo => demo(client, &head, sender.authority(), record),
        // Asked for by an extended CONNECT of HTTP/3, and by nothing else.
        #[cfg(feature = "quic")]
        Action::Session(_) => plain(StatusCode::UPGRADE_REQUIRED, record),
    }
}

/// What a server is sent, but the body.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) fields: HeaderMap,
}

impl Head {
    /// As a version of HTTP sends it: HTTP/2 has the authority in its target.
    pub(super) fn request(mut self, body: ToServer, http2: bool, tls: bool) -> Request<ToServer> {
        if http2 {
            self.uri = absolute(&self, tls);
            self.fields.remove(header::HOST);
        } else if matches!(body, ToServer::Stream(_)) && body.size_hint().exact().is_none() {
            // hyper takes a request by GET or HEAD for one without a body unless its framing is said.
            self.fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.fields;
        request
    }

    /// What was to be sent, for another attempt.
    fn back(parts: http::request::Parts) -> Self {
        let mut head = Self { method: parts.method, uri: parts.uri, fields: parts.headers };
        head.fields.remove(header::TRANSFER_ENCODING);
        if let Some(authority) = head.uri.authority() {
            if let Ok(host) = HeaderValue::try_from(authority.as_str()) {
                head.fields.insert(header::HOST, host);
            }
            head.uri = head.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        }
        head
    }
}

/// The authority that was asked for, if there is exactly one and it can be one. A target that names it counts for more
/// than `Host` (RFC 9112, section 3.2.2); two that differ are refused (RFC 9113, section 8.3.1).
pub(super) fn authority<'a>(uri: &'a Uri, fields: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = fields.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().ok()?),
        (Some(_), Some(_)) => return None,
    };
    let authority = match (uri.authority().map(uri::Authority::as_str), host) {
        (Some(target), Some(host)) if !target.eq_ignore_ascii_case(host) => return None,
        (Some(target), _) => target,
        (None, Some(host)) => host,
        // HTTP/1.0, where nobody need say.
        (None, None) => "localhost",
    };
    is_authority(authority.as_bytes()).then_some(authority)
}

/// Turns the head of a client's request into that of a request to a server; nothing if its path cannot be rewritten.
fn forwarded(
    client: &Client,
    head: &mut http::request::Parts,
    route: &Route,
    sender: &Sender,
    record: &Record,
) -> Option<()> {
    forward::to_server(&mut head.headers, sender, || client.request_id());
    if client.has_streams() {
        forward::join_cookies(&mut head.headers);
    }
    head.headers.insert(header::HOST, sender.named());
    if let Some(line) = &record.line
        && let Some(Ok(id)) = head.headers.get(forward::X_REQUEST_ID).map(HeaderValue::to_str)
    {
        id.clone_into(&mut line.borrow_mut().id);
    }
    route.request.apply(&mut head.headers);
    head.uri = if route.rewrite.keeps() {
        head.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
    } else {
        let mut target = route.rewrite.apply(head.uri.path())?;
        if let Some(query) = head.uri.query() {
            target.push('?');
            target.push_str(query);
        }
        target.parse().ok()?
    };
    Some(())
}

/// A place at a server, for one attempt.
pub(super) async fn pick(
    client: &Client,
    upstream: &Arc<Upstream>,
    pool: &Pool,
    tried: &[ServerId],
) -> Result<Picked, Failure> {
    let until = later(client.notes.driver.now(), upstream.connect_timeout);
    let seed = || upstream.balancer.seed(client.random(), client.peer.ip());
    let mut waits = None;
    loop {
        let now = client.notes.driver.now();
        match upstream.balancer.pick(now, seed(), tried) {
            Ok(picked) => return Ok(picked),
            // All were tried: once more at any of them.
            Err(NoServer::AllTried) if !tried.is_empty() => {
                return upstream.balancer.pick(now, seed(), &[]).map_err(|_| Failure::NoServer);
            }
            Err(NoServer::Full) if now < until && (waits.is_some() || pool.waiting.get() < upstream.pending) => {
                waits.get_or_insert_with(|| Waits::new(pool));
                client.notes.until(later(now, LOOK_AGAIN), std::future::pending::<()>()).await;
            }
            Err(why) => {
                client.notes.driver.raise("upstream_failures", &upstream.name, why.reason());
                return Err(Failure::NoServer);
            }
        }
    }
}

/// One of those who wait for a server to have room.
struct Waits<'a>(&'a Pool);

impl<'a> Waits<'a> {
    fn new(pool: &'a Pool) -> Self {
        pool.waiting.set(pool.waiting.get() + 1);
        Self(pool)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
    }
}

async fn proxy(
    client: &Rc<Client>,
    upstream: &Arc<Upstream>,
    route: &Route,
    mut head: Head,
    incoming: FromClient,
    record: &Rc<Record>,
) -> Response<ToClient> {
    let notes = &client.notes;
    let has_body = !incoming.is_end_stream();
    let sending = has_body.then(Rc::<Sending>::default);
    let fault = || sending.as_ref().and_then(|sending| sending.fault.get());
    let mut body = Some(match &sending {
        Some(sending) => ToServer::Stream(Box::new(body::Request {
            incoming,
            left: route.max_body,
            silence: client.settings.times.body,
            record: record.clone(),
            sending: sending.clone(),
            timer: Timer::default(),
            since: None,
        })),
        None => ToServer::Empty,
    });
    let pool = client.pool(upstream);
    pool.budget.borrow_mut().request();
    let mut attempts = Attempts::new(route.retries, &head.method, has_body);
    let mut tried: Vec<ServerId> = Vec::new();
    loop {
        let mut at = None;
        let failure = match pick(client, upstream, &pool, &tried).await {
            Err(failure) => failure,
            Ok(picked) => {
                at = Some(picked.id());
                if let Some(line) = &record.line {
                    line.borrow_mut().server = picked.address().to_string();
                }
                let server = (picked.id(), picked.address());
                match pool.lend(upstream, server, &notes.driver, attempts.may_use_kept()).await {
                    Err(failure) => {
                        picked.failed(notes.driver.now());
                        failure
                    }
                    Ok(mut lent) => {
                        let Some(whole) = body.take() else { return plain(StatusCode::BAD_GATEWAY, record) };
                        // A request without a body may be sent again; one with a body is sent once.
                        let again = has_body || (route.retries == 0 && !lent.is_used());
                        let again = if again { None } else { Some(head.clone()) };
                        let request = std::mem::replace(&mut head, again.unwrap_or_else(Head::none)).request(
                            whole,
                            lent.is_http2(),
                            upstream.tls.is_some(),
                        );
                        let request = early::heard(client, request).await;
                        match in_time(notes, route.timeout, sending.as_deref(), lent.send(request)).await {
                            Some(Ok(response)) if !forward::is_framed_once(response.version(), response.headers()) => {
                                picked.failed(notes.driver.now());
                                Failure::Framing
                            }
                            // Nobody asked for another protocol (RFC 9110, section 7.8).
                            Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                                picked.failed(notes.driver.now());
                                Failure::Switched
                            }
                            Some(Ok(response)) => {
                                picked.succeeded(notes.driver.now());
                                let source = Source::Pool {
                                    lent: Some(lent),
                                    pool,
                                    upstream: upstream.clone(),
                                    picked: Some(picked),
                                    sending,
                                };
                                return from_server(response, source, route, record);
                            }
                            Some(Err((error, unsent))) => {
                                tracing::debug!(upstream = %upstream.name, %error, "no answer");
                                let failure = match (fault(), unsent) {
                                    (Some(fault), _) => fault,
                                    (None, Some(request)) => {
                                        let (parts, whole) = request.into_parts();
                                        head = Head::back(parts);
                                        body = Some(whole);
                                        Failure::NotSent
                                    }
                                    (None, None) if lent.is_used() && !lent.is_http2() && ended(&error) => {
                                        Failure::Stale
                                    }
                                    (None, None) => Failure::Broken,
                                };
                                if failure.blames_server() {
                                    picked.failed(notes.driver.now());
                                }
                                failure
                            }
                            None => {
                                picked.failed(notes.driver.now());
                                fault().unwrap_or(Failure::TooSlow)
                            }
                        }
                    }
                }
            }
        };
        notes.driver.raise("http_failures", &upstream.name, failure.reason());
        let whole = body.is_some() || !has_body;
        match attempts.failed(failure, whole, &mut pool.budget.borrow_mut()) {
            next @ (Next::Again | Next::Anew) => {
                if body.is_none() {
                    body = Some(ToServer::Empty);
                }
                // Where it is tried anew is not tried yet.
                tried.extend(at.filter(|_| next == Next::Again));
                notes.driver.raise("http_retries", &upstream.name, failure.reason());
            }
            Next::Answer(status) => {
                let mut response = plain(status, record);
                if fault().is_some() {
                    // What is left of the body is not read.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    if client.has_streams() {
                        response.headers_mut().remove(header::CONNECTION);
                    }
                }
                return response;
            }
        }
    }
}

/// Waits for the head of an answer. Its time begins when the request is out, so long as the server takes it: for a
/// client that is waited for there is another limit.
async fn in_time<F: Future>(
    notes: &Notes,
    timeout: Duration,
    sending: Option<&Sending>,
    answer: F,
) -> Option<F::Output> {
    let mut answer = pin!(answer);
    let (mut timer, mut seen) = (Timer::default(), 0);
    let mut until = later(notes.driver.now(), timeout);
    poll_fn(|cx| {
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            timer.clear(notes);
            return Poll::Ready(Some(answer));
        }
        if let Some(sending) = sending {
            let steps = sending.steps(cx);
            if steps != seen || sending.is_awaited() {
                seen = steps;
                until = later(notes.driver.now(), timeout);
            }
        }
        timer.poll(notes, until, cx).map(|()| None)
    })
    .await
}

/// Whether a connection ended before anything of an answer came.
fn ended(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_reset(error)
}

fn is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| matches!(io.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe))
}

impl Head {
    fn none() -> Self {
        Self { method: Method::GET, uri: Uri::from_static("/"), fields: HeaderMap::new() }
    }
}

/// The target as HTTP/2 sends it.
fn absolute(head: &Head, tls: bool) -> Uri {
    let host = head.fields.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let mut parts = uri::Parts::default();
    parts.scheme = Some(if tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP });
    parts.authority = uri::Authority::try_from(host).ok();
    parts.path_and_query = head.uri.path_and_query().cloned();
    Uri::from_parts(parts).unwrap_or_else(|_| Uri::from_static("/"))
}

/// A server's answer as the client gets it.
pub(super) fn from_server(
    response: Response<Incoming>,
    source: Source,
    route: &Route,
    record: &Rc<Record>,
) -> Response<ToClient> {
    let (head, incoming) = response.into_parts();
    let mut response = Response::new(ToClient::server(incoming, source, route.timeout, record.clone()));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    forward::strip_hop(response.headers_mut());
    response
}

/// A version as logs and pages write it.
fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_3 => "3",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn demo(client: &Client, head: &http::request::Parts, authority: &str, record: &Rc<Record>) -> Response<ToClient> {
    use std::fmt::Write;
    let version = version(client.version);
    let tls = if client.tls { "over TLS" } else { "without TLS" };
    let target = head.uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
    let mut text = format!(
        "Portway\n\n{} {target}\nhost: {authority}\nfrom: {}\nHTTP/{version} {tls}, request {} of its connection\n\n",
        head.method,
        client.peer.ip(),
        client.requests(),
    );
    for (name, value) in &head.headers {
        // Secrets of the browser do not belong on a page.
        if *name != header::COOKIE && *name != header::AUTHORIZATION {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{name}: {}", value.as_bytes().escape_ascii());
        }
    }
    let mut response = plain(StatusCode::OK, record);
    *response.body_mut() = ToClient::whole(text.into(), record.clone());
    response
}
