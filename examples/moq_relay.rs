//! cargo run --example moq_relay -- 127.0.0.1:4443 cert.pem
//!
//! A relay of Media over QUIC inside a program of one's own. Its certificate is generated, and written to the file for
//! clients to trust: `cargo run --example moq_clock -- publish 127.0.0.1:4443 cert.pem`
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use portway::actors::{Mesh, MeshConfig};
use portway::transports::moq::model::Draft;
use portway::transports::moq::{Relay, RelaySettings, Scope, Site};
use portway::transports::quic::{QuicServer, ServerSettings};
use portway::transports::tls;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:4443".to_owned());
    let mesh = Mesh::start(MeshConfig::default())?;
    let (server, certificate) = start(&mesh, listen.parse()?)?;
    println!("listening on {}", server.local_addr());
    if let Some(file) = arguments.next() {
        std::fs::write(file, certificate.to_pem()?)?;
    }
    loop {
        std::thread::park();
    }
}

/// A relay on this address, and the certificate that its clients are to trust. It runs until the server is stopped.
pub(crate) fn start(mesh: &Mesh, listen: SocketAddr) -> Result<(QuicServer, Arc<tls::Certificate>), Box<dyn Error>> {
    // One scope for all paths: everybody sees the same tracks.
    let name: Arc<str> = Arc::from("relay");
    let relay = Relay::start(mesh, &name, RelaySettings::default())?;
    let site = Site::over_quic(name, vec![Scope { path: None, authority: None, relay }]);

    let certificate = Arc::new(tls::Certificate::generate(&["localhost".into(), "127.0.0.1".into()])?);
    let mut tls = tls::ServerSettings::new("relay", vec![certificate.clone()]);
    tls.protocols = Draft::ALL.iter().map(|draft| draft.alpn().as_bytes().to_vec()).collect();
    let settings = ServerSettings::new("relay", listen, Arc::new(tls));
    // Each connection gets a session that runs inside its actor.
    let server = QuicServer::start(mesh, settings, Some(Arc::new(move |_| Some(site.application()))))?;
    Ok((server, certificate))
}
