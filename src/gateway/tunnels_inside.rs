//! What is inside a tunnel: a private network, an interface of the host, or a netstack, with the services there.

use std::sync::Arc;
use std::time::Instant;

use super::config::{Listener, Protocol};
use super::config_wireguard::{InsideService, Mode, Speaks, Wireguard};
use super::tunnels::Around;
use super::tunnels_kernel::{self, Join, Kernel};
use super::tunnels_way::Kept;
use super::{StartError, listeners, tunnels_datagrams};
use crate::actors::{Control, Mail, Place};
use crate::transports::framed::Echo;
use crate::transports::netstack::{self, Beside, Forwarded, Framed, MakeServe, NetMsg, Relayed};
use crate::transports::relay::Way;
use crate::transports::tun::HostNetwork;
use crate::transports::wireguard::{self as wg, Interface, Threading};

/// What is inside one tunnel.
pub(crate) struct Inside {
    pub(super) running: Running,
    /// Why `auto` did not make a private network.
    pub(super) why: Option<String>,
    /// What takes datagrams out before it.
    beside: Option<Beside>,
}

/// The three kinds.
pub(crate) enum Running {
    Netstack(Mail<NetMsg>),
    Private(Arc<Kernel<Kept>>),
    Tun(Arc<Kernel<HostNetwork>>),
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
        if !self.beside.as_ref().is_none_or(Beside::is_alive) {
            return false;
        }
        match &self.running {
            Running::Netstack(stack) => !stack.is_closed(),
            Running::Private(kernel) => kernel.is_alive(),
            Running::Tun(kernel) => kernel.is_alive(),
        }
    }

    pub(super) fn stop(&self) {
        self.beside.iter().for_each(Beside::stop);
        match &self.running {
            Running::Netstack(stack) => stack.control(Control::Stop),
            Running::Private(kernel) => kernel.stop(),
            Running::Tun(kernel) => kernel.stop(),
        }
    }

    /// The way for streams into the tunnel.
    pub(super) fn way(&self, name: &Arc<str>) -> Option<Arc<dyn Way>> {
        match &self.running {
            Running::Netstack(stack) => Some(Arc::new(netstack::Via::new(stack.clone()))),
            Running::Private(kernel) => kernel.way(),
            Running::Tun(kernel) => Some(kernel.way(name)),
        }
    }

    pub(super) fn drain(&self, by: Instant) {
        match &self.running {
            Running::Netstack(_) => {}
            Running::Private(kernel) => kernel.drain(by),
            Running::Tun(kernel) => kernel.drain(by),
        }
    }

    /// The same network with other peers, and, if it is a netstack, other services.
    pub(super) fn adjusted(
        &self,
        around: Around<'_>,
        listener: &Listener,
        wireguard: &Wireguard,
    ) -> Result<Self, StartError> {
        let running = match &self.running {
            Running::Netstack(stack) => {
                // Refused only when it is flooded; then its services stay those of before, which is said.
                if stack.tell(NetMsg::Services(in_netstack(around, listener, wireguard)?)).is_err() {
                    tracing::warn!(listener = %listener.name, "the netstack is too busy to change its services");
                }
                Running::Netstack(stack.clone())
            }
            // Everything that is not its own goes into the tunnel, whoever the peers are.
            Running::Private(kernel) => Running::Private(kernel.clone()),
            Running::Tun(kernel) => {
                kernel.reroute(&listener.name, wireguard);
                Running::Tun(kernel.clone())
            }
        };
        Ok(Self { running, why: self.why.clone(), beside: self.beside.clone() })
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
    let beside = tunnels_datagrams::start(around, listener, wireguard, interface, place)?;
    let join = Join { around, listener, wireguard, interface, place, beside: beside.as_ref() };
    let netstack = || netstack_of(join).map(Running::Netstack);
    let started = match wireguard.mode {
        Mode::Netstack => netstack().map(|running| (running, None)),
        Mode::Tun => tunnels_kernel::host(join).map(|kernel| (Running::Tun(Arc::new(kernel)), None)),
        Mode::Private | Mode::Auto => match tunnels_kernel::private(join) {
            Ok(kernel) => kernel.map(|kernel| (Running::Private(Arc::new(kernel)), None)),
            Err(why) if wireguard.mode == Mode::Auto => netstack().map(|running| (running, Some(why))),
            Err(why) => Err(refuse(format!("no private network: {why}"))),
        },
    };
    match started {
        Ok((running, why)) => Ok(Inside { running, why, beside }),
        Err(error) => {
            beside.iter().for_each(Beside::stop);
            Err(error)
        }
    }
}

/// A service of streams as a listener of its own: the same limits, a name that says where it is.
pub(super) fn as_listener(listener: &Listener, service: &InsideService) -> Option<Listener> {
    Some(Listener {
        name: format!("{}-{}", listener.name, service.listen.port()),
        listen: service.listen,
        place: listener.place.clone(),
        limits: listener.limits.clone(),
        protocol: match &service.speaks {
            Speaks::Framed(framed) => Protocol::Framed(framed.clone()),
            Speaks::Relay(relay) => Protocol::Relay(relay.clone()),
            Speaks::Udp(_) => return None,
        },
    })
}

fn netstack_of(join: Join<'_>) -> Result<Mail<NetMsg>, StartError> {
    let Join { around, listener, wireguard, interface, place, beside } = join;
    let mtu = usize::from(wireguard.mtu);
    let mut settings = netstack::Settings::new(&listener.name, wireguard.addresses.clone(), mtu);
    settings.services = in_netstack(around, listener, wireguard)?;
    if !wireguard.forward.is_empty() {
        let (name, idle) = (Arc::<str>::from(listener.name.as_str()), listener.limits.idle);
        let idle = (!idle.is_zero()).then_some(idle);
        let make: MakeServe = Arc::new(move || Box::new(Forwarded::new(name.clone(), idle)));
        settings.forward = Some((wireguard.forward.clone(), make));
    }
    wg::start_netstack_beside(around.mesh, place, interface, settings, beside.cloned()).map_err(StartError::Spawn)
}

fn in_netstack(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
) -> Result<Vec<(std::net::SocketAddr, MakeServe)>, StartError> {
    let mut all = Vec::new();
    for service in &wireguard.services {
        let Some(own) = as_listener(listener, service) else { continue };
        let refuse =
            |message: String| StartError::Options { listener: own.name.clone(), place: own.place.clone(), message };
        let name: Arc<str> = Arc::from(own.name.as_str());
        let make: MakeServe = match &service.speaks {
            Speaks::Framed(framed) => {
                let settings = Arc::new(listeners::settings_of(&own, framed).map_err(refuse)?);
                Arc::new(move || Box::new(Framed::new(name.clone(), settings.clone(), || Echo)))
            }
            Speaks::Relay(relay) => {
                let mut settings = around
                    .upstreams
                    .relay(&relay.upstream, &own.limits)
                    .ok_or_else(|| refuse(format!("there is no upstream `{}`", relay.upstream)))?;
                settings.attempts = usize::try_from(relay.attempts).unwrap_or(usize::MAX);
                let (network, settings) = (around.upstreams.network(&relay.upstream), Arc::new(settings));
                Arc::new(move || Box::new(Relayed::new(network.clone(), name.clone(), settings.clone())))
            }
            // Taken out before they come here.
            Speaks::Udp(_) => continue,
        };
        all.push((service.listen, make));
    }
    Ok(all)
}
