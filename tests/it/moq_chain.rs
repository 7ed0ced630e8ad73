//! Two gateways as a chain: an edge relay that subscribes at an origin relay, which it loses and finds again.

use std::net::SocketAddr;

use bytes::Bytes;
use portway::transports::moq::model::{Draft, Location};
use portway::transports::moq::model_codes::RequestCode;
use portway::transports::moq::{ClientError, ClientOptions, Publication, Subscribing};

use crate::gateway::Running;
use crate::moq::relay;
use crate::moq_client::{Clients, group, next, patient, soon, track};
use crate::probe::{eventually, wait};
use crate::quic_gateway::certificate;

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
