//! QUIC on real sockets: both ends ours, on one mesh or two.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use portway::actors::Mesh;
use portway::transports::quic::{
    Applications, ClientSettings, Code, Connection, Datagram, Echo, End, Event, Priority, QuicClient, QuicServer,
    ServerSettings, StreamError, Who, blocking,
};
use portway::transports::tls;

use crate::probe::{SOON, eventually, mesh, now, stop, view, wait};

/// One server and one client, and what belongs to them.
pub(crate) struct Pair {
    pub(crate) mesh: Mesh,
    pub(crate) server: QuicServer,
    pub(crate) client: QuicClient,
    pub(crate) tls: Arc<tls::ClientSettings>,
}

pub(crate) fn certificate() -> Arc<tls::Certificate> {
    Arc::new(tls::Certificate::generate(&["localhost".into(), "127.0.0.1".into(), "::1".into()]).expect("made"))
}

pub(crate) fn server_tls(certificate: &Arc<tls::Certificate>) -> tls::ServerSettings {
    let mut settings = tls::ServerSettings::new("q", vec![certificate.clone()]);
    settings.protocols = vec![b"test".to_vec()];
    settings
}

pub(crate) fn client_tls(certificate: &Arc<tls::Certificate>) -> tls::ClientSettings {
    let mut settings = tls::ClientSettings::new(tls::PeerName::new("localhost"));
    settings.roots = tls::Roots::Only(certificate.clone());
    settings.protocols = vec![b"test".to_vec()];
    settings
}

pub(crate) fn echo() -> Option<Applications> {
    Some(Arc::new(|_| Some(Box::new(Echo::default()))))
}

impl Pair {
    pub(crate) fn new(arbiters: usize, applications: Option<Applications>) -> Self {
        Self::with(arbiters, "127.0.0.1:0", applications, |_| (), |_| ())
    }

    pub(crate) fn with(
        arbiters: usize,
        listen: &str,
        applications: Option<Applications>,
        server: impl FnOnce(&mut ServerSettings),
        client: impl FnOnce(&mut ClientSettings),
    ) -> Self {
        let mesh = mesh(arbiters);
        let certificate = certificate();
        let listen = listen.parse().expect("an address");
        let mut settings = ServerSettings::new("q", listen, Arc::new(server_tls(&certificate)));
        server(&mut settings);
        let server = QuicServer::start(&mesh, settings, applications).expect("a server");
        let mut settings = ClientSettings::new("c");
        client(&mut settings);
        let client = QuicClient::start(&mesh, settings).expect("a client");
        Self { mesh, server, client, tls: Arc::new(client_tls(&certificate)) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let mut address = self.server.local_addr();
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        address
    }

    pub(crate) async fn connect(&self) -> Connection {
        match self.client.connect(self.address(), self.tls.clone()).await {
            Ok(connection) => connection,
            Err(error) => panic!("{error}; {:?}", self.mesh.view().await.totals),
        }
    }

    pub(crate) fn connect_blocking(&self) -> blocking::Connection {
        blocking::connect(&self.client, self.address(), self.tls.clone(), SOON).expect("connected")
    }

    pub(crate) fn counter(&self, family: &str, scope: &str, reason: &str) -> u64 {
        view(&self.mesh).totals.get(family, scope, reason)
    }

    /// The actors of connections, of both ends.
    pub(crate) fn actors(&self) -> usize {
        view(&self.mesh).of_kind("quic").count()
    }

    /// Ends everything, and sees that it has.
    pub(crate) fn end(self) {
        self.client.stop();
        self.server.stop();
        wait(self.client.stopped());
        wait(self.server.stopped());
        eventually("all actors are gone", || self.actors() == 0);
        stop(&self.mesh);
    }
}

pub(crate) async fn round_trip(connection: &Connection, bytes: Bytes) {
    // Why a connection ended says more than that it did.
    let end = || connection.end().map(|end| end.to_string());
    let opened = connection.open(Priority::default()).await;
    let (send, receive) = opened.unwrap_or_else(|error| panic!("no stream: {error}; {:?}", end()));
    let sending = async {
        send.write(bytes.clone()).await.unwrap_or_else(|error| panic!("not written: {error}; {:?}", end()));
        send.finish().await.expect("finished");
    };
    let (_, got) = tokio::join!(sending, receive.read_to_end(bytes.len() + 1));
    let got = got.unwrap_or_else(|error| panic!("not read: {error}; {:?}", end()));
    assert_eq!(got.len(), bytes.len());
    assert!(got == bytes, "other bytes came back");
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn streams_and_datagrams_come_back() {
    let pair = Pair::new(2, echo());
    wait(async {
        let connection = pair.connect().await;
        assert_eq!(connection.alpn(), b"test");
        for length in [0, 1, 1_000, 100_000, 3_000_000] {
            round_trip(&connection, pattern(length)).await;
        }
        connection.send_datagram(Datagram::new(Bytes::from("ping"))).await.expect("sent");
        assert_eq!(connection.datagrams().await.expect("open"), ["ping"]);
        connection.close(7, "done");
        let farewell = connection.join().await;
        assert_eq!(
            farewell.end,
            End { who: Who::Local, code: Code::Application(7), text: "done".into(), reason: "closed" }
        );
        assert!(farewell.info.bytes[0] > 3_000_000 && farewell.info.bytes[1] > 3_000_000, "{:?}", farewell.info);
    });
    eventually("both ends are gone", || pair.actors() == 0);
    assert_eq!(pair.counter("quic_connections_closed", "q", "peer_closed"), 1);
    pair.end();
}

#[test]
fn a_unidirectional_stream_comes_back_on_another() {
    let pair = Pair::new(1, echo());
    wait(async {
        let connection = pair.connect().await;
        let send = connection.open_uni(Priority::default()).await.expect("a stream");
        send.write(pattern(500_000)).await.expect("written");
        send.finish().await.expect("finished");
        let back = connection.accept_uni().await.expect("a stream");
        assert!(back.read_to_end(1 << 20).await.expect("read") == pattern(500_000));
    });
    pair.end();
}

#[test]
fn ipv6_and_wildcards_are_answered_from_the_address_asked() {
    for listen in ["[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let pair = Pair::with(2, listen, echo(), |_| (), |_| ());
        wait(async {
            round_trip(&pair.connect().await, pattern(100_000)).await;
            if pair.server.local_addr().ip() == std::net::Ipv4Addr::UNSPECIFIED {
                // The kernel would answer from 127.0.0.1, and the client would not know that address.
                let asked = SocketAddr::from(([127, 0, 0, 9], pair.server.local_addr().port()));
                let connection = pair.client.connect(asked, pair.tls.clone()).await.expect("connected");
                round_trip(&connection, pattern(100_000)).await;
                assert_eq!(pair.server.connections(10).await.iter().filter(|info| info.local == asked).count(), 1);
            }
        });
        pair.end();
    }
}

#[test]
fn connections_are_accepted_by_handles() {
    let pair = Pair::new(2, None);
    wait(async {
        let (client, server) = tokio::join!(pair.connect(), pair.server.accept());
        let server = server.expect("accepted");
        assert_eq!((server.server_name(), server.alpn()), (Some("localhost"), &b"test"[..]));
        let (send, receive) = client.open(Priority::default()).await.expect("a stream");
        let flush = send.write_tracked("hello").await.expect("accepted");
        flush.flushed().await.expect("flushed");
        let (answer, question) = server.accept().await.expect("a stream");
        assert_eq!(question.read(100).await.expect("read").expect("data"), "hello");
        answer.write("world").await.expect("written");
        answer.finish().await.expect("finished");
        assert_eq!(receive.read_to_end(100).await.expect("read"), "world");
        let mut events = client.events();
        server.close(9, "enough");
        let mut last = None;
        while let Some(event) = events.next().await {
            last = Some(event);
        }
        let end = End { who: Who::Peer, code: Code::Application(9), text: "enough".into(), reason: "peer_closed" };
        assert_eq!(last, Some(Event::Closed(end)));
        assert_eq!(send.write("late").await, Err(StreamError::Closed));
    });
    pair.end();
}

#[test]
fn plain_threads_connect_write_read_close_and_join() {
    let pair = Pair::new(2, echo());
    let connection = pair.connect_blocking();
    let (send, receive) = connection.open(Priority::default(), SOON).expect("a stream");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send.write(pattern(2_000_000), SOON).expect("written");
            send.write_flushed("end", SOON).expect("flushed");
            send.finish(SOON).expect("finished");
        });
        let got = receive.read_to_end(3_000_000, SOON).expect("read");
        assert_eq!(got.len(), 2_000_003);
        assert!(got.starts_with(&pattern(2_000_000)) && got.ends_with(b"end"));
    });
    connection.close(0, "");
    let farewell = connection.join(SOON).expect("joined");
    assert_eq!(farewell.end.reason, "closed");
    pair.end();
}

#[test]
fn fifty_sessions_are_fifty_actors_and_then_none() {
    let pair = Pair::new(2, echo());
    let connections: Vec<Connection> = wait(async {
        let mut all = Vec::new();
        for _ in 0..50 {
            let connection = pair.connect().await;
            round_trip(&connection, pattern(1_000)).await;
            all.push(connection);
        }
        all
    });
    let view = view(&pair.mesh);
    let servers: Vec<_> = view.of_kind("quic").filter(|actor| actor.name.as_deref() == Some("q")).collect();
    assert_eq!(servers.len(), 50);
    assert!(servers.iter().all(|actor| actor.turns > 0 && actor.arbiter < 2));
    assert!((0..2).all(|arbiter| servers.iter().any(|actor| actor.arbiter == arbiter)), "all on one arbiter");
    drop(connections);
    let gone = now() + Duration::from_secs(10);
    eventually("all are gone", || pair.actors() == 0);
    assert!(now() < gone);
    assert_eq!(pair.counter("quic_connections_closed", "c", "abandoned"), 50);
    pair.end();
}
