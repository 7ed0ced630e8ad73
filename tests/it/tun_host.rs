//! An interface in a host's own network, the host being a namespace of this test.

use portway::transports::tun::{HostError, HostNetwork, HostSettings, OffloadKnob, Prefix, Tun, TunError};

use crate::netns::{Netns, Pair};

fn settings(routes: &[&str]) -> HostSettings {
    HostSettings {
        node: "/dev/net/tun".into(),
        name: "pwhost0".to_owned(),
        mtu: 1380,
        offload: OffloadKnob::Auto,
        addresses: vec!["10.98.0.1/24".parse().unwrap(), "fd98::1/64".parse().unwrap()],
        routes: routes.iter().map(|text| text.parse().unwrap()).collect(),
        mark: 51_820,
        masquerade: false,
    }
}

fn start(netns: &Netns, settings: HostSettings) -> Result<(HostNetwork, Tun), HostError> {
    netns.inside(move || HostNetwork::start(&settings))
}

#[test]
fn it_has_its_addresses_mtu_and_routes_and_leaves_nothing() {
    let netns = Netns::new();
    let (network, tun) = start(&netns, settings(&["192.168.7.9/24", "fd07::/48"])).expect("root may");
    assert!(tun.offloads().tcp);
    let link = netns.ip(&["addr", "show", "dev", "pwhost0"]);
    for part in ["mtu 1380", "inet 10.98.0.1/24", "inet6 fd98::1/64", "qlen 1000", "UP"] {
        assert!(link.contains(part), "{part} in {link}");
    }
    assert!(netns.ip(&["route"]).contains("192.168.7.0/24 dev pwhost0"));
    assert!(netns.ip(&["-6", "route"]).contains("fd07::/48 dev pwhost0"));
    drop((network, tun));
    assert!(!netns.ip(&["link"]).contains("pwhost0"));
}

#[test]
fn routes_change_as_a_difference() {
    let netns = Netns::new();
    let (mut network, _tun) = start(&netns, settings(&["192.168.7.0/24", "192.168.8.0/24"])).expect("root may");
    let wanted: Vec<Prefix> = ["192.168.8.0/24", "192.168.9.0/24"].map(|text| text.parse().unwrap()).to_vec();
    network.set_routes(&wanted).expect("routes");
    let routes = netns.ip(&["route"]);
    assert!(
        !routes.contains("192.168.7.0") && routes.contains("192.168.8.0") && routes.contains("192.168.9.0"),
        "{routes}"
    );
}

#[test]
fn everything_but_marked_packets_goes_into_a_tunnel_for_everything() {
    let pair = Pair::new();
    pair.a.ip(&["route", "add", "default", "via", "10.99.0.2"]);
    let (mut network, _tun) = start(&pair.a, settings(&["0.0.0.0/0", "::/0"])).expect("root may");
    let way = |arguments: &[&str]| pair.a.ip(&[&["route", "get"], arguments].concat());
    assert!(way(&["203.0.113.5"]).contains("dev pwhost0"));
    assert!(way(&["2001:db8::5"]).contains("dev pwhost0"));
    assert!(way(&["203.0.113.5", "mark", "51820"]).contains("dev cable"), "the tunnel's own datagrams");
    assert!(way(&["10.99.0.2"]).contains("dev cable"), "what is near stays near");
    network.set_routes(&[]).expect("routes");
    assert!(way(&["203.0.113.5"]).contains("dev cable"));
    drop(network);
    assert!(!pair.a.ip(&["rule"]).contains("51820"));
}

#[test]
fn masquerading_is_taken_away_with_it() {
    let netns = Netns::new();
    let (network, tun) = start(&netns, HostSettings { masquerade: true, ..settings(&[]) }).expect("root may");
    assert!(netns.run("nft", &["list", "tables"]).contains("portway_pwhost0"));
    netns.inside(move || drop((network, tun)));
    assert_eq!(netns.run("nft", &["list", "tables"]), "");
}

/// A process that is killed cannot take its table away.
#[test]
fn masquerading_that_was_left_behind_does_not_hold_for_the_next() {
    let netns = Netns::new();
    let left =
        "table inet portway_pwhost0 { chain outbound { type nat hook postrouting priority srcnat; masquerade; }; }";
    netns.run("nft", &["add table inet somebody_else"]);
    netns.run("nft", &[left]);
    let (network, tun) = start(&netns, settings(&[])).expect("root may");
    assert_eq!(netns.run("nft", &["list", "tables"]).trim(), "table inet somebody_else");
    netns.inside(move || drop((network, tun)));
    assert_eq!(netns.run("nft", &["list", "tables"]).trim(), "table inet somebody_else");
}

#[test]
fn what_is_refused_is_named_and_leaves_nothing() {
    let netns = Netns::new();
    let refused = start(&netns, HostSettings { name: "a name".to_owned(), ..settings(&[]) });
    assert!(matches!(refused.map(drop), Err(HostError::Tun(TunError::Name))));
    let refused = start(&netns, HostSettings { node: "/dev/null/none".into(), ..settings(&[]) });
    assert!(matches!(refused.map(drop), Err(HostError::Tun(TunError::Node(_)))));
    let refused = start(&netns, HostSettings { mtu: 10, ..settings(&[]) });
    assert!(
        matches!(&refused, Err(HostError::Interface(error)) if error.to_string().contains("MTU 10")),
        "{refused:?}"
    );
    let (_network, _tun) = start(&netns, settings(&[])).expect("root may");
    assert!(
        matches!(start(&netns, settings(&[])).map(drop), Err(HostError::Tun(TunError::Make(_)))),
        "the name is taken"
    );
}
