//! How many bytes QUIC has received and nobody has read, from above, without asking for each packet.
//!
//! Whatever comes is counted as if all of it were data, and what is read is taken off. That drifts upwards by headers,
//! so it is measured anew when as much has come as was there, or 64 KiB, and set to nothing when no stream has anything
//! to be read. What waits behind a gap cannot be asked for: it is seen until the next measurement, and bounded by the
//! window of the connection, which opens further only as the application reads.

/// What may come before it is measured, at least.
const STEP: usize = 64 << 10;

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Streams with something to be read.
    streams: usize,
    measured: usize,
    came: usize,
}

impl Unread {
    /// So many bytes of packets have come.
    pub(super) const fn came(&mut self, bytes: usize) {
        self.came = self.came.saturating_add(bytes);
    }

    /// One more stream has something to be read.
    pub(super) const fn begin(&mut self) {
        self.streams += 1;
    }

    /// One stream less has.
    pub(super) const fn over(&mut self) {
        self.streams = self.streams.saturating_sub(1);
    }

    /// So many bytes were read.
    pub(super) fn took(&mut self, bytes: usize) {
        let known = bytes.min(self.measured);
        self.measured -= known;
        self.came = self.came.saturating_sub(bytes - known);
    }

    /// Whether it is time to [`measure`](Self::measure).
    #[must_use]
    pub(super) fn is_due(&self) -> bool {
        self.streams > 0 && self.came > self.measured.max(STEP)
    }

    /// So many bytes can be read.
    pub(super) const fn measure(&mut self, bytes: usize) {
        self.measured = bytes;
        self.came = 0;
    }

    /// At most so many bytes wait to be read.
    pub(super) const fn settle(&mut self) -> usize {
        if self.streams == 0 {
            self.measure(0);
        }
        self.bytes()
    }

    /// As [`settle`](Self::settle) said last, with what has come since.
    #[must_use]
    pub(super) const fn bytes(&self) -> usize {
        if self.streams == 0 { 0 } else { self.measured.saturating_add(self.came) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_do_not_add_up() {
        let (mut unread, mut there) = (Unread::default(), 0_usize);
        unread.begin();
        for _ in 0..100_000 {
            unread.came(1_350);
            there += 1_300;
            if there > 500_000 {
                unread.took(300_000);
                there -= 300_000;
            }
            if unread.is_due() {
                unread.measure(there);
            }
            let bytes = unread.settle();
            assert!(there <= bytes && bytes <= 2 * there + 2 * STEP, "{there} are there, {bytes} are counted");
        }
        unread.took(there);
        unread.over();
        assert_eq!(unread.settle(), 0);
    }

    #[test]
    fn packets_without_data_cost_nothing() {
        let mut unread = Unread::default();
        for _ in 0..1_000 {
            unread.came(40);
            assert!(!unread.is_due());
            assert_eq!(unread.settle(), 0);
        }
    }
}
