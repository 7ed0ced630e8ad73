//! A client's connection on its way to another socket: asks its endpoint for one, proves the path, and only then uses it.
//!
//! One move at a time. The old path carries the connection until the peer has answered on the new one; if it does not,
//! the new socket is closed and nothing has changed. The socket that a connection came with stays, since others use it;
//! one that it moved to is closed when it moves on.

use std::net::SocketAddr;

use super::actor_engine::{Engine, Phase};
use super::messages::{MigrateError, SlotId, ToEndpoint};
use super::session::{Event, Role};
use crate::actors::{Mail, Reply};

type Answer = Reply<Result<SocketAddr, MigrateError>>;

/// Ids of the peer that are given back at once, when there is no room for another path.
const GIVEN_BACK: u64 = 16;

/// See the top of the file.
#[derive(Default)]
pub(super) struct Mover {
    /// Who waits, and for which local address once there is one.
    moving: Option<(Answer, Option<SocketAddr>)>,
    /// The socket it moved to before.
    extra: Option<SocketAddr>,
    /// The peer's id on the present path.
    used: u64,
}

impl Mover {
    /// Begins a move.
    pub(super) fn begin(&mut self, answer: Answer, engine: &Engine, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
        let forbidden = engine.quic.peer_transport_params().is_some_and(|theirs| theirs.disable_active_migration);
        let refusal = if engine.role == Role::Server {
            Some(MigrateError::Server)
        } else if forbidden {
            Some(MigrateError::Forbidden)
        } else if engine.phase != Phase::Open || self.moving.is_some() {
            Some(MigrateError::NotNow)
        } else {
            endpoint.tell(ToEndpoint::Open(slot)).is_err().then_some(MigrateError::NotNow)
        };
        match refusal {
            // Whoever asked may be gone.
            Some(refusal) => _ = answer.send(Err(refusal)),
            None => self.moving = Some((answer, None)),
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
        let Some((answer, None)) = self.moving.take() else { return };
        let Some(local) = socket else {
            let _gone = answer.send(Err(MigrateError::NoSocket));
            return;
        };
        let peer = engine.quic.path_stats().find(|path| path.active).map(|path| path.peer_addr);
        let probed = peer.ok_or(quiche::Error::InvalidState).and_then(|peer| engine.quic.probe_path(local, peer));
        match probed {
            Ok(_) => self.moving = Some((answer, Some(local))),
            Err(_) => {
                self.make_room(engine);
                leave(local, endpoint, slot);
                let _gone = answer.send(Err(MigrateError::NoIds));
            }
        }
    }

    /// What became of the paths that were tried.
    pub(super) fn proved(&mut self, engine: &mut Engine, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
        for (local, peer, valid) in std::mem::take(&mut engine.proved) {
            let Some((answer, Some(wanted))) = self.moving.take() else { return };
            if wanted != local {
                self.moving = Some((answer, Some(wanted)));
                continue;
            }
            let moved = if valid { engine.quic.migrate(local, peer).ok() } else { None };
            match moved {
                Some(used) => {
                    self.used = used;
                    engine.events.push_back(Event::PathChanged { local, peer });
                    if let Some(before) = self.extra.replace(local) {
                        leave(before, endpoint, slot);
                    }
                    let _gone = answer.send(Ok(local));
                }
                None => {
                    leave(local, endpoint, slot);
                    let _gone = answer.send(Err(MigrateError::Unreachable));
                }
            }
        }
    }

    /// Paths of before keep an id of the peer each, and there are as many as ids: gives those back, so that the peer
    /// sends others and the next move finds room.
    fn make_room(&self, engine: &mut Engine) {
        let from = self.used.saturating_sub(GIVEN_BACK / 2);
        for id in (from..from + GIVEN_BACK).filter(|id| *id != self.used) {
            // Refused for those that were given back before, or never were.
            let _known = engine.quic.retire_dcid(id);
        }
    }
}

fn leave(local: SocketAddr, endpoint: &Mail<ToEndpoint>, slot: SlotId) {
    // Room is kept for each connection; one that ends takes its sockets along.
    drop(endpoint.tell(ToEndpoint::Leave(slot, local)));
}
