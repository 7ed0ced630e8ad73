//! The shape of `[[upstream]]` in the file: servers, how one is chosen, and how one is found to be down.
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::http::{RawUpstreamHttp, UPSTREAM_HTTP, UPSTREAM_HTTP_KEYS, upstream_http};
use super::quic::{RawTlsBoth, tls_both};
use super::section::{At, Field, Section};
use super::text::Text;
use super::{CONNECTIONS, DAY, LEAST_TIMEOUT, name, unknown_keys};
use crate::gateway::config::{Balance, Check, Host, Server};
use crate::gateway::report::Span;

pub(crate) const UPSTREAM: &str = "[[upstream]]";
pub(crate) const LIMITS: &str = "[upstream.limits]";
pub(crate) const HEALTH: &str = "[upstream.health]";
pub(crate) const TLS: &str = "[upstream.tls]";
pub(crate) const KEYS: &[&str] = &["name", "servers", "balance", "resolve", "limits", "health", "http", "tls", "via"];
pub(crate) const TLS_KEYS: &[&str] =
    &["ca", "trust", "name", "alpn", "certificate", "curves", "keylog", "qlog", "early_data"];
pub(crate) const LIMITS_KEYS: &[&str] = &["connections", "connect_timeout"];
pub(crate) const HEALTH_KEYS: &[&str] = &[
    "eject_after",
    "eject_for",
    "check",
    "path",
    "interval",
    "timeout",
    "healthy_after",
    "unhealthy_after",
    "slow_start",
];

const BALANCE: [(&str, Balance); 4] = [
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("random-of-two", Balance::RandomOfTwo),
    ("hash", Balance::Hash),
];
const CHECK: [(&str, Check); 3] = [("off", Check::Off), ("tcp", Check::Tcp), ("http", Check::Http)];

const SERVERS: &str = "[\"127.0.0.1:9000\"]";
/// Names are looked up, and servers asked, no more often than this.
const LEAST_PERIOD: Duration = Duration::from_millis(100);
const IN_A_ROW: RangeInclusive<u64> = 1..=1_000;
/// `sun_path` of unix(7) has 108 bytes, the last of them 0.
const UNIX_PATH: usize = 107;

/// `[[upstream]]`.
#[derive(Debug)]
pub(crate) struct RawUpstream {
    pub(crate) name: Field<Text>,
    pub(crate) servers: Field<Vec<At<Server>>>,
    pub(crate) balance: Field<Balance>,
    pub(crate) resolve: Field<Duration>,
    pub(crate) limits: Option<RawUpstreamLimits>,
    pub(crate) health: Option<RawHealth>,
    pub(crate) http: Option<At<RawUpstreamHttp>>,
    pub(crate) tls: Option<At<RawUpstreamTls>>,
    pub(crate) via: Field<Text>,
    pub(crate) header: Span,
}

/// `[upstream.tls]`.
#[derive(Debug)]
pub(crate) struct RawUpstreamTls {
    pub(crate) ca: Field<Text>,
    pub(crate) trust: Field<Text>,
    pub(crate) name: Field<Text>,
    pub(crate) alpn: Field<Text>,
    pub(crate) certificate: Field<Text>,
    pub(crate) qlog: Field<Text>,
    pub(crate) both: RawTlsBoth,
}

/// `[upstream.limits]`.
#[derive(Debug)]
pub(crate) struct RawUpstreamLimits {
    pub(crate) connections: Field<u64>,
    pub(crate) connect_timeout: Field<Duration>,
}

/// `[upstream.health]`.
#[derive(Debug)]
pub(crate) struct RawHealth {
    pub(crate) eject_after: Field<u64>,
    pub(crate) eject_for: Field<Duration>,
    pub(crate) check: Field<Check>,
    pub(crate) path: Field<Text>,
    pub(crate) interval: Field<Duration>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) healthy_after: Field<u64>,
    pub(crate) unhealthy_after: Field<u64>,
    pub(crate) slow_start: Field<Duration>,
}

pub(crate) fn upstream(mut section: Section<'_, '_>) -> RawUpstream {
    let raw = RawUpstream {
        name: name(&mut section, "an upstream", "\"app\""),
        servers: servers(&mut section),
        balance: section.choice("balance", &BALANCE),
        resolve: section.duration("resolve", LEAST_PERIOD..=DAY),
        limits: section.section("limits", LIMITS, LIMITS_KEYS).map(limits),
        health: section.section("health", HEALTH, HEALTH_KEYS).map(health),
        http: section.section("http", UPSTREAM_HTTP, UPSTREAM_HTTP_KEYS).map(upstream_http),
        tls: section.section("tls", TLS, TLS_KEYS).map(tls),
        via: section.text("via", "\"wg0\""),
        header: section.header,
    };
    section.need(&raw.name, "name", "\"app\"");
    section.need(&raw.servers, "servers", SERVERS);
    unknown_keys(section);
    raw
}

fn limits(mut section: Section<'_, '_>) -> RawUpstreamLimits {
    let raw = RawUpstreamLimits {
        connections: section.whole("connections", CONNECTIONS),
        connect_timeout: section.duration("connect_timeout", LEAST_TIMEOUT..=DAY),
    };
    unknown_keys(section);
    raw
}

fn health(mut section: Section<'_, '_>) -> RawHealth {
    let raw = RawHealth {
        eject_after: section.whole("eject_after", 0..=1_000_000),
        eject_for: section.duration("eject_for", LEAST_TIMEOUT..=DAY),
        check: section.choice("check", &CHECK),
        path: section.text("path", "\"/health\""),
        interval: section.duration("interval", LEAST_PERIOD..=DAY),
        timeout: section.duration("timeout", LEAST_TIMEOUT..=DAY),
        healthy_after: section.whole("healthy_after", IN_A_ROW),
        unhealthy_after: section.whole("unhealthy_after", IN_A_ROW),
        slow_start: section.duration("slow_start", LEAST_TIMEOUT..=DAY),
    };
    unknown_keys(section);
    raw
}

fn tls(mut section: Section<'_, '_>) -> At<RawUpstreamTls> {
    let value = RawUpstreamTls {
        ca: section.text("ca", "\"authority.pem\""),
        trust: section.text("trust", "\"local\""),
        name: section.text("name", "\"app.example\""),
        alpn: section.text("alpn", "\"app\""),
        certificate: section.text("certificate", "\"local\""),
        qlog: section.text("qlog", "\"/var/log/qlog\""),
        both: tls_both(&mut section),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

fn servers(section: &mut Section<'_, '_>) -> Field<Vec<At<Server>>> {
    section.texts("servers", SERVERS).and_then(|At { value: texts, span }| {
        if texts.is_empty() {
            return section.bad(span, "`servers` is empty".to_owned(), format!("write `servers = {SERVERS}`"));
        }
        let mut servers: Vec<At<Server>> = Vec::with_capacity(texts.len());
        let mut bad = false;
        for text in texts {
            let Field::Is(At { value: text, span }) = text else {
                bad = true;
                continue;
            };
            match server(&text.text) {
                Ok(value) => match servers.iter().find(|other| other.value == value) {
                    Some(first) => bad |= twice(section, span, first.span),
                    None => servers.push(At { value, span }),
                },
                Err(hint) => {
                    let _: Field<()> = section.bad(span, format!("{} is not a server", text.shown()), hint);
                    bad = true;
                }
            }
        }
        if bad { Field::Bad } else { Field::Is(At { value: servers, span }) }
    })
}

fn twice(section: &mut Section<'_, '_>, span: Span, first: Span) -> bool {
    let message = "this server is there for the second time";
    section.reader.mistakes.add_pair(span, message, "take one of the two out", first, "it is here already");
    true
}

/// One server, or a hint what to write instead.
fn server(text: &str) -> Result<Server, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            path if path.len() > UNIX_PATH => Err("the path of a Unix socket has at most 107 bytes"),
            path if !path.starts_with('/') || path.contains('\0') => {
                Err("write an absolute path, such as \"unix:/run/app.sock\"")
            }
            path => Ok(Server::Unix(PathBuf::from(path))),
        };
    }
    if let Some(rest) = text.strip_prefix("quic://") {
        let (host, port) = host_and_port(rest)?;
        return Ok(Server::Quic { host, port });
    }
    if let Some(rest) = text.strip_prefix("udp://") {
        let (host, port) = host_and_port(rest)?;
        return Ok(Server::Udp { host, port });
    }
    if text.contains("://") {
        return Err("the schemes are quic:// and udp://; a server over TCP has none, such as \"app.example:9000\"");
    }
    Ok(match host_and_port(text)? {
        (Host::Address(ip), port) => Server::Tcp(SocketAddr::new(ip, port)),
        (Host::Name(host), port) => Server::Name { host, port },
    })
}

/// An address or a name, and a port.
fn host_and_port(text: &str) -> Result<(Host, u16), &'static str> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 {
            Err("name the port that the server listens on")
        } else {
            Ok((Host::Address(address.ip()), address.port()))
        };
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("add a port, such as \"127.0.0.1:9000\" or \"app.example:9000\"");
    };
    if text.parse::<Ipv6Addr>().is_ok() || host.parse::<Ipv6Addr>().is_ok() {
        return Err("write an IPv6 address in brackets and with a port, such as \"[::1]:9000\"");
    }
    let port = match port.parse() {
        Ok(number) if number != 0 && !port.starts_with('+') => number,
        Ok(_) | Err(_) => return Err("a port is a number from 1 to 65535"),
    };
    if is_name(host) {
        Ok((Host::Name(host.to_owned()), port))
    } else {
        Err("write an address or a name and a port, such as \"127.0.0.1:9000\" or \"app.example:9000\"")
    }
}

/// Whether a name can be looked up (RFC 1123, section 2.1, and the underscore that people use). One that ends in a
/// number is a mistyped address.
pub(crate) fn is_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-');
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read() {
        let name = |host: &str| Ok(Server::Name { host: host.to_owned(), port: 9000 });
        assert_eq!(server("127.0.0.1:9000"), Ok(Server::Tcp("127.0.0.1:9000".parse().unwrap())));
        assert_eq!(server("[::1]:9000"), Ok(Server::Tcp("[::1]:9000".parse().unwrap())));
        assert_eq!(server("unix:/run/app.sock"), Ok(Server::Unix("/run/app.sock".into())));
        let quic = Server::Quic { host: Host::Name("app.example".to_owned()), port: 4433 };
        assert_eq!(server("quic://app.example:4433"), Ok(quic));
        let udp = Server::Udp { host: Host::Address("::1".parse().unwrap()), port: 53 };
        assert_eq!(server("udp://[::1]:53"), Ok(udp));
        for host in ["localhost", "app.example", "a_b.c-d.", "1.example", "xn--bcher-kva.example"] {
            assert_eq!(server(&format!("{host}:9000")), name(host), "{host}");
        }
    }

    #[test]
    fn hints_fit_the_mistake() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, part) in [
            ("", "add a port"),
            ("127.0.0.1", "add a port"),
            ("app.example", "add a port"),
            ("::1", "in brackets"),
            ("fe80::1:9000:1:2:3:4", "in brackets"),
            ("127.0.0.1:0", "name the port"),
            ("app.example:0", "1 to 65535"),
            ("app.example:70000", "1 to 65535"),
            ("app.example:", "1 to 65535"),
            ("app.example:+1", "1 to 65535"),
            ("127.0.0.300:9000", "an address or a name"),
            (":9000", "an address or a name"),
            ("a..b:9000", "an address or a name"),
            ("-a:9000", "an address or a name"),
            ("http://app.example:9000", "over TCP has none"),
            ("quic://app.example", "add a port"),
            ("udp://127.0.0.1:0", "name the port"),
            ("unix:app.sock", "absolute path"),
            ("unix:", "absolute path"),
            (&long, "107 bytes"),
        ] {
            let hint = server(text).unwrap_err();
            assert!(hint.contains(part), "{text}: {hint}");
        }
    }
}
