//! Relays of Media over QUIC over reloads: sessions and tracks go on, what is new holds for what comes after, and what a
//! reload takes away ends.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use portway::gateway::Reloaded;
use portway::gateway::check::{self, Known};
use portway::gateway::config::Config;
use portway::transports::http3::codec::{frame, stream as kind};
use portway::transports::moq::codec_message::MessageDecoder;
use portway::transports::moq::model::Draft;
use portway::transports::moq::model_codes::{DoneCode, RequestCode, SessionCode};
use portway::transports::moq::model_message::{Message, PublishNamespace, Setup, Subscribe};
use portway::transports::moq::model_names::Namespace;
use portway::transports::moq::model_params::{Params, Token};
use portway::transports::quic::{Priority, RecvStream, SendStream};
use portway::transports::webtransport::codec::opening;

use crate::gateway::{Running, free, http};
use crate::http3::{Answer, Client, read};
use crate::moq::{Peer, Request, Words, bytes_of, code_of, soon, track};
use crate::probe::{SOON, eventually, wait};
use crate::quic_gateway::{Clients, certificate};

/// What stays the same over all reloads of a test.
struct Place {
    moq: SocketAddr,
    web: SocketAddr,
    admin: SocketAddr,
}

impl Place {
    fn new() -> Self {
        Self { moq: free(), web: free(), admin: free() }
    }

    /// The file, with these lines for its relay.
    fn text(&self, moq: &str) -> String {
        let Self { moq: at, web, admin } = self;
        format!(
            "version = 1\n[runtime]\narbiters = 2\ndrain = \"4s\"\n[admin]\nlisten = \"{admin}\"\n{}\n\
             [[upstream]]\nname = \"origin\"\nservers = [\"quic://localhost:9\"]\n[upstream.tls]\ntrust = \"local\"\n\
             alpn = \"moqt-20\"\n\
             [[listener]]\nname = \"web\"\nlisten = \"{web}\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
             [[listener.route]]\npath = \"/moq\"\nwebtransport = true\nservice = \"moq\"\n\
             [[listener]]\nname = \"moq\"\nlisten = \"{at}\"\nprotocol = \"moq\"\ncertificate = \"local\"\n\
             [listener.moq]\n{moq}",
            certificate()
        )
    }

    fn config(&self, moq: &str) -> Config {
        check::parse("test.toml", &self.text(moq), &Known::default())
            .unwrap_or_else(|report| panic!("{}", report.render(false)))
    }

    fn reload(&self, running: &Running, moq: &str) -> Reloaded {
        let plan = running.gateway().plan(&self.config(moq)).expect("a plan");
        let done = running.gateway().reload(self.config(moq)).expect("it reloads");
        assert_eq!(done.restart, Vec::<&str>::new());
        assert!(done.renewed.is_empty());
        let said = |name: &str| plan.steps.iter().find(|step| step.name == name).map(|step| step.fate.to_string());
        for (names, fate) in [(&done.kept, "keep"), (&done.changed, "change")] {
            for name in names {
                assert_eq!(said(name).as_deref(), Some(fate), "the plan says of `{name}` what is done");
            }
        }
        done
    }

    fn api(&self) -> String {
        http(self.admin, "GET /api/moq HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").1
    }
}

/// A subscriber over WebTransport.
struct Web {
    client: Client,
    session: (SendStream, RecvStream),
    _control: SendStream,
    kept: Vec<(SendStream, Words)>,
    others: Vec<RecvStream>,
}

impl Web {
    async fn connect(to: SocketAddr) -> Self {
        let client = Client::to(to).await;
        let offered = [("wt-available-protocols", "\"moqt-20\"")];
        let session = client.send(crate::webtransport::connect("/moq", "webtransport", &offered)).await;
        assert_eq!(Answer::read(&read(&session.1, 1).await.0).last_status(), 200);
        let control = client.connection.open_uni(Priority::default()).await.expect("a stream");
        control.write(opening(kind::WEBTRANSPORT, session.0.id().0)).await.expect("written");
        control.write(bytes_of(&Message::Setup(Box::default()), Draft::D20)).await.expect("written");
        Self { client, session, _control: control, kept: Vec::new(), others: Vec::new() }
    }

    /// What is answered to the request with this number.
    async fn subscribe(&mut self, id: u64, name: &str) -> Option<Message> {
        let (send, receive) = self.client.send(opening(frame::WEBTRANSPORT, self.session.0.id().0)).await;
        let (track, params) = (track(name), Params::default());
        let message = Message::Subscribe(Box::new(Subscribe { request_id: id, track, params }));
        send.write(bytes_of(&message, Draft::D20)).await.expect("written");
        let mut words = Words { stream: receive, decoder: MessageDecoder::new(Draft::D20), rest: Bytes::new() };
        let answer = words.next().await;
        self.kept.push((send, words));
        answer
    }

    /// The next stream of objects holds this.
    async fn receives(&mut self, what: &[u8]) {
        let ours = opening(kind::WEBTRANSPORT, self.session.0.id().0);
        let setup = bytes_of(&Message::Setup(Box::default()), Draft::D20);
        loop {
            let stream = soon("a stream", self.client.connection.accept_uni()).await.expect("a stream");
            let mut all = soon("bytes", read(&stream, 1)).await.0;
            if all.starts_with(&ours) && all.len() == ours.len() {
                all.extend(soon("bytes", read(&stream, 1)).await.0);
            }
            // Control streams of HTTP/3, QPACK and the relay come first, and do not end.
            if !all.starts_with(&ours) || all.get(ours.len()) == setup.first() {
                self.others.push(stream);
                continue;
            }
            all.extend(soon("the end", read(&stream, usize::MAX)).await.0);
            assert!(all.windows(what.len()).any(|window| window == what), "{all:?}");
            return;
        }
    }
}

/// Every key of `[listener.moq]` but tokens, which have tests of their own.
const KEYS: [&str; 12] = [
    "cache = \"2MiB\"\n",
    "cache_groups = 7\n",
    "cache_age = \"7s\"\n",
    "linger = \"7s\"\n",
    "rendezvous = \"7s\"\n",
    "namespaces = 21\n",
    "tracks = 21\n",
    "requests = 21\n",
    "when_slow = \"end\"\n",
    "[[listener.moq.scope]]\n[[listener.moq.scope]]\npath = \"/more\"\n",
    "[[listener.moq.scope]]\nupstream = \"origin\"\nupstream_path = \"/a\"\nupstream_token = \"a\"\n",
    "[[listener.moq.scope]]\nupstream = \"origin\"\nupstream_path = \"/b\"\nupstream_token = \"b\"\n",
];

#[test]
fn sessions_and_tracks_go_on_over_a_reload_of_every_key() {
    let place = Place::new();
    let running = Running::start(&place.text(""));
    let clients = Clients::new();
    wait(async {
        let mut publisher = Peer::connect(&clients, place.moq, Draft::D18).await;
        let mut subscriber = Peer::connect(&clients, place.moq, Draft::D20).await;
        let mut web = Web::connect(place.web).await;
        let publish = publisher.publish("on", 7).await;
        publisher.kept.push(publish);
        let (subscription, _) = subscriber.subscribe("on").await;
        subscriber.kept.push(subscription);
        let answer = web.subscribe(0, "on").await;
        assert!(matches!(answer, Some(Message::SubscribeOk(_))), "{answer:?}");
        let mut number = 0;
        for key in KEYS.iter().flat_map(|key| [*key, ""]) {
            let done = place.reload(&running, key);
            assert_eq!((done.changed, done.kept), (vec!["moq".to_owned()], vec!["web".to_owned()]), "{key}");
            publisher.send_subgroup(7, number, &[b"one", b"two"]).await;
            let got = subscriber.receive().await;
            assert_eq!((got.group, got.whole, got.objects.len()), (number, true, 2), "{key}");
            web.receives(b"two").await;
            number += 1;
            let mut fresh = Peer::connect(&clients, place.moq, Draft::D18).await;
            let mut found = fresh.subscribe_with("on", Params::default()).await;
            assert!(matches!(found.words.next().await, Some(Message::SubscribeOk(_))), "{key}");
            let mut fresh = Web::connect(place.web).await;
            let answer = fresh.subscribe(0, "on").await;
            assert!(matches!(answer, Some(Message::SubscribeOk(_))), "{key}: {answer:?}");
            assert!(place.api().contains("--on\""), "{key}: {}", place.api());
        }
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

#[test]
fn a_reload_that_is_refused_leaves_a_relay_as_it_was() {
    let place = Place::new();
    let running = Running::start(&place.text("namespaces = 1\n"));
    let clients = Clients::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    wait(async {
        let mut flow = crate::moq::Flow::begin(&clients, place.moq, "refused").await;
        let text = format!(
            "{}[[listener]]\nname = \"more\"\nlisten = \"{}\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
            place.text("namespaces = 5\n[[listener.moq.scope]]\npath = \"/other\"\n"),
            taken.local_addr().expect("an address"),
        );
        let config = check::parse("test.toml", &text, &Known::default());
        let config = config.unwrap_or_else(|report| panic!("{}", report.render(false)));
        running.gateway().reload(config).expect_err("the port is in use");
        flow.works().await;
        let mut fresh = Peer::connect(&clients, place.moq, Draft::D18).await;
        let mut found = fresh.subscribe_with("refused", Params::default()).await;
        assert!(matches!(found.words.next().await, Some(Message::SubscribeOk(_))));
        let first = namespace(&mut fresh, &["a"], None).await;
        assert!(matches!(first.1, Some(Message::RequestOk(_))));
        let second = namespace(&mut fresh, &["b"], None).await;
        assert_eq!(code_of(second.1), RequestCode::ExcessiveLoad, "the bound is that of before");
    });
}

/// Publishes a namespace, with a token for it.
async fn namespace(peer: &mut Peer, fields: &[&str], token: Option<&'static str>) -> (Request, Option<Message>) {
    let namespace = Namespace::new(fields).expect("a namespace");
    let tokens = token.map(|token| Token::UseValue { kind: 0, value: Bytes::from_static(token.as_bytes()) });
    let params = Params { tokens: tokens.into_iter().collect(), ..Params::default() };
    let mut request = peer
        .ask(|request_id| Message::PublishNamespace(PublishNamespace { request_id, namespace, params }.into()))
        .await;
    let answer = request.words.next().await;
    (request, answer)
}

#[test]
fn bounds_hold_for_what_comes_after_a_reload() {
    let place = Place::new();
    let running = Running::start(&place.text(""));
    let clients = Clients::new();
    wait(async {
        let mut peer = Peer::connect(&clients, place.moq, Draft::D20).await;
        let (_one, answer) = namespace(&mut peer, &["a"], None).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))));
        let (_two, answer) = namespace(&mut peer, &["b"], None).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))));
        place.reload(&running, "namespaces = 2\n");
        let (_three, answer) = namespace(&mut peer, &["c"], None).await;
        assert_eq!(code_of(answer), RequestCode::ExcessiveLoad);
        assert!(place.api().contains("\"b\""), "those of before stay: {}", place.api());
        place.reload(&running, "namespaces = 3\n");
        let (_three, answer) = namespace(&mut peer, &["c"], None).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))));
        // A cache gives up what is beyond its new bounds.
        let publish = peer.publish("bounds", 3).await;
        for group in 0..6 {
            peer.send_subgroup(3, group, &[b"group"]).await;
        }
        let cached = |groups: usize| place.api().contains(&format!("\"cached_groups\": {groups},"));
        eventually("all is at hand", || cached(6));
        place.reload(&running, "namespaces = 3\ncache_groups = 2\n");
        eventually("the cache shrinks", || cached(2));
        drop(publish);
    });
}

fn tokens(list: &[(&str, &str)]) -> String {
    let one = |(token, more): &(&str, &str)| {
        format!("[[listener.moq.token]]\ntoken = \"{token}\"\npublish = \"\"\nsubscribe = \"\"\n{more}")
    };
    list.iter().map(one).collect()
}

/// A session that showed a token when it came.
async fn bearer(clients: &Clients, to: SocketAddr, token: &'static str) -> Peer {
    let connection = soon("a connection", clients.connect(to, Draft::D20.alpn())).await;
    let control = connection.open_uni(Priority::default()).await.expect("a stream");
    let tokens = vec![Token::UseValue { kind: 0, value: Bytes::from_static(token.as_bytes()) }];
    let setup = Message::Setup(Box::new(Setup { tokens, ..Setup::default() }));
    control.write(bytes_of(&setup, Draft::D20)).await.expect("written");
    let theirs = soon("a control stream", connection.accept_uni()).await.expect("a stream");
    let mut words = Words::new(theirs, Draft::D20);
    assert!(matches!(words.next().await, Some(Message::Setup(_))));
    Peer { connection, draft: Draft::D20, control, _words: words, next: 0, kept: Vec::new() }
}

#[test]
fn what_a_token_granted_ends_when_a_reload_takes_it_away() {
    let place = Place::new();
    let running = Running::start(&place.text(&tokens(&[("first", ""), ("stays", "")])));
    let clients = Clients::new();
    wait(async {
        let mut neighbour = bearer(&clients, place.moq, "stays").await;
        let mut listening = bearer(&clients, place.moq, "stays").await;
        let publish = neighbour.publish("stays", 1).await;
        neighbour.kept.push(publish);
        let (subscription, _) = listening.subscribe("stays").await;
        listening.kept.push(subscription);
        let mut old = bearer(&clients, place.moq, "first").await;
        let (mut lost, _) = old.subscribe("stays").await;
        let mut plain = Peer::connect(&clients, place.moq, Draft::D20).await;
        let (mut shown, answer) = namespace(&mut plain, &["a", "1"], Some("first")).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))));
        assert!(place.api().contains("\"a-1\""), "{}", place.api());
        place.reload(&running, &tokens(&[("second", ""), ("stays", "")]));
        let done = loop {
            match lost.words.next().await {
                Some(Message::PublishDone(done)) => break done.code,
                Some(_) => {}
                None => panic!("no PUBLISH_DONE"),
            }
        };
        assert_eq!(done, DoneCode::Unauthorized);
        assert!(shown.words.next().await.is_none(), "the namespace is given up");
        eventually("the namespace is gone", || !place.api().contains("\"a-1\""));
        let (_, answer) = namespace(&mut plain, &["a", "2"], Some("first")).await;
        assert_eq!(code_of(answer), RequestCode::Unauthorized);
        let mut again = old.subscribe_with("stays", Params::default()).await;
        assert_eq!(code_of(again.words.next().await), RequestCode::Unauthorized);
        let (_kept, answer) = namespace(&mut plain, &["a", "3"], Some("second")).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))), "the new one holds on an old session");
        neighbour.send_subgroup(1, 0, &[b"one"]).await;
        assert_eq!(listening.receive().await.group, 0, "the neighbour goes on");
    });
    assert_eq!(running.totals().get("moq_requests_refused", "moq", "unauthorized"), 4);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

#[test]
fn a_token_of_one_request_ends_it_when_it_expires() {
    let place = Place::new();
    let running = Running::start(&place.text(&tokens(&[("first", "")])));
    let clients = Clients::new();
    wait(async {
        let mut plain = Peer::connect(&clients, place.moq, Draft::D20).await;
        let (mut shown, answer) = namespace(&mut plain, &["a"], Some("first")).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))));
        let soon = std::time::SystemTime::now() + Duration::from_secs(2);
        let at = soon.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        place.reload(&running, &tokens(&[("first", &format!("expires = {at}\n"))]));
        let (mut later, answer) = namespace(&mut plain, &["b"], Some("first")).await;
        assert!(matches!(answer, Some(Message::RequestOk(_))));
        assert!(shown.words.next().await.is_none() && later.words.next().await.is_none());
        let (_, answer) = namespace(&mut plain, &["c"], Some("first")).await;
        assert_eq!(code_of(answer), RequestCode::ExpiredAuthToken);
    });
    assert_eq!(running.totals().get("moq_requests_refused", "moq", "expired_auth_token"), 3);
}

#[test]
fn a_scope_that_is_taken_out_sends_its_sessions_away_and_no_others() {
    let place = Place::new();
    let both = "[[listener.moq.scope]]\npath = \"/gone\"\n[[listener.moq.scope]]\n";
    let running = Running::start(&place.text(both));
    let clients = Clients::new();
    wait(async {
        let mut stays = crate::moq::Flow::begin(&clients, place.moq, "stays").await;
        let mut goes = {
            let connection = soon("a connection", clients.connect(place.moq, Draft::D20.alpn())).await;
            let control = connection.open_uni(Priority::default()).await.expect("a stream");
            let setup = Setup { path: Some("/gone".to_owned()), ..Setup::default() };
            control.write(bytes_of(&Message::Setup(Box::new(setup)), Draft::D20)).await.expect("written");
            let theirs = soon("a control stream", connection.accept_uni()).await.expect("a stream");
            let mut words = Words::new(theirs, Draft::D20);
            assert!(matches!(words.next().await, Some(Message::Setup(_))));
            Peer { connection, draft: Draft::D20, control, _words: words, next: 0, kept: Vec::new() }
        };
        let publish = goes.publish("gone", 1).await;
        goes.kept.push(publish);
        let done = place.reload(&running, "[[listener.moq.scope]]\n");
        assert_eq!(done.changed, ["moq"]);
        match goes._words.next().await {
            Some(Message::Goaway(goaway)) => assert!(goaway.timeout > Duration::ZERO && goaway.timeout <= SOON),
            other => panic!("{other:?}"),
        }
        stays.works().await;
        assert_eq!(goes.closed().await, SessionCode::GoawayTimeout, "it did not go by itself");
        stays.works().await;
    });
    assert_eq!(running.totals().get("moq_sessions_failed", "moq", "goaway_timeout"), 1);
    assert_eq!(running.totals().family("moq_sessions_failed"), 1);
}

fn metric(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse::<f64>().ok().map(|value| value as usize)
}

/// Caches count against the memory budget and give way before anybody is refused.
#[test]
fn caches_of_many_tracks_stay_within_the_memory_budget() {
    const BUDGET: usize = 24 << 20;
    let place = Place::new();
    let text = place.text("cache = \"8MiB\"\n").replace("arbiters = 2\n", "arbiters = 2\nmemory = \"24MiB\"\n");
    let mut binary = crate::gateway::Binary::start(&text);
    assert_eq!(binary.address("moq"), place.moq);
    let metrics = || http(place.admin, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").1;
    let before = binary.resident();
    let clients = crate::moq_client::Clients::new(1);
    let others = Clients::new();
    let (mut most, mut covered) = (0, true);
    wait(async {
        let mut neighbour = crate::moq::Flow::begin(&others, place.moq, "neighbour").await;
        let payload = crate::quic_gateway::pattern(100_000);
        let mut publishers = Vec::new();
        let mut kept = Vec::new();
        for _ in 0..5 {
            let client = clients.join(place.moq, Draft::D20).await;
            for _ in 0..4 {
                let name = crate::moq_client::track(&format!("many-{}", publishers.len()));
                publishers.push(client.publish(name, Default::default()).await.expect("accepted"));
            }
            kept.push(client);
        }
        for number in 0..30 {
            for publisher in &publishers {
                crate::moq_client::group(publisher, number, std::slice::from_ref(&payload)).await;
            }
            neighbour.works().await;
            let text = metrics();
            let leased = metric(&text, "portway_memory_leased_bytes").expect("it is exported");
            let api = place.api();
            let cached =
                api.lines().filter_map(|line| line.trim().strip_prefix("\"cached_bytes\": ")?.parse::<usize>().ok());
            covered &= leased + (20 << 16) >= cached.sum::<usize>();
            most = most.max(leased);
        }
        let text = metrics();
        let of =
            |reason: &str| metric(&text, &format!("portway_moq_evicted_total{{relay=\"moq\",reason=\"{reason}\"}}"));
        assert!(of("memory").is_some_and(|evicted| evicted > 100), "{text}");
        assert!(!text.contains("portway_connections_refused_total"), "{text}");
        let _late = crate::moq::Flow::begin(&others, place.moq, "late").await;
        drop(kept);
    });
    assert!(covered, "what caches hold is leased");
    assert!(most > BUDGET / 2 && most < BUDGET / 10 * 8, "{most}");
    let grown = binary.resident().saturating_sub(before);
    assert!(grown < 3 * BUDGET, "grown by {grown}");
    drop(others);
}

/// The hash that is told follows the certificate, on connections that are open as well.
#[test]
fn the_hash_of_a_certificate_follows_its_file() {
    let folder = crate::gateway::temp_dir();
    let (cert, key) = (folder.join("c.pem"), folder.join("k.pem"));
    let put = |from: &str, of: &str| {
        std::fs::copy(crate::quic_gateway::pem(from), &cert).expect("copied");
        std::fs::copy(crate::quic_gateway::pem(of), &key).expect("copied");
    };
    put("good.pem", "good-key.pem");
    let at = free();
    let text = format!(
        "version = 1\n[runtime]\narbiters = 1\n[[certificate]]\nname = \"local\"\ncert = {cert:?}\nkey = {key:?}\n\
         [[listener]]\nname = \"plain\"\nlisten = \"{at}\"\nprotocol = \"http\"\n\
         [[listener.route]]\npath_exact = \"/hash\"\nservice = \"certificate_sha256\"\n"
    );
    let config =
        || check::parse("test.toml", &text, &Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)));
    let running = Running::start(&text);
    let hash = || crate::gateway::get(at, "/hash").1;
    let before = hash();
    assert_eq!(before.len(), 64, "{before}");
    let done = running.gateway().reload(config()).expect("it reloads");
    assert_eq!(done.kept, ["plain"], "nothing has changed");
    put("new.pem", "new-key.pem");
    let plan = running.gateway().plan(&config()).expect("a plan");
    assert_eq!(plan.steps[0].fate.to_string(), "change");
    // As `keep_certificates` does when a file has changed.
    let done = running.gateway().reload(config()).expect("it reloads");
    assert_eq!(done.changed, ["plain"]);
    eventually("the hash is the new one", || hash() != before);
    let fresh = Running::start(&text.replace(&at.to_string(), "127.0.0.1:0"));
    assert_eq!(hash(), crate::gateway::get(fresh.address("plain"), "/hash").1);
    let _removed = std::fs::remove_dir_all(&folder);
}

/// Waits until this counter has this value.
async fn counted(running: &Running, family: &str, reason: &str, value: u64) {
    soon(&format!("{family} {reason}"), async {
        while running.gateway().mesh().view().await.totals.get(family, "moq", reason) < value {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(running.gateway().mesh().view().await.totals.get(family, "moq", reason), value, "{family} {reason}");
}

/// Streams whose alias nobody explains are each given up and counted once: what is too many at once, the others in time,
/// and those that wait when the session ends.
#[test]
fn streams_of_unknown_tracks_are_given_up_in_time_and_counted() {
    let place = Place::new();
    let running = Running::start(&place.text(""));
    let clients = Clients::new();
    wait(async {
        let mut flow = crate::moq::Flow::begin(&clients, place.moq, "neighbour").await;
        let peer = Peer::connect(&clients, place.moq, Draft::D18).await;
        let mut streams = Vec::new();
        for alias in 0..40 {
            let stream = peer.connection.open_uni(Priority::default()).await.expect("a stream");
            stream.write(peer.subgroup(1_000 + alias, 0, &[b"nobody wants it"])).await.expect("written");
            streams.push(stream);
        }
        counted(&running, "moq_streams_dropped", "unknown_alias", 8).await;
        flow.works().await;
        counted(&running, "moq_streams_dropped", "unknown_alias", 40).await;
        for stream in streams {
            soon("a stop", async {
                while stream.write(&b"more"[..]).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        let came = running.gateway().mesh().view().await.totals.get("moq_streams_in", "moq", "");
        peer.send_subgroup(2_000, 0, &[b"the last"]).await;
        counted(&running, "moq_streams_in", "", came + 1).await;
        peer.connection.close(0, "");
        counted(&running, "moq_streams_dropped", "unknown_alias", 41).await;
        flow.works().await;
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// What is set up ends once, and says how.
#[test]
fn a_session_counts_once_and_by_how_it_ended() {
    let place = Place::new();
    let text = format!("{}[listener.quic]\nidle_timeout = \"1s\"\n", place.text(""));
    let running = Running::start(&text);
    let clients = Clients::new();
    wait(async {
        let peer = Peer::connect(&clients, place.moq, Draft::D18).await;
        counted(&running, "moq_sessions", "moqt-18", 1).await;
        peer.connection.close(0, "");
        counted(&running, "moq_sessions_ended", "closed", 1).await;
        let connection = soon("a connection", clients.connect(place.moq, Draft::D20.alpn())).await;
        let _setup = soon("a control stream", connection.accept_uni()).await;
        connection.close(0, "");
        counted(&running, "moq_setups_abandoned", "closed", 1).await;
        let _silent = Peer::connect(&clients, place.moq, Draft::D20).await;
        counted(&running, "moq_sessions_ended", "idle", 1).await;
    });
    assert_eq!(running.totals().family("moq_sessions"), 2);
    assert_eq!(running.totals().family("moq_sessions_ended"), 2);
}

/// An edge of this origin, which shows this token there.
fn edge(origin: SocketAddr, token: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = 1\ndrain = \"1s\"\n{}\n[[upstream]]\nname = \"origin\"\n\
         servers = [\"quic://localhost:{}\"]\n[upstream.tls]\ntrust = \"local\"\nalpn = \"moqt-20\"\n\
         [[listener]]\nname = \"moq\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"moq\"\ncertificate = \"local\"\n\
         [[listener.moq.scope]]\nupstream = \"origin\"\nupstream_token = \"{token}\"\n",
        certificate(),
        origin.port()
    )
}

/// An edge that is let in and then refused asks less and less often, and says so once; a token where none is demanded
/// does no harm.
#[test]
fn an_origin_that_refuses_is_not_asked_without_pause() {
    let place = Place::new();
    let origin = Running::start(&place.text(&tokens(&[("right", "")])));
    let mut binary = crate::gateway::Binary::start(&edge(place.moq, "wrong"));
    let refused = || origin.totals().get("moq_sessions_failed", "moq", "unauthorized");
    binary.says("no session with the origin of a relay");
    // At once, then after 0.1, 0.2, 0.4, 0.8, 1.6 and 2 s.
    std::thread::sleep(Duration::from_secs(4));
    let tries = refused();
    assert!((2..=8).contains(&tries), "{tries}");
    place.reload(&origin, "");
    binary.says("the origin of a relay is back");
    assert_eq!(binary.said("no session with the origin of a relay"), 1);
    assert_eq!(origin.totals().get("moq_sessions", "moq", "moqt-20"), 1);
}
