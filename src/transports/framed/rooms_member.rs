//! A framed connection that takes part in rooms: what its client says goes to the hub of its arbiter.
//!
//! It is the actor of any framed connection, with two things added: at the end of a turn the hub is told what came in,
//! in one message, and while the hub has no room for that, the client is not read.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use super::actor::{Connection, FramedMsg};
use super::outbox::Outbox;
use super::rooms_hub::{HubMsg, Hubs, RETRY, member_mailbox};
use super::rooms_words::Command;
use super::state::{Service, Settings};
use crate::actors::{ActorId, Exit, Fault, Permit, Progress, Protocol, Refused, Spec, Traffic, Turn, clock};
use crate::transports::tcp::Accepted;

/// What a client says within one turn goes to the hub in messages of about this size.
const SAID: usize = 32 << 10;

/// The actor of one connection to a `rooms` listener.
pub struct Member<S> {
    connection: Connection<S, Talk>,
    hubs: Arc<Hubs>,
    id: Option<ActorId>,
    /// Room in the hub's mailbox for the news that this connection has ended, once it has told the hub of itself.
    farewell: Option<Permit<HubMsg>>,
    spoke: bool,
    /// The hub has no room: when to try again.
    retry: Option<Instant>,
}

impl<S> fmt::Debug for Member<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Member<tokio::net::TcpStream> {
    /// A connection that a listener accepted.
    pub fn accepted(accepted: Accepted, listener: Arc<str>, settings: Arc<Settings>, hubs: Arc<Hubs>) -> Self {
        let talk = Talk::new(&settings);
        Self::over(Connection::accepted(accepted, listener, settings, talk), hubs)
    }
}

impl<S> Member<S> {
    /// The mailbox that a member needs, so that nothing the hub may pass on at once is too much for it.
    #[must_use]
    pub fn spec(settings: &Settings) -> Spec {
        Spec::default().inbox(1_024, member_mailbox(settings.outbound))
    }

    /// A connection over a stream that is ready to use on this arbiter. `listener` is the scope of its counters.
    pub fn new(stream: S, listener: Arc<str>, settings: Arc<Settings>, hubs: Arc<Hubs>) -> Self {
        let talk = Talk::new(&settings);
        Self::over(Connection::new(stream, listener, settings, talk), hubs)
    }

    const fn over(connection: Connection<S, Talk>, hubs: Arc<Hubs>) -> Self {
        Self { connection, hubs, id: None, farewell: None, spoke: false, retry: None }
    }

    /// Tells the hub what the client has said.
    fn pass_on(&mut self, turn: &Turn<'_, FramedMsg>) -> Result<(), Fault> {
        if self.retry.is_some() {
            return Ok(());
        }
        while let Some(said) = self.connection.service.said.pop_front() {
            let mail = turn.mail();
            let m = HubMsg::Said { id: mail.id(), mail, commands: said.commands, bytes: said.bytes };
            match self.hubs.tell(turn.arbiter(), m) {
                Ok(()) => self.spoke = true,
                Err(Refused::Full(m)) => {
                    if let HubMsg::Said { commands, bytes, .. } = m {
                        self.connection.service.said.push_front(Said { commands, bytes });
                    }
                    self.retry = Some(clock::later(turn.now(), RETRY));
                    break;
                }
                Err(Refused::TooLarge(_)) => return Err(Fault::bug("said_too_large", "")),
                Err(Refused::Closed(_)) => return Err(Fault::local("rooms_ended", "")),
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Protocol for Member<S> {
    type Msg = FramedMsg;
    const KIND: &'static str = "framed";

    fn size(m: &FramedMsg) -> usize {
        Connection::<S, Talk>::size(m)
    }

    fn started(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
        self.id = Some(turn.mail().id());
        self.farewell = self.hubs.reserve(turn.arbiter());
        self.connection.started(turn)?;
        if self.farewell.is_some() { Ok(()) } else { Err(Fault::local("rooms_ended", "")) }
    }

    fn on(&mut self, m: FramedMsg, turn: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
        self.connection.on(m, turn)
    }

    fn io(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<Progress, Fault> {
        if self.retry.is_some() { Ok(Progress::Idle) } else { self.connection.io(turn) }
    }

    fn deadline(&self) -> Option<Instant> {
        match (self.connection.deadline(), self.retry) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (at, None) | (None, at) => at,
        }
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
        self.retry = self.retry.filter(|at| *at > turn.now());
        self.pass_on(turn)?;
        self.connection.on_deadline(turn)
    }

    fn flush(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<Progress, Fault> {
        self.pass_on(turn)?;
        if !self.connection.service.said.is_empty() && self.connection.is_ending() {
            // Its last words come first.
            return Ok(Progress::Idle);
        }
        let progress = self.connection.flush(turn)?;
        // Room for answers may have let more of what had come be read.
        self.pass_on(turn)?;
        Ok(progress)
    }

    fn drain(&mut self, by: Instant, turn: &mut Turn<'_, FramedMsg>) {
        self.connection.drain(by, turn);
    }

    fn closed(&mut self, why: &Exit) {
        self.connection.closed(why);
    }

    fn held(&self) -> usize {
        self.connection.held()
    }

    fn traffic(&self) -> Traffic {
        self.connection.traffic()
    }
}

impl<S> Drop for Member<S> {
    fn drop(&mut self) {
        if let (true, Some(id), Some(farewell)) = (self.spoke, self.id, self.farewell.take()) {
            // Refused only when the hub has ended, and its members with it.
            drop(farewell.tell(HubMsg::Gone(id)));
        }
    }
}

#[derive(Debug, Default)]
struct Said {
    commands: Vec<Command>,
    bytes: usize,
}

/// Collects what a client says until the end of the turn.
#[derive(Debug)]
pub(super) struct Talk {
    said: VecDeque<Said>,
    longest: usize,
}

impl Talk {
    const fn new(settings: &Settings) -> Self {
        // Eight bytes at most are its length field.
        Self { said: VecDeque::new(), longest: settings.outbound.saturating_sub(8) }
    }
}

impl Service for Talk {
    fn message(&mut self, body: &[u8], _: &mut Outbox) {
        let command = Command::read(body, self.longest);
        let size = command.size();
        match self.said.back_mut().filter(|said| said.bytes + size <= SAID) {
            Some(said) => {
                said.bytes += size;
                said.commands.push(command);
            }
            None => self.said.push_back(Said { commands: vec![command], bytes: size }),
        }
    }

    fn reply_room(&self, _: usize) -> usize {
        // Answers come from the hub, and what does not fit then is the policy's business.
        0
    }

    fn held(&self) -> usize {
        self.said.iter().map(|said| said.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::outbox::WhenSlow;
    use super::super::rooms_hub::Limits;
    use super::super::{Format, FramedClient};
    use super::*;
    use crate::actors::sim_link::{Faults, stream_link};
    use crate::actors::{Mesh, Place};
    use crate::memory::Budget;
    use crate::transports::kit::admission::{Admission, Caps};

    /// What a client has said and its hub has no room for is held by the connection: it is leased.
    #[test]
    fn words_that_wait_for_the_hub_are_leased() {
        let mut sim = Mesh::sim(1);
        let name: Arc<str> = Arc::from("sim");
        let hubs = Hubs::start(sim.mesh(), &name, 1 << 20, WhenSlow::Close, Limits::default()).unwrap();
        let budget = Budget::new(1 << 30);
        let caps = Caps { connections: 1, per_source: 1, half_open: 1, base_bytes: 0 };
        let mut doorkeeper = Admission::new(caps, budget.clone(), Arc::default());
        let ticket = doorkeeper.admit([127, 0, 0, 1].into()).unwrap();
        let (ours, theirs) = stream_link(1, Faults::default(), Faults::default(), 1 << 20);
        let behind = hubs.clone();
        let make = move || {
            let mut member = Member::new(ours.open(), name, Arc::new(Settings::default()), hubs);
            member.connection.hold(ticket);
            member
        };
        sim.mesh().spawn(Place::On(0), Member::<()>::spec(&Settings::default()), make).unwrap();
        // The hubs have had their first turns, in which they say that they are not behind.
        sim.run_for(Duration::from_millis(10));
        behind.fall_behind(true);
        let client = sim.block_on(Duration::from_secs(1), async move {
            let mut client = FramedClient::over(theirs.open(), Format::default());
            client.send_many([&b"Jroom"[..], &[b'M'; 40_000]]).await.unwrap();
            client
        });
        sim.run_for(Duration::from_millis(100));
        assert!(budget.used() >= 40_000, "{}", budget.used());
        behind.fall_behind(false);
        sim.run_for(Duration::from_millis(100));
        assert!(budget.used() < 40_000, "{}", budget.used());
        drop(client);
        sim.run_for(Duration::from_secs(1));
        assert_eq!(budget.used(), 0);
    }
}
