//! What is inside a tunnel: a private network, an interface of the host, or a netstack, with the services there.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::config::{Listener, Protocol};
use super::config_wireguard::{InsideService, Mode, Speaks, Wireguard};
use super::listeners;
use super::tunnels::Around;
use super::{ListenerStatus, StartError};
use crate::actors::{Control, Mail, Place, Spec};
use crate::transports::framed::Echo;
use crate::transports::netstack::{self, Forwarded, Framed, MakeServe, NetMsg, Relayed};
use crate::transports::relay::RelaySettings;
use crate::transports::tcp;
use crate::transports::tun::{
    HostNetwork, HostSettings, OffloadKnob, Prefix, PrivateNetwork, PrivateSettings, ToTun, Tun, TunActor, TunMsg,
};
use crate::transports::wireguard::{self as wg, Interface, Network, Threading};

/// Where Linux keeps the TUN node.
const NODE: &str = "/dev/net/tun";
/// Messages and bytes that wait for an interface, at most.
const TUN_INBOX: (usize, usize) = (4_096, 16 << 20);
/// The argument that makes our program a helper.
const HELPER: &str = "private-network";

/// What is inside one tunnel.
pub(crate) struct Inside {
    pub(super) running: Running,
    /// Why `auto` did not make a private network.
    pub(super) why: Option<String>,
}

/// The three kinds.
pub(crate) enum Running {
    Netstack(Mail<NetMsg>),
    Private(Kernel<PrivateNetwork>),
    Tun(Kernel<HostNetwork>),
}

/// A network whose TCP is the kernel's.
pub(crate) struct Kernel<N> {
    tun: Mail<TunMsg>,
    services: Vec<Arc<ListenerStatus>>,
    /// Lives as long as this.
    _network: N,
}

impl Inside {
    pub(super) const fn mode(&self) -> &'static str {
        match self.running {
            Running::Netstack(_) => "netstack",
            Running::Private(_) => "private",
            Running::Tun(_) => "tun",
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        match &self.running {
            Running::Netstack(stack) => !stack.is_closed(),
            Running::Private(kernel) => kernel.is_alive(),
            Running::Tun(kernel) => kernel.is_alive(),
        }
    }

    pub(super) fn stop(&self) {
        match &self.running {
            Running::Netstack(stack) => stack.control(Control::Stop),
            Running::Private(kernel) => kernel.stop(),
            Running::Tun(kernel) => kernel.stop(),
        }
    }

    pub(super) fn drain(&self, by: Instant) {
        let services = match &self.running {
            Running::Netstack(_) => return,
            Running::Private(kernel) => &kernel.services,
            Running::Tun(kernel) => &kernel.services,
        };
        services.iter().for_each(|service| service.acceptor.control(Control::Drain(by)));
    }

    /// The same netstack with other services.
    pub(super) fn adjusted(
        &self,
        around: Around<'_>,
        listener: &Listener,
        wireguard: &Wireguard,
    ) -> Result<Self, StartError> {
        let Running::Netstack(stack) = &self.running else {
            return Err(StartError::Options {
                listener: listener.name.clone(),
                place: listener.place.clone(),
                message: "this network cannot be adjusted while it runs".to_owned(),
            });
        };
        // Refused only when it is flooded; then its services stay those of before, which is said.
        if stack.tell(NetMsg::Services(in_netstack(around, listener, wireguard)?)).is_err() {
            tracing::warn!(listener = %listener.name, "the netstack is too busy to change its services");
        }
        Ok(Self { running: Running::Netstack(stack.clone()), why: self.why.clone() })
    }
}

impl<N> Kernel<N> {
    fn is_alive(&self) -> bool {
        !self.tun.is_closed() && self.services.iter().all(|service| service.accepting())
    }

    fn stop(&self) {
        self.tun.control(Control::Stop);
        self.services.iter().for_each(|service| service.acceptor.control(Control::Stop));
    }
}

/// Starts what the configuration asks for.
pub(super) fn start(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
    interface: &Interface,
    threading: &Threading,
) -> Result<Inside, StartError> {
    let refuse = |message: String| StartError::Options {
        listener: listener.name.clone(),
        place: listener.place.clone(),
        message,
    };
    // What is inside reads and writes packets: with the socket on one arbiter, else beside the first session.
    let place = match threading {
        Threading::Single { arbiter } => Place::On(*arbiter),
        Threading::Pipeline { crypto, .. } => Place::On(crypto.first().copied().unwrap_or(0)),
    };
    let netstack = |why: Option<String>| {
        let running = netstack_of(around, listener, wireguard, interface, place)?;
        Ok(Inside { running: Running::Netstack(running), why })
    };
    match wireguard.mode {
        Mode::Netstack => netstack(None),
        Mode::Tun => {
            let settings = HostSettings {
                node: PathBuf::from(NODE),
                name: listener.name.clone(),
                mtu: wireguard.mtu,
                offload: OffloadKnob::Auto,
                addresses: prefixes(wireguard),
                routes: wireguard.peers.iter().flat_map(|peer| &peer.settings.allowed).map(prefix).collect(),
                mark: u32::from(listener.listen.port()),
                masquerade: wireguard.masquerade,
            };
            let (network, tun) = HostNetwork::start(&settings).map_err(|error| refuse(error.to_string()))?;
            let kernel = kernel(around, listener, wireguard, interface, place, (network, tun), |_, service| {
                tcp::bind(service.listen).map_err(|error| error.to_string())
            })?;
            Ok(Inside { running: Running::Tun(kernel), why: None })
        }
        Mode::Private => match private_of(around, listener, wireguard, interface, place) {
            Ok(kernel) => Ok(Inside { running: Running::Private(kernel?), why: None }),
            Err(why) => Err(refuse(format!("no private network: {why}"))),
        },
        Mode::Auto => match private_of(around, listener, wireguard, interface, place) {
            Ok(kernel) => Ok(Inside { running: Running::Private(kernel?), why: None }),
            Err(why) => netstack(Some(why)),
        },
    }
}

type Started<N> = Result<Kernel<N>, StartError>;

/// A private network, or why this host gives none.
fn private_of(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
    interface: &Interface,
    place: Place,
) -> Result<Started<PrivateNetwork>, String> {
    let program = around.helper.ok_or("this program brings no helper that makes one")?;
    let settings = PrivateSettings {
        program: program.clone(),
        arguments: vec![HELPER.to_owned()],
        node: PathBuf::from(NODE),
        name: "tun0".to_owned(),
        mtu: wireguard.mtu,
        offload: true,
        addresses: prefixes(wireguard),
        congestion: None,
    };
    if !wireguard.forward.is_empty() {
        return Err("`forward` is served by a netstack".to_owned());
    }
    let made = PrivateNetwork::start(&settings).map_err(|error| error.to_string())?;
    Ok(kernel(around, listener, wireguard, interface, place, made, |network, service| {
        network.tcp_listener(service.listen, false).map_err(|error| error.to_string())
    }))
}

/// The actor of an interface, and acceptors for the services behind it.
fn kernel<N>(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
    interface: &Interface,
    place: Place,
    (network, tun): (N, Tun),
    bind: impl Fn(&N, &InsideService) -> Result<TcpListener, String>,
) -> Started<N> {
    let mut prepared = Vec::new();
    for service in &wireguard.services {
        let listener = as_listener(listener, service);
        let socket = bind(&network, service).map_err(|why| StartError::Options {
            listener: listener.name.clone(),
            place: listener.place.clone(),
            message: format!("cannot listen on {}: {why}", service.listen),
        })?;
        let made = listeners::made(&listener, &std::collections::BTreeMap::new(), around.upstreams)?;
        prepared.push(listeners::Prepared {
            listener,
            socket: Arc::new(socket),
            made,
            web: None,
            occupancy: Arc::default(),
        });
    }
    let router = interface.router();
    let scope: Arc<str> = Arc::from(listener.name.as_str());
    let spec = Spec::named(scope.clone()).inbox(TUN_INBOX.0, TUN_INBOX.1);
    let tun = around.mesh.spawn(place, spec, move || TunActor::new(tun, scope, router)).map_err(StartError::Spawn)?;
    let into = ToTun(tun.clone());
    interface.attach(move || Box::new(into.clone()));
    let services = listeners::start_all(around.mesh, prepared, around.budget).inspect_err(|_| {
        tun.control(Control::Stop);
    })?;
    Ok(Kernel { tun, services, _network: network })
}

/// A service as a listener of its own: the same limits, a name that says where it is.
fn as_listener(listener: &Listener, service: &InsideService) -> Listener {
    Listener {
        name: format!("{}-{}", listener.name, service.listen.port()),
        listen: service.listen,
        place: listener.place.clone(),
        limits: listener.limits.clone(),
        protocol: match &service.speaks {
            Speaks::Framed(framed) => Protocol::Framed(framed.clone()),
            Speaks::Relay(relay) => Protocol::Relay(relay.clone()),
        },
    }
}

fn netstack_of(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
    interface: &Interface,
    place: Place,
) -> Result<Mail<NetMsg>, StartError> {
    let mtu = usize::from(wireguard.mtu);
    let mut settings = netstack::Settings::new(&listener.name, wireguard.addresses.clone(), mtu);
    settings.services = in_netstack(around, listener, wireguard)?;
    if !wireguard.forward.is_empty() {
        let (name, idle) = (Arc::<str>::from(listener.name.as_str()), listener.limits.idle);
        let idle = (!idle.is_zero()).then_some(idle);
        let make: MakeServe = Arc::new(move || Box::new(Forwarded::new(name.clone(), idle)));
        settings.forward = Some((wireguard.forward.clone(), make));
    }
    wg::start_netstack(around.mesh, place, interface, settings).map_err(StartError::Spawn)
}

fn in_netstack(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
) -> Result<Vec<(std::net::SocketAddr, MakeServe)>, StartError> {
    let mut all = Vec::new();
    for service in &wireguard.services {
        let own = as_listener(listener, service);
        let refuse =
            |message: String| StartError::Options { listener: own.name.clone(), place: own.place.clone(), message };
        let name: Arc<str> = Arc::from(own.name.as_str());
        let make: MakeServe = match &service.speaks {
            Speaks::Framed(framed) => {
                let settings = Arc::new(listeners::settings_of(&own, framed).map_err(refuse)?);
                Arc::new(move || Box::new(Framed::new(name.clone(), settings.clone(), || Echo)))
            }
            Speaks::Relay(relay) => {
                let balancer = around
                    .upstreams
                    .get(&relay.upstream)
                    .ok_or_else(|| refuse(format!("there is no upstream `{}`", relay.upstream)))?;
                let mut settings = RelaySettings::new(balancer.clone(), Arc::from(relay.upstream.as_str()));
                settings.connect_timeout =
                    around.upstreams.connect_timeout(&relay.upstream).unwrap_or(settings.connect_timeout);
                settings.attempts = usize::try_from(relay.attempts).unwrap_or(usize::MAX);
                settings.idle = (!own.limits.idle.is_zero()).then_some(own.limits.idle);
                let settings = Arc::new(settings);
                Arc::new(move || Box::new(Relayed::new(name.clone(), settings.clone())))
            }
        };
        all.push((service.listen, make));
    }
    Ok(all)
}

fn prefixes(wireguard: &Wireguard) -> Vec<Prefix> {
    wireguard.addresses.iter().map(|(address, network)| Prefix { address: *address, bits: network.prefix() }).collect()
}

fn prefix(network: &Network) -> Prefix {
    Prefix { address: network.address(), bits: network.prefix() }
}
