//! What becomes of one client's QUIC connection at a listener: a relay actor for each stream it opens, and its datagrams
//! to a server and back.
//!
//! Streams in one direction are given up: no server over TCP could take them as what they are. Datagrams go to one
//! server, chosen with the first of them; what finds no room on the way is dropped and counted, as the network would.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::actor::Relay;
use super::dial::Network;
use super::quic_datagrams::{Datagrams, LONGEST};
use super::quic_links::Links;
use super::quic_wire::REFUSED;
use super::state::RelaySettings;
use crate::actors::{Fault, Place, Progress, Protocol, Spec, Turn};
use crate::transports::kit::admission::Ticket;
use crate::transports::kit::balance::Balancer;
use crate::transports::quic::{Closed, Connection, Datagram, Duplex, OpenError, RecvStream, SendStream};

/// Where the streams and datagrams of a connection go.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where each stream goes; `None`: nowhere, it is given up.
    pub streams: Option<Arc<RelaySettings>>,
    /// How servers are reached.
    pub network: Network,
    /// Where datagrams go; `None`: nowhere, they are dropped and counted.
    pub datagrams: Option<Arc<Balancer>>,
    /// The way to servers that take datagrams over QUIC.
    pub links: Option<Links>,
}

/// The actor of one client's connection. See the top of the file.
pub struct QuicSession {
    connection: Connection,
    listener: Arc<str>,
    target: Arc<Target>,
    ticket: Ticket,
    random: RandomState,
    count: u64,
    to: Datagrams,
}

impl fmt::Debug for QuicSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSession").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// What a session's own work brings.
#[derive(Debug)]
pub enum ToSession {
    /// The client opened a stream.
    Stream(Result<(SendStream, RecvStream), OpenError>),
    /// The client opened a stream in one direction.
    OneWay(Result<RecvStream, OpenError>),
    /// Datagrams of the client.
    Up(Result<Vec<Bytes>, Closed>),
}

impl QuicSession {
    /// For a connection that was let in with this ticket. `listener` is the scope of its counters.
    #[must_use]
    pub fn new(connection: Connection, listener: Arc<str>, target: Arc<Target>, ticket: Ticket) -> Self {
        Self { connection, listener, target, ticket, random: RandomState::new(), count: 0, to: Datagrams::default() }
    }

    fn wait_for_stream(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let connection = self.connection.clone();
        let work = async move { connection.accept().await };
        turn.job(work, |found| ToSession::Stream(found.unwrap_or(Err(OpenError::Closed)))).map_err(|_| no_room())
    }

    fn wait_for_one_way(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let connection = self.connection.clone();
        let work = async move { connection.accept_uni().await };
        turn.job(work, |found| ToSession::OneWay(found.unwrap_or(Err(OpenError::Closed)))).map_err(|_| no_room())
    }

    fn wait_for_datagrams(&self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        let connection = self.connection.clone();
        let work = async move { connection.datagrams().await };
        turn.job(work, |found| ToSession::Up(found.unwrap_or(Err(Closed)))).map_err(|_| no_room())
    }

    fn relay(&mut self, send: SendStream, receive: RecvStream, turn: &Turn<'_, ToSession>) {
        let stream = Duplex::new(send, receive);
        let Some(settings) = self.target.streams.clone() else {
            stream.abort(REFUSED);
            turn.counter("quic_streams_refused", &self.listener, "no_upstream").add(1);
            return;
        };
        self.count += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count);
        let random = hasher.finish();
        let (listener, network, peer) = (self.listener.clone(), self.target.network.clone(), self.connection.peer());
        let make = move || Relay::stream(stream, peer, network, listener, settings, random);
        // With the actor the stream is dropped, and the client's end of it.
        if turn.spawn(Place::On(turn.arbiter()), Spec::default(), make).is_err() {
            turn.counter("quic_streams_refused", &self.listener, "closing").add(1);
        }
    }

    /// The connection has ended, or takes no new streams: what it has goes on without this actor.
    fn over(&self, turn: &mut Turn<'_, ToSession>) {
        turn.stop();
    }
}

fn no_room() -> Fault {
    Fault::bug("no_room", "a session has no room for its own work")
}

impl Protocol for QuicSession {
    type Msg = ToSession;
    const KIND: &'static str = "quic_session";

    fn started(&mut self, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        self.ticket.complete();
        self.to = Datagrams::new(&self.listener);
        self.wait_for_stream(turn)?;
        self.wait_for_one_way(turn)?;
        self.wait_for_datagrams(turn)
    }

    fn on(&mut self, m: ToSession, turn: &mut Turn<'_, ToSession>) -> Result<(), Fault> {
        match m {
            ToSession::Stream(Ok((send, receive))) => {
                self.relay(send, receive, turn);
                self.wait_for_stream(turn)
            }
            ToSession::OneWay(Ok(stream)) => {
                // Dropping its handle tells the client that nobody wants it.
                drop(stream);
                turn.counter("quic_streams_refused", &self.listener, "one_way").add(1);
                self.wait_for_one_way(turn)
            }
            ToSession::Up(Ok(datagrams)) => {
                let from = (self.random.build_hasher().finish(), self.connection.peer().ip());
                if self.to.up(datagrams.into_iter(), &self.target, from, turn.now()) {
                    // What it has opened wakes nobody before it was polled once.
                    turn.again();
                }
                self.wait_for_datagrams(turn)
            }
            ToSession::Stream(Err(_)) | ToSession::OneWay(Err(_)) | ToSession::Up(Err(_)) => {
                self.over(turn);
                Ok(())
            }
        }
    }

    fn io(&mut self, turn: &mut Turn<'_, ToSession>) -> Result<Progress, Fault> {
        let Self { to, connection, .. } = self;
        let down = |datagram| connection.cast_datagram(Datagram::new(datagram)).into();
        let more = if to.needs_scratch() {
            turn.scratch(|turn, scratch| {
                let room = scratch.len().min(LONGEST);
                to.poll(&mut turn.cx(), scratch.get_mut(..room).unwrap_or_default(), down)
            })
        } else {
            to.poll(&mut turn.cx(), &mut [], down)
        };
        Ok(if more { Progress::More } else { Progress::Idle })
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, ToSession>) {
        // Its relays were asked before it and have ended.
        self.over(turn);
    }
}
