//! A session of MoQT, as the application of its connection: over QUIC or over WebTransport, it is the same.
//!
//! It lives in the actor of the connection. Its requests are state inside it ([`Request`]), each with a stream of its
//! own; what others of the relay tell it comes as messages ([`ToSession`]), and objects come from the feeds of its
//! arbiter, which ring when there is something. In each turn: events and messages as they come, then what has come is
//! handed to tracks, then objects are written, the most important first, as far as the connection takes them.
//!
//! # What is bounded
//! Requests, by setting; streams whose track is not known yet, 32, which are not read; words that wait on a request
//! stream, 256 KiB, beyond which the request is given up; objects waiting in QUIC, 128 KiB; what came and finds no room at
//! its track, which is not read further.
//!
//! # Ends
//! A mistake that [`Ends::Session`] closes the session with its code; all others end a request or a stream.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::actor_directory::ToDirectory;
use super::actor_errand::Errands;
use super::actor_feed::Bell;
use super::actor_ingest::Incoming;
use super::actor_publish::Key;
use super::actor_publish::Offer;
use super::actor_relay::{Relay, ToSession};
use super::actor_site::Site;
use super::actor_wire::{Messages, encode};
use super::actor_words::{REQUESTS, Request, What};
use super::codec::{Ends, Mistake};
use super::model::{Draft, Side};
use super::model_codes::{RequestCode, ResetCode, SessionCode};
use super::model_message::{Goaway, Message, Setup};
use super::model_params::Token;
use super::state_directory::SessionId;
use super::state_outgoing::Outgoing;
use super::state_ready::Ready;
use super::state_requests::{Aliases, Numbers, Prefixes};
use super::state_rights::Held;
use crate::actors::clock::later;
use crate::actors::{Counter, Driver, Permit};
use crate::transports::quic::{
    Application, Code, End, Event, Priority, Read, Session, StreamError, StreamId, StreamKind,
};

/// Control streams come before everything else.
const CONTROL: Priority = Priority { urgency: 0, incremental: false };
/// Bytes read at once.
pub(super) const READ: usize = 64 << 10;
/// When to try a full mailbox again.
pub(super) const RETRY: Duration = Duration::from_millis(1);
/// A session that was asked to go is closed this long before the drain ends.
const BEFORE: Duration = Duration::from_secs(1);
/// A control stream that ends is a broken rule, unless the session ends right behind it.
const GRACE: Duration = Duration::from_millis(50);
/// Streams of the peer that may wait for the setup.
const EARLY: usize = 128;

/// Why a session ends, and the word that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Close {
    pub(super) code: SessionCode,
    pub(super) reason: &'static str,
}

impl Close {
    pub(super) const fn violation(reason: &'static str) -> Self {
        Self { code: SessionCode::ProtocolViolation, reason }
    }
}

/// The counters of sessions on an arbiter.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) objects_in: Counter,
    pub(super) bytes_in: Counter,
    pub(super) streams_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) streams_out: Counter,
    pub(super) datagrams_in: Counter,
    pub(super) datagrams_out: Counter,
    pub(super) skipped: Counter,
}

impl Counters {
    fn of(driver: &Driver, name: &Arc<str>) -> Self {
        Self {
            objects_in: driver.counter("moq_objects_in", name, ""),
            bytes_in: driver.counter("moq_bytes_in", name, ""),
            streams_in: driver.counter("moq_streams_in", name, ""),
            bytes_out: driver.counter("moq_bytes_out", name, ""),
            streams_out: driver.counter("moq_streams_out", name, ""),
            datagrams_in: driver.counter("moq_datagrams_in", name, ""),
            datagrams_out: driver.counter("moq_datagrams_out", name, ""),
            skipped: driver.counter("moq_skipped", name, ""),
        }
    }
}

/// What the peer said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its SETUP has not come.
    Setup,
    Open,
    /// One of us wants to go.
    Leaving,
    Closed,
}

/// A session of a relay.
pub(super) struct Joined {
    pub(super) relay: Arc<Relay>,
    pub(super) id: SessionId,
    /// Room for the news that it is gone.
    farewell: Option<Permit<ToDirectory>>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(farewell) = self.farewell.take() {
            drop(farewell.tell(ToDirectory::Gone(self.id)));
        }
    }
}

/// See the top of the file.
pub(super) struct MoqSession {
    site: Arc<Site>,
    pub(super) joined: Option<Joined>,
    pub(super) draft: Draft,
    /// A client's is a session with the relay's origin.
    pub(super) side: Side,
    /// What this end says of itself, until it has.
    hello: Option<Setup>,
    stage: Stage,
    pub(super) arbiter: usize,
    pub(super) bell: Rc<Bell>,
    pub(super) counters: Counters,
    pub(super) driver: Driver,
    control: Option<StreamId>,
    control_words: Messages,
    /// The peer's control stream.
    theirs: Option<StreamId>,
    goaway_came: bool,
    goaway_said: bool,
    /// When the peer's SETUP must be there, and later when the session is closed.
    by: Option<Instant>,
    /// A control stream has ended: when that is held against the peer.
    doomed: Option<Instant>,
    pub(super) numbers: Numbers,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) namespaces: Prefixes,
    pub(super) tracks: Prefixes,
    pub(super) held: Held,
    /// What the peer showed when it came: judged anew when the relay's rights change.
    pub(super) tokens: Vec<Token>,
    pub(super) aliases: Aliases,
    pub(super) next_alias: u64,
    /// Streams of objects from the peer.
    pub(super) incoming: BTreeMap<StreamId, Incoming>,
    /// Those whose track is not known, and until when they may wait for it.
    pub(super) parked: BTreeMap<StreamId, Instant>,
    /// Those that have more to be read.
    pub(super) unread: BTreeSet<StreamId>,
    /// Streams of objects to the peer.
    pub(super) outgoing: Outgoing<StreamId>,
    /// Subscriptions and fetches that may have something to send.
    pub(super) ready: Ready<Key>,
    /// Subscriptions that have nothing to send now.
    pub(super) may_be_done: Vec<u64>,
    /// Tracks that are to be offered.
    pub(super) offers: BTreeMap<u64, Offer>,
    /// Objects have come that were not handed over.
    pub(super) came: bool,
    /// What came and found no room at its track: when to try again.
    pub(super) retry: Option<Instant>,
    pub(super) errands: Errands,
    /// Streams that came before the setup.
    early: Vec<StreamId>,
    /// When a grant ends, since 1970, and when to look.
    pub(super) rights_end: Option<Instant>,
    pub(super) wake: BTreeMap<u64, Instant>,
}

impl std::fmt::Debug for MoqSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MoqSession").field("draft", &self.draft).finish_non_exhaustive()
    }
}

impl MoqSession {
    /// For a connection that has just been established, on its arbiter.
    pub(super) fn new(site: Arc<Site>) -> Self {
        Self::of(site, Side::Server, Site::setup())
    }

    /// For one that this end has dialled, to the origin of the site's only relay.
    pub(super) fn to_origin(site: Arc<Site>, setup: Setup) -> Self {
        Self::of(site, Side::Client, setup)
    }

    fn of(site: Arc<Site>, side: Side, hello: Setup) -> Self {
        let driver = Driver::default();
        Self {
            held: Held::new(super::state_rights::Grant::default()),
            tokens: Vec::new(),
            counters: Counters::of(&driver, site.name()),
            driver,
            joined: None,
            draft: Draft::D18,
            side,
            hello: Some(hello),
            stage: Stage::Setup,
            arbiter: 0,
            bell: Rc::default(),
            control: None,
            control_words: Messages::new(Draft::D18),
            theirs: None,
            goaway_came: false,
            goaway_said: false,
            by: None,
            doomed: None,
            numbers: Numbers::new(side),
            requests: BTreeMap::new(),
            namespaces: Prefixes::default(),
            tracks: Prefixes::default(),
            aliases: Aliases::default(),
            next_alias: 1,
            incoming: BTreeMap::new(),
            parked: BTreeMap::new(),
            unread: BTreeSet::new(),
            outgoing: Outgoing::default(),
            ready: Ready::default(),
            may_be_done: Vec::new(),
            offers: BTreeMap::new(),
            came: false,
            retry: None,
            errands: Errands::default(),
            early: Vec::new(),
            rights_end: None,
            wake: BTreeMap::new(),
            site,
        }
    }

    pub(super) fn relay(&self) -> Option<&Arc<Relay>> {
        self.joined.as_ref().map(|joined| &joined.relay)
    }

    pub(super) fn raise(&self, family: &'static str, reason: &'static str) {
        self.driver.raise(family, self.site.name(), reason);
    }

    pub(super) fn tell_directory(&self, what: ToDirectory) -> bool {
        self.relay().is_some_and(|relay| relay.tell_directory(what))
    }

    /// Ends the session.
    pub(super) fn close(&mut self, close: Close, session: &mut dyn Session) {
        if self.stage == Stage::Closed {
            return;
        }
        self.stage = Stage::Closed;
        self.raise("moq_sessions_failed", close.reason);
        session.close(close.code.number(self.draft), close.reason);
        self.leave();
    }

    /// Ends the session, which is nobody's fault.
    fn end(&mut self, session: &mut dyn Session) {
        if self.stage != Stage::Closed {
            self.stage = Stage::Closed;
            self.count_end("closed");
            session.close(SessionCode::NoError.number(self.draft), "");
            self.leave();
        }
    }

    /// One that was never set up is not among those that are counted.
    fn count_end(&self, reason: &'static str) {
        self.raise(if self.joined.is_some() { "moq_sessions_ended" } else { "moq_setups_abandoned" }, reason);
    }

    /// Lets go of everything.
    fn leave(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        for (number, request) in requests {
            self.let_go(number, request.what, None);
        }
        self.errands_are_lost();
        for _ in std::mem::take(&mut self.parked) {
            self.raise("moq_streams_dropped", "unknown_alias");
        }
        self.joined = None;
        self.outgoing.clear();
        self.offers.clear();
        self.incoming.clear();
        self.ready.clear();
    }

    fn begin(&mut self, session: &mut dyn Session) {
        let info = session.info();
        self.arbiter = info.arbiter;
        let Some(draft) = Draft::from_alpn(&info.alpn) else {
            let close = Close { code: SessionCode::VersionNegotiationFailed, reason: "no_common_draft" };
            return self.close(close, session);
        };
        self.draft = draft;
        self.control_words = Messages::new(draft);
        self.by = Some(later(session.now(), self.site.patience()));
        let Ok(stream) = session.open(StreamKind::Unidirectional, CONTROL) else {
            return self.close(Close::violation("no_control_stream"), session);
        };
        self.control = Some(stream);
        // Of several scopes the peer names one, and only then it is clear which relay this is.
        let relay = self.site.only();
        if (relay.is_some() || self.side == Side::Client)
            && let Err(close) = self.say_hello(relay.as_deref(), session)
        {
            self.close(close, session);
        }
    }

    /// This end's SETUP, unless it was said.
    fn say_hello(&mut self, relay: Option<&Relay>, session: &mut dyn Session) -> Result<(), Close> {
        const FAILED: Close = Close { code: SessionCode::InternalError, reason: "setup" };
        let (Some(mut setup), Some(stream)) = (self.hello.take(), self.control) else { return Ok(()) };
        setup.relay = setup.relay.or_else(|| relay.and_then(Relay::identity));
        let bytes = encode(&Message::Setup(Box::new(setup)), self.draft).map_err(|_| FAILED)?;
        session.write(stream, bytes).map_err(|_| FAILED)
    }

    /// The peer's SETUP: which relay it is for, and what it may do there.
    fn setup(&mut self, setup: &Setup, session: &mut dyn Session) -> Result<(), Close> {
        let relay = self.site.relay_of(setup)?;
        self.say_hello(Some(&relay), session)?;
        self.take_tokens(&relay, setup.tokens.clone())?;
        self.look_at_rights(session.now());
        let id = relay.session();
        let farewell = relay.reserve();
        let Some(door) = session.door() else {
            return Err(Close { code: SessionCode::InternalError, reason: "no_door" });
        };
        let origin = self.side == Side::Client;
        let hello = ToDirectory::Hello { session: id, door, arbiter: self.arbiter, origin, relay: setup.relay };
        if farewell.is_none() || !relay.tell_directory(hello) {
            return Err(Close { code: SessionCode::InternalError, reason: "directory_full" });
        }
        self.joined = Some(Joined { relay, id, farewell });
        self.stage = Stage::Open;
        self.by = None;
        self.raise("moq_sessions", self.draft.alpn());
        for stream in std::mem::take(&mut self.early) {
            self.readable(stream, session)?;
        }
        Ok(())
    }

    /// Something can be read on a stream.
    pub(super) fn readable(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        if self.theirs == Some(stream) {
            return self.read_control(stream, session);
        }
        if stream.kind() == StreamKind::Unidirectional {
            return self.read_objects(stream, session);
        }
        if self.stage == Stage::Setup {
            // What came before the setup waits for it (draft, section 3.3).
            if self.early.len() >= EARLY {
                return Err(Close { code: SessionCode::ProtocolViolation, reason: "too_much_before_setup" });
            }
            if !self.early.contains(&stream) {
                self.early.push(stream);
            }
            return Ok(());
        }
        self.read_request(stream, session)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.stage == Stage::Leaving
    }

    /// A stream of the peer turns out to be its control stream, with these bytes read of it.
    pub(super) fn is_control(
        &mut self,
        stream: StreamId,
        bytes: Bytes,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        if self.theirs.replace(stream).is_some() {
            return Err(Close::violation("second_control_stream"));
        }
        self.control_words.feed(bytes);
        self.hear_control(session)?;
        self.read_control(stream, session)
    }

    fn read_control(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        loop {
            match session.read(stream, READ) {
                Ok(Read::Data(bytes)) => {
                    self.control_words.feed(bytes);
                    self.hear_control(session)?;
                }
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) | Err(StreamError::Reset(_)) => {
                    self.control_ended(session.now());
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// A control stream has ended. A peer that closes may end its streams first: its close is here by then.
    fn control_ended(&mut self, now: Instant) {
        self.doomed.get_or_insert_with(|| later(now, GRACE));
    }

    fn hear_control(&mut self, session: &mut dyn Session) -> Result<(), Close> {
        while let Some(message) = self.control_words.next().map_err(|refused| of_session(refused.mistake))? {
            match message {
                Message::Setup(setup) if self.stage == Stage::Setup => self.setup(&setup, session)?,
                Message::Goaway(goaway) if self.stage != Stage::Setup => self.goaway_came(&goaway, session)?,
                Message::Setup(_)
                | Message::Goaway(_)
                | Message::Subscribe(_)
                | Message::SubscribeOk(_)
                | Message::Publish(_)
                | Message::PublishDone(_)
                | Message::PublishStateNotify(_)
                | Message::Fetch(_)
                | Message::FetchOk(_)
                | Message::TrackStatus(_)
                | Message::PublishNamespace(_)
                | Message::SubscribeNamespace(_)
                | Message::Namespace(_)
                | Message::NamespaceDone(_)
                | Message::SubscribeTracks(_)
                | Message::PublishBlocked(_)
                | Message::RequestUpdate(_)
                | Message::RequestOk(_)
                | Message::RequestError(_)
                | Message::Unsubscribe => return Err(Close::violation("unexpected_message")),
            }
        }
        Ok(())
    }

    fn goaway_came(&mut self, goaway: &Goaway, session: &mut dyn Session) -> Result<(), Close> {
        if std::mem::replace(&mut self.goaway_came, true) {
            return Err(Close::violation("second_goaway"));
        }
        if self.side == Side::Server && !goaway.uri.is_empty() {
            return Err(Close::violation("goaway_uri_from_client"));
        }
        self.stage = Stage::Leaving;
        self.raise("moq_goaways", "received");
        self.site.goaway(goaway);
        if self.side == Side::Client {
            // The next session with an origin begins as soon as this one is over.
            self.end(session);
        }
        Ok(())
    }

    /// Tells the peer to go elsewhere.
    pub(super) fn say_goaway(&mut self, uri: &str, timeout: Duration, session: &mut dyn Session) {
        let Some(stream) = self.control.filter(|_| !self.goaway_said && self.stage != Stage::Closed) else { return };
        self.goaway_said = true;
        let uri = if self.side == Side::Server { uri.to_owned() } else { String::new() };
        let goaway = Goaway { uri, timeout, request_id: Some(self.numbers.first_unseen()) };
        if let Ok(bytes) = encode(&Message::Goaway(goaway), self.draft) {
            let _gone = session.write(stream, bytes);
            self.raise("moq_goaways", "sent");
        }
        if self.stage == Stage::Open {
            self.stage = Stage::Leaving;
        }
    }

    /// Tells the peer to go elsewhere, and closes the session shortly before this time is over. Of two such times the
    /// first counts.
    fn leave_within(&mut self, left: Duration, session: &mut dyn Session) {
        self.say_goaway("", left, session);
        let by = later(session.now(), left.saturating_sub(BEFORE.min(left / 2)));
        self.by = Some(self.by.map_or(by, |before| before.min(by)));
    }

    fn opened(&mut self, stream: StreamId, session: &mut dyn Session) {
        if stream.kind() == StreamKind::Unidirectional {
            self.incoming.insert(stream, Incoming::default());
            return;
        }
        session.prioritise(stream, REQUESTS);
        let most = self.relay().map_or(1_000, |relay| relay.settings().requests);
        let request = Request::new(self.draft, false, What::New);
        let theirs = self.requests.values().filter(|request| !request.ours).count();
        self.requests.insert(stream.0, request);
        if theirs >= most {
            self.refuse(stream.0, RequestCode::ExcessiveLoad, session);
        }
    }

    fn act(&mut self, event: Event, session: &mut dyn Session) -> Result<(), Close> {
        match event {
            Event::Connected => self.begin(session),
            Event::Opened(stream) => self.opened(stream, session),
            Event::Readable(stream) => self.readable(stream, session)?,
            Event::Writable(stream) => {
                if stream.kind() == StreamKind::Bidirectional {
                    self.write_words(stream.0, session);
                } else {
                    self.writable(stream);
                }
            }
            Event::Stopped(stream, code) => {
                if Some(stream) == self.control {
                    self.control_ended(session.now());
                    return Ok(());
                }
                if stream.kind() == StreamKind::Bidirectional {
                    self.request_cancelled(stream.0, code, session);
                } else {
                    self.stopped(stream, session);
                }
            }
            Event::Expired(stream) => {
                self.raise("moq_streams_reset", ResetCode::DeliveryTimeout.reason());
                self.counters.skipped.add(1);
                self.stopped(stream, session);
            }
            Event::Openable(_) => self.openable(session),
            Event::Datagrams => self.datagrams(session)?,
            Event::Reset(stream, code) => {
                // Said by `read` as well, unless nothing was left to be read.
                if Some(stream) == self.theirs {
                    self.control_ended(session.now());
                    return Ok(());
                }
                if stream.kind() == StreamKind::Bidirectional {
                    self.request_cancelled(stream.0, code, session);
                } else {
                    self.objects_reset(stream, code, session.now());
                }
            }
            Event::Closed(end) => self.closed(&end),
            Event::Finished(_) | Event::PathChanged { .. } | Event::Missed(_) => {}
        }
        Ok(())
    }

    fn closed(&mut self, end: &End) {
        if self.stage != Stage::Closed {
            self.stage = Stage::Closed;
            let calm = matches!(end.code, Code::Application(0) | Code::Transport(0)) || end.reason == "peer_closed";
            self.count_end(if calm { "closed" } else { end.reason });
        }
        self.leave();
    }

    fn told(&mut self, what: ToSession, session: &mut dyn Session) -> Result<(), Close> {
        if let ToSession::Goaway(uri) = &what {
            self.say_goaway(uri, Duration::ZERO, session);
            return Ok(());
        }
        if let ToSession::Retired(within) = &what {
            self.leave_within(*within, session);
            return Ok(());
        }
        if matches!(what, ToSession::Rights) {
            self.judge_anew(session);
            self.look_at_rights(session.now());
            return Ok(());
        }
        self.hear_relay(what, session)
    }

    fn tick(&mut self, session: &mut dyn Session) {
        let now = session.now();
        if self.doomed.is_some_and(|at| at <= now) {
            return self.close(Close::violation("control_stream_closed"), session);
        }
        if self.by.is_some_and(|at| at <= now) {
            let close = if self.stage == Stage::Setup {
                Close { code: SessionCode::ControlMessageTimeout, reason: "setup_timeout" }
            } else {
                Close { code: SessionCode::GoawayTimeout, reason: "goaway_timeout" }
            };
            return self.close(close, session);
        }
        if self.rights_end.is_some_and(|at| at <= now) {
            self.rights_ended(session);
            self.look_at_rights(now);
        }
        self.unparked(session);
        let due: Vec<u64> = self.wake.iter().filter(|(_, at)| **at <= now).map(|(number, _)| *number).collect();
        for number in due {
            self.wake.remove(&number);
            self.woken(number, session);
        }
    }
}

/// A mistake of the peer that ends the session.
pub(super) fn of_session(mistake: Mistake) -> Close {
    let code = match mistake.ends() {
        Ends::Session(code) => code,
        Ends::Request(_) | Ends::Stream(_) | Ends::Track => SessionCode::ProtocolViolation,
    };
    Close { code, reason: mistake.reason() }
}

impl Application for MoqSession {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if self.stage == Stage::Closed && !matches!(event, Event::Closed(_)) {
            return;
        }
        if let Err(close) = self.act(event, session) {
            self.close(close, session);
        }
    }

    fn message(&mut self, m: Box<dyn Any + Send>, session: &mut dyn Session) {
        let Ok(what) = m.downcast::<ToSession>() else { return };
        if self.stage == Stage::Closed {
            return;
        }
        if let Err(close) = self.told(*what, session) {
            self.close(close, session);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        if self.stage == Stage::Closed {
            return false;
        }
        self.bell.attend(cx.waker());
        for number in self.bell.take() {
            self.rung(number, session);
        }
        let mut more = match self.read_more(session) {
            Ok(more) => more,
            Err(close) => {
                self.close(close, session);
                return false;
            }
        };
        if std::mem::take(&mut self.came) {
            self.hand_over(session.now());
        }
        more |= self.pump(session);
        self.end_the_done(session);
        if self.stage == Stage::Leaving && self.goaway_said && self.requests.is_empty() {
            self.end(session);
        }
        more
    }

    fn drain(&mut self, by: Instant, session: &mut dyn Session) {
        self.leave_within(by.saturating_duration_since(session.now()), session);
    }

    fn deadline(&self) -> Option<Instant> {
        let woken = self.wake.values().min().copied();
        let parked = self.parked.values().min().copied();
        [self.by, self.doomed, self.retry, self.rights_end, woken, parked].into_iter().flatten().min()
    }

    fn on_deadline(&mut self, session: &mut dyn Session) {
        if self.stage == Stage::Closed {
            return;
        }
        let tried = self.retry;
        self.retry = tried.filter(|at| *at > session.now());
        self.came |= tried.is_some() && self.retry.is_none();
        self.tick(session);
    }
}
