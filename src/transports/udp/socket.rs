//! One UDP socket that does not block: trains of datagrams in one system call each way, where the kernel can.
//!
//! Datagrams go out by segmentation offload (GSO) and come in merged (GRO), through quinn-udp. A network that refuses
//! offload is met by single datagrams from then on, counted. Nothing is queued and nothing allocated here: what does
//! not fit into the kernel's buffer is refused with `WouldBlock` and stays with the caller.
//!
//! The socket belongs to the arbiter it was made on. One actor reads and waits; others on the same arbiter may send.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, ErrorKind, IoSliceMut};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use tokio::io::Interest;

use super::options;

/// The largest train the kernel takes or merges: 64 datagrams, 65,535 bytes with headers. Buffers for receiving should
/// have this size; a longer train is cut by the kernel.
pub const TRAIN: usize = 65_535;

/// How a socket is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of the kernel's receive buffer to ask for; 0 = what the system gives. It may grant less, which is logged once
    /// per socket.
    pub receive_buffer: usize,
    /// Bytes of the kernel's send buffer to ask for; 0 = what the system gives.
    pub send_buffer: usize,
    /// Whether to send trains in one call where the system can. Off: every datagram is a call of its own.
    pub gso: bool,
    /// Whether datagrams longer than the network carries leave in fragments, as those of most programs do. Off: they are
    /// refused, and those on the way tell routers not to cut them.
    pub fragment: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { receive_buffer: 4 << 20, send_buffer: 4 << 20, gso: true, fragment: false }
    }
}

/// A UDP socket on an arbiter. See the top of the file.
pub struct UdpSocket {
    io: tokio::net::UdpSocket,
    state: RefCell<UdpSocketState>,
    fragment: bool,
    local: SocketAddr,
    granted: (usize, usize),
    gso: bool,
    gso_refused: Cell<u64>,
    /// Readiness is cleared in two steps, which holds only while the I/O driver runs on the same thread.
    _pinned: PhantomData<*const ()>,
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("local", &self.local).field("gso", &self.gso()).finish_non_exhaustive()
    }
}

impl UdpSocket {
    /// Takes over a bound socket. Call it on the arbiter that will use it: the socket registers with its I/O driver
    /// (tokio panics outside of one).
    ///
    /// # Errors
    /// What the system says. Buffers smaller than asked for, and a missing offload, are no errors.
    pub fn new(socket: std::net::UdpSocket, wanted: &Options) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let state = RefCell::new(state_of((&socket).into(), &socket, local, wanted.fragment)?);
        let granted = buffers(&socket, wanted)?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        let Options { gso, fragment, .. } = *wanted;
        Ok(Self { io, state, fragment, local, granted, gso, gso_refused: Cell::new(0), _pinned: PhantomData })
    }

    /// The address it is bound to.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The local address a datagram was sent to: that of the socket, with the address the peer asked in place of a
    /// wildcard. An answer whose [`Transmit::src_ip`] is this address's leaves from it.
    #[must_use]
    pub fn asked(&self, meta: &RecvMeta) -> SocketAddr {
        meta.dst_ip.map_or(self.local, |ip| SocketAddr::new(ip, self.local.port()))
    }

    /// The bytes of the kernel's receive and send buffers.
    #[must_use]
    pub const fn granted(&self) -> (usize, usize) {
        self.granted
    }

    /// How many datagrams one [`try_send`](Self::try_send) may hand to the kernel in one call: 64, or 1 if offload is
    /// off, missing or was refused.
    #[must_use]
    pub fn max_gso_segments(&self) -> usize {
        if self.gso { self.state.borrow().max_gso_segments() } else { 1 }
    }

    /// Whether trains leave in one call.
    #[must_use]
    pub fn gso(&self) -> bool {
        self.max_gso_segments() > 1
    }

    /// How often the system refused a train and it was sent as single datagrams. It happens once: from then on trains
    /// are not offered.
    #[must_use]
    pub const fn gso_refused(&self) -> u64 {
        self.gso_refused.get()
    }

    /// How many datagrams the kernel dropped since nobody read them in time, modulo 2³²; nothing where it does not say.
    /// A system call: for a timer, not for each datagram.
    #[must_use]
    pub fn dropped(&self) -> Option<u32> {
        options::dropped(&self.io).ok()
    }

    /// Receives up to `buffers.len()` trains (at most [`BATCH_SIZE`](super::BATCH_SIZE)) and answers how many; `meta`
    /// says of each whence it came and how long its datagrams are (`stride`, never 0; the last may be shorter). An
    /// empty datagram has `len` 0. When there is nothing, the task of `cx` is woken when there is.
    ///
    /// # Errors
    /// What the system says; never `WouldBlock`.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            match self.io.try_io(Interest::READABLE, || self.try_recv(buffers, meta)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// As [`poll_recv`](Self::poll_recv), without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; else what the system says.
    pub fn try_recv(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let received = self.state.borrow().recv((&self.io).into(), buffers, meta)?;
        for meta in meta.iter_mut().take(received) {
            // Anybody may send an empty datagram, and `chunks(0)` panics.
            meta.stride = meta.stride.max(1);
        }
        Ok(received)
    }

    /// Tells it that the last receive took everything, since it brought fewer trains than there was room for: then
    /// [`poll_recv`](Self::poll_recv) waits for the kernel's next word, without a system call that only says so. What
    /// comes after that receive is such a word; it cannot have been heard yet, as the I/O driver runs on this thread.
    pub fn emptied(&self) {
        drop(self.io.try_io(Interest::READABLE, || io::Result::<()>::Err(ErrorKind::WouldBlock.into())));
    }

    /// Sends one datagram over a connected socket, at less cost than [`try_send`](Self::try_send).
    ///
    /// # Errors
    /// As there; and what the network said of an earlier datagram (`ConnectionRefused`), which is then not told again.
    /// This one was not sent either way.
    pub fn send_connected(&self, contents: &[u8]) -> io::Result<()> {
        // Past tokio, which takes a socket for busy until its event loop has seen it.
        Ok(rustix::net::send(&self.io, contents, SendFlags::DONTWAIT).map(drop)?)
    }

    /// Sends a datagram, or a train of them if `segment_size` is set, and answers how many bytes of `contents` are
    /// gone: all, unless trains are sent one by one and the kernel's buffer is full in the midst of one. The rest is
    /// the caller's to send again, after [`poll_writable`](Self::poll_writable).
    ///
    /// # Errors
    /// `WouldBlock` when the kernel's buffer is full: nothing was sent. Any other error concerns the datagram at the
    /// front of `contents` alone (too long for the path, no route to its destination): it is not sent, as if it had
    /// been lost on the way, and the socket is as good as before.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<usize> {
        let length = transmit.contents.len();
        let segment = transmit.segment_size.filter(|segment| (1..length).contains(segment));
        let offload = self.gso();
        if segment.is_none() || offload {
            match self.send(transmit) {
                Ok(()) => return Ok(length),
                // quinn-udp has read the error as "no offload here" if it answers 1 now.
                Err(_) if segment.is_some() && !self.gso() => {}
                Err(error) => return Err(self.of_datagram(error, offload)),
            }
        }
        let sent = singly(transmit.contents, segment.unwrap_or(length), |contents| {
            self.send(&Transmit { contents, segment_size: None, ..*transmit })
        });
        if !offload {
            return sent;
        }
        match sent {
            Err(error) if is_of_offload(&error) => Err(self.of_datagram(error, offload)),
            sent => {
                self.gso_refused.set(self.gso_refused.get() + 1);
                tracing::warn!(local = %self.local, "segmentation offload refused; sending single datagrams");
                sent
            }
        }
    }

    /// The error of one datagram without offload: if quinn-udp has taken it for the refusal of offload, that is undone.
    /// Else anybody could end it for all others, by a datagram from port 0.
    fn of_datagram(&self, error: io::Error, offload: bool) -> io::Error {
        if offload
            && !self.gso()
            && let Ok(state) = state_of((&self.io).into(), &self.io, self.local, self.fragment)
        {
            self.state.replace(state);
        }
        error
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.borrow().try_send((&self.io).into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            self.wait_for_room();
        }
        sent
    }

    /// Tells tokio that the socket is not writable, so that `poll_writable` waits for the kernel's next word. It cannot
    /// have come since the send was refused: the I/O driver runs on this thread.
    fn wait_for_room(&self) {
        drop(self.io.try_io(Interest::WRITABLE, || io::Result::<()>::Err(ErrorKind::WouldBlock.into())));
    }

    /// Ready with what the network said of a datagram sent before over this connected socket, told once; else the task of
    /// `cx` is woken when it says something, and each time the kernel has got rid of a datagram as well. Costs a system
    /// call, and takes the place of [`poll_writable`](Self::poll_writable).
    pub fn poll_error(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // The kernel's word wakes whoever waits for room to send; twice, if it came before this was said.
        for _ in 0..2 {
            match self.io.take_error() {
                Ok(Some(error)) | Err(error) => return Poll::Ready(error),
                Ok(None) => self.wait_for_room(),
            }
            if self.io.poll_send_ready(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    }

    /// Ready when there may be room to send again after `WouldBlock`; else the task of `cx` is woken when there is.
    /// One task waits at a time: the last one that asked.
    ///
    /// # Errors
    /// When the I/O driver is gone.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_send_ready(cx)
    }
}

/// What quinn-udp knows of a socket, and the options that it has set otherwise than they are wanted here.
fn state_of(
    socket: quinn_udp::UdpSockRef<'_>,
    options_of: &impl AsFd,
    local: SocketAddr,
    fragment: bool,
) -> io::Result<UdpSocketState> {
    let state = UdpSocketState::new(socket)?;
    options::no_timestamps(options_of)?;
    if fragment {
        options::fragment(options_of, local.is_ipv4())?;
    }
    Ok(state)
}

/// Whether quinn-udp takes this error for the refusal of offload.
fn is_of_offload(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::IO].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// How many datagrams the system sends, and receives, in one call; 1 where it has no offload.
///
/// # Errors
/// When there is no socket on loopback to be had.
pub fn trains() -> io::Result<(usize, usize)> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let state = UdpSocketState::new((&socket).into())?;
    Ok((state.max_gso_segments(), state.gro_segments()))
}

/// Sends `contents` in pieces of `segment` bytes until one is refused, and answers how many bytes are gone.
fn singly(contents: &[u8], segment: usize, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<usize> {
    let mut sent = 0;
    // An empty datagram is one piece too; `chunks` would give none, and refuses a length of 0.
    if contents.is_empty() {
        return send(contents).map(|()| 0);
    }
    for piece in contents.chunks(segment.max(1)) {
        match send(piece) {
            Ok(()) => sent += piece.len(),
            Err(error) if sent == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sent)
}

/// Asks for the buffers, beyond the system's limit where this process may, and says what was granted.
fn buffers(socket: &std::net::UdpSocket, wanted: &Options) -> io::Result<(usize, usize)> {
    if wanted.receive_buffer > 0 && sockopt::set_socket_recv_buffer_size_force(socket, wanted.receive_buffer).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, wanted.receive_buffer)?;
    }
    if wanted.send_buffer > 0 && sockopt::set_socket_send_buffer_size_force(socket, wanted.send_buffer).is_err() {
        sockopt::set_socket_send_buffer_size(socket, wanted.send_buffer)?;
    }
    // socket(7): Linux books twice the size for its own needs and answers that number.
    let received = sockopt::socket_recv_buffer_size(socket)? / 2;
    let sent = sockopt::socket_send_buffer_size(socket)? / 2;
    if received < wanted.receive_buffer || sent < wanted.send_buffer {
        tracing::info!(
            receive_wanted = wanted.receive_buffer,
            receive_granted = received,
            send_wanted = wanted.send_buffer,
            send_granted = sent,
            "UDP buffers are smaller than asked for; net.core.rmem_max and wmem_max limit them"
        );
    }
    Ok((received, sent))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
