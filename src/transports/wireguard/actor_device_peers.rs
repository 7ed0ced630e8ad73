//! The device's dealings with its peers: sessions are started and ended here, peers added, changed and taken out.

use std::sync::Arc;
use std::time::Instant;

use super::actor_device::{Device, DeviceMsg, PeerView};
use super::actor_session::{Parts, Session, SessionMsg};
use super::codec_keys::PublicKey;
use super::engine_boring::{Boring, Material};
use super::peers::{Change, Peer, Running};
use super::settings::PeerSettings;
use crate::actors::{Control, Exit, Mail, Place, Refused, Spec, Turn, clock};
use crate::transports::kit::packets::Packets;

/// Messages and bytes that wait for one session, at most.
const SESSION_INBOX: (usize, usize) = (1_024, 8 << 20);

impl Device {
    /// The session of a peer, started now if there is none.
    pub(super) fn session(&mut self, number: u32, turn: &Turn<'_, DeviceMsg>) -> Option<Mail<SessionMsg>> {
        if let Some(running) = self.peers.get(number)?.running.as_ref() {
            return Some(running.mail.clone());
        }
        if self.quiet {
            return None;
        }
        let seed = self.draw();
        let mut draws = [0; 8].map(|_: u32| self.draw() as u32).into_iter();
        let index = self.indices.assign(number, || draws.next().unwrap_or(0));
        let Some(index) = index else {
            self.lost(turn, "no_index", 1);
            return None;
        };
        let arbiter = self.lightest();
        let peer = self.peers.get(number)?;
        let material = Material {
            secret: self.settings.secret.clone(),
            peer: peer.settings.public_key,
            preshared: peer.settings.preshared_key.clone(),
            keepalive: peer.settings.keepalive,
            index,
            seed,
            rules: self.settings.rules,
        };
        let (interface, settings, limiter) =
            (self.settings.name.clone(), peer.settings.clone(), self.inside_limiter.clone());
        let (endpoint, mtu) = (peer.report.endpoint, usize::from(self.settings.mtu));
        let (peer_to_peer, gso) = (self.settings.peer_to_peer, self.settings.gso);
        let (device, sender, published) = (turn.mail(), self.sender.clone(), self.published.clone());
        let inside = self.inside.clone();
        let spec = Spec { name: peer.settings.name.clone(), ..Spec::default() };
        let spec = spec.inbox(SESSION_INBOX.0, SESSION_INBOX.1);
        let spawned = turn.spawn(Place::On(arbiter), spec, move || {
            let view = published.view();
            let engine = Boring::new(&material, limiter, clock::now());
            let parts = Parts {
                interface,
                peer: number,
                settings,
                endpoint,
                mtu,
                peer_to_peer,
                gso,
                device,
                sender,
                view,
                inside,
            };
            Session::new(engine, parts)
        });
        let mail = match spawned {
            Ok(mail) => mail,
            Err(error) => {
                self.indices.release(index);
                tracing::warn!(interface = %self.settings.name, %error, "no session can be started");
                self.lost(turn, "no_session_started", 1);
                return None;
            }
        };
        let actor = mail.id().number();
        if turn.watch(&mail, move |exit| DeviceMsg::Ended(number, actor, exit.clone())).is_err() {
            // Without the news of its end its index would be lost: it does not live then.
            mail.control(Control::Stop);
            self.indices.release(index);
            self.lost(turn, "no_session_started", 1);
            return None;
        }
        self.counters.sessions.add(1);
        let peer = self.peers.get_mut(number)?;
        peer.running = Some(Running { mail: mail.clone(), index, arbiter });
        peer.slot.session.store(Some(Arc::new(mail.clone())));
        self.count_session(arbiter, 1);
        Some(mail)
    }

    /// The arbiter for cryptography that has the fewest sessions.
    fn lightest(&self) -> usize {
        self.loads.iter().min_by_key(|(_, sessions)| *sessions).map_or(0, |(arbiter, _)| *arbiter)
    }

    /// A session more, or less, on this arbiter.
    fn count_session(&mut self, arbiter: usize, one: isize) {
        if let Some((_, sessions)) = self.loads.iter_mut().find(|(at, _)| *at == arbiter) {
            *sessions = sessions.saturating_add_signed(one);
        }
    }

    pub(super) fn wake(&mut self, number: u32, packets: Packets, turn: &Turn<'_, DeviceMsg>) {
        let count = packets.len() as u64;
        let wall = clock::since_1970().as_secs();
        let Some(peer) = self.peers.get(number) else {
            self.lost(turn, "no_route", count);
            return;
        };
        let refuse = if peer.settings.is_expired(wall) {
            Some("peer_expired")
        } else if peer.running.is_none() && peer.report.endpoint.is_none() {
            Some("no_endpoint")
        } else {
            None
        };
        if let Some(reason) = refuse {
            self.lost(turn, reason, count);
            return;
        }
        match self.session(number, turn) {
            Some(mail) => {
                if mail.tell(SessionMsg::Outbound(packets)).is_err() {
                    self.lost(turn, "peer_busy", count);
                }
            }
            None => self.lost(turn, "no_session_started", count),
        }
    }

    pub(super) fn ended(&mut self, number: u32, actor: u64, exit: &Exit) {
        if !matches!(exit, Exit::Normal) {
            tracing::debug!(interface = %self.settings.name, %exit, "a session ended");
        }
        let Some(peer) = self.peers.get_mut(number) else { return };
        // The number may be another peer's by now, or the peer may have another session.
        let Some(running) = peer.running.take_if(|running| running.mail.id().number() == actor) else { return };
        peer.slot.session.store(None);
        peer.before.0 += peer.report.received;
        peer.before.1 += peer.report.sent;
        (peer.report.received, peer.report.sent) = (0, 0);
        self.indices.release(running.index);
        self.count_session(running.arbiter, -1);
    }

    /// Ends the session of a peer now; the next packet or handshake makes another.
    pub(super) fn end_session(&mut self, number: u32) {
        let Some(peer) = self.peers.get_mut(number) else { return };
        let Some(running) = peer.running.take() else { return };
        peer.slot.session.store(None);
        running.mail.control(Control::Stop);
        peer.before.0 += peer.report.received;
        peer.before.1 += peer.report.sent;
        (peer.report.received, peer.report.sent) = (0, 0);
        self.indices.release(running.index);
        self.count_session(running.arbiter, -1);
    }

    pub(super) fn set(&mut self, settings: PeerSettings, turn: &Turn<'_, DeviceMsg>) {
        match self.peers.set(settings) {
            Change::Full => self.lost(turn, "too_many_peers", 1),
            Change::Same(_) => {}
            Change::Added(number) => self.kick(number, turn),
            Change::Changed(number) => {
                let Some(peer) = self.peers.get_mut(number) else { return };
                match &peer.running {
                    Some(running) => {
                        let told = running.mail.tell(SessionMsg::Set(peer.settings.clone()));
                        if matches!(told, Err(Refused::Full(_) | Refused::TooLarge(_))) {
                            // It would go on under old settings.
                            self.end_session(number);
                        }
                    }
                    None => {
                        if peer.settings.endpoint.is_some() {
                            peer.report.endpoint = peer.settings.endpoint;
                        }
                    }
                }
            }
            Change::Rekeyed(number) => {
                self.end_session(number);
                if let Some(peer) = self.peers.get_mut(number)
                    && peer.settings.endpoint.is_some()
                {
                    peer.report.endpoint = peer.settings.endpoint;
                }
                self.kick(number, turn);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &PublicKey) {
        let Some(number) = self.peers.find(key) else { return };
        self.end_session(number);
        self.peers.remove(key);
    }

    /// A peer with a keepalive is to be reachable from now on, not from the first keepalive on.
    pub(super) fn kick(&mut self, number: u32, turn: &Turn<'_, DeviceMsg>) {
        let Some(peer) = self.peers.get(number) else { return };
        let wanted = peer.settings.keepalive.is_some_and(|seconds| seconds > 0) && peer.report.endpoint.is_some();
        if wanted && let Some(mail) = self.session(number, turn) {
            // Its mailbox is new and empty.
            let _room = mail.tell(SessionMsg::Initiate);
        }
    }

    pub(super) fn replace(&mut self, all: Vec<PeerSettings>, turn: &Turn<'_, DeviceMsg>) {
        let keep: std::collections::HashSet<PublicKey> = all.iter().map(|peer| peer.public_key).collect();
        let gone: Vec<PublicKey> =
            self.peers.iter().map(|(_, peer)| peer.settings.public_key).filter(|key| !keep.contains(key)).collect();
        for key in gone {
            self.remove(&key);
        }
        for peer in all {
            self.set(peer, turn);
        }
        self.publish();
    }

    pub(super) fn view(&self, now: Instant) -> Vec<PeerView> {
        let view = |(_, peer): (u32, &Peer)| PeerView {
            settings: peer.settings.clone(),
            endpoint: peer.report.endpoint,
            arbiter: peer.running.as_ref().map(|running| running.arbiter),
            received: peer.before.0 + peer.report.received,
            sent: peer.before.1 + peer.report.sent,
            handshake_ago: peer.report.handshake.map(|at| now.saturating_duration_since(at)),
        };
        self.peers.iter().map(view).collect()
    }
}
