//! What the HTTP/3 load and the servers beside it have in common: arguments, accounts, TLS, bodies.

#[path = "../../peers/src/lib.rs"]
pub mod kit;

use std::net::SocketAddr;

/// Bytes that may be received ahead on a stream, and on a connection.
pub const STREAM_WINDOW: u32 = 16 << 20;
pub const WINDOW: u32 = 64 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// At most `most` bytes of a body.
pub fn body(most: u64) -> bytes::Bytes {
    bytes::Bytes::from_static(&ZEROS[..most.min(ZEROS.len() as u64) as usize])
}

/// `GET /1024` asks for 1,024 bytes.
pub fn size_of(path: &str) -> u64 {
    path.trim_start_matches('/').parse().unwrap_or(0)
}

/// What a server is started with: `--listen 127.0.0.1:9001 --certificate cert.pem --key key.pem`.
pub struct Serve {
    pub listen: SocketAddr,
    pub certificate: String,
    pub key: String,
}

impl Serve {
    pub fn parse() -> Self {
        let args = kit::Args::parse();
        Self {
            listen: args.text("listen", "127.0.0.1:9001").parse().expect("--listen: an address and a port"),
            certificate: args.text("certificate", "cert.pem"),
            key: args.text("key", "key.pem"),
        }
    }
}

/// One thread, as everybody here has.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
