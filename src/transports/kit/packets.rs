//! A bounded batch of IP packets in one buffer, and the trait by which a TUN, a netstack and a tunnel hand such batches
//! to one another.
//!
//! One buffer holds all packets of a batch and where they lie; it comes from the pool of an arbiter ([`Packets::over`]),
//! travels with the batch through mailboxes and goes home when the batch is dropped, wherever that is. Each packet starts
//! at a multiple of 16 bytes and is followed by zeroes up to the next one, so that WireGuard's padding costs no copy
//! ([`Packets::padded`]). A batch that is full refuses the next packet and changes nothing. Nothing here looks into a
//! packet.

use std::fmt;

use crate::memory::Buf;

/// Where the next packet starts, and what WireGuard pads its content to (whitepaper 5.4.6).
const ALIGN: usize = 16;

/// The bytes of [`Packets::default`]: what one read with UDP GRO or one TUN read with offloads can bring, split.
pub const BATCH_BYTES: usize = 96 * 1024;

/// The packets of [`Packets::default`].
pub const BATCH_PACKETS: usize = 128;

/// What is noted of each packet: its offset and its length.
const PLACE: usize = 8;

/// IP packets in the order they came, in one buffer with a bound in bytes and in packets.
pub struct Packets {
    /// The places of all packets that there may be, then the packets. It grows up to `limit` and shrinks for nobody.
    buffer: Buf,
    limit: usize,
    /// Where the next packet starts.
    used: usize,
    count: usize,
    max_packets: usize,
    bytes: usize,
}

impl Packets {
    /// A batch without room, which holds no memory.
    #[must_use]
    pub fn none() -> Self {
        Self { buffer: Buf::default(), limit: 0, used: 0, count: 0, max_packets: 0, bytes: 0 }
    }

    /// An empty batch with room for `packets` packets in `bytes` bytes, in memory of its own. Each packet takes its length
    /// rounded up to a multiple of 16. Above 4 GiB the bound is 4 GiB.
    #[must_use]
    pub fn with_capacity(bytes: usize, packets: usize) -> Self {
        Self::over(Buf::default(), bytes, packets)
    }

    /// The same in a buffer that somebody lends. One of [`needs`](Self::needs) bytes is large enough; a smaller one
    /// grows, once.
    #[must_use]
    pub fn over(mut buffer: Buf, bytes: usize, packets: usize) -> Self {
        let limit = Self::needs(bytes, packets);
        buffer.clear();
        buffer.reserve_exact(limit);
        let used = Self::head(packets);
        buffer.resize(used, 0);
        Self { buffer, limit, used, count: 0, max_packets: packets, bytes: 0 }
    }

    /// A batch of [`BATCH_PACKETS`] packets in [`BATCH_BYTES`], in a buffer that `lend` is asked for by its size.
    #[must_use]
    pub fn lent(lend: impl FnOnce(usize) -> Buf) -> Self {
        Self::over(lend(Self::needs(BATCH_BYTES, BATCH_PACKETS)), BATCH_BYTES, BATCH_PACKETS)
    }

    /// The bytes of a buffer for a batch of this size.
    #[must_use]
    pub fn needs(bytes: usize, packets: usize) -> usize {
        Self::head(packets).saturating_add(bytes).min(u32::MAX as usize)
    }

    fn head(packets: usize) -> usize {
        packets.saturating_mul(PLACE).next_multiple_of(ALIGN)
    }

    /// Appends a copy of `packet`. Answers false, and changes nothing, if it is empty or there is no room.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        self.push_with(packet.len(), |room| {
            room.copy_from_slice(packet);
            packet.len()
        })
    }

    /// Appends a packet of at most `max_len` bytes that `write` writes into the buffer; it answers how many it wrote.
    /// The room holds whatever an earlier packet left there. Answers false if there is no room (`write` is not called
    /// then) or `write` answers 0 or more than `max_len`; nothing is appended then.
    pub fn push_with(&mut self, max_len: usize, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let start = self.used;
        if self.count >= self.max_packets {
            return false;
        }
        let Some(end) = start.checked_add(max_len).filter(|end| *end <= self.limit) else { return false };
        let grown = end.next_multiple_of(ALIGN).min(self.limit);
        if self.buffer.len() < grown {
            self.buffer.resize(grown, 0);
        }
        let Some(room) = self.buffer.get_mut(start..end) else { return false };
        let len = write(room);
        if len == 0 || len > max_len {
            return false;
        }
        let end = start + len;
        let next = end.next_multiple_of(ALIGN).min(self.limit);
        if let Some(rest) = self.buffer.get_mut(end..next) {
            rest.fill(0);
        }
        let (Ok(at), Ok(length)) = (u32::try_from(start), u32::try_from(len)) else { return false };
        let place = self.count * PLACE;
        let Some(place) = self.buffer.get_mut(place..place + PLACE) else { return false };
        place.copy_from_slice(&(u64::from(at) << 32 | u64::from(length)).to_ne_bytes());
        self.count += 1;
        self.used = next;
        self.bytes += len;
        true
    }

    /// Offset and length of a packet.
    fn place(&self, index: usize) -> Option<(usize, usize)> {
        let place = self.buffer.get(..self.count * PLACE)?.as_chunks::<PLACE>().0.get(index)?;
        let place = u64::from_ne_bytes(*place);
        Some(((place >> 32) as usize, (place & u64::from(u32::MAX)) as usize))
    }

    /// The packets, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.count).map(|index| self.get(index).unwrap_or_default())
    }

    /// The packets, oldest first, to be changed in place.
    pub fn for_each_mut(&mut self, mut change: impl FnMut(&mut [u8])) {
        for index in 0..self.count {
            let Some((at, len)) = self.place(index) else { return };
            if let Some(packet) = self.buffer.get_mut(at..at + len) {
                change(packet);
            }
        }
    }

    /// The packet with this number, counted from 0.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.place(index).and_then(|(at, len)| self.buffer.get(at..at + len))
    }

    /// The packet with this number and the zeroes behind it: its length rounded up to a multiple of 16, but not above
    /// `mtu` unless it is longer than that itself (whitepaper 5.4.6).
    #[must_use]
    pub fn padded(&self, index: usize, mtu: usize) -> Option<&[u8]> {
        let (at, len) = self.place(index)?;
        let room = self.limit.saturating_sub(at);
        self.buffer.get(at..at + len.next_multiple_of(ALIGN).min(mtu.max(len)).min(room))
    }

    /// How many packets there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes of the packets, without what lies between them.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes of memory this batch holds, full or empty: what it counts in a mailbox.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.limit
    }

    /// The longest packet that [`push`](Self::push) takes now.
    #[must_use]
    pub const fn room(&self) -> usize {
        if self.count >= self.max_packets { 0 } else { self.limit.saturating_sub(self.used) }
    }

    /// Forgets the packets and keeps the buffer.
    pub fn clear(&mut self) {
        self.count = 0;
        self.used = Self::head(self.max_packets);
        self.bytes = 0;
    }
}

/// Room for [`BATCH_PACKETS`] packets in [`BATCH_BYTES`].
impl Default for Packets {
    fn default() -> Self {
        Self::with_capacity(BATCH_BYTES, BATCH_PACKETS)
    }
}

impl fmt::Debug for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packets").field("packets", &self.len()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Where batches go: into the mailbox of a TUN, of a netstack or of a tunnel, or into a test.
pub trait Deliver: 'static {
    /// Hands over a batch and gets an empty one back: the very same if it was used up on the spot, else one without room.
    ///
    /// # Errors
    /// The batch comes back, unchanged, if the receiver has no room for it or has ended. Whoever can make its source
    /// wait (a TUN: it stops reading and tries again within a millisecond or so) does; whoever cannot (a UDP socket)
    /// drops the batch and counts it.
    fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_no_more_than_its_bounds() {
        let mut packets = Packets::with_capacity(64, 3);
        assert!(!packets.push(&[]));
        assert!(packets.push(&[1; 20]));
        assert_eq!(packets.room(), 32);
        assert!(!packets.push(&[2; 33]));
        assert!(packets.push(&[3; 5]));
        assert!(packets.push(&[4; 16]));
        assert!(!packets.push(&[5]), "three packets are the bound");
        assert_eq!((packets.len(), packets.bytes(), packets.room()), (3, 41, 0));
        packets.clear();
        assert!(packets.is_empty());
        assert_eq!((packets.bytes(), packets.room(), packets.held()), (0, 64, Packets::needs(64, 3)));
    }

    #[test]
    fn a_writer_that_lies_appends_nothing() {
        let mut packets = Packets::with_capacity(64, 3);
        assert!(!packets.push_with(10, |_| 0));
        assert!(!packets.push_with(10, |_| 11));
        assert!(!packets.push_with(usize::MAX, |_| panic!("there is no room")));
        assert!(packets.is_empty());
        assert!(packets.push_with(10, |room| {
            room[..2].copy_from_slice(&[8, 9]);
            2
        }));
        assert_eq!(packets.get(0), Some(&[8, 9][..]));
    }

    #[test]
    fn padding_is_zero_also_in_a_used_buffer_and_ends_at_the_mtu() {
        let mut packets = Packets::with_capacity(128, 4);
        assert!(packets.push(&[0xff; 128]));
        packets.clear();
        assert!(packets.push(&[7; 20]));
        assert!(packets.push(&[7; 40]));
        let mut expected = vec![7; 20];
        expected.resize(32, 0);
        assert_eq!(packets.padded(0, 1420), Some(&expected[..]));
        assert_eq!(packets.padded(1, 44).map(<[u8]>::len), Some(44));
        assert_eq!(packets.padded(1, 30).map(<[u8]>::len), Some(40), "a packet above the MTU is not cut");
        assert_eq!(packets.padded(2, 1420), None);
        let mut tight = Packets::with_capacity(20, 1);
        assert!(tight.push(&[1; 18]));
        assert_eq!(tight.padded(0, 1420).map(<[u8]>::len), Some(20), "no room for all the zeroes");
    }

    proptest! {
        /// Whatever is taken comes out again, in order.
        #[test]
        fn gives_what_it_took(sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40)) {
            let mut packets = Packets::with_capacity(4_096, 20);
            let mut taken = Vec::new();
            for packet in &sent {
                if packets.push(packet) {
                    taken.push(packet.clone());
                }
            }
            let got: Vec<Vec<u8>> = packets.iter().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(&got, &taken);
            prop_assert_eq!(packets.bytes(), taken.iter().map(Vec::len).sum::<usize>());
            packets.for_each_mut(|packet| packet.fill(1));
            prop_assert!(packets.iter().flatten().all(|byte| *byte == 1));
        }
    }
}
