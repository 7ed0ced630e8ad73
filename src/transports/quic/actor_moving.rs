//! A client's connection on its way to another socket: asks its endpoint for one, proves the path, and only then uses it.
//!
//! One move at a time. The old path carries the connection until the peer has answered on the new one; if it does not,
//! the new socket is closed and nothing has changed. The socket that a connection came with stays, since others use it;
//! of those that it moved to the last three are kept.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::actor_engine::{Engine, Phase};
use super::messages::{MigrateError, SlotId, ToEndpoint};
use super::session::{Event, Role};
use super::settings::PATHS;
use crate::actors::clock::later;
use crate::actors::{Mail, Reply};

type Answer = Reply<Result<SocketAddr, MigrateError>>;

/// Sockets that stay open after a move, the present one among them. quiche finds packets of a path lost by later ones on
/// the same path alone: what is under way to a socket that closes would be missed for good.
const SOCKETS: usize = 3;

/// How long a probe may stay unanswered, and how many are sent: an answer that is lost is not sent again by itself.
const PROBE_FOR: Duration = Duration::from_millis(300);
const PROBES: u32 = 6;

/// A move under way.
struct Moving {
    answer: Answer,
    /// The new socket and the peer, once there is one.
    path: Option<(SocketAddr, SocketAddr)>,
    /// Probes that are left, and when to send the next.
    probes: u32,
    next: Option<Instant>,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Mover {
    moving: Option<Moving>,
    /// The sockets it moved to, the present one last.
    used: VecDeque<SocketAddr>,
}

impl Mover {
    /// Begins a move.
    pub(super) fn begin(&mut self, answer: Answer, engine: &Engine, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
        let forbidden = engine.quic.peer_transport_params().is_some_and(|theirs| theirs.disable_active_migration);
        let refusal = if engine.role == Role::Server {
            Some(MigrateError::Server)
        } else if forbidden {
            Some(MigrateError::Forbidden)
        } else if engine.phase == Phase::Ended {
            Some(MigrateError::Closed)
        } else if engine.phase != Phase::Open || self.moving.is_some() {
            Some(MigrateError::NotNow)
        } else if engine.quic.path_stats().count() >= PATHS {
            Some(MigrateError::TooOften)
        } else {
            endpoint.tell(ToEndpoint::Open(slot)).is_err().then_some(MigrateError::NotNow)
        };
        match refusal {
            // Whoever asked may be gone.
            Some(refusal) => _ = answer.send(Err(refusal)),
            None => self.moving = Some(Moving { answer, path: None, probes: PROBES, next: None }),
        }
    }

    /// The endpoint has a socket, or none.
    pub(super) fn opened(
        &mut self,
        socket: Option<SocketAddr>,
        engine: &mut Engine,
        endpoint: &Mail<ToEndpoint>,
        slot: SlotId,
    ) {
        let Some(moving) = self.moving.take() else { return };
        let Some(local) = socket else {
            let _gone = moving.answer.send(Err(MigrateError::NoSocket));
            return;
        };
        let peer = engine.quic.path_stats().find(|path| path.active).map(|path| path.peer_addr);
        let probed =
            peer.and_then(|peer| engine.quic.probe_path(local, peer).ok().map(|_| Some((local, peer)))).flatten();
        if probed.is_some() {
            self.moving = Some(Moving { path: probed, next: Some(later(engine.now, PROBE_FOR)), ..moving });
        } else {
            leave(local, endpoint, slot);
            let _gone = moving.answer.send(Err(MigrateError::NoIds));
        }
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.moving.as_ref().and_then(|moving| moving.next)
    }

    /// Probes once more, or gives the move up.
    pub(super) fn tick(&mut self, engine: &mut Engine, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
        let Some(moving) = self.moving.as_mut().filter(|moving| moving.next.is_some_and(|at| at <= engine.now)) else {
            return;
        };
        let Some((local, peer)) = moving.path else { return };
        moving.probes = moving.probes.saturating_sub(1);
        if moving.probes > 0 && engine.quic.probe_path(local, peer).is_ok() {
            moving.next = Some(later(engine.now, PROBE_FOR));
            return;
        }
        if let Some(moving) = self.moving.take() {
            leave(local, endpoint, slot);
            let _gone = moving.answer.send(Err(MigrateError::Unreachable));
        }
    }

    /// What became of the paths that were tried.
    pub(super) fn proved(&mut self, engine: &mut Engine, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
        for (local, peer, valid) in std::mem::take(&mut engine.proved) {
            // One that failed is tried again as long as there is time.
            if !valid {
                continue;
            }
            let Some(moving) = self.moving.take_if(|moving| moving.path == Some((local, peer))) else { continue };
            if engine.move_to(local, peer).is_err() {
                leave(local, endpoint, slot);
                let _gone = moving.answer.send(Err(MigrateError::Unreachable));
                continue;
            }
            engine.events.push_back(Event::PathChanged { local, peer });
            self.used.push_back(local);
            while self.used.len() > SOCKETS
                && let Some(before) = self.used.pop_front()
            {
                leave(before, endpoint, slot);
            }
            let _gone = moving.answer.send(Ok(local));
        }
    }
}

fn leave(local: SocketAddr, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
    // Room is kept for each connection; one that ends takes its sockets along.
    drop(endpoint.tell(ToEndpoint::Leave(slot, local)));
}
