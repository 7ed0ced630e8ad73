//! What may be wrong with bytes of a peer, and what it costs; what cannot be said in a draft; numbers of variable length.
//!
//! Decoders take bytes as they arrive, cut anywhere: `Ok(None)` is "more are needed". They keep no more than the head
//! that is being read, whose parts are bounded; what follows a head, the payload of an object, passes through as slices
//! of what came in. Each mistake says by [`Mistake::ends`] how far it reaches: most rules of MoQT that are broken on the
//! wire end the session, and only those do.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::model::Draft;
use super::model_codes::{RequestCode, ResetCode, SessionCode};
use super::model_names::NameError;

/// The longest body of a control message: its length has two bytes (section 10).
pub const MAX_MESSAGE: usize = 65_535;

/// The longest explanation of an error (section 1.4.4).
pub const MAX_REASON: usize = 1024;

/// The longest URI in GOAWAY and redirects (section 10.4).
pub const MAX_URI: usize = 8192;

/// The longest value of a property or option (section 1.4.3).
pub const MAX_VALUE: usize = 65_535;

/// The most bytes of an object's properties that are read; the draft names no limit.
pub const MAX_PROPERTIES: usize = 65_535;

/// The most ranges that the filters of one message may have together. What was announced in SETUP may be less.
pub const MAX_RANGES: usize = 256;

/// How far a mistake of the peer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// The request that carries it is refused. On a control stream, where there is no request, it ends the session.
    Request(RequestCode),
    /// The stream is stopped; its objects are lost, the subscription goes on.
    Stream(ResetCode),
    /// The track is malformed: all its subscriptions and fetches end, downstream as well; nothing of it is passed on.
    Track,
    /// The session is closed.
    Session(SessionCode),
}

/// What is wrong with bytes of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mistake {
    /// A message ends before its fields do.
    Truncated,
    /// A message goes on after its fields.
    TrailingBytes,
    /// A message of a type that is not known.
    UnknownMessage(u64),
    /// A unidirectional stream of a type that is not known.
    UnknownStream(u64),
    /// A datagram of a type that is not known.
    UnknownDatagram(u64),
    /// A parameter that the draft does not have.
    UnknownParameter(u64),
    /// A parameter that does not belong into this message.
    MisplacedParameter(u64),
    /// A parameter or option twice that may be there once.
    Duplicate(u64),
    /// A parameter or option with a value that it must not have.
    InvalidValue(u64),
    /// Numbers that are written as distances add up to more than 64 bits.
    Overflow,
    /// A value longer than [`MAX_VALUE`].
    ValueTooLong,
    /// Properties of a track that are not laid out as such.
    MalformedProperties,
    /// A token that is not laid out as such.
    MalformedToken,
    /// A token in SETUP that refers to an earlier one.
    EarlyTokenAlias,
    /// More tokens than are read.
    TooManyTokens,
    /// A name out of bounds.
    Name(NameError),
    /// An explanation longer than [`MAX_REASON`].
    ReasonTooLong,
    /// A URI longer than [`MAX_URI`].
    UriTooLong,
    /// A URI that is not text.
    UriNotText,
    /// A path in SETUP that is none.
    MalformedPath,
    /// An authority in SETUP that is none.
    MalformedAuthority,
    /// A range filter that cannot be.
    InvalidFilter,
    /// A fetch of a form that is not known.
    UnknownFetch(u64),
    /// A truth value other than 0 and 1.
    NotABool(u8),
    /// A status that no object has.
    UnknownStatus(u64),
    /// Properties beside a status: only objects have them.
    PropertiesOfStatus,
    /// A datagram that announces properties and has none.
    NoProperties,
    /// Flags of an object in a fetch that are not defined.
    UnknownFetchFlags(u64),
    /// An object in a fetch that refers to one before it where there is none.
    NothingBefore,
    /// A stream that ends in the middle of an object or a head.
    CutOff,
    /// Properties of an object longer than [`MAX_PROPERTIES`].
    PropertiesTooLong,
    /// Properties of an object that are not laid out as such, or must not be there.
    MalformedObject,
}

impl Mistake {
    /// What it costs.
    #[must_use]
    pub const fn ends(self) -> Ends {
        match self {
            Self::InvalidFilter => Ends::Request(RequestCode::InvalidFilter),
            Self::TooManyTokens => Ends::Request(RequestCode::ExcessiveLoad),
            Self::PropertiesTooLong => Ends::Stream(ResetCode::ExcessiveLoad),
            Self::MalformedObject => Ends::Track,
            Self::MalformedProperties | Self::MalformedToken => Ends::Session(SessionCode::KeyValueFormattingError),
            Self::MalformedPath => Ends::Session(SessionCode::MalformedPath),
            Self::MalformedAuthority => Ends::Session(SessionCode::MalformedAuthority),
            Self::Truncated
            | Self::TrailingBytes
            | Self::UnknownMessage(_)
            | Self::UnknownStream(_)
            | Self::UnknownDatagram(_)
            | Self::UnknownParameter(_)
            | Self::MisplacedParameter(_)
            | Self::Duplicate(_)
            | Self::InvalidValue(_)
            | Self::Overflow
            | Self::ValueTooLong
            | Self::EarlyTokenAlias
            | Self::Name(_)
            | Self::ReasonTooLong
            | Self::UriTooLong
            | Self::UriNotText
            | Self::UnknownFetch(_)
            | Self::NotABool(_)
            | Self::UnknownStatus(_)
            | Self::PropertiesOfStatus
            | Self::NoProperties
            | Self::UnknownFetchFlags(_)
            | Self::NothingBefore
            | Self::CutOff => Ends::Session(SessionCode::ProtocolViolation),
        }
    }

    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::TrailingBytes => "trailing_bytes",
            Self::UnknownMessage(_) => "unknown_message",
            Self::UnknownStream(_) => "unknown_stream",
            Self::UnknownDatagram(_) => "unknown_datagram",
            Self::UnknownParameter(_) => "unknown_parameter",
            Self::MisplacedParameter(_) => "misplaced_parameter",
            Self::Duplicate(_) => "duplicate_parameter",
            Self::InvalidValue(_) => "invalid_value",
            Self::Overflow => "overflow",
            Self::ValueTooLong => "value_too_long",
            Self::MalformedProperties => "malformed_properties",
            Self::MalformedToken => "malformed_token",
            Self::EarlyTokenAlias => "early_token_alias",
            Self::TooManyTokens => "too_many_tokens",
            Self::Name(error) => error.reason(),
            Self::ReasonTooLong => "reason_too_long",
            Self::UriTooLong => "uri_too_long",
            Self::UriNotText => "uri_not_text",
            Self::MalformedPath => "malformed_path",
            Self::MalformedAuthority => "malformed_authority",
            Self::InvalidFilter => "invalid_filter",
            Self::UnknownFetch(_) => "unknown_fetch",
            Self::NotABool(_) => "not_a_bool",
            Self::UnknownStatus(_) => "unknown_status",
            Self::PropertiesOfStatus => "properties_of_status",
            Self::NoProperties => "no_properties",
            Self::UnknownFetchFlags(_) => "unknown_fetch_flags",
            Self::NothingBefore => "nothing_before",
            Self::CutOff => "cut_off",
            Self::PropertiesTooLong => "properties_too_long",
            Self::MalformedObject => "malformed_object",
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownMessage(number) => write!(f, "a message of type {number:#x}"),
            Self::UnknownStream(number) => write!(f, "a stream of type {number:#x}"),
            Self::UnknownDatagram(number) => write!(f, "a datagram of type {number:#x}"),
            Self::UnknownParameter(number) => write!(f, "the parameter {number:#x}, which the draft does not have"),
            Self::MisplacedParameter(number) => write!(f, "the parameter {number:#x} where it must not be"),
            Self::Duplicate(number) => write!(f, "the parameter or option {number:#x} twice"),
            Self::InvalidValue(number) => write!(f, "a value that the parameter {number:#x} must not have"),
            Self::Name(error) => error.fmt(f),
            Self::UnknownFetch(number) => write!(f, "a fetch of type {number:#x}"),
            Self::NotABool(byte) => write!(f, "{byte} where 0 or 1 must be"),
            Self::UnknownStatus(number) => write!(f, "an object of status {number:#x}"),
            Self::UnknownFetchFlags(number) => write!(f, "an object of a fetch with flags {number:#x}"),
            Self::Truncated
            | Self::TrailingBytes
            | Self::Overflow
            | Self::ValueTooLong
            | Self::MalformedProperties
            | Self::MalformedToken
            | Self::EarlyTokenAlias
            | Self::TooManyTokens
            | Self::ReasonTooLong
            | Self::UriTooLong
            | Self::UriNotText
            | Self::MalformedPath
            | Self::MalformedAuthority
            | Self::InvalidFilter
            | Self::PropertiesOfStatus
            | Self::NoProperties
            | Self::NothingBefore
            | Self::CutOff
            | Self::PropertiesTooLong
            | Self::MalformedObject => f.write_str(&self.reason().replace('_', " ")),
        }
    }
}

impl std::error::Error for Mistake {}

impl From<NameError> for Mistake {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

/// Something of ours that cannot be written: a mistake of this end, not of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsayable {
    /// The draft has no words for it.
    NotInDraft {
        /// What.
        what: &'static str,
        /// In which draft.
        draft: Draft,
    },
    /// It does not belong there, or contradicts itself.
    Contradiction(&'static str),
    /// It is longer than its length can say, or than the draft allows.
    TooLong(&'static str),
}

impl fmt::Display for Unsayable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInDraft { what, draft } => write!(f, "{draft} cannot say {what}"),
            Self::Contradiction(what) => write!(f, "{what} cannot be as it is, or not here"),
            Self::TooLong(what) => write!(f, "{what} is too long"),
        }
    }
}

impl std::error::Error for Unsayable {}

/// The bytes that a number takes: 1 to 9 (section 1.4.1).
#[must_use]
pub const fn varint_len(number: u64) -> usize {
    let bits = 64 - number.leading_zeros();
    match bits {
        0..=7 => 1,
        57..=64 => 9,
        _ => bits.div_ceil(7) as usize,
    }
}

/// Writes a number in as few bytes as it needs: as many ones as bytes follow, a zero, then the number (section 1.4.1).
pub fn put_varint(number: u64, out: &mut impl BufMut) {
    let length = varint_len(number);
    if length == 9 {
        out.put_u8(0xff);
        out.put_u64(number);
        return;
    }
    // 0, 10, 110 and so on, at the top of as many bytes as there are.
    let ones = (1u64 << (length - 1)) - 1;
    let marked = ones << (7 * length + 1) | number;
    out.put_uint(marked, length);
}

/// Why reading did not get to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// At least so many more bytes are needed.
    More(usize),
    /// No bytes will help.
    Wrong(Mistake),
}

impl From<Mistake> for Stop {
    fn from(mistake: Mistake) -> Self {
        Self::Wrong(mistake)
    }
}

impl From<NameError> for Stop {
    fn from(error: NameError) -> Self {
        Self::Wrong(Mistake::Name(error))
    }
}

impl Stop {
    /// What it means where no more bytes can come.
    pub(super) const fn at_end(self) -> Mistake {
        match self {
            Self::More(_) => Mistake::Truncated,
            Self::Wrong(mistake) => mistake,
        }
    }
}

/// Reads fields from the front of bytes.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| Stop::More(length - self.rest.len()))?;
        self.rest = rest;
        Ok(taken)
    }

    /// All that is left.
    pub(super) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Stop> {
        let (byte, rest) = self.rest.split_first().ok_or(Stop::More(1))?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Stop> {
        let bytes = self.take(2)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u16::from(*byte)))
    }

    pub(super) fn varint(&mut self) -> Result<u64, Stop> {
        let (first, rest) = self.rest.split_first().ok_or(Stop::More(1))?;
        let follow = first.leading_ones() as usize;
        let (more, rest) = rest.split_at_checked(follow).ok_or_else(|| Stop::More(follow - rest.len()))?;
        // What the first byte has behind its ones and the zero; nothing from 7 ones on.
        let start = u64::from(first & 0x7fu8.checked_shr(follow as u32).unwrap_or(0));
        self.rest = rest;
        Ok(more.iter().fold(start, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Bytes after their length, which is refused if it is more than `max` before any of them is awaited.
    pub(super) fn bytes(&mut self, max: usize, too_long: Mistake) -> Result<&'a [u8], Stop> {
        let length = self.varint()?;
        match usize::try_from(length) {
            Ok(length) if length <= max => self.take(length),
            _ => Err(Stop::Wrong(too_long)),
        }
    }

    /// A reader for bytes after their length, all within these.
    pub(super) fn part(&mut self) -> Result<Self, Stop> {
        Ok(Reader::new(self.bytes(MAX_VALUE, Mistake::ValueTooLong)?))
    }
}

/// Bytes of a head that arrives in pieces; empty as long as heads arrive whole.
#[derive(Debug, Default)]
pub(super) struct Gather {
    partial: BytesMut,
}

impl Gather {
    /// Whether a head has begun and is not whole.
    pub(super) fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.partial.capacity()
    }

    /// Keeps bytes as if they had come before.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
    }

    /// Reads one head from what was kept and the front of `input`, and gives it with its bytes: a slice of `input` if it
    /// is whole there, else a copy. `None`: all of `input` was taken, and more is needed.
    pub(super) fn head<T>(
        &mut self,
        input: &mut Bytes,
        read: impl Fn(&mut Reader<'_>) -> Result<T, Stop>,
    ) -> Result<Option<(T, Bytes)>, Mistake> {
        if self.partial.is_empty() {
            let mut reader = Reader::new(input);
            match read(&mut reader) {
                Ok(value) => {
                    let length = input.len() - reader.remaining();
                    return Ok(Some((value, input.split_to(length))));
                }
                Err(Stop::Wrong(mistake)) => return Err(mistake),
                Err(Stop::More(_)) => self.partial.extend_from_slice(&input.split_to(input.len())),
            }
            return Ok(None);
        }
        loop {
            let mut reader = Reader::new(&self.partial);
            match read(&mut reader) {
                Ok(value) => {
                    let length = self.partial.len() - reader.remaining();
                    return Ok(Some((value, self.partial.split_to(length).freeze())));
                }
                Err(Stop::Wrong(mistake)) => return Err(mistake),
                Err(Stop::More(_)) if input.is_empty() => return Ok(None),
                // Never more than the head still needs, so that nothing behind it is copied.
                Err(Stop::More(missing)) => {
                    let length = missing.clamp(1, input.len());
                    self.partial.extend_from_slice(&input.split_to(length));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<u64, Stop> {
        Reader::new(bytes).varint()
    }

    #[test]
    fn the_numbers_of_the_draft_are_read() {
        let examples: [(&[u8], u64); 8] = [
            (&[0x25], 37),
            (&[0x80, 0x25], 37),
            (&[0xbb, 0xbd], 15_293),
            (&[0xed, 0x7f, 0x3e, 0x7d], 226_442_877),
            (&[0xfa, 0xa1, 0xa0, 0xe4, 0x03, 0xd8], 2_893_212_287_960),
            (&[0xfc, 0x89, 0x98, 0xab, 0xc6, 0x6b, 0xc0], 151_288_809_941_952),
            (&[0xfe, 0xfa, 0x31, 0x8f, 0xa8, 0xe3, 0xca, 0x11], 70_423_237_261_249_041),
            (&[0xff; 9], u64::MAX),
        ];
        for (bytes, number) in examples {
            assert_eq!(read(bytes), Ok(number));
            let mut written = Vec::new();
            put_varint(number, &mut written);
            assert!(written == bytes || bytes == [0x80, 0x25], "{written:x?}");
        }
    }

    #[test]
    fn each_length_holds_what_the_table_says() {
        for length in 1..=8usize {
            let largest = (1u64 << (7 * length)) - 1;
            assert_eq!(varint_len(largest), length);
            assert_eq!(varint_len(largest + 1), length + 1);
        }
        assert_eq!(varint_len(u64::MAX), 9);
        assert_eq!(varint_len(0), 1);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_come() {
        let mut bytes = Vec::new();
        put_varint(1 << 62, &mut bytes);
        let refused = Reader::new(&bytes).bytes(10, Mistake::ReasonTooLong);
        assert_eq!(refused, Err(Stop::Wrong(Mistake::ReasonTooLong)));
    }

    proptest! {
        #[test]
        fn numbers_go_both_ways(number in any::<u64>(), shift in 0..64u32) {
            let number = number >> shift;
            let mut bytes = Vec::new();
            put_varint(number, &mut bytes);
            prop_assert_eq!(bytes.len(), varint_len(number));
            prop_assert_eq!(read(&bytes), Ok(number));
            for cut in 0..bytes.len() {
                let short = read(&bytes[..cut]);
                let missing = if cut == 0 { 1 } else { bytes.len() - cut };
                prop_assert_eq!(short, Err(Stop::More(missing)));
            }
        }

        #[test]
        fn any_bytes_are_a_number_or_too_few(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_head_in_pieces_is_the_same_and_takes_nothing_behind_it(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..12),
        ) {
            // A head of three numbers, then whatever.
            let read = |reader: &mut Reader<'_>| Ok([reader.varint()?, reader.varint()?, reader.varint()?]);
            let whole = pieces.concat();
            let mut at_once = Bytes::from(whole);
            let expected = Gather::default().head(&mut at_once, read).unwrap();
            let (mut gather, mut found, mut behind) = (Gather::default(), None, Vec::new());
            for piece in pieces {
                let mut piece = Bytes::from(piece);
                if found.is_none() {
                    found = gather.head(&mut piece, read).unwrap();
                }
                behind.extend_from_slice(&piece);
            }
            prop_assert_eq!(&found, &expected);
            if found.is_some() {
                prop_assert!(gather.is_empty());
                prop_assert_eq!(behind, at_once.to_vec());
            }
        }
    }
}
