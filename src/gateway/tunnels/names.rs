//! Endpoints that are written as names: looked up at the start and every minute, as addresses behind dynamic DNS change.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::actors::{Kind, Mail, Mesh, Place, Spec, clock};
use crate::gateway::config::wireguard::{Peer, Wireguard};
use crate::gateway::upstreams;
use crate::transports::wireguard::{DeviceMsg, Interface};

/// How often.
const EVERY: Duration = Duration::from_secs(60);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// The actor that looks names up.
#[derive(Debug, Clone, Copy)]
struct Names;

impl Kind for Names {
    const KIND: &'static str = "wireguard_names";
}

/// Starts looking up the names of an interface, if it has any. Ends with the interface.
pub(crate) fn start(
    mesh: &Mesh,
    name: &Arc<str>,
    wireguard: &Wireguard,
    interface: &Interface,
) -> Option<Mail<Infallible>> {
    let peers: Vec<Peer> = wireguard.peers.iter().filter(|peer| peer.endpoint_name.is_some()).cloned().collect();
    if peers.is_empty() {
        return None;
    }
    let device = interface.device().clone();
    let started = mesh.drive::<Names, _>(Place::System, Spec::named(name.clone()), move |driver| async move {
        tokio::select! {
            () = look_up(&peers, &device) => {}
            _ = device.closed() => {}
            () = driver.drained() => {}
        }
        Ok(())
    });
    match started {
        Ok(mail) => Some(mail),
        Err(error) => {
            tracing::warn!(listener = %name, %error, "the names of endpoints are not looked up");
            None
        }
    }
}

async fn look_up(peers: &[Peer], device: &Mail<DeviceMsg>) {
    let mut known: Vec<Option<SocketAddr>> = vec![None; peers.len()];
    loop {
        let mut failed = false;
        for (peer, last) in peers.iter().zip(&mut known) {
            let Some((host, port)) = &peer.endpoint_name else { continue };
            match upstreams::look_up(host.clone(), *port).await {
                Ok(found) => {
                    // The address in use stays in use for as long as the name leads to it.
                    if last.is_some_and(|last| found.contains(&last)) {
                        continue;
                    }
                    let Some(address) = found.first() else { continue };
                    *last = Some(*address);
                    let settings = crate::transports::wireguard::PeerSettings {
                        endpoint: Some(*address),
                        ..peer.settings.clone()
                    };
                    // Without room it is told again after the next look-up.
                    if device.tell(DeviceMsg::Set(Box::new(settings))).is_err() {
                        *last = None;
                    }
                }
                Err(error) => {
                    tracing::debug!(host, %error, "the name of an endpoint is not found");
                    failed = true;
                }
            }
        }
        clock::sleep(if failed { AGAIN } else { EVERY }).await;
    }
}
