//! HTTP with peers from PyPI: what the `h2` package sends and worse, and WebSockets by `websockets`, over both versions.
//!
//! Each kind of abuse raises the counter that names it by exactly one, and its neighbour loses nothing. A peer that is
//! missing fails the test: `scripts/setup test` installs them.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::gateway::Running;
use crate::http::{Client, Server, config};
use crate::probe::{eventually, view};
use crate::quic_interop::python;

fn peer(case: &str, port: Option<u16>) -> Command {
    let mut command = Command::new(python());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/http_peer.py")).arg(case);
    command.args(port.map(|port| port.to_string())).stdin(Stdio::null());
    command
}

fn says(case: &str, port: u16) -> String {
    let output = peer(case, Some(port)).output().expect("python runs");
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A peer that ends with the test.
struct Serving(Child, SocketAddr);

impl Serving {
    fn start() -> Self {
        let mut child = peer("websockets_server", None).stdout(Stdio::piped()).spawn().expect("python runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().expect("a port");
        Self(child, ([127, 0, 0, 1], port).into())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _over = self.0.kill();
        let _over = self.0.wait();
    }
}

#[test]
fn abuse_ends_its_connection_and_nothing_else() {
    let server = Server::start();
    let times = "[listener.http]\nsend_timeout = \"700ms\"";
    let gateway = Running::start(&config(server.address, times, ""));
    let port = gateway.address("web").port();
    let mut neighbour = Client::to(gateway.address("web"));
    // Its library may say something of its own between two continuations, which is against the rules.
    let either = "flood or protocol";
    let count = |family: &str, reason: &str| -> u64 {
        reason.split(" or ").map(|reason| gateway.totals().get(family, "web", reason)).sum()
    };
    for (case, family, reason) in [
        ("rapid_reset", "connections_closed", "flood"),
        ("continuation_flood", "connections_closed", either),
        ("empty_continuations", "connections_closed", either),
        ("hpack_bomb", "connections_closed", "flood"),
        ("settings_flood", "http_refused", "flood"),
        ("empty_frames", "connections_closed", "flood"),
        ("ping_flood", "http_refused", "flood"),
        ("priority_flood", "http_refused", "flood"),
        ("window_updates", "http_refused", "flood"),
        ("window_overflow", "connections_closed", "protocol"),
        ("window_zero", "connections_closed", "protocol"),
        ("closed_window", "connections_closed", "send_timeout"),
    ] {
        neighbour.works();
        let before = count(family, reason);
        let said = says(case, port);
        assert!(said.starts_with("ended"), "{case}: {said}; {:?}", gateway.totals());
        eventually(case, || count(family, reason) > before);
        assert_eq!(count(family, reason), before + 1, "{case}");
        neighbour.works();
    }
    assert_eq!(gateway.totals().family("actor_panics"), 0);
    let mesh = gateway.gateway().mesh().clone();
    eventually("the neighbour alone is left", || view(&mesh).of_kind("http").count() == 1);
}

#[test]
fn a_compressed_bomb_reaches_no_server() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "[listener.limits]\nidle = \"500ms\"", ""));
    let mut neighbour = Client::to(gateway.address("web"));
    neighbour.works();
    says("hpack_bomb", gateway.address("web").port());
    // The first request, whose field is large but not too large, is answered; the bomb is not.
    assert!(server.heads().iter().all(|head| head.len() < 8_000), "no server sees it");
    assert!(server.heads().len() <= 2);
    Client::to(gateway.address("web")).works();
}

#[test]
fn a_hundred_streams_at_once_are_answered() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "", ""));
    assert_eq!(says("concurrent", gateway.address("web").port()), "fine");
}

#[test]
fn a_connection_of_http2_takes_as_many_requests_as_it_is_told() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "[listener.http]\nrequests = 3", ""));
    let mut neighbour = Client::to(gateway.address("web"));
    neighbour.works();
    assert_eq!(says("requests", gateway.address("web").port()), "3 answered, [0] said");
    neighbour.works();
    gateway.counts("http_requests", "web", "2xx", 5);
    gateway.counts("http_route_requests", "web/all", "2xx", 5);
    gateway.counts("http_upstream_requests", "app", "2xx", 5);
    gateway.counts("connections_closed", "web", "normal", 1);
    assert_eq!(server.heads().len(), 5);
}

#[test]
fn websockets_pass_over_both_versions() {
    let serving = Serving::start();
    let gateway = Running::start(&config(serving.1, "", ""));
    let port = gateway.address("web").port();
    assert_eq!(says("websockets_client", port), "fine");
    assert_eq!(says("websocket_over_http2", port), "fine");
    let mesh = gateway.gateway().mesh().clone();
    eventually("no connection is left", || view(&mesh).of_kind("http").count() == 0);
}

/// A server that says something before its answer.
fn early(count: usize) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if reader.read_line(&mut head).unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    for _ in 0..count {
                        let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x\r\n\r\n";
                        std::io::Write::write_all(&mut stream, hint.as_bytes()).unwrap();
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn heads_before_the_answer_pass_to_clients_of_http1() {
    let gateway = Running::start(&config(early(2), "", ""));
    let mut client = Client::to(gateway.address("web"));
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        for _ in 0..2 {
            let (status, head) = client.head();
            assert_eq!(status, 103, "{head}");
            assert!(head.contains("link: </a.css>; rel=preload\r\n") && !head.contains("connection"), "{head}");
        }
        assert_eq!(client.answer().2, b"ok");
    }
    // Sent together: an early head stands before its own answer or nowhere.
    client.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut answers = 0;
    while answers < 2 {
        let (status, _) = client.head();
        if status == 200 {
            let mut body = [0; 2];
            client.0.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"ok");
            answers += 1;
        } else {
            assert_eq!(status, 103);
        }
    }
    let curl = Command::new("curl")
        .args(["--silent", "--http2-prior-knowledge", "--max-time", "10"])
        .arg(format!("http://127.0.0.1:{}/", gateway.address("web").port()))
        .output()
        .unwrap();
    assert_eq!(curl.stdout, b"ok", "clients of HTTP/2 get the answer alone");
}

#[test]
fn connect_is_refused_unless_a_route_takes_it() {
    let server = Server::start();
    let route =
        "[[listener.route]]\nname = \"tunnel\"\nhost = \"inner.test\"\nmethod = \"CONNECT\"\nupstream = \"app\"\n";
    let gateway = Running::start(&(config(server.address, "", "") + route));
    let mut client = Client::to(gateway.address("web"));
    client.send("CONNECT other.test:80 HTTP/1.1\r\nhost: other.test:80\r\n\r\n");
    assert_eq!(client.head().0, 405);
    drop(client);
    let mut client = Client::to(gateway.address("web"));
    client.send("CONNECT inner.test:80 HTTP/1.1\r\nhost: inner.test:80\r\n\r\n");
    assert_eq!(client.head().0, 200);
    // From here on the server hears what the client says, as it is.
    client.send("GET /hello HTTP/1.1\r\nx: as it is\r\n\r\n");
    assert_eq!(client.answer().2, b"hello");
    assert_eq!(server.heads(), ["GET /hello HTTP/1.1\r\nx: as it is\r\n\r\n"]);
    gateway.counts("http_route_requests", "web/tunnel", "2xx", 0);
    drop(client);
    eventually("the tunnel ends", || view(gateway.gateway().mesh()).of_kind("http").count() == 0);
    gateway.counts("http_route_requests", "web/tunnel", "2xx", 1);
}

#[test]
fn connect_passes_over_http2_where_a_route_takes_it() {
    let server = Server::start();
    let route =
        "[[listener.route]]\nname = \"tunnel\"\nhost = \"inner.test\"\nmethod = \"CONNECT\"\nupstream = \"app\"\n";
    let gateway = Running::start(&(config(server.address, "", "") + route));
    let mut neighbour = Client::to(gateway.address("web"));
    neighbour.works();
    assert_eq!(says("connect_over_http2", gateway.address("web").port()), "fine");
    assert_eq!(server.heads().iter().filter(|head| head.contains("x: as it is")).count(), 1);
    gateway.counts("http_route_requests", "web/tunnel", "2xx", 1);
    neighbour.works();
    eventually("the tunnel ends", || view(gateway.gateway().mesh()).of_kind("http").count() == 1);
}
