//! A session of WebTransport as its application sees it: the session of the connection under it, with the number of the
//! session before each stream and datagram, and with codes translated.

use std::time::Instant;

use bytes::Bytes;

use super::codec::{datagram, datagram_header, datagram_of, from_http3, opening, to_http3};
use super::state::Belongings;
use crate::transports::http3::codec::{frame, stream as kind};
use crate::transports::quic::{
    Application, Datagram, Door, Duplex, Event, Info, NotQueued, OpenError, Priority, Read, Role, Session, StreamError,
    StreamId, StreamKind,
};

/// A session that runs.
pub(crate) struct Running {
    pub(crate) all: Belongings,
    /// The protocol inside it that was agreed on.
    pub(crate) protocol: Bytes,
    pub(crate) application: Option<Box<dyn Application>>,
    /// What the application closed it with.
    pub(crate) close: Option<(u32, String)>,
    /// A datagram that names no session has come: the connection ends.
    pub(crate) malformed: bool,
    /// Datagrams that belong to nobody.
    pub(crate) strays: u64,
}

impl Running {
    pub(crate) fn new(id: u64, protocol: Bytes, application: Box<dyn Application>) -> Self {
        let all = Belongings::new(id);
        Self { all, protocol, application: Some(application), close: None, malformed: false, strays: 0 }
    }

    /// Has the application do something.
    pub(crate) fn with<T>(
        &mut self,
        quic: &mut dyn Session,
        act: impl FnOnce(&mut dyn Application, &mut dyn Session) -> T,
    ) -> Option<T> {
        let mut application = self.application.take()?;
        let done = act(&mut *application, &mut Over { quic, session: self });
        self.application = Some(application);
        Some(done)
    }

    /// Tells the application what has happened, in its words.
    pub(crate) fn tell(&mut self, event: Event, quic: &mut dyn Session) {
        let (mut read, mut written) = (None, None);
        let mut event = event;
        if let Event::Reset(stream, code) = &mut event {
            *code = from_http3(*code);
            read = Some(stream.0);
        } else if let Event::Stopped(stream, code) = &mut event {
            *code = from_http3(*code);
            written = Some(stream.0);
        } else if let Event::Finished(stream) = &event {
            read = Some(stream.0);
        } else if let Event::Expired(stream) = &event {
            written = Some(stream.0);
        }
        self.with(quic, |application, session| application.on(event, session));
        if let Some(stream) = read {
            self.all.read(stream);
        }
        if let Some(stream) = written {
            self.all.written(stream);
        }
    }
}

/// What an application has of it in a turn.
pub(crate) struct Over<'a> {
    quic: &'a mut dyn Session,
    session: &'a mut Running,
}

impl Over<'_> {
    /// Writes what a stream begins with, if it was not.
    fn begin(&mut self, stream: StreamId) -> Result<(), StreamError> {
        if let Some(header) = self.session.all.header(stream.0) {
            self.quic.write(stream, header)?;
            self.session.all.began(stream.0);
        }
        Ok(())
    }

    fn known(&self, stream: StreamId) -> Result<(), StreamError> {
        if self.session.close.is_some() {
            return Err(StreamError::Closed);
        }
        if self.session.all.has(stream.0) { Ok(()) } else { Err(StreamError::Unknown) }
    }
}

/// An error in the words of the session.
const fn meant(error: StreamError) -> StreamError {
    if let StreamError::Reset(code) = error {
        return StreamError::Reset(from_http3(code));
    }
    if let StreamError::Stopped(code) = error {
        return StreamError::Stopped(from_http3(code));
    }
    error
}

impl Session for Over<'_> {
    fn role(&self) -> Role {
        self.quic.role()
    }

    fn now(&self) -> Instant {
        self.quic.now()
    }

    fn alpn(&self) -> &[u8] {
        &self.session.protocol
    }

    fn info(&self) -> Info {
        Info { alpn: self.session.protocol.clone(), ..self.quic.info() }
    }

    fn open(&mut self, way: StreamKind, priority: Priority) -> Result<StreamId, OpenError> {
        if self.session.close.is_some() {
            return Err(OpenError::Closed);
        }
        let stream = self.quic.open(way, priority)?;
        let word = match way {
            StreamKind::Bidirectional => frame::WEBTRANSPORT,
            StreamKind::Unidirectional => kind::WEBTRANSPORT,
        };
        self.session.all.opened(stream.0, opening(word, self.session.all.id()));
        // Without credit now it goes with the first write.
        let _later = self.begin(stream);
        Ok(stream)
    }

    fn room(&self, stream: StreamId) -> usize {
        self.known(stream).map_or(0, |()| self.quic.room(stream))
    }

    fn want_room(&mut self, stream: StreamId) {
        if self.known(stream).is_ok() {
            self.quic.want_room(stream);
        }
    }

    fn write(&mut self, stream: StreamId, bytes: Bytes) -> Result<(), StreamError> {
        self.known(stream)?;
        self.begin(stream).and_then(|()| self.quic.write(stream, bytes)).map_err(meant)
    }

    fn finish(&mut self, stream: StreamId) -> Result<(), StreamError> {
        self.known(stream)?;
        self.begin(stream).and_then(|()| self.quic.finish(stream)).map_err(meant)?;
        self.session.all.written(stream.0);
        Ok(())
    }

    fn reset(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError> {
        self.known(stream)?;
        self.session.all.written(stream.0);
        self.quic.reset(stream, to_http3(code)).map_err(meant)
    }

    fn read(&mut self, stream: StreamId, max: usize) -> Result<Read, StreamError> {
        self.known(stream)?;
        match self.session.all.ahead(stream.0, max.max(1)) {
            Some(bytes) => Ok(Read::Data(bytes)),
            None => self.quic.read(stream, max).map_err(meant),
        }
    }

    fn stop(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError> {
        self.known(stream)?;
        self.session.all.read(stream.0);
        self.quic.stop(stream, to_http3(code)).map_err(meant)
    }

    fn hand_over(&mut self, stream: StreamId) -> Option<Duplex> {
        self.known(stream).ok()?;
        let given = self.quic.hand_over(stream)?;
        let ahead = self.session.all.ahead(stream.0, usize::MAX).unwrap_or_default();
        Some(given.inside(ahead, to_http3))
    }

    fn is_open(&self, stream: StreamId) -> bool {
        self.known(stream).is_ok() && self.quic.is_open(stream)
    }

    fn prioritise(&mut self, stream: StreamId, priority: Priority) {
        if self.known(stream).is_ok() {
            self.quic.prioritise(stream, priority);
        }
    }

    fn expire(&mut self, stream: StreamId, at: Option<Instant>, code: u64) {
        if self.known(stream).is_ok() {
            self.quic.expire(stream, at, to_http3(code));
        }
    }

    fn send_datagram(&mut self, what: Datagram) -> Result<(), NotQueued> {
        let id = self.session.all.id();
        let before = datagram_header(id);
        let framed = Datagram { bytes: datagram(id, &what.bytes), ..what };
        self.quic.send_datagram(framed).map_err(|error| match error {
            NotQueued::TooLarge { max } => NotQueued::TooLarge { max: max.saturating_sub(before) },
            NotQueued::Full(back) => NotQueued::Full(Datagram { bytes: back.bytes.slice(before..), ..back }),
            NotQueued::Dropped => NotQueued::Dropped,
        })
    }

    fn max_datagram(&self) -> Option<usize> {
        self.quic.max_datagram().and_then(|max| max.checked_sub(datagram_header(self.session.all.id())))
    }

    fn read_datagram(&mut self) -> Option<Bytes> {
        loop {
            let mut bytes = self.quic.read_datagram()?;
            match datagram_of(&mut bytes) {
                Some(of) if of == self.session.all.id() => return Some(bytes),
                Some(_) => self.session.strays += 1,
                None => self.session.malformed = true,
            }
        }
    }

    fn is_delivering(&mut self) -> bool {
        self.quic.is_delivering()
    }

    fn queued(&self) -> usize {
        self.quic.queued()
    }

    fn door(&self) -> Option<Door> {
        self.quic.door()
    }

    fn close(&mut self, code: u64, text: &str) {
        let code = u32::try_from(code).unwrap_or(u32::MAX);
        self.session.close.get_or_insert_with(|| (code, text.to_owned()));
    }
}
