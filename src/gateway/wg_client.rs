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
use crate::transports::wireguard::codec_conf::Endpoint;
use crate::transports::wireguard::{SecretKey, public_key};

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

/// The file for the peer of this name.
pub(super) fn text(config: &Config, name: &str, wish: &Wish<'_>) -> Result<Zeroizing<String>, String> {
    let mut found = None;
    let mut names = Vec::new();
    for listener in &config.listeners {
        let Protocol::Wireguard(wireguard) = &listener.protocol else { continue };
        for peer in &wireguard.peers {
            names.extend(peer.settings.name.as_deref());
            if peer.settings.name.as_deref() == Some(name) {
                found = Some((listener.listen, wireguard, peer));
            }
        }
    }
    let Some((listen, wireguard, peer)) = found else {
        return Err(format!("no WireGuard peer is called `{name}`; there are: {}", names.join(", ")));
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
    for network in &peer.settings.allowed {
        line("Address", &network.to_string());
    }
    line("MTU", &wireguard.mtu.to_string());
    line("\n[Peer]\nPublicKey", server);
    if let Some(key) = &peer.settings.preshared_key {
        line("PresharedKey", &key.to_base64());
    }
    if wish.everything {
        line("AllowedIPs", "0.0.0.0/0, ::/0");
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

fn key_of(path: &Path, peer: &Peer) -> Result<Zeroizing<String>, String> {
    let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|error| format!("{}: {error}", path.display()))?;
    let key = SecretKey::from_base64(text.trim()).ok_or_else(|| format!("{} holds no key", path.display()))?;
    if public_key(&key) == peer.settings.public_key {
        Ok(key.to_base64())
    } else {
        Err(format!("{} is the key of somebody else", path.display()))
    }
}
