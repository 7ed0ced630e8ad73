//! What WebTransport adds to the wire of HTTP/3: capsules (RFC 9297, section 3.2), the numbers of errors, the names of
//! protocols inside a session.

use bytes::{Buf, Bytes, BytesMut};

use crate::transports::http3::codec::{put_varint, take_varint, varint_len};

/// The first of the codes of HTTP/3 that stand for those of sessions (WebTransport over HTTP/3, section 4.4).
const FIRST: u64 = 0x52e4_a40f_a8db;
/// The last.
const LAST: u64 = 0x52e5_ac98_3162;
/// Closes a session.
const CLOSE: u64 = 0x2843;
/// Asks to come to an end.
const DRAIN: u64 = 0x78ae;
/// The longest text a close may have (section 6).
pub const MAX_TEXT: usize = 1_024;
/// Bytes of the header of a capsule.
const HEADER: usize = 16;

/// The code of HTTP/3 for one of a session.
#[must_use]
pub fn to_http3(code: u64) -> u64 {
    let code = code.min(u64::from(u32::MAX));
    FIRST + code + code / 0x1e
}

/// The code of a session that one of HTTP/3 stands for. Others stand for none: 0.
#[must_use]
pub const fn from_http3(code: u64) -> u64 {
    // One in 31 is reserved for greasing.
    if code < FIRST || code > LAST || (code - 0x21).is_multiple_of(0x1f) {
        return 0;
    }
    let shifted = code - FIRST;
    shifted - shifted / 0x1f
}

/// What one end says of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capsule {
    /// It is over.
    Close {
        /// Why.
        code: u32,
        /// The same in words.
        text: String,
    },
    /// It is to come to an end.
    Drain,
}

impl Capsule {
    /// Appends it.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Close { code, text } => {
                let mut end = text.len().min(MAX_TEXT);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                let text = text.get(..end).unwrap_or_default();
                put_varint(out, CLOSE);
                put_varint(out, 4 + text.len() as u64);
                out.extend_from_slice(&code.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Self::Drain => {
                put_varint(out, DRAIN);
                put_varint(out, 0);
            }
        }
    }
}

/// A capsule that is not laid out as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Reads capsules that come in pieces. Keeps at most one close; capsules of other types are passed over.
#[derive(Debug, Default)]
pub struct Capsules {
    partial: BytesMut,
    skip: u64,
}

impl Capsules {
    /// Takes bytes and gives the next capsule; `None` when all were taken. To be called until then.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Option<Capsule>, Malformed> {
        loop {
            if self.skip > 0 {
                let count = usize::try_from(self.skip).unwrap_or(usize::MAX).min(input.len());
                input.advance(count);
                self.skip -= count as u64;
                if self.skip > 0 {
                    return Ok(None);
                }
            }
            let room = (HEADER + 4 + MAX_TEXT).saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&input.split_to(room.min(input.len())));
            let mut rest = &self.partial[..];
            let (Some(kind), Some(length)) = (take_varint(&mut rest), take_varint(&mut rest)) else { return Ok(None) };
            let header = self.partial.len() - rest.len();
            if kind != CLOSE && kind != DRAIN {
                let here = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
                self.skip = length - here as u64;
                self.partial.advance(header + here);
                continue;
            }
            let length = usize::try_from(length).ok().filter(|l| *l <= 4 + MAX_TEXT).ok_or(Malformed)?;
            let Some(mut body) = rest.get(..length) else { return Ok(None) };
            let capsule = if kind == DRAIN {
                Capsule::Drain
            } else {
                if body.len() < 4 {
                    return Err(Malformed);
                }
                let code = body.get_u32();
                Capsule::Close { code, text: std::str::from_utf8(body).map_err(|_| Malformed)?.to_owned() }
            };
            self.partial.advance(header + length);
            return Ok(Some(capsule));
        }
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.partial.is_empty() && self.skip == 0
    }
}

/// What stands before a datagram of the session whose CONNECT came on this stream (RFC 9297, section 2.1).
#[must_use]
pub fn datagram(stream: u64, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 8);
    put_varint(&mut out, stream / 4);
    out.extend_from_slice(payload);
    out.freeze()
}

/// Bytes that [`datagram`] puts in front.
#[must_use]
pub const fn datagram_header(stream: u64) -> usize {
    varint_len(stream / 4)
}

/// The stream a datagram belongs to, which is taken off it.
#[must_use]
pub fn datagram_of(bytes: &mut Bytes) -> Option<u64> {
    let mut read = &bytes[..];
    let quarter = take_varint(&mut read)?;
    let header = bytes.len() - read.len();
    bytes.advance(header);
    quarter.checked_mul(4)
}

/// What stands at the beginning of a stream of the session whose CONNECT came on stream `session`.
#[must_use]
pub fn opening(kind: u64, session: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(10);
    put_varint(&mut out, kind);
    put_varint(&mut out, session);
    out.freeze()
}

/// The protocols of a list of strings (RFC 8941, sections 3.1 and 3.3.3), as `wt-available-protocols` has it. What is no
/// such list counts as none.
#[must_use]
pub fn protocols(text: &str) -> Vec<String> {
    let mut rest = text.trim_matches(' ');
    let mut all = Vec::new();
    while let Some(begin) = rest.strip_prefix('"') {
        let mut name = String::new();
        let mut chars = begin.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => name.push(escaped),
                    _ => return Vec::new(),
                },
                Some((_, c @ ' '..='~')) => name.push(c),
                _ => return Vec::new(),
            }
        };
        all.push(name);
        rest = begin.get(end + 1..).unwrap_or_default();
        // Parameters mean nothing here.
        let next = rest.find(',').unwrap_or(rest.len());
        rest = rest.get(next..).unwrap_or_default();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start_matches([' ', '\t']),
            None => return all,
        }
    }
    Vec::new()
}

/// One protocol as a string of RFC 8941.
#[must_use]
pub fn protocol(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_go_there_and_back_past_those_for_greasing() {
        assert_eq!((to_http3(0), to_http3(u64::from(u32::MAX))), (FIRST, LAST));
        for code in [0, 1, 0x1d, 0x1e, 0x1f, 1_000_000, u64::from(u32::MAX)] {
            assert_eq!(from_http3(to_http3(code)), code);
            assert_ne!((to_http3(code) - 0x21) % 0x1f, 0, "{code} is greased");
        }
        assert_eq!((from_http3(FIRST - 1), from_http3(LAST + 1), from_http3(0x10c)), (0, 0, 0));
    }

    #[test]
    fn capsules_come_in_any_pieces() {
        let close = Capsule::Close { code: 7, text: "bye".to_owned() };
        let mut out = BytesMut::new();
        put_varint(&mut out, 0x21);
        put_varint(&mut out, 3_000);
        out.extend_from_slice(&[0; 3_000]);
        Capsule::Drain.encode(&mut out);
        close.encode(&mut out);
        let all = out.freeze();
        for step in [1, 2, 3, 7, 1_000, 4_000] {
            let mut capsules = Capsules::default();
            let mut got = Vec::new();
            let mut rest = all.clone();
            while !rest.is_empty() {
                let mut input = rest.split_to(step.min(rest.len()));
                while let Some(capsule) = capsules.feed(&mut input).unwrap() {
                    got.push(capsule);
                }
            }
            assert_eq!(got, [Capsule::Drain, close.clone()], "by {step}");
            assert!(capsules.is_whole());
        }
    }

    #[test]
    fn a_close_has_a_code_and_words() {
        for body in [&[0x68, 0x43, 3, 0, 0, 0][..], &[0x68, 0x43, 5, 0, 0, 0, 0, 0xff], &[0x68, 0x43, 0x44, 0x05]] {
            let fed = Capsules::default().feed(&mut Bytes::copy_from_slice(body));
            assert_eq!(fed, Err(Malformed), "{body:x?}");
        }
        let mut out = BytesMut::new();
        Capsule::Close { code: 1, text: "ä".repeat(1_000) }.encode(&mut out);
        let read = Capsules::default().feed(&mut out.freeze()).unwrap();
        assert_eq!(read, Some(Capsule::Close { code: 1, text: "ä".repeat(512) }));
    }

    #[test]
    fn protocols_are_lists_of_strings() {
        assert_eq!(protocols(r#""moq-00", "a\"b";q=1 ,"c""#), ["moq-00", "a\"b", "c"]);
        for wrong in ["", "moq", "\"a", "\"a\",", "\"a\\x\"", "\"\u{e4}\""] {
            assert!(protocols(wrong).is_empty(), "{wrong}");
        }
        assert_eq!(protocols(&protocol("x\"y\\")), ["x\"y\\"]);
    }

    #[test]
    fn datagrams_name_their_session() {
        let mut bytes = datagram(400, b"hello");
        assert_eq!(bytes.len(), 5 + datagram_header(400));
        assert_eq!((datagram_of(&mut bytes), &bytes[..]), (Some(400), &b"hello"[..]));
        assert_eq!(datagram_of(&mut Bytes::new()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_capsules_or_a_mistake(bytes: Vec<u8>) {
            let mut capsules = Capsules::default();
            let mut input = Bytes::from(bytes);
            while let Ok(Some(_)) = capsules.feed(&mut input) {}
        }

        #[test]
        fn any_text_is_a_list_or_none(text: String) {
            let _list = protocols(&text);
        }
    }
}
