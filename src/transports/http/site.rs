//! What a listener answers with, as plain data that all arbiters share: routes, upstreams, limits.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::codec_edit::{Edits, Rewrite};
use super::codec_forward::Network;
use super::codec_head::HeadLimits;
use super::guards::Guards;
use super::record::LogFields;
use super::state_routes::{Rule, Table, Tie};
use super::state_watch::Times;
use crate::memory::Snapshot;
use crate::transports::kit::balance::Balancer;
use crate::transports::tls::{ClientSettings, ServerSettings};

/// The routes of a listener, and what they lead to.
#[derive(Debug)]
pub struct Site {
    pub(super) table: Table,
    pub(super) routes: Vec<Arc<Route>>,
}

impl Site {
    /// A site of these routes.
    ///
    /// # Errors
    /// Two routes that one request could fit equally well.
    pub fn new(routes: Vec<(Rule, Route)>) -> Result<Self, Tie> {
        let (rules, routes): (Vec<_>, Vec<_>) = routes.into_iter().map(|(rule, route)| (rule, Arc::new(route))).unzip();
        Ok(Self { table: Table::new(rules)?, routes })
    }
}

/// What becomes of the requests of a route.
#[derive(Debug)]
pub struct Route {
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    /// Who may pass, and how often.
    pub guards: Guards,
    /// What becomes of the path before it is passed on.
    pub rewrite: Rewrite,
    /// Changes to the fields of requests that are passed on.
    pub request: Edits,
    /// Changes to the fields of answers, also of those that are made here.
    pub response: Edits,
    /// How long a server may take until the head of its answer, and be silent inside it.
    pub timeout: Duration,
    /// How often a request that is safe to repeat is sent again.
    pub retries: u32,
    /// Bytes of the largest body of a request.
    pub max_body: u64,
    /// What answers.
    pub action: Action,
}

impl Route {
    /// A route with this name and the defaults of the configuration for everything else.
    #[must_use]
    pub fn new(name: &str, action: Action) -> Self {
        Self {
            name: Arc::from(name),
            guards: Guards::default(),
            rewrite: Rewrite::default(),
            request: Edits::default(),
            response: Edits::default(),
            timeout: Duration::from_secs(60),
            retries: 2,
            max_body: 1 << 30,
            action,
        }
    }
}

/// What answers a request.
#[derive(Debug)]
pub enum Action {
    /// A server.
    Proxy(Arc<Upstream>),
    /// Always the same.
    Respond {
        /// The status.
        status: StatusCode,
        /// The body, plain text.
        body: Bytes,
    },
    /// Somewhere else: `{host}`, `{path}` and `{query}` (with its `?`) stand for those of the request.
    Redirect {
        /// A status from 301 to 308.
        status: StatusCode,
        /// Where.
        to: String,
    },
    /// A file below a folder.
    Files {
        /// The folder.
        root: Arc<OwnedFd>,
        /// What a path that ends in `/` leads to.
        index: String,
    },
    /// A page that shows the request.
    Demo,
    /// A session of WebTransport, over HTTP/3.
    #[cfg(feature = "quic")]
    Session(Inside),
}

/// What runs in sessions of WebTransport.
#[cfg(feature = "quic")]
#[derive(Clone)]
pub struct Inside {
    /// Protocols that it speaks, the most wanted first; a client that offers none of them gets none.
    pub protocols: Vec<String>,
    /// Pages that may open one, by their origins in small letters; empty: all. A client that names none, as no browser
    /// does, passes.
    pub origins: Vec<String>,
    /// Makes the application of one.
    pub make: Arc<dyn Fn() -> Box<dyn crate::transports::quic::Application> + Send + Sync>,
}

#[cfg(feature = "quic")]
impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside").field("protocols", &self.protocols).finish_non_exhaustive()
    }
}

/// Which HTTP servers speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2, known beforehand. Over TLS it must be agreed on as well.
    Two,
    /// What a server chooses in its TLS handshake.
    Agreed,
}

/// Servers that answer requests.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    /// Which server gets the next request.
    pub balancer: Arc<Balancer>,
    /// What reaches them.
    pub network: crate::transports::relay::Network,
    /// How long a server may take to accept a connection.
    pub connect_timeout: Duration,
    /// Which HTTP its servers speak.
    pub version: Version,
    /// What is said to servers in TLS handshakes and demanded of them; `None`: no TLS. Name and protocols are set for
    /// each server.
    pub tls: Option<Arc<ClientSettings>>,
    /// How long a connection is kept for the next request.
    pub idle: Duration,
    /// Connections kept so, for each server and arbiter.
    pub idle_connections: usize,
    /// Requests that may wait for a server on each arbiter when all have as many as they may.
    pub pending: usize,
}

/// What a listener allows, and how it is spoken to.
#[derive(Debug)]
pub struct Settings {
    /// The name of the listener.
    pub listener: Arc<str>,
    /// How large a head may be.
    pub head: HeadLimits,
    /// How long a client may be silent.
    pub times: Times,
    /// Requests on one connection, then it is closed; 0: any number.
    pub requests: u64,
    /// Requests of one HTTP/2 connection at the same time.
    pub streams: u32,
    /// Proxies whose word about their clients counts.
    pub trusted: Vec<Network>,
    /// What is logged of each request; `None`: nothing.
    pub access_log: Option<LogFields>,
    /// Certificates and protocols; `None`: no TLS.
    pub tls: Option<Arc<ServerSettings>>,
    /// What is said of HTTP/3 in answers of HTTP/1.1 and 2 (RFC 7838).
    pub alternative: Option<HeaderValue>,
    /// Whether connections of HTTP/3 take sessions of WebTransport.
    pub sessions: bool,
}

impl Settings {
    /// Of a listener without TLS, with the defaults of the configuration for everything else.
    #[must_use]
    pub fn new(listener: &str) -> Self {
        let second = Duration::from_secs(1);
        Self {
            listener: Arc::from(listener),
            head: HeadLimits { bytes: 32 << 10, fields: 100 },
            times: Times { head: 10 * second, body: 30 * second, send: 30 * second, idle: Some(300 * second) },
            requests: 0,
            streams: 100,
            trusted: Vec::new(),
            access_log: None,
            tls: None,
            alternative: None,
            sessions: false,
        }
    }
}

/// The site of a listener, replaced while connections run: they ask for it with each request.
pub type Published = Snapshot<Site>;
