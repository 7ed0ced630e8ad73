//! Where exchanges end: a client that is given up takes its requests along, the time of an answer begins when its
//! request is out, bodies keep their framing on both ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::gateway::Running;
use crate::http::{Client, Server, config, header};
use crate::http3;
use crate::probe::{SOON, eventually, now, view, wait};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A client of HTTP/2 that writes what it likes.
pub(crate) struct Two(TcpStream);

/// A frame: its type, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A block of fields, each as it is, without a table (RFC 7541, section 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("it is short");
    let field = |(name, value): &(&str, &str)| {
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    fields.iter().flat_map(field).collect()
}

pub(crate) fn head(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let first = [(":method", method), (":scheme", "http"), (":authority", "a.example"), (":path", path)];
    block(&[&first, more].concat())
}

impl Two {
    pub(crate) fn to(address: SocketAddr, settings: &[u8]) -> Self {
        let mut found = None;
        eventually("a client of HTTP/2 is let in", || {
            let stream = TcpStream::connect_timeout(&address, SOON).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.set_write_timeout(Some(SOON)).unwrap();
            let mut two = Self(stream);
            let begins = [PREFACE, &frame(SETTINGS, 0, 0, settings)].concat();
            // What comes first is the settings of the other side.
            found = (two.0.write_all(&begins).is_ok() && two.next().is_some()).then_some(two);
            found.is_some()
        });
        found.expect("it was let in")
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next frame, `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// What comes on a stream until it ends or is reset: the first block of fields, the body, and the code of a reset.
    pub(crate) fn answer(&mut self, stream: u32) -> (Vec<u8>, Vec<u8>, Option<u32>) {
        let (mut fields, mut body) = (Vec::new(), Vec::new());
        loop {
            let (kind, flags, of, payload) = self.next().expect("the end instead of an answer");
            if of != stream {
                continue;
            }
            match kind {
                HEADERS if fields.is_empty() => fields = payload,
                DATA => body.extend(payload),
                RST_STREAM => return (fields, body, Some(u32::from_be_bytes(payload[..4].try_into().unwrap()))),
                _ => {}
            }
            if flags & END_STREAM != 0 {
                return (fields, body, None);
            }
        }
    }
}

/// Whether a block begins with this status, as the h2 crate says it: by the static table or as three digits of Huffman's.
pub(crate) fn says(block: &[u8], status: u16) -> bool {
    match status {
        200 => block.starts_with(&[0x88]),
        400 => block.starts_with(&[0x8c]),
        _ => {
            let code = |digit| match digit {
                b'0'..=b'2' => (5, u32::from(digit - b'0')),
                _ => (6, u32::from(digit - b'3') + 0b01_1001),
            };
            let digits = status.to_string();
            let (bits, value) = digits
                .bytes()
                .map(code)
                .fold((0, 0), |(bits, value), (more, code)| (bits + more, value << more | code));
            // Filled up with ones (RFC 7541, section 5.2).
            let bytes: u32 = if bits > 16 { 3 } else { 2 };
            let fill = 8 * bytes - bits;
            let huffman = (value << fill | ((1 << fill) - 1)).to_be_bytes();
            let huffman = &huffman[4 - bytes as usize..];
            block.starts_with(&[&[0x48, 0x80 | huffman.len() as u8], huffman].concat())
        }
    }
}

/// A client that has had an answer. On a machine that is late, newcomers are refused (`overload`): it tries again.
pub(crate) fn let_in(address: SocketAddr) -> Client {
    let mut found = None;
    eventually("a client is let in", || {
        let mut client = Client::to(address);
        let asked = client.0.get_mut().write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n");
        found = (asked.is_ok() && client.0.fill_buf().is_ok_and(|bytes| !bytes.is_empty())).then_some(client);
        found.is_some()
    });
    let mut client = found.expect("it was let in");
    assert_eq!(client.answer().0, 200);
    client
}

#[test]
fn a_client_of_http2_that_is_given_up_takes_its_requests_along() {
    const AT_ONCE: usize = 20;
    let server = Server::start();
    let text = config(server.address, "[listener.http]\nsend_timeout = \"500ms\"", "").replacen(
        "[[listener]]",
        "[upstream.limits]\nconnections = 21\n[[listener]]",
        1,
    );
    let gateway = Running::start(&text);
    let mut neighbour = let_in(gateway.address("web"));
    neighbour.works();
    // SETTINGS_INITIAL_WINDOW_SIZE of 0: nothing of an answer may be sent.
    let no_window = [0, 4, 0, 0, 0, 0];
    let all = |two: &mut Two| {
        for n in 0..AT_ONCE {
            let stream = u32::try_from(2 * n + 1).unwrap();
            two.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("GET", "/big", &[])));
        }
    };
    for round in 1..=2 {
        let mut two = Two::to(gateway.address("web"), &no_window);
        all(&mut two);
        while two.next().is_some() {}
        gateway.counts("connections_closed", "web", "send_timeout", round);
        let sent = AT_ONCE * usize::try_from(round).unwrap();
        eventually("the server is left", || server.gone.load(Ordering::Relaxed) == sent);
        gateway.counts("http_requests", "web", "broken", sent as u64);
        neighbour.works();
    }
    // The same for one that says nonsense while it is answered.
    let other = Running::start(&config(server.address, "", ""));
    let mut two = Two::to(other.address("web"), &no_window);
    all(&mut two);
    eventually("the server has all", || server.heads().iter().filter(|h| h.contains("/big")).count() == 3 * AT_ONCE);
    two.send(&frame(PING, 0, 7, &[0; 8]));
    while two.next().is_some() {}
    eventually("the server is left", || server.gone.load(Ordering::Relaxed) == 3 * AT_ONCE);
    other.counts("http_requests", "web", "broken", AT_ONCE as u64);
    // The neighbour's is the only connection left.
    let mesh = gateway.gateway().mesh();
    eventually("no connection to the server is left over", || view(mesh).of_kind("http_upstream").count() == 1);
    neighbour.works();
}

/// Pieces of an upload that takes longer than `timeout` of its route.
const PIECES: usize = 5;
const PAUSE: Duration = Duration::from_millis(600);
const TIMEOUT: &str = "timeout = \"2s\"";

/// Waits as a slow client does.
fn pause() {
    std::thread::sleep(PAUSE);
}

#[test]
fn the_time_of_an_answer_begins_when_its_request_is_out() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "", TIMEOUT));
    let mut neighbour = let_in(gateway.address("web"));
    neighbour.works();
    for chunked in [false, true] {
        let mut client = let_in(gateway.address("web"));
        client.send("POST /slow HTTP/1.1\r\nhost: a\r\n");
        client.send(if chunked { "transfer-encoding: chunked\r\n\r\n" } else { "content-length: 25\r\n\r\n" });
        for _ in 0..PIECES {
            pause();
            client.send(if chunked { "5\r\npiece\r\n" } else { "piece" });
        }
        client.send(if chunked { "0\r\n\r\n" } else { "" });
        let (status, _, body) = client.answer();
        assert_eq!((status, body), (200, b"piece".repeat(PIECES)));
    }
    let mut two = Two::to(gateway.address("web"), &[]);
    two.send(&frame(HEADERS, END_HEADERS, 1, &head("POST", "/slow", &[])));
    for piece in 1..=PIECES {
        pause();
        two.send(&frame(DATA, if piece == PIECES { END_STREAM } else { 0 }, 1, b"piece"));
    }
    let (fields, body, reset) = two.answer(1);
    assert_eq!((says(&fields, 200), body, reset), (true, b"piece".repeat(PIECES), None));
    assert_eq!(gateway.totals().get("http_failures", "app", "response_timeout"), 0);
    // From then on it runs.
    let began = now();
    let mut client = let_in(gateway.address("web"));
    client.send("POST /never HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n");
    pause();
    client.send("piece");
    assert_eq!(client.answer().0, 504);
    assert!(now() - began >= PAUSE + Duration::from_millis(1_900), "the pause counts for the client");
    gateway.counts("http_failures", "app", "response_timeout", 1);
    neighbour.works();
}

#[test]
fn the_time_of_an_answer_begins_when_its_request_is_out_over_http3() {
    let server = Server::start();
    let gateway = http3::gateway(&server, &format!("{}{TIMEOUT}\n", http3::PROXY));
    wait(async {
        let client = http3::Client::to(gateway.address("web")).await;
        let (send, receive) = client.send(http3::fields("POST", "/slow", &[])).await;
        for _ in 0..PIECES {
            tokio::time::sleep(PAUSE).await;
            send.write(http3::data(b"piece")).await.expect("written");
        }
        send.finish().await.expect("finished");
        let answer = http3::Answer::read(&receive.read_to_end(1 << 20).await.expect("an answer"));
        assert_eq!((answer.last_status(), answer.body), (200, b"piece".repeat(PIECES)));
        let never = client.post("/never", b"piece").await;
        assert_eq!(never.last_status(), 504);
        client.works().await;
    });
    gateway.counts("http_failures", "app", "response_timeout", 1);
}

#[test]
fn bodies_of_methods_that_mostly_have_none_are_framed() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "", ""));
    let mut client = let_in(gateway.address("web"));
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "REPORT"] {
        client.send(format!(
            "{method} /{method} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
        ));
        if method == "HEAD" {
            let (status, head) = client.head();
            assert_eq!((status, header(&head, "content-length")), (200, Some("4")), "{method}");
        } else {
            let (status, _, body) = client.answer();
            assert_eq!((status, body.as_slice()), (200, &b"body"[..]), "{method}");
        }
    }
    let mut two = Two::to(gateway.address("web"), &[]);
    two.send(&frame(HEADERS, END_HEADERS, 1, &head("GET", "/two", &[])));
    two.send(&frame(DATA, END_STREAM, 1, b"body"));
    assert_eq!(two.answer(1).1, b"body");
    // A length stays a length, and no body has neither.
    two.send(&frame(HEADERS, END_HEADERS, 3, &head("GET", "/length", &[("content-length", "4")])));
    two.send(&frame(DATA, END_STREAM, 3, b"body"));
    assert_eq!(two.answer(3).1, b"body");
    client.works();
    let heads = server.heads();
    let of = |path: &str| heads.iter().find(|head| head.contains(&format!(" /{path} "))).expect("it was asked");
    for path in ["GET", "HEAD", "DELETE", "OPTIONS", "REPORT", "two"] {
        assert_eq!(header(of(path), "transfer-encoding"), Some("chunked"), "{path}");
        assert_eq!(header(of(path), "content-length"), None, "{path}");
    }
    assert_eq!((header(of("length"), "transfer-encoding"), header(of("length"), "content-length")), (None, Some("4")));
    assert_eq!((header(of("hello"), "transfer-encoding"), header(of("hello"), "content-length")), (None, None));
}

#[test]
fn bodies_of_methods_that_mostly_have_none_are_framed_over_http3() {
    let server = Server::start();
    let gateway = http3::gateway(&server, http3::PROXY);
    wait(async {
        let client = http3::Client::to(gateway.address("web")).await;
        let answer = client.request([http3::fields("GET", "/three", &[]), http3::data(b"body")].concat()).await;
        assert_eq!((answer.last_status(), answer.body.as_slice()), (200, &b"body"[..]));
    });
    assert_eq!(header(&server.heads()[0], "transfer-encoding"), Some("chunked"));
}

/// A server that gives these answers by path, byte by byte, and how many connections it has had.
pub(crate) fn says_by_path(answers: &'static [(&'static str, &'static str)]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let seen = connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            seen.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|count| count > 0) {
                    if head.ends_with("\r\n\r\n") {
                        let path = head.split(' ').nth(1).unwrap_or_default();
                        let answer = answers.iter().find(|(of, _)| *of == path).map_or(HELLO, |(_, answer)| answer);
                        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                        head.clear();
                    }
                }
            });
        }
    });
    (address, connections)
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

#[test]
fn answers_that_are_framed_twice_are_not_passed_on() {
    const ANSWERS: &[(&str, &str)] = &[
        ("/short", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("/long", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 50\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("/gzip-chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("/gzip", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc"),
        ("/twice", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("/equal", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
        ("/list", "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello"),
    ];
    let (server, connections) = says_by_path(ANSWERS);
    let gateway = Running::start(&config(server, "", "").replacen("arbiters = 2", "arbiters = 1", 1));
    let mut neighbour = let_in(gateway.address("web"));
    neighbour.works();
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let mut client = let_in(gateway.address("web"));
    for (n, (path, _)) in (1..).zip(ANSWERS) {
        let (status, head, body) = client.get(path);
        assert_eq!((status, body.as_slice()), (502, &b"502 Bad Gateway\n"[..]), "{path}: {head}");
        gateway.counts("http_failures", "app", "answer_framing", n);
        neighbour.works();
        // The one that said so is not used again.
        assert_eq!(connections.load(Ordering::Relaxed), usize::try_from(n).unwrap() + 1, "{path}");
    }
    gateway.counts("http_requests", "web", "5xx", ANSWERS.len() as u64);
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_no_answer() {
    let (server, _) =
        says_by_path(&[("/switch", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")]);
    let gateway = Running::start(&config(server, "", ""));
    let mut neighbour = let_in(gateway.address("web"));
    neighbour.works();
    let mut client = let_in(gateway.address("web"));
    assert_eq!(client.get("/switch").0, 502);
    gateway.counts("http_failures", "app", "unasked_switch", 1);
    client.works();
    neighbour.works();
}

#[test]
fn a_server_that_answers_a_websocket_of_http2_as_if_it_had_been_none_costs_it_a_502() {
    let (server, _) = says_by_path(&[]);
    let gateway = Running::start(&config(server, "", ""));
    let mut neighbour = let_in(gateway.address("web"));
    neighbour.works();
    let mut two = Two::to(gateway.address("web"), &[]);
    two.send(&frame(HEADERS, END_HEADERS, 1, &head("CONNECT", "/ws", &[(":protocol", "websocket")])));
    let (fields, _, _) = two.answer(1);
    assert!(says(&fields, 502), "{fields:x?}");
    gateway.counts("http_failures", "app", "no_switch", 1);
    neighbour.works();
}
