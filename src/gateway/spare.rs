//! Descriptors kept back for those who look in when all others are in use: what is wrong must be seen just then.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// A few open descriptors of `/dev/null`, given up one by one to make room for something better.
///
/// Between giving one up and using it another thread may be faster: whoever uses this tries again, and has a second
/// and a third.
#[derive(Debug)]
pub(super) struct Spare {
    kept: Vec<OwnedFd>,
    most: usize,
}

impl Spare {
    pub(super) fn new(most: usize) -> Self {
        let mut spare = Self { kept: Vec::with_capacity(most), most };
        spare.refill();
        spare
    }

    /// Takes back what was given up, as far as the system has it.
    pub(super) fn refill(&mut self) {
        while self.kept.len() < self.most
            && let Ok(file) = File::open("/dev/null")
        {
            self.kept.push(file.into());
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.kept.len() == self.most
    }

    /// After an error: whether it was a shortage of descriptors and one was given up, so that trying again makes sense.
    pub(super) fn makes_room(&mut self, error: &io::Error) -> bool {
        is_shortage(error) && self.kept.pop().is_some()
    }

    /// Gives up all, for something that needs several: reading the configuration with the files it names.
    pub(super) fn give_up(&mut self) {
        self.kept.clear();
    }
}

/// Whether the process or the machine has no descriptor left.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_up_once_and_only_for_a_shortage() {
        let mut spare = Spare::new(2);
        assert!(spare.is_full());
        let (shortage, other) = (io::Error::from(Errno::MFILE), io::Error::from(Errno::CONNABORTED));
        assert!(!spare.makes_room(&other));
        assert!(spare.makes_room(&shortage));
        assert!(spare.makes_room(&io::Error::from(Errno::NFILE)));
        assert!(!spare.makes_room(&shortage), "there were two");
        spare.refill();
        assert!(spare.makes_room(&shortage));
        spare.give_up();
        assert!(!spare.makes_room(&shortage));
    }
}
