//! Messages go both ways in each draft, however they are cut; what is too short, too long or out of place is answered as
//! it must be.

use proptest::prelude::*;

use super::super::codec::{Ends, MAX_RANGES};
use super::super::codec_params::parameter;
use super::super::codec_samples::{drafts, message, pieces};
use super::super::model_codes::SessionCode;
use super::super::model_message::Setup;
use super::super::model_names::{FullTrackName, NameError, Namespace, TrackName};
use super::super::model_params::{Fill, MAX_TOKENS, RangeBy, RangeFilter, Token};
use super::*;

fn encoded(message: &Message, draft: Draft) -> Bytes {
    let mut out = BytesMut::new();
    put_message(message, draft, &mut out).unwrap();
    out.freeze()
}

fn decoded(bytes: impl Into<Bytes>, draft: Draft) -> Result<Option<Message>, Refused> {
    MessageDecoder::new(draft).decode(&mut bytes.into())
}

/// A message of this type with this body.
fn framed(kind: u64, body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_varint(kind, &mut out);
    out.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(body);
    out.freeze()
}

fn mistake(kind: u64, body: &[u8], draft: Draft) -> Mistake {
    decoded(framed(kind, body), draft).expect_err("it is refused").mistake
}

const BROKEN: Ends = Ends::Session(SessionCode::ProtocolViolation);

/// SUBSCRIBE for request 0 of track `t` in namespace `n`, up to its parameters.
const SUBSCRIBE: [u8; 6] = [0, 1, 1, b'n', 1, b't'];

fn subscribe(params: &[u8]) -> Vec<u8> {
    [&SUBSCRIBE, params].concat()
}

#[test]
fn subscribe_has_the_bytes_that_the_draft_says() {
    let track = FullTrackName::new(Namespace::new(["n"]).unwrap(), TrackName::new("t").unwrap()).unwrap();
    let message = |filter| {
        let params = Params { priority: Some(200), filter: Some(filter), ..Params::default() };
        Message::Subscribe(Box::new(Subscribe { request_id: 0, track: track.clone(), params }))
    };
    // Type, length of two bytes, the fields; two parameters, the second one further by 1.
    let expected = [&[3, 0, 12], &SUBSCRIBE[..], &[2, 0x20, 200, 1, 1, 2]].concat();
    assert_eq!(encoded(&message(Filter::NextObject), Draft::D18), expected);
    let expected = [&[3, 0, 13], &SUBSCRIBE[..], &[2, 0x20, 200, 1, 2, 0, 0]].concat();
    assert_eq!(encoded(&message(Filter::NextObject), Draft::D20), expected);
}

/// moq-transport writes the publisher's timeout of objects so; draft 18 has it among the track's properties.
#[test]
fn a_timeout_of_objects_in_publish_is_read_in_both_drafts() {
    let publish = |request_id| Publish {
        request_id,
        track: "test--track".parse().unwrap(),
        track_alias: 3,
        params: Params { object_delivery_timeout: Some(Duration::from_millis(100)), ..Params::default() },
        properties: Properties::default(),
    };
    let whole = encoded(&Message::Publish(Box::new(publish(2))), Draft::D20);
    for draft in [Draft::D18, Draft::D20] {
        let Ok(Some(Message::Publish(read))) = decoded(whole.clone(), draft) else { panic!("{draft:?}") };
        assert_eq!(*read, publish(2));
    }
    let subscribe_ok = framed(message::SUBSCRIBE_OK, &[1, 1, 2, 100]);
    let refused = decoded(subscribe_ok, Draft::D18).unwrap_err();
    assert_eq!(refused.mistake, Mistake::MisplacedParameter(2), "elsewhere it is misplaced");
}

#[test]
fn setup_begins_with_a_type_of_two_bytes() {
    let setup = Setup { path: Some("/a".to_owned()), max_auth_token_cache_size: Some(7), ..Setup::default() };
    let bytes = encoded(&Message::Setup(Box::new(setup)), Draft::D18);
    assert_eq!(bytes[..], [0xaf, 0x00, 0, 6, 1, 2, b'/', b'a', 3, 7]);
}

#[test]
fn the_end_of_a_fetch_is_written_as_the_draft_does() {
    let end = |object| {
        let ok = FetchOk { end: Location::new(5, object), ..FetchOk::default() };
        Message::FetchOk(Box::new(ok))
    };
    assert_eq!(encoded(&end(9), Draft::D18)[3..], [0, 5, 10, 0]);
    assert_eq!(encoded(&end(u64::MAX), Draft::D18)[3..], [0, 5, 0, 0]);
    assert_eq!(encoded(&end(9), Draft::D20)[3..], [0, 5, 9, 0]);
}

#[test]
fn a_fetch_without_an_end_names_a_far_one_in_draft_18() {
    let fetch = |range| {
        let what = FetchWhat::Standalone { track: FullTrackName::default(), range };
        Message::Fetch(Box::new(Fetch { request_id: 0, what, params: Params::default() }))
    };
    let Ok(Some(Message::Fetch(found))) = decoded(encoded(&fetch(Filter::All), Draft::D18), Draft::D18) else {
        panic!("no fetch");
    };
    let range = Filter::Groups { start: Location::START, end_group: NO_END };
    assert_eq!(Message::Fetch(found), fetch(range));
    let mut out = BytesMut::new();
    assert!(put_message(&fetch(Filter::Relative(1)), Draft::D18, &mut out).is_err());
    assert!(out.is_empty());
    assert_eq!(decoded(encoded(&fetch(Filter::All), Draft::D20), Draft::D20), Ok(Some(fetch(Filter::All))));
}

#[test]
fn what_a_draft_has_no_words_for_is_not_written() {
    let joining = FetchWhat::Relative { subscription: 0, groups: 1 };
    let cases = [
        (Draft::D20, Message::Fetch(Box::new(Fetch { request_id: 2, what: joining, params: Params::default() }))),
        (Draft::D18, Message::PublishStateNotify(Box::default())),
        (Draft::D18, update(Params { filter: Some(Filter::Relative(3)), ..Params::default() })),
        (Draft::D18, update(Params { fill: Some(Box::default()), ..Params::default() })),
        (Draft::D20, update(Params { expires: Some(Duration::ZERO), ..Params::default() })),
        (Draft::D20, Message::RequestError(Box::new(RequestError::new(RequestCode::Redirect)))),
        (
            Draft::D18,
            Message::PublishDone(PublishDone { code: DoneCode::TrackEnded, streams: None, reason: "x".repeat(1025) }),
        ),
    ];
    for (draft, message) in cases {
        let mut out = BytesMut::from(&b"before"[..]);
        assert!(put_message(&message, draft, &mut out).is_err(), "{message:?} in {draft}");
        assert_eq!(out[..], b"before"[..]);
    }
}

fn update(params: Params) -> Message {
    Message::RequestUpdate(Box::new(RequestUpdate { request_id: 0, params }))
}

#[test]
fn types_that_nobody_knows_end_the_session_before_their_length_comes() {
    for kind in [0x0u64, 0x1, 0x9, 0xa, 0x20, 0x21, 0x40, 0x1e, 0x11, 0x9d, 0x11c] {
        let mut head = BytesMut::new();
        put_varint(kind, &mut head);
        let refused = decoded(head, Draft::D20).unwrap_err();
        assert_eq!(refused, Refused { mistake: Mistake::UnknownMessage(kind), request_id: None });
        assert_eq!(refused.mistake.ends(), BROKEN);
    }
    assert_eq!(mistake(message::PUBLISH_STATE_NOTIFY, &[0], Draft::D18), Mistake::UnknownMessage(0x22));
    assert!(decoded(framed(message::PUBLISH_STATE_NOTIFY, &[0]), Draft::D20).is_ok());
}

#[test]
fn parameters_are_known_belong_there_and_come_once() {
    let cases: [(&[u8], Draft, Mistake); 10] = [
        (&[1, 0x01, 0], Draft::D18, Mistake::UnknownParameter(0x01)),
        (&[1, 0x80, 0x9d, 0], Draft::D20, Mistake::UnknownParameter(0x9d)),
        (&[1, 0x23, 0], Draft::D18, Mistake::UnknownParameter(0x23)),
        (&[1, 0x08, 0], Draft::D18, Mistake::MisplacedParameter(0x08)),
        (&[1, 0x29, 0], Draft::D20, Mistake::MisplacedParameter(0x29)),
        (&[2, 0x20, 1, 0, 1], Draft::D18, Mistake::Duplicate(0x20)),
        (&[1, 0x10, 2], Draft::D18, Mistake::InvalidValue(0x10)),
        (&[1, 0x22, 0], Draft::D18, Mistake::InvalidValue(0x22)),
        (&[1, 0x22, 3], Draft::D20, Mistake::InvalidValue(0x22)),
        (&[1, 0x35, 2], Draft::D20, Mistake::InvalidValue(0x35)),
    ];
    for (params, draft, expected) in cases {
        assert_eq!(mistake(message::SUBSCRIBE, &subscribe(params), draft), expected);
        assert_eq!(expected.ends(), BROKEN);
    }
    let mut overflow = vec![2, 0x20, 1];
    put_varint(u64::MAX, &mut overflow);
    assert_eq!(mistake(message::SUBSCRIBE, &subscribe(&overflow), Draft::D18), Mistake::Overflow);
}

#[test]
fn filters_are_read_as_their_draft_writes_them() {
    let filter = |bytes: &[u8], draft| {
        let params = [&[1, 0x21, bytes.len() as u8], bytes].concat();
        match decoded(framed(message::SUBSCRIBE, &subscribe(&params)), draft) {
            Ok(Some(Message::Subscribe(subscribe))) => Ok(subscribe.params.filter.unwrap()),
            Err(refused) => Err(refused.mistake),
            other => panic!("{other:?}"),
        }
    };
    let at = Location::new;
    assert_eq!(filter(&[1], Draft::D18), Ok(Filter::Relative(0)));
    assert_eq!(filter(&[2], Draft::D18), Ok(Filter::NextObject));
    assert_eq!(filter(&[3, 4, 5], Draft::D18), Ok(Filter::From(at(4, 5))));
    assert_eq!(filter(&[4, 4, 5, 2], Draft::D18), Ok(Filter::Groups { start: at(4, 5), end_group: 6 }));
    assert_eq!(filter(&[5], Draft::D18), Err(Mistake::InvalidValue(parameter::SUBSCRIPTION_FILTER)));
    assert_eq!(filter(&[], Draft::D18), Err(Mistake::Truncated));
    assert_eq!(filter(&[2, 0], Draft::D18), Err(Mistake::TrailingBytes));
    assert_eq!(filter(&[], Draft::D20), Ok(Filter::All));
    assert_eq!(filter(&[2], Draft::D20), Ok(Filter::Relative(2)));
    assert_eq!(filter(&[0, 0], Draft::D20), Ok(Filter::NextObject));
    assert_eq!(filter(&[0, 1], Draft::D20), Ok(Filter::From(at(0, 1))));
    assert_eq!(filter(&[4, 5, 2], Draft::D20), Ok(Filter::Groups { start: at(4, 5), end_group: 6 }));
    assert_eq!(filter(&[4, 5, 2, 9], Draft::D20), Ok(Filter::Range { start: at(4, 5), end: at(6, 9) }));
    assert_eq!(filter(&[4, 5, 2, 9, 1], Draft::D20), Err(Mistake::TrailingBytes));
    let beyond = [&[1, 1][..], &[0xff; 9]].concat();
    assert_eq!(filter(&beyond, Draft::D20), Err(Mistake::Overflow));
    assert_eq!(filter(&[&[4][..], &beyond].concat(), Draft::D18), Err(Mistake::Overflow));
}

#[test]
fn draft_22_names_the_kind_of_a_filter_and_writes_no_lengths() {
    let at = Location::new;
    let filters: [(&[u8], Filter); 6] = [
        (&[0], Filter::All),
        (&[1, 2], Filter::Relative(2)),
        (&[2, 0, 0], Filter::From(Location::START)),
        (&[3, 4, 5, 2], Filter::Groups { start: at(4, 5), end_group: 6 }),
        (&[4, 4, 5, 2, 9], Filter::Range { start: at(4, 5), end: at(6, 9) }),
        (&[5], Filter::NextObject),
    ];
    for (bytes, filter) in filters {
        let body = [&[0, 1, 0x21], bytes].concat();
        let message = update(Params { filter: Some(filter), ..Params::default() });
        assert_eq!(decoded(framed(message::REQUEST_UPDATE, &body), Draft::D22), Ok(Some(message.clone())));
        assert_eq!(encoded(&message, Draft::D22)[3..], body);
    }
    let unknown = [0, 1, 0x21, 6];
    assert_eq!(mistake(message::REQUEST_UPDATE, &unknown, Draft::D22), Mistake::InvalidValue(0x21));
    let prefix = update(Params { prefix: Some(Namespace::new(["a"]).unwrap()), ..Params::default() });
    assert_eq!(encoded(&prefix, Draft::D22)[3..], [0, 1, 0x34, 1, 1, b'a']);
}

#[test]
fn a_filter_by_range_that_cannot_be_refuses_its_request_alone() {
    let refused = |params: &[u8]| decoded(framed(message::SUBSCRIBE, &subscribe(params)), Draft::D20).unwrap_err();
    let overflow = [&[1, 0x26, 11, 0, 1][..], &[0xff; 9]].concat();
    let twice = [2, 0x26, 3, 0, 1, 1, 0, 3, 0, 5, 1];
    let odd_property = [1, 0x28, 4, 0, 3, 1, 1];
    let priority = [1, 0x27, 4, 0, 0, 0x81, 0x00];
    for params in [&overflow[..], &twice, &odd_property, &priority] {
        let expected = Refused { mistake: Mistake::InvalidFilter, request_id: Some(0) };
        assert_eq!(refused(params), expected);
        assert_eq!(expected.mistake.ends(), Ends::Request(RequestCode::InvalidFilter));
    }
    // Ranges 3 to 5 and 10 to 15, as in the text.
    let example = [1, 0x26, 5, 0, 3, 2, 5, 5];
    let Ok(Some(Message::Subscribe(found))) = decoded(framed(message::SUBSCRIBE, &subscribe(&example)), Draft::D20)
    else {
        panic!("no subscribe");
    };
    let expected = RangeFilter { set: Some(0), by: RangeBy::Object, ranges: vec![(3, Some(5)), (10, Some(15))] };
    assert_eq!(found.params.ranges, [expected]);
    assert!(found.params.ranges[0].passes(4) && !found.params.ranges[0].passes(6));
}

#[test]
fn many_ranges_refuse_the_request() {
    let mut filter = vec![0];
    for _ in 0..=MAX_RANGES {
        filter.extend_from_slice(&[1, 1]);
    }
    let mut params = vec![1, 0x26];
    put_varint(filter.len() as u64, &mut params);
    params.extend_from_slice(&filter);
    assert_eq!(mistake(message::SUBSCRIBE, &subscribe(&params), Draft::D20), Mistake::InvalidFilter);
}

#[test]
fn a_fill_may_hold_what_a_fill_may_hold() {
    let fill = Fill { filter: Some(Filter::Relative(1)), priority: Some(9), ..Fill::default() };
    let message = update(Params { fill: Some(Box::new(fill)), ..Params::default() });
    let bytes = encoded(&message, Draft::D20);
    // The number of parameters within, then priority 9 and a filter of one number.
    assert_eq!(bytes[3..], [0, 1, 0x23, 6, 2, 0x20, 9, 1, 1, 1]);
    assert_eq!(decoded(bytes, Draft::D20), Ok(Some(message)));
    let forward = [1, 0x23, 3, 1, 0x10, 1];
    assert_eq!(mistake(message::SUBSCRIBE, &subscribe(&forward), Draft::D20), Mistake::MisplacedParameter(0x10));
    let nested = [1, 0x23, 3, 1, 0x23, 0];
    assert_eq!(mistake(message::SUBSCRIBE, &subscribe(&nested), Draft::D20), Mistake::MisplacedParameter(0x23));
}

#[test]
fn a_new_prefix_is_read_with_its_length_and_without() {
    let expected = update(Params { prefix: Some(Namespace::new(["ab", "c"]).unwrap()), ..Params::default() });
    let bare = [0, 1, 0x34, 2, 2, b'a', b'b', 1, b'c'];
    let with_length = [0, 1, 0x34, 6, 2, 2, b'a', b'b', 1, b'c'];
    for body in [&bare[..], &with_length] {
        assert_eq!(decoded(framed(message::REQUEST_UPDATE, body), Draft::D18), Ok(Some(expected.clone())));
    }
    for body in [&[0, 1, 0x34, 0][..], &[0, 1, 0x34, 1, 0]] {
        let empty = update(Params { prefix: Some(Namespace::default()), ..Params::default() });
        assert_eq!(decoded(framed(message::REQUEST_UPDATE, body), Draft::D20), Ok(Some(empty)));
    }
}

#[test]
fn tokens_that_are_none_end_the_session_with_their_code() {
    for value in [&[][..], &[4], &[2], &[2, 1, 0], &[1, 1], &[0]] {
        let params = [&[1, 3, value.len() as u8], value].concat();
        let found = mistake(message::SUBSCRIBE, &subscribe(&params), Draft::D18);
        assert_eq!(found, Mistake::MalformedToken, "{value:?}");
        assert_eq!(found.ends(), Ends::Session(SessionCode::KeyValueFormattingError));
    }
}

#[test]
fn more_tokens_than_there_is_room_for_refuse_the_request() {
    let mut params = vec![MAX_TOKENS as u8 + 1];
    for nr in 0..=MAX_TOKENS as u8 {
        params.extend_from_slice(&[if nr == 0 { 3 } else { 0 }, 2, 2, nr]);
    }
    let refused = decoded(framed(message::SUBSCRIBE, &subscribe(&params)), Draft::D18).unwrap_err();
    assert_eq!(refused, Refused { mistake: Mistake::TooManyTokens, request_id: Some(0) });
}

#[test]
fn names_out_of_bounds_end_the_session() {
    let many = [&[0, 33][..], &[1; 66]].concat();
    assert_eq!(mistake(message::SUBSCRIBE, &many, Draft::D18), Mistake::Name(NameError::TooManyFields));
    assert_eq!(mistake(message::SUBSCRIBE, &[0, 1, 0, 0, 0], Draft::D18), Mistake::Name(NameError::EmptyField));
    let mut long = vec![0, 1];
    put_varint(4097, &mut long);
    assert_eq!(mistake(message::SUBSCRIBE, &long, Draft::D18), Mistake::Name(NameError::TooLong));
    // A field and a name that are each short enough, but not together.
    let mut both = vec![0, 1];
    for _ in 0..2 {
        put_varint(2049, &mut both);
        both.extend_from_slice(&[b'x'; 2049]);
    }
    assert_eq!(mistake(message::SUBSCRIBE, &both, Draft::D18), Mistake::Name(NameError::TooLong));
}

#[test]
fn texts_are_bounded_before_they_are_awaited() {
    let mut body = vec![0, 0];
    put_varint(1025, &mut body);
    assert_eq!(mistake(message::REQUEST_ERROR, &body, Draft::D18), Mistake::ReasonTooLong);
    let mut body = Vec::new();
    put_varint(8193, &mut body);
    assert_eq!(mistake(message::GOAWAY, &body, Draft::D18), Mistake::UriTooLong);
    assert_eq!(mistake(message::GOAWAY, &[1, 0xff, 0], Draft::D18), Mistake::UriNotText);
}

#[test]
fn goaway_names_a_request_in_draft_18_alone() {
    let goaway =
        |request_id| Message::Goaway(Goaway { timeout: Duration::from_millis(5), request_id, ..Goaway::default() });
    assert_eq!(decoded(framed(message::GOAWAY, &[0, 5, 7]), Draft::D18), Ok(Some(goaway(Some(7)))));
    assert_eq!(decoded(framed(message::GOAWAY, &[0, 5]), Draft::D18), Ok(Some(goaway(None))));
    assert_eq!(mistake(message::GOAWAY, &[0, 5, 7], Draft::D20), Mistake::TrailingBytes);
    assert_eq!(encoded(&goaway(Some(7)), Draft::D20)[3..], [0, 5]);
}

#[test]
fn setup_passes_over_what_it_does_not_know() {
    let mut body = Vec::new();
    // Grease, twice, before and behind what is known; two of one unknown odd type.
    for (delta, value) in [(0x04u64, &[9][..]), (0x9d - 4, &[2, 1, 1]), (0, &[0]), (0x7f, &[0x80, 0x80])] {
        put_varint(delta, &mut body);
        body.extend_from_slice(value);
    }
    let Ok(Some(Message::Setup(setup))) = decoded(framed(message::SETUP, &body), Draft::D18) else {
        panic!("no setup");
    };
    assert_eq!(*setup, Setup { max_auth_token_cache_size: Some(9), ..Setup::default() });
}

#[test]
fn setup_is_refused_with_the_code_that_fits() {
    let cases: [(&[u8], Mistake, SessionCode); 6] = [
        (&[1, 1, b'x'], Mistake::MalformedPath, SessionCode::MalformedPath),
        (&[5, 2, b'a', b'/'], Mistake::MalformedAuthority, SessionCode::MalformedAuthority),
        (&[4, 1, 0, 1], Mistake::Duplicate(4), SessionCode::ProtocolViolation),
        (&[3, 2, 2, 1], Mistake::EarlyTokenAlias, SessionCode::ProtocolViolation),
        (&[3, 1, 9], Mistake::MalformedToken, SessionCode::KeyValueFormattingError),
        (&[5, 9, 1], Mistake::Truncated, SessionCode::ProtocolViolation),
    ];
    for (body, expected, code) in cases {
        let found = mistake(message::SETUP, body, Draft::D18);
        assert_eq!(found, expected);
        assert_eq!(found.ends(), Ends::Session(code));
    }
}

#[test]
fn answers_carry_what_belongs_to_their_request() {
    let expires =
        RequestOk { params: Params { expires: Some(Duration::ZERO), ..Params::default() }, ..RequestOk::default() };
    assert_eq!(check_ok(&expires, RequestKind::Publish, false, Draft::D18), Ok(()));
    assert_eq!(check_ok(&expires, RequestKind::TrackStatus, false, Draft::D18), Err(Mistake::MisplacedParameter(8)));
    assert_eq!(check_ok(&expires, RequestKind::SubscribeNamespace, false, Draft::D20), Ok(()));
    let forward = RequestOk { params: Params { forward: Some(true), ..Params::default() }, ..RequestOk::default() };
    assert_eq!(check_ok(&forward, RequestKind::Publish, false, Draft::D18), Ok(()));
    assert_eq!(check_ok(&forward, RequestKind::Publish, false, Draft::D20), Err(Mistake::MisplacedParameter(0x10)));
    let track = RequestOk { properties: Properties::of_track(&[4, 0]).unwrap(), ..RequestOk::default() };
    assert_eq!(check_ok(&track, RequestKind::TrackStatus, false, Draft::D18), Ok(()));
    assert_eq!(check_ok(&track, RequestKind::TrackStatus, true, Draft::D18), Err(Mistake::TrailingBytes));
    assert_eq!(check_ok(&track, RequestKind::Publish, false, Draft::D18), Err(Mistake::TrailingBytes));
    assert!(check_ok(&RequestOk::default(), RequestKind::Subscribe, false, Draft::D18).is_err());
    assert_eq!(check_ok(&RequestOk::default(), RequestKind::Subscribe, true, Draft::D18), Ok(()));
}

#[test]
fn updates_change_what_their_request_has() {
    let prefix =
        RequestUpdate { request_id: 2, params: Params { prefix: Some(Namespace::default()), ..Params::default() } };
    assert_eq!(check_update(&prefix, RequestKind::SubscribeTracks, Draft::D18), Ok(()));
    assert_eq!(check_update(&prefix, RequestKind::Subscribe, Draft::D18), Err(Mistake::MisplacedParameter(0x34)));
    let forward = RequestUpdate { request_id: 2, params: Params { forward: Some(true), ..Params::default() } };
    assert_eq!(check_update(&forward, RequestKind::SubscribeTracks, Draft::D20), Ok(()));
    assert!(check_update(&forward, RequestKind::SubscribeTracks, Draft::D18).is_err());
    assert!(check_update(&forward, RequestKind::TrackStatus, Draft::D18).is_err());
}

#[test]
fn a_request_stream_cut_off_ends_the_session_from_draft_20_on() {
    for (draft, expected) in [(Draft::D18, Ok(())), (Draft::D20, Err(Mistake::CutOff))] {
        let mut decoder = MessageDecoder::new(draft);
        assert_eq!(decoder.finish(), Ok(()));
        assert_eq!(decoder.decode(&mut Bytes::from_static(&[3, 0])), Ok(None));
        assert_eq!(decoder.finish(), expected);
    }
}

#[test]
fn a_refused_request_leaves_the_stream_readable() {
    let bad = framed(message::REQUEST_UPDATE, &[4, 1, 0x28, 4, 0, 3, 1, 1]);
    let good = framed(message::REQUEST_UPDATE, &[6, 0]);
    let mut input = Bytes::from([bad, good].concat());
    let mut decoder = MessageDecoder::new(Draft::D20);
    let refused = decoder.decode(&mut input).unwrap_err();
    assert_eq!(refused, Refused { mistake: Mistake::InvalidFilter, request_id: Some(4) });
    let next = Message::RequestUpdate(Box::new(RequestUpdate { request_id: 6, params: Params::default() }));
    assert_eq!(decoder.decode(&mut input), Ok(Some(next)));
}

#[test]
fn an_unfinished_message_costs_what_has_come_of_it() {
    let mut decoder = MessageDecoder::new(Draft::D18);
    let mut input = Bytes::from_static(&[3, 0xff, 0xff, 0]);
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert!(input.is_empty());
    assert!(!decoder.gather.is_empty());
    assert!(decoder.gather.capacity() < 1024);
}

#[test]
fn times_are_rounded_up_and_bounded() {
    assert_eq!(millis(Duration::ZERO), 0);
    assert_eq!(millis(Duration::from_nanos(1)), 1);
    assert_eq!(millis(Duration::from_micros(1500)), 2);
    assert_eq!(millis(Duration::MAX), u64::MAX);
}

#[test]
fn older_messages_are_read_in_draft_18_alone() {
    let ok = RequestOk { params: Params { forward: Some(true), ..Params::default() }, ..RequestOk::default() };
    let accepted = framed(message::PUBLISH_OK, &[1, 0x10, 1]);
    assert_eq!(decoded(accepted, Draft::D18), Ok(Some(Message::RequestOk(Box::new(ok)))));
    assert_eq!(mistake(message::PUBLISH_OK, &[1, 9, 0, 0], Draft::D18), Mistake::MisplacedParameter(9));
    assert_eq!(decoded(framed(message::UNSUBSCRIBE, &[]), Draft::D18), Ok(Some(Message::Unsubscribe)));
    assert_eq!(mistake(message::UNSUBSCRIBE, &[0], Draft::D18), Mistake::TrailingBytes);
    assert!(put_message(&Message::Unsubscribe, Draft::D18, &mut BytesMut::new()).is_err());
}

#[test]
fn a_group_order_in_answers_is_read() {
    for (kind, body) in [(message::SUBSCRIBE_OK, &[7, 1, 0x22, 1][..]), (message::FETCH_OK, &[0, 1, 1, 1, 0x22, 2])] {
        assert!(matches!(decoded(framed(kind, body), Draft::D18), Ok(Some(_))));
    }
}

#[test]
fn tokens_of_setup_are_kept() {
    let token = Token::Register { alias: 1, kind: 2, value: Bytes::from_static(b"secret") };
    let setup = Message::Setup(Box::new(Setup { tokens: vec![token.clone(), token], ..Setup::default() }));
    assert_eq!(decoded(encoded(&setup, Draft::D20), Draft::D20), Ok(Some(setup)));
}

fn any_message() -> impl Strategy<Value = (Draft, Message)> {
    drafts().prop_flat_map(|draft| (Just(draft), message(draft)))
}

proptest! {
    #[test]
    fn messages_go_both_ways((draft, message) in any_message()) {
        let bytes = encoded(&message, draft);
        prop_assert_eq!(decoded(bytes, draft), Ok(Some(message)));
    }

    #[test]
    fn messages_may_be_cut_anywhere(
        (draft, messages) in drafts().prop_flat_map(|draft| (Just(draft), proptest::collection::vec(message(draft), 1..4))),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| encoded(message, draft).to_vec()).collect();
        let mut decoder = MessageDecoder::new(draft);
        let mut found = Vec::new();
        for mut piece in pieces(&stream.into(), &cuts) {
            while let Some(message) = decoder.decode(&mut piece).unwrap() {
                found.push(message);
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(found, messages);
        prop_assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn each_beginning_of_a_message_is_too_short((draft, message) in any_message()) {
        let bytes = encoded(&message, draft);
        for length in 0..bytes.len() {
            prop_assert_eq!(decoded(bytes.slice(..length), draft), Ok(None));
        }
    }

    /// The same with the length made to fit: then it is whole, and either wrong or another message.
    #[test]
    fn each_shortened_message_is_refused_or_another((draft, message) in any_message()) {
        let bytes = encoded(&message, draft);
        let head = if matches!(message, Message::Setup(_)) { 4 } else { 3 };
        let mut kind = Reader::new(&bytes);
        let kind = kind.varint().unwrap();
        for length in head..bytes.len() {
            let shorter = decoded(framed(kind, &bytes[head..length]), draft);
            prop_assert!(matches!(shorter, Ok(Some(_)) | Err(_)));
            if let Ok(Some(shorter)) = shorter {
                prop_assert_ne!(shorter, message.clone());
            }
        }
    }

    #[test]
    fn any_bytes_are_messages_or_mistakes(draft in drafts(), bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut input = Bytes::from(bytes);
        let mut decoder = MessageDecoder::new(draft);
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }

    /// Bodies of anything under a type that is known get further than bytes of anything.
    #[test]
    fn any_body_is_a_message_or_a_mistake(
        (draft, message) in any_message(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = encoded(&message, draft).to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(Some(found)) = decoded(bytes, draft) {
            // What was read can be written and means the same, but for what is tolerated.
            let mut out = BytesMut::new();
            if put_message(&found, draft, &mut out).is_ok() {
                prop_assert_eq!(decoded(out, draft), Ok(Some(found)));
            }
        }
    }
}
