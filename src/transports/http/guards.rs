//! What stands before a route: how often a source may ask, and who may pass. Each refusal is an answer and a count.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};

use super::actor::Client;
use super::auth::{Denied, Tokens, Users};
use super::body::ToClient;
use super::codec_forward::last_forwarded;
use super::exchange::plain;
use super::hook::{Asked, Decision, Hook};
use super::record::Record;
use crate::transports::kit::limiter::{Limiter, Rate};

/// What a route demands.
#[derive(Debug, Clone, Default)]
pub struct Guards {
    /// How often.
    pub limit: Option<Arc<Limit>>,
    /// A password of one of these.
    pub users: Option<Arc<Users>>,
    /// A token like this.
    pub tokens: Option<Arc<Tokens>>,
    /// That these let it pass, one after the other.
    pub hooks: Vec<Arc<dyn Hook>>,
}

/// How often a source may ask, or all together. Shared by all arbiters.
pub struct Limit {
    limiter: Limiter,
    /// So that nobody can choose whom to share a place of the table with.
    keys: RandomState,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.limiter.fmt(f)
    }
}

impl Limit {
    /// One for all if `by_route`, else one for each source: an IPv4 address, or the first 64 bits of an IPv6 address.
    #[must_use]
    pub fn new(rate: Rate, by_route: bool, keys: RandomState) -> Self {
        Self { limiter: if by_route { Limiter::of_all(rate) } else { Limiter::of_sources(rate) }, keys }
    }

    fn source(&self, address: IpAddr) -> u64 {
        self.keys.hash_one(match address.to_canonical() {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            // One subscriber has a network of them; the flag keeps both kinds apart.
            IpAddr::V6(v6) => u64::try_from(u128::from(v6) >> 64).unwrap_or(0) | 1 << 63,
        })
    }
}

impl Guards {
    /// Whether everybody may pass, as often as they like.
    pub(super) const fn is_empty(&self) -> bool {
        self.limit.is_none() && self.users.is_none() && self.tokens.is_none() && self.hooks.is_empty()
    }

    /// What a request gets that may not pass.
    pub(super) async fn refusal(
        &self,
        client: &Client,
        head: &mut Parts,
        record: &Rc<Record>,
    ) -> Option<Response<ToClient>> {
        let denied = self.denied(client, &head.headers, record).await;
        denied.or_else(|| self.hooks.iter().find_map(|hook| hooked(&**hook, client, head, record)))
    }

    async fn denied(&self, client: &Client, fields: &HeaderMap, record: &Rc<Record>) -> Option<Response<ToClient>> {
        let now = client.notes.driver.now();
        if let Some(limit) = &self.limit {
            // A proxy that is believed says who asks; for others it is who is connected.
            let told = if client.trusted { last_forwarded(fields) } else { None };
            let source = limit.source(told.unwrap_or_else(|| client.peer.ip()));
            if let Err(wait) = limit.limiter.take(source, now) {
                record.denied("rate");
                let seconds = wait.as_millis().div_ceil(1_000).max(1);
                let mut response = plain(StatusCode::TOO_MANY_REQUESTS, record);
                if let Ok(seconds) = HeaderValue::try_from(seconds.to_string()) {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds);
                }
                return Some(response);
            }
        }
        let (denied, challenge) = if let Some(users) = &self.users {
            (users.check(fields, now).await.err()?, users.challenge())
        } else {
            (self.tokens.as_ref()?.check(fields).err()?, HeaderValue::from_static("Bearer"))
        };
        record.denied(denied.reason());
        if denied == Denied::Busy {
            return Some(plain(StatusCode::SERVICE_UNAVAILABLE, record));
        }
        let mut response = plain(StatusCode::UNAUTHORIZED, record);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        Some(response)
    }
}

/// What a hook answers, if it does.
fn hooked(hook: &dyn Hook, client: &Client, head: &mut Parts, record: &Rc<Record>) -> Option<Response<ToClient>> {
    let asked =
        Asked { method: &head.method, uri: &head.uri, fields: &head.headers, peer: client.peer, tls: client.tls };
    match hook.decide(&asked) {
        Decision::Pass => None,
        Decision::PassWith(fields) => {
            for (name, value) in fields {
                head.headers.insert(name, value);
            }
            None
        }
        Decision::Answer { status, body } => {
            record.denied("hook");
            let mut response = plain(status, record);
            if !body.is_empty() {
                *response.body_mut() = ToClient::whole(body, record.clone());
            }
            Some(response)
        }
    }
}
