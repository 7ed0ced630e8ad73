//! systemd's notify protocol, spoken by the test: readiness, reload, watchdog and stop of the real binary.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::gateway::{Binary, temp_dir};
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
    let status = std::fs::read_to_string(root.join("var/lib/dpkg/status")).unwrap();
    assert!(status.contains("Package: portway") && status.contains("/etc/portway/config.toml"), "{status}");
    std::fs::remove_dir_all(dir).unwrap();
}
