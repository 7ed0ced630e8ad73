//! The session of a client, inside the actor of its connection: requests of its handles, and what comes for them.
//!
//! Handles ([`client`](super::client)) tell it what they want ([`ToClient`]) and are answered when it is done: an object
//! once QUIC has credit for it, objects of a subscription once there are some. So a publisher that writes waits for the
//! peer's window, and a subscription that nobody reads is not read from QUIC beyond its bounds; what waits there takes of
//! the connection's window, which is shared, so that one who does not mean to read drops the subscription. A handle that
//! is dropped is noticed in the next turn, and what was its is given up.
//!
//! # What is bounded
//! Requests, 1,000; those that wait for a stream, 64; streams whose track is not known, 32, which are not read beyond
//! their head; what a subscription holds ([`Bounds`]). What the peer asks for is refused: nothing is served here but what
//! was published.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::actor_session::{Close, READ, of_session};
use super::actor_wire::encode;
use super::codec_datagram::ObjectDatagram;
use super::codec_message::MessageDecoder;
use super::codec_subgroup::SubgroupHeader;
use super::model::{Draft, Side};
use super::model_codes::{DoneCode, RequestCode, ResetCode, SessionCode};
use super::model_message::{Message, Setup};
use super::model_names::FullTrackName;
use super::model_params::{Params, Properties};
use super::state_assembly::{Assembly, Bounds, Object};
use super::state_requests::{Aliases, Numbers};
use crate::actors::clock::later;
use crate::actors::{Driver, Reply};
use crate::transports::quic::{
    Application, Code, Door, End, Event, Priority, Read, Session, StreamError, StreamId, StreamKind,
};

const CONTROL: Priority = Priority { urgency: 0, incremental: false };
pub(super) const REQUESTS: Priority = Priority { urgency: 1, incremental: true };
/// Requests of this end.
pub(super) const MOST: usize = 1_000;
/// Those that wait until the peer allows another stream.
pub(super) const WAITING: usize = 64;
/// Requests of the peer that are being read.
const THEIRS: usize = 64;
/// How long streams may still come once a publisher has said its last word.
pub(super) const LATE: Duration = Duration::from_secs(2);
/// How long a session that nobody holds any more may take to deliver what was written.
const LEAVING: Duration = Duration::from_secs(5);

/// Why a client's request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientError {
    /// The peer refuses; it says why.
    Refused(RequestCode, String),
    /// The peer gave the request or stream up, with this code.
    GivenUp(u64),
    /// The session has ended, for this reason.
    Ended(Arc<str>),
    /// As much as one session may have open, or wait for, is open.
    Busy,
    /// The draft that was agreed on cannot say it, or it contradicts itself.
    Unsayable(super::codec::Unsayable),
    /// The path allows datagrams of so many bytes only; 0: the peer takes none.
    TooLarge(usize),
    /// The handle was used after its end.
    Over,
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(code, words) if words.is_empty() => write!(f, "refused: {code}"),
            Self::Refused(code, words) => write!(f, "refused: {code} ({})", words.escape_debug()),
            Self::GivenUp(code) => write!(f, "given up by the peer, code {code:#x}"),
            Self::Ended(why) => write!(f, "the session has ended: {}", why.escape_debug()),
            Self::Busy => f.write_str("as much is open or waits as may"),
            Self::Unsayable(what) => what.fmt(f),
            Self::TooLarge(most) => write!(f, "the path allows datagrams of {most} bytes"),
            Self::Over => f.write_str("used after its end"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<super::codec::Unsayable> for ClientError {
    fn from(what: super::codec::Unsayable) -> Self {
        Self::Unsayable(what)
    }
}

pub(super) type Answer<T> = Reply<Result<T, ClientError>>;

/// A subscription or publication that the peer has accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) number: u64,
    pub(super) params: Params,
    pub(super) properties: Properties,
}

/// What has come of a subscription.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) objects: Vec<Object>,
    pub(super) lost: u64,
    /// Nothing comes after this.
    pub(super) done: Option<DoneCode>,
}

/// What handles tell the session.
pub(super) enum ToClient {
    Ready(Answer<(Door, Draft)>),
    Subscribe {
        track: FullTrackName,
        params: Box<Params>,
        bounds: Bounds,
        alive: Weak<()>,
        reply: Answer<Accepted>,
    },
    Next {
        subscription: u64,
        reply: Answer<Batch>,
    },
    Publish {
        track: FullTrackName,
        properties: Properties,
        alive: Weak<()>,
        reply: Answer<Accepted>,
    },
    Begin {
        publisher: u64,
        header: SubgroupHeader,
        alive: Weak<()>,
        reply: Answer<Option<StreamId>>,
    },
    Write {
        stream: StreamId,
        bytes: Bytes,
        reply: Answer<()>,
    },
    Finish {
        stream: StreamId,
        reply: Answer<()>,
    },
    Datagram {
        publisher: u64,
        datagram: Box<ObjectDatagram>,
        reply: Answer<()>,
    },
    Done {
        publisher: u64,
        reply: Answer<()>,
    },
    /// A handle was dropped.
    Look,
}

/// What the session and its handles share.
#[derive(Debug, Default)]
pub(super) struct Dropped(AtomicBool);

impl Dropped {
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How a session begins.
pub(super) struct Options {
    pub(super) name: Arc<str>,
    pub(super) setup: Setup,
    pub(super) patience: Duration,
    pub(super) alive: Weak<()>,
    pub(super) dropped: Arc<Dropped>,
}

pub(super) struct Sub {
    pub(super) alive: Weak<()>,
    pub(super) alias: Option<u64>,
    pub(super) assembly: Assembly,
    /// Streams that have more than there is room for.
    pub(super) unread: BTreeSet<StreamId>,
    pub(super) next: Option<Answer<Batch>>,
    /// Streams that came.
    pub(super) streams: u64,
    pub(super) done: Option<(DoneCode, Option<u64>)>,
    pub(super) over: bool,
}

pub(super) struct Pub {
    pub(super) alive: Weak<()>,
    pub(super) alias: u64,
    /// The peer wants objects.
    pub(super) forward: bool,
    pub(super) streams: u64,
    pub(super) open: BTreeSet<StreamId>,
    pub(super) done: Option<Answer<()>>,
}

pub(super) enum What {
    Subscribing(Answer<Accepted>, Box<Sub>),
    Sub(Box<Sub>),
    Publishing(Answer<Accepted>, Pub),
    Pub(Pub),
    /// The peer's, refused once its first message has come.
    Theirs,
    Over,
}

pub(super) struct Request {
    pub(super) what: What,
    pub(super) words: MessageDecoder,
}

pub(super) enum Incoming {
    New(super::codec_stream::StreamDecoder),
    /// Its track is not known yet.
    Parked(SubgroupHeader, Bytes),
    Objects(u64),
    Padding,
}

pub(super) struct Writing {
    pub(super) publisher: u64,
    pub(super) alive: Weak<()>,
    pub(super) rest: Bytes,
    pub(super) reply: Option<Answer<()>>,
}

pub(super) struct Waiting {
    pub(super) publisher: u64,
    pub(super) header: SubgroupHeader,
    pub(super) alive: Weak<()>,
    pub(super) reply: Answer<Option<StreamId>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Setup,
    Open,
    /// Nobody holds it any more.
    Leaving,
    Closed,
}

/// See the top of the file.
pub(super) struct ClientSession {
    pub(super) options: Options,
    pub(super) driver: Driver,
    pub(super) draft: Draft,
    pub(super) stage: Stage,
    pub(super) by: Option<Instant>,
    pub(super) control: Option<StreamId>,
    pub(super) theirs: Option<(StreamId, MessageDecoder)>,
    pub(super) ready: Vec<Answer<(Door, Draft)>>,
    pub(super) numbers: Numbers,
    pub(super) next_alias: u64,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) aliases: Aliases,
    pub(super) incoming: BTreeMap<StreamId, Incoming>,
    pub(super) parked: Vec<StreamId>,
    pub(super) writing: BTreeMap<StreamId, Writing>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) late: BTreeMap<u64, Instant>,
    pub(super) ended: Arc<str>,
}

impl ClientSession {
    /// For a connection that was just made, on its arbiter.
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            driver: Driver::default(),
            draft: Draft::D18,
            stage: Stage::Setup,
            by: None,
            control: None,
            theirs: None,
            ready: Vec::new(),
            numbers: Numbers::new(Side::Client),
            next_alias: 1,
            requests: BTreeMap::new(),
            aliases: Aliases::default(),
            incoming: BTreeMap::new(),
            parked: Vec::new(),
            writing: BTreeMap::new(),
            waiting: VecDeque::new(),
            late: BTreeMap::new(),
            ended: Arc::from(""),
        }
    }

    pub(super) fn raise(&self, family: &'static str, reason: &'static str) {
        self.driver.raise(family, &self.options.name, reason);
    }

    fn begin(&mut self, session: &mut dyn Session) -> Result<(), Close> {
        const LOCAL: Close = Close { code: SessionCode::InternalError, reason: "setup" };
        self.draft = Draft::from_alpn(session.alpn())
            .ok_or(Close { code: SessionCode::VersionNegotiationFailed, reason: "no_common_draft" })?;
        self.by = Some(later(session.now(), self.options.patience));
        let setup = Message::Setup(Box::new(self.options.setup.clone()));
        let stream = session.open(StreamKind::Unidirectional, CONTROL).map_err(|_| LOCAL)?;
        self.control = Some(stream);
        let bytes = encode(&setup, self.draft).map_err(|_| LOCAL)?;
        session.write(stream, bytes).map_err(|_| LOCAL)
    }

    /// Ends the session for something that its peer, or this end, did wrong.
    pub(super) fn fail(&mut self, close: Close, session: &mut dyn Session) {
        if self.stage != Stage::Closed {
            self.raise("moq_client_sessions_failed", close.reason);
            session.close(close.code.number(self.draft), close.reason);
            self.over(close.reason.into());
        }
    }

    /// Answers whoever waits.
    pub(super) fn over(&mut self, why: Arc<str>) {
        self.stage = Stage::Closed;
        self.by = None;
        self.ended = why.clone();
        let gone = || ClientError::Ended(why.clone());
        self.ready.drain(..).for_each(|reply| drop(reply.send(Err(gone()))));
        for (_, request) in std::mem::take(&mut self.requests) {
            match request.what {
                What::Subscribing(reply, _) | What::Publishing(reply, _) => drop(reply.send(Err(gone()))),
                What::Sub(mut sub) => {
                    if let Some(reply) = sub.next.take() {
                        drop(reply.send(Err(gone())));
                    }
                }
                What::Pub(publisher) => {
                    if let Some(reply) = publisher.done {
                        drop(reply.send(Err(gone())));
                    }
                }
                What::Theirs | What::Over => {}
            }
        }
        for (_, writing) in std::mem::take(&mut self.writing) {
            if let Some(reply) = writing.reply {
                drop(reply.send(Err(gone())));
            }
        }
        self.waiting.drain(..).for_each(|waiting| drop(waiting.reply.send(Err(gone()))));
        self.incoming.clear();
        self.late.clear();
    }

    fn is_ready(&mut self, session: &dyn Session) {
        self.stage = Stage::Open;
        self.by = None;
        self.raise("moq_client_sessions", self.draft.alpn());
        let Some(door) = session.door() else { return };
        for reply in self.ready.drain(..) {
            drop(reply.send(Ok((door.clone(), self.draft))));
        }
    }

    fn readable(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        if stream.kind() == StreamKind::Bidirectional {
            return self.read_request(stream.0, session);
        }
        if self.theirs.as_ref().is_some_and(|(control, _)| *control == stream) {
            return self.read_control(session);
        }
        self.read_stream(stream, session)
    }

    pub(super) fn read_control(&mut self, session: &mut dyn Session) -> Result<(), Close> {
        while let Some((stream, decoder)) = &mut self.theirs {
            match session.read(*stream, READ) {
                Ok(Read::Data(mut bytes)) => {
                    let mut messages = Vec::new();
                    while let Some(message) =
                        decoder.decode(&mut bytes).map_err(|refused| of_session(refused.mistake))?
                    {
                        messages.push(message);
                    }
                    for message in messages {
                        self.hear_control(&message, session)?;
                    }
                }
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) | Err(StreamError::Reset(_)) => return Err(Close::violation("control_stream_closed")),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    pub(super) fn hear_control(&mut self, message: &Message, session: &dyn Session) -> Result<(), Close> {
        if matches!(message, Message::Setup(_)) && self.stage == Stage::Setup {
            self.is_ready(session);
        } else if matches!(message, Message::Goaway(_)) && self.stage != Stage::Setup {
            // Whoever holds it learns of the end when it comes; there is nowhere else to go to by itself.
            self.raise("moq_client_goaways", "");
        } else {
            return Err(Close::violation("unexpected_message"));
        }
        Ok(())
    }

    fn sweep(&mut self, session: &mut dyn Session) {
        let gone = |alive: &Weak<()>| alive.strong_count() == 0;
        let streams: Vec<StreamId> =
            self.writing.iter().filter(|(_, writing)| gone(&writing.alive)).map(|(stream, _)| *stream).collect();
        streams.into_iter().for_each(|stream| self.reset_writing(stream, session));
        let numbers: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| match &request.what {
                What::Subscribing(_, sub) | What::Sub(sub) => gone(&sub.alive),
                What::Publishing(_, publisher) | What::Pub(publisher) => gone(&publisher.alive),
                What::Theirs | What::Over => false,
            })
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.late.remove(&number);
            if let Some(What::Sub(sub)) = self.requests.remove(&number).map(|request| request.what) {
                for stream in sub.assembly.open() {
                    self.drop_stream(StreamId(stream), ResetCode::Cancelled, session);
                }
                if let Some(alias) = sub.alias {
                    self.aliases.end(alias);
                }
            }
            self.give_up(StreamId(number), session);
        }
        if gone(&self.options.alive) && self.stage != Stage::Leaving {
            self.stage = Stage::Leaving;
            self.by = Some(later(session.now(), LEAVING));
        }
    }

    fn act(&mut self, event: Event, session: &mut dyn Session) -> Result<(), Close> {
        match event {
            Event::Connected => self.begin(session)?,
            Event::Opened(stream) if stream.kind() == StreamKind::Unidirectional => {
                let decoder = super::codec_stream::StreamDecoder::new(self.draft);
                self.incoming.insert(stream, Incoming::New(decoder));
            }
            Event::Opened(stream) => {
                let theirs = self.requests.values().filter(|request| matches!(request.what, What::Theirs)).count();
                if theirs >= THEIRS {
                    self.give_up(stream, session);
                } else {
                    let request = Request { what: What::Theirs, words: MessageDecoder::new(self.draft) };
                    self.requests.insert(stream.0, request);
                }
            }
            Event::Readable(stream) => self.readable(stream, session)?,
            Event::Writable(stream) => self.write_on(stream, session),
            Event::Stopped(stream, code) if stream.kind() == StreamKind::Unidirectional => {
                if Some(stream) == self.control {
                    return Err(Close::violation("control_stream_closed"));
                }
                self.stopped(stream, ClientError::GivenUp(code), session);
            }
            Event::Openable(StreamKind::Unidirectional) => self.begin_waiting(session),
            Event::Datagrams => self.datagrams(session)?,
            Event::Reset(stream, code) if stream.kind() == StreamKind::Bidirectional => {
                self.request_ended(stream.0, Some(code), session)?;
            }
            Event::Reset(stream, _) => self.stream_ended(stream, true, session)?,
            Event::Closed(end) => self.closed(&end),
            Event::Stopped(..)
            | Event::Openable(_)
            | Event::Expired(_)
            | Event::Finished(_)
            | Event::PathChanged { .. }
            | Event::Missed(_) => {}
        }
        Ok(())
    }

    fn closed(&mut self, end: &End) {
        if self.stage != Stage::Closed {
            let text = match end.code {
                Code::Application(code) => {
                    format!("{} {}", SessionCode::from_number(code, self.draft), end.text).trim_end().to_owned()
                }
                Code::Transport(_) | Code::None => end.to_string(),
            };
            self.over(text.into());
        }
    }
}

pub(super) fn of_stream(error: StreamError) -> ClientError {
    match error {
        StreamError::Reset(code) | StreamError::Stopped(code) => ClientError::GivenUp(code),
        StreamError::Full(_) | StreamError::Busy => ClientError::Busy,
        StreamError::Closed => ClientError::Ended("the connection has ended".into()),
        StreamError::Unknown | StreamError::Finished | StreamError::Expired => ClientError::Over,
    }
}

impl Application for ClientSession {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if self.stage == Stage::Closed {
            return;
        }
        if let Err(close) = self.act(event, session) {
            self.fail(close, session);
        }
    }

    fn message(&mut self, m: Box<dyn Any + Send>, session: &mut dyn Session) {
        let Ok(what) = m.downcast::<ToClient>() else { return };
        if self.stage == Stage::Closed {
            return refuse(*what, &ClientError::Ended(self.ended.clone()));
        }
        self.told(*what, session);
    }

    fn poll(&mut self, _: &mut Context<'_>, session: &mut dyn Session) -> bool {
        if self.stage == Stage::Closed {
            return false;
        }
        if self.options.dropped.0.swap(false, Ordering::AcqRel) {
            self.sweep(session);
        }
        if self.stage == Stage::Leaving && session.queued() == 0 && !session.is_delivering() {
            session.close(SessionCode::NoError.number(self.draft), "");
            self.over("closed".into());
        }
        false
    }

    fn deadline(&self) -> Option<Instant> {
        self.by.into_iter().chain(self.late.values().min().copied()).min()
    }

    fn on_deadline(&mut self, session: &mut dyn Session) {
        let now = session.now();
        if self.by.is_some_and(|at| at <= now) {
            if self.stage == Stage::Setup {
                return self.fail(Close { code: SessionCode::ControlMessageTimeout, reason: "setup_timeout" }, session);
            }
            session.close(SessionCode::NoError.number(self.draft), "");
            return self.over("closed".into());
        }
        let due: Vec<u64> = self.late.iter().filter(|(_, at)| **at <= now).map(|(number, _)| *number).collect();
        due.into_iter().for_each(|number| self.end_sub(number, session));
    }
}

fn refuse(what: ToClient, error: &ClientError) {
    match what {
        ToClient::Ready(reply) => drop(reply.send(Err(error.clone()))),
        ToClient::Subscribe { reply, .. } | ToClient::Publish { reply, .. } => drop(reply.send(Err(error.clone()))),
        ToClient::Next { reply, .. } => drop(reply.send(Err(error.clone()))),
        ToClient::Begin { reply, .. } => drop(reply.send(Err(error.clone()))),
        ToClient::Write { reply, .. }
        | ToClient::Finish { reply, .. }
        | ToClient::Datagram { reply, .. }
        | ToClient::Done { reply, .. } => drop(reply.send(Err(error.clone()))),
        ToClient::Look => {}
    }
}
