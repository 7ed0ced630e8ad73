//! From QUIC to the socket: packets of one connection in trains, paced, and kept when the socket takes no more.
//!
//! Packets are written straight into a buffer all actors of the arbiter share and leave in one system call per train.
//! What the socket refuses is copied aside and sent first when there is room again: a packet that QUIC has made is
//! never lost here. An error that concerns one packet alone (no route, too long) is a packet lost on the way, counted.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Instant;

use super::actor_engine::{Engine, Phase};
use super::actor_shared::Shared;
use super::settings::Congestion;
use super::state_pacer::{Pacer, Path};
use crate::transports::udp::Transmit;

/// Trains of one turn, at most: then others have theirs.
const TRAINS: usize = 4;
/// Bytes of a train, at most: less than the kernel's 65,535 with headers.
const TRAIN_BYTES: usize = 65_000;
/// A first packet shorter than this leaves alone: those behind it would have to be as short.
const TRAIN_PACKET: usize = 1_200;

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
    pending: Option<Pending>,
    /// The packet that closes the connection has left.
    pub(super) close_left: bool,
}

/// A train as QUIC has written it into the buffer.
struct Train {
    length: usize,
    packet: usize,
    count: usize,
    from: SocketAddr,
    to: SocketAddr,
}

impl Outlet {
    pub(super) const fn new(now: Instant) -> Self {
        Self { pacer: Pacer::new(now), pending: None, close_left: false }
    }

    /// Whether packets wait for the socket.
    pub(super) const fn is_blocked(&self) -> bool {
        self.pending.is_some()
    }

    /// Sends what may be sent in one turn, `buffer` being scratch space.
    pub(super) fn send(&mut self, engine: &mut Engine, shared: &Shared, buffer: &mut [u8]) -> Sent {
        if let Some(pending) = self.pending.take()
            && !self.offer(shared, &pending.bytes, pending.segment, pending.from, pending.to)
        {
            return Sent::Blocked;
        }
        let ending = engine.phase == Phase::Ended;
        let paced = engine.settings.pacing && engine.phase != Phase::Handshaking && !ending;
        if paced && engine.settings.congestion != Congestion::Bbr2 {
            // The path is looked at once per turn, not per packet.
            if let Some(path) = engine.quic.path_stats().find(|path| path.active) {
                let packet = engine.quic.max_send_udp_payload_size();
                self.pacer.update(Path { window: path.cwnd, rtt: path.rtt, packet }, engine.now);
            }
        }
        for _ in 0..TRAINS {
            let mut allowance = usize::MAX;
            if paced {
                if let Some(at) = engine.quic.get_next_release_time().and_then(|release| release.time(engine.now)) {
                    return Sent::Paced(at);
                }
                allowance = self.pacer.allowance();
                if allowance == 0 {
                    match self.pacer.ready_at() {
                        Some(at) if at > engine.now => return Sent::Paced(at),
                        Some(_) | None => {}
                    }
                }
            }
            let Some(train) = build(engine, shared, buffer, allowance) else { return Sent::All };
            self.pacer.spent(train.length);
            shared.counters.packets_out.add(train.count as u64);
            shared.counters.bytes_out.add(train.length as u64);
            let segment = (train.count > 1).then_some(train.packet);
            let bytes = buffer.get(..train.length).unwrap_or_default();
            if !self.offer(shared, bytes, segment, train.from, train.to) {
                return Sent::Blocked;
            }
            self.close_left |= ending;
        }
        Sent::More
    }

    /// True if the socket is done with the bytes.
    fn offer(
        &mut self,
        shared: &Shared,
        bytes: &[u8],
        segment: Option<usize>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> bool {
        let src_ip = shared.answers_from_asked.then_some(from.ip());
        let transmit = Transmit { destination: to, ecn: None, contents: bytes, segment_size: segment, src_ip };
        let gone = match shared.try_send(from, &transmit) {
            Ok(gone) => gone,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => {
                shared.counters.send_errors.add(1);
                tracing::debug!(%to, %error, "not sent");
                return true;
            }
        };
        let rest = bytes.get(gone..).unwrap_or_default();
        if rest.is_empty() {
            return true;
        }
        shared.counters.send_blocked.add(1);
        self.pending = Some(Pending { bytes: rest.to_vec(), segment, from, to });
        false
    }
}

/// Lets QUIC write packets of one path behind each other until one is shorter than the first, there is no more, or the
/// allowance is spent.
fn build(engine: &mut Engine, shared: &Shared, buffer: &mut [u8], allowance: usize) -> Option<Train> {
    let (packet, info) = match engine.quic.send(buffer) {
        Ok(first) => first,
        Err(quiche::Error::Done) => return None,
        Err(error) => {
            tracing::debug!(%error, "QUIC could not make a packet");
            return None;
        }
    };
    let mut train = Train { length: packet, packet, count: 1, from: info.from, to: info.to };
    let most = shared.socket.max_gso_segments();
    while packet >= TRAIN_PACKET && train.count < most && train.length < allowance {
        let end = train.length + packet;
        if end > TRAIN_BYTES {
            break;
        }
        let Some(room) = buffer.get_mut(train.length..end) else { break };
        let Ok((length, _)) = engine.quic.send_on_path(room, Some(info.from), Some(info.to)) else { break };
        train.length += length;
        train.count += 1;
        if length < packet {
            break;
        }
    }
    Some(train)
}
