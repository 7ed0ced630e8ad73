//! What is said and read in draft 18: SETUP, one request of each kind, the stream of a subgroup.

use std::time::Duration;

pub const SETUP: u64 = 0x2f00;
pub const SUBSCRIBE: u64 = 0x3;
pub const SUBSCRIBE_OK: u64 = 0x4;
pub const REQUEST_ERROR: u64 = 0x5;
pub const PUBLISH_NAMESPACE: u64 = 0x6;
pub const REQUEST_OK: u64 = 0x7;
pub const NAMESPACE: u64 = 0x8;
pub const SUBSCRIBE_NAMESPACE: u64 = 0x50;

/// The one track there is.
const NAMESPACE_NAME: &[u8] = b"bench";
const TRACK: &[u8] = b"video";
/// What the publisher calls it in its session.
const ALIAS: u64 = 1;
/// Neither first nor last.
const PRIORITY: u8 = 128;
/// A subgroup that has number 0 unsaid and is all of its group.
const WHOLE_GROUP: u64 = 0x18;

/// A number of variable length: as many ones lead the first byte as bytes follow it.
pub fn put_number(number: u64, out: &mut Vec<u8>) {
    let follow = (0..8).find(|follow| number >> (7 + 7 * follow) == 0).unwrap_or(8);
    let bytes = number.to_be_bytes();
    match follow {
        8 => out.push(0xff),
        follow => out.push(!(0xff_u8 >> follow) | (number >> (8 * follow)) as u8),
    }
    out.extend_from_slice(&bytes[8 - follow as usize..]);
}

/// The number at the front of `input`, which is shortened by it; `None`: it is not all there.
pub fn number(input: &mut &[u8]) -> Option<u64> {
    let first = *input.first()?;
    let follow = first.leading_ones() as usize;
    let rest = input.get(1..=follow)?;
    let start = if follow >= 7 { 0 } else { u64::from(first & (0x7f >> follow)) };
    let number = rest.iter().fold(start, |number, byte| number << 8 | u64::from(*byte));
    *input = &input[1 + follow..];
    Some(number)
}

fn bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(input)?).ok()?;
    let taken = input.get(..length)?;
    *input = &input[length..];
    Some(taken)
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn message(kind: u64, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut out, mut fields) = (Vec::new(), Vec::new());
    put_number(kind, &mut out);
    body(&mut fields);
    out.extend_from_slice(&(fields.len() as u16).to_be_bytes());
    out.append(&mut fields);
    out
}

/// The beginning of the control stream: the scope `/` of `localhost`.
pub fn setup() -> Vec<u8> {
    message(SETUP, |body| {
        put_number(0x1, body);
        put_bytes(b"/", body);
        put_number(0x5 - 0x1, body);
        put_bytes(b"localhost", body);
    })
}

/// Announces the namespace, in request 0.
pub fn publish_namespace() -> Vec<u8> {
    message(PUBLISH_NAMESPACE, |body| {
        put_number(0, body);
        put_number(1, body);
        put_bytes(NAMESPACE_NAME, body);
        put_number(0, body);
    })
}

/// Asks for the track, in request 0; what filter there is, is the relay's default.
pub fn subscribe() -> Vec<u8> {
    message(SUBSCRIBE, |body| {
        put_number(0, body);
        put_number(1, body);
        put_bytes(NAMESPACE_NAME, body);
        put_bytes(TRACK, body);
        put_number(0, body);
    })
}

/// Grants a subscription of the track.
pub fn subscribe_ok() -> Vec<u8> {
    message(SUBSCRIBE_OK, |body| {
        put_number(ALIAS, body);
        put_number(0, body);
    })
}

/// Grants a SUBSCRIBE_NAMESPACE, and names the one namespace as it asked: without the prefix.
pub fn namespaces(body: &[u8]) -> Vec<u8> {
    let mut input = body;
    let asked = number(&mut input).and_then(|_| number(&mut input));
    let mut answer = message(REQUEST_OK, |body| put_number(0, body));
    answer.append(&mut message(NAMESPACE, |body| match asked {
        Some(0) => {
            put_number(1, body);
            put_bytes(NAMESPACE_NAME, body);
        }
        _ => put_number(0, body),
    }));
    answer
}

/// The message at the front of `input`, its type and fields; `None`: it is not all there.
pub fn read_message(input: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = input;
    let kind = number(&mut rest)?;
    let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
    Some((kind, rest.get(2..2 + length)?))
}

/// Whether this SUBSCRIBE asks for the track.
pub fn asks_for_the_track(body: &[u8]) -> bool {
    let mut input = body;
    let mut fields = || {
        number(&mut input)?;
        let count = number(&mut input)?;
        let namespace = bytes(&mut input)?;
        Some((count, namespace, bytes(&mut input)?))
    };
    fields() == Some((1, NAMESPACE_NAME, TRACK))
}

/// A stream that is one group of one object of `size` bytes, which says when it was sent.
pub fn group(sequence: u64, sent: Duration, size: usize, out: &mut Vec<u8>) {
    out.clear();
    put_number(WHOLE_GROUP, out);
    put_number(ALIAS, out);
    put_number(sequence, out);
    out.push(PRIORITY);
    put_number(0, out);
    put_number(size as u64, out);
    let end = out.len() + size;
    out.extend_from_slice(&(sent.as_nanos() as u64).to_be_bytes());
    out.resize(end, 0x5a);
}

/// Reads such a stream while it arrives.
#[derive(Default)]
pub struct GroupReader {
    head: Vec<u8>,
    /// When the object was sent, and how many bytes it has, from its head on.
    object: Option<(Duration, u64)>,
    got: u64,
    /// It is no subgroup, but the relay's control stream.
    other: bool,
}

impl GroupReader {
    /// Takes what came; once the last byte of the object is there, when it was sent, and its length.
    ///
    /// # Panics
    /// If it is not what [`group`] writes: a relay that changes an object is not to be measured.
    pub fn take(&mut self, chunk: &[u8]) -> Option<(Duration, u64)> {
        if self.other {
            return None;
        }
        if self.object.is_some() {
            self.got += chunk.len() as u64;
        } else {
            self.head.extend_from_slice(chunk);
            self.other = number(&mut &self.head[..]) == Some(SETUP);
            if self.other {
                return None;
            }
            let (sent, length, rest) = head(&self.head)?;
            self.object = Some((sent, length));
            self.got = rest;
            self.head = Vec::new();
        }
        let (sent, length) = self.object?;
        assert!(self.got <= length, "more than one object in a group");
        (self.got == length).then_some((sent, length))
    }
}

/// The head of a subgroup and its first object: when that was sent, its length, how many bytes of it are there.
fn head(input: &[u8]) -> Option<(Duration, u64, u64)> {
    let mut rest = input;
    let kind = number(&mut rest)?;
    assert!(kind & 0x10 != 0 && kind < 0x80, "a stream of type {kind:#x}");
    let (_alias, _group) = (number(&mut rest)?, number(&mut rest)?);
    if kind & 0x6 == 0x4 {
        assert_eq!(number(&mut rest)?, 0, "another subgroup");
    }
    if kind & 0x20 == 0 {
        rest = rest.get(1..)?;
    }
    assert_eq!(number(&mut rest)?, 0, "another object");
    if kind & 0x1 != 0 {
        bytes(&mut rest)?;
    }
    let length = number(&mut rest)?;
    let sent = u64::from_be_bytes(rest.get(..8)?.try_into().ok()?);
    Some((Duration::from_nanos(sent), length, rest.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for (given, first) in [
            (0, 0),
            (127, 0x7f),
            (128, 0x80),
            (0x2f00, 0xaf),
            (1 << 14, 0xc0),
            (1 << 55, 0xfe),
            (1 << 56, 0xff),
            (u64::MAX, 0xff),
        ] {
            let mut out = Vec::new();
            put_number(given, &mut out);
            assert_eq!(out[0], first, "{given:#x}");
            let mut input = &out[..];
            assert_eq!(number(&mut input), Some(given));
            assert!(input.is_empty());
            assert_eq!(number(&mut &out[..out.len() - 1]), None);
        }
    }

    #[test]
    fn a_group_is_read_however_it_is_cut() {
        let mut whole = Vec::new();
        group(300, Duration::from_nanos(77), 1_200, &mut whole);
        for step in [1, 2, 3, 7, 100, 2_000] {
            let mut reader = GroupReader::default();
            let ends: Vec<_> = whole.chunks(step).map(|chunk| reader.take(chunk)).collect();
            assert_eq!(ends.last().copied().flatten(), Some((Duration::from_nanos(77), 1_200)));
            assert_eq!(ends.iter().flatten().count(), 1);
        }
    }

    #[test]
    fn the_publisher_knows_what_subscribers_ask() {
        let asked = subscribe();
        let (kind, body) = read_message(&asked).expect("whole");
        assert_eq!(kind, SUBSCRIBE);
        assert!(asks_for_the_track(body));
        assert!(!asks_for_the_track(&body[..body.len() - 3]));
        assert_eq!(read_message(&asked[..asked.len() - 1]), None);
    }
}
