//! A bounded batch of IP packets in one buffer, and the trait by which a TUN, a netstack and a tunnel hand such batches
//! to one another.
//!
//! One allocation holds all packets of a batch; it is made once, travels with the batch through mailboxes and is used
//! again after [`Packets::clear`]. Each packet starts at a multiple of 16 bytes and is followed by zeroes up to the
//! next one, so that WireGuard's padding costs no copy ([`Packets::padded`]). A batch that is full refuses the next
//! packet and changes nothing. Nothing here looks into a packet.

use std::fmt;

/// Where the next packet starts, and what WireGuard pads its content to (whitepaper 5.4.6).
const ALIGN: usize = 16;

/// The bytes of [`Packets::default`]: what one read with UDP GRO or one TUN read with offloads can bring, split.
pub const BATCH_BYTES: usize = 96 * 1024;

/// The packets of [`Packets::default`].
pub const BATCH_PACKETS: usize = 128;

/// IP packets in the order they came, in one buffer with a bound in bytes and in packets.
pub struct Packets {
    buffer: Box<[u8]>,
    used: usize,
    /// Offset and length of each.
    places: Vec<(u32, u32)>,
    max_packets: usize,
    bytes: usize,
}

impl Packets {
    /// An empty batch with room for `packets` packets in `bytes` bytes. Each packet takes its length rounded up to a
    /// multiple of 16. Above 4 GiB the bound is 4 GiB.
    #[must_use]
    pub fn with_capacity(bytes: usize, packets: usize) -> Self {
        let bytes = bytes.min(u32::MAX as usize);
        Self {
            buffer: vec![0; bytes].into_boxed_slice(),
            used: 0,
            places: Vec::with_capacity(packets),
            max_packets: packets,
            bytes: 0,
        }
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
        if self.places.len() >= self.max_packets {
            return false;
        }
        let Some(room) = start.checked_add(max_len).and_then(|end| self.buffer.get_mut(start..end)) else {
            return false;
        };
        let len = write(room);
        if len == 0 || len > max_len {
            return false;
        }
        let end = start + len;
        let next = end.next_multiple_of(ALIGN).min(self.buffer.len());
        if let Some(rest) = self.buffer.get_mut(end..next) {
            rest.fill(0);
        }
        let (Ok(at), Ok(length)) = (u32::try_from(start), u32::try_from(len)) else { return false };
        self.places.push((at, length));
        self.used = next;
        self.bytes += len;
        true
    }

    /// The packets, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.places.iter().map(|&(at, len)| self.slice(at, len as usize))
    }

    /// The packets, oldest first, to be changed in place.
    pub fn for_each_mut(&mut self, mut change: impl FnMut(&mut [u8])) {
        for &(at, len) in &self.places {
            if let Some(packet) = self.buffer.get_mut(at as usize..at as usize + len as usize) {
                change(packet);
            }
        }
    }

    /// The packet with this number, counted from 0.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.places.get(index).map(|&(at, len)| self.slice(at, len as usize))
    }

    /// The packet with this number and the zeroes behind it: its length rounded up to a multiple of 16, but not above
    /// `mtu` unless it is longer than that itself (whitepaper 5.4.6).
    #[must_use]
    pub fn padded(&self, index: usize, mtu: usize) -> Option<&[u8]> {
        self.places.get(index).map(|&(at, len)| {
            let len = len as usize;
            let room = self.buffer.len().saturating_sub(at as usize);
            self.slice(at, len.next_multiple_of(ALIGN).min(mtu.max(len)).min(room))
        })
    }

    fn slice(&self, at: u32, len: usize) -> &[u8] {
        self.buffer.get(at as usize..at as usize + len).unwrap_or_default()
    }

    /// How many packets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The bytes of the packets, without what lies between them.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes of memory this batch holds, full or empty: what it counts in a mailbox.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.buffer.len()
    }

    /// The longest packet that [`push`](Self::push) takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.places.len() >= self.max_packets { 0 } else { self.buffer.len().saturating_sub(self.used) }
    }

    /// Forgets the packets and keeps the buffer.
    pub fn clear(&mut self) {
        self.places.clear();
        self.used = 0;
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
    /// Hands over a batch and gets an empty one of about the same size back, one used before if there is one.
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
        assert_eq!((packets.bytes(), packets.room(), packets.held()), (0, 64, 64));
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
