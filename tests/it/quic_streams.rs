//! Streams and datagrams in detail: credit, priority, cancelling, expiry, datagram policies; and what TLS adds: tickets
//! on all arbiters, reload, client certificates.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use portway::actors::{Place, Spec};
use portway::transports::quic::{
    Application, Applications, ConnectError, Datagram, DatagramError, DatagramLimits, Event, Priority, RecvStream,
    Session, StreamError, StreamKind, WhenFull,
};
use portway::transports::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::probe::{Probe, SOON, eventually, hold, now, view, wait};
use crate::quic::{Pair, certificate, client_tls, echo, round_trip, server_tls};

const MIB: usize = 1 << 20;

/// Opens these streams as soon as it is connected and writes as much on each as it has credit for.
struct Source(Vec<Priority>);

impl Application for Source {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if event == Event::Connected {
            for priority in self.0.clone() {
                let stream = session.open(StreamKind::Unidirectional, priority).expect("allowed");
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

fn source(priorities: Vec<Priority>) -> Option<Applications> {
    Some(Arc::new(move |_| Some(Box::new(Source(priorities.clone())))))
}

fn held(pair: &Pair) -> usize {
    view(&pair.mesh).of_kind("quic").map(|actor| actor.held).sum()
}

#[test]
fn a_peer_that_opens_streams_and_never_reads_costs_its_credit_and_no_more() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        source(vec![Priority::default(); 64]),
        |server| {
            server.transport.credit = 4 * MIB;
        },
        |_| (),
    );
    let greedy = wait(pair.connect());
    eventually("the credit is used up", || held(&pair) > 3 * MIB);
    // Somebody who reads is served all the while.
    let neighbour = wait(pair.connect());
    let read: usize = wait(async {
        // Read as they come: streams that wait to be accepted use up the connection's window as well.
        let reads = (0..64).map(|_| async {
            let stream = neighbour.accept_uni().await.expect("a stream");
            read_bytes(&stream, 100_000).await
        });
        futures_util::future::join_all(reads).await.into_iter().sum()
    });
    assert!(read >= 6_400_000);
    // All that time nobody read the other, and it has its credit and no more.
    let most = view(&pair.mesh).of_kind("quic").map(|actor| actor.held).max();
    assert!(most.is_some_and(|held| held <= 4 * MIB), "{most:?} held");
    drop((greedy, neighbour));
    pair.end();
}

#[test]
fn discovery_finds_larger_datagrams_and_holds_nothing_up() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        echo(),
        |server| (server.transport.discover_mtu, server.transport.datagram_size) = (true, 1_452),
        |client| (client.transport.discover_mtu, client.transport.datagram_size) = (true, 1_452),
    );
    let connection = wait(pair.connect());
    wait(round_trip(&connection, Bytes::from(vec![7; 4 * MIB])));
    let info = wait(connection.info()).expect("it is there");
    assert!(info.mtu > 1_400, "{} bytes after 4 MiB over loopback", info.mtu);
    drop(connection);
    pair.end();
}

async fn read_bytes(stream: &RecvStream, atleast: usize) -> usize {
    let mut read = 0;
    while read < atleast {
        match stream.read(256 << 10).await {
            Ok(Some(bytes)) => read += bytes.len(),
            Ok(None) => break,
            Err(error) => panic!("{error} after {read} bytes; {:?}", stream.connection().end()),
        }
    }
    read
}

#[test]
fn a_writer_waits_for_credit_and_is_told_what_became_of_its_bytes() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        None,
        |server| server.transport.stream_window = 64 << 10,
        |client| {
            client.transport.stream_credit = 100_000;
        },
    );
    wait(async {
        let (client, server) = tokio::join!(pair.connect(), pair.server.accept());
        let server = server.expect("accepted");
        let send = client.open_uni(Priority::default()).await.expect("a stream");
        // The peer takes 64 KiB, and 100,000 bytes may wait.
        send.write(vec![0; 150_000]).await.expect("accepted");
        let more = tokio::time::timeout(Duration::from_millis(100), send.write(vec![0; 100_000])).await;
        assert!(more.is_err(), "accepted beyond its credit");
        assert!(matches!(send.try_write(vec![0; 100_000]), Err(StreamError::Full(_))));
        let receive = server.accept_uni().await.expect("a stream");
        assert!(read_bytes(&receive, 150_000).await >= 150_000);
        let flush = send.write_tracked(vec![1; 1_000]).await.expect("accepted");
        flush.flushed().await.expect("flushed");
        // What is given up unsent is told so.
        let flush = send.write_tracked(vec![2; 90_000]).await.expect("accepted");
        let flush_more = send.write_tracked(vec![3; 5_000]).await.expect("accepted");
        send.reset(9).await.expect("reset");
        let told = [flush.flushed().await, flush_more.flushed().await];
        assert!(told.contains(&Err(StreamError::Finished)) || told == [Ok(()), Ok(())], "{told:?}");
        assert_eq!(send.write("x").await, Err(StreamError::Finished));
        let end = loop {
            match receive.read(MIB).await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert_eq!(end, Err(StreamError::Reset(9)));
    });
    pair.end();
}

#[test]
fn a_stopped_stream_tells_its_writer_the_code() {
    let pair = Pair::new(1, None);
    wait(async {
        let (client, server) = tokio::join!(pair.connect(), pair.server.accept());
        let server = server.expect("accepted");
        let send = client.open_uni(Priority::default()).await.expect("a stream");
        let mut events = client.events();
        send.write("x").await.expect("accepted");
        server.accept_uni().await.expect("a stream").stop(77).await.expect("stopped");
        let stopped = loop {
            if let Err(error) = send.write("x").await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(stopped, StreamError::Stopped(77));
        // Nobody has asked for events before it happened: it is among them all the same.
        let mut seen = Vec::new();
        while seen.last() != Some(&Event::Stopped(send.id(), 77)) {
            seen.push(events.next().await.unwrap_or_else(|| panic!("only {seen:?}")));
        }
        assert_eq!(send.finish().await, Err(StreamError::Stopped(77)));
    });
    pair.end();
}

/// How much of a stream that was written first has come when the last byte of the second, written later, is there.
fn come_before(late: Priority, second: Priority) -> usize {
    // The path is held back by what the client reads.
    let window = |client: &mut portway::transports::quic::ClientSettings| {
        (client.transport.window, client.transport.window_max) = (32 << 10, 32 << 10);
    };
    let pair = Pair::with(1, "127.0.0.1:0", None, |server| server.transport.stream_credit = MIB, window);
    let come = wait(async {
        let (client, server) = tokio::join!(pair.connect(), pair.server.accept());
        let server = server.expect("accepted");
        for (priority, length) in [(late, 600_000), (second, 400_000)] {
            let send = server.open_uni(priority).await.expect("a stream");
            send.write(vec![1; length]).await.expect("credit for all of it");
            send.finish().await.expect("finished");
        }
        // The second has sent nothing yet, so that the client learns of it by reading the first.
        let come = std::cell::Cell::new(0);
        let first = client.accept_uni().await.expect("a stream");
        let reading = async {
            while let Some(bytes) = first.read(4_096).await.expect("read") {
                come.set(come.get() + bytes.len());
            }
        };
        let other = async {
            let second = client.accept_uni().await.expect("a stream");
            assert_eq!(read_bytes(&second, usize::MAX).await, 400_000);
            come.get()
        };
        let (come_then, ()) = tokio::join!(other, reading);
        assert_eq!(come.get(), 600_000, "the first stands still");
        come_then
    });
    pair.end();
    come
}

#[test]
fn urgent_streams_overtake_what_waits() {
    let (urgent, late) = (Priority { urgency: 1, incremental: false }, Priority { urgency: 200, incremental: true });
    // What QUIC had taken of the first, a window, and what is on its way while that is read.
    let overtaken = come_before(late, urgent);
    assert!(overtaken <= 120_000, "{overtaken} bytes of what may wait came first");
    // Without an order of their own they take turns, or the first is first: it is the priority that does it.
    // How fairly depends on who reads when (204,800 bytes were seen): more than an urgent one lets by.
    let turns = come_before(late, late);
    assert!(turns >= 160_000, "{turns} bytes only");
    let behind = come_before(urgent, late);
    assert_eq!(behind, 600_000, "the urgent one waited");
}

#[test]
fn unsent_data_expire_with_a_reset() {
    let pair = Pair::with(1, "127.0.0.1:0", None, |server| server.transport.stream_window = 10_000, |_| ());
    wait(async {
        let (client, server) = tokio::join!(pair.connect(), pair.server.accept());
        let server = server.expect("accepted");
        let send = client.open_uni(Priority::default()).await.expect("a stream");
        let flush = send.write_tracked(vec![0; 50_000]).await.expect("accepted");
        let receive = server.accept_uni().await.expect("a stream");
        send.expire(Some(now() + Duration::from_millis(50)), 5).await.expect("set");
        assert_eq!(flush.flushed().await, Err(StreamError::Expired));
        assert_eq!(send.write("x").await, Err(StreamError::Expired));
        let end = loop {
            match receive.read(MIB).await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert_eq!(end, Err(StreamError::Reset(5)));
    });
    pair.end();
}

#[test]
fn more_streams_than_the_peer_allows_wait_for_their_turn() {
    let pair = Pair::with(2, "127.0.0.1:0", echo(), |server| server.transport.bidirectional = 8, |_| ());
    wait(async {
        let connection = pair.connect().await;
        let all = (0..200).map(|_| round_trip(&connection, Bytes::from(vec![1; 2_000])));
        futures_util::future::join_all(all).await;
    });
    pair.end();
}

#[test]
fn a_stream_is_what_tokio_takes_for_one() {
    let pair = Pair::new(1, echo());
    wait(async {
        let connection = pair.connect().await;
        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        let (mut reader, mut writer) = tokio::io::split(portway::transports::quic::Duplex::new(send, receive));
        let body: Vec<u8> = (0..400_000_u32).map(|n| n as u8).collect();
        let writing = async {
            writer.write_all(&body).await.expect("written");
            writer.shutdown().await.expect("shut");
        };
        let mut back = Vec::new();
        let (_, read) = tokio::join!(writing, reader.read_to_end(&mut back));
        assert_eq!(read.expect("read"), 400_000);
        assert!(back == body);
    });
    pair.end();
}

#[test]
fn a_stream_whose_connection_is_busy_waits_for_room_to_say_it() {
    let pair = Pair::new(1, echo());
    let probe = pair.mesh.spawn(Place::On(0), Spec::default(), Probe::default).expect("started");
    let connection = wait(pair.connect());
    let (send, receive) = wait(connection.open(Priority::default())).expect("a stream");
    let mut duplex = portway::transports::quic::Duplex::new(send, receive);
    hold(&probe, Duration::from_secs(1));
    let ping = || Datagram::new(Bytes::from_static(b"x"));
    while connection.cast_datagram(ping()).is_ok() {}
    assert_eq!(connection.cast_datagram(ping()), Err(DatagramError::Dropped), "its mailbox is full");
    wait(async {
        let early = tokio::time::timeout(Duration::from_millis(50), duplex.write_all(b"patience")).await;
        assert!(early.is_err(), "written past a full mailbox: {early:?}");
        // What was given up has reserved its place: the next call goes on with it.
        duplex.write_all(b"patience").await.expect("written");
        duplex.shutdown().await.expect("shut");
        let mut back = Vec::new();
        duplex.read_to_end(&mut back).await.expect("read");
        assert_eq!(back, b"patience");
    });
    drop(connection);
    pair.end();
}

#[test]
fn datagrams_are_atomic_bounded_and_told_apart() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        echo(),
        |_| (),
        |client| {
            client.transport.datagrams = DatagramLimits { packets: 4, bytes: 4_000, when_full: WhenFull::Wait };
        },
    );
    wait(async {
        let connection = pair.connect().await;
        let max = connection.max_datagram().await.expect("open").expect("taken");
        assert!((1_100..1_350).contains(&max), "{max}");
        let too_large = connection.send_datagram(Datagram::new(Bytes::from(vec![0; max + 1]))).await;
        assert_eq!(too_large, Err(DatagramError::TooLarge { max }));
        connection.send_datagram(Datagram::new(Bytes::from(vec![1; max]))).await.expect("sent");
        assert_eq!(connection.datagrams().await.expect("open"), [vec![1; max]]);
        // A queue to wait for loses nothing of its own.
        for number in 0..200_u8 {
            connection.send_datagram(Datagram::new(Bytes::from(vec![number; 900]))).await.expect("sent");
        }
        let late = Datagram { expires: Some(now() - Duration::from_secs(1)), ..Datagram::new(Bytes::from("late")) };
        connection.send_datagram(late).await.expect("queued");
        connection.close(0, "");
        connection.join().await;
        assert_eq!(connection.send_datagram(Datagram::new(Bytes::new())).await, Err(DatagramError::Closed));
    });
    assert_eq!(pair.counter("quic_datagrams_dropped", "c", "expired"), 1);
    assert_eq!(pair.counter("quic_datagrams_dropped", "c", "full"), 0);
    pair.end();
}

/// Asks again and again, and gives the call up each time after so short a while that some are given up at the very moment
/// they are answered.
async fn impatiently<R, F: Future<Output = R>>(mut ask: impl FnMut() -> F) -> R {
    let begun = now();
    for round in 0_u64.. {
        if let Ok(answer) = tokio::time::timeout(Duration::from_micros(round % 8 * 150), ask()).await {
            return answer;
        }
        assert!(begun.elapsed() < SOON, "what was to come was lost with a call that was given up");
    }
    unreachable!("an endless range")
}

#[test]
fn calls_that_are_given_up_lose_nothing() {
    let pair = Pair::new(1, None);
    let (here, there) = wait(async {
        let here = pair.connect().await;
        (here, impatiently(|| pair.server.accept()).await.expect("a connection"))
    });
    wait(async {
        for number in 0..200_u8 {
            here.send_datagram(Datagram::new(Bytes::from(vec![number]))).await.expect("sent");
            assert_eq!(impatiently(|| there.datagrams()).await.expect("open"), [vec![number]]);
        }
        for number in 0..50_u8 {
            let (send, receive) = here.open(Priority::default()).await.expect("a stream");
            send.write(Bytes::from(vec![number; 10])).await.expect("written");
            let (back, got) = impatiently(|| there.accept()).await.expect("the stream");
            assert_eq!(got.id(), send.id());
            let mut read = Vec::new();
            while read.len() < 10 {
                read.extend(impatiently(|| got.read(3)).await.expect("read").expect("no end yet"));
            }
            assert_eq!(read, [number; 10]);
            send.finish().await.expect("finished");
            assert_eq!(impatiently(|| got.read(3)).await, Ok(None));
            back.finish().await.expect("finished");
            assert_eq!(impatiently(|| receive.read(3)).await, Ok(None));
        }
    });
    for scope in ["q", "c"] {
        assert_eq!(pair.counter("quic_datagrams_dropped", scope, "unread"), 0);
    }
    drop((here, there));
    pair.end();
}

#[test]
fn a_stream_that_nobody_waits_for_any_more_is_not_left_open() {
    let pair = Pair::with(1, "127.0.0.1:0", echo(), |server| server.transport.bidirectional = 1, |_| ());
    wait(async {
        let connection = pair.connect().await;
        for _ in 0..50 {
            // Given up while the only stream is taken, and around the moment at which it is free again.
            let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
            let mut second = Box::pin(connection.open(Priority::default()));
            assert!(futures_util::poll!(&mut second).is_pending());
            send.finish().await.expect("finished");
            assert_eq!(receive.read(1).await, Ok(None));
            tokio::task::yield_now().await;
            drop(second);
        }
        round_trip(&connection, Bytes::from_static(b"there is room")).await;
        let begun = now();
        while connection.info().await.expect("open").streams > 0 {
            assert!(begun.elapsed() < SOON, "a stream is left open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(connection);
    });
    pair.end();
}

fn with_tls(arbiters: usize, change: impl FnOnce(&mut tls::ServerSettings)) -> (Pair, Arc<tls::Certificate>) {
    let own = certificate();
    let mut server = server_tls(&own);
    change(&mut server);
    let mut pair = Pair::with(arbiters, "127.0.0.1:0", echo(), |settings| settings.tls = Arc::new(server), |_| ());
    pair.tls = Arc::new(client_tls(&own));
    (pair, own)
}

#[test]
fn a_session_is_resumed_on_every_arbiter() {
    let tickets = tls::Tickets::new().expect("random");
    let (pair, _) = with_tls(4, |server| server.tickets = Some(tickets));
    wait(async {
        let first = pair.connect().await;
        round_trip(&first, Bytes::from("x")).await;
        let session = loop {
            if let Some(session) = first.session().await.expect("open") {
                break session;
            }
            round_trip(&first, Bytes::from("x")).await;
        };
        let mut arbiters = std::collections::BTreeSet::new();
        for _ in 0..24 {
            let next = pair.client.connect_with(pair.address(), pair.tls.clone(), Some(session.clone())).await;
            let next = next.expect("connected");
            round_trip(&next, Bytes::from("x")).await;
            assert!(next.info().await.expect("open").resumed);
            arbiters.extend(pair.server.connections(100).await.iter().map(|info| info.arbiter));
        }
        assert_eq!(arbiters.len(), 4, "not all arbiters were met");
        assert!(!first.info().await.expect("open").resumed);
    });
    pair.end();
}

#[test]
fn new_certificates_are_for_new_connections_and_bad_ones_for_nobody() {
    let (pair, _) = with_tls(4, |_| ());
    let old = wait(pair.connect());
    // Refused as a whole: a protocol name that TLS cannot carry.
    let mut bad = server_tls(&certificate());
    bad.protocols = vec![vec![b'x'; 256]];
    assert!(wait(within_mesh(&pair, bad)).is_err());
    wait(async { round_trip(&pair.connect().await, Bytes::from("still the old one")).await });
    let new = certificate();
    assert_eq!(wait(within_mesh(&pair, server_tls(&new))), Ok(3));
    wait(async {
        round_trip(&old, Bytes::from("unharmed")).await;
        for _ in 0..12 {
            assert!(pair.client.connect(pair.address(), pair.tls.clone()).await.is_err(), "the old one was shown");
            let trusting = Arc::new(client_tls(&new));
            round_trip(&pair.client.connect(pair.address(), trusting).await.expect("connected"), Bytes::new()).await;
        }
        assert!(pair.server.status().await.iter().all(|status| status.generation == 3));
    });
    drop(old);
    pair.end();
}

async fn within_mesh(pair: &Pair, settings: tls::ServerSettings) -> Result<u64, tls::ReloadError> {
    pair.server.reload(Arc::new(settings)).await
}

/// How often the server refused: no certificate, and one of others.
fn refusals(pair: &Pair) -> [u64; 2] {
    ["certificate_required", "unknown_ca"].map(|alert| pair.counter("quic_tls_refused", "q", alert))
}

/// How a connection ends that is refused, before its client takes it for established or after.
async fn end_of(pair: &Pair, settings: tls::ClientSettings) -> portway::transports::quic::End {
    match pair.client.connect(pair.address(), Arc::new(settings)).await {
        Ok(connection) => connection.join().await.end,
        Err(ConnectError::Ended(end)) => end,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_client_certificate_that_is_required_stays_required() {
    let clients = certificate();
    let file = std::env::temp_dir().join(format!("portway-quic-clients-{}.pem", std::process::id()));
    std::fs::write(&file, clients.to_pem().expect("PEM")).expect("written");
    let authorities = tls::ClientCertificates::signed_by(file.clone()).expect("read");
    let (pair, _) = with_tls(1, |server| server.clients = Some(authorities));
    let mut known = (*pair.tls).clone();
    known.certificate = Some(clients);
    let known = wait(pair.client.connect(pair.address(), Arc::new(known))).expect("connected");
    wait(round_trip(&known, Bytes::from("hello")));
    let before = view(&pair.mesh).totals.get("quic_connections_closed", "q", "protocol_error");
    assert_eq!(before, 0);
    // TLS 1.3: the client is done before the server has looked, and learns of the refusal afterwards.
    let refused = wait(end_of(&pair, (*pair.tls).clone()));
    // RFC 8446: certificate_required is alert 116.
    assert_eq!(refused.code, portway::transports::quic::Code::Transport(0x100 + 116));
    eventually("it is counted", || pair.counter("quic_connections_closed", "q", "protocol_error") >= 1);
    wait(round_trip(&known, Bytes::from(vec![9; 50_000])));
    assert_eq!(pair.counter("quic_connections_closed", "q", "protocol_error"), 1);
    assert_eq!(pair.counter("quic_connections_opened", "q", ""), 2);
    assert_eq!(refusals(&pair), [1, 0]);
    // Shown, but of nobody whom the server trusts.
    let mut other = (*pair.tls).clone();
    other.certificate = Some(certificate());
    let refused = wait(end_of(&pair, other));
    assert_eq!(refused.code, portway::transports::quic::Code::Transport(0x100 + 48));
    eventually("it is counted", || refusals(&pair) == [1, 1]);
    wait(round_trip(&known, Bytes::from(vec![9; 50_000])));
    assert_eq!((refusals(&pair), pair.counter("quic_connections_closed", "q", "protocol_error")), ([1, 1], 2));
    assert_eq!(pair.counter("quic_tls_refused_by_peers", "c", "certificate_required"), 1);
    assert_eq!(pair.counter("quic_tls_refused_by_peers", "c", "unknown_ca"), 1);
    drop(known);
    std::fs::remove_file(file).expect("removed");
    pair.end();
}
