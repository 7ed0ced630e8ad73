//! The actor of one connection: takes packets and requests from its mailbox, runs its application, sends, and keeps
//! time. Decides nothing that `state_*` or QUIC decide.
//!
//! One turn is: packets into QUIC and requests to the streams as they come; then, once, what QUIC has learnt to the
//! application, what was written into QUIC, packets out in trains, and the next deadline. Its mailbox is bounded in
//! bytes: packets beyond that are dropped by the endpoint, counted, and sent again by the peer.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::actor_engine::{Engine, Phase};
use super::actor_lease::Leased;
use super::actor_moving::Mover;
use super::actor_remote::Remote;
use super::actor_send::{Outlet, Sent};
use super::actor_shared::Shared;
use super::codec::{Cid, handshake_packets};
use super::handle::{Connection as Handle, Origin};
use super::messages::{ConnectError, Farewell, Made, Packets, Request, SlotId, ToConnection, ToEndpoint};
use super::server::Arrivals;
use super::session::{Application, End, Event, Info, Role, Session, Who};
use super::state_reaper::Reaper;
use crate::actors::clock::later;
use crate::actors::{Exit, Fault, Mail, Progress, Protocol, Reply, Tally, Traffic, Turn};
use crate::memory::Budget;

/// Rounds between application and QUIC in one turn, at most.
const ROUNDS: usize = 8;
/// Events handed to the application in one turn, at most.
const EVENTS: usize = 1_024;
/// Ids a client has in reserve, beside one for each path. More would cost each handshake their tokens. A server gets none
/// before we move, and one then: some (quinn) take the first they see into use at once and give back those before it, and
/// quiche ends a connection when the same id is given back twice while only one is left, as happens where packets are
/// lost and sent again.
const SPARE_IDS: usize = 3;
/// A close that the socket does not take is tried for this long.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// A drained connection is closed this long before the drain's end, so that its close still leaves.
const CLOSE_BEFORE: Duration = Duration::from_millis(500);
/// A drained connection whose streams were all delivered is closed after this long: a close makes the peer's QUIC drop
/// what its application has not read yet.
const CLOSE_AFTER: Duration = Duration::from_millis(250);
/// Turns of all actors from one turn of a connection, or of its endpoint, to its next, if no other connection has work:
/// one of each.
pub(super) const ALONE: u64 = 2;
/// QUIC's code for a connection that was refused (RFC 9000, section 20.1).
const CONNECTION_REFUSED: u64 = 0x2;

/// What is done with a connection once it is established.
pub(super) enum Purpose {
    /// A client waits for it, and may bring what runs inside.
    Wanted(Reply<Result<Handle, ConnectError>>, Option<Made>),
    /// It came in: its server's application or its handle's users decide.
    Arrived(Arc<Arrivals>),
    /// It is to learn that nobody is let in any more.
    Refused,
}

/// Who uses the connection.
enum User {
    /// Nobody before it is established.
    None,
    Application(Box<dyn Application>),
    /// Those with handles, who are always served as well.
    Handles,
}

/// See the top of the file.
pub(super) struct ConnectionActor {
    engine: Engine,
    outlet: Outlet,
    shared: Rc<Shared>,
    endpoint: Mail<ToEndpoint>,
    slot: SlotId,
    scope: Arc<str>,
    purpose: Option<Purpose>,
    user: User,
    remote: Remote,
    mover: Mover,
    leased: Leased,
    /// A client was asked to move.
    moves: bool,
    /// Paths it has had, as far as they count for ids.
    paths: usize,
    joining: Vec<Reply<Farewell>>,
    /// Where handles read why it ended.
    ended: Arc<OnceLock<Farewell>>,
    reaper: Reaper,
    paced_until: Option<Instant>,
    /// A deadline has come in this turn, maybe that of QUIC.
    timer: bool,
    /// How often it asks whether the other end is there.
    keep_alive: Option<Duration>,
    keep_alive_at: Option<Instant>,
    /// The connection is closed by then.
    close_by: Option<Instant>,
    /// The actor ends by then, whether its close left or not.
    end_by: Option<Instant>,
    /// Ids were asked for and have not come.
    asked_ids: bool,
    /// Packets or ids have come, or time has passed, since it was looked whether there are enough.
    look_at_ids: bool,
    /// The endpoint knows that the socket takes no more.
    told_blocked: bool,
    /// Where the last packets came from.
    from: Option<SocketAddr>,
    /// Bytes of all packets that came.
    came: u64,
    tally: Option<Tally>,
    reported: bool,
    /// Turns of all actors of the arbiter when it last sent.
    turns: u64,
}

/// What a connection's actor is made of.
pub(super) struct Parts {
    pub(super) engine: Engine,
    pub(super) shared: Rc<Shared>,
    pub(super) endpoint: Mail<ToEndpoint>,
    pub(super) slot: SlotId,
    pub(super) scope: Arc<str>,
    pub(super) purpose: Purpose,
    /// Of the process; what waits to be sent leases from it.
    pub(super) budget: Option<Budget>,
}

impl ConnectionActor {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { engine, shared, endpoint, slot, scope, purpose, budget } = parts;
        let leased = Leased::new(budget.as_ref(), &engine);
        Self {
            outlet: Outlet::new(engine.now),
            reaper: Reaper::new(engine.settings.acknowledge_within),
            engine,
            shared,
            endpoint,
            slot,
            scope,
            purpose: Some(purpose),
            user: User::None,
            remote: Remote::default(),
            mover: Mover::default(),
            leased,
            moves: false,
            paths: 1,
            joining: Vec::new(),
            ended: Arc::default(),
            paced_until: None,
            timer: false,
            keep_alive: None,
            keep_alive_at: None,
            close_by: None,
            end_by: None,
            asked_ids: false,
            look_at_ids: true,
            told_blocked: false,
            from: None,
            came: 0,
            tally: None,
            reported: false,
            turns: 0,
        }
    }

    fn packets(&mut self, mut packets: Packets) {
        let info = quiche::RecvInfo { from: packets.from, to: packets.to };
        let length = packets.len;
        self.from = Some(packets.from);
        self.came += length as u64;
        self.engine.heard = true;
        self.outlet.heard();
        self.look_at_ids = true;
        self.engine.unread.came(length);
        if self.engine.is_late(packets.buffer.get(..length).unwrap_or_default()) {
            self.shared.counters.retired_id.add(length.div_ceil(packets.stride.max(1)) as u64);
            self.shared.recycle(packets.buffer);
            return;
        }
        let datagrams = packets.buffer.get_mut(..length).unwrap_or_default().chunks_mut(packets.stride.max(1));
        let mut count = 0;
        for datagram in datagrams {
            count += 1;
            // quiche drops a whole datagram when it has no keys any more for its first packet. A peer that closes at
            // once does so in a Handshake packet, for which a server has none, and behind it in one that it can read.
            let done = self.engine.quic.is_established();
            let skip = if done { handshake_packets(datagram) } else { 0 };
            let from = if skip < datagram.len() { skip } else { 0 };
            let datagram = datagram.get_mut(from..).unwrap_or_default();
            // An error closes the connection with it: `notice_end` says so.
            if let Err(error) = self.engine.receive(datagram, info)
                && error != quiche::Error::Done
            {
                tracing::debug!(peer = %info.from, %error, "packet refused");
            }
        }
        self.engine.note_datagrams();
        self.shared.counters.packets_in.add(count);
        self.shared.counters.bytes_in.add(length as u64);
        self.shared.recycle(packets.buffer);
        if self.keep_alive_at.is_some() {
            self.keep_alive_at = self.keep_alive.map(|every| later(self.engine.now, every));
        }
    }

    /// Takes up what the packets of this turn have brought before anything is done about streams. quiche forgets a stream
    /// that was stopped as soon as it is asked for it.
    fn catch_up(&mut self) {
        if self.engine.heard {
            // What is left is learnt at the turn's end.
            let _more = self.engine.learn();
        }
    }

    fn request(&mut self, request: Request) {
        self.catch_up();
        match request {
            Request::Close { code, text } => self.engine.close_with(code, &text, "closed"),
            Request::Abandoned => {
                if !matches!(self.user, User::Application(_)) {
                    self.engine.close_with(0, "", "abandoned");
                }
            }
            Request::Join(reply) => {
                if self.joining.len() < super::actor_remote::WAITING {
                    self.joining.push(reply);
                }
            }
            Request::Tell(m) => {
                if let User::Application(application) = &mut self.user {
                    application.message(m, &mut self.engine);
                }
            }
            Request::Migrate(answer) => {
                // The id first, so that it is there when the socket is.
                self.moves = true;
                self.exchange_ids();
                self.mover.begin(answer, &self.engine, &self.endpoint, self.slot);
            }
            Request::OfStreams(asked) => self.remote.request(asked, &mut self.engine),
        }
    }

    /// Hands out what happened. True if some is left.
    fn dispatch(&mut self, turn: &Turn<'_, ToConnection>) -> bool {
        for _ in 0..EVENTS {
            let Some(event) = self.engine.events.pop_front() else { return false };
            if event == Event::Connected {
                self.connected(turn);
            } else if let Event::Closed(end) = &event {
                self.closed_now(end, turn);
            } else if let Event::PathChanged { .. } = &event {
                self.shared.counters.migrations.add(1);
                self.paths = self.engine.quic.path_stats().count();
            }
            self.remote.on(&event, &mut self.engine);
            if let User::Application(application) = &mut self.user {
                application.on(event, &mut self.engine);
            }
        }
        !self.engine.events.is_empty()
    }

    fn connected(&mut self, turn: &Turn<'_, ToConnection>) {
        // Never refused for want of room: the endpoint keeps some for each connection.
        let theirs = self.engine.quic.peer_transport_params().and_then(|theirs| theirs.stateless_reset_token);
        drop(self.endpoint.tell(ToEndpoint::Established(self.slot, theirs)));
        self.keep_alive = self.engine.keep_alive();
        self.keep_alive_at = self.keep_alive.map(|every| later(self.engine.now, every));
        self.engine.origin = Some(Origin { mail: turn.mail(), ended: self.ended.clone() });
        match self.purpose.take() {
            Some(Purpose::Wanted(reply, application)) => {
                match application {
                    Some(make) => self.user = User::Application(make(&self.engine.info())),
                    None => self.serve_handles(),
                }
                match self.handle(turn) {
                    // Nobody waits any more: the handle's end closes the connection.
                    Some(handle) => drop(reply.send(Ok(handle))),
                    None => self.engine.give_up(Who::Local, CONNECTION_REFUSED, "mailbox_full"),
                }
            }
            Some(Purpose::Arrived(arrivals)) => {
                if let Some(application) = arrivals.application(&self.engine) {
                    self.user = User::Application(application);
                    return;
                }
                self.serve_handles();
                let taken = self.handle(turn).is_some_and(|handle| arrivals.hand_over(handle));
                if !taken {
                    self.shared_drop(turn, "backlog_full");
                    self.engine.give_up(Who::Local, CONNECTION_REFUSED, "backlog_full");
                }
            }
            Some(Purpose::Refused) => {
                // Not earlier: quiche closes with its newest keys, and the client would not have them yet.
                self.engine.give_up(Who::Local, CONNECTION_REFUSED, "refused");
                self.close_by = Some(self.engine.now);
            }
            None => {}
        }
    }

    fn serve_handles(&mut self) {
        self.user = User::Handles;
        self.remote.attend();
    }

    fn shared_drop(&self, turn: &Turn<'_, ToConnection>, reason: &'static str) {
        turn.counter("quic_connections_refused", &self.scope, reason).add(1);
    }

    /// A handle, for which room in the mailbox is kept until it is dropped.
    fn handle(&self, turn: &Turn<'_, ToConnection>) -> Option<Handle> {
        Handle::new(turn.mail(), &self.engine, self.ended.clone())
    }

    /// Runs once: the end is stated once.
    fn closed_now(&mut self, end: &End, turn: &Turn<'_, ToConnection>) {
        let farewell = Farewell { end: end.clone(), info: self.engine.info() };
        let _first = self.ended.set(farewell);
        if let Some(Purpose::Wanted(reply, _)) = self.purpose.take() {
            drop(reply.send(Err(ConnectError::Ended(end.clone()))));
        }
        self.end_by = Some(later(self.engine.now, CLOSE_PATIENCE));
        self.reported = true;
        turn.counter("quic_connections_closed", &self.scope, end.reason).add(1);
        if let Some((family, alert)) = refused(end) {
            turn.counter(family, &self.scope, alert).add(1);
        }
        tracing::debug!(listener = %self.scope, %end, "connection closed");
    }

    /// Ids: gives the peer those in reserve, and gives back those it does not use any more.
    fn exchange_ids(&mut self) {
        if self.engine.phase == Phase::Ended || !self.engine.quic.is_established() {
            return;
        }
        if self.engine.quic.retired_scids() > 0 {
            let retired: Vec<Cid> =
                std::iter::from_fn(|| self.engine.quic.retired_scid_next()).filter_map(|id| Cid::of(&id)).collect();
            self.engine.paths.retired = true;
            drop(self.endpoint.tell(ToEndpoint::Retired(self.slot, retired)));
        }
        let reserve = match self.engine.role {
            Role::Server => SPARE_IDS,
            Role::Client => usize::from(self.moves),
        };
        let quic = &self.engine.quic;
        let wanted = quic.scids_left().min((self.paths + reserve).saturating_sub(quic.active_scids()));
        if wanted > 0 && !self.asked_ids {
            self.asked_ids = self.endpoint.tell(ToEndpoint::WantIds(self.slot, wanted)).is_ok();
            self.look_at_ids |= !self.asked_ids;
        }
    }

    fn ids(&mut self, ids: Vec<(Cid, u128)>) {
        self.asked_ids = false;
        self.look_at_ids = true;
        for (id, token) in ids {
            let known = quiche::ConnectionId::from_ref(id.bytes());
            if self.engine.quic.new_scid(&known, token, false).is_err() {
                drop(self.endpoint.tell(ToEndpoint::Retired(self.slot, vec![id])));
            }
        }
    }

    /// What time alone brings.
    fn tick(&mut self) {
        self.catch_up();
        self.look_at_ids = true;
        let now = self.engine.now;
        self.timer = true;
        if self.engine.phase == Phase::Handshaking
            && now >= later(self.engine.born, self.engine.settings.handshake_timeout)
        {
            self.engine.give_up(Who::Nobody, 0, "handshake_timeout");
        }
        if self.reaper.deadline().is_some_and(|at| at <= now) {
            self.look_for_acknowledgements();
        }
        if self.keep_alive_at.is_some_and(|at| at <= now) {
            // Refused only while closing.
            let _asked = self.engine.quic.send_ack_eliciting();
            self.keep_alive_at = self.keep_alive.map(|every| later(now, every));
        }
        self.mover.tick(&mut self.engine, &self.endpoint, self.slot);
        if self.close_by.is_some_and(|at| at <= now) {
            self.engine.close_with(0, "", "drained");
        }
        if self.paced_until.is_some_and(|at| at <= now) {
            self.paced_until = None;
        }
        if let User::Application(application) = &mut self.user
            && application.deadline().is_some_and(|at| at <= now)
        {
            application.on_deadline(&mut self.engine);
        }
    }

    /// QUIC's timer, after the packets of the turn: on an arbiter that is late it is not their fault that they were not
    /// read before it came.
    fn time_out(&mut self) {
        self.timer = false;
        if self.engine.quic.timeout_instant().is_some_and(|at| at <= self.engine.now) {
            self.engine.time_out();
            self.outlet.heard();
            if self.engine.phase != Phase::Handshaking {
                self.look_for_acknowledgements();
            }
        }
    }

    /// A peer that has acknowledged nothing for too long is given up.
    fn look_for_acknowledgements(&mut self) {
        let acked = self.engine.quic.stats().acked_bytes;
        let probes = self.engine.quic.path_stats().map(|path| path.total_pto_count).sum();
        if self.reaper.look(acked, probes, self.engine.now) {
            self.engine.give_up(Who::Nobody, 0, "no_acknowledgement");
        }
    }

    /// Application and QUIC in turns until neither has more, or the turn is over. True if there is more.
    fn drive(&mut self, turn: &Turn<'_, ToConnection>) -> bool {
        let mut more = false;
        for _ in 0..ROUNDS {
            more = self.engine.learn();
            if !self.engine.proved.is_empty() {
                self.mover.proved(&mut self.engine, &self.endpoint, self.slot);
            }
            self.remote.look_for_given_up(&mut self.engine);
            self.engine.notice_end();
            more |= self.dispatch(turn);
            if let User::Application(application) = &mut self.user
                && self.engine.phase != Phase::Ended
            {
                more |= application.poll(&mut turn.cx(), &mut self.engine);
            }
            more |= self.engine.feed();
            if self.remote.awaits_room() {
                self.remote.serve_room(&mut self.engine);
            }
            self.engine.announce_room();
            if self.engine.events.is_empty() {
                return more;
            }
            more = true;
        }
        more
    }

    /// Whether nothing is left but to end the actor.
    fn is_over(&self) -> bool {
        if self.engine.phase != Phase::Ended || !self.engine.events.is_empty() {
            return false;
        }
        let said = self.engine.quic.is_closed() || (self.outlet.close_left && self.close_by.is_some());
        said && !self.outlet.is_blocked() || self.end_by.is_some_and(|at| at <= self.engine.now) && self.may_leave()
    }

    /// QUIC answers from the closing state until its timer ends it; a socket that takes nothing must not prolong that.
    fn may_leave(&self) -> bool {
        self.outlet.is_blocked() || !self.engine.quic.is_draining()
    }

    fn count_datagrams(&mut self) {
        let dropped = self.engine.datagrams.take_dropped();
        self.shared.counters.datagrams_full.add(dropped.full);
        self.shared.counters.datagrams_expired.add(dropped.expired);
        self.shared.counters.datagrams_too_large.add(dropped.too_large);
        let unread = self.engine.dropped_unread() as u64 + self.remote.take_dropped();
        self.shared.counters.datagrams_unread.add(unread);
    }

    fn last_info(&self) -> Info {
        self.engine.info()
    }
}

/// Where it is counted, if TLS of one end wants nothing of the other: its certificate, its name, its protocols.
fn refused(end: &End) -> Option<(&'static str, &'static str)> {
    let family = if end.who == Who::Peer { "quic_tls_refused_by_peers" } else { "quic_tls_refused" };
    end.code.alert().map(|alert| (family, alert))
}

/// The earlier of two, if there is one.
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Protocol for ConnectionActor {
    type Msg = ToConnection;
    const KIND: &'static str = "quic";

    fn size(m: &ToConnection) -> usize {
        // Bytes to be sent are bounded by their credit.
        if let ToConnection::Packets(packets) = m { packets.len } else { 0 }
    }

    fn label(m: &ToConnection) -> &'static str {
        match m {
            ToConnection::Packets(_) => "packets",
            ToConnection::Writable => "writable",
            ToConnection::Ids(_) => "ids",
            ToConnection::Opened(_) => "opened",
            ToConnection::Request(_) => "request",
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, ToConnection>) -> Result<(), Fault> {
        self.tally = Some(turn.tally());
        Ok(())
    }

    fn on(&mut self, m: ToConnection, turn: &mut Turn<'_, ToConnection>) -> Result<(), Fault> {
        self.engine.now = turn.now();
        match m {
            ToConnection::Packets(packets) => self.packets(packets),
            ToConnection::Writable => self.told_blocked = false,
            ToConnection::Ids(ids) => self.ids(ids),
            ToConnection::Opened(socket) => self.mover.opened(socket, &mut self.engine, &self.endpoint, self.slot),
            ToConnection::Request(request) => self.request(request),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let engine = &self.engine;
        let handshake =
            (engine.phase == Phase::Handshaking).then(|| later(engine.born, engine.settings.handshake_timeout));
        let application = match &self.user {
            User::Application(application) if engine.phase != Phase::Ended => application.deadline(),
            User::Application(_) | User::Handles | User::None => None,
        };
        let end_by = self.end_by.filter(|_| self.may_leave());
        // One after the other: an iterator over all of them costs several times as much, in each turn.
        let at = sooner(engine.quic.timeout_instant(), self.paced_until);
        let at = sooner(at, handshake);
        let at = sooner(at, engine.expires_at());
        let end_due = engine.end_due().filter(|_| self.paced_until.is_none() && !self.outlet.is_blocked());
        let at = sooner(at, end_due);
        let at = sooner(at, engine.silent_due());
        let at = sooner(at, self.reaper.deadline());
        let at = sooner(at, self.keep_alive_at);
        let at = sooner(at, self.mover.deadline());
        let at = sooner(at, self.leased.deadline());
        let at = sooner(at, self.close_by.filter(|_| engine.phase != Phase::Ended));
        sooner(sooner(at, end_by), application)
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToConnection>) -> Result<(), Fault> {
        self.engine.now = turn.now();
        self.tick();
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, ToConnection>) -> Result<Progress, Fault> {
        self.engine.now = turn.now();
        if self.timer {
            self.time_out();
        }
        let mut more = self.drive(turn);
        if std::mem::take(&mut self.look_at_ids) {
            self.exchange_ids();
        }
        if self.paced_until.is_none() || self.engine.phase == Phase::Ended {
            let turns = turn.turns_of_all();
            let alone = turns.saturating_sub(std::mem::replace(&mut self.turns, turns)) <= ALONE;
            let Self { outlet, engine, shared, .. } = self;
            let sent = turn.scratch(|_, buffer| outlet.send(engine, &**shared, buffer, alone));
            match sent {
                Sent::All => {}
                Sent::More => more = true,
                Sent::Paced(at) => self.paced_until = Some(at),
                Sent::Blocked if self.told_blocked => {}
                Sent::Blocked => self.told_blocked = self.endpoint.tell(ToEndpoint::Blocked(self.slot)).is_ok(),
            }
        }
        let waits = self.remote.awaits_room() || self.engine.is_wanted();
        self.leased.look(waits, &mut self.engine);
        // Told in the next turn to those who wait for it.
        more |= self.engine.freed && waits;
        self.count_datagrams();
        // To send may have brought it to an end as well.
        self.engine.notice_end();
        if !self.engine.events.is_empty() {
            more = true;
        }
        if self.close_by.is_some() && self.engine.phase == Phase::Draining && self.engine.is_delivered() {
            let soon = later(self.engine.now, CLOSE_AFTER);
            self.close_by = self.close_by.map(|by| by.min(soon));
        }
        if self.is_over() {
            turn.stop();
            return Ok(Progress::Idle);
        }
        Ok(if more { Progress::More } else { Progress::Idle })
    }

    fn drain(&mut self, by: Instant, turn: &mut Turn<'_, ToConnection>) {
        self.engine.now = turn.now();
        let left = by.saturating_duration_since(self.engine.now);
        let close_by = later(self.engine.now, left.saturating_sub(CLOSE_BEFORE.min(left / 2)));
        self.close_by = Some(self.close_by.map_or(close_by, |old| old.min(close_by)));
        match self.engine.phase {
            Phase::Handshaking => self.engine.give_up(Who::Local, CONNECTION_REFUSED, "drained"),
            Phase::Open => {
                self.engine.phase = Phase::Draining;
                if let User::Application(application) = &mut self.user {
                    application.drain(by, &mut self.engine);
                }
            }
            Phase::Draining | Phase::Ended => {}
        }
    }

    fn closed(&mut self, why: &Exit) {
        if self.engine.end.is_none() {
            // Told to stop, or a drain that took too long: the peer hears it if the socket takes one more packet.
            let reason = if *why == Exit::Normal { "stopped" } else { why.reason() };
            self.engine.close_with(0, "", reason);
            let mut buffer = vec![0; 2_048];
            let _sent = self.outlet.send(&mut self.engine, &*self.shared, &mut buffer, false);
        }
        let end = self.engine.end.clone();
        if let Some(end) = end {
            let farewell = Farewell { end: end.clone(), info: self.last_info() };
            let _first = self.ended.set(farewell.clone());
            if !std::mem::replace(&mut self.reported, true) {
                if let Some(tally) = &self.tally {
                    tally.raise("quic_connections_closed", &self.scope, end.reason);
                    if let Some((family, alert)) = refused(&end) {
                        tally.raise(family, &self.scope, alert);
                    }
                }
                self.engine.events.clear();
                let event = Event::Closed(end);
                self.remote.on(&event, &mut self.engine);
                if let User::Application(application) = &mut self.user {
                    application.on(event, &mut self.engine);
                }
            }
            for reply in self.joining.drain(..) {
                drop(reply.send(farewell.clone()));
            }
        }
    }

    fn held(&self) -> usize {
        self.engine.held() + self.engine.unread.bytes() + self.remote.held()
    }

    fn traffic(&self) -> Traffic {
        Traffic { peer: self.from, bytes_in: self.came, bytes_out: self.outlet.sent }
    }
}
