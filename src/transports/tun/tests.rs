//! Cutting and joining against each other, against tun-rs, and with arbitrary bytes.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use proptest::prelude::*;
use tun_rs::{VirtioNetHdr, gso_split};

use super::codec::VIRTIO_HEADER;
use super::*;
use crate::actors::{Mesh, MeshConfig, Place, Spec, Totals};
use crate::transports::kit::packets::{Deliver, Packets};

/// The checksum as its definition has it.
fn ones(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u64 = bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// One packet of a flow, with right checksums.
#[derive(Debug, Clone)]
struct Made {
    v6: bool,
    tcp: bool,
    flow: u8,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    options: bool,
    class: u8,
    id: u16,
    payload: Vec<u8>,
}

impl Made {
    fn bytes(&self) -> Vec<u8> {
        let transport = if self.tcp {
            let options: &[u8] = if self.options { &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { &[] };
            let words = ((20 + options.len()) / 4) as u8;
            [
                &[0x10, self.flow, 0, 80][..],
                &self.sequence.to_be_bytes(),
                &self.acknowledged.to_be_bytes(),
                &[words << 4, self.flags, 1, 0, 0, 0, 0, 0],
                options,
                &self.payload,
            ]
            .concat()
        } else {
            let length = (8 + self.payload.len()) as u16;
            [&[0x10, self.flow, 0, 53][..], &length.to_be_bytes(), &[0, 0], &self.payload].concat()
        };
        let length = transport.len() as u16;
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = if self.v6 {
            let mut head = vec![0x60, self.class, 0, 0];
            head.extend_from_slice(&length.to_be_bytes());
            head.extend_from_slice(&[protocol, 64]);
            head.extend_from_slice(&[0xfd; 16]);
            head.extend_from_slice(&[0xfe; 16]);
            head
        } else {
            let mut head = vec![0x45, self.class];
            head.extend_from_slice(&(length + 20).to_be_bytes());
            head.extend_from_slice(&self.id.to_be_bytes());
            head.extend_from_slice(&[0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = ones(&[&head]);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            head
        };
        let start = packet.len();
        let addresses = if self.v6 { packet[8..40].to_vec() } else { packet[12..20].to_vec() };
        packet.extend_from_slice(&transport);
        let field = start + if self.tcp { 16 } else { 6 };
        let sum = ones(&[&addresses, &[0, protocol], &length.to_be_bytes(), &packet[start..]]);
        let sum = if sum == 0 && !self.tcp { 0xffff } else { sum };
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

fn is_right(packet: &[u8]) -> bool {
    let (start, addresses, protocol) =
        if packet[0] >> 4 == 6 { (40, &packet[8..40], packet[6]) } else { (20, &packet[12..20], packet[9]) };
    let length = ((packet.len() - start) as u16).to_be_bytes();
    (start == 40 || ones(&[&packet[..20]]) == 0) && ones(&[addresses, &[0, protocol], &length, &packet[start..]]) == 0
}

/// Joins a batch and cuts everything again: the packets that come out, and how many writes it took.
fn there_and_back(packets: &Packets, joins: Joins) -> (Vec<Vec<u8>>, usize) {
    let mut merge = Merge::default();
    merge.plan(packets, joins);
    let mut out = Vec::new();
    let mut writes = 0;
    for item in merge.items() {
        writes += 1;
        let mut room = [0; LONGEST_HEADERS];
        let (headers, from) = merge.headers(packets, item, &mut room);
        let mut whole = room[..headers].to_vec();
        for number in merge.members(item) {
            whole.extend_from_slice(&packets.get(number).unwrap()[from..]);
        }
        assert!(whole.len() <= LONGEST_READ);
        let header = VirtioHeader::decode(&whole).unwrap();
        let mut cut = Cut::new(&header, &whole[VIRTIO_HEADER..]).expect("what was joined can be cut");
        let mut batch = Packets::with_capacity(8_192, 5);
        loop {
            let done = cut.fill(&whole[VIRTIO_HEADER..], &mut batch);
            out.extend(batch.iter().map(<[u8]>::to_vec));
            assert!(done || !batch.is_empty(), "an empty batch has room");
            batch.clear();
            if done {
                break;
            }
        }
    }
    (out, writes)
}

/// Packets by flow, in order. With DF the identification says nothing (RFC 6864), and the kernel makes its own.
fn by_flow(packets: impl Iterator<Item = Vec<u8>>) -> BTreeMap<(u8, u8, u8), Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for mut packet in packets {
        let (protocol, port) = if packet[0] >> 4 == 6 { (packet[6], packet[41]) } else { (packet[9], packet[21]) };
        let key = (packet[0] >> 4, protocol, port);
        if packet[0] >> 4 == 4 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        flows.entry(key).or_default().push(packet);
    }
    flows
}

/// IPv6, TCP, flow, kind, half a payload, options, payload byte, identification.
type Step = (bool, bool, u8, u8, bool, bool, u8, u16);

prop_compose! {
    /// A step of some flow: mostly plain data that continues it.
    fn step()(
        v6 in any::<bool>(), tcp in any::<bool>(), flow in 0u8..3, kind in 0u8..12, short in any::<bool>(),
        options in prop::bool::weighted(0.9), fill in any::<u8>(), id in any::<u16>(),
    ) -> Step {
        (v6, tcp, flow, kind, short, options, fill, id)
    }
}

fn batch_of(steps: &[Step], size: usize) -> Vec<Vec<u8>> {
    let mut sequences = BTreeMap::new();
    let mut made = Vec::new();
    for &(v6, tcp, flow, kind, short, options, fill, id) in steps {
        let sequence = sequences.entry((v6, flow)).or_insert(u32::MAX - 1_000);
        let length = if kind == 1 {
            0
        } else if short && kind < 4 {
            size / 2
        } else {
            size
        };
        let flags = match kind {
            2 => 0x18,
            3 => 0x11,
            _ => 0x10,
        };
        let skip = if kind == 4 { 7 } else { 0 };
        let class = if kind == 5 { 4 } else { 0 };
        let acknowledged = if kind == 6 { 9 } else { 8 };
        let payload = vec![fill; length];
        made.push(
            Made {
                v6,
                tcp,
                flow,
                sequence: sequence.wrapping_add(skip),
                acknowledged,
                flags,
                options,
                class,
                id,
                payload,
            }
            .bytes(),
        );
        if tcp {
            *sequence = sequence.wrapping_add(skip).wrapping_add(length as u32);
        }
    }
    made
}

proptest! {
    /// Every packet of every flow comes out as it went in and in its place, whatever was joined on the way.
    #[test]
    fn joined_and_cut_again_each_flow_is_the_same(
        steps in prop::collection::vec(step(), 1..100), size in 1usize..1400, tcp in any::<bool>(), udp in any::<bool>(),
    ) {
        let made = batch_of(&steps, size);
        let mut packets = Packets::with_capacity(256 << 10, 128);
        for packet in &made {
            prop_assert!(is_right(packet));
            prop_assert!(packets.push(packet));
        }
        let (out, writes) = there_and_back(&packets, Joins { tcp, udp });
        prop_assert!(writes <= made.len());
        prop_assert!(out.iter().all(|packet| is_right(packet)));
        prop_assert_eq!(by_flow(out.into_iter()), by_flow(made.into_iter()));
    }

    /// A packet whose checksum is wrong is never part of a super-packet, where nobody would look at it again.
    #[test]
    fn what_is_damaged_stays_alone(
        steps in prop::collection::vec(step(), 2..60), which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut made = batch_of(&steps, 100);
        let damaged = which.index(made.len());
        let position = at.index(made[damaged].len());
        made[damaged][position] ^= 1 << bit;
        let mut packets = Packets::with_capacity(256 << 10, 128);
        for packet in &made {
            prop_assert!(packets.push(packet));
        }
        let mut merge = Merge::default();
        merge.plan(&packets, Joins { tcp: true, udp: true });
        let item = merge.items().find(|item| merge.members(*item).any(|number| number == damaged)).unwrap();
        // The identification and the hop limit are covered by the header's own checksum, for IPv4; of IPv6's first
        // eight bytes nothing is.
        let covered = made[damaged][0] >> 4 == 4 || position >= 8;
        prop_assert!(item.count() == 1 || !covered, "byte {} of {:02x?}", position, made[damaged]);
    }

    /// The same packets as tun-rs makes of a super-packet, byte for byte.
    #[test]
    fn cuts_as_tun_rs_does(
        v6 in any::<bool>(), tcp in any::<bool>(), segment in 1u16..1_500, length in 1usize..20_000, flags in any::<u8>(),
        options in any::<bool>(), id in any::<u16>(),
    ) {
        let made = Made {
            v6, tcp, flow: 1, sequence: u32::MAX - 3_000, acknowledged: 8, flags, options, class: 2, id,
            payload: (0..length).map(|n| (n * 7) as u8).collect(),
        };
        let mut packet = made.bytes();
        let start = if v6 { 40 } else { 20 };
        let payload = packet.len() - length;
        let gso = match (tcp, v6) { (true, false) => Gso::Tcp4, (true, true) => Gso::Tcp6, (false, _) => Gso::Udp };
        let header = VirtioHeader {
            needs_checksum: true, gso, headers: payload as u16, segment, checksum_start: start,
            checksum_offset: if tcp { 16 } else { 6 },
        };
        let mut cut = Cut::new(&header, &packet).unwrap();
        let mut ours = Vec::new();
        let mut batch = Packets::with_capacity(4_096, 7);
        while !cut.fill(&packet, &mut batch) {
            ours.extend(batch.iter().map(<[u8]>::to_vec));
            batch.clear();
        }
        ours.extend(batch.iter().map(<[u8]>::to_vec));
        let count = length.div_ceil(segment.into());
        let mut theirs = vec![vec![0; 2_000]; count];
        let mut sizes = vec![0; count];
        let header = VirtioNetHdr::decode(&header.encode()).unwrap();
        let got = gso_split(&mut packet, header, &mut theirs, &mut sizes, 0, v6).unwrap();
        prop_assert_eq!(got, count);
        for (packet, size) in theirs.iter_mut().zip(sizes) {
            packet.truncate(size);
        }
        prop_assert_eq!(ours, theirs);
    }

    /// Arbitrary packets are all written, each once, and nothing panics.
    #[test]
    fn arbitrary_packets_are_neither_lost_nor_doubled(
        made in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..120), 0..60), first in 0u8..4,
    ) {
        let mut packets = Packets::with_capacity(64 << 10, 128);
        for mut packet in made {
            packet[0] = [0x45, 0x60, 0x46, packet[0]][usize::from(first)];
            if let Some(protocol) = packet.get_mut(if first == 1 { 6 } else { 9 }) {
                *protocol = if *protocol & 1 == 0 { 6 } else { 17 };
            }
            prop_assert!(packets.push(&packet));
        }
        let mut merge = Merge::default();
        merge.plan(&packets, Joins { tcp: true, udp: true });
        let mut numbers: Vec<usize> = merge.items().flat_map(|item| merge.members(item).collect::<Vec<_>>()).collect();
        numbers.sort_unstable();
        prop_assert_eq!(numbers, (0..packets.len()).collect::<Vec<_>>());
    }

    /// Arbitrary reads are cut or refused; what comes out is bounded by what came in.
    #[test]
    fn arbitrary_reads_do_no_harm(
        header in any::<[u8; VIRTIO_HEADER]>(), gso in prop::sample::select(vec![0u8, 1, 4, 5]), start in 0u16..60,
        mut packet in prop::collection::vec(any::<u8>(), 0..400), first in any::<bool>(),
    ) {
        let mut header = header;
        header[1] = gso;
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        if let Some(byte) = packet.first_mut() {
            *byte = if first { 0x45 } else { 0x60 };
        }
        let header = VirtioHeader::decode(&header).unwrap();
        if let Ok(mut cut) = Cut::new(&header, &packet) {
            let mut batch = Packets::with_capacity(1 << 10, 16);
            let mut turns = 0;
            while !cut.fill(&packet, &mut batch) {
                prop_assert!(!batch.is_empty());
                batch.clear();
                turns += 1;
                prop_assert!(turns <= packet.len());
            }
        }
    }
}

#[test]
fn a_stream_of_full_segments_becomes_one_write_that_ends_at_push() {
    let mut packets = Packets::default();
    let packet = |n: u32, flags: u8| Made {
        v6: false,
        tcp: true,
        flow: 1,
        sequence: n * 1_000,
        acknowledged: 1,
        flags,
        options: true,
        class: 0,
        id: n as u16,
        payload: vec![n as u8; 1_000],
    };
    for n in 0..40 {
        assert!(packets.push(&packet(n, if n == 29 { 0x18 } else { 0x10 }).bytes()));
    }
    let mut merge = Merge::default();
    merge.plan(&packets, Joins { tcp: true, udp: true });
    let counts: Vec<usize> = merge.items().map(|item| item.count()).collect();
    assert_eq!(counts, [30, 10]);
    assert_eq!(merge.items().next().unwrap().joined(), Some(Gso::Tcp4));
    merge.plan(&packets, Joins { tcp: false, udp: true });
    assert_eq!(merge.items().count(), 40);
}

#[test]
fn an_unfinished_checksum_is_finished() {
    let made = Made {
        v6: true,
        tcp: false,
        flow: 1,
        sequence: 0,
        acknowledged: 0,
        flags: 0,
        options: false,
        class: 0,
        id: 0,
        payload: b"hello".to_vec(),
    };
    let right = made.bytes();
    let mut packet = right.clone();
    // What the kernel leaves there: the sum of the pseudo header.
    let length = ((packet.len() - 40) as u16).to_be_bytes();
    let sum = !ones(&[&packet[8..40], &[0, 17], &length]);
    packet[46..48].copy_from_slice(&sum.to_be_bytes());
    let header =
        VirtioHeader { needs_checksum: true, checksum_start: 40, checksum_offset: 6, ..VirtioHeader::default() };
    let mut batch = Packets::default();
    assert!(Cut::new(&header, &packet).unwrap().fill(&packet, &mut batch));
    assert_eq!(batch.get(0), Some(&right[..]));
    // A place beyond the packet.
    let header = VirtioHeader { checksum_start: 50, checksum_offset: 60_000, ..header };
    assert_eq!(Cut::new(&header, &packet), Err(Malformed));
}

/// Writes full segments to an interface that refuses super-packets with this errno, twice: what arrived each time, and
/// what was counted.
fn refused(errno: i32) -> (Vec<Vec<u8>>, Totals) {
    let (near, far) = UnixDatagram::pair().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let offloads = Offloads { header: true, tcp: true, udp: true };
    let mut tun = Tun::from_fd(near.into(), "stand-in".to_owned(), offloads).unwrap();
    tun.refuses = Some(errno);
    let config = MeshConfig { arbiters: NonZeroUsize::new(1), ..MeshConfig::default() };
    let mesh = Mesh::start(config).unwrap();
    let make = move || TunActor::new(tun, "stand-in".into(), Nowhere);
    let mail = mesh.spawn(Place::On(0), Spec::default(), make).unwrap();
    let mut arrived = Vec::new();
    for round in 0..2u32 {
        let mut packets = Packets::default();
        for n in 0..5u32 {
            let made = Made { sequence: 1 + (round * 5 + n) * 1_000, ..segment() };
            assert!(packets.push(&made.bytes()));
        }
        let sent: Vec<Vec<u8>> = packets.iter().map(<[u8]>::to_vec).collect();
        mail.tell(TunMsg::Write(packets)).unwrap();
        for packet in sent {
            let mut buffer = vec![0; 70_000];
            let length = far.recv(&mut buffer).unwrap();
            assert!(buffer[..VIRTIO_HEADER].iter().all(|byte| *byte == 0), "a packet on its own");
            assert_eq!(buffer[VIRTIO_HEADER..length], packet, "in order, none lost");
            arrived.push(packet);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let totals = runtime.block_on(mesh.view()).totals;
    mesh.stop().unwrap();
    (arrived, totals)
}

/// Takes nothing.
struct Nowhere;

impl Deliver for Nowhere {
    fn deliver(&mut self, packets: Packets) -> Result<Packets, Packets> {
        Err(packets)
    }
}

fn segment() -> Made {
    Made {
        v6: false,
        tcp: true,
        flow: 1,
        sequence: 1,
        acknowledged: 1,
        flags: 0x10,
        options: false,
        class: 0,
        id: 0,
        payload: vec![7; 1_000],
    }
}

#[test]
fn an_interface_that_refuses_super_packets_gets_each_packet_on_its_own_and_the_fault_is_counted_once() {
    for errno in [5, 22] {
        let (arrived, totals) = refused(errno);
        assert_eq!(arrived.len(), 10);
        assert_eq!(totals.get("tun_offload_off", "stand-in", "tcp"), 1, "{totals:?}");
        assert_eq!(totals.get("tun_packets_in", "stand-in", ""), 10);
        // One write that was refused, and one for each packet.
        assert_eq!(totals.get("tun_writes", "stand-in", ""), 11);
        assert_eq!(totals.family("tun_dropped"), 0);
    }
}
