//! The relays of Media over QUIC of a gateway: those of its listeners, which its routes of WebTransport share.
//!
//! A relay goes on over a reload as long as its listener keeps its name and its `[listener.moq]`; else clients from then
//! on get another, and those of before go on with theirs. Routes of WebTransport lead to the relay of the first
//! listener that has one, to its scope of the same path if there is one; without such a listener they have one of their
//! own. A scope with an `upstream` is an edge of the relay there; when its relay is replaced, those who stay with the one
//! of before have no upstream any more.

#[cfg(feature = "moq")]
pub(super) mod api;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::config::{Config, HttpAction, Moq, MoqWhenSlow, Protocol};
use super::upstreams::Upstreams;
use crate::actors::{Mesh, SpawnError};
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
#[derive(Clone, Default)]
pub(super) struct Relays {
    shared: Arc<Shared>,
}

/// A relay as it was configured, what sessions see of it, and its scopes with their origins.
struct Running {
    moq: Moq,
    site: Arc<Site>,
    scopes: Vec<Scope>,
    origins: Vec<Option<Way>>,
}

/// The way to an origin: which servers, over what, and what goes there.
struct Way {
    servers: Arc<Balancer>,
    links: Links,
    _origin: Origin,
}

#[derive(Default)]
struct Shared {
    by_listener: Mutex<BTreeMap<String, Running>>,
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.shared.by_listener.lock().keys()).finish()
    }
}

impl Relays {
    /// Starts those that a configuration needs and that are not there, and lets go of those that it does not.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub(super) fn prepare(&self, mesh: &Mesh, config: &Config, upstreams: &Upstreams) -> Result<(), SpawnError> {
        let mut wanted: Vec<(String, Moq)> = Vec::new();
        for listener in &config.listeners {
            if let Protocol::Quic(quic) = &listener.protocol
                && let Some(moq) = &quic.moq
            {
                wanted.push((listener.name.clone(), (**moq).clone()));
            }
        }
        let routes = config.listeners.iter().filter_map(|listener| match &listener.protocol {
            Protocol::Http(http) => Some(&http.routes),
            Protocol::Framed(_)
            | Protocol::Relay(_)
            | Protocol::Quic(_)
            | Protocol::Udp(_)
            | Protocol::Wireguard(_)
            | Protocol::Custom { .. } => None,
        });
        if wanted.is_empty() && routes.flatten().any(|route| matches!(route.action, HttpAction::Moq { .. })) {
            wanted.push((OWN.to_owned(), Moq::default()));
        }
        let mut by_listener = self.shared.by_listener.lock();
        by_listener.retain(|name, running| wanted.iter().any(|(wanted, moq)| wanted == name && *moq == running.moq));
        for (name, moq) in wanted {
            if let Some(running) = by_listener.get_mut(&name) {
                running.lead(mesh, upstreams)?;
                continue;
            }
            let scope: Arc<str> = Arc::from(name.as_str());
            let settings = settings_of(&moq);
            let mut scopes = Vec::with_capacity(moq.scopes.len());
            for of in &moq.scopes {
                let relay = Relay::start(mesh, &scope, settings.clone())?;
                scopes.push(Scope { path: of.path.clone(), authority: of.authority.clone(), relay });
            }
            let site = Site::over_quic(scope, scopes.clone());
            let origins = moq.scopes.iter().map(|_| None).collect();
            let mut running = Running { moq, site, scopes, origins };
            running.lead(mesh, upstreams)?;
            by_listener.insert(name, running);
        }
        Ok(())
    }

    /// What a listener serves over QUIC.
    pub(super) fn of_listener(&self, name: &str) -> Option<Arc<Site>> {
        self.shared.by_listener.lock().get(name).map(|running| running.site.clone())
    }

    /// What a route of WebTransport serves, by its path.
    pub(super) fn of_route(&self, path: Option<&str>, listener: &str) -> Option<Arc<Site>> {
        let by_listener = self.shared.by_listener.lock();
        let scopes = &by_listener.values().next()?.scopes;
        let same = scopes.iter().find(|scope| scope.path.is_some() && scope.path.as_deref() == path);
        let scope = same.or_else(|| scopes.iter().find(|scope| scope.path.is_none())).or_else(|| scopes.first())?;
        Some(Site::over_webtransport(Arc::from(listener), scope.relay.clone()))
    }

    /// All relays, with the names of their listeners and their paths.
    pub(super) fn all(&self) -> Vec<(String, Option<String>, Arc<Relay>)> {
        let by_listener = self.shared.by_listener.lock();
        let scopes =
            by_listener.iter().flat_map(|(name, running)| running.scopes.iter().map(move |scope| (name, scope)));
        scopes.map(|(name, scope)| (name.clone(), scope.path.clone(), scope.relay.clone())).collect()
    }
}

impl Running {
    /// Leads scopes to their origins, anew where the way there is another.
    fn lead(&mut self, mesh: &Mesh, upstreams: &Upstreams) -> Result<(), SpawnError> {
        for ((scope, of), way) in self.scopes.iter().zip(&self.moq.scopes).zip(&mut self.origins) {
            let Some(origin) = &of.origin else { continue };
            let Some((servers, links)) = upstreams.over_quic(&origin.upstream) else { continue };
            if way.as_ref().is_some_and(|way| Arc::ptr_eq(&way.servers, &servers) && way.links == links) {
                continue;
            }
            let LinkSettings { client, tls } = links.settings().clone();
            let token = origin
                .token
                .as_ref()
                .map(|token| Token::UseValue { kind: 0, value: Bytes::copy_from_slice(token.expose()) });
            let settings = OriginSettings {
                client,
                tls,
                servers: servers.clone(),
                path: origin.path.clone(),
                authority: of.authority.clone(),
                tokens: token.into_iter().collect(),
            };
            let name = Arc::from(origin.upstream.as_str());
            let origin = Origin::start(mesh, &name, &scope.relay, settings)?;
            *way = Some(Way { servers, links, _origin: origin });
        }
        Ok(())
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
