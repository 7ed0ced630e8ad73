//! The helper of a private network: a process with one thread that makes a user and a network namespace and a TUN
//! interface in it, and then opens sockets there for whoever started it.
//!
//! Making a user namespace needs a process with one thread (unshare(2)), which the gateway is not: it starts its own
//! program again, which comes here before it starts anything. Standard input is a socket; each request on it is
//! answered with the descriptor asked for. Its end, also the violent end of the gateway, ends the helper. What it
//! opened lives on in whoever holds it.
//!
//! `unsafe` is the call of unshare.
#![allow(unsafe_code, reason = "unshare(2) has no safe wrapper that is not deprecated")]

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use socket2::{Domain, Protocol, Socket, Type};

use super::codec_request::{MAX_REQUEST, Prefix, Request};
use super::device::{OffloadKnob, Tun};
use super::interface::{Interface, configure, nft};

/// Connections that may wait to be accepted on a socket inside.
const BACKLOG: i32 = 1_024;

/// Serves requests on standard input until it ends. The process must have no other thread.
///
/// # Errors
/// Standard input is no socket, or the system refuses to read from it.
pub fn serve_private_network() -> io::Result<()> {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let mut inside = None;
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        if length == 0 {
            return Ok(());
        }
        let request = buffer.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        let outcome = match request {
            Some(request) => serve(request, &mut inside),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a request")),
        };
        match outcome {
            Ok(Answer { fd, words }) => answer(socket, &format!("ok {words}"), fd)?,
            Err(error) => answer(socket, &format!("no {error}"), None)?,
        }
    }
}

struct Answer {
    fd: Option<OwnedFd>,
    words: String,
}

impl From<OwnedFd> for Answer {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), words: String::new() }
    }
}

/// The network, once it is made.
struct Inside {
    name: String,
    lo: Interface,
}

fn serve(request: Request, inside: &mut Option<Inside>) -> io::Result<Answer> {
    match (request, inside.as_ref()) {
        (Request::Start { node, name, mtu, offload, addresses, congestion }, None) => {
            let tun = start(Path::new(&node), &name, mtu, offload, &addresses)?;
            if let Some(word) = congestion {
                let file = "/proc/sys/net/ipv4/tcp_congestion_control";
                fs::write(file, &word).map_err(|error| says(&format!("congestion control {word}"), &error))?;
            }
            let offloads = tun.offloads();
            let words = format!("{} {} {}", u8::from(offloads.header), u8::from(offloads.tcp), u8::from(offloads.udp));
            *inside = Some(Inside { name, lo: Interface::of("lo")? });
            Ok(Answer { fd: Some(tun.into()), words })
        }
        (Request::Start { .. }, Some(_)) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the network is made")),
        (_, None) => Err(io::Error::new(io::ErrorKind::NotConnected, "the network is not made yet")),
        (Request::Listen { address, any }, Some(_)) => {
            let socket = socket(address, Type::STREAM, Protocol::TCP, any)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into()).map_err(|error| says(&format!("TCP {address}"), &error))?;
            socket.listen(BACKLOG)?;
            Ok(OwnedFd::from(socket).into())
        }
        (Request::Tcp { v6 }, Some(_)) => {
            let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
            Ok(OwnedFd::from(Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?).into())
        }
        (Request::Udp { address, any }, Some(_)) => {
            let socket = socket(address, Type::DGRAM, Protocol::UDP, any)?;
            if any {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&address.into()).map_err(|error| says(&format!("UDP {address}"), &error))?;
            Ok(OwnedFd::from(socket).into())
        }
        (Request::Own(prefix), Some(inside)) => {
            inside.lo.own(prefix)?;
            Ok(Answer { fd: None, words: String::new() })
        }
        (Request::Redirect(port), Some(inside)) => {
            redirect(&inside.name, port)?;
            Ok(Answer { fd: None, words: String::new() })
        }
    }
}

fn start(node: &Path, name: &str, mtu: u16, offload: bool, addresses: &[Prefix]) -> io::Result<Tun> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // A program its user may run but not read has its /proc owned by root.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    // SAFETY: of the flags only CLONE_FILES could take descriptors away from other threads; it is not given, and
    // there is no other thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }
        .map_err(|error| says("user and network namespaces", &error.into()))?;
    // user_namespaces(7): the group map may be written only after setgroups is given up.
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        fs::write(file, text).map_err(|error| says(file, &error))?;
    }
    // For the programs this may start. The maps are written first: they need nothing that this takes away, but a
    // security module may think otherwise.
    rustix::thread::set_no_new_privs(true)?;
    Interface::of("lo")?.up(0)?;
    let knob = if offload { OffloadKnob::Auto } else { OffloadKnob::Off };
    let tun =
        Tun::open(node, name, knob).map_err(|error| says(&node.display().to_string(), &io::Error::other(error)))?;
    let interface = configure(tun.name(), mtu, addresses)?;
    // Whatever is not this machine's own goes into the tunnel, which knows what it may carry.
    for v6 in [false, true] {
        if addresses.iter().any(|address| address.address.is_ipv6() == v6) {
            let all = if v6 { "::/0" } else { "0.0.0.0/0" };
            let all = all.parse().map_err(io::Error::other)?;
            interface.add_route(all).map_err(|error| says("default route", &error))?;
        }
    }
    Ok(tun)
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol, any: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if any {
        // For IPv6 too this sets the socket's one flag, which both families look at.
        socket.set_ip_transparent_v4(true)?;
    }
    Ok(socket)
}

/// Hands every TCP connection that comes in through the interface and is not for its own addresses to one port.
fn redirect(name: &str, port: u16) -> io::Result<()> {
    let rules = format!(
        "table inet portway {{
            chain inbound {{
                type nat hook prerouting priority dstnat;
                iifname \"{name}\" fib daddr type local return
                iifname \"{name}\" meta l4proto tcp redirect to :{port}
            }}
        }}\n"
    );
    nft(&rules)
}

fn answer(socket: BorrowedFd<'_>, text: &str, fd: Option<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_ref().map(AsFd::as_fd);
    let fds = fds.as_slice();
    if !fds.is_empty() {
        let _fits = control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn says(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
