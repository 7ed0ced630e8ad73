//! What HTTP does at its limits: requests that wait for a server, repetitions, requests of one connection, bodies that
//! stall; and what is written down of requests: histograms and the access log.

use std::sync::atomic::Ordering;

use crate::gateway::{Binary, Running, get};
use crate::http::{Client, Server, config, header};
use crate::probe::eventually;

/// Two upstreams of one server; what goes to the first is limited.
fn limited(server: &Server, limits: &str) -> Running {
    let address = server.address;
    Running::start(&format!(
        "version = 1\n[runtime]\narbiters = 1\n\
         [[upstream]]\nname = \"app\"\nservers = [\"{address}\"]\n{limits}\n\
         [[upstream]]\nname = \"other\"\nservers = [\"{address}\"]\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[listener.route]]\nname = \"all\"\nupstream = \"app\"\ntimeout = \"1500ms\"\n\
         [[listener.route]]\nname = \"other\"\npath = \"/hello\"\nupstream = \"other\"\n"
    ))
}

#[test]
fn as_many_requests_wait_for_a_server_as_may() {
    let server = Server::start();
    let gateway = limited(&server, "[upstream.limits]\nconnections = 1\n[upstream.http]\npending = 1");
    let address = gateway.address("web");
    let mut neighbour = Client::to(address);
    let mut first = Client::to(address);
    first.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first has the server", || server.heads().iter().any(|head| head.starts_with("GET /never")));
    // Of two more one waits, and one is one too many.
    let mut two = [Client::to(address), Client::to(address)];
    for client in &mut two {
        client.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    eventually("one is refused", || gateway.totals().get("upstream_failures", "app", "all_full") == 1);
    neighbour.works();
    assert_eq!(first.head().0, 504);
    let mut statuses = two.map(|mut client| client.answer().0);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
    gateway.counts("upstream_failures", "app", "all_full", 1);
    gateway.counts("http_failures", "app", "no_server", 1);
    neighbour.works();
}

#[test]
fn repetitions_stay_a_share_of_requests() {
    const REQUESTS: usize = 60;
    let server = Server::start();
    let gateway = limited(&server, "");
    let mut neighbour = Client::to(gateway.address("web"));
    let mut client = Client::to(gateway.address("web"));
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/close").0, 502);
        neighbour.works();
    }
    let sent = server.heads().iter().filter(|head| head.starts_with("GET /close")).count();
    let again = sent - REQUESTS;
    // Ten at once, and one for each five requests; two for each without the bound.
    assert!((10..=10 + REQUESTS / 5 + 1).contains(&again), "{again}");
    gateway.counts("http_retries", "app", "broken", again as u64);
    gateway.counts("http_failures", "app", "broken", sent as u64);
    gateway.counts("http_failures", "other", "broken", 0);
}

#[test]
fn a_connection_takes_as_many_requests_as_it_is_told() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "[listener.http]\nrequests = 3", ""));
    let mut neighbour = Client::to(gateway.address("web"));
    neighbour.works();
    let mut client = Client::to(gateway.address("web"));
    for last in [false, false, true] {
        let (status, head, _) = client.get("/hello");
        assert_eq!((status, header(&head, "connection").is_some_and(|value| value == "close")), (200, last));
    }
    assert!(client.rest().is_empty());
    neighbour.works();
    gateway.counts("connections_accepted", "web", "", 2);
}

#[test]
fn a_body_that_stalls_ends_its_request_and_nothing_else() {
    let server = Server::start();
    let gateway = Running::start(&config(server.address, "[listener.http]\nbody_timeout = \"300ms\"", ""));
    let mut neighbour = Client::to(gateway.address("web"));
    neighbour.works();
    let mut slow = Client::to(gateway.address("web"));
    slow.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab");
    assert_eq!(slow.head().0, 408);
    slow.rest();
    gateway.counts("http_failures", "app", "body_timeout", 1);
    neighbour.works();
    // One that drips is as slow as its longest pause.
    let mut drips = Client::to(gateway.address("web"));
    drips.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n");
    for byte in b"12345" {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drips.send([*byte]);
    }
    assert_eq!(drips.answer().2, b"12345");
    gateway.counts("http_failures", "app", "body_timeout", 1);
    gateway.counts("connections_closed", "web", "body_timeout", 0);
}

#[test]
fn durations_are_histograms_by_route_and_upstream() {
    let server = Server::start();
    let admin = crate::gateway::free();
    let gateway = Running::start(&format!("{}[admin]\nlisten = \"{admin}\"\n", config(server.address, "", "")));
    let mut client = Client::to(gateway.address("web"));
    (0..3).for_each(|_| client.works());
    drop(client);
    gateway.counts("http_route_requests", "web/all", "2xx", 3);
    let (_, page) = get(admin, "/metrics");
    for (family, label) in
        [("http_route_duration_seconds", "route=\"web/all\""), ("http_upstream_duration_seconds", "upstream=\"app\"")]
    {
        assert!(page.contains(&format!("# TYPE portway_{family} histogram\n")), "{page}");
        let lines: Vec<&str> =
            page.lines().filter(|line| line.starts_with(&format!("portway_{family}_bucket"))).collect();
        let counts: Vec<u64> = lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(lines.len(), 9, "{lines:?}");
        assert!(lines.iter().all(|line| line.contains(label)), "{lines:?}");
        assert!(counts.is_sorted() && counts.last() == Some(&3), "{lines:?}");
        assert!(lines.last().unwrap().contains("le=\"+Inf\""), "{lines:?}");
        assert!(page.contains(&format!("portway_{family}_count{{{label}}} 3\n")), "{page}");
        let sum = page.lines().find_map(|line| line.strip_prefix(&format!("portway_{family}_sum{{{label}}} ")));
        let sum: f64 = sum.expect("a sum").parse().expect("a number");
        assert!(sum > 0.0 && sum < 60.0, "{sum}");
    }
}

#[test]
fn the_access_log_says_what_it_is_told_to() {
    let server = Server::start();
    for (format, fields, says, not) in [
        (
            "json",
            "[\"method\", \"status\", \"user_agent\", \"traceparent\"]",
            &[
                "\"method\":\"GET\"",
                "\"status\":200",
                "\"user_agent\":\"me\"",
                "\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"",
            ][..],
            "\"path\"",
        ),
        (
            "text",
            "[\"path\", \"bytes_out\", \"ended\"]",
            &["path=\"/hello\"", "bytes_out=5", "ended=\"whole\""][..],
            "method",
        ),
    ] {
        let text = config(server.address, &format!("[listener.http]\naccess_log = true\naccess_fields = {fields}"), "");
        let mut binary = Binary::start(
            &text
                .replace("127.0.0.1:0", &crate::gateway::free().to_string())
                .replace("[runtime]", &format!("[log]\nformat = \"{format}\"\n[runtime]")),
        );
        let line = binary.says("listening");
        let address =
            line.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).find_map(|word| word.parse().ok());
        let mut client = Client::to(address.expect("an address"));
        client.send(
            "GET /hello HTTP/1.1\r\nhost: a\r\nuser-agent: me\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1\r\n\r\n",
        );
        assert_eq!(client.answer().0, 200);
        let line = binary.says(says[0]);
        assert!(says.iter().all(|word| line.contains(word)), "{line}");
        assert!(!line.contains(not) && !line.contains("request_id"), "{line}");
    }
    // The context of a trace reaches the server as it came.
    let heads = server.heads();
    assert!(
        heads.iter().all(|head| header(head, "traceparent").is_some_and(|value| value.ends_with("-01"))),
        "{heads:?}"
    );
    assert!(heads.iter().all(|head| header(head, "tracestate") == Some("a=1")), "{heads:?}");
    assert!(server.connections.load(Ordering::Relaxed) >= 2);
}
