//! The admin listener of the real binary: what it shows, and what it refuses.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::dashboard::{TOKEN, with_token};
use crate::gateway::{Binary, Client, free, get, http};
use crate::probe::{SOON, eventually};

fn with_admin() -> (Binary, std::net::SocketAddr) {
    // The port of the admin listener has to be known beforehand: it is not a listener of the log.
    let admin = free();
    let binary = Binary::start(&format!(
        "version = 1\n[admin]\nlisten = \"{admin}\"\n[[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\n\
         protocol = \"framed\"\nservice = \"echo\"\n"
    ));
    (binary, admin)
}

#[test]
fn shows_health_metrics_actors_and_listeners() {
    let (mut binary, admin) = with_admin();
    let echo = binary.address("echo");
    binary.says("running");
    let mut clients: Vec<_> = (0..3).map(|_| Client::to(echo)).collect();
    clients.iter_mut().for_each(|client| client.echoes(b"hello"));
    assert_eq!(get(admin, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(admin, "/readyz"), (200, "ready\n".to_owned()));
    let (status, metrics) = get(admin, "/metrics");
    assert_eq!(status, 200);
    for line in [
        "portway_messages_in_total{listener=\"echo\"} 3",
        "portway_bytes_out_total{listener=\"echo\"} 27",
        "portway_connections{listener=\"echo\"} 3.0",
        "portway_actors{kind=\"framed\"} 3.0",
        "portway_ready{} 1.0",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let (status, actors) = get(admin, "/api/actors?kind=framed");
    assert_eq!(status, 200);
    let tree: serde_json::Value = serde_json::from_str(&actors).unwrap();
    assert_eq!(tree["total"], 3);
    assert!(tree["actors"].as_array().unwrap().iter().all(|actor| actor["turns"].as_u64() >= Some(1)));
    let (status, listeners) = get(admin, "/api/listeners");
    assert_eq!(status, 200);
    let listeners: serde_json::Value = serde_json::from_str(&listeners).unwrap();
    assert_eq!(listeners[0]["name"], "echo");
    assert_eq!(listeners[0]["connections"], 3);
    assert_eq!(listeners[0]["accepted"], 3);
}

#[test]
fn refuses_what_is_not_reading_from_here() {
    let (mut binary, admin) = with_admin();
    binary.says("running");
    let ask = |head: &str| http(admin, &format!("{head}\r\nConnection: close\r\n\r\n")).0;
    assert_eq!(ask("GET /metrics HTTP/1.1\r\nHost: evil.example"), 403);
    assert_eq!(ask("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example"), 403);
    assert_eq!(ask("POST /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0"), 405);
    assert_eq!(ask("GET /nothing HTTP/1.1\r\nHost: localhost:9180"), 404);
    assert_eq!(ask("GET /api/actors?limit=many HTTP/1.1\r\nHost: localhost"), 400);
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[0xff; 100_000]).ok();
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    assert_eq!(get(admin, "/healthz").0, 200, "garbage hurts nobody");
}

#[test]
fn is_not_ready_while_draining() {
    let (mut binary, admin) = with_admin();
    let mut client = Client::to(binary.address("echo"));
    client.echoes(b"x");
    binary.says("running");
    binary.signal("TERM");
    binary.says("draining");
    // The client keeps its side open, so the drain takes the two seconds of a lingering end.
    let (status, body) = get(admin, "/readyz");
    assert_eq!((status, body.as_str()), (503, "draining\n"));
    assert_eq!(get(admin, "/healthz").0, 200);
    assert_eq!(binary.ends_within(SOON).code(), Some(0));
}

#[test]
fn status_shows_the_running_gateway_and_its_last_reload() {
    let (mut binary, admin) = with_admin();
    let mut client = Client::to(binary.address("echo"));
    client.echoes(b"x");
    binary.says("running");
    let text = binary.portway(&["status"]);
    assert_eq!(text.status.code(), Some(0), "{}", String::from_utf8_lossy(&text.stderr));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [", ready", "listener  address", "portway-0", "echo", "framed", "alive"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("last reload"), "{text}");

    let before = binary.text();
    binary.rewrite("version = 1\n[[listner]]\n");
    binary.signal("HUP");
    binary.says("reload refused");
    binary.rewrite(&before);
    let json = binary.portway(&["status", "--json"]);
    let overview: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(overview["listeners"][0]["connections"], 1);
    assert_eq!(overview["last_reload"]["applied"], false);
    assert!(overview["last_reload"]["message"].as_str().unwrap().contains("config.toml:2:"), "{overview}");
    client.echoes(b"still there");
    binary.signal("HUP");
    binary.says("reloaded");
    assert!(get(admin, "/api/status").1.contains("\"applied\": true"));

    drop(client);
    binary.signal("TERM");
    assert_eq!(binary.ends_within(SOON).code(), Some(0));
    let gone = binary.portway(&["status"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("did not answer"));
}

#[test]
fn whoever_holds_connections_open_keeps_nobody_from_looking_in() {
    let (mut binary, admin) = with_admin();
    binary.says("running");
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(admin).unwrap()).collect();
    let greedy: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(admin).unwrap();
            let request = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n").repeat(200);
            stream.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
            let _full = stream.write_all(request.as_bytes());
            stream
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(get(admin, "/healthz").0, 200);
    }
    let (_, metrics) = get(admin, "/metrics");
    assert!(metrics.contains("portway_admin_evicted_total"), "{metrics}");
    assert_eq!(http(admin, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").0, 403);
    drop((silent, greedy));
}

/// What a caller with the token gets.
fn post(admin: std::net::SocketAddr, path: &str, more: &str) -> (u16, String) {
    http(
        admin,
        &format!("POST {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n"),
    )
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

fn one_session(admin: std::net::SocketAddr) -> u64 {
    let tree: serde_json::Value = serde_json::from_str(&get(admin, "/api/actors?kind=framed").1).unwrap();
    tree["actors"][0]["id"].as_u64().expect("a session")
}

/// docs/admin.md lists the calls; each is made here, and `/api` lists the same.
#[test]
fn each_documented_call_is_answered_and_no_other_is_there() {
    let (mut binary, admin) = with_token();
    let echo = binary.address("echo");
    binary.says("running");
    let text = std::fs::read_to_string("docs/admin.md").unwrap();
    let calls: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let (method, path) = (cells.next()?, cells.next()?);
            let known = method == "GET" || method == "POST";
            known.then(|| (method.to_owned(), path.trim_matches('`').to_owned()))
        })
        .collect();
    assert!(calls.len() >= 16, "{calls:?}");
    let listed: Vec<_> = get(admin, "/api")
        .1
        .lines()
        .map(|line| {
            let (method, path) = line.split_once(' ').expect("a method and a path");
            (method.to_owned(), path.trim().to_owned())
        })
        .collect();
    assert_eq!(calls, listed);
    for (method, path) in &calls {
        let mut client = Client::to(echo);
        client.echoes(b"hello");
        let id = one_session(admin).to_string();
        let path = path.replace("ID", &id).replace("kind=KIND&limit=N", "kind=framed&limit=1");
        let status = match (method.as_str(), path.as_str()) {
            ("GET", "/api/events") => {
                let mut stream = TcpStream::connect(admin).unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                stream.write_all(format!("GET /api/events HTTP/1.1\r\nHost: {admin}\r\n\r\n").as_bytes()).unwrap();
                let mut head = [0; 15];
                stream.read_exact(&mut head).unwrap();
                u16::from(head == *b"HTTP/1.1 200 OK") * 200
            }
            ("GET", path) => get(admin, path).0,
            (_, path) => post(admin, path, &bearer()).0,
        };
        assert_eq!(status, 200, "{method} {path}");
        if path.ends_with("/close") || path.ends_with("/drain") {
            assert!(client.rest().is_empty(), "{path} ends it");
        }
        // The next one is found as the first.
        drop(client);
        eventually("it is gone", || get(admin, "/api/actors?kind=framed").1.contains("\"total\": 0"));
    }
}

#[test]
fn changes_need_post_the_token_and_this_very_page() {
    let (mut binary, admin) = with_token();
    let echo = binary.address("echo");
    let mut neighbour = Client::to(echo);
    neighbour.echoes(b"x");
    binary.says("running");
    let id = one_session(admin);
    let close = format!("/api/actors/{id}/close");
    let mut refused = std::collections::BTreeMap::new();
    let mut expect = |reason: &'static str, status: u16, got: (u16, String)| {
        assert_eq!(got.0, status, "{reason}: {}", got.1);
        let n = refused.entry(reason).or_insert(0);
        *n += 1;
        let line = format!("portway_admin_refused_total{{listener=\"admin\",reason=\"{reason}\"}} {n}");
        let metrics = get(admin, "/metrics").1;
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    };
    expect("method", 405, get(admin, &close));
    expect("method", 405, get(admin, "/api/reload"));
    expect("token", 401, post(admin, &close, ""));
    expect("token", 401, post(admin, "/api/reload", "Authorization: Bearer 0123456789abcdef-of-a-tesu\r\n"));
    expect("origin", 403, post(admin, &close, &format!("{}Origin: http://evil.example\r\n", bearer())));
    expect("origin", 403, post(admin, &close, &format!("{}Origin: null\r\n", bearer())));
    expect("origin", 403, post(admin, &close, &format!("{}Sec-Fetch-Site: cross-site\r\n", bearer())));
    let foreign = format!("POST {close} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n{}\r\n", bearer());
    expect("host", 403, http(admin, &foreign));
    neighbour.echoes(b"nobody was closed");
    binary.says("audit: refused");

    // What serves no single peer is not ended from here, and what is not there is told.
    let tree: serde_json::Value = serde_json::from_str(&get(admin, "/api/actors?kind=listener").1).unwrap();
    let listener = tree["actors"][0]["id"].as_u64().unwrap();
    assert_eq!(post(admin, &format!("/api/actors/{listener}/close"), &bearer()).0, 409);
    assert_eq!(post(admin, "/api/actors/999999999/drain", &bearer()).0, 404);
    let mut other = Client::to(echo);
    other.echoes(b"still open");

    let own = format!("{}Origin: http://{admin}\r\nSec-Fetch-Site: same-origin\r\n", bearer());
    assert_eq!(post(admin, &close, &own).0, 200);
    assert!(neighbour.rest().is_empty());
    binary.says("audit: done peer=127.0.0.1");
    other.echoes(b"and the other goes on");
}

#[test]
fn without_a_token_nothing_changes_over_http() {
    let (mut binary, admin) = with_admin();
    binary.says("running");
    let (status, words) = post(admin, "/api/reload", "Authorization: Bearer whatever-it-may-be\r\n");
    assert_eq!((status, words.contains("token")), (403, true), "{words}");
    assert!(get(admin, "/api/config").1.contains("\"applied\": 1"));
}

#[test]
fn another_address_than_loopback_asks_for_a_token() {
    // Linux answers on all of 127/8, so an address of this machine that is not loopback has to be found: the wildcard.
    let port = free().port();
    let text = |token: &str| {
        format!(
            "version = 1\n[admin]\nlisten = \"0.0.0.0:{port}\"\n{token}[[listener]]\nname = \"echo\"\n\
             listen = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n"
        )
    };
    let mut binary = Binary::start(&text(&format!("token = \"{TOKEN}\"\n")));
    binary.says("running");
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    for (path, status) in [("/", 200), ("/healthz", 200), ("/readyz", 200), ("/metrics", 401), ("/api/events", 401)] {
        assert_eq!(get(admin, path).0, status, "{path}");
    }
    let shown = |path: &str| {
        http(admin, &format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n{}\r\n", bearer())).0
    };
    assert_eq!((shown("/metrics"), shown("/api/actors")), (200, 200));
    for bad in ["", "token = \"short\"\n", "token = \"with spaces in its middle\"\n"] {
        binary.rewrite(&text(bad));
        let checked = binary.portway(&["check"]);
        assert_eq!(checked.status.code(), Some(2));
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(said.contains("token") && said.contains("config.toml:"), "{said}");
        assert!(!said.contains("in its middle"), "a token is masked: {said}");
    }
}
