//! The shape of `[listener.wireguard]`, its peers and its services in the file.
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::quic::Texts;
use super::section::{At, Field, Section};
use super::text::Text;
use super::{DAY, RawListener, name, tables, unknown_keys};
use crate::gateway::report::Span;

pub(crate) const WIREGUARD: &str = "[listener.wireguard]";
pub(crate) const PEER: &str = "[[listener.wireguard.peer]]";
pub(crate) const SERVICE: &str = "[[listener.wireguard.service]]";
pub(crate) const WIREGUARD_KEYS: &[&str] = &[
    "private_key_file",
    "conf",
    "generate_key",
    "addresses",
    "mtu",
    "mode",
    "threading",
    "peer_to_peer",
    "handshakes",
    "gso",
    "masquerade",
    "offload",
    "congestion",
    "tun_node",
    "uapi",
    "forward",
    "peer",
    "service",
];
pub(crate) const PEER_KEYS: &[&str] = &[
    "name",
    "public_key",
    "preshared_key_file",
    "allowed_ips",
    "endpoint",
    "keepalive",
    "limit_in",
    "limit_out",
    "packets_in",
    "packets_out",
    "expires",
    "metrics",
];
/// A route of an HTTP service inside.
pub(crate) const SERVICE_ROUTE: &str = "[[listener.wireguard.service.route]]";
pub(crate) const SERVICE_KEYS: &[&str] =
    &["listen", "protocol", "service", "upstream", "certificate", "tls", "route", "http"];

const MODES: [(&str, RawMode); 4] =
    [("auto", RawMode::Auto), ("private", RawMode::Private), ("netstack", RawMode::Netstack), ("tun", RawMode::Tun)];
const THREADING: [(&str, RawThreading); 3] =
    [("auto", RawThreading::Auto), ("single", RawThreading::Single), ("pipeline", RawThreading::Pipeline)];
const OFFLOAD: [(&str, RawOffload); 3] =
    [("auto", RawOffload::Auto), ("tcp", RawOffload::Tcp), ("off", RawOffload::Off)];
const PEER_TO_PEER: [(&str, bool); 2] = [("deny", false), ("direct", true)];
const SPOKEN: [(&str, RawSpoken); 4] =
    [("framed", RawSpoken::Framed), ("relay", RawSpoken::Relay), ("http", RawSpoken::Http), ("udp", RawSpoken::Udp)];

const MTU: RangeInclusive<u64> = 576..=9_000;
const HANDSHAKES: RangeInclusive<u64> = 64..=1_000_000;
const PACKETS: RangeInclusive<u64> = 1..=100_000_000;
const LIMIT: RangeInclusive<u64> = 1_024..=1 << 40;
/// WireGuard counts keepalives in seconds, in 16 bits.
const KEEPALIVE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(65_535);

/// See `wireguard::Mode`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RawMode {
    Auto,
    Private,
    Netstack,
    Tun,
}

/// See `wireguard::Offload`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RawOffload {
    Auto,
    Tcp,
    Off,
}

/// See `wireguard::ThreadingMode`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RawThreading {
    Auto,
    Single,
    Pipeline,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RawSpoken {
    Framed,
    Relay,
    Http,
    Udp,
}

/// `[listener.wireguard]`.
#[derive(Debug)]
pub(crate) struct RawWireguard {
    pub(crate) private_key_file: Field<Text>,
    pub(crate) conf: Field<Text>,
    pub(crate) generate_key: Field<bool>,
    pub(crate) addresses: Texts,
    pub(crate) mtu: Field<u64>,
    pub(crate) mode: Field<RawMode>,
    pub(crate) threading: Field<RawThreading>,
    pub(crate) peer_to_peer: Field<bool>,
    pub(crate) handshakes: Field<u64>,
    pub(crate) gso: Field<bool>,
    pub(crate) masquerade: Field<bool>,
    pub(crate) offload: Field<RawOffload>,
    pub(crate) congestion: Field<Text>,
    pub(crate) tun_node: Field<Text>,
    pub(crate) uapi: Field<Text>,
    pub(crate) forward: Texts,
    pub(crate) peers: Vec<RawPeer>,
    pub(crate) services: Vec<RawService>,
}

/// `[[listener.wireguard.peer]]`.
#[derive(Debug)]
pub(crate) struct RawPeer {
    pub(crate) header: Span,
    pub(crate) name: Field<Text>,
    pub(crate) public_key: Field<Text>,
    pub(crate) preshared_key_file: Field<Text>,
    pub(crate) allowed_ips: Texts,
    pub(crate) endpoint: Field<Text>,
    pub(crate) keepalive: Field<Duration>,
    pub(crate) limit_in: Field<u64>,
    pub(crate) limit_out: Field<u64>,
    pub(crate) packets_in: Field<u64>,
    pub(crate) packets_out: Field<u64>,
    pub(crate) expires: Field<Text>,
    pub(crate) metrics: Field<bool>,
}

/// `[[listener.wireguard.service]]`.
#[derive(Debug)]
pub(crate) struct RawService {
    pub(crate) header: Span,
    pub(crate) listen: Field<SocketAddr>,
    pub(crate) protocol: Field<RawSpoken>,
    /// The rest, as a listener has it.
    pub(crate) rest: RawListener,
}

pub(crate) fn wireguard(mut section: Section<'_, '_>) -> At<RawWireguard> {
    let value = RawWireguard {
        private_key_file: section.text("private_key_file", "\"wg0.key\""),
        conf: section.text("conf", "\"wg0.conf\""),
        generate_key: section.boolean("generate_key"),
        addresses: section.texts("addresses", "[\"10.98.0.1/24\"]"),
        mtu: section.whole("mtu", MTU),
        mode: section.choice("mode", &MODES),
        threading: section.choice("threading", &THREADING),
        peer_to_peer: section.choice("peer_to_peer", &PEER_TO_PEER),
        handshakes: section.whole("handshakes", HANDSHAKES),
        gso: section.boolean("gso"),
        masquerade: section.boolean("masquerade"),
        offload: section.choice("offload", &OFFLOAD),
        congestion: section.text("congestion", "\"bbr\""),
        tun_node: section.text("tun_node", "\"/dev/net/tun\""),
        uapi: section.text("uapi", "\"/var/run/wireguard\", or \"off\""),
        forward: section.texts("forward", "[\"192.168.0.0/16\"]"),
        peers: tables(&mut section, "peer", "a peer", PEER, PEER_KEYS, peer),
        services: tables(&mut section, "service", "a service", SERVICE, SERVICE_KEYS, service),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}

fn peer(mut section: Section<'_, '_>) -> RawPeer {
    let raw = RawPeer {
        header: section.header,
        name: name(&mut section, "a peer", "\"phone\""),
        public_key: section.text("public_key", "\"yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\""),
        preshared_key_file: section.text("preshared_key_file", "\"phone.psk\""),
        allowed_ips: section.texts("allowed_ips", "[\"10.98.0.2/32\"]"),
        endpoint: section.text("endpoint", "\"192.0.2.1:51820\""),
        keepalive: section.duration("keepalive", KEEPALIVE),
        limit_in: section.size("limit_in", LIMIT),
        limit_out: section.size("limit_out", LIMIT),
        packets_in: section.whole("packets_in", PACKETS),
        packets_out: section.whole("packets_out", PACKETS),
        expires: section.text("expires", "\"2027-01-01\""),
        metrics: section.boolean("metrics"),
    };
    section.need(&raw.public_key, "public_key", "\"yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\"");
    section.need(&raw.allowed_ips, "allowed_ips", "[\"10.98.0.2/32\"]");
    debug_assert!(*KEEPALIVE.end() <= DAY);
    unknown_keys(section);
    raw
}

fn service(mut section: Section<'_, '_>) -> RawService {
    let raw = RawService {
        header: section.header,
        listen: section.address("listen"),
        protocol: section.choice("protocol", &SPOKEN),
        rest: super::inside(&mut section, SERVICE_ROUTE),
    };
    section.need(&raw.listen, "listen", "\"10.98.0.1:7001\"");
    section.need(&raw.protocol, "protocol", "\"framed\"");
    unknown_keys(section);
    raw
}
