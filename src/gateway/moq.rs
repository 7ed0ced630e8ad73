//! The relays of Media over QUIC of a gateway: those of its listeners, which its routes of WebTransport share.
//!
//! A relay goes on over a reload as long as its listener keeps its name and its scope keeps its path and authority: all
//! other keys of `[listener.moq]` change in place, and bounds hold for what comes after. The sessions of a scope or
//! listener that is taken out are told to go. Routes of WebTransport lead to the relay of the first listener of the file
//! that has one, to its scope of the same path if there is one, also after a reload that changes which that is; without
//! such a listener they have one of their own. A scope with an `upstream` is an edge of the relay there.

#[cfg(feature = "moq")]
pub(super) mod api;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

#[cfg(feature = "http")]
use super::config::HttpAction;
use super::config::{Config, Listener, Moq, MoqOrigin, MoqWhenSlow, Protocol};
use super::upstreams::Upstreams;
use crate::actors::{Mesh, SpawnError};
use crate::memory::{Budget, Snapshot};
use crate::transports::kit::balance::Balancer;
use crate::transports::moq::model_names::Namespace;
use crate::transports::moq::model_params::Token;
use crate::transports::moq::state_cache;
use crate::transports::moq::state_directory;
use crate::transports::moq::state_rights::{Grant, Rights, Static};
use crate::transports::moq::{Origin, OriginSettings, Relay, RelaySettings, Scope, Site, WhenSlow};
use crate::transports::relay::{LinkSettings, Links};

/// The name of the relay that routes have without a listener.
const OWN: &str = "webtransport";

/// See the top of the file. A clone is the same ones.
#[derive(Clone)]
pub(super) struct Relays {
    /// In the order of the file.
    by_listener: Arc<Vec<Running>>,
    /// What routes serve, with the paths they asked for: of all configurations, as long as they are in use.
    routes: Snapshot<Vec<RouteSite>>,
}

type RouteSite = (Option<String>, Weak<Site>);

/// A relay as it was configured, what sessions see of it, and its scopes with their origins.
struct Running {
    name: String,
    moq: Moq,
    site: Arc<Site>,
    scopes: Vec<Scope>,
    /// One for each scope, once the configuration is in force.
    origins: Mutex<Vec<Option<Way>>>,
}

/// The way to an origin: which servers, over what, what is said there, and what goes there.
struct Way {
    of: MoqOrigin,
    servers: Arc<Balancer>,
    links: Links,
    _origin: Origin,
}

impl Default for Relays {
    fn default() -> Self {
        Self { by_listener: Arc::default(), routes: Snapshot::new(Vec::new()) }
    }
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_listener.iter().map(|running| &running.name)).finish()
    }
}

impl Relays {
    /// The relays that a configuration needs: those that are there, and new ones. Nothing that runs is touched until
    /// [`take_over`](Self::take_over); what was started for a configuration that is refused ends when this is dropped.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub(super) fn renewed(&self, mesh: &Mesh, config: &Config, budget: &Budget) -> Result<Self, SpawnError> {
        let mut by_listener = Vec::new();
        for (name, moq) in wanted(config) {
            let before = self.by_listener.iter().find(|running| running.name == name);
            let label: Arc<str> = Arc::from(name.as_str());
            let mut scopes = Vec::with_capacity(moq.scopes.len());
            for of in &moq.scopes {
                let known = before.and_then(|before| before.scope(of.path.as_ref(), of.authority.as_ref()));
                let relay = match known {
                    Some(scope) => scope.relay.clone(),
                    None => Relay::start_within(mesh, &label, settings_of(&moq), Some(budget.clone()))?,
                };
                scopes.push(Scope { path: of.path.clone(), authority: of.authority.clone(), relay });
            }
            let site = before.map(|before| before.site.clone());
            let site = site.unwrap_or_else(|| Site::over_quic(label, scopes.clone()));
            by_listener.push(Running { name, moq, site, scopes, origins: Mutex::default() });
        }
        Ok(Self { by_listener: Arc::new(by_listener), routes: self.routes.clone() })
    }

    /// Puts the configuration they were made for in force: relays behave by it, clients find its scopes, and origins are
    /// those it names. Relays of `before` that are not in it send their sessions away within this time.
    pub(super) fn take_over(&self, before: &Self, mesh: &Mesh, upstreams: &Upstreams, within: Duration) {
        for running in self.by_listener.iter() {
            let settings = settings_of(&running.moq);
            for scope in &running.scopes {
                if !scope.relay.change(settings.clone()) {
                    tracing::warn!(listener = %running.name, "a relay has no room to hear of its new settings");
                }
            }
            running.site.set_scopes(running.scopes.clone());
            let was = before.by_listener.iter().find(|was| was.name == running.name);
            running.lead(was, mesh, upstreams);
        }
        let mine: Vec<&Arc<Relay>> = self.relays().collect();
        for relay in before.relays().filter(|relay| !mine.iter().any(|mine| Arc::ptr_eq(mine, relay))) {
            let _full = relay.retire(within);
            before.by_listener.iter().for_each(|running| drop(running.take_way(relay)));
        }
        for (path, site) in self.routes.read().iter() {
            if let (Some(site), Some(scope)) = (site.upgrade(), self.scope_of(path.as_deref())) {
                site.set_scopes(vec![Scope { path: None, authority: None, relay: scope.relay.clone() }]);
            }
        }
    }

    fn relays(&self) -> impl Iterator<Item = &Arc<Relay>> {
        self.by_listener.iter().flat_map(|running| &running.scopes).map(|scope| &scope.relay)
    }

    /// What a listener serves over QUIC.
    pub(super) fn of_listener(&self, name: &str) -> Option<Arc<Site>> {
        self.by_listener.iter().find(|running| running.name == name).map(|running| running.site.clone())
    }

    /// The scope for a route of WebTransport with this path.
    fn scope_of(&self, path: Option<&str>) -> Option<&Scope> {
        let scopes = &self.by_listener.first()?.scopes;
        let same = scopes.iter().find(|scope| scope.path.is_some() && scope.path.as_deref() == path);
        same.or_else(|| scopes.iter().find(|scope| scope.path.is_none())).or_else(|| scopes.first())
    }

    /// What a route of WebTransport serves, by its path. It follows reloads.
    pub(super) fn of_route(&self, path: Option<&str>, listener: &str) -> Option<Arc<Site>> {
        let site = Site::over_webtransport(Arc::from(listener), self.scope_of(path)?.relay.clone());
        let mine = (path.map(str::to_owned), Arc::downgrade(&site));
        // Only reloads do this, one at a time: nothing overtakes it.
        let added = self.routes.update(|routes| {
            let in_use = routes.iter().filter(|(_, site)| site.strong_count() > 0);
            in_use.cloned().chain([mine.clone()]).collect()
        });
        added.ok()?;
        Some(site)
    }

    /// All relays, with the names of their listeners and their paths.
    pub(super) fn all(&self) -> Vec<(String, Option<String>, Arc<Relay>)> {
        let scopes =
            self.by_listener.iter().flat_map(|running| running.scopes.iter().map(move |scope| (running, scope)));
        scopes.map(|(running, scope)| (running.name.clone(), scope.path.clone(), scope.relay.clone())).collect()
    }
}

/// The relays of a configuration, by the names of their listeners.
fn wanted(config: &Config) -> Vec<(String, Moq)> {
    let mut wanted: Vec<(String, Moq)> = Vec::new();
    for listener in &config.listeners {
        if let Protocol::Quic(quic) = &listener.protocol
            && let Some(moq) = &quic.moq
        {
            wanted.push((listener.name.clone(), (**moq).clone()));
        }
    }
    if wanted.is_empty() && config.listeners.iter().any(leads_here) {
        wanted.push((OWN.to_owned(), Moq::default()));
    }
    wanted
}

/// Whether a route of WebTransport leads to a relay.
#[cfg(feature = "http")]
fn leads_here(listener: &Listener) -> bool {
    let Protocol::Http(http) = &listener.protocol else { return false };
    http.routes.iter().any(|route| matches!(route.action, HttpAction::Moq { .. }))
}

#[cfg(not(feature = "http"))]
const fn leads_here(_: &Listener) -> bool {
    false
}

impl Running {
    fn scope(&self, path: Option<&String>, authority: Option<&String>) -> Option<&Scope> {
        self.scopes.iter().find(|scope| scope.path.as_ref() == path && scope.authority.as_ref() == authority)
    }

    /// The way to an origin that a scope has.
    fn take_way(&self, relay: &Arc<Relay>) -> Option<Way> {
        let at = self.scopes.iter().position(|scope| Arc::ptr_eq(&scope.relay, relay))?;
        self.origins.lock().get_mut(at)?.take()
    }

    /// Leads scopes to their origins, anew where the way there is another.
    fn lead(&self, before: Option<&Self>, mesh: &Mesh, upstreams: &Upstreams) {
        let mut origins = Vec::with_capacity(self.scopes.len());
        for (scope, of) in self.scopes.iter().zip(&self.moq.scopes) {
            let was = before.and_then(|before| before.take_way(&scope.relay));
            let wanted = of.origin.as_ref().and_then(|origin| Some((origin, upstreams.over_quic(&origin.upstream)?)));
            origins.push(wanted.and_then(|(origin, (servers, links))| {
                let same = |way: &Way| way.of == *origin && Arc::ptr_eq(&way.servers, &servers) && way.links == links;
                match was {
                    Some(way) if same(&way) => Some(way),
                    // The old one ends after the new one was begun.
                    was => begin(scope, origin, servers, links, mesh).or(was),
                }
            }));
        }
        *self.origins.lock() = origins;
    }
}

/// Begins to connect a scope to its origin.
fn begin(scope: &Scope, origin: &MoqOrigin, servers: Arc<Balancer>, links: Links, mesh: &Mesh) -> Option<Way> {
    let LinkSettings { client, tls } = links.settings().clone();
    let token =
        origin.token.as_ref().map(|token| Token::UseValue { kind: 0, value: Bytes::copy_from_slice(token.expose()) });
    let settings = OriginSettings {
        client,
        tls,
        servers: servers.clone(),
        path: origin.path.clone(),
        authority: scope.authority.clone(),
        tokens: token.into_iter().collect(),
    };
    let name = Arc::from(origin.upstream.as_str());
    match Origin::start(mesh, &name, &scope.relay, settings) {
        Ok(running) => Some(Way { of: origin.clone(), servers, links, _origin: running }),
        Err(error) => {
            tracing::error!(upstream = %name, %error, "the way to an origin cannot be begun");
            None
        }
    }
}

/// A namespace as people write it: fields joined by `/`. The check has found it well formed; one that is too long grants
/// nothing.
fn namespace(text: &str) -> Option<Namespace> {
    if text.is_empty() {
        return Some(Namespace::default());
    }
    Namespace::new(text.split('/')).ok()
}

fn settings_of(moq: &Moq) -> RelaySettings {
    let tokens: Vec<Static> = moq
        .tokens
        .iter()
        .map(|token| Static {
            token: token.token.clone(),
            grant: Grant {
                publish: token.publish.iter().filter_map(|text| namespace(text)).collect(),
                subscribe: token.subscribe.iter().filter_map(|text| namespace(text)).collect(),
                expires: token.expires,
            },
        })
        .collect();
    let default = RelaySettings::default();
    RelaySettings {
        cache: state_cache::Limits { bytes: moq.cache, groups: moq.cache_groups, age: moq.cache_age },
        directory: state_directory::Limits {
            namespaces: moq.namespaces,
            tracks: moq.tracks,
            hold: moq.rendezvous,
            ..state_directory::Limits::default()
        },
        linger: moq.linger,
        requests: moq.requests,
        when_slow: match moq.when_slow {
            MoqWhenSlow::Skip => WhenSlow::Skip,
            MoqWhenSlow::End => WhenSlow::End,
        },
        rights: Rights { tokens: tokens.into(), ..Rights::default() },
        ..default
    }
}
