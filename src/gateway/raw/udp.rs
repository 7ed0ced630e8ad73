//! The shape of `[listener.udp]` in the file.
use std::ops::RangeInclusive;
use std::time::Duration;

use super::section::{At, Field, Section};
use super::{DAY, unknown_keys};

pub(crate) const UDP: &str = "[listener.udp]";
pub(crate) const UDP_KEYS: &[&str] = &[
    "idle",
    "idle_answered",
    "max_datagram",
    "packets_per_second",
    "bytes_per_second",
    "proxy_out",
    "gso",
    "socket_buffer",
];

/// A server must be told who its client is in the same words for all datagrams: version 1 is for streams.
const PROXY_OUT: [(&str, bool); 2] = [("off", false), ("v2", true)];
const LEAST_IDLE: Duration = Duration::from_millis(100);
/// UDP carries no more over IPv4.
const DATAGRAM: RangeInclusive<u64> = 1..=65_507;
const RATE: RangeInclusive<u64> = 1..=1_000_000_000;
const BYTES: RangeInclusive<u64> = 1..=1_000_000_000_000;
const BUFFER: RangeInclusive<u64> = 64 * 1024..=1 << 30;

/// `[listener.udp]`.
#[derive(Debug)]
pub(crate) struct RawUdp {
    pub(crate) idle: Field<Duration>,
    pub(crate) idle_answered: Field<Duration>,
    pub(crate) max_datagram: Field<u64>,
    pub(crate) packets_per_second: Field<u64>,
    pub(crate) bytes_per_second: Field<u64>,
    pub(crate) proxy_out: Field<bool>,
    pub(crate) gso: Field<bool>,
    pub(crate) socket_buffer: Field<u64>,
}

pub(crate) fn udp(mut section: Section<'_, '_>) -> At<RawUdp> {
    let value = RawUdp {
        idle: section.duration("idle", LEAST_IDLE..=DAY),
        idle_answered: section.duration("idle_answered", LEAST_IDLE..=DAY),
        max_datagram: section.size("max_datagram", DATAGRAM),
        packets_per_second: section.whole("packets_per_second", RATE),
        bytes_per_second: section.size("bytes_per_second", BYTES),
        proxy_out: section.choice("proxy_out", &PROXY_OUT),
        gso: section.boolean("gso"),
        socket_buffer: section.size("socket_buffer", BUFFER),
    };
    let span = section.header;
    unknown_keys(section);
    At { value, span }
}
