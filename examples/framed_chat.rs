//! cargo run --release --example framed_chat
//!
//! 100 clients in one room, one of which is slow: it reads nothing until all is said. Each of the others speaks in
//! turn and counts what it hears. Every one of them hears everything; the slow one alone is closed.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Budget as Restarts, Mesh, MeshConfig, Place};
use portway::memory::Budget;
use portway::transports::framed::rooms::{Limits, Rooms};
use portway::transports::framed::{ClientError, Format, FramedClient, Settings};
use portway::transports::kit::admission::{Caps, Occupancy};
use portway::transports::tcp::{Acceptor, AcceptorSettings, bind};
use tokio::sync::Barrier;

const CLIENTS: usize = 100;
const ROUNDS: usize = 10;
/// What each says per round.
const LINE: usize = 20_000;

async fn join(address: SocketAddr) -> Result<FramedClient, ClientError> {
    let mut client = FramedClient::connect(address, Format::default()).await?;
    client.send(b"Jlobby").await?;
    assert_eq!(client.recv().await?.as_deref(), Some(&b"Jlobby"[..]), "let in");
    Ok(client)
}

/// Speaks once per round and then hears all the others; how many lines came.
async fn talk(address: SocketAddr, step: &Barrier) -> Result<usize, ClientError> {
    let mut client = join(address).await?;
    let mut heard = 0;
    for _ in 0..ROUNDS {
        step.wait().await;
        client.send(&[b'M'; LINE]).await?;
        for _ in 0..CLIENTS - 2 {
            match client.recv().await? {
                Some(_) => heard += 1,
                None => return Ok(heard),
            }
        }
    }
    step.wait().await;
    Ok(heard)
}

/// Joins, and reads nothing until all is said; how many lines came before it was closed.
async fn sleep_through(address: SocketAddr, step: &Barrier) -> Result<(usize, bool), ClientError> {
    let mut client = join(address).await?;
    for _ in 0..=ROUNDS {
        step.wait().await;
    }
    let mut heard = 0;
    loop {
        match client.recv().await {
            Ok(Some(_)) => heard += 1,
            Ok(None) | Err(_) => return Ok((heard, heard < ROUNDS * (CLIENTS - 1))),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mesh = Mesh::start(MeshConfig::default())?;
    let socket = bind("127.0.0.1:0".parse()?)?;
    let address = socket.local_addr()?;
    let name: Arc<str> = Arc::from("chat");
    let listener = AcceptorSettings {
        name: name.clone(),
        caps: Caps { connections: 1_000, per_source: 1_000, half_open: 1_000, base_bytes: 4 << 10 },
        budget: Budget::new(1 << 30),
        shed_delay: Duration::from_millis(500),
        occupancy: Arc::new(Occupancy::default()),
    };
    // Half of what one client is sent may wait for it; who lets more wait is slow and is closed.
    let outbound = ROUNDS * (CLIENTS - 2) * LINE / 4;
    let settings = Settings { outbound, ..Settings::default() };
    Acceptor::start(&mesh, Place::On(0), Arc::new(socket), listener, Restarts::default(), move || {
        Rooms::new(name.clone(), settings.clone(), Limits::default())
    })?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let step = Barrier::new(CLIENTS);
    let (heard, slow, totals) = runtime.block_on(async {
        let others = (1..CLIENTS).map(|_| talk(address, &step));
        let (heard, slow) =
            tokio::try_join!(futures_util::future::try_join_all(others), sleep_through(address, &step))?;
        Ok::<_, ClientError>((heard, slow, mesh.view().await.totals))
    })?;
    mesh.stop()?;

    for (number, heard) in (1..).zip(&heard) {
        print!("{number:>3}: {heard}{}", if number % 10 == 0 || number == CLIENTS - 1 { "\n" } else { "   " });
    }
    let all = ROUNDS * (CLIENTS - 2);
    let complete = heard.iter().filter(|heard| **heard == all).count();
    println!("{complete} of {} clients heard all {all} lines of the others", heard.len());
    println!("the slow one heard {} and was {}", slow.0, if slow.1 { "closed" } else { "not closed" });
    let count = |family: &str| totals.get(family, "chat", "");
    println!(
        "{} broadcasts, {} deliveries, {} messages between {} arbiters",
        count("rooms_broadcasts"),
        count("rooms_deliveries"),
        count("rooms_cross_arbiter"),
        mesh.arbiters()
    );
    let closed = totals.get("connections_closed", "chat", "slow_reader");
    assert_eq!((complete, closed), (CLIENTS - 1, 1), "only the slow one suffered");
    Ok(())
}
