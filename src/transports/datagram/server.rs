//! A running UDP relay: starts its doors, changes what they go by, and ends them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::actor_door::{Door, Plan, ToDoor};
use super::settings::{Settings, Terms};
use crate::actors::{Budget, Control, Mail, Mesh, Place, SpawnError, Spec, Strategy};
use crate::memory::Snapshot;
use crate::transports::udp::{Group, GroupError, Options};

/// Messages a door's mailbox takes: each flow has one place reserved, for the news of its end. The bound on flows is the
/// admission's; this one only says that there is one.
const INBOX: usize = 16 << 20;

/// Why a relay did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The port could not be bound.
    Bind(GroupError),
    /// The mesh takes no new actors.
    Spawn(SpawnError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Spawn(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// A running relay. Clones share it; dropping the last stops nothing.
#[derive(Clone)]
pub struct UdpServer {
    inner: Arc<Inner>,
}

struct Inner {
    doors: Vec<Mail<ToDoor>>,
    local: SocketAddr,
    terms: Snapshot<Arc<Terms>>,
}

impl fmt::Debug for UdpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpServer").field("local", &self.inner.local).finish_non_exhaustive()
    }
}

impl UdpServer {
    /// Binds and starts, with a door on each arbiter.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(mesh: &Mesh, settings: Settings) -> Result<Self, StartError> {
        let arbiters = mesh.arbiters();
        let group = Group::bind(settings.listen, arbiters, false).map_err(StartError::Bind)?;
        let local = group.local_addr();
        let terms = Snapshot::new(Arc::new(settings.terms));
        // One that gives up takes the others along: a port that is read in part would lose a part of all clients.
        let supervised = mesh.group(Strategy::OneForOne, Budget::default());
        let buffer = settings.socket_buffer;
        let options = Options { receive_buffer: buffer, send_buffer: buffer, gso: settings.gso, fragment: true };
        let mut doors: Vec<Mail<ToDoor>> = Vec::with_capacity(arbiters);
        for member in 0..arbiters {
            let plan = Plan {
                name: settings.name.clone(),
                group: group.clone(),
                member,
                options: options.clone(),
                terms: terms.clone(),
                budget: settings.budget.clone(),
                occupancy: settings.occupancy.clone(),
            };
            let spec = Spec::named(settings.name.clone()).inbox(INBOX, usize::MAX);
            match supervised.spawn(Place::On(member), spec, move || Door::new(plan.clone())) {
                Ok(door) => doors.push(door),
                Err(error) => {
                    doors.iter().for_each(|door| door.control(Control::Stop));
                    return Err(StartError::Spawn(error));
                }
            }
        }
        Ok(Self { inner: Arc::new(Inner { doors, local, terms }) })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Uses these terms for new flows; those that exist go on as they began.
    pub fn change(&self, terms: Terms) {
        self.inner.terms.publish(Arc::new(terms));
    }

    /// Lets no new flow in; those there are end once nothing has moved for two seconds, and by `by` at the latest. The
    /// port closes with the last one.
    pub fn drain(&self, by: Instant) {
        self.inner.doors.iter().for_each(|door| door.control(Control::Drain(by)));
    }

    /// Ends all flows, and closes the port.
    pub fn stop(&self) {
        self.inner.doors.iter().for_each(|door| door.control(Control::Stop));
    }

    /// Waits until all its doors have ended.
    pub async fn stopped(&self) {
        for door in &self.inner.doors {
            door.closed().await;
        }
    }
}
