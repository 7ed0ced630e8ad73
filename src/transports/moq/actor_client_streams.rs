//! The objects of a client: what it publishes, as far as there is credit, and what comes of its subscriptions.

use bytes::{Bytes, BytesMut};

use super::actor_client::{ClientError, ClientSession, Incoming, Waiting, What, Writing, of_stream};
use super::actor_session::{Close, READ, of_session};
use super::actor_wire::encode;
use super::codec::Ends;
use super::codec_datagram::{self, ObjectDatagram};
use super::codec_stream::StreamStart;
use super::codec_subgroup::{SubgroupHeader, put_subgroup_header};
use super::model_codes::{DoneCode, ResetCode};
use super::model_message::{Message, PublishDone};
use super::state_assembly::Wrong;
use super::state_requests::Named;
use crate::transports::quic::{
    Datagram, NotQueued, OpenError, Priority, Read, Session, StreamError, StreamId, StreamKind,
};

impl ClientSession {
    pub(super) fn begin_waiting(&mut self, session: &mut dyn Session) {
        while let Some(Waiting { publisher, mut header, alive, reply }) = self.waiting.pop_front() {
            let Some(known) = self.publisher(publisher).filter(|known| known.done.is_none()) else {
                drop(reply.send(Err(ClientError::Over)));
                continue;
            };
            if !known.forward {
                drop(reply.send(Ok(None)));
                continue;
            }
            header.track_alias = known.alias;
            let urgency = header.priority.unwrap_or(super::model::DEFAULT_PRIORITY).max(2);
            match session.open(StreamKind::Unidirectional, Priority { urgency, incremental: false }) {
                Ok(stream) => {
                    let mut head = BytesMut::with_capacity(32);
                    put_subgroup_header(&header, &mut head);
                    known.streams += 1;
                    known.open.insert(stream);
                    let writing = Writing { publisher, alive, rest: head.freeze(), reply: None };
                    self.writing.insert(stream, writing);
                    self.write_on(stream, session);
                    if let Err(Ok(Some(stream))) = reply.send(Ok(Some(stream))) {
                        // Nobody waits any more.
                        self.reset_writing(stream, session);
                    }
                }
                Err(OpenError::Limit) => {
                    self.waiting.push_front(Waiting { publisher, header, alive, reply });
                    return;
                }
                Err(_) => drop(reply.send(Err(ClientError::Busy))),
            }
        }
    }

    /// Writes as far as there is credit.
    pub(super) fn write_on(&mut self, stream: StreamId, session: &mut dyn Session) {
        let Some(writing) = self.writing.get_mut(&stream) else { return };
        while !writing.rest.is_empty() {
            let room = session.room(stream);
            if room == 0 {
                session.want_room(stream);
                return;
            }
            let bytes = writing.rest.split_to(room.min(writing.rest.len()));
            if let Err(error) = session.write(stream, bytes) {
                return self.stopped(stream, of_stream(error), session);
            }
        }
        if let Some(reply) = writing.reply.take() {
            drop(reply.send(Ok(())));
        }
    }

    /// The peer wants no more of a stream.
    pub(super) fn stopped(&mut self, stream: StreamId, why: ClientError, session: &mut dyn Session) {
        let Some(writing) = self.writing.remove(&stream) else { return };
        if let Some(reply) = writing.reply {
            drop(reply.send(Err(why)));
        }
        self.stream_over(writing.publisher, stream, session);
    }

    pub(super) fn reset_writing(&mut self, stream: StreamId, session: &mut dyn Session) {
        let Some(writing) = self.writing.remove(&stream) else { return };
        let _over = session.reset(stream, ResetCode::Cancelled.number(self.draft));
        self.stream_over(writing.publisher, stream, session);
    }

    pub(super) fn stream_over(&mut self, publisher: u64, stream: StreamId, session: &mut dyn Session) {
        if let Some(known) = self.publisher(publisher) {
            known.open.remove(&stream);
            self.look_for_done(publisher, session);
        }
    }

    /// A publisher says its last word once all its streams have ended (draft, section 10.11).
    pub(super) fn look_for_done(&mut self, number: u64, session: &mut dyn Session) {
        let Some(known) = self.publisher(number).filter(|known| known.open.is_empty()) else { return };
        let Some(reply) = known.done.take() else { return };
        let streams = Some(known.streams);
        let done = PublishDone { code: DoneCode::TrackEnded, streams, reason: String::new() };
        let said = self.say(number, &Message::PublishDone(done), session);
        let _over = session.finish(StreamId(number));
        self.set_over(number);
        drop(reply.send(said));
    }

    pub(super) fn set_over(&mut self, number: u64) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.what = What::Over;
        }
    }

    pub(super) fn datagram(
        &mut self,
        publisher: u64,
        mut datagram: ObjectDatagram,
        session: &mut dyn Session,
    ) -> Result<(), ClientError> {
        let known = self.publisher(publisher).ok_or(ClientError::Over)?;
        if !known.forward {
            return Ok(());
        }
        datagram.track_alias = known.alias;
        let priority = datagram.priority.unwrap_or(super::model::DEFAULT_PRIORITY).max(2);
        let mut bytes = BytesMut::new();
        datagram.put(&mut bytes)?;
        let datagram = Datagram { bytes: bytes.freeze(), priority, expires: None, wait_for_path: false };
        session.send_datagram(datagram).map_err(|error| match error {
            NotQueued::TooLarge { max } => ClientError::TooLarge(max),
            NotQueued::Full(_) | NotQueued::Dropped => ClientError::Busy,
        })
    }

    pub(super) fn say(&self, number: u64, message: &Message, session: &mut dyn Session) -> Result<(), ClientError> {
        let bytes = encode(message, self.draft)?;
        session.write(StreamId(number), bytes).map_err(of_stream)
    }

    pub(super) fn read_stream(&mut self, stream: StreamId, session: &mut dyn Session) -> Result<(), Close> {
        loop {
            match self.incoming.remove(&stream) {
                None => return Ok(()),
                Some(Incoming::Parked(header, rest)) => {
                    if !self.place(stream, header, rest, session)? {
                        return Ok(());
                    }
                    continue;
                }
                Some(Incoming::Objects(number)) => {
                    self.incoming.insert(stream, Incoming::Objects(number));
                    if let Some(sub) = self.sub(number).filter(|sub| !sub.assembly.may_read(stream.0)) {
                        sub.unread.insert(stream);
                        return Ok(());
                    }
                }
                Some(other @ (Incoming::New(_) | Incoming::Padding)) => {
                    self.incoming.insert(stream, other);
                }
            }
            match session.read(stream, READ) {
                Ok(Read::Data(bytes)) => self.came(stream, bytes, session)?,
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) => return self.stream_ended(stream, false, session),
                Err(StreamError::Reset(_)) => return self.stream_ended(stream, true, session),
                Err(_) => {
                    self.incoming.remove(&stream);
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn came(&mut self, stream: StreamId, mut bytes: Bytes, session: &mut dyn Session) -> Result<(), Close> {
        match self.incoming.get_mut(&stream) {
            Some(Incoming::New(decoder)) => match decoder.decode(&mut bytes).map_err(of_session)? {
                None => {}
                Some(StreamStart::Control(mut words)) => {
                    self.incoming.remove(&stream);
                    if self.theirs.is_some() {
                        return Err(Close::violation("second_control_stream"));
                    }
                    let mut messages = Vec::new();
                    while let Some(message) = words.decode(&mut bytes).map_err(|refused| of_session(refused.mistake))? {
                        messages.push(message);
                    }
                    self.theirs = Some((stream, words));
                    for message in messages {
                        self.hear_control(&message, session)?;
                    }
                    self.read_control(session)?;
                }
                Some(StreamStart::Subgroup(header)) => {
                    self.incoming.insert(stream, Incoming::Parked(header, bytes));
                }
                Some(StreamStart::Padding) => drop(self.incoming.insert(stream, Incoming::Padding)),
                // Nothing is fetched here.
                Some(StreamStart::Fetch { .. }) => self.drop_stream(stream, ResetCode::Cancelled, session),
            },
            Some(Incoming::Objects(number)) => {
                let number = *number;
                self.objects(stream, number, bytes, session)?;
            }
            Some(Incoming::Parked(..) | Incoming::Padding) | None => {}
        }
        Ok(())
    }

    pub(super) fn objects(
        &mut self,
        stream: StreamId,
        number: u64,
        bytes: Bytes,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let Some(sub) = self.sub(number) else {
            self.drop_stream(stream, ResetCode::Cancelled, session);
            return Ok(());
        };
        let fed = sub.assembly.feed(stream.0, bytes);
        self.answer_next(number);
        let (reason, code) = match fed {
            Ok(()) => return Ok(()),
            Err(Wrong::TooLong) => ("object_too_long", ResetCode::ExcessiveLoad),
            Err(Wrong::Mistake(mistake)) => match mistake.ends() {
                Ends::Stream(code) => (mistake.reason(), code),
                Ends::Track => (mistake.reason(), ResetCode::MalformedTrack),
                Ends::Session(_) | Ends::Request(_) => return Err(of_session(mistake)),
            },
        };
        self.raise("moq_client_streams_dropped", reason);
        self.drop_stream(stream, code, session);
        self.look_for_end(number, session);
        Ok(())
    }

    pub(super) fn drop_stream(&mut self, stream: StreamId, code: ResetCode, session: &mut dyn Session) {
        self.incoming.remove(&stream);
        let _over = session.stop(stream, code.number(self.draft));
    }

    /// A stream goes to its subscription, if that is known by now.
    pub(super) fn place(
        &mut self,
        stream: StreamId,
        header: SubgroupHeader,
        rest: Bytes,
        session: &mut dyn Session,
    ) -> Result<bool, Close> {
        const PARKED: usize = 32;
        let number = match self.aliases.get(header.track_alias) {
            Named::Request(number) => number,
            Named::Nothing if self.parked.len() < PARKED => {
                self.parked.push(stream);
                self.incoming.insert(stream, Incoming::Parked(header, rest));
                return Ok(false);
            }
            Named::Nothing => {
                self.raise("moq_client_streams_dropped", "unknown_alias");
                self.drop_stream(stream, ResetCode::ExcessiveLoad, session);
                return Ok(false);
            }
            Named::Over => {
                self.drop_stream(stream, ResetCode::Cancelled, session);
                return Ok(false);
            }
        };
        let Some(sub) = self.sub(number) else { return Ok(false) };
        sub.streams += 1;
        sub.assembly.begin(stream.0, header);
        self.incoming.insert(stream, Incoming::Objects(number));
        if !rest.is_empty() {
            self.objects(stream, number, rest, session)?;
        }
        Ok(true)
    }

    pub(super) fn stream_ended(
        &mut self,
        stream: StreamId,
        reset: bool,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        self.parked.retain(|parked| *parked != stream);
        let Some(Incoming::Objects(number)) = self.incoming.remove(&stream) else { return Ok(()) };
        let Some(sub) = self.sub(number) else { return Ok(()) };
        if reset {
            sub.assembly.lose(stream.0);
        } else {
            sub.assembly.finished(stream.0).map_err(of_session)?;
        }
        self.look_for_end(number, session);
        Ok(())
    }

    pub(super) fn datagrams(&mut self, session: &mut dyn Session) -> Result<(), Close> {
        while let Some(bytes) = session.read_datagram() {
            let datagram = match codec_datagram::read_datagram(&bytes).map_err(of_session)? {
                codec_datagram::Datagram::Object(datagram) => datagram,
                codec_datagram::Datagram::Padding => continue,
            };
            let Named::Request(number) = self.aliases.get(datagram.track_alias) else {
                self.raise("moq_client_datagrams_dropped", "unknown_alias");
                continue;
            };
            let Some(sub) = self.sub(number) else { continue };
            if !sub.assembly.datagram(datagram) {
                self.raise("moq_client_datagrams_dropped", "no_room");
            }
            self.answer_next(number);
        }
        Ok(())
    }
}
