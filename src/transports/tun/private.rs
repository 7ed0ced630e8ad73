//! The gateway's end of a private network: starts the helper, gets the interface and sockets from it, ends it.
//!
//! Requests block until the helper has answered, some 50 µs, at most five seconds: they belong to the start and to
//! reloads, not on an arbiter.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use socket2::Socket;

use super::codec_request::{MAX_REQUEST, Prefix, Request};
use super::device::{Offloads, Tun};

/// How long the helper may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a private network is made.
#[derive(Debug, Clone)]
pub struct PrivateSettings {
    /// The program that, called with `arguments`, calls [`serve_private_network`](super::serve_private_network).
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The TUN node, usually `/dev/net/tun`; must be readable and writable for this user.
    pub node: PathBuf,
    /// The interface's name inside.
    pub name: String,
    /// Its MTU.
    pub mtu: u16,
    /// Whether super-packets are asked for.
    pub offload: bool,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// The congestion control of TCP inside; `None`: the system's default.
    pub congestion: Option<String>,
}

/// A network of our own. Dropping it ends the helper; interface and sockets live as long as they are held.
#[derive(Debug)]
pub struct PrivateNetwork {
    socket: OwnedFd,
    helper: Child,
}

impl PrivateNetwork {
    /// Makes one, and the interface in it. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`PrivateError`]: with its reason, so that the caller can say why it does without.
    pub fn start(settings: &PrivateSettings) -> Result<(Self, Tun), PrivateError> {
        let local = PrivateError::System;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (socket, theirs) = pair.map_err(|error| local(error.into()))?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(PATIENCE)).map_err(|error| local(error.into()))?;
        }
        let helper = Command::new(&settings.program)
            .args(&settings.arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| PrivateError::Program(settings.program.clone(), error))?;
        let network = Self { socket, helper };
        let start = Request::Start {
            node: settings.node.display().to_string(),
            name: settings.name.clone(),
            mtu: settings.mtu,
            offload: settings.offload,
            addresses: settings.addresses.clone(),
            congestion: settings.congestion.clone(),
        };
        let (words, fd) = network.ask(&start)?;
        let fd = fd.ok_or(PrivateError::Answer)?;
        let mut flags = words.split(' ').map(|word| word == "1");
        let mut flag = || flags.next().unwrap_or(false);
        let offloads = Offloads { header: flag(), tcp: flag(), udp: flag() };
        let tun = Tun::from_fd(fd, settings.name.clone(), offloads).map_err(local)?;
        Ok((network, tun))
    }

    /// A listening TCP socket inside; it does not block. With `any`, also for addresses that are not the interface's.
    ///
    /// # Errors
    /// [`PrivateError::Refused`] if the system refuses it; see [`PrivateError`].
    pub fn tcp_listener(&self, address: SocketAddr, any: bool) -> Result<TcpListener, PrivateError> {
        Ok(self.socket(&Request::Listen { address, any })?.into())
    }

    /// A TCP socket inside, to connect with; it does not block.
    ///
    /// # Errors
    /// As [`tcp_listener`](Self::tcp_listener).
    pub fn tcp_socket(&self, v6: bool) -> Result<Socket, PrivateError> {
        self.socket(&Request::Tcp { v6 })
    }

    /// A UDP socket inside; it does not block.
    ///
    /// # Errors
    /// As [`tcp_listener`](Self::tcp_listener).
    pub fn udp_socket(&self, address: SocketAddr, any: bool) -> Result<UdpSocket, PrivateError> {
        Ok(self.socket(&Request::Udp { address, any })?.into())
    }

    /// From now on all addresses of `network` are this machine's own, inside.
    ///
    /// # Errors
    /// As [`tcp_listener`](Self::tcp_listener).
    pub fn own(&self, network: Prefix) -> Result<(), PrivateError> {
        self.ask(&Request::Own(network)).map(drop)
    }

    /// From now on TCP connections to addresses that are not the interface's own come to the listener at this port;
    /// `SO_ORIGINAL_DST` tells where they wanted to. Needs the program `nft`.
    ///
    /// # Errors
    /// As [`tcp_listener`](Self::tcp_listener).
    pub fn redirect_tcp(&self, port: u16) -> Result<(), PrivateError> {
        self.ask(&Request::Redirect(port)).map(drop)
    }

    /// The helper's process, by which `nsenter -t PID -U -n` leads inside.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.helper.id()
    }

    fn socket(&self, request: &Request) -> Result<Socket, PrivateError> {
        let (_, fd) = self.ask(request)?;
        fd.map(Socket::from).ok_or(PrivateError::Answer)
    }

    /// Asks; the words behind `ok`, and the descriptor if there is one.
    fn ask(&self, request: &Request) -> Result<(String, Option<OwnedFd>), PrivateError> {
        let gone = |error: rustix::io::Errno| match error {
            rustix::io::Errno::AGAIN => PrivateError::Silent,
            error => PrivateError::Gone(error.into()),
        };
        rustix::net::send(&self.socket, request.to_string().as_bytes(), SendFlags::NOSIGNAL).map_err(gone)?;
        let mut buffer = vec![0; MAX_REQUEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).map_err(gone)?;
        let fd = control
            .drain()
            .find_map(|message| if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None });
        let text = buffer.get(..got.bytes).unwrap_or_default();
        if text.is_empty() {
            return Err(PrivateError::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        let text = String::from_utf8_lossy(text);
        match text.split_once(' ') {
            Some(("ok", words)) => Ok((words.to_owned(), fd)),
            Some(("no", words)) => Err(PrivateError::Refused(words.to_owned())),
            _ => Err(PrivateError::Answer),
        }
    }
}

impl Drop for PrivateNetwork {
    fn drop(&mut self) {
        // It would end by itself once its socket closes; this way it can be waited for here and leaves no zombie.
        let _ended_already = self.helper.kill();
        let _reaped = self.helper.wait();
    }
}

/// Why there is no private network, or no socket in it.
#[derive(Debug)]
#[non_exhaustive]
pub enum PrivateError {
    /// The helper's program could not be started.
    Program(PathBuf, io::Error),
    /// The system refused what was asked for, in the helper's words.
    Refused(String),
    /// The helper has ended.
    Gone(io::Error),
    /// The helper did not answer in time: the program is not one of ours.
    Silent,
    /// The helper's answer makes no sense: the program is not one of ours.
    Answer,
    /// A socket to talk to the helper could not be made.
    System(io::Error),
}

impl fmt::Display for PrivateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(program, error) => write!(f, "{} cannot be started: {error}", program.display()),
            Self::Refused(words) => f.write_str(words),
            Self::Gone(error) => write!(f, "the helper of the private network has ended: {error}"),
            Self::Silent => f.write_str("the helper of the private network does not answer"),
            Self::Answer => f.write_str("the helper of the private network answers nonsense"),
            Self::System(error) => write!(f, "no socket for the helper: {error}"),
        }
    }
}

impl std::error::Error for PrivateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Program(_, error) | Self::Gone(error) | Self::System(error) => Some(error),
            Self::Refused(_) | Self::Silent | Self::Answer => None,
        }
    }
}
