//! What changes while a server runs: settings, certificates, secrets, and an endpoint that fails and is made anew.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use portway::actors::Totals;
use portway::gateway::check;
use portway::memory::Budget;
use portway::transports::quic::{
    Application, Applications, Code, Connection, Event, Limits, Priority, RetryMode, ServerSettings, Session,
    StreamKind, Transport, Who, blocking,
};

use crate::gateway::Running;
use crate::probe::{SOON, eventually, now, view, wait};
use crate::quic::{Pair, certificate, client_tls, echo, round_trip, server_tls};
use crate::quic_gateway::{Clients, ECHO, exchange, listening, pattern};

/// Panics in whoever answers. Not in the thread that asked, whose own timer wakes it as well when the other takes long over
/// its panic.
struct Explodes(std::thread::ThreadId);

impl Wake for Explodes {
    fn wake(self: Arc<Self>) {
        assert_eq!(std::thread::current().id(), self.0, "told to");
    }
}

fn failures_of(totals: &Totals) -> u64 {
    totals.get("actor_restarts", "quic_endpoint", "panic") + totals.get("actor_exits", "quic_endpoint", "panic")
}

/// Has an endpoint of the server panic in the midst of a turn; answers on which arbiter, if it was made anew.
fn explode(pair: &Pair) -> Option<usize> {
    let restarts = || {
        let view = view(&pair.mesh);
        let mut all: Vec<_> = view.of_kind("quic_endpoint").map(|actor| (actor.arbiter, actor.restarts)).collect();
        all.sort_unstable();
        (failures_of(&view.totals), all)
    };
    let (before, were) = restarts();
    wait(async {
        let waker = Waker::from(Arc::new(Explodes(std::thread::current().id())));
        while failures_of(&pair.mesh.view().await.totals) == before {
            // Whoever answers it wakes who asked. It may have answered before that one waits.
            // Unconstrained, or tokio would wake it, here, to have it yield.
            let mut asked = pin!(tokio::task::unconstrained(pair.server.status()));
            if asked.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                while failures_of(&pair.mesh.view().await.totals) == before {}
            }
        }
    });
    let (_, are) = restarts();
    are.into_iter().find(|now| !were.contains(now)).map(|(arbiter, _)| arbiter)
}

fn of_arbiter(pair: &Pair, arbiter: usize) -> usize {
    wait(pair.server.connections(100)).iter().filter(|info| info.arbiter == arbiter).count()
}

#[test]
fn an_endpoint_that_panics_is_made_anew_and_costs_its_own_connections_alone() {
    let own = certificate();
    let first = Arc::new(server_tls(&own));
    let mut pair = Pair::with(2, "127.0.0.1:0", echo(), |settings| settings.tls = first, |_| ());
    // What it was told since is what it begins with.
    let second = certificate();
    assert_eq!(wait(pair.server.reload(Arc::new(server_tls(&second)))), Ok(2));
    pair.tls = Arc::new(client_tls(&second));
    let connections: Vec<Connection> = wait(async {
        let mut all = Vec::new();
        for _ in 0..12 {
            all.push(pair.connect().await);
            round_trip(&all[all.len() - 1], Bytes::from("hello")).await;
        }
        all
    });
    let were = [of_arbiter(&pair, 0), of_arbiter(&pair, 1)];
    assert!(were[0] > 0 && were[1] > 0 && were[0] + were[1] == 12, "{were:?}");

    let failed = explode(&pair).expect("made anew");
    let (lost, kept) = (were[failed], were[1 - failed]);
    let ended = || connections.iter().filter_map(Connection::end).collect::<Vec<_>>();
    eventually("its own have ended", || ended().len() == lost && of_arbiter(&pair, failed) == 0);
    assert!(ended().iter().all(|end| (end.who, end.code) == (Who::Peer, Code::Application(0))), "told in order");
    assert_eq!(of_arbiter(&pair, 1 - failed), kept);
    assert_eq!(pair.counter("quic_connections_closed", "q", "stopped"), lost as u64);
    assert_eq!(pair.counter("actor_restarts", "quic_endpoint", "panic"), 1);
    wait(async {
        for connection in connections.iter().filter(|connection| connection.end().is_none()) {
            round_trip(connection, Bytes::from("unharmed")).await;
        }
        for _ in 0..12 {
            round_trip(&pair.connect().await, Bytes::from("new")).await;
        }
    });
    assert!(wait(pair.server.status()).iter().all(|status| status.generation == 2));
    assert!(wait(pair.server.status()).len() == 2);
    drop(connections);
    // The count over all arbiters is right: a drain ends as soon as nobody is in.
    let began = now();
    pair.server.drain(began + SOON);
    wait(pair.server.stopped());
    assert!(now() < began + SOON / 2);
    pair.end();
}

#[test]
fn endpoints_that_fail_too_often_close_their_port() {
    let pair = Pair::new(2, None);
    let address = pair.server.local_addr();
    let client = pair.connect_blocking();
    for _ in 0..4 {
        explode(&pair);
    }
    wait(pair.server.stopped());
    assert_eq!(client.join(SOON).expect("joined").end.who, Who::Peer);
    // One that came before may still be in the line.
    eventually("nobody is taken any more", || {
        blocking::accept(&pair.server, SOON).is_err_and(|error| matches!(error, blocking::Failed::Error(_)))
    });
    eventually("the port is free", || std::net::UdpSocket::bind(address).is_ok());
    drop(client);
    pair.end();
}

fn settings_of(tls: &Arc<portway::transports::tls::ServerSettings>, pair: &Pair) -> ServerSettings {
    ServerSettings::new("q", pair.server.local_addr(), tls.clone())
}

pub(crate) async fn opens(connection: &Connection) -> usize {
    let mut open = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), connection.open(Priority::default())).await
    {
        open.push(stream);
    }
    open.len()
}

#[test]
fn settings_change_for_new_connections() {
    let own = certificate();
    let tls = Arc::new(server_tls(&own));
    let mut pair = Pair::with(
        2,
        "127.0.0.1:0",
        None,
        |server| {
            server.tls = tls.clone();
            server.transport.bidirectional = 7;
        },
        |_| (),
    );
    pair.tls = Arc::new(client_tls(&own));
    let old = wait(pair.connect());
    let mut settings = settings_of(&tls, &pair);
    settings.transport = Transport { bidirectional: 3, ..Transport::default() };
    settings.limits = Limits { retry: RetryMode::Always, ..Limits::default() };
    assert_eq!(wait(pair.server.renew(&settings)), Ok(2));
    for _ in 0..4 {
        assert_eq!(wait(async { opens(&pair.connect().await).await }), 3);
    }
    assert_eq!(wait(opens(&old)), 7, "those inside keep what they began with");
    assert_eq!(pair.counter("quic_retries", "q", "valid"), 4);

    // What cannot work is refused, and nothing has changed.
    let mut bad = server_tls(&own);
    bad.protocols = vec![vec![b'x'; 256]];
    let refused = ServerSettings { tls: Arc::new(bad), ..settings_of(&tls, &pair) };
    assert!(wait(pair.server.renew(&refused)).is_err());
    assert_eq!(wait(async { opens(&pair.connect().await).await }), 3);
    assert_eq!(pair.counter("quic_retries", "q", "valid"), 5);
    pair.end();
}

/// Writes as much as it has credit for, on 64 streams.
struct Greedy;

impl Application for Greedy {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if event == Event::Connected {
            for _ in 0..64 {
                let stream = session.open(StreamKind::Unidirectional, Priority::default()).expect("allowed");
                session.want_room(stream);
            }
        } else if let Event::Writable(stream) = event {
            while session.room(stream) > 0 {
                let piece = session.room(stream).min(16 << 10);
                session.write(stream, Bytes::from(vec![1; piece])).expect("room");
            }
            session.want_room(stream);
        }
    }
}

#[test]
fn what_waits_to_be_sent_leases_from_the_memory_budget() {
    const LIMIT: usize = 4 << 20;
    let budget = Budget::new(LIMIT);
    let given = budget.clone();
    let greedy: Applications = Arc::new(|_| Some(Box::new(Greedy)));
    let pair = Pair::with(1, "127.0.0.1:0", Some(greedy), |server| server.budget = Some(given), |_| ());
    // Eight who read nothing could have 4 MiB each.
    let idle: Vec<Connection> = (0..8).map(|_| wait(pair.connect())).collect();
    eventually("the budget is used up", || budget.used() > LIMIT / 2);
    let held = || {
        let view = view(&pair.mesh);
        let server = view.of_kind("quic").filter(|actor| actor.name.as_deref() == Some("q"));
        server.map(|actor| actor.held).sum::<usize>()
    };
    let most = LIMIT * 8 / 10 + 9 * (16 << 10);
    assert!(held() <= most, "{}", held());
    // Who reads is served all the same, with little credit.
    let reader = wait(pair.connect());
    wait(async {
        let reads = (0..64).map(|_| async {
            let stream = reader.accept_uni().await.expect("a stream");
            let mut read = 0;
            while read < 50_000 {
                read += stream.read(64 << 10).await.expect("alive").map_or(0, |bytes| bytes.len());
            }
        });
        futures_util::future::join_all(reads).await;
    });
    assert!(held() <= most && budget.used() <= most, "{} held, {} leased", held(), budget.used());
    drop((idle, reader));
    eventually("all came back", || budget.used() == 0);
    pair.end();
}

/// What a peer was allowed to send is there whether the application reads or not.
#[test]
fn what_was_received_and_not_read_is_leased_from_the_memory_budget() {
    const SENT: usize = 600_000;
    let budget = Budget::new(16 << 20);
    let given = budget.clone();
    let pair = Pair::with(1, "127.0.0.1:0", None, |server| server.budget = Some(given), |_| ());
    let all = wait(async {
        let mut all = Vec::new();
        for _ in 0..4 {
            let (client, server) = tokio::join!(pair.connect(), pair.server.accept());
            let server = server.expect("accepted");
            let mut streams = Vec::new();
            for _ in 0..3 {
                let send = client.open_uni(Priority::default()).await.expect("a stream");
                send.write(vec![5; SENT / 3]).await.expect("accepted");
                send.finish().await.expect("finished");
                streams.push(server.accept_uni().await.expect("a stream"));
            }
            all.push((client, server, streams));
        }
        all
    });
    // A part of each is below the steps in which it is leased.
    eventually("it is leased", || budget.used() >= 4 * (SENT - (16 << 10)));
    assert!(budget.used() <= 4 * 2 * SENT, "{}", budget.used());
    let held = view(&pair.mesh).of_kind("quic").map(|actor| actor.held).max();
    assert!(held >= Some(SENT), "the largest holder is known by it: {held:?}");
    wait(async {
        for stream in all.iter().flat_map(|(_, _, streams)| streams) {
            assert_eq!(stream.read_to_end(SENT).await.expect("read").len(), SENT / 3);
        }
    });
    eventually("what was read went back", || budget.used() <= 4 * (16 << 10));
    drop(all);
    eventually("all came back", || budget.used() == 0);
    pair.end();
}

/// Handshakes that a reload goes on beside.
const HANDSHAKES: usize = 1_000;

/// A reload must cost no handshake, whatever moment it comes at, at a rate of many a second.
#[test]
fn handshakes_go_on_while_certificates_and_settings_change() {
    let own = certificate();
    let tls = Arc::new(server_tls(&own));
    let mut pair = Pair::with(
        2,
        "127.0.0.1:0",
        echo(),
        |server| (server.tls, server.limits.rate) = (tls.clone(), u32::MAX),
        |_| (),
    );
    pair.tls = Arc::new(client_tls(&own));
    let (over, connected) = (AtomicBool::new(false), AtomicUsize::new(0));
    let began = now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let eight = (0..8).map(|_| async {
                            round_trip(&pair.connect().await, Bytes::from("hello")).await;
                            connected.fetch_add(1, Ordering::SeqCst);
                        });
                        wait(futures_util::future::join_all(eight));
                    }
                })
            })
            .collect();
        // One reload after the other, for as long as it takes to connect that often.
        let mut reloads = 0;
        while connected.load(Ordering::SeqCst) < HANDSHAKES
            && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished)
        {
            let mut settings = settings_of(&Arc::new(server_tls(&own)), &pair);
            settings.limits.rate = u32::MAX;
            settings.transport.bidirectional = 50 + reloads % 50;
            wait(pair.server.renew(&settings)).expect("taken");
            reloads += 1;
        }
        over.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().expect("no handshake failed"));
        let (handshakes, took) = (connected.load(Ordering::SeqCst), now().duration_since(began));
        let rate = handshakes as f64 / took.as_secs_f64();
        assert!(rate >= 50.0, "{rate:.0} handshakes a second beside {reloads} reloads");
        assert!(reloads >= 40, "{reloads} reloads");
    });
    pair.end();
}

fn config(text: &str) -> portway::gateway::config::Config {
    check::parse("test.toml", text, &check::Known::default())
        .unwrap_or_else(|report| panic!("{}", report.render(false)))
}

#[test]
fn a_gateway_takes_new_limits_without_a_restart() {
    let with = |rest: &str| format!("{ECHO}{rest}");
    let running = Running::start(&listening(2, &with("[listener.quic]\nstreams = 7\n")));
    let clients = Clients::new();
    let address = running.address("q");
    let old = wait(clients.connect(address, "echo"));
    let changed = listening(2, &with("[listener.quic]\nstreams = 3\n[listener.limits]\nper_source = 2\n"));
    let done = running.gateway().reload(config(&changed)).expect("applied");
    assert_eq!((&done.changed[..], &done.restart[..]), (&["q".to_owned()][..], &[][..]));
    assert_eq!(running.address("q"), address);
    let new = wait(clients.connect(address, "echo"));
    assert_eq!((wait(opens(&old)), wait(opens(&new))), (7, 3));
    // Those inside count.
    let end = wait(async {
        match clients.try_connect(address, "echo").await {
            Ok(connection) => connection.join().await.end,
            Err(portway::transports::quic::ConnectError::Ended(end)) => end,
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!(&*end.text, "limit_per_source");
    assert_eq!(wait(exchange(&old, pattern(1_000))), pattern(1_000));

    // What the sockets were made with is named.
    let fixed = changed.replace("streams = 3", "streams = 3\nsteer = false\ngso = false\nsocket_buffer = \"1MiB\"");
    let done = running.gateway().reload(config(&fixed)).expect("applied");
    let keys = ["listener.quic.steer", "listener.quic.gso", "listener.quic.socket_buffer"];
    assert_eq!(done.restart, keys);
    // And again, as long as they differ from what runs: not from the file before.
    assert_eq!(running.gateway().plan(&config(&fixed)).expect("it can be").restart, keys);
    assert_eq!(running.gateway().reload(config(&fixed)).expect("applied").restart, keys);
    assert!(running.gateway().plan(&config(&changed)).expect("it can be").restart.is_empty());
    assert!(running.gateway().reload(config(&changed)).expect("applied").restart.is_empty());
    assert_eq!(wait(exchange(&old, pattern(1_000))), pattern(1_000));
}
