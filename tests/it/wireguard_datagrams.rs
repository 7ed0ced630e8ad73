//! UDP out of tunnels: services on upstreams over UDP, flows that are bounded and forgotten, bad packets.

use std::net::{SocketAddr, UdpSocket};

use crate::gateway::Running;
use crate::probe::{SOON, eventually, view};
use crate::wireguard::{Mode, Raw, in_both, ipv4};
use crate::wireguard_gateway::{Text, inside, key_file};
use crate::wireguard_services::reload;

/// Answers every datagram with itself.
fn server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _gone = socket.send_to(&buffer[..length], from);
        }
    });
    address
}

fn start(mode: Mode, server: SocketAddr, limits: &str) -> Running {
    let more = format!(
        "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:53\"\nprotocol = \"udp\"\nupstream = \"names\"\n\
         [[upstream]]\nname = \"names\"\nservers = [\"udp://{server}\"]\n"
    );
    let text = Text::new(mode, [10, 11]).with(&more).write("127.0.0.1:0", &key_file());
    let (listener, rest) = text.split_once("[listener.wireguard]").unwrap();
    Running::start(&format!("{listener}{limits}[listener.wireguard]{rest}"))
}

/// A datagram without a checksum, as IPv4 allows.
fn datagram(from: &str, port: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + content.len()).unwrap().to_be_bytes();
    let header = [port.to_be_bytes(), 53u16.to_be_bytes(), length, [0, 0]];
    ipv4(from, "10.98.0.1", 17, &[header.as_flattened(), content].concat())
}

fn echoes(client: &mut Raw, from: &str, port: u16, content: &[u8]) {
    client.say(&datagram(from, port, content));
    let answer = std::iter::repeat_with(|| client.recv()).flatten().next().unwrap();
    let length = 28 + content.len();
    assert_eq!(answer[2..4], u16::try_from(length).unwrap().to_be_bytes());
    assert_eq!((&answer[20..22], &answer[22..24]), (&53u16.to_be_bytes()[..], &port.to_be_bytes()[..]));
    assert_eq!(&answer[28..length], content);
    assert_ne!(answer[26..28], [0, 0], "ours has a checksum");
}

fn flows(running: &Running) -> usize {
    view(running.gateway().mesh()).of_kind("udp_flow").count()
}

#[test]
fn a_service_over_udp_has_a_flow_for_each_client_and_forgets_it() {
    in_both(|mode| {
        let running = start(mode, server(), "[listener.limits]\nidle = \"2s\"\n");
        let [mut one, mut other] = [(10, "127.0.0.2"), (11, "127.0.0.3")]
            .map(|(key, from)| Raw::new(key, running.address("wg0"), from).connect());
        echoes(&mut one, &inside(10), 4000, b"what is portway?");
        echoes(&mut one, &inside(10), 4000, &[7; 1_392]);
        echoes(&mut one, &inside(10), 4000, b"");
        echoes(&mut other, &inside(11), 4000, b"the same port, another peer");
        echoes(&mut one, &inside(10), 4001, b"another port");
        assert_eq!(flows(&running), 3);
        let here = view(running.gateway().mesh());
        assert!(here.of_kind("udp_flow").all(|flow| flow.turns > 0));
        running.counts("netstack_datagrams", "wg0", "up", 5);
        running.counts("netstack_datagrams", "wg0", "down", 5);
        eventually("they are forgotten", || flows(&running) == 0);
        echoes(&mut one, &inside(10), 4000, b"and made again");
        assert_eq!(flows(&running), 1);
    });
}

#[test]
fn services_over_udp_change_while_sessions_and_other_flows_stay() {
    in_both(|mode| {
        let (names, times, key) = (server(), server(), key_file());
        let text = |second: &str| {
            let more = format!(
                "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:53\"\nprotocol = \"udp\"\nupstream = \"names\"\n\
                 {second}[[upstream]]\nname = \"names\"\nservers = [\"udp://{names}\"]\n\
                 [[upstream]]\nname = \"times\"\nservers = [\"udp://{times}\"]\n"
            );
            Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key)
        };
        let second =
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:123\"\nprotocol = \"udp\"\nupstream = \"times\"\n";
        let running = Running::start(&text(second));
        let mut client = Raw::new(10, running.address("wg0"), "127.0.0.2").connect();
        echoes(&mut client, &inside(10), 4000, b"before");
        let to_second = || {
            let mut packet = datagram(&inside(10), 4000, b"what time is it?");
            packet[22..24].copy_from_slice(&123u16.to_be_bytes());
            packet
        };
        client.say(&to_second());
        assert!(std::iter::repeat_with(|| client.recv()).flatten().next().is_some());
        let actors = || -> std::collections::BTreeSet<u64> {
            view(running.gateway().mesh()).of_kind("udp_flow").map(|flow| flow.id.number()).collect()
        };
        let before = actors();
        assert_eq!(before.len(), 2);
        assert_eq!(reload(&running, &text("")), ["wg0"]);
        eventually("the flow of the service that is gone has ended", || flows(&running) == 1);
        assert!(actors().is_subset(&before), "the other one is the same actor");
        echoes(&mut client, &inside(10), 4000, b"the same flow");
        client.say(&to_second());
        let answer = std::iter::repeat_with(|| client.recv()).flatten().next().unwrap();
        assert_eq!((answer[9], answer[20]), (1, 3), "ICMP says that nobody is there");
        assert_eq!(flows(&running), 1);
        assert_eq!(reload(&running, &text(second)), ["wg0"]);
        client.say(&to_second());
        assert!(std::iter::repeat_with(|| client.recv()).flatten().next().is_some());
        assert!(actors().intersection(&before).count() == 1 && flows(&running) == 2);
        assert_eq!(running.totals().get("wireguard_handshakes", "wg0", ""), 1, "one session all the time");
    });
}

#[test]
fn bad_datagrams_are_counted_and_a_neighbour_loses_nothing() {
    in_both(|mode| {
        let running = start(mode, server(), "");
        let mut client = Raw::new(10, running.address("wg0"), "127.0.0.2").connect();
        let mut neighbour = Raw::new(11, running.address("wg0"), "127.0.0.3").connect();
        let good = || datagram(&inside(10), 4000, b"content");
        let mut wrong_sum = good();
        wrong_sum[26] ^= 1;
        let mut too_long = good();
        too_long[24..26].copy_from_slice(&200u16.to_be_bytes());
        let mut too_short = good();
        too_short[24..26].copy_from_slice(&7u16.to_be_bytes());
        for (packet, reason, count) in
            [(wrong_sum, "inner_checksum", 1), (too_long, "inner_length", 1), (too_short, "inner_length", 2)]
        {
            client.say(&packet);
            running.counts("netstack_dropped", "wg0", reason, count);
            echoes(&mut neighbour, &inside(11), 4000, b"unharmed");
        }
        assert_eq!(flows(&running), 1, "the neighbour's alone");
        echoes(&mut client, &inside(10), 4000, b"and its own good ones pass");
    });
}

#[test]
fn a_peer_with_too_many_flows_leaves_room_for_others() {
    in_both(|mode| {
        let running = start(mode, server(), "");
        let mut greedy = Raw::new(10, running.address("wg0"), "127.0.0.2").connect();
        let mut other = Raw::new(11, running.address("wg0"), "127.0.0.3").connect();
        for port in 1_000..3_000 {
            greedy.say(&datagram(&inside(10), port, b"x"));
        }
        eventually("it has as many as it may", || flows(&running) == 1_024);
        eventually("the rest is counted", || running.totals().get("netstack_dropped", "wg0", "flows_of_peer") > 0);
        echoes(&mut other, &inside(11), 4000, b"served");
        assert_eq!(flows(&running), 1_025);
    });
}

#[test]
fn a_server_that_is_not_there_is_counted_and_found_when_it_comes() {
    in_both(|mode| {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let running = start(mode, address, "");
        let mut client = Raw::new(10, running.address("wg0"), "127.0.0.2").connect();
        // The kernel tells of one when the next is sent.
        eventually("nobody", || {
            client.say(&datagram(&inside(10), 4000, b"anybody?"));
            running.totals().get("netstack_dropped", "wg0", "unreachable") > 0
        });
        // A socket of some other test may have the port for a moment.
        let mut back = None;
        eventually("the port is free", || {
            back = UdpSocket::bind(address).ok();
            back.is_some()
        });
        let back = back.unwrap();
        back.set_read_timeout(Some(SOON)).unwrap();
        client.say(&datagram(&inside(10), 4000, b"now?"));
        let mut buffer = [0; 100];
        // Questions of before may come first.
        while back.recv_from(&mut buffer).unwrap().0 != 4 {}
    });
}
