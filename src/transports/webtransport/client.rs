//! The client's end: a connection of HTTP/3 that carries one session of WebTransport and nothing else.
//!
//! An [`Application`] around that of the session. Once the server's settings say that it has sessions, it is asked for one
//! by an extended CONNECT; from its answer on the application inside sees the session as it would a connection, and what
//! it is told from elsewhere reaches it. All three end together: the application, the session and the connection.
//!
//! # What is bounded
//! The time until the session is there ([`Dial::patience`]); the head of the answer, 16 KiB; streams that come before it
//! or do not say yet whose they are, sixteen, beyond which they are given up; and messages that come before, sixteen,
//! beyond which they are dropped: who waits for an answer to one finds that there will be none. After its end a session has a second to
//! deliver its last word.
//!
//! # When there is no session
//! The application is told once that it has ended, with the reason in words, and `webtransport_client_failed` counts:
//! `timeout`, `no_webtransport` (the server's settings), `status` (it refuses), `protocol` (it chose none of those that
//! were offered), or the code of HTTP/3 for a rule that the server broke.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::actor::Running;
use super::codec::{Capsule, protocol, protocols};
use super::state::{Ending, Said};
use crate::actors::Driver;
use crate::actors::clock::later;
use crate::transports::http3::codec::{Code, Settings, frame, put_frame, put_varint, stream as kind};
use crate::transports::http3::codec_fields::put_request;
use crate::transports::http3::codec_qpack;
use crate::transports::http3::state::{Connection, Inside, News};
use crate::transports::http3::state_request::{Piece, Receiving, Wrong};
use crate::transports::quic::{
    Application, Code as Why, End, Event, Priority, Read, Session, StreamError, StreamId, StreamKind, Who,
};

/// Bytes read at once.
const READ: usize = 64 << 10;
/// The longest head of an answer, and the fields it may have.
const HEAD: (usize, usize) = (16 << 10, 100);
/// Streams and messages that may come before the session is there.
const EARLY: usize = 16;
/// How long the last word of a session may take.
const LAST: Duration = Duration::from_secs(1);
/// Critical streams come before everything else.
const CRITICAL: Priority = Priority { urgency: 0, incremental: false };

/// The session that is wanted.
#[derive(Debug, Clone)]
pub struct Dial {
    /// The scope of its counters.
    pub name: Arc<str>,
    /// The server, as a URI names it.
    pub authority: String,
    /// The path there, and its query.
    pub path: String,
    /// Protocols inside it, the most wanted first. The server chooses one; if none is named, none has to be.
    pub protocols: Vec<String>,
    /// How long it may take until the session is there.
    pub patience: Duration,
}

/// Why there is no session: the word that is counted, the code for the server, and the same in words.
struct Refused(&'static str, Code, String);

impl From<Code> for Refused {
    fn from(code: Code) -> Self {
        Self(code.reason(), code, code.reason().to_owned())
    }
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Connection(code) | Wrong::Stream(code) => code.into(),
            Wrong::Section => Code::ExcessiveLoad.into(),
        }
    }
}

/// See the top of the file.
pub struct Client {
    dial: Dial,
    driver: Driver,
    /// Before the session, and behind it.
    application: Option<Box<dyn Application>>,
    messages: Vec<Box<dyn Any + Send>>,
    state: Connection,
    ours: Vec<StreamId>,
    /// The stream of the CONNECT, and what comes on it.
    connect: Option<StreamId>,
    answer: Receiving,
    session: Option<Running>,
    /// The server's streams in both directions that have not said yet whose they are.
    begun: BTreeMap<StreamId, Receiving>,
    early: Vec<(u64, StreamId, Bytes)>,
    /// By then the session is there; or, behind it, has said its last word.
    by: Option<Instant>,
    /// The session is over, and the connection ends with this once all was delivered.
    leaving: Option<String>,
    closed: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("dial", &self.dial).finish_non_exhaustive()
    }
}

impl Client {
    /// For a connection that was just made with the protocol `h3`, on its arbiter.
    #[must_use]
    pub fn new(dial: Dial, application: Box<dyn Application>) -> Self {
        Self {
            dial,
            driver: Driver::default(),
            application: Some(application),
            messages: Vec::new(),
            state: Connection::new(true),
            ours: Vec::new(),
            connect: None,
            answer: Receiving::new(HEAD.0),
            session: None,
            begun: BTreeMap::new(),
            early: Vec::new(),
            by: None,
            leaving: None,
            closed: false,
        }
    }

    fn begin(&mut self, session: &mut dyn Session) -> Result<(), Refused> {
        self.by = Some(later(session.now(), self.dial.patience));
        let settings =
            Settings { field_section: Some(HEAD.0 as u64), datagrams: true, sessions: 1, ..Settings::default() };
        for which in [kind::CONTROL, kind::ENCODER, kind::DECODER] {
            let stream = session.open(StreamKind::Unidirectional, CRITICAL).map_err(|_| Code::GeneralProtocolError)?;
            let mut bytes = BytesMut::new();
            put_varint(&mut bytes, which);
            if which == kind::CONTROL {
                settings.encode(&mut bytes);
            }
            self.ours.push(stream);
            session.write(stream, bytes.freeze()).map_err(|_| Code::InternalError)?;
        }
        Ok(())
    }

    /// Asks for the session.
    fn ask(&mut self, settings: Settings, session: &mut dyn Session) -> Result<(), Refused> {
        if !settings.connect || settings.sessions == 0 {
            return Err(Refused("no_webtransport", Code::NoError, "the server has no WebTransport".to_owned()));
        }
        let stream = session.open(StreamKind::Bidirectional, CRITICAL).map_err(|_| Code::GeneralProtocolError)?;
        let offered: Vec<String> = self.dial.protocols.iter().map(|name| protocol(name)).collect();
        let offered = offered.join(", ");
        let mut fields: Vec<(&str, &[u8])> = vec![
            (":method", b"CONNECT"),
            (":scheme", b"https"),
            (":authority", self.dial.authority.as_bytes()),
            (":path", self.dial.path.as_bytes()),
            (":protocol", b"webtransport"),
        ];
        if !offered.is_empty() {
            fields.push(("wt-available-protocols", offered.as_bytes()));
        }
        let mut out = BytesMut::new();
        put_request(&mut out, &fields);
        session.write(stream, out.freeze()).map_err(|_| Code::InternalError)?;
        self.connect = Some(stream);
        Ok(())
    }

    /// The server's answer.
    fn answered(&mut self, stream: StreamId, section: &Bytes, session: &mut dyn Session) -> Result<(), Refused> {
        let list = codec_qpack::decode(section, HEAD.0, HEAD.1).map_err(|_| Code::QpackDecompressionFailed)?;
        let value = |name: &[u8]| list.iter().find(|field| *field.name == *name).map(|field| field.value.clone());
        let status = value(b":status").unwrap_or_default();
        let text = String::from_utf8_lossy(&status);
        if !(text.len() == 3 && text.starts_with('2')) {
            let why = format!("the server answers with status {}", text.escape_debug());
            return Err(Refused("status", Code::NoError, why));
        }
        let named = value(b"wt-protocol").unwrap_or_default();
        let agreed = protocols(&String::from_utf8_lossy(&named)).into_iter().next();
        let known = agreed.as_ref().is_none_or(|name| self.dial.protocols.contains(name));
        if !known || agreed.is_none() && !self.dial.protocols.is_empty() {
            let why = "the server takes none of the protocols that were offered".to_owned();
            return Err(Refused("protocol", Code::NoError, why));
        }
        let Some(application) = self.application.take() else { return Ok(()) };
        self.by = None;
        let mut running = Running::new(stream.0, Bytes::from(agreed.unwrap_or_default()), application);
        running.tell(Event::Connected, session);
        for m in std::mem::take(&mut self.messages) {
            running.with(session, |application, session| application.message(m, session));
        }
        self.session = Some(running);
        for (of, stream, ahead) in std::mem::take(&mut self.early) {
            self.adopt(of, stream, ahead, session)?;
        }
        self.look_after(session)
    }

    /// A stream belongs to the session whose CONNECT went on stream `of`; `ahead` was read of it.
    fn adopt(&mut self, of: u64, stream: StreamId, ahead: Bytes, session: &mut dyn Session) -> Result<(), Refused> {
        match &mut self.session {
            Some(running) if running.all.id() == of => {
                running.all.came(stream.0, ahead);
                running.all.look_through(|stream| session.is_open(StreamId(stream)));
                running.tell(Event::Opened(stream), session);
                running.tell(Event::Readable(stream), session);
                self.look_after(session)
            }
            None if self.leaving.is_none() && self.early.len() < EARLY => {
                self.early.push((of, stream, ahead));
                Ok(())
            }
            Some(_) | None => {
                let code = Code::WebTransportBufferedStreamRejected.number();
                // One of them fails for a stream in one direction.
                let (_over, _too) = (session.stop(stream, code), session.reset(stream, code));
                Ok(())
            }
        }
    }

    fn one_way(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Refused> {
        let mut news = Vec::new();
        loop {
            match session.read(stream, READ) {
                Ok(Read::Data(mut bytes)) => {
                    let inside = self.state.came(stream.0, &mut bytes, &mut news);
                    for news in news.drain(..) {
                        match news {
                            News::Settings(settings) => self.ask(settings, session)?,
                            // RFC 9218, section 7.2: a client's word alone.
                            News::Priority(..) => return Err(Code::FrameUnexpected.into()),
                        }
                    }
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
                Ok(Read::End) | Err(StreamError::Reset(_)) => return Ok(self.state.ended(stream.0)?),
                Err(_) => return Ok(()),
            }
        }
    }

    /// What came on the stream of the CONNECT.
    fn on_connect(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Refused> {
        loop {
            let mut bytes = match session.read(stream, READ) {
                Ok(Read::Data(bytes)) => bytes,
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) => {
                    self.answer.end()?;
                    let ending = self.session.as_ref().map_or(Ending::Reset, |running| running.all.ended());
                    return self.ended_by_peer(ending, session);
                }
                Err(_) => return self.ended_by_peer(Ending::Reset, session),
            };
            while let Some(piece) = self.answer.feed(&mut bytes)? {
                match piece {
                    Piece::Head(section) => self.answered(stream, &section, session)?,
                    Piece::Data(data) => self.capsules(data, session)?,
                    Piece::Trailers(_) => {}
                    Piece::Session(_) => return Err(Code::FrameError.into()),
                }
            }
        }
    }

    fn capsules(&mut self, mut bytes: Bytes, session: &mut dyn Session) -> Result<(), Refused> {
        while let Some(running) = &mut self.session {
            match running.all.feed(&mut bytes).map_err(|_| Code::DatagramError)? {
                None => return Ok(()),
                // The application has words of its own for it.
                Some(Said::Drain) => {}
                Some(Said::End(ending)) => self.ended_by_peer(ending, session)?,
            }
        }
        Ok(())
    }

    /// The server is done with the session, or never began it.
    fn ended_by_peer(&mut self, ending: Ending, session: &mut dyn Session) -> Result<(), Refused> {
        if self.session.is_none() && self.leaving.is_none() {
            return Err(Refused("status", Code::NoError, "the server gave the request up".to_owned()));
        }
        let (code, text, reason) = match ending {
            Ending::Closed { code, text } => (Why::Application(u64::from(code)), text, "peer_closed"),
            Ending::Reset => (Why::None, String::new(), "reset"),
        };
        self.session_ends(End { who: Who::Peer, code, text: text.into(), reason }, None, session);
        Ok(())
    }

    /// A stream of the server's in both directions: it can but belong to the session.
    fn both_ways(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Refused> {
        loop {
            let Some(receiving) = self.begun.get_mut(&stream) else { return Ok(()) };
            match session.read(stream, READ) {
                Ok(Read::Data(mut bytes)) => match receiving.feed(&mut bytes) {
                    Ok(None) => {}
                    Ok(Some(Piece::Session(of))) => {
                        self.begun.remove(&stream);
                        return self.adopt(of, stream, bytes, session);
                    }
                    // RFC 9114, section 6.1.
                    Ok(Some(_)) | Err(_) => return Err(Code::StreamCreationError.into()),
                },
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) | Err(_) => {
                    self.begun.remove(&stream);
                    return Ok(());
                }
            }
        }
    }

    /// What the application has left to be done.
    fn look_after(&mut self, session: &mut dyn Session) -> Result<(), Refused> {
        let Some(running) = &mut self.session else { return Ok(()) };
        for _ in 0..std::mem::take(&mut running.strays) {
            self.driver.raise("webtransport_client_strays", &self.dial.name, "");
        }
        if running.malformed {
            return Err(Code::DatagramError.into());
        }
        let Some((code, text)) = running.close.take() else { return Ok(()) };
        let mut capsule = BytesMut::new();
        Capsule::Close { code, text: text.clone() }.encode(&mut capsule);
        let end = End { who: Who::Local, code: Why::Application(u64::from(code)), text: text.into(), reason: "closed" };
        self.session_ends(end, Some(capsule.freeze()), session);
        Ok(())
    }

    /// The session is over: its streams are given up, its application is told, and the connection ends behind it.
    fn session_ends(&mut self, end: End, last: Option<Bytes>, session: &mut dyn Session) {
        let Some(mut running) = self.session.take() else { return };
        let stream = StreamId(running.all.id());
        if let Some(last) = last {
            let mut out = BytesMut::new();
            put_frame(&mut out, frame::DATA, last.len());
            out.extend_from_slice(&last);
            // Without room the close of the connection says it.
            let _full = session.write(stream, out.freeze());
        }
        let _over = session.finish(stream);
        for stream in running.all.take() {
            let code = Code::WebTransportSessionGone.number();
            let stream = StreamId(stream);
            let (_over, _too) = (session.stop(stream, code), session.reset(stream, code));
        }
        self.leaving = Some(end.text.to_string());
        self.by = Some(later(session.now(), LAST));
        running.tell(Event::Closed(end), session);
        self.application = running.application;
    }

    /// There will be no session, or it ends with a broken rule.
    fn fail(&mut self, Refused(reason, code, words): Refused, session: &mut dyn Session) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.by = None;
        self.driver.raise("webtransport_client_failed", &self.dial.name, reason);
        session.close(code.number(), &words);
        let end = End { who: Who::Local, code: Why::None, text: words.into(), reason: "refused" };
        self.tell_end(end, session);
    }

    fn tell_end(&mut self, end: End, session: &mut dyn Session) {
        let waiting = std::mem::take(&mut self.messages);
        if let Some(mut running) = self.session.take() {
            running.tell(Event::Closed(end), session);
            self.application = running.application;
        } else if let Some(application) = self.application.as_mut().filter(|_| self.leaving.is_none()) {
            application.on(Event::Closed(end), session);
            waiting.into_iter().for_each(|m| application.message(m, session));
        }
    }

    fn act(&mut self, event: Event, session: &mut dyn Session) -> Result<(), Refused> {
        if let Some(running) = &mut self.session {
            let its = match &event {
                Event::Readable(stream)
                | Event::Writable(stream)
                | Event::Finished(stream)
                | Event::Reset(stream, _)
                | Event::Stopped(stream, _)
                | Event::Expired(stream) => running.all.has(stream.0),
                Event::Datagrams => true,
                Event::Openable(_) | Event::PathChanged { .. } => {
                    running.tell(event.clone(), session);
                    false
                }
                Event::Connected | Event::Opened(_) | Event::Missed(_) | Event::Closed(_) => false,
            };
            if its {
                running.tell(event, session);
                return self.look_after(session);
            }
        }
        match event {
            Event::Connected => self.begin(session),
            Event::Opened(stream) if stream.kind() == StreamKind::Unidirectional => {
                self.state.opened(stream.0);
                Ok(())
            }
            Event::Opened(stream) => {
                if self.begun.len() < EARLY {
                    self.begun.insert(stream, Receiving::new(HEAD.0));
                } else {
                    let code = Code::WebTransportBufferedStreamRejected.number();
                    let (_over, _too) = (session.stop(stream, code), session.reset(stream, code));
                }
                Ok(())
            }
            Event::Readable(stream) if stream.kind() == StreamKind::Unidirectional => self.one_way(stream, session),
            Event::Readable(stream) | Event::Reset(stream, _) if self.connect == Some(stream) => {
                self.on_connect(stream, session)
            }
            Event::Readable(stream) => self.both_ways(stream, session),
            Event::Reset(stream, _) => {
                self.begun.remove(&stream);
                if stream.kind() == StreamKind::Unidirectional { Ok(self.state.ended(stream.0)?) } else { Ok(()) }
            }
            Event::Stopped(stream, _) if self.ours.contains(&stream) => Err(Code::ClosedCriticalStream.into()),
            Event::Closed(end) => {
                self.closed = true;
                self.tell_end(end, session);
                Ok(())
            }
            // Before there is a session they are nobody's (RFC 9297, section 2.1).
            Event::Datagrams => {
                while session.read_datagram().is_some() {
                    self.driver.raise("webtransport_client_strays", &self.dial.name, "");
                }
                Ok(())
            }
            Event::Stopped(..)
            | Event::Writable(_)
            | Event::Finished(_)
            | Event::Expired(_)
            | Event::Openable(_)
            | Event::PathChanged { .. }
            | Event::Missed(_) => Ok(()),
        }
    }
}

impl Application for Client {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if self.closed {
            return;
        }
        if let Err(refused) = self.act(event, session) {
            self.fail(refused, session);
        }
    }

    fn message(&mut self, m: Box<dyn Any + Send>, session: &mut dyn Session) {
        if let Some(running) = &mut self.session {
            running.with(session, |application, session| application.message(m, session));
        } else if self.closed || self.leaving.is_some() {
            // It knows that it has ended, and can say so.
            if let Some(application) = &mut self.application {
                application.message(m, session);
            }
        } else if self.messages.len() < EARLY {
            self.messages.push(m);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        if self.closed {
            return false;
        }
        let running = self.session.as_mut();
        let more = running.and_then(|running| running.with(session, |inside, session| inside.poll(cx, session)));
        if let Err(refused) = self.look_after(session) {
            self.fail(refused, session);
        }
        if let Some(text) = self.leaving.take_if(|_| session.queued() == 0 && !session.is_delivering()) {
            self.closed = true;
            session.close(Code::NoError.number(), &text);
        }
        more.unwrap_or(false)
    }

    fn drain(&mut self, by: Instant, session: &mut dyn Session) {
        match &mut self.session {
            Some(running) => {
                running.with(session, |application, session| application.drain(by, session));
            }
            None => self.by = Some(self.by.map_or(by, |before| before.min(by))),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let inside = self.session.as_ref().and_then(|running| running.application.as_ref()?.deadline());
        [self.by.filter(|_| !self.closed), inside].into_iter().flatten().min()
    }

    fn on_deadline(&mut self, session: &mut dyn Session) {
        let now = session.now();
        if self.by.is_some_and(|at| at <= now) {
            self.by = None;
            if let Some(text) = self.leaving.take() {
                self.closed = true;
                return session.close(Code::NoError.number(), &text);
            }
            let words = "no session of WebTransport in time".to_owned();
            return self.fail(Refused("timeout", Code::NoError, words), session);
        }
        if let Some(running) = &mut self.session {
            running.with(session, |application, session| {
                if application.deadline().is_some_and(|at| at <= now) {
                    application.on_deadline(session);
                }
            });
        }
        if let Err(refused) = self.look_after(session) {
            self.fail(refused, session);
        }
    }
}
