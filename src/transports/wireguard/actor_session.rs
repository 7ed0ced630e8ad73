//! The actor of one active peer: decrypts what comes from outside, encrypts what comes from inside, straight into the
//! buffer that is sent, and keeps the session's timers.
//!
//! It is started with the first handshake or the first packet for the peer and ends when its engine has given the peer up.
//! What comes out of the tunnel is judged here: its header, its source (which must lead back to this very peer by the
//! longest prefix), the peer's limits. What it may not do, or what finds no room, is dropped and counted by reason.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actor_device::{DeviceMsg, Report};
use super::actor_sender::SenderMsg;
use super::codec_inner::{self, Inner};
use super::codec_message::OVERHEAD;
use super::counts::Drops;
use super::engine::{Engine, EngineError, LEAST_ROOM, Opened, Sealed, Ticked};
use super::settings::{PeerSettings, PeerToPeer};
use super::state_limits::PeerBuckets;
use super::state_train::{MOST_BYTES, ROOM, Train};
use super::table::{InsideSlot, View};
use crate::actors::{Counter, Exit, Fault, Layer, Mail, Progress, Protocol, Refused, Traffic, Turn, clock};
use crate::transports::kit::packets::{Deliver, Packets};

/// How often the device hears of traffic.
const REPORT: Duration = Duration::from_secs(1);
/// Buffers kept for the next turn.
const SPARE: usize = 8;
/// Segments of one train, at most: what the kernel takes.
const SEGMENTS: usize = 64;

/// What a session is told.
#[derive(Debug)]
pub(super) enum SessionMsg {
    /// Datagrams of this peer.
    Inbound(Train),
    /// Packets for this peer.
    Outbound(Packets),
    /// An empty train that was sent.
    Home(Train),
    /// The peer's settings have changed, its keys have not.
    Set(Arc<PeerSettings>),
    /// Begin a handshake if there is no session.
    Initiate,
}

/// What a session is made of, beside its engine.
pub(super) struct Parts {
    pub(super) interface: Arc<str>,
    pub(super) peer: u32,
    pub(super) settings: Arc<PeerSettings>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) mtu: usize,
    pub(super) peer_to_peer: PeerToPeer,
    pub(super) gso: bool,
    pub(super) device: Mail<DeviceMsg>,
    pub(super) sender: Mail<SenderMsg>,
    pub(super) view: View,
    pub(super) inside: InsideSlot,
}

/// What it counts.
#[derive(Debug, Default)]
struct Counters {
    packets_in: Counter,
    packets_out: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    handshakes: Counter,
    roamed: Counter,
    deferred: Counter,
    named: Option<(Counter, Counter)>,
}

/// The actor.
pub(super) struct Session<E> {
    engine: E,
    parts: Parts,
    inside: Option<Box<dyn Deliver>>,
    /// The local address the peer talks to.
    local: Option<IpAddr>,
    limit_in: PeerBuckets,
    limit_out: PeerBuckets,
    /// Datagrams of this turn.
    train: Option<Train>,
    spare: Vec<Train>,
    spare_packets: Option<Packets>,
    counters: Counters,
    drops: Drops,
    report: Report,
    reported_at: Instant,
    dirty: bool,
    established: Option<Instant>,
}

impl<E> fmt::Debug for Session<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.parts.settings.public_key).finish_non_exhaustive()
    }
}

/// What became of one decrypted packet.
enum Judged {
    Inside,
    To(u32),
    Dropped(&'static str),
}

impl<E: Engine> Session<E> {
    pub(super) fn new(engine: E, parts: Parts) -> Self {
        let now = clock::now();
        let (limit_in, limit_out) = (parts.settings.limit_in, parts.settings.limit_out);
        Self {
            engine,
            inside: None,
            local: None,
            limit_in: PeerBuckets::new(limit_in, now),
            limit_out: PeerBuckets::new(limit_out, now),
            train: None,
            spare: Vec::new(),
            spare_packets: None,
            counters: Counters::default(),
            drops: Drops::default(),
            report: Report { peer: parts.peer, endpoint: parts.endpoint, ..Report::default() },
            reported_at: now,
            dirty: false,
            established: None,
            parts,
        }
    }

    fn drop_packets(&mut self, turn: &Turn<'_, SessionMsg>, reason: &'static str, n: u64) {
        self.drops.add(turn, &self.parts.interface, reason, n);
    }

    /// Sends what this turn has so far.
    fn send_train(&mut self, turn: &Turn<'_, SessionMsg>) {
        let Some(train) = self.train.take() else { return };
        if train.is_empty() {
            self.keep(train);
            return;
        }
        let home = (train.held() > MOST_BYTES / 4).then(|| turn.mail());
        self.send(turn, train, home);
    }

    fn send(&mut self, turn: &Turn<'_, SessionMsg>, train: Train, home: Option<Mail<SessionMsg>>) {
        self.report.sent += train.bytes().len() as u64;
        self.dirty = true;
        if let Err(refused) = self.parts.sender.tell(SenderMsg::Send(train, home)) {
            let reason = match &refused {
                Refused::Closed(_) => "sender_gone",
                Refused::Full(_) | Refused::TooLarge(_) => "send_queue_full",
            };
            let SenderMsg::Send(train, _) = refused.into_inner();
            self.drop_packets(turn, reason, train.count() as u64);
        }
    }

    fn keep(&mut self, train: Train) {
        if self.spare.len() < SPARE {
            self.spare.push(train);
        }
    }

    /// One datagram by itself: a handshake message.
    fn send_one(&mut self, turn: &Turn<'_, SessionMsg>, datagram: &[u8], to: SocketAddr, local: Option<IpAddr>) {
        // In order: what was encrypted before leaves before.
        self.send_train(turn);
        self.send(turn, Train::of(datagram, to, local), None);
    }

    /// Datagrams from outside.
    fn inbound(&mut self, train: Train, turn: &mut Turn<'_, SessionMsg>) {
        let mut packets = self.take_packets(train.bytes().len() + train.count() * LEAST_ROOM, train.count(), turn);
        let mut across: Vec<(u32, Packets)> = Vec::new();
        let mut memo = (None, None);
        let now = turn.now();
        for datagram in train.iter() {
            if datagram.first() == Some(&4) {
                if packets.room() < datagram.len().max(LEAST_ROOM) {
                    packets = self.deliver(packets, turn);
                    if packets.held() == 0 {
                        packets =
                            self.take_packets(train.bytes().len() + train.count() * LEAST_ROOM, train.count(), turn);
                    }
                }
                self.data(datagram, &train, &mut packets, &mut across, &mut memo, turn);
            } else {
                self.handshake(datagram, &train, turn);
            }
        }
        self.dirty = true;
        if packets.is_empty() {
            self.spare_packets = Some(packets);
        } else {
            let spare = self.deliver(packets, turn);
            self.spare_packets = Some(spare);
        }
        for (peer, packets) in across {
            self.pass_on(peer, packets, turn);
        }
        if self.engine.established() != self.established {
            self.established = self.engine.established();
            self.report.handshake = Some(now);
            self.counters.handshakes.add(1);
            self.release(turn);
        }
        // Only the large buffers are worth a way home.
        if train.held() >= ROOM {
            let mut train = train;
            train.clear(train.address, None);
            let _gone = self.parts.device.tell(DeviceMsg::Home(train));
        }
    }

    /// An empty batch for so many bytes and packets.
    fn take_packets(&mut self, bytes: usize, count: usize, turn: &Turn<'_, SessionMsg>) -> Packets {
        match self.spare_packets.take() {
            Some(packets) if packets.held() >= Packets::needs(bytes, count) => packets,
            Some(_) | None => Packets::over(turn.buffer(Packets::needs(bytes, count)), bytes, count),
        }
    }

    fn data(
        &mut self,
        datagram: &[u8],
        train: &Train,
        packets: &mut Packets,
        across: &mut Vec<(u32, Packets)>,
        memo: &mut (Option<IpAddr>, Option<IpAddr>),
        turn: &Turn<'_, SessionMsg>,
    ) {
        let now = turn.now();
        let mut outcome = Ok(Opened::Nothing);
        let mut judged = None;
        let Self { engine, parts, limit_in, .. } = self;
        let mut length = 0;
        packets.push_with(datagram.len().max(LEAST_ROOM), |room| {
            outcome = engine.open(datagram, room, now).map(|(_, opened)| opened);
            let Ok(Opened::Packet(len)) = outcome else { return 0 };
            length = len;
            let Some(packet) = room.get_mut(..len) else { return 0 };
            let verdict = judge(packet, parts, limit_in, memo, now);
            if let Judged::To(peer) = verdict {
                add_to(across, peer, packet);
            }
            let inside = matches!(verdict, Judged::Inside);
            judged = Some(verdict);
            if inside { len } else { 0 }
        });
        match outcome {
            Ok(_) => {
                self.report.received += datagram.len() as u64;
                self.roam(train, turn);
            }
            Err(error) => self.drop_packets(turn, error.reason(), 1),
        }
        match judged {
            Some(Judged::Dropped(reason)) => self.drop_packets(turn, reason, 1),
            Some(Judged::Inside | Judged::To(_)) => {
                self.counters.packets_in.add(1);
                self.counters.bytes_in.add(length as u64);
                if let Some((bytes, _)) = &self.counters.named {
                    bytes.add(length as u64);
                }
            }
            None => {}
        }
    }

    fn handshake(&mut self, datagram: &[u8], train: &Train, turn: &mut Turn<'_, SessionMsg>) {
        turn.scratch(|turn, scratch| match self.engine.open(datagram, scratch, turn.now()) {
            Ok((authentic, opened)) => {
                self.report.received += datagram.len() as u64;
                if authentic.roams() {
                    self.roam(train, turn);
                }
                if let Opened::Reply(length) = opened
                    && let Some(reply) = scratch.get(..length)
                {
                    self.send_one(turn, reply, train.address, train.local);
                }
            }
            Err(error) => self.drop_packets(turn, error.reason(), 1),
        });
    }

    /// The peer is where its last authentic datagram came from.
    fn roam(&mut self, train: &Train, turn: &Turn<'_, SessionMsg>) {
        self.local = train.local;
        if self.parts.endpoint != Some(train.address) {
            if self.parts.endpoint.is_some() {
                self.counters.roamed.add(1);
            }
            // What is encrypted for the old place still goes there.
            self.send_train(turn);
            self.parts.endpoint = Some(train.address);
            self.report.endpoint = self.parts.endpoint;
            self.dirty = true;
        }
    }

    /// Encrypts what waited for a session.
    fn release(&mut self, turn: &mut Turn<'_, SessionMsg>) {
        let Some(to) = self.parts.endpoint else { return };
        turn.scratch(|turn, scratch| {
            // Bounded: the engine keeps no more than its rules allow.
            while let Ok(Some(length)) = self.engine.waiting(scratch, turn.now()) {
                let Some(datagram) = scratch.get(..length) else { return };
                self.append(datagram, to, turn);
            }
        });
    }

    fn append(&mut self, datagram: &[u8], to: SocketAddr, turn: &Turn<'_, SessionMsg>) {
        let segments = self.segments();
        if !self.train.as_ref().is_some_and(|train| train.takes(datagram.len(), segments)) {
            self.send_train(turn);
        }
        let local = self.local;
        let train = self.train.get_or_insert_with(|| {
            let mut train = Train::with_capacity(MOST_BYTES, to);
            train.local = local;
            train
        });
        train.push(datagram.len(), segments, |room| {
            room.get_mut(..datagram.len()).map_or(0, |room| {
                room.copy_from_slice(datagram);
                datagram.len()
            })
        });
    }

    const fn segments(&self) -> usize {
        if self.parts.gso { SEGMENTS } else { 1 }
    }

    /// Hands packets to what is inside, and answers an empty batch.
    fn deliver(&mut self, packets: Packets, turn: &Turn<'_, SessionMsg>) -> Packets {
        let count = packets.len() as u64;
        if self.inside.is_none() {
            self.inside = self.parts.inside.get().map(|make| make());
        }
        let refused = match &mut self.inside {
            Some(inside) => match inside.deliver(packets) {
                Ok(spare) => return spare,
                Err(refused) => refused,
            },
            None => packets,
        };
        let reason = if self.inside.is_some() { "inside_full" } else { "nothing_inside" };
        self.drop_packets(turn, reason, count);
        let mut packets = refused;
        packets.clear();
        packets
    }

    /// To the session of another peer.
    fn pass_on(&mut self, peer: u32, packets: Packets, turn: &Turn<'_, SessionMsg>) {
        let count = packets.len() as u64;
        let table = self.parts.view.get();
        let session = table.slot(peer).and_then(|slot| slot.session.load_full());
        let refused = match session {
            Some(mail) => mail.tell(SessionMsg::Outbound(packets)).is_err(),
            None => self.parts.device.tell(DeviceMsg::Wake(peer, packets)).is_err(),
        };
        if refused {
            self.drop_packets(turn, "peer_busy", count);
        }
    }

    /// Packets from inside.
    fn outbound(&mut self, mut packets: Packets, turn: &Turn<'_, SessionMsg>) {
        let now = turn.now();
        let Some(to) = self.parts.endpoint else {
            self.drop_packets(turn, "no_endpoint", packets.len() as u64);
            return;
        };
        let mtu = self.parts.mtu;
        packets.for_each_mut(|packet| {
            codec_inner::clamp_mss(packet, mtu);
        });
        let wanted = packets.bytes() + packets.len() * (OVERHEAD + 16);
        for n in 0..packets.len() {
            let (Some(packet), Some(padded)) = (packets.get(n), packets.padded(n, mtu)) else { break };
            let length = packet.len();
            if length > mtu {
                self.drop_packets(turn, "too_long", 1);
                continue;
            }
            if !self.limit_out.take(length, now) {
                self.drop_packets(turn, "limit_out", 1);
                continue;
            }
            self.seal(padded, to, wanted, turn);
            self.counters.packets_out.add(1);
            self.counters.bytes_out.add(length as u64);
            if let Some((_, bytes)) = &self.counters.named {
                bytes.add(length as u64);
            }
        }
        packets.clear();
        if self.spare_packets.is_none() {
            self.spare_packets = Some(packets);
        }
    }

    fn seal(&mut self, padded: &[u8], to: SocketAddr, wanted: usize, turn: &Turn<'_, SessionMsg>) {
        let segments = self.segments();
        let length = padded.len() + OVERHEAD;
        if !self.train.as_ref().is_some_and(|train| train.takes(length, segments)) {
            self.send_train(turn);
            let mut train = match self.spare.pop() {
                Some(train) if train.held() >= wanted.min(MOST_BYTES) => train,
                Some(_) | None => {
                    let bytes = wanted.max(length).min(MOST_BYTES);
                    Train::over(turn.buffer(Train::needs(bytes)), bytes, to)
                }
            };
            train.clear(to, self.local);
            self.train = Some(train);
        }
        let Some(train) = &mut self.train else { return };
        let engine = &mut self.engine;
        let mut outcome = Err(EngineError::Room);
        let mut initiation = None;
        train.push(length, segments, |room| {
            outcome = engine.seal(padded, room, turn.now());
            match outcome {
                Ok(Sealed::Datagram(length)) => length,
                Ok(Sealed::Waits(Some(length))) => {
                    initiation = room.get(..length).map(<[u8]>::to_vec);
                    0
                }
                Ok(Sealed::Waits(None)) | Err(_) => 0,
            }
        });
        match outcome {
            Ok(Sealed::Datagram(_)) => {}
            Ok(Sealed::Waits(_)) => self.counters.deferred.add(1),
            Err(error) => self.drop_packets(turn, error.reason(), 1),
        }
        if let Some(initiation) = initiation {
            self.send_one(turn, &initiation, to, self.local);
        }
    }

    fn initiate(&mut self, turn: &mut Turn<'_, SessionMsg>) {
        let Some(to) = self.parts.endpoint.filter(|_| self.engine.established().is_none()) else { return };
        turn.scratch(|turn, scratch| {
            if let Ok(Some(length)) = self.engine.initiate(scratch, turn.now())
                && let Some(initiation) = scratch.get(..length)
            {
                self.send_one(turn, initiation, to, self.local);
            }
        });
    }

    fn tell_device(&mut self, now: Instant) {
        if std::mem::take(&mut self.dirty) {
            self.reported_at = now;
            // One that finds no room is made good by the next.
            self.dirty = self.parts.device.tell(DeviceMsg::Report(self.report.clone())).is_err();
        }
    }
}

/// A decrypted packet: what it says of itself, whether its source is this peer's, and where it goes.
fn judge(
    packet: &mut [u8],
    parts: &mut Parts,
    limit: &mut PeerBuckets,
    memo: &mut (Option<IpAddr>, Option<IpAddr>),
    now: Instant,
) -> Judged {
    let inner = match Inner::parse(packet) {
        Ok(inner) => inner,
        Err(error) => return Judged::Dropped(error.reason()),
    };
    let table = parts.view.get();
    if memo.0 != Some(inner.source) {
        if table.peer_of(inner.source) != Some(parts.peer) {
            return Judged::Dropped("source_not_allowed");
        }
        memo.0 = Some(inner.source);
    }
    if !limit.take(packet.len(), now) {
        return Judged::Dropped("limit_in");
    }
    if memo.1 != Some(inner.destination) {
        match table.peer_of(inner.destination).filter(|_| !table.is_own(inner.destination)) {
            None => memo.1 = Some(inner.destination),
            Some(_) if parts.peer_to_peer == PeerToPeer::Deny => return Judged::Dropped("peer_to_peer"),
            Some(peer) => {
                return match codec_inner::hop(packet) {
                    Ok(()) => Judged::To(peer),
                    Err(error) => Judged::Dropped(error.reason()),
                };
            }
        }
    }
    codec_inner::clamp_mss(packet, parts.mtu);
    Judged::Inside
}

fn add_to(across: &mut Vec<(u32, Packets)>, peer: u32, packet: &[u8]) {
    if let Some((_, packets)) = across.iter_mut().rev().find(|(to, _)| *to == peer)
        && packets.push(packet)
    {
        return;
    }
    let mut packets = Packets::default();
    packets.push(packet);
    across.push((peer, packets));
}

impl<E: Engine> Protocol for Session<E> {
    type Msg = SessionMsg;
    const KIND: &'static str = "wireguard_peer";
    const LAYER: Layer = Layer::Link;

    fn size(m: &SessionMsg) -> usize {
        match m {
            SessionMsg::Inbound(train) | SessionMsg::Home(train) => train.held(),
            SessionMsg::Outbound(packets) => packets.held(),
            SessionMsg::Set(_) | SessionMsg::Initiate => 0,
        }
    }

    fn label(m: &SessionMsg) -> &'static str {
        match m {
            SessionMsg::Inbound(_) => "inbound",
            SessionMsg::Outbound(_) => "outbound",
            SessionMsg::Home(_) => "home",
            SessionMsg::Set(_) | SessionMsg::Initiate => "control",
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, SessionMsg>) -> Result<(), Fault> {
        let scope = &self.parts.interface;
        self.counters = Counters {
            packets_in: turn.counter("wireguard_packets_in", scope, ""),
            packets_out: turn.counter("wireguard_packets_out", scope, ""),
            bytes_in: turn.counter("wireguard_bytes_in", scope, ""),
            bytes_out: turn.counter("wireguard_bytes_out", scope, ""),
            handshakes: turn.counter("wireguard_handshakes", scope, ""),
            roamed: turn.counter("wireguard_roamed", scope, ""),
            deferred: turn.counter("wireguard_deferred", scope, ""),
            named: self.parts.settings.name.as_ref().filter(|_| self.parts.settings.metrics).map(|name| {
                (turn.counter("wireguard_peer_bytes_in", name, ""), turn.counter("wireguard_peer_bytes_out", name, ""))
            }),
        };
        Ok(())
    }

    fn on(&mut self, m: SessionMsg, turn: &mut Turn<'_, SessionMsg>) -> Result<(), Fault> {
        match m {
            SessionMsg::Inbound(train) => self.inbound(train, turn),
            SessionMsg::Outbound(packets) => self.outbound(packets, turn),
            SessionMsg::Home(train) => self.keep(train),
            SessionMsg::Set(settings) => {
                let now = turn.now();
                if self.parts.settings.limit_in != settings.limit_in {
                    self.limit_in = PeerBuckets::new(settings.limit_in, now);
                }
                if self.parts.settings.limit_out != settings.limit_out {
                    self.limit_out = PeerBuckets::new(settings.limit_out, now);
                }
                // An endpoint that was written anew moves the peer; one that is as before does not undo its roaming.
                if settings.endpoint.is_some() && settings.endpoint != self.parts.settings.endpoint {
                    self.send_train(turn);
                    self.parts.endpoint = settings.endpoint;
                    self.report.endpoint = settings.endpoint;
                    self.dirty = true;
                }
                self.parts.settings = settings;
            }
            SessionMsg::Initiate => self.initiate(turn),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.engine.deadline())
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, SessionMsg>) -> Result<(), Fault> {
        if self.parts.device.is_closed() {
            // It ended in a panic, else it would have said so.
            turn.stop();
            return Ok(());
        }
        // Bounded: each call either moves the engine's deadline or sends one of the few messages timers know.
        for _ in 0..8 {
            let more = turn.scratch(|turn, scratch| match self.engine.tick(scratch, turn.now()) {
                Ok(Ticked::Datagram(length)) => {
                    if let (Some(datagram), Some(to)) = (scratch.get(..length), self.parts.endpoint) {
                        self.send_one(turn, datagram, to, self.local);
                    }
                    true
                }
                Ok(Ticked::Expired(dropped)) => {
                    self.drop_packets(turn, "peer_silent", dropped as u64);
                    turn.stop();
                    false
                }
                Ok(Ticked::Nothing) | Err(_) => false,
            });
            if !more {
                break;
            }
        }
        let now = turn.now();
        if now.saturating_duration_since(self.reported_at) >= REPORT {
            if !self.dirty {
                // Nothing moved for a second: an idle session holds no buffers.
                self.spare = Vec::new();
                self.spare_packets = None;
            }
            self.reported_at = now;
            self.tell_device(now);
        }
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, SessionMsg>) -> Result<Progress, Fault> {
        self.send_train(turn);
        Ok(Progress::Idle)
    }

    fn closed(&mut self, _: &Exit) {
        self.dirty = true;
        self.tell_device(self.reported_at);
    }

    fn traffic(&self) -> Traffic {
        let Report { endpoint, received, sent, .. } = self.report;
        Traffic { peer: endpoint, bytes_in: received, bytes_out: sent }
    }

    fn held(&self) -> usize {
        self.spare.iter().map(Train::held).sum::<usize>() + self.spare_packets.as_ref().map_or(0, Packets::held)
    }
}
