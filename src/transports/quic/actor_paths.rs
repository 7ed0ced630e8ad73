//! The paths that a client has left, as both ends see them, and those that could not be proved.
//!
//! quiche finds the packets of a path lost by later packets of the same path alone, and sends those that nobody
//! acknowledges again two for each probe timeout, the same two each time. So when a client's address changes in the midst
//! of a transfer and the old one is dead, as behind a NAT, what was under way to it would be missing for good. Therefore
//! the path that was left is asked to prove itself once more, and that packet goes to where the client is now: its
//! acknowledgement shows quiche what was lost. The new path is proved before that, so that nothing is sent to an address
//! that nobody has answered from (RFC 9000, section 9.3). A client that moves on purpose asks the path it leaves as well,
//! where it is: its socket stays open.
//!
//! A path that was not proved in time, be it for one packet that was lost, is no path to quiche any more: the connection
//! is back on the one before. The client knows nothing of that and goes on sending. quiche then takes the new path into
//! use without asking it again, has none in use that works, and ends the connection with the next packet. So such a path
//! is asked at once, by a packet of its own, when something comes from it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::actor_engine::Engine;
use super::codec::CID_LEN;
use super::session::{Event, Role};
use crate::actors::clock::later;

/// Packets of a path that was left that go to the new one: as many as quiche tries to prove it with.
const REDIRECTED: u8 = 3;
/// Paths that were left and are remembered, at most.
const LEFT: usize = 8;
/// How long an answer is awaited before a path in use is asked once more.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// A packet that asks a path, at most: as long as quiche wants it to be before it trusts the path.
const ASKING: usize = 1_350;

pub(super) type Addresses = (SocketAddr, SocketAddr);

/// One path that was left.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) path: Addresses,
    /// Packets of it that may be redirected; nothing before it was asked.
    redirects: Option<u8>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Our address and the peer's, of a server.
    at: Option<Addresses>,
    pub(super) left: Vec<Left>,
    /// Those of a server that were not proved in time, nor since; as many as there are paths at most.
    pub(super) failed: Vec<Addresses>,
    /// There was one: quiche tells of the first failure of a path alone.
    distrusted: bool,
    /// The last of a server that is to be proved, and when to ask it again.
    unproved: Option<(Addresses, Instant)>,
    /// What asks them, to be sent before everything else.
    pub(super) asking: Vec<Asking>,
    /// The peer has given ids back.
    pub(super) retired: bool,
}

/// A packet that was made beside the others, and whence and whither it goes.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) bytes: Vec<u8>,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
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

    /// QUIC's timer has come.
    pub(super) fn time_out(&mut self) {
        self.quic.on_timeout();
        // Before anything comes from a path that has just been given up.
        self.look_at_paths();
    }

    /// Hands QUIC a datagram.
    pub(super) fn receive(&mut self, datagram: &mut [u8], info: quiche::RecvInfo) -> quiche::Result<usize> {
        let taken = self.quic.recv(datagram, info);
        // In use, but not working: then nobody else works, and `gcongestion_enabled` knows of no path to tell of.
        if self.paths.distrusted && self.quic.gcongestion_enabled().is_none() {
            self.ask_failed_path((info.to, info.from));
        }
        taken
    }

    /// Takes up what QUIC has learnt about paths.
    pub(super) fn look_at_paths(&mut self) {
        while let Some(event) = self.quic.path_event_next() {
            match event {
                quiche::PathEvent::PeerMigrated(local, peer) => {
                    self.peer_moved(local, peer);
                    self.events.push_back(Event::PathChanged { local, peer });
                }
                quiche::PathEvent::Validated(local, peer) => self.note_proved((local, peer), true),
                quiche::PathEvent::FailedValidation(local, peer) => self.note_proved((local, peer), false),
                quiche::PathEvent::New(local, peer) => self.ask_later((local, peer)),
                // Of paths that nobody asked for, and of sizes that quiche uses by itself.
                quiche::PathEvent::Closed(..)
                | quiche::PathEvent::ReusedSourceConnectionId(..)
                | quiche::PathEvent::PmtuUpdated { .. }
                | _ => {}
            }
        }
    }

    /// A client chooses its paths, and its mover waits for them.
    fn note_proved(&mut self, path: Addresses, valid: bool) {
        if self.role == Role::Client {
            self.proved.push((path.0, path.1, valid));
            return;
        }
        self.paths.failed.retain(|failed| *failed != path);
        self.paths.unproved = self.paths.unproved.filter(|(unproved, _)| *unproved != path || !valid);
        if !valid {
            self.paths.failed.push(path);
            self.paths.distrusted = true;
        }
    }

    /// A packet has brought a path into use that failed.
    fn ask_failed_path(&mut self, (from, to): Addresses) {
        let mut packet = [0; ASKING];
        match self.quic.send_on_path(&mut packet, Some(from), Some(to)) {
            Ok((length, info)) => {
                let bytes = packet.get(..length).unwrap_or_default().to_vec();
                self.paths.asking.push(Asking { bytes, from: info.from, to: info.to });
                self.ask_later((from, to));
            }
            // Too little has come from there for an answer of any length: back to one that was proved.
            Err(_) => self.quic.on_timeout(),
        }
    }

    fn ask_later(&mut self, path: Addresses) {
        self.paths.unproved = Some((path, later(self.now, ASK_EVERY)));
    }

    /// Asks the path in use once more if it has not been proved. quiche does so by its probe timer alone, which never comes
    /// while the client acknowledges what little may be sent there, and then that stays all: three times what it sends.
    pub(super) fn ask_again(&mut self) {
        let Some((path, at)) = self.paths.unproved.filter(|(_, at)| *at <= self.now) else { return };
        self.paths.unproved = Some((path, later(at.max(self.now), ASK_EVERY)));
        let active = self.quic.path_stats().find(|path| path.active);
        // Not another one: quiche sends nothing anywhere else before it has asked, and there it may not be allowed to.
        if active.is_some_and(|active| (active.local_addr, active.peer_addr) == path) {
            // Refused for a path that quiche has forgotten.
            let _asked = self.quic.probe_path(path.0, path.1);
        }
    }

    /// The client is somewhere else.
    fn peer_moved(&mut self, local: SocketAddr, peer: SocketAddr) {
        let Paths { at, left, failed, .. } = &mut self.paths;
        left.retain(|left| left.path != (local, peer));
        let before = at.replace((local, peer)).filter(|path| *path != (local, peer));
        // Back from one that failed: what goes there is not to go here instead.
        if let Some(path) = before.filter(|path| !failed.contains(path)) {
            left.retain(|left| left.path != path);
            left.truncate(LEFT - 1);
            left.insert(0, Left { path, redirects: None });
        }
    }

    /// Moves a client to a path that was proved.
    pub(super) fn move_to(&mut self, local: SocketAddr, peer: SocketAddr) -> quiche::Result<()> {
        let left = self.quic.path_stats().find(|path| path.active);
        self.quic.migrate(local, peer)?;
        if let Some(left) = left.filter(|left| (left.local_addr, left.peer_addr) != (local, peer)) {
            // Refused for a path that quiche has forgotten, which has nothing under way.
            let _asked = self.quic.probe_path(left.local_addr, left.peer_addr);
        }
        Ok(())
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
