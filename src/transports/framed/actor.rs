//! The actor of one framed connection: moves bytes between its socket and its `State`, and decides nothing.
//!
//! It polls its own stream: readiness is an input of a turn. Reads go into a buffer that all connections of the
//! arbiter share, complete messages are answered straight out of it into a buffer of the arbiter's pools, and one
//! turn's output leaves in one write. An idle connection holds no buffer at all.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::rooms_words::Batch;
use super::state::{Blame, Close, Input, Next, Service, Settings, State};
use crate::actors::{Counter, Exit, Fault, Place, Progress, Protocol, SpawnError, Spec, Tally, Traffic, Turn, clock};
use crate::memory::Level;
use crate::transports::kit::admission::Ticket;
use crate::transports::tcp::{Accepted, Never, OnAccept};

/// Bytes read per turn, at most: then others have their turn.
const READ_PER_TURN: usize = 256 << 10;
/// Bytes written per turn, at most.
const WRITE_PER_TURN: usize = 1 << 20;
/// The memory lease moves in steps of this, so that the budget is not touched per message.
const LEASE_STEP: usize = 16 << 10;
/// Bytes read per turn while memory is tight, by a connection that holds nothing.
const TIGHT_READ: usize = 4 << 10;
/// A connection that got no more credit of the memory budget is not read for this long.
const CREDIT_PAUSE: Duration = Duration::from_millis(50);

/// What others may tell a framed connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FramedMsg {
    /// Send this message to the peer. If it does not fit into the outbound bytes, the connection's policy decides.
    Send(Bytes),
    /// Send these, of which others get the same.
    Batch(Batch),
    /// End it as a slow reader: its mailbox is full.
    Slow,
}

/// Starts an actor for each connection of a listener; `service` makes what answers one connection's messages.
#[derive(Debug)]
pub struct Connections<F> {
    listener: Arc<str>,
    settings: Arc<Settings>,
    service: F,
}

impl<F> Connections<F> {
    /// For a listener of this name.
    pub fn new(listener: Arc<str>, settings: Settings, service: F) -> Self {
        Self { listener, settings: Arc::new(settings), service }
    }
}

impl<V: Service + Send + 'static, F: Fn() -> V + 'static> OnAccept for Connections<F> {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        let (listener, settings, service) = (self.listener.clone(), self.settings.clone(), (self.service)());
        let spec = Spec::default().inbox(1_024, self.settings.outbound.max(1));
        turn.spawn(Place::LeastLoaded, spec, move || Connection::accepted(accepted, listener, settings, service))
            .map(drop)
    }
}

/// What one connection counts, on its own arbiter.
#[derive(Debug, Default)]
struct Counters {
    messages_in: Counter,
    messages_out: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
}

/// The actor of one framed connection over any stream.
pub struct Connection<S, V> {
    /// The error of a stream that this thread's event loop did not take ends the actor in its first turn.
    stream: io::Result<S>,
    state: State,
    pub(super) service: V,
    listener: Arc<str>,
    peer: Option<SocketAddr>,
    /// That came and went.
    bytes: [u64; 2],
    ticket: Option<Ticket>,
    counters: Counters,
    tally: Option<Tally>,
    why: Option<&'static str>,
    leased: usize,
    /// Reading waits for the peer to take its answers.
    held_back: bool,
    /// Reading waits for the memory budget.
    resume_at: Option<Instant>,
}

impl<S, V> fmt::Debug for Connection<S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("listener", &self.listener).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<V: Service> Connection<tokio::net::TcpStream, V> {
    /// A connection that a listener accepted.
    pub fn accepted(accepted: Accepted, listener: Arc<str>, settings: Arc<Settings>, service: V) -> Self {
        let Accepted { stream, peer, ticket } = accepted;
        let mut connection = Self::make(tokio::net::TcpStream::from_std(stream), listener, settings, service);
        connection.peer = Some(peer);
        connection.ticket = Some(ticket);
        connection
    }
}

impl<S, V: Service> Connection<S, V> {
    /// A connection over a stream that is ready to use on this arbiter. `listener` is the scope of its counters.
    pub fn new(stream: S, listener: Arc<str>, settings: Arc<Settings>, service: V) -> Self {
        Self::make(Ok(stream), listener, settings, service)
    }

    fn make(stream: io::Result<S>, listener: Arc<str>, settings: Arc<Settings>, service: V) -> Self {
        Self {
            stream,
            state: State::new(settings, clock::now()),
            service,
            listener,
            peer: None,
            bytes: [0; 2],
            ticket: None,
            counters: Counters::default(),
            tally: None,
            why: None,
            leased: 0,
            held_back: false,
            resume_at: None,
        }
    }

    #[cfg(test)]
    pub(super) fn hold(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// Whether it ends as soon as all is written, and nobody is to blame.
    pub(super) const fn is_ending(&self) -> bool {
        self.state.is_ending()
    }

    /// Counts what moved and follows what the buffers take of the memory budget.
    fn account(&mut self, turn: &Turn<'_, FramedMsg>) {
        let moved = self.state.take_moved();
        self.counters.messages_in.add(moved.messages_in);
        self.counters.messages_out.add(moved.messages_out);
        self.counters.bytes_in.add(moved.bytes_in);
        self.counters.bytes_out.add(moved.bytes_out);
        self.bytes = [self.bytes[0].wrapping_add(moved.bytes_in), self.bytes[1].wrapping_add(moved.bytes_out)];
        if moved.dropped > 0 {
            turn.counter("messages_dropped", &self.listener, "slow_reader").add(moved.dropped);
        }
        let Some(ticket) = &mut self.ticket else { return };
        if moved.messages_in > 0 {
            ticket.complete();
        }
        let wanted = (self.state.own_bytes() + self.service.held()).next_multiple_of(LEASE_STEP);
        if wanted != self.leased {
            let lease = ticket.lease();
            let whole = lease.bytes() - self.leased + wanted;
            self.leased = wanted;
            if lease.resize(whole).is_err() {
                // What is held is held, but nothing more is read until there is room again.
                lease.force(whole);
                self.resume_at = Some(clock::later(turn.now(), CREDIT_PAUSE));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, V: Service> Connection<S, V> {
    fn read(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Progress {
        let now = turn.now();
        if self.resume_at.is_some() {
            return Progress::Idle;
        }
        let mut left = READ_PER_TURN;
        if let Some(ticket) = &mut self.ticket
            && ticket.lease().level() != Level::Normal
        {
            if self.state.held() > 0 {
                self.resume_at = Some(clock::later(now, CREDIT_PAUSE));
                return Progress::Idle;
            }
            left = TIGHT_READ;
        }
        while self.state.wants_read() {
            if left == 0 {
                return Progress::More;
            }
            let Ok(stream) = &mut self.stream else { break };
            let (state, service) = (&mut self.state, &mut self.service);
            let read = turn.scratch(|turn, scratch| {
                let most = left.min(state.read_at_most(scratch.len()));
                let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
                match Pin::new(&mut *stream).poll_read(&mut turn.cx(), &mut buffer) {
                    Poll::Pending => None,
                    Poll::Ready(Err(_)) => {
                        state.handle(Input::Reset, now, service);
                        Some(0)
                    }
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                        state.handle(Input::Eof, now, service);
                        Some(0)
                    }
                    Poll::Ready(Ok(())) => {
                        state.read(buffer.filled(), now, service, |bytes| turn.buffer(bytes));
                        Some(buffer.filled().len())
                    }
                }
            });
            match read {
                Some(0) => break,
                Some(count) => {
                    left = left.saturating_sub(count);
                    // Answers to one read fit into one buffer of the pools, those to the next as well would not.
                    let _rest_waits = self.write_once(turn);
                }
                None => {
                    if self.state.wants_last_read() {
                        self.state.handle(Input::ReadDone, now, &mut self.service);
                    }
                    break;
                }
            }
        }
        Progress::Idle
    }

    /// Writes what waits, if anything, as far as the socket takes it at once. `None`: nothing waits, or it takes nothing.
    fn write_once(&mut self, turn: &Turn<'_, FramedMsg>) -> Option<usize> {
        let (Ok(stream), Next::Write(bytes)) = (&mut self.stream, self.state.poll()) else { return None };
        let (input, count) = match Pin::new(stream).poll_write(&mut turn.cx(), bytes) {
            Poll::Pending => return None,
            Poll::Ready(Ok(count)) => (Input::Written(count), count),
            Poll::Ready(Err(_)) => (Input::Reset, 0),
        };
        self.state.handle(input, turn.now(), &mut self.service);
        Some(count)
    }

    /// Writes what the state has until it has no more or the socket takes no more.
    fn write(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<Progress, Fault> {
        let now = turn.now();
        let mut left = WRITE_PER_TURN;
        loop {
            let Ok(stream) = &mut self.stream else { return Ok(Progress::Idle) };
            match self.state.poll() {
                Next::Wait => return Ok(Progress::Idle),
                Next::Write(_) if left == 0 => return Ok(Progress::More),
                Next::Write(_) => match self.write_once(turn) {
                    Some(count) => left = left.saturating_sub(count),
                    None => return Ok(Progress::Idle),
                },
                Next::ShutdownWrite => match Pin::new(stream).poll_shutdown(&mut turn.cx()) {
                    Poll::Pending => return Ok(Progress::Idle),
                    Poll::Ready(Ok(())) => self.state.write_is_shut(),
                    Poll::Ready(Err(_)) => self.state.handle(Input::Reset, now, &mut self.service),
                },
                Next::Close(close) => {
                    self.why = Some(close.reason);
                    return match close.blame {
                        Blame::Nobody => {
                            turn.stop();
                            Ok(Progress::Idle)
                        }
                        Blame::Peer => Err(fault_of(close, self.peer)),
                    };
                }
            }
        }
    }
}

fn fault_of(close: Close, peer: Option<SocketAddr>) -> Fault {
    let who = peer.map_or_else(String::new, |peer| format!("peer {peer}"));
    let what = close.frame.map_or_else(String::new, |frame| format!(" {frame}"));
    Fault::peer(close.reason, who + &what)
}

impl<S, V> Protocol for Connection<S, V>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    V: Service + 'static,
{
    type Msg = FramedMsg;
    const KIND: &'static str = "framed";

    fn size(m: &FramedMsg) -> usize {
        match m {
            FramedMsg::Send(body) => body.len(),
            FramedMsg::Batch(batch) => batch.bytes(),
            FramedMsg::Slow => 0,
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
        self.counters = Counters {
            messages_in: turn.counter("messages_in", &self.listener, ""),
            messages_out: turn.counter("messages_out", &self.listener, ""),
            bytes_in: turn.counter("bytes_in", &self.listener, ""),
            bytes_out: turn.counter("bytes_out", &self.listener, ""),
        };
        self.tally = Some(turn.tally());
        match &self.stream {
            Ok(_) => {}
            Err(error) => return Err(Fault::local("no_event_loop", error.to_string())),
        }
        Ok(())
    }

    fn on(&mut self, m: FramedMsg, turn: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
        match m {
            FramedMsg::Send(body) => {
                self.state.lend(|| turn.buffer(body.len()));
                self.state.handle(Input::Push(&body), turn.now(), &mut self.service);
            }
            FramedMsg::Batch(batch) => {
                self.state.lend(|| turn.buffer(batch.bytes()));
                for body in batch.bodies(turn.mail().id()) {
                    if !self.state.fits(body.len()) && !self.is_ending() {
                        // Slow is a peer that takes too little, not one that is sent much at once.
                        self.write(turn)?;
                    }
                    self.state.handle(Input::Push(body), turn.now(), &mut self.service);
                }
            }
            FramedMsg::Slow => self.state.handle(Input::Slow, turn.now(), &mut self.service),
        }
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<Progress, Fault> {
        Ok(self.read(turn))
    }

    fn deadline(&self) -> Option<Instant> {
        match (self.state.deadline(), self.resume_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (at, None) | (None, at) => at,
        }
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<(), Fault> {
        self.resume_at = self.resume_at.filter(|at| *at > turn.now());
        self.state.handle(Input::Deadline, turn.now(), &mut self.service);
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, FramedMsg>) -> Result<Progress, Fault> {
        let written = self.write(turn);
        // Taking answers may have made room to read again: the readiness seen before must not be forgotten.
        self.state.free_unused();
        self.account(turn);
        let progress = written?;
        if self.state.wants_read() && std::mem::replace(&mut self.held_back, false) {
            return Ok(Progress::More);
        }
        self.held_back = !self.state.wants_read();
        Ok(progress)
    }

    fn drain(&mut self, by: Instant, turn: &mut Turn<'_, FramedMsg>) {
        self.state.handle(Input::Drain(by), turn.now(), &mut self.service);
    }

    fn closed(&mut self, why: &Exit) {
        if self.why.is_none() {
            self.why = Some(if *why == Exit::Normal { "stopped" } else { why.reason() });
        }
    }

    fn held(&self) -> usize {
        self.state.held() + self.service.held()
    }

    fn traffic(&self) -> Traffic {
        let [bytes_in, bytes_out] = self.bytes;
        Traffic { peer: self.peer, bytes_in, bytes_out }
    }
}

impl<S, V> Drop for Connection<S, V> {
    fn drop(&mut self) {
        // After a panic `closed` is not called: that is the one way here without a reason.
        let reason = self.why.unwrap_or("panic");
        if let Some(tally) = &self.tally {
            tally.raise("connections_closed", &self.listener, reason);
        }
        tracing::debug!(listener = %self.listener, peer = ?self.peer, reason, "connection closed");
    }
}
