//! QPACK without its dynamic table (RFC 9204): fields to bytes and back, and what the peer's encoder and decoder may
//! still say on their streams.
//!
//! This end announces a table of no bytes, so each section is read by itself and no stream waits for another. What is
//! read is bounded while it is read: a section cannot unfold into more than it may hold. Huffman coding is `octets`'.

use bytes::{BufMut, Bytes, BytesMut};
use octets::Octets;

use super::codec::Code;
use super::codec_table::{entry, named, valued};

/// What a field counts beside its name and value (RFC 9114, section 4.2.2).
const FIELD: usize = 32;
/// The longest instruction that can be more than a number.
const INSTRUCTION: usize = 11;

/// A field as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, as it was sent: not looked at yet.
    pub name: Bytes,
    /// Its value, as it was sent.
    pub value: Bytes,
}

/// Why a section gave no fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It cannot be decoded: the connection ends.
    Malformed,
    /// It holds more than is allowed: the request is answered by 431.
    TooLarge,
}

/// Reads a section of at most `bytes` (counted as RFC 9114, section 4.2.2 does) and `fields`.
///
/// # Errors
/// See [`Unread`].
pub fn decode(section: &Bytes, bytes: usize, fields: usize) -> Result<Vec<Field>, Unread> {
    let mut reader = Reader { section, at: 0 };
    let mut left = bytes;
    let mut all = Vec::new();
    // Nothing may be asked of a table that has no room (RFC 9204, section 4.5.1.1).
    if reader.number(8)? != 0 {
        return Err(Unread::Malformed);
    }
    let _base = reader.number(7)?;
    while let Some(first) = reader.peek() {
        let rest = left.checked_sub(FIELD).ok_or(Unread::TooLarge)?;
        let field = match first {
            // Indexed, of the static table (section 4.5.2).
            0xc0..=0xff => {
                let (name, value) = entry(reader.number(6)?).ok_or(Unread::Malformed)?;
                Field { name: from(name), value: from(value) }
            }
            // A name of the static table, and a value (section 4.5.4).
            0x50..=0x5f | 0x70..=0x7f => {
                let (name, _) = entry(reader.number(4)?).ok_or(Unread::Malformed)?;
                let room = rest.checked_sub(name.len()).ok_or(Unread::TooLarge)?;
                Field { name: from(name), value: reader.text(7, room)? }
            }
            // Both as they are (section 4.5.6).
            0x20..=0x3f => {
                let name = reader.text(3, rest)?;
                let room = rest.checked_sub(name.len()).ok_or(Unread::TooLarge)?;
                Field { name, value: reader.text(7, room)? }
            }
            // Of the dynamic table.
            0x00..=0x1f | 0x40..=0x4f | 0x60..=0x6f | 0x80..=0xbf => return Err(Unread::Malformed),
        };
        left = rest.checked_sub(field.name.len() + field.value.len()).ok_or(Unread::TooLarge)?;
        if all.len() == fields {
            return Err(Unread::TooLarge);
        }
        all.push(field);
    }
    Ok(all)
}

const fn from(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

struct Reader<'a> {
    section: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.section.get(self.at).copied()
    }

    /// A number whose first byte keeps `bits` for it (RFC 7541, section 5.1).
    fn number(&mut self, bits: u32) -> Result<u64, Unread> {
        let mut rest = self.section.get(self.at..).unwrap_or_default();
        let before = rest.len();
        let value = number(&mut rest, bits).map_err(|_| Unread::Malformed)?.ok_or(Unread::Malformed)?;
        self.at += before - rest.len();
        Ok(value)
    }

    /// Text whose length keeps `bits` of the first byte, behind a bit that says whether it is in Huffman coding.
    fn text(&mut self, bits: u32, most: usize) -> Result<Bytes, Unread> {
        let huffman = self.peek().ok_or(Unread::Malformed)? & (1 << bits) != 0;
        let length = usize::try_from(self.number(bits)?).map_err(|_| Unread::Malformed)?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.section.len()).ok_or(Unread::Malformed)?;
        let coded = self.section.slice(self.at..end);
        self.at = end;
        if !huffman {
            return if length <= most { Ok(coded) } else { Err(Unread::TooLarge) };
        }
        // The shortest code has five bits, so more than this cannot come of it; what does not fit into what is allowed
        // is told from what is no code at all.
        let longest = length.saturating_mul(8) / 5 + 1;
        if longest / 6 > most {
            // The longest code has thirty bits: even of those there are too many.
            return Err(Unread::TooLarge);
        }
        let mut octets = Octets::with_slice(&coded);
        let text = octets.get_huffman_decoded_with_max_length(longest).map_err(|_| Unread::Malformed)?;
        if text.len() <= most { Ok(text.into()) } else { Err(Unread::TooLarge) }
    }
}

/// Reads a number and takes it off. `Ok(None)`: not all of it has come.
///
/// # Errors
/// It is larger than any number can be.
fn number(bytes: &mut &[u8], bits: u32) -> Result<Option<u64>, ()> {
    let mask = (1_u64 << bits) - 1;
    let Some((first, mut rest)) = bytes.split_first() else { return Ok(None) };
    let mut value = u64::from(*first) & mask;
    if value == mask {
        let mut shift = 0_u32;
        loop {
            let Some((byte, after)) = rest.split_first() else { return Ok(None) };
            rest = after;
            let more = u64::from(byte & 0x7f);
            if shift > 56 {
                return Err(());
            }
            value = value.checked_add(more << shift).ok_or(())?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *bytes = rest;
    Ok(Some(value))
}

/// Begins a section: nothing of it needs the dynamic table.
pub fn begin(out: &mut BytesMut) {
    out.put_u16(0);
}

/// Appends a field to a section. The name is in lower case.
pub fn put(out: &mut BytesMut, name: &str, value: &[u8]) {
    let Some(first) = named(name) else {
        put_number(out, 0x20, 3, name.len());
        out.extend_from_slice(name.as_bytes());
        put_text(out, value);
        return;
    };
    match valued(first, value) {
        Some(index) => put_number(out, 0xc0, 6, index),
        None => {
            put_number(out, 0x50, 4, first);
            put_text(out, value);
        }
    }
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    put_number(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

fn put_number(out: &mut BytesMut, first: u8, bits: u32, value: usize) {
    let mask = (1_usize << bits) - 1;
    let Some(mut rest) = value.checked_sub(mask) else {
        out.put_u8(first | u8::try_from(value).unwrap_or(0));
        return;
    };
    out.put_u8(first | u8::try_from(mask).unwrap_or(0xff));
    while rest >= 0x80 {
        out.put_u8(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
        rest >>= 7;
    }
    out.put_u8(u8::try_from(rest).unwrap_or(0));
}

/// What the peer's encoder says on its stream.
#[derive(Debug, Default)]
pub struct FromEncoder {
    partial: Vec<u8>,
}

impl FromEncoder {
    /// Takes what has come. Only a capacity of 0 may be said to a table that has none (RFC 9204, section 4.3.1).
    ///
    /// # Errors
    /// [`Code::QpackEncoderStreamError`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Code> {
        each(&mut self.partial, bytes, Code::QpackEncoderStreamError, |first| match first {
            0x20..=0x3f => Some(5),
            _ => None,
        })?
        .into_iter()
        .all(|(_, capacity)| capacity == 0)
        .then_some(())
        .ok_or(Code::QpackEncoderStreamError)
    }
}

/// What the peer's decoder says on its stream.
#[derive(Debug, Default)]
pub struct FromDecoder {
    partial: Vec<u8>,
}

impl FromDecoder {
    /// Takes what has come. Nothing was ever inserted for it, so all it may say is that it gives up streams
    /// (RFC 9204, section 4.4).
    ///
    /// # Errors
    /// [`Code::QpackDecoderStreamError`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Code> {
        each(&mut self.partial, bytes, Code::QpackDecoderStreamError, |first| match first {
            0x40..=0x7f => Some(6),
            _ => None,
        })
        .map(drop)
    }
}

/// Splits what has come into instructions that are one number each; `bits` says how many of the first byte belong to
/// it, or that this instruction must not be.
fn each(
    partial: &mut Vec<u8>,
    bytes: &[u8],
    wrong: Code,
    bits: impl Fn(u8) -> Option<u32>,
) -> Result<Vec<(u8, u64)>, Code> {
    partial.extend_from_slice(bytes);
    let mut rest = partial.as_slice();
    let mut all = Vec::new();
    while let Some(first) = rest.first().copied() {
        let bits = bits(first).ok_or(wrong)?;
        match number(&mut rest, bits).map_err(|()| wrong)? {
            Some(value) => all.push((first, value)),
            None => break,
        }
    }
    if rest.len() > INSTRUCTION {
        return Err(wrong);
    }
    *partial = rest.to_vec();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn section(fields: &[(&str, &[u8])]) -> Bytes {
        let mut out = BytesMut::new();
        begin(&mut out);
        fields.iter().for_each(|(name, value)| put(&mut out, name, value));
        out.freeze()
    }

    fn read(section: &[u8]) -> Result<Vec<(String, String)>, Unread> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let all = decode(&Bytes::copy_from_slice(section), 4_096, 100)?;
        Ok(all.iter().map(|field| (text(&field.name), text(&field.value))).collect())
    }

    #[test]
    fn the_example_of_the_specification() {
        // RFC 9204, appendix B.1.
        let bytes = b"\x00\x00\x51\x0b/index.html";
        assert_eq!(read(bytes), Ok(vec![(":path".to_owned(), "/index.html".to_owned())]));
        assert_eq!(&section(&[(":path", b"/index.html")])[..], bytes);
    }

    #[test]
    fn huffman_coding_is_read() {
        // RFC 7541, appendix C.4.1: www.example.com.
        let mut bytes = vec![0, 0, 0x50, 0x8c];
        bytes.extend([0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]);
        assert_eq!(read(&bytes), Ok(vec![(":authority".to_owned(), "www.example.com".to_owned())]));
        // Eight bits of padding are no padding.
        assert_eq!(read(&[0, 0, 0x50, 0x81, 0xff]), Err(Unread::Malformed));
    }

    #[test]
    fn what_needs_the_dynamic_table_is_malformed() {
        for bytes in [&[][..], &[0], &[1, 0, 0x80], &[0, 0, 0x80], &[0, 0, 0x10], &[0, 0, 0x40, 0], &[0, 0, 0, 0]] {
            assert_eq!(read(bytes), Err(Unread::Malformed), "{bytes:x?}");
        }
        assert_eq!(read(&[0, 0, 0xff, 0x24]), Err(Unread::Malformed), "the table ends at 98");
        assert_eq!(
            read(&[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(Unread::Malformed)
        );
    }

    #[test]
    fn a_section_cannot_unfold_beyond_its_limit() {
        // One byte each, 78 bytes of name and value each.
        let mut bomb = vec![0, 0];
        bomb.extend([0xc0 | 52; 4_000]);
        assert_eq!(read(&bomb), Err(Unread::TooLarge));
        let many: Vec<(&str, &[u8])> = vec![("a", b""); 101];
        assert_eq!(decode(&section(&many), 1 << 20, 100), Err(Unread::TooLarge));
        assert_eq!(decode(&section(&many), 1 << 20, 101).map(|all| all.len()), Ok(101));
        let long = section(&[("a", &[b'x'; 5_000])]);
        assert_eq!(decode(&long, 4_096, 100), Err(Unread::TooLarge));
        assert_eq!(decode(&long, 5_033, 100).map(|all| all.len()), Ok(1));
    }

    #[test]
    fn instructions_may_come_in_pieces_and_only_harmless_ones() {
        let mut encoder = FromEncoder::default();
        assert_eq!(encoder.feed(&[0x20, 0x20]), Ok(()));
        assert_eq!(encoder.feed(&[0x3f]), Ok(()), "more is to come");
        assert_eq!(encoder.feed(&[0x01]), Err(Code::QpackEncoderStreamError), "a capacity of 32");
        for wrong in [0x80, 0x40, 0x00] {
            assert_eq!(FromEncoder::default().feed(&[wrong]), Err(Code::QpackEncoderStreamError));
        }
        let mut decoder = FromDecoder::default();
        assert_eq!(decoder.feed(&[0x41, 0x7f]), Ok(()));
        assert_eq!(decoder.feed(&[0x80, 0x01]), Ok(()));
        // An increment of 0, one of 1, and an acknowledged section.
        for wrong in [0x00, 0x01, 0x80] {
            assert_eq!(FromDecoder::default().feed(&[wrong]), Err(Code::QpackDecoderStreamError));
        }
    }

    proptest! {
        #[test]
        fn fields_come_back(fields in prop::collection::vec(("[a-z-]{1,40}", "[ -~]{0,200}"), 0..20)) {
            let all: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            let back = decode(&section(&all), 1 << 20, 100).unwrap();
            prop_assert_eq!(back.len(), all.len());
            for (field, (name, value)) in back.iter().zip(all) {
                prop_assert_eq!((&field.name[..], &field.value[..]), (name.as_bytes(), value));
            }
        }

        #[test]
        fn any_bytes_are_fields_or_a_mistake(bytes: Vec<u8>) {
            if let Ok(fields) = decode(&bytes.into(), 1_000, 10) {
                prop_assert!(fields.iter().map(|f| f.name.len() + f.value.len() + FIELD).sum::<usize>() <= 1_000);
            }
        }
    }
}
