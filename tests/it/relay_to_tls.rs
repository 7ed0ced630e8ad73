//! TLS from relays to servers: who they must be, ends in order carried both ways, and what each kind of bad server costs,
//! while a neighbour on the same listener and server pays nothing.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use boring::ssl::{
    AlpnError, NameType, SslAcceptor, SslConnector, SslFiletype, SslMethod, SslStream, SslVerifyMode, SslVersion,
};

use crate::gateway::{Client, Running, temp_dir};
use crate::http_upstreams::Authority;
use crate::probe::{SOON, eventually, view, wait};
use crate::relay::{is_reset, patient, pattern};

/// What a server does with a connection, by the first byte that comes inside TLS.
const ECHO: u8 = b'e';
/// Ends its own direction at once, then reads to the end and says what came.
const SINK: u8 = b's';
/// Reads to the end, then sends what came.
const LATE: u8 = b'l';
/// Sends 1,000 bytes and closes the stream below TLS.
const TRUNCATES: u8 = b't';
/// Sends 1,000 bytes and then what is no record.
const GARBLES: u8 = b'g';
/// Reads nothing for a moment, then sends everything that comes back.
const SLOW: u8 = b'w';

/// What it does before TLS, from now on.
const GOOD: u8 = 0;
const OTHER_NAME: u8 = 1;
const OTHER_AUTHORITY: u8 = 2;
const NOT_TLS: u8 = 3;
const SILENT: u8 = 4;
const CLOSES: u8 = 5;
const HALF_A_RECORD: u8 = 6;

/// What the server saw of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    sni: Option<String>,
    alpn: Option<Vec<u8>>,
    /// Whether the client showed a certificate.
    certified: bool,
    /// What came behind the command, to the end, if that was one in order.
    came: Option<Vec<u8>>,
}

/// A server over TLS. It ends with the process.
struct TlsServer {
    address: SocketAddr,
    before: Arc<AtomicU8>,
    seen: Receiver<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Wants {
    certificate: bool,
    tls12: bool,
    /// A PROXY header of version 1 comes first.
    proxied: bool,
}

fn acceptor(dir: &Path, name: &str, wants: Wants) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    builder.set_certificate_chain_file(dir.join(format!("{name}.pem"))).unwrap();
    builder.set_private_key_file(dir.join(format!("{name}.key")), SslFiletype::PEM).unwrap();
    if wants.certificate {
        builder.set_ca_file(dir.join("ca.pem")).unwrap();
        builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    }
    if wants.tls12 {
        builder.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    }
    builder.set_alpn_select_callback(|_, offered| {
        let echo = offered.windows(5).any(|part| part == b"\x04echo");
        if echo { Ok(b"echo") } else { Err(AlpnError::ALERT_FATAL) }
    });
    builder.build()
}

impl TlsServer {
    fn start(dir: &Path, wants: Wants) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let before = Arc::new(AtomicU8::new(GOOD));
        let (tell, seen) = channel();
        let acceptors = ["a.test", "b.test", "other.test"].map(|name| acceptor(dir, name, wants));
        let mode = before.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (acceptors, tell, mode) = (acceptors.clone(), tell.clone(), mode.load(Ordering::Relaxed));
                std::thread::spawn(move || meets(patient(stream.unwrap()), mode, wants, &acceptors, &tell));
            }
        });
        Self { address, before, seen }
    }

    fn seen(&self) -> Seen {
        self.seen.recv_timeout(SOON).expect("a connection is over")
    }
}

fn meets(mut stream: TcpStream, mode: u8, wants: Wants, acceptors: &[SslAcceptor; 3], tell: &Sender<Seen>) {
    let acceptor = match mode {
        NOT_TLS => {
            stream.write_all(b"220 mail.example ready\r\n").unwrap();
            let _over = io::copy(&mut stream, &mut io::sink());
            return;
        }
        SILENT => return drop(io::copy(&mut stream, &mut io::sink())),
        CLOSES => {
            // Behind the ClientHello, so that its end is no reset.
            let mut head = [0; 5];
            stream.read_exact(&mut head).unwrap();
            let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            return stream.read_exact(&mut hello).unwrap();
        }
        HALF_A_RECORD => {
            stream.write_all(&[22, 3, 3, 0, 80, 2]).unwrap();
            let _over = io::copy(&mut stream, &mut io::sink());
            return;
        }
        OTHER_NAME => &acceptors[1],
        OTHER_AUTHORITY => &acceptors[2],
        _ => &acceptors[0],
    };
    let mut proxied = Vec::new();
    while wants.proxied && !proxied.ends_with(b"\r\n") {
        let mut one = [0];
        stream.read_exact(&mut one).unwrap();
        proxied.extend(one);
    }
    let Ok(mut tls) = acceptor.accept(stream) else { return };
    let mut command = [0];
    if tls.read_exact(&mut command).is_err() {
        return;
    }
    let came = serves(&mut tls, command[0], proxied);
    let seen = Seen {
        sni: tls.ssl().servername(NameType::HOST_NAME).map(str::to_owned),
        alpn: tls.ssl().selected_alpn_protocol().map(<[u8]>::to_vec),
        certified: tls.ssl().peer_certificate().is_some(),
        came,
    };
    let _nobody_asks = tell.send(seen);
}

fn serves(tls: &mut SslStream<TcpStream>, command: u8, proxied: Vec<u8>) -> Option<Vec<u8>> {
    match command {
        ECHO => {
            let mut all = proxied;
            tls.write_all(&all).unwrap();
            let mut piece = vec![0; 1 << 16];
            loop {
                match tls.read(&mut piece) {
                    Ok(0) => break,
                    Ok(count) => {
                        all.extend_from_slice(&piece[..count]);
                        tls.write_all(&piece[..count]).ok()?;
                    }
                    Err(_) => return None,
                }
            }
            let whole = whole(tls);
            ends(tls);
            whole.then_some(all)
        }
        SINK => {
            // The stream below stays open.
            tls.shutdown().unwrap();
            let mut all = Vec::new();
            tls.read_to_end(&mut all).ok()?;
            whole(tls).then_some(all)
        }
        LATE | SLOW => {
            if command == SLOW {
                std::thread::sleep(Duration::from_millis(500));
            }
            let mut all = Vec::new();
            tls.read_to_end(&mut all).ok()?;
            let whole = whole(tls);
            tls.write_all(&all).ok()?;
            ends(tls);
            whole.then_some(all)
        }
        TRUNCATES => {
            tls.write_all(&[1; 1_000]).unwrap();
            tls.get_ref().shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            tls.read_to_end(&mut all).ok()?;
            whole(tls).then_some(all)
        }
        GARBLES => {
            tls.write_all(&[1; 1_000]).unwrap();
            tls.get_mut().write_all(b"this is no record of TLS").unwrap();
            let mut all = Vec::new();
            tls.read_to_end(&mut all).ok()?;
            whole(tls).then_some(all)
        }
        other => panic!("what is {other}?"),
    }
}

/// Whether the other side has said that it ends.
fn whole(tls: &mut SslStream<TcpStream>) -> bool {
    tls.get_shutdown().contains(boring::ssl::ShutdownState::RECEIVED)
}

/// Ends in order, both TLS and what is below.
fn ends(tls: &mut SslStream<TcpStream>) {
    let _gone = tls.shutdown();
    let _gone = tls.get_ref().shutdown(Shutdown::Write);
}

struct Files {
    dir: PathBuf,
}

impl Files {
    fn new() -> Self {
        let dir = temp_dir();
        let authority = Authority::new(&dir, "ca");
        for name in ["a.test", "b.test", "client.test"] {
            authority.signs(name);
        }
        Authority::new(&dir, "other-ca").signs("other.test");
        Self { dir }
    }

    /// A relay to these servers, with this in its `[[listener]]`, its `[[upstream]]` and its `[upstream.tls]`.
    fn relay(&self, servers: &[SocketAddr], listener: &str, upstream: &str, tls: &str) -> String {
        let servers: Vec<_> = servers.iter().map(|address| format!("\"{address}\"")).collect();
        let file = |name: &str| self.dir.join(name);
        format!(
            "version = 1\n[runtime]\narbiters = 2\n[[upstream]]\nname = \"app\"\nservers = [{}]\n{upstream}\n\
             [upstream.tls]\nca = {:?}\nname = \"a.test\"\n{tls}\n\
             [[certificate]]\nname = \"client\"\ncert = {:?}\nkey = {:?}\n\
             [[listener]]\nname = \"near\"\nlisten = \"127.0.0.1:0\"\n{listener}\n",
            servers.join(", "),
            file("ca.pem"),
            file("client.test.pem"),
            file("client.test.key"),
        )
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

const RELAY: &str = "protocol = \"relay\"\nupstream = \"app\"\n[listener.relay]\nattempts = 1\n";

/// A client of the relay whose server will do this.
fn asks(gateway: &Running, command: u8) -> TcpStream {
    let mut client = patient(TcpStream::connect_timeout(&gateway.address("near"), SOON).unwrap());
    client.write_all(&[command]).unwrap();
    client
}

/// A client that is in and stays in.
struct Neighbour(TcpStream);

impl Neighbour {
    fn of(gateway: &Running) -> Self {
        let mut neighbour = Self(asks(gateway, ECHO));
        neighbour.works();
        neighbour
    }

    #[track_caller]
    fn works(&mut self) {
        let mut answer = [0; 5];
        self.0.write_all(b"hello").unwrap();
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }

    /// It ends as it wants to.
    #[track_caller]
    fn ends(mut self) {
        self.works();
        self.0.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
}

/// Everything that goes up goes in one piece, and what comes back is the same.
fn goes_round(gateway: &Running, command: u8, bytes: &[u8]) {
    let client = asks(gateway, command);
    crate::relay::goes_round(&client, bytes);
}

fn is_empty(gateway: &Running) {
    let mesh = gateway.gateway().mesh().clone();
    eventually("no stream is left", || view(&mesh).of_kind("relay").count() == 0);
    eventually("the budget got everything back", || gateway.gateway().memory_leased() == 0);
}

#[test]
fn megabytes_and_ends_go_both_ways() {
    let files = Files::new();
    for tls12 in [false, true] {
        let server = TlsServer::start(&files.dir, Wants { tls12, ..Wants::default() });
        let gateway = Running::start(&files.relay(&[server.address], RELAY, "", ""));
        let bytes = pattern(8 << 20);
        goes_round(&gateway, ECHO, &bytes);
        let seen = server.seen();
        assert_eq!((seen.sni.as_deref(), seen.alpn, seen.certified), (Some("a.test"), None, false));
        assert!(seen.came.is_some_and(|came| came == bytes), "all of it, and its end");
        assert_eq!(
            gateway.totals().get("relay_bytes_spliced", "near", ""),
            0,
            "the kernel cannot move what is enciphered"
        );
        // Nothing goes back before the end of what goes there has been told.
        goes_round(&gateway, LATE, &bytes[..100_000]);
        assert!(server.seen().came.is_some_and(|came| came == bytes[..100_000]));
        // The server's end comes first, and what goes there goes on.
        let mut client = asks(&gateway, SINK);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "its end");
        client.write_all(&bytes[..300_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(server.seen().came.is_some_and(|came| came == bytes[..300_000]));
        gateway.counts("connections_closed", "near", "finished", 3);
        assert_eq!(gateway.totals().family("connections_closed"), 3);
        assert_eq!(gateway.totals().family("upstream_failures"), 0);
        is_empty(&gateway);
    }
}

#[test]
fn a_server_that_reads_slowly_gets_everything_and_little_is_held() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    let gateway = Running::start(&files.relay(&[server.address], RELAY, "", ""));
    let bytes = pattern(16 << 20);
    let client = asks(&gateway, SLOW);
    let mesh = gateway.gateway().mesh().clone();
    let writing = crate::relay::writing(&client, &bytes);
    eventually("the server takes no more", || view(&mesh).of_kind("relay").any(|actor| actor.held > 0));
    assert!(view(&mesh).of_kind("relay").map(|actor| actor.held).sum::<usize>() <= 128 << 10);
    assert!(crate::relay::rest(&client) == bytes);
    writing.join().unwrap();
    gateway.counts("connections_closed", "near", "finished", 1);
}

#[test]
fn a_protocol_is_offered_if_one_is_named() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    let gateway = Running::start(&files.relay(&[server.address], RELAY, "", "alpn = \"echo\""));
    goes_round(&gateway, ECHO, b"a little");
    assert_eq!(server.seen().alpn.as_deref(), Some(&b"echo"[..]));
    // This server breaks off where it is offered nothing that it speaks.
    let gateway = Running::start(&files.relay(&[server.address], RELAY, "", "alpn = \"other\""));
    is_reset_at_once(&gateway);
    gateway.counts("upstream_failures", "app", "tls_refused", 1);
}

/// A client whose server cannot be had is reset, perhaps before it knows that it was connected.
#[track_caller]
fn is_reset_at_once(gateway: &Running) {
    match TcpStream::connect_timeout(&gateway.address("near"), SOON) {
        Ok(client) => is_reset(&mut patient(client)),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn certificates_are_shown_to_servers_that_ask() {
    let files = Files::new();
    for (tls12, without) in [(false, "upstream_tls"), (true, "tls_refused")] {
        let server = TlsServer::start(&files.dir, Wants { certificate: true, tls12, ..Wants::default() });
        let gateway = Running::start(&files.relay(&[server.address], RELAY, "", "certificate = \"client\""));
        goes_round(&gateway, ECHO, b"a little");
        assert!(server.seen().certified);
        // Without one the server breaks off: in its handshake, or in TLS 1.3 behind what is one to us.
        let gateway = Running::start(&files.relay(&[server.address], RELAY, "", ""));
        is_reset_at_once(&gateway);
        gateway.counts("upstream_failures", "app", without, 1);
        gateway.counts("connections_closed", "near", without, 1);
        assert_eq!(gateway.totals().family("upstream_failures"), 1);
    }
}

#[test]
fn each_bad_server_costs_its_own_stream_and_is_counted_once() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    let limits = "[upstream.limits]\nconnect_timeout = \"500ms\"\n[upstream.health]\neject_after = 0\n";
    let gateway = Running::start(&files.relay(&[server.address], RELAY, limits, ""));
    let mut neighbour = Neighbour::of(&gateway);
    let mut known = 0;
    for (before, reason) in [
        (OTHER_NAME, "tls_certificate"),
        (OTHER_AUTHORITY, "tls_certificate"),
        (NOT_TLS, "tls_not_spoken"),
        (SILENT, "tls_timeout"),
        (HALF_A_RECORD, "tls_timeout"),
        (CLOSES, "tls_refused"),
    ] {
        let was = gateway.totals().get("upstream_failures", "app", reason);
        server.before.store(before, Ordering::Relaxed);
        is_reset_at_once(&gateway);
        gateway.counts("upstream_failures", "app", reason, was + 1);
        gateway.counts("connections_closed", "near", reason, was + 1);
        known += 1;
        assert_eq!(gateway.totals().family("upstream_failures"), known, "nothing else after {reason}");
        assert_eq!(gateway.totals().family("connections_closed"), known, "nothing else after {reason}");
        neighbour.works();
    }
    server.before.store(GOOD, Ordering::Relaxed);
    goes_round(&gateway, ECHO, b"a little");
    neighbour.ends();
    gateway.counts("connections_closed", "near", "finished", 2);
    assert_eq!(gateway.totals().family("actor_panics"), 0);
    is_empty(&gateway);
}

#[test]
fn an_end_that_is_none_is_never_passed_on_as_one() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    let gateway = Running::start(&files.relay(&[server.address], RELAY, "", ""));
    let mut neighbour = Neighbour::of(&gateway);
    for (command, reason) in [(TRUNCATES, "upstream_truncated"), (GARBLES, "upstream_tls")] {
        let mut client = asks(&gateway, command);
        let mut came = Vec::new();
        let error = client.read_to_end(&mut came).expect_err("a reset, not an end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(came.iter().all(|byte| *byte == 1) && came.len() <= 1_000);
        gateway.counts("upstream_failures", "app", reason, 1);
        gateway.counts("connections_closed", "near", reason, 1);
        assert_eq!(server.seen().came, None, "the server is not told an end either");
        neighbour.works();
    }
    assert_eq!((gateway.totals().family("upstream_failures"), gateway.totals().family("connections_closed")), (2, 2));
    neighbour.ends();
    is_empty(&gateway);
}

/// A client of a listener that ends TLS.
fn shielded(files: &Files, gateway: &Running, name: &str) -> SslStream<TcpStream> {
    let mut builder = SslConnector::builder(SslMethod::tls()).unwrap();
    builder.set_ca_file(files.dir.join("ca.pem")).unwrap();
    let stream = patient(TcpStream::connect(gateway.address("near")).unwrap());
    builder.build().connect(name, stream).unwrap()
}

/// TLS that ends in front, and another one behind.
const BOTH: &str = "protocol = \"relay\"\ncertificate = [\"front\", \"b\"]\n[[listener.route]]\nsni = \"a.test\"\nupstream = \"app\"\n\
                    [[listener.route]]\nsni = \"b.test\"\nupstream = \"other\"\n";

fn both(files: &Files, first: &TlsServer, second: SocketAddr) -> String {
    let file = |name: &str| files.dir.join(name);
    files.relay(&[first.address], BOTH, "", "")
        + &format!(
            "[[upstream]]\nname = \"other\"\nservers = [\"{second}\"]\n\
             [[certificate]]\nname = \"front\"\ncert = {:?}\nkey = {:?}\n\
             [[certificate]]\nname = \"b\"\ncert = {:?}\nkey = {:?}\n",
            file("a.test.pem"),
            file("a.test.key"),
            file("b.test.pem"),
            file("b.test.key"),
        )
}

#[test]
fn tls_ends_in_front_and_begins_again_behind() {
    let files = Files::new();
    let (server, plain) = (TlsServer::start(&files.dir, Wants::default()), TcpListener::bind("127.0.0.1:0").unwrap());
    let gateway = Running::start(&both(&files, &server, plain.local_addr().unwrap()));
    let mut neighbour = shielded(&files, &gateway, "a.test");
    neighbour.write_all(&[ECHO]).unwrap();
    let works = |neighbour: &mut SslStream<TcpStream>| {
        let mut answer = [0; 5];
        neighbour.write_all(b"hello").unwrap();
        neighbour.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    };
    works(&mut neighbour);
    let bytes = pattern(3 << 20);
    let mut client = shielded(&files, &gateway, "a.test");
    client.write_all(&[LATE]).unwrap();
    client.write_all(&bytes).unwrap();
    // An end of TLS, with the stream below open as it was.
    client.shutdown().unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == bytes && whole(&mut client), "all of it, and its end");
    assert!(server.seen().came.is_some_and(|came| came == bytes));
    gateway.counts("connections_closed", "near", "finished", 1);

    // What a server cuts off is no end to the client.
    let mut client = shielded(&files, &gateway, "a.test");
    client.write_all(&[TRUNCATES]).unwrap();
    let mut came = Vec::new();
    let _reset = client.read_to_end(&mut came);
    assert!(!whole(&mut client));
    gateway.counts("connections_closed", "near", "upstream_truncated", 1);
    assert_eq!(server.seen().came, None);
    works(&mut neighbour);

    // What a client cuts off is no end to a server, with TLS or without: but what came before reaches it.
    let mut client = shielded(&files, &gateway, "a.test");
    client.write_all(&[LATE, 1, 2, 3]).unwrap();
    client.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.seen_or_nothing(), None);
    gateway.counts("connections_closed", "near", "client_truncated", 1);
    let mut client = shielded(&files, &gateway, "b.test");
    client.write_all(b"to a plain one").unwrap();
    let mut served = patient(plain.accept().unwrap().0);
    let mut came = [0; 14];
    served.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"to a plain one");
    client.get_ref().shutdown(Shutdown::Write).unwrap();
    is_reset(&mut served);
    gateway.counts("connections_closed", "near", "client_truncated", 2);
    works(&mut neighbour);

    // Bytes that are no record, behind the handshake.
    let mut client = shielded(&files, &gateway, "b.test");
    client.write_all(b"x").unwrap();
    let mut served = patient(plain.accept().unwrap().0);
    client.get_mut().write_all(b"this is no record of TLS").unwrap();
    let mut came = Vec::new();
    let error = served.read_to_end(&mut came).expect_err("a reset, not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    gateway.counts("connections_closed", "near", "client_tls", 1);
    works(&mut neighbour);
    assert_eq!(gateway.totals().family("upstream_failures"), 1, "of the server that broke off");
    neighbour.shutdown().unwrap();
    assert_eq!(neighbour.read(&mut [0]).unwrap(), 0);
    gateway.counts("connections_closed", "near", "finished", 2);
    is_empty(&gateway);
}

impl TlsServer {
    /// What came, if the end was one in order.
    fn seen_or_nothing(&self) -> Option<Vec<u8>> {
        self.seen().came
    }
}

#[test]
fn a_server_whose_certificate_is_refused_is_ejected() {
    let files = Files::new();
    let (good, bad) = (TlsServer::start(&files.dir, Wants::default()), TlsServer::start(&files.dir, Wants::default()));
    bad.before.store(OTHER_NAME, Ordering::Relaxed);
    let health = "balance = \"round-robin\"\n[upstream.health]\neject_after = 2\neject_for = \"10m\"\n";
    let listener = "protocol = \"relay\"\nupstream = \"app\"\n";
    let gateway = Running::start(&files.relay(&[good.address, bad.address], listener, health, ""));
    let mut neighbour = Neighbour::of(&gateway);
    for _ in 0..10 {
        goes_round(&gateway, ECHO, b"a little");
    }
    gateway.counts("upstream_failures", "app", "tls_certificate", 2);
    gateway.counts("connections_closed", "near", "finished", 10);
    neighbour.works();
    let rows = wait(gateway.gateway().overview()).servers;
    let out =
        |address: SocketAddr| rows.iter().any(|row| row.address == address.to_string() && row.ejected_s.is_some());
    assert!(rows.len() == 2 && !out(good.address) && out(bad.address), "{rows:?}");
}

#[test]
fn checks_make_the_handshake_of_relays() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants { certificate: true, tls12: true, ..Wants::default() });
    let health = "[upstream.health]\ncheck = \"tcp\"\ninterval = \"100ms\"\nunhealthy_after = 1\nhealthy_after = 1\n";
    let tls = "certificate = \"client\"\nalpn = \"echo\"";
    let gateway = Running::start(&files.relay(&[server.address], RELAY, health, tls));
    eventually("good checks", || gateway.totals().get("upstream_checks", "app", "ok") >= 3);
    assert_eq!(gateway.totals().get("upstream_checks", "app", "failed"), 0);
    let mut neighbour = Neighbour::of(&gateway);
    // Whoever is no longer who it was is down, though its port is open.
    server.before.store(OTHER_NAME, Ordering::Relaxed);
    eventually("a bad check", || gateway.totals().get("upstream_checks", "app", "failed") >= 1);
    is_reset_at_once(&gateway);
    gateway.counts("connections_closed", "near", "no_upstream", 1);
    neighbour.works();
    server.before.store(GOOD, Ordering::Relaxed);
    eventually("it is back", || wait(gateway.gateway().overview()).servers.iter().all(|row| row.healthy));
    goes_round(&gateway, ECHO, b"a little");
    neighbour.ends();
}

#[test]
fn a_proxy_header_goes_ahead_of_tls() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants { proxied: true, ..Wants::default() });
    let listener = format!("{RELAY}proxy_out = \"v1\"\n");
    let gateway = Running::start(&files.relay(&[server.address], &listener, "", ""));
    let mut client = asks(&gateway, ECHO);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (own, near) = (client.local_addr().unwrap(), gateway.address("near"));
    let mut back = String::new();
    client.read_to_string(&mut back).unwrap();
    assert_eq!(back, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nhello", own.port(), near.port()));
    assert_eq!(gateway.totals().get("relay_bytes_up", "near", ""), 6, "the header is ours");
}

#[test]
fn messages_are_forwarded_over_tls() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    // The length is the command: it takes the first byte of it.
    let framed = "protocol = \"framed\"\nservice = \"forward\"\nupstream = \"app\"\n[listener.framed]\nlength_bytes = 1\n\
                  max_message = \"200B\"\n";
    let gateway = Running::start(&files.relay(&[server.address], framed, "", ""));
    let mut client = Client::to(gateway.address("near"));
    // A message of so many bytes; the server takes its length for a command and sends back what is inside.
    let inside: Vec<u8> = (0..ECHO).map(|at| if at == 0 { ECHO - 1 } else { at }).collect();
    client.0.write_all(&[&[ECHO], &inside[..]].concat()).unwrap();
    let mut back = vec![0; inside.len()];
    client.0.read_exact(&mut back).unwrap();
    assert_eq!(back, inside);
    assert_eq!(gateway.totals().get("messages_in", "near", ""), 1);
}

#[test]
fn a_reload_changes_who_is_trusted() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    let text = files.relay(&[server.address], RELAY, "", "");
    let gateway = Running::start(&text);
    let neighbour = Neighbour::of(&gateway);
    let reload = |text: &str| {
        gateway
            .gateway()
            .reload(portway::gateway::check::parse("test.toml", text, &Default::default()).unwrap())
            .unwrap()
    };
    reload(&text.replace("/ca.pem", "/other-ca.pem"));
    is_reset_at_once(&gateway);
    gateway.counts("upstream_failures", "app", "tls_certificate", 1);
    server.before.store(OTHER_AUTHORITY, Ordering::Relaxed);
    reload(&text.replace("/ca.pem", "/other-ca.pem").replace("\"a.test\"", "\"other.test\""));
    goes_round(&gateway, ECHO, b"a little");
    neighbour.ends();
}

#[test]
fn fifty_streams_over_tls_are_fifty_actors() {
    let files = Files::new();
    let server = TlsServer::start(&files.dir, Wants::default());
    let gateway = Running::start(&files.relay(&[server.address], RELAY, "", ""));
    let mut clients: Vec<_> = (0..50).map(|_| Neighbour::of(&gateway)).collect();
    let seen = view(gateway.gateway().mesh());
    let actors: Vec<_> = seen.of_kind("relay").collect();
    assert!(actors.len() == 50 && actors.iter().all(|actor| actor.turns > 0));
    let arbiters: std::collections::BTreeSet<_> = actors.iter().map(|actor| actor.arbiter).collect();
    assert_eq!(arbiters.len(), 2);
    clients.iter_mut().for_each(Neighbour::works);
    clients.into_iter().for_each(Neighbour::ends);
    gateway.counts("connections_closed", "near", "finished", 50);
    is_empty(&gateway);
}

/// A service inside a tunnel that speaks TLS to its servers, and an upstream behind a tunnel that does.
#[cfg(feature = "wireguard")]
#[test]
fn tls_reaches_servers_from_inside_a_tunnel_and_behind_one() {
    use crate::wireguard::in_both;
    use crate::wireguard_gateway::{Text, behind, client, key_file};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let files = Files::new();
    in_both(|mode| {
        let server = TlsServer::start(&files.dir, Wants::default());
        let more = format!(
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
             [[listener.wireguard.service]]\nlisten = \"10.98.0.1:81\"\nprotocol = \"relay\"\nupstream = \"plain\"\n\
             [[upstream]]\nname = \"plain\"\nservers = [\"{0}\"]\n\
             [[upstream]]\nname = \"app\"\nservers = [\"{0}\"]\n[upstream.tls]\nca = {1:?}\nname = \"a.test\"\n",
            server.address,
            files.dir.join("ca.pem"),
        );
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let clients = crate::probe::mesh(1);
        let stack = client(&clients, 10, running.address("wg0")).stack;
        let bytes = pattern(300_000);
        let sent = bytes.clone();
        let back = wait(async move {
            let to = "10.98.0.1:80".parse().unwrap();
            let stream = portway::transports::netstack::connect(&stack, to, SOON).await.expect("it connects");
            let (mut read, mut write) = tokio::io::split(stream);
            write.write_all(&[&[LATE], &sent[..]].concat()).await.unwrap();
            write.shutdown().await.unwrap();
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            all
        });
        assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
        assert!(server.seen().came.is_some_and(|came| came == bytes), "with its end");
        crate::probe::stop(&clients);

        // Another gateway, for whom the server is behind the tunnel.
        let near = behind(
            running.address("wg0"),
            true,
            &format!(
                "protocol = \"relay\"\nupstream = \"far\"\n[[upstream]]\nname = \"far\"\nservers = [\"10.98.0.1:81\"]\n\
                 via = \"home\"\n[upstream.health]\ncheck = \"tcp\"\ninterval = \"100ms\"\n\
                 [upstream.tls]\nca = {:?}\nname = \"a.test\"\n",
                files.dir.join("ca.pem")
            ),
        );
        let near = Running::start(&near);
        eventually("checks go through it", || near.totals().get("upstream_checks", "far", "ok") > 1);
        goes_round(&near, LATE, &bytes);
        assert!(server.seen().came.is_some_and(|came| came == bytes), "with its end");
        near.counts("connections_closed", "near", "finished", 1);
        // Somebody else there.
        server.before.store(OTHER_NAME, Ordering::Relaxed);
        eventually("checks find it", || near.totals().get("upstream_checks", "far", "failed") > 0);
    });
}
