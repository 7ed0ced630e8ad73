//! What the parts of an interface know of its peers: who owns which network, and the mailbox of each session.
//!
//! The networks change with the configuration and are published whole; sessions come and go, so each peer has a slot
//! that is written by itself. Reading either costs no lock.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use super::actor_session::SessionMsg;
use crate::actors::Mail;
use crate::memory::{self, Snapshot};
use crate::transports::kit::packets::Deliver;
use crate::transports::kit::routes::Routes;

/// One peer, as others see it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The mailbox of its session while there is one.
    pub(super) session: ArcSwapOption<Mail<SessionMsg>>,
}

/// All peers of an interface.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) routes: Routes,
    /// By the numbers that `routes` leads to; peers that are gone leave an empty slot.
    pub(super) slots: Vec<Arc<Slot>>,
    /// Our own addresses.
    pub(super) own: Vec<IpAddr>,
}

impl Table {
    /// The peer that an address belongs to.
    pub(super) fn peer_of(&self, address: IpAddr) -> Option<u32> {
        self.routes.lookup(address)
    }

    pub(super) fn slot(&self, peer: u32) -> Option<&Arc<Slot>> {
        self.slots.get(peer as usize)
    }

    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }
}

/// Makes what takes packets out of tunnels; called on the arbiter of each session.
pub(super) type Inside = Arc<dyn Fn() -> Box<dyn Deliver> + Send + Sync>;

/// Where that is found: nothing is there until something is attached, once.
pub(super) type InsideSlot = Arc<OnceLock<Inside>>;

/// The table in force.
pub(super) type Published = Snapshot<Table>;

/// One reader's view of it.
pub(super) type View = memory::View<Table>;
