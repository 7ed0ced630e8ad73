//! The UDP relay: flows and their ends, trains, lengths, limits, servers that go, reload and drain.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use portway::gateway::{Builder, check};
use portway::transports::udp::{Options, RecvMeta, TRAIN, Transmit, UdpSocket as Batched};

use crate::gateway::{Binary, Running, get};
use crate::probe::{SOON, eventually, now, view, wait};

/// Answers every datagram with itself behind its own number, but those that begin with `quiet`. Its port is closed when it
/// is dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seen: Receiver<(SocketAddr, Vec<u8>)>,
}

impl Server {
    fn new(number: u8) -> Self {
        Self::at("127.0.0.1:0", number)
    }

    fn at(address: &str, number: u8) -> Self {
        let socket = UdpSocket::bind(address).expect("a port");
        let address = socket.local_addr().unwrap();
        let (stop, (tell, seen)) = (Arc::new(AtomicBool::new(false)), channel());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let _nobody_looks = tell.send((from, buffer[..length].to_vec()));
                if buffer[..length].starts_with(b"quiet") {
                    continue;
                }
                let answer = if length < 65_507 { [&[number], &buffer[..length]].concat() } else { buffer.clone() };
                let _gone = socket.send_to(&answer[..answer.len().min(65_507)], from);
            }
        });
        Self { address, stop, thread: Some(thread), seen }
    }

    fn next(&self) -> (SocketAddr, Vec<u8>) {
        self.seen.recv_timeout(SOON).expect("a datagram")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let any = UdpSocket::bind(SocketAddr::new(self.address.ip(), 0)).unwrap();
        any.send_to(b"stop", self.address).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A client, connected: it takes answers from the address it asked alone.
struct Client {
    socket: UdpSocket,
    count: u64,
}

impl Client {
    fn to(address: SocketAddr) -> Self {
        let from = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        Self::from(from, address)
    }

    fn from(from: &str, address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(from).expect("a port");
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { socket, count: 0 }
    }

    fn send(&self, content: &[u8]) {
        self.socket.send(content).expect("sent");
    }

    fn recv(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_535];
        let length = self.socket.recv(&mut buffer).expect("an answer");
        buffer.truncate(length);
        buffer
    }

    /// What comes within a moment, if anything does.
    fn hears(&self, time: Duration) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = vec![0; 65_535];
        let heard = self.socket.recv(&mut buffer);
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        heard.ok().map(|length| buffer[..length].to_vec())
    }

    /// One there and back; the number of the server that answered.
    fn works(&mut self) -> u8 {
        self.count += 1;
        let content = self.count.to_be_bytes();
        self.send(&content);
        let answer = self.recv();
        assert_eq!(answer[1..], content);
        answer[0]
    }

    /// As [`works`](Self::works), tried until there is an answer: of servers that are gone there is none.
    fn works_in_the_end(&mut self) -> u8 {
        let end = now() + SOON;
        loop {
            self.count += 1;
            let content = self.count.to_be_bytes();
            self.send(&content);
            match self.hears(Duration::from_millis(50)) {
                Some(answer) if answer[1..] == content => return answer[0],
                _ => assert!(now() < end, "no answer"),
            }
        }
    }
}

fn text(name: &str, listen: &str, servers: &[SocketAddr], more: &str, udp: &str) -> String {
    let list: Vec<_> = servers.iter().map(|server| format!("\"udp://{server}\"")).collect();
    let to = if servers.is_empty() { "service = \"echo\"\n".to_owned() } else { format!("upstream = \"{name}\"\n") };
    let upstream = format!("[[upstream]]\nname = \"{name}\"\nservers = [{}]\n{more}\n", list.join(", "));
    let listener = format!("[[listener]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"udp\"\n{to}{udp}\n");
    if servers.is_empty() { listener } else { upstream + &listener }
}

const HEAD: &str = "version = 1\n[runtime]\narbiters = 3\ndrain = \"10s\"\n";

/// A relay named `r` to these servers; `more` belongs to the upstream, `udp` to the listener.
fn start(servers: &[SocketAddr], more: &str, udp: &str) -> Running {
    Running::start(&format!("{HEAD}{}", text("r", "127.0.0.1:0", servers, more, udp)))
}

fn flows(running: &Running) -> usize {
    view(running.gateway().mesh()).of_kind("udp_relay").count()
}

fn counted(running: &Running, family: &str, reason: &str) -> u64 {
    running.totals().get(family, "r", reason)
}

/// Another address of loopback for each number.
fn source(number: u8) -> String {
    format!("127.0.0.{number}:0")
}

#[test]
fn datagrams_of_any_length_come_back_from_the_address_that_was_asked() {
    let (v4, v6) = (Server::at("127.0.0.1:0", 1), Server::at("[::1]:0", 2));
    for (listen, asked) in
        [("0.0.0.0:0", "127.0.0.9"), ("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "::1"), ("[::1]:0", "::1")]
    {
        for servers in [&[v4.address][..], &[v6.address], &[]] {
            let running = Running::start(&format!("{HEAD}{}", text("r", listen, servers, "", "")));
            let address = SocketAddr::new(asked.parse::<IpAddr>().unwrap(), running.address("r").port());
            let client = Client::to(address);
            for length in [0, 1, 100, 1_200, 1_472, 1_473, 9_000, 65_506] {
                let content = vec![length as u8; length];
                client.send(&content);
                let answer = client.recv();
                let number = usize::from(!servers.is_empty());
                assert_eq!(answer.len(), length + number, "{listen} {servers:?}");
                assert!(answer[number..] == content);
            }
            // The longest there is over IPv4.
            client.send(&[7; 65_507]);
            assert!(client.recv() == [7; 65_507]);
            assert_eq!(running.totals().family("udp_dropped"), 0);
            assert_eq!(flows(&running), 1);
        }
    }
}

#[test]
fn each_address_asked_is_a_flow_of_its_own() {
    let server = Server::new(1);
    let running = Running::start(&format!("{HEAD}{}", text("r", "0.0.0.0:0", &[server.address], "", "")));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    for asked in ["127.0.0.1", "127.0.0.2"] {
        let asked = SocketAddr::new(asked.parse().unwrap(), running.address("r").port());
        client.send_to(b"to whom?", asked).unwrap();
        assert_eq!(client.recv_from(&mut [0; 64]).unwrap(), (9, asked));
    }
    assert_ne!(server.next().0, server.next().0);
    assert_eq!(flows(&running), 2);
}

#[test]
fn fifty_clients_are_fifty_actors_on_the_arbiters_of_their_doors_until_they_are_idle() {
    let server = Server::new(1);
    let running = start(&[server.address], "", "[listener.udp]\nidle_answered = \"2s\"\n");
    let mut clients: Vec<_> = (0..50).map(|_| Client::to(running.address("r"))).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.works(), 1));
    let here = view(running.gateway().mesh());
    let doors: BTreeMap<_, _> = here.of_kind("udp_door").map(|door| (door.id, door.arbiter)).collect();
    assert_eq!(doors.len(), 3);
    let mut by_arbiter = BTreeMap::<_, usize>::new();
    for flow in here.of_kind("udp_relay") {
        assert!(flow.turns > 0 && flow.handled > 0);
        assert_eq!(doors[&flow.parent.expect("a door")], flow.arbiter);
        *by_arbiter.entry(flow.arbiter).or_default() += 1;
    }
    assert_eq!(by_arbiter.values().sum::<usize>(), 50);
    assert!(by_arbiter.len() > 1, "the kernel spreads them: {by_arbiter:?}");
    let row = wait(running.gateway().overview()).listeners.remove(0);
    assert_eq!((row.connections, row.accepted, row.refused, row.protocol.as_str()), (50, 50, 0, "udp"));
    eventually("they are forgotten", || flows(&running) == 0);
    running.counts("connections_closed", "r", "idle", 50);
    assert_eq!(clients[7].works(), 1, "and made again");
    assert_eq!(wait(running.gateway().overview()).listeners[0].connections, 1);
}

#[test]
fn a_thousand_flows_lose_nothing() {
    let server = Server::new(1);
    let running = start(&[server.address], "", "[listener.limits]\nhalf_open = 2000\n");
    let mut clients: Vec<_> = (0..1_000).map(|_| Client::to(running.address("r"))).collect();
    for _ in 0..5 {
        for group in clients.chunks_mut(25) {
            for client in &mut *group {
                client.count += 1;
                client.send(&client.count.to_be_bytes());
            }
            for client in group {
                assert_eq!(client.recv()[1..], client.count.to_be_bytes());
            }
        }
    }
    assert_eq!(flows(&running), 1_000);
    for way in ["from_clients", "to_servers", "from_servers", "to_clients"] {
        running.counts("udp_datagrams", "r", way, 5_000);
    }
    let totals = running.totals();
    assert_eq!((totals.family("udp_dropped"), totals.family("udp_kernel_dropped")), (0, 0));
    assert_eq!((counted(&running, "bytes_in", ""), counted(&running, "bytes_out", "")), (40_000, 45_000));
}

/// Answers trains with trains.
fn train_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        on_loop(async move {
            let socket = Batched::new(socket, &Options::default()).unwrap();
            let mut buffer = vec![0; TRAIN];
            loop {
                let mut meta = [RecvMeta::default()];
                let received =
                    std::future::poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
                if received.await.is_ok() {
                    let contents = &buffer[..meta[0].len];
                    let back = train(meta[0].addr, contents, meta[0].stride);
                    assert_eq!(socket.try_send(&back).unwrap(), contents.len());
                }
            }
        })
    });
    address
}

fn train(destination: SocketAddr, contents: &[u8], stride: usize) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size: Some(stride), src_ip: None }
}

fn on_loop<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn trains_stay_trains_from_end_to_end() {
    const ROUNDS: usize = 20;
    let running = start(&[train_server()], "", "");
    let address = running.address("r");
    on_loop(async {
        let client = Batched::new(UdpSocket::bind("127.0.0.1:0").unwrap(), &Options::default()).unwrap();
        assert!(client.gso(), "this machine has no offload");
        let mut buffer = vec![0; TRAIN];
        for round in 0..ROUNDS {
            let contents: Vec<u8> = (0..40 * 1_200 + 77).map(|at| (at / 1_200 + round) as u8).collect();
            assert_eq!(client.try_send(&train(address, &contents, 1_200)).unwrap(), contents.len());
            let mut back = Vec::new();
            while back.len() < contents.len() {
                let mut meta = [RecvMeta::default()];
                let received =
                    std::future::poll_fn(|cx| client.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
                tokio::time::timeout(SOON, received).await.expect("in time").unwrap();
                assert_eq!((meta[0].addr, meta[0].stride.min(1_200)), (address, meta[0].stride));
                back.extend_from_slice(&buffer[..meta[0].len]);
            }
            assert!(back == contents);
        }
    });
    for way in ["from_clients", "to_servers", "from_servers", "to_clients"] {
        let (datagrams, calls) = (counted(&running, "udp_datagrams", way), counted(&running, "udp_calls", way));
        assert_eq!(datagrams, 41 * ROUNDS as u64, "{way}");
        assert!(calls <= 4 * ROUNDS as u64, "{calls} system calls for {datagrams} datagrams {way}");
    }
    assert_eq!(running.totals().family("udp_dropped"), 0);
}

#[test]
fn without_offload_each_datagram_goes_alone() {
    let server = Server::new(1);
    let running = start(&[server.address], "", "[listener.udp]\ngso = false\n");
    let mut client = Client::to(running.address("r"));
    (0..20).for_each(|_| assert_eq!(client.works(), 1));
    for way in ["to_servers", "to_clients"] {
        assert_eq!((counted(&running, "udp_datagrams", way), counted(&running, "udp_calls", way)), (20, 20));
    }
}

#[test]
fn sources_keep_their_servers_when_one_goes() {
    // Addresses that nobody else binds to: the port of the one that goes stays closed.
    let mut servers: Vec<_> = (0..4).map(|n| Server::at("127.53.1.1:0", n)).collect();
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let more = "balance = \"hash\"\n[upstream.health]\neject_after = 1\neject_for = \"10m\"\n";
    let running = start(&addresses, more, "");
    let mut clients: Vec<_> = (1..=60).map(|n| Client::from(&source(n), running.address("r"))).collect();
    let before: Vec<u8> = clients.iter_mut().map(Client::works).collect();
    // Another port of the same source.
    for (n, server) in (1..=60).zip(&before) {
        assert_eq!(Client::from(&source(n), running.address("r")).works(), *server);
    }
    let gone = before[0];
    drop(servers.remove(usize::from(gone)));
    for (client, server) in clients.iter_mut().zip(&before) {
        if *server == gone {
            assert_ne!(client.works_in_the_end(), gone);
        } else {
            assert_eq!(client.works(), *server, "the others lose nothing");
        }
    }
    assert_eq!(
        counted(&running, "connections_closed", "refused"),
        before.iter().filter(|n| **n == gone).count() as u64
    );
    let ejected = wait(running.gateway().overview()).servers.iter().filter(|row| row.ejected_s.is_some()).count();
    assert_eq!(ejected, 1);
}

#[test]
fn a_server_that_is_not_there_is_left_out_and_the_next_datagram_goes_elsewhere() {
    let gone = Server::new(0).address;
    let server = Server::new(1);
    let more = "[upstream.health]\neject_after = 1\neject_for = \"10m\"\n";
    let running = start(&[gone, server.address], more, "");
    let mut client = Client::to(running.address("r"));
    client.send(b"to nobody");
    running.counts("connections_closed", "r", "refused", 1);
    running.counts("upstream_failures", "r", "refused", 1);
    let rows = wait(running.gateway().overview()).servers;
    assert_eq!(rows.iter().map(|row| row.ejected_s.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!((client.works(), client.works()), (1, 1));
    assert_eq!(counted(&running, "udp_datagrams", "to_servers"), 3);
}

#[test]
fn the_first_datagram_of_a_flow_says_who_its_client_is() {
    use portway::transports::relay::Header;

    for (listen, server, length) in [("127.0.0.1:0", "127.0.0.1:0", 28), ("[::1]:0", "127.0.0.1:0", 52)] {
        let server = Server::at(server, 1);
        let udp = "[listener.udp]\nproxy_out = \"v2\"\n";
        let running = Running::start(&format!("{HEAD}{}", text("r", listen, &[server.address], "", udp)));
        for first in [&b"hello"[..], b""] {
            let client = Client::to(running.address("r"));
            let source = client.socket.local_addr().unwrap();
            let header = Header::Proxied { source, destination: running.address("r") };
            // With the header it is too long: dropped, and the next one has it.
            client.send(&[7; 65_500]);
            client.send(first);
            let (_, seen) = server.next();
            assert_eq!(Header::decode(&seen), Ok(Some((header, length))), "{}", seen.escape_ascii());
            assert_eq!((seen[13] & 0x0f, &seen[length..]), (2, first), "of datagrams");
            assert_eq!(client.recv()[1..], seen);
            client.send(b"again");
            assert_eq!(server.next().1, b"again");
            assert_eq!(client.recv()[1..], *b"again");
        }
        running.counts("udp_dropped", "r", "too_long", 2);
    }
}

#[test]
fn each_limit_refuses_one_more_and_a_neighbour_loses_nothing() {
    let refused = |reason: &str, limits: &str, offends: &dyn Fn(SocketAddr) -> Vec<Client>| {
        let server = Server::new(1);
        let running = start(&[server.address], "", limits);
        let mut neighbour = Client::from(&source(7), running.address("r"));
        neighbour.works();
        let kept = offends(running.address("r"));
        running.counts("connections_refused", "r", reason, 1);
        running.counts("udp_dropped", "r", "no_flow", 1);
        (0..10).for_each(|_| assert_eq!(neighbour.works(), 1));
        drop(kept);
    };
    let say = |from: u8, address, what: &[u8]| {
        let client = Client::from(&source(from), address);
        client.send(what);
        client
    };
    refused("limit_connections", "limits.connections = 1\n", &|to| vec![say(8, to, b"one too many")]);
    refused("limit_per_source", "limits.per_source = 1\n", &|to| vec![say(7, to, b"the neighbour's source")]);
    refused("limit_half_open", "limits.half_open = 1\n", &|to| vec![say(8, to, b"quiet"), say(8, to, b"quiet")]);
}

#[test]
fn each_bound_of_a_flow_drops_what_is_beyond_it_and_counts() {
    for (udp, reason, first, second) in
        [("max_datagram = 1000", "too_long", 1_000, 1_001), ("bytes_per_second = 1", "flow_rate", 65_500, 1_000)]
    {
        let server = Server::new(1);
        let running = start(&[server.address], "", &format!("[listener.udp]\n{udp}\n"));
        let client = Client::to(running.address("r"));
        // Its answer has one byte more, so nothing comes back of what is too long.
        client.send(&vec![1; first - 1]);
        assert_eq!(client.recv().len(), first);
        client.send(&vec![2; second]);
        running.counts("udp_dropped", "r", reason, 1);
        assert_eq!((server.next().1.len(), server.seen.try_recv().ok()), (first - 1, None));
        let mut neighbour = Client::to(running.address("r"));
        (0..10).for_each(|_| assert_eq!(neighbour.works(), 1));
    }
    let server = Server::new(1);
    let running = start(&[server.address], "", "[listener.udp]\npackets_per_second = 1\nmax_datagram = 100\n");
    let client = Client::to(running.address("r"));
    (0..74).for_each(|_| client.send(b"quiet"));
    // 64 at once, and one for each second this takes.
    eventually("all are judged", || {
        let dropped = counted(&running, "udp_dropped", "flow_rate");
        dropped > 0 && dropped + counted(&running, "udp_datagrams", "to_servers") == 74
    });
    assert!((64..=74).contains(&counted(&running, "udp_datagrams", "to_servers")));
    // An answer beyond the bound is dropped as well.
    let mut other = Client::to(running.address("r"));
    other.works();
    other.send(&[3; 100]);
    running.counts("udp_dropped", "r", "too_long", 1);
    assert_eq!(other.hears(Duration::from_millis(20)), None);
}

#[test]
fn a_flood_from_one_source_leaves_its_neighbour_alone() {
    let server = Server::new(1);
    let running = start(&[server.address], "", "[listener.limits]\nper_source = 10\nhalf_open = 20\n");
    let mut neighbour = Client::from(&source(3), running.address("r"));
    neighbour.works();
    let (mut sent, mut first) = (0, Vec::new());
    for round in 0..100 {
        for _ in 0..20 {
            let client = Client::from(&source(2), running.address("r"));
            client.send(b"quiet");
            sent += 1;
            if round == 0 {
                // Ten of these are let in: their ports must not come again.
                first.push(client);
            }
        }
        assert_eq!(neighbour.works(), 1);
        // The neighbour's answer says nothing of the other door, whose kernel buffer must not run over.
        running.counts("connections_refused", "r", "limit_per_source", sent - 10);
    }
    assert_eq!(flows(&running), 11);
    assert_eq!(running.totals().family("udp_kernel_dropped"), 0);
}

#[test]
fn any_datagrams_pass_unchanged() {
    let server = Server::new(9);
    let running = start(&[server.address], "", "");
    let client = Client::to(running.address("r"));
    let mut seed = 17_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for _ in 0..500 {
        let length = [next() % 20, next() % 2_000, next() % 65_507][next() % 3];
        let content: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        client.send(&content);
        assert!(client.recv()[1..] == content, "{length} bytes");
    }
    assert_eq!(running.totals().family("udp_dropped"), 0);
}

#[test]
fn a_flow_without_an_answer_is_forgotten_sooner_and_the_log_says_how_it_went() {
    let server = Server::new(1);
    let udp = "[listener.udp]\nidle = \"200ms\"\nidle_answered = \"700ms\"\n";
    let mut binary = Binary::start(&format!("{HEAD}{}", text("r", "127.0.0.1:0", &[server.address], "", udp)));
    let address = binary.address("r");
    let silent = Client::to(address);
    silent.send(b"quiet");
    silent.send(b"quiet");
    let line = binary.says("reason=\"unanswered\"");
    let mut talks = Client::to(address);
    talks.works();
    let other = binary.says("reason=\"idle\"");
    for (line, parts) in [
        (line, ["datagrams_up=2", "bytes_up=10", "datagrams_down=0", "bytes_down=0"]),
        (other, ["datagrams_up=1", "bytes_up=8", "datagrams_down=1", "bytes_down=9"]),
    ] {
        for part in parts.into_iter().chain(["relayed", "listener=r", "upstream=r"]) {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(line.contains(&format!("server={}", server.address)), "{line}");
    }
}

#[test]
fn a_gateway_without_descriptors_refuses_flows_and_serves_those_it_has() {
    let server = Server::new(1);
    let admin = crate::gateway::free();
    let head = format!("version = 1\n[admin]\nlisten = \"{admin}\"\n[runtime]\narbiters = 2\n");
    let udp = "[listener.udp]\nidle = \"300ms\"\nidle_answered = \"1m\"\n";
    let text = text("r", "127.0.0.1:0", &[server.address], "", udp);
    let mut binary = Binary::start_limited(&format!("{head}{text}"), 64);
    let address = binary.address("r");
    binary.says("running");
    let mut neighbour = Client::to(address);
    neighbour.works();
    let refused = || {
        let (status, page) = get(admin, "/metrics");
        assert_eq!(status, 200);
        let name = "portway_connections_refused_total{listener=\"r\",reason=\"no_socket\"} ";
        page.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned)).map_or(0, |n| n.parse().unwrap())
    };
    assert_eq!(refused(), 0);
    let mut sent = 0;
    let silent: Vec<_> = (0..100)
        .map(|_| {
            let client = Client::to(address);
            client.send(b"quiet");
            sent += 1;
            neighbour.works();
            client
        })
        .collect();
    // Descriptors are free again when flows without an answer end.
    eventually("a new one is served", || {
        let client = Client::to(address);
        client.send(b"new");
        client.hears(Duration::from_millis(100)).is_some()
    });
    assert!((1..100).contains(&refused()), "{} of {sent}", refused());
    neighbour.works();
    drop(silent);
}

fn reload(running: &Running, text: &str) -> portway::gateway::Reloaded {
    let config =
        check::parse("test.toml", text, &check::Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)));
    running.gateway().reload(config).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_reload_keeps_changes_and_removes_listeners() {
    let (one, two) = (Server::new(1), Server::new(2));
    let [a, b, c] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string());
    let with = |b_servers: &[SocketAddr], b_more: &str, rest: &str| {
        let head = format!("{HEAD}{}", text("a", &a, &[one.address], "", ""));
        head + &text("b", &b, b_servers, "", b_more) + rest
    };
    let third = text("c", &c, &[one.address], "", "");
    let running = Running::start(&with(&[one.address], "", &third));
    let to = |listener: &str| Client::to(running.address(listener));
    let (mut on_a, mut on_b, mut on_c) = (to("a"), to("b"), to("c"));
    assert_eq!([&mut on_a, &mut on_b, &mut on_c].map(Client::works), [1; 3]);
    let address = running.address("c");
    // Nothing differs.
    let done = reload(&running, &with(&[one.address], "", &third));
    assert_eq!((done.kept.len(), done.changed.len(), done.removed.len()), (3, 0, 0));
    // Another upstream, a limit, and one less.
    let done = reload(&running, &with(&[two.address], "limits.connections = 2\n", ""));
    assert_eq!((done.kept, done.changed, done.removed), (vec!["a".into()], vec!["b".into()], vec!["c".into()]));
    assert_eq!(done.added, Vec::<String>::new());
    assert_eq!([&mut on_a, &mut on_b, &mut on_c].map(Client::works), [1; 3], "flows that exist go on");
    let mut new = to("b");
    assert_eq!(new.works(), 2, "new ones go by what is new");
    to("b").send(b"a third");
    running.counts("connections_refused", "b", "limit_connections", 1);
    Client::to(address).send(b"too late");
    running.counts("connections_refused", "c", "closing", 1);
    // Its flow is idle for two seconds, then its port is free; until then it was not.
    assert_eq!(UdpSocket::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(on_c.works(), 1);
    eventually("the port is free", || UdpSocket::bind(address).is_ok());
    running.counts("connections_closed", "c", "drained", 1);
    assert_eq!([&mut on_a, &mut on_b].map(Client::works), [1; 2]);
    assert_eq!(running.gateway().not_ready(), None);
    // And it may come again.
    let done = reload(&running, &with(&[two.address], "limits.connections = 2\n", &third));
    assert_eq!(done.added, ["c"]);
    assert_eq!(to("c").works(), 1);
    assert_eq!(running.totals().family("udp_dropped"), 2, "the two that were refused");
}

#[test]
fn a_reload_that_is_refused_changes_nothing() {
    let (one, two) = (Server::new(1), Server::new(2));
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let running = Running::start(&format!("{HEAD}{}", text("a", &listen, &[one.address], "", "")));
    let mut client = Client::to(running.address("a"));
    assert_eq!(client.works(), 1);
    let text = format!("{HEAD}{}", text("a", &listen, &[two.address], "", ""))
        + &text("b", &taken.local_addr().unwrap().to_string(), &[two.address], "", "");
    let config = check::parse("test.toml", &text, &check::Known::default()).unwrap();
    let error = running.gateway().reload(config).unwrap_err().to_string();
    assert!(error.contains("`b` cannot listen on") && error.contains("in use"), "{error}");
    assert_eq!((client.works(), Client::to(running.address("a")).works()), (1, 1));
    assert_eq!((running.gateway().listeners().len(), running.gateway().not_ready()), (1, None));
}

#[test]
fn a_port_in_use_is_told_with_its_place() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = format!("{HEAD}{}", text("r", &taken.local_addr().unwrap().to_string(), &[], "", ""));
    let config = check::parse("test.toml", &text, &check::Known::default()).unwrap();
    let error = Builder::new().start(config).unwrap_err().to_string();
    assert!(error.starts_with("test.toml:7:10: listener `r` cannot listen on"), "{error}");
}

#[test]
fn a_drain_lets_known_flows_finish_and_nobody_in() {
    let server = Server::new(1);
    let running = start(&[server.address], "", "");
    let address = running.address("r");
    let mut known = Client::to(address);
    known.works();
    let began = now();
    let report = std::thread::scope(|scope| {
        let draining = scope.spawn(|| wait(running.gateway().drain()));
        eventually("it drains", || running.gateway().not_ready().is_some());
        let stranger = Client::to(address);
        eventually("nobody is let in", || {
            stranger.send(b"quiet");
            counted(&running, "connections_refused", "closing") > 0
        });
        while now() < began + Duration::from_millis(2_500) {
            assert_eq!(known.works(), 1, "while it talks it is served");
            std::thread::sleep(Duration::from_millis(20));
        }
        draining.join().unwrap()
    });
    assert!(report.complete(), "{report:?}");
    assert!(report.took >= Duration::from_millis(2_500) && report.took < Duration::from_secs(9), "{report:?}");
    assert!(counted(&running, "connections_closed", "drained") >= 1);
    assert_eq!(flows(&running), 0);
}

#[test]
fn streams_are_balanced_by_source_too() {
    let servers: Vec<_> = (0..3_u8)
        .map(|number| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _gone = stream.and_then(|mut stream| stream.write_all(&[number]));
                }
            });
            format!("\"{address}\"")
        })
        .collect();
    let running = Running::start(&format!(
        "{HEAD}[[upstream]]\nname = \"app\"\nservers = [{}]\nbalance = \"hash\"\n\
         [[listener]]\nname = \"r\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"relay\"\nupstream = \"app\"\n",
        servers.join(", ")
    ));
    let ask = |from: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&source(from).parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&running.address("r").into()).unwrap();
        let mut number = [0];
        std::net::TcpStream::from(socket).read_exact(&mut number).unwrap();
        number[0]
    };
    let mut met = BTreeMap::<u8, usize>::new();
    for from in 1..=30 {
        let first = ask(from);
        assert_eq!([ask(from), ask(from)], [first; 2]);
        *met.entry(first).or_default() += 1;
    }
    assert_eq!(met.len(), 3, "{met:?}");
}
