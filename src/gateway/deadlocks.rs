//! The watch for threads that wait for each other in a circle (feature `deadlock`): each circle is counted and logged
//! with its stacks.
//!
//! A process has one set of locks, so it has one watch and one count, whichever gateway of it starts first.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::memory::{DeadlockWatch, Waiting};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);

static WATCH: OnceLock<Option<DeadlockWatch>> = OnceLock::new();
static FOUND: AtomicU64 = AtomicU64::new(0);

/// Looks from now on until the end of the process.
pub(super) fn watch() {
    WATCH.get_or_init(|| match DeadlockWatch::start(EVERY, report) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::error!(%error, "there is no watch for deadlocks");
            None
        }
    });
}

/// Circles found since the start.
pub(super) fn found() -> u64 {
    FOUND.load(Ordering::Relaxed)
}

fn report(circle: &[Waiting]) {
    FOUND.fetch_add(1, Ordering::Relaxed);
    for Waiting { thread, stack } in circle {
        tracing::error!(?thread, threads = circle.len(), %stack, "deadlock");
    }
}
