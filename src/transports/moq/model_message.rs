//! The control messages of MoQT, as plain values.
//!
//! They travel in three places. **Control streams**: each end opens one unidirectional stream and begins it with SETUP;
//! GOAWAY may follow; closing it ends the session. **Request streams**: each request is the first message on a
//! bidirectional stream of its own, and everything about it follows there, in both directions, without naming it again.
//! A request is given up by resetting the stream or asking to stop it; there is no message for that. **Data streams**
//! carry no messages but objects (`codec_subgroup`, `codec_fetch`).
//!
//! There is no PUBLISH_OK, no PUBLISH_NAMESPACE_OK and so on as messages of their own: they are [`RequestOk`] on the
//! stream of that request; [`RequestKind`] says which one is meant. A namespace that is no longer published is the end
//! of its PUBLISH_NAMESPACE stream.

use std::time::Duration;

use super::model::Location;
use super::model_codes::{DoneCode, RequestCode};
use super::model_names::{FullTrackName, Namespace, TrackName};
use super::model_params::{Filter, Params, Properties, Token};

/// Any control message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// See [`Setup`].
    Setup(Box<Setup>),
    /// See [`Goaway`].
    Goaway(Goaway),
    /// See [`Subscribe`].
    Subscribe(Box<Subscribe>),
    /// See [`SubscribeOk`].
    SubscribeOk(Box<SubscribeOk>),
    /// See [`Publish`].
    Publish(Box<Publish>),
    /// See [`PublishDone`].
    PublishDone(PublishDone),
    /// See [`PublishStateNotify`]. From draft 20.
    PublishStateNotify(Box<PublishStateNotify>),
    /// See [`Fetch`].
    Fetch(Box<Fetch>),
    /// See [`FetchOk`].
    FetchOk(Box<FetchOk>),
    /// See [`TrackStatus`].
    TrackStatus(Box<TrackStatus>),
    /// See [`PublishNamespace`].
    PublishNamespace(Box<PublishNamespace>),
    /// See [`SubscribeNamespace`].
    SubscribeNamespace(Box<SubscribeNamespace>),
    /// See [`NamespaceAdded`].
    Namespace(NamespaceAdded),
    /// See [`NamespaceDone`].
    NamespaceDone(NamespaceDone),
    /// See [`SubscribeTracks`].
    SubscribeTracks(Box<SubscribeTracks>),
    /// See [`PublishBlocked`].
    PublishBlocked(PublishBlocked),
    /// See [`RequestUpdate`].
    RequestUpdate(Box<RequestUpdate>),
    /// See [`RequestOk`].
    RequestOk(Box<RequestOk>),
    /// See [`RequestError`].
    RequestError(Box<RequestError>),
    /// The subscriber gives a SUBSCRIBE up, on its request stream; then PUBLISH_DONE is awaited. No draft spoken here has
    /// it, but moq-transport 0.17 sends it in draft 18 where it should reset the stream. Read there, never written.
    Unsubscribe,
}

impl Message {
    /// What the drafts call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Setup(_) => "SETUP",
            Self::Goaway(_) => "GOAWAY",
            Self::Subscribe(_) => "SUBSCRIBE",
            Self::SubscribeOk(_) => "SUBSCRIBE_OK",
            Self::Publish(_) => "PUBLISH",
            Self::PublishDone(_) => "PUBLISH_DONE",
            Self::PublishStateNotify(_) => "PUBLISH_STATE_NOTIFY",
            Self::Fetch(_) => "FETCH",
            Self::FetchOk(_) => "FETCH_OK",
            Self::TrackStatus(_) => "TRACK_STATUS",
            Self::PublishNamespace(_) => "PUBLISH_NAMESPACE",
            Self::SubscribeNamespace(_) => "SUBSCRIBE_NAMESPACE",
            Self::Namespace(_) => "NAMESPACE",
            Self::NamespaceDone(_) => "NAMESPACE_DONE",
            Self::SubscribeTracks(_) => "SUBSCRIBE_TRACKS",
            Self::PublishBlocked(_) => "PUBLISH_BLOCKED",
            Self::RequestUpdate(_) => "REQUEST_UPDATE",
            Self::RequestOk(_) => "REQUEST_OK",
            Self::RequestError(_) => "REQUEST_ERROR",
            Self::Unsubscribe => "UNSUBSCRIBE",
        }
    }

    /// Which kind of request it opens; `None` for what must not be first on a request stream.
    #[must_use]
    pub const fn opens(&self) -> Option<RequestKind> {
        match self {
            Self::Subscribe(_) => Some(RequestKind::Subscribe),
            Self::Publish(_) => Some(RequestKind::Publish),
            Self::Fetch(_) => Some(RequestKind::Fetch),
            Self::TrackStatus(_) => Some(RequestKind::TrackStatus),
            Self::PublishNamespace(_) => Some(RequestKind::PublishNamespace),
            Self::SubscribeNamespace(_) => Some(RequestKind::SubscribeNamespace),
            Self::SubscribeTracks(_) => Some(RequestKind::SubscribeTracks),
            Self::Setup(_)
            | Self::Goaway(_)
            | Self::SubscribeOk(_)
            | Self::PublishDone(_)
            | Self::PublishStateNotify(_)
            | Self::FetchOk(_)
            | Self::Namespace(_)
            | Self::NamespaceDone(_)
            | Self::PublishBlocked(_)
            | Self::RequestUpdate(_)
            | Self::RequestOk(_)
            | Self::RequestError(_)
            | Self::Unsubscribe => None,
        }
    }

    /// What is shown with a request; nothing with all else.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        let params = match self {
            Self::Subscribe(message) => &message.params,
            Self::Publish(message) => &message.params,
            Self::Fetch(message) => &message.params,
            Self::TrackStatus(message) => &message.params,
            Self::PublishNamespace(message) => &message.params,
            Self::SubscribeNamespace(message) => &message.params,
            Self::SubscribeTracks(message) => &message.params,
            Self::Setup(_)
            | Self::Goaway(_)
            | Self::SubscribeOk(_)
            | Self::PublishDone(_)
            | Self::PublishStateNotify(_)
            | Self::FetchOk(_)
            | Self::Namespace(_)
            | Self::NamespaceDone(_)
            | Self::PublishBlocked(_)
            | Self::RequestUpdate(_)
            | Self::RequestOk(_)
            | Self::RequestError(_)
            | Self::Unsubscribe => return &[],
        };
        &params.tokens
    }

    /// The number of the request that it makes; `None` for answers and notices.
    #[must_use]
    pub const fn request_id(&self) -> Option<u64> {
        match self {
            Self::Subscribe(message) => Some(message.request_id),
            Self::Publish(message) => Some(message.request_id),
            Self::Fetch(message) => Some(message.request_id),
            Self::TrackStatus(message) => Some(message.request_id),
            Self::PublishNamespace(message) => Some(message.request_id),
            Self::SubscribeNamespace(message) => Some(message.request_id),
            Self::SubscribeTracks(message) => Some(message.request_id),
            Self::RequestUpdate(message) => Some(message.request_id),
            Self::Setup(_)
            | Self::Goaway(_)
            | Self::SubscribeOk(_)
            | Self::PublishDone(_)
            | Self::PublishStateNotify(_)
            | Self::FetchOk(_)
            | Self::Namespace(_)
            | Self::NamespaceDone(_)
            | Self::PublishBlocked(_)
            | Self::RequestOk(_)
            | Self::RequestError(_)
            | Self::Unsubscribe => None,
        }
    }
}

/// What a request stream is about: its first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestKind {
    /// A subscription that the subscriber began.
    Subscribe,
    /// A subscription that the publisher began.
    Publish,
    /// Objects of the past.
    Fetch,
    /// A question about a track.
    TrackStatus,
    /// A namespace in which the sender has tracks.
    PublishNamespace,
    /// Wants to know the namespaces below a prefix.
    SubscribeNamespace,
    /// Wants the tracks below a prefix.
    SubscribeTracks,
}

/// The first message of each end on its control stream (section 10.3). Options that are not known are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setup {
    /// The path of the URI, and its query; only from clients over plain QUIC.
    pub path: Option<String>,
    /// The authority of the URI; only from clients over plain QUIC.
    pub authority: Option<String>,
    /// Bytes of registered tokens that the sender keeps. Absent: 0, so that no alias may be used.
    pub max_auth_token_cache_size: Option<u64>,
    /// What the session is authorised by; at most [`MAX_TOKENS`](super::model_params::MAX_TOKENS).
    pub tokens: Vec<Token>,
    /// The sender's program and its version. Not to be trusted; to be escaped before it is printed.
    pub implementation: Option<String>,
    /// Ranges that all filters of a request may have together. Absent: 0. From draft 20.
    pub max_filter_ranges: Option<u64>,
    /// Updates of one request that may be on the way. Absent or 0: any number. From draft 20.
    pub max_request_updates: Option<u64>,
    /// The sender is a relay, and this is its number, drawn when it started: an option of our own, by which two relays
    /// that are each other's origin know one another.
    pub relay: Option<u64>,
}

/// The sender wants to end the session, or this one request, soon (section 10.4). On the control stream, or on a request
/// stream in either direction; at most once on each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Goaway {
    /// Where to go on; empty: where we are. Always empty from a client. At most 8,192 bytes.
    pub uri: String,
    /// After so long the sender will end it itself; zero: as soon as possible.
    pub timeout: Duration,
    /// The first of the receiver's requests that was not looked at. Only in draft 18, and there on control streams
    /// always; it is not written in any other draft.
    pub request_id: Option<u64>,
}

/// Asks for objects of a track as they come (section 10.7). First on a request stream; answered by [`SubscribeOk`] or
/// [`RequestError`]; ended by [`PublishDone`], or by whoever resets the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The number of the request.
    pub request_id: u64,
    /// Which track.
    pub track: FullTrackName,
    /// Timeouts, tokens, forward, priority, filter, order, new group, and from draft 20 fill and ranges.
    pub params: Params,
}

/// The publisher accepts [`Subscribe`] (section 10.8): first in the answering direction of that stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubscribeOk {
    /// What the publisher calls the track on data streams and in datagrams of this session.
    pub track_alias: u64,
    /// Expires, largest.
    pub params: Params,
    /// Properties of the track, to be forwarded as they are.
    pub properties: Properties,
}

/// Offers a track (section 10.10). First on a request stream, from the publisher; answered by [`RequestOk`] (PUBLISH_OK)
/// or [`RequestError`]. Objects may come before the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The number of the request.
    pub request_id: u64,
    /// Which track.
    pub track: FullTrackName,
    /// What the publisher calls the track on data streams and in datagrams of this session.
    pub track_alias: u64,
    /// Tokens, expires, largest, forward, and from draft 20 what the subscription begins with.
    pub params: Params,
    /// Properties of the track, to be forwarded as they are.
    pub properties: Properties,
}

/// The publisher's last word about a subscription, on its request stream (section 10.11), after all its data streams are
/// closed; more may still be on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishDone {
    /// Why.
    pub code: DoneCode,
    /// How many data streams were opened, those without an object and those of fills included. `None`: not counted.
    pub streams: Option<u64>,
    /// Words for a log, at most 1,024 bytes. Not to be trusted; to be escaped before they are printed.
    pub reason: String,
}

/// The publisher tells what changed about a subscription without being asked, on its request stream; nobody answers.
/// From draft 20.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishStateNotify {
    /// What is now in effect of forward and filter, and the largest object.
    pub params: Params,
}

/// Asks for objects that were published already (section 10.12). First on a request stream; answered by [`FetchOk`] or
/// [`RequestError`], and by one data stream that names this request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The number of the request.
    pub request_id: u64,
    /// Which objects.
    pub what: FetchWhat,
    /// Tokens, fill timeout, priority, group order, and from draft 20 ranges.
    pub params: Params,
}

/// Which objects a [`Fetch`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchWhat {
    /// Those of a range. Draft 18 writes its end out: without one it asks up to group 2^62 - 1.
    Standalone {
        /// Of which track.
        track: FullTrackName,
        /// Which ones; never beyond the largest.
        range: Filter,
    },
    /// Those before a subscription of this session, from so many groups before the one that it joined in. Only draft 18.
    Relative {
        /// The number of that subscription's request.
        subscription: u64,
        /// How many groups before; 0 is the beginning of the same.
        groups: u64,
    },
    /// Those before a subscription of this session, from this group on. Only draft 18.
    Absolute {
        /// The number of that subscription's request.
        subscription: u64,
        /// The first group.
        group: u64,
    },
}

/// The publisher accepts [`Fetch`] (section 10.13), once it knows where the objects will end. First in the answering
/// direction of that stream; objects may come before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchOk {
    /// Whether `end` is the last object that the track will ever have.
    pub end_of_track: bool,
    /// The last location that the answer covers; [`Location::end_of`] for all of a group. Drafts differ in how they
    /// write it, not in what is here.
    pub end: Location,
    /// None so far.
    pub params: Params,
    /// Properties of the track, to be forwarded as they are.
    pub properties: Properties,
}

/// Asks what is known of a track (section 10.14). First and only message on a request stream; answered by [`RequestOk`]
/// with what SUBSCRIBE_OK would have said, or [`RequestError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackStatus {
    /// The number of the request.
    pub request_id: u64,
    /// Which track.
    pub track: FullTrackName,
    /// Tokens, and from draft 20 whether properties are wanted.
    pub params: Params,
}

/// The sender has tracks in a namespace (section 10.15). First on a request stream; answered by [`RequestOk`] or
/// [`RequestError`]; holds until the stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishNamespace {
    /// The number of the request.
    pub request_id: u64,
    /// Which namespace.
    pub namespace: Namespace,
    /// Tokens.
    pub params: Params,
}

/// Asks which namespaces below a prefix are published, and to be told of changes (section 10.18). First on a request
/// stream; answered by [`RequestOk`] or [`RequestError`], then [`NamespaceAdded`] and [`NamespaceDone`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeNamespace {
    /// The number of the request.
    pub request_id: u64,
    /// Which ones; empty: all.
    pub prefix: Namespace,
    /// Tokens.
    pub params: Params,
}

/// NAMESPACE: below the prefix that was asked for, this one is published (section 10.16). In the answering direction of a
/// SUBSCRIBE_NAMESPACE stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceAdded {
    /// What follows after the prefix.
    pub suffix: Namespace,
}

/// It is no longer published (section 10.17). In the same place, and only after its NAMESPACE.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceDone {
    /// What follows after the prefix.
    pub suffix: Namespace,
}

/// Asks for a PUBLISH for each track below a prefix, now and later (section 10.19). First on a request stream; answered
/// by [`RequestOk`] or [`RequestError`]; the tracks come on request streams of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeTracks {
    /// The number of the request.
    pub request_id: u64,
    /// Which ones; empty: all.
    pub prefix: Namespace,
    /// Tokens, forward, and from draft 20 what each of the subscriptions begins with.
    pub params: Params,
}

/// A track below the prefix will not be offered (section 10.20); draft 20 calls it PUBLISH_SKIPPED. In the answering
/// direction of a SUBSCRIBE_TRACKS stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishBlocked {
    /// What follows after the prefix.
    pub suffix: Namespace,
    /// The track's name.
    pub name: TrackName,
}

/// Changes a request (section 10.9). On its stream, from whoever made it, and from the subscriber of a PUBLISH; each is
/// answered by one [`RequestOk`] or [`RequestError`], in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestUpdate {
    /// A number of its own.
    pub request_id: u64,
    /// What changes; the rest stays as it is.
    pub params: Params,
}

/// A request, or an update of one, is accepted (section 10.5): first in the answering direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestOk {
    /// By what it answers: to PUBLISH in draft 18 the subscriber's wishes, else expires and largest.
    pub params: Params,
    /// Properties of the track; only in answer to TRACK_STATUS.
    pub properties: Properties,
}

/// A request, or an update of one, is refused (section 10.6). The answering direction ends after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// Why.
    pub code: RequestCode,
    /// When it may be tried again: zero, at once. `None`: not at all.
    pub retry_after: Option<Duration>,
    /// Words for a log, at most 1,024 bytes. Not to be trusted; to be escaped before they are printed.
    pub reason: String,
    /// Where it may succeed; exactly if the code is [`RequestCode::Redirect`].
    pub redirect: Option<Redirect>,
}

impl RequestError {
    /// A refusal without words, not to be tried again.
    #[must_use]
    pub const fn new(code: RequestCode) -> Self {
        Self { code, retry_after: None, reason: String::new(), redirect: None }
    }
}

/// Where else a request may succeed (section 10.6.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redirect {
    /// Which server; empty: this one. Always empty from a client. At most 8,192 bytes.
    pub uri: String,
    /// Which track or namespace there; in draft 18, empty means the same.
    pub track: FullTrackName,
}
