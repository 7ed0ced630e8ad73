//! The bytes that wait for one peer: contiguous, bounded, and able to drop whole messages but never half of one.

use std::collections::VecDeque;

use super::codec::Format;
use crate::memory::Buf;

/// What to do with a message that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenSlow {
    /// Nothing is dropped: the connection is closed.
    Close,
    /// The oldest messages not yet begun go.
    DropOldest,
    /// The new one goes.
    DropNewest,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It waits to be sent.
    Yes,
    /// It waits, and so many older ones were dropped for it.
    After(u64),
    /// It was dropped.
    Dropped,
    /// It does not fit and nothing may be dropped.
    Full,
    /// It is longer than the format allows.
    TooLarge,
}

/// The outbound queue of one connection.
#[derive(Debug)]
pub struct Outbox {
    format: Format,
    limit: usize,
    when_slow: WhenSlow,
    bytes: Buf,
    head: usize,
    /// Only under a dropping policy: the sizes of the messages in `bytes`, the first of which may be partly sent.
    sizes: Option<VecDeque<usize>>,
    sent_of_first: usize,
    pub(super) accepted: u64,
    pub(super) dropped: u64,
    pub(super) overflowed: bool,
}

impl Outbox {
    pub(super) fn new(format: Format, limit: usize, when_slow: WhenSlow) -> Self {
        Self {
            format,
            limit,
            when_slow,
            bytes: Buf::default(),
            head: 0,
            sizes: (when_slow != WhenSlow::Close).then(VecDeque::new),
            sent_of_first: 0,
            accepted: 0,
            dropped: 0,
            overflowed: false,
        }
    }

    /// Queues a message. Its bytes are copied. Bounded by the `outbound` setting, exactly, counting length fields.
    pub fn push(&mut self, body: &[u8]) -> Queued {
        let Ok(header) = self.format.encode(body.len()) else { return Queued::TooLarge };
        let size = header.as_bytes().len() + body.len();
        let mut went = 0;
        while self.pending() + size > self.limit {
            let room = match self.when_slow {
                WhenSlow::Close => {
                    self.overflowed = true;
                    return Queued::Full;
                }
                WhenSlow::DropNewest => false,
                WhenSlow::DropOldest => self.begun() + size <= self.limit && self.drop_oldest(),
            };
            if !room {
                self.dropped += 1;
                return Queued::Dropped;
            }
            self.dropped += 1;
            went += 1;
        }
        self.make_room(size);
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(body);
        if let Some(sizes) = &mut self.sizes {
            sizes.push_back(size);
        }
        self.accepted += 1;
        if went == 0 { Queued::Yes } else { Queued::After(went) }
    }

    /// True if a message of `size` bytes with its length field fits now.
    pub(super) fn fits(&self, size: usize) -> bool {
        self.pending() + size <= self.limit
    }

    /// What waits, in order.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.head..).unwrap_or_default()
    }

    pub(super) fn pending(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// The first `count` bytes were taken by the socket.
    pub(super) fn written(&mut self, count: usize) {
        self.head = (self.head + count).min(self.bytes.len());
        if let Some(sizes) = &mut self.sizes {
            self.sent_of_first += count;
            while let Some(first) = sizes.front().copied().filter(|first| *first <= self.sent_of_first) {
                self.sent_of_first -= first;
                sizes.pop_front();
            }
        }
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        }
    }

    /// Drops the oldest message of which nothing was sent. What is left of the one before it moves up.
    fn drop_oldest(&mut self) -> bool {
        let Some(sizes) = &mut self.sizes else { return false };
        let Some(size) = sizes.remove(usize::from(self.sent_of_first > 0)) else { return false };
        let begun = self.begun();
        self.bytes.copy_within(self.head..self.head + begun, self.head + size);
        self.head += size;
        true
    }

    /// What is left of a message that is partly sent: it cannot be dropped.
    fn begun(&self) -> usize {
        let first = self.sizes.as_ref().and_then(|sizes| sizes.front());
        first.filter(|_| self.sent_of_first > 0).map_or(0, |first| first.saturating_sub(self.sent_of_first))
    }

    fn make_room(&mut self, size: usize) {
        if self.head > 0 && self.bytes.len() + size > self.bytes.capacity() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn own_bytes(&self) -> usize {
        self.bytes.own_bytes()
    }

    pub(super) fn lend(&mut self, buffer: impl FnOnce() -> Buf) {
        if self.bytes.capacity() == 0 {
            self.bytes = buffer();
        }
    }

    pub(super) fn free_unused(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Buf::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All messages in a run of bytes, the last of which may be cut.
    fn parse(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Ok(Some(frame)) = Format::default().decode(bytes) {
            let Some(body) = bytes.get(frame.header..frame.total()) else { break };
            messages.push(body.to_vec());
            bytes = &bytes[frame.total()..];
        }
        messages
    }

    proptest! {
        #[test]
        fn the_bound_is_exact_and_only_whole_messages_go(
            policy in 0..3usize,
            steps in proptest::collection::vec((any::<bool>(), 0..60usize), 1..200),
        ) {
            let policy = [WhenSlow::Close, WhenSlow::DropOldest, WhenSlow::DropNewest][policy];
            let mut outbox = Outbox::new(Format::default(), 100, policy);
            let (mut sent, mut accepted, mut number) = (Vec::new(), Vec::new(), 0u8);
            for (push, size) in steps {
                if push {
                    number = number.wrapping_add(1);
                    let before = outbox.pending();
                    let queued = outbox.push(&vec![number; size]);
                    match queued {
                        Queued::Yes => accepted.push(number),
                        Queued::After(_) => accepted.push(number),
                        Queued::Dropped | Queued::Full => prop_assert_eq!(outbox.pending(), before),
                        Queued::TooLarge => prop_assert!(false),
                    }
                    prop_assert!(outbox.pending() <= 100);
                    if before + size + 4 <= 100 {
                        prop_assert_eq!(queued, Queued::Yes);
                    }
                } else {
                    let take = size.min(outbox.pending());
                    sent.extend_from_slice(&outbox.bytes()[..take]);
                    outbox.written(take);
                }
            }
            sent.extend_from_slice(outbox.bytes());
            let whole = parse(&sent);
            prop_assert_eq!(whole.iter().map(|m| m.len() + 4).sum::<usize>(), sent.len(), "no half message");
            let mut at = 0;
            for message in whole.iter().filter(|m| !m.is_empty()) {
                prop_assert!(message.iter().all(|b| *b == message[0]), "no mixed message");
                at += accepted[at..].iter().position(|n| *n == message[0]).expect("in order") + 1;
            }
            if policy == WhenSlow::Close {
                prop_assert_eq!(outbox.dropped, 0);
            }
        }
    }

    #[test]
    fn the_oldest_not_yet_begun_goes() {
        let mut outbox = Outbox::new(Format::default(), 30, WhenSlow::DropOldest);
        for n in 1..=3 {
            assert_eq!(outbox.push(&[n; 6]), Queued::Yes);
        }
        outbox.written(5);
        assert_eq!(outbox.push(&[4; 6]), Queued::After(1));
        assert_eq!(outbox.dropped, 1);
        let mut all = vec![0, 0, 0, 6, 1];
        all.extend_from_slice(outbox.bytes());
        assert_eq!(parse(&all), [[1; 6], [3; 6], [4; 6]]);
        assert_eq!(outbox.push(&[9; 27]), Queued::Dropped, "can never fit");
    }
}
