//! The PROXY protocol, versions 1 and 2 (haproxy.org, doc/proxy-protocol.txt): who the client of a relayed stream is.
//!
//! Strict and bounded: a header that cannot become valid is refused at its first wrong byte, version 1 at 107 bytes,
//! version 2 at 536 bytes of addresses and TLVs. TLVs are checked for their lengths and skipped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, with its line end (section 2.1).
pub const MAX_V1: usize = 107;
/// The longest header of version 2 that is accepted: 16 bytes and 520 of addresses and TLVs.
pub const MAX_V2: usize = 536;

/// Section 2.2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// The lower half of the byte that names family and transport (section 2.2).
const STREAM: u8 = 1;
const DATAGRAM: u8 = 2;
/// PP2_TYPE_CRC32C: four bytes.
const TLV_CRC32C: u8 = 0x03;

/// Which version to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The connection is the proxy's own, or of a kind that has no addresses here (`UNKNOWN`, Unix sockets).
    Local,
    /// The connection of this client.
    Proxied {
        /// Who connected.
        source: SocketAddr,
        /// Where to.
        destination: SocketAddr,
    },
}

/// These bytes are no PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a PROXY protocol header")
    }
}

impl std::error::Error for Malformed {}

impl Header {
    /// Reads a header from the front of `bytes`: it and its length, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`Malformed`] as soon as the bytes cannot become a header any more.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let common = bytes.len().min(SIGNATURE.len());
        if bytes.get(..common) == SIGNATURE.get(..common) {
            return if common < SIGNATURE.len() { Ok(None) } else { decode_v2(bytes) };
        }
        decode_v1(bytes)
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(&self, version: ProxyVersion) -> Vec<u8> {
        match version {
            ProxyVersion::V1 => self.encode_v1(),
            ProxyVersion::V2 => self.encode_v2(),
        }
    }

    fn encode_v1(&self) -> Vec<u8> {
        let Self::Proxied { source, destination } = *self else { return b"PROXY UNKNOWN\r\n".to_vec() };
        let (from, to, ipv4) = one_family(source.ip(), destination.ip());
        let family = if ipv4 { "TCP4" } else { "TCP6" };
        format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
    }

    /// Writes the header of version 2 for a flow of datagrams: 28 bytes between IPv4 addresses, else 52.
    #[must_use]
    pub fn encode_for_datagrams(&self) -> Vec<u8> {
        self.encode_binary(DATAGRAM)
    }

    fn encode_v2(&self) -> Vec<u8> {
        self.encode_binary(STREAM)
    }

    fn encode_binary(&self, transport: u8) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        let Self::Proxied { source, destination } = *self else {
            out.extend_from_slice(&[0x20, 0, 0, 0]);
            return out;
        };
        let (from, to, ipv4) = one_family(source.ip(), destination.ip());
        let (family, length) = if ipv4 { (0x10, 12) } else { (0x20, 36) };
        out.extend_from_slice(&[0x21, family | transport, 0, length]);
        for address in [from, to] {
            match address {
                IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
            }
        }
        out.extend_from_slice(&source.port().to_be_bytes());
        out.extend_from_slice(&destination.port().to_be_bytes());
        out
    }
}

/// Both as IPv4 if both are, else both as IPv6.
fn one_family(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr, bool) {
    fn v6(ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
            v6 @ IpAddr::V6(_) => v6,
        }
    }
    if a.is_ipv4() && b.is_ipv4() { (a, b, true) } else { (v6(a), v6(b), false) }
}

fn decode_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    const START: &[u8] = b"PROXY ";
    let common = bytes.len().min(START.len());
    if bytes.get(..common) != START.get(..common) {
        return Err(Malformed);
    }
    let window = bytes.get(..bytes.len().min(MAX_V1)).unwrap_or_default();
    // Only text, whether the line is there in one piece or not.
    let is_text = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        // The end of the line must come in time.
        let text = window.strip_suffix(b"\r").unwrap_or(window);
        let fits = window.len() < MAX_V1 && is_text(text);
        return if fits { Ok(None) } else { Err(Malformed) };
    };
    let line =
        window.get(..end).and_then(|line| line.strip_suffix(b"\r")).filter(|line| is_text(line)).ok_or(Malformed)?;
    let line = str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ');
    words.next();
    let header = match words.next() {
        // "the receiver must ignore anything presented before the CRLF"
        Some("UNKNOWN") => return Ok(Some((Header::Local, end + 1))),
        Some("TCP4") => v1_addresses::<Ipv4Addr>(&mut words)?,
        Some("TCP6") => v1_addresses::<Ipv6Addr>(&mut words)?,
        _ => return Err(Malformed),
    };
    if words.next().is_some() { Err(Malformed) } else { Ok(Some((header, end + 1))) }
}

fn v1_addresses<'a, A: std::str::FromStr + Into<IpAddr>>(
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<Header, Malformed> {
    let mut address = || words.next().and_then(|word| word.parse::<A>().ok()).map(Into::into).ok_or(Malformed);
    let (from, to): (IpAddr, IpAddr) = (address()?, address()?);
    let mut port = || words.next().and_then(v1_port).ok_or(Malformed);
    let (from_port, to_port) = (port()?, port()?);
    Ok(Header::Proxied { source: SocketAddr::new(from, from_port), destination: SocketAddr::new(to, to_port) })
}

/// "in the range [0..65535], without leading zeroes"; no sign either, which `parse` would take.
fn v1_port(word: &str) -> Option<u16> {
    let plain = word == "0" || word.starts_with(|first: char| matches!(first, '1'..='9'));
    if plain { word.parse().ok() } else { None }
}

fn decode_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let local = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Malformed),
    };
    let Some(family) = bytes.get(13).copied() else { return Ok(None) };
    // "a receiver must drop connections with an unknown family", except that LOCAL discards what it says.
    let needed = match family {
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ if local => 0,
        _ => return Err(Malformed),
    };
    let Some(length) = bytes.get(14..V2_FIXED).and_then(|two| two.try_into().ok()) else { return Ok(None) };
    let total = V2_FIXED + usize::from(u16::from_be_bytes(length));
    if total > MAX_V2 || (!local && total < V2_FIXED + needed) {
        return Err(Malformed);
    }
    let Some(body) = bytes.get(V2_FIXED..total) else { return Ok(None) };
    if local {
        return Ok(Some((Header::Local, total)));
    }
    let (addresses, tlvs) = body.split_at_checked(needed).ok_or(Malformed)?;
    if family != 0 {
        check_tlvs(tlvs)?;
    }
    let header = match family {
        // Stream or datagram makes no difference to who it is.
        0x11 | 0x12 => v2_addresses::<4>(addresses)?,
        0x21 | 0x22 => v2_addresses::<16>(addresses)?,
        _ => Header::Local,
    };
    Ok(Some((header, total)))
}

fn v2_addresses<const N: usize>(bytes: &[u8]) -> Result<Header, Malformed>
where
    IpAddr: From<[u8; N]>,
{
    let (from, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed)?;
    let (to, rest) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
    let (from_port, rest) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
    let (to_port, _) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
    Ok(Header::Proxied {
        source: SocketAddr::new(IpAddr::from(*from), u16::from_be_bytes(*from_port)),
        destination: SocketAddr::new(IpAddr::from(*to), u16::from_be_bytes(*to_port)),
    })
}

/// Type, length of two bytes, value; to the last byte.
fn check_tlvs(mut rest: &[u8]) -> Result<(), Malformed> {
    while let Some((head, tail)) = rest.split_first_chunk::<3>() {
        let [kind, high, low] = *head;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind == TLV_CRC32C && length != 4 {
            return Err(Malformed);
        }
        rest = tail.get(length..).ok_or(Malformed)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxied(source: &str, destination: &str) -> Header {
        Header::Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[test]
    fn the_examples_of_the_specification() {
        let line = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        let header = proxied("255.255.255.255:65535", "255.255.255.255:65535");
        assert_eq!(Header::decode(line), Ok(Some((header, line.len()))));
        let line = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(Header::decode(line), Ok(Some((Header::Local, line.len()))));
        assert_eq!(Header::decode(b"PROXY UNKNOWN\r\nmore"), Ok(Some((Header::Local, 15))));
        let line = b"PROXY TCP6 ::1 2001:db8::2 0 443\r\nGET /";
        assert_eq!(Header::decode(line), Ok(Some((proxied("[::1]:0", "[2001:db8::2]:443"), line.len() - 5))));
    }

    #[test]
    fn lines_that_are_not_quite_right() {
        for line in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            b"PROXY \r\n",
            b"PROXY TCP4 \x80",
            b"PROXY TCP4 1.2\r3",
            b"proxy ",
        ] {
            assert_eq!(Header::decode(line), Err(Malformed), "{}", line.escape_ascii());
        }
        let endless = [b"PROXY UNKNOWN ", &[b'a'; 200][..]].concat();
        assert_eq!(Header::decode(&endless[..MAX_V1 - 1]), Ok(None));
        assert_eq!(Header::decode(&endless[..MAX_V1]), Err(Malformed));
    }

    /// What the fuzzer's seeds found: in one piece it was taken, in two it was refused.
    #[test]
    fn control_bytes_are_refused_in_whatever_pieces_they_come() {
        let line = b"PROXY UNKNOWN ff\x1aff\r\n";
        assert_eq!(Header::decode(line), Err(Malformed));
        assert_eq!(Header::decode(&line[..18]), Err(Malformed));
        assert_eq!(Header::decode(b"PROXY UNKNOWN ffff\r\n"), Ok(Some((Header::Local, 20))));
    }

    #[test]
    fn a_header_for_datagrams_names_their_transport() {
        let v4 = proxied("1.2.3.4:9", "5.6.7.8:10");
        assert_eq!(v4.encode_for_datagrams(), v2(0x21, 0x12, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10]));
        for (header, length) in [(v4, 28), (proxied("[::1]:9", "[::2]:10"), 52), (Header::Local, 16)] {
            let bytes = header.encode_for_datagrams();
            assert_eq!((bytes.len(), Header::decode(&bytes)), (length, Ok(Some((header, length)))));
        }
    }

    #[test]
    fn version_two_with_what_it_may_carry() {
        let addresses = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10];
        let header = proxied("1.2.3.4:9", "5.6.7.8:10");
        let plain = v2(0x21, 0x11, &addresses);
        assert_eq!(Header::decode(&plain), Ok(Some((header, 28))));
        let tlvs = [&addresses[..], &[3, 0, 4, 0, 0, 0, 0], &[0x20, 0, 1, 7], &[4, 0, 0]].concat();
        assert_eq!(Header::decode(&v2(0x21, 0x11, &tlvs)), Ok(Some((header, 42))));
        for bad in [&[3, 0, 3, 0, 0, 0][..], &[4, 0, 1], &[4, 0], &[4]] {
            let body = [&addresses[..], bad].concat();
            assert_eq!(Header::decode(&v2(0x21, 0x11, &body)), Err(Malformed), "{bad:?}");
        }
        assert_eq!(Header::decode(&v2(0x20, 0x00, b"whatever")), Ok(Some((Header::Local, 24))));
        assert_eq!(Header::decode(&v2(0x20, 0x11, b"")), Ok(Some((Header::Local, 16))));
        assert_eq!(Header::decode(&v2(0x21, 0x31, &[0; 216])), Ok(Some((Header::Local, 232))));
        assert_eq!(Header::decode(&v2(0x21, 0x00, b"any")), Ok(Some((Header::Local, 19))));
        for (command, family, length) in [
            (0x22, 0x11, 12),
            (0x11, 0x11, 12),
            (0x21, 0x41, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
        ] {
            assert_eq!(Header::decode(&v2(command, family, &vec![0; length])), Err(Malformed), "{command} {family}");
        }
        // Refused by its length, before it has come.
        let long = v2(0x21, 0x11, &[0; 521]);
        assert_eq!(Header::decode(&long[..16]), Err(Malformed));
    }

    #[test]
    fn two_families_become_one() {
        let header = proxied("1.2.3.4:9", "[::1]:10");
        let mapped = proxied("[::ffff:1.2.3.4]:9", "[::1]:10");
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let bytes = header.encode(version);
            assert_eq!(Header::decode(&bytes), Ok(Some((mapped, bytes.len()))));
        }
    }

    fn any_header() -> impl Strategy<Value = Header> {
        let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
            .prop_map(|(a, p, b, q)| Header::Proxied { source: (a, p).into(), destination: (b, q).into() });
        let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(a, p, b, q)| Header::Proxied { source: (a, p).into(), destination: (b, q).into() });
        prop_oneof![Just(Header::Local), v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in any_header(), text: bool, rest: Vec<u8>) {
            let version = if text { ProxyVersion::V1 } else { ProxyVersion::V2 };
            let bytes = header.encode(version);
            let most = if text { MAX_V1 } else { MAX_V2 };
            prop_assert!(bytes.len() <= most);
            for end in 0..bytes.len() {
                prop_assert_eq!(Header::decode(&bytes[..end]), Ok(None));
            }
            let all = [&bytes[..], &rest].concat();
            prop_assert_eq!(Header::decode(&all), Ok(Some((header, bytes.len()))));
        }

        #[test]
        fn no_bytes_are_waited_for_without_end(start in 0usize..4, rest in proptest::collection::vec(any::<u8>(), MAX_V2)) {
            let start = [&b""[..], b"PROXY ", b"PROXY TCP4 ", SIGNATURE][start];
            let bytes = [start, &rest].concat();
            for end in 0..bytes.len() {
                if let Ok(Some((_, used))) = Header::decode(&bytes[..end]) {
                    prop_assert!(used <= end);
                }
            }
            prop_assert_ne!(Header::decode(&bytes), Ok(None));
        }

        #[test]
        fn a_flipped_byte_never_panics(header in any_header(), text: bool, at: prop::sample::Index, to: u8) {
            let mut bytes = header.encode(if text { ProxyVersion::V1 } else { ProxyVersion::V2 });
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _any = Header::decode(&bytes);
        }
    }
}
