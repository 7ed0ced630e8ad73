//! The one integration binary: real threads, real sockets on loopback, ports from the kernel, deadlines, no sleeps
//! that hope.

mod actors;
mod actors_faults;
mod actors_mesh;
mod admin;
#[cfg(feature = "http")]
mod admin_tls;
mod config;
mod dashboard;
#[cfg(feature = "deadlock")]
mod deadlock;
#[cfg(all(feature = "moq", feature = "wireguard", feature = "http"))]
mod docs;
#[cfg(feature = "http")]
mod doctor;
mod embed;
mod forward;
mod framed;
mod gateway;
#[cfg(feature = "http")]
mod http;
#[cfg(all(feature = "http", feature = "quic"))]
mod http3;
#[cfg(all(feature = "http", feature = "quic"))]
mod http3_bad;
#[cfg(all(feature = "http", feature = "quic"))]
mod http3_interop;
#[cfg(all(feature = "http", feature = "quic"))]
mod http_ends;
#[cfg(all(feature = "http", feature = "quic"))]
mod http_heads;
#[cfg(feature = "http")]
mod http_limits;
#[cfg(all(feature = "http", feature = "quic"))]
mod http_peers;
#[cfg(feature = "http")]
mod http_routes;
#[cfg(feature = "http")]
mod http_upstreams;
#[cfg(feature = "wireguard")]
mod interop_wireguard;
#[cfg(feature = "wireguard")]
mod interop_wireguard_gateway;
mod joined;
mod limits;
#[cfg(feature = "quic")]
mod lossy;
mod memory;
#[cfg(feature = "moq")]
mod moq;
#[cfg(feature = "moq")]
mod moq_bad;
#[cfg(all(feature = "moq", feature = "http"))]
mod moq_browser;
#[cfg(feature = "moq")]
mod moq_chain;
#[cfg(feature = "moq")]
mod moq_client;
#[cfg(feature = "moq")]
mod moq_examples;
#[cfg(feature = "moq")]
mod moq_fetch;
#[cfg(all(feature = "moq", feature = "http"))]
mod moq_interop;
#[cfg(all(feature = "moq", feature = "http"))]
mod moq_reload;
#[cfg(feature = "moq")]
mod moq_rules;
#[cfg(feature = "wireguard")]
mod netns;
#[cfg(feature = "wireguard")]
mod netstack;
#[cfg(feature = "wireguard")]
mod private_network;
mod probe;
#[cfg(feature = "quic")]
mod quic;
#[cfg(feature = "quic")]
mod quic_changes;
#[cfg(feature = "quic")]
mod quic_ends;
#[cfg(feature = "quic")]
mod quic_gateway;
#[cfg(feature = "quic")]
mod quic_interop;
#[cfg(feature = "quic")]
mod quic_load;
#[cfg(feature = "quic")]
mod quic_moving;
#[cfg(feature = "qlog")]
mod quic_qlog;
#[cfg(feature = "quic")]
mod quic_sites;
#[cfg(feature = "quic")]
mod quic_strangers;
#[cfg(feature = "quic")]
mod quic_streams;
mod relay;
mod relay_splice;
#[cfg(feature = "http")]
mod relay_tls;
#[cfg(feature = "http")]
mod relay_to_tls;
mod reload;
#[cfg(all(feature = "moq", feature = "wireguard", feature = "http"))]
mod reload_load;
mod rooms;
mod schema;
#[cfg(all(feature = "http", feature = "quic", feature = "wireguard"))]
mod seeds;
mod service;
mod supervise;
#[cfg(feature = "wireguard")]
mod tun;
#[cfg(feature = "wireguard")]
mod tun_host;
#[cfg(feature = "udp")]
mod udp;
mod upstreams;
#[cfg(feature = "http")]
mod views;
#[cfg(all(feature = "http", feature = "quic"))]
mod webtransport;
#[cfg(all(feature = "http", feature = "quic"))]
mod webtransport_relay;
#[cfg(feature = "wireguard")]
mod wireguard;
#[cfg(feature = "wireguard")]
mod wireguard_bad;
#[cfg(feature = "wireguard")]
mod wireguard_datagrams;
#[cfg(feature = "wireguard")]
mod wireguard_drain;
#[cfg(feature = "wireguard")]
mod wireguard_gateway;
#[cfg(all(feature = "http", feature = "wireguard"))]
mod wireguard_services;
#[cfg(feature = "wireguard")]
mod wireguard_uapi;
