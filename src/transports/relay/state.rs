//! The decisions of one relayed stream.
//!
//! In: what was read of either side and how much of it the other side took at once, ends, resets, the fate of
//! attempts to connect, time. Out: which server to dial, what to write where, when to tell a side that no more comes,
//! the end with its reason. After every `handle` ask `end`, `wants_dial`, `poll` for both sides and `deadline` again.
//! Nothing here reads a clock or a socket.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::codec::Header;
use super::state_gate::Gate;
use super::state_way::Way;
pub use super::state_words::{Blame, End, Failure, Input, Moved, Next, RelaySettings, Side};
use crate::memory::Buf;
use crate::transports::kit::balance::{Address, Picked, ServerId};

/// The end of a side that is not read goes unnoticed: it is looked for this often.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// A client that broke the rules of messages gets answers to those before it for so long.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client's PROXY header is awaited.
    Header {
        until: Instant,
    },
    /// A server is to be picked.
    Dial,
    Connecting {
        until: Option<Instant>,
        /// A handshake goes on.
        accepted: bool,
    },
    Open,
    Over(End),
}

/// A side is not listened to any more; what it had sent before goes to its end first.
#[derive(Debug, Clone, Copy)]
struct Cut {
    from: Side,
    reason: &'static str,
    /// For as long as a client that broke the rules of messages still gets answers. Without it the stream is over once
    /// the other side has taken what came.
    until: Option<Instant>,
}

/// One relayed stream.
#[derive(Debug)]
pub struct State {
    settings: Arc<RelaySettings>,
    phase: Phase,
    up: Way,
    down: Way,
    moved_at: Instant,
    random: u64,
    tried: Vec<ServerId>,
    picked: Option<Picked>,
    last_failure: Option<Failure>,
    failures: Vec<&'static str>,
    header: Option<Header>,
    /// The server that was dialled is told about the client ahead of everything else.
    header_taken: bool,
    local: Header,
    /// Where the client connects from.
    client: Option<IpAddr>,
    draining: bool,
    /// Who reset the stream.
    gone: Option<Side>,
    /// Who broke the rules of messages.
    cut: Option<Cut>,
    opened: Instant,
    counted: (u64, u64),
    seen: Moved,
    probed_at: Instant,
    probe: bool,
}

impl State {
    /// A stream whose client has just connected. `header` says who it is, for servers that want to be told; a PROXY
    /// header of the client itself replaces it. `random` decides between equal servers, unless the
    /// client's address does.
    #[must_use]
    pub fn new(settings: Arc<RelaySettings>, header: Header, random: u64, now: Instant) -> Self {
        let way = || settings.frames.map_or_else(Way::default, |frames| Way::gated(frames.format));
        let (up, down) = (way(), way());
        let phase = if settings.proxy_in && settings.frames.is_none() {
            Phase::Header { until: after(now, settings.proxy_timeout).unwrap_or(now) }
        } else {
            Phase::Dial
        };
        Self {
            settings,
            phase,
            up,
            down,
            moved_at: now,
            random,
            tried: Vec::new(),
            picked: None,
            last_failure: None,
            failures: Vec::new(),
            header: None,
            header_taken: false,
            local: header,
            client: None,
            draining: false,
            gone: None,
            cut: None,
            opened: now,
            counted: (0, 0),
            seen: Moved::default(),
            probed_at: now,
            probe: false,
        }
    }

    /// Says where the client connects from, for upstreams whose servers are chosen by that. A PROXY header of its own
    /// is believed instead.
    pub const fn comes_from(&mut self, client: IpAddr) {
        self.client = Some(client);
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        match input {
            Input::Bytes { from, bytes, taken } => self.bytes(from, bytes, taken, now),
            Input::Piped(from, count) => {
                self.to(from.other()).filled(count);
                self.moved_at = now;
            }
            Input::NoPipe(from) => self.to(from.other()).no_pipe(),
            Input::Unpiped(to, count) => {
                self.to(to).emptied(count);
                self.moved_at = now;
            }
            Input::Eof(side) if self.gone == Some(side) => self.reset(side, now),
            Input::Eof(side) => self.eof(side, now),
            Input::Reset(side) => self.reset(side, now),
            Input::Truncated(side) => self.truncated(side, now),
            Input::BrokeTls(side) => {
                self.note_failure(side, side.broke_tls(), now);
                self.over(side.broke_tls(), Blame::Peer);
            }
            Input::Written(to, count) => {
                self.to(to).wrote(count, now);
                self.moved_at = now;
            }
            Input::WriteFailed(side) => {
                self.note_reset(side, now);
                self.to(side).break_off();
            }
            Input::WriteReset(side) => {
                self.note_reset(side, now);
                self.to(side).break_off();
                self.gone = Some(side);
            }
            Input::FinSent(to) => {
                self.to(to).fin_sent = true;
                self.moved_at = now;
            }
            Input::HeaderTaken => self.header_taken = true,
            Input::Accepted => {
                if let Phase::Connecting { accepted, .. } = &mut self.phase {
                    *accepted = true;
                }
            }
            Input::Connected => self.connected(now),
            Input::ConnectFailed(failure) => self.connect_failed(failure, now),
            Input::Deadline => self.expire(now),
            Input::Drain => self.draining = true,
        }
        self.settle();
    }

    /// What to do for a side next.
    #[must_use]
    pub fn poll(&self, to: Side) -> Next<'_> {
        if self.phase != Phase::Open {
            return Next::Wait;
        }
        let way = self.way_to(to);
        match way.bytes() {
            [] if way.piped() > 0 => Next::Splice(way.piped()),
            [] if way.wants_fin() => Next::Finish,
            [] => Next::Wait,
            bytes => Next::Write(bytes),
        }
    }

    /// Whether bytes of a side may be handed in now. If not, leave them in its socket.
    #[must_use]
    pub fn wants_read(&self, from: Side) -> bool {
        match self.phase {
            Phase::Header { .. } => from == Side::Client && !self.up.fin_seen,
            // What a client says while it waits is taken, once: so its end is noticed.
            Phase::Dial | Phase::Connecting { .. } => from == Side::Client && self.up.wants_more(),
            Phase::Open => self.way_to(from.other()).wants_more(),
            Phase::Over(_) => false,
        }
    }

    /// Whether this side is to be told that nobody takes what it sends; true once.
    pub fn take_refused(&mut self, from: Side) -> bool {
        self.to(from.other()).take_refused()
    }

    /// Whether bytes just read of this side may be written to the other one before they are handed in.
    #[must_use]
    pub fn passes(&self, from: Side) -> bool {
        let way = self.way_to(from.other());
        self.phase == Phase::Open && way.gate().is_none() && way.wants_more()
    }

    /// Whether the next bytes of this side are worth a pipe, if both sides are sockets.
    #[must_use]
    pub fn splices(&self, from: Side) -> bool {
        self.phase == Phase::Open && self.way_to(from.other()).wants_pipe()
    }

    /// Whether nothing of what is on its way to this side is in a pipe.
    #[must_use]
    pub const fn pipe_is_empty(&self, to: Side) -> bool {
        self.way_to(to).piped() == 0
    }

    /// Whether [`dial`](Self::dial) is to be called.
    #[must_use]
    pub fn wants_dial(&self) -> bool {
        self.phase == Phase::Dial
    }

    /// Whether a server was dialled and its answer is awaited.
    #[must_use]
    pub const fn connecting(&self) -> bool {
        matches!(self.phase, Phase::Connecting { .. })
    }

    /// Picks the next server to connect to; `None` if there is none to pick (then look at [`end`](Self::end)).
    pub fn dial(&mut self, now: Instant) -> Option<Address> {
        if self.phase != Phase::Dial {
            return None;
        }
        if self.tried.len() >= self.settings.attempts.max(1) {
            self.give_up();
            return None;
        }
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let client = self.source().map(|source| source.ip()).or(self.client);
        let seed = client.map_or(self.random, |client| self.settings.upstream.seed(self.random, client));
        match self.settings.upstream.pick(now, seed, &self.tried) {
            Ok(picked) => {
                self.tried.push(picked.id());
                let address = picked.address().clone();
                self.picked = Some(picked);
                self.header_taken = false;
                let until = after(now, self.settings.connect_timeout);
                self.phase = Phase::Connecting { until, accepted: false };
                Some(address)
            }
            Err(no) => {
                if self.last_failure.is_none() {
                    self.failures.push(no.reason());
                }
                self.give_up();
                None
            }
        }
    }

    /// Why it is over, once it is.
    #[must_use]
    pub const fn end(&self) -> Option<End> {
        match self.phase {
            Phase::Over(end) => Some(end),
            Phase::Header { .. } | Phase::Dial | Phase::Connecting { .. } | Phase::Open => None,
        }
    }

    /// How to close a side when it is over: with a reset if it was not told the end in order. A direction that ended
    /// in order is left to deliver what the kernel still holds of it; a side that is gone needs nothing, if its two
    /// directions end as one.
    #[must_use]
    pub fn aborts(&self, side: Side, ends_as_one: bool) -> bool {
        let needs_nothing = ends_as_one && self.gone == Some(side);
        !self.way_to(side).fin_sent && !needs_nothing
    }

    /// When [`Input::Deadline`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Header { until } => Some(until),
            Phase::Connecting { until, .. } => until,
            Phase::Open => {
                let frames = self.frame_timer().map(|(at, _)| at);
                [self.idle_at(), self.probe_at(), frames].into_iter().flatten().min()
            }
            Phase::Dial | Phase::Over(_) => None,
        }
    }

    /// Whether to look now for a side that is gone though nobody reads it; asked after [`Input::Deadline`].
    pub const fn take_probe(&mut self) -> bool {
        std::mem::replace(&mut self.probe, false)
    }

    /// What has been delivered since the last call.
    pub const fn take_moved(&mut self) -> Moved {
        let moved = Moved { up: self.up.moved - self.seen.up, down: self.down.moved - self.seen.down };
        self.seen = Moved { up: self.up.moved, down: self.down.moved };
        moved
    }

    /// Whole messages that have come of the client and of the server since the last call.
    pub fn take_messages(&mut self) -> (u64, u64) {
        let count = |way: &Way| way.gate().map_or(0, |gate| gate.messages);
        let now = (count(&self.up), count(&self.down));
        let before = std::mem::replace(&mut self.counted, now);
        (now.0 - before.0, now.1 - before.1)
    }

    /// Whether the client has shown that it is one: it has been joined to a server, and said something whole where there
    /// are messages.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Open && self.up.gate().is_none_or(|gate| gate.messages > 0)
    }

    /// What has been delivered in all, PROXY headers not counted.
    #[must_use]
    pub const fn delivered(&self) -> Moved {
        Moved { up: self.up.moved, down: self.down.moved }
    }

    /// Why servers failed since the last call.
    pub fn take_failures(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.failures)
    }

    /// The server in use.
    #[must_use]
    pub fn server(&self) -> Option<&Address> {
        self.picked.as_ref().map(Picked::address)
    }

    /// Who the client is, by its own PROXY header.
    #[must_use]
    pub fn source(&self) -> Option<SocketAddr> {
        match self.header {
            Some(Header::Proxied { source, .. }) => Some(source),
            Some(Header::Local) | None => None,
        }
    }

    /// Bytes of memory held in buffers and pipes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.up.held() + self.down.held()
    }

    /// So many of them are the stream's own; a pool answers for the others.
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        self.up.own_bytes() + self.down.own_bytes()
    }

    /// Gives the direction to a side an empty buffer to work with, if it has none.
    pub fn lend(&mut self, to: Side, buffer: impl FnOnce() -> Buf) {
        self.to(to).lend(buffer);
    }

    /// Lets go of buffers that hold nothing.
    pub fn free_unused(&mut self) {
        self.up.free_unused();
        self.down.free_unused();
    }

    const fn way_to(&self, side: Side) -> &Way {
        match side {
            Side::Client => &self.down,
            Side::Upstream => &self.up,
        }
    }

    const fn to(&mut self, side: Side) -> &mut Way {
        match side {
            Side::Client => &mut self.down,
            Side::Upstream => &mut self.up,
        }
    }

    fn bytes(&mut self, from: Side, bytes: &[u8], taken: usize, now: Instant) {
        let way = self.to(from.other());
        way.came(bytes.len());
        way.moved += taken as u64;
        let whole = way.push(bytes.get(taken..).unwrap_or_default(), now);
        self.moved_at = now;
        if let Err(error) = whole {
            self.cut(from, from.broke_frames(error), now);
        }
        if matches!(self.phase, Phase::Header { .. }) {
            self.read_header();
        }
    }

    fn read_header(&mut self) {
        match Header::decode(self.up.bytes()) {
            Ok(None) => {}
            Ok(Some((header, length))) => {
                self.up.skip(length);
                self.header = Some(header);
                self.phase = Phase::Dial;
            }
            Err(_) => self.over("proxy_malformed", Blame::Peer),
        }
    }

    fn eof(&mut self, from: Side, now: Instant) {
        if matches!(self.phase, Phase::Header { .. }) {
            self.over("proxy_malformed", Blame::Peer);
            return;
        }
        self.to(from.other()).fin_seen = true;
        let way = self.way_to(from.other());
        if way.gate().is_some() && way.has_part() {
            self.cut(from, from.ended_in_message(), now);
        }
    }

    /// A side broke the rules of messages. The messages before that pass; a client is answered them, a server is not
    /// believed to have ended in order.
    fn cut(&mut self, from: Side, reason: &'static str, now: Instant) {
        self.to(from.other()).cut_off();
        if from == Side::Upstream {
            self.blame_server(reason, now);
        }
        let until = after(now, LINGER).unwrap_or(now);
        self.cut = self.cut.or(Some(Cut { from, reason, until: Some(until) }));
        if from == Side::Client && self.up.gate().is_none_or(|gate| gate.messages == 0) {
            // Nothing of it was worth a server's time.
            self.over(reason, Blame::Peer);
        }
    }

    /// A server that breaks before it has said anything is to blame like one that refuses.
    fn blame_server(&mut self, reason: &'static str, now: Instant) {
        self.failures.push(reason);
        let said = self.down.gate().map_or(self.down.taken_in, |gate| gate.messages);
        if said == 0
            && let Some(picked) = &self.picked
        {
            picked.failed(now);
        }
    }

    fn reset(&mut self, side: Side, now: Instant) {
        self.gone = Some(side);
        self.note_reset(side, now);
        self.over(side.reset(), Blame::Peer);
    }

    fn note_reset(&mut self, side: Side, now: Instant) {
        self.note_failure(side, side.reset(), now);
    }

    fn note_failure(&mut self, side: Side, reason: &'static str, now: Instant) {
        if side == Side::Upstream && !self.up.broken {
            self.blame_server(reason, now);
        }
    }

    /// A side may have meant to say more: what came goes to its end, which is no end in order.
    fn truncated(&mut self, from: Side, now: Instant) {
        self.note_failure(from, from.truncated(), now);
        if self.phase != Phase::Open {
            self.over(from.truncated(), Blame::Peer);
            return;
        }
        self.to(from.other()).cut_off();
        let reason = from.truncated();
        self.cut = self.cut.or(Some(Cut { from, reason, until: None }));
    }

    fn connected(&mut self, now: Instant) {
        if !self.connecting() {
            return;
        }
        if let Some(picked) = &self.picked {
            picked.succeeded(now);
        }
        if let Some(header) = self.header_out().filter(|_| !self.header_taken) {
            self.up.push_front(&header);
        }
        self.phase = Phase::Open;
        self.moved_at = now;
    }

    /// The PROXY header for the server.
    #[must_use]
    pub fn header_out(&self) -> Option<Vec<u8>> {
        self.settings.proxy_out.map(|version| self.header.unwrap_or(self.local).encode(version))
    }

    fn connect_failed(&mut self, failure: Failure, now: Instant) {
        if !self.connecting() {
            return;
        }
        self.failures.push(failure.reason());
        self.last_failure = Some(failure);
        if let Some(picked) = self.picked.take()
            && failure != Failure::Local
        {
            picked.failed(now);
        }
        self.phase = Phase::Dial;
    }

    fn give_up(&mut self) {
        self.over(self.last_failure.map_or("no_upstream", Failure::reason), Blame::Nobody);
    }

    /// Ends what has nothing left to do.
    fn settle(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        for side in [Side::Client, Side::Upstream] {
            // A side that takes no more is gone, but what it had sent before goes to its end first.
            if self.way_to(side).broken && (self.way_to(side.other()).fin_sent || self.way_to(side.other()).broken) {
                self.over(side.reset(), Blame::Peer);
                return;
            }
        }
        if let Some(Cut { from, reason, until }) = self.cut {
            let passed = self.way_to(from.other()).is_empty() && (from == Side::Upstream || until.is_none());
            if passed || (self.up.fin_sent && self.down.fin_sent) {
                self.over(reason, Blame::Peer);
            }
            return;
        }
        if self.up.fin_sent && self.down.fin_sent {
            self.over(if self.draining { "drained" } else { "finished" }, Blame::Nobody);
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        match self.phase {
            Phase::Header { .. } => self.over("proxy_timeout", Blame::Peer),
            Phase::Connecting { accepted: false, .. } => self.connect_failed(Failure::Timeout, now),
            Phase::Connecting { accepted: true, .. } => self.connect_failed(Failure::HandshakeTimeout, now),
            Phase::Open if self.idle_at().is_some_and(|at| at <= now) => self.over("idle", Blame::Nobody),
            Phase::Open => match self.frame_timer().filter(|(at, _)| *at <= now) {
                Some((_, reason)) => {
                    if reason.starts_with("upstream") {
                        self.blame_server(reason, now);
                    }
                    self.over(reason, Blame::Peer);
                }
                None => {
                    self.probed_at = now;
                    self.probe = true;
                }
            },
            Phase::Dial | Phase::Over(_) => {}
        }
    }

    /// The first of the timers that only messages have, and the end it leads to.
    fn frame_timer(&self) -> Option<(Instant, &'static str)> {
        let frames = self.settings.frames?;
        if let Some(Cut { reason, until: Some(until), .. }) = self.cut {
            return Some((until, reason));
        }
        let (up, down) = (self.up.gate()?, self.down.gate()?);
        let whole = |gate: &Gate| after(gate.began?, frames.message_timeout?);
        let slow = |gate: &Gate| after(gate.waiting?, frames.slow_after);
        let first = frames.first_message.filter(|_| up.messages == 0).and_then(|time| after(self.opened, time));
        [
            (first, "first_message_timeout"),
            (whole(up), "message_timeout"),
            (whole(down), "upstream_message_timeout"),
            (slow(down), "slow_reader"),
            (slow(up), "upstream_slow"),
        ]
        .into_iter()
        .filter_map(|(at, reason)| Some((at?, reason)))
        .min_by_key(|(at, _)| *at)
    }

    fn idle_at(&self) -> Option<Instant> {
        after(self.moved_at, self.settings.idle?)
    }

    fn probe_at(&self) -> Option<Instant> {
        let all_read = self.wants_read(Side::Client) && self.wants_read(Side::Upstream);
        if all_read { None } else { after(self.moved_at.max(self.probed_at), PROBE_EVERY) }
    }

    const fn over(&mut self, reason: &'static str, blame: Blame) {
        self.phase = Phase::Over(End { reason, blame });
    }
}

/// A time so long that it overflows never comes.
fn after(from: Instant, time: Duration) -> Option<Instant> {
    from.checked_add(time)
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
