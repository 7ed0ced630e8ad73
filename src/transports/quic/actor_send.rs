//! From QUIC to the socket: packets of one connection in trains, paced, and kept when the socket takes no more.
//!
//! Packets are written straight into a buffer all actors of the arbiter share and leave in one system call per train.
//! QUIC writes each with all the room a datagram has, so that it cuts no frame: packets as long as the first join its
//! train, a shorter one is its last, and a longer one begins the next. What the socket refuses is copied aside and sent
//! first when there is room again: a packet that QUIC has made is never lost here. An error that concerns one train
//! alone (no route, too long) is one lost on the way, counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Instant;

use super::actor_engine::{Engine, Phase};
use super::actor_paths::Asking;
use super::actor_shared::{Counters, Shared};
use super::settings::Congestion;
use super::state_pacer::{Pacer, Path};
use crate::transports::udp::Transmit;

/// Trains of one turn, at most: then others have theirs.
const TRAINS: usize = 4;
/// Bytes after which a turn begins no further train while others on the arbiter have work: about a train, which takes 70
/// µs. They wait for what is left of such a turn, and for the whole of the next one.
const SHARED: usize = 48 << 10;
/// Bytes of a train, at most: less than the kernel's 65,535 with headers.
const TRAIN_BYTES: usize = 65_000;

/// Where trains go.
pub(super) trait Way {
    /// Datagrams of a train, at most.
    fn most(&self) -> usize;

    /// Takes datagrams of a train from its front; answers how many bytes.
    fn take(&self, bytes: &[u8], segment: Option<usize>, from: SocketAddr, to: SocketAddr) -> io::Result<usize>;

    /// Where it is counted.
    fn counters(&self) -> &Counters;
}

impl Way for Shared {
    fn most(&self) -> usize {
        self.socket.max_gso_segments()
    }

    fn take(&self, bytes: &[u8], segment: Option<usize>, from: SocketAddr, to: SocketAddr) -> io::Result<usize> {
        let src_ip = self.answers_from_asked.then_some(from.ip());
        let transmit = Transmit { destination: to, ecn: None, contents: bytes, segment_size: segment, src_ip };
        self.try_send(from, &transmit)
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// What the socket did not take.
struct Pending {
    bytes: Vec<u8>,
    segment: Option<usize>,
    from: SocketAddr,
    to: SocketAddr,
}

/// How a turn of sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// QUIC has nothing more.
    All,
    /// There is more for the next turn.
    More,
    /// The pacer allows no more before this instant.
    Paced(Instant),
    /// The socket takes no more.
    Blocked,
}

/// The way out of one connection.
pub(super) struct Outlet {
    pacer: Pacer,
    /// At most the rest of a train, the packet behind it, and one for each path that is asked again.
    pending: VecDeque<Pending>,
    /// The packet that closes the connection has left.
    pub(super) close_left: bool,
    /// Bytes of all packets.
    pub(super) sent: u64,
    /// The path as it was when something of it was heard last, and whether something was since.
    path: Option<Path>,
    stale: bool,
}

/// A packet as QUIC has written it.
#[derive(Debug, Clone, Copy)]
struct Packet {
    length: usize,
    from: SocketAddr,
    to: SocketAddr,
}

/// A train in the front of the buffer.
struct Train {
    length: usize,
    first: Packet,
    count: usize,
    /// The packet behind it, which is too long for it or goes elsewhere.
    next: Option<Packet>,
    /// QUIC had nothing more.
    last: bool,
}

impl Outlet {
    pub(super) const fn new(now: Instant) -> Self {
        Self { pacer: Pacer::new(now), pending: VecDeque::new(), close_left: false, sent: 0, path: None, stale: true }
    }

    /// Packets, or the time, have told QUIC something of the path.
    pub(super) const fn heard(&mut self) {
        self.stale = true;
    }

    /// Whether packets wait for the socket.
    pub(super) fn is_blocked(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Sends what may be sent in one turn, less of it if it is not `alone` on its arbiter, `buffer` being scratch space.
    pub(super) fn send(&mut self, engine: &mut Engine, way: &impl Way, buffer: &mut [u8], alone: bool) -> Sent {
        for Asking { bytes, from, to } in engine.paths.asking.drain(..) {
            way.counters().packets_out.add(1);
            way.counters().bytes_out.add(bytes.len() as u64);
            self.sent += bytes.len() as u64;
            self.pending.push_back(Pending { bytes, segment: None, from, to });
        }
        while let Some(pending) = self.pending.pop_front() {
            if !self.offer(way, &pending.bytes, pending.segment, pending.from, pending.to) {
                return Sent::Blocked;
            }
        }
        engine.begin_send();
        let ending = engine.phase == Phase::Ended;
        let paced = engine.settings.pacing && engine.phase != Phase::Handshaking && !ending;
        if paced && engine.settings.congestion != Congestion::Bbr2 {
            if std::mem::replace(&mut self.stale, false) {
                let path = engine.quic.path_stats().find(|path| path.active);
                let packet = engine.quic.max_send_udp_payload_size();
                self.path = path.map(|path| Path { window: path.cwnd, rtt: path.rtt, packet });
            }
            if let Some(path) = self.path {
                self.pacer.update(path, engine.now);
            }
        }
        // A packet that was made leaves, whatever the pacer and the number of trains say.
        let mut made: Option<Packet> = None;
        let mut trains = 0;
        let mut sent = 0;
        let enough = if alone { usize::MAX } else { SHARED };
        while trains < TRAINS && sent < enough || made.is_some() {
            let mut allowance = usize::MAX;
            if paced {
                allowance = self.pacer.allowance();
                if made.is_none() {
                    if let Some(at) = engine.quic.get_next_release_time().and_then(|at| at.time(engine.now)) {
                        return Sent::Paced(at);
                    }
                    if allowance == 0
                        && let Some(at) = self.pacer.ready_at().filter(|at| *at > engine.now)
                    {
                        return Sent::Paced(at);
                    }
                }
            }
            if made.is_none() {
                engine.next_end();
            }
            let most = if trains < TRAINS && sent < enough { way.most() } else { 1 };
            trains += 1;
            let Some(train) = build(engine, made.take(), buffer, allowance, most) else { return Sent::All };
            self.pacer.spent(train.length);
            sent += train.length;
            way.counters().packets_out.add(train.count as u64);
            way.counters().bytes_out.add(train.length as u64);
            self.sent += train.length as u64;
            let segment = (train.count > 1).then_some(train.first.length);
            let bytes = buffer.get(..train.length).unwrap_or_default();
            let (from, to) = engine.addressed(train.first.from, train.first.to);
            let gone = self.offer(way, bytes, segment, from, to);
            if let Some(next) = train.next {
                let place = train.length..train.length + next.length;
                if gone {
                    buffer.copy_within(place, 0);
                    made = Some(next);
                } else {
                    let bytes = buffer.get(place).unwrap_or_default().to_vec();
                    self.pacer.spent(next.length);
                    way.counters().packets_out.add(1);
                    way.counters().bytes_out.add(next.length as u64);
                    self.sent += next.length as u64;
                    let (from, to) = engine.addressed(next.from, next.to);
                    self.pending.push_back(Pending { bytes, segment: None, from, to });
                }
            }
            if !gone {
                return Sent::Blocked;
            }
            self.close_left |= ending;
            // To ask QUIC once more is not free: it copies the peer's transport parameters at each call.
            if train.last && !engine.has_ends() {
                return Sent::All;
            }
        }
        Sent::More
    }

    /// True if the socket is done with the bytes.
    fn offer(
        &mut self,
        way: &impl Way,
        bytes: &[u8],
        segment: Option<usize>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> bool {
        let gone = match way.take(bytes, segment, from, to) {
            Ok(gone) => gone,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => {
                way.counters().send_errors.add(1);
                tracing::debug!(%to, %error, "not sent");
                return true;
            }
        };
        let rest = bytes.get(gone..).unwrap_or_default();
        if rest.is_empty() {
            return true;
        }
        way.counters().send_blocked.add(1);
        self.pending.push_front(Pending { bytes: rest.to_vec(), segment, from, to });
        false
    }
}

/// Lets QUIC write packets behind each other as long as they are of one path, the first of them being there already if it was `made`, until
/// one is not as long as the first, there is no more, or the allowance is spent.
fn build(engine: &mut Engine, made: Option<Packet>, buffer: &mut [u8], allowance: usize, most: usize) -> Option<Train> {
    let first = match made {
        Some(made) => made,
        None => match engine.quic.send(buffer) {
            Ok((length, info)) => Packet { length, from: info.from, to: info.to },
            Err(quiche::Error::Done) => return None,
            Err(error) => {
                tracing::debug!(%error, "QUIC could not make a packet");
                return None;
            }
        },
    };
    let mut train = Train { length: first.length, first, count: 1, next: None, last: false };
    // A longer one looks for the size of the path: a train whose datagrams are too long is lost as a whole.
    let full = engine.quic.max_send_udp_payload_size().max(first.length);
    while train.count < most && train.length < allowance {
        let end = train.length + full;
        if end > TRAIN_BYTES {
            break;
        }
        let Some(room) = buffer.get_mut(train.length..end) else { break };
        // Of any path: to name one would have it looked up for each packet.
        let (length, info) = match engine.quic.send(room) {
            Ok(made) => made,
            Err(error) => {
                train.last = error == quiche::Error::Done;
                break;
            }
        };
        if length > first.length || (info.from, info.to) != (first.from, first.to) {
            train.next = Some(Packet { length, from: info.from, to: info.to });
            break;
        }
        train.length += length;
        train.count += 1;
        if length < first.length {
            break;
        }
    }
    Some(train)
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
