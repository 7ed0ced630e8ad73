//! WireGuard against wireguard-go and the tools of its users, in network namespaces made by each test. Needs root.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use portway::actors::{Mesh, Place, Spec, Totals};
use portway::transports::tun::{HostNetwork, HostSettings, OffloadKnob, ToTun, TunActor};
use portway::transports::wireguard::codec_conf::{Conf, ConfPeer, Endpoint};
use portway::transports::wireguard::uapi::{self, Socket, Uapi};
use portway::transports::wireguard::{
    DROPPED, Interface, Live, Network, PeerSettings, PublicKey, SecretKey, Settings, Threading, bind, public_key,
};

use crate::gateway::temp_dir;
use crate::netns::{Netns, Pair, run, unique};
use crate::probe::{eventually, now, stop, view};
use crate::wireguard::{Mode, in_both};

/// A private key that differs with `n`.
pub(crate) fn secret(n: u8) -> SecretKey {
    let mut key = [n; 32];
    key[0] = n & 248;
    key[31] = 64;
    SecretKey::new(key)
}

fn networks(texts: &[&str]) -> Vec<Network> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

/// A peer on paper.
fn peer(n: u8, allowed: &[&str]) -> PeerSettings {
    PeerSettings::new(public_key(&secret(n)), networks(allowed))
}

/// Our interface, in the network of a namespace, on arbiters of this process.
struct Ours {
    mesh: Mesh,
    name: String,
    _host: HostNetwork,
}

impl Ours {
    fn start(
        mode: Mode,
        netns: &Netns,
        addresses: &[&str],
        routes: &[&str],
        mut settings: Settings,
        peers: Vec<PeerSettings>,
    ) -> Self {
        let own = |text: &&str| (text.split('/').next().unwrap().parse().unwrap(), text.parse().unwrap());
        settings.addresses = addresses.iter().map(own).collect();
        let name = settings.name.to_string();
        let host = HostSettings {
            node: "/dev/net/tun".into(),
            name: name.clone(),
            mtu: settings.mtu,
            offload: OffloadKnob::Auto,
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            routes: routes.iter().map(|text| text.parse().expect("a route")).collect(),
            mark: 51_820,
            masquerade: false,
        };
        let (host, tun, socket) = netns.inside(move || {
            let (host, tun) = HostNetwork::start(&host).expect("an interface");
            (host, tun, bind("[::]:51820".parse().unwrap()).expect("a socket"))
        });
        let mesh = mode.mesh();
        settings.threading = mode.server();
        let home = match &settings.threading {
            Threading::Single { arbiter } => *arbiter,
            Threading::Pipeline { crypto, .. } => crypto[0],
        };
        let secret = settings.secret.clone();
        let scope = settings.name.clone();
        let ours = socket.try_clone().expect("a second handle");
        let interface = Interface::start(&mesh, socket, settings, peers).expect("it starts");
        let router = interface.router();
        let inbox = Spec::named(scope.clone()).inbox(4_096, 32 << 20);
        let tun = mesh.spawn(Place::On(home), inbox, move || TunActor::new(tun, scope, router)).expect("it starts");
        interface.attach(move || Box::new(ToTun(tun.clone())));
        let live = Live::new(interface, &ours, secret).expect("a tunnel to talk about");
        let socket = Socket::bind(Path::new(uapi::FOLDER), &name).expect("a UAPI socket");
        mesh.drive::<Uapi, _>(Place::System, Spec::default(), move |driver| uapi::serve(socket, live, driver))
            .expect("it starts");
        Self { mesh, name, _host: host }
    }

    fn totals(&self) -> Totals {
        view(&self.mesh).totals
    }

    /// One line of `wg show NAME dump` for each peer, in columns.
    fn shown(&self) -> Vec<Vec<String>> {
        shown(&self.name)
    }
}

pub(crate) fn shown(name: &str) -> Vec<Vec<String>> {
    let text = run("wg", &["show", name, "dump"]);
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

impl Drop for Ours {
    fn drop(&mut self) {
        stop(&self.mesh);
    }
}

/// Keys as files that `wg` reads.
pub(crate) struct Keys(pub(crate) PathBuf);

impl Keys {
    pub(crate) fn new() -> Self {
        Self(temp_dir())
    }

    pub(crate) fn file(&self, name: &str, key: &SecretKey) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, key.to_base64().as_bytes()).unwrap();
        path.display().to_string()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_dir_all(&self.0);
    }
}

/// wireguard-go with key 2 in a namespace; `peer` are words of `wg set` about us, key 1.
pub(crate) fn theirs(netns: &mut Netns, keys: &Keys, addresses: &[&str], peer: &[&str]) -> String {
    implementation(netns, keys, &["wireguard-go", "-f"], addresses, peer)
}

/// The same with another program.
fn implementation(netns: &mut Netns, keys: &Keys, command: &[&str], addresses: &[&str], peer: &[&str]) -> String {
    let name = unique("wgo");
    netns.spawn(command[0], &[&command[1..], &[&name]].concat());
    // The file is there before somebody listens behind it.
    let socket = Path::new(uapi::FOLDER).join(format!("{name}.sock"));
    eventually("it serves its socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let key = keys.file("theirs", &secret(2));
    let us = public_key(&secret(1)).to_string();
    netns.run("wg", &[&["set", &name, "listen-port", "51820", "private-key", &key, "peer", &us], peer].concat());
    for address in addresses {
        netns.ip(&["addr", "add", address, "dev", &name, "nodad"]);
    }
    netns.ip(&["link", "set", &name, "mtu", "1420", "up"]);
    name
}

fn settings() -> Settings {
    Settings::new(&unique("pwg"), secret(1))
}

fn endpoint(mut peer: PeerSettings, address: &str) -> PeerSettings {
    peer.endpoint = Some(address.parse::<SocketAddr>().unwrap());
    peer
}

/// Seconds since 1970.
fn wall() -> u64 {
    run("date", &["+%s"]).trim().parse().unwrap()
}

#[test]
fn interop_wireguard_go_begins_or_we_do_with_a_preshared_key_over_ipv4_and_ipv6() {
    in_both(|mode| {
        for (we_begin, outside_v6) in [(true, false), (false, false), (true, true)] {
            let mut pair = Pair::new();
            let keys = Keys::new();
            let psk = SecretKey::new([9; 32]);
            let (here, there) = if outside_v6 {
                ("[fd99::1]:51820", "[fd99::2]:51820")
            } else {
                ("10.99.0.1:51820", "10.99.0.2:51820")
            };
            let mut us = peer(2, &["10.98.0.2/32", "fd98::2/128"]);
            us.preshared_key = Some(psk.clone());
            let us = if we_begin { endpoint(us, there) } else { us };
            let ours = Ours::start(mode, &pair.a, &["10.98.0.1/24", "fd98::1/64"], &[], settings(), vec![us]);
            let psk = keys.file("psk", &psk);
            let mut words = vec!["preshared-key", &psk, "allowed-ips", "10.98.0.1/32,fd98::1/128"];
            if !we_begin {
                words.extend(["endpoint", here]);
            }
            let name = theirs(&mut pair.b, &keys, &["10.98.0.2/24", "fd98::2/64"], &words);
            let (from, to) =
                if we_begin { (&pair.a, ["10.98.0.2", "fd98::2"]) } else { (&pair.b, ["10.98.0.1", "fd98::1"]) };
            from.reaches(to[0]);
            from.reaches(to[1]);
            assert_eq!(from.pings(to[0], 20), 20);
            // A session tells of itself once a second.
            eventually("the handshake shows", || ours.shown()[0][4] != "0");
            let ours_shown = ours.shown();
            assert_eq!(ours_shown[0][2], there);
            let ago = wall().abs_diff(ours_shown[0][4].parse().unwrap());
            assert!(ago <= 5, "a handshake {ago} s ago: {ours_shown:?}");
            let theirs_shown = shown(&name);
            assert_ne!(theirs_shown[0][4], "0");
            assert_eq!(ours.totals().family("wireguard_dropped"), 0, "{:?}", ours.totals());
        }
    });
}

#[test]
fn interop_wireguard_go_with_the_wrong_preshared_key_gets_nothing_and_a_neighbour_everything() {
    in_both(|mode| {
        let mut pair = Pair::new();
        let keys = Keys::new();
        let mut us = endpoint(peer(2, &["10.98.0.2/32"]), "10.99.0.2:51820");
        us.preshared_key = Some(SecretKey::new([9; 32]));
        let ours = Ours::start(mode, &pair.a, &["10.98.0.1/24"], &[], settings(), vec![us]);
        let psk = keys.file("psk", &SecretKey::new([8; 32]));
        theirs(&mut pair.b, &keys, &["10.98.0.2/24"], &["preshared-key", &psk, "allowed-ips", "10.98.0.1/32"]);
        assert_eq!(pair.a.pings("10.98.0.2", 3), 0);
        assert_eq!(ours.shown()[0][4], "0", "no handshake");
    });
}

/// Two ends that know each other's addresses, ours in `a` with key 1, wireguard-go in `b` with key 2.
struct Both {
    pair: Pair,
    keys: Keys,
    ours: Ours,
    go: String,
}

impl Both {
    fn new(mode: Mode, settings: Settings, ours: &[&str], theirs_words: &[&str]) -> Self {
        let mut pair = Pair::new();
        let keys = Keys::new();
        let us = endpoint(peer(2, ours), "10.99.0.2:51820");
        let ours = Ours::start(mode, &pair.a, &["10.98.0.1/24", "fd98::1/64"], &[], settings, vec![us]);
        let words = [&["allowed-ips", "10.98.0.1/32,fd98::1/128"], theirs_words].concat();
        let go = theirs(&mut pair.b, &keys, &["10.98.0.2/24", "fd98::2/64"], &words);
        Self { pair, keys, ours, go }
    }

    fn us(&self) -> String {
        public_key(&secret(1)).to_string()
    }
}

#[test]
fn interop_wireguard_go_roams_and_so_do_we() {
    in_both(|mode| {
        let both = Both::new(mode, settings(), &["10.98.0.2/32"], &[]);
        both.pair.a.reaches("10.98.0.2");
        // They move: what they send next tells us where they are.
        both.pair.b.ip(&["addr", "del", "10.99.0.2/24", "dev", "cable"]);
        both.pair.b.ip(&["addr", "add", "10.99.0.22/24", "dev", "cable"]);
        // This wireguard-go holds on to an address that is gone until its socket is bound anew.
        run("wg", &["set", &both.go, "listen-port", "51822"]);
        both.pair.b.reaches("10.98.0.1");
        eventually("we send where they are now", || both.ours.shown()[0][2] == "10.99.0.22:51822");
        assert_eq!(both.ours.totals().family("wireguard_roamed"), 1);
        // We move: they answer where we are.
        both.pair.a.ip(&["addr", "del", "10.99.0.1/24", "dev", "cable"]);
        both.pair.a.ip(&["addr", "add", "10.99.0.11/24", "dev", "cable"]);
        both.pair.a.reaches("10.98.0.2");
        assert_eq!(shown(&both.go)[0][2], "10.99.0.11:51820");
        assert_eq!(both.ours.totals().family("wireguard_handshakes"), 1, "one session all along");
        assert_eq!(both.ours.totals().family("wireguard_gso_refused"), 0, "an address that is gone costs no offload");
    });
}

#[test]
fn interop_wireguard_go_is_there_again_after_errors_of_our_socket() {
    in_both(|mode| {
        let both = Both::new(mode, settings(), &["10.98.0.2/32"], &[]);
        both.pair.a.reaches("10.98.0.2");
        let errors = || both.ours.totals().family("wireguard_send_errors");
        assert_eq!(errors(), 0);
        both.pair.a.ip(&["link", "set", "cable", "down"]);
        eventually("what is not sent is counted", || both.pair.a.pings("10.98.0.2", 1) == 0 && errors() > 0);
        both.pair.a.ip(&["link", "set", "cable", "up"]);
        both.pair.a.reaches("10.98.0.2");
        let before = errors();
        assert_eq!((both.pair.a.pings("10.98.0.2", 5), errors()), (5, before));
        assert_eq!(both.ours.totals().family("wireguard_handshakes"), 1, "one session all along");
    });
}

#[test]
fn interop_wireguard_go_gets_our_keepalives() {
    in_both(|mode| {
        let mut us = endpoint(peer(2, &["10.98.0.2/32"]), "10.99.0.2:51820");
        us.keepalive = Some(1);
        let mut pair = Pair::new();
        let keys = Keys::new();
        let name = theirs(&mut pair.b, &keys, &["10.98.0.2/24"], &["allowed-ips", "10.98.0.1/32"]);
        // Nothing is ever sent inside: the keepalive alone brings up the session and keeps it.
        let ours = Ours::start(mode, &pair.a, &["10.98.0.1/24"], &[], settings(), vec![us]);
        eventually("a handshake without a packet", || shown(&name)[0][4] != "0");
        let received = || shown(&name)[0][5].parse::<u64>().unwrap();
        let before = received();
        eventually("three keepalives", || received() >= before + 3 * 32);
        assert_eq!(ours.totals().get("tun_packets_in", &ours.name, ""), 0);
    });
}

#[test]
fn interop_wireguard_go_takes_new_keys_while_packets_flow() {
    in_both(|mode| {
        let mut settings = settings();
        settings.rules.rekey_after = Duration::from_secs(5);
        let both = Both::new(mode, settings, &["10.98.0.2/32"], &[]);
        both.pair.a.reaches("10.98.0.2");
        // 240 pings over 12 s: across two new sessions, none lost.
        assert_eq!(both.pair.a.pings("10.98.0.2", 240), 240);
        let handshakes = both.ours.totals().family("wireguard_handshakes");
        assert!((2..=4).contains(&handshakes), "{handshakes} handshakes in 12 s");
        assert_eq!(both.ours.totals().family("wireguard_dropped"), 0, "{:?}", both.ours.totals());
    });
}

#[test]
fn interop_wg_edits_us_while_packets_flow() {
    in_both(|mode| {
        let both = Both::new(mode, settings(), &["10.98.0.2/32"], &[]);
        both.pair.a.reaches("10.98.0.2");
        let name = both.ours.name.as_str();
        let them = public_key(&secret(2)).to_string();
        // Another network for the peer: no new session.
        both.pair.b.ip(&["addr", "add", "192.168.55.1/32", "dev", &both.go]);
        both.pair.a.ip(&["route", "add", "192.168.55.0/24", "dev", name]);
        assert_eq!(both.pair.a.pings("192.168.55.1", 1), 0, "not yet allowed");
        run("wg", &["set", name, "peer", &them, "allowed-ips", "10.98.0.2/32,192.168.55.0/24"]);
        both.pair.a.reaches("192.168.55.1");
        assert_eq!(both.ours.totals().family("wireguard_handshakes"), 1);
        // A stranger is added and goes again, the peer's session stays.
        let other = PublicKey([7; 32]).to_string();
        run("wg", &["set", name, "peer", &other, "allowed-ips", "10.98.0.77/32", "persistent-keepalive", "25"]);
        let all = both.ours.shown();
        assert_eq!((all.len(), all.iter().any(|line| line[0] == other && line[7] == "25")), (2, true), "{all:?}");
        run("wg", &["set", name, "peer", &other, "remove"]);
        assert_eq!(both.ours.shown().len(), 1);
        assert_eq!(both.pair.a.pings("10.98.0.2", 3), 3);
        assert_eq!(both.ours.totals().family("wireguard_handshakes"), 1);
        // A preshared key on both sides: a new session, with it.
        let psk = both.keys.file("psk", &SecretKey::new([9; 32]));
        run("wg", &["set", name, "peer", &them, "preshared-key", &psk]);
        run("wg", &["set", &both.go, "peer", &both.us(), "preshared-key", &psk]);
        both.pair.a.reaches("10.98.0.2");
        // The peer goes, and with it its packets.
        run("wg", &["set", name, "peer", &them, "remove"]);
        assert_eq!(both.pair.a.pings("10.98.0.2", 2), 0);
        assert_eq!(both.ours.shown().len(), 0);
    });
}

#[test]
fn interop_wg_syncconf_changes_what_differs() {
    in_both(|mode| {
        let both = Both::new(mode, settings(), &["10.98.0.2/32"], &[]);
        both.pair.a.reaches("10.98.0.2");
        let conf = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.98.0.2/32\n\
         Endpoint = 10.99.0.2:51820\n\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.98.0.9/32\n",
            *secret(1).to_base64(),
            public_key(&secret(2)),
            PublicKey([7; 32])
        );
        let path = both.keys.0.join("sync.conf");
        std::fs::write(&path, &conf).unwrap();
        run("wg", &["syncconf", &both.ours.name, path.to_str().unwrap()]);
        assert_eq!(both.ours.shown().len(), 2);
        assert_eq!(both.pair.a.pings("10.98.0.2", 3), 3);
        assert_eq!(both.ours.totals().family("wireguard_handshakes"), 1, "the session that is unchanged stays");
        let one = conf.rsplit_once("\n[Peer]").unwrap().0;
        std::fs::write(&path, one).unwrap();
        run("wg", &["syncconf", &both.ours.name, path.to_str().unwrap()]);
        assert_eq!(both.ours.shown().len(), 1);
        assert_eq!(both.pair.a.pings("10.98.0.2", 3), 3);
        assert_eq!(both.ours.totals().family("wireguard_handshakes"), 1);
        // What cannot be changed while it runs is refused, and nothing else of that request is done.
        let refused = Command::new("wg")
            .args(["set", &both.ours.name, "listen-port", "5", "peer", &PublicKey([3; 32]).to_string()])
            .output();
        assert!(!refused.unwrap().status.success());
        assert_eq!(both.ours.shown().len(), 1);
    });
}

#[test]
fn interop_wireguard_go_carries_everything_of_ours() {
    in_both(|mode| {
        let mut pair = Pair::new();
        let keys = Keys::new();
        let mut settings = settings();
        settings.mtu = 1_400;
        // A network beyond the peer, and nothing but the tunnel leads there.
        pair.b.ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"]);
        pair.b.ip(&["addr", "add", "2001:db8::5/128", "dev", "lo"]);
        let us = endpoint(peer(2, &["0.0.0.0/0", "::/0"]), "10.99.0.2:51820");
        let ours =
            Ours::start(mode, &pair.a, &["10.98.0.1/24", "fd98::1/64"], &["0.0.0.0/0", "::/0"], settings, vec![us]);
        run("wg", &["set", &ours.name, "fwmark", "51820"]);
        theirs(&mut pair.b, &keys, &["10.98.0.2/24", "fd98::2/64"], &["allowed-ips", "10.98.0.1/32,fd98::1/128"]);
        pair.a.reaches("203.0.113.5");
        pair.a.reaches("2001:db8::5");
        assert_eq!(pair.a.pings("203.0.113.5", 10), 10);
    });
}

/// A TCP or UDP run of iperf3 from `a` to `b`; its JSON.
fn iperf(pair: &mut Pair, to: &str, arguments: &[&str]) -> serde_json::Value {
    let server = pair.b.spawn("iperf3", &["-s", "-1", "-B", to]);
    eventually("iperf3 listens", || pair.b.run("ss", &["-Hltn", "sport", "=", "5201"]).contains("5201"));
    let text = pair.a.run("iperf3", &[&["-c", to, "-J"], arguments].concat());
    pair.b.kill(server);
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn interop_wireguard_go_tcp_and_udp_at_speed() {
    in_both(|mode| {
        let mut both = Both::new(mode, settings(), &["10.98.0.2/32", "fd98::2/128"], &[]);
        both.pair.a.reaches("10.98.0.2");
        for (to, arguments) in [("10.98.0.2", &["-t", "2"][..]), ("fd98::2", &["-t", "2", "-R"])] {
            let json = iperf(&mut both.pair, to, arguments);
            let bits = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
            assert!(bits > 1e7, "{bits} bit/s to {to}");
        }
        let before = both.ours.totals();
        let json = iperf(&mut both.pair, "10.98.0.2", &["-u", "-b", "20M", "-l", "1350", "-t", "2"]);
        let lost = json["end"]["sum"]["lost_percent"].as_f64().unwrap();
        // On a busy machine wireguard-go loses some; we lose none.
        assert!(lost < 50.0, "{lost} % lost at 20 Mbit/s");
        let totals = both.ours.totals();
        for family in ["tun_dropped", DROPPED, "wireguard_send_errors", "wireguard_kernel_dropped"] {
            assert_eq!(totals.family(family), before.family(family), "{family}: {totals:?}");
        }
        assert_eq!(totals.family("tun_packets_out"), totals.family("wireguard_packets_out"));
    });
}

/// Every packet that went in at one end came out at the other.
fn nothing_is_lost(a: &Ours, b: &Ours) {
    let moved = |from: &Ours, to: &Ours| {
        let read = from.totals().get("tun_packets_out", &from.name, "");
        let written = to.totals().get("tun_packets_in", &to.name, "");
        (read, written)
    };
    eventually("all that is under way arrives", || {
        let ((out, inward), (back, home)) = (moved(a, b), moved(b, a));
        out == inward && back == home
    });
    for ours in [a, b] {
        let totals = ours.totals();
        let lost = totals.family("tun_dropped") + totals.family("wireguard_dropped") + totals.family("tun_offload_off");
        assert_eq!(lost, 0, "{totals:?}");
    }
}

#[test]
fn interop_wireguard_between_two_of_ours_loses_nothing() {
    in_both(|mode| {
        let mut pair = Pair::new();
        let us = endpoint(peer(2, &["10.98.0.2/32", "fd98::2/128"]), "10.99.0.2:51820");
        let a = Ours::start(mode, &pair.a, &["10.98.0.1/24", "fd98::1/64"], &[], settings(), vec![us]);
        let them = peer(1, &["10.98.0.1/32", "fd98::1/128"]);
        let name = unique("pwg");
        let b = Ours::start(
            mode,
            &pair.b,
            &["10.98.0.2/24", "fd98::2/64"],
            &[],
            Settings::new(&name, secret(2)),
            vec![them],
        );
        pair.a.reaches("10.98.0.2");
        for arguments in [&["-t", "2"][..], &["-t", "2", "-R"]] {
            let json = iperf(&mut pair, "10.98.0.2", arguments);
            let bits = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
            assert!(bits > 1e7, "{bits} bit/s");
            // Nothing was lost, so whatever is sent again was only late: on a busy machine a few are.
            let again = json["end"]["sum_sent"]["retransmits"].as_u64().unwrap();
            assert!(again < 100, "{again} retransmits");
        }
        iperf(&mut pair, "fd98::2", &["-u", "-b", "100M", "-l", "1350", "-t", "2"]);
        nothing_is_lost(&a, &b);
    });
}

/// A file for wg-quick, as we print it for a client, brought up by wg-quick with wireguard-go.
struct Quick<'a> {
    netns: &'a Netns,
    path: String,
}

impl<'a> Quick<'a> {
    fn up(netns: &'a Netns, keys: &Keys, allowed: &[&str]) -> Self {
        let conf = Conf {
            private_key: secret(2),
            listen_port: None,
            fwmark: None,
            addresses: vec![("10.98.0.2".parse().unwrap(), 32), ("fd98::2".parse().unwrap(), 128)],
            mtu: Some(1_420),
            routes: true,
            peers: vec![ConfPeer {
                public_key: public_key(&secret(1)),
                preshared_key: Some(SecretKey::new([9; 32])),
                allowed_ips: networks(allowed),
                endpoint: Endpoint::read("10.99.0.1:51820"),
                keepalive: Some(25),
                place: 0..0,
            }],
            notes: vec![],
        };
        let path = keys.0.join(format!("{}.conf", unique("wq")));
        std::fs::write(&path, conf.to_string()).unwrap();
        let path = path.display().to_string();
        netns.run("env", &["WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go", "WG_SUDO=true", "wg-quick", "up", &path]);
        Self { netns, path }
    }
}

impl Drop for Quick<'_> {
    fn drop(&mut self) {
        // Its daemon and its rules go with the namespace; this is what a user would do.
        let _not_up = self.netns.output("wg-quick", &["down", &self.path]);
    }
}

#[test]
fn interop_wg_quick_brings_up_a_client_of_ours() {
    in_both(|mode| {
        for allowed in [&["10.98.0.0/24", "fd98::/64"][..], &["0.0.0.0/0", "::/0"]] {
            let pair = Pair::new();
            let keys = Keys::new();
            let mut us = peer(2, &["10.98.0.2/32", "fd98::2/128"]);
            us.preshared_key = Some(SecretKey::new([9; 32]));
            let ours = Ours::start(mode, &pair.a, &["10.98.0.1/24", "fd98::1/64"], &[], settings(), vec![us]);
            let _quick = Quick::up(&pair.b, &keys, allowed);
            pair.b.reaches("10.98.0.1");
            pair.b.reaches("fd98::1");
            assert_eq!(pair.b.pings("10.98.0.1", 10), 10);
            eventually("we show where it is", || ours.shown()[0][2].starts_with("10.99.0.2:"));
        }
    });
}

/// boringtun's own program, installed once beside ours.
fn boringtun() -> String {
    let target = Path::new(env!("CARGO_BIN_EXE_portway")).ancestors().nth(2).expect("a folder");
    let root = target.join("peers");
    let installed = Command::new(env!("CARGO"))
        .args(["install", "--quiet", "--locked", "--root"])
        .arg(&root)
        .arg("boringtun-cli@0.7.1")
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    root.join("bin/boringtun-cli").display().to_string()
}

#[test]
fn interop_wireguard_boringtun() {
    in_both(|mode| {
        let program = boringtun();
        for we_begin in [true, false] {
            let mut pair = Pair::new();
            let keys = Keys::new();
            let psk = SecretKey::new([9; 32]);
            let mut us = peer(2, &["10.98.0.2/32", "fd98::2/128"]);
            us.preshared_key = Some(psk.clone());
            let us = if we_begin { endpoint(us, "10.99.0.2:51820") } else { us };
            let ours = Ours::start(mode, &pair.a, &["10.98.0.1/24", "fd98::1/64"], &[], settings(), vec![us]);
            let psk = keys.file("psk", &psk);
            let mut words = vec!["preshared-key", &psk, "allowed-ips", "10.98.0.1/32,fd98::1/128"];
            if !we_begin {
                words.extend(["endpoint", "10.99.0.1:51820"]);
            }
            let command = [program.as_str(), "-f", "--disable-drop-privileges"];
            implementation(&mut pair.b, &keys, &command, &["10.98.0.2/24", "fd98::2/64"], &words);
            let (from, to) =
                if we_begin { (&pair.a, ["10.98.0.2", "fd98::2"]) } else { (&pair.b, ["10.98.0.1", "fd98::1"]) };
            from.reaches(to[0]);
            from.reaches(to[1]);
            assert_eq!(from.pings(to[0], 20), 20);
            let json = iperf(&mut pair, "10.98.0.2", &["-t", "2"]);
            assert!(json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() > 1e7);
            assert_eq!(ours.totals().family("wireguard_handshakes"), 1);
        }
    });
}

#[test]
fn interop_wireguard_go_takes_new_keys_when_the_protocol_says_so() {
    let both = Both::new(Mode::Single, settings(), &["10.98.0.2/32"], &[]);
    both.pair.a.reaches("10.98.0.2");
    // Once a second, over the 120 s after which whoever began asks for new keys.
    let began = now();
    let handshakes = || both.ours.totals().family("wireguard_handshakes");
    while handshakes() < 2 {
        let age = now() - began;
        assert!(age < Duration::from_secs(140), "no new keys");
        // None is lost; on a busy machine one may take its time.
        let ping = both.pair.a.output("ping", &["-q", "-n", "-W", "5", "-c", "1", "10.98.0.2"]);
        assert!(ping.status.success(), "after {age:?}: {ping:?}");
        std::thread::sleep(Duration::from_millis(950));
    }
    assert!(now() - began > Duration::from_secs(115), "not before their time");
    assert_eq!((both.pair.a.pings("10.98.0.2", 5), handshakes()), (5, 2));
}
