//! Why a gateway did not start, or refused a reload.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::config::Place;
use crate::actors::{MeshError, SpawnError};
use crate::memory::Busy;

/// Why the gateway did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A socket could not be bound.
    Bind {
        /// The listener.
        listener: String,
        /// The address.
        address: SocketAddr,
        /// Where the configuration says so.
        place: Place,
        /// What the system said.
        error: io::Error,
    },
    /// Several sockets could not be bound: each of them.
    Several(Vec<Self>),
    /// A protocol of the embedding program refused its options.
    Options {
        /// The listener.
        listener: String,
        /// Where the configuration says so.
        place: Place,
        /// What it said.
        message: String,
    },
    /// Another reload goes on, and has for too long.
    Reloading(Busy),
    /// A certificate, or what else TLS is told.
    #[cfg(any(feature = "http", feature = "quic"))]
    Tls {
        /// Whose.
        of: String,
        /// Why.
        error: crate::transports::tls::TlsError,
    },
    /// The arbiters did not take new certificates; all use the old ones.
    #[cfg(feature = "quic")]
    TlsReload {
        /// The listener.
        listener: String,
        /// Why.
        error: crate::transports::tls::ReloadError,
    },
    /// The threads could not be started.
    Mesh(MeshError),
    /// A listener's actor could not be started.
    Spawn(SpawnError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { listener, address, place, error } => {
                write!(f, "{place}: listener `{listener}` cannot listen on {address}: {error}")
            }
            Self::Several(errors) => {
                for (n, error) in errors.iter().enumerate() {
                    write!(f, "{}{error}", if n == 0 { "" } else { "\n" })?;
                }
                Ok(())
            }
            Self::Options { listener, place, message } => write!(f, "{place}: listener `{listener}`: {message}"),
            Self::Reloading(_) => f.write_str("another reload is being applied"),
            #[cfg(any(feature = "http", feature = "quic"))]
            Self::Tls { of, error } => write!(f, "{of}: {error}"),
            #[cfg(feature = "quic")]
            Self::TlsReload { listener, error } => write!(f, "listener `{listener}`: {error}"),
            Self::Mesh(error) => error.fmt(f),
            Self::Spawn(error) => write!(f, "a listener could not be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {}
