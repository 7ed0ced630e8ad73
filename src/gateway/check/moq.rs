//! Judges relays of Media over QUIC.
use std::time::Duration;

use super::listener::{copied, count};
use super::quic::{Around, is, moq_listener};
use crate::gateway::config::{Moq, MoqScope, MoqToken, Quic};
use crate::gateway::raw::RawListener;
use crate::gateway::raw::moq::{RawMoq, RawToken};
use crate::gateway::raw::quic::Texts;
use crate::gateway::raw::section::Field;
use crate::gateway::report::{Mistakes, Span};

/// The most fields of a namespace.
const FIELDS: usize = 32;

/// A listener that is a relay.
pub(super) fn listener(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Quic> {
    if !cfg!(feature = "moq") {
        mistakes.add(raw.header, "protocol `moq` needs a build with the feature `moq`", "take the listener out");
        return None;
    }
    let moq = moq(raw.moq.as_ref().map(|at| &at.value), mistakes);
    moq_listener(raw, moq, around, mistakes)
}

fn moq(raw: Option<&RawMoq>, mistakes: &mut Mistakes) -> Moq {
    let default = Moq::default();
    let Some(raw) = raw else { return default };
    let mut seen: Vec<(_, Span)> = Vec::new();
    let mut scopes = Vec::new();
    for scope in &raw.scopes {
        if let Some(path) = is(&scope.path).filter(|path| !path.value.text.starts_with('/')) {
            mistakes.add(path.span, "a path begins with `/`", "write `path = \"/live\"`");
        }
        let text = |field| {
            is(field)
                .map(|at: &crate::gateway::raw::section::At<crate::gateway::raw::text::Text>| at.value.text.clone())
        };
        let key = (text(&scope.path), text(&scope.authority));
        if let Some((_, first)) = seen.iter().find(|(known, _)| *known == key) {
            let hint = "give each scope its own path or authority";
            mistakes.add_pair(scope.header, "this scope is there already", hint, *first, "it is here");
        }
        seen.push((key.clone(), scope.header));
        scopes.push(MoqScope::new(key.0, key.1));
    }
    let tokens = raw.tokens.iter().filter_map(|token| self::token(token, mistakes)).collect();
    Moq {
        scopes: if scopes.is_empty() { default.scopes } else { scopes },
        cache: count(&raw.cache, default.cache),
        cache_groups: count(&raw.cache_groups, default.cache_groups),
        cache_age: copied(&raw.cache_age, default.cache_age),
        linger: copied(&raw.linger, default.linger),
        rendezvous: copied(&raw.rendezvous, default.rendezvous),
        namespaces: count(&raw.namespaces, default.namespaces),
        tracks: count(&raw.tracks, default.tracks),
        requests: count(&raw.requests, default.requests),
        when_slow: copied(&raw.when_slow, default.when_slow),
        tokens,
    }
}

fn token(raw: &RawToken, mistakes: &mut Mistakes) -> Option<MoqToken> {
    let (publish, subscribe) = (prefixes(&raw.publish, mistakes), prefixes(&raw.subscribe, mistakes));
    if matches!((&raw.publish, &raw.subscribe), (Field::Absent, Field::Absent)) {
        let hint = "add `publish = \"live\"` or `subscribe = \"\"`, which means everything";
        mistakes.add(raw.header, "a `[[listener.moq.token]]` grants nothing", hint);
    }
    let token = is(&raw.token)?;
    if token.value.text.is_empty() {
        mistakes.add(token.span, "a token is empty", "write one that cannot be guessed");
    }
    let expires = is(&raw.expires).map(|at| Duration::from_secs(at.value));
    Some(MoqToken::new(token.value.text.clone(), publish, subscribe, expires))
}

/// Namespaces as people write them: fields joined by `/`.
fn prefixes(texts: &Texts, mistakes: &mut Mistakes) -> Vec<String> {
    let mut found = Vec::new();
    for at in is(texts).into_iter().flat_map(|list| list.value.iter().filter_map(is)) {
        let text = &at.value.text;
        let fields = text.split('/').count();
        if !text.is_empty() && (text.split('/').any(str::is_empty) || fields > FIELDS) {
            let hint = "write its fields with `/` between them, such as \"live/studio\"";
            mistakes.add(at.span, format!("{} is not a namespace", at.value.shown()), hint);
        }
        found.push(text.clone());
    }
    found
}
