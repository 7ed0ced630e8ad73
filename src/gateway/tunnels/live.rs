//! Serves `wg`, and follows what it changes: on the host the networks of peers get routes, and the next reload is to
//! bring back the peers of the file.

use std::convert::Infallible;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::inside::{Inside, Running};
use super::{kernel, mark};
use crate::actors::{Mail, Mesh, Place, Spec};
use crate::gateway::config::Listener;
use crate::gateway::config::wireguard::Wireguard;
use crate::transports::wireguard::uapi::{self, Uapi};
use crate::transports::wireguard::{Interface, Live, SecretKey};

/// Whether `wg` has changed the peers, or the mark, since those of the file were set.
#[derive(Clone, Default)]
pub(super) struct ByWg(Arc<AtomicBool>);

impl ByWg {
    pub(super) fn has_changed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Before the peers of the file are set: a change that comes between is one to undo. Whether there was one.
    pub(super) fn forget(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    /// The peers of the file were not set.
    pub(super) fn remember(&self, changed: bool) {
        self.0.fetch_or(changed, Ordering::AcqRel);
    }
}

/// A running tunnel.
pub(super) struct Served<'a> {
    pub(super) listener: &'a Listener,
    pub(super) wireguard: &'a Wireguard,
    pub(super) interface: &'a Interface,
    pub(super) inside: &'a Inside,
    pub(super) socket: &'a UdpSocket,
    pub(super) secret: &'a SecretKey,
    pub(super) by_wg: &'a ByWg,
}

/// Starts serving `wg`. An interface works without.
pub(super) fn start(mesh: &Mesh, served: &Served<'_>) -> Option<Mail<Infallible>> {
    let Served { listener, wireguard, interface, inside, socket, secret, by_wg } = served;
    let folder = wireguard.uapi.clone()?;
    let scope: Arc<str> = Arc::from(listener.name.as_str());
    let live = Live::new((*interface).clone(), socket, (*secret).clone()).ok()?;
    let host = match &inside.running {
        Running::Tun(kernel) => Some((kernel.clone(), socket.try_clone().ok()?)),
        Running::Netstack(_) | Running::Private(_) => None,
    };
    let (by_wg, listener) = ((*by_wg).clone(), (*listener).clone());
    let live = live.telling(move |peers| {
        by_wg.remember(true);
        if let Some((kernel, socket)) = &host {
            // Also when `wg` has set another mark: by ours the tunnel's own datagrams stay out of it.
            if let Err(error) = mark(socket, &listener, peers) {
                tracing::warn!(listener = %listener.name, %error, "the socket cannot be marked");
            }
            kernel.reroute(&listener.name, &kernel::routes(peers));
        }
    });
    let name = scope.clone();
    let started = mesh.drive::<Uapi, _>(Place::System, Spec::named(scope.clone()), move |driver| {
        uapi::run(folder, name, live, driver)
    });
    started.inspect_err(|error| tracing::warn!(listener = %scope, %error, "wg is not served")).ok()
}
