//! The hub of an arbiter: it knows who on this arbiter is in which room, and passes on what is said.
//!
//! Members of its own arbiter talk to it, and it to them. What they say within one turn leaves as one message to each
//! member (a batch that all share) and one to each other arbiter that has members there: cross-arbiter traffic grows
//! with arbiters, never with members. Hubs tell each other of the first member of a room on an arbiter and of the last;
//! a client has its answer to a join when all know of it, and hears everything said from then on.
//!
//! A room of many members is served over several turns, so that others have theirs; what comes in meanwhile is put
//! aside. When another hub's mailbox is full, messages for it wait here. When much waits in any hub, members are not
//! read until it has caught up, so nothing between hubs is lost and nothing grows without bound. A hub whose own state
//! is gone (a panic) takes its members and the other hubs along: half a room would be worse than a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::actor::FramedMsg;
use super::outbox::WhenSlow;
use super::rooms_table::{Joined, Left, Table};
use super::rooms_words::{Batch, Command, Line, Refusal, joined, left};
use crate::actors::{
    ActorId, Control, Counter, Exit, Fault, Mail, Mesh, Permit, Place, Progress, Protocol, Refused, SpawnError, Spec,
    Turn, clock,
};
use crate::memory::Key;

/// Bytes that wait in a room before they are passed on in the middle of a turn.
const CHUNK: usize = 64 << 10;
/// Bytes of shared batches that a member's mailbox has room for in any case.
const MEMBER: usize = 1 << 20;
/// Members handed a batch in one turn; a larger room takes several.
const SLICE: usize = 256;
/// Messages put aside meanwhile that are handled per turn.
const BACKLOG: usize = 64;
/// Bytes that may wait in a hub, for other hubs or for itself, before all members have to wait.
const BEHIND: usize = 1 << 20;
/// When to try a full mailbox again.
pub(super) const RETRY: Duration = Duration::from_millis(1);
/// Messages a hub's mailbox has room for: one is reserved for each connection, and the bound in bytes comes first.
const MESSAGES: usize = 4 << 20;

/// The bytes a hub's mailbox has room for: any message that may be said, and some more. What hubs pass on is never
/// longer than what they took in one turn.
const fn mailbox(outbound: usize) -> usize {
    (if outbound > CHUNK { outbound } else { CHUNK }) + CHUNK
}

/// The bytes a member's mailbox needs: whatever hubs pass on at once. Batches are shared by all members, so that is
/// not what a member costs.
pub(super) const fn member_mailbox(outbound: usize) -> usize {
    mailbox(outbound) + MEMBER
}

/// How many may be in rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rooms at once. Each arbiter counts those it knows of; default 10,000. A room takes about 300 bytes on every
    /// arbiter.
    pub rooms: usize,
    /// Members of one room; each arbiter has an equal share of them. Default 100,000. A member takes about 100 bytes.
    pub members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rooms: 10_000, members: 100_000 }
    }
}

pub(super) enum HubMsg {
    /// The mailboxes of all hubs, by arbiter.
    Peers(Vec<Mail<Self>>),
    /// What a member says in one turn.
    Said { id: ActorId, mail: Mail<FramedMsg>, commands: Vec<Command>, bytes: usize },
    /// A connection has ended.
    Gone(ActorId),
    /// What was said on another arbiter, by room.
    Deliver { rooms: Vec<(Arc<str>, Arc<[Line]>)>, bytes: usize },
    /// Another arbiter has its first member of a room.
    Has { room: Arc<str>, hub: usize, generation: u64 },
    /// That arbiter has none any more.
    HasNone { room: Arc<str>, hub: usize },
    /// The answer to `Has`.
    Known { room: Arc<str>, generation: u64 },
}

/// The hubs of one listener, one on each arbiter. They end when the last holder of this does: the listener and every
/// connection hold it.
pub struct Hubs {
    mails: Vec<Mail<HubMsg>>,
    behind: Vec<Arc<AtomicBool>>,
    /// Bytes in a hub's mailbox up to which members may add to them.
    intake: usize,
}

impl std::fmt::Debug for Hubs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hubs").field("arbiters", &self.mails.len()).finish_non_exhaustive()
    }
}

impl Hubs {
    /// Starts a hub on each arbiter. `listener` is the scope of their counters; `outbound` and `when_slow` are the
    /// settings of its connections.
    ///
    /// # Errors
    /// See [`Mesh::spawn`]; nothing is left running then.
    pub fn start(
        mesh: &Mesh,
        listener: &Arc<str>,
        outbound: usize,
        when_slow: WhenSlow,
        limits: Limits,
    ) -> Result<Arc<Self>, SpawnError> {
        let arbiters = mesh.arbiters();
        // One turn of a hub hands a member no more than the member may have waiting, unless one message alone is more.
        let intake = outbound / 2;
        let bytes = mailbox(outbound);
        let mut hubs = Self { mails: Vec::with_capacity(arbiters), behind: Vec::with_capacity(arbiters), intake };
        for index in 0..arbiters {
            let behind = Arc::new(AtomicBool::new(false));
            let spec = Spec::named(format!("{listener}-rooms-{index}")).inbox(MESSAGES, bytes);
            let (listener, flag) = (listener.clone(), behind.clone());
            let share = (limits.members / arbiters.max(1)).max(1);
            let mail = mesh.spawn(Place::On(index), spec, move || {
                let table = Table::new(limits.rooms, share, arbiters < 2);
                Hub::new(index, listener, when_slow, flag, table)
            })?;
            hubs.mails.push(mail);
            hubs.behind.push(behind);
        }
        for mail in &hubs.mails {
            mail.tell(HubMsg::Peers(hubs.mails.clone())).map_err(|_| SpawnError::Stopped)?;
        }
        Ok(Arc::new(hubs))
    }

    #[cfg(test)]
    pub(super) fn fall_behind(&self, is: bool) {
        self.behind.iter().for_each(|behind| behind.store(is, Ordering::Relaxed));
    }

    /// False once a hub has ended: then all of them end.
    pub(super) fn live(&self) -> bool {
        self.mails.iter().all(|mail| !mail.is_closed())
    }

    /// Room in the hub of an arbiter for the end of one connection. It is never refused when it comes.
    pub(super) fn reserve(&self, arbiter: usize) -> Option<Permit<HubMsg>> {
        self.mails.get(arbiter)?.try_permit(0).ok()
    }

    /// Tells the hub of an arbiter what a member of that arbiter says, if there is room now.
    pub(super) fn tell(&self, arbiter: usize, said: HubMsg) -> Result<(), Refused<HubMsg>> {
        let Some(mail) = self.mails.get(arbiter) else { return Err(Refused::Closed(said)) };
        let behind = self.behind.iter().any(|behind| behind.load(Ordering::Relaxed));
        if !mail.is_closed() {
            let waiting = mail.depth().bytes;
            if behind || waiting > 0 && waiting + Hub::size(&said) > self.intake {
                return Err(Refused::Full(said));
            }
        }
        mail.tell(said)
    }
}

impl Drop for Hubs {
    fn drop(&mut self) {
        for mail in &self.mails {
            mail.control(Control::Stop);
        }
    }
}

/// Another hub, and what is on its way to it.
struct Peer {
    index: usize,
    mail: Mail<HubMsg>,
    /// What was said in this turn.
    rooms: Vec<(Arc<str>, Arc<[Line]>)>,
    rooms_bytes: usize,
    /// What did not fit into its mailbox.
    queue: VecDeque<HubMsg>,
    queue_bytes: usize,
}

impl Peer {
    fn send(&mut self, m: HubMsg) {
        if !self.queue.is_empty() {
            return self.wait(m);
        }
        match self.mail.tell(m) {
            Ok(()) | Err(Refused::Closed(_)) => {}
            Err(Refused::Full(m) | Refused::TooLarge(m)) => self.wait(m),
        }
    }

    fn wait(&mut self, m: HubMsg) {
        self.queue_bytes += Hub::size(&m);
        self.queue.push_back(m);
    }

    fn send_waiting(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        if self.mail.is_closed() {
            self.queue.clear();
        }
        self.mail.tell_many(&mut self.queue);
        self.queue_bytes = self.queue.iter().map(Hub::size).sum();
    }
}

#[derive(Default)]
struct Counters {
    broadcasts: Counter,
    deliveries: Counter,
    cross_arbiter: Counter,
    announced: Counter,
    joined: Counter,
    left: Counter,
}

pub(super) struct Hub {
    index: usize,
    listener: Arc<str>,
    when_slow: WhenSlow,
    behind: Arc<AtomicBool>,
    peers: Vec<Peer>,
    table: Table<Mail<FramedMsg>>,
    /// Of the last announcement to other hubs.
    generation: u64,
    counters: Counters,
    retry: Option<Instant>,
    /// A room of many that is being served. Until that is done nobody joins or leaves any room.
    active: Option<FanOut>,
    /// What came in meanwhile.
    backlog: VecDeque<HubMsg>,
    backlog_bytes: usize,
}

/// A batch on its way to the members of a room.
struct FanOut {
    room: Key,
    lines: Arc<[Line]>,
    bytes: usize,
    /// The number of the first line.
    first: u64,
    /// Who said all of it, if it was one.
    author: Option<ActorId>,
    /// The seat to go on with.
    at: usize,
    delivered: u64,
    /// Lines that went to those who said them, and are not counted.
    own: u64,
    slow: Vec<(ActorId, Mail<FramedMsg>, u64)>,
}

impl Hub {
    fn new(
        index: usize,
        listener: Arc<str>,
        when_slow: WhenSlow,
        behind: Arc<AtomicBool>,
        table: Table<Mail<FramedMsg>>,
    ) -> Self {
        Self {
            index,
            listener,
            when_slow,
            behind,
            peers: Vec::new(),
            table,
            generation: 0,
            counters: Counters::default(),
            retry: None,
            active: None,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
        }
    }

    fn said(&mut self, id: ActorId, mail: &Mail<FramedMsg>, commands: Vec<Command>, turn: &Turn<'_, HubMsg>) {
        let mut answers = Vec::new();
        for command in commands {
            let refused = match command {
                Command::Join(name) => self.join(id, &name, mail, &mut answers).err(),
                Command::Leave => match self.leave(id, &mut answers) {
                    Some(_) => {
                        answers.push(Line::answer(left()));
                        None
                    }
                    None => Some(Refusal::NotInRoom),
                },
                Command::Say(body) => match self.table.say(id, body) {
                    Some((room, waiting)) => {
                        self.counters.broadcasts.add(1);
                        self.fan_out_early(room, waiting, turn);
                        None
                    }
                    None => Some(Refusal::NotInRoom),
                },
                Command::Wrong(refusal) => Some(refusal),
            };
            if let Some(refusal) = refused {
                if let Some(room) = self.table.confirm(id) {
                    answers.push(Line::answer(joined(&room)));
                }
                turn.counter("rooms_refused", &self.listener, refusal.reason()).add(1);
                answers.push(Line::answer(refusal.answer()));
            }
        }
        if !answers.is_empty() && !self.deliver(mail, Batch::of(answers)) {
            self.slow(id, mail, 1, turn);
        }
    }

    fn join(
        &mut self,
        id: ActorId,
        name: &Arc<str>,
        mail: &Mail<FramedMsg>,
        answers: &mut Vec<Line>,
    ) -> Result<(), Refusal> {
        self.table.may_join(id, name)?;
        if self.table.room_of(id).is_some_and(|room| room != name) {
            self.leave(id, answers);
        }
        match self.table.join(id, name, mail.clone()) {
            Joined::Now => {
                self.counters.joined.add(1);
                answers.push(Line::answer(joined(name)));
            }
            Joined::Soon => self.counters.joined.add(1),
            Joined::Already => {
                if let Some(room) = self.table.confirm(id) {
                    answers.push(Line::answer(joined(&room)));
                }
                answers.push(Line::answer(joined(name)));
            }
        }
        Ok(())
    }

    fn leave(&mut self, id: ActorId, answers: &mut Vec<Line>) -> Option<Left> {
        let mut left = self.table.leave(id)?;
        self.counters.left.add(1);
        if left.unconfirmed {
            answers.push(Line::answer(joined(&left.room)));
        }
        let lines = std::mem::take(&mut left.lines);
        self.counters.deliveries.add(lines.len() as u64);
        answers.extend(lines);
        Some(left)
    }

    /// False if the member's mailbox is full.
    fn deliver(&self, mail: &Mail<FramedMsg>, batch: Batch) -> bool {
        // A member that has ended says so itself.
        matches!(mail.tell(FramedMsg::Batch(batch)), Ok(()) | Err(Refused::Closed(_)))
    }

    /// A member's mailbox is full: only that member suffers, as its listener's policy says.
    fn slow(&mut self, id: ActorId, mail: &Mail<FramedMsg>, lost: u64, turn: &Turn<'_, HubMsg>) {
        match self.when_slow {
            WhenSlow::Close => {
                if mail.urgent(FramedMsg::Slow).is_err() {
                    mail.control(Control::Stop);
                }
                if self.table.leave(id).is_some() {
                    self.counters.left.add(1);
                }
            }
            WhenSlow::DropOldest | WhenSlow::DropNewest => {
                turn.counter("messages_dropped", &self.listener, "slow_reader").add(lost);
            }
        }
    }

    /// In the middle of a turn, if much waits and few are to get it.
    fn fan_out_early(&mut self, index: Key, waiting: usize, turn: &Turn<'_, HubMsg>) {
        if waiting >= CHUNK && self.table.room_mut(index).is_some_and(|room| room.seats.len() <= SLICE) {
            self.fan_out(index, turn);
        }
    }

    /// Passes on what waits in a room: one message to each member here, one entry in the message to each other arbiter.
    fn fan_out(&mut self, index: Key, turn: &Turn<'_, HubMsg>) {
        let own = self.table.own(index);
        let Some(room) = self.table.room_mut(index) else { return };
        if room.lines.is_empty() {
            return;
        }
        let lines: Arc<[Line]> = std::mem::take(&mut room.lines).into();
        let bytes = std::mem::take(&mut room.bytes);
        let first = room.first;
        room.first += lines.len() as u64;
        let (name, elsewhere) = (room.name.clone(), room.elsewhere.clone());
        self.forward(&name, &elsewhere, lines.clone());
        let author = lines.first().and_then(|line| line.from);
        let author = author.filter(|author| lines.iter().all(|line| line.from == Some(*author)));
        let own = if author.is_some() { 0 } else { own as u64 };
        let fan = FanOut { room: index, lines, bytes, first, author, at: 0, delivered: 0, own, slow: Vec::new() };
        self.go_on(fan, turn);
    }

    /// Serves the next members; the rest of them in the next turn.
    fn go_on(&mut self, mut fan: FanOut, turn: &Turn<'_, HubMsg>) {
        let Some(room) = self.table.room_mut(fan.room) else { return };
        let FanOut { lines, bytes, first, author, at, delivered, own, slow, .. } = &mut fan;
        let end = *first + lines.len() as u64;
        for seat in room.seats.iter_mut().skip(*at).take(SLICE).filter(|seat| seat.next < end) {
            let start = usize::try_from(seat.next.saturating_sub(*first)).unwrap_or(0);
            seat.next = end;
            if Some(seat.id) == *author {
                continue;
            }
            let bytes = match start {
                0 => *bytes,
                start => lines.iter().skip(start).map(|line| line.body.len()).sum(),
            };
            let count = (lines.len() - start) as u64;
            match seat.handle.tell(FramedMsg::Batch(Batch::new(lines.clone(), start, bytes))) {
                Ok(()) => *delivered += count,
                // It says so itself, and is forgotten then.
                Err(Refused::Closed(_)) => {}
                Err(Refused::Full(_) | Refused::TooLarge(_)) => {
                    let its = lines.iter().skip(start).filter(|line| line.from == Some(seat.id)).count() as u64;
                    *own = own.saturating_sub(its);
                    slow.push((seat.id, seat.handle.clone(), count - its));
                }
            }
        }
        fan.at += SLICE;
        if fan.at < room.seats.len() {
            self.active = Some(fan);
            return;
        }
        self.counters.deliveries.add(fan.delivered.saturating_sub(fan.own));
        for (id, mail, lost) in fan.slow {
            self.slow(id, &mail, lost, turn);
        }
    }

    fn forward(&mut self, name: &Arc<str>, elsewhere: &[usize], lines: Arc<[Line]>) {
        if elsewhere.is_empty() || !lines.iter().any(|line| line.local) {
            return;
        }
        let lines = if lines.iter().all(|line| line.local) {
            lines
        } else {
            lines.iter().filter(|line| line.local).cloned().collect()
        };
        let bytes: usize = lines.iter().map(Line::size).sum();
        for peer in self.peers.iter_mut().filter(|peer| elsewhere.contains(&peer.index)) {
            peer.rooms.push((name.clone(), lines.clone()));
            peer.rooms_bytes += bytes;
        }
    }

    /// Passes on what waits in rooms, until one of them has too many members for this turn.
    fn settle(&mut self, turn: &Turn<'_, HubMsg>) {
        while self.active.is_none()
            && let Some(index) = self.table.take_touched()
        {
            self.fan_out(index, turn);
            self.announce(index);
            self.table.close_if_empty(index);
        }
    }

    /// Tells the other arbiters if this one has become interested in a room, or has ceased to be.
    fn announce(&mut self, index: Key) {
        let Some(room) = self.table.room_mut(index) else { return };
        if room.announced != room.seats.is_empty() {
            return;
        }
        room.announced = !room.announced;
        let name = room.name.clone();
        if room.announced {
            self.generation += 1;
            room.generation = self.generation;
            room.missing = self.peers.len();
        }
        let (announced, generation, hub) = (room.announced, room.generation, self.index);
        for peer in &mut self.peers {
            let room = name.clone();
            peer.send(if announced { HubMsg::Has { room, hub, generation } } else { HubMsg::HasNone { room, hub } });
        }
        self.counters.announced.add(self.peers.len() as u64);
    }

    fn known(&mut self, room: &str, generation: u64, turn: &Turn<'_, HubMsg>) {
        let mut full = Vec::new();
        let answer = joined(room);
        self.table.known(room, generation, |seat| {
            if seat.handle.tell(FramedMsg::Send(answer.clone())).is_err_and(|refused| refused.is_full()) {
                full.push((seat.id, seat.handle.clone()));
            }
        });
        for (id, mail) in full {
            self.slow(id, &mail, 1, turn);
        }
    }

    fn handle(&mut self, m: HubMsg, turn: &Turn<'_, HubMsg>) {
        match m {
            HubMsg::Said { id, mail, commands, .. } => self.said(id, &mail, commands, turn),
            HubMsg::Gone(id) => {
                if self.table.leave(id).is_some() {
                    self.counters.left.add(1);
                }
            }
            HubMsg::Deliver { rooms, .. } => {
                for (room, lines) in rooms {
                    if let Some((room, waiting)) = self.table.heard(&room, &lines) {
                        self.fan_out_early(room, waiting, turn);
                    }
                }
            }
            HubMsg::Has { room, hub, generation } => {
                self.table.elsewhere(&room, hub, true);
                if let Some(peer) = self.peers.iter_mut().find(|peer| peer.index == hub) {
                    peer.send(HubMsg::Known { room, generation });
                    self.counters.announced.add(1);
                }
            }
            HubMsg::HasNone { room, hub } => self.table.elsewhere(&room, hub, false),
            HubMsg::Known { room, generation } => self.known(&room, generation, turn),
            HubMsg::Peers(mails) => {
                let others = mails.into_iter().enumerate().filter(|(index, _)| *index != self.index);
                self.peers = others
                    .map(|(index, mail)| Peer {
                        index,
                        mail,
                        rooms: Vec::new(),
                        rooms_bytes: 0,
                        queue: VecDeque::new(),
                        queue_bytes: 0,
                    })
                    .collect();
            }
        }
    }

    /// Sends what other hubs are to get, as far as their mailboxes have room.
    fn send_all(&mut self, now: Instant) {
        let mut waiting = 0;
        for peer in &mut self.peers {
            peer.send_waiting();
            if !peer.rooms.is_empty() {
                let (rooms, bytes) = (std::mem::take(&mut peer.rooms), std::mem::take(&mut peer.rooms_bytes));
                peer.send(HubMsg::Deliver { rooms, bytes });
                self.counters.cross_arbiter.add(1);
            }
            waiting += peer.queue_bytes;
        }
        self.retry = (waiting > 0).then(|| clock::later(now, RETRY));
        self.behind.store(waiting + self.backlog_bytes > BEHIND, Ordering::Relaxed);
    }
}

impl Protocol for Hub {
    type Msg = HubMsg;
    const KIND: &'static str = "rooms";

    fn size(m: &HubMsg) -> usize {
        match m {
            HubMsg::Said { bytes, .. } | HubMsg::Deliver { bytes, .. } => *bytes,
            HubMsg::Has { room, .. } | HubMsg::HasNone { room, .. } | HubMsg::Known { room, .. } => 64 + room.len(),
            HubMsg::Peers(_) | HubMsg::Gone(_) => 0,
        }
    }

    fn label(m: &HubMsg) -> &'static str {
        match m {
            HubMsg::Said { .. } => "said",
            HubMsg::Deliver { .. } => "deliver",
            HubMsg::Gone(_) => "gone",
            HubMsg::Has { .. } | HubMsg::HasNone { .. } | HubMsg::Known { .. } | HubMsg::Peers(_) => "membership",
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, HubMsg>) -> Result<(), Fault> {
        self.counters = Counters {
            broadcasts: turn.counter("rooms_broadcasts", &self.listener, ""),
            deliveries: turn.counter("rooms_deliveries", &self.listener, ""),
            cross_arbiter: turn.counter("rooms_cross_arbiter", &self.listener, ""),
            announced: turn.counter("rooms_announced", &self.listener, ""),
            joined: turn.counter("rooms_joined", &self.listener, ""),
            left: turn.counter("rooms_left", &self.listener, ""),
        };
        Ok(())
    }

    fn on(&mut self, m: HubMsg, turn: &mut Turn<'_, HubMsg>) -> Result<(), Fault> {
        if self.active.is_none() && self.backlog.is_empty() {
            self.handle(m, turn);
        } else {
            self.backlog_bytes += Self::size(&m);
            self.backlog.push_back(m);
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    fn on_deadline(&mut self, _: &mut Turn<'_, HubMsg>) -> Result<(), Fault> {
        // The flush of this very turn tries again.
        self.retry = None;
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, HubMsg>) -> Result<Progress, Fault> {
        if let Some(fan) = self.active.take() {
            self.go_on(fan, turn);
        }
        self.settle(turn);
        let mut bytes = 0;
        for _ in 0..BACKLOG {
            if self.active.is_some() || bytes > CHUNK {
                break;
            }
            let Some(m) = self.backlog.pop_front() else { break };
            bytes += Self::size(&m);
            self.backlog_bytes = self.backlog_bytes.saturating_sub(Self::size(&m));
            self.handle(m, turn);
        }
        self.settle(turn);
        self.send_all(turn.now());
        let more = self.active.is_some() || !self.backlog.is_empty();
        Ok(if more { Progress::More } else { Progress::Idle })
    }

    fn closed(&mut self, why: &Exit) {
        tracing::debug!(listener = %self.listener, arbiter = self.index, %why, "the hub of rooms has ended");
    }

    fn held(&self) -> usize {
        self.table.members() * 100
            + self.table.rooms() * 300
            + self.peers.iter().map(|peer| peer.queue_bytes).sum::<usize>()
            + self.backlog_bytes
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for seat in self.table.seats() {
            seat.handle.control(Control::Stop);
        }
        for peer in &self.peers {
            peer.mail.control(Control::Stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rooms_member::Member;
    use super::super::state::Settings;
    use super::*;
    use crate::actors::sim_link::{Faults, stream_link};
    use std::sync::atomic::AtomicUsize;

    /// A member that counts the batches it gets.
    struct Ear(Arc<AtomicUsize>);

    impl Protocol for Ear {
        type Msg = FramedMsg;
        const KIND: &'static str = "ear";

        fn on(&mut self, m: FramedMsg, _: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
            self.0.fetch_add(usize::from(matches!(m, FramedMsg::Batch(_))), Ordering::Relaxed);
            Ok(())
        }
    }

    /// A hub whose turn is a test's.
    struct Workbench<F>(Hub, F);

    impl<F: FnMut(&mut Hub, &Turn<'_, HubMsg>) + 'static> Protocol for Workbench<F> {
        type Msg = HubMsg;
        const KIND: &'static str = "workbench";

        fn on(&mut self, _: HubMsg, turn: &mut Turn<'_, HubMsg>) -> Result<(), Fault> {
            (self.1)(&mut self.0, turn);
            Ok(())
        }
    }

    /// A large room is served over turns, and what is on its way names the room. When that room has closed meanwhile and
    /// another lies in its place, that one's members get nothing of it.
    #[test]
    fn what_was_left_of_a_room_that_closed_reaches_nobody_in_the_next() {
        let mut sim = Mesh::sim(1);
        let heard = Arc::new(AtomicUsize::new(0));
        let ear = sim
            .mesh()
            .spawn(Place::On(0), Spec::default(), {
                let heard = heard.clone();
                || Ear(heard)
            })
            .unwrap();
        let work = move |hub: &mut Hub, turn: &Turn<'_, HubMsg>| {
            let id = ActorId(1);
            let fan = |room| FanOut {
                room,
                lines: Arc::new([Line::answer(b"Msecret"[..].into())]),
                bytes: 7,
                first: 0,
                author: None,
                at: 0,
                delivered: 0,
                own: 0,
                slow: Vec::new(),
            };
            hub.table.join(id, &Arc::from("old"), ear.clone());
            let old = hub.table.find("old").unwrap();
            hub.table.leave(id);
            hub.settle(turn);
            assert_eq!(hub.table.rooms(), 0);
            hub.table.join(id, &Arc::from("new"), ear.clone());
            hub.go_on(fan(old), turn);
            assert_eq!(ear.depth().messages, 0);
            assert_eq!(hub.table.own(old), 0);
            hub.table.close_if_empty(old);
            let new = hub.table.find("new").unwrap();
            hub.go_on(fan(new), turn);
            assert_eq!(ear.depth().messages, 1, "it can fail");
        };
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let bench = sim.mesh().spawn(Place::On(0), Spec::default(), move || {
            let hub = Hub::new(0, Arc::from("sim"), WhenSlow::Close, Arc::default(), Table::new(10, 10, true));
            Workbench(hub, move |hub: &mut Hub, turn: &Turn<'_, HubMsg>| {
                work(hub, turn);
                seen.store(true, Ordering::Relaxed);
            })
        });
        bench.unwrap().tell(HubMsg::Gone(ActorId(7))).unwrap();
        sim.run_for(Duration::from_secs(1));
        assert!(done.load(Ordering::Relaxed), "no assertion failed");
        assert_eq!(heard.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_hub_that_ends_takes_the_other_hubs_and_all_members_along() {
        let mut sim = Mesh::sim(1);
        let name: Arc<str> = Arc::from("sim");
        let hubs = Hubs::start(sim.mesh(), &name, 1_000, WhenSlow::Close, Limits::default()).unwrap();
        let mut members = Vec::new();
        let mut clients = Vec::new();
        for arbiter in 0..2 {
            let (ours, theirs) = stream_link(arbiter as u64, Faults::default(), Faults::default(), 1_000);
            let (name, hubs) = (name.clone(), hubs.clone());
            let make = move || Member::new(ours.open(), name, Arc::new(Settings::default()), hubs);
            members.push(sim.mesh().spawn(Place::On(arbiter), Spec::default(), make).unwrap());
            clients.push(theirs);
        }
        let joined = sim.block_on(Duration::from_secs(5), async move {
            let mut open = Vec::new();
            for client in clients {
                let mut client = super::super::FramedClient::over(client.open(), super::super::Format::default());
                client.send(b"Jroom").await.unwrap();
                assert_eq!(client.recv().await.unwrap().unwrap(), &b"Jroom"[..]);
                open.push(client);
            }
            open
        });
        assert!(joined.is_some() && hubs.live());
        hubs.mails[1].control(Control::Stop);
        sim.run_for(Duration::from_secs(1));
        assert!(!hubs.live());
        assert!(members.iter().all(Mail::is_closed));
        assert_eq!(sim.mesh().live(), 0);
    }
}
