//! Tests of the configuration as a whole: fixtures with their expected reports, the shipped file, random input.
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::{Known, load, parse, parse_with};
use crate::gateway::config::*;
use crate::gateway::report::Report;
use crate::transports::wireguard::PeerSettings;

const SHIPPED: &str = include_str!("../../../config.toml");

fn env(name: &str) -> Option<OsString> {
    (name == "PORTWAY_TEST_HOST").then(|| "127.0.0.1".into())
}

fn known() -> Known {
    Known::default().protocol("chat").protocol("shout").protocol("kept")
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn fixtures(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Checks a fixture under a short name, so that expected reports hold no path of a machine.
fn check(path: &Path) -> Result<Config, Report> {
    let text = fs::read_to_string(path).unwrap();
    let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap();
    parse_with(name, &text, &known(), &env)
}

fn good(name: &str) -> Config {
    check(&folder("tests/data/config/good").join(name)).unwrap()
}

/// A listener in front of `rest`.
fn with(rest: &str) -> String {
    format!(
        "version = 1\n[[listener]]\nname = \"a\"\nlisten = \"[::1]:1\"\nprotocol = \"framed\"\nservice = \"echo\"\n{rest}"
    )
}

#[test]
fn bad_fixtures_give_their_reports() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1");
    let mut wrong = Vec::new();
    for path in fixtures("tests/data/config/bad") {
        let report = check(&path).expect_err(&path.display().to_string()).to_string();
        let expected = path.with_extension("txt");
        if update {
            fs::write(&expected, &report).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != report {
            wrong.push(format!("{} differs; now:\n{report}", expected.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\nUPDATE_EXPECT=1 rewrites them", wrong.join("\n"));
}

#[test]
fn seven_mistakes_are_seven_diagnostics() {
    let report = check(&folder("tests/data/config/bad/seven.toml")).unwrap_err();
    let lines: Vec<_> = report.diagnostics().iter().map(|d| d.place().unwrap().line).collect();
    assert_eq!(lines, [5, 8, 12, 17, 18, 19, 22]);
}

#[test]
fn no_report_holds_a_secret() {
    for path in fixtures("tests/data/config/bad") {
        let report = check(&path).unwrap_err();
        for text in [report.render(false), report.render(true), format!("{report:?}")] {
            assert!(!text.contains("hunter"), "{}:\n{text}", path.display());
        }
    }
}

#[test]
fn good_fixtures_and_examples_have_no_mistakes() {
    for path in fixtures("tests/data/config/good").into_iter().chain(fixtures("examples/configs")) {
        check(&path).unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn every_key_reaches_the_checked_configuration() {
    let config = good("every_key.toml");
    let runtime = &config.runtime;
    assert_eq!(runtime.arbiters.unwrap().get(), 2);
    assert!(runtime.pin_cores);
    assert_eq!(runtime.memory, Some(256 << 20));
    assert_eq!(runtime.drain, Duration::ZERO);
    let admin = config.admin.unwrap();
    assert_eq!(admin.listen.to_string(), "[::1]:9180");
    assert_eq!(admin.place.to_string(), "tests/data/config/good/every_key.toml:11:10");
    assert_eq!(config.log, Log { level: Level::Debug, format: LogFormat::Json });
    let [listener, relay] = config.listeners.as_slice() else { panic!("two listeners") };
    assert_eq!(listener.name, "little.endian_1-2");
    assert_eq!((listener.place.line, listener.place.column), (19, 10));
    let limits = Limits {
        connections: 100,
        per_source: 5,
        half_open: 10,
        first_message: Duration::from_millis(1500),
        idle: Duration::ZERO,
    };
    assert_eq!(listener.limits, limits);
    let framed = Framed {
        service: FramedService::Echo,
        upstream: None,
        length_bytes: 2,
        byte_order: ByteOrder::Little,
        length_includes_header: true,
        max_message: 65_533,
        message_timeout: Duration::from_secs(60),
        outbound: 128 << 10,
        when_slow: WhenSlow::DropOldest,
        slow_after: Duration::from_secs(3600),
    };
    assert_eq!(listener.protocol, Protocol::Framed(framed));
    let expected = Relay { proxy_in: true, proxy_out: ProxyOut::V2, attempts: 1, ..Relay::new("app") };
    assert_eq!((relay.name.as_str(), &relay.protocol), ("ssh", &Protocol::Relay(expected)));
    let upstream = Upstream {
        name: "app".to_owned(),
        servers: vec![
            Server::Tcp("127.0.0.1:9000".parse().unwrap()),
            Server::Tcp("[::1]:9000".parse().unwrap()),
            Server::Name { host: "app.example".to_owned(), port: 9000 },
            Server::Unix("/run/app.sock".into()),
        ],
        via: None,
        balance: Balance::LeastConnections,
        resolve: Duration::from_secs(60),
        limits: UpstreamLimits { connections: 50, connect_timeout: Duration::from_millis(250) },
        health: Health {
            path: "/".to_owned(),
            eject_after: 0,
            eject_for: Duration::from_secs(1),
            check: Check::Tcp,
            interval: Duration::from_secs(2),
            timeout: Duration::from_millis(100),
            healthy_after: 1,
            unhealthy_after: 5,
            slow_start: None,
        },
        http: UpstreamHttp::default(),
        tls: None,
    };
    assert_eq!(config.upstreams, [upstream]);
}

#[test]
#[cfg(feature = "quic")]
fn every_key_of_quic_reaches_the_checked_configuration() {
    let config = good("quic.toml");
    let here = |file: &str| folder("tests/data/config/good").join(file);
    // The fixture is checked under a relative name.
    let file = |file: &str| Path::new("tests/data/config/good").join(file);
    assert!(here("../../tls/good.pem").exists());
    let [files, made] = config.certificates.as_slice() else { panic!("two certificates") };
    let source = CertificateSource::Files { cert: file("../../tls/good.pem"), key: file("../../tls/good-key.pem") };
    assert_eq!((files.name.as_str(), &files.source, files.place.line), ("files", &source, 6));
    let names = ["localhost", "*.example.org", "127.0.0.1", "::1"].map(String::from).to_vec();
    assert_eq!((made.name.as_str(), &made.source), ("made", &CertificateSource::Generated(names)));
    let [site, own, names] = config.upstreams.as_slice() else { panic!("three upstreams") };
    let quic = |host, port| Server::Quic { host, port };
    assert_eq!(
        site.servers,
        [quic(Host::Name("site.example".into()), 4433), quic(Host::Address("::1".parse().unwrap()), 4434)]
    );
    let tls = UpstreamTls {
        ca: Some(file("../../tls/good.pem")),
        trust: None,
        name: Some("inner.example".into()),
        alpn: "tunnel".into(),
        certificate: Some("made".into()),
        curves: vec!["X25519MLKEM768".into()],
        keylog: Some(file("out.keys")),
        qlog: None,
    };
    assert_eq!(site.tls.as_ref(), Some(&tls));
    let tls = UpstreamTls { trust: Some("made".into()), ..UpstreamTls::new("echo") };
    assert_eq!(own.tls, Some(tls));
    let udp = |host| Server::Udp { host, port: 53 };
    let local = Host::Address("127.0.0.1".parse().unwrap());
    assert_eq!(names.servers, [udp(local), udp(Host::Name("dns.example".into()))]);
    let [q, tcp] = config.listeners.as_slice() else { panic!("two listeners") };
    assert_eq!(tcp.protocol, Protocol::Relay(Relay::new("site")));
    let route = |alpn: &str, service, datagrams: Option<&str>| Route {
        alpn: alpn.into(),
        service,
        datagrams: datagrams.map(String::from),
    };
    let expected = Quic {
        moq: None,
        tls: ListenerTls {
            certificates: vec!["files".into(), "made".into()],
            client_ca: Some(file("../../tls/good.pem")),
            curves: vec!["X25519".into(), "P-256".into()],
            keylog: Some(file("in.keys")),
        },
        routes: vec![
            route("echo", QuicService::Echo, None),
            route("site", QuicService::Upstream("site".into()), None),
            route("dns", QuicService::Nothing, Some("names")),
        ],
        settings: QuicSettings {
            idle_timeout: Duration::from_secs(10),
            streams: 7,
            uni_streams: 0,
            stream_window: 64 << 10,
            connection_window: 128 << 10,
            congestion: Congestion::Bbr2,
            retry: Retry::Always,
            secret_file: Some(file("quic.secret")),
            migration: false,
            max_datagram: 1_452,
            mtu_discovery: true,
            gso: false,
            steer: false,
            socket_buffer: 1 << 20,
            qlog: None,
        },
    };
    assert_eq!(q.protocol, Protocol::Quic(expected));
}

#[test]
fn every_key_of_udp_reaches_the_checked_configuration() {
    let config = good("udp.toml");
    let [dns, echo] = config.listeners.as_slice() else { panic!("two listeners") };
    let expected = Udp {
        upstream: Some("servers".to_owned()),
        idle: Duration::from_secs(5),
        idle_answered: Duration::from_secs(600),
        max_datagram: 1_232,
        packets_per_second: Some(100),
        bytes_per_second: Some(64 << 10),
        proxy_out: true,
        gso: false,
        socket_buffer: 1 << 20,
    };
    assert_eq!((dns.limits.connections, &dns.protocol), (50, &Protocol::Udp(expected)));
    assert_eq!(echo.protocol, Protocol::Udp(Udp::default()));
    assert_eq!(config.upstreams[0].balance, Balance::Hash);
}

#[test]
fn upstreams_need_little_and_may_be_idle_or_shared() {
    let config = good("upstreams.toml");
    let relays: Vec<_> = config.listeners.iter().map(|listener| listener.protocol.clone()).collect();
    assert_eq!(relays, ["app", "app", "127.0.0.1"].map(|name| Protocol::Relay(Relay::new(name))));
    let [app, outside, spare] = config.upstreams.as_slice() else { panic!("three upstreams") };
    let localhost = Server::Name { host: "localhost".to_owned(), port: 9000 };
    assert_eq!(*app, Upstream { balance: Balance::RandomOfTwo, ..Upstream::new("app", vec![localhost]) });
    assert_eq!(outside.servers, [Server::Tcp("127.0.0.1:9000".parse().unwrap())]);
    assert_eq!(spare.health, Health { eject_after: 1, ..Health::default() });
}

#[test]
fn defaults_follow_what_they_depend_on() {
    let config = good("shapes.toml");
    assert_eq!((config.runtime.arbiters, config.runtime.memory), (None, Some(1 << 30)));
    let [a, b] = config.listeners.as_slice() else { panic!("two listeners") };
    assert_eq!((a.limits.connections, a.limits.per_source), (1000, 1000));
    assert_eq!(a.protocol, Protocol::Framed(Framed { length_bytes: 1, max_message: 255, ..Framed::default() }));
    assert_eq!((&b.limits, &b.protocol), (&Limits::default(), &Protocol::Framed(Framed::default())));
}

#[test]
fn references_are_expanded() {
    let config = good("references.toml");
    assert!(config.runtime.pin_cores);
    let [listener] = config.listeners.as_slice() else { panic!("one listener") };
    assert_eq!(listener.listen.to_string(), "127.0.0.1:7001");
    assert_eq!(listener.limits.connections, 77);
    let Protocol::Custom { protocol, options } = &listener.protocol else { panic!("a custom protocol") };
    assert_eq!(protocol, "chat");
    assert_eq!(options["banner"].as_str(), Some("Welcome aboard."));
    assert_eq!(options["literal"].as_str(), Some("${NAME} costs $5"));
    assert_eq!(options["nested"]["list"].as_array().unwrap().len(), 5);
    assert!(!format!("{config:?}").contains("Welcome"), "options may be secrets");
}

#[test]
fn a_registered_protocol_is_known_and_replaces_none_that_is_built_in() {
    let text = "version = 1\n[[listener]]\nname = \"a\"\nlisten = \"[::1]:1\"\nprotocol = \"mqtt\"\n";
    assert!(parse("c.toml", text, &Known::default()).is_err());
    let config = parse("c.toml", text, &Known::default().protocol("mqtt").protocol("framed")).unwrap();
    assert!(matches!(&config.listeners[0].protocol, Protocol::Custom { protocol, .. } if protocol == "mqtt"));
    let config = parse("c.toml", &with(""), &Known::default().protocol("framed").protocol("relay")).unwrap();
    assert!(matches!(config.listeners[0].protocol, Protocol::Framed(_)));
}

/// The shipped file with commented keys switched on: those of the tables that are on, or of `all` tables.
fn uncommented(all: bool) -> String {
    let mut on = true;
    let line = |line: &str| {
        let starts = |c: fn(char) -> bool| line.strip_prefix('#').filter(|rest| rest.starts_with(c));
        if line.starts_with('[') || starts(|c| c == '[').is_some() {
            on = all || line.starts_with('[');
        }
        let rest = starts(|c| c.is_ascii_lowercase() || c == '[').filter(|_| on);
        rest.unwrap_or(line).to_owned()
    };
    SHIPPED.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_states_the_defaults() {
    let shipped = parse("config.toml", SHIPPED, &Known::default()).unwrap();
    let uncommented_keys = parse("config.toml", &uncommented(false), &Known::default()).unwrap();
    // A comment sign takes one column away, never from a line that has a place.
    assert_eq!(shipped, uncommented_keys);
    assert_eq!((&shipped.runtime, &shipped.log), (&Runtime::default(), &Log::default()));
    assert_eq!(shipped.admin.as_ref().unwrap().listen.to_string(), "127.0.0.1:9180");
    assert_eq!(shipped.upstreams, []);
    let [echo, web, wg0, on, moq] = shipped.listeners.as_slice() else { panic!("five listeners") };
    let Protocol::Quic(relay) = &moq.protocol else { panic!("a relay") };
    assert_eq!((moq.name.as_str(), relay.moq.as_deref()), ("moq", Some(&Moq::default())));
    let Protocol::Quic(Quic { tls, routes, settings, moq: _ }) = &on.protocol else { panic!("over QUIC") };
    assert_eq!((on.listen.to_string().as_str(), settings), ("127.0.0.1:4433", &QuicSettings::default()));
    assert_eq!(*tls, ListenerTls { certificates: vec!["local".to_owned()], ..ListenerTls::default() });
    assert!(matches!(routes.as_slice(), [Route { service: QuicService::Echo, datagrams: None, .. }]));
    assert_eq!((echo.name.as_str(), echo.listen.to_string().as_str()), ("echo", "127.0.0.1:7001"));
    assert_eq!((&echo.limits, &echo.protocol), (&Limits::default(), &Protocol::Framed(Framed::default())));

    #[cfg(feature = "http")]
    {
        let Protocol::Http(http) = &web.protocol else { panic!("HTTP") };
        assert_eq!((&web.limits, &http.settings), (&Limits::default(), &HttpSettings::default()));
        assert_eq!((http.routes.len(), &http.routes[0].action), (1, &HttpAction::Demo));
    }
    let Protocol::Wireguard(tunnel) = &wg0.protocol else { panic!("a tunnel") };
    let expected = Wireguard {
        addresses: vec![("10.98.0.1".parse().unwrap(), "10.98.0.0/24".parse().unwrap())],
        services: tunnel.services.clone(),
        ..Wireguard::default()
    };
    assert_eq!((wg0.name.as_str(), &**tunnel), ("wg0", &expected));

    let all = parse("config.toml", &uncommented(true), &Known::default()).unwrap();
    let [app, datagrams, site] = all.upstreams.as_slice() else { panic!("three upstreams") };
    assert_eq!(*app, Upstream::new("app", vec![Server::Tcp("127.0.0.1:9000".parse().unwrap())]));
    let udp = Server::Udp { host: Host::Address("127.0.0.1".parse().unwrap()), port: 9001 };
    assert_eq!(*datagrams, Upstream::new("datagrams", vec![udp]));
    assert!(site.tls.is_some());
    let [first, second, tunnel, relay, udp, quic, moq] = all.listeners.as_slice() else { panic!("seven listeners") };
    let Protocol::Quic(Quic { moq: Some(moq), .. }) = &moq.protocol else { panic!("a relay") };
    assert_eq!((moq.scopes.len(), moq.tokens.len()), (1, 1));
    assert_eq!((first, second), (echo, web));
    let Protocol::Wireguard(peers) = &tunnel.protocol else { panic!("a tunnel") };
    let mut settings = PeerSettings::new(peers.peers[0].settings.public_key, vec!["10.98.0.2".parse().unwrap()]);
    settings.name = Some("phone".into());
    assert_eq!(peers.peers, [Peer { settings, endpoint_name: None }]);
    assert_eq!((relay.name.as_str(), &relay.protocol), ("relay", &Protocol::Relay(Relay::new("app"))));
    assert_eq!((udp.name.as_str(), &udp.protocol), ("dns", &Protocol::Udp(Udp::new("datagrams"))));
    let Protocol::Quic(Quic { tls, routes, settings, moq: _ }) = &quic.protocol else { panic!("over QUIC") };
    assert_eq!((routes.len(), settings), (2, &QuicSettings::default()));
    let own = site.tls.as_ref().map(|tls| &tls.curves);
    assert_eq!((&tls.curves, own), (&ListenerTls::default().curves, Some(&tls.curves)));
    #[cfg(feature = "tls")]
    assert_eq!(crate::transports::tls::Curves::new(tls.curves.clone()).unwrap(), Default::default());
}

#[test]
fn the_shipped_file_has_every_key() {
    let document: toml::Table = uncommented(true).parse().unwrap();
    let has = |table: &toml::Value, inner: Option<&str>, key: &str| match inner {
        Some(inner) => {
            // Two levels at most: a table, and lists of tables within.
            let (first, then) = inner.split_once('.').map_or((inner, None), |(first, then)| (first, Some(then)));
            let table = table.get(first);
            let table = then.map_or(table, |then| table.and_then(|table| table.get(then)));
            table.is_some_and(|table| match table.as_array() {
                Some(tables) => tables.iter().any(|table| table.get(key).is_some()),
                None => table.get(key).is_some(),
            })
        }
        None => table.get(key).is_some(),
    };
    for (name, keys) in crate::gateway::raw::TABLES {
        let path = name.trim_matches(['[', ']']);
        let (outer, inner) = path.split_once('.').map_or((path, None), |(outer, inner)| (outer, Some(inner)));
        for key in keys.iter().filter(|key| **key != "options") {
            // Those that need a file, or exclude another key, stand in comments.
            if SHIPPED.contains(&format!("\n# {key} = ")) {
                continue;
            }
            let table = &document[outer];
            let found = match table.as_array() {
                Some(tables) => tables.iter().any(|table| has(table, inner, key)),
                None => has(table, inner, key),
            };
            assert!(found, "{key} of {name}");
        }
    }
}

#[test]
fn every_listed_key_is_read() {
    // No key takes a date, so each must be complained about.
    for (name, keys) in crate::gateway::raw::TABLES {
        let body: String = keys.iter().map(|key| format!("{key} = 2026-01-01\n")).collect();
        let text = match name {
            "[listener.relay]" => {
                with(&format!("{name}\n{body}")).replace("\"framed\"\nservice", "\"relay\"\nupstream")
            }
            "[listener.tls]" | "[[listener.route]]" | "[listener.quic]" => {
                let route = "[[listener.route]]\nalpn = \"a\"\nservice = \"echo\"\n";
                let route = if name == "[[listener.route]]" { "" } else { route };
                let quic = with(&format!("{route}{name}\n{body}"));
                quic.replace("\"framed\"\nservice", "\"quic\"\ncertificate")
            }
            "[listener.udp]" => with(&format!("{name}\n{body}")).replace("\"framed\"", "\"udp\""),
            "[listener.http]" => {
                let route = "[[listener.route]]\nservice = \"demo\"\n";
                with(&format!("{route}{name}\n{body}")).replace("\"framed\"\nservice = \"echo\"", "\"http\"")
            }
            name if name.contains("listener.wireguard") => {
                let key = "[listener.wireguard]\ngenerate_key = true\naddresses = [\"10.0.0.1/8\"]\n";
                let key = if name == "[listener.wireguard]" { "" } else { key };
                with(&format!("{key}{name}\n{body}")).replace("\"framed\"\nservice = \"echo\"", "\"wireguard\"")
            }
            name if name.contains("listener.moq") => {
                with(&format!("{name}\n{body}")).replace("\"framed\"\nservice", "\"moq\"\ncertificate")
            }
            name if name.starts_with("[listener.") => with(&format!("{name}\n{body}")),
            name if name.starts_with("[upstream.") => {
                format!("version = 1\n[[upstream]]\nname = \"a\"\nservers = [\"[::1]:1\"]\n{name}\n{body}")
            }
            name => format!("version = 1\n{name}\n{body}"),
        };
        let report = parse("c.toml", &text, &Known::default()).unwrap_err();
        // Nobody is called `echo`: no upstream, no certificate.
        let names_echo = ["[listener.relay]", "[listener.tls]", "[[listener.route]]", "[listener.quic]"];
        let names_echo = names_echo.contains(&name) || name.contains("listener.moq");
        let expected = keys.len() + usize::from(names_echo);
        assert_eq!(report.count(), expected, "{name}: {report}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_report() {
    let report = load(Path::new("no/such/file.toml"), &Known::default()).unwrap_err();
    assert!(report.to_string().contains("cannot read no/such/file.toml: no such file"), "{report}");
    assert!(report.diagnostics()[0].place().is_none());
    let report = load(&folder("src"), &Known::default()).unwrap_err();
    assert!(report.to_string().contains("cannot read"), "{report}");
}

#[test]
fn too_large_or_not_text_is_a_report() {
    let path = std::env::temp_dir().join(format!("portway-check-{}.toml", std::process::id()));
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let large = load(&path, &Known::default()).unwrap_err().to_string();
    fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
    let fits = load(&path, &Known::default()).unwrap_err().to_string();
    fs::write(&path, b"version = 1\nname = \"\xff\"").unwrap();
    let bytes = load(&path, &Known::default()).unwrap_err().to_string();
    fs::remove_file(&path).unwrap();
    assert!(large.contains("is larger than 1MiB"), "{large}");
    assert!(fits.contains("lacks `version`"), "{fits}");
    assert!(bytes.contains(".toml:2:9 is not UTF-8"), "{bytes}");
}

#[test]
fn very_many_mistakes_are_cut_and_counted() {
    let keys: String = (0..10_001).map(|i| format!("zzz{i} = 1\n")).collect();
    let report = parse("c.toml", &format!("version = 1\n{keys}"), &Known::default()).unwrap_err();
    assert_eq!((report.diagnostics().len(), report.count()), (100, 10_001));
    let text = report.render(false);
    assert!(text.ends_with("… and 9901 more\n10001 mistakes in c.toml\n"), "{}", &text[text.len() - 100..]);
    // All on one line of half a megabyte: still quick, each with its column.
    let keys: Vec<String> =
        (10_000..20_000).map(|i| format!("{i}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx = 1")).collect();
    let text = format!("version = 1\nruntime = {{ {} }}\n", keys.join(", "));
    let report = parse("c.toml", &text, &Known::default()).unwrap_err();
    assert_eq!(report.diagnostics().len(), 10_000);
    assert_eq!(
        report.diagnostics()[9_999].place().unwrap().column,
        text.lines().nth(1).unwrap().find("19999x").unwrap() + 1
    );
    assert!(report.render(false).ends_with("10000 mistakes in c.toml\n"));
}

fn never_panics(text: &str) {
    if let Err(report) = parse_with("c.toml", text, &known(), &env) {
        assert!(report.count() > 0);
        let shown = report.diagnostics().iter().take(20).all(|d| d.place().is_some_and(|p| p.line > 0 && p.column > 0));
        assert!(shown);
        assert!(report.count() > 200 || !report.render(true).is_empty());
    }
}

/// What a slip of the hand puts into a file.
fn paste() -> impl Strategy<Value = String> {
    prop_oneof![
        "[\\[\\]{}\"'=.,#\n\t \\\\0-9a-z$:-]{0,12}",
        Just("\"${PORTWAY_TEST_HOST}".to_owned()),
        Just("\u{feff}\u{1b}[31m é中\u{202e}".to_owned()),
        Just("\"\"\"\r\n".to_owned()),
        Just("'".repeat(3)),
        Just("= 99999999999999999999 #".to_owned()),
    ]
}

proptest! {
    #[test]
    fn a_secret_survives_no_damage_around_it(at in any::<prop::sample::Index>(), cut in 0..4_usize, paste in paste()) {
        let secret = "api_key = \"hunter2\"\n";
        let text = with(&format!("[listener.options]\n{secret}other = [\"x\", 1]\n"));
        let from = text.find(secret).unwrap();
        let mut at = at.index(text.len() - secret.len());
        if at + cut > from {
            at += secret.len() + cut;
        }
        let mut text: Vec<char> = text.chars().collect();
        text.splice(at.min(text.len())..(at + cut).min(text.len()), paste.chars());
        let text: String = text.into_iter().collect();
        if let Err(report) = parse_with("c.toml", &text, &known(), &env) {
            prop_assert!(!format!("{report} {report:?}").contains("hunter2"), "{text}\n{report}");
        }
    }

    #[test]
    fn any_text_gives_a_report_or_a_configuration(text in "(?s).{0,200}") {
        never_panics(&text);
    }

    #[test]
    fn any_bytes_give_a_report_or_a_configuration(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        never_panics(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_damage_to_a_good_file_is_survived(
        from in 0..5_usize,
        at in any::<prop::sample::Index>(),
        cut in 0..40_usize,
        paste in paste(),
    ) {
        let names = ["every_key.toml", "shapes.toml", "references.toml", "least.toml", "upstreams.toml"];
        let text = fs::read_to_string(folder("tests/data/config/good").join(names[from])).unwrap();
        let mut text: Vec<char> = text.chars().collect();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, paste.chars());
        never_panics(&text.into_iter().collect::<String>());
    }
}

/// What is doubtful about the interfaces of `text`, read from a folder with a key file and a wg-quick file.
fn warnings(text: &str, conf: &str) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;

    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("portway-warnings-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    for (name, text) in [("wg0.key", key.to_owned()), ("wg0.conf", format!("[Interface]\nPrivateKey = {key}\n{conf}"))]
    {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let name = folder.join("test.toml").display().to_string();
    let config = parse(&name, text, &known()).unwrap_or_else(|report| panic!("{report}"));
    let of = |listener: &Listener| {
        let Protocol::Wireguard(wireguard) = &listener.protocol else { panic!("{:?}", listener.protocol) };
        wireguard.warnings.clone()
    };
    let found = config.listeners.iter().flat_map(of);
    let found = found.map(|text| text.replace(&folder.display().to_string(), ".")).collect();
    fs::remove_dir_all(folder).unwrap();
    found
}

fn interface(name: &str, rest: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nlisten = \"[::1]:0\"\nprotocol = \"wireguard\"\n[listener.wireguard]\n{rest}\n"
    )
}

#[test]
fn what_is_doubtful_about_tunnels_is_said() {
    let one = |rest: &str| warnings(&format!("version = 1\n{}", interface("wg0", rest)), "");
    let hub = "private_key_file = \"wg0.key\"\naddresses = [\"10.98.0.1/24\"]\n";
    let peer = |rest: &str| {
        one(&format!(
            "{hub}[[listener.wireguard.peer]]\npublic_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n{rest}"
        ))
    };
    assert!(one(hub).is_empty() && peer("allowed_ips = [\"10.98.0.2/32\", \"0.0.0.0/0\"]").is_empty());
    assert!(peer("allowed_ips = [\"10.98.0.2\"]\nkeepalive = \"25s\"\nexpires = \"2999-01-01\"").is_empty());
    assert_eq!(peer("allowed_ips = [\"10.98.0.2/24\"]"), ["`10.98.0.2/24` in `allowed_ips` counts as 10.98.0.0/24"]);
    assert_eq!(
        peer("allowed_ips = [\"10.98.0.2\"]\nexpires = \"2020-01-01\""),
        ["peer xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= has expired: it is refused"]
    );
    assert_eq!(
        peer("name = \"old\"\nallowed_ips = [\"10.98.0.2\"]\nexpires = \"2020-01-01\""),
        ["peer `old` has expired: it is refused"]
    );
    assert_eq!(
        one(&format!("{hub}forward = [\"10.98.0.128/25\", \"10.0.0.0/8\"]")),
        ["`forward` names 10.98.0.128/25, which is inside the tunnel: its peers are there"]
    );
    assert_eq!(
        one("generate_key = true\naddresses = [\"10.98.0.1/24\", \"10.98.0.2/16\", \"10.99.0.0/31\"]"),
        ["the networks of two `addresses` overlap: 10.98.0.0/24 and 10.98.0.0/16"]
    );
    assert_eq!(
        one(&format!("{hub}uapi = \"sockets\"")),
        ["there is no folder ./sockets: `wg` is not served without it"]
    );
    assert_eq!(one(&format!("{hub}uapi = \".\"")), Vec::<String>::new());
}

#[test]
fn interfaces_of_the_host_are_told_apart() {
    let two = |mode: &str| {
        let rest = format!("generate_key = true\naddresses = [\"10.98.0.1/24\"]\nmode = \"{mode}\"");
        warnings(&format!("version = 1\n{}{}", interface("one", &rest), interface("two", &rest)), "")
    };
    assert_eq!(two("tun"), ["10.98.0.1 is an address of `one` as well, on the same host"]);
    assert!(two("netstack").is_empty(), "each has a network of its own");
}

#[test]
fn what_of_a_wg_quick_file_is_not_obeyed_is_said() {
    let conf = |mode: &str, conf: &str| {
        let rest = format!("conf = \"wg0.conf\"\nmode = \"{mode}\"");
        warnings(&format!("version = 1\n{}", interface("wg0", &rest)), conf)
    };
    let address = "Address = 10.98.0.1/24\n";
    assert!(conf("tun", &format!("{address}ListenPort = 0\nFwMark = off\nTable = auto")).is_empty());
    assert_eq!(
        conf("tun", &format!("{address}ListenPort = 51820\nFwMark = 0x10\nDNS = 10.98.0.1\nTable = off")),
        [
            "./wg0.conf: line 6: DNS is not obeyed",
            "ListenPort = 51820 is not obeyed: `listen` says 0",
            "FwMark = 16 is not obeyed: `wg set` gives a running interface one",
            "Table = off is not obeyed: in mode `tun` the networks of peers get routes",
        ]
    );
    assert_eq!(conf("tun", &format!("{address}Table = 7")), ["./wg0.conf: line 4: Table: routes go to the main table"]);
    assert!(conf("netstack", &format!("{address}Table = off")).is_empty(), "there are no routes to make");
    assert_eq!(
        conf("netstack", "Address = 10.98.0.0/24\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="),
        [
            "Address = 10.98.0.0/24 is the network's, not a host's",
            "peer xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= has no AllowedIPs: nothing it sends passes",
        ]
    );
}
