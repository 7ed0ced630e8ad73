//! Bytes of a session: messages of a stream as they arrive, and the heads of data streams and datagrams.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Mistake, Reader, Stop, put_varint};
use super::codec_datagram::{Content, Datagram, read_parts};
use super::codec_message::{MessageDecoder, Refused, put_message};
use super::codec_stream::{Head as StreamBegins, read_head};
use super::codec_subgroup::{SubgroupHeader, SubgroupId, put_subgroup_header};
use super::model::{Draft, Location, ObjectStatus};
use super::model_message::Message;
use super::model_params::Properties;
use super::state_cache::{Head, Mark};

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
    let head = match read_head(&mut reader) {
        Ok(StreamBegins::Control) => return Ok(Some((StreamHead::Control, bytes.clone()))),
        Ok(StreamBegins::Padding) => StreamHead::Padding,
        Ok(StreamBegins::Fetch(request)) => StreamHead::Fetch { request },
        Ok(StreamBegins::Subgroup(header)) => {
            let (head, first_is_subgroup) = of_cache(&header);
            StreamHead::Subgroup { alias: header.track_alias, head, first_is_subgroup }
        }
        Err(Stop::More(_)) => return Ok(None),
        Err(Stop::Wrong(mistake)) => return Err(mistake),
    };
    Ok(Some((head, bytes.slice(bytes.len() - reader.remaining()..))))
}

/// The head of a subgroup's stream as the cache keeps it; whether its number is that of its first object.
fn of_cache(header: &SubgroupHeader) -> (Head, bool) {
    let head = Head {
        group: header.group,
        subgroup: Some(header.subgroup.number(None).unwrap_or(0)),
        priority: header.priority,
        properties: header.properties,
        end_of_group: header.end_of_group,
        first_object: header.first_object,
    };
    (head, header.subgroup == SubgroupId::FirstObject)
}

/// Writes the head of a subgroup's stream, and the number of its first object if there is one.
pub(super) fn subgroup_head(out: &mut BytesMut, alias: u64, head: &Head, first: Option<u64>) {
    let header = SubgroupHeader {
        track_alias: alias,
        group: head.group,
        subgroup: match head.subgroup {
            None | Some(0) => SubgroupId::Zero,
            Some(number) => SubgroupId::Given(number),
        },
        priority: head.priority,
        properties: head.properties,
        end_of_group: head.end_of_group,
        first_object: head.first_object,
    };
    put_subgroup_header(&header, out);
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
    let (datagram, written) = match read_parts(bytes)? {
        (Datagram::Object(datagram), written) => (datagram, written),
        (Datagram::Padding, _) => return Ok(None),
    };
    let said = written.len();
    let (status, rest) = match &datagram.content {
        Content::Payload(_) => (ObjectStatus::Normal, bytes.slice(written.start..)),
        Content::Status(status) => (*status, bytes.slice(written)),
    };
    let payload = rest.len() - said;
    let head = Head {
        group: datagram.at.group,
        subgroup: None,
        priority: datagram.priority,
        properties: said > 0,
        end_of_group: datagram.end_of_group,
        first_object: false,
    };
    let length = u32::try_from(said).unwrap_or(u32::MAX);
    let mark = Mark {
        id: datagram.at.object,
        at: 0,
        delta: 0,
        status: u8::try_from(status.number()).unwrap_or(0),
        properties: length,
        head: length,
        payload: payload as u64,
        arrived: now,
    };
    Ok(Some(ObjectDatagram { alias: datagram.track_alias, head, mark, bytes: rest }))
}

/// Writes a datagram; `bytes` are the properties with their length, and the payload.
pub(super) fn datagram_bytes(alias: u64, head: &Head, mark: &Mark, bytes: &Bytes) -> Bytes {
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
