//! What the handles of a client want, and what its peer says to it on request streams.

use std::collections::BTreeSet;

use super::actor_client::{
    Accepted, Answer, Batch, ClientError, ClientSession, LATE, MOST, Pub, REQUESTS, Request, Stage, Sub, ToClient,
    WAITING, Waiting, What, of_stream,
};
use super::actor_session::{Close, READ, of_session};
use super::actor_wire::encode;
use super::codec_message::MessageDecoder;
use super::model_codes::{DoneCode, RequestCode, ResetCode, SessionCode};
use super::model_message::{Message, Publish, RequestError, RequestUpdate, Subscribe};
use super::model_params::Params;
use super::state_assembly::Assembly;
use crate::actors::clock::later;
use crate::transports::quic::{OpenError, Read, Session, StreamError, StreamId, StreamKind};

impl ClientSession {
    pub(super) fn told(&mut self, what: ToClient, session: &mut dyn Session) {
        match what {
            ToClient::Ready(reply) => {
                if self.stage == Stage::Setup {
                    self.ready.push(reply);
                } else {
                    let door = session.door().ok_or_else(|| ClientError::Ended("no door".into()));
                    drop(reply.send(door.map(|door| (door, self.draft))));
                }
            }
            ToClient::Subscribe { track, params, bounds, alive, reply } => {
                let assembly = Assembly::new(bounds);
                let (unread, done) = (BTreeSet::new(), None);
                let sub =
                    Box::new(Sub { alive, alias: None, assembly, unread, next: None, streams: 0, done, over: false });
                let opened = self.ask(session, |request_id| {
                    Message::Subscribe(Box::new(Subscribe { request_id, track, params: *params }))
                });
                self.asked(opened, reply, |reply| What::Subscribing(reply, sub));
            }
            ToClient::Publish { track, properties, alive, reply } => {
                let alias = self.next_alias;
                self.next_alias += 1;
                let open = BTreeSet::new();
                let publisher = Pub { alive, alias, forward: true, streams: 0, open, done: None };
                let opened = self.ask(session, |request_id| {
                    let params = Params::default();
                    let publish = Publish { request_id, track, track_alias: alias, params, properties };
                    Message::Publish(Box::new(publish))
                });
                self.asked(opened, reply, |reply| What::Publishing(reply, publisher));
            }
            ToClient::Next { subscription, reply } => self.next(subscription, reply, session),
            ToClient::Begin { publisher, header, alive, reply } => {
                if self.waiting.len() >= WAITING {
                    drop(reply.send(Err(ClientError::Busy)));
                } else {
                    self.waiting.push_back(Waiting { publisher, header, alive, reply });
                    self.begin_waiting(session);
                }
            }
            ToClient::Write { stream, bytes, reply } => match self.writing.get_mut(&stream) {
                Some(writing) if writing.reply.is_none() => {
                    (writing.rest, writing.reply) = (bytes, Some(reply));
                    self.write_on(stream, session);
                }
                Some(_) => drop(reply.send(Err(ClientError::Busy))),
                None => drop(reply.send(Err(ClientError::Over))),
            },
            ToClient::Finish { stream, reply } => {
                let finished = match self.writing.remove(&stream) {
                    Some(writing) => {
                        let finished = session.finish(stream).map_err(of_stream);
                        self.stream_over(writing.publisher, stream, session);
                        finished
                    }
                    None => Err(ClientError::Over),
                };
                drop(reply.send(finished));
            }
            ToClient::Datagram { publisher, datagram, reply } => {
                drop(reply.send(self.datagram(publisher, *datagram, session)));
            }
            ToClient::Done { publisher, reply } => match self.publisher(publisher) {
                Some(known) => {
                    known.done = Some(reply);
                    self.look_for_done(publisher, session);
                }
                None => drop(reply.send(Err(ClientError::Over))),
            },
            ToClient::Look => {}
        }
    }

    /// Makes a request; answers its stream.
    pub(super) fn ask(
        &mut self,
        session: &mut dyn Session,
        make: impl FnOnce(u64) -> Message,
    ) -> Result<StreamId, ClientError> {
        match self.stage {
            Stage::Open => {}
            Stage::Setup | Stage::Leaving => return Err(ClientError::Busy),
            Stage::Closed => return Err(ClientError::Ended(self.ended.clone())),
        }
        if self.requests.len() >= MOST {
            return Err(ClientError::Busy);
        }
        let stream = session.open(StreamKind::Bidirectional, REQUESTS).map_err(|error| match error {
            OpenError::Closed => ClientError::Ended("draining".into()),
            OpenError::Limit | OpenError::Busy => ClientError::Busy,
        })?;
        let bytes = match encode(&make(self.numbers.take()), self.draft) {
            Ok(bytes) => bytes,
            Err(unsayable) => {
                // A stream without a message is as if it had never been.
                self.give_up(stream, session);
                return Err(unsayable.into());
            }
        };
        session.write(stream, bytes).map_err(of_stream)?;
        Ok(stream)
    }

    pub(super) fn asked(
        &mut self,
        opened: Result<StreamId, ClientError>,
        reply: Answer<Accepted>,
        what: impl FnOnce(Answer<Accepted>) -> What,
    ) {
        match opened {
            Ok(stream) => {
                let request = Request { what: what(reply), words: MessageDecoder::new(self.draft) };
                self.requests.insert(stream.0, request);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn give_up(&self, stream: StreamId, session: &mut dyn Session) {
        let code = ResetCode::Cancelled.number(self.draft);
        let (_over, _too) = (session.reset(stream, code), session.stop(stream, code));
    }

    pub(super) fn sub(&mut self, number: u64) -> Option<&mut Sub> {
        match self.requests.get_mut(&number).map(|request| &mut request.what) {
            Some(What::Sub(sub)) => Some(sub),
            _ => None,
        }
    }

    pub(super) fn publisher(&mut self, number: u64) -> Option<&mut Pub> {
        match self.requests.get_mut(&number).map(|request| &mut request.what) {
            Some(What::Pub(publisher)) => Some(publisher),
            _ => None,
        }
    }

    pub(super) fn next(&mut self, number: u64, reply: Answer<Batch>, session: &mut dyn Session) {
        let Some(sub) = self.sub(number) else {
            drop(reply.send(Err(ClientError::Over)));
            return;
        };
        // One reader at a time: a second one takes over.
        sub.next = Some(reply);
        self.answer_next(number);
        let unread = self.sub(number).map(|sub| std::mem::take(&mut sub.unread)).unwrap_or_default();
        for stream in unread {
            if let Err(close) = self.read_stream(stream, session) {
                return self.fail(close, session);
            }
        }
    }

    /// Hands over what has come, if somebody waits for it.
    pub(super) fn answer_next(&mut self, number: u64) {
        let Some(sub) = self.sub(number) else { return };
        let done = sub.done.filter(|_| sub.over && !sub.assembly.is_ready()).map(|(code, _)| code);
        if !sub.assembly.is_ready() && done.is_none() {
            return;
        }
        let Some(reply) = sub.next.take() else { return };
        let batch = Batch { objects: sub.assembly.take(), lost: sub.assembly.lost(), done };
        drop(reply.send(Ok(batch)));
    }

    pub(super) fn read_request(&mut self, number: u64, session: &mut dyn Session) -> Result<(), Close> {
        while let Some(request) = self.requests.get_mut(&number) {
            match session.read(StreamId(number), READ) {
                Ok(Read::Data(mut bytes)) => {
                    let mut messages = Vec::new();
                    while let Some(message) =
                        request.words.decode(&mut bytes).map_err(|refused| of_session(refused.mistake))?
                    {
                        messages.push(message);
                    }
                    for message in messages {
                        self.hear(number, message, session)?;
                    }
                }
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) => return self.request_ended(number, None, session),
                Err(StreamError::Reset(code)) => return self.request_ended(number, Some(code), session),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    pub(super) fn hear(&mut self, number: u64, message: Message, session: &mut dyn Session) -> Result<(), Close> {
        const UNEXPECTED: Close = Close::violation("unexpected_message");
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        match (std::mem::replace(&mut request.what, What::Over), message) {
            (What::Subscribing(reply, mut sub), Message::SubscribeOk(ok)) => {
                if !self.aliases.put(ok.track_alias, number) {
                    return Err(Close { code: SessionCode::DuplicateTrackAlias, reason: "duplicate_track_alias" });
                }
                sub.alias = Some(ok.track_alias);
                request.what = What::Sub(sub);
                let (params, properties) = (ok.params, ok.properties);
                drop(reply.send(Ok(Accepted { number, params, properties })));
                for stream in std::mem::take(&mut self.parked) {
                    self.read_stream(stream, session)?;
                }
            }
            (What::Publishing(reply, mut publisher), Message::RequestOk(ok)) => {
                publisher.forward = ok.params.forward.unwrap_or(true);
                let (params, properties) = (ok.params, ok.properties);
                request.what = What::Pub(publisher);
                drop(reply.send(Ok(Accepted { number, params, properties })));
            }
            (What::Subscribing(reply, _) | What::Publishing(reply, _), Message::RequestError(error)) => {
                drop(reply.send(Err(ClientError::Refused(error.code, error.reason))));
                let _over = session.finish(StreamId(number));
            }
            (What::Sub(mut sub), Message::PublishDone(done)) if sub.done.is_none() => {
                sub.done = Some((done.code, done.streams));
                request.what = What::Sub(sub);
                self.late.insert(number, later(session.now(), LATE));
                self.look_for_end(number, session);
            }
            (What::Pub(mut publisher), Message::RequestUpdate(update)) => {
                let RequestUpdate { request_id, params } = *update;
                if !self.numbers.came(request_id) {
                    return Err(Close { code: SessionCode::InvalidRequestId, reason: "invalid_request_id" });
                }
                publisher.forward = params.forward.unwrap_or(publisher.forward);
                request.what = What::Pub(publisher);
                let _gone = self.say(number, &Message::RequestOk(Box::default()), session);
            }
            (What::Theirs, message) => {
                let id = message.request_id().filter(|_| message.opens().is_some());
                let id = id.ok_or(Close::violation("not_a_request"))?;
                if !self.numbers.came(id) {
                    return Err(Close { code: SessionCode::InvalidRequestId, reason: "invalid_request_id" });
                }
                let error = Box::new(RequestError::new(RequestCode::NotSupported));
                let _gone = self.say(number, &Message::RequestError(error), session);
                let _over = session.finish(StreamId(number));
            }
            // It crossed our last word.
            (What::Over, _) => {}
            (was @ (What::Sub(_) | What::Pub(_)), Message::PublishStateNotify(_) | Message::RequestOk(_))
            | (
                was @ (What::Sub(_) | What::Pub(_) | What::Subscribing(..) | What::Publishing(..)),
                Message::Goaway(_),
            ) => request.what = was,
            _ => return Err(UNEXPECTED),
        }
        Ok(())
    }

    /// The peer says no more on a request stream, or gave it up.
    pub(super) fn request_ended(
        &mut self,
        number: u64,
        code: Option<u64>,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let Some(mut request) = self.requests.remove(&number) else { return Ok(()) };
        let given_up = ClientError::GivenUp(code.unwrap_or(0));
        match request.what {
            What::Subscribing(reply, _) | What::Publishing(reply, _) => drop(reply.send(Err(given_up))),
            What::Sub(ref mut sub) => {
                if sub.done.is_none() {
                    sub.done = Some((DoneCode::InternalError, None));
                    self.late.insert(number, later(session.now(), LATE));
                }
                self.requests.insert(number, request);
                self.look_for_end(number, session);
                return Ok(());
            }
            // One that only says that nothing follows goes on.
            What::Pub(_) if code.is_none() => drop(self.requests.insert(number, request)),
            What::Pub(publisher) => {
                for stream in &publisher.open {
                    if let Some(reply) = self.writing.remove(stream).and_then(|writing| writing.reply) {
                        drop(reply.send(Err(given_up.clone())));
                    }
                    let _over = session.reset(*stream, ResetCode::Cancelled.number(self.draft));
                }
                if let Some(reply) = publisher.done {
                    drop(reply.send(Err(given_up)));
                }
                self.give_up(StreamId(number), session);
            }
            What::Theirs | What::Over => {
                if code.is_some() {
                    self.give_up(StreamId(number), session);
                }
            }
        }
        Ok(())
    }

    /// A subscription whose publisher has said its last word ends once its streams have.
    pub(super) fn look_for_end(&mut self, number: u64, session: &mut dyn Session) {
        let Some(sub) = self.sub(number) else { return };
        let Some((_, streams)) = sub.done else { return };
        let all = streams.is_some_and(|streams| streams <= sub.streams);
        if !sub.over && all && sub.assembly.open().next().is_none() {
            self.end_sub(number, session);
        }
    }

    /// Nothing more comes of a subscription. It is kept until its handle has learnt that.
    pub(super) fn end_sub(&mut self, number: u64, session: &mut dyn Session) {
        self.late.remove(&number);
        let Some(sub) = self.sub(number) else { return };
        sub.over = true;
        let open: Vec<u64> = sub.assembly.open().collect();
        let alias = sub.alias;
        open.iter().for_each(|stream| sub.assembly.lose(*stream));
        for stream in open {
            self.drop_stream(StreamId(stream), ResetCode::Cancelled, session);
        }
        if let Some(alias) = alias {
            self.aliases.end(alias);
        }
        let _over = session.finish(StreamId(number));
        self.answer_next(number);
    }
}
