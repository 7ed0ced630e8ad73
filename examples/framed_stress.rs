//! cargo run --release --example framed_stress [ADDRESS]
//!
//! 100 clients send 10 messages each to a framed echo, all at once, and check every answer. Without an address it
//! starts a gateway of its own.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portway::gateway::{Builder, check};
use portway::transports::framed::{ClientError, Format, FramedClient};

const CLIENTS: usize = 100;
const MESSAGES: usize = 10;

const CONFIG: &str = r#"
version = 1
[[listener]]
name = "echo"
listen = "127.0.0.1:0"
protocol = "framed"
service = "echo"
"#;

async fn client(address: SocketAddr, number: usize) -> Result<Vec<Duration>, ClientError> {
    let mut client = FramedClient::connect(address, Format::default()).await?;
    let mut times = Vec::with_capacity(MESSAGES);
    for n in 0..MESSAGES {
        let message = vec![(number + n) as u8; 10 + n * 100];
        let began = now();
        client.send(&message).await?;
        let answer = client.recv().await?;
        times.push(began.elapsed());
        assert_eq!(answer.as_deref(), Some(&message[..]), "client {number} got another answer");
    }
    Ok(times)
}

#[allow(clippy::disallowed_methods, reason = "an example measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut gateway = None;
    let address = match std::env::args().nth(1) {
        Some(address) => address.parse()?,
        None => {
            let config =
                check::parse("built in", CONFIG, &check::Known::default()).map_err(|report| report.render(false))?;
            let started = gateway.insert(Builder::new().start(config)?);
            started.listeners().map(|(_, address)| address).next().ok_or("no listener")?
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let began = now();
    let mut times = runtime.block_on(async {
        let clients = (0..CLIENTS).map(|number| client(address, number));
        futures_util::future::try_join_all(clients).await.map(|times| times.concat())
    })?;
    let took = began.elapsed();
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{CLIENTS} clients x {MESSAGES} messages: all {} answered and equal", times.len());
    println!("{took:?} in all, {:.0} messages/s", times.len() as f64 / took.as_secs_f64());
    println!("answer time p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
    if let Some(gateway) = gateway {
        gateway.stop();
    }
    Ok(())
}
