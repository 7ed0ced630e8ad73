//! The shape of the configuration file: its tables, their keys, and the range of each value.
//!
//! These types mirror the file: every key is a [`Field`] that may be absent, wrong or there, with its place. The
//! document is walked by hand, not by serde, because serde stops at the first mistake and people mend a file faster
//! when they see all of them.

pub(super) mod guards;
pub(super) mod http;
pub(super) mod moq;
pub(super) mod quic;
pub(super) mod secrets;
pub(super) mod section;
pub(super) mod shape;
pub(super) mod text;
pub(super) mod udp;
pub(super) mod upstream;
pub(super) mod wireguard;
pub(super) mod words;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use self::http::RawHttp;
use super::Options;
use super::check::Known;
use super::config::{ByteOrder, FramedService, Level, LogFormat, ProxyOut, WhenSlow};
use super::report::{Span, quoted};
use moq::RawMoq;
use quic::{RawCertificate, RawQuic, RawRoute, RawTls};
use section::{At, Field, Reader, Section, kind};
use shape::Takes;
use text::Text;
use udp::RawUdp;
use upstream::RawUpstream;
use wireguard::RawWireguard;
use words::{in_code, unknown_key_hint};

pub(super) const ROOT: &str = "the file";
const ROOT_KEYS: &[&str] = &["version", "runtime", "admin", "log", "certificate", "upstream", "listener"];
const RUNTIME_KEYS: &[&str] = &["arbiters", "pin_cores", "memory", "drain"];
const ADMIN_KEYS: &[&str] = &["listen", "control", "token", "watch", "certificate", "client_ca"];
const LOG_KEYS: &[&str] = &["level", "format"];
const LISTENER_KEYS: &[&str] = &[
    "name",
    "listen",
    "protocol",
    "service",
    "upstream",
    "certificate",
    "limits",
    "tls",
    "route",
    "framed",
    "relay",
    "http",
    "quic",
    "udp",
    "moq",
    "wireguard",
    "options",
];
const LIMITS_KEYS: &[&str] = &["connections", "per_source", "half_open", "first_message", "idle"];
const FRAMED_KEYS: &[&str] = &[
    "length_bytes",
    "byte_order",
    "length_includes_header",
    "max_message",
    "message_timeout",
    "outbound",
    "when_slow",
    "slow_after",
];
const RELAY_KEYS: &[&str] = &["proxy_in", "proxy_out", "attempts"];

/// Every table and its keys, to say where a misplaced key belongs.
pub(super) const TABLES: [(&str, &[&str]); 24] = [
    ("[runtime]", RUNTIME_KEYS),
    ("[admin]", ADMIN_KEYS),
    ("[log]", LOG_KEYS),
    (quic::CERTIFICATE, quic::CERTIFICATE_KEYS),
    ("[[listener]]", LISTENER_KEYS),
    ("[listener.limits]", LIMITS_KEYS),
    ("[listener.framed]", FRAMED_KEYS),
    ("[listener.relay]", RELAY_KEYS),
    (quic::TLS, quic::TLS_KEYS),
    (quic::ROUTE, quic::ROUTE_KEYS),
    (http::HTTP, http::HTTP_KEYS),
    (quic::QUIC, quic::QUIC_KEYS),
    (udp::UDP, udp::UDP_KEYS),
    (moq::MOQ, moq::MOQ_KEYS),
    (moq::SCOPE, moq::SCOPE_KEYS),
    (moq::TOKEN, moq::TOKEN_KEYS),
    (wireguard::WIREGUARD, wireguard::WIREGUARD_KEYS),
    (wireguard::PEER, wireguard::PEER_KEYS),
    (wireguard::SERVICE, wireguard::SERVICE_KEYS),
    (upstream::UPSTREAM, upstream::KEYS),
    (upstream::LIMITS, upstream::LIMITS_KEYS),
    (upstream::HEALTH, upstream::HEALTH_KEYS),
    (upstream::TLS, upstream::TLS_KEYS),
    (http::UPSTREAM_HTTP, http::UPSTREAM_HTTP_KEYS),
];

const SERVICES: [(&str, FramedService); 3] =
    [("echo", FramedService::Echo), ("rooms", FramedService::Rooms), ("forward", FramedService::Forward)];
const LEVELS: [(&str, Level); 5] = [
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const BYTE_ORDERS: [(&str, ByteOrder); 2] = [("big", ByteOrder::Big), ("little", ByteOrder::Little)];
const WHEN_SLOW: [(&str, WhenSlow); 3] =
    [("close", WhenSlow::Close), ("drop-oldest", WhenSlow::DropOldest), ("drop-newest", WhenSlow::DropNewest)];
const PROXY_OUT: [(&str, ProxyOut); 3] = [("off", ProxyOut::Off), ("v1", ProxyOut::V1), ("v2", ProxyOut::V2)];

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The first byte of a QUIC connection id names the arbiter.
const ARBITERS: RangeInclusive<u64> = 1..=256;
pub(super) const CONNECTIONS: RangeInclusive<u64> = 1..=10_000_000;
const ATTEMPTS: RangeInclusive<u64> = 1..=100;

/// The file.
#[derive(Debug)]
pub(super) struct RawFile {
    pub(super) runtime: RawRuntime,
    pub(super) admin: Option<RawAdmin>,
    pub(super) log: RawLog,
    pub(super) certificates: Vec<RawCertificate>,
    pub(super) upstreams: Vec<RawUpstream>,
    pub(super) listeners: Vec<RawListener>,
}

/// `[admin]`.
#[derive(Debug)]
pub(super) struct RawAdmin {
    pub(super) listen: Field<SocketAddr>,
    pub(super) control: Field<Text>,
    pub(super) token: Field<Text>,
    pub(super) watch: Field<bool>,
    pub(super) certificate: Field<Vec<Field<Text>>>,
    pub(super) client_ca: Field<Text>,
}

/// `[runtime]`; `None` inside a field is the word `"auto"`.
#[derive(Debug)]
pub(super) struct RawRuntime {
    pub(super) arbiters: Field<Option<u64>>,
    pub(super) pin_cores: Field<bool>,
    pub(super) memory: Field<Option<u64>>,
    pub(super) drain: Field<Duration>,
}

/// `[log]`.
#[derive(Debug)]
pub(super) struct RawLog {
    pub(super) level: Field<Level>,
    pub(super) format: Field<LogFormat>,
}

/// `[[listener]]`.
#[derive(Debug)]
pub(super) struct RawListener {
    pub(super) header: Span,
    pub(super) name: Field<String>,
    pub(super) listen: Field<SocketAddr>,
    pub(super) protocol: Field<RawProtocol>,
    pub(super) service: Field<FramedService>,
    pub(super) upstream: Field<Text>,
    pub(super) limits: RawLimits,
    pub(super) framed: Option<At<RawFramed>>,
    pub(super) relay: Option<At<RawRelay>>,
    pub(super) certificate: Field<Vec<Field<Text>>>,
    pub(super) tls: Option<At<RawTls>>,
    pub(super) routes: Vec<RawRoute>,
    pub(super) http: Option<At<RawHttp>>,
    pub(super) quic: Option<At<RawQuic>>,
    pub(super) udp: Option<At<RawUdp>>,
    pub(super) moq: Option<At<RawMoq>>,
    pub(super) wireguard: Option<At<RawWireguard>>,
    pub(super) options: Option<At<Options>>,
}

/// The word behind `protocol`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RawProtocol {
    Framed,
    Relay,
    Http,
    Quic,
    Udp,
    Moq,
    Wireguard,
    Custom(String),
}

/// `[listener.limits]`.
#[derive(Debug)]
pub(super) struct RawLimits {
    pub(super) connections: Field<u64>,
    pub(super) per_source: Field<u64>,
    pub(super) half_open: Field<u64>,
    pub(super) first_message: Field<Duration>,
    pub(super) idle: Field<Duration>,
}

/// `[listener.framed]`.
#[derive(Debug)]
pub(super) struct RawFramed {
    pub(super) length_bytes: Field<u8>,
    pub(super) byte_order: Field<ByteOrder>,
    pub(super) length_includes_header: Field<bool>,
    pub(super) max_message: Field<u64>,
    pub(super) message_timeout: Field<Duration>,
    pub(super) outbound: Field<u64>,
    pub(super) when_slow: Field<WhenSlow>,
    pub(super) slow_after: Field<Duration>,
}

/// `[listener.relay]`.
#[derive(Debug)]
pub(super) struct RawRelay {
    pub(super) proxy_in: Field<bool>,
    pub(super) proxy_out: Field<ProxyOut>,
    pub(super) attempts: Field<u64>,
}

/// Reads the whole document; mistakes are noted in the reader.
pub(super) fn file(reader: &mut Reader<'_>, document: &DeTable<'_>, known: &Known) -> RawFile {
    let header = Span { start: 0, end: reader.text.lines().next().map_or(0, str::len) };
    let mut root = Section { reader, table: document, header, name: ROOT, keys: ROOT_KEYS };
    version(&mut root);
    let raw = RawFile {
        runtime: runtime(root.section("runtime", "[runtime]", RUNTIME_KEYS)),
        admin: root.section("admin", "[admin]", ADMIN_KEYS).map(|mut admin| {
            let listen = admin.address("listen");
            admin.need(&listen, "listen", "\"127.0.0.1:9180\"");
            let control = admin.text("control", "\"portway.sock\"");
            let token = admin.text("token", "\"file:admin.token\"");
            let watch = admin.boolean("watch");
            let certificate = admin.one_or_more("certificate", "\"local\"");
            let client_ca = admin.text("client_ca", "\"clients.pem\"");
            unknown_keys(admin);
            RawAdmin { listen, control, token, watch, certificate, client_ca }
        }),
        log: log(root.section("log", "[log]", LOG_KEYS)),
        certificates: tables(
            &mut root,
            "certificate",
            "a certificate",
            quic::CERTIFICATE,
            quic::CERTIFICATE_KEYS,
            quic::certificate,
        ),
        upstreams: tables(&mut root, "upstream", "an upstream", upstream::UPSTREAM, upstream::KEYS, upstream::upstream),
        listeners: tables(&mut root, "listener", "a listener", "[[listener]]", LISTENER_KEYS, |section| {
            listener(section, known)
        }),
    };
    unknown_keys(root);
    raw
}

fn version(root: &mut Section<'_, '_>) {
    root.note("version", || Takes::Numbers(&[1]));
    let Some(found) = root.value("version") else {
        root.need(&Field::<()>::Absent, "version", "1");
        return;
    };
    let is_one = found.get_ref().as_integer().is_some_and(|version| version.to_string() == "1");
    if !is_one {
        let hint = "write `version = 1`, the only version this build reads";
        root.reader.mistakes.add(found.span().into(), "`version` is not 1", hint);
    }
}

fn runtime(section: Option<Section<'_, '_>>) -> RawRuntime {
    let Some(mut section) = section else {
        return RawRuntime {
            arbiters: Field::Absent,
            pin_cores: Field::Absent,
            memory: Field::Absent,
            drain: Field::Absent,
        };
    };
    let raw = RawRuntime {
        arbiters: section.auto_or("arbiters", |section| section.whole("arbiters", ARBITERS)),
        pin_cores: section.boolean("pin_cores"),
        memory: section.auto_or("memory", |section| section.size("memory", 16 * MIB..=64 * 1024 * GIB)),
        drain: section.duration("drain", Duration::ZERO..=DAY),
    };
    unknown_keys(section);
    raw
}

fn log(section: Option<Section<'_, '_>>) -> RawLog {
    let Some(mut section) = section else { return RawLog { level: Field::Absent, format: Field::Absent } };
    let raw = RawLog { level: section.choice("level", &LEVELS), format: section.choice("format", &FORMATS) };
    unknown_keys(section);
    raw
}

/// The tables of a list, each as its reader makes it.
pub(super) fn tables<T>(
    root: &mut Section<'_, '_>,
    key: &'static str,
    one: &str,
    name: &'static str,
    keys: &'static [&'static str],
    mut read: impl FnMut(Section<'_, '_>) -> T,
) -> Vec<T> {
    root.note(key, || Takes::Tables(name));
    let Some(found) = root.value(key) else { return Vec::new() };
    let mut raw = Vec::new();
    let hint = format!("write `{name}` above each {key}");
    let DeValue::Array(items) = found.get_ref() else {
        let message = format!("`{key}` takes a list of tables, not {}", kind(found.get_ref()));
        root.reader.mistakes.add(found.span().into(), message, hint);
        return raw;
    };
    for item in items.iter() {
        let header = item.span().into();
        let DeValue::Table(table) = item.get_ref() else {
            let message = format!("{one} is a table, not {}", kind(item.get_ref()));
            root.reader.mistakes.add(header, message, hint.as_str());
            continue;
        };
        raw.push(read(Section { reader: root.reader, table, header, name, keys }));
    }
    raw
}

fn listener(mut section: Section<'_, '_>, known: &Known) -> RawListener {
    let protocol = protocol(&mut section, known);
    let raw = RawListener {
        header: section.header,
        name: name(&mut section, "a listener", "\"echo\"")
            .and_then(|name| Field::Is(At { value: name.value.into_plain(), span: name.span })),
        listen: section.address("listen"),
        protocol,
        service: section.choice("service", &SERVICES),
        upstream: section.text("upstream", "\"app\""),
        limits: limits(section.section("limits", "[listener.limits]", LIMITS_KEYS)),
        framed: section.section("framed", "[listener.framed]", FRAMED_KEYS).map(framed),
        relay: section.section("relay", "[listener.relay]", RELAY_KEYS).map(relay),
        certificate: section.one_or_more("certificate", "\"local\""),
        tls: section.section("tls", quic::TLS, quic::TLS_KEYS).map(quic::tls),
        routes: tables(&mut section, "route", "a route", quic::ROUTE, quic::ROUTE_KEYS, quic::route),
        http: section.section("http", http::HTTP, http::HTTP_KEYS).map(http::http),
        quic: section.section("quic", quic::QUIC, quic::QUIC_KEYS).map(quic::quic),
        udp: section.section("udp", udp::UDP, udp::UDP_KEYS).map(udp::udp),
        moq: section.section("moq", moq::MOQ, moq::MOQ_KEYS).map(moq::moq),
        wireguard: section
            .section("wireguard", wireguard::WIREGUARD, wireguard::WIREGUARD_KEYS)
            .map(wireguard::wireguard),
        options: section
            .section("options", "[listener.options]", &[])
            .map(|options| At { value: options.reader.free_table(options.table).into(), span: options.header }),
    };
    section.need(&raw.name, "name", "\"echo\"");
    section.need(&raw.listen, "listen", "\"127.0.0.1:7001\"");
    section.need(&raw.protocol, "protocol", "\"framed\"");
    unknown_keys(section);
    raw
}

/// What a service inside a tunnel says beside its address and protocol, which are its own: in the words of a listener.
pub(super) fn inside(section: &mut Section<'_, '_>, route: &'static str) -> RawListener {
    RawListener {
        header: section.header,
        name: Field::Absent,
        listen: Field::Absent,
        protocol: Field::Absent,
        service: section.choice("service", &SERVICES),
        upstream: section.text("upstream", "\"app\""),
        limits: limits(None),
        framed: None,
        relay: None,
        certificate: section.one_or_more("certificate", "\"local\""),
        tls: section.section("tls", quic::TLS, quic::TLS_KEYS).map(quic::tls),
        routes: tables(section, "route", "a route", route, quic::ROUTE_KEYS, quic::route),
        http: section.section("http", http::HTTP, http::HTTP_KEYS).map(http::http),
        quic: None,
        udp: None,
        moq: None,
        wireguard: None,
        options: None,
    }
}

pub(super) fn name(section: &mut Section<'_, '_>, of: &str, example: &str) -> Field<Text> {
    let found = section.text("name", example);
    found.and_then(|At { value, span }| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if (1..=64).contains(&value.text.len()) && value.text.bytes().all(plain) {
            return Field::Is(At { value, span });
        }
        let hint = "write 1 to 64 of the characters A-Z a-z 0-9 _ . - (the name becomes a metric label)";
        section.bad(span, format!("{} cannot be the name of {of}", value.shown()), hint)
    })
}

/// A protocol of this build, or of a program that brings its own.
fn protocol(section: &mut Section<'_, '_>, known: &Known) -> Field<RawProtocol> {
    let built_in = [
        ("framed", RawProtocol::Framed),
        ("relay", RawProtocol::Relay),
        ("http", RawProtocol::Http),
        ("quic", RawProtocol::Quic),
        ("udp", RawProtocol::Udp),
        ("moq", RawProtocol::Moq),
        ("wireguard", RawProtocol::Wireguard),
    ];
    let mut words: Vec<_> = built_in.to_vec();
    words.extend(known.protocols().map(|name| (name, RawProtocol::Custom(name.to_owned()))));
    section.choice("protocol", &words)
}

fn limits(section: Option<Section<'_, '_>>) -> RawLimits {
    let Some(mut section) = section else {
        return RawLimits {
            connections: Field::Absent,
            per_source: Field::Absent,
            half_open: Field::Absent,
            first_message: Field::Absent,
            idle: Field::Absent,
        };
    };
    let raw = RawLimits {
        connections: section.whole("connections", CONNECTIONS),
        per_source: section.whole("per_source", CONNECTIONS),
        half_open: section.whole("half_open", CONNECTIONS),
        first_message: section.duration("first_message", LEAST_TIMEOUT..=DAY),
        idle: section.duration("idle", Duration::ZERO..=DAY),
    };
    unknown_keys(section);
    raw
}

fn framed(mut section: Section<'_, '_>) -> At<RawFramed> {
    let value = RawFramed {
        length_bytes: length_bytes(&mut section),
        byte_order: section.choice("byte_order", &BYTE_ORDERS),
        length_includes_header: section.boolean("length_includes_header"),
        max_message: section.size("max_message", 1..=GIB),
        message_timeout: section.duration("message_timeout", LEAST_TIMEOUT..=DAY),
        outbound: section.size("outbound", 1..=4 * GIB),
        when_slow: section.choice("when_slow", &WHEN_SLOW),
        slow_after: section.duration("slow_after", LEAST_TIMEOUT..=DAY),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

fn relay(mut section: Section<'_, '_>) -> At<RawRelay> {
    let value = RawRelay {
        proxy_in: section.boolean("proxy_in"),
        proxy_out: section.choice("proxy_out", &PROXY_OUT),
        attempts: section.whole("attempts", ATTEMPTS),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

fn length_bytes(section: &mut Section<'_, '_>) -> Field<u8> {
    section.note("length_bytes", || Takes::Numbers(&[1, 2, 4, 8]));
    let found = section.whole("length_bytes", 1..=8);
    found.and_then(|At { value, span }| match value {
        1 => Field::Is(At { value: 1, span }),
        2 => Field::Is(At { value: 2, span }),
        4 => Field::Is(At { value: 4, span }),
        8 => Field::Is(At { value: 8, span }),
        _ => section.bad(span, format!("`length_bytes` cannot be {value}"), "write 1, 2, 4 or 8"),
    })
}

/// Notes every key of a table that it does not have.
pub(super) fn unknown_keys(section: Section<'_, '_>) {
    let Section { reader, table, name, keys, .. } = section;
    for key in table.keys() {
        let word: &str = key.get_ref();
        if keys.contains(&word) {
            continue;
        }
        let homes = || TABLES.iter().filter(|(home, keys)| *home != name && keys.contains(&word));
        // A key that several tables have is most likely meant for the nearest one.
        let near = homes().find(|(home, _)| stem(home) == stem(name));
        let home = near.or_else(|| homes().next()).map(|(home, _)| *home);
        let message = format!("{} is not a key of {}", quoted(word), in_code(name));
        reader.mistakes.add(key.span().into(), message, unknown_key_hint(word, keys, home));
    }
}

/// The first word of a table's name: `listener` of `[listener.limits]`.
fn stem(name: &str) -> &str {
    name.trim_matches(['[', ']']).split('.').next().unwrap_or_default()
}
