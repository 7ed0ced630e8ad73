//! The shape of `[[certificate]]`, `[listener.tls]`, `[[listener.route]]` and `[listener.quic]` in the file.
use std::ops::RangeInclusive;
use std::time::Duration;

use super::config::{Congestion, Retry};
use super::raw::{DAY, name, unknown_keys};
use super::raw_http::{self, RawHttpRoute};
use super::raw_section::{At, Field, Section};
use super::raw_text::Text;
use super::report::Span;

pub(super) const CERTIFICATE: &str = "[[certificate]]";
pub(super) const TLS: &str = "[listener.tls]";
pub(super) const ROUTE: &str = "[[listener.route]]";
pub(super) const QUIC: &str = "[listener.quic]";
pub(super) const CERTIFICATE_KEYS: &[&str] = &["name", "cert", "key", "generate"];
pub(super) const TLS_KEYS: &[&str] = &["client_ca", "curves", "keylog", "early_data"];
pub(super) const ROUTE_KEYS: &[&str] = &[
    "alpn",
    "sni",
    "service",
    "upstream",
    "datagrams",
    "name",
    "host",
    "path",
    "path_exact",
    "path_regex",
    "method",
    "header",
    "redirect",
    "status",
    "body",
    "root",
    "index",
    "strip_prefix",
    "timeout",
    "retries",
    "max_body",
    "webtransport",
    "protocols",
    "origins",
    "rewrite",
    "request_set",
    "request_add",
    "request_remove",
    "response_set",
    "response_add",
    "response_remove",
    "rate",
    "rate_per",
    "rate_burst",
    "rate_by",
    "basic_auth",
    "jwt_algorithm",
    "jwt_key",
    "jwt_key_file",
    "jwt_issuer",
    "jwt_audience",
];
pub(super) const QUIC_KEYS: &[&str] = &[
    "idle_timeout",
    "streams",
    "uni_streams",
    "stream_window",
    "connection_window",
    "congestion",
    "retry",
    "secret_file",
    "migration",
    "max_datagram",
    "mtu_discovery",
    "gso",
    "steer",
    "socket_buffer",
    "qlog",
];

const CONGESTION: [(&str, Congestion); 2] = [("cubic", Congestion::Cubic), ("bbr2", Congestion::Bbr2)];
const RETRY: [(&str, Retry); 3] = [("auto", Retry::Auto), ("always", Retry::Always), ("never", Retry::Never)];
const SERVICES: [(&str, RouteService); 5] = [
    ("echo", RouteService::Echo),
    ("static", RouteService::Static),
    ("respond", RouteService::Respond),
    ("demo", RouteService::Demo),
    ("moq", RouteService::Moq),
];

/// The word behind `service` of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteService {
    Echo,
    Static,
    Respond,
    Demo,
    Moq,
}

const LEAST_IDLE: Duration = Duration::from_secs(1);
const WINDOW: RangeInclusive<u64> = 16 * 1024..=1 << 30;
const BUFFER: RangeInclusive<u64> = 64 * 1024..=1 << 30;
/// RFC 9000, section 14: no path may carry less; UDP carries no more.
const DATAGRAM: RangeInclusive<u64> = 1_200..=65_000;
const STREAMS: u64 = 100_000;

/// A list of strings; what is no string is noted already.
pub(super) type Texts = Field<Vec<Field<Text>>>;

/// `[[certificate]]`.
#[derive(Debug)]
pub(super) struct RawCertificate {
    pub(super) header: Span,
    pub(super) name: Field<Text>,
    pub(super) cert: Field<Text>,
    pub(super) key: Field<Text>,
    pub(super) generate: Texts,
}

/// `[listener.tls]`.
#[derive(Debug)]
pub(super) struct RawTls {
    pub(super) client_ca: Field<Text>,
    pub(super) both: RawTlsBoth,
}

/// What `[listener.tls]` and `[upstream.tls]` have in common.
#[derive(Debug)]
pub(super) struct RawTlsBoth {
    pub(super) curves: Texts,
    pub(super) keylog: Field<Text>,
    pub(super) early_data: Field<bool>,
}

/// `[[listener.route]]`.
#[derive(Debug)]
pub(super) struct RawRoute {
    pub(super) header: Span,
    pub(super) alpn: Field<Text>,
    pub(super) sni: Field<Text>,
    pub(super) service: Field<RouteService>,
    pub(super) upstream: Field<Text>,
    pub(super) datagrams: Field<Text>,
    pub(super) http: RawHttpRoute,
}

/// `[listener.quic]`.
#[derive(Debug)]
pub(super) struct RawQuic {
    pub(super) idle_timeout: Field<Duration>,
    pub(super) streams: Field<u64>,
    pub(super) uni_streams: Field<u64>,
    pub(super) stream_window: Field<u64>,
    pub(super) connection_window: Field<u64>,
    pub(super) congestion: Field<Congestion>,
    pub(super) retry: Field<Retry>,
    pub(super) secret_file: Field<Text>,
    pub(super) migration: Field<bool>,
    pub(super) max_datagram: Field<u64>,
    pub(super) mtu_discovery: Field<bool>,
    pub(super) gso: Field<bool>,
    pub(super) steer: Field<bool>,
    pub(super) socket_buffer: Field<u64>,
    pub(super) qlog: Field<Text>,
}

pub(super) fn certificate(mut section: Section<'_, '_>) -> RawCertificate {
    let raw = RawCertificate {
        header: section.header,
        name: name(&mut section, "a certificate", "\"local\""),
        cert: section.text("cert", "\"cert.pem\""),
        key: section.text("key", "\"cert.key\""),
        generate: section.texts("generate", "[\"localhost\", \"127.0.0.1\"]"),
    };
    section.need(&raw.name, "name", "\"local\"");
    unknown_keys(section);
    raw
}

pub(super) fn tls_both(section: &mut Section<'_, '_>) -> RawTlsBoth {
    RawTlsBoth {
        curves: section.texts("curves", "[\"X25519\", \"P-256\"]"),
        keylog: section.text("keylog", "\"keys.log\""),
        early_data: section.boolean("early_data"),
    }
}

pub(super) fn tls(mut section: Section<'_, '_>) -> At<RawTls> {
    let value = RawTls { client_ca: section.text("client_ca", "\"clients.pem\""), both: tls_both(&mut section) };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

pub(super) fn route(mut section: Section<'_, '_>) -> RawRoute {
    let raw = RawRoute {
        header: section.header,
        alpn: section.text("alpn", "\"echo\""),
        sni: section.text("sni", "\"app.example\""),
        service: section.choice("service", &SERVICES),
        upstream: section.text("upstream", "\"app\""),
        datagrams: section.text("datagrams", "\"app\""),
        http: raw_http::route(&mut section),
    };
    unknown_keys(section);
    raw
}

pub(super) fn quic(mut section: Section<'_, '_>) -> At<RawQuic> {
    let value = RawQuic {
        idle_timeout: section.duration("idle_timeout", LEAST_IDLE..=DAY),
        streams: section.whole("streams", 1..=STREAMS),
        uni_streams: section.whole("uni_streams", 0..=STREAMS),
        stream_window: section.size("stream_window", WINDOW),
        connection_window: section.size("connection_window", WINDOW),
        congestion: section.choice("congestion", &CONGESTION),
        retry: section.choice("retry", &RETRY),
        secret_file: section.text("secret_file", "\"quic.secret\""),
        migration: section.boolean("migration"),
        max_datagram: section.size("max_datagram", DATAGRAM),
        mtu_discovery: section.boolean("mtu_discovery"),
        gso: section.boolean("gso"),
        steer: section.boolean("steer"),
        socket_buffer: section.size("socket_buffer", BUFFER),
        qlog: section.text("qlog", "\"qlog\""),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}
