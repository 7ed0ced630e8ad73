//! What runs in a session whose streams go to servers: a relay actor for each stream that the client opens, and its
//! datagrams to a server and back. For sessions of WebTransport, inside the actor of their connection.
//!
//! As with raw QUIC, streams in one direction are refused and counted. When the session ends its relays are stopped, which
//! resets what they have at servers.

use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use super::actor::Relay;
use super::quic_datagrams::{Cast, Datagrams, LONGEST};
use super::quic_session::Target;
use super::quic_wire::REFUSED;
use crate::actors::{Control, Driver, Mail, Spec, shelf};
use crate::transports::quic::{Application, Datagram, Event, NotQueued, Session, StreamId, StreamKind};
use crate::transports::tcp::Never;

/// Relays that are kept without looking which of them have ended.
const UNSEEN: usize = 64;

/// See the top of the file.
pub struct Inside {
    listener: Arc<str>,
    target: Arc<Target>,
    random: RandomState,
    count: u64,
    peer: Option<SocketAddr>,
    relays: Vec<Mail<Never>>,
    look_at: usize,
    datagrams: Datagrams,
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Inside {
    /// `listener` is the scope of its counters. To be made on the arbiter of its connection.
    #[must_use]
    pub fn new(listener: Arc<str>, target: Arc<Target>) -> Self {
        let datagrams = Datagrams::new(&listener);
        let (random, relays) = (RandomState::new(), Vec::new());
        Self { listener, target, random, count: 0, peer: None, relays, look_at: UNSEEN, datagrams }
    }

    fn relay(&mut self, stream: StreamId, session: &mut dyn Session) {
        let refusal = match (&self.target.streams, stream.kind()) {
            (Some(settings), StreamKind::Bidirectional) => match session.hand_over(stream) {
                Some(duplex) => {
                    self.count += 1;
                    let mut hasher = self.random.build_hasher();
                    hasher.write_u64(self.count);
                    let (random, settings, listener) = (hasher.finish(), settings.clone(), self.listener.clone());
                    let network = self.target.network.clone();
                    let peer = *self.peer.get_or_insert_with(|| session.info().peer);
                    let make = move || Relay::stream(duplex, peer, network, listener, settings, random);
                    let here = Driver::default().here();
                    match here.and_then(|(mesh, place)| mesh.spawn(place, Spec::default(), make).ok()) {
                        Some(relay) => return self.keep(relay),
                        // With what was to make the actor the stream is dropped, and the client's end of it.
                        None => "closing",
                    }
                }
                None => "no_room",
            },
            (_, StreamKind::Unidirectional) => "one_way",
            (None, StreamKind::Bidirectional) => "no_upstream",
        };
        Driver::default().raise("quic_streams_refused", &self.listener, refusal);
        // One of them fails for a stream in one direction, both for one that is over.
        let (_over, _too) = (session.stop(stream, REFUSED), session.reset(stream, REFUSED));
    }

    fn keep(&mut self, relay: Mail<Never>) {
        if self.relays.len() >= self.look_at {
            self.relays.retain(|relay| !relay.is_closed());
            self.look_at = (2 * self.relays.len()).max(UNSEEN);
        }
        self.relays.push(relay);
    }

    fn tell(&self, control: Control) {
        self.relays.iter().for_each(|relay| relay.control(control));
    }
}

impl Application for Inside {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        match event {
            Event::Opened(stream) => self.relay(stream, session),
            Event::Datagrams => {
                let peer = *self.peer.get_or_insert_with(|| session.info().peer);
                let (from, now) = ((self.random.build_hasher().finish(), peer.ip()), session.now());
                let datagrams = std::iter::from_fn(|| session.read_datagram());
                // It is polled in the same turn.
                let _opened = self.datagrams.up(datagrams, &self.target, from, now);
            }
            Event::Closed(_) => self.tell(Control::Stop),
            // What becomes of a stream is its relay's affair.
            Event::Connected
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Finished(_)
            | Event::Reset(..)
            | Event::Stopped(..)
            | Event::Expired(_)
            | Event::Openable(_)
            | Event::PathChanged { .. }
            | Event::Missed(_) => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        let down = |datagram| match session.send_datagram(Datagram::new(datagram)) {
            Ok(()) => Cast::Sent,
            Err(NotQueued::TooLarge { .. }) => Cast::TooLarge,
            Err(NotQueued::Full(_) | NotQueued::Dropped) => Cast::Full,
        };
        if !self.datagrams.needs_scratch() {
            return self.datagrams.poll(cx, &mut [], down);
        }
        let scratch = shelf(&self.target, || RefCell::new(vec![0; LONGEST]));
        // Nothing in between runs an application.
        scratch.try_borrow_mut().is_ok_and(|mut scratch| self.datagrams.poll(cx, &mut scratch, down))
    }

    fn drain(&mut self, by: Instant, _: &mut dyn Session) {
        self.tell(Control::Drain(by));
    }
}
