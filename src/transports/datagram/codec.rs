//! Trains: datagrams of one length, of which the last may be shorter, in one piece of memory.
//!
//! The kernel joins what comes in and cuts what goes out. What it has left apart is joined here, and what it would not
//! take is cut here; the datagrams stay what they were. Nothing here looks into one.

use std::iter;

/// The longest datagram over IPv4: 65,535 bytes without the headers of IP and UDP (RFC 791, RFC 768).
pub const LONGEST: usize = 65_507;
/// The most datagrams that the kernel takes or gives in one piece.
pub(super) const MOST: usize = 64;
/// The longest datagrams that are offered to the kernel in trains: what Ethernet carries. A train of longer ones is
/// refused where they have to leave in fragments, and a socket that met this once sends no trains any more.
const SEGMENT: usize = 1_472;

/// How many datagrams so many bytes are; an empty one is one.
pub(super) fn count(length: usize, stride: usize) -> usize {
    length.div_ceil(stride.max(1)).max(1)
}

/// The shape of a train that may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Joint {
    pub(super) stride: usize,
    pub(super) length: usize,
    /// Nothing may follow: the last one is shorter, or empty.
    closed: bool,
}

impl Joint {
    /// So many bytes in datagrams of `stride`.
    pub(super) const fn of(length: usize, stride: usize) -> Self {
        let stride = if stride == 0 { 1 } else { stride };
        Self { stride, length, closed: length == 0 || !length.is_multiple_of(stride) }
    }

    /// Puts another behind it, if they can be one; else nothing changes and the answer is false.
    pub(super) const fn join(&mut self, length: usize, stride: usize) -> bool {
        let sum = self.length.saturating_add(length);
        let one = length > 0 && length <= self.stride && stride >= length;
        let fits = (stride == self.stride || one) && length > 0;
        if self.closed || !fits || sum > LONGEST || sum.div_ceil(self.stride) > MOST {
            return false;
        }
        self.length = sum;
        self.closed = !sum.is_multiple_of(self.stride);
        true
    }
}

/// The pieces in which datagrams are handed to the kernel, each with the length of its datagrams if it is a train of at
/// most `most`. What is empty is one piece.
pub(super) fn pieces(contents: &[u8], stride: usize, most: usize) -> impl Iterator<Item = (&[u8], Option<usize>)> {
    let stride = stride.max(1);
    let each = if stride > SEGMENT { 1 } else { most.min(MOST).min(LONGEST / stride).max(1) };
    let mut rest = Some(contents);
    iter::from_fn(move || {
        let all = rest?;
        let (piece, left) = all.split_at_checked(stride * each).unwrap_or((all, &[]));
        rest = (!left.is_empty()).then_some(left);
        Some((piece, (piece.len() > stride).then_some(stride)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn datagrams(contents: &[u8], stride: usize) -> Vec<Vec<u8>> {
        if contents.is_empty() { vec![Vec::new()] } else { contents.chunks(stride).map(<[u8]>::to_vec).collect() }
    }

    #[test]
    fn an_empty_datagram_is_one_and_stays_alone() {
        assert_eq!((count(0, 1), count(0, 0), count(100, 100), count(101, 100)), (1, 1, 1, 2));
        assert_eq!(pieces(&[], 1, 64).collect::<Vec<_>>(), [(&[][..], None)]);
        assert!(!Joint::of(0, 1).join(10, 10));
        assert!(!Joint::of(10, 10).join(0, 1));
    }

    #[test]
    fn a_shorter_one_closes_a_train_and_a_longer_one_never_joins() {
        let mut joint = Joint::of(200, 100);
        assert!(!joint.join(101, 101) && joint.join(100, 100) && joint.join(30, 30));
        assert_eq!((joint.length, joint.stride), (330, 100));
        assert!(!joint.join(100, 100) && !joint.join(30, 30));
        // Two of 50 are no end of a train of 100.
        assert!(!Joint::of(100, 100).join(100, 50));
        let mut long = Joint::of(60_000, 60_000);
        assert!(!long.join(6_000, 6_000), "longer than anything the kernel takes");
        let mut many = Joint::of(64, 1);
        assert!(!many.join(1, 1), "more than the kernel takes");
    }

    #[test]
    fn long_datagrams_and_those_for_no_offload_go_alone() {
        let contents = vec![0; 4_500];
        assert!(pieces(&contents, 1_500, 64).all(|(piece, segment)| piece.len() == 1_500 && segment.is_none()));
        assert!(pieces(&contents, 900, 1).all(|(piece, segment)| piece.len() == 900 && segment.is_none()));
        assert_eq!(pieces(&contents, 900, 64).collect::<Vec<_>>(), [(&contents[..], Some(900))]);
    }

    proptest! {
        /// However trains come, what they are joined to and cut into are the same datagrams in the same order.
        #[test]
        fn joined_and_cut_they_are_the_same_datagrams(
            trains in proptest::collection::vec((0..1_600_usize, 1..70_usize, 0..1_600_usize), 1..12),
            most in 1..65_usize,
        ) {
            let mut sent = Vec::new();
            let mut arrived: Vec<Vec<u8>> = Vec::new();
            let mut current: Option<(Joint, Vec<u8>)> = None;
            let mut flush = |current: Option<(Joint, Vec<u8>)>| {
                let Some((joint, bytes)) = current else { return };
                assert_eq!(joint.length, bytes.len());
                assert!(joint.length <= LONGEST.max(joint.stride * 70 + 1_600));
                for (piece, segment) in pieces(&bytes, joint.stride, most) {
                    assert!(piece.len() <= LONGEST && count(piece.len(), joint.stride) <= most);
                    assert!(segment.is_none_or(|segment| segment == joint.stride && segment < piece.len()));
                    arrived.extend(datagrams(piece, segment.unwrap_or_else(|| piece.len().max(1))));
                }
            };
            for (n, (stride, count, last)) in trains.into_iter().enumerate() {
                // As the kernel gives them: all of one length, the last perhaps shorter; one alone has its own.
                let count = LONGEST.checked_div(stride).map_or(0, |most| count.min(most));
                let last = last.checked_rem(stride).unwrap_or(0);
                let length = stride * count + last;
                let stride = if count == 0 { length.max(1) } else { stride };
                let bytes = vec![n as u8; length];
                sent.extend(datagrams(&bytes, stride));
                let joins = current.as_mut().is_some_and(|(joint, _)| joint.join(length, stride));
                match &mut current {
                    Some((_, all)) if joins => all.extend(&bytes),
                    _ => flush(current.replace((Joint::of(length, stride), bytes))),
                }
            }
            flush(current.take());
            prop_assert_eq!(sent, arrived);
        }
    }
}
