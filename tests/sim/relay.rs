//! Relayed streams between links that misbehave: chopped, late, slow, stalled, cut off, at any moment.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::Duration;

use portway::actors::sim::{Sim, for_seeds};
use portway::actors::sim_link::{Faults, Stream, StreamPlug, stream_link};
use portway::actors::{Control, Exit, Mail, Mesh, Place, Spec, clock};
use portway::transports::kit::balance::{Address, BalanceSettings, Balancer};
use portway::transports::relay::{Dial, Header, ProxyVersion, Relay, RelaySettings};
use portway::transports::tcp::Never;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: Duration = Duration::from_secs(600);

/// What becomes of an attempt to connect.
enum Attempt {
    Link(StreamPlug),
    Refused,
    RefusedLate(StreamPlug),
    Hangs(StreamPlug),
}

#[derive(Default)]
enum Fate {
    #[default]
    Connects,
    Refuses,
    Never,
}

#[derive(Default)]
struct Servers {
    attempts: VecDeque<Attempt>,
    fate: Fate,
}

impl Dial for Servers {
    type Stream = Stream;

    fn dial(&mut self, _: &Address) -> io::Result<Stream> {
        let (plug, fate) = match self.attempts.pop_front() {
            None | Some(Attempt::Refused) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Some(Attempt::Link(plug)) => (plug, Fate::Connects),
            Some(Attempt::RefusedLate(plug)) => (plug, Fate::Refuses),
            Some(Attempt::Hangs(plug)) => (plug, Fate::Never),
        };
        self.fate = fate;
        Ok(plug.open())
    }

    fn poll_connected(&mut self, _: &Stream, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.fate {
            Fate::Connects => Poll::Ready(Ok(())),
            Fate::Refuses => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            Fate::Never => Poll::Pending,
        }
    }
}

fn settings(servers: u16) -> RelaySettings {
    listen();
    let servers = (1..=servers).map(|port| Address::Tcp(([127, 0, 0, 1], port).into())).collect();
    RelaySettings::new(Balancer::new(servers, BalanceSettings::default()), Arc::from("app"))
}

fn relay(mesh: &Mesh, client: StreamPlug, attempts: Vec<Attempt>, settings: RelaySettings) -> Mail<Never> {
    let settings = Arc::new(settings);
    mesh.spawn(Place::LeastLoaded, Spec::default(), move || {
        let servers = Servers { attempts: attempts.into(), fate: Fate::Connects };
        Relay::new(client.open(), servers, Arc::from("sim"), settings, 7)
    })
    .unwrap()
}

/// A relay between two links: the client's end, the server's end, the actor.
fn joined(
    sim: &Sim,
    seed: u64,
    faults: Faults,
    buffer: usize,
    settings: RelaySettings,
) -> (StreamPlug, StreamPlug, Mail<Never>) {
    let (client, ours) = stream_link(seed, faults, faults, buffer);
    let (out, server) = stream_link(seed ^ 0x5555, faults, faults, buffer);
    let mail = relay(sim.mesh(), ours, vec![Attempt::Link(out)], settings);
    (client, server, mail)
}

fn bad() -> Faults {
    Faults::default().delay(Duration::from_millis(20)).jitter(Duration::from_millis(30)).rate(500_000).chop(0.5)
}

fn bytes_of(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    portway::actors::sim_random::Random::new(seed).fill(&mut bytes);
    bytes
}

fn count(sim: &mut Sim, family: &str, scope: &str, reason: &str) -> u64 {
    let mesh = sim.mesh().clone();
    sim.block_on(LONG, async move { mesh.view().await }).unwrap().totals.get(family, scope, reason)
}

fn held(sim: &mut Sim) -> usize {
    let mesh = sim.mesh().clone();
    let view = sim.block_on(LONG, async move { mesh.view().await }).unwrap();
    view.of_kind("relay").map(|actor| actor.held).sum()
}

/// The stream has ended for this reason, once, and nothing is left.
#[track_caller]
fn ended(sim: &mut Sim, mail: &Mail<Never>, reason: &str) {
    sim.run_for(Duration::from_secs(5));
    assert!(mail.is_closed(), "it has ended");
    assert_eq!(count(sim, "connections_closed", "sim", reason), 1, "{reason}: {:?}", mail.exit());
    assert_eq!(sim.mesh().live(), 0);
}

async fn send_all(mut to: impl AsyncWriteExt + Unpin, bytes: Vec<u8>) {
    to.write_all(&bytes).await.unwrap();
    to.shutdown().await.unwrap();
}

async fn read_all(mut from: impl AsyncReadExt + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).await.unwrap();
    all
}

#[test]
fn every_byte_arrives_in_order_both_ways() {
    for_seeds(60, |seed| {
        let mut sim = Mesh::sim(seed);
        let (client, server, mail) = joined(&sim, seed, bad(), 8_192, settings(1));
        let mut random = sim.random();
        let up = bytes_of(seed, random.below(300_000) as usize);
        let down = bytes_of(!seed, random.below(300_000) as usize);
        let expected = (down.clone(), up.clone());
        let got = sim.block_on(LONG, async move {
            let (client_read, client_write) = tokio::io::split(client.open());
            let (server_read, server_write) = tokio::io::split(server.open());
            let (_, _, at_client, at_server) = tokio::join!(
                send_all(client_write, up),
                send_all(server_write, down),
                read_all(client_read),
                read_all(server_read)
            );
            (at_client, at_server)
        });
        assert!(got.as_ref() == Some(&expected), "all bytes, in order");
        ended(&mut sim, &mail, "finished");
        assert_eq!(mail.exit(), Some(Exit::Normal));
        assert_eq!(count(&mut sim, "relay_bytes_up", "sim", ""), expected.1.len() as u64);
        assert_eq!(count(&mut sim, "relay_bytes_down", "sim", ""), expected.0.len() as u64);
    });
}

#[test]
fn either_side_may_end_first() {
    for_seeds(40, |seed| {
        let mut sim = Mesh::sim(seed);
        let (client, server, mail) = joined(&sim, seed, bad(), 8_192, settings(1));
        let (first, second) = if seed % 2 == 0 { (client, server) } else { (server, client) };
        let (question, answer) = (bytes_of(seed, 30_000), bytes_of(!seed, 50_000));
        let expected = (question.clone(), answer.clone());
        let got = sim.block_on(LONG, async move {
            let (mut first, mut second) = (first.open(), second.open());
            let (_, asked) = tokio::join!(send_all(&mut first, question), read_all(&mut second));
            // Long after the end of the question has come.
            clock::sleep(Duration::from_secs(60)).await;
            let (_, answered) = tokio::join!(send_all(&mut second, answer), read_all(&mut first));
            (asked, answered)
        });
        assert!(got == Some(expected));
        ended(&mut sim, &mail, "finished");
    });
}

#[test]
fn a_reset_at_any_moment_resets_the_other_side() {
    for_seeds(100, |seed| {
        let mut sim = Mesh::sim(seed);
        let (client, server, mail) = joined(&sim, seed, bad(), 8_192, settings(1));
        let (cut, other, reason) = if seed % 2 == 0 {
            (client.control(), server, "client_reset")
        } else {
            (server.control(), client, "upstream_reset")
        };
        let when = Duration::from_millis(100 + sim.random().below(1_000));
        let error = sim.block_on(LONG, async move {
            let mut other = other.open();
            let talk = async {
                loop {
                    if let Err(error) = other.write_all(&[7; 3_000]).await {
                        return error.kind();
                    }
                }
            };
            let cutting = async {
                clock::sleep(when).await;
                cut.reset();
            };
            tokio::join!(talk, cutting).0
        });
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
        ended(&mut sim, &mail, reason);
        assert_eq!(count(&mut sim, "upstream_failures", "app", "upstream_reset"), seed % 2);
    });
}

#[test]
fn a_side_that_stalls_costs_one_read_and_then_gets_everything() {
    for_seeds(40, |seed| {
        let mut sim = Mesh::sim(seed);
        let (client, server, mail) = joined(&sim, seed, Faults::default().chop(0.5), 100_000, settings(1));
        let (from, to) = if seed % 2 == 0 { (client, server) } else { (server, client) };
        let control = to.control();
        control.stall(true);
        let bytes = bytes_of(seed, 2_000_000);
        let expected = bytes.clone();
        let (mut from, to) = (from.open(), to.open());
        let sent = sim.block_on(LONG, async move {
            let mut sent = 0;
            loop {
                tokio::select! {
                    biased;
                    count = from.write(&bytes[sent..]) => sent += count.unwrap(),
                    () = clock::sleep(Duration::from_secs(5)) => break,
                }
            }
            (sent, from, bytes)
        });
        let (sent, from, bytes) = sent.expect("it stops being read");
        assert!(sent <= 200_000 + (64 << 10), "{sent} bytes were taken");
        let most = held(&mut sim);
        assert!((1..=128 << 10).contains(&most), "{most} bytes are held");
        control.stall(false);
        let got = sim.block_on(LONG, async move {
            let (from_read, from_write) = tokio::io::split(from);
            let (to_read, mut to_write) = tokio::io::split(to);
            to_write.shutdown().await.unwrap();
            tokio::join!(send_all(from_write, bytes[sent..].to_vec()), read_all(to_read), read_all(from_read)).1
        });
        assert!(got == Some(expected), "all bytes, in order");
        ended(&mut sim, &mail, "finished");
    });
}

#[test]
fn an_idle_limit_ends_what_stands_still_and_spares_what_moves() {
    for_seeds(10, |seed| {
        let mut sim = Mesh::sim(seed);
        let limited = RelaySettings { idle: Some(Duration::from_secs(10)), ..settings(1) };
        let (client, server, mail) = joined(&sim, seed, bad(), 8_192, limited);
        let error = sim.block_on(LONG, async move {
            let (mut client, mut server) = (client.open(), server.open());
            for n in 0..10u8 {
                clock::sleep(Duration::from_secs(8)).await;
                server.write_all(&[n]).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), n);
            }
            client.read_u8().await.unwrap_err().kind()
        });
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
        ended(&mut sim, &mail, "idle");
    });
}

#[test]
fn the_next_server_is_tried_and_what_the_client_said_meanwhile_is_kept() {
    for_seeds(20, |seed| {
        let mut sim = Mesh::sim(seed);
        let (client, ours) = stream_link(seed, bad(), bad(), 8_192);
        let (out, server) = stream_link(!seed, bad(), bad(), 8_192);
        let spare = |n| stream_link(n, bad(), bad(), 100).0;
        let attempts = match seed % 3 {
            0 => vec![Attempt::Refused, Attempt::Link(out)],
            1 => vec![Attempt::Hangs(spare(1)), Attempt::Link(out)],
            _ => vec![Attempt::RefusedLate(spare(1)), Attempt::Hangs(spare(2)), Attempt::Link(out)],
        };
        let mail = relay(sim.mesh(), ours, attempts, settings(3));
        let got = sim.block_on(LONG, async move {
            let (mut client, mut server) = (client.open(), server.open());
            send_all(&mut client, b"early".to_vec()).await;
            let got = read_all(&mut server).await;
            server.shutdown().await.unwrap();
            assert!(read_all(client).await.is_empty());
            got
        });
        assert_eq!(got.as_deref(), Some(&b"early"[..]));
        ended(&mut sim, &mail, "finished");
        let refused = count(&mut sim, "upstream_failures", "app", "connect_refused");
        let timeouts = count(&mut sim, "upstream_failures", "app", "connect_timeout");
        assert_eq!((refused, timeouts), [(1, 0), (0, 1), (1, 1)][(seed % 3) as usize]);
    });
}

#[test]
fn a_client_that_finds_no_server_is_reset_with_the_last_reason() {
    for (servers, attempts, reason, failed) in [
        (3, vec![Attempt::Refused, Attempt::Refused, Attempt::Refused], "connect_refused", 3),
        (1, vec![Attempt::Hangs(stream_link(1, bad(), bad(), 100).0)], "connect_timeout", 1),
        (0, vec![], "no_upstream", 0),
    ] {
        let mut sim = Mesh::sim(1);
        let (client, ours) = stream_link(1, bad(), bad(), 8_192);
        let mail = relay(sim.mesh(), ours, attempts, settings(servers));
        let error = sim.block_on(LONG, async move { client.open().read_u8().await.unwrap_err().kind() });
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
        ended(&mut sim, &mail, reason);
        assert_eq!(count(&mut sim, "upstream_failures", "app", reason), failed);
    }
}

#[test]
fn a_proxy_header_comes_first_both_in_and_out() {
    for_seeds(40, |seed| {
        let mut sim = Mesh::sim(seed);
        let version = if seed % 2 == 0 { ProxyVersion::V1 } else { ProxyVersion::V2 };
        let both = RelaySettings { proxy_in: true, proxy_out: Some(version), ..settings(1) };
        let (client, server, mail) = joined(&sim, seed, bad(), 8_192, both);
        let header = Header::Proxied {
            source: "192.0.2.1:1000".parse().unwrap(),
            destination: "198.51.100.2:443".parse().unwrap(),
        };
        let inbound = header.encode(if seed % 4 < 2 { ProxyVersion::V1 } else { ProxyVersion::V2 });
        let body = bytes_of(seed, 5_000);
        let sent = [&inbound[..], &body].concat();
        let got = sim.block_on(LONG, async move {
            let mut server = server.open();
            let client = client.open();
            let (mut client_read, client_write) = tokio::io::split(client);
            let (_, got) = tokio::join!(send_all(client_write, sent), read_all(&mut server));
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(read_all(&mut client_read).await, b"answer");
            got
        });
        assert!(got == Some([&header.encode(version)[..], &body].concat()));
        ended(&mut sim, &mail, "finished");
    });
}

#[test]
fn a_proxy_header_that_is_none_or_never_ends() {
    for (bytes, then_end, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], false, "proxy_malformed"),
        (&[b'P'; 2_000], false, "proxy_malformed"),
        (b"PROXY UNKNOWN aaaaaaaaaaaaaaaaaaaaaaa", false, "proxy_timeout"),
        (b"PROXY TCP4 ", true, "proxy_malformed"),
        (b"", false, "proxy_timeout"),
    ] {
        let mut sim = Mesh::sim(1);
        let wanted = RelaySettings { proxy_in: true, ..settings(1) };
        let (client, _server, mail) = joined(&sim, 1, bad(), 8_192, wanted);
        let error = sim.block_on(LONG, async move {
            let mut client = client.open();
            client.write_all(bytes).await.unwrap();
            if then_end {
                client.shutdown().await.unwrap();
            }
            client.read_u8().await.unwrap_err().kind()
        });
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
        ended(&mut sim, &mail, reason);
    }
}

#[test]
fn a_drain_lets_bytes_flow_to_their_end_or_cuts_them_at_the_deadline() {
    for_seeds(40, |seed| {
        let mut sim = Mesh::sim(seed);
        let (client, server, mail) = joined(&sim, seed, bad(), 8_192, settings(1));
        let ends = seed % 2 == 0;
        let bytes = bytes_of(seed, 200_000);
        let expected = bytes.clone();
        let control = mail.clone();
        let got = sim.block_on(LONG, async move {
            let (mut client, mut server) = (client.open(), server.open());
            client.write_all(b"?").await.unwrap();
            server.read_u8().await.unwrap();
            control.control(Control::Drain(clock::now() + Duration::from_secs(60)));
            let (mut read, mut write) = tokio::io::split(&mut client);
            let sending = async {
                server.write_all(&bytes).await.unwrap();
                if ends {
                    server.shutdown().await.unwrap();
                }
            };
            let mut got = Vec::new();
            let (_, _, end) = tokio::join!(
                sending,
                async {
                    if ends {
                        write.shutdown().await.unwrap();
                    }
                },
                read.read_to_end(&mut got)
            );
            (got, end.is_ok())
        });
        assert!(got == Some((expected, ends)));
        ended(&mut sim, &mail, if ends { "drained" } else { "drain_deadline" });
    });
}

thread_local! {
    /// The lines of the access log that this thread wrote, if it wants to know.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Collects the access log. Installed for the whole process before the first relay is made: a place that logs while
/// nobody listens may be remembered as one that nobody will ever listen to.
struct AccessLog;

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(AccessLog).expect("the only one in this binary"));
}

struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl tracing::Subscriber for AccessLog {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "access"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LINES.with_borrow_mut(|lines| lines.as_mut().map(|lines| lines.push(line.0)));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn each_stream_leaves_one_line_in_the_access_log() {
    LINES.set(Some(Vec::new()));
    let mut sim = Mesh::sim(1);
    let wanted = RelaySettings { proxy_in: true, ..settings(1) };
    let (client, server, mail) = joined(&sim, 1, Faults::default(), 8_192, wanted);
    sim.block_on(LONG, async move {
        let (mut client, mut server) = (client.open(), server.open());
        send_all(&mut client, b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2\r\nquestion".to_vec()).await;
        assert_eq!(read_all(&mut server).await, b"question");
        clock::sleep(Duration::from_secs(3)).await;
        send_all(&mut server, b"yes".to_vec()).await;
        read_all(&mut client).await;
    });
    ended(&mut sim, &mail, "finished");
    let lines = LINES.take().unwrap_or_default();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    for part in [
        "listener=sim ",
        "peer=192.0.2.1:1000 ",
        "upstream=app ",
        "server=127.0.0.1:1 ",
        "bytes_up=8 ",
        "bytes_down=3 ",
        "ms=3000 ",
        "reason=\"finished\" ",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
