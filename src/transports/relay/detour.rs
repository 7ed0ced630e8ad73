//! Ways to servers beside this machine's own network: through a tunnel.
//!
//! A tunnel comes and goes while upstreams stay, so a dialler holds a [`Through`], into which the way is put once the
//! tunnel runs. Without one nothing is dialled at all: what was meant for a tunnel never leaves beside it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use super::dial::Wire;
use crate::memory::Snapshot;

/// A way to servers.
pub trait Way: Send + Sync {
    /// Begins to connect. It must not wait.
    ///
    /// # Errors
    /// Why it failed at once.
    fn open(&self, to: SocketAddr) -> io::Result<Box<dyn Detour>>;
}

/// A stream that such a way has opened.
pub trait Detour: Wire + Send {
    /// Whether it is connected. A way whose streams are the kernel's gives the socket away, to be used in its place.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<TcpStream>>>;
}

/// The way of one upstream. Clones share it.
#[derive(Clone, Default)]
pub struct Through(Snapshot<Option<Arc<dyn Way>>>);

impl fmt::Debug for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Through").field("leads", &self.0.read().is_some()).finish()
    }
}

impl Through {
    /// From now on new streams go this way; with none, none are opened.
    pub fn lead(&self, way: Option<Arc<dyn Way>>) {
        self.0.publish(way);
    }

    /// Begins to connect.
    ///
    /// # Errors
    /// `NetworkDown` while there is no way, or what the way says.
    pub(super) fn open(&self, to: SocketAddr) -> io::Result<Box<dyn Detour>> {
        match &*self.0.read() {
            Some(way) => way.open(to),
            None => Err(io::ErrorKind::NetworkDown.into()),
        }
    }
}
