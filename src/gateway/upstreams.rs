//! The upstreams of a running gateway: one balancer each, and the actor that keeps it true.
//!
//! The actor lives on the system arbiter. It looks names up at the start and again every `resolve`, and connects to
//! each server every `interval` where checks are on; what it learns goes into the [`Balancer`] that relays pick from.
//! A failed look-up keeps the last good answer. An upstream of addresses alone and without checks needs no actor.
//! [`Mesh::drain`] leaves the system arbiter alone, so relays that still connect find true balancers until
//! [`Upstreams::drain`], or the end of the mesh.

pub(super) mod secure;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{LocalBoxFuture, join, join_all};
use futures_util::stream;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::config::{self, Balance, Check, Health, Host, Server};
#[cfg(feature = "quic")]
use super::links::AllLinks;
use super::moq::Relays;
use crate::actors::clock::{later, now, sleep, sleep_until, within};
use crate::actors::{Budget, Control, Fault, Mail, Mesh, Place, Progress, Protocol, SpawnError, Spec, Tally, Turn};
use crate::transports::kit::balance::{Address, BalanceSettings, Balancer, Policy, ServerId, ServerView};
#[cfg(feature = "quic")]
use crate::transports::relay::Links;
#[cfg(feature = "wireguard")]
use crate::transports::relay::Way;
use crate::transports::relay::{Dial, Network, RelaySettings, Through};
use secure::Secure;

/// Servers of one upstream that are checked at the same time.
const CHECKS: usize = 64;
/// Addresses taken from one name: whoever answers for it does not decide how much we keep.
const ADDRESSES: usize = 256;
/// How soon a name is looked up again that has never been found.
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// When a keeper that does not end by itself is ended.
const DRAIN: Duration = Duration::from_secs(1);

type Lookup = Arc<dyn Fn(String, u16) -> LocalBoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

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
        network_of(self.by_name.get(name).and_then(|running| running.through.as_ref()))
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
                None => Self::one(mesh, upstream, secure, lookup),
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

    fn one(mesh: &Mesh, upstream: &config::Upstream, secure: &Secure, lookup: &Lookup) -> Result<Running, SpawnError> {
        let answers = Answers::new(upstream);
        let balancer = Balancer::new(answers.servers(), settings_of(upstream));
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
            through: through.clone(),
        };
        if answers.has_names() || upstream.health.check != Check::Off {
            let (upstream, lookup) = (upstream.clone(), lookup.clone());
            let spec = Spec::named(upstream.name.as_str());
            let make = move || Keeper::Made {
                upstream: Box::new(upstream.clone()),
                balancer: balancer.clone(),
                lookup: lookup.clone(),
                #[cfg(feature = "http")]
                http: http.clone(),
                through: through.clone(),
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

fn lookup() -> Lookup {
    Arc::new(|host, port| Box::pin(apart(move || Ok((host.as_str(), port).to_socket_addrs()?.collect()))))
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

/// The actor of one upstream.
enum Keeper {
    Made {
        upstream: Box<config::Upstream>,
        balancer: Arc<Balancer>,
        lookup: Lookup,
        through: Option<Through>,
        #[cfg(feature = "http")]
        http: Arc<crate::transports::http::Upstream>,
    },
    Runs(Pin<Box<dyn Future<Output = Infallible>>>),
    Ended,
}

impl Protocol for Keeper {
    type Msg = Infallible;
    const KIND: &'static str = "upstream";

    fn started(&mut self, turn: &mut Turn<'_, Infallible>) -> Result<(), Fault> {
        #[cfg(feature = "http")]
        if let Self::Made { upstream, balancer, lookup, through, http } = std::mem::replace(self, Self::Ended) {
            let asked = Asked { network: network_of(through.as_ref()), http };
            *self = Self::Runs(Box::pin(keep(*upstream, balancer, lookup, asked, turn.tally())));
        }
        #[cfg(not(feature = "http"))]
        if let Self::Made { upstream, balancer, lookup, through } = std::mem::replace(self, Self::Ended) {
            let asked = Asked { network: network_of(through.as_ref()) };
            *self = Self::Runs(Box::pin(keep(*upstream, balancer, lookup, asked, turn.tally())));
        }
        Ok(())
    }

    fn on(&mut self, m: Infallible, _: &mut Turn<'_, Infallible>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Infallible>) -> Result<Progress, Fault> {
        match self {
            Self::Runs(future) => match future.as_mut().poll(&mut turn.cx()) {
                std::task::Poll::Pending => Ok(Progress::Idle),
            },
            Self::Made { .. } | Self::Ended => Ok(Progress::Idle),
        }
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, Infallible>) {
        *self = Self::Ended;
        turn.stop();
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// What one keeper counts under.
struct Count {
    tally: Tally,
    upstream: Arc<str>,
}

impl Count {
    fn raise(&self, family: &'static str, reason: &'static str) {
        self.tally.raise(family, &self.upstream, reason);
    }
}

async fn keep(
    upstream: config::Upstream,
    balancer: Arc<Balancer>,
    lookup: Lookup,
    asked: Asked,
    tally: Tally,
) -> Infallible {
    let count = Count { tally, upstream: Arc::from(upstream.name.as_str()) };
    let answers = RefCell::new(Answers::new(&upstream));
    let names = upstream.servers.iter().enumerate().filter_map(|(at, server)| match server {
        Server::Name { host, port }
        | Server::Quic { host: Host::Name(host), port }
        | Server::Udp { host: Host::Name(host), port } => Some((at, host, *port)),
        Server::Tcp(_) | Server::Unix(_) | Server::Quic { .. } | Server::Udp { .. } => None,
    });
    // Each name goes round on its own: a slow one does not hold up the others.
    let names = names.map(|(at, host, port)| {
        let (count, lookup, answers, balancer) = (&count, &lookup, &answers, &balancer);
        async move {
            resolve(
                upstream.resolve,
                host,
                count,
                || lookup(host.clone(), port),
                |addresses| {
                    let mut answers = answers.borrow_mut();
                    if answers.set(at, addresses) {
                        balancer.set_servers(answers.servers());
                    }
                },
            )
            .await
        }
    });
    let checks = async {
        match upstream.health.check {
            Check::Off => std::future::pending().await,
            Check::Tcp | Check::Http => check(&upstream.health, &balancer, &asked, &count).await,
        }
    };
    join(join_all(names), checks).await.1
}

/// Looks a name up once, on a thread of its own.
#[cfg(feature = "wireguard")]
pub(super) async fn look_up(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    apart(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
}

/// Runs what blocks on a thread of its own, which nobody waits for: the end of a runtime waits for its blocking
/// threads, and the resolver of the system may take half a minute. One per name at a time.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("lookup".to_owned()).spawn(move || {
        let _nobody_waits = tell.send(work());
    })?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("the look-up panicked")))
}

/// What is known of the servers, in the order of the file.
struct Answers(Vec<Answer>);

enum Answer {
    Given(Address),
    /// What a name led to last, and what is spoken there.
    Found(Spoken, Vec<Address>),
}

/// What is spoken at an address that a name led to.
enum Spoken {
    Tcp,
    Udp,
    /// QUIC, by a server whose certificate names this.
    Quic(Arc<str>),
    /// TLS, by a server whose certificate names this.
    Tls(Arc<str>),
}

impl Spoken {
    fn at(&self, address: SocketAddr) -> Address {
        match self {
            Self::Tcp => Address::Tcp(address),
            Self::Udp => Address::Udp(address),
            Self::Quic(name) => Address::Quic { address, name: name.clone() },
            Self::Tls(name) => Address::Tls { address, name: name.clone() },
        }
    }
}

impl Answers {
    fn new(upstream: &config::Upstream) -> Self {
        let demanded = upstream.tls.as_ref().and_then(|tls| tls.name.as_deref());
        let there = |host: &Host, port: u16, spoken: Spoken| match host {
            Host::Address(ip) => Answer::Given(spoken.at(SocketAddr::new(*ip, port))),
            Host::Name(_) => Answer::Found(spoken, Vec::new()),
        };
        let answer = |server: &Server| match server {
            Server::Tcp(address) if upstream.tls.is_some() => {
                let name = demanded.map_or_else(|| Arc::from(address.ip().to_string()), Arc::from);
                Answer::Given(Spoken::Tls(name).at(*address))
            }
            Server::Name { host, .. } if upstream.tls.is_some() => {
                Answer::Found(Spoken::Tls(Arc::from(demanded.unwrap_or(host))), Vec::new())
            }
            Server::Tcp(address) => Answer::Given(Address::Tcp(*address)),
            Server::Unix(path) => Answer::Given(Address::Unix(path.clone())),
            Server::Name { .. } => Answer::Found(Spoken::Tcp, Vec::new()),
            Server::Udp { host, port } => there(host, *port, Spoken::Udp),
            Server::Quic { host, port } => {
                let name = demanded.map_or_else(|| Arc::from(host.to_string()), Arc::from);
                there(host, *port, Spoken::Quic(name))
            }
        };
        Self(upstream.servers.iter().map(answer).collect())
    }

    fn has_names(&self) -> bool {
        self.0.iter().any(|answer| matches!(answer, Answer::Found(..)))
    }

    fn servers(&self) -> Vec<Address> {
        let all = self.0.iter().flat_map(|answer| match answer {
            Answer::Given(address) => std::slice::from_ref(address),
            Answer::Found(_, addresses) => addresses,
        });
        all.cloned().collect()
    }

    /// Whether that is news. Resolvers give the addresses of a name in any order.
    fn set(&mut self, at: usize, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort();
        addresses.dedup();
        addresses.truncate(ADDRESSES);
        let Some(Answer::Found(spoken, before)) = self.0.get_mut(at) else { return false };
        let addresses: Vec<_> = addresses.into_iter().map(|address| spoken.at(address)).collect();
        let news = *before != addresses;
        *before = addresses;
        news
    }
}

/// Looks one name up again and again.
async fn resolve(
    every: Duration,
    host: &str,
    count: &Count,
    lookup: impl Fn() -> LocalBoxFuture<'static, io::Result<Vec<SocketAddr>>>,
    found: impl Fn(Vec<SocketAddr>),
) -> Infallible {
    let mut ever = false;
    let mut failing = false;
    loop {
        let addresses = lookup().await.and_then(|addresses| {
            if addresses.is_empty() { Err(io::Error::other("the name leads to no address")) } else { Ok(addresses) }
        });
        match addresses {
            Ok(addresses) => {
                count.raise("upstream_resolve", "ok");
                found(addresses);
                if failing {
                    tracing::info!(upstream = %count.upstream, host, "the name is found again");
                }
                (ever, failing) = (true, false);
            }
            Err(error) => {
                count.raise("upstream_resolve", "failed");
                if !failing {
                    tracing::warn!(upstream = %count.upstream, host, %error, "the name of a server is not found");
                }
                failing = true;
            }
        }
        sleep(if ever { every } else { every.min(FIRST_ANSWER) }).await;
    }
}

/// Checks that went the same way in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Streak {
    good: u32,
    bad: u32,
}

impl Streak {
    /// What the server is to be taken for from now on, if that changes.
    fn note(&mut self, good: bool, healthy: bool, health: &Health) -> Option<bool> {
        if good {
            *self = Self { good: self.good.saturating_add(1), bad: 0 };
            (!healthy && self.good >= health.healthy_after).then_some(true)
        } else {
            *self = Self { good: 0, bad: self.bad.saturating_add(1) };
            (healthy && self.bad >= health.unhealthy_after).then_some(false)
        }
    }
}

/// Connects to each server again and again.
async fn check(health: &Health, balancer: &Arc<Balancer>, asked: &Asked, count: &Count) -> Infallible {
    let mut streaks: BTreeMap<ServerId, Streak> = BTreeMap::new();
    loop {
        let began = now();
        let servers = balancer.view(began);
        streaks.retain(|id, _| servers.iter().any(|server| server.id == *id));
        let checks = servers.into_iter().map(|server| async move { (connects(&server, health, asked).await, server) });
        let mut checks = stream::iter(checks).buffer_unordered(CHECKS);
        while let Some((result, server)) = checks.next().await {
            let good = match result {
                Found::Up => true,
                Found::Down => false,
                // Says nothing about the server.
                Found::Unknown => {
                    count.raise("upstream_checks", "local");
                    continue;
                }
            };
            count.raise("upstream_checks", if good { "ok" } else { "failed" });
            if let Some(healthy) = streaks.entry(server.id).or_default().note(good, server.healthy, health) {
                balancer.set_health(server.id, healthy);
                // Servers are no peers: whoever mends one has to know which.
                if healthy {
                    tracing::info!(upstream = %count.upstream, server = %server.address, "a server is back");
                } else {
                    tracing::warn!(upstream = %count.upstream, server = %server.address, "a server is down");
                }
            }
        }
        sleep_until(later(began, health.interval)).await;
    }
}

enum Found {
    Up,
    Down,
    Unknown,
}

async fn connects(server: &ServerView, health: &Health, asked: &Asked) -> Found {
    let path = (health.check == Check::Http).then_some(health.path.as_str());
    if let Some(found) = asked.in_their_way(server, health, path).await {
        return found;
    }
    let mut network = asked.network.clone();
    let host = match &server.address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(_) => "localhost".to_owned(),
        // The configuration refuses checks of these.
        Address::Quic { .. } | Address::Udp(_) | Address::Tls { .. } => return Found::Unknown,
    };
    let connected = within(health.timeout, async {
        let mut stream = network.dial(&server.address)?;
        std::future::poll_fn(|cx| network.poll_connected(&mut stream, cx)).await?;
        answers(stream, &host, path).await
    });
    match connected.await {
        Ok(Ok(())) => Found::Up,
        Ok(Err(error)) if is_ours(&error) => Found::Unknown,
        Ok(Err(_)) | Err(_) => Found::Down,
    }
}

/// How servers are reached, and asked if they speak TLS or HTTP/2.
struct Asked {
    network: Network,
    #[cfg(feature = "http")]
    http: Arc<crate::transports::http::Upstream>,
}

impl Asked {
    #[cfg(feature = "http")]
    async fn in_their_way(&self, server: &ServerView, health: &Health, path: Option<&str>) -> Option<Found> {
        if !self.http.is_asked_in_its_own_way() || (path.is_none() && self.http.tls.is_none()) {
            return None;
        }
        let answer = within(health.timeout, crate::transports::http::ask(&self.http, &server.address, path)).await;
        if let Ok(Err(error)) = &answer {
            tracing::debug!(server = %server.address, %error, "a check failed");
        }
        Some(match answer {
            Ok(Ok(status)) if status.is_success() || status.is_redirection() => Found::Up,
            Ok(Err(error)) if is_ours(&error) => Found::Unknown,
            Ok(Ok(_) | Err(_)) | Err(_) => Found::Down,
        })
    }

    #[cfg(not(feature = "http"))]
    async fn in_their_way(&self, _: &ServerView, _: &Health, _: Option<&str>) -> Option<Found> {
        std::future::ready(None).await
    }
}

/// Whether a server answers a request for `path` well, if it is to be asked.
async fn answers(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    host: &str,
    path: Option<&str>,
) -> io::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: portway-check\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // `HTTP/1.1 200`: the status is all that counts.
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    match &head {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'2' | b'3', _, _] => Ok(()),
        _ => Err(io::Error::other("the answer is not from 200 to 399")),
    }
}

/// Whether this machine lacks what a connection needs, whoever it goes to.
fn is_ours(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    // A tunnel that is not up is no fault of a server behind it.
    error.kind() == io::ErrorKind::NetworkDown
        || Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::MeshConfig;
    use parking_lot::Mutex;

    #[test]
    fn streaks_decide_only_changes() {
        let health = Health { healthy_after: 2, unhealthy_after: 3, ..Health::default() };
        let mut streak = Streak::default();
        let note = |streak: &mut Streak, good, healthy| streak.note(good, healthy, &health);
        assert_eq!(note(&mut streak, false, true), None);
        assert_eq!(note(&mut streak, false, true), None);
        assert_eq!(note(&mut streak, true, true), None);
        assert_eq!([(); 3].map(|()| note(&mut streak, false, true)), [None, None, Some(false)]);
        assert_eq!(note(&mut streak, false, false), None);
        assert_eq!(note(&mut streak, true, false), None);
        assert_eq!(note(&mut streak, true, false), Some(true));
    }

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
