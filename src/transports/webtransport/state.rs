//! What belongs to one session of WebTransport: its streams, bytes that were read with what named them, beginnings that
//! could not be written yet; and how it ends.
//!
//! Knows streams by their numbers. What is kept is one piece of at most 64 KiB for each stream that was just opened,
//! and ten bytes for each that this end opens.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::codec::{Capsule, Capsules, Malformed};

/// How a session came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its peer closed it.
    Closed {
        /// With this code.
        code: u32,
        /// And these words.
        text: String,
    },
    /// Its stream was given up.
    Reset,
}

/// What a peer's word means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It asks for an end.
    Drain,
    /// It is over.
    End(Ending),
}

#[derive(Debug, Default)]
struct Stream {
    /// Read with the number of the session.
    ahead: Option<Bytes>,
    /// Not written yet: it goes before everything else.
    header: Option<Bytes>,
    /// Nothing more is read from it.
    read: bool,
    /// Nothing more is written on it.
    written: bool,
}

/// The bit of a stream's number that tells one direction from both (RFC 9000, section 2.1).
const ONE_WAY: u64 = 2;

/// See the top of the file.
#[derive(Debug)]
pub struct Belongings {
    /// The stream of its CONNECT.
    id: u64,
    streams: BTreeMap<u64, Stream>,
    /// How many there may be before it is looked which of them are over.
    look_at: usize,
    capsules: Capsules,
}

/// Streams that are kept without being looked at.
const UNSEEN: usize = 64;

impl Belongings {
    /// Of the session whose CONNECT came on this stream.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self { id, streams: BTreeMap::new(), look_at: UNSEEN, capsules: Capsules::default() }
    }

    /// The stream of its CONNECT.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether a stream is its.
    #[must_use]
    pub fn has(&self, stream: u64) -> bool {
        self.streams.contains_key(&stream)
    }

    /// A stream of the peer's, and what was read of it already.
    pub fn came(&mut self, stream: u64, ahead: Bytes) {
        let ahead = (!ahead.is_empty()).then_some(ahead);
        let written = stream & ONE_WAY != 0;
        self.streams.insert(stream, Stream { ahead, header: None, read: false, written });
    }

    /// A stream of this end's, which begins with this.
    pub fn opened(&mut self, stream: u64, header: Bytes) {
        let read = stream & ONE_WAY != 0;
        self.streams.insert(stream, Stream { ahead: None, header: Some(header), read, written: false });
    }

    /// What was read of it already, at most this much.
    pub fn ahead(&mut self, stream: u64, most: usize) -> Option<Bytes> {
        let ahead = &mut self.streams.get_mut(&stream)?.ahead;
        let mut bytes = ahead.take()?;
        if bytes.len() > most {
            *ahead = Some(bytes.split_off(most));
        }
        Some(bytes)
    }

    /// What must be written before anything else.
    pub fn header(&mut self, stream: u64) -> Option<Bytes> {
        self.streams.get(&stream)?.header.clone()
    }

    /// It was written.
    pub fn began(&mut self, stream: u64) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.header = None;
        }
    }

    /// Nothing more is read from a stream. One that is over in both directions is forgotten.
    pub fn read(&mut self, stream: u64) {
        if let Some(known) = self.streams.get_mut(&stream) {
            known.read = true;
            self.forget(stream);
        }
    }

    /// Nothing more is written on it.
    pub fn written(&mut self, stream: u64) {
        if let Some(known) = self.streams.get_mut(&stream) {
            known.written = true;
            self.forget(stream);
        }
    }

    fn forget(&mut self, stream: u64) {
        if self.streams.get(&stream).is_some_and(|known| known.read && known.written) {
            self.streams.remove(&stream);
        }
    }

    /// Forgets streams that are over without this session's doing, as those that were given away. To be called with each
    /// stream that comes: it looks at all of them once in a while, so that one costs a constant share.
    pub fn look_through(&mut self, is_open: impl Fn(u64) -> bool) {
        if self.streams.len() >= self.look_at {
            self.streams.retain(|stream, _| is_open(*stream));
            self.look_at = (2 * self.streams.len()).max(UNSEEN);
        }
    }

    /// All its streams, which are forgotten.
    pub fn take(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.streams).into_keys().collect()
    }

    /// Content came on the stream of its CONNECT.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn feed(&mut self, bytes: &mut Bytes) -> Result<Option<Said>, Malformed> {
        Ok(self.capsules.feed(bytes)?.map(|capsule| match capsule {
            Capsule::Drain => Said::Drain,
            Capsule::Close { code, text } => Said::End(Ending::Closed { code, text }),
        }))
    }

    /// The stream of its CONNECT has ended: the same as a close without a word (section 6).
    #[must_use]
    pub fn ended(&self) -> Ending {
        if self.capsules.is_whole() { Ending::Closed { code: 0, text: String::new() } } else { Ending::Reset }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn what_was_read_ahead_comes_first_and_in_order() {
        let mut all = Belongings::new(4);
        all.came(10, Bytes::from_static(b"hello"));
        all.came(14, Bytes::new());
        assert!(all.has(10) && all.has(14) && !all.has(4));
        assert_eq!(all.ahead(10, 2), Some(Bytes::from_static(b"he")));
        assert_eq!(all.ahead(10, 9), Some(Bytes::from_static(b"llo")));
        assert_eq!((all.ahead(10, 9), all.ahead(14, 9)), (None, None));
        all.opened(7, Bytes::from_static(b"T\x04"));
        assert_eq!(all.header(7), Some(Bytes::from_static(b"T\x04")));
        all.began(7);
        assert_eq!(all.header(7), None);
        all.written(7);
        all.read(10);
        assert!(!all.has(7) && !all.has(10), "they had one direction each");
        all.came(16, Bytes::new());
        all.read(16);
        assert_eq!(all.take(), [14, 16]);
        assert!(!all.has(16));
    }

    #[test]
    fn what_is_over_elsewhere_is_forgotten_in_time() {
        let mut all = Belongings::new(0);
        for number in 1..10_000 {
            all.came(4 * number, Bytes::new());
            all.look_through(|stream| stream + 400 > 4 * number);
            assert!(all.streams.len() <= 201, "{}", all.streams.len());
        }
        assert!(all.has(4 * 9_999));
    }

    #[test]
    fn a_session_ends_by_a_word_or_by_its_stream() {
        let mut all = Belongings::new(0);
        let mut out = BytesMut::new();
        Capsule::Drain.encode(&mut out);
        Capsule::Close { code: 9, text: "x".to_owned() }.encode(&mut out);
        let mut bytes = out.freeze();
        assert_eq!(all.feed(&mut bytes), Ok(Some(Said::Drain)));
        let end = Ending::Closed { code: 9, text: "x".to_owned() };
        assert_eq!(all.feed(&mut bytes), Ok(Some(Said::End(end))));
        assert_eq!(Belongings::new(0).ended(), Ending::Closed { code: 0, text: String::new() });
        assert_eq!(all.feed(&mut Bytes::from_static(&[0x68])), Ok(None));
        assert_eq!(all.ended(), Ending::Reset, "in the midst of a capsule");
    }
}
