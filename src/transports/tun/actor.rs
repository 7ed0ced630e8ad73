//! The actor of one TUN interface: reads packets and hands them on in batches, writes the batches it is told to.
//!
//! What goes out of the kernel: super-packets, cut into a batch, handed to a [`Deliver`]; one that has no room makes
//! this actor stop reading and try again within a millisecond, while the kernel queues and then drops as for any slow
//! link. What comes in: batches ([`TunMsg::Write`]), joined to super-packets, one write each. Writing never waits. An
//! interface that is removed while it runs ends the actor, with the reason `tun_gone`: the next packet shows it, or one
//! read a second where there is none, since the event loop is not told.
//!
//! Counted by the interface's scope: `tun_packets_out`, `tun_packets_in` and `tun_writes`; `tun_dropped` with its
//! reason; `tun_offload_off` when joining was given up.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::codec::{Gso, LONGEST_READ, VIRTIO_HEADER, VirtioHeader};
use super::codec_merge::{Item, Joins, LONGEST_HEADERS, MOST_JOINED, Merge};
use super::codec_split::Cut;
use super::device::Tun;
use super::state::{After, State};
use crate::actors::{Counter, Fault, Layer, Mail, Progress, Protocol, Refused, Turn, clock};
use crate::transports::kit::packets::{Deliver, Packets};

/// Reads in one turn, at most: some 2 MiB of super-packets.
const READS_PER_TURN: usize = 32;
/// How long a receiver without room is given before it is offered the batch again.
const RETRY: Duration = Duration::from_micros(500);
/// How often it is looked whether the interface is still there.
const LOOK: Duration = Duration::from_secs(1);
/// At its end: a kernel that has sent nothing for so long has nothing more to send. Longer than Linux waits for an
/// acknowledgement on a short path (200 ms at least, RFC 6298 asks for a second).
const QUIET: Duration = Duration::from_millis(250);

/// What others may tell the actor of an interface.
#[derive(Debug)]
#[non_exhaustive]
pub enum TunMsg {
    /// Write these to the interface.
    Write(Packets),
}

/// Hands batches to the actor of an interface.
#[derive(Debug, Clone)]
pub struct ToTun(pub Mail<TunMsg>);

impl Deliver for ToTun {
    fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets> {
        match self.0.tell(TunMsg::Write(packets)) {
            Ok(()) => Ok(Packets::none()),
            Err(
                Refused::Full(TunMsg::Write(packets))
                | Refused::Closed(TunMsg::Write(packets))
                | Refused::TooLarge(TunMsg::Write(packets)),
            ) => Err(packets),
        }
    }
}

/// What an interface counts, on its own arbiter.
#[derive(Debug, Default)]
struct Counters {
    out: Counter,
    inward: Counter,
    writes: Counter,
}

/// The actor.
pub struct TunActor<D> {
    tun: io::Result<AsyncFd<Tun>>,
    /// Whether reads and writes begin with a virtio header.
    header: bool,
    deliver: D,
    scope: Arc<str>,
    state: State,
    merge: Merge,
    counters: Counters,
    buffer: Box<[u8]>,
    /// Bytes of the packet in `buffer`, and how far it is cut.
    cutting: Option<(usize, Cut)>,
    filling: Packets,
    /// The receiver had no room; reading goes on then.
    retry_at: Option<Instant>,
    /// When it is looked whether the interface is still there.
    look_at: Instant,
    /// It is to end, and does then unless something comes before.
    quiet_at: Option<Instant>,
    gone: bool,
}

impl<D> fmt::Debug for TunActor<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunActor").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<D: Deliver> TunActor<D> {
    /// For an open interface, on the arbiter this is called on. `scope` names it in counters.
    pub fn new(tun: Tun, scope: Arc<str>, deliver: D) -> Self {
        let offloads = tun.offloads();
        Self {
            tun: tun.on_event_loop(),
            header: offloads.header,
            deliver,
            scope,
            state: State::new(Joins { tcp: offloads.tcp, udp: offloads.udp }),
            merge: Merge::default(),
            counters: Counters::default(),
            buffer: vec![0; LONGEST_READ].into_boxed_slice(),
            cutting: None,
            filling: Packets::none(),
            retry_at: None,
            look_at: clock::later(clock::now(), LOOK),
            quiet_at: None,
            gone: false,
        }
    }

    /// Reads until there is nothing more, the turn's share is used up, or the receiver has no room.
    fn read(&mut self, turn: &Turn<'_, TunMsg>) -> Progress {
        self.look(turn);
        let mut reads = 0;
        while self.retry_at.is_none() && !self.gone {
            if let Some((length, mut cut)) = self.cutting.take() {
                let from = if self.header { VIRTIO_HEADER } else { 0 };
                let packet = self.buffer.get(from..length).unwrap_or_default();
                if self.filling.held() == 0 {
                    self.filling = Packets::lent(|bytes| turn.buffer(bytes));
                }
                if !cut.fill(packet, &mut self.filling) {
                    if self.filling.is_empty() {
                        self.drop_packets(turn, "too_long", 1);
                        continue;
                    }
                    self.cutting = Some((length, cut));
                    self.hand_over(turn);
                    continue;
                }
            }
            if reads == READS_PER_TURN {
                self.hand_over(turn);
                return Progress::More;
            }
            reads += 1;
            let Ok(tun) = &self.tun else { break };
            let mut ready = match tun.poll_read_ready(&mut turn.cx()) {
                Poll::Pending => break,
                Poll::Ready(Ok(ready)) => ready,
                Poll::Ready(Err(_)) => {
                    self.gone = true;
                    break;
                }
            };
            match ready.try_io(|tun| tun.get_ref().read(&mut self.buffer)) {
                Err(_would_block) => {}
                Ok(Ok(length)) => self.take_in(turn, length),
                Ok(Err(error)) => self.read_failed(turn, &error),
            }
        }
        self.hand_over(turn);
        Progress::Idle
    }

    /// Reads without having been called: a read is what tells that the interface is gone.
    fn look(&mut self, turn: &Turn<'_, TunMsg>) {
        if turn.now() < self.look_at {
            return;
        }
        self.look_at = clock::later(turn.now(), LOOK);
        // What is cut lies in the buffer.
        if self.gone || self.cutting.is_some() {
            return;
        }
        let Ok(tun) = &self.tun else { return };
        match tun.get_ref().read(&mut self.buffer) {
            Ok(length) => self.take_in(turn, length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.read_failed(turn, &error),
        }
    }

    fn read_failed(&mut self, turn: &Turn<'_, TunMsg>, error: &io::Error) {
        match self.state.read_failed(error.raw_os_error().unwrap_or(0)) {
            After::Gone => self.gone = true,
            After::Lost(reason) => self.drop_packets(turn, reason, 1),
            After::Singly => {}
        }
    }

    /// Looks at what was read.
    fn take_in(&mut self, turn: &Turn<'_, TunMsg>, length: usize) {
        if let Some(quiet_at) = &mut self.quiet_at {
            *quiet_at = clock::later(turn.now(), QUIET);
        }
        let read = self.buffer.get(..length).unwrap_or_default();
        let cut = if self.header {
            VirtioHeader::decode(read)
                .and_then(|header| Cut::new(&header, read.get(VIRTIO_HEADER..).unwrap_or_default()))
        } else {
            Cut::new(&VirtioHeader::default(), read)
        };
        match cut {
            Ok(cut) => self.cutting = Some((length, cut)),
            Err(_) => self.drop_packets(turn, "malformed", 1),
        }
    }

    /// Offers what was read to the receiver.
    fn hand_over(&mut self, turn: &Turn<'_, TunMsg>) {
        if self.filling.is_empty() || self.retry_at.is_some() {
            return;
        }
        let count = self.filling.len() as u64;
        let full = std::mem::replace(&mut self.filling, Packets::none());
        match self.deliver.deliver(full) {
            Ok(empty) => {
                self.counters.out.add(count);
                self.filling = empty;
            }
            Err(full) => {
                self.filling = full;
                self.retry_at = Some(clock::later(turn.now(), RETRY));
            }
        }
    }

    /// Writes a batch.
    fn write(&mut self, packets: &Packets, turn: &Turn<'_, TunMsg>) {
        let joins = self.state.joins();
        let mut merge = std::mem::take(&mut self.merge);
        merge.plan(packets, joins);
        for item in merge.items() {
            if self.gone {
                self.drop_packets(turn, "gone", item.count());
                continue;
            }
            self.write_item(&merge, packets, item, turn);
        }
        self.merge = merge;
    }

    fn write_item(&mut self, merge: &Merge, packets: &Packets, item: Item, turn: &Turn<'_, TunMsg>) {
        let Ok(tun) = &self.tun else { return };
        let mut room = [0; LONGEST_HEADERS];
        let (headers, from) = merge.headers(packets, item, &mut room);
        let headers = if self.header { room.get(..headers) } else { None };
        let mut parts = [IoSlice::new(&[]); MOST_JOINED + 1];
        let mut used = 0;
        let payloads = merge.members(item).map(|number| packets.get(number).and_then(|packet| packet.get(from..)));
        for (to, part) in parts.iter_mut().zip(headers.into_iter().chain(payloads.flatten())) {
            *to = IoSlice::new(part);
            used += 1;
        }
        let kind = item.joined();
        self.counters.writes.add(1);
        let Err(error) = tun.get_ref().write(parts.get(..used).unwrap_or_default()) else {
            self.counters.inward.add(item.count() as u64);
            return;
        };
        match self.state.write_failed(kind.is_some(), error.raw_os_error().unwrap_or(0)) {
            After::Singly => self.write_singly(merge, packets, item, kind.unwrap_or_default(), turn),
            After::Lost(reason) => self.drop_packets(turn, reason, item.count()),
            After::Gone => {
                self.gone = true;
                self.drop_packets(turn, "gone", item.count());
            }
        }
    }

    /// The kernel refused a super-packet: each packet on its own, and no such super-packets any more if that works.
    fn write_singly(&mut self, merge: &Merge, packets: &Packets, item: Item, kind: Gso, turn: &Turn<'_, TunMsg>) {
        let header = VirtioHeader::default().encode();
        let mut taken = 0;
        for packet in merge.members(item).filter_map(|number| packets.get(number)) {
            let Ok(tun) = &self.tun else { return };
            self.counters.writes.add(1);
            match tun.get_ref().write(&[IoSlice::new(&header), IoSlice::new(packet)]) {
                Ok(_) => taken += 1,
                Err(error) => match self.state.write_failed(false, error.raw_os_error().unwrap_or(0)) {
                    After::Lost(reason) => self.drop_packets(turn, reason, 1),
                    After::Gone => self.gone = true,
                    After::Singly => {}
                },
            }
        }
        self.counters.inward.add(taken);
        if taken > 0 {
            self.state.give_up(kind);
            let reason = if kind == Gso::Udp { "udp" } else { "tcp" };
            turn.counter("tun_offload_off", &self.scope, reason).add(1);
            tracing::warn!(interface = %self.scope, reason, "the kernel refused a super-packet, none are written any more");
        }
    }

    fn drop_packets(&self, turn: &Turn<'_, TunMsg>, reason: &'static str, count: usize) {
        turn.counter("tun_dropped", &self.scope, reason).add(count as u64);
    }
}

impl<D: Deliver> Protocol for TunActor<D> {
    type Msg = TunMsg;
    const KIND: &'static str = "tun";
    const LAYER: Layer = Layer::Transport;

    fn size(m: &TunMsg) -> usize {
        match m {
            TunMsg::Write(packets) => packets.held(),
        }
    }

    fn label(_: &TunMsg) -> &'static str {
        "write"
    }

    fn started(&mut self, turn: &mut Turn<'_, TunMsg>) -> Result<(), Fault> {
        self.counters = Counters {
            out: turn.counter("tun_packets_out", &self.scope, ""),
            inward: turn.counter("tun_packets_in", &self.scope, ""),
            writes: turn.counter("tun_writes", &self.scope, ""),
        };
        match &self.tun {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::local("no_event_loop", error.to_string())),
        }
    }

    fn on(&mut self, m: TunMsg, turn: &mut Turn<'_, TunMsg>) -> Result<(), Fault> {
        match m {
            TunMsg::Write(packets) => self.write(&packets, turn),
        }
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, TunMsg>) -> Result<Progress, Fault> {
        Ok(self.read(turn))
    }

    fn flush(&mut self, _: &mut Turn<'_, TunMsg>) -> Result<Progress, Fault> {
        if self.gone { Err(Fault::local("tun_gone", "the interface was removed")) } else { Ok(Progress::Idle) }
    }

    /// Who spoke through it is gone, but the kernel still sends what they said last.
    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, TunMsg>) {
        self.quiet_at = Some(clock::later(turn.now(), QUIET));
    }

    fn deadline(&self) -> Option<Instant> {
        [self.retry_at, self.quiet_at, Some(self.look_at)].into_iter().flatten().min()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, TunMsg>) -> Result<(), Fault> {
        if self.quiet_at.is_some_and(|at| at <= turn.now()) {
            turn.stop();
        }
        // `io` follows in this turn and reads on.
        self.retry_at = self.retry_at.filter(|at| *at > turn.now());
        self.hand_over(turn);
        Ok(())
    }

    fn held(&self) -> usize {
        self.buffer.len() + self.filling.held()
    }
}
