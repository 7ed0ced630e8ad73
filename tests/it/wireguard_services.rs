//! What is served inside a tunnel beside an echo: HTTP by routes, rooms, messages forwarded; and its change while it runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use portway::actors::Mail;
use portway::gateway::check;
use portway::transports::framed::{Format, FramedClient};
use portway::transports::netstack::{NetMsg, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::gateway::Running;
use crate::probe::{SOON, mesh, stop, view, wait};
use crate::wireguard::in_both;
use crate::wireguard_gateway::{Text, client, inside, key_file};

const LISTEN: &str = "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"http\"\n";

/// One request over a connection of its own: what comes back, whole.
fn ask(stack: &Mail<NetMsg>, to: &str, request: &str) -> std::io::Result<String> {
    let (stack, to, request) = (stack.clone(), to.parse().unwrap(), request.to_owned());
    wait(async move {
        let mut stream = connect(&stack, to, SOON).await.expect("it connects");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
}

fn get(stack: &Mail<NetMsg>, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n");
    ask(stack, "10.98.0.1:80", &request).expect("an answer")
}

/// Answers each connection's first request with a body, whatever it asks.
fn server(body: &'static str) -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                while stream.read(&mut head).is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

pub(crate) fn reload(running: &Running, text: &str) -> Vec<String> {
    running.gateway().reload(check::parse("test.toml", text, &check::Known::default()).unwrap()).unwrap().changed
}

#[test]
fn routes_answer_http_inside_a_tunnel() {
    in_both(|mode| {
        let app = server("from the app");
        let more = format!(
            "{LISTEN}[[listener.wireguard.service.route]]\npath = \"/app\"\nupstream = \"app\"\n\
         [[listener.wireguard.service.route]]\npath = \"/\"\nservice = \"respond\"\nbody = \"from the gateway\"\n\
         [[listener.wireguard.service.route]]\npath = \"/old\"\nredirect = \"/new\"\n\
         [[upstream]]\nname = \"app\"\nservers = [\"{app}\"]\n"
        );
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let clients = mesh(1);
        let stack = client(&clients, 10, running.address("wg0")).stack;
        let answer = get(&stack, "/app/x");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nfrom the app"), "{answer}");
        assert!(get(&stack, "/").ends_with("from the gateway"));
        let moved = get(&stack, "/old");
        assert!(moved.starts_with("HTTP/1.1 308 ") && moved.contains("location: /new\r\n"), "{moved}");
        // The very actors of a listener of HTTP, with its counters and its guard.
        assert_eq!(running.totals().get("netstack_accepted", "wg0", ""), 3);
        let refused = ask(&stack, "10.98.0.1:80", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").unwrap();
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
        assert_eq!(running.totals().family("http_refused"), 1);
        assert!(get(&stack, "/").ends_with("from the gateway"), "the next one is served");
        stop(&clients);
    });
}

#[test]
fn http_inside_a_tunnel_has_tls_if_it_is_given_a_certificate() {
    in_both(|mode| {
        let more = format!(
            "{LISTEN}certificate = \"local\"\n[[listener.wireguard.service.route]]\npath = \"/\"\nservice = \"respond\"\n\
         body = \"hidden twice\"\n[[certificate]]\nname = \"local\"\ngenerate = [\"inside\"]\n"
        );
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let clients = mesh(1);
        let stack = client(&clients, 10, running.address("wg0")).stack;
        let answer = wait(async move {
            let stream = connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON).await.expect("it connects");
            let mut connector = boring::ssl::SslConnector::builder(boring::ssl::SslMethod::tls()).unwrap();
            // Made at the start: nobody knows its issuer.
            connector.set_verify(boring::ssl::SslVerifyMode::NONE);
            let configuration = connector.build().configure().unwrap();
            let mut stream = tokio_boring::connect(configuration, "inside", stream).await.expect("a handshake");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            let _ended = stream.read_to_string(&mut answer).await;
            answer
        });
        assert!(answer.ends_with("hidden twice"), "{answer}");
        stop(&clients);
    });
}

#[test]
fn the_caps_of_the_listener_hold_for_http_inside_it() {
    in_both(|mode| {
        let more = format!("{LISTEN}[[listener.wireguard.service.route]]\nservice = \"respond\"\nbody = \"served\"\n");
        let text = Text::new(mode, [10, 11]).with(&more).write("127.0.0.1:0", &key_file());
        let (listener, rest) = text.split_once("[listener.wireguard]").unwrap();
        let running =
            Running::start(&format!("{listener}[listener.limits]\nper_source = 1\n[listener.wireguard]{rest}"));
        let clients = mesh(1);
        let [stack, other] = [10, 11].map(|n| client(&clients, n, running.address("wg0")).stack);
        let to: SocketAddr = "10.98.0.1:80".parse().unwrap();
        let ask = |stream: &mut portway::transports::netstack::NetStream| {
            wait(async {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: inside\r\n\r\n").await?;
                let mut answer = vec![0; 1_000];
                let length = stream.read(&mut answer).await?;
                answer.truncate(length);
                Ok::<_, std::io::Error>(answer)
            })
        };
        let mut first = wait(connect(&stack, to, SOON)).unwrap();
        assert!(ask(&mut first).unwrap().ends_with(b"served"));
        // Its own second one is reset, another peer's is not.
        let mut second = wait(connect(&stack, to, SOON)).unwrap();
        assert_eq!(ask(&mut second).map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
        running.counts("connections_refused", "wg0-80", "limit_per_source", 1);
        let mut neighbour = wait(connect(&other, to, SOON)).unwrap();
        assert!(ask(&mut neighbour).unwrap().ends_with(b"served"));
        assert!(ask(&mut first).unwrap().ends_with(b"served"), "the first loses nothing");
        stop(&clients);
    });
}

#[test]
fn peers_meet_in_rooms_and_messages_are_forwarded() {
    in_both(|mode| {
        let echo = Running::start(
            "version = 1\n[[listener]]\nname = \"far\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
        );
        let more = format!(
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:7002\"\nprotocol = \"framed\"\nservice = \"rooms\"\n\
         [[listener.wireguard.service]]\nlisten = \"10.98.0.1:7003\"\nprotocol = \"framed\"\nservice = \"forward\"\n\
         upstream = \"far\"\n[[upstream]]\nname = \"far\"\nservers = [\"{}\"]\n",
            echo.address("far")
        );
        let text = |port: u16| {
            let another = format!(
                "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:{port}\"\nprotocol = \"framed\"\nservice = \"echo\"\n"
            );
            Text::new(mode, [10, 11]).with(&another).with(&more).write("127.0.0.1:0", &key_file())
        };
        let running = Running::start(&text(7010));
        let clients = mesh(1);
        let stacks = [10, 11].map(|n| client(&clients, n, running.address("wg0")).stack);
        let framed = |stack: &Mail<NetMsg>, to: &str| {
            let (stack, to) = (stack.clone(), to.parse().unwrap());
            wait(async move { FramedClient::over(connect(&stack, to, SOON).await.unwrap(), Format::default()) })
        };
        let [mut one, mut other] = [0, 1].map(|n| framed(&stacks[n], "10.98.0.1:7002"));
        wait(async {
            for member in [&mut one, &mut other] {
                member.send(b"Jtea").await.unwrap();
                assert_eq!(member.recv().await.unwrap().unwrap(), &b"Jtea"[..]);
            }
            one.send(b"Mhello").await.unwrap();
            assert_eq!(other.recv().await.unwrap().unwrap(), &b"Mhello"[..]);
        });
        let mut forwarded = framed(&stacks[0], "10.98.0.1:7003");
        wait(async {
            forwarded.send(b"far away").await.unwrap();
            assert_eq!(forwarded.recv().await.unwrap().unwrap(), &b"far away"[..]);
        });
        // Another service beside them changes: whoever comes now meets those who are there.
        assert_eq!(reload(&running, &text(7011)), ["wg0"]);
        let mut late = framed(&stacks[1], "10.98.0.1:7002");
        wait(async {
            late.send(b"Jtea").await.unwrap();
            assert_eq!(late.recv().await.unwrap().unwrap(), &b"Jtea"[..]);
            late.send(b"Mlate").await.unwrap();
            assert_eq!(one.recv().await.unwrap().unwrap(), &b"Mlate"[..]);
        });
        stop(&clients);
    });
}

#[test]
fn a_site_inside_a_tunnel_changes_while_its_connections_stay() {
    in_both(|mode| {
        let text = |body: &str| {
            let more =
                format!("{LISTEN}[[listener.wireguard.service.route]]\nservice = \"respond\"\nbody = \"{body}\"\n");
            Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file_once())
        };
        let running = Running::start(&text("one"));
        let clients = mesh(1);
        let stack = client(&clients, 10, running.address("wg0")).stack;
        let mut stream = wait(connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON)).unwrap();
        let mut ask = || {
            wait(async {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: inside\r\n\r\n").await.unwrap();
                let mut answer = vec![0; 1_000];
                let length = stream.read(&mut answer).await.unwrap();
                String::from_utf8(answer[..length].to_vec()).unwrap()
            })
        };
        assert!(ask().ends_with("one"));
        assert_eq!(reload(&running, &text("two")), ["wg0"]);
        assert!(ask().ends_with("two"), "the same connection, the site of now");
        assert!(get(&stack, "/").ends_with("two"));
        assert_eq!(reload(&running, &text("two")), Vec::<String>::new());
        assert_eq!(view(running.gateway().mesh()).totals.get("wireguard_handshakes", "wg0", ""), 1, "one session");
        stop(&clients);
    });
}

/// The same file at each call.
fn key_file_once() -> String {
    static FILE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    FILE.get_or_init(key_file).clone()
}

#[test]
fn fifty_clients_of_http_are_fifty_actors_and_then_none() {
    in_both(|mode| {
        let more = format!("{LISTEN}[[listener.wireguard.service.route]]\nservice = \"respond\"\nbody = \"served\"\n");
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let clients = mesh(1);
        let stack = client(&clients, 10, running.address("wg0")).stack;
        assert_eq!(inside(10), "10.98.1.10");
        let streams: Vec<_> = (0..50)
            .map(|_| {
                let mut stream = wait(connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON)).unwrap();
                wait(async {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: inside\r\n\r\n").await.unwrap();
                    let mut answer = vec![0; 1_000];
                    let length = stream.read(&mut answer).await.unwrap();
                    assert!(answer[..length].ends_with(b"served"));
                });
                stream
            })
            .collect();
        let seen = view(running.gateway().mesh());
        let actors: Vec<_> = seen.of_kind("http").collect();
        assert_eq!(actors.len(), 50);
        let home = seen.of_kind("netstack").next().unwrap().arbiter;
        assert!(actors.iter().all(|actor| actor.turns > 0 && actor.arbiter == home), "beside their netstack");
        drop(streams);
        crate::probe::eventually("none is left", || view(running.gateway().mesh()).of_kind("http").count() == 0);
        stop(&clients);
    });
}
