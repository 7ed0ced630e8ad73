//! Rooms: a client joins one and everybody else in it gets what it says.
//!
//! # The wire
//! Each message of a client begins with a verb, one byte; the rest of it belongs to the verb:
//!
//! | client says | meaning | answer |
//! |---|---|---|
//! | `J` name | join the room of that name (1 to 64 bytes of UTF-8), leaving the one it is in | `J` name |
//! | `L` | leave the room | `L` |
//! | `M` payload | to everybody else in the room | none |
//!
//! A member gets the `M` messages of others as they were said, verb and all. A command that is not obeyed is answered
//! `E` and a text for people: an unknown verb, a bad name, no room to leave or to speak in, too many rooms or members,
//! a message larger than `outbound`, which nobody could be sent. Nothing else changes then.
//!
//! # Order
//! Answers come in the order of their commands. What one client says reaches each member in that order and once; what
//! two clients say at the same time may reach two members in different orders. From the answer `J` on a member gets
//! everything that is said from then on.
//!
//! # Slow members
//! A member that takes too little is treated as `when_slow` says, alone: closed with the reason `slow_reader`, or its
//! messages are dropped (answers among them) and counted in `messages_dropped`. Nobody waits for it.
//!
//! # Counters
//! `rooms_broadcasts` (`M` messages taken), `rooms_deliveries` (messages handed to members), `rooms_cross_arbiter`
//! (messages that carry broadcasts to another arbiter: at most one per turn and arbiter), `rooms_announced` (messages
//! by which arbiters tell each other where rooms have members), `rooms_joined`, `rooms_left` and `rooms_refused` by
//! reason.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

pub use super::rooms_hub::{Hubs, Limits};
pub use super::rooms_member::Member;
pub use super::rooms_words::{Batch, MAX_NAME};
use super::state::Settings;
use crate::actors::{Mesh, Place, SpawnError, Turn};
use crate::transports::tcp::{Accepted, Never, OnAccept};

/// Starts an actor for each connection of a `rooms` listener, and with the first one the hubs they talk to.
#[derive(Debug)]
pub struct Rooms {
    listener: Arc<str>,
    settings: Arc<Settings>,
    limits: Limits,
    hubs: Option<Arc<Hubs>>,
}

impl Rooms {
    /// For a listener of this name.
    #[must_use]
    pub fn new(listener: Arc<str>, settings: Settings, limits: Limits) -> Self {
        Self { listener, settings: Arc::new(settings), limits, hubs: None }
    }
}

impl Rooms {
    /// Starts the actor of a client that comes over something else than a socket of TCP.
    ///
    /// # Errors
    /// When no actor can be started.
    pub fn inside<M: Send + 'static>(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        turn: &Turn<'_, M>,
    ) -> Result<(), SpawnError> {
        let hubs = self.hubs(turn.mesh())?;
        let (listener, settings) = (self.listener.clone(), self.settings.clone());
        let spec = Member::<()>::spec(&self.settings);
        // Not here: an arbiter that somebody has for itself has no hub.
        turn.spawn(Place::LeastLoaded, spec, move || Member::new(stream, listener, settings, hubs)).map(drop)
    }

    fn hubs(&mut self, mesh: &Mesh) -> Result<Arc<Hubs>, SpawnError> {
        let hubs = match self.hubs.take().filter(|hubs| hubs.live()) {
            Some(hubs) => hubs,
            None => {
                let set = &self.settings;
                // Not children of the listener: they end after the connections in a drain.
                Hubs::start(mesh, &self.listener, set.outbound, set.when_slow, self.limits)?
            }
        };
        self.hubs = Some(hubs.clone());
        Ok(hubs)
    }
}

impl OnAccept for Rooms {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        let hubs = self.hubs(turn.mesh())?;
        let (listener, settings) = (self.listener.clone(), self.settings.clone());
        let spec = Member::<()>::spec(&self.settings);
        turn.spawn(Place::LeastLoaded, spec, move || Member::accepted(accepted, listener, settings, hubs)).map(drop)
    }
}
