//! Relayed streams whose bytes the kernel moves through pipes: nothing but the CPU time may differ.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use portway::transports::kit::balance::Address;
use portway::transports::relay::{Header, ProxyVersion};

use crate::probe::{SOON, eventually, wait};
use crate::relay::{
    ECHO, FLOOD, Neighbour, Running, SINK, Server, UnixServer, goes_round, is_reset, patient, pattern, rest, writing,
};

/// More than any buffer on the way takes.
const MUCH: usize = 24 << 20;

fn spliced(running: &Running) -> u64 {
    running.totals().get("relay_bytes_spliced", "relay", "")
}

/// A client and its server, both in the hands of the test, and a neighbour beside them.
fn joined() -> (Running, Neighbour, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = Running::to(vec![Address::Tcp(listener.local_addr().unwrap())]);
    let neighbour = running.beside(&listener);
    let client = running.client();
    let served = patient(listener.accept().unwrap().0);
    (running, neighbour, client, served)
}

/// A client that takes a little of what its server floods it with, and then nothing: some of it is in a pipe.
fn stalls(running: &Running, takes: usize) -> TcpStream {
    let mut client = running.asks(FLOOD);
    client.read_exact(&mut vec![0; takes]).unwrap();
    eventually("something is in a pipe", || running.held() > 0);
    client
}

#[test]
fn most_of_a_large_stream_is_spliced_and_arrives_as_it_was_sent() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    goes_round(&running.asks(ECHO), &pattern(MUCH));
    running.closed("finished");
    assert!(spliced(&running) > MUCH as u64, "{} of twice {MUCH}", spliced(&running));
    neighbour.works();
    drop(neighbour);
    running.is_empty();
    let moved =
        running.totals().get("relay_bytes_up", "relay", "") + running.totals().get("relay_bytes_down", "relay", "");
    assert_eq!(moved, 2 * MUCH as u64 + 22, "every byte is counted once, the neighbour's and the commands' too");
}

#[test]
fn few_bytes_are_not_spliced() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    // More than 64 KiB in all, but in small pieces.
    (0..20_000).for_each(|_| neighbour.works());
    goes_round(&running.asks(ECHO), &pattern(60_000));
    assert_eq!(spliced(&running), 0);
}

#[test]
fn a_unix_socket_is_spliced_too_behind_a_proxy_header() {
    let (address, server) = UnixServer::start();
    let beside = TcpListener::bind("127.0.0.1:0").unwrap();
    // Servers take turns: the neighbour has the first.
    let servers = vec![Address::Tcp(beside.local_addr().unwrap()), address];
    let running = Running::with(servers, |settings| settings.proxy_out = Some(ProxyVersion::V2));
    let header = |client: &TcpStream| {
        let (source, destination) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        Header::Proxied { source, destination }.encode(ProxyVersion::V2)
    };
    let mut neighbour = running.client();
    let mut beside = patient(beside.accept().unwrap().0);
    let mut named = vec![0; header(&neighbour).len()];
    beside.read_exact(&mut named).unwrap();
    assert_eq!(named, header(&neighbour));
    let mut works = || {
        let mut got = [0; 5];
        neighbour.write_all(b"hello").unwrap();
        beside.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    };
    works();
    let bytes = pattern(MUCH);
    let client = running.client();
    let expected = [&header(&client)[..], &bytes].concat();
    let writing = writing(&client, &bytes);
    let got = rest(&client);
    writing.join().unwrap();
    drop(server.served());
    assert!(got == expected);
    running.closed("finished");
    works();
    assert!(spliced(&running) > MUCH as u64, "{}", spliced(&running));
    let up = || running.totals().get("relay_bytes_up", "relay", "");
    eventually("all is counted", || up() >= MUCH as u64 + 10);
    assert_eq!(up(), MUCH as u64 + 10, "headers are not counted");
}

#[test]
fn a_pipe_that_cannot_be_emptied_is_leased_and_holds_one_piece() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    // The server floods, the client takes a little and then nothing.
    let mut client = stalls(&running, 4 << 20);
    let mut before = 0;
    eventually("the flood stands still, and what stands in the pipe is leased", || {
        let now = running.totals().get("relay_bytes_down", "relay", "");
        let held = running.held();
        assert!(held <= 256 << 10, "{held}");
        std::thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut before, now) == now && held > 0 && running.budget.used() >= held
    });
    assert!(spliced(&running) > 0);
    neighbour.works();
    // It goes on where it stood, and its end ends the server's.
    client.read_exact(&mut vec![0; 8 << 20]).unwrap();
    drop(client);
    server.fate(FLOOD);
    running.closed("client_reset");
    drop(neighbour);
    running.is_empty();
}

#[test]
fn a_half_close_behind_a_full_pipe_waits_for_it() {
    let (running, mut neighbour, client, mut served) = joined();
    let bytes = pattern(MUCH);
    let writing = writing(&client, &bytes);
    // Some of it is taken, the rest stands in the pipe and in the sockets until the sender has long been waiting.
    let mut got = vec![0; 4 << 20];
    served.read_exact(&mut got).unwrap();
    eventually("it stands", || running.held() > 0);
    neighbour.works();
    served.write_all(b"answer").unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&client), b"answer", "the other direction ends on its own");
    served.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == bytes && spliced(&running) > 0);
    running.closed("finished");
    neighbour.works();
    drop(neighbour);
    running.is_empty();
}

#[test]
fn a_reset_over_a_full_pipe_is_passed_on_and_the_pipe_is_not_used_again() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    for round in 1..=20 {
        let client = stalls(&running, 2 << 20);
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        server.fate(FLOOD);
        running.counts("connections_closed", "relay", "client_reset", round);
    }
    // Whoever gets the next pipe finds nothing of others in it.
    goes_round(&running.asks(ECHO), &pattern(MUCH));
    neighbour.works();
    drop(neighbour);
    running.is_empty();
}

#[test]
fn an_upstream_that_resets_under_a_full_pipe() {
    let (running, mut neighbour, mut client, mut served) = joined();
    client.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let reading = std::thread::spawn(move || {
        served.read_exact(&mut vec![0; 4 << 20]).unwrap();
        served
    });
    while client.write(&[7; 65_536]).is_ok() {}
    let served = reading.join().unwrap();
    while client.write(&[7; 65_536]).is_ok() {}
    assert!(running.held() > 0 && spliced(&running) > 0);
    neighbour.works();
    socket2::SockRef::from(&served).set_linger(Some(Duration::ZERO)).unwrap();
    drop(served);
    is_reset(&mut client);
    running.closed("upstream_reset");
    running.counts("upstream_failures", "app", "upstream_reset", 1);
    assert_eq!(running.totals().family("upstream_failures"), 1);
    neighbour.works();
    drop(neighbour);
    running.is_empty();
}

#[test]
fn the_idle_limit_cuts_a_stream_that_stands_in_a_pipe() {
    let server = Server::start();
    let running = Running::with(server.servers(), |settings| settings.idle = Some(Duration::from_millis(2_500)));
    let mut neighbour = running.neighbour();
    let _client = stalls(&running, 4 << 20);
    // Who is not idle stays.
    eventually("it is cut", || {
        neighbour.works();
        running.totals().family("connections_closed") > 0
    });
    running.closed("idle");
    server.fate(FLOOD);
    neighbour.works();
    drop(neighbour);
    running.is_empty();
}

/// splice stops in front of urgent data, as if there were nothing to read.
#[test]
fn urgent_data_does_not_stop_a_spliced_stream() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    let mut client = running.asks(SINK);
    let piece = [5; 64 << 10];
    for n in 0..300 {
        client.write_all(&piece).unwrap();
        if n % 10 == 9 {
            assert_eq!(socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap(), 1);
            neighbour.works();
        }
    }
    client.shutdown(Shutdown::Write).unwrap();
    // Urgent bytes are not part of the stream for who does not ask for them.
    let got = server.fate(SINK);
    assert!((300 * 65_536..=300 * 65_536 + 30).contains(&got), "{got}");
    running.closed("finished");
    assert!(spliced(&running) > 0);
    neighbour.works();
}

/// Both ends of a stall at once: neither side reads, both have sent all they could.
#[test]
fn both_sides_that_stall_hold_one_piece_each() {
    let (running, mut neighbour, mut client, mut served) = joined();
    let give = |stream: &mut TcpStream| {
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut sent = 0;
        while let Ok(count) = stream.write(&[9; 65_536]) {
            sent += count;
        }
        sent
    };
    let (mut up, mut down) = (0, 0);
    for _ in 0..3 {
        up += give(&mut client);
        down += give(&mut served);
        for stream in [&mut client, &mut served] {
            stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
        }
    }
    assert!(running.held() <= 512 << 10, "{}", running.held());
    neighbour.works();
    client.shutdown(Shutdown::Write).unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    let reading = std::thread::spawn(move || rest(&served).len());
    assert_eq!(rest(&client).len() + (3 << 20), down);
    assert_eq!(reading.join().unwrap() + (3 << 20), up);
    running.closed("finished");
    neighbour.works();
    drop(neighbour);
    running.is_empty();
}

/// What stands in a pipe when a drain begins is delivered, with all that comes after it, in either direction.
#[test]
fn a_drain_with_bytes_in_a_pipe_delivers_them() {
    for from_client in [true, false] {
        let (running, mut neighbour, client, served) = joined();
        let (sender, mut taker) = if from_client { (client, served) } else { (served, client) };
        let bytes = pattern(MUCH);
        let writing = writing(&sender, &bytes);
        let mut got = vec![0; 4 << 20];
        taker.read_exact(&mut got).unwrap();
        eventually("something is in a pipe", || running.held() > 0);
        assert!(spliced(&running) > 0);
        let mesh = running.mesh.clone();
        let draining = std::thread::spawn(move || wait(async move { mesh.drain(SOON * 3).await }));
        eventually("nobody new comes in", || TcpStream::connect(running.address).is_err());
        assert!(running.held() > 0, "it is still there");
        neighbour.works();
        taker.write_all(b"answer").unwrap();
        taker.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&sender), b"answer");
        taker.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == bytes, "{} of {MUCH} bytes", got.len());
        neighbour.works();
        drop(neighbour);
        let report = draining.join().unwrap();
        assert!(report.complete(), "{report:?}");
    }
}

/// A drain whose time is up over a full pipe cuts the stream, and says so; the client sees a reset and no orderly end.
#[test]
fn a_drain_does_not_wait_for_a_pipe_beyond_its_deadline() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    let mut client = stalls(&running, 4 << 20);
    let mesh = running.mesh.clone();
    let draining = std::thread::spawn(move || wait(async move { mesh.drain(SOON / 10).await }));
    eventually("nobody new comes in", || TcpStream::connect(running.address).is_err());
    // Who ends in time loses nothing.
    neighbour.works();
    drop(neighbour);
    let report = draining.join().unwrap();
    assert!(!report.complete(), "{report:?}");
    is_reset(&mut client);
    server.fate(FLOOD);
    running.counts("connections_closed", "relay", "drain_deadline", 1);
    assert_eq!(running.budget.used(), 0);
}
