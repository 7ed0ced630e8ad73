//! Too much of something on real sockets: a connection that floods its arbiter, full mailboxes on the way in, peers that
//! do not read. Each is counted, bounded, and costs a neighbour nothing.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use portway::transports::quic::{
    Application, Applications, Connection, Datagram, Echo, Event, Priority, QuicClient, Session, StreamKind,
};

use crate::gateway::{Binary, free, get};
use crate::probe::{SOON, eventually, eventually_within, mesh, now, stop, wait};
use crate::quic::{Pair, echo, round_trip};
use crate::quic_gateway::{Clients, ECHO, exchange, listening, pattern};
use crate::quic_moving::Translator;
use crate::quic_strangers::initial;

/// A client on a mesh of its own, whose load is not that of the server's arbiters.
struct Elsewhere {
    mesh: portway::actors::Mesh,
    client: QuicClient,
}

impl Elsewhere {
    fn new(change: impl FnOnce(&mut portway::transports::quic::ClientSettings)) -> Self {
        let mesh = mesh(1);
        let mut settings = portway::transports::quic::ClientSettings::new("elsewhere");
        change(&mut settings);
        let client = QuicClient::start(&mesh, settings).expect("a client");
        Self { mesh, client }
    }

    async fn connect(&self, pair: &Pair) -> Connection {
        self.client.connect(pair.address(), pair.tls.clone()).await.expect("connected")
    }

    fn end(self) {
        self.client.stop();
        wait(self.client.stopped());
        stop(&self.mesh);
    }
}

/// How long round trips take, one after the other, in order.
async fn round_trips(connection: &Connection, count: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..count {
        let began = now();
        round_trip(connection, Bytes::from(vec![9; 1_000])).await;
        took.push(now().duration_since(began));
    }
    took.sort_unstable();
    took
}

#[test]
fn a_connection_that_floods_its_arbiter_leaves_its_neighbour_its_turns() {
    let pair = Pair::new(1, echo());
    let (flood, calm) = (Elsewhere::new(|_| ()), Elsewhere::new(|_| ()));
    let neighbour = wait(calm.connect(&pair));
    let alone = wait(round_trips(&neighbour, 100));
    let over = Arc::new(AtomicBool::new(false));
    let (ended, moved) = (over.clone(), Arc::new(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let moving = moved.clone();
        let (pair, flood) = (&pair, &flood);
        scope.spawn(move || {
            wait(async {
                let greedy = flood.connect(pair).await;
                let streams = (0..8).map(|_| async {
                    while !ended.load(Ordering::SeqCst) {
                        // As fast as it can: streams both ways, and datagrams that nobody waits for.
                        round_trip(&greedy, Bytes::from(vec![1; 1_000_000])).await;
                        moving.fetch_add(1, Ordering::SeqCst);
                        for _ in 0..100 {
                            let _full = greedy.cast_datagram(Datagram::new(Bytes::from(vec![2; 1_000])));
                        }
                    }
                });
                futures_util::future::join_all(streams).await;
            });
        });
        eventually("the flood is under way", || moved.load(Ordering::SeqCst) > 0);
        let loaded = wait(round_trips(&neighbour, 200));
        let before = moved.load(Ordering::SeqCst);
        eventually("the flood has its turns too", || moved.load(Ordering::SeqCst) > before);
        over.store(true, Ordering::SeqCst);
        // A turn of the other is a few trains; on one CPU the three threads take turns of their own. Not a figure: what
        // a starved connection would have is seconds.
        let (median, worst) = (loaded[100], loaded[199]);
        assert!(median < alone[50] * 20 + Duration::from_millis(100), "{median:?} against {:?} alone", alone[50]);
        assert!(worst < Duration::from_secs(5), "{worst:?}");
    });
    assert!(neighbour.end().is_none(), "it lost nothing");
    drop(neighbour);
    flood.end();
    calm.end();
    pair.end();
}

/// Packets for a connection that is busy are bounded in bytes; what is beyond is dropped, counted, and sent again.
#[test]
fn a_full_inbox_is_counted_and_costs_time_alone() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        echo(),
        |server| {
            // A first window that is many times what the mailbox takes.
            (server.transport.inbox, server.transport.stream_window) = (64 << 10, 4 << 20);
            server.transport.window = 16 << 20;
        },
        |_| (),
    );
    let other = Elsewhere::new(|client| {
        client.transport.initial_window = 2_000;
        client.transport.pacing = false;
    });
    let neighbour = wait(pair.connect());
    let connection = wait(other.connect(&pair));
    let dropped = || pair.counter("quic_packets_dropped", "q", "inbox_full");
    let end = now() + SOON;
    while dropped() == 0 && now() < end {
        wait(round_trip(&connection, Bytes::from(vec![1; 3_000_000])));
        wait(round_trip(&neighbour, Bytes::from(vec![9; 50_000])));
    }
    assert!(dropped() > 0, "the mailbox was never full");
    assert!(connection.end().is_none() && neighbour.end().is_none());
    drop((connection, neighbour));
    other.end();
    pair.end();
}

/// Each stream in one direction holds its arbiter up until the test lets go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Holds>, Condvar)>);

/// How many holds have begun, and how many of them were let go.
#[derive(Default)]
struct Holds {
    begun: usize,
    over: usize,
}

impl Gate {
    fn applications(&self) -> Option<Applications> {
        let gate = self.clone();
        Some(Arc::new(move |_| Some(Box::new(Gated(gate.clone(), Echo::default())))))
    }

    fn begun(&self) -> usize {
        self.0.0.lock().begun
    }

    /// Lets all up to this one go.
    fn release(&self, over: usize) {
        self.0.0.lock().over = over;
        self.0.1.notify_all();
    }
}

struct Gated(Gate, Echo);

impl Application for Gated {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        let gated = matches!(event, Event::Readable(stream) if stream.kind() == StreamKind::Unidirectional);
        if gated {
            let (holds, changed) = &*self.0.0;
            let mut holds = holds.lock();
            holds.begun += 1;
            let own = holds.begun;
            while holds.over < own {
                changed.wait(&mut holds);
            }
        } else {
            self.1.on(event, session);
        }
    }
}

/// An arbiter that is late lets nobody in until it is not; who is inside waits and loses nothing.
#[test]
fn an_arbiter_that_is_late_takes_nobody_new() {
    let gate = Gate::default();
    let pair = Pair::with(1, "127.0.0.1:0", gate.applications(), |_| (), |_| ());
    let clients = Elsewhere::new(|_| ());
    let neighbour = wait(clients.connect(&pair));
    wait(round_trip(&neighbour, Bytes::from("hello")));
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a port");
    stranger.connect(pair.address()).expect("connected");
    let dropped = |reason: &str| {
        let totals = crate::probe::view(&pair.mesh).totals;
        (totals.get("quic_packets_dropped", "q", reason), totals.family("quic_packets_dropped"))
    };
    let before = dropped("overload");
    // Held up again and again, until it has told how late it was the time before.
    let mut streams = Vec::new();
    for hold in 1.. {
        let stream = wait(neighbour.open_uni(Priority::default())).expect("a stream");
        wait(stream.write("hold")).expect("accepted");
        streams.push(stream);
        if hold > 1 {
            // The next is there already when this one is let go.
            gate.release(hold - 1);
        }
        eventually("its arbiter is held up", || gate.begun() == hold);
        let began = now();
        eventually("it is late", || now() > began + Duration::from_millis(250));
        // Nothing changes it as long as the hold goes on. What asks next has waited for most of it.
        if pair.mesh.delay(0) > Duration::from_millis(60) {
            break;
        }
        assert!(hold < 20, "nobody measures how late it is");
    }
    stranger.send(&initial(&[7; 8], &[], 1_200)).expect("sent");
    gate.release(usize::MAX);
    eventually("it is counted", || dropped("overload").0 > before.0);
    wait(round_trip(&neighbour, Bytes::from(vec![9; 50_000])));
    assert_eq!(dropped("overload"), (before.0 + 1, before.1 + 1));
    assert_eq!(pair.counter("quic_connections_opened", "q", ""), 1, "the neighbour's alone");
    eventually("it is on time again", || pair.mesh.delay(0) < Duration::from_millis(50));
    let newcomer = wait(clients.connect(&pair));
    wait(round_trip(&newcomer, Bytes::from("let in")));
    drop((streams, neighbour, newcomer));
    clients.end();
    pair.end();
}

/// A packet of no connection that names this arbiter.
fn naming(arbiter: usize) -> Vec<u8> {
    let mut packet = vec![0x40; 1_200];
    packet[1] = arbiter as u8;
    packet
}

#[test]
fn a_full_way_between_arbiters_is_counted_and_costs_a_neighbour_nothing() {
    let gate = Gate::default();
    // Without the kernel's steering a socket is chosen by addresses.
    let patient = Duration::from_secs(300);
    let change = |server: &mut portway::transports::quic::ServerSettings| {
        server.steer = false;
        server.transport.idle_timeout = patient;
    };
    let pair = Pair::with(2, "127.0.0.1:0", gate.applications(), change, |_| ());
    let clients = Elsewhere::new(|client| client.transport.idle_timeout = patient);
    let forwarded = || pair.counter("quic_forwarded", "q", "");
    // A connection lives where its first packet said, and its packets come by the socket that the kernel chose. The
    // neighbour is one whose packets come where it lives.
    let neighbour = loop {
        let connection = wait(clients.connect(&pair));
        wait(round_trip(&connection, Bytes::from("where am I?")));
        let before = forwarded();
        wait(round_trip(&connection, Bytes::from("and now?")));
        if forwarded() == before {
            break connection;
        }
    };
    let arbiters = || -> Vec<usize> { wait(pair.server.connections(100)).iter().map(|info| info.arbiter).collect() };
    eventually("the others have ended", || arbiters().len() == 1);
    let busy = 1 - arbiters()[0];
    // A stranger whose packets reach the neighbour's arbiter and name the other one.
    let socket = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.connect(pair.address()).expect("connected");
        let before = (forwarded(), pair.counter("quic_packets_dropped", "q", "unknown_connection"));
        // Too short to be answered.
        socket.send(&naming(busy)[..21]).expect("sent");
        eventually("it has come", || pair.counter("quic_packets_dropped", "q", "unknown_connection") > before.1);
        if forwarded() > before.0 {
            break socket;
        }
    };
    let network = Translator::start(pair.address());
    let gated = loop {
        let connection = wait(clients.client.connect(network.address, pair.tls.clone())).expect("connected");
        if arbiters().contains(&busy) {
            break connection;
        }
    };
    wait(async {
        let stream = gated.open_uni(Priority::default()).await.expect("a stream");
        stream.write("hold").await.expect("accepted");
    });
    eventually("its arbiter is held up", || gate.begun() == 1);
    // Nor is it asked again and again whether it is there.
    network.cut.store(true, Ordering::SeqCst);

    // The one that is held up says nothing of its counters, which makes each look slow; these are of the other.
    let full = || pair.counter("quic_packets_dropped", "q", "forward_full");
    let end = now() + SOON * 3;
    while full() == 0 && now() < end {
        for _ in 0..50 {
            for _ in 0..200 {
                socket.send(&naming(busy)).expect("sent");
            }
            wait(round_trip(&neighbour, Bytes::from(vec![9; 10_000])));
        }
    }
    let before = full();
    assert!(before > 0, "10,000 packets were not enough");
    // One more is one more.
    socket.send(&naming(busy)).expect("sent");
    wait(round_trip(&neighbour, Bytes::from(vec![9; 50_000])));
    assert_eq!(full(), before + 1);

    network.cut.store(false, Ordering::SeqCst);
    gate.release(usize::MAX);
    wait(round_trip(&gated, Bytes::from("it goes on")));
    drop((gated, neighbour));
    clients.end();
    pair.end();
}

/// A server that sends without end and clients that read nothing cost their credit, in a process of its own.
#[test]
fn clients_that_do_not_read_cost_no_memory_beyond_their_credit() {
    const CLIENTS: usize = 8;
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endless = format!("{}", upstream.local_addr().expect("its address"));
    let sent = Arc::new(AtomicU64::new(0));
    let counts = sent.clone();
    std::thread::spawn(move || {
        for stream in upstream.incoming() {
            let (mut stream, sent) = (stream.expect("a connection"), counts.clone());
            std::thread::spawn(move || {
                while stream.write_all(&[7; 64 << 10]).is_ok() {
                    sent.fetch_add(64 << 10, Ordering::SeqCst);
                }
            });
        }
    });
    let route = "[[listener.route]]\nalpn = \"app\"\nupstream = \"app\"\n[[upstream]]\nname = \"app\"\n";
    let config = listening(1, &format!("{route}servers = [\"{endless}\"]\n"));
    let mut binary = Binary::start(&config);
    let address = binary.address("q");
    let clients = Clients::new();
    let open = || {
        wait(async {
            let connection = clients.connect(address, "app").await;
            let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
            send.write("more").await.expect("accepted");
            (connection, send, receive)
        })
    };
    // What is paid once; and one that reads all the while.
    let reader = open();
    assert!(wait(reader.2.read(64 << 10)).expect("alive").is_some());
    let before = binary.resident();
    let idle: Vec<_> = (0..CLIENTS).map(|_| open()).collect();
    // Nothing more is sent when all that may wait does.
    let (mut last, mut since) = (0, now());
    eventually("the server is held up", || {
        let so_far = sent.load(Ordering::SeqCst);
        if so_far != last {
            (last, since) = (so_far, now());
        }
        now().duration_since(since) > Duration::from_secs(1)
    });
    let grown = binary.resident().saturating_sub(before);
    // What may wait to be sent on a stream, what was received from TCP and a connection's own.
    let most = (CLIENTS + 1) * (2 << 20) + (8 << 20);
    assert!(grown < most, "{grown} bytes more for {CLIENTS} who do not read, {last} sent");
    let mut read = 0;
    wait(async {
        while read < 20_000_000 {
            read += reader.2.read(1 << 20).await.expect("alive").expect("without end").len();
        }
    });
    let grown = binary.resident().saturating_sub(before);
    assert!(grown < most, "{grown} bytes more after {read} for one who reads");
    drop((idle, reader, clients));
}

/// As many clients as a test has the time for, which say nothing more once they are in: each is an actor on its arbiter
/// that holds little memory, and nothing is left of them.
#[test]
fn thousands_of_idle_connections_are_as_many_actors_and_hold_little_memory() {
    const MANY: usize = 2_000;
    /// Bytes of a connection, by the resident memory of a process that does nothing else. A release build takes 32 KiB.
    const EACH: usize = 128 << 10;
    let admin = free();
    let text = listening(2, &format!("{ECHO}[admin]\nlisten = \"{admin}\"\n"));
    let mut server = Binary::start(&text);
    let address = server.address("q");
    let clients = Clients::new();
    let neighbour = wait(clients.connect(address, "echo"));
    let actors = || {
        let metrics = get(admin, "/metrics").1;
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("portway_actors{kind=\"quic\"} ")?.parse::<f64>().ok());
        line.unwrap_or(0.0) as usize
    };
    let before = server.resident();
    // A slow machine has fewer: what is asserted holds for each.
    let end = now() + SOON / 2;
    let mut idle = Vec::new();
    while idle.len() < MANY && (idle.len() < MANY / 10 || now() < end) {
        let some = (0..25).map(|_| clients.connect(address, "echo"));
        idle.extend(wait(futures_util::future::join_all(some)));
    }
    eventually_within(SOON * 3, "each is an actor", || actors() == idle.len() + 1);
    let grown = server.resident().saturating_sub(before);
    assert!(grown / idle.len() < EACH, "{} connections took {grown} bytes", idle.len());
    assert_eq!(wait(exchange(&neighbour, pattern(10_000))), pattern(10_000));
    assert!(idle.iter().all(|connection| connection.end().is_none()));
    drop(idle);
    eventually_within(SOON * 6, "none is left", || actors() == 1);
    assert_eq!(wait(exchange(&neighbour, pattern(10_000))), pattern(10_000));
}
