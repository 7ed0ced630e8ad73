//! The built-in echo: what comes on a stream goes back on it, what comes on a unidirectional one goes back on a new
//! one, and datagrams go back as they are.
//!
//! It reads only what it may write, so a peer that sends and does not read is held back by flow control.

use std::collections::BTreeMap;

use super::session::{Application, Event, OpenError, Read, Session, StreamError, StreamId, StreamKind};
use super::state_datagrams::Datagram;
use super::state_streams::Priority;

/// Bytes moved at once.
const PIECE: usize = 64 << 10;

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Echo {
    /// Streams of one direction, and where they go back.
    answers: BTreeMap<StreamId, StreamId>,
    /// The same the other way.
    sources: BTreeMap<StreamId, StreamId>,
    /// Streams that wait for one to go back on.
    waiting: Vec<StreamId>,
}

impl Echo {
    fn answer_to(&mut self, stream: StreamId, session: &mut dyn Session) -> Option<StreamId> {
        if stream.kind() == StreamKind::Bidirectional {
            return Some(stream);
        }
        if let Some(answer) = self.answers.get(&stream) {
            return Some(*answer);
        }
        match session.open(StreamKind::Unidirectional, Priority::default()) {
            Ok(answer) => {
                self.answers.insert(stream, answer);
                self.sources.insert(answer, stream);
                Some(answer)
            }
            Err(OpenError::Limit) => {
                if !self.waiting.contains(&stream) {
                    self.waiting.push(stream);
                }
                None
            }
            Err(_) => None,
        }
    }

    fn pump(&mut self, stream: StreamId, session: &mut dyn Session) {
        let Some(answer) = self.answer_to(stream, session) else { return };
        loop {
            let room = session.room(answer).min(PIECE);
            if room == 0 {
                session.want_room(answer);
                return;
            }
            match session.read(stream, room) {
                Ok(Read::Data(bytes)) => {
                    if session.write(answer, bytes).is_err() {
                        // The peer wants no answer: it need not send the rest.
                        let _over = session.stop(stream, 0);
                        return;
                    }
                }
                Ok(Read::Nothing) => return,
                Ok(Read::End) => {
                    let _stopped = session.finish(answer);
                    self.forget(stream);
                    return;
                }
                Err(StreamError::Reset(code)) => {
                    let _stopped = session.reset(answer, code);
                    self.forget(stream);
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn forget(&mut self, stream: StreamId) {
        if let Some(answer) = self.answers.remove(&stream) {
            self.sources.remove(&answer);
        }
        self.waiting.retain(|waiting| *waiting != stream);
    }
}

impl Application for Echo {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        match event {
            Event::Readable(stream) => self.pump(stream, session),
            Event::Writable(answer) => {
                let stream = self.sources.get(&answer).copied().unwrap_or(answer);
                self.pump(stream, session);
            }
            Event::Stopped(answer, code) => {
                let stream = self.sources.get(&answer).copied().unwrap_or(answer);
                let _over = session.stop(stream, code);
                self.forget(stream);
            }
            Event::Openable(_) => {
                for stream in std::mem::take(&mut self.waiting) {
                    self.pump(stream, session);
                }
            }
            Event::Datagrams => {
                while let Some(bytes) = session.read_datagram() {
                    // What finds no room is dropped and counted, as the network would.
                    let _dropped = session.send_datagram(Datagram::new(bytes));
                }
            }
            Event::Connected
            | Event::Opened(_)
            | Event::Finished(_)
            | Event::Reset(..)
            | Event::Expired(_)
            | Event::PathChanged { .. }
            | Event::Missed(_)
            | Event::Closed(_) => {}
        }
    }
}
