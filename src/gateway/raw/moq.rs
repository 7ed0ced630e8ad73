//! The shape of `[listener.moq]` in the file.
use std::ops::RangeInclusive;
use std::time::Duration;

use super::quic::Texts;
use super::section::{At, Field, Section};
use super::text::Text;
use super::{DAY, LEAST_TIMEOUT, tables, unknown_keys};
use crate::gateway::config::MoqWhenSlow;
use crate::gateway::report::Span;

pub(crate) const MOQ: &str = "[listener.moq]";
pub(crate) const SCOPE: &str = "[[listener.moq.scope]]";
pub(crate) const TOKEN: &str = "[[listener.moq.token]]";
pub(crate) const MOQ_KEYS: &[&str] = &[
    "cache",
    "cache_groups",
    "cache_age",
    "linger",
    "rendezvous",
    "namespaces",
    "tracks",
    "requests",
    "when_slow",
    "scope",
    "token",
];
pub(crate) const SCOPE_KEYS: &[&str] = &["path", "authority", "upstream", "upstream_path", "upstream_token"];
pub(crate) const TOKEN_KEYS: &[&str] = &["token", "publish", "subscribe", "expires"];

const WHEN_SLOW: [(&str, MoqWhenSlow); 2] = [("skip", MoqWhenSlow::Skip), ("end", MoqWhenSlow::End)];
const CACHE: RangeInclusive<u64> = 64 * 1024..=1 << 34;
const MILLION: u64 = 1_000_000;

/// `[listener.moq]`.
#[derive(Debug)]
pub(crate) struct RawMoq {
    pub(crate) cache: Field<u64>,
    pub(crate) cache_groups: Field<u64>,
    pub(crate) cache_age: Field<Duration>,
    pub(crate) linger: Field<Duration>,
    pub(crate) rendezvous: Field<Duration>,
    pub(crate) namespaces: Field<u64>,
    pub(crate) tracks: Field<u64>,
    pub(crate) requests: Field<u64>,
    pub(crate) when_slow: Field<MoqWhenSlow>,
    pub(crate) scopes: Vec<RawScope>,
    pub(crate) tokens: Vec<RawToken>,
}

/// `[[listener.moq.scope]]`.
#[derive(Debug)]
pub(crate) struct RawScope {
    pub(crate) header: Span,
    pub(crate) path: Field<Text>,
    pub(crate) authority: Field<Text>,
    pub(crate) upstream: Field<Text>,
    pub(crate) upstream_path: Field<Text>,
    pub(crate) upstream_token: Field<Text>,
}

/// `[[listener.moq.token]]`.
#[derive(Debug)]
pub(crate) struct RawToken {
    pub(crate) header: Span,
    pub(crate) token: Field<Text>,
    pub(crate) publish: Texts,
    pub(crate) subscribe: Texts,
    pub(crate) expires: Field<u64>,
}

pub(crate) fn moq(mut section: Section<'_, '_>) -> At<RawMoq> {
    let span = section.header;
    let value = RawMoq {
        cache: section.size("cache", CACHE),
        cache_groups: section.whole("cache_groups", 1..=MILLION),
        cache_age: section.duration("cache_age", LEAST_TIMEOUT..=DAY),
        linger: section.duration("linger", LEAST_TIMEOUT..=DAY),
        rendezvous: section.duration("rendezvous", Duration::ZERO..=DAY),
        namespaces: section.whole("namespaces", 1..=MILLION),
        tracks: section.whole("tracks", 1..=MILLION),
        requests: section.whole("requests", 1..=100_000),
        when_slow: section.choice("when_slow", &WHEN_SLOW),
        scopes: tables(&mut section, "scope", "a scope", SCOPE, SCOPE_KEYS, scope),
        tokens: tables(&mut section, "token", "a token", TOKEN, TOKEN_KEYS, token),
    };
    unknown_keys(section);
    At { value, span }
}

fn scope(mut section: Section<'_, '_>) -> RawScope {
    let raw = RawScope {
        header: section.header,
        path: section.text("path", "\"/live\""),
        authority: section.text("authority", "\"live.example\""),
        upstream: section.text("upstream", "\"origin\""),
        upstream_path: section.text("upstream_path", "\"/live\""),
        upstream_token: section.text("upstream_token", "\"${MOQ_TOKEN}\""),
    };
    unknown_keys(section);
    raw
}

fn token(mut section: Section<'_, '_>) -> RawToken {
    let raw = RawToken {
        header: section.header,
        token: section.text("token", "\"${MOQ_TOKEN}\""),
        publish: section.one_or_more("publish", "\"live\""),
        subscribe: section.one_or_more("subscribe", "\"live\""),
        expires: section.whole("expires", 1..=1 << 40),
    };
    section.need(&raw.token, "token", "\"${MOQ_TOKEN}\"");
    unknown_keys(section);
    raw
}
