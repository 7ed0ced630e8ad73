//! The actor of one client of whole messages: a relay that knows frames, under a name of its own.

use std::time::Instant;

use super::actor::Relay;
use super::dial::{Dial, Wire};
use crate::actors::{Exit, Fault, Progress, Protocol, Turn};
use crate::transports::tcp::Never;

/// Forwards the messages of one client to one server of an upstream, and the answers back. Its settings have
/// [`frames`](super::RelaySettings::frames).
#[derive(Debug)]
pub struct Forward<C: Wire, D: Dial>(Relay<C, D>);

impl<C: Wire, D: Dial> Forward<C, D> {
    /// What `relay` does, as another kind of actor.
    pub const fn new(relay: Relay<C, D>) -> Self {
        Self(relay)
    }
}

impl<C: Wire + 'static, D: Dial> Protocol for Forward<C, D> {
    type Msg = Never;
    const KIND: &'static str = "forward";

    fn started(&mut self, turn: &mut Turn<'_, Never>) -> Result<(), Fault> {
        self.0.started(turn)
    }

    fn on(&mut self, m: Never, _: &mut Turn<'_, Never>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        self.0.io(turn)
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, Never>) -> Result<(), Fault> {
        self.0.on_deadline(turn)
    }

    fn flush(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        self.0.flush(turn)
    }

    fn drain(&mut self, by: Instant, turn: &mut Turn<'_, Never>) {
        self.0.drain(by, turn);
    }

    fn closed(&mut self, why: &Exit) {
        self.0.closed(why);
    }

    fn held(&self) -> usize {
        self.0.held()
    }
}
