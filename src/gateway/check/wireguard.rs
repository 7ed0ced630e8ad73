//! Judges `[listener.wireguard]`: keys are read, networks compared, services matched with addresses and upstreams.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::listener::{copied, count};
use super::quic::Around;
use super::wireguard_service;
use crate::gateway::config::wireguard::{Key, Mode, Offload, Peer, ThreadingMode, Wireguard};
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::{Text, reason};
use crate::gateway::raw::wireguard::{RawMode, RawOffload, RawPeer, RawThreading, RawWireguard};
use crate::gateway::report::{Mistakes, Span};
use crate::gateway::wg_conf;
use crate::transports::wireguard::codec_conf::{Conf, ConfPeer};
use crate::transports::wireguard::{
    DEFAULT_MTU, MOST_PEERS, Network, PeerLimit, PeerSettings, PeerToPeer, PublicKey, SecretKey,
};

const KEY_HINT: &str = "write `private_key_file = \"wg0.key\"`, `conf = \"wg0.conf\"` or `generate_key = true`";
/// RFC 8200, section 5.
const LEAST_MTU_V6: u16 = 1_280;
/// IFNAMSIZ of the kernel, with its final 0.
const LONGEST_NAME: usize = 15;
/// smoltcp keeps so many.
const MOST_ADDRESSES: usize = 8;

/// The interface, if nothing is wrong with it.
pub(super) fn wireguard(raw: &At<RawWireguard>, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Wireguard> {
    let At { value: raw, span } = raw;
    let before = mistakes.len();
    let default = Wireguard::default();
    let mut warnings = Vec::new();
    let (key, conf) = key(raw, *span, around.folder, &mut warnings, mistakes);
    let addresses = addresses(raw, *span, conf.as_ref(), mistakes);
    let mut seen = Seen::default();
    let mut peers = Vec::new();
    if let Some((conf, at)) = &conf {
        // What stands in that file contradicts nothing within it; that was checked there.
        for peer in &conf.peers {
            seen.keys.insert(peer.public_key, *at);
            seen.networks.extend(peer.allowed_ips.iter().map(|network| (*network, *at)));
            peers.push(of_conf(peer));
        }
    }
    for peer in &raw.peers {
        peers.extend(self::peer(peer, around.folder, &mut seen, &mut warnings, mistakes));
    }
    if peers.len() > MOST_PEERS {
        mistakes.add(*span, format!("an interface has at most {MOST_PEERS} peers"), "spread them over two interfaces");
    }
    let services = wireguard_service::services(&raw.services, &addresses, around, mistakes);
    let forward = networks(&raw.forward, mistakes);
    let mode = copied(&raw.mode, RawMode::Auto);
    if let (Field::Is(masquerade), false) = (&raw.masquerade, matches!(mode, RawMode::Tun)) {
        mistakes.add(masquerade.span, "`masquerade` belongs to `mode = \"tun\"`", "take it out, or choose that mode");
    }
    if let (Field::Is(forward), RawMode::Tun) = (&raw.forward, mode) {
        let hint = "in that mode the host itself forwards (net.ipv4.ip_forward), with `masquerade` if you like";
        mistakes.add(forward.span, "`forward` does not belong to `mode = \"tun\"`", hint);
    }
    let mtu = match (&raw.mtu, &conf) {
        (Field::Is(mtu), _) => u16::try_from(mtu.value).unwrap_or(DEFAULT_MTU),
        (_, Some((conf, _))) => conf.mtu.unwrap_or(DEFAULT_MTU),
        (_, None) => DEFAULT_MTU,
    };
    if mtu < LEAST_MTU_V6 && addresses.iter().any(|(address, _)| address.is_ipv6()) {
        let at = span_of(&raw.mtu).unwrap_or(*span);
        let hint = format!("write {LEAST_MTU_V6} or more, or take the IPv6 addresses out");
        mistakes.add(at, format!("IPv6 needs an MTU of at least {LEAST_MTU_V6}"), hint);
    }
    let interface = Wireguard {
        key: key?,
        addresses,
        mtu,
        mode: match mode {
            RawMode::Auto => Mode::Auto,
            RawMode::Private => Mode::Private,
            RawMode::Netstack => Mode::Netstack,
            RawMode::Tun => Mode::Tun,
        },
        threading: match copied(&raw.threading, RawThreading::Auto) {
            RawThreading::Auto => ThreadingMode::Auto,
            RawThreading::Single => ThreadingMode::Single,
            RawThreading::Pipeline => ThreadingMode::Pipeline,
        },
        peer_to_peer: if copied(&raw.peer_to_peer, false) { PeerToPeer::Direct } else { PeerToPeer::Deny },
        handshakes: copied(&raw.handshakes, default.handshakes),
        gso: copied(&raw.gso, default.gso),
        masquerade: copied(&raw.masquerade, default.masquerade),
        offload: match copied(&raw.offload, RawOffload::Auto) {
            RawOffload::Auto => Offload::Auto,
            RawOffload::Tcp => Offload::Tcp,
            RawOffload::Off => Offload::Off,
        },
        congestion: congestion(&raw.congestion, mode, mistakes),
        tun_node: match &raw.tun_node {
            Field::Is(node) => around.folder.join(&node.value.text),
            Field::Absent | Field::Bad => default.tun_node,
        },
        uapi: match &raw.uapi {
            Field::Is(folder) if folder.value.text == "off" => None,
            Field::Is(folder) => Some(around.folder.join(&folder.value.text)),
            Field::Absent | Field::Bad => default.uapi,
        },
        forward,
        peers,
        services,
        warnings,
    };
    (mistakes.len() == before).then_some(interface)
}

/// Notes a listener's name that cannot be the name of its interface.
pub(super) fn interface_name(raw: &At<RawWireguard>, name: &Field<String>, mistakes: &mut Mistakes) {
    let Field::Is(At { value: name, span }) = name else { return };
    if matches!(copied(&raw.value.mode, RawMode::Auto), RawMode::Tun)
        && (name.len() > LONGEST_NAME || matches!(name.as_str(), "." | ".."))
    {
        let hint = format!("write 1 to {LONGEST_NAME} characters, not all of them dots");
        mistakes.add(*span, "in mode `tun` the interface has the listener's name, and this one cannot be", hint);
    }
}

/// Keys and networks that are taken, and where.
#[derive(Default)]
struct Seen {
    keys: BTreeMap<PublicKey, Span>,
    networks: BTreeMap<Network, Span>,
    names: BTreeMap<String, Span>,
}

type Import = (Conf, Span);

fn key(
    raw: &RawWireguard,
    header: Span,
    folder: &Path,
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> (Option<Key>, Option<Import>) {
    let generate = match &raw.generate_key {
        Field::Is(At { value: true, span }) => Some(*span),
        Field::Is(_) | Field::Absent | Field::Bad => None,
    };
    let given = [
        ("private_key_file", span_of(&raw.private_key_file)),
        ("conf", span_of(&raw.conf)),
        ("generate_key", generate),
    ];
    let mut given = given.into_iter().filter_map(|(key, span)| span.map(|span| (key, span)));
    match (given.next(), given.next()) {
        (None, _) => {
            let broken = matches!(raw.private_key_file, Field::Bad)
                || matches!(raw.conf, Field::Bad)
                || matches!(raw.generate_key, Field::Bad);
            if !broken {
                mistakes.add(header, "a `[listener.wireguard]` has no private key", KEY_HINT);
            }
            return (None, None);
        }
        (Some((first, at)), Some((second, other))) => {
            let message = format!("`{first}` and `{second}` both say what the private key is");
            mistakes.add_pair(other, message, "keep one of the two", at, "said here");
            return (None, None);
        }
        (Some(_), None) => {}
    }
    if let Field::Is(file) = &raw.private_key_file {
        return (secret_file(file, "private_key_file", folder, warnings, mistakes).map(Key::Given), None);
    }
    if let Field::Is(file) = &raw.conf {
        let path = folder.join(&file.value.text);
        warnings.extend(open_file(&path));
        return match wg_conf::load(&path) {
            Ok(conf) => {
                warnings.extend(conf.notes.iter().map(|note| format!("{}: {}", path.display(), note.message)));
                (Some(Key::Given(conf.private_key.clone())), Some((conf, file.span)))
            }
            Err(report) => {
                let first = report.to_string();
                let first = first.lines().next().unwrap_or("it cannot be read").trim_start_matches("error: ");
                mistakes.add(file.span, format!("`conf` cannot be used: {first}"), "mend that file, then check again");
                (None, None)
            }
        };
    }
    (Some(Key::Generated), None)
}

/// Reads a key from a file of its own.
fn secret_file(
    file: &At<Text>,
    key: &str,
    folder: &Path,
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Option<SecretKey> {
    let path = folder.join(&file.value.text);
    // Large enough from the start: growing would leave a copy behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(2_048));
    // A key has 44 characters: what is longer is another file.
    let read = File::open(&path).and_then(|file| file.take(1_024).read_to_string(&mut text));
    if let Err(error) = read {
        let message = format!("`{key}` cannot be read: {}", reason(error));
        mistakes.add(file.span, message, "`portway keygen wireguard --out wg0` makes key files");
        return None;
    }
    warnings.extend(open_file(&path));
    let secret = SecretKey::from_base64(text.trim());
    if secret.is_none() {
        let message = format!("`{key}` holds no key: 44 characters of base64 on one line");
        mistakes.add(file.span, message, "`portway keygen wireguard --out wg0` makes key files");
    }
    secret
}

/// What to say of a key file that others than its owner can read.
fn open_file(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| format!("the key file {} can be read by others: chmod 600 it", path.display()))
}

fn addresses(
    raw: &RawWireguard,
    header: Span,
    conf: Option<&Import>,
    mistakes: &mut Mistakes,
) -> Vec<(IpAddr, Network)> {
    let (mut all, span) = match &raw.addresses {
        Field::Is(At { value: texts, span }) => {
            let mut all = Vec::new();
            for text in texts {
                let Field::Is(At { value: text, span }) = text else { continue };
                match addressed(&text.text) {
                    Some(address) => all.push(address),
                    None => {
                        let hint = "write an address and the length of its network, such as \"10.98.0.1/24\"";
                        mistakes.add(*span, format!("{} is not an address inside", text.shown()), hint);
                    }
                }
            }
            (all, *span)
        }
        Field::Absent | Field::Bad => (Vec::new(), header),
    };
    if let Some((conf, _)) = conf {
        let more =
            conf.addresses.iter().filter_map(|(ip, bits)| Network::new(*ip, *bits).map(|network| (*ip, network)));
        all.extend(more);
    }
    // A file that cannot be used may have one.
    let unknown = matches!(raw.addresses, Field::Absent) && conf.is_none() && !matches!(raw.conf, Field::Absent);
    if all.is_empty() && !unknown && !matches!(raw.addresses, Field::Bad) {
        mistakes.add(span, "a `[listener.wireguard]` has no address inside", "add `addresses = [\"10.98.0.1/24\"]`");
    }
    if all.len() > MOST_ADDRESSES {
        mistakes.add(span, format!("an interface has at most {MOST_ADDRESSES} addresses"), "take some out");
    }
    all
}

fn addressed(text: &str) -> Option<(IpAddr, Network)> {
    let address: IpAddr = text.split_once('/').map_or(text, |(address, _)| address).parse().ok()?;
    let unusable = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    text.parse().ok().filter(|_| !unusable).map(|network| (address, network))
}

fn networks(texts: &Field<Vec<Field<Text>>>, mistakes: &mut Mistakes) -> Vec<Network> {
    let Field::Is(At { value: texts, .. }) = texts else { return Vec::new() };
    let network = |text: &Field<Text>| {
        let Field::Is(At { value: text, span }) = text else { return None };
        let network = text.text.parse().ok();
        if network.is_none() {
            let hint = "write a network such as \"10.98.0.2/32\" or \"fd98::/64\"";
            mistakes.add(*span, format!("{} is not a network", text.shown()), hint);
        }
        network
    };
    texts.iter().filter_map(network).collect()
}

fn of_conf(peer: &ConfPeer) -> Peer {
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

fn congestion(raw: &Field<Text>, mode: RawMode, mistakes: &mut Mistakes) -> Option<String> {
    let Field::Is(At { value: text, span }) = raw else { return None };
    if matches!(mode, RawMode::Tun | RawMode::Netstack) {
        let hint = "take it out, or choose `mode = \"private\"` or \"auto\"";
        mistakes.add(*span, "`congestion` is for the TCP of a private network", hint);
    }
    // TCP_CA_NAME_MAX of the kernel, with its final 0.
    if text.text.is_empty()
        || text.text.len() > 15
        || !text.text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        let hint = "write a word such as \"bbr\" or \"cubic\", as in net.ipv4.tcp_available_congestion_control";
        mistakes.add(*span, format!("{} is not a congestion control", text.shown()), hint);
    }
    Some(text.text.clone())
}

fn peer(
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
    let allowed = networks(&raw.allowed_ips, mistakes);
    let at = span_of(&raw.allowed_ips).unwrap_or(raw.header);
    for network in &allowed {
        if let Some(first) = seen.networks.insert(*network, at).filter(|first| *first != at) {
            let hint = "a network belongs to one peer; a smaller one within it may be another's";
            mistakes.add_pair(at, format!("{network} is another peer's"), hint, first, "taken here");
        }
    }
    let (endpoint, endpoint_name) = endpoint(&raw.endpoint, mistakes);
    let public_key = public_key(raw, seen, mistakes);
    let expires = expires(&raw.expires, mistakes);
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
            Field::Is(at) => u16::try_from(at.value.as_secs()).ok().filter(|seconds| *seconds > 0),
            Field::Absent | Field::Bad => None,
        },
        limit_in: limit(&raw.limit_in, &raw.packets_in),
        limit_out: limit(&raw.limit_out, &raw.packets_out),
        expires,
        metrics: copied(&raw.metrics, false),
        ..PeerSettings::new(public_key?, allowed)
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
    Some(key)
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

pub(super) fn span_of<T>(field: &Field<T>) -> Option<Span> {
    match field {
        Field::Is(at) => Some(at.span),
        Field::Absent | Field::Bad => None,
    }
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
