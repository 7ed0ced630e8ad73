//! Judges listeners that speak HTTP: what each route says, and that no request could fit two of them equally well.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use regex::Regex;

use super::guards;
use super::listener::{copied, count, small};
use super::quic;
use super::quic::{Around, is, listener_tls};
use super::upstream::Kind;
use crate::gateway::config::{Http, HttpAction, HttpPath, HttpRoute, HttpSettings, QuicService};
use crate::gateway::raw::RawListener;
use crate::gateway::raw::http::{RawHttp, RawHttpRoute};
use crate::gateway::raw::quic::{RawRoute, RouteService};
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::Text;
use crate::gateway::raw::upstream::is_name;
use crate::gateway::report::{Mistakes, Span};
use crate::transports::http::codec_forward::Network;
use crate::transports::http::state_routes::{HostRule, PathRule, Rule, Table, is_plain};
use crate::transports::http::{LOG_FIELDS, LogFields};

const ACTIONS: &str =
    "write `upstream = \"app\"`, `redirect = \"https://…\"`, or `service = \"static\"`, `\"respond\"` or `\"demo\"`";

/// A listener that speaks HTTP.
pub(super) fn http(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Http> {
    let tls = if matches!(raw.certificate, Field::Absent) {
        if let Some(tls) = &raw.tls {
            let hint = "add `certificate = \"local\"` and a `[[certificate]]` with that name, or take the table out";
            mistakes.add(tls.span, "`[listener.tls]` without a `certificate`", hint);
        }
        None
    } else {
        let tls = listener_tls(&raw.certificate, raw.tls.as_ref(), around, mistakes);
        if let Some(At { span, .. }) = is(&raw.certificate).filter(|list| list.value.is_empty()) {
            mistakes.add(*span, "`certificate` is empty", "write `certificate = \"local\"`, or take it out: no TLS");
        }
        Some(tls)
    };
    if raw.routes.is_empty() {
        let hint = "add a `[[listener.route]]` with `path = \"/\"` and `upstream = \"app\"`";
        mistakes.add(raw.header, "a `[[listener]]` with protocol `http` lacks a `[[listener.route]]`", hint);
        return None;
    }
    let routes: Vec<_> = raw.routes.iter().enumerate().map(|(n, raw)| route(raw, n, around, mistakes)).collect();
    let mut settings = settings(raw.http.as_ref().map(|at| &at.value), mistakes);
    if let Some(At { value: RawHttp { http3: Field::Is(At { value: true, span }), .. }, .. }) = raw.http {
        if tls.is_none() {
            let hint = "add `certificate = \"local\"` and a `[[certificate]]` with that name, or take it out";
            mistakes.add(span, "`http3` without a `certificate`: HTTP/3 is never without TLS", hint);
        } else if !cfg!(feature = "quic") {
            mistakes.add(span, "`http3` needs a build with the feature `quic`", "take it out");
        }
    }
    settings.http3 &= tls.is_some() && cfg!(feature = "quic");
    // Only routes without mistakes can be compared.
    let good: Vec<(Span, &HttpRoute)> =
        raw.routes.iter().zip(&routes).filter_map(|(raw, route)| Some((raw.header, route.as_ref()?))).collect();
    let rules: Vec<Rule> = good.iter().filter_map(|(_, route)| rule(route).ok()).collect();
    if rules.len() == good.len()
        && let Err(tie) = Table::new(rules)
        && let (Some((first, _)), Some((second, _))) = (good.get(tie.0), good.get(tie.1))
    {
        let hint = "give one of them a longer path, a host, a method or a header, or take it out";
        let message = "this route and another one fit the same requests equally well";
        mistakes.add_pair(*second, message, hint, *first, "the other one");
    }
    let routes = routes.into_iter().collect::<Option<Vec<_>>>()?;
    let session = |route: &HttpRoute| matches!(route.action, HttpAction::Session { .. } | HttpAction::Moq { .. });
    if let Some((raw, _)) = raw.routes.iter().zip(&routes).find(|(_, route)| session(route) && !settings.http3) {
        let hint = "give the listener a `certificate`, and leave `http3` on";
        mistakes.add(raw.header, "WebTransport without HTTP/3", hint);
    }
    Some(Http { tls, routes, settings })
}

/// A checked route as the router takes it.
pub(crate) fn rule(route: &HttpRoute) -> Result<Rule, regex::Error> {
    let host = match &route.host {
        None => HostRule::Any,
        Some(host) => match host.strip_prefix("*.") {
            Some(below) => HostRule::Below(below.to_owned()),
            None => HostRule::Exact(host.clone()),
        },
    };
    let path = match &route.path {
        HttpPath::Prefix(prefix) => PathRule::Prefix(prefix.clone()),
        HttpPath::Exact(exact) => PathRule::Exact(exact.clone()),
        HttpPath::Pattern(pattern) => PathRule::Pattern(Regex::new(pattern)?),
    };
    Ok(Rule { host, path, methods: route.methods.clone(), fields: route.headers.clone() })
}

fn route(raw: &RawRoute, number: usize, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<HttpRoute> {
    let here = &raw.http;
    let session = copied(&here.webtransport, false);
    let foreign = [("alpn", &raw.alpn), ("sni", &raw.sni), ("datagrams", &raw.datagrams)];
    for (key, span) in foreign.map(|(key, field)| (key, is(field).map(|at| at.span))) {
        if let Some(span) = span.filter(|_| key != "datagrams" || !session) {
            mistakes.add(span, format!("`{key}` does not belong to a route of HTTP"), "take it out");
        }
    }
    let path = path(here, mistakes);
    let host = host(&here.host, mistakes);
    let methods = methods(here, mistakes);
    let headers = headers(here, mistakes);
    let action = action(raw, around, mistakes)?;
    let path = path?;
    if let Field::Is(At { value: true, span }) = here.strip_prefix
        && !matches!(path, HttpPath::Prefix(_))
    {
        mistakes.add(span, "`strip_prefix` needs a `path`", "write `path = \"/api\"`, or take it out");
    }
    let strips = copied(&here.strip_prefix, false);
    let rewrite = guards::rewrite(&here.guards, &path, strips, mistakes);
    Some(HttpRoute {
        name: is(&here.name).map_or_else(|| (number + 1).to_string(), |name| name.value.text.clone()),
        host: host?,
        path,
        methods: methods?,
        headers: headers?,
        action,
        strip_prefix: strips,
        timeout: copied(&here.timeout, Duration::from_secs(60)),
        retries: small(&here.retries, 2),
        max_body: copied(&here.max_body, 1 << 30),
        rewrite,
        guards: guards::guards(&here.guards, around.folder, mistakes),
        edits: guards::edits(&here.guards, mistakes),
    })
}

fn path(here: &RawHttpRoute, mistakes: &mut Mistakes) -> Option<HttpPath> {
    let given: Vec<&At<Text>> = [&here.path, &here.path_exact, &here.path_regex].into_iter().filter_map(is).collect();
    if let [first, second, ..] = given.as_slice() {
        let hint = "a route has one of `path`, `path_exact` and `path_regex`";
        mistakes.add_pair(second.span, "this route says twice what its path is", hint, first.span, "here already");
        return None;
    }
    let plain = |at: &At<Text>, mistakes: &mut Mistakes| {
        let good =
            is_plain(&at.value.text) && at.value.text.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
        if !good {
            let hint = "write a path as clients send it: from the first `/`, without `..`, `?` and blanks";
            mistakes.add(at.span, format!("{} is not a path", at.value.shown()), hint);
        }
        good.then(|| at.value.text.clone())
    };
    match (&here.path, &here.path_exact, &here.path_regex) {
        (Field::Is(at), _, _) => plain(at, mistakes).map(HttpPath::Prefix),
        (_, Field::Is(at), _) => plain(at, mistakes).map(HttpPath::Exact),
        (_, _, Field::Is(at)) => {
            if let Err(error) = Regex::new(&at.value.text) {
                let large = matches!(error, regex::Error::CompiledTooBig(_));
                let why = if large { "it is too large" } else { "see https://docs.rs/regex for what can be written" };
                mistakes.add(at.span, format!("{} is not a regular expression", at.value.shown()), why);
                return None;
            }
            Some(HttpPath::Pattern(at.value.text.clone()))
        }
        (Field::Bad, _, _) | (_, Field::Bad, _) | (_, _, Field::Bad) => None,
        _ => Some(HttpPath::Prefix("/".to_owned())),
    }
}

/// `None` if it has mistakes.
fn host(raw: &Field<Text>, mistakes: &mut Mistakes) -> Option<Option<String>> {
    let at = match raw {
        Field::Is(at) => at,
        Field::Absent => return Some(None),
        Field::Bad => return None,
    };
    let text = at.value.text.to_ascii_lowercase();
    let name = text.strip_prefix("*.").unwrap_or(&text);
    let address = name.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')).unwrap_or(name);
    if !is_name(name) && address.parse::<std::net::IpAddr>().is_err() {
        let hint = "write a host name without a port, such as \"app.example\", or \"*.example\" for all below it";
        mistakes.add(at.span, format!("{} is not a host", at.value.shown()), hint);
        return None;
    }
    Some(Some(text.strip_suffix('.').unwrap_or(&text).to_owned()))
}

fn methods(here: &RawHttpRoute, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    let Some(list) = is(&here.method) else { return matches!(here.method, Field::Absent).then(Vec::new) };
    let mut methods = Vec::new();
    for at in list.value.iter().filter_map(is) {
        if Method::from_bytes(at.value.text.as_bytes()).is_err()
            || at.value.text.bytes().any(|b| b.is_ascii_lowercase())
        {
            let hint = "methods are written in capitals, such as \"GET\"";
            mistakes.add(at.span, format!("{} is not a method", at.value.shown()), hint);
            return None;
        }
        methods.push(at.value.text.clone());
    }
    (methods.len() == list.value.len()).then_some(methods)
}

fn headers(here: &RawHttpRoute, mistakes: &mut Mistakes) -> Option<Vec<(String, Option<String>)>> {
    let Some(list) = is(&here.header) else { return matches!(here.header, Field::Absent).then(Vec::new) };
    let mut headers = Vec::new();
    for at in list.value.iter().filter_map(is) {
        let (name, value) = match at.value.text.split_once(':') {
            Some((name, value)) => (name, Some(value.trim())),
            None => (at.value.text.as_str(), None),
        };
        let good = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .filter(|_| value.is_none_or(|v| HeaderValue::from_str(v).is_ok()));
        let Some(name) = good else {
            let hint = "write a name, or a name and a value, such as \"x-version: 2\"";
            mistakes.add(at.span, format!("{} is not a header", at.value.shown()), hint);
            return None;
        };
        headers.push((name.as_str().to_owned(), value.map(str::to_owned)));
    }
    (headers.len() == list.value.len()).then_some(headers)
}

fn action(raw: &RawRoute, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<HttpAction> {
    let here = &raw.http;
    if copied(&here.webtransport, false) {
        return session(raw, around, mistakes);
    }
    let given: Vec<(&str, Span)> = [
        ("upstream", is(&raw.upstream).map(|at| at.span)),
        ("redirect", is(&here.redirect).map(|at| at.span)),
        ("service", is(&raw.service).map(|at| at.span)),
    ]
    .into_iter()
    .filter_map(|(key, span)| Some((key, span?)))
    .collect();
    if let [(first, at), (second, span), ..] = given.as_slice() {
        let message = format!("a route has `{first}` or `{second}`, not both");
        mistakes.add_pair(*span, message, ACTIONS, *at, "the other one");
        return None;
    }
    let mut fit: BTreeMap<&str, bool> = BTreeMap::new();
    let action = match (&raw.upstream, &here.redirect, &raw.service) {
        (Field::Is(upstream), _, _) => {
            around.upstreams.need(upstream, mistakes);
            around.upstreams.no_alpn(upstream, mistakes);
            if matches!(around.upstreams.kind(&upstream.value.text), Some(Kind::Udp | Kind::Quic)) {
                let hint = "name an upstream whose servers take streams: addresses, names or Unix sockets";
                mistakes.add(upstream.span, "HTTP cannot be spoken to servers over UDP or QUIC", hint);
                return None;
            }
            fit.extend(["strip_prefix", "rewrite", "timeout", "retries", "max_body"].map(|key| (key, true)));
            fit.extend(["request_set", "request_add", "request_remove"].map(|key| (key, true)));
            HttpAction::Upstream(upstream.value.text.clone())
        }
        (_, Field::Is(to), _) => {
            fit.insert("status", true);
            let status = copied(&here.status, 308);
            if let Field::Is(At { span, .. }) = here.status
                && ![301, 302, 303, 307, 308].contains(&status)
            {
                mistakes.add(span, "`status` is not one of a redirect", "write 301, 302, 303, 307 or 308");
            }
            if HeaderValue::from_str(&to.value.text).is_err() || to.value.text.is_empty() {
                mistakes.add(to.span, format!("{} is not a place", to.value.shown()), "write a URL or a path");
                return None;
            }
            HttpAction::Redirect { status: u16::try_from(status).unwrap_or(308), to: to.value.text.clone() }
        }
        (_, _, Field::Is(At { value: RouteService::Respond, .. })) => {
            fit.extend([("status", true), ("body", true)]);
            let body = is(&here.body).map(|body| body.value.text.clone()).unwrap_or_default();
            HttpAction::Respond { status: u16::try_from(copied(&here.status, 200)).unwrap_or(200), body }
        }
        (_, _, Field::Is(At { value: RouteService::Static, .. })) => {
            fit.extend([("root", true), ("index", true), ("strip_prefix", true), ("rewrite", true)]);
            files(raw, around.folder, mistakes)?
        }
        (_, _, Field::Is(At { value: RouteService::Demo, .. })) => HttpAction::Demo,
        (_, _, Field::Is(At { value: RouteService::Fingerprint, span })) => {
            let Some(certificate) = around.certificates.first() else {
                mistakes.add(*span, "there is no certificate whose hash could be shown", "add a `[[certificate]]`");
                return None;
            };
            HttpAction::Fingerprint { certificate }
        }
        (_, _, Field::Is(At { value: RouteService::Moq, span })) => {
            let hint = "add `webtransport = true`; over plain QUIC there is protocol `moq`";
            mistakes.add(*span, "`moq` is a service of sessions of WebTransport", hint);
            return None;
        }
        (_, _, Field::Is(At { value: RouteService::Echo, span })) => {
            mistakes.add(
                *span,
                "`echo` is a service of protocol `quic`, and of routes with `webtransport = true`",
                ACTIONS,
            );
            return None;
        }
        (Field::Absent, Field::Absent, Field::Absent) => {
            mistakes.add(raw.header, "a `[[listener.route]]` says nothing of what answers", ACTIONS);
            return None;
        }
        _ => return None,
    };
    let guards = ["rate", "basic", "jwt", "response"];
    misfits(here, |key| guards.iter().any(|word| key.starts_with(word)) || fit.contains_key(key), mistakes);
    Some(action)
}

/// Keys that do not belong to what answers.
fn misfits(here: &RawHttpRoute, fits: impl Fn(&str) -> bool, mistakes: &mut Mistakes) {
    let always = ["name", "host", "path", "path_exact", "path_regex", "method", "header", "redirect"];
    for (key, span) in here.given() {
        if !always.contains(&key) && !fits(key) {
            mistakes.add(span, format!("`{key}` does not belong to what answers here"), "take it out");
        }
    }
}

/// A route of sessions of WebTransport.
fn session(raw: &RawRoute, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<HttpAction> {
    const INSIDE: &str = "write `service = \"echo\"`, `service = \"moq\"` or `upstream = \"app\"`";
    let here = &raw.http;
    if let Field::Is(At {
        value: RouteService::Static | RouteService::Respond | RouteService::Demo | RouteService::Fingerprint,
        span,
    }) = raw.service
    {
        mistakes.add(span, "this service answers requests, not sessions of WebTransport", INSIDE);
        return None;
    }
    if let Field::Is(redirect) = &here.redirect {
        mistakes.add(redirect.span, "sessions of WebTransport cannot be redirected", INSIDE);
        return None;
    }
    if let Field::Is(At { value: RouteService::Moq, span }) = raw.service {
        misfits(here, |key| ["webtransport", "origins"].contains(&key), mistakes);
        if !cfg!(feature = "moq") {
            mistakes.add(span, "service `moq` needs a build with the feature `moq`", "take the route out");
        }
        for other in [&raw.upstream, &raw.datagrams].into_iter().filter_map(is) {
            let message = "a relay of Media over QUIC has no upstream of its route";
            mistakes.add_pair(other.span, message, "take it out", span, "the service is chosen here");
        }
        return Some(HttpAction::Moq { origins: origins(here, mistakes) });
    }
    misfits(here, |key| ["webtransport", "protocols", "origins"].contains(&key), mistakes);
    let (service, datagrams) = quic::ways(raw, around, mistakes)?;
    let upstream = if let QuicService::Upstream(name) = &service { Some(name.clone()) } else { None };
    let echo = service == QuicService::Echo;
    Some(HttpAction::Session {
        protocols: protocols(here, mistakes),
        origins: origins(here, mistakes),
        echo,
        upstream,
        datagrams,
    })
}

/// Pages that may open sessions: origins as browsers write them (RFC 6454, section 6.2).
fn origins(here: &RawHttpRoute, mistakes: &mut Mistakes) -> Vec<String> {
    let mut origins = Vec::new();
    for at in is(&here.origins).into_iter().flat_map(|list| list.value.iter().filter_map(is)) {
        let text = at.value.text.to_ascii_lowercase();
        let host = text.split_once("://").map_or("", |(_, host)| host);
        if host.is_empty() || host.contains('/') || HeaderValue::from_str(&text).is_err() {
            let hint = "write scheme, host and port if it is not the usual one, such as \"https://app.example\"";
            mistakes.add(at.span, format!("{} is not an origin", at.value.shown()), hint);
        }
        origins.push(text);
    }
    origins
}

/// What is spoken in sessions of WebTransport: strings of RFC 8941.
fn protocols(here: &RawHttpRoute, mistakes: &mut Mistakes) -> Vec<String> {
    let mut protocols = Vec::new();
    for at in is(&here.protocols).into_iter().flat_map(|list| list.value.iter().filter_map(is)) {
        if at.value.text.is_empty() || !at.value.text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            let hint = "write it in printable ASCII, such as \"moq-00\"";
            mistakes.add(at.span, format!("{} is not a protocol", at.value.shown()), hint);
        }
        protocols.push(at.value.text.clone());
    }
    protocols
}

fn files(raw: &RawRoute, folder: &Path, mistakes: &mut Mistakes) -> Option<HttpAction> {
    let root = match &raw.http.root {
        Field::Is(root) => root,
        Field::Absent => {
            let hint = "add `root = \"public\"`, a folder; paths count from the folder of this file";
            mistakes.add(raw.header, "a route with service `static` lacks `root`", hint);
            return None;
        }
        Field::Bad => return None,
    };
    let path = folder.join(&root.value.text);
    if !path.is_dir() {
        let hint = "name a folder; paths count from the folder of this file";
        mistakes.add(root.span, format!("{} is not a folder", root.value.shown()), hint);
        return None;
    }
    let index = is(&raw.http.index).map_or_else(|| "index.html".to_owned(), |index| index.value.text.clone());
    Some(HttpAction::Static { root: path, index })
}

fn settings(raw: Option<&RawHttp>, mistakes: &mut Mistakes) -> HttpSettings {
    let default = HttpSettings::default();
    let Some(raw) = raw else { return default };
    let mut trusted_proxies = Vec::new();
    for at in is(&raw.trusted_proxies).into_iter().flat_map(|list| list.value.iter().filter_map(is)) {
        if Network::parse(&at.value.text).is_none() {
            let hint = "write an address, or the first one of a network and its bits, such as \"10.0.0.0/8\"";
            mistakes.add(at.span, format!("{} is not a network", at.value.shown()), hint);
        }
        trusted_proxies.push(at.value.text.clone());
    }
    let mut access_fields = Vec::new();
    for at in is(&raw.access_fields).into_iter().flat_map(|list| list.value.iter().filter_map(is)) {
        if LogFields::of([&*at.value.text]).is_none() {
            let hint = format!("write some of {}", LOG_FIELDS.join(", "));
            mistakes.add(at.span, format!("{} is no field of the access log", at.value.shown()), hint);
        }
        access_fields.push(at.value.text.clone());
    }
    HttpSettings {
        head_bytes: count(&raw.head_bytes, default.head_bytes),
        head_fields: count(&raw.head_fields, default.head_fields),
        head_timeout: copied(&raw.head_timeout, default.head_timeout),
        body_timeout: copied(&raw.body_timeout, default.body_timeout),
        send_timeout: copied(&raw.send_timeout, default.send_timeout),
        requests: copied(&raw.requests, default.requests),
        streams: small(&raw.streams, default.streams),
        trusted_proxies,
        access_log: copied(&raw.access_log, default.access_log),
        access_fields,
        http3: copied(&raw.http3, default.http3),
    }
}
