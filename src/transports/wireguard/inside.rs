//! What is inside an interface: the netstack started beside it and the two joined.

use super::interface::Interface;
use crate::actors::{Mail, Mesh, Place, Refused, SpawnError, Spec};
use crate::transports::kit::packets::{Deliver, Packets};
use crate::transports::netstack::{self, Beside, NetMsg, Stack};

/// Messages and bytes that wait for a netstack, at most.
const INBOX: (usize, usize) = (4_096, 16 << 20);

/// Batches into the mailbox of a netstack.
#[derive(Debug, Clone)]
pub struct IntoStack(Mail<NetMsg>);

impl Deliver for IntoStack {
    fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets> {
        match self.0.tell(NetMsg::Write(packets)).map_err(Refused::into_inner) {
            Ok(()) => Ok(Packets::none()),
            Err(NetMsg::Write(packets)) => Err(packets),
            Err(_) => Ok(Packets::none()),
        }
    }
}

/// Starts a netstack for an interface on `place` and joins the two.
///
/// # Errors
/// See [`Mesh::spawn`].
pub fn start_netstack(
    mesh: &Mesh,
    place: Place,
    interface: &Interface,
    settings: netstack::Settings,
) -> Result<Mail<NetMsg>, SpawnError> {
    start_netstack_beside(mesh, place, interface, settings, None)
}

/// The same, without the datagrams that `beside` takes out before it.
///
/// # Errors
/// See [`Mesh::spawn`].
pub fn start_netstack_beside(
    mesh: &Mesh,
    place: Place,
    interface: &Interface,
    settings: netstack::Settings,
    beside: Option<Beside>,
) -> Result<Mail<NetMsg>, SpawnError> {
    let router = interface.router();
    let spec = Spec::named(settings.name.clone()).inbox(INBOX.0, INBOX.1);
    let stack = mesh.spawn(place, spec, move || Stack::new(settings, router))?;
    let into = IntoStack(stack.clone());
    interface.attach(move || match &beside {
        Some(beside) => beside.of(into.clone()),
        None => Box::new(into.clone()),
    });
    Ok(stack)
}
