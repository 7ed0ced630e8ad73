//! The way into the tunnels: packets from inside, by the longest prefix of their destination, to the session of a peer.
//!
//! Used by whatever reads packets inside: a TUN, a netstack. A batch for one peer goes on as it is; a mixed one is split.
//! A peer without a session is woken through its device. What leads nowhere or finds no room is dropped and counted.

use std::fmt;
use std::net::IpAddr;

use super::actor_device::DeviceMsg;
use super::actor_session::SessionMsg;
use super::codec_inner;
use super::table::{Published, View};
use crate::actors::{Mail, Refused};
use crate::transports::kit::packets::{Deliver, Packets};
use crate::transports::netstack::Uplink;

/// See the top of the file. One for each reader.
pub struct Router {
    view: View,
    device: Mail<DeviceMsg>,
    /// Lost since the device was last told: without a route, without room.
    lost: [(&'static str, u64); 2],
    parts: Vec<(u32, Packets)>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

impl Router {
    pub(super) fn new(published: &Published, device: Mail<DeviceMsg>) -> Self {
        Self { view: published.view(), device, lost: [("no_route", 0), ("peer_busy", 0)], parts: Vec::new() }
    }

    fn peer_of(&mut self, packet: &[u8]) -> Option<u32> {
        codec_inner::destination(packet).and_then(|to| self.view.get().peer_of(to))
    }

    /// Splits a batch by peer.
    fn split(&mut self, packets: &Packets) {
        for packet in packets.iter() {
            let Some(peer) = self.peer_of(packet) else {
                self.lost[0].1 += 1;
                continue;
            };
            let fits = match self.parts.iter_mut().rev().find(|(to, _)| *to == peer) {
                Some((_, part)) => part.push(packet),
                None => false,
            };
            if !fits {
                let mut part = Packets::with_capacity(packets.bytes() + 16 * packets.len(), packets.len());
                part.push(packet);
                self.parts.push((peer, part));
            }
        }
    }

    /// To a peer's session, or to the device that starts one.
    fn hand_over(&mut self, peer: u32, packets: Packets) -> Result<(), Packets> {
        let session = self.view.get().slot(peer).and_then(|slot| slot.session.load_full());
        if let Some(session) = session {
            match session.tell(SessionMsg::Outbound(packets)) {
                Ok(()) => return Ok(()),
                Err(Refused::Closed(SessionMsg::Outbound(packets))) => return self.wake(peer, packets),
                Err(refused) => match refused.into_inner() {
                    SessionMsg::Outbound(packets) => return Err(packets),
                    SessionMsg::Inbound(_) | SessionMsg::Home(_) | SessionMsg::Set(_) | SessionMsg::Initiate => {
                        return Ok(());
                    }
                },
            }
        }
        self.wake(peer, packets)
    }

    fn wake(&self, peer: u32, packets: Packets) -> Result<(), Packets> {
        match self.device.tell(DeviceMsg::Wake(peer, packets)).map_err(Refused::into_inner) {
            Ok(()) => Ok(()),
            Err(DeviceMsg::Wake(_, packets)) => Err(packets),
            Err(_) => Ok(()),
        }
    }

    fn tell_losses(&mut self) {
        for (reason, n) in &mut self.lost {
            if *n > 0 && self.device.tell(DeviceMsg::Lost(reason, *n)).is_ok() {
                *n = 0;
            }
        }
    }
}

impl Deliver for Router {
    fn deliver(&mut self, mut packets: Packets) -> Result<Packets, Packets> {
        if packets.is_empty() {
            return Ok(packets);
        }
        let peer = packets.get(0).and_then(|packet| self.peer_of(packet));
        let mut others = false;
        for n in 1..packets.len() {
            let of = packets.get(n).and_then(codec_inner::destination);
            others |= of.and_then(|to| self.view.get().peer_of(to)) != peer;
        }
        let result = match peer {
            Some(peer) if !others => self.hand_over(peer, packets).map(|()| Packets::none()),
            Some(_) | None => {
                self.split(&packets);
                // One full mailbox must not hold up the others: what does not fit is lost.
                for (peer, part) in std::mem::take(&mut self.parts) {
                    if let Err(refused) = self.hand_over(peer, part) {
                        self.lost[1].1 += refused.len() as u64;
                    }
                }
                packets.clear();
                Ok(packets)
            }
        };
        self.tell_losses();
        result
    }
}

impl Uplink for Router {
    fn owner(&mut self, source: IpAddr) -> Option<u32> {
        self.view.get().peer_of(source)
    }
}
