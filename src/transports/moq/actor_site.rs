//! What a listener of MoQT serves: relays, each its own scope, chosen by path and authority.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::actor_relay::Relay;
use super::actor_session::{Close, MoqSession};
use super::model_codes::SessionCode;
use super::model_message::{Goaway, Setup};
use crate::memory::Snapshot;
use crate::transports::quic::Application;

/// How this end calls itself.
const IMPLEMENTATION: &str = concat!("portway/", env!("CARGO_PKG_VERSION"));

/// One scope: names in it have nothing to do with those in others (draft, section 2.4.3).
#[derive(Debug, Clone)]
pub struct Scope {
    /// The path that its clients name, exactly; `None`: any.
    pub path: Option<String>,
    /// The authority, without a port; `None`: any.
    pub authority: Option<String>,
    /// Its relay.
    pub relay: Arc<Relay>,
}

/// See the top of the file.
pub struct Site {
    name: Arc<str>,
    scopes: Snapshot<Vec<Scope>>,
    /// Clients over QUIC name a scope; those over WebTransport have done so by their CONNECT.
    webtransport: bool,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("name", &self.name)
            .field("scopes", &self.scopes.read().len())
            .finish_non_exhaustive()
    }
}

impl Site {
    /// For a listener over QUIC; the first scope that fits is taken. `name` is the scope of its counters.
    #[must_use]
    pub fn over_quic(name: Arc<str>, scopes: Vec<Scope>) -> Arc<Self> {
        Arc::new(Self { name, scopes: Snapshot::new(scopes), webtransport: false })
    }

    /// For a route of WebTransport.
    #[must_use]
    pub fn over_webtransport(name: Arc<str>, relay: Arc<Relay>) -> Arc<Self> {
        let scopes = vec![Scope { path: None, authority: None, relay }];
        Arc::new(Self { name, scopes: Snapshot::new(scopes), webtransport: true })
    }

    /// Leads clients to these scopes from now on. Sessions go on where they are.
    pub fn set_scopes(&self, scopes: Vec<Scope>) {
        self.scopes.publish(scopes);
    }

    /// What runs in a session. To be called on its arbiter.
    #[must_use]
    pub fn application(self: &Arc<Self>) -> Box<dyn Application> {
        Box::new(MoqSession::new(self.clone()))
    }

    pub(super) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn patience(&self) -> Duration {
        self.scopes.read().first().map_or(Duration::from_secs(10), |scope| scope.relay.settings().setup)
    }

    /// The relay of all its clients, if there is but one.
    pub(super) fn only(&self) -> Option<Arc<Relay>> {
        match self.scopes.read().as_slice() {
            [scope] => Some(scope.relay.clone()),
            _ => None,
        }
    }

    /// What this end says of itself first.
    pub(super) fn setup() -> Setup {
        Setup { implementation: Some(IMPLEMENTATION.to_owned()), ..Setup::default() }
    }

    /// The relay that a peer's SETUP is for.
    pub(super) fn relay_of(&self, setup: &Setup) -> Result<Arc<Relay>, Close> {
        let named = setup.path.is_some() || setup.authority.is_some();
        if named && self.webtransport {
            let code = if setup.path.is_some() { SessionCode::InvalidPath } else { SessionCode::InvalidAuthority };
            return Err(Close { code, reason: "misplaced_path" });
        }
        let path = setup.path.as_deref().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let host = setup.authority.as_deref().map(host_of).unwrap_or_default();
        let fits = |scope: &&Scope| {
            scope.path.as_deref().is_none_or(|mine| mine == path)
                && scope.authority.as_deref().is_none_or(|mine| mine.eq_ignore_ascii_case(host))
        };
        let scopes = self.scopes.read();
        let scope = scopes.iter().find(fits);
        scope.map(|scope| scope.relay.clone()).ok_or(Close { code: SessionCode::InvalidPath, reason: "no_such_scope" })
    }

    /// The peer wants to go.
    pub(super) fn goaway(&self, goaway: &Goaway) {
        tracing::debug!(relay = %self.name, uri = goaway.uri.escape_debug().to_string(), "the peer goes away");
    }
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.split_inclusive(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_may_have_a_port() {
        let all = ["a.example:4443", "a.example", "[::1]:4443", "[::1]", "127.0.0.1:1"];
        assert_eq!(all.map(host_of), ["a.example", "a.example", "[::1]", "[::1]", "127.0.0.1"]);
    }
}
