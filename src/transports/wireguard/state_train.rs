//! A train: datagrams to or from one address, side by side in one buffer, as UDP GSO sends and GRO receives them.
//!
//! All have the same length but the last, which may be shorter. A train that is full, or closed by a shorter datagram,
//! refuses the next one; the caller starts another. Pure: the buffer is lent to whoever reads or writes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::engine::LEAST_ROOM;
use crate::memory::Buf;

/// The most bytes that the kernel sends as one train: what fits into an IPv4 datagram.
pub const MOST_BYTES: usize = 65_507;
/// Room of a buffer that takes any train: what the kernel may merge, and what an engine needs at the end.
pub const ROOM: usize = 65_535 + LEAST_ROOM + 1;

/// Datagrams side by side.
pub struct Train {
    buffer: Buf,
    used: usize,
    segment: usize,
    count: usize,
    closed: bool,
    /// Where they go, or come from.
    pub address: SocketAddr,
    /// The local address they leave from, or were sent to, where it is known.
    pub local: Option<IpAddr>,
}

impl Train {
    /// An empty train with room for these bytes, and for an engine to work at their end.
    #[must_use]
    pub fn with_capacity(bytes: usize, address: SocketAddr) -> Self {
        Self::over(Buf::default(), bytes, address)
    }

    /// The same in a buffer that somebody lends: of [`needs`](Self::needs) bytes, or it grows, once.
    #[must_use]
    pub fn over(mut buffer: Buf, bytes: usize, address: SocketAddr) -> Self {
        let length = Self::needs(bytes);
        buffer.clear();
        buffer.reserve_exact(length);
        buffer.resize(length, 0);
        Self { buffer, used: 0, segment: 0, count: 0, closed: false, address, local: None }
    }

    /// The bytes of a buffer for a train of so many.
    #[must_use]
    pub fn needs(bytes: usize) -> usize {
        bytes.min(ROOM - LEAST_ROOM) + LEAST_ROOM
    }

    /// One datagram.
    #[must_use]
    pub fn of(datagram: &[u8], address: SocketAddr, local: Option<IpAddr>) -> Self {
        let mut train = Self::with_capacity(datagram.len(), address);
        train.local = local;
        train.push(datagram.len(), usize::MAX, |room| {
            room.get_mut(..datagram.len()).map_or(0, |room| {
                room.copy_from_slice(datagram);
                datagram.len()
            })
        });
        train
    }

    /// The same datagrams in a buffer no larger than they need, which `lend` is asked for: what came in small must not
    /// keep a large one.
    #[must_use]
    pub fn compact(&self, lend: impl FnOnce(usize) -> Buf) -> Self {
        let mut train = Self::over(lend(Self::needs(self.used)), self.used, self.address);
        if let (Some(to), Some(from)) = (train.buffer.get_mut(..self.used), self.buffer.get(..self.used)) {
            to.copy_from_slice(from);
        }
        train.received(self.used, self.segment, self.address, self.local);
        train
    }

    /// Whether a datagram of this length can be appended, if no train is longer than `segments`.
    #[must_use]
    pub fn takes(&self, length: usize, segments: usize) -> bool {
        let room = self.used + length.max(LEAST_ROOM) <= self.buffer.len() && self.used + length <= MOST_BYTES;
        room && (self.count == 0 || (!self.closed && length <= self.segment && self.count < segments.max(1)))
    }

    /// Appends a datagram of `length` bytes: `write` gets all the room there is and answers how many bytes it wrote. If
    /// that is another number than it announced, nothing is appended: what it wrote is something else, and the answer
    /// is false. So it is if there is no room; `write` is not called then.
    pub fn push(&mut self, length: usize, segments: usize, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if !self.takes(length, segments) {
            return false;
        }
        let Some(room) = self.buffer.get_mut(self.used..) else { return false };
        if write(room) != length || length == 0 {
            return false;
        }
        if self.count == 0 {
            self.segment = length;
        } else if length < self.segment {
            self.closed = true;
        }
        self.used += length;
        self.count += 1;
        true
    }

    /// The room for a train that comes in: all of the buffer but what engines need.
    pub fn room(&mut self) -> &mut [u8] {
        let end = self.buffer.len() - LEAST_ROOM;
        self.buffer.get_mut(..end).unwrap_or_default()
    }

    /// Says what came into the [`room`](Self::room).
    pub fn received(&mut self, bytes: usize, segment: usize, from: SocketAddr, to: Option<IpAddr>) {
        self.used = bytes.min(self.buffer.len() - LEAST_ROOM);
        self.segment = segment.max(1);
        self.count = self.used.div_ceil(self.segment);
        self.closed = true;
        self.address = from;
        self.local = to;
    }

    /// The datagrams in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes().chunks(self.segment.max(1))
    }

    /// All of them as one.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.used).unwrap_or_default()
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The length of each but the last.
    #[must_use]
    pub const fn segment(&self) -> usize {
        self.segment
    }

    /// Bytes of memory it holds, full or empty.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Forgets the datagrams and keeps the buffer, for another address.
    pub fn clear(&mut self, address: SocketAddr, local: Option<IpAddr>) {
        (self.used, self.segment, self.count, self.closed) = (0, 0, 0, false);
        (self.address, self.local) = (address, local);
    }
}

impl fmt::Debug for Train {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Train").field("count", &self.count).field("bytes", &self.used).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 51_820))
    }

    fn fill(train: &mut Train, length: usize, segments: usize, mark: u8) -> bool {
        train.push(length, segments, |room| {
            room[..length].fill(mark);
            length
        })
    }

    #[test]
    fn equal_lengths_extend_and_a_shorter_one_closes() {
        let mut train = Train::with_capacity(10_000, at());
        assert!(fill(&mut train, 1_452, 64, 1));
        assert!(!train.takes(1_453, 64), "a longer one starts another train");
        assert!(fill(&mut train, 1_452, 64, 2));
        assert!(!train.takes(1_452, 2), "as long as the kernel takes");
        assert!(fill(&mut train, 100, 64, 3));
        assert!(!train.takes(100, 64), "closed");
        let lengths: Vec<_> = train.iter().map(|datagram| (datagram.len(), datagram[0])).collect();
        assert_eq!(lengths, [(1_452, 1), (1_452, 2), (100, 3)]);
        assert_eq!((train.count(), train.segment(), train.bytes().len()), (3, 1_452, 3_004));
        train.clear(at(), None);
        assert!(train.is_empty() && train.takes(2_000, 1));
    }

    #[test]
    fn no_train_is_longer_than_a_datagram_can_be() {
        let mut train = Train::with_capacity(ROOM, at());
        let pushed = (0..64).filter(|_| fill(&mut train, 1_452, 64, 1)).count();
        assert_eq!(pushed, 45);
        assert!(train.bytes().len() <= MOST_BYTES);
    }

    #[test]
    fn what_a_writer_did_not_announce_is_not_appended() {
        let mut train = Train::with_capacity(1_000, at());
        assert!(!train.push(100, 64, |_| 148));
        assert!(!train.push(100, 64, |_| 0));
        assert!(train.is_empty());
        let train = Train::of(&[7; 32], at(), None);
        assert_eq!(train.iter().collect::<Vec<_>>(), [&[7; 32]]);
    }

    #[test]
    fn engines_find_their_room_in_the_smallest_train() {
        let mut train = Train::with_capacity(0, at());
        assert!(train.push(32, 1, |room| {
            assert!(room.len() >= LEAST_ROOM);
            32
        }));
    }

    #[test]
    fn what_came_in_is_cut_by_its_stride() {
        let mut train = Train::with_capacity(ROOM, at());
        assert!(train.room().len() >= 65_535);
        train.room()[..250].fill(9);
        train.received(250, 100, at(), None);
        assert_eq!(train.iter().map(<[u8]>::len).collect::<Vec<_>>(), [100, 100, 50]);
        let small = train.compact(|_| Buf::default());
        assert_eq!(small.iter().collect::<Vec<_>>(), train.iter().collect::<Vec<_>>());
        assert!(small.held() < 1_000 && small.address == train.address);
        train.received(0, 0, at(), None);
        assert_eq!((train.iter().count(), train.is_empty()), (0, true));
    }

    proptest! {
        /// Whatever lengths come, what is in a train is what GSO can send.
        #[test]
        fn a_train_can_always_be_sent(lengths in proptest::collection::vec(1..3_000usize, 0..100), segments in 1..70usize) {
            let mut train = Train::with_capacity(ROOM, at());
            let mut taken = Vec::new();
            for length in lengths {
                if fill(&mut train, length, segments, 1) {
                    taken.push(length);
                }
            }
            prop_assert_eq!(train.iter().map(<[u8]>::len).collect::<Vec<_>>(), taken.clone());
            prop_assert!(taken.len() <= segments);
            prop_assert!(train.bytes().len() <= MOST_BYTES);
        }
    }
}
