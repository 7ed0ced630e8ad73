//! How long a connection of a client may be silent, by where it is: in its handshake, between requests, inside a head,
//! inside a body, or not reading what is sent to it.
//!
//! One deadline for all of it. HTTP/1.1 tells the stage from its bytes; HTTP/2 and 3 know streams alone, so there a
//! connection without requests is between them. Only a client that is waited for is late: a body that is not read
//! because a server is slow costs its client nothing.

use std::time::{Duration, Instant};

use super::codec_head::Stage;

/// What is allowed. A duration of `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// From the beginning of the connection to the end of its first head, and for each head from its first byte.
    pub head: Duration,
    /// Silence inside a body.
    pub body: Duration,
    /// Time in which a client takes nothing of what is sent.
    pub send: Duration,
    /// Silence between requests.
    pub idle: Option<Duration>,
}

/// What a client was late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Late {
    /// A head, or the handshake before the first.
    Head,
    /// A piece of a body.
    Body,
    /// Reading.
    Send,
    /// The next request.
    Idle,
}

impl Late {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Head => "head_timeout",
            Self::Body => "body_timeout",
            Self::Send => "send_timeout",
            Self::Idle => "idle",
        }
    }
}

/// A request that waits for a body has the same limit, and answers when it has passed: this is for bodies that nobody
/// waits for.
const GRACE: Duration = Duration::from_secs(1);

/// The watch over one connection.
#[derive(Debug)]
pub struct Watch {
    times: Times,
    stage: Stage,
    /// Since when it is in its stage, or without a request.
    since: Instant,
    /// No request has come yet.
    fresh: bool,
    /// Requests that are being answered.
    active: usize,
    /// Since when a read waits for the client.
    reading: Option<Instant>,
    /// Since when a write waits for the client.
    writing: Option<Instant>,
}

impl Watch {
    /// A watch over a connection that begins now.
    #[must_use]
    pub const fn new(times: Times, now: Instant) -> Self {
        Self { times, stage: Stage::Between, since: now, fresh: true, active: 0, reading: None, writing: None }
    }

    /// Something was read, and the client is there now.
    pub fn read(&mut self, stage: Stage, now: Instant) {
        self.reading = None;
        if stage != self.stage {
            self.stage = stage;
            // The first head has had its time since the connection began.
            if !(self.fresh && stage == Stage::Head) {
                self.since = now;
            }
        }
    }

    /// A read waits for the client.
    pub fn reads(&mut self, now: Instant) {
        self.reading.get_or_insert(now);
    }

    /// A write went on, or waits for the client.
    pub fn wrote(&mut self, waits: bool, now: Instant) {
        if waits {
            self.writing.get_or_insert(now);
        } else {
            self.writing = None;
        }
    }

    /// A request has come.
    pub const fn began(&mut self) {
        self.fresh = false;
        self.active += 1;
    }

    /// A request is answered, or given up.
    pub const fn ended(&mut self, now: Instant) {
        self.active = self.active.saturating_sub(1);
        if self.active == 0 && matches!(self.stage, Stage::Between) {
            self.since = now;
        }
    }

    /// Requests that are being answered.
    #[must_use]
    pub const fn active(&self) -> usize {
        self.active
    }

    /// Where the client is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Since when nothing is asked and nothing is on its way: the client has had an answer, and may ask again.
    #[must_use]
    pub const fn quiet_since(&self) -> Option<Instant> {
        match self.stage {
            Stage::Between if self.active == 0 && !self.fresh && self.writing.is_none() => Some(self.since),
            Stage::Between | Stage::Head | Stage::Body | Stage::Open => None,
        }
    }

    /// When [`late`](Self::late) is to be asked next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.limits().map(|(at, _)| at).min()
    }

    /// What the client is late with, if it is.
    #[must_use]
    pub fn late(&self, now: Instant) -> Option<Late> {
        self.limits().filter(|(at, _)| *at <= now).min_by_key(|(at, _)| *at).map(|(_, late)| late)
    }

    fn limits(&self) -> impl Iterator<Item = (Instant, Late)> {
        let send = self.writing.map(|since| (since, self.times.send, Late::Send));
        let read = match self.stage {
            Stage::Between if self.active == 0 && self.fresh => Some((self.since, self.times.head, Late::Head)),
            Stage::Between if self.active == 0 => self.times.idle.map(|idle| (self.since, idle, Late::Idle)),
            Stage::Head if self.active == 0 => Some((self.since, self.times.head, Late::Head)),
            Stage::Body => self.reading.map(|since| (since, self.times.body.saturating_add(GRACE), Late::Body)),
            Stage::Between | Stage::Head | Stage::Open => None,
        };
        send.into_iter().chain(read).filter_map(|(since, time, late)| Some((since.checked_add(time)?, late)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn watch() -> (Watch, Instant) {
        let times = Times { head: seconds(10), body: seconds(30), send: seconds(20), idle: Some(seconds(60)) };
        let now = clock::now();
        (Watch::new(times, now), now)
    }

    #[test]
    fn each_stage_has_its_limit() {
        let (mut watch, start) = watch();
        let at = |n: u64| start + seconds(n);
        assert_eq!((watch.deadline(), watch.late(at(9)), watch.late(at(10))), (Some(at(10)), None, Some(Late::Head)));
        watch.read(Stage::Head, at(5));
        assert_eq!(watch.deadline(), Some(at(10)), "the first byte buys no time");
        watch.read(Stage::Body, at(6));
        watch.began();
        assert_eq!(watch.deadline(), None, "nobody waits for the client");
        watch.reads(at(7));
        watch.reads(at(9));
        assert_eq!((watch.deadline(), watch.late(at(38))), (Some(at(38)), Some(Late::Body)));
        watch.read(Stage::Between, at(10));
        assert_eq!(watch.deadline(), None);
        watch.wrote(true, at(11));
        watch.wrote(true, at(12));
        assert_eq!((watch.deadline(), watch.late(at(31))), (Some(at(31)), Some(Late::Send)));
        watch.wrote(false, at(13));
        assert_eq!(watch.quiet_since(), None);
        watch.ended(at(14));
        assert_eq!(watch.quiet_since(), Some(at(14)));
        assert_eq!((watch.deadline(), watch.late(at(74))), (Some(at(74)), Some(Late::Idle)));
        watch.read(Stage::Head, at(20));
        assert_eq!((watch.deadline(), watch.late(at(30))), (Some(at(30)), Some(Late::Head)));
    }

    #[test]
    fn a_client_that_sends_ahead_is_not_late_while_it_waits() {
        let (mut watch, start) = watch();
        watch.read(Stage::Between, start);
        watch.began();
        watch.read(Stage::Head, start);
        assert_eq!(watch.deadline(), None);
    }
}
