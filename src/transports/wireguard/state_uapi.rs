//! What a change by `wg` makes of the peers of an interface. Whole or not at all; nothing is kept here.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::codec_keys::PublicKey;
use super::codec_uapi::{Edit, Errno, PeerEdit};
use super::peers::MOST_PEERS;
use super::settings::PeerSettings;
use crate::transports::kit::routes::Network;

/// The peers after a change, in their order, new ones last. A network that a peer gets is taken from whoever had it,
/// as the kernel's implementation does it.
///
/// # Errors
/// [`Errno::NO_ROOM`] beyond [`MOST_PEERS`].
pub(super) fn applied(mut peers: Vec<PeerSettings>, edit: Edit) -> Result<Vec<PeerSettings>, Errno> {
    if edit.replace_peers {
        let named: HashMap<PublicKey, ()> = edit.peers.iter().map(|change| (change.public_key, ())).collect();
        peers.retain(|peer| named.contains_key(&peer.public_key));
        for peer in &mut peers {
            // Named again, it begins anew, but a session that fits goes on.
            *peer = PeerSettings { name: peer.name.clone(), metrics: peer.metrics, ..bare(peer) };
        }
    }
    let mut places: HashMap<PublicKey, usize> = (0..).zip(&peers).map(|(n, peer)| (peer.public_key, n)).collect();
    // A network belongs to one peer.
    let mut holders: Holders =
        (0..).zip(&peers).flat_map(|(at, peer)| peer.allowed.iter().map(move |network| (*network, at))).collect();
    // By place and not by key: who is removed and given again in one request has two.
    let mut removed = HashSet::new();
    for change in edit.peers {
        let at = match places.get(&change.public_key) {
            Some(at) => *at,
            None if change.remove || change.update_only => continue,
            None if peers.len() >= MOST_PEERS => return Err(Errno::NO_ROOM),
            None => {
                peers.push(PeerSettings::new(change.public_key, Vec::new()));
                places.insert(change.public_key, peers.len() - 1);
                peers.len() - 1
            }
        };
        if change.remove {
            removed.insert(at);
            places.remove(&change.public_key);
            if let Some(peer) = peers.get_mut(at) {
                for network in peer.allowed.drain(..) {
                    holders.remove(&network);
                }
            }
            continue;
        }
        one(&mut peers, &mut holders, at, change);
    }
    Ok((0..).zip(peers).filter(|(at, _)| !removed.contains(at)).map(|(_, peer)| peer).collect())
}

/// The same limits, and nothing that a request says anew.
fn bare(peer: &PeerSettings) -> PeerSettings {
    PeerSettings {
        limit_in: peer.limit_in,
        limit_out: peer.limit_out,
        expires: peer.expires,
        ..PeerSettings::new(peer.public_key, Vec::new())
    }
}

/// Which peer, by place, has a network.
type Holders = BTreeMap<Network, usize>;

fn one(peers: &mut [PeerSettings], holders: &mut Holders, at: usize, change: PeerEdit) {
    for network in &change.add {
        let before = holders.insert(*network, at).filter(|before| *before != at);
        if let Some(other) = before.and_then(|before| peers.get_mut(before)) {
            other.allowed.retain(|one| one != network);
        }
    }
    let Some(peer) = peers.get_mut(at) else { return };
    if let Some(key) = change.preshared_key {
        peer.preshared_key = key;
    }
    if change.endpoint.is_some() {
        peer.endpoint = change.endpoint;
    }
    if let Some(seconds) = change.keepalive {
        peer.keepalive = Some(seconds).filter(|seconds| *seconds > 0);
    }
    if change.replace_allowed_ips {
        for network in peer.allowed.drain(..) {
            holders.remove(&network);
        }
    }
    peer.allowed.retain(|network| {
        let stays = !change.remove_allowed_ips.contains(network);
        if !stays {
            holders.remove(network);
        }
        stays
    });
    for network in change.add {
        holders.insert(network, at);
        if !peer.allowed.contains(&network) {
            peer.allowed.push(network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transports::wireguard::codec_keys::SecretKey;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn peer(n: u8, allowed: &[&str]) -> PeerSettings {
        PeerSettings::new(key(n), allowed.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn shown(peers: &[PeerSettings]) -> Vec<(u8, Vec<String>)> {
        peers
            .iter()
            .map(|peer| (peer.public_key.0[0], peer.allowed.iter().map(ToString::to_string).collect()))
            .collect()
    }

    fn edit(peers: Vec<PeerEdit>) -> Edit {
        Edit { peers, ..Edit::default() }
    }

    #[test]
    fn a_network_moves_to_whom_it_is_given() {
        let peers = vec![peer(1, &["10.0.0.1/32", "10.0.0.9/32"]), peer(2, &["10.0.0.2/32"])];
        let change = PeerEdit { add: vec!["10.0.0.9/32".parse().unwrap()], ..PeerEdit::of(key(2)) };
        let after = applied(peers, edit(vec![change])).unwrap();
        assert_eq!(
            shown(&after),
            [(1, vec!["10.0.0.1/32".to_owned()]), (2, vec!["10.0.0.2/32".to_owned(), "10.0.0.9/32".to_owned()])]
        );
    }

    #[test]
    fn networks_are_replaced_added_and_taken() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let peers = vec![peer(1, &["10.0.0.1/32", "10.0.0.2/32"])];
        let change = PeerEdit {
            add: networks(&["10.0.0.3/32"]),
            remove_allowed_ips: networks(&["10.0.0.2/32"]),
            ..PeerEdit::of(key(1))
        };
        let after = applied(peers, edit(vec![change])).unwrap();
        assert_eq!(shown(&after), [(1, vec!["10.0.0.1/32".to_owned(), "10.0.0.3/32".to_owned()])]);
        let change = PeerEdit { replace_allowed_ips: true, add: networks(&["10.0.0.4/32"]), ..PeerEdit::of(key(1)) };
        let after = applied(after, edit(vec![change])).unwrap();
        assert_eq!(shown(&after), [(1, vec!["10.0.0.4/32".to_owned()])]);
    }

    #[test]
    fn peers_come_go_and_only_change() {
        let gone = PeerEdit { remove: true, ..PeerEdit::of(key(1)) };
        let unknown = PeerEdit { update_only: true, ..PeerEdit::of(key(8)) };
        let also_unknown = PeerEdit { remove: true, ..PeerEdit::of(key(9)) };
        let fresh = PeerEdit {
            preshared_key: Some(Some(SecretKey::new([3; 32]))),
            keepalive: Some(25),
            endpoint: Some("192.0.2.1:5".parse().unwrap()),
            ..PeerEdit::of(key(3))
        };
        let peers = vec![peer(1, &[]), peer(2, &["10.0.0.2/32"])];
        let after = applied(peers, edit(vec![gone, unknown, also_unknown, fresh])).unwrap();
        assert_eq!(after.iter().map(|peer| peer.public_key.0[0]).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((after[1].keepalive, after[1].preshared_key.is_some()), (Some(25), true));
        let no_more = PeerEdit { preshared_key: Some(None), keepalive: Some(0), ..PeerEdit::of(key(3)) };
        let after = applied(after, edit(vec![no_more])).unwrap();
        assert_eq!((after[1].keepalive, after[1].preshared_key.is_none()), (None, true));
        assert!(after[1].endpoint.is_some(), "what is not said stays");
    }

    #[test]
    fn removed_and_given_again_it_begins_anew() {
        let peers = vec![peer(1, &["10.0.0.1/32"])];
        let changes = vec![PeerEdit { remove: true, ..PeerEdit::of(key(1)) }, PeerEdit::of(key(1))];
        let after = applied(peers, edit(changes)).unwrap();
        assert_eq!(shown(&after), [(1, vec![])]);
    }

    #[test]
    fn replacing_peers_keeps_their_names_and_limits() {
        let mut first = peer(1, &["10.0.0.1/32"]);
        first.name = Some("phone".into());
        first.expires = Some(7);
        first.keepalive = Some(9);
        let change = Edit { replace_peers: true, peers: vec![PeerEdit::of(key(1))], ..Edit::default() };
        let after = applied(vec![first, peer(2, &[])], change).unwrap();
        assert_eq!(shown(&after), [(1, vec![])]);
        assert_eq!((after[0].name.as_deref(), after[0].expires, after[0].keepalive), (Some("phone"), Some(7), None));
    }
}
