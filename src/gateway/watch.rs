//! What tells whether a file has changed, without reading it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Number, length and last change of a file, that of its attributes included: a copy may keep the length and the time of
/// writing. `None` if it is not there.
pub(super) type Stamp = Option<(u64, u64, i64, i64)>;

/// The stamp of a file now.
pub(super) fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some((found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
}

/// Tells when a file has changed and has then been left alone: an editor that writes in pieces is waited for.
#[derive(Debug)]
pub(super) struct Watched {
    /// What was last acted on.
    used: Stamp,
    /// What was seen at the last look.
    seen: Stamp,
}

impl Watched {
    /// `now` is what is in use.
    pub(super) const fn new(now: Stamp) -> Self {
        Self { used: now, seen: now }
    }

    /// One look. True when the file is another one than was used, has been the same for two looks, and is there.
    pub(super) fn look(&mut self, now: Stamp) -> bool {
        let settled = now == self.seen && now != self.used && now.is_some();
        self.seen = now;
        if settled {
            self.used = now;
        }
        settled
    }

    /// What is there now is in use, whoever saw to that.
    pub(super) const fn uses(&mut self, now: Stamp) {
        (self.used, self.seen) = (now, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_with_the_same_length_and_time_of_writing_is_another() {
        let file = std::env::temp_dir().join(format!("portway-stamp-{}", std::process::id()));
        std::fs::write(&file, "one").unwrap();
        let (before, written) = (stamp(&file), std::fs::metadata(&file).unwrap().modified().unwrap());
        // The kernel's clock for files is coarse.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, "two").unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();
        assert_ne!(stamp(&file), before);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(stamp(&file), None);
    }

    #[test]
    fn a_change_counts_once_and_when_it_is_over() {
        let at = |n| Some((1, 10, n, 0));
        let mut watched = Watched::new(at(0));
        let looks = [at(0), at(1), at(2), at(2), at(2), None, None, at(3), at(3), at(2)];
        let told = looks.map(|now| watched.look(now));
        assert_eq!(told, [false, false, false, true, false, false, false, false, true, false]);
        watched.uses(at(4));
        assert!(!watched.look(at(4)) && !watched.look(at(4)));
    }
}
