//! Bytes of a session: messages of a stream as they arrive, and the heads of data streams and datagrams.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Mistake, Reader, Stop, put_varint};
use super::codec_message::{MessageDecoder, Refused, message, put_message};
use super::model::{Draft, Location, ObjectStatus};
use super::model_message::Message;
use super::model_params::Properties;
use super::state_cache::{Head, Mark};

/// Types of unidirectional streams (draft, section 3.4).
const FETCH_HEADER: u64 = 0x05;
const PADDING: u64 = 0x132b_3e28;

/// The messages of one stream.
pub(super) struct Messages {
    decoder: MessageDecoder,
    rest: Bytes,
}

impl Messages {
    pub(super) fn new(draft: Draft) -> Self {
        Self { decoder: MessageDecoder::new(draft), rest: Bytes::new() }
    }

    /// More has come. All of what came before was taken.
    pub(super) fn feed(&mut self, bytes: Bytes) {
        if self.rest.is_empty() {
            self.rest = bytes;
        } else {
            self.rest = [std::mem::take(&mut self.rest), bytes].concat().into();
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Message>, Refused> {
        self.decoder.decode(&mut self.rest)
    }

    /// Whether no message has begun that is not whole.
    pub(super) fn is_between(&self) -> bool {
        self.rest.is_empty() && self.decoder.finish().is_ok()
    }
}

/// A message in bytes.
pub(super) fn encode(message: &Message, draft: Draft) -> Result<Bytes, super::codec::Unsayable> {
    let mut out = BytesMut::new();
    put_message(message, draft, &mut out)?;
    Ok(out.freeze())
}

/// What a unidirectional stream begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamHead {
    /// SETUP: the bytes belong to the message.
    Control,
    /// Objects of a subgroup. Its number is that of its first object if `first_is_subgroup`.
    Subgroup { alias: u64, head: Head, first_is_subgroup: bool },
    /// Objects of a fetch.
    Fetch { request: u64 },
    /// Nothing of interest.
    Padding,
}

/// Reads the beginning of a stream: `None` if more is needed; else with the bytes behind it.
pub(super) fn stream_head(bytes: &Bytes) -> Result<Option<(StreamHead, Bytes)>, Mistake> {
    let mut reader = Reader::new(bytes);
    match head(&mut reader) {
        Ok(StreamHead::Control) => Ok(Some((StreamHead::Control, bytes.clone()))),
        Ok(head) => Ok(Some((head, bytes.slice(bytes.len() - reader.remaining()..)))),
        Err(Stop::More(_)) => Ok(None),
        Err(Stop::Wrong(mistake)) => Err(mistake),
    }
}

fn head(reader: &mut Reader<'_>) -> Result<StreamHead, Stop> {
    let kind = reader.varint()?;
    match kind {
        message::SETUP => return Ok(StreamHead::Control),
        FETCH_HEADER => return Ok(StreamHead::Fetch { request: reader.varint()? }),
        PADDING => return Ok(StreamHead::Padding),
        _ => {}
    }
    let mode = (kind >> 1) & 0b11;
    if kind & !0x7f != 0 || kind & 0x10 == 0 || mode == 0b11 {
        return Err(Mistake::UnknownStream(kind).into());
    }
    let (alias, group) = (reader.varint()?, reader.varint()?);
    let subgroup = if mode == 0b10 { reader.varint()? } else { 0 };
    let priority = if kind & 0x20 == 0 { Some(reader.byte()?) } else { None };
    let head = Head {
        group,
        subgroup: Some(subgroup),
        priority,
        properties: kind & 0x01 != 0,
        end_of_group: kind & 0x08 != 0,
        first_object: kind & 0x40 != 0,
    };
    Ok(StreamHead::Subgroup { alias, head, first_is_subgroup: mode == 0b01 })
}

/// Writes the head of a subgroup's stream, and the number of its first object if there is one.
pub(super) fn subgroup_head(out: &mut BytesMut, alias: u64, head: &Head, first: Option<u64>, _: Draft) {
    let subgroup = head.subgroup.unwrap_or(0);
    let mut kind = 0x10;
    kind |= u64::from(head.properties);
    kind |= if subgroup == 0 { 0 } else { 0b100 };
    kind |= if head.end_of_group { 0x08 } else { 0 };
    kind |= if head.priority.is_none() { 0x20 } else { 0 };
    kind |= if head.first_object { 0x40 } else { 0 };
    put_varint(kind, out);
    put_varint(alias, out);
    put_varint(head.group, out);
    if subgroup != 0 {
        put_varint(subgroup, out);
    }
    if let Some(priority) = head.priority {
        out.put_u8(priority);
    }
    if let Some(first) = first {
        put_varint(first, out);
    }
}

/// The properties of an object, given with their length; they were found well formed when they came.
pub(super) fn properties_of(bytes: Vec<u8>, at: Location) -> Option<Properties> {
    if bytes.is_empty() {
        return Some(Properties::default());
    }
    let mut reader = Reader::new(&bytes);
    let inner = reader.bytes(super::codec::MAX_PROPERTIES, Mistake::PropertiesTooLong).ok()?;
    Properties::of_object(Bytes::copy_from_slice(inner), at).ok()
}

/// A datagram that holds an object.
pub(super) struct ObjectDatagram {
    pub(super) alias: u64,
    pub(super) head: Head,
    pub(super) mark: Mark,
    /// Its properties with their length, and the payload.
    pub(super) bytes: Bytes,
}

/// Reads a datagram; `None` if it is padding.
pub(super) fn read_datagram(bytes: &Bytes, now: Instant) -> Result<Option<ObjectDatagram>, Mistake> {
    datagram(bytes, now).map_err(Stop::at_end)
}

fn datagram(bytes: &Bytes, now: Instant) -> Result<Option<ObjectDatagram>, Stop> {
    let mut reader = Reader::new(bytes);
    let kind = reader.varint()?;
    if kind == PADDING {
        return Ok(None);
    }
    if kind & !0x2f != 0 || kind & 0x22 == 0x22 {
        return Err(Mistake::UnknownDatagram(kind).into());
    }
    let (alias, group) = (reader.varint()?, reader.varint()?);
    let id = if kind & 0x04 == 0 { reader.varint()? } else { 0 };
    let priority = if kind & 0x08 == 0 { Some(reader.byte()?) } else { None };
    let from = bytes.len() - reader.remaining();
    let mut said = 0;
    if kind & 0x01 != 0 {
        let inner = reader.bytes(super::codec::MAX_PROPERTIES, Mistake::PropertiesTooLong)?;
        if inner.is_empty() {
            return Err(Mistake::NoProperties.into());
        }
        Properties::of_object(Bytes::copy_from_slice(inner), Location::new(group, id))?;
        said = bytes.len() - from - reader.remaining();
    }
    let mut status = ObjectStatus::Normal;
    let mut rest = bytes.slice(from..);
    if kind & 0x20 != 0 {
        let number = reader.varint()?;
        status = ObjectStatus::from_number(number).ok_or(Mistake::UnknownStatus(number))?;
        if status != ObjectStatus::Normal && said > 0 {
            return Err(Mistake::PropertiesOfStatus.into());
        }
        if !reader.is_empty() {
            return Err(Mistake::TrailingBytes.into());
        }
        rest.truncate(said);
    }
    let head = Head {
        group,
        subgroup: None,
        priority,
        properties: said > 0,
        end_of_group: kind & 0x02 != 0,
        first_object: false,
    };
    let length = u32::try_from(said).unwrap_or(u32::MAX);
    let mark = Mark {
        id,
        at: 0,
        delta: 0,
        status: u8::try_from(status.number()).unwrap_or(0),
        properties: length,
        head: length,
        payload: (rest.len() - said) as u64,
        arrived: now,
    };
    Ok(Some(ObjectDatagram { alias, head, mark, bytes: rest }))
}

/// Writes a datagram; `bytes` are the properties with their length, and the payload.
pub(super) fn datagram_bytes(alias: u64, head: &Head, mark: &Mark, bytes: &Bytes, _: Draft) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 32);
    let mut kind = u64::from(mark.properties > 0);
    kind |= if head.end_of_group { 0x02 } else { 0 };
    kind |= if mark.id == 0 { 0x04 } else { 0 };
    kind |= if head.priority.is_none() { 0x08 } else { 0 };
    kind |= if mark.status != 0 { 0x20 } else { 0 };
    put_varint(kind, &mut out);
    put_varint(alias, &mut out);
    put_varint(head.group, &mut out);
    if mark.id != 0 {
        put_varint(mark.id, &mut out);
    }
    if let Some(priority) = head.priority {
        out.put_u8(priority);
    }
    out.extend_from_slice(bytes);
    if mark.status != 0 {
        put_varint(u64::from(mark.status), &mut out);
    }
    out.freeze()
}
