//! WireGuard through the gateway: what a configuration makes, what a reload changes, what is shown.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use portway::actors::{Mail, Mesh};
use portway::gateway::check;
use portway::transports::netstack::{NetMsg, Via, connect};
use portway::transports::relay::{Dial, Wire};
use portway::transports::wireguard::{PeerSettings, public_key};

use crate::gateway::{Binary, Client, Running, free, get, temp_dir};
use crate::private_network::Unprivileged;
use crate::probe::{SOON, eventually, mesh, now, stop, view, wait};
use crate::wireguard::{Mode, Plan, Site, echoes, in_both, peer, secret};

/// A gateway with key 1 and these peers by number: peer n is 10.98.(n / 250).(n % 250 + 2).
pub(crate) struct Text {
    peers: Vec<u8>,
    mode: Mode,
    more: String,
}

pub(crate) fn inside(n: u8) -> String {
    format!("10.98.1.{n}")
}

impl Text {
    pub(crate) fn new(mode: Mode, peers: impl IntoIterator<Item = u8>) -> Self {
        Self { peers: peers.into_iter().collect(), mode, more: String::new() }
    }

    pub(crate) fn with(self, more: &str) -> Self {
        Self { more: self.more + more, ..self }
    }

    pub(crate) fn write(&self, listen: &str, key_file: &str) -> String {
        let mut text = format!(
            "version = 1\n[runtime]\narbiters = 2\n[[listener]]\nname = \"wg0\"\nlisten = \"{listen}\"\n\
             protocol = \"wireguard\"\n[listener.wireguard]\nprivate_key_file = \"{key_file}\"\n\
             addresses = [\"10.98.0.1/16\"]\nmode = \"netstack\"\nthreading = \"{}\"\n",
            self.mode.word()
        );
        for n in &self.peers {
            write!(
                text,
                "[[listener.wireguard.peer]]\nname = \"p{n}\"\npublic_key = \"{}\"\nallowed_ips = [\"{}\"]\nmetrics = true\n",
                public_key(&secret(*n)),
                inside(*n)
            )
            .unwrap();
        }
        text + "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:7001\"\nprotocol = \"framed\"\nservice = \"echo\"\n"
            + &self.more
    }
}

pub(crate) fn key_file() -> String {
    key_file_of(1)
}

fn key_file_of(n: u8) -> String {
    let path = temp_dir().join("wg0.key");
    std::fs::write(&path, &*secret(n).to_base64()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// A client of the gateway, on a mesh of its own.
pub(crate) fn client(mesh: &Mesh, n: u8, to: std::net::SocketAddr) -> Site {
    let server = PeerSettings { endpoint: Some(to), ..peer(1, "10.98.0.0/16") };
    Plan::new("client", n, &format!("{}/16", inside(n))).start(mesh, vec![server])
}

fn sessions(running: &Running) -> BTreeSet<u64> {
    view(running.gateway().mesh()).of_kind("wireguard_peer").map(|actor| actor.id.number()).collect()
}

#[test]
fn fifty_sessions_are_fifty_pinned_actors_and_then_none() {
    in_both(|mode| {
        let key = key_file();
        let text = |peers: std::ops::Range<u8>| Text::new(mode, peers).write("127.0.0.1:0", &key);
        let running = Running::start(&text(10..60));
        let address = running.address("wg0");
        let clients_mesh = mesh(2);
        let clients: Vec<_> = (10..60).map(|n| client(&clients_mesh, n, address)).collect();
        let mut homes = None;
        for round in 1..=3u64 {
            for client in &clients {
                echoes(&client.stack, "10.98.0.1:7001", b"turn");
            }
            let seen = view(running.gateway().mesh());
            let actors: Vec<_> = seen.of_kind("wireguard_peer").collect();
            assert_eq!(actors.len(), 50);
            assert!(actors.iter().all(|actor| actor.turns >= round), "each has turns");
            let now: BTreeSet<_> = actors.iter().map(|actor| (actor.id, actor.arbiter)).collect();
            assert_eq!(homes.get_or_insert_with(|| now.clone()), &now, "nobody moves");
        }
        let mut none = check::parse("test.toml", &text(10..10), &check::Known::default()).unwrap();
        none.listeners[0].listen = "127.0.0.1:0".parse().unwrap();
        running.gateway().reload(none).unwrap();
        eventually("no session is left", || sessions(&running).is_empty());
        stop(&clients_mesh);
    });
}

#[test]
fn a_reload_takes_one_peer_out_and_leaves_the_other_as_it_was() {
    in_both(|mode| {
        let key = key_file();
        let running = Running::start(&Text::new(mode, [10, 11]).write("127.0.0.1:0", &key));
        let address = running.address("wg0");
        let clients_mesh = mesh(2);
        let [stays, goes] = [10, 11].map(|n| client(&clients_mesh, n, address));
        let mut kept = echoes(&stays.stack, "10.98.0.1:7001", b"before");
        echoes(&goes.stack, "10.98.0.1:7001", b"before");
        let before = sessions(&running);
        let text = Text::new(mode, [10, 12]).write("127.0.0.1:0", &key);
        let done =
            running.gateway().reload(check::parse("test.toml", &text, &check::Known::default()).unwrap()).unwrap();
        assert_eq!((done.changed.as_slice(), done.kept.len()), (&["wg0".to_owned()][..], 0));
        eventually("one has ended", || sessions(&running).len() == 1);
        assert!(sessions(&running).is_subset(&before));
        wait(async {
            kept.send(b"after").await.unwrap();
            assert_eq!(kept.recv().await.unwrap().unwrap(), &b"after"[..]);
        });
        let new = client(&clients_mesh, 12, address);
        echoes(&new.stack, "10.98.0.1:7001", b"hello");
        let same =
            running.gateway().reload(check::parse("test.toml", &text, &check::Known::default()).unwrap()).unwrap();
        assert_eq!((same.kept, same.changed), (vec!["wg0".to_owned()], vec![]));
        // A service more, for those who are connected already.
        let more = Text::new(mode, [10, 12]).with(
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:7009\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
        );
        let more = check::parse("test.toml", &more.write("127.0.0.1:0", &key), &check::Known::default()).unwrap();
        running.gateway().reload(more).unwrap();
        echoes(&new.stack, "10.98.0.1:7009", b"there as well");
        assert_eq!(view(running.gateway().mesh()).totals.get("wireguard_handshakes", "wg0", ""), 3);
        stop(&clients_mesh);
    });
}

#[test]
fn a_service_relays_to_an_upstream_and_the_state_is_shown() {
    in_both(|mode| {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in server.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    stream.write_all(&all).unwrap();
                });
            }
        });
        let admin = free();
        let more = format!(
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
         [[upstream]]\nname = \"app\"\nservers = [\"{upstream}\"]\n[admin]\nlisten = \"{admin}\"\n"
        );
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let clients_mesh = mesh(1);
        let client = client(&clients_mesh, 10, running.address("wg0"));
        let stack = client.stack;
        let body = vec![9u8; 300_000];
        let sent = body.clone();
        let got = wait(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let stream = connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON).await.expect("it connects");
            let (mut read, mut write) = tokio::io::split(stream);
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            all
        });
        assert_eq!(got.len(), body.len());
        let (status, page) = get(admin, "/api/wireguard");
        assert_eq!(status, 200);
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        let row = &page[0];
        assert_eq!((row["name"].as_str(), row["mode"].as_str()), (Some("wg0"), Some("netstack")));
        assert_eq!(row["public_key"].as_str(), Some(public_key(&secret(1)).to_string().as_str()));
        let known = &row["peers"][0];
        assert_eq!((known["name"].as_str(), known["arbiter"].is_null()), (Some("p10"), false));
        let metrics = get(admin, "/metrics").1;
        for line in [
            "portway_wireguard_sessions{listener=\"wg0\"} 1",
            "portway_wireguard_peer_bytes_in_total{peer=\"p10\"}",
            "portway_wireguard_handshakes_total{listener=\"wg0\"} 1",
        ] {
            assert!(metrics.contains(line), "{line} in\n{metrics}");
        }
        assert!(!metrics.contains("127.0.0.1:"), "no address of a peer is a label");
        let overview = wait(running.gateway().overview());
        let row = overview.listeners.iter().find(|row| row.name == "wg0").unwrap();
        assert_eq!((row.protocol.as_str(), row.accepting, row.connections), ("wireguard", true, 1));
        stop(&clients_mesh);
    });
}

#[test]
fn a_server_behind_a_tunnel_is_dialled_through_it() {
    in_both(|mode| {
        let running = Running::start(&Text::new(mode, [10]).write("127.0.0.1:0", &key_file()));
        let clients_mesh = mesh(1);
        let client = client(&clients_mesh, 10, running.address("wg0"));
        let dial = |stack: &Mail<NetMsg>, port: u16| {
            let mut via = Via::new(stack.clone());
            let to = format!("10.98.0.1:{port}").parse().unwrap();
            let mut stream = via.dial(&portway::transports::kit::balance::Address::Tcp(to)).unwrap();
            wait(std::future::poll_fn(|cx| via.poll_connected(&mut stream, cx))).map(|()| stream)
        };
        assert!(dial(&client.stack, 7001).is_ok_and(|stream| !stream.is_broken()));
        let refused = dial(&client.stack, 7002).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused));
        stop(&clients_mesh);
    });
}

/// A gateway that is a client of the one at `to`, and reaches `server` through it, by this listener and upstream.
pub(crate) fn behind(to: std::net::SocketAddr, peers: bool, rest: &str) -> String {
    let peer = if peers {
        format!(
            "[[listener.wireguard.peer]]\npublic_key = \"{}\"\nallowed_ips = [\"10.98.0.0/16\"]\nendpoint = \"{to}\"\n",
            public_key(&secret(1))
        )
    } else {
        String::new()
    };
    format!(
        "version = 1\n[[listener]]\nname = \"home\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"wireguard\"\n\
         [listener.wireguard]\nprivate_key_file = \"{}\"\naddresses = [\"10.98.1.10/16\"]\nmode = \"netstack\"\n\
         uapi = \"off\"\n{peer}[[listener]]\nname = \"near\"\nlisten = \"127.0.0.1:0\"\n{rest}",
        key_file_of(10),
    )
}

#[test]
fn upstreams_are_reached_through_a_tunnel_or_not_at_all() {
    in_both(|mode| {
        let running = Running::start(&Text::new(mode, [10]).write("127.0.0.1:0", &key_file()));
        let upstream = "protocol = \"relay\"\nupstream = \"far\"\n\
                    [[upstream]]\nname = \"far\"\nservers = [\"10.98.0.1:7001\"]\nvia = \"home\"\n\
                    [upstream.health]\ncheck = \"tcp\"\ninterval = \"100ms\"\n";
        let text = |peers| behind(running.address("wg0"), peers, upstream);
        let near = Running::start(&text(true));
        let mut client = Client::to(near.address("near"));
        client.echoes(b"through the tunnel");
        client.echoes(&vec![7; 300_000]);
        eventually("checks go through it", || near.totals().get("upstream_checks", "far", "ok") > 2);
        assert!(near.totals().get("netstack_opened", "home", "") >= 3, "every connection is one inside");
        // The tunnel loses its peer: nothing is dialled beside it, and it comes back.
        let reload = |peers| {
            near.gateway().reload(check::parse("test.toml", &text(peers), &check::Known::default()).unwrap()).unwrap()
        };
        assert_eq!(reload(false).changed, ["home"]);
        let before = near.totals().get("netstack_dropped", "home", "no_route");
        let answer = || {
            let mut stream = TcpStream::connect_timeout(&near.address("near"), SOON)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"\0\0\0\x05again")?;
            stream.read_exact(&mut [0; 9])
        };
        assert!(answer().is_err(), "it is closed");
        assert!(near.totals().get("netstack_dropped", "home", "no_route") > before);
        reload(true);
        eventually("the server is found again", || answer().is_ok());
    });
}

#[test]
fn answers_of_http_come_through_a_tunnel() {
    in_both(|mode| {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let app = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in server.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 1024];
                let _request = stream.read(&mut head).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\ninner").unwrap();
            }
        });
        let more = format!(
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
         [[upstream]]\nname = \"app\"\nservers = [\"{app}\"]\n"
        );
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let near = Running::start(&behind(
            running.address("wg0"),
            true,
            "protocol = \"http\"\n[[listener.route]]\npath = \"/\"\nupstream = \"far\"\n\
         [[upstream]]\nname = \"far\"\nservers = [\"10.98.0.1:80\"]\nvia = \"home\"\n",
        ));
        assert_eq!(get(near.address("near"), "/"), (200, "inner".to_owned()));
    });
}

#[test]
fn a_pipeline_has_threads_of_its_own_and_all_of_them_work() {
    let (listen, admin) = (free(), free());
    let text = Text::new(Mode::Pipeline, [10, 11]).write(&listen.to_string(), &key_file());
    let mut binary = Binary::start(&format!("{text}[admin]\nlisten = \"{admin}\"\n"));
    binary.says("listener=wg0 ");
    let clients_mesh = mesh(2);
    let clients = [10, 11].map(|n| client(&clients_mesh, n, listen));
    for client in &clients {
        echoes(&client.stack, "10.98.0.1:7001", &vec![5; 1 << 20]);
    }
    let mut threads = std::collections::BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", binary.process())).unwrap() {
        let task = task.unwrap();
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap();
        // Time on a CPU in ns, time waited for one, and how often it ran.
        let runs: u64 = read("schedstat").split_whitespace().nth(2).unwrap().parse().unwrap();
        let known = threads.insert(read("comm").trim().to_owned(), (task.file_name(), runs));
        assert!(known.is_none() || !read("comm").starts_with("wg0"), "{known:?}");
    }
    let (_, page) = get(admin, "/api/actors");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let arbiters: Vec<&str> = page["arbiters"].as_array().unwrap().iter().filter_map(|a| a["name"].as_str()).collect();
    for (kind, stage) in [
        ("wireguard", "wg0-rx"),
        ("wireguard_tx", "wg0-tx"),
        ("wireguard_peer", "wg0-crypto-0"),
        ("netstack", "wg0-crypto-0"),
    ] {
        let (_, runs) = threads.get(stage).unwrap_or_else(|| panic!("{stage} in {threads:?}"));
        assert!(*runs > 20, "{stage} ran {runs} times");
        let actors = page["actors"].as_array().unwrap().iter().filter(|actor| actor["kind"] == kind);
        let rows: Vec<_> = actors.map(|a| (a["arbiter"].as_u64().unwrap(), a["handled"].as_u64().unwrap())).collect();
        assert_eq!(rows.len(), if kind == "wireguard_peer" { 2 } else { 1 }, "{kind}");
        for (arbiter, handled) in rows {
            assert_eq!(arbiters[usize::try_from(arbiter).unwrap()], stage, "{kind}");
            assert!(handled > 20, "{kind} handled {handled}");
        }
    }
    stop(&clients_mesh);
}

#[test]
fn the_doctor_says_what_a_machine_gives_and_a_configuration_would_miss() {
    let user = Unprivileged::new();
    let doctor = |text: &str| {
        let path = user.dir.join("config.toml");
        std::fs::write(&path, text).unwrap();
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"];
        let mut command = std::process::Command::new("setpriv");
        let out = command.args(words).arg(user.program()).args(["doctor", "-c"]).arg(path).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
    };
    let text = |mode: &str, node: &str| {
        format!(
            "version = 1\n[[listener]]\nname = \"wg0\"\nlisten = \"127.0.0.1:51820\"\nprotocol = \"wireguard\"\n\
             [listener.wireguard]\ngenerate_key = true\naddresses = [\"10.98.0.1/24\"]\nmode = \"{mode}\"\n\
             tun_node = \"{node}\"\n"
        )
    };
    let (code, said) = doctor(&text("auto", "tun"));
    assert_eq!(code, Some(0), "{said}");
    for part in
        ["private network      works", "becomes private", "CAP_NET_ADMIN        not held", "open files", "rmem_max"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    let (code, said) = doctor(&text("auto", "nothing"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("becomes netstack") && said.contains("nothing"), "{said}");
    for mode in ["tun", "private"] {
        let (code, said) = doctor(&text(mode, "nothing"));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("MISSING  listener wg0"), "{said}");
    }
}

/// Asks the UAPI socket at `path`.
fn uapi(path: &std::path::Path, request: &str) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn with_uapi(text: &str, folder: &str) -> String {
    text.replace("mode = \"netstack\"", &format!("mode = \"netstack\"\nuapi = \"{folder}\""))
}

#[test]
fn a_reload_brings_back_the_peers_of_the_file_that_wg_has_changed() {
    let text = Text::new(Mode::Single, [10, 11]).write(&free().to_string(), &key_file());
    let head = format!("[admin]\nlisten = \"{}\"\ncontrol = \"gw.sock\"\n[runtime]\n", free());
    let text = with_uapi(&text, ".").replace("[runtime]\n", &head);
    let mut binary = Binary::start(&text);
    binary.says("listening listener=wg0 ");
    let socket = binary.dir().join("wg0.sock");
    eventually("wg is served", || socket.exists());
    let keys = [10, 11].map(|n| {
        let hex = public_key(&secret(n)).0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("public_key={hex}\n")
    });
    let has = || keys.each_ref().map(|key| uapi(&socket, "get=1\n\n").contains(key));
    let diff = || {
        let out = binary.portway(&["check", "--diff"]);
        let text = String::from_utf8(out.stdout).unwrap();
        text.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!((has(), diff()), ([true, true], "keep".to_owned()));
    assert_eq!(uapi(&socket, &format!("set=1\n{}remove=true\n\n", keys[0])), "errno=0\n\n");
    assert_eq!((has(), diff()), ([false, true], "change".to_owned()));
    let done = binary.portway(&["reload"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("0 kept") && said.contains("1 changed"), "{said}");
    eventually("it is back", || has() == [true, true]);
    assert_eq!(diff(), "keep");
    // What cannot be changed leaves everything as it was.
    assert_eq!(uapi(&socket, "set=1\nlisten_port=9\n\n"), format!("errno=-{}\n\n", 95));
    assert_eq!((has(), diff()), ([true, true], "keep".to_owned()));
}

#[test]
fn a_socket_for_wg_that_cannot_be_had_is_said() {
    let (folder, none) = (temp_dir(), temp_dir().join("none"));
    std::fs::write(folder.join("wg0.sock"), "").unwrap();
    let text = Text::new(Mode::Single, [10]).write(&free().to_string(), &key_file());
    let mut binary = Binary::start(&with_uapi(&text, &folder.display().to_string()));
    let line = binary.says("somebody else has this path");
    assert!(line.contains("WARN") && line.contains(&folder.join("wg0.sock").display().to_string()), "{line}");
    assert_eq!(std::fs::read(folder.join("wg0.sock")).unwrap(), b"", "it is left as it was");

    let text =
        with_uapi(&Text::new(Mode::Single, [10]).write(&free().to_string(), &key_file()), &none.display().to_string());
    let mut binary = Binary::start(&text);
    binary.says("there is no folder");
    let line = binary.says("wg is not served");
    assert!(line.contains("WARN") && !none.exists(), "{line}");
    let checked = binary.portway(&["check"]);
    assert!(String::from_utf8_lossy(&checked.stderr).contains("warning: wg0: there is no folder"), "{checked:?}");
}

#[test]
fn auto_says_with_a_warning_that_it_became_a_netstack() {
    let text = Text::new(Mode::Single, [10]).write(&free().to_string(), &key_file());
    let text = with_uapi(&text, "off").replace("mode = \"netstack\"", "mode = \"auto\"\ntun_node = \"nothing\"");
    let mut binary = Binary::start(&text);
    let line = binary.says("no private network");
    assert!(line.contains("WARN") && line.contains("mode=\"netstack\""), "{line}");
}

#[test]
fn a_key_file_that_this_user_may_not_read_is_named_with_its_owner() {
    let user = Unprivileged::new();
    let key = user.dir.join("wg0.key");
    std::fs::write(&key, &*secret(1).to_base64()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let path = user.dir.join("config.toml");
    std::fs::write(&path, Text::new(Mode::Single, [10]).write("127.0.0.1:0", "wg0.key")).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"]);
    let out = command.arg(user.program()).args(["check", "-c"]).arg(&path).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{said}");
    for part in [
        &*format!("{}` cannot be read: permission denied", key.display()),
        "owner is user 0, its mode 0600",
        "chown or chmod",
        "user 65534",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("keygen"), "{said}");
}

#[test]
fn a_key_file_that_others_can_read_is_warned_about() {
    let key = key_file();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = Text::new(Mode::Single, [10]).write(&free().to_string(), &key);
    let mut binary = Binary::start(&text);
    assert!(binary.says("can be read by others").contains("chmod 600"));
    let checked = binary.portway(&["check"]);
    assert!(checked.status.success());
    assert!(String::from_utf8_lossy(&checked.stderr).contains("warning: wg0: the key file"), "{checked:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(String::from_utf8_lossy(&binary.portway(&["check"]).stderr), "");
}

#[test]
fn twenty_four_thousand_peers_are_there_at_once() {
    let dir = temp_dir();
    let mut conf = format!("[Interface]\nPrivateKey = {}\nAddress = 10.0.0.1/8\n", *secret(1).to_base64());
    for n in 0..24_000u32 {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        let allowed = std::net::Ipv4Addr::from(0x0a01_0000 + n);
        let key = portway::transports::wireguard::PublicKey(key);
        write!(conf, "[Peer]\nPublicKey = {key}\nAllowedIPs = {allowed}/32\n").unwrap();
    }
    let path = dir.join("wg0.conf");
    std::fs::write(&path, conf).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (listen, admin) = (free(), free());
    let text = format!(
        "version = 1\n[admin]\nlisten = \"{admin}\"\n[[listener]]\nname = \"wg0\"\nlisten = \"{listen}\"\n\
         protocol = \"wireguard\"\n[listener.wireguard]\nconf = \"{}\"\nmode = \"netstack\"\n",
        path.display()
    );
    let began = now();
    let mut binary = Binary::start(&text);
    binary.says("listener=wg0 ");
    let took = now().saturating_duration_since(began);
    eventually("the device answers", || get(admin, "/api/wireguard").1.contains("\"answered\": true"));
    let kib = binary.resident() >> 10;
    // The goals are 2 s and 100 MiB; a debug build on a busy machine gets more time.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(kib < 100 * 1024, "{kib} KiB");
}
