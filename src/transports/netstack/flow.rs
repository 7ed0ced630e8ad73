//! One connection of a netstack: a socket of smoltcp on one side, a stream on the other, and bytes moved between the two.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state_flows::Ends;
use super::stream::{Far, NetStream};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Service(SocketAddr),
    Forward,
    Ours,
}

/// One connection.
pub(super) struct Flow {
    pub(super) handle: SocketHandle,
    pub(super) ends: Ends,
    pub(super) kind: Kind,
    /// The end for others, until the connection stands.
    pub(super) near: Option<NetStream>,
    pub(super) far: Far,
    pub(super) waker: Waker,
    pub(super) opened: Instant,
    pub(super) stands: bool,
    /// The peer has sent its end; it may have to wait behind what is not read yet.
    pub(super) peer_ended: bool,
    /// The peer's end was passed on.
    pub(super) heard_end: bool,
    /// Our end was sent.
    pub(super) said_end: bool,
    pub(super) aborted: bool,
}

/// What came from the peer goes to whoever serves the flow.
pub(super) fn inward(flow: &mut Flow, socket: &mut tcp::Socket<'_>, cx: &mut Context<'_>) -> u64 {
    let mut moved = 0;
    while socket.can_recv() {
        let taken = socket.recv(|bytes| match Pin::new(&mut flow.far.pipe).poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) => (count, Some(count)),
            Poll::Ready(Err(_)) => (bytes.len(), None),
            Poll::Pending => (0, Some(0)),
        });
        match taken {
            Ok(Some(0)) | Err(_) => return moved,
            Ok(Some(count)) => moved += count as u64,
            Ok(None) => {
                // Nobody reads it any more.
                socket.abort();
                flow.aborted = true;
                return moved;
            }
        }
    }
    let in_order = flow.peer_ended || socket.state() != tcp::State::Closed;
    let ended = flow.stands && !flow.heard_end && !socket.may_recv() && in_order;
    if ended && Pin::new(&mut flow.far.pipe).poll_shutdown(cx).is_ready() {
        flow.heard_end = true;
    }
    moved
}

/// What the service wrote goes to the peer.
pub(super) fn outward(flow: &mut Flow, socket: &mut tcp::Socket<'_>, cx: &mut Context<'_>) -> u64 {
    let mut moved = 0;
    while flow.stands && !flow.said_end && socket.can_send() {
        let given = socket.send(|room| {
            let mut buffer = ReadBuf::new(room);
            match Pin::new(&mut flow.far.pipe).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => (buffer.filled().len(), Some(buffer.filled().len())),
                Poll::Ready(Err(_)) => (0, Some(0)),
                Poll::Pending => (0, None),
            }
        });
        match given {
            Ok(Some(0)) => {
                flow.said_end = true;
                if flow.far.aborted() {
                    socket.abort();
                    flow.aborted = true;
                } else {
                    socket.close();
                }
            }
            Ok(Some(count)) => moved += count as u64,
            Ok(None) | Err(_) => break,
        }
    }
    moved
}
