//! The client of Media over QUIC, at a gateway's relay, and at peers that break rules.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::actors::{Mesh, Totals};
use portway::transports::moq::codec_message::put_message;
use portway::transports::moq::model::{Draft, Location, ObjectStatus};
use portway::transports::moq::model_codes::{DoneCode, RequestCode};
use portway::transports::moq::model_message::{Message, SubscribeOk};
use portway::transports::moq::model_names::FullTrackName;
use portway::transports::moq::model_params::{Filter, Params};
use portway::transports::moq::state_assembly::{Bounds, Object};
use portway::transports::moq::{
    ClientError, ClientOptions, JoinError, MoqClient, Publication, Publisher, Subgroup, Subscribing, Subscription,
};
use portway::transports::quic::{
    ClientSettings, Connection, Priority, QuicClient, QuicServer, SendStream, ServerSettings,
};
use portway::transports::tls;

use crate::gateway::Running;
use crate::moq::relay;
use crate::probe::{SOON, eventually, mesh, stop, view, wait};
use crate::quic_gateway::{pattern, pem, says};

/// Clients on arbiters of their own.
pub(crate) struct Clients {
    mesh: Mesh,
    quic: QuicClient,
    tls: tls::ClientSettings,
}

impl Clients {
    pub(crate) fn new(arbiters: usize) -> Self {
        let mesh = mesh(arbiters);
        let quic = QuicClient::start(&mesh, ClientSettings::new("clients")).expect("a client");
        Self { mesh, quic, tls: says("moqt") }
    }

    /// On one arbiter, trusting this certificate.
    pub(crate) fn trusting(file: std::path::PathBuf) -> Self {
        let mut clients = Self::new(1);
        clients.tls.roots = tls::Roots::File(file);
        clients
    }

    pub(crate) async fn join(&self, to: std::net::SocketAddr, draft: Draft) -> MoqClient {
        self.join_with(to, ClientOptions { drafts: vec![draft], ..ClientOptions::default() }).await
    }

    pub(crate) async fn join_with(&self, to: std::net::SocketAddr, options: ClientOptions) -> MoqClient {
        soon("a session", MoqClient::connect(&self.quic, to, self.tls.clone(), options)).await.expect("a session")
    }

    fn totals(&self) -> Totals {
        view(&self.mesh).totals
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.quic.stop();
        stop(&self.mesh);
    }
}

pub(crate) fn track(name: &str) -> FullTrackName {
    FullTrackName::of(["test", "it"], name).expect("a track")
}

pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Waits for a publisher, as long as a test does.
pub(crate) fn patient() -> Subscribing {
    Subscribing::from(Params { rendezvous_timeout: Some(SOON), ..Params::default() })
}

pub(crate) async fn group(publisher: &Publisher, number: u64, payloads: &[Bytes]) {
    let mut group = soon("a group", publisher.group(number)).await.expect("a group");
    for payload in payloads {
        soon("a write", group.write(payload.clone())).await.expect("written");
    }
    soon("an end", group.finish()).await.expect("finished");
}

pub(crate) async fn next(subscription: &mut Subscription) -> Object {
    soon("an object", subscription.next()).await.expect("a session").expect("an object")
}

#[test]
fn a_client_publishes_and_another_receives_whole_objects_in_both_drafts() {
    let running = Running::start(&relay(2, ""));
    let to = running.address("moq");
    let clients = Clients::new(2);
    for draft in [Draft::D18, Draft::D20] {
        wait(async {
            let (from, other) = (clients.join(to, draft).await, clients.join(to, Draft::D18).await);
            assert_eq!(from.draft(), draft);
            let name = track(draft.alpn());
            let (publisher, subscription) = tokio::join!(
                soon("a publisher", from.publish(name.clone(), Publication::default())),
                soon("a subscription", other.subscribe(name, patient())),
            );
            let (publisher, mut subscription) = (publisher.expect("accepted"), subscription.expect("accepted"));
            assert_eq!(subscription.largest(), None);
            let large = pattern(3 << 20);
            group(&publisher, 0, &[Bytes::from("hello"), Bytes::new(), large.clone()]).await;
            for (id, payload) in (0..).zip([Bytes::from("hello"), Bytes::new(), large]) {
                let object = next(&mut subscription).await;
                assert_eq!((object.at, object.subgroup), (Location::new(0, id), Some(0)));
                assert!(object.payload == payload, "object {id} of {} bytes", object.payload.len());
            }
            let of = Subgroup { subgroup: 3, priority: Some(7), ..Subgroup::of(1) };
            let mut writer = publisher.subgroup(of).await.expect("a subgroup");
            writer.write_object(5, &Default::default(), Bytes::from("five")).await.expect("written");
            assert!(
                matches!(
                    writer.write_object(5, &Default::default(), Bytes::from("five")).await,
                    Err(ClientError::Unsayable(_))
                ),
                "numbers ascend"
            );
            writer.finish().await.expect("finished");
            let object = next(&mut subscription).await;
            let status = ObjectStatus::Normal;
            assert_eq!(
                (object.at, object.subgroup, object.priority, object.status),
                (Location::new(1, 5), Some(3), Some(7), status)
            );
            publisher.datagram(Location::new(2, 0), "datagram").await.expect("sent");
            let object = next(&mut subscription).await;
            assert_eq!(
                (object.at, object.subgroup, object.payload),
                (Location::new(2, 0), None, Bytes::from("datagram"))
            );
            soon("the end", publisher.finish()).await.expect("finished");
            assert_eq!(soon("the end", subscription.next()).await, Ok(None));
            assert_eq!((subscription.ended(), subscription.lost()), (Some(DoneCode::TrackEnded), 0));
        });
    }
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
    assert_eq!(clients.totals().family("moq_client_sessions_failed"), 0);
}

#[test]
fn what_a_dropped_handle_had_is_given_up_and_the_session_with_the_last() {
    let running = Running::start(&relay(1, "[listener.moq]\nlinger = \"100ms\"\n"));
    let to = running.address("moq");
    let clients = Clients::new(1);
    wait(async {
        let (from, other) = (clients.join(to, Draft::D20).await, clients.join(to, Draft::D20).await);
        let publisher = from.publish(track("dropped"), Publication::default()).await.expect("accepted");
        let mut subscription = other.subscribe(track("dropped"), Subscribing::default()).await.expect("accepted");
        let mut half = publisher.group(0).await.expect("a group");
        half.write("whole").await.expect("written");
        assert_eq!(next(&mut subscription).await.payload, Bytes::from("whole"));
        // A subgroup that is dropped is given up: the subscriber learns that something is missing.
        drop(half);
        group(&publisher, 1, &[Bytes::from("after")]).await;
        assert_eq!(next(&mut subscription).await.payload, Bytes::from("after"));
        // A publisher that is dropped ends the track once nobody else comes.
        drop(publisher);
        assert_eq!(soon("the end", subscription.next()).await, Ok(None));
        assert_eq!(subscription.ended(), Some(DoneCode::TrackEnded));
        assert!(subscription.lost() >= 1);
        let none = from.subscribe(track("dropped"), Subscribing::default()).await;
        assert!(matches!(none, Err(ClientError::Refused(RequestCode::DoesNotExist, _))), "{none:?}");
    });
    let sessions = || view(running.gateway().mesh()).of_kind("quic").count();
    eventually("sessions end with their handles", || sessions() == 0);
    assert_eq!(running.totals().get("moq_sessions_ended", "moq", "closed"), 2);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// One subscription is not read, and holds what it may; the other of the same session goes on as long as what is unread
/// fits into the connection's window, and nothing is lost.
#[test]
fn a_subscription_that_nobody_reads_holds_up_nothing_else() {
    const GROUPS: u64 = 24;
    let running = Running::start(&relay(1, "[listener.moq]\ncache = \"64MiB\"\n"));
    let to = running.address("moq");
    let clients = Clients::new(1);
    wait(async {
        let (from, other) = (clients.join(to, Draft::D20).await, clients.join(to, Draft::D20).await);
        let stalled = from.publish(track("stalled"), Publication::default()).await.expect("accepted");
        let lively = from.publish(track("lively"), Publication::default()).await.expect("accepted");
        let bounds = Bounds { waiting: 256 << 10, object: 1 << 20 };
        let bounded = Subscribing { bounds, ..Subscribing::default() };
        let mut unread = other.subscribe(track("stalled"), bounded).await.expect("accepted");
        let mut read = other.subscribe(track("lively"), Subscribing::default()).await.expect("accepted");
        let payload = pattern(32 << 10);
        for number in 0..GROUPS {
            group(&stalled, number, std::slice::from_ref(&payload)).await;
            group(&lively, number, &[Bytes::from("lively")]).await;
            assert_eq!(next(&mut read).await.at, Location::new(number, 0));
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..GROUPS {
            let object = next(&mut unread).await;
            assert!(object.payload == payload, "object {}", object.at);
            seen.insert(object.at.group);
        }
        assert_eq!((seen.len() as u64, unread.lost()), (GROUPS, 0));
    });
}

#[test]
fn a_session_that_ends_answers_all_who_wait() {
    let clients = Clients::new(1);
    let served = Served::start();
    wait(async {
        let (client, connection, _control) = served.join(&clients).await;
        let subscribing = client.subscribe(track("any"), Subscribing::default());
        let publishing = client.publish(track("any"), Publication::default());
        let closing = async {
            for _ in 0..2 {
                drop(soon("a request", connection.accept()).await.expect("a stream"));
            }
            connection.close(0x10, "enough");
        };
        let (subscribed, published, ()) = tokio::join!(subscribing, publishing, closing);
        for error in [subscribed.expect_err("it ended"), published.expect_err("it ended")] {
            // Whose stream was given up before the close may be told so.
            assert!(matches!(error, ClientError::Ended(_) | ClientError::GivenUp(_)), "{error:?}");
        }
        soon("the end", connection.join()).await;
        let late = soon("an answer", client.subscribe(track("late"), Subscribing::default())).await;
        assert!(matches!(&late, Err(ClientError::Ended(why)) if why.ends_with("enough")), "{late:?}");
    });
}

#[test]
fn a_relay_without_a_common_draft_is_refused_at_once() {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new(1);
    let options = ClientOptions { drafts: vec![Draft::D22], ..ClientOptions::default() };
    let joined = MoqClient::connect(&clients.quic, running.address("moq"), says("moqt"), options);
    let refused = wait(soon("an answer", joined)).expect_err("no common draft");
    assert!(matches!(refused, JoinError::Connect(_)), "{refused}");
}

/// A server whose words are written here.
struct Served {
    servers: Mesh,
    server: QuicServer,
}

impl Served {
    fn start() -> Self {
        Self::speaking(b"moqt-20")
    }

    fn speaking(protocol: &[u8]) -> Self {
        let servers = mesh(1);
        let certificate = tls::Certificate::from_files(&pem("good.pem"), &pem("good-key.pem")).expect("a certificate");
        let mut tls = tls::ServerSettings::new("bad", vec![Arc::new(certificate)]);
        tls.protocols = vec![protocol.to_vec()];
        let settings = ServerSettings::new("bad", "127.0.0.1:0".parse().expect("an address"), Arc::new(tls));
        let server = QuicServer::start(&servers, settings, None).expect("a server");
        Self { servers, server }
    }

    /// A client with a session here.
    async fn join(&self, clients: &Clients) -> (MoqClient, Connection, SendStream) {
        let relay = async {
            let connection = soon("a connection", self.server.accept()).await.expect("one");
            let control = connection.open_uni(Priority::default()).await.expect("a stream");
            control.write(bytes_of(&Message::Setup(Box::default()))).await.expect("written");
            (connection, control)
        };
        let (client, (connection, control)) = tokio::join!(clients.join(self.server.local_addr(), Draft::D20), relay);
        (client, connection, control)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.stop();
        stop(&self.servers);
    }
}

/// What a relay says that is not a gateway.
fn bytes_of(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    put_message(message, Draft::D20, &mut out).expect("it can be said");
    out.freeze()
}

/// A client of a server that is written here: its session ends, counted by the reason, and a neighbour's does not.
fn bad(reason: &'static str, what: impl AsyncFnOnce(&Connection)) {
    let running = Running::start(&relay(1, ""));
    let clients = Clients::new(1);
    let served = Served::start();
    wait(async {
        let near = clients.join(running.address("moq"), Draft::D20).await;
        let publisher = near.publish(track("near"), Publication::default()).await.expect("accepted");
        let mut neighbour = near.subscribe(track("near"), Subscribing::default()).await.expect("accepted");
        let (client, connection, control) = served.join(&clients).await;
        let subscribing = client.subscribe(track("any"), Subscribing::default());
        let (answer, ()) = tokio::join!(subscribing, what(&connection));
        let ended = match answer {
            Ok(mut subscription) => soon("the end", subscription.next()).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(&ended, Err(ClientError::Ended(why)) if why.ends_with(reason)), "{ended:?}");
        group(&publisher, 0, &[Bytes::from("near")]).await;
        assert_eq!(next(&mut neighbour).await.payload, Bytes::from("near"));
        drop(control);
    });
    let totals = clients.totals();
    let failed = totals.get("moq_client_sessions_failed", "moq-client", reason);
    assert_eq!((failed, totals.family("moq_client_sessions_failed")), (1, 1), "{reason}");
}

/// Takes the subscription, and answers it with this alias.
async fn accept(connection: &Connection, alias: u64) -> impl Sized {
    let (send, receive) = soon("a request", connection.accept()).await.expect("a stream");
    let ok = SubscribeOk { track_alias: alias, ..SubscribeOk::default() };
    send.write(bytes_of(&Message::SubscribeOk(Box::new(ok)))).await.expect("written");
    (send, receive)
}

async fn send(connection: &Connection, bytes: &'static [u8]) {
    let stream = connection.open_uni(Priority::default()).await.expect("a stream");
    stream.write(Bytes::from_static(bytes)).await.expect("written");
    stream.finish().await.expect("finished");
}

#[test]
fn a_relay_that_breaks_a_rule_costs_its_session_alone() {
    bad("unknown_stream", async |connection| send(connection, &[0x06, 0, 0]).await);
    bad("second_control_stream", async |connection| {
        let stream = connection.open_uni(Priority::default()).await.expect("a stream");
        stream.write(bytes_of(&Message::Setup(Box::default()))).await.expect("written");
        soon("the end", connection.join()).await;
    });
    bad("cut_off", async |connection| {
        let request = accept(connection, 4).await;
        send(connection, &[0x30, 4, 0, 0, 9, b'x']).await;
        soon("the end", connection.join()).await;
        drop(request);
    });
    bad("unknown_status", async |connection| {
        let request = accept(connection, 4).await;
        send(connection, &[0x30, 4, 0, 0, 0, 9]).await;
        soon("the end", connection.join()).await;
        drop(request);
    });
    bad("not_a_request", async |connection| {
        let (stream, _answers) = connection.open(Priority::default()).await.expect("a stream");
        let done = portway::transports::moq::model_message::PublishDone {
            code: DoneCode::TrackEnded,
            streams: None,
            reason: String::new(),
        };
        stream.write(bytes_of(&Message::PublishDone(done))).await.expect("written");
        soon("the end", connection.join()).await;
    });
}

/// A late subscriber has the past from the cache, if it asks for it.
#[test]
fn a_late_subscriber_begins_with_what_is_cached() {
    let running = Running::start(&relay(1, ""));
    let to = running.address("moq");
    let clients = Clients::new(1);
    wait(async {
        let client = clients.join(to, Draft::D20).await;
        let publisher = client.publish(track("catalog"), Publication::default()).await.expect("accepted");
        group(&publisher, 0, &[Bytes::from("catalog")]).await;
        let other = clients.join(to, Draft::D18).await;
        // The relay has it once it says so.
        let mut late = loop {
            let late = other.subscribe(track("catalog"), Subscribing::default()).await.expect("accepted");
            if late.largest() == Some(Location::new(0, 0)) {
                break late;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(next(&mut late).await.payload, Bytes::from("catalog"));
        let new = Subscribing::from(Params { filter: Some(Filter::NextObject), ..Params::default() });
        let third = clients.join(to, Draft::D20).await;
        let mut new = third.subscribe(track("catalog"), new).await.expect("accepted");
        group(&publisher, 1, &[Bytes::from("new")]).await;
        assert_eq!(next(&mut new).await.at, Location::new(1, 0));
    });
}

/// A relay that is reached over QUIC and, at a path of its own, over WebTransport.
#[cfg(feature = "http")]
fn reached_by_both() -> Running {
    let web = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
               [[listener.route]]\npath = \"/live\"\nwebtransport = true\nservice = \"moq\"\n\
               [[listener]]\nname = \"plain\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
               [[listener.route]]\npath = \"/\"\nservice = \"demo\"\n";
    Running::start(&relay(2, web))
}

#[cfg(feature = "http")]
fn over_webtransport(to: std::net::SocketAddr, drafts: Vec<Draft>) -> ClientOptions {
    let options = ClientOptions::of_url(&format!("https://localhost:{}/live", to.port())).expect("a URL");
    ClientOptions { drafts, setup: SOON, ..options }
}

#[cfg(feature = "http")]
#[test]
fn a_client_publishes_and_subscribes_over_webtransport_in_both_drafts() {
    let running = reached_by_both();
    let (web, quic) = (running.address("web"), running.address("moq"));
    let clients = Clients::new(2);
    for (draft, other) in [(Draft::D18, Draft::D20), (Draft::D20, Draft::D18)] {
        wait(async {
            let from = clients.join_with(web, over_webtransport(web, vec![draft])).await;
            let near = clients.join_with(web, over_webtransport(web, vec![other])).await;
            let far = clients.join(quic, draft).await;
            assert_eq!((from.draft(), near.draft()), (draft, other));
            let name = track(&format!("web-{draft}"));
            let publisher = from.publish(name.clone(), Publication::default()).await.expect("accepted");
            let mut subscriptions = Vec::new();
            for client in [&near, &far] {
                subscriptions.push(client.subscribe(name.clone(), patient()).await.expect("accepted"));
            }
            let large = pattern(3 << 20);
            let payloads = [Bytes::from("hello"), Bytes::new(), large];
            group(&publisher, 0, &payloads).await;
            for subscription in &mut subscriptions {
                for (id, payload) in (0..).zip(&payloads) {
                    let object = next(subscription).await;
                    assert_eq!((object.at, object.subgroup), (Location::new(0, id), Some(0)));
                    assert!(object.payload == payload, "object {id} of {} bytes", object.payload.len());
                }
            }
            publisher.datagram(Location::new(1, 0), "datagram").await.expect("sent");
            for subscription in &mut subscriptions {
                let object = next(subscription).await;
                assert_eq!((object.subgroup, object.payload), (None, Bytes::from("datagram")));
            }
            // What is given up is given up there as well.
            let mut half = publisher.group(2).await.expect("a group");
            half.write("half").await.expect("written");
            for subscription in &mut subscriptions {
                assert_eq!(next(subscription).await.payload, Bytes::from("half"));
            }
            drop(half);
            soon("the end", publisher.finish()).await.expect("finished");
            for subscription in &mut subscriptions {
                assert_eq!(soon("the end", subscription.next()).await, Ok(None));
                assert_eq!((subscription.ended(), subscription.lost()), (Some(DoneCode::TrackEnded), 1));
            }
            // And by a client of WebTransport from one of QUIC.
            let back = far.publish(track(&format!("back-{draft}")), Publication::default()).await.expect("accepted");
            let name = track(&format!("back-{draft}"));
            let mut subscription = near.subscribe(name, Subscribing::default()).await.expect("accepted");
            group(&back, 0, &[Bytes::from("back")]).await;
            assert_eq!(next(&mut subscription).await.payload, Bytes::from("back"));
        });
    }
    let sessions = |mesh: &Mesh| view(mesh).of_kind("quic").count();
    eventually("sessions end with their handles", || sessions(running.gateway().mesh()) == 0);
    eventually("and so do their connections here", || sessions(&clients.mesh) == 0);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
    assert_eq!(running.totals().family("http3_errors"), 0);
    assert_eq!(clients.totals().family("moq_client_sessions_failed"), 0);
    assert_eq!(clients.totals().family("webtransport_client_failed"), 0);
    assert_eq!(clients.totals().family("moq_client_sessions"), 6);
}

/// Why there is none is told, counted, and costs the session beside it nothing.
#[cfg(feature = "http")]
#[test]
fn a_session_of_webtransport_that_is_refused_says_why() {
    let running = reached_by_both();
    let (web, plain) = (running.address("web"), running.address("plain"));
    let at = |path: &str| ClientOptions { path: Some(path.to_owned()), ..over_webtransport(web, Draft::ALL.to_vec()) };
    for (reason, words, to, options) in [
        ("status", "status 404", web, at("/none")),
        ("protocol", "none of the protocols", web, over_webtransport(web, vec![Draft::D22])),
        ("no_webtransport", "no WebTransport", plain, over_webtransport(plain, Draft::ALL.to_vec())),
    ] {
        let clients = Clients::new(1);
        wait(async {
            let near = clients.join_with(web, over_webtransport(web, Draft::ALL.to_vec())).await;
            let publisher = near.publish(track(reason), Publication::default()).await.expect("accepted");
            let mut neighbour = near.subscribe(track(reason), Subscribing::default()).await.expect("accepted");
            let joined = MoqClient::connect(&clients.quic, to, clients.tls.clone(), options);
            let Err(JoinError::Session(ClientError::Ended(why))) = soon("an answer", joined).await else {
                panic!("{reason}: a session");
            };
            assert!(why.contains(words), "{reason}: {why}");
            group(&publisher, 0, &[Bytes::from("near")]).await;
            assert_eq!(next(&mut neighbour).await.payload, Bytes::from("near"));
        });
        let totals = clients.totals();
        let failed = totals.get("webtransport_client_failed", "moq-client", reason);
        assert_eq!((failed, totals.family("webtransport_client_failed")), (1, 1), "{reason}");
    }
    // At the relay it is a session without a draft that it speaks, closed as such at once.
    let closed = || running.totals().get("moq_sessions_failed", "web", "no_common_draft");
    eventually("it is counted there as well", || closed() == 1);
    assert_eq!(running.totals().family("moq_sessions_failed"), 1);
}

/// A server of HTTP/3 that breaks a rule, or says nothing, costs the session that was wanted there, with its code.
#[cfg(feature = "http")]
#[test]
fn a_server_of_http3_that_breaks_a_rule_costs_its_session_alone() {
    use portway::transports::http3::codec::{Settings, put_varint, stream as kind};

    let running = reached_by_both();
    let web = running.address("web");
    let settings = |sessions| {
        let mut out = BytesMut::new();
        put_varint(&mut out, kind::CONTROL);
        Settings { connect: true, datagrams: true, sessions, ..Settings::default() }.encode(&mut out);
        out.freeze()
    };
    // What it writes on its first stream, whether that ends, whether the stream goes both ways, and what is counted.
    for (first, ends, both_ways, reason) in [
        (Bytes::new(), false, false, "timeout"),
        (settings(1), true, false, "closed_critical_stream"),
        (Bytes::from_static(&[0, 7, 1, 0]), false, false, "missing_settings"),
        (Bytes::from_static(&[1, 0]), false, false, "stream_creation_error"),
        (Bytes::from_static(b"\x01\x00\x00\x00"), false, true, "stream_creation_error"),
    ] {
        let clients = Clients::new(1);
        let served = Served::speaking(b"h3");
        wait(async {
            let near = clients.join_with(web, over_webtransport(web, Draft::ALL.to_vec())).await;
            let publisher = near.publish(track(reason), Publication::default()).await.expect("accepted");
            let mut neighbour = near.subscribe(track(reason), Subscribing::default()).await.expect("accepted");
            let to = served.server.local_addr();
            let patience = if reason == "timeout" { Duration::from_millis(200) } else { SOON };
            let options = ClientOptions { setup: patience, ..over_webtransport(to, Draft::ALL.to_vec()) };
            let joining = MoqClient::connect(&clients.quic, to, clients.tls.clone(), options);
            let serving = async {
                let connection = soon("a connection", served.server.accept()).await.expect("one");
                let stream = if both_ways {
                    let (send, receive) = connection.open(Priority::default()).await.expect("a stream");
                    (send, Some(receive))
                } else {
                    (connection.open_uni(Priority::default()).await.expect("a stream"), None)
                };
                if !first.is_empty() {
                    stream.0.write(first).await.expect("written");
                }
                if ends {
                    stream.0.finish().await.expect("finished");
                }
                soon("the end", connection.join()).await;
                drop(stream);
            };
            let (joined, ()) = tokio::join!(soon("an answer", joining), serving);
            assert!(matches!(joined, Err(JoinError::Session(ClientError::Ended(_)))), "{reason}");
            group(&publisher, 0, &[Bytes::from("near")]).await;
            assert_eq!(next(&mut neighbour).await.payload, Bytes::from("near"));
        });
        let totals = clients.totals();
        let failed = totals.get("webtransport_client_failed", "moq-client", reason);
        assert_eq!((failed, totals.family("webtransport_client_failed")), (1, 1), "{reason}");
    }
}
