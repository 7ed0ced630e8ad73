//! The actor of one netstack: feeds smoltcp, moves bytes between its sockets and the streams of other actors.
//!
//! Packets come in batches by mail and leave in batches through an [`Uplink`]. A SYN for a service, or for an address that
//! may be forwarded, gets a socket if its owner may have one; once the connection stands, whoever serves it gets a
//! [`NetStream`]. Only flows that rang are looked at. An uplink without room stops smoltcp, not the actor.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};

use super::bells::Bells;
use super::flow::{Flow, Kind, inward, outward};
use super::phy::{Card, Incoming};
use super::state_flows::{Ends, FlowLimits, Flows};
use super::stream::{Far, NetStream, pair};
use crate::actors::{Counter, Fault, Layer, Progress, Protocol, SpawnError, Turn, clock};
use crate::transports::kit::packets::{Deliver, Packets};
use crate::transports::kit::routes::{Network, is_elsewhere};
use crate::transports::wireguard::codec_inner::{ICMP, ICMP_V6, Inner, TCP};

/// Rounds of smoltcp per turn, at most.
const ROUNDS: usize = 4;
/// How long a connection may be half open.
const HALF_OPEN: Duration = Duration::from_secs(10);
/// A peer that acknowledges nothing for this long is gone.
const SILENT: u64 = 60;
/// An idle connection is asked whether it is still there.
const ASK_IDLE: u64 = 25;
/// How often half-open connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// When an uplink without room is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// The first port of connections of our own.
const FIRST_PORT: u16 = 32_768;

/// Where packets of the netstack go.
pub trait Uplink: Deliver {
    /// Whose an address is: connections are counted by owner.
    fn owner(&mut self, source: IpAddr) -> Option<u32>;
}

/// A connection that stands.
#[derive(Debug)]
pub struct Visitor {
    /// Its bytes.
    pub stream: NetStream,
    /// Who it comes from.
    pub peer: SocketAddr,
    /// Whom it asked for.
    pub local: SocketAddr,
}

/// What becomes of connections to a service. Made on the netstack's arbiter.
pub trait Serve: 'static {
    /// Starts the actor of a connection.
    ///
    /// # Errors
    /// When no actor can be started; the connection is reset.
    fn serve(&mut self, visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError>;
}

/// Makes what serves an address and port.
pub type MakeServe = Arc<dyn Fn() -> Box<dyn Serve> + Send + Sync>;

/// What a netstack is told.
#[non_exhaustive]
pub enum NetMsg {
    /// Packets out of tunnels.
    Write(Packets),
    /// Open a connection; the other end learns whether it stands.
    Connect(SocketAddr, Far),
    /// These are the services from now on. Connections that stand go on.
    Services(Vec<(SocketAddr, MakeServe)>),
}

impl fmt::Debug for NetMsg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::Connect(..) => "Connect",
            Self::Services(_) => "Services",
        })
    }
}

/// A netstack.
#[derive(Clone)]
pub struct Settings {
    /// The scope of its counters.
    pub name: Arc<str>,
    /// Its own addresses with their networks: at most eight.
    pub addresses: Vec<(IpAddr, Network)>,
    /// The largest packet.
    pub mtu: usize,
    /// Bytes of each connection's window, in each direction. Default 256 KiB; memory is taken as it fills.
    pub window: usize,
    /// How many connections there may be.
    pub limits: FlowLimits,
    /// What is served.
    pub services: Vec<(SocketAddr, MakeServe)>,
    /// Networks to which connections are forwarded, and what serves those.
    pub forward: Option<(Vec<Network>, MakeServe)>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Settings {
    /// A netstack that answers pings and serves nothing.
    #[must_use]
    pub fn new(name: &str, addresses: Vec<(IpAddr, Network)>, mtu: usize) -> Self {
        Self {
            name: Arc::from(name),
            addresses,
            mtu,
            window: 256 << 10,
            limits: FlowLimits::default(),
            services: Vec::new(),
            forward: None,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    accepted: Counter,
    opened: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
}

/// The actor.
pub struct Stack<U> {
    settings: Settings,
    uplink: U,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    flows: Flows,
    table: Vec<Option<Flow>>,
    services: BTreeMap<SocketAddr, (MakeServe, Box<dyn Serve>)>,
    forward: Option<Box<dyn Serve>>,
    bells: Arc<Bells>,
    rung: Vec<usize>,
    /// Flows whose last segment may not have been sent.
    closing: Vec<usize>,
    /// It ends with its last flow.
    leaving: bool,
    born: Instant,
    due: bool,
    wakes: Option<Instant>,
    swept: Instant,
    retry: Option<Instant>,
    port: u16,
    /// The buffers of connections, as far as they were filled at the last sweep.
    held: usize,
    counters: Counters,
}

impl<U> fmt::Debug for Stack<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl<U: Uplink> Stack<U> {
    /// Makes a netstack on this arbiter.
    #[must_use]
    pub fn new(settings: Settings, uplink: U) -> Self {
        let born = clock::now();
        let mut card = Card::new(settings.mtu);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = RandomState::new().hash_one(0);
        let mut interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|all| {
            for (address, network) in &settings.addresses {
                // The checked configuration has no more than fit.
                let _full = all.push(IpCidr::new(IpAddress::from(*address), network.prefix()));
            }
        });
        for (address, _) in &settings.addresses {
            // Through ourselves: only so does smoltcp take packets for others, and only those we let it see.
            let _full = match address {
                IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(*v4).map(drop),
                IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(*v6).map(drop),
            };
        }
        interface.set_any_ip(settings.forward.is_some());
        let services = settings.services.iter().map(|(address, make)| (*address, (make.clone(), make()))).collect();
        let forward = settings.forward.as_ref().map(|(_, make)| make());
        Self {
            uplink,
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            flows: Flows::new(settings.limits),
            table: Vec::new(),
            services,
            forward,
            bells: Bells::new(settings.limits.flows),
            rung: Vec::new(),
            closing: Vec::new(),
            leaving: false,
            born,
            due: false,
            wakes: None,
            swept: born,
            retry: None,
            port: FIRST_PORT,
            held: 0,
            counters: Counters::default(),
            settings,
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.settings.addresses.iter().any(|(own, _)| *own == address)
    }

    fn forwards(&self, address: IpAddr) -> bool {
        let allowed = self
            .settings
            .forward
            .as_ref()
            .is_some_and(|(networks, _)| networks.iter().any(|network| network.contains(address)));
        allowed && is_elsewhere(address)
    }

    fn drop_packet(&self, turn: &Turn<'_, NetMsg>, reason: &'static str) {
        turn.counter("netstack_dropped", &self.settings.name, reason).add(1);
    }

    /// Looks at a batch before smoltcp does: which packets it may see, and which need a socket first.
    fn sort(&mut self, packets: Packets, turn: &Turn<'_, NetMsg>) {
        let mut keep = Vec::with_capacity(packets.len());
        for (n, packet) in packets.iter().enumerate() {
            match self.look(packet, turn.now()) {
                Ok(()) => keep.push(n),
                Err(reason) => self.drop_packet(turn, reason),
            }
        }
        self.card.incoming.push_back(Incoming { packets, keep, next: 0 });
        self.due = true;
    }

    fn look(&mut self, packet: &[u8], now: Instant) -> Result<(), &'static str> {
        let inner = Inner::parse(packet).map_err(|error| error.reason())?;
        if inner.fragment {
            return Err("fragment");
        }
        let own = self.is_own(inner.destination);
        match inner.protocol {
            TCP => {
                let (from, to) = inner.ports(packet).ok_or("inner_header")?;
                if !inner.is_syn(packet) {
                    return if own || self.forwards(inner.destination) { Ok(()) } else { Err("not_ours") };
                }
                let ends =
                    Ends { remote: SocketAddr::new(inner.source, from), local: SocketAddr::new(inner.destination, to) };
                if self.flows.find(&ends).is_some() {
                    return Ok(());
                }
                let kind = if self.services.contains_key(&ends.local) {
                    Kind::Service(ends.local)
                } else if own {
                    // smoltcp answers with a reset.
                    return Ok(());
                } else if self.forwards(inner.destination) {
                    Kind::Forward
                } else {
                    return Err("not_ours");
                };
                self.listen(ends, kind, now)
            }
            ICMP | ICMP_V6 if own => Ok(()),
            // smoltcp tells them that nobody listens.
            _ if own => Ok(()),
            _ => Err("not_ours"),
        }
    }

    fn listen(&mut self, ends: Ends, kind: Kind, now: Instant) -> Result<(), &'static str> {
        let owner = self.uplink.owner(ends.remote.ip()).ok_or("no_owner")?;
        let number = self.flows.admit(ends, owner).map_err(|refusal| refusal.reason())?;
        let mut socket = self.socket();
        let at = IpListenEndpoint { addr: Some(ends.local.ip().into()), port: ends.local.port() };
        if socket.listen(at).is_err() {
            self.flows.remove(number);
            return Err("inner_header");
        }
        let (near, far) = pair();
        self.enter(number, ends, kind, socket, (Some(near), far), now);
        Ok(())
    }

    fn socket(&self) -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; self.settings.window]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(SILENT)));
        socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(ASK_IDLE)));
        socket
    }

    fn enter(
        &mut self,
        number: usize,
        ends: Ends,
        kind: Kind,
        mut socket: tcp::Socket<'static>,
        (near, far): (Option<NetStream>, Far),
        now: Instant,
    ) {
        let waker = self.bells.waker(number);
        socket.register_recv_waker(&waker);
        socket.register_send_waker(&waker);
        let handle = self.sockets.add(socket);
        let flow = Flow {
            handle,
            ends,
            kind,
            near,
            far,
            waker,
            opened: now,
            stands: false,
            peer_ended: false,
            heard_end: false,
            said_end: false,
            aborted: false,
        };
        if self.table.len() <= number {
            self.table.resize_with(number + 1, || None);
        }
        if let Some(place) = self.table.get_mut(number) {
            *place = Some(flow);
        }
        self.due = true;
    }

    /// Begins a connection of our own, or says why it cannot.
    fn connect(&mut self, to: SocketAddr, far: Far, now: Instant) -> Result<(), &'static str> {
        let own = self.settings.addresses.iter().map(|(own, _)| *own);
        let from = own.into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).ok_or("no_address")?;
        let owner = self.uplink.owner(to.ip()).ok_or("no_route")?;
        let mut ends = Ends { remote: to, local: SocketAddr::new(from, self.port) };
        for _ in 0..=u16::MAX - FIRST_PORT {
            self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
            ends.local.set_port(self.port);
            if self.flows.find(&ends).is_none() {
                break;
            }
        }
        if self.flows.find(&ends).is_some() {
            return Err("no_port");
        }
        let number = self.flows.admit(ends, owner).map_err(|refusal| refusal.reason())?;
        let mut socket = self.socket();
        let remote = IpEndpoint::new(to.ip().into(), to.port());
        let local = IpListenEndpoint { addr: Some(from.into()), port: self.port };
        if socket.connect(self.interface.context(), remote, local).is_err() {
            self.flows.remove(number);
            return Err("no_route");
        }
        self.enter(number, ends, Kind::Ours, socket, (None, far), now);
        Ok(())
    }

    /// smoltcp gives a SYN to any socket that listens for it: two flows that came at once may have each other's.
    fn settle(&mut self, number: usize) -> Option<usize> {
        let flow = self.table.get(number)?.as_ref()?;
        if flow.stands || flow.kind == Kind::Ours {
            return None;
        }
        let socket = self.sockets.get::<tcp::Socket<'_>>(flow.handle);
        let (remote, local) = (socket.remote_endpoint()?, socket.local_endpoint()?);
        let actual = Ends {
            remote: SocketAddr::new(remote.addr.into(), remote.port),
            local: SocketAddr::new(local.addr.into(), local.port),
        };
        if actual == flow.ends {
            return None;
        }
        let (mine, other) = (flow.handle, self.flows.find(&actual)?);
        let theirs = self.table.get_mut(other)?.as_mut().map(|flow| std::mem::replace(&mut flow.handle, mine))?;
        self.table.get_mut(number)?.as_mut()?.handle = theirs;
        Some(other)
    }

    /// Moves what one flow can move now.
    fn pump(&mut self, number: usize, turn: &Turn<'_, NetMsg>) {
        if let Some(other) = self.settle(number) {
            self.pump_settled(other, turn);
        }
        self.pump_settled(number, turn);
    }

    fn pump_settled(&mut self, number: usize, turn: &Turn<'_, NetMsg>) {
        let Some(flow) = self.table.get_mut(number).and_then(Option::as_mut) else { return };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(flow.handle);
        if !flow.stands && socket.may_send() {
            flow.stands = true;
            self.flows.complete(number);
            flow.far.connected();
            let serve = match flow.kind {
                Kind::Service(address) => self.services.get_mut(&address).map(|(_, serve)| serve),
                Kind::Forward => self.forward.as_mut(),
                Kind::Ours => None,
            };
            if flow.kind == Kind::Ours {
                self.counters.opened.add(1);
            } else if let (Some(stream), Some(serve)) = (flow.near.take(), serve) {
                self.counters.accepted.add(1);
                let visitor = Visitor { stream, peer: flow.ends.remote, local: flow.ends.local };
                if let Err(error) = serve.serve(visitor, turn) {
                    tracing::debug!(netstack = %self.settings.name, %error, "a connection is not served");
                    turn.counter("netstack_dropped", &self.settings.name, "not_served").add(1);
                    socket.abort();
                    flow.aborted = true;
                }
            } else {
                // Its service is gone since the SYN came.
                socket.abort();
                flow.aborted = true;
            }
        }
        let half_open = !flow.stands && flow.kind != Kind::Ours;
        flow.peer_ended |= matches!(
            socket.state(),
            tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing | tcp::State::TimeWait
        );
        let waker = flow.waker.clone();
        let mut cx = Context::from_waker(&waker);
        self.counters.bytes_in.add(inward(flow, socket, &mut cx));
        self.counters.bytes_out.add(outward(flow, socket, &mut cx));
        socket.register_recv_waker(&flow.waker);
        socket.register_send_waker(&flow.waker);
        match socket.state() {
            // A reset still has to be sent as long as the endpoints are known.
            tcp::State::Closed if socket.remote_endpoint().is_some() => self.closing.push(number),
            // Its reader has no room: what came and was acknowledged is not lost with the connection.
            tcp::State::Closed | tcp::State::TimeWait if socket.recv_queue() > 0 && !flow.aborted => {}
            tcp::State::Closed | tcp::State::TimeWait => {
                self.leave(number);
                if half_open {
                    self.drop_packet(turn, "half_open_too_long");
                }
            }
            tcp::State::Listen
            | tcp::State::SynSent
            | tcp::State::SynReceived
            | tcp::State::Established
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::CloseWait
            | tcp::State::Closing
            | tcp::State::LastAck => {}
        }
        self.due = true;
    }

    fn leave_when_empty(&self, turn: &mut Turn<'_, NetMsg>) {
        if self.leaving && self.flows.is_empty() {
            turn.stop_when_empty();
        }
    }

    fn leave(&mut self, number: usize) {
        let Some(flow) = self.table.get_mut(number).and_then(Option::take) else { return };
        if !(flow.heard_end && flow.said_end) {
            flow.far.reset();
        }
        self.sockets.remove(flow.handle);
        self.flows.remove(number);
    }

    /// Hands over what smoltcp has written, and makes room for more.
    fn send_out(&mut self, turn: &Turn<'_, NetMsg>) {
        if !self.card.outgoing.is_empty() {
            let outgoing = std::mem::replace(&mut self.card.outgoing, Packets::none());
            match self.uplink.deliver(outgoing) {
                Ok(empty) => {
                    self.card.stopped = false;
                    self.retry = None;
                    self.card.outgoing = empty;
                }
                Err(refused) => {
                    self.card.outgoing = refused;
                    self.card.stopped = true;
                    self.retry = Some(clock::later(turn.now(), RETRY));
                }
            }
        }
        if self.card.outgoing.held() == 0 {
            self.card.outgoing = Packets::lent(|bytes| turn.buffer(bytes));
        }
    }

    fn smoltcp_now(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.born).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Rounds of smoltcp and of the flows that rang, until there is nothing to do or the budget is spent.
    fn run(&mut self, turn: &Turn<'_, NetMsg>) -> Progress {
        let now = turn.now();
        self.due |= self.wakes.is_some_and(|at| at <= now);
        if self.retry.is_some_and(|at| at <= now) {
            self.card.stopped = false;
            self.send_out(turn);
            self.due = true;
        }
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.sweep(now);
        }
        let mut ran = false;
        for _ in 0..ROUNDS {
            let mut rung = std::mem::take(&mut self.rung);
            self.bells.take(&mut rung);
            for number in &rung {
                self.pump(*number, turn);
            }
            self.rung = rung;
            if !std::mem::take(&mut self.due) {
                break;
            }
            ran = true;
            self.send_out(turn);
            // smoltcp stops when the batch that leaves is full: as often as there is room for another.
            loop {
                let before = self.card.incoming.len();
                self.interface.poll(self.smoltcp_now(now), &mut self.card, &mut self.sockets);
                let full = !self.card.can_send();
                self.send_out(turn);
                let done = self.card.incoming.iter().all(|batch| batch.next >= batch.keep.len());
                if self.card.stopped || (!full && (done || self.card.incoming.len() == before)) {
                    break;
                }
            }
            for number in std::mem::take(&mut self.closing) {
                self.pump_settled(number, turn);
            }
        }
        if ran {
            let at = self.interface.poll_at(self.smoltcp_now(now), &self.sockets);
            let after = |at: smoltcp::time::Instant| Duration::from_micros(at.total_micros().max(0).unsigned_abs());
            self.wakes = at.map(|at| clock::later(self.born, after(at)));
        }
        let stopped = self.card.stopped;
        let more = self.bells.sleep(turn.cx().waker()) || (self.due && !stopped);
        // Time has passed since the turn began: what is due by then comes in the next turn, not in a loop here.
        if more { Progress::More } else { Progress::Idle }
    }

    /// Ends connections that have been half open for too long.
    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        self.held = 0;
        let late = |flow: &Flow| !flow.stands && now.saturating_duration_since(flow.opened) >= HALF_OPEN;
        for number in 0..self.table.len() {
            let Some(flow) = self.table.get_mut(number).and_then(Option::as_mut) else { continue };
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(flow.handle);
            self.held += socket.recv_queue() + socket.send_queue();
            if late(flow) && !flow.aborted {
                flow.aborted = true;
                socket.abort();
                self.bells.ring(number);
            }
        }
    }
}

impl<U: Uplink> Protocol for Stack<U> {
    type Msg = NetMsg;
    const KIND: &'static str = "netstack";
    const LAYER: Layer = Layer::Transport;

    fn size(m: &NetMsg) -> usize {
        match m {
            NetMsg::Write(packets) => packets.held(),
            NetMsg::Connect(..) | NetMsg::Services(_) => 0,
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, NetMsg>) -> Result<(), Fault> {
        let scope = &self.settings.name;
        self.counters = Counters {
            accepted: turn.counter("netstack_accepted", scope, ""),
            opened: turn.counter("netstack_opened", scope, ""),
            bytes_in: turn.counter("netstack_bytes_in", scope, ""),
            bytes_out: turn.counter("netstack_bytes_out", scope, ""),
        };
        Ok(())
    }

    fn on(&mut self, m: NetMsg, turn: &mut Turn<'_, NetMsg>) -> Result<(), Fault> {
        match m {
            NetMsg::Write(packets) => self.sort(packets, turn),
            NetMsg::Connect(to, far) => {
                if let Err(reason) = self.connect(to, far, turn.now()) {
                    self.drop_packet(turn, reason);
                }
            }
            NetMsg::Services(services) => {
                let mut before = std::mem::take(&mut self.services);
                for (address, make) in services {
                    // What is the very same goes on with what it knows.
                    let known = before.remove(&address).filter(|(known, _)| Arc::ptr_eq(known, &make));
                    self.services.insert(address, known.unwrap_or_else(|| (make.clone(), make())));
                }
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let sweep = (!self.flows.is_empty()).then(|| clock::later(self.swept, SWEEP));
        // While the uplink has no room, smoltcp's own timers can do nothing but wait for it.
        let wakes = self.wakes.filter(|_| !self.card.stopped);
        [wakes, self.retry, sweep].into_iter().flatten().min()
    }

    fn flush(&mut self, turn: &mut Turn<'_, NetMsg>) -> Result<Progress, Fault> {
        let progress = self.run(turn);
        self.leave_when_empty(turn);
        Ok(progress)
    }

    /// Who spoke through it is gone; what they said last is still sent and acknowledged.
    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, NetMsg>) {
        self.leaving = true;
        self.leave_when_empty(turn);
    }

    fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_elsewhere_are_forwarded_to() {
        for bad in ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "ff02::1"]
        {
            assert!(!is_elsewhere(bad.parse().unwrap()), "{bad}");
        }
        for good in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(is_elsewhere(good.parse().unwrap()), "{good}");
        }
    }
}
