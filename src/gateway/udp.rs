//! From the configuration of listeners that relay UDP to their servers, and their part of a reload.
//!
//! A listener that keeps its name and address is changed in place: flows that exist go on as they began, new ones go by
//! the new terms. What its sockets were set up with holds until a restart, since they carry those flows. One that is
//! removed lets no new flow in, and keeps its port until the last one has ended.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Weak};

use futures_util::future::{Either, select};

use super::config::{self, Config, Listener, Protocol};
use super::reload::Reloaded;
use super::upstreams::Upstreams;
use super::{ListenerStatus, StartError, in_order};
use crate::actors::{Driver, Fault, Kind, Mail, Mesh, Place, SpawnError, Spec, clock};
use crate::memory::Budget;
use crate::transports::datagram::{self, FlowTerms, Settings, Terms, To, UdpServer};
use crate::transports::kit::admission::{Caps, Occupancy};
use crate::transports::tcp::Never;

/// What a flow takes of the memory budget before anything moves: its actor and its socket.
const BASE_BYTES: usize = 8 << 10;

/// What is needed to start one.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) upstreams: &'a Upstreams,
    pub(super) budget: &'a Budget,
}

/// Listeners that run already and go by these terms from the end of a reload on.
pub(super) type Changes = Vec<(UdpServer, Terms)>;

fn all(config: &Config) -> impl Iterator<Item = (&Listener, &config::Udp)> {
    config.listeners.iter().filter_map(|listener| {
        let Protocol::Udp(udp) = &listener.protocol else { return None };
        Some((listener, udp))
    })
}

/// Starts those of a configuration, and adds them to the others.
///
/// # Errors
/// See [`StartError`].
pub(super) fn start_all(
    config: &Config,
    around: Around<'_>,
    listeners: &mut Vec<Arc<ListenerStatus>>,
) -> Result<(), StartError> {
    for (listener, udp) in all(config) {
        listeners.push(Arc::new(start(listener, udp, around, Arc::default())?));
    }
    in_order(listeners, config);
    Ok(())
}

/// The part of a reload that can fail: starts those that are new, and says what becomes of the others.
///
/// # Errors
/// See [`StartError`]; what was started for it ends then.
pub(super) fn renew(
    (running, new): (&Config, &Config),
    old: &[Arc<ListenerStatus>],
    around: Around<'_>,
    before: &Upstreams,
    done: &mut Reloaded,
    started: &mut Vec<Arc<ListenerStatus>>,
) -> Result<Changes, StartError> {
    let was: BTreeMap<&str, _> =
        all(running).map(|(listener, udp)| (listener.name.as_str(), (listener, udp))).collect();
    let mut changes = Vec::new();
    for (listener, udp) in all(new) {
        let was = was.get(listener.name.as_str()).filter(|(was, _)| was.listen == listener.listen);
        let status = old.iter().find(|status| *status.name == *listener.name && status.accepting());
        let running = status.and_then(|status| status.udp.clone().map(|server| (status, server)));
        let (Some((old_listener, old_udp)), Some((status, server))) = (was, running) else {
            let known = old.iter().any(|status| *status.name == *listener.name);
            let names = if known { &mut done.changed } else { &mut done.added };
            names.push(listener.name.clone());
            started.push(Arc::new(start(listener, udp, around, Arc::default())?));
            continue;
        };
        for (key, differs) in [
            ("listener.udp.gso", old_udp.gso != udp.gso),
            ("listener.udp.socket_buffer", old_udp.socket_buffer != udp.socket_buffer),
        ] {
            if differs && !done.restart.contains(&key) {
                done.restart.push(key);
            }
        }
        let balancer =
            |upstreams: &Upstreams| udp.upstream.as_ref().and_then(|name| upstreams.get(name).map(Arc::as_ptr));
        let same = old_udp == &udp && old_listener.limits == listener.limits;
        if same && balancer(before) == balancer(around.upstreams) {
            done.kept.push(listener.name.clone());
            continue;
        }
        done.changed.push(listener.name.clone());
        changes.push((server, terms(listener, udp, around.upstreams)?));
        started.push(status.clone());
    }
    Ok(changes)
}

fn terms(listener: &Listener, udp: &config::Udp, upstreams: &Upstreams) -> Result<Terms, StartError> {
    let to = match &udp.upstream {
        None => To::Echo,
        Some(name) => {
            let balancer = upstreams.get(name).cloned().ok_or_else(|| StartError::Options {
                listener: listener.name.clone(),
                place: listener.place.clone(),
                message: format!("there is no upstream `{name}`"),
            })?;
            To::Upstream { name: Arc::from(name.as_str()), balancer }
        }
    };
    Ok(Terms {
        caps: Caps {
            connections: listener.limits.connections,
            per_source: listener.limits.per_source,
            half_open: listener.limits.half_open,
            base_bytes: BASE_BYTES,
        },
        to,
        flow: FlowTerms {
            idle: udp.idle,
            idle_answered: udp.idle_answered,
            longest: udp.max_datagram,
            datagrams: udp.packets_per_second,
            bytes: udp.bytes_per_second,
        },
        proxy: udp.proxy_out,
    })
}

fn start(
    listener: &Listener,
    udp: &config::Udp,
    around: Around<'_>,
    occupancy: Arc<Occupancy>,
) -> Result<ListenerStatus, StartError> {
    let name: Arc<str> = Arc::from(listener.name.as_str());
    let settings = Settings {
        name: name.clone(),
        listen: listener.listen,
        socket_buffer: udp.socket_buffer,
        gso: udp.gso,
        budget: around.budget.clone(),
        occupancy: occupancy.clone(),
        terms: terms(listener, udp, around.upstreams)?,
    };
    let server = UdpServer::start(around.mesh, settings).map_err(|error| match error {
        datagram::StartError::Bind(error) => StartError::Bind {
            listener: listener.name.clone(),
            address: listener.listen,
            place: listener.place.clone(),
            error: std::io::Error::other(error),
        },
        datagram::StartError::Spawn(error) => StartError::Spawn(error),
    })?;
    let acceptor =
        keep(around.mesh, &name, server.clone()).map_err(StartError::Spawn).inspect_err(|_| server.stop())?;
    let address = server.local_addr();
    tracing::info!(listener = %name, %address, protocol = "udp", "listening");
    Ok(ListenerStatus {
        name,
        address,
        configured: listener.listen,
        socket: Weak::new(),
        protocol: "udp".to_owned(),
        occupancy,
        web: None,
        acceptor,
        #[cfg(feature = "quic")]
        quic: None,
        udp: Some(server),
    })
}

struct Listens;

impl Kind for Listens {
    const KIND: &'static str = "listener";
}

/// The listener as one actor: it drains and stops its doors, and ends when they have.
fn keep(mesh: &Mesh, name: &Arc<str>, server: UdpServer) -> Result<Mail<Never>, SpawnError> {
    mesh.drive::<Listens, _>(Place::LeastLoaded, Spec::named(name.clone()), move |driver| doors(driver, Owned(server)))
}

/// Stops its doors when its actor ends, however it does.
struct Owned(UdpServer);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.stop();
    }
}

async fn doors(driver: Driver, server: Owned) -> Result<(), Fault> {
    let ended = pin!(server.0.stopped());
    if let Either::Right(((), ended)) = select(ended, pin!(driver.drained())).await {
        server.0.drain(driver.draining().unwrap_or_else(clock::now));
        ended.await;
    }
    Ok(())
}
