//! Cuts a super-packet of the kernel into the packets it stands for, each with its own headers and checksums.
//!
//! The packets go straight into a batch; a full batch stops the cutting, and it goes on with the next. What the kernel
//! left out of a packet that is none (its checksum) is filled in.

use super::codec::{Gso, Malformed, Sum, TCP, UDP, VirtioHeader, get16, get32, pseudo, put16, put32};
use crate::transports::kit::packets::Packets;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// Flags of TCP, in byte 13 of its header.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet that is being cut. It holds no bytes: the caller gives the same ones each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    kind: Kind,
    v6: bool,
    /// Where the transport header begins.
    start: usize,
    /// Where the payload begins.
    payload: usize,
    segment: usize,
    /// Where the payload not yet given out begins.
    at: usize,
    index: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing to cut.
    Whole,
    /// Nothing to cut, but the checksum to finish, at this place.
    Unfinished(usize),
    Tcp,
    Udp,
}

impl Cut {
    /// Looks at a packet and the header the kernel gave with it.
    ///
    /// # Errors
    /// [`Malformed`] if they do not fit together; the packet is to be dropped and counted.
    pub fn new(header: &VirtioHeader, packet: &[u8]) -> Result<Self, Malformed> {
        let v6 = match packet.first().map(|first| first >> 4) {
            Some(4) if packet.len() >= IPV4_HEADER => false,
            Some(6) if packet.len() >= IPV6_HEADER => true,
            _ => return Err(Malformed),
        };
        let start = usize::from(header.checksum_start);
        let mut cut =
            Self { kind: Kind::Whole, v6, start, payload: packet.len(), segment: packet.len(), at: 0, index: 0 };
        if header.gso == Gso::None {
            if header.needs_checksum {
                let field = start + usize::from(header.checksum_offset);
                if field + 2 > packet.len() {
                    return Err(Malformed);
                }
                cut.kind = Kind::Unfinished(field);
            }
            return Ok(cut);
        }
        let at_least = if v6 { IPV6_HEADER } else { IPV4_HEADER };
        // The kernel's own `headers` may be the length of the whole first packet where it forwards (noted in
        // wireguard-go): the transport header says itself how long it is.
        let (kind, length) = match header.gso {
            Gso::Tcp4 | Gso::Tcp6 => {
                let words = packet.get(start + 12).ok_or(Malformed)? >> 4;
                (Kind::Tcp, usize::from(words) * 4)
            }
            Gso::Udp | Gso::None => (Kind::Udp, UDP_HEADER),
        };
        let family_fits = match header.gso {
            Gso::Tcp4 => !v6,
            Gso::Tcp6 => v6,
            Gso::Udp | Gso::None => true,
        };
        let long_enough = kind == Kind::Udp || length >= 20;
        let payload = start + length;
        if !family_fits || !long_enough || start < at_least || payload >= packet.len() || header.segment == 0 {
            return Err(Malformed);
        }
        Ok(Self { kind, payload, segment: usize::from(header.segment), at: payload, ..cut })
    }

    /// Appends packets until all are given out (true) or `out` takes no more (false: call again with an empty one).
    /// `packet` is the one given to [`Cut::new`].
    pub fn fill(&mut self, packet: &[u8], out: &mut Packets) -> bool {
        match self.kind {
            Kind::Whole => out.push(packet),
            Kind::Unfinished(field) => out.push_with(packet.len(), |room| {
                room.copy_from_slice(packet);
                let sum = Sum::default().add(room.get(self.start..).unwrap_or_default());
                put16(room, field, finished(sum, field == self.start + 6));
                packet.len()
            }),
            Kind::Tcp | Kind::Udp => {
                while self.at < packet.len() {
                    let end = (self.at + self.segment).min(packet.len());
                    if !out.push_with(self.payload + end - self.at, |room| self.write(packet, end, room)) {
                        return false;
                    }
                    self.at = end;
                    self.index = self.index.wrapping_add(1);
                }
                true
            }
        }
    }

    /// Writes one packet with the payload from `at` to `end`; answers its length, or 0 if it cannot be.
    fn write(&self, packet: &[u8], end: usize, room: &mut [u8]) -> usize {
        let length = room.len();
        let (Some(headers), Some(payload)) = (packet.get(..self.payload), packet.get(self.at..end)) else { return 0 };
        let Some((to, body)) = room.split_at_mut_checked(self.payload) else { return 0 };
        to.copy_from_slice(headers);
        body.copy_from_slice(payload);
        let (Ok(total), Ok(transport)) = (u16::try_from(length), u16::try_from(length - self.start)) else { return 0 };
        if self.v6 {
            let Ok(after) = u16::try_from(length - IPV6_HEADER) else { return 0 };
            put16(room, 4, after);
        } else {
            put16(room, 2, total);
            let id = get16(room, 4).wrapping_add(self.index);
            put16(room, 4, id);
            put16(room, 10, 0);
            let sum = Sum::default().add(room.get(..self.start).unwrap_or_default()).fold();
            put16(room, 10, !sum);
        }
        let (protocol, field) = match self.kind {
            Kind::Tcp => {
                let done = u32::try_from(self.at - self.payload).unwrap_or(0);
                let sequence = get32(room, self.start + 4).wrapping_add(done);
                put32(room, self.start + 4, sequence);
                if let Some(flags) = room.get_mut(self.start + TCP_FLAGS) {
                    // The end of the data is said once, at the end; a reduced window once, at the front (RFC 3168, 6.1.2).
                    if end < packet.len() {
                        *flags &= !(FIN | PSH);
                    }
                    if self.index > 0 {
                        *flags &= !CWR;
                    }
                }
                (TCP, self.start + 16)
            }
            Kind::Udp | Kind::Whole | Kind::Unfinished(_) => {
                put16(room, self.start + 4, transport);
                (UDP, self.start + 6)
            }
        };
        put16(room, field, 0);
        let sum = pseudo(room, self.v6, protocol, transport).add(room.get(self.start..).unwrap_or_default());
        put16(room, field, finished(sum, protocol == UDP));
        length
    }
}

/// The checksum field for a sum; where 0 means that there is none (RFC 768), 0xffff stands for it.
fn finished(sum: Sum, udp: bool) -> u16 {
    match !sum.fold() {
        0 if udp => 0xffff,
        field => field,
    }
}
