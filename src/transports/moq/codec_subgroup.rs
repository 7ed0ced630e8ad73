//! Subgroup streams (section 11.4): a head, then objects, each a head of its own and its payload.
//!
//! [`ObjectDecoder`] passes objects on while they arrive: first the head, then the payload in the pieces it came in, as
//! slices without a copy, so an object of 2^62 bytes takes no more room than one of 10. A relay forwards the bytes of a
//! head as they are ([`ObjectHead::raw`]), except for the distance to the object before it where that differs
//! ([`ObjectEncoder::forward`]).

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Gather, MAX_PROPERTIES, Mistake, Reader, Stop, Unsayable, put_varint, varint_len};
use super::model::{Location, ObjectStatus};
use super::model_params::Properties;

/// Bits of the type of a subgroup's head.
mod bit {
    pub(super) const PROPERTIES: u64 = 0x01;
    pub(super) const ID_MODE: u64 = 0x06;
    pub(super) const ID_OF_FIRST: u64 = 0x02;
    pub(super) const ID_GIVEN: u64 = 0x04;
    pub(super) const END_OF_GROUP: u64 = 0x08;
    pub(super) const SUBGROUP: u64 = 0x10;
    pub(super) const DEFAULT_PRIORITY: u64 = 0x20;
    pub(super) const FIRST_OBJECT: u64 = 0x40;
    pub(super) const ALL: u64 = 0x7f;
}

/// The head of a subgroup's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubgroupHeader {
    /// What this session calls the track.
    pub track_alias: u64,
    /// Its group.
    pub group: u64,
    /// Its number in the group.
    pub subgroup: SubgroupId,
    /// The publisher's priority; `None`: that of the track.
    pub priority: Option<u8>,
    /// Whether its objects have properties, each perhaps none.
    pub properties: bool,
    /// Whether the last object of the group is in it: if the stream ends properly, that was it.
    pub end_of_group: bool,
    /// Whether it begins with the first object that the subgroup has at its publisher.
    pub first_object: bool,
}

/// The number of a subgroup, as its head says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubgroupId {
    /// 0, unsaid.
    Zero,
    /// That of its first object.
    FirstObject,
    /// This.
    Given(u64),
}

impl SubgroupId {
    /// The number, given that of the first object on the stream; `None` as long as it takes one and there is none.
    #[must_use]
    pub const fn number(self, first_object: Option<u64>) -> Option<u64> {
        match self {
            Self::Zero => Some(0),
            Self::FirstObject => first_object,
            Self::Given(number) => Some(number),
        }
    }
}

/// Reads what follows after the type.
pub(super) fn read_header(kind: u64, reader: &mut Reader<'_>) -> Result<SubgroupHeader, Stop> {
    // Section 11.4.2: the bit of subgroups must be set, and one mode is kept for later.
    if kind & bit::SUBGROUP == 0 || kind & !bit::ALL != 0 || kind & bit::ID_MODE == bit::ID_MODE {
        return Err(Mistake::UnknownStream(kind).into());
    }
    let (track_alias, group) = (reader.varint()?, reader.varint()?);
    let subgroup = match kind & bit::ID_MODE {
        bit::ID_OF_FIRST => SubgroupId::FirstObject,
        bit::ID_GIVEN => SubgroupId::Given(reader.varint()?),
        _ => SubgroupId::Zero,
    };
    let priority = if kind & bit::DEFAULT_PRIORITY == 0 { Some(reader.byte()?) } else { None };
    Ok(SubgroupHeader {
        track_alias,
        group,
        subgroup,
        priority,
        properties: kind & bit::PROPERTIES != 0,
        end_of_group: kind & bit::END_OF_GROUP != 0,
        first_object: kind & bit::FIRST_OBJECT != 0,
    })
}

/// Writes the head of a subgroup's stream.
pub fn put_subgroup_header(header: &SubgroupHeader, out: &mut BytesMut) {
    let mut kind = bit::SUBGROUP;
    kind |= match header.subgroup {
        SubgroupId::Zero => 0,
        SubgroupId::FirstObject => bit::ID_OF_FIRST,
        SubgroupId::Given(_) => bit::ID_GIVEN,
    };
    for (set, flag) in [
        (header.properties, bit::PROPERTIES),
        (header.end_of_group, bit::END_OF_GROUP),
        (header.priority.is_none(), bit::DEFAULT_PRIORITY),
        (header.first_object, bit::FIRST_OBJECT),
    ] {
        if set {
            kind |= flag;
        }
    }
    put_varint(kind, out);
    put_varint(header.track_alias, out);
    put_varint(header.group, out);
    if let SubgroupId::Given(number) = header.subgroup {
        put_varint(number, out);
    }
    if let Some(priority) = header.priority {
        out.put_u8(priority);
    }
}

/// The head of an object on a subgroup's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Its number in the group.
    pub id: u64,
    /// Its properties, well formed.
    pub properties: Properties,
    /// Bytes of payload that follow.
    pub length: u64,
    /// Whether it is one, or an end; always normal if there is payload.
    pub status: ObjectStatus,
    /// All of the head as it came.
    pub raw: Bytes,
    /// How many of them say how far it is from the object before it.
    delta_len: usize,
}

impl ObjectHead {
    /// The head without the distance to the object before it, as it came.
    #[must_use]
    pub fn after_delta(&self) -> Bytes {
        self.raw.get(self.delta_len..).map(|rest| self.raw.slice_ref(rest)).unwrap_or_default()
    }
}

/// What follows on a stream of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<H> {
    /// An object begins, or something else with a head. If its length is 0, that is all of it.
    Head(H),
    /// Payload of the object that began last.
    Payload {
        /// These bytes, never none.
        bytes: Bytes,
        /// Whether they are its last.
        last: bool,
    },
}

/// Takes payload from the front of `input`, up to what is left of it.
pub(super) fn take_payload<H>(left: &mut u64, input: &mut Bytes) -> Option<Piece<H>> {
    if input.is_empty() {
        return None;
    }
    let length = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= length as u64;
    Some(Piece::Payload { bytes: input.split_to(length), last: *left == 0 })
}

/// Reads the objects of one subgroup's stream, behind its head.
#[derive(Debug)]
pub struct ObjectDecoder {
    group: u64,
    has_properties: bool,
    previous: Option<u64>,
    ended: bool,
    left: u64,
    gather: Gather,
}

/// The fields of an object's head; where its properties begin, and how many bytes they have.
pub(super) struct Fields {
    pub(super) delta: u64,
    pub(super) delta_len: usize,
    pub(super) properties: (usize, usize),
    pub(super) length: u64,
    pub(super) status: ObjectStatus,
}

impl ObjectDecoder {
    /// A decoder for the stream of this head.
    #[must_use]
    pub fn new(header: &SubgroupHeader) -> Self {
        Self {
            group: header.group,
            has_properties: header.properties,
            previous: None,
            ended: false,
            left: 0,
            gather: Gather::default(),
        }
    }

    /// Reads what comes next from the front of `input`, of which it takes what it needs: call it until it says `None`,
    /// then come again with more.
    ///
    /// # Errors
    /// [`Mistake`]; the decoder is then of no more use. Nothing of the object in question was passed on, but its head
    /// may have cost the session, the track or the stream.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Piece<ObjectHead>>, Mistake> {
        if self.left > 0 {
            return Ok(take_payload(&mut self.left, input));
        }
        let has_properties = self.has_properties;
        let Some((fields, raw)) = self.gather.head(input, |reader| read_object(reader, has_properties))? else {
            return Ok(None);
        };
        let id = match self.previous {
            None => Some(fields.delta),
            Some(previous) => previous.checked_add(1).and_then(|next| next.checked_add(fields.delta)),
        };
        let id = id.ok_or(Mistake::Overflow)?;
        let (from, length) = fields.properties;
        let bytes = raw.get(from..from + length).map(|bytes| raw.slice_ref(bytes)).unwrap_or_default();
        if !bytes.is_empty() && fields.status != ObjectStatus::Normal {
            return Err(Mistake::PropertiesOfStatus);
        }
        // Behind an end there is nothing (section 2.4.2, rules 4 and 5).
        if self.ended {
            return Err(Mistake::MalformedObject);
        }
        let properties = Properties::of_object(bytes, Location::new(self.group, id))?;
        self.previous = Some(id);
        self.ended = fields.status != ObjectStatus::Normal;
        self.left = fields.length;
        let Fields { length, status, delta_len, .. } = fields;
        Ok(Some(Piece::Head(ObjectHead { id, properties, length, status, raw, delta_len })))
    }

    /// Bytes of payload that the current object still needs.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// The number of the last object that began.
    #[must_use]
    pub const fn last_id(&self) -> Option<u64> {
        self.previous
    }

    /// The stream has ended properly.
    ///
    /// # Errors
    /// [`Mistake::CutOff`] if it must not end here: in the middle of an object (section 11.4).
    pub fn finish(&self) -> Result<(), Mistake> {
        if self.left == 0 && self.gather.is_empty() { Ok(()) } else { Err(Mistake::CutOff) }
    }
}

/// Reads the head of an object.
pub(super) fn read_object(reader: &mut Reader<'_>, has_properties: bool) -> Result<Fields, Stop> {
    let all = reader.remaining();
    let delta = reader.varint()?;
    let delta_len = all - reader.remaining();
    let mut properties = (0, 0);
    if has_properties {
        let bytes = reader.bytes(MAX_PROPERTIES, Mistake::PropertiesTooLong)?;
        properties = (all - reader.remaining() - bytes.len(), bytes.len());
    }
    let length = reader.varint()?;
    let status = if length == 0 {
        let number = reader.varint()?;
        ObjectStatus::from_number(number).ok_or(Mistake::UnknownStatus(number))?
    } else {
        ObjectStatus::Normal
    };
    Ok(Fields { delta, delta_len, properties, length, status })
}

/// Writes the heads of objects on one subgroup's stream, behind its head. Payload goes behind each, as long as it says.
#[derive(Debug)]
pub struct ObjectEncoder {
    has_properties: bool,
    previous: Option<u64>,
}

impl ObjectEncoder {
    /// An encoder for the stream of this head.
    #[must_use]
    pub const fn new(header: &SubgroupHeader) -> Self {
        Self { has_properties: header.properties, previous: None }
    }

    /// Writes the head of an object.
    ///
    /// # Errors
    /// [`Unsayable`] if objects do not ascend, there are properties and must be none, or a status beside payload;
    /// nothing is written then.
    pub fn put(
        &mut self,
        id: u64,
        properties: &Properties,
        length: u64,
        status: ObjectStatus,
        out: &mut BytesMut,
    ) -> Result<(), Unsayable> {
        let delta = self.delta(id)?;
        let wrong = if self.has_properties {
            !properties.is_empty() && status != ObjectStatus::Normal
        } else {
            !properties.is_empty()
        };
        if wrong || (length > 0 && status != ObjectStatus::Normal) {
            return Err(Unsayable::Contradiction("an object"));
        }
        if properties.as_bytes().len() > MAX_PROPERTIES {
            return Err(Unsayable::TooLong("properties of an object"));
        }
        put_varint(delta, out);
        if self.has_properties {
            put_varint(properties.as_bytes().len() as u64, out);
            out.extend_from_slice(properties.as_bytes());
        }
        put_varint(length, out);
        if length == 0 {
            put_varint(status.number(), out);
        }
        self.previous = Some(id);
        Ok(())
    }

    /// Writes a head that came on another stream, which must say the same about properties, byte for byte but for the
    /// distance to the object before it.
    ///
    /// # Errors
    /// [`Unsayable`] if objects do not ascend; nothing is written then.
    pub fn forward(&mut self, head: &ObjectHead, out: &mut BytesMut) -> Result<(), Unsayable> {
        put_varint(self.delta(head.id)?, out);
        out.extend_from_slice(head.raw.get(head.delta_len..).unwrap_or_default());
        self.previous = Some(head.id);
        Ok(())
    }

    /// Whether [`ObjectHead::raw`] can follow as it is. If it is sent so, [`skip_to`](Self::skip_to) says that it was.
    #[must_use]
    pub fn takes_raw(&self, head: &ObjectHead) -> bool {
        let mut delta = Reader::new(head.raw.get(..head.delta_len).unwrap_or_default());
        self.delta(head.id).ok() == delta.varint().ok()
    }

    /// Counts an object as written.
    pub const fn skip_to(&mut self, id: u64) {
        self.previous = Some(id);
    }

    /// The number of the last object written.
    #[must_use]
    pub const fn last_id(&self) -> Option<u64> {
        self.previous
    }

    fn delta(&self, id: u64) -> Result<u64, Unsayable> {
        let delta = match self.previous {
            None => Some(id),
            Some(previous) => id.checked_sub(previous).and_then(|distance| distance.checked_sub(1)),
        };
        delta.ok_or(Unsayable::Contradiction("an object that does not ascend"))
    }
}

/// The most bytes that the head of an object without properties takes.
pub const MAX_PLAIN_HEAD: usize = varint_len(u64::MAX) * 2 + 1;

#[cfg(test)]
#[path = "codec_subgroup_tests.rs"]
mod tests;
