//! The paths that a client has left, as its server sees them.
//!
//! quiche finds the packets of a path lost by later packets of the same path alone, and sends those that nobody
//! acknowledges again two for each probe timeout, the same two each time. So when a client's address changes in the midst
//! of a transfer and the old one is dead, as behind a NAT, what was under way to it would be missing for good. Therefore
//! the path that was left is asked to prove itself once more, and that packet goes to where the client is now: its
//! acknowledgement shows quiche what was lost. The new path is proved before that, so that nothing is sent to an address
//! that nobody has answered from (RFC 9000, section 9.3).

use std::net::SocketAddr;

use super::actor_engine::Engine;
use super::codec::CID_LEN;
use super::session::Role;

/// Packets of a path that was left that go to the new one: as many as quiche tries to prove it with.
const REDIRECTED: u8 = 3;
/// Paths that were left and are remembered, at most.
const LEFT: usize = 8;

type Addresses = (SocketAddr, SocketAddr);

/// One path that was left.
#[derive(Debug)]
struct Left {
    path: Addresses,
    /// Packets of it that may be redirected; nothing before it was asked.
    redirects: Option<u8>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Our address and the peer's, of a server.
    at: Option<Addresses>,
    left: Vec<Left>,
    /// The peer has given ids back.
    pub(super) retired: bool,
}

impl Engine {
    /// The handshake is done.
    pub(super) fn note_path(&mut self) {
        if self.role == Role::Server {
            let active = self.quic.path_stats().find(|path| path.active);
            self.paths.at = active.map(|path| (path.local_addr, path.peer_addr));
        }
    }

    /// Whether a packet carries an id that the peer has given back: it was overtaken by the word that did so, as happens
    /// where a peer sends from two paths. quiche would end the connection over it.
    pub(super) fn is_late(&self, datagram: &[u8]) -> bool {
        // A long header is of the handshake, before there is a second id.
        if !self.paths.retired && self.quic.retired_scids() == 0 || datagram.first().is_none_or(|byte| byte & 0x80 != 0)
        {
            return false;
        }
        let id = datagram.get(1..=CID_LEN);
        id.is_some_and(|id| self.quic.source_ids().all(|known| known.as_ref() != id))
    }

    /// The client is somewhere else.
    pub(super) fn peer_moved(&mut self, local: SocketAddr, peer: SocketAddr) {
        let Paths { at, left, .. } = &mut self.paths;
        left.retain(|left| left.path != (local, peer));
        if let Some(path) = at.replace((local, peer)).filter(|path| *path != (local, peer)) {
            left.retain(|left| left.path != path);
            left.truncate(LEFT - 1);
            left.insert(0, Left { path, redirects: None });
        }
    }

    /// Asks the paths that were left, once the new one is proved.
    pub(super) fn ask_left_paths(&mut self) {
        if self.paths.left.iter().all(|left| left.redirects.is_some()) {
            return;
        }
        let proved = self.paths.at.is_some_and(|(local, peer)| self.quic.is_path_validated(local, peer) == Ok(true));
        if !proved {
            return;
        }
        let quic = &mut self.quic;
        self.paths.left.retain_mut(|left| {
            // One that quiche has forgotten has nothing under way.
            let asked = left.redirects.is_some() || quic.probe_path(left.path.0, left.path.1).is_ok();
            left.redirects.get_or_insert(REDIRECTED);
            asked
        });
    }

    /// Whence and whither a packet of this path goes.
    pub(super) fn addressed(&mut self, from: SocketAddr, to: SocketAddr) -> Addresses {
        let Paths { at, left, .. } = &mut self.paths;
        let place = left.iter().position(|left| left.path == (from, to) && left.redirects.is_some());
        let (Some(place), Some(at)) = (place, *at) else { return (from, to) };
        if let Some(redirects) = left.get_mut(place).and_then(|left| left.redirects.as_mut()) {
            *redirects = redirects.saturating_sub(1);
            if *redirects == 0 {
                left.remove(place);
            }
        }
        at
    }
}
