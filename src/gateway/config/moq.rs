//! The part of the checked configuration that speaks of Media over QUIC.

use std::sync::Arc;
use std::time::Duration;

use crate::memory::Secret;

/// `[listener.moq]`: a relay of Media over QUIC.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moq {
    /// Scopes, each a relay of its own; the first that fits is taken. Default: one for all clients.
    pub scopes: Vec<MoqScope>,
    /// Bytes kept of each track on each arbiter that has to do with it, overhead counted. Default 8 MiB.
    pub cache: usize,
    /// Groups kept of each track. Default 64.
    pub cache_groups: usize,
    /// How long they are kept. Default 60 s.
    pub cache_age: Duration,
    /// How long a track without publishers waits for one, and one without subscribers is still fed. Default 5 s.
    pub linger: Duration,
    /// The longest that a subscription waits for a publisher. Default 30 s.
    pub rendezvous: Duration,
    /// Namespaces that a session may publish. Default 1,000.
    pub namespaces: usize,
    /// Tracks of one scope. Default 10,000.
    pub tracks: usize,
    /// Requests that a session may have open. Default 1,000.
    pub requests: usize,
    /// What becomes of a subscriber that takes too little: it skips, or its subscription ends. Default: it skips.
    pub when_slow: MoqWhenSlow,
    /// Who may do what. Default: everybody everything.
    pub tokens: Vec<MoqToken>,
}

impl Default for Moq {
    fn default() -> Self {
        Self {
            scopes: vec![MoqScope::new(None, None, None)],
            cache: 8 << 20,
            cache_groups: 64,
            cache_age: Duration::from_secs(60),
            linger: Duration::from_secs(5),
            rendezvous: Duration::from_secs(30),
            namespaces: 1_000,
            tracks: 10_000,
            requests: 1_000,
            when_slow: MoqWhenSlow::Skip,
            tokens: Vec::new(),
        }
    }
}

/// `[[listener.moq.scope]]`.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoqScope {
    /// The path that clients name, exactly. Default: any.
    pub path: Option<String>,
    /// The host that they name. Default: any.
    pub authority: Option<String>,
    /// Where tracks come from that nobody publishes here. Default: nowhere.
    pub origin: Option<MoqOrigin>,
}

impl MoqScope {
    pub(crate) const fn new(path: Option<String>, authority: Option<String>, origin: Option<MoqOrigin>) -> Self {
        Self { path, authority, origin }
    }
}

/// The origin of a scope: a relay whose tracks this one has too.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct MoqOrigin {
    /// The upstream, whose servers are relays over QUIC.
    pub upstream: String,
    /// The path that names the scope there. Default: that of this scope.
    pub path: Option<String>,
    /// What is shown there. Default nothing.
    pub token: Option<Arc<Secret>>,
}

impl MoqOrigin {
    pub(crate) fn new(upstream: String, path: Option<String>, token: Option<String>) -> Self {
        Self { upstream, path, token: token.map(|token| Arc::new(Secret::from(token))) }
    }
}

impl PartialEq for MoqOrigin {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.token, &other.token) {
            (Some(mine), Some(theirs)) => **mine == **theirs,
            (mine, theirs) => mine.is_none() && theirs.is_none(),
        };
        same && (&self.upstream, &self.path) == (&other.upstream, &other.path)
    }
}

impl Eq for MoqOrigin {}

/// What becomes of a subscriber that takes objects more slowly than they come.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MoqWhenSlow {
    /// It skips what the cache let go of, and is told by a reset.
    #[default]
    Skip,
    /// Its subscription ends.
    End,
}

/// `[[listener.moq.token]]`.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct MoqToken {
    /// The token.
    pub token: Arc<Secret>,
    /// Namespaces below which its bearer may publish, fields joined by `/`. Default none.
    pub publish: Vec<String>,
    /// The same for subscribing. Default none.
    pub subscribe: Vec<String>,
    /// Until when, in seconds since 1970. Default for ever.
    pub expires: Option<Duration>,
}

impl MoqToken {
    pub(crate) fn new(token: String, publish: Vec<String>, subscribe: Vec<String>, expires: Option<Duration>) -> Self {
        Self { token: Arc::new(Secret::from(token)), publish, subscribe, expires }
    }
}

impl PartialEq for MoqToken {
    fn eq(&self, other: &Self) -> bool {
        let grant = (&self.publish, &self.subscribe, self.expires);
        *self.token == *other.token && grant == (&other.publish, &other.subscribe, other.expires)
    }
}

impl Eq for MoqToken {}
