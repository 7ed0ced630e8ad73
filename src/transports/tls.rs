//! TLS by BoringSSL for TCP and QUIC alike: certificates, who is asked for one, tickets, and how all that is replaced
//! while connections run.
//!
//! A listener's [`ServerSettings`] and an upstream's [`ClientSettings`] are plain data that all arbiters share. Each
//! arbiter builds a context of its own from them (`builder()`), since what a context holds is touched by every
//! handshake. A new generation of settings is prepared by all arbiters before one of them uses it: see [`Reload`].
//!
//! `state` decides which certificate, which protocol and which ticket key; BoringSSL speaks. 0-RTT is off and no
//! setting turns it on: BoringSSL keeps no record of replays.
//!
//! # For users of quiche
//! Hand `builder()` to `Config::with_boring_ssl_ctx_builder` and leave TLS alone afterwards. `Config::verify_peer(true)`
//! would turn mandatory client certificates into optional ones, and `Config::set_application_protos` would replace the
//! server's preference among protocols by the client's; tests here hold both to be so.

mod certificate;
mod client;
#[cfg(feature = "http")]
mod handshakes;
mod keylog;
mod reload;
mod server;
pub mod state;
mod tickets;

use std::fmt;
use std::path::PathBuf;

use boring::ssl::SslMode;

pub use boring::ssl::SslContextBuilder;
pub use certificate::Certificate;
pub use client::{ClientSettings, PeerName, Roots};
#[cfg(feature = "http")]
pub(crate) use handshakes::handshake;
pub use keylog::KeyLog;
pub use reload::{Generations, Reload, ReloadError, reload};
pub use server::{ClientCertificates, Curves, ServerSettings};
pub use tickets::Tickets;

/// A write that could not be made at once may be made again from another buffer, and says how much went: without that
/// BoringSSL breaks the connection of a peer that reads slowly ("bad write retry").
const WRITES: SslMode = SslMode::ACCEPT_MOVING_WRITE_BUFFER.union(SslMode::ENABLE_PARTIAL_WRITE);

/// Why certificates or settings cannot be used. All of it is found before anything is bound or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    Read {
        /// Which.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A file (or a text in memory, with an empty name) is not what it should be.
    Parse {
        /// Which.
        file: PathBuf,
        /// What was looked for and why it is not there.
        reason: String,
    },
    /// The private key belongs to another certificate.
    Mismatch {
        /// The file of the certificate.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// A value that TLS cannot carry: an empty name, a protocol of more than 255 bytes, a curve nobody knows.
    Value(String),
    /// BoringSSL refuses for reasons of its own.
    Library(String),
}

impl TlsError {
    /// The file that is at fault, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::Read { file, .. } | Self::Parse { file, .. } => Some(file),
            Self::Mismatch { key, .. } => Some(key),
            Self::Value(_) | Self::Library(_) => None,
        }
    }

    /// What is wrong, without naming a file: for messages that must not show what a reference stands for.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Read { reason, .. } | Self::Parse { reason, .. } => reason,
            Self::Mismatch { .. } => "the key does not belong to the certificate",
            Self::Value(what) | Self::Library(what) => what,
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, reason } => write!(f, "cannot read {}: {reason}", file.display()),
            Self::Parse { file, reason } if file.as_os_str().is_empty() => f.write_str(reason),
            Self::Parse { file, reason } => write!(f, "{}: {reason}", file.display()),
            Self::Mismatch { cert, key } => {
                write!(f, "the key in {} does not belong to the certificate in {}", key.display(), cert.display())
            }
            Self::Value(what) | Self::Library(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<boring::error::ErrorStack> for TlsError {
    fn from(stack: boring::error::ErrorStack) -> Self {
        Self::Library(reason(&stack))
    }
}

/// What BoringSSL says, shortly: the last error, without the file and line of its source.
fn reason(stack: &boring::error::ErrorStack) -> String {
    stack.errors().last().and_then(|error| error.reason()).unwrap_or("unknown error").to_lowercase().replace('_', " ")
}

#[cfg(test)]
#[path = "tls/tests.rs"]
mod tests;
