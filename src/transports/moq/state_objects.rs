//! The objects in the stream of a subgroup, as its bytes arrive: where each begins, and how far bytes may be passed on.
//!
//! Bytes of an object's header are passed on once all of it has come and was found well formed, those of its payload as
//! they come. Nothing is copied but a header that is cut by the end of what arrived.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::codec::{Mistake, Reader, Stop};
use super::codec_subgroup::read_object;
use super::model::{Location, ObjectStatus};
use super::model_params::Properties;
use super::state_cache::{Head, Mark};

/// What was found in bytes that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Objects that begin in them.
    pub marks: Vec<Mark>,
    /// What may be passed on: at most the rest of a header that was cut, and one slice.
    pub bytes: Vec<Bytes>,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Objects {
    group: u64,
    properties: bool,
    previous: Option<u64>,
    /// A header that is not whole.
    partial: BytesMut,
    /// Bytes that were passed on.
    offset: u64,
    /// Bytes of the payload that have not come.
    left: u64,
}

/// A header of an object.
struct Header {
    id: u64,
    delta: u8,
    properties: u32,
    status: u8,
    payload: u64,
}

impl Objects {
    /// Of a subgroup's stream, behind its header.
    #[must_use]
    pub fn new(head: &Head) -> Self {
        Self {
            group: head.group,
            properties: head.properties,
            previous: None,
            partial: BytesMut::new(),
            offset: 0,
            left: 0,
        }
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// [`Mistake`]. What was found before it is not told: it is passed on to nobody.
    pub fn feed(&mut self, mut input: Bytes, now: Instant) -> Result<Found, Mistake> {
        let mut found = Found::default();
        while !self.partial.is_empty() && !input.is_empty() {
            // One byte after the other until the header is whole: it happens once for each time a header is cut.
            let byte = input.split_to(1);
            self.partial.extend_from_slice(&byte);
            let (length, header) = match self.header(&self.partial) {
                Ok(header) => header,
                Err(Stop::More(_)) => continue,
                Err(Stop::Wrong(mistake)) => return Err(mistake),
            };
            let head = self.partial.split_to(length).freeze();
            self.begin(&header, length, now, &mut found);
            self.offset += length as u64;
            found.bytes.push(head);
        }
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            let payload = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
            self.left -= payload as u64;
            self.offset += payload as u64;
            at += payload;
            let rest = input.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match self.header(rest) {
                Ok((length, header)) => {
                    self.begin(&header, length, now, &mut found);
                    self.offset += length as u64;
                    at += length;
                }
                Err(Stop::More(_)) => {
                    self.partial.extend_from_slice(rest);
                    break;
                }
                Err(Stop::Wrong(mistake)) => return Err(mistake),
            }
        }
        if at > 0 {
            found.bytes.push(input.split_to(at));
        }
        Ok(found)
    }

    /// The stream has ended properly.
    ///
    /// # Errors
    /// [`Mistake::CutOff`] in the midst of an object.
    pub fn finish(&self) -> Result<(), Mistake> {
        if self.partial.is_empty() && self.left == 0 { Ok(()) } else { Err(Mistake::CutOff) }
    }

    fn begin(&mut self, header: &Header, length: usize, now: Instant, found: &mut Found) {
        self.previous = Some(header.id);
        self.left = header.payload;
        found.marks.push(Mark {
            id: header.id,
            at: self.offset,
            delta: header.delta,
            status: header.status,
            properties: header.properties,
            head: u32::try_from(length).unwrap_or(u32::MAX),
            payload: header.payload,
            arrived: now,
        });
    }

    fn header(&self, bytes: &[u8]) -> Result<(usize, Header), Stop> {
        let mut reader = Reader::new(bytes);
        let fields = read_object(&mut reader, self.properties)?;
        let id = match self.previous {
            None => Some(fields.delta),
            Some(previous) => previous.checked_add(1).and_then(|next| next.checked_add(fields.delta)),
        };
        let id = id.ok_or(Mistake::Overflow)?;
        let (from, length) = fields.properties;
        if length > 0 {
            if fields.status != ObjectStatus::Normal {
                return Err(Mistake::PropertiesOfStatus.into());
            }
            let inner = bytes.get(from..from + length).unwrap_or_default();
            Properties::of_object(Bytes::copy_from_slice(inner), Location::new(self.group, id))?;
        }
        // Their length is written before them, however long that is.
        let said = if self.properties { from + length - fields.delta_len } else { 0 };
        let header = Header {
            id,
            delta: u8::try_from(fields.delta_len).unwrap_or(u8::MAX),
            properties: u32::try_from(said).unwrap_or(u32::MAX),
            status: u8::try_from(fields.status.number()).unwrap_or(0),
            payload: fields.length,
        };
        Ok((bytes.len() - reader.remaining(), header))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::codec::put_varint;
    use super::*;

    fn head(properties: bool) -> Head {
        Head { group: 7, subgroup: Some(0), priority: None, properties, end_of_group: false, first_object: true }
    }

    fn stream(objects: &[(u64, Vec<u8>)], properties: bool) -> Bytes {
        let mut out = BytesMut::new();
        let mut next = 0;
        for (id, payload) in objects {
            put_varint(id - next, &mut out);
            next = id + 1;
            if properties {
                put_varint(2, &mut out);
                out.extend_from_slice(&[0x3c + 0x04, 5]);
            }
            put_varint(payload.len() as u64, &mut out);
            if payload.is_empty() {
                put_varint(0, &mut out);
            }
            out.extend_from_slice(payload);
        }
        out.freeze()
    }

    #[test]
    fn a_payload_of_2_to_the_62_is_announced_and_passes_as_it_comes() {
        let mut out = BytesMut::new();
        put_varint(0, &mut out);
        put_varint(1 << 62, &mut out);
        out.extend_from_slice(b"abc");
        let mut objects = Objects::new(&head(false));
        let now = crate::actors::clock::now();
        let found = objects.feed(out.freeze(), now).unwrap();
        assert_eq!((found.marks[0].payload, found.bytes[0].len()), (1 << 62, 13));
        assert_eq!(objects.finish(), Err(Mistake::CutOff));
        assert_eq!(objects.feed(Bytes::from_static(b"def"), now).unwrap().bytes, [Bytes::from_static(b"def")]);
    }

    #[test]
    fn what_is_wrong_is_not_passed_on() {
        let now = crate::actors::clock::now();
        let mut objects = Objects::new(&head(false));
        // A status that nobody knows.
        assert_eq!(objects.feed(Bytes::from_static(&[0, 0, 9]), now), Err(Mistake::UnknownStatus(9)));
        let mut objects = Objects::new(&head(true));
        // Properties that are cut by their length.
        assert!(objects.feed(Bytes::from_static(&[0, 1, 0x3d, 1, b'x']), now).is_err());
    }

    proptest! {
        /// However its bytes are cut, what is passed on is the stream, and each object is found where it is.
        #[test]
        fn cuts_change_nothing(
            objects in proptest::collection::vec((0u64..300, proptest::collection::vec(any::<u8>(), 0..90)), 0..12),
            properties in any::<bool>(),
            cuts in proptest::collection::vec(1usize..40, 1..60),
        ) {
            let mut id = 0;
            let objects: Vec<(u64, Vec<u8>)> = objects.into_iter().map(|(gap, payload)| {
                id += gap + 1;
                (id - 1, payload)
            }).collect();
            let bytes = stream(&objects, properties);
            let now = crate::actors::clock::now();
            let (mut parser, mut rest, mut passed, mut marks) =
                (Objects::new(&head(properties)), bytes.clone(), BytesMut::new(), Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while !rest.is_empty() {
                let length = cuts.next().unwrap_or(1).min(rest.len());
                let found = parser.feed(rest.split_to(length), now).unwrap();
                found.bytes.iter().for_each(|bytes| passed.extend_from_slice(bytes));
                marks.extend(found.marks);
            }
            prop_assert_eq!(parser.finish(), Ok(()));
            prop_assert_eq!(&passed[..], &bytes[..]);
            prop_assert_eq!(marks.len(), objects.len());
            for (mark, (id, payload)) in marks.iter().zip(&objects) {
                prop_assert_eq!(mark.id, *id);
                let end = usize::try_from(mark.end()).unwrap();
                prop_assert_eq!(&bytes[end - payload.len()..end], &payload[..]);
            }
        }
    }
}
