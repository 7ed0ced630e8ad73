//! A gateway's relay of Media over QUIC, with a client that is written here over the codec alone: what flows, what it
//! costs between arbiters, and what bad input gets.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::transports::moq::codec_message::{MessageDecoder, put_message};
use portway::transports::moq::codec_stream::{StreamDecoder, StreamStart};
use portway::transports::moq::codec_subgroup::{
    ObjectDecoder, ObjectEncoder, Piece, SubgroupHeader, SubgroupId, put_subgroup_header,
};
use portway::transports::moq::model::{Draft, Location, ObjectStatus};
use portway::transports::moq::model_codes::{DoneCode, RequestCode, SessionCode};
use portway::transports::moq::model_message::{
    Message, Publish, PublishDone, PublishNamespace, Setup, Subscribe, SubscribeTracks, TrackStatus,
};
use portway::transports::moq::model_names::{FullTrackName, Namespace, TrackName};
use portway::transports::moq::model_params::{Params, Properties, Token};
use portway::transports::quic::{Code, Connection, Priority, RecvStream, SendStream};

use crate::gateway::Running;
use crate::probe::{SOON, eventually, wait};
use crate::quic_gateway::{Clients, certificate};

/// A relay with settings of its own.
pub(crate) fn relay(arbiters: usize, rest: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = {arbiters}\ndrain = \"5s\"\n{}\n[[listener]]\nname = \"moq\"\n\
         listen = \"127.0.0.1:0\"\nprotocol = \"moq\"\ncertificate = \"local\"\n{rest}",
        certificate()
    )
}

pub(crate) fn track(name: &str) -> FullTrackName {
    let namespace = Namespace::new(["test", "it"]).expect("a namespace");
    FullTrackName::new(namespace, TrackName::new(name).expect("a name")).expect("a track")
}

pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// The messages of one stream.
pub(crate) struct Words {
    pub(crate) stream: RecvStream,
    pub(crate) decoder: MessageDecoder,
    pub(crate) rest: Bytes,
}

impl Words {
    pub(crate) fn new(stream: RecvStream, draft: Draft) -> Self {
        Self { stream, decoder: MessageDecoder::new(draft), rest: Bytes::new() }
    }

    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.decode(&mut self.rest).expect("a message") {
                return Some(message);
            }
            self.rest = soon("a message", self.stream.read(65_536)).await.ok()??;
        }
    }
}

/// A request with its stream.
pub(crate) struct Request {
    pub(crate) send: SendStream,
    pub(crate) words: Words,
}

/// What came on a stream of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subgroup {
    pub(crate) alias: u64,
    pub(crate) group: u64,
    pub(crate) subgroup: u64,
    pub(crate) objects: Vec<(u64, Bytes)>,
    pub(crate) whole: bool,
}

/// A session over the codec.
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    pub(crate) draft: Draft,
    pub(crate) control: SendStream,
    pub(crate) _words: Words,
    pub(crate) next: u64,
    /// Requests that stay open: dropping one gives it up.
    pub(crate) kept: Vec<Request>,
}

pub(crate) fn bytes_of(message: &Message, draft: Draft) -> Bytes {
    let mut out = BytesMut::new();
    put_message(message, draft, &mut out).expect("it can be said");
    out.freeze()
}

impl Peer {
    pub(crate) async fn connect(clients: &Clients, to: SocketAddr, draft: Draft) -> Self {
        Self::on(soon("a connection", clients.connect(to, draft.alpn())).await, draft).await
    }

    /// Over a connection that is there.
    pub(crate) async fn on(connection: Connection, draft: Draft) -> Self {
        Self::saying(connection, draft, Setup::default()).await
    }

    /// The same, with this token.
    async fn showing(clients: &Clients, to: SocketAddr, draft: Draft, token: &'static str) -> Self {
        let connection = soon("a connection", clients.connect(to, draft.alpn())).await;
        let token = Token::UseValue { kind: 0, value: Bytes::from_static(token.as_bytes()) };
        Self::saying(connection, draft, Setup { tokens: vec![token], ..Setup::default() }).await
    }

    /// The same, with this SETUP.
    pub(crate) async fn saying(connection: Connection, draft: Draft, setup: Setup) -> Self {
        let control = connection.open_uni(Priority::default()).await.expect("a stream");
        control.write(bytes_of(&Message::Setup(Box::new(setup)), draft)).await.expect("written");
        let theirs = soon("a control stream", connection.accept_uni()).await.expect("a stream");
        let mut words = Words::new(theirs, draft);
        assert!(matches!(words.next().await, Some(Message::Setup(_))));
        Self { connection, draft, control, _words: words, next: 0, kept: Vec::new() }
    }

    pub(crate) async fn ask(&mut self, make: impl FnOnce(u64) -> Message) -> Request {
        let (send, receive) = self.connection.open(Priority::default()).await.expect("a stream");
        let id = self.next;
        self.next += 2;
        send.write(bytes_of(&make(id), self.draft)).await.expect("written");
        Request { send, words: Words::new(receive, self.draft) }
    }

    pub(crate) async fn subscribe_with(&mut self, name: &str, params: Params) -> Request {
        let track = track(name);
        self.ask(|request_id| Message::Subscribe(Box::new(Subscribe { request_id, track, params }))).await
    }

    /// A subscription that is accepted, and its alias.
    pub(crate) async fn subscribe(&mut self, name: &str) -> (Request, u64) {
        let params = Params { rendezvous_timeout: Some(SOON), ..Params::default() };
        let mut request = self.subscribe_with(name, params).await;
        match request.words.next().await {
            Some(Message::SubscribeOk(ok)) => (request, ok.track_alias),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self, name: &str, alias: u64) -> Request {
        let track = track(name);
        let mut request = self
            .ask(|request_id| {
                let (params, properties) = (Params::default(), Properties::default());
                Message::Publish(Box::new(Publish { request_id, track, track_alias: alias, params, properties }))
            })
            .await;
        assert!(matches!(request.words.next().await, Some(Message::RequestOk(_))));
        request
    }

    /// A subgroup of whole objects, numbered from 0 on.
    pub(crate) fn subgroup(&self, alias: u64, group: u64, payloads: &[&[u8]]) -> Bytes {
        let header = SubgroupHeader {
            track_alias: alias,
            group,
            subgroup: SubgroupId::Zero,
            priority: None,
            properties: false,
            end_of_group: false,
            first_object: true,
        };
        let mut out = BytesMut::new();
        put_subgroup_header(&header, &mut out);
        let mut encoder = ObjectEncoder::new(&header);
        for (id, payload) in (0..).zip(payloads) {
            encoder
                .put(id, &Properties::default(), payload.len() as u64, ObjectStatus::Normal, &mut out)
                .expect("in order");
            out.extend_from_slice(payload);
        }
        out.freeze()
    }

    pub(crate) async fn send_subgroup(&self, alias: u64, group: u64, payloads: &[&[u8]]) {
        let stream = self.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(self.subgroup(alias, group, payloads)).await.expect("written");
        stream.finish().await.expect("finished");
    }

    /// Sends bytes on a stream of their own, and its end.
    pub(crate) async fn send_raw(&self, bytes: &'static [u8]) {
        let stream = self.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(Bytes::from_static(bytes)).await.expect("written");
        stream.finish().await.expect("finished");
    }

    /// The next stream of objects, to its end.
    pub(crate) async fn receive(&self) -> Subgroup {
        let stream = soon("a stream", self.connection.accept_uni()).await.expect("a stream");
        let mut starts = StreamDecoder::new(self.draft);
        let mut rest = Bytes::new();
        let header = loop {
            match starts.decode(&mut rest).expect("a head") {
                Some(StreamStart::Subgroup(header)) => break header,
                Some(other) => panic!("{other:?}"),
                None => rest = soon("a head", stream.read(65_536)).await.expect("read").expect("more"),
            }
        };
        let mut decoder = ObjectDecoder::new(&header);
        let mut objects: Vec<(u64, BytesMut)> = Vec::new();
        let whole = loop {
            match decoder.decode(&mut rest).expect("objects") {
                Some(Piece::Head(head)) => objects.push((head.id, BytesMut::new())),
                Some(Piece::Payload { bytes, .. }) => objects.last_mut().expect("one").1.extend_from_slice(&bytes),
                None => match soon("objects", stream.read(65_536)).await {
                    Ok(Some(bytes)) => rest = bytes,
                    Ok(None) => break true,
                    Err(_) => break false,
                },
            }
        };
        let subgroup = match header.subgroup {
            SubgroupId::Given(id) => id,
            SubgroupId::Zero | SubgroupId::FirstObject => 0,
        };
        let objects = objects.into_iter().map(|(id, payload)| (id, payload.freeze())).collect();
        Subgroup { alias: header.track_alias, group: header.group, subgroup, objects, whole }
    }

    /// The next stream, of which something has come.
    pub(crate) async fn begun(&self) -> RecvStream {
        let stream = soon("a stream", self.connection.accept_uni()).await.expect("a stream");
        assert!(soon("bytes", stream.read(65_536)).await.expect("read").is_some());
        stream
    }

    /// The code that the relay closes with.
    pub(crate) async fn closed(&self) -> SessionCode {
        let farewell = soon("a close", self.connection.join()).await;
        match farewell.end.code {
            Code::Application(number) => SessionCode::from_number(number, self.draft),
            other @ Code::Transport(_) | other @ Code::None => panic!("{other:?}: {}", farewell.end),
        }
    }
}

/// Whether a stream ends by a reset.
pub(crate) async fn is_torn(stream: &RecvStream) -> bool {
    loop {
        match soon("the end", stream.read(65_536)).await {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

pub(crate) fn code_of(message: Option<Message>) -> RequestCode {
    match message {
        Some(Message::RequestError(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

fn sessions(running: &Running) -> usize {
    let actors = running.gateway().mesh();
    wait(actors.view()).arbiters.iter().flat_map(|arbiter| &arbiter.actors).filter(|actor| actor.kind == "quic").count()
}

#[test]
fn objects_flow_from_a_publisher_to_subscribers_in_both_drafts() {
    let running = Running::start(&relay(2, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let mut first = Peer::connect(&clients, to, Draft::D20).await;
        let mut second = Peer::connect(&clients, to, Draft::D18).await;
        let (publish, (mut one, _)) = tokio::join!(publisher.publish("flow", 7), first.subscribe("flow"));
        publisher.kept.push(publish);
        let (mut two, alias) = second.subscribe("flow").await;
        publisher.send_subgroup(7, 0, &[b"hello", b"", b"world"]).await;
        for (peer, alias) in [(&first, None), (&second, Some(alias))] {
            let got = peer.receive().await;
            let expected = [(0, "hello"), (1, ""), (2, "world")].map(|(id, text)| (id, Bytes::from(text)));
            assert_eq!((got.group, got.subgroup, got.whole, &got.objects[..]), (0, 0, true, &expected[..]));
            assert!(alias.is_none_or(|alias| alias == got.alias), "the relay's own alias");
        }
        // A stream that is given up is one downstream, and nothing else ends.
        let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(publisher.subgroup(7, 1, &[b"half"])).await.expect("written");
        let begun = [first.begun().await, second.begun().await];
        stream.reset(1).await.expect("reset");
        for stream in begun {
            assert!(is_torn(&stream).await, "FIN is for what is complete alone");
        }
        publisher.send_subgroup(7, 2, &[b"next"]).await;
        for peer in [&first, &second] {
            let got = peer.receive().await;
            assert_eq!((got.group, got.whole), (2, true));
        }
        drop(publisher);
        for request in [&mut one, &mut two] {
            let done = loop {
                match request.words.next().await {
                    Some(Message::PublishDone(done)) => break done,
                    Some(_) => {}
                    None => panic!("no PUBLISH_DONE"),
                }
            };
            assert_eq!((done.code, done.streams), (DoneCode::TrackEnded, Some(3)));
        }
    });
}

#[test]
fn a_track_is_offered_asked_about_and_known_only_while_it_is_there() {
    let running = Running::start(&relay(1, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut watcher = Peer::connect(&clients, to, Draft::D18).await;
        let prefix = Namespace::new(["test"]).expect("a prefix");
        let mut watch = watcher
            .ask(|request_id| {
                let (prefix, params) = (prefix, Params::default());
                Message::SubscribeTracks(Box::new(SubscribeTracks { request_id, prefix, params }))
            })
            .await;
        assert!(matches!(watch.words.next().await, Some(Message::RequestOk(_))));
        let status = |peer_track: &'static str| {
            move |request_id| {
                let (track, params) = (track(peer_track), Params::default());
                Message::TrackStatus(Box::new(TrackStatus { request_id, track, params }))
            }
        };
        let mut none = watcher.ask(status("offer")).await;
        assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist);
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let publish = publisher.publish("offer", 3).await;
        let (send, receive) = soon("an offer", watcher.connection.accept()).await.expect("a stream");
        let mut words = Words::new(receive, Draft::D18);
        let Some(Message::Publish(offered)) = words.next().await else { panic!("PUBLISH") };
        assert_eq!(offered.track, track("offer"));
        publisher.send_subgroup(3, 4, &[b"a", b"b"]).await;
        assert_eq!(watcher.receive().await.objects.len(), 2);
        let mut known = watcher.ask(status("offer")).await;
        let Some(Message::RequestOk(ok)) = known.words.next().await else { panic!("REQUEST_OK") };
        assert_eq!(ok.params.largest, Some(Location::new(4, 1)));
        drop((publish, send, words));
    });
}

/// What crosses between arbiters grows with arbiters: a batch is one message to each, however many subscribe there.
#[test]
fn a_subscriber_costs_no_message_between_arbiters() {
    const SUBSCRIBERS: usize = 24;
    const GROUPS: u64 = 20;
    let running = Running::start(&relay(2, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let publish = publisher.publish("count", 1).await;
        let mut peers = Vec::new();
        for _ in 0..SUBSCRIBERS {
            let mut peer = Peer::connect(&clients, to, Draft::D18).await;
            let (request, _) = peer.subscribe("count").await;
            peers.push((peer, request));
        }
        for group in 0..GROUPS {
            publisher.send_subgroup(1, group, &[b"object"]).await;
        }
        for (peer, _) in &peers {
            for _ in 0..GROUPS {
                assert!(peer.receive().await.whole);
            }
        }
        drop(publish);
    });
    let totals = running.totals();
    let batches = totals.get("moq_batches", "moq", "");
    let cross = totals.get("moq_cross_arbiter", "moq", "");
    assert!((1..=3 * GROUPS).contains(&batches), "{batches} batches of {GROUPS} groups");
    // One for each batch, and one when the other arbiter had its first subscriber and when the track began.
    assert!(cross <= batches + 4, "{cross} messages for {batches} batches");
    assert!(totals.get("moq_streams_out", "moq", "") >= SUBSCRIBERS as u64 * GROUPS);
}

#[test]
fn fifty_sessions_are_fifty_actors_and_then_none() {
    let running = Running::start(&relay(2, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut peers = Vec::new();
        for _ in 0..50 {
            peers.push(Peer::connect(&clients, to, Draft::D20).await);
        }
        let view = running.gateway().mesh().view().await;
        let actors: Vec<_> = view.arbiters.iter().flat_map(|arbiter| &arbiter.actors).collect();
        let sessions: Vec<_> = actors.iter().filter(|actor| actor.kind == "quic").collect();
        assert_eq!(sessions.len(), 50);
        assert!(sessions.iter().all(|actor| actor.turns > 0), "each had turns on its arbiter");
        let pinned = |view: &portway::actors::MeshView| {
            view.of_kind("quic").map(|actor| (actor.id, actor.arbiter)).collect::<std::collections::BTreeSet<_>>()
        };
        let first = pinned(&view);
        assert!((0..2).all(|arbiter| first.iter().any(|(_, on)| *on == arbiter)), "{first:?}");
        for peer in &mut peers {
            let mut none = peer.subscribe_with("none", Params::default()).await;
            assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist);
        }
        assert_eq!(pinned(&running.gateway().mesh().view().await), first, "none has moved");
        for peer in peers {
            peer.connection.close(0, "");
        }
    });
    eventually("all sessions end", || sessions(&running) == 0);
}

/// Sends something bad from a session of its own; the session is closed with that code, the counter of the reason rises
/// by one, and a neighbour's subscription goes on.
pub(crate) fn bad(reason: &str, code: SessionCode, what: impl AsyncFnOnce(&mut Peer)) {
    let running = Running::start(&relay(1, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    // All stay open until the counters are read: a session that ends counts as one whose control stream was closed.
    let _open = wait(async {
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let mut neighbour = Peer::connect(&clients, to, Draft::D18).await;
        let publish = publisher.publish("near", 1).await;
        let (subscription, _) = neighbour.subscribe("near").await;
        publisher.send_subgroup(1, 0, &[b"before"]).await;
        assert!(neighbour.receive().await.whole);
        let mut peer = Peer::connect(&clients, to, Draft::D18).await;
        what(&mut peer).await;
        assert_eq!(peer.closed().await, code, "{reason}");
        publisher.send_subgroup(1, 1, &[b"after"]).await;
        assert_eq!(neighbour.receive().await.objects[0].1, Bytes::from("after"));
        (publisher, neighbour, peer, publish, subscription)
    });
    let totals = running.totals();
    let failed = |reason: &str| totals.get("moq_sessions_failed", "moq", reason);
    assert_eq!((failed(reason), totals.family("moq_sessions_failed")), (1, 1), "{reason}");
}

#[test]
fn unknown_streams_and_messages_end_their_session_alone() {
    bad("unknown_stream", SessionCode::ProtocolViolation, async |peer| peer.send_raw(&[0x06, 0, 0]).await);
    bad("unknown_message", SessionCode::ProtocolViolation, async |peer| {
        let (send, receive) = peer.connection.open(Priority::default()).await.expect("a stream");
        send.write(Bytes::from_static(&[0x3b, 0, 0])).await.expect("written");
        peer.kept.push(Request { send, words: Words::new(receive, Draft::D18) });
    });
    bad("unexpected_message", SessionCode::ProtocolViolation, async |peer| {
        peer.control.write(bytes_of(&Message::Setup(Box::default()), Draft::D18)).await.expect("written");
    });
    bad("not_a_request", SessionCode::ProtocolViolation, async |peer| {
        let (send, receive) = peer.connection.open(Priority::default()).await.expect("a stream");
        let done = PublishDone { code: DoneCode::TrackEnded, streams: None, reason: String::new() };
        send.write(bytes_of(&Message::PublishDone(done), Draft::D18)).await.expect("written");
        peer.kept.push(Request { send, words: Words::new(receive, Draft::D18) });
    });
    bad("second_control_stream", SessionCode::ProtocolViolation, async |peer| {
        let stream = peer.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(bytes_of(&Message::Setup(Box::<Setup>::default()), Draft::D18)).await.expect("written");
        stream.finish().await.expect("finished");
    });
    bad("control_stream_closed", SessionCode::ProtocolViolation, async |peer| {
        peer.control.finish().await.expect("finished");
    });
}

#[test]
fn request_numbers_and_aliases_are_used_once() {
    bad("invalid_request_id", SessionCode::InvalidRequestId, async |peer| {
        let first = peer.subscribe_with("none", Params::default()).await;
        peer.next = 0;
        let again = peer.subscribe_with("none", Params::default()).await;
        peer.kept.extend([first, again]);
    });
    bad("invalid_request_id", SessionCode::InvalidRequestId, async |peer| {
        peer.next = 1;
        let odd = peer.subscribe_with("none", Params::default()).await;
        peer.kept.push(odd);
    });
    bad("duplicate_track_alias", SessionCode::DuplicateTrackAlias, async |peer| {
        let one = peer.publish("one", 5).await;
        let other = track("two");
        let two = peer
            .ask(|request_id| {
                let (params, properties) = (Params::default(), Properties::default());
                Message::Publish(Box::new(Publish { request_id, track: other, track_alias: 5, params, properties }))
            })
            .await;
        peer.kept.extend([one, two]);
    });
}

#[test]
fn an_object_that_is_cut_or_wrong_ends_the_publisher_and_is_passed_on_to_nobody() {
    bad("cut_off", SessionCode::ProtocolViolation, async |peer| {
        let publish = peer.publish("cut", 1).await;
        let whole = peer.subgroup(1, 0, &[b"payload"]);
        let stream = peer.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(whole.slice(..whole.len() - 3)).await.expect("written");
        stream.finish().await.expect("finished");
        peer.kept.push(publish);
    });
    bad("unknown_status", SessionCode::ProtocolViolation, async |peer| {
        let publish = peer.publish("status", 1).await;
        // Subgroup 0 of group 0, default priority; object 0 without payload, of status 9.
        peer.send_raw(&[0x30, 1, 0, 0, 0, 9]).await;
        peer.kept.push(publish);
    });
}

/// A session whose track contradicts itself: the track ends everywhere, the session does not.
#[test]
fn a_track_that_contradicts_itself_ends_for_all_its_subscribers() {
    let running = Running::start(&relay(1, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let mut subscriber = Peer::connect(&clients, to, Draft::D18).await;
        let bad = publisher.publish("bad", 1).await;
        let good = publisher.publish("good", 2).await;
        let (mut request, _) = subscriber.subscribe("bad").await;
        let (other, _) = subscriber.subscribe("good").await;
        // The group ends at object 1, and then there is an object 2.
        publisher.send_raw(&[0x30, 1, 0, 0, 1, b'a', 0, 0, 3]).await;
        assert!(subscriber.receive().await.whole);
        publisher.send_raw(&[0x34, 1, 0, 1, 2, 1, b'b']).await;
        let Some(Message::PublishDone(done)) = request.words.next().await else { panic!("PUBLISH_DONE") };
        assert_eq!((done.code, done.streams), (DoneCode::MalformedTrack, Some(1)));
        publisher.send_subgroup(2, 0, &[b"fine"]).await;
        assert_eq!(subscriber.receive().await.objects[0].1, Bytes::from("fine"));
        drop((bad, good, other));
    });
    assert_eq!(running.totals().get("moq_malformed", "moq", "object_behind_end_of_group"), 1);
    assert_eq!(running.totals().family("moq_malformed"), 1);
}

/// An object of 2^62 bytes is announced: it passes as it comes, and takes no memory beforehand.
#[test]
fn an_endless_object_passes_as_it_comes() {
    let running = Running::start(&relay(1, "[listener.moq]\ncache = \"64KiB\"\n"));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut near = Flow::begin(&clients, to, "near").await;
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let mut subscriber = Peer::connect(&clients, to, Draft::D18).await;
        let publish = publisher.publish("endless", 1).await;
        let (subscription, _) = subscriber.subscribe("endless").await;
        let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
        let mut head = BytesMut::from(&[0x30, 1, 0, 0][..]);
        portway::transports::moq::codec::put_varint(1 << 62, &mut head);
        stream.write(head.freeze()).await.expect("written");
        let theirs = soon("a stream", subscriber.connection.accept_uni()).await.expect("a stream");
        let mut got = 0;
        for _ in 0..20 {
            stream.write(Bytes::from(vec![7; 16 << 10])).await.expect("written");
            while got < 16 << 10 {
                got += soon("bytes", theirs.read(65_536)).await.expect("read").expect("more").len();
            }
            got -= 16 << 10;
            near.works().await;
        }
        let view = running.gateway().mesh().view().await;
        let actors = view.arbiters.iter().flat_map(|arbiter| &arbiter.actors);
        let held: usize = actors.filter(|actor| actor.kind.starts_with("moq")).map(|actor| actor.held).sum();
        assert!(held < 1 << 20, "{held} bytes held");
        // What ends in its midst is no object: the publisher's session ends with it, and nobody else's.
        stream.finish().await.expect("finished");
        assert!(is_torn(&theirs).await);
        assert_eq!(publisher.closed().await, SessionCode::ProtocolViolation);
        near.works().await;
        assert_eq!(running.gateway().mesh().view().await.totals.get("moq_sessions_failed", "moq", "cut_off"), 1);
        drop((publish, subscription));
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 1);
}

/// Asks for namespaces of these numbers, 100 at a time; answers how many were granted and refused. Those granted stay.
async fn namespaces(peer: &mut Peer, mut numbers: std::ops::Range<usize>) -> (usize, usize) {
    let (mut granted, mut refused) = (0, 0);
    while !numbers.is_empty() {
        let mut asked = Vec::new();
        for number in numbers.by_ref().take(100) {
            let namespace = Namespace::new(["many", &number.to_string()]).expect("a namespace");
            let params = Params::default();
            let make =
                |request_id| Message::PublishNamespace(Box::new(PublishNamespace { request_id, namespace, params }));
            asked.push(peer.ask(make).await);
        }
        for mut request in asked {
            match request.words.next().await {
                Some(Message::RequestOk(_)) => {
                    granted += 1;
                    peer.kept.push(request);
                }
                other => {
                    assert_eq!(code_of(other), RequestCode::ExcessiveLoad);
                    refused += 1;
                }
            }
        }
    }
    (granted, refused)
}

/// As many as a session may have are granted, all others refused and counted; it goes on, and so do others.
fn share_of_namespaces(limit: &str, granted: usize, asked: usize) {
    const PART: usize = 10_000;
    let running = Running::start(&relay(1, &format!("[listener.quic]\nstreams = 4000\n[listener.moq]\n{limit}\n")));
    let to = running.address("moq");
    let clients = Clients::new();
    let (mut near, mut peer) =
        wait(async { (Flow::begin(&clients, to, "near").await, Peer::connect(&clients, to, Draft::D20).await) });
    let mut answers = (0, 0);
    // Each part has its own deadline.
    for first in (0..asked).step_by(PART) {
        let (yes, no) = wait(async {
            near.works().await;
            namespaces(&mut peer, first..asked.min(first + PART)).await
        });
        answers = (answers.0 + yes, answers.1 + no);
    }
    assert_eq!(answers, (granted, asked - granted));
    let _publish = wait(async {
        near.works().await;
        peer.publish("mine", 1).await
    });
    let refused = |reason: &str| running.totals().get("moq_requests_refused", "moq", reason);
    let all = running.totals().family("moq_requests_refused");
    assert_eq!((refused("excessive_load"), all), ((asked - granted) as u64, (asked - granted) as u64));
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// Twice as many as it may have where nothing else is said. Requests beside them stay possible.
#[test]
fn a_session_has_its_share_of_namespaces() {
    share_of_namespaces("requests = 4000", 1_000, 2_000);
}

/// 100,000 of them from one session; few stay, since QUIC in builds with assertions looks at all open streams for each.
#[test]
fn a_hundred_thousand_namespaces_cost_their_session_its_share_alone() {
    share_of_namespaces("namespaces = 100", 100, 100_000);
}

/// It subscribes and resets 3,000 times, one behind the other as fast as it is answered.
#[test]
fn a_subscriber_that_comes_and_goes_leaves_nothing_behind() {
    const TIMES: usize = 3_000;
    let running = Running::start(&relay(1, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    let _open = wait(async {
        let mut near = Flow::begin(&clients, to, "near").await;
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let publish = publisher.publish("fickle", 1).await;
        let mut peer = Peer::connect(&clients, to, Draft::D18).await;
        for _ in 0..TIMES {
            let (request, _) = peer.subscribe("fickle").await;
            request.send.reset(1).await.expect("reset");
            request.words.stream.stop(1).await.expect("stopped");
        }
        let (last, _) = peer.subscribe("fickle").await;
        publisher.send_subgroup(1, 0, &[b"still"]).await;
        assert_eq!(peer.receive().await.objects[0].1, Bytes::from("still"));
        near.works().await;
        (near, publisher, publish, peer, last)
    });
    assert_eq!(running.totals().get("moq_requests", "moq", "SUBSCRIBE"), TIMES as u64 + 2);
    assert_eq!(running.totals().family("moq_requests_refused"), 0);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// A publisher that is gone in the midst of a group, and back: who waited goes on with what is new.
#[test]
fn subscribers_wait_for_a_publisher_that_comes_back() {
    let running = Running::start(&relay(2, "[listener.moq]\nlinger = \"10s\"\n"));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, to, Draft::D18).await;
        let publish = publisher.publish("back", 1).await;
        let mut near = Flow::begin(&clients, to, "beside").await;
        let mut peers = Vec::new();
        for _ in 0..100 {
            let mut peer = Peer::connect(&clients, to, Draft::D18).await;
            let (request, _) = peer.subscribe("back").await;
            peers.push((peer, request));
        }
        let stream = publisher.connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(publisher.subgroup(1, 0, &[b"zero"])).await.expect("written");
        let mut begun = Vec::new();
        for (peer, _) in &peers {
            begun.push(peer.begun().await);
        }
        publisher.connection.close(0, "");
        let mut again = Peer::connect(&clients, to, Draft::D18).await;
        let published = again.publish("back", 9).await;
        for stream in begun {
            assert!(is_torn(&stream).await, "what was begun could not be finished");
        }
        again.send_subgroup(9, 0, &[b"zero", b"one"]).await;
        for (peer, _) in &peers {
            assert_eq!(peer.receive().await.objects, [(1, Bytes::from("one"))], "nothing comes twice");
        }
        near.works().await;
        drop((publish, published));
    });
    assert_eq!(running.totals().get("moq_duplicates", "moq", ""), 1, "what it had sent before");
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// What is published the moment another publisher of the same name is done is not taken for what ends there.
#[test]
fn a_name_is_published_anew_the_moment_it_is_done() {
    let running = Running::start(&relay(2, ""));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let mut one = Peer::connect(&clients, to, Draft::D18).await;
        let mut other = Peer::connect(&clients, to, Draft::D18).await;
        let mut publish = one.publish("again", 0).await;
        for round in 1..=100 {
            let mut subscriber = Peer::connect(&clients, to, Draft::D18).await;
            let done = PublishDone { code: DoneCode::TrackEnded, streams: Some(0), reason: String::new() };
            publish.send.write(bytes_of(&Message::PublishDone(done), Draft::D18)).await.expect("written");
            std::mem::swap(&mut one, &mut other);
            publish = one.publish("again", round).await;
            // It is there when its publisher has been told so.
            let mut request = subscriber.subscribe_with("again", Params::default()).await;
            match request.words.next().await {
                Some(Message::SubscribeOk(_)) => {}
                other => panic!("round {round}: {other:?}"),
            }
            one.send_subgroup(round, round, &[b"anew"]).await;
            // Where both fed the same track for a moment, groups of before are in its cache.
            let mut came = subscriber.receive().await;
            while came.group < round {
                came = subscriber.receive().await;
            }
            assert_eq!((came.group, came.objects), (round, vec![(0, Bytes::from("anew"))]));
        }
    });
}

#[test]
fn tokens_grant_and_expire_on_running_sessions() {
    let soon_over = portway::actors::clock::since_1970() + Duration::from_secs(3);
    let token = |token: &str, more: &str| {
        format!("[[listener.moq.token]]\ntoken = \"{token}\"\npublish = \"test\"\nsubscribe = \"test\"\n{more}")
    };
    let rest = token("short", &format!("expires = {}\n", soon_over.as_secs())) + &token("stays", "");
    let running = Running::start(&relay(1, &rest));
    let to = running.address("moq");
    let clients = Clients::new();
    wait(async {
        let (one, other) = (Draft::D18, Draft::D20);
        let near = (Peer::showing(&clients, to, one, "stays").await, Peer::showing(&clients, to, other, "stays").await);
        let mut near = Flow::of(near.0, near.1, "near").await;
        let mut peer = Peer::connect(&clients, to, Draft::D18).await;
        let mut denied = peer.subscribe_with("secret", Params::default()).await;
        assert_eq!(code_of(denied.words.next().await), RequestCode::Unauthorized);
        let mut bearer = Peer::showing(&clients, to, Draft::D18, "short").await;
        let publish = bearer.publish("secret", 1).await;
        near.works().await;
        let ended = soon("its end", publish.words.stream.read(9)).await;
        assert!(ended.is_err() || ended == Ok(None), "its grant is over: {ended:?}");
        let mut late = bearer.subscribe_with("secret", Params::default()).await;
        assert_eq!(code_of(late.words.next().await), RequestCode::ExpiredAuthToken);
        near.works().await;
    });
    let refused = |reason: &str| running.totals().get("moq_requests_refused", "moq", reason);
    assert_eq!((refused("unauthorized"), refused("expired_auth_token")), (1, 2));
}

/// A publisher and a subscriber that stay, for tests of what goes on around them.
pub(crate) struct Flow {
    publisher: Peer,
    subscriber: Peer,
    _subscription: Request,
    group: u64,
}

impl Flow {
    pub(crate) async fn begin(clients: &Clients, to: SocketAddr, name: &str) -> Self {
        let publisher = Peer::connect(clients, to, Draft::D18).await;
        Self::of(publisher, Peer::connect(clients, to, Draft::D20).await, name).await
    }

    async fn of(mut publisher: Peer, mut subscriber: Peer, name: &str) -> Self {
        let (publish, (subscription, _)) = tokio::join!(publisher.publish(name, 7), subscriber.subscribe(name));
        publisher.kept.push(publish);
        Self { publisher, subscriber, _subscription: subscription, group: 0 }
    }

    /// The next group comes through, whole.
    pub(crate) async fn works(&mut self) {
        self.publisher.send_subgroup(7, self.group, &[b"one", b"two"]).await;
        let got = self.subscriber.receive().await;
        assert_eq!((got.group, got.whole, got.objects.len()), (self.group, true, 2));
        self.group += 1;
    }
}
