//! UDP out of tunnels: a flow for each pair of endpoints, bounded by peer, forgotten when idle.
//!
//! [`Beside`] stands before whatever is inside a tunnel and takes out the datagrams that are for a service or for a
//! network that may be forwarded to, so that all kinds of inside serve them alike. The actor here judges them and knows
//! the flows; each flow is an actor of its own (`datagram_flow`), with its socket. A flow that finds no room is not
//! made, and what is for it is dropped and counted. Services may change while it runs: flows of those that stay go on.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::actor::Uplink;
use super::codec_datagram::{is_udp, read};
use super::datagram_flow::{DatagramFlow, FlowParts, ToFlow};
use super::state_flows::{Ends, FlowLimits, Flows};
use crate::actors::{Control, Fault, Layer, Mail, Mesh, Place, Protocol, Refused, SpawnError, Spec, Turn};
use crate::memory::{Snapshot, View};
use crate::transports::kit::balance::{Address, Balancer, Picked};
use crate::transports::kit::packets::{Deliver, Packets};
use crate::transports::kit::routes::{Network, is_elsewhere};
use crate::transports::wireguard::codec_inner::Inner;

/// Messages that wait for the flows of an interface beside the news of their ends, and bytes.
const INBOX: (usize, usize) = (4_096, 16 << 20);
/// Messages and bytes that wait for one flow.
const FLOW_INBOX: (usize, usize) = (256, 1 << 20);
/// Where what is dropped is counted.
const DROPPED: &str = "netstack_dropped";

/// Which datagrams are taken, and what becomes of them.
#[derive(Debug, Clone)]
pub struct DatagramSettings {
    /// The scope of its counters.
    pub name: Arc<str>,
    /// Served here: each flow goes to a server of an upstream over UDP.
    pub services: Vec<(SocketAddr, Arc<Balancer>)>,
    /// Networks to which datagrams are forwarded, by sockets of this machine.
    pub forward: Vec<Network>,
    /// How many flows there may be; none is ever half open.
    pub limits: FlowLimits,
    /// A flow on which nothing moves for so long is forgotten.
    pub idle: Duration,
    /// The largest packet inside.
    pub mtu: usize,
}

/// What the flows of an interface are told.
#[non_exhaustive]
pub enum ToDatagrams {
    /// Packets out of a tunnel, all of them UDP.
    Write(Packets),
    /// A flow has ended.
    Ended(usize, u64),
    /// Other services have been published.
    Changed,
}

impl fmt::Debug for ToDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::Ended(..) => "Ended",
            Self::Changed => "Changed",
        })
    }
}

/// What stands before the inside of a tunnel. Clones share it.
#[derive(Debug, Clone)]
pub struct Beside {
    wanted: Snapshot<Wanted>,
    flows: Mail<ToDatagrams>,
}

#[derive(Debug)]
struct Wanted {
    services: BTreeMap<SocketAddr, Arc<Balancer>>,
    forward: Vec<Network>,
}

impl Wanted {
    fn forwards(&self, to: IpAddr) -> bool {
        self.forward.iter().any(|network| network.contains(to)) && is_elsewhere(to)
    }

    fn wants(&self, packet: &[u8]) -> bool {
        if !is_udp(packet) {
            return false;
        }
        let Ok(inner) = Inner::parse(packet) else { return false };
        let service =
            || inner.ports(packet).is_some_and(|(_, to)| self.services.contains_key(&(inner.destination, to).into()));
        self.forwards(inner.destination) || service()
    }
}

impl Beside {
    /// Starts the flows of an interface. `uplink` makes their ways back into the tunnel.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn start<U: Uplink>(
        mesh: &Mesh,
        place: Place,
        settings: DatagramSettings,
        uplink: impl Fn() -> U + Send + Sync + 'static,
    ) -> Result<Self, SpawnError> {
        let services = settings.services.iter().cloned().collect();
        let wanted = Snapshot::new(Wanted { services, forward: settings.forward.clone() });
        let spec = Spec::named(settings.name.clone()).inbox(INBOX.0 + settings.limits.flows, INBOX.1);
        let view = wanted.view();
        let flows = mesh.spawn(place, spec, move || Datagrams::new(settings, view, Arc::new(uplink)))?;
        Ok(Self { wanted, flows })
    }

    /// Takes datagrams out for these services from now on. Flows of a service that is not among them, or that leads to
    /// another upstream, end; all others stay.
    pub fn serve(&self, services: Vec<(SocketAddr, Arc<Balancer>)>) {
        // What is forwarded never changes: of two who call at once the later one's services count.
        let forward = self.wanted.read().forward.clone();
        self.wanted.publish(Wanted { services: services.into_iter().collect(), forward });
        // When its mailbox is full, it sees the change with what is in there.
        let _full = self.flows.tell(ToDatagrams::Changed);
    }

    /// The same inside without the datagrams that are taken out before it.
    #[must_use]
    pub fn of<D: Deliver>(&self, inside: D) -> Box<dyn Deliver> {
        Box::new(Before { wanted: self.wanted.view(), beside: self.clone(), inside })
    }

    /// Whether its actor lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.flows.is_closed()
    }

    /// Ends the flows.
    pub fn stop(&self) {
        self.flows.control(Control::Stop);
    }

    fn tell(&self, packets: Packets) -> Result<(), Packets> {
        match self.flows.tell(ToDatagrams::Write(packets)).map_err(Refused::into_inner) {
            Ok(()) | Err(ToDatagrams::Ended(..) | ToDatagrams::Changed) => Ok(()),
            Err(ToDatagrams::Write(packets)) => Err(packets),
        }
    }
}

struct Before<D> {
    beside: Beside,
    wanted: View<Wanted>,
    inside: D,
}

impl<D: Deliver> Deliver for Before<D> {
    fn deliver(&mut self, mut packets: Packets) -> Result<Packets, Packets> {
        let wants = self.wanted.get();
        let wanted = packets.iter().filter(|packet| wants.wants(packet)).count();
        if wanted == 0 {
            return self.inside.deliver(packets);
        }
        if wanted == packets.len() {
            return self.beside.tell(packets).map(|()| Packets::none());
        }
        let room = || Packets::with_capacity(packets.held(), packets.len());
        let (mut taken, mut left) = (room(), room());
        for packet in packets.iter() {
            let to = if wants.wants(packet) { &mut taken } else { &mut left };
            to.push(packet);
        }
        let inside = self.inside.deliver(left);
        match (self.beside.tell(taken), inside) {
            (Ok(()), Ok(_)) => {
                packets.clear();
                Ok(packets)
            }
            (Err(lost), Ok(_)) | (Ok(()), Err(lost)) => Err(lost),
            (Err(_), Err(_)) => Err(packets),
        }
    }
}

type MakeUplink<U> = Arc<dyn Fn() -> U + Send + Sync>;

/// A flow, and the service it is for if it is not forwarded.
struct Running {
    mail: Mail<ToFlow>,
    service: Option<(SocketAddr, Arc<Balancer>)>,
}

/// The actor.
struct Datagrams<U> {
    settings: DatagramSettings,
    wanted: View<Wanted>,
    /// Of what `wanted` showed last.
    seen: Arc<Wanted>,
    make: MakeUplink<U>,
    uplink: U,
    flows: Flows,
    running: Vec<Option<Running>>,
    parts: Vec<(usize, Packets)>,
    random: RandomState,
    drawn: u64,
}

impl<U: Uplink> Datagrams<U> {
    fn new(settings: DatagramSettings, mut wanted: View<Wanted>, make: MakeUplink<U>) -> Self {
        Self {
            seen: wanted.shared().clone(),
            uplink: make(),
            flows: Flows::new(settings.limits),
            settings,
            wanted,
            make,
            running: Vec::new(),
            parts: Vec::new(),
            random: RandomState::new(),
            drawn: 0,
        }
    }

    /// The flow of a packet, made if there is none yet.
    fn flow(&mut self, packet: &[u8], turn: &Turn<'_, ToDatagrams>) -> Result<usize, &'static str> {
        let datagram = read(packet)?;
        let ends = Ends { remote: datagram.from, local: datagram.to };
        if let Some(number) = self.flows.find(&ends) {
            return Ok(number);
        }
        let owner = self.uplink.owner(ends.remote.ip()).ok_or("no_owner")?;
        let number = self.flows.admit(ends, owner).map_err(|refusal| refusal.reason())?;
        self.flows.complete(number);
        self.begin(number, ends, turn).inspect_err(|_| self.flows.remove(number))?;
        Ok(number)
    }

    fn begin(&mut self, number: usize, ends: Ends, turn: &Turn<'_, ToDatagrams>) -> Result<(), &'static str> {
        let (target, picked) = self.target(ends, turn)?;
        let parts = FlowParts {
            name: self.settings.name.clone(),
            ends,
            target,
            _picked: picked,
            idle: self.settings.idle,
            mtu: self.settings.mtu,
        };
        let now = turn.now();
        let (make, spec) = (self.make.clone(), Spec::default().inbox(FLOW_INBOX.0, FLOW_INBOX.1));
        let mail =
            turn.spawn(Place::Here, spec, move || DatagramFlow::new(parts, make(), now)).map_err(|_| "not_served")?;
        let actor = mail.id().number();
        if turn.watch(&mail, move |_| ToDatagrams::Ended(number, actor)).is_err() {
            // Without the news of its end its place would be lost: it does not live then.
            mail.control(Control::Stop);
            return Err("not_served");
        }
        if self.running.len() <= number {
            self.running.resize_with(number + 1, || None);
        }
        if let Some(place) = self.running.get_mut(number) {
            let service = self.seen.services.get(&ends.local).map(|balancer| (ends.local, balancer.clone()));
            *place = Some(Running { mail, service });
        }
        Ok(())
    }

    fn target(
        &mut self,
        ends: Ends,
        turn: &Turn<'_, ToDatagrams>,
    ) -> Result<(SocketAddr, Option<Picked>), &'static str> {
        let Some(balancer) = self.seen.services.get(&ends.local) else {
            return if self.seen.forwards(ends.local.ip()) { Ok((ends.local, None)) } else { Err("not_ours") };
        };
        self.drawn = self.drawn.wrapping_add(1);
        let seed = balancer.seed(self.random.hash_one(self.drawn), ends.remote.ip());
        let picked = balancer.pick(turn.now(), seed, &[]).map_err(|_| "no_server")?;
        match *picked.address() {
            Address::Udp(to) => Ok((to, Some(picked))),
            Address::Tcp(_) | Address::Unix(_) | Address::Quic { .. } | Address::Tls { .. } => Err("no_server"),
        }
    }

    fn hand_over(&self, number: usize, packets: Packets, turn: &Turn<'_, ToDatagrams>) {
        let Some(running) = self.running.get(number).and_then(Option::as_ref) else { return };
        if let Err(refused) = running.mail.tell(ToFlow::Send(packets)) {
            let ToFlow::Send(packets) = refused.into_inner();
            turn.counter(DROPPED, &self.settings.name, "flow_busy").add(packets.len() as u64);
        }
    }

    /// Ends the flows of services that are there no more, or are others.
    fn look(&mut self) {
        let wanted = self.wanted.shared();
        if Arc::ptr_eq(wanted, &self.seen) {
            return;
        }
        self.seen = wanted.clone();
        for running in self.running.iter().flatten() {
            let stays = |(at, balancer): &(SocketAddr, Arc<Balancer>)| {
                self.seen.services.get(at).is_some_and(|now| Arc::ptr_eq(now, balancer))
            };
            if !running.service.as_ref().is_none_or(stays) {
                running.mail.control(Control::Stop);
            }
        }
    }

    fn sort(&mut self, packets: Packets, turn: &Turn<'_, ToDatagrams>) {
        let mut parts = std::mem::take(&mut self.parts);
        // The flow of all so far, as long as it is one and nothing was dropped.
        let mut only = None;
        for (n, packet) in packets.iter().enumerate() {
            let number = match self.flow(packet, turn) {
                Ok(number) => Some(number),
                Err(reason) => {
                    turn.counter(DROPPED, &self.settings.name, reason).add(1);
                    None
                }
            };
            if n == 0 {
                only = number;
            } else if only.is_some() && number != only {
                let before = only.take().map(|only| (only, copied(&packets, n)));
                parts.extend(before);
            }
            if only.is_none()
                && let Some(number) = number
            {
                add(&mut parts, number, packet, &packets);
            }
        }
        match only {
            Some(number) => self.hand_over(number, packets, turn),
            None => parts.drain(..).for_each(|(number, part)| self.hand_over(number, part, turn)),
        }
        self.parts = parts;
    }
}

/// The first so many packets of a batch.
fn copied(packets: &Packets, count: usize) -> Packets {
    let mut part = Packets::with_capacity(packets.held(), packets.len());
    packets.iter().take(count).for_each(|packet| {
        part.push(packet);
    });
    part
}

fn add(parts: &mut Vec<(usize, Packets)>, number: usize, packet: &[u8], of: &Packets) {
    match parts.iter_mut().rev().find(|(to, _)| *to == number) {
        Some((_, part)) => {
            part.push(packet);
        }
        None => {
            let mut part = Packets::with_capacity(of.held(), of.len());
            part.push(packet);
            parts.push((number, part));
        }
    }
}

impl<U: Uplink> Protocol for Datagrams<U> {
    type Msg = ToDatagrams;
    const KIND: &'static str = "udp_flows";
    const LAYER: Layer = Layer::Transport;

    fn size(m: &ToDatagrams) -> usize {
        match m {
            ToDatagrams::Write(packets) => packets.held(),
            ToDatagrams::Ended(..) | ToDatagrams::Changed => 0,
        }
    }

    fn on(&mut self, m: ToDatagrams, turn: &mut Turn<'_, ToDatagrams>) -> Result<(), Fault> {
        self.look();
        match m {
            ToDatagrams::Changed => {}
            ToDatagrams::Write(packets) => self.sort(packets, turn),
            ToDatagrams::Ended(number, actor) => {
                let place = self.running.get_mut(number);
                if let Some(place) =
                    place.filter(|place| place.as_ref().is_some_and(|running| running.mail.id().number() == actor))
                {
                    *place = None;
                    self.flows.remove(number);
                }
            }
        }
        Ok(())
    }
}
