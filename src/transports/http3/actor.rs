//! The application of a connection of HTTP/3: reads streams, carries out what `state` and `state_request` decide, polls
//! the answers of its service, and writes them.
//!
//! A part of the actor of its QUIC connection. In a turn: events first, then the answers that were woken, then what they
//! have done: bytes written as far as the streams have room, bodies read as far as they are wanted.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, Stream as _};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use super::answer::{Limits, Service, exchange};
use super::codec::{Code, Settings, frame, put_frame, put_varint, stream as kind, take_varint};
use super::codec_fields::{self as fields, ConnectProtocol, content_length};
use super::codec_priority::Wanted;
use super::codec_qpack::{self as qpack, Unread};
use super::state::{Connection, Inside, News};
use super::state_request::{Piece, Receiving, Wrong};
use super::stream::{Incoming, Last, Stream, Touched};
use crate::actors::clock::later;
use crate::transports::quic::{Application, Event, Priority, Read, Session, StreamError, StreamId, StreamKind};
use crate::transports::webtransport::Running;

/// Bytes read at once.
const READ: usize = 64 << 10;
/// Rounds between answers and streams in one turn, at most.
const ROUNDS: usize = 8;
/// A connection without requests that is to end does so this long after its last answer was acknowledged, so that its
/// client has read what came.
const LINGER: Duration = Duration::from_millis(250);
/// Critical streams come before everything else.
const CRITICAL: Priority = Priority { urgency: 0, incremental: false };

/// A request that is not over.
pub(super) struct Open {
    pub(super) stream: Rc<Stream>,
    receiving: Receiving,
    /// Read and not yet looked at.
    pub(super) rest: Bytes,
    pub(super) stage: Stage,
    /// All of the request was read, or nobody wants the rest.
    pub(super) read: bool,
    /// Its answer is complete, or will not be.
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Head,
    Answering,
    /// It carries a session of WebTransport.
    Session,
    /// It is answered, and only its end is awaited.
    Over,
}

type Answer = Pin<Box<dyn Future<Output = u64>>>;

/// See the top of the file.
pub struct Http3<S: Service> {
    pub(super) service: Rc<S>,
    pub(super) limits: Limits,
    pub(super) state: Connection,
    pub(super) requests: BTreeMap<u64, Open>,
    /// The session of WebTransport, and what holds its place.
    pub(super) wt: Option<(Running, Box<dyn Any>)>,
    /// Streams that came before their session.
    pub(super) early: Vec<(u64, StreamId, Bytes)>,
    answers: FuturesUnordered<Answer>,
    touched: Rc<Touched>,
    control: Option<StreamId>,
    ours: Vec<StreamId>,
    /// Heads that are awaited, and ends, with the time by which they are.
    late: VecDeque<(Instant, u64)>,
    news: Vec<News>,
    deadline: Option<Instant>,
    draining: bool,
    close_at: Option<Instant>,
    closed: bool,
}

impl<S: Service> std::fmt::Debug for Http3<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http3").field("requests", &self.requests.len()).finish_non_exhaustive()
    }
}

impl<S: Service> Http3<S> {
    /// A server's side of a connection that is established.
    #[must_use]
    pub fn new(service: S, limits: Limits) -> Self {
        Self {
            service: Rc::new(service),
            limits,
            state: Connection::new(limits.sessions),
            requests: BTreeMap::new(),
            wt: None,
            early: Vec::new(),
            answers: FuturesUnordered::new(),
            touched: Rc::default(),
            control: None,
            ours: Vec::new(),
            late: VecDeque::new(),
            news: Vec::new(),
            deadline: None,
            draining: false,
            close_at: None,
            closed: false,
        }
    }

    /// Opens our critical streams. A client that does not even allow these is of no use.
    fn begin(&mut self, session: &mut dyn Session) -> Result<(), Code> {
        let sessions = self.limits.sessions;
        let settings = Settings {
            field_section: Some(self.limits.head_bytes as u64),
            // For WebSockets, if for nothing else (RFC 9220, section 3).
            connect: true,
            datagrams: sessions,
            sessions: u64::from(sessions),
            ..Settings::default()
        };
        for (number, which) in [kind::CONTROL, kind::ENCODER, kind::DECODER].into_iter().enumerate() {
            let stream = session.open(StreamKind::Unidirectional, CRITICAL).map_err(|_| Code::GeneralProtocolError)?;
            let mut bytes = BytesMut::new();
            put_varint(&mut bytes, which);
            if number == 0 {
                settings.encode(&mut bytes);
                self.control = Some(stream);
            }
            self.ours.push(stream);
            session.write(stream, bytes.freeze()).map_err(|_| Code::InternalError)?;
        }
        Ok(())
    }

    /// The client has broken a rule.
    pub(super) fn fail(&mut self, code: Code, session: &mut dyn Session) {
        if !std::mem::replace(&mut self.closed, true) {
            self.service.failed(code);
            session.close(code.number(), code.reason());
        }
    }

    /// What came on a stream in one direction.
    fn one_way(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Code> {
        loop {
            match session.read(stream, READ) {
                Ok(Read::Data(mut bytes)) => {
                    let mut news = std::mem::take(&mut self.news);
                    let inside = self.state.came(stream.0, &mut bytes, &mut news);
                    for news in news.drain(..) {
                        self.learn(news, session);
                    }
                    self.news = news;
                    match inside? {
                        Inside::Unknown | Inside::Critical => {}
                        Inside::Session(of) => return self.adopt(of, stream, bytes, session),
                        Inside::Nothing => {
                            let _over = session.stop(stream, Code::StreamCreationError.number());
                            return Ok(());
                        }
                    }
                }
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) | Err(StreamError::Reset(_)) => return self.state.ended(stream.0),
                Err(_) => return Ok(()),
            }
        }
    }

    fn learn(&self, news: News, session: &mut dyn Session) {
        match news {
            News::Settings(_) => {}
            News::Priority(stream, wanted) => session.prioritise(StreamId(stream), priority(wanted)),
        }
    }

    /// Reads of a request what is wanted of it.
    fn pump(&mut self, id: u64, session: &mut dyn Session) -> Result<(), Code> {
        let stream = StreamId(id);
        loop {
            let Some(open) = self.requests.get_mut(&id) else { return Ok(()) };
            if open.stage == Stage::Over {
                self.over(id, session);
                return Ok(());
            }
            if open.read || (open.stage == Stage::Answering && !open.stream.takes()) {
                return Ok(());
            }
            match open.receiving.feed(&mut open.rest) {
                Ok(Some(piece)) => self.piece(id, piece, session)?,
                Err(wrong) => self.wrong(id, wrong, session)?,
                Ok(None) => match session.read(stream, READ) {
                    Ok(Read::Data(bytes)) => open.rest = bytes,
                    Ok(Read::Nothing) => return Ok(()),
                    Ok(Read::End) => match open.receiving.end() {
                        Ok(()) => {
                            open.read = true;
                            open.stream.whole();
                            self.connect_ended(id, session);
                        }
                        Err(wrong) => self.wrong(id, wrong, session)?,
                    },
                    Err(_) => {
                        open.read = true;
                        self.given_up(id, session)?;
                    }
                },
            }
        }
    }

    fn piece(&mut self, id: u64, piece: Piece, session: &mut dyn Session) -> Result<(), Code> {
        match piece {
            Piece::Head(section) => match qpack::decode(&section, self.limits.head_bytes, self.limits.head_fields) {
                Ok(list) => self.head(id, list, session),
                Err(Unread::Malformed) => Err(Code::QpackDecompressionFailed),
                Err(Unread::TooLarge) => self.wrong(id, Wrong::Section, session),
            },
            Piece::Trailers(section) => {
                match qpack::decode(&section, self.limits.head_bytes, self.limits.head_fields) {
                    Ok(list) => match fields::trailers(list) {
                        Ok(map) => {
                            if let Some(open) = self.requests.get(&id) {
                                open.stream.trailers(map);
                            }
                            Ok(())
                        }
                        Err(malformed) => self.malformed(id, malformed.0, session),
                    },
                    Err(Unread::Malformed) => Err(Code::QpackDecompressionFailed),
                    Err(Unread::TooLarge) => self.wrong(id, Wrong::Stream(Code::ExcessiveLoad), session),
                }
            }
            Piece::Data(data) => match self.requests.get(&id) {
                Some(open) if open.stage == Stage::Session => self.capsules(id, data, session),
                Some(open) => {
                    open.stream.came(data);
                    Ok(())
                }
                None => Ok(()),
            },
            Piece::Session(of) => {
                let rest = self.requests.remove(&id).map(|open| open.rest).unwrap_or_default();
                self.adopt(of, StreamId(id), rest, session)
            }
        }
    }

    fn head(&mut self, id: u64, list: Vec<qpack::Field>, session: &mut dyn Session) -> Result<(), Code> {
        let mut request = match fields::request(list) {
            Ok(request) => request,
            Err(malformed) => return self.malformed(id, malformed.0, session),
        };
        let map = request.headers();
        let field = map.get("priority").map(HeaderValue::as_bytes);
        let Some(wanted) = self.state.request(id, field) else {
            self.service.refused("going_away");
            self.refuse(id, Code::RequestRejected, session);
            return Ok(());
        };
        if wanted != Wanted::default() {
            session.prioritise(StreamId(id), priority(wanted));
        }
        match request.extensions().get::<ConnectProtocol>() {
            // A request like any other, whose body and answer are the two ways of it.
            Some(ConnectProtocol(token)) if &**token == b"websocket" => {
                request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            }
            Some(_) => return self.connect(id, &request, session),
            None => {}
        }
        let map = request.headers();
        let Some(open) = self.requests.get_mut(&id) else { return Ok(()) };
        open.stage = Stage::Answering;
        let length = map.get(header::CONTENT_LENGTH).and_then(content_length);
        if let Some(length) = length {
            open.receiving.expect(length);
        }
        let expects = map.get(header::EXPECT).is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        open.stream.begins(length, expects);
        // What came with the head says at once whether there is a body at all.
        let stream = open.stream.clone();
        self.pump(id, session)?;
        let (service, body) = (self.service.clone(), Incoming { stream: stream.clone() });
        self.answers.push(Box::pin(exchange(service, request.map(|()| body), stream, id)));
        Ok(())
    }

    /// The request breaks a rule of messages: its stream ends (RFC 9114, section 4.1.2).
    fn malformed(&mut self, id: u64, reason: &'static str, session: &mut dyn Session) -> Result<(), Code> {
        self.service.refused(reason);
        self.refuse(id, Code::MessageError, session);
        Ok(())
    }

    fn wrong(&mut self, id: u64, wrong: Wrong, session: &mut dyn Session) -> Result<(), Code> {
        match wrong {
            Wrong::Connection(code) => return Err(code),
            Wrong::Stream(code) => {
                self.service.refused(code.reason());
                self.refuse(id, code, session);
            }
            Wrong::Section => {
                self.service.refused("head_too_large");
                let Some(open) = self.requests.get_mut(&id) else { return Ok(()) };
                if open.stage == Stage::Answering {
                    self.refuse(id, Code::ExcessiveLoad, session);
                    return Ok(());
                }
                open.read = true;
                open.stage = Stage::Answering;
                open.stream.put_head(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &HeaderMap::new());
                open.stream.ends(Last::Finish);
                let _over = session.stop(StreamId(id), Code::NoError.number());
            }
        }
        Ok(())
    }

    /// Ends a stream in both directions.
    pub(super) fn refuse(&mut self, id: u64, code: Code, session: &mut dyn Session) {
        let stream = StreamId(id);
        let (_over, _too) = (session.reset(stream, code.number()), session.stop(stream, code.number()));
        if let Some(open) = self.requests.get_mut(&id) {
            open.read = true;
            open.answered = true;
            open.stream.give_up();
            if open.stage != Stage::Answering {
                self.requests.remove(&id);
            }
        }
        self.connect_lost(id, session);
    }

    /// The client wants no answer any more.
    fn given_up(&mut self, id: u64, session: &mut dyn Session) -> Result<(), Code> {
        let Some(open) = self.requests.get(&id) else { return Ok(()) };
        if !open.answered && open.stage != Stage::Session {
            self.service.refused("given_up");
            self.state.given_up()?;
        }
        self.refuse(id, Code::RequestCancelled, session);
        Ok(())
    }

    /// Sends of an answer what its stream has room for.
    fn send(&mut self, id: u64, session: &mut dyn Session) -> Result<(), Code> {
        let Some(open) = self.requests.get_mut(&id) else { return Ok(()) };
        let stream = StreamId(id);
        let mut wrote = false;
        while open.stream.has_more() {
            let room = session.room(stream);
            if room == 0 {
                session.want_room(stream);
                break;
            }
            let Some(piece) = open.stream.next(room) else { break };
            wrote = true;
            if session.write(stream, piece).is_err() {
                // Stopped: the event comes.
                return Ok(());
            }
        }
        if wrote {
            self.service.wrote(false);
        }
        if open.stream.has_more() {
            self.service.wrote(true);
        }
        match open.stream.last() {
            Some(Last::Finish) if !open.answered => {
                let _stopped = session.finish(stream);
                open.answered = true;
                self.state.answered();
            }
            Some(Last::Reset(code)) if !open.answered => {
                let _stopped = session.reset(stream, code.number());
                open.answered = true;
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Forgets a request that is answered. One that has not ended may be about to, which costs nobody anything.
    fn forget(&mut self, id: u64, session: &mut dyn Session) {
        let Some(open) = self.requests.get_mut(&id).filter(|open| open.answered) else { return };
        if open.read {
            self.requests.remove(&id);
        } else if open.stage != Stage::Over {
            open.stage = Stage::Over;
            open.rest = Bytes::new();
            self.late.push_back((later(session.now(), self.limits.head_timeout), id));
            self.over(id, session);
        }
    }

    /// Something came on a stream whose request is answered.
    fn over(&mut self, id: u64, session: &mut dyn Session) {
        match session.read(StreamId(id), READ) {
            Ok(Read::Nothing) => return,
            // RFC 9114, section 4.1: the rest of the request is not needed.
            Ok(Read::Data(_)) => drop(session.stop(StreamId(id), Code::NoError.number())),
            Ok(Read::End) | Err(_) => {}
        }
        self.requests.remove(&id);
    }

    /// Looks after the streams that answers have done something with.
    fn serve(&mut self, session: &mut dyn Session) -> Result<(), Code> {
        let touched = self.touched.take();
        for id in touched {
            let Some(open) = self.requests.get(&id) else { continue };
            open.stream.unlist();
            self.send(id, session)?;
            self.pump(id, session)?;
            self.forget(id, session);
        }
        Ok(())
    }

    fn ends_late(&mut self, now: Instant, session: &mut dyn Session) {
        while let Some((at, id)) = self.late.front().copied() {
            let stage = self
                .requests
                .get(&id)
                .map(|open| open.stage)
                .filter(|stage| matches!(stage, Stage::Head | Stage::Over));
            if stage.is_some() && at > now {
                return;
            }
            self.late.pop_front();
            match stage {
                Some(Stage::Head) => {
                    self.service.refused("head_timeout");
                    self.refuse(id, Code::RequestIncomplete, session);
                }
                Some(Stage::Over) => {
                    let _over = session.stop(StreamId(id), Code::NoError.number());
                    self.requests.remove(&id);
                }
                Some(Stage::Answering | Stage::Session) | None => {}
            }
        }
    }

    fn go_away(&mut self, session: &mut dyn Session) {
        let (Some(first), Some(control)) = (self.state.go_away(), self.control) else { return };
        let mut body = BytesMut::new();
        put_varint(&mut body, first);
        let mut out = BytesMut::new();
        put_frame(&mut out, frame::GOAWAY, body.len());
        out.extend_from_slice(&body);
        // Without room on the control stream the client learns it by the close.
        let _full = session.write(control, out.freeze());
    }

    fn act(&mut self, event: Event, session: &mut dyn Session) -> Result<(), Code> {
        let Some(event) = self.of_session(event, session)? else { return Ok(()) };
        match event {
            Event::Connected => self.begin(session)?,
            Event::Opened(stream) if stream.kind() == StreamKind::Unidirectional => self.state.opened(stream.0),
            Event::Opened(stream) => {
                let open = Open {
                    stream: Stream::new(stream.0, self.touched.clone()),
                    receiving: Receiving::new(self.limits.head_bytes),
                    rest: Bytes::new(),
                    stage: Stage::Head,
                    read: false,
                    answered: false,
                };
                self.requests.insert(stream.0, open);
                self.late.push_back((later(session.now(), self.limits.head_timeout), stream.0));
            }
            Event::Readable(stream) if stream.kind() == StreamKind::Unidirectional => self.one_way(stream, session)?,
            Event::Readable(stream) => self.pump(stream.0, session)?,
            Event::Writable(stream) => {
                self.send(stream.0, session)?;
                self.forget(stream.0, session);
            }
            Event::Stopped(stream, _) if self.ours.contains(&stream) => return Err(Code::ClosedCriticalStream),
            Event::Stopped(stream, _) => self.given_up(stream.0, session)?,
            Event::Datagrams => {
                while let Some(datagram) = session.read_datagram() {
                    // RFC 9297, section 2.1: the number of a request. None here takes any.
                    let mut bytes = &datagram[..];
                    take_varint(&mut bytes).ok_or(Code::DatagramError)?;
                    self.service.refused("datagram_of_nobody");
                }
            }
            Event::Closed(_) => {
                self.closed = true;
                self.requests.values().for_each(|open| open.stream.give_up());
                self.requests.clear();
                // Their servers learn it with them.
                self.answers.clear();
                self.wt = None;
            }
            Event::Finished(_)
            | Event::Reset(..)
            | Event::Expired(_)
            | Event::Openable(_)
            | Event::PathChanged { .. }
            | Event::Missed(_) => {}
        }
        Ok(())
    }

    /// Polls the answers that were woken and looks after their streams, in turns. True if there is more to do.
    fn answer(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        for _ in 0..ROUNDS {
            while let Poll::Ready(Some(id)) = Pin::new(&mut self.answers).poll_next(cx) {
                self.forget(id, session);
            }
            if self.touched.is_empty() {
                return false;
            }
            if let Err(code) = self.serve(session) {
                self.fail(code, session);
                return false;
            }
        }
        true
    }

    /// Ends the connection if it is to end and nothing is left to do.
    fn may_close(&mut self, session: &mut dyn Session) {
        if !self.state.is_going() || !self.requests.is_empty() || session.is_delivering() {
            self.close_at = None;
            return;
        }
        let at = *self.close_at.get_or_insert_with(|| later(session.now(), LINGER));
        if at <= session.now() {
            self.closed = true;
            session.close(Code::NoError.number(), "");
        }
    }
}

impl<S: Service> Application for Http3<S> {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if self.closed && !matches!(event, Event::Closed(_)) {
            return;
        }
        self.service.turn(session.now());
        if let Err(code) = self.act(event, session) {
            self.fail(code, session);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        if self.closed {
            return false;
        }
        self.service.turn(session.now());
        self.touched.enter(cx);
        let more = self.poll_session(cx, session) | self.answer(cx, session);
        self.touched.leave();
        if self.closed {
            return false;
        }
        if self.service.is_closing() || self.draining {
            self.go_away(session);
        }
        self.ends_late(session.now(), session);
        self.may_close(session);
        if let Some(late) = self.service.late().filter(|_| !self.closed) {
            self.closed = true;
            let code = if late == "idle" { Code::NoError } else { Code::ExcessiveLoad };
            session.close(code.number(), late);
        }
        let inside = self.wt.as_ref().and_then(|(running, _)| running.application.as_ref()?.deadline());
        let next = [self.service.tick(), self.late.front().map(|(at, _)| *at), self.close_at, inside];
        self.deadline = next.into_iter().flatten().min();
        more
    }

    fn drain(&mut self, by: Instant, session: &mut dyn Session) {
        self.draining = true;
        self.service.turn(session.now());
        self.service.drain(by);
        self.drain_session(by, session);
    }

    fn message(&mut self, m: Box<dyn Any + Send>, session: &mut dyn Session) {
        if let Some((running, _)) = &mut self.wt {
            running.with(session, |application, session| application.message(m, session));
        }
    }

    fn on_deadline(&mut self, session: &mut dyn Session) {
        let now = session.now();
        if let Some((running, _)) = &mut self.wt {
            running.with(session, |application, session| {
                if application.deadline().is_some_and(|at| at <= now) {
                    application.on_deadline(session);
                }
            });
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// QUIC's urgencies are finer than those of HTTP; the critical streams come before them.
const fn priority(wanted: Wanted) -> Priority {
    Priority { urgency: 100 + 9 * wanted.urgency, incremental: wanted.incremental }
}
