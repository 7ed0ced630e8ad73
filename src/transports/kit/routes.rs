//! Which peer an address belongs to: the longest of the allowed networks that contains it.
//!
//! The same table routes packets into tunnels (by destination) and judges packets out of them (by source): a peer may
//! only send from addresses that lead back to it, also when a more specific network within its own belongs to another.
//! One lookup costs one hash per distinct prefix length in the table, longest first. Nothing is bounded here: the
//! configuration is.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP network: an address with its low bits zero, and how many of its bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of this prefix length that holds `address`; nothing if no address is that long.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(address)).then(|| Self { address: masked(address, prefix), prefix })
    }

    /// One address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, prefix: bits(address) }
    }

    /// The lowest address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address lies within.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// No network is written like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotANetwork;

impl fmt::Display for NotANetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write a network such as 10.98.0.2/32 or fd00::/64")
    }
}

impl std::error::Error for NotANetwork {}

impl FromStr for Network {
    type Err = NotANetwork;

    /// As `wg` takes it: without a length it is one address, and low bits that are set count as zero.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        match text.split_once('/') {
            None => text.parse().map(Self::host).map_err(|_| NotANetwork),
            Some((address, prefix)) => {
                let address = address.parse().map_err(|_| NotANetwork)?;
                if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(NotANetwork);
                }
                prefix.parse().ok().and_then(|prefix| Self::new(address, prefix)).ok_or(NotANetwork)
            }
        }
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// Networks and what they lead to.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    networks: HashMap<Network, u32>,
    /// The prefix lengths that occur, longest first.
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl Routes {
    /// Leads a network to `to`, and answers where it led before.
    pub fn insert(&mut self, network: Network, to: u32) -> Option<u32> {
        let lengths = if network.address.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        if let Err(at) = lengths.binary_search_by(|have| network.prefix.cmp(have)) {
            lengths.insert(at, network.prefix);
        }
        self.networks.insert(network, to)
    }

    /// Where exactly this network leads.
    #[must_use]
    pub fn exact(&self, network: Network) -> Option<u32> {
        self.networks.get(&network).copied()
    }

    /// Where an address leads: by the longest network that contains it.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<u32> {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths
            .iter()
            .find_map(|prefix| self.networks.get(&Network { address: masked(address, *prefix), prefix: *prefix }))
            .copied()
    }

    /// How many networks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.networks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

/// Whether an address may be forwarded to at all: never this machine's own, and nothing that is not one host's.
#[must_use]
pub fn is_elsewhere(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> Network {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_as_wg_reads_them() {
        assert_eq!(net("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(net("10.1.2.3").to_string(), "10.1.2.3/32");
        assert_eq!(net("0.0.0.0/0").prefix(), 0);
        assert_eq!(net("fd00::1/64").to_string(), "fd00::/64");
        assert_eq!(net("::1").to_string(), "::1/128");
        for bad in ["", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0/8", "::/129", "a/8", "10.0.0.0/+8", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_network_wins() {
        let mut routes = Routes::default();
        assert_eq!(routes.insert(net("0.0.0.0/0"), 0), None);
        assert_eq!(routes.insert(net("10.0.0.0/8"), 1), None);
        assert_eq!(routes.insert(net("10.1.0.0/16"), 2), None);
        assert_eq!(routes.insert(net("10.1.2.3/32"), 3), None);
        assert_eq!(routes.insert(net("fd00::/8"), 4), None);
        for (address, to) in
            [("10.1.2.3", 3), ("10.1.2.4", 2), ("10.2.0.0", 1), ("11.0.0.1", 0), ("fd12::9", 4), ("255.255.255.255", 0)]
        {
            assert_eq!(routes.lookup(ip(address)), Some(to), "{address}");
        }
        assert_eq!(routes.lookup(ip("fe80::1")), None);
        assert_eq!(routes.insert(net("10.1.2.3/32"), 5), Some(3));
        assert_eq!(routes.exact(net("10.1.2.3")), Some(5));
        assert_eq!(routes.len(), 5);
    }

    proptest! {
        /// The same answers as trying every network.
        #[test]
        fn agrees_with_a_search_through_all(
            networks in proptest::collection::vec((any::<u32>(), 0..=32u8), 0..40),
            asked in proptest::collection::vec(any::<u32>(), 1..40),
        ) {
            let networks: Vec<Network> = networks
                .into_iter()
                .filter_map(|(address, prefix)| Network::new(IpAddr::V4(address.into()), prefix))
                .collect();
            let mut routes = Routes::default();
            for (n, network) in networks.iter().enumerate() {
                routes.insert(*network, n as u32);
            }
            let near = networks.iter().map(Network::address);
            for address in asked.into_iter().map(|bits| IpAddr::V4(bits.into())).chain(near) {
                let best = (0..).zip(&networks).filter(|(_, net)| net.contains(address)).max_by_key(|(n, net)| (net.prefix(), *n));
                prop_assert_eq!(routes.lookup(address), best.map(|(n, _)| n));
            }
        }

        #[test]
        fn text_and_network_are_the_same(address: u128, prefix in 0..=128u8) {
            let network = Network::new(IpAddr::V6(address.into()), prefix).unwrap();
            prop_assert_eq!(network.to_string().parse(), Ok(network));
        }

        #[test]
        fn arbitrary_text_does_no_harm(text in ".{0,40}") {
            let _any = text.parse::<Network>();
        }
    }
}
