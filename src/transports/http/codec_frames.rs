//! Watches the frames of an HTTP/2 client for those that cost work and carry nothing (RFC 9113, section 10.5): resets,
//! settings, pings, window updates, empty frames, continuations.
//!
//! Bytes come in as they are read, behind the preface; the answer is whether they may go on. It is an account: such a
//! frame takes from it, a head and a body put something in, and so does every byte that was sent to the client, since
//! answers are acknowledged by window updates. Nobody who uses HTTP/2 for requests comes near its end.

/// What the account holds at the beginning, and at most.
const MOST: i64 = 2_000;
/// What a head puts in, and what a reset takes: more, so that opening and resetting streams costs.
const HEAD: i64 = 4;
const RESET: i64 = 6;
/// What a frame with a body puts in.
const BODY: i64 = 2;
/// What another frame takes.
const OTHER: i64 = 1;
/// Bytes sent that put one in.
const SENT: u64 = 512;
/// Bytes of a frame's header (section 4.1).
const HEADER: usize = 9;
/// Types of frames (section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
/// Flags of frames.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The watch over one connection.
#[derive(Debug)]
pub struct FrameWatch {
    account: i64,
    /// Bytes of the preface, or of a payload, that are passed over.
    skip: u64,
    header: [u8; HEADER],
    /// How much of the header has come.
    have: usize,
    sent: u64,
}

/// Looks at the frames that go to a client for those by which the library for HTTP/2 refuses a request before anybody
/// sees it, which it tells nobody: a reset with PROTOCOL_ERROR, and 431, an answer that has a status and nothing else.
#[derive(Debug, Default)]
pub struct AnswerWatch {
    /// Bytes of a payload that are passed over.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
    /// The payload of a frame that may be one of them.
    payload: [u8; ALONE],
    wanted: usize,
    got: usize,
}

/// What was refused by frames on their way to a client.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Refusals {
    /// Requests that broke the rules of HTTP/2.
    pub malformed: u32,
    /// Heads that were too large.
    pub large: u32,
}

/// PROTOCOL_ERROR (section 7).
const PROTOCOL_ERROR: [u8; 4] = 1_u32.to_be_bytes();
/// Bytes of a block of fields that has `:status` alone: in full for the first time, later by its number in the table.
/// An answer that we give has a date as well.
const ALONE: usize = 5;
const BY_NUMBER: usize = 1;
/// How such a block begins in full: into the table, under the name that has the number 8, three bytes of Huffman's code
/// (RFC 7541, section 6.2.1).
const STATUS: [u8; 2] = [0x48, 0x83];

impl AnswerWatch {
    /// Looks at what is written next.
    pub fn look(&mut self, mut bytes: &[u8]) -> Refusals {
        let mut found = Refusals::default();
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                self.skip -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
            } else if self.have < HEADER {
                bytes = fill(&mut self.header, &mut self.have, HEADER, bytes);
                if self.have == HEADER {
                    self.begins();
                }
            } else {
                bytes = fill(&mut self.payload, &mut self.got, self.wanted, bytes);
            }
            if self.have == HEADER && self.got == self.wanted {
                self.ends(&mut found);
            }
        }
        found
    }

    fn begins(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let wanted = match kind {
            RST_STREAM => length == PROTOCOL_ERROR.len(),
            HEADERS => flags & END_STREAM != 0 && (length == ALONE || length == BY_NUMBER),
            _ => false,
        };
        (self.got, self.wanted, self.skip) = if wanted { (0, length, 0) } else { (0, 0, length) };
    }

    fn ends(&mut self, found: &mut Refusals) {
        let payload = self.payload.get(..self.wanted).unwrap_or_default();
        match self.header[3] {
            RST_STREAM if payload == PROTOCOL_ERROR => found.malformed += 1,
            HEADERS if payload.len() == BY_NUMBER || payload.starts_with(&STATUS) => found.large += 1,
            _ => {}
        }
        (self.have, self.got, self.wanted) = (0, 0, 0);
    }
}

/// Takes bytes until there are so many; gives the rest.
fn fill<'a>(place: &mut [u8], have: &mut usize, wanted: usize, bytes: &'a [u8]) -> &'a [u8] {
    let count = wanted.saturating_sub(*have).min(bytes.len());
    let (now, rest) = bytes.split_at(count);
    if let Some(place) = place.get_mut(*have..*have + count) {
        place.copy_from_slice(now);
    }
    *have += count;
    rest
}

/// The account is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood;

impl FrameWatch {
    /// A watch before the preface, which has this many bytes.
    #[must_use]
    pub const fn new(preface: usize) -> Self {
        Self { account: MOST, skip: preface as u64, header: [0; HEADER], have: 0, sent: 0 }
    }

    /// So many bytes were sent to the client.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        let earned = self.sent / SENT;
        self.sent %= SENT;
        self.put(i64::try_from(earned).unwrap_or(MOST));
    }

    /// Looks at what was read next.
    ///
    /// # Errors
    /// [`Flood`], from then on always.
    pub fn look(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= passed as u64;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let (next, rest) = bytes.split_at(1);
            if let (Some(place), Some(byte)) = (self.header.get_mut(self.have), next.first()) {
                *place = *byte;
            }
            self.have += 1;
            bytes = rest;
            if self.have == HEADER {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                let length = u32::from_be_bytes([0, a, b, c]);
                self.skip = u64::from(length);
                self.frame(kind, flags, length);
            }
        }
        if self.account < 0 { Err(Flood) } else { Ok(()) }
    }

    fn frame(&mut self, kind: u8, flags: u8, length: u32) {
        // Once empty it stays so: the connection is at its end.
        if self.account < 0 {
            return;
        }
        match kind {
            HEADERS if length > 0 || flags & END_HEADERS != 0 => self.put(HEAD),
            DATA if length > 0 || flags & END_STREAM != 0 => self.put(BODY),
            RST_STREAM => self.account -= RESET,
            _ => self.account -= OTHER,
        }
    }

    fn put(&mut self, more: i64) {
        if self.account >= 0 {
            self.account = (self.account + more).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], &vec![7; payload]].concat()
    }

    #[test]
    fn refusals_of_the_library_are_seen_in_pieces_of_any_size() {
        let reset = |code: u32| {
            let mut frame = frame(RST_STREAM, 0, 4);
            frame[HEADER..].copy_from_slice(&code.to_be_bytes());
            frame
        };
        let head = |flags: u8, block: &[u8]| {
            let mut frame = frame(HEADERS, flags, block.len());
            frame[HEADER..].copy_from_slice(block);
            frame
        };
        let both = END_STREAM | END_HEADERS;
        let all = [
            frame(4, 0, 36),
            head(END_HEADERS, &[0x88]),
            frame(DATA, 0, 1_000),
            frame(DATA, END_STREAM, 0),
            head(both, &[0x48, 0x83, 1, 2, 3]),
            head(both, &[0xbe]),
            head(both, &[0x88, 0xbf]),
            head(both, &[0x88, 0xbf, 0xbe, 0xc0, 0xc1]),
            reset(1),
            reset(8),
            reset(2),
            frame(7, 0, 8),
            reset(1),
        ]
        .concat();
        for size in 1..all.len() {
            let mut watch = AnswerWatch::default();
            let found = all.chunks(size).map(|piece| watch.look(piece));
            let sum = found.fold((0, 0), |sum, more| (sum.0 + more.malformed, sum.1 + more.large));
            assert_eq!(sum, (2, 2), "{size}");
        }
    }

    fn flood(frames: &[Vec<u8>]) -> Option<usize> {
        let mut watch = FrameWatch::new(24);
        watch.look(&[b'P'; 24]).unwrap();
        let all = frames.concat();
        (0..10_000).find(|_| watch.look(&all).is_err())
    }

    #[test]
    fn frames_that_carry_nothing_come_to_an_end() {
        let most = usize::try_from(MOST).unwrap();
        assert_eq!(flood(&[frame(4, 0, 0)]), Some(most), "settings");
        assert_eq!(flood(&[frame(6, 0, 8)]), Some(most), "pings");
        assert_eq!(flood(&[frame(8, 0, 4)]), Some(most), "window updates");
        assert_eq!(flood(&[frame(DATA, 0, 0)]), Some(most), "empty bodies");
        assert_eq!(flood(&[frame(9, 0, 10)]), Some(most), "continuations");
        let rapid = flood(&[frame(HEADERS, END_HEADERS | END_STREAM, 6), frame(RST_STREAM, 0, 4)]);
        // The first head finds the account full.
        assert_eq!(rapid, Some(most / 2 - 2), "rapid resets");
    }

    #[test]
    fn requests_go_on_for_ever() {
        let get = frame(HEADERS, END_HEADERS | END_STREAM, 20);
        assert_eq!(flood(&[get, frame(8, 0, 4), frame(8, 0, 4), frame(6, 0, 8)]), None);
        assert_eq!(flood(&[frame(HEADERS, END_HEADERS, 20), frame(DATA, 0, 100), frame(DATA, END_STREAM, 0)]), None);
        // A download: four window updates for each KiB.
        let mut watch = FrameWatch::new(0);
        for _ in 0..10_000 {
            watch.sent(2_048);
            watch.look(&frame(8, 0, 4).repeat(4)).unwrap();
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_mean_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..600_usize) {
            let (mut whole, mut cut) = (FrameWatch::new(24), FrameWatch::new(24));
            let (first, second) = bytes.split_at(at.min(bytes.len()));
            let _either = cut.look(first);
            prop_assert_eq!(whole.look(&bytes), cut.look(second));
        }
    }
}
