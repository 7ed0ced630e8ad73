//! TLS in front of relays, with curl and nginx at the ends: routed by name and protocol as it passes, and terminated.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::gateway::{Binary, Running, free, get, temp_dir};
use crate::http::Server;
use crate::http_upstreams::{Authority, Nginx};
use crate::probe::{SOON, eventually, view};

fn curl(ca: &Path, name: &str, address: SocketAddr, more: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "10", "--cacert"])
        .arg(ca)
        .args(["--resolve", &format!("{name}:{}:127.0.0.1", address.port())])
        .args(more)
        .arg(format!("https://{name}:{}/x", address.port()))
        .output()
        .expect("curl is installed");
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
}

fn relay(upstreams: &[(&str, u16)], listener: &str, routes: &str) -> String {
    let upstreams: String = upstreams
        .iter()
        .map(|(name, port)| format!("[[upstream]]\nname = \"{name}\"\nservers = [\"127.0.0.1:{port}\"]\n"))
        .collect();
    format!(
        "version = 1\n[runtime]\narbiters = 2\n{upstreams}[[listener]]\nname = \"tls\"\nlisten = \"127.0.0.1:0\"\n\
         protocol = \"relay\"\n{listener}\n{routes}\n"
    )
}

/// Passes a client's bytes on, the first ones one by one.
fn dribble(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(to).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut back, mut down) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut back, &mut down));
        let mut piece = [0; 1];
        for _ in 0..300 {
            if client.read_exact(&mut piece).is_err() || server.write_all(&piece).is_err() {
                return;
            }
        }
        let _over = std::io::copy(&mut client, &mut server);
    });
    here
}

#[test]
fn connections_pass_to_whom_their_clients_want() {
    let nginx = Nginx::start();
    let routes = "[[listener.route]]\nsni = \"a.test\"\nupstream = \"both\"\n\
                  [[listener.route]]\nsni = \"*.test\"\nupstream = \"mutual\"\n\
                  [[listener.route]]\nalpn = \"echo\"\nupstream = \"clear\"\n";
    let upstreams = [("both", nginx.both), ("mutual", nginx.mutual), ("clear", nginx.clear)];
    let gateway = Running::start(&relay(&upstreams, "", routes));
    let (ca, address) = (nginx.dir.join("ca.pem"), gateway.address("tls"));
    assert_eq!(curl(&ca, "a.test", address, &[]), "HTTP/2.0|a.test|NONE|a.test", "end to end");
    assert_eq!(curl(&ca, "a.test", dribble(address), &["--http1.1"]), "HTTP/1.1|a.test|NONE|a.test", "byte by byte");
    // The server for the wildcard shows the certificate of another name, which only the client can notice.
    assert!(curl(&ca, "b.test", address, &[]).contains("SSL"), "not the server of a.test");
    assert!(curl(&ca, "c.example", address, &[]).starts_with("curl: ("), "no route");
    gateway.counts("relay_hello", "tls", "no_route", 1);
    assert_eq!(gateway.totals().family("actor_panics"), 0);
    let mesh = gateway.gateway().mesh().clone();
    eventually("nothing is left", || {
        view(&mesh).of_kind("relay").count() + view(&mesh).of_kind("relay_hello").count() == 0
    });
}

#[test]
fn what_is_no_hello_is_closed_and_counted() {
    let nginx = Nginx::start();
    let routes =
        "[listener.limits]\nfirst_message = \"400ms\"\n[[listener.route]]\nsni = \"a.test\"\nupstream = \"both\"\n";
    let gateway = Running::start(&relay(&[("both", nginx.both)], "", routes));
    let (ca, address) = (nginx.dir.join("ca.pem"), gateway.address("tls"));
    let cut = [22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
    let many: Vec<u8> = [22, 3, 1, 0, 1, 1].into_iter().chain([22, 3, 1, 0, 1, 0].repeat(20_000)).collect();
    for (bytes, ends, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], false, "not_tls"),
        (&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff], false, "hello_too_large"),
        (&[22, 3, 1, 0, 0], false, "hello_malformed"),
        (&cut, false, "hello_timeout"),
        (&cut, true, "closed"),
        (&[], true, "closed"),
        (&many, false, "hello_malformed"),
    ] {
        let before = gateway.totals().get("relay_hello", "tls", reason);
        let mut client = TcpStream::connect_timeout(&address, SOON).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        // It may be refused before all of it was written.
        let _reset = client.write_all(bytes);
        if ends {
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut rest = Vec::new();
        let _reset = client.read_to_end(&mut rest);
        assert!(rest.is_empty());
        gateway.counts("relay_hello", "tls", reason, before + 1);
        assert_eq!(curl(&ca, "a.test", address, &[]), "HTTP/2.0|a.test|NONE|a.test", "the neighbour, after {reason}");
    }
}

#[test]
fn tls_ends_in_front_of_plain_servers() {
    let server = Server::start();
    let dir = temp_dir();
    let authority = Authority::new(&dir, "ca");
    authority.signs("a.test");
    let certificate = format!(
        "certificate = \"a\"\nupstream = \"app\"\n[[certificate]]\nname = \"a\"\ncert = {:?}\nkey = {:?}\n",
        dir.join("a.test.pem"),
        dir.join("a.test.key")
    );
    // The table of certificates ends that of the listener, so the routes come in between.
    let (words, certificate) = certificate.split_at(certificate.find("[[cert").unwrap());
    let port = free();
    let text = relay(&[("app", server.address.port())], words, certificate)
        .replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{port}\""));
    let gateway = Running::start(&text);
    let ca = dir.join("ca.pem");
    assert_eq!(curl(&ca, "a.test", port, &[]), "hello");
    assert_eq!(curl(&ca, "a.test", port, &["--data", "a body"]), "a body");
    let big = curl(&ca, "a.test", port, &["--data", &"x".repeat(100_000)]);
    assert_eq!(big.len(), 100_000);
    assert!(server.heads()[0].starts_with("GET /x HTTP/1.1\r\n"), "plain to the server: {:?}", server.heads());
    let mut plain = TcpStream::connect(port).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _reset = plain.read_to_end(&mut rest);
    gateway.counts("relay_hello", "tls", "not_tls", 1);
    // Another certificate, from the same files: whoever comes next gets it.
    assert!(curl(&dir.join("next.pem"), "a.test", port, &[]).starts_with("curl: ("));
    let next = Authority::new(&dir, "next");
    next.signs("a.test");
    gateway.gateway().reload(portway::gateway::check::parse("test.toml", &text, &Default::default()).unwrap()).unwrap();
    assert_eq!(curl(&dir.join("next.pem"), "a.test", port, &[]), "hello");
    assert!(curl(&ca, "a.test", port, &[]).starts_with("curl: ("), "the old one is gone");
    std::fs::remove_dir_all(dir).unwrap();
}

/// A client that reads nothing for a while: what TLS could not send at once is offered to it again from elsewhere.
#[test]
fn a_client_of_tls_that_reads_slowly_gets_everything() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let text =
        relay(&[("app", server.local_addr().unwrap().port())], "certificate = \"local\"\nupstream = \"app\"", "")
            + "[[certificate]]\nname = \"local\"\ngenerate = [\"localhost\"]\n";
    let gateway = Running::start(&text);
    let all: Vec<u8> = (0..16_u32 << 20).map(|at| (at / 7) as u8).collect();
    let sent = all.clone();
    std::thread::spawn(move || server.accept().unwrap().0.write_all(&sent));
    let stream = TcpStream::connect(gateway.address("tls")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut builder = boring::ssl::SslConnector::builder(boring::ssl::SslMethod::tls()).unwrap();
    builder.set_verify(boring::ssl::SslVerifyMode::NONE);
    let mut client = builder.build().connect("localhost", stream).unwrap();
    let mesh = gateway.gateway().mesh().clone();
    eventually("nobody takes any more", || view(&mesh).of_kind("relay").any(|actor| actor.held > 0));
    let mut came = Vec::new();
    client.read_to_end(&mut came).unwrap();
    assert!(came == all, "{} of {} bytes", came.len(), all.len());
}

#[test]
fn fifty_streams_are_fifty_actors() {
    let server = Server::start();
    let text = relay(&[("app", server.address.port())], "certificate = \"local\"\nupstream = \"app\"", "")
        + "[[certificate]]\nname = \"local\"\ngenerate = [\"localhost\"]\n";
    let gateway = Running::start(&text);
    let mut builder = boring::ssl::SslConnector::builder(boring::ssl::SslMethod::tls()).unwrap();
    builder.set_verify(boring::ssl::SslVerifyMode::NONE);
    let connector = builder.build();
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let stream = TcpStream::connect(gateway.address("tls")).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut stream = connector.connect("localhost", stream).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            stream
        })
        .collect();
    let seen = view(gateway.gateway().mesh());
    let actors: Vec<_> = seen.of_kind("relay").collect();
    assert_eq!((actors.len(), seen.of_kind("relay_hello").count()), (50, 0));
    assert!(actors.iter().all(|actor| actor.turns > 0));
    let arbiters: std::collections::BTreeSet<_> = actors.iter().map(|actor| actor.arbiter).collect();
    assert_eq!(arbiters.len(), 2);
    drop(clients);
    let mesh = gateway.gateway().mesh().clone();
    eventually("no stream is left", || view(&mesh).of_kind("relay").count() == 0);
    eventually("the budget got everything back", || gateway.gateway().memory_leased() == 0);
}

#[test]
fn changed_files_of_certificates_are_used_without_being_told() {
    let server = Server::start();
    let dir = temp_dir();
    Authority::new(&dir, "ca").signs("a.test");
    let text = relay(&[("app", server.address.port())], "certificate = \"a\"\nupstream = \"app\"", "")
        + "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\ncertificate = \"a\"\n\
           [[listener.route]]\nupstream = \"app\"\n"
        + &format!(
            "[[certificate]]\nname = \"a\"\ncert = {:?}\nkey = {:?}\n",
            dir.join("a.test.pem"),
            dir.join("a.test.key")
        );
    // Changed listeners keep their sockets where their ports are given.
    let (ports, admin) = ([free(), free()], free());
    let text = ports.iter().fold(text, |text, port| text.replacen("127.0.0.1:0\"", &format!("{port}\""), 1));
    let text = text + &format!("[admin]\nlisten = \"{admin}\"\n");
    let reloads = |result: &str| {
        let line = format!("portway_reloads_total{{result=\"{result}\"}} ");
        let metrics = get(admin, "/metrics").1;
        metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut binary = Binary::start(&text);
    for name in ["tls", "web"] {
        binary.address(name);
    }
    for port in ports {
        assert_eq!(curl(&dir.join("ca.pem"), "a.test", port, &[]), "hello");
    }
    // One after the other, as people do: in between the files do not fit each other.
    let hold = temp_dir();
    Authority::new(&hold, "next").signs("a.test");
    std::fs::copy(hold.join("a.test.pem"), dir.join("a.test.pem")).unwrap();
    binary.says("changed certificates are not used");
    let before = reloads("applied");
    assert_eq!(reloads("refused"), 1);
    assert_eq!(curl(&dir.join("ca.pem"), "a.test", ports[0], &[]), "hello", "the old one goes on");
    std::fs::copy(hold.join("a.test.key"), dir.join("a.test.key")).unwrap();
    binary.says("certificates have changed");
    assert_eq!((reloads("applied"), reloads("refused")), (before + 1, 1));
    for port in ports {
        assert_eq!(curl(&hold.join("next.pem"), "a.test", port, &[]), "hello");
    }
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::remove_dir_all(hold).unwrap();
}
