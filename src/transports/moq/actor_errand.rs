//! What a session fetches of its own peer for a session of somebody else.
//!
//! Objects are read as far as the asker has granted credit, checked, and handed over in pieces; the rest stays with QUIC.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::actor_fetch::CREDIT;
use super::actor_ingest::Incoming;
use super::actor_relay::{ToSession, tell};
use super::actor_session::{Close, MoqSession, READ, of_session};
use super::actor_words::What;
use super::codec_fetch::{FetchDecoder, FetchItem};
use super::codec_subgroup::Piece;
use super::model::{GroupOrder, Location};
use super::model_codes::{RequestCode, ResetCode};
use super::model_message::{Fetch, FetchOk, FetchWhat, Message};
use super::model_names::FullTrackName;
use super::model_params::{Filter, Params, Properties};
use crate::transports::quic::{Door, Read, Session, StreamError, StreamId};

/// What is to be fetched, and for whom.
#[derive(Debug)]
pub(super) struct Errand {
    /// Never used twice in a relay.
    pub(super) number: u64,
    pub(super) door: Door,
    /// The asker's request.
    pub(super) request: u64,
    pub(super) name: FullTrackName,
    pub(super) start: Location,
    pub(super) end: Location,
    pub(super) order: GroupOrder,
}

/// A part of what was fetched.
#[derive(Debug)]
pub(super) enum Part {
    Item(FetchItem),
    Payload(Bytes),
}

/// What came of an errand.
#[derive(Debug)]
pub(super) enum Came {
    /// It was taken up here.
    Begun(Door),
    Refused(RequestCode),
    Ok {
        end: Location,
        properties: Properties,
    },
    Pieces(Vec<Part>),
    End,
    Lost,
}

/// The same, with whose it is.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) errand: u64,
    pub(super) request: u64,
    pub(super) what: Came,
}

impl Errand {
    /// Tells the asker what came of it.
    pub(super) fn say(&self, what: Came) {
        tell(&self.door, ToSession::Fetched(Fetched { errand: self.number, request: self.request, what }));
    }
}

struct Running {
    errand: Errand,
    /// The request stream.
    number: u64,
    stream: Option<StreamId>,
    decoder: FetchDecoder,
    credit: usize,
    over: bool,
}

/// The errands of a session.
#[derive(Default)]
pub(super) struct Errands {
    of: BTreeMap<u64, Running>,
}

impl MoqSession {
    /// Somebody wants something of our peer.
    pub(super) fn errand(&mut self, errand: Errand, session: &mut dyn Session) {
        let Some(door) = session.door() else { return errand.say(Came::Refused(RequestCode::InternalError)) };
        let range = Filter::Range { start: errand.start, end: errand.end };
        let what = FetchWhat::Standalone { track: errand.name.clone(), range };
        let params = Params { group_order: Some(errand.order), ..Params::default() };
        let opened = self.open_request(What::Errand(errand.number), session, |request_id| {
            Message::Fetch(Box::new(Fetch { request_id, what, params }))
        });
        let Ok(number) = opened else { return errand.say(Came::Refused(RequestCode::ExcessiveLoad)) };
        errand.say(Came::Begun(door));
        let decoder = FetchDecoder::new(errand.order, self.draft);
        let of = errand.number;
        self.errands.of.insert(of, Running { errand, number, stream: None, decoder, credit: CREDIT, over: false });
    }

    /// The publisher accepts.
    pub(super) fn fetch_ok(&self, number: u64, ok: FetchOk) -> Result<(), Close> {
        match self.requests.get(&number).map(|request| &request.what) {
            Some(What::Errand(errand)) => {
                if let Some(running) = self.errands.of.get(errand) {
                    running.errand.say(Came::Ok { end: ok.end, properties: ok.properties });
                }
                Ok(())
            }
            Some(What::Over) | None => Ok(()),
            Some(_) => Err(Close::violation("unexpected_message")),
        }
    }

    /// A stream that answers a fetch of ours, by the fetch's number on the wire.
    pub(super) fn fetch_stream(
        &mut self,
        stream: StreamId,
        request: u64,
        rest: Bytes,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let found = self.requests.values().find(|of| of.ours && of.id == request);
        let Some(What::Errand(errand)) = found.map(|request| &request.what) else {
            // One that was given up.
            let _over = session.stop(stream, ResetCode::Cancelled.number(self.draft));
            return Ok(());
        };
        let errand = *errand;
        let Some(running) = self.errands.of.get_mut(&errand) else { return Ok(()) };
        if running.stream.replace(stream).is_some() {
            return Err(Close::violation("second_fetch_stream"));
        }
        self.incoming.insert(stream, Incoming::Errand(errand));
        if rest.is_empty() { Ok(()) } else { self.errand_came(errand, rest) }
    }

    fn errand_came(&mut self, errand: u64, mut bytes: Bytes) -> Result<(), Close> {
        let Some(running) = self.errands.of.get_mut(&errand) else { return Ok(()) };
        running.credit = running.credit.saturating_sub(bytes.len());
        let mut parts = Vec::new();
        loop {
            match running.decoder.decode(&mut bytes) {
                Ok(Some(Piece::Head(item))) => parts.push(Part::Item(item)),
                Ok(Some(Piece::Payload { bytes, .. })) => parts.push(Part::Payload(bytes)),
                Ok(None) => break,
                Err(mistake) => {
                    running.errand.say(Came::Lost);
                    running.over = true;
                    return match mistake.ends() {
                        super::codec::Ends::Session(_) => Err(of_session(mistake)),
                        super::codec::Ends::Request(_) | super::codec::Ends::Stream(_) | super::codec::Ends::Track => {
                            Ok(())
                        }
                    };
                }
            }
        }
        if !parts.is_empty() {
            running.errand.say(Came::Pieces(parts));
        }
        Ok(())
    }

    /// Reads of it as far as there is credit.
    pub(super) fn read_errand(
        &mut self,
        stream: StreamId,
        errand: u64,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        loop {
            let credit = self.errands.of.get(&errand).filter(|running| !running.over).map(|running| running.credit);
            let Some(credit) = credit else {
                self.incoming.remove(&stream);
                let _over = session.stop(stream, ResetCode::Cancelled.number(self.draft));
                return Ok(());
            };
            if credit == 0 {
                return Ok(());
            }
            match session.read(stream, credit.min(READ)) {
                Ok(Read::Data(bytes)) => self.errand_came(errand, bytes)?,
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::End) => {
                    self.errand_done(stream, errand, None, session);
                    return Ok(());
                }
                Err(StreamError::Reset(code)) => {
                    self.errand_done(stream, errand, Some(code), session);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }

    fn errand_done(&mut self, stream: StreamId, errand: u64, code: Option<u64>, session: &mut dyn Session) {
        self.incoming.remove(&stream);
        let number = self.errands.of.get(&errand).map(|running| running.number);
        self.errand_ended(errand, code);
        if let Some(number) = number {
            self.is_over(number, session);
        }
    }

    /// The asker takes more.
    pub(super) fn errand_more(&mut self, errand: u64, bytes: usize, session: &mut dyn Session) -> Result<(), Close> {
        let Some(running) = self.errands.of.get_mut(&errand) else { return Ok(()) };
        running.credit += bytes;
        match running.stream {
            Some(stream) => self.read_errand(stream, errand, session),
            None => Ok(()),
        }
    }

    /// The asker wants no more.
    pub(super) fn errand_over(&mut self, errand: u64, session: &mut dyn Session) {
        let Some(running) = self.errands.of.get_mut(&errand) else { return };
        running.over = true;
        let (number, stream) = (running.number, running.stream);
        if let Some(stream) = stream.filter(|stream| self.incoming.remove(stream).is_some()) {
            let _over = session.stop(stream, ResetCode::Cancelled.number(self.draft));
        }
        self.end_request(number, ResetCode::Cancelled, session);
    }

    /// The publisher refuses.
    pub(super) fn errand_refused(&mut self, errand: u64, code: RequestCode) {
        if let Some(running) = self.errands.of.get_mut(&errand) {
            running.over = true;
            running.errand.say(Came::Refused(code));
        }
    }

    /// Its stream has ended, with a code if it was given up.
    pub(super) fn errand_ended(&mut self, errand: u64, code: Option<u64>) {
        let Some(running) = self.errands.of.remove(&errand) else { return };
        if running.over {
            return;
        }
        let whole = code.is_none() && running.decoder.finish().is_ok();
        running.errand.say(if whole { Came::End } else { Came::Lost });
    }

    /// The session ends: of none of them anything more will come.
    pub(super) fn errands_are_lost(&mut self) {
        for running in std::mem::take(&mut self.errands.of).into_values().filter(|running| !running.over) {
            running.errand.say(Came::Lost);
        }
    }

    /// Its request is over. What was opened goes on; without a stream nothing will come.
    pub(super) fn errand_is_over(&mut self, errand: u64) {
        let Some(running) = self.errands.of.get(&errand) else { return };
        if running.over || running.stream.is_none() {
            let over = running.over;
            if let Some(running) = self.errands.of.remove(&errand).filter(|_| !over) {
                running.errand.say(Came::Lost);
            }
        }
    }
}
