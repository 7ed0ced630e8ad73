//! What breaks a rule of HTTP/3, frame by frame: each case asserts the code it is answered with, that its counter rose by
//! one, and that a neighbour lost nothing. The cases of h3spec that concern HTTP/3 and QPACK are among them, rebuilt by
//! hand; those that concern QUIC are in `http3_interop`.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::transports::http3::codec::{Code as Number, frame, put_varint, stream};
use portway::transports::http3::{codec_fields, codec_qpack};
use portway::transports::quic::{Code, Priority, RecvStream, SendStream, StreamError, Who};

use crate::gateway::Running;
use crate::http::Server;
use crate::http3::{Answer, Client, PROXY, data, fields, gateway, raw_frame, read, settings};
use crate::probe::{eventually, now, view, wait};
use crate::quic_gateway::Clients;

/// Where a case puts its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    /// A stream of a request.
    Request,
    /// The control stream, behind its settings.
    Control,
    /// The control stream, instead of its settings.
    First,
    /// Another stream in one direction.
    Uni,
    /// The same, which is then finished.
    UniEnd,
}

fn joined(parts: &[&[u8]]) -> Bytes {
    parts.concat().into()
}

fn control(parts: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::new();
    put_varint(&mut out, stream::CONTROL);
    out.extend_from_slice(&parts.concat());
    out.freeze()
}

fn head() -> Bytes {
    fields("POST", "/hello", &[])
}

/// A head of these fields and no others.
fn only(list: &[(&str, &str)]) -> Bytes {
    let list: Vec<(&str, &[u8])> = list.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let mut out = BytesMut::new();
    codec_fields::put_request(&mut out, &list);
    out.freeze()
}

/// A head with this as its section.
fn section(bytes: &[u8]) -> Bytes {
    raw_frame(frame::HEADERS, bytes)
}

/// Cases that cost the connection.
fn of_connections() -> Vec<(&'static str, On, Bytes, Number)> {
    use Number::{
        ClosedCriticalStream, ExcessiveLoad, FrameError, FrameUnexpected, IdError, MissingSettings,
        QpackDecoderStreamError, QpackDecompressionFailed, QpackEncoderStreamError, SettingsError, StreamCreationError,
    };
    let f = |kind, body: &[u8]| raw_frame(kind, body);
    vec![
        // h3spec.
        ("data before a head", On::Request, data(b"x"), FrameUnexpected),
        ("no settings first", On::First, control(&[&f(frame::GOAWAY, &[0])]), MissingSettings),
        ("data on the control stream", On::Control, f(frame::DATA, b""), FrameUnexpected),
        ("a head on the control stream", On::Control, f(frame::HEADERS, b""), FrameUnexpected),
        ("settings twice", On::Control, f(frame::SETTINGS, b""), FrameUnexpected),
        ("a cancelled push on a request", On::Request, f(frame::CANCEL_PUSH, &[0]), FrameUnexpected),
        ("a setting twice", On::First, control(&[&f(frame::SETTINGS, &[0x06, 0x10, 0x06, 0x10])]), SettingsError),
        ("a setting of HTTP/2", On::First, control(&[&f(frame::SETTINGS, &[0x02, 0])]), SettingsError),
        ("the encoder's stream ends", On::UniEnd, joined(&[&[2]]), ClosedCriticalStream),
        ("the decoder's stream ends", On::UniEnd, joined(&[&[3]]), ClosedCriticalStream),
        ("a static entry that is not there", On::Request, section(&[0, 0, 0xff, 0x24]), QpackDecompressionFailed),
        ("a table beyond its limit", On::Uni, joined(&[&[2, 0x3f, 0x01]]), QpackEncoderStreamError),
        ("an increment of nothing", On::Uni, joined(&[&[3, 0x00]]), QpackDecoderStreamError),
        // And the rest of the rules.
        ("settings on a request", On::Request, f(frame::SETTINGS, b""), FrameUnexpected),
        ("goaway on a request", On::Request, joined(&[&head(), &f(frame::GOAWAY, &[0])]), FrameUnexpected),
        ("a push id on a request", On::Request, joined(&[&head(), &f(frame::MAX_PUSH_ID, &[0])]), FrameUnexpected),
        ("a promise of a client", On::Request, joined(&[&head(), &f(frame::PUSH_PROMISE, &[0])]), FrameUnexpected),
        ("a promise on the control stream", On::Control, f(frame::PUSH_PROMISE, &[0]), FrameUnexpected),
        ("a frame of HTTP/2 on a request", On::Request, joined(&[&head(), &f(0x8, b"")]), FrameUnexpected),
        ("a frame of HTTP/2 on the control stream", On::Control, f(0x6, b""), FrameUnexpected),
        ("a head behind trailers", On::Request, joined(&[&head(), &section(&[0, 0]), &head()]), FrameUnexpected),
        ("data behind trailers", On::Request, joined(&[&head(), &section(&[0, 0]), &data(b"x")]), FrameUnexpected),
        ("a push id that shrinks", On::Control, joined(&[&f(0xd, &[4]), &f(0xd, &[3])]), IdError),
        ("a goaway that grows", On::Control, joined(&[&f(0x7, &[4]), &f(0x7, &[8])]), IdError),
        ("a push that was never promised", On::Control, f(frame::CANCEL_PUSH, &[0]), IdError),
        ("the priority of no request", On::Control, f(frame::PRIORITY_UPDATE, &[3]), IdError),
        ("a goaway with a tail", On::Control, f(frame::GOAWAY, &[0, 0]), FrameError),
        ("settings cut off", On::First, control(&[&f(frame::SETTINGS, &[0x06, 0x40])]), FrameError),
        ("a flag that is none", On::First, control(&[&f(frame::SETTINGS, &[0x08, 0x02])]), SettingsError),
        ("settings without end", On::First, control(&[&[4, 0x60, 0, 0x20, 0]]), ExcessiveLoad),
        ("a second control stream", On::Uni, control(&[]), StreamCreationError),
        ("a push of a client", On::Uni, joined(&[&[1]]), StreamCreationError),
        ("an insertion into no table", On::Uni, joined(&[&[2, 0x80]]), QpackEncoderStreamError),
        ("an acknowledgement of nothing", On::Uni, joined(&[&[3, 0x80]]), QpackDecoderStreamError),
        ("fields of the dynamic table", On::Request, section(&[1, 0, 0x80]), QpackDecompressionFailed),
        ("an empty section", On::Request, section(&[]), QpackDecompressionFailed),
        ("no Huffman code", On::Request, section(&[0, 0, 0x50, 0x81, 0xff]), QpackDecompressionFailed),
        ("a session's stream in the midst of one", On::Request, joined(&[&head(), &[0x40, 0x41, 0]]), FrameError),
        ("empty frames without end", On::Request, joined(&[&head(), &[0; 4_000]]), ExcessiveLoad),
        ("unknown frames without end", On::Request, joined(&[&[0x21, 0].repeat(40_000)]), ExcessiveLoad),
        ("priorities without end", On::Control, f(frame::PRIORITY_UPDATE, &[0]).repeat(4_000).into(), ExcessiveLoad),
    ]
}

async fn put(client: &Client, on: On, bytes: Bytes) -> (Option<SendStream>, Option<RecvStream>) {
    match on {
        On::Request => {
            let (send, receive) = client.send(bytes).await;
            (Some(send), Some(receive))
        }
        On::Control => {
            client.control.write(bytes).await.expect("written");
            (None, None)
        }
        On::First => (None, None),
        On::Uni | On::UniEnd => {
            let send = client.connection.open_uni(Priority::default()).await.expect("a stream");
            send.write(bytes).await.expect("written");
            if on == On::UniEnd {
                send.finish().await.expect("finished");
            }
            (Some(send), None)
        }
    }
}

fn errors(running: &Running) -> (u64, u64) {
    let totals = running.totals();
    (totals.family("http3_errors"), totals.family("http3_refused"))
}

#[test]
fn a_broken_rule_costs_its_connection() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    let neighbour = wait(Client::to(running.address("web")));
    for (name, on, bytes, code) in of_connections() {
        let before = running.totals().get("http3_errors", "web", code.reason());
        let all = errors(&running);
        wait(async {
            let first = if on == On::First { bytes.clone() } else { settings() };
            let client = Client::with(running.address("web"), first).await;
            let _kept = put(&client, on, bytes).await;
            let end = client.end().await;
            assert_eq!((end.who, end.code), (Who::Peer, Code::Application(code.number())), "{name}: {end}");
            neighbour.works().await;
        });
        assert_eq!(running.totals().get("http3_errors", "web", code.reason()), before + 1, "{name}");
        assert_eq!(errors(&running).0, all.0 + 1, "{name}");
    }
    // The control stream itself, and one of ours.
    wait(async {
        let client = Client::to(running.address("web")).await;
        client.control.finish().await.expect("finished");
        assert_eq!(client.end().await.code, Code::Application(0x104));
        let client = Client::to(running.address("web")).await;
        client.works().await;
        client.control.reset(0).await.expect("reset");
        assert_eq!(client.end().await.code, Code::Application(0x104));
        let client = Client::to(running.address("web")).await;
        let ours = client.connection.accept_uni().await.expect("a stream");
        ours.stop(0).await.expect("stopped");
        assert_eq!(client.end().await.code, Code::Application(0x104));
        neighbour.works().await;
    });
}

/// Cases that cost one stream, by the reason they are counted under; the connection goes on.
fn of_streams() -> Vec<(&'static str, Bytes, u64)> {
    let (method, scheme) = ((":method", "GET"), (":scheme", "https"));
    let (authority, path) = ((":authority", "a.example"), (":path", "/hello"));
    let with = |name, value| only(&[method, scheme, authority, path, (name, value)]);
    let malformed = Number::MessageError.number();
    vec![
        // h3spec.
        ("duplicate_pseudo_header", only(&[method, method, scheme, authority, path]), malformed),
        ("no_method", only(&[scheme, authority, path]), malformed),
        ("no_scheme", only(&[method, authority, path]), malformed),
        ("no_path", only(&[method, scheme, authority]), malformed),
        ("no_authority", only(&[method, scheme, path]), malformed),
        ("unknown_pseudo_header", with(":status", "200"), malformed),
        ("late_pseudo_header", only(&[method, scheme, authority, ("x", "y"), path]), malformed),
        // And the rest.
        ("field_name", with("X-Upper", "1"), malformed),
        ("field_value", with("x", "a\r\nb: c"), malformed),
        ("field_value", with("x", "\0"), malformed),
        ("field_of_one_hop", with("connection", "close"), malformed),
        ("field_of_one_hop", with("transfer-encoding", "chunked"), malformed),
        ("two_authorities", with("host", "b.example"), malformed),
        ("content_length", with("content-length", "-1"), malformed),
        (
            "duplicate_field",
            only(&[method, scheme, authority, path, ("host", "a.example"), ("host", "a.example")]),
            malformed,
        ),
        ("protocol_without_connect", with(":protocol", "websocket"), malformed),
        ("path", only(&[method, scheme, authority, (":path", "hello")]), malformed),
        ("request_incomplete", Bytes::new(), Number::RequestIncomplete.number()),
        ("request_incomplete", raw_frame(0x21, b"grease"), Number::RequestIncomplete.number()),
        ("message_error", joined(&[&with("content-length", "9"), &data(b"short")]), malformed),
        ("message_error", joined(&[&with("content-length", "1"), &data(b"long")]), malformed),
        ("pseudo_header_in_trailers", joined(&[&head(), &data(b"x"), &only(&[method])]), malformed),
    ]
}

#[test]
fn a_malformed_message_costs_its_stream() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    let client = wait(Client::to(running.address("web")));
    let neighbour = wait(Client::to(running.address("web")));
    for (reason, bytes, code) in of_streams() {
        let before = running.totals().get("http3_refused", "web", reason);
        wait(async {
            let (send, receive) = client.connection.open(Priority::default()).await.expect("a stream");
            send.write(bytes.clone()).await.expect("written");
            let _stopped = send.finish().await;
            let (got, end) = read(&receive, usize::MAX).await;
            assert_eq!(end, Err(StreamError::Reset(code)), "{reason}: {:?}", Answer::read(&got));
            client.works().await;
            neighbour.works().await;
        });
        running.counts("http3_refused", "web", reason, before + 1);
    }
    assert_eq!(errors(&running).0, 0);
    let heads = server.heads();
    assert!(heads.iter().all(|head| head.contains(" /hello ")), "{heads:?}");
}

/// Nothing of a bomb is unfolded beyond the limit of a head, and its connection goes on.
#[test]
fn heads_beyond_their_limit_are_answered_by_431() {
    let server = Server::start();
    let running = gateway(&server, &format!("[listener.http]\nhead_bytes = \"4KiB\"\nhead_fields = 20\n{PROXY}"));
    wait(async {
        let neighbour = Client::to(running.address("web")).await;
        neighbour.works().await;
        let client = Client::to(running.address("web")).await;
        // One byte for each 110 bytes of name and value.
        let mut bomb = vec![0, 0];
        bomb.extend([0xc0 | 52; 3_000]);
        let long = fields("GET", "/", &[("x", &"y".repeat(4_000))]);
        let many: Vec<(&str, &str)> = vec![("x", "y"); 30];
        // Fields by literals with a Huffman length that unfolds into 60 % more.
        let all = [section(&bomb), long, fields("GET", "/", &many), raw_frame(frame::HEADERS, &[0; 5_000])];
        for (bytes, nth) in all.into_iter().zip(1..) {
            let (send, receive) = client.send(bytes).await;
            // It may have been told already that nobody wants the rest.
            let _stopped = send.finish().await;
            let answer = Answer::read(&receive.read_to_end(1 << 16).await.expect("an answer"));
            assert_eq!(answer.last_status(), 431, "{answer:?}");
            let refused = || running.gateway().mesh().view();
            while refused().await.totals.get("http3_refused", "web", "head_too_large") < nth {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(refused().await.totals.family("http3_refused"), nth);
            neighbour.works().await;
        }
        client.works().await;
    });
    running.counts("http3_refused", "web", "head_too_large", 4);
    let mut list = BytesMut::new();
    codec_qpack::begin(&mut list);
    assert!(server.heads().iter().all(|head| head.contains(" /hello ")));
}

#[test]
fn rapid_resets_cost_the_connection() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    wait(async {
        let client = Client::to(running.address("web")).await;
        let neighbour = Client::to(running.address("web")).await;
        neighbour.works().await;
        let mut sent = 0;
        while client.connection.end().is_none() && sent < 10_000 {
            let Ok((send, receive)) = client.connection.open(Priority::default()).await else { break };
            let _written = send.write(fields("GET", "/never", &[])).await;
            let (_reset, _stopped) = (send.reset(0x10c).await, receive.stop(0x10c).await);
            sent += 1;
        }
        let end = client.end().await;
        assert_eq!(end.code, Code::Application(Number::ExcessiveLoad.number()), "after {sent}: {end}");
        assert!(sent < 1_000, "{sent} resets were borne");
        neighbour.works().await;
    });
    running.counts("http3_errors", "web", "excessive_load", 1);
    assert_eq!(errors(&running).0, 1);
}

#[test]
fn slow_heads_lose_their_stream_and_idle_clients_their_connection() {
    let server = Server::start();
    let listener =
        "[listener.limits]\nidle = \"1s\"\n[listener.http]\nhead_timeout = \"300ms\"\nbody_timeout = \"300ms\"\n";
    let running = gateway(&server, &format!("{listener}{PROXY}"));
    let (address, over) = (running.address("web"), std::sync::atomic::AtomicBool::new(false));
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let bad = async {
        let client = Client::to(address).await;
        client.works().await;
        let whole = fields("GET", "/hello", &[]);
        let (send, receive) = client.send(whole.slice(..5)).await;
        assert_eq!(read(&receive, 1).await.1, Err(StreamError::Reset(Number::RequestIncomplete.number())));
        drop(send);
        let (send, receive) = client.send([head(), data(b"half")].concat()).await;
        let answer = Answer::read(&read(&receive, usize::MAX).await.0);
        assert_eq!(answer.last_status(), 408);
        drop(send);
        client.works().await;
        let idle = now();
        let end = client.end().await;
        assert_eq!((end.code, &*end.text), (Code::Application(0x100), "idle"));
        assert!(idle.elapsed() >= Duration::from_millis(500));
        // Who never asks for anything has the time of a head.
        let silent = Client::to(address).await;
        assert_eq!(&*silent.end().await.text, "head_timeout");
        over.store(true, relaxed);
    };
    // It asks more often than an idle connection may be silent.
    let beside = async {
        let neighbour = Client::to(address).await;
        while !over.load(relaxed) {
            neighbour.works().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        neighbour.works().await;
        neighbour
    };
    // Kept: a client that goes resets its control stream before it says so, which is an error for whoever hears it first.
    let ((), _neighbour) = wait(async { tokio::join!(bad, beside) });
    running.counts("http3_refused", "web", "head_timeout", 1);
    running.counts("http_failures", "app", "body_timeout", 1);
    assert_eq!(errors(&running), (0, 1));
}

#[test]
fn limits_hold_for_http3_as_well() {
    let server = Server::start();
    let running = gateway(&server, &format!("[listener.limits]\nconnections = 2\n{PROXY}"));
    wait(async {
        let (first, second) = (Client::to(running.address("web")).await, Client::to(running.address("web")).await);
        first.works().await;
        second.works().await;
        let clients = Clients::new();
        let end = clients.connect(running.address("web"), "h3").await.join().await.end;
        assert_eq!((end.code, &*end.text), (Code::Application(0x107), "limit_connections"));
        first.connection.close(0x100, "");
    });
    running.counts("connections_refused", "web", "limit_connections", 1);
    eventually("the first is gone", || view(running.gateway().mesh()).of_kind("quic").count() == 0);
    wait(async { Client::to(running.address("web")).await.works().await });
}

#[test]
fn a_connection_takes_as_many_requests_as_it_is_told() {
    let server = Server::start();
    let running = gateway(&server, &format!("[listener.http]\nrequests = 2\n{PROXY}"));
    wait(async {
        let client = Client::to(running.address("web")).await;
        client.works().await;
        client.works().await;
        assert_eq!(client.end().await.code, Code::Application(0x100));
    });
}
