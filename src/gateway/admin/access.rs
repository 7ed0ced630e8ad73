//! Who may ask what of the admin listener: decided from the head of a request alone, before anything is done.
//!
//! A `Host` that is no IP address, not `localhost` and no name of the listener's certificates is refused, so that a web
//! page cannot reach the listener through a name of its own (DNS rebinding); an `Origin` must be this very listener.
//! Whoever changes something shows the token, on loopback too: other users and web pages of this machine are there as
//! well. Where others than this machine can listen in, whoever reads shows it too. A trusted client certificate stands
//! for the token: to read in any case, to change where there is no token. A refusal is counted by its reason
//! (`admin_refused`).

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{Method, StatusCode};

use crate::memory::Secret;

/// What browsers say about where a request comes from; pages cannot set it.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    /// For the counter.
    pub(super) reason: &'static str,
    /// For the caller.
    pub(super) words: &'static str,
}

const fn refused(status: StatusCode, reason: &'static str, words: &'static str) -> Refused {
    Refused { status, reason, words }
}

/// The connection came by TLS, or by none, that is not spoken any more.
pub(super) const OTHER_TERMS: Refused =
    refused(StatusCode::MISDIRECTED_REQUEST, "terms", "the terms have changed: connect again\n");

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Look at a page that says nothing about this gateway, or at its health.
    Knock,
    /// Look.
    Read,
    /// Change something.
    Change,
}

/// By what rules requests are judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) token: Option<&'a Secret>,
    /// The listener is on loopback.
    pub(super) local: bool,
    /// The names of its certificates, if it speaks TLS.
    pub(super) names: Option<&'a Names>,
    /// The caller has shown a certificate that is trusted.
    pub(super) certified: bool,
}

/// Host names of certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names(Vec<String>);

impl Names {
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "there are none without TLS"))]
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self(names.map(str::to_ascii_lowercase).collect())
    }

    /// Whether one of them stands for this name; a wildcard does for one label (RFC 9525, section 6.3).
    fn cover(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let parent = name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        self.0.iter().any(|known| *known == name || (parent.is_some() && known.strip_prefix("*.") == parent))
    }
}

/// What the method and the path of a request wish for.
///
/// # Errors
/// A method that has no meaning here.
pub(super) fn wish(method: &Method, path: &str, changes: bool) -> Result<Wish, Refused> {
    match (method, changes) {
        (&Method::POST, true) => Ok(Wish::Change),
        (&Method::GET | &Method::HEAD, false) => Ok(match path {
            "/" | "/healthz" | "/readyz" => Wish::Knock,
            _ => Wish::Read,
        }),
        (_, true) => Err(refused(StatusCode::METHOD_NOT_ALLOWED, "method", "this is done with POST\n")),
        (_, false) => Err(refused(StatusCode::METHOD_NOT_ALLOWED, "method", "this is read with GET\n")),
    }
}

/// Whether a request may have what it wishes for.
///
/// # Errors
/// Why not.
pub(super) fn judge(wish: Wish, headers: &HeaderMap, rules: Rules<'_>) -> Result<(), Refused> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(refused(StatusCode::FORBIDDEN, "host", "one Host, please\n"));
    }
    let host = text(&HOST).unwrap_or_default();
    let name = name_of(host);
    let is_ours = |name| names_this_machine(name) || rules.names.is_some_and(|names| names.cover(name));
    if !name.is_some_and(is_ours) {
        let words = "the Host must be an IP address, localhost or a name of the certificate\n";
        return Err(refused(StatusCode::FORBIDDEN, "host", words));
    }
    let scheme = if rules.names.is_some() { "https://" } else { "http://" };
    let foreign = refused(StatusCode::FORBIDDEN, "origin", "requests of other web pages are refused\n");
    if let Some(origin) = headers.get(ORIGIN)
        && origin.to_str().ok().and_then(|origin| origin.strip_prefix(scheme)) != Some(host)
    {
        return Err(foreign);
    }
    if !matches!(text(&FETCH_SITE), None | Some("same-origin" | "none")) && wish != Wish::Knock {
        return Err(foreign);
    }
    if wish == Wish::Knock || (wish == Wish::Read && (rules.local || rules.certified)) {
        return Ok(());
    }
    let Some(token) = rules.token else {
        if rules.certified {
            return Ok(());
        }
        let words = "changes over HTTP need a `token` in [admin]; the control socket needs none\n";
        return Err(refused(StatusCode::FORBIDDEN, "no_token", words));
    };
    let shown = text(&AUTHORIZATION).and_then(|value| {
        let (scheme, shown) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(shown.trim())
    });
    match shown {
        Some(shown) if token.is(shown.as_bytes()) => Ok(()),
        Some(_) => Err(refused(StatusCode::UNAUTHORIZED, "token", "this is not the token\n")),
        None => Err(refused(StatusCode::UNAUTHORIZED, "token", "show the token: Authorization: Bearer …\n")),
    }
}

/// `Host` without its port; `None` if it is not written as RFC 3986, section 3.2, has it.
fn name_of(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').filter(|(name, _)| name.contains(':'))?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

/// RFC 9110 section 7.2 makes `Host` the client's idea of who we are: a browser led here by a foreign name says that
/// name.
fn names_this_machine(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn judged(
        wish: Wish,
        pairs: &[(&'static str, &str)],
        token: Option<&str>,
        local: bool,
    ) -> Result<(), &'static str> {
        let mut all = vec![("host", "127.0.0.1:9180")];
        all.extend_from_slice(pairs);
        let token = token.map(|token| Secret::from(token.to_owned()));
        let rules = Rules { token: token.as_ref(), local, names: None, certified: false };
        judge(wish, &headers(&all), rules).map_err(|refused| refused.reason)
    }

    /// Over TLS, from elsewhere, for `admin.example`.
    fn judged_over_tls(
        wish: Wish,
        (host, origin): (&str, &str),
        token: Option<&str>,
        certified: bool,
    ) -> Result<(), &'static str> {
        let token = token.map(|token| Secret::from(token.to_owned()));
        let names = Names::new(["admin.example", "*.wild.example", "127.0.0.1"].into_iter());
        let rules = Rules { token: token.as_ref(), local: false, names: Some(&names), certified };
        let headers = headers(&[("host", host), ("origin", origin)]);
        judge(wish, &headers, rules).map_err(|refused| refused.reason)
    }

    #[test]
    fn a_certificate_stands_for_the_token_and_its_listener_has_names() {
        let own = ("admin.example:9180", "https://admin.example:9180");
        let token = Some("0123456789abcdef");
        for (wish, token, certified, expected) in [
            (Wish::Knock, token, false, Ok(())),
            (Wish::Read, token, false, Err("token")),
            (Wish::Read, token, true, Ok(())),
            (Wish::Read, None, true, Ok(())),
            (Wish::Change, None, true, Ok(())),
            // With both, both are asked for.
            (Wish::Change, token, true, Err("token")),
            (Wish::Change, None, false, Err("no_token")),
        ] {
            assert_eq!(judged_over_tls(wish, own, token, certified), expected, "{wish:?} {token:?} {certified}");
        }
        for host in ["ADMIN.example", "a.wild.example:1", "127.0.0.1:9180", "localhost"] {
            let origin = format!("https://{host}");
            assert_eq!(judged_over_tls(Wish::Change, (host, &origin), None, true), Ok(()), "{host}");
        }
        for host in ["evil.example", "b.a.wild.example", "wild.example", ".wild.example", "*.wild.example.evil", ""] {
            let origin = format!("https://{host}");
            assert_eq!(judged_over_tls(Wish::Change, (host, &origin), None, true), Err("host"), "{host}");
        }
        for origin in ["http://admin.example:9180", "https://admin.example", "https://evil.example", "null"] {
            let from = ("admin.example:9180", origin);
            assert_eq!(judged_over_tls(Wish::Change, from, None, true), Err("origin"), "{origin}");
        }
    }

    #[test]
    fn only_addresses_and_localhost_name_this_machine() {
        for good in ["127.0.0.1", "127.0.0.1:9180", "localhost:9180", "LOCALHOST", "[::1]:9180", "[::1]", "127.0.0.1:"]
        {
            assert!(name_of(good).is_some_and(names_this_machine), "{good}");
        }
        let foreign = ["", "example.com", "localhost.example.com:9180", "127.0.0.1.example.com"];
        let broken =
            ["[::1", "[", "[]", "[127.0.0.1]", "[::1]x", "[::1]:x", "[::1]80", "localhost:80:80", "127.0.0.1:x"];
        for bad in foreign.into_iter().chain(broken) {
            assert!(!name_of(bad).is_some_and(names_this_machine), "{bad}");
        }
    }

    #[test]
    fn reading_is_free_on_loopback_and_changing_nowhere() {
        let token = ("authorization", "Bearer 0123456789abcdef");
        let secret = Some("0123456789abcdef");
        for wish in [Wish::Knock, Wish::Read] {
            assert_eq!(judged(wish, &[], None, true), Ok(()));
            assert_eq!(judged(wish, &[], secret, true), Ok(()));
            assert_eq!(judged(wish, &[token], secret, false), Ok(()));
        }
        assert_eq!(judged(Wish::Knock, &[], secret, false), Ok(()));
        assert_eq!(judged(Wish::Read, &[], secret, false), Err("token"));
        for local in [true, false] {
            assert_eq!(judged(Wish::Change, &[token], None, local), Err("no_token"));
            assert_eq!(judged(Wish::Change, &[], secret, local), Err("token"));
            assert_eq!(judged(Wish::Change, &[token], secret, local), Ok(()));
            for wrong in ["Bearer 0123456789abcdeg", "Bearer", "Basic 0123456789abcdef", "0123456789abcdef", ""] {
                assert_eq!(judged(Wish::Change, &[("authorization", wrong)], secret, local), Err("token"), "{wrong}");
            }
        }
    }

    #[test]
    fn only_pages_of_this_listener_may_ask() {
        let token = ("authorization", "bearer 0123456789abcdef");
        let ask = |wish, more: &[(&'static str, &str)]| {
            let mut all = vec![token];
            all.extend_from_slice(more);
            judged(wish, &all, Some("0123456789abcdef"), true)
        };
        for wish in [Wish::Read, Wish::Change] {
            assert_eq!(ask(wish, &[("origin", "http://127.0.0.1:9180"), ("sec-fetch-site", "same-origin")]), Ok(()));
            assert_eq!(ask(wish, &[("sec-fetch-site", "none")]), Ok(()));
            for origin in
                ["http://evil.example", "https://127.0.0.1:9180", "http://127.0.0.1", "null", "http://localhost:9180"]
            {
                assert_eq!(ask(wish, &[("origin", origin)]), Err("origin"), "{origin}");
            }
            for site in ["cross-site", "same-site"] {
                assert_eq!(ask(wish, &[("sec-fetch-site", site)]), Err("origin"), "{site}");
            }
            assert_eq!(ask(wish, &[("host", "127.0.0.1:9180")]), Err("host"), "two of them");
        }
    }

    #[test]
    fn what_changes_something_is_posted() {
        assert_eq!(wish(&Method::POST, "/api/reload", true), Ok(Wish::Change));
        assert_eq!(wish(&Method::GET, "/api/actors", false), Ok(Wish::Read));
        assert_eq!(wish(&Method::HEAD, "/healthz", false), Ok(Wish::Knock));
        for (method, changes) in
            [(Method::GET, true), (Method::POST, false), (Method::DELETE, true), (Method::PUT, false)]
        {
            assert_eq!(wish(&method, "/", changes).unwrap_err().reason, "method");
        }
    }
}
