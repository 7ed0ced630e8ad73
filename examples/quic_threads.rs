//! cargo run --example quic_threads
//!
//! Ten plain threads write to one QUIC connection, each to a stream of its own and all to one they share; eleven more
//! read at the other end. A writer waits only when the bytes that wait to be sent have used up its credit.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Mesh, MeshConfig};
use portway::transports::quic::{ClientSettings, Event, Priority, QuicClient, QuicServer, ServerSettings, blocking};
use portway::transports::tls;

const SOON: Duration = Duration::from_secs(30);
const THREADS: usize = 10;
const EACH: usize = 1 << 20;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mesh = Mesh::start(MeshConfig::default())?;
    let certificate = Arc::new(tls::Certificate::generate(&["localhost".into()])?);
    let mut tls = tls::ServerSettings::new("threads", vec![certificate.clone()]);
    tls.protocols = vec![b"threads".to_vec()];
    let settings = ServerSettings::new("threads", "127.0.0.1:0".parse()?, Arc::new(tls));
    let server = QuicServer::start(&mesh, settings, None)?;
    let client = QuicClient::start(&mesh, ClientSettings::new("client"))?;
    let mut tls = tls::ClientSettings::new(tls::PeerName::new("localhost"));
    tls.roots = tls::Roots::Only(certificate);
    tls.protocols = vec![b"threads".to_vec()];

    let here = blocking::connect(&client, server.local_addr(), Arc::new(tls), SOON)?;
    let there = blocking::accept(&server, SOON)?;
    let shared = here.open_uni(Priority::default(), SOON)?;

    let received: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn({
                    let (here, shared) = (&here, &shared);
                    move || write(here, shared, number)
                })
            })
            .collect();
        let readers: Vec<_> = (0..=THREADS).map(|_| scope.spawn(|| read(&there))).collect();
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        shared.finish(SOON)?;
        readers.into_iter().map(|reader| reader.join().map_err(|_| "a reader panicked")?).sum::<Outcome<usize>>()
    })?;
    println!("{received} bytes received");

    let late = here.open_uni(Priority::default(), SOON)?;
    here.close(0, "done");
    let farewell = here.join(SOON)?;
    let [sent, _, lost] = farewell.info.packets;
    println!("{}; {sent} packets sent, {lost} lost, round trip {:?}", farewell.end, farewell.info.rtt);
    for event in there.events(SOON) {
        if let Event::Closed(end) = event {
            println!("the other end saw: {end}");
            break;
        }
    }
    // Safe while handles live elsewhere: they answer that the connection has ended.
    server.stop();
    client.stop();
    if let Err(error) = late.write("late", SOON) {
        println!("a late write answers: {error}");
    }
    mesh.stop()?;
    Ok(())
}

fn write(connection: &blocking::Connection, shared: &blocking::SendStream, number: usize) -> Outcome<()> {
    let own = connection.open_uni(Priority::default(), SOON)?;
    own.write(vec![b'0' + number as u8; EACH], SOON)?;
    own.finish(SOON)?;
    shared.write(format!("thread {number} is done\n"), SOON)?;
    Ok(())
}

fn read(connection: &blocking::Connection) -> Outcome<usize> {
    let stream = connection.accept_uni(SOON)?;
    let mut received = 0;
    while let Some(bytes) = stream.read(256 << 10, SOON)? {
        received += bytes.len();
    }
    Ok(received)
}
