//! What a UDP relay is told: at its start, and again while it runs.

use std::net::SocketAddr;
use std::sync::Arc;

use super::state::FlowTerms;
use crate::memory::Budget;
use crate::transports::kit::admission::{Caps, Occupancy};
use crate::transports::kit::balance::Balancer;

/// Where the datagrams of new flows go.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum To {
    /// Back to their client.
    Echo,
    /// To a server over UDP.
    Upstream {
        /// Its name, for logs and counters.
        name: Arc<str>,
        /// Picks the server of each flow.
        balancer: Arc<Balancer>,
    },
}

/// What new flows begin with; those that exist go on as they began.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How many flows there may be; half open are those whose server has not answered. `base_bytes` is what a flow takes
    /// of the memory budget.
    pub caps: Caps,
    /// Where they go.
    pub to: To,
    /// What holds for each.
    pub flow: FlowTerms,
    /// Whether the server is told who the client is: by a PROXY header (version 2) in front of the first datagram of each
    /// flow.
    pub proxy: bool,
}

/// What a relay is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The scope of its counters.
    pub name: Arc<str>,
    /// The address to listen on; port 0 is one of the kernel's choice.
    pub listen: SocketAddr,
    /// Bytes of the kernel's buffers to ask for, per arbiter and direction.
    pub socket_buffer: usize,
    /// Whether trains are handed to the kernel in one call.
    pub gso: bool,
    /// What each flow takes its memory from.
    pub budget: Budget,
    /// How many flows there are, and of whom.
    pub occupancy: Arc<Occupancy>,
    /// What flows begin with.
    pub terms: Terms,
}
