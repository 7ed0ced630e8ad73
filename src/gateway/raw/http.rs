//! The shape of `[listener.http]`, of `[upstream.http]`, and of what `[[listener.route]]` says for HTTP.
use std::ops::RangeInclusive;
use std::time::Duration;

use super::guards::{RawGuards, guards, span};
use super::quic::Texts;
use super::section::{At, Field, Section};
use super::text::Text;
use super::{DAY, LEAST_TIMEOUT, unknown_keys};
use crate::gateway::config::HttpVersion;

pub(crate) const HTTP: &str = "[listener.http]";
pub(crate) const UPSTREAM_HTTP: &str = "[upstream.http]";
pub(crate) const HTTP_KEYS: &[&str] = &[
    "head_bytes",
    "head_fields",
    "head_timeout",
    "body_timeout",
    "send_timeout",
    "requests",
    "streams",
    "trusted_proxies",
    "access_log",
    "access_fields",
    "http3",
];
pub(crate) const UPSTREAM_HTTP_KEYS: &[&str] = &["version", "idle", "idle_connections", "pending"];

const KIB: u64 = 1 << 10;
const TIMES: RangeInclusive<Duration> = LEAST_TIMEOUT..=DAY;
const VERSIONS: [(&str, HttpVersion); 3] =
    [("1.1", HttpVersion::One), ("2", HttpVersion::Two), ("auto", HttpVersion::Agreed)];

/// `[listener.http]`.
#[derive(Debug)]
pub(crate) struct RawHttp {
    pub(crate) head_bytes: Field<u64>,
    pub(crate) head_fields: Field<u64>,
    pub(crate) head_timeout: Field<Duration>,
    pub(crate) body_timeout: Field<Duration>,
    pub(crate) send_timeout: Field<Duration>,
    pub(crate) requests: Field<u64>,
    pub(crate) streams: Field<u64>,
    pub(crate) trusted_proxies: Texts,
    pub(crate) access_log: Field<bool>,
    pub(crate) access_fields: Texts,
    pub(crate) http3: Field<bool>,
}

/// `[upstream.http]`.
#[derive(Debug)]
pub(crate) struct RawUpstreamHttp {
    pub(crate) version: Field<HttpVersion>,
    pub(crate) idle: Field<Duration>,
    pub(crate) idle_connections: Field<u64>,
    pub(crate) pending: Field<u64>,
}

/// What a route of HTTP says.
#[derive(Debug)]
pub(crate) struct RawHttpRoute {
    pub(crate) name: Field<Text>,
    pub(crate) host: Field<Text>,
    pub(crate) path: Field<Text>,
    pub(crate) path_exact: Field<Text>,
    pub(crate) path_regex: Field<Text>,
    pub(crate) method: Texts,
    pub(crate) header: Texts,
    pub(crate) redirect: Field<Text>,
    pub(crate) status: Field<u64>,
    pub(crate) body: Field<Text>,
    pub(crate) root: Field<Text>,
    pub(crate) index: Field<Text>,
    pub(crate) strip_prefix: Field<bool>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) retries: Field<u64>,
    pub(crate) max_body: Field<u64>,
    pub(crate) webtransport: Field<bool>,
    pub(crate) protocols: Texts,
    pub(crate) origins: Texts,
    pub(crate) guards: RawGuards,
}

pub(crate) fn http(mut section: Section<'_, '_>) -> At<RawHttp> {
    let value = RawHttp {
        head_bytes: section.size("head_bytes", KIB..=1024 * KIB),
        head_fields: section.whole("head_fields", 1..=10_000),
        head_timeout: section.duration("head_timeout", TIMES),
        body_timeout: section.duration("body_timeout", TIMES),
        send_timeout: section.duration("send_timeout", TIMES),
        requests: section.whole("requests", 0..=1_000_000_000),
        streams: section.whole("streams", 1..=10_000),
        trusted_proxies: section.texts("trusted_proxies", "[\"10.0.0.0/8\"]"),
        access_log: section.boolean("access_log"),
        access_fields: section.one_or_more("access_fields", "\"status\""),
        http3: section.boolean("http3"),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

pub(crate) fn upstream_http(mut section: Section<'_, '_>) -> At<RawUpstreamHttp> {
    let span = section.header;
    let value = RawUpstreamHttp {
        version: section.choice("version", &VERSIONS),
        idle: section.duration("idle", TIMES),
        idle_connections: section.whole("idle_connections", 0..=100_000),
        pending: section.whole("pending", 0..=1_000_000),
    };
    unknown_keys(section);
    At { value, span }
}

pub(crate) fn route(section: &mut Section<'_, '_>) -> RawHttpRoute {
    RawHttpRoute {
        name: super::name(section, "a route", "\"api\""),
        host: section.text("host", "\"app.example\""),
        path: section.text("path", "\"/\""),
        path_exact: section.text("path_exact", "\"/favicon.ico\""),
        path_regex: section.text("path_regex", "\"^/v[0-9]+/\""),
        method: section.one_or_more("method", "\"GET\""),
        header: section.one_or_more("header", "\"x-version: 2\""),
        redirect: section.text("redirect", "\"https://{host}{path}{query}\""),
        status: section.whole("status", 200..=599),
        body: section.text("body", "\"gone\""),
        root: section.text("root", "\"public\""),
        index: section.text("index", "\"index.html\""),
        strip_prefix: section.boolean("strip_prefix"),
        timeout: section.duration("timeout", TIMES),
        retries: section.whole("retries", 0..=10),
        max_body: section.size("max_body", 0..=1 << 50),
        webtransport: section.boolean("webtransport"),
        protocols: section.one_or_more("protocols", "\"moq-00\""),
        origins: section.one_or_more("origins", "\"https://app.example\""),
        guards: guards(section),
    }
}

impl RawHttpRoute {
    /// The first of its keys that is there, and whether each is.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, crate::gateway::report::Span)> {
        let texts = [
            (&self.name, "name"),
            (&self.host, "host"),
            (&self.path, "path"),
            (&self.path_exact, "path_exact"),
            (&self.path_regex, "path_regex"),
            (&self.redirect, "redirect"),
            (&self.body, "body"),
            (&self.root, "root"),
            (&self.index, "index"),
        ];
        let lists = [
            (&self.method, "method"),
            (&self.header, "header"),
            (&self.protocols, "protocols"),
            (&self.origins, "origins"),
        ];
        let numbers = [(&self.status, "status"), (&self.retries, "retries"), (&self.max_body, "max_body")];
        let texts = texts.map(|(field, key)| (key, span(field)));
        let lists = lists.map(|(field, key)| (key, span(field)));
        let numbers = numbers.map(|(field, key)| (key, span(field)));
        let others = [
            ("strip_prefix", span(&self.strip_prefix)),
            ("timeout", span(&self.timeout)),
            ("webtransport", span(&self.webtransport)),
        ];
        let all = texts.into_iter().chain(lists).chain(numbers).chain(others);
        all.filter_map(|(key, span)| Some((key, span?))).chain(self.guards.given())
    }
}
