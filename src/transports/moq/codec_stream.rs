//! How a unidirectional stream begins (section 3.4): what kind it is, and the head that belongs to its kind.

use bytes::{Bytes, BytesMut};

use super::codec::{Gather, Mistake, Reader, Stop, put_varint};
use super::codec_message::{MessageDecoder, message};
use super::codec_subgroup::{SubgroupHeader, read_header};
use super::model::Draft;

/// A stream whose head is FETCH_HEADER.
pub const FETCH: u64 = 0x05;

/// A stream of padding.
pub const PADDING: u64 = 0x132b_3e28;

/// How a stream began.
#[derive(Debug)]
pub enum StreamStart {
    /// With SETUP: the peer's control stream, and what reads its messages, SETUP first.
    Control(MessageDecoder),
    /// With the head of a subgroup; objects follow, read by [`ObjectDecoder`](super::codec_subgroup::ObjectDecoder).
    Subgroup(SubgroupHeader),
    /// With the number of a request; objects follow, read by [`FetchDecoder`](super::codec_fetch::FetchDecoder).
    Fetch {
        /// Of the FETCH, or from draft 20 of the message that asked for a fill.
        request_id: u64,
    },
    /// Padding: all that follows is to be thrown away.
    Padding,
}

/// Reads how a stream begins.
#[derive(Debug)]
pub struct StreamDecoder {
    draft: Draft,
    gather: Gather,
}

impl StreamDecoder {
    /// A decoder for a new stream.
    #[must_use]
    pub fn new(draft: Draft) -> Self {
        Self { draft, gather: Gather::default() }
    }

    /// Reads the beginning from the front of `input`; `None` if more is needed. Done once it has said what it is: what is
    /// left of `input` follows the head.
    ///
    /// # Errors
    /// [`Mistake`]; the session ends.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<StreamStart>, Mistake> {
        let Some((head, raw)) = self.gather.head(input, read_head)? else { return Ok(None) };
        Ok(Some(match head {
            Head::Control => StreamStart::Control(MessageDecoder::continued(self.draft, &raw)),
            Head::Subgroup(header) => StreamStart::Subgroup(header),
            Head::Fetch(request_id) => StreamStart::Fetch { request_id },
            Head::Padding => StreamStart::Padding,
        }))
    }

    /// Whether any byte of the stream has come. One that ends before is as if it had never been.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        !self.gather.is_empty()
    }
}

/// Writes the head of a fetch's stream.
pub fn put_fetch_header(request_id: u64, out: &mut BytesMut) {
    put_varint(FETCH, out);
    put_varint(request_id, out);
}

/// Writes the beginning of a padding stream; any number of zeros may follow.
pub fn put_padding_header(out: &mut BytesMut) {
    put_varint(PADDING, out);
}

/// What a stream begins with, before any decoder is made for the rest of it.
pub(super) enum Head {
    Control,
    Subgroup(SubgroupHeader),
    Fetch(u64),
    Padding,
}

/// Reads what a stream begins with. The type of SETUP is taken like any other.
pub(super) fn read_head(reader: &mut Reader<'_>) -> Result<Head, Stop> {
    match reader.varint()? {
        message::SETUP => Ok(Head::Control),
        FETCH => Ok(Head::Fetch(reader.varint()?)),
        PADDING => Ok(Head::Padding),
        kind => Ok(Head::Subgroup(read_header(kind, reader)?)),
    }
}
