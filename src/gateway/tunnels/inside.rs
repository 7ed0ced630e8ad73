//! What is inside a tunnel: a private network, an interface of the host, or a netstack, with the services there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::kernel::{self, Join, Kernel};
use super::way::Kept;
use super::{Around, datagrams};
use crate::actors::{Control, Mail, Place};
use crate::gateway::config::wireguard::{InsideService, Mode, Speaks, Wireguard};
use crate::gateway::config::{FramedService, Listener, Protocol};
use crate::gateway::sites::Web;
use crate::gateway::{StartError, listeners};
use crate::transports::framed::Echo;
use crate::transports::framed::rooms::Limits;
#[cfg(feature = "http")]
use crate::transports::kit::admission::{Admission, Occupancy};
#[cfg(feature = "http")]
use crate::transports::netstack::Sited;
use crate::transports::netstack::{self, Beside, Forwarded, Framed, MakeServe, NetMsg, Relayed, Roomed};
use crate::transports::relay::Way;
use crate::transports::tun::HostNetwork;
use crate::transports::wireguard::{self as wg, Interface, Threading};

/// What is inside one tunnel.
pub(crate) struct Inside {
    pub(crate) running: Running,
    /// Why `auto` did not make a private network.
    pub(crate) why: Option<String>,
    /// What takes datagrams out before it.
    beside: Option<Beside>,
    /// What a netstack serves.
    stacked: Vec<Stacked>,
}

/// A service of a netstack.
#[derive(Clone)]
struct Stacked {
    service: InsideService,
    make: MakeServe,
    web: Option<Web>,
}

/// The three kinds.
pub(crate) enum Running {
    Netstack(Mail<NetMsg>),
    Private(Arc<Kernel<Kept>>),
    Tun(Arc<Kernel<HostNetwork>>),
}

impl Inside {
    pub(crate) const fn mode(&self) -> &'static str {
        match self.running {
            Running::Netstack(_) => "netstack",
            Running::Private(_) => "private",
            Running::Tun(_) => "tun",
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        if !self.beside.as_ref().is_none_or(Beside::is_alive) {
            return false;
        }
        match &self.running {
            Running::Netstack(stack) => !stack.is_closed(),
            Running::Private(kernel) => kernel.is_alive(),
            Running::Tun(kernel) => kernel.is_alive(),
        }
    }

    pub(crate) fn stop(&self) {
        self.beside.iter().for_each(Beside::stop);
        match &self.running {
            Running::Netstack(stack) => stack.control(Control::Stop),
            Running::Private(kernel) => kernel.stop(),
            Running::Tun(kernel) => kernel.stop(),
        }
    }

    /// The way for streams into the tunnel.
    pub(crate) fn way(&self, name: &Arc<str>) -> Option<Arc<dyn Way>> {
        match &self.running {
            Running::Netstack(stack) => Some(Arc::new(netstack::Via::new(stack.clone()))),
            Running::Private(kernel) => kernel.way(),
            Running::Tun(kernel) => Some(kernel.way(name)),
        }
    }

    pub(crate) fn drain(&self, by: Instant) {
        match &self.running {
            Running::Netstack(_) => {}
            Running::Private(kernel) => kernel.drain(by),
            Running::Tun(kernel) => kernel.drain(by),
        }
    }

    /// The same network with other peers and other services.
    pub(crate) fn adjusted(
        &self,
        around: Around<'_>,
        listener: &Listener,
        wireguard: &Wireguard,
    ) -> Result<Self, StartError> {
        let mut stacked = Vec::new();
        let running = match &self.running {
            Running::Netstack(stack) => {
                stacked = in_netstack(around, listener, wireguard, &self.stacked)?;
                // Refused only when it is flooded; then its services stay those of before, which is said.
                if stack.tell(NetMsg::Services(served(&stacked))).is_err() {
                    tracing::warn!(listener = %listener.name, "the netstack is too busy to change its services");
                }
                stacked.iter().filter_map(|one| one.web.as_ref()).for_each(Web::publish);
                Running::Netstack(stack.clone())
            }
            // Everything that is not its own goes into the tunnel, whoever the peers are.
            Running::Private(kernel) => {
                kernel.adjust(around, listener, wireguard)?;
                Running::Private(kernel.clone())
            }
            Running::Tun(kernel) => {
                kernel.adjust(around, listener, wireguard)?;
                kernel.reroute(&listener.name, &kernel::routes(kernel::settings_of(wireguard)));
                Running::Tun(kernel.clone())
            }
        };
        if let Some(beside) = &self.beside {
            beside.serve(datagrams::services(around, listener, wireguard)?);
        }
        Ok(Self { running, why: self.why.clone(), beside: self.beside.clone(), stacked })
    }
}

/// Starts what the configuration asks for.
pub(crate) fn start(
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
    let beside = datagrams::start(around, listener, wireguard, interface, place)?;
    let join = Join { around, listener, wireguard, interface, place, beside: beside.as_ref() };
    let mut stacked = Vec::new();
    let mut netstack = || {
        stacked = in_netstack(around, listener, wireguard, &[])?;
        netstack_of(join, served(&stacked)).map(Running::Netstack)
    };
    let started = match wireguard.mode {
        Mode::Netstack => netstack().map(|running| (running, None)),
        Mode::Tun => kernel::host(join).map(|kernel| (Running::Tun(Arc::new(kernel)), None)),
        Mode::Private | Mode::Auto => match kernel::private(join) {
            Ok(kernel) => kernel.map(|kernel| (Running::Private(Arc::new(kernel)), None)),
            Err(why) if wireguard.mode == Mode::Auto => netstack().map(|running| (running, Some(why))),
            Err(why) => Err(refuse(format!("no private network: {why}"))),
        },
    };
    match started {
        Ok((running, why)) => Ok(Inside { running, why, beside, stacked }),
        Err(error) => {
            beside.iter().for_each(Beside::stop);
            Err(error)
        }
    }
}

/// A service of streams as a listener of its own: the same limits, a name that says where it is.
pub(crate) fn as_listener(listener: &Listener, service: &InsideService) -> Option<Listener> {
    Some(Listener {
        name: format!("{}-{}", listener.name, service.listen.port()),
        listen: service.listen,
        place: listener.place.clone(),
        limits: listener.limits.clone(),
        protocol: match &service.speaks {
            Speaks::Framed(framed) => Protocol::Framed(framed.clone()),
            Speaks::Relay(relay) => Protocol::Relay(relay.clone()),
            #[cfg(feature = "http")]
            Speaks::Http(http) => Protocol::Http(http.clone()),
            Speaks::Udp(_) => return None,
        },
    })
}

fn netstack_of(join: Join<'_>, services: Vec<(SocketAddr, MakeServe)>) -> Result<Mail<NetMsg>, StartError> {
    let Join { around, listener, wireguard, interface, place, beside } = join;
    let mtu = usize::from(wireguard.mtu);
    let mut settings = netstack::Settings::new(&listener.name, wireguard.addresses.clone(), mtu);
    settings.services = services;
    if !wireguard.forward.is_empty() {
        let (name, idle) = (Arc::<str>::from(listener.name.as_str()), listener.limits.idle);
        let idle = (!idle.is_zero()).then_some(idle);
        let make: MakeServe = Arc::new(move || Box::new(Forwarded::new(name.clone(), idle)));
        settings.forward = Some((wireguard.forward.clone(), make));
    }
    wg::start_netstack_beside(around.mesh, place, interface, settings, beside.cloned()).map_err(StartError::Spawn)
}

fn served(stacked: &[Stacked]) -> Vec<(SocketAddr, MakeServe)> {
    stacked.iter().map(|one| (one.service.listen, one.make.clone())).collect()
}

/// The services of a netstack. Those that are as `before` stay the very same.
fn in_netstack(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
    before: &[Stacked],
) -> Result<Vec<Stacked>, StartError> {
    let mut all = Vec::new();
    for service in &wireguard.services {
        let known = before.iter().find(|known| known.service.listen == service.listen);
        if let Some(known) = known.filter(|known| known.service == *service && around.is_as_before(&service.speaks)) {
            all.push(known.clone());
            continue;
        }
        let web = known.and_then(|known| known.web.as_ref());
        let Some(own) = as_listener(listener, service) else { continue };
        let made = stacked(around, &own, &service.speaks, web).map_err(|message| StartError::Options {
            listener: own.name.clone(),
            place: own.place.clone(),
            message,
        })?;
        let Some((make, web)) = made else { continue };
        all.push(Stacked { service: service.clone(), make, web });
    }
    Ok(all)
}

/// What serves one; nothing if that is not the netstack's affair.
fn stacked(
    around: Around<'_>,
    own: &Listener,
    speaks: &Speaks,
    before: Option<&Web>,
) -> Result<Option<(MakeServe, Option<Web>)>, String> {
    #[cfg(not(feature = "http"))]
    let _: Option<&Web> = before;
    let name: Arc<str> = Arc::from(own.name.as_str());
    let make: MakeServe = match speaks {
        Speaks::Framed(framed) => match (framed.service, &framed.upstream) {
            (FramedService::Forward, Some(upstream)) => {
                let settings = Arc::new(listeners::forward_to(own, framed, upstream, around.upstreams)?);
                let network = around.upstreams.network(upstream);
                Arc::new(move || Box::new(Relayed::new(network.clone(), name.clone(), settings.clone())))
            }
            (FramedService::Rooms, _) => {
                let settings = listeners::settings_of(own, framed)?;
                Arc::new(move || Box::new(Roomed::new(name.clone(), settings.clone(), Limits::default())))
            }
            // Forwarding without an upstream is refused by the check.
            (FramedService::Echo | FramedService::Forward, _) => {
                let settings = Arc::new(listeners::settings_of(own, framed)?);
                Arc::new(move || Box::new(Framed::new(name.clone(), settings.clone(), || Echo)))
            }
        },
        Speaks::Relay(relay) => {
            let settings = Arc::new(listeners::relay_to(own, relay, &relay.upstream, around.upstreams)?);
            let network = around.upstreams.network(&relay.upstream);
            Arc::new(move || Box::new(Relayed::new(network.clone(), name.clone(), settings.clone())))
        }
        #[cfg(feature = "http")]
        Speaks::Http(http) => {
            let port = own.listen.port();
            let (_, web) = crate::gateway::sites::make(own, http, around.upstreams, around.certificates, before, port)?;
            let (caps, budget) = (listeners::caps(&own.limits), around.budget.clone());
            let (occupancy, site) = (Arc::<Occupancy>::default(), web.clone());
            let make: MakeServe = Arc::new(move || {
                let admission = Admission::new(caps, budget.clone(), occupancy.clone());
                Box::new(Sited::new(site.connections(), name.clone(), admission))
            });
            return Ok(Some((make, Some(web))));
        }
        // Taken out before they come here.
        Speaks::Udp(_) => return Ok(None),
    };
    Ok(Some((make, None)))
}
