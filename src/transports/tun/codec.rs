//! The virtio header in front of packets on a TUN interface with offloads, and what is read of IP, TCP and UDP headers
//! to cut and join packets: addresses, ports, checksums.
//!
//! Bytes come in and go out; nothing is kept. The virtio header is that of virtio 1.2, section 5.1.6, without
//! `num_buffers`: ten bytes, in the byte order of this machine (IFF_VNET_HDR in linux/if_tun.h).

use std::fmt;

/// Length of the virtio header.
pub const VIRTIO_HEADER: usize = 10;

/// The longest read: a header and the longest IP packet.
pub const LONGEST_READ: usize = VIRTIO_HEADER + 65_535;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The first segment may carry CWR; cutting handles that without being told.
const GSO_ECN: u8 = 0x80;

/// What kind of super-packet follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// One packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// What the kernel and we tell each other about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// The transport checksum holds only the sum of the pseudo header.
    pub needs_checksum: bool,
    /// The kind of super-packet.
    pub gso: Gso,
    /// Length of all headers; a hint, not to be relied on.
    pub headers: u16,
    /// Payload of each packet that a super-packet is cut into; the last may be shorter.
    pub segment: u16,
    /// Where the transport header begins.
    pub checksum_start: u16,
    /// Where in it the checksum is.
    pub checksum_offset: u16,
}

/// A header, or a packet behind it, that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a packet whose headers contradict each other")
    }
}

impl std::error::Error for Malformed {}

impl VirtioHeader {
    /// Reads the header in front of a packet.
    ///
    /// # Errors
    /// [`Malformed`] if it is too short or of a kind nobody asked for.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some(&[flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]) = bytes.first_chunk::<VIRTIO_HEADER>() else {
            return Err(Malformed);
        };
        let gso = match gso & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 => Gso::Tcp4,
            GSO_TCP6 => Gso::Tcp6,
            GSO_UDP => Gso::Udp,
            _ => return Err(Malformed),
        };
        Ok(Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            gso,
            headers: u16::from_ne_bytes([h0, h1]),
            segment: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; VIRTIO_HEADER] {
        let flags = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP,
        };
        let [h0, h1] = self.headers.to_ne_bytes();
        let [s0, s1] = self.segment.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// The one's complement sum of 16-bit words (RFC 1071), as it grows. Each part but the last has an even length.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes in network order.
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        // The sum of 16-bit words is the same, but for the order of its bytes, whichever end they are read from
        // (RFC 1071, section 2 B), and so is that of 32-bit words folded later: eight of those at a time is what a
        // compiler turns into vector instructions.
        let mut lanes = [0u64; 8];
        let mut blocks = bytes.chunks_exact(32);
        for block in &mut blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (pairs, odd) = blocks.remainder().as_chunks::<2>();
        let mut sum: u64 = lanes.iter().sum();
        sum += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
        if let Some(last) = odd.first() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(self.0 + sum)
    }

    /// Adds a number.
    pub(super) fn add16(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// The sum folded to 16 bits: what a checksum field holds before it is finished.
    pub(super) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }
}

/// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) of a transport part of `length` bytes.
pub(super) fn pseudo(packet: &[u8], v6: bool, protocol: u8, length: u16) -> Sum {
    let addresses = if v6 { packet.get(8..40) } else { packet.get(12..20) };
    Sum::default().add(addresses.unwrap_or_default()).add16(u16::from(protocol)).add16(length)
}

/// The number at `at`; 0 beyond the end.
pub(super) fn get16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |pair| u16::from_be_bytes(*pair))
}

/// The number at `at`; 0 beyond the end.
pub(super) fn get32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |four| u32::from_be_bytes(*four))
}

/// Writes a number at `at`, if there is room.
pub(super) fn put16(bytes: &mut [u8], at: usize, number: u16) {
    if let Some(pair) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *pair = number.to_be_bytes();
    }
}

/// Writes a number at `at`, if there is room.
pub(super) fn put32(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(four) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *four = number.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        /// As the definition has it, whatever the length; 0 and 0xffff are the same number.
        #[test]
        fn the_sum_is_that_of_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let (ours, theirs) = (Sum::default().add(&bytes).fold(), slow(&bytes));
            prop_assert!(ours == theirs || ours.min(theirs) == 0 && ours.max(theirs) == 0xffff, "{ours} {theirs}");
            prop_assert_eq!(ours, tun_rs::checksum(&bytes, 0), "as tun-rs counts");
        }

        #[test]
        fn headers_read_back(bytes in any::<[u8; VIRTIO_HEADER]>()) {
            if let Ok(header) = VirtioHeader::decode(&bytes) {
                prop_assert_eq!(VirtioHeader::decode(&header.encode()), Ok(header));
            }
        }
    }

    #[test]
    fn headers_of_other_kinds_are_refused() {
        assert_eq!(VirtioHeader::decode(&[0; 9]), Err(Malformed));
        assert_eq!(VirtioHeader::decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed), "UDP fragmentation offload");
        assert!(VirtioHeader::decode(&[1, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]).is_ok());
    }
}
