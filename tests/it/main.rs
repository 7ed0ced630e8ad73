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
mod probe;
#[cfg(feature = "quic")]
mod quic;
mod relay;
mod reload;
mod rooms;
mod service;
mod supervise;
mod upstreams;
