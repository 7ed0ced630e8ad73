//! The edges of what a process may hold: file descriptors that run out, and thousands of relayed streams in a drain.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::gateway::{Binary, Client, Neighbour, free, get};
use crate::probe::{SOON, eventually, wait};

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
    // More than there are descriptors for: the rest waits in the kernel's queue.
    let mut clients: Vec<_> = (0..100).map(|_| Client::to(echo)).collect();
    clients.iter_mut().for_each(|client| client.send(b"x"));
    neighbour.works();
    // The gateway itself has none left to answer on; give it some and look.
    let rest = clients.split_off(90);
    drop(clients);
    eventually("it answers again", || TcpStream::connect(admin).is_ok() && get(admin, "/healthz").0 == 200);
    let (_, metrics) = get(admin, "/metrics");
    let line = metrics.lines().find(|line| line.contains("no_descriptor")).expect("counted").to_owned();
    let count: u32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((1..=20).contains(&count), "once per shortage and not per look: {line}");
    neighbour.works();
    drop(rest);
    eventually("all is as before", || {
        let mut client = Client::to(echo);
        client.send(b"y");
        let mut answer = [0; 5];
        client.0.read_exact(&mut answer).is_ok()
    });
    neighbour.works();
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
            let mut clients = tokio::task::JoinSet::new();
            for n in 0..STREAMS {
                let (mut going, ready) = (going.clone(), ready.clone());
                // Spread over sources and time: the queue of the listener and the ports of one address are finite.
                if n % 100 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                clients.spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(front).await.unwrap();
                    let mut echo = [0; 4];
                    stream.write_all(&(n as u32).to_be_bytes()).await.unwrap();
                    stream.read_exact(&mut echo).await.unwrap();
                    assert_eq!(u32::from_be_bytes(echo) as usize, n);
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
