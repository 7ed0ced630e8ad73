//! Tunnels whose inside is a network of the kernel: a private one, or the host's, with acceptors for what is served
//! there.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Around;
use super::inside::as_listener;
use super::way::{Bound, Kept};
use crate::actors::{Control, Mail, Place, Spec};
use crate::gateway::config::wireguard::{InsideService, Offload, Speaks, Wireguard};
use crate::gateway::config::{Listener, Protocol};
use crate::gateway::listeners::{self, Prepared};
use crate::gateway::sites::Web;
use crate::gateway::{ListenerStatus, StartError};
use crate::transports::netstack::Beside;
use crate::transports::relay::{Onward, Way};
use crate::transports::tcp::{self, OnAccept};
use crate::transports::tun::{
    HostError, HostNetwork, HostSettings, OffloadKnob, Prefix, PrivateNetwork, PrivateSettings, ToTun, Tun, TunActor,
    TunError, TunMsg,
};
use crate::transports::wireguard::{Interface, Network, PeerSettings};

/// Messages and bytes that wait for an interface, at most.
const TUN_INBOX: (usize, usize) = (4_096, 16 << 20);
/// The argument that makes our program a helper.
pub(crate) const HELPER: &str = "private-network";
/// How often, and how long apart, a name is tried that the interface before this one still holds.
const TRIES: (u32, Duration) = (100, Duration::from_millis(10));

/// A network whose TCP is the kernel's.
pub(crate) struct Kernel<N> {
    tun: Mail<TunMsg>,
    /// Those of the configuration by their words, and what forwards.
    services: Mutex<Vec<(Option<InsideService>, Arc<ListenerStatus>)>>,
    /// Gone once it is stopped.
    network: Mutex<Option<N>>,
}

/// Where the sockets of services are made.
pub(crate) trait Listens {
    fn listen(&self, at: SocketAddr) -> io::Result<TcpListener>;
}

impl Listens for Kept {
    fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        Self::listen(self, at)
    }
}

impl Listens for HostNetwork {
    fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        tcp::bind(at)
    }
}

impl<N> Kernel<N> {
    pub(crate) fn is_alive(&self) -> bool {
        !self.tun.is_closed() && self.services.lock().iter().all(|(_, service)| service.accepting())
    }

    pub(crate) fn drain(&self, by: Instant) {
        self.tell_services(|| Control::Drain(by));
    }

    pub(crate) fn stop(&self) {
        self.tell_services(|| Control::Stop);
        self.tun.control(Control::Stop);
        // Rules and helpers go now: the next interface may want the same.
        drop(self.network.lock().take());
    }

    fn tell_services(&self, what: impl Fn() -> Control) {
        self.services.lock().iter().for_each(|(_, service)| service.acceptor.control(what()));
    }
}

impl<N: Listens> Kernel<N> {
    /// Serves what the configuration says now. What is as before goes on; what is changed keeps its socket.
    pub(crate) fn adjust(
        &self,
        around: Around<'_>,
        listener: &Listener,
        wireguard: &Wireguard,
    ) -> Result<(), StartError> {
        let mut running = self.services.lock();
        let network = self.network.lock();
        let Some(network) = network.as_ref() else { return Err(refuse(listener, "it has ended".to_owned())) };
        let (mut kept, mut prepared, mut words) = (Vec::new(), Vec::new(), Vec::new());
        for service in streams(wireguard) {
            let known = running.iter().find(|(_, status)| status.configured == service.listen);
            match known {
                Some((Some(was), status)) if was == service && around.is_as_before(&service.speaks) => {
                    kept.push((Some(service.clone()), status.clone()));
                    continue;
                }
                _ => {}
            }
            let status = known.map(|(_, status)| &**status);
            let socket = match status.and_then(|status| status.socket.upgrade()) {
                Some(socket) => Ok(socket),
                None => network.listen(service.listen).map(Arc::new).map_err(|error| error.to_string()),
            };
            prepared.push(prepare(around, listener, service, socket, status)?);
            words.push(Some(service.clone()));
        }
        let started = listeners::start_all(around.mesh, prepared, around.budget, around.passed)?;
        started.iter().filter_map(|status| status.web.as_ref()).for_each(Web::publish);
        kept.extend(words.into_iter().zip(started));
        for (was, status) in running.iter() {
            if was.is_none() {
                kept.push((None, status.clone()));
            } else if !kept.iter().any(|(_, now)| Arc::ptr_eq(now, status)) {
                status.acceptor.control(Control::Stop);
                // Nobody serves there any more: the port is free at once.
                if let Some(socket) = status.socket.upgrade()
                    && !kept.iter().any(|(_, now)| now.configured == status.configured)
                {
                    tcp::refuse(&*socket);
                }
            }
        }
        *running = kept;
        Ok(())
    }
}

impl Kernel<Kept> {
    /// The way for streams into it; none once it is stopped.
    pub(crate) fn way(&self) -> Option<Arc<dyn Way>> {
        self.network.lock().as_ref().map(Kept::way)
    }
}

impl Kernel<HostNetwork> {
    /// The way for streams into it.
    pub(crate) fn way(&self, name: &Arc<str>) -> Arc<dyn Way> {
        Arc::new(Bound(name.clone()))
    }

    /// Routes what the peers have now. A route that is refused is said: the peers are changed already.
    pub(crate) fn reroute(&self, name: &str, routes: &[Prefix]) {
        if let Some(network) = self.network.lock().as_mut()
            && let Err(error) = network.set_routes(routes)
        {
            tracing::warn!(listener = name, %error, "a route was refused");
        }
    }
}

/// What a kernel's network is joined to.
#[derive(Clone, Copy)]
pub(crate) struct Join<'a> {
    pub(crate) around: Around<'a>,
    pub(crate) listener: &'a Listener,
    pub(crate) wireguard: &'a Wireguard,
    pub(crate) interface: &'a Interface,
    /// Where packets are read and written.
    pub(crate) place: Place,
    /// What takes datagrams out before it.
    pub(crate) beside: Option<&'a Beside>,
}

/// An interface of the host, with its routes.
pub(crate) fn host(join: Join<'_>) -> Result<Kernel<HostNetwork>, StartError> {
    let Join { listener, wireguard, .. } = join;
    let settings = HostSettings {
        node: wireguard.tun_node.clone(),
        name: listener.name.clone(),
        mtu: wireguard.mtu,
        offload: knob(wireguard.offload),
        addresses: prefixes(wireguard),
        routes: routes(settings_of(wireguard)),
        mark: mark(listener),
        masquerade: wireguard.masquerade,
    };
    let mut tries = 0;
    let (network, tun) = loop {
        match HostNetwork::start(&settings) {
            Ok(made) => break made,
            // After a reload: the actor of the interface before ends in its own time.
            Err(HostError::Tun(TunError::Make(error)))
                if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES.0 =>
            {
                tries += 1;
                std::thread::sleep(TRIES.1);
            }
            Err(error) => return Err(refuse(listener, error.to_string())),
        }
    };
    let mut prepared = Vec::new();
    for service in streams(wireguard) {
        let socket = network.listen(service.listen).map(Arc::new).map_err(|error| error.to_string());
        prepared.push((Some(service.clone()), prepare(join.around, listener, service, socket, None)?));
    }
    start(join, network, tun, prepared)
}

/// The mark of the tunnel's own datagrams, where everything else goes into the tunnel.
pub(crate) fn mark(listener: &Listener) -> u32 {
    u32::from(listener.listen.port()).max(1)
}

/// Whether a tunnel on the host takes everything of some family.
pub(crate) fn takes_all<'a>(peers: impl IntoIterator<Item = &'a PeerSettings>) -> bool {
    routes(peers).iter().any(|route| route.bits == 0)
}

/// A private network, or why this host gives none.
pub(crate) fn private(join: Join<'_>) -> Result<Result<Kernel<Kept>, StartError>, String> {
    let Join { around, wireguard, .. } = join;
    let program = around.helper.ok_or("this program brings no helper that makes one")?;
    let settings = PrivateSettings {
        program: program.clone(),
        arguments: vec![HELPER.to_owned()],
        node: wireguard.tun_node.clone(),
        name: "tun0".to_owned(),
        mtu: wireguard.mtu,
        offload: wireguard.offload != Offload::Off,
        addresses: prefixes(wireguard),
        congestion: wireguard.congestion.clone(),
    };
    let (network, tun) = PrivateNetwork::start(&settings).map_err(|error| error.to_string())?;
    let onward = if wireguard.forward.is_empty() {
        Vec::new()
    } else {
        onward(join, &network).map_err(|error| format!("nothing can be forwarded from it: {error}"))?
    };
    Ok(with_services(join, network, tun, onward))
}

fn with_services(
    join: Join<'_>,
    network: PrivateNetwork,
    tun: Tun,
    onward: Vec<Prepared>,
) -> Result<Kernel<Kept>, StartError> {
    let mut prepared: Vec<_> = onward.into_iter().map(|one| (None, one)).collect();
    for service in streams(join.wireguard) {
        let socket = network.tcp_listener(service.listen, false).map(Arc::new).map_err(|error| error.to_string());
        prepared.push((Some(service.clone()), prepare(join.around, join.listener, service, socket, None)?));
    }
    let kept = Kept::new(join.around.mesh, &join.listener.name, network).map_err(StartError::Spawn)?;
    start(join, kept, tun, prepared)
}

/// Acceptors for connections to anywhere, and the redirect that brings these there.
fn onward(join: Join<'_>, network: &PrivateNetwork) -> Result<Vec<Prepared>, String> {
    let v4 = network.tcp_listener((Ipv4Addr::UNSPECIFIED, 0).into(), false).map_err(|error| error.to_string())?;
    let port = v4.local_addr().map_err(|error| error.to_string())?.port();
    let v6 = network.tcp_listener((Ipv6Addr::UNSPECIFIED, port).into(), false).map_err(|error| error.to_string())?;
    network.redirect_tcp(port).map_err(|error| error.to_string())?;
    let one = |socket: TcpListener, listen: SocketAddr| {
        let listener = Listener {
            name: format!("{}-forward", join.listener.name),
            listen,
            place: join.listener.place.clone(),
            limits: join.listener.limits.clone(),
            protocol: Protocol::Custom { protocol: "forward".to_owned(), options: crate::gateway::Options::default() },
        };
        let (name, idle) = (Arc::<str>::from(listener.name.as_str()), listener.limits.idle);
        let idle = (!idle.is_zero()).then_some(idle);
        let allowed = join.wireguard.forward.clone();
        let made = Box::new(move || Box::new(Onward::new(name.clone(), allowed.clone(), idle)) as Box<dyn OnAccept>);
        let inside = Some(join.listener.name.clone());
        Prepared { listener, socket: Arc::new(socket), made, web: None, occupancy: Arc::default(), inside }
    };
    Ok(vec![one(v4, (Ipv4Addr::UNSPECIFIED, port).into()), one(v6, (Ipv6Addr::UNSPECIFIED, port).into())])
}

/// The services that acceptors serve.
fn streams(wireguard: &Wireguard) -> impl Iterator<Item = &InsideService> {
    wireguard.services.iter().filter(|service| !matches!(service.speaks, Speaks::Udp(_)))
}

fn prepare(
    around: Around<'_>,
    listener: &Listener,
    service: &InsideService,
    socket: Result<Arc<TcpListener>, String>,
    before: Option<&ListenerStatus>,
) -> Result<Prepared, StartError> {
    let own = as_listener(listener, service).ok_or_else(|| refuse(listener, "not a stream".to_owned()))?;
    let socket = socket.map_err(|why| refuse(&own, format!("cannot listen on {}: {why}", own.listen)))?;
    let none = BTreeMap::new();
    let needs = listeners::Around { protocols: &none, upstreams: around.upstreams, certificates: around.certificates };
    let (made, web) = listeners::prepare(&own, needs, before, own.listen.port())?;
    let occupancy = before.map_or_else(Arc::default, |status| status.occupancy.clone());
    Ok(Prepared { listener: own, socket, made, web, occupancy, inside: Some(listener.name.clone()) })
}

/// The actor of the interface, and the acceptors behind it.
fn start<N>(
    join: Join<'_>,
    network: N,
    tun: Tun,
    prepared: Vec<(Option<InsideService>, Prepared)>,
) -> Result<Kernel<N>, StartError> {
    let router = join.interface.router();
    let scope: Arc<str> = Arc::from(join.listener.name.as_str());
    let spec = Spec::named(scope.clone()).inbox(TUN_INBOX.0, TUN_INBOX.1);
    let mesh = join.around.mesh;
    let tun = mesh.spawn(join.place, spec, move || TunActor::new(tun, scope, router)).map_err(StartError::Spawn)?;
    let into = ToTun(tun.clone());
    let beside = join.beside.cloned();
    join.interface.attach(move || match &beside {
        Some(beside) => beside.of(into.clone()),
        None => Box::new(into.clone()),
    });
    let (words, prepared): (Vec<_>, Vec<_>) = prepared.into_iter().unzip();
    let started = listeners::start_all(mesh, prepared, join.around.budget, join.around.passed).inspect_err(|_| {
        tun.control(Control::Stop);
    })?;
    let services = Mutex::new(words.into_iter().zip(started).collect());
    Ok(Kernel { tun, services, network: Mutex::new(Some(network)) })
}

fn refuse(listener: &Listener, message: String) -> StartError {
    StartError::Options { listener: listener.name.clone(), place: listener.place.clone(), message }
}

const fn knob(offload: Offload) -> OffloadKnob {
    match offload {
        Offload::Auto => OffloadKnob::Auto,
        Offload::Tcp => OffloadKnob::TcpOnly,
        Offload::Off => OffloadKnob::Off,
    }
}

/// What is routed to peers.
pub(crate) fn routes<'a>(peers: impl IntoIterator<Item = &'a PeerSettings>) -> Vec<Prefix> {
    peers.into_iter().flat_map(|peer| &peer.allowed).map(prefix).collect()
}

/// The peers of the file.
pub(crate) fn settings_of(wireguard: &Wireguard) -> impl Iterator<Item = &PeerSettings> {
    wireguard.peers.iter().map(|peer| &peer.settings)
}

fn prefixes(wireguard: &Wireguard) -> Vec<Prefix> {
    wireguard.addresses.iter().map(|(address, network)| Prefix { address: *address, bits: network.prefix() }).collect()
}

fn prefix(network: &Network) -> Prefix {
    Prefix { address: network.address(), bits: network.prefix() }
}

/// Where Linux keeps the TUN node.
pub(crate) fn default_node() -> PathBuf {
    PathBuf::from("/dev/net/tun")
}
