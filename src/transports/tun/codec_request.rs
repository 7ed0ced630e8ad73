//! What the gateway asks the helper of a private network for, and the prefixes that interfaces and routes have.
//!
//! One message, one request, one answer: a line of text with blanks between its words, at most [`MAX_REQUEST`] bytes.
//! Descriptors travel beside the answer (unix(7), SCM_RIGHTS).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest request or answer. The first request names addresses, 46 bytes each at most: there is room for 64.
pub const MAX_REQUEST: usize = 8_192;

/// The most addresses one interface gets.
const MAX_ADDRESSES: usize = 64;

/// An address and how many of its leading bits name its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The address, host bits and all.
    pub address: IpAddr,
    /// 0 to 32, or 128 for IPv6.
    pub bits: u8,
}

impl Prefix {
    /// The address with its host bits cleared.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits.min(32))).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// This text is no prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixError;

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address with a prefix length")
    }
}

impl std::error::Error for PrefixError {}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// `10.0.0.1/24`, or an address alone: all its bits then.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| PrefixError)?;
        let most = if address.is_ipv6() { 128 } else { 32 };
        let bits = match bits {
            None => most,
            Some(digits) if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(PrefixError);
            }
            Some(digits) => digits.parse().map_err(|_| PrefixError)?,
        };
        if bits > most { Err(PrefixError) } else { Ok(Self { address, bits }) }
    }
}

/// What the helper is asked for. Each but the first is answered with one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make the network and the interface in it; comes first, once. Answered with the interface's descriptor.
    Start {
        /// The node to open, usually `/dev/net/tun`.
        node: String,
        /// The interface's name inside.
        name: String,
        /// Its MTU.
        mtu: u16,
        /// Ask for super-packets.
        offload: bool,
        /// Its addresses.
        addresses: Vec<Prefix>,
        /// The congestion control of TCP inside, if it is not to be the system's default.
        congestion: Option<String>,
    },
    /// A listening TCP socket at this address; `any` takes connections to whatever address is routed here.
    Listen {
        /// Where.
        address: SocketAddr,
        /// IP_TRANSPARENT.
        any: bool,
    },
    /// A TCP socket to connect with.
    Tcp {
        /// IPv6 and not IPv4.
        v6: bool,
    },
    /// A UDP socket at this address.
    Udp {
        /// Where; port 0 for any.
        address: SocketAddr,
        /// IP_TRANSPARENT.
        any: bool,
    },
    /// Treat all addresses of this network as this machine's own. Answered without a descriptor.
    Own(Prefix),
    /// Hand TCP connections to any port of addresses that are not the interface's own to the listener at this port.
    /// Answered without a descriptor.
    Redirect(u16),
}

/// This is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestError;

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a request for a private network")
    }
}

impl std::error::Error for RequestError {}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { node, name, mtu, offload, addresses, congestion } => {
                let congestion = congestion.as_deref().unwrap_or("-");
                write!(f, "start {name} {mtu} {} {congestion}", u8::from(*offload))?;
                for address in addresses {
                    write!(f, " {address}")?;
                }
                // The path comes last: it alone may hold blanks.
                write!(f, " at {node}")
            }
            Self::Listen { address, any } => write!(f, "listen {address} {}", u8::from(*any)),
            Self::Tcp { v6 } => write!(f, "tcp {}", u8::from(*v6)),
            Self::Udp { address, any } => write!(f, "udp {address} {}", u8::from(*any)),
            Self::Own(prefix) => write!(f, "own {prefix}"),
            Self::Redirect(port) => write!(f, "redirect {port}"),
        }
    }
}

impl FromStr for Request {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        if text.len() > MAX_REQUEST {
            return Err(RequestError);
        }
        let (word, rest) = text.split_once(' ').ok_or(RequestError)?;
        if word == "start" {
            return start(rest);
        }
        let mut words = rest.split(' ');
        let request = match word {
            "listen" => Self::Listen { address: read(words.next())?, any: flag(words.next())? },
            "tcp" => Self::Tcp { v6: flag(words.next())? },
            "udp" => Self::Udp { address: read(words.next())?, any: flag(words.next())? },
            "own" => Self::Own(read(words.next())?),
            "redirect" => Self::Redirect(read(words.next())?),
            _ => return Err(RequestError),
        };
        if words.next().is_some() { Err(RequestError) } else { Ok(request) }
    }
}

fn start(rest: &str) -> Result<Request, RequestError> {
    let (words, node) = rest.split_once(" at ").ok_or(RequestError)?;
    let mut words = words.split(' ');
    let name: String = read(words.next())?;
    let mtu = read(words.next())?;
    let offload = flag(words.next())?;
    let congestion = Some(read::<String>(words.next())?).filter(|word| word != "-");
    let addresses = words.map(|word| read(Some(word))).collect::<Result<Vec<Prefix>, _>>()?;
    if name.is_empty()
        || congestion.as_ref().is_some_and(String::is_empty)
        || node.is_empty()
        || addresses.len() > MAX_ADDRESSES
    {
        return Err(RequestError);
    }
    Ok(Request::Start { node: node.to_owned(), name, mtu, offload, addresses, congestion })
}

fn read<T: FromStr>(word: Option<&str>) -> Result<T, RequestError> {
    word.and_then(|word| word.parse().ok()).ok_or(RequestError)
}

fn flag(word: Option<&str>) -> Result<bool, RequestError> {
    match word {
        Some("0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(RequestError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prefixes() {
        let prefix: Prefix = "10.98.7.5/12".parse().unwrap();
        assert_eq!(prefix.network(), "10.96.0.0".parse::<IpAddr>().unwrap());
        assert_eq!("0.0.0.0/0".parse::<Prefix>().unwrap().network(), "0.0.0.0".parse::<IpAddr>().unwrap());
        assert_eq!("10.0.0.1".parse::<Prefix>().unwrap().bits, 32);
        assert_eq!("fd00::1".parse::<Prefix>().unwrap().bits, 128);
        assert_eq!("fd00::ff/120".parse::<Prefix>().unwrap().network(), "fd00::".parse::<IpAddr>().unwrap());
        assert_eq!("::1/0".parse::<Prefix>().unwrap().network(), "::".parse::<IpAddr>().unwrap());
        for wrong in ["", "/", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "::/129", "10.0.0/8", "10.0.0.1/8/8", "a/8"] {
            assert_eq!(wrong.parse::<Prefix>(), Err(PrefixError), "{wrong}");
        }
    }

    #[test]
    fn requests_read_back_as_written() {
        let addresses = vec!["10.98.0.1/24".parse().unwrap(), "fd98::1/64".parse().unwrap()];
        for request in [
            Request::Start {
                node: "/tmp/a b at c/tun".to_owned(),
                name: "wg0".to_owned(),
                mtu: 1420,
                offload: true,
                addresses,
                congestion: Some("bbr".to_owned()),
            },
            Request::Start {
                node: "/dev/net/tun".to_owned(),
                name: "x".to_owned(),
                mtu: 1,
                offload: false,
                addresses: vec![],
                congestion: None,
            },
            Request::Listen { address: "10.98.0.1:443".parse().unwrap(), any: true },
            Request::Listen { address: "[fd98::1]:443".parse().unwrap(), any: false },
            Request::Tcp { v6: true },
            Request::Udp { address: "0.0.0.0:0".parse().unwrap(), any: false },
            Request::Own("10.0.0.0/8".parse().unwrap()),
            Request::Redirect(15001),
        ] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
    }

    #[test]
    fn wrong_requests_are_refused() {
        for wrong in [
            "",
            "start",
            "start wg0 1420 1 - /dev/net/tun",
            "start wg0 1420 2 - at /dev/net/tun",
            "listen 10.0.0.1 0",
            "listen 10.0.0.1:1",
            "tcp 1 1",
            "tcp",
            "own 10.0.0.0/99",
            "redirect 70000",
            "kill 1",
            "start  1 1 - at ",
            "start wg0 1 1  at x",
        ] {
            assert_eq!(wrong.parse::<Request>(), Err(RequestError), "{wrong}");
        }
        let many = format!("start wg0 1420 1 -{} at /dev/net/tun", " 10.0.0.1/8".repeat(65));
        assert_eq!(many.parse::<Request>(), Err(RequestError));
    }

    proptest! {
        #[test]
        fn any_text_is_a_request_that_reads_back_or_none(text in "\\PC{0,80}") {
            if let Ok(request) = text.parse::<Request>() {
                prop_assert_eq!(request.to_string().parse::<Request>(), Ok(request));
            }
        }
    }
}
