//! Ends of streams that QUIC knows of and tells nobody.
//!
//! A peer that does not hear in time that its data have arrived sends them again, and if the stream has ended since, the
//! end goes with them. quiche drops data that were read before, keeps the end that came with them, and does not call the
//! stream readable: whoever waits for the end waits for ever. So the streams are looked through when packets have come.

use std::time::{Duration, Instant};

use super::actor_engine::Engine;
use super::actor_streams::Receive;
use super::session::{Event, StreamId};
use crate::actors::clock::later;

/// Streams that are looked through in each turn that packets have come in.
const FEW: usize = 16;
/// How often more than a few are.
const EVERY: Duration = Duration::from_millis(20);

/// When it is looked next.
#[derive(Debug, Default)]
pub(super) struct Silent {
    due: Option<Instant>,
}

impl Engine {
    /// When streams are to be looked through of which nothing may be heard.
    pub(super) const fn silent_due(&self) -> Option<Instant> {
        self.silent.due
    }

    /// Announces streams that have ended without a word. Each is announced once.
    pub(super) fn look_for_silent_ends(&mut self) {
        let is_due = self.silent.due.is_some_and(|at| at <= self.now);
        if !is_due && (!self.heard || self.streams.is_empty()) {
            return;
        }
        if !is_due && self.streams.len() > FEW {
            self.silent.due.get_or_insert_with(|| later(self.now, EVERY));
            return;
        }
        self.silent.due = None;
        let quic = &self.quic;
        // Also one that quiche has forgotten: it does so when both directions are over, and this one was not read out.
        #[expect(clippy::disallowed_methods, reason = "sorted below")]
        let open = self.streams.iter().filter(|(_, s)| s.receive == Receive::Open);
        let mut ended: Vec<StreamId> = open
            .filter(|(id, _)| quic.stream_finished(id.0) && !quic.stream_readable(id.0))
            .map(|(id, _)| *id)
            .collect();
        ended.sort_unstable();
        for stream in ended {
            if let Some(s) = self.streams.get_mut(&stream) {
                s.receive = Receive::AtEnd;
                self.events.push_back(Event::Readable(stream));
                self.forget_ended(stream);
            }
        }
    }
}

#[cfg(test)]
#[path = "ends_tests.rs"]
mod tests;
