//! Datagrams (section 11.3): one object each, or padding.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{MAX_PROPERTIES, Mistake, Reader, Stop, Unsayable, put_varint};
use super::model::{Location, ObjectStatus};
use super::model_params::Properties;

/// A datagram of padding.
pub const PADDING: u64 = 0x132b_3e29;

/// Bits of the type of an object's datagram.
mod bit {
    pub(super) const PROPERTIES: u64 = 0x01;
    pub(super) const END_OF_GROUP: u64 = 0x02;
    pub(super) const ZERO_OBJECT: u64 = 0x04;
    pub(super) const DEFAULT_PRIORITY: u64 = 0x08;
    pub(super) const STATUS: u64 = 0x20;
    pub(super) const ALL: u64 = 0x2f;
}

/// What a datagram is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// An object.
    Object(ObjectDatagram),
    /// To be thrown away.
    Padding,
}

/// An object that travels in a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectDatagram {
    /// What this session calls the track.
    pub track_alias: u64,
    /// Where it is.
    pub at: Location,
    /// The publisher's priority; `None`: that of the track.
    pub priority: Option<u8>,
    /// Whether no object of its group comes behind it; not beside a status.
    pub end_of_group: bool,
    /// Its properties, well formed.
    pub properties: Properties,
    /// What it says.
    pub content: Content,
}

/// What the object in a datagram says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Its payload, to the end of the datagram; may be empty.
    Payload(Bytes),
    /// Its status, and no payload.
    Status(ObjectStatus),
}

/// Reads a datagram.
///
/// # Errors
/// [`Mistake`]: what is malformed in the object itself costs the track, all else the session.
pub fn read_datagram(datagram: &Bytes) -> Result<Datagram, Mistake> {
    read_parts(datagram).map(|(read, _)| read)
}

/// The same, with where its properties are, with their length: they and the payload behind them are passed on.
pub(super) fn read_parts(datagram: &Bytes) -> Result<(Datagram, Range<usize>), Mistake> {
    let mut reader = Reader::new(datagram);
    read(datagram, &mut reader).map_err(Stop::at_end)
}

fn read(datagram: &Bytes, reader: &mut Reader<'_>) -> Result<(Datagram, Range<usize>), Stop> {
    let kind = reader.varint()?;
    if kind == PADDING {
        return Ok((Datagram::Padding, 0..0));
    }
    let has_status = kind & bit::STATUS != 0;
    let end_of_group = kind & bit::END_OF_GROUP != 0;
    if kind & !bit::ALL != 0 || (has_status && end_of_group) {
        return Err(Mistake::UnknownDatagram(kind).into());
    }
    let (track_alias, group) = (reader.varint()?, reader.varint()?);
    let object = if kind & bit::ZERO_OBJECT != 0 { 0 } else { reader.varint()? };
    let at = Location::new(group, object);
    let priority = if kind & bit::DEFAULT_PRIORITY != 0 { None } else { Some(reader.byte()?) };
    let behind = datagram.len() - reader.remaining();
    let mut properties = Properties::default();
    if kind & bit::PROPERTIES != 0 {
        let bytes = reader.bytes(MAX_PROPERTIES, Mistake::PropertiesTooLong)?;
        if bytes.is_empty() {
            return Err(Mistake::NoProperties.into());
        }
        properties = Properties::of_object(datagram.slice_ref(bytes), at)?;
    }
    let written = behind..datagram.len() - reader.remaining();
    let content = if has_status {
        let number = reader.varint()?;
        let status = ObjectStatus::from_number(number).ok_or(Mistake::UnknownStatus(number))?;
        if status != ObjectStatus::Normal && !properties.is_empty() {
            return Err(Mistake::PropertiesOfStatus.into());
        }
        if !reader.is_empty() {
            return Err(Mistake::TrailingBytes.into());
        }
        Content::Status(status)
    } else {
        Content::Payload(datagram.slice_ref(reader.take_rest()))
    };
    let read = ObjectDatagram { track_alias, at, priority, end_of_group, properties, content };
    Ok((Datagram::Object(read), written))
}

impl ObjectDatagram {
    /// Writes all that stands before the payload, and the status if it is one; the payload goes behind it.
    ///
    /// # Errors
    /// [`Unsayable`] if a status stands beside properties or the end of a group; nothing is written then.
    pub fn put_head(&self, out: &mut BytesMut) -> Result<(), Unsayable> {
        let status = match self.content {
            Content::Payload(_) => None,
            Content::Status(status) => Some(status),
        };
        if status
            .is_some_and(|status| self.end_of_group || (status != ObjectStatus::Normal && !self.properties.is_empty()))
        {
            return Err(Unsayable::Contradiction("a status in a datagram"));
        }
        if self.properties.as_bytes().len() > MAX_PROPERTIES {
            return Err(Unsayable::TooLong("properties of an object"));
        }
        let mut kind = 0;
        for (set, flag) in [
            (!self.properties.is_empty(), bit::PROPERTIES),
            (self.end_of_group, bit::END_OF_GROUP),
            (self.at.object == 0, bit::ZERO_OBJECT),
            (self.priority.is_none(), bit::DEFAULT_PRIORITY),
            (status.is_some(), bit::STATUS),
        ] {
            if set {
                kind |= flag;
            }
        }
        put_varint(kind, out);
        put_varint(self.track_alias, out);
        put_varint(self.at.group, out);
        if self.at.object != 0 {
            put_varint(self.at.object, out);
        }
        if let Some(priority) = self.priority {
            out.put_u8(priority);
        }
        if !self.properties.is_empty() {
            put_varint(self.properties.as_bytes().len() as u64, out);
            out.extend_from_slice(self.properties.as_bytes());
        }
        if let Some(status) = status {
            put_varint(status.number(), out);
        }
        Ok(())
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// As [`put_head`](Self::put_head).
    pub fn put(&self, out: &mut BytesMut) -> Result<(), Unsayable> {
        self.put_head(out)?;
        if let Content::Payload(payload) = &self.content {
            out.extend_from_slice(payload);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "codec_datagram_tests.rs"]
mod tests;
