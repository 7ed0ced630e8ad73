//! Two gateways as a chain: an edge relay that subscribes at an origin relay, which it loses and finds again.

use std::net::SocketAddr;

use bytes::Bytes;
use portway::transports::moq::model::{Draft, Location};
use portway::transports::moq::model_codes::RequestCode;
use portway::transports::moq::model_message::{Message, PublishNamespace, SubscribeNamespace, SubscribeTracks};
use portway::transports::moq::model_names::Namespace;
use portway::transports::moq::model_params::Params;
use portway::transports::moq::{ClientError, ClientOptions, Publication, Subscribing};

use crate::gateway::{Running, free};
use crate::moq::{Peer, Request, bytes_of, code_of, relay};
use crate::moq_bad::{Near, asked};
use crate::moq_client::{Clients, group, next, patient, soon, track};
use crate::probe::{eventually, wait};
use crate::quic_gateway::{Clients as Quic, certificate};

/// An edge of this origin; `scope` and `rest` follow its upstream.
pub(crate) fn edge(origin: SocketAddr, scope: &str, rest: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = 2\ndrain = \"5s\"\n{}\n[[upstream]]\nname = \"origin\"\n\
         servers = [\"quic://localhost:{}\"]\n[upstream.tls]\ntrust = \"local\"\nalpn = \"moqt-20\"\n[[listener]]\n\
         name = \"moq\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"moq\"\ncertificate = \"local\"\n[listener.moq]\n\
         linger = \"20s\"\n[[listener.moq.scope]]\nupstream = \"origin\"\n{scope}\n{rest}",
        certificate(),
        origin.port(),
    )
}

/// Whether the edge has its session with the origin.
pub(crate) fn is_joined(edge: &Running) -> bool {
    edge.totals().get("moq_sessions", "origin", "moqt-20") > 0
}

fn subscribed_at(origin: &Running) -> u64 {
    origin.totals().get("moq_requests", "moq", "SUBSCRIBE")
}

#[test]
fn many_subscribers_at_an_edge_are_one_at_the_origin() {
    let origin = Running::start(&relay(2, ""));
    let edge = Running::start(&edge(origin.address("moq"), "", ""));
    eventually("the edge has joined", || is_joined(&edge));
    let clients = Clients::new(2);
    wait(async {
        let from = clients.join(origin.address("moq"), Draft::D18).await;
        let publisher = from.publish(track("chain"), Publication::default()).await.expect("accepted");
        let mut subscriptions = Vec::new();
        for number in 0..12 {
            let draft = if number % 2 == 0 { Draft::D18 } else { Draft::D20 };
            let client = clients.join(edge.address("moq"), draft).await;
            let accepted = soon("an answer", client.subscribe(track("chain"), patient())).await;
            subscriptions.push(accepted.expect("accepted"));
        }
        for number in 0..10 {
            group(&publisher, number, &[Bytes::from("one"), Bytes::from("two")]).await;
            for subscription in &mut subscriptions {
                for (id, payload) in [(0, "one"), (1, "two")] {
                    let object = next(subscription).await;
                    assert_eq!((object.at, object.payload), (Location::new(number, id), Bytes::from(payload)));
                }
            }
        }
        soon("the end", publisher.finish()).await.expect("finished");
        for subscription in &mut subscriptions {
            assert_eq!(soon("the end", subscription.next()).await, Ok(None));
            assert_eq!(subscription.lost(), 0);
        }
    });
    assert_eq!(subscribed_at(&origin), 1, "one upstream subscription");
    assert_eq!(origin.totals().get("moq_objects_in", "moq", ""), 20);
    for gateway in [&origin, &edge] {
        assert_eq!(gateway.totals().family("moq_sessions_failed"), 0);
    }
}

/// What nobody publishes at either is refused, or waited for as long as the subscriber likes; what is published at the
/// edge does not go to the origin.
#[test]
fn an_edge_waits_and_refuses_as_its_origin_does() {
    let origin = Running::start(&relay(1, ""));
    let edge = Running::start(&edge(origin.address("moq"), "", ""));
    eventually("the edge has joined", || is_joined(&edge));
    let clients = Clients::new(1);
    wait(async {
        let near = clients.join(edge.address("moq"), Draft::D20).await;
        let none = soon("an answer", near.subscribe(track("none"), Subscribing::default())).await;
        assert!(matches!(none, Err(ClientError::Refused(RequestCode::DoesNotExist, _))), "{none:?}");
        let from = clients.join(origin.address("moq"), Draft::D20).await;
        let waiting = near.subscribe(track("later"), patient());
        let publishing = async {
            // The subscription is held at the origin when it has seen two of the edge's.
            while origin.gateway().mesh().view().await.totals.get("moq_requests", "moq", "SUBSCRIBE") < 2 {
                tokio::task::yield_now().await;
            }
            from.publish(track("later"), Publication::default()).await.expect("accepted")
        };
        let (subscription, publisher) = tokio::join!(soon("an answer", waiting), publishing);
        let mut subscription = subscription.expect("accepted");
        group(&publisher, 0, &[Bytes::from("came")]).await;
        assert_eq!(next(&mut subscription).await.payload, Bytes::from("came"));
        let local = near.publish(track("local"), Publication::default()).await.expect("accepted");
        let other = clients.join(edge.address("moq"), Draft::D18).await;
        let mut here = other.subscribe(track("local"), Subscribing::default()).await.expect("accepted");
        group(&local, 0, &[Bytes::from("here")]).await;
        assert_eq!(next(&mut here).await.payload, Bytes::from("here"));
        let there = soon("an answer", from.subscribe(track("local"), Subscribing::default())).await;
        assert!(matches!(there, Err(ClientError::Refused(RequestCode::DoesNotExist, _))), "{there:?}");
    });
}

#[test]
fn subscribers_at_an_edge_outlive_their_origin() {
    let first = Running::start(&relay(1, ""));
    let at = first.address("moq");
    let edge = Running::start(&edge(at, "", ""));
    eventually("the edge has joined", || is_joined(&edge));
    let clients = Clients::new(1);
    let (mut subscription, near) = wait(async {
        let from = clients.join(at, Draft::D20).await;
        let publisher = from.publish(track("outlive"), Publication::default()).await.expect("accepted");
        let near = clients.join(edge.address("moq"), Draft::D20).await;
        let mut subscription = near.subscribe(track("outlive"), patient()).await.expect("accepted");
        group(&publisher, 0, &[Bytes::from("before")]).await;
        assert_eq!(next(&mut subscription).await.payload, Bytes::from("before"));
        (subscription, near)
    });
    let lost = edge.totals().family("moq_origin_lost");
    drop(first);
    eventually("the origin is lost", || edge.totals().family("moq_origin_lost") > lost);
    let text = relay(1, "").replace("127.0.0.1:0", &at.to_string());
    let again = Running::start(&text);
    eventually("the edge has joined again", || edge.totals().get("moq_sessions", "origin", "moqt-20") >= 2);
    wait(async {
        let from = clients.join(at, Draft::D18).await;
        let publisher = from.publish(track("outlive"), Publication::default()).await.expect("accepted");
        eventually_async("the edge asks again", || async {
            again.gateway().mesh().view().await.totals.get("moq_requests", "moq", "SUBSCRIBE") >= 1
        })
        .await;
        group(&publisher, 1, &[Bytes::from("after")]).await;
        let object = next(&mut subscription).await;
        assert_eq!((object.at, object.payload), (Location::new(1, 0), Bytes::from("after")));
        drop(near);
    });
    drop(again);
}

async fn eventually_async<F: Future<Output = bool>>(what: &str, is: impl Fn() -> F) {
    soon(what, async {
        while !is().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A request that is granted, and what is said on it.
async fn granted(peer: &mut Peer, make: impl FnOnce(u64) -> Message) -> Request {
    let mut request = peer.ask(make).await;
    assert!(matches!(request.words.next().await, Some(Message::RequestOk(_))));
    request
}

fn below(fields: &[&str]) -> Namespace {
    Namespace::new(fields).expect("a namespace")
}

async fn announce(peer: &mut Peer, fields: &[&str]) -> Request {
    let namespace = below(fields);
    granted(peer, |request_id| {
        Message::PublishNamespace(Box::new(PublishNamespace { request_id, namespace, params: Params::default() }))
    })
    .await
}

async fn watch_namespaces(peer: &mut Peer, fields: &[&str]) -> Request {
    let prefix = below(fields);
    granted(peer, |request_id| {
        Message::SubscribeNamespace(Box::new(SubscribeNamespace { request_id, prefix, params: Params::default() }))
    })
    .await
}

/// The next namespace that is told, and whether it is there.
async fn told(watch: &mut Request) -> (Namespace, bool) {
    match watch.words.next().await {
        Some(Message::Namespace(of)) => (of.suffix, true),
        Some(Message::NamespaceDone(of)) => (of.suffix, false),
        other => panic!("{other:?}"),
    }
}

/// What the origin has is listed at the edge beside what the edge has, through a chain of three.
#[test]
fn namespaces_of_an_origin_are_listed_at_its_edges() {
    let first = Running::start(&relay(1, ""));
    let at = first.address("moq");
    let middle = Running::start(&edge(at, "", ""));
    let edge = Running::start(&edge(middle.address("moq"), "", ""));
    eventually("the edges have joined", || is_joined(&edge) && is_joined(&middle));
    let clients = Quic::new();
    let (mut watch, mut other, mut watcher) = wait(async {
        let mut publisher = Peer::connect(&clients, at, Draft::D18).await;
        let before = announce(&mut publisher, &["live", "before"]).await;
        let mut watcher = Peer::connect(&clients, edge.address("moq"), Draft::D20).await;
        let mut watch = watch_namespaces(&mut watcher, &["live"]).await;
        assert_eq!(told(&mut watch).await, (below(&["before"]), true));
        // Below another prefix nobody hears of it.
        let mut other = watch_namespaces(&mut watcher, &["other"]).await;
        let after = announce(&mut publisher, &["live", "after"]).await;
        assert_eq!(told(&mut watch).await, (below(&["after"]), true));
        let mut local = Peer::connect(&clients, edge.address("moq"), Draft::D18).await;
        let here = announce(&mut local, &["live", "here"]).await;
        assert_eq!(told(&mut watch).await, (below(&["here"]), true));
        before.send.reset(1).await.expect("reset");
        before.words.stream.stop(1).await.expect("stopped");
        assert_eq!(told(&mut watch).await, (below(&["before"]), false));
        let elsewhere = announce(&mut publisher, &["other", "one"]).await;
        assert_eq!(told(&mut other).await, (below(&["one"]), true));
        watcher.kept.push(here);
        // Its origin has all of it; nothing comes back from there.
        publisher.connection.close(0, "");
        drop((after, elsewhere));
        assert_eq!(told(&mut watch).await, (below(&["after"]), false));
        assert_eq!(told(&mut other).await, (below(&["one"]), false));
        local.connection.close(0, "");
        assert_eq!(told(&mut watch).await, (below(&["here"]), false));
        let mut again = Peer::connect(&clients, at, Draft::D18).await;
        let lost = announce(&mut again, &["live", "lost"]).await;
        assert_eq!(told(&mut watch).await, (below(&["lost"]), true));
        drop(lost);
        (watch, other, watcher)
    });
    drop(first);
    wait(async { assert_eq!(told(&mut watch).await, (below(&["lost"]), false)) });
    let again = Running::start(&relay(1, "").replace("127.0.0.1:0", &at.to_string()));
    eventually("the edge has joined again", || middle.totals().get("moq_sessions", "origin", "moqt-20") >= 2);
    let _open = wait(async {
        let mut publisher = Peer::connect(&clients, at, Draft::D20).await;
        let back = announce(&mut publisher, &["live", "back"]).await;
        assert_eq!(told(&mut watch).await, (below(&["back"]), true));
        let here = announce(&mut watcher, &["other", "here"]).await;
        assert_eq!(told(&mut other).await, (below(&["here"]), true));
        (publisher, back, here)
    });
    for gateway in [&again, &middle, &edge] {
        assert_eq!(gateway.totals().family("moq_sessions_failed"), 0);
        assert_eq!(gateway.totals().family("moq_origin_refused"), 0);
    }
}

/// SUBSCRIBE_TRACKS at an edge: what is published at the origin is offered, and its objects come once they are wanted.
#[test]
fn tracks_of_an_origin_are_offered_at_its_edge() {
    let origin = Running::start(&relay(1, ""));
    let edge = Running::start(&edge(origin.address("moq"), "", ""));
    eventually("the edge has joined", || is_joined(&edge));
    let clients = Quic::new();
    let _open = wait(async {
        let mut publisher = Peer::connect(&clients, origin.address("moq"), Draft::D18).await;
        let before = publisher.publish("before", 1).await;
        let mut watcher = Peer::connect(&clients, edge.address("moq"), Draft::D20).await;
        let prefix = below(&["test"]);
        let watch = granted(&mut watcher, |request_id| {
            Message::SubscribeTracks(Box::new(SubscribeTracks { request_id, prefix, params: Params::default() }))
        })
        .await;
        let mut offers = Vec::new();
        for name in ["before", "after"] {
            if name == "after" {
                watcher.kept.push(publisher.publish("after", 2).await);
            }
            let (offer, message) = asked(&watcher).await;
            let Message::Publish(offered) = message else { panic!("{message:?}") };
            assert_eq!(offered.track, crate::moq::track(name));
            offer.send.write(bytes_of(&Message::RequestOk(Box::default()), Draft::D20)).await.expect("written");
            offers.push(offer);
            publisher.send_subgroup(offers.len() as u64, 7, &[name.as_bytes()]).await;
            assert_eq!(watcher.receive().await.objects, [(0, Bytes::from(name))]);
        }
        // What the edge subscribes to anyway is not brought a second time.
        let mut subscriber = Peer::connect(&clients, edge.address("moq"), Draft::D18).await;
        let (subscription, _) = subscriber.subscribe("before").await;
        publisher.send_subgroup(1, 8, &[b"both"]).await;
        assert_eq!(watcher.receive().await.group, 8);
        let mut got = subscriber.receive().await;
        while got.group < 8 {
            got = subscriber.receive().await;
        }
        assert_eq!(got.objects, [(0, Bytes::from("both"))]);
        (publisher, before, watcher, watch, offers, subscriber, subscription)
    });
    for gateway in [&origin, &edge] {
        assert_eq!(gateway.totals().family("moq_sessions_failed"), 0);
        assert_eq!(gateway.totals().family("moq_origin_refused"), 0);
        assert_eq!(gateway.totals().family("moq_duplicates"), 0);
    }
}

/// An origin that lets its edge have only a part lists nothing to it; all else goes on.
#[test]
fn an_origin_that_lists_nothing_costs_its_edge_nothing_else() {
    let scope = "[[listener.moq.token]]\ntoken = \"edge\"\nsubscribe = \"test\"\npublish = \"test\"\n";
    let origin = Running::start(&relay(1, scope));
    let edge = Running::start(&edge(origin.address("moq"), "upstream_token = \"edge\"", ""));
    eventually("the edge has joined", || is_joined(&edge));
    let clients = Quic::new();
    let _open = wait(async {
        let mut near = Near::of(&clients, &edge).await;
        let mut watcher = Peer::connect(&clients, edge.address("moq"), Draft::D20).await;
        let mut watch = watch_namespaces(&mut watcher, &["test"]).await;
        let mut local = Peer::connect(&clients, edge.address("moq"), Draft::D18).await;
        let here = announce(&mut local, &["test", "here"]).await;
        assert_eq!(told(&mut watch).await, (below(&["here"]), true));
        near.lost_nothing().await;
        (near, watcher, watch, local, here)
    });
    eventually("it is counted", || edge.totals().get("moq_origin_refused", "origin", "unauthorized") == 1);
    assert_eq!(edge.totals().family("moq_origin_refused"), 1);
    assert_eq!(edge.totals().family("moq_sessions_failed"), 0);
}

/// The scope at the origin has a path, and wants a token.
#[test]
fn an_edge_shows_its_token_and_names_its_scope() {
    let scope = "[[listener.moq.scope]]\npath = \"/live\"\n[[listener.moq.token]]\ntoken = \"edge\"\nsubscribe = \"test\"\n\
                 [[listener.moq.token]]\ntoken = \"studio\"\npublish = \"test\"\n";
    let origin = Running::start(&relay(1, scope));
    let to = origin.address("moq");
    let edge = Running::start(&edge(to, "upstream_path = \"/live\"\nupstream_token = \"edge\"", ""));
    eventually("the edge has joined", || is_joined(&edge));
    let clients = Clients::new(1);
    wait(async {
        let token = portway::transports::moq::model_params::Token::UseValue { kind: 0, value: Bytes::from("studio") };
        let options = ClientOptions { path: Some("/live".to_owned()), tokens: vec![token], ..ClientOptions::default() };
        let from = clients.join_with(to, options).await;
        let publisher = from.publish(track("token"), Publication::default()).await.expect("accepted");
        let near = clients.join(edge.address("moq"), Draft::D20).await;
        let mut subscription = near.subscribe(track("token"), patient()).await.expect("accepted");
        group(&publisher, 0, &[Bytes::from("granted")]).await;
        assert_eq!(next(&mut subscription).await.payload, Bytes::from("granted"));
    });
    assert_eq!(origin.totals().family("moq_requests_refused"), 0);
}

/// Each is the other's origin: what one has from the other it does not tell it back, so that what ends at its publisher
/// ends everywhere, and what nobody has is refused instead of being asked for in a ring.
#[test]
fn two_relays_that_are_each_others_origin_keep_nothing_alive() {
    let ports = [free(), free()];
    let text = |here: usize| {
        // The second scope makes one of them learn late which relay its peer has reached.
        let more = if here == 0 { "" } else { "[[listener.moq.scope]]\npath = \"/other\"\n" };
        let scopes = "[[listener.moq.scope]]\nupstream = \"origin\"";
        let text = edge(ports[1 - here], "", "").replace(scopes, &format!("{more}{scopes}"));
        text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{}\"", ports[here]))
    };
    let both = [Running::start(&text(0)), Running::start(&text(1))];
    eventually("both have joined", || both.iter().all(is_joined));
    let clients = Quic::new();
    let _open = wait(async {
        let mut near = Near::of(&clients, &both[1]).await;
        let mut watchers = Vec::new();
        for to in ports {
            let mut watcher = Peer::connect(&clients, to, Draft::D20).await;
            let watch = watch_namespaces(&mut watcher, &["live"]).await;
            watchers.push((watcher, watch));
        }
        for at in [0, 1, 0, 1] {
            let mut publisher = Peer::connect(&clients, ports[at], Draft::D18).await;
            let name = format!("at-{at}");
            let _here = announce(&mut publisher, &["live", &name]).await;
            for (_, watch) in &mut watchers {
                assert_eq!(told(watch).await, (below(&[&name]), true));
            }
            publisher.connection.close(0, "");
            for (_, watch) in &mut watchers {
                assert_eq!(told(watch).await, (below(&[&name]), false), "it is gone everywhere");
            }
        }
        // Both at once, so that each asks the other for what it was asked for by it.
        for round in 0..20 {
            let name = format!("none-{round}");
            let [(one, _), (other, _)] = &mut watchers[..] else { panic!("two") };
            let mut one = one.subscribe_with(&name, Params::default()).await;
            let mut other = other.subscribe_with(&name, Params::default()).await;
            for request in [&mut one, &mut other] {
                assert_eq!(code_of(request.words.next().await), RequestCode::DoesNotExist, "{name}");
            }
        }
        near.lost_nothing().await;
        // A track of one is had at the other, once, and offered there.
        let mut publisher = Peer::connect(&clients, ports[0], Draft::D18).await;
        let publish = publisher.publish("once", 3).await;
        let (watcher, _) = &mut watchers[1];
        let (subscription, _) = watcher.subscribe("once").await;
        for group in 0..3 {
            publisher.send_subgroup(3, group, &[b"one", b"two"]).await;
            let got = watcher.receive().await;
            assert_eq!((got.group, got.whole, got.objects.len()), (group, true, 2));
        }
        near.lost_nothing().await;
        (watchers, near, publisher, publish, subscription)
    });
    for gateway in &both {
        assert_eq!(gateway.totals().family("moq_sessions_failed"), 0);
        assert_eq!(gateway.totals().family("moq_duplicates"), 0);
        assert_eq!(gateway.totals().family("moq_origin_refused"), 0);
    }
}
