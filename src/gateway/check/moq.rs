//! Judges relays of Media over QUIC.
use std::time::Duration;

use super::listener::{copied, count};
use super::quic::{Around, is, moq_listener};
use super::upstream::Kind;
use crate::gateway::config::{Moq, MoqOrigin, MoqScope, MoqToken, Quic};
use crate::gateway::raw::RawListener;
use crate::gateway::raw::moq::{RawScope, RawToken};
use crate::gateway::raw::quic::Texts;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::Text;
use crate::gateway::report::{Mistakes, Span};

/// The most fields of a namespace.
const FIELDS: usize = 32;

/// A listener that is a relay.
pub(super) fn listener(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Quic> {
    if !cfg!(feature = "moq") {
        mistakes.add(raw.header, "protocol `moq` needs a build with the feature `moq`", "take the listener out");
        return None;
    }
    let moq = moq(raw, around, mistakes);
    moq_listener(raw, moq, around, mistakes)
}

fn moq(listener: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Moq {
    let default = Moq::default();
    let Some(raw) = listener.moq.as_ref().map(|at| &at.value) else { return default };
    let mut seen: Vec<(_, Span)> = Vec::new();
    let mut scopes = Vec::new();
    for scope in &raw.scopes {
        if let Some(path) = is(&scope.path).filter(|path| !path.value.text.starts_with('/')) {
            mistakes.add(path.span, "a path begins with `/`", "write `path = \"/live\"`");
        }
        let text = |field| is(field).map(|at: &At<Text>| at.value.text.clone());
        let key = (text(&scope.path), text(&scope.authority));
        if let Some((_, first)) = seen.iter().find(|(known, _)| *known == key) {
            let hint = "give each scope its own path or authority";
            mistakes.add_pair(scope.header, "this scope is there already", hint, *first, "it is here");
        }
        seen.push((key.clone(), scope.header));
        let origin = origin(scope, key.0.as_ref(), listener, around, mistakes);
        scopes.push(MoqScope::new(key.0, key.1, origin));
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

/// Where the tracks of a scope come from.
fn origin(
    raw: &RawScope,
    path: Option<&String>,
    listener: &RawListener,
    around: &Around<'_>,
    mistakes: &mut Mistakes,
) -> Option<MoqOrigin> {
    let text = |field| is(field).map(|at: &At<Text>| at.value.text.clone());
    let Some(upstream) = is(&raw.upstream) else {
        for (key, field) in [("upstream_path", &raw.upstream_path), ("upstream_token", &raw.upstream_token)] {
            if let Some(at) = is(field) {
                let hint = "add `upstream = \"origin\"`, or take it out";
                mistakes.add(at.span, format!("`{key}` says something of an upstream, and there is none"), hint);
            }
        }
        return None;
    };
    around.upstreams.need(upstream, mistakes);
    around.upstreams.no_circle_over_quic(&upstream.value.text, &listener.listen, mistakes);
    if around.upstreams.kind(&upstream.value.text).is_some_and(|kind| kind != Kind::Quic) {
        let hint = "name an upstream whose servers begin with `quic://`, with `alpn = \"moqt-20\"` in its TLS";
        mistakes.add(upstream.span, "the origin of a relay of Media over QUIC is reached over QUIC", hint);
    }
    if let Some(at) = is(&raw.upstream_path).filter(|at| !at.value.text.starts_with('/')) {
        mistakes.add(at.span, "a path begins with `/`", "write `upstream_path = \"/live\"`");
    }
    let path = text(&raw.upstream_path).or_else(|| path.cloned());
    Some(MoqOrigin::new(upstream.value.text.clone(), path, text(&raw.upstream_token)))
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
