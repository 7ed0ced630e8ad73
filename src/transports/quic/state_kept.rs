//! What was read for somebody with a handle who is gone: it is for the next who asks.
//!
//! Datagrams are as many as may wait unread in QUIC, beyond that the oldest is dropped and counted. What was read of a
//! stream is one answer for each call that was given up, and gone with the last handle of the stream.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::session::{Read, StreamError, StreamId};

/// What a read answered.
pub(super) type Answered = Result<Read, StreamError>;

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Kept {
    datagrams: VecDeque<Bytes>,
    reads: BTreeMap<StreamId, VecDeque<Answered>>,
    bytes: usize,
    dropped: u64,
}

impl Kept {
    /// Its bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Datagrams dropped since this was last asked.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Datagrams that came before those that are kept; of all, the newest `most` stay.
    pub(super) fn keep_datagrams(&mut self, batch: Vec<Bytes>, most: usize) {
        for datagram in batch.into_iter().rev() {
            if self.datagrams.len() < most {
                self.bytes += datagram.len();
                self.datagrams.push_front(datagram);
            } else {
                self.dropped += 1;
            }
        }
    }

    pub(super) fn datagram(&mut self) -> Option<Bytes> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.len();
        Some(datagram)
    }

    /// What was read of a stream, after what is kept of it.
    pub(super) fn keep_read(&mut self, stream: StreamId, read: Answered) {
        self.bytes += length(&read);
        self.reads.entry(stream).or_default().push_back(read);
    }

    /// What to answer to a read of a stream, of at most `max` bytes.
    pub(super) fn read(&mut self, stream: StreamId, max: usize) -> Option<Answered> {
        let line = self.reads.get_mut(&stream)?;
        let read = match line.front_mut()? {
            Ok(Read::Data(bytes)) if bytes.len() > max => Ok(Read::Data(bytes.split_to(max))),
            _ => line.pop_front()?,
        };
        if line.is_empty() {
            self.reads.remove(&stream);
        }
        self.bytes -= length(&read);
        Some(read)
    }

    /// Nobody will read the stream any more.
    pub(super) fn forget(&mut self, stream: StreamId) {
        let line = self.reads.remove(&stream).unwrap_or_default();
        self.bytes -= line.iter().map(length).sum::<usize>();
    }
}

fn length(read: &Answered) -> usize {
    if let Ok(Read::Data(bytes)) = read { bytes.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(4);

    fn data(text: &'static str) -> Answered {
        Ok(Read::Data(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn datagrams_keep_their_order_and_the_newest_stay() {
        let mut kept = Kept::default();
        kept.keep_datagrams(vec![Bytes::from("c"), Bytes::from("d")], 3);
        kept.keep_datagrams(vec![Bytes::from("a"), Bytes::from("b")], 3);
        assert_eq!((kept.bytes(), kept.take_dropped()), (3, 1));
        let left: Vec<Bytes> = std::iter::from_fn(|| kept.datagram()).collect();
        assert_eq!((left, kept.bytes(), kept.take_dropped()), (vec!["b".into(), "c".into(), "d".into()], 0, 0));
    }

    #[test]
    fn a_stream_is_read_in_order_in_pieces_of_any_size() {
        let mut kept = Kept::default();
        kept.keep_read(STREAM, data("hello"));
        kept.keep_read(STREAM, Ok(Read::End));
        assert_eq!(kept.bytes(), 5);
        assert_eq!(kept.read(StreamId(0), 9), None);
        assert_eq!((kept.read(STREAM, 2), kept.read(STREAM, 9)), (Some(data("he")), Some(data("llo"))));
        assert_eq!((kept.read(STREAM, 9), kept.read(STREAM, 9), kept.bytes()), (Some(Ok(Read::End)), None, 0));
        kept.keep_read(STREAM, data("unwanted"));
        kept.forget(STREAM);
        assert_eq!((kept.read(STREAM, 9), kept.bytes()), (None, 0));
    }
}
