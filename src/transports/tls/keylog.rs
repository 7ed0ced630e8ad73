//! The secrets of connections, written to a file on request, so that captures can be read with Wireshark.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// An open key log in NSS format. Whoever reads it reads the connections: the file is made for its owner alone.
///
/// A line that cannot be written is lost, said once per handshake in the log; the connection goes on. Writing blocks
/// the arbiter for the time of a write to a file: for debugging only.
#[derive(Debug)]
pub struct KeyLog {
    file: File,
}

impl KeyLog {
    /// Opens the file for appending and makes it if need be.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().create(true).append(true).mode(0o600).open(path)? })
    }

    /// Appends a line. One write, so that lines of several arbiters do not mix.
    pub(super) fn line(&self, line: &str) {
        if let Err(error) = (&self.file).write_all(format!("{line}\n").as_bytes()) {
            tracing::warn!(%error, "a line of the key log is lost");
        }
    }
}
