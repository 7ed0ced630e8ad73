//! The shape of what a route of HTTP demands of requests, and of what it changes in them.
use std::time::Duration;

use super::quic::Texts;
use super::section::{Field, Section};
use super::text::Text;
use super::{DAY, LEAST_TIMEOUT};
use crate::gateway::report::Span;

/// Who may pass, how often, and with which fields.
#[derive(Debug)]
pub(crate) struct RawGuards {
    pub(crate) rewrite: Field<Text>,
    /// Of requests: set, add, remove; then of answers.
    pub(crate) edits: [(&'static str, Texts); 6],
    pub(crate) rate: Field<u64>,
    pub(crate) rate_per: Field<Duration>,
    pub(crate) rate_burst: Field<u64>,
    pub(crate) rate_by_route: Field<bool>,
    pub(crate) basic_auth: Field<Text>,
    pub(crate) jwt_algorithm: Field<Text>,
    pub(crate) jwt_key: Field<Text>,
    pub(crate) jwt_key_file: Field<Text>,
    pub(crate) jwt_issuer: Field<Text>,
    pub(crate) jwt_audience: Field<Text>,
}

const BY: [(&str, bool); 2] = [("source", false), ("route", true)];

pub(crate) fn guards(section: &mut Section<'_, '_>) -> RawGuards {
    let lines = ["request_set", "request_add", "response_set", "response_add"];
    let [request_set, request_add, response_set, response_add] =
        lines.map(|key| (key, section.one_or_more(key, "\"x-name: value\"")));
    let names = ["request_remove", "response_remove"];
    let [request_remove, response_remove] = names.map(|key| (key, section.one_or_more(key, "\"x-name\"")));
    RawGuards {
        rewrite: section.text("rewrite", "\"/v2\""),
        edits: [request_set, request_add, request_remove, response_set, response_add, response_remove],
        rate: section.whole("rate", 1..=1_000_000),
        rate_per: section.duration("rate_per", LEAST_TIMEOUT..=DAY),
        rate_burst: section.whole("rate_burst", 1..=1_000_000),
        rate_by_route: section.choice("rate_by", &BY),
        basic_auth: section.text("basic_auth", "\"users.htpasswd\""),
        jwt_algorithm: section.text("jwt_algorithm", "\"ES256\""),
        jwt_key: section.text("jwt_key", "\"${JWT_KEY}\""),
        jwt_key_file: section.text("jwt_key_file", "\"tokens.pem\""),
        jwt_issuer: section.text("jwt_issuer", "\"https://accounts.example\""),
        jwt_audience: section.text("jwt_audience", "\"app\""),
    }
}

impl RawGuards {
    /// Those of its keys that are there, with their places.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, Span)> {
        let texts = [
            (&self.rewrite, "rewrite"),
            (&self.basic_auth, "basic_auth"),
            (&self.jwt_algorithm, "jwt_algorithm"),
            (&self.jwt_key, "jwt_key"),
            (&self.jwt_key_file, "jwt_key_file"),
            (&self.jwt_issuer, "jwt_issuer"),
            (&self.jwt_audience, "jwt_audience"),
        ];
        let texts = texts.map(|(field, key)| (key, span(field)));
        let numbers = [("rate", span(&self.rate)), ("rate_burst", span(&self.rate_burst))];
        let others = [("rate_per", span(&self.rate_per)), ("rate_by", span(&self.rate_by_route))];
        let edits = self.edits.iter().map(|(key, field)| (*key, span(field)));
        texts.into_iter().chain(numbers).chain(others).chain(edits).filter_map(|(key, span)| Some((key, span?)))
    }
}

pub(crate) fn span<T>(field: &Field<T>) -> Option<Span> {
    match field {
        Field::Is(at) => Some(at.span),
        Field::Absent | Field::Bad => None,
    }
}
