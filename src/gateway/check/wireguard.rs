//! Judges `[listener.wireguard]`: keys are read, networks compared, services matched with addresses and upstreams.
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use super::listener::copied;
use super::quic::Around;
use super::wireguard_peer::{self, Seen, is_within, networks};
use super::wireguard_service;
use crate::gateway::config::wireguard::{Key, Mode, Offload, ThreadingMode, Wireguard};
use crate::gateway::config::{Listener, Protocol};
use crate::gateway::raw::secrets;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::{Text, reason};
use crate::gateway::raw::wireguard::{RawMode, RawOffload, RawThreading, RawWireguard};
use crate::gateway::report::{Mistakes, Span, quoted};
use crate::gateway::wg_conf;
use crate::transports::wireguard::codec_conf::Conf;
use crate::transports::wireguard::uapi::FOLDER;
use crate::transports::wireguard::{DEFAULT_MTU, MOST_PEERS, Network, PeerToPeer, SecretKey, public_key};

const KEY_HINT: &str = "write `private_key_file = \"wg0.key\"`, `conf = \"wg0.conf\"` or `generate_key = true`";
/// RFC 8200, section 5.
const LEAST_MTU_V6: u16 = 1_280;
/// IFNAMSIZ of the kernel, with its final 0.
const LONGEST_NAME: usize = 15;
/// Of a wg-quick file so many are shown.
const CONF_MISTAKES: usize = 20;
/// Nothing is forwarded there, see `is_elsewhere` of `transports::kit::routes`.
const NOWHERE: [&str; 10] = [
    "0.0.0.0/32",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];
/// smoltcp keeps so many.
const MOST_ADDRESSES: usize = 8;

/// The interface, if nothing is wrong with it.
pub(super) fn wireguard(
    raw: &At<RawWireguard>,
    listen: &Field<SocketAddr>,
    around: &Around<'_>,
    mistakes: &mut Mistakes,
) -> Option<Wireguard> {
    let At { value: raw, span } = raw;
    let before = mistakes.len();
    let default = Wireguard::default();
    let mut warnings = Vec::new();
    let (key, conf) = key(raw, *span, around.folder, &mut warnings, mistakes);
    let addresses = addresses(raw, *span, conf.as_ref(), &mut warnings, mistakes);
    let mode = copied(&raw.mode, RawMode::Auto);
    let own_key = match &key {
        Some(Key::Given(secret)) => Some(public_key(secret)),
        Some(Key::Generated) | None => None,
    };
    let mut seen = Seen::of(own_key, &addresses);
    let mut peers = Vec::new();
    if let Some((conf, at)) = &conf {
        not_obeyed(conf, listen, mode, &mut warnings);
        let peer = |peer| wireguard_peer::of_conf(peer, *at, &mut seen, &mut warnings, mistakes);
        peers.extend(conf.peers.iter().map(peer));
    }
    for peer in &raw.peers {
        peers.extend(wireguard_peer::peer(peer, around.folder, &mut seen, &mut warnings, mistakes));
    }
    if peers.len() > MOST_PEERS {
        mistakes.add(*span, format!("an interface has at most {MOST_PEERS} peers"), "spread them over two interfaces");
    }
    let services = wireguard_service::services(&raw.services, &addresses, around, mistakes);
    let forward = forward(raw, &addresses, &mut warnings, mistakes);
    let uapi = match &raw.uapi {
        Field::Is(folder) if folder.value.text == "off" => None,
        Field::Is(folder) => Some(around.folder.join(&folder.value.text)),
        Field::Absent | Field::Bad => default.uapi,
    };
    if let Some(folder) = uapi.as_ref().filter(|folder| !folder.is_dir() && **folder != *Path::new(FOLDER)) {
        warnings.push(format!("there is no folder {}: `wg` is not served without it", folder.display()));
    }
    if let (Field::Is(masquerade), false) = (&raw.masquerade, matches!(mode, RawMode::Tun)) {
        mistakes.add(masquerade.span, "`masquerade` belongs to `mode = \"tun\"`", "take it out, or choose that mode");
    }
    if let (Field::Is(offload), RawMode::Netstack) = (&raw.offload, mode) {
        let hint = "take it out, or choose a mode with a TUN interface: private, tun or auto";
        mistakes.add(offload.span, "`offload` does not belong to `mode = \"netstack\"`", hint);
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
        uapi,
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
                for found in report.diagnostics().iter().take(CONF_MISTAKES) {
                    let place = found.place().map(|at| format!("{at}: ")).unwrap_or_default();
                    mistakes.add(file.span, format!("`conf`: {place}{}", found.message()), found.hint());
                }
                if let Some(more) = report.count().checked_sub(CONF_MISTAKES).filter(|more| *more > 0) {
                    mistakes.add(file.span, format!("`conf`: {more} mistakes more"), "mend those above first");
                }
                (None, None)
            }
        };
    }
    (Some(Key::Generated), None)
}

/// Reads a key from a file of its own.
pub(super) fn secret_file(
    file: &At<Text>,
    key: &str,
    folder: &Path,
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Option<SecretKey> {
    const KEYGEN: &str = "`portway keygen wireguard --out wg0` makes key files";
    let path = folder.join(&file.value.text);
    // Somebody may have written the key where its file is to be named.
    let shown = if file.value.hidden || secrets::is_like_a_key(&file.value.text) {
        "it".to_owned()
    } else {
        quoted(&path.display().to_string())
    };
    // Large enough from the start: growing would leave a copy behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(2_048));
    // A key has 44 characters: what is longer is another file.
    let read = File::open(&path).and_then(|file| file.take(1_024).read_to_string(&mut text));
    if let Err(error) = read {
        let hint = match (error.kind(), path.metadata()) {
            (ErrorKind::PermissionDenied, Ok(about)) => format!(
                "its owner is user {}, its mode {:04o}: chown or chmod it so that user {} may read it",
                about.uid(),
                about.permissions().mode() & 0o7777,
                rustix::process::geteuid().as_raw()
            ),
            (ErrorKind::PermissionDenied, Err(_)) => {
                format!("chown or chmod its folder so that user {} may enter it", rustix::process::geteuid().as_raw())
            }
            (_, _) => KEYGEN.to_owned(),
        };
        mistakes.add(file.span, format!("`{key}`: {shown} cannot be read: {}", reason(error)), hint);
        return None;
    }
    warnings.extend(open_file(&path));
    let secret = SecretKey::from_base64(text.trim());
    if secret.is_none() {
        mistakes.add(
            file.span,
            format!("`{key}`: {shown} holds no key, which is 44 characters of base64 on one line"),
            KEYGEN,
        );
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
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Vec<(IpAddr, Network)> {
    let (mut all, span) = match &raw.addresses {
        Field::Is(At { value: texts, span }) => {
            let mut all: Vec<(IpAddr, Network)> = Vec::new();
            for text in texts {
                let Field::Is(At { value: text, span }) = text else { continue };
                match addressed(&text.text) {
                    Ok((address, _)) if all.iter().any(|(known, _)| *known == address) => {
                        mistakes.add(*span, format!("{} is here already", text.shown()), "take one of the two out");
                    }
                    Ok(address) => all.push(address),
                    Err(wrong) => mistakes.add(*span, format!("{} {}", text.shown(), wrong.0), wrong.1),
                }
            }
            (all, *span)
        }
        Field::Absent | Field::Bad => (Vec::new(), header),
    };
    if let Some((conf, _)) = conf {
        let more =
            conf.addresses.iter().filter_map(|(ip, bits)| Network::new(*ip, *bits).map(|network| (*ip, network)));
        for (address, network) in more {
            if is_of_all(address, &network) {
                warnings.push(format!("Address = {address}/{} is the network's, not a host's", network.prefix()));
            }
            if all.iter().any(|(known, _)| *known == address) {
                let message = format!("{address} is in `addresses` and in the file");
                mistakes.add(span, message, "take it out of one of the two");
            } else {
                all.push((address, network));
            }
        }
    }
    for (n, (_, one)) in all.iter().enumerate() {
        for (_, other) in all.iter().skip(n + 1).filter(|(_, other)| is_within(one, other) || is_within(other, one)) {
            warnings.push(format!("the networks of two `addresses` overlap: {one} and {other}"));
        }
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

/// What is wrong with an address, and what to write.
struct Wrong(&'static str, &'static str);

fn addressed(text: &str) -> Result<(IpAddr, Network), Wrong> {
    const HINT: &str = "write an address and the length of its network, such as \"10.98.0.1/24\"";
    let no = || Wrong("is not an address inside", HINT);
    let address: IpAddr = text.split('/').next().unwrap_or_default().parse().map_err(|_| no())?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(no());
    }
    let network: Network = text.parse().map_err(|_| no())?;
    if !text.contains('/') {
        return Err(Wrong("lacks the length of its network", HINT));
    }
    if is_of_all(address, &network) {
        let hint = "write an address of a host, such as \"10.98.0.1/24\"";
        return Err(Wrong("names the network or all of its hosts, and no host", hint));
    }
    Ok((address, network))
}

/// Whether an address is a network's own (RFC 1122, section 3.2.1.3; RFC 4291, section 2.6.1) or its broadcast address.
fn is_of_all(address: IpAddr, network: &Network) -> bool {
    match address {
        // Two addresses are a line between two hosts (RFC 3021; RFC 6164).
        IpAddr::V4(_) if network.prefix() > 30 => false,
        IpAddr::V6(_) if network.prefix() > 126 => false,
        IpAddr::V4(v4) => {
            let hosts = u32::MAX.checked_shr(u32::from(network.prefix())).unwrap_or(0);
            network.address() == address || u32::from(v4) & hosts == hosts
        }
        IpAddr::V6(_) => network.address() == address,
    }
}

/// What of a wg-quick file the listener has another word for, or does not do.
fn not_obeyed(conf: &Conf, listen: &Field<SocketAddr>, mode: RawMode, warnings: &mut Vec<String>) {
    if let (Some(port), Field::Is(At { value: listen, .. })) = (conf.listen_port, listen)
        && port != listen.port()
    {
        warnings.push(format!("ListenPort = {port} is not obeyed: `listen` says {}", listen.port()));
    }
    if let Some(mark) = conf.fwmark.filter(|mark| *mark > 0) {
        warnings.push(format!("FwMark = {mark} is not obeyed: `wg set` gives a running interface one"));
    }
    if !conf.routes && matches!(mode, RawMode::Tun) {
        warnings.push("Table = off is not obeyed: in mode `tun` the networks of peers get routes".to_owned());
    }
}

/// The networks to forward to.
fn forward(
    raw: &RawWireguard,
    addresses: &[(IpAddr, Network)],
    warnings: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Vec<Network> {
    let all = networks(&raw.forward, "forward", warnings, mistakes);
    let never: Vec<Network> = NOWHERE.iter().filter_map(|text| text.parse().ok()).collect();
    for (network, span) in &all {
        if never.iter().any(|never| is_within(network, never)) {
            let hint = "loopback, link-local and multicast addresses are never forwarded to: take it out";
            mistakes.add(*span, format!("nothing is forwarded to {network}"), hint);
        } else if addresses.iter().any(|(_, own)| is_within(network, own)) {
            warnings.push(format!("`forward` names {network}, which is inside the tunnel: its peers are there"));
        }
    }
    all.into_iter().map(|(network, _)| network).collect()
}

/// Warns of interfaces on the host that have the same address: replies of the host go to one of them.
pub(super) fn same_addresses(listeners: &mut [Listener]) {
    let mut seen: Vec<(IpAddr, String)> = Vec::new();
    for listener in listeners {
        let Protocol::Wireguard(wireguard) = &mut listener.protocol else { continue };
        if wireguard.mode != Mode::Tun {
            continue;
        }
        for (address, _) in &wireguard.addresses {
            match seen.iter().find(|(known, _)| known == address) {
                Some((_, other)) => {
                    let warning = format!("{address} is an address of `{other}` as well, on the same host");
                    wireguard.warnings.push(warning);
                }
                None => seen.push((*address, listener.name.clone())),
            }
        }
    }
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

pub(super) fn span_of<T>(field: &Field<T>) -> Option<Span> {
    match field {
        Field::Is(at) => Some(at.span),
        Field::Absent | Field::Bad => None,
    }
}
