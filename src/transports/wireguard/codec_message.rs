//! The outside of WireGuard's four messages (whitepaper 5.4): what can be read before any key is used.
//!
//! Bytes come in, a [`Message`] goes out or nothing. What is inside is the engine's business.

/// Bytes of a handshake initiation.
pub const INITIATION: usize = 148;
/// Bytes of a handshake response.
pub const RESPONSE: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE: usize = 64;
/// Bytes around the content of a data message, which is also the length of a keepalive.
pub const OVERHEAD: usize = 32;

/// One datagram, by its type field and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Somebody wants a session.
    Initiation {
        /// The ephemeral public key: new in each initiation, so it tells a replay.
        ephemeral: [u8; 32],
    },
    /// The answer to an initiation of ours.
    Response {
        /// The sender's index of the session it made.
        sender: u32,
        /// Our index, as we sent it.
        receiver: u32,
    },
    /// The other side is busy and wants to see that we own our address.
    Cookie {
        /// Our index, as we sent it.
        receiver: u32,
    },
    /// A packet, or a keepalive.
    Data {
        /// Our index, as we sent it.
        receiver: u32,
        /// Counts the messages of a session from 0.
        counter: u64,
    },
}

impl Message {
    /// Reads the type, the reserved bytes, the length and the fields before the cipher text.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let kind = word(datagram, 0)?;
        Some(match (kind, datagram.len()) {
            (1, INITIATION) => Self::Initiation { ephemeral: datagram.get(8..40).and_then(|key| key.try_into().ok())? },
            (2, RESPONSE) => Self::Response { sender: word(datagram, 4)?, receiver: word(datagram, 8)? },
            (3, COOKIE) => Self::Cookie { receiver: word(datagram, 4)? },
            (4, OVERHEAD..) => Self::Data {
                receiver: word(datagram, 4)?,
                counter: u64::from(word(datagram, 8)?) | u64::from(word(datagram, 12)?) << 32,
            },
            _ => return None,
        })
    }
}

/// Our index in a datagram of ours: what the other side will name as receiver.
#[must_use]
pub fn sender(datagram: &[u8]) -> Option<u32> {
    match word(datagram, 0)? {
        1 | 2 => word(datagram, 4),
        _ => None,
    }
}

fn word(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(kind: u32, len: usize) -> Vec<u8> {
        let mut datagram: Vec<u8> = (0..len).map(|n| n as u8).collect();
        datagram[..4].copy_from_slice(&kind.to_le_bytes());
        datagram
    }

    #[test]
    fn knows_each_message_by_type_and_length() {
        let initiation = of(1, INITIATION);
        assert_eq!(
            Message::parse(&initiation),
            Some(Message::Initiation { ephemeral: initiation[8..40].try_into().unwrap() })
        );
        assert_eq!(sender(&initiation), Some(0x0706_0504));
        assert_eq!(
            Message::parse(&of(2, RESPONSE)),
            Some(Message::Response { sender: 0x0706_0504, receiver: 0x0b0a_0908 })
        );
        assert_eq!(Message::parse(&of(3, COOKIE)), Some(Message::Cookie { receiver: 0x0706_0504 }));
        let data = Message::Data { receiver: 0x0706_0504, counter: 0x0f0e_0d0c_0b0a_0908 };
        assert_eq!(Message::parse(&of(4, OVERHEAD)), Some(data));
        assert_eq!(Message::parse(&of(4, 65_000)), Some(data));
    }

    #[test]
    fn anything_else_is_nothing() {
        for (kind, len) in
            [(1, 147), (1, 149), (2, 91), (2, 93), (3, 63), (3, 65), (4, 31), (0, 32), (5, 148), (0x0101, 148), (4, 4)]
        {
            assert_eq!(Message::parse(&of(kind, len)), None, "{kind} {len}");
        }
        assert_eq!(Message::parse(&[]), None);
        assert_eq!(Message::parse(&[1, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = Message::parse(&bytes);
            let _any = sender(&bytes);
        }
    }
}
