//! Judges `[[listener.wireguard.peer]]` and the networks of `[listener.wireguard]`.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::listener::{copied, count};
use super::wireguard::{secret_file, span_of};
use crate::actors::clock;
use crate::gateway::config::wireguard::Peer;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::Text;
use crate::gateway::raw::wireguard::RawPeer;
use crate::gateway::report::{Mistakes, Span};
use crate::transports::wireguard::codec_conf::ConfPeer;
use crate::transports::wireguard::{Network, PeerLimit, PeerSettings, PublicKey};

/// What an interface's peers are judged by: its own, and keys and networks that are taken, with where.
#[derive(Default)]
pub(super) struct Seen {
    own_key: Option<PublicKey>,
    own: Vec<IpAddr>,
    keys: BTreeMap<PublicKey, Span>,
    networks: BTreeMap<Network, Span>,
    names: BTreeMap<String, Span>,
}

impl Seen {
    /// Before any peer; the interface's public key, if it has one yet, and its addresses.
    pub(super) fn of(own_key: Option<PublicKey>, addresses: &[(IpAddr, Network)]) -> Self {
        Self { own_key, own: addresses.iter().map(|(address, _)| *address).collect(), ..Self::default() }
    }
}

/// Networks as somebody wrote them; bits behind a length count as zero, which is said.
pub(super) fn networks(
    texts: &Field<Vec<Field<Text>>>,
    key: &str,
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Vec<(Network, Span)> {
    let Field::Is(At { value: texts, .. }) = texts else { return Vec::new() };
    let network = |text: &Field<Text>| {
        let Field::Is(At { value: text, span }) = text else { return None };
        let Ok(network) = text.text.parse::<Network>() else {
            let hint = "write a network such as \"10.98.0.2/32\" or \"fd98::/64\"";
            mistakes.add(*span, format!("{} is not a network", text.shown()), hint);
            return None;
        };
        let address: Option<IpAddr> = text.text.split('/').next().and_then(|address| address.parse().ok());
        if address.is_some_and(|address| address != network.address()) {
            warnings.push(format!("{} in `{key}` counts as {network}", text.shown()));
        }
        Some((network, *span))
    };
    texts.iter().filter_map(network).collect()
}

/// Whether each address of `inner` is one of `outer`.
pub(super) fn is_within(inner: &Network, outer: &Network) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.address())
}

/// A peer of a wg-quick file, in which nothing contradicts itself: that was checked there.
pub(super) fn of_conf(
    peer: &ConfPeer,
    at: Span,
    seen: &mut Seen,
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Peer {
    seen.keys.insert(peer.public_key, at);
    seen.networks.extend(peer.allowed_ips.iter().map(|network| (*network, at)));
    possible_key(&peer.public_key, at, seen, mistakes);
    for network in &peer.allowed_ips {
        possible_network(network, at, seen, mistakes);
    }
    if peer.allowed_ips.is_empty() {
        warnings.push(format!("peer {} has no AllowedIPs: nothing it sends passes", peer.public_key));
    }
    let address = peer.endpoint.as_ref().and_then(|at| at.host.parse().ok().map(|ip| SocketAddr::new(ip, at.port)));
    let named = peer.endpoint.as_ref().filter(|_| address.is_none()).map(|at| (at.host.clone(), at.port));
    let settings = PeerSettings {
        preshared_key: peer.preshared_key.clone(),
        endpoint: address,
        keepalive: peer.keepalive,
        ..PeerSettings::new(peer.public_key, peer.allowed_ips.clone())
    };
    Peer { settings, endpoint_name: named }
}

/// The peer, if nothing is wrong with it.
pub(super) fn peer(
    raw: &RawPeer,
    folder: &Path,
    seen: &mut Seen,
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Option<Peer> {
    let mut name = None;
    if let Field::Is(At { value: text, span }) = &raw.name {
        match seen.names.get(&text.text) {
            Some(first) => {
                mistakes.add_pair(*span, "this name is taken", "give each peer its own name", *first, "taken here");
            }
            None => {
                seen.names.insert(text.text.clone(), *span);
            }
        }
        name = Some(Arc::from(text.text.as_str()));
    }
    if let (Field::Is(At { value: true, span }), None) = (&raw.metrics, &name) {
        mistakes.add(*span, "`metrics` needs a `name` to count under", "add `name = \"phone\"`");
    }
    let preshared = match &raw.preshared_key_file {
        Field::Is(file) => secret_file(file, "preshared_key_file", folder, warnings, mistakes),
        Field::Absent | Field::Bad => None,
    };
    let allowed = networks(&raw.allowed_ips, "allowed_ips", warnings, mistakes);
    let at = span_of(&raw.allowed_ips).unwrap_or(raw.header);
    if matches!(&raw.allowed_ips, Field::Is(At { value: texts, .. }) if texts.is_empty()) {
        let hint = "name its addresses inside, such as \"10.98.0.2/32\"";
        mistakes.add(at, "a peer without `allowed_ips` can neither send nor be sent anything", hint);
    }
    for (network, place) in &allowed {
        possible_network(network, *place, seen, mistakes);
        if let Some(first) = seen.networks.insert(*network, at).filter(|first| *first != at) {
            let hint = "a network belongs to one peer; a smaller one within it may be another's";
            mistakes.add_pair(at, format!("{network} is another peer's"), hint, first, "taken here");
        }
    }
    let (endpoint, endpoint_name) = endpoint(&raw.endpoint, mistakes);
    let public_key = public_key(raw, seen, mistakes);
    let expires = expires(&raw.expires, mistakes);
    if expires.is_some_and(|at| at <= clock::since_1970().as_secs()) {
        let who =
            name.as_deref().map(|name: &str| format!("`{name}`")).or_else(|| public_key.map(|key| key.to_string()));
        warnings.push(format!("peer {} has expired: it is refused", who.unwrap_or_default()));
    }
    let limit = |bytes: &Field<u64>, packets: &Field<u64>| {
        let bytes = matches!(bytes, Field::Is(_)).then(|| count(bytes, 0) as u64);
        let packets = matches!(packets, Field::Is(_)).then(|| count(packets, 0) as u64);
        // Half a second's worth may come at once.
        PeerLimit { bytes, burst: bytes.map_or(0, |bytes| bytes / 2), packets }
    };
    let settings = PeerSettings {
        name,
        preshared_key: preshared,
        endpoint,
        keepalive: match &raw.keepalive {
            Field::Is(at) => {
                if at.value.subsec_nanos() > 0 {
                    let hint = "write a time such as \"25s\", or \"0s\" for none";
                    mistakes.add(at.span, "a keepalive is a number of whole seconds", hint);
                }
                u16::try_from(at.value.as_secs()).ok().filter(|seconds| *seconds > 0)
            }
            Field::Absent | Field::Bad => None,
        },
        limit_in: limit(&raw.limit_in, &raw.packets_in),
        limit_out: limit(&raw.limit_out, &raw.packets_out),
        expires,
        metrics: copied(&raw.metrics, false),
        ..PeerSettings::new(public_key?, allowed.into_iter().map(|(network, _)| network).collect())
    };
    Some(Peer { settings, endpoint_name })
}

fn public_key(raw: &RawPeer, seen: &mut Seen, mistakes: &mut Mistakes) -> Option<PublicKey> {
    let Field::Is(At { value: text, span }) = &raw.public_key else { return None };
    let Some(key) = PublicKey::from_base64(&text.text) else {
        mistakes.add(*span, "this is no public key", "write the 44 characters that `wg pubkey` prints");
        return None;
    };
    if let Some(first) = seen.keys.insert(key, *span) {
        mistakes.add_pair(*span, "this key is another peer's", "a key is one peer", first, "taken here");
        return None;
    }
    possible_key(&key, *span, seen, mistakes).then_some(key)
}

/// Notes a key that no peer can have.
fn possible_key(key: &PublicKey, at: Span, seen: &Seen, mistakes: &mut Mistakes) -> bool {
    if seen.own_key.as_ref() == Some(key) {
        let hint = "a peer has a key pair of its own: write what `wg pubkey` prints for its private key";
        mistakes.add(at, "this is the interface's own public key", hint);
    } else if key.0 == [0; 32] {
        mistakes.add(at, "nobody has the public key of zeros", "write the 44 characters that `wg pubkey` prints");
    } else {
        return true;
    }
    false
}

/// Notes a network that no packet of a peer can come from.
fn possible_network(network: &Network, at: Span, seen: &Seen, mistakes: &mut Mistakes) {
    if let Some(own) = seen.own.iter().find(|own| Network::host(**own) == *network) {
        let hint = "write an address that the peer has inside";
        mistakes.add(at, format!("{own} is the interface's own address"), hint);
    }
}

fn endpoint(raw: &Field<Text>, mistakes: &mut Mistakes) -> (Option<SocketAddr>, Option<(String, u16)>) {
    let Field::Is(At { value: text, span }) = raw else { return (None, None) };
    if let Ok(address) = text.text.parse::<SocketAddr>()
        && address.port() != 0
    {
        return (Some(address), None);
    }
    let named = text.text.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse().ok().filter(|port| *port != 0)?;
        crate::gateway::raw::upstream::is_name(host).then(|| (host.to_owned(), port))
    });
    if named.is_none() {
        let hint = "write an address or a name, and a port, such as \"192.0.2.1:51820\"";
        mistakes.add(*span, format!("{} is not an endpoint", text.shown()), hint);
    }
    (None, named)
}

fn expires(raw: &Field<Text>, mistakes: &mut Mistakes) -> Option<u64> {
    let Field::Is(At { value: text, span }) = raw else { return None };
    let at = seconds_of(&text.text);
    if at.is_none() {
        let hint = "write a day such as \"2027-01-01\": from its first second (UTC) on the peer is refused";
        mistakes.add(*span, format!("{} is not a day", text.shown()), hint);
    }
    at
}

/// Seconds from 1970 to the beginning of a day (UTC), by the rule of the Gregorian calendar.
fn seconds_of(day: &str) -> Option<u64> {
    let mut parts = day.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return None;
    }
    let (year, month, day): (u64, u64, u64) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |month: u64| match month {
        2 => 28 + u64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year < 1970 || !(1..=12).contains(&month) || !(1..=length(month)).contains(&day) {
        return None;
    }
    let years: u64 = (1970..year).map(|year| 365 + u64::from(leap(year))).sum();
    let months: u64 = (1..month).map(length).sum();
    Some((years + months + day - 1) * 24 * 60 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        for (day, seconds) in [
            ("1970-01-01", Some(0)),
            ("1970-03-01", Some(59 * 86_400)),
            ("2000-02-29", Some(951_782_400)),
            ("2027-01-01", Some(1_798_761_600)),
            ("2100-02-29", None),
            ("2027-13-01", None),
            ("2027-00-01", None),
            ("2027-04-31", None),
            ("2027-1-1", None),
            ("1969-12-31", None),
            ("tomorrow", None),
            ("2027-01-01-01", None),
        ] {
            assert_eq!(seconds_of(day), seconds, "{day}");
        }
    }
}
