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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::super::settings::To;
    use super::super::state::FlowTerms;
    use super::*;
    use crate::actors::{MeshConfig, MeshView, clock};
    use crate::transports::kit::admission::Caps;

    const SOON: Duration = Duration::from_secs(10);

    fn view(mesh: &Mesh) -> MeshView {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(mesh.view())
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let end = clock::later(clock::now(), SOON);
        while !done() {
            assert!(clock::now() < end, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn client(to: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.connect(to).expect("connected");
        socket.set_read_timeout(Some(SOON)).expect("set");
        socket
    }

    fn echoes(client: &UdpSocket, body: &[u8]) {
        client.send(body).expect("sent");
        let mut answer = [0; 100];
        let length = client.recv(&mut answer).expect("its echo");
        assert_eq!(answer.get(..length), Some(body));
    }

    /// How many flows each arbiter has, and how often its door was made anew.
    fn doors(mesh: &Mesh) -> BTreeMap<usize, (usize, u32)> {
        let view = view(mesh);
        let flows = |arbiter| view.of_kind("udp_relay").filter(|flow| flow.arbiter == arbiter).count();
        view.of_kind("udp_door").map(|door| (door.arbiter, (flows(door.arbiter), door.restarts))).collect()
    }

    #[test]
    fn a_door_that_panics_is_made_anew_and_costs_its_own_flows_alone() {
        let mesh = Mesh::start(MeshConfig { arbiters: std::num::NonZeroUsize::new(2), ..MeshConfig::default() })
            .expect("a mesh");
        let caps = Caps { connections: 1_000, per_source: 1_000, half_open: 1_000, base_bytes: 0 };
        let server = UdpServer::start(
            &mesh,
            Settings {
                name: "echo".into(),
                listen: "127.0.0.1:0".parse().expect("an address"),
                socket_buffer: 1 << 20,
                gso: true,
                budget: crate::memory::Budget::new(64 << 20),
                occupancy: Arc::default(),
                terms: Terms { caps, to: To::Echo, flow: FlowTerms::default(), proxy: false },
            },
        )
        .expect("a server");
        // The kernel spreads them over the two doors.
        let clients: Vec<_> = (0..24).map(|_| client(server.local_addr())).collect();
        clients.iter().for_each(|client| echoes(client, b"before"));
        let before = doors(&mesh);
        assert_eq!(before.values().map(|(flows, _)| flows).sum::<usize>(), 24);
        assert!(before.values().all(|(flows, restarts)| *flows > 0 && *restarts == 0), "{before:?}");

        server.inner.doors[0].tell(ToDoor::Panic).unwrap_or_else(|_| panic!("it takes it"));
        until("it is made anew without flows", || doors(&mesh).get(&0) == Some(&(0, 1)));
        assert_eq!(doors(&mesh)[&1], before[&1], "the other door and its flows are as before");
        assert_eq!(view(&mesh).totals.get("actor_restarts", "udp_door", "panic"), 1);
        // The same sockets go on: those of the other door by their flows, the others by new ones.
        clients.iter().for_each(|client| echoes(client, b"after"));
        let after = doors(&mesh);
        assert_eq!((after[&0], after[&1]), ((before[&0].0, 1), before[&1]));
        assert_eq!(view(&mesh).totals.family("udp_dropped"), 0);
        server.stop();
        until("all is over", || view(&mesh).of_kind("udp_relay").count() == 0);
        mesh.stop().expect("stopped from outside");
    }
}
