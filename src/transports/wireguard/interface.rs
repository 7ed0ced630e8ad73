//! One WireGuard interface: its socket bound, its actors started, its handle.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;

use socket2::{Domain, Protocol as Transport, Socket, Type};

use super::actor_device::{DEVICE_INBOX, Device, DeviceMsg};
use super::actor_sender::{Sender, SenderMsg};
use super::peers::Peers;
use super::router::Router;
use super::settings::{PeerSettings, Settings};
use super::table::{Inside, InsideSlot, Published};
use crate::actors::{Control, Mail, Mesh, Place, SpawnError, Spec};
use crate::transports::kit::packets::Deliver;
use crate::transports::udp::Options;

/// Messages and bytes that wait to be sent, at most.
const SENDER_INBOX: (usize, usize) = (4_096, 16 << 20);

/// Opens the UDP socket of an interface. An unspecified IPv6 address takes IPv4 as well.
///
/// # Errors
/// What the system says, for instance that the port is in use.
pub fn bind(address: SocketAddr) -> io::Result<StdSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Transport::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A running interface.
#[derive(Clone)]
pub struct Interface {
    device: Mail<DeviceMsg>,
    sender: Mail<SenderMsg>,
    published: Published,
    inside: InsideSlot,
}

impl fmt::Debug for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interface").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Why an interface did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The socket could not be shared with the sending end.
    Socket(io::Error),
    /// An actor could not be started.
    Spawn(SpawnError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => write!(f, "the UDP socket: {error}"),
            Self::Spawn(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl Interface {
    /// Starts the actors of an interface on a bound socket. Packets that come out of tunnels before
    /// [`attach`](Self::attach) are dropped and counted.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        mesh: &Mesh,
        socket: StdSocket,
        settings: Settings,
        peers: Vec<PeerSettings>,
    ) -> Result<Self, StartError> {
        // Known before anything runs: what is inside may ask for the way before the device has had its first turn.
        let mut known = Peers::default();
        for peer in peers {
            known.set(peer);
        }
        let published = Published::from(Arc::new(known.table(&settings.addresses)));
        let inside = InsideSlot::default();
        let sending = socket.try_clone().map_err(StartError::Socket)?;
        let (name, threading) = (settings.name.clone(), settings.threading.clone());
        let options = Options { gso: settings.gso, ..Options::default() };
        let spec = Spec::named(name.clone()).inbox(SENDER_INBOX.0, SENDER_INBOX.1);
        let sender = mesh
            .spawn(Place::On(threading.tx()), spec, move || Sender::new(name, sending, options))
            .map_err(StartError::Spawn)?;
        let spec = Spec::named(settings.name.clone()).inbox(DEVICE_INBOX.0, DEVICE_INBOX.1);
        let (table, to_sender, slot) = (published.clone(), sender.clone(), inside.clone());
        let device = mesh
            .spawn(Place::On(threading.rx()), spec, move || {
                Device::new(settings, socket, table, slot, to_sender, known)
            })
            .map_err(|error| {
                sender.control(Control::Stop);
                StartError::Spawn(error)
            })?;
        Ok(Self { device, sender, published, inside })
    }

    /// The mailbox of its device.
    #[must_use]
    pub const fn device(&self) -> &Mail<DeviceMsg> {
        &self.device
    }

    /// How many peers have a session actor now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.published.read().slots.iter().filter(|slot| slot.session.load().is_some()).count()
    }

    /// Ends it: its device, its sessions, its sending end.
    pub fn stop(&self) {
        self.device.control(Control::Stop);
        self.sender.control(Control::Stop);
    }

    /// A way into its tunnels, for whatever reads packets inside.
    #[must_use]
    pub fn router(&self) -> Router {
        Router::new(&self.published, self.device.clone())
    }

    /// From now on packets out of tunnels go to what `inside` makes, on the arbiter of each session. Only the first call
    /// counts: an interface has one inside for life.
    pub fn attach(&self, inside: impl Fn() -> Box<dyn Deliver> + Send + Sync + 'static) {
        let inside: Inside = Arc::new(inside);
        let _has_one = self.inside.set(inside);
    }
}
