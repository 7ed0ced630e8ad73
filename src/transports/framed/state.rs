//! The decisions of one framed connection.
//!
//! In: bytes, the ends of the stream, what the socket took, messages of others, time. Out, by `poll`: bytes to write,
//! the end of writing, the end of the connection with its reason. After every `handle` poll until it answers
//! [`Next::Wait`], and ask `deadline` again. Nothing here reads a clock or a socket.
//!
//! Back-pressure: while the peer does not take its answers, no further message of it is answered and, soon, none is
//! read: at most one read and one message are held. A peer that takes nothing for `slow_after` is closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::codec::{Format, FrameError, MAX_HEADER};
use super::outbox::{Outbox, Queued, WhenSlow};
use crate::memory::Buf;

/// A drain hands in what has arrived by then: at most what a socket can hold (the default maximum of Linux, tcp(7)).
/// A peer that never pauses would keep us reading for ever.
const LAST_READ: usize = 6 << 20;
/// After a drain the peer may take this long to close its side.
const LINGER: Duration = Duration::from_secs(2);

/// What a framed connection may do. `None` and zero sizes are as they say: no limit, no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What frames look like.
    pub format: Format,
    /// The first message must be whole after this long.
    pub first_message: Option<Duration>,
    /// A connection on which nothing moves for this long is closed.
    pub idle: Option<Duration>,
    /// A message must be whole this long after its first byte.
    pub message_timeout: Option<Duration>,
    /// Bytes that may wait for the peer, with their length fields.
    pub outbound: usize,
    /// What to do with a message that does not fit into `outbound`.
    pub when_slow: WhenSlow,
    /// A peer that keeps answers waiting and takes nothing for this long is closed.
    pub slow_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::default(),
            first_message: Some(Duration::from_secs(10)),
            idle: Some(Duration::from_secs(300)),
            message_timeout: Some(Duration::from_secs(30)),
            outbound: 4 << 20,
            when_slow: WhenSlow::Close,
            slow_after: Duration::from_secs(10),
        }
    }
}

/// What answers the messages of one connection.
pub trait Service {
    /// A message has arrived whole. Answers go into `out`; [`Queued::Full`] there closes the connection.
    fn message(&mut self, body: &[u8], out: &mut Outbox);

    /// The bytes that the answers to a message of `body` bytes may take, beyond one length field. While the peer
    /// leaves no room for so many, the message waits and the peer is not read.
    fn reply_room(&self, body: usize) -> usize {
        body
    }

    /// Bytes that messages take up which have been taken in and wait in the service.
    fn held(&self) -> usize {
        0
    }
}

/// Sends each message back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo;

impl Service for Echo {
    fn message(&mut self, body: &[u8], out: &mut Outbox) {
        out.push(body);
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// Bytes came.
    Bytes(&'a [u8]),
    /// The peer sends no more.
    Eof,
    /// The stream broke.
    Reset,
    /// The socket took so many of the bytes that `poll` gave.
    Written(usize),
    /// Somebody else has a message for the peer.
    Push(&'a [u8]),
    /// Messages of others for the peer could not even be handed over.
    Slow,
    /// The deadline may have passed.
    Deadline,
    /// Finish: answer what has arrived, then end, by this instant at the latest.
    Drain(Instant),
    /// After `Drain`: all that had arrived has been handed in.
    ReadDone,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing until something happens.
    Wait,
    /// Write these bytes, then say how many were taken.
    Write(&'a [u8]),
    /// Tell the peer that no more comes; go on reading.
    ShutdownWrite,
    /// It is over.
    Close(Close),
}

/// Whose doing the end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It ended as connections do.
    Nobody,
    /// The peer's.
    Peer,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// The word that counters use: `eof`, `eof_in_message`, `reset`, `frame_too_large`, `frame_malformed`,
    /// `first_message_timeout`, `message_timeout`, `idle`, `slow_reader` or `drained`.
    pub reason: &'static str,
    /// Whose doing it is.
    pub blame: Blame,
    /// The frame that could not be, if that was it.
    pub frame: Option<FrameError>,
}

impl Close {
    const fn normal(reason: &'static str) -> Self {
        Self { reason, blame: Blame::Nobody, frame: None }
    }

    const fn peer(reason: &'static str) -> Self {
        Self { reason, blame: Blame::Peer, frame: None }
    }
}

/// What has moved since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Messages that came whole.
    pub messages_in: u64,
    /// Messages taken for the peer.
    pub messages_out: u64,
    /// Messages dropped for a slow peer.
    pub dropped: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Bytes the socket took.
    pub bytes_out: u64,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Asked to finish; what has arrived is still being handed in.
    LastRead {
        by: Instant,
        left: usize,
    },
    /// Nothing more is answered; what waits is being written.
    Flush {
        then: After,
    },
    /// All is written and the peer is told; its own end is awaited, since closing over unread bytes would make the
    /// kernel reset the stream and destroy what is on its way (RFC 1122, section 4.2.2.13).
    Linger {
        until: Instant,
        told: bool,
        close: Close,
    },
    Over(Close),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Close(Close),
    Linger { by: Option<Instant>, close: Close },
}

/// One framed connection.
#[derive(Debug)]
pub struct State {
    settings: Arc<Settings>,
    phase: Phase,
    outbox: Outbox,
    /// What has come of a message that is not whole, or whole messages that may not be answered yet.
    partial: Buf,
    opened: Instant,
    moved_at: Instant,
    message_began: Option<Instant>,
    /// The peer keeps us from answering what has come.
    stalled: bool,
    /// Since when the peer has taken nothing of what waits for it.
    waiting: Option<Instant>,
    any_message: bool,
    counts: Moved,
}

impl State {
    /// A connection that has just opened.
    #[must_use]
    pub fn new(settings: Arc<Settings>, now: Instant) -> Self {
        Self {
            outbox: Outbox::new(settings.format, settings.outbound, settings.when_slow),
            settings,
            phase: Phase::Open,
            partial: Buf::default(),
            opened: now,
            moved_at: now,
            message_began: None,
            stalled: false,
            waiting: None,
            any_message: false,
            counts: Moved::default(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input<'_>, now: Instant, service: &mut impl Service) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        match input {
            Input::Bytes(bytes) => self.bytes(bytes, now, service, &mut |_| Buf::default()),
            Input::Eof => self.eof(),
            Input::Reset => self.phase = Phase::Over(Close::peer("reset")),
            Input::Written(count) => self.written(count, now, service),
            Input::Push(body) => self.push(body),
            Input::Slow => self.phase = Phase::Over(Close::peer("slow_reader")),
            Input::Deadline => self.expire(now),
            Input::Drain(by) => {
                if self.phase == Phase::Open {
                    self.phase = Phase::LastRead { by, left: LAST_READ };
                }
            }
            Input::ReadDone => self.last_read_done(),
        }
        self.settle(now);
    }

    /// As [`handle`](Self::handle) with [`Input::Bytes`]. Answers and what must be kept go into what `buffer` gives for
    /// so many bytes; where it gives an empty one without memory, they take memory of their own.
    pub fn read(
        &mut self,
        bytes: &[u8],
        now: Instant,
        service: &mut impl Service,
        mut buffer: impl FnMut(usize) -> Buf,
    ) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        // Answers are often as long as their messages.
        let answers = self.partial.len().saturating_add(bytes.len());
        self.outbox.lend(|| buffer(answers));
        self.bytes(bytes, now, service, &mut buffer);
        self.settle(now);
    }

    /// How many bytes to read at once, of `room`: fewer behind a part of a message, so that the answers to all of it
    /// still fit into one buffer of that size.
    #[must_use]
    pub fn read_at_most(&self, room: usize) -> usize {
        match self.partial.len() {
            kept if kept < room => (room - kept).max(room / 4),
            _ => room,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn poll(&self) -> Next<'_> {
        match self.phase {
            Phase::Over(close) => Next::Close(close),
            Phase::Linger { told: false, .. } => Next::ShutdownWrite,
            Phase::Linger { .. } => Next::Wait,
            Phase::Open | Phase::LastRead { .. } | Phase::Flush { .. } => match self.outbox.bytes() {
                [] => Next::Wait,
                bytes => Next::Write(bytes),
            },
        }
    }

    /// The peer was told that no more comes ([`Next::ShutdownWrite`]).
    pub const fn write_is_shut(&mut self) {
        if let Phase::Linger { told, .. } = &mut self.phase {
            *told = true;
        }
    }

    /// Whether bytes of the peer may be handed in now. If not, leave them in the socket.
    #[must_use]
    pub const fn wants_read(&self) -> bool {
        match self.phase {
            Phase::Open | Phase::LastRead { .. } => !self.stalled,
            // Read to be thrown away: a peer that writes before it reads would never take its answers otherwise.
            Phase::Flush { then: After::Linger { .. } } | Phase::Linger { .. } => true,
            Phase::Flush { then: After::Close(_) } | Phase::Over(_) => false,
        }
    }

    /// True while a drain waits for [`Input::ReadDone`].
    #[must_use]
    pub const fn wants_last_read(&self) -> bool {
        matches!(self.phase, Phase::LastRead { .. })
    }

    /// Whether a message of others with a body this long has room now.
    pub(super) fn fits(&self, body: usize) -> bool {
        self.outbox.fits(MAX_HEADER + body)
    }

    /// True when nothing but writing keeps the connection from its end, and nobody is to blame for it.
    pub(super) const fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Flush { then: After::Close(_) } | Phase::Over(Close { blame: Blame::Nobody, .. }))
    }

    /// When [`Input::Deadline`] is due: the first of the timers that run now.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.timers().into_iter().flatten().map(|(at, _)| at).min()
    }

    /// Whether a whole message has come yet.
    #[must_use]
    pub const fn any_message(&self) -> bool {
        self.any_message
    }

    /// What has moved since the last call.
    pub const fn take_moved(&mut self) -> Moved {
        self.counts.messages_out += self.outbox.accepted;
        self.counts.dropped += self.outbox.dropped;
        self.outbox.accepted = 0;
        self.outbox.dropped = 0;
        std::mem::replace(
            &mut self.counts,
            Moved { messages_in: 0, messages_out: 0, dropped: 0, bytes_in: 0, bytes_out: 0 },
        )
    }

    /// Bytes of memory held in buffers.
    #[must_use]
    pub fn held(&self) -> usize {
        self.outbox.capacity() + self.partial.capacity()
    }

    /// So many of them are the connection's own; a pool answers for the others.
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        self.outbox.own_bytes() + self.partial.own_bytes()
    }

    /// Gives the outbound queue an empty buffer to work with, if it has none, before messages of others are pushed.
    pub fn lend(&mut self, buffer: impl FnOnce() -> Buf) {
        self.outbox.lend(buffer);
    }

    /// Lets go of buffers that hold nothing.
    pub fn free_unused(&mut self) {
        if self.partial.is_empty() {
            self.partial = Buf::default();
        }
        self.outbox.free_unused();
    }

    fn last_read_done(&mut self) {
        if let Phase::LastRead { by, .. } = self.phase
            && !self.stalled
        {
            let then = After::Linger { by: Some(by), close: Close::normal("drained") };
            self.phase = Phase::Flush { then };
        }
    }

    fn bytes(&mut self, bytes: &[u8], now: Instant, service: &mut impl Service, buffer: &mut impl FnMut(usize) -> Buf) {
        self.counts.bytes_in += bytes.len() as u64;
        self.moved_at = now;
        match &mut self.phase {
            Phase::Open => {}
            Phase::LastRead { left: 0, .. } => {
                self.last_read_done();
                return;
            }
            Phase::LastRead { left, .. } => *left = left.saturating_sub(bytes.len()),
            Phase::Flush { .. } | Phase::Linger { .. } | Phase::Over(_) => return,
        }
        let mut rest = bytes;
        while !rest.is_empty() && !self.partial.is_empty() {
            // No more than makes the kept message whole is copied to it; the others are answered where they lie.
            let (first, others) = rest.split_at(self.missing().min(rest.len()));
            self.keep(first, buffer);
            self.answer_partial(now, service);
            rest = if matches!(self.phase, Phase::Open | Phase::LastRead { .. }) { others } else { &[] };
        }
        if !rest.is_empty() {
            let used = self.answer(rest, now, service);
            self.keep(rest.get(used..).unwrap_or_default(), buffer);
        }
    }

    /// How many bytes make the first of what is kept a whole length or a whole message; all, if it is one already.
    fn missing(&self) -> usize {
        let (format, have) = (self.settings.format, self.partial.len());
        match format.decode(&self.partial) {
            Ok(None) => format.header_len().saturating_sub(have),
            Ok(Some(frame)) if frame.total() > have => frame.total() - have,
            Ok(Some(_)) | Err(_) => usize::MAX,
        }
    }

    /// Keeps bytes for later. A buffer of a pool that they do not fit into is given up for a larger one, since one that
    /// grew would be lost to its pool.
    fn keep(&mut self, bytes: &[u8], buffer: &mut impl FnMut(usize) -> Buf) {
        if bytes.is_empty() {
            return;
        }
        let len = self.partial.len() + bytes.len();
        if len > self.partial.capacity() {
            let mut larger = buffer(len);
            if larger.capacity() >= len || self.partial.own_bytes() == 0 {
                larger.extend_from_slice(&self.partial);
                self.partial = larger;
            }
        }
        self.partial.extend_from_slice(bytes);
    }

    fn answer_partial(&mut self, now: Instant, service: &mut impl Service) {
        let mut partial = std::mem::take(&mut self.partial);
        let used = self.answer(&partial, now, service);
        partial.drain(..used);
        self.partial = partial;
    }

    /// Answers whole messages from the front of `bytes` as long as answers fit; says how many bytes that used up.
    fn answer(&mut self, bytes: &[u8], now: Instant, service: &mut impl Service) -> usize {
        let format = self.settings.format;
        let keep_all = self.settings.when_slow == WhenSlow::Close;
        let mut used = 0;
        let mut rest = bytes;
        self.stalled = false;
        loop {
            let frame = match format.decode(rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    let close = Close { reason: error.reason(), blame: Blame::Peer, frame: Some(error) };
                    self.phase = Phase::Flush { then: After::Linger { by: None, close } };
                    return bytes.len();
                }
            };
            let Some(body) = rest.get(frame.header..frame.total()) else { break };
            let room = frame.header + service.reply_room(frame.body);
            if keep_all && !self.outbox.fits(room) && self.outbox.pending() > 0 {
                self.stalled = true;
                break;
            }
            service.message(body, &mut self.outbox);
            self.counts.messages_in += 1;
            self.any_message = true;
            self.message_began = None;
            used += frame.total();
            rest = rest.get(frame.total()..).unwrap_or_default();
            if self.outbox.overflowed {
                self.phase = Phase::Over(Close::peer("slow_reader"));
                return bytes.len();
            }
        }
        if rest.is_empty() || self.stalled {
            self.message_began = None;
        } else if self.message_began.is_none() {
            self.message_began = Some(now);
        }
        used
    }

    fn eof(&mut self) {
        let close = match self.phase {
            Phase::Linger { close, .. } | Phase::Flush { then: After::Linger { close, .. } } => close,
            Phase::Open | Phase::LastRead { .. } | Phase::Flush { .. } | Phase::Over(_) if self.partial.is_empty() => {
                Close::normal("eof")
            }
            Phase::Open | Phase::LastRead { .. } | Phase::Flush { .. } | Phase::Over(_) => {
                Close::peer("eof_in_message")
            }
        };
        self.phase = Phase::Flush { then: After::Close(close) };
    }

    fn written(&mut self, count: usize, now: Instant, service: &mut impl Service) {
        self.counts.bytes_out += count as u64;
        self.outbox.written(count);
        if count > 0 {
            self.moved_at = now;
            self.waiting = None;
        }
        if self.stalled && count > 0 {
            self.answer_partial(now, service);
        }
    }

    fn push(&mut self, body: &[u8]) {
        if !matches!(self.phase, Phase::Open | Phase::LastRead { .. }) {
            self.outbox.dropped += 1;
            return;
        }
        match self.outbox.push(body) {
            Queued::Full => self.phase = Phase::Over(Close::peer("slow_reader")),
            Queued::TooLarge => self.outbox.dropped += 1,
            Queued::Yes | Queued::After(_) | Queued::Dropped => {}
        }
    }

    /// Moves on from phases that are done.
    fn settle(&mut self, now: Instant) {
        if let Phase::Flush { then } = self.phase
            && self.outbox.pending() == 0
        {
            self.phase = match then {
                After::Close(close) => Phase::Over(close),
                After::Linger { by, close } => {
                    let until = now + LINGER;
                    Phase::Linger { until: by.map_or(until, |by| by.min(until)), told: false, close }
                }
            };
        }
        if self.outbox.pending() == 0 {
            self.waiting = None;
        } else if self.waiting.is_none() {
            self.waiting = Some(now);
        }
    }

    fn expire(&mut self, now: Instant) {
        let due = self.timers().into_iter().flatten().filter(|(at, _)| *at <= now).min_by_key(|(at, _)| *at);
        if let Some((_, close)) = due {
            self.phase = Phase::Over(close);
        }
    }

    /// The timers that run now, each with the end it leads to.
    fn timers(&self) -> [Option<(Instant, Close)>; 4] {
        let set = &*self.settings;
        if let Phase::Linger { until, close, .. } = self.phase {
            return [Some((until, close)), None, None, None];
        }
        // A time so long that it overflows never comes.
        let after = |from: Instant, time: Option<Duration>, close| Some((from.checked_add(time?)?, close));
        let held_up = self.stalled || matches!(self.phase, Phase::Flush { .. });
        let first = if self.any_message { None } else { set.first_message };
        [
            // Whoever connects and says nothing whole must not keep its place.
            after(self.opened, first, Close::peer("first_message_timeout")),
            // A message that never ends keeps its bytes in memory.
            self.message_began.and_then(|began| after(began, set.message_timeout, Close::peer("message_timeout"))),
            // A peer may be gone without a word.
            after(self.moved_at, set.idle, Close::normal("idle")),
            // A peer that takes nothing keeps its answers in memory, and us from finishing.
            self.waiting
                .filter(|_| held_up)
                .and_then(|since| after(since, Some(set.slow_after), Close::peer("slow_reader"))),
        ]
    }
}
