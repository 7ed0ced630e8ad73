//! Upstreams with real servers on loopback: looked up, checked, gone and back.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use portway::actors::Mesh;
use portway::gateway::check;
use portway::gateway::upstreams::Upstreams;
use portway::transports::kit::balance::{Address, Balancer, NoServer};

use crate::gateway::{Client, Running, free};
use crate::probe::{SOON, eventually, mesh, now, stop, view, wait};

/// Upstreams named `app`, as a configuration says.
fn start(mesh: &Mesh, keys: &str) -> Upstreams {
    let text = format!("version = 1\n[[upstream]]\nname = \"app\"\n{keys}\n");
    let config = check::parse("test.toml", &text, &check::Known::default()).unwrap_or_else(|report| panic!("{report}"));
    Upstreams::start(mesh, &config.upstreams).expect("they start")
}

const CHECKS: &str = "[upstream.health]\ncheck = \"tcp\"\ninterval = \"100ms\"\nhealthy_after = 2\nunhealthy_after = 2";

fn healthy(balancer: &Balancer) -> Vec<bool> {
    balancer.view(now()).iter().map(|view| view.healthy).collect()
}

fn totals(mesh: &Mesh, family: &str, reason: &str) -> u64 {
    view(mesh).totals.get(family, "app", reason)
}

#[test]
fn a_server_that_goes_away_is_unhealthy_and_comes_back() {
    let mesh = mesh(1);
    let (stays, goes) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = goes.local_addr().unwrap();
    let servers = format!("servers = [\"{}\", \"{address}\"]\n{CHECKS}", stays.local_addr().unwrap());
    let upstreams = start(&mesh, &servers);
    let balancer: &Arc<Balancer> = upstreams.get("app").expect("it is there");
    eventually("good checks", || totals(&mesh, "upstream_checks", "ok") >= 4);
    assert_eq!((healthy(balancer), totals(&mesh, "upstream_checks", "failed")), (vec![true, true], 0));
    drop(goes);
    eventually("it is found down", || healthy(balancer) == [true, false]);
    assert!(totals(&mesh, "upstream_checks", "failed") >= 2);
    for _ in 0..4 {
        let picked = balancer.pick(now(), 0, &[]).expect("the other one");
        assert_eq!(*picked.address(), Address::Tcp(stays.local_addr().unwrap()));
    }
    let back = again(address);
    eventually("it is found up", || healthy(balancer) == [true, true]);
    drop((stays, back));
    eventually("nobody is up", || healthy(balancer) == [false, false]);
    assert_eq!(balancer.pick(now(), 0, &[]).err(), Some(NoServer::AllEjected));
    stop(&mesh);
}

/// Another test may hold the port for a moment.
fn again(address: SocketAddr) -> TcpListener {
    let mut bound = None;
    eventually("the port is free", || {
        bound = TcpListener::bind(address).ok();
        bound.is_some()
    });
    bound.expect("just bound")
}

#[test]
fn a_silent_server_fails_its_checks_in_time_and_sockets_are_servers_too() {
    let mesh = mesh(1);
    let path = std::env::temp_dir().join(format!("portway-it-{}.sock", std::process::id()));
    drop(std::fs::remove_file(&path));
    let socket = UnixListener::bind(&path).unwrap();
    // TEST-NET-1 (RFC 5737): nothing answers from there, whether the packet is dropped or refused on its way.
    let servers = format!("servers = [\"unix:{}\", \"192.0.2.1:9\"]\n{CHECKS}\ntimeout = \"50ms\"", path.display());
    let upstreams = start(&mesh, &servers);
    let balancer = upstreams.get("app").expect("it is there");
    eventually("one is up", || healthy(balancer) == [true, false]);
    assert!(totals(&mesh, "upstream_checks", "ok") >= 2);
    drop(socket);
    eventually("none is up", || healthy(balancer) == [false, false]);
    std::fs::remove_file(&path).unwrap();
    stop(&mesh);
}

#[test]
fn names_are_looked_up_and_stay_the_same_servers() {
    let mesh = mesh(1);
    let upstreams = start(&mesh, "servers = [\"localhost:9000\", \"127.0.0.2:9000\"]\nresolve = \"100ms\"");
    let balancer = upstreams.get("app").expect("it is there");
    let localhost = Address::Tcp("127.0.0.1:9000".parse().unwrap());
    eventually("localhost is found", || balancer.view(now()).iter().any(|view| view.address == localhost));
    let before = balancer.view(now());
    let picked = balancer.pick(now(), 0, &[]).expect("a server");
    let rounds = totals(&mesh, "upstream_resolve", "ok");
    eventually("more look-ups", || totals(&mesh, "upstream_resolve", "ok") >= rounds + 2);
    let after = balancer.view(now());
    assert_eq!(after.iter().map(|view| view.connections).sum::<usize>(), 1);
    let ids = |views: &[portway::transports::kit::balance::ServerView]| views.iter().map(|v| v.id).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    drop(picked);
    assert_eq!(totals(&mesh, "upstream_resolve", "failed"), 0);
    stop(&mesh);
}

#[test]
fn they_outlast_the_drain_of_the_mesh_until_their_own() {
    let mesh = mesh(1);
    let alone = start(&mesh, "servers = [\"127.0.0.1:9000\"]");
    assert_eq!((alone.iter().count(), view(&mesh).of_kind("upstream").count()), (1, 0));
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let keys = format!("servers = [\"localhost:1\", \"{}\"]\n{CHECKS}", server.local_addr().unwrap());
    let upstreams = start(&mesh, &keys);
    eventually("it checks", || totals(&mesh, "upstream_checks", "ok") >= 1);
    assert_eq!(view(&mesh).of_kind("upstream").count(), 1);
    let report = wait(mesh.drain(SOON));
    assert!(report.complete(), "{report:?}");
    let rounds = totals(&mesh, "upstream_checks", "ok");
    eventually("it still checks", || totals(&mesh, "upstream_checks", "ok") > rounds);
    upstreams.drain();
    eventually("it ends", || view(&mesh).of_kind("upstream").count() == 0);
    let counted = view(&mesh).totals;
    assert_eq!((counted.get("actor_exits", "upstream", "normal"), counted.family("actor_panics")), (1, 0));
    assert!(upstreams.get("app").expect("it stays").pick(now(), 0, &[]).is_ok());
    stop(&mesh);
}

/// Other settings of an upstream: whoever is there is still counted, who is down stays down, and names still lead
/// somewhere.
#[test]
fn a_changed_upstream_knows_what_it_knew() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        closed.local_addr().unwrap()
    };
    let (address, to) = (server.local_addr().unwrap(), free());
    // Checks connect as well.
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    let text = |timeout: u8, more: &str| {
        format!(
            "version = 1\n[runtime]\narbiters = 2\n\
             [[listener]]\nname = \"r\"\nlisten = \"{to}\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"localhost:{}\", \"{gone}\"]\n\
             [upstream.limits]\nconnections = 2\nconnect_timeout = \"{timeout}s\"\n{more}",
            address.port()
        )
    };
    let running = Running::start(&text(5, CHECKS));
    let parse = |text: &str| check::parse("test.toml", text, &check::Known::default()).unwrap();
    let servers = || {
        let rows = wait(running.gateway().overview()).servers;
        rows.into_iter().map(|row| (row.address, row.connections, row.healthy)).collect::<Vec<_>>()
    };
    let is_down = || servers().iter().any(|(at, _, healthy)| *at == gone.to_string() && !healthy);
    eventually("it is found down", || is_down() && servers().len() == 2);
    let mut held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = Client::to(to);
            client.echoes(b"in");
            client
        })
        .collect();
    // Reset before or after its `connect` has come back.
    let refused = || {
        let reset = TcpStream::connect(to).and_then(|mut client| client.read(&mut [0]));
        assert_eq!(reset.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    };
    refused();
    for timeout in [4, 3] {
        running.gateway().reload(parse(&text(timeout, CHECKS))).unwrap();
        assert!(is_down(), "it is not tried again: {:?}", servers());
        assert!(servers().iter().any(|(at, now, _)| *at == address.to_string() && *now == 2), "{:?}", servers());
        refused();
    }
    held.iter_mut().for_each(|client| client.echoes(b"still in"));
    running.counts("connections_closed", "r", "no_upstream", 3);
    // A place that comes free is free for the settings of now.
    drop(held.pop());
    eventually("a place is free", || servers().iter().any(|(at, now, _)| *at == address.to_string() && *now == 1));
    Client::to(to).echoes(b"in its place");
    // Without checks nobody would ever find it up.
    running.gateway().reload(parse(&text(5, ""))).unwrap();
    assert!(!is_down());
}
