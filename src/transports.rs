//! The transports, and what they have in common: in each, `codec` (bytes to frames and back) and `state` (all
//! decisions) know no socket, clock or runtime; `actor` does the I/O.

#[cfg(feature = "udp")]
pub mod datagram;
pub mod framed;
#[cfg(feature = "http")]
pub mod http;
#[cfg(all(feature = "http", feature = "quic"))]
pub mod http3;
pub mod kit;
#[cfg(feature = "moq")]
pub mod moq;
#[cfg(feature = "wireguard")]
pub mod netstack;
#[cfg(feature = "quic")]
pub mod quic;
pub mod relay;
pub mod tcp;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "wireguard")]
pub mod tun;
#[cfg(feature = "udp")]
pub mod udp;
#[cfg(all(feature = "http", feature = "quic"))]
pub mod webtransport;
#[cfg(feature = "wireguard")]
pub mod wireguard;
