//! Bad input and hard rules of Media over QUIC, end to end: messages cut at every byte, what nobody knows, words out of
//! their order, objects twice. Each costs what it must, and nobody else anything.

use bytes::{BufMut, Bytes, BytesMut};
use portway::transports::moq::codec::put_varint;
use portway::transports::moq::codec_fetch::{FetchDecoder, FetchEncoder, FetchItem, FetchObject};
use portway::transports::moq::codec_stream::{StreamDecoder, StreamStart, put_fetch_header};
use portway::transports::moq::codec_subgroup::Piece;
use portway::transports::moq::model::{Draft, GroupOrder, Location};
use portway::transports::moq::model_codes::{RequestCode, SessionCode};
use portway::transports::moq::model_message::{
    Fetch, FetchOk, FetchWhat, Goaway, Message, Publish, PublishNamespace, RequestError, Setup, Subscribe,
    SubscribeNamespace, SubscribeOk, SubscribeTracks, TrackStatus,
};
use portway::transports::moq::model_names::Namespace;
use portway::transports::moq::model_params::{Filter, Params, Properties};
use portway::transports::quic::{Code, Datagram, Priority};

use crate::gateway::Running;
use crate::moq::{Peer, Request, Words, bad, bytes_of, code_of, relay, soon, track};
use crate::probe::{eventually, wait};
use crate::quic_gateway::Clients;

/// Every request that a peer may open, as number 0.
fn requests(draft: Draft) -> Vec<Bytes> {
    let (request_id, params, properties) = (0, Params::default(), Properties::default());
    let prefix = Namespace::new(["test", "prefix"]).expect("a namespace");
    let range = Filter::Range { start: Location::new(1, 2), end: Location::new(3, 4) };
    let what = FetchWhat::Standalone { track: track("cut"), range };
    let subscribed = Params { priority: Some(7), forward: Some(true), ..Params::default() };
    [
        Message::Subscribe(Box::new(Subscribe { request_id, track: track("cut"), params: subscribed })),
        Message::Publish(Box::new(Publish {
            request_id,
            track: track("cut"),
            track_alias: 3,
            params: params.clone(),
            properties,
        })),
        Message::Fetch(Box::new(Fetch { request_id, what, params: params.clone() })),
        Message::TrackStatus(Box::new(TrackStatus { request_id, track: track("cut"), params: params.clone() })),
        Message::PublishNamespace(Box::new(PublishNamespace {
            request_id,
            namespace: prefix.clone(),
            params: params.clone(),
        })),
        Message::SubscribeNamespace(Box::new(SubscribeNamespace {
            request_id,
            prefix: prefix.clone(),
            params: params.clone(),
        })),
        Message::SubscribeTracks(Box::new(SubscribeTracks { request_id, prefix, params })),
    ]
    .iter()
    .map(|message| bytes_of(message, draft))
    .collect()
}

/// The type and the body of a message.
fn parts(message: &Bytes) -> (Bytes, Bytes) {
    let head = 1 + message.first().map_or(0, |first| first.leading_ones() as usize);
    (message.slice(..head), message.slice(head + 2..))
}

fn message_of(kind: &[u8], body: &[u8]) -> Bytes {
    let mut out = BytesMut::from(kind);
    out.put_u16(u16::try_from(body.len()).expect("a short body"));
    out.extend_from_slice(body);
    out.freeze()
}

/// Two sessions that must not notice anything.
pub(crate) struct Near {
    publisher: Peer,
    subscriber: Peer,
    _requests: (Request, Request),
    group: u64,
}

impl Near {
    pub(crate) async fn of(clients: &Clients, running: &Running) -> Self {
        let to = running.address("moq");
        let mut publisher = Peer::connect(clients, to, Draft::D20).await;
        let mut subscriber = Peer::connect(clients, to, Draft::D18).await;
        let publish = publisher.publish("near", 1).await;
        let (subscription, _) = subscriber.subscribe("near").await;
        Self { publisher, subscriber, _requests: (publish, subscription), group: 0 }
    }

    pub(crate) async fn lost_nothing(&mut self) {
        self.publisher.send_subgroup(1, self.group, &[b"near"]).await;
        let got = self.subscriber.receive().await;
        assert_eq!((got.group, got.whole, &got.objects[..]), (self.group, true, &[(0, Bytes::from("near"))][..]));
        self.group += 1;
    }
}

/// A message whose stream ends in its midst: draft 18 gives the request up, draft 20 the session.
#[test]
fn every_prefix_of_every_request_costs_that_request_alone() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let peer = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let mut sent = 0;
        for request in requests(Draft::D18) {
            for length in 1..request.len() {
                let (send, receive) = soon("a stream", peer.connection.open(Priority::default())).await.expect("one");
                send.write(request.slice(..length)).await.expect("written");
                send.finish().await.expect("finished");
                let ended = soon("its end", receive.read(9)).await;
                assert!(ended.is_err() || ended == Ok(None), "{length} of {request:?}: {ended:?}");
                sent += 1;
            }
        }
        assert!(sent > 100, "{sent} prefixes");
        near.lost_nothing().await;
        // The session is as good as new, and no number was used up.
        let mut peer = peer;
        let mut none = peer.subscribe_with("none", Params::default()).await;
        assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist);
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// A message that is shorter than its fields: whatever is missing, the session ends.
#[test]
fn every_message_that_is_shorter_than_its_fields_ends_its_session_alone() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    let sent = wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut sent = 0;
        for request in requests(Draft::D20) {
            let (kind, body) = parts(&request);
            for length in 0..body.len() {
                let peer = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
                let (send, _receive) = soon("a stream", peer.connection.open(Priority::default())).await.expect("one");
                send.write(message_of(&kind, &body[..length])).await.expect("written");
                assert_eq!(peer.closed().await, SessionCode::ProtocolViolation, "{length} bytes of {request:?}");
                sent += 1;
            }
        }
        near.lost_nothing().await;
        sent
    });
    let totals = running.totals();
    let truncated = totals.get("moq_sessions_failed", "moq", "truncated");
    assert_eq!((truncated, totals.family("moq_sessions_failed")), (sent, sent));
}

/// Answers of a publisher that are shorter than their fields: the same.
#[test]
fn every_answer_that_is_shorter_than_its_fields_ends_its_session_alone() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    let (sent, _open) = wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let ok = SubscribeOk { track_alias: 9, ..SubscribeOk::default() };
        let answers = [
            Message::SubscribeOk(Box::new(ok)),
            Message::RequestError(Box::new(RequestError::new(RequestCode::Timeout))),
        ];
        let (mut sent, mut open) = (0, Vec::new());
        for answer in answers {
            let (kind, body) = parts(&bytes_of(&answer, Draft::D20));
            for length in 0..body.len() {
                let (publisher, namespace) = announced(&clients, &running).await;
                let name = format!("short-{sent}");
                let waits = subscriber.subscribe_with(&name, Params::default()).await;
                loop {
                    // It is asked for the neighbour's track as well.
                    let (request, message) = asked(&publisher).await;
                    let wanted = matches!(&message, Message::Subscribe(of) if of.track == track(&name));
                    if wanted {
                        request.send.write(message_of(&kind, &body[..length])).await.expect("written");
                    }
                    open.push(request);
                    if wanted {
                        break;
                    }
                }
                assert_eq!(publisher.closed().await, SessionCode::ProtocolViolation, "{length} bytes of {answer:?}");
                open.extend([namespace, waits]);
                sent += 1;
            }
        }
        near.lost_nothing().await;
        (sent, (near, subscriber, open))
    });
    assert!(sent >= 5, "{sent} answers");
    let totals = running.totals();
    let truncated = totals.get("moq_sessions_failed", "moq", "truncated");
    assert_eq!((truncated, totals.family("moq_sessions_failed")), (sent, sent));
}

/// A stream of objects that ends anywhere but behind an object, a datagram that ends within its header, and a SETUP that
/// ends anywhere.
#[test]
fn every_prefix_of_what_is_no_request_ends_its_session_alone() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    let (sent, _open) = wait(async {
        let mut near = Near::of(&clients, &running).await;
        let (mut sent, mut open) = ([0; 3], Vec::new());
        let payloads: [&[u8]; 3] = [b"abc", b"", b"d"];
        let stream = |peer: &Peer, payloads: &[&[u8]]| peer.subgroup(1, 0, payloads);
        let peer = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let (all, fits) =
            (stream(&peer, &payloads), [0, 1, 2, 3].map(|objects| stream(&peer, &payloads[..objects]).len()));
        for length in (1..all.len()).filter(|length| !fits.contains(length)) {
            let mut peer = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
            let publish = peer.publish(&format!("cut-{length}"), 1).await;
            peer.kept.push(publish);
            let stream = peer.connection.open_uni(Priority::default()).await.expect("a stream");
            stream.write(all.slice(..length)).await.expect("written");
            stream.finish().await.expect("finished");
            assert_eq!(peer.closed().await, SessionCode::ProtocolViolation, "{length} bytes of a stream");
            sent[0] += 1;
            open.push(peer);
        }
        // Of default priority: alias, group, object.
        for length in 1..4 {
            let peer = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
            let datagram = Bytes::copy_from_slice(&[0x08, 1, 5, 3, b'x'][..length]);
            peer.connection.send_datagram(Datagram::new(datagram)).await.expect("sent");
            assert_eq!(peer.closed().await, SessionCode::ProtocolViolation, "{length} bytes of a datagram");
            sent[1] += 1;
            open.push(peer);
        }
        let setup = Setup { implementation: Some("cut".to_owned()), ..Setup::default() };
        let setup = bytes_of(&Message::Setup(Box::new(setup)), Draft::D20);
        for length in 1..setup.len() {
            let connection = clients.connect(running.address("moq"), "moqt-20").await;
            let control = connection.open_uni(Priority::default()).await.expect("a stream");
            control.write(setup.slice(..length)).await.expect("written");
            control.finish().await.expect("finished");
            let end = soon("a close", connection.join()).await.end;
            assert_eq!(
                end.code,
                Code::Application(SessionCode::ProtocolViolation.number(Draft::D20)),
                "{length} of SETUP"
            );
            sent[2] += 1;
        }
        near.lost_nothing().await;
        (sent, (near, open, peer))
    });
    let totals = running.totals();
    let failed = |reason| totals.get("moq_sessions_failed", "moq", reason);
    assert!(sent[0] >= 6 && sent[2] >= 6, "{sent:?}");
    // Of SETUP the first byte is not even a type.
    assert_eq!(
        [failed("cut_off"), failed("truncated"), failed("control_stream_closed")],
        [sent[0] + 1, sent[1], sent[2] - 1]
    );
    assert_eq!(totals.family("moq_sessions_failed"), sent.iter().sum::<u64>());
}

/// What drafts reserve so that nobody relies on it: options and codes that nobody knows are passed over, padding is
/// dropped, and parameters end the session.
#[test]
fn grease_is_passed_over_where_it_may_be() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let connection = clients.connect(running.address("moq"), "moqt-20").await;
        let control = connection.open_uni(Priority::default()).await.expect("a stream");
        let (kind, _) = parts(&bytes_of(&Message::Setup(Box::default()), Draft::D20));
        let mut options = BytesMut::new();
        // Even: a number; odd: bytes. Types are distances from the one before.
        put_varint(0x7f * 2 + 0x9c, &mut options);
        put_varint(5, &mut options);
        put_varint(0x7f, &mut options);
        put_varint(3, &mut options);
        options.extend_from_slice(b"abc");
        control.write(message_of(&kind, &options)).await.expect("written");
        let theirs = soon("a control stream", connection.accept_uni()).await.expect("a stream");
        let mut words = Words::new(theirs, Draft::D20);
        assert!(matches!(words.next().await, Some(Message::Setup(_))));
        let mut peer = Peer { connection, draft: Draft::D20, control, _words: words, next: 0, kept: Vec::new() };
        let mut padding = BytesMut::new();
        put_varint(0x132b_3e28, &mut padding);
        padding.extend_from_slice(&[0; 5_000]);
        let stream = peer.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(padding.freeze()).await.expect("written");
        stream.finish().await.expect("finished");
        let mut padding = BytesMut::new();
        put_varint(0x132b_3e29, &mut padding);
        padding.extend_from_slice(&[0; 100]);
        peer.connection.send_datagram(Datagram::new(padding.freeze())).await.expect("sent");
        let mut none = peer.subscribe_with("none", Params::default()).await;
        assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist);
        near.lost_nothing().await;
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
    bad("unknown_parameter", SessionCode::ProtocolViolation, async |peer| {
        let status = TrackStatus { request_id: 0, track: track("none"), params: Params::default() };
        let (kind, body) = parts(&bytes_of(&Message::TrackStatus(Box::new(status)), Draft::D18));
        // The last byte counts the parameters.
        let mut body = BytesMut::from(&body[..body.len() - 1]);
        body.extend_from_slice(&[1, 0x3e, 0]);
        let (send, receive) = peer.connection.open(Priority::default()).await.expect("a stream");
        send.write(message_of(&kind, &body)).await.expect("written");
        peer.kept.push(Request { send, words: Words::new(receive, Draft::D18) });
    });
    bad("unknown_datagram", SessionCode::ProtocolViolation, async |peer| {
        peer.connection.send_datagram(Datagram::new(Bytes::from_static(&[0x10, 0, 0]))).await.expect("sent");
    });
}

/// A session that publishes a namespace, and what it is asked for.
pub(crate) async fn announced(clients: &Clients, running: &Running) -> (Peer, Request) {
    let mut peer = Peer::connect(clients, running.address("moq"), Draft::D20).await;
    let namespace = Namespace::new(["test"]).expect("a namespace");
    let mut request = peer
        .ask(|request_id| {
            let params = Params::default();
            Message::PublishNamespace(Box::new(PublishNamespace { request_id, namespace, params }))
        })
        .await;
    assert!(matches!(request.words.next().await, Some(Message::RequestOk(_))));
    (peer, request)
}

/// The next request that the relay makes.
pub(crate) async fn asked(peer: &Peer) -> (Request, Message) {
    let (send, receive) = soon("a request", peer.connection.accept()).await.expect("a stream");
    let mut request = Request { send, words: Words::new(receive, peer.draft) };
    let message = request.words.next().await.expect("a message");
    (request, message)
}

/// Streams may come before the word that says whose they are: a few wait, unread; beyond that they are dropped.
#[test]
fn objects_that_come_before_subscribe_ok_wait_for_it() {
    const TOO_MANY: usize = 40;
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let (publisher, _namespace) = announced(&clients, &running).await;
        // Not before: whoever publishes a namespace is asked for what is here of it.
        let mut near = Near::of(&clients, &running).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let (accepted, held) = tokio::join!(subscriber.subscribe("early"), async {
            let (request, message) = asked(&publisher).await;
            assert!(matches!(message, Message::Subscribe(_)), "{message:?}");
            publisher.send_subgroup(9, 4, &[b"early"]).await;
            // Behind it, so that it has been read.
            let dropped = Datagram::new(Bytes::from_static(&[0x0c, 77, 1, b'x']));
            publisher.connection.send_datagram(dropped).await.expect("sent");
            eventually_async(|| async {
                running.gateway().mesh().view().await.totals.get("moq_datagrams_dropped", "moq", "unknown_alias") == 1
            })
            .await;
            let ok = SubscribeOk { track_alias: 9, ..SubscribeOk::default() };
            request.send.write(bytes_of(&Message::SubscribeOk(Box::new(ok)), Draft::D20)).await.expect("written");
            request
        });
        let got = subscriber.receive().await;
        assert_eq!((got.group, got.whole, &got.objects[..]), (4, true, &[(0, Bytes::from("early"))][..]));
        for group in 0..TOO_MANY as u64 {
            publisher.send_subgroup(1_000 + group, 1, &[b"nobody's"]).await;
        }
        eventually_async(|| async {
            let totals = running.gateway().mesh().view().await.totals;
            totals.get("moq_streams_dropped", "moq", "unknown_alias") == TOO_MANY as u64 - 32
        })
        .await;
        publisher.send_subgroup(9, 5, &[b"goes on"]).await;
        assert_eq!(subscriber.receive().await.group, 5);
        near.lost_nothing().await;
        drop((accepted, held));
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

async fn eventually_async<F: Future<Output = bool>>(is: impl Fn() -> F) {
    soon("it", async {
        while !is().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The same subgroup twice, and groups in the wrong order: each object reaches a subscriber once, in any order.
#[test]
fn objects_that_come_twice_are_passed_on_once() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let publish = publisher.publish("twice", 5).await;
        let (subscription, _) = subscriber.subscribe("twice").await;
        publisher.send_subgroup(5, 7, &[b"seven", b"and"]).await;
        assert_eq!(subscriber.receive().await.group, 7);
        publisher.send_subgroup(5, 7, &[b"seven", b"and"]).await;
        publisher.send_subgroup(5, 3, &[b"three"]).await;
        let got = subscriber.receive().await;
        assert_eq!((got.group, &got.objects[..]), (3, &[(0, Bytes::from("three"))][..]), "nothing comes twice");
        near.lost_nothing().await;
        drop((publish, subscription));
    });
    assert_eq!(running.totals().get("moq_duplicates", "moq", ""), 2, "each of its objects, once");
    assert_eq!(running.totals().family("moq_malformed"), 0);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// Draft, section 3.3: streams may overtake the SETUP; and what is said twice that may be said once.
#[test]
fn objects_may_come_before_setup_and_goaway_comes_once() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let connection = clients.connect(running.address("moq"), "moqt-18").await;
        let theirs = soon("a control stream", connection.accept_uni()).await.expect("a stream");
        let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
        let (request_id, params, properties) = (0, Params::default(), Properties::default());
        let publish = Publish { request_id, track: track("overtakes"), track_alias: 2, params, properties };
        send.write(bytes_of(&Message::Publish(Box::new(publish)), Draft::D18)).await.expect("written");
        let early = connection.open_uni(Priority::default()).await.expect("a stream");
        early.write(Bytes::from_static(&[0x30, 2, 0, 0, 5, b'e', b'a', b'r', b'l', b'y'])).await.expect("written");
        early.finish().await.expect("finished");
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let mut none = subscriber.subscribe_with("overtakes", Params::default()).await;
        assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist, "nothing is believed before SETUP");
        let control = connection.open_uni(Priority::default()).await.expect("a stream");
        control.write(bytes_of(&Message::Setup(Box::default()), Draft::D18)).await.expect("written");
        let mut words = Words::new(theirs, Draft::D18);
        assert!(matches!(words.next().await, Some(Message::Setup(_))));
        let mut answers = Words::new(receive, Draft::D18);
        assert!(matches!(answers.next().await, Some(Message::RequestOk(_))));
        let (request, _) = subscriber.subscribe("overtakes").await;
        assert_eq!(subscriber.receive().await.objects, [(0, Bytes::from("early"))]);
        drop((request, send, answers, control));
    });
    bad("second_goaway", SessionCode::ProtocolViolation, async |peer| {
        let goaway = Goaway { request_id: Some(0), ..Goaway::default() };
        for _ in 0..2 {
            peer.control.write(bytes_of(&Message::Goaway(goaway.clone()), Draft::D18)).await.expect("written");
        }
    });
    bad("goaway_uri_from_client", SessionCode::ProtocolViolation, async |peer| {
        let goaway = Goaway { uri: "moqt://b.example".to_owned(), request_id: Some(0), ..Goaway::default() };
        peer.control.write(bytes_of(&Message::Goaway(goaway), Draft::D18)).await.expect("written");
    });
}

/// A publisher that waits to be wanted is told as soon as one subscriber wants objects.
#[test]
fn one_subscriber_that_wants_objects_makes_the_publisher_send_them() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let mut publish = publisher
            .ask(|request_id| {
                let params = Params { forward: Some(false), ..Params::default() };
                let properties = Properties::default();
                let track = track("wanted");
                Message::Publish(Box::new(Publish { request_id, track, track_alias: 1, params, properties }))
            })
            .await;
        let Some(Message::RequestOk(ok)) = publish.words.next().await else { panic!("REQUEST_OK") };
        assert_eq!(ok.params.forward, Some(false), "nobody wants it");
        let mut idle = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let not = Params { forward: Some(false), ..Params::default() };
        let mut waits = idle.subscribe_with("wanted", not).await;
        assert!(matches!(waits.words.next().await, Some(Message::SubscribeOk(_))));
        let mut wants = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let (subscription, _) = wants.subscribe("wanted").await;
        let Some(Message::RequestUpdate(update)) = publish.words.next().await else { panic!("REQUEST_UPDATE") };
        assert_eq!(update.params.forward, Some(true));
        publish.send.write(bytes_of(&Message::RequestOk(Box::default()), Draft::D18)).await.expect("written");
        publisher.send_subgroup(1, 0, &[b"wanted"]).await;
        assert_eq!(wants.receive().await.objects, [(0, Bytes::from("wanted"))]);
        drop((subscription, waits));
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// What is not at hand is fetched from the publisher, and passed on as it was.
#[test]
fn a_fetch_of_what_is_not_cached_goes_to_the_publisher() {
    let running = Running::start(&relay(2, ""));
    let clients = Clients::new();
    wait(async {
        let (publisher, _namespace) = announced(&clients, &running).await;
        let mut asker = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let range = Filter::Range { start: Location::new(1, 0), end: Location::new(2, 1) };
        let mut fetch = asker
            .ask(|request_id| {
                let what = FetchWhat::Standalone { track: track("past"), range };
                Message::Fetch(Box::new(Fetch { request_id, what, params: Params::default() }))
            })
            .await;
        let (subscribed, message) = asked(&publisher).await;
        assert!(matches!(message, Message::Subscribe(_)), "{message:?}");
        let params = Params { largest: Some(Location::new(5, 0)), ..Params::default() };
        let ok = SubscribeOk { track_alias: 1, params, ..SubscribeOk::default() };
        subscribed.send.write(bytes_of(&Message::SubscribeOk(Box::new(ok)), Draft::D20)).await.expect("written");
        let (fetched, message) = asked(&publisher).await;
        let Message::Fetch(passed) = message else { panic!("{message:?}") };
        let FetchWhat::Standalone { range: of, .. } = &passed.what else { panic!("{passed:?}") };
        assert_eq!(*of, range);
        let end = Location::new(2, 1);
        let ok = FetchOk { end, ..FetchOk::default() };
        fetched.send.write(bytes_of(&Message::FetchOk(Box::new(ok)), Draft::D20)).await.expect("written");
        let mut out = BytesMut::new();
        put_fetch_header(passed.request_id, &mut out);
        let mut encoder = FetchEncoder::new(GroupOrder::Ascending, Draft::D20);
        let payloads = [(1, 0, "one"), (1, 1, "two"), (2, 0, "three"), (2, 1, "four")];
        for (group, object, payload) in payloads {
            let item = FetchItem::Object(FetchObject {
                at: Location::new(group, object),
                subgroup: Some(0),
                priority: 9,
                properties: Properties::default(),
                length: payload.len() as u64,
            });
            encoder.put(&item, &mut out).expect("in order");
            out.extend_from_slice(payload.as_bytes());
        }
        let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(out.freeze()).await.expect("written");
        stream.finish().await.expect("finished");
        let Some(Message::FetchOk(ok)) = fetch.words.next().await else { panic!("FETCH_OK") };
        assert_eq!(ok.end, end);
        let stream = soon("a stream", asker.connection.accept_uni()).await.expect("a stream");
        let all = stream.read_to_end(65_536).await.expect("all of it");
        let mut rest = all;
        let start = StreamDecoder::new(Draft::D18).decode(&mut rest).expect("a head");
        assert!(matches!(start, Some(StreamStart::Fetch { request_id: 0 })), "{start:?}");
        let mut decoder = FetchDecoder::new(GroupOrder::Ascending, Draft::D18);
        let mut got: Vec<(u64, u64, u8, String)> = Vec::new();
        while let Some(piece) = decoder.decode(&mut rest).expect("objects") {
            match piece {
                Piece::Head(FetchItem::Object(object)) => {
                    got.push((object.at.group, object.at.object, object.priority, String::new()));
                }
                Piece::Head(other) => panic!("{other:?}"),
                Piece::Payload { bytes, .. } => {
                    got.last_mut().expect("one").3.push_str(std::str::from_utf8(&bytes).expect("text"));
                }
            }
        }
        let expected = payloads.map(|(group, object, payload)| (group, object, 9, payload.to_owned()));
        assert_eq!(got, expected);
        drop((subscribed, fetched));
    });
    assert_eq!(running.totals().get("moq_fetches", "moq", "publisher"), 1);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// A peer that closes has done nothing wrong, whatever of its streams ends first.
#[test]
fn a_session_that_is_closed_is_not_one_that_failed() {
    let running = Running::start(&relay(2, ""));
    let clients = Clients::new();
    wait(async {
        for draft in [Draft::D18, Draft::D20] {
            for _ in 0..10 {
                drop(Peer::connect(&clients, running.address("moq"), draft).await);
            }
        }
    });
    // Some are closed before their SETUP was looked at.
    let closed = |reason| {
        let totals = running.totals();
        ["moq_sessions_ended", "moq_setups_abandoned"]
            .map(|family| totals.get(family, "moq", reason))
            .iter()
            .sum::<u64>()
    };
    eventually("all have ended", || closed("closed") == 20);
    assert_eq!(running.totals().family("moq_sessions_ended"), running.totals().family("moq_sessions"));
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}
