//! Judges listeners: each with its protocol, and all of them together.
use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::hello;
use super::moq;
use super::quic::{self, Around};
use super::udp;
use super::upstream::Kind;
use crate::gateway::config::{Framed, FramedService, Limits, Listener, Protocol, Relay};
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::{RawFramed, RawLimits, RawListener, RawProtocol};
use crate::gateway::report::source::Source;
use crate::gateway::report::{Mistakes, Span, quoted};
use crate::gateway::units::show_size;

/// The largest header: `outbound` must take one whole message with it.
const HEADER: u64 = 8;

/// All listeners; those with mistakes are left out.
pub(super) fn all(
    raw: Vec<RawListener>,
    around: &Around<'_>,
    admin: Option<&At<SocketAddr>>,
    source: &mut Source<'_>,
    mistakes: &mut Mistakes,
) -> Vec<Listener> {
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    let mut addresses = Addresses::default();
    if let Some(admin) = admin {
        addresses.take(admin, false, mistakes);
    }
    let mut listeners = Vec::with_capacity(raw.len());
    for raw in raw {
        if let Field::Is(name) = &raw.name {
            if let Some(first) = names.get(&name.value) {
                // Neither a name nor an address is in the message: it may have come from a variable.
                let hint = "give each listener its own name";
                mistakes.add_pair(name.span, "this name is taken", hint, *first, "taken here");
            } else {
                names.insert(name.value.clone(), name.span);
            }
        }
        if let Field::Is(listen) = &raw.listen {
            let udp = matches!(
                &raw.protocol,
                Field::Is(At {
                    value: RawProtocol::Quic | RawProtocol::Udp | RawProtocol::Moq | RawProtocol::Wireguard,
                    ..
                })
            );
            addresses.take(listen, udp, mistakes);
        }
        listeners.extend(listener(raw, around, source, mistakes));
    }
    #[cfg(feature = "wireguard")]
    super::wireguard::same_addresses(&mut listeners);
    listeners
}

/// Addresses in use, by port and family: a wildcard address overlaps with every other of its family. TCP and UDP have
/// ports of their own.
#[derive(Default)]
struct Addresses {
    exact: BTreeMap<(SocketAddr, bool), Span>,
    first: BTreeMap<(u16, bool, bool), Span>,
    wildcard: BTreeMap<(u16, bool, bool), Span>,
}

impl Addresses {
    fn take(&mut self, at: &At<SocketAddr>, udp: bool, mistakes: &mut Mistakes) {
        let At { value: address, span } = at;
        // Port 0 lets the kernel choose a free one each time.
        if address.port() == 0 {
            return;
        }
        let family = (address.port(), address.is_ipv4(), udp);
        let exact = (*address, udp);
        let wild = address.ip().is_unspecified();
        let overlap = if wild { self.first.get(&family) } else { self.wildcard.get(&family) };
        let taken = self.exact.get(&exact).or(overlap);
        if let Some(other) = taken {
            let message = if self.exact.contains_key(&exact) {
                "this address is taken"
            } else {
                "this address overlaps with another one"
            };
            mistakes.add_pair(*span, message, "give each listener its own address or port", *other, "taken here");
        }
        self.exact.entry(exact).or_insert(*span);
        self.first.entry(family).or_insert(*span);
        if wild {
            self.wildcard.entry(family).or_insert(*span);
        }
    }
}

fn listener(
    raw: RawListener,
    around: &Around<'_>,
    source: &mut Source<'_>,
    mistakes: &mut Mistakes,
) -> Option<Listener> {
    let protocol = protocol(&raw, around, mistakes);
    let listen = raw.listen.at()?;
    Some(Listener {
        name: raw.name.value()?,
        listen: listen.value,
        place: source.place(listen.span.start),
        limits: limits(raw.limits),
        protocol: protocol?,
    })
}

fn protocol(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Protocol> {
    // What belongs to the listener cannot be told without a protocol, but the framed table can still be judged.
    let protocol = match &raw.protocol {
        Field::Is(protocol) => protocol,
        Field::Absent | Field::Bad => {
            if let Some(table) = &raw.framed {
                framed(FramedService::Echo, Some(&table.value), mistakes);
            }
            return None;
        }
    };
    let (name, own) = match &protocol.value {
        RawProtocol::Framed => ("framed", "[listener.framed]"),
        RawProtocol::Relay => ("relay", "[listener.relay]"),
        RawProtocol::Http => ("http", "[listener.http]"),
        RawProtocol::Quic => ("quic", "[listener.quic]"),
        RawProtocol::Udp => ("udp", "[listener.udp]"),
        RawProtocol::Moq => ("moq", "[listener.moq]"),
        RawProtocol::Wireguard => ("wireguard", "[listener.wireguard]"),
        RawProtocol::Custom(name) => (name.as_str(), "[listener.options]"),
    };
    let tables = [
        ("[listener.options]", raw.options.as_ref().map(|at| at.span)),
        ("[listener.framed]", raw.framed.as_ref().map(|at| at.span)),
        ("[listener.relay]", raw.relay.as_ref().map(|at| at.span)),
        ("[listener.http]", raw.http.as_ref().map(|at| at.span)),
        ("[listener.quic]", raw.quic.as_ref().map(|at| at.span).filter(|_| name != "moq")),
        ("[listener.udp]", raw.udp.as_ref().map(|at| at.span)),
        ("[listener.moq]", raw.moq.as_ref().map(|at| at.span)),
        ("[listener.wireguard]", raw.wireguard.as_ref().map(|at| at.span)),
    ];
    let routed = matches!(protocol.value, RawProtocol::Http | RawProtocol::Quic | RawProtocol::Relay);
    let words = [
        ("service", span_of(&raw.service).filter(|_| !matches!(name, "framed" | "udp"))),
        ("upstream", span_of(&raw.upstream).filter(|_| !matches!(name, "relay" | "framed" | "udp"))),
        ("certificate", span_of(&raw.certificate).filter(|_| !routed && name != "moq")),
        ("[listener.tls]", raw.tls.as_ref().map(|at| at.span).filter(|_| !routed && name != "moq")),
        ("[[listener.route]]", raw.routes.first().map(|route| route.header).filter(|_| !routed)),
    ];
    let own_tables = tables.into_iter().filter(|(table, _)| *table != own);
    let own_tables = own_tables.map(|(table, span)| (table, span, format!("its own settings stand in `{own}`")));
    let words = words.into_iter().map(|(word, span)| (word, span, "take it out".to_owned()));
    for (what, span, hint) in own_tables.chain(words) {
        let Some(span) = span else { continue };
        let message = format!("`{what}` does not belong to protocol {}", quoted(name));
        mistakes.add_pair(span, message, hint, protocol.span, "the protocol is chosen here");
    }
    match &protocol.value {
        RawProtocol::Framed => {
            if matches!(raw.service, Field::Absent) {
                let hint = "add `service = \"echo\"`";
                mistakes.add(raw.header, "a `[[listener]]` with protocol `framed` lacks `service`", hint);
            }
            let service = match &raw.service {
                Field::Is(service) => Some(service.value),
                Field::Absent | Field::Bad => None,
            };
            let framed = framed(FramedService::Echo, raw.framed.as_ref().map(|at| &at.value), mistakes);
            let upstream = match service {
                Some(FramedService::Forward) => Some(forward(raw, around, mistakes)?),
                Some(FramedService::Echo | FramedService::Rooms) | None => None,
            };
            if let (Field::Is(service), Some(span)) =
                (&raw.service, span_of(&raw.upstream).filter(|_| upstream.is_none()))
            {
                let message = "`upstream` belongs to service `forward` alone";
                mistakes.add_pair(span, message, "take it out", service.span, "the service is chosen here");
            }
            Some(Protocol::Framed(Framed { service: service?, upstream, ..framed }))
        }
        RawProtocol::Relay => relay(raw, around, mistakes).map(Protocol::Relay),
        RawProtocol::Http => http(raw, around, mistakes),
        RawProtocol::Quic => quic::quic(raw, around, mistakes).map(Protocol::Quic),
        RawProtocol::Udp => udp::udp(raw, around, mistakes).map(Protocol::Udp),
        RawProtocol::Moq => moq::listener(raw, around, mistakes).map(Protocol::Quic),
        RawProtocol::Wireguard => wireguard(raw, around, mistakes),
        RawProtocol::Custom(name) => {
            let options = raw.options.as_ref().map(|at| at.value.clone()).unwrap_or_default();
            Some(Protocol::Custom { protocol: name.clone(), options })
        }
    }
}

#[cfg(feature = "http")]
fn http(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Protocol> {
    super::http::http(raw, around, mistakes).map(|http| Protocol::Http(Box::new(http)))
}

#[cfg(not(feature = "http"))]
fn http(raw: &RawListener, _: &Around<'_>, mistakes: &mut Mistakes) -> Option<Protocol> {
    mistakes.add(raw.header, "protocol `http` needs a build with the feature `http`", "take the listener out");
    None
}

#[cfg(feature = "wireguard")]
fn wireguard(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Protocol> {
    let Some(table) = &raw.wireguard else {
        let hint = "add a `[listener.wireguard]` with a private key, addresses and peers";
        mistakes.add(raw.header, "a `[[listener]]` with protocol `wireguard` lacks `[listener.wireguard]`", hint);
        return None;
    };
    super::wireguard::interface_name(table, &raw.name, mistakes);
    let interface = super::wireguard::wireguard(table, &raw.listen, around, mistakes)?;
    Some(Protocol::Wireguard(Box::new(interface)))
}

#[cfg(not(feature = "wireguard"))]
fn wireguard(raw: &RawListener, _: &Around<'_>, mistakes: &mut Mistakes) -> Option<Protocol> {
    let hint = "build with the feature `wireguard`, or take the listener out";
    mistakes.add(raw.header, "protocol `wireguard` is not in this build", hint);
    None
}

pub(super) fn span_of<T>(field: &Field<T>) -> Option<Span> {
    match field {
        Field::Is(at) => Some(at.span),
        Field::Absent | Field::Bad => None,
    }
}

/// The upstream of a listener that cannot do without; `what` names its protocol or service.
fn upstream<'a>(raw: &'a RawListener, what: &str, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<&'a str> {
    let upstream = match &raw.upstream {
        Field::Is(upstream) => upstream,
        Field::Absent => {
            let hint = around.upstreams.example();
            mistakes.add(raw.header, format!("a `[[listener]]` with {what} lacks `upstream`"), hint);
            return None;
        }
        Field::Bad => return None,
    };
    around.upstreams.need(upstream, mistakes);
    around.upstreams.no_circle(&upstream.value.text, &raw.listen, mistakes);
    if around.upstreams.kind(&upstream.value.text) == Some(Kind::Udp) {
        let hint = "name an upstream whose servers take streams";
        mistakes.add(upstream.span, "a relay cannot send its streams to servers over UDP", hint);
    }
    Some(&upstream.value.text)
}

/// The upstream that messages are forwarded to. What waits is bounded by the longest message: keys that say otherwise
/// would be ignored.
fn forward(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<String> {
    if let (Some(At { value: table, .. }), Field::Is(service)) = (&raw.framed, &raw.service) {
        for (key, span) in [("outbound", span_of(&table.outbound)), ("when_slow", span_of(&table.when_slow))] {
            let Some(span) = span else { continue };
            let message = format!("`{key}` does not belong to service `forward`, which makes senders wait instead");
            mistakes.add_pair(span, message, "take it out", service.span, "the service is chosen here");
        }
    }
    let name = upstream(raw, "service `forward`", around, mistakes)?;
    if let (Some(Kind::Quic), Field::Is(at)) = (around.upstreams.kind(name), &raw.upstream) {
        let hint = "name an upstream whose servers take TCP or are Unix sockets";
        mistakes.add(at.span, "messages are not forwarded to servers over QUIC", hint);
    }
    Some(name.to_owned())
}

fn relay(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Relay> {
    let (routes, tls) = (hello::routes(raw, around, mistakes), hello::tls(raw, around, mistakes));
    let others = routes.is_empty() || !matches!(raw.upstream, Field::Absent);
    let first = match routes.first() {
        Some(first) if !others => first.upstream.clone(),
        Some(_) | None => upstream(raw, "protocol `relay`", around, mistakes)?.to_owned(),
    };
    let default = Relay { routes, others, tls, ..Relay::new(first) };
    let Some(At { value: raw, .. }) = &raw.relay else { return Some(default) };
    if let Field::Is(At { value: true, span }) = raw.proxy_in
        && (default.tls.is_some() || !default.routes.is_empty())
    {
        let hint = "take it out, or the routes and the certificate";
        mistakes.add(span, "behind a PROXY header TLS is not looked into", hint);
    }
    Some(Relay {
        proxy_in: copied(&raw.proxy_in, default.proxy_in),
        proxy_out: copied(&raw.proxy_out, default.proxy_out),
        attempts: small(&raw.attempts, default.attempts),
        ..default
    })
}

fn limits(raw: RawLimits) -> Limits {
    let default = Limits::default();
    let connections = count(&raw.connections, default.connections);
    Limits {
        connections,
        per_source: count(&raw.per_source, connections),
        half_open: count(&raw.half_open, default.half_open),
        first_message: raw.first_message.value().unwrap_or(default.first_message),
        idle: raw.idle.value().unwrap_or(default.idle),
    }
}

fn framed(service: FramedService, raw: Option<&RawFramed>, mistakes: &mut Mistakes) -> Framed {
    let default = Framed { service, ..Framed::default() };
    let Some(raw) = raw else { return default };
    let length_bytes = copied(&raw.length_bytes, default.length_bytes);
    let length_includes_header = copied(&raw.length_includes_header, default.length_includes_header);
    let expressible = expressible(length_bytes, length_includes_header);
    if let (Field::Is(max), Field::Is(bytes)) = (&raw.max_message, &raw.length_bytes)
        && max.value > expressible
        && !matches!(raw.length_includes_header, Field::Bad)
    {
        let message = format!("a length of {length_bytes} bytes cannot express `max_message`");
        let hint = format!("write at most {expressible}, or a larger `length_bytes`");
        mistakes.add_pair(max.span, message, hint, bytes.span, "the length header is chosen here");
    }
    let default_max = default.max_message.min(usize::try_from(expressible).unwrap_or(usize::MAX));
    let max_message = count(&raw.max_message, default_max);
    let outbound = count(&raw.outbound, default.outbound);
    let least = max_message as u64 + HEADER;
    if (outbound as u64) < least && !matches!(raw.max_message, Field::Bad) && !matches!(raw.outbound, Field::Bad) {
        let message = "`outbound` cannot hold one message of `max_message` bytes and its header";
        let hint = format!("write `outbound` as {} or more, or a smaller `max_message`", show_size(least));
        match (&raw.outbound, &raw.max_message) {
            (Field::Is(outbound), Field::Is(max)) => {
                mistakes.add_pair(outbound.span, message, hint, max.span, "`max_message` is chosen here");
            }
            (Field::Is(at), _) => mistakes.add(at.span, format!("{message} (default 1MiB)"), hint),
            (_, Field::Is(at)) => mistakes.add(at.span, format!("{message} (`outbound` is 4MiB by default)"), hint),
            _ => {}
        }
    }
    Framed {
        service,
        upstream: None,
        length_bytes,
        byte_order: copied(&raw.byte_order, default.byte_order),
        length_includes_header,
        max_message,
        message_timeout: copied(&raw.message_timeout, default.message_timeout),
        outbound,
        when_slow: copied(&raw.when_slow, default.when_slow),
        slow_after: copied(&raw.slow_after, default.slow_after),
    }
}

/// The longest body that a length header can announce.
fn expressible(length_bytes: u8, includes_header: bool) -> u64 {
    let largest = if length_bytes >= 8 { u64::MAX } else { (1 << (8 * u32::from(length_bytes))) - 1 };
    if includes_header { largest - u64::from(length_bytes) } else { largest }
}

pub(super) fn copied<T: Copy>(field: &Field<T>, default: T) -> T {
    match field {
        Field::Is(at) => at.value,
        Field::Absent | Field::Bad => default,
    }
}

/// A number that was read within a range far below what any machine can address.
pub(super) fn count(field: &Field<u64>, default: usize) -> usize {
    match field {
        Field::Is(at) => usize::try_from(at.value).unwrap_or(usize::MAX),
        Field::Absent | Field::Bad => default,
    }
}

/// The same for a number of 32 bits.
pub(super) fn small(field: &Field<u64>, default: u32) -> u32 {
    match field {
        Field::Is(at) => u32::try_from(at.value).unwrap_or(u32::MAX),
        Field::Absent | Field::Bad => default,
    }
}
