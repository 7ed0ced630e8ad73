//! The actor of one flow: what its client sent goes to its server, and the answers go back through the door.
//!
//! Trains come from the door as messages, and from the server by the flow's own socket; both ways they leave as trains.
//! What the kernel has no room for is dropped and counted. The flow ends when it is idle, and when the network says that
//! nobody listens at its server.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::codec::{Joint, count, pieces};
use super::counts::{Counts, Moves};
use super::settings::Terms;
use super::state::{State, Way};
use super::state_table::Ends;
use crate::actors::{Exit, Fault, Progress, Protocol, Traffic, Turn, clock};
use crate::memory::Buf;
use crate::transports::kit::admission::Ticket;
use crate::transports::kit::balance::Picked;
use crate::transports::relay::Header;
use crate::transports::udp::{RecvMeta, Transmit, UdpSocket};

/// Trains received in one system call, and such calls per turn, at most.
const AT_ONCE: usize = 8;
const RECEIVES: usize = 4;
/// Until a server has answered, the network's word that nobody is there is waited for, while this many datagrams went to
/// it; later the next datagram meets it. Waiting costs a turn for each datagram.
const WATCHED: u64 = 8;
/// Room for one train. More than the longest, so that the starts of all lie apart in the processor's cache.
pub(super) const ROOM: usize = 65_536 + 192;

/// What a flow is told.
pub(super) enum ToFlow {
    /// Its client sent datagrams of `stride`, the last perhaps shorter.
    Send { contents: Buf, stride: usize },
}

/// What the door of an arbiter shares with its flows.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) socket: UdpSocket,
    pub(super) counts: Counts,
    /// Where flows receive, one after the other.
    room: RefCell<Vec<u8>>,
}

impl Shared {
    pub(super) fn new(name: Arc<str>, socket: UdpSocket, counts: Counts) -> Self {
        Self { name, socket, counts, room: RefCell::default() }
    }

    /// Where answers leave from: said only if the socket has several addresses.
    fn source(&self, asked: IpAddr) -> Option<IpAddr> {
        self.socket.local_addr().ip().is_unspecified().then_some(asked)
    }
}

/// The other end of a flow.
pub(super) enum Side {
    /// There is none: what comes goes back.
    Echo,
    /// A server.
    Server(Box<Server>),
}

pub(super) struct Server {
    pub(super) upstream: Arc<str>,
    pub(super) address: SocketAddr,
    pub(super) socket: UdpSocket,
    /// The place at the server, given back when the flow ends.
    pub(super) picked: Picked,
    /// Goes in front of the first datagram.
    pub(super) header: Option<Vec<u8>>,
}

/// What a flow is made of.
pub(super) struct Parts {
    pub(super) shared: Rc<Shared>,
    pub(super) ends: Ends,
    pub(super) ticket: Ticket,
    pub(super) side: Side,
    pub(super) terms: Arc<Terms>,
    pub(super) now: Instant,
}

/// The actor.
pub(super) struct Flow {
    shared: Rc<Shared>,
    ends: Ends,
    ticket: Ticket,
    side: Side,
    state: State,
    opened: Instant,
    why: Option<&'static str>,
}

/// What became of datagrams.
#[derive(Default)]
struct Outcome {
    datagrams: u64,
    bytes: u64,
    busy: u64,
    too_long: u64,
    failed: u64,
    refused: bool,
}

impl Outcome {
    fn sent(&mut self, bytes: usize, datagrams: usize) {
        self.bytes += bytes as u64;
        self.datagrams += datagrams as u64;
    }

    fn error(&mut self, error: &io::Error, datagrams: usize) {
        let datagrams = datagrams as u64;
        if error.kind() == ErrorKind::WouldBlock {
            self.busy += datagrams;
        } else if error.raw_os_error() == Some(libc::EMSGSIZE) {
            self.too_long += datagrams;
        } else {
            self.failed += datagrams;
            self.refused |= is_refusal(error.kind());
        }
    }
}

/// Whether an error of a connected socket is the network's word that its other end cannot be reached.
const fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

/// Datagrams to an address, from this one if it is given.
const fn transmit(
    (destination, src_ip): (SocketAddr, Option<IpAddr>),
    contents: &[u8],
    segment_size: Option<usize>,
) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size, src_ip }
}

/// Sends datagrams: trains by `train`, one by `one`, and those of a train that is refused for its length one by one.
fn send_all(
    (contents, stride): (&[u8], usize),
    (socket, moves): (&UdpSocket, &Moves),
    train: impl Fn(&[u8], Option<usize>) -> io::Result<usize>,
    one: impl Fn(&[u8]) -> io::Result<()>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let alone = |piece: &[u8], outcome: &mut Outcome| {
        match one(piece) {
            Ok(()) => outcome.sent(piece.len(), 1),
            Err(error) => outcome.error(&error, 1),
        }
        moves.calls.add(1);
    };
    for (piece, segment) in pieces(contents, stride, socket.max_gso_segments()) {
        let Some(segment) = segment else {
            alone(piece, &mut outcome);
            continue;
        };
        moves.calls.add(1);
        match train(piece, Some(segment)) {
            Ok(sent) => {
                outcome.sent(sent, sent.div_ceil(segment));
                outcome.busy += count(piece.len(), segment).saturating_sub(sent.div_ceil(segment)) as u64;
            }
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                piece.chunks(segment).for_each(|datagram| alone(datagram, &mut outcome));
            }
            Err(error) => outcome.error(&error, count(piece.len(), segment)),
        }
    }
    moves.datagrams.add(outcome.datagrams);
    outcome
}

impl Flow {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { shared, ends, ticket, side, terms, now } = parts;
        Self { shared, ends, ticket, side, state: State::new(terms.flow, now), opened: now, why: None }
    }

    /// Counts what did not pass, and answers what does.
    fn pass<'a>(&mut self, way: Way, contents: &'a [u8], stride: usize, turn: &Turn<'_, ToFlow>) -> Option<&'a [u8]> {
        let passed = self.state.pass(way, contents.len(), stride, turn.now());
        let dropped = &self.shared.counts.dropped;
        dropped.add(turn, "too_long", passed.too_long);
        dropped.add(turn, "flow_rate", passed.limited);
        contents.get(passed.range?)
    }

    fn account(&mut self, way: Way, outcome: &Outcome, turn: &Turn<'_, ToFlow>) {
        self.state.sent(way, outcome.datagrams, outcome.bytes);
        let dropped = &self.shared.counts.dropped;
        let (busy, failed) = match way {
            Way::Up => ("server_busy", "server_unreachable"),
            Way::Down => ("client_busy", "client_unreachable"),
        };
        dropped.add(turn, busy, outcome.busy);
        dropped.add(turn, "too_long", outcome.too_long);
        dropped.add(turn, failed, outcome.failed);
    }

    /// From the client.
    fn send(&mut self, contents: &[u8], stride: usize, turn: &Turn<'_, ToFlow>) {
        let Some(mut contents) = self.pass(Way::Up, contents, stride, turn) else { return };
        if matches!(self.side, Side::Echo) {
            self.state.sent(Way::Up, count(contents.len(), stride) as u64, contents.len() as u64);
            self.answer(contents, stride, turn);
            return;
        }
        while let Some((outcome, rest)) = self.send_first(contents, stride, turn) {
            self.finish_up(&outcome, turn);
            if outcome.refused {
                self.shared.counts.dropped.add(turn, "server_unreachable", lost(rest, stride));
                return;
            }
            if rest.is_empty() {
                return;
            }
            contents = rest;
        }
        let Side::Server(server) = &self.side else { return };
        let (to, socket) = (server.address, &server.socket);
        let outcome = send_all(
            (contents, stride),
            (socket, &self.shared.counts.to_servers),
            |train, segment| socket.try_send(&transmit((to, None), train, segment)),
            |datagram| socket.send_connected(datagram),
        );
        self.finish_up(&outcome, turn);
    }

    /// Sends the header with the first datagram of these, if it has not been sent; what is left, then. If it could not
    /// be sent, the next datagram is the first.
    fn send_first<'a>(
        &mut self,
        contents: &'a [u8],
        stride: usize,
        turn: &Turn<'_, ToFlow>,
    ) -> Option<(Outcome, &'a [u8])> {
        let Side::Server(server) = &mut self.side else { return None };
        let header = server.header.as_ref()?;
        let (first, rest) = contents.split_at_checked(stride).unwrap_or((contents, &[]));
        let mut whole = turn.buffer(header.len() + first.len());
        whole.extend_from_slice(header);
        whole.extend_from_slice(first);
        let moves = &self.shared.counts.to_servers;
        moves.calls.add(1);
        let mut outcome = Outcome::default();
        match server.socket.send_connected(&whole) {
            Ok(()) => {
                outcome.sent(first.len(), 1);
                moves.datagrams.add(1);
                server.header = None;
            }
            Err(error) => outcome.error(&error, 1),
        }
        Some((outcome, rest))
    }

    fn finish_up(&mut self, outcome: &Outcome, turn: &Turn<'_, ToFlow>) {
        self.account(Way::Up, outcome, turn);
        if outcome.refused {
            self.refused(turn);
        }
    }

    /// To the client.
    fn answer(&mut self, contents: &[u8], stride: usize, turn: &Turn<'_, ToFlow>) {
        let shared = &self.shared;
        let (to, socket) = ((self.ends.peer, shared.source(self.ends.asked)), &shared.socket);
        let outcome = send_all(
            (contents, stride),
            (socket, &shared.counts.to_clients),
            |train, segment| socket.try_send(&transmit(to, train, segment)),
            |datagram| socket.try_send(&transmit(to, datagram, None)).map(drop),
        );
        shared.counts.bytes_out.add(outcome.bytes);
        self.account(Way::Down, &outcome, turn);
    }

    /// From the server.
    fn receive(&mut self, turn: &mut Turn<'_, ToFlow>) -> Progress {
        if matches!(self.side, Side::Echo) {
            return Progress::Idle;
        }
        let shared = self.shared.clone();
        let mut room = shared.room.take();
        if room.is_empty() {
            room = vec![0; AT_ONCE * ROOM];
        }
        let progress = self.receive_into(&mut room, turn);
        shared.room.replace(room);
        progress
    }

    fn receive_into(&mut self, room: &mut [u8], turn: &mut Turn<'_, ToFlow>) -> Progress {
        for _ in 0..RECEIVES {
            let Side::Server(server) = &self.side else { return Progress::Idle };
            let mut metas = [RecvMeta::default(); AT_ONCE];
            let mut places = room.chunks_mut(ROOM);
            let mut slices: [IoSliceMut<'_>; AT_ONCE] =
                std::array::from_fn(|_| IoSliceMut::new(places.next().unwrap_or_default()));
            match server.socket.poll_recv(&mut turn.cx(), &mut slices, &mut metas) {
                Poll::Pending => return Progress::Idle,
                Poll::Ready(Err(error)) => {
                    if is_refusal(error.kind()) {
                        self.refused(turn);
                        return Progress::Idle;
                    }
                    tracing::debug!(listener = %self.shared.name, %error, "receive");
                }
                Poll::Ready(Ok(received)) => {
                    if received < AT_ONCE {
                        server.socket.emptied();
                    }
                    self.answered(turn);
                    self.answers(room, metas.get(..received).unwrap_or_default(), turn);
                }
            }
        }
        Progress::More
    }

    /// Whether nobody listens at the server, as far as that is known.
    fn listen_for_refusal(&mut self, turn: &Turn<'_, ToFlow>) {
        if let Side::Server(server) = &self.side
            && self.state.is_unanswered_after(WATCHED)
            && let Poll::Ready(error) = server.socket.poll_error(&mut turn.cx())
            && is_refusal(error.kind())
        {
            self.refused(turn);
        }
    }

    fn answered(&mut self, turn: &Turn<'_, ToFlow>) {
        if self.state.answered() {
            self.ticket.complete();
            if let Side::Server(server) = &self.side {
                server.picked.succeeded(turn.now());
            }
        }
    }

    /// What came by one system call goes on; what can be one train does as one.
    fn answers(&mut self, room: &[u8], metas: &[RecvMeta], turn: &mut Turn<'_, ToFlow>) {
        let datagrams = metas.iter().map(|meta| count(meta.len, meta.stride) as u64).sum();
        self.shared.counts.from_servers.one_call(datagrams);
        let joins = self.shared.socket.gso();
        let mut places = metas.iter().zip(room.chunks(ROOM)).peekable();
        while let Some((meta, place)) = places.next() {
            let mut joint = Joint::of(meta.len, meta.stride);
            let first = place.get(..meta.len).unwrap_or_default();
            let mut joined = |next: &RecvMeta| joins && joint.join(next.len, next.stride);
            let Some((next, place)) = places.next_if(|(next, _)| joined(next)) else {
                self.answer_within(first, meta.stride, turn);
                continue;
            };
            let second = place.get(..next.len).unwrap_or_default();
            turn.scratch(|turn, scratch| {
                let mut end = 0;
                let mut add = |part: &[u8]| {
                    if let Some(to) = scratch.get_mut(end..end + part.len()) {
                        to.copy_from_slice(part);
                        end += part.len();
                    }
                };
                add(first);
                add(second);
                while let Some((next, place)) = places.next_if(|(next, _)| joined(next)) {
                    add(place.get(..next.len).unwrap_or_default());
                }
                self.answer_within(scratch.get(..end).unwrap_or_default(), meta.stride, turn);
            });
        }
    }

    fn answer_within(&mut self, contents: &[u8], stride: usize, turn: &Turn<'_, ToFlow>) {
        if let Some(contents) = self.pass(Way::Down, contents, stride, turn) {
            self.answer(contents, stride, turn);
        }
    }

    /// The network says that nobody listens at the server.
    fn refused(&mut self, turn: &Turn<'_, ToFlow>) {
        if let Side::Server(server) = &self.side
            && self.state.end(turn.now()) != Some("refused")
        {
            server.picked.failed(turn.now());
            Counts::failed(turn, &server.upstream, "refused");
        }
        self.state.refused();
    }
}

/// How many datagrams these are, of which there may be none.
fn lost(contents: &[u8], stride: usize) -> u64 {
    contents.len().div_ceil(stride.max(1)) as u64
}

impl Protocol for Flow {
    type Msg = ToFlow;
    const KIND: &'static str = "udp_relay";

    fn traffic(&self) -> Traffic {
        let (up, down) = self.state.moved();
        Traffic { peer: Some(self.ends.peer), bytes_in: up.bytes, bytes_out: down.bytes }
    }

    fn size(m: &ToFlow) -> usize {
        let ToFlow::Send { contents, .. } = m;
        contents.capacity()
    }

    fn label(_: &ToFlow) -> &'static str {
        "datagrams"
    }

    fn started(&mut self, turn: &mut Turn<'_, ToFlow>) -> Result<(), Fault> {
        if matches!(self.side, Side::Echo) {
            self.answered(turn);
        }
        Ok(())
    }

    fn on(&mut self, m: ToFlow, turn: &mut Turn<'_, ToFlow>) -> Result<(), Fault> {
        let ToFlow::Send { contents, stride } = m;
        if self.state.end(turn.now()) == Some("refused") {
            self.shared.counts.dropped.add(turn, "server_unreachable", count(contents.len(), stride) as u64);
        } else {
            self.send(&contents, stride, turn);
        }
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, ToFlow>) -> Result<Progress, Fault> {
        Ok(self.receive(turn))
    }

    fn deadline(&self) -> Option<Instant> {
        self.state.deadline()
    }

    fn flush(&mut self, turn: &mut Turn<'_, ToFlow>) -> Result<Progress, Fault> {
        self.listen_for_refusal(turn);
        // Here and not at the deadline: what came in this turn has kept it.
        if let Some(end) = self.state.end(turn.now()) {
            self.why = Some(end);
            // What waits in the mailbox is dropped one by one, counted.
            turn.stop_when_empty();
        }
        Ok(Progress::Idle)
    }

    fn drain(&mut self, _: Instant, _: &mut Turn<'_, ToFlow>) {
        self.state.drain();
    }

    fn closed(&mut self, why: &Exit) {
        if self.why.is_none() {
            self.why = Some(match why {
                Exit::Normal => "stopped",
                Exit::Deadline => "drain_deadline",
                Exit::Fault(_) | Exit::Panic(_) => why.reason(),
            });
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // After a panic `closed` is not called: that is the one way here without a reason.
        let reason = self.why.unwrap_or("panic");
        self.shared.counts.tally.raise("connections_closed", &self.shared.name, reason);
        let (up, down) = self.state.moved();
        let took = clock::now().saturating_duration_since(self.opened);
        let server = match &self.side {
            Side::Server(server) => Some(server),
            Side::Echo => None,
        };
        tracing::info!(
            target: "access",
            listener = %self.shared.name,
            peer = %self.ends.peer,
            upstream = server.map(|server| tracing::field::display(&server.upstream)),
            server = server.map(|server| tracing::field::display(server.address)),
            datagrams_up = up.datagrams,
            bytes_up = up.bytes,
            datagrams_down = down.datagrams,
            bytes_down = down.bytes,
            ms = took.as_millis() as u64,
            reason,
            "relayed"
        );
    }
}

/// The header that tells a server who its client is.
pub(super) fn header(ends: &Ends, port: u16) -> Vec<u8> {
    Header::Proxied { source: ends.peer, destination: SocketAddr::new(ends.asked, port) }.encode_for_datagrams()
}
