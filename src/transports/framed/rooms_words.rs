//! The words of rooms: what a client says, what it is answered, and the lines that travel between hubs and members.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::actors::ActorId;

/// Bytes of a room's name, at most.
pub const MAX_NAME: usize = 64;

/// What a command or line counts in a mailbox beside its bytes.
const OVERHEAD: usize = 64;

/// One message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Join(Arc<str>),
    Leave,
    /// To everybody else in the room: the whole message, with its verb.
    Say(Bytes),
    /// Wrong in itself. It travels like the others, so that replies keep the order of what they reply to.
    Wrong(Refusal),
}

impl Command {
    /// Reads a message; one longer than `longest` could never be passed on.
    pub(super) fn read(message: &[u8], longest: usize) -> Self {
        match message.split_first() {
            Some((b'J', name)) => match std::str::from_utf8(name) {
                Ok(name) if !name.is_empty() && name.len() <= MAX_NAME => Self::Join(Arc::from(name)),
                Ok(_) | Err(_) => Self::Wrong(Refusal::Name),
            },
            Some((b'L', [])) => Self::Leave,
            Some((b'M', _)) if message.len() > longest => Self::Wrong(Refusal::TooLarge),
            Some((b'M', _)) => Self::Say(Bytes::copy_from_slice(message)),
            Some(_) | None => Self::Wrong(Refusal::Verb),
        }
    }

    pub(super) fn size(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Join(name) => name.len(),
                Self::Say(body) => body.len(),
                Self::Leave | Self::Wrong(_) => 0,
            }
    }
}

/// Why a command was not obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Verb,
    Name,
    NotInRoom,
    TooLarge,
    TooManyRooms,
    RoomFull,
}

impl Refusal {
    /// The word that counters use.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Verb => "unknown_verb",
            Self::Name => "bad_name",
            Self::NotInRoom => "not_in_a_room",
            Self::TooLarge => "too_large",
            Self::TooManyRooms => "too_many_rooms",
            Self::RoomFull => "room_full",
        }
    }

    /// The answer to the client.
    pub(super) const fn answer(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Verb => b"Eunknown verb: J name, L and M payload are known",
            Self::Name => b"Ea room's name is 1 to 64 bytes of UTF-8",
            Self::NotInRoom => b"Enot in a room",
            Self::TooLarge => b"Ethe message is larger than members may have waiting",
            Self::TooManyRooms => b"Etoo many rooms",
            Self::RoomFull => b"Ethe room is full",
        })
    }
}

/// The answer to a client that has joined.
pub(super) fn joined(room: &str) -> Bytes {
    let mut answer = BytesMut::with_capacity(1 + room.len());
    answer.put_u8(b'J');
    answer.put_slice(room.as_bytes());
    answer.freeze()
}

/// The answer to a client that has left.
pub(super) const fn left() -> Bytes {
    Bytes::from_static(b"L")
}

/// One message on its way to members.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Whose words: that one does not get them back. `None` for an answer.
    pub(super) from: Option<ActorId>,
    /// Said on this arbiter, so other arbiters are to hear of it.
    pub(super) local: bool,
    pub(super) body: Bytes,
}

impl Line {
    pub(super) const fn answer(body: Bytes) -> Self {
        Self { from: None, local: true, body }
    }

    pub(super) fn size(&self) -> usize {
        OVERHEAD + self.body.len()
    }
}

/// Messages for one member of a room, shared with all the others.
#[derive(Clone)]
pub struct Batch {
    lines: Arc<[Line]>,
    start: usize,
    bytes: usize,
}

impl Batch {
    /// The lines from `start` on. `bytes` is what their bodies sum up to.
    pub(super) const fn new(lines: Arc<[Line]>, start: usize, bytes: usize) -> Self {
        Self { lines, start, bytes }
    }

    pub(super) fn of(lines: Vec<Line>) -> Self {
        let bytes = lines.iter().map(|line| line.body.len()).sum();
        Self { lines: lines.into(), start: 0, bytes }
    }

    /// The bytes of all messages.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The messages that `reader` gets.
    pub(super) fn bodies(&self, reader: ActorId) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().skip(self.start).filter(move |line| line.from != Some(reader)).map(|line| &*line.body)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("lines", &self.lines.len()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_wrong_ones_named() {
        let read = |message: &[u8]| Command::read(message, 10);
        assert_eq!(read(b"Jroom"), Command::Join(Arc::from("room")));
        assert_eq!(read(b"L"), Command::Leave);
        assert_eq!(read(b"M"), Command::Say(Bytes::from_static(b"M")));
        assert_eq!(read(b"M\0\xff345678"), Command::Say(Bytes::from_static(b"M\0\xff345678")));
        assert_eq!(read(b"M123456789x"), Command::Wrong(Refusal::TooLarge));
        for wrong in [&b"J"[..], b"J\xff", &[b'J'; 66]] {
            assert_eq!(read(wrong), Command::Wrong(Refusal::Name));
        }
        assert_eq!(read(&[b'J'; 65]), Command::Join(Arc::from("J".repeat(64).as_str())));
        for wrong in [&b""[..], b"X", b"Lx", b"\0"] {
            assert_eq!(read(wrong), Command::Wrong(Refusal::Verb));
        }
    }
}
