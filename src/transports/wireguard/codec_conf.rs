//! wg-quick configuration files (wg(8), "CONFIGURATION FILE FORMAT"; wg-quick(8)): reads them, all mistakes at once, and
//! writes the client's side of a tunnel as one.
//!
//! Sections and keys are read whatever their case; `#` begins a comment. Commands (`PreUp` and the like) are not run
//! and `DNS` and `SaveConfig` not obeyed: each is noted, so that whoever reads the file can say so. A key that neither
//! program knows is a mistake.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::codec_keys::{PublicKey, SecretKey};
use crate::transports::kit::routes::Network;

/// A file as the gateway understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// Our private key.
    pub private_key: SecretKey,
    /// The port to listen on; none: any.
    pub listen_port: Option<u16>,
    /// The mark on packets sent.
    pub fwmark: Option<u32>,
    /// Our addresses inside, as written: the interface's own, and how many bits name the network they are in.
    pub addresses: Vec<(std::net::IpAddr, u8)>,
    /// The MTU inside.
    pub mtu: Option<u16>,
    /// Whether routes are made for allowed addresses; false with `Table = off`.
    pub routes: bool,
    /// The peers, in the order of the file.
    pub peers: Vec<ConfPeer>,
    /// What was read and is not obeyed.
    pub notes: Vec<Note>,
}

/// One `[Peer]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfPeer {
    /// Who it is.
    pub public_key: PublicKey,
    /// The key both have beside.
    pub preshared_key: Option<SecretKey>,
    /// The networks it has.
    pub allowed_ips: Vec<Network>,
    /// Where it is, if that is known.
    pub endpoint: Option<Endpoint>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
    /// The header of its section in the file, in bytes.
    pub place: Range<usize>,
}

/// A host, as a name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An address without brackets, or a name to be looked up.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    /// Reads `host:port` or `[address]:port`.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = number(port).filter(|port| (1..=65_535).contains(port))?;
        let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())?,
            None if host.contains(':') => return None,
            None => host,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(plain) {
            return None;
        }
        Some(Self { host: host.to_owned(), port: u16::try_from(port).ok()? })
    }
}

/// Something in the file that is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where, in bytes.
    pub place: Range<usize>,
    /// What becomes of it.
    pub message: String,
}

/// A mistake in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfMistake {
    /// Where, in bytes.
    pub place: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: String,
    /// The other place of a contradiction, and what it is.
    pub also: Option<(Range<usize>, String)>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfMistakes {
    /// Never empty.
    pub mistakes: Vec<ConfMistake>,
    /// Where secrets stand in the file, to be masked when its lines are shown.
    pub secrets: Vec<Range<usize>>,
}

const INTERFACE: &[&str] = &[
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
const PEER: &[&str] = &["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];
/// Keys that may stand more than once in a section.
const REPEATED: &[&str] = &["Address", "DNS", "PreUp", "PostUp", "PreDown", "PostDown", "AllowedIPs"];

/// Reads a file.
///
/// # Errors
/// All its mistakes, in the order of the file.
pub fn read(text: &str) -> Result<Conf, ConfMistakes> {
    let mut reader = Reader::default();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        reader.line(line, at);
        at += line.len();
    }
    reader.finish(text)
}

#[derive(Default)]
struct Reader {
    section: Section,
    /// The keys of this section and where they stood first.
    seen: BTreeMap<&'static str, Range<usize>>,
    interface: Option<Range<usize>>,
    private_key: Option<SecretKey>,
    /// A value for it was there, right or wrong.
    has_private_key: bool,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
    addresses: Vec<(std::net::IpAddr, u8)>,
    mtu: Option<u16>,
    no_routes: bool,
    peer: Option<Draft>,
    peers: Vec<ConfPeer>,
    keys: BTreeMap<PublicKey, Range<usize>>,
    networks: BTreeMap<Network, Range<usize>>,
    notes: Vec<Note>,
    mistakes: Vec<ConfMistake>,
    secrets: Vec<Range<usize>>,
}

#[derive(Default, PartialEq, Eq)]
enum Section {
    /// Before the first header.
    #[default]
    None,
    Interface,
    Peer,
    /// Behind a header nobody knows.
    Unknown,
}

/// A `[Peer]` being read.
#[derive(Default)]
struct Draft {
    place: Range<usize>,
    public_key: Option<PublicKey>,
    has_public_key: bool,
    preshared_key: Option<SecretKey>,
    allowed_ips: Vec<Network>,
    endpoint: Option<Endpoint>,
    keepalive: Option<u16>,
}

/// A piece of the file and where it stands.
#[derive(Clone)]
struct Piece<'a> {
    text: &'a str,
    place: Range<usize>,
}

impl<'a> Piece<'a> {
    /// `text`, which begins at byte `at` of the file, without the blanks around it.
    fn trimmed(text: &'a str, at: usize) -> Self {
        let start = at + (text.len() - text.trim_start().len());
        let text = text.trim();
        Self { text, place: start..start + text.len() }
    }

    /// The parts between commas.
    fn parts(&self) -> impl Iterator<Item = Piece<'a>> {
        let mut at = self.place.start;
        self.text.split(',').map(move |part| {
            let piece = Piece::trimmed(part, at);
            at += part.len() + 1;
            piece
        })
    }
}

impl Reader {
    fn line(&mut self, line: &str, at: usize) {
        let content = line.split('#').next().unwrap_or_default();
        let (content, at) = if at == 0 {
            content.strip_prefix('\u{feff}').map_or((content, 0), |rest| (rest, 3))
        } else {
            (content, at)
        };
        let piece = Piece::trimmed(content, at);
        if piece.text.is_empty() {
            return;
        }
        if piece.text.starts_with('[') {
            self.header(&piece);
            return;
        }
        let Some((key, value)) = piece.text.split_once('=') else {
            self.mistake(&piece.place, "neither a section nor a setting", "write `Key = value`");
            return;
        };
        let after = piece.place.start + key.len() + 1;
        let (key, value) = (Piece::trimmed(key, piece.place.start), Piece::trimmed(value, after));
        self.setting(&key, &value);
    }

    fn header(&mut self, piece: &Piece<'_>) {
        self.seen.clear();
        self.end_peer();
        if piece.text.eq_ignore_ascii_case("[interface]") {
            self.section = Section::Interface;
            match self.interface.clone() {
                None => self.interface = Some(piece.place.clone()),
                Some(first) => {
                    let message = "a second [Interface]";
                    self.pair(&piece.place, message, "write one section for the interface", first, "the first is here");
                }
            }
        } else if piece.text.eq_ignore_ascii_case("[peer]") {
            self.section = Section::Peer;
            self.peer = Some(Draft { place: piece.place.clone(), ..Draft::default() });
        } else {
            self.section = Section::Unknown;
            self.mistake(&piece.place, "an unknown section", "write [Interface] or [Peer]");
        }
    }

    fn setting(&mut self, key: &Piece<'_>, value: &Piece<'_>) {
        let (known, section) = match self.section {
            Section::Interface => (INTERFACE, "[Interface]"),
            Section::Peer => (PEER, "[Peer]"),
            Section::None => {
                return self.mistake(&key.place, "a setting before any section", "begin with [Interface]");
            }
            // The section is the mistake.
            Section::Unknown => return,
        };
        // Also where the key is not at its place: it may be shown.
        if ["PrivateKey", "PresharedKey"].iter().any(|secret| secret.eq_ignore_ascii_case(key.text)) {
            self.secrets.push(value.place.clone());
        }
        let Some(name) = known.iter().copied().find(|name| name.eq_ignore_ascii_case(key.text)) else {
            let other = if self.section == Section::Peer { INTERFACE } else { PEER };
            let hint = match other.iter().find(|name| name.eq_ignore_ascii_case(key.text)) {
                Some(_) if self.section == Section::Peer => "it belongs into [Interface]".to_owned(),
                Some(_) => "it belongs into a [Peer]".to_owned(),
                None => format!("{section} knows {}", known.join(", ")),
            };
            return self.mistake(&key.place, &format!("{section} has no setting {}", word(key.text)), &hint);
        };
        if let Some(first) = self.seen.get(name).cloned().filter(|_| !REPEATED.contains(&name)) {
            return self.pair(&key.place, &format!("{name} is set twice"), "keep one", first, "the first is here");
        }
        self.seen.entry(name).or_insert_with(|| key.place.clone());
        if value.text.is_empty() {
            // What follows from a missing value is not reported as well.
            self.has_private_key |= name == "PrivateKey";
            if let Some(peer) = &mut self.peer {
                peer.has_public_key |= name == "PublicKey";
            }
            if name == "AllowedIPs" {
                return;
            }
            return self.mistake(&key.place, &format!("{name} has no value"), "write one behind the `=`");
        }
        match self.section {
            Section::Interface => self.interface_setting(name, value),
            Section::Peer => self.peer_setting(name, value),
            Section::None | Section::Unknown => {}
        }
    }

    fn interface_setting(&mut self, name: &'static str, value: &Piece<'_>) {
        match name {
            "PrivateKey" => {
                self.has_private_key = true;
                self.private_key = self.key(value, SecretKey::from_base64(value.text));
            }
            "ListenPort" => self.listen_port = self.number16(name, value, 0),
            "MTU" => self.mtu = self.number16(name, value, 576),
            "FwMark" => {
                self.fwmark = mark(value.text);
                if self.fwmark.is_none() {
                    self.mistake(
                        &value.place,
                        &with("not a mark", value.text),
                        "write a number such as 51820 or 0xca6c, or `off`",
                    );
                }
            }
            "Address" => {
                for part in value.parts() {
                    match part.text.parse::<Network>().ok().zip(address(part.text)) {
                        Some((network, address)) => self.addresses.push((address, network.prefix())),
                        None => self.mistake(
                            &part.place,
                            &with("not an address", part.text),
                            "write one such as 10.98.0.1/24",
                        ),
                    }
                }
            }
            "Table" => match value.text {
                "off" => self.no_routes = true,
                "auto" => {}
                _ => self.note(&value.place, "Table: routes go to the main table".to_owned()),
            },
            "SaveConfig" if value.text == "false" => {}
            // DNS, SaveConfig, and the commands.
            _ => self.note(&value.place, format!("{name} is not obeyed")),
        }
    }

    fn peer_setting(&mut self, name: &'static str, value: &Piece<'_>) {
        let Some(mut peer) = self.peer.take() else { return };
        match name {
            "PublicKey" => {
                peer.has_public_key = true;
                peer.public_key = self.key(value, PublicKey::from_base64(value.text));
                if let Some(key) = peer.public_key {
                    match self.keys.get(&key).cloned() {
                        None => drop(self.keys.insert(key, value.place.clone())),
                        Some(first) => self.pair(
                            &value.place,
                            "two peers with the same public key",
                            "join them to one [Peer]",
                            first,
                            "the first is here",
                        ),
                    }
                }
            }
            "PresharedKey" => peer.preshared_key = self.key(value, SecretKey::from_base64(value.text)),
            "AllowedIPs" => {
                for part in value.parts() {
                    let Ok(network) = part.text.parse::<Network>() else {
                        self.mistake(
                            &part.place,
                            &with("not a network", part.text),
                            "write one such as 10.98.0.2/32, or 0.0.0.0/0 for all",
                        );
                        continue;
                    };
                    match self.networks.get(&network).cloned() {
                        None => drop(self.networks.insert(network, part.place.clone())),
                        Some(first) => self.pair(
                            &part.place,
                            &format!("{network} is given out twice"),
                            "a network belongs to one peer; a smaller one within it may belong to another",
                            first,
                            "the first is here",
                        ),
                    }
                    peer.allowed_ips.push(network);
                }
            }
            "Endpoint" => {
                peer.endpoint = Endpoint::read(value.text);
                if peer.endpoint.is_none() {
                    let hint = "write host:port, or [address]:port for IPv6";
                    self.mistake(&value.place, &with("not a host with a port", value.text), hint);
                }
            }
            _ if value.text == "off" => peer.keepalive = Some(0),
            _ => peer.keepalive = self.number16(name, value, 0),
        }
        self.peer = Some(peer);
    }

    fn end_peer(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        if !peer.has_public_key {
            self.mistake(&peer.place, "a [Peer] without a PublicKey", "add the key that `wg pubkey` prints for it");
        }
        let Some(public_key) = peer.public_key else { return };
        self.peers.push(ConfPeer {
            public_key,
            preshared_key: peer.preshared_key,
            allowed_ips: peer.allowed_ips,
            endpoint: peer.endpoint,
            keepalive: peer.keepalive,
            place: peer.place,
        });
    }

    fn finish(mut self, text: &str) -> Result<Conf, ConfMistakes> {
        self.end_peer();
        match self.interface.clone() {
            None => {
                self.mistake(&(0..first_line(text)), "no [Interface]", "the file of a tunnel begins with [Interface]")
            }
            Some(place) if !self.has_private_key => {
                self.mistake(&place, "an [Interface] without a PrivateKey", "add the key that `wg genkey` prints");
            }
            Some(_) => {}
        }
        let private_key = match self.private_key {
            Some(key) if self.mistakes.is_empty() => key,
            _ => {
                self.mistakes.sort_by_key(|mistake| mistake.place.start);
                return Err(ConfMistakes { mistakes: self.mistakes, secrets: self.secrets });
            }
        };
        Ok(Conf {
            private_key,
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            addresses: self.addresses,
            mtu: self.mtu,
            routes: !self.no_routes,
            peers: self.peers,
            notes: self.notes,
        })
    }

    fn key<K>(&mut self, value: &Piece<'_>, key: Option<K>) -> Option<K> {
        if key.is_none() {
            self.mistake(
                &value.place,
                "not a key",
                "write the 44 characters that `wg genkey`, `pubkey` or `genpsk` prints",
            );
        }
        key
    }

    fn number16(&mut self, name: &str, value: &Piece<'_>, least: u32) -> Option<u16> {
        let found = number(value.text).filter(|number| *number >= least).and_then(|number| u16::try_from(number).ok());
        if found.is_none() {
            let message = with(&format!("{name} is out of its range"), value.text);
            self.mistake(&value.place, &message, &format!("write a number from {least} to 65535"));
        }
        found
    }

    fn note(&mut self, place: &Range<usize>, message: String) {
        self.notes.push(Note { place: place.clone(), message });
    }

    fn mistake(&mut self, place: &Range<usize>, message: &str, hint: &str) {
        let (message, hint) = (message.to_owned(), hint.to_owned());
        self.mistakes.push(ConfMistake { place: place.clone(), message, hint, also: None });
    }

    fn pair(&mut self, place: &Range<usize>, message: &str, hint: &str, other: Range<usize>, label: &str) {
        let (message, hint) = (message.to_owned(), hint.to_owned());
        let also = Some((other, label.to_owned()));
        self.mistakes.push(ConfMistake { place: place.clone(), message, hint, also });
    }
}

/// A name as a message may show it. What is no word may be a key that lost its name.
fn word(text: &str) -> String {
    let plain = text.len() <= 20 && text.bytes().all(|b| b.is_ascii_alphabetic());
    if plain { format!("`{text}`") } else { "of this name".to_owned() }
}

/// A message with the value it is about, unless that may be a key at the wrong place.
fn with(message: &str, value: &str) -> String {
    if value.len() > 40 { message.to_owned() } else { format!("{message}: `{}`", value.escape_debug()) }
}

fn first_line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

fn address(text: &str) -> Option<std::net::IpAddr> {
    text.split('/').next().unwrap_or_default().parse().ok()
}

/// Decimal digits and nothing else.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn mark(text: &str) -> Option<u32> {
    match (text, text.strip_prefix("0x")) {
        ("off", _) => Some(0),
        (_, Some(digits)) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16).ok(),
        (_, _) => number(text),
    }
}

impl fmt::Display for Conf {
    /// As a file; it holds the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[Interface]\nPrivateKey = {}", *self.private_key.to_base64())?;
        for (address, bits) in &self.addresses {
            writeln!(f, "Address = {address}/{bits}")?;
        }
        line(f, "ListenPort", self.listen_port.as_ref())?;
        line(f, "FwMark", self.fwmark.as_ref())?;
        line(f, "MTU", self.mtu.as_ref())?;
        if !self.routes {
            writeln!(f, "Table = off")?;
        }
        for peer in &self.peers {
            writeln!(f, "\n[Peer]\nPublicKey = {}", peer.public_key)?;
            if let Some(key) = &peer.preshared_key {
                writeln!(f, "PresharedKey = {}", *key.to_base64())?;
            }
            for network in &peer.allowed_ips {
                writeln!(f, "AllowedIPs = {network}")?;
            }
            line(f, "Endpoint", peer.endpoint.as_ref())?;
            line(f, "PersistentKeepalive", peer.keepalive.as_ref())?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: Option<&impl fmt::Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| writeln!(f, "{name} = {value}"))
}

#[cfg(test)]
#[path = "codec_conf_tests.rs"]
mod tests;
