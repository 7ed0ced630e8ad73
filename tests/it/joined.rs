//! Listeners and upstreams joined by a configuration: relays and rooms through the gateway, and their reload.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portway::gateway::{Builder, check};

use crate::gateway::{Binary, Client, Neighbour, Running, free};
use crate::probe::{SOON, eventually, view, wait};

fn parse(text: &str) -> portway::gateway::config::Config {
    let text = format!("version = 1\n[runtime]\narbiters = 2\ndrain = \"5s\"\n{text}");
    check::parse("test.toml", &text, &check::Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)))
}

/// An echo, and a relay to `servers`.
fn relay(echo: SocketAddr, relay: SocketAddr, servers: &[SocketAddr], more: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    format!(
        "[[upstream]]\nname = \"app\"\nservers = [{}]\n\
         [[listener]]\nname = \"echo\"\nlisten = \"{echo}\"\nprotocol = \"framed\"\nservice = \"echo\"\n\
         [[listener]]\nname = \"front\"\nlisten = \"{relay}\"\nprotocol = \"relay\"\nupstream = \"app\"\n{more}",
        servers.join(", ")
    )
}

#[test]
fn a_relay_of_the_configuration_joins_and_names_its_ends() {
    let (echo, front) = (free(), free());
    let running = Running::of(Builder::new().start(parse(&relay(echo, front, &[echo], ""))).unwrap());
    let mut client = Client::to(front);
    for size in [0, 1, 1_000, 1 << 20] {
        client.echoes(&vec![3; size]);
    }
    assert_eq!(view(running.gateway().mesh()).of_kind("relay").count(), 1);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert!(client.rest().is_empty());
    running.counts("connections_closed", "front", "finished", 1);
    assert_eq!(running.totals().get("relay_bytes_up", "front", ""), 1_049_593);
    assert_eq!(running.totals().get("relay_bytes_down", "front", ""), 1_049_593);
    running.is_empty();
}

#[test]
fn signals_that_come_together_are_one_and_a_later_one_ends_it_at_once() {
    let (echo, front) = (free(), free());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = relay(echo, front, &[server.local_addr().unwrap()], "");
    let mut binary = Binary::start(&format!("version = 1\n[runtime]\ndrain = \"60s\"\n{text}"));
    binary.says("listener=front ");
    let mut client = Client::to(front);
    let (mut held, _) = server.accept().unwrap();
    binary.signal("TERM");
    binary.signal("INT");
    binary.says("draining already");
    // The stream goes on, both ways.
    client.0.write_all(b"up").unwrap();
    held.read_exact(&mut [0; 2]).unwrap();
    held.write_all(b"down").unwrap();
    client.0.read_exact(&mut [0; 4]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    binary.signal("TERM");
    binary.says("ended at once by a second signal");
    assert_eq!(binary.ends_within(SOON).code(), Some(1));
}

#[test]
fn fifty_relayed_streams_are_fifty_pinned_actors_and_then_none() {
    let (echo, front) = (free(), free());
    let running = Running::of(Builder::new().start(parse(&relay(echo, front, &[echo], ""))).unwrap());
    let mut clients: Vec<_> = (0..50).map(|_| Client::to(front)).collect();
    let mut homes = None;
    for round in 1..=5u64 {
        clients.iter_mut().for_each(|client| client.echoes(b"turn"));
        let seen = view(running.gateway().mesh());
        let now: Vec<_> = seen.of_kind("relay").map(|actor| (actor.id, actor.arbiter)).collect();
        assert_eq!(now.len(), 50);
        assert!(seen.of_kind("relay").all(|actor| actor.turns >= round));
        assert_eq!(homes.get_or_insert_with(|| now.clone()), &now, "nobody moves");
    }
    drop(clients);
    let mesh = running.gateway().mesh().clone();
    eventually("none left", || view(&mesh).of_kind("relay").count() == 0);
}

#[test]
fn a_server_that_refuses_is_passed_over() {
    let (echo, front, nobody) = (free(), free(), free());
    let running = Running::of(Builder::new().start(parse(&relay(echo, front, &[nobody, echo], ""))).unwrap());
    for _ in 0..10 {
        Client::to(front).echoes(b"x");
    }
    assert!(running.totals().get("upstream_failures", "app", "connect_refused") >= 1);
    let overview = wait(running.gateway().overview());
    let servers: Vec<_> =
        overview.servers.iter().map(|s| (s.upstream.as_str(), s.address.clone(), s.healthy)).collect();
    assert_eq!(servers, [("app", nobody.to_string(), true), ("app", echo.to_string(), true)]);
    assert!(overview.servers[0].failures >= 1 || overview.servers[0].ejected_s.is_some(), "{overview:?}");
    assert!(overview.text().contains(&nobody.to_string()));
    assert_eq!(running.totals().get("connections_accepted", "front", ""), 10);
}

#[test]
fn a_thousand_relays_lose_nothing_over_two_hundred_reloads() {
    let (echo, front, nobody, x) = (free(), free(), free(), free());
    let running = Running::of(Builder::new().start(parse(&relay(echo, front, &[echo], ""))).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut clients: Vec<_> = (0..250).map(|_| Neighbour::of(front)).collect();
                while !stop.load(Ordering::Relaxed) {
                    clients.iter_mut().for_each(Neighbour::works);
                }
                clients.len()
            })
        })
        .collect();
    for n in 0..200 {
        // Sometimes the listener changes, sometimes its upstream, sometimes something else.
        let config = match n % 3 {
            0 => relay(echo, front, &[echo], &format!("[listener.limits]\nidle = \"{}s\"\n", 100 + n)),
            1 => relay(echo, front, &[echo, nobody], ""),
            _ => {
                relay(echo, front, &[echo], "")
                    + &format!(
                        "[[listener]]\nname = \"x\"\nlisten = \"{x}\"\nprotocol = \"framed\"\nservice = \"echo\"\n"
                    )
            }
        };
        let done = running.gateway().reload(parse(&config)).unwrap();
        assert!(done.kept.contains(&"echo".to_owned()), "{done}");
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(busy.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 1_000);
    assert_eq!(running.totals().family("connections_refused"), 0);
}

#[test]
fn a_reload_that_changes_the_servers_leads_new_streams_to_the_new_ones() {
    let (echo, front) = (free(), free());
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = Running::of(Builder::new().start(parse(&relay(echo, front, &[echo], ""))).unwrap());
    let mut old = Neighbour::of(front);
    let done = running.gateway().reload(parse(&relay(echo, front, &[other.local_addr().unwrap()], ""))).unwrap();
    assert_eq!((done.kept, done.changed), (vec!["echo".to_owned()], vec!["front".to_owned()]));
    old.works();
    let mut new = Client::to(front);
    new.0.write_all(b"hi").unwrap();
    let mut got = [0; 2];
    other.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hi");
    old.works();
}

/// A drain names those who were not done, and nobody who only had to wait for them.
#[test]
fn a_stream_that_is_late_makes_no_listener_late() {
    let (echo, front) = (free(), free());
    let mut config = parse(&relay(echo, front, &[echo], ""));
    config.runtime.drain = std::time::Duration::from_millis(300);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    config.upstreams = parse(&relay(echo, front, &[server.local_addr().unwrap()], "")).upstreams;
    let running = Running::of(Builder::new().start(config).unwrap());
    let _client = Client::to(front);
    let _served = server.accept().unwrap();
    let report = wait(running.gateway().drain());
    let late: Vec<_> = report.unfinished.iter().map(|one| one.kind).collect();
    assert_eq!(late, ["relay"], "{report:?}");
}

#[test]
fn rooms_of_the_configuration() {
    let text = "[[listener]]\nname = \"chat\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"rooms\"\n";
    let running = Running::of(Builder::new().start(parse(text)).unwrap());
    let address = running.address("chat");
    let mut members: Vec<_> = (0..10)
        .map(|_| {
            let mut client = Client::to(address);
            client.send(b"Jhall");
            assert_eq!(client.recv(), b"Jhall");
            client
        })
        .collect();
    let (first, rest) = members.split_first_mut().unwrap();
    first.send(b"Mhello");
    rest.iter_mut().for_each(|member| assert_eq!(member.recv(), b"Mhello"));
    running.counts("rooms_deliveries", "chat", "", 9);
    drop(members);
    running.counts("rooms_left", "chat", "", 10);
}
