//! The admin listener of the real binary: what it shows, and what it refuses.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::gateway::{Binary, Client, free, get, http};
use crate::probe::SOON;

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
