//! WireGuard interfaces over loopback UDP, with netstacks inside: no root, no TUN.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use portway::actors::{Mail, Mesh, Place};
use portway::transports::framed::{self, Echo, Format, FramedClient};
use portway::transports::netstack::{self, Framed, MakeServe, NetMsg, NetStream, connect};
use portway::transports::wireguard::{
    self as wg, DROPPED, DeviceMsg, Interface, PeerSettings, PeerView, SecretKey, Threading, public_key,
};

use crate::probe::{SOON, eventually, mesh, view, wait};

fn secret(n: u8) -> SecretKey {
    SecretKey::new([n; 32])
}

fn echo(name: &str) -> MakeServe {
    let name: Arc<str> = Arc::from(name);
    let settings = Arc::new(framed::Settings::default());
    Arc::new(move || Box::new(Framed::new(name.clone(), settings.clone(), || Echo)))
}

/// One interface with its netstack.
struct Site {
    interface: Interface,
    stack: Mail<NetMsg>,
    address: SocketAddr,
    key: u8,
}

struct Plan {
    name: &'static str,
    key: u8,
    inside: &'static str,
    threading: Threading,
    change: fn(&mut wg::Settings),
    limits: netstack::FlowLimits,
}

impl Plan {
    fn new(name: &'static str, key: u8, inside: &'static str) -> Self {
        Self {
            name,
            key,
            inside,
            threading: Threading::Single { arbiter: 0 },
            change: |_| {},
            limits: netstack::FlowLimits::default(),
        }
    }

    fn on(self, arbiter: usize) -> Self {
        Self { threading: Threading::Single { arbiter }, ..self }
    }

    /// Its echo service is at port 7001 of its first address.
    fn start(self, mesh: &Mesh, peers: Vec<PeerSettings>) -> Site {
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
        inside.limits = self.limits;
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

fn peer(key: u8, allowed: &str) -> PeerSettings {
    let allowed = allowed.split(' ').map(|text| text.parse().unwrap()).collect();
    PeerSettings::new(public_key(&secret(key)), allowed)
}

impl Site {
    fn peers(&self) -> Vec<PeerView> {
        self.interface.device().ask_blocking(DeviceMsg::Peers, SOON).unwrap()
    }

    /// This site as a peer of another.
    fn as_peer(&self, allowed: &str) -> PeerSettings {
        PeerSettings { endpoint: Some(self.address), ..peer(self.key, allowed) }
    }
}

fn echoes(stack: &Mail<NetMsg>, to: &str, body: &[u8]) -> FramedClient<NetStream> {
    let (stack, to) = (stack.clone(), to.parse().unwrap());
    wait(async move {
        let stream = connect(&stack, to, SOON).await.expect("it connects");
        let mut client = FramedClient::over(stream, Format::default());
        client.send(body).await.expect("it sends");
        assert_eq!(client.recv().await.expect("it answers").expect("a message"), body);
        client
    })
}

/// A server on arbiter 0 and a client on arbiter 1.
fn two(mesh: &Mesh) -> (Site, Site) {
    let server = Plan::new("server", 1, "10.98.0.1/24 fd98::1/64").start(mesh, vec![peer(2, "10.98.0.2 fd98::2")]);
    let client = Plan::new("client", 2, "10.98.0.2/24 fd98::2/64")
        .on(1)
        .start(mesh, vec![server.as_peer("10.98.0.0/24 fd98::/64")]);
    (server, client)
}

#[test]
fn echoes_through_a_tunnel_over_both_kinds_of_ip() {
    let mesh = mesh(2);
    let (server, client) = two(&mesh);
    echoes(&client.stack, "10.98.0.1:7001", b"hello");
    echoes(&client.stack, "[fd98::1]:7001", &vec![7; 1 << 20]);
    eventually("the server knows where the client is", || {
        server
            .peers()
            .first()
            .is_some_and(|peer| peer.endpoint == Some(client.address) && peer.received > 1 << 20 && peer.sent > 1 << 20)
    });
    let shown = server.peers().remove(0);
    assert_eq!(shown.arbiter, Some(0));
    assert!(shown.handshake_ago.is_some_and(|ago| ago < SOON));
    let totals = view(&mesh).totals;
    assert_eq!(totals.get("wireguard_handshakes", "server", ""), 1);
    assert_eq!(totals.get("netstack_accepted", "server", ""), 2);
    mesh.stop().unwrap();
}
