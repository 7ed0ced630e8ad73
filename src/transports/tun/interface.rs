//! Gives an interface its MTU, addresses and routes, through rtnetlink: no program of the host is called.
//!
//! Blocks for the time of a few system calls. It acts on the network of the calling thread.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use super::codec_request::Prefix;
use super::codec_rtnetlink::{self, Route, Rule};

/// Packets the kernel keeps for us to read before it drops: its own default of 500 is few for a burst of
/// super-packets.
const QUEUE: u32 = 1_000;

/// Priorities of the two rules for a tunnel that takes everything; the kernel's own rule for the main table is 32,766.
const MAIN_FIRST: u32 = 32_764;
const THEN_TUNNEL: u32 = 32_765;

/// A link of the network this was made in, and the socket by which it is changed.
#[derive(Debug)]
pub struct Interface {
    socket: OwnedFd,
    index: u32,
}

impl Interface {
    /// The interface of this name.
    ///
    /// # Errors
    /// What the system says; `NotFound` or `NO_DEVICE` if there is none.
    pub fn of(name: &str) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let any = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let index = netdevice::name_to_index(&any, name)?;
        Ok(Self { socket, index })
    }

    /// Sets it up, with this MTU unless it is 0.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn up(&self, mtu: u16) -> io::Result<()> {
        let queue = if mtu > 0 { QUEUE } else { 0 };
        self.ask(&codec_rtnetlink::link_up(self.index, mtu, queue))
    }

    /// Has the kernel make no IPv6 address of its own for it. A system without IPv6 has nothing to refrain from.
    fn no_own_addresses(&self) {
        if let Err(error) = self.ask(&codec_rtnetlink::no_own_addresses(self.index)) {
            tracing::debug!(%error, "the interface gets a link-local address");
        }
    }

    /// Adds an address.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn add_address(&self, address: Prefix) -> io::Result<()> {
        self.ask(&codec_rtnetlink::address(self.index, address))
    }

    /// Routes a network through it, instead of where it went before.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn add_route(&self, network: Prefix) -> io::Result<()> {
        self.ask(&codec_rtnetlink::route(self.index, network, Route::Through))
    }

    /// Takes such a route away.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_route(&self, network: Prefix) -> io::Result<()> {
        self.ask(&codec_rtnetlink::without_route(self.index, network))
    }

    /// Treats all addresses of a network as this machine's own; for the loopback interface.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn own(&self, network: Prefix) -> io::Result<()> {
        self.ask(&codec_rtnetlink::route(self.index, network, Route::Local))
    }

    /// Sends everything of one family through it that has no more special route, but for packets with this mark:
    /// a table of its own and two rules, as wg-quick(8) does. `undo` takes the rules away; the routes go with the
    /// interface.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn take_all(&self, v6: bool, mark: u32, undo: bool) -> io::Result<()> {
        if !undo {
            self.ask(&codec_rtnetlink::default_route(self.index, v6, mark))?;
        }
        let rules = [(MAIN_FIRST, Rule::MainWithoutDefault), (THEN_TUNNEL, Rule::Unmarked { mark, table: mark })];
        for (priority, rule) in rules {
            self.ask(&codec_rtnetlink::rule(!undo, v6, priority, rule))?;
        }
        Ok(())
    }

    fn ask(&self, message: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, message, SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        codec_rtnetlink::answer(answer.get(..length).unwrap_or_default()).map_err(io::Error::from_raw_os_error)
    }
}

/// Sets up an interface with its addresses.
///
/// # Errors
/// What the kernel answered, with the word for what it refused.
pub fn configure(name: &str, mtu: u16, addresses: &[Prefix]) -> io::Result<Interface> {
    let says = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let interface = Interface::of(name).map_err(says(format!("interface {name}")))?;
    interface.no_own_addresses();
    interface.up(mtu).map_err(says(format!("MTU {mtu} of {name}")))?;
    for address in addresses {
        interface.add_address(*address).map_err(says(format!("address {address} of {name}")))?;
    }
    Ok(interface)
}

/// Gives rules to `nft`.
///
/// # Errors
/// The program is not installed, or says why it refuses them.
pub(super) fn nft(rules: &str) -> io::Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("nft: {error}")))?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let out = nft.wait_with_output()?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("nft: {}", said.lines().next().unwrap_or("refused"))))
}
