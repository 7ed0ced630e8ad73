//! What a relay of datagrams counts, on each arbiter.

use std::cell::RefCell;
use std::sync::Arc;

use crate::actors::{Counter, Tally, Turn};

/// Counters by reason, found again without a look into the arbiter's table.
pub(super) struct Reasons {
    family: &'static str,
    known: RefCell<Vec<(&'static str, Counter)>>,
    scope: Arc<str>,
}

impl Reasons {
    pub(super) fn new(family: &'static str, scope: &Arc<str>) -> Self {
        Self { family, known: RefCell::default(), scope: scope.clone() }
    }

    /// Adds `n` to one of few.
    pub(super) fn add<M: Send + 'static>(&self, turn: &Turn<'_, M>, reason: &'static str, n: u64) {
        if n == 0 {
            return;
        }
        let mut known = self.known.borrow_mut();
        if let Some((_, counter)) = known.iter().find(|(name, _)| *name == reason) {
            counter.add(n);
            return;
        }
        let counter = turn.counter(self.family, &self.scope, reason);
        counter.add(n);
        known.push((reason, counter));
    }
}

/// What moves one way.
pub(super) struct Moves {
    pub(super) datagrams: Counter,
    pub(super) calls: Counter,
}

impl Moves {
    /// So many in one system call.
    pub(super) fn one_call(&self, datagrams: u64) {
        self.calls.add(1);
        self.datagrams.add(datagrams);
    }
}

/// The counters of one door, shared with its flows.
pub(super) struct Counts {
    /// Datagrams and the system calls that moved them: from clients,
    pub(super) from_clients: Moves,
    /// to servers,
    pub(super) to_servers: Moves,
    /// from servers,
    pub(super) from_servers: Moves,
    /// and to clients.
    pub(super) to_clients: Moves,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) kernel: Counter,
    pub(super) dropped: Reasons,
    pub(super) refused: Reasons,
    pub(super) accepted: Counter,
    /// For what is counted when a flow is gone.
    pub(super) tally: Tally,
}

impl Counts {
    pub(super) fn new<M: Send + 'static>(turn: &Turn<'_, M>, scope: &Arc<str>) -> Self {
        let moves = |way| Moves {
            datagrams: turn.counter("udp_datagrams", scope, way),
            calls: turn.counter("udp_calls", scope, way),
        };
        Self {
            from_clients: moves("from_clients"),
            to_servers: moves("to_servers"),
            from_servers: moves("from_servers"),
            to_clients: moves("to_clients"),
            bytes_in: turn.counter("bytes_in", scope, ""),
            bytes_out: turn.counter("bytes_out", scope, ""),
            kernel: turn.counter("udp_kernel_dropped", scope, ""),
            dropped: Reasons::new("udp_dropped", scope),
            refused: Reasons::new("connections_refused", scope),
            accepted: turn.counter("connections_accepted", scope, ""),
            tally: turn.tally(),
        }
    }

    /// A server of this upstream did not take what was meant for it.
    pub(super) fn failed<M: Send + 'static>(turn: &Turn<'_, M>, upstream: &Arc<str>, reason: &'static str) {
        turn.counter("upstream_failures", upstream, reason).add(1);
    }
}
