//! Heads of HTTP/2 are held to what those of the other versions are, what its library refuses is counted, and what a
//! route says of folders and upgrades holds.

use portway::gateway::check;

use crate::gateway::Running;
use crate::http::{Client, Server, config, header};
use crate::http_ends::{DATA, END_HEADERS, END_STREAM, HEADERS, Two, frame, head, let_in, says};
use crate::http3;
use crate::probe::wait;

/// A client of HTTP/2 whose connection goes on whatever one stream of it costs.
struct Bad<'a> {
    gateway: &'a Running,
    two: Two,
    neighbour: Client,
    stream: u32,
}

impl<'a> Bad<'a> {
    fn of(gateway: &'a Running) -> Self {
        let mut neighbour = let_in(gateway.address("web"));
        neighbour.works();
        Self { gateway, two: Two::to(gateway.address("web"), &[]), neighbour, stream: 1 }
    }

    /// Asks, counts one refusal for this reason, and sees that nobody else pays. The answer or the code of the reset.
    fn refused(&mut self, reason: &str, block: &[u8], body: &[u8]) -> Result<Vec<u8>, u32> {
        let before = self.gateway.totals().get("http_refused", "web", reason);
        let all = self.gateway.totals().family("http_refused");
        let got = self.asks(block, body);
        self.gateway.counts("http_refused", "web", reason, before + 1);
        assert_eq!(self.gateway.totals().family("http_refused"), all + 1, "{reason} and nothing else");
        self.neighbour.works();
        let fine = self.asks(&head("GET", "/hello", &[]), &[]).expect("an answer");
        assert!(says(&fine, 200), "the connection goes on: {fine:x?}");
        got
    }

    fn asks(&mut self, block: &[u8], body: &[u8]) -> Result<Vec<u8>, u32> {
        let stream = self.stream;
        self.stream += 2;
        let last = if body.is_empty() { END_STREAM } else { 0 };
        self.two.send(&frame(HEADERS, END_HEADERS | last, stream, block));
        if !body.is_empty() {
            self.two.send(&frame(DATA, END_STREAM, stream, body));
        }
        let (fields, _, reset) = self.two.answer(stream);
        if fields.is_empty() { Err(reset.expect("an answer or a reset")) } else { Ok(fields) }
    }
}

#[test]
fn heads_of_http2_have_as_many_fields_as_others() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "", ""));
    let mut bad = Bad::of(&gateway);
    let names: Vec<String> = (0..101).map(|n| format!("x-{n}")).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let most = bad.asks(&head("GET", "/most", &fields[..100]), &[]).expect("an answer");
    assert!(says(&most, 200));
    let answer = bad.refused("head_too_large", &head("GET", "/more", &fields), &[]).expect("an answer");
    assert!(says(&answer, 431), "{answer:x?}");
    let same = vec![("x", "y"); 101];
    let answer = bad.refused("head_too_large", &head("GET", "/more", &same), &[]).expect("an answer");
    assert!(answer.len() > 1, "{answer:x?}");
    assert!(!server.heads().iter().any(|head| head.contains("/more")));
}

#[test]
fn two_lengths_of_http2_are_refused_also_if_they_are_equal() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "", ""));
    let mut bad = Bad::of(&gateway);
    let lengths = [("content-length", "4"), ("content-length", "4")];
    let answer = bad.refused("content_length", &head("POST", "/two", &lengths), b"body").expect("an answer");
    assert!(says(&answer, 400), "{answer:x?}");
    assert!(!server.heads().iter().any(|head| head.contains("/two")));
}

#[test]
fn what_the_library_for_http2_refuses_is_counted() {
    const PROTOCOL_ERROR: u32 = 1;
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "[listener.http]\nhead_bytes = \"4KiB\"", ""));
    let mut bad = Bad::of(&gateway);
    for field in [
        ("te", "gzip"),
        ("connection", "x"),
        ("transfer-encoding", "chunked"),
        ("content-length", "x"),
        ("content-length", "5"),
    ] {
        let code = bad.refused("malformed", &head("POST", "/bad", &[field]), b"abc");
        assert_eq!(code, Err(PROTOCOL_ERROR), "{field:?}");
    }
    // In full for the first time, by its number in the table of the connection from then on.
    let value = "x".repeat(100);
    let large = vec![("x", value.as_str()); 50];
    for round in 1..=3 {
        let answer = bad.refused("head_too_large", &head("GET", "/large", &large), &[]).expect("an answer");
        assert_eq!(answer.len(), if round == 1 { 5 } else { 1 }, "{answer:x?}");
    }
    assert!(!server.heads().iter().any(|head| head.contains("/large")));
}

#[test]
fn a_question_for_a_websocket_has_no_body() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "", ""));
    let mut neighbour = let_in(gateway.address("web"));
    neighbour.works();
    for (n, body) in (1..).zip(["content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"]) {
        let mut client = let_in(gateway.address("web"));
        client.send(format!(
            "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{body}"
        ));
        let (status, head, _) = client.answer();
        assert_eq!((status, header(&head, "connection")), (400, Some("close")));
        assert!(client.rest().is_empty());
        gateway.counts("http_refused", "web", "upgrade_body", n);
        neighbour.works();
    }
    assert!(!server.heads().iter().any(|head| head.contains("/ws")));
}

#[test]
fn protocols_that_nobody_knows_are_answered_alike_by_all_versions() {
    let server = Server::start();
    let gateway = http3::gateway(&server, http3::PROXY);
    wait(async {
        let client = http3::Client::to(gateway.address("web")).await;
        let answer = client.request(http3::fields("CONNECT", "/x", &[(":protocol", "x")])).await;
        assert_eq!(answer.last_status(), 501);
    });
    let gateway = Running::start(&config(server.address, "", ""));
    let mut two = Two::to(gateway.address("web"), &[]);
    two.send(&frame(HEADERS, END_HEADERS, 1, &head("CONNECT", "/x", &[(":protocol", "x")])));
    let (fields, _, _) = two.answer(1);
    assert!(says(&fields, 501), "{fields:x?}");
}

#[test]
fn a_reload_opens_a_folder_anew_that_was_replaced() {
    let folder = std::env::temp_dir().join(format!("portway-swap-{}", std::process::id()));
    let _left = std::fs::remove_dir_all(&folder);
    for version in ["v1", "v2"] {
        std::fs::create_dir_all(folder.join(version).join("sub")).unwrap();
        std::fs::write(folder.join(version).join("version"), version).unwrap();
    }
    let current = folder.join("current");
    std::os::unix::fs::symlink("v1", &current).unwrap();
    let text = format!(
        "version = 1\n[runtime]\narbiters = 1\n[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[listener.route]]\nservice = \"static\"\nroot = \"{}\"\n",
        current.display()
    );
    let gateway = Running::start(&text);
    let mut client = Client::to(gateway.address("web"));
    let mut version = || String::from_utf8(client.get("/version").2).unwrap();
    let reload = || {
        let config = check::parse("test.toml", &text, &check::Known::default()).unwrap();
        gateway.gateway().reload(config).unwrap();
    };
    assert_eq!(version(), "v1");
    reload();
    assert_eq!(version(), "v1");
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink("v2", &current).unwrap();
    assert_eq!(version(), "v1", "what was opened stays what it was");
    reload();
    assert_eq!(version(), "v2", "the same text, another folder");
    std::fs::remove_dir_all(folder.join("v2")).unwrap();
    std::fs::create_dir_all(folder.join("v2").join("sub")).unwrap();
    std::fs::write(folder.join("v2").join("version"), "v3").unwrap();
    reload();
    assert_eq!(version(), "v3", "the same name, another folder");
    let (status, head, _) = client.get("/sub?a=b");
    assert_eq!((status, header(&head, "location")), (301, Some("sub/?a=b")));
    std::fs::remove_dir_all(&folder).unwrap();
}
