//! Messages forwarded to a framed upstream: whole, in order, bounded both ways, and who broke the rules is named.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portway::transports::framed::{ByteOrder, Format, LengthBytes};
use portway::transports::kit::balance::Address;
use portway::transports::relay::{Frames, RelaySettings};

use crate::gateway::{self, Client};
use crate::probe::{SOON, eventually, view};
use crate::relay::{Running, full_queue, is_reset, nobody, patient, pattern};

const LONGEST: usize = 1 << 20;

fn frames() -> Frames {
    Frames {
        format: Format::new(LengthBytes::Four, ByteOrder::Big, false, LONGEST).unwrap(),
        first_message: Some(SOON),
        message_timeout: Some(SOON),
        slow_after: SOON,
    }
}

fn forwarding(servers: Vec<Address>, change: impl FnOnce(&mut RelaySettings)) -> Running {
    Running::with(servers, |settings| {
        settings.frames = Some(frames());
        change(settings);
    })
}

/// A framed server that answers each message with itself.
fn echo() -> Vec<Address> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
        }
    });
    vec![Address::Tcp(address)]
}

/// A server in the hands of the test.
fn by_hand() -> (Vec<Address>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (vec![Address::Tcp(listener.local_addr().unwrap())], listener)
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
}

fn client(running: &Running) -> Client {
    Client::to(running.address)
}

/// A client whose server, in the hands of the test otherwise, answers each message with itself.
fn beside(running: &Running, listener: &TcpListener) -> Client {
    let (mut to, served) = (client(running), listener.accept().unwrap().0);
    std::thread::spawn(move || std::io::copy(&mut &served, &mut &served));
    to.echoes(b"in");
    to
}

/// A client that is in, on another connection, and loses nothing.
fn neighbour(running: &Running) -> Client {
    let mut neighbour = client(running);
    neighbour.echoes(b"in");
    neighbour
}

#[test]
fn messages_of_all_sizes_come_whole_and_in_order() {
    let running = forwarding(echo(), |_| {});
    let mut to = client(&running);
    let sizes: Vec<usize> = (0..2_000).map(|n| (n * 37) % 700).chain([0, 1, 65_535, 65_536, 70_000, LONGEST]).collect();
    let mut writer = to.0.try_clone().unwrap();
    let sent: Vec<u8> = sizes.iter().flat_map(|size| frame(&pattern(*size))).collect();
    let writing = std::thread::spawn(move || {
        // In pieces that cut through lengths and bodies.
        for piece in sent.chunks(1_013) {
            writer.write_all(piece).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    for size in &sizes {
        assert!(to.recv() == pattern(*size), "of {size} bytes");
    }
    assert!(to.rest().is_empty());
    writing.join().unwrap();
    running.closed("finished");
    let totals = running.totals();
    assert_eq!(totals.get("messages_in", "relay", ""), sizes.len() as u64);
    assert_eq!(totals.get("messages_out", "relay", ""), sizes.len() as u64);
    running.is_empty();
}

#[test]
fn fifty_clients_are_fifty_actors_with_turns_and_then_none() {
    let running = forwarding(echo(), |_| {});
    let mut clients: Vec<Client> = (0..50).map(|_| neighbour(&running)).collect();
    let actors =
        || view(&running.mesh).of_kind("forward").map(|actor| (actor.id, actor.arbiter, actor.turns)).collect();
    let before: Vec<_> = actors();
    assert_eq!(before.len(), 50);
    assert!((0..2).all(|arbiter| before.iter().any(|(_, at, _)| *at == arbiter)), "on both arbiters");
    clients.iter_mut().for_each(|client| client.echoes(b"more"));
    let after: Vec<_> = actors();
    for (id, arbiter, turns) in before {
        let same = after.iter().find(|(other, ..)| *other == id).expect("it lives");
        assert_eq!(same.1, arbiter, "pinned");
        assert!(same.2 > turns, "it had turns");
    }
    drop(clients);
    running.is_empty();
    running.counts("connections_closed", "relay", "finished", 50);
}

#[test]
fn an_upstream_gets_no_part_of_a_message() {
    let (servers, listener) = by_hand();
    let running = forwarding(servers, |_| {});
    let mut to = client(&running);
    to.0.write_all(&frame(b"first")).unwrap();
    to.0.write_all(&100_u32.to_be_bytes()).unwrap();
    to.0.write_all(&[1; 99]).unwrap();
    let mut served = patient(listener.accept().unwrap().0);
    let mut got = [0; 9];
    served.read_exact(&mut got).unwrap();
    assert_eq!(got, frame(b"first")[..]);
    eventually("the rest waits here", || running.held() >= 103);
    served.set_nonblocking(true).unwrap();
    assert!(served.read(&mut got).is_err(), "not before it is whole");
    served.set_nonblocking(false).unwrap();
    to.0.write_all(&[1]).unwrap();
    let mut got = [0; 104];
    served.read_exact(&mut got).unwrap();
    assert_eq!(got[4..], [1; 100]);
}

#[test]
fn an_upstream_that_refuses_or_hangs_is_passed_over_and_named() {
    let ((refusing, _kept), (hanging, _queue)) = (nobody(), full_queue());
    let quick = |settings: &mut RelaySettings| settings.connect_timeout = SOON / 10;
    for (bad, reason) in [(refusing, "connect_refused"), (hanging, "connect_timeout")] {
        // Servers take turns, and there is one attempt: the neighbour gets the good one.
        let running = forwarding(vec![echo().remove(0), bad.clone()], |settings| {
            quick(settings);
            settings.attempts = 1;
        });
        let mut beside = neighbour(&running);
        running.resets_a_client();
        running.closed(reason);
        running.counts("upstream_failures", "app", reason, 1);
        assert_eq!(running.totals().family("upstream_failures"), 1);
        beside.echoes(b"lost nothing");
        drop(beside);
        running.is_empty();
        // The next one is tried.
        let running = forwarding(vec![bad, echo().remove(0)], quick);
        let (mut one, mut two) = (neighbour(&running), neighbour(&running));
        one.echoes(b"there is one");
        two.echoes(b"for each");
        assert!(running.totals().get("upstream_failures", "app", reason) >= 1);
    }
}

#[test]
fn an_upstream_that_dies_inside_a_message_gives_the_client_no_half_of_it() {
    let (servers, listener) = by_hand();
    let running = forwarding(servers, |_| {});
    let mut beside = beside(&running, &listener);
    for reset in [false, true] {
        let mut to = client(&running);
        let mut served = patient(listener.accept().unwrap().0);
        served.write_all(&frame(b"whole")).unwrap();
        assert_eq!(to.recv(), b"whole");
        served.write_all(&frame(b"the half of this is lost")[..15]).unwrap();
        eventually("it has come", || running.held() >= 15);
        if reset {
            socket2::SockRef::from(&served).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(served);
        is_reset(&mut to.0);
        let reason = if reset { "upstream_reset" } else { "upstream_eof_in_message" };
        running.counts("connections_closed", "relay", reason, 1);
        running.counts("upstream_failures", "app", reason, 1);
    }
    beside.echoes(b"the neighbour lost nothing");
}

#[test]
fn an_upstream_that_stops_inside_a_message_or_announces_too_much() {
    let (servers, listener) = by_hand();
    let running = forwarding(servers, |settings| {
        settings.frames.as_mut().unwrap().message_timeout = Some(SOON / 10);
    });
    let mut beside = beside(&running, &listener);
    let mut to = client(&running);
    let mut served = patient(listener.accept().unwrap().0);
    served.write_all(&frame(b"hello")[..6]).unwrap();
    is_reset(&mut to.0);
    running.counts("connections_closed", "relay", "upstream_message_timeout", 1);
    running.counts("upstream_failures", "app", "upstream_message_timeout", 1);
    let mut to = client(&running);
    let mut served = patient(listener.accept().unwrap().0);
    served.write_all(&[&frame(b"before")[..], &u32::MAX.to_be_bytes()].concat()).unwrap();
    assert_eq!(to.recv(), b"before");
    is_reset(&mut to.0);
    running.counts("connections_closed", "relay", "upstream_frame_too_large", 1);
    running.counts("upstream_failures", "app", "upstream_frame_too_large", 1);
    beside.echoes(b"the neighbour lost nothing");
    drop(beside);
    running.is_empty();
}

#[test]
fn a_client_that_breaks_the_rules_is_named_and_answered_what_came_before() {
    let running = forwarding(echo(), |settings| {
        let frames = settings.frames.as_mut().unwrap();
        frames.first_message = Some(SOON / 10);
        frames.message_timeout = Some(SOON / 10);
    });
    let mut beside = neighbour(&running);
    let mut to = client(&running);
    to.0.write_all(&[&frame(b"answer me")[..], &u32::MAX.to_be_bytes()].concat()).unwrap();
    assert_eq!(to.recv(), b"answer me");
    assert!(to.rest().is_empty());
    running.counts("connections_closed", "relay", "frame_too_large", 1);
    let mut to = client(&running);
    to.0.write_all(&[&frame(b"me too")[..], &[0, 0, 0]].concat()).unwrap();
    to.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to.recv(), b"me too");
    assert!(to.rest().is_empty());
    running.counts("connections_closed", "relay", "eof_in_message", 1);
    for (bytes, reason) in
        [(&b""[..], "first_message_timeout"), (&[&frame(b"one")[..], &[0, 0, 1]].concat(), "message_timeout")]
    {
        let mut to = client(&running);
        to.0.write_all(bytes).unwrap();
        to.rest();
        running.counts("connections_closed", "relay", reason, 1);
    }
    beside.echoes(b"lost nothing");
    drop(beside);
    running.is_empty();
}

#[test]
fn a_slow_client_holds_one_read_and_is_given_up_at_last() {
    let (servers, listener) = by_hand();
    let running = forwarding(servers, |settings| {
        settings.frames.as_mut().unwrap().slow_after = Duration::from_millis(700);
    });
    let mut beside = beside(&running, &listener);
    let to = client(&running);
    let mut served = patient(listener.accept().unwrap().0);
    served.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let message = frame(&pattern(100_000));
    let mut offered = 0;
    while let Ok(count) = served.write(&message) {
        offered += count;
        assert!(offered < 100 << 20, "it stops being read");
    }
    assert!(running.held() <= LONGEST + (128 << 10), "{}", running.held());
    running.closed("slow_reader");
    beside.echoes(b"the neighbour lost nothing");
    drop((to, beside));
    running.is_empty();
}

#[test]
fn an_upstream_that_takes_nothing_stops_the_client_and_is_given_up_at_last() {
    let (servers, listener) = by_hand();
    let running = forwarding(servers, |settings| {
        settings.frames.as_mut().unwrap().slow_after = Duration::from_millis(700);
    });
    let mut beside = beside(&running, &listener);
    let mut to = client(&running);
    let _served = listener.accept().unwrap();
    to.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let message = frame(&pattern(100_000));
    let mut offered = 0;
    while let Ok(count) = to.0.write(&message) {
        offered += count;
        assert!(offered < 100 << 20, "it stops being read");
    }
    assert!(running.held() <= LONGEST + (128 << 10), "{}", running.held());
    running.closed("upstream_slow");
    running.counts("upstream_failures", "app", "upstream_slow", 1);
    beside.echoes(b"the neighbour lost nothing");
    drop(beside);
    running.is_empty();
}

#[test]
fn whoever_waits_for_a_while_gets_everything() {
    let running = forwarding(echo(), |_| {});
    let mut to = client(&running);
    let mut writer = to.0.try_clone().unwrap();
    let (enough, all) = (Arc::new(AtomicBool::new(false)), Arc::new(pattern(200_000)));
    let body = |all: &[u8], count: usize| all[count % 1_000..][..100_000].to_vec();
    let (told, said) = (enough.clone(), all.clone());
    let writing = std::thread::spawn(move || {
        let mut count = 0;
        while !told.load(Ordering::Relaxed) {
            writer.write_all(&frame(&body(&said, count))).unwrap();
            count += 1;
        }
        writer.write_all(&frame(b"end")).unwrap();
        count
    });
    // Then everything on the way is full, in both directions, however much the kernel takes.
    eventually("it stands", || running.held() > 0);
    std::thread::sleep(Duration::from_millis(200));
    enough.store(true, Ordering::Relaxed);
    let mut count = 0;
    loop {
        let got = to.recv();
        if got == b"end" {
            break;
        }
        assert!(got == body(&all, count), "message {count}");
        count += 1;
    }
    assert_eq!(writing.join().unwrap(), count);
    drop(to);
    running.is_empty();
}

#[test]
fn a_drain_lets_both_sides_finish() {
    let running = forwarding(echo(), |_| {});
    let mut to = neighbour(&running);
    let mesh = running.mesh.clone();
    let draining = std::thread::spawn(move || crate::probe::wait(async move { mesh.drain(SOON).await }));
    eventually("nobody new comes in", || TcpStream::connect(running.address).is_err());
    to.echoes(b"last words");
    to.0.shutdown(Shutdown::Write).unwrap();
    assert!(to.rest().is_empty());
    assert!(draining.join().unwrap().complete());
}

#[test]
fn the_gateway_forwards_and_a_reload_moves_new_clients() {
    let config = |server: &str| {
        format!(
            "version = 1\n[runtime]\narbiters = 1\n[[upstream]]\nname = \"app\"\nservers = [\"{server}\"]\n\
             [[listener]]\nname = \"front\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"forward\"\n\
             upstream = \"app\"\n[[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\n\
             service = \"echo\"\n"
        )
    };
    let servers = echo();
    let running = gateway::Running::start(&config(&servers[0].to_string()));
    let front = running.address("front");
    let mut old = Client::to(front);
    old.echoes(b"through");
    assert_eq!(view(running.gateway().mesh()).of_kind("forward").count(), 1);
    let (_refusing, kept) = nobody();
    let gone = kept.local_addr().unwrap().as_socket().unwrap().to_string();
    let new = portway::gateway::check::parse("t.toml", &config(&gone), &Default::default()).unwrap();
    let done = running.gateway().reload(new).unwrap();
    assert_eq!((done.changed, done.kept), (vec!["front".to_owned()], vec!["echo".to_owned()]));
    old.echoes(b"those inside stay where they are");
    // It is reset at once, perhaps before it knows that it was connected.
    let _reset = TcpStream::connect(running.address("front"));
    running.counts("connections_closed", "front", "connect_refused", 1);
}
