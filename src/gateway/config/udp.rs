//! The part of the checked configuration that speaks of relayed datagrams.

use std::time::Duration;

const MIB: usize = 1 << 20;

/// A listener that relays UDP. Of `[listener.limits]` hold `connections`, `per_source` and `half_open`: what they bound is
/// flows, half open being those whose server has not answered.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// The name of an upstream of the same file, its servers over UDP; `None`: each datagram goes back to its client.
    pub upstream: Option<String>,
    /// Silence after which a flow is over in which the server has not answered, 100 ms to 1 d. Default 60 s.
    pub idle: Duration,
    /// The same once the server has answered. Default 2 min.
    pub idle_answered: Duration,
    /// Bytes of the longest datagram that passes, either way, 1 to 65,507. Default 65,507.
    pub max_datagram: usize,
    /// Datagrams of a flow that pass in a second, each way. Default any number.
    pub packets_per_second: Option<u64>,
    /// Bytes of a flow that pass in a second, each way. Default any number.
    pub bytes_per_second: Option<u64>,
    /// Whether the first datagram of each flow is led by a PROXY header (version 2). Default `false`.
    pub proxy_out: bool,
    /// Whether trains of datagrams are handed to the kernel in one call. Default `true`.
    pub gso: bool,
    /// Bytes of each of the listener's sockets' receive buffer, and of its send buffer. Default 4 MiB.
    pub socket_buffer: usize,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            upstream: None,
            idle: Duration::from_secs(60),
            idle_answered: Duration::from_secs(120),
            max_datagram: 65_507,
            packets_per_second: None,
            bytes_per_second: None,
            proxy_out: false,
            gso: true,
            socket_buffer: 4 * MIB,
        }
    }
}

impl Udp {
    /// A relay to the upstream of this name with the defaults of everything else.
    #[must_use]
    pub fn new(upstream: impl Into<String>) -> Self {
        Self { upstream: Some(upstream.into()), ..Self::default() }
    }
}
