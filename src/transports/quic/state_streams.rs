//! What waits to be sent on the streams of one connection, and which piece is next.
//!
//! Data stay here until QUIC can put them on the wire: until then they can be cancelled, expire, or be overtaken. The
//! most urgent stream goes first; at equal urgency, streams that are of use only as a whole go one after the other in
//! the order of their numbers, and before the incremental ones, which take turns. A stream that QUIC takes nothing from
//! stands aside until it is `unblock`ed. Bytes are bounded by the credit their writers took before. Only streams of
//! which something waits, or is to expire, are here.
//!
//! `T` is what somebody waits with for a write to be taken: it comes back when the last byte of that write is, or when
//! the stream is cancelled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

/// What an incremental stream sends before another of its urgency has its turn.
const QUANTUM: usize = 16 << 10;

/// Which stream goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority {
    /// 0 goes first, 255 last.
    pub urgency: u8,
    /// Whether parts of it are of use: then it takes turns with others of its urgency.
    pub incremental: bool,
}

impl Default for Priority {
    /// Urgency 127, taking turns.
    fn default() -> Self {
        Self { urgency: 127, incremental: true }
    }
}

/// A piece to be offered to QUIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The stream it belongs to.
    pub stream: u64,
    /// The bytes; may be empty with `fin`.
    pub bytes: Bytes,
    /// Whether they are the last of the stream.
    pub fin: bool,
}

/// Why a stream takes no more data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushError {
    /// There is no such stream, or it has ended.
    Unknown,
    /// Its end was written already.
    Finished,
}

struct Write<T> {
    bytes: Bytes,
    done: Option<T>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    urgency: u8,
    incremental: bool,
    /// The number of the stream, or of its turn if it takes turns.
    order: u64,
    stream: u64,
}

struct Stream<T> {
    writes: VecDeque<Write<T>>,
    bytes: usize,
    fin: bool,
    priority: Priority,
    /// Its place among those that can send.
    rank: Option<Rank>,
    blocked: bool,
    expires: Option<Instant>,
}

impl<T> Stream<T> {
    fn has_work(&self) -> bool {
        !self.writes.is_empty() || self.fin
    }
}

/// The send side of the streams of one connection.
pub(super) struct Sending<T> {
    streams: BTreeMap<u64, Stream<T>>,
    ready: BTreeSet<Rank>,
    expiries: BTreeSet<(Instant, u64)>,
    turn: u64,
    bytes: usize,
    /// Streams that stand aside.
    blocked: usize,
    /// The piece that was given out last, until it is known what became of it.
    out: Option<(u64, Option<T>, bool)>,
}

impl<T> Default for Sending<T> {
    fn default() -> Self {
        Self {
            streams: BTreeMap::new(),
            ready: BTreeSet::new(),
            expiries: BTreeSet::new(),
            turn: 0,
            bytes: 0,
            blocked: 0,
            out: None,
        }
    }
}

/// What was cancelled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cancelled<T> {
    /// Bytes that were never offered to QUIC.
    pub bytes: usize,
    /// Those who wait for them.
    pub waiting: Vec<T>,
}

impl<T> Sending<T> {
    /// Adds a stream, for what is pushed next. Nothing changes if it is there.
    pub(super) fn open(&mut self, stream: u64, priority: Priority) {
        self.streams.entry(stream).or_insert_with(|| Stream {
            writes: VecDeque::new(),
            bytes: 0,
            fin: false,
            priority,
            rank: None,
            blocked: false,
            expires: None,
        });
    }

    /// Bytes that wait, over all streams.
    #[must_use]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that wait on one stream.
    #[cfg(test)]
    fn bytes_of(&self, stream: u64) -> usize {
        self.streams.get(&stream).map_or(0, |s| s.bytes)
    }

    /// Whether nothing waits on a stream.
    #[must_use]
    pub(super) fn is_idle(&self, stream: u64) -> bool {
        self.streams.is_empty() || !self.streams.get(&stream).is_some_and(Stream::has_work)
    }

    /// Whether nothing waits on any, and nothing is to expire.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether a stream stands aside until it is unblocked.
    #[must_use]
    pub(super) const fn is_held_back(&self) -> bool {
        self.blocked > 0
    }

    /// Whether anything waits.
    #[cfg(test)]
    fn has_work(&self) -> bool {
        self.streams.values().any(Stream::has_work)
    }

    /// Whether anything could be offered now.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Queues bytes; they may be any number. `done` comes back when the last of them is taken.
    ///
    /// # Errors
    /// See [`PushError`], with `done`.
    pub(super) fn push(&mut self, stream: u64, bytes: Bytes, done: Option<T>) -> Result<(), (PushError, Option<T>)> {
        let Some(s) = self.streams.get_mut(&stream) else { return Err((PushError::Unknown, done)) };
        if s.fin {
            return Err((PushError::Finished, done));
        }
        if bytes.is_empty() && done.is_none() {
            return Ok(());
        }
        s.bytes += bytes.len();
        self.bytes += bytes.len();
        s.writes.push_back(Write { bytes, done });
        self.enlist(stream);
        Ok(())
    }

    /// Writes the end of a stream, after what waits on it.
    ///
    /// # Errors
    /// See [`PushError`].
    pub(super) fn finish(&mut self, stream: u64) -> Result<(), PushError> {
        let s = self.streams.get_mut(&stream).ok_or(PushError::Unknown)?;
        if s.fin {
            return Err(PushError::Finished);
        }
        s.fin = true;
        self.enlist(stream);
        Ok(())
    }

    /// Changes the priority of a stream from its next piece on.
    pub(super) fn prioritise(&mut self, stream: u64, priority: Priority) {
        let Some(s) = self.streams.get_mut(&stream) else { return };
        s.priority = priority;
        if let Some(rank) = s.rank.take() {
            self.ready.remove(&rank);
            self.enlist(stream);
        }
    }

    /// Lets what is unsent at `at` expire: see [`expired`](Self::expired). `None` takes it back.
    pub(super) fn expire(&mut self, stream: u64, at: Option<Instant>) {
        let Some(s) = self.streams.get_mut(&stream) else { return };
        if let Some(before) = s.expires.take() {
            self.expiries.remove(&(before, stream));
        }
        if let Some(at) = at {
            s.expires = Some(at);
            self.expiries.insert((at, stream));
        }
        self.forget_idle(stream);
    }

    /// The next stream whose data have expired unsent. One that has nothing left to send does not expire.
    pub(super) fn expired(&mut self, now: Instant) -> Option<u64> {
        while let Some((at, stream)) = self.expiries.first().copied().filter(|(at, _)| *at <= now) {
            self.expiries.remove(&(at, stream));
            if let Some(s) = self.streams.get_mut(&stream) {
                s.expires = None;
                if s.has_work() {
                    return Some(stream);
                }
                self.forget_idle(stream);
            }
        }
        None
    }

    /// When the first stream expires.
    #[must_use]
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// The next piece to offer. What became of it must be told by [`taken`](Self::taken) before the next is asked for.
    pub(super) fn next(&mut self) -> Option<Piece> {
        let rank = self.ready.pop_first()?;
        let s = self.streams.get_mut(&rank.stream)?;
        s.rank = None;
        let (bytes, done) = match s.writes.pop_front() {
            Some(mut write) if s.priority.incremental && write.bytes.len() > QUANTUM => {
                let first = write.bytes.split_to(QUANTUM);
                s.writes.push_front(write);
                (first, None)
            }
            Some(write) => (write.bytes, write.done),
            None => (Bytes::new(), None),
        };
        let fin = s.fin && s.writes.is_empty();
        self.out = Some((rank.stream, done, fin));
        Some(Piece { stream: rank.stream, bytes, fin })
    }

    /// What QUIC did with the last piece: `taken` bytes, and the `rest` it did not take, which has its place in front
    /// again. A stream of which some is left stands aside until it is unblocked. Answers who waited for this write.
    pub(super) fn taken(&mut self, taken: usize, rest: Option<Bytes>) -> Option<T> {
        let (stream, done, fin) = self.out.take()?;
        self.bytes = self.bytes.saturating_sub(taken);
        let Some(s) = self.streams.get_mut(&stream) else { return done };
        s.bytes = s.bytes.saturating_sub(taken);
        if let Some(bytes) = rest {
            self.blocked += usize::from(!std::mem::replace(&mut s.blocked, true));
            s.writes.push_front(Write { bytes, done });
            return None;
        }
        if fin {
            // Its end is on its way: nothing more can be written, and nothing is left to cancel here.
            self.remove(stream);
        } else {
            self.enlist(stream);
            self.forget_idle(stream);
        }
        done
    }

    /// QUIC takes from this stream again.
    pub(super) fn unblock(&mut self, stream: u64) {
        if let Some(s) = self.streams.get_mut(&stream)
            && std::mem::replace(&mut s.blocked, false)
        {
            self.blocked -= 1;
            self.enlist(stream);
        }
    }

    /// Forgets a stream and all that waits on it.
    pub(super) fn cancel(&mut self, stream: u64) -> Cancelled<T> {
        let mut cancelled = Cancelled { bytes: 0, waiting: Vec::new() };
        if let Some(s) = self.remove(stream) {
            self.bytes = self.bytes.saturating_sub(s.bytes);
            cancelled.bytes = s.bytes;
            cancelled.waiting.extend(s.writes.into_iter().filter_map(|write| write.done));
        }
        // The piece in QUIC's hands when it said that the stream is no more.
        if self.out.as_ref().is_some_and(|(out, ..)| *out == stream) {
            cancelled.waiting.extend(self.out.take().and_then(|(_, done, _)| done));
        }
        cancelled
    }

    /// Forgets everything; answers who waited.
    pub(super) fn cancel_all(&mut self) -> Vec<T> {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        streams.into_iter().flat_map(|stream| self.cancel(stream).waiting).collect()
    }

    fn forget_idle(&mut self, stream: u64) {
        if self.streams.get(&stream).is_some_and(|s| !s.has_work() && s.expires.is_none()) {
            self.streams.remove(&stream);
        }
    }

    fn remove(&mut self, stream: u64) -> Option<Stream<T>> {
        let s = self.streams.remove(&stream)?;
        self.blocked -= usize::from(s.blocked);
        if let Some(rank) = &s.rank {
            self.ready.remove(rank);
        }
        if let Some(at) = s.expires {
            self.expiries.remove(&(at, stream));
        }
        Some(s)
    }

    /// Gives a stream its place among those that can send, if it has something and is not aside.
    fn enlist(&mut self, stream: u64) {
        let Some(s) = self.streams.get_mut(&stream) else { return };
        if s.rank.is_some() || s.blocked || !s.has_work() {
            return;
        }
        let Priority { urgency, incremental } = s.priority;
        let order = if incremental { self.turn } else { stream };
        self.turn += u64::from(incremental);
        let rank = Rank { urgency, incremental, order, stream };
        s.rank = Some(rank);
        self.ready.insert(rank);
    }
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
