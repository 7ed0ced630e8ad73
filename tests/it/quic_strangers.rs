//! What is no connection of ours: random bytes, cut headers, tokens of others, floods, replays. Each under its own
//! counter, raised by exactly one, while a neighbour loses nothing.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use portway::transports::quic::{ClientSettings, Connection, Priority, QuicClient, RetryMode, ServerSettings, Who};
use quinn_udp::{Transmit, UdpSocketState};

use crate::probe::{SOON, eventually, now, wait};
use crate::quic::{Pair, echo, round_trip};
use crate::quic_moving::Translator;

/// A client's first packet as far as anybody can read it; what follows is noise.
pub(crate) fn initial(dcid: &[u8], token: &[u8], length: usize) -> Vec<u8> {
    let mut packet = vec![0xc0, 0, 0, 0, 1, dcid.len() as u8];
    packet.extend(dcid);
    packet.extend([8, 1, 2, 3, 4, 5, 6, 7, 8]);
    packet.extend((0x4000 | token.len() as u16).to_be_bytes());
    packet.extend(token);
    let rest = length.saturating_sub(packet.len() + 2);
    packet.extend((0x4000 | rest as u16).to_be_bytes());
    packet.resize(length, 0x5a);
    packet
}

struct Stranger {
    socket: UdpSocket,
    pair: Pair,
    neighbour: Connection,
}

impl Stranger {
    fn new(arbiters: usize, change: impl FnOnce(&mut ServerSettings)) -> Self {
        let pair = Pair::with(arbiters, "127.0.0.1:0", echo(), change, |_| ());
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        socket.connect(pair.address()).expect("connected");
        let neighbour = wait(pair.connect());
        Self { socket, pair, neighbour }
    }

    fn send(&self, packet: &[u8]) {
        self.socket.send(packet).expect("sent");
    }

    fn answer(&self) -> Vec<u8> {
        let mut buffer = vec![0; 2_000];
        let length = self.socket.recv(&mut buffer).expect("an answer");
        buffer.truncate(length);
        buffer
    }

    /// The counter rises by one, nothing else of its family does, and the neighbour goes on.
    fn raises(&self, family: &str, reason: &str, act: impl FnOnce()) {
        let sum = || {
            let view = crate::probe::view(&self.pair.mesh);
            (view.totals.get(family, "q", reason), view.totals.family(family))
        };
        let before = sum();
        act();
        eventually(reason, || sum().0 > before.0);
        wait(round_trip(&self.neighbour, Bytes::from(vec![9; 50_000])));
        assert_eq!(sum(), (before.0 + 1, before.1 + 1), "{family} {reason}");
    }

    fn end(self) {
        drop(self.neighbour);
        self.pair.end();
    }
}

#[test]
fn each_kind_of_garbage_has_its_counter() {
    let stranger = Stranger::new(2, |_| ());
    let dropped = "quic_packets_dropped";
    stranger.raises(dropped, "not_quic", || stranger.send(&[0; 50]));
    stranger.raises(dropped, "truncated", || stranger.send(&[0x40; 10]));
    stranger.raises(dropped, "truncated", || stranger.send(&initial(&[7; 8], &[], 1_200)[..12]));
    stranger.raises(dropped, "long_id", || stranger.send(&initial(&[7; 21], &[], 1_200)));
    stranger.raises(dropped, "short_initial", || stranger.send(&initial(&[7; 8], &[], 1_199)));
    stranger.raises(dropped, "short_id", || stranger.send(&initial(&[7; 7], &[], 1_200)));
    let mut handshake = initial(&[7; 16], &[], 1_200);
    handshake[0] = 0xe0;
    stranger.raises(dropped, "unknown_connection", || stranger.send(&handshake));
    assert_eq!(stranger.pair.counter("quic_connections_opened", "q", ""), 1, "the neighbour's alone");
    stranger.end();
}

#[test]
fn random_datagrams_are_dropped_and_counted_one_by_one() {
    let stranger = Stranger::new(2, |_| ());
    let dropped = || crate::probe::view(&stranger.pair.mesh).totals.family("quic_packets_dropped");
    let before = dropped();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        // xorshift64*: the same datagrams each time.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    for round in 1..=40_u64 {
        for _ in 0..50 {
            let length = 1 + random() as usize % 1_400;
            let datagram: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            stranger.send(&datagram);
        }
        // In pieces, so that the socket has room for all of them.
        eventually("all have come", || dropped() >= before + round * 50);
    }
    wait(round_trip(&stranger.neighbour, Bytes::from(vec![9; 50_000])));
    assert_eq!(dropped(), before + 2_000);
    assert_eq!(stranger.pair.counter("quic_connections_opened", "q", ""), 1, "the neighbour's alone");
    stranger.end();
}

/// What the kernel has merged is cut again where the connection changes: each packet is counted for itself.
#[test]
fn a_train_of_many_connections_is_cut_into_its_packets() {
    let stranger = Stranger::new(2, |_| ());
    let state = UdpSocketState::new((&stranger.socket).into()).expect("a socket");
    let dropped = |reason: &str| stranger.pair.counter("quic_packets_dropped", "q", reason);
    for round in 1..=20_u64 {
        // Each with an id of its own, which names one arbiter or the other.
        let mut train = Vec::new();
        for number in 0..40_u8 {
            let mut packet = initial(&[number; 16], &[], 1_200);
            packet[0] = 0xe0;
            train.extend(packet);
        }
        let whole = Transmit {
            destination: stranger.pair.address(),
            ecn: None,
            contents: &train,
            segment_size: Some(1_200),
            src_ip: None,
        };
        state.try_send((&stranger.socket).into(), &whole).expect("sent");
        eventually("all are counted", || dropped("unknown_connection") >= round * 40);
        assert_eq!(dropped("unknown_connection"), round * 40);
    }
    wait(round_trip(&stranger.neighbour, Bytes::from(vec![9; 50_000])));
    assert_eq!(crate::probe::view(&stranger.pair.mesh).totals.family("quic_packets_dropped"), 800);
    stranger.end();
}

#[test]
fn a_packet_of_a_lost_connection_is_answered_by_a_shorter_reset() {
    let stranger = Stranger::new(2, |_| ());
    let mut packet = vec![0x40; 60];
    packet[1] = 6;
    stranger.raises("quic_resets_sent", "", || stranger.send(&packet));
    let answer = stranger.answer();
    assert_eq!(answer.len(), 43);
    assert_eq!(answer[0] & 0xc0, 0x40);
    // Too short to be answered by something shorter that still looks like a packet.
    stranger.raises("quic_packets_dropped", "unknown_connection", || stranger.send(&packet[..21]));
    assert_eq!(stranger.pair.counter("quic_resets_sent", "q", ""), 1);
    stranger.end();
}

#[test]
fn a_foreign_version_is_answered_with_ours() {
    let stranger = Stranger::new(2, |_| ());
    let mut packet = initial(&[7; 8], &[], 1_200);
    packet[1..5].copy_from_slice(&[0xba, 0xba, 0xba, 0xba]);
    stranger.raises("quic_version_negotiations", "", || stranger.send(&packet));
    let answer = stranger.answer();
    assert_eq!(answer[1..5], [0; 4], "a Version Negotiation");
    assert!(answer.windows(4).any(|version| version == [0, 0, 0, 1]));
    // Neither a negotiation nor a short packet is answered.
    packet[1..5].copy_from_slice(&[0; 4]);
    stranger.raises("quic_packets_dropped", "foreign_version", || stranger.send(&packet));
    packet[1..5].copy_from_slice(&[9; 4]);
    stranger.raises("quic_packets_dropped", "foreign_version", || stranger.send(&packet[..1_199]));
    assert_eq!(stranger.pair.counter("quic_version_negotiations", "q", ""), 1);
    stranger.end();
}

/// Token and new destination of a Retry.
fn retry_of(answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    assert_eq!(answer[0] & 0xf0, 0xf0, "a Retry");
    let dcid = usize::from(answer[5]);
    let scid = usize::from(answer[6 + dcid]);
    let from = 7 + dcid;
    // RFC 9000, section 17.2.5: the token ends before the integrity tag of 16 bytes.
    (answer[from + scid..answer.len() - 16].to_vec(), answer[from..from + scid].to_vec())
}

#[test]
fn tokens_prove_an_address_once_and_in_time() {
    let mut settings = None;
    let stranger = Stranger::new(2, |server| {
        server.limits.retry = RetryMode::Always;
        settings = Some(server.clone());
    });
    assert_eq!(stranger.pair.counter("quic_retries", "q", "valid"), 1, "the neighbour's");
    stranger.raises("quic_retries", "sent", || stranger.send(&initial(&[7; 8], &[], 1_200)));
    let (token, destination) = retry_of(&stranger.answer());
    assert_eq!(destination.len(), 8);
    let mut forged = token.clone();
    forged[3] ^= 1;
    stranger.raises("quic_retries", "forged", || stranger.send(&initial(&destination, &forged, 1_200)));
    // For another connection, and from another address.
    stranger.raises("quic_retries", "foreign", || stranger.send(&initial(&[7; 16], &token, 1_200)));
    let elsewhere = UdpSocket::bind("127.0.0.2:0").expect("a port");
    stranger.raises("quic_retries", "foreign", || {
        elsewhere.send_to(&initial(&destination, &token, 1_200), stranger.pair.address()).expect("sent");
    });
    // Tokens that live for a millisecond.
    let settings = ServerSettings { retry_life: Duration::from_millis(1), ..settings.expect("set") };
    wait(stranger.pair.server.renew(&settings)).expect("taken");
    stranger.raises("quic_retries", "sent", || stranger.send(&initial(&[7; 8], &[], 1_200)));
    let ((token, destination), made) = (retry_of(&stranger.answer()), now());
    eventually("its time is over", || now() > made + Duration::from_millis(5));
    stranger.raises("quic_retries", "expired", || stranger.send(&initial(&destination, &token, 1_200)));
    // What is no token of ours is none: it is asked to prove its address.
    stranger.raises("quic_retries", "sent", || stranger.send(&initial(&[7; 8], b"somebody else's", 1_200)));
    assert_eq!(stranger.pair.counter("quic_packets_dropped", "q", "bad_token"), 4);
    assert_eq!(stranger.pair.counter("quic_connections_opened", "q", ""), 1, "the neighbour's alone");
    stranger.end();
}

#[test]
fn tokens_hold_across_a_restart_with_a_secret() {
    let secret = |server: &mut ServerSettings| {
        server.limits.retry = RetryMode::Always;
        server.secret = Some(b"the same for both".to_vec().into());
    };
    let before = Stranger::new(2, secret);
    before.send(&initial(&[7; 8], &[], 1_200));
    let (token, destination) = retry_of(&before.answer());
    let (from, listen) = (before.socket.local_addr().expect("bound"), before.pair.address());
    let socket = before.socket.try_clone().expect("a descriptor");
    before.end();
    // Another process would be no different: nothing but the secret is carried over.
    let after = Pair::with(4, &listen.to_string(), echo(), secret, |_| ());
    assert_eq!(socket.local_addr().expect("bound"), from);
    socket.send(&initial(&destination, &token, 1_200)).expect("sent");
    eventually("the token is valid", || after.counter("quic_retries", "q", "valid") == 1);
    after.end();
}

#[test]
fn tokens_of_before_hold_for_one_change_of_the_secret() {
    let mut settings = None;
    let stranger = Stranger::new(2, |server| {
        server.limits.retry = RetryMode::Always;
        server.secret = Some(b"the first of three secrets".to_vec().into());
        settings = Some(server.clone());
    });
    let mut settings = settings.expect("set");
    let mut change = |secret: &[u8]| {
        settings.secret = Some(secret.to_vec().into());
        wait(stranger.pair.server.renew(&settings)).expect("taken");
    };
    stranger.raises("quic_retries", "sent", || stranger.send(&initial(&[7; 8], &[], 1_200)));
    let (token, destination) = retry_of(&stranger.answer());
    change(b"the second of three secrets");
    stranger.raises("quic_retries", "valid", || stranger.send(&initial(&destination, &token, 1_200)));
    stranger.raises("quic_retries", "sent", || stranger.send(&initial(&[7; 8], &[], 1_200)));
    let (newer, elsewhere) = retry_of(&stranger.answer());
    change(b"the third of three secrets");
    stranger.raises("quic_retries", "forged", || stranger.send(&initial(&destination, &token, 1_200)));
    stranger.raises("quic_retries", "valid", || stranger.send(&initial(&elsewhere, &newer, 1_200)));
    stranger.end();
}

/// What a client learns when the server it talks to has lost everything but its secret.
#[test]
fn a_server_that_lost_its_state_resets_its_clients() {
    let secret = |server: &mut ServerSettings| server.secret = Some(b"the same for both of them".to_vec().into());
    let before = Pair::with(2, "127.0.0.1:0", echo(), secret, |_| ());
    let network = Translator::start(before.address());
    let clients = crate::probe::mesh(1);
    let client = QuicClient::start(&clients, ClientSettings::new("k")).expect("a client");
    let connections: Vec<Connection> = wait(async {
        let mut all = Vec::new();
        for _ in 0..6 {
            let connection = client.connect(network.address, before.tls.clone()).await.expect("connected");
            round_trip(&connection, Bytes::from("hello")).await;
            all.push(connection);
        }
        all
    });
    // Killed: no word reaches anybody.
    network.cut.store(true, Ordering::SeqCst);
    let listen = before.address();
    before.end();
    let after = Pair::with(2, &listen.to_string(), echo(), secret, |_| ());
    network.cut.store(false, Ordering::SeqCst);
    for connection in &connections {
        let end = wait(async {
            // Whatever it says, it is a packet of nobody.
            let _told = connection.open_uni(Priority::default()).await.expect("open").write("anybody there?").await;
            connection.join().await.end
        });
        assert_eq!((end.who, end.reason), (Who::Nobody, "reset"));
    }
    assert!(after.counter("quic_resets_sent", "q", "") >= 6);
    wait(async { round_trip(&after.connect().await, Bytes::from("a new one")).await });
    client.stop();
    clients.stop().expect("not on an arbiter");
    after.end();
}

#[test]
fn an_initial_of_noise_costs_its_sender_a_connection_that_ends_at_once() {
    let stranger = Stranger::new(1, |_| ());
    stranger.raises("quic_connections_closed", "protocol_error", || stranger.send(&initial(&[7; 8], &[], 1_200)));
    eventually("its actor is gone", || stranger.pair.actors() == 2);
    let status = wait(stranger.pair.server.status());
    assert_eq!(status.iter().map(|status| (status.connections, status.half_open)).collect::<Vec<_>>(), [(1, 0)]);
    stranger.end();
}

/// A socket that keeps what a client sends first.
struct Recorder {
    address: SocketAddr,
    first: std::thread::JoinHandle<Vec<Vec<u8>>>,
}

impl Recorder {
    /// Records one datagram of a client and lets nothing through.
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(SOON)).expect("set");
        let address = socket.local_addr().expect("bound");
        let first = std::thread::spawn(move || {
            let mut buffer = [0; 2_000];
            (0..2)
                .map(|_| {
                    let length = socket.recv(&mut buffer).expect("a datagram");
                    buffer[..length].to_vec()
                })
                .collect()
        });
        Self { address, first }
    }
}

#[test]
fn truncated_reordered_and_replayed_initials_make_one_connection_at_most() {
    let stranger = Stranger::new(2, |server| server.transport.handshake_timeout = Duration::from_millis(1_500));
    let recorder = Recorder::start();
    let client = stranger.pair.client.clone();
    let (address, tls) = (recorder.address, stranger.pair.tls.clone());
    let lost = std::thread::spawn(move || wait(client.connect(address, tls)));
    let recorded = recorder.first.join().expect("no panic");
    // Cut: too short to be let in, or its only packet is cut and nothing of it can be read.
    for (cut, reason) in
        [(1, "truncated"), (20, "truncated"), (100, "short_initial"), (600, "short_initial"), (1_199, "short_initial")]
    {
        stranger.raises("quic_packets_dropped", reason, || stranger.send(&recorded[0][..cut]));
    }
    // In the wrong order, and again and again, from the same address and from others.
    for datagram in recorded.iter().rev().chain(&recorded).cycle().take(200) {
        stranger.send(datagram);
    }
    let elsewhere = UdpSocket::bind("127.0.0.2:0").expect("a port");
    for _ in 0..100 {
        elsewhere.send_to(&recorded[0], stranger.pair.address()).expect("sent");
    }
    eventually("it is let in", || stranger.pair.counter("quic_connections_opened", "q", "") == 2);
    wait(round_trip(&stranger.neighbour, Bytes::from(vec![9; 50_000])));
    eventually("it has timed out", || stranger.pair.counter("quic_connections_closed", "q", "handshake_timeout") == 1);
    assert_eq!(stranger.pair.counter("quic_connections_opened", "q", ""), 2, "one more than the neighbour");
    stranger.pair.client.stop();
    assert!(lost.join().expect("no panic").is_err());
    stranger.end();
}

#[test]
fn initials_of_a_living_connection_may_come_again() {
    let pair = Pair::new(2, echo());
    let network = Translator::start(pair.server.local_addr());
    let connection = wait(pair.client.connect(network.address, pair.tls.clone())).expect("connected");
    wait(round_trip(&connection, Bytes::from("hello")));
    let opened = pair.counter("quic_connections_opened", "q", "");
    network.replay_first(50);
    wait(round_trip(&connection, Bytes::from("hello")));
    assert_eq!(pair.counter("quic_connections_opened", "q", ""), opened);
    drop(connection);
    pair.end();
}

/// Packets that are sent in one go.
const TRAIN: usize = 40;

/// 50,000 and more a second, and others connect all the while.
#[test]
fn a_flood_of_initials_from_one_source_keeps_nobody_else_out() {
    let pair = Pair::with(
        2,
        "127.0.0.1:0",
        echo(),
        |server| {
            server.limits.rate = 200;
            server.limits.burst = 200;
            server.transport.handshake_timeout = Duration::from_secs(2);
        },
        |client| client.local_v4 = Some("127.0.0.5:0".parse().expect("an address")),
    );
    let flood = UdpSocket::bind("127.0.0.6:0").expect("a port");
    flood.connect(pair.address()).expect("connected");
    let (began, connected) = (now(), AtomicU64::new(0));
    let state = UdpSocketState::new((&flood).into()).expect("a socket");
    let whole =
        Transmit { destination: pair.address(), ecn: None, contents: &[], segment_size: Some(1_200), src_ip: None };
    let (sent, took) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let mut train = initial(&[0; 8], &[], 1_200).repeat(TRAIN);
            let mut count = 0_u64;
            // Two seconds' worth at least, and until enough others have come meanwhile.
            while count < 100_000 || connected.load(Ordering::SeqCst) < 20 {
                // Paced to 60,000 a second, in trains, so that it costs the machine little to send them.
                let due = now().duration_since(began).as_micros() as u64 * 6 / 100;
                while count < due {
                    for packet in train.chunks_mut(1_200) {
                        // Behind the first byte, the version and the length of the id.
                        packet[6..14].copy_from_slice(&count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                        count += 1;
                    }
                    // A full socket buffer drops it, as a network would.
                    let _full = state.try_send((&flood).into(), &Transmit { contents: &train, ..whole });
                }
                std::thread::yield_now();
            }
            (count, now().duration_since(began))
        });
        while !flooding.is_finished() {
            wait(async { round_trip(&pair.connect().await, Bytes::from("hello")).await });
            connected.fetch_add(1, Ordering::SeqCst);
        }
        flooding.join().expect("no panic")
    });
    let connected = connected.into_inner();
    // Both at once: the flood had its rate, and others came in all the while.
    let rate = sent as f64 / took.as_secs_f64();
    assert!(rate >= 50_000.0, "{rate:.0} a second");
    assert!(connected >= 20, "{connected} others");
    let took = now().duration_since(began).as_secs() + 1;
    let limited = pair.counter("quic_packets_dropped", "q", "rate_limited");
    // What a busy machine has no time to read is dropped by the socket; of the rest, nearly all.
    assert!(limited > 1_000, "{limited} of {sent}");
    // 200 at once and 200 a second on each of two arbiters, and those who connected.
    assert!(pair.counter("quic_connections_opened", "q", "") <= connected + 2 * (200 + 200 * took));
    pair.end();
}

#[test]
fn a_peer_that_acknowledges_nothing_is_let_go() {
    let pair = Pair::with(
        1,
        "127.0.0.1:0",
        echo(),
        |server| {
            server.transport.acknowledge_within = Duration::from_millis(400);
            // It goes on asking, also when all that was written is acknowledged before the path is cut.
            server.transport.keep_alive = Some(Duration::from_millis(100));
        },
        |_| (),
    );
    let neighbour = wait(pair.connect());
    let network = Translator::start(pair.server.local_addr());
    let connection = wait(pair.client.connect(network.address, pair.tls.clone())).expect("connected");
    let (send, _receive) = wait(connection.open(Priority::default())).expect("a stream");
    wait(send.write(vec![1; 200_000])).expect("written");
    eventually("it is there", || pair.actors() == 4);
    // It goes on sending, and so is never idle; but nothing reaches it that it could acknowledge.
    network.mute.store(true, Ordering::SeqCst);
    let heard = || pair.counter("quic_packets_in", "q", "");
    let before = heard();
    eventually("it is let go", || pair.counter("quic_connections_closed", "q", "no_acknowledgement") == 1);
    assert!(heard() > before, "it was silent");
    wait(round_trip(&neighbour, Bytes::from(vec![9; 50_000])));
    assert_eq!(pair.counter("quic_connections_closed", "q", "no_acknowledgement"), 1);
    assert!(neighbour.end().is_none());
    drop((send, connection, neighbour));
    pair.end();
}
