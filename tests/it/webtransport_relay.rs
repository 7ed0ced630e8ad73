//! Sessions of WebTransport whose streams and datagrams go to servers: half-closes, resets, the end of sessions, and what
//! a neighbour loses by them.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::Duration;

use bytes::Bytes;
use portway::transports::http3::codec::{Code as Number, stream as kind};
use portway::transports::quic::{Priority, StreamError};
use portway::transports::webtransport::codec::{Capsule, Capsules, datagram, opening, to_http3};

use crate::gateway::{Running, free};
use crate::http3::{Answer, Client, config, read};
use crate::probe::{SOON, eventually, view, wait};
use crate::quic_gateway::{ECHO, answer_at_the_end, listening, pattern, pem, tcp_server, upstream};
use crate::webtransport::{Session, connect};

/// The codes of relays, as sessions write them.
const GIVEN_UP: u64 = 0x101;
const REFUSED: u64 = 0x102;

fn gateway(route: &str, upstreams: &str) -> Running {
    let route = format!("[[listener.route]]\nname = \"wt\"\npath = \"/wt\"\nwebtransport = true\n{route}\n");
    Running::start(&config(free(), &format!("{route}{upstreams}")))
}

#[test]
fn streams_are_joined_to_a_server_and_half_closes_pass() {
    let running = gateway("upstream = \"tcp\"", &upstream("tcp", tcp_server(answer_at_the_end)));
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        session.echoes(b"hello").await;
        session.echoes(&pattern(3_000_000)).await;
        // What comes in one piece with the number of its session is not lost.
        let (send, receive) = client
            .send(
                [&opening(portway::transports::http3::codec::frame::WEBTRANSPORT, session.id())[..], b"ahead"].concat(),
            )
            .await;
        send.finish().await.expect("finished");
        assert_eq!(read(&receive, usize::MAX).await, (b"ahead".to_vec(), Ok(())));
        // In one direction no server can take it.
        let one = client.connection.open_uni(Priority::default()).await.expect("a stream");
        one.write(opening(kind::WEBTRANSPORT, session.id())).await.expect("written");
        let stopped = loop {
            match one.write(&b"more"[..]).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => break error,
            }
        };
        assert_eq!(stopped, StreamError::Stopped(to_http3(REFUSED)));
        session.echoes(b"and on").await;
    });
    running.counts("connections_closed", "web", "finished", 4);
    running.counts("quic_streams_refused", "web", "one_way", 1);
}

#[test]
fn resets_pass_both_ways() {
    let (say, said) = std::sync::mpsc::channel();
    let server = tcp_server(move |mut stream| {
        let mut first = [0; 1];
        stream.read_exact(&mut first).expect("a first byte");
        match &first {
            b"r" => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set"),
            b"e" => {
                let mut rest = Vec::new();
                stream.write_all(b"e").expect("written");
                stream.read_to_end(&mut rest).expect("an end");
                stream.write_all(&rest).expect("written");
            }
            _ => {
                let mut rest = Vec::new();
                let error = stream.read_to_end(&mut rest).expect_err("no end, a reset");
                say.send(error.kind()).expect("the test waits");
            }
        }
    });
    let running = gateway("upstream = \"tcp\"", &upstream("tcp", server));
    wait(async {
        let (client, other) = (Client::to(running.address("web")).await, Client::to(running.address("web")).await);
        let (session, neighbour) = (Session::on(&client, &[]).await, Session::on(&other, &[]).await);
        let (send, receive) = session.open().await;
        send.write(&b"r"[..]).await.expect("written");
        assert_eq!(read(&receive, 9).await.1, Err(StreamError::Reset(to_http3(GIVEN_UP))));
        let (send, receive) = session.open().await;
        send.write(&b"x"[..]).await.expect("written");
        while running.gateway().mesh().view().await.totals.get("relay_bytes_up", "web", "") < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        send.reset(to_http3(77)).await.expect("reset");
        assert_eq!(said.recv_timeout(SOON).expect("told"), std::io::ErrorKind::ConnectionReset);
        assert_eq!(read(&receive, 9).await.1, Err(StreamError::Reset(to_http3(GIVEN_UP))));
        // Neither costs the session anything, nor a neighbour.
        session.echoes(b"echo").await;
        neighbour.echoes(b"echo").await;
    });
    running.counts("connections_closed", "web", "upstream_reset", 1);
    running.counts("connections_closed", "web", "client_reset", 1);
}

#[test]
fn a_server_that_is_not_there_costs_the_stream_alone() {
    let running = gateway("upstream = \"tcp\"", &upstream("tcp", free()));
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        for _ in 0..2 {
            let (_send, receive) = session.open().await;
            assert_eq!(read(&receive, 9).await.1, Err(StreamError::Reset(to_http3(GIVEN_UP))));
        }
        session.says(&Capsule::Close { code: 0, text: String::new() }).await;
        assert_eq!(session.capsules().await, (vec![], Ok(())));
    });
    running.counts("upstream_failures", "tcp", "connect_refused", 2);
}

#[test]
fn the_end_of_a_session_is_one_for_its_servers() {
    let (say, said) = std::sync::mpsc::channel();
    let server = tcp_server(move |mut stream| {
        let mut rest = Vec::new();
        say.send(stream.read_to_end(&mut rest).map_err(|error| error.kind())).expect("the test waits");
    });
    let running = gateway("upstream = \"tcp\"", &upstream("tcp", server));
    let relays = || view(running.gateway().mesh()).of_kind("relay").count();
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        let (send, receive) = session.open().await;
        send.write(&b"x"[..]).await.expect("written");
        while running.gateway().mesh().view().await.totals.get("relay_bytes_up", "web", "") < 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        session.says(&Capsule::Close { code: 3, text: "enough".to_owned() }).await;
        let gone = Number::WebTransportSessionGone.number();
        assert_eq!(read(&receive, 1).await.1, Err(StreamError::Reset(gone)));
        assert_eq!(said.recv_timeout(SOON).expect("told"), Err(std::io::ErrorKind::ConnectionReset));
        // And with its connection.
        let session = Session::on(&client, &[]).await;
        let (send, _receive) = session.open().await;
        send.write(&b"x"[..]).await.expect("written");
        while running.gateway().mesh().view().await.totals.get("relay_bytes_up", "web", "") < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        client.connection.close(0x100, "gone");
        assert_eq!(said.recv_timeout(SOON).expect("told"), Err(std::io::ErrorKind::ConnectionReset));
    });
    eventually("no relay is left", || relays() == 0);
}

#[test]
fn fifty_streams_are_fifty_pinned_actors_and_then_none() {
    let running = gateway("upstream = \"tcp\"", &upstream("tcp", tcp_server(answer_at_the_end)));
    let mesh = running.gateway().mesh().clone();
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        let mut open = Vec::new();
        for _ in 0..50 {
            let (send, receive) = session.open().await;
            send.write(&b"here"[..]).await.expect("written");
            open.push((send, receive));
        }
        while mesh.view().await.totals.get("relay_bytes_up", "web", "") < 200 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let view = mesh.view().await;
        let connection = view.of_kind("quic").next().expect("its connection").arbiter;
        assert_eq!(view.of_kind("relay").filter(|a| a.turns > 0 && a.arbiter == connection).count(), 50);
        for (send, receive) in open {
            send.finish().await.expect("finished");
            assert_eq!(read(&receive, usize::MAX).await, (b"here".to_vec(), Ok(())));
        }
    });
    eventually("none is left", || view(&mesh).of_kind("relay").count() == 0);
}

#[test]
fn datagrams_go_to_a_server_over_udp_and_back() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = format!("udp://{}", server.local_addr().expect("its address"));
    std::thread::spawn(move || {
        let mut buffer = [0; 2_000];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            buffer[..length].reverse();
            server.send_to(&buffer[..length], from).expect("sent");
        }
    });
    let upstreams = upstream("udp", address) + &upstream("tcp", tcp_server(answer_at_the_end));
    let running = gateway("upstream = \"tcp\"\ndatagrams = \"udp\"", &upstreams);
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        for n in 1..50_u8 {
            assert_eq!(session.casts(&[0, n]).await, datagram(session.id(), &[n, 0]));
        }
        session.echoes(b"beside streams").await;
    });
    let totals = running.totals();
    assert!(totals.get("quic_datagrams_relayed", "web", "up") >= 49);
    assert!(totals.get("quic_datagrams_relayed", "web", "down") >= 49);
}

#[test]
fn streams_and_datagrams_go_to_a_server_over_quic() {
    let far = Running::start(&listening(1, ECHO));
    let tls = format!("[upstream.tls]\nca = {:?}\nname = \"localhost\"\nalpn = \"echo\"\n", pem("good.pem"));
    let server = format!("quic://{}", far.address("q"));
    let running = gateway("upstream = \"far\"", &(upstream("far", server) + &tls));
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        session.echoes(&pattern(1_000_000)).await;
        assert_eq!(session.casts(b"ping").await, datagram(session.id(), b"ping"));
        // The echo gives up what is given up: it comes back as a reset.
        let (send, receive) = session.open().await;
        send.write(&b"half"[..]).await.expect("written");
        assert_eq!(read(&receive, 4).await.0, b"half");
        send.reset(to_http3(7)).await.expect("reset");
        assert_eq!(read(&receive, 1).await.1, Err(StreamError::Reset(to_http3(GIVEN_UP))));
        session.echoes(b"and on").await;
    });
    running.counts("connections_closed", "web", "finished", 2);
}

#[test]
fn a_drain_lets_streams_finish() {
    let running = gateway("upstream = \"tcp\"", &upstream("tcp", tcp_server(answer_at_the_end)));
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        let (send, receive) = session.open().await;
        send.write(&b"begun"[..]).await.expect("written");
        while running.gateway().mesh().view().await.totals.get("relay_bytes_up", "web", "") < 5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let draining = running.gateway().mesh().drain(Duration::from_secs(5));
        let ending = async {
            let (mut content, _) = read(&session.receive, 1).await;
            while Answer::read(&content).body.is_empty() {
                content.extend(read(&session.receive, 1).await.0);
            }
            let mut said = Bytes::from(Answer::read(&content).body);
            assert_eq!(Capsules::default().feed(&mut said), Ok(Some(Capsule::Drain)));
            send.write(&b" and finished"[..]).await.expect("written");
            send.finish().await.expect("finished");
            assert_eq!(read(&receive, usize::MAX).await, (b"begun and finished".to_vec(), Ok(())));
            session.says(&Capsule::Close { code: 0, text: String::new() }).await;
            session.send.finish().await.expect("finished");
        };
        let (report, ()) = tokio::join!(draining, ending);
        assert!(report.complete(), "{report:?}");
    });
}

#[test]
fn pages_of_other_origins_open_no_session() {
    let running = gateway("service = \"echo\"\norigins = [\"https://App.example\"]", "");
    wait(async {
        let client = Client::to(running.address("web")).await;
        let neighbour = Client::to(running.address("web")).await;
        let of = Session::on(&neighbour, &[("origin", "https://app.example")]).await;
        for origin in ["https://evil.example", "null", "https://app.example.evil.example", "http://app.example"] {
            let (_send, receive) = client.send(connect("/wt", "webtransport", &[("origin", origin)])).await;
            assert_eq!(Answer::read(&read(&receive, 1).await.0).last_status(), 403, "{origin}");
            of.echoes(b"the neighbour goes on").await;
        }
        // What is no browser says nothing of it.
        Session::on(&client, &[]).await.echoes(b"hello").await;
    });
    running.counts("http_denied", "web/wt", "origin", 4);
}
