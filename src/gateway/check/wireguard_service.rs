//! Judges `[[listener.wireguard.service]]`: where it is inside, and what is spoken there.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::quic::Around;
use super::upstream::Kind;
use super::wireguard::span_of;
use crate::gateway::config::wireguard::{InsideService, Speaks};
use crate::gateway::config::{Framed, FramedService, Relay};
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::wireguard::{RawService, RawSpoken};
use crate::gateway::report::{Mistakes, Span};
use crate::transports::wireguard::Network;

/// The services without mistakes.
pub(super) fn services(
    raw: &[RawService],
    addresses: &[(IpAddr, Network)],
    around: &Around<'_>,
    mistakes: &mut Mistakes,
) -> Vec<InsideService> {
    let mut taken: BTreeMap<(SocketAddr, bool), Span> = BTreeMap::new();
    for raw in raw {
        let (Field::Is(At { value: listen, span }), Field::Is(protocol)) = (&raw.listen, &raw.protocol) else {
            continue;
        };
        // TCP and UDP have ports of their own.
        let first = *taken.entry((*listen, matches!(protocol.value, RawSpoken::Udp))).or_insert(*span);
        if first != *span {
            let hint = "give each service its own address or port";
            mistakes.add_pair(*span, "this address is taken", hint, first, "taken here");
        }
    }
    raw.iter().filter_map(|raw| service(raw, addresses, around, mistakes)).collect()
}

fn service(
    raw: &RawService,
    addresses: &[(IpAddr, Network)],
    around: &Around<'_>,
    mistakes: &mut Mistakes,
) -> Option<InsideService> {
    let Field::Is(At { value: listen, span }) = &raw.listen else { return None };
    if !addresses.is_empty() && !addresses.iter().any(|(own, _)| *own == listen.ip()) {
        let hint = "name one of the interface's own `addresses`, and a port";
        mistakes.add(*span, format!("{} is not an address of this interface", listen.ip()), hint);
    }
    if listen.port() == 0 {
        mistakes.add(*span, "a service needs a port that peers know", "write a port other than 0");
    }
    let Field::Is(At { value: protocol, span: chosen }) = &raw.protocol else { return None };
    foreign(raw, *protocol, *chosen, mistakes);
    let speaks = match protocol {
        RawSpoken::Framed => framed(raw, around, mistakes)?,
        RawSpoken::Relay => Speaks::Relay(Relay::new(upstream(raw, "relay", around, mistakes)?)),
        RawSpoken::Udp => Speaks::Udp(upstream(raw, "udp", around, mistakes)?),
        RawSpoken::Http => http(raw, around, mistakes)?,
    };
    Some(InsideService { listen: *listen, speaks })
}

/// Notes what belongs to other protocols.
fn foreign(raw: &RawService, protocol: RawSpoken, chosen: Span, mistakes: &mut Mistakes) {
    let rest = &raw.rest;
    let forwards = matches!(rest.service, Field::Is(At { value: FramedService::Forward, .. }));
    let http = matches!(protocol, RawSpoken::Http);
    let (own, upstream) = match protocol {
        RawSpoken::Framed => ("service", forwards),
        RawSpoken::Relay | RawSpoken::Udp => ("upstream", true),
        RawSpoken::Http => ("route", false),
    };
    for (what, span, fits) in [
        ("service", span_of(&rest.service), matches!(protocol, RawSpoken::Framed)),
        ("upstream", span_of(&rest.upstream), upstream),
        ("certificate", span_of(&rest.certificate), http),
        ("tls", rest.tls.as_ref().map(|at| at.span), http),
        ("route", rest.routes.first().map(|route| route.header), http),
        ("http", rest.http.as_ref().map(|at| at.span), http),
    ] {
        if let Some(span) = span.filter(|_| !fits) {
            let message = format!("`{what}` does not belong to this protocol, whose word is `{own}`");
            mistakes.add_pair(span, message, "take it out", chosen, "the protocol is chosen here");
        }
    }
}

fn framed(raw: &RawService, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Speaks> {
    let service = match &raw.rest.service {
        Field::Is(service) => service.value,
        Field::Absent => {
            let hint = "add `service = \"echo\"`";
            mistakes.add(raw.header, "a service with protocol `framed` lacks `service`", hint);
            return None;
        }
        Field::Bad => return None,
    };
    let upstream = match service {
        FramedService::Forward => Some(upstream(raw, "framed", around, mistakes)?),
        FramedService::Echo | FramedService::Rooms => None,
    };
    Some(Speaks::Framed(Framed { service, upstream, ..Framed::default() }))
}

/// The upstream of a service that cannot do without.
fn upstream(raw: &RawService, protocol: &str, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<String> {
    let Field::Is(upstream) = &raw.rest.upstream else {
        if matches!(raw.rest.upstream, Field::Absent) {
            let hint = around.upstreams.example();
            mistakes.add(raw.header, format!("a service with protocol `{protocol}` lacks `upstream`"), hint);
        }
        return None;
    };
    around.upstreams.need(upstream, mistakes);
    let (udp, kind) = (protocol == "udp", around.upstreams.kind(&upstream.value.text));
    match kind {
        Some(Kind::Udp) if !udp => {
            let hint = "name an upstream whose servers take streams";
            mistakes.add(upstream.span, "a relay cannot send its streams to servers over UDP", hint);
        }
        Some(Kind::Stream | Kind::Quic | Kind::Tls) if udp => {
            let hint = "name an upstream whose servers are written as \"udp://127.0.0.1:53\"";
            mistakes.add(upstream.span, "datagrams need servers over UDP", hint);
        }
        Some(Kind::Quic) if protocol == "framed" => {
            let hint = "name an upstream whose servers take TCP or are Unix sockets";
            mistakes.add(upstream.span, "messages are not forwarded to servers over QUIC", hint);
        }
        _ => {}
    }
    Some(upstream.value.text.clone())
}

#[cfg(feature = "http")]
fn http(raw: &RawService, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Speaks> {
    use crate::gateway::raw::http::RawHttp;
    use crate::gateway::raw::wireguard::SERVICE_ROUTE;

    if raw.rest.routes.is_empty() {
        let hint = format!("add a `{SERVICE_ROUTE}` with `path = \"/\"` and `upstream = \"app\"`");
        mistakes.add(raw.header, "a service with protocol `http` lacks a `route`", hint);
        return None;
    }
    let three = match raw.rest.http {
        Some(At { value: RawHttp { http3: Field::Is(At { value: true, span }), .. }, .. }) => Some(("HTTP/3", span)),
        _ => None,
    };
    let sessions = raw.rest.routes.iter().filter_map(|route| match route.http.webtransport {
        Field::Is(At { value: true, span }) => Some(("WebTransport", span)),
        Field::Is(_) | Field::Absent | Field::Bad => None,
    });
    let over_quic: Vec<_> = three.into_iter().chain(sessions).collect();
    for (what, span) in &over_quic {
        mistakes.add(*span, format!("{what} is not spoken inside a tunnel"), "take it out");
    }
    if !over_quic.is_empty() {
        return None;
    }
    let mut http = super::http::http(&raw.rest, around, mistakes)?;
    http.settings.http3 = false;
    Some(Speaks::Http(Box::new(http)))
}

#[cfg(not(feature = "http"))]
fn http(raw: &RawService, _: &Around<'_>, mistakes: &mut Mistakes) -> Option<Speaks> {
    mistakes.add(raw.header, "protocol `http` needs a build with the feature `http`", "take the service out");
    None
}
