//! The endpoint of one arbiter: owns the socket, knows which connection each id belongs to, and starts connections.
//!
//! It reads the socket in bounded runs, cuts what came by connection, and puts it into the mailboxes; a connection that
//! slept is woken once per run. What belongs to another arbiter is forwarded to that one's endpoint. Ids are made here
//! and known here before a peer learns them. Its connections are its children and end before it does; the socket closes
//! last, together with those of its group.
//!
//! It is supervised: one that fails is made anew on the same socket, up to three times in ten seconds for all endpoints
//! of a port. Its connections end with it, in order: the table of their ids may be half changed, and is not carried
//! over. Beyond that the whole port closes, since one that is read in part would lose a part of all clients.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::actor_connection::{ALONE, ConnectionActor, Parts, Purpose};
use super::actor_engine::{Engine, Quic};
use super::actor_listen::{Door, Listen};
use super::actor_shared::{Counters, Shared};
use super::codec::{CID_LEN, Cid, MAX_CID_LEN, Peek, arbiter_of, peek};
use super::codec_token::Secrets;
use super::codec_token::reset_token_of;
use super::messages::{Packets, SlotId, Status, ToConnection, ToEndpoint};
use super::session::Role;
use super::settings::{Terms, Transport};
use crate::actors::clock::{self, later};
use crate::actors::{Control, Fault, Mail, Progress, Protocol, Spec, Turn};
use crate::memory::Budget;
use crate::transports::tls;
use crate::transports::udp::{Group, Options, RecvMeta, UdpSocket};

/// Trains read from the socket in one turn, at most.
const READS: usize = 32;
/// The same while others on the arbiter have work.
const READS_BESIDE: usize = 128;
/// Trains of one system call, at most: of many clients each has its own, and most are single packets.
const BATCH: usize = 8;
/// And after a long one: one more than is expected, since a call that brings less than there was room for has brought
/// all. More would not be in the cache any more when its turn comes.
const BATCH_OF_LONG: usize = 2;
/// Time for all, at most; looked at every few trains.
const READ_TIME: Duration = Duration::from_micros(50);
/// The same while others on the arbiter have work. What nobody has read the kernel drops, of whoever it is: where one
/// connection sends faster than it is served, its own mailbox is to be what is full, and not the socket of all.
const READ_TIME_BESIDE: Duration = Duration::from_micros(200);
const LOOK_EVERY: usize = 4;
/// Messages a connection's mailbox takes beside its packets: requests, and room kept for the handles of its streams.
const REQUESTS: usize = 16_384;
/// How often a draining endpoint looks whether the others are done too.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// A connection id of any length, as a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    length: u8,
    bytes: [u8; MAX_CID_LEN],
}

impl Key {
    pub(super) fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_CID_LEN];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Self { length: id.len() as u8, bytes })
    }
}

/// A connection of this endpoint.
pub(super) struct Slot {
    serial: u64,
    pub(super) mail: Mail<ToConnection>,
    /// Its ids, and the one that a client made up for its first packets: those may come again, late or replayed.
    keys: Vec<Key>,
    /// Sockets of its own.
    pub(super) sockets: Vec<SocketAddr>,
    /// What its peer ends a packet with that says: I have lost this connection.
    token: Option<u128>,
    established: bool,
}

/// All endpoints of a server, in the order of their arbiters; known once all have started.
pub(super) type Peers = Arc<OnceLock<Vec<Mail<ToEndpoint>>>>;

/// What an endpoint is made of, and made of again after a failure.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) scope: Arc<str>,
    /// What its socket is set up with; of a client, what its connections are.
    pub(super) transport: Arc<Transport>,
    /// The sockets of the port, and which one is this endpoint's.
    pub(super) group: Group,
    pub(super) member: usize,
    pub(super) arbiters: usize,
    pub(super) connections: usize,
    /// Of a client. A server's come with its terms.
    pub(super) secrets: Arc<Secrets>,
    pub(super) generation: u8,
    pub(super) peers: Peers,
    /// Connections of all endpoints that share the port.
    pub(super) all: Arc<AtomicUsize>,
    /// Connections it has had: news of one that its predecessor had must not be taken for another's.
    pub(super) serials: Arc<AtomicU64>,
    /// Of the process, if connections lease from it.
    pub(super) budget: Option<Budget>,
    pub(super) listen: Option<Listen>,
    /// Of a client. A server's comes with its terms.
    pub(super) log: Option<super::actor_qlog::Log>,
}

/// See the top of the file.
pub(super) struct Endpoint {
    pub(super) plan: Plan,
    pub(super) arbiter: usize,
    pub(super) door: Option<Door>,
    pub(super) shared: Option<Rc<Shared>>,
    keys: HashMap<Key, usize>,
    tokens: HashMap<u128, usize>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    pub(super) connections: usize,
    pub(super) half_open: usize,
    blocked: Vec<SlotId>,
    /// Sockets of connections that have moved.
    pub(super) others: usize,
    pub(super) contexts: Vec<(Arc<tls::ClientSettings>, quiche::Config)>,
    /// When to look again whether all are done, once draining.
    draining: Option<Instant>,
    pub(super) quiet: bool,
    /// Packets whose connection may become known by a message of this same turn.
    unknown: Vec<Packets>,
    /// What the next read is to fill; what goes on to a connection as it is leaves an empty place.
    buffers: [Vec<u8>; BATCH],
    /// How many of them it offers to the kernel.
    room: usize,
    /// Turns of all actors of the arbiter when it last read, and whether no more than one connection had work since.
    turns: u64,
    alone: bool,
}

impl Endpoint {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            arbiter: 0,
            door: None,
            shared: None,
            keys: HashMap::new(),
            tokens: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            connections: 0,
            half_open: 0,
            blocked: Vec::new(),
            others: 0,
            contexts: Vec::new(),
            draining: None,
            quiet: false,
            unknown: Vec::new(),
            buffers: Default::default(),
            room: BATCH_OF_LONG,
            turns: 0,
            alone: true,
        }
    }

    pub(super) fn shared(&self) -> Option<&Rc<Shared>> {
        self.shared.as_ref()
    }

    /// Drops packets, counted.
    pub(super) fn refuse(&self, packets: Packets, reason: &'static str, turn: &Turn<'_, ToEndpoint>) {
        let count = packets.len.div_ceil(packets.stride.max(1)).max(1) as u64;
        turn.counter("quic_packets_dropped", &self.plan.scope, reason).add(count);
        if let Some(shared) = &self.shared {
            shared.recycle(packets.buffer);
        }
    }

    /// What new connections of a server begin with.
    pub(super) fn terms(&self) -> Option<&Arc<Terms>> {
        self.door.as_ref().map(Door::terms)
    }

    pub(super) fn secrets(&self) -> Arc<Secrets> {
        self.terms().map_or_else(|| self.plan.secrets.clone(), |terms| terms.secrets.clone())
    }

    /// A new id of this arbiter.
    pub(super) fn new_id(&self) -> Option<Cid> {
        let mut random = [0; CID_LEN];
        boring::rand::rand_bytes(&mut random).ok()?;
        Some(Cid::new(random, self.arbiter, self.plan.arbiters, self.plan.generation))
    }

    /// Reads the socket for one run, and then those of connections that have moved.
    fn read(&mut self, turn: &Turn<'_, ToEndpoint>) -> Result<Progress, Fault> {
        let Some(shared) = self.shared.clone() else { return Ok(Progress::Idle) };
        let turns = turn.turns_of_all();
        self.alone = turns.saturating_sub(std::mem::replace(&mut self.turns, turns)) <= ALONE;
        let mut progress = self.read_from(&shared.socket, &shared, turn);
        let mut number = 0;
        while number < self.others
            && let Some(socket) = shared.other(number)
        {
            if self.read_from(&socket, &shared, turn) == Progress::More {
                progress = Progress::More;
            }
            number += 1;
        }
        Ok(progress)
    }

    fn read_from(&mut self, socket: &UdpSocket, shared: &Rc<Shared>, turn: &Turn<'_, ToEndpoint>) -> Progress {
        let began = turn.now();
        let (mut count, mut look) = (0, LOOK_EVERY);
        let (time, reads, of_long) =
            if self.alone { (READ_TIME, READS, BATCH_OF_LONG) } else { (READ_TIME_BESIDE, READS_BESIDE, BATCH) };
        while count < reads {
            let mut metas: [RecvMeta; BATCH] = Default::default();
            match self.receive(socket, shared, &mut metas, turn) {
                Poll::Pending => return Progress::Idle,
                Poll::Ready(Ok(received)) => {
                    count += received;
                    let room = self.room;
                    let long = metas.iter().take(received).any(|meta| meta.len > super::actor_shared::SMALL);
                    self.room = if long { of_long } else { BATCH };
                    for (number, meta) in metas.iter().enumerate().take(received) {
                        let to = if self.plan.listen.is_some() { socket.asked(meta) } else { socket.local_addr() };
                        let buffer = self.buffers.get_mut(number).map(std::mem::take).unwrap_or_default();
                        let RecvMeta { len, stride, addr: from, .. } = *meta;
                        self.sort(Packets { buffer, len, stride, from, to, forwarded: false }, shared, turn);
                    }
                    if received < room {
                        socket.emptied();
                    }
                }
                // What ICMP brings back of a datagram sent before concerns that one alone.
                Poll::Ready(Err(error)) => {
                    count += 1;
                    turn.counter("quic_receive_errors", &self.plan.scope, "").add(1);
                    tracing::debug!(%error, "receive");
                }
            }
            if count >= look {
                if clock::now().saturating_duration_since(began) > time {
                    break;
                }
                look = count + LOOK_EVERY;
            }
        }
        Progress::More
    }

    /// One system call, for as many trains as there is room for.
    fn receive(
        &mut self,
        socket: &UdpSocket,
        shared: &Rc<Shared>,
        metas: &mut [RecvMeta; BATCH],
        turn: &Turn<'_, ToEndpoint>,
    ) -> Poll<std::io::Result<usize>> {
        let mut places = self.buffers.iter_mut();
        let mut slices: [IoSliceMut<'_>; BATCH] = std::array::from_fn(|number| {
            let place = places.next().filter(|_| number < self.room);
            IoSliceMut::new(place.map_or(&mut [], |place| {
                if place.is_empty() {
                    *place = shared.large();
                }
                place.as_mut_slice()
            }))
        });
        socket.poll_recv(&mut turn.cx(), slices.get_mut(..self.room).unwrap_or_default(), metas)
    }

    /// Cuts what one read gave into runs for one connection each.
    fn sort(&mut self, packets: Packets, shared: &Rc<Shared>, turn: &Turn<'_, ToEndpoint>) {
        let Packets { len, stride, from, to, forwarded, .. } = packets;
        let all = packets.buffer.get(..len).unwrap_or_default();
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        let mut start = 0;
        let mut current: &[u8] = &[];
        for (number, datagram) in all.chunks(stride.max(1)).enumerate() {
            let id = destination(datagram);
            if number > 0 && id != current {
                runs.push(start..number * stride);
                start = number * stride;
            }
            current = id;
        }
        if runs.is_empty() {
            let packets = if len <= super::actor_shared::SMALL {
                let small = shared.copy_of(all);
                shared.recycle(packets.buffer);
                Packets { buffer: small, ..Packets { buffer: Vec::new(), len, stride, from, to, forwarded } }
            } else {
                packets
            };
            self.route(packets, turn);
            return;
        }
        runs.push(start..len);
        for run in runs {
            let bytes = all.get(run).unwrap_or_default();
            let part = Packets { buffer: shared.copy_of(bytes), len: bytes.len(), stride, from, to, forwarded };
            self.route(part, turn);
        }
        shared.recycle(packets.buffer);
    }

    /// Gives a run to its connection, or to whoever decides about it.
    fn route(&mut self, packets: Packets, turn: &Turn<'_, ToEndpoint>) {
        let first = packets.buffer.get(..packets.len.min(packets.stride)).unwrap_or_default();
        match peek(first) {
            Ok(peeked) => {
                if let Some(mail) = self.owner(peeked.dcid()) {
                    self.deliver(&mail, packets);
                } else if arbiter_of(peeked.dcid(), self.plan.arbiters) != self.arbiter
                    && !matches!(peeked, Peek::Foreign { .. })
                    && self.plan.arbiters > 1
                {
                    self.forward(packets, turn);
                } else {
                    self.unknown.push(packets);
                }
            }
            Err(error) => self.refuse(packets, error.reason(), turn),
        }
    }

    fn owner(&self, id: &[u8]) -> Option<Mail<ToConnection>> {
        let slot = *self.keys.get(&Key::new(id)?)?;
        self.slots.get(slot)?.as_ref().map(|slot| slot.mail.clone())
    }

    /// Whose peer says by this datagram that it has lost the connection: its id is no id, only its end tells (RFC 9000,
    /// section 10.3.1).
    fn lost(&self, datagram: &[u8]) -> Option<Mail<ToConnection>> {
        let slot = *self.tokens.get(&reset_token_of(datagram)?)?;
        self.slots.get(slot)?.as_ref().map(|slot| slot.mail.clone())
    }

    fn deliver(&self, mail: &Mail<ToConnection>, packets: Packets) {
        if let Err(refused) = mail.tell(ToConnection::Packets(packets))
            && let ToConnection::Packets(packets) = refused.into_inner()
            && let Some(shared) = &self.shared
        {
            shared.counters.inbox_full.add(packets.len.div_ceil(packets.stride.max(1)) as u64);
            shared.recycle(packets.buffer);
        }
    }

    fn forward(&self, mut packets: Packets, turn: &Turn<'_, ToEndpoint>) {
        let first = packets.buffer.get(..packets.len.min(packets.stride)).unwrap_or_default();
        let owner = peek(first).map_or(0, |peeked| arbiter_of(peeked.dcid(), self.plan.arbiters));
        let peer = self.plan.peers.get().and_then(|peers| peers.get(owner));
        let (Some(peer), false) = (peer, packets.forwarded) else {
            self.refuse(packets, "no_owner", turn);
            return;
        };
        packets.forwarded = true;
        let count = packets.len.div_ceil(packets.stride.max(1)) as u64;
        match peer.tell(ToEndpoint::Forwarded(packets)) {
            Ok(()) => {
                if let Some(shared) = &self.shared {
                    shared.counters.forwarded.add(count);
                }
            }
            Err(refused) => {
                if let ToEndpoint::Forwarded(packets) = refused.into_inner() {
                    self.refuse(packets, "forward_full", turn);
                }
            }
        }
    }

    /// Those whose connection no message of this turn has made known.
    fn decide(&mut self, turn: &Turn<'_, ToEndpoint>) {
        for packets in std::mem::take(&mut self.unknown) {
            let first = packets.buffer.get(..packets.len.min(packets.stride)).unwrap_or_default();
            let owner = peek(first).ok().and_then(|peeked| self.owner(peeked.dcid())).or_else(|| self.lost(first));
            match owner {
                Some(mail) => self.deliver(&mail, packets),
                None => self.stranger(packets, turn),
            }
        }
    }

    /// Starts the actor of a connection and makes its ids known.
    pub(super) fn start(
        &mut self,
        mut quic: Quic,
        role: Role,
        id: Cid,
        first: Option<Key>,
        purpose: Purpose,
        turn: &Turn<'_, ToEndpoint>,
    ) -> Option<Mail<ToConnection>> {
        let shared = self.shared.clone()?;
        let at = self.free.pop().unwrap_or(self.slots.len());
        let slot = SlotId { slot: at, serial: self.plan.serials.fetch_add(1, Ordering::Relaxed) };
        let transport = self.terms().map_or_else(|| self.plan.transport.clone(), |terms| terms.transport.clone());
        if let Some(log) = self.terms().and_then(|terms| terms.log.as_ref()) {
            log.attach(&mut quic, role);
        }
        let engine = Engine::new(Box::new(quic), transport, role, self.arbiter, turn.now());
        let parts = Parts {
            engine,
            shared,
            endpoint: turn.mail(),
            slot,
            scope: self.plan.scope.clone(),
            purpose,
            budget: self.plan.budget.clone(),
        };
        let spec = Spec::named(self.plan.scope.clone()).inbox(REQUESTS, self.plan.transport.inbox.max(64 << 10));
        let started = turn.spawn_here(spec, move || ConnectionActor::new(parts));
        let Ok(mail) = started else {
            self.free.push(at);
            return None;
        };
        if turn.watch(&mail, move |_| ToEndpoint::Gone(slot)).is_err() {
            // Nobody would take its ids away: it must not begin.
            mail.control(Control::Stop);
            self.free.push(at);
            return None;
        }
        let mut keys = Vec::with_capacity(4);
        keys.extend(Key::new(id.bytes()));
        keys.extend(first);
        for key in &keys {
            self.keys.insert(*key, at);
        }
        let entry = Slot {
            serial: slot.serial,
            mail: mail.clone(),
            keys,
            sockets: Vec::new(),
            token: None,
            established: false,
        };
        match self.slots.get_mut(at) {
            Some(place) => *place = Some(entry),
            None => self.slots.push(Some(entry)),
        }
        self.connections += 1;
        self.plan.all.fetch_add(1, Ordering::Relaxed);
        self.half_open += 1;
        turn.counter("quic_connections_opened", &self.plan.scope, "").add(1);
        Some(mail)
    }

    pub(super) fn slot(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(id.slot)?.as_mut().filter(|slot| slot.serial == id.serial)
    }

    fn established(&mut self, id: SlotId, token: Option<u128>) {
        let Some(slot) = self.slot(id) else { return };
        slot.token = token;
        if !std::mem::replace(&mut slot.established, true) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        if let Some(token) = token {
            self.tokens.insert(token, id.slot);
        }
    }

    fn gone(&mut self, id: SlotId) {
        if self.slot(id).is_none() {
            return;
        }
        let Some(slot) = self.slots.get_mut(id.slot).and_then(Option::take) else { return };
        for key in &slot.keys {
            self.keys.remove(key);
        }
        if let Some(token) = slot.token {
            self.tokens.remove(&token);
        }
        for local in &slot.sockets {
            self.close_other(*local);
        }
        self.free.push(id.slot);
        self.connections = self.connections.saturating_sub(1);
        self.plan.all.fetch_sub(1, Ordering::Relaxed);
        if !slot.established {
            self.half_open = self.half_open.saturating_sub(1);
        }
    }

    fn give_ids(&mut self, id: SlotId, count: usize) {
        let secrets = self.secrets();
        let made: Vec<(Cid, u128)> = (0..count)
            .filter_map(|_| {
                let cid = self.new_id()?;
                Some((cid, secrets.reset_token(&cid).ok()?))
            })
            .collect();
        let Some(slot) = self.slot(id) else { return };
        let keys: Vec<Key> = made.iter().filter_map(|(cid, _)| Key::new(cid.bytes())).collect();
        slot.keys.extend(&keys);
        let mail = slot.mail.clone();
        for key in keys {
            self.keys.insert(key, id.slot);
        }
        // A connection that takes no message has ended, and its ids go with it.
        drop(mail.tell(ToConnection::Ids(made)));
    }

    fn retire(&mut self, id: SlotId, cids: &[Cid]) {
        let keys: Vec<Key> = cids.iter().filter_map(|cid| Key::new(cid.bytes())).collect();
        let Some(slot) = self.slot(id) else { return };
        slot.keys.retain(|key| !keys.contains(key));
        for key in keys {
            if self.keys.get(&key) == Some(&id.slot) {
                self.keys.remove(&key);
            }
        }
    }

    pub(super) fn options(&self) -> Options {
        let size = self.plan.transport.socket_buffer;
        Options { receive_buffer: size, send_buffer: size, gso: self.plan.transport.gso, ..Options::default() }
    }

    fn wake_blocked(&mut self, turn: &Turn<'_, ToEndpoint>) {
        let Some(shared) = self.shared.clone() else { return };
        if self.blocked.is_empty() || shared.poll_writable(&mut turn.cx()).is_pending() {
            return;
        }
        for id in std::mem::take(&mut self.blocked) {
            let mail = self.slot(id).map(|slot| slot.mail.clone());
            if let Some(mail) = mail
                && mail.tell(ToConnection::Writable).is_err_and(|refused| refused.is_full())
            {
                self.blocked.push(id);
            }
        }
    }

    fn status(&self) -> Status {
        let socket = self.shared.as_ref().map(|shared| &shared.socket);
        Status {
            arbiter: self.arbiter,
            connections: self.connections,
            half_open: self.half_open,
            buffers: socket.map_or((0, 0), UdpSocket::granted),
            kernel_dropped: socket.and_then(UdpSocket::dropped),
            gso: socket.is_some_and(UdpSocket::gso),
            generation: self.door.as_ref().map_or(0, Door::generation),
        }
    }
}

impl Drop for Endpoint {
    /// However it ends, and be it by a panic: nobody reads for its connections any more, and nobody who comes after it
    /// could vouch for their ids. They tell their peers that they end.
    fn drop(&mut self) {
        if self.connections > 0 {
            tracing::debug!(name = %self.plan.scope, connections = self.connections, "endpoint ended");
        }
        self.plan.all.fetch_sub(self.connections, Ordering::Relaxed);
        for slot in self.slots.iter().flatten() {
            slot.mail.control(Control::Stop);
        }
    }
}

/// The destination of a packet, as its header has it; empty if it is cut short.
fn destination(datagram: &[u8]) -> &[u8] {
    match datagram.first() {
        Some(first) if first & 0x80 == 0 => datagram.get(1..=CID_LEN).unwrap_or_default(),
        Some(_) => {
            let length = datagram.get(5).copied().map_or(0, usize::from);
            datagram.get(6..6 + length).unwrap_or_default()
        }
        None => &[],
    }
}

impl Protocol for Endpoint {
    type Msg = ToEndpoint;
    const KIND: &'static str = "quic_endpoint";

    fn size(m: &ToEndpoint) -> usize {
        if let ToEndpoint::Forwarded(packets) = m { packets.len } else { 0 }
    }

    fn label(m: &ToEndpoint) -> &'static str {
        match m {
            ToEndpoint::Forwarded(_) => "forwarded",
            ToEndpoint::Established(..) => "established",
            ToEndpoint::Gone(_) => "gone",
            ToEndpoint::WantIds(..) => "want_ids",
            ToEndpoint::Retired(..) => "retired",
            ToEndpoint::Blocked(_) => "blocked",
            ToEndpoint::Connect(_) => "connect",
            ToEndpoint::Open(_) => "open",
            ToEndpoint::Leave(..) => "leave",
            ToEndpoint::Reload(_) => "reload",
            ToEndpoint::List(..) => "list",
            ToEndpoint::Status(_) => "status",
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, ToEndpoint>) -> Result<(), Fault> {
        self.arbiter = turn.arbiter();
        let member = self.plan.group.member(self.plan.member);
        let member = member.map_err(|error| Fault::local("socket", error.to_string()))?;
        // The plan keeps the group open.
        let (socket, _) = member.ok_or_else(|| Fault::bug("socket", "no socket for this arbiter"))?.into_parts();
        let socket =
            UdpSocket::new(socket, &self.options()).map_err(|error| Fault::local("socket", error.to_string()))?;
        let wildcard = self.plan.listen.is_some() && socket.local_addr().ip().is_unspecified();
        self.shared = Some(Rc::new(Shared::new(socket, wildcard, Counters::of(turn, &self.plan.scope))));
        self.open_listener(turn)
    }

    fn on(&mut self, m: ToEndpoint, turn: &mut Turn<'_, ToEndpoint>) -> Result<(), Fault> {
        match m {
            ToEndpoint::Forwarded(packets) => self.route(packets, turn),
            ToEndpoint::Established(id, token) => self.established(id, token),
            ToEndpoint::Gone(id) => self.gone(id),
            ToEndpoint::WantIds(id, count) => self.give_ids(id, count),
            ToEndpoint::Retired(id, cids) => self.retire(id, &cids),
            ToEndpoint::Blocked(id) => self.blocked.push(id),
            ToEndpoint::Connect(connect) => self.connect(*connect, turn),
            ToEndpoint::Open(id) => self.open_other(id),
            ToEndpoint::Leave(id, local) => self.leave_other(id, local),
            ToEndpoint::Reload(told) => self.reload(told)?,
            ToEndpoint::List(most, reply) => {
                let mails = self.slots.iter().flatten().take(most).map(|slot| slot.mail.clone()).collect();
                drop(reply.send(mails));
            }
            ToEndpoint::Status(reply) => drop(reply.send(self.status())),
        }
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, ToEndpoint>) -> Result<Progress, Fault> {
        self.wake_blocked(turn);
        self.read(turn)
    }

    fn flush(&mut self, turn: &mut Turn<'_, ToEndpoint>) -> Result<Progress, Fault> {
        self.decide(turn);
        self.wake_blocked(turn);
        // Sockets that share a port close together: until then somebody must read and forward from each.
        if self.draining.is_some() && self.plan.all.load(Ordering::Relaxed) == 0 {
            turn.stop();
        }
        Ok(Progress::Idle)
    }

    fn quiesce(&mut self, _: &mut Turn<'_, ToEndpoint>) {
        self.quiet = true;
    }

    fn drain(&mut self, by: Instant, turn: &mut Turn<'_, ToEndpoint>) {
        self.quiet = true;
        // A little earlier, so that the last of them is gone when the socket closes.
        let theirs = by.checked_sub(Duration::from_millis(100)).filter(|at| *at > turn.now()).unwrap_or(by);
        for slot in self.slots.iter().flatten() {
            slot.mail.control(Control::Drain(theirs));
        }
        self.draining = Some(later(turn.now(), LAST_LOOK));
    }

    fn deadline(&self) -> Option<Instant> {
        self.draining
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToEndpoint>) -> Result<(), Fault> {
        self.draining = self.draining.map(|_| later(turn.now(), LAST_LOOK));
        Ok(())
    }
}
