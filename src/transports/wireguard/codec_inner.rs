//! What is inside a tunnel: headers of IP packets, judged before they go on, and the two fields we change.
//!
//! Every packet that a peer sends is held to its own length fields and header checksum before anything else looks at it.
//! Fragments pass where a kernel takes them (TUN) and are dropped where smoltcp does. MSS options of SYNs are lowered to
//! what the tunnel carries, and a packet that goes from peer to peer has its hop limit lowered, both with the checksum
//! corrected in place (RFC 1624).

use std::net::IpAddr;

/// What is wrong with an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InnerError {
    /// Neither IPv4 nor IPv6, or shorter than its header.
    Header,
    /// Its length field says something else than its length.
    Length,
    /// The checksum of its IPv4 header is wrong.
    Checksum,
    /// Its hop limit is used up.
    Expired,
}

impl InnerError {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Header => "inner_header",
            Self::Length => "inner_length",
            Self::Checksum => "inner_checksum",
            Self::Expired => "hop_limit",
        }
    }
}

/// ICMP, ICMPv6, TCP and UDP.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMP_V6: u8 = 58;

/// The header of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// The protocol after the IP header; extension headers of IPv6 are not followed.
    pub protocol: u8,
    /// Where that begins.
    pub payload: usize,
    /// Whether it is a fragment, first or later.
    pub fragment: bool,
}

impl Inner {
    /// Reads and judges the IP header of a packet.
    ///
    /// # Errors
    /// See [`InnerError`].
    pub fn parse(packet: &[u8]) -> Result<Self, InnerError> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::v4(packet),
            Some(6) => Self::v6(packet),
            Some(_) | None => Err(InnerError::Header),
        }
    }

    fn v4(packet: &[u8]) -> Result<Self, InnerError> {
        let header = packet.first_chunk::<20>().ok_or(InnerError::Header)?;
        let payload = usize::from(header[0] & 0x0f) * 4;
        let options = packet.get(..payload).filter(|header| header.len() >= 20).ok_or(InnerError::Header)?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if total != packet.len() || total < payload {
            return Err(InnerError::Length);
        }
        if fold(sum(0, options)) != 0xffff {
            return Err(InnerError::Checksum);
        }
        Ok(Self {
            source: IpAddr::from([header[12], header[13], header[14], header[15]]),
            destination: IpAddr::from([header[16], header[17], header[18], header[19]]),
            protocol: header[9],
            payload,
            // More fragments, or an offset.
            fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
        })
    }

    fn v6(packet: &[u8]) -> Result<Self, InnerError> {
        const FRAGMENT: u8 = 44;
        let header = packet.first_chunk::<40>().ok_or(InnerError::Header)?;
        if usize::from(u16::from_be_bytes([header[4], header[5]])) + 40 != packet.len() {
            return Err(InnerError::Length);
        }
        let address = |at: usize| -> Option<IpAddr> {
            header.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from)
        };
        Ok(Self {
            source: address(8).ok_or(InnerError::Header)?,
            destination: address(24).ok_or(InnerError::Header)?,
            protocol: header[6],
            payload: 40,
            fragment: header[6] == FRAGMENT,
        })
    }

    /// The ports of a TCP or UDP packet that is no later fragment: source, destination.
    #[must_use]
    pub fn ports(&self, packet: &[u8]) -> Option<(u16, u16)> {
        if !matches!(self.protocol, TCP | UDP) || self.fragment {
            return None;
        }
        let &[a, b, c, d] = packet.get(self.payload..)?.first_chunk::<4>()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// Whether this TCP packet asks for a connection: SYN without ACK.
    #[must_use]
    pub fn is_syn(&self, packet: &[u8]) -> bool {
        self.tcp_flags(packet).is_some_and(|flags| flags & 0x12 == 0x02)
    }

    /// The flags of a TCP packet.
    #[must_use]
    pub fn tcp_flags(&self, packet: &[u8]) -> Option<u8> {
        if self.protocol != TCP || self.fragment {
            return None;
        }
        packet.get(self.payload + 13).copied()
    }
}

/// Where a packet goes, without judging it: for routing what our own kernel or stack made.
#[must_use]
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(16..20).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from),
        6 => packet.get(24..40).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from),
        _ => None,
    }
}

/// Lowers the MSS option of a SYN, and of the answer to one, to what fits into `mtu`. Says whether it changed anything.
pub fn clamp_mss(packet: &mut [u8], mtu: usize) -> bool {
    let Ok(inner) = Inner::parse(packet) else { return false };
    if inner.tcp_flags(packet).is_none_or(|flags| flags & 0x02 == 0) {
        return false;
    }
    let Some(tcp) = packet.get_mut(inner.payload..) else { return false };
    let Ok(most) = u16::try_from(mtu.saturating_sub(inner.payload + 20)) else { return false };
    let Some(end) = tcp.get(12).map(|offset| usize::from(offset >> 4) * 4) else { return false };
    let mut at = 20;
    while at < end.min(tcp.len()) {
        match tcp.get(at..at + 2) {
            // End of options, and padding, which has no length.
            Some([0, _]) => return false,
            Some([1, _]) => at += 1,
            Some([2, 4]) => {
                let Some(&[high, low]) = tcp.get(at + 2..at + 4) else { return false };
                let old = u16::from_be_bytes([high, low]);
                if old <= most {
                    return false;
                }
                write(tcp, at + 2, most);
                correct(tcp, 16, old, most, at + 2);
                return true;
            }
            Some([_, length]) if *length >= 2 => at += usize::from(*length),
            Some(_) | None => return false,
        }
    }
    false
}

/// Lowers the hop limit of a packet that is passed on, as a router does.
///
/// # Errors
/// [`InnerError::Expired`] when it would be zero, [`InnerError::Header`] when there is none.
pub fn hop(packet: &mut [u8]) -> Result<(), InnerError> {
    let at = match packet.first().map(|first| first >> 4) {
        Some(4) => 8,
        Some(6) => 7,
        Some(_) | None => return Err(InnerError::Header),
    };
    let limit = packet.get_mut(at).ok_or(InnerError::Header)?;
    if *limit <= 1 {
        return Err(InnerError::Expired);
    }
    *limit -= 1;
    if at == 8 {
        let Some(&[limit, protocol]) = packet.get(8..10) else { return Err(InnerError::Header) };
        let (old, new) = (u16::from_be_bytes([limit + 1, protocol]), u16::from_be_bytes([limit, protocol]));
        correct(packet, 10, old, new, 8);
    }
    Ok(())
}

fn write(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// RFC 1624, equation 3. A field at an odd place counts with its bytes swapped.
fn correct(bytes: &mut [u8], at: usize, old: u16, new: u16, field: usize) {
    let Some(&[high, low]) = bytes.get(at..at + 2) else { return };
    let (old, new) = if field.is_multiple_of(2) { (old, new) } else { (old.swap_bytes(), new.swap_bytes()) };
    let total = u64::from(!u16::from_be_bytes([high, low])) + u64::from(!old) + u64::from(new);
    write(bytes, at, !fold(total));
}

/// Adds up 16-bit words (RFC 1071).
#[must_use]
pub fn sum(start: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let total = words.iter().fold(start, |total, word| total + u64::from(u32::from_be_bytes(*word)));
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum of words to 16 bits; its complement is the checksum.
#[must_use]
pub const fn fold(mut total: u64) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(payload: &[u8], protocol: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(payload);
        let length = u16::try_from(packet.len()).unwrap();
        write(&mut packet, 2, length);
        let checksum = !fold(sum(0, &packet[..20]));
        write(&mut packet, 10, checksum);
        packet
    }

    fn v6(payload: &[u8], protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        write(&mut packet, 4, u16::try_from(payload.len()).unwrap());
        packet[6] = protocol;
        packet[7] = 64;
        packet[23] = 1;
        packet[39] = 2;
        packet.extend_from_slice(payload);
        packet
    }

    /// A TCP segment with options, its checksum right within this packet.
    fn tcp(flags: u8, options: &[u8], wrap: impl Fn(&[u8], u8) -> Vec<u8>) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
        segment[12] = u8::try_from(5 + options.len() / 4).unwrap() << 4;
        segment[13] = flags;
        segment.extend_from_slice(options);
        let mut packet = wrap(&segment, TCP);
        let checksum = !fold(tcp_sum(&packet));
        let at = Inner::parse(&packet).unwrap().payload + 16;
        write(&mut packet, at, checksum);
        packet
    }

    fn tcp_sum(packet: &[u8]) -> u64 {
        let inner = Inner::parse(packet).unwrap();
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        let segment = &packet[inner.payload..];
        sum(sum(u64::from(TCP) + segment.len() as u64, addresses), segment)
    }

    #[test]
    fn headers_are_read_and_held_to_their_fields() {
        let packet = v4(&[0x30, 0x39, 0, 80, 0, 8, 0, 0], UDP);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!((inner.source.to_string(), inner.destination.to_string()), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!((inner.protocol, inner.payload, inner.fragment), (UDP, 20, false));
        assert_eq!(inner.ports(&packet), Some((12_345, 80)));
        assert_eq!(destination(&packet), Some(inner.destination));
        let packet = v6(&[0; 8], UDP);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!((inner.source.to_string(), inner.destination.to_string()), ("::1".into(), "::2".into()));
        assert_eq!(destination(&packet), Some(inner.destination));
    }

    #[test]
    fn wrong_lengths_and_checksums_have_their_reasons() {
        let packet = v4(&[0; 8], UDP);
        let changed = |at: usize, to: u8| {
            let mut changed = packet.clone();
            changed[at] = to;
            Inner::parse(&changed)
        };
        assert_eq!(changed(10, !packet[10]).err(), Some(InnerError::Checksum));
        assert_eq!(changed(3, 29).err(), Some(InnerError::Length));
        assert_eq!(changed(0, 0x44).err(), Some(InnerError::Header));
        assert_eq!(changed(0, 0x4f).err(), Some(InnerError::Header));
        assert_eq!(changed(0, 0x75).err(), Some(InnerError::Header));
        assert_eq!(Inner::parse(&packet[..19]).err(), Some(InnerError::Header));
        assert_eq!(Inner::parse(&packet[..27]).err(), Some(InnerError::Length));
        assert_eq!(Inner::parse(&[]).err(), Some(InnerError::Header));
        let six = v6(&[0; 8], UDP);
        assert_eq!(Inner::parse(&six[..47]).err(), Some(InnerError::Length));
        assert_eq!(Inner::parse(&six[..39]).err(), Some(InnerError::Header));
    }

    #[test]
    fn fragments_are_known() {
        for (flags, is) in [(0x2000u16, true), (0x0001, true), (0x4000, false)] {
            let mut packet = v4(&[0; 8], UDP);
            write(&mut packet, 6, flags);
            write(&mut packet, 10, 0);
            let checksum = !fold(sum(0, &packet[..20]));
            write(&mut packet, 10, checksum);
            let inner = Inner::parse(&packet).unwrap();
            assert_eq!(inner.fragment, is);
            assert_eq!(inner.ports(&packet).is_none(), is);
        }
        assert!(Inner::parse(&v6(&[0; 8], 44)).unwrap().fragment);
    }

    #[test]
    fn the_mss_of_syns_is_lowered_and_the_checksum_stays_right() {
        for (options, changes) in [
            (&[2, 4, 5, 0xb4][..], true),
            (&[1, 1, 1, 1, 2, 4, 0xff, 0xff], true),
            (&[1, 3, 3, 7, 1, 2, 4, 5, 0xb4, 0, 0, 0], true),
            (&[2, 4, 4, 0], false),
            (&[0, 2, 4, 5], false),
            (&[3, 0, 2, 4, 5, 0xb4, 0, 0], false),
            (&[], false),
        ] {
            for packet in [tcp(0x02, options, v4), tcp(0x12, options, v6)] {
                let mut clamped = packet.clone();
                assert_eq!(clamp_mss(&mut clamped, 1420), changes, "{options:?}");
                assert_eq!(fold(tcp_sum(&clamped)), 0xffff, "{options:?}");
                assert_eq!(clamped != packet, changes);
            }
        }
        let mut syn = tcp(0x02, &[2, 4, 5, 0xb4], v4);
        clamp_mss(&mut syn, 1420);
        assert_eq!(u16::from_be_bytes([syn[42], syn[43]]), 1380);
        let mut data = tcp(0x10, &[2, 4, 5, 0xb4], v4);
        assert!(!clamp_mss(&mut data, 1420), "only SYNs carry it");
    }

    #[test]
    fn hops_are_counted_down_to_one() {
        let mut packet = v4(&[0; 8], UDP);
        for left in (1..64).rev() {
            hop(&mut packet).unwrap();
            assert_eq!(packet[8], left);
            assert!(Inner::parse(&packet).is_ok(), "the checksum follows");
        }
        assert_eq!(hop(&mut packet), Err(InnerError::Expired));
        let mut six = v6(&[0; 8], UDP);
        hop(&mut six).unwrap();
        assert_eq!(six[7], 63);
        assert_eq!(hop(&mut []), Err(InnerError::Header));
    }

    #[test]
    fn syns_are_known() {
        for (flags, is) in [(0x02, true), (0xc2, true), (0x12, false), (0x10, false), (0x04, false)] {
            let packet = tcp(flags, &[], v4);
            assert_eq!(Inner::parse(&packet).unwrap().is_syn(&packet), is);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_packets_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 4..7u8) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0x0f;
            }
            if let Ok(inner) = Inner::parse(&bytes) {
                let _any = (inner.ports(&bytes), inner.is_syn(&bytes));
            }
            let _any = (destination(&bytes), clamp_mss(&mut bytes, 1280), hop(&mut bytes));
        }

        /// Options of any kind in a packet that is right otherwise.
        #[test]
        fn arbitrary_options_keep_the_checksum(words in proptest::collection::vec(any::<u32>(), 0..10), mtu in 0..2_000usize) {
            let options: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            let mut packet = tcp(0x02, &options, v4);
            clamp_mss(&mut packet, mtu);
            prop_assert_eq!(fold(tcp_sum(&packet)), 0xffff);
        }
    }
}
