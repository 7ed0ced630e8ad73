//! Those who use a connection through handles, from anywhere: what they wait for, and what they are told.
//!
//! Each waits with a reply; how many may is bounded, and one more is told `Busy`. News for an event reader are kept as
//! flags of streams, not as a list, so that they take as much room as there are streams, however long nobody reads.
//!
//! Whoever waits may go away, before the answer is given or after. What an answer takes from the connection is not lost
//! then: it stays here, or comes back ([`Back`]), for the next who asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::actor_engine::Engine;
use super::messages::{Asked, Back, Direction, Granted, NewStream, SendShared};
use super::session::{Event, OpenError, Read, Session, StreamError, StreamId, StreamKind};
use super::state_credit::take_both;
use super::state_datagrams::{Datagram, NotQueued};
use super::state_events::News;
use super::state_kept::{Answered, Kept};
use super::state_streams::Priority;
use crate::actors::Reply;

/// Who may wait on one connection at once.
pub(super) const WAITING: usize = 4_096;
/// Datagrams answered to one request, at most.
const DATAGRAMS: usize = 64;
/// Bytes answered to one read, at most.
const READ: usize = 1 << 20;

type Reading = (usize, Reply<Answered>);

type Opening = (StreamKind, Priority, Reply<Result<NewStream, OpenError>>);

struct Crediting {
    stream: StreamId,
    bytes: usize,
    reply: Reply<Result<Granted, StreamError>>,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Remote {
    reading: BTreeMap<StreamId, VecDeque<Reading>>,
    crediting: VecDeque<Crediting>,
    opening: VecDeque<Opening>,
    accepting: VecDeque<(StreamKind, Reply<Result<NewStream, OpenError>>)>,
    /// Handles use the connection, and no application: streams that the peer opens are for them to accept.
    attended: bool,
    /// Opened by the peer and not yet given to a handle, by kind. Never more than QUIC lets the peer have open: one that
    /// the peer gives up before leaves.
    opened: [BTreeSet<StreamId>; 2],
    datagrams: VecDeque<Reply<Vec<Bytes>>>,
    sending: VecDeque<(Datagram, Reply<Result<(), NotQueued>>)>,
    events: Option<Reply<Vec<Event>>>,
    /// Somebody has asked for events: they are kept from then on.
    watched: bool,
    news: News,
    /// Read for somebody who is gone.
    kept: Kept,
    waiting: usize,
}

impl Remote {
    /// Handles use the connection from now on.
    pub(super) const fn attend(&mut self) {
        self.attended = true;
    }

    const fn opened_of(&mut self, kind: StreamKind) -> &mut BTreeSet<StreamId> {
        let [bidirectional, unidirectional] = &mut self.opened;
        match kind {
            StreamKind::Bidirectional => bidirectional,
            StreamKind::Unidirectional => unidirectional,
        }
    }

    /// Streams that wait to be accepted.
    #[cfg(test)]
    pub(super) fn unaccepted(&self) -> usize {
        self.opened.iter().map(BTreeSet::len).sum()
    }

    /// Bytes that were read for somebody who is gone.
    pub(super) const fn held(&self) -> usize {
        self.kept.bytes()
    }

    /// Datagrams read for somebody who is gone and dropped since this was last asked.
    pub(super) fn take_dropped(&mut self) -> u64 {
        self.kept.take_dropped()
    }

    /// Whether one more may wait.
    fn has_room(&self) -> bool {
        self.waiting < WAITING
    }

    /// Does what a handle asks for, as far as it concerns streams, datagrams and events.
    pub(super) fn request(&mut self, request: Asked, engine: &mut Engine) {
        match request {
            Asked::Write { stream, bytes, done } => {
                engine.push(stream, bytes, done);
            }
            Asked::Credit { stream, bytes, reply } => self.want_credit(stream, bytes, reply, engine),
            // What comes too late for a stream is known to its handle by its fate.
            Asked::Finish(stream) => {
                let _late = engine.finish(stream);
            }
            Asked::Reset(stream, code) => {
                let _known = engine.reset(stream, code);
            }
            Asked::Prioritise(stream, priority) => engine.prioritise(stream, priority),
            Asked::Expire(stream, at, code) => engine.expire(stream, at, code),
            Asked::Read { stream, max, reply } => self.read(stream, max.clamp(1, READ), reply, engine),
            Asked::Stop(stream, code) => {
                let _known = engine.stop(stream, code);
                self.kept.forget(stream);
                self.end_reading(stream, StreamError::Finished);
            }
            Asked::Released(stream, Direction::Send) => {
                let _late = engine.finish(stream);
            }
            Asked::Released(stream, Direction::Receive) => {
                let _known = engine.stop(stream, 0);
                self.kept.forget(stream);
            }
            Asked::Open { kind, priority, reply } => match engine.open(kind, priority) {
                Ok(stream) => hand_out(stream, reply, engine),
                Err(OpenError::Limit) if self.has_room() => {
                    self.waiting += 1;
                    self.opening.push_back((kind, priority, reply));
                }
                Err(OpenError::Limit) => drop(reply.send(Err(OpenError::Busy))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Asked::Accept { kind, reply } => {
                if self.has_room() {
                    self.waiting += 1;
                    self.accepting.push_back((kind, reply));
                    self.accept(engine);
                } else {
                    drop(reply.send(Err(OpenError::Busy)));
                }
            }
            Asked::Datagram { datagram, reply } => self.datagram(datagram, reply, engine),
            Asked::Datagrams(reply) => {
                if self.has_room() {
                    self.waiting += 1;
                    self.datagrams.push_back(reply);
                    self.give_datagrams(engine);
                }
            }
            Asked::Watch => self.watch(engine),
            Asked::Events(reply) => {
                self.watch(engine);
                // One reads at a time: the one before learns that it was replaced.
                self.events = Some(reply);
                self.give_events();
            }
            Asked::MaxDatagram(reply) => drop(reply.send(engine.max_datagram())),
            Asked::Info(reply) => drop(reply.send(engine.info())),
            Asked::Session(reply) => {
                drop(reply.send(engine.quic.session().map(Bytes::copy_from_slice)));
            }
            Asked::Back(back) => self.take_back(back, engine),
        }
    }

    /// Somebody has gone away with an answer: it is for the next.
    fn take_back(&mut self, back: Back, engine: &mut Engine) {
        if engine.end.is_some() && !matches!(back, Back::Events(_)) {
            return;
        }
        match back {
            Back::Read(stream, read) => {
                self.kept.keep_read(stream, read);
                self.serve_reads(stream, engine);
            }
            Back::Opened(Ok(new)) => unwanted(new.stream, engine),
            Back::Accepted(Ok(new)) => {
                if engine.is_open(new.stream) && !engine.is_given_up_unread(new.stream) {
                    self.opened_of(new.stream.kind()).insert(new.stream);
                    self.accept(engine);
                }
            }
            Back::Opened(Err(_)) | Back::Accepted(Err(_)) => {}
            Back::Credit(granted) => {
                drop(granted);
                self.serve_room(engine);
            }
            Back::Datagrams(batch) => {
                self.kept.keep_datagrams(batch, engine.settings.datagrams_in);
                self.give_datagrams(engine);
            }
            Back::Events(events) => {
                self.news.put_back(events);
                self.give_events();
            }
        }
    }

    /// Something has happened that handles wait for.
    pub(super) fn on(&mut self, event: &Event, engine: &mut Engine) {
        match event {
            Event::Opened(stream) if self.attended => {
                self.opened_of(stream.kind()).insert(*stream);
                self.accept(engine);
            }
            Event::Readable(stream) => self.serve_reads(*stream, engine),
            Event::Datagrams => self.give_datagrams(engine),
            Event::Openable(_) => self.open_more(engine),
            Event::Closed(_) => self.end(),
            Event::Connected
            | Event::Opened(_)
            | Event::Writable(_)
            | Event::Finished(_)
            | Event::Reset(..)
            | Event::Stopped(..)
            | Event::Expired(_)
            | Event::Missed(_)
            | Event::PathChanged { .. } => {}
        }
        if self.watched {
            self.news.add(event);
            self.give_events();
        }
    }

    /// The peer has given streams up. QUIC says nothing of that for one that nobody reads.
    pub(super) fn look_for_given_up(&mut self, engine: &mut Engine) {
        if std::mem::take(&mut engine.reset) {
            for opened in &mut self.opened {
                opened.retain(|stream| !engine.is_given_up_unread(*stream));
            }
        }
    }

    /// Credit or room came free in this turn.
    pub(super) fn serve_room(&mut self, engine: &mut Engine) {
        while let Some(first) = self.crediting.front() {
            let Some(shared) = engine.send_shared(first.stream) else {
                self.answer_credit(|_| Err(StreamError::Finished), engine);
                continue;
            };
            if !take_both(&shared.credit, &engine.credit, first.bytes) {
                // The line of one connection is served in its order, so that nobody starves; who waits for a stream
                // that is held back by its peer alone must not hold up the others, though.
                if first.bytes <= engine.credit.free() {
                    self.crediting.rotate_left(1);
                    if !self.crediting.iter().any(|c| fits(c, engine)) {
                        break;
                    }
                    continue;
                }
                break;
            }
            let (bytes, connection) = (first.bytes, engine.credit.clone());
            self.answer_credit(|_| Ok(Granted { stream: shared, connection, bytes }), engine);
        }
        while let Some((datagram, reply)) = self.sending.pop_front() {
            self.waiting -= 1;
            match engine.send_datagram(datagram) {
                Err(NotQueued::Full(datagram)) => {
                    self.waiting += 1;
                    self.sending.push_front((datagram, reply));
                    break;
                }
                other => drop(reply.send(other)),
            }
        }
    }

    /// Whether somebody waits for room.
    pub(super) fn awaits_room(&self) -> bool {
        !self.crediting.is_empty() || !self.sending.is_empty()
    }

    fn answer_credit(&mut self, answer: impl FnOnce(&Crediting) -> Result<Granted, StreamError>, engine: &Engine) {
        let Some(first) = self.crediting.pop_front() else { return };
        self.waiting -= 1;
        let answer = answer(&first);
        // Nobody there any more: what was granted is given back as it is dropped.
        drop(first.reply.send(answer));
        engine.credit.await_by(self.crediting.len());
    }

    fn want_credit(
        &mut self,
        stream: StreamId,
        bytes: usize,
        reply: Reply<Result<Granted, StreamError>>,
        engine: &mut Engine,
    ) {
        let Some(shared) = engine.send_shared(stream) else {
            drop(reply.send(Err(StreamError::Finished)));
            return;
        };
        let bytes = bytes.min(shared.credit.limit()).min(engine.credit.limit());
        if !self.has_room() {
            drop(reply.send(Err(StreamError::Busy)));
            return;
        }
        self.waiting += 1;
        self.crediting.push_back(Crediting { stream, bytes, reply });
        engine.credit.await_by(self.crediting.len());
        self.serve_room(engine);
    }

    fn read(&mut self, stream: StreamId, max: usize, reply: Reply<Result<Read, StreamError>>, engine: &mut Engine) {
        if !self.has_room() {
            drop(reply.send(Err(StreamError::Busy)));
            return;
        }
        self.waiting += 1;
        self.reading.entry(stream).or_default().push_back((max, reply));
        self.serve_reads(stream, engine);
    }

    /// Reads only for those who wait: what nobody asks for stays with QUIC, and its window closed.
    fn serve_reads(&mut self, stream: StreamId, engine: &mut Engine) {
        let Some(line) = self.reading.get_mut(&stream) else { return };
        while let Some((max, _)) = line.front() {
            let read = self.kept.read(stream, *max).unwrap_or_else(|| engine.read(stream, *max));
            if read == Ok(Read::Nothing) {
                return;
            }
            if let Some((_, reply)) = line.pop_front() {
                self.waiting -= 1;
                if let Err(read) = reply.send(read) {
                    self.kept.keep_read(stream, read);
                }
            }
        }
        self.reading.remove(&stream);
    }

    fn end_reading(&mut self, stream: StreamId, why: StreamError) {
        for (_, reply) in self.reading.remove(&stream).unwrap_or_default() {
            self.waiting -= 1;
            drop(reply.send(Err(why)));
        }
    }

    fn open_more(&mut self, engine: &mut Engine) {
        for _ in 0..self.opening.len() {
            let Some((kind, priority, reply)) = self.opening.pop_front() else { return };
            match engine.open(kind, priority) {
                Err(OpenError::Limit) => self.opening.push_back((kind, priority, reply)),
                Ok(stream) => {
                    self.waiting -= 1;
                    hand_out(stream, reply, engine);
                }
                Err(error) => {
                    self.waiting -= 1;
                    drop(reply.send(Err(error)));
                }
            }
        }
    }

    fn accept(&mut self, engine: &mut Engine) {
        let mut kept = VecDeque::new();
        while let Some((kind, reply)) = self.accepting.pop_front() {
            let Some(stream) = self.opened_of(kind).first().copied() else {
                kept.push_back((kind, reply));
                continue;
            };
            self.waiting -= 1;
            // Who asked may be gone: then the stream is for the next.
            if reply.send(Ok(new_stream(stream, engine))).is_ok() {
                self.opened_of(kind).remove(&stream);
            }
        }
        self.accepting = kept;
    }

    fn datagram(&mut self, datagram: Datagram, reply: Option<Reply<Result<(), NotQueued>>>, engine: &mut Engine) {
        let queued =
            if self.sending.is_empty() { engine.send_datagram(datagram) } else { Err(NotQueued::Full(datagram)) };
        match (queued, reply) {
            (Err(NotQueued::Full(datagram)), Some(reply)) if self.has_room() => {
                self.waiting += 1;
                self.sending.push_back((datagram, reply));
            }
            (queued, Some(reply)) => drop(reply.send(queued)),
            (_, None) => {}
        }
    }

    fn give_datagrams(&mut self, engine: &mut Engine) {
        while !self.datagrams.is_empty() {
            let next = || self.kept.datagram().or_else(|| engine.read_datagram());
            let batch: Vec<Bytes> = std::iter::from_fn(next).take(DATAGRAMS).collect();
            if batch.is_empty() {
                return;
            }
            if let Some(reply) = self.datagrams.pop_front() {
                self.waiting -= 1;
                if let Err(batch) = reply.send(batch) {
                    self.kept.keep_datagrams(batch, engine.settings.datagrams_in);
                }
            }
        }
    }

    /// Keeps events from now on; what is so already is news as well.
    fn watch(&mut self, engine: &Engine) {
        if std::mem::replace(&mut self.watched, true) {
            return;
        }
        self.news.add(&Event::Connected);
        for stream in self.opened.iter().flatten() {
            self.news.add(&Event::Opened(*stream));
            self.news.add(&Event::Readable(*stream));
        }
        if let Some(end) = &engine.end {
            self.news.add(&Event::Closed(end.clone()));
        }
    }

    fn give_events(&mut self) {
        if self.news.is_empty() {
            return;
        }
        if let Some(reply) = self.events.take()
            && let Err(events) = reply.send(self.news.take())
        {
            self.news.put_back(events);
        }
    }

    /// The connection has ended: everybody learns it.
    fn end(&mut self) {
        let streams: BTreeSet<StreamId> = self.reading.keys().copied().collect();
        for stream in streams {
            self.end_reading(stream, StreamError::Closed);
        }
        for waiting in self.crediting.drain(..) {
            drop(waiting.reply.send(Err(StreamError::Closed)));
        }
        for (_, _, reply) in self.opening.drain(..) {
            drop(reply.send(Err(OpenError::Closed)));
        }
        for (_, reply) in self.accepting.drain(..) {
            drop(reply.send(Err(OpenError::Closed)));
        }
        for (_, reply) in self.sending.drain(..) {
            drop(reply.send(Err(NotQueued::TooLarge { max: 0 })));
        }
        self.datagrams.clear();
        self.kept = Kept::default();
        self.opened = Default::default();
        self.waiting = 0;
    }
}

fn fits(waiting: &Crediting, engine: &Engine) -> bool {
    engine.send_shared(waiting.stream).is_none_or(|shared: std::sync::Arc<SendShared>| {
        waiting.bytes <= shared.credit.free() && waiting.bytes <= engine.credit.free()
    })
}

/// Gives a stream to whoever asked for one to be opened.
fn hand_out(stream: StreamId, reply: Reply<Result<NewStream, OpenError>>, engine: &mut Engine) {
    if reply.send(Ok(new_stream(stream, engine))).is_err() {
        unwanted(stream, engine);
    }
}

/// Nobody uses a stream that was opened.
fn unwanted(stream: StreamId, engine: &mut Engine) {
    let _known = engine.reset(stream, 0);
    let _known = engine.stop(stream, 0);
}

fn new_stream(stream: StreamId, engine: &mut Engine) -> NewStream {
    NewStream { stream, send: engine.share(stream) }
}
