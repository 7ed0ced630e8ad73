//! Judges what a relay says of TLS: whom its routes ask for, and who it is itself.
use super::quic::{Around, is, listener_tls};
use crate::gateway::config::{HelloRoute, ListenerTls};
use crate::gateway::raw::RawListener;
use crate::gateway::raw::quic::RawRoute;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::upstream::is_name;
use crate::gateway::report::Mistakes;

/// The routes of a relay; those with mistakes are left out.
pub(super) fn routes(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Vec<HelloRoute> {
    if let Some(first) = raw.routes.first()
        && !cfg!(feature = "http")
    {
        mistakes.add(first.header, "routes by TLS need a build with the feature `http`", "take the routes out");
        return Vec::new();
    }
    let mut routes: Vec<(HelloRoute, crate::gateway::report::Span)> = Vec::new();
    for raw in &raw.routes {
        let Some(route) = route(raw, around, mistakes) else { continue };
        let same = |other: &&(HelloRoute, _)| other.0.sni == route.sni && other.0.alpn == route.alpn;
        if let Some((_, first)) = routes.iter().find(same) {
            let message = "this route and another one fit the same connections equally well";
            mistakes.add_pair(raw.header, message, "give one of them another `sni` or `alpn`", *first, "the other one");
        }
        routes.push((route, raw.header));
    }
    routes.into_iter().map(|(route, _)| route).collect()
}

fn route(raw: &RawRoute, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<HelloRoute> {
    let foreign =
        [("service", is(&raw.service).map(|at| at.span)), ("datagrams", is(&raw.datagrams).map(|at| at.span))];
    let foreign = foreign.into_iter().filter_map(|(key, span)| Some((key, span?))).chain(raw.http.given());
    for (key, span) in foreign {
        mistakes.add(span, format!("`{key}` does not belong to a route of protocol `relay`"), "take it out");
    }
    let upstream = match &raw.upstream {
        Field::Is(upstream) => upstream,
        Field::Absent => {
            let hint = around.upstreams.example();
            mistakes.add(raw.header, "a `[[listener.route]]` of protocol `relay` lacks `upstream`", hint);
            return None;
        }
        Field::Bad => return None,
    };
    around.upstreams.need(upstream, mistakes);
    if around.upstreams.kind(&upstream.value.text) == Some(super::upstream::Kind::Udp) {
        let hint = "name an upstream whose servers take streams";
        mistakes.add(upstream.span, "a relay cannot send its streams to servers over UDP", hint);
    }
    let sni = is(&raw.sni).map(|At { value, span }| {
        let text = value.text.to_ascii_lowercase();
        if !is_name(text.strip_prefix("*.").unwrap_or(&text)) {
            let hint = "write a host name, such as \"app.example\", or \"*.example\" for all below it";
            mistakes.add(*span, format!("{} is not a host", value.shown()), hint);
        }
        text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
    });
    let alpn = is(&raw.alpn).map(|At { value, span }| {
        if !(1..=255).contains(&value.text.len()) {
            mistakes.add(*span, "`alpn` has 1 to 255 bytes", "write the name of a protocol, such as \"h2\"");
        }
        value.text.clone()
    });
    if sni.is_none() && alpn.is_none() {
        let hint = "add `sni = \"app.example\"`; what no route fits goes to the `upstream` of the listener";
        mistakes.add(raw.header, "this route asks for nothing", hint);
    }
    Some(HelloRoute { sni, alpn, upstream: upstream.value.text.clone() })
}

/// Who the listener is, if TLS ends there.
pub(super) fn tls(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<ListenerTls> {
    if matches!(raw.certificate, Field::Absent) {
        if let Some(tls) = &raw.tls {
            let hint = "add `certificate = \"local\"` and a `[[certificate]]` with that name, or take the table out";
            mistakes.add(tls.span, "`[listener.tls]` without a `certificate`", hint);
        }
        return None;
    }
    if let Some(At { span, .. }) = is(&raw.certificate).filter(|list| list.value.is_empty() || !cfg!(feature = "http"))
    {
        let hint = "write `certificate = \"local\"` in a build with the feature `http`, or take it out";
        mistakes.add(*span, "no TLS ends here", hint);
    }
    Some(listener_tls(&raw.certificate, raw.tls.as_ref(), around, mistakes))
}
