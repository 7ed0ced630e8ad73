//! Rules that relays of Media over QUIC get wrong, on the wire: what may be promised when, what passes unchanged, who is
//! told to go where, and what a subscriber that does not read costs its neighbours.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::actors::Mesh;
use portway::transports::moq::codec_property::{PropertiesBuilder, property};
use portway::transports::moq::codec_stream::{StreamDecoder, StreamStart};
use portway::transports::moq::codec_subgroup::{ObjectEncoder, SubgroupHeader, SubgroupId, put_subgroup_header};
use portway::transports::moq::model::{Draft, Location, ObjectStatus};
use portway::transports::moq::model_codes::{DoneCode, RequestCode, ResetCode, SessionCode};
use portway::transports::moq::model_message::{
    Fetch, FetchOk, FetchWhat, Goaway, Message, Publish, PublishDone, Redirect, RequestError, RequestUpdate, Setup,
    SubscribeOk,
};
use portway::transports::moq::model_params::{Filter, Params, Properties};
use portway::transports::moq::{Relay, RelaySettings, Scope, Site};
use portway::transports::quic::{
    ClientSettings, Code, Priority, QuicClient, QuicServer, RecvStream, ServerSettings, StreamError,
};
use portway::transports::tls;

use crate::gateway::Running;
use crate::moq::{Peer, Request, bad, bytes_of, code_of, is_torn, relay, soon, track};
use crate::moq_bad::{Near, announced, asked};
use crate::probe::{mesh, stop, wait};
use crate::quic_gateway::{Clients, pattern, pem, says};

/// The objects of one subgroup, written one by one.
struct Writer {
    stream: portway::transports::quic::SendStream,
    encoder: ObjectEncoder,
}

impl Writer {
    async fn begin(peer: &Peer, alias: u64, group: u64) -> Self {
        let header = SubgroupHeader {
            track_alias: alias,
            group,
            subgroup: SubgroupId::Zero,
            priority: None,
            properties: false,
            end_of_group: false,
            first_object: true,
        };
        let stream = peer.connection.open_uni(Priority::default()).await.expect("a stream");
        let mut head = BytesMut::new();
        put_subgroup_header(&header, &mut head);
        stream.write(head.freeze()).await.expect("written");
        Self { stream, encoder: ObjectEncoder::new(&header) }
    }

    async fn object(&mut self, id: u64, payload: &[u8]) {
        let mut out = BytesMut::new();
        let length = payload.len() as u64;
        self.encoder.put(id, &Properties::default(), length, ObjectStatus::Normal, &mut out).expect("in order");
        out.extend_from_slice(payload);
        self.stream.write(out.freeze()).await.expect("written");
    }
}

async fn counter(running: &Running, family: &str, reason: &str) -> u64 {
    running.gateway().mesh().view().await.totals.get(family, "moq", reason)
}

/// Until a counter has this value.
async fn counted(running: &Running, family: &str, reason: &str, value: u64) {
    soon(family, async {
        while counter(running, family, reason).await < value {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn done(request: &mut Request) -> PublishDone {
    loop {
        match request.words.next().await {
            Some(Message::PublishDone(done)) => return done,
            Some(_) => {}
            None => panic!("no PUBLISH_DONE"),
        }
    }
}

/// Rules 1, 5, 6, 7 and 8: SUBSCRIBE_OK and FETCH_OK say what the publisher has said, so they cannot come before it does;
/// aliases, priorities, timeouts and EXPIRES are of one hop, properties are not; refusals pass, whatever their code, but
/// for redirects, which are not followed.
#[test]
fn nothing_is_promised_before_the_publisher_has() {
    let running = Running::start(&relay(2, ""));
    let clients = Clients::new();
    wait(async {
        let (publisher, _namespace) = announced(&clients, &running).await;
        let mut near = Near::of(&clients, &running).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let timeout = Some(Duration::from_secs(9));
        let params = Params { priority: Some(3), object_delivery_timeout: timeout, ..Params::default() };
        let mut request = subscriber.subscribe_with("promised", params).await;
        let (held, message) = asked(&publisher).await;
        let Message::Subscribe(upstream) = message else { panic!("{message:?}") };
        assert_eq!((upstream.params.priority, upstream.params.object_delivery_timeout), (None, None));
        let properties = PropertiesBuilder::default().number(0x1234, 7).bytes(0x1235, &b"unknown"[..]);
        let properties = properties.finish().expect("properties");
        let largest = Some(Location::new(5, 0));
        let params = Params { largest, expires: Some(Duration::from_secs(60)), ..Params::default() };
        let ok = SubscribeOk { track_alias: 99, params, properties: properties.clone() };
        held.send.write(bytes_of(&Message::SubscribeOk(Box::new(ok)), Draft::D20)).await.expect("written");
        let Some(Message::SubscribeOk(ok)) = request.words.next().await else { panic!("SUBSCRIBE_OK") };
        assert_ne!(ok.track_alias, 99, "the relay's own");
        assert_eq!((ok.params.largest, ok.params.expires, ok.properties), (largest, None, properties));
        // The end of a fetch is what the publisher says it is.
        let range = Filter::Range { start: Location::new(1, 0), end: Location::new(4, 9) };
        let mut fetch = subscriber
            .ask(|request_id| {
                let what = FetchWhat::Standalone { track: track("promised"), range };
                Message::Fetch(Box::new(Fetch { request_id, what, params: Params::default() }))
            })
            .await;
        let (fetched, message) = asked(&publisher).await;
        assert!(matches!(message, Message::Fetch(_)), "{message:?}");
        let end = Location::new(3, 7);
        let ok = FetchOk { end, ..FetchOk::default() };
        fetched.send.write(bytes_of(&Message::FetchOk(Box::new(ok)), Draft::D20)).await.expect("written");
        let Some(Message::FetchOk(ok)) = fetch.words.next().await else { panic!("FETCH_OK") };
        assert_eq!(ok.end, end);
        // Refusals.
        let redirect = Redirect { uri: "moqt://b.example".to_owned(), track: track("elsewhere") };
        let redirect = RequestError { redirect: Some(redirect), ..RequestError::new(RequestCode::Redirect) };
        for (name, error, code) in [
            ("unknown", RequestError::new(RequestCode::Unknown(0x7777)), RequestCode::Unknown(0x7777)),
            ("elsewhere", redirect, RequestCode::NotSupported),
        ] {
            let mut refused = subscriber.subscribe_with(name, Params::default()).await;
            let (asked, message) = asked(&publisher).await;
            assert!(matches!(message, Message::Subscribe(_)), "{message:?}");
            asked.send.write(bytes_of(&Message::RequestError(Box::new(error)), Draft::D20)).await.expect("written");
            assert_eq!(code_of(refused.words.next().await), code);
        }
        near.lost_nothing().await;
        drop((held, fetched));
    });
    let refused = |reason| running.totals().get("moq_requests_refused", "moq", reason);
    assert_eq!((refused("unknown"), refused("not_supported")), (1, 1));
    assert_eq!(running.totals().family("moq_requests_refused"), 2);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// Rule 2: a subscription whose objects were off for a while goes on in another stream, and the first is reset.
#[test]
fn forwarding_off_and_on_makes_another_stream() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let publish = publisher.publish("off-and-on", 1).await;
        let (mut request, _) = subscriber.subscribe("off-and-on").await;
        let before = counter(&running, "moq_objects_in", "").await;
        let mut writer = Writer::begin(&publisher, 1, 0).await;
        writer.object(0, b"zero").await;
        let begun = subscriber.begun().await;
        for forward in [false, true] {
            let params = Params { forward: Some(forward), ..Params::default() };
            let update = RequestUpdate { request_id: subscriber.next, params };
            subscriber.next += 2;
            let update = bytes_of(&Message::RequestUpdate(Box::new(update)), Draft::D18);
            request.send.write(update).await.expect("written");
            assert!(matches!(request.words.next().await, Some(Message::RequestOk(_))));
            if !forward {
                assert!(is_torn(&begun).await, "its stream is given up");
                writer.object(1, b"one").await;
                counted(&running, "moq_objects_in", "", before + 2).await;
            }
        }
        writer.object(2, b"two").await;
        let again = soon("a stream", subscriber.connection.accept_uni()).await.expect("a stream");
        let mut got = Vec::new();
        while !got.ends_with(b"two") {
            got.extend_from_slice(&soon("bytes", again.read(65_536)).await.expect("read").expect("more"));
        }
        // Behind the header the number of its first object, then its payload.
        assert!(got.ends_with(&[2, 3, b't', b'w', b'o']) && got.len() < 12, "{got:x?}");
        writer.stream.finish().await.expect("finished");
        assert!(is_torn(&again).await, "one is missing");
        near.lost_nothing().await;
        drop(publish);
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// Rule 4: the last word counts all streams, those without objects too, and waits for those that are late or open.
#[test]
fn a_last_word_waits_for_all_streams_of_its_track() {
    let running = Running::start(&relay(2, ""));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let says = |streams| {
            let done = PublishDone { code: DoneCode::TrackEnded, streams, reason: String::new() };
            bytes_of(&Message::PublishDone(done), Draft::D20)
        };
        let publish = publisher.publish("last", 1).await;
        let (mut request, _) = subscriber.subscribe("last").await;
        let mut open = Writer::begin(&publisher, 1, 0).await;
        open.object(0, b"open").await;
        let begun = subscriber.begun().await;
        publish.send.write(says(Some(3))).await.expect("written");
        let empty = Writer::begin(&publisher, 1, 1).await;
        empty.stream.finish().await.expect("finished");
        publisher.send_subgroup(1, 2, &[b"late"]).await;
        let mut came = BTreeSet::new();
        for _ in 0..2 {
            let got = subscriber.receive().await;
            assert!(got.whole);
            came.insert((got.group, got.objects.len()));
        }
        assert_eq!(came, BTreeSet::from([(1, 0), (2, 1)]));
        open.stream.finish().await.expect("finished");
        assert!(!is_torn(&begun).await);
        let last = done(&mut request).await;
        assert_eq!((last.code, last.streams), (DoneCode::TrackEnded, Some(3)));
        // One that does not count them is done after a while.
        let publish = publisher.publish("uncounted", 2).await;
        let (mut request, _) = subscriber.subscribe("uncounted").await;
        publisher.send_subgroup(2, 0, &[b"one"]).await;
        publish.send.write(says(None)).await.expect("written");
        assert!(subscriber.receive().await.whole);
        let last = done(&mut request).await;
        assert_eq!((last.code, last.streams), (DoneCode::TrackEnded, Some(1)));
        near.lost_nothing().await;
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// Rule 7: properties pass byte by byte, also those that nobody here knows and those that could be written shorter.
#[test]
fn properties_of_objects_pass_unchanged() {
    // Immutable ones, under a type of two bytes where one would do; and one of a type that nobody knows.
    const OBJECT: &[u8] =
        &[10, 0x80, 0x0b, 3, 0x41, 1, b'x', 2, 2, b'h', b'i', 7, b'p', b'a', b'y', b'l', b'o', b'a', b'd'];
    assert_eq!(property::IMMUTABLE, 0x0b);
    let running = Running::start(&relay(2, ""));
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let properties = PropertiesBuilder::default().number(0x1234, 7).bytes(0x1235, &b"unknown"[..]);
        let properties = properties.finish().expect("properties");
        let of_track = properties.clone();
        let mut publish = publisher
            .ask(|request_id| {
                let (track, params) = (track("properties"), Params::default());
                Message::Publish(Box::new(Publish { request_id, track, track_alias: 1, params, properties }))
            })
            .await;
        assert!(matches!(publish.words.next().await, Some(Message::RequestOk(_))));
        let mut request = subscriber.subscribe_with("properties", Params::default()).await;
        let Some(Message::SubscribeOk(ok)) = request.words.next().await else { panic!("SUBSCRIBE_OK") };
        assert_eq!(ok.properties, of_track);
        let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write([&[0x31, 1, 0, 0][..], OBJECT, &[0], OBJECT].concat()).await.expect("written");
        stream.finish().await.expect("finished");
        let theirs = soon("a stream", subscriber.connection.accept_uni()).await.expect("a stream");
        let all = soon("all of it", theirs.read_to_end(65_536)).await.expect("whole");
        assert!(all.ends_with(&[&[0][..], OBJECT, &[0], OBJECT].concat()), "{all:x?}");
    });
    assert_eq!(running.totals().family("moq_malformed"), 0);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// Rules 3, 8 and 12: what came before it is passed on, and its stream is reset; the object itself is passed on to nobody.
#[test]
fn a_malformed_object_reaches_nobody() {
    const HEAD: &[u8] = &[0x30, 1, 0, 0, 4, b'g', b'o', b'o', b'd'];
    // A status that nobody knows; one cut off before its payload; properties that end in the midst of a number.
    for (head, rest, family, reason) in [
        (HEAD, &[0, 0, 9][..], "moq_sessions_failed", "unknown_status"),
        (HEAD, &[0, 8], "moq_sessions_failed", "cut_off"),
        (&[0x31, 1, 0, 0, 0, 4, b'g', b'o', b'o', b'd'], &[0, 1, 0x04, 1, b'b'], "moq_malformed", "malformed_object"),
    ] {
        let running = Running::start(&relay(1, ""));
        let clients = Clients::new();
        let _open = wait(async {
            let mut near = Near::of(&clients, &running).await;
            let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
            let mut subscriber = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
            let publish = publisher.publish("bad", 1).await;
            let (request, _) = subscriber.subscribe("bad").await;
            let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
            stream.write(head).await.expect("written");
            let theirs = soon("a stream", subscriber.connection.accept_uni()).await.expect("a stream");
            let mut got = Vec::new();
            while !got.ends_with(b"good") {
                let more = soon("an object", theirs.read(65_536)).await.expect("read").expect("more");
                got.extend_from_slice(&more);
            }
            stream.write(rest).await.expect("written");
            let _ended = stream.finish().await;
            assert!(is_torn(&theirs).await, "{reason}: what is not whole is reset");
            soon(reason, async {
                while counter(&running, family, reason).await == 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            near.lost_nothing().await;
            (near, publisher, subscriber, publish, request)
        });
        let totals = running.totals();
        assert_eq!((totals.get(family, "moq", reason), totals.family(family)), (1, 1), "{reason}");
        assert_eq!(totals.family("moq_sessions_failed") + totals.family("moq_malformed"), 1, "{reason}");
    }
}

/// Rule 9: a control stream that is given up is as wrong as one that ends.
#[test]
fn a_control_stream_that_is_reset_ends_its_session() {
    bad("control_stream_closed", SessionCode::ProtocolViolation, async |peer| {
        // Once it was read: a reset takes back what was not.
        let mut none = peer.subscribe_with("none", Params::default()).await;
        assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist);
        peer.control.reset(1).await.expect("reset");
    });
}

/// Rule 15: a subscription upstream is released once nobody has wanted its track for a while, and not before.
#[test]
fn a_subscription_upstream_ends_some_time_after_its_last_subscriber() {
    let running = Running::start(&relay(2, "[listener.moq]\nlinger = \"300ms\"\n"));
    let clients = Clients::new();
    wait(async {
        let (publisher, _namespace) = announced(&clients, &running).await;
        let mut near = Near::of(&clients, &running).await;
        let mut first = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let mut second = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let mut one = first.subscribe_with("released", Params::default()).await;
        let (held, message) = asked(&publisher).await;
        assert!(matches!(message, Message::Subscribe(_)), "{message:?}");
        let ok = SubscribeOk { track_alias: 3, ..SubscribeOk::default() };
        held.send.write(bytes_of(&Message::SubscribeOk(Box::new(ok)), Draft::D20)).await.expect("written");
        assert!(matches!(one.words.next().await, Some(Message::SubscribeOk(_))));
        let (two, _) = second.subscribe("released").await;
        publisher.send_subgroup(3, 0, &[b"both"]).await;
        assert!(first.receive().await.whole && second.receive().await.whole);
        one.send.reset(1).await.expect("reset");
        one.words.stream.stop(1).await.expect("stopped");
        publisher.send_subgroup(3, 1, &[b"the other"]).await;
        assert!(second.receive().await.whole, "one is left");
        two.send.reset(1).await.expect("reset");
        two.words.stream.stop(1).await.expect("stopped");
        let ended = soon("its end", held.words.stream.read(9)).await;
        assert!(matches!(ended, Err(StreamError::Reset(_)) | Ok(None)), "{ended:?}");
        near.lost_nothing().await;
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// A peer that wants to go makes no more requests, and keeps what it has.
#[test]
fn who_says_goaway_keeps_what_it_has_and_gets_nothing_new() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let mut leaving = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let publish = publisher.publish("leaving", 1).await;
        let (request, _) = leaving.subscribe("leaving").await;
        let goaway = Goaway { request_id: Some(0), ..Goaway::default() };
        leaving.control.write(bytes_of(&Message::Goaway(goaway), Draft::D18)).await.expect("written");
        counted(&running, "moq_goaways", "received", 1).await;
        let mut more = leaving.subscribe_with("leaving", Params::default()).await;
        assert_eq!(code_of(more.words.next().await), RequestCode::GoingAway);
        publisher.send_subgroup(1, 0, &[b"still"]).await;
        assert_eq!(leaving.receive().await.objects, [(0, Bytes::from("still"))]);
        near.lost_nothing().await;
        drop((publish, request));
    });
    let totals = running.totals();
    assert_eq!(
        (totals.get("moq_requests_refused", "moq", "going_away"), totals.family("moq_requests_refused")),
        (1, 1)
    );
    assert_eq!((totals.get("moq_goaways", "moq", "received"), totals.family("moq_sessions_failed")), (1, 0));
}

/// A relay of a program of one's own, on a server without a gateway.
struct Alone {
    mesh: Mesh,
    server: QuicServer,
    relay: Arc<Relay>,
}

impl Alone {
    fn start() -> Self {
        let mesh = mesh(1);
        let name: Arc<str> = Arc::from("alone");
        let relay = Relay::start(&mesh, &name, RelaySettings::default()).expect("a relay");
        let site = Site::over_quic(name, vec![Scope { path: None, authority: None, relay: relay.clone() }]);
        let certificate = tls::Certificate::from_files(&pem("good.pem"), &pem("good-key.pem")).expect("a certificate");
        let mut tls = tls::ServerSettings::new("alone", vec![Arc::new(certificate)]);
        tls.protocols = Draft::ALL.iter().map(|draft| draft.alpn().as_bytes().to_vec()).collect();
        let settings = ServerSettings::new("alone", "127.0.0.1:0".parse().expect("an address"), Arc::new(tls));
        let server = QuicServer::start(&mesh, settings, Some(Arc::new(move |_| Some(site.application()))));
        Self { mesh, server: server.expect("a server"), relay }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.server.stop();
        stop(&self.mesh);
    }
}

/// A relay sends its sessions elsewhere: they are told where, get nothing new, and are closed when they have nothing left.
#[test]
fn a_relay_names_where_its_sessions_are_to_go() {
    let alone = Alone::start();
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, alone.server.local_addr(), Draft::D20).await;
        let mut subscriber = Peer::connect(&clients, alone.server.local_addr(), Draft::D18).await;
        let publish = publisher.publish("moves", 1).await;
        let (request, _) = subscriber.subscribe("moves").await;
        assert!(alone.relay.goaway("moqt://b.example:4443"));
        for peer in [&mut publisher, &mut subscriber] {
            let Some(Message::Goaway(goaway)) = peer._words.next().await else { panic!("GOAWAY") };
            assert_eq!(goaway.uri, "moqt://b.example:4443");
        }
        let mut more = subscriber.subscribe_with("moves", Params::default()).await;
        assert_eq!(code_of(more.words.next().await), RequestCode::GoingAway);
        publisher.send_subgroup(1, 0, &[b"the last"]).await;
        assert_eq!(subscriber.receive().await.objects, [(0, Bytes::from("the last"))]);
        request.send.reset(1).await.expect("reset");
        request.words.stream.stop(1).await.expect("stopped");
        assert_eq!(subscriber.closed().await, SessionCode::NoError);
        publish.send.reset(1).await.expect("reset");
        publish.words.stream.stop(1).await.expect("stopped");
        assert_eq!(publisher.closed().await, SessionCode::NoError);
    });
    let totals = crate::probe::view(&alone.mesh).totals;
    assert_eq!((totals.get("moq_goaways", "alone", "sent"), totals.family("moq_sessions_failed")), (2, 0));
}

/// A subscriber that takes little before it reads.
struct Stalled {
    mesh: Mesh,
    client: QuicClient,
    peer: Peer,
}

impl Stalled {
    /// Its connection takes so much, and each stream of it so much, before it reads.
    async fn connect(running: &Running, window: u64, stream: u64) -> Self {
        let mesh = mesh(1);
        let mut settings = ClientSettings::new("stalled");
        let transport = &mut settings.transport;
        (transport.window, transport.window_max) = (window, window);
        (transport.stream_window, transport.stream_window_max) = (stream, stream);
        let client = QuicClient::start(&mesh, settings).expect("a client");
        let tls = Arc::new(says(Draft::D18.alpn()));
        let connection = soon("a connection", client.connect(running.address("moq"), tls)).await.expect("connected");
        let peer = Peer::on(connection, Draft::D18).await;
        Self { mesh, client, peer }
    }

    /// The next stream: its group if that could be seen, and how it ended.
    async fn next(&self) -> (Option<u64>, Result<(), u64>) {
        let stream = soon("a stream", self.peer.connection.accept_uni()).await.expect("a stream");
        let (mut got, ended) = (BytesMut::new(), read(&stream).await);
        got.extend_from_slice(&ended.0);
        let start = StreamDecoder::new(Draft::D18).decode(&mut got.freeze());
        let group = match start {
            Ok(Some(StreamStart::Subgroup(header))) => Some(header.group),
            Ok(None) => None,
            other => panic!("{other:?}"),
        };
        (group, ended.1)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.client.stop();
        stop(&self.mesh);
    }
}

/// All of a stream, and the code if it was reset.
async fn read(stream: &RecvStream) -> (Vec<u8>, Result<(), u64>) {
    let mut got = Vec::new();
    loop {
        match soon("bytes", stream.read(65_536)).await {
            Ok(Some(bytes)) => got.extend_from_slice(&bytes),
            Ok(None) => return (got, Ok(())),
            Err(StreamError::Reset(code)) => return (got, Err(code)),
            Err(other) => panic!("{other:?}"),
        }
    }
}

const GROUPS: u64 = 48;
const PAYLOAD: usize = 32 << 10;
const PIECE: usize = 64 << 10;

/// What is left of it when all was published.
struct Beside {
    stalled: Stalled,
    request: Request,
    /// The first stream, of which nothing was read.
    begun: RecvStream,
    publisher: Peer,
    lively: Peer,
    _kept: [Request; 2],
}

/// One publisher, one subscriber that stalls, and one beside it that gets each piece of the first group, and each group
/// behind it, before the next is published: whole, in order, however long the other one does not read. What is held for
/// the stalled one is bounded.
async fn beside_a_stalled(running: &Running, clients: &Clients) -> Beside {
    let mut publisher = Peer::connect(clients, running.address("moq"), Draft::D20).await;
    let mut lively = Peer::connect(clients, running.address("moq"), Draft::D18).await;
    let publish = publisher.publish("stalled", 1).await;
    let mut stalled = Stalled::connect(running, 128 << 10, 128 << 10).await;
    let mut request = stalled.peer.subscribe_with("stalled", Params::default()).await;
    assert!(matches!(request.words.next().await, Some(Message::SubscribeOk(_))));
    let (subscription, _) = lively.subscribe("stalled").await;
    // An object of more than QUIC and the cache hold together, piece by piece.
    let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
    let mut head = BytesMut::from(&[0x30, 1, 0, 0][..]);
    portway::transports::moq::codec::put_varint(16 * PIECE as u64, &mut head);
    stream.write(head.freeze()).await.expect("written");
    let theirs = soon("a stream", lively.connection.accept_uni()).await.expect("a stream");
    let (mut got, mut begun) = (0, None);
    for piece in 1..=16 {
        stream.write(pattern(PIECE)).await.expect("written");
        while got < piece * PIECE {
            got += soon("bytes", theirs.read(65_536)).await.expect("read").expect("more").len();
        }
        if begun.is_none() {
            begun = Some(soon("a stream", stalled.peer.connection.accept_uni()).await.expect("a stream"));
        }
    }
    stream.finish().await.expect("finished");
    assert!(!is_torn(&theirs).await);
    let payload = pattern(PAYLOAD);
    for group in 1..=GROUPS {
        publisher.send_subgroup(1, group, &[&payload]).await;
        let got = lively.receive().await;
        assert_eq!((got.group, got.whole, got.objects.len()), (group, true, 1));
        assert!(got.objects[0].1 == payload, "group {group}");
    }
    let view = running.gateway().mesh().view().await;
    for actor in view.arbiters.iter().flat_map(|arbiter| &arbiter.actors) {
        // The cache and what a batch takes; twice 128 KiB in QUIC, and a piece more.
        let most = if actor.kind.starts_with("moq") { 640 << 10 } else { 384 << 10 };
        assert!(actor.held <= most, "{} holds {} bytes", actor.kind, actor.held);
    }
    Beside { stalled, request, begun: begun.expect("a stream"), publisher, lively, _kept: [publish, subscription] }
}

const SMALL_CACHE: &str = "[listener.moq]\ncache = \"512KiB\"\n";

/// It skips, is told so by a reset of what had begun, and each group that it did not get is counted once.
#[test]
fn a_stalled_subscriber_delays_nobody_and_skips() {
    let running = Running::start(&relay(1, SMALL_CACHE));
    let clients = Clients::new();
    let whole = wait(async {
        let Beside { stalled, request, begun, publisher, lively, _kept } = beside_a_stalled(&running, &clients).await;
        assert_eq!(read(&begun).await.1, Err(ResetCode::TooFarBehind.number(Draft::D18)));
        let mut whole = 0;
        loop {
            let (group, ended) = stalled.next().await;
            assert_eq!(ended, Ok(()), "what is at hand is sent whole");
            whole += 1;
            if group == Some(GROUPS) {
                break;
            }
        }
        // And what is new comes as to everybody else.
        publisher.send_subgroup(1, GROUPS + 1, &[b"new"]).await;
        assert_eq!(lively.receive().await.objects, [(0, Bytes::from("new"))]);
        assert_eq!(stalled.next().await, (Some(GROUPS + 1), Ok(())));
        drop(request);
        whole
    });
    let totals = running.totals();
    let reset = totals.get("moq_streams_reset", "moq", "too_far_behind");
    assert_eq!((reset, totals.family("moq_streams_reset")), (1, 1));
    // The first group and all that had left the cache.
    let skipped = totals.get("moq_skipped", "moq", "");
    assert!(skipped > GROUPS / 2 && skipped + whole == GROUPS + 1, "{skipped} skipped, {whole} whole");
    assert_eq!(totals.family("moq_sessions_failed"), 0);
}

/// The other policy: its subscription ends, with the code for it.
#[test]
fn a_stalled_subscriber_delays_nobody_and_is_ended() {
    let running = Running::start(&relay(1, &format!("{SMALL_CACHE}when_slow = \"end\"\n")));
    let clients = Clients::new();
    wait(async {
        let beside = beside_a_stalled(&running, &clients).await;
        let Beside { stalled: _stalled, mut request, begun, publisher, lively, _kept } = beside;
        assert_eq!(read(&begun).await.1, Err(ResetCode::TooFarBehind.number(Draft::D18)));
        let last = done(&mut request).await;
        assert_eq!((last.code, last.streams), (DoneCode::TooFarBehind, Some(1)));
        publisher.send_subgroup(1, GROUPS + 1, &[b"new"]).await;
        assert_eq!(lively.receive().await.objects, [(0, Bytes::from("new"))], "the neighbour goes on");
    });
    let totals = running.totals();
    assert_eq!((totals.get("moq_streams_reset", "moq", "too_far_behind"), totals.family("moq_streams_reset")), (1, 1));
    assert_eq!(totals.get("moq_skipped", "moq", ""), 1, "what it was ended for");
    assert_eq!(totals.family("moq_sessions_failed"), 0);
}

/// Rule 13: objects that a subscriber did not take in time are given up with the code for it, and it goes on.
#[test]
fn objects_that_are_too_late_are_reset_with_their_code() {
    let running = Running::start(&relay(1, "[listener.moq]\ncache = \"64MiB\"\n"));
    let clients = Clients::new();
    wait(async {
        let params = Params { object_delivery_timeout: Some(Duration::from_secs(1)), ..Params::default() };
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let mut near = Near::of(&clients, &running).await;
        let publish = publisher.publish("late", 1).await;
        let mut stalled = Stalled::connect(&running, 64 << 10, 16 << 10).await;
        let mut request = stalled.peer.subscribe_with("late", params).await;
        assert!(matches!(request.words.next().await, Some(Message::SubscribeOk(_))));
        // Accepted as it comes: a stream that is reset before that is gone.
        let large = pattern(1 << 20);
        let accepted = soon("a stream", stalled.peer.connection.accept_uni());
        let payloads: [&[u8]; 1] = [&large];
        let ((), begun) = tokio::join!(publisher.send_subgroup(1, 0, &payloads), accepted);
        let begun = begun.expect("a stream");
        counted(&running, "moq_streams_reset", "delivery_timeout", 1).await;
        let (_, ended) = read(&begun).await;
        assert_eq!(ended, Err(ResetCode::DeliveryTimeout.number(Draft::D18)));
        publisher.send_subgroup(1, 1, &[b"new"]).await;
        assert_eq!(stalled.next().await, (Some(1), Ok(())));
        near.lost_nothing().await;
        drop(publish);
    });
    let totals = running.totals();
    assert_eq!(
        (totals.get("moq_streams_reset", "moq", "delivery_timeout"), totals.family("moq_streams_reset")),
        (1, 1)
    );
    assert_eq!(totals.get("moq_skipped", "moq", ""), 1);
    assert_eq!(totals.family("moq_sessions_failed"), 0);
}

/// Rule 17: what one arbiter has for another wakes it at once. One that looked every 200 ms would take 100 on the average.
#[test]
fn an_object_for_another_arbiter_wakes_it_at_once() {
    const ROUNDS: usize = 40;
    let running = Running::start(&relay(2, ""));
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, running.address("moq"), Draft::D18).await;
        let publish = publisher.publish("wakes", 1).await;
        let mut peers = Vec::new();
        let mut group = 0;
        // Enough that both arbiters have some.
        while peers.len() < 2 || counter(&running, "moq_cross_arbiter", "").await == 0 {
            let mut peer = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
            let (request, _) = peer.subscribe("wakes").await;
            peers.push((peer, request));
            assert!(peers.len() < 30, "all on one arbiter");
        }
        let mut medians = Vec::new();
        // A machine that is busy elsewhere is so for a while.
        while medians.len() < 5 && medians.iter().all(|median| *median >= Duration::from_millis(60)) {
            let mut took = Vec::new();
            for _ in 0..ROUNDS {
                // Long enough for all to sleep.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let begun = crate::probe::now();
                publisher.send_subgroup(1, group, &[b"wake"]).await;
                group += 1;
                for (peer, _) in &peers {
                    assert!(peer.receive().await.whole);
                }
                took.push(crate::probe::now() - begun);
            }
            took.sort_unstable();
            medians.push(took[took.len() / 2]);
        }
        assert!(medians.iter().any(|median| *median < Duration::from_millis(60)), "{medians:?}");
        drop(publish);
    });
}

/// Scopes are chosen by path and by authority, know nothing of each other, and one that is not there is refused at once.
#[test]
fn scopes_are_chosen_by_path_and_by_authority() {
    let scopes = "[[listener.moq.scope]]\npath = \"/a\"\n[[listener.moq.scope]]\nauthority = \"b.example\"\n";
    let running = Running::start(&relay(2, scopes));
    let to = running.address("moq");
    let clients = Clients::new();
    let _open = wait(async {
        let connection = || async { soon("a connection", clients.connect(to, Draft::D20.alpn())).await };
        let setup = |path: &str, authority: &str| Setup {
            path: Some(path.to_owned()).filter(|path| !path.is_empty()),
            authority: Some(authority.to_owned()).filter(|authority| !authority.is_empty()),
            ..Setup::default()
        };
        let mut publishers = Vec::new();
        for (path, authority) in [("/a?x=1", ""), ("/other", "B.example:4443")] {
            let mut publisher = Peer::saying(connection().await, Draft::D20, setup(path, authority)).await;
            let publish = publisher.publish("here", 1).await;
            let mut subscriber = Peer::saying(connection().await, Draft::D20, setup(path, authority)).await;
            let (subscription, _) = subscriber.subscribe("here").await;
            publishers.push((publisher, subscriber, path, publish, subscription));
        }
        for (publisher, _, path, ..) in &publishers {
            publisher.send_subgroup(1, 0, &[path.as_bytes()]).await;
        }
        for (_, subscriber, path, ..) in &publishers {
            assert_eq!(subscriber.receive().await.objects, [(0, Bytes::from(*path))], "of its own scope alone");
        }
        let other = connection().await;
        let control = other.open_uni(Priority::default()).await.expect("a stream");
        let hello = Message::Setup(Box::new(setup("/none", "c.example")));
        control.write(bytes_of(&hello, Draft::D20)).await.expect("written");
        let end = soon("a close", other.join()).await.end;
        assert_eq!(end.code, Code::Application(SessionCode::InvalidPath.number(Draft::D20)));
        publishers[0].0.send_subgroup(1, 1, &[b"on"]).await;
        assert!(publishers[0].1.receive().await.whole);
        publishers
    });
    let totals = running.totals();
    assert_eq!(
        (totals.get("moq_sessions_failed", "moq", "no_such_scope"), totals.family("moq_sessions_failed")),
        (1, 1)
    );
}

/// A scope has its share of tracks, a session its share of requests: what is beyond is refused, and all else goes on.
#[test]
fn a_scope_has_its_share_of_tracks_and_a_session_of_requests() {
    let running = Running::start(&relay(1, "[listener.moq]\ntracks = 3\nrequests = 4\n"));
    let clients = Clients::new();
    wait(async {
        let mut near = Near::of(&clients, &running).await;
        let mut peer = Peer::connect(&clients, running.address("moq"), Draft::D20).await;
        let offer = |name: &str, alias| {
            let track = track(name);
            move |request_id| {
                let (params, properties) = (Params::default(), Properties::default());
                Message::Publish(Box::new(Publish { request_id, track, track_alias: alias, params, properties }))
            }
        };
        let mut kept = vec![peer.publish("one", 1).await, peer.publish("two", 2).await];
        let mut beyond = peer.ask(offer("three", 3)).await;
        assert_eq!(code_of(beyond.words.next().await), RequestCode::ExcessiveLoad, "of tracks");
        kept.extend([peer.subscribe("one").await.0, peer.subscribe("two").await.0]);
        let mut beyond = peer.subscribe_with("near", Params::default()).await;
        assert_eq!(code_of(beyond.words.next().await), RequestCode::ExcessiveLoad, "of requests");
        near.lost_nothing().await;
        peer.send_subgroup(1, 0, &[b"one"]).await;
        assert!(peer.receive().await.whole);
        // With one that is given up there is room for another.
        let given_up = kept.pop().expect("one");
        given_up.send.reset(1).await.expect("reset");
        given_up.words.stream.stop(1).await.expect("stopped");
        let (again, _) = peer.subscribe("near").await;
        near.lost_nothing().await;
        drop((kept, again));
    });
    let totals = running.totals();
    let refused = totals.get("moq_requests_refused", "moq", "excessive_load");
    assert_eq!((refused, totals.family("moq_requests_refused")), (2, 2));
    assert_eq!(totals.family("moq_sessions_failed"), 0);
}
