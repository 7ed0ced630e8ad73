//! systemd's notify protocol, spoken by the test: readiness, reload, watchdog and stop of the real binary.

use std::os::unix::net::UnixDatagram;
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
