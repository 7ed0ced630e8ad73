//! The peers of one interface as its device knows them: settings, the place of a session, what past sessions did.
//!
//! Peers are numbered; a number is used again only after its peer is gone and nothing refers to it. A peer costs a few
//! hundred bytes until it becomes active.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::actor_session::SessionMsg;
use super::codec_keys::PublicKey;
use super::settings::PeerSettings;
use super::table::{Slot, Table};
use crate::actors::Mail;
use crate::transports::kit::routes::{Network, Routes};

/// Peers of one interface, at most: each that is active keeps a place in its device's mailbox for the news of its end.
pub const MOST_PEERS: usize = 65_536;

/// What a session tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whose.
    pub peer: u32,
    /// Where the peer is.
    pub endpoint: Option<SocketAddr>,
    /// Bytes of authentic datagrams that came in during this session's life.
    pub received: u64,
    /// Bytes of datagrams that went out during this session's life.
    pub sent: u64,
    /// When keys were last agreed.
    pub handshake: Option<Instant>,
}

/// A session that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) mail: Mail<SessionMsg>,
    pub(super) index: u32,
    pub(super) arbiter: usize,
}

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) settings: Arc<PeerSettings>,
    pub(super) slot: Arc<Slot>,
    pub(super) running: Option<Running>,
    /// Of the session that runs, or of the last one.
    pub(super) report: Report,
    /// Bytes of the sessions before: received, sent.
    pub(super) before: (u64, u64),
}

/// All peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    by_key: HashMap<PublicKey, u32>,
    all: Vec<Option<Peer>>,
    free: Vec<u32>,
}

/// What became of a peer's new settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// There is no such number of peers.
    Full,
    Added(u32),
    Same(u32),
    /// The session goes on under the new settings.
    Changed(u32),
    /// The session must be made anew.
    Rekeyed(u32),
}

impl Peers {
    pub(super) fn find(&self, key: &PublicKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn get(&self, peer: u32) -> Option<&Peer> {
        self.all.get(peer as usize).and_then(Option::as_ref)
    }

    pub(super) fn get_mut(&mut self, peer: u32) -> Option<&mut Peer> {
        self.all.get_mut(peer as usize).and_then(Option::as_mut)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Peer)> {
        (0..).zip(&self.all).filter_map(|(n, peer)| peer.as_ref().map(|peer| (n, peer)))
    }

    /// Adds a peer or gives it new settings.
    pub(super) fn set(&mut self, settings: PeerSettings) -> Change {
        if let Some(number) = self.find(&settings.public_key) {
            let Some(peer) = self.get_mut(number) else { return Change::Full };
            if *peer.settings == settings {
                return Change::Same(number);
            }
            let old = std::mem::replace(&mut peer.settings, Arc::new(settings));
            let new = &peer.settings;
            let same_keys = old.preshared_key == new.preshared_key && old.keepalive == new.keepalive;
            return if same_keys { Change::Changed(number) } else { Change::Rekeyed(number) };
        }
        if self.len() >= MOST_PEERS {
            return Change::Full;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_key.insert(settings.public_key, number);
        let report = Report { peer: number, endpoint: settings.endpoint, ..Report::default() };
        let peer = Peer { settings: Arc::new(settings), slot: Arc::default(), running: None, report, before: (0, 0) };
        if let Some(place) = self.all.get_mut(number as usize) {
            *place = Some(peer);
        }
        Change::Added(number)
    }

    /// Takes a peer out.
    pub(super) fn remove(&mut self, key: &PublicKey) -> Option<Peer> {
        let number = self.by_key.remove(key)?;
        let peer = self.all.get_mut(number as usize).and_then(Option::take)?;
        self.free.push(number);
        Some(peer)
    }

    /// The table for everyone else. A network that two peers name belongs to the one with the higher number.
    pub(super) fn table(&self, addresses: &[(IpAddr, Network)]) -> Table {
        let mut routes = Routes::default();
        for (number, peer) in self.iter() {
            for network in &peer.settings.allowed {
                routes.insert(*network, number);
            }
        }
        let none = Arc::<Slot>::default();
        let slots = self.all.iter().map(|peer| peer.as_ref().map_or_else(|| none.clone(), |peer| peer.slot.clone()));
        Table { routes, slots: slots.collect(), own: addresses.iter().map(|(address, _)| *address).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8, networks: &[&str]) -> PeerSettings {
        PeerSettings::new(PublicKey([n; 32]), networks.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn peers_are_told_apart_by_what_changed() {
        let mut peers = Peers::default();
        assert_eq!(peers.set(peer(1, &["10.0.0.1"])), Change::Added(0));
        assert_eq!(peers.set(peer(2, &["10.0.0.2"])), Change::Added(1));
        assert_eq!(peers.set(peer(1, &["10.0.0.1"])), Change::Same(0));
        assert_eq!(peers.set(peer(1, &["10.0.0.1", "fd00::/64"])), Change::Changed(0));
        let keyed = PeerSettings { preshared_key: Some(super::super::SecretKey::new([1; 32])), ..peer(1, &[]) };
        assert_eq!(peers.set(keyed), Change::Rekeyed(0));
        assert!(peers.remove(&PublicKey([1; 32])).is_some());
        assert!(peers.remove(&PublicKey([1; 32])).is_none());
        assert_eq!(peers.find(&PublicKey([1; 32])), None);
        assert_eq!(peers.set(peer(3, &[])), Change::Added(0), "the number is used again");
        assert_eq!(peers.len(), 2);
    }

    #[test]
    fn the_table_leads_to_numbers() {
        let mut peers = Peers::default();
        peers.set(peer(1, &["10.0.0.0/24"]));
        peers.set(peer(2, &["10.0.0.2"]));
        let own: IpAddr = "10.0.0.254".parse().unwrap();
        let table = peers.table(&[(own, "10.0.0.0/24".parse().unwrap())]);
        assert_eq!(table.peer_of("10.0.0.1".parse().unwrap()), Some(0));
        assert_eq!(table.peer_of("10.0.0.2".parse().unwrap()), Some(1));
        assert!(table.is_own(own) && table.slot(1).is_some() && table.slot(2).is_none());
    }
}
