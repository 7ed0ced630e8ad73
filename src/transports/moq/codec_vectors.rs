//! Bytes that others wrote, and what they mean: read as ours, and written as the same bytes again.
//!
//! Each file in tests/data/moq has lines of a name and bytes in hex; it was written by the implementation in its name
//! (tests/moq-oracle says how). What the bytes mean is said here, by name, so neither codec vouches for itself.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::codec_datagram::{Content, Datagram, ObjectDatagram, read_datagram};
use super::codec_fetch::{FetchDecoder, FetchEncoder, FetchItem, FetchObject, Gap};
use super::codec_message::{MessageDecoder, put_message};
use super::codec_property::PropertiesBuilder;
use super::codec_stream::{StreamDecoder, StreamStart, put_fetch_header};
use super::codec_subgroup::{ObjectDecoder, ObjectEncoder, Piece, SubgroupHeader, SubgroupId, put_subgroup_header};
use super::model::{Draft, GroupOrder, Location, ObjectStatus};
use super::model_codes::{DoneCode, RequestCode};
use super::model_message::{
    Fetch, FetchOk, FetchWhat, Goaway, Message, NamespaceAdded, NamespaceDone, Publish, PublishBlocked, PublishDone,
    PublishNamespace, PublishStateNotify, Redirect, RequestError, RequestOk, RequestUpdate, Setup, Subscribe,
    SubscribeNamespace, SubscribeOk, SubscribeTracks, TrackStatus,
};
use super::model_names::{FullTrackName, Namespace, TrackName};
use super::model_params::{Fill, Filter, Params, Properties, RangeBy, RangeFilter, Token};

/// What moq-transport 0.17 writes in draft 18.
const MOQ_TRANSPORT_18: &str = include_str!("../../../tests/data/moq/moq-transport-18.hex");

/// What aiomoqt 0.13.3 writes in draft 18.
const AIOMOQT_18: &str = include_str!("../../../tests/data/moq/aiomoqt-18.hex");

/// What aiomoqt 0.13.3 writes in draft 20.
const AIOMOQT_20: &str = include_str!("../../../tests/data/moq/aiomoqt-20.hex");

/// What aiomoqt 0.13.3 writes in draft 22.
const AIOMOQT_22: &str = include_str!("../../../tests/data/moq/aiomoqt-22.hex");

/// The lines of a file.
fn lines(file: &str) -> Vec<(&str, Bytes)> {
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            let digits: Vec<u8> = hex.bytes().map(|digit| char::from(digit).to_digit(16).unwrap() as u8).collect();
            (name, digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        })
        .collect()
}

fn track() -> FullTrackName {
    FullTrackName::new(Namespace::new(["moq", "test"]).unwrap(), TrackName::new("video").unwrap()).unwrap()
}

fn properties() -> Properties {
    PropertiesBuilder::default().number(0x0e, 200).number(0x30, 1).bytes(0x41, &b"kept"[..]).finish().unwrap()
}

/// What each line means that is a message.
fn expected(name: &str) -> Option<Message> {
    let at = Location::new;
    let none = Params::default;
    let subscribe = |params| Some(Message::Subscribe(Box::new(Subscribe { request_id: 2, track: track(), params })));
    let filter = |filter| subscribe(Params { filter: Some(filter), ..none() });
    let fetch = |what| Some(Message::Fetch(Box::new(Fetch { request_id: 300, what, params: none() })));
    let standalone = |range| fetch(FetchWhat::Standalone { track: track(), range });
    match name {
        "setup" => Some(Message::Setup(Box::new(Setup {
            path: Some("/live?x=1".to_owned()),
            authority: Some("example.net:4443".to_owned()),
            max_auth_token_cache_size: Some(4096),
            implementation: Some("oracle/1".to_owned()),
            ..Setup::default()
        }))),
        "subscribe" => subscribe(none()),
        "subscribe-next-group" => filter(Filter::Relative(0)),
        "subscribe-next-object" => filter(Filter::NextObject),
        "subscribe-from" => filter(Filter::From(at(70_000, 3))),
        "subscribe-groups" => filter(Filter::Groups { start: at(5, 3), end_group: 9 }),
        "subscribe-params" => subscribe(Params {
            object_delivery_timeout: Some(Duration::from_millis(500)),
            rendezvous_timeout: Some(Duration::from_secs(2)),
            tokens: vec![Token::UseValue { kind: 0, value: Bytes::from_static(b"secret") }],
            forward: Some(false),
            priority: Some(200),
            group_order: Some(GroupOrder::Descending),
            new_group: Some(0),
            ..none()
        }),
        "subscribe-ok" => Some(Message::SubscribeOk(Box::new(SubscribeOk {
            track_alias: 1 << 40,
            params: Params { expires: Some(Duration::from_millis(1000)), largest: Some(at(300, 20_000)), ..none() },
            properties: properties(),
        }))),
        "publish" => Some(Message::Publish(Box::new(Publish {
            request_id: 7,
            track: track(),
            track_alias: 128,
            params: Params { largest: Some(at(1, 0)), forward: Some(true), ..none() },
            properties: properties(),
        }))),
        "publish-done" => Some(Message::PublishDone(PublishDone {
            code: DoneCode::TrackEnded,
            streams: Some(17),
            reason: "the end".to_owned(),
        })),
        "publish-done-uncounted" => Some(Message::PublishDone(PublishDone {
            code: DoneCode::TooFarBehind,
            streams: None,
            reason: String::new(),
        })),
        "publish-namespace" => Some(Message::PublishNamespace(Box::new(PublishNamespace {
            request_id: 0,
            namespace: track().namespace().clone(),
            params: none(),
        }))),
        "subscribe-namespace" => Some(Message::SubscribeNamespace(Box::new(SubscribeNamespace {
            request_id: 4,
            prefix: track().namespace().first(1),
            params: none(),
        }))),
        "subscribe-tracks" => Some(Message::SubscribeTracks(Box::new(SubscribeTracks {
            request_id: 6,
            prefix: track().namespace().first(1),
            params: Params { forward: Some(false), ..none() },
        }))),
        "namespace" => Some(Message::Namespace(NamespaceAdded { suffix: Namespace::new(["test"]).unwrap() })),
        "namespace-done" => Some(Message::NamespaceDone(NamespaceDone { suffix: Namespace::new(["test"]).unwrap() })),
        "publish-blocked" => Some(Message::PublishBlocked(PublishBlocked {
            suffix: Namespace::new(["test"]).unwrap(),
            name: track().name().clone(),
        })),
        "track-status" => {
            Some(Message::TrackStatus(Box::new(TrackStatus { request_id: 8, track: track(), params: none() })))
        }
        "request-update" => Some(Message::RequestUpdate(Box::new(RequestUpdate {
            request_id: 10,
            params: Params { forward: Some(true), priority: Some(1), ..none() },
        }))),
        "request-update-prefix" => Some(Message::RequestUpdate(Box::new(RequestUpdate {
            request_id: 12,
            params: Params { prefix: Some(track().namespace().clone()), ..none() },
        }))),
        "request-ok" => Some(Message::RequestOk(Box::default())),
        "request-ok-largest" => Some(Message::RequestOk(Box::new(RequestOk {
            params: Params { largest: Some(at(9, 9)), ..none() },
            properties: Properties::default(),
        }))),
        "request-error" => Some(Message::RequestError(Box::new(RequestError {
            code: RequestCode::DoesNotExist,
            retry_after: Some(Duration::from_millis(5000)),
            reason: "no such track".to_owned(),
            redirect: None,
        }))),
        "request-error-redirect" => Some(Message::RequestError(Box::new(RequestError {
            redirect: Some(Redirect { uri: "moqt://other/".to_owned(), track: track() }),
            ..RequestError::new(RequestCode::Redirect)
        }))),
        "goaway" => Some(Message::Goaway(goaway(None))),
        "goaway-request" => Some(Message::Goaway(goaway(Some(6)))),
        "fetch-range" => standalone(Filter::Range { start: at(2, 1), end: at(4, 9) }),
        "fetch-groups" => standalone(Filter::Groups { start: at(2, 1), end_group: 4 }),
        "fetch-relative" => fetch(FetchWhat::Relative { subscription: 2, groups: 1 }),
        "fetch-absolute" => fetch(FetchWhat::Absolute { subscription: 2, group: 40 }),
        "fetch-ok" => Some(Message::FetchOk(Box::new(FetchOk {
            end_of_track: true,
            end: at(4, 9),
            params: none(),
            properties: properties(),
        }))),
        "fetch-ok-group" => {
            Some(Message::FetchOk(Box::new(FetchOk { end: Location::end_of(4), ..FetchOk::default() })))
        }
        _ => expected_from_20(name),
    }
}

fn goaway(request_id: Option<u64>) -> Goaway {
    Goaway { uri: "moqt://other/".to_owned(), timeout: Duration::from_secs(5), request_id }
}

/// The same for what draft 18 does not have.
fn expected_from_20(name: &str) -> Option<Message> {
    let at = Location::new;
    let none = Params::default;
    let subscribe = |params| Some(Message::Subscribe(Box::new(Subscribe { request_id: 2, track: track(), params })));
    let filter = |filter| subscribe(Params { filter: Some(filter), ..none() });
    match name {
        "subscribe-relative" => filter(Filter::Relative(2)),
        "subscribe-range" => filter(Filter::Range { start: at(5, 3), end: at(9, 1) }),
        "subscribe-all" => filter(Filter::All),
        "subscribe-fill" => subscribe(Params {
            fill: Some(Box::new(Fill {
                fill_timeout: Some(Duration::from_millis(250)),
                priority: Some(9),
                filter: Some(Filter::Relative(1)),
                group_order: Some(GroupOrder::Descending),
                ranges: Vec::new(),
            })),
            include_properties: Some(false),
            ..none()
        }),
        "subscribe-ranges" => subscribe(Params {
            ranges: vec![
                RangeFilter { set: Some(1), by: RangeBy::Object, ranges: vec![(3, Some(5)), (10, Some(15))] },
                RangeFilter { set: Some(0), by: RangeBy::ObjectProperty(16), ranges: vec![(7, None)] },
            ],
            ..none()
        }),
        "publish-state-notify" => Some(Message::PublishStateNotify(Box::new(PublishStateNotify {
            params: Params { largest: Some(at(4, 4)), forward: Some(false), ..none() },
        }))),
        _ => None,
    }
}

/// A subgroup stream: its head, and its objects of two bytes and an end.
fn subgroup_stream() -> (SubgroupHeader, Vec<(u64, Properties, Bytes, ObjectStatus)>) {
    let header = SubgroupHeader {
        track_alias: 5,
        group: 1000,
        subgroup: SubgroupId::Given(2),
        priority: Some(7),
        properties: true,
        end_of_group: true,
        first_object: false,
    };
    let of_object = PropertiesBuilder::default().number(0x10, 90_000).finish().unwrap();
    let objects = vec![
        (3, of_object, Bytes::from_static(b"ab"), ObjectStatus::Normal),
        (4, Properties::default(), Bytes::from_static(b"cd"), ObjectStatus::Normal),
        (200, Properties::default(), Bytes::new(), ObjectStatus::Normal),
        (201, Properties::default(), Bytes::new(), ObjectStatus::EndOfGroup),
    ];
    (header, objects)
}

fn check_subgroup(bytes: &Bytes, draft: Draft) {
    let (header, objects) = subgroup_stream();
    let mut written = BytesMut::new();
    put_subgroup_header(&header, &mut written);
    let mut encoder = ObjectEncoder::new(&header);
    for (id, properties, payload, status) in &objects {
        encoder.put(*id, properties, payload.len() as u64, *status, &mut written).unwrap();
        written.extend_from_slice(payload);
    }
    assert_eq!(written, bytes);
    let mut input = bytes.clone();
    let start = StreamDecoder::new(draft).decode(&mut input).unwrap();
    assert!(matches!(start, Some(StreamStart::Subgroup(found)) if found == header));
    let mut decoder = ObjectDecoder::new(&header);
    let mut found: Vec<(u64, Properties, Bytes, ObjectStatus)> = Vec::new();
    while let Some(piece) = decoder.decode(&mut input).unwrap() {
        match piece {
            Piece::Head(head) => found.push((head.id, head.properties, Bytes::new(), head.status)),
            Piece::Payload { bytes, .. } => found.last_mut().unwrap().2 = bytes,
        }
    }
    assert_eq!(found, objects);
}

fn datagrams(name: &str) -> Option<ObjectDatagram> {
    let plain = ObjectDatagram {
        track_alias: 9,
        at: Location::new(3, 500),
        priority: Some(1),
        end_of_group: false,
        properties: Properties::default(),
        content: Content::Payload(Bytes::from_static(b"payload")),
    };
    match name {
        "datagram" => Some(plain),
        "datagram-end" => Some(ObjectDatagram {
            at: Location::new(3, 0),
            priority: None,
            end_of_group: true,
            properties: PropertiesBuilder::default().number(0x10, 1).finish().unwrap(),
            ..plain
        }),
        "datagram-status" => Some(ObjectDatagram { content: Content::Status(ObjectStatus::EndOfTrack), ..plain }),
        _ => None,
    }
}

/// A fetch's stream: objects near and far, one of a datagram, and a gap.
fn fetch_items(order: GroupOrder) -> Vec<(FetchItem, Bytes)> {
    let object = |group, object, subgroup, priority, properties: Properties, payload: &'static [u8]| {
        let at = Location::new(if order == GroupOrder::Descending { 20 - group } else { group }, object);
        let length = payload.len() as u64;
        let head = FetchObject { at, subgroup, priority, properties, length };
        (FetchItem::Object(head), Bytes::from_static(payload))
    };
    let none = Properties::default;
    let some = PropertiesBuilder::default().number(0x10, 5).finish().unwrap();
    let end = Location::new(if order == GroupOrder::Descending { 11 } else { 9 }, 7);
    vec![
        object(5, 2, Some(0), 128, none(), b"first"),
        object(5, 3, Some(0), 128, none(), b"next"),
        object(5, 9, Some(4), 128, some, b"far"),
        object(5, 10, Some(4), 9, none(), b""),
        object(5, 11, Some(5), 9, none(), b"z"),
        object(8, 0, None, 9, none(), b"datagram"),
        (FetchItem::Gap { end, why: Gap::Unknown }, Bytes::new()),
        object(9, 8, Some(0), 9, none(), b"after"),
    ]
}

fn check_fetch(bytes: &Bytes, order: GroupOrder, draft: Draft) {
    let expected = fetch_items(order);
    let mut input = bytes.clone();
    let start = StreamDecoder::new(draft).decode(&mut input).unwrap();
    assert!(matches!(start, Some(StreamStart::Fetch { request_id: 300 })));
    let mut decoder = FetchDecoder::new(order, draft);
    let mut found: Vec<(FetchItem, Bytes)> = Vec::new();
    while let Some(piece) = decoder.decode(&mut input).unwrap() {
        match piece {
            Piece::Head(item) => found.push((item, Bytes::new())),
            Piece::Payload { bytes, .. } => found.last_mut().unwrap().1 = bytes,
        }
    }
    assert_eq!(found, expected);
    let mut written = BytesMut::new();
    put_fetch_header(300, &mut written);
    let mut encoder = FetchEncoder::new(order, draft);
    for (item, payload) in &expected {
        encoder.put(item, &mut written).unwrap();
        written.extend_from_slice(payload);
    }
    assert_eq!(written, bytes);
}

/// Holds all lines of a file against what they mean; says how many there were.
fn check(file: &str, draft: Draft) -> usize {
    let lines = lines(file);
    for (name, bytes) in &lines {
        if let Some(message) = expected(name) {
            let found = MessageDecoder::new(draft).decode(&mut bytes.clone()).unwrap();
            assert_eq!(found.as_ref(), Some(&message), "{name}");
            let mut written = BytesMut::new();
            put_message(&message, draft, &mut written).unwrap();
            assert_eq!(written, bytes, "{name}");
        } else if let Some(object) = datagrams(name) {
            let mut written = BytesMut::new();
            object.put(&mut written).unwrap();
            assert_eq!(written, bytes, "{name}");
            assert_eq!(read_datagram(bytes), Ok(Datagram::Object(object)), "{name}");
        } else {
            match *name {
                "subgroup" => check_subgroup(bytes, draft),
                "fetch-stream" => check_fetch(bytes, GroupOrder::Ascending, draft),
                "fetch-stream-descending" => check_fetch(bytes, GroupOrder::Descending, draft),
                other => panic!("nobody says what {other} means"),
            }
        }
    }
    lines.len()
}

#[test]
fn what_moq_transport_writes_in_draft_18_is_read_and_written_alike() {
    assert_eq!(check(MOQ_TRANSPORT_18, Draft::D18), 32);
}

#[test]
fn what_aiomoqt_writes_is_read_and_written_alike_in_all_drafts() {
    assert_eq!(check(AIOMOQT_18, Draft::D18), 34);
    assert_eq!(check(AIOMOQT_20, Draft::D20), 38);
    assert_eq!(check(AIOMOQT_22, Draft::D22), 38);
}
