//! `portway wireguard client NAME`: the file by which a peer's own WireGuard reaches us.
//!
//! A peer's private key is its own affair: the file has a line to fill in, unless the key is at hand.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use zeroize::Zeroizing;

use super::config::wireguard::{Key, Peer, Wireguard};
use super::config::{Config, Protocol};
use super::report::quoted;
use crate::transports::wireguard::codec_conf::Endpoint;
use crate::transports::wireguard::{Network, SecretKey, public_key};

/// What the file is to say beside what the configuration says.
#[derive(Debug, Default)]
pub(super) struct Wish<'a> {
    /// Where the client finds us.
    pub(super) endpoint: Option<&'a str>,
    /// The client's private key.
    pub(super) private_key: Option<&'a Path>,
    /// Everything goes through the tunnel.
    pub(super) everything: bool,
}

/// The file for the peer of this name, or with this public key: peers of a wg-quick file have no name.
pub(super) fn text(config: &Config, name: &str, wish: &Wish<'_>) -> Result<Zeroizing<String>, String> {
    let mut found = None;
    let (mut names, mut nameless) = (Vec::new(), 0);
    for listener in &config.listeners {
        let Protocol::Wireguard(wireguard) = &listener.protocol else { continue };
        for peer in &wireguard.peers {
            match peer.settings.name.as_deref() {
                Some(name) => names.push(name),
                None => nameless += 1,
            }
            if peer.settings.name.as_deref() == Some(name) || peer.settings.public_key.to_string() == name {
                found = Some((listener.listen, wireguard, peer));
            }
        }
    }
    let Some((listen, wireguard, peer)) = found else {
        let known = match (names.is_empty(), nameless) {
            (true, 0) => "there are no peers".to_owned(),
            (true, _) => "they have no names: give the public key of one".to_owned(),
            (false, 0) => format!("there are: {}", names.join(", ")),
            (false, _) => format!("there are: {}, and {nameless} known by their public keys", names.join(", ")),
        };
        return Err(format!("no WireGuard peer is called {}; {known}", quoted(name)));
    };
    let server = match &wireguard.key {
        Key::Given(key) => public_key(key).to_string(),
        Key::Generated => return Err("with `generate_key` our public key is known only from the log".to_owned()),
    };
    write(listen, wireguard, peer, &server, wish)
}

fn write(
    listen: SocketAddr,
    wireguard: &Wireguard,
    peer: &Peer,
    server: &str,
    wish: &Wish<'_>,
) -> Result<Zeroizing<String>, String> {
    let endpoint = match wish.endpoint {
        Some(text) => Endpoint::read(text).ok_or_else(|| format!("`{text}` is not a host with a port"))?.to_string(),
        None if listen.ip().is_unspecified() => {
            return Err("say where clients find us: --endpoint HOST:PORT".to_owned());
        }
        None => listen.to_string(),
    };
    // Enough that it is not copied while it grows: the copies would not be wiped.
    let mut out = Zeroizing::new(String::with_capacity(4_096));
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(out, "{name} = {value}");
    };
    match wish.private_key {
        Some(path) => line("[Interface]\nPrivateKey", &key_of(path, peer)?),
        None => line("[Interface]\n# PrivateKey", &format!("the one whose public key is {}", peer.settings.public_key)),
    }
    let own = own_addresses(wireguard, peer);
    for network in &own {
        line("Address", &network.to_string());
    }
    if own.is_empty() {
        line("# Address", "one of your own: none of this peer's allowed_ips is inside the tunnel's networks");
    }
    line("MTU", &wireguard.mtu.to_string());
    line("\n[Peer]\nPublicKey", server);
    if let Some(key) = &peer.settings.preshared_key {
        line("PresharedKey", &key.to_base64());
    }
    if wish.everything {
        for (everything, other, v6) in [("0.0.0.0/0", "IPv4", false), ("::/0", "IPv6", true)] {
            if wireguard.addresses.iter().any(|(address, _)| address.is_ipv6() == v6) {
                line("AllowedIPs", everything);
            } else {
                line("# AllowedIPs", &format!("{everything} is left out: the gateway has no {other} inside"));
            }
        }
    } else {
        for (_, network) in &wireguard.addresses {
            line("AllowedIPs", &network.to_string());
        }
        for network in &wireguard.forward {
            line("AllowedIPs", &network.to_string());
        }
    }
    line("Endpoint", &endpoint);
    if let Some(seconds) = peer.settings.keepalive {
        line("PersistentKeepalive", &seconds.to_string());
    }
    Ok(out)
}

/// What of a peer's networks is its own address: what lies in a network of the interface. The others are behind it.
fn own_addresses<'a>(wireguard: &Wireguard, peer: &'a Peer) -> Vec<&'a Network> {
    let allowed = &peer.settings.allowed;
    let within = |network: &&Network| {
        wireguard.addresses.iter().any(|(_, own)| own.prefix() <= network.prefix() && own.contains(network.address()))
    };
    let inside: Vec<_> = allowed.iter().filter(within).collect();
    if !inside.is_empty() {
        return inside;
    }
    // An interface that is a network of its own alone: peers are hosts beside it.
    allowed.iter().filter(|network| Network::host(network.address()) == **network).collect()
}

fn key_of(path: &Path, peer: &Peer) -> Result<Zeroizing<String>, String> {
    let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|error| format!("{}: {error}", path.display()))?;
    let key = SecretKey::from_base64(text.trim()).ok_or_else(|| format!("{} holds no key", path.display()))?;
    if public_key(&key) == peer.settings.public_key {
        Ok(key.to_base64())
    } else {
        Err(format!("{} is the key of somebody else", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Known, parse};
    use super::*;

    const KEYS: [&str; 3] = [
        "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
        "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
        "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
    ];

    /// The file of `name` at an interface with these addresses, whose peers have these networks.
    fn client(addresses: &str, peers: &[(&str, &str)], name: &str, everything: bool) -> Result<String, String> {
        let folder = std::env::temp_dir().join(format!("portway-client-{:?}", std::thread::current().id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("wg0.key"), "YI5KMQLCD6Qiqd3CGTcKqSHZWS7I0Q1YQNzWPDX3d1k=").unwrap();
        let mut text = format!(
            "version = 1\n[[listener]]\nname = \"wg0\"\nlisten = \"192.0.2.1:51820\"\nprotocol = \"wireguard\"\n\
             [listener.wireguard]\nprivate_key_file = \"wg0.key\"\naddresses = [{addresses}]\n"
        );
        for ((name, allowed), key) in peers.iter().zip(KEYS) {
            let name = if name.is_empty() { String::new() } else { format!("name = \"{name}\"\n") };
            let peer = format!("public_key = \"{key}\"\nallowed_ips = [{allowed}]\n");
            text.push_str(&format!("[[listener.wireguard.peer]]\n{name}{peer}"));
        }
        let config = parse(&folder.join("test.toml").display().to_string(), &text, &Known::default());
        let config = config.unwrap_or_else(|report| panic!("{report}"));
        fs::remove_dir_all(folder).unwrap();
        let wish = Wish { everything, ..Wish::default() };
        super::text(&config, name, &wish).map(|text| text.to_string())
    }

    fn values(text: &str, key: &str) -> Vec<String> {
        let prefix = format!("{key} = ");
        text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    #[test]
    fn a_network_behind_a_peer_is_no_address_of_it() {
        let peers = [("site", "\"10.98.0.3/32\", \"10.77.0.0/24\", \"fd98::3/128\", \"0.0.0.0/0\"")];
        let text = client("\"10.98.0.1/24\", \"fd98::1/64\"", &peers, "site", false).unwrap();
        assert_eq!(values(&text, "Address"), ["10.98.0.3/32", "fd98::3/128"]);
        let peers = [("site", "\"10.98.0.3/32\", \"10.77.0.0/24\""), ("net", "\"10.78.0.0/24\"")];
        let text = client("\"10.98.0.1/32\"", &peers, "site", false).unwrap();
        assert_eq!(values(&text, "Address"), ["10.98.0.3/32"], "hosts beside a host");
        let text = client("\"10.98.0.1/24\"", &peers, "net", false).unwrap();
        assert_eq!((values(&text, "Address").len(), values(&text, "# Address").len()), (0, 1), "{text}");
    }

    #[test]
    fn everything_is_what_the_gateway_has_inside() {
        let peers = [("phone", "\"10.98.0.2/32\"")];
        let text = client("\"10.98.0.1/24\"", &peers, "phone", true).unwrap();
        assert_eq!(values(&text, "AllowedIPs"), ["0.0.0.0/0"]);
        assert!(values(&text, "# AllowedIPs")[0].starts_with("::/0 is left out"), "{text}");
        let text = client("\"10.98.0.1/24\", \"fd98::1/64\"", &peers, "phone", true).unwrap();
        assert_eq!(values(&text, "AllowedIPs"), ["0.0.0.0/0", "::/0"]);
    }

    #[test]
    fn a_peer_without_a_name_has_its_key() {
        let peers = [("", "\"10.98.0.2/32\""), ("phone", "\"10.98.0.3/32\"")];
        let text = client("\"10.98.0.1/24\"", &peers, KEYS[0], false).unwrap();
        assert_eq!(values(&text, "Address"), ["10.98.0.2/32"]);
        let said = |peers: &[(&str, &str)]| client("\"10.98.0.1/24\"", peers, "tablet", false).unwrap_err();
        let told = "no WireGuard peer is called `tablet`; ";
        assert_eq!(said(&[]), format!("{told}there are no peers"));
        assert_eq!(said(&peers[..1]), format!("{told}they have no names: give the public key of one"));
        assert_eq!(said(&peers[1..]), format!("{told}there are: phone"));
        assert_eq!(said(&peers), format!("{told}there are: phone, and 1 known by their public keys"));
    }
}
