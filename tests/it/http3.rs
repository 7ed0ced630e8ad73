//! HTTP/3 of the gateway, with a client that writes frames by hand: every kind of answer, bodies both ways, what a
//! client that goes away or a server that fails costs, drain and reload.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::actors::Totals;
use portway::gateway::check;
use portway::transports::http3::codec::{Settings, frame, put_frame, put_varint, stream, take_varint};
use portway::transports::http3::{codec_fields, codec_qpack};
use portway::transports::quic::{Code, Connection, End, Priority, RecvStream, SendStream, StreamError};

use crate::gateway::{Running, get as get_plain};
use crate::http::Server;
use crate::probe::{eventually, view, wait};
use crate::quic_gateway::{Clients, certificate, pattern};

/// A gateway with a listener `web` that speaks all versions; `rest` is what follows its head.
pub(crate) fn config(server: SocketAddr, rest: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = 2\ndrain = \"5s\"\n{}\
         [[upstream]]\nname = \"app\"\nservers = [\"{server}\"]\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\ncertificate = \"local\"\n{rest}",
        certificate()
    )
}

pub(crate) const PROXY: &str = "[[listener.route]]\nname = \"all\"\nupstream = \"app\"\n";

pub(crate) fn gateway(server: &Server, rest: &str) -> Running {
    Running::start(&config(server.address, rest))
}

/// An answer as it came.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Statuses, those of interim answers first.
    pub(crate) status: Vec<u16>,
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: BTreeMap<String, String>,
}

impl Answer {
    /// Reads frames that came on a stream, as far as they are whole.
    pub(crate) fn read(mut bytes: &[u8]) -> Self {
        let mut answer = Self::default();
        while let (Some(kind), Some(length)) = (take_varint(&mut bytes), take_varint(&mut bytes)) {
            let body = &bytes[..(length as usize).min(bytes.len())];
            bytes = &bytes[body.len()..];
            match kind {
                frame::DATA => answer.body.extend_from_slice(body),
                frame::HEADERS => {
                    let list = codec_qpack::decode(&Bytes::copy_from_slice(body), 1 << 20, 1_000).expect("fields");
                    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
                    let map = |list: &[codec_qpack::Field]| {
                        list.iter().map(|f| (text(&f.name), text(&f.value))).collect::<BTreeMap<_, _>>()
                    };
                    if answer.body.is_empty() && &*list[0].name == b":status" {
                        answer.status.push(text(&list[0].value).parse().expect("a status"));
                        answer.fields = map(&list[1..]);
                    } else {
                        answer.trailers = map(&list);
                    }
                }
                other => panic!("a frame of type {other:#x} in an answer"),
            }
        }
        answer
    }

    pub(crate) fn last_status(&self) -> u16 {
        *self.status.last().expect("a status")
    }
}

/// A client that writes what it likes.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    /// Streams that must stay open.
    pub(crate) control: SendStream,
    _clients: Clients,
}

pub(crate) fn settings() -> Bytes {
    let mut out = BytesMut::new();
    put_varint(&mut out, stream::CONTROL);
    Settings::default().encode(&mut out);
    out.freeze()
}

pub(crate) fn fields(method: &str, path: &str, more: &[(&str, &str)]) -> Bytes {
    let mut list: Vec<(&str, &[u8])> = vec![
        (":method", method.as_bytes()),
        (":scheme", b"https"),
        (":authority", b"a.example"),
        (":path", path.as_bytes()),
    ];
    list.extend(more.iter().map(|(name, value)| (*name, value.as_bytes())));
    let mut out = BytesMut::new();
    codec_fields::put_request(&mut out, &list);
    out.freeze()
}

pub(crate) fn data(body: &[u8]) -> Bytes {
    raw_frame(frame::DATA, body)
}

pub(crate) fn raw_frame(kind: u64, body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_frame(&mut out, kind, body.len());
    out.extend_from_slice(body);
    out.freeze()
}

impl Client {
    pub(crate) async fn to(address: SocketAddr) -> Self {
        Self::with(address, settings()).await
    }

    /// With this on its control stream.
    pub(crate) async fn with(address: SocketAddr, control: Bytes) -> Self {
        let clients = Clients::new();
        let connection = clients.connect(address, "h3").await;
        let stream = connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(control).await.expect("written");
        Self { connection, control: stream, _clients: clients }
    }

    pub(crate) async fn send(&self, bytes: impl Into<Bytes>) -> (SendStream, RecvStream) {
        let (send, receive) = self.connection.open(Priority::default()).await.expect("a stream");
        send.write(bytes).await.expect("written");
        (send, receive)
    }

    pub(crate) async fn request(&self, bytes: impl Into<Bytes>) -> Answer {
        let (send, receive) = self.send(bytes).await;
        send.finish().await.expect("finished");
        Answer::read(&receive.read_to_end(80 << 20).await.expect("an answer"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request(fields("GET", path, &[])).await
    }

    pub(crate) async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let bytes = [fields("POST", path, &[]), data(body)].concat();
        self.request(bytes).await
    }

    pub(crate) async fn works(&self) {
        let answer = self.get("/hello").await;
        assert_eq!((answer.last_status(), answer.body.as_slice()), (200, &b"hello"[..]));
    }

    pub(crate) async fn end(&self) -> End {
        self.connection.join().await.end
    }
}

/// Reads a stream until it ends, is reset, or this much has come.
pub(crate) async fn read(receive: &RecvStream, most: usize) -> (Vec<u8>, Result<(), StreamError>) {
    let mut got = Vec::new();
    while got.len() < most {
        match receive.read(1 << 16).await {
            Ok(Some(bytes)) => got.extend_from_slice(&bytes),
            Ok(None) => return (got, Ok(())),
            Err(error) => return (got, Err(error)),
        }
    }
    (got, Ok(()))
}

fn count(totals: &Totals, family: &str) -> u64 {
    totals.family(family)
}

#[test]
fn every_kind_of_route_answers() {
    let server = Server::start();
    let routes = format!(
        "{PROXY}[[listener.route]]\npath_exact = \"/fixed\"\nservice = \"respond\"\nstatus = 418\nbody = \"teapot\"\n\
         [[listener.route]]\npath = \"/old\"\nredirect = \"https://b.example{{path}}{{query}}\"\n\
         [[listener.route]]\npath = \"/demo\"\nservice = \"demo\"\n\
         [[listener.route]]\npath = \"/src\"\nservice = \"static\"\nroot = \"{}/src\"\nstrip_prefix = true\n",
        env!("CARGO_MANIFEST_DIR")
    );
    let running = gateway(&server, &routes);
    wait(async {
        let client = Client::to(running.address("web")).await;
        client.works().await;
        let fixed = client.get("/fixed").await;
        assert_eq!((fixed.last_status(), fixed.body.as_slice()), (418, &b"teapot"[..]));
        assert_eq!(fixed.fields["content-length"], "6");
        assert!(fixed.fields["date"].ends_with("GMT") && !fixed.fields.contains_key("connection"));
        let moved = client.get("/old/x?y=1").await;
        assert_eq!((moved.last_status(), moved.fields["location"].as_str()), (308, "https://b.example/old/x?y=1"));
        let demo = String::from_utf8(client.get("/demo").await.body).expect("text");
        assert!(demo.contains("HTTP/3 over TLS, request 4 of its connection"), "{demo}");
        let file = client.get("/src/lib.rs").await;
        assert_eq!(file.body, std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).expect("read"));
        let part = client.request(fields("GET", "/src/lib.rs", &[("range", "bytes=0-9")])).await;
        assert_eq!((part.last_status(), part.body), (206, file.body[..10].to_vec()));
        let head = client.request(fields("HEAD", "/src/lib.rs", &[])).await;
        assert_eq!((head.body.len(), &head.fields["content-length"]), (0, &file.body.len().to_string()));
        let etag = file.fields["etag"].as_str();
        let same = client.request(fields("GET", "/src/lib.rs", &[("if-none-match", etag)])).await;
        assert_eq!((same.last_status(), same.body.len()), (304, 0));
        assert_eq!(client.get("/demo/../x").await.last_status(), 400);
        assert_eq!(client.request(fields("TRACE", "/", &[])).await.last_status(), 405);
    });
    let head = server.heads().concat();
    for line in ["GET /hello HTTP/1.1\r\n", "host: a.example\r\n", "via: 3 portway\r\n", "x-forwarded-proto: https\r\n"]
    {
        assert!(head.contains(line), "{line} of {head}");
    }
    assert_eq!(running.totals().get("http_route_requests", "web/all", "2xx"), 1);
}

#[test]
fn bodies_and_trailers_pass_both_ways() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    wait(async {
        let client = Client::to(running.address("web")).await;
        for size in [1, 1_000, 100_000, 3_000_000] {
            let body = pattern(size);
            assert!(client.post("/echo", &body).await.body == body, "{size} bytes");
        }
        // In pieces, with its length, and with cookies in pieces.
        let (send, receive) =
            client.send(fields("PUT", "/", &[("content-length", "10"), ("cookie", "a=1"), ("cookie", "b=2")])).await;
        for piece in [&b"hello"[..], b"world"] {
            send.write(data(piece)).await.expect("written");
        }
        send.finish().await.expect("finished");
        assert_eq!(Answer::read(&receive.read_to_end(9_999).await.expect("read")).body, b"helloworld");
        let chunks = client.get("/chunks").await;
        assert_eq!((chunks.body.as_slice(), chunks.trailers["x-end"].as_str()), (&b"hello world"[..], "yes"));
        assert!(!chunks.fields.contains_key("x-hop") && !chunks.fields.contains_key("transfer-encoding"));
    });
    let heads = server.heads();
    let put = heads.iter().find(|head| head.starts_with("PUT")).expect("the request");
    assert!(put.contains("cookie: a=1; b=2\r\n") && put.contains("content-length: 10\r\n"), "{put}");
}

#[test]
fn a_server_is_held_up_by_a_client_that_does_not_read() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    wait(async {
        let client = Client::to(running.address("web")).await;
        let (send, receive) = client.send(fields("GET", "/big", &[])).await;
        send.finish().await.expect("finished");
        let (begin, _) = read(&receive, 1).await;
        assert!(!begin.is_empty());
        let mesh = running.gateway().mesh();
        while count(&mesh.view().await.totals, "http3_waits") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let held: usize = mesh.view().await.of_kind("quic").map(|actor| actor.held).sum();
        assert!(held < 1 << 20, "{held} bytes are held for a client that does not read");
        // A neighbour on the same connection, and one on another, lose nothing by it.
        client.works().await;
        Client::to(running.address("web")).await.works().await;
        let (rest, end) = read(&receive, usize::MAX).await;
        end.expect("the end");
        let answer = Answer::read(&[begin, rest].concat());
        assert_eq!(answer.body.len(), 64 << 20);
    });
}

/// Accepts one request, reads nothing of its body, and waits to be asked to.
#[test]
fn a_client_is_held_up_by_a_server_that_does_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let (go, may) = std::sync::mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).expect("a head");
        }
        may.recv().expect("told");
        let mut body = vec![0; 32 << 20];
        reader.read_exact(&mut body).expect("the body");
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").expect("written");
    });
    let running = Running::start(&config(address, PROXY));
    wait(async {
        let client = Client::to(running.address("web")).await;
        let (send, receive) = client.send(fields("POST", "/", &[("content-length", "33554432")])).await;
        let sending = async {
            let mut head = BytesMut::new();
            put_frame(&mut head, frame::DATA, 32 << 20);
            send.write(head.freeze()).await.expect("written");
            for _ in 0..32 {
                send.write(vec![0; 1 << 20]).await.expect("written");
            }
            send.finish().await.expect("finished");
        };
        let watching = async {
            // QUIC's window and the sockets' buffers take some of it, and then it stands.
            let mut last = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let bytes = count(&running.gateway().mesh().view().await.totals, "quic_bytes_in");
                if bytes == last && bytes > 0 {
                    break;
                }
                last = bytes;
            }
            assert!(last < 24 << 20, "{last} bytes were taken from the client of a server that reads nothing");
            go.send(()).expect("the server");
        };
        tokio::join!(sending, watching);
        assert_eq!(Answer::read(&receive.read_to_end(9_999).await.expect("read")).body, b"ok");
    });
    server.join().expect("all of the body came");
}

#[test]
fn interim_answers_come_when_a_body_is_wanted() {
    let server = Server::start();
    let running = gateway(&server, &format!("{PROXY}max_body = \"1KiB\"\n"));
    wait(async {
        let client = Client::to(running.address("web")).await;
        let (send, receive) =
            client.send(fields("POST", "/", &[("expect", "100-continue"), ("content-length", "5")])).await;
        let (first, _) = read(&receive, 1).await;
        assert_eq!(Answer::read(&first).status, [100]);
        send.write(data(b"hello")).await.expect("written");
        send.finish().await.expect("finished");
        let answer = Answer::read(&receive.read_to_end(9_999).await.expect("read"));
        assert_eq!((answer.status.as_slice(), answer.body.as_slice()), (&[200][..], &b"hello"[..]));
        // One that is too large is refused before it is sent, and one that turns out to be, too.
        let large = client.send(fields("POST", "/", &[("expect", "100-continue"), ("content-length", "5000")])).await;
        assert_eq!(Answer::read(&large.1.read_to_end(9_999).await.expect("read")).status, [413]);
        assert_eq!(client.post("/", &[0; 5_000]).await.last_status(), 413);
    });
}

#[test]
fn what_a_server_does_wrong_is_told() {
    let server = Server::start();
    // The neighbour's requests go to the same server by another upstream, whose connections are its own.
    let other = format!(
        "[[listener.route]]\npath = \"/hello\"\nupstream = \"other\"\n[[upstream]]\nname = \"other\"\nservers = [\"{}\"]\n",
        server.address
    );
    let running = gateway(&server, &format!("{PROXY}timeout = \"300ms\"\n{other}"));
    let failures = async || {
        let totals = running.gateway().mesh().view().await.totals;
        let of = |reason| totals.get("http_failures", "app", reason);
        (of("broken"), of("response_timeout"), totals.family("http_failures"), totals.family("http_broken"))
    };
    wait(async {
        let neighbour = Client::to(running.address("web")).await;
        neighbour.works().await;
        let client = Client::to(running.address("web")).await;
        // Nothing is tried again of a request with a body.
        for (path, status, counted) in
            [("/close", 502, (1, 0, 1, 0)), ("/garbage", 502, (2, 0, 2, 0)), ("/never", 504, (2, 1, 3, 0))]
        {
            assert_eq!(client.post(path, b"x").await.last_status(), status, "{path}");
            while failures().await < counted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(failures().await, counted, "{path}");
            neighbour.works().await;
        }
        for path in ["/truncated", "/truncated-chunks"] {
            let (send, receive) = client.send(fields("GET", path, &[])).await;
            send.finish().await.expect("finished");
            let (got, end) = read(&receive, usize::MAX).await;
            assert_eq!(end, Err(StreamError::Reset(0x102)), "{path}: {:?}", Answer::read(&got));
            neighbour.works().await;
        }
        client.works().await;
        assert_eq!(client.post("/early", &[0; 100]).await.last_status(), 403);
        neighbour.works().await;
    });
    running.counts("http_broken", "web", "truncated", 2);
    // An answer is an answer, also before the end of its request.
    assert_eq!(wait(failures()), (2, 1, 3, 2));
}

#[test]
fn a_request_that_is_given_up_is_given_up_at_the_server() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    wait(async {
        let client = Client::to(running.address("web")).await;
        let neighbour = Client::to(running.address("web")).await;
        neighbour.works().await;
        let gone = server.gone.load(Ordering::Relaxed);
        // By not wanting the answer, by breaking the request off, and by leaving.
        let (send, receive) = client.send(fields("GET", "/never", &[])).await;
        send.finish().await.expect("finished");
        eventually("the server was asked", || server.heads().iter().any(|head| head.contains("/never")));
        receive.stop(0x10c).await.expect("stopped");
        eventually("the server's connection ends", || server.gone.load(Ordering::Relaxed) == gone + 1);
        let (send, _receive) = client.send([fields("POST", "/never?2", &[]), data(b"x")].concat()).await;
        eventually("the server was asked", || server.heads().iter().any(|head| head.contains("/never?2")));
        send.reset(0x10c).await.expect("reset");
        eventually("the server's connection ends", || server.gone.load(Ordering::Relaxed) == gone + 2);
        let (_send, _receive) = client.send(fields("GET", "/never?3", &[])).await;
        eventually("the server was asked", || server.heads().iter().any(|head| head.contains("/never?3")));
        client.connection.close(0x100, "");
        eventually("the server's connection ends", || server.gone.load(Ordering::Relaxed) == gone + 3);
        neighbour.works().await;
    });
    running.counts("http3_refused", "web", "given_up", 2);
}

#[test]
fn http3_is_announced_and_can_be_turned_off() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    let address = running.address("web");
    let answer = std::process::Command::new("curl")
        .args(["-sk", "-D", "-", "-o", "/dev/null", &format!("https://{address}/hello")])
        .output()
        .expect("curl");
    let head = String::from_utf8_lossy(&answer.stdout).to_lowercase();
    assert!(head.contains(&format!("alt-svc: h3=\":{}\"; ma=86400\r\n", address.port())), "{head}");
    wait(async { assert!(!Client::to(address).await.get("/hello").await.fields.contains_key("alt-svc")) });
    assert!(UdpSocket::bind(address).is_err(), "the port is in use");
    let off = gateway(&server, &format!("[listener.http]\nhttp3 = false\n{PROXY}"));
    UdpSocket::bind(off.address("web")).expect("nothing listens there");
    let plain = config(server.address, &format!("[listener.http]\nhttp3 = true\n{PROXY}"));
    let plain = plain.replace("certificate = \"local\"\n", "");
    let mistakes = check::parse("c.toml", &plain, &check::Known::default()).expect_err("no TLS, no HTTP/3");
    let mistakes = mistakes.render(false);
    assert!(mistakes.contains("`http3` without a `certificate`"), "{mistakes}");
}

#[test]
fn fifty_connections_are_fifty_pinned_actors_and_then_none() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    let address = running.address("web");
    wait(async {
        let clients: Vec<Client> = futures_util::future::join_all((0..50).map(|_| Client::to(address))).await;
        futures_util::future::join_all(clients.iter().map(Client::works)).await;
        let seen = running.gateway().mesh().view().await;
        let first: Vec<_> = seen.of_kind("quic").map(|actor| (actor.id, actor.arbiter)).collect();
        assert_eq!(first.len(), 50);
        assert!(seen.of_kind("quic").all(|actor| actor.turns > 0));
        assert!((0..2).all(|arbiter| first.iter().any(|(_, on)| *on == arbiter)), "{first:?}");
        futures_util::future::join_all(clients.iter().map(Client::works)).await;
        let seen = running.gateway().mesh().view().await;
        let again: Vec<_> = seen.of_kind("quic").map(|actor| (actor.id, actor.arbiter)).collect();
        assert_eq!(first, again, "none moved");
        clients.iter().for_each(|client| client.connection.close(0x100, ""));
    });
    eventually("none is left", || view(running.gateway().mesh()).of_kind("quic").count() == 0);
    assert_eq!(count(&running.totals(), "http3_errors"), 0);
}

#[test]
fn connections_are_listed() {
    let server = Server::start();
    let admin = crate::gateway::free();
    let text = format!("{}[admin]\nlisten = \"{admin}\"\n", config(server.address, PROXY));
    let running = Running::start(&text);
    let client = wait(Client::to(running.address("web")));
    wait(client.works());
    let (status, body) = get_plain(admin, "/api/connections");
    assert_eq!(status, 200);
    assert!(body.contains("\"of\": \"web\"") && body.contains("\"alpn\": \"h3\""), "{body}");
    client.connection.close(0x100, "");
}

#[test]
fn a_drain_says_goaway_and_lets_requests_finish() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    let mesh = running.gateway().mesh().clone();
    wait(async {
        let client = Client::to(running.address("web")).await;
        client.works().await;
        let control = client.connection.accept_uni().await.expect("a stream");
        let (began, _) = read(&control, 1).await;
        assert_eq!(began[0], 0, "the control stream comes first");
        let (send, receive) = client.send([fields("POST", "/slow", &[]), data(b"half")].concat()).await;
        eventually("the server was asked", || server.heads().iter().any(|head| head.contains("/slow")));
        let draining = mesh.drain(Duration::from_secs(5));
        let going = async {
            let (mut goaway, _) = read(&control, 1).await;
            while goaway.first() != Some(&7) {
                goaway = read(&control, 1).await.0;
            }
            // The third request would be the first that is not taken.
            assert_eq!(goaway, [7, 1, 8]);
            let (late_send, late) = client.send(fields("GET", "/late", &[])).await;
            drop(late_send);
            assert_eq!(read(&late, usize::MAX).await.1, Err(StreamError::Reset(0x10b)));
            send.write(data(b" and half")).await.expect("written");
            send.finish().await.expect("finished");
            let answer = Answer::read(&receive.read_to_end(9_999).await.expect("read"));
            assert_eq!((answer.last_status(), answer.body.as_slice()), (200, &b"half and half"[..]));
            let end = client.end().await;
            assert_eq!(end.code, Code::Application(0x100), "{end}");
        };
        let (report, ()) = tokio::join!(draining, going);
        assert!(report.complete(), "{report:?}");
    });
    assert_eq!(running.totals().get("http3_refused", "web", "going_away"), 1);
}

#[test]
fn a_reload_changes_the_routes_of_connections_that_are_open() {
    let server = Server::start();
    let fixed = "[[listener.route]]\npath = \"/\"\nservice = \"respond\"\nbody = \"new\"\n";
    let port = crate::gateway::free();
    let text = |rest: &str| config(server.address, rest).replace("127.0.0.1:0", &port.to_string());
    let running = Running::start(&text(PROXY));
    let client = wait(Client::to(port));
    wait(client.works());
    let reload = |rest: &str| {
        let new = check::parse("c.toml", &text(rest), &check::Known::default()).expect("a configuration");
        running.gateway().reload(new).expect("applied")
    };
    assert_eq!(reload(PROXY).kept, ["web"]);
    wait(client.works());
    assert_eq!(reload(fixed).changed, ["web"]);
    assert_eq!(wait(client.get("/hello")).body, b"new");
    assert_eq!(wait(async { Client::to(port).await.get("/").await }).body, b"new");
    // Turned off: who is in finishes, and nobody comes in.
    assert_eq!(reload(&format!("[listener.http]\nhttp3 = false\n{fixed}")).changed, ["web"]);
    let end = wait(client.end());
    assert_eq!(end.code, Code::Application(0x100), "{end}");
    eventually("the port is free", || UdpSocket::bind(port).is_ok());
    // And on again.
    assert_eq!(reload(PROXY).changed, ["web"]);
    wait(async { Client::to(port).await.works().await });
}

#[test]
fn a_reload_changes_the_limits_of_new_connections() {
    let server = Server::start();
    let port = crate::gateway::free();
    let text = |rest: &str| config(server.address, &format!("{rest}{PROXY}")).replace("127.0.0.1:0", &port.to_string());
    let running = Running::start(&text(""));
    let client = wait(Client::to(port));
    wait(client.works());
    let reload = |rest: &str| {
        let new = check::parse("c.toml", &text(rest), &check::Known::default()).expect("a configuration");
        running.gateway().reload(new).expect("applied").changed
    };
    assert_eq!(reload("[listener.http]\nstreams = 3\n[listener.limits]\nper_source = 2\n"), ["web"]);
    let clients = Clients::new();
    let second = wait(clients.connect(port, "h3"));
    assert_eq!(wait(crate::quic_changes::opens(&second)), 3);
    // Those inside count, and go on.
    let refused = wait(async { clients.connect(port, "h3").await.join().await.end });
    assert_eq!(&*refused.text, "limit_per_source");
    running.counts("connections_refused", "web", "limit_per_source", 1);
    wait(client.works());
    assert_eq!(reload(""), ["web"]);
    wait(async { Client::to(port).await.works().await });
}

#[test]
fn websockets_pass_in_both_directions() {
    let server = Server::start();
    let running = gateway(&server, PROXY);
    wait(async {
        let client = Client::to(running.address("web")).await;
        let (send, receive) = client.send(crate::webtransport::connect("/ws", "websocket", &[])).await;
        let mut got = Vec::new();
        let said = |got: &[u8]| Answer::read(got).body;
        while got.is_empty() || !said(&got).ends_with(b"first") {
            got.extend(read(&receive, 1).await.0);
        }
        assert_eq!(Answer::read(&got).last_status(), 200);
        let mut all = b"first".to_vec();
        for n in 0..50_u32 {
            send.write(data(&n.to_be_bytes())).await.expect("written");
            all.extend(n.to_be_bytes());
            while said(&got).len() < all.len() {
                got.extend(read(&receive, 1).await.0);
            }
            assert_eq!(said(&got), all);
            client.works().await;
        }
        // The end of the client is one for the server, and back.
        send.finish().await.expect("finished");
        assert_eq!(read(&receive, usize::MAX).await.1, Ok(()));
        // What is given up is given up at the server.
        let (send, receive) = client.send(crate::webtransport::connect("/ws", "websocket", &[])).await;
        let _first = read(&receive, 1).await;
        send.reset(0x10c).await.expect("reset");
        receive.stop(0x10c).await.expect("stopped");
        client.works().await;
    });
    eventually("the server has lost them", || server.gone.load(Ordering::Relaxed) >= 2);
    let keys = server.heads().iter().filter(|head| head.to_ascii_lowercase().contains("sec-websocket-key: ")).count();
    assert_eq!(keys, 2);
    running.counts("http_requests", "web", "5xx", 0);
}
