//! What an endpoint and its connections on one arbiter share: the socket, spare buffers for packets, and counters.
//! Never leaves the arbiter.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::actors::{Counter, Turn};
use crate::transports::udp::{TRAIN, Transmit, UdpSocket};

/// Datagrams of up to this many bytes are copied out of the receive buffer, so that a short one does not pin 64 KiB.
pub(super) const SMALL: usize = 2_048;
/// Spare buffers of each size that are kept.
const SPARES: usize = 64;

/// See the top of the file.
pub(super) struct Shared {
    pub(super) socket: UdpSocket,
    /// The socket is bound to a wildcard: answers must name the address they come from.
    pub(super) answers_from_asked: bool,
    pub(super) counters: Counters,
    /// Sockets of connections that have moved; on a client alone.
    others: RefCell<Vec<Rc<UdpSocket>>>,
    large: RefCell<Vec<Vec<u8>>>,
    small: RefCell<Vec<Vec<u8>>>,
}

impl Shared {
    pub(super) fn new(socket: UdpSocket, answers_from_asked: bool, counters: Counters) -> Self {
        Self {
            socket,
            answers_from_asked,
            counters,
            others: RefCell::default(),
            large: RefCell::default(),
            small: RefCell::default(),
        }
    }

    /// Adds a socket for one connection.
    pub(super) fn add(&self, socket: UdpSocket) {
        self.others.borrow_mut().push(Rc::new(socket));
    }

    /// Closes it.
    pub(super) fn remove(&self, local: SocketAddr) {
        self.others.borrow_mut().retain(|socket| socket.local_addr() != local);
    }

    /// One after the other of those that were added.
    pub(super) fn other(&self, number: usize) -> Option<Rc<UdpSocket>> {
        self.others.borrow().get(number).cloned()
    }

    /// Sends from the socket that has this address. If it was closed meanwhile, the bytes are lost on the way.
    pub(super) fn try_send(&self, from: SocketAddr, transmit: &Transmit<'_>) -> io::Result<usize> {
        let others = self.others.borrow();
        if others.is_empty() || from == self.socket.local_addr() {
            return self.socket.try_send(transmit);
        }
        match others.iter().find(|socket| socket.local_addr() == from) {
            Some(socket) => socket.try_send(transmit),
            None => Ok(transmit.contents.len()),
        }
    }

    /// Ready when all sockets may take something again.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let others = self.others.borrow();
        let all = std::iter::once(&self.socket).chain(others.iter().map(Rc::as_ref));
        let mut ready = true;
        for socket in all {
            ready &= socket.poll_writable(cx).is_ready();
        }
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// A buffer of the size of a train, its contents undefined.
    pub(super) fn large(&self) -> Vec<u8> {
        self.large.borrow_mut().pop().unwrap_or_else(|| vec![0; TRAIN])
    }

    /// A buffer with these bytes.
    pub(super) fn copy_of(&self, bytes: &[u8]) -> Vec<u8> {
        if bytes.len() > SMALL {
            let mut buffer = self.large();
            if let Some(place) = buffer.get_mut(..bytes.len()) {
                place.copy_from_slice(bytes);
            }
            return buffer;
        }
        let mut buffer = self.small.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SMALL));
        buffer.clear();
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Takes a buffer back. What is beyond the number of spares is freed.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        let spares = if buffer.len() == TRAIN { &self.large } else { &self.small };
        let mut spares = spares.borrow_mut();
        if spares.len() < SPARES {
            spares.push(buffer);
        }
    }
}

/// What is counted, on this arbiter, for one server or client. See docs/quic.md for the names.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) packets_in: Counter,
    pub(super) bytes_in: Counter,
    pub(super) packets_out: Counter,
    pub(super) bytes_out: Counter,
    pub(super) forwarded: Counter,
    pub(super) send_errors: Counter,
    pub(super) send_blocked: Counter,
    pub(super) inbox_full: Counter,
    pub(super) retired_id: Counter,
    pub(super) datagrams_full: Counter,
    pub(super) datagrams_expired: Counter,
    pub(super) datagrams_too_large: Counter,
    pub(super) datagrams_unread: Counter,
    pub(super) migrations: Counter,
}

impl Counters {
    pub(super) fn of<M: Send + 'static>(turn: &Turn<'_, M>, scope: &Arc<str>) -> Self {
        Self {
            packets_in: turn.counter("quic_packets_in", scope, ""),
            bytes_in: turn.counter("quic_bytes_in", scope, ""),
            packets_out: turn.counter("quic_packets_out", scope, ""),
            bytes_out: turn.counter("quic_bytes_out", scope, ""),
            forwarded: turn.counter("quic_forwarded", scope, ""),
            send_errors: turn.counter("quic_send_errors", scope, ""),
            send_blocked: turn.counter("quic_send_blocked", scope, ""),
            inbox_full: turn.counter("quic_packets_dropped", scope, "inbox_full"),
            retired_id: turn.counter("quic_packets_dropped", scope, "retired_id"),
            datagrams_full: turn.counter("quic_datagrams_dropped", scope, "full"),
            datagrams_expired: turn.counter("quic_datagrams_dropped", scope, "expired"),
            datagrams_too_large: turn.counter("quic_datagrams_dropped", scope, "too_large"),
            datagrams_unread: turn.counter("quic_datagrams_dropped", scope, "unread"),
            migrations: turn.counter("quic_migrations", scope, ""),
        }
    }
}
