//! Reloads while every kind of listener carries traffic, on connections that stay and on ones that come: none is
//! refused, none is reset, nothing is lost; and broken files, which change nothing.
//!
//! `PORTWAY_RELOADS=1000 cargo test --test it reload_load -- --nocapture` makes the figures of benches/RESULTS.md; without
//! the variable as many as fit into some seconds.
#![expect(clippy::print_stderr, reason = "figures, for whoever asks for them")]

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use portway::gateway::{Builder, check};
use portway::transports::quic::Connection;

use crate::gateway::{Binary, Client, Neighbour, Running, free, http};
use crate::probe::{SOON, eventually, mesh, now, stop, wait};
use crate::quic_gateway::{Clients, certificate, exchange};
use crate::wireguard_gateway::key_file;

/// Where the listeners are.
struct Places {
    steady: SocketAddr,
    framed: SocketAddr,
    relay: SocketAddr,
    web: SocketAddr,
    quic: SocketAddr,
    udp: SocketAddr,
    moq: SocketAddr,
    tunnel: SocketAddr,
    key: String,
}

impl Places {
    /// The configuration number `n`, in which all but `steady` differ from the one before.
    fn text(&self, n: u64) -> String {
        let limits =
            format!("[listener.limits]\nconnections = {}\nper_source = {}\n", 5_000 + n % 1_000, 5_000 + n % 1_000);
        let listener = |name: &str, at: SocketAddr, rest: &str| {
            format!("[[listener]]\nname = \"{name}\"\nlisten = \"{at}\"\n{rest}{limits}")
        };
        let peer = |n: u8| {
            let key = portway::transports::wireguard::public_key(&crate::wireguard::secret(n));
            let inside = crate::wireguard_gateway::inside(n);
            format!(
                "[[listener.wireguard.peer]]\nname = \"p{n}\"\npublic_key = \"{key}\"\nallowed_ips = [\"{inside}\"]\n"
            )
        };
        // Every other time there is one peer more, and a message may be longer inside the tunnel.
        let more = if n.is_multiple_of(2) { String::new() } else { peer(3) };
        let tunnel = format!(
            "protocol = \"wireguard\"\n[listener.wireguard]\nprivate_key_file = \"{}\"\naddresses = [\"10.98.0.1/16\"]\n\
             mode = \"netstack\"\n{}{more}[[listener.wireguard.service]]\nlisten = \"10.98.0.1:7001\"\n\
             protocol = \"framed\"\nservice = \"echo\"\n",
            self.key,
            peer(2)
        );
        [
            format!(
                "version = 1\n[runtime]\narbiters = 2\ndrain = \"10s\"\nmemory = \"{}MiB\"\n{}",
                1_024 + n % 64,
                certificate()
            ),
            format!("[[upstream]]\nname = \"back\"\nservers = [\"{}\"]\n", self.steady),
            format!("[upstream.limits]\nconnections = {}\n", 1_000 + n % 1_000),
            listener("framed", self.framed, "protocol = \"framed\"\nservice = \"echo\"\n"),
            listener("relay", self.relay, "protocol = \"relay\"\nupstream = \"back\"\n"),
            listener("quic", self.quic, "protocol = \"quic\"\ncertificate = \"local\"\n"),
            "[[listener.route]]\nalpn = \"echo\"\nservice = \"echo\"\n".to_owned(),
            listener("udp", self.udp, "protocol = \"udp\"\nservice = \"echo\"\n"),
            listener("moq", self.moq, "protocol = \"moq\"\ncertificate = \"local\"\n"),
            listener("web", self.web, "protocol = \"http\"\ncertificate = \"local\"\n"),
            format!(
                "[[listener.route]]\npath = \"/\"\nservice = \"respond\"\nstatus = 200\nbody = \"number {n}.\\n\"\n"
            ),
            format!("[[listener]]\nname = \"wg0\"\nlisten = \"{}\"\n{tunnel}", self.tunnel),
            format!("[[listener]]\nname = \"steady\"\nlisten = \"{}\"\n", self.steady),
            "protocol = \"framed\"\nservice = \"echo\"\n".to_owned(),
        ]
        .concat()
    }
}

/// Traffic of one kind, round after round until it is told to end; rounds are counted.
struct Load {
    kind: &'static str,
    rounds: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

fn load(kind: &'static str, stop: &Arc<AtomicBool>, work: impl FnOnce(&dyn Fn() -> bool) + Send + 'static) -> Load {
    let rounds = Arc::new(AtomicU64::new(0));
    let (stop, counted) = (stop.clone(), rounds.clone());
    let thread = std::thread::spawn(move || {
        work(&|| {
            counted.fetch_add(1, Ordering::Relaxed);
            !stop.load(Ordering::Relaxed)
        });
    });
    Load { kind, rounds, thread }
}

/// What curl gets of many requests over one connection.
fn curl(version: &str, web: SocketAddr) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--max-time", "30", version])
        .args(["--write-out", "%{http_code} %{http_version} %{num_connects}\n"])
        .arg(format!("https://{web}/[1-60]"))
        .output()
        .expect("curl is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("number ")).count(), 60, "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("200 ")).count(), 60, "{said}");
    let connects: u32 =
        said.lines().filter(|l| l.starts_with("200 ")).map(|l| l[l.len() - 1..].parse::<u32>().unwrap()).sum();
    assert_eq!(connects, 1, "one connection for all of them: {said}");
}

fn loads(places: &Arc<Places>, stop_now: &Arc<AtomicBool>) -> Vec<Load> {
    let at = |of: fn(&Places) -> SocketAddr| of(places);
    let (framed, relay, web) = (at(|p| p.framed), at(|p| p.relay), at(|p| p.web));
    let (quic, udp, moq, tunnel) = (at(|p| p.quic), at(|p| p.udp), at(|p| p.moq), at(|p| p.tunnel));
    let tcp = |kind, address: SocketAddr| {
        load(kind, stop_now, move |goes_on| {
            let mut kept: Vec<_> = (0..20).map(|_| Neighbour::of(address)).collect();
            while goes_on() {
                kept.iter_mut().for_each(Neighbour::works);
                Neighbour::of(address).works();
            }
        })
    };
    vec![
        tcp("framed", framed),
        tcp("relay", relay),
        load("http/1.1", stop_now, move |goes_on| {
            while goes_on() {
                curl("--http1.1", web);
            }
        }),
        load("http/2", stop_now, move |goes_on| {
            while goes_on() {
                curl("--http2", web);
            }
        }),
        load("http/3", stop_now, move |goes_on| {
            let kept = wait(crate::http3::Client::to(web));
            let asks = |client: &crate::http3::Client| {
                let answer = wait(client.get("/"));
                assert_eq!((answer.last_status(), answer.body.starts_with(b"number ")), (200, true));
            };
            while goes_on() {
                (0..5).for_each(|_| asks(&kept));
                asks(&wait(crate::http3::Client::to(web)));
            }
        }),
        load("quic", stop_now, move |goes_on| {
            let clients = Clients::new();
            let kept = wait(clients.connect(quic, "echo"));
            let body = Bytes::from(vec![7; 30_000]);
            let asks = |connection: &Connection| assert_eq!(wait(exchange(connection, body.clone())), body);
            while goes_on() {
                (0..5).for_each(|_| asks(&kept));
                asks(&wait(clients.connect(quic, "echo")));
            }
        }),
        load("udp", stop_now, move |goes_on| {
            let client = || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(udp).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket
            };
            let asks = |socket: &UdpSocket, number: u64| {
                socket.send(&number.to_be_bytes()).unwrap();
                let mut answer = [0; 16];
                assert_eq!(socket.recv(&mut answer).expect("its echo"), 8);
                assert_eq!(answer[..8], number.to_be_bytes());
            };
            let kept = client();
            let mut number = 0;
            while goes_on() {
                for _ in 0..20 {
                    number += 1;
                    asks(&kept, number);
                }
                asks(&client(), number);
            }
        }),
        load("moq", stop_now, move |goes_on| {
            let clients = Clients::new();
            let mut kept = wait(crate::moq::Flow::begin(&clients, moq, "kept"));
            let mut number = 0;
            while goes_on() {
                (0..5).for_each(|_| wait(kept.works()));
                number += 1;
                let mut fresh = wait(crate::moq::Flow::begin(&clients, moq, &format!("fresh-{number}")));
                wait(fresh.works());
            }
        }),
        load("wireguard", stop_now, move |goes_on| {
            let mesh = mesh(1);
            let site = crate::wireguard_gateway::client(&mesh, 2, tunnel);
            let mut kept = crate::wireguard::echoes(&site.stack, "10.98.0.1:7001", b"first");
            while goes_on() {
                for _ in 0..5 {
                    wait(async {
                        kept.send(b"kept").await.expect("sent");
                        assert_eq!(kept.recv().await.expect("answered").expect("a message"), &b"kept"[..]);
                    });
                }
                drop(crate::wireguard::echoes(&site.stack, "10.98.0.1:7001", b"fresh"));
            }
            drop(kept);
            stop(&mesh);
        }),
    ]
}

#[test]
fn reloads_of_all_listeners_under_load_lose_nothing() {
    let places = Arc::new(Places {
        steady: free(),
        framed: free(),
        relay: free(),
        web: free(),
        quic: free(),
        udp: free(),
        moq: free(),
        tunnel: free(),
        key: key_file(),
    });
    let config = |n| {
        let text = places.text(n);
        check::parse("test.toml", &text, &check::Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)))
    };
    let running = Running::of(Builder::new().start(config(0)).unwrap());
    let stop_now = Arc::new(AtomicBool::new(false));
    let loads = loads(&places, &stop_now);
    let wanted: Option<u64> = std::env::var("PORTWAY_RELOADS").ok().map(|number| number.parse().expect("a number"));
    let (began, mut n) = (now(), 0);
    let round = |load: &Load| load.rounds.load(Ordering::Relaxed);
    eventually("each kind has begun", || loads.iter().all(|load| round(load) >= 1));
    let before: Vec<_> = loads.iter().map(round).collect();
    // Every kind goes through some rounds while reloads go on.
    let enough = |n: u64| match wanted {
        Some(wanted) => n >= wanted,
        None => n >= 40 && loads.iter().zip(&before).all(|(load, before)| round(load) >= before + 3),
    };
    while !enough(n) {
        n += 1;
        let done = running.gateway().reload(config(n)).unwrap();
        assert_eq!((done.kept.as_slice(), done.changed.len()), (&["steady".to_owned()][..], 7), "{done:?}");
        for load in &loads {
            assert!(!load.thread.is_finished(), "{} lost something at reload {n}", load.kind);
        }
        assert!(wanted.is_some() || began.elapsed() < SOON * 6, "{n} reloads");
    }
    let took = began.elapsed();
    stop_now.store(true, Ordering::Relaxed);
    let mut summary = Vec::new();
    for Load { kind, rounds, thread } in loads {
        thread.join().unwrap_or_else(|_| panic!("{kind} lost something"));
        summary.push(format!("{kind} {}", rounds.load(Ordering::Relaxed)));
    }
    eprintln!("{n} reloads in {took:.1?}; rounds: {}", summary.join(", "));
    let totals = running.totals();
    for family in
        ["connections_refused", "quic_connections_refused", "actor_panics", "upstream_failures", "http_failures"]
    {
        assert_eq!(totals.family(family), 0, "{family}");
    }
}

/// Each broken file of the configuration's own tests, over and over, and files that only binding finds wrong.
#[test]
fn broken_files_change_nothing_however_many() {
    let wanted: usize = std::env::var("PORTWAY_RELOADS").map_or(100, |number| number.parse().expect("a number"));
    let (echo, admin) = (free(), free());
    let good = format!(
        "version = 1\n[runtime]\narbiters = 2\n[admin]\nlisten = \"{admin}\"\ntoken = \"{}\"\n\
         [[listener]]\nname = \"echo\"\nlisten = \"{echo}\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
        crate::dashboard::TOKEN
    );
    let mut binary = Binary::start(&good);
    binary.says("running");
    let mut kept = Neighbour::of(echo);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/config/bad");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut broken: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    broken.sort();
    let mut texts: Vec<_> = broken.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let late = format!("{good}[[listener]]\nname = \"late\"\nlisten = \"{}\"\n", taken.local_addr().unwrap());
    texts.push((late + "protocol = \"framed\"\nservice = \"echo\"\n").into_bytes());
    texts.push(good.as_bytes()[..good.len() / 2].to_vec());
    texts.push(vec![0xff; 100]);
    assert!(texts.len() > 40, "{}", texts.len());
    let head =
        format!("Authorization: Bearer {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", crate::dashboard::TOKEN);
    let reload = format!("POST /api/reload HTTP/1.1\r\nHost: {admin}\r\n{head}");
    let mut refused = 0;
    for n in 0..wanted {
        std::fs::write(binary.dir().join("config.toml"), &texts[n % texts.len()]).unwrap();
        let (status, said) = http(admin, &reload);
        assert_eq!(status, 409, "{} {said}", n % texts.len());
        refused += 1;
        if n % 20 == 0 {
            kept.works();
            Client::to(echo).echoes(b"new ones come in");
        }
    }
    kept.works();
    let (_, state) = crate::gateway::get(admin, "/api/config");
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!((&state["applied"], &state["last_reload"]["applied"]), (&1.into(), &false.into()));
    eprintln!("{refused} broken files refused, the old configuration serves");
    binary.rewrite(&good);
    assert_eq!(http(admin, &reload).0, 200);
    kept.works();
}
