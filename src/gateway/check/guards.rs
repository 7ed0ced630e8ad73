//! Judges what a route of HTTP demands of requests and changes in them, and turns it into what carries it out.
use std::collections::hash_map::RandomState;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::listener::{copied, small};
use super::quic::is;
use crate::gateway::config::{HttpEdits, HttpGuards, HttpPath, HttpRate, HttpTokens};
use crate::gateway::raw::guards::RawGuards;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::report::Mistakes;
use crate::memory::Secret;
use crate::transports::http::codec_edit::{Edits, Rewrite, editable, editable_line};
use crate::transports::http::state_routes::{PathRule, is_plain};
use crate::transports::http::{Guards, Limit, Tokens, Users, users};
use crate::transports::kit::limiter::Rate;

pub(super) fn edits(raw: &RawGuards, mistakes: &mut Mistakes) -> HttpEdits {
    let mut lists = raw.edits.iter().map(|(key, list)| {
        let lines = is(list).into_iter().flat_map(|list| list.value.iter().filter_map(is));
        let mut good = Vec::new();
        for At { value, span } in lines {
            let (fits, hint) = if key.ends_with("remove") {
                (editable(&value.text).is_some(), "write the name of a field, such as \"x-powered-by\"")
            } else {
                (editable_line(&value.text).is_some(), "write a name and a value, such as \"x-frame-options: DENY\"")
            };
            if !fits {
                mistakes.add(*span, format!("{} is not a header that a route may change", value.shown()), hint);
            }
            good.push(value.text.clone());
        }
        good
    });
    let mut next = || lists.next().unwrap_or_default();
    HttpEdits {
        request_set: next(),
        request_add: next(),
        request_remove: next(),
        response_set: next(),
        response_add: next(),
        response_remove: next(),
    }
}

/// What becomes of the path, if it is not only shortened.
pub(super) fn rewrite(raw: &RawGuards, path: &HttpPath, strips: bool, mistakes: &mut Mistakes) -> Option<String> {
    let At { value, span } = is(&raw.rewrite)?;
    if strips {
        mistakes.add(*span, "`rewrite` and `strip_prefix` exclude each other", "take one of them out");
    }
    let plain = |text: &str| is_plain(text) && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    if !matches!(path, HttpPath::Pattern(_)) && !plain(&value.text) {
        let hint = "write a path as servers get it: from the first `/`, without `..`, `?` and blanks";
        mistakes.add(*span, format!("{} is not a path", value.shown()), hint);
    }
    Some(value.text.clone())
}

pub(super) fn guards(raw: &RawGuards, folder: &Path, mistakes: &mut Mistakes) -> HttpGuards {
    if let (Field::Absent, Some((key, span))) = (&raw.rate, raw.given().find(|(key, _)| key.starts_with("rate_"))) {
        mistakes.add(span, format!("`{key}` without `rate`"), "add `rate = 100`, requests in `rate_per`");
    }
    let rate = is(&raw.rate).map(|rate| HttpRate {
        count: u32::try_from(rate.value).unwrap_or(u32::MAX),
        per: copied(&raw.rate_per, Duration::from_secs(1)),
        burst: small(&raw.rate_burst, u32::try_from(rate.value).unwrap_or(u32::MAX)),
        by_route: copied(&raw.rate_by_route, false),
    });
    let basic_auth = is(&raw.basic_auth).and_then(|at| {
        let text = read(&folder.join(&at.value.text), at, mistakes)?;
        match text.expose_str().map(users) {
            Some(Ok(users)) if users.is_empty() => {
                let hint = "write it with `htpasswd -B -c users.htpasswd NAME`";
                mistakes.add(at.span, "this file has no user, so nobody could pass", hint);
                None
            }
            Some(Ok(_)) => Some(text),
            Some(Err(line)) => {
                let message = format!("line {line} of this file is not a name and a bcrypt hash");
                mistakes.add(at.span, message, "write it with `htpasswd -B -c users.htpasswd NAME`; each name once");
                None
            }
            None => {
                mistakes.add(at.span, "this file is not UTF-8", "write it with `htpasswd -B`");
                None
            }
        }
    });
    let tokens = tokens(raw, folder, mistakes);
    if let (Some(_), Field::Is(jwt), Field::Is(basic)) = (&tokens, &raw.jwt_algorithm, &raw.basic_auth) {
        let hint = "both are `Authorization`: make two routes of it, told apart by `header` or `path`";
        mistakes.add_pair(jwt.span, "a route asks for passwords or for tokens", hint, basic.span, "passwords");
    }
    HttpGuards { rate, basic_auth, tokens }
}

fn tokens(raw: &RawGuards, folder: &Path, mistakes: &mut Mistakes) -> Option<HttpTokens> {
    let given = raw.given().find(|(key, _)| key.starts_with("jwt_"))?;
    let hint = "write `jwt_algorithm` and one of `jwt_key` and `jwt_key_file`";
    let Field::Is(algorithm) = &raw.jwt_algorithm else {
        if matches!(raw.jwt_algorithm, Field::Absent) {
            mistakes.add(given.1, format!("`{}` without `jwt_algorithm`", given.0), hint);
        }
        return None;
    };
    if !Tokens::knows(&algorithm.value.text) {
        let hint = "HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA are; tokens \
                    without a signature are never taken";
        let message = format!("{} is no way to sign tokens that is known here", algorithm.value.shown());
        mistakes.add(algorithm.span, message, hint);
        return None;
    }
    let (key, at) = match (&raw.jwt_key, &raw.jwt_key_file) {
        (Field::Is(key), Field::Is(file)) => {
            mistakes.add_pair(file.span, "the key of tokens is there twice", hint, key.span, "here already");
            return None;
        }
        (Field::Is(key), _) => (Secret::from(key.value.text.clone()), key.span),
        (_, Field::Is(file)) => (read(&folder.join(&file.value.text), file, mistakes)?, file.span),
        (Field::Absent, Field::Absent) => {
            mistakes.add(algorithm.span, "nothing says which key signs tokens", hint);
            return None;
        }
        _ => return None,
    };
    if let Err(why) = Tokens::new(&algorithm.value.text, &key, None, None) {
        let hint = "HS256 (384, 512) takes a secret; RS256, PS256, ES256 (384, 512) and EdDSA a public key in PEM";
        mistakes.add(at, format!("this is not a key for {}: {why}", algorithm.value.shown()), hint);
        return None;
    }
    let text = |field| is::<crate::gateway::raw::text::Text>(field).map(|at| at.value.text.clone());
    Some(HttpTokens {
        algorithm: algorithm.value.text.clone(),
        key,
        issuer: text(&raw.jwt_issuer),
        audience: text(&raw.jwt_audience),
    })
}

fn read(path: &Path, at: &At<crate::gateway::raw::text::Text>, mistakes: &mut Mistakes) -> Option<Secret> {
    const MOST: u64 = 1 << 20;
    let is_file = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= MOST);
    let read = if is_file { std::fs::read(path).ok() } else { None };
    if read.is_none() {
        let hint = "name a file of at most 1MiB that can be read; paths count from the folder of this file";
        mistakes.add(at.span, format!("{} cannot be read", at.value.shown()), hint);
    }
    read.map(Secret::from)
}

/// Checked edits as they are made: of requests, and of answers.
pub(crate) fn edits_of(edits: &HttpEdits) -> (Edits, Edits) {
    let lines = |lines: &[String]| lines.iter().filter_map(|line| editable_line(line)).collect();
    let names = |names: &[String]| names.iter().filter_map(|name| editable(name)).collect();
    let request =
        Edits { remove: names(&edits.request_remove), set: lines(&edits.request_set), add: lines(&edits.request_add) };
    let response = Edits {
        remove: names(&edits.response_remove),
        set: lines(&edits.response_set),
        add: lines(&edits.response_add),
    };
    (request, response)
}

/// What becomes of the path, as it is done.
pub(crate) fn rewrite_of(rule: &PathRule, strips: bool, to: Option<&str>) -> Rewrite {
    match (rule, to) {
        (PathRule::Prefix(_), None) if strips && rule.prefix_len() > 0 => {
            Rewrite::Prefix(rule.prefix_len(), "/".to_owned())
        }
        (_, None) => Rewrite::Keep,
        (PathRule::Prefix(_), Some(to)) => Rewrite::Prefix(rule.prefix_len(), to.to_owned()),
        (PathRule::Exact(_), Some(to)) => Rewrite::Whole(to.to_owned()),
        (PathRule::Pattern(pattern), Some(to)) => Rewrite::Pattern(pattern.clone(), to.to_owned()),
    }
}

/// Checked guards as they are carried out; `realm` is what browsers show when they ask for a password.
pub(crate) fn guards_of(guards: &HttpGuards, realm: &str) -> Result<Guards, String> {
    let limit = guards.rate.map(|rate| {
        let by_route = rate.by_route;
        Arc::new(Limit::new(Rate { count: rate.count, per: rate.per, burst: rate.burst }, by_route, RandomState::new()))
    });
    let users = match &guards.basic_auth {
        None => None,
        Some(text) => {
            let known = text.expose_str().map(users).unwrap_or(Err(1));
            let known = known.map_err(|line| format!("line {line} of the users is not a name and a bcrypt hash"))?;
            Some(Arc::new(Users::new(realm, known)?))
        }
    };
    let tokens = guards.tokens.as_ref().map(|tokens| {
        Tokens::new(&tokens.algorithm, &tokens.key, tokens.issuer.as_deref(), tokens.audience.as_deref()).map(Arc::new)
    });
    Ok(Guards { limit, users, tokens: tokens.transpose().map_err(str::to_owned)?, ..Guards::default() })
}
