//! The actor of one flow of datagrams: a socket of this machine on one side, packets of a tunnel on the other.
//!
//! What comes in goes out by the socket, one datagram for one datagram; what the socket brings goes back as packets, in
//! batches. A datagram that the socket or the tunnel has no room for is dropped and counted, as a network would. The
//! flow ends when nothing has moved for its idle time.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::actor::Uplink;
use super::codec_datagram::{HEADERS_V4, HEADERS_V6, read, write};
use super::state_flows::Ends;
use crate::actors::{Counter, Fault, Progress, Protocol, Turn, clock};
use crate::transports::kit::balance::Picked;
use crate::transports::kit::packets::Packets;

/// Datagrams received per turn, at most.
const AT_ONCE: usize = 16;
/// The batch that goes back: of a whole turn.
const BACK: usize = AT_ONCE;

/// What a flow is told.
pub(super) enum ToFlow {
    /// Packets with datagrams of this flow, judged before.
    Send(Packets),
}

/// What a flow is made of.
pub(super) struct FlowParts {
    pub(super) name: Arc<str>,
    pub(super) ends: Ends,
    /// Where its datagrams go.
    pub(super) target: SocketAddr,
    /// The place at a server of an upstream, given back when the flow ends.
    pub(super) _picked: Option<Picked>,
    pub(super) idle: Duration,
    pub(super) mtu: usize,
}

#[derive(Default)]
struct Counters {
    up: Counter,
    down: Counter,
    busy: Counter,
    unreachable: Counter,
    too_long: Counter,
    tunnel_busy: Counter,
}

/// The actor.
pub(super) struct DatagramFlow<U> {
    parts: FlowParts,
    uplink: U,
    socket: Option<UdpSocket>,
    back: Packets,
    moved: Instant,
    counters: Counters,
}

impl<U: Uplink> DatagramFlow<U> {
    pub(super) fn new(parts: FlowParts, uplink: U, now: Instant) -> Self {
        let back = Packets::none();
        Self { parts, uplink, socket: None, back, moved: now, counters: Counters::default() }
    }

    fn open(&self) -> io::Result<UdpSocket> {
        let to = self.parts.target;
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    fn send(&self, packets: &Packets) {
        let Some(socket) = &self.socket else { return };
        for packet in packets.iter() {
            let Ok(datagram) = read(packet) else { continue };
            // Past tokio, which takes a socket for busy until its event loop has seen it.
            let send = || rustix::net::send(socket, datagram.content, SendFlags::DONTWAIT);
            let sent = send().or_else(|error| {
                // The word of an earlier one that nobody was there: it says nothing of this one.
                if error == Errno::CONNREFUSED {
                    self.counters.unreachable.add(1);
                    send()
                } else {
                    Err(error)
                }
            });
            match sent {
                Ok(_) => self.counters.up.add(1),
                Err(Errno::AGAIN) => self.counters.busy.add(1),
                Err(_) => self.counters.unreachable.add(1),
            }
        }
    }

    /// What the socket brought goes into the tunnel. Answers whether more may wait in it.
    fn receive(&mut self, turn: &mut Turn<'_, ToFlow>) -> Progress {
        let headers = if self.parts.ends.local.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
        let (from, to) = (self.parts.ends.local, self.parts.ends.remote);
        let mut progress = Progress::More;
        turn.scratch(|turn, scratch| {
            for _ in 0..AT_ONCE {
                let Some(socket) = &self.socket else { return };
                let mut buffer = ReadBuf::new(scratch);
                match socket.poll_recv(&mut turn.cx(), &mut buffer) {
                    Poll::Pending => {
                        progress = Progress::Idle;
                        return;
                    }
                    Poll::Ready(Err(_)) => {
                        self.counters.unreachable.add(1);
                        continue;
                    }
                    Poll::Ready(Ok(())) => {}
                }
                self.moved = turn.now();
                let content = buffer.filled();
                let length = headers + content.len();
                if length > self.parts.mtu {
                    self.counters.too_long.add(1);
                    continue;
                }
                if self.back.held() == 0 {
                    self.back = Packets::with_capacity(BACK * self.parts.mtu.next_multiple_of(16), BACK);
                }
                self.back.push_with(length, |room| write(room, from, to, content));
            }
        });
        self.hand_back();
        progress
    }

    fn hand_back(&mut self) {
        if self.back.is_empty() {
            return;
        }
        self.counters.down.add(self.back.len() as u64);
        let back = std::mem::replace(&mut self.back, Packets::none());
        self.back = self.uplink.deliver(back).unwrap_or_else(|mut refused| {
            self.counters.tunnel_busy.add(refused.len() as u64);
            refused.clear();
            refused
        });
    }
}

impl<U: Uplink> Protocol for DatagramFlow<U> {
    type Msg = ToFlow;
    const KIND: &'static str = "udp_flow";

    fn size(m: &ToFlow) -> usize {
        let ToFlow::Send(packets) = m;
        packets.held()
    }

    fn started(&mut self, turn: &mut Turn<'_, ToFlow>) -> Result<(), Fault> {
        let scope = &self.parts.name;
        let dropped = |reason| turn.counter("netstack_dropped", scope, reason);
        self.counters = Counters {
            up: turn.counter("netstack_datagrams", scope, "up"),
            down: turn.counter("netstack_datagrams", scope, "down"),
            busy: dropped("socket_busy"),
            unreachable: dropped("unreachable"),
            too_long: dropped("too_long"),
            tunnel_busy: dropped("tunnel_busy"),
        };
        let socket = self.open().map_err(|error| {
            dropped("no_socket").add(1);
            Fault::local("udp_socket", error.to_string())
        });
        self.socket = Some(socket?);
        Ok(())
    }

    fn on(&mut self, m: ToFlow, turn: &mut Turn<'_, ToFlow>) -> Result<(), Fault> {
        let ToFlow::Send(packets) = m;
        self.moved = turn.now();
        self.send(&packets);
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, ToFlow>) -> Result<Progress, Fault> {
        Ok(self.receive(turn))
    }

    fn deadline(&self) -> Option<Instant> {
        Some(clock::later(self.moved, self.parts.idle))
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToFlow>) -> Result<(), Fault> {
        if turn.now() >= clock::later(self.moved, self.parts.idle) {
            turn.stop();
        }
        Ok(())
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, ToFlow>) {
        turn.stop();
    }

    fn held(&self) -> usize {
        self.back.held()
    }
}
