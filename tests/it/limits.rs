//! The edges of what a process may hold: file descriptors that run out, and thousands of relayed streams in a drain.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::gateway::{Binary, Client, Kept, Neighbour, free, get};
use crate::probe::{SOON, eventually, now, wait};
use crate::relay::Server;

#[test]
fn a_shortage_of_descriptors_is_counted_once_hurts_nobody_and_passes() {
    let (admin, echo) = (free(), free());
    let text = format!(
        "version = 1\n[runtime]\narbiters = 1\n[admin]\nlisten = \"{admin}\"\n\
         [[listener]]\nname = \"echo\"\nlisten = \"{echo}\"\nprotocol = \"framed\"\nservice = \"echo\"\n"
    );
    let mut binary = Binary::start_limited(&text, 64);
    binary.says("running");
    let mut neighbour = Neighbour::of(echo);
    let mut asks = Kept::to(admin);
    let mut counted = || {
        let metrics = asks.get("/metrics");
        let line = metrics.lines().find(|line| line.contains("no_descriptor")).map(|line| line.rsplit(' ').next());
        line.flatten().map_or(0, |count| count.parse::<u32>().unwrap())
    };
    assert_eq!(counted(), 0);
    // More than there are descriptors for: the rest waits in the kernel's queue.
    let mut clients: Vec<_> = (0..100).map(|_| Client::to(echo)).collect();
    clients.iter_mut().for_each(|client| client.send(b"x"));
    eventually("the shortage is counted", || counted() > 0);
    // It looks ten times a second.
    let end = now() + Duration::from_millis(500);
    while now() < end {
        neighbour.works();
    }
    assert_eq!(counted(), 1, "once per shortage and not per look");
    drop(clients);
    eventually("it answers again", || TcpStream::connect(admin).is_ok() && get(admin, "/healthz").0 == 200);
    eventually("all is as before", || {
        let mut client = Client::to(echo);
        client.send(b"y");
        let mut answer = [0; 5];
        client.0.read_exact(&mut answer).is_ok()
    });
    neighbour.works();
}

/// When something is wrong is when people look in: the admin listener and the control socket have descriptors of their
/// own, also for a reload that reads files. Who holds more admin connections than are kept back makes room for others.
#[test]
fn a_shortage_of_descriptors_locks_nobody_out_who_looks_in() {
    let (admin, echo) = (free(), free());
    let text = |level: &str| {
        format!(
            "version = 1\n[runtime]\narbiters = 1\n[log]\nlevel = \"{level}\"\n[admin]\nlisten = \"{admin}\"\n\
             control = \"control.sock\"\n[[listener]]\nname = \"echo\"\nlisten = \"{echo}\"\nprotocol = \"framed\"\n\
             service = \"echo\"\n"
        )
    };
    let mut binary = Binary::start_limited(&text("info"), 64);
    binary.says("running");
    let mut neighbour = Neighbour::of(echo);
    let clients: Vec<_> = (0..100).map(|_| Client::to(echo)).collect();
    binary.says("no file descriptor is left");
    let evicted = || value(&get(admin, "/metrics").1, "portway_admin_evicted_total{listener=\"admin\"}");
    // More often than there are descriptors kept back: each comes home.
    for _ in 0..20 {
        assert_eq!(get(admin, "/readyz"), (200, "ready\n".to_owned()));
    }
    assert_eq!(evicted(), 0);
    for level in ["warn", "info", "warn"] {
        binary.rewrite(&text(level));
        let done = binary.portway(&["reload"]);
        assert!(done.status.success(), "{done:?}");
        let status = binary.portway(&["status"]);
        assert!(status.status.success(), "{status:?}");
    }
    // More that stay than can find one: those who came first have to go.
    let held: Vec<_> = (0..40).map(|_| TcpStream::connect(admin).unwrap()).collect();
    eventually("the others get in", || evicted() >= 10);
    assert_eq!(get(admin, "/healthz").0, 200);
    neighbour.works();
    drop((held, clients));
    eventually("all is as before", || {
        let mut client = Client::to(echo);
        client.send(b"y");
        let mut answer = [0; 5];
        client.0.read_exact(&mut answer).is_ok()
    });
    neighbour.works();
}

fn relay_config(admin: SocketAddr, front: SocketAddr, upstream: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = 1\n[admin]\nlisten = \"{admin}\"\n[[upstream]]\nname = \"app\"\n\
         servers = [\"{upstream}\"]\n[[listener]]\nname = \"front\"\nlisten = \"{front}\"\nprotocol = \"relay\"\n\
         upstream = \"app\"\n"
    )
}

/// The value of a line of the metrics page; 0 where there is none.
fn value(metrics: &str, line: &str) -> usize {
    let found = metrics.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0, |value| value.parse().unwrap())
}

/// The sum over all lines that begin so.
fn family(metrics: &str, name: &str) -> usize {
    let values = metrics.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<usize>().unwrap()).sum()
}

/// The acceptor takes the last descriptors, and none is left to reach a server: each of those clients is reset and
/// counted once, no server is blamed, and when descriptors come back all is as before.
#[test]
fn a_shortage_of_descriptors_blames_no_server() {
    const CLIENTS: usize = 100;
    let server = Server::start();
    let (admin, front) = (free(), free());
    let mut binary = Binary::start_limited(&relay_config(admin, front, &server.servers()[0].to_string()), 64);
    binary.says("running");
    let works = |client: &mut TcpStream| {
        let mut answer = [0; 5];
        client.write_all(b"hello")?;
        client.read_exact(&mut answer)?;
        assert_eq!(&answer, b"hello");
        std::io::Result::Ok(())
    };
    let connect = || {
        let client = TcpStream::connect(front).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client
    };
    // The first byte tells the server to echo.
    let joins = |client: &mut TcpStream| client.write_all(b"e").and_then(|()| works(client));
    let mut neighbour = connect();
    joins(&mut neighbour).unwrap();
    // All at once: they wait in the kernel's queue until the gateway goes on.
    binary.signal("STOP");
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
    binary.signal("CONT");
    binary.says("no file descriptor is left");
    works(&mut neighbour).unwrap();
    // Who is answered or reset leaves room for the next in the queue, so that each is, in the end.
    let (mut joined, mut reset) = (0, 0);
    for mut client in clients {
        match joins(&mut client) {
            Ok(()) => joined += 1,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => reset += 1,
            Err(error) => panic!("neither joined nor reset after {joined} and {reset}: {error}"),
        }
    }
    assert!(joined > 0 && reset > 0, "{joined} of {CLIENTS}");
    works(&mut neighbour).unwrap();
    eventually("it answers again", || TcpStream::connect(admin).is_ok() && get(admin, "/healthz").0 == 200);
    let closed = |metrics: &str, reason: &str| {
        value(metrics, &format!("portway_connections_closed_total{{listener=\"front\",reason=\"{reason}\"}}"))
    };
    let mut metrics = String::new();
    eventually("those that were joined have ended", || {
        metrics = get(admin, "/metrics").1;
        closed(&metrics, "finished") + closed(&metrics, "client_reset") == joined
    });
    assert_eq!(closed(&metrics, "connect_local"), reset, "{metrics}");
    assert_eq!(family(&metrics, "portway_connections_closed_total{"), CLIENTS, "{metrics}");
    assert_eq!(value(&metrics, "portway_connections_accepted_total{listener=\"front\"}"), CLIENTS + 1);
    let failed = |reason: &str| format!("portway_upstream_failures_total{{upstream=\"app\",reason=\"{reason}\"}}");
    assert_eq!(value(&metrics, &failed("connect_local")), reset, "{metrics}");
    assert_eq!(family(&metrics, "portway_upstream_failures_total{"), reset, "no server is blamed: {metrics}");
    works(&mut neighbour).unwrap();
    let mut later = connect();
    joins(&mut later).unwrap();
    let status: serde_json::Value = serde_json::from_str(&get(admin, "/api/status").1).unwrap();
    let server = &status["servers"][0];
    assert_eq!((&server["healthy"], &server["failures"]), (&true.into(), &0.into()), "{status}");
    works(&mut neighbour).unwrap();
}

/// Without descriptors there are no pipes to splice through: streams are copied as if nothing were.
#[test]
fn a_shortage_of_descriptors_takes_the_pipes_and_no_bytes() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (admin, front) = (free(), free());
    let mut binary =
        Binary::start_limited(&relay_config(admin, front, &upstream.local_addr().unwrap().to_string()), 64);
    binary.says("running");
    let (mut beside, mut served_beside) = (TcpStream::connect(front).unwrap(), upstream.accept().unwrap().0);
    let mut beside_works = || {
        let mut got = [0; 5];
        beside.write_all(b"hello").unwrap();
        served_beside.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    };
    beside_works();
    let mut client = TcpStream::connect(front).unwrap();
    let (mut served, _) = upstream.accept().unwrap();
    let clients: Vec<_> = (0..60).map(|_| TcpStream::connect(front).unwrap()).collect();
    eventually("no descriptor is left", || binary.open_files() >= 63);
    beside_works();
    let bytes: Vec<u8> = (0..32 << 20).map(|n: u32| (n * 31 + n / 251) as u8).collect();
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let mut got = Vec::new();
    served.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    beside_works();
    // With the listener go the streams that nobody served.
    drop((clients, writing.join().unwrap(), served, upstream));
    eventually("it answers again", || TcpStream::connect(admin).is_ok() && get(admin, "/healthz").0 == 200);
    let (_, metrics) = get(admin, "/metrics");
    // Asked for again after each megabyte.
    let none = value(&metrics, "portway_relay_no_pipe_total{listener=\"front\"}");
    assert!((1..=32).contains(&none), "{none} times for 32 MiB: {metrics}");
    assert!(!metrics.contains("relay_bytes_spliced"), "{metrics}");
}

/// A side that takes nothing costs memory of the kernel's, bounded by its sockets, and none of ours: in either direction,
/// and also when the sender has ended its own.
#[test]
fn memory_stays_flat_while_one_side_stalls() {
    const STREAMS: usize = 24;
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (admin, front) = (free(), free());
    let mut binary = Binary::start(&relay_config(admin, front, &upstream.local_addr().unwrap().to_string()));
    binary.says("running");
    let open = || {
        let client = TcpStream::connect(front).unwrap();
        let (served, _) = upstream.accept().unwrap();
        (client, served)
    };
    let (mut beside, mut served_beside) = open();
    let mut beside_works = || {
        beside.write_all(b"hello").unwrap();
        served_beside.read_exact(&mut [0; 5]).unwrap();
        served_beside.write_all(b"hello").unwrap();
        beside.read_exact(&mut [0; 5]).unwrap();
    };
    for from_client in [true, false] {
        beside_works();
        // What is paid once: buffers of the arbiter, pipes, tables.
        let (mut client, mut served) = open();
        client.write_all(&[1; 4 << 10]).unwrap();
        served.read_exact(&mut [0; 4 << 10]).unwrap();
        drop((client, served));
        eventually("it is idle", || binary.open_files() < 40);
        let (files, before) = (binary.open_files(), binary.resident());
        let mut offered = 0;
        let mut streams = Vec::new();
        for n in 0..STREAMS {
            let (client, served) = open();
            let (mut sender, mut other) = if from_client { (client, served) } else { (served, client) };
            sender.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            let piece = [n as u8; 64 << 10];
            // A first part is taken, so that it is spliced from then on; then the other side stalls.
            let taking = std::thread::spawn(move || {
                other.read_exact(&mut vec![0; 1 << 20]).unwrap();
                other
            });
            while let Ok(count) = sender.write(&piece) {
                offered += count;
            }
            let other = taking.join().unwrap();
            while let Ok(count) = sender.write(&piece) {
                offered += count;
            }
            if n % 2 == 0 {
                sender.shutdown(Shutdown::Write).unwrap();
            }
            streams.push((sender, other));
        }
        assert!(offered > STREAMS << 20, "{offered}");
        let stalled = binary.resident();
        let grown = stalled.saturating_sub(before);
        // One read of each stream at most, and the actor.
        assert!(grown < STREAMS * (64 << 10) + (2 << 20), "{grown} bytes more for {offered} offered");
        std::thread::sleep(Duration::from_secs(1));
        let later = binary.resident().saturating_sub(stalled);
        assert!(later < 256 << 10, "{later} bytes more while nothing moved");
        beside_works();
        drop(streams);
        eventually("every descriptor is back", || binary.open_files() <= files + 2 * 16);
    }
}

#[test]
fn five_thousand_relayed_streams_finish_in_a_drain() {
    const STREAMS: usize = 5_000;
    let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: nofile.maximum, maximum: nofile.maximum },
    )
    .unwrap();
    assert!(nofile.maximum.is_none_or(|most| most >= 12_000), "this test needs 12,000 open files: ulimit -Hn");
    let front = free();
    let (server, serving) = std::sync::mpsc::channel();
    let (go, going) = tokio::sync::watch::channel(false);
    let (ready, all_ready) = std::sync::mpsc::channel();
    let load = std::thread::spawn(move || {
        wait(async move {
            let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            server.send(upstream.local_addr().unwrap()).unwrap();
            let accepting = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = upstream.accept().await.unwrap();
                    tokio::spawn(async move {
                        let (mut read, mut write) = stream.split();
                        let _ended = tokio::io::copy(&mut read, &mut write).await;
                    });
                }
            });
            // The gateway is started once it can be told the server's address.
            while tokio::net::TcpStream::connect(front).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut clients = tokio::task::JoinSet::new();
            // The queues of both listeners are finite, and who finds one full is not heard for a second and more.
            let joining = Arc::new(tokio::sync::Semaphore::new(200));
            for n in 0..STREAMS {
                let (mut going, ready) = (going.clone(), ready.clone());
                let place = joining.clone().acquire_owned().await.unwrap();
                clients.spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(front).await.unwrap();
                    let mut echo = [0; 4];
                    stream.write_all(&(n as u32).to_be_bytes()).await.unwrap();
                    stream.read_exact(&mut echo).await.unwrap();
                    assert_eq!(u32::from_be_bytes(echo) as usize, n);
                    drop(place);
                    ready.send(()).unwrap();
                    going.wait_for(|go| *go).await.unwrap();
                    // The drain has begun: what is under way is finished all the same.
                    stream.write_all(b"last words").await.unwrap();
                    stream.shutdown().await.unwrap();
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await.unwrap();
                    rest == b"last words"
                });
            }
            let whole = clients.join_all().await.into_iter().filter(|whole| *whole).count();
            accepting.abort();
            whole
        })
    });
    let upstream: SocketAddr = serving.recv_timeout(SOON).unwrap();
    let text = format!(
        "version = 1\n[runtime]\narbiters = 2\ndrain = \"30s\"\n[[upstream]]\nname = \"app\"\nservers = [\"{upstream}\"]\n\
         [[listener]]\nname = \"front\"\nlisten = \"{front}\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
         [listener.limits]\nhalf_open = 6000\n"
    );
    let mut binary = Binary::start(&text);
    binary.says("running");
    for _ in 0..STREAMS {
        all_ready.recv_timeout(SOON * 3).expect("all are relayed");
    }
    binary.signal("TERM");
    binary.says("draining");
    eventually("new ones are refused", || TcpStream::connect(front).is_err());
    go.send(true).unwrap();
    let line = binary.says("unfinished=");
    assert!(line.contains("unfinished=0"), "{line}");
    assert_eq!(binary.ends_within(SOON * 3).code(), Some(0));
    assert_eq!(load.join().unwrap(), STREAMS);
}
