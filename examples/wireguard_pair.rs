//! cargo run --release --example wireguard_pair [MiB]
//!
//! Two WireGuard interfaces in one process, with netstacks inside, over UDP on loopback: no root, no TUN. One asks the
//! other's echo service. With a number, it then sends so many MiB each way and says what the server's arbiter, which
//! carries all of its path, took of the CPU for it.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Kind, Mail, Mesh, MeshConfig, Place, SpawnError, Spec, Turn, clock};
use portway::transports::framed::{self, Echo, Format, FramedClient};
use portway::transports::netstack::{self, Framed, MakeServe, NetMsg, Serve, Visitor, connect};
use portway::transports::wireguard::{
    Interface, PeerSettings, SecretKey, Settings, Threading, bind, public_key, start_netstack,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(60);
const ECHO: u16 = 7001;
/// Takes whatever comes and answers one byte at the end.
const SINK: u16 = 7002;
/// Reads a number of bytes, 8 in big endian, and sends as many.
const SOURCE: u16 = 7003;

struct Site {
    stack: Mail<NetMsg>,
    listens: SocketAddr,
}

fn site(
    mesh: &Mesh,
    arbiter: usize,
    key: u8,
    address: &str,
    peer: u8,
    at: Option<SocketAddr>,
) -> Result<Site, Box<dyn Error>> {
    let (name, ip): (_, IpAddr) = (format!("wg{arbiter}"), address.parse()?);
    // Keys for everybody to see: `portway keygen wireguard` makes real ones.
    let mut settings = Settings::new(&name, SecretKey::new([key; 32]));
    settings.addresses = vec![(ip, format!("{address}/24").parse()?)];
    settings.threading = Threading::Single { arbiter };
    let mut inside = netstack::Settings::new(&name, settings.addresses.clone(), usize::from(settings.mtu));
    inside.window = 1 << 20;
    let scope: Arc<str> = Arc::from(name.as_str());
    let echo: MakeServe = {
        let settings = Arc::new(framed::Settings::default());
        Arc::new(move || Box::new(Framed::new(scope.clone(), settings.clone(), || Echo)))
    };
    let stream = |source| -> MakeServe { Arc::new(move || Box::new(Stream { source })) };
    inside.services = vec![
        (SocketAddr::new(ip, ECHO), echo),
        (SocketAddr::new(ip, SINK), stream(false)),
        (SocketAddr::new(ip, SOURCE), stream(true)),
    ];
    let socket = bind("127.0.0.1:0".parse()?)?;
    let listens = socket.local_addr()?;
    let mut other = PeerSettings::new(public_key(&SecretKey::new([peer; 32])), vec!["10.98.0.0/24".parse()?]);
    other.endpoint = at;
    let interface = Interface::start(mesh, socket, settings, vec![other])?;
    let stack = start_netstack(mesh, Place::On(arbiter), &interface, inside)?;
    Ok(Site { stack, listens })
}

/// A sink or a source of bytes: one future per connection.
struct Stream {
    source: bool,
}

struct Bytes;

impl Kind for Bytes {
    const KIND: &'static str = "bytes";
}

impl Serve for Stream {
    fn serve(&mut self, visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError> {
        let (mut stream, source) = (visitor.stream, self.source);
        let work = move |_| async move {
            let mut buffer = vec![7; 64 << 10];
            // Whatever goes wrong, the other side sees.
            if source {
                let mut left = stream.read_u64().await.unwrap_or(0);
                while left > 0 {
                    let now = left.min(buffer.len() as u64) as usize;
                    if stream.write_all(buffer.get(..now).unwrap_or_default()).await.is_err() {
                        break;
                    }
                    left -= now as u64;
                }
            } else {
                while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
                let _gone = stream.write_all(&[1]).await;
            }
            let _gone = stream.shutdown().await;
            Ok(())
        };
        turn.mesh().drive::<Bytes, _>(Place::On(turn.arbiter()), Spec::default(), work).map(drop)
    }
}

/// CPU seconds of the thread that is an arbiter.
fn cpu_of(thread: &str) -> Result<f64, Box<dyn Error>> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(task?.path().join("stat"))?;
        if let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.split_once(") "))
            && name == thread
        {
            // User and system time, in hundredths of a second.
            let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
            return Ok(ticks as f64 / 100.0);
        }
    }
    Err(format!("there is no thread {thread}").into())
}

async fn send(stack: &Mail<NetMsg>, port: u16, bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut stream = connect(stack, format!("10.98.0.1:{port}").parse()?, SOON).await?;
    let mut buffer = vec![7; 64 << 10];
    if port == SOURCE {
        stream.write_u64(bytes).await?;
        while stream.read(&mut buffer).await? > 0 {}
        return Ok(());
    }
    for _ in 0..bytes / buffer.len() as u64 {
        stream.write_all(&buffer).await?;
    }
    stream.shutdown().await?;
    stream.read_u8().await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mesh = Mesh::start(MeshConfig { arbiters: NonZeroUsize::new(2), ..MeshConfig::default() })?;
    let server = site(&mesh, 0, 1, "10.98.0.1", 2, None)?;
    let client = site(&mesh, 1, 2, "10.98.0.2", 1, Some(server.listens))?;
    let stream = connect(&client.stack, SocketAddr::new("10.98.0.1".parse()?, ECHO), SOON).await?;
    let mut echo = FramedClient::over(stream, Format::default());
    echo.send(b"hello through the tunnel").await?;
    let answer = echo.recv().await?.ok_or("the service hung up")?;
    println!("{}", String::from_utf8_lossy(&answer));
    if let Some(mib) = std::env::args().nth(1) {
        let bytes = mib.parse::<u64>()? << 20;
        let gbit = bytes as f64 * 8.0 / 1e9;
        for (way, port) in [("up", SINK), ("down", SOURCE)] {
            let (began, before) = (clock::now(), cpu_of("portway-0")?);
            send(&client.stack, port, bytes).await?;
            let took = clock::now().saturating_duration_since(began).as_secs_f64();
            let cpu = cpu_of("portway-0")? - before;
            println!("{way}: {:.3} Gbit/s, server {:.3} CPU s/Gbit", gbit / took, cpu / gbit);
        }
    }
    // Threads are joined, which must not happen on a thread of an event loop's.
    tokio::task::spawn_blocking(move || mesh.stop()).await??;
    Ok(())
}
