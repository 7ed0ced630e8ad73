//! cargo run --release --example wireguard_overhead [MiB [ROUNDS]]
//!
//! What the actors of a tunnel cost: packets go through one WireGuard interface, over UDP on loopback, and out of
//! another, all on one arbiter; then the same calls (batch, routes, seal, send a train, receive trains, open, inner
//! headers) are made in a bare loop on one thread. Says the CPU seconds per Gbit of both, and the median of the ratios of
//! rounds in which they take turns.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portway::actors::{Fault, Mesh, MeshConfig, Place, Progress, Protocol, Reply, Spec, Turn, clock};
use portway::transports::kit::packets::{Deliver, Packets};
use portway::transports::udp::{Options, RecvMeta, Transmit, UdpSocket};
use portway::transports::wireguard::codec_inner::{self, Inner};
use portway::transports::wireguard::engine::LEAST_ROOM;
use portway::transports::wireguard::state_train::{MOST_BYTES, ROOM, Train};
use portway::transports::wireguard::{
    Boring, Engine, Interface, Material, Opened, PeerSettings, Router, Routes, Rules, Sealed, SecretKey, Settings,
    Threading, bind, no_limit, public_key,
};
use rustix::time::{ClockId, clock_gettime};

const SOON: Duration = Duration::from_secs(600);
const MTU: usize = 1_420;
/// Packets of one batch: a super-packet of TCP, cut.
const BATCH: usize = 45;
/// Packets under way at once, at most.
const WINDOW: u64 = 4 * BATCH as u64;
/// Trains received at once, as the actor of an interface does.
const AT_ONCE: usize = 8;

/// CPU seconds of this thread.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A datagram from 10.98.0.2 to 10.98.0.1, of the MTU's length.
fn packet() -> Vec<u8> {
    let length = (MTU as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0, 10, 98, 0, 2, 10, 98, 0, 1];
    let sum = !codec_inner::fold(codec_inner::sum(0, &packet));
    packet.splice(10..12, sum.to_be_bytes());
    packet.resize(MTU, 7);
    packet
}

/// Takes packets out of the tunnel.
struct Sink(Arc<AtomicU64>);

impl Deliver for Sink {
    fn deliver(&mut self, mut packets: Packets) -> Result<Packets, Packets> {
        self.0.fetch_add(packets.len() as u64, Ordering::Relaxed);
        packets.clear();
        Ok(packets)
    }
}

/// Puts packets into the tunnel, so many, and says what its arbiter took of the CPU until all came out.
struct Feeder {
    router: Router,
    packet: Vec<u8>,
    arrived: Arc<AtomicU64>,
    batch: Packets,
    /// Sent, and how many there are to be, since the beginning.
    sent: u64,
    until: u64,
    asked: Option<(f64, Reply<f64>)>,
}

enum Feed {
    Send(u64, Reply<f64>),
}

impl Protocol for Feeder {
    type Msg = Feed;
    const KIND: &'static str = "feeder";

    fn on(&mut self, m: Feed, _: &mut Turn<'_, Feed>) -> Result<(), Fault> {
        let Feed::Send(count, reply) = m;
        self.until += count;
        self.asked = Some((cpu(), reply));
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, Feed>) -> Result<Progress, Fault> {
        if self.asked.is_none() {
            return Ok(Progress::Idle);
        }
        while self.sent < self.until && self.sent - self.arrived.load(Ordering::Relaxed) < WINDOW {
            if self.batch.held() == 0 {
                self.batch = Packets::lent(|bytes| turn.buffer(bytes));
            }
            fill(&mut self.batch, &self.packet, self.until - self.sent);
            let count = self.batch.len() as u64;
            let full = std::mem::replace(&mut self.batch, Packets::none());
            match self.router.deliver(full) {
                Ok(empty) => {
                    self.sent += count;
                    self.batch = empty;
                }
                Err(refused) => {
                    self.batch = refused;
                    break;
                }
            }
        }
        if self.arrived.load(Ordering::Relaxed) == self.until
            && let Some((before, reply)) = self.asked.take()
        {
            let _gone = reply.send(cpu() - before);
        }
        Ok(Progress::More)
    }
}

fn fill(batch: &mut Packets, packet: &[u8], most: u64) {
    batch.clear();
    for _ in 0..most.min(BATCH as u64) {
        batch.push(packet);
    }
}

/// Two interfaces on one arbiter, and what feeds the first.
struct Actors {
    mesh: Mesh,
    feeder: portway::actors::Mail<Feed>,
}

impl Actors {
    fn start() -> Result<Self, Box<dyn Error>> {
        let mesh = Mesh::start(MeshConfig { arbiters: NonZeroUsize::new(1), ..MeshConfig::default() })?;
        let arrived = Arc::new(AtomicU64::new(0));
        let interface = |key: u8, other: u8, allowed: &str, at: Option<SocketAddr>| -> Result<_, Box<dyn Error>> {
            let socket = bind("127.0.0.1:0".parse()?)?;
            let address = socket.local_addr()?;
            let mut settings = Settings::new(&format!("wg{key}"), SecretKey::new([key; 32]));
            settings.addresses = vec![(IpAddr::from([10, 98, 0, key]), "10.98.0.0/24".parse()?)];
            settings.threading = Threading::Single { arbiter: 0 };
            let mut peer = PeerSettings::new(public_key(&SecretKey::new([other; 32])), vec![allowed.parse()?]);
            peer.endpoint = at;
            Ok((Interface::start(&mesh, socket, settings, vec![peer])?, address))
        };
        let (server, address) = interface(1, 2, "10.98.0.2/32", None)?;
        let (client, _) = interface(2, 1, "10.98.0.1/32", Some(address))?;
        let sink = arrived.clone();
        server.attach(move || Box::new(Sink(sink.clone())));
        let router = client.router();
        let make = move || Feeder {
            router,
            packet: packet(),
            arrived,
            batch: Packets::none(),
            sent: 0,
            until: 0,
            asked: None,
        };
        let feeder = mesh.spawn(Place::On(0), Spec::default(), make)?;
        Ok(Self { mesh, feeder })
    }

    fn run(&self, packets: u64) -> Result<f64, Box<dyn Error>> {
        Ok(self.feeder.ask_blocking(|reply| Feed::Send(packets, reply), SOON)?)
    }
}

/// The same without actors.
struct Bare {
    engines: [Boring; 2],
    sockets: [UdpSocket; 2],
    to: SocketAddr,
    routes: Routes,
    packet: Vec<u8>,
    batch: Packets,
    out: Packets,
    train: Train,
    trains: Vec<Train>,
}

impl Bare {
    fn start() -> Result<Self, Box<dyn Error>> {
        let engine = |key: u8, other: u8| {
            let material = Material {
                secret: SecretKey::new([key; 32]),
                peer: public_key(&SecretKey::new([other; 32])),
                preshared: None,
                keepalive: None,
                index: u32::from(key),
                seed: 1,
                rules: Rules::default(),
            };
            Boring::new(&material, no_limit(&material.secret), clock::now())
        };
        let (mut server, mut client) = (engine(1, 2), engine(2, 1));
        let (mut there, mut back) = (vec![0; ROOM], vec![0; ROOM]);
        let now = clock::now();
        let length = client.initiate(&mut there, now).map_err(|e| e.reason())?.ok_or("no initiation")?;
        let opened = server.open(&there[..length], &mut back, now).map_err(|e| e.reason())?;
        let Opened::Reply(length) = opened.1 else { return Err("no response".into()) };
        let opened = client.open(&back[..length], &mut there, now).map_err(|e| e.reason())?;
        if let Opened::Reply(length) = opened.1 {
            server.open(&there[..length], &mut back, now).map_err(|e| e.reason())?;
        }
        let sockets = [bind("127.0.0.1:0".parse()?)?, bind("127.0.0.1:0".parse()?)?];
        let to = sockets[0].local_addr()?;
        let [a, b] = sockets.map(|socket| UdpSocket::new(socket, &Options::default()));
        let mut routes = Routes::default();
        routes.insert("10.98.0.2/32".parse()?, 2);
        routes.insert("10.98.0.1/32".parse()?, 1);
        Ok(Self {
            engines: [server, client],
            sockets: [a?, b?],
            to,
            routes,
            packet: packet(),
            batch: Packets::default(),
            out: Packets::default(),
            train: Train::with_capacity(MOST_BYTES, to),
            trains: (0..AT_ONCE).map(|_| Train::with_capacity(ROOM, to)).collect(),
        })
    }

    fn run(&mut self, packets: u64) -> Result<f64, Box<dyn Error>> {
        let before = cpu();
        let (mut sent, mut arrived) = (0, 0);
        while arrived < packets {
            while sent < packets && sent - arrived < WINDOW {
                sent += self.send(packets - sent)?;
            }
            arrived += self.receive()?;
        }
        Ok(cpu() - before)
    }

    fn send(&mut self, most: u64) -> Result<u64, Box<dyn Error>> {
        let now = clock::now();
        fill(&mut self.batch, &self.packet, most);
        for packet in self.batch.iter() {
            let to = codec_inner::destination(packet).and_then(|to| self.routes.lookup(to));
            if to != Some(1) {
                return Err("no route".into());
            }
        }
        self.batch.for_each_mut(|packet| {
            codec_inner::clamp_mss(packet, MTU);
        });
        self.train.clear(self.to, None);
        for n in 0..self.batch.len() {
            let padded = self.batch.padded(n, MTU).ok_or("no packet")?;
            let engine = &mut self.engines[1];
            self.train.push(padded.len() + 32, 64, |room| match engine.seal(padded, room, now) {
                Ok(Sealed::Datagram(length)) => length,
                _ => 0,
            });
        }
        let mut gone = 0;
        while gone < self.train.bytes().len() {
            gone += self.sockets[1].try_send(&Transmit {
                destination: self.to,
                ecn: None,
                contents: &self.train.bytes()[gone..],
                segment_size: Some(self.train.segment()),
                src_ip: None,
            })?;
        }
        Ok(self.batch.len() as u64)
    }

    fn receive(&mut self) -> Result<u64, Box<dyn Error>> {
        let mut metas = [RecvMeta::default(); AT_ONCE];
        let received = {
            let mut rooms: Vec<IoSliceMut<'_>> =
                self.trains.iter_mut().map(|train| IoSliceMut::new(train.room())).collect();
            match self.sockets[0].try_recv(&mut rooms, &mut metas) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        };
        let now = clock::now();
        let mut arrived = 0;
        for (train, meta) in self.trains.iter_mut().zip(&metas).take(received) {
            train.received(meta.len, meta.stride, meta.addr, meta.dst_ip);
            self.out.clear();
            for datagram in train.iter() {
                let (engine, routes) = (&mut self.engines[0], &self.routes);
                self.out.push_with(datagram.len().max(LEAST_ROOM), |room| {
                    let Ok((_, Opened::Packet(length))) = engine.open(datagram, room, now) else { return 0 };
                    let packet = &mut room[..length];
                    let Ok(inner) = Inner::parse(packet) else { return 0 };
                    if routes.lookup(inner.source) != Some(2) || routes.lookup(inner.destination) != Some(1) {
                        return 0;
                    }
                    codec_inner::clamp_mss(packet, MTU);
                    length
                });
            }
            arrived += self.out.len() as u64;
            train.clear(self.to, None);
        }
        Ok(arrived)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let mib: u64 = words.next().map_or(Ok(8), |word| word.parse())?;
    let rounds: usize = words.next().map_or(Ok(1), |word| word.parse())?;
    let packets = (mib << 20) / MTU as u64;
    let gbit = (packets * MTU as u64 * 8) as f64 / 1e9;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let (actors, mut bare) = (Actors::start()?, Bare::start()?);
    // A handshake, for which no more packets wait than may, and buffers.
    actors.run(BATCH as u64)?;
    actors.run(1_000)?;
    bare.run(1_000)?;
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let (with, without) = (actors.run(packets)? / gbit, bare.run(packets)? / gbit);
        println!("actors {with:.3}, bare {without:.3} CPU s/Gbit: {:.3}", with / without);
        ratios.push(with / without);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    println!("actors cost {median:.3} x the bare loop, the median of {rounds}");
    actors.mesh.stop()?;
    Ok(())
}
