//! Framed TCP through the gateway: what works, and what bad input costs (its own connection, and nobody else's).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::time::Duration;

use portway::transports::framed::{Format, FramedClient};

use crate::gateway::{Binary, Client, Neighbour, Running, free, get};
use crate::probe::{SOON, eventually, now, view, wait};

fn echo(more: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = 2\n[[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\n\
         protocol = \"framed\"\nservice = \"echo\"\n{more}"
    )
}

#[test]
fn echoes_from_nothing_to_the_largest_message() {
    let running = Running::start(&echo(""));
    let mut client = Client::to(running.address("echo"));
    for size in [0, 1, 100, 65_536, 1 << 20] {
        client.echoes(&vec![7; size]);
    }
    drop(client);
    running.counts("connections_closed", "echo", "eof", 1);
    assert_eq!(running.totals().get("messages_in", "echo", ""), 5);
    running.is_empty();
}

#[test]
fn the_library_client_speaks_to_it() {
    let running = Running::start(&echo(""));
    let address = running.address("echo");
    wait(async move {
        let mut client = FramedClient::connect(address, Format::default()).await.unwrap();
        client.send_many([&b"one"[..], b"", b"three"]).await.unwrap();
        for expected in [&b"one"[..], b"", b"three"] {
            assert_eq!(client.recv().await.unwrap().unwrap(), expected);
        }
        client.finish().await.unwrap();
        assert!(client.recv().await.unwrap().is_none());
    });
}

#[test]
fn other_formats_work_as_configured() {
    let running = Running::start(&echo(
        "[listener.framed]\nlength_bytes = 2\nbyte_order = \"little\"\nlength_includes_header = true\n\
         max_message = 1000\n",
    ));
    let mut client = Client::to(running.address("echo"));
    client.0.write_all(&[5, 0, b'a', b'b', b'c']).unwrap();
    let mut answer = [0; 5];
    client.0.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 0, b'a', b'b', b'c']);
    client.0.write_all(&[1, 0]).unwrap();
    assert!(client.rest().is_empty());
    drop(client);
    running.counts("connections_closed", "echo", "frame_malformed", 1);
}

#[test]
fn fifty_connections_are_fifty_pinned_actors_and_then_none() {
    let running = Running::start(&echo(""));
    let address = running.address("echo");
    let mut clients: Vec<_> = (0..50).map(|_| Client::to(address)).collect();
    let mut homes = None;
    for round in 1..=5u64 {
        clients.iter_mut().for_each(|client| client.echoes(b"turn"));
        let seen = view(running.gateway().mesh());
        let actors: Vec<_> = seen.of_kind("framed").collect();
        assert_eq!(actors.len(), 50);
        assert!(actors.iter().all(|actor| actor.turns >= round), "each has turns");
        let now: BTreeSet<_> = actors.iter().map(|actor| (actor.id, actor.arbiter)).collect();
        assert_eq!(homes.get_or_insert_with(|| now.clone()), &now, "nobody moves");
        let arbiters: BTreeSet<_> = actors.iter().map(|actor| actor.arbiter).collect();
        assert_eq!(arbiters.len(), 2, "both arbiters have some");
    }
    drop(clients);
    running.is_empty();
}

#[test]
fn a_header_of_four_gibibytes() {
    let running = Running::start(&echo(""));
    let mut neighbour = Neighbour::of(running.address("echo"));
    let mut client = Client::to(running.address("echo"));
    client.send(b"good");
    client.0.write_all(&[0xff; 4]).unwrap();
    assert_eq!(client.recv(), b"good", "what came before is answered");
    assert!(client.rest().is_empty());
    drop(client);
    running.counts("connections_closed", "echo", "frame_too_large", 1);
    neighbour.works();
}

#[test]
fn a_header_then_silence() {
    let running = Running::start(&echo("[listener.framed]\nmessage_timeout = \"200ms\"\n"));
    let mut neighbour = Neighbour::of(running.address("echo"));
    let mut client = Client::to(running.address("echo"));
    client.echoes(b"first");
    client.0.write_all(&[0, 0, 0, 9, 1]).unwrap();
    assert!(client.rest().is_empty());
    running.counts("connections_closed", "echo", "message_timeout", 1);
    neighbour.works();
}

#[test]
fn a_header_then_a_reset_or_an_end() {
    let running = Running::start(&echo(""));
    let mut neighbour = Neighbour::of(running.address("echo"));
    let mut client = Client::to(running.address("echo"));
    client.echoes(b"first");
    client.0.write_all(&[0, 0, 0, 9, 1]).unwrap();
    // Closed with a linger of zero, the kernel sends a reset.
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    running.counts("connections_closed", "echo", "reset", 1);
    neighbour.works();

    let mut client = Client::to(running.address("echo"));
    client.0.write_all(&[0, 0, 0, 9, 1]).unwrap();
    client.0.shutdown(Shutdown::Write).unwrap();
    assert!(client.rest().is_empty());
    running.counts("connections_closed", "echo", "eof_in_message", 1);
    neighbour.works();
}

#[test]
fn a_connection_that_says_nothing_whole_or_nothing_more() {
    let running = Running::start(&echo("[listener.limits]\nfirst_message = \"150ms\"\nidle = \"300ms\"\n"));
    let mut silent = Client::to(running.address("echo"));
    assert!(silent.rest().is_empty());
    running.counts("connections_closed", "echo", "first_message_timeout", 1);
    let mut idle = Client::to(running.address("echo"));
    idle.echoes(b"x");
    assert!(idle.rest().is_empty());
    running.counts("connections_closed", "echo", "idle", 1);
}

#[test]
fn ten_thousand_connects_that_send_nothing() {
    let running = Running::start(&echo("[listener.limits]\nhalf_open = 500\nfirst_message = \"60s\"\n"));
    let address = running.address("echo");
    let mut neighbour = Neighbour::of(address);
    // In rounds, as one process has files for both ends of some thousands only; refused ones are closed by the
    // gateway, so their files come free.
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        let mut round: Vec<_> = (0..500).map(|_| Client::to(address)).collect();
        // Let in (silence), or refused (an end at once): known for each before the next round.
        for mut client in round.drain(..) {
            if held.len() < 500 {
                held.push(client);
            } else {
                assert!(client.rest().is_empty());
                refused += 1;
            }
        }
    }
    assert_eq!((held.len(), refused), (500, 9_500));
    running.counts("connections_refused", "echo", "limit_half_open", 9_500);
    neighbour.works();
    drop(held);
    running.counts("connections_closed", "echo", "eof", 500);
    let mut fresh = Neighbour::of(address);
    fresh.works();
    drop((neighbour, fresh));
    running.is_empty();
}

#[test]
fn each_cap_refuses_under_its_reason() {
    let limits = [
        ("connections = 2\nper_source = 2", "limit_connections"),
        ("connections = 10\nper_source = 2", "limit_per_source"),
    ];
    for (limits, reason) in limits {
        let running = Running::start(&echo(&format!("[listener.limits]\n{limits}\n")));
        let mut first = Neighbour::of(running.address("echo"));
        let second = Neighbour::of(running.address("echo"));
        assert!(Client::to(running.address("echo")).rest().is_empty());
        running.counts("connections_refused", "echo", reason, 1);
        first.works();
        drop(second);
        eventually("room again", || {
            let mut client = Client::to(running.address("echo"));
            // A refused client sees its message unanswered.
            client.0.write_all(&[0, 0, 0, 1, 9]).is_ok() && client.0.read_exact(&mut [0; 5]).is_ok()
        });
        first.works();
    }
}

#[test]
fn a_client_that_never_reads() {
    let running = Running::start(&echo(
        "[listener.framed]\noutbound = \"2MiB\"\nslow_after = \"300ms\"\nwhen_slow = \"close\"\n",
    ));
    let mut neighbour = Neighbour::of(running.address("echo"));
    let mut client = Client::to(running.address("echo"));
    client.0.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let body = vec![1; 100_000];
    let frame = [&100_000u32.to_be_bytes()[..], &body].concat();
    let mut sent = 0;
    while client.0.write(&frame[sent % frame.len()..]).map(|n| sent += n).is_ok() && sent < 100 << 20 {}
    assert!(sent < 50 << 20, "it stopped being read, after {sent} bytes");
    let held = view(running.gateway().mesh()).of_kind("framed").map(|actor| actor.held).max().unwrap();
    assert!(held <= (2 << 20) * 2 + (1 << 20), "bounded: {held}");
    neighbour.works();
    running.counts("connections_closed", "echo", "slow_reader", 1);
    neighbour.works();
}

#[test]
fn dropping_policies_keep_the_connection_and_whole_messages() {
    for policy in ["drop-oldest", "drop-newest"] {
        let running = Running::start(&echo(&format!(
            "[listener.framed]\noutbound = \"64KiB\"\nmax_message = \"16KiB\"\nwhen_slow = \"{policy}\"\n"
        )));
        let mut neighbour = Neighbour::of(running.address("echo"));
        let mut client = Client::to(running.address("echo"));
        let total = 5_000u32;
        for n in 0..total {
            client.send(&[&n.to_be_bytes()[..], &[0; 10_000]].concat());
        }
        client.0.shutdown(Shutdown::Write).unwrap();
        let rest = client.rest();
        assert_eq!(rest.len() % 10_008, 0, "whole messages only");
        let numbers: Vec<u32> =
            rest.chunks(10_008).map(|frame| u32::from_be_bytes(frame[4..8].try_into().unwrap())).collect();
        assert!(numbers.is_sorted(), "in order");
        assert!(numbers.len() < total as usize);
        let dropped = u64::from(total) - numbers.len() as u64;
        running.counts("messages_dropped", "echo", "slow_reader", dropped);
        if policy == "drop-oldest" {
            assert_eq!(numbers.last(), Some(&(total - 1)));
        }
        neighbour.works();
    }
}

#[test]
fn a_tight_memory_budget_refuses_and_a_full_one_ends_the_largest() {
    let running = Running::start(
        &echo("[listener.framed]\noutbound = \"64MiB\"\nslow_after = \"60s\"\n")
            .replace("arbiters = 2", "arbiters = 2\nmemory = \"16MiB\""),
    );
    let address = running.address("echo");
    let mut neighbour = Neighbour::of(address);
    let mut hog = Client::to(address);
    hog.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let frame = [&1_000_000u32.to_be_bytes()[..], &vec![1; 1_000_000]].concat();
    let feed = |hog: &mut Client, until: &dyn Fn() -> bool| {
        let end = now() + SOON;
        let mut sent = 0;
        while !until() {
            assert!(now() < end, "not in time");
            match hog.0.write(&frame[sent % frame.len()..]) {
                Ok(count) => sent += count,
                Err(_) => return,
            }
        }
    };
    let gateway = running.gateway();
    feed(&mut hog, &|| gateway.memory_leased() > 13 << 20);
    assert!(Client::to(address).rest().is_empty());
    running.counts("connections_refused", "echo", "memory", 1);
    neighbour.works();
    feed(&mut hog, &|| gateway.memory_leased() > 16 << 20);
    wait(async {
        tokio::select! {
            () = gateway.keep_budget() => {}
            () = async { while gateway.memory_leased() > 10 << 20 { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
        }
    });
    running.counts("connections_closed", "echo", "memory", 1);
    neighbour.works();
}

#[test]
fn a_drain_answers_everything_accepted_to_a_thousand_busy_connections() {
    let mut binary =
        Binary::start(&echo("[admin]\nlisten = \"127.0.0.1:0\"\n").replace("arbiters = 2", "drain = \"10s\""));
    let address = binary.address("echo");
    let clients = 1_000;
    let (began, begins) = std::sync::mpsc::channel();
    // Each keeps up to eight messages on the way and checks that the answers are exactly 0, 1, 2 …
    let load = std::thread::spawn(move || {
        wait(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..clients {
                let began = began.clone();
                tasks.spawn(async move {
                    let mut client = FramedClient::connect(address, Format::default()).await.unwrap();
                    let (mut sent, mut answered) = (0u64, 0u64);
                    loop {
                        while sent < answered + 8 {
                            if client.send(&sent.to_be_bytes()).await.is_err() {
                                break;
                            }
                            sent += 1;
                        }
                        match client.recv().await {
                            Ok(Some(answer)) => assert_eq!(*answer, answered.to_be_bytes()),
                            Ok(None) => return (sent, answered, true),
                            Err(_) => return (sent, answered, false),
                        }
                        answered += 1;
                        if answered == 20 {
                            began.send(()).unwrap();
                        }
                    }
                });
            }
            drop(began);
            tasks.join_all().await
        })
    });
    for _ in 0..clients {
        begins.recv_timeout(SOON * 3).expect("all are busy");
    }
    let asked = now();
    binary.signal("TERM");
    let status = binary.ends_within(Duration::from_secs(10));
    let took = asked.elapsed();
    let line = binary.says("unfinished=");
    assert!(line.contains("unfinished=0"), "{line}");
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let results = load.join().unwrap();
    assert_eq!(results.len(), clients);
    assert!(results.iter().all(|(_, _, clean)| *clean), "every answer sent arrived, then an orderly end");
    assert!(results.iter().all(|(sent, answered, _)| answered <= sent && *answered >= 20));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut binary = Binary::start(&echo("").replace("arbiters = 2", "drain = \"60s\""));
    let mut client = Client::to(binary.address("echo"));
    client.echoes(b"x");
    // A client that does not go away holds the drain for the two seconds of its lingering end.
    binary.signal("TERM");
    binary.says("draining");
    // Sooner it would be taken for the first once more.
    std::thread::sleep(Duration::from_millis(150));
    binary.signal("INT");
    let asked = now();
    assert_eq!(binary.ends_within(SOON).code(), Some(1));
    assert!(asked.elapsed() < Duration::from_millis(1_500));
}

#[test]
fn a_port_in_use_names_the_listener_and_leaves_nothing_open() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = free();
    let text = echo("").replace("127.0.0.1:0", &free.to_string())
        + &format!(
            "[[listener]]\nname = \"second\"\nlisten = \"{}\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
            taken.local_addr().unwrap()
        );
    let mut binary = Binary::start(&text);
    let line = binary.says("second");
    assert!(line.contains("config.toml:"), "it names the place: {line}");
    assert!(line.contains("in use"), "{line}");
    assert_eq!(binary.ends_within(SOON).code(), Some(1));
    assert!(std::net::TcpStream::connect(free).is_err(), "the first listener is not left open");
}

#[test]
fn every_port_in_use_is_named() {
    let taken = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let listener = |name, at: &std::net::TcpListener| {
        let at = at.local_addr().unwrap();
        format!("[[listener]]\nname = \"{name}\"\nlisten = \"{at}\"\nprotocol = \"framed\"\nservice = \"echo\"\n")
    };
    let text = echo("") + &listener("one", &taken[0]) + &listener("two", &taken[1]);
    let mut binary = Binary::start(&text);
    binary.says("`one` cannot listen");
    binary.says("`two` cannot listen");
    assert_eq!(binary.ends_within(SOON).code(), Some(1));
}

#[test]
fn interop_python_speaks_framed_tcp() {
    let running = Running::start(&echo(""));
    let script = "\
import socket, struct, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
for n in range(200):
    m = bytes([n]) * (n * 37)
    s.sendall(struct.pack('>I', len(m)) + m)
    got = b''
    while len(got) < 4 + len(m):
        part = s.recv(65536)
        assert part, 'closed'
        got += part
    assert got == struct.pack('>I', len(m)) + m
print('200 echoed')
";
    let address = running.address("echo");
    let out = Command::new("python3")
        .args(["-c", script, &address.ip().to_string(), &address.port().to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("python3 is installed (make setup)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "200 echoed");
    assert_eq!(running.totals().get("messages_in", "echo", ""), 200);
}

#[test]
fn the_memory_budget_holds_against_many_who_never_read() {
    let running = Running::start(
        &echo("[listener.framed]\nslow_after = \"60s\"\n").replace("arbiters = 2", "arbiters = 2\nmemory = \"32MiB\""),
    );
    let address = running.address("echo");
    let mut neighbour = Neighbour::of(address);
    let frame = [&1_000_000u32.to_be_bytes()[..], &vec![1; 1_000_000]].concat();
    let mut most = 0;
    let mut clients = Vec::new();
    wait(async {
        let work = async {
            for _ in 0..40 {
                let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
                let frame = frame.clone();
                clients.push(tokio::spawn(async move {
                    use tokio::io::AsyncWriteExt;
                    for _ in 0..20 {
                        let writing = tokio::time::timeout(Duration::from_millis(300), client.write_all(&frame));
                        if !matches!(writing.await, Ok(Ok(()))) {
                            break;
                        }
                    }
                    client
                }));
                tokio::time::sleep(Duration::from_millis(10)).await;
                most = most.max(running.gateway().memory_leased());
            }
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                most = most.max(running.gateway().memory_leased());
            }
        };
        tokio::select! {
            () = running.gateway().keep_budget() => {}
            () = work => {}
        }
    });
    // Beyond the budget goes at most what was read before the level was seen: one turn of each connection.
    assert!(most <= 48 << 20, "{} MiB of 32", most >> 20);
    neighbour.works();
    clients.into_iter().for_each(|client| client.abort());
}

#[test]
fn a_standard_error_that_is_not_read_or_cannot_be_written_costs_log_lines_only() {
    let dir = crate::gateway::temp_dir();
    for unwritable in [false, true] {
        let (address, admin) = (free(), free());
        let text = echo(&format!("[log]\nlevel = \"trace\"\n[admin]\nlisten = \"{admin}\"\n"));
        std::fs::write(dir.join("config.toml"), text.replace("127.0.0.1:0", &address.to_string())).unwrap();
        let stderr = if unwritable {
            Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        } else {
            Stdio::piped()
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_portway"))
            .args(["run", "-c"])
            .arg(dir.join("config.toml"))
            .stderr(stderr)
            .spawn()
            .unwrap();
        eventually("it listens", || std::net::TcpStream::connect(address).is_ok());
        let mut neighbour = Neighbour::of(address);
        for _ in 0..2_000 {
            drop(Client::to(address));
        }
        neighbour.works();
        drop(neighbour);
        let lost = || {
            let metrics = get(admin, "/metrics").1;
            let lost = metrics.lines().find_map(|line| line.strip_prefix("portway_log_lines_dropped{} ")?.parse().ok());
            lost.unwrap_or(0.0)
        };
        // Each of them has at least its beginning and its end in the log. Where nobody reads, that many may wait.
        if unwritable {
            eventually("what is lost is counted", || lost() >= 4_000.0);
        }
        let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let asked = now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(asked.elapsed() < SOON, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(0));
    }
    std::fs::remove_dir_all(dir).unwrap();
}
