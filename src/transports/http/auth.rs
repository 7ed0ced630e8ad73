//! Who may pass a route: users with passwords (RFC 7617), or bearers of signed tokens (RFC 6750, RFC 7519).
//!
//! Passwords are known as bcrypt hashes. A hash takes tens of milliseconds, so it is made beside the arbiter; what was
//! found right is remembered for a minute, on each arbiter, as a keyed digest. A name that nobody has costs as much as
//! a wrong password. When as many hashes are being made as may, the answer is 503.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boring::base64::decode_block;
use http::header::{self, HeaderMap, HeaderValue};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use crate::actors::{NotDone, blocking, shelf};
use crate::memory::Secret;

/// How long a password that was right is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Passwords remembered for one route on one arbiter; when there are more, all are forgotten.
const MOST: usize = 1_024;
/// The longest value of `Authorization` that is looked at.
const LONGEST: usize = 8 << 10;
/// What a name that nobody has is checked against: of the cost that most have.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuLp3tNIOHYqXa7EGyVJoDzM8b0zXOyBG";

/// Users and the hashes of their passwords.
pub struct Users {
    realm: String,
    hashes: BTreeMap<String, String>,
    /// For the digests of what is remembered.
    key: Secret<[u8; 32]>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("realm", &self.realm).field("users", &self.hashes.len()).finish_non_exhaustive()
    }
}

/// Why somebody may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// No password or token, or one that cannot be read.
    Missing,
    /// A wrong password, a name that nobody has, a token that is not good.
    Wrong,
    /// As many passwords are looked at as may.
    Busy,
}

impl Denied {
    /// The word that counters use.
    #[must_use]
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "credentials_missing",
            Self::Wrong => "credentials_wrong",
            Self::Busy => "credentials_busy",
        }
    }
}

/// Reads lines of `name:hash` as `htpasswd -B` writes them. Empty lines and those that begin with `#` say nothing.
///
/// # Errors
/// The number of the first line that is neither, from 1.
pub fn users(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut users = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, hash) = line.split_once(':').ok_or(number)?;
        let good = !name.is_empty() && hash.parse::<bcrypt::HashParts>().is_ok();
        if !good || users.insert(name.to_owned(), hash.to_owned()).is_some() {
            return Err(number);
        }
    }
    Ok(users)
}

impl Users {
    /// These users; `realm` is what browsers show when they ask.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(realm: &str, hashes: BTreeMap<String, String>) -> Result<Self, String> {
        let mut key = [0; 32];
        boring::rand::rand_bytes(&mut key).map_err(|error| error.to_string())?;
        Ok(Self { realm: realm.replace(['"', '\\'], ""), hashes, key: Secret::new(key) })
    }

    /// What a client without a good password is told.
    pub(super) fn challenge(&self) -> HeaderValue {
        let text = format!("Basic realm=\"{}\", charset=\"UTF-8\"", self.realm);
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Basic realm=\"\""))
    }

    /// Whether a request comes from one of the users.
    pub(super) async fn check(self: &Arc<Self>, fields: &HeaderMap, now: Instant) -> Result<(), Denied> {
        let given = credentials(fields, "Basic").ok_or(Denied::Missing)?;
        let decoded = decode_block(given).map_err(|_| Denied::Missing)?;
        let decoded = Secret::from(decoded);
        let digest = boring::hash::hmac_sha256(self.key.expose(), decoded.expose()).map_err(|_| Denied::Busy)?;
        let known = shelf(self, Remembered::default);
        if known.knows(digest, now) {
            return Ok(());
        }
        let (name, password) = decoded.expose_str().and_then(|text| text.split_once(':')).ok_or(Denied::Missing)?;
        let password = Secret::from(password.to_owned());
        let hash = self.hashes.get(name).cloned();
        let right = blocking(move || {
            let checked = bcrypt::verify(password.expose(), hash.as_deref().unwrap_or(NOBODY));
            checked.unwrap_or(false) && hash.is_some()
        });
        match right.await {
            Ok(true) => {
                known.note(digest, now);
                Ok(())
            }
            Ok(false) => Err(Denied::Wrong),
            Err(NotDone::Full | NotDone::Lost) => Err(Denied::Busy),
        }
    }
}

/// Digests of what was right, of one arbiter.
#[derive(Default)]
struct Remembered(RefCell<BTreeMap<[u8; 32], Instant>>);

impl Remembered {
    fn knows(&self, digest: [u8; 32], now: Instant) -> bool {
        let since = self.0.borrow().get(&digest).copied();
        since.is_some_and(|since| now.saturating_duration_since(since) < REMEMBERED)
    }

    fn note(&self, digest: [u8; 32], now: Instant) {
        let mut all = self.0.borrow_mut();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(digest, now);
    }
}

/// What stands behind a scheme in the one `Authorization` of a request.
fn credentials<'a>(fields: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let mut all = fields.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case(wanted) && rest.len() <= LONGEST).then(|| rest.trim())
}

/// What tokens must be.
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("algorithms", &self.validation.algorithms).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Tokens signed with this algorithm and key: a shared secret, or a public key in PEM. They must have an expiry
    /// that lies ahead; issuer and audience are demanded if they are given.
    ///
    /// # Errors
    /// A key that is none, or an algorithm nobody knows.
    pub fn new(
        algorithm: &str,
        key: &Secret,
        issuer: Option<&str>,
        audience: Option<&str>,
    ) -> Result<Self, &'static str> {
        let algorithm = algorithm.parse::<Algorithm>().map_err(|_| "it signs nothing that is known")?;
        let bytes = key.expose();
        let key = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 if bytes.len() < 32 => {
                return Err("a secret has at least 32 bytes");
            }
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => DecodingKey::from_secret(bytes),
            Algorithm::ES256 | Algorithm::ES384 => {
                DecodingKey::from_ec_pem(bytes).map_err(|_| "it is no public EC key in PEM")?
            }
            Algorithm::EdDSA => DecodingKey::from_ed_pem(bytes).map_err(|_| "it is no public Ed25519 key in PEM")?,
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => DecodingKey::from_rsa_pem(bytes).map_err(|_| "it is no public RSA key in PEM")?,
        };
        let mut validation = Validation::new(algorithm);
        validation.validate_nbf = true;
        validation.leeway = 0;
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
        }
        match audience {
            Some(audience) => validation.set_audience(&[audience]),
            None => validation.validate_aud = false,
        }
        let mut required = vec!["exp"];
        required.extend(issuer.map(|_| "iss"));
        required.extend(audience.map(|_| "aud"));
        validation.set_required_spec_claims(&required);
        Ok(Self { key, validation })
    }

    /// Whether tokens may be signed in this way at all.
    pub fn knows(algorithm: &str) -> bool {
        algorithm.parse::<Algorithm>().is_ok()
    }

    /// Whether a request bears a good token.
    pub(super) fn check(&self, fields: &HeaderMap) -> Result<(), Denied> {
        let token = credentials(fields, "Bearer").ok_or(Denied::Missing)?;
        let decoded = jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &self.key, &self.validation);
        if decoded.is_err() || has_critical(token) { Err(Denied::Wrong) } else { Ok(()) }
    }
}

/// Whether a token says that it must not be taken by who does not know something, or has no head that could be read. We
/// know none of what it could name (RFC 7515, section 4.1.11).
fn has_critical(token: &str) -> bool {
    let head = token.split('.').next().unwrap_or_default();
    let padding = "=".repeat((4 - head.len() % 4) % 4);
    let head = head.replace('-', "+").replace('_', "/") + &padding;
    let head = decode_block(&head).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    head.is_none_or(|head| head.get("crit").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock;

    fn with(value: &str) -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert(header::AUTHORIZATION, value.parse().unwrap());
        fields
    }

    #[test]
    fn passwords_are_checked_and_remembered() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let hash = bcrypt::hash("open sesame", 4).unwrap();
        let all = users(&format!("# people\n\nbob:{hash}\n")).unwrap();
        let users = Arc::new(Users::new("a \"b\"", all).unwrap());
        assert_eq!(users.challenge(), "Basic realm=\"a b\", charset=\"UTF-8\"");
        let now = clock::now();
        let check = |value: &str, now| runtime.block_on(users.check(&with(value), now));
        let basic = |text: &str| format!("Basic {}", boring::base64::encode_block(text.as_bytes()));
        assert_eq!(check(&basic("bob:open sesame"), now), Ok(()));
        assert_eq!(check(&basic("bob:open sesame"), now), Ok(()));
        assert_eq!(check(&basic("bob:open"), now), Err(Denied::Wrong));
        assert_eq!(check(&basic("eve:open sesame"), now), Err(Denied::Wrong));
        for none in ["Basic !", "Basic", "Bearer x", &basic("no colon")] {
            assert_eq!(check(none, now), Err(Denied::Missing), "{none}");
        }
        assert!(shelf(&users, Remembered::default).0.borrow().len() == 1);
    }

    #[test]
    fn only_bcrypt_is_a_password_file() {
        let hash = bcrypt::hash("x", 4).unwrap();
        assert!(NOBODY.parse::<bcrypt::HashParts>().is_ok());
        for (text, line) in [
            ("bob:plain".to_owned(), 1),
            (format!("bob:{hash}\nbob:{hash}"), 2),
            ("\n:x".to_owned(), 2),
            ("bob".to_owned(), 1),
            ("bob:$apr1$abc$def".to_owned(), 1),
        ] {
            assert_eq!(users(&text), Err(line), "{text}");
        }
    }

    #[test]
    fn tokens_must_be_signed_current_and_for_us() {
        let secret = Secret::from(vec![b'k'; 32]);
        let tokens = Tokens::new("HS256", &secret, Some("me"), Some("you")).unwrap();
        let signed = |claims: &str, key: &[u8]| {
            let claims: serde_json::Value = serde_json::from_str(claims).unwrap();
            let key = jsonwebtoken::EncodingKey::from_secret(key);
            format!("Bearer {}", jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap())
        };
        let good = r#"{"exp": 99999999999, "iss": "me", "aud": "you"}"#;
        assert_eq!(tokens.check(&with(&signed(good, &[b'k'; 32]))), Ok(()));
        assert_eq!(tokens.check(&with(&signed(good, &[b'x'; 32]))), Err(Denied::Wrong), "another key");
        for bad in [
            r#"{"exp": 1000, "iss": "me", "aud": "you"}"#,
            r#"{"iss": "me", "aud": "you"}"#,
            r#"{"exp": 99999999999, "iss": "eve", "aud": "you"}"#,
            r#"{"exp": 99999999999, "iss": "me", "aud": "eve"}"#,
            r#"{"exp": 99999999999, "iss": "me"}"#,
            r#"{"exp": 99999999999, "iss": "me", "aud": "you", "nbf": 99999999990}"#,
        ] {
            assert_eq!(tokens.check(&with(&signed(bad, &[b'k'; 32]))), Err(Denied::Wrong), "{bad}");
        }
        // Seconds count.
        let now = clock::since_1970().as_secs();
        for (claim, at, good) in [("exp", now + 30, true), ("exp", now - 5, false), ("nbf", now + 30, false)] {
            let rest = if claim == "nbf" { r#""exp": 99999999999, "# } else { "" };
            let text = format!(r#"{{{rest}"{claim}": {at}, "iss": "me", "aud": "you"}}"#);
            assert_eq!(tokens.check(&with(&signed(&text, &[b'k'; 32]))).is_ok(), good, "{text}");
        }
        let sign = |head: &str| {
            let key = jsonwebtoken::EncodingKey::from_secret(&[b'k'; 32]);
            let part = |text: &str| {
                let text = boring::base64::encode_block(text.as_bytes()).replace('+', "-").replace('/', "_");
                text.trim_end_matches('=').to_owned()
            };
            let message = format!("{}.{}", part(head), part(good));
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
            format!("Bearer {message}.{signature}")
        };
        assert_eq!(tokens.check(&with(&sign(r#"{"alg":"HS256"}"#))), Ok(()));
        let critical = sign(r#"{"alg":"HS256","crit":["x"],"x":1}"#);
        assert_eq!(tokens.check(&with(&critical)), Err(Denied::Wrong));
        // No signature at all, as some libraries take it: {"alg":"none"}.
        let none = "Bearer eyJhbGciOiJub25lIn0.eyJleHAiOjk5OTk5OTk5OTk5LCJpc3MiOiJtZSIsImF1ZCI6InlvdSJ9.";
        assert_eq!(tokens.check(&with(none)), Err(Denied::Wrong));
        assert_eq!(tokens.check(&HeaderMap::new()), Err(Denied::Missing));
        assert!(Tokens::new("HS256", &Secret::from(vec![1; 31]), None, None).is_err());
        assert!(Tokens::new("none", &secret, None, None).is_err());
        assert!(Tokens::new("RS256", &secret, None, None).is_err());
    }
}
