//! What bad input to a WireGuard interface costs: itself, counted under its reason, and nobody else.

use std::net::UdpSocket;
use std::time::Duration;

use portway::transports::netstack::connect;
use portway::transports::wireguard::{DROPPED, DeviceMsg, PeerSettings, SecretKey};

use crate::probe::{SOON, eventually, eventually_within, stop, view, wait};
use crate::wireguard::{Raw, dropped, drops, echoes, in_both, ipv4, peer, ping, rewrite_checksum, syn, two_with};

#[test]
fn random_truncated_and_oversized_datagrams() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, client) = two_with(&mesh, mode, Vec::new(), |_| {});
        echoes(&client.stack, "10.98.0.1:7001", b"before");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let all = || {
            view(&mesh)
                .totals
                .iter()
                .filter(|(n, _)| n.family == DROPPED && &*n.scope == "server")
                .map(|(_, v)| v)
                .sum::<u64>()
        };
        let mut sent = 0;
        for round in 0..200u64 {
            for _ in 0..1_000 {
                let length = (next() % 300) as usize + 1;
                let mut datagram: Vec<u8> = (0..length).map(|_| (next() >> 24) as u8).collect();
                if let Some(head) = datagram.get_mut(..4) {
                    head.copy_from_slice(&((next() % 6) as u32).to_le_bytes());
                }
                socket.send_to(&datagram, server.address).unwrap();
                sent += 1;
            }
            // So that the kernel's buffer drops none.
            eventually("all are counted", || all() == sent);
            if round % 50 == 0 {
                echoes(&client.stack, "10.98.0.1:7001", &vec![3; 50_000]);
            }
        }
        assert_eq!(sent, 200_000);
        socket.send_to(&vec![4; 60_000], server.address).unwrap();
        socket.send_to(&[], server.address).unwrap();
        eventually("the oversized one is counted", || all() == sent + 1);
        echoes(&client.stack, "10.98.0.1:7001", b"after");
        stop(&mesh);
    });
}

#[test]
fn data_for_an_index_nobody_has() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, client) = two_with(&mesh, mode, Vec::new(), |_| {});
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut data = vec![0; 64];
        data[0] = 4;
        data[4..8].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
        socket.send_to(&data, server.address).unwrap();
        drops(&mesh, DROPPED, "unknown_index", 1);
        echoes(&client.stack, "10.98.0.1:7001", b"after");
        stop(&mesh);
    });
}

#[test]
fn replayed_data_and_replayed_handshakes_also_after_the_session_is_gone() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let third = peer(3, "10.98.0.3");
        let (server, client) = two_with(&mesh, mode, vec![third.clone()], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1");
        let initiation = raw.initiation();
        raw.send(&initiation);
        assert!(raw.recv().is_none());
        let sealed = raw.seal(&ping("10.98.0.3", "10.98.0.1"));
        raw.send(&sealed);
        raw.send(&sealed);
        drops(&mesh, DROPPED, "replayed", 1);
        raw.send(&initiation);
        drops(&mesh, DROPPED, "old_initiation", 1);
        // Another preshared key makes the session anew: its engine knows no timestamps.
        let anew = PeerSettings { preshared_key: Some(SecretKey::new([9; 32])), ..third.clone() };
        server.interface.device().tell(DeviceMsg::Set(Box::new(anew))).unwrap();
        server.interface.device().tell(DeviceMsg::Set(Box::new(third))).unwrap();
        eventually("the session is gone", || server.peers().iter().all(|peer| peer.arbiter.is_none()));
        raw.send(&initiation);
        drops(&mesh, DROPPED, "old_initiation", 2);
        assert!(server.peers().iter().all(|peer| peer.arbiter.is_none()), "no session was made for it");
        echoes(&client.stack, "10.98.0.1:7001", b"after");
        stop(&mesh);
    });
}

#[test]
fn a_peer_sends_from_addresses_it_does_not_own() {
    in_both(|mode| {
        let mesh = mode.mesh();
        // Its network holds the other peer's address, which is more specific.
        let (server, client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.0/24")], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        raw.ping("10.98.0.3");
        raw.say(&ping("10.98.0.2", "10.98.0.1"));
        drops(&mesh, DROPPED, "source_not_allowed", 1);
        raw.say(&ping("192.0.2.1", "10.98.0.1"));
        drops(&mesh, DROPPED, "source_not_allowed", 2);
        raw.ping("10.98.0.99");
        echoes(&client.stack, "10.98.0.1:7001", b"after");
        stop(&mesh);
    });
}

#[test]
fn inner_packets_with_a_wrong_length_or_checksum_and_fragments() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        let good = ping("10.98.0.3", "10.98.0.1");
        raw.say(&good[..good.len() - 4]);
        drops(&mesh, DROPPED, "inner", 1);
        let mut short = good.clone();
        short[2..4].copy_from_slice(&10u16.to_be_bytes());
        raw.say(&short);
        drops(&mesh, DROPPED, "inner_header", 1);
        let mut wrong = good.clone();
        wrong[10] ^= 1;
        raw.say(&wrong);
        drops(&mesh, DROPPED, "inner_checksum", 1);
        let mut fragment = good.clone();
        fragment[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
        rewrite_checksum(&mut fragment);
        raw.say(&fragment);
        drops(&mesh, "netstack_dropped", "fragment", 1);
        raw.say(&ipv4("10.98.0.3", "203.0.113.1", 17, &[0; 8]));
        drops(&mesh, "netstack_dropped", "not_ours", 1);
        raw.ping("10.98.0.3");
        echoes(&client.stack, "10.98.0.1:7001", b"after");
        stop(&mesh);
    });
}

#[test]
fn ten_thousand_syns_of_one_peer() {
    in_both(|mode| {
        let mesh = mode.mesh();
        let (server, client) = two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], |_| {});
        let mut raw = Raw::new(3, server.address, "127.0.0.1").connect();
        let held = || {
            let refused = dropped(&mesh, "netstack_dropped", "half_open_of_peer");
            (refused, view(&mesh).totals.get("wireguard_packets_in", "server", ""))
        };
        let given_up = || dropped(&mesh, "netstack_dropped", "half_open_too_long");
        let mut neighbour = echoes(&client.stack, "10.98.0.1:7001", b"before");
        let before = held().1;
        for port in 0..10_000u16 {
            raw.say(&syn("10.98.0.3", 1_000 + port));
            if port % 500 == 499 {
                eventually("they are let in", || held().1 > before + u64::from(port));
            }
        }
        // 64 are half open at most; as connections of theirs are given up, as many more may come.
        eventually("the rest is refused", || held().0 + given_up() >= 10_000 - 64);
        assert!(held().0 <= 10_000 - 64, "no more is refused than came");
        echoes(&client.stack, "10.98.0.1:7001", &vec![1; 100_000]);
        wait(async {
            neighbour.send(b"still here").await.unwrap();
            assert_eq!(neighbour.recv().await.unwrap().unwrap(), &b"still here"[..]);
        });
        // In the end each of them has had one of two answers, and is counted once.
        eventually_within(SOON * 3, "the last are given up", || held().0 + given_up() == 10_000);
        stop(&mesh);
    });
}

#[test]
fn a_flood_of_handshakes_from_one_source() {
    in_both(|mode| {
        let mesh = mode.mesh();
        // So that no source's own allowance, however late the second is over, is what asks others for cookies.
        let (server, client) =
            two_with(&mesh, mode, vec![peer(3, "10.98.0.3")], |settings| settings.handshakes = 64 << 10);
        let mut neighbour = echoes(&client.stack, "10.98.0.1:7001", b"before");
        let mut flooder = Raw::new(9, server.address, "127.0.0.9");
        let initiation = flooder.initiation();
        let counted = || dropped(&mesh, DROPPED, "source_limit") + dropped(&mesh, DROPPED, "unknown_peer");
        for n in 1..=10_000 {
            flooder.send(&initiation);
            if n % 500 == 0 {
                eventually("they are judged", || counted() >= n);
            }
        }
        assert!(dropped(&mesh, DROPPED, "source_limit") > 9_000);
        // Another source gets in without being asked for a cookie.
        Raw::new(3, server.address, "127.0.0.1").connect().ping("10.98.0.3");
        assert_eq!(view(&mesh).totals.get("wireguard_cookies", "server", ""), 0);
        wait(async {
            neighbour.send(&vec![2; 100_000]).await.unwrap();
            assert_eq!(neighbour.recv().await.unwrap().unwrap().len(), 100_000);
        });
        stop(&mesh);
    });
}

#[test]
fn a_peer_that_no_datagram_can_be_sent_to() {
    in_both(|mode| {
        let mesh = mode.mesh();
        // From an address of loopback the system sends nothing elsewhere.
        let away = PeerSettings { endpoint: Some("192.0.2.1:9".parse().unwrap()), ..peer(3, "10.98.0.3") };
        let (server, client) = two_with(&mesh, mode, vec![away], |_| {});
        let mut neighbour = echoes(&client.stack, "10.98.0.1:7001", b"before");
        let nobody = connect(&server.stack, "10.98.0.3:7001".parse().unwrap(), Duration::from_millis(100));
        assert!(wait(nobody).is_err());
        let errors = || view(&mesh).totals.get("wireguard_send_errors", "server", "");
        eventually("the handshake is counted", || errors() >= 1);
        wait(async {
            neighbour.send(&vec![2; 100_000]).await.unwrap();
            assert_eq!(neighbour.recv().await.unwrap().unwrap().len(), 100_000);
        });
        assert_eq!(errors(), 1, "the next comes after five seconds");
        stop(&mesh);
    });
}
