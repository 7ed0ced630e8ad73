//! The whole gateway as a WireGuard server, in modes `tun` and `private`, with wireguard-go as its client. Needs root;
//! the gateway in mode `private` does not have it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use portway::transports::wireguard::public_key;

use crate::gateway::Client;
use crate::interop_wireguard::{Keys, secret, shown, theirs};
use crate::netns::{Netns, Pair, run, unique};
use crate::private_network::{NOBODY, Unprivileged};
use crate::probe::{SOON, eventually, now};

/// A gateway in namespace `a`, and its configuration.
struct Gateway {
    pair: Pair,
    keys: Keys,
    user: Unprivileged,
    name: String,
    process: u32,
}

impl Gateway {
    /// `more` goes into `[listener.wireguard]`; key 1 is ours, key 2 the peer's.
    fn start(mode: &str, root: bool, more: &str) -> Self {
        let user = Unprivileged::new();
        let keys = Keys::new();
        let name = unique("pwgw");
        let mut gateway = Self { pair: Pair::new(), keys, user, name, process: 0 };
        gateway.write(mode, more, "");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", gateway.pair.a.name()]);
        if !root {
            command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"]);
        }
        command.arg(gateway.user.program()).args(["run", "-c"]).arg(gateway.config());
        gateway.process = gateway.pair.a.adopt(&mut command);
        gateway
    }

    fn config(&self) -> PathBuf {
        self.user.dir.join("config.toml")
    }

    fn write(&self, mode: &str, more: &str, peers: &str) {
        let key = self.user.dir.join("wg0.key");
        std::fs::write(&key, secret(1).to_base64().as_bytes()).unwrap();
        chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = format!(
            "version = 1\n[admin]\nlisten = \"127.0.0.1:9180\"\n[[listener]]\nname = \"{}\"\nlisten = \"[::]:51820\"\n\
             protocol = \"wireguard\"\n[listener.wireguard]\nprivate_key_file = \"wg0.key\"\n\
             addresses = [\"10.98.0.1/24\", \"fd98::1/64\"]\nmode = \"{mode}\"\ntun_node = \"tun\"\n{more}\n\
             [[listener.wireguard.peer]]\nname = \"phone\"\npublic_key = \"{}\"\n\
             allowed_ips = [\"10.98.0.2/32\", \"fd98::2/128\"]\n{peers}\
             [[listener.wireguard.service]]\nlisten = \"10.98.0.1:7001\"\nprotocol = \"framed\"\nservice = \"echo\"\n\
             [[listener.wireguard.service]]\nlisten = \"[fd98::1]:443\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
            self.name,
            public_key(&secret(2)),
        );
        std::fs::write(self.config(), text).unwrap();
    }

    /// Brings up wireguard-go in `b` for the networks that `allowed` names.
    fn client(&mut self, allowed: &str) -> String {
        let words = ["endpoint", "10.99.0.1:51820", "allowed-ips", allowed];
        theirs(&mut self.pair.b, &self.keys, &["10.98.0.2/24", "fd98::2/64"], &words)
    }

    fn echoes(&self, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        self.pair.b.inside(move || {
            let mut client = Client::to(to);
            client.echoes(b"through the tunnel");
            client.echoes(&vec![7; 200_000]);
        });
    }

    fn metrics(&self) -> String {
        self.pair.a.run("curl", &["-s", "http://127.0.0.1:9180/metrics"])
    }
}

fn connected(netns: &Netns, to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().unwrap();
    let stream = netns.inside(move || TcpStream::connect_timeout(&to, SOON).expect("it connects"));
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn interop_wireguard_gateway_serves_on_an_interface_of_the_host() {
    let mut gateway = Gateway::start("tun", true, "");
    gateway.client("10.98.0.0/24,fd98::/64");
    gateway.pair.b.reaches("10.98.0.1");
    gateway.pair.b.reaches("fd98::1");
    gateway.echoes("10.98.0.1:7001");
    gateway.echoes("[fd98::1]:443");
    let link = gateway.pair.a.ip(&["addr", "show", "dev", &gateway.name]);
    assert!(link.contains("10.98.0.1/24") && link.contains("mtu 1420"), "{link}");
    // wg sees it, and by the name of its listener.
    eventually("the handshake shows", || shown(&gateway.name)[0][4] != "0");
}

#[test]
fn interop_wireguard_gateway_serves_in_a_private_network_without_root() {
    for mode in ["private", "auto"] {
        let mut gateway = Gateway::start(mode, false, "uapi = \"off\"");
        gateway.client("10.98.0.0/24,fd98::/64");
        gateway.pair.b.reaches("10.98.0.1");
        gateway.echoes("10.98.0.1:7001");
        // A port below 1024, without a right to it.
        gateway.echoes("[fd98::1]:443");
        assert!(!gateway.pair.a.ip(&["link"]).contains("tun"), "nothing shows on the host");
        let api = gateway.pair.a.run("curl", &["-s", "http://127.0.0.1:9180/api/wireguard"]);
        assert!(api.contains("\"private\""), "{api}");
        assert!(gateway.metrics().contains("wireguard"), "{}", gateway.metrics());
        // The end of the gateway is the end of its helper.
        let process = gateway.process.to_string();
        let children = run("pgrep", &["-P", &process]);
        assert_eq!(children.lines().count(), 1, "the helper is its child");
        gateway.pair.a.kill(gateway.process);
        eventually("the helper ends", || children.lines().all(|child| !Path::new("/proc").join(child).exists()));
    }
}

#[test]
fn interop_wireguard_gateway_forwards_out_of_a_private_network_where_it_may() {
    let more = "uapi = \"off\"\nforward = [\"203.0.113.0/24\"]";
    let mut gateway = Gateway::start("private", false, more);
    gateway.pair.a.ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"]);
    let name = gateway.client("10.98.0.0/24,203.0.113.0/24,198.51.100.0/24");
    for network in ["203.0.113.0/24", "198.51.100.0/24"] {
        gateway.pair.b.ip(&["route", "add", network, "dev", &name]);
    }
    let server = gateway.pair.a.inside(|| TcpListener::bind("203.0.113.5:8080").expect("a server"));
    gateway.pair.b.reaches("10.98.0.1");
    let mut stream = connected(&gateway.pair.b, "203.0.113.5:8080");
    let (mut accepted, from) = server.accept().unwrap();
    assert_eq!(from.ip().to_string(), "203.0.113.5", "by a socket of the host");
    stream.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    accepted.read_exact(&mut got).unwrap();
    accepted.write_all(b"world").unwrap();
    let mut neighbour = stream;
    // Where it may not, the connection is reset, and the other goes on.
    let to: SocketAddr = "198.51.100.1:80".parse().unwrap();
    let refused = gateway.pair.b.inside(move || {
        TcpStream::connect_timeout(&to, SOON).and_then(|mut stream| {
            stream.set_read_timeout(Some(SOON))?;
            stream.read(&mut [0; 1])
        })
    });
    assert!(refused.is_err(), "{refused:?}");
    neighbour.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"world");
}

/// Asks until there is an answer: datagrams may be lost while a session begins.
fn answered(netns: &Netns, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    netns.inside(move || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        (0..10).any(|_| {
            socket.send_to(b"question", to).unwrap();
            let mut buffer = [0; 100];
            matches!(socket.recv_from(&mut buffer), Ok((6, from)) if from == to && buffer.starts_with(b"answer"))
        })
    })
}

#[test]
fn interop_wireguard_gateway_forwards_datagrams_and_connections_whatever_is_inside() {
    for mode in ["private", "netstack"] {
        let more = "uapi = \"off\"\nforward = [\"203.0.113.0/24\", \"2001:db8:5::/64\"]";
        let mut gateway = Gateway::start(mode, false, more);
        gateway.pair.a.ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"]);
        gateway.pair.a.ip(&["addr", "add", "2001:db8:5::5/128", "dev", "lo"]);
        let name = gateway.client("10.98.0.0/24,fd98::/64,203.0.113.0/24,2001:db8:5::/64,198.51.100.0/24");
        for network in ["203.0.113.0/24", "198.51.100.0/24", "2001:db8:5::/64"] {
            gateway.pair.b.ip(&["route", "add", network, "dev", &name]);
        }
        gateway.pair.b.reaches("10.98.0.1");
        for at in ["203.0.113.5:5353", "[2001:db8:5::5]:5353"] {
            let server = gateway.pair.a.inside(move || UdpSocket::bind(at).expect("a server"));
            let socket = server.try_clone().unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 100];
                while let Ok((8, from)) = socket.recv_from(&mut buffer) {
                    let _sent = socket.send_to(b"answer", from);
                }
            });
            assert!(answered(&gateway.pair.b, at), "{mode} {at}");
        }
        assert!(!answered(&gateway.pair.b, "198.51.100.1:53"), "{mode}: where it may not");
        // And connections, in both.
        let server = gateway.pair.a.inside(|| TcpListener::bind("203.0.113.5:8080").expect("a server"));
        let mut stream = connected(&gateway.pair.b, "203.0.113.5:8080");
        let (mut accepted, _) = server.accept().unwrap();
        accepted.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello", "{mode}");
        let metrics = gateway.metrics();
        assert!(metrics.contains("portway_netstack_datagrams_total{listener="), "{metrics}");
    }
}

#[test]
fn interop_wireguard_gateway_reaches_servers_behind_its_peers() {
    for (mode, root) in [("private", false), ("tun", true)] {
        let mut gateway = Gateway::start(mode, root, "uapi = \"off\"");
        gateway.client("10.98.0.0/24,fd98::/64");
        gateway.pair.b.reaches("10.98.0.1");
        let server = gateway.pair.b.inside(|| TcpListener::bind("10.98.0.2:9000").unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut writes = stream.try_clone().unwrap();
            let _copied = std::io::copy(&mut stream, &mut writes);
        });
        // Added while it runs.
        let added = "[[listener]]\nname = \"near\"\nlisten = \"127.0.0.1:8000\"\nprotocol = \"relay\"\n\
                     upstream = \"far\"\n[[upstream]]\nname = \"far\"\nservers = [\"10.98.0.2:9000\"]\nvia = ";
        let text = std::fs::read_to_string(gateway.config()).unwrap();
        std::fs::write(gateway.config(), format!("{text}{added}\"{}\"\n", gateway.name)).unwrap();
        run("kill", &["-HUP", &gateway.process.to_string()]);
        let listens = || gateway.pair.a.inside(|| TcpStream::connect("127.0.0.1:8000").ok());
        let mut stream = None;
        eventually("the listener is there", || {
            stream = listens();
            stream.is_some()
        });
        let mut client = Client(stream.unwrap());
        client.0.set_read_timeout(Some(SOON)).unwrap();
        client.echoes(b"to the peer");
        client.echoes(&vec![7; 1_000_000]);
    }
}

#[test]
fn interop_wireguard_gateway_reloads_peers_and_their_routes_and_keeps_sessions() {
    let mut gateway = Gateway::start("tun", true, "");
    gateway.client("10.98.0.0/24");
    gateway.pair.b.reaches("10.98.0.1");
    let before = shown(&gateway.name);
    let other = "[[listener.wireguard.peer]]\nname = \"other\"\npublic_key = \"yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\"\n\
                 allowed_ips = [\"192.168.77.0/24\"]\n";
    gateway.write("tun", "", other);
    run("kill", &["-HUP", &gateway.process.to_string()]);
    eventually("the new peer shows", || shown(&gateway.name).len() == 2);
    eventually("its route is there", || gateway.pair.a.ip(&["route"]).contains("192.168.77.0/24"));
    assert_eq!(gateway.pair.b.pings("10.98.0.1", 3), 3);
    let phone =
        |lines: &[Vec<String>]| lines.iter().find(|line| line[3].contains("10.98.0.2")).map(|line| line[4].clone());
    eventually("it still shows its handshake", || phone(&shown(&gateway.name)) != Some("0".to_owned()));
    let first = phone(&before).filter(|at| at != "0");
    assert!(first.is_none() || phone(&shown(&gateway.name)) == first, "the session of before");
    // And gone again, with its route.
    gateway.write("tun", "", "");
    run("kill", &["-HUP", &gateway.process.to_string()]);
    eventually("the peer is gone", || shown(&gateway.name).len() == 1);
    eventually("its route is gone", || !gateway.pair.a.ip(&["route"]).contains("192.168.77.0/24"));
    // A change of the interface itself: made anew under its name.
    gateway.write("tun", "mtu = 1300", "");
    run("kill", &["-HUP", &gateway.process.to_string()]);
    eventually("the new MTU", || {
        gateway.pair.a.output("ip", &["link", "show", &gateway.name]).stdout.windows(8).any(|w| w == b"mtu 1300")
    });
    // The peer notices after 15 s without an answer that we know its session no more.
    assert!((0..40).any(|_| gateway.pair.b.pings("10.98.0.1", 1) == 1), "a new session");
    eventually("wg sees the new one", || {
        Path::new("/var/run/wireguard").join(format!("{}.sock", gateway.name)).exists()
    });
}

/// What `wg` changes has routes as what the file says, and the file is the truth again with the next reload.
#[test]
fn interop_wireguard_gateway_routes_what_wg_changes_until_a_reload() {
    let gateway = Gateway::start("tun", true, "");
    let socket = Path::new("/var/run/wireguard").join(format!("{}.sock", gateway.name));
    eventually("wg is served", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let other = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    let phone = public_key(&secret(2)).to_string();
    let routes = || gateway.pair.a.ip(&["route"]);
    let phones = || gateway.pair.a.ip(&["-6", "route"]).contains("fd98::2");
    assert!(phones() && !routes().contains("192.168.77.0/24"), "{}", routes());
    run("wg", &["set", &gateway.name, "peer", other, "allowed-ips", "192.168.77.0/24"]);
    eventually("its route is there", || routes().contains(&format!("192.168.77.0/24 dev {}", gateway.name)));
    run("wg", &["set", &gateway.name, "peer", &phone, "remove"]);
    eventually("its route is gone", || !phones());
    assert!(routes().contains("192.168.77.0/24"), "the other's stays: {}", routes());
    // Everything: the tunnel's own datagrams must not come back into it.
    run("wg", &["set", &gateway.name, "peer", other, "allowed-ips", "0.0.0.0/0"]);
    eventually("everything goes into it", || gateway.pair.a.ip(&["rule"]).contains("51820"));
    assert_eq!(run("wg", &["show", &gateway.name, "fwmark"]).trim(), "0xca6c");
    run("wg", &["set", &gateway.name, "fwmark", "7"]);
    assert_eq!(run("wg", &["show", &gateway.name, "fwmark"]).trim(), "0xca6c", "its own, or it would loop");
    // The same file again.
    run("kill", &["-HUP", &gateway.process.to_string()]);
    eventually("the routes of the file are there", || phones() && !gateway.pair.a.ip(&["rule"]).contains("51820"));
    eventually("its peers are there", || {
        let all = shown(&gateway.name);
        all.len() == 1 && all[0][0] == phone
    });
    assert_eq!(run("wg", &["show", &gateway.name, "fwmark"]).trim(), "off");
    run("wg", &["set", &gateway.name, "fwmark", "7"]);
    assert_eq!(run("wg", &["show", &gateway.name, "fwmark"]).trim(), "0x7");
    run("kill", &["-HUP", &gateway.process.to_string()]);
    eventually("the mark is gone", || run("wg", &["show", &gateway.name, "fwmark"]).trim() == "off");
    // Another port: the interface is made anew under its name.
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), text.replace("[::]:51820", "[::]:51821")).unwrap();
    run("kill", &["-HUP", &gateway.process.to_string()]);
    eventually("it has the other port", || {
        String::from_utf8_lossy(
            &Command::new("wg").args(["show", &gateway.name, "listen-port"]).output().unwrap().stdout,
        )
        .trim()
            == "51821"
    });
    assert!(phones(), "with its routes");
}

#[test]
fn interop_wireguard_gateway_answers_http_and_changes_services_within_a_session() {
    for (mode, root) in [("private", false), ("tun", true)] {
        let mut gateway = Gateway::start(mode, root, "uapi = \"off\"");
        gateway.client("10.98.0.0/24");
        gateway.pair.b.reaches("10.98.0.1");
        let site = |body: &str| {
            format!(
                "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"http\"\n\
                 [[listener.wireguard.service.route]]\nservice = \"respond\"\nbody = \"{body}\"\n"
            )
        };
        let mut stream = connected(&gateway.pair.b, "10.98.0.1:7001");
        let mut echo = || {
            stream.write_all(b"\0\0\0\x05still").unwrap();
            let mut answer = [0; 9];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer[4..], b"still");
        };
        echo();
        for body in ["one", "two"] {
            gateway.write(mode, "uapi = \"off\"", &site(body));
            run("kill", &["-HUP", &gateway.process.to_string()]);
            eventually("curl gets the site of now", || {
                gateway.pair.b.output("curl", &["-s", "-m", "5", "http://10.98.0.1/"]).stdout == body.as_bytes()
            });
            echo();
        }
        gateway.write(mode, "uapi = \"off\"", "");
        run("kill", &["-HUP", &gateway.process.to_string()]);
        eventually("nobody serves there any more", || {
            !gateway.pair.b.output("curl", &["-s", "-m", "5", "http://10.98.0.1/"]).status.success()
        });
        echo();
        let handshakes = format!("portway_wireguard_handshakes_total{{listener=\"{}\"}} 1\n", gateway.name);
        assert!(gateway.metrics().contains(&handshakes), "one session: {}", gateway.metrics());
    }
}

#[test]
fn interop_wireguard_gateway_outlives_its_interface_and_makes_another() {
    let mut gateway = Gateway::start("tun", true, "uapi = \"off\"");
    gateway.client("10.98.0.0/24");
    gateway.pair.b.reaches("10.98.0.1");
    let ready = || gateway.pair.a.output("curl", &["-s", "http://127.0.0.1:9180/readyz"]).stdout;
    assert_eq!(ready(), b"ready\n");
    gateway.pair.a.ip(&["link", "del", &gateway.name]);
    // No packet tells it.
    eventually("it says that a listener has ended", || {
        String::from_utf8(ready()).unwrap().contains(&format!("listener {} has ended", gateway.name))
    });
    assert!(gateway.metrics().contains("portway_"), "the admin listener goes on");
    // What has ended may still be closing, and keeps its port until then: the reload is refused and asked for again.
    let again = (0..3).any(|_| {
        run("kill", &["-HUP", &gateway.process.to_string()]);
        let until = now() + SOON / 3;
        std::iter::from_fn(|| (now() < until).then(&ready)).any(|said| said == b"ready\n")
    });
    assert!(again, "it is ready again");
    // The peer notices after 15 s without an answer that we know its session no more.
    assert!((0..40).any(|_| gateway.pair.b.pings("10.98.0.1", 1) == 1), "a new session");
    gateway.echoes("10.98.0.1:7001");
}

#[test]
fn interop_wireguard_gateway_prints_a_file_that_wg_quick_takes() {
    let gateway = Gateway::start("tun", true, "");
    gateway.pair.a.reaches("10.98.0.1");
    let key = gateway.keys.file("phone.key", &secret(2));
    let print = |more: &[&str]| {
        let out = Command::new(gateway.user.program())
            .args(["wireguard", "client", "phone", "-c"])
            .arg(gateway.config())
            .args(more)
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, _, error) = print(&[]);
    assert_eq!(code, Some(2), "it listens everywhere: {error}");
    assert!(error.contains("--endpoint"), "{error}");
    let (_, text, _) = print(&["--endpoint", "10.99.0.1:51820"]);
    assert!(text.contains("# PrivateKey"), "{text}");
    let (code, text, error) = print(&["--endpoint", "10.99.0.1:51820", "--private-key", &key]);
    assert_eq!(code, Some(0), "{error}");
    let path = gateway.keys.0.join(format!("{}.conf", unique("wq")));
    std::fs::write(&path, &text).unwrap();
    let path = path.display().to_string();
    let environment = ["WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go", "WG_SUDO=true", "wg-quick"];
    gateway.pair.b.run("env", &[&environment[..], &["up", &path]].concat());
    gateway.pair.b.reaches("10.98.0.1");
    gateway.echoes("10.98.0.1:7001");
    gateway.pair.b.run("wg-quick", &["down", &path]);
}
