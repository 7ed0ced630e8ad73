//! What of a QUIC packet can be read without keys: its form, version, connection ids and Retry token; and the shape
//! of the connection ids this endpoint gives out.
//!
//! Bytes in, borrowed pieces or a named error out. Only the version-independent part (RFC 8999) and the Initial's
//! token (RFC 9000, section 17.2.2) are looked at: enough to find the connection or to admit a new one.

use std::fmt;

/// The length of the connection ids this endpoint gives out.
pub const CID_LEN: usize = 16;
/// The longest connection id of version 1 (RFC 9000, section 17.2).
pub const MAX_CID_LEN: usize = 20;
/// The most arbiters one byte of a connection id can name.
pub const MAX_ARBITERS: usize = 128;
/// QUIC version 1.
pub const VERSION_1: u32 = 1;
/// The least a datagram with a client's first Initial may have (RFC 9000, section 14.1).
pub const MIN_INITIAL: usize = 1_200;
/// The least length of a first Destination Connection ID that a client makes up (RFC 9000, section 7.2).
pub const MIN_CLIENT_DCID: usize = 8;

/// A connection id of ours. Its first byte names the arbiter its connection lives on, modulo their number; the upper
/// half of the second is the generation of the process that made it; the rest is random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid([u8; CID_LEN]);

impl Cid {
    /// An id for a connection on `arbiter` of `arbiters`, out of random bytes. Which of the values that name the
    /// arbiter the first byte gets is random too, so that it tells an onlooker as little as it can.
    #[must_use]
    pub fn new(mut random: [u8; CID_LEN], arbiter: usize, arbiters: usize, generation: u8) -> Self {
        let count = arbiters.clamp(1, MAX_ARBITERS);
        let strides = 256 / count;
        let [first, second, ..] = &mut random;
        *first = ((usize::from(*first) % strides) * count + arbiter % count) as u8;
        *second = (generation << 4) | (*second & 0x0f);
        Self(random)
    }

    /// The id of a Retry: its beginning, since there is no room for two whole ones beside the client's own in what
    /// quiche keeps for the transport parameters (128 bytes). It names the arbiter as well.
    #[must_use]
    pub fn for_retry(&self) -> &[u8] {
        self.0.first_chunk::<MIN_CLIENT_DCID>().map_or(&[], |id| id.as_slice())
    }

    /// The id in these bytes, if they have the length of one.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; CID_LEN] {
        &self.0
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The arbiter that a connection id names: its first byte modulo their number, as the kernel's steering has it. An
/// empty id names the first.
#[must_use]
pub fn arbiter_of(id: &[u8], arbiters: usize) -> usize {
    id.first().map_or(0, |first| usize::from(*first) % arbiters.max(1))
}

/// What is readable of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peek<'a> {
    /// A packet of an established connection.
    Short {
        /// To whom, in the length of our ids.
        dcid: &'a [u8],
    },
    /// A client's first packet, or one of its followers.
    Initial {
        /// To whom; chosen by the client in its first flight.
        dcid: &'a [u8],
        /// From whom.
        scid: &'a [u8],
        /// The token of a Retry; empty without one.
        token: &'a [u8],
    },
    /// 0-RTT, Handshake or Retry of version 1.
    Long {
        /// To whom.
        dcid: &'a [u8],
    },
    /// A long header of a version that is not spoken here.
    Foreign {
        /// Which; 0 is a Version Negotiation.
        version: u32,
        /// To whom.
        dcid: &'a [u8],
        /// From whom.
        scid: &'a [u8],
    },
}

impl<'a> Peek<'a> {
    /// To whom the packet goes.
    #[must_use]
    pub const fn dcid(&self) -> &'a [u8] {
        match self {
            Self::Short { dcid } | Self::Initial { dcid, .. } | Self::Long { dcid } | Self::Foreign { dcid, .. } => {
                dcid
            }
        }
    }
}

/// Why a datagram is no QUIC packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeekError {
    /// It ends within its header.
    Truncated,
    /// A version 1 packet without the fixed bit (RFC 9000, section 17.2).
    NotQuic,
    /// A connection id longer than version 1 has.
    LongId,
}

impl PeekError {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::NotQuic => "not_quic",
            Self::LongId => "long_id",
        }
    }
}

/// Reads bytes from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], PeekError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(PeekError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PeekError> {
        let (first, rest) = self.0.split_first().ok_or(PeekError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A length of up to 8 bytes (RFC 9000, section 16).
    fn varint(&mut self) -> Result<u64, PeekError> {
        let first = self.byte()?;
        let more = (1_usize << (first >> 6)) - 1;
        let rest = self.take(more)?;
        Ok(rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte)))
    }
}

/// Bytes of the Handshake packets at the front of a datagram, which other packets may follow (RFC 9000, section 12.2);
/// 0 if it begins with something else or is cut short.
#[must_use]
pub fn handshake_packets(datagram: &[u8]) -> usize {
    let one = |rest: &[u8]| -> Result<usize, PeekError> {
        let mut reader = Reader(rest);
        // RFC 9000, section 17.2.4: a long header with type 2.
        if reader.byte()? & 0xb0 != 0xa0 {
            return Ok(0);
        }
        reader.take(4)?;
        for _ in 0..2 {
            let length = usize::from(reader.byte()?);
            reader.take(length)?;
        }
        let length = usize::try_from(reader.varint()?).map_err(|_| PeekError::Truncated)?;
        reader.take(length)?;
        Ok(rest.len() - reader.0.len())
    };
    let mut skipped = 0;
    while let Some(rest) = datagram.get(skipped..)
        && let Ok(length) = one(rest)
        && length > 0
    {
        skipped += length;
    }
    skipped
}

/// Reads the header of the first packet in a datagram.
///
/// # Errors
/// See [`PeekError`].
pub fn peek(datagram: &[u8]) -> Result<Peek<'_>, PeekError> {
    let mut reader = Reader(datagram);
    let first = reader.byte()?;
    if first & 0x80 == 0 {
        if first & 0x40 == 0 {
            return Err(PeekError::NotQuic);
        }
        return Ok(Peek::Short { dcid: reader.take(CID_LEN)? });
    }
    let version = reader.take(4)?.iter().fold(0, |value, byte| (value << 8) | u32::from(*byte));
    let length = usize::from(reader.byte()?);
    let dcid = reader.take(length)?;
    let length = usize::from(reader.byte()?);
    let scid = reader.take(length)?;
    if version != VERSION_1 {
        return Ok(Peek::Foreign { version, dcid, scid });
    }
    if first & 0x40 == 0 {
        return Err(PeekError::NotQuic);
    }
    if dcid.len() > MAX_CID_LEN || scid.len() > MAX_CID_LEN {
        return Err(PeekError::LongId);
    }
    // RFC 9000, table 5: the type is in bits 4 and 5.
    if first & 0x30 != 0 {
        return Ok(Peek::Long { dcid });
    }
    let length = usize::try_from(reader.varint()?).map_err(|_| PeekError::Truncated)?;
    let token = reader.take(length)?;
    Ok(Peek::Initial { dcid, scid, token })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn initial(dcid: &[u8], scid: &[u8], token: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc3, 0, 0, 0, 1, dcid.len() as u8];
        packet.extend(dcid);
        packet.push(scid.len() as u8);
        packet.extend(scid);
        packet.extend([0x40 | (token.len() >> 8) as u8, token.len() as u8]);
        packet.extend(token);
        packet
    }

    #[test]
    fn handshake_packets_in_front_are_measured() {
        let handshake = |body: usize| {
            let mut packet = vec![0xe1, 0, 0, 0, 1, 2, 7, 7, 1, 9, body as u8];
            packet.extend(vec![0; body]);
            packet
        };
        let short = [0x41; 30];
        for (packets, skipped) in [
            ([handshake(20), short.to_vec()].concat(), 31),
            ([handshake(20), handshake(3), short.to_vec()].concat(), 31 + 14),
            (handshake(20), 31),
            (short.to_vec(), 0),
            (handshake(20)[..30].to_vec(), 0),
            (vec![0xe1], 0),
            (vec![], 0),
            // An Initial is none.
            ([vec![0xc1], handshake(20)[1..].to_vec()].concat(), 0),
        ] {
            assert_eq!(handshake_packets(&packets), skipped, "{packets:?}");
        }
    }

    #[test]
    fn the_forms_of_a_packet_are_told_apart() {
        let packet = initial(&[1; 8], &[2; 5], &[3; 300]);
        assert_eq!(peek(&packet), Ok(Peek::Initial { dcid: &[1; 8], scid: &[2; 5], token: &[3; 300] }));
        let mut handshake = packet.clone();
        handshake[0] = 0xe3;
        assert_eq!(peek(&handshake), Ok(Peek::Long { dcid: &[1; 8] }));
        let mut foreign = packet;
        foreign[4] = 9;
        assert_eq!(peek(&foreign), Ok(Peek::Foreign { version: 9, dcid: &[1; 8], scid: &[2; 5] }));
        let mut short = vec![0x41; 40];
        assert_eq!(peek(&short), Ok(Peek::Short { dcid: &[0x41; 16] }));
        short[0] = 0x01;
        assert_eq!(peek(&short), Err(PeekError::NotQuic));
        assert_eq!(peek(&[0x40; 16]), Err(PeekError::Truncated));
        assert_eq!(peek(&initial(&[1; 21], &[], &[])), Err(PeekError::LongId));
        assert_eq!(peek(&[]), Err(PeekError::Truncated));
    }

    #[test]
    fn each_cut_of_an_initial_is_truncated() {
        let packet = initial(&[1; 8], &[2; 5], &[3; 30]);
        for cut in 0..packet.len() {
            assert_eq!(peek(&packet[..cut]), Err(PeekError::Truncated), "{cut} bytes");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_within_their_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(peek) = peek(&bytes) {
                prop_assert!(peek.dcid().len() <= bytes.len());
            }
        }

        #[test]
        fn an_id_names_its_arbiter_and_generation(
            random: [u8; 16], arbiters in 1_usize..=MAX_ARBITERS, arbiter: usize, generation in 0_u8..16,
        ) {
            let arbiter = arbiter % arbiters;
            let id = Cid::new(random, arbiter, arbiters, generation);
            prop_assert_eq!(arbiter_of(id.bytes(), arbiters), arbiter);
            prop_assert_eq!(id.bytes()[1] >> 4, generation);
            prop_assert_eq!(&id.bytes()[2..], &random[2..]);
            prop_assert_eq!(Cid::of(id.bytes()), Some(id));
        }
    }

    /// The first byte must not give away more than the arbiter.
    #[test]
    fn every_first_byte_that_names_the_arbiter_occurs() {
        let firsts: std::collections::BTreeSet<u8> =
            (0..=255).map(|byte| Cid::new([byte; 16], 1, 4, 0).bytes()[0]).collect();
        assert_eq!(firsts.len(), 64);
        assert!(firsts.iter().all(|first| first % 4 == 1));
    }
}
