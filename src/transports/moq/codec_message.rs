//! Control messages in bytes (section 10): a type, a length of two bytes, and as many bytes of fields.
//!
//! [`MessageDecoder`] reads the messages of one stream as its bytes arrive; [`put_message`] writes one. Which message may
//! come when, and on which stream, is for others to judge: here only its own bytes count. A session keeps a decoder for
//! each of its streams; one holds at most the message that is arriving.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::codec::{Gather, MAX_MESSAGE, Mistake, Reader, Stop, Unsayable, put_varint};
use super::codec_name::{
    put_name, put_namespace, put_reason, put_track, put_uri, read_name, read_namespace, read_reason, read_track,
    read_uri,
};
use super::codec_params::{Place, millis, misplaced, put_params, read_params};
use super::codec_setup::{put_setup, read_setup};
use super::model::{Draft, Location};
use super::model_codes::{DoneCode, RequestCode};
use super::model_message::{
    Fetch, FetchOk, FetchWhat, Goaway, Message, NamespaceAdded, NamespaceDone, Publish, PublishBlocked, PublishDone,
    PublishNamespace, PublishStateNotify, Redirect, RequestError, RequestKind, RequestOk, RequestUpdate, Subscribe,
    SubscribeNamespace, SubscribeOk, SubscribeTracks, TrackStatus,
};
use super::model_params::{Filter, Params, Properties};

/// Types of messages (section 10).
pub mod message {
    /// SETUP; it is also the type of the stream that it opens (section 3.4).
    pub const SETUP: u64 = 0x2f00;
    /// GOAWAY.
    pub const GOAWAY: u64 = 0x10;
    /// SUBSCRIBE.
    pub const SUBSCRIBE: u64 = 0x3;
    /// SUBSCRIBE_OK.
    pub const SUBSCRIBE_OK: u64 = 0x4;
    /// PUBLISH.
    pub const PUBLISH: u64 = 0x1d;
    /// PUBLISH_DONE.
    pub const PUBLISH_DONE: u64 = 0xb;
    /// PUBLISH_STATE_NOTIFY.
    pub const PUBLISH_STATE_NOTIFY: u64 = 0x22;
    /// FETCH.
    pub const FETCH: u64 = 0x16;
    /// FETCH_OK.
    pub const FETCH_OK: u64 = 0x18;
    /// TRACK_STATUS.
    pub const TRACK_STATUS: u64 = 0xd;
    /// PUBLISH_NAMESPACE.
    pub const PUBLISH_NAMESPACE: u64 = 0x6;
    /// SUBSCRIBE_NAMESPACE.
    pub const SUBSCRIBE_NAMESPACE: u64 = 0x50;
    /// SUBSCRIBE_TRACKS.
    pub const SUBSCRIBE_TRACKS: u64 = 0x51;
    /// NAMESPACE.
    pub const NAMESPACE: u64 = 0x8;
    /// NAMESPACE_DONE.
    pub const NAMESPACE_DONE: u64 = 0xe;
    /// PUBLISH_BLOCKED, from draft 19 PUBLISH_SKIPPED.
    pub const PUBLISH_BLOCKED: u64 = 0xf;
    /// REQUEST_UPDATE.
    pub const REQUEST_UPDATE: u64 = 0x2;
    /// REQUEST_OK.
    pub const REQUEST_OK: u64 = 0x7;
    /// REQUEST_ERROR.
    pub const REQUEST_ERROR: u64 = 0x5;
    /// PUBLISH_OK; draft 18 lists it still, and says elsewhere that it is REQUEST_OK.
    pub const PUBLISH_OK: u64 = 0x1e;
    /// UNSUBSCRIBE, of drafts before 18; see [`Message::Unsubscribe`](super::Message::Unsubscribe).
    pub const UNSUBSCRIBE: u64 = 0xa;
}

/// Forms of FETCH in draft 18 (section 10.12).
mod fetch {
    pub(super) const STANDALONE: u64 = 0x1;
    pub(super) const RELATIVE: u64 = 0x2;
    pub(super) const ABSOLUTE: u64 = 0x3;
}

/// The last group of a fetch without an end, in drafts that must name one.
const NO_END: u64 = (1 << 62) - 1;

/// A message that cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong, and how far that reaches.
    pub mistake: Mistake,
    /// The number of the request, if the message makes one and it could be read: it is used up also by a refusal.
    pub request_id: Option<u64>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mistake.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// Reads the messages of one stream.
#[derive(Debug)]
pub struct MessageDecoder {
    draft: Draft,
    gather: Gather,
}

impl MessageDecoder {
    /// A decoder for the beginning of a stream.
    #[must_use]
    pub fn new(draft: Draft) -> Self {
        Self { draft, gather: Gather::default() }
    }

    /// The same, with the first bytes of the stream given.
    pub(super) fn continued(draft: Draft, start: &[u8]) -> Self {
        let mut decoder = Self::new(draft);
        decoder.gather.keep(start);
        decoder
    }

    /// Reads the next message from the front of `input`, of which it takes what it needs: call it until it says `None`,
    /// then come again with more.
    ///
    /// # Errors
    /// [`Refused`]. If only the request ends, the next message can be read; after all else the decoder is of no more use.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Message>, Refused> {
        let draft = self.draft;
        let framed = self.gather.head(input, |reader| {
            let kind = reader.varint()?;
            if !is_known(kind, draft) {
                return Err(Mistake::UnknownMessage(kind).into());
            }
            let length = usize::from(reader.u16()?);
            reader.take(length)?;
            Ok((kind, length))
        });
        match framed {
            Ok(None) => Ok(None),
            Ok(Some(((kind, length), frame))) => {
                let body = frame.get(frame.len().saturating_sub(length)..).unwrap_or_default();
                read_body(kind, body, draft).map(Some)
            }
            Err(mistake) => Err(Refused { mistake, request_id: None }),
        }
    }

    /// Whether no message has begun that is not whole.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.gather.is_empty()
    }

    /// The stream has ended properly. In draft 18 what has begun and is not whole is then forgotten.
    ///
    /// # Errors
    /// [`Mistake::CutOff`] from draft 20 on, if it ended in the middle of a message.
    pub fn finish(&self) -> Result<(), Mistake> {
        let may = self.is_between() || self.draft.profile().fin_cancels;
        if may { Ok(()) } else { Err(Mistake::CutOff) }
    }
}

/// Whether the draft has a message of this type.
#[must_use]
pub const fn is_known(kind: u64, draft: Draft) -> bool {
    match kind {
        message::PUBLISH_STATE_NOTIFY => draft.profile().state_notify,
        message::PUBLISH_OK | message::UNSUBSCRIBE => draft.profile().reads_older,
        message::SETUP
        | message::GOAWAY
        | message::SUBSCRIBE
        | message::SUBSCRIBE_OK
        | message::PUBLISH
        | message::PUBLISH_DONE
        | message::FETCH
        | message::FETCH_OK
        | message::TRACK_STATUS
        | message::PUBLISH_NAMESPACE
        | message::SUBSCRIBE_NAMESPACE
        | message::SUBSCRIBE_TRACKS
        | message::NAMESPACE
        | message::NAMESPACE_DONE
        | message::PUBLISH_BLOCKED
        | message::REQUEST_UPDATE
        | message::REQUEST_OK
        | message::REQUEST_ERROR => true,
        _ => false,
    }
}

/// Whether a REQUEST_OK answers such a request properly: parameters that belong there, properties only of a track whose
/// status was asked for (section 10.5). `update` if it answers a REQUEST_UPDATE of it.
///
/// # Errors
/// [`Mistake`]; it ends the session.
pub fn check_ok(ok: &RequestOk, kind: RequestKind, update: bool, draft: Draft) -> Result<(), Mistake> {
    let place = match kind {
        _ if update => Place::UPDATE_OK,
        RequestKind::Publish => Place::PUBLISH_OK,
        RequestKind::TrackStatus => Place::TRACK_STATUS_OK,
        RequestKind::PublishNamespace | RequestKind::SubscribeNamespace | RequestKind::SubscribeTracks => {
            Place::NAMESPACE_OK
        }
        // They have answers of their own.
        RequestKind::Subscribe | RequestKind::Fetch => return Err(Mistake::UnknownMessage(message::REQUEST_OK)),
    };
    if !ok.properties.is_empty() && place != Place::TRACK_STATUS_OK {
        return Err(Mistake::TrailingBytes);
    }
    misplaced(&ok.params, place, draft).map_or(Ok(()), |number| Err(Mistake::MisplacedParameter(number)))
}

/// Whether a REQUEST_UPDATE may change such a request, and so.
///
/// # Errors
/// [`Mistake`]; it ends the session.
pub fn check_update(update: &RequestUpdate, kind: RequestKind, draft: Draft) -> Result<(), Mistake> {
    let place = match kind {
        RequestKind::Subscribe | RequestKind::Publish => Place::UPDATE_SUBSCRIPTION,
        RequestKind::Fetch => Place::UPDATE_FETCH,
        RequestKind::PublishNamespace => Place::UPDATE_PUBLISH_NAMESPACE,
        RequestKind::SubscribeNamespace => Place::UPDATE_SUBSCRIBE_NAMESPACE,
        RequestKind::SubscribeTracks => Place::UPDATE_SUBSCRIBE_TRACKS,
        RequestKind::TrackStatus => return Err(Mistake::UnknownMessage(message::REQUEST_UPDATE)),
    };
    misplaced(&update.params, place, draft).map_or(Ok(()), |number| Err(Mistake::MisplacedParameter(number)))
}

/// Reads the fields of a message, all of them.
fn read_body(kind: u64, body: &[u8], draft: Draft) -> Result<Message, Refused> {
    let mut reader = Reader::new(body);
    let makes_request = matches!(
        kind,
        message::SUBSCRIBE
            | message::PUBLISH
            | message::FETCH
            | message::TRACK_STATUS
            | message::PUBLISH_NAMESPACE
            | message::SUBSCRIBE_NAMESPACE
            | message::SUBSCRIBE_TRACKS
            | message::REQUEST_UPDATE
    );
    let mut request_id = None;
    let read = |reader: &mut Reader<'_>, request_id: &mut Option<u64>| {
        if makes_request {
            *request_id = Some(reader.varint()?);
        }
        read_fields(kind, request_id.unwrap_or_default(), reader, draft)
    };
    let found = read(&mut reader, &mut request_id).map_err(Stop::at_end);
    match found {
        Ok(message) if reader.is_empty() => Ok(message),
        Ok(_) => Err(Refused { mistake: Mistake::TrailingBytes, request_id }),
        Err(mistake) => Err(Refused { mistake, request_id }),
    }
}

fn read_fields(kind: u64, request_id: u64, reader: &mut Reader<'_>, draft: Draft) -> Result<Message, Stop> {
    let params = |reader: &mut Reader<'_>, place| read_params(reader, place, draft);
    Ok(match kind {
        message::SETUP => Message::Setup(Box::new(read_setup(reader.take_rest(), draft)?)),
        message::GOAWAY => Message::Goaway(read_goaway(reader, draft)?),
        message::SUBSCRIBE => Message::Subscribe(Box::new(Subscribe {
            request_id,
            track: read_track(reader)?,
            params: params(reader, Place::SUBSCRIBE)?,
        })),
        message::SUBSCRIBE_OK => Message::SubscribeOk(Box::new(SubscribeOk {
            track_alias: reader.varint()?,
            params: params(reader, Place::SUBSCRIBE_OK)?,
            properties: read_properties(reader)?,
        })),
        message::PUBLISH => Message::Publish(Box::new(Publish {
            request_id,
            track: read_track(reader)?,
            track_alias: reader.varint()?,
            params: params(reader, Place::PUBLISH)?,
            properties: read_properties(reader)?,
        })),
        message::PUBLISH_DONE => Message::PublishDone(PublishDone {
            code: DoneCode::from_number(reader.varint()?, draft),
            streams: Some(reader.varint()?).filter(|count| *count != draft.profile().uncounted_streams),
            reason: read_reason(reader)?,
        }),
        message::PUBLISH_STATE_NOTIFY => {
            Message::PublishStateNotify(Box::new(PublishStateNotify { params: params(reader, Place::NOTIFY)? }))
        }
        message::FETCH => Message::Fetch(Box::new(read_fetch(request_id, reader, draft)?)),
        message::FETCH_OK => Message::FetchOk(Box::new(read_fetch_ok(reader, draft)?)),
        message::TRACK_STATUS => Message::TrackStatus(Box::new(TrackStatus {
            request_id,
            track: read_track(reader)?,
            params: params(reader, Place::TRACK_STATUS)?,
        })),
        message::PUBLISH_NAMESPACE => Message::PublishNamespace(Box::new(PublishNamespace {
            request_id,
            namespace: read_namespace(reader)?,
            params: params(reader, Place::PUBLISH_NAMESPACE)?,
        })),
        message::SUBSCRIBE_NAMESPACE => Message::SubscribeNamespace(Box::new(SubscribeNamespace {
            request_id,
            prefix: read_namespace(reader)?,
            params: params(reader, Place::SUBSCRIBE_NAMESPACE)?,
        })),
        message::SUBSCRIBE_TRACKS => Message::SubscribeTracks(Box::new(SubscribeTracks {
            request_id,
            prefix: read_namespace(reader)?,
            params: params(reader, Place::SUBSCRIBE_TRACKS)?,
        })),
        message::NAMESPACE => Message::Namespace(NamespaceAdded { suffix: read_namespace(reader)? }),
        message::NAMESPACE_DONE => Message::NamespaceDone(NamespaceDone { suffix: read_namespace(reader)? }),
        message::PUBLISH_BLOCKED => {
            Message::PublishBlocked(PublishBlocked { suffix: read_namespace(reader)?, name: read_name(reader)? })
        }
        message::REQUEST_UPDATE => {
            Message::RequestUpdate(Box::new(RequestUpdate { request_id, params: params(reader, Place::UPDATE)? }))
        }
        message::PUBLISH_OK => Message::RequestOk(Box::new(RequestOk {
            params: params(reader, Place::PUBLISH_OK)?,
            properties: Properties::default(),
        })),
        message::UNSUBSCRIBE => Message::Unsubscribe,
        message::REQUEST_OK => Message::RequestOk(Box::new(RequestOk {
            params: params(reader, Place::REQUEST_OK)?,
            properties: read_properties(reader)?,
        })),
        message::REQUEST_ERROR => Message::RequestError(Box::new(read_error(reader, draft)?)),
        unknown => return Err(Mistake::UnknownMessage(unknown).into()),
    })
}

fn read_properties(reader: &mut Reader<'_>) -> Result<Properties, Stop> {
    Ok(Properties::of_track(reader.take_rest())?)
}

fn read_goaway(reader: &mut Reader<'_>, draft: Draft) -> Result<Goaway, Stop> {
    let uri = read_uri(reader)?;
    let timeout = Duration::from_millis(reader.varint()?);
    let has_request = draft.profile().goaway_names_request && !reader.is_empty();
    let request_id = if has_request { Some(reader.varint()?) } else { None };
    Ok(Goaway { uri, timeout, request_id })
}

fn read_fetch(request_id: u64, reader: &mut Reader<'_>, draft: Draft) -> Result<Fetch, Stop> {
    if !draft.profile().joining_fetch {
        let track = read_track(reader)?;
        let mut params = read_params(reader, Place::FETCH, draft)?;
        let range = params.filter.take().unwrap_or_default();
        return Ok(Fetch { request_id, what: FetchWhat::Standalone { track, range }, params });
    }
    let what = match reader.varint()? {
        fetch::STANDALONE => {
            let track = read_track(reader)?;
            let start = Location::new(reader.varint()?, reader.varint()?);
            let (end_group, end_object) = (reader.varint()?, reader.varint()?);
            let range = match end_object.checked_sub(1) {
                Some(object) => Filter::Range { start, end: Location::new(end_group, object) },
                None => Filter::Groups { start, end_group },
            };
            FetchWhat::Standalone { track, range }
        }
        fetch::RELATIVE => FetchWhat::Relative { subscription: reader.varint()?, groups: reader.varint()? },
        fetch::ABSOLUTE => FetchWhat::Absolute { subscription: reader.varint()?, group: reader.varint()? },
        unknown => return Err(Mistake::UnknownFetch(unknown).into()),
    };
    Ok(Fetch { request_id, what, params: read_params(reader, Place::FETCH, draft)? })
}

fn read_fetch_ok(reader: &mut Reader<'_>, draft: Draft) -> Result<FetchOk, Stop> {
    let end_of_track = match reader.byte()? {
        0 => false,
        1 => true,
        other => return Err(Mistake::NotABool(other).into()),
    };
    let (group, object) = (reader.varint()?, reader.varint()?);
    // One less, and for a whole group, which is written 0, the most that there is.
    let object = if draft.profile().end_is_exclusive { object.wrapping_sub(1) } else { object };
    Ok(FetchOk {
        end_of_track,
        end: Location::new(group, object),
        params: read_params(reader, Place::FETCH_OK, draft)?,
        properties: read_properties(reader)?,
    })
}

fn read_error(reader: &mut Reader<'_>, draft: Draft) -> Result<RequestError, Stop> {
    let code = RequestCode::from_number(reader.varint()?, draft);
    let retry_after = reader.varint()?.checked_sub(1).map(Duration::from_millis);
    let reason = read_reason(reader)?;
    let redirect = if code == RequestCode::Redirect {
        Some(Redirect { uri: read_uri(reader)?, track: read_track(reader)? })
    } else {
        None
    };
    Ok(RequestError { code, retry_after, reason, redirect })
}

/// Writes a message behind what is in `out`.
///
/// # Errors
/// [`Unsayable`] if the draft has no words for it, or it would be too long; `out` is as it was.
pub fn put_message(message: &Message, draft: Draft, out: &mut BytesMut) -> Result<(), Unsayable> {
    let mut body = BytesMut::new();
    let kind = put_fields(message, draft, &mut body)?;
    let length = u16::try_from(body.len()).map_err(|_| Unsayable::TooLong("a message"))?;
    debug_assert!(body.len() <= MAX_MESSAGE);
    put_varint(kind, out);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

fn put_fields(message: &Message, draft: Draft, out: &mut BytesMut) -> Result<u64, Unsayable> {
    if let Some(request_id) = message.request_id() {
        put_varint(request_id, out);
    }
    Ok(match message {
        Message::Setup(setup) => {
            put_setup(setup, draft, out)?;
            message::SETUP
        }
        Message::Goaway(goaway) => {
            put_uri(&goaway.uri, out)?;
            put_varint(millis(goaway.timeout), out);
            if let Some(request_id) = goaway.request_id.filter(|_| draft.profile().goaway_names_request) {
                put_varint(request_id, out);
            }
            message::GOAWAY
        }
        Message::Subscribe(subscribe) => {
            put_track(&subscribe.track, out);
            put_params(&subscribe.params, Place::SUBSCRIBE, draft, out)?;
            message::SUBSCRIBE
        }
        Message::SubscribeOk(ok) => {
            put_varint(ok.track_alias, out);
            put_params(&ok.params, Place::SUBSCRIBE_OK, draft, out)?;
            out.extend_from_slice(ok.properties.as_bytes());
            message::SUBSCRIBE_OK
        }
        Message::Publish(publish) => {
            put_track(&publish.track, out);
            put_varint(publish.track_alias, out);
            put_params(&publish.params, Place::PUBLISH, draft, out)?;
            out.extend_from_slice(publish.properties.as_bytes());
            message::PUBLISH
        }
        Message::PublishDone(done) => {
            put_varint(done.code.number(draft), out);
            put_varint(done.streams.unwrap_or_else(|| draft.profile().uncounted_streams), out);
            put_reason(&done.reason, out)?;
            message::PUBLISH_DONE
        }
        Message::PublishStateNotify(notify) => {
            if !draft.profile().state_notify {
                return Err(Unsayable::NotInDraft { what: "PUBLISH_STATE_NOTIFY", draft });
            }
            put_params(&notify.params, Place::NOTIFY, draft, out)?;
            message::PUBLISH_STATE_NOTIFY
        }
        Message::Fetch(fetch) => {
            put_fetch(fetch, draft, out)?;
            message::FETCH
        }
        Message::FetchOk(ok) => {
            out.extend_from_slice(&[u8::from(ok.end_of_track)]);
            put_varint(ok.end.group, out);
            let exclusive = draft.profile().end_is_exclusive;
            put_varint(if exclusive { ok.end.object.wrapping_add(1) } else { ok.end.object }, out);
            put_params(&ok.params, Place::FETCH_OK, draft, out)?;
            out.extend_from_slice(ok.properties.as_bytes());
            message::FETCH_OK
        }
        Message::TrackStatus(status) => {
            put_track(&status.track, out);
            put_params(&status.params, Place::TRACK_STATUS, draft, out)?;
            message::TRACK_STATUS
        }
        Message::PublishNamespace(publish) => {
            put_below(&publish.namespace, &publish.params, Place::PUBLISH_NAMESPACE, draft, out)?;
            message::PUBLISH_NAMESPACE
        }
        Message::SubscribeNamespace(subscribe) => {
            put_below(&subscribe.prefix, &subscribe.params, Place::SUBSCRIBE_NAMESPACE, draft, out)?;
            message::SUBSCRIBE_NAMESPACE
        }
        Message::SubscribeTracks(subscribe) => {
            put_below(&subscribe.prefix, &subscribe.params, Place::SUBSCRIBE_TRACKS, draft, out)?;
            message::SUBSCRIBE_TRACKS
        }
        Message::Namespace(added) => {
            put_namespace(&added.suffix, out);
            message::NAMESPACE
        }
        Message::NamespaceDone(done) => {
            put_namespace(&done.suffix, out);
            message::NAMESPACE_DONE
        }
        Message::PublishBlocked(blocked) => {
            put_namespace(&blocked.suffix, out);
            put_name(&blocked.name, out);
            message::PUBLISH_BLOCKED
        }
        Message::RequestUpdate(update) => {
            put_params(&update.params, Place::UPDATE, draft, out)?;
            message::REQUEST_UPDATE
        }
        Message::RequestOk(ok) => {
            put_params(&ok.params, Place::REQUEST_OK, draft, out)?;
            out.extend_from_slice(ok.properties.as_bytes());
            message::REQUEST_OK
        }
        Message::RequestError(error) => {
            put_error(error, draft, out)?;
            message::REQUEST_ERROR
        }
        Message::Unsubscribe => return Err(Unsayable::NotInDraft { what: "UNSUBSCRIBE", draft }),
    })
}

fn put_below(
    namespace: &super::model_names::Namespace,
    params: &Params,
    place: Place,
    draft: Draft,
    out: &mut BytesMut,
) -> Result<(), Unsayable> {
    put_namespace(namespace, out);
    put_params(params, place, draft, out)
}

fn put_fetch(fetch: &Fetch, draft: Draft, out: &mut BytesMut) -> Result<(), Unsayable> {
    if fetch.params.filter.is_some() {
        return Err(Unsayable::Contradiction("a fetch with two ranges"));
    }
    if !draft.profile().joining_fetch {
        let FetchWhat::Standalone { track, range } = &fetch.what else {
            return Err(Unsayable::NotInDraft { what: "a fetch that joins", draft });
        };
        put_track(track, out);
        let filter = Some(*range).filter(|range| !matches!(range, Filter::All | Filter::From(Location::START)));
        return put_params(&Params { filter, ..fetch.params.clone() }, Place::FETCH, draft, out);
    }
    match &fetch.what {
        FetchWhat::Standalone { track, range } => {
            let (start, end_group, end_object) = match *range {
                Filter::All => (Location::START, NO_END, 0),
                Filter::From(start) => (start, NO_END, 0),
                Filter::Groups { start, end_group } => (start, end_group, 0),
                Filter::Range { start, end } if end.group < start.group => {
                    return Err(Unsayable::Contradiction("a fetch that ends before it begins"));
                }
                // The end of all is the whole group.
                Filter::Range { start, end } => (start, end.group, end.object.wrapping_add(1)),
                Filter::NextObject | Filter::Relative(_) => {
                    return Err(Unsayable::NotInDraft { what: "a fetch of this range", draft });
                }
            };
            put_varint(fetch::STANDALONE, out);
            put_track(track, out);
            for number in [start.group, start.object, end_group, end_object] {
                put_varint(number, out);
            }
        }
        FetchWhat::Relative { subscription, groups } => {
            for number in [fetch::RELATIVE, *subscription, *groups] {
                put_varint(number, out);
            }
        }
        FetchWhat::Absolute { subscription, group } => {
            for number in [fetch::ABSOLUTE, *subscription, *group] {
                put_varint(number, out);
            }
        }
    }
    put_params(&fetch.params, Place::FETCH, draft, out)
}

fn put_error(error: &RequestError, draft: Draft, out: &mut BytesMut) -> Result<(), Unsayable> {
    if error.redirect.is_some() != (error.code == RequestCode::Redirect) {
        return Err(Unsayable::Contradiction("a redirect"));
    }
    put_varint(error.code.number(draft), out);
    put_varint(error.retry_after.map_or(0, |time| millis(time).saturating_add(1)), out);
    put_reason(&error.reason, out)?;
    if let Some(redirect) = &error.redirect {
        put_uri(&redirect.uri, out)?;
        put_track(&redirect.track, out);
    }
    Ok(())
}

#[cfg(test)]
#[path = "codec_message_tests.rs"]
mod tests;
