//! What the peer of a session may do: judged by the tokens it showed when it came and those of each request, by the
//! relay's settings that hold now. Tokens are kept, so that a reload can judge them anew: what a token granted that is
//! taken away, or has expired, ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actor_relay::Relay;
use super::actor_session::{Close, MoqSession};
use super::actor_words::What;
use super::model::Side;
use super::model_codes::{DoneCode, RequestCode, ResetCode, SessionCode};
use super::model_names::Namespace;
use super::model_params::Token;
use super::state_rights::{Act, Grant, Held, Refused, Rights};
use crate::actors::clock::{later, since_1970};
use crate::transports::quic::Session;

/// What a token grants. Aliases are not granted room for, so that none may be registered or used.
fn grant_of(rights: &Rights, token: &Token, now: Duration) -> Result<Grant, Refused> {
    match token {
        Token::UseValue { kind, value } | Token::Register { kind, value, .. } => rights.of(*kind, value, now),
        Token::Delete { .. } | Token::UseAlias { .. } => Err(Refused::Unknown),
    }
}

const fn code(refused: Refused) -> RequestCode {
    match refused {
        Refused::Unknown => RequestCode::Unauthorized,
        Refused::Expired => RequestCode::ExpiredAuthToken,
    }
}

impl MoqSession {
    /// The tokens that the peer comes with; one that grants nothing ends the session. An origin has no rights here,
    /// whatever it says.
    pub(super) fn take_tokens(&mut self, relay: &Arc<Relay>, tokens: Vec<Token>) -> Result<(), Close> {
        if self.side == Side::Client {
            return Ok(());
        }
        let now = since_1970();
        let settings = relay.settings();
        self.held = Held::new(settings.rights.of_everybody());
        for token in &tokens {
            let grant = grant_of(&settings.rights, token, now).map_err(|refused| match refused {
                Refused::Unknown => Close { code: SessionCode::Unauthorized, reason: "unauthorized" },
                Refused::Expired => Close { code: SessionCode::ExpiredAuthToken, reason: "expired_token" },
            })?;
            self.held.add(grant);
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Whether the peer may do something, with the tokens of this request: one that grants nothing is refused.
    pub(super) fn may(&self, act: Act, namespace: &Namespace, tokens: &[Token]) -> Result<(), RequestCode> {
        let Some(relay) = self.relay() else { return Err(RequestCode::InternalError) };
        let now = since_1970();
        if tokens.is_empty() {
            return self.held.may(act, namespace, now).map_err(code);
        }
        let mut held: Held = self.held.clone();
        for token in tokens {
            held.add(grant_of(&relay.settings().rights, token, now).map_err(code)?);
        }
        held.may(act, namespace, now).map_err(code)
    }

    /// Whether what was granted holds still. A token that grants nothing any more takes nothing away from the others.
    fn still(&self, act: Act, namespace: &Namespace, tokens: &[Token], now: Duration) -> Result<(), RequestCode> {
        let mut expired = false;
        let mut held: Held = self.held.clone();
        let settings = self.relay().map(|relay| relay.settings());
        for token in tokens {
            match settings.as_ref().map(|settings| grant_of(&settings.rights, token, now)) {
                Some(Ok(grant)) => held.add(grant),
                Some(Err(refused)) => expired |= refused == Refused::Expired,
                None => {}
            }
        }
        held.may(act, namespace, now)
            .map_err(|refused| if expired { RequestCode::ExpiredAuthToken } else { code(refused) })
    }

    /// Takes note of when the next grant ends.
    pub(super) fn look_at_rights(&mut self, now: Instant) {
        let today = since_1970();
        let settings = self.relay().map(|relay| relay.settings());
        let of_requests = self.requests.values().flat_map(|request| &request.tokens).filter_map(|token| {
            let rights = &settings.as_ref()?.rights;
            grant_of(rights, token, today).ok()?.expires.filter(|at| *at > today)
        });
        let next = self.held.next_end(today).into_iter().chain(of_requests).min();
        self.rights_end = next.map(|at| later(now, at.saturating_sub(today)));
    }

    /// The relay's rights are others: what the peer has by a token that does not grant it any more ends.
    pub(super) fn judge_anew(&mut self, session: &mut dyn Session) {
        if self.side == Side::Client {
            return;
        }
        let Some(relay) = self.relay().cloned() else { return };
        let now = since_1970();
        let mut held = Held::new(relay.settings().rights.of_everybody());
        for token in &self.tokens {
            if let Ok(grant) = grant_of(&relay.settings().rights, token, now) {
                held.add(grant);
            }
        }
        self.held = held;
        self.rights_ended(session);
    }

    /// Some grant has ended: what it granted ends.
    pub(super) fn rights_ended(&mut self, session: &mut dyn Session) {
        let now = since_1970();
        let mut over = Vec::new();
        for (number, request) in &self.requests {
            let (act, namespace) = match &request.what {
                What::Sub(sub) | What::Status { sub } => (Act::Subscribe, sub.name.namespace()),
                What::Up(up) if !request.ours => (Act::Publish, up.name.namespace()),
                What::Namespace(namespace) => (Act::Publish, namespace),
                What::WatchNamespaces { prefix, .. } | What::WatchTracks { prefix, .. } => (Act::Subscribe, prefix),
                What::Fetch(serving) => (Act::Subscribe, serving.name().namespace()),
                What::Up(_) | What::Errand(_) | What::OfOrigin { .. } | What::New | What::Over => continue,
            };
            if let Err(code) = self.still(act, namespace, &request.tokens, now) {
                over.push((*number, code));
            }
        }
        for (number, code) in over {
            self.raise("moq_requests_refused", code.reason());
            if matches!(self.requests.get(&number), Some(request) if matches!(&request.what, What::Sub(sub) if sub.established))
            {
                self.done(number, DoneCode::Unauthorized, session);
            } else {
                self.end_request(number, ResetCode::ExpiredAuthToken, session);
            }
        }
    }
}
