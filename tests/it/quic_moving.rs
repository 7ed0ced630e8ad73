//! Clients whose address changes, on one, two and four arbiters, with and without the kernel's steering.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use portway::transports::quic::{Connection, Event, MigrateError, Priority, blocking};
use tokio::net::UdpSocket;

use crate::probe::{SOON, eventually, now, view, wait};
use crate::quic::{Pair, echo, round_trip};

/// A network address translator: each client has a port of its own towards the server, until it forgets them all.
pub(crate) struct Translator {
    pub(crate) address: SocketAddr,
    forget: Arc<AtomicU64>,
    replay: Arc<AtomicU64>,
    /// Nothing passes any more.
    pub(crate) cut: Arc<AtomicBool>,
    /// The server's answers do not pass any more.
    pub(crate) mute: Arc<AtomicBool>,
    /// Clients that come from now on are not heard.
    pub(crate) deaf: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Translator {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let (forget, replay) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (cut, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (mute, deaf) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (said, heard) = std::sync::mpsc::channel();
        let parts = (forget.clone(), replay.clone(), [cut.clone(), mute.clone(), deaf.clone(), stop.clone()]);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(translate(server, parts, &said));
        });
        let address = heard.recv().expect("it starts");
        Self { address, forget, replay, cut, mute, deaf, stop, thread: Some(thread) }
    }

    /// From now on every client comes from another port.
    pub(crate) fn forget(&self) {
        self.forget.fetch_add(1, Ordering::SeqCst);
    }

    /// Sends the first datagram of its first client again so many times, and comes back when that is done.
    pub(crate) fn replay_first(&self, times: u64) {
        self.replay.store(times, Ordering::SeqCst);
        eventually("replayed", || self.replay.load(Ordering::SeqCst) == 0);
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn translate(
    server: SocketAddr,
    (forget, replay, [cut, mute, deaf, stop]): (Arc<AtomicU64>, Arc<AtomicU64>, [Arc<AtomicBool>; 4]),
    said: &std::sync::mpsc::Sender<SocketAddr>,
) {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    said.send(front.local_addr().expect("bound")).expect("the test waits");
    let mut ports: HashMap<SocketAddr, (Arc<UdpSocket>, tokio::task::JoinHandle<()>)> = HashMap::new();
    let (mut forgot, mut buffer) = (0, vec![0; 65_536]);
    let mut first: Option<(Vec<u8>, SocketAddr)> = None;
    while !stop.load(Ordering::SeqCst) {
        let came = tokio::time::timeout(Duration::from_millis(20), front.recv_from(&mut buffer)).await;
        if forget.load(Ordering::SeqCst) != forgot {
            forgot = forget.load(Ordering::SeqCst);
            for (_, (_, task)) in ports.drain() {
                task.abort();
            }
        }
        if let Some((first, client)) = &first {
            while replay.load(Ordering::SeqCst) > 0 {
                if let Some((port, _)) = ports.get(client) {
                    let _full = port.send(first).await;
                }
                replay.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let Ok(Ok((length, client))) = came else { continue };
        first.get_or_insert_with(|| (buffer[..length].to_vec(), client));
        if cut.load(Ordering::SeqCst) {
            continue;
        }
        if let std::collections::hash_map::Entry::Vacant(place) = ports.entry(client) {
            if deaf.load(Ordering::SeqCst) {
                continue;
            }
            let port = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
            port.connect(server).await.expect("connected");
            let (back, answers, cut, mute) = (front.clone(), port.clone(), cut.clone(), mute.clone());
            let task = tokio::task::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(length) = answers.recv(&mut buffer).await {
                    if !cut.load(Ordering::SeqCst) && !mute.load(Ordering::SeqCst) {
                        let _gone = back.send_to(&buffer[..length], client).await;
                    }
                }
            });
            place.insert((port, task));
        }
        let _full = ports[&client].0.send(&buffer[..length]).await;
    }
}

fn arbiters_of_servers(pair: &Pair) -> Vec<(u64, usize)> {
    let view = view(&pair.mesh);
    let servers = view.of_kind("quic").filter(|actor| actor.name.as_deref() == Some("q"));
    let mut all: Vec<(u64, usize)> = servers.map(|actor| (actor.id.number(), actor.arbiter)).collect();
    all.sort_unstable();
    all
}

fn clients_that_move_keep_their_connections(arbiters: usize, steer: bool) {
    let pair = Pair::with(arbiters, "127.0.0.1:0", echo(), |server| server.steer = steer, |_| ());
    assert_eq!(pair.server.steered(), steer && arbiters > 1);
    let network = Translator::start(pair.server.local_addr());
    let body = Bytes::from(vec![7; 100_000]);
    let connections: Vec<Connection> = wait(async {
        let mut all = Vec::new();
        for _ in 0..12 {
            let connection = pair.client.connect(network.address, pair.tls.clone()).await.expect("connected");
            round_trip(&connection, body.clone()).await;
            all.push(connection);
        }
        all
    });
    let before = arbiters_of_servers(&pair);
    assert_eq!(before.len(), 12);
    for _ in 0..3 {
        network.forget();
        wait(async {
            for connection in &connections {
                round_trip(connection, body.clone()).await;
            }
        });
    }
    assert_eq!(arbiters_of_servers(&pair), before, "an actor was lost or moved");
    let forwarded = pair.counter("quic_forwarded", "q", "");
    if arbiters == 1 || steer {
        assert_eq!(forwarded, 0);
    } else {
        assert!(forwarded > 0, "nothing was forwarded though nobody steered");
    }
    // Each of the sockets towards the server was a path of its own.
    assert!(pair.counter("quic_migrations", "q", "") >= 12, "{}", pair.counter("quic_migrations", "q", ""));
    for reason in ["unknown_connection", "no_owner", "forward_full"] {
        assert_eq!(pair.counter("quic_packets_dropped", "q", reason), 0, "{reason}");
    }
    drop(connections);
    pair.end();
}

#[test]
fn clients_move_on_one_arbiter() {
    clients_that_move_keep_their_connections(1, true);
}

#[test]
fn clients_move_on_two_arbiters_with_steering() {
    clients_that_move_keep_their_connections(2, true);
}

#[test]
fn clients_move_on_two_arbiters_without_steering() {
    clients_that_move_keep_their_connections(2, false);
}

#[test]
fn clients_move_on_four_arbiters_with_steering() {
    clients_that_move_keep_their_connections(4, true);
}

#[test]
fn clients_move_on_four_arbiters_without_steering() {
    clients_that_move_keep_their_connections(4, false);
}

/// Moves on purpose; right after the handshake, and after some moves, ids may be on their way.
pub(crate) async fn moves(connection: &Connection) -> SocketAddr {
    let end = now() + SOON;
    loop {
        match connection.migrate().await {
            Ok(local) => return local,
            Err(MigrateError::NoIds) if now() < end => tokio::task::yield_now().await,
            Err(error) => panic!("{error}; {:?}", connection.end()),
        }
    }
}

#[test]
fn our_client_moves_to_other_sockets_as_often_as_it_may() {
    let pair = Pair::with(2, "127.0.0.1:0", echo(), |_| (), |_| ());
    let connection = wait(pair.connect());
    let neighbour = wait(pair.connect());
    wait(async {
        // Kept from the first time on that somebody asks.
        let mut events = connection.events();
        assert_eq!(events.next().await, Some(Event::Connected));
        let mut ports = std::collections::BTreeSet::from([connection.info().await.expect("open").local.port()]);
        for _ in 0..6 {
            let body = Bytes::from(vec![7; 1_000_000]);
            let local = moves(&connection).await;
            assert!(ports.insert(local.port()), "{local} was used before");
            assert_eq!(connection.info().await.expect("open").local, local);
            round_trip(&connection, body).await;
            let seen = pair.server.connections(10).await;
            assert!(seen.iter().any(|info| info.peer.port() == local.port()), "{local}: {seen:?}");
        }
        assert!(ports.len() == 7);
        moves(&connection).await;
        assert_eq!(connection.migrate().await, Err(MigrateError::TooOften));
        round_trip(&connection, Bytes::from("where it is")).await;
        let mut changed = 0;
        while changed == 0 {
            changed += usize::from(matches!(events.next().await, Some(Event::PathChanged { .. })));
        }
        round_trip(&neighbour, Bytes::from("unmoved")).await;
    });
    assert!(pair.counter("quic_migrations", "q", "") >= 6);
    drop((connection, neighbour));
    pair.end();
}

#[test]
fn a_move_that_cannot_be_leaves_everything_as_it_was() {
    let pair = Pair::new(1, None);
    let network = Translator::start(pair.server.local_addr());
    let client = wait(pair.client.connect(network.address, pair.tls.clone())).expect("connected");
    let server = blocking::accept(&pair.server, SOON).expect("accepted");
    assert_eq!(server.migrate(SOON), Err(blocking::Failed::Error(MigrateError::Server)));
    let before = wait(client.info()).expect("open").local;
    network.deaf.store(true, Ordering::SeqCst);
    let end = now() + SOON * 3;
    let mut error = MigrateError::NoIds;
    while error == MigrateError::NoIds && now() < end {
        error = wait(client.migrate()).expect_err("nobody answers there");
    }
    assert_eq!(error, MigrateError::Unreachable);
    assert_eq!(wait(client.info()).expect("open").local, before);
    wait(async {
        let (send, receive) = client.open(Priority::default()).await.expect("a stream");
        send.write("still here").await.expect("written");
        let (_, question) = server.handle().accept().await.expect("a stream");
        assert_eq!(question.read(100).await.expect("read").expect("data"), "still here");
        drop(receive);
    });
    client.close(0, "");
    eventually("it has ended", || client.end().is_some());
    assert_eq!(wait(client.migrate()), Err(MigrateError::Closed));
    drop((client, server));
    pair.end();

    let pair = Pair::with(1, "127.0.0.1:0", echo(), |server| server.transport.migration = false, |_| ());
    let client = wait(pair.connect());
    assert_eq!(wait(client.migrate()), Err(MigrateError::Forbidden));
    wait(round_trip(&client, Bytes::from("unharmed")));
    drop(client);
    pair.end();
}

#[test]
fn a_client_may_rebind_seven_times() {
    let pair = Pair::new(2, echo());
    let network = Translator::start(pair.server.local_addr());
    let connection = wait(pair.client.connect(network.address, pair.tls.clone())).expect("connected");
    for _ in 0..7 {
        network.forget();
        wait(round_trip(&connection, Bytes::from("still here")));
    }
    // How many of them QUIC takes for a move of their own depends on what was under way.
    eventually("a move is counted", || pair.counter("quic_migrations", "q", "") > 0);
    assert_eq!(pair.counter("quic_connections_opened", "q", ""), 1);
    drop(connection);
    pair.end();
}

/// Sends and receives 20 MB at once, and has `change` happen when a quarter, a half and three quarters have come back.
/// Answers how long nothing came, at most.
fn moved_in_the_midst(
    to: impl Fn(&Pair) -> SocketAddr,
    pair: &Pair,
    change: impl AsyncFn(&Connection, usize),
) -> Duration {
    const BYTES: usize = 20_000_000;
    let body: Bytes = (0..BYTES).map(|n| (n * 31 % 251) as u8).collect();
    wait(async {
        let connection = pair.client.connect(to(pair), pair.tls.clone()).await.expect("connected");
        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        let sending = async {
            send.write(body.clone()).await.expect("written");
            send.finish().await.expect("finished");
        };
        let come = std::cell::Cell::new(0);
        let moving = async {
            for quarter in 1..=3 {
                while come.get() < BYTES * quarter / 4 {
                    tokio::task::yield_now().await;
                }
                change(&connection, quarter).await;
            }
        };
        let receiving = async {
            let (mut longest, mut last) = (Duration::ZERO, now());
            while let Some(bytes) = receive.read(256 << 10).await.expect("alive") {
                assert!(bytes == body[come.get()..come.get() + bytes.len()], "other bytes came back");
                come.set(come.get() + bytes.len());
                longest = longest.max(now().duration_since(last));
                last = now();
            }
            longest
        };
        let ((), (), longest) = tokio::join!(sending, moving, receiving);
        assert_eq!(come.get(), BYTES);
        longest
    })
}

#[test]
fn a_client_moves_on_purpose_in_the_midst_of_a_bulk_transfer() {
    let pair = Pair::new(2, echo());
    let longest = moved_in_the_midst(Pair::address, &pair, async |connection, _| {
        moves(connection).await;
    });
    assert!(longest < SOON / 2, "nothing came for {longest:?}");
    pair.end();
}

#[test]
fn a_client_whose_port_changes_in_the_midst_of_a_bulk_transfer_is_served_to_the_end() {
    let pair = Pair::new(2, echo());
    let network = Translator::start(pair.server.local_addr());
    let longest = moved_in_the_midst(|_| network.address, &pair, async |_, _| network.forget());
    // Without a packet that shows quiche what was lost on the old path nothing comes ever again.
    assert!(longest < SOON / 2, "nothing came for {longest:?}");
    assert!(pair.counter("quic_migrations", "q", "") >= 3);
    drop(network);
    pair.end();
}

/// What asks a client for proof of its new address is lost for longer than quiche tries: the connection is the same
/// afterwards, whoever was heard first.
#[test]
fn a_client_that_hears_nothing_at_its_new_port_for_a_while_keeps_its_connection() {
    let pair = Pair::new(2, echo());
    let network = Translator::start(pair.server.local_addr());
    let body = Bytes::from(vec![7; 300_000]);
    let both = wait(async {
        let connection = pair.client.connect(network.address, pair.tls.clone()).await.expect("connected");
        let neighbour = pair.connect().await;
        for _ in 0..2 {
            round_trip(&connection, body.clone()).await;
            network.forget();
            network.mute.store(true, Ordering::SeqCst);
            let end = now() + Duration::from_secs(3);
            let unheard = async {
                while now() < end {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                network.mute.store(false, Ordering::SeqCst);
            };
            tokio::join!(round_trip(&connection, body.clone()), unheard);
            round_trip(&neighbour, Bytes::from("unmoved")).await;
        }
        (connection, neighbour)
    });
    assert_eq!(view(&pair.mesh).totals.family("quic_connections_closed"), 0);
    assert_eq!(pair.counter("quic_connections_opened", "q", ""), 2);
    drop(both);
    pair.end();
}
