//! How a session takes objects: subscriptions of ours and tracks that the peer publishes, their streams and datagrams.
//!
//! What comes is read as long as the track's mailbox has room: else it stays with QUIC, whose flow control holds the
//! peer back, and only this peer. A stream whose track is not known yet is not read beyond its head. What is malformed is
//! passed on to nobody.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::actor_directory::ToDirectory;
use super::actor_relay::TrackRef;
use super::actor_session::{Close, MoqSession, READ, RETRY, of_session};
use super::actor_track::ToTrack;
use super::actor_wire::{StreamHead, read_datagram, stream_head};
use super::actor_words::What;
use super::codec::{Ends, Mistake};
use super::model::Location;
use super::model_codes::{DoneCode, RequestCode, ResetCode, SessionCode};
use super::model_message::{Message, Publish, PublishDone, RequestOk, RequestUpdate, SubscribeOk};
use super::model_names::FullTrackName;
use super::model_params::{Params, Properties};
use super::state_cache::{End, Head, Item};
use super::state_objects::Objects;
use super::state_requests::Named;
use crate::actors::Refused;
use crate::actors::clock::later;
use crate::transports::quic::{Read, Session, StreamError, StreamId};

/// Streams that may wait for their track to be known, and for how long.
const PARKED: usize = 32;
const PARKED_FOR: Duration = Duration::from_secs(5);
/// Bytes of one track that are gathered before they are handed over in the midst of a turn.
const BATCH: usize = 256 << 10;
/// Bytes read from one stream before others have their turn.
const TURN: usize = 1 << 20;
/// How long streams of a subscription that is done may take to come, at least.
const LATE: Duration = Duration::from_secs(2);
/// The longest head of a stream.
const HEAD: usize = 64;

/// A subscription by which objects come.
pub(super) struct Up {
    pub(super) name: FullTrackName,
    pub(super) track: Option<TrackRef>,
    alias: Option<u64>,
    /// What the publisher said of it.
    largest: Option<Location>,
    properties: Properties,
    /// Whether the publisher sends objects.
    forward: bool,
    /// Somebody wants objects.
    wanted: bool,
    established: bool,
    /// Updates of ours that were not answered.
    pub(super) updates: u32,
    pub(super) refused: Option<RequestCode>,
    done: Option<(DoneCode, Option<u64>)>,
    /// Streams that came.
    streams: u64,
    open: BTreeSet<StreamId>,
    next: u64,
    items: Vec<Item>,
    bytes: usize,
}

impl Up {
    fn new(name: FullTrackName) -> Self {
        Self {
            name,
            track: None,
            alias: None,
            largest: None,
            properties: Properties::default(),
            forward: true,
            wanted: false,
            established: false,
            updates: 0,
            refused: None,
            done: None,
            streams: 0,
            open: BTreeSet::new(),
            next: 0,
            items: Vec::new(),
            bytes: 0,
        }
    }

    /// One that the peer publishes by itself.
    pub(super) fn offered(message: Publish) -> Self {
        Self {
            alias: Some(message.track_alias),
            largest: message.params.largest,
            properties: message.properties,
            forward: message.params.forward.unwrap_or(true),
            ..Self::new(message.track)
        }
    }

    /// One that is asked for.
    pub(super) fn wanted(track: TrackRef) -> Self {
        Self { wanted: true, track: Some(track.clone()), ..Self::new(track.name) }
    }

    /// Whether the publisher has said its last word.
    pub(super) const fn is_done(&self) -> bool {
        self.done.is_some()
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.size();
        self.items.push(item);
    }
}

/// A unidirectional stream of the peer.
#[derive(Default)]
pub(super) enum Incoming {
    /// Its head is not whole.
    #[default]
    New,
    Head(Bytes),
    /// Its track is not known yet.
    Parked {
        alias: u64,
        head: Head,
        first_is_subgroup: bool,
        rest: Bytes,
    },
    /// Objects of a subgroup. Without a key its subgroup is that of its first object, which has not come.
    Objects {
        request: u64,
        key: Option<u64>,
        head: Head,
        objects: Objects,
    },
    /// Objects of a fetch of ours.
    Errand(u64),
    /// Read and dropped.
    Padding,
}

impl MoqSession {
    fn up(&mut self, number: u64) -> Option<&mut Up> {
        match self.requests.get_mut(&number).map(|request| &mut request.what) {
            Some(What::Up(up)) => Some(up),
            _ => None,
        }
    }

    /// The track that the peer publishes.
    pub(super) fn published(&mut self, number: u64, track: TrackRef, session: &mut dyn Session) {
        let profile = self.draft.profile();
        let Some(up) = self.up(number) else {
            // It was withdrawn meanwhile.
            if let Some(source) = self.joined.as_ref().map(|joined| joined.id) {
                drop(track.mail.tell(ToTrack::Gone(source, None)));
            }
            return;
        };
        up.track = Some(track);
        up.established = true;
        let mut params = Params::default();
        if !up.forward && profile.publish_ok_has_wishes {
            params.forward = Some(up.wanted);
            up.forward = up.wanted;
        }
        self.say(number, &Message::RequestOk(Box::new(RequestOk { params, ..RequestOk::default() })), session);
        self.live(number, session);
    }

    /// The publisher accepts.
    pub(super) fn subscribe_ok(
        &mut self,
        number: u64,
        ok: SubscribeOk,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let ours = self.requests.get(&number).is_some_and(|request| request.ours);
        let Some(up) = self.up(number).filter(|up| ours && !up.established) else {
            let over = matches!(self.requests.get(&number).map(|request| &request.what), Some(What::Over));
            return if over { Ok(()) } else { Err(Close::violation("unexpected_message")) };
        };
        up.established = true;
        up.alias = Some(ok.track_alias);
        up.largest = ok.params.largest;
        up.properties = ok.properties;
        if !self.aliases.put(ok.track_alias, number) {
            return Err(Close { code: SessionCode::DuplicateTrackAlias, reason: "duplicate_track_alias" });
        }
        self.live(number, session);
        Ok(())
    }

    /// The track is fed from now on.
    fn live(&mut self, number: u64, session: &mut dyn Session) {
        let Some(source) = self.joined.as_ref().map(|joined| joined.id) else { return };
        let Some(up) = self.up(number) else { return };
        if let Some(track) = &up.track {
            let (largest, properties) = (up.largest, up.properties.clone());
            drop(track.mail.tell(ToTrack::Live { source, largest, properties }));
        }
        if up.wanted && !up.forward {
            self.ask_forward(number, session);
        }
        let parked: Vec<StreamId> = self.parked.keys().copied().collect();
        for stream in parked {
            if let Err(close) = self.read_objects(stream, session) {
                return self.close(close, session);
            }
        }
    }

    fn ask_forward(&mut self, number: u64, session: &mut dyn Session) {
        let request_id = self.numbers.take();
        let Some(up) = self.up(number) else { return };
        up.forward = true;
        up.updates += 1;
        let params = Params { forward: Some(true), ..Params::default() };
        self.say(number, &Message::RequestUpdate(Box::new(RequestUpdate { request_id, params })), session);
    }

    /// Somebody wants objects of a track, or nobody does any more. What was asked for once goes on to come: it is cached,
    /// and a track that nobody wants is given up after a while.
    pub(super) fn forward(&mut self, track: u64, forward: bool, session: &mut dyn Session) {
        let of_track = |what: &What| matches!(what, What::Up(up) if up.track.as_ref().is_some_and(|t| t.id == track));
        let numbers: Vec<u64> =
            self.requests.iter().filter(|(_, request)| of_track(&request.what)).map(|(number, _)| *number).collect();
        for number in numbers {
            let Some(up) = self.up(number) else { continue };
            up.wanted = forward;
            if forward && !up.forward && up.established && !up.is_done() {
                self.ask_forward(number, session);
            }
        }
    }

    /// A track is not to be fed any more.
    pub(super) fn drop_track(&mut self, track: u64, malformed: bool, session: &mut dyn Session) {
        let of_track = |what: &What| matches!(what, What::Up(up) if up.track.as_ref().is_some_and(|t| t.id == track));
        let numbers: Vec<u64> =
            self.requests.iter().filter(|(_, request)| of_track(&request.what)).map(|(number, _)| *number).collect();
        let code = if malformed { ResetCode::MalformedTrack } else { ResetCode::Cancelled };
        for number in numbers {
            if let Some(up) = self.up(number) {
                up.items.clear();
            }
            self.end_request(number, code, session);
        }
    }

    /// The publisher's last word.
    pub(super) fn publish_done(
        &mut self,
        number: u64,
        done: &PublishDone,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let now = session.now();
        let Some(up) = self.up(number) else {
            let over = matches!(self.requests.get(&number).map(|request| &request.what), Some(What::Over));
            return if over { Ok(()) } else { Err(Close::violation("unexpected_message")) };
        };
        if up.is_done() || !up.established && up.track.is_some() {
            return Err(Close::violation("unexpected_message"));
        }
        up.done = Some((done.code, done.streams));
        self.wake.insert(number, later(now, LATE));
        self.look_for_end(number, session);
        Ok(())
    }

    /// A subscription that is done ends when all its streams have.
    fn look_for_end(&mut self, number: u64, session: &mut dyn Session) {
        let Some(up) = self.up(number) else { return };
        let Some((_, streams)) = up.done else { return };
        if up.open.is_empty() && streams.is_some_and(|streams| streams <= up.streams) && up.track.is_some() {
            self.is_over(number, session);
        }
    }

    /// Something was to be looked at by now.
    pub(super) fn woken(&mut self, number: u64, session: &mut dyn Session) {
        let Some(up) = self.up(number) else { return self.fetch_late(number, session) };
        if up.is_done() {
            if up.open.is_empty() {
                self.is_over(number, session);
            } else {
                // What has begun may go on as long as the session does.
                self.wake.insert(number, later(session.now(), LATE));
            }
        }
    }

    /// A subscription is over: the track learns it, and what still comes is dropped.
    pub(super) fn up_is_over(&mut self, number: u64, mut up: Up, session: Option<&mut dyn Session>) {
        if let Some(alias) = up.alias
            && self.aliases.get(alias) == Named::Request(number)
        {
            self.aliases.end(alias);
        }
        let Some(source) = self.joined.as_ref().map(|joined| joined.id) else { return };
        if let Some(track) = up.track.take() {
            if !up.items.is_empty() {
                let (items, bytes) = (std::mem::take(&mut up.items), up.bytes);
                drop(track.mail.tell(ToTrack::Items { source, items, bytes }));
            }
            let last = match (up.refused, up.done) {
                (Some(code), _) if !up.established => ToTrack::Refused(source, code),
                (_, Some((code, _))) => ToTrack::Gone(source, Some(code)),
                (_, None) => ToTrack::Gone(source, None),
            };
            drop(track.mail.tell(last));
        }
        let over = up.done.is_some() || up.refused.is_some() && !up.established;
        self.tell_directory(ToDirectory::Leave { session: source, name: up.name.clone(), over });
        if let Some(session) = session {
            for stream in up.open {
                self.incoming.remove(&stream);
                let _over = session.stop(stream, ResetCode::Cancelled.number(self.draft));
            }
        }
    }

    /// Reads what came on a unidirectional stream.
    pub(super) fn read_objects(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        let mut read = 0;
        self.came = true;
        loop {
            match self.incoming.get_mut(&stream) {
                None => return Ok(()),
                Some(Incoming::Parked { .. }) => {
                    if !self.unpark(stream, session)? {
                        return Ok(());
                    }
                    continue;
                }
                Some(Incoming::Errand(errand)) => {
                    let errand = *errand;
                    return self.read_errand(stream, errand, session);
                }
                Some(Incoming::Objects { request, .. }) => {
                    let request = *request;
                    if self.is_stuck(request) {
                        self.unread.insert(stream);
                        return Ok(());
                    }
                }
                Some(Incoming::New | Incoming::Head(_) | Incoming::Padding) => {}
            }
            if read >= TURN {
                self.unread.insert(stream);
                return Ok(());
            }
            match session.read(stream, READ) {
                Ok(Read::Data(bytes)) => {
                    read += bytes.len();
                    self.objects_came(stream, bytes, session)?;
                }
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) => return self.objects_ended(stream, session),
                Err(StreamError::Reset(code)) => {
                    self.objects_reset(stream, code, session.now());
                    return Ok(());
                }
                Err(_) => {
                    self.incoming.remove(&stream);
                    return Ok(());
                }
            }
        }
    }

    /// Whether a track has no room for what has come.
    fn is_stuck(&mut self, request: u64) -> bool {
        let stuck = self.retry.is_some();
        self.up(request).is_some_and(|up| up.bytes >= BATCH) && stuck
    }

    fn objects_came(&mut self, stream: StreamId, bytes: Bytes, session: &mut dyn Session) -> Result<(), Close> {
        match self.incoming.remove(&stream).unwrap_or_default() {
            Incoming::New => self.head_came(stream, bytes, session),
            Incoming::Head(before) => self.head_came(stream, [before, bytes].concat().into(), session),
            Incoming::Padding => {
                self.incoming.insert(stream, Incoming::Padding);
                Ok(())
            }
            Incoming::Objects { request, key, head, mut objects } => {
                self.counters.bytes_in.add(bytes.len() as u64);
                let found = match objects.feed(bytes, session.now()) {
                    Ok(found) => found,
                    Err(mistake) => return self.objects_wrong(stream, (request, key), mistake, session),
                };
                self.counters.objects_in.add(found.marks.len() as u64);
                let (mut key, mut head) = (key, head);
                let Some(up) = self.up(request) else { return Ok(()) };
                if key.is_none()
                    && let Some(first) = found.marks.first()
                {
                    head.subgroup = Some(first.id);
                    key = Some(up.next);
                    up.push(Item::Begin { no: up.next, head, at: session.now() });
                    up.next += 1;
                }
                if let Some(no) = key {
                    let mut marks = found.marks;
                    let mut pieces = found.bytes.into_iter().peekable();
                    while let Some(bytes) = pieces.next() {
                        // All marks with the last piece would do as well, but for one that begins in the first.
                        let of_this = if pieces.peek().is_some() {
                            marks.drain(..1.min(marks.len())).collect()
                        } else {
                            std::mem::take(&mut marks)
                        };
                        up.push(Item::Data { no, marks: of_this, bytes });
                    }
                }
                let full = up.bytes >= BATCH;
                self.incoming.insert(stream, Incoming::Objects { request, key, head, objects });
                if full {
                    self.hand_over_of(request, session.now());
                }
                Ok(())
            }
            other @ (Incoming::Parked { .. } | Incoming::Errand(_)) => {
                self.incoming.insert(stream, other);
                Ok(())
            }
        }
    }

    fn head_came(&mut self, stream: StreamId, bytes: Bytes, session: &mut dyn Session) -> Result<(), Close> {
        match stream_head(&bytes).map_err(of_session)? {
            None if bytes.len() > HEAD => Err(Close::violation("stream_head_too_long")),
            None => {
                self.incoming.insert(stream, Incoming::Head(bytes));
                Ok(())
            }
            Some((StreamHead::Control, bytes)) => self.is_control(stream, bytes, session),
            Some((StreamHead::Padding, _)) => {
                self.incoming.insert(stream, Incoming::Padding);
                Ok(())
            }
            Some((StreamHead::Fetch { request }, rest)) => self.fetch_stream(stream, request, rest, session),
            Some((StreamHead::Subgroup { alias, head, first_is_subgroup }, rest)) => {
                self.counters.streams_in.add(1);
                self.incoming.insert(stream, Incoming::Parked { alias, head, first_is_subgroup, rest });
                Ok(())
            }
        }
    }

    /// A stream goes on if its track is known by now.
    fn unpark(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<bool, Close> {
        let Some(Incoming::Parked { alias, head, first_is_subgroup, .. }) = self.incoming.get(&stream) else {
            return Ok(false);
        };
        let (alias, head, first_is_subgroup) = (*alias, *head, *first_is_subgroup);
        let request = match self.aliases.get(alias) {
            Named::Request(request) if self.up(request).is_some_and(|up| up.track.is_some()) => request,
            Named::Over => {
                self.incoming.remove(&stream);
                self.parked.remove(&stream);
                let _over = session.stop(stream, ResetCode::Cancelled.number(self.draft));
                return Ok(false);
            }
            Named::Request(_) | Named::Nothing => {
                if !self.parked.contains_key(&stream) {
                    if self.parked.len() >= PARKED {
                        self.incoming.remove(&stream);
                        self.raise("moq_streams_dropped", "unknown_alias");
                        let _over = session.stop(stream, ResetCode::ExcessiveLoad.number(self.draft));
                        return Ok(false);
                    }
                    self.parked.insert(stream, later(session.now(), PARKED_FOR));
                }
                return Ok(false);
            }
        };
        self.parked.remove(&stream);
        let Some(Incoming::Parked { rest, .. }) = self.incoming.remove(&stream) else { return Ok(false) };
        let Some(up) = self.up(request) else { return Ok(false) };
        up.streams += 1;
        up.open.insert(stream);
        let key = if first_is_subgroup {
            None
        } else {
            up.push(Item::Begin { no: up.next, head, at: session.now() });
            up.next += 1;
            Some(up.next - 1)
        };
        let objects = Objects::new(&head);
        self.incoming.insert(stream, Incoming::Objects { request, key, head, objects });
        if !rest.is_empty() {
            self.objects_came(stream, rest, session)?;
        }
        Ok(true)
    }

    /// Streams that have waited long enough for their track are given up.
    pub(super) fn unparked(&mut self, session: &mut dyn Session) {
        let now = session.now();
        let over: Vec<StreamId> = self.parked.iter().filter(|(_, by)| **by <= now).map(|(stream, _)| *stream).collect();
        for stream in over {
            self.parked.remove(&stream);
            self.incoming.remove(&stream);
            self.unread.remove(&stream);
            self.raise("moq_streams_dropped", "unknown_alias");
            let _over = session.stop(stream, ResetCode::Cancelled.number(self.draft));
        }
    }

    fn objects_wrong(
        &mut self,
        stream: StreamId,
        (request, key): (u64, Option<u64>),
        mistake: Mistake,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        match mistake.ends() {
            Ends::Stream(code) => {
                self.raise("moq_streams_dropped", mistake.reason());
                self.incoming.remove(&stream);
                self.lost(stream, request, key, code.number(self.draft), session.now());
                let _over = session.stop(stream, code.number(self.draft));
                Ok(())
            }
            Ends::Track => {
                let source = self.joined.as_ref().map(|joined| joined.id);
                if let (Some(source), Some(track)) = (source, self.up(request).and_then(|up| up.track.clone())) {
                    drop(track.mail.tell(ToTrack::Malformed(source, mistake.reason())));
                }
                self.incoming.remove(&stream);
                let _over = session.stop(stream, ResetCode::MalformedTrack.number(self.draft));
                Ok(())
            }
            Ends::Request(_) | Ends::Session(_) => Err(of_session(mistake)),
        }
    }

    fn objects_ended(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        match self.incoming.remove(&stream) {
            Some(Incoming::Objects { request, key, objects, .. }) => {
                objects.finish().map_err(of_session)?;
                let at = session.now();
                let Some(up) = self.up(request) else { return Ok(()) };
                up.open.remove(&stream);
                // Without an object it is not known which subgroup it was.
                if let Some(no) = key {
                    up.push(Item::End { no, end: End::Complete, at });
                }
                self.look_for_end(request, session);
                Ok(())
            }
            Some(Incoming::Errand(errand)) => {
                self.errand_ended(errand, None);
                Ok(())
            }
            Some(Incoming::Head(_)) => Err(of_session(Mistake::CutOff)),
            Some(Incoming::New | Incoming::Padding | Incoming::Parked { .. }) | None => Ok(()),
        }
    }

    /// The peer gave a stream up.
    pub(super) fn objects_reset(&mut self, stream: StreamId, code: u64, now: Instant) {
        self.unread.remove(&stream);
        self.came = true;
        match self.incoming.remove(&stream) {
            Some(Incoming::Objects { request, key, .. }) => self.lost(stream, request, key, code, now),
            Some(Incoming::Errand(errand)) => self.errand_ended(errand, Some(code)),
            Some(Incoming::New | Incoming::Head(_) | Incoming::Padding | Incoming::Parked { .. }) | None => {}
        }
        self.parked.remove(&stream);
    }

    /// The rest of a subgroup will not come.
    fn lost(&mut self, stream: StreamId, request: u64, key: Option<u64>, code: u64, at: Instant) {
        let Some(up) = self.up(request) else { return };
        up.open.remove(&stream);
        if let Some(no) = key {
            up.push(Item::End { no, end: End::Reset(code), at });
        }
        if up.is_done() {
            self.wake.insert(request, at);
        }
    }

    /// Reads datagrams.
    pub(super) fn datagrams(&mut self, session: &mut dyn Session) -> Result<(), Close> {
        let now = session.now();
        self.came = true;
        while let Some(bytes) = session.read_datagram() {
            let Some(datagram) = read_datagram(&bytes, now).map_err(of_session)? else { continue };
            self.counters.datagrams_in.add(1);
            let request = match self.aliases.get(datagram.alias) {
                Named::Request(request) => request,
                Named::Over | Named::Nothing => {
                    self.raise("moq_datagrams_dropped", "unknown_alias");
                    continue;
                }
            };
            self.counters.objects_in.add(1);
            let full = self.retry.is_some();
            let Some(up) = self.up(request) else { continue };
            if full && up.bytes >= BATCH {
                self.raise("moq_datagrams_dropped", "track_full");
                continue;
            }
            let no = up.next;
            up.next += 1;
            up.push(Item::Begin { no, head: datagram.head, at: now });
            up.push(Item::Data { no, marks: vec![datagram.mark], bytes: datagram.bytes });
            up.push(Item::End { no, end: End::Complete, at: now });
        }
        Ok(())
    }

    /// Hands what has come to the tracks, one message for each.
    pub(super) fn hand_over(&mut self, now: Instant) {
        let ups: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| matches!(&request.what, What::Up(up) if !up.items.is_empty()))
            .map(|(number, _)| *number)
            .collect();
        for number in ups {
            self.hand_over_of(number, now);
        }
    }

    fn hand_over_of(&mut self, number: u64, now: Instant) {
        let Some(source) = self.joined.as_ref().map(|joined| joined.id) else { return };
        let Some(up) = self.up(number) else { return };
        let Some(track) = up.track.clone() else { return };
        let (items, bytes) = (std::mem::take(&mut up.items), std::mem::take(&mut up.bytes));
        match track.mail.tell(ToTrack::Items { source, items, bytes }) {
            Ok(()) | Err(Refused::Closed(_)) => {}
            Err(Refused::Full(back) | Refused::TooLarge(back)) => {
                if let ToTrack::Items { items, bytes, .. } = back {
                    (up.items, up.bytes) = (items, bytes);
                }
                self.retry = Some(later(now, RETRY));
            }
        }
    }

    /// Goes on with streams that had more. True if some still have.
    pub(super) fn read_more(&mut self, session: &mut dyn Session) -> Result<bool, Close> {
        if self.retry.is_some() {
            return Ok(false);
        }
        for stream in std::mem::take(&mut self.unread) {
            self.read_objects(stream, session)?;
        }
        Ok(!self.unread.is_empty() && self.retry.is_none())
    }
}
