//! What a connection may keep unsent, and what it keeps unread, as far as it is leased from the memory budget of the
//! process.
//!
//! What was received was allowed to the peer before: it is leased whatever the level, and with it the connection is the
//! larger when the budget is critical and the largest has to go. A window opens only as the application reads.
//!
//! A connection begins with little of its credit and gets more as it is used: each time twice as much, up to what its
//! settings allow. At 80 % of the budget nobody gets more; who wants some is looked after ten times a second. What is
//! not used any more goes back. Without a budget all credit is there from the beginning.

use std::time::{Duration, Instant};

use super::actor_engine::Engine;
use crate::actors::clock::later;
use crate::memory::{Budget, Lease};

/// Bytes of credit that a connection begins with, whatever the level of the budget.
const FIRST: usize = 16 << 10;
/// Unread bytes are leased in such steps.
const STEP: usize = 16 << 10;
/// When to ask again for what was refused.
const AGAIN: Duration = Duration::from_millis(100);

/// See the top of the file.
#[derive(Default)]
pub(super) struct Leased {
    lease: Option<Lease>,
    unread: Option<Lease>,
    again: Option<Instant>,
}

impl Leased {
    /// Takes all credit back but what everybody begins with.
    pub(super) fn new(budget: Option<&Budget>, engine: &Engine) -> Self {
        let limit = engine.credit.limit();
        // Nothing of a new connection's credit is in use.
        let lease = budget.filter(|_| limit > FIRST && engine.credit.take(limit - FIRST)).map(Budget::nothing);
        let lease = lease.map(|mut lease| {
            lease.force(FIRST);
            lease
        });
        Self { lease, unread: budget.map(Budget::nothing), again: None }
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.again
    }

    /// Once in each turn: more credit for who uses most of it or waits for some, less for who uses none.
    pub(super) fn look(&mut self, waits: bool, engine: &mut Engine) {
        // In steps, so that the number that all share is seldom touched.
        let unread = engine.settle_unread() / STEP * STEP;
        if let Some(lease) = self.unread.as_mut().filter(|lease| lease.bytes() != unread) {
            lease.force(unread);
        }
        let Some(lease) = &mut self.lease else { return };
        let (given, free) = (lease.bytes(), engine.credit.free());
        // One write waits for the credit of its stream at most.
        let short = free < given / 2 || waits && free < engine.settings.stream_credit;
        if given < engine.credit.limit() && short {
            if self.again.is_some_and(|at| engine.now < at) {
                return;
            }
            let more = given.min(engine.credit.limit() - given);
            self.again = match lease.resize(given + more) {
                Ok(()) => {
                    engine.credit.give(more);
                    engine.freed = true;
                    None
                }
                Err(_) => Some(later(engine.now, AGAIN)),
            };
        } else {
            self.again = None;
            if given > FIRST && free == given && engine.credit.take(given - FIRST) {
                lease.force(FIRST);
            }
        }
    }
}
