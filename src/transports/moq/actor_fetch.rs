//! Objects of the past: fetches of the peer, and what they take from the cache of this arbiter or from a publisher.
//!
//! What is whole in the cache is served from there. Where its beginning is missing, that part alone is fetched from a
//! publisher and what follows comes from the cache; where anything else is missing, all of it is fetched. Another
//! session does that as an errand (`actor_errand`); its objects are written anew here, with a credit, so that no more is
//! on the way than this subscriber takes. FETCH_OK waits until the end is known (draft, section 9.5).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::actor_errand::{Came, Errand, Fetched};
use super::actor_feed::Reader;
use super::actor_mirror::Mirror;
use super::actor_relay::{ToSession, TrackRef, tell};
use super::actor_session::MoqSession;
use super::actor_track::ToTrack;
use super::actor_words::What;
use super::codec_fetch::{FetchEncoder, FetchItem, FetchObject};
use super::codec_stream::put_fetch_header;
use super::model::{DEFAULT_PRIORITY, Draft, GroupOrder, Location};
use super::model_codes::{RequestCode, ResetCode};
use super::model_message::{Fetch, FetchOk, FetchWhat, Message};
use super::model_names::FullTrackName;
use super::model_params::{Fill, Filter, Properties};
use super::state_cache::{Groups, Head, Mark};
use super::state_delivery::next;
use super::state_track::Status;
use crate::actors::clock::later;
use crate::transports::quic::{Door, Priority, Session, StreamId, StreamKind};

/// How long a publisher has to answer, unless the peer says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that may be on the way from a publisher's session.
pub(super) const CREDIT: usize = 256 << 10;
/// Numbers of fills, which have no request stream of their own.
const FILLS: u64 = 1 << 62;

/// How far a fetch is.
enum Stage {
    /// Its track, its publisher, or the subscription that it joins is awaited.
    Waiting,
    /// Another session fetches what is missing.
    Errand { number: u64, door: Option<Door> },
    /// The rest is at hand.
    Cache,
    /// All was produced.
    Produced,
}

/// A fetch of the peer.
pub(super) struct Serving {
    name: FullTrackName,
    request_id: u64,
    filter: Filter,
    order: GroupOrder,
    priority: u8,
    patience: Duration,
    /// The subscription whose establishment it waits for, and what it joins.
    joins: Option<(u64, FetchWhat)>,
    /// The subscription that it belongs to, if it is a fill.
    fill_of: Option<u64>,
    track: Option<TrackRef>,
    reader: Option<Reader>,
    stage: Stage,
    properties: Properties,
    /// Produced up to here, and to here it goes.
    cursor: Location,
    until: Location,
    /// From here on it is at hand.
    cached_from: Option<Location>,
    encoder: FetchEncoder,
    stream: Option<StreamId>,
    out: VecDeque<Bytes>,
    /// Bytes that came by an errand and were written, since the credit was renewed.
    taken: usize,
    blocked: bool,
    /// The next object is not whole yet.
    waits: bool,
    said: bool,
}

impl Serving {
    /// The track.
    pub(super) const fn name(&self) -> &FullTrackName {
        &self.name
    }

    fn new(name: FullTrackName, request_id: u64, filter: Filter, draft: Draft) -> Self {
        let order = GroupOrder::Ascending;
        Self {
            name,
            request_id,
            filter,
            order,
            priority: DEFAULT_PRIORITY,
            patience: PATIENCE,
            joins: None,
            fill_of: None,
            track: None,
            reader: None,
            stage: Stage::Waiting,
            properties: Properties::default(),
            cursor: Location::START,
            until: Location::START,
            cached_from: None,
            encoder: FetchEncoder::new(order, draft),
            stream: None,
            out: VecDeque::new(),
            taken: 0,
            blocked: false,
            waits: false,
            said: false,
        }
    }

    fn with(
        mut self,
        order: Option<GroupOrder>,
        priority: Option<u8>,
        patience: Option<Duration>,
        draft: Draft,
    ) -> Self {
        self.order = order.unwrap_or_default();
        self.encoder = FetchEncoder::new(self.order, draft);
        self.priority = priority.unwrap_or(DEFAULT_PRIORITY);
        self.patience = patience.filter(|patience| !patience.is_zero()).unwrap_or(PATIENCE);
        self
    }

    pub(super) fn set_priority(&mut self, priority: Option<u8>) {
        self.priority = priority.unwrap_or(self.priority);
    }

    pub(super) const fn priority(&self) -> u8 {
        self.priority
    }

    pub(super) const fn unblock(&mut self) {
        self.blocked = false;
    }

    pub(super) fn is_ready(&self) -> bool {
        let has = !self.out.is_empty() || matches!(self.stage, Stage::Cache | Stage::Produced);
        has && !self.blocked && (!self.waits || !self.out.is_empty())
    }

    /// The next object of the range at hand, and whether it is whole.
    fn next<'a>(&self, groups: &'a Groups) -> Option<(Location, &'a Head, Mark, u64, bool)> {
        let of_group = |group: u64| {
            let from = if group == self.cursor.group { self.cursor.object } else { 0 };
            let to = if group == self.until.group { self.until.object } else { u64::MAX };
            let found = groups.of_group(group).filter_map(|(no, entry)| {
                let first = entry.marks.partition_point(|mark| mark.id < from);
                let mark = entry.marks.iter().skip(first).find(|mark| mark.status == 0 && mark.id <= to)?;
                Some((Location::new(group, mark.id), &entry.head, *mark, no, entry.has(mark)))
            });
            found.min_by_key(|(at, ..)| *at)
        };
        match self.order {
            GroupOrder::Ascending => {
                groups.groups_from(self.cursor.group).take_while(|group| *group <= self.until.group).find_map(of_group)
            }
            // The cursor's group is the newest left; within a group the order is that of objects.
            GroupOrder::Descending => {
                groups.groups_from(0).rev().filter(|group| *group <= self.cursor.group).find_map(of_group)
            }
        }
    }
}

impl MoqSession {
    fn serving(&mut self, number: u64) -> Option<&mut Serving> {
        match self.requests.get_mut(&number).map(|request| &mut request.what) {
            Some(What::Fetch(serving)) => Some(serving),
            _ => None,
        }
    }

    /// The subscription of this request's number on the wire.
    fn subscription(&self, id: u64) -> Option<u64> {
        let of = |(_, request): &(&u64, &super::actor_words::Request)| {
            request.id == id && matches!(request.what, What::Sub(_))
        };
        self.requests.iter().find(of).map(|(number, _)| *number)
    }

    /// The track that a fetch is about; `None` if it joins a subscription that is not there.
    pub(super) fn name_of_fetch(&self, fetch: &Fetch) -> Option<FullTrackName> {
        match &fetch.what {
            FetchWhat::Standalone { track, .. } => Some(track.clone()),
            FetchWhat::Relative { subscription, .. } | FetchWhat::Absolute { subscription, .. } => {
                let number = self.subscription(*subscription)?;
                match self.requests.get(&number).map(|request| &request.what) {
                    Some(What::Sub(sub)) => Some(sub.name.clone()),
                    _ => None,
                }
            }
        }
    }

    /// A fetch of the peer.
    pub(super) fn fetch(&mut self, number: u64, fetch: Fetch, session: &mut dyn Session) {
        let Some(name) = self.name_of_fetch(&fetch) else {
            return self.refuse(number, RequestCode::InvalidJoiningRequestId, session);
        };
        let params = &fetch.params;
        let filter = match &fetch.what {
            FetchWhat::Standalone { range, .. } => *range,
            FetchWhat::Relative { .. } | FetchWhat::Absolute { .. } => Filter::All,
        };
        let mut serving = Serving::new(name.clone(), fetch.request_id, filter, self.draft).with(
            params.group_order,
            params.priority,
            params.fill_timeout,
            self.draft,
        );
        let patience = serving.patience;
        let joined = match &fetch.what {
            FetchWhat::Standalone { .. } => None,
            FetchWhat::Relative { subscription, .. } | FetchWhat::Absolute { subscription, .. } => {
                self.subscription(*subscription)
            }
        };
        serving.joins = joined.map(|subscription| (subscription, fetch.what));
        if let Some(request) = self.requests.get_mut(&number) {
            request.what = What::Fetch(Box::new(serving));
        }
        self.wake.insert(number, later(session.now(), patience));
        match joined {
            Some(subscription) => self.join_waiting(subscription, session),
            None => self.find_for_fetch(number, name, session),
        }
    }

    /// Fetches that join a subscription go on once it is established.
    pub(super) fn join_waiting(&mut self, subscription: u64, session: &mut dyn Session) {
        let Some(What::Sub(sub)) = self.requests.get(&subscription).map(|request| &request.what) else { return };
        if !sub.established {
            return;
        }
        let (joined, track) = (sub.joined, sub.track.clone());
        let waiting: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| {
                matches!(&request.what, What::Fetch(s) if s.joins.as_ref().is_some_and(|(of, _)| *of == subscription))
            })
            .map(|(number, _)| *number)
            .collect();
        for number in waiting {
            let Some(serving) = self.serving(number) else { continue };
            let Some((_, what)) = serving.joins.take() else { continue };
            // Without an object there is no past; without forwarding there is nothing to join.
            let (Some(joined), Some(track)) = (joined, track.clone()) else {
                self.refuse(number, RequestCode::InvalidRange, session);
                continue;
            };
            let start = match what {
                FetchWhat::Relative { groups, .. } => joined.group.saturating_sub(groups),
                FetchWhat::Absolute { group, .. } => group,
                FetchWhat::Standalone { .. } => 0,
            };
            serving.filter = Filter::Range { start: Location::new(start, 0), end: joined };
            self.found_for_fetch(number, track, session);
        }
    }

    /// The past that a subscription asks for (draft 20).
    pub(super) fn fill(&mut self, subscription: u64, fill: Fill, session: &mut dyn Session) {
        let Some(relay) = self.relay().cloned() else { return };
        let Some(request) = self.requests.get_mut(&subscription) else { return };
        let id = request.id;
        let What::Sub(sub) = &mut request.what else { return };
        let (Some(track), Some(joined)) = (sub.track.clone(), sub.joined) else { return };
        let filter = fill.filter.or(sub.params.filter).unwrap_or_default();
        sub.fills += 1;
        let priority = fill.priority.or(sub.params.priority);
        let mut serving = Serving::new(sub.name.clone(), id, filter, self.draft).with(
            fill.group_order.or(sub.params.group_order),
            priority,
            fill.fill_timeout,
            self.draft,
        );
        serving.fill_of = Some(subscription);
        serving.until = joined;
        serving.said = true;
        let number = FILLS | relay.number();
        let patience = serving.patience;
        self.add_silent(number, What::Fetch(Box::new(serving)));
        self.wake.insert(number, later(session.now(), patience));
        self.found_for_fetch(number, track, session);
    }

    /// The track that is fetched from is there.
    pub(super) fn found_for_fetch(&mut self, number: u64, track: TrackRef, session: &mut dyn Session) {
        let Some(relay) = self.relay().cloned() else { return };
        let Some(feed) = Mirror::feed(&relay, &track, self.arbiter) else {
            return self.fetch_fails(number, RequestCode::InternalError, session);
        };
        let bell = self.bell.clone();
        let Some(serving) = self.serving(number) else { return };
        serving.track = Some(track);
        serving.reader = Some(feed.read(&bell, number, false));
        self.fetch_rung(number, session);
    }

    /// Something has come of its track.
    pub(super) fn fetch_rung(&mut self, number: u64, session: &mut dyn Session) {
        let Some(serving) = self.serving(number) else { return };
        serving.waits = false;
        if !matches!(serving.stage, Stage::Waiting) {
            self.ready.mark(number);
            return;
        }
        let Some(feed) = serving.reader.as_ref().map(|reader| reader.feed.clone()) else { return };
        let status = feed.status.borrow().clone();
        match status {
            Status::Pending => {}
            Status::Failed(code) => self.fetch_fails(number, code, session),
            Status::Live(properties) => self.decide(number, properties, session),
            Status::Ended(_) => self.decide(number, Properties::default(), session),
        }
    }

    /// Where the objects are to come from.
    fn decide(&mut self, number: u64, properties: Properties, session: &mut dyn Session) {
        let Some(door) = session.door() else { return };
        let Some(relay) = self.relay().cloned() else { return };
        let Some(serving) = self.serving(number) else { return };
        let Some(feed) = serving.reader.as_ref().map(|reader| reader.feed.clone()) else { return };
        let groups = feed.groups.borrow();
        let largest = match serving.fill_of {
            // A fill ends where its subscription begins.
            Some(_) => Some(serving.until),
            None => groups.largest(),
        };
        let Some(largest) = largest else {
            drop(groups);
            return self.fetch_fails(number, RequestCode::InvalidRange, session);
        };
        let (start, end) = serving.filter.resolve(Some(largest));
        let until = end.unwrap_or(largest).min(largest);
        if start > until {
            drop(groups);
            return self.fetch_fails(number, RequestCode::InvalidRange, session);
        }
        serving.properties = properties;
        serving.until = until;
        serving.cursor = match serving.order {
            GroupOrder::Ascending => start,
            GroupOrder::Descending => {
                Location::new(until.group, if until.group == start.group { start.object } else { 0 })
            }
        };
        if groups.is_whole(start, until.group) {
            drop(groups);
            self.raise("moq_fetches", "cache");
            if let Some(serving) = self.serving(number) {
                serving.stage = Stage::Cache;
            }
            self.fetch_is_known(number, until, session);
            self.ready.mark(number);
            return;
        }
        // Only its beginning is missing, and the rest stays in order behind it.
        let known = groups.known_from().filter(|known| {
            serving.order == GroupOrder::Ascending
                && *known > start
                && *known <= until
                && groups.is_whole(*known, until.group)
        });
        drop(groups);
        serving.cached_from = known;
        let errand = Errand {
            number: relay.number(),
            door,
            request: number,
            name: serving.name.clone(),
            start,
            end: known.map_or(until, before),
            order: serving.order,
        };
        serving.stage = Stage::Errand { number: errand.number, door: None };
        let told =
            serving.track.as_ref().is_some_and(|track| track.mail.tell(ToTrack::Errand(Box::new(errand))).is_ok());
        if told {
            self.raise("moq_fetches", "publisher");
        } else {
            self.fetch_fails(number, RequestCode::ExcessiveLoad, session);
        }
    }

    /// Its end is known: it is accepted.
    fn fetch_is_known(&mut self, number: u64, end: Location, session: &mut dyn Session) {
        let Some(serving) = self.serving(number).filter(|serving| !serving.said) else { return };
        serving.said = true;
        let ok = FetchOk { end_of_track: false, end, properties: serving.properties.clone(), ..FetchOk::default() };
        self.wake.remove(&number);
        self.say(number, &Message::FetchOk(Box::new(ok)), session);
    }

    /// It cannot be served, or not on.
    fn fetch_fails(&mut self, number: u64, code: RequestCode, session: &mut dyn Session) {
        let draft = self.draft;
        let Some(serving) = self.serving(number) else { return };
        let (silent, said) = (serving.fill_of.is_some(), serving.said);
        if let Some(stream) = serving.stream.take() {
            let _over = session.reset(stream, ResetCode::UnknownObjectStatus.number(draft));
            self.outgoing.remove(stream);
        }
        if silent {
            self.drop_silent(number, session);
        } else if said {
            self.is_over(number, session);
        } else {
            self.refuse(number, code, session);
        }
    }

    /// Nobody has answered in time.
    pub(super) fn fetch_late(&mut self, number: u64, session: &mut dyn Session) {
        if self.serving(number).is_some_and(|serving| !serving.said || matches!(serving.stage, Stage::Errand { .. })) {
            self.fetch_fails(number, RequestCode::Timeout, session);
        }
    }

    /// What came of an errand.
    pub(super) fn fetched(&mut self, fetched: Fetched, session: &mut dyn Session) {
        let number = fetched.request;
        let Some(serving) = self.serving(number) else { return };
        let Stage::Errand { number: errand, door } = &mut serving.stage else { return };
        if *errand != fetched.errand {
            return;
        }
        match fetched.what {
            Came::Begun(of) => *door = Some(of),
            Came::Refused(code) => self.fetch_fails(number, code, session),
            Came::Ok { end, properties } => {
                if serving.properties.is_empty() {
                    serving.properties = properties;
                }
                let end = if serving.cached_from.is_some() { serving.until } else { end.min(serving.until) };
                self.fetch_is_known(number, end, session);
            }
            Came::Pieces(pieces) => {
                for piece in pieces {
                    let mut bytes = BytesMut::new();
                    match piece {
                        super::actor_errand::Part::Item(item) => {
                            if serving.encoder.put(&item, &mut bytes).is_err() {
                                return self.fetch_fails(number, RequestCode::InternalError, session);
                            }
                            serving.out.push_back(bytes.freeze());
                        }
                        super::actor_errand::Part::Payload(payload) => serving.out.push_back(payload),
                    }
                }
                self.ready.mark(number);
            }
            Came::End => {
                match serving.cached_from {
                    Some(from) => {
                        serving.cursor = from;
                        serving.stage = Stage::Cache;
                    }
                    None => serving.stage = Stage::Produced,
                }
                self.ready.mark(number);
            }
            Came::Lost => self.fetch_fails(number, RequestCode::InternalError, session),
        }
    }

    /// Writes something of a fetch.
    pub(super) fn send_fetch(&mut self, number: u64, session: &mut dyn Session) {
        let draft = self.draft;
        let Some(serving) = self.serving(number) else { return };
        let Some(stream) = serving.stream else {
            let priority = Priority { urgency: (serving.priority & 0xf0).max(2) | 0x0f, incremental: false };
            let Ok(stream) = session.open(StreamKind::Unidirectional, priority) else {
                serving.blocked = true;
                return;
            };
            let mut head = BytesMut::new();
            put_fetch_header(serving.request_id, &mut head);
            serving.out.push_front(head.freeze());
            serving.stream = Some(stream);
            self.outgoing.insert(stream, number, 0);
            self.counters.streams_out.add(1);
            return;
        };
        if let Some(mut bytes) = serving.out.pop_front() {
            let room = session.room(stream);
            if room == 0 {
                serving.out.push_front(bytes);
                serving.blocked = true;
                session.want_room(stream);
                return;
            }
            if bytes.len() > room {
                serving.out.push_front(bytes.split_off(room));
            }
            let length = bytes.len();
            if session.write(stream, bytes).is_err() {
                return self.stopped(stream, session);
            }
            self.counters.bytes_out.add(length as u64);
            self.renew_credit(number, length);
            return;
        }
        match serving.stage {
            Stage::Waiting | Stage::Errand { .. } => serving.waits = true,
            Stage::Cache => self.produce(number, session),
            Stage::Produced => {
                let silent = serving.fill_of.is_some();
                serving.stream = None;
                self.outgoing.remove(stream);
                if session.finish(stream).is_err() {
                    let _over = session.reset(stream, ResetCode::InternalError.number(draft));
                }
                if silent {
                    self.drop_silent(number, session);
                } else {
                    self.is_over(number, session);
                }
            }
        }
    }

    fn renew_credit(&mut self, number: u64, length: usize) {
        let Some(serving) = self.serving(number) else { return };
        serving.taken += length;
        if let Stage::Errand { number: errand, door: Some(door) } = &serving.stage
            && serving.taken >= CREDIT / 4
        {
            tell(door, ToSession::ErrandMore { errand: *errand, bytes: serving.taken });
            serving.taken = 0;
        }
    }

    /// The next object from the cache.
    fn produce(&mut self, number: u64, session: &mut dyn Session) {
        let Some(serving) = self.serving(number) else { return };
        let Some(feed) = serving.reader.as_ref().map(|reader| reader.feed.clone()) else { return };
        let groups = feed.groups.borrow();
        if serving.order == GroupOrder::Ascending && !groups.is_whole(serving.cursor, serving.until.group) {
            // The cache let go of something meanwhile.
            drop(groups);
            return self.fetch_fails(number, RequestCode::InternalError, session);
        }
        let Some((at, head, mark, no, whole)) = serving.next(&groups) else {
            serving.stage = Stage::Produced;
            return;
        };
        if !whole {
            serving.waits = true;
            return;
        }
        let Some(entry) = groups.get(no) else { return };
        let take = |from: u64, to: u64| {
            let mut pieces = Vec::new();
            let mut at = from;
            while at < to {
                let most = usize::try_from(to - at).unwrap_or(usize::MAX);
                let piece = entry.read(at, most).unwrap_or_default();
                if piece.is_empty() {
                    break;
                }
                at += piece.len() as u64;
                pieces.push(piece);
            }
            pieces
        };
        let fields = mark.at + u64::from(mark.delta);
        let properties = take(fields, fields + u64::from(mark.properties)).concat();
        let Some(properties) = super::actor_wire::properties_of(properties, at) else {
            drop(groups);
            return self.fetch_fails(number, RequestCode::InternalError, session);
        };
        let item = FetchItem::Object(FetchObject {
            at,
            subgroup: head.subgroup,
            priority: head.priority.unwrap_or(DEFAULT_PRIORITY),
            properties,
            length: mark.payload,
        });
        let mut bytes = BytesMut::new();
        let put = serving.encoder.put(&item, &mut bytes).is_ok();
        let payload = take(mark.at + u64::from(mark.head), mark.end());
        serving.cursor = match serving.order {
            GroupOrder::Ascending => next(at),
            GroupOrder::Descending => next(at),
        };
        drop(groups);
        if !put {
            return self.fetch_fails(number, RequestCode::InternalError, session);
        }
        serving.out.push_back(bytes.freeze());
        serving.out.extend(payload);
    }

    /// A fetch is over: whoever runs an errand for it learns that.
    pub(super) fn serving_is_over(&mut self, number: u64, serving: Serving, session: Option<&mut dyn Session>) {
        if let Stage::Errand { number: errand, door: Some(door) } = &serving.stage {
            tell(door, ToSession::ErrandOver { errand: *errand });
        }
        if serving.track.is_none() && serving.joins.is_none() {
            self.forget_find(number, &serving.name);
        }
        if let (Some(stream), Some(session)) = (serving.stream, session) {
            self.outgoing.remove(stream);
            let _over = session.reset(stream, ResetCode::Cancelled.number(self.draft));
        }
    }

    /// A fill is over; it has no request stream.
    fn drop_silent(&mut self, number: u64, session: &mut dyn Session) {
        let Some(request) = self.requests.remove(&number) else { return };
        self.let_go(number, request.what, Some(session));
    }
}

/// The location before one.
const fn before(of: Location) -> Location {
    match of.object.checked_sub(1) {
        Some(object) => Location::new(of.group, object),
        None => Location::end_of(of.group.saturating_sub(1)),
    }
}
