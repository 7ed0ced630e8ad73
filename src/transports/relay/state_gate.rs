//! Lets only whole messages of a framed stream pass in one direction.
//!
//! It knows where in the bytes of a direction the last whole message ends, and since when what comes behind it has been
//! coming. A length that cannot be is refused as soon as it is read, so no more than one message of the longest kind and
//! one read are ever held.

use std::time::{Duration, Instant};

use crate::transports::framed::{Format, FrameError};

/// What a relay knows of messages. Without it a relay knows bytes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    /// What frames look like, on both sides.
    pub format: Format,
    /// The client's first message must be whole this long after the client came; counted once a server is connected.
    pub first_message: Option<Duration>,
    /// A message must be whole this long after its first byte.
    pub message_timeout: Option<Duration>,
    /// A side that keeps messages waiting and takes nothing for this long is given up.
    pub slow_after: Duration,
}

/// The gate of one direction.
#[derive(Debug)]
pub(super) struct Gate {
    format: Format,
    /// Where the last whole message ends.
    pub(super) open: usize,
    /// Whole messages that have come.
    pub(super) messages: u64,
    /// Since when a message has been coming that is not whole, and nothing keeps it from being read.
    pub(super) began: Option<Instant>,
    /// Since when the destination has taken nothing of what it may have.
    pub(super) waiting: Option<Instant>,
}

impl Gate {
    pub(super) const fn new(format: Format) -> Self {
        Self { format, open: 0, messages: 0, began: None, waiting: None }
    }

    /// Looks for whole messages in what has come.
    pub(super) fn look(&mut self, bytes: &[u8], now: Instant) -> Result<(), FrameError> {
        while let Some(frame) = self.format.decode(bytes.get(self.open..).unwrap_or_default())? {
            if bytes.len() - self.open < frame.total() {
                break;
            }
            self.open += frame.total();
            self.messages += 1;
        }
        self.waiting = self.waiting.or_else(|| (self.open > 0).then_some(now));
        self.note_rest(self.open == 0 && !bytes.is_empty(), now);
        Ok(())
    }

    /// The destination took something; `all` of what it may have.
    pub(super) fn taken(&mut self, all: bool, rest: bool, now: Instant) {
        self.waiting = (!all).then_some(now);
        if all {
            self.open = 0;
        }
        self.note_rest(all && rest, now);
    }

    /// While whole messages wait nothing is read, so nobody can complete the next one.
    fn note_rest(&mut self, coming: bool, now: Instant) {
        self.began = if coming { self.began.or(Some(now)) } else { None };
    }
}
