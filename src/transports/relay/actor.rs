//! The actor of one relayed stream: moves bytes between two sockets as its `State` says, and decides nothing.
//!
//! What is read goes into a buffer that all actors of the arbiter share and is written to the other side at once; only
//! what that side did not take is kept. Before it reads, a direction writes what it kept until the socket takes no
//! more, so whatever it waits for wakes this actor. A stream that keeps up holds no buffer at all.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::codec::Header;
use super::dial::{Dial, Network, Wire, failure_of};
use super::forward::Forward;
use super::pipe::{Pipe, Plain};
use super::state::{Blame, Input, Next, RelaySettings, Side, State};
use crate::actors::{Counter, Exit, Fault, Place, Progress, Protocol, SpawnError, Spec, Tally, Traffic, Turn, clock};
use crate::transports::kit::admission::Ticket;
use crate::transports::kit::balance::Address;
use crate::transports::tcp::{Accepted, Never, OnAccept};

/// Bytes moved per direction and turn, at most: then others have their turn.
const MOVED_PER_TURN: usize = 128 << 10;
/// The memory lease moves in steps of this.
const LEASE_STEP: usize = 16 << 10;
/// Bytes read at once while memory is tight: as much may have to be kept.
const TIGHT_READ: usize = 4 << 10;
/// Bytes moved into a pipe at once.
const PIPE_READ: usize = 256 << 10;

/// Starts an actor for each connection of a listener.
#[derive(Debug)]
pub struct Connections {
    listener: Arc<str>,
    settings: Arc<RelaySettings>,
    network: Network,
    random: RandomState,
    count: u64,
}

impl Connections {
    /// For a listener of this name.
    #[must_use]
    pub fn new(listener: Arc<str>, settings: RelaySettings) -> Self {
        Self::through(Network::default(), listener, settings)
    }

    /// As [`new`](Self::new), to servers that this network reaches.
    #[must_use]
    pub fn through(network: Network, listener: Arc<str>, settings: RelaySettings) -> Self {
        Self { listener, settings: Arc::new(settings), network, random: RandomState::new(), count: 0 }
    }
}

impl OnAccept for Connections {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        let (listener, settings, network) = (self.listener.clone(), self.settings.clone(), self.network.clone());
        self.count += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count);
        let random = hasher.finish();
        if settings.frames.is_some() {
            let make = move || Forward::new(Relay::accepted(accepted, network, listener, settings, random));
            return turn.spawn(Place::LeastLoaded, Spec::default(), make).map(drop);
        }
        let make = move || Relay::accepted(accepted, network, listener, settings, random);
        turn.spawn(Place::LeastLoaded, Spec::default(), make).map(drop)
    }
}

/// The actor of one relayed stream, between any stream and what `D` opens.
pub struct Relay<C: Wire, D: Dial> {
    ends: Ends<C, D::Stream>,
    pipes: Pipes,
    dial: D,
    state: State,
    upstream_name: Arc<str>,
    listener: Arc<str>,
    peer: Option<SocketAddr>,
    ticket: Option<Ticket>,
    up: Counter,
    down: Counter,
    /// Once a pipe was used.
    spliced: Option<Counter>,
    /// Messages in and out, once there are any.
    messages: Option<[Counter; 2]>,
    tally: Option<Tally>,
    server: Option<Address>,
    opened: Instant,
    why: Option<&'static str>,
    leased: usize,
    /// The memory budget gave no more.
    tight: bool,
}

impl<C: Wire, D: Dial> fmt::Debug for Relay<C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("listener", &self.listener).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The two streams.
struct Ends<C, U> {
    /// The error of a stream that this thread's event loop did not take ends the actor in its first turn.
    client: io::Result<C>,
    upstream: Option<U>,
}

/// A pipe for each side to which bytes of the other are on their way.
#[derive(Default)]
struct Pipes {
    to_client: Option<Pipe>,
    to_upstream: Option<Pipe>,
}

impl Pipes {
    const fn to(&mut self, side: Side) -> &mut Option<Pipe> {
        match side {
            Side::Client => &mut self.to_client,
            Side::Upstream => &mut self.to_upstream,
        }
    }
}

impl<C: Wire, U: Wire> Ends<C, U> {
    /// One of them, if it is there. What is read and written goes another way: each kind is compiled for itself there.
    fn end(&self, side: Side) -> Option<&dyn Wire> {
        match side {
            Side::Client => self.client.as_ref().ok().map(|end| end as &dyn Wire),
            Side::Upstream => self.upstream.as_ref().map(|end| end as &dyn Wire),
        }
    }

    fn end_mut(&mut self, side: Side) -> Option<&mut dyn Wire> {
        match side {
            Side::Client => self.client.as_mut().ok().map(|end| end as &mut dyn Wire),
            Side::Upstream => self.upstream.as_mut().map(|end| end as &mut dyn Wire),
        }
    }

    fn plain(&self, side: Side) -> Option<Plain<'_>> {
        self.end(side)?.plain()
    }

    fn are_plain(&self) -> bool {
        self.plain(Side::Client).is_some() && self.plain(Side::Upstream).is_some()
    }

    fn read(&mut self, side: Side, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let answer = match side {
            Side::Client => self.client.as_mut().ok().map(|end| Pin::new(end).poll_read(cx, buffer)),
            Side::Upstream => self.upstream.as_mut().map(|end| Pin::new(end).poll_read(cx, buffer)),
        };
        answer.unwrap_or(Poll::Pending)
    }

    /// Never ready with nothing written.
    fn write(&mut self, side: Side, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let answer = match side {
            Side::Client => self.client.as_mut().ok().map(|end| Pin::new(end).poll_write(cx, bytes)),
            Side::Upstream => self.upstream.as_mut().map(|end| Pin::new(end).poll_write(cx, bytes)),
        };
        match answer {
            Some(Poll::Ready(Ok(0))) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Some(answer) => answer,
            None => Poll::Pending,
        }
    }

    fn shutdown(&mut self, side: Side, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = match side {
            Side::Client => self.client.as_mut().ok().map(|end| Pin::new(end).poll_shutdown(cx)),
            Side::Upstream => self.upstream.as_mut().map(|end| Pin::new(end).poll_shutdown(cx)),
        };
        answer.unwrap_or(Poll::Pending)
    }
}

impl Relay<TcpStream, Network> {
    /// The stream of a client that a listener accepted.
    pub fn accepted(
        accepted: Accepted,
        network: Network,
        listener: Arc<str>,
        settings: Arc<RelaySettings>,
        random: u64,
    ) -> Self {
        let Accepted { stream, peer, ticket } = accepted;
        let header = match settings.proxy_out.map(|_| stream.local_addr()) {
            Some(Ok(destination)) => Header::Proxied { source: peer, destination },
            Some(Err(_)) | None => Header::Local,
        };
        let mut relay = Self::make(TcpStream::from_std(stream), network, header, listener, settings, random);
        relay.comes_from(peer);
        relay.ticket = Some(ticket);
        relay
    }
}

impl<C: Wire, D: Dial> Relay<C, D> {
    /// A relay for one of the streams of a client's connection, which is let in as a whole.
    pub fn stream(
        client: C,
        peer: SocketAddr,
        dial: D,
        listener: Arc<str>,
        settings: Arc<RelaySettings>,
        random: u64,
    ) -> Self {
        let mut relay = Self::make(Ok(client), dial, Header::Local, listener, settings, random);
        relay.comes_from(peer);
        relay
    }

    /// A relay for a client that a listener accepted and whose stream something was taken off first.
    #[cfg(feature = "http")]
    pub(super) fn guest(
        client: C,
        (peer, ticket): (SocketAddr, Ticket),
        dial: D,
        header: Header,
        listener: Arc<str>,
        settings: Arc<RelaySettings>,
        random: u64,
    ) -> Self {
        let mut relay = Self::make(Ok(client), dial, header, listener, settings, random);
        relay.comes_from(peer);
        relay.ticket = Some(ticket);
        relay
    }

    /// A relay for a stream that is ready to use on this arbiter. `listener` is the scope of its counters.
    pub fn new(client: C, dial: D, listener: Arc<str>, settings: Arc<RelaySettings>, random: u64) -> Self {
        Self::make(Ok(client), dial, Header::Local, listener, settings, random)
    }

    fn comes_from(&mut self, peer: SocketAddr) {
        self.peer = Some(peer);
        self.state.comes_from(peer.ip());
    }

    fn make(
        client: io::Result<C>,
        dial: D,
        header: Header,
        listener: Arc<str>,
        settings: Arc<RelaySettings>,
        random: u64,
    ) -> Self {
        let opened = clock::now();
        Self {
            ends: Ends { client, upstream: None },
            pipes: Pipes::default(),
            dial,
            upstream_name: settings.upstream_name.clone(),
            state: State::new(settings, header, random, opened),
            listener,
            peer: None,
            ticket: None,
            up: Counter::default(),
            down: Counter::default(),
            spliced: None,
            messages: None,
            tally: None,
            server: None,
            opened,
            why: None,
            leased: 0,
            tight: false,
        }
    }

    /// Dials servers until one is connected, one is awaited, or there are no more.
    fn connect(&mut self, turn: &Turn<'_, Never>) {
        let now = turn.now();
        loop {
            if self.state.wants_dial() {
                self.ends.upstream = None;
                let Some(address) = self.state.dial(now) else { return };
                match self.dial.dial(&address) {
                    Ok(mut stream) => {
                        if self.state.header_out().is_some_and(|header| self.dial.goes_ahead(&mut stream, &header)) {
                            self.state.handle(Input::HeaderTaken, now);
                        }
                        self.ends.upstream = Some(stream);
                    }
                    Err(error) => self.connect_failed(&address, &error, now),
                }
                self.server = Some(address);
            } else if self.state.connecting()
                && let Some(stream) = &mut self.ends.upstream
            {
                match self.dial.poll_connected(stream, &mut turn.cx()) {
                    Poll::Pending => {
                        if self.dial.is_shaking(stream) {
                            self.state.handle(Input::Accepted, now);
                        }
                        return;
                    }
                    Poll::Ready(Ok(())) => {
                        self.state.handle(Input::Connected, now);
                        return;
                    }
                    Poll::Ready(Err(error)) => {
                        if let Some(address) = self.server.clone() {
                            self.connect_failed(&address, &error, now);
                        }
                    }
                }
            } else {
                return;
            }
        }
    }

    fn connect_failed(&mut self, address: &Address, error: &io::Error, now: Instant) {
        tracing::debug!(upstream = %self.upstream_name, ?address, %error, "not connected");
        self.state.handle(Input::ConnectFailed(failure_of(error)), now);
    }

    /// Moves what one side sends to the other until one of them has no more or takes no more.
    fn pump(&mut self, from: Side, turn: &mut Turn<'_, Never>) -> Progress {
        let progress = self.pump_on(from, turn);
        if self.state.pipe_is_empty(from.other()) {
            // Back to the others of this arbiter, or closed if it was not emptied.
            *self.pipes.to(from.other()) = None;
        }
        progress
    }

    fn pump_on(&mut self, from: Side, turn: &mut Turn<'_, Never>) -> Progress {
        let (to, now) = (from.other(), turn.now());
        let mut left = MOVED_PER_TURN;
        loop {
            match self.state.poll(to) {
                Next::Write(bytes) => match self.ends.write(to, &mut turn.cx(), bytes) {
                    Poll::Pending => return Progress::Idle,
                    Poll::Ready(Ok(count)) => self.state.handle(Input::Written(to, count), now),
                    Poll::Ready(Err(error)) => self.state.handle(write_failed(to, &error), now),
                },
                Next::Splice(count) => match self.empty_pipe(to, count, turn) {
                    Poll::Pending => return Progress::Idle,
                    Poll::Ready(Ok(count)) => self.state.handle(Input::Unpiped(to, count), now),
                    Poll::Ready(Err(error)) => self.state.handle(write_failed(to, &error), now),
                },
                Next::Finish => match self.ends.shutdown(to, &mut turn.cx()) {
                    Poll::Pending => return Progress::Idle,
                    Poll::Ready(Ok(())) => self.state.handle(Input::FinSent(to), now),
                    Poll::Ready(Err(error)) => self.state.handle(write_failed(to, &error), now),
                },
                Next::Wait if !self.state.wants_read(from) => return Progress::Idle,
                Next::Wait if left == 0 => return Progress::More,
                Next::Wait => match self.fill_pipe(from, turn).or_else(|| self.pass(from, turn)) {
                    None => return Progress::Idle,
                    Some(count) => left = left.saturating_sub(count),
                },
            }
        }
    }

    /// Moves what one side sent into a pipe, if that is worth it. `None`: read it.
    fn fill_pipe(&mut self, from: Side, turn: &Turn<'_, Never>) -> Option<usize> {
        if !self.state.splices(from) || !self.ends.are_plain() {
            return None;
        }
        let slot = self.pipes.to(from.other());
        if slot.is_none() {
            *slot = Pipe::take();
        }
        let (Some(pipe), Some(plain)) = (slot, self.ends.plain(from)) else {
            self.state.handle(Input::NoPipe(from), turn.now());
            turn.counter("relay_no_pipe", &self.listener, "").add(1);
            return None;
        };
        let most = if self.tight { TIGHT_READ } else { PIPE_READ };
        match pipe.fill(plain, most, &turn.cx()) {
            Poll::Ready(Ok(0)) => self.state.handle(Input::Eof(from), turn.now()),
            Poll::Ready(Ok(count)) => {
                self.state.handle(Input::Piped(from, count), turn.now());
                let spliced = || turn.counter("relay_bytes_spliced", &self.listener, "");
                self.spliced.get_or_insert_with(spliced).add(count as u64);
                return Some(count);
            }
            // What is wrong, if anything, the read will tell.
            Poll::Ready(Err(_)) | Poll::Pending => return None,
        }
        Some(0)
    }

    fn empty_pipe(&mut self, to: Side, count: usize, turn: &Turn<'_, Never>) -> Poll<io::Result<usize>> {
        match (self.pipes.to(to), self.ends.plain(to)) {
            (Some(pipe), Some(plain)) => pipe.empty(plain, count, &turn.cx()),
            (None, _) | (_, None) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Reads one side once and writes what came to the other at once. Says how much came, if anything did.
    fn pass(&mut self, from: Side, turn: &mut Turn<'_, Never>) -> Option<usize> {
        let (to, now) = (from.other(), turn.now());
        let most = if self.tight { TIGHT_READ } else { usize::MAX };
        let Self { ends, state, .. } = self;
        turn.scratch(|turn, scratch| {
            let most = most.min(scratch.len());
            let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
            match ends.read(from, &mut turn.cx(), &mut buffer) {
                Poll::Pending => return None,
                Poll::Ready(Err(error)) => {
                    state.handle(read_failed(from, &error), now);
                    return Some(0);
                }
                Poll::Ready(Ok(())) => {}
            }
            let bytes: &[u8] = buffer.filled();
            if bytes.is_empty() {
                state.handle(Input::Eof(from), now);
                return Some(0);
            }
            let written = if state.passes(from) { ends.write(to, &mut turn.cx(), bytes) } else { Poll::Pending };
            let taken = match written {
                Poll::Ready(Ok(count)) => count,
                Poll::Ready(Err(error)) => {
                    state.handle(write_failed(to, &error), now);
                    0
                }
                Poll::Pending => 0,
            };
            if taken < bytes.len() {
                state.lend(to, || turn.buffer(bytes.len() - taken));
            }
            state.handle(Input::Bytes { from, bytes, taken }, now);
            Some(bytes.len())
        })
    }

    /// Counts what moved and follows what the buffers take of the memory budget.
    fn account(&mut self, turn: &Turn<'_, Never>) {
        let moved = self.state.take_moved();
        self.up.add(moved.up);
        self.down.add(moved.down);
        for reason in self.state.take_failures() {
            turn.counter("upstream_failures", &self.upstream_name, reason).add(1);
        }
        self.state.free_unused();
        let (messages_in, messages_out) = self.state.take_messages();
        if messages_in + messages_out > 0 {
            let counters = || ["messages_in", "messages_out"].map(|name| turn.counter(name, &self.listener, ""));
            let [came, went] = self.messages.get_or_insert_with(counters);
            came.add(messages_in);
            went.add(messages_out);
        }
        let wanted = self.state.own_bytes().next_multiple_of(LEASE_STEP);
        let Some(ticket) = &mut self.ticket else { return };
        if self.state.is_complete() {
            ticket.complete();
        }
        if wanted != self.leased {
            let lease = ticket.lease();
            let whole = lease.bytes() - self.leased + wanted;
            self.leased = wanted;
            self.tight = lease.resize(whole).is_err();
            if self.tight {
                // What is held is held.
                lease.force(whole);
            }
        }
    }

    /// Cuts what has not ended in order.
    fn abort(&mut self) {
        for side in [Side::Client, Side::Upstream] {
            let as_one = self.ends.end(side).is_none_or(Wire::ends_as_one);
            if self.state.aborts(side, as_one)
                && let Some(end) = self.ends.end_mut(side)
            {
                end.abort();
            }
        }
    }
}

/// Only TLS tells an end that is none, and bytes that mean nothing.
fn read_failed(from: Side, error: &io::Error) -> Input<'static> {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        Input::Truncated(from)
    } else if error.kind() == io::ErrorKind::InvalidData {
        Input::BrokeTls(from)
    } else {
        Input::Reset(from)
    }
}

/// A reset is told once, to whoever reads or writes first; the other then sees an end like any other. A side that had
/// ended in order before it was written to answers with a broken pipe.
fn write_failed(to: Side, error: &io::Error) -> Input<'static> {
    if error.kind() == io::ErrorKind::ConnectionReset { Input::WriteReset(to) } else { Input::WriteFailed(to) }
}

impl<C: Wire + 'static, D: Dial> Protocol for Relay<C, D> {
    type Msg = Never;
    const KIND: &'static str = "relay";

    fn started(&mut self, turn: &mut Turn<'_, Never>) -> Result<(), Fault> {
        self.up = turn.counter("relay_bytes_up", &self.listener, "");
        self.down = turn.counter("relay_bytes_down", &self.listener, "");
        self.tally = Some(turn.tally());
        match &self.ends.client {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::local("no_event_loop", error.to_string())),
        }
    }

    fn on(&mut self, m: Never, _: &mut Turn<'_, Never>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        let mut progress = Progress::Idle;
        loop {
            self.connect(turn);
            for side in [Side::Client, Side::Upstream] {
                if self.pump(side, turn) == Progress::More {
                    progress = Progress::More;
                }
            }
            // The client's PROXY header may just have become whole.
            if !self.state.wants_dial() {
                return Ok(progress);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.state.deadline()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, Never>) -> Result<(), Fault> {
        self.state.handle(Input::Deadline, turn.now());
        if self.state.take_probe() {
            for side in [Side::Client, Side::Upstream] {
                if !self.state.wants_read(side) && self.ends.end(side).is_some_and(Wire::is_broken) {
                    self.state.handle(Input::Reset(side), turn.now());
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        self.account(turn);
        for side in [Side::Client, Side::Upstream] {
            if self.state.take_refused(side)
                && let Some(end) = self.ends.end_mut(side)
            {
                end.refuse();
            }
        }
        let Some(end) = self.state.end() else { return Ok(Progress::Idle) };
        self.why = Some(end.reason);
        self.abort();
        match end.blame {
            Blame::Nobody => {
                turn.stop();
                Ok(Progress::Idle)
            }
            // Who it was stands in the access log.
            Blame::Peer => Err(Fault::peer(end.reason, "")),
        }
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, Never>) {
        self.state.handle(Input::Drain, turn.now());
    }

    fn closed(&mut self, why: &Exit) {
        if self.why.is_none() {
            self.why = Some(match why {
                Exit::Normal => "stopped",
                Exit::Deadline => "drain_deadline",
                Exit::Fault(_) | Exit::Panic(_) => why.reason(),
            });
            self.abort();
        }
    }

    fn held(&self) -> usize {
        self.state.held()
    }

    fn traffic(&self) -> Traffic {
        let moved = self.state.delivered();
        Traffic { peer: self.peer, bytes_in: moved.up, bytes_out: moved.down }
    }
}

impl<C: Wire, D: Dial> Drop for Relay<C, D> {
    fn drop(&mut self) {
        // After a panic `closed` is not called: that is the one way here without a reason.
        let reason = self.why.unwrap_or("panic");
        if let Some(tally) = &self.tally {
            tally.raise("connections_closed", &self.listener, reason);
        }
        let moved = self.state.delivered();
        let took = clock::now().saturating_duration_since(self.opened);
        tracing::info!(
            target: "access",
            listener = %self.listener,
            peer = self.state.source().or(self.peer).map(tracing::field::display),
            upstream = %self.upstream_name,
            server = self.server.as_ref().map(tracing::field::display),
            bytes_up = moved.up,
            bytes_down = moved.down,
            ms = took.as_millis() as u64,
            reason,
            "relayed"
        );
    }
}
