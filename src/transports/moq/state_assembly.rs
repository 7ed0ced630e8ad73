//! What a subscriber of its own receives, put together: whole objects out of streams and datagrams, in the order in which
//! they are complete.
//!
//! # Bounds
//! [`Bounds`]: objects that wait for their reader and parts of objects together. Beyond it no stream is read, but one, the
//! oldest with a part, once nothing waits: so at most one object lies beside the bound. An object that is longer than it
//! may be costs its stream, which counts as lost.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::codec::Mistake;
use super::codec_datagram::{Content, ObjectDatagram};
use super::codec_subgroup::{ObjectDecoder, ObjectHead, Piece, SubgroupHeader};
use super::model::{Location, ObjectStatus};
use super::model_params::Properties;

/// What an object costs beside its payload.
const OBJECT: usize = 128;

/// How much a subscription may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of objects that wait, with what each costs beside its payload. Default 4 MiB.
    pub waiting: usize,
    /// Bytes of one object. Default 16 MiB.
    pub object: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { waiting: 4 << 20, object: 16 << 20 }
    }
}

/// An object as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Where it is in its track.
    pub at: Location,
    /// Its subgroup; `None`: it came as a datagram.
    pub subgroup: Option<u64>,
    /// The publisher's priority; `None`: that of the track.
    pub priority: Option<u8>,
    /// Whether it is one, or the end of its group or track.
    pub status: ObjectStatus,
    /// Its properties, as the publisher wrote them.
    pub properties: Properties,
    /// What it says.
    pub payload: Bytes,
}

/// Why a stream is not read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The peer broke a rule.
    Mistake(Mistake),
    /// An object is longer than [`Bounds::object`].
    TooLong,
}

impl From<Mistake> for Wrong {
    fn from(mistake: Mistake) -> Self {
        Self::Mistake(mistake)
    }
}

#[derive(Debug)]
struct Stream {
    header: SubgroupHeader,
    decoder: ObjectDecoder,
    first: Option<u64>,
    /// The object that is coming.
    head: Option<ObjectHead>,
    pieces: Vec<Bytes>,
    held: usize,
}

/// See the top of the file. Streams have numbers that rise in the order in which they began.
#[derive(Debug, Default)]
pub struct Assembly {
    bounds: Bounds,
    streams: BTreeMap<u64, Stream>,
    ready: VecDeque<Object>,
    waiting: usize,
    /// Bytes of objects that are not whole.
    parts: usize,
    lost: u64,
}

impl Assembly {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// A stream begins.
    pub fn begin(&mut self, stream: u64, header: SubgroupHeader) {
        let decoder = ObjectDecoder::new(&header);
        let begun = Stream { header, decoder, first: None, head: None, pieces: Vec::new(), held: 0 };
        self.streams.insert(stream, begun);
    }

    /// Whether there is room for more of a stream.
    #[must_use]
    pub fn may_read(&self, stream: u64) -> bool {
        if self.waiting + self.parts < self.bounds.waiting {
            return true;
        }
        let oldest = self.streams.iter().find(|(_, known)| known.held > 0).map(|(oldest, _)| *oldest);
        self.ready.is_empty() && oldest.is_none_or(|oldest| oldest == stream)
    }

    /// More of a stream has come.
    ///
    /// # Errors
    /// [`Wrong`]: the stream is forgotten, and counts as lost.
    pub fn feed(&mut self, stream: u64, input: Bytes) -> Result<(), Wrong> {
        let fed = self.take_in(stream, input);
        if fed.is_err() {
            self.lose(stream);
        }
        fed
    }

    fn take_in(&mut self, stream: u64, mut input: Bytes) -> Result<(), Wrong> {
        let Some(known) = self.streams.get_mut(&stream) else { return Ok(()) };
        while let Some(piece) = known.decoder.decode(&mut input)? {
            let whole = match piece {
                Piece::Head(head) => {
                    if head.length > self.bounds.object as u64 {
                        return Err(Wrong::TooLong);
                    }
                    known.first.get_or_insert(head.id);
                    let whole = head.length == 0;
                    known.head = Some(head);
                    whole
                }
                Piece::Payload { bytes, last } => {
                    known.held += bytes.len();
                    self.parts += bytes.len();
                    known.pieces.push(bytes);
                    last
                }
            };
            if whole && let Some(head) = known.head.take() {
                self.parts -= std::mem::take(&mut known.held);
                let payload = joined(std::mem::take(&mut known.pieces));
                let object = Object {
                    at: Location::new(known.header.group, head.id),
                    subgroup: known.header.subgroup.number(known.first),
                    priority: known.header.priority,
                    status: head.status,
                    properties: head.properties,
                    payload,
                };
                self.waiting += object.payload.len() + OBJECT;
                self.ready.push_back(object);
            }
        }
        Ok(())
    }

    /// An object has come in a datagram. False if there is no room for it: it is dropped, and counts as lost.
    pub fn datagram(&mut self, datagram: ObjectDatagram) -> bool {
        if self.waiting + self.parts >= self.bounds.waiting {
            self.lost += 1;
            return false;
        }
        let (status, payload) = match datagram.content {
            Content::Payload(payload) => (ObjectStatus::Normal, payload),
            Content::Status(status) => (status, Bytes::new()),
        };
        self.waiting += payload.len() + OBJECT;
        let ObjectDatagram { at, priority, properties, .. } = datagram;
        self.ready.push_back(Object { at, subgroup: None, priority, status, properties, payload });
        true
    }

    /// A stream has ended properly.
    ///
    /// # Errors
    /// [`Mistake::CutOff`] in the midst of an object: it counts as lost.
    pub fn finished(&mut self, stream: u64) -> Result<(), Mistake> {
        let whole = self.streams.get(&stream).map_or(Ok(()), |known| known.decoder.finish());
        if whole.is_err() {
            self.lose(stream);
        } else {
            self.streams.remove(&stream);
        }
        whole
    }

    /// The rest of a stream will not come.
    pub fn lose(&mut self, stream: u64) {
        if let Some(known) = self.streams.remove(&stream) {
            self.parts -= known.held;
            self.lost += 1;
        }
    }

    /// Streams that have begun and not ended.
    pub fn open(&self) -> impl Iterator<Item = u64> {
        self.streams.keys().copied()
    }

    /// Whether objects wait.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// All that wait, in order.
    pub fn take(&mut self) -> Vec<Object> {
        self.waiting = 0;
        std::mem::take(&mut self.ready).into()
    }

    /// Streams that were not read to their proper end, and datagrams for which there was no room.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}

/// Without a copy if it came in one piece.
fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() < 2 {
        return pieces.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::codec_subgroup::{ObjectEncoder, SubgroupId};
    use super::*;

    fn header(group: u64) -> SubgroupHeader {
        let subgroup = SubgroupId::Zero;
        let (properties, end_of_group, first_object) = (false, false, true);
        SubgroupHeader { track_alias: 1, group, subgroup, priority: None, properties, end_of_group, first_object }
    }

    fn stream(group: u64, payloads: &[&[u8]]) -> Bytes {
        let mut encoder = ObjectEncoder::new(&header(group));
        let mut out = BytesMut::new();
        for (id, payload) in (0..).zip(payloads) {
            let length = payload.len() as u64;
            encoder.put(id, &Properties::default(), length, ObjectStatus::Normal, &mut out).unwrap();
            out.extend_from_slice(payload);
        }
        out.freeze()
    }

    #[test]
    fn objects_come_whole_however_they_were_cut() {
        let mut assembly = Assembly::new(Bounds::default());
        assembly.begin(2, header(7));
        let bytes = stream(7, &[b"hello", b"", b"world"]);
        for at in 0..bytes.len() {
            assembly.feed(2, bytes.slice(at..=at)).unwrap();
        }
        assembly.finished(2).unwrap();
        let objects = assembly.take();
        let got: Vec<_> = objects.iter().map(|object| (object.at.object, &object.payload[..])).collect();
        assert_eq!(got, [(0, &b"hello"[..]), (1, b""), (2, b"world")]);
        assert_eq!((assembly.lost(), assembly.parts, assembly.waiting), (0, 0, 0));
    }

    #[test]
    fn a_reader_that_does_not_come_stops_streams_and_one_object_is_always_finished() {
        let mut assembly = Assembly::new(Bounds { waiting: 1_000, object: 5_000 });
        assembly.begin(2, header(1));
        assembly.begin(6, header(2));
        assembly.feed(2, stream(1, &[&[1; 900]])).unwrap();
        assert!(!assembly.may_read(2) && !assembly.may_read(6), "one object waits");
        assert_eq!(assembly.take().len(), 1);
        let large = stream(2, &[&[2; 3_000]]);
        assembly.feed(6, large.slice(..1_500)).unwrap();
        assert!(!assembly.may_read(2), "what is begun goes first");
        assert!(assembly.may_read(6));
        assembly.feed(6, large.slice(1_500..)).unwrap();
        assert_eq!(assembly.take()[0].payload.len(), 3_000);
        assert!(assembly.may_read(2));
    }

    #[test]
    fn what_is_cut_too_long_or_given_up_is_counted_and_holds_nothing() {
        let mut assembly = Assembly::new(Bounds { waiting: 1_000, object: 100 });
        assembly.begin(2, header(1));
        assert_eq!(assembly.feed(2, stream(1, &[&[1; 101]])), Err(Wrong::TooLong));
        assembly.begin(6, header(2));
        assembly.feed(6, stream(2, &[&[1; 50]]).slice(..20)).unwrap();
        assert_eq!(assembly.finished(6), Err(Mistake::CutOff));
        assembly.begin(10, header(3));
        assembly.feed(10, stream(3, &[&[1; 50]]).slice(..20)).unwrap();
        assembly.lose(10);
        assert_eq!((assembly.lost(), assembly.parts, assembly.is_ready()), (3, 0, false));
    }
}
