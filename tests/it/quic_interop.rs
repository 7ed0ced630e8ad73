//! QUIC with implementations that nobody here wrote: aioquic (Python) and quinn on rustls, each as client and as server.
//!
//! The cases are those of the QUIC interop runner that can run here; docs/interop.md is the table of them. Loss, delay
//! and the rest come from `lossy`. A peer that is missing fails the test: `scripts/setup test` installs aioquic, and
//! quinn's program is built when it is first needed.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use portway::actors::sim_link::Faults;
use portway::transports::quic::Connection;

use crate::gateway::Running;
use crate::lossy::Lossy;
use crate::probe::{eventually, wait, wait_within};
use crate::quic_gateway::{Clients, ECHO, exchange, listening, listening_on, pattern, pem};
use crate::quic_moving::moves;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Python of the environment that `scripts/setup test` made.
pub(crate) fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"), PathBuf::from);
    let python = cache.join("portway/peers/bin/python");
    assert!(python.exists(), "{} is missing: run `scripts/setup test`", python.display());
    python
}

/// quinn's program, built once.
pub(crate) fn quinn() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_portway")).parent().expect("a folder").join("interop");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--release", "--manifest-path"])
            .arg(root().join("tests/interop/quinn-peer/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .stdin(Stdio::null())
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        target.join("release/quinn-peer")
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Aioquic,
    Quinn,
}

const PEERS: [Peer; 2] = [Peer::Aioquic, Peer::Quinn];

impl Peer {
    fn command(self) -> Command {
        match self {
            Self::Aioquic => {
                let mut command = Command::new(python());
                command.arg(root().join("tests/interop/aioquic_peer.py"));
                command
            }
            Self::Quinn => Command::new(quinn()),
        }
    }

    /// Runs a case against a server and gives what the peer says of it.
    fn client(self, to: SocketAddr, case: &str, bytes: usize, streams: usize) -> String {
        let mut command = self.command();
        command.arg("client").arg(pem("good.pem"));
        match self {
            Self::Aioquic => command.args([to.ip().to_string(), to.port().to_string()]),
            Self::Quinn => command.arg(to.to_string()),
        };
        let output = command
            .args(["localhost", "echo", case, &bytes.to_string(), &streams.to_string()])
            .stdin(Stdio::null())
            .output()
            .expect("the peer runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("ok"), "{self:?} {case}: {said}\n{complaint}");
        said
    }

    fn server(self, options: &[&str]) -> Server {
        let mut command = self.command();
        command.arg("server").args([pem("good.pem"), pem("good-key.pem")]);
        match self {
            Self::Aioquic => command.args(["127.0.0.1", "0"]),
            Self::Quinn => command.arg("127.0.0.1:0"),
        };
        let mut child = command
            .arg("echo")
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says where it listens");
        let port = line.trim().rsplit([' ', ':']).next().and_then(|port| port.parse().ok()).expect("a port");
        Server { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

/// A peer's server; it ends with its standard input.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Our gateway with an echo.
fn ours(rest: &str) -> Running {
    Running::start(&listening(2, &format!("{ECHO}{rest}")))
}

fn each(case: &str, bytes: usize, streams: usize, rest: &str) -> Vec<String> {
    PEERS
        .map(|peer| {
            let running = ours(rest);
            let said = peer.client(running.address("q"), case, bytes, streams);
            eventually("all actors of connections are gone", || {
                crate::probe::view(running.gateway().mesh()).of_kind("quic").count() == 0
            });
            said
        })
        .to_vec()
}

/// As `each`, over a path with faults.
fn each_over(case: &str, bytes: usize, streams: usize, faults: Faults) {
    for (seed, peer) in (1..).zip(PEERS) {
        let running = ours("");
        let path = Lossy::to(running.address("q"), seed, faults, faults);
        peer.client(path.address(), case, bytes, streams);
    }
}

/// Our client against each peer's server.
fn towards(options: &[&str], what: impl AsyncFn(&Clients, SocketAddr)) {
    for peer in PEERS {
        let server = peer.server(options);
        let clients = Clients::new();
        wait(what(&clients, server.address));
    }
}

fn towards_over(faults: Faults, what: impl AsyncFn(&Clients, SocketAddr)) {
    for (seed, peer) in (11..).zip(PEERS) {
        let server = peer.server(&[]);
        let path = Lossy::to(server.address, seed, faults, faults);
        let clients = Clients::new();
        wait(what(&clients, path.address()));
    }
}

async fn transfers(connection: &Connection, bytes: usize) {
    let what = pattern(bytes);
    let back: Bytes = exchange(connection, what.clone()).await;
    assert!(back == what, "{} of {bytes} bytes came back, or others", back.len());
}

const MIB: usize = 1 << 20;

#[test]
fn interop_handshake_server() {
    for said in each("handshake", 0, 1, "") {
        assert!(said.starts_with("ok"));
    }
}

#[test]
fn interop_handshake_client() {
    towards(&[], async |clients, to| {
        let connection = clients.connect(to, "echo").await;
        assert_eq!(connection.alpn(), b"echo");
    });
}

#[test]
fn interop_transfer_server() {
    each("transfer", 3 * MIB, 1, "");
}

#[test]
fn interop_transfer_client() {
    towards(&[], async |clients, to| transfers(&clients.connect(to, "echo").await, 3 * MIB).await);
}

#[test]
fn interop_chacha20_server() {
    let said = each("chacha20", MIB, 1, "");
    assert!(said[0].contains("cipher=CHACHA20_POLY1305_SHA256"), "{said:?}");
}

#[test]
fn interop_multiplexing_server() {
    each("multiplexing", 32, 2_000, "");
}

#[test]
fn interop_multiplexing_client() {
    towards(&[], async |clients, to| {
        let connection = clients.connect(to, "echo").await;
        let all = (0..2_000).map(|n| transfers(&connection, 32 + n % 7));
        futures_util::future::join_all(all).await;
    });
}

#[test]
fn interop_retry_server() {
    let said = each("transfer", MIB, 1, "[listener.quic]\nretry = \"always\"\n");
    assert!(said[0].contains("retried=True"), "{said:?}");
}

#[test]
fn interop_retry_client() {
    towards(&["retry"], async |clients, to| transfers(&clients.connect(to, "echo").await, MIB).await);
}

#[test]
fn interop_resumption_server() {
    let said = each("resumption", 10_000, 1, "");
    assert!(said[0].contains("resumed=True"), "{said:?}");
}

#[test]
fn interop_resumption_client() {
    towards(&[], async |clients, to| {
        let tls = Arc::new(crate::quic_gateway::says("echo"));
        let first = clients.connect(to, "echo").await;
        transfers(&first, 1_000).await;
        let session = first.session().await.expect("alive").expect("a ticket");
        first.close(0, "again");
        let again = clients.client.connect_with(to, tls, Some(session)).await.expect("connected");
        transfers(&again, 1_000).await;
        assert!(again.info().await.expect("alive").resumed);
    });
}

#[test]
fn interop_keyupdate_by_the_peer_server() {
    each("keyupdate", 2 * MIB, 1, "");
}

#[test]
fn interop_keyupdate_by_the_peer_client() {
    towards(&["rekey"], async |clients, to| {
        let connection = clients.connect(to, "echo").await;
        for _ in 0..5 {
            transfers(&connection, 300_000).await;
        }
    });
}

#[test]
fn interop_datagrams_server() {
    each("datagrams", 0, 200, "");
}

#[test]
fn interop_reset_server() {
    for said in each("reset", 0, 1, "") {
        // Our echo answers a reset with its code.
        assert!(said.contains("reset") && said.contains('9'), "{said}");
    }
}

/// Before a client has proved its address a server sends at most three times what it got (RFC 9000, section 8.1).
#[test]
fn interop_amplificationlimit_server() {
    for peer in PEERS {
        let running = ours("");
        let _program = peer.command();
        // The client hears nothing, so that it never proves its address.
        let path = Lossy::to(running.address("q"), 5, Faults::none(), Faults::none().loss(1.0));
        let mut child = peer
            .command()
            .arg("client")
            .arg(pem("good.pem"))
            .args(match peer {
                Peer::Aioquic => vec!["127.0.0.1".to_owned(), path.address().port().to_string()],
                Peer::Quinn => vec![path.address().to_string()],
            })
            .args(["localhost", "echo", "handshake"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the peer runs");
        eventually("the server has answered", || path.carried().1 > 0);
        // Time for both to repeat themselves.
        std::thread::sleep(Duration::from_secs(2));
        let (up, down) = path.carried();
        let _ended = child.kill();
        let _status = child.wait();
        assert!(down <= 3 * up, "{peer:?}: {down} bytes for {up}");
    }
}

/// A fifth is lost, but never two in a row: each end waits twice as long with every try, so that a few losses in a row
/// take minutes.
fn a_fifth() -> Faults {
    Faults::none().loss(0.2).in_a_row(1).delay(Duration::from_millis(10))
}

#[test]
fn interop_handshakeloss_server() {
    for (seed, peer) in (1..).zip(PEERS) {
        let running = ours("[listener.quic]\nidle_timeout = \"60s\"\n[listener.limits]\nfirst_message = \"60s\"\n");
        let path = Lossy::to(running.address("q"), seed, a_fifth(), a_fifth());
        peer.client(path.address(), "handshakes", 1_000, 5);
    }
}

/// A client whose last word of the handshake is lost repeats it after 2 s if its first one was lost as well, and after 2
/// and 6 s more: until its server has confirmed the handshake nothing takes the backoff back (RFC 9002, section 6.2.1),
/// QUIC looks after one number space at a time, and quiche's second probe of a pair is a PING. With 20 connections one in
/// each run takes 11 s, and one loss more is another 12.
const UNLUCKY: Duration = Duration::from_secs(120);

#[test]
fn interop_handshakeloss_client() {
    for peer in PEERS {
        let server = peer.server(&[]);
        let clients = Clients::new();
        // Many at once: some of their ids are lost, and arrive in another order.
        let paths: Vec<_> = (0..20).map(|seed| Lossy::to(server.address, seed, a_fifth(), a_fifth())).collect();
        let all = paths.iter().map(async |path| {
            transfers(&clients.connect(path.address(), "echo").await, 1_000).await;
        });
        wait_within(UNLUCKY, futures_util::future::join_all(all));
    }
}

#[test]
fn interop_transferloss_server() {
    each_over("transfer", 2 * MIB, 1, Faults::none().loss(0.02).delay(Duration::from_millis(5)));
}

#[test]
fn interop_transferloss_client() {
    towards_over(Faults::none().loss(0.02).delay(Duration::from_millis(5)), async |clients, to| {
        transfers(&clients.connect(to, "echo").await, 2 * MIB).await;
    });
}

#[test]
fn interop_transfercorruption_server() {
    each_over("transfer", 2 * MIB, 1, Faults::none().corrupt(0.02).delay(Duration::from_millis(5)));
}

#[test]
fn interop_transfercorruption_client() {
    towards_over(Faults::none().corrupt(0.02).delay(Duration::from_millis(5)), async |clients, to| {
        transfers(&clients.connect(to, "echo").await, 2 * MIB).await;
    });
}

/// Reordered and doubled packets, as no case of the runner has them.
#[test]
fn interop_reordering_server() {
    let faults = Faults::none().delay(Duration::from_millis(5)).duplicate(0.05);
    each_over("transfer", MIB, 1, faults.reorder(0.05, Duration::from_millis(10)));
}

#[test]
fn interop_longrtt_server() {
    each_over("transfer", 200_000, 1, Faults::none().delay(Duration::from_millis(375)));
}

#[test]
fn interop_longrtt_client() {
    towards_over(Faults::none().delay(Duration::from_millis(375)), async |clients, to| {
        transfers(&clients.connect(to, "echo").await, 200_000).await;
    });
}

/// Moves the client in the midst of a transfer, twice, and lets it finish.
fn moving(change: impl Fn(&Lossy, u8)) {
    for peer in PEERS {
        // Built now, and not while the test waits for it.
        let _program = peer.command();
        let running = ours("");
        let slow = Faults::none().rate(1_000_000).delay(Duration::from_millis(5));
        let path = Lossy::to(running.address("q"), 9, slow, slow);
        let to = path.address();
        let client = std::thread::spawn(move || peer.client(to, "transfer", 2 * MIB, 1));
        for n in 1..=2 {
            let before = path.carried().0;
            eventually("the transfer is under way", || path.carried().0 > before + 200_000 || client.is_finished());
            assert!(!client.is_finished(), "too quick to move {n} times");
            change(&path, n);
        }
        client.join().expect("the transfer was whole");
        assert!(running.totals().get("quic_migrations", "q", "") >= 1);
    }
}

#[test]
fn interop_rebind_port_server() {
    moving(|path, _| path.rebind_port());
}

#[test]
fn interop_rebind_addr_server() {
    moving(|path, n| path.rebind_address(Ipv4Addr::new(127, 0, 0, 10 + n)));
}

#[test]
fn interop_migration_server() {
    for peer in PEERS {
        let running = ours("");
        peer.client(running.address("q"), "migration", 600_000, 1);
        assert!(running.totals().get("quic_migrations", "q", "") >= 1, "{peer:?} did not move");
    }
}

/// Our client moves to another socket on purpose, between transfers, more than once.
#[test]
fn interop_migration_client() {
    towards(&[], async |clients, to| {
        let connection = clients.connect(to, "echo").await;
        transfers(&connection, 1_000).await;
        for _ in 0..3 {
            let before = connection.info().await.expect("open").local;
            let local = moves(&connection).await;
            assert_ne!(local.port(), before.port());
            transfers(&connection, MIB).await;
            assert_eq!(connection.info().await.expect("open").local, local);
        }
    });
}

#[test]
fn interop_ipv6_server() {
    for peer in PEERS {
        let running = Running::start(&listening_on("[::1]:0", 2, ECHO));
        peer.client(running.address("q"), "transfer", MIB, 1);
    }
}

/// Nothing passes for a while; both ends wait it out.
fn dark(path: &Lossy, finished: impl Fn() -> bool) {
    let before = path.carried().0;
    eventually("the transfer is under way", || path.carried().0 > before + 200_000);
    assert!(!finished(), "too quick to be interrupted");
    path.go_dark();
    std::thread::sleep(Duration::from_secs(3));
    let again = Faults::none().delay(Duration::from_millis(5));
    path.set(again, again);
}

#[test]
fn interop_blackhole_server() {
    for peer in PEERS {
        let _program = peer.command();
        let running = ours("");
        let slow = Faults::none().rate(1_000_000).delay(Duration::from_millis(5));
        let path = Lossy::to(running.address("q"), 13, slow, slow);
        let to = path.address();
        let client = std::thread::spawn(move || peer.client(to, "transfer", 2 * MIB, 1));
        dark(&path, || client.is_finished());
        client.join().expect("the transfer was whole");
    }
}

#[test]
fn interop_blackhole_client() {
    for peer in PEERS {
        let server = peer.server(&[]);
        let slow = Faults::none().rate(1_000_000).delay(Duration::from_millis(5));
        let path = Lossy::to(server.address, 14, slow, slow);
        let to = path.address();
        let client = std::thread::spawn(move || {
            let clients = Clients::new();
            wait(async { transfers(&clients.connect(to, "echo").await, 2 * MIB).await });
        });
        dark(&path, || client.is_finished());
        client.join().expect("the transfer was whole");
    }
}
