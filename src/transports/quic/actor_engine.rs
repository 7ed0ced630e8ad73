//! One QUIC connection and everything that belongs to it alone: quiche's state, the streams, what waits to be sent.
//! Owned by the connection's actor and reachable by nobody else.
//!
//! It is the [`Session`] that applications see. What it learns is queued as events, which the actor hands out one by
//! one, so that no call comes back into an application that is in the midst of one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::messages::SendShared;
use super::session::{Code, End, Event, Info, OpenError, Read, Role, Session, StreamError, StreamId, StreamKind, Who};
use super::settings::{QUICHE_DATAGRAMS, Transport};
use super::state_credit::{Credit, take_both};
use super::state_datagrams::{Datagram, Datagrams, NotQueued};
use super::state_streams::{Cancelled, Priority, PushError, Sending};
use crate::actors::Reply;

/// Streams of which news are taken in one turn, at most.
const NEWS: usize = 1_024;
/// Streams that QUIC may take nothing from before a feed gives up: then it is the connection that is held back.
const MISSES: usize = 8;

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

/// What is known of a stream beside what QUIC and the send order know.
struct Stream {
    /// As long as this end may write.
    send: Option<Arc<SendShared>>,
    receive: Receive,
    expiry_code: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    /// Data may come.
    Open,
    /// All was read, and the end with the last bytes: the next read says so.
    AtEnd,
    Over,
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
    const fn as_str(self) -> &'static str {
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
    sending: Sending<Done>,
    streams: BTreeMap<StreamId, Stream>,
    /// Streams whose last write was refused.
    wanting: BTreeSet<StreamId>,
    /// Kinds of streams of which the last `open` was refused.
    unopened: Vec<StreamKind>,
    next: [u64; 2],
    /// Bytes were taken since this was last looked at: credit is free.
    pub(super) freed: bool,
    /// Datagrams were announced and not all read.
    announced: bool,
    /// Streams whose end is on its way and was not acknowledged when last looked at.
    leaving: Vec<StreamId>,
    look_at: usize,
    /// Stops of the peer that were looked for.
    stops: u64,
    /// Resets of the peer that were counted.
    resets: u64,
    /// There are some that nobody has looked for.
    pub(super) reset: bool,
    /// Packets have come in this turn.
    pub(super) heard: bool,
    /// Paths of a client that were tried, and whether the peer answered; taken in each turn.
    pub(super) proved: Vec<(SocketAddr, SocketAddr, bool)>,
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
            streams: BTreeMap::new(),
            wanting: BTreeSet::new(),
            unopened: Vec::new(),
            next: [bit, 2 + bit],
            freed: false,
            announced: false,
            leaving: Vec::new(),
            look_at: LEAVING,
            stops: 0,
            resets: 0,
            reset: false,
            heard: false,
            proved: Vec::new(),
            settings,
        }
    }

    /// Whether nothing is left to be delivered: no stream is open, and all that was finished was acknowledged.
    pub(super) fn is_delivered(&mut self) -> bool {
        if !self.streams.is_empty() {
            return false;
        }
        self.look_for_leaving();
        self.leaving.is_empty()
    }

    fn look_for_leaving(&mut self) {
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

    pub(super) fn send_shared(&self, stream: StreamId) -> Option<Arc<SendShared>> {
        self.streams.get(&stream).and_then(|s| s.send.clone())
    }

    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.sending.deadline()
    }

    /// Takes up what QUIC has learnt from the packets of this turn. True if there may be more.
    pub(super) fn learn(&mut self) -> bool {
        if self.phase == Phase::Handshaking && self.quic.is_established() {
            self.phase = Phase::Open;
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
            self.events.push_back(Event::Readable(stream));
        }
        while let Some(id) = self.quic.stream_writable_next() {
            self.sending.unblock(id);
        }
        self.look_for_stopped();
        while let Some(event) = self.quic.path_event_next() {
            match event {
                quiche::PathEvent::PeerMigrated(local, peer) => {
                    self.events.push_back(Event::PathChanged { local, peer });
                }
                quiche::PathEvent::Validated(local, peer) => self.note_proved(local, peer, true),
                quiche::PathEvent::FailedValidation(local, peer) => self.note_proved(local, peer, false),
                _ => {}
            }
        }
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

    /// A server's paths are its peer's to choose.
    fn note_proved(&mut self, local: SocketAddr, peer: SocketAddr, valid: bool) {
        if self.role == Role::Client {
            self.proved.push((local, peer, valid));
        }
    }

    /// quiche says nothing of a stop for a stream that it has reported as writable and that was not written since. So
    /// the streams are looked through whenever it has counted one.
    fn look_for_stopped(&mut self) {
        // Only a packet can bring one, and to ask costs a walk over the streams.
        if !std::mem::replace(&mut self.heard, false) {
            return;
        }
        let stats = self.quic.stats();
        let resets = stats.reset_stream_count_remote;
        self.reset |= std::mem::replace(&mut self.resets, resets) != resets;
        let stops = stats.stopped_stream_count_remote;
        if std::mem::replace(&mut self.stops, stops) == stops {
            return;
        }
        let open: Vec<StreamId> = self.streams.iter().filter(|(_, s)| s.send.is_some()).map(|(id, _)| *id).collect();
        for stream in open {
            if let Err(quiche::Error::StreamStopped(code)) = self.quic.stream_capacity(stream.0) {
                self.stopped(stream, code);
            }
        }
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
            let reason = if !self.quic.is_timed_out() { "reset" } else { "idle" };
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
                let _first = send.fate.set(StreamError::Closed);
            }
        }
        for done in self.sending.cancel_all() {
            let _asked = done.send(Err(StreamError::Closed));
        }
        self.wanting.clear();
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
            // quiche drops what it refuses; a clone is a count of references.
            let kept = piece.bytes.clone();
            match self.quic.stream_send_zc(piece.stream, piece.bytes, piece.fin) {
                Ok((taken, rest)) => {
                    // quiche hands an empty piece back, though it takes note of the end.
                    let rest = rest.filter(|rest| !rest.is_empty());
                    misses += usize::from(rest.is_some());
                    let done = self.sending.taken(taken, rest);
                    self.give_back(stream, taken);
                    if let Some(done) = done {
                        let _asked = done.send(Ok(()));
                    }
                    if piece.fin && !self.sending.is_there(piece.stream) {
                        self.leaving.push(stream);
                        if self.leaving.len() >= self.look_at {
                            self.look_for_leaving();
                        }
                        self.end_send(stream, StreamError::Finished);
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

    /// Queues bytes for which credit was taken.
    pub(super) fn push(&mut self, stream: StreamId, bytes: Bytes, done: Option<Done>) -> Result<(), StreamError> {
        let length = bytes.len();
        self.sending.push(stream.0, bytes, done).map_err(|(error, done)| {
            let error = self.write_error(stream, error);
            if let Some(done) = done {
                let _asked = done.send(Err(error));
            }
            self.credit.give(length);
            self.freed = true;
            error
        })
    }

    fn write_error(&self, stream: StreamId, error: PushError) -> StreamError {
        match error {
            PushError::Finished => StreamError::Finished,
            PushError::Unknown if self.phase == Phase::Ended => StreamError::Closed,
            PushError::Unknown => self
                .streams
                .get(&stream)
                .and_then(|s| s.send.as_ref())
                .and_then(|send| send.fate.get().copied())
                .unwrap_or(StreamError::Unknown),
        }
    }

    fn give_back(&mut self, stream: StreamId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.credit.give(bytes);
        if let Some(send) = self.streams.get(&stream).and_then(|s| s.send.as_ref()) {
            send.credit.give(bytes);
        }
        self.freed = true;
    }

    fn add(&mut self, stream: StreamId, priority: Priority) {
        let send = stream.is_ours_to_write(self.role).then(|| {
            self.sending.open(stream.0, priority);
            Arc::new(SendShared { credit: Credit::new(self.settings.stream_credit), fate: OnceLock::new() })
        });
        let receive = if stream.is_ours_to_read(self.role) { Receive::Open } else { Receive::Over };
        self.streams.insert(stream, Stream { send, receive, expiry_code: 0 });
    }

    /// The peer wants no more of a stream.
    fn stopped(&mut self, stream: StreamId, code: u64) {
        if self.send_shared(stream).is_none() {
            return;
        }
        let cancelled = self.sending.cancel(stream.0);
        self.fail(stream, cancelled, StreamError::Stopped(code));
        self.events.push_back(Event::Stopped(stream, code));
    }

    fn give_up_stream(&mut self, stream: StreamId, code: u64, fate: StreamError) {
        let cancelled = self.sending.cancel(stream.0);
        // `Done`: nothing was ever sent on it and QUIC does not know it, or it is over.
        let _known = self.quic.stream_shutdown(stream.0, quiche::Shutdown::Write, code);
        self.fail(stream, cancelled, fate);
    }

    /// Ends the send side; those who wait learn it after the handles can see why.
    fn fail(&mut self, stream: StreamId, cancelled: Cancelled<Done>, why: StreamError) {
        self.give_back(stream, cancelled.bytes);
        self.end_send(stream, why);
        for done in cancelled.waiting {
            let _asked = done.send(Err(why));
        }
    }

    fn end_send(&mut self, stream: StreamId, fate: StreamError) {
        self.wanting.remove(&stream);
        if let Some(send) = self.streams.get_mut(&stream).and_then(|s| s.send.take()) {
            let _first = send.fate.set(fate);
        }
        self.forget(stream);
    }

    fn end_receive(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.receive = Receive::Over;
        }
        self.forget(stream);
    }

    /// Of a stream of the peer that nobody reads yet: whether the peer has given it up. Then this end gives it up too,
    /// since nobody will.
    pub(super) fn is_given_up_unread(&mut self, stream: StreamId) -> bool {
        // Readable without a byte: a reset, or an end alone.
        if self.quic.stream_readable_len(stream.0, 1) > 0 || !self.quic.stream_readable(stream.0) {
            return false;
        }
        match self.quic.stream_recv(stream.0, &mut [0]) {
            Err(quiche::Error::StreamReset(code)) => {
                self.events.push_back(Event::Reset(stream, code));
                if self.send_shared(stream).is_some() {
                    self.give_up_stream(stream, code, StreamError::Finished);
                }
                self.end_receive(stream);
                true
            }
            Ok((_, fin)) => {
                if fin && let Some(s) = self.streams.get_mut(&stream) {
                    s.receive = Receive::AtEnd;
                }
                false
            }
            Err(_) => false,
        }
    }

    /// A stream whose two directions are over is nobody's any more.
    fn forget(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(|s| s.send.is_none() && s.receive == Receive::Over) {
            self.streams.remove(&stream);
        }
    }
}

fn ended(who: Who, error: &quiche::ConnectionError, reason: &'static str) -> End {
    let code = if error.is_app { Code::Application(error.error_code) } else { Code::Transport(error.error_code) };
    End { who, code, text: String::from_utf8_lossy(&error.reason).into(), reason }
}

impl Session for Engine {
    fn role(&self) -> Role {
        self.role
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn alpn(&self) -> &[u8] {
        self.quic.application_proto()
    }

    fn info(&self) -> Info {
        let stats = self.quic.stats();
        let path = self.quic.path_stats().find(|path| path.active).or_else(|| self.quic.path_stats().next());
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        Info {
            role: self.role,
            state: self.phase.as_str(),
            arbiter: self.arbiter,
            alpn: Bytes::copy_from_slice(self.alpn()),
            server_name: self.quic.server_name().map(Into::into),
            local: path.as_ref().map_or(unknown, |path| path.local_addr),
            peer: path.as_ref().map_or(unknown, |path| path.peer_addr),
            rtt: path.as_ref().map(|path| path.rtt).unwrap_or_default(),
            window: path.as_ref().map_or(0, |path| path.cwnd),
            mtu: self.quic.max_send_udp_payload_size(),
            packets: [stats.sent as u64, stats.recv as u64, stats.lost as u64],
            bytes: [stats.sent_bytes, stats.recv_bytes, stats.lost_bytes],
            streams: self.streams.len(),
            queued: self.held(),
            resumed: self.quic.is_resumed(),
            age: self.now.saturating_duration_since(self.born),
        }
    }

    fn open(&mut self, kind: StreamKind, priority: Priority) -> Result<StreamId, OpenError> {
        if self.phase != Phase::Open {
            return Err(OpenError::Closed);
        }
        let [bidirectional, unidirectional] = &mut self.next;
        let next = match kind {
            StreamKind::Bidirectional => bidirectional,
            StreamKind::Unidirectional => unidirectional,
        };
        let stream = StreamId(*next);
        // QUIC knows a stream from its first use on; to set its priority is one.
        match self.quic.stream_priority(stream.0, priority.urgency, priority.incremental) {
            Ok(()) => {}
            Err(quiche::Error::StreamLimit) => {
                if !self.unopened.contains(&kind) {
                    self.unopened.push(kind);
                }
                return Err(OpenError::Limit);
            }
            Err(_) => return Err(OpenError::Closed),
        }
        *next += 4;
        self.add(stream, priority);
        Ok(stream)
    }

    fn room(&self, stream: StreamId) -> usize {
        let send = self.streams.get(&stream).and_then(|s| s.send.as_ref());
        send.map_or(0, |send| send.credit.free().min(self.credit.free()))
    }

    fn want_room(&mut self, stream: StreamId) {
        if self.send_shared(stream).is_some() {
            self.wanting.insert(stream);
            self.freed |= self.room(stream) > 0;
        }
    }

    fn write(&mut self, stream: StreamId, bytes: Bytes) -> Result<(), StreamError> {
        if self.phase == Phase::Ended {
            return Err(StreamError::Closed);
        }
        let send = self.send_shared(stream).ok_or(StreamError::Unknown)?;
        if !take_both(&send.credit, &self.credit, bytes.len()) {
            self.wanting.insert(stream);
            return Err(StreamError::Full(self.room(stream)));
        }
        let length = bytes.len();
        self.push(stream, bytes, None).inspect_err(|_| send.credit.give(length))
    }

    fn finish(&mut self, stream: StreamId) -> Result<(), StreamError> {
        self.sending.finish(stream.0).map_err(|error| self.write_error(stream, error))
    }

    fn reset(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError> {
        self.send_shared(stream).ok_or(StreamError::Unknown)?;
        self.give_up_stream(stream, code, StreamError::Finished);
        Ok(())
    }

    fn read(&mut self, stream: StreamId, max: usize) -> Result<Read, StreamError> {
        if self.phase == Phase::Ended {
            return Err(StreamError::Closed);
        }
        let receive = self.streams.get(&stream).map_or(Receive::Over, |s| s.receive);
        match receive {
            Receive::Open => {}
            Receive::AtEnd => {
                self.end_receive(stream);
                self.events.push_back(Event::Finished(stream));
                return Ok(Read::End);
            }
            Receive::Over => return Err(StreamError::Unknown),
        }
        let length = self.quic.stream_readable_len(stream.0, max.max(1));
        let mut bytes = BytesMut::with_capacity(length);
        let got = if length == 0 {
            // Its end alone, a reset, or nothing.
            self.quic.stream_recv(stream.0, &mut [0])
        } else {
            self.quic.stream_recv_buf(stream.0, (&mut bytes).limit(length))
        };
        match got {
            Ok((_, true)) if bytes.is_empty() => {
                self.end_receive(stream);
                self.events.push_back(Event::Finished(stream));
                Ok(Read::End)
            }
            Ok((_, fin)) => {
                if fin && let Some(s) = self.streams.get_mut(&stream) {
                    s.receive = Receive::AtEnd;
                }
                if bytes.is_empty() { Ok(Read::Nothing) } else { Ok(Read::Data(bytes.freeze())) }
            }
            Err(quiche::Error::StreamReset(code)) => {
                self.end_receive(stream);
                self.events.push_back(Event::Reset(stream, code));
                Err(StreamError::Reset(code))
            }
            Err(quiche::Error::Done | quiche::Error::InvalidStreamState(_)) => Ok(Read::Nothing),
            Err(_) => Err(StreamError::Unknown),
        }
    }

    fn stop(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError> {
        match self.streams.get(&stream).map(|s| s.receive) {
            Some(Receive::Open) => {
                let _known = self.quic.stream_shutdown(stream.0, quiche::Shutdown::Read, code);
            }
            Some(Receive::AtEnd) => {}
            Some(Receive::Over) | None => return Err(StreamError::Unknown),
        }
        self.end_receive(stream);
        Ok(())
    }

    fn prioritise(&mut self, stream: StreamId, priority: Priority) {
        if self.send_shared(stream).is_some() {
            self.sending.prioritise(stream.0, priority);
            // An unknown stream is made by this, hence the check before; its only failure is a limit.
            let _known = self.quic.stream_priority(stream.0, priority.urgency, priority.incremental);
        }
    }

    fn expire(&mut self, stream: StreamId, at: Option<Instant>, code: u64) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.expiry_code = code;
            self.sending.expire(stream.0, at);
        }
    }

    fn send_datagram(&mut self, datagram: Datagram) -> Result<(), NotQueued> {
        match self.max_datagram() {
            Some(max) if self.phase != Phase::Ended => self.datagrams.push(datagram, max),
            Some(_) | None => Err(NotQueued::TooLarge { max: 0 }),
        }
    }

    fn max_datagram(&self) -> Option<usize> {
        self.quic.dgram_max_writable_len()
    }

    fn read_datagram(&mut self) -> Option<Bytes> {
        let datagram = self.quic.dgram_recv_buf().ok();
        self.announced = datagram.is_some();
        datagram
    }

    fn is_delivering(&mut self) -> bool {
        self.look_for_leaving();
        !self.leaving.is_empty()
    }

    fn close(&mut self, code: u64, text: &str) {
        self.close_with(code, text, "closed");
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
pub(super) mod tests;
