//! FETCH through a chain of two gateways: what the edge has comes from its cache, what it has not comes from the origin,
//! and an origin that is lost in the midst costs that fetch alone.

use bytes::{Bytes, BytesMut};
use portway::transports::moq::codec_fetch::{FetchDecoder, FetchItem};
use portway::transports::moq::codec_stream::{StreamDecoder, StreamStart};
use portway::transports::moq::codec_subgroup::Piece;
use portway::transports::moq::model::{Draft, GroupOrder, Location};
use portway::transports::moq::model_codes::{RequestCode, ResetCode};
use portway::transports::moq::model_message::{Fetch, FetchWhat, Message, SubscribeOk};
use portway::transports::moq::model_params::{Fill, Filter, Params};
use portway::transports::quic::{RecvStream, StreamError};

use crate::gateway::Running;
use crate::moq::{Flow, Peer, Request, bytes_of, code_of, relay, soon, track};
use crate::moq_bad::{Near, announced, asked};
use crate::moq_chain::{edge, is_joined};
use crate::probe::{SOON, eventually, wait};
use crate::quic_gateway::Clients;

/// An origin and its edge, joined.
struct Chain {
    origin: Running,
    edge: Running,
}

impl Chain {
    fn start(rest: &str) -> Self {
        let origin = Running::start(&relay(2, rest));
        let edge = Running::start(&edge(origin.address("moq"), "", ""));
        eventually("the edge has joined", || is_joined(&edge));
        Self { origin, edge }
    }

    /// Fetches served from a cache and from a publisher, at the edge and at the origin.
    async fn served(&self) -> [[u64; 2]; 2] {
        let mut served = [[0; 2]; 2];
        for (gateway, served) in [&self.edge, &self.origin].into_iter().zip(&mut served) {
            let totals = gateway.gateway().mesh().view().await.totals;
            *served = ["cache", "publisher"].map(|from| totals.get("moq_fetches", "moq", from));
        }
        served
    }

    fn nothing_failed(&self) {
        for gateway in [&self.edge, &self.origin] {
            assert_eq!(gateway.totals().family("moq_sessions_failed"), 0);
        }
    }
}

/// What came of a fetch: its objects, and whether all of it came.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    objects: Vec<(Location, String)>,
    ended: Result<(), u64>,
}

/// The objects of two each in these groups.
fn pairs(groups: std::ops::RangeInclusive<u64>) -> Vec<(Location, String)> {
    let of = |group| [0, 1].map(|object| (Location::new(group, object), format!("{group}.{object}")));
    groups.flat_map(of).collect()
}

async fn publish_pairs(publisher: &Peer, alias: u64, groups: std::ops::RangeInclusive<u64>) {
    for group in groups {
        let payloads = [format!("{group}.0"), format!("{group}.1")];
        publisher.send_subgroup(alias, group, &payloads.each_ref().map(String::as_bytes)).await;
    }
}

async fn standalone(peer: &mut Peer, name: &str, start: Location, end: Location) -> Request {
    let what = FetchWhat::Standalone { track: track(name), range: Filter::Range { start, end } };
    fetch(peer, what).await
}

async fn fetch(peer: &mut Peer, what: FetchWhat) -> Request {
    peer.ask(|request_id| Message::Fetch(Box::new(Fetch { request_id, what, params: Params::default() }))).await
}

/// A subscription of what comes next.
async fn from_now_on(peer: &mut Peer, name: &str) -> Request {
    let params = Params { filter: Some(Filter::NextObject), rendezvous_timeout: Some(SOON), ..Params::default() };
    let mut request = peer.subscribe_with(name, params).await;
    assert!(matches!(request.words.next().await, Some(Message::SubscribeOk(_))));
    request
}

/// Reads a stream of a fetch to its end.
async fn objects(stream: &RecvStream, draft: Draft) -> Got {
    let (mut starts, mut decoder) = (StreamDecoder::new(draft), None);
    let mut rest = Bytes::new();
    let mut objects: Vec<(Location, BytesMut)> = Vec::new();
    let ended = loop {
        match &mut decoder {
            None => {
                if let Some(start) = starts.decode(&mut rest).expect("a head") {
                    assert!(matches!(start, StreamStart::Fetch { .. }), "{start:?}");
                    decoder = Some(FetchDecoder::new(GroupOrder::Ascending, draft));
                    continue;
                }
            }
            Some(decoder) => {
                if let Some(piece) = decoder.decode(&mut rest).expect("objects") {
                    match piece {
                        Piece::Head(FetchItem::Object(object)) => objects.push((object.at, BytesMut::new())),
                        Piece::Head(_) => {}
                        Piece::Payload { bytes, .. } => objects.last_mut().expect("one").1.extend_from_slice(&bytes),
                    }
                    continue;
                }
            }
        }
        match soon("more of a fetch", stream.read(65_536)).await {
            Ok(Some(bytes)) => rest = bytes,
            Ok(None) => break Ok(()),
            Err(StreamError::Reset(code)) => break Err(code),
            Err(other) => panic!("{other:?}"),
        }
    };
    let text = |bytes: BytesMut| String::from_utf8_lossy(&bytes).into_owned();
    Got { objects: objects.into_iter().map(|(at, bytes)| (at, text(bytes))).collect(), ended }
}

/// The next stream, read to its end.
async fn next(peer: &Peer) -> Got {
    let stream = soon("a stream", peer.connection.accept_uni()).await.expect("a stream");
    objects(&stream, peer.draft).await
}

async fn accepted(request: &mut Request) -> Location {
    match request.words.next().await {
        Some(Message::FetchOk(ok)) => ok.end,
        other => panic!("{other:?}"),
    }
}

/// Until the origin has taken in so many objects.
async fn taken_in(gateway: &Running, objects: u64) {
    soon("objects", async {
        while gateway.gateway().mesh().view().await.totals.get("moq_objects_in", "moq", "") < objects {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn a_fetch_at_an_edge_comes_from_the_origin_and_then_from_its_own_cache() {
    let chain = Chain::start("");
    let clients = Clients::new();
    let all = (Location::START, Location::new(3, 1));
    wait(async {
        let mut publisher = Peer::connect(&clients, chain.origin.address("moq"), Draft::D18).await;
        let publish = publisher.publish("past", 1).await;
        publish_pairs(&publisher, 1, 0..=1).await;
        taken_in(&chain.origin, 4).await;
        for draft in [Draft::D18, Draft::D20] {
            // Nothing of it is at the edge.
            let mut asker = Peer::connect(&clients, chain.edge.address("moq"), draft).await;
            let mut fetch = standalone(&mut asker, "past", all.0, Location::new(1, 1)).await;
            assert_eq!(accepted(&mut fetch).await, Location::new(1, 1));
            assert_eq!(next(&asker).await, Got { objects: pairs(0..=1), ended: Ok(()) });
        }
        assert_eq!(chain.served().await, [[0, 2], [2, 0]]);
        drop(publish);
        let publish = publisher.publish("present", 2).await;
        publish_pairs(&publisher, 2, 0..=1).await;
        taken_in(&chain.origin, 8).await;
        // From here on a subscription fills the edge's cache.
        let mut subscriber = Peer::connect(&clients, chain.edge.address("moq"), Draft::D20).await;
        let subscription = from_now_on(&mut subscriber, "present").await;
        publish_pairs(&publisher, 2, 2..=3).await;
        for _ in 0..2 {
            assert!(subscriber.receive().await.whole);
        }
        let mut asker = Peer::connect(&clients, chain.edge.address("moq"), Draft::D18).await;
        let mut fetch = standalone(&mut asker, "present", Location::new(2, 0), all.1).await;
        assert_eq!(accepted(&mut fetch).await, all.1);
        assert_eq!(next(&asker).await, Got { objects: pairs(2..=3), ended: Ok(()) });
        assert_eq!(chain.served().await, [[1, 2], [2, 0]], "the origin is not asked for what is here");
        // What is missing before that comes from there, the rest from here.
        let mut fetch = standalone(&mut asker, "present", all.0, all.1).await;
        assert_eq!(accepted(&mut fetch).await, all.1);
        assert_eq!(next(&asker).await, Got { objects: pairs(0..=3), ended: Ok(()) });
        assert_eq!(chain.served().await, [[1, 3], [3, 0]]);
        drop((publish, subscription));
    });
    chain.nothing_failed();
}

/// Draft 18 joins a subscription with a FETCH, draft 20 asks for a fill with it.
#[test]
fn who_joins_at_an_edge_gets_what_was_before() {
    let chain = Chain::start("");
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, chain.origin.address("moq"), Draft::D18).await;
        let publish = publisher.publish("joined", 1).await;
        publish_pairs(&publisher, 1, 0..=3).await;
        taken_in(&chain.origin, 8).await;
        let mut old = Peer::connect(&clients, chain.edge.address("moq"), Draft::D18).await;
        let subscription = from_now_on(&mut old, "joined").await;
        let of = old.next - 2;
        let mut fetch = fetch(&mut old, FetchWhat::Relative { subscription: of, groups: 2 }).await;
        assert_eq!(accepted(&mut fetch).await, Location::new(3, 1));
        assert_eq!(next(&old).await, Got { objects: pairs(1..=3), ended: Ok(()) });
        let mut new = Peer::connect(&clients, chain.edge.address("moq"), Draft::D20).await;
        let fill = Fill { filter: Some(Filter::From(Location::new(2, 0))), ..Fill::default() };
        let params = Params { filter: Some(Filter::NextObject), fill: Some(Box::new(fill)), ..Params::default() };
        let mut filled = new.subscribe_with("joined", params).await;
        assert!(matches!(filled.words.next().await, Some(Message::SubscribeOk(_))));
        assert_eq!(next(&new).await, Got { objects: pairs(2..=3), ended: Ok(()) });
        // And both go on with what comes.
        publish_pairs(&publisher, 1, 4..=4).await;
        for peer in [&old, &new] {
            assert_eq!(peer.receive().await.group, 4);
        }
        drop((publish, subscription, filled));
    });
    chain.nothing_failed();
}

/// Larger than what may be on the way: the fetch is in its midst when the origin is gone.
#[test]
fn an_origin_that_is_lost_in_a_fetch_ends_that_fetch_alone() {
    const LARGE: usize = 4 << 20;
    let chain = Chain::start("[listener.moq]\ncache = \"16MiB\"\n");
    let clients = Clients::new();
    let (mut asker, stream, mut near, publish, publisher) = wait(async {
        let mut publisher = Peer::connect(&clients, chain.origin.address("moq"), Draft::D18).await;
        let publish = publisher.publish("large", 1).await;
        publisher.send_subgroup(1, 0, &[&vec![7; LARGE]]).await;
        taken_in(&chain.origin, 1).await;
        let mut near = Flow::begin(&clients, chain.edge.address("moq"), "near").await;
        near.works().await;
        let mut asker = Peer::connect(&clients, chain.edge.address("moq"), Draft::D20).await;
        let mut fetch = standalone(&mut asker, "large", Location::START, Location::new(0, 0)).await;
        accepted(&mut fetch).await;
        let stream = soon("a stream", asker.connection.accept_uni()).await.expect("a stream");
        assert!(soon("bytes", stream.read(1_000)).await.expect("read").is_some());
        asker.kept.push(fetch);
        // The edge has subscribed as well; once that is quiet, no farewell is lost in a flood.
        soon("the subscription", async {
            let came = || async { chain.edge.gateway().mesh().view().await.totals.get("moq_bytes_in", "origin", "") };
            while came().await < LARGE as u64 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        (asker, stream, near, publish, publisher)
    });
    let Chain { origin, edge } = chain;
    drop((publish, publisher));
    drop(origin);
    wait(async {
        let code = loop {
            match soon("the end of a fetch", stream.read(65_536)).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("FIN is for what is complete alone"),
                Err(StreamError::Reset(code)) => break code,
                Err(other) => panic!("{other:?}"),
            }
        };
        assert_eq!(code, ResetCode::UnknownObjectStatus.number(Draft::D20));
        near.works().await;
        // What is not there any more is refused, and the session is as good as before.
        let mut none = standalone(&mut asker, "other", Location::START, Location::new(0, 0)).await;
        assert_eq!(code_of(none.words.next().await), RequestCode::DoesNotExist);
    });
    assert_eq!(edge.totals().family("moq_sessions_failed"), 0);
}

/// The publisher behind the origin has not said yet how far the fetch goes.
#[test]
fn a_fetch_that_waits_for_an_origin_is_refused_when_that_is_lost() {
    let chain = Chain::start("");
    let clients = Clients::new();
    let (mut fetch, mut near, publisher) = wait(async {
        let near = Near::of(&clients, &chain.edge).await;
        let (publisher, namespace) = announced(&clients, &chain.origin).await;
        let mut asker = Peer::connect(&clients, chain.edge.address("moq"), Draft::D18).await;
        let fetch = standalone(&mut asker, "past", Location::START, Location::new(2, 1)).await;
        let (subscribed, message) = asked(&publisher).await;
        assert!(matches!(message, Message::Subscribe(_)), "{message:?}");
        let params = Params { largest: Some(Location::new(5, 0)), ..Params::default() };
        let ok = SubscribeOk { track_alias: 1, params, ..SubscribeOk::default() };
        subscribed.send.write(bytes_of(&Message::SubscribeOk(Box::new(ok)), Draft::D20)).await.expect("written");
        let (fetched, message) = asked(&publisher).await;
        assert!(matches!(message, Message::Fetch(_)), "{message:?}");
        ((asker, fetch), near, (publisher, namespace, subscribed, fetched))
    });
    let Chain { origin, edge } = chain;
    let refused = |reason: &str| edge.totals().get("moq_requests_refused", "moq", reason);
    assert_eq!(edge.totals().family("moq_requests_refused"), 0);
    drop(origin);
    wait(async {
        assert_eq!(code_of(fetch.1.words.next().await), RequestCode::InternalError);
        near.lost_nothing().await;
    });
    drop(publisher);
    assert_eq!((refused("internal_error"), edge.totals().family("moq_requests_refused")), (1, 1));
    assert_eq!(edge.totals().family("moq_sessions_failed"), 0);
}
