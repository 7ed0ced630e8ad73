//! The decisions of one relayed stream.
//!
//! In: what was read of either side and how much of it the other side took at once, ends, resets, the fate of
//! attempts to connect, time. Out: which server to dial, what to write where, when to tell a side that no more comes,
//! the end with its reason. After every `handle` ask `end`, `wants_dial`, `poll` for both sides and `deadline` again.
//! Nothing here reads a clock or a socket.

use std::net::SocketAddr;
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
    },
    Open,
    Over(End),
}

/// A side is not listened to any more; what it had sent before goes to its end first.
#[derive(Debug, Clone, Copy)]
struct Cut {
    from: Side,
    reason: &'static str,
    until: Instant,
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
    local: Header,
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
            local: header,
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
        let client = match self.header.unwrap_or(self.local) {
            Header::Proxied { source, .. } => Some(source.ip()),
            Header::Local => None,
        };
        let seed = client.map_or(self.random, |client| self.settings.upstream.seed(self.random, client));
        match self.settings.upstream.pick(now, seed, &self.tried) {
            Ok(picked) => {
                self.tried.push(picked.id());
                let address = picked.address().clone();
                self.picked = Some(picked);
                self.phase = Phase::Connecting { until: after(now, self.settings.connect_timeout) };
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
            Phase::Connecting { until } => until,
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
        self.cut = self.cut.or(Some(Cut { from, reason, until }));
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
        if side == Side::Upstream && !self.up.broken {
            self.blame_server("upstream_reset", now);
        }
    }

    fn connected(&mut self, now: Instant) {
        if !self.connecting() {
            return;
        }
        if let Some(picked) = &self.picked {
            picked.succeeded(now);
        }
        if let Some(version) = self.settings.proxy_out {
            let header = self.header.unwrap_or(self.local).encode(version);
            self.up.push_front(&header);
        }
        self.phase = Phase::Open;
        self.moved_at = now;
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
        if let Some(Cut { from, reason, .. }) = self.cut {
            if (from == Side::Upstream && self.down.is_empty()) || (self.up.fin_sent && self.down.fin_sent) {
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
            Phase::Connecting { .. } => self.connect_failed(Failure::Timeout, now),
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
        if let Some(Cut { reason, until, .. }) = self.cut {
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
mod tests {
    use super::super::codec::ProxyVersion;
    use super::super::state_gate::Frames;
    use crate::transports::framed::Format;
    use crate::transports::kit::balance::{BalanceSettings, Balancer};
    use proptest::prelude::*;

    use super::*;

    fn settings() -> RelaySettings {
        let servers = (1..=3).map(|port| Address::Tcp(([127, 0, 0, 1], port).into())).collect();
        RelaySettings::new(Balancer::new(servers, BalanceSettings::default()), Arc::from("app"))
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn start() -> Instant {
        Instant::now()
    }

    fn open(settings: RelaySettings, now: Instant) -> State {
        let mut state = State::new(Arc::new(settings), Header::Local, 1, now);
        assert!(state.dial(now).is_some());
        state.handle(Input::Connected, now);
        state
    }

    fn reason(state: &State) -> Option<&'static str> {
        state.end().map(|end| end.reason)
    }

    fn came(from: Side, bytes: &[u8], taken: usize) -> Input<'_> {
        Input::Bytes { from, bytes, taken }
    }

    #[test]
    fn each_server_is_tried_once_and_at_most_so_many() {
        let now = start();
        for attempts in 0..5 {
            let mut state = State::new(Arc::new(RelaySettings { attempts, ..settings() }), Header::Local, 1, now);
            let mut dialled = Vec::new();
            while let Some(address) = state.dial(now) {
                assert!(!dialled.contains(&address));
                dialled.push(address);
                assert_eq!(state.deadline(), Some(now + Duration::from_secs(5)));
                state.handle(Input::Deadline, now + Duration::from_secs(4));
                assert!(state.connecting(), "not yet");
                state.handle(Input::Deadline, now + Duration::from_secs(5));
            }
            assert_eq!(dialled.len(), attempts.clamp(1, 3));
            assert_eq!(reason(&state), Some("connect_timeout"));
            assert_eq!(state.take_failures(), vec!["connect_timeout"; dialled.len()]);
        }
    }

    #[test]
    fn an_answer_that_came_before_the_server_broke_is_delivered_to_its_end() {
        let now = start();
        let mut state = open(settings(), now);
        state.handle(came(Side::Client, b"upload", 0), now);
        state.handle(Input::WriteFailed(Side::Upstream), now);
        assert_eq!(reason(&state), None);
        assert!(!state.wants_read(Side::Client), "nobody takes it");
        assert_eq!(state.poll(Side::Upstream), Next::Wait);
        state.handle(came(Side::Upstream, b"no, thanks", 3), now);
        assert_eq!(state.poll(Side::Client), Next::Write(b" thanks"));
        state.handle(Input::Written(Side::Client, 7), now);
        state.handle(Input::Eof(Side::Upstream), now);
        assert_eq!(state.poll(Side::Client), Next::Finish);
        state.handle(Input::FinSent(Side::Client), now);
        assert_eq!(reason(&state), Some("upstream_reset"));
        assert!(!state.aborts(Side::Client, true), "the kernel may still hold the answer");
        assert_eq!(state.take_failures(), ["upstream_reset"]);
    }

    #[test]
    fn a_reset_that_a_write_met_first_is_passed_on_as_one() {
        let now = start();
        let mut state = open(settings(), now);
        state.handle(came(Side::Client, b"upload", 0), now);
        state.handle(Input::WriteReset(Side::Upstream), now);
        state.handle(came(Side::Upstream, b"half an ans", 11), now);
        assert_eq!(reason(&state), None, "what was sent before it is delivered");
        state.handle(Input::Eof(Side::Upstream), now);
        assert_eq!(reason(&state), Some("upstream_reset"));
        assert!(state.aborts(Side::Client, true) && !state.aborts(Side::Upstream, true));
        assert_eq!(state.take_failures(), ["upstream_reset"], "counted once");
    }

    #[test]
    fn a_side_that_is_not_read_is_looked_after() {
        let now = start();
        let mut state = open(settings(), now);
        assert_eq!(state.deadline(), None);
        state.handle(came(Side::Client, b"stalled", 0), now);
        let at = state.deadline().unwrap();
        state.handle(Input::Deadline, at);
        assert!(state.take_probe() && !state.take_probe());
        assert!(state.deadline().unwrap() > at);
        state.handle(Input::Written(Side::Upstream, 7), at);
        assert_eq!(state.deadline(), None);
    }

    #[test]
    fn a_header_for_the_server_goes_ahead_of_what_came_early() {
        let now = start();
        let set = RelaySettings { proxy_out: Some(ProxyVersion::V1), ..settings() };
        let mut state = State::new(Arc::new(set), Header::Local, 1, now);
        state.handle(came(Side::Client, b"early", 0), now);
        assert!(!state.wants_read(Side::Client), "once");
        state.dial(now);
        state.handle(Input::Connected, now);
        assert_eq!(state.poll(Side::Upstream), Next::Write(b"PROXY UNKNOWN\r\nearly"));
        state.handle(Input::Written(Side::Upstream, 16), now);
        state.handle(Input::Written(Side::Upstream, 4), now);
        assert_eq!(state.take_moved(), Moved { up: 5, down: 0 }, "the header is not counted");
    }

    fn framed(now: Instant) -> State {
        let frames = Frames {
            format: Format::default(),
            first_message: Some(Duration::from_secs(1)),
            message_timeout: Some(Duration::from_secs(2)),
            slow_after: Duration::from_secs(3),
        };
        open(RelaySettings { frames: Some(frames), ..settings() }, now)
    }

    #[test]
    fn only_whole_messages_pass_and_none_of_it_is_passed_by() {
        let now = start();
        let mut state = framed(now);
        assert!(!state.passes(Side::Client) && !state.splices(Side::Client));
        state.handle(came(Side::Client, b"\0\0\0\x03abc\0\0\0\x02d", 0), now);
        assert_eq!(state.poll(Side::Upstream), Next::Write(b"\0\0\0\x03abc"));
        assert!(!state.wants_read(Side::Client), "while a message waits");
        state.handle(Input::Written(Side::Upstream, 7), now);
        assert_eq!(state.poll(Side::Upstream), Next::Wait);
        assert!(state.wants_read(Side::Client));
        state.handle(came(Side::Client, b"e", 0), now);
        assert_eq!(state.poll(Side::Upstream), Next::Write(b"\0\0\0\x02de"));
        assert_eq!((state.take_messages(), state.take_messages()), ((2, 0), (0, 0)));
    }

    #[test]
    fn each_timer_of_messages_leads_to_its_end() {
        let now = start();
        let part = b"\0\0\0\x03a";
        let whole = b"\0\0\0\x01a";
        type Events<'a> = &'a [(Side, &'a [u8])];
        let cases: [(Events<'_>, u64, &str); 5] = [
            (&[], 1, "first_message_timeout"),
            (&[(Side::Upstream, part), (Side::Client, whole)], 2, "upstream_message_timeout"),
            (&[(Side::Upstream, whole)], 1, "first_message_timeout"),
            (&[(Side::Client, whole)], 3, "upstream_slow"),
            (&[(Side::Client, &[0, 0, 0, 1, b'a', 0]), (Side::Upstream, whole)], 3, "slow_reader"),
        ];
        for (events, seconds, end) in cases {
            let mut state = framed(now);
            for (from, bytes) in events {
                state.handle(came(*from, bytes, 0), now);
            }
            let at = now + Duration::from_secs(seconds);
            assert_eq!(state.deadline(), Some(at), "{end}");
            state.handle(Input::Deadline, at);
            assert_eq!(reason(&state), Some(end));
        }
        // What is taken in time starts the clock anew.
        let mut state = framed(now);
        state.handle(came(Side::Client, &[0, 0, 0, 1, b'a', 0], 0), now);
        let later = now + Duration::from_secs(1);
        state.handle(Input::Written(Side::Upstream, 5), later);
        assert_eq!(state.deadline(), Some(later + Duration::from_secs(2)), "now the next message is awaited");
    }

    proptest! {
        #[test]
        fn any_cuts_of_any_messages_give_the_same_messages(
            sizes in proptest::collection::vec(0usize..40, 0..20),
            cuts in proptest::collection::vec(1usize..50, 1..50),
        ) {
            let now = start();
            let mut state = framed(now);
            let frame = |size: &usize| [&(*size as u32).to_be_bytes()[..], &vec![*size as u8; *size]].concat();
            let sent: Vec<u8> = sizes.iter().flat_map(frame).collect();
            let (mut at, mut got, mut cuts) = (0, Vec::new(), cuts.iter().cycle());
            while got.len() < sent.len() {
                if state.wants_read(Side::Client) {
                    let end = (at + cuts.next().unwrap()).min(sent.len());
                    state.handle(came(Side::Client, &sent[at..end], 0), now);
                    at = end;
                }
                if let Next::Write(bytes) = state.poll(Side::Upstream) {
                    let count = (*cuts.next().unwrap()).min(bytes.len());
                    got.extend_from_slice(&bytes[..count]);
                    state.handle(Input::Written(Side::Upstream, count), now);
                }
            }
            prop_assert_eq!(&got, &sent);
            prop_assert_eq!(state.take_messages(), (sizes.len() as u64, 0));
            state.handle(Input::Eof(Side::Client), now);
            prop_assert_eq!(state.poll(Side::Upstream), Next::Finish);
        }
    }

    /// A direction that may use a pipe.
    fn streaming(now: Instant) -> State {
        let mut state = open(settings(), now);
        let bytes = vec![0; 16 << 10];
        for n in 0..4 {
            assert!(!state.splices(Side::Client), "{n}");
            state.handle(came(Side::Client, &bytes, bytes.len()), now);
        }
        assert!(state.splices(Side::Client));
        assert!(!state.splices(Side::Upstream), "the other direction has moved nothing");
        state
    }

    #[test]
    fn a_pipe_is_for_large_pieces_of_what_has_moved_much() {
        let now = start();
        let mut state = streaming(now);
        state.handle(came(Side::Client, &[0; 100], 100), now);
        assert!(!state.splices(Side::Client), "small pieces");
        state.handle(came(Side::Client, &[0; 16 << 10], 100), now);
        assert!(!state.splices(Side::Client), "something waits");
        state.handle(Input::Written(Side::Upstream, (16 << 10) - 100), now);
        assert!(state.splices(Side::Client));
        state.handle(Input::NoPipe(Side::Client), now);
        for n in 0..64 {
            assert!(!state.splices(Side::Client), "{n}: there was none");
            state.handle(came(Side::Client, &[0; 16 << 10], 16 << 10), now);
        }
        assert!(state.splices(Side::Client), "after a megabyte it asks again");
    }

    #[test]
    fn what_waits_in_a_pipe_counts_like_what_waits_in_memory() {
        let now = start();
        let mut state = streaming(now);
        state.take_moved();
        state.handle(Input::Piped(Side::Client, 100_000), now);
        assert_eq!((state.held(), state.take_moved()), (100_000, Moved::default()));
        assert!(!state.wants_read(Side::Client) && !state.splices(Side::Client) && !state.passes(Side::Client));
        assert!(state.deadline().is_some(), "a side that is not read is looked after");
        state.handle(Input::Unpiped(Side::Upstream, 40_000), now);
        assert_eq!((state.held(), state.poll(Side::Upstream)), (60_000, Next::Splice(60_000)));
        state.handle(Input::Eof(Side::Client), now);
        assert_eq!(state.poll(Side::Upstream), Next::Splice(60_000), "the end comes behind all bytes");
        state.handle(Input::Unpiped(Side::Upstream, 60_000), now);
        assert_eq!(state.poll(Side::Upstream), Next::Finish);
        assert_eq!((state.held(), state.take_moved()), (0, Moved { up: 100_000, down: 0 }));
        assert!(state.pipe_is_empty(Side::Upstream));
    }

    #[test]
    fn a_side_that_breaks_over_a_full_pipe_leaves_nothing_behind() {
        let now = start();
        let mut state = streaming(now);
        state.handle(Input::Piped(Side::Client, 100_000), now);
        state.handle(Input::WriteFailed(Side::Upstream), now);
        assert_eq!((state.held(), state.poll(Side::Upstream)), (0, Next::Wait));
        state.handle(Input::Unpiped(Side::Upstream, 100_000), now);
        assert_eq!(state.delivered().up, 64 << 10, "none of it was delivered");
    }

    proptest! {
        /// Whatever happens in whatever order: bytes come out as they went in, nothing moves after the end, and who
        /// is not to be read holds one read at most.
        #[test]
        fn any_course_of_events(steps in proptest::collection::vec((0u8..12, any::<bool>(), 0usize..50), 0..200)) {
            let now = start();
            let mut state = open(settings(), now);
            // Bytes in pipes, by the side they go to.
            let mut piped = [Vec::new(), Vec::new()];
            let mut sent = [Vec::new(), Vec::new()];
            let mut got = [Vec::new(), Vec::new()];
            let mut next = 0u8;
            for (what, client, count) in steps {
                let side = if client { Side::Client } else { Side::Upstream };
                let to = usize::from(client);
                if state.end().is_some() {
                    prop_assert!(!state.wants_read(side) && !state.passes(side) && !state.wants_dial());
                    prop_assert_eq!(state.poll(side), Next::Wait);
                    prop_assert_eq!(state.deadline(), None);
                }
                match what {
                    0..=3 if state.wants_read(side) => {
                        let bytes: Vec<u8> = (0..count.max(1)).map(|_| { next = next.wrapping_add(1); next }).collect();
                        let taken = if state.passes(side) { bytes.len() / 2 } else { 0 };
                        sent[to].extend_from_slice(&bytes);
                        got[to].extend_from_slice(&bytes[..taken]);
                        state.handle(came(side, &bytes, taken), now);
                        prop_assert!(taken == bytes.len() || !state.wants_read(side));
                    }
                    4..=7 => match state.poll(side.other()) {
                        Next::Write(bytes) => {
                            let count = count.clamp(1, bytes.len());
                            got[to].extend_from_slice(&bytes[..count]);
                            state.handle(Input::Written(side.other(), count), now);
                        }
                        Next::Finish => {
                            prop_assert_eq!(&sent[to], &got[to], "an end comes behind all bytes");
                            state.handle(Input::FinSent(side.other()), now);
                        }
                        Next::Splice(waiting) => {
                            prop_assert_eq!(waiting, piped[to].len());
                            let count = count.clamp(1, waiting);
                            got[to].extend(piped[to].drain(..count));
                            state.handle(Input::Unpiped(side.other(), count), now);
                        }
                        Next::Wait => {}
                    },
                    // Whether it is worth it is for others to say: here whatever may be read may go into a pipe.
                    10.. if state.passes(side) => {
                        let bytes: Vec<u8> = (0..count.max(1)).map(|_| { next = next.wrapping_add(1); next }).collect();
                        sent[to].extend_from_slice(&bytes);
                        state.handle(Input::Piped(side, bytes.len()), now);
                        piped[to] = bytes;
                        prop_assert!(!state.wants_read(side) && !state.passes(side));
                    }
                    8 if state.wants_read(side) && count < 10 => state.handle(Input::Eof(side), now),
                    9 if count == 0 => state.handle(Input::Reset(side), now),
                    9 if count == 1 => {
                        state.handle(Input::WriteFailed(side), now);
                        piped[usize::from(!client)].clear();
                    }
                    _ => {}
                }
            }
            for way in 0..2 {
                prop_assert!(sent[way].starts_with(&got[way]));
            }
            if reason(&state) == Some("finished") {
                prop_assert_eq!(sent, got);
            }
        }
    }
}
