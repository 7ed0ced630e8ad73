//! The sending end of an interface's socket: trains come in by mail and leave in one system call each.
//!
//! When the kernel's buffer is full, trains wait here, in order, up to a bound in bytes; beyond that they are dropped and
//! counted, as a full queue of a network card would. Empty buffers go back to the session they came from.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket as StdSocket};
use std::sync::Arc;
use std::task::Poll;

use super::actor_session::SessionMsg;
use super::counts::Drops;
use super::state_train::Train;
use crate::actors::{Counter, Fault, Layer, Mail, Progress, Protocol, Turn};
use crate::transports::udp::{Options, Transmit, UdpSocket};

/// Bytes that wait for the kernel, at most.
const WAITING: usize = 4 << 20;

/// What the sending end is told.
#[derive(Debug)]
pub(super) enum SenderMsg {
    /// Send this; the empty train goes home.
    Send(Train, Option<Mail<SessionMsg>>),
}

/// The actor.
pub(super) struct Sender {
    name: Arc<str>,
    std: Option<StdSocket>,
    options: Options,
    socket: Option<UdpSocket>,
    waiting: VecDeque<Train>,
    waiting_bytes: usize,
    /// How much of the first is gone already.
    gone: usize,
    drops: Drops,
    datagrams: Counter,
    bytes: Counter,
    errors: Counter,
    refused: u64,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Sender {
    pub(super) fn new(name: Arc<str>, socket: StdSocket, options: Options) -> Self {
        Self {
            name,
            std: Some(socket),
            options,
            socket: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            gone: 0,
            drops: Drops::default(),
            datagrams: Counter::default(),
            bytes: Counter::default(),
            errors: Counter::default(),
            refused: 0,
        }
    }

    /// Sends what is left of a train; how far it got, or nothing if it has to wait.
    fn send(&self, train: &Train, gone: usize) -> Option<usize> {
        let socket = self.socket.as_ref()?;
        let contents = train.bytes().get(gone..).unwrap_or_default();
        let transmit = Transmit {
            destination: reachable(train.address, socket.local_addr()),
            ecn: None,
            contents,
            segment_size: Some(train.segment()),
            src_ip: train.local,
        };
        let mut outcome = socket.try_send(&transmit);
        if transmit.src_ip.is_some() && outcome.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            // The address the peer knew us by may be gone: from any other it learns the new one.
            outcome = socket.try_send(&Transmit { src_ip: None, ..transmit });
        }
        match outcome {
            Ok(sent) => {
                self.bytes.add(sent as u64);
                self.datagrams.add(sent.div_ceil(train.segment().max(1)) as u64);
                Some(gone + sent)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => {
                // It concerns the datagram in front alone, which is lost as on any network.
                self.errors.add(1);
                Some(gone + train.segment().min(contents.len()))
            }
        }
    }

    /// All of a train, or as much as the kernel takes.
    fn send_all(&self, train: &Train, mut gone: usize) -> Result<(), usize> {
        while gone < train.bytes().len() {
            match self.send(train, gone) {
                Some(further) => gone = further,
                None => return Err(gone),
            }
        }
        Ok(())
    }
}

/// A socket of IPv6 reaches IPv4 by mapped addresses.
fn reachable(to: SocketAddr, local: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) if local.is_ipv6() => SocketAddr::V6(SocketAddrV6::new(v4.to_ipv6_mapped(), to.port(), 0, 0)),
        IpAddr::V4(_) | IpAddr::V6(_) => to,
    }
}

impl Protocol for Sender {
    type Msg = SenderMsg;
    const KIND: &'static str = "wireguard_tx";
    const LAYER: Layer = Layer::Link;

    fn size(m: &SenderMsg) -> usize {
        let SenderMsg::Send(train, _) = m;
        train.held()
    }

    fn started(&mut self, turn: &mut Turn<'_, SenderMsg>) -> Result<(), Fault> {
        self.datagrams = turn.counter("wireguard_datagrams_out", &self.name, "");
        self.bytes = turn.counter("wireguard_datagram_bytes_out", &self.name, "");
        self.errors = turn.counter("wireguard_send_errors", &self.name, "");
        if let Some(socket) = self.std.take() {
            let socket = UdpSocket::new(socket, &self.options);
            self.socket = Some(socket.map_err(|error| Fault::local("socket", error.to_string()))?);
        }
        Ok(())
    }

    fn on(&mut self, m: SenderMsg, turn: &mut Turn<'_, SenderMsg>) -> Result<(), Fault> {
        let SenderMsg::Send(mut train, home) = m;
        if self.waiting.is_empty() {
            match self.send_all(&train, 0) {
                Ok(()) => {
                    if let Some(home) = home {
                        train.clear(train.address, None);
                        // A session that has ended needs no buffer.
                        let _gone = home.tell(SessionMsg::Home(train));
                    }
                    return Ok(());
                }
                Err(gone) => self.gone = gone,
            }
        }
        if self.waiting_bytes + train.held() > WAITING {
            self.drops.add(turn, &self.name, "send_queue_full", train.count() as u64);
            return Ok(());
        }
        self.waiting_bytes += train.held();
        self.waiting.push_back(train);
        // `io` waits for room in the kernel.
        turn.again();
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, SenderMsg>) -> Result<Progress, Fault> {
        while let Some(train) = self.waiting.pop_front() {
            match self.send_all(&train, self.gone) {
                Ok(()) => {
                    self.gone = 0;
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(train.held());
                }
                Err(gone) => {
                    self.gone = gone;
                    self.waiting.push_front(train);
                    let Some(socket) = &self.socket else { break };
                    match socket.poll_writable(&mut turn.cx()) {
                        Poll::Pending => break,
                        Poll::Ready(Ok(())) => return Ok(Progress::More),
                        Poll::Ready(Err(error)) => return Err(Fault::local("socket", error.to_string())),
                    }
                }
            }
        }
        Ok(Progress::Idle)
    }

    fn flush(&mut self, turn: &mut Turn<'_, SenderMsg>) -> Result<Progress, Fault> {
        let refused = self.socket.as_ref().map_or(0, UdpSocket::gso_refused);
        if refused > self.refused {
            turn.counter("wireguard_gso_refused", &self.name, "").add(refused - self.refused);
            self.refused = refused;
        }
        Ok(Progress::Idle)
    }

    fn held(&self) -> usize {
        self.waiting_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_reached_from_either_kind_of_socket() {
        let v4: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
        assert_eq!(reachable(v4, "0.0.0.0:1".parse().unwrap()), v4);
        assert_eq!(reachable(v4, "[::]:1".parse().unwrap()), "[::ffff:192.0.2.1]:5".parse().unwrap());
        assert_eq!(reachable(v6, "[::]:1".parse().unwrap()), v6);
    }
}
