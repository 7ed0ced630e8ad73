//! What the QUIC servers measured here have in common, so that nothing but the library differs between them.
//!
//! The protocol (ALPN `bench`): a client opens a bidirectional stream and sends how many bytes it wants, 8 bytes big
//! endian, then any padding and the end; the server answers at once with that many bytes of [`body`] and the end, and
//! reads the padding away. Every library gets the same windows, buffers and datagram size from the constants below.

#[path = "../../peers/src/lib.rs"]
pub mod kit;

use std::net::{SocketAddr, UdpSocket};
use std::sync::LazyLock;

use bytes::Bytes;

pub const ALPN: &[u8] = b"bench";

/// Bytes of a UDP payload after discovery: what fits an Ethernet frame under IPv6. Research measured 1,350 for
/// tokio-quiche, its default, and 1,452 to 1,472 for the others.
pub const DATAGRAM: u16 = 1_452;
/// Bytes the peer may send on one stream before they are read.
pub const STREAM_WINDOW: u32 = 16 << 20;
/// Bytes the peer may send on all streams of a connection before they are read.
pub const WINDOW: u32 = 64 << 20;
/// Streams the client may have open at once.
pub const STREAMS: u32 = 1_000;
/// The kernel's buffers for a socket.
pub const SOCKET_BUFFER: usize = 4 << 20;

/// Bytes after which the body repeats; also the most that is written at once.
pub const PERIOD: usize = 64 << 10;

static BODY: LazyLock<&'static [u8]> = LazyLock::new(|| {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut body = Vec::with_capacity(2 * PERIOD);
    while body.len() < PERIOD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend_from_slice(&state.to_le_bytes());
    }
    body.extend_from_within(..);
    Box::leak(body.into_boxed_slice())
});

/// At most `most` bytes of the answer, from `offset` on; no copy, no count of references.
pub fn body(offset: u64, most: u64) -> Bytes {
    Bytes::from_static(slice(offset, most.min(PERIOD as u64) as usize))
}

/// The bytes of the answer at `offset`, at most [`PERIOD`] of them.
pub fn slice(offset: u64, len: usize) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &BODY[start..start + len]
}

/// Whether `chunk` is what belongs at `offset`.
pub fn matches(mut offset: u64, chunk: &[u8]) -> bool {
    chunk.chunks(PERIOD).all(|part| {
        let same = part == slice(offset, part.len());
        offset += part.len() as u64;
        same
    })
}

/// The first bytes of a stream, until they say how many are wanted.
#[derive(Debug, Default)]
pub struct Head {
    bytes: [u8; 8],
    len: usize,
}

impl Head {
    /// Takes what came; answers once, with the number wanted. What is behind the number is padding.
    pub fn take(&mut self, bytes: &[u8]) -> Option<u64> {
        if self.len == self.bytes.len() {
            return None;
        }
        let taken = bytes.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        (self.len == self.bytes.len()).then(|| u64::from_be_bytes(self.bytes))
    }
}

/// A bound socket with the buffers every library gets.
pub fn socket(listen: SocketAddr) -> UdpSocket {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::DGRAM, None).expect("a socket");
    socket.set_recv_buffer_size(SOCKET_BUFFER).expect("a receive buffer");
    socket.set_send_buffer_size(SOCKET_BUFFER).expect("a send buffer");
    socket.set_nonblocking(true).expect("a socket option");
    socket.bind(&listen.into()).expect("the address is free");
    socket.into()
}

/// What a server is started with.
pub struct Serve {
    pub listen: SocketAddr,
    pub certificate: String,
    pub key: String,
    pub args: kit::Args,
}

impl Serve {
    /// `--listen 127.0.0.1:9001 --certificate cert.pem --key key.pem`
    pub fn parse() -> Self {
        let args = kit::Args::parse();
        Self {
            listen: args.text("listen", "127.0.0.1:9001").parse().expect("--listen: an address and a port"),
            certificate: args.text("certificate", "cert.pem"),
            key: args.text("key", "key.pem"),
            args,
        }
    }

    /// Says that clients may come; the script waits for it.
    pub fn ready(&self) {
        println!("ready {}", self.listen);
    }
}

/// One thread, as every server here has.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_the_same_wherever_it_is_cut() {
        for (offset, len) in [(0, 10), (1, 64 << 10), (65_535, 2), (65_536, 1), ((7 << 30) + 11, 1_452)] {
            let chunk: Vec<u8> = (0..len).map(|n| slice(offset + n as u64, 1)[0]).collect();
            assert!(matches(offset, &chunk));
            assert!(!matches(offset + 1, &chunk), "a shifted body must not match");
        }
        assert_eq!(body(5, u64::MAX).len(), PERIOD);
        assert_eq!(body(5, 3), slice(5, 3));
    }

    #[test]
    fn a_head_answers_once_however_it_is_cut() {
        let mut head = Head::default();
        assert_eq!(head.take(&[0, 0, 0]), None);
        assert_eq!(head.take(&[0, 0, 0, 4, 1, 99]), Some(1_025));
        assert_eq!(head.take(&[1, 2, 3]), None);
    }
}
