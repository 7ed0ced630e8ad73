//! systemd's notify protocol, spoken by the test: readiness, reload, watchdog and stop of the real binary.

use std::net::TcpListener;
#[cfg(feature = "wireguard")]
use std::net::UdpSocket;
#[cfg(feature = "wireguard")]
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

#[cfg(feature = "wireguard")]
use crate::gateway::free;
use crate::gateway::{Binary, Client, temp_dir};
use crate::probe::{SOON, now};

struct Manager {
    socket: UnixDatagram,
    seen: Vec<String>,
}

impl Manager {
    fn hears(&mut self, what: &str) -> String {
        let end = now() + SOON;
        loop {
            assert!(now() < end, "{what} was not said: {:?}", self.seen);
            let mut buffer = [0; 4_096];
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.seen.push(said.clone());
            if said.lines().any(|line| line.starts_with(what)) {
                return said;
            }
        }
    }
}

#[test]
fn the_service_manager_learns_of_start_reload_watchdog_and_stop() {
    let dir = temp_dir();
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut manager = Manager { socket, seen: Vec::new() };
    let text = "version = 1\n[[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n";
    let mut binary =
        Binary::start_with(text, &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")]);
    manager.hears("READY=1");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    binary.signal("HUP");
    let reloading = manager.hears("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hears("READY=1");
    binary.signal("TERM");
    manager.hears("STOPPING=1");
    assert_eq!(binary.ends_within(SOON).code(), Some(0));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_unit_file_names_commands_that_exist() {
    let unit = std::fs::read_to_string("dist/portway.service").unwrap();
    let commands: Vec<_> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStart"))
        .filter_map(|line| line.split("/portway ").nth(1))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(commands, ["check", "run"]);
    assert!(unit.contains("Type=notify-reload") && unit.contains("WatchdogSec="));
}

/// What the unit of sockets lists by default is what the shipped configuration listens on.
#[test]
fn the_unit_of_sockets_names_a_listener_of_the_shipped_file() {
    let unit = std::fs::read_to_string("dist/portway.socket").unwrap();
    let shipped = std::fs::read_to_string("config.toml").unwrap();
    let named: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(named.len(), 1);
    assert!(named.iter().all(|at| shipped.contains(&format!("listen = \"{at}\""))), "{named:?}");
    assert!(unit.contains("Accept=no") && unit.contains("BindIPv6Only=ipv6-only"));
}

/// The package of the very binary under test, unpacked by dpkg into a folder that stands for a machine.
#[test]
fn the_debian_package_installs_and_its_files_work() {
    let dir = temp_dir();
    let made = Command::new("scripts/deb")
        .args([env!("CARGO_BIN_EXE_portway"), dir.to_str().unwrap()])
        .output()
        .expect("the script runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let package = String::from_utf8(made.stdout).unwrap();
    let root = dir.join("root");
    std::fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    std::fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    std::fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let mut install = Command::new("dpkg");
    install.arg(format!("--root={}", root.display())).args(["--force-not-root", "--force-depends", "--force-bad-path"]);
    install.arg(format!("--log={}", dir.join("log").display())).args(["--install", package.trim()]);
    let installed = install.output().expect("dpkg runs");
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let binary = root.join("usr/bin/portway");
    let config = root.join("etc/portway/config.toml");
    let run = |arguments: &[&str]| {
        let output = Command::new(&binary).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run(&["check", "-c", config.to_str().unwrap()]).contains("fine"));
    let schema = std::fs::read_to_string(root.join("usr/share/doc/portway/schema.json")).unwrap();
    assert_eq!(schema, run(&["schema"]));
    for file in [
        "usr/share/man/man1/portway.1.gz",
        "usr/share/bash-completion/completions/portway",
        "usr/share/doc/portway/copyright",
        "usr/share/doc/portway/examples/echo.toml",
    ] {
        assert!(root.join(file).metadata().expect(file).len() > 0, "{file}");
    }
    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/portway.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/portway run") && !unit.contains("/usr/local"), "{unit}");
    assert!(root.join("usr/lib/systemd/system/portway.socket").is_file());
    let status = std::fs::read_to_string(root.join("var/lib/dpkg/status")).unwrap();
    assert!(status.contains("Package: portway") && status.contains("/etc/portway/config.toml"), "{status}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// As systemd does with `portway.socket`: the sockets are opened here and handed on. The test holds them all the while,
/// so that a gateway that bound them itself would find them in use.
#[cfg(feature = "wireguard")]
#[test]
fn passed_sockets_are_taken_and_outlive_the_gateway() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (at, tunnel) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let admin = free();
    let text = format!(
        "version = 1\n[runtime]\ndrain = \"1s\"\n[admin]\nlisten = \"{admin}\"\n\
         [[listener]]\nname = \"echo\"\nlisten = \"{at}\"\nprotocol = \"framed\"\nservice = \"echo\"\n\
         [[listener]]\nname = \"wg0\"\nlisten = \"{tunnel}\"\nprotocol = \"wireguard\"\n\
         [listener.wireguard]\ngenerate_key = true\nmode = \"netstack\"\naddresses = [\"10.98.0.1/24\"]\n"
    );
    let fds = || (OwnedFd::from(tcp.try_clone().unwrap()), OwnedFd::from(udp.try_clone().unwrap()));
    let (first, second) = fds();
    let mut binary = Binary::start_passed(&text, first, second);
    for name in ["echo", "wg0"] {
        binary.says(&format!("takes a socket of the service manager listener={name}"));
    }
    binary.says("running");
    let mut client = Client::to(at);
    client.echoes(b"over a passed socket");
    // A reload that takes the listener out and in again finds the same socket.
    let whole = binary.text();
    let start = whole.find("[[listener]]").unwrap();
    let end = whole.rfind("[[listener]]").unwrap();
    binary.rewrite(&(whole[..start].to_owned() + &whole[end..]));
    binary.signal("HUP");
    binary.says("1 removed");
    let mut waiting = Client::to(at);
    binary.rewrite(&whole);
    binary.signal("HUP");
    binary.says("1 added");
    waiting.echoes(b"it waited in the queue");
    drop((client, waiting));

    binary.signal("TERM");
    assert_eq!(binary.ends_within(SOON).code(), Some(0));
    // Nobody runs: the connection is not refused, and the next gateway serves it.
    let mut early = Client::to(at);
    early.send(b"sent to nobody yet");
    let (first, second) = fds();
    binary.again_passed(first, second);
    binary.says("running");
    assert_eq!(early.recv(), b"sent to nobody yet");
    drop(early);
    binary.signal("TERM");
    assert_eq!(binary.ends_within(SOON).code(), Some(0));
}

#[test]
fn passed_sockets_that_nobody_takes_are_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = std::net::TcpStream::connect(other.local_addr().unwrap()).unwrap();
    let at = other.local_addr().unwrap();
    let text = "version = 1\n[[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n";
    let mut binary = Binary::start_passed(text, other.into(), connected.into());
    let warned = binary.says("a socket was passed that no listener takes");
    assert!(warned.contains(&at.to_string()), "{warned}");
    binary.says("it does not listen");
    let mut client = Client::to(binary.address("echo"));
    client.echoes(b"all else works");
}
