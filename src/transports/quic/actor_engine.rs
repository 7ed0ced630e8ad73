//! One QUIC connection and everything that belongs to it alone: quiche's state, the streams, what waits to be sent.
//! Owned by the connection's actor and reachable by nobody else.
//!
//! It is the [`Session`] that applications see. What it learns is queued as events, which the actor hands out one by
//! one, so that no call comes back into an application that is in the midst of one.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::actor_ends::Silent;
use super::actor_paths::Paths;
use super::actor_stops::Stops;
use super::actor_streams::{Receive, SendSide, Stream, Streams};
use super::handle::Origin;
use super::messages::SendShared;
use super::session::{Code, End, Event, Role, Session, StreamError, StreamId, StreamKind, Who};
use super::settings::{QUICHE_DATAGRAMS, Transport};
use super::state_credit::Credit;
use super::state_datagrams::Datagrams;
use super::state_streams::{Cancelled, Priority, Sending};
use super::state_unread::Unread;
use crate::actors::Reply;
use crate::actors::clock::later;

/// Streams of which news are taken in one turn, at most.
const NEWS: usize = 1_024;
/// Streams that QUIC may take nothing from before a feed gives up: then it is the connection that is held back.
const MISSES: usize = 8;

/// Bytes that may be handed to QUIC as they are written, at most, if its congestion window takes them: what is longer
/// waits for its turn.
const PASSED: usize = 16 << 10;
/// How long an end alone waits for a congestion window with room. It is in no window of flow control.
const END_PATIENCE: Duration = Duration::from_millis(100);
/// Finished streams that are remembered before it is looked which of them were acknowledged.
const LEAVING: usize = 64;

/// Buffers for quiche that are not copied.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedBytes;

impl quiche::BufFactory for SharedBytes {
    type Buf = Bytes;
    type DgramBuf = Bytes;

    fn buf_from_slice(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }

    fn dgram_buf_from_slice(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }
}

/// quiche's connection, as it is used here.
pub(super) type Quic = quiche::Connection<SharedBytes>;

/// Somebody who waits for a write to be taken.
pub(super) type Done = Reply<Result<(), StreamError>>;

/// What became of datagrams that came. QUIC drops the oldest of those that nobody reads, and says nothing.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) read: usize,
    pub(super) dropped: usize,
    /// QUIC had as many as it keeps since this was last looked at.
    pub(super) full: bool,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Handshaking,
    Open,
    /// No new streams; closed when the last is over.
    Draining,
    /// Its end was stated.
    Ended,
}

impl Phase {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Handshaking => "handshaking",
            Self::Open => "open",
            Self::Draining => "draining",
            Self::Ended => "closing",
        }
    }
}

/// See the top of the file.
pub(super) struct Engine {
    pub(super) quic: Box<Quic>,
    pub(super) settings: Arc<Transport>,
    pub(super) role: Role,
    pub(super) arbiter: usize,
    /// The time at which this turn began.
    pub(super) now: Instant,
    pub(super) born: Instant,
    pub(super) phase: Phase,
    pub(super) events: VecDeque<Event>,
    /// Stated once.
    pub(super) end: Option<End>,
    pub(super) credit: Arc<Credit>,
    pub(super) datagrams: Datagrams,
    pub(super) sending: Sending<Done>,
    pub(super) streams: Streams,
    /// Streams whose last write was refused.
    pub(super) wanting: BTreeSet<StreamId>,
    /// Kinds of streams of which the last `open` was refused.
    pub(super) unopened: Vec<StreamKind>,
    pub(super) next: [u64; 2],
    /// Bytes were taken since this was last looked at: credit is free.
    pub(super) freed: bool,
    /// Datagrams were announced and not all read.
    pub(super) announced: bool,
    pub(super) received: Received,
    /// Streams whose end is on its way and was not acknowledged when last looked at.
    leaving: Vec<StreamId>,
    look_at: usize,
    pub(super) silent: Silent,
    pub(super) stops: Stops,
    pub(super) paths: Paths,
    pub(super) unread: Unread,
    /// The peer has given up streams, and nobody has looked which.
    pub(super) reset: bool,
    /// Ends without data to go with, until a packet can take them, and until when they wait for that.
    ends: VecDeque<(StreamId, Instant)>,
    /// Turns of sending that have begun, from 1 on.
    sends: u64,
    /// Packets have come in this turn.
    pub(super) heard: bool,
    /// Paths of a client that were tried, and whether the peer answered; taken in each turn.
    pub(super) proved: Vec<(SocketAddr, SocketAddr, bool)>,
    /// What handles are made of, once it is established.
    pub(super) origin: Option<Origin>,
}

impl Engine {
    pub(super) fn new(quic: Box<Quic>, settings: Arc<Transport>, role: Role, arbiter: usize, now: Instant) -> Self {
        let bit = u64::from(role == Role::Server);
        Self {
            quic,
            role,
            arbiter,
            now,
            born: now,
            phase: Phase::Handshaking,
            events: VecDeque::new(),
            end: None,
            credit: Arc::new(Credit::new(settings.credit)),
            datagrams: Datagrams::new(settings.datagrams),
            sending: Sending::default(),
            streams: Streams::default(),
            wanting: BTreeSet::new(),
            unopened: Vec::new(),
            next: [bit, 2 + bit],
            freed: false,
            announced: false,
            received: Received::default(),
            leaving: Vec::new(),
            look_at: LEAVING,
            silent: Silent::default(),
            stops: Stops::default(),
            paths: Paths::default(),
            unread: Unread::default(),
            reset: false,
            ends: VecDeque::new(),
            sends: 1,
            heard: false,
            proved: Vec::new(),
            origin: None,
            settings,
        }
    }

    /// How often the other end is to be asked whether it is there: thrice in the time after which it counts as gone, at
    /// least, and that is the smaller one of both ends (RFC 9000, section 10.1).
    pub(super) fn keep_alive(&self) -> Option<Duration> {
        let every = self.settings.keep_alive?;
        let theirs = self.quic.peer_transport_params().map_or(0, |theirs| theirs.max_idle_timeout);
        let both = [Duration::from_millis(theirs), self.settings.idle_timeout];
        let idle = both.into_iter().filter(|idle| !idle.is_zero()).min();
        Some(idle.map_or(every, |idle| every.min(idle / 3)))
    }

    /// Whether nothing is left to be delivered: no stream is open, and all that was finished was acknowledged.
    pub(super) fn is_delivered(&mut self) -> bool {
        self.streams.is_empty() && !self.is_leaving()
    }

    /// Whether the end of a stream that was finished here is not acknowledged yet.
    pub(super) fn is_leaving(&mut self) -> bool {
        self.look_for_leaving();
        !self.leaving.is_empty()
    }

    pub(super) fn look_for_leaving(&mut self) {
        let quic = &mut self.quic;
        // QUIC forgets a stream when its last byte is acknowledged, and has no capacity to tell of from then on.
        self.leaving.retain(|stream| quic.stream_capacity(stream.0).is_ok());
        // QUIC bounds the streams that are open; to look costs a constant share of what was finished since.
        self.look_at = (self.leaving.len() * 2).max(LEAVING);
    }

    /// Bytes held for this connection.
    pub(super) const fn held(&self) -> usize {
        self.sending.bytes() + self.datagrams.bytes()
    }

    /// What handles see of a stream that may be written, if there are any.
    pub(super) fn send_shared(&self, stream: StreamId) -> Option<Arc<SendShared>> {
        self.streams.get(&stream)?.send.as_ref()?.shared().cloned()
    }

    /// What a handle sees of a stream.
    pub(super) fn share(&mut self, stream: StreamId) -> Option<Arc<SendShared>> {
        self.streams.get_mut(&stream)?.share()
    }

    /// Whether this end may write on a stream.
    pub(super) fn is_writable(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| s.send.is_some())
    }

    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.sending.deadline()
    }

    /// Takes up what QUIC has learnt from the packets of this turn. True if there may be more.
    pub(super) fn learn(&mut self) -> bool {
        if self.phase == Phase::Handshaking && self.quic.is_established() {
            self.phase = Phase::Open;
            self.note_path();
            self.events.push_back(Event::Connected);
        }
        if self.phase == Phase::Ended || self.phase == Phase::Handshaking {
            return false;
        }
        let mut left = NEWS;
        while left > 0
            && let Some(id) = self.quic.stream_readable_next()
        {
            left -= 1;
            let stream = StreamId(id);
            if !self.streams.contains_key(&stream) {
                if stream.opener() == self.role {
                    continue;
                }
                self.add(stream, Priority::default());
                self.events.push_back(Event::Opened(stream));
            }
            self.note_unread(stream, true);
            self.events.push_back(Event::Readable(stream));
        }
        // Without anything held back the marks may stay, and should: by them quiche keeps a stream that was stopped.
        while self.sending.is_held_back()
            && let Some(id) = self.quic.stream_writable_next()
        {
            self.sending.unblock(id);
        }
        self.look_for_silent_ends();
        self.look_for_stopped();
        self.look_at_paths();
        self.ask_again();
        self.ask_left_paths();
        if self.quic.dgram_recv_queue_len() > 0 && !std::mem::replace(&mut self.announced, true) {
            self.events.push_back(Event::Datagrams);
        }
        for kind in std::mem::take(&mut self.unopened) {
            if self.left(kind) > 0 {
                self.events.push_back(Event::Openable(kind));
            } else {
                self.unopened.push(kind);
            }
        }
        left == 0
    }

    /// Streams of a kind that may be opened now.
    pub(super) fn left(&self, kind: StreamKind) -> u64 {
        match kind {
            StreamKind::Bidirectional => self.quic.peer_streams_left_bidi(),
            StreamKind::Unidirectional => self.quic.peer_streams_left_uni(),
        }
    }

    /// States the end, if it has come.
    pub(super) fn notice_end(&mut self) {
        if self.end.is_some() {
            return;
        }
        let gone = self.quic.is_closed() || self.quic.is_draining();
        let end = if let Some(error) = self.quic.peer_error().filter(|_| gone) {
            let calm = error.is_app || error.error_code == 0;
            Some(ended(Who::Peer, error, if calm { "peer_closed" } else { "peer_error" }))
        } else if let Some(error) = self.quic.local_error() {
            // Only this file closes, and it states the end itself: this one is quiche's answer to a peer's mistake.
            Some(ended(Who::Local, error, "protocol_error"))
        } else if self.quic.is_closed() {
            // Servers have tokens for resets, and clients none.
            let reason = match (self.quic.is_timed_out(), self.role) {
                (true, _) => "idle",
                (false, Role::Client) => "reset",
                (false, Role::Server) => "no_path",
            };
            Some(End { who: Who::Nobody, code: Code::None, text: "".into(), reason })
        } else {
            None
        };
        if let Some(end) = end {
            self.state_end(end);
        }
    }

    /// Closes for a reason that is neither the application's nor the peer's.
    pub(super) fn give_up(&mut self, who: Who, code: u64, reason: &'static str) {
        if self.end.is_some() {
            return;
        }
        // Refused only if it is closed already.
        let _closed = self.quic.close(false, code, reason.as_bytes());
        self.state_end(End { who, code: Code::Transport(code), text: "".into(), reason });
    }

    /// Closes with the application's code.
    pub(super) fn close_with(&mut self, code: u64, text: &str, reason: &'static str) {
        if self.end.is_some() {
            return;
        }
        let _closed = self.quic.close(true, code, text.as_bytes());
        self.state_end(End { who: Who::Local, code: Code::Application(code), text: text.into(), reason });
    }

    fn state_end(&mut self, end: End) {
        self.phase = Phase::Ended;
        self.end = Some(end.clone());
        for (_, stream) in std::mem::take(&mut self.streams) {
            if let Some(send) = stream.send {
                send.end(StreamError::Closed);
            }
        }
        for done in self.sending.cancel_all() {
            let _asked = done.send(Err(StreamError::Closed));
        }
        self.unread = Unread::default();
        self.silent = Silent::default();
        self.wanting.clear();
        self.ends.clear();
        self.events.clear();
        self.events.push_back(Event::Closed(end));
    }

    /// Moves what can be sent into QUIC: datagrams first, then streams by priority. True if there may be more.
    pub(super) fn feed(&mut self) -> bool {
        if !matches!(self.phase, Phase::Open | Phase::Draining) {
            return false;
        }
        while let Some(stream) = self.sending.expired(self.now).map(StreamId) {
            let code = self.streams.get(&stream).map_or(0, |s| s.expiry_code);
            self.give_up_stream(stream, code, StreamError::Expired);
            self.events.push_back(Event::Expired(stream));
        }
        let max = self.max_datagram().unwrap_or(0);
        while self.quic.dgram_send_queue_len() < QUICHE_DATAGRAMS
            && let Some(datagram) = self.datagrams.pop(self.now, max)
        {
            if self.quic.dgram_send_buf(datagram).is_err() {
                break;
            }
        }
        let mut misses = 0;
        while misses < MISSES {
            let Some(piece) = self.sending.next() else { return false };
            let stream = StreamId(piece.stream);
            if piece.bytes.is_empty() && piece.fin {
                if let Some(done) = self.sending.taken(0, None) {
                    let _asked = done.send(Ok(()));
                }
                self.end_alone(stream);
                continue;
            }
            // quiche drops what it refuses; a clone is a count of references.
            let kept = piece.bytes.clone();
            match self.quic.stream_send_zc(piece.stream, piece.bytes, piece.fin) {
                Ok((taken, rest)) => {
                    // quiche hands an empty piece back, though it takes note of the end.
                    let rest = rest.filter(|rest| !rest.is_empty());
                    let whole = rest.is_none();
                    self.note_given(stream, taken);
                    misses += usize::from(!whole);
                    let done = self.sending.taken(taken, rest);
                    self.give_back(stream, taken);
                    if let Some(done) = done {
                        let _asked = done.send(Ok(()));
                    }
                    if piece.fin && whole {
                        self.sent_whole(stream);
                    }
                }
                Err(quiche::Error::Done) => {
                    misses += 1;
                    self.sending.taken(0, Some(kept));
                }
                Err(quiche::Error::StreamStopped(code)) => self.stopped(stream, code),
                Err(_) => {
                    let cancelled = self.sending.cancel(piece.stream);
                    self.fail(stream, cancelled, StreamError::Unknown);
                }
            }
        }
        self.sending.is_ready()
    }

    /// Whether some write was refused for want of credit.
    pub(super) fn is_wanted(&self) -> bool {
        !self.wanting.is_empty()
    }

    /// Credit is free again: announces it to those who were refused.
    pub(super) fn announce_room(&mut self) {
        if !std::mem::replace(&mut self.freed, false) || self.wanting.is_empty() {
            return;
        }
        let free: Vec<StreamId> = self.wanting.iter().copied().filter(|stream| self.room(*stream) > 0).collect();
        for stream in free {
            self.wanting.remove(&stream);
            self.events.push_back(Event::Writable(stream));
        }
    }

    /// Writes bytes for which a handle has taken credit. What comes too late for a stream is known by its fate.
    pub(super) fn push(&mut self, stream: StreamId, bytes: Bytes, done: Option<Done>) {
        let length = bytes.len();
        let known = self.writable(stream).map(|send| send.finished);
        let written = match known {
            Ok(false) => {
                let passed = self.pass(stream, bytes, false);
                match passed {
                    Ok(()) => {
                        self.give_back(stream, length);
                        Ok(())
                    }
                    Err(bytes) => return self.queue(stream, bytes, done),
                }
            }
            Ok(true) => {
                self.give_back(stream, length);
                Err(StreamError::Finished)
            }
            Err(error) => {
                self.credit.give(length);
                self.freed = true;
                Err(error)
            }
        };
        if let Some(done) = done {
            let _asked = done.send(written);
        }
    }

    /// A stream that may be written, or why it may not.
    pub(super) fn writable(&mut self, stream: StreamId) -> Result<&mut SendSide, StreamError> {
        let ended = self.phase == Phase::Ended;
        match self.streams.get_mut(&stream) {
            Some(Stream { send: Some(send), .. }) => Ok(send),
            Some(Stream { fate: Some(fate), .. }) => Err(*fate),
            Some(_) => Err(StreamError::Unknown),
            None => Err(if ended { StreamError::Closed } else { StreamError::Unknown }),
        }
    }

    /// Hands bytes, and the end behind them, to QUIC at once, if nothing waits that should go before them and it takes
    /// all of them now: most answers are small, and need no queue. Else gives them back.
    pub(super) fn pass(&mut self, stream: StreamId, bytes: Bytes, fin: bool) -> Result<(), Bytes> {
        let open = matches!(self.phase, Phase::Open | Phase::Draining);
        if bytes.is_empty() && fin && open && self.sending.is_idle(stream.0) {
            self.end_alone(stream);
            return Ok(());
        }
        if !open || bytes.len() > PASSED || !self.sending.is_empty() {
            return Err(bytes);
        }
        if !self.quic.stream_capacity(stream.0).is_ok_and(|room| room >= bytes.len()) {
            return Err(bytes);
        }
        self.note_given(stream, bytes.len());
        // With room it can only fail on a stream that is no more: then it was dropped as all that is late is.
        if self.quic.stream_send_zc(stream.0, bytes, fin).is_err() {
            self.end_send(stream, StreamError::Unknown);
        } else if fin {
            self.sent_whole(stream);
        }
        Ok(())
    }

    /// Queues bytes for which credit was taken.
    pub(super) fn queue(&mut self, stream: StreamId, bytes: Bytes, done: Option<Done>) {
        let length = bytes.len();
        let priority = self.streams.get(&stream).map(|s| s.priority).unwrap_or_default();
        self.sending.open(stream.0, priority);
        if let Err((_, done)) = self.sending.push(stream.0, bytes, done) {
            // Its end is queued: whoever writes looks at that first.
            self.give_back(stream, length);
            if let Some(done) = done {
                let _asked = done.send(Err(StreamError::Finished));
            }
        }
    }

    /// Queues the end of a stream.
    pub(super) fn queue_end(&mut self, stream: StreamId) -> Result<(), StreamError> {
        self.writable(stream)?.finished = true;
        let priority = self.streams.get(&stream).map(|s| s.priority).unwrap_or_default();
        self.sending.open(stream.0, priority);
        self.sending.finish(stream.0).map_err(|_| StreamError::Finished)
    }

    fn note_given(&mut self, stream: StreamId, bytes: usize) {
        if bytes > 0
            && let Some(send) = self.streams.get_mut(&stream).and_then(|s| s.send.as_mut())
        {
            send.given = self.sends;
        }
    }

    /// Gives QUIC the end of a stream whose data it has. It goes with the last of them if they have not left yet.
    ///
    /// If they have, care is needed: quiche takes a stream for complete when all its data are acknowledged, forgets it,
    /// and its end with it, if that has not left by then. So such an end waits until a packet can take it at once.
    fn end_alone(&mut self, stream: StreamId) {
        let sends = self.sends;
        let Ok(send) = self.writable(stream) else { return };
        send.finished = true;
        if send.given == sends {
            self.give_end(stream);
        } else {
            self.ends.push_back((stream, later(self.now, END_PATIENCE)));
        }
    }

    fn give_end(&mut self, stream: StreamId) {
        match self.quic.stream_send_zc(stream.0, Bytes::new(), true) {
            Ok(_) => self.sent_whole(stream),
            Err(quiche::Error::StreamStopped(code)) => self.stopped(stream, code),
            Err(_) => self.end_send(stream, StreamError::Unknown),
        }
    }

    /// A turn of sending begins.
    pub(super) const fn begin_send(&mut self) {
        self.sends += 1;
    }

    /// A packet is about to be made: it takes an end that waits, before everything else.
    pub(super) fn next_end(&mut self) {
        let Some((stream, by)) = self.ends.front().copied() else { return };
        // Without capacity it is most likely the congestion window that is full.
        if self.now < by && self.quic.stream_capacity(stream.0) == Ok(0) {
            return;
        }
        self.ends.pop_front();
        if self.is_writable(stream) {
            let _known = self.quic.stream_priority(stream.0, 0, false);
            self.give_end(stream);
        }
    }

    /// Whether ends wait for a packet.
    pub(super) fn has_ends(&self) -> bool {
        !self.ends.is_empty()
    }

    /// When an end has waited long enough.
    pub(super) fn end_due(&self) -> Option<Instant> {
        self.ends.front().map(|(_, by)| *by)
    }

    /// All of a stream, and its end, is QUIC's.
    fn sent_whole(&mut self, stream: StreamId) {
        self.leaving.push(stream);
        if self.leaving.len() >= self.look_at {
            self.look_for_leaving();
        }
        self.end_send(stream, StreamError::Finished);
    }

    fn give_back(&mut self, stream: StreamId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.credit.give(bytes);
        if let Some(send) = self.streams.get_mut(&stream).and_then(|s| s.send.as_mut()) {
            send.give(bytes);
        }
        self.freed = true;
    }

    pub(super) fn add(&mut self, stream: StreamId, priority: Priority) {
        let send = stream.is_ours_to_write(self.role).then(|| SendSide::new(self.settings.stream_credit.max(1)));
        let receive = if stream.is_ours_to_read(self.role) { Receive::Open } else { Receive::Over };
        self.streams.insert(stream, Stream { send, receive, unread: false, priority, expiry_code: 0, fate: None });
    }

    pub(super) fn give_up_stream(&mut self, stream: StreamId, code: u64, fate: StreamError) {
        let cancelled = self.sending.cancel(stream.0);
        // `Done`: nothing was ever sent on it and QUIC does not know it, or it is over.
        let _known = self.quic.stream_shutdown(stream.0, quiche::Shutdown::Write, code);
        self.fail(stream, cancelled, fate);
    }

    /// Ends the send side; those who wait learn it after the handles can see why.
    pub(super) fn fail(&mut self, stream: StreamId, cancelled: Cancelled<Done>, why: StreamError) {
        self.give_back(stream, cancelled.bytes);
        self.end_send(stream, why);
        for done in cancelled.waiting {
            let _asked = done.send(Err(why));
        }
    }

    fn end_send(&mut self, stream: StreamId, fate: StreamError) {
        self.wanting.remove(&stream);
        let Some(s) = self.streams.get_mut(&stream) else { return };
        if let Some(send) = s.send.take() {
            send.end(fate);
            s.fate = Some(fate);
        }
        if s.is_over() {
            self.streams.remove(&stream);
        }
    }

    pub(super) fn end_receive(&mut self, stream: StreamId) {
        self.note_unread(stream, false);
        let Some(s) = self.streams.get_mut(&stream) else { return };
        s.receive = Receive::Over;
        if s.is_over() {
            self.streams.remove(&stream);
        }
    }
}

fn ended(who: Who, error: &quiche::ConnectionError, reason: &'static str) -> End {
    let code = if error.is_app { Code::Application(error.error_code) } else { Code::Transport(error.error_code) };
    End { who, code, text: String::from_utf8_lossy(&error.reason).into(), reason }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
pub(super) mod tests;
