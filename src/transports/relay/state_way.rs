//! One direction of a relayed stream: what waits to be written, and how far its end has got.
//!
//! It is read only while nothing waits, so it holds what one read gave and no more.

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    waiting: Vec<u8>,
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
}

impl Way {
    /// What waits to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        self.waiting.get(self.written..).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
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
        self.waiting.capacity()
    }

    /// Gives an empty buffer to work with, if there is none.
    pub(super) fn lend(&mut self, buffer: Vec<u8>) {
        if self.waiting.capacity() == 0 {
            self.waiting = buffer;
        }
    }

    /// Takes the buffer back while it is not in use; without capacity if there is none.
    pub(super) fn take_spare(&mut self) -> Vec<u8> {
        if self.waiting.is_empty() { std::mem::take(&mut self.waiting) } else { Vec::new() }
    }
}
