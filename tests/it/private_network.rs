//! The rootless private network, as the user with the fewest rights: made by the real binary, used through
//! descriptors alone.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portway::transports::tun::{PrivateError, PrivateNetwork, PrivateSettings, Tun};

use crate::gateway::temp_dir;
use crate::probe::eventually;

/// A directory for one unprivileged user, with a copy of the binary and a TUN node it may open.
pub(crate) struct Unprivileged {
    pub(crate) dir: PathBuf,
}

/// `nobody`.
pub(crate) const NOBODY: u32 = 65_534;

impl Unprivileged {
    pub(crate) fn new() -> Self {
        let dir = temp_dir();
        std::fs::copy(env!("CARGO_BIN_EXE_portway"), dir.join("portway")).expect("a copy of the binary");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let node = dir.join("tun");
        let made = Command::new("mknod").arg(&node).args(["c", "10", "200"]).status().expect("mknod runs");
        assert!(made.success(), "this test needs root, to make a node for a user without it");
        chown(&node, Some(NOBODY), Some(NOBODY)).unwrap();
        Self { dir }
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.dir.join("portway")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.dir.join("tun")
    }

    /// Settings by which the helper runs as `nobody`, without a capability.
    pub(crate) fn settings(&self) -> PrivateSettings {
        let mut arguments: Vec<String> =
            ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"]
                .map(str::to_owned)
                .to_vec();
        arguments.push(self.program().display().to_string());
        arguments.push("private-network".to_owned());
        PrivateSettings {
            program: PathBuf::from("setpriv"),
            arguments,
            node: self.node(),
            name: "inside0".to_owned(),
            mtu: 1420,
            offload: true,
            addresses: vec!["10.77.0.1/24".parse().unwrap(), "fd77::1/64".parse().unwrap()],
            congestion: None,
        }
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_dir_all(&self.dir);
    }
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A TCP SYN from 10.77.0.9.
fn syn(to: [u8; 4], port: u16) -> Vec<u8> {
    let from = [10, 77, 0, 9];
    let mut ip = [&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0][..], &from, &to].concat();
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp =
        [&4444u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]]
            .concat();
    let sum = checksum(&[&from, &to, &[0, 6, 0, 20], &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    [ip, tcp].concat()
}

/// Sends a packet into the network and waits for the SYN-ACK that the kernel inside answers with.
fn is_answered(tun: &Tun, packet: &[u8]) {
    let header = [0; 10];
    tun.write(&[IoSlice::new(&header), IoSlice::new(packet)]).expect("the interface takes it");
    let mut buffer = vec![0; 70_000];
    eventually("a SYN-ACK", || {
        // Neighbour discovery and the like come out as well.
        let Ok(length) = tun.read(&mut buffer) else { return false };
        let answer = &buffer[10..length];
        answer[0] >> 4 == 4 && answer[9] == 6 && answer[33] == 0x12
    });
}

fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap();
    text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[test]
fn a_user_without_rights_gets_a_network_with_offloads_whose_kernel_answers() {
    let user = Unprivileged::new();
    let (network, tun) = PrivateNetwork::start(&user.settings()).expect("a private network");
    assert!(tun.offloads().header && tun.offloads().tcp, "{:?}", tun.offloads());
    assert!(!interfaces().iter().any(|name| name == "inside0"), "nothing shows on the host");

    // A port below 1024, without a right to it.
    let listener = network.tcp_listener("10.77.0.1:443".parse().unwrap(), false).expect("a listener inside");
    is_answered(&tun, &syn([10, 77, 0, 1], 443));
    assert_eq!(listener.local_addr().unwrap(), "10.77.0.1:443".parse::<SocketAddr>().unwrap());
    let six = network.tcp_listener("[fd77::1]:443".parse().unwrap(), false).expect("IPv6 as well");
    assert!(six.local_addr().unwrap().is_ipv6());
    // The host has no such address: the socket is inside.
    let udp = network.udp_socket("10.77.0.1:53".parse().unwrap(), false).expect("a UDP socket inside");
    udp.send_to(b"out", "10.77.0.9:9").unwrap();
    let mut buffer = vec![0; 2_000];
    eventually("the datagram comes out of the interface", || {
        tun.read(&mut buffer).is_ok_and(|length| buffer[10..length].ends_with(b"out"))
    });
}

#[test]
fn addresses_of_others_can_be_served_inside() {
    let user = Unprivileged::new();
    let (network, tun) = PrivateNetwork::start(&user.settings()).expect("a private network");
    network.own("192.0.2.0/24".parse().unwrap()).expect("a route");
    let _listener = network.tcp_listener("192.0.2.7:80".parse().unwrap(), true).expect("an address of somebody else");
    is_answered(&tun, &syn([192, 0, 2, 7], 80));
}

#[test]
fn connections_to_any_address_are_redirected_inside() {
    let user = Unprivileged::new();
    let (network, tun) = PrivateNetwork::start(&user.settings()).expect("a private network");
    let listener = network.tcp_listener("0.0.0.0:15001".parse().unwrap(), false).expect("a listener");
    network.redirect_tcp(15_001).expect("nft");
    is_answered(&tun, &syn([203, 0, 113, 5], 8443));
    drop(listener);
}

#[test]
fn the_helper_says_why_it_refuses_and_goes_on() {
    let user = Unprivileged::new();
    let (network, _tun) = PrivateNetwork::start(&user.settings()).expect("a private network");
    let refused = network.tcp_listener("10.1.1.1:80".parse().unwrap(), false);
    assert!(matches!(&refused, Err(PrivateError::Refused(words)) if words.contains("10.1.1.1:80")), "{refused:?}");
    network.tcp_listener("10.77.0.1:80".parse().unwrap(), false).expect("the helper is still there");
}

#[test]
fn without_a_node_or_a_helper_the_reason_is_named() {
    let user = Unprivileged::new();
    let settings = PrivateSettings { node: user.dir.join("none"), ..user.settings() };
    let refused = PrivateNetwork::start(&settings).map(drop);
    assert!(matches!(&refused, Err(PrivateError::Refused(words)) if words.contains("none")), "{refused:?}");
    let settings = PrivateSettings { program: user.dir.join("none"), ..user.settings() };
    assert!(matches!(PrivateNetwork::start(&settings).map(drop), Err(PrivateError::Program(..))));
    let settings = PrivateSettings { program: "true".into(), arguments: vec![], ..user.settings() };
    assert!(matches!(PrivateNetwork::start(&settings).map(drop), Err(PrivateError::Gone(_))));
}

#[test]
fn the_helper_ends_with_whoever_started_it() {
    let user = Unprivileged::new();
    // A socket whose other end is closed at once: the same as a gateway that was killed.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut helper = Command::new(user.program())
        .arg("private-network")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    assert_eq!(helper.try_wait().unwrap(), None);
    drop(ours);
    eventually("the helper ends", || helper.try_wait().unwrap().is_some_and(|status| status.success()));
    assert!(Path::new(&user.node()).exists());
}
