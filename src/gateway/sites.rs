//! From the configuration of an HTTP listener to its settings, its site and its certificates.

#[cfg(feature = "http")]
pub(super) mod hello;
#[cfg(all(feature = "http", feature = "quic"))]
pub(super) mod quic;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use rustix::fs::{Mode, OFlags};

use super::Made;
pub(super) use super::certificates::Certificates;
use super::check::guards;
use super::check::http::rule;
use super::config::{self, Http, HttpAction, HttpRoute, Listener, ListenerTls};
use super::upstreams::Upstreams;
use crate::transports::http::codec_edit::Rewrite;
use crate::transports::http::codec_forward::Network;
use crate::transports::http::codec_head::HeadLimits;
use crate::transports::http::state_watch::Times;
use crate::transports::http::{Action, Connections, LogFields, Published, Route, Settings, Site, Upstream};
#[cfg(feature = "quic")]
use crate::transports::http::{Inside, OverQuic};
#[cfg(feature = "quic")]
use crate::transports::quic::{Application, Echo};
#[cfg(feature = "quic")]
use crate::transports::relay;
use crate::transports::tcp::OnAccept;

/// The site of a listener: what its connections ask for, and what they are to find there once it is started.
#[derive(Debug, Clone)]
pub(super) struct Web {
    live: Arc<Published>,
    next: Arc<Site>,
    settings: Arc<Settings>,
    /// The same for HTTP/3.
    #[cfg(feature = "quic")]
    pub(super) over_quic: Arc<OverQuic>,
}

impl Web {
    /// From now on each request meets this site, also on connections that were let in before.
    pub(super) fn publish(&self) {
        self.live.publish(self.next.clone());
        #[cfg(feature = "quic")]
        self.over_quic.set(self.settings.clone());
    }

    /// What starts the connections of clients that do not come from an acceptor.
    #[cfg(feature = "wireguard")]
    pub(super) fn connections(&self) -> Connections {
        Connections::new(self.settings.clone(), self.live.clone())
    }
}

/// The names of the upstreams that routes lead to.
pub(super) fn upstreams_of(http: &Http) -> impl Iterator<Item = &str> {
    http.routes.iter().flat_map(|route| {
        let (first, second) = match &route.action {
            HttpAction::Upstream(name) => (Some(name), None),
            HttpAction::Session { upstream, datagrams, .. } => (upstream.as_ref(), datagrams.as_ref()),
            HttpAction::Respond { .. }
            | HttpAction::Redirect { .. }
            | HttpAction::Static { .. }
            | HttpAction::Moq { .. }
            | HttpAction::Fingerprint { .. }
            | HttpAction::Demo => (None, None),
        };
        first.into_iter().chain(second).map(String::as_str)
    })
}

/// Whether what a listener shows of certificates, in handshakes and by their hashes, is the same as before.
pub(super) fn same_certificates(http: &Http, before: &Certificates, now: &Certificates) -> bool {
    let told = http.routes.iter().filter_map(|route| match &route.action {
        HttpAction::Fingerprint { certificate } => Some(certificate.clone()),
        HttpAction::Upstream(_)
        | HttpAction::Respond { .. }
        | HttpAction::Redirect { .. }
        | HttpAction::Static { .. }
        | HttpAction::Demo
        | HttpAction::Moq { .. }
        | HttpAction::Session { .. } => None,
    });
    let told = ListenerTls { certificates: told.collect(), ..ListenerTls::default() };
    before.same_for(now, &told) && http.tls.as_ref().is_none_or(|tls| before.same_for(now, tls))
}

/// The names of those that requests are sent to.
fn servers_of(http: &Http) -> impl Iterator<Item = &str> {
    http.routes.iter().filter_map(|route| match &route.action {
        HttpAction::Upstream(name) => Some(name.as_str()),
        HttpAction::Respond { .. }
        | HttpAction::Redirect { .. }
        | HttpAction::Static { .. }
        | HttpAction::Demo
        | HttpAction::Fingerprint { .. }
        | HttpAction::Moq { .. }
        | HttpAction::Session { .. } => None,
    })
}

/// What starts the connections of a listener, and its site. Connections of `before` are to meet the same site.
pub(super) fn make(
    listener: &Listener,
    http: &Http,
    upstreams: &Upstreams,
    certificates: &Certificates,
    before: Option<&Web>,
    port: u16,
) -> Result<(Made, Web), String> {
    let tls = match &http.tls {
        None => None,
        Some(tls) => {
            let protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let settings = certificates.server(&listener.name, tls, protocols).map_err(|error| error.to_string())?;
            // Whatever cannot be built is found now, and not with the first client.
            settings.builder().map_err(|error| error.to_string())?;
            Some(Arc::new(settings))
        }
    };
    let config::HttpSettings { head_bytes, head_fields, requests, streams, access_log, .. } = http.settings;
    let fields = http.settings.access_fields.iter().map(String::as_str);
    let fields =
        if http.settings.access_fields.is_empty() { Some(LogFields::default()) } else { LogFields::of(fields) };
    let settings = Settings {
        listener: Arc::from(listener.name.as_str()),
        head: HeadLimits { bytes: head_bytes, fields: head_fields },
        times: Times {
            head: http.settings.head_timeout,
            body: http.settings.body_timeout,
            send: http.settings.send_timeout,
            idle: (!listener.limits.idle.is_zero()).then_some(listener.limits.idle),
        },
        requests,
        streams,
        trusted: http.settings.trusted_proxies.iter().filter_map(|text| Network::parse(text)).collect(),
        access_log: fields.filter(|_| access_log),
        tls,
        alternative: http.settings.http3.then(|| alternative(port)),
        sessions: http
            .routes
            .iter()
            .any(|route| matches!(route.action, HttpAction::Session { .. } | HttpAction::Moq { .. })),
    };
    let mut servers: BTreeMap<&str, Arc<Upstream>> = BTreeMap::new();
    for name in servers_of(http) {
        if !servers.contains_key(name) {
            let upstream = upstreams.http(name).ok_or_else(|| format!("there is no upstream `{name}`"))?;
            servers.insert(name, upstream);
        }
    }
    let mut routes = Vec::with_capacity(http.routes.len());
    for route in &http.routes {
        let rule = rule(route).map_err(|error| error.to_string())?;
        let rewrite = guards::rewrite_of(&rule.path, route.strip_prefix, route.rewrite.as_deref());
        routes.push((rule, self::route(listener, route, rewrite, &servers, upstreams, certificates)?));
    }
    let site = Site::new(routes).map_err(|tie| tie.to_string())?;
    let (settings, next) = (Arc::new(settings), Arc::new(site));
    let live = before.map_or_else(|| Arc::new(Published::from(next.clone())), |web| web.live.clone());
    #[cfg(feature = "quic")]
    let over_quic = match before {
        Some(web) => web.over_quic.clone(),
        None => Arc::new(OverQuic::new(settings.clone(), live.clone())),
    };
    let web = Web {
        live: live.clone(),
        next,
        settings: settings.clone(),
        #[cfg(feature = "quic")]
        over_quic,
    };
    let made = move || Box::new(Connections::new(settings.clone(), live.clone())) as Box<dyn OnAccept>;
    Ok((Box::new(made), web))
}

/// What tells clients of HTTP/1.1 and 2 that HTTP/3 is spoken on this port, for a day (RFC 7838, section 3).
fn alternative(port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("h3=\":{port}\"; ma=86400")).unwrap_or(HeaderValue::from_static("clear"))
}

fn route(
    listener: &Listener,
    route: &HttpRoute,
    rewrite: Rewrite,
    servers: &BTreeMap<&str, Arc<Upstream>>,
    upstreams: &Upstreams,
    certificates: &Certificates,
) -> Result<Route, String> {
    let status = |status: u16| StatusCode::from_u16(status).map_err(|error| error.to_string());
    let action = match &route.action {
        HttpAction::Upstream(name) => {
            Action::Proxy(servers.get(name.as_str()).cloned().ok_or_else(|| format!("there is no upstream `{name}`"))?)
        }
        HttpAction::Respond { status: code, body } => {
            Action::Respond { status: status(*code)?, body: Bytes::from(body.clone()) }
        }
        HttpAction::Redirect { status: code, to } => Action::Redirect { status: status(*code)?, to: to.clone() },
        HttpAction::Static { root, index, .. } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(root, flags, Mode::empty());
            let root = opened.map_err(|error| format!("cannot open {}: {error}", root.display()))?;
            Action::Files { root: Arc::new(root), index: index.clone() }
        }
        HttpAction::Demo => Action::Demo,
        HttpAction::Fingerprint { certificate } => {
            let hash = certificates.fingerprint(certificate).map_err(|error| error.to_string())?;
            let mut body = String::with_capacity(64);
            for byte in hash {
                // Writing into a string does not fail.
                let _written = write!(body, "{byte:02x}");
            }
            Action::Respond { status: StatusCode::OK, body: Bytes::from(body) }
        }
        #[cfg(feature = "moq")]
        HttpAction::Moq { origins } => {
            let path = match &route.path {
                config::HttpPath::Exact(path) | config::HttpPath::Prefix(path) => Some(path.as_str()),
                config::HttpPath::Pattern(_) => None,
            };
            let site = upstreams.relays().of_route(path, &listener.name).ok_or("there is no relay")?;
            let protocols = super::check::quic::MOQ_DRAFTS.map(str::to_owned).to_vec();
            Action::Session(Inside { protocols, origins: origins.clone(), make: Arc::new(move || site.application()) })
        }
        #[cfg(not(feature = "moq"))]
        HttpAction::Moq { .. } => return Err("service `moq` needs a build with the feature `moq`".to_owned()),
        #[cfg(feature = "quic")]
        HttpAction::Session { protocols, origins, echo, upstream, datagrams } => {
            let make: Arc<dyn Fn() -> Box<dyn Application> + Send + Sync> = if *echo {
                Arc::new(|| Box::new(Echo::default()))
            } else {
                let to = super::quic::target(listener, upstream.as_ref(), datagrams.as_ref(), upstreams);
                let (to, name) = (Arc::new(to), Arc::<str>::from(listener.name.as_str()));
                Arc::new(move || Box::new(relay::Inside::new(name.clone(), to.clone())))
            };
            Action::Session(Inside { protocols: protocols.clone(), origins: origins.clone(), make })
        }
        #[cfg(not(feature = "quic"))]
        HttpAction::Session { .. } => {
            let _ = (listener, upstreams);
            return Err("WebTransport needs a build with the feature `quic`".to_owned());
        }
    };
    let (request, response) = guards::edits_of(&route.edits);
    Ok(Route {
        name: Arc::from(route.name.as_str()),
        rewrite,
        request,
        response,
        guards: guards::guards_of(&route.guards, &route.name)?,
        timeout: route.timeout,
        retries: route.retries,
        max_body: route.max_body,
        action,
    })
}
