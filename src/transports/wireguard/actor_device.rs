//! The actor of one interface: reads the UDP socket, knows the peers, lets handshakes in and starts sessions.
//!
//! Datagrams come in as trains, and a train whose datagrams are all for one session goes there as it is, buffer and all.
//! Handshakes pass, in this order and as cheaply as each step allows: a bucket per source, `mac1` and the cookie, a budget
//! per turn, the peer's key, the memory of initiations. What finds no budget waits in a short queue; a flood of handshakes
//! therefore costs data a bounded share of each turn. Sessions start here, with the first handshake or packet, and their
//! ends are noted here.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;

use super::actor_sender::SenderMsg;
use super::actor_session::SessionMsg;
use super::codec_keys::PublicKey;
use super::codec_message::{COOKIE, Message};
use super::counts::Drops;
use super::engine_boring::no_limit;
use super::engine_guard::{Guard, Verdict};
pub use super::peers::Report;
use super::peers::{MOST_PEERS, Peers};
use super::settings::{PeerSettings, Settings};
use super::state_index::Indices;
use super::state_limits::Sources;
use super::state_replay::Seen;
use super::state_train::{ROOM, Train};
use super::table::{InsideSlot, Published};
use crate::actors::{Control, Counter, Exit, Fault, Layer, Mail, Progress, Protocol, Reply, Turn, clock};
use crate::transports::kit::packets::Packets;
use crate::transports::udp::{Options, RecvMeta, UdpSocket};

/// Trains received in one system call.
const AT_ONCE: usize = 8;
/// System calls for receiving per turn, at most.
const RECEIVES: usize = 4;
/// Handshakes judged by key per turn, at most: each costs about a tenth of a millisecond.
const HANDSHAKES: usize = 4;
/// Handshakes that wait for the next turn, at most.
const PENDING: usize = 256;
/// Empty trains kept.
const SPARE: usize = 32;
/// A train of fewer bytes is copied instead of handed over with its buffer.
const SMALL: usize = 8 << 10;
/// Sources of handshakes that are told apart, at most.
const SOURCES: usize = 16_384;
/// Initiations remembered.
const SEEN: usize = 32_768;
/// How often limits are let up and dates are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Messages and bytes that wait for a device, at most: one place per session for the news of its end.
pub(super) const DEVICE_INBOX: (usize, usize) = (2 * MOST_PEERS, 32 << 20);

/// What a device is told.
#[non_exhaustive]
pub enum DeviceMsg {
    /// Packets for a peer that has no session.
    Wake(u32, Packets),
    /// Packets that found no way into a tunnel, and why.
    Lost(&'static str, u64),
    /// An empty train that was read.
    Home(Train),
    /// What a session did.
    Report(Report),
    /// A session has ended.
    Ended(u32, u64, Exit),
    /// These are all peers from now on; what is not changed is not touched.
    Replace(Vec<PeerSettings>),
    /// Adds a peer or changes it.
    Set(Box<PeerSettings>),
    /// Takes a peer out.
    Remove(PublicKey),
    /// The peers as they are.
    Peers(Reply<Vec<PeerView>>),
}

impl fmt::Debug for DeviceMsg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(label(self))
    }
}

const fn label(m: &DeviceMsg) -> &'static str {
    match m {
        DeviceMsg::Wake(..) => "wake",
        DeviceMsg::Lost(..) => "lost",
        DeviceMsg::Home(_) => "home",
        DeviceMsg::Report(_) => "report",
        DeviceMsg::Ended(..) => "ended",
        DeviceMsg::Replace(_) | DeviceMsg::Set(_) | DeviceMsg::Remove(_) => "peers",
        DeviceMsg::Peers(_) => "question",
    }
}

/// A peer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerView {
    /// As configured.
    pub settings: Arc<PeerSettings>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Whether it has a session actor, and on which arbiter.
    pub arbiter: Option<usize>,
    /// Bytes of authentic datagrams that came in.
    pub received: u64,
    /// Bytes of datagrams that went out.
    pub sent: u64,
    /// How long ago keys were last agreed.
    pub handshake_ago: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) datagrams: Counter,
    pub(super) bytes: Counter,
    pub(super) initiations: Counter,
    pub(super) cookies: Counter,
    pub(super) passed_whole: Counter,
    pub(super) sessions: Counter,
}

/// The actor.
pub(super) struct Device {
    pub(super) settings: Settings,
    pub(super) inside_limiter: Arc<RateLimiter>,
    pub(super) std: Option<StdSocket>,
    pub(super) socket: Option<UdpSocket>,
    pub(super) guard: Guard,
    pub(super) sources: Sources,
    pub(super) seen: Seen,
    pub(super) indices: Indices,
    pub(super) peers: Peers,
    pub(super) published: Published,
    pub(super) sender: Mail<SenderMsg>,
    pub(super) inside: InsideSlot,
    pub(super) trains: Vec<Train>,
    pub(super) spare: Vec<Train>,
    pub(super) pending: VecDeque<Train>,
    pub(super) counters: Counters,
    pub(super) drops: Drops,
    pub(super) housekeeping: Instant,
    /// Sessions by arbiter for cryptography.
    pub(super) loads: Vec<(usize, usize)>,
    pub(super) random: RandomState,
    pub(super) drawn: u64,
    pub(super) quiet: bool,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Device {
    pub(super) fn new(
        settings: Settings,
        socket: StdSocket,
        published: Published,
        inside: InsideSlot,
        sender: Mail<SenderMsg>,
        peers: Peers,
    ) -> Self {
        let now = clock::now();
        Self {
            inside_limiter: no_limit(&settings.secret),
            std: Some(socket),
            socket: None,
            guard: Guard::new(&settings.secret, settings.handshakes),
            sources: Sources::new(settings.handshakes_per_source, settings.handshakes_per_source, SOURCES, now),
            seen: Seen::new(SEEN),
            indices: Indices::default(),
            peers,
            published,
            sender,
            inside,
            trains: Vec::new(),
            spare: Vec::new(),
            pending: VecDeque::new(),
            counters: Counters::default(),
            drops: Drops::default(),
            housekeeping: now,
            loads: settings.threading.crypto().iter().map(|arbiter| (*arbiter, 0)).collect(),
            random: RandomState::new(),
            drawn: 0,
            quiet: false,
            settings,
        }
    }

    pub(super) fn publish(&self) {
        self.published.publish(self.peers.table(&self.settings.addresses));
    }

    pub(super) fn lost(&mut self, turn: &Turn<'_, DeviceMsg>, reason: &'static str, n: u64) {
        self.drops.add(turn, &self.settings.name, reason, n);
    }

    /// Different each time, and nobody's to foretell.
    pub(super) fn draw(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        self.random.hash_one(self.drawn)
    }

    fn fresh(&mut self) -> Train {
        self.spare.pop().unwrap_or_else(|| Train::with_capacity(ROOM, NOWHERE))
    }

    fn keep(&mut self, mut train: Train) {
        if self.spare.len() < SPARE && train.room().len() >= crate::transports::udp::TRAIN {
            train.clear(NOWHERE, None);
            self.spare.push(train);
        }
    }

    /// Reads what the kernel has, up to the budget.
    fn receive(&mut self, turn: &Turn<'_, DeviceMsg>) -> Result<Progress, Fault> {
        for _ in 0..RECEIVES {
            while self.trains.len() < AT_ONCE {
                let train = self.fresh();
                self.trains.push(train);
            }
            let Some(socket) = &self.socket else { return Ok(Progress::Idle) };
            let mut metas = [RecvMeta::default(); AT_ONCE];
            let received = {
                let mut trains = self.trains.iter_mut();
                let mut rooms: [IoSliceMut<'_>; AT_ONCE] =
                    std::array::from_fn(|_| IoSliceMut::new(trains.next().map(Train::room).unwrap_or_default()));
                match socket.poll_recv(&mut turn.cx(), &mut rooms, &mut metas) {
                    Poll::Pending => return Ok(Progress::Idle),
                    Poll::Ready(Ok(received)) => received,
                    Poll::Ready(Err(error)) => {
                        // An ICMP error of some peer's network says nothing about the socket.
                        tracing::debug!(interface = %self.settings.name, %error, "receive");
                        turn.counter("wireguard_receive_errors", &self.settings.name, "").add(1);
                        continue;
                    }
                }
            };
            let mut trains = std::mem::take(&mut self.trains);
            for (mut train, meta) in trains.drain(..received.min(AT_ONCE)).zip(&metas) {
                train.received(meta.len, meta.stride, canonical(meta.addr), meta.dst_ip);
                self.counters.datagrams.add(train.count() as u64);
                self.counters.bytes.add(meta.len as u64);
                self.sort(train, turn);
            }
            self.trains = trains;
        }
        Ok(Progress::More)
    }

    /// A train that came in: whole to one session, or datagram by datagram.
    fn sort(&mut self, train: Train, turn: &Turn<'_, DeviceMsg>) {
        if let Some(peer) = self.only_peer(&train) {
            self.counters.passed_whole.add(1);
            if train.bytes().len() < SMALL {
                // A mailbox is bounded in bytes of buffers: a few small datagrams must not fill it.
                self.hand_over(peer, train.compact(|bytes| turn.buffer(bytes)), turn);
                self.keep(train);
            } else {
                self.hand_over(peer, train, turn);
            }
            return;
        }
        for datagram in train.iter() {
            match Message::parse(datagram) {
                Some(Message::Data { receiver, .. }) => match self.indices.peer(receiver) {
                    Some(peer) => {
                        self.hand_over(peer, Train::of(datagram, train.address, train.local), turn);
                    }
                    None => self.lost(turn, "unknown_index", 1),
                },
                Some(Message::Initiation { .. } | Message::Response { .. } | Message::Cookie { .. }) => {
                    let source = train.address.ip();
                    if !self.sources.take(source, turn.now()) {
                        self.lost(turn, "source_limit", 1);
                    } else if self.pending.len() >= PENDING {
                        self.lost(turn, "handshakes_waiting", 1);
                    } else {
                        self.pending.push_back(Train::of(datagram, train.address, train.local));
                    }
                }
                None => self.lost(turn, "malformed", 1),
            }
        }
        self.keep(train);
    }

    /// The peer that all datagrams of a train are data for, if there is one such.
    fn only_peer(&self, train: &Train) -> Option<u32> {
        let mut only = None;
        for datagram in train.iter() {
            let Some(Message::Data { receiver, .. }) = Message::parse(datagram) else { return None };
            match only {
                None => only = Some(receiver >> 8),
                Some(index) if index == receiver >> 8 => {}
                Some(_) => return None,
            }
        }
        only.and_then(|index| self.indices.peer(index << 8))
    }

    fn hand_over(&mut self, peer: u32, train: Train, turn: &Turn<'_, DeviceMsg>) {
        let count = train.count() as u64;
        let Some(running) = self.peers.get(peer).and_then(|peer| peer.running.as_ref()) else {
            self.lost(turn, "unknown_index", count);
            return;
        };
        if let Err(refused) = running.mail.tell(SessionMsg::Inbound(train)) {
            self.lost(turn, "peer_busy", count);
            if let SessionMsg::Inbound(train) = refused.into_inner() {
                self.keep(train);
            }
        }
    }

    /// Judges handshakes that wait, up to the budget.
    fn handshakes(&mut self, turn: &Turn<'_, DeviceMsg>) {
        for _ in 0..HANDSHAKES {
            let Some(train) = self.pending.pop_front() else { return };
            self.handshake(train, turn);
        }
    }

    fn handshake(&mut self, train: Train, turn: &Turn<'_, DeviceMsg>) {
        let datagram = train.bytes();
        let Some(message) = Message::parse(datagram) else { return };
        if !matches!(message, Message::Cookie { .. }) {
            let mut cookie = [0; COOKIE];
            match self.guard.judge(train.address.ip(), datagram, &mut cookie) {
                Verdict::Pass => {}
                Verdict::Cookie => {
                    self.counters.cookies.add(1);
                    let reply = Train::of(&cookie, train.address, train.local);
                    if self.sender.tell(SenderMsg::Send(reply, None)).is_err() {
                        self.lost(turn, "send_queue_full", 1);
                    }
                    return;
                }
                Verdict::Refused(error) => {
                    self.lost(turn, error.reason(), 1);
                    return;
                }
            }
        }
        match message {
            Message::Initiation { ephemeral } => {
                let Some(key) = self.guard.initiator(datagram) else {
                    self.lost(turn, "key", 1);
                    return;
                };
                let Some(peer) = self.peers.find(&key) else {
                    self.lost(turn, "unknown_peer", 1);
                    return;
                };
                let wall = clock::since_1970().as_secs();
                if self.peers.get(peer).is_some_and(|peer| peer.settings.is_expired(wall)) {
                    self.lost(turn, "peer_expired", 1);
                    return;
                }
                if self.seen.note(&ephemeral) {
                    self.lost(turn, "old_initiation", 1);
                    return;
                }
                self.counters.initiations.add(1);
                if self.session(peer, turn).is_some() {
                    self.hand_over(peer, train, turn);
                }
            }
            Message::Response { receiver, .. } | Message::Cookie { receiver } => match self.indices.peer(receiver) {
                Some(peer) => self.hand_over(peer, train, turn),
                None => self.lost(turn, "unknown_index", 1),
            },
            Message::Data { .. } => {}
        }
    }
}

fn canonical(from: SocketAddr) -> SocketAddr {
    SocketAddr::new(from.ip().to_canonical(), from.port())
}

impl Protocol for Device {
    type Msg = DeviceMsg;
    const KIND: &'static str = "wireguard";
    const LAYER: Layer = Layer::Link;

    fn size(m: &DeviceMsg) -> usize {
        match m {
            DeviceMsg::Wake(_, packets) => packets.held(),
            DeviceMsg::Home(train) => train.held(),
            DeviceMsg::Lost(..)
            | DeviceMsg::Report(_)
            | DeviceMsg::Ended(..)
            | DeviceMsg::Replace(_)
            | DeviceMsg::Set(_)
            | DeviceMsg::Remove(_)
            | DeviceMsg::Peers(_) => 0,
        }
    }

    fn label(m: &DeviceMsg) -> &'static str {
        label(m)
    }

    fn started(&mut self, turn: &mut Turn<'_, DeviceMsg>) -> Result<(), Fault> {
        let scope = &self.settings.name;
        self.counters = Counters {
            datagrams: turn.counter("wireguard_datagrams_in", scope, ""),
            bytes: turn.counter("wireguard_datagram_bytes_in", scope, ""),
            initiations: turn.counter("wireguard_initiations", scope, ""),
            cookies: turn.counter("wireguard_cookies", scope, ""),
            passed_whole: turn.counter("wireguard_trains_passed_whole", scope, ""),
            sessions: turn.counter("wireguard_sessions_started", scope, ""),
        };
        if let Some(socket) = self.std.take() {
            let socket = UdpSocket::new(socket, &Options { gso: self.settings.gso, ..Options::default() });
            self.socket = Some(socket.map_err(|error| Fault::local("socket", error.to_string()))?);
        }
        let all: Vec<u32> = self.peers.iter().map(|(number, _)| number).collect();
        for number in all {
            self.kick(number, turn);
        }
        Ok(())
    }

    fn on(&mut self, m: DeviceMsg, turn: &mut Turn<'_, DeviceMsg>) -> Result<(), Fault> {
        match m {
            DeviceMsg::Wake(peer, packets) => self.wake(peer, packets, turn),
            DeviceMsg::Lost(reason, n) => self.lost(turn, reason, n),
            DeviceMsg::Home(train) => self.keep(train),
            DeviceMsg::Report(report) => {
                if let Some(peer) = self.peers.get_mut(report.peer)
                    && peer.running.is_some()
                {
                    peer.report = report;
                }
            }
            DeviceMsg::Ended(peer, actor, exit) => self.ended(peer, actor, &exit),
            DeviceMsg::Replace(all) => self.replace(all, turn),
            DeviceMsg::Set(settings) => {
                self.set(*settings, turn);
                self.publish();
            }
            DeviceMsg::Remove(key) => {
                self.remove(&key);
                self.publish();
            }
            DeviceMsg::Peers(reply) => drop(reply.send(self.view(turn.now()))),
        }
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, DeviceMsg>) -> Result<Progress, Fault> {
        let received = self.receive(turn)?;
        self.handshakes(turn);
        Ok(if self.pending.is_empty() { received } else { Progress::More })
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.housekeeping)
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, DeviceMsg>) -> Result<(), Fault> {
        self.housekeeping = clock::later(turn.now(), HOUSEKEEPING);
        self.guard.reset();
        let wall = clock::since_1970().as_secs();
        let expired: Vec<u32> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.running.is_some() && peer.settings.is_expired(wall))
            .map(|(number, _)| number)
            .collect();
        for number in expired {
            self.end_session(number);
            self.lost(turn, "peer_expired", 1);
        }
        if let Some(socket) = &self.socket
            && let Some(dropped) = socket.dropped()
        {
            let known = turn.counter("wireguard_kernel_dropped", &self.settings.name, "");
            // Modulo 2³²; on another arbiter the counter begins at zero, here it is this socket's alone.
            known.add(u64::from(dropped.wrapping_sub(known.get() as u32)));
        }
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Turn<'_, DeviceMsg>) {
        self.quiet = true;
    }

    fn closed(&mut self, _: &Exit) {
        for (_, peer) in self.peers.iter() {
            peer.running.iter().for_each(|running| running.mail.control(Control::Stop));
        }
    }

    fn held(&self) -> usize {
        let trains = self.trains.iter().chain(&self.spare).chain(&self.pending);
        trains.map(Train::held).sum()
    }
}
