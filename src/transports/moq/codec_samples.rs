//! Makes any value that a draft can say, for tests that try them all.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::codec_datagram::{Content, ObjectDatagram};
use super::codec_params::Place;
use super::codec_property::PropertiesBuilder;
use super::codec_subgroup::{SubgroupHeader, SubgroupId};
use super::model::{Draft, GroupOrder, Location, ObjectStatus};
use super::model_codes::{DoneCode, RequestCode};
use super::model_message::{
    Fetch, FetchOk, FetchWhat, Goaway, Message, NamespaceAdded, NamespaceDone, Publish, PublishBlocked, PublishDone,
    PublishNamespace, PublishStateNotify, Redirect, RequestError, RequestOk, RequestUpdate, Setup, Subscribe,
    SubscribeNamespace, SubscribeOk, SubscribeTracks, TrackStatus,
};
use super::model_names::{FullTrackName, Namespace, TrackName};
use super::model_params::{Fill, Filter, Params, Properties, RangeBy, RangeFilter, Token};

pub(super) fn drafts() -> impl Strategy<Value = Draft> {
    prop::sample::select([Draft::ALL, Draft::UNCONFIRMED].concat())
}

/// Numbers of every length.
pub(super) fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(number, shift)| number >> shift)
}

/// Times that can be written: whole milliseconds.
fn time() -> impl Strategy<Value = Duration> {
    number().prop_map(Duration::from_millis)
}

pub(super) fn location() -> impl Strategy<Value = Location> {
    (number(), number()).prop_map(|(group, object)| Location::new(group, object))
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn namespace() -> impl Strategy<Value = Namespace> {
    vec(vec(any::<u8>(), 1..12), 0..5).prop_map(|fields| Namespace::new(fields).unwrap())
}

fn name() -> impl Strategy<Value = TrackName> {
    vec(any::<u8>(), 0..12).prop_map(|name| TrackName::new(name).unwrap())
}

fn track() -> impl Strategy<Value = FullTrackName> {
    (namespace(), name()).prop_map(|(namespace, name)| FullTrackName::new(namespace, name).unwrap())
}

/// Properties that both tracks and objects may have.
pub(super) fn properties() -> BoxedStrategy<Properties> {
    (vec((0x80u64..0x1000, number()), 0..3), vec((0x80u64..0x1000, bytes(20)), 0..3))
        .prop_map(|(numbers, strings)| {
            let mut builder = PropertiesBuilder::default();
            for (kind, value) in numbers {
                builder = builder.number(kind * 2, value);
            }
            for (kind, value) in strings {
                builder = builder.bytes(kind * 2 + 1, value);
            }
            builder.finish().unwrap()
        })
        .boxed()
}

fn token() -> BoxedStrategy<Token> {
    prop_oneof![
        number().prop_map(|alias| Token::Delete { alias }),
        (number(), number(), bytes(20)).prop_map(|(alias, kind, value)| Token::Register { alias, kind, value }),
        number().prop_map(|alias| Token::UseAlias { alias }),
        (number(), bytes(20)).prop_map(|(kind, value)| Token::UseValue { kind, value }),
    ]
    .boxed()
}

/// Filters that a subscription can have in the draft and that come back as they were.
fn filter(draft: Draft) -> impl Strategy<Value = Filter> {
    let start = || location().prop_filter("two zeros are the next object", |start| *start != Location::START);
    let groups = (start(), number())
        .prop_map(|(start, more)| Filter::Groups { start, end_group: start.group.saturating_add(more) });
    let common =
        prop_oneof![Just(Filter::NextObject), Just(Filter::Relative(0)), start().prop_map(Filter::From), groups,];
    if draft == Draft::D18 {
        return common.boxed();
    }
    let range = (start(), number(), number()).prop_map(|(start, more, object)| Filter::Range {
        start,
        end: Location::new(start.group.saturating_add(more), object),
    });
    prop_oneof![common, Just(Filter::All), number().prop_map(Filter::Relative), range].boxed()
}

fn range_filter(track: bool) -> impl Strategy<Value = RangeFilter> {
    let by = prop_oneof![
        Just(RangeBy::Subgroup),
        Just(RangeBy::Object),
        (number()).prop_map(|kind| RangeBy::ObjectProperty(kind & !1)),
        (number()).prop_map(move |kind| if track { RangeBy::TrackProperty(kind & !1) } else { RangeBy::Object }),
    ];
    (any::<u8>(), by, vec((0..1000u64, 0..1000u64), 0..4), any::<bool>()).prop_map(|(set, by, steps, open)| {
        let (mut ranges, mut previous) = (Vec::new(), 0);
        for (gap, width) in steps {
            let first = previous + gap;
            previous = first + width;
            ranges.push((first, Some(previous)));
        }
        if let Some(last) = ranges.last_mut().filter(|_| open) {
            last.1 = None;
        }
        RangeFilter { set: Some(set), by, ranges }
    })
}

/// Filters of which no two are of the same set and kind, in the order in which they are written.
fn range_filters(track: bool) -> BoxedStrategy<Vec<RangeFilter>> {
    vec(range_filter(track), 0..4)
        .prop_map(|mut ranges| {
            ranges.sort_by_key(|range| range.by.kind());
            let mut seen = Vec::new();
            ranges.retain(|range| {
                let key = (range.set, range.by);
                let new = !seen.contains(&key);
                seen.push(key);
                new
            });
            ranges
        })
        .boxed()
}

fn order() -> impl Strategy<Value = GroupOrder> {
    prop_oneof![Just(GroupOrder::Ascending), Just(GroupOrder::Descending)]
}

fn fill(draft: Draft) -> BoxedStrategy<Fill> {
    (option::of(time()), any::<Option<u8>>(), option::of(filter(draft)), option::of(order()), range_filters(false))
        .prop_map(|(fill_timeout, priority, filter, group_order, ranges)| Fill {
            fill_timeout,
            priority,
            filter,
            group_order,
            ranges,
        })
        .boxed()
}

/// Any parameters that may stand there.
fn params(place: Place, draft: Draft) -> BoxedStrategy<Params> {
    let times = (option::of(time()), option::of(time()), option::of(time()), option::of(time()), option::of(time()));
    let flags = (any::<Option<bool>>(), any::<Option<u8>>(), option::of(order()), any::<Option<bool>>());
    let track = place == Place::SUBSCRIBE_TRACKS;
    let large = (
        vec(token(), 0..3),
        option::of(location()),
        option::of(filter(draft)),
        option::of(fill(draft.max(Draft::D20))),
        range_filters(track),
        option::of(number()),
        option::of(namespace()),
    );
    (times, flags, large)
        .prop_map(move |(times, flags, large)| {
            let all = Params {
                object_delivery_timeout: times.0,
                subgroup_delivery_timeout: times.1,
                rendezvous_timeout: times.2,
                fill_timeout: times.3,
                expires: times.4,
                forward: flags.0,
                priority: flags.1,
                group_order: flags.2,
                include_properties: flags.3,
                tokens: large.0,
                largest: large.1,
                filter: large.2,
                fill: large.3.map(Box::new),
                ranges: large.4,
                new_group: large.5,
                prefix: large.6,
            };
            all.kept_at(place, draft)
        })
        .boxed()
}

fn words(max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..max).prop_map(String::from_iter)
}

fn setup(draft: Draft) -> impl Strategy<Value = Setup> {
    let tokens = vec(token(), 0..3).prop_map(|mut tokens| {
        tokens.retain(|token| matches!(token, Token::Register { .. } | Token::UseValue { .. }));
        tokens
    });
    let texts = (option::of("(/[a-z0-9?=.]{0,20})?"), option::of("[a-z0-9.:]{0,20}"), option::of("[a-z0-9/ .]{0,30}"));
    let numbers = [(); 4].map(|()| option::of(number()));
    (texts, tokens, numbers).prop_map(
        move |((path, authority, implementation), tokens, [size, ranges, updates, relay])| Setup {
            path,
            authority,
            implementation,
            max_auth_token_cache_size: size,
            tokens,
            max_filter_ranges: ranges.filter(|_| draft != Draft::D18),
            max_request_updates: updates.filter(|_| draft != Draft::D18),
            relay,
        },
    )
}

fn fetch_what(draft: Draft) -> impl Strategy<Value = FetchWhat> {
    let range = if draft == Draft::D18 {
        let groups = (location(), number()).prop_map(|(start, end_group)| Filter::Groups { start, end_group });
        let range = (location(), location()).prop_map(|(start, end)| Filter::Range {
            start,
            end: Location::new(start.group.max(end.group), end.object.saturating_sub(1)),
        });
        prop_oneof![groups, range].boxed()
    } else {
        filter(draft).boxed()
    };
    let standalone = (track(), range).prop_map(|(track, range)| FetchWhat::Standalone { track, range });
    if draft != Draft::D18 {
        return standalone.boxed();
    }
    prop_oneof![
        standalone,
        (number(), number()).prop_map(|(subscription, groups)| FetchWhat::Relative { subscription, groups }),
        (number(), number()).prop_map(|(subscription, group)| FetchWhat::Absolute { subscription, group }),
    ]
    .boxed()
}

fn request_error(draft: Draft) -> impl Strategy<Value = RequestError> {
    let redirect = (words(20), track()).prop_map(|(uri, track)| Redirect { uri, track });
    let times = option::of((0..u64::MAX).prop_map(Duration::from_millis));
    (number(), times, words(20), redirect).prop_map(move |(code, retry_after, reason, redirect)| {
        let code = RequestCode::from_number(code, draft);
        let redirect = Some(redirect).filter(|_| code == RequestCode::Redirect);
        RequestError { code, retry_after, reason, redirect }
    })
}

/// Any message that the draft can say, as it comes back.
pub(super) fn message(draft: Draft) -> BoxedStrategy<Message> {
    requests(draft).prop_union(answers(draft)).or(others(draft)).boxed()
}

fn requests(draft: Draft) -> BoxedStrategy<Message> {
    let track_params = move |place| (number(), track(), params(place, draft));
    let below = move |place| (number(), namespace(), params(place, draft));
    prop_oneof![
        track_params(Place::SUBSCRIBE).prop_map(|(request_id, track, params)| {
            Message::Subscribe(Box::new(Subscribe { request_id, track, params }))
        }),
        track_params(Place::TRACK_STATUS).prop_map(|(request_id, track, params)| {
            Message::TrackStatus(Box::new(TrackStatus { request_id, track, params }))
        }),
        (track_params(Place::PUBLISH), number(), properties()).prop_map(
            |((request_id, track, params), track_alias, properties)| {
                Message::Publish(Box::new(Publish { request_id, track, track_alias, params, properties }))
            }
        ),
        (number(), fetch_what(draft), params(Place::FETCH, draft)).prop_map(|(request_id, what, params)| {
            let params = Params { filter: None, ..params };
            Message::Fetch(Box::new(Fetch { request_id, what, params }))
        }),
        below(Place::PUBLISH_NAMESPACE).prop_map(|(request_id, namespace, params)| {
            Message::PublishNamespace(Box::new(PublishNamespace { request_id, namespace, params }))
        }),
        below(Place::SUBSCRIBE_NAMESPACE).prop_map(|(request_id, prefix, params)| {
            Message::SubscribeNamespace(Box::new(SubscribeNamespace { request_id, prefix, params }))
        }),
        below(Place::SUBSCRIBE_TRACKS).prop_map(|(request_id, prefix, params)| {
            Message::SubscribeTracks(Box::new(SubscribeTracks { request_id, prefix, params }))
        }),
        (number(), params(Place::UPDATE, draft)).prop_map(|(request_id, params)| {
            Message::RequestUpdate(Box::new(RequestUpdate { request_id, params }))
        }),
    ]
    .boxed()
}

fn answers(draft: Draft) -> BoxedStrategy<Message> {
    prop_oneof![
        (number(), params(Place::SUBSCRIBE_OK, draft), properties()).prop_map(|(track_alias, params, properties)| {
            Message::SubscribeOk(Box::new(SubscribeOk { track_alias, params, properties }))
        }),
        (any::<bool>(), location(), properties()).prop_map(|(end_of_track, end, properties)| {
            Message::FetchOk(Box::new(FetchOk { end_of_track, end, params: Params::default(), properties }))
        }),
        (params(Place::REQUEST_OK, draft), properties())
            .prop_map(|(params, properties)| Message::RequestOk(Box::new(RequestOk { params, properties }))),
        request_error(draft).prop_map(|error| Message::RequestError(Box::new(error))),
    ]
    .boxed()
}

fn others(draft: Draft) -> BoxedStrategy<Message> {
    let goaway = (words(20), time(), option::of(number())).prop_map(move |(uri, timeout, request_id)| Goaway {
        uri,
        timeout,
        request_id: request_id.filter(|_| draft == Draft::D18),
    });
    let streams = option::of(0..(1u64 << 62) - 1);
    let done = (number(), streams, words(20)).prop_map(move |(code, streams, reason)| PublishDone {
        code: DoneCode::from_number(code, draft),
        streams,
        reason,
    });
    let common = prop_oneof![
        setup(draft).prop_map(|setup| Message::Setup(Box::new(setup))),
        goaway.prop_map(Message::Goaway),
        done.prop_map(Message::PublishDone),
        namespace().prop_map(|suffix| Message::Namespace(NamespaceAdded { suffix })),
        namespace().prop_map(|suffix| Message::NamespaceDone(NamespaceDone { suffix })),
        (namespace(), name()).prop_map(|(suffix, name)| Message::PublishBlocked(PublishBlocked { suffix, name })),
    ];
    if draft == Draft::D18 {
        return common.boxed();
    }
    let notify = params(Place::NOTIFY, draft)
        .prop_map(|params| Message::PublishStateNotify(Box::new(PublishStateNotify { params })));
    prop_oneof![common, notify].boxed()
}

pub(super) fn subgroup_header() -> impl Strategy<Value = SubgroupHeader> {
    let id = prop_oneof![Just(SubgroupId::Zero), Just(SubgroupId::FirstObject), number().prop_map(SubgroupId::Given)];
    (number(), number(), id, any::<Option<u8>>(), any::<[bool; 3]>()).prop_map(
        |(track_alias, group, subgroup, priority, [properties, end_of_group, first_object])| SubgroupHeader {
            track_alias,
            group,
            subgroup,
            priority,
            properties,
            end_of_group,
            first_object,
        },
    )
}

pub(super) fn datagram() -> impl Strategy<Value = ObjectDatagram> {
    let status =
        prop_oneof![Just(ObjectStatus::Normal), Just(ObjectStatus::EndOfGroup), Just(ObjectStatus::EndOfTrack),];
    let content = prop_oneof![bytes(40).prop_map(Content::Payload), status.prop_map(Content::Status)];
    (number(), location(), any::<Option<u8>>(), any::<bool>(), properties(), content).prop_map(
        |(track_alias, at, priority, end_of_group, properties, content)| {
            let is_object = matches!(content, Content::Payload(_));
            let properties = if is_object { properties } else { Properties::default() };
            ObjectDatagram { track_alias, at, priority, end_of_group: end_of_group && is_object, properties, content }
        },
    )
}

/// Cuts bytes into pieces at these places, wherever they are.
pub(super) fn pieces(bytes: &Bytes, cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.push(0);
    at.push(bytes.len());
    at.sort_unstable();
    at.windows(2).map(|range| bytes.slice(range[0]..range[1])).collect()
}
