//! The way to a server: a stream, TLS around it where the upstream says so, and the version of HTTP that is spoken then.

use std::fmt;
use std::future::poll_fn;
use std::io;

use super::secured::Secured;
use super::site::{Upstream, Version};
use super::state_exchange::Failure;
use crate::transports::kit::balance::Address;
use crate::transports::relay::{Dial, Upstream as Stream};
use crate::transports::tls::{PeerName, handshake};

/// How HTTP/2 is named in a TLS handshake (RFC 9113, section 3.1).
const H2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// A stream to a server.
pub(super) type ServerStream = Secured<Stream>;

/// A stream to a server that is ready for requests.
pub(super) struct Dialled {
    pub(super) stream: ServerStream,
    pub(super) http2: bool,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct NotDialled {
    pub(super) failure: Failure,
    pub(super) why: String,
}

impl fmt::Display for NotDialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl NotDialled {
    fn connection(error: &io::Error) -> Self {
        Self { failure: Failure::NotConnected, why: error.to_string() }
    }

    fn handshake(why: impl Into<String>) -> Self {
        Self { failure: Failure::Handshake, why: why.into() }
    }
}

/// What is offered in the handshakes of an upstream.
const fn protocols(version: Version) -> &'static [&'static [u8]] {
    match version {
        Version::One => &[HTTP_1],
        Version::Two => &[H2],
        Version::Agreed => &[H2, HTTP_1],
    }
}

/// Opens a stream to a server, for this version of HTTP.
pub(super) async fn dial(upstream: &Upstream, version: Version, address: &Address) -> Result<Dialled, NotDialled> {
    let plain = match address {
        Address::Tls { address, .. } => &Address::Tcp(*address),
        Address::Tcp(_) | Address::Unix(_) | Address::Quic { .. } | Address::Udp(_) => address,
    };
    // Over TCP and Unix sockets; the configuration lets no others come here.
    let mut network = upstream.network.clone();
    let mut stream = network.dial(plain).map_err(|error| NotDialled::connection(&error))?;
    let connected = poll_fn(|cx| network.poll_connected(&mut stream, cx)).await;
    connected.map_err(|error| NotDialled::connection(&error))?;
    let Some(tls) = &upstream.tls else {
        return Ok(Dialled { stream: ServerStream::Plain(stream), http2: version == Version::Two });
    };
    let name = match address {
        Address::Tls { name, .. } => PeerName::new(name),
        Address::Tcp(_) | Address::Unix(_) | Address::Quic { .. } | Address::Udp(_) => tls.name.clone(),
    };
    let ssl = handshake(tls, protocols(version), &name).map_err(NotDialled::handshake)?;
    let stream = tokio_boring::SslStreamBuilder::new(ssl, stream).connect().await;
    let stream = stream.map_err(|error| NotDialled::handshake(error.to_string()))?;
    let http2 = match (version, stream.ssl().selected_alpn_protocol()) {
        (Version::Two | Version::Agreed, Some(H2)) => true,
        (Version::Two, _) => return Err(NotDialled::handshake("the server does not agree to HTTP/2")),
        // A server that names no protocol speaks what came before names.
        (Version::One | Version::Agreed, _) => false,
    };
    Ok(Dialled { stream: ServerStream::Tls(Box::new(stream)), http2 })
}
