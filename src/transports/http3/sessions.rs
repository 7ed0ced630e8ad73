//! Sessions of WebTransport on a connection of HTTP/3: who gets one, which streams and datagrams are its, and its end.
//!
//! One lives at a time. A second CONNECT is refused while the first lives, with the code the draft has for it. Streams
//! that come before their session wait, at most sixteen, with what was read of them.

use std::any::Any;
use std::task::Context;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::HeaderValue;
use http::{HeaderMap, Request, StatusCode};

use super::actor::{Http3, Stage};
use super::answer::Service;
use super::codec::Code;
use super::codec_fields::ConnectProtocol;
use super::stream::Last;
use crate::transports::quic::{Application, Code as Why, End, Event, Session, StreamId, Who};
use crate::transports::webtransport::Running;
use crate::transports::webtransport::codec::{Capsule, protocol};
use crate::transports::webtransport::state::{Ending, Said};

/// What a session is called in a CONNECT, by its drafts up to 14 and from 15 on.
const TOKENS: [&[u8]; 2] = [b"webtransport", b"webtransport-h3"];
/// Streams that may wait for their session.
const EARLY: usize = 16;

/// What runs in a session.
pub struct Accepted {
    /// The application.
    pub application: Box<dyn Application>,
    /// The protocol inside it, one of those that were offered.
    pub protocol: Option<String>,
    /// Dropped when the session has ended.
    pub place: Box<dyn Any>,
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl<S: Service> Http3<S> {
    /// An extended CONNECT.
    pub(super) fn connect(&mut self, id: u64, request: &Request<()>, session: &mut dyn Session) -> Result<(), Code> {
        let token = request.extensions().get::<ConnectProtocol>();
        let known = token.is_some_and(|token| TOKENS.contains(&&*token.0));
        let accepted = if !known || !self.limits.sessions {
            // RFC 9220, section 3.
            Err(StatusCode::NOT_IMPLEMENTED)
        } else if self.wt.is_some() {
            self.service.refused("second_session");
            self.refuse(id, Code::RequestRejected, session);
            return Ok(());
        } else {
            self.service.session(request)
        };
        let Some(open) = self.requests.get_mut(&id) else { return Ok(()) };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(status) => {
                open.stage = Stage::Answering;
                open.stream.put_head(status, &HeaderMap::new());
                open.stream.ends(Last::Finish);
                return Ok(());
            }
        };
        open.stage = Stage::Session;
        let mut fields = HeaderMap::new();
        // Of draft 2, for those who say that they speak it.
        if request.headers().contains_key("sec-webtransport-http3-draft02") {
            fields.insert("sec-webtransport-http3-draft", HeaderValue::from_static("draft02"));
        }
        if let Some(Ok(name)) = accepted.protocol.as_deref().map(|name| HeaderValue::try_from(protocol(name))) {
            fields.insert("wt-protocol", name);
        }
        open.stream.put_head(StatusCode::OK, &fields);
        let inside = Bytes::from(accepted.protocol.unwrap_or_default());
        let mut running = Running::new(id, inside, accepted.application);
        running.tell(Event::Connected, session);
        self.wt = Some((running, accepted.place));
        for (of, stream, ahead) in std::mem::take(&mut self.early) {
            self.adopt(of, stream, ahead, session)?;
        }
        self.look_after(session)
    }

    /// A stream says that it belongs to the session whose CONNECT came on stream `of`; `ahead` was read of it.
    pub(super) fn adopt(
        &mut self,
        of: u64,
        stream: StreamId,
        ahead: Bytes,
        session: &mut dyn Session,
    ) -> Result<(), Code> {
        // WebTransport over HTTP/3, section 4: it must be one that can carry a request.
        if !of.is_multiple_of(4) {
            return Err(Code::IdError);
        }
        match &mut self.wt {
            Some((running, _)) if running.all.id() == of => {
                running.all.came(stream.0, ahead);
                running.all.look_through(|stream| session.is_open(StreamId(stream)));
                running.tell(Event::Opened(stream), session);
                running.tell(Event::Readable(stream), session);
                self.look_after(session)
            }
            None if self.limits.sessions && self.early.len() < EARLY && !self.state.is_going() => {
                self.early.push((of, stream, ahead));
                Ok(())
            }
            Some(_) | None => {
                self.service.refused("no_session");
                let code = Code::WebTransportBufferedStreamRejected.number();
                // One of them fails for a stream in one direction.
                let (_over, _too) = (session.stop(stream, code), session.reset(stream, code));
                Ok(())
            }
        }
    }

    /// Takes what has happened to the session, and gives back what has not.
    pub(super) fn of_session(&mut self, event: Event, session: &mut dyn Session) -> Result<Option<Event>, Code> {
        let Some((running, _)) = &mut self.wt else { return Ok(Some(event)) };
        let its = match &event {
            Event::Readable(stream)
            | Event::Writable(stream)
            | Event::Finished(stream)
            | Event::Reset(stream, _)
            | Event::Stopped(stream, _)
            | Event::Expired(stream) => running.all.has(stream.0),
            Event::Datagrams => true,
            Event::Openable(_) | Event::PathChanged { .. } | Event::Closed(_) => {
                running.tell(event.clone(), session);
                false
            }
            Event::Connected | Event::Opened(_) | Event::Missed(_) => false,
        };
        if !its {
            return Ok(Some(event));
        }
        running.tell(event, session);
        self.look_after(session)?;
        Ok(None)
    }

    /// What the application has left to be done.
    fn look_after(&mut self, session: &mut dyn Session) -> Result<(), Code> {
        let Some((running, _)) = &mut self.wt else { return Ok(()) };
        for _ in 0..std::mem::take(&mut running.strays) {
            self.service.refused("datagram_of_nobody");
        }
        if running.malformed {
            return Err(Code::DatagramError);
        }
        let Some((code, text)) = running.close.take() else { return Ok(()) };
        let mut capsule = BytesMut::new();
        Capsule::Close { code, text: text.clone() }.encode(&mut capsule);
        let end = End { who: Who::Local, code: Why::Application(u64::from(code)), text: text.into(), reason: "closed" };
        self.session_ends(end, Some(capsule.freeze()), session);
        Ok(())
    }

    /// The session is over: its streams are given up, its application is told, the stream of its CONNECT is finished.
    fn session_ends(&mut self, end: End, last: Option<Bytes>, session: &mut dyn Session) {
        let Some((mut running, place)) = self.wt.take() else { return };
        if let Some(open) = self.requests.get_mut(&running.all.id()) {
            if let Some(last) = last {
                open.stream.put_data(last);
            }
            open.stream.ends(Last::Finish);
            open.stage = Stage::Answering;
        }
        for stream in running.all.take() {
            let code = Code::WebTransportSessionGone.number();
            let stream = StreamId(stream);
            let (_over, _too) = (session.stop(stream, code), session.reset(stream, code));
        }
        running.tell(Event::Closed(end), session);
        drop(place);
    }

    /// Content of a CONNECT.
    pub(super) fn capsules(&mut self, id: u64, mut bytes: Bytes, session: &mut dyn Session) -> Result<(), Code> {
        while let Some((running, _)) = self.wt.as_mut().filter(|(running, _)| running.all.id() == id) {
            match running.all.feed(&mut bytes) {
                Ok(None) => break,
                // What the application opens from now on is its own affair: a session has no other word for it.
                Ok(Some(Said::Drain)) => {}
                Ok(Some(Said::End(ending))) => self.session_ends(by_peer(ending), None, session),
                Err(_) => {
                    self.service.refused("capsule");
                    self.refuse(id, Code::DatagramError, session);
                }
            }
        }
        Ok(())
    }

    /// The peer has finished a stream.
    pub(super) fn connect_ended(&mut self, id: u64, session: &mut dyn Session) {
        if let Some((running, _)) = self.wt.as_ref().filter(|(running, _)| running.all.id() == id) {
            let end = by_peer(running.all.ended());
            self.session_ends(end, None, session);
        }
    }

    /// A stream was given up.
    pub(super) fn connect_lost(&mut self, id: u64, session: &mut dyn Session) {
        if self.wt.as_ref().is_some_and(|(running, _)| running.all.id() == id) {
            self.session_ends(by_peer(Ending::Reset), None, session);
        }
    }

    pub(super) fn poll_session(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        let Some((running, _)) = &mut self.wt else { return false };
        let more = running.with(session, |application, session| application.poll(cx, session));
        if let Err(code) = self.look_after(session) {
            self.fail(code, session);
        }
        more.unwrap_or(false)
    }

    pub(super) fn drain_session(&mut self, by: Instant, session: &mut dyn Session) {
        let Some((running, _)) = &mut self.wt else { return };
        if let Some(open) = self.requests.get(&running.all.id()) {
            let mut capsule = BytesMut::new();
            Capsule::Drain.encode(&mut capsule);
            open.stream.put_data(capsule.freeze());
        }
        running.with(session, |application, session| application.drain(by, session));
    }
}

fn by_peer(ending: Ending) -> End {
    let (code, text, reason) = match ending {
        Ending::Closed { code, text } => (Why::Application(u64::from(code)), text, "peer_closed"),
        Ending::Reset => (Why::None, String::new(), "reset"),
    };
    End { who: Who::Peer, code, text: text.into(), reason }
}
