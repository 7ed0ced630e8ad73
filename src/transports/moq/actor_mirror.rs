//! The mirror of a track on one arbiter: takes what the track's actor sends, one message for each of its turns, however
//! many subscribers there are here, and rings for them.
//!
//! It lives as long as it has readers, and a little longer. What it is sent while its mailbox is full the track does not
//! keep: it sends all that is at hand anew when there is room again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actor_feed::{Feed, Feeds};
use super::actor_relay::{Relay, TrackRef};
use super::actor_track::ToTrack;
use super::state_cache::{Groups, Item, Limits};
use super::state_track::Status;
use crate::actors::clock::later;
use crate::actors::{Exit, Fault, Progress, Protocol, Turn, shelf};
use crate::memory::Lease;

/// How long a mirror without readers is kept.
const LINGER: Duration = Duration::from_secs(1);
/// When to try a full mailbox again.
const RETRY: Duration = Duration::from_millis(2);
/// Changes of what it holds that are too small to tell the budget.
const STEP: usize = 16 << 10;

/// What a mirror is told.
pub(super) enum ToMirror {
    /// What has come, in one turn of the track.
    Items(Arc<[Item]>, usize),
    /// All that is at hand, instead of what was there.
    Anew(Groups),
    /// Other bounds of what is kept.
    Limits(Limits),
    /// What is true of the track from now on.
    Status(Status),
    /// Readers have come or gone, or want something else.
    Look,
    /// The track's actor has ended.
    TrackEnded,
}

/// See the top of the file.
pub(super) struct Mirror {
    relay: Arc<Relay>,
    track: TrackRef,
    feed: Rc<Feed>,
    /// What the copy costs beside what it shares with the track.
    lease: Option<Lease>,
    /// What the track was told: whether objects are wanted here.
    told: Option<bool>,
    attached: bool,
    retry: Option<Instant>,
    /// Without readers since.
    idle: Option<Instant>,
}

impl Mirror {
    /// On its own arbiter.
    pub(super) fn new(relay: Arc<Relay>, track: TrackRef) -> Self {
        let feeds = shelf(&relay, Feeds::default);
        let feed = feeds.get(track.id).unwrap_or_else(|| {
            let feed = Rc::new(Feed::new(relay.settings().cache));
            feeds.put(track.id, feed.clone());
            feed
        });
        let lease = relay.lease();
        Self { relay, track, feed, lease, told: None, attached: false, retry: None, idle: None }
    }

    /// The feed of a track on this arbiter, with a mirror that writes it.
    pub(super) fn feed(relay: &Arc<Relay>, track: &TrackRef, arbiter: usize) -> Option<Rc<Feed>> {
        let feeds = shelf(relay, Feeds::default);
        if let Some(feed) = feeds.get(track.id) {
            return Some(feed);
        }
        let feed = Rc::new(Feed::new(relay.settings().cache));
        feeds.put(track.id, feed.clone());
        let (owner, of) = (relay.clone(), track.clone());
        let mail = relay.spawn_on(arbiter, "mirror", move || Self::new(owner, of));
        match mail {
            Some(mail) => {
                feed.is_written_by(mail);
                Some(feed)
            }
            None => {
                feeds.remove(track.id, &feed);
                None
            }
        }
    }

    fn look(&mut self, turn: &Turn<'_, ToMirror>) {
        let (readers, forwarding) = self.feed.readers();
        self.idle = match (readers, self.idle) {
            (0, None) => Some(later(turn.now(), LINGER)),
            (0, Some(at)) => Some(at),
            (_, _) => None,
        };
        let forward = forwarding > 0;
        if self.retry.is_some() {
            return;
        }
        if !self.attached {
            let (arbiter, mail) = (turn.arbiter(), turn.mail());
            self.attached = self.track.mail.tell(ToTrack::Attach { arbiter, mail, forward }).is_ok();
            self.told = Some(forward);
            self.again_if(!self.attached, turn);
        } else if self.told != Some(forward) {
            let told = self.track.mail.tell(ToTrack::Forward { arbiter: turn.arbiter(), forward }).is_ok();
            self.told = told.then_some(forward);
            self.again_if(!told, turn);
        }
    }

    fn again_if(&mut self, refused: bool, turn: &Turn<'_, ToMirror>) {
        if !refused {
            return;
        }
        if self.track.mail.is_closed() {
            self.track_ended();
        } else {
            self.retry = Some(later(turn.now(), RETRY));
        }
    }

    /// Its actor has ended without a word.
    fn track_ended(&self) {
        let mut status = self.feed.status.borrow_mut();
        *status = match &*status {
            Status::Pending => Status::Failed(super::model_codes::RequestCode::InternalError),
            Status::Live(_) => Status::Ended(super::model_codes::DoneCode::InternalError),
            other @ Status::Failed(_) | other @ Status::Ended(_) => other.clone(),
        };
        drop(status);
        self.forget();
        self.feed.ring();
    }

    fn forget(&self) {
        shelf(&self.relay, Feeds::default).remove(self.track.id, &self.feed);
    }
}

impl Protocol for Mirror {
    type Msg = ToMirror;
    const KIND: &'static str = "moq-mirror";

    fn size(m: &ToMirror) -> usize {
        match m {
            ToMirror::Items(_, bytes) => *bytes,
            // What is in the track's cache is bounded, and counted references mostly: it must fit.
            ToMirror::Anew(_) | ToMirror::Limits(_) | ToMirror::Status(_) | ToMirror::Look | ToMirror::TrackEnded => 0,
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, ToMirror>) -> Result<(), Fault> {
        self.feed.is_written_by(turn.mail());
        // Refused only if too many watch, and then the track's end is found at the next word to it.
        let _watched = turn.watch(&self.track.mail, |_| ToMirror::TrackEnded);
        self.look(turn);
        Ok(())
    }

    fn on(&mut self, m: ToMirror, turn: &mut Turn<'_, ToMirror>) -> Result<(), Fault> {
        match m {
            ToMirror::Items(items, _) => {
                let mut groups = self.feed.groups.borrow_mut();
                items.iter().for_each(|item| groups.apply(item));
                groups.shrink(turn.now());
                drop(groups);
                self.feed.ring();
            }
            ToMirror::Anew(groups) => {
                *self.feed.groups.borrow_mut() = groups;
                self.feed.ring();
            }
            ToMirror::Limits(limits) => {
                let mut groups = self.feed.groups.borrow_mut();
                groups.set_limits(limits);
                groups.shrink(turn.now());
                drop(groups);
                self.feed.ring();
            }
            ToMirror::Status(status) => {
                let over = matches!(status, Status::Failed(_) | Status::Ended(_));
                *self.feed.status.borrow_mut() = status;
                self.feed.heard.set(true);
                if over {
                    // Who comes from now on asks for the track anew.
                    self.forget();
                }
                self.feed.ring();
            }
            ToMirror::Look => self.look(turn),
            ToMirror::TrackEnded => self.track_ended(),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let old = self.feed.groups.borrow().deadline();
        [self.retry, self.idle, old].into_iter().flatten().min()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToMirror>) -> Result<(), Fault> {
        let now = turn.now();
        self.retry = self.retry.filter(|at| *at > now);
        self.feed.groups.borrow_mut().shrink(now);
        self.look(turn);
        if self.idle.is_some_and(|at| at <= now) {
            self.forget();
            if self.attached {
                let _gone = self.track.mail.tell(ToTrack::Detach { arbiter: turn.arbiter() });
            }
            turn.stop();
        }
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, ToMirror>) -> Result<Progress, Fault> {
        // A word about readers may have found no room.
        self.look(turn);
        let overhead = self.held();
        if let Some(lease) = self.lease.as_mut().filter(|lease| overhead.abs_diff(lease.bytes()) >= STEP) {
            lease.force(overhead);
        }
        Ok(Progress::Idle)
    }

    fn held(&self) -> usize {
        self.feed.groups.borrow().overhead()
    }

    fn closed(&mut self, _: &Exit) {
        self.track_ended();
    }
}
