//! What the actors of an interface count: raised without cost for what happens often.

use std::sync::Arc;

use crate::actors::{Counter, Turn};

/// Datagrams and packets that came to nothing, by reason.
pub const DROPPED: &str = "wireguard_dropped";

/// Reasons are looked up once and then found again in a short list.
#[derive(Debug, Default)]
pub(super) struct Drops {
    known: Vec<(&'static str, Counter)>,
}

impl Drops {
    pub(super) fn add<M: Send + 'static>(
        &mut self,
        turn: &Turn<'_, M>,
        scope: &Arc<str>,
        reason: &'static str,
        n: u64,
    ) {
        if n == 0 {
            return;
        }
        match self.known.iter().find(|(known, _)| *known == reason) {
            Some((_, counter)) => counter.add(n),
            None => {
                let counter = turn.counter(DROPPED, scope, reason);
                counter.add(n);
                self.known.push((reason, counter));
            }
        }
    }
}
