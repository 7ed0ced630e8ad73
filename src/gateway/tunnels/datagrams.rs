//! UDP of tunnels: services on upstreams over UDP, and forwarding, beside whatever is inside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Around;
use crate::actors::Place;
use crate::gateway::StartError;
use crate::gateway::config::Listener;
use crate::gateway::config::wireguard::{Speaks, Wireguard};
use crate::transports::kit::balance::Balancer;
use crate::transports::netstack::{Beside, DatagramSettings, FlowLimits};
use crate::transports::wireguard::Interface;

/// How long a flow of datagrams is remembered without one (RFC 4787, section 4.3, wants two minutes at least).
const IDLE: Duration = Duration::from_secs(120);

/// The services over UDP of a tunnel, and where they lead.
pub(crate) fn services(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
) -> Result<Vec<(SocketAddr, Arc<Balancer>)>, StartError> {
    let mut services = Vec::new();
    for service in &wireguard.services {
        let Speaks::Udp(upstream) = &service.speaks else { continue };
        let balancer = around.upstreams.get(upstream).ok_or_else(|| StartError::Options {
            listener: listener.name.clone(),
            place: listener.place.clone(),
            message: format!("there is no upstream `{upstream}`"),
        })?;
        services.push((service.listen, balancer.clone()));
    }
    Ok(services)
}

/// Starts what takes datagrams out before the inside of a tunnel; nothing if the configuration wants none.
pub(crate) fn start(
    around: Around<'_>,
    listener: &Listener,
    wireguard: &Wireguard,
    interface: &Interface,
    place: Place,
) -> Result<Option<Beside>, StartError> {
    let services = services(around, listener, wireguard)?;
    if services.is_empty() && wireguard.forward.is_empty() {
        return Ok(None);
    }
    let settings = DatagramSettings {
        name: Arc::from(listener.name.as_str()),
        services,
        forward: wireguard.forward.clone(),
        limits: FlowLimits::default(),
        idle: if listener.limits.idle.is_zero() { IDLE } else { listener.limits.idle.min(IDLE) },
        mtu: usize::from(wireguard.mtu),
    };
    let into = interface.clone();
    Beside::start(around.mesh, place, settings, move || into.router()).map(Some).map_err(StartError::Spawn)
}
