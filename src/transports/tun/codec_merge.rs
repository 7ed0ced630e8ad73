//! Joins packets of a batch to super-packets, so that one write hands the kernel many of them.
//!
//! Packets are joined as the kernel's own receive offload would: consecutive ones of one TCP stream with the same
//! headers but for sequence number and PSH, or UDP datagrams of one flow and size. Their checksums are verified
//! before, since the kernel takes those of a super-packet on trust. The order of packets within a flow never changes;
//! whatever cannot be joined stays as it is. No payload is copied: an item names its packets, and they are written
//! from where they lie.

use super::codec::{Gso, Sum, TCP, UDP, VIRTIO_HEADER, VirtioHeader, get16, get32, pseudo, put16};
use crate::transports::kit::packets::Packets;

/// Packets in one super-packet, at most: as many as the kernel cuts a UDP one into on all versions.
pub const MOST_JOINED: usize = 64;

/// Bytes of the headers of a super-packet, at most: virtio, IPv6, TCP with all options.
pub const LONGEST_HEADERS: usize = VIRTIO_HEADER + 40 + 60;

/// How far back a packet looks for its flow: the flows that are joined at a time.
const LOOK_BACK: usize = 16;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
/// Of an IPv4 header's fragment field: all but DF and the reserved bit.
const FRAGMENT: u16 = 0x3fff;
const DO_NOT_FRAGMENT: u16 = 0x4000;

/// What is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joins {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// The plan for one batch; made once and used for all.
#[derive(Debug, Default)]
pub struct Merge {
    items: Vec<Item>,
    /// For each packet the next one of its item.
    next: Vec<u16>,
}

/// One write: a packet, or several joined.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    first: u16,
    last: u16,
    count: u16,
    /// Length of the whole, without the virtio header.
    length: usize,
    /// Nothing may be appended any more.
    closed: bool,
    flow: Option<Flow>,
}

impl Item {
    /// How many packets it is made of.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count as usize
    }

    /// Whether it is a super-packet, and of what kind.
    #[must_use]
    pub fn joined(&self) -> Option<Gso> {
        let flow = self.flow.filter(|_| self.count > 1)?;
        Some(match (flow.key.protocol, flow.key.v6) {
            (TCP, false) => Gso::Tcp4,
            (TCP, true) => Gso::Tcp6,
            _ => Gso::Udp,
        })
    }
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    addresses: [u128; 2],
    ports: u32,
    protocol: u8,
    v6: bool,
}

/// What is known of the flow at the end of an item.
#[derive(Debug, Clone, Copy)]
struct Flow {
    key: Key,
    /// Where the transport header begins.
    start: usize,
    /// Where the payload begins.
    payload: usize,
    /// Payload of the first packet.
    segment: usize,
    /// TCP: the sequence number that continues it.
    sequence: u32,
}

impl Merge {
    /// Plans the writes for a batch. Packets must be no more than 65,535.
    pub fn plan(&mut self, packets: &Packets, joins: Joins) {
        self.items.clear();
        self.next.clear();
        for (number, packet) in (0..=u16::MAX).zip(packets.iter()) {
            self.next.push(number);
            if !self.append(packets, number, packet, joins) {
                continue;
            }
            let flow = Flow::of(packet);
            self.items.push(Item {
                first: number,
                last: number,
                count: 1,
                length: packet.len(),
                closed: flow.is_none_or(|flow| flow.pushes(packet)),
                flow,
            });
        }
    }

    /// The writes, in order.
    pub fn items(&self) -> impl Iterator<Item = Item> + '_ {
        self.items.iter().copied()
    }

    /// The numbers of an item's packets, in order.
    pub fn members(&self, item: Item) -> impl Iterator<Item = usize> + '_ {
        let mut at = Some(item.first);
        std::iter::from_fn(move || {
            let this = at?;
            at = if this == item.last { None } else { self.next.get(usize::from(this)).copied() };
            Some(usize::from(this))
        })
    }

    /// Whether the packet still needs an item of its own.
    fn append(&mut self, packets: &Packets, number: u16, packet: &[u8], joins: Joins) -> bool {
        let wanted = (joins.tcp && is_of(packet, TCP)) || (joins.udp && is_of(packet, UDP));
        let Some(flow) = Flow::of(packet).filter(|_| wanted) else { return true };
        let same = |item: &&mut Item| item.flow.is_some_and(|other| other.key == flow.key);
        let Some(item) = self.items.iter_mut().rev().take(LOOK_BACK).find(same) else { return true };
        let (Some(head), Some(before)) = (packets.get(usize::from(item.first)), item.flow) else { return true };
        let payload = packet.len() - flow.payload;
        let fits = !item.closed
            && usize::from(item.count) < MOST_JOINED
            && item.length + payload <= usize::from(u16::MAX)
            && payload > 0
            && payload <= before.segment
            && before.continues(head, &flow, packet, item.count)
            // Dearest last. The head's own is verified when the first packet is joined to it.
            && (item.count > 1 || (before.is_plain(head) && before.is_intact(head)))
            && flow.is_plain(packet)
            && flow.is_intact(packet);
        if !fits {
            // A later packet of this flow must not overtake this one.
            item.closed = true;
            return true;
        }
        let last = usize::from(item.last);
        item.last = number;
        item.count += 1;
        item.length += payload;
        item.closed = payload < before.segment || flow.pushes(packet);
        if let Some(flow) = &mut item.flow {
            flow.sequence = flow.sequence.wrapping_add(u32::try_from(payload).unwrap_or(0));
        }
        if let Some(link) = self.next.get_mut(last) {
            *link = number;
        }
        false
    }

    /// Writes the headers of an item into `room`, virtio header first; answers how many bytes, and at which byte of
    /// each packet its part of the item begins: for the first, and for the others, the payload.
    pub fn headers(&self, packets: &Packets, item: Item, room: &mut [u8; LONGEST_HEADERS]) -> (usize, usize) {
        let single = |room: &mut [u8; LONGEST_HEADERS]| {
            let (header, _) = room.split_at_mut(VIRTIO_HEADER);
            header.copy_from_slice(&VirtioHeader::default().encode());
            (VIRTIO_HEADER, 0)
        };
        let (Some(flow), Some(gso), Some(head)) = (item.flow, item.joined(), packets.get(usize::from(item.first)))
        else {
            return single(room);
        };
        let last = packets.get(usize::from(item.last)).unwrap_or(head);
        let end = VIRTIO_HEADER + flow.payload;
        let (Some(own), Some(ip)) = (head.get(..flow.payload), room.get_mut(VIRTIO_HEADER..end)) else {
            return single(room);
        };
        ip.copy_from_slice(own);
        let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let transport = number(item.length - flow.start);
        if flow.key.v6 {
            put16(ip, 4, number(item.length - IPV6_HEADER));
        } else {
            put16(ip, 2, number(item.length));
            put16(ip, 10, 0);
            let sum = Sum::default().add(ip.get(..flow.start).unwrap_or_default()).fold();
            put16(ip, 10, !sum);
        }
        let offset = if flow.key.protocol == TCP {
            let pushes = last.get(flow.start + 13).copied().unwrap_or_default() & PSH;
            if let Some(flags) = ip.get_mut(flow.start + 13) {
                *flags |= pushes;
            }
            16
        } else {
            put16(ip, flow.start + 4, transport);
            6
        };
        let sum = pseudo(ip, flow.key.v6, flow.key.protocol, transport).fold();
        put16(ip, flow.start + offset, sum);
        let header = VirtioHeader {
            needs_checksum: true,
            gso,
            headers: number(flow.payload),
            segment: number(flow.segment),
            checksum_start: number(flow.start),
            checksum_offset: number(offset),
        };
        let (first, _) = room.split_at_mut(VIRTIO_HEADER);
        first.copy_from_slice(&header.encode());
        (end, flow.payload)
    }
}

/// Whether this is a packet of that transport, as far as its IP header says without extensions.
fn is_of(packet: &[u8], protocol: u8) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9) == Some(&protocol),
        Some(6) => packet.get(6) == Some(&protocol),
        _ => false,
    }
}

impl Flow {
    /// The flow of a packet: of any TCP or UDP packet without IP options, extensions or fragments.
    fn of(packet: &[u8]) -> Option<Self> {
        let (v6, start, protocol) = match packet.first()? {
            0x45 => (false, IPV4_HEADER, *packet.get(9)?),
            first if first >> 4 == 6 => (true, IPV6_HEADER, *packet.get(6)?),
            _ => return None,
        };
        if !v6 && get16(packet, 6) & FRAGMENT != 0 {
            return None;
        }
        let header = match protocol {
            TCP => usize::from(*packet.get(start + 12)? >> 4) * 4,
            UDP => UDP_HEADER,
            _ => return None,
        };
        let payload = start + header;
        if packet.len() < payload || (protocol == TCP && header < 20) {
            return None;
        }
        let addresses = if v6 {
            let (from, to) = packet.get(8..40)?.split_first_chunk::<16>()?;
            [u128::from_ne_bytes(*from), u128::from_ne_bytes(*to.first_chunk()?)]
        } else {
            [u128::from(get32(packet, 12)), u128::from(get32(packet, 16))]
        };
        let segment = packet.len() - payload;
        Some(Self {
            key: Key { addresses, ports: get32(packet, start), protocol, v6 },
            start,
            payload,
            segment,
            sequence: get32(packet, start + 4).wrapping_add(u32::try_from(segment).unwrap_or(0)),
        })
    }

    /// Whether `packet`, of the same flow, continues the super-packet that `head` begins.
    fn continues(&self, head: &[u8], next: &Self, packet: &[u8], count: u16) -> bool {
        let same_ip = if self.key.v6 {
            // Class, flow label, hop limit.
            get32(head, 0) == get32(packet, 0) && head.get(7) == packet.get(7)
        } else {
            let fragments = get16(head, 6);
            // Without DF the kernel's receive offload wants consecutive identifications (RFC 6864, section 4.1).
            let id = fragments & DO_NOT_FRAGMENT != 0 || get16(packet, 4) == get16(head, 4).wrapping_add(count);
            head.get(1) == packet.get(1) && head.get(8) == packet.get(8) && fragments == get16(packet, 6) && id
        };
        if !same_ip || self.payload != next.payload {
            return false;
        }
        if self.key.protocol == UDP {
            return true;
        }
        let start = self.start;
        let window_and_below = |bytes: &[u8]| get16(bytes, start + 14);
        get32(packet, start + 4) == self.sequence
            && get32(head, start + 8) == get32(packet, start + 8)
            && window_and_below(head) == window_and_below(packet)
            && head.get(start + 20..self.payload) == packet.get(start + 20..self.payload)
    }

    /// Whether its flags and lengths are those of plain data.
    fn is_plain(&self, packet: &[u8]) -> bool {
        let whole = packet.len();
        let length =
            if self.key.v6 { usize::from(get16(packet, 4)) + IPV6_HEADER } else { usize::from(get16(packet, 2)) };
        if length != whole || self.payload >= whole {
            return false;
        }
        if self.key.protocol == TCP {
            packet.get(self.start + 13).is_some_and(|flags| flags & !PSH == ACK)
                && packet.get(self.start + 12).is_some_and(|b| b & 0x0f == 0)
        } else {
            usize::from(get16(packet, self.start + 4)) == whole - self.start && get16(packet, self.start + 6) != 0
        }
    }

    fn pushes(&self, packet: &[u8]) -> bool {
        self.key.protocol == TCP && packet.get(self.start + 13).is_some_and(|flags| flags & PSH != 0)
    }

    /// Whether its checksums are right.
    fn is_intact(&self, packet: &[u8]) -> bool {
        let Some(transport) = packet.get(self.start..) else { return false };
        let Ok(length) = u16::try_from(transport.len()) else { return false };
        let header = self.key.v6 || Sum::default().add(packet.get(..self.start).unwrap_or_default()).fold() == 0xffff;
        header && pseudo(packet, self.key.v6, self.key.protocol, length).add(transport).fold() == 0xffff
    }
}
