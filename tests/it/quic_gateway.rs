//! The gateway's QUIC side: listeners with routes, streams and datagrams joined to servers, tunnels between gateways,
//! certificates replaced while it runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use portway::actors::Mesh;
use portway::transports::quic::{
    ClientSettings, Code, ConnectError, Connection, Datagram, Priority, QuicClient, StreamError, Who,
};
use portway::transports::tls;

use crate::gateway::{Running, free};
use crate::probe::{SOON, eventually, mesh, stop, view, wait};

/// The certificate of tests/data/tls, for `localhost`.
pub(crate) fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

pub(crate) fn certificate() -> String {
    let (cert, key) = (pem("good.pem"), pem("good-key.pem"));
    format!("[[certificate]]\nname = \"local\"\ncert = {cert:?}\nkey = {key:?}\n")
}

/// A gateway with a QUIC listener `q`; `rest` are its routes and what follows.
pub(crate) fn listening(arbiters: usize, rest: &str) -> String {
    listening_on("127.0.0.1:0", arbiters, rest)
}

pub(crate) fn listening_on(address: &str, arbiters: usize, rest: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = {arbiters}\ndrain = \"5s\"\n{}\n[[listener]]\nname = \"q\"\n\
         listen = \"{address}\"\nprotocol = \"quic\"\ncertificate = \"local\"\n{rest}",
        certificate()
    )
}

pub(crate) const ECHO: &str = "[[listener.route]]\nalpn = \"echo\"\nservice = \"echo\"\n";

/// Clients on a mesh of their own.
pub(crate) struct Clients {
    mesh: Mesh,
    pub(crate) client: QuicClient,
}

impl Clients {
    pub(crate) fn new() -> Self {
        let mesh = mesh(1);
        let mut settings = ClientSettings::new("clients");
        // Some paths lose a fifth of what is sent.
        settings.transport.handshake_timeout = Duration::from_secs(60);
        settings.transport.idle_timeout = Duration::from_secs(60);
        let client = QuicClient::start(&mesh, settings).expect("a client");
        Self { mesh, client }
    }

    pub(crate) async fn try_connect(&self, to: SocketAddr, alpn: &str) -> Result<Connection, ConnectError> {
        self.client.connect(to, Arc::new(says(alpn))).await
    }

    pub(crate) async fn connect(&self, to: SocketAddr, alpn: &str) -> Connection {
        self.try_connect(to, alpn).await.expect("connected")
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.client.stop();
        stop(&self.mesh);
    }
}

pub(crate) fn says(alpn: &str) -> tls::ClientSettings {
    tls::ClientSettings {
        roots: tls::Roots::File(pem("good.pem")),
        protocols: vec![alpn.as_bytes().to_vec()],
        ..tls::ClientSettings::new(tls::PeerName::new("localhost"))
    }
}

/// Sends, finishes, and reads to the end.
pub(crate) async fn exchange(connection: &Connection, what: Bytes) -> Bytes {
    let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
    let sending = async {
        send.write(what.clone()).await.expect("written");
        send.finish().await.expect("finished");
    };
    let (_, got) = tokio::join!(sending, receive.read_to_end(what.len() + 1));
    got.expect("read")
}

pub(crate) fn pattern(length: usize) -> Bytes {
    (0..length).map(|n| (n % 251) as u8).collect()
}

async fn totals(running: &Running) -> portway::actors::Totals {
    running.gateway().mesh().view().await.totals
}

/// A TCP server that does `what` with each connection.
pub(crate) fn tcp_server(what: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let what = Arc::new(what);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (what, stream) = (what.clone(), stream.expect("a connection"));
            stream.set_read_timeout(Some(SOON)).expect("set");
            std::thread::spawn(move || what(stream));
        }
    });
    address
}

/// Reads to the end and then sends all of it back: half-closes must pass both ways.
pub(crate) fn answer_at_the_end(mut stream: TcpStream) {
    let mut all = Vec::new();
    if stream.read_to_end(&mut all).is_ok() {
        // The client may have gone meanwhile.
        let _gone = stream.write_all(&all);
    }
}

pub(crate) fn upstream(name: &str, server: impl std::fmt::Display) -> String {
    format!("[[upstream]]\nname = \"{name}\"\nservers = [\"{server}\"]\n")
}

#[test]
fn an_echo_listener_echoes_streams_and_datagrams_on_every_arbiter() {
    let running = Running::start(&listening(4, ECHO));
    let clients = Clients::new();
    wait(async {
        let mut open = Vec::new();
        for n in 0..8 {
            let connection = clients.connect(running.address("q"), "echo").await;
            let what = pattern(100_000 + n);
            assert_eq!(exchange(&connection, what.clone()).await, what);
            connection.send_datagram(Datagram::new(Bytes::from_static(b"dg"))).await.expect("sent");
            assert_eq!(connection.datagrams().await.expect("alive"), [Bytes::from_static(b"dg")]);
            open.push(connection);
        }
        assert_eq!(totals(&running).await.get("connections_accepted", "q", ""), 8);
        drop(open);
    });
    eventually("all places are free", || running.gateway().memory_leased() == 0);
}

#[test]
fn streams_are_joined_to_a_tcp_server_and_half_closes_pass() {
    let server = tcp_server(answer_at_the_end);
    let route = "[[listener.route]]\nalpn = \"app\"\nupstream = \"app\"\n";
    let running = Running::start(&listening(2, &format!("{route}{}", upstream("app", server))));
    let clients = Clients::new();
    wait(async {
        let connection = clients.connect(running.address("q"), "app").await;
        for n in [0, 1, 1_000, 3_000_000] {
            let what = pattern(n);
            assert!(exchange(&connection, what.clone()).await == what, "{n} bytes");
        }
        let many: Vec<_> = (0..100).map(|n| exchange(&connection, pattern(10_000 + n))).collect();
        for (n, got) in futures_util::future::join_all(many).await.into_iter().enumerate() {
            assert!(got == pattern(10_000 + n));
        }
    });
    running.counts("connections_accepted", "q", "", 1);
    running.counts("connections_closed", "q", "finished", 104);
}

#[test]
fn a_unix_socket_is_a_server_too() {
    let path = std::env::temp_dir().join(format!("portway-quic-{}.sock", std::process::id()));
    let _before = std::fs::remove_file(&path);
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        stream.write_all(&all).expect("written");
    });
    let route = "[[listener.route]]\nalpn = \"app\"\nupstream = \"app\"\n";
    let unix = format!("unix:{}", path.display());
    let running = Running::start(&listening(1, &format!("{route}{}", upstream("app", unix))));
    let clients = Clients::new();
    wait(async {
        let connection = clients.connect(running.address("q"), "app").await;
        assert_eq!(exchange(&connection, pattern(50_000)).await, pattern(50_000));
    });
    std::fs::remove_file(&path).expect("removed");
}

/// A reset passes as a reset, and an end never as one.
#[test]
fn resets_pass_both_ways() {
    let (say, said) = std::sync::mpsc::channel();
    let server = tcp_server(move |mut stream| {
        let mut first = [0; 1];
        stream.read_exact(&mut first).expect("a first byte");
        if first == *b"r" {
            // Dropped with unread bytes under way: TCP resets.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
            return;
        }
        let mut rest = Vec::new();
        let error = stream.read_to_end(&mut rest).expect_err("no end, a reset");
        say.send(error.kind()).expect("the test waits");
    });
    let route = "[[listener.route]]\nalpn = \"app\"\nupstream = \"app\"\n";
    let running = Running::start(&listening(1, &format!("{route}{}", upstream("app", server))));
    let clients = Clients::new();
    wait(async {
        let connection = clients.connect(running.address("q"), "app").await;
        let neighbour = clients.connect(running.address("q"), "app").await;
        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        send.write(Bytes::from_static(b"r")).await.expect("written");
        assert_eq!(receive.read(10).await, Err(StreamError::Reset(0x101)));

        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        send.write(Bytes::from_static(b"x")).await.expect("written");
        while totals(&running).await.get("relay_bytes_up", "q", "") < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        send.reset(77).await.expect("reset");
        assert_eq!(said.recv_timeout(SOON).expect("told"), std::io::ErrorKind::ConnectionReset);
        assert_eq!(receive.read(10).await, Err(StreamError::Reset(0x101)));

        // The connections go on.
        for connection in [&connection, &neighbour] {
            assert!(connection.end().is_none());
        }
    });
    running.counts("connections_closed", "q", "upstream_reset", 1);
    running.counts("connections_closed", "q", "client_reset", 1);
}

#[test]
fn a_server_that_is_not_there_resets_the_stream_and_not_the_connection() {
    let nobody = free();
    let route = "[[listener.route]]\nalpn = \"app\"\nupstream = \"app\"\n";
    let running = Running::start(&listening(1, &format!("{route}{}", upstream("app", nobody))));
    let clients = Clients::new();
    wait(async {
        let connection = clients.connect(running.address("q"), "app").await;
        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        send.write(Bytes::from_static(b"x")).await.expect("written");
        assert_eq!(receive.read(10).await, Err(StreamError::Reset(0x101)));
        assert!(connection.end().is_none());
    });
    eventually("counted", || running.totals().get("upstream_failures", "app", "connect_refused") == 1);
}

#[test]
fn datagrams_go_to_a_udp_server_and_back() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut buffer = [0; 2_000];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            buffer[..length].reverse();
            server.send_to(&buffer[..length], from).expect("sent");
        }
    });
    let route = "[[listener.route]]\nalpn = \"dg\"\ndatagrams = \"udp\"\n";
    let server = format!("udp://{address}");
    let running = Running::start(&listening(2, &format!("{route}{}", upstream("udp", server))));
    let clients = Clients::new();
    wait(async {
        let connection = clients.connect(running.address("q"), "dg").await;
        for n in 1..100_u8 {
            connection.send_datagram(Datagram::new(Bytes::from(vec![0, n]))).await.expect("sent");
            assert_eq!(connection.datagrams().await.expect("alive"), [Bytes::from(vec![n, 0])]);
        }
        // Streams lead nowhere here.
        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        send.write(Bytes::from_static(b"x")).await.expect("written");
        assert_eq!(receive.read(10).await, Err(StreamError::Reset(0x102)));
    });
    running.counts("quic_datagrams_relayed", "q", "up", 99);
    running.counts("quic_datagrams_relayed", "q", "down", 99);
    running.counts("quic_streams_refused", "q", "no_upstream", 1);
}

/// TCP in, one QUIC connection with many streams between two gateways, TCP out.
#[test]
fn two_gateways_are_a_tunnel_for_tcp() {
    let server = tcp_server(answer_at_the_end);
    let route = "[[listener.route]]\nalpn = \"site\"\nupstream = \"app\"\n";
    let far = Running::start(&listening(2, &format!("{route}{}", upstream("app", server))));
    let far_address = far.address("q");
    let near = Running::start(&format!(
        "version = 1\n[runtime]\narbiters = 1\n[[upstream]]\nname = \"far\"\nservers = [\"quic://{far_address}\"]\n\
         [upstream.tls]\nca = {:?}\nname = \"localhost\"\nalpn = \"site\"\n\
         [[listener]]\nname = \"in\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"relay\"\nupstream = \"far\"\n",
        pem("good.pem")
    ));
    let address = near.address("in");
    let threads: Vec<_> = (0..50)
        .map(|n| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).expect("connected");
                stream.set_read_timeout(Some(SOON)).expect("set");
                let what = pattern(200_000 + n);
                stream.write_all(&what).expect("written");
                stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
                let mut back = Vec::new();
                stream.read_to_end(&mut back).expect("read");
                assert!(back == what, "stream {n}");
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    // Fifty clients, one connection.
    far.counts("connections_accepted", "q", "", 1);
    near.counts("connections_closed", "in", "finished", 50);
    far.counts("connections_closed", "q", "finished", 50);

    // A reset crosses the tunnel as a reset.
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.write_all(b"x").expect("written");
    eventually("it is through", || far.totals().get("relay_bytes_up", "q", "") == 50 * 200_000 + 49 * 25 + 1);
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
    drop(stream);
    far.counts("connections_closed", "q", "client_reset", 1);
}

#[test]
fn alpn_nobody_speaks_is_refused_and_a_neighbour_loses_nothing() {
    let running = Running::start(&listening(1, ECHO));
    let clients = Clients::new();
    wait(async {
        let neighbour = clients.connect(running.address("q"), "echo").await;
        let refused = clients.try_connect(running.address("q"), "nobody").await.expect_err("refused");
        let ConnectError::Ended(end) = refused else { panic!("{refused}") };
        // no_application_protocol (RFC 7301) as a QUIC error (RFC 9001, section 4.8).
        assert_eq!((end.who, end.code), (Who::Peer, Code::Transport(0x100 + 120)));
        assert_eq!(exchange(&neighbour, pattern(10_000)).await, pattern(10_000));
    });
    running.counts("quic_connections_closed", "q", "protocol_error", 1);
    running.counts("quic_tls_refused", "q", "no_application_protocol", 1);
    running.counts("connections_accepted", "q", "", 1);
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let tls = format!("[listener.tls]\nclient_ca = {:?}\n", pem("good.pem"));
    let running = Running::start(&listening(1, &format!("{tls}{ECHO}")));
    let clients = Clients::new();
    let own = tls::Certificate::from_files(&pem("good.pem"), &pem("good-key.pem")).expect("a pair");
    let welcome = Arc::new(tls::ClientSettings { certificate: Some(Arc::new(own)), ..says("echo") });
    wait(async {
        let address = running.address("q");
        let neighbour = clients.client.connect(address, welcome).await.expect("connected");
        assert_eq!(exchange(&neighbour, pattern(10)).await, pattern(10));
        // The client is done with its handshake before the server has looked for its certificate.
        let end = match clients.try_connect(address, "echo").await {
            Err(ConnectError::Ended(end)) => end,
            Ok(connection) => connection.join().await.end,
            Err(other) => panic!("{other}"),
        };
        // certificate_required (RFC 8446, section 6.2).
        assert_eq!((end.who, end.code), (Who::Peer, Code::Transport(0x100 + 116)));
        assert_eq!(exchange(&neighbour, pattern(10_000)).await, pattern(10_000));
    });
    running.counts("quic_connections_closed", "q", "protocol_error", 1);
    running.counts("quic_tls_refused", "q", "certificate_required", 1);
    running.counts("connections_accepted", "q", "", 1);
}

#[test]
fn connections_beyond_the_limits_are_refused_and_say_so() {
    let limits = "[listener.limits]\nper_source = 2\n";
    let running = Running::start(&listening(1, &format!("{limits}{ECHO}")));
    let clients = Clients::new();
    wait(async {
        let address = running.address("q");
        let one = clients.connect(address, "echo").await;
        let two = clients.connect(address, "echo").await;
        // Its handshake is done when it is counted.
        let end = match clients.try_connect(address, "echo").await {
            Err(ConnectError::Ended(end)) => end,
            Ok(connection) => connection.join().await.end,
            Err(other) => panic!("{other}"),
        };
        assert_eq!((end.who, end.code, &*end.text), (Who::Peer, Code::Application(0x102), "limit_per_source"));
        assert_eq!(exchange(&one, pattern(10)).await, pattern(10));
        assert_eq!(exchange(&two, pattern(10)).await, pattern(10));
    });
    running.counts("connections_refused", "q", "limit_per_source", 1);
}

#[test]
fn fifty_connections_are_fifty_sessions_and_then_none() {
    let server = tcp_server(answer_at_the_end);
    let route = "[[listener.route]]\nalpn = \"app\"\nupstream = \"app\"\n";
    let running = Running::start(&listening(4, &format!("{route}{}", upstream("app", server))));
    let clients = Clients::new();
    wait(async {
        let mut open = Vec::new();
        for _ in 0..50 {
            let connection = clients.connect(running.address("q"), "app").await;
            assert_eq!(exchange(&connection, pattern(100)).await, pattern(100));
            open.push(connection);
        }
        let seen = running.gateway().mesh().view().await;
        let sessions: Vec<_> = seen.of_kind("quic_session").collect();
        assert_eq!(sessions.len(), 50);
        assert!(sessions.iter().all(|session| session.turns > 0));
    });
    let mesh = running.gateway().mesh().clone();
    eventually("none is left", || view(&mesh).of_kind("quic_session").count() == 0);
    eventually("no relay is left", || view(&mesh).of_kind("relay").count() == 0);
    eventually("all places are free", || running.gateway().memory_leased() == 0);
}

/// Another certificate for new connections, while those inside go on; and a file that is no certificate changes nothing.
#[test]
fn certificates_are_replaced_on_all_arbiters_or_not_at_all() {
    let folder = std::env::temp_dir().join(format!("portway-quic-reload-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (cert, key) = (folder.join("c.pem"), folder.join("k.pem"));
    let copy = |from: &str, to: &Path| {
        std::fs::copy(pem(from), to).expect("copied");
    };
    copy("good.pem", &cert);
    copy("good-key.pem", &key);
    let text = listening(3, ECHO)
        .replace(&certificate(), &format!("[[certificate]]\nname = \"local\"\ncert = {cert:?}\nkey = {key:?}\n"));
    let load = || portway::gateway::check::parse("test.toml", &text, &portway::gateway::check::Known::default());
    let running = Running::of(portway::gateway::Builder::new().start(load().expect("no mistakes")).expect("it starts"));
    let address = running.address("q");
    let clients = Clients::new();
    let trusting = |file: &str| Arc::new(tls::ClientSettings { roots: tls::Roots::File(pem(file)), ..says("echo") });
    let connects = |file: &str, times: usize| {
        wait(async {
            for _ in 0..times {
                // Another port each time, and so another arbiter.
                let lone = Clients::new();
                if lone.client.connect(address, trusting(file)).await.is_err() {
                    return false;
                }
            }
            true
        })
    };
    let inside = wait(clients.connect(address, "echo"));
    assert!(connects("good.pem", 4) && !connects("new.pem", 1));

    // What does not match is found before anything is touched.
    copy("new.pem", &cert);
    let report = load().expect_err("a mistake").to_string();
    assert!(report.contains("does not belong to the certificate"), "{report}");
    assert!(connects("good.pem", 4));

    copy("new-key.pem", &key);
    let done = running.gateway().reload(load().expect("no mistakes")).expect("applied");
    assert_eq!((done.changed, done.kept.len()), (vec!["q".to_owned()], 0));
    assert!(connects("new.pem", 8) && !connects("good.pem", 1), "all arbiters have the new one");
    assert_eq!(wait(exchange(&inside, pattern(1_000))), pattern(1_000), "those inside go on");

    // Between the check and the reload the file breaks: refused whole.
    let checked = load().expect("no mistakes");
    std::fs::write(&cert, "no certificate").expect("written");
    let error = running.gateway().reload(checked).expect_err("refused").to_string();
    assert!(error.contains("no certificate in it"), "{error}");
    assert!(connects("new.pem", 4));
    assert_eq!(wait(exchange(&inside, pattern(1_000))), pattern(1_000), "those inside lost nothing");
    // Each that trusts another certificate than the one shown was refused here, by itself; nobody else was.
    assert_eq!(running.totals().family("quic_connections_refused"), 0);
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// BBR2 by configuration, seen by what it alone knows: an estimate of the bandwidth.
#[test]
fn congestion_control_is_the_one_that_was_asked_for() {
    for (keys, estimates) in [("congestion = \"bbr2\"\n", true), ("congestion = \"cubic\"\n", false), ("", false)] {
        let admin = free();
        let rest = format!("{ECHO}[listener.quic]\n{keys}[admin]\nlisten = \"{admin}\"\n");
        let running = Running::start(&listening(1, &rest));
        let clients = Clients::new();
        wait(async {
            let connection = clients.connect(running.address("q"), "echo").await;
            assert!(exchange(&connection, pattern(4_000_000)).await == pattern(4_000_000));
            let (status, body) = crate::gateway::get(admin, "/api/connections");
            assert_eq!(status, 200);
            let rows: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            let found = rows[0]["bandwidth_bytes_s"].as_u64();
            // Over loopback; anything below would have taken the test's time.
            assert!(found.map(|bytes| bytes > 100_000) == estimates.then_some(true), "{keys}{body}");
            connection.close(0, "");
        });
    }
}

#[test]
fn routes_change_while_connections_go_on() {
    let running = Running::start(&listening(2, ECHO));
    let address = running.address("q");
    let clients = Clients::new();
    let inside = wait(clients.connect(address, "echo"));
    let other = ECHO.replace("alpn = \"echo\"", "alpn = \"other\"");
    let parse = |text: &str| {
        portway::gateway::check::parse("test.toml", text, &portway::gateway::check::Known::default()).expect("right")
    };
    let done = running.gateway().reload(parse(&listening(2, &other))).expect("applied");
    assert_eq!(done.changed, ["q"]);
    assert!(wait(clients.try_connect(address, "echo")).is_err());
    let new = wait(clients.connect(address, "other"));
    for connection in [&inside, &new] {
        assert_eq!(wait(exchange(connection, pattern(1_000))), pattern(1_000));
    }
    let done = running.gateway().reload(parse(&listening(2, &other))).expect("applied");
    assert_eq!((done.kept, done.changed), (vec!["q".to_owned()], vec![]));
}

/// With the key log a capture can be read: one line for each secret, for the owner alone.
#[test]
fn secrets_are_written_on_request() {
    use std::os::unix::fs::PermissionsExt;
    let file = std::env::temp_dir().join(format!("portway-quic-keys-{}.log", std::process::id()));
    let _before = std::fs::remove_file(&file);
    let running = Running::start(&listening(2, &format!("[listener.tls]\nkeylog = {file:?}\n{ECHO}")));
    let clients = Clients::new();
    wait(async {
        for _ in 0..3 {
            let connection = clients.connect(running.address("q"), "echo").await;
            assert_eq!(exchange(&connection, pattern(10)).await, pattern(10));
        }
    });
    let text = std::fs::read_to_string(&file).expect("written");
    for label in ["CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"] {
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split(' ').collect()).filter(|words: &Vec<&str>| words[0] == label).collect();
        assert_eq!(lines.len(), 3, "{label}");
        assert!(lines.iter().all(|words| words.len() == 3 && words[1].len() == 64 && words[2].len() >= 64));
    }
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    std::fs::remove_file(&file).expect("removed");
}

/// A certificate that is garbage, or another's key, is found by `check` and at the start, with its place.
#[test]
fn certificates_that_cannot_be_used_are_named() {
    let folder = std::env::temp_dir().join(format!("portway-quic-garbage-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let garbage = folder.join("garbage.pem");
    std::fs::write(&garbage, [0, 255, 10, 7]).expect("written");
    let text = |cert: &Path, key: &Path| {
        let pair = format!("[[certificate]]\nname = \"local\"\ncert = {cert:?}\nkey = {key:?}\n");
        listening(1, ECHO).replace(&certificate(), &pair)
    };
    let refused = |text: &str, what: &str| {
        let known = portway::gateway::check::Known::default();
        let report = portway::gateway::check::parse("test.toml", text, &known).expect_err("a mistake").render(false);
        assert!(report.contains("test.toml:") && report.contains(what), "{report}");
    };
    refused(&text(&garbage, &pem("good-key.pem")), "`cert` cannot be used");
    refused(&text(&pem("good.pem"), &garbage), "`key` cannot be used");
    refused(&text(&pem("good.pem"), &pem("new-key.pem")), "does not belong to the certificate");
    refused(&text(&folder.join("missing.pem"), &pem("good-key.pem")), "`cert` cannot be used");
    // It may break between the check and the start.
    let (cert, key) = (folder.join("c.pem"), folder.join("k.pem"));
    std::fs::copy(pem("good.pem"), &cert).expect("copied");
    std::fs::copy(pem("good-key.pem"), &key).expect("copied");
    let known = portway::gateway::check::Known::default();
    let config = portway::gateway::check::parse("test.toml", &text(&cert, &key), &known).expect("right");
    std::fs::write(&key, "garbage").expect("written");
    let error = portway::gateway::Builder::new().start(config).expect_err("refused").to_string();
    assert!(error.contains("k.pem"), "{error}");
    std::fs::remove_dir_all(&folder).expect("removed");
}
