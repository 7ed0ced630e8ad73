//! Bytes to frames and back: a length, then so many bytes.
//!
//! The length takes 1, 2, 4 or 8 bytes in either byte order, and counts the message alone or itself as well. A length
//! beyond the maximum is refused as soon as it is read, before a byte of the message is awaited or stored.

use std::fmt;

/// The widest length field.
pub const MAX_HEADER: usize = 8;

/// How many bytes the length takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthBytes {
    /// One: messages up to 255 bytes.
    One,
    /// Two: up to 65,535 bytes.
    Two,
    /// Four: up to 4 GiB.
    Four,
    /// Eight.
    Eight,
}

impl LengthBytes {
    const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// Which byte of the length comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// The most significant: network order.
    Big,
    /// The least significant.
    Little,
}

/// What frames look like. Default: four bytes, big-endian, counting the message alone, at most 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    length_bytes: LengthBytes,
    byte_order: ByteOrder,
    length_includes_header: bool,
    max_message: usize,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            length_bytes: LengthBytes::Four,
            byte_order: ByteOrder::Big,
            length_includes_header: false,
            max_message: 1 << 20,
        }
    }
}

/// A frame whose length is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the length field.
    pub header: usize,
    /// Bytes of the message.
    pub body: usize,
}

impl Frame {
    /// Bytes of both.
    #[must_use]
    pub const fn total(self) -> usize {
        self.header + self.body
    }
}

/// A length that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The message would be longer than allowed.
    TooLarge {
        /// The length that was announced.
        announced: u64,
        /// What is allowed.
        max: usize,
    },
    /// The length counts itself and is shorter than itself.
    Malformed {
        /// The length that was announced.
        announced: u64,
    },
}

impl FrameError {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "frame_too_large",
            Self::Malformed { .. } => "frame_malformed",
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { announced, max } => write!(f, "a frame of {announced} bytes, at most {max} are allowed"),
            Self::Malformed { announced } => write!(f, "a length of {announced} is shorter than its own field"),
        }
    }
}

impl std::error::Error for FrameError {}

/// A format that contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatError {
    max_message: usize,
    widest: u64,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max_message is {} bytes, but the length field can say {} at most", self.max_message, self.widest)
    }
}

impl std::error::Error for FormatError {}

/// A length field, ready to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    from: usize,
    to: usize,
}

impl Header {
    /// The bytes of the field.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }
}

impl Format {
    /// A format.
    ///
    /// # Errors
    /// [`FormatError`] if the length field cannot say `max_message`.
    pub const fn new(
        length_bytes: LengthBytes,
        byte_order: ByteOrder,
        length_includes_header: bool,
        max_message: usize,
    ) -> Result<Self, FormatError> {
        let header = length_bytes.count();
        let widest = match length_bytes {
            LengthBytes::Eight => u64::MAX,
            LengthBytes::One | LengthBytes::Two | LengthBytes::Four => (1 << (8 * header)) - 1,
        };
        let widest = if length_includes_header { widest - header as u64 } else { widest };
        if max_message as u64 > widest {
            return Err(FormatError { max_message, widest });
        }
        Ok(Self { length_bytes, byte_order, length_includes_header, max_message })
    }

    /// The longest message.
    #[must_use]
    pub const fn max_message(&self) -> usize {
        self.max_message
    }

    /// Bytes of the length field.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.length_bytes.count()
    }

    /// Reads a length from the front of `bytes`. `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`] if the length cannot be; it is final for the stream.
    pub fn decode(&self, bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        let header = self.header_len();
        let Some(field) = bytes.get(..header) else { return Ok(None) };
        let announced = match (self.byte_order, <[u8; 4]>::try_from(field)) {
            (ByteOrder::Big, Ok(four)) => u64::from(u32::from_be_bytes(four)),
            (ByteOrder::Little, Ok(four)) => u64::from(u32::from_le_bytes(four)),
            (ByteOrder::Big, Err(_)) => field.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)),
            (ByteOrder::Little, Err(_)) => field.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)),
        };
        let body = if self.length_includes_header {
            announced.checked_sub(header as u64).ok_or(FrameError::Malformed { announced })?
        } else {
            announced
        };
        if body > self.max_message as u64 {
            return Err(FrameError::TooLarge { announced, max: self.max_message });
        }
        Ok(Some(Frame { header, body: body as usize }))
    }

    /// The length field of a message of `body` bytes.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] if the format does not allow so long a message.
    pub fn encode(&self, body: usize) -> Result<Header, FrameError> {
        if body > self.max_message {
            return Err(FrameError::TooLarge { announced: body as u64, max: self.max_message });
        }
        let header = self.header_len();
        let value = if self.length_includes_header { body as u64 + header as u64 } else { body as u64 };
        Ok(match self.byte_order {
            ByteOrder::Big => Header { bytes: value.to_be_bytes(), from: MAX_HEADER - header, to: MAX_HEADER },
            ByteOrder::Little => Header { bytes: value.to_le_bytes(), from: 0, to: header },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn formats() -> impl Strategy<Value = Format> {
        let widths = [LengthBytes::One, LengthBytes::Two, LengthBytes::Four, LengthBytes::Eight];
        (0..4usize, any::<bool>(), any::<bool>(), 0..200usize).prop_map(move |(width, big, includes, max)| {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            Format::new(widths[width], order, includes, max).unwrap()
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(format in formats(), body in 0..300usize) {
            match format.encode(body) {
                Ok(header) => {
                    let frame = format.decode(header.as_bytes()).unwrap().unwrap();
                    prop_assert_eq!(frame, Frame { header: format.header_len(), body });
                    prop_assert_eq!(format.decode(&header.as_bytes()[1..]), Ok(None));
                }
                Err(error) => prop_assert!(body > format.max_message(), "{}", error),
            }
        }

        #[test]
        fn no_bytes_panic(format in formats(), bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            if let Ok(Some(frame)) = format.decode(&bytes) {
                prop_assert!(frame.body <= format.max_message());
            }
        }
    }

    #[test]
    fn the_default_is_four_bytes_in_network_order() {
        let format = Format::default();
        assert_eq!(format.encode(258).unwrap().as_bytes(), [0, 0, 1, 2]);
        assert_eq!(
            format.decode(&[0xff, 0xff, 0xff, 0xff]),
            Err(FrameError::TooLarge { announced: 4_294_967_295, max: 1 << 20 })
        );
    }

    #[test]
    fn a_length_shorter_than_itself_is_malformed() {
        let format = Format::new(LengthBytes::Four, ByteOrder::Little, true, 100).unwrap();
        assert_eq!(format.decode(&[3, 0, 0, 0]), Err(FrameError::Malformed { announced: 3 }));
        assert_eq!(format.decode(&[4, 0, 0, 0]), Ok(Some(Frame { header: 4, body: 0 })));
    }

    #[test]
    fn a_format_must_be_able_to_say_its_maximum() {
        assert!(Format::new(LengthBytes::One, ByteOrder::Big, false, 255).is_ok());
        assert!(Format::new(LengthBytes::One, ByteOrder::Big, true, 255).is_err());
        assert!(Format::new(LengthBytes::Two, ByteOrder::Big, false, 65_536).is_err());
        assert!(Format::new(LengthBytes::Eight, ByteOrder::Big, true, usize::MAX - 8).is_ok());
    }
}
