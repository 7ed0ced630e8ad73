//! The actor of a track, on the arbiter of the publisher it was first had from: takes what publishers bring, in batches,
//! decides by its state what of it is new, and passes each batch on to its mirrors, one message for each arbiter.
//!
//! It never waits for anyone. A mirror whose mailbox is full is left out, and is sent all that is at hand when it has
//! room again. A publisher whose batches find no room here keeps them, and its connection is not read meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actor_directory::ToDirectory;
use super::actor_errand::{Came, Errand};
use super::actor_mirror::ToMirror;
use super::actor_relay::{Relay, ToSession, TrackRef, TrackView, tell};
use super::model::Location;
use super::model_codes::{DoneCode, RequestCode};
use super::model_names::FullTrackName;
use super::model_params::Properties;
use super::state_cache::{Item, Limits};
use super::state_directory::{Asked, SessionId};
use super::state_track::{Status, Track};
use crate::actors::clock::later;
use crate::actors::{Counter, Exit, Fault, Mail, Progress, Protocol, Refused, Reply, Turn};
use crate::memory::Lease;
use crate::transports::quic::Door;

/// When to try the full mailbox of a mirror again.
const RETRY: Duration = Duration::from_millis(2);
/// How long one that has ended goes on, for mirrors that are behind.
const LAST: Duration = Duration::from_secs(2);
/// What a cache may keep however little memory there is: without it nothing could be passed on.
const LEAST: usize = 64 << 10;
/// Changes of a cache's size that are too small to tell the budget.
const STEP: usize = 64 << 10;
/// How often one that is not fed looks whether memory is short.
const LOOK: Duration = Duration::from_secs(1);

/// What a track is told.
pub(super) enum ToTrack {
    /// A publisher was asked for it, or offers it by itself with this request, which is answered.
    Source { source: SessionId, door: Door, offers: Option<u64> },
    /// A publisher has accepted, or publishes it by itself.
    Live { source: SessionId, largest: Option<Location>, properties: Properties },
    /// A publisher refuses.
    Refused(SessionId, RequestCode),
    /// A publisher is done, or gone without a word.
    Gone(SessionId, Option<DoneCode>),
    /// What a publisher brings.
    Items { source: SessionId, items: Vec<Item>, bytes: usize },
    /// A publisher broke the rules of the track before anything of it could be taken.
    Malformed(SessionId, &'static str),
    /// An arbiter has subscribers.
    Attach { arbiter: usize, mail: Mail<ToMirror>, forward: bool },
    /// What they want.
    Forward { arbiter: usize, forward: bool },
    /// It has none any more.
    Detach { arbiter: usize },
    /// Something of the past is wanted that is not at hand.
    Errand(Box<Errand>),
    /// What is known of it.
    View(Reply<TrackView>),
    /// The relay's cache has other bounds.
    Changed,
    /// The relay ends.
    Stop,
}

struct Side {
    mail: Mail<ToMirror>,
    forward: bool,
    behind: bool,
    remote: bool,
}

#[derive(Default)]
struct Counters {
    batches: Counter,
    cross: Counter,
    duplicates: Counter,
    evicted: Counter,
    squeezed: Counter,
    behind: Counter,
}

/// See the top of the file.
pub(super) struct TrackActor {
    relay: Arc<Relay>,
    id: u64,
    name: FullTrackName,
    /// The way here, from the first turn on.
    me: Option<TrackRef>,
    state: Track,
    doors: BTreeMap<SessionId, Door>,
    /// Publishers that offer it by themselves.
    offered: BTreeSet<SessionId>,
    mirrors: BTreeMap<usize, Side>,
    /// It had a publisher.
    fed: bool,
    /// What publishers were told last.
    forward: bool,
    retry: Option<Instant>,
    /// Nobody subscribes, or nobody publishes: then it ends.
    idle: Option<Instant>,
    ending: Option<Instant>,
    /// What the cache counts against the memory budget, and when to look how much there is of it.
    lease: Option<Lease>,
    look_at: Option<Instant>,
    counters: Counters,
}

impl TrackActor {
    pub(super) fn new(relay: Arc<Relay>, id: u64, name: FullTrackName) -> Self {
        let state = Track::new(relay.settings().cache);
        let lease = relay.lease();
        Self {
            relay,
            lease,
            look_at: None,
            id,
            name,
            me: None,
            state,
            doors: BTreeMap::new(),
            offered: BTreeSet::new(),
            mirrors: BTreeMap::new(),
            fed: false,
            forward: false,
            retry: None,
            idle: None,
            ending: None,
            counters: Counters::default(),
        }
    }

    fn items(&mut self, source: SessionId, items: Vec<Item>, turn: &Turn<'_, ToTrack>) {
        let mut new = Vec::with_capacity(items.len());
        let taken = self.state.take(source, items, turn.now(), &mut new);
        self.counters.duplicates.add(self.state.take_duplicates());
        self.counters.evicted.add(self.state.take_evicted());
        self.pass_on(new, turn);
        self.fit(turn);
        if let Err(malformed) = taken {
            self.malformed(source, malformed.0, turn);
        }
    }

    /// The publisher is told to stop, and subscribers that the track is of no use.
    fn malformed(&mut self, source: SessionId, reason: &'static str, turn: &Turn<'_, ToTrack>) {
        turn.counter("moq_malformed", &self.relay.name, reason).add(1);
        if let Some(door) = self.doors.remove(&source) {
            tell(&door, ToSession::Drop { track: self.id, malformed: true });
        }
        let left = self.state.gone(source, None, turn.now());
        self.pass_on(left, turn);
        self.state.finish(DoneCode::MalformedTrack);
        self.tell_status(turn);
    }

    fn pass_on(&mut self, items: Vec<Item>, turn: &Turn<'_, ToTrack>) {
        if items.is_empty() || self.mirrors.is_empty() {
            return;
        }
        self.counters.batches.add(1);
        let bytes = items.iter().map(Item::size).sum();
        let items: Arc<[Item]> = items.into();
        let mut behind = 0;
        for side in self.mirrors.values_mut().filter(|side| !side.behind) {
            match side.mail.tell(ToMirror::Items(items.clone(), bytes)) {
                Ok(()) => self.counters.cross.add(u64::from(side.remote)),
                Err(Refused::Closed(_)) => {}
                Err(Refused::Full(_) | Refused::TooLarge(_)) => {
                    side.behind = true;
                    behind += 1;
                }
            }
        }
        if behind > 0 {
            self.counters.behind.add(behind);
            self.retry.get_or_insert_with(|| later(turn.now(), RETRY));
        }
    }

    fn tell_status(&mut self, turn: &Turn<'_, ToTrack>) {
        for side in self.mirrors.values_mut() {
            if side.mail.tell(ToMirror::Status(self.state.status().clone())).is_err() {
                side.behind = true;
                self.retry.get_or_insert_with(|| later(turn.now(), RETRY));
            }
        }
        if matches!(self.state.status(), Status::Failed(_) | Status::Ended(_)) && self.ending.is_none() {
            self.end(turn);
        }
    }

    fn end(&mut self, turn: &Turn<'_, ToTrack>) {
        self.ending = Some(later(turn.now(), LAST));
        for door in std::mem::take(&mut self.doors).into_values() {
            tell(&door, ToSession::Drop { track: self.id, malformed: false });
        }
        self.tell_ended();
    }

    fn tell_ended(&self) {
        if let Some(me) = self.me.clone() {
            let _full = self.relay.tell_directory(ToDirectory::Ended(me));
        }
    }

    /// Sends those that were left out all that is at hand.
    fn catch_up(&mut self, turn: &Turn<'_, ToTrack>) {
        let mut left = false;
        for side in self.mirrors.values_mut().filter(|side| side.behind) {
            if side.mail.is_closed() {
                side.behind = false;
                continue;
            }
            let groups = self.state.groups().clone();
            let told = side.mail.tell(ToMirror::Anew(groups)).is_ok()
                && side.mail.tell(ToMirror::Status(self.state.status().clone())).is_ok();
            side.behind = !told;
            self.counters.cross.add(u64::from(told && side.remote));
            left |= !told;
        }
        self.retry = left.then(|| later(turn.now(), RETRY));
    }

    /// Publishers are told when subscribers want objects, or none does any more.
    fn look(&mut self, turn: &Turn<'_, ToTrack>) {
        let forward = self.mirrors.values().any(|side| side.forward);
        if forward != self.forward {
            self.forward = forward;
            for door in self.doors.values() {
                tell(door, ToSession::Forward { track: self.id, forward });
            }
        }
        // Whoever offers it by itself says when it ends.
        let lonely = self.state.sources() == 0 || self.mirrors.is_empty() && self.offered.is_empty();
        // Nobody feeds it and nobody waits: whoever publishes it next begins anew.
        if self.state.sources() == 0 && !forward && self.fed && self.ending.is_none() {
            self.state.finish(DoneCode::TrackEnded);
            return self.tell_status(turn);
        }
        self.idle = match (lonely && self.ending.is_none(), self.idle) {
            (false, _) => None,
            (true, at @ Some(_)) => at,
            (true, None) => Some(later(turn.now(), self.relay.settings().linger)),
        };
    }

    /// Other bounds hold for what is at hand, here and at its mirrors.
    fn changed(&mut self, turn: &Turn<'_, ToTrack>) {
        let limits = self.relay.settings().cache;
        self.limit(limits, turn);
        self.counters.evicted.add(self.state.take_evicted());
        self.fit(turn);
    }

    fn limit(&mut self, limits: Limits, turn: &Turn<'_, ToTrack>) {
        self.state.set_limits(limits);
        self.state.shrink(turn.now());
        for side in self.mirrors.values_mut() {
            if side.mail.tell(ToMirror::Limits(limits)).is_err() {
                side.behind = true;
                self.retry.get_or_insert_with(|| later(turn.now(), RETRY));
            }
        }
    }

    /// Counts what is at hand against the memory budget. Beyond 70 % of it the cache halves instead of growing, here and
    /// at its mirrors; below 60 % it may have again what the settings grant.
    fn fit(&mut self, turn: &Turn<'_, ToTrack>) {
        let (Some(budget), Some(lease)) = (&self.relay.budget, &self.lease) else { return };
        let (held, leased) = (self.state.groups().bytes(), lease.bytes());
        let used = budget.used().saturating_sub(leased).saturating_add(held);
        let (short, roomy) = (used > budget.limit() / 10 * 7, used <= budget.limit() / 10 * 6);
        let (granted, mine) = (self.relay.settings().cache, self.state.groups().limits());
        if short && held > LEAST {
            self.limit(Limits { bytes: (held / 2).max(LEAST).min(granted.bytes), ..granted }, turn);
            self.counters.squeezed.add(self.state.take_evicted());
        } else if roomy && mine.bytes < granted.bytes && held > mine.bytes / 2 {
            let bytes = mine.bytes.saturating_mul(2).min(granted.bytes);
            self.limit(Limits { bytes, ..granted }, turn);
        }
        let held = self.state.groups().bytes();
        if let Some(lease) = &mut self.lease
            && (held.abs_diff(lease.bytes()) >= STEP || held < STEP)
        {
            lease.force(held);
        }
        self.look_at = (held > LEAST).then(|| later(turn.now(), LOOK));
    }

    /// Nobody came back.
    fn give_up(&mut self, turn: &Turn<'_, ToTrack>) {
        self.state.finish(DoneCode::TrackEnded);
        self.tell_status(turn);
    }

    fn view(&self) -> TrackView {
        let groups = self.state.groups();
        TrackView {
            name: self.name.clone(),
            publishers: self.state.sources(),
            arbiters: self.mirrors.len(),
            largest: groups.largest(),
            cached_groups: groups.groups(),
            cached_bytes: groups.bytes(),
            live: matches!(self.state.status(), Status::Live(_)),
            forward: self.forward,
            behind: self.mirrors.values().filter(|side| side.behind).count(),
        }
    }
}

impl Protocol for TrackActor {
    type Msg = ToTrack;
    const KIND: &'static str = "moq-track";

    fn size(m: &ToTrack) -> usize {
        if let ToTrack::Items { bytes, .. } = m { *bytes } else { 0 }
    }

    fn started(&mut self, turn: &mut Turn<'_, ToTrack>) -> Result<(), Fault> {
        self.me = Some(TrackRef { id: self.id, name: self.name.clone(), mail: turn.mail() });
        let name = &self.relay.name;
        self.counters = Counters {
            batches: turn.counter("moq_batches", name, ""),
            cross: turn.counter("moq_cross_arbiter", name, ""),
            duplicates: turn.counter("moq_duplicates", name, ""),
            evicted: turn.counter("moq_evicted", name, ""),
            squeezed: turn.counter("moq_evicted", name, "memory"),
            behind: turn.counter("moq_mirrors_behind", name, ""),
        };
        self.look(turn);
        Ok(())
    }

    fn on(&mut self, m: ToTrack, turn: &mut Turn<'_, ToTrack>) -> Result<(), Fault> {
        match m {
            // It was not known yet that this track ends.
            ToTrack::Source { door, offers: None, .. } if self.ending.is_some() => {
                tell(&door, ToSession::Drop { track: self.id, malformed: false });
            }
            ToTrack::Source { source, door, offers: Some(request) } if self.ending.is_some() => {
                let asked = Asked { session: source, request };
                let late = self.me.clone().map(|track| ToDirectory::Late { asked, track });
                if !late.is_some_and(|late| self.relay.tell_directory(late)) {
                    tell(&door, ToSession::Granted { request, refused: Some(RequestCode::ExcessiveLoad) });
                }
            }
            ToTrack::Source { source, door, offers } => {
                self.state.add(source);
                self.fed = true;
                if let Some(request) = offers {
                    self.offered.insert(source);
                    if let Some(track) = self.me.clone() {
                        tell(&door, ToSession::Published { request, track });
                    }
                }
                if self.forward {
                    tell(&door, ToSession::Forward { track: self.id, forward: true });
                }
                self.doors.insert(source, door);
            }
            ToTrack::Live { source, largest, properties } => {
                if self.state.live(source, largest, &properties) {
                    for side in self.mirrors.values_mut() {
                        side.behind = true;
                    }
                    self.catch_up(turn);
                }
            }
            ToTrack::Refused(source, code) => {
                self.doors.remove(&source);
                self.offered.remove(&source);
                if self.state.refused(source, code) {
                    self.tell_status(turn);
                }
            }
            ToTrack::Gone(source, code) => {
                self.doors.remove(&source);
                self.offered.remove(&source);
                let left = self.state.gone(source, code, turn.now());
                self.pass_on(left, turn);
                if matches!(self.state.status(), Status::Failed(_) | Status::Ended(_)) {
                    self.tell_status(turn);
                }
            }
            ToTrack::Items { source, items, .. } => self.items(source, items, turn),
            ToTrack::Malformed(source, reason) => self.malformed(source, reason, turn),
            ToTrack::Attach { arbiter, mail, forward } => {
                let remote = arbiter != turn.arbiter();
                self.mirrors.insert(arbiter, Side { mail, forward, behind: true, remote });
                self.catch_up(turn);
            }
            ToTrack::Forward { arbiter, forward } => {
                if let Some(side) = self.mirrors.get_mut(&arbiter) {
                    side.forward = forward;
                }
            }
            ToTrack::Detach { arbiter } => {
                self.mirrors.remove(&arbiter);
            }
            ToTrack::Errand(errand) => match self.doors.values().find(|door| !door.is_closed()) {
                Some(door) => tell(door, ToSession::Fetch(errand)),
                None => errand.say(Came::Refused(RequestCode::DoesNotExist)),
            },
            ToTrack::View(reply) => drop(reply.send(self.view())),
            ToTrack::Changed => self.changed(turn),
            ToTrack::Stop => turn.stop(),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        [self.retry, self.idle, self.ending, self.look_at, self.state.groups().deadline()].into_iter().flatten().min()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToTrack>) -> Result<(), Fault> {
        let now = turn.now();
        self.state.shrink(now);
        self.fit(turn);
        if self.retry.is_some_and(|at| at <= now) {
            self.catch_up(turn);
        }
        if self.idle.is_some_and(|at| at <= now) {
            self.give_up(turn);
        }
        if self.ending.is_some_and(|at| at <= now) {
            turn.stop();
        }
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, ToTrack>) -> Result<Progress, Fault> {
        self.look(turn);
        Ok(Progress::Idle)
    }

    fn held(&self) -> usize {
        self.state.groups().bytes()
    }

    fn closed(&mut self, _: &Exit) {
        self.tell_ended();
    }
}
