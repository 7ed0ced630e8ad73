//! HTTP/3 clients of a listener: the same exchanges as those of HTTP/1.1 and 2, in the actors of QUIC connections.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};

use super::actor::{Came, Client};
use super::body::{FromClient, ToClient};
use super::exchange;
use super::site::{Action, Published, Settings};
use super::state_routes::{Wanted, host_of, is_plain};
use super::state_watch::Watch;
use super::wire::Notes;
use crate::actors::{Counter, Driver, clock};
use crate::memory::Snapshot;
use crate::transports::http3::codec::Code;
use crate::transports::http3::{Accepted, Http3, Incoming, Limits, Service};
use crate::transports::kit::admission::Ticket;
use crate::transports::quic::{Application, Event, Info, Session};
use crate::transports::webtransport::codec::protocols;

/// Makes the applications of a listener's QUIC connections.
pub struct OverQuic {
    settings: Snapshot<Settings>,
    site: Arc<Published>,
    random: RandomState,
    count: AtomicU64,
}

impl fmt::Debug for OverQuic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverQuic").field("listener", &self.settings.read().listener).finish_non_exhaustive()
    }
}

impl OverQuic {
    /// For a listener with these settings; each request asks for the site anew.
    #[must_use]
    pub fn new(settings: Arc<Settings>, site: Arc<Published>) -> Self {
        Self { settings: Snapshot::from(settings), site, random: RandomState::new(), count: AtomicU64::new(0) }
    }

    /// Other settings, for connections from now on.
    pub fn set(&self, settings: Arc<Settings>) {
        self.settings.publish(settings);
    }

    /// What runs inside a connection that was let in with this ticket. To be called on its arbiter.
    #[must_use]
    pub fn application(&self, info: &Info, ticket: Ticket) -> Box<dyn Application> {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count.fetch_add(1, Ordering::Relaxed));
        let settings = self.settings.keep();
        let driver = Driver::default();
        let watch = Watch::new(settings.times, driver.now());
        let notes = Notes::new(driver.clone(), settings.listener.clone(), watch);
        let limits = Limits {
            head_bytes: settings.head.bytes,
            head_fields: settings.head.fields,
            head_timeout: settings.times.head,
            sessions: settings.sessions,
        };
        let random = hasher.finish();
        let came = Came { peer: info.peer, tls: true, version: Version::HTTP_3, ticket, random };
        let waits = driver.counter("http3_waits", &settings.listener, "");
        let client = Client::new(notes, settings, self.site.clone(), came);
        Box::new(Http3::new(Three { client, waits, date: Cell::default() }, limits))
    }
}

/// The requests of one connection.
struct Three {
    client: Rc<Client>,
    /// Answers that waited for their clients.
    waits: Counter,
    /// The second of the last answer, and its date.
    date: Cell<Option<(Duration, HeaderValue)>>,
}

impl Three {
    /// RFC 9110, section 6.6.1; made once a second.
    fn date(&self) -> Option<HeaderValue> {
        let second = Duration::from_secs(clock::since_1970().as_secs());
        let date = match self.date.take() {
            Some((of, date)) if of == second => date,
            _ => HeaderValue::try_from(httpdate::fmt_http_date(std::time::UNIX_EPOCH + second)).ok()?,
        };
        self.date.set(Some((second, date.clone())));
        Some(date)
    }
}

impl Service for Three {
    type Body = ToClient;

    fn turn(&self, now: Instant) {
        self.client.notes.driver.turn(now);
    }

    async fn call(self: Rc<Self>, request: Request<Incoming>) -> Response<ToClient> {
        let client = &self.client;
        let record = client.begin();
        let mut response = exchange::answer(client, request.map(FromClient::Three), None, &record).await;
        record.answers(response.status());
        // What concerns one connection of HTTP/1.1 must not be said (RFC 9114, section 4.2).
        response.headers_mut().remove(header::CONNECTION);
        if !response.headers().contains_key(header::DATE)
            && let Some(date) = self.date()
        {
            response.headers_mut().insert(header::DATE, date);
        }
        response
    }

    fn session(&self, request: &Request<()>) -> Result<Accepted, StatusCode> {
        let client = &self.client;
        let record = client.begin();
        let (uri, fields) = (request.uri(), request.headers());
        let found = (|| {
            let authority = exchange::authority(uri, fields).filter(|_| is_plain(uri.path()));
            let host = host_of(authority.ok_or(StatusCode::BAD_REQUEST)?);
            let site = client.site();
            let wanted = Wanted { host: &host, path: uri.path(), method: request.method().as_str() };
            let number = site.table.find(wanted, |name| fields.get_all(name).iter().map(HeaderValue::as_bytes));
            let number = number.ok_or(StatusCode::NOT_FOUND)?;
            let route = site.routes.get(number).ok_or(StatusCode::NOT_FOUND)?;
            record.routed(number);
            match &route.action {
                Action::Session(inside) => {
                    let origin = fields.get(header::ORIGIN).map(HeaderValue::as_bytes);
                    let known =
                        |origin: &[u8]| inside.origins.iter().any(|o| o.as_bytes().eq_ignore_ascii_case(origin));
                    if origin.is_some_and(|origin| !inside.origins.is_empty() && !known(origin)) {
                        record.denied("origin");
                        return Err(StatusCode::FORBIDDEN);
                    }
                    Ok(inside.clone())
                }
                Action::Proxy(_)
                | Action::Respond { .. }
                | Action::Redirect { .. }
                | Action::Files { .. }
                | Action::Demo => Err(StatusCode::NOT_FOUND),
            }
        })();
        record.answers(found.as_ref().err().copied().unwrap_or(StatusCode::OK));
        let inside = found?;
        let offered = fields.get("wt-available-protocols").and_then(|list| list.to_str().ok()).map(protocols);
        let offered = offered.unwrap_or_default();
        let protocol = inside.protocols.iter().find(|name| offered.contains(name)).cloned();
        Ok(Accepted { application: (inside.make)(), protocol, place: Box::new(record) })
    }

    fn refused(&self, reason: &'static str) {
        self.client.notes.driver.raise("http3_refused", &self.client.settings.listener, reason);
    }

    fn failed(&self, code: Code) {
        self.client.notes.driver.raise("http3_errors", &self.client.settings.listener, code.reason());
    }

    fn wrote(&self, waits: bool) {
        let notes = &self.client.notes;
        if waits {
            self.waits.add(1);
        }
        notes.watch.borrow_mut().wrote(waits, notes.driver.now());
    }

    fn tick(&self) -> Option<Instant> {
        self.client.notes.tick()
    }

    fn late(&self) -> Option<&'static str> {
        let notes = &self.client.notes;
        notes.watch.borrow().late(notes.driver.now()).map(super::state_watch::Late::reason)
    }

    fn is_closing(&self) -> bool {
        self.client.notes.closing.get()
    }

    fn drain(&self, by: Instant) {
        self.client.notes.driver.drain(by);
    }
}

/// Closes its connection, and says why.
#[derive(Debug)]
pub struct Refused(
    /// The reason.
    pub &'static str,
);

impl Application for Refused {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if event == Event::Connected {
            session.close(Code::ExcessiveLoad.number(), self.0);
        }
    }
}
