//! WireGuard interfaces over loopback UDP, with netstacks inside: no root, no TUN. Each test runs in both threading
//! modes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Mail, Mesh, Place};
use portway::transports::framed::{self, Echo, Format, FramedClient};
use portway::transports::netstack::{self, Framed, MakeServe, NetMsg, NetStream, connect};
use portway::transports::wireguard::codec_inner::{fold, sum};
use portway::transports::wireguard::{
    self as wg, Boring, DROPPED, DeviceMsg, Engine, Interface, Material, Opened, PeerLimit, PeerSettings, PeerView,
    Rules, Sealed, SecretKey, Threading, no_limit, public_key,
};

use crate::probe::{SOON, eventually, mesh, now, stop, view, wait};

pub(crate) fn secret(n: u8) -> SecretKey {
    SecretKey::new([n; 32])
}

fn echo(name: &str) -> MakeServe {
    let name: Arc<str> = Arc::from(name);
    let settings = Arc::new(framed::Settings::default());
    Arc::new(move || Box::new(Framed::new(name.clone(), settings.clone(), || Echo)))
}

/// Which threads carry what is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Single,
    Pipeline,
}

/// Says in which mode a test failed.
struct SaidIfItFails(Mode);

impl Drop for SaidIfItFails {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _unread = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("threading: {:?}\n", self.0));
        }
    }
}

/// Runs a test in each threading mode; the output of one that fails ends with its mode.
pub(crate) fn in_both(test: impl Fn(Mode)) {
    for mode in [Mode::Single, Mode::Pipeline] {
        let _said = SaidIfItFails(mode);
        test(mode);
    }
}

impl Mode {
    /// The word of a configuration.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Pipeline => "pipeline",
        }
    }

    /// Arbiters for two interfaces.
    pub(crate) fn mesh(self) -> Mesh {
        mesh(if self == Self::Single { 2 } else { 4 })
    }

    /// The first of two interfaces.
    pub(crate) fn server(self) -> Threading {
        match self {
            Self::Single => Threading::Single { arbiter: 0 },
            Self::Pipeline => Threading::Pipeline { rx: 0, crypto: vec![1, 2], tx: 3 },
        }
    }

    /// The second: in a pipeline its stages meet others of the first.
    fn client(self) -> Threading {
        match self {
            Self::Single => Threading::Single { arbiter: 1 },
            Self::Pipeline => Threading::Pipeline { rx: 3, crypto: vec![2], tx: 1 },
        }
    }
}

/// One interface with its netstack.
pub(crate) struct Site {
    pub(crate) interface: Interface,
    pub(crate) stack: Mail<NetMsg>,
    pub(crate) address: SocketAddr,
    key: u8,
}

pub(crate) struct Plan {
    name: &'static str,
    key: u8,
    inside: String,
    threading: Threading,
    change: fn(&mut wg::Settings),
}

impl Plan {
    pub(crate) fn new(name: &'static str, key: u8, inside: &str) -> Self {
        let threading = Threading::Single { arbiter: 0 };
        Self { name, key, inside: inside.to_owned(), threading, change: |_| {} }
    }

    /// Its echo service is at port 7001 of its first address.
    pub(crate) fn start(self, mesh: &Mesh, peers: Vec<PeerSettings>) -> Site {
        let socket = wg::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let mut settings = wg::Settings::new(self.name, secret(self.key));
        settings.addresses = self.inside.split(' ').map(addressed).collect();
        settings.threading = self.threading;
        (self.change)(&mut settings);
        let place = match &settings.threading {
            Threading::Single { arbiter } => *arbiter,
            Threading::Pipeline { crypto, .. } => crypto[0],
        };
        let mut inside = netstack::Settings::new(self.name, settings.addresses.clone(), usize::from(settings.mtu));
        inside.services =
            inside.addresses.iter().map(|(ip, _)| (SocketAddr::new(*ip, 7001), echo(self.name))).collect();
        let interface = Interface::start(mesh, socket, settings, peers).unwrap();
        let stack = wg::start_netstack(mesh, Place::On(place), &interface, inside).unwrap();
        Site { interface, stack, address, key: self.key }
    }
}

fn addressed(text: &str) -> (IpAddr, wg::Network) {
    let (ip, _) = text.split_once('/').unwrap();
    (ip.parse().unwrap(), text.parse().unwrap())
}

pub(crate) fn peer(key: u8, allowed: &str) -> PeerSettings {
    let allowed = allowed.split(' ').map(|text| text.parse().unwrap()).collect();
    PeerSettings::new(public_key(&secret(key)), allowed)
}

impl Site {
    pub(crate) fn peers(&self) -> Vec<PeerView> {
        self.interface.device().ask_blocking(DeviceMsg::Peers, SOON).unwrap()
    }

    /// This site as a peer of another.
    pub(crate) fn as_peer(&self, allowed: &str) -> PeerSettings {
        PeerSettings { endpoint: Some(self.address), ..peer(self.key, allowed) }
    }
}

pub(crate) fn echoes(stack: &Mail<NetMsg>, to: &str, body: &[u8]) -> FramedClient<NetStream> {
    let (stack, to) = (stack.clone(), to.parse().unwrap());
    wait(async move {
        let stream = connect(&stack, to, SOON).await.expect("it connects");
        let mut client = FramedClient::over(stream, Format::default());
        client.send(body).await.expect("it sends");
        assert_eq!(client.recv().await.expect("it answers").expect("a message"), body);
        client
    })
}

pub(crate) fn dropped(mesh: &Mesh, family: &str, reason: &str) -> u64 {
    view(mesh).totals.get(family, "server", reason)
}

/// Waits until exactly so many were dropped for this reason.
pub(crate) fn drops(mesh: &Mesh, family: &str, reason: &str, n: u64) {
    eventually(&format!("{family} {reason}"), || dropped(mesh, family, reason) >= n);
    assert_eq!(dropped(mesh, family, reason), n, "{family} {reason}");
}

/// A server and a client.
pub(crate) fn two(mesh: &Mesh, mode: Mode) -> (Site, Site) {
    two_with(mesh, mode, Vec::new(), |_| {})
}

/// The same with more peers, and other settings, of the server.
pub(crate) fn two_with(
    mesh: &Mesh,
    mode: Mode,
    more: Vec<PeerSettings>,
    change: fn(&mut wg::Settings),
) -> (Site, Site) {
    let peers = [vec![peer(2, "10.98.0.2 fd98::2")], more].concat();
    let server = Plan { change, threading: mode.server(), ..Plan::new("server", 1, "10.98.0.1/24 fd98::1/64") };
    let server = server.start(mesh, peers);
    let client = Plan { threading: mode.client(), ..Plan::new("client", 2, "10.98.0.2/24 fd98::2/64") };
    let client = client.start(mesh, vec![server.as_peer("10.98.0.0/16 fd98::/64")]);
    (server, client)
}

/// A client of which every packet is in our hands: an engine and a socket.
pub(crate) struct Raw {
    engine: Boring,
    pub(crate) socket: UdpSocket,
    to: SocketAddr,
    buffer: Vec<u8>,
}

impl Raw {
    /// From any address of loopback, to a server with key 1.
    pub(crate) fn new(key: u8, to: SocketAddr, from: &str) -> Self {
        let material = Material {
            secret: secret(key),
            peer: public_key(&secret(1)),
            preshared: None,
            keepalive: None,
            index: u32::from(key),
            seed: 1,
            rules: Rules::default(),
        };
        let engine = Boring::new(&material, no_limit(&material.secret), now());
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { engine, socket, to, buffer: vec![0; 65_535] }
    }

    pub(crate) fn initiation(&mut self) -> Vec<u8> {
        let length = self.engine.initiate(&mut self.buffer, now()).unwrap().expect("it is time");
        self.buffer[..length].to_vec()
    }

    /// A handshake, to its end.
    pub(crate) fn connect(mut self) -> Self {
        let initiation = self.initiation();
        self.send(&initiation);
        assert!(self.recv().is_none(), "the response");
        assert!(self.engine.established().is_some());
        self
    }

    pub(crate) fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.to).unwrap();
    }

    /// A packet as a datagram, whatever it is.
    pub(crate) fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        match self.engine.seal(packet, &mut self.buffer, now()) {
            Ok(Sealed::Datagram(length)) => self.buffer[..length].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn say(&mut self, packet: &[u8]) {
        let sealed = self.seal(packet);
        self.send(&sealed);
    }

    /// The next datagram: a packet, or nothing if it was something else.
    pub(crate) fn recv(&mut self) -> Option<Vec<u8>> {
        let mut datagram = vec![0; 65_535];
        let (length, _) = self.socket.recv_from(&mut datagram).expect("an answer");
        match self.engine.open(&datagram[..length], &mut self.buffer, now()) {
            Ok((_, Opened::Packet(length))) => Some(self.buffer[..length].to_vec()),
            Ok((_, Opened::Reply(length))) => {
                let reply = self.buffer[..length].to_vec();
                self.send(&reply);
                None
            }
            Ok((_, Opened::Nothing)) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Asks the server for an echo by ICMP and waits for it.
    pub(crate) fn ping(&mut self, from: &str) {
        self.say(&ping(from, "10.98.0.1"));
        let answer = loop {
            if let Some(answer) = self.recv() {
                break answer;
            }
        };
        assert_eq!((answer[9], answer[20]), (1, 0), "an echo reply");
    }
}

/// An IPv4 packet with its header right.
pub(crate) fn ipv4(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(address(from));
    packet.extend(address(to));
    packet.extend(payload);
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    rewrite_checksum(&mut packet);
    packet
}

pub(crate) fn rewrite_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let checksum = !fold(sum(0, &packet[..20]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

pub(crate) fn ping(from: &str, to: &str) -> Vec<u8> {
    let mut echo = vec![8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let checksum = !fold(sum(0, &echo));
    echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    ipv4(from, to, 1, &echo)
}

/// A SYN from this port to the echo service.
pub(crate) fn syn(from: &str, port: u16) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&7001u16.to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = 2;
    tcp[14..16].copy_from_slice(&[0xff, 0xff]);
    let packet = ipv4(from, "10.98.0.1", 6, &tcp);
    let checksum = !fold(sum(sum(6 + 20, &packet[12..20]), &tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    ipv4(from, "10.98.0.1", 6, &tcp)
}

#[test]
fn echoes_through_a_tunnel_over_both_kinds_of_ip() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, client) = two(&mesh, mode);
        echoes(&client.stack, "10.98.0.1:7001", b"hello");
        echoes(&client.stack, "[fd98::1]:7001", &vec![7; 1 << 20]);
        eventually("the server knows where the client is", || {
            server.peers().first().is_some_and(|peer| {
                peer.endpoint == Some(client.address) && peer.received > 1 << 20 && peer.sent > 1 << 20
            })
        });
        let shown = server.peers().remove(0);
        assert_eq!(shown.arbiter, Some(usize::from(mode == Mode::Pipeline)));
        assert!(shown.handshake_ago.is_some_and(|ago| ago < SOON));
        let totals = view(&mesh).totals;
        assert_eq!(totals.get("wireguard_handshakes", "server", ""), 1);
        assert_eq!(totals.get("netstack_accepted", "server", ""), 2);
        stop(&mesh);
    });
}

#[test]
fn a_client_of_another_engine_is_pinged_and_may_move() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, _client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        raw.ping("10.98.0.3");
        let old = std::mem::replace(&mut raw.socket, UdpSocket::bind("127.0.0.2:0").unwrap());
        raw.socket.set_read_timeout(Some(SOON)).unwrap();
        raw.ping("10.98.0.3");
        eventually("it moved", || view(&mesh).totals.get("wireguard_roamed", "server", "") == 1);
        drop(old);
        stop(&mesh);
    });
}

#[test]
fn a_new_initiation_alone_does_not_move_a_peer() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, _client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        raw.ping("10.98.0.3");
        let home = raw.socket.local_addr().unwrap();
        let elsewhere = Raw::new(3, server.address, "127.0.0.2");
        let mut elsewhere = elsewhere;
        let initiation = elsewhere.initiation();
        elsewhere.send(&initiation);
        let mut answer = [0; 200];
        assert_eq!(elsewhere.socket.recv(&mut answer).unwrap(), 92, "it is answered there");
        let known = || server.peers().into_iter().find(|p| p.settings.public_key == public_key(&secret(3))).unwrap();
        eventually("it is known", || known().endpoint.is_some());
        assert_eq!(known().endpoint, Some(home));
        stop(&mesh);
    });
}

#[test]
fn peers_reach_each_other_only_where_that_is_allowed() {
    in_both(|mode| {
        for (direct, change) in [
            (false, (|_| {}) as fn(&mut wg::Settings)),
            (true, |settings| settings.peer_to_peer = wg::PeerToPeer::Direct),
        ] {
            let mesh = mode.mesh();
            let (server, client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], change);
            let other = Plan::new("other", 3, "10.98.0.3/24").start(&mesh, vec![server.as_peer("10.98.0.0/16")]);
            echoes(&other.stack, "10.98.0.1:7001", b"here I am");
            if direct {
                echoes(&client.stack, "10.98.0.3:7001", &vec![1; 100_000]);
            } else {
                echoes(&client.stack, "10.98.0.1:7001", b"the hub answers");
                let to = "10.98.0.3:7001".parse().unwrap();
                let stream = wait(connect(&client.stack, to, Duration::from_millis(300)));
                assert_eq!(stream.err().map(|error| error.kind()), Some(std::io::ErrorKind::TimedOut));
                assert!(dropped(&mesh, DROPPED, "peer_to_peer") >= 1);
            }
            stop(&mesh);
        }
    });
}

#[test]
fn limits_of_a_peer_hold_it_and_no_other() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let limit_in = PeerLimit { bytes: None, burst: 0, packets: Some(20) };
        let (server, client) = two_with(&mesh, mode, vec![PeerSettings { limit_in, ..peer(3, "10.98.0.3") }], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        for _ in 0..100 {
            raw.say(&ping("10.98.0.3", "10.98.0.1"));
        }
        eventually("it is held", || dropped(&mesh, DROPPED, "limit_in") >= 60);
        echoes(&client.stack, "10.98.0.1:7001", &vec![1; 100_000]);
        assert!(view(&mesh).totals.get("wireguard_packets_in", "server", "") > 60);
        stop(&mesh);
    });
}

#[test]
fn a_peer_whose_date_has_come_is_refused() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let over = PeerSettings { expires: Some(1), ..peer(3, "10.98.0.3") };
        let (server, client) = two_with(&mesh, mode, vec![over], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1");
        let initiation = raw.initiation();
        raw.send(&initiation);
        drops(&mesh, DROPPED, "peer_expired", 1);
        // In the midst of a session as well.
        echoes(&client.stack, "10.98.0.1:7001", b"x");
        let past = PeerSettings { expires: Some(1), ..peer(2, "10.98.0.2 fd98::2") };
        server.interface.device().tell(DeviceMsg::Set(Box::new(past))).unwrap();
        eventually("its session ends", || server.peers().iter().all(|peer| peer.arbiter.is_none()));
        stop(&mesh);
    });
}

#[test]
fn changing_one_peer_leaves_the_others_their_sessions() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        raw.ping("10.98.0.3");
        let kept = echoes(&client.stack, "10.98.0.1:7001", b"before");
        let sessions = || -> Vec<_> { view(&mesh).of_kind("wireguard_peer").map(|actor| actor.id).collect() };
        let before = sessions();
        let changed = PeerSettings { keepalive: None, ..peer(2, "10.98.0.2 fd98::2 10.98.7.0/24") };
        server.interface.device().tell(DeviceMsg::Replace(vec![changed])).unwrap();
        eventually("the one taken out has no session", || server.peers().len() == 1);
        eventually("its actor is gone", || sessions().len() == before.len() - 1);
        assert!(sessions().iter().all(|id| before.contains(id)), "nobody was made anew");
        let mut kept = kept;
        wait(async {
            kept.send(b"after").await.unwrap();
            assert_eq!(kept.recv().await.unwrap().unwrap(), &b"after"[..]);
        });
        raw.say(&ping("10.98.0.3", "10.98.0.1"));
        drops(&mesh, DROPPED, "unknown_index", 1);
        assert_eq!(view(&mesh).totals.get("wireguard_handshakes", "server", ""), 2, "no handshake more");
        stop(&mesh);
    });
}

#[test]
fn a_pipeline_receives_decrypts_and_sends_on_arbiters_of_its_own() {
    let mesh = mesh(4);
    let threading = Threading::Pipeline { rx: 0, crypto: vec![1, 2], tx: 3 };
    let server = Plan { threading, ..Plan::new("server", 1, "10.98.0.1/24") }
        .start(&mesh, vec![peer(2, "10.98.0.2"), peer(3, "10.98.0.3")]);
    let clients = [(2, "client", "10.98.0.2/24"), (3, "other", "10.98.0.3/24")]
        .map(|(key, name, inside)| Plan::new(name, key, inside).start(&mesh, vec![server.as_peer("10.98.0.0/24")]));
    // A message that arrives whole and equal through TCP says that packets came in order or were put back.
    for client in &clients {
        echoes(&client.stack, "10.98.0.1:7001", &vec![5; 1 << 20]);
    }
    let seen = view(&mesh);
    let of = |kind: &str| -> Vec<_> {
        let ours = |name: &Option<Arc<str>>| name.as_deref().is_none_or(|name| name == "server");
        seen.of_kind(kind).filter(|actor| ours(&actor.name)).map(|actor| (actor.arbiter, actor.handled)).collect()
    };
    let (rx, tx) = (of("wireguard"), of("wireguard_tx"));
    assert!(matches!(rx.as_slice(), [(0, work)] if *work > 20), "{rx:?}");
    assert!(matches!(tx.as_slice(), [(3, work)] if *work > 20), "{tx:?}");
    let places: Vec<_> = server.peers().iter().map(|peer| peer.arbiter).collect();
    assert_eq!(places, [Some(1), Some(2)], "one session each");
    let crypto: Vec<_> = seen.of_kind("wireguard_peer").filter(|a| [1, 2].contains(&a.arbiter)).collect();
    assert!(crypto.len() == 2 && crypto.iter().all(|actor| actor.handled > 20), "both worked");
    stop(&mesh);
}
