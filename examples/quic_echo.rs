//! cargo run --example quic_echo
//!
//! A QUIC echo, and a client that talks to it. With an address it stays and serves; its certificate is generated, and
//! written to a file for clients to trust: `cargo run --example quic_echo -- 127.0.0.1:4433 cert.pem`
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Mesh, MeshConfig};
use portway::transports::quic::{ClientSettings, Echo, Priority, QuicClient, QuicServer, ServerSettings, blocking};
use portway::transports::tls;

const SOON: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next();
    let mesh = Mesh::start(MeshConfig::default())?;

    let certificate = Arc::new(tls::Certificate::generate(&["localhost".into(), "127.0.0.1".into()])?);
    let mut tls = tls::ServerSettings::new("echo", vec![certificate.clone()]);
    tls.protocols = vec![b"echo".to_vec()];
    let address = listen.as_deref().unwrap_or("127.0.0.1:0");
    let address = address.parse().map_err(|_| format!("{address} is no address: 127.0.0.1:4433, [::1]:4433"))?;
    let settings = ServerSettings::new("echo", address, Arc::new(tls));
    // Each connection gets an echo that runs inside its actor.
    let server = QuicServer::start(&mesh, settings, Some(Arc::new(|_| Some(Box::new(Echo::default())))))?;
    println!("listening on {}", server.local_addr());
    if listen.is_some() {
        if let Some(file) = arguments.next() {
            std::fs::write(file, certificate.to_pem()?)?;
        }
        loop {
            std::thread::park();
        }
    }

    let client = QuicClient::start(&mesh, ClientSettings::new("client"))?;
    let mut tls = tls::ClientSettings::new(tls::PeerName::new("localhost"));
    tls.roots = tls::Roots::Only(certificate);
    tls.protocols = vec![b"echo".to_vec()];
    let connection = blocking::connect(&client, server.local_addr(), Arc::new(tls), SOON)?;
    let (send, receive) = connection.open(Priority::default(), SOON)?;
    send.write("hello", SOON)?;
    send.finish(SOON)?;
    let echo = receive.read_to_end(100, SOON)?;
    println!("{} came back", String::from_utf8_lossy(&echo));
    connection.close(0, "done");
    println!("{}", connection.join(SOON)?.end);
    server.stop();
    client.stop();
    mesh.stop()?;
    Ok(())
}
