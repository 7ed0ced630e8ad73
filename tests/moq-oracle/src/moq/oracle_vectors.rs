//! Writes what moq-transport says for each name that `codec_vectors` explains, or compares it with what is there.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use moq_transport::coding::{
    Encode, KeyValuePair, KeyValuePairs, Location, ReasonPhrase, TrackNamespace, TrackNamespacePrefix,
};
use moq_transport::data::{
    Datagram, DatagramType, ExtensionHeaders, ObjectStatus, StreamHeaderType, SubgroupHeader, SubgroupIdMode,
    SubgroupObjectExt,
};
use moq_transport::message::{
    Fetch, FetchOk, FetchType, FilterType, GroupOrder, JoiningFetch, Message, Namespace, NamespaceDone, Publish,
    PublishBlocked, PublishDone, PublishNamespace, RequestError, RequestOk, RequestUpdate, StandaloneFetch, Subscribe,
    SubscribeNamespace, SubscribeOk, SubscribeTracks, SubscriptionFilter, TrackExtensions, TrackStatus,
};
use moq_transport::setup::Setup;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/moq/moq-transport-18.hex");

fn encoded(value: &impl Encode) -> BytesMut {
    let mut out = BytesMut::new();
    value.encode(&mut out).unwrap();
    out
}

fn message(message: impl Into<Message>) -> BytesMut {
    encoded(&message.into())
}

/// An answer as sessions of moq-transport write it: without the number of the request, here 0, in front.
fn answer(kind: u64, fields: &impl Encode) -> BytesMut {
    let body = encoded(fields).split_off(1);
    let mut out = encoded(&kind);
    out.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&body);
    out
}

fn namespace() -> TrackNamespace {
    TrackNamespace::from_utf8_path("moq/test")
}

fn params(set: impl FnOnce(&mut KeyValuePairs)) -> KeyValuePairs {
    let mut params = KeyValuePairs::new();
    set(&mut params);
    params
}

fn subscribe(params: KeyValuePairs) -> BytesMut {
    message(Subscribe { id: 2, track_namespace: namespace(), track_name: "video".into(), params })
}

fn filtered(filter_type: FilterType, start_location: Option<Location>, end_group_id: Option<u64>) -> BytesMut {
    let filter = SubscriptionFilter { filter_type, start_location, end_group_id };
    subscribe(params(|params| params.set_subscription_filter(&filter).unwrap()))
}

fn fetch(fetch_type: FetchType, end: Option<Location>, joining: Option<(u64, u64)>) -> BytesMut {
    message(Fetch {
        id: 300,
        fetch_type,
        standalone_fetch: end.map(|end_location| StandaloneFetch {
            track_namespace: namespace(),
            track_name: "video".into(),
            start_location: Location::new(2, 1),
            end_location,
        }),
        joining_fetch: joining
            .map(|(joining_request_id, joining_start)| JoiningFetch { joining_request_id, joining_start }),
        params: KeyValuePairs::new(),
    })
}

fn track_properties() -> TrackExtensions {
    let mut properties = TrackExtensions::new();
    properties.set_default_publisher_priority(200);
    properties.set_dynamic_groups(true);
    properties.set_bytes_extension(0x41, b"kept".to_vec());
    properties
}

fn subgroup() -> BytesMut {
    let header_type = StreamHeaderType::subgroup(SubgroupIdMode::Explicit, true, true, false, false);
    let mut out = encoded(&SubgroupHeader {
        header_type,
        track_alias: 5,
        group_id: 1000,
        subgroup_id: Some(2),
        publisher_priority: 7,
    });
    let mut of_object = ExtensionHeaders::new();
    of_object.set_intvalue(0x10, 90_000);
    let none = ExtensionHeaders::new;
    let objects = [
        (3, of_object, &b"ab"[..], None),
        (0, none(), b"cd", None),
        (195, none(), b"", Some(ObjectStatus::NormalObject)),
        (0, none(), b"", Some(ObjectStatus::EndOfGroup)),
    ];
    for (object_id_delta, extension_headers, payload, status) in objects {
        let payload_length = payload.len();
        out.unsplit(encoded(&SubgroupObjectExt { object_id_delta, extension_headers, payload_length, status }));
        out.extend_from_slice(payload);
    }
    out
}

fn datagram(datagram_type: DatagramType) -> BytesMut {
    let mut properties = ExtensionHeaders::new();
    properties.set(KeyValuePair::new_int(0x10, 1));
    encoded(&Datagram {
        datagram_type,
        track_alias: 9,
        group_id: 3,
        object_id: datagram_type.has_object_id().then_some(500),
        publisher_priority: (!datagram_type.uses_default_priority()).then_some(1),
        extension_headers: datagram_type.has_properties().then_some(properties),
        status: datagram_type.has_status().then_some(ObjectStatus::EndOfTrack),
        payload: (!datagram_type.has_status()).then(|| Bytes::from_static(b"payload")),
    })
}

fn setup() -> BytesMut {
    let options = params(|options| {
        options.set_bytesvalue(1, b"/live?x=1".to_vec());
        options.set_bytesvalue(5, b"example.net:4443".to_vec());
        options.set_intvalue(4, 4096);
        options.set_bytesvalue(7, b"oracle/1".to_vec());
    });
    let mut out = BytesMut::new();
    Setup { params: options }.encode_full(&mut out).unwrap();
    out
}

fn all() -> Vec<(&'static str, BytesMut)> {
    use moq_transport::message::wire_id as kind;
    let none = KeyValuePairs::new;
    let at = Location::new;
    let prefix = || TrackNamespacePrefix::from_utf8_path("moq");
    let suffix = || TrackNamespacePrefix::from_utf8_path("test");
    let done = |status_code, stream_count, reason: &str| {
        let reason = ReasonPhrase(reason.to_owned());
        answer(kind::PublishDone, &PublishDone { id: 0, status_code, stream_count, reason })
    };
    let subscribe_params = params(|params| {
        params.set_intvalue(0x02, 500);
        params.set_intvalue(0x04, 2000);
        // Used once, of kind 0.
        params.set_bytesvalue(0x03, b"\x03\x00secret".to_vec());
        params.set_forward(false);
        params.set_subscriber_priority(200);
        params.set_group_order(GroupOrder::Descending);
        params.set_intvalue(0x32, 0);
    });
    vec![
        ("setup", setup()),
        ("subscribe", subscribe(none())),
        ("subscribe-next-group", filtered(FilterType::NextGroupStart, None, None)),
        ("subscribe-next-object", filtered(FilterType::LargestObject, None, None)),
        ("subscribe-from", filtered(FilterType::AbsoluteStart, Some(at(70_000, 3)), None)),
        // Written as it is given: the distance to the last group.
        ("subscribe-groups", filtered(FilterType::AbsoluteRange, Some(at(5, 3)), Some(4))),
        ("subscribe-params", subscribe(subscribe_params)),
        ("subscribe-ok", {
            let params = params(|params| {
                params.set_expires(1000);
                params.set_largest_object(at(300, 20_000)).unwrap();
            });
            let track_extensions = track_properties();
            answer(kind::SubscribeOk, &SubscribeOk { id: 0, track_alias: 1 << 40, params, track_extensions })
        }),
        ("publish", {
            let params = params(|params| {
                params.set_forward(true);
                params.set_largest_object(at(1, 0)).unwrap();
            });
            message(Publish {
                id: 7,
                track_namespace: namespace(),
                track_name: "video".into(),
                track_alias: 128,
                params,
                track_extensions: track_properties(),
            })
        }),
        ("publish-done", done(2, 17, "the end")),
        ("publish-done-uncounted", done(5, (1 << 62) - 1, "")),
        ("publish-namespace", message(PublishNamespace { id: 0, track_namespace: namespace(), params: none() })),
        (
            "subscribe-namespace",
            message(SubscribeNamespace { id: 4, track_namespace_prefix: prefix(), params: none() }),
        ),
        ("subscribe-tracks", {
            let params = params(|params| params.set_forward(false));
            message(SubscribeTracks { id: 6, track_namespace_prefix: prefix(), params })
        }),
        ("namespace", message(Namespace { track_namespace_suffix: suffix() })),
        ("namespace-done", message(NamespaceDone { track_namespace_suffix: suffix() })),
        ("publish-blocked", message(PublishBlocked { track_namespace_suffix: suffix(), track_name: "video".into() })),
        (
            "track-status",
            message(TrackStatus { id: 8, track_namespace: namespace(), track_name: "video".into(), params: none() }),
        ),
        ("request-update", {
            let params = params(|params| {
                params.set_forward(true);
                params.set_subscriber_priority(1);
            });
            message(RequestUpdate { id: 10, existing_request_id: 2, params })
        }),
        ("request-ok", answer(kind::RequestOk, &RequestOk { id: 0, params: none() })),
        ("request-ok-largest", {
            let params = params(|params| params.set_largest_object(at(9, 9)).unwrap());
            answer(kind::RequestOk, &RequestOk { id: 0, params })
        }),
        ("request-error", {
            let reason = ReasonPhrase("no such track".to_owned());
            let error = RequestError { id: 0, error_code: 0x10, retry_interval: 5001, reason };
            answer(kind::RequestError, &error)
        }),
        ("fetch-range", fetch(FetchType::Standalone, Some(at(4, 10)), None)),
        ("fetch-groups", fetch(FetchType::Standalone, Some(at(4, 0)), None)),
        ("fetch-relative", fetch(FetchType::RelativeJoining, None, Some((2, 1)))),
        ("fetch-absolute", fetch(FetchType::AbsoluteJoining, None, Some((2, 40)))),
        ("fetch-ok", {
            let (end_location, track_extensions) = (at(4, 10), track_properties());
            let ok = FetchOk { id: 0, end_of_track: true, end_location, params: none(), track_extensions };
            answer(kind::FetchOk, &ok)
        }),
        ("fetch-ok-group", {
            let (end_location, track_extensions) = (at(4, 0), TrackExtensions::new());
            let ok = FetchOk { id: 0, end_of_track: false, end_location, params: none(), track_extensions };
            answer(kind::FetchOk, &ok)
        }),
        ("subgroup", subgroup()),
        ("datagram", datagram(DatagramType::ObjectIdPayload)),
        ("datagram-end", datagram(DatagramType::PayloadExtEndOfGroupDefaultPriority)),
        ("datagram-status", datagram(DatagramType::ObjectIdStatus)),
    ]
}

#[test]
fn vectors_are_what_moq_transport_writes() {
    let mut text = String::from("# Written by moq-transport 0.17.0 (tests/moq-oracle): draft 18.\n");
    for (name, bytes) in all() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name} {hex}").unwrap();
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(FILE).unwrap(), text);
}
