//! How connections end: stated once whatever the way, to handles, threads and applications alike.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use portway::actors::{Fault, Place, Protocol, Reply, Spec, Turn};
use portway::transports::quic::{
    Application, Applications, Code, ConnectError, Event, Priority, Session, StreamError, StreamKind, Who, blocking,
};

use crate::probe::{SOON, eventually, now, stop, wait};
use crate::quic::{Pair, certificate, client_tls, echo, round_trip};
use crate::quic_moving::Translator;

#[derive(Default)]
struct Seen {
    closed: AtomicUsize,
    after: AtomicUsize,
}

/// Closes, opens, writes and resets from within every event, also from within the last.
struct Unruly {
    seen: Arc<Seen>,
    close_on_data: bool,
    over: bool,
}

impl Application for Unruly {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if self.over {
            self.seen.after.fetch_add(1, Ordering::SeqCst);
        }
        if let Event::Readable(stream) = event
            && self.close_on_data
        {
            session.close(1, "first");
            assert_eq!(session.read(stream, 10), Err(StreamError::Closed));
            assert_eq!(session.write(stream, Bytes::from("x")), Err(StreamError::Closed));
            session.close(2, "second");
        } else if let Event::Closed(end) = event {
            if self.close_on_data {
                assert_eq!((end.who, end.code), (Who::Local, Code::Application(1)));
            }
            self.over = true;
            self.seen.closed.fetch_add(1, Ordering::SeqCst);
            session.close(3, "third");
            assert!(session.open(StreamKind::Bidirectional, Priority::default()).is_err());
        }
    }
}

fn unruly(close_on_data: bool) -> (Arc<Seen>, Option<Applications>) {
    let seen = Arc::new(Seen::default());
    let given = seen.clone();
    let make: Applications =
        Arc::new(move |_| Some(Box::new(Unruly { seen: given.clone(), close_on_data, over: false })));
    (seen, Some(make))
}

#[test]
fn the_end_is_stated_once_whatever_the_way() {
    // Closed from within an event, by the peer, by losing the network, by a stop, by a drain.
    for way in ["within", "peer", "idle", "stop", "drain"] {
        let (seen, applications) = unruly(way == "within");
        let pair = Pair::with(
            1,
            "127.0.0.1:0",
            applications,
            |server| {
                // A machine that is busy elsewhere must not end it the other ways.
                let idle = if way == "idle" { Duration::from_millis(400) } else { Duration::from_secs(30) };
                server.transport.idle_timeout = idle;
            },
            |client| client.transport.idle_timeout = Duration::from_secs(30),
        );
        let network = Translator::start(pair.server.local_addr());
        let connection = wait(pair.client.connect(network.address, pair.tls.clone())).expect("connected");
        eventually("the server's side is open", || {
            wait(pair.server.connections(10)).iter().any(|info| info.state == "open")
        });
        match way {
            "within" => wait(async {
                let (send, _receive) = connection.open(Priority::default()).await.expect("a stream");
                send.write("x").await.expect("written");
                let farewell = connection.join().await;
                assert_eq!((farewell.end.who, farewell.end.code), (Who::Peer, Code::Application(1)));
                assert_eq!(&*farewell.end.text, "first");
            }),
            "peer" => connection.close(5, "bye"),
            "idle" => network.cut.store(true, Ordering::SeqCst),
            "stop" => pair.server.stop(),
            _ => pair.server.drain(now() + Duration::from_secs(5)),
        }
        eventually(way, || seen.closed.load(Ordering::SeqCst) > 0);
        let reason = match way {
            "within" => "closed",
            "peer" => "peer_closed",
            "idle" => "idle",
            "stop" => "stopped",
            _ => "drained",
        };
        eventually("it is counted", || pair.counter("quic_connections_closed", "q", reason) == 1);
        drop(connection);
        pair.end();
        assert_eq!((seen.closed.load(Ordering::SeqCst), seen.after.load(Ordering::SeqCst)), (1, 0), "{way}");
    }
}

#[test]
fn writes_after_the_end_are_typed_errors_on_five_threads() {
    let pair = Pair::new(2, echo());
    let neighbour = wait(pair.connect());
    let connection = pair.connect_blocking();
    let (send, receive) = connection.open(Priority::default(), SOON).expect("a stream");
    let began = std::sync::Barrier::new(6);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5)
            .map(|_| {
                scope.spawn(|| {
                    began.wait();
                    let mut written = 0;
                    loop {
                        match send.write(vec![0; 5_000], SOON) {
                            Ok(()) => written += 1,
                            Err(error) => return (written, error),
                        }
                    }
                })
            })
            .collect();
        began.wait();
        assert!(receive.read(1, SOON).expect("read").is_some());
        connection.close(3, "enough");
        for thread in threads {
            let (_, error) = thread.join().expect("no panic");
            assert_eq!(error, blocking::Failed::Error(StreamError::Closed));
        }
    });
    assert_eq!(connection.join(SOON).expect("joined").end.code, Code::Application(3));
    assert_eq!(send.handle().try_write("x"), Err(StreamError::Closed));
    assert_eq!(receive.read(1, SOON), Err(blocking::Failed::Error(StreamError::Closed)));
    assert!(connection.open(Priority::default(), SOON).is_err());
    assert!(connection.info(SOON).is_err());
    drop((send, receive, connection));
    // Nothing of it is left, here or there, and the neighbour is as it was.
    eventually("its actors are gone", || pair.actors() == 2);
    wait(round_trip(&neighbour, Bytes::from(vec![9; 50_000])));
    assert_eq!(pair.counter("quic_connections_closed", "c", "closed"), 1);
    assert_eq!(pair.counter("quic_connections_closed", "q", "peer_closed"), 1);
    drop(neighbour);
    pair.end();
}

#[test]
fn a_server_can_be_stopped_while_handles_live_elsewhere() {
    let pair = Pair::new(2, None);
    let client = pair.connect_blocking();
    let server = blocking::accept(&pair.server, SOON).expect("accepted");
    let (send, receive) = client.open(Priority::default(), SOON).expect("a stream");
    let waiting = std::thread::spawn(move || receive.read(1, SOON));
    let events = std::thread::spawn({
        let server = server.clone();
        move || server.events(SOON).filter(|event| matches!(event, Event::Closed(_))).count()
    });
    send.write("x", SOON).expect("written");
    pair.server.stop();
    wait(pair.server.stopped());
    assert_eq!(events.join().expect("no panic"), 1);
    assert!(waiting.join().expect("no panic").is_err());
    assert_eq!(server.join(SOON).expect("joined").end.reason, "stopped");
    assert!(server.open(Priority::default(), SOON).is_err());
    assert_eq!(client.join(SOON).expect("joined").end.who, Who::Peer, "it heard of the end");
    assert!(blocking::accept(&pair.server, SOON).is_err());
    drop((client, server, send));
    pair.end();
}

#[test]
fn a_drain_lets_streams_finish_and_sees_the_close_leave() {
    let pair = Pair::new(2, echo());
    let connection = pair.connect_blocking();
    let (send, receive) = connection.open(Priority::default(), SOON).expect("a stream");
    send.write(vec![1; 100_000], SOON).expect("written");
    let first = receive.read(1_000, SOON).expect("read").expect("data").len();
    let began = now();
    pair.server.drain(began + Duration::from_secs(20));
    // No new streams of the server's, no new connections; what runs goes on.
    let late = wait(pair.connect());
    // RFC 9000, section 20.1: CONNECTION_REFUSED.
    assert_eq!(wait(late.join()).end.code, Code::Transport(2));
    send.write(vec![2; 100_000], SOON).expect("written");
    send.finish(SOON).expect("finished");
    let rest = receive.read_to_end(1 << 20, SOON);
    assert_eq!(rest.map(|rest| rest.len()), Ok(200_000 - first), "{:?} after {:?}", connection.end(), now() - began);
    let farewell = connection.join(SOON).expect("joined");
    assert_eq!((farewell.end.who, farewell.end.code), (Who::Peer, Code::Application(0)), "the close has left");
    wait(pair.server.stopped());
    assert!(now() < began + Duration::from_secs(15), "it waited for the deadline");
    assert_eq!(pair.counter("quic_connections_closed", "q", "drained"), 1);
    drop((send, receive, connection));
    pair.end();
}

#[test]
fn a_protocol_nobody_speaks_a_wrong_name_and_a_silent_server_are_told_apart() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        echo(),
        |_| (),
        |client| {
            client.transport.handshake_timeout = Duration::from_millis(600);
        },
    );
    let neighbour = wait(pair.connect());
    let mut other = (*pair.tls).clone();
    other.protocols = vec![b"unknown".to_vec()];
    let error = wait(pair.client.connect(pair.address(), Arc::new(other))).expect_err("refused");
    // RFC 7301: no_application_protocol is alert 120; RFC 9001, section 4.8: 0x100 and the alert.
    let ConnectError::Ended(end) = error else { panic!("{error:?}") };
    assert_eq!((end.who, end.code), (Who::Peer, Code::Transport(0x100 + 120)));
    eventually("it is counted", || pair.counter("quic_connections_closed", "q", "protocol_error") == 1);
    let refused = |family: &str, scope: &str, alert: &str| {
        eventually(alert, || pair.counter(family, scope, alert) >= 1);
        assert_eq!(pair.counter(family, scope, alert), 1, "{family} {scope} {alert}");
    };
    refused("quic_tls_refused", "q", "no_application_protocol");
    refused("quic_tls_refused_by_peers", "c", "no_application_protocol");

    // The certificate of the server, of nobody whom this client trusts, or of another name: each end counts its own.
    let mut stranger = client_tls(&certificate());
    stranger.protocols = vec![b"test".to_vec()];
    let error = wait(pair.client.connect(pair.address(), Arc::new(stranger))).expect_err("not trusted");
    let ConnectError::Ended(end) = error else { panic!("{error:?}") };
    assert_eq!((end.who, end.reason, end.code.alert()), (Who::Local, "protocol_error", Some("unknown_ca")));
    refused("quic_tls_refused", "c", "unknown_ca");
    refused("quic_tls_refused_by_peers", "q", "unknown_ca");
    let mut other = (*pair.tls).clone();
    other.name = portway::transports::tls::PeerName::new("elsewhere.example");
    let error = wait(pair.client.connect(pair.address(), Arc::new(other))).expect_err("another name");
    let ConnectError::Ended(end) = error else { panic!("{error:?}") };
    assert_eq!((end.who, end.code.alert()), (Who::Local, Some("bad_certificate")));
    refused("quic_tls_refused", "c", "bad_certificate");
    refused("quic_tls_refused_by_peers", "q", "bad_certificate");
    assert_eq!(crate::probe::view(&pair.mesh).totals.family("quic_tls_refused"), 3);
    assert_eq!(crate::probe::view(&pair.mesh).totals.family("quic_tls_refused_by_peers"), 3);

    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let error = wait(pair.client.connect(silent.local_addr().expect("bound"), pair.tls.clone())).expect_err("silent");
    let ConnectError::Ended(end) = error else { panic!("{error:?}") };
    assert_eq!((end.who, end.reason), (Who::Nobody, "handshake_timeout"));
    wait(round_trip(&neighbour, Bytes::from("unharmed")));
    drop(neighbour);
    pair.end();
}

/// Tries a blocking call from within an actor.
struct Blocks(blocking::Connection);

impl Protocol for Blocks {
    type Msg = Reply<bool>;
    const KIND: &'static str = "blocks";

    fn on(&mut self, reply: Reply<bool>, _: &mut Turn<'_, Reply<bool>>) -> Result<(), Fault> {
        let refused = self.0.info(SOON) == Err(blocking::Failed::OnArbiter)
            && self.0.open(Priority::default(), SOON).is_err_and(|error| error == blocking::Failed::OnArbiter)
            && self.0.join(SOON) == Err(blocking::Failed::OnArbiter);
        let _gone = reply.send(refused);
        Ok(())
    }
}

#[test]
fn a_blocking_call_on_an_arbiter_is_refused() {
    let pair = Pair::new(1, echo());
    let connection = pair.connect_blocking();
    let actor = pair.mesh.spawn(Place::On(0), Spec::default(), {
        let connection = connection.clone();
        move || Blocks(connection)
    });
    let refused = actor.expect("spawned").ask_blocking(|reply| reply, SOON).expect("an answer");
    assert!(refused);
    drop(connection);
    stop(&pair.mesh);
}

/// Puts a Handshake packet that nobody has keys for before each packet of a client with a short header, as a client
/// does that closes before it knows that the handshake is confirmed (RFC 9000, section 10.2.3).
struct Doubling {
    front: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Doubling {
    fn before(server: SocketAddr) -> Self {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
            Arc::new(socket)
        };
        let (front, back, stop) = (socket(), socket(), Arc::new(AtomicBool::new(false)));
        let client = Arc::new(std::sync::OnceLock::new());
        let here = front.local_addr().expect("bound");
        let pass = |from: Arc<UdpSocket>, to: Arc<UdpSocket>, there: Option<SocketAddr>| {
            let (stop, client) = (stop.clone(), client.clone());
            std::thread::spawn(move || {
                let mut packet = vec![0; 65_536];
                while !stop.load(Ordering::SeqCst) {
                    let Ok((length, sender)) = from.recv_from(&mut packet) else { continue };
                    let mut sent = Vec::new();
                    if there.is_some() {
                        client.get_or_init(|| sender);
                        if packet[0] & 0x80 == 0 {
                            // Handshake, version 1, ids of 16 and 0 bytes, 30 bytes.
                            sent.extend([0xe0, 0, 0, 0, 1, 16]);
                            sent.extend(&packet[1..17]);
                            sent.extend([0, 30]);
                            sent.extend([7; 30]);
                        }
                    }
                    sent.extend(&packet[..length]);
                    if let Some(to_whom) = there.as_ref().or_else(|| client.get()) {
                        to.send_to(&sent, to_whom).expect("sent");
                    }
                }
            })
        };
        let threads = vec![pass(front.clone(), back.clone(), Some(server)), pass(back, front, None)];
        Self { front: here, stop, threads }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}

#[test]
fn a_thousand_clients_that_close_at_once_leave_nobody_behind() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        echo(),
        |server| {
            (server.limits.rate, server.limits.burst, server.limits.half_open) = (u32::MAX, u32::MAX, 10_000);
            // For those whose one close a socket of the forwarder had no room for.
            server.transport.idle_timeout = Duration::from_secs(3);
        },
        |_| (),
    );
    let doubling = Doubling::before(pair.address());
    wait(async {
        for _ in 0..100 {
            let clients = (0..10).map(|_| async {
                let connected = pair.client.connect(doubling.front, pair.tls.clone()).await;
                connected.expect("connected").close(0, "");
            });
            futures_util::future::join_all(clients).await;
        }
    });
    eventually("all connections are gone", || pair.actors() == 0);
    let heard = pair.counter("quic_connections_closed", "q", "peer_closed");
    // Closes are sent once; on a machine with eight times as much to do as it can, 24 were lost.
    assert!(heard >= 900, "only {heard} of 1,000 were heard to close");
    doubling.end();
    pair.end();
}
