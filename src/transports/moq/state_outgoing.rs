//! The streams of objects that a session writes: by their number, and by the request and entry that they are of.
//!
//! A head that found no room when its stream was opened waits here, and goes before anything else of it.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A stream that is open: the request it is of, the entry, and a head that was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Out {
    of: (u64, u64),
    head: Option<Bytes>,
}

/// See the top of the file. `S` numbers streams.
#[derive(Debug)]
pub struct Outgoing<S> {
    streams: BTreeMap<S, Out>,
    by_entry: BTreeMap<(u64, u64), S>,
}

impl<S> Default for Outgoing<S> {
    fn default() -> Self {
        Self { streams: BTreeMap::new(), by_entry: BTreeMap::new() }
    }
}

impl<S: Ord + Copy> Outgoing<S> {
    /// A stream of a request was opened for an entry. An entry has one at a time.
    pub fn insert(&mut self, stream: S, request: u64, entry: u64) {
        let of = (request, entry);
        if let Some(before) = self.by_entry.insert(of, stream) {
            self.streams.remove(&before);
        }
        self.streams.insert(stream, Out { of, head: None });
    }

    /// Its head is to be written before all else.
    pub fn put_head(&mut self, stream: S, head: Bytes) {
        if let Some(out) = self.streams.get_mut(&stream) {
            out.head = Some(head);
        }
    }

    /// A head that was not written.
    #[must_use]
    pub fn head(&self, stream: S) -> Option<Bytes> {
        self.streams.get(&stream).and_then(|out| out.head.clone())
    }

    /// It was written.
    pub fn head_is_written(&mut self, stream: S) {
        if let Some(out) = self.streams.get_mut(&stream) {
            out.head = None;
        }
    }

    /// The request and entry of a stream.
    #[must_use]
    pub fn of(&self, stream: S) -> Option<(u64, u64)> {
        self.streams.get(&stream).map(|out| out.of)
    }

    /// The stream of an entry.
    #[must_use]
    pub fn stream(&self, request: u64, entry: u64) -> Option<S> {
        self.by_entry.get(&(request, entry)).copied()
    }

    /// A stream is over. Answers what it was of.
    pub fn remove(&mut self, stream: S) -> Option<(u64, u64)> {
        let of = self.streams.remove(&stream)?.of;
        self.by_entry.remove(&of);
        Some(of)
    }

    /// All streams of a request are over. Answers them.
    pub fn remove_request(&mut self, request: u64) -> Vec<S> {
        let its: Vec<S> = self.by_entry.range((request, 0)..=(request, u64::MAX)).map(|(_, stream)| *stream).collect();
        for stream in &its {
            self.remove(*stream);
        }
        its
    }

    /// All are over.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.by_entry.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_found_both_ways_and_leaves_nothing() {
        let mut outgoing = Outgoing::default();
        outgoing.insert(3_u64, 0, 7);
        outgoing.insert(7, 0, 8);
        outgoing.insert(11, 4, 7);
        assert_eq!((outgoing.of(7), outgoing.stream(4, 7)), (Some((0, 8)), Some(11)));
        outgoing.put_head(3, Bytes::from_static(b"head"));
        assert_eq!(outgoing.head(3), Some(Bytes::from_static(b"head")));
        outgoing.head_is_written(3);
        assert_eq!((outgoing.head(3), outgoing.head(99)), (None, None));
        assert_eq!(outgoing.remove_request(0), [3, 7]);
        assert_eq!((outgoing.remove(3), outgoing.stream(0, 7)), (None, None));
        // An entry that is opened anew.
        outgoing.insert(15, 4, 7);
        assert_eq!((outgoing.of(11), outgoing.remove(15)), (None, Some((4, 7))));
        assert!(outgoing.streams.is_empty() && outgoing.by_entry.is_empty());
    }
}
