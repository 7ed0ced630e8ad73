//! From the configuration of an HTTP listener to its settings, its site and its certificates.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use rustix::fs::{Mode, OFlags};

use super::Made;
use super::check_http::rule;
use super::config::{self, CertificateSource, Config, Http, HttpAction, HttpRoute, Listener, ListenerTls};
use super::upstreams::Upstreams;
use crate::transports::http::codec_forward::Network;
use crate::transports::http::codec_head::HeadLimits;
use crate::transports::http::state_watch::Times;
use crate::transports::http::{Action, Connections, Published, Route, Settings, Site, Upstream};
use crate::transports::tcp::OnAccept;
use crate::transports::tls::{Certificate, ClientCertificates, Curves, KeyLog, ServerSettings, Tickets, TlsError};

/// The certificates of a configuration, read and made once.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates {
    by_name: BTreeMap<String, (CertificateSource, Arc<Certificate>)>,
    tickets: Option<Arc<Tickets>>,
}

impl Certificates {
    /// Those of a new configuration: made ones stay the same while they are asked for the same names, files are read
    /// again.
    pub(super) fn renewed(&self, config: &Config) -> Result<Self, String> {
        let mut by_name = BTreeMap::new();
        for config::Certificate { name, source, .. } in &config.certificates {
            let before = self.by_name.get(name).filter(|(before, _)| before == source);
            let certificate = match (source, before) {
                (CertificateSource::Generated(_), Some((_, certificate))) => Ok(certificate.clone()),
                (CertificateSource::Generated(names), None) => Certificate::generate(names).map(Arc::new),
                (CertificateSource::Files { cert, key }, before) => {
                    let read = Certificate::from_files(cert, key).map(Arc::new);
                    // The same file again is the same certificate: nobody has to be told.
                    read.map(|read| match before {
                        Some((_, old)) if old.fingerprint().ok() == read.fingerprint().ok() => old.clone(),
                        Some(_) | None => read,
                    })
                }
            };
            let certificate = certificate.map_err(|error| format!("certificate `{name}`: {error}"))?;
            by_name.insert(name.clone(), (source.clone(), certificate));
        }
        let tickets = match &self.tickets {
            Some(tickets) => tickets.clone(),
            None => Tickets::new().map_err(|error| error.to_string())?,
        };
        Ok(Self { by_name, tickets: Some(tickets) })
    }

    /// Whether a listener would say the same in its handshakes with these others.
    pub(super) fn same_for(&self, other: &Self, tls: &ListenerTls) -> bool {
        tls.certificates.iter().all(|name| match (self.by_name.get(name), other.by_name.get(name)) {
            (Some((_, a)), Some((_, b))) => Arc::ptr_eq(a, b),
            _ => false,
        })
    }

    fn settings(&self, listener: &str, tls: &ListenerTls) -> Result<ServerSettings, TlsError> {
        let named = tls.certificates.iter().filter_map(|name| self.by_name.get(name));
        let mut settings = ServerSettings::new(listener, named.map(|(_, certificate)| certificate.clone()).collect());
        settings.tickets = self.tickets.clone();
        settings.clients = tls.client_ca.clone().map(ClientCertificates::signed_by).transpose()?;
        if let Some(curves) = &tls.curves {
            settings.curves = Curves::new(curves.clone())?;
        }
        if let Some(file) = &tls.keylog {
            settings.keylog = Some(Arc::new(
                KeyLog::open(file).map_err(|error| TlsError::Read { file: file.clone(), reason: error.to_string() })?,
            ));
        }
        Ok(settings)
    }
}

/// The site of a listener: what its connections ask for, and what they are to find there once it is started.
#[derive(Debug, Clone)]
pub(super) struct Web {
    live: Arc<Published>,
    next: Arc<Site>,
}

impl Web {
    /// From now on each request meets this site, also on connections that were let in before.
    pub(super) fn publish(&self) {
        self.live.store(self.next.clone());
    }
}

/// The names of the upstreams that routes lead to.
pub(super) fn upstreams_of(http: &Http) -> impl Iterator<Item = &str> {
    http.routes.iter().filter_map(|route| match &route.action {
        HttpAction::Upstream(name) => Some(name.as_str()),
        HttpAction::Respond { .. } | HttpAction::Redirect { .. } | HttpAction::Static { .. } | HttpAction::Demo => None,
    })
}

/// What starts the connections of a listener, and its site. Connections of `before` are to meet the same site.
pub(super) fn make(
    listener: &Listener,
    http: &Http,
    upstreams: &Upstreams,
    certificates: &Certificates,
    before: Option<&Web>,
) -> Result<(Made, Web), String> {
    let tls = match &http.tls {
        None => None,
        Some(tls) => {
            let mut settings = certificates.settings(&listener.name, tls).map_err(|error| error.to_string())?;
            settings.protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            // Whatever cannot be built is found now, and not with the first client.
            settings.builder().map_err(|error| error.to_string())?;
            Some(Arc::new(settings))
        }
    };
    let config::HttpSettings { head_bytes, head_fields, requests, streams, access_log, .. } = http.settings;
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
        access_log,
        tls,
    };
    let mut servers: BTreeMap<&str, Arc<Upstream>> = BTreeMap::new();
    for name in upstreams_of(http) {
        if !servers.contains_key(name) {
            let upstream = upstreams.http(name).ok_or_else(|| format!("there is no upstream `{name}`"))?;
            servers.insert(name, upstream);
        }
    }
    let mut routes = Vec::with_capacity(http.routes.len());
    for route in &http.routes {
        let rule = rule(route).map_err(|error| error.to_string())?;
        let strip = if route.strip_prefix { rule.path.prefix_len() } else { 0 };
        routes.push((rule, self::route(route, strip, &servers)?));
    }
    let site = Site::new(routes).map_err(|tie| tie.to_string())?;
    let (settings, next) = (Arc::new(settings), Arc::new(site));
    let live = before.map_or_else(|| Arc::new(Published::from(next.clone())), |web| web.live.clone());
    let web = Web { live: live.clone(), next };
    let made = move || Box::new(Connections::new(settings.clone(), live.clone())) as Box<dyn OnAccept>;
    Ok((Box::new(made), web))
}

fn route(route: &HttpRoute, strip: usize, servers: &BTreeMap<&str, Arc<Upstream>>) -> Result<Route, String> {
    let status = |status: u16| StatusCode::from_u16(status).map_err(|error| error.to_string());
    let action = match &route.action {
        HttpAction::Upstream(name) => {
            Action::Proxy(servers.get(name.as_str()).cloned().ok_or_else(|| format!("there is no upstream `{name}`"))?)
        }
        HttpAction::Respond { status: code, body } => {
            Action::Respond { status: status(*code)?, body: Bytes::from(body.clone()) }
        }
        HttpAction::Redirect { status: code, to } => Action::Redirect { status: status(*code)?, to: to.clone() },
        HttpAction::Static { root, index } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(root, flags, Mode::empty());
            let root = opened.map_err(|error| format!("cannot open {}: {error}", root.display()))?;
            Action::Files { root: Arc::new(root), index: index.clone() }
        }
        HttpAction::Demo => Action::Demo,
    };
    Ok(Route {
        name: Arc::from(route.name.as_str()),
        strip,
        timeout: route.timeout,
        retries: route.retries,
        max_body: route.max_body,
        action,
    })
}
