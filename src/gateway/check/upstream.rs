//! Judges upstreams, and whether those that listeners name are there.
use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::listener::{copied, count, small};
use super::quic::{self, Around, is};
use crate::gateway::config::{Check, Health, Host, HttpVersion, Server, Upstream, UpstreamHttp, UpstreamLimits};
use crate::gateway::raw::http::RawUpstreamHttp;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::Text;
use crate::gateway::raw::upstream::{RawHealth, RawUpstream, RawUpstreamLimits, RawUpstreamTls};
use crate::gateway::raw::words::nearest_or_list;
use crate::gateway::raw::{RawListener, RawProtocol};
use crate::gateway::report::{Mistakes, Span};

/// What the servers of an upstream take. Those of one upstream take the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Streams of bytes, over TCP or a Unix socket.
    Stream,
    /// Streams and datagrams over QUIC.
    Quic,
    /// Datagrams.
    Udp,
    /// Streams of bytes with TLS around them.
    Tls,
}

impl Kind {
    const fn of(server: &Server) -> Self {
        match server {
            Server::Tcp(_) | Server::Name { .. } | Server::Unix(_) => Self::Stream,
            Server::Quic { .. } => Self::Quic,
            Server::Udp { .. } => Self::Udp,
        }
    }
}

/// The names of all upstreams, also of those with mistakes.
pub(super) struct Names {
    names: Vec<Text>,
    /// Of those whose servers can be read.
    kinds: BTreeMap<String, Kind>,
    /// What those over TLS offer to speak, if that is said.
    alpn: BTreeMap<String, Span>,
    /// Their servers that are addresses.
    addresses: BTreeMap<String, Vec<(SocketAddr, Span)>>,
    /// Some upstream has no name that can be read: it may be the one that is meant.
    unknown: bool,
}

impl Names {
    pub(super) fn of(raw: &[RawUpstream]) -> Self {
        let names = raw.iter().filter_map(|upstream| match &upstream.name {
            Field::Is(name) => Some(name.value.clone()),
            Field::Absent | Field::Bad => None,
        });
        let names: Vec<_> = names.collect();
        let kinds = raw.iter().filter_map(|upstream| match (&upstream.name, &upstream.servers) {
            (Field::Is(name), Field::Is(servers)) => {
                let kind = Kind::of(&servers.value.first()?.value);
                let tls = kind == Kind::Stream && upstream.tls.is_some();
                Some((name.value.text.clone(), if tls { Kind::Tls } else { kind }))
            }
            _ => None,
        });
        let addresses = raw.iter().filter_map(|upstream| match (&upstream.name, &upstream.servers) {
            (Field::Is(name), Field::Is(servers)) => {
                let addresses = servers.value.iter().filter_map(|server| match &server.value {
                    Server::Tcp(address) => Some((*address, server.span)),
                    Server::Udp { host: Host::Address(ip), port } => Some((SocketAddr::new(*ip, *port), server.span)),
                    Server::Name { .. } | Server::Unix(_) | Server::Quic { .. } | Server::Udp { .. } => None,
                });
                Some((name.value.text.clone(), addresses.collect()))
            }
            _ => None,
        });
        let addresses = addresses.collect();
        let alpn = raw.iter().filter_map(|upstream| match (&upstream.name, &upstream.tls) {
            (Field::Is(name), Some(At { value: RawUpstreamTls { alpn: Field::Is(alpn), .. }, .. })) => {
                Some((name.value.text.clone(), alpn.span))
            }
            _ => None,
        });
        let alpn = alpn.collect();
        Self { unknown: names.len() < raw.len(), kinds: kinds.collect(), alpn, addresses, names }
    }

    /// What the servers of an upstream take, if that can be told.
    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        self.kinds.get(name).copied()
    }

    /// Notes a server that is the very listener that leads to it.
    pub(super) fn no_circle(&self, name: &str, listen: &Field<SocketAddr>, mistakes: &mut Mistakes) {
        let Field::Is(listen) = listen else { return };
        let mut servers = self.addresses.get(name).into_iter().flatten();
        if let Some((_, span)) = servers.find(|(address, _)| *address == listen.value) {
            let hint = "name the server behind it: each connection would open the next one";
            mistakes.add_pair(*span, "this server is the listener that leads to it", hint, listen.span, "listens here");
        }
    }

    /// Notes a name that no upstream has.
    pub(super) fn need(&self, name: &At<Text>, mistakes: &mut Mistakes) {
        if self.unknown || self.names.iter().any(|known| known.text == name.value.text) {
            return;
        }
        let known = self.shown();
        let hint = if known.is_empty() {
            "add an `[[upstream]]` with this name".to_owned()
        } else {
            nearest_or_list(&name.value, &known)
        };
        mistakes.add(name.span, format!("{} is not the name of an `[[upstream]]`", name.value.shown()), hint);
    }

    /// Notes an upstream for HTTP that says itself what is spoken.
    pub(super) fn no_alpn(&self, name: &At<Text>, mistakes: &mut Mistakes) {
        let text = &name.value.text;
        if let (Some(Kind::Tls), Some(alpn)) = (self.kind(text), self.alpn.get(text)) {
            let hint = "take it out: `version` in `[upstream.http]` says what is spoken";
            mistakes.add_pair(*alpn, "`alpn` is for QUIC and relays", hint, name.span, "HTTP is spoken to it here");
        }
    }

    /// What to write where a name is missing.
    pub(super) fn example(&self) -> String {
        match self.shown().first() {
            Some(name) => format!("add `upstream = \"{name}\"`"),
            None => "add `upstream = \"app\"` and an `[[upstream]]` with that name".to_owned(),
        }
    }

    /// Those that did not come from a variable or a file, which no message may quote.
    fn shown(&self) -> Vec<&str> {
        self.names.iter().filter(|name| !name.hidden).map(|name| name.text.as_str()).collect()
    }
}

/// Notes upstreams that lead through what is no tunnel, and servers that no tunnel leads to.
pub(super) fn ways(upstreams: &[RawUpstream], listeners: &[RawListener], mistakes: &mut Mistakes) {
    let wireguard = |listener: &&RawListener| {
        matches!(&listener.protocol, Field::Is(At { value: RawProtocol::Wireguard, .. }) | Field::Bad)
    };
    let name = |listener| match listener {
        &RawListener { name: Field::Is(ref name), .. } => Some(name.value.as_str()),
        _ => None,
    };
    let tunnels: Vec<Option<&str>> = listeners.iter().filter(wireguard).map(name).collect();
    for upstream in upstreams {
        let Field::Is(via) = &upstream.via else { continue };
        // One whose name cannot be read may be the one that is meant.
        if !tunnels.iter().any(|name| name.is_none_or(|name| name == via.value.text)) {
            let known: Vec<&str> = tunnels.iter().flatten().copied().collect();
            let hint = if known.is_empty() {
                "add a `[[listener]]` with this name and `protocol = \"wireguard\"`".to_owned()
            } else {
                nearest_or_list(&via.value, &known)
            };
            let message = format!("{} is not the name of a WireGuard listener", via.value.shown());
            mistakes.add(via.span, message, hint);
        }
        let Field::Is(servers) = &upstream.servers else { continue };
        let tcp = |server: &Server| matches!(server, Server::Tcp(_) | Server::Name { .. });
        if let Some(other) = servers.value.iter().find(|server| !tcp(&server.value)) {
            let hint = "write a server over TCP, such as \"10.98.0.2:9000\", or take `via` out";
            mistakes.add_pair(other.span, "no tunnel leads to this server", hint, via.span, "the way is chosen here");
        }
    }
}

/// All upstreams; those with mistakes are left out.
pub(super) fn all(raw: Vec<RawUpstream>, around: &Around<'_>, mistakes: &mut Mistakes) -> Vec<Upstream> {
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    let mut upstreams = Vec::with_capacity(raw.len());
    for raw in raw {
        if let Field::Is(name) = &raw.name {
            if let Some(first) = names.get(&name.value.text) {
                let hint = "give each upstream its own name";
                mistakes.add_pair(name.span, "this name is taken", hint, *first, "taken here");
            } else {
                names.insert(name.value.text.clone(), name.span);
            }
        }
        upstreams.extend(upstream(raw, around, mistakes));
    }
    upstreams
}

fn upstream(raw: RawUpstream, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Upstream> {
    let kind = is(&raw.servers).and_then(|servers| servers.value.first()).map(|server| Kind::of(&server.value));
    let tls = raw.tls.as_ref().map(|tls| {
        let over_quic = kind != Some(Kind::Stream);
        quic::upstream_tls(tls, over_quic, around.certificates, around.folder, mistakes)
    });
    let servers = raw.servers.value()?;
    let kind = Kind::of(&servers.first()?.value);
    if let Some(other) = servers.iter().find(|server| Kind::of(&server.value) != kind) {
        let hint = "write an upstream for each: all servers over TCP and Unix sockets, or all quic://, or all udp://";
        mistakes.add(other.span, "this server takes something else than the first one", hint);
        return None;
    }
    match (kind, &raw.tls, servers.first()) {
        (Kind::Quic, None, Some(server)) => {
            let hint = "add an `[upstream.tls]` with `alpn = \"app\"`";
            mistakes.add(server.span, "servers over QUIC need an `[upstream.tls]`", hint);
        }
        (Kind::Udp, Some(tls), _) => {
            let hint = "take it out, or write the servers as \"quic://app.example:4433\"";
            mistakes.add(tls.span, "`[upstream.tls]` is for servers over QUIC and TCP", hint);
        }
        (Kind::Stream, Some(tls), _) => check_tls(tls, &servers, mistakes),
        _ => {}
    }
    if let (Kind::Stream, None, Some(At { value: RawUpstreamHttp { version: Field::Is(version), .. }, .. })) =
        (kind, &raw.tls, &raw.http)
        && version.value == HttpVersion::Agreed
    {
        let hint = "add an `[upstream.tls]`, or write `version = \"1.1\"` or `\"2\"`";
        mistakes.add(version.span, "without TLS nobody can agree on a version of HTTP", hint);
    }
    if let (Kind::Quic | Kind::Udp, Some(Field::Is(At { value: Check::Tcp | Check::Http, span }))) =
        (kind, raw.health.as_ref().map(|health| &health.check))
    {
        mistakes.add(*span, "servers over QUIC and UDP cannot be checked over TCP", "write `check = \"off\"`");
    }
    if kind == Kind::Quic && !cfg!(feature = "quic") {
        mistakes.add(raw.header, "servers over QUIC need a build with the feature `quic`", "take the upstream out");
    }
    let servers = servers.into_iter().map(|server| server.value).collect();
    let via = raw.via.value().map(Text::into_plain);
    let default = Upstream::new(raw.name.value()?.into_plain(), servers);
    Some(Upstream {
        tls: match tls {
            Some(tls) => Some(tls?),
            None => None,
        },
        balance: raw.balance.value().unwrap_or(default.balance),
        resolve: raw.resolve.value().unwrap_or(default.resolve),
        limits: raw.limits.map(|raw| limits(&raw)).unwrap_or_default(),
        health: raw.health.map(|raw| health(&raw, mistakes)).unwrap_or_default(),
        http: raw.http.map(|raw| http(&raw.value)).unwrap_or_default(),
        via,
        ..default
    })
}

/// What only servers over TCP and Unix sockets need.
fn check_tls(tls: &At<RawUpstreamTls>, servers: &[At<Server>], mistakes: &mut Mistakes) {
    if !cfg!(feature = "http") {
        mistakes.add(tls.span, "TLS to servers needs a build with the feature `http`", "take the table out");
    }
    let unix = servers.iter().find(|server| matches!(server.value, Server::Unix(_)));
    if let (Some(unix), Field::Absent) = (unix, &tls.value.name) {
        let hint = "add `name = \"app.example\"` to `[upstream.tls]`";
        mistakes.add(unix.span, "nothing says whom the certificate of this server must name", hint);
    }
}

fn limits(raw: &RawUpstreamLimits) -> UpstreamLimits {
    let default = UpstreamLimits::default();
    UpstreamLimits {
        connections: count(&raw.connections, default.connections),
        connect_timeout: copied(&raw.connect_timeout, default.connect_timeout),
    }
}

fn http(raw: &RawUpstreamHttp) -> UpstreamHttp {
    let default = UpstreamHttp::default();
    UpstreamHttp {
        version: copied(&raw.version, default.version),
        idle: copied(&raw.idle, default.idle),
        idle_connections: count(&raw.idle_connections, default.idle_connections),
        pending: count(&raw.pending, default.pending),
    }
}

fn health(raw: &RawHealth, mistakes: &mut Mistakes) -> Health {
    let default = Health::default();
    let mut path = default.path;
    if let Field::Is(At { value, span }) = &raw.path {
        if !value.text.starts_with('/') || !value.text.bytes().all(|b| b.is_ascii_graphic()) {
            mistakes.add(*span, format!("{} is not a path", value.shown()), "write a path such as \"/health\"");
        }
        if copied(&raw.check, default.check) != Check::Http {
            mistakes.add(*span, "`path` is for `check = \"http\"`", "take it out, or write `check = \"http\"`");
        }
        path.clone_from(&value.text);
    }
    Health {
        eject_after: small(&raw.eject_after, default.eject_after),
        eject_for: copied(&raw.eject_for, default.eject_for),
        check: copied(&raw.check, default.check),
        path,
        interval: copied(&raw.interval, default.interval),
        timeout: copied(&raw.timeout, default.timeout),
        healthy_after: small(&raw.healthy_after, default.healthy_after),
        unhealthy_after: small(&raw.unhealthy_after, default.unhealthy_after),
        slow_start: is(&raw.slow_start).map(|at| at.value),
    }
}
