//! Which server of an upstream gets the next connection: a stand-in with the shape of the real one.
//!
//! It takes servers in turn and never ejects any.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A server of one balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerId(u64);

/// Why there is no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoServer {
    /// The upstream has none.
    Empty,
    /// All have been tried.
    AllTried,
    /// All are ejected.
    AllEjected,
    /// All have as many connections as they may.
    Full,
}

impl NoServer {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::AllTried => "all_tried",
            Self::AllEjected => "all_ejected",
            Self::Full => "full",
        }
    }
}

/// Picks servers.
#[derive(Debug)]
pub struct Balancer {
    servers: Vec<Address>,
    next: AtomicUsize,
}

impl Balancer {
    /// A balancer over these servers.
    #[must_use]
    pub fn new(servers: Vec<Address>) -> Arc<Self> {
        Arc::new(Self { servers, next: AtomicUsize::new(0) })
    }

    /// Picks one that was not tried.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(self: &Arc<Self>, _: Instant, _: u64, tried: &[ServerId]) -> Result<Picked, NoServer> {
        if self.servers.is_empty() {
            return Err(NoServer::Empty);
        }
        for _ in 0..self.servers.len() {
            let index = self.next.fetch_add(1, Ordering::Relaxed) % self.servers.len();
            let id = ServerId(index as u64);
            if let Some(address) = self.servers.get(index).filter(|_| !tried.contains(&id)) {
                return Ok(Picked { id, address: address.clone() });
            }
        }
        Err(NoServer::AllTried)
    }
}

/// A server that was picked. Dropping it gives the connection's place back.
#[derive(Debug)]
pub struct Picked {
    id: ServerId,
    address: Address,
}

impl Picked {
    /// Which server.
    #[must_use]
    pub const fn id(&self) -> ServerId {
        self.id
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The connection was established.
    pub const fn succeeded(&self, _: Instant) {}

    /// It was not, or broke.
    pub const fn failed(&self, _: Instant) {}
}
