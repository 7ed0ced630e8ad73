//! What a server decides about a connection of HTTP/3: its critical streams, settings, GOAWAY, priorities, and how much
//! of what costs something a client may do (RFC 9114, sections 5 to 7; RFC 9218; RFC 9297).
//!
//! Knows streams by their numbers and holds no content. The bytes of streams in one direction come in; what concerns
//! requests comes out. An error ends the connection with its code.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};

use super::codec::{Code, FRAME_HEADER, MAX_SETTINGS, Settings, frame, stream, take_varint};
use super::codec_priority::Wanted;
use super::codec_qpack::{FromDecoder, FromEncoder};

/// Requests given up by the client before they were answered, beyond those that were answered (rapid reset).
const GIVEN_UP: u32 = 100;
/// Bytes of frames on the control stream that mean nothing, and priority updates, each with a share of it.
const CONTROL: u64 = 64 << 10;
/// Bytes a frame on the control stream counts beside its content.
const FRAME: u64 = 16;
/// Priorities that came before their requests, at most; one more is passed over.
const EARLY: usize = 128;

/// What is inside a stream in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// Its type has not come in full.
    Unknown,
    /// The peer's control stream, or one of QPACK.
    Critical,
    /// It belongs to the session whose CONNECT came on this stream; the rest is its content.
    Session(u64),
    /// Nothing that is of use: the rest is not to be read.
    Nothing,
}

/// News from the control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// What the peer takes.
    Settings(Settings),
    /// Another priority for the answer to the request on this stream.
    Priority(u64, Wanted),
}

#[derive(Debug)]
enum Kind {
    Unknown,
    /// The rest names a session, which has not come in full.
    Session,
    Control,
    Encoder(FromEncoder),
    Decoder(FromDecoder),
}

#[derive(Debug)]
struct OneWay {
    kind: Kind,
    partial: BytesMut,
    /// Content of a frame that is passed over.
    skip: u64,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Connection {
    streams: BTreeMap<u64, OneWay>,
    settings: Option<Settings>,
    has: [bool; 3],
    max_push: Option<u64>,
    goaway: Option<u64>,
    /// The number of the next request, were it the next in order.
    next: u64,
    /// What the client was told is the first request that is not taken.
    refused_from: Option<u64>,
    given_up: u32,
    control: u64,
    early: BTreeMap<u64, Wanted>,
    sessions: bool,
}

impl Connection {
    /// A connection on which nothing has come. `sessions`: whether streams may belong to sessions of WebTransport.
    #[must_use]
    pub const fn new(sessions: bool) -> Self {
        Self {
            streams: BTreeMap::new(),
            settings: None,
            has: [false; 3],
            max_push: None,
            goaway: None,
            next: 0,
            refused_from: None,
            given_up: 0,
            control: 0,
            early: BTreeMap::new(),
            sessions,
        }
    }

    /// What the peer takes, once it has said so.
    #[must_use]
    pub const fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// The peer opened a stream in one direction.
    pub fn opened(&mut self, id: u64) {
        self.streams.insert(id, OneWay { kind: Kind::Unknown, partial: BytesMut::new(), skip: 0 });
    }

    /// Bytes came on a stream in one direction. What is left of them belongs to a session.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub fn came(&mut self, id: u64, bytes: &mut Bytes, news: &mut Vec<News>) -> Result<Inside, Code> {
        let Some(mut one) = self.streams.remove(&id) else { return Ok(Inside::Nothing) };
        let inside = self.look(&mut one, bytes, news)?;
        if matches!(inside, Inside::Unknown | Inside::Critical) {
            self.streams.insert(id, one);
        }
        Ok(inside)
    }

    fn look(&mut self, one: &mut OneWay, bytes: &mut Bytes, news: &mut Vec<News>) -> Result<Inside, Code> {
        loop {
            match &mut one.kind {
                Kind::Unknown | Kind::Session => {
                    let Some(number) = number(&mut one.partial, bytes) else { return Ok(Inside::Unknown) };
                    if matches!(one.kind, Kind::Session) {
                        return Ok(Inside::Session(number));
                    }
                    let slot = match number {
                        stream::CONTROL => (0, Kind::Control),
                        stream::ENCODER => (1, Kind::Encoder(FromEncoder::default())),
                        stream::DECODER => (2, Kind::Decoder(FromDecoder::default())),
                        stream::WEBTRANSPORT if self.sessions => {
                            one.kind = Kind::Session;
                            continue;
                        }
                        // RFC 9114, section 6.2.2: only servers push.
                        stream::PUSH => return Err(Code::StreamCreationError),
                        _ => return Ok(Inside::Nothing),
                    };
                    // One of each (RFC 9114, section 6.2.1; RFC 9204, section 4.2).
                    let has = self.has.get_mut(slot.0).ok_or(Code::InternalError)?;
                    if std::mem::replace(has, true) {
                        return Err(Code::StreamCreationError);
                    }
                    one.kind = slot.1;
                }
                Kind::Encoder(encoder) => {
                    encoder.feed(&bytes.split_off(0))?;
                    return Ok(Inside::Critical);
                }
                Kind::Decoder(decoder) => {
                    decoder.feed(&bytes.split_off(0))?;
                    return Ok(Inside::Critical);
                }
                Kind::Control => {
                    while self.frame(one, bytes, news)? {}
                    return Ok(Inside::Critical);
                }
            }
        }
    }

    /// The next frame of the control stream. False if it has not come in full.
    fn frame(&mut self, one: &mut OneWay, bytes: &mut Bytes, news: &mut Vec<News>) -> Result<bool, Code> {
        if one.skip > 0 {
            let count = usize::try_from(one.skip).unwrap_or(usize::MAX).min(bytes.len());
            bytes.advance(count);
            one.skip -= count as u64;
            if one.skip > 0 {
                return Ok(false);
            }
        }
        // A frame that is read is kept until it is whole; it is short.
        let room = (MAX_SETTINGS + FRAME_HEADER).saturating_sub(one.partial.len());
        one.partial.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
        let mut rest = &one.partial[..];
        let (Some(kind), Some(length)) = (take_varint(&mut rest), take_varint(&mut rest)) else { return Ok(false) };
        let header = one.partial.len() - rest.len();
        // RFC 9114, section 6.2.1.
        if self.settings.is_none() && kind != frame::SETTINGS {
            return Err(Code::MissingSettings);
        }
        let known = match kind {
            frame::SETTINGS if self.settings.is_some() => return Err(Code::FrameUnexpected),
            frame::SETTINGS | frame::GOAWAY | frame::MAX_PUSH_ID | frame::CANCEL_PUSH | frame::PRIORITY_UPDATE => true,
            frame::DATA | frame::HEADERS | frame::PUSH_PROMISE => return Err(Code::FrameUnexpected),
            // RFC 9218, section 7.2: there are no pushes.
            frame::PRIORITY_UPDATE_PUSH => return Err(Code::IdError),
            kind if frame::is_of_http2(kind) => return Err(Code::FrameUnexpected),
            _ => false,
        };
        if kind != frame::SETTINGS {
            self.control = self.control.saturating_add(length.saturating_add(FRAME));
            if self.control > CONTROL {
                return Err(Code::ExcessiveLoad);
            }
        }
        if !known {
            one.skip = length.saturating_sub(rest.len() as u64);
            let here = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            one.partial.advance(header + here);
            return Ok(one.skip == 0 || !bytes.is_empty());
        }
        let length = usize::try_from(length).ok().filter(|l| *l <= MAX_SETTINGS).ok_or(Code::ExcessiveLoad)?;
        let Some(body) = rest.get(..length) else {
            // It is counted when it is whole.
            if kind != frame::SETTINGS {
                self.control = self.control.saturating_sub(length as u64 + FRAME);
            }
            return Ok(false);
        };
        let body = body.to_vec();
        one.partial.advance(header + length);
        self.known(kind, &body, news)?;
        Ok(true)
    }

    fn known(&mut self, kind: u64, mut body: &[u8], news: &mut Vec<News>) -> Result<(), Code> {
        if kind == frame::SETTINGS {
            let settings = Settings::decode(body)?;
            self.settings = Some(settings);
            news.push(News::Settings(settings));
            return Ok(());
        }
        let number = take_varint(&mut body).ok_or(Code::FrameError)?;
        if kind == frame::PRIORITY_UPDATE {
            // RFC 9218, section 7.2: of a request, and of one that may come.
            if number % 4 != 0 {
                return Err(Code::IdError);
            }
            let wanted = Wanted::parse(body);
            if number >= self.next {
                if self.early.len() < EARLY || self.early.contains_key(&number) {
                    self.early.insert(number, wanted);
                }
            } else {
                news.push(News::Priority(number, wanted));
            }
            return Ok(());
        }
        if !body.is_empty() {
            return Err(Code::FrameError);
        }
        match kind {
            // RFC 9114, section 5.2: of a client it names a push, and never grows.
            frame::GOAWAY => {
                if self.goaway.is_some_and(|before| number > before) {
                    return Err(Code::IdError);
                }
                self.goaway = Some(number);
            }
            // RFC 9114, section 7.2.7: never shrinks.
            frame::MAX_PUSH_ID => {
                if self.max_push.is_some_and(|before| number < before) {
                    return Err(Code::IdError);
                }
                self.max_push = Some(number);
            }
            // RFC 9114, section 7.2.3: none was promised.
            _ => return Err(Code::IdError),
        }
        Ok(())
    }

    /// A stream in one direction has ended, or was reset.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub fn ended(&mut self, id: u64) -> Result<(), Code> {
        match self.streams.remove(&id).map(|one| one.kind) {
            Some(Kind::Control | Kind::Encoder(_) | Kind::Decoder(_)) => Err(Code::ClosedCriticalStream),
            Some(Kind::Unknown | Kind::Session) | None => Ok(()),
        }
    }

    /// A request has come on this stream: its priority, or `None` if it is not taken any more.
    pub fn request(&mut self, id: u64, field: Option<&[u8]>) -> Option<Wanted> {
        if self.refused_from.is_some_and(|from| id >= from) {
            return None;
        }
        self.next = self.next.max(id.saturating_add(4));
        // An update that came before counts for more than the field (RFC 9218, section 7).
        let early = self.early.remove(&id);
        Some(early.or_else(|| field.map(Wanted::parse)).unwrap_or_default())
    }

    /// No more requests: which is the first that is not taken, to be said once.
    pub fn go_away(&mut self) -> Option<u64> {
        if self.refused_from.is_some() {
            return None;
        }
        self.refused_from = Some(self.next);
        Some(self.next)
    }

    /// Whether no more requests are taken.
    #[must_use]
    pub const fn is_going(&self) -> bool {
        self.refused_from.is_some()
    }

    /// A request was answered whole.
    pub const fn answered(&mut self) {
        self.given_up = self.given_up.saturating_sub(1);
    }

    /// The client gave a request up before it was answered.
    ///
    /// # Errors
    /// It does nothing else.
    pub fn given_up(&mut self) -> Result<(), Code> {
        self.given_up += 1;
        if self.given_up > GIVEN_UP { Err(Code::ExcessiveLoad) } else { Ok(()) }
    }
}

/// A number at the beginning of a stream, which may come in pieces.
fn number(partial: &mut BytesMut, bytes: &mut Bytes) -> Option<u64> {
    loop {
        let mut read = &partial[..];
        if let Some(number) = take_varint(&mut read) {
            partial.clear();
            return Some(number);
        }
        if bytes.is_empty() {
            return None;
        }
        partial.extend_from_slice(&bytes.split_to(1));
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
