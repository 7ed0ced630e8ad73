//! Two private networks whose interfaces are joined by their actors: the kernel's own TCP and UDP on both sides.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use portway::actors::{Budget, Exit, Mail, Mesh, Place, Spec, Totals};
use portway::transports::kit::admission::Caps;
use portway::transports::kit::packets::{Deliver, Packets};
use portway::transports::kit::routes::Network;
use portway::transports::relay::Onward;
use portway::transports::tcp::{Acceptor, AcceptorSettings};
use portway::transports::tun::{PrivateNetwork, PrivateSettings, ToTun, Tun, TunActor, TunMsg};

use crate::netns::Netns;
use crate::private_network::Unprivileged;
use crate::probe::{SOON, eventually, mesh, stop, view};

/// Hands packets to an actor that is made later.
#[derive(Clone, Default)]
struct Later(Arc<OnceLock<Mail<TunMsg>>>);

impl Deliver for Later {
    fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets> {
        match self.0.get() {
            Some(mail) => ToTun(mail.clone()).deliver(packets),
            None => Err(packets),
        }
    }
}

/// One side.
struct Side {
    network: PrivateNetwork,
    mail: Mail<TunMsg>,
}

/// Two networks with a link between them.
struct Joined {
    mesh: Mesh,
    a: Side,
    b: Side,
    _user: Unprivileged,
}

fn settings(user: &Unprivileged, host: u8, offload: bool) -> PrivateSettings {
    PrivateSettings {
        offload,
        addresses: vec![format!("10.77.0.{host}/24").parse().unwrap(), format!("fd77::{host}/64").parse().unwrap()],
        ..user.settings()
    }
}

impl Joined {
    fn new(offload_a: bool, offload_b: bool) -> Self {
        Self::on(mesh(2), offload_a, offload_b)
    }

    fn on(mesh: Mesh, offload_a: bool, offload_b: bool) -> Self {
        let user = Unprivileged::new();
        let (to_a, to_b) = (Later::default(), Later::default());
        let start = |host: u8, offload: bool, scope: &'static str, deliver: Later, own: &Later| {
            let (network, tun) = PrivateNetwork::start(&settings(&user, host, offload)).expect("a private network");
            let mail = spawn(&mesh, tun, scope, deliver);
            own.0.set(mail.clone()).unwrap();
            Side { network, mail }
        };
        let a = start(1, offload_a, "a", to_b.clone(), &to_a);
        let b = start(2, offload_b, "b", to_a, &to_b);
        Self { mesh, a, b, _user: user }
    }

    fn totals(&self) -> Totals {
        view(&self.mesh).totals
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        stop(&self.mesh);
    }
}

fn spawn(mesh: &Mesh, tun: Tun, scope: &'static str, deliver: impl Deliver + Send) -> Mail<TunMsg> {
    let spec = Spec::named(scope).inbox(64, 16 << 20);
    mesh.spawn(Place::LeastLoaded, spec, move || TunActor::new(tun, Arc::from(scope), deliver)).expect("it starts")
}

fn blocking(socket: TcpListener) -> TcpListener {
    socket.set_nonblocking(false).unwrap();
    socket
}

fn connect(network: &PrivateNetwork, to: SocketAddr) -> TcpStream {
    try_connect(network, to).expect("it connects")
}

fn try_connect(network: &PrivateNetwork, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = network.tcp_socket(to.is_ipv6()).expect("a socket");
    socket.set_nonblocking(false).unwrap();
    socket.connect_timeout(&to.into(), SOON)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    Ok(stream)
}

/// Whether a connection is reset, at once or when it is read.
fn is_reset(network: &PrivateNetwork, to: &str) -> bool {
    let read = try_connect(network, to.parse().unwrap()).and_then(|mut stream| stream.read(&mut [0; 1]));
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Sends bytes through and compares what arrives.
fn transfers(joined: &Joined, to: SocketAddr, bytes: usize) {
    let listener = blocking(joined.b.network.tcp_listener(to, false).expect("a listener"));
    let sent: Arc<[u8]> = (0..bytes).map(|n| ((n * 31) >> 3) as u8).collect();
    let expected = sent.clone();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == *expected, "{} bytes of {}", got.len(), expected.len());
        stream.write_all(b"all").unwrap();
    });
    let mut stream = connect(&joined.a.network, to);
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"all");
    receiver.join().unwrap();
}

#[test]
fn tcp_flows_in_super_packets_and_nothing_is_lost() {
    let joined = Joined::new(true, true);
    transfers(&joined, "10.77.0.2:80".parse().unwrap(), 20 << 20);
    transfers(&joined, "[fd77::2]:80".parse().unwrap(), 20 << 20);
    let totals = joined.totals();
    let (packets, writes) = (totals.get("tun_packets_in", "b", ""), totals.get("tun_writes", "b", ""));
    assert!(packets > 25_000, "{packets} packets for 40 MiB");
    assert!(writes * 4 < packets, "{writes} writes for {packets} packets");
    assert_eq!(totals.family("tun_dropped"), 0, "{totals:?}");
}

#[test]
fn sides_with_and_without_offloads_understand_each_other() {
    for (a, b) in [(true, false), (false, true), (false, false)] {
        let joined = Joined::new(a, b);
        transfers(&joined, "10.77.0.2:80".parse().unwrap(), 4 << 20);
        transfers(&joined, "[fd77::2]:80".parse().unwrap(), 4 << 20);
        let totals = joined.totals();
        assert_eq!(totals.family("tun_dropped"), 0, "{totals:?}");
    }
}

#[test]
fn datagrams_keep_their_bounds() {
    let joined = Joined::new(true, true);
    let server = joined.b.network.udp_socket("10.77.0.2:53".parse().unwrap(), false).unwrap();
    let client = joined.a.network.udp_socket("10.77.0.1:0".parse().unwrap(), false).unwrap();
    for socket in [&server, &client] {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
    }
    let echo = |length: usize, server: &UdpSocket, client: &UdpSocket| {
        let sent: Vec<u8> = (0..length).map(|n| n as u8).collect();
        client.send_to(&sent, "10.77.0.2:53").unwrap();
        let mut buffer = vec![0; 65_536];
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], &sent[..]);
        server.send_to(&buffer[..count], from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), length);
    };
    for length in [0, 1, 500, 1_392, 1_393, 9_000, 60_000] {
        echo(length, &server, &client);
    }
    assert_eq!(joined.totals().family("tun_dropped"), 0);
}

/// What `ip` says inside.
fn ip(side: &Side, arguments: &[&str]) {
    let process = side.network.process().to_string();
    let done = Command::new("nsenter").args(["-t", &process, "-U", "-n", "ip"]).args(arguments).status();
    assert!(done.expect("nsenter runs").success(), "ip {arguments:?}");
}

#[test]
fn an_interface_that_is_down_loses_packets_and_comes_back_with_its_offloads() {
    let joined = Joined::new(true, true);
    transfers(&joined, "10.77.0.2:80".parse().unwrap(), 1 << 20);
    ip(&joined.b, &["link", "set", "inside0", "down"]);
    let client = joined.a.network.udp_socket("10.77.0.1:0".parse().unwrap(), false).unwrap();
    client.send_to(b"lost", "10.77.0.2:53").unwrap();
    eventually("the packet is counted", || joined.totals().get("tun_dropped", "b", "down") == 1);
    ip(&joined.b, &["link", "set", "inside0", "up"]);
    ip(&joined.b, &["route", "add", "default", "dev", "inside0"]);
    transfers(&joined, "10.77.0.2:81".parse().unwrap(), 1 << 20);
    assert_eq!(joined.totals().family("tun_offload_off"), 0);
}

#[test]
fn an_interface_that_is_removed_ends_its_actor_alone_and_says_so() {
    let joined = Joined::new(true, true);
    transfers(&joined, "10.77.0.2:80".parse().unwrap(), 1 << 20);
    ip(&joined.b, &["link", "del", "inside0"]);
    // No packet tells it: it looks.
    eventually("the actor ends", || joined.b.mail.exit().is_some());
    let exit = joined.b.mail.exit().unwrap();
    assert!(matches!(&exit, Exit::Fault(fault) if fault.reason == "tun_gone"), "{exit}");
    assert_eq!(joined.a.mail.exit(), None, "its neighbour lives");
}

#[test]
fn a_receiver_without_room_makes_the_interface_wait() {
    /// Takes nothing until told to.
    struct Closed(Arc<OnceLock<()>>, Later);
    impl Deliver for Closed {
        fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets> {
            if self.0.get().is_some() { self.1.deliver(packets) } else { Err(packets) }
        }
    }
    let user = Unprivileged::new();
    let mesh = mesh(1);
    let (open, to_b) = (Arc::new(OnceLock::new()), Later::default());
    let (network, tun) = PrivateNetwork::start(&settings(&user, 1, true)).unwrap();
    let _a = spawn(&mesh, tun, "a", Closed(open.clone(), to_b.clone()));
    let (other, tun) = PrivateNetwork::start(&settings(&user, 2, true)).unwrap();
    to_b.0.set(spawn(&mesh, tun, "b", Later::default())).unwrap();
    let server = other.udp_socket("10.77.0.2:53".parse().unwrap(), false).unwrap();
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    let client = network.udp_socket("10.77.0.1:0".parse().unwrap(), false).unwrap();
    for n in 0..100u8 {
        client.send_to(&[n], "10.77.0.2:53").unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(view(&mesh).totals.get("tun_packets_out", "a", ""), 0);
    open.set(()).unwrap();
    let mut buffer = [0; 10];
    for n in 0..100u8 {
        assert_eq!((server.recv(&mut buffer).unwrap(), buffer[0]), (1, n), "in order, none lost");
    }
    stop(&mesh);
}

#[test]
fn connections_to_anywhere_are_relayed_to_where_they_wanted_if_that_is_allowed() {
    // The host of the gateway: its arbiters' own sockets are made here.
    let host = Netns::new();
    host.ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"]);
    host.ip(&["addr", "add", "2001:db8::5/128", "dev", "lo"]);
    let joined = Joined::on(host.inside(|| mesh(2)), true, true);
    for any in ["0.0.0.0:15001", "[::]:15001"] {
        let socket = Arc::new(joined.a.network.tcp_listener(any.parse().unwrap(), false).expect("a listener inside"));
        let budget = portway::memory::Budget::new(64 << 20);
        let settings = AcceptorSettings {
            name: Arc::from("onward"),
            caps: Caps { connections: 100, per_source: 100, half_open: 100, base_bytes: 4_096 },
            budget,
            shed_delay: SOON,
            occupancy: Arc::default(),
        };
        let allowed: Vec<Network> = vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let make = move || Onward::new(Arc::from("onward"), allowed.clone(), None);
        Acceptor::start(&joined.mesh, Place::On(0), socket, settings, Budget::default(), make).expect("it starts");
    }
    joined.a.network.redirect_tcp(15_001).expect("nft");

    for to in ["203.0.113.5:8080", "[2001:db8::5]:8080"] {
        let to: SocketAddr = to.parse().unwrap();
        let server = host.inside(move || TcpListener::bind(to)).expect("a server on the host");
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut got = [0; 5];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
        let mut neighbour = connect(&joined.b.network, to);
        // Somewhere else is not allowed.
        assert!(is_reset(&joined.b.network, "198.51.100.1:80"));
        neighbour.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        neighbour.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        echo.join().unwrap();
    }
    // Twice: once for each family of the neighbour.
    let refused = |number| joined.totals().get("forward_refused", "onward", "") == number;
    eventually("two are counted", || refused(2));
    // The redirect's own port leads nowhere but here.
    assert!(is_reset(&joined.b.network, "10.77.0.1:15001"));
    eventually("three are counted", || refused(3));
}
