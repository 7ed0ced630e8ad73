//! What may come on a stream that a client opened in both directions, and in which order (RFC 9114, sections 4.1 and 7).
//!
//! Bytes come in as they are read; pieces of a message come out, content as slices of what came in. Kept is at most one
//! section of fields, which is bounded, or the header of one frame. A connection is lost by what `Wrong::Connection`
//! says, one stream by what `Wrong::Stream` says.

use bytes::{Buf, Bytes, BytesMut};

use super::codec::{Code, FRAME_HEADER, frame, take_varint};

/// Frames without content in a row, after which a stream is taken for an attack.
const EMPTY: u32 = 1_000;
/// Bytes of frames of unknown type on one stream that are passed over.
const UNKNOWN: u64 = 64 << 10;

/// Who pays for a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The connection.
    Connection(Code),
    /// The stream alone.
    Stream(Code),
    /// Fields that take more than is allowed: answered by 431.
    Section,
}

/// A piece of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The fields of its head, still coded.
    Head(Bytes),
    /// Content.
    Data(Bytes),
    /// The fields behind its content, still coded.
    Trailers(Bytes),
    /// No request: from here on the stream belongs to the session whose CONNECT came on this stream.
    Session(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// Its header has not come.
    None,
    Data(u64),
    Section(usize),
    Unknown(u64),
}

/// The receiving side of a request.
#[derive(Debug)]
pub struct Receiving {
    stage: Stage,
    frame: Frame,
    /// The header or section that has come in part.
    partial: BytesMut,
    section: usize,
    empty: u32,
    unknown: u64,
    first: bool,
    /// Content that `Content-Length` has announced and that has not come.
    expected: Option<u64>,
}

impl Receiving {
    /// For a stream on which nothing has come. `section` is the longest section in bytes.
    #[must_use]
    pub fn new(section: usize) -> Self {
        Self {
            stage: Stage::Head,
            frame: Frame::None,
            partial: BytesMut::new(),
            section,
            empty: 0,
            unknown: 0,
            first: true,
            expected: None,
        }
    }

    /// The head said how much content there will be.
    pub const fn expect(&mut self, length: u64) {
        self.expected = Some(length);
    }

    /// Takes bytes and gives the next piece; `None` when all were taken. To be called until then.
    ///
    /// # Errors
    /// See [`Wrong`].
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Option<Piece>, Wrong> {
        loop {
            match self.frame {
                Frame::None => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    if let Some(session) = self.header(input)? {
                        return Ok(Some(Piece::Session(session)));
                    }
                }
                Frame::Data(left) => {
                    if left == 0 {
                        self.frame = Frame::None;
                        continue;
                    }
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    self.frame = Frame::Data(left - count as u64);
                    self.empty = 0;
                    if let Some(expected) = &mut self.expected {
                        // RFC 9114, section 4.1.2: content beyond its announced length is malformed.
                        *expected = expected.checked_sub(count as u64).ok_or(Wrong::Stream(Code::MessageError))?;
                    }
                    return Ok(Some(Piece::Data(input.split_to(count))));
                }
                Frame::Section(left) => {
                    if self.partial.is_empty() && input.len() >= left {
                        return Ok(Some(self.section_ends(input.split_to(left))));
                    }
                    let count = left.saturating_sub(self.partial.len()).min(input.len());
                    self.partial.extend_from_slice(&input.split_to(count));
                    if self.partial.len() < left {
                        return Ok(None);
                    }
                    let section = std::mem::take(&mut self.partial).freeze();
                    return Ok(Some(self.section_ends(section)));
                }
                Frame::Unknown(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    input.advance(count);
                    let left = left - count as u64;
                    self.frame = if left == 0 { Frame::None } else { Frame::Unknown(left) };
                    if left > 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// See [`Wrong`].
    pub fn end(&self) -> Result<(), Wrong> {
        // RFC 9114, section 7.1.
        if self.frame != Frame::None && self.frame != Frame::Data(0) || !self.partial.is_empty() {
            return Err(Wrong::Connection(Code::FrameError));
        }
        if self.stage == Stage::Head {
            return Err(Wrong::Stream(Code::RequestIncomplete));
        }
        match self.expected {
            Some(1..) => Err(Wrong::Stream(Code::MessageError)),
            Some(0) | None => Ok(()),
        }
    }

    fn section_ends(&mut self, section: Bytes) -> Piece {
        self.frame = Frame::None;
        if self.stage == Stage::Head {
            self.stage = Stage::Body;
            Piece::Head(section)
        } else {
            self.stage = Stage::Over;
            Piece::Trailers(section)
        }
    }

    /// The header of the next frame, if all of it has come.
    fn header(&mut self, input: &mut Bytes) -> Result<Option<u64>, Wrong> {
        let known = self.partial.len();
        let wanted = FRAME_HEADER.saturating_sub(known).min(input.len());
        self.partial.extend_from_slice(input.get(..wanted).unwrap_or_default());
        let mut rest = &self.partial[..];
        let (Some(kind), Some(length)) = (take_varint(&mut rest), take_varint(&mut rest)) else {
            // Two numbers are never longer than what was looked at, so all of it belongs to the header.
            input.advance(wanted);
            return Ok(None);
        };
        let used = self.partial.len() - rest.len();
        input.advance(used.saturating_sub(known));
        self.partial.clear();
        let first = std::mem::replace(&mut self.first, false);
        self.begin(kind, length, first)
    }

    fn begin(&mut self, kind: u64, length: u64, first: bool) -> Result<Option<u64>, Wrong> {
        let unexpected = Err(Wrong::Connection(Code::FrameUnexpected));
        match kind {
            frame::DATA => {
                if self.stage != Stage::Body {
                    return unexpected;
                }
                if length == 0 {
                    self.empty += 1;
                    if self.empty > EMPTY {
                        return Err(Wrong::Connection(Code::ExcessiveLoad));
                    }
                }
                self.frame = Frame::Data(length);
            }
            frame::HEADERS => {
                if self.stage == Stage::Over {
                    return unexpected;
                }
                self.frame = match usize::try_from(length) {
                    Ok(length) if length <= self.section => Frame::Section(length),
                    _ => return Err(Wrong::Section),
                };
            }
            // WebTransport over HTTP/3, section 4.3: at the beginning of a stream and nowhere else.
            frame::WEBTRANSPORT if first => return Ok(Some(length)),
            frame::WEBTRANSPORT => return Err(Wrong::Connection(Code::FrameError)),
            frame::SETTINGS
            | frame::GOAWAY
            | frame::MAX_PUSH_ID
            | frame::CANCEL_PUSH
            | frame::PUSH_PROMISE
            | frame::PRIORITY_UPDATE
            | frame::PRIORITY_UPDATE_PUSH => return unexpected,
            kind if frame::is_of_http2(kind) => return unexpected,
            _ => {
                // At least its header, so that empty ones have an end as well.
                self.unknown = self.unknown.saturating_add(length.saturating_add(2));
                if self.unknown > UNKNOWN {
                    return Err(Wrong::Connection(Code::ExcessiveLoad));
                }
                self.frame = if length == 0 { Frame::None } else { Frame::Unknown(length) };
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transports::http3::codec::{put_frame, put_varint};

    fn put(out: &mut BytesMut, kind: u64, body: &[u8]) {
        put_frame(out, kind, body.len());
        out.extend_from_slice(body);
    }

    fn frames(list: &[(u64, &[u8])]) -> Bytes {
        let mut out = BytesMut::new();
        list.iter().for_each(|(kind, body)| put(&mut out, *kind, body));
        out.freeze()
    }

    /// All pieces, with content joined.
    fn run(bytes: &Bytes, step: usize) -> Result<Vec<Piece>, Wrong> {
        let mut receiving = Receiving::new(1_000);
        let mut pieces = Vec::new();
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let mut input = rest.split_to(step.min(rest.len()));
            while let Some(piece) = receiving.feed(&mut input)? {
                match (pieces.last_mut(), piece) {
                    (Some(Piece::Data(before)), Piece::Data(data)) => {
                        *before = [&before[..], &data[..]].concat().into()
                    }
                    (_, piece) => pieces.push(piece),
                }
                if matches!(pieces.last(), Some(Piece::Session(_))) {
                    return Ok(pieces);
                }
            }
            assert!(input.is_empty());
        }
        receiving.end()?;
        Ok(pieces)
    }

    #[test]
    fn a_request_comes_in_any_pieces() {
        let bytes = frames(&[
            (0x21, b"grease"),
            (frame::HEADERS, b"head"),
            (frame::DATA, b""),
            (frame::DATA, b"hello "),
            (0x40 + 0x21, b""),
            (frame::DATA, b"world"),
            (frame::HEADERS, b"end"),
            (0x21, b""),
        ]);
        let expected =
            vec![Piece::Head("head".into()), Piece::Data("hello world".into()), Piece::Trailers("end".into())];
        for step in 1..bytes.len() + 1 {
            assert_eq!(run(&bytes, step), Ok(expected.clone()), "by {step}");
        }
    }

    #[test]
    fn frames_out_of_order_end_the_connection() {
        let unexpected = Err(Wrong::Connection(Code::FrameUnexpected));
        let head = (frame::HEADERS, &b"h"[..]);
        for list in [
            &[(frame::DATA, &b"x"[..])][..],
            &[head, head, head],
            &[head, head, (frame::DATA, b"x")],
            &[(frame::SETTINGS, b"")],
            &[head, (frame::SETTINGS, b"")],
            &[head, (frame::GOAWAY, b"\0")],
            &[head, (frame::CANCEL_PUSH, b"\0")],
            &[head, (frame::MAX_PUSH_ID, b"\0")],
            &[head, (frame::PUSH_PROMISE, b"\0")],
            &[head, (frame::PRIORITY_UPDATE, b"\0")],
            &[head, (0x2, b"")],
            &[head, (0x6, b"")],
            &[head, (0x8, b"")],
            &[head, (0x9, b"")],
        ] {
            assert_eq!(run(&frames(list), 1_000), unexpected, "{list:x?}");
        }
        assert_eq!(run(&frames(&[head, (frame::WEBTRANSPORT, b"")]), 9), Err(Wrong::Connection(Code::FrameError)));
    }

    #[test]
    fn what_is_cut_off_is_told_from_what_is_missing() {
        let whole = frames(&[(frame::HEADERS, b"head"), (frame::DATA, b"data")]);
        for cut in 1..whole.len() {
            let expected = match cut {
                6 => Ok(vec![Piece::Head("head".into())]),
                _ => Err(Wrong::Connection(Code::FrameError)),
            };
            assert_eq!(run(&whole.slice(..cut), 100), expected, "{cut}");
        }
        assert_eq!(run(&Bytes::new(), 1), Err(Wrong::Stream(Code::RequestIncomplete)));
        assert_eq!(run(&frames(&[(0x21, b"")]), 1), Err(Wrong::Stream(Code::RequestIncomplete)));
    }

    #[test]
    fn content_is_as_long_as_was_said() {
        for (length, result) in [(4, Ok(())), (5, Err(Code::MessageError)), (3, Err(Code::MessageError))] {
            let mut receiving = Receiving::new(100);
            let mut input = frames(&[(frame::HEADERS, b"h"), (frame::DATA, b"data")]);
            assert_eq!(receiving.feed(&mut input), Ok(Some(Piece::Head("h".into()))));
            receiving.expect(length);
            let fed = receiving.feed(&mut input).and_then(|_| receiving.feed(&mut input)).and_then(|_| receiving.end());
            assert_eq!(fed, result.map_err(Wrong::Stream));
        }
    }

    #[test]
    fn floods_have_an_end() {
        let mut out = BytesMut::new();
        put(&mut out, frame::HEADERS, b"h");
        for _ in 0..=EMPTY {
            put(&mut out, frame::DATA, b"");
        }
        assert_eq!(run(&out.freeze(), 64), Err(Wrong::Connection(Code::ExcessiveLoad)));
        let mut out = BytesMut::new();
        for _ in 0..40_000 {
            put(&mut out, 0x21, b"");
        }
        assert_eq!(run(&out.freeze(), 1_000), Err(Wrong::Connection(Code::ExcessiveLoad)));
        let mut out = BytesMut::new();
        put_frame(&mut out, frame::HEADERS, 1_001);
        assert_eq!(run(&out.freeze(), 64), Err(Wrong::Section));
    }

    #[test]
    fn a_stream_of_a_session_is_known_by_its_first_word() {
        let mut out = BytesMut::new();
        put_varint(&mut out, frame::WEBTRANSPORT);
        put_varint(&mut out, 4);
        out.extend_from_slice(b"rest");
        let mut input = out.freeze();
        assert_eq!(Receiving::new(9).feed(&mut input), Ok(Some(Piece::Session(4))));
        assert_eq!(&input[..], b"rest");
    }

    proptest! {
        #[test]
        fn any_bytes_are_pieces_or_a_mistake(bytes: Vec<u8>, step in 1_usize..40) {
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(run(&bytes, step), run(&bytes, bytes.len().max(1)));
        }
    }
}
