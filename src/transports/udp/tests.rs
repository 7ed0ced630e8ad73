//! What a socket must do on real loopback: v4, v6 and wildcard, trains, a full buffer, a refused train.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};

use super::*;

fn bound(address: &str) -> std::net::UdpSocket {
    std::net::UdpSocket::bind(address).expect("a port")
}

fn run(test: impl AsyncFnOnce()) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(std::time::Duration::from_secs(20), test()).await.expect("in time") });
}

fn to(destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
}

/// Receives until `count` datagrams are there: each with whence it came and the address it was sent to.
async fn receive(socket: &UdpSocket, count: usize) -> Vec<(Vec<u8>, SocketAddr, SocketAddr)> {
    let mut buffers = vec![vec![0; TRAIN]; 4];
    let mut got = Vec::new();
    while got.len() < count {
        let mut meta = [RecvMeta::default(); 4];
        let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let n = poll_fn(|cx| socket.poll_recv(cx, &mut slices, &mut meta)).await.expect("received");
        for (buffer, meta) in buffers.iter().zip(&meta[..n]) {
            for datagram in buffer[..meta.len].chunks(meta.stride) {
                got.push((datagram.to_vec(), meta.addr, socket.asked(meta)));
            }
        }
    }
    got
}

fn train(count: usize, size: usize) -> Vec<u8> {
    (0..count).flat_map(|n| vec![n as u8; size]).collect()
}

#[test]
fn datagrams_arrive_over_v4_v6_and_a_wildcard() {
    run(async || {
        for (listen, ask) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "::1")]
        {
            let server = UdpSocket::new(bound(listen), &Options::default()).expect("a socket");
            let ask: IpAddr = ask.parse().expect("an address");
            let client =
                UdpSocket::new(bound(&SocketAddr::new(ask, 0).to_string()), &Options::default()).expect("a socket");
            let there = SocketAddr::new(ask, server.local_addr().port());
            assert_eq!(client.try_send(&to(there, b"ping", None)).expect("sent"), 4);
            let got = receive(&server, 1).await;
            assert_eq!(got, [(b"ping".to_vec(), client.local_addr(), there)]);
        }
    });
}

/// On a wildcard socket the kernel would answer from the address of the route, here 127.0.0.1.
#[test]
fn an_answer_leaves_from_the_address_that_was_asked() {
    run(async || {
        let server = UdpSocket::new(bound("0.0.0.0:0"), &Options::default()).expect("a socket");
        let client = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let asked = SocketAddr::from(([127, 0, 0, 9], server.local_addr().port()));
        client.try_send(&to(asked, b"ping", None)).expect("sent");
        let got = receive(&server, 1).await;
        assert_eq!(got[0].2, asked);
        let answer = Transmit { src_ip: Some(got[0].2.ip()), ..to(got[0].1, b"pong", None) };
        server.try_send(&answer).expect("sent");
        assert_eq!(receive(&client, 1).await[0].1, asked);
    });
}

#[test]
fn a_train_is_the_same_datagrams_with_and_without_offload() {
    run(async || {
        let mut seen = Vec::new();
        for gso in [true, false] {
            let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
            let client =
                UdpSocket::new(bound("127.0.0.1:0"), &Options { gso, ..Options::default() }).expect("a socket");
            assert_eq!(client.max_gso_segments(), if gso { 64 } else { 1 });
            let mut contents = train(40, 1_200);
            contents.extend([9; 77]);
            assert_eq!(
                client.try_send(&to(server.local_addr(), &contents, Some(1_200))).expect("sent"),
                contents.len()
            );
            let got: Vec<Vec<u8>> = receive(&server, 41).await.into_iter().map(|(datagram, ..)| datagram).collect();
            assert_eq!(got[40], [9; 77]);
            seen.push(got);
        }
        assert_eq!(seen[0], seen[1]);
    });
}

/// Loopback never fills a send buffer, so the kernel's refusal is made up here; what follows is the real thing.
#[test]
fn after_a_refusal_the_socket_waits_for_the_kernel() {
    run(async || {
        let socket = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        poll_fn(|cx| socket.poll_writable(cx)).await.expect("writable");
        socket.wait_for_room();
        let waits = poll_fn(|cx| Poll::Ready(socket.poll_writable(cx).is_pending())).await;
        assert!(waits, "still writable after a refusal");
        // A datagram that leaves makes room, which is the kernel's word.
        assert_eq!(socket.try_send(&to(socket.local_addr(), b"x", None)).expect("sent"), 1);
        poll_fn(|cx| socket.poll_writable(cx)).await.expect("writable");
    });
}

#[test]
fn would_block_in_the_midst_of_a_train_keeps_the_rest() {
    let contents = train(5, 10);
    let mut arrived: Vec<u8> = Vec::new();
    let mut offer = |contents: &[u8], mut room: usize| {
        singly(contents, 10, |piece| {
            room = room.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
            arrived.extend(piece);
            Ok(())
        })
    };
    assert_eq!(offer(&contents, 3).expect("some"), 30);
    assert_eq!(offer(&contents[30..], 0).expect_err("full").kind(), ErrorKind::WouldBlock);
    assert_eq!(offer(&contents[30..], 9).expect("the rest"), 20);
    assert_eq!(arrived, contents);
}

/// No kernel takes a train of 200: it answers as a network card that knows no offload.
#[test]
fn a_refused_train_is_sent_as_single_datagrams_and_counted() {
    run(async || {
        let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let client = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        assert_eq!((client.max_gso_segments(), client.gso_refused()), (64, 0));
        let contents = train(200, 50);
        assert_eq!(client.try_send(&to(server.local_addr(), &contents, Some(50))).expect("sent"), 10_000);
        assert_eq!((client.max_gso_segments(), client.gso_refused()), (1, 1));
        let got = receive(&server, 200).await;
        assert!(got.iter().enumerate().all(|(n, (datagram, ..))| *datagram == vec![n as u8; 50]));
        assert_eq!(client.try_send(&to(server.local_addr(), &contents, Some(50))).expect("sent"), 10_000);
        assert_eq!((receive(&server, 200).await.len(), client.gso_refused()), (200, 1));
    });
}

/// Nobody can be answered at port 0, and from nowhere but an address of this machine; neither says anything of offload.
#[test]
fn what_cannot_be_sent_alone_leaves_offload_as_it_was() {
    run(async || {
        let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let client = UdpSocket::new(bound("0.0.0.0:0"), &Options::default()).expect("a socket");
        let contents = train(40, 100);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        for segment in [None, Some(100)] {
            let error = client.try_send(&to(nowhere, &contents, segment)).expect_err("port 0");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            let foreign =
                Transmit { src_ip: Some([192, 0, 2, 1].into()), ..to(server.local_addr(), &contents, segment) };
            client.try_send(&foreign).expect_err("from another's address");
        }
        assert_eq!((client.max_gso_segments(), client.gso_refused()), (64, 0));
        assert_eq!(client.try_send(&to(server.local_addr(), &contents, Some(100))).expect("sent"), 4_000);
        assert_eq!(receive(&server, 40).await.len(), 40);
    });
}

/// The refusal may come at any time, as a route changes from one card to another.
#[test]
fn offload_that_is_taken_away_in_the_midst_costs_no_datagram() {
    run(async || {
        let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let client = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let contents = train(40, 1_350);
        assert_eq!(client.try_send(&to(server.local_addr(), &contents, Some(1_350))).expect("sent"), contents.len());
        assert_eq!((receive(&server, 40).await.len(), client.gso_refused()), (40, 0));
        options::refuse_trains(&client.io).expect("set");
        for _ in 0..3 {
            assert_eq!(
                client.try_send(&to(server.local_addr(), &contents, Some(1_350))).expect("sent"),
                contents.len()
            );
            let got = receive(&server, 40).await;
            assert!(got.iter().enumerate().all(|(n, (datagram, ..))| *datagram == vec![n as u8; 1_350]));
            assert_eq!((client.max_gso_segments(), client.gso_refused()), (1, 1), "asked once");
        }
    });
}

/// The error of one datagram is the caller's to count; the socket goes on.
#[test]
fn a_datagram_too_long_is_refused_alone() {
    run(async || {
        let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let client = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let long = vec![0; 65_508];
        let error = client.try_send(&to(server.local_addr(), &long, None)).expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(client.gso_refused(), 0);
        assert_eq!(client.try_send(&to(server.local_addr(), b"", None)).expect("sent"), 0);
        assert_eq!(client.try_send(&to(server.local_addr(), b"short", None)).expect("sent"), 5);
        // The empty one holds no datagram of any length, and does not stop the reader.
        assert_eq!(receive(&server, 1).await[0].0, b"short");
    });
}

/// What is longer than the interface carries: refused, or cut and put together again.
#[test]
fn long_datagrams_are_cut_only_where_that_is_wanted() {
    run(async || {
        for (address, longest) in [("127.0.0.1:0", 65_507), ("[::1]:0", 65_527)] {
            for fragment in [false, true] {
                let options = Options { fragment, ..Options::default() };
                let server = UdpSocket::new(bound(address), &Options::default()).expect("a socket");
                let client = UdpSocket::new(bound(address), &options).expect("a socket");
                // Loopback carries 65,536 bytes: over IPv6 the longest datagram needs two fragments.
                let sent = client.try_send(&to(server.local_addr(), &vec![7; longest], None));
                let expected = if longest > 65_507 && !fragment { Err(Some(libc::EMSGSIZE)) } else { Ok(longest) };
                assert_eq!(sent.map_err(|error| error.raw_os_error()), expected, "{address}, {fragment}");
                if expected.is_ok() {
                    assert_eq!(receive(&server, 1).await[0].0.len(), longest);
                }
            }
        }
    });
}

/// A socket that says it was emptied is woken by what comes next, and only by that.
#[test]
fn an_emptied_socket_waits_for_what_comes_next() {
    run(async || {
        let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let client = bound("127.0.0.1:0");
        client.connect(server.local_addr()).expect("connected");
        for round in 0..1_000_u32 {
            client.send(&round.to_be_bytes()).expect("sent");
            let got = receive(&server, 1).await;
            assert_eq!(got[0].0, round.to_be_bytes());
            if round % 3 == 0 {
                // One that came before it was said, and has not been read.
                client.send(b"early").expect("sent");
            }
            server.emptied();
            if round % 3 == 0 {
                assert_eq!(receive(&server, 1).await[0].0, b"early");
            }
        }
    });
}

#[test]
fn a_connected_socket_sends_and_learns_that_nobody_is_there() {
    run(async || {
        let server = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        let std = bound("127.0.0.1:0");
        std.connect(server.local_addr()).expect("connected");
        let client = UdpSocket::new(std, &Options { receive_buffer: 0, send_buffer: 0, ..Options::default() })
            .expect("a socket");
        client.send_connected(b"ping").expect("sent");
        client.send_connected(b"").expect("sent");
        let got = receive(&server, 1).await;
        assert_eq!((&got[0].0[..], got[0].1), (&b"ping"[..], client.local_addr()));
        drop(server);
        client.send_connected(b"to nobody").expect("sent");
        let refused = loop {
            match client.send_connected(b"and?") {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

/// The kernel counts what it dropped at a full buffer, and each socket answers for itself.
#[test]
fn what_the_kernel_drops_is_counted() {
    run(async || {
        let small = Options { receive_buffer: 4_096, ..Options::default() };
        let server = UdpSocket::new(bound("127.0.0.1:0"), &small).expect("a socket");
        let other = UdpSocket::new(bound("127.0.0.1:0"), &small).expect("a socket");
        let client = UdpSocket::new(bound("127.0.0.1:0"), &Options::default()).expect("a socket");
        assert_eq!(server.dropped(), Some(0));
        for _ in 0..100 {
            client.try_send(&to(server.local_addr(), &[0; 1_000], None)).expect("sent");
        }
        let dropped = server.dropped().expect("counted");
        assert!((50..100).contains(&dropped), "{dropped} of 100");
        assert_eq!(other.dropped(), Some(0));
        assert!(server.granted().0 < 100_000 && client.granted().1 >= 100_000, "{:?}", client.granted());
    });
}
