//! The upstreams of a running gateway: one balancer each, and the actor that keeps it true.
//!
//! The actor lives on the system arbiter. It looks names up at the start and again every `resolve`, and connects to
//! each server every `interval` where checks are on; what it learns goes into the [`Balancer`] that relays pick from.
//! A failed look-up keeps the last good answer. An upstream of addresses alone and without checks needs no actor.
//! [`Mesh::drain`] leaves the system arbiter alone, so relays that still connect find true balancers until
//! [`Upstreams::drain`], or the end of the mesh.

mod checks;
mod keeper;
mod names;
pub(super) mod secure;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::config::{self, Balance, Check};
#[cfg(feature = "quic")]
use super::links::AllLinks;
use super::moq::Relays;
use crate::actors::clock::{later, now};
use crate::actors::{Budget, Control, Mail, Mesh, Place, SpawnError, Spec};
use crate::transports::kit::balance::{BalanceSettings, Balancer, Policy};
#[cfg(feature = "quic")]
use crate::transports::relay::Links;
#[cfg(feature = "wireguard")]
use crate::transports::relay::Way;
use crate::transports::relay::{Network, RelaySettings, Through};
#[cfg(feature = "wireguard")]
pub(super) use keeper::look_up;
use keeper::{Keeper, Lookup, lookup};
use names::Answers;
use secure::Secure;

/// When a keeper that does not end by itself is ended.
const DRAIN: Duration = Duration::from_secs(1);

/// The upstreams by name.
#[derive(Debug, Clone, Default)]
pub struct Upstreams {
    by_name: BTreeMap<String, Running>,
    /// They are beside them where both are needed.
    relays: Relays,
}

#[derive(Debug, Clone)]
struct Running {
    config: config::Upstream,
    balancer: Arc<Balancer>,
    keeper: Option<Mail<Infallible>>,
    /// What is said in TLS handshakes, if they are of TCP.
    secure: Secure,
    #[cfg(feature = "http")]
    http: Arc<crate::transports::http::Upstream>,
    #[cfg(feature = "quic")]
    links: Option<Links>,
    /// The way through a tunnel, if the servers are behind one.
    through: Option<Through>,
}

impl Upstreams {
    /// Makes the balancers and starts what keeps them true. Servers given by name are there once they are looked up.
    /// Servers over QUIC are balanced, but not reached: for these there must be a gateway.
    ///
    /// # Errors
    /// See [`Mesh::spawn`]; everything that had been started ends then.
    pub fn start(mesh: &Mesh, upstreams: &[config::Upstream]) -> Result<Self, SpawnError> {
        Self::default().renewed_with(mesh, upstreams, &lookup(), &Secure::default(), |_| true)
    }

    /// What these upstreams become under another configuration: those that are the same go on, with their connections
    /// counted and their servers' health known; the others are made. Nothing ends yet: see [`retire`](Self::retire).
    ///
    /// # Errors
    /// See [`Mesh::spawn`]; what had been started for it ends then.
    pub(super) fn renewed(
        &self,
        mesh: &Mesh,
        upstreams: &[config::Upstream],
        secure: &Secure,
        #[cfg(feature = "quic")] links: &AllLinks,
    ) -> Result<Self, SpawnError> {
        #[cfg(feature = "quic")]
        let same = |running: &Running| links.get(&running.config.name) == running.links.as_ref();
        #[cfg(not(feature = "quic"))]
        let same = |_: &Running| true;
        let next = self.renewed_with(mesh, upstreams, &lookup(), secure, same)?;
        #[cfg(feature = "quic")]
        let next = next.over(links);
        Ok(next)
    }

    /// The relays of Media over QUIC.
    #[cfg(feature = "moq")]
    pub(super) const fn relays(&self) -> &Relays {
        &self.relays
    }

    /// The servers of an upstream over QUIC, and the way to them.
    #[cfg(feature = "moq")]
    pub(super) fn over_quic(&self, name: &str) -> Option<(Arc<Balancer>, Links)> {
        let running = self.by_name.get(name)?;
        Some((running.balancer.clone(), running.links.clone()?))
    }

    #[cfg(feature = "quic")]
    fn over(mut self, links: &AllLinks) -> Self {
        for (name, running) in &mut self.by_name {
            running.links = links.get(name).cloned();
        }
        self
    }

    /// The way to the servers of an upstream over QUIC.
    #[cfg(feature = "quic")]
    pub(super) fn links(&self, name: &str) -> Option<&Links> {
        self.by_name.get(name)?.links.as_ref()
    }

    /// What reaches the servers of an upstream.
    pub(super) fn network(&self, name: &str) -> Network {
        #[cfg(feature = "quic")]
        if let Some(links) = self.links(name) {
            return Network::over(links.clone());
        }
        let running = self.by_name.get(name);
        let network = network_of(running.and_then(|running| running.through.as_ref()));
        running.map_or_else(Network::default, |running| shielded(network, name, &running.secure))
    }

    /// Leads to the servers behind tunnels, by the way that `way` knows for a tunnel's name.
    #[cfg(feature = "wireguard")]
    pub(super) fn lead(&self, way: impl Fn(&str) -> Option<Arc<dyn Way>>) {
        for running in self.by_name.values() {
            if let (Some(via), Some(through)) = (&running.config.via, &running.through) {
                through.lead(way(via));
            }
        }
    }

    /// How streams are relayed to an upstream, with the defaults of what only a relay's listener has; nothing if there
    /// is none of that name.
    pub(super) fn relay(&self, name: &str, limits: &config::Limits) -> Option<RelaySettings> {
        let running = self.by_name.get(name)?;
        let mut settings = RelaySettings::new(running.balancer.clone(), Arc::from(name));
        settings.connect_timeout = running.config.limits.connect_timeout;
        settings.idle = (!limits.idle.is_zero()).then_some(limits.idle);
        Some(settings)
    }

    fn renewed_with(
        &self,
        mesh: &Mesh,
        upstreams: &[config::Upstream],
        lookup: &Lookup,
        secure: &Secure,
        same: impl Fn(&Running) -> bool,
    ) -> Result<Self, SpawnError> {
        let mut next = Self { relays: self.relays.clone(), ..Self::default() };
        for upstream in upstreams {
            let before = self.by_name.get(&upstream.name);
            let goes_on = |running: &&Running| {
                running.config == *upstream && same(running) && running.secure == secure.only(&upstream.name)
            };
            let running = match before.filter(goes_on) {
                Some(running) => Ok(running.clone()),
                None => Self::one(mesh, upstream, before, secure, lookup),
            };
            match running {
                Ok(running) => {
                    next.by_name.insert(upstream.name.clone(), running);
                }
                Err(error) => {
                    next.retire(self);
                    return Err(error);
                }
            }
        }
        Ok(next)
    }

    fn one(
        mesh: &Mesh,
        upstream: &config::Upstream,
        before: Option<&Running>,
        secure: &Secure,
        lookup: &Lookup,
    ) -> Result<Running, SpawnError> {
        let answers = Answers::new(upstream);
        let settings = settings_of(upstream);
        // Through another tunnel the same address is another server.
        let balancer = match before.filter(|before| before.config.via == upstream.via) {
            None => Balancer::new(answers.servers(), settings),
            Some(before) => {
                if upstream.health.check == Check::Off {
                    // Nobody would find them up.
                    let known = before.balancer.view(now());
                    known.iter().for_each(|server| before.balancer.set_health(server.id, true));
                }
                let alike = before.config.servers == upstream.servers && before.config.tls == upstream.tls;
                // Until names have been looked up again they lead where they led.
                let servers = if alike { before.balancer.addresses() } else { answers.servers() };
                before.balancer.followed(servers, settings)
            }
        };
        let through = upstream.via.as_ref().map(|_| Through::default());
        let secure = secure.only(&upstream.name);
        #[cfg(feature = "http")]
        let http = Arc::new(http_of(upstream, &balancer, &secure, through.as_ref()));
        let mut running = Running {
            config: upstream.clone(),
            balancer: balancer.clone(),
            keeper: None,
            secure,
            #[cfg(feature = "http")]
            http: http.clone(),
            #[cfg(feature = "quic")]
            links: None,
            through,
        };
        if answers.has_names() || upstream.health.check != Check::Off {
            let (upstream, lookup) = (upstream.clone(), lookup.clone());
            let network = shielded(network_of(running.through.as_ref()), &upstream.name, &running.secure);
            let spec = Spec::named(upstream.name.as_str());
            let make = move || Keeper::Made {
                upstream: Box::new(upstream.clone()),
                balancer: balancer.clone(),
                lookup: lookup.clone(),
                #[cfg(feature = "http")]
                http: http.clone(),
                network: network.clone(),
            };
            running.keeper = Some(mesh.supervise(Place::System, spec, Budget::default(), make)?);
        }
        Ok(running)
    }

    /// The balancer of an upstream.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Balancer>> {
        self.by_name.get(name).map(|running| &running.balancer)
    }

    /// An upstream as HTTP uses it.
    #[cfg(feature = "http")]
    pub(super) fn http(&self, name: &str) -> Option<Arc<crate::transports::http::Upstream>> {
        self.by_name.get(name).map(|running| running.http.clone())
    }

    /// All upstreams in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Balancer>)> {
        self.by_name.iter().map(|(name, running)| (name.as_str(), &running.balancer))
    }

    /// Ends what keeps the balancers true that `kept` has not, at once; the balancers stay as they are for the
    /// connections that use them.
    pub fn retire(&self, kept: &Self) {
        // Nothing was accepted that would have to be finished: a keeper ends in its next turn.
        let by = later(now(), DRAIN);
        for (name, running) in &self.by_name {
            let goes_on = kept.by_name.get(name).is_some_and(|other| Arc::ptr_eq(&other.balancer, &running.balancer));
            if let Some(keeper) = running.keeper.as_ref().filter(|_| !goes_on) {
                keeper.control(Control::Drain(by));
            }
        }
    }

    /// Ends all of what keeps the balancers true.
    pub fn drain(&self) {
        self.retire(&Self::default());
    }
}

#[cfg(feature = "http")]
fn http_of(
    upstream: &config::Upstream,
    balancer: &Arc<Balancer>,
    secure: &Secure,
    through: Option<&Through>,
) -> crate::transports::http::Upstream {
    use crate::transports::http::Version;
    crate::transports::http::Upstream {
        name: Arc::from(upstream.name.as_str()),
        balancer: balancer.clone(),
        network: network_of(through),
        connect_timeout: upstream.limits.connect_timeout,
        version: match upstream.http.version {
            config::HttpVersion::One => Version::One,
            config::HttpVersion::Two => Version::Two,
            config::HttpVersion::Agreed => Version::Agreed,
        },
        tls: secure.get(&upstream.name).cloned(),
        idle: upstream.http.idle,
        idle_connections: upstream.http.idle_connections,
        pending: upstream.http.pending,
    }
}

fn network_of(through: Option<&Through>) -> Network {
    through.map_or_else(Network::default, |way| Network::through(way.clone()))
}

/// With TLS around it, if that is spoken to the servers of this upstream.
#[cfg(feature = "http")]
fn shielded(network: Network, upstream: &str, secure: &Secure) -> Network {
    match secure.get(upstream) {
        Some(tls) => network.shielded(tls.clone()),
        None => network,
    }
}

#[cfg(not(feature = "http"))]
fn shielded(network: Network, _: &str, _: &Secure) -> Network {
    network
}

fn settings_of(upstream: &config::Upstream) -> BalanceSettings {
    BalanceSettings {
        policy: match upstream.balance {
            Balance::RoundRobin => Policy::RoundRobin,
            Balance::LeastConnections => Policy::LeastConnections,
            Balance::RandomOfTwo => Policy::RandomOfTwo,
            Balance::Hash => Policy::Source,
        },
        max_connections: upstream.limits.connections,
        eject_after: upstream.health.eject_after,
        eject_for: upstream.health.eject_for,
        slow_start: upstream.health.slow_start.unwrap_or_default(),
        ..BalanceSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use parking_lot::Mutex;

    use super::keeper::apart;
    use super::names::ADDRESSES;
    use super::*;
    use crate::actors::MeshConfig;
    use crate::gateway::config::Server;

    #[test]
    fn a_lookup_under_way_does_not_hold_up_the_end() {
        let mesh =
            Mesh::start(MeshConfig { arbiters: std::num::NonZeroUsize::new(1), ..MeshConfig::default() }).unwrap();
        let (begins, begun) = std::sync::mpsc::channel();
        let (ended, ends) = std::sync::mpsc::channel::<()>();
        let ends = Arc::new(Mutex::new(ends));
        let lookup: Lookup = Arc::new(move |_, _| {
            let (begins, ends) = (begins.clone(), ends.clone());
            Box::pin(apart(move || {
                begins.send(()).unwrap();
                assert!(ends.lock().recv().is_err());
                Ok(Vec::new())
            }))
        });
        let upstream = config::Upstream::new("app", vec![Server::Name { host: "slow.example".to_owned(), port: 1 }]);
        let _upstreams =
            Upstreams::default().renewed_with(&mesh, &[upstream], &lookup, &Secure::default(), |_| true).unwrap();
        begun.recv_timeout(Duration::from_secs(10)).unwrap();
        mesh.stop().unwrap();
        drop(ended);
    }

    fn eventually(what: &str, mut done: impl FnMut() -> bool) {
        let end = now() + Duration::from_secs(10);
        while !done() {
            assert!(now() < end, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn names_are_looked_up_again_and_failures_keep_the_last_answer() {
        let mesh =
            Mesh::start(MeshConfig { arbiters: std::num::NonZeroUsize::new(1), ..MeshConfig::default() }).unwrap();
        let answer: Arc<Mutex<(u64, Option<Vec<u16>>)>> = Arc::default();
        let answers = answer.clone();
        let lookup: Lookup = Arc::new(move |host, port| {
            assert_eq!((host.as_str(), port), ("app.example", 9000));
            let mut answer = answers.lock();
            answer.0 += 1;
            let found = answer.1.clone().map(|last| last.iter().map(|n| ([10, 0, 0, *n as u8], port).into()).collect());
            Box::pin(std::future::ready(found.ok_or_else(|| io::Error::other("told to"))))
        });
        let name = Server::Name { host: "app.example".to_owned(), port: 9000 };
        let given = Server::Tcp("127.0.0.1:9000".parse().unwrap());
        let mut upstream = config::Upstream::new("app", vec![name, given]);
        upstream.resolve = Duration::from_millis(1);
        let upstreams =
            Upstreams::default().renewed_with(&mesh, &[upstream], &lookup, &Secure::default(), |_| true).unwrap();
        let balancer = upstreams.get("app").unwrap();
        let shown = || balancer.view(now()).iter().map(|view| view.address.to_string()).collect::<Vec<_>>().join(" ");
        let rounds = |what: &str| {
            let from = answer.lock().0;
            eventually(what, || answer.lock().0 > from + 2);
        };
        rounds("failures");
        assert_eq!(shown(), "127.0.0.1:9000");
        answer.lock().1 = Some(vec![2, 1, 2]);
        eventually("two", || shown() == "10.0.0.1:9000 10.0.0.2:9000 127.0.0.1:9000");
        let ids: Vec<_> = balancer.view(now()).iter().map(|view| view.id).collect();
        answer.lock().1 = None;
        rounds("failures");
        assert_eq!(shown(), "10.0.0.1:9000 10.0.0.2:9000 127.0.0.1:9000");
        answer.lock().1 = Some(Vec::new());
        rounds("empty answers");
        assert_eq!(shown(), "10.0.0.1:9000 10.0.0.2:9000 127.0.0.1:9000");
        answer.lock().1 = Some(vec![3, 2]);
        eventually("another", || shown() == "10.0.0.2:9000 10.0.0.3:9000 127.0.0.1:9000");
        let view = balancer.view(now());
        assert_eq!((view[0].id, view[2].id), (ids[1], ids[2]));
        assert!(!ids.contains(&view[1].id));
        answer.lock().1 = Some((0..=300).collect());
        eventually("not more than it may", || balancer.view(now()).len() == ADDRESSES + 1);
        upstreams.drain();
        eventually("it ends", || mesh.live() == 0);
        mesh.stop().unwrap();
    }
}
