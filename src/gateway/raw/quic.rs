//! The shape of `[[certificate]]`, `[listener.tls]`, `[[listener.route]]` and `[listener.quic]` in the file.
use std::ops::RangeInclusive;
use std::time::Duration;

use super::http::{self, RawHttpRoute};
use super::section::{At, Field, Section};
use super::text::Text;
use super::{DAY, name, unknown_keys};
use crate::gateway::config::{Congestion, Retry};
use crate::gateway::report::Span;

pub(crate) const CERTIFICATE: &str = "[[certificate]]";
pub(crate) const TLS: &str = "[listener.tls]";
pub(crate) const ROUTE: &str = "[[listener.route]]";
pub(crate) const QUIC: &str = "[listener.quic]";
pub(crate) const CERTIFICATE_KEYS: &[&str] = &["name", "cert", "key", "generate"];
pub(crate) const TLS_KEYS: &[&str] = &["client_ca", "curves", "keylog", "early_data"];
pub(crate) const ROUTE_KEYS: &[&str] = &[
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
pub(crate) const QUIC_KEYS: &[&str] = &[
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
const SERVICES: [(&str, RouteService); 6] = [
    ("echo", RouteService::Echo),
    ("static", RouteService::Static),
    ("respond", RouteService::Respond),
    ("demo", RouteService::Demo),
    ("moq", RouteService::Moq),
    ("certificate_sha256", RouteService::Fingerprint),
];

/// The word behind `service` of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteService {
    Echo,
    Static,
    Respond,
    Demo,
    Moq,
    Fingerprint,
}

const LEAST_IDLE: Duration = Duration::from_secs(1);
const WINDOW: RangeInclusive<u64> = 16 * 1024..=1 << 30;
const BUFFER: RangeInclusive<u64> = 64 * 1024..=1 << 30;
/// RFC 9000, section 14: no path may carry less; UDP carries no more.
const DATAGRAM: RangeInclusive<u64> = 1_200..=65_000;
const STREAMS: u64 = 100_000;

/// A list of strings; what is no string is noted already.
pub(crate) type Texts = Field<Vec<Field<Text>>>;

/// `[[certificate]]`.
#[derive(Debug)]
pub(crate) struct RawCertificate {
    pub(crate) header: Span,
    pub(crate) name: Field<Text>,
    pub(crate) cert: Field<Text>,
    pub(crate) key: Field<Text>,
    pub(crate) generate: Texts,
}

/// `[listener.tls]`.
#[derive(Debug)]
pub(crate) struct RawTls {
    pub(crate) client_ca: Field<Text>,
    pub(crate) both: RawTlsBoth,
}

/// What `[listener.tls]` and `[upstream.tls]` have in common.
#[derive(Debug)]
pub(crate) struct RawTlsBoth {
    pub(crate) curves: Texts,
    pub(crate) keylog: Field<Text>,
    pub(crate) early_data: Field<bool>,
}

/// `[[listener.route]]`.
#[derive(Debug)]
pub(crate) struct RawRoute {
    pub(crate) header: Span,
    pub(crate) alpn: Field<Text>,
    pub(crate) sni: Field<Text>,
    pub(crate) service: Field<RouteService>,
    pub(crate) upstream: Field<Text>,
    pub(crate) datagrams: Field<Text>,
    pub(crate) http: RawHttpRoute,
}

/// `[listener.quic]`.
#[derive(Debug)]
pub(crate) struct RawQuic {
    pub(crate) idle_timeout: Field<Duration>,
    pub(crate) streams: Field<u64>,
    pub(crate) uni_streams: Field<u64>,
    pub(crate) stream_window: Field<u64>,
    pub(crate) connection_window: Field<u64>,
    pub(crate) congestion: Field<Congestion>,
    pub(crate) retry: Field<Retry>,
    pub(crate) secret_file: Field<Text>,
    pub(crate) migration: Field<bool>,
    pub(crate) max_datagram: Field<u64>,
    pub(crate) mtu_discovery: Field<bool>,
    pub(crate) gso: Field<bool>,
    pub(crate) steer: Field<bool>,
    pub(crate) socket_buffer: Field<u64>,
    pub(crate) qlog: Field<Text>,
}

pub(crate) fn certificate(mut section: Section<'_, '_>) -> RawCertificate {
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

pub(crate) fn tls_both(section: &mut Section<'_, '_>) -> RawTlsBoth {
    RawTlsBoth {
        curves: section.texts("curves", "[\"X25519\", \"P-256\"]"),
        keylog: section.text("keylog", "\"keys.log\""),
        early_data: section.boolean("early_data"),
    }
}

pub(crate) fn tls(mut section: Section<'_, '_>) -> At<RawTls> {
    let value = RawTls { client_ca: section.text("client_ca", "\"clients.pem\""), both: tls_both(&mut section) };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

pub(crate) fn route(mut section: Section<'_, '_>) -> RawRoute {
    let raw = RawRoute {
        header: section.header,
        alpn: section.text("alpn", "\"echo\""),
        sni: section.text("sni", "\"app.example\""),
        service: section.choice("service", &SERVICES),
        upstream: section.text("upstream", "\"app\""),
        datagrams: section.text("datagrams", "\"app\""),
        http: http::route(&mut section),
    };
    unknown_keys(section);
    raw
}

pub(crate) fn quic(mut section: Section<'_, '_>) -> At<RawQuic> {
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
