//! One direction of a relayed stream: what waits to be written, and how far its end has got.
//!
//! It is read only while nothing waits, so it holds what one read gave and no more: in a buffer, or in a pipe of the
//! kernel's where the bytes go from socket to socket without being copied (splice(2)). A pipe costs as much as two small
//! copies, so it is worth its while only for a direction that has moved much and goes on in large pieces.

use crate::memory::Buf;

/// Bytes a direction has moved before it may use a pipe.
const SPLICE_AFTER: u64 = 64 << 10;
/// Smaller pieces are copied.
const SPLICE_PIECE: usize = 16 << 10;
/// Bytes a direction moves before it asks for a pipe again when there was none.
const NO_PIPE_FOR: u64 = 1 << 20;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    waiting: Buf,
    written: usize,
    /// The source sends no more.
    pub(super) fin_seen: bool,
    /// The destination was told so.
    pub(super) fin_sent: bool,
    /// The destination takes no more.
    pub(super) broken: bool,
    /// The source was told that nobody takes it.
    told: bool,
    /// Bytes of our own ahead of the source's, which are not counted.
    own: usize,
    /// Bytes of the source that the destination took.
    pub(super) moved: u64,
    /// Bytes the source gave.
    pub(super) taken_in: u64,
    /// Bytes that wait in a pipe.
    piped: usize,
    /// What the source gave last.
    last_piece: usize,
    /// There was no pipe when this many bytes had come.
    no_pipe_at: Option<u64>,
}

impl Way {
    /// What waits to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        self.waiting.get(self.written..).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty() && self.piped == 0
    }

    /// How many bytes wait in a pipe. While any do, none wait in the buffer.
    pub(super) const fn piped(&self) -> usize {
        self.piped
    }

    /// Whether the next bytes are to go into a pipe.
    pub(super) fn wants_pipe(&self) -> bool {
        self.moved >= SPLICE_AFTER
            && self.last_piece >= SPLICE_PIECE
            && self.no_pipe_at.is_none_or(|at| self.taken_in.saturating_sub(at) >= NO_PIPE_FOR)
            && self.wants_more()
    }

    /// No pipe is to be had.
    pub(super) const fn no_pipe(&mut self) {
        self.no_pipe_at = Some(self.taken_in);
    }

    /// The source gave so many bytes, in memory or in a pipe.
    pub(super) const fn came(&mut self, count: usize) {
        self.taken_in += count as u64;
        self.last_piece = count;
    }

    /// So many bytes of the source wait in the pipe now.
    pub(super) const fn filled(&mut self, count: usize) {
        self.came(count);
        self.piped += count;
    }

    /// The destination took so many of those in the pipe.
    pub(super) fn emptied(&mut self, count: usize) {
        let count = count.min(self.piped);
        self.piped -= count;
        self.moved += count as u64;
    }

    /// Whether more may be read: nothing waits and the source has not ended.
    pub(super) fn wants_more(&self) -> bool {
        !self.fin_seen && !self.broken && self.is_empty()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && !self.broken {
            self.waiting.extend_from_slice(bytes);
        }
    }

    /// Puts bytes of our own ahead of what waits.
    pub(super) fn push_front(&mut self, bytes: &[u8]) {
        self.own += bytes.len();
        self.waiting.splice(..self.written, bytes.iter().copied());
        self.written = 0;
    }

    /// The destination took so many of what waits.
    pub(super) fn wrote(&mut self, count: usize) {
        self.skip(count);
        let own = count.min(self.own);
        self.own -= own;
        self.moved += (count - own) as u64;
    }

    /// Forgets so many bytes at the front.
    pub(super) fn skip(&mut self, count: usize) {
        self.written = self.written.saturating_add(count).min(self.waiting.len());
        if self.written == self.waiting.len() {
            self.waiting.clear();
            self.written = 0;
        }
    }

    /// The destination takes no more: what waits is lost.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
        self.waiting.clear();
        self.written = 0;
        self.piped = 0;
    }

    /// Whether the source is to be told that nobody takes what it sends; true once.
    pub(super) fn take_refused(&mut self) -> bool {
        self.broken && !self.fin_seen && !std::mem::replace(&mut self.told, true)
    }

    /// All has come and all has gone: the destination can be told.
    pub(super) fn wants_fin(&self) -> bool {
        self.fin_seen && !self.fin_sent && !self.broken && self.is_empty()
    }

    pub(super) fn held(&self) -> usize {
        self.waiting.capacity() + self.piped
    }

    pub(super) fn own_bytes(&self) -> usize {
        self.waiting.own_bytes() + self.piped
    }

    /// Gives an empty buffer to work with, if there is none.
    pub(super) fn lend(&mut self, buffer: impl FnOnce() -> Buf) {
        if self.waiting.capacity() == 0 {
            self.waiting = buffer();
        }
    }

    /// Lets go of the buffer if it holds nothing.
    pub(super) fn free_unused(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = Buf::default();
        }
    }
}
