//! The requests of a session as streams: words read from them and written to them, and how each ends.
//!
//! A request is a stream in both directions. What it holds is let go of exactly once, however it ends: refused in words,
//! given up by either end, or over. Words that the peer does not take wait, up to 256 KiB; beyond that the request is
//! given up.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::actor_ingest::Up;
use super::actor_publish::Sub;
use super::actor_session::{Close, MoqSession, READ, of_session};
use super::actor_wire::{Messages, encode};
use super::codec::{Ends, Mistake};
use super::codec_message::Refused;
use super::model::{Draft, Side};
use super::model_codes::{RequestCode, ResetCode, SessionCode};
use super::model_message::{Message, RequestError, RequestKind};
use super::model_names::Namespace;
use super::model_params::Token;
use crate::transports::quic::{OpenError, Priority, Read, Session, StreamError, StreamId, StreamKind};

/// Requests come before objects.
pub(super) const REQUESTS: Priority = Priority { urgency: 1, incremental: true };
/// Bytes that may wait on a request stream.
const WORDS: usize = 256 << 10;

/// What a request is about.
pub(super) enum What {
    /// The peer opened it, and its first message has not come.
    New,
    /// Objects go to the peer: it subscribed, or accepted what was offered.
    Sub(Box<Sub>),
    /// Objects come from the peer: it was subscribed to, or publishes by itself.
    Up(Box<Up>),
    /// The peer publishes a namespace.
    Namespace(Namespace),
    /// The peer wants to hear of namespaces.
    WatchNamespaces { prefix: Namespace, told: BTreeSet<Namespace> },
    /// The peer wants to be offered tracks.
    WatchTracks { prefix: Namespace, forward: bool },
    /// The peer asks what is known of a track.
    Status { sub: Box<Sub> },
    /// The peer fetches.
    Fetch(Box<super::actor_fetch::Serving>),
    /// We fetch, for another session.
    Errand(u64),
    /// We watch the tracks, or the namespaces, of an origin.
    OfOrigin { tracks: bool },
    /// It was answered, and only its end is awaited.
    Over,
}

/// A request, with its stream.
pub(super) struct Request {
    pub(super) what: What,
    /// Whether this end made it.
    pub(super) ours: bool,
    /// Its number on the wire.
    pub(super) id: u64,
    pub(super) kind: Option<RequestKind>,
    /// What the peer showed with it.
    pub(super) tokens: Vec<Token>,
    words: Messages,
    /// Words that wait.
    out: VecDeque<Bytes>,
    waiting: usize,
    /// Nothing will be written behind `out`.
    finishing: bool,
    /// The end was written.
    written: bool,
    /// Nothing more comes.
    read: bool,
    goaway: bool,
}

impl Request {
    pub(super) fn new(draft: Draft, ours: bool, what: What) -> Self {
        Self {
            what,
            ours,
            id: 0,
            kind: None,
            tokens: Vec::new(),
            words: Messages::new(draft),
            out: VecDeque::new(),
            waiting: 0,
            finishing: false,
            written: false,
            read: false,
            goaway: false,
        }
    }
}

impl MoqSession {
    pub(super) fn read_request(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        let number = stream.0;
        if !self.requests.contains_key(&number) {
            return Ok(());
        }
        loop {
            match session.read(stream, READ) {
                Ok(Read::Data(bytes)) => {
                    if let Some(request) = self.requests.get_mut(&number) {
                        request.words.feed(bytes);
                    }
                    self.hear_request(number, session)?;
                }
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) => return self.request_finished(number, session),
                Err(StreamError::Reset(code)) => {
                    self.request_cancelled(number, code, session);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }

    fn hear_request(&mut self, number: u64, session: &mut dyn Session) -> Result<(), Close> {
        loop {
            let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
            match request.words.next() {
                Ok(None) => return Ok(()),
                Ok(Some(Message::Goaway(goaway))) => {
                    if std::mem::replace(&mut request.goaway, true) {
                        return Err(Close::violation("second_goaway"));
                    }
                    if self.side == Side::Server && !goaway.uri.is_empty() {
                        return Err(Close::violation("goaway_uri_from_client"));
                    }
                }
                Ok(Some(message)) => self.hear(number, message, session)?,
                Err(Refused { mistake, request_id }) => match mistake.ends() {
                    Ends::Request(code) => {
                        if request_id.is_some_and(|id| !self.numbers.came(id)) {
                            return Err(Close { code: SessionCode::InvalidRequestId, reason: "invalid_request_id" });
                        }
                        self.raise("moq_requests_refused", mistake.reason());
                        self.refuse(number, code, session);
                        return Ok(());
                    }
                    Ends::Stream(code) => {
                        self.give_up(number, code, session);
                        return Ok(());
                    }
                    Ends::Track | Ends::Session(_) => return Err(of_session(mistake)),
                },
            }
        }
    }

    /// The peer says no more on a request stream.
    fn request_finished(&mut self, number: u64, session: &mut dyn Session) -> Result<(), Close> {
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        request.read = true;
        let cut = !request.words.is_between() || matches!(request.what, What::New);
        if cut {
            // Draft 20, section 10: a request stream that ends in the midst of a message.
            if self.draft.profile().fin_cancels {
                self.give_up(number, ResetCode::Cancelled, session);
                return Ok(());
            }
            return Err(of_session(Mistake::CutOff));
        }
        let cancels = match &request.what {
            // One that answers has said all, and one that published is gone.
            What::Sub(_) | What::Fetch(_) | What::Status { .. } => false,
            What::WatchNamespaces { .. } | What::WatchTracks { .. } | What::Namespace(_) => {
                self.draft.profile().fin_cancels
            }
            What::Up(up) => !request.ours && !up.is_done() || request.ours && !up.is_done(),
            What::OfOrigin { .. } => true,
            What::New | What::Errand(_) | What::Over => false,
        };
        if cancels {
            self.end_request(number, ResetCode::Cancelled, session);
        } else {
            self.forget_if_over(number);
        }
        Ok(())
    }

    /// The peer gave a request up.
    pub(super) fn request_cancelled(&mut self, number: u64, _code: u64, session: &mut dyn Session) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.read = true;
        }
        self.end_request(number, ResetCode::Cancelled, session);
    }

    /// Opens a request of ours.
    pub(super) fn open_request(
        &mut self,
        what: What,
        session: &mut dyn Session,
        message: impl FnOnce(u64) -> Message,
    ) -> Result<u64, OpenError> {
        let stream = session.open(StreamKind::Bidirectional, REQUESTS)?;
        let id = self.numbers.take();
        let message = message(id);
        let mut request = Request::new(self.draft, true, what);
        request.id = id;
        request.kind = message.opens();
        self.requests.insert(stream.0, request);
        self.say(stream.0, &message, session);
        Ok(stream.0)
    }

    /// Adds what has no request stream of its own, under a number that no stream has.
    pub(super) fn add_silent(&mut self, number: u64, what: What) {
        self.requests.insert(number, Request::new(self.draft, true, what));
    }

    /// Says something on a request stream.
    pub(super) fn say(&mut self, number: u64, message: &Message, session: &mut dyn Session) {
        let Some(request) = self.requests.get_mut(&number).filter(|request| !request.finishing) else { return };
        let Ok(bytes) = encode(message, self.draft) else {
            tracing::warn!(message = message.name(), draft = %self.draft, "cannot be said");
            self.raise("moq_requests_refused", "unsayable");
            self.give_up(number, ResetCode::InternalError, session);
            return;
        };
        request.waiting += bytes.len();
        request.out.push_back(bytes);
        if request.waiting > WORDS {
            self.raise("moq_requests_refused", "words_not_taken");
            self.give_up(number, ResetCode::ExcessiveLoad, session);
            return;
        }
        self.write_words(number, session);
    }

    /// Says nothing more on it.
    pub(super) fn finish(&mut self, number: u64, session: &mut dyn Session) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.finishing = true;
        }
        self.write_words(number, session);
    }

    pub(super) fn write_words(&mut self, number: u64, session: &mut dyn Session) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        let stream = StreamId(number);
        while let Some(bytes) = request.out.front().cloned() {
            let length = bytes.len();
            match session.write(stream, bytes) {
                Ok(()) => {
                    request.waiting -= length;
                    request.out.pop_front();
                }
                Err(_) => return,
            }
        }
        if request.finishing && !request.written {
            request.written = true;
            let _gone = session.finish(stream);
        }
        self.forget_if_over(number);
    }

    /// Refuses a request, in words.
    pub(super) fn refuse(&mut self, number: u64, code: RequestCode, session: &mut dyn Session) {
        self.raise("moq_requests_refused", code.reason());
        let error = RequestError { reason: code.reason().to_owned(), ..RequestError::new(code) };
        if let Some(request) = self.requests.get_mut(&number) {
            let what = std::mem::replace(&mut request.what, What::Over);
            self.let_go(number, what, Some(&mut *session));
        }
        self.say(number, &Message::RequestError(Box::new(error)), session);
        self.finish(number, session);
        let _over = session.stop(StreamId(number), ResetCode::Cancelled.number(self.draft));
        if let Some(request) = self.requests.get_mut(&number) {
            request.read = true;
        }
        self.forget_if_over(number);
    }

    /// Ends a request and lets go of what is its: its stream is reset, in both directions.
    pub(super) fn end_request(&mut self, number: u64, code: ResetCode, session: &mut dyn Session) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        let what = std::mem::replace(&mut request.what, What::Over);
        self.let_go(number, what, Some(&mut *session));
        self.give_up(number, code, session);
    }

    /// Gives a request stream up, in both directions.
    pub(super) fn give_up(&mut self, number: u64, code: ResetCode, session: &mut dyn Session) {
        let Some(mut request) = self.requests.remove(&number) else { return };
        let what = std::mem::replace(&mut request.what, What::Over);
        self.let_go(number, what, Some(&mut *session));
        let (stream, code) = (StreamId(number), code.number(self.draft));
        let (_over, _too) = (session.reset(stream, code), session.stop(stream, code));
    }

    fn forget_if_over(&mut self, number: u64) {
        if self.requests.get(&number).is_some_and(|request| {
            request.read && request.written && request.out.is_empty() && matches!(request.what, What::Over)
        }) {
            self.requests.remove(&number);
        }
    }

    /// The request is over; nothing more will be said on it, and its stream may end.
    pub(super) fn is_over(&mut self, number: u64, session: &mut dyn Session) {
        if let Some(request) = self.requests.get_mut(&number) {
            let what = std::mem::replace(&mut request.what, What::Over);
            self.let_go(number, what, Some(&mut *session));
        }
        self.finish(number, session);
    }
}
