//! What is remembered of one exchange until it ends: for metrics, by route and upstream, and for the access log.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::site::{Action, Settings, Site};
use super::wire::Notes;
use crate::actors::{Counter, Driver};

/// What a line of the access log can say, in its order.
pub const LOG_FIELDS: [&str; 16] = [
    "listener",
    "client",
    "method",
    "host",
    "path",
    "version",
    "status",
    "bytes_in",
    "bytes_out",
    "ms",
    "upstream",
    "request_id",
    "traceparent",
    "ended",
    "user_agent",
    "referer",
];

/// Some of [`LOG_FIELDS`]. The default leaves out what browsers say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogFields(u32);

impl Default for LogFields {
    fn default() -> Self {
        Self((1 << 14) - 1)
    }
}

impl LogFields {
    /// Those of these names; `None` if one is no field.
    #[must_use]
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let bit = |name| LOG_FIELDS.iter().position(|field| *field == name).map(|at| 1 << at);
        names.into_iter().map(bit).try_fold(0, |all, bit| Some(all | bit?)).map(Self)
    }

    /// A value, if its field is to be said.
    fn say<T>(self, name: &str, value: impl FnOnce() -> T) -> Option<T> {
        let at = LOG_FIELDS.iter().position(|field| *field == name)?;
        (self.0 & (1 << at) != 0).then(value)
    }
}

/// Upper ends of the histogram of durations, with the word for each. [`DURATION_SUM`] is counted beside them.
pub const DURATIONS: [(Duration, &str); 9] = [
    (Duration::from_millis(1), "1ms"),
    (Duration::from_millis(5), "5ms"),
    (Duration::from_millis(10), "10ms"),
    (Duration::from_millis(50), "50ms"),
    (Duration::from_millis(100), "100ms"),
    (Duration::from_millis(500), "500ms"),
    (Duration::from_secs(1), "1s"),
    (Duration::from_secs(5), "5s"),
    (Duration::MAX, "more"),
];
/// The word under which the microseconds of all durations are counted.
pub const DURATION_SUM: &str = "sum";
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "broken"];

/// The counters of one scope: requests by class of status, and by duration.
struct Tally {
    classes: [Counter; 6],
    buckets: [Counter; 9],
    /// Microseconds.
    sum: Counter,
}

impl Tally {
    fn new(driver: &Driver, families: (&'static str, &'static str), scope: &Arc<str>) -> Self {
        Self {
            classes: CLASSES.map(|class| driver.counter(families.0, scope, class)),
            buckets: DURATIONS.map(|(_, word)| driver.counter(families.1, scope, word)),
            sum: driver.counter(families.1, scope, DURATION_SUM),
        }
    }

    fn count(&self, class: usize, took: Duration) {
        if let Some(counter) = self.classes.get(class) {
            counter.add(1);
        }
        let bucket = DURATIONS.iter().position(|(end, _)| took <= *end);
        if let Some(counter) = bucket.and_then(|bucket| self.buckets.get(bucket)) {
            counter.add(1);
        }
        self.sum.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

/// The counters of a site on one arbiter.
pub(super) struct Tallies {
    listener: [Counter; 6],
    routes: Vec<(Tally, Option<Tally>)>,
    /// The names of the routes, with that of the listener.
    scopes: Vec<Arc<str>>,
}

impl Tallies {
    pub(super) fn new(driver: &Driver, listener: &Arc<str>, site: &Site) -> Self {
        let scope = |route: &Arc<super::site::Route>| Arc::<str>::from(format!("{listener}/{}", route.name));
        let scopes: Vec<_> = site.routes.iter().map(scope).collect();
        let routes = site.routes.iter().zip(&scopes).map(|(route, scope)| {
            let upstream = match &route.action {
                Action::Proxy(upstream) => Some(&upstream.name),
                Action::Respond { .. } | Action::Redirect { .. } | Action::Files { .. } | Action::Demo => None,
                #[cfg(feature = "quic")]
                Action::Session(_) => None,
            };
            let of_route = Tally::new(driver, ("http_route_requests", "http_route_duration"), scope);
            let families = ("http_upstream_requests", "http_upstream_duration");
            (of_route, upstream.map(|name| Tally::new(driver, families, name)))
        });
        let routes = routes.collect();
        let listener = CLASSES.map(|class| driver.counter("http_requests", listener, class));
        Self { listener, routes, scopes }
    }
}

/// What is written to the access log, kept only if there is one.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) method: String,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) version: &'static str,
    pub(super) id: String,
    pub(super) trace: String,
    pub(super) server: String,
    pub(super) agent: String,
    pub(super) referer: String,
}

/// One exchange. It ends when this is dropped.
pub(super) struct Record {
    notes: Rc<Notes>,
    settings: Arc<Settings>,
    tallies: Rc<Tallies>,
    peer: SocketAddr,
    began: Instant,
    route: Cell<Option<usize>>,
    status: Cell<StatusCode>,
    up: Cell<u64>,
    down: Cell<u64>,
    broke: Cell<Option<&'static str>>,
    answered: Cell<bool>,
    pub(super) line: Option<RefCell<Line>>,
}

impl Record {
    pub(super) fn new(notes: Rc<Notes>, settings: Arc<Settings>, tallies: Rc<Tallies>, peer: SocketAddr) -> Rc<Self> {
        let began = notes.driver.now();
        let line = settings.access_log.map(|_| RefCell::default());
        Rc::new(Self {
            notes,
            settings,
            tallies,
            peer,
            began,
            route: Cell::new(None),
            status: Cell::new(StatusCode::OK),
            up: Cell::new(0),
            down: Cell::new(0),
            broke: Cell::new(None),
            answered: Cell::new(false),
            line,
        })
    }

    pub(super) const fn notes(&self) -> &Rc<Notes> {
        &self.notes
    }

    pub(super) fn routed(&self, route: usize) {
        self.route.set(Some(route));
    }

    pub(super) fn answers(&self, status: StatusCode) {
        self.status.set(status);
        self.answered.set(true);
    }

    pub(super) fn up(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes as u64);
    }

    pub(super) fn down(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes as u64);
    }

    /// The route does not let the request pass.
    pub(super) fn denied(&self, why: &'static str) {
        let route = self.route.get().and_then(|route| self.tallies.scopes.get(route));
        if let Some(scope) = route {
            self.notes.driver.raise("http_denied", scope, why);
        }
    }

    /// The answer does not come to its end.
    pub(super) fn broke(&self, why: &'static str) {
        self.broke.set(Some(why));
        self.notes.driver.raise("http_broken", &self.settings.listener, why);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = self.notes.driver.now();
        self.notes.watch.borrow_mut().ended(now);
        let took = now.saturating_duration_since(self.began);
        let gone = !self.answered.get();
        let class = if gone || self.broke.get().is_some() {
            CLASSES.len() - 1
        } else {
            usize::from(self.status.get().as_u16() / 100).saturating_sub(1).min(4)
        };
        if let Some(counter) = self.tallies.listener.get(class) {
            counter.add(1);
        }
        if let Some((route, upstream)) = self.route.get().and_then(|route| self.tallies.routes.get(route)) {
            route.count(class, took);
            if let Some(upstream) = upstream {
                upstream.count(class, took);
            }
        }
        let (Some(line), Some(fields)) = (&self.line, self.settings.access_log) else { return };
        let line = line.borrow();
        let ended = || if gone { "client_gone" } else { self.broke.get().unwrap_or("whole") };
        let text = |name, value| fields.say(name, || value);
        tracing::info!(
            target: "portway::access",
            listener = fields.say("listener", || tracing::field::display(&self.settings.listener)),
            client = fields.say("client", || tracing::field::display(self.peer.ip())),
            method = text("method", &*line.method),
            host = text("host", &*line.authority),
            path = text("path", &*line.path),
            version = text("version", line.version),
            status = fields.say("status", || if gone { 0 } else { self.status.get().as_u16() }),
            bytes_in = fields.say("bytes_in", || self.up.get()),
            bytes_out = fields.say("bytes_out", || self.down.get()),
            ms = fields.say("ms", || took.as_millis() as u64),
            upstream = text("upstream", &*line.server),
            request_id = text("request_id", &*line.id),
            traceparent = text("traceparent", &*line.trace),
            ended = fields.say("ended", ended),
            user_agent = text("user_agent", &*line.agent),
            referer = text("referer", &*line.referer),
            "request"
        );
    }
}
