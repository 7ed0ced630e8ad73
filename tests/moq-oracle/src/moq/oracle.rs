//! Whatever our codec writes in draft 18, moq-transport reads, and writes the same bytes again: so both agree on every
//! length and every form, in both directions. What the fields mean is compared where bits are packed, and by name in
//! `codec_vectors`. What moq-transport does not have is left out, and said where.

use bytes::{Buf, Bytes, BytesMut};
use moq_transport::coding::{Decode, Encode};
use moq_transport::data as their_data;
use moq_transport::message as theirs;
use moq_transport::setup as their_setup;
use proptest::prelude::*;

use super::codec::put_varint;
use super::codec_datagram::{Content, Datagram, ObjectDatagram, read_datagram};
use super::codec_message::put_message;
use super::codec_samples::{datagram, message, number, properties, subgroup_header};
use super::codec_stream::put_fetch_header;
use super::codec_subgroup::{ObjectEncoder, SubgroupHeader, SubgroupId, put_subgroup_header};
use super::model::{Draft, ObjectStatus};
use super::model_message::Message;
use super::model_params::{Params, Properties};

fn ours(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    put_message(message, Draft::D18, &mut out).unwrap();
    out.freeze()
}

/// Reads all of it with moq-transport, and writes it again.
fn through<T: Decode + Encode>(bytes: &[u8]) -> Bytes {
    let mut input = Bytes::copy_from_slice(bytes);
    let value = T::decode(&mut input).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    assert!(!input.has_remaining(), "{} bytes are left of {bytes:02x?}", input.remaining());
    let mut out = BytesMut::new();
    value.encode(&mut out).unwrap();
    out.freeze()
}

/// The same for an answer: moq-transport's types begin with the number of the request, which draft 18 leaves out and its
/// sessions cut off.
fn through_answer<T: Decode + Encode>(body: &[u8]) -> Bytes {
    let with_id = [&[0], body].concat();
    through::<T>(&with_id).slice(1..)
}

/// Whether moq-transport knows all of these parameters: not the new prefix, which it takes for a number.
fn knows(params: &Params) -> bool {
    params.prefix.is_none()
}

/// What moq-transport makes of a message of ours; `None` if it does not have such a message.
fn reply(message: &Message, bytes: &Bytes) -> Option<Bytes> {
    let head = 3;
    let body = bytes.get(head..).unwrap_or_default();
    let answer = |body: Bytes| Some([bytes.slice(..head), body].concat().into());
    let known = match message {
        Message::Setup(_) => {
            let mut input = bytes.slice(2..);
            let setup = their_setup::Setup::decode_after_type(&mut input).unwrap();
            let mut out = BytesMut::new();
            setup.encode_full(&mut out).unwrap();
            return Some(out.freeze());
        }
        // Theirs is of an older draft and has no timeout.
        Message::Goaway(_) => return None,
        // A namespace of no field is refused there.
        Message::Subscribe(message) => knows(&message.params) && !message.track.namespace().is_empty(),
        Message::TrackStatus(message) => knows(&message.params) && !message.track.namespace().is_empty(),
        Message::Publish(message) => knows(&message.params) && !message.track.namespace().is_empty(),
        Message::PublishNamespace(message) => !message.namespace.is_empty(),
        Message::Fetch(message) => match &message.what {
            super::model_message::FetchWhat::Standalone { track, .. } => !track.namespace().is_empty(),
            _ => true,
        },
        Message::RequestUpdate(message) => knows(&message.params),
        Message::SubscribeNamespace(_) | Message::SubscribeTracks(_) => true,
        Message::Namespace(_) | Message::NamespaceDone(_) | Message::PublishBlocked(_) => true,
        Message::SubscribeOk(_) => return answer(through_answer::<theirs::SubscribeOk>(body)),
        Message::PublishDone(_) => return answer(through_answer::<theirs::PublishDone>(body)),
        Message::FetchOk(_) => return answer(through_answer::<theirs::FetchOk>(body)),
        // Theirs has no properties; they are written by the session.
        Message::RequestOk(ok) if ok.properties.is_empty() => {
            return answer(through_answer::<theirs::RequestOk>(body));
        }
        // Theirs has no redirect.
        Message::RequestError(error) if error.redirect.is_none() => {
            return answer(through_answer::<theirs::RequestError>(body));
        }
        Message::RequestOk(_) | Message::RequestError(_) => false,
        Message::PublishStateNotify(_) | Message::Unsubscribe => false,
    };
    known.then(|| through::<theirs::Message>(bytes))
}

#[test]
fn all_numbers_of_messages_are_the_same() {
    use super::codec_message::message as our;
    use theirs::wire_id;
    let pairs = [
        (our::SUBSCRIBE, wire_id::Subscribe),
        (our::SUBSCRIBE_OK, wire_id::SubscribeOk),
        (our::PUBLISH, wire_id::Publish),
        (our::PUBLISH_OK, wire_id::PublishOk),
        (our::PUBLISH_DONE, wire_id::PublishDone),
        (our::FETCH, wire_id::Fetch),
        (our::FETCH_OK, wire_id::FetchOk),
        (our::TRACK_STATUS, wire_id::TrackStatus),
        (our::PUBLISH_NAMESPACE, wire_id::PublishNamespace),
        (our::SUBSCRIBE_NAMESPACE, wire_id::SubscribeNamespace),
        (our::SUBSCRIBE_TRACKS, wire_id::SubscribeTracks),
        (our::NAMESPACE, wire_id::Namespace),
        (our::NAMESPACE_DONE, wire_id::NamespaceDone),
        (our::PUBLISH_BLOCKED, wire_id::PublishBlocked),
        (our::REQUEST_UPDATE, wire_id::RequestUpdate),
        (our::REQUEST_OK, wire_id::RequestOk),
        (our::REQUEST_ERROR, wire_id::RequestError),
        (our::GOAWAY, wire_id::GoAway),
        (our::UNSUBSCRIBE, wire_id::Unsubscribe),
        (our::SETUP, their_setup::SETUP_TYPE),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn codes_have_the_same_numbers() {
    use super::model_codes::{DoneCode, RequestCode};
    use theirs::{PublishDoneCode, RequestErrorCode};
    let requests = [
        (RequestCode::InternalError, RequestErrorCode::InternalError),
        (RequestCode::Unauthorized, RequestErrorCode::Unauthorized),
        (RequestCode::Timeout, RequestErrorCode::Timeout),
        (RequestCode::NotSupported, RequestErrorCode::NotSupported),
        (RequestCode::MalformedAuthToken, RequestErrorCode::MalformedAuthToken),
        (RequestCode::ExpiredAuthToken, RequestErrorCode::ExpiredAuthToken),
        (RequestCode::GoingAway, RequestErrorCode::GoingAway),
        (RequestCode::ExcessiveLoad, RequestErrorCode::ExcessiveLoad),
        (RequestCode::DoesNotExist, RequestErrorCode::DoesNotExist),
        (RequestCode::InvalidRange, RequestErrorCode::InvalidRange),
        (RequestCode::MalformedTrack, RequestErrorCode::MalformedTrack),
        (RequestCode::DuplicateSubscription, RequestErrorCode::DuplicateSubscription),
        (RequestCode::Uninterested, RequestErrorCode::Uninterested),
        (RequestCode::PrefixOverlap, RequestErrorCode::PrefixOverlap),
        (RequestCode::NamespaceTooLarge, RequestErrorCode::NamespaceTooLarge),
        (RequestCode::InvalidJoiningRequestId, RequestErrorCode::InvalidJoiningRequestId),
        (RequestCode::UnsupportedExtension, RequestErrorCode::UnsupportedExtension),
        (RequestCode::Redirect, RequestErrorCode::Redirect),
    ];
    for (ours, theirs) in requests {
        assert_eq!(ours.number(Draft::D18), u64::from(theirs));
    }
    let done = [
        (DoneCode::InternalError, PublishDoneCode::InternalError),
        (DoneCode::Unauthorized, PublishDoneCode::Unauthorized),
        (DoneCode::TrackEnded, PublishDoneCode::TrackEnded),
        (DoneCode::SubscriptionEnded, PublishDoneCode::SubscriptionEnded),
        (DoneCode::GoingAway, PublishDoneCode::GoingAway),
        (DoneCode::TooFarBehind, PublishDoneCode::TooFarBehind),
        (DoneCode::Expired, PublishDoneCode::Expired),
        (DoneCode::UpdateFailed, PublishDoneCode::UpdateFailed),
        (DoneCode::ExcessiveLoad, PublishDoneCode::ExcessiveLoad),
        (DoneCode::MalformedTrack, PublishDoneCode::MalformedTrack),
    ];
    for (ours, theirs) in done {
        assert_eq!(ours.number(Draft::D18), u64::from(theirs));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn numbers_are_written_alike(number in number()) {
        let mut bytes = Vec::new();
        put_varint(number, &mut bytes);
        prop_assert_eq!(&through::<u64>(&bytes), &bytes);
    }

    #[test]
    fn messages_come_back_as_they_went(message in message(Draft::D18)) {
        let bytes = ours(&message);
        if let Some(reply) = reply(&message, &bytes) {
            prop_assert_eq!(reply, bytes);
        }
    }

    #[test]
    fn heads_of_subgroups_come_back_as_they_went(header in subgroup_header()) {
        let mut bytes = BytesMut::new();
        put_subgroup_header(&header, &mut bytes);
        let mut input = bytes.clone().freeze();
        let read = their_data::StreamHeader::decode(&mut input).unwrap();
        prop_assert!(!input.has_remaining());
        let theirs = read.subgroup_header.unwrap();
        prop_assert_eq!(theirs.track_alias, header.track_alias);
        prop_assert_eq!(theirs.group_id, header.group);
        prop_assert_eq!(theirs.publisher_priority, header.priority.unwrap_or(128));
        // Bits that were exchanged would come back exchanged: what they mean is compared as well.
        let (mode, id) = match header.subgroup {
            SubgroupId::Zero => (their_data::SubgroupIdMode::Zero, None),
            SubgroupId::FirstObject => (their_data::SubgroupIdMode::FirstObject, None),
            SubgroupId::Given(id) => (their_data::SubgroupIdMode::Explicit, Some(id)),
        };
        prop_assert_eq!(theirs.subgroup_id, id);
        let (properties, end_of_group) = (header.properties, header.end_of_group);
        let (default_priority, first_object) = (header.priority.is_none(), header.first_object);
        let kind =
            their_data::StreamHeaderType::subgroup(mode, properties, end_of_group, default_priority, first_object);
        prop_assert_eq!(theirs.header_type, kind);
        let mut out = BytesMut::new();
        theirs.encode(&mut out).unwrap();
        prop_assert_eq!(out, bytes);
    }

    #[test]
    fn heads_of_objects_come_back_as_they_went(
        ids in proptest::collection::btree_set(any::<u64>(), 1..5),
        properties in properties(),
        with in any::<bool>(),
        length in 0..1u64 << 40,
        end in any::<bool>(),
    ) {
        let header = SubgroupHeader { properties: with, ..PLAIN };
        let mut encoder = ObjectEncoder::new(&header);
        let properties = if with && !end { properties } else { Properties::default() };
        let (length, status) = if end { (0, ObjectStatus::EndOfGroup) } else { (length, ObjectStatus::Normal) };
        for id in ids {
            let mut bytes = BytesMut::new();
            encoder.put(id, &properties, length, status, &mut bytes).unwrap();
            let reply = if with {
                through::<their_data::SubgroupObjectExt>(&bytes)
            } else {
                through::<their_data::SubgroupObject>(&bytes)
            };
            prop_assert_eq!(reply, bytes);
        }
    }

    #[test]
    fn heads_of_fetches_come_back_as_they_went(request_id in number()) {
        let mut bytes = BytesMut::new();
        put_fetch_header(request_id, &mut bytes);
        let mut input = bytes.clone().freeze();
        let theirs = their_data::StreamHeader::decode(&mut input).unwrap().fetch_header.unwrap();
        prop_assert_eq!(theirs.request_id, request_id);
        let mut out = BytesMut::new();
        theirs.encode(&mut out).unwrap();
        prop_assert_eq!(out, bytes);
    }

    #[test]
    fn datagrams_come_back_as_they_went(object in datagram()) {
        // Empty payload is refused there.
        prop_assume!(object.content != Content::Payload(Bytes::new()));
        let mut bytes = BytesMut::new();
        object.put(&mut bytes).unwrap();
        let theirs = their_data::Datagram::decode(&mut bytes.clone()).unwrap();
        prop_assert_eq!(theirs.track_alias, object.track_alias);
        prop_assert_eq!((theirs.group_id, theirs.object_id.unwrap_or(0)), (object.at.group, object.at.object));
        prop_assert_eq!(theirs.publisher_priority, object.priority);
        prop_assert_eq!(theirs.datagram_type.end_of_group(), object.end_of_group);
        prop_assert_eq!(theirs.extension_headers.is_some(), !object.properties.is_empty());
        match &object.content {
            Content::Payload(payload) => prop_assert_eq!(theirs.payload.as_ref(), Some(payload)),
            Content::Status(status) => prop_assert_eq!(theirs.status.unwrap() as u64, status.number()),
        }
        prop_assert_eq!(through::<their_data::Datagram>(&bytes), bytes);
    }

    /// What one end refuses, the other does not wave through, but for what is known to differ.
    #[test]
    fn altered_datagrams_are_judged_alike(
        object in datagram(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3),
    ) {
        let mut bytes = BytesMut::new();
        object.put(&mut bytes).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = bytes.freeze();
        let their_judgement = their_data::Datagram::decode(&mut bytes.clone());
        match (read_datagram(&bytes), their_judgement) {
            (Ok(Datagram::Object(ours)), Ok(theirs)) => {
                prop_assert_eq!(ours.track_alias, theirs.track_alias);
                prop_assert_eq!(ours.at.group, theirs.group_id);
                prop_assert_eq!(ours.at.object, theirs.object_id.unwrap_or(0));
            }
            (Ok(Datagram::Object(ours)), Err(_)) => prop_assert!(is_stricter_there(&ours)),
            // We look into properties: those that nobody may pass on are refused.
            (Err(mistake), Ok(theirs)) => {
                prop_assert!(theirs.extension_headers.is_some(), "{mistake}: {:02x?}", bytes);
            }
            (Ok(Datagram::Padding) | Err(_), _) => {}
        }
    }
}

/// An object without payload is one (section 11.3); moq-transport refuses it.
fn is_stricter_there(object: &ObjectDatagram) -> bool {
    matches!(&object.content, Content::Payload(payload) if payload.is_empty())
}

const PLAIN: SubgroupHeader = SubgroupHeader {
    track_alias: 0,
    group: 0,
    subgroup: SubgroupId::Zero,
    priority: None,
    properties: false,
    end_of_group: false,
    first_object: false,
};
