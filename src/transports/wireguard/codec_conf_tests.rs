//! wg-quick files: every kind of mistake with its place, and what is written reads back.
#![cfg(test)]

use proptest::prelude::*;

use super::*;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const OTHER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// The mistakes of a file as `line:column: message`.
fn mistakes(text: &str) -> Vec<String> {
    let found = read(text).expect_err("it is wrong");
    let place = |at: usize| {
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
        format!("{line}:{column}")
    };
    let one = |mistake: &ConfMistake| {
        assert!(mistake.place.start < mistake.place.end || text.is_empty(), "something to underline: {mistake:?}");
        assert!(!mistake.hint.is_empty());
        let also = mistake.also.as_ref().map(|(other, _)| format!(" and {}", place(other.start))).unwrap_or_default();
        format!("{}: {}{also}", place(mistake.place.start), mistake.message)
    };
    found.mistakes.iter().map(one).collect()
}

#[test]
fn a_file_with_everything() {
    let text = format!(
        "\u{feff}# home\r\n[Interface]\r\nprivatekey={KEY}\r\nAddress = 10.98.0.1/24, fd98::1/64\r\nAddress = 10.99.0.1\r\n\
         ListenPort = 51820 # the usual\r\nFwMark = 0xca6c\r\nMTU = 1380\r\nTable = off\r\nDNS = 1.1.1.1\r\n\
         PostUp = iptables -A FORWARD -i %i -j ACCEPT\r\nSaveConfig = false\r\n\r\n[peer]\r\nPublicKey = {OTHER}\r\n\
         PresharedKey = {KEY}\r\nAllowedIPs = 10.98.0.2/32,fd98::2/128\r\nAllowedIPs = 192.168.1.7/24\r\n\
         Endpoint = [2001:db8::1]:51820\r\nPersistentKeepalive = 25\r\n[Peer]\r\nPublicKey = {KEY}\r\nAllowedIPs =\r\n\
         Endpoint = vpn.example.org:1\r\nPersistentKeepalive = off"
    );
    let conf = read(&text).unwrap();
    assert_eq!(conf.private_key, SecretKey::from_base64(KEY).unwrap());
    assert_eq!((conf.listen_port, conf.fwmark, conf.mtu, conf.routes), (Some(51820), Some(0xca6c), Some(1380), false));
    let addresses: Vec<String> = conf.addresses.iter().map(|(a, b)| format!("{a}/{b}")).collect();
    assert_eq!(addresses, ["10.98.0.1/24", "fd98::1/64", "10.99.0.1/32"]);
    let notes: Vec<&str> = conf.notes.iter().map(|note| note.message.as_str()).collect();
    assert_eq!(notes, ["DNS is not obeyed", "PostUp is not obeyed"]);
    assert_eq!(conf.peers.len(), 2);
    let peer = &conf.peers[0];
    assert_eq!(peer.endpoint.as_ref().unwrap().to_string(), "[2001:db8::1]:51820");
    let networks: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.98.0.2/32", "fd98::2/128", "192.168.1.0/24"]);
    assert_eq!((peer.keepalive, peer.preshared_key.is_some()), (Some(25), true));
    let peer = &conf.peers[1];
    assert_eq!((peer.keepalive, peer.allowed_ips.len()), (Some(0), 0));
    assert_eq!(peer.endpoint.as_ref().unwrap().host, "vpn.example.org");
}

#[test]
fn each_kind_of_mistake_has_its_place() {
    assert_eq!(mistakes(""), ["1:1: no [Interface]"]);
    assert_eq!(mistakes("[Interface]"), ["1:1: an [Interface] without a PrivateKey"]);
    assert_eq!(
        mistakes("MTU = 9\n[Interface]\nPrivateKey ="),
        ["1:1: a setting before any section", "3:1: PrivateKey has no value"]
    );
    let with = |rest: &str| mistakes(&format!("[Interface]\nPrivateKey = {KEY}\n{rest}"));
    assert_eq!(with("[Pear]\nPublicKey = x"), ["3:1: an unknown section"]);
    assert_eq!(with("hello"), ["3:1: neither a section nor a setting"]);
    assert_eq!(with("PublicKey = x"), ["3:1: [Interface] has no setting `PublicKey`"]);
    assert_eq!(with("Colour = red"), ["3:1: [Interface] has no setting `Colour`"]);
    assert_eq!(with(KEY), ["3:1: [Interface] has no setting of this name"], "a key without its name is not shown");
    assert_eq!(with("  MTU = 100"), ["3:9: MTU is out of its range: `100`"]);
    assert_eq!(with("ListenPort = 65536"), ["3:14: ListenPort is out of its range: `65536`"]);
    assert_eq!(with("ListenPort = +5"), ["3:14: ListenPort is out of its range: `+5`"]);
    assert_eq!(with("FwMark = 0xfg"), ["3:10: not a mark: `0xfg`"]);
    assert_eq!(
        with("Address = 10.0.0.1/24, 10.0.0.300,10.0.0.1/33"),
        ["3:24: not an address: `10.0.0.300`", "3:35: not an address: `10.0.0.1/33`"]
    );
    assert_eq!(with("MTU = 1400\nmtu = 1400"), ["4:1: MTU is set twice and 3:1"]);
    assert_eq!(with("[Interface]\nMTU=1400"), ["3:1: a second [Interface] and 1:1"]);
    assert_eq!(with("[Peer]\nEndpoint = h:1"), ["3:1: a [Peer] without a PublicKey"]);
    assert_eq!(with("[Peer]\nPublicKey = short="), ["4:13: not a key"]);
    assert_eq!(with("[Peer]\nPublicKey ="), ["4:1: PublicKey has no value"]);
    assert_eq!(with("[Peer]\nMTU = 1400"), ["3:1: a [Peer] without a PublicKey", "4:1: [Peer] has no setting `MTU`"]);
    let peer = |rest: &str| with(&format!("[Peer]\nPublicKey = {OTHER}\n{rest}"));
    assert_eq!(peer("AllowedIPs = 10.0.0.0/8, 10.0.0.0/40"), ["5:26: not a network: `10.0.0.0/40`"]);
    assert_eq!(peer("AllowedIPs = 10.0.0.0/8,x"), ["5:25: not a network: `x`"]);
    for wrong in ["h", "h:", "h:0", "h:65536", ":1", "::1:5", "[10.0.0.1]:1", "a b:1", "[::1]"] {
        assert_eq!(
            peer(&format!("Endpoint = {wrong}")),
            [format!("5:12: not a host with a port: `{wrong}`")],
            "{wrong}"
        );
    }
    assert_eq!(peer("PersistentKeepalive = 65536"), ["5:23: PersistentKeepalive is out of its range: `65536`"]);
    assert_eq!(peer(&format!("[Peer]\nPublicKey = {OTHER}")), ["6:13: two peers with the same public key and 4:13"]);
    assert_eq!(
        peer(&format!("AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {KEY}\nAllowedIPs = fd00::/8, 10.1.1.1/8")),
        ["8:24: 10.0.0.0/8 is given out twice and 5:14"]
    );
    assert_eq!(peer("PresharedKey = nonsense"), ["5:16: not a key"]);
    assert_eq!(peer(&format!("AllowedIPs = {KEY}")), ["5:14: not a network"], "a key at the wrong place is not shown");
}

#[test]
fn all_mistakes_come_at_once_and_secrets_are_known() {
    let text =
        format!("[Interface]\nPrivateKey = {KEY}\nMTU = x\n[Peer]\nPresharedKey = oops\nEndpoint = y\nWhat = 1\n");
    let found = read(&text).unwrap_err();
    assert_eq!(found.mistakes.len(), 5, "{found:?}");
    let masked: Vec<&str> = found.secrets.iter().map(|place| &text[place.clone()]).collect();
    assert_eq!(masked, [KEY, "oops"]);
}

fn key() -> impl Strategy<Value = [u8; 32]> {
    any::<[u8; 32]>()
}

prop_compose! {
    fn network()(v6 in any::<bool>(), bits in any::<u128>(), prefix in 0u8..=128) -> Network {
        let address = if v6 {
            std::net::IpAddr::V6(bits.into())
        } else {
            std::net::IpAddr::V4((bits as u32).into())
        };
        Network::new(address, if v6 { prefix } else { prefix % 33 }).unwrap()
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        private in key(), keys in prop::collection::btree_set(key(), 0..6), psk in prop::option::of(key()),
        networks in prop::collection::btree_set(network(), 0..12), port in any::<Option<u16>>(), mark in any::<Option<u32>>(),
        mtu in prop::option::of(576u16..), routes in any::<bool>(), host in "[a-z][a-z0-9.-]{0,20}", endpoint in 1u16..,
        keepalive in any::<Option<u16>>(), own in network(),
    ) {
        let mut networks = networks.into_iter();
        let peers = keys.into_iter().map(|key| ConfPeer {
            public_key: PublicKey(key),
            preshared_key: psk.map(SecretKey::new),
            allowed_ips: networks.by_ref().take(2).collect(),
            endpoint: Some(Endpoint { host: host.clone(), port: endpoint }),
            keepalive,
            place: 0..0,
        });
        let conf = Conf {
            private_key: SecretKey::new(private), listen_port: port, fwmark: mark,
            addresses: vec![(own.address(), own.prefix())], mtu, routes, peers: peers.collect(), notes: vec![],
        };
        let mut back = read(&conf.to_string()).unwrap();
        for peer in &mut back.peers {
            peer.place = 0..0;
        }
        prop_assert_eq!(back, conf);
    }

    /// Any text is a file or a list of mistakes, each with a place inside it.
    #[test]
    fn any_text_is_read(text in "(\\[(Interface|Peer)\\]\n|[A-Za-z]{0,9}[ =,/:.0-9#\n]{0,5}|\\PC{0,9}){0,30}") {
        if let Err(found) = read(&text) {
            prop_assert!(!found.mistakes.is_empty());
            for mistake in found.mistakes {
                prop_assert!(text.get(mistake.place).is_some());
            }
        }
    }
}
