//! WebTransport of the gateway, with a client that writes frames by hand: streams, datagrams, codes, the end of sessions,
//! and what does not belong to any.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::transports::http3::codec::{Code as Number, Settings, frame, put_varint, stream as kind, take_varint};
use portway::transports::http3::codec_fields;
use portway::transports::quic::{Code, Datagram, Priority, RecvStream, SendStream, StreamError};
use portway::transports::webtransport::codec::{Capsule, Capsules, datagram, from_http3, opening, to_http3};

use crate::gateway::Running;
use crate::http::Server;
use crate::http3::{Answer, Client, PROXY, data, fields, gateway, read};
use crate::probe::{eventually, view, wait};
use crate::quic_gateway::pattern;

pub(crate) const ECHO: &str = "[[listener.route]]\nname = \"wt\"\npath = \"/wt\"\nwebtransport = true\nservice = \"echo\"\n\
     protocols = [\"b\", \"a\"]\n";

/// The head of a CONNECT for a session.
pub(crate) fn connect(path: &str, token: &str, more: &[(&str, &str)]) -> Bytes {
    let mut list: Vec<(&str, &[u8])> = vec![
        (":method", b"CONNECT"),
        (":scheme", b"https"),
        (":authority", b"a.example"),
        (":path", path.as_bytes()),
        (":protocol", token.as_bytes()),
    ];
    list.extend(more.iter().map(|(name, value)| (*name, value.as_bytes())));
    let mut out = BytesMut::new();
    codec_fields::put_request(&mut out, &list);
    out.freeze()
}

/// A session, with the stream it lives by.
pub(crate) struct Session<'a> {
    pub(crate) client: &'a Client,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) answer: Answer,
}

impl<'a> Session<'a> {
    pub(crate) async fn on(client: &'a Client, more: &[(&str, &str)]) -> Self {
        let (send, receive) = client.send(connect("/wt", "webtransport", more)).await;
        let answer = Answer::read(&read(&receive, 1).await.0);
        assert_eq!(answer.last_status(), 200);
        Self { client, send, receive, answer }
    }

    pub(crate) fn id(&self) -> u64 {
        self.send.id().0
    }

    pub(crate) async fn open(&self) -> (SendStream, RecvStream) {
        self.client.send(opening(frame::WEBTRANSPORT, self.id())).await
    }

    pub(crate) async fn echoes(&self, what: &[u8]) {
        let (send, receive) = self.open().await;
        let sending = async {
            send.write(Bytes::copy_from_slice(what)).await.expect("written");
            send.finish().await.expect("finished");
        };
        let (_, back) = tokio::join!(sending, receive.read_to_end(what.len() + 1));
        assert!(back.expect("read") == what);
    }

    pub(crate) async fn casts(&self, what: &[u8]) -> Bytes {
        loop {
            let sent = Datagram::new(datagram(self.id(), what));
            self.client.connection.send_datagram(sent).await.expect("sent");
            // One may be lost.
            if let Ok(back) = tokio::time::timeout(Duration::from_millis(500), self.client.connection.datagrams()).await
            {
                return back.expect("alive").remove(0);
            }
        }
    }

    /// The capsules that come until the stream of the session ends.
    pub(crate) async fn capsules(&self) -> (Vec<Capsule>, Result<(), StreamError>) {
        let (got, end) = read(&self.receive, usize::MAX).await;
        let mut content = Bytes::from(Answer::read(&got).body);
        let mut capsules = Capsules::default();
        let mut all = Vec::new();
        while let Some(capsule) = capsules.feed(&mut content).expect("capsules") {
            all.push(capsule);
        }
        (all, end)
    }

    pub(crate) async fn says(&self, capsule: &Capsule) {
        let mut out = BytesMut::new();
        capsule.encode(&mut out);
        self.send.write(data(&out)).await.expect("written");
    }
}

fn running(rest: &str) -> (Server, Running) {
    let server = Server::start();
    let running = gateway(&server, &format!("{rest}{ECHO}{PROXY}"));
    (server, running)
}

#[test]
fn streams_and_datagrams_are_echoed_beside_requests() {
    let (_server, running) = running("");
    wait(async {
        let client = Client::to(running.address("web")).await;
        let control = client.connection.accept_uni().await.expect("a stream");
        let said = read(&control, 1).await.0;
        let mut rest = &said[1..];
        assert_eq!(take_varint(&mut rest), Some(frame::SETTINGS));
        let _length = take_varint(&mut rest);
        let settings = Settings::decode(rest).expect("settings");
        assert_eq!((settings.connect, settings.datagrams, settings.sessions), (true, true, 1));
        client.works().await;
        let session = Session::on(&client, &[]).await;
        session.echoes(b"hello").await;
        session.echoes(&pattern(1_000_000)).await;
        client.works().await;
        // In one direction: it comes back on another one, which begins by naming the session.
        let one = client.connection.open_uni(Priority::default()).await.expect("a stream");
        one.write(opening(kind::WEBTRANSPORT, session.id())).await.expect("written");
        one.write(&b"one way"[..]).await.expect("written");
        one.finish().await.expect("finished");
        // Behind those of QPACK, which must not be given up.
        let _qpack = (client.connection.accept_uni().await, client.connection.accept_uni().await);
        let back = client.connection.accept_uni().await.expect("a stream");
        let back = read(&back, usize::MAX).await.0;
        assert_eq!(back, [&opening(kind::WEBTRANSPORT, session.id())[..], b"one way"].concat());
        assert_eq!(session.casts(b"ping").await, datagram(session.id(), b"ping"));
        session.says(&Capsule::Close { code: 0, text: String::new() }).await;
        session.send.finish().await.expect("finished");
        assert_eq!(session.capsules().await, (vec![], Ok(())));
        client.works().await;
    });
    assert_eq!(running.totals().get("http_route_requests", "web/wt", "2xx"), 1);
}

#[test]
fn codes_are_those_of_the_session() {
    let (_server, running) = running("");
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        // The echo gives up with the code it was told, in the numbers of HTTP/3 on the wire.
        let (send, receive) = session.open().await;
        send.write(&b"half"[..]).await.expect("written");
        assert_eq!(read(&receive, 4).await.0, b"half");
        send.reset(to_http3(7)).await.expect("reset");
        assert_eq!(read(&receive, 1).await.1, Err(StreamError::Reset(to_http3(7))));
        let (send, receive) = session.open().await;
        receive.stop(to_http3(300)).await.expect("stopped");
        let stopped = loop {
            match send.write(&b"more"[..]).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => break error,
            }
        };
        let StreamError::Stopped(code) = stopped else { panic!("{stopped}") };
        assert_eq!(from_http3(code), 300);
        session.echoes(b"the session goes on").await;
    });
}

#[test]
fn one_session_at_a_time() {
    let (_server, running) = running("");
    wait(async {
        let other = Client::to(running.address("web")).await;
        let neighbour = Session::on(&other, &[]).await;
        neighbour.echoes(b"before").await;
        let client = Client::to(running.address("web")).await;
        let first = Session::on(&client, &[]).await;
        let (_send, receive) = client.send(connect("/wt", "webtransport", &[])).await;
        assert_eq!(read(&receive, 1).await.1, Err(StreamError::Reset(Number::RequestRejected.number())));
        first.echoes(b"the first goes on").await;
        neighbour.echoes(b"meanwhile").await;
        // Its end takes what is left of it with it, and makes room.
        let (send, receive) = first.open().await;
        send.write(&b"x"[..]).await.expect("written");
        assert_eq!(read(&receive, 1).await.0, b"x");
        first.says(&Capsule::Close { code: 9, text: "bye".to_owned() }).await;
        let gone = Number::WebTransportSessionGone.number();
        assert_eq!(read(&receive, 1).await.1, Err(StreamError::Reset(gone)));
        assert_eq!(first.capsules().await.1, Ok(()));
        let second = Session::on(&client, &[]).await;
        second.echoes(b"again").await;
        // Without a word, by the end of its stream, and by its loss.
        second.send.finish().await.expect("finished");
        assert_eq!(second.capsules().await.1, Ok(()));
        let third = Session::on(&client, &[]).await;
        third.send.reset(0x10c).await.expect("reset");
        drop(third);
        let fourth = Session::on(&client, &[]).await;
        fourth.echoes(b"and again").await;
        client.works().await;
        neighbour.echoes(b"after").await;
    });
    running.counts("http3_refused", "web", "second_session", 1);
}

#[test]
fn protocols_inside_are_agreed_on() {
    let (_server, running) = running("");
    wait(async {
        for (offered, agreed) in
            [("\"x\", \"a\", \"b\"", Some("\"b\"")), ("\"a\"", Some("\"a\"")), ("\"x\"", None), ("a", None)]
        {
            let client = Client::to(running.address("web")).await;
            let session = Session::on(&client, &[("wt-available-protocols", offered)]).await;
            assert_eq!(session.answer.fields.get("wt-protocol").map(String::as_str), agreed, "{offered}");
        }
        let client = Client::to(running.address("web")).await;
        let draft = Session::on(&client, &[("sec-webtransport-http3-draft02", "1")]).await;
        assert_eq!(draft.answer.fields["sec-webtransport-http3-draft"], "draft02");
    });
}

#[test]
fn streams_may_come_before_their_session() {
    let (_server, running) = running("");
    wait(async {
        let client = Client::to(running.address("web")).await;
        // It will be the second stream; what belongs to it comes on the first.
        let (send, receive) = client.send([&opening(frame::WEBTRANSPORT, 4)[..], b"early"].concat()).await;
        send.finish().await.expect("finished");
        let session = Session::on(&client, &[]).await;
        assert_eq!((session.id(), read(&receive, usize::MAX).await), (4, (b"early".to_vec(), Ok(()))));
        // Once there is one, streams of others are given up.
        let (_send, stray) = client.send(opening(frame::WEBTRANSPORT, 400)).await;
        let code = Number::WebTransportBufferedStreamRejected.number();
        assert_eq!(read(&stray, 1).await.1, Err(StreamError::Reset(code)));
        client.connection.send_datagram(Datagram::new(datagram(400, b"x"))).await.expect("sent");
        session.echoes(b"hello").await;
    });
    running.counts("http3_refused", "web", "no_session", 1);
    // It may be lost; then nothing was counted.
    assert!(running.totals().get("http3_refused", "web", "datagram_of_nobody") <= 1);
}

#[test]
fn what_is_no_session_is_answered_as_such() {
    let (_server, running) = running("");
    wait(async {
        let client = Client::to(running.address("web")).await;
        for (bytes, status) in [
            (connect("/none", "webtransport", &[]), 404),
            (connect("/wt/../x", "webtransport", &[]), 400),
            (connect("/wt", "connect-udp", &[]), 501),
            (connect("/wt", "websocket", &[]), 426),
            (fields("GET", "/wt", &[]), 426),
        ] {
            let (_send, receive) = client.send(bytes).await;
            assert_eq!(Answer::read(&read(&receive, 1).await.0).last_status(), status);
        }
        assert_eq!(Session::on(&client, &[]).await.answer.last_status(), 200);
        client.works().await;
    });
}

/// Each costs the connection, and a neighbour nothing.
#[test]
fn what_breaks_a_rule_of_sessions_is_refused() {
    let (_server, running) = running("");
    let errors = |code: Number| running.totals().get("http3_errors", "web", code.reason());
    let neighbour = wait(Client::to(running.address("web")));
    let session = wait(Session::on(&neighbour, &[]));
    for (bytes, code) in [
        (opening(frame::WEBTRANSPORT, 1), Number::IdError),
        (opening(frame::WEBTRANSPORT, 2), Number::IdError),
        ([&fields("POST", "/hello", &[])[..], &opening(frame::WEBTRANSPORT, 0)].concat().into(), Number::FrameError),
    ] {
        let before = errors(code);
        wait(async {
            let client = Client::to(running.address("web")).await;
            let _kept = client.send(bytes).await;
            assert_eq!(client.end().await.code, Code::Application(code.number()), "{code}");
            session.echoes(b"hello").await;
        });
        assert_eq!(errors(code), before + 1);
    }
    // An empty datagram names nobody.
    wait(async {
        let client = Client::to(running.address("web")).await;
        let _session = Session::on(&client, &[]).await;
        while client.connection.end().is_none() {
            let _sent = client.connection.send_datagram(Datagram::new(Bytes::from_static(&[0x40]))).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(client.end().await.code, Code::Application(Number::DatagramError.number()));
        let counted = running.gateway().mesh().view().await.totals;
        assert_eq!(counted.get("http3_errors", "web", Number::DatagramError.reason()), 1);
        session.echoes(b"hello").await;
        // A capsule that is none costs the session alone.
        let client = Client::to(running.address("web")).await;
        let broken = Session::on(&client, &[]).await;
        let mut short = BytesMut::new();
        put_varint(&mut short, 0x2843);
        put_varint(&mut short, 2);
        short.extend_from_slice(&[0; 2]);
        broken.send.write(data(&short)).await.expect("written");
        assert_eq!(broken.capsules().await.1, Err(StreamError::Reset(Number::DatagramError.number())));
        client.works().await;
        Session::on(&client, &[]).await.echoes(b"hello").await;
        session.echoes(b"hello").await;
    });
    running.counts("http3_refused", "web", "capsule", 1);
}

#[test]
fn a_drain_asks_sessions_to_end() {
    let (_server, running) = running("");
    let mesh = running.gateway().mesh().clone();
    wait(async {
        let client = Client::to(running.address("web")).await;
        let session = Session::on(&client, &[]).await;
        session.echoes(b"hello").await;
        let draining = mesh.drain(Duration::from_secs(5));
        let ending = async {
            let (mut content, _) = read(&session.receive, 1).await;
            while Answer::read(&content).body.is_empty() {
                content.extend(read(&session.receive, 1).await.0);
            }
            let mut said = Bytes::from(Answer::read(&content).body);
            assert_eq!(Capsules::default().feed(&mut said), Ok(Some(Capsule::Drain)));
            session.echoes(b"it goes on until it is done").await;
            session.says(&Capsule::Close { code: 0, text: String::new() }).await;
            session.send.finish().await.expect("finished");
            assert_eq!(client.end().await.code, Code::Application(Number::NoError.number()));
        };
        let (report, ()) = tokio::join!(draining, ending);
        assert!(report.complete(), "{report:?}");
    });
}

#[test]
fn fifty_sessions_are_fifty_pinned_actors_and_then_none() {
    let (_server, running) = running("");
    let address = running.address("web");
    wait(async {
        let clients: Vec<Client> = futures_util::future::join_all((0..50).map(|_| Client::to(address))).await;
        let sessions: Vec<Session<'_>> =
            futures_util::future::join_all(clients.iter().map(|client| Session::on(client, &[]))).await;
        futures_util::future::join_all(sessions.iter().map(|session| session.echoes(b"hello"))).await;
        let seen = running.gateway().mesh().view().await;
        let first: Vec<_> = seen.of_kind("quic").map(|actor| (actor.id, actor.arbiter)).collect();
        assert_eq!(first.len(), 50);
        assert!(seen.of_kind("quic").all(|actor| actor.turns > 0));
        assert!((0..2).all(|arbiter| first.iter().any(|(_, on)| *on == arbiter)), "{first:?}");
        futures_util::future::join_all(sessions.iter().map(|session| session.echoes(b"again"))).await;
        let seen = running.gateway().mesh().view().await;
        assert_eq!(first, seen.of_kind("quic").map(|actor| (actor.id, actor.arbiter)).collect::<Vec<_>>());
        clients.iter().for_each(|client| client.connection.close(0x100, ""));
    });
    eventually("none is left", || view(running.gateway().mesh()).of_kind("quic").count() == 0);
}
