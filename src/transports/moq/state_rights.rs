//! Who may publish and subscribe what, and until when.
//!
//! Tokens that the configuration names are compared in constant time; each grants prefixes, to publish and to subscribe
//! below, until it expires. Without any, everybody may do everything. What a session may do is the sum of what its
//! tokens grant; a request may bring one of its own. Other kinds of tokens come in by [`Judge`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::model_names::Namespace;
use crate::memory::Secret;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// To publish a track or a namespace.
    Publish,
    /// To subscribe, fetch, or hear of names.
    Subscribe,
}

/// What a token grants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// Prefixes below which its bearer may publish.
    pub publish: Vec<Namespace>,
    /// The same for subscribing.
    pub subscribe: Vec<Namespace>,
    /// Until when, since 1970. `None`: for ever.
    pub expires: Option<Duration>,
}

impl Grant {
    /// Everything, for ever.
    #[must_use]
    pub fn everything() -> Self {
        Self { publish: vec![Namespace::default()], subscribe: vec![Namespace::default()], expires: None }
    }

    fn allows(&self, act: Act, namespace: &Namespace) -> bool {
        let prefixes = match act {
            Act::Publish => &self.publish,
            Act::Subscribe => &self.subscribe,
        };
        prefixes.iter().any(|prefix| namespace.starts_with(prefix))
    }

    /// Whether it holds no more, at this time since 1970.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// Why a token grants nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Nobody knows it.
    Unknown,
    /// It did once.
    Expired,
}

/// Reads tokens of some kind.
pub trait Judge: Send + Sync {
    /// What a token grants at this time since 1970; `None` if it is not of a kind that is known here.
    fn judge(&self, kind: u64, token: &[u8], now: Duration) -> Option<Result<Grant, Refused>>;
}

/// A token that the configuration names.
#[derive(Clone)]
pub struct Static {
    /// The token.
    pub token: Arc<Secret>,
    /// What it grants.
    pub grant: Grant,
}

impl fmt::Debug for Static {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Static").field("grant", &self.grant).finish_non_exhaustive()
    }
}

impl PartialEq for Static {
    fn eq(&self, other: &Self) -> bool {
        self.token == other.token && self.grant == other.grant
    }
}

impl Eq for Static {}

impl Judge for [Static] {
    fn judge(&self, _: u64, token: &[u8], now: Duration) -> Option<Result<Grant, Refused>> {
        let given = Secret::from(token.to_vec());
        // All are compared: how long it takes tells nothing.
        let found = self.iter().fold(None, |found, known| if *known.token == given { Some(known) } else { found })?;
        Some(if found.grant.is_over(now) { Err(Refused::Expired) } else { Ok(found.grant.clone()) })
    }
}

/// Who may do what on a relay.
#[derive(Clone, Default)]
pub struct Rights {
    /// Tokens of the configuration.
    pub tokens: Arc<[Static]>,
    /// What everybody may do, without a token. `None`: everything if there are no tokens, else nothing.
    pub everybody: Option<Grant>,
    /// Readers of other kinds of tokens.
    pub judges: Vec<Arc<dyn Judge>>,
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rights").field("tokens", &self.tokens.len()).field("everybody", &self.everybody).finish()
    }
}

impl PartialEq for Rights {
    fn eq(&self, other: &Self) -> bool {
        let judges = self.judges.len() == other.judges.len()
            && self.judges.iter().zip(&other.judges).all(|(mine, theirs)| Arc::ptr_eq(mine, theirs));
        judges && self.tokens == other.tokens && self.everybody == other.everybody
    }
}

impl Eq for Rights {}

impl Rights {
    /// What everybody may do.
    #[must_use]
    pub fn of_everybody(&self) -> Grant {
        match &self.everybody {
            Some(grant) => grant.clone(),
            None if self.tokens.is_empty() && self.judges.is_empty() => Grant::everything(),
            None => Grant::default(),
        }
    }

    /// What a token grants, beside what everybody may do. Where none are known, any grants nothing more.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn of(&self, kind: u64, token: &[u8], now: Duration) -> Result<Grant, Refused> {
        // Who demands none has nothing to compare one with: it takes nothing away.
        if self.tokens.is_empty() && self.judges.is_empty() {
            return Ok(Grant::default());
        }
        if let Some(judged) = self.tokens.judge(kind, token, now) {
            return judged;
        }
        self.judges.iter().find_map(|judge| judge.judge(kind, token, now)).unwrap_or(Err(Refused::Unknown))
    }
}

/// What one session may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    grants: Vec<Grant>,
}

impl Held {
    /// With what everybody may do.
    #[must_use]
    pub fn new(everybody: Grant) -> Self {
        Self { grants: vec![everybody] }
    }

    /// And what one more token grants.
    pub fn add(&mut self, grant: Grant) {
        if !self.grants.contains(&grant) {
            self.grants.push(grant);
        }
    }

    /// Whether it may, at this time since 1970; `Expired` if it might once.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn may(&self, act: Act, namespace: &Namespace, now: Duration) -> Result<(), Refused> {
        let mut over = false;
        for grant in self.grants.iter().filter(|grant| grant.allows(act, namespace)) {
            if !grant.is_over(now) {
                return Ok(());
            }
            over = true;
        }
        Err(if over { Refused::Expired } else { Refused::Unknown })
    }

    /// When the next grant ends, since 1970.
    #[must_use]
    pub fn next_end(&self, now: Duration) -> Option<Duration> {
        self.grants.iter().filter_map(|grant| grant.expires).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(fields: &[&str]) -> Namespace {
        Namespace::new(fields).unwrap()
    }

    fn rights() -> Rights {
        let grant = Grant {
            publish: vec![namespace(&["live"])],
            subscribe: vec![Namespace::default()],
            expires: Some(Duration::from_secs(100)),
        };
        let token = Static { token: Arc::new(Secret::from(b"hunter2".to_vec())), grant };
        Rights { tokens: Arc::from([token]), ..Rights::default() }
    }

    #[test]
    fn without_tokens_everybody_may_do_everything() {
        let held = Held::new(Rights::default().of_everybody());
        assert_eq!(held.may(Act::Publish, &namespace(&["x"]), Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_token_grants_its_prefixes_until_it_expires() {
        let rights = rights();
        let mut held = Held::new(rights.of_everybody());
        let (live, other) = (namespace(&["live", "a"]), namespace(&["lively"]));
        let early = Duration::from_secs(99);
        assert_eq!(held.may(Act::Subscribe, &live, early), Err(Refused::Unknown));
        assert_eq!(rights.of(0, b"hunter3", early), Err(Refused::Unknown));
        assert_eq!(rights.of(0, b"hunter2", Duration::from_secs(100)), Err(Refused::Expired));
        held.add(rights.of(0, b"hunter2", early).unwrap());
        assert_eq!(held.may(Act::Publish, &live, early), Ok(()));
        assert_eq!(held.may(Act::Publish, &other, early), Err(Refused::Unknown), "fields are matched in full");
        assert_eq!(held.may(Act::Subscribe, &other, early), Ok(()));
        assert_eq!(held.next_end(early), Some(Duration::from_secs(100)));
        assert_eq!(held.may(Act::Publish, &live, Duration::from_secs(100)), Err(Refused::Expired));
    }
}
