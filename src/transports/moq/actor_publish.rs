//! How a session sends objects: subscriptions of its peer, from its word to the last stream.
//!
//! A subscription reads the feed of its track on this arbiter. Of all that is ready the most important goes first, as
//! far as the connection takes it; of what it takes little waits in QUIC, where it can still be given up.

use std::time::Duration;

use bytes::BytesMut;

use super::actor_feed::Reader;
use super::actor_mirror::Mirror;
use super::actor_relay::{TrackRef, WhenSlow};
use super::actor_session::{Close, MoqSession};
use super::actor_wire::{datagram_bytes, subgroup_head};
use super::actor_words::What;
use super::codec_property::property;
use super::model::{DEFAULT_PRIORITY, GroupOrder, Location};
use super::model_codes::{DoneCode, RequestCode, ResetCode};
use super::model_message::{Message, Publish, PublishBlocked, PublishDone, RequestOk, SubscribeOk};
use super::model_names::FullTrackName;
use super::model_params::{Fill, Filter, Params, Properties};
use super::state_delivery::{Delivery, Rank, Step, Wishes};
use super::state_track::Status;
use crate::transports::quic::{Datagram, OpenError, Priority, Session, StreamError, StreamId, StreamKind};

/// Bytes that may wait in QUIC before no more is written.
const QUEUED: usize = 128 << 10;
/// Steps in one turn.
const STEPS: usize = 1_024;
/// Numbers of offers that have no stream yet begin here: above those of streams.
const OFFERS: u64 = 1 << 63;

/// By what is decided who writes next: the subscriber's priority, the publisher's, and what it is.
pub(super) type Key = (u8, u8, Option<Rank>);

/// A subscription of the peer.
pub(super) struct Sub {
    pub(super) name: FullTrackName,
    pub(super) params: Params,
    pub(super) track: Option<TrackRef>,
    pub(super) reader: Option<Reader>,
    pub(super) delivery: Delivery,
    pub(super) alias: u64,
    /// It was offered by this end.
    pub(super) offered: bool,
    /// The peer has accepted what was offered.
    pub(super) accepted: bool,
    pub(super) established: bool,
    /// It was there before the publisher accepted: what has come since is new to it.
    waited: bool,
    /// The largest object when it was established, or went on: where a fetch may join.
    pub(super) joined: Option<Location>,
    /// Why it will end once all was sent.
    pub(super) ending: Option<DoneCode>,
    /// What of the past is wanted with it.
    pub(super) fill: Option<Box<Fill>>,
    /// Streams of fills.
    pub(super) fills: u64,
}

impl Sub {
    pub(super) fn asked(name: FullTrackName, params: Params) -> Self {
        Self {
            name,
            fill: params.fill.clone(),
            params,
            track: None,
            reader: None,
            delivery: Delivery::new(Wishes::default(), DEFAULT_PRIORITY),
            alias: 0,
            offered: false,
            accepted: false,
            established: false,
            waited: false,
            joined: None,
            ending: None,
            fills: 0,
        }
    }

    pub(super) fn forward(&self) -> bool {
        self.params.forward.unwrap_or(true)
    }

    /// What it comes to, given the largest object.
    fn wishes(&self, properties: &Properties, largest: Option<Location>) -> Wishes {
        let filter = self.params.filter.unwrap_or_default();
        let (start, end) = filter.resolve(largest);
        let of_track = |kind| properties.number(kind).map(Duration::from_millis);
        let smaller = |mine: Option<Duration>, theirs: Option<Duration>| {
            let set = [mine, theirs].into_iter().flatten().filter(|limit| !limit.is_zero());
            set.min()
        };
        let order = self
            .params
            .group_order
            .or_else(|| properties.number(property::DEFAULT_PUBLISHER_GROUP_ORDER).and_then(GroupOrder::from_number));
        Wishes {
            priority: self.params.priority.unwrap_or(DEFAULT_PRIORITY),
            order: order.unwrap_or_default(),
            forward: self.forward(),
            start,
            end,
            object_timeout: smaller(self.params.object_delivery_timeout, of_track(property::OBJECT_DELIVERY_TIMEOUT)),
            subgroup_timeout: smaller(
                self.params.subgroup_delivery_timeout,
                of_track(property::SUBGROUP_DELIVERY_TIMEOUT),
            ),
        }
    }
}

/// A track that is to be offered once its publisher has accepted.
pub(super) struct Offer {
    pub(super) name: FullTrackName,
    watch: u64,
    track: TrackRef,
    reader: Reader,
    forward: bool,
}

impl MoqSession {
    /// The track that was asked for is there.
    pub(super) fn found(&mut self, number: u64, track: TrackRef, begun: bool, session: &mut dyn Session) {
        let Some(relay) = self.relay().cloned() else { return };
        let arbiter = self.arbiter;
        let Some(request) = self.requests.get_mut(&number) else { return };
        let (forward, sub) = match &mut request.what {
            What::Sub(sub) => (sub.forward(), sub),
            What::Status { sub } => (false, sub),
            What::Fetch(_) => return self.found_for_fetch(number, track, session),
            What::New
            | What::Up(_)
            | What::Namespace(_)
            | What::WatchNamespaces { .. }
            | What::WatchTracks { .. }
            | What::Errand(_)
            | What::OfOrigin { .. }
            | What::Over => return,
        };
        let Some(feed) = Mirror::feed(&relay, &track, arbiter) else {
            return self.refuse(number, RequestCode::InternalError, session);
        };
        sub.track = Some(track);
        sub.waited = begun;
        sub.reader = Some(feed.read(&self.bell, number, forward));
        self.rung(number, session);
    }

    /// Something has come of a track, or has become true of it.
    pub(super) fn rung(&mut self, number: u64, session: &mut dyn Session) {
        if number & OFFERS != 0 {
            return self.make_offer(number, session);
        }
        let Some(request) = self.requests.get_mut(&number) else { return };
        let (sub, is_status) = match &mut request.what {
            What::Sub(sub) => (sub, false),
            What::Status { sub } => (sub, true),
            What::Fetch(_) => return self.fetch_rung(number, session),
            What::New
            | What::Up(_)
            | What::Namespace(_)
            | What::WatchNamespaces { .. }
            | What::WatchTracks { .. }
            | What::Errand(_)
            | What::OfOrigin { .. }
            | What::Over => return,
        };
        let Some(reader) = &sub.reader else { return };
        if sub.established && !is_status && matches!(*reader.feed.status.borrow(), Status::Live(_)) {
            if sub.delivery.look(&reader.feed.groups.borrow()) {
                self.ready.mark(number);
            }
            return;
        }
        let feed = reader.feed.clone();
        let status = feed.status.borrow().clone();
        match status {
            Status::Pending => sub.waited |= feed.heard.get(),
            Status::Failed(code) if !sub.established => self.refuse(number, code, session),
            Status::Failed(_) => self.done(number, DoneCode::InternalError, session),
            Status::Ended(code) if sub.established => {
                // What was begun is finished first.
                sub.ending = Some(code);
                sub.delivery.look(&feed.groups.borrow());
                self.ready.mark(number);
            }
            Status::Live(properties) if is_status => self.status(number, properties, session),
            Status::Ended(_) => self.refuse(number, RequestCode::DoesNotExist, session),
            Status::Live(properties) => {
                if !sub.established {
                    self.establish(number, &properties, session);
                }
                if let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what)
                    && sub.established
                    && sub.delivery.look(&feed.groups.borrow())
                {
                    self.ready.mark(number);
                }
            }
        }
    }

    fn status(&mut self, number: u64, properties: Properties, session: &mut dyn Session) {
        let Some(What::Status { sub }) = self.requests.get_mut(&number).map(|request| &mut request.what) else {
            return;
        };
        let largest = sub.reader.as_ref().and_then(|reader| reader.feed.groups.borrow().largest());
        let wanted = sub.params.include_properties.unwrap_or(true);
        let params = Params { largest, ..Params::default() };
        let properties = if wanted { properties } else { Properties::default() };
        self.say(number, &Message::RequestOk(Box::new(RequestOk { params, properties })), session);
        self.is_over(number, session);
    }

    /// The upstream subscription is established: so is this one (draft, section 9.5).
    fn establish(&mut self, number: u64, properties: &Properties, session: &mut dyn Session) {
        let alias = self.next_alias;
        let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what) else { return };
        let Some(reader) = &sub.reader else { return };
        if sub.offered {
            return;
        }
        self.next_alias += 1;
        let groups = reader.feed.groups.borrow();
        // Objects may have come before this word of the publisher's acceptance did.
        let before = groups.known_from().filter(|_| sub.waited);
        let largest = before.map_or_else(|| groups.largest(), last_before);
        drop(groups);
        let wishes = sub.wishes(properties, largest);
        if wishes.end.is_some_and(|end| end < wishes.start || largest.is_some_and(|largest| end.group < largest.group))
        {
            return self.refuse(number, RequestCode::InvalidRange, session);
        }
        let priority = properties.number(property::DEFAULT_PUBLISHER_PRIORITY);
        let priority = priority.and_then(|priority| u8::try_from(priority).ok()).unwrap_or(DEFAULT_PRIORITY);
        sub.delivery = Delivery::new(wishes, priority);
        sub.established = true;
        sub.alias = alias;
        sub.joined = largest.filter(|_| wishes.forward);
        let wanted = sub.params.include_properties.unwrap_or(true);
        let properties = if wanted { properties.clone() } else { Properties::default() };
        let params = Params { largest, ..Params::default() };
        let fill = sub.fill.take();
        let ok = SubscribeOk { track_alias: alias, params, properties };
        self.say(number, &Message::SubscribeOk(Box::new(ok)), session);
        if let Some(fill) = fill {
            self.fill(number, *fill, session);
        }
        self.join_waiting(number, session);
    }

    /// Other wishes of a subscriber.
    pub(super) fn update_sub(&mut self, number: u64, by: &Params, session: &mut dyn Session) -> Result<(), Close> {
        let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what) else {
            return Ok(());
        };
        let was = sub.forward();
        sub.params.update(by);
        let forward = sub.forward();
        let Some(reader) = sub.reader.as_ref().filter(|_| sub.established) else {
            // Nothing was promised yet.
            self.say(number, &Message::RequestOk(Box::default()), session);
            return Ok(());
        };
        reader.forward(forward);
        let feed = reader.feed.clone();
        let groups = feed.groups.borrow();
        let Status::Live(properties) = feed.status.borrow().clone() else {
            drop(groups);
            self.say(number, &Message::RequestOk(Box::default()), session);
            return Ok(());
        };
        let largest = groups.largest();
        let mut wishes = sub.wishes(&properties, largest);
        if by.filter.is_none() {
            let before = sub.delivery.wishes();
            (wishes.start, wishes.end) = (before.start, before.end);
        }
        if !was && forward {
            sub.joined = largest;
        }
        let left = sub.delivery.update(wishes, &groups);
        let fill = by.fill.clone();
        drop(groups);
        self.reset_entries(number, &left, ResetCode::Cancelled, session);
        let params = Params { largest, ..Params::default() };
        self.say(number, &Message::RequestOk(Box::new(RequestOk { params, ..RequestOk::default() })), session);
        if let Some(fill) = fill {
            self.fill(number, *fill, session);
        }
        self.rung(number, session);
        Ok(())
    }

    /// A track below a prefix of the peer's is published.
    pub(super) fn offer(&mut self, watch: u64, track: TrackRef, session: &mut dyn Session) {
        let Some(relay) = self.relay().cloned() else { return };
        let Some(What::WatchTracks { forward, .. }) = self.requests.get(&watch).map(|request| &request.what) else {
            return;
        };
        let forward = *forward;
        if self.sends(&track.name) || self.offers.len() >= relay.settings().requests {
            return;
        }
        let Some(feed) = Mirror::feed(&relay, &track, self.arbiter) else { return };
        let number = OFFERS | relay.number();
        let reader = feed.read(&self.bell, number, forward);
        let name = track.name.clone();
        self.offers.insert(number, Offer { name, watch, track, reader, forward });
        self.make_offer(number, session);
    }

    fn make_offer(&mut self, number: u64, session: &mut dyn Session) {
        let Some(offer) = self.offers.get(&number) else { return };
        let status = offer.reader.feed.status.borrow().clone();
        let properties = match status {
            Status::Pending => return,
            Status::Live(properties) => properties,
            Status::Failed(_) | Status::Ended(_) => {
                self.offers.remove(&number);
                return;
            }
        };
        let Some(Offer { name, watch, track, reader, forward }) = self.offers.remove(&number) else { return };
        // What the watch may, its offers may; without it nobody wants them.
        let watching = self.requests.get(&watch).filter(|watch| matches!(watch.what, What::WatchTracks { .. }));
        let Some(tokens) = watching.map(|watch| watch.tokens.clone()) else { return };
        let feed = reader.feed.clone();
        drop(reader);
        let largest = feed.groups.borrow().largest();
        let alias = self.next_alias;
        self.next_alias += 1;
        let params = Params { forward: Some(forward), largest, ..Params::default() };
        let mut sub = Sub::asked(name.clone(), Params { filter: Some(Filter::NextObject), ..params.clone() });
        sub.params.largest = None;
        sub.offered = true;
        sub.established = true;
        sub.alias = alias;
        sub.track = Some(track);
        sub.joined = largest.filter(|_| forward);
        let priority = properties.number(property::DEFAULT_PUBLISHER_PRIORITY);
        let priority = priority.and_then(|priority| u8::try_from(priority).ok()).unwrap_or(DEFAULT_PRIORITY);
        // What is at hand was not there when nobody was: it is offered as well.
        sub.params.filter = None;
        sub.delivery = Delivery::new(sub.wishes(&properties, largest), priority);
        let (of, bell) = (name.clone(), self.bell.clone());
        let opened = self.open_request(What::Sub(Box::new(sub)), session, |request_id| {
            let publish = Publish { request_id, track: of, track_alias: alias, params, properties };
            Message::Publish(Box::new(publish))
        });
        match opened {
            Ok(stream) => {
                if let Some(request) = self.requests.get_mut(&stream) {
                    request.tokens = tokens;
                    if let What::Sub(sub) = &mut request.what {
                        sub.reader = Some(feed.read(&bell, stream, forward));
                    }
                }
                self.rung(stream, session);
            }
            Err(_) => {
                let prefix = match self.requests.get(&watch).map(|request| &request.what) {
                    Some(What::WatchTracks { prefix, .. }) => prefix.clone(),
                    _ => return,
                };
                let Some(suffix) = name.namespace().strip_prefix(&prefix) else { return };
                let blocked = PublishBlocked { suffix, name: name.name().clone() };
                self.say(watch, &Message::PublishBlocked(blocked), session);
            }
        }
    }

    /// The peer accepts what was offered, with its wishes.
    pub(super) fn accepted(&mut self, number: u64, params: &Params, session: &mut dyn Session) {
        let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what) else { return };
        sub.params.update(params);
        let forward = sub.forward();
        let Some(reader) = &sub.reader else { return };
        reader.forward(forward);
        let feed = reader.feed.clone();
        let groups = feed.groups.borrow();
        let Status::Live(properties) = feed.status.borrow().clone() else { return };
        let mut wishes = sub.wishes(&properties, groups.largest());
        if params.filter.is_none() {
            let before = sub.delivery.wishes();
            (wishes.start, wishes.end) = (before.start, before.end);
        }
        let left = sub.delivery.update(wishes, &groups);
        drop(groups);
        self.reset_entries(number, &left, ResetCode::Cancelled, session);
        self.rung(number, session);
    }

    /// Ends a subscription from here: its streams, then a word.
    pub(super) fn done(&mut self, number: u64, code: DoneCode, session: &mut dyn Session) {
        self.reset_streams(number, ResetCode::Cancelled, session);
        let Some(What::Sub(sub)) = self.requests.get(&number).map(|request| &request.what) else { return };
        let streams = Some(sub.delivery.opened() + sub.fills);
        let reason = code.reason().to_owned();
        self.say(number, &Message::PublishDone(PublishDone { code, streams, reason }), session);
        self.is_over(number, session);
    }

    /// Gives up all streams of a subscription.
    pub(super) fn reset_streams(&mut self, number: u64, code: ResetCode, session: &mut dyn Session) {
        for stream in self.outgoing.remove_request(number) {
            let _over = session.reset(stream, code.number(self.draft));
        }
    }

    fn reset_entries(&mut self, number: u64, entries: &[u64], code: ResetCode, session: &mut dyn Session) {
        for entry in entries {
            if let Some(stream) = self.outgoing.stream(number, *entry) {
                self.outgoing.remove(stream);
                let _over = session.reset(stream, code.number(self.draft));
            }
        }
    }

    /// There is room again on a stream.
    pub(super) fn writable(&mut self, stream: StreamId) {
        let Some((number, entry)) = self.outgoing.of(stream) else { return };
        match self.requests.get_mut(&number).map(|request| &mut request.what) {
            Some(What::Sub(sub)) => sub.delivery.unblock(entry),
            Some(What::Fetch(serving)) => serving.unblock(),
            _ => return,
        }
        self.ready.mark(number);
    }

    /// The peer wants no more of a stream, or its data expired.
    pub(super) fn stopped(&mut self, stream: StreamId, session: &mut dyn Session) {
        let Some((number, entry)) = self.outgoing.remove(stream) else { return };
        match self.requests.get_mut(&number).map(|request| &mut request.what) {
            Some(What::Sub(sub)) => sub.delivery.drop_entry(entry),
            Some(What::Fetch(_)) => return self.end_request(number, ResetCode::Cancelled, session),
            _ => return,
        }
        self.ready.mark(number);
    }

    /// Streams can be opened again.
    pub(super) fn openable(&mut self, session: &mut dyn Session) {
        for (number, request) in &mut self.requests {
            match &mut request.what {
                What::Sub(sub) => sub.delivery.unblock_all(),
                What::Fetch(serving) => serving.unblock(),
                What::New
                | What::Up(_)
                | What::Namespace(_)
                | What::WatchNamespaces { .. }
                | What::WatchTracks { .. }
                | What::Status { .. }
                | What::Errand(_)
                | What::OfOrigin { .. }
                | What::Over => continue,
            }
            self.ready.mark(*number);
        }
        let waiting: Vec<u64> = self.offers.keys().copied().collect();
        for offer in waiting {
            self.make_offer(offer, session);
        }
    }

    /// Writes what is ready, the most important first. True if there is more to do at once.
    pub(super) fn pump(&mut self, session: &mut dyn Session) -> bool {
        for _ in 0..STEPS {
            if session.queued() >= QUEUED {
                // The next acknowledgement brings the next turn.
                return false;
            }
            let Some((number, rank)) = self.most_important() else { return false };
            match rank {
                Some(rank) => self.send(number, rank, session),
                None => self.send_fetch(number, session),
            }
        }
        true
    }

    /// The request that goes first, with the rank of its entry if it is a subscription.
    fn most_important(&mut self) -> Option<(u64, Option<Rank>)> {
        let (requests, idle) = (&self.requests, &mut self.may_be_done);
        let key = |number| match requests.get(&number).map(|request| &request.what) {
            Some(What::Sub(sub)) => sub.reader.as_ref().and_then(|reader| {
                let rank = sub.delivery.first(&reader.feed.groups.borrow())?;
                Some((rank.subscriber, rank.publisher, Some(rank)))
            }),
            // Of one rank, what is new goes before what is old: `None` would be less, hence the priority.
            Some(What::Fetch(serving)) => serving.is_ready().then(|| (serving.priority(), u8::MAX, None)),
            _ => None,
        };
        let (number, (.., rank)) = self.ready.first(key, idle)?;
        // Whatever is done about it now, it is another one then.
        self.ready.mark(number);
        Some((number, rank))
    }

    /// Carries out one step of a subscription, and the next at once if that has opened a stream: mostly an object is at
    /// hand as a whole, and its stream is over before anything has to be kept of it.
    fn send(&mut self, number: u64, rank: Rank, session: &mut dyn Session) {
        let stream = self.outgoing.stream(number, rank.no);
        if stream.is_some_and(|stream| !self.write_head(number, rank.no, stream, session)) {
            return;
        }
        let Some(opened) = self.step(number, rank, stream, session) else { return };
        self.step(number, rank, Some(opened), session);
        if let Some(What::Sub(sub)) = self.requests.get(&number).map(|request| &request.what)
            && sub.delivery.is_open(rank.no)
        {
            self.outgoing.insert(opened, number, rank.no);
        }
    }

    /// Carries out one step. Answers the stream that it has opened, whose head is written and which nobody knows yet.
    fn step(
        &mut self,
        number: u64,
        rank: Rank,
        stream: Option<StreamId>,
        session: &mut dyn Session,
    ) -> Option<StreamId> {
        let entry = rank.no;
        let What::Sub(sub) = &mut self.requests.get_mut(&number)?.what else { return None };
        let feed = sub.reader.as_ref()?.feed.clone();
        let room = match stream {
            None => 0,
            Some(stream) => {
                let room = session.room(stream);
                if room == 0 {
                    sub.delivery.block(entry);
                    session.want_room(stream);
                    return None;
                }
                room.min(QUEUED)
            }
        };
        let now = session.now();
        let step = sub.delivery.step(entry, &feed.groups.borrow(), room, now);
        let (alias, skipped) = (sub.alias, sub.delivery.take_skipped());
        self.counters.skipped.add(skipped);
        match step {
            Step::Open { head, first, publisher } => {
                let priority = Priority { urgency: urgency(rank.subscriber, publisher), incremental: false };
                match session.open(StreamKind::Unidirectional, priority) {
                    Ok(stream) => {
                        let mut bytes = BytesMut::with_capacity(48);
                        subgroup_head(&mut bytes, alias, &head, first);
                        self.counters.streams_out.add(1);
                        let head = bytes.freeze();
                        if session.room(stream) >= head.len() {
                            if session.write(stream, head).is_ok() {
                                return Some(stream);
                            }
                            sub.delivery.drop_entry(entry);
                            return None;
                        }
                        self.outgoing.insert(stream, number, entry);
                        self.outgoing.put_head(stream, head);
                        self.write_head(number, entry, stream, session);
                    }
                    Err(OpenError::Limit) => sub.delivery.not_opened(entry),
                    Err(_) => sub.delivery.drop_entry(entry),
                }
            }
            Step::Write { bytes, expires, last } => {
                let stream = stream?;
                if let Some(at) = expires {
                    session.expire(stream, Some(at), ResetCode::DeliveryTimeout.number(self.draft));
                }
                self.counters.bytes_out.add(bytes.len() as u64);
                let written = if last {
                    self.outgoing.remove(stream);
                    session.write_last(stream, bytes)
                } else {
                    session.write(stream, bytes)
                };
                if let Err(error) = written {
                    self.not_written(number, entry, stream, error, session);
                }
            }
            Step::Datagram { head, mark, bytes, expires } => {
                let datagram = Datagram {
                    bytes: datagram_bytes(alias, &head, &mark, &bytes),
                    priority: urgency(rank.subscriber, rank.publisher),
                    expires,
                    wait_for_path: false,
                };
                self.counters.datagrams_out.add(1);
                if session.send_datagram(datagram).is_err() {
                    self.raise("moq_datagrams_dropped", "too_large");
                }
            }
            Step::Finish => {
                let stream = stream?;
                self.outgoing.remove(stream);
                let _stopped = session.finish(stream);
            }
            Step::Reset(code) => {
                if let Some(stream) = stream {
                    self.outgoing.remove(stream);
                    self.raise("moq_streams_reset", code.reason());
                    let _over = session.reset(stream, code.number(self.draft));
                }
                self.fell_behind(number, code, session);
            }
            Step::Skip => {
                if skipped > 0 {
                    self.fell_behind(number, ResetCode::TooFarBehind, session);
                }
            }
            Step::Wait => {}
        }
        None
    }

    /// A subscriber lost something because it is slow.
    fn fell_behind(&mut self, number: u64, code: ResetCode, session: &mut dyn Session) {
        let ends = self.relay().is_some_and(|relay| relay.settings().when_slow == WhenSlow::End);
        if ends && code == ResetCode::TooFarBehind {
            self.done(number, DoneCode::TooFarBehind, session);
        }
    }

    /// Writes the head of a stream if that is still to be done. False if it is; or the stream is over.
    fn write_head(&mut self, number: u64, entry: u64, stream: StreamId, session: &mut dyn Session) -> bool {
        let Some(head) = self.outgoing.head(stream) else { return true };
        match session.write(stream, head) {
            Ok(()) => {
                self.outgoing.head_is_written(stream);
                true
            }
            // Credit is of the connection, too, and others may have it all. `Writable` comes when there is some.
            Err(StreamError::Full(_)) => {
                if let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what) {
                    sub.delivery.block(entry);
                }
                false
            }
            Err(_) => {
                self.stopped(stream, session);
                false
            }
        }
    }

    /// What was to be written on a stream was not: the stream is over.
    fn not_written(
        &mut self,
        number: u64,
        entry: u64,
        stream: StreamId,
        error: StreamError,
        session: &mut dyn Session,
    ) {
        self.outgoing.remove(stream);
        if let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what) {
            sub.delivery.drop_entry(entry);
        }
        // There was room when it was looked for.
        if matches!(error, StreamError::Full(_)) {
            self.raise("moq_streams_reset", ResetCode::ExcessiveLoad.reason());
            let _over = session.reset(stream, ResetCode::ExcessiveLoad.number(self.draft));
        }
    }

    /// Subscriptions whose track has ended and that have nothing left to send end.
    pub(super) fn end_the_done(&mut self, session: &mut dyn Session) {
        for number in std::mem::take(&mut self.may_be_done) {
            let Some(What::Sub(sub)) = self.requests.get_mut(&number).map(|request| &mut request.what) else {
                continue;
            };
            let Some(code) = sub.ending.filter(|_| sub.delivery.is_idle()) else { continue };
            self.done(number, code, session);
        }
    }
}

/// The largest object there was if everything is known from here on.
const fn last_before(from: Location) -> Option<Location> {
    match (from.group, from.object) {
        (0, 0) => None,
        (group, 0) => Some(Location::end_of(group - 1)),
        (group, object) => Some(Location::new(group, object - 1)),
    }
}

/// The urgency of objects for QUIC, which has fewer than there are pairs of priorities: both count, the subscriber's
/// first, and what is not told apart here goes in the order in which it was written.
const fn urgency(subscriber: u8, publisher: u8) -> u8 {
    let both = (subscriber & 0xf0) | (publisher >> 4);
    if both < 2 { 2 } else { both }
}

#[cfg(test)]
mod tests {
    use super::super::actor_words::REQUESTS;
    use super::*;

    /// Rules 5 and 6: what QUIC sends first is what the drafts name first, by lower numbers; the subscriber's word counts
    /// before the publisher's, and requests come before all objects.
    #[test]
    fn the_urgency_of_objects_follows_their_priorities() {
        assert!(REQUESTS.urgency < urgency(0, 0));
        assert!(urgency(0, 255) < urgency(128, 0) && urgency(128, 255) < urgency(255, 0));
        assert!(urgency(128, 0) < urgency(128, 128) && urgency(128, 128) < urgency(128, 255));
        for one in 0..=255 {
            for other in one..=255 {
                assert!(urgency(one, 128) <= urgency(other, 128) && urgency(128, one) <= urgency(128, other));
            }
        }
    }
}
