//! The configuration protocol of WireGuard implementations in user space (wireguard.com/xplatform): what `wg show`,
//! `wg set` and `wg syncconf` say over a Unix socket.
//!
//! A request is lines of `key=value` up to an empty line; the answer ends with `errno=` and an empty line. Keys of
//! peers follow the `public_key` of the peer they are about. A request with anything unknown in it is refused whole.
//! Text that holds keys is wiped when it is dropped.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::codec_keys::{PublicKey, SecretKey};
use crate::transports::kit::routes::Network;

/// The longest request, in bytes: some 100,000 peers.
pub const MAX_REQUEST: usize = 16 << 20;

/// What went wrong, as a number of errno(3). The answer carries it negated, as `wg` expects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The request is longer than [`MAX_REQUEST`].
    pub const TOO_LONG: Self = Self(7);
    /// The tunnel does not answer now.
    pub const BUSY: Self = Self(16);
    /// A key nobody knows, or a value that is none.
    pub const INVALID: Self = Self(22);
    /// More peers or networks than there is room for.
    pub const NO_ROOM: Self = Self(28);
    /// A line that is not `key=value`, or a request that is neither `get` nor `set`.
    pub const PROTOCOL: Self = Self(71);
    /// What is asked for cannot be changed while running.
    pub const UNSUPPORTED: Self = Self(95);
    /// The port is taken.
    pub const PORT_IN_USE: Self = Self(98);
}

/// What a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To see everything.
    Get,
    /// To change something.
    Set(Edit),
}

/// A change; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// Our private key; `Some(None)` takes it away.
    pub private_key: Option<Option<SecretKey>>,
    /// The port to listen on; 0 for any.
    pub listen_port: Option<u16>,
    /// The mark on packets sent; 0 for none.
    pub fwmark: Option<u32>,
    /// Peers that are not among `peers` go.
    pub replace_peers: bool,
    /// In the order of the request.
    pub peers: Vec<PeerEdit>,
}

/// A change of one peer, which is made if it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEdit {
    /// Who.
    pub public_key: PublicKey,
    /// It goes.
    pub remove: bool,
    /// Nothing happens if it does not exist.
    pub update_only: bool,
    /// The key both have beside; `Some(None)` takes it away.
    pub preshared_key: Option<Option<SecretKey>>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: Option<u16>,
    /// The networks it had go first.
    pub replace_allowed_ips: bool,
    /// Networks it gets, from whoever had them.
    pub add: Vec<Network>,
    /// Networks it loses.
    pub remove_allowed_ips: Vec<Network>,
}

impl PeerEdit {
    /// No change to this peer.
    #[must_use]
    pub const fn of(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            add: Vec::new(),
            remove_allowed_ips: Vec::new(),
        }
    }
}

/// A tunnel as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceView {
    /// Our private key.
    pub private_key: Option<SecretKey>,
    /// The port it listens on.
    pub listen_port: u16,
    /// The mark on packets sent; 0 for none.
    pub fwmark: u32,
    /// Its peers.
    pub peers: Vec<PeerView>,
}

/// A peer as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Who.
    pub public_key: PublicKey,
    /// The key both have beside.
    pub preshared_key: Option<SecretKey>,
    /// Where it was last heard from, or is configured to be.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was, since 1970.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it, as they came over the network.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
    /// The networks it has.
    pub allowed_ips: Vec<Network>,
}

/// The length of the first request in `bytes`, with its empty line, if it is all there.
#[must_use]
pub fn request_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 2)
}

/// Reads a request.
///
/// # Errors
/// [`Errno::PROTOCOL`] if it has not the form of one, [`Errno::INVALID`] if something in it is unknown or no value.
pub fn read(bytes: &[u8]) -> Result<Request, Errno> {
    let text = std::str::from_utf8(bytes).map_err(|_| Errno::PROTOCOL)?;
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    match lines.next() {
        Some("get=1") => lines.next().map_or(Ok(Request::Get), |_| Err(Errno::PROTOCOL)),
        Some("set=1") => {
            let mut edit = Edit::default();
            for line in lines {
                let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
                setting(&mut edit, key, value).ok_or(Errno::INVALID)?;
            }
            Ok(Request::Set(edit))
        }
        _ => Err(Errno::PROTOCOL),
    }
}

fn setting(edit: &mut Edit, key: &str, value: &str) -> Option<()> {
    if key == "public_key" {
        edit.peers.push(PeerEdit::of(PublicKey(*hex(value)?)));
        return Some(());
    }
    let Some(peer) = edit.peers.last_mut() else {
        match key {
            "private_key" => edit.private_key = Some(secret(value)?),
            "listen_port" => edit.listen_port = Some(decimal(value)?),
            "fwmark" => edit.fwmark = Some(if value.is_empty() { 0 } else { decimal(value)? }),
            "replace_peers" => edit.replace_peers = truth(value)?,
            _ => return None,
        }
        return Some(());
    };
    match key {
        "remove" => peer.remove = truth(value)?,
        "update_only" => peer.update_only = truth(value)?,
        "preshared_key" => peer.preshared_key = Some(secret(value)?),
        "endpoint" => peer.endpoint = Some(value.parse().ok().filter(|address: &SocketAddr| address.port() != 0)?),
        "persistent_keepalive_interval" => peer.keepalive = Some(decimal(value)?),
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = truth(value)?;
            // What the request gave before is replaced as well.
            peer.add.clear();
            peer.remove_allowed_ips.clear();
        }
        "allowed_ip" => match value.strip_prefix('-') {
            Some(network) => {
                let network = network.parse().ok()?;
                peer.add.retain(|added| *added != network);
                peer.remove_allowed_ips.push(network);
            }
            None => {
                let network = value.strip_prefix('+').unwrap_or(value).parse().ok()?;
                peer.remove_allowed_ips.retain(|removed| *removed != network);
                peer.add.push(network);
            }
        },
        "protocol_version" if value == "1" => {}
        _ => return None,
    }
    Some(())
}

/// Only `true` is said; its opposite is to say nothing.
fn truth(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

fn decimal<N: std::str::FromStr>(value: &str) -> Option<N> {
    if value.bytes().all(|b| b.is_ascii_digit()) { value.parse().ok() } else { None }
}

/// A key; all zeroes for none.
fn secret(value: &str) -> Option<Option<SecretKey>> {
    let key = hex(value)?;
    Some((*key != [0; 32]).then(|| SecretKey::new(*key)))
}

fn hex(value: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    if pairs.len() != key.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        let digit = |letter: &u8| char::from(*letter).to_digit(16);
        *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
    }
    Some(key)
}

/// The answer to a `get`.
#[must_use]
pub fn view(device: &DeviceView) -> Zeroizing<String> {
    // Enough that the text is not copied while it grows: the copies would not be wiped.
    let networks: usize = device.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let mut out = Zeroizing::new(String::with_capacity(256 + 512 * device.peers.len() + 64 * networks));
    let text = &mut *out;
    if let Some(key) = &device.private_key {
        key_line(text, "private_key", key.bytes());
    }
    number_line(text, "listen_port", u64::from(device.listen_port));
    if device.fwmark != 0 {
        number_line(text, "fwmark", u64::from(device.fwmark));
    }
    for peer in &device.peers {
        key_line(text, "public_key", &peer.public_key.0);
        key_line(text, "preshared_key", peer.preshared_key.as_ref().map_or(&[0; 32], SecretKey::bytes));
        text.push_str("protocol_version=1\n");
        if let Some(endpoint) = peer.endpoint {
            let _infallible = writeln!(text, "endpoint={endpoint}");
        }
        let handshake = peer.last_handshake.unwrap_or_default();
        number_line(text, "last_handshake_time_sec", handshake.as_secs());
        number_line(text, "last_handshake_time_nsec", u64::from(handshake.subsec_nanos()));
        number_line(text, "tx_bytes", peer.sent);
        number_line(text, "rx_bytes", peer.received);
        number_line(text, "persistent_keepalive_interval", u64::from(peer.keepalive));
        for network in &peer.allowed_ips {
            let _infallible = writeln!(text, "allowed_ip={network}");
        }
    }
    text.push_str("errno=0\n\n");
    out
}

/// The answer to a `set`, and to whatever was refused.
#[must_use]
pub fn outcome(errno: Errno) -> String {
    format!("errno={}\n\n", -errno.0)
}

fn number_line(out: &mut String, name: &str, value: u64) {
    let _infallible = writeln!(out, "{name}={value}");
}

fn key_line(out: &mut String, name: &str, key: &[u8; 32]) {
    out.push_str(name);
    out.push('=');
    for byte in key {
        let _infallible = write!(out, "{byte:02x}");
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52";

    fn edit(lines: &str) -> Result<Edit, Errno> {
        match read(format!("set=1\n{lines}\n\n").as_bytes())? {
            Request::Set(edit) => Ok(edit),
            Request::Get => panic!("a set"),
        }
    }

    #[test]
    fn a_set_with_everything() {
        let edit = edit(&format!(
            "private_key={KEY}\nlisten_port=12912\nfwmark=51820\nreplace_peers=true\npublic_key={KEY}\n\
             preshared_key={KEY}\nendpoint=[abcd:23::33]:51820\npersistent_keepalive_interval=111\n\
             replace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nallowed_ip=+10.0.0.0/8\nallowed_ip=-10.1.0.0/16\n\
             protocol_version=1\npublic_key={}\nremove=true\nupdate_only=true",
            KEY.replace('1', "2")
        ))
        .unwrap();
        assert_eq!((edit.listen_port, edit.fwmark, edit.replace_peers), (Some(12912), Some(51820), true));
        assert!(matches!(&edit.private_key, Some(Some(key)) if key.bytes()[0] == 0x18));
        let [first, second] = &edit.peers[..] else { panic!("two peers") };
        assert_eq!(first.endpoint, Some("[abcd:23::33]:51820".parse().unwrap()));
        assert_eq!((first.keepalive, first.replace_allowed_ips), (Some(111), true));
        let text = |networks: &[Network]| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&first.add), ["192.168.4.4/32", "10.0.0.0/8"]);
        assert_eq!(text(&first.remove_allowed_ips), ["10.1.0.0/16"]);
        assert!(second.remove && second.update_only && !first.remove);
    }

    #[test]
    fn zeroes_take_a_key_away() {
        let zero = "0".repeat(64);
        let edit = edit(&format!("private_key={zero}\npublic_key={KEY}\npreshared_key={zero}")).unwrap();
        assert_eq!(edit.private_key, Some(None));
        assert_eq!(edit.peers[0].preshared_key, Some(None));
    }

    #[test]
    fn what_comes_later_in_a_request_counts() {
        let edit = edit(&format!(
            "public_key={KEY}\nallowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/8\nallowed_ip=-10.2.0.0/16\nallowed_ip=10.2.0.0/16"
        ))
        .unwrap();
        assert_eq!(edit.peers[0].remove_allowed_ips, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(edit.peers[0].add, ["10.2.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn each_kind_of_mistake_has_its_number() {
        for wrong in [
            "colour=red",
            "listen_port=65536",
            "listen_port=+1",
            "fwmark=x",
            "replace_peers=false",
            "private_key=12",
            "allowed_ip=10.0.0.0/8",
            "endpoint=1.2.3.4:5",
        ] {
            assert_eq!(edit(wrong), Err(Errno::INVALID), "{wrong}");
        }
        for wrong in [
            "listen_port=5",
            "endpoint=host:5",
            "endpoint=1.2.3.4",
            "endpoint=1.2.3.4:0",
            "allowed_ip=10.0.0.0/40",
            "persistent_keepalive_interval=off",
            "remove=yes",
            "protocol_version=2",
            "preshared_key=",
        ] {
            assert_eq!(edit(&format!("public_key={KEY}\n{wrong}")), Err(Errno::INVALID), "{wrong}");
        }
        assert_eq!(edit("nonsense"), Err(Errno::PROTOCOL));
        for wrong in ["", "\n\n", "get=2\n\n", "get=1\nset=1\n\n", "hello\n\n"] {
            assert_eq!(read(wrong.as_bytes()), Err(Errno::PROTOCOL), "{wrong:?}");
        }
        assert_eq!(read(b"set=1\n\xff=1\n\n"), Err(Errno::PROTOCOL));
        assert_eq!(outcome(Errno::INVALID), "errno=-22\n\n");
        assert_eq!(outcome(Errno::NONE), "errno=0\n\n");
    }

    #[test]
    fn a_request_is_whole_at_its_empty_line() {
        assert_eq!(request_length(b"get=1\n"), None);
        assert_eq!(request_length(b"get=1\n\nset=1\n"), Some(7));
    }

    #[test]
    fn a_view_says_when_the_handshake_was() {
        let peer = PeerView {
            public_key: PublicKey([0xab; 32]),
            preshared_key: None,
            endpoint: Some("10.0.0.1:5".parse().unwrap()),
            last_handshake: Some(Duration::new(1_700_000_000, 7)),
            received: 12,
            sent: 34,
            keepalive: 25,
            allowed_ips: vec!["10.98.0.2/32".parse().unwrap()],
        };
        let device = DeviceView { private_key: None, listen_port: 51820, fwmark: 0, peers: vec![peer] };
        let expected = format!(
            "listen_port=51820\npublic_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=10.0.0.1:5\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=7\ntx_bytes=34\nrx_bytes=12\n\
             persistent_keepalive_interval=25\nallowed_ip=10.98.0.2/32\nerrno=0\n\n",
            "ab".repeat(32),
            "00".repeat(32)
        );
        assert_eq!(*view(&device), expected);
    }

    proptest! {
        #[test]
        fn any_request_is_read_or_refused(lines in "(set=1\n)?([a-z_]{0,12}=?[a-z0-9./:+-]{0,70}\n){0,9}\n") {
            if let Err(errno) = read(lines.as_bytes()) {
                prop_assert!(errno == Errno::PROTOCOL || errno == Errno::INVALID);
            }
        }

        /// A key that a view shows is the key that a set takes.
        #[test]
        fn keys_read_back(key in any::<[u8; 32]>()) {
            let device = DeviceView { private_key: Some(SecretKey::new(key)), ..DeviceView::default() };
            let shown = view(&device);
            let line = shown.lines().next().unwrap();
            let expected = (key != [0; 32]).then(|| SecretKey::new(key));
            prop_assert_eq!(edit(line).unwrap().private_key, Some(expected));
        }
    }
}
