//! The shape of `[listener.moq]` in the file.
use std::ops::RangeInclusive;
use std::time::Duration;

use super::config::MoqWhenSlow;
use super::raw::{DAY, LEAST_TIMEOUT, tables, unknown_keys};
use super::raw_quic::Texts;
use super::raw_section::{At, Field, Section};
use super::raw_text::Text;
use super::report::Span;

pub(super) const MOQ: &str = "[listener.moq]";
pub(super) const SCOPE: &str = "[[listener.moq.scope]]";
pub(super) const TOKEN: &str = "[[listener.moq.token]]";
pub(super) const MOQ_KEYS: &[&str] = &[
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
pub(super) const SCOPE_KEYS: &[&str] = &["path", "authority"];
pub(super) const TOKEN_KEYS: &[&str] = &["token", "publish", "subscribe", "expires"];

const WHEN_SLOW: [(&str, MoqWhenSlow); 2] = [("skip", MoqWhenSlow::Skip), ("end", MoqWhenSlow::End)];
const CACHE: RangeInclusive<u64> = 64 * 1024..=1 << 34;
const MILLION: u64 = 1_000_000;

/// `[listener.moq]`.
#[derive(Debug)]
pub(super) struct RawMoq {
    pub(super) cache: Field<u64>,
    pub(super) cache_groups: Field<u64>,
    pub(super) cache_age: Field<Duration>,
    pub(super) linger: Field<Duration>,
    pub(super) rendezvous: Field<Duration>,
    pub(super) namespaces: Field<u64>,
    pub(super) tracks: Field<u64>,
    pub(super) requests: Field<u64>,
    pub(super) when_slow: Field<MoqWhenSlow>,
    pub(super) scopes: Vec<RawScope>,
    pub(super) tokens: Vec<RawToken>,
}

/// `[[listener.moq.scope]]`.
#[derive(Debug)]
pub(super) struct RawScope {
    pub(super) header: Span,
    pub(super) path: Field<Text>,
    pub(super) authority: Field<Text>,
}

/// `[[listener.moq.token]]`.
#[derive(Debug)]
pub(super) struct RawToken {
    pub(super) header: Span,
    pub(super) token: Field<Text>,
    pub(super) publish: Texts,
    pub(super) subscribe: Texts,
    pub(super) expires: Field<u64>,
}

pub(super) fn moq(mut section: Section<'_, '_>) -> At<RawMoq> {
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
