//! The path of packets through tunnels: batches and trains come from pools and go home.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portway::actors::{Fault, Mesh, MeshConfig, Place, Progress, Protocol, Reply, Spec, Turn};
use portway::transports::kit::packets::{Deliver, Packets};
use portway::transports::wireguard::codec_inner::{fold, sum};
use portway::transports::wireguard::{
    Interface, PeerSettings, Router, SecretKey, Settings, Threading, bind, public_key,
};

use super::COUNT;

const SOON: Duration = Duration::from_secs(30);
/// Packets of a batch.
const BATCH: u64 = 40;

/// An IPv4 packet from 10.98.0.2 to 10.98.0.1.
fn packet(length: u16) -> Vec<u8> {
    let bytes = length.to_be_bytes();
    let mut packet = vec![0x45, 0, bytes[0], bytes[1], 0, 0, 0, 0, 64, 17, 0, 0, 10, 98, 0, 2, 10, 98, 0, 1];
    let checksum = !fold(sum(0, &packet));
    packet.splice(10..12, checksum.to_be_bytes());
    packet.resize(usize::from(length), 7);
    packet
}

/// Takes batches out of the tunnel as the actor of an interface does: keeps them, and drops them later.
struct Sink(Arc<AtomicU64>);

impl Deliver for Sink {
    fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets> {
        self.0.fetch_add(packets.len() as u64, Ordering::Relaxed);
        Ok(Packets::none())
    }
}

enum Msg {
    /// So many batches; answers how often this arbiter allocated meanwhile.
    Send(u64, Reply<usize>),
}

/// Puts packets into the tunnel, one batch after the other.
struct Feeder {
    router: Router,
    packet: Vec<u8>,
    arrived: Arc<AtomicU64>,
    sent: u64,
    left: u64,
    asked: Option<(usize, Reply<usize>)>,
}

impl Protocol for Feeder {
    type Msg = Msg;
    const KIND: &'static str = "feeder";

    fn on(&mut self, m: Msg, _: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        let Msg::Send(batches, reply) = m;
        self.left = batches;
        self.asked = Some((COUNT.get(), reply));
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, Msg>) -> Result<Progress, Fault> {
        let Some((before, reply)) = self.asked.take() else { return Ok(Progress::Idle) };
        if self.arrived.load(Ordering::Relaxed) == self.sent {
            if self.left == 0 {
                let _gone = reply.send(COUNT.get() - before);
                return Ok(Progress::Idle);
            }
            let mut batch = Packets::lent(|bytes| turn.buffer(bytes));
            for _ in 0..BATCH {
                assert!(batch.push(&self.packet));
            }
            assert!(self.router.deliver(batch).is_ok());
            self.sent += BATCH;
            self.left -= 1;
        }
        self.asked = Some((before, reply));
        Ok(Progress::More)
    }
}

/// Allocations of the arbiter that carries both ends, for so many batches of packets of this length.
fn carried(length: u16, batches: u64) -> usize {
    let config = MeshConfig { arbiters: NonZeroUsize::new(1), ..MeshConfig::default() };
    let mesh = Mesh::start(config).unwrap();
    let arrived = Arc::new(AtomicU64::new(0));
    let interface = |key: u8, other: u8, allowed: &str, at: Option<SocketAddr>| {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let mut settings = Settings::new(&format!("wg{key}"), SecretKey::new([key; 32]));
        settings.addresses = vec![(IpAddr::from([10, 98, 0, key]), "10.98.0.0/24".parse().unwrap())];
        settings.threading = Threading::Single { arbiter: 0 };
        let allowed = vec![allowed.parse().unwrap()];
        let peer =
            PeerSettings { endpoint: at, ..PeerSettings::new(public_key(&SecretKey::new([other; 32])), allowed) };
        (Interface::start(&mesh, socket, settings, vec![peer]).unwrap(), address)
    };
    let (server, address) = interface(1, 2, "10.98.0.2/32", None);
    let (client, _) = interface(2, 1, "10.98.0.1/32", Some(address));
    let sink = arrived.clone();
    server.attach(move || Box::new(Sink(sink.clone())));
    let router = client.router();
    let feeder = Feeder { router, packet: packet(length), arrived, sent: 0, left: 0, asked: None };
    let feeder = mesh.spawn(Place::On(0), Spec::default(), move || feeder).unwrap();
    let send = |batches| feeder.ask_blocking(|reply| Msg::Send(batches, reply), SOON).unwrap();
    // The handshake, and buffers that are made once.
    send(100);
    let count = send(batches);
    drop(feeder);
    mesh.stop().unwrap();
    count
}

#[test]
fn a_steady_stream_of_packets_allocates_nothing_for_each() {
    const BATCHES: u64 = 2_000;
    for length in [40, 200, 1_420] {
        let count = carried(length, BATCHES);
        // What is left belongs to time, not to packets: timers, reports once a second, pools that give back.
        assert!(count < BATCHES as usize / 10, "{length} bytes: {count} allocations for {BATCHES} batches");
    }
}
