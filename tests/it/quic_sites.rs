//! Tunnels between two sites: what becomes of them when the far gateway is killed, or when TLS with it fails.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::gateway::{Binary, Running, free, get, temp_dir};
use crate::probe::{SOON, eventually, eventually_within, now};
use crate::quic_gateway::{listening, listening_on, pem, tcp_server, upstream};

/// Answers everything at once, as long as there is a client.
fn answer_at_once(mut stream: TcpStream) {
    stream.set_read_timeout(None).expect("set");
    let mut buffer = [0; 4_096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// A far gateway's configuration, on this port.
fn far(address: SocketAddr, quic: &str, server: SocketAddr) -> String {
    let route = "[[listener.route]]\nalpn = \"site\"\nupstream = \"app\"\n";
    listening_on(&address.to_string(), 2, &format!("{route}[listener.quic]\n{quic}\n{}", upstream("app", server)))
}

/// A near gateway's with listeners over a tunnel to each of the far ones, and one named `beside` that needs no tunnel.
fn near(tunnels: &[(&str, SocketAddr, String)], beside: SocketAddr) -> Running {
    let mut text = "version = 1\n[runtime]\narbiters = 1\n".to_owned();
    for (name, to, tls) in tunnels {
        // A busy machine takes its time for a handshake.
        let patience = if *name == "nobody" { "1s" } else { "8s" };
        text += &format!(
            "[[upstream]]\nname = \"{name}\"\nservers = [\"quic://{to}\"]\n\
             [upstream.limits]\nconnect_timeout = \"{patience}\"\n[upstream.tls]\n{tls}\n"
        );
    }
    text += &upstream("beside", beside);
    for name in tunnels.iter().map(|(name, ..)| *name).chain(["beside"]) {
        text += &format!(
            "[[listener]]\nname = \"{name}\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"relay\"\nupstream = \"{name}\"\n"
        );
    }
    Running::start(&text)
}

fn trusts(ca: &str, name: &str, alpn: &str) -> String {
    format!("ca = {:?}\nname = \"{name}\"\nalpn = \"{alpn}\"", pem(ca))
}

fn client(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(SOON * 2)).expect("set");
    stream
}

fn says(stream: &mut TcpStream, what: &[u8]) {
    stream.write_all(what).expect("written");
    let mut back = vec![0; what.len()];
    stream.read_exact(&mut back).expect("an answer");
    assert_eq!(back, what);
}

/// The stream ends by a reset, within this time.
fn is_reset(stream: &mut TcpStream, within: Duration) {
    stream.set_read_timeout(Some(within)).expect("set");
    let error = stream.read(&mut [0; 10]).expect_err("no end in order, and no answer");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

/// With a secret that outlives it, a far gateway that comes back tells the near one at once that the tunnel is lost.
#[test]
fn a_far_gateway_that_was_killed_and_started_again_is_used_at_once() {
    let server = tcp_server(answer_at_once);
    let (address, dir) = (free(), temp_dir());
    let secret = dir.join("far.secret");
    std::fs::write(&secret, [7; 32]).expect("written");
    let text = far(address, &format!("secret_file = {secret:?}"), server);
    let mut far = Binary::start(&text);
    far.address("q");
    let near = near(&[("in", address, trusts("good.pem", "localhost", "site"))], server);
    let mut beside = client(near.address("beside"));
    let (mut open, mut quiet) = (client(near.address("in")), client(near.address("in")));
    for stream in [&mut open, &mut quiet, &mut beside] {
        says(stream, b"before");
    }
    far.signal("KILL");
    far.ends_within(SOON);
    far.again(&text);
    far.address("q");
    let began = now();
    open.write_all(b"anybody there?").expect("written");
    // Both: it is the tunnel that was lost.
    is_reset(&mut open, SOON);
    is_reset(&mut quiet, SOON);
    near.counts("connections_closed", "in", "upstream_reset", 2);
    near.counts("quic_connections_closed", "upstreams", "reset", 1);
    says(&mut client(near.address("in")), b"after");
    // Far less than the idle timeout of half a minute.
    assert!(now().duration_since(began) < SOON * 2, "{:?}", now().duration_since(began));
    says(&mut beside, b"unharmed");
    std::fs::remove_dir_all(dir).expect("removed");
}

/// Without a word from the far gateway a tunnel ends with its idle timeout, which is the smaller one of both sides; while
/// it is there a tunnel on which nothing moves outlives that.
#[test]
fn a_tunnel_whose_far_gateway_is_gone_ends_with_its_idle_timeout() {
    let server = tcp_server(answer_at_once);
    let address = free();
    let text = far(address, "idle_timeout = \"3s\"", server);
    let mut far = Binary::start(&text);
    far.address("q");
    let near = near(&[("in", address, trusts("good.pem", "localhost", "site"))], server);
    let (mut beside, mut open) = (client(near.address("beside")), client(near.address("in")));
    says(&mut open, b"before");
    says(&mut beside, b"before");
    // Asked more often than that, it is no timeout that a tunnel at rest runs into.
    let end = now() + Duration::from_secs(4);
    eventually("a quiet while", || now() >= end);
    says(&mut open, b"still there");
    says(&mut beside, b"unharmed");
    far.signal("KILL");
    far.ends_within(SOON);
    is_reset(&mut open, Duration::from_secs(8));
    near.counts("connections_closed", "in", "upstream_reset", 1);
    near.counts("quic_connections_closed", "upstreams", "idle", 1);
    says(&mut beside, b"unharmed");
    is_reset(&mut client(near.address("in")), SOON * 2);
    near.counts("connections_closed", "in", "connect_timeout", 1);
    far.again(&text);
    far.address("q");
    // Whoever comes while it is still being waited for is refused once more.
    eventually_within(SOON * 3, "it is found again", || {
        let mut stream = client(near.address("in"));
        stream.write_all(b"after").is_ok() && stream.read_exact(&mut [0; 5]).is_ok()
    });
    says(&mut beside, b"unharmed");
}

/// The same words as over TCP: it makes a difference to whoever looks for the fault.
#[test]
fn tls_that_fails_towards_a_server_over_quic_is_named_as_tls() {
    let server = tcp_server(answer_at_once);
    let route = "[[listener.route]]\nalpn = \"site\"\nupstream = \"app\"\n";
    let far = Running::start(&listening(1, &format!("{route}{}", upstream("app", server))));
    let to = far.address("q");
    let near = near(
        &[
            ("good", to, trusts("good.pem", "localhost", "site")),
            ("stranger", to, trusts("new.pem", "localhost", "site")),
            ("other-name", to, trusts("good.pem", "other.example", "site")),
            ("other-alpn", to, trusts("good.pem", "localhost", "nobody")),
            ("nobody", free(), trusts("good.pem", "localhost", "site")),
        ],
        server,
    );
    let mut neighbour = client(near.address("good"));
    says(&mut neighbour, b"before");
    let reasons = [
        ("stranger", "tls_certificate"),
        ("other-name", "tls_certificate"),
        ("other-alpn", "tls_refused"),
        ("nobody", "connect_timeout"),
    ];
    for (number, (name, reason)) in (0..).zip(reasons) {
        is_reset(&mut client(near.address(name)), SOON * 2);
        near.counts("connections_closed", name, reason, 1);
        near.counts("upstream_failures", name, reason, 1);
        assert_eq!(near.totals().family("upstream_failures"), number + 1, "none but that");
        says(&mut neighbour, b"unharmed");
    }
}

/// A certificate that does not parse, and one that does not belong to its key, refuse a reload, once each, and nobody who
/// is in or comes notices.
#[test]
fn certificates_that_do_not_fit_refuse_a_reload_and_are_counted() {
    let server = tcp_server(answer_at_once);
    let (address, admin, dir) = (free(), free(), temp_dir());
    let (cert, key) = (dir.join("c.pem"), dir.join("k.pem"));
    let copy = |from: &str, to: &Path| {
        std::fs::copy(pem(from), to).expect("copied");
    };
    copy("good.pem", &cert);
    copy("good-key.pem", &key);
    let text = far(address, "", server).replace(
        &format!("cert = {:?}\nkey = {:?}", pem("good.pem"), pem("good-key.pem")),
        &format!("cert = {cert:?}\nkey = {key:?}"),
    ) + &format!("[admin]\nlisten = \"{admin}\"\n");
    let mut far = Binary::start(&text);
    far.address("q");
    let near = near(&[("in", address, trusts("good.pem", "localhost", "site"))], server);
    let mut inside = client(near.address("in"));
    says(&mut inside, b"before");
    let reloads = |result: &str| {
        let line = format!("portway_reloads_total{{result=\"{result}\"}} ");
        let metrics = get(admin, "/metrics").1;
        metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse::<u64>().ok()).expect("a line of it")
    };
    let applied = reloads("applied");
    let broken: [(&str, &dyn Fn()); 3] = [
        ("does not parse", &|| std::fs::write(&cert, [0, 255, 10, 7]).expect("written")),
        ("is another's", &|| copy("new.pem", &cert)),
        ("has no key", &|| {
            copy("good.pem", &cert);
            std::fs::write(&key, "garbage").expect("written");
        }),
    ];
    for (number, (what, breaks)) in broken.iter().enumerate() {
        breaks();
        far.signal("HUP");
        eventually(what, || reloads("refused") > number as u64);
        assert_eq!((reloads("applied"), reloads("refused")), (applied, number as u64 + 1), "{what}");
        says(&mut inside, b"unharmed");
        // Over a tunnel of its own, with a handshake.
        let fresh = self::near(&[("in", address, trusts("good.pem", "localhost", "site"))], server);
        says(&mut client(fresh.address("in")), b"the one before is shown");
    }
    copy("new.pem", &cert);
    copy("new-key.pem", &key);
    far.signal("HUP");
    eventually("applied", || reloads("applied") > applied);
    assert_eq!((reloads("applied"), reloads("refused")), (applied + 1, 3));
    let fresh = self::near(&[("in", address, trusts("new.pem", "localhost", "site"))], server);
    says(&mut client(fresh.address("in")), b"the new one");
    says(&mut inside, b"and those inside go on");
    std::fs::remove_dir_all(dir).expect("removed");
}
