//! The one integration binary: real threads, real sockets on loopback, ports from the kernel, deadlines, no sleeps
//! that hope.

mod actors;
mod actors_faults;
mod actors_mesh;
mod admin;
mod config;
mod embed;
mod framed;
mod gateway;
mod joined;
mod limits;
mod lossy;
mod netns;
mod private_network;
mod probe;
mod quic;
mod quic_ends;
mod quic_gateway;
mod quic_moving;
mod quic_strangers;
mod relay;
mod reload;
mod rooms;
mod service;
mod supervise;
mod tun;
mod tun_host;
mod upstreams;
mod wireguard;
mod wireguard_uapi;
#[cfg(feature = "wireguard")]
#[cfg(feature = "wireguard")]
#[cfg(feature = "quic")]
#[cfg(feature = "quic")]
#[cfg(feature = "quic")]
#[cfg(feature = "quic")]
#[cfg(feature = "wireguard")]
#[cfg(feature = "wireguard")]
#[cfg(feature = "wireguard")]
#[cfg(feature = "wireguard")]
