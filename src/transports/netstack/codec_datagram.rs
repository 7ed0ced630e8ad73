//! UDP in IP packets: judged and opened on the way out of a tunnel, built on the way in (RFC 768; RFC 8200, 8.1).

use std::net::{IpAddr, SocketAddr};

use crate::transports::wireguard::codec_inner::{Inner, UDP, fold, sum};

/// The headers before a datagram's content.
pub(super) const HEADERS_V4: usize = 20 + HEADER;
/// See [`HEADERS_V4`].
pub(super) const HEADERS_V6: usize = 40 + HEADER;
const HEADER: usize = 8;
/// What we send starts with this hop limit.
const HOPS: u8 = 64;

/// A datagram in its packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) content: &'a [u8],
}

/// Whether a packet is UDP, or a part of that, before anything in it is judged.
pub(super) fn is_udp(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9) == Some(&UDP),
        Some(6) => packet.get(6) == Some(&UDP),
        Some(_) | None => false,
    }
}

/// Opens a packet that holds one whole datagram; else the reason why not.
pub(super) fn read(packet: &[u8]) -> Result<Datagram<'_>, &'static str> {
    let inner = Inner::parse(packet).map_err(|error| error.reason())?;
    if inner.fragment {
        return Err("fragment");
    }
    let (from, to) = inner.ports(packet).ok_or("inner_header")?;
    let udp = packet.get(inner.payload..).unwrap_or_default();
    let &[_, _, _, _, high, low, check_high, check_low] = udp.first_chunk::<HEADER>().ok_or("inner_header")?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let udp = udp.get(..length).filter(|udp| udp.len() >= HEADER).ok_or("inner_length")?;
    // IPv4 may go without a checksum.
    let unchecked = (check_high, check_low) == (0, 0) && inner.source.is_ipv4();
    if !unchecked && fold(sum(pseudo(inner.source, inner.destination, length), udp)) != 0xffff {
        return Err("inner_checksum");
    }
    Ok(Datagram {
        from: SocketAddr::new(inner.source, from),
        to: SocketAddr::new(inner.destination, to),
        content: udp.get(HEADER..).unwrap_or_default(),
    })
}

/// Writes a packet with one datagram. Answers its length; 0 if the ends are of two families or there is no room.
pub(super) fn write(room: &mut [u8], from: SocketAddr, to: SocketAddr, content: &[u8]) -> usize {
    let ip = if from.is_ipv4() { HEADERS_V4 - HEADER } else { HEADERS_V6 - HEADER };
    let udp = HEADER + content.len();
    let (Ok(udp_length), Ok(total)) = (u16::try_from(udp), u16::try_from(ip + udp)) else { return 0 };
    let Some((header, rest)) = room.get_mut(..ip + udp).and_then(|room| room.split_at_mut_checked(ip)) else {
        return 0;
    };
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = total.to_be_bytes();
            // Not to be fragmented, as what leaves a gateway with one MTU need not be.
            let first = [0x45, 0, high, low, 0, 0, 0x40, 0, HOPS, UDP, 0, 0];
            let parts = [&first[..], &source.octets(), &destination.octets()];
            fill(header, &parts);
            let checksum = (!fold(sum(0, header))).to_be_bytes();
            fill(header.get_mut(10..).unwrap_or_default(), &[&checksum]);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = udp_length.to_be_bytes();
            fill(header, &[&[0x60, 0, 0, 0, high, low, UDP, HOPS], &source.octets(), &destination.octets()]);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return 0,
    }
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes(), udp_length.to_be_bytes(), [0, 0]];
    fill(rest, &[ports.as_flattened(), content]);
    let checksum = match !fold(sum(pseudo(from.ip(), to.ip(), udp), rest)) {
        // Zero says that there is none.
        0 => 0xffff,
        checksum => checksum,
    };
    fill(rest.get_mut(6..).unwrap_or_default(), &[&checksum.to_be_bytes()]);
    ip + udp
}

fn fill(room: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in room.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}

/// The header that both ends imagine before a datagram when they add it up.
fn pseudo(source: IpAddr, destination: IpAddr, length: usize) -> u64 {
    let address = |address| match address {
        IpAddr::V4(v4) => sum(0, &v4.octets()),
        IpAddr::V6(v6) => sum(0, &v6.octets()),
    };
    address(source) + address(destination) + u64::from(UDP) + length as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
        match v6 {
            false => ("10.0.0.1:53".parse().unwrap(), "10.0.0.2:4000".parse().unwrap()),
            true => ("[fd00::1]:53".parse().unwrap(), "[fd00::2]:4000".parse().unwrap()),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v6 in any::<bool>(), content in proptest::collection::vec(any::<u8>(), 0..1_400)) {
            let (from, to) = ends(v6);
            let mut room = [0xaa; 1_500];
            let length = write(&mut room, from, to, &content);
            prop_assert_eq!(length, content.len() + if v6 { HEADERS_V6 } else { HEADERS_V4 });
            prop_assert!(is_udp(&room[..length]));
            prop_assert_eq!(read(&room[..length]), Ok(Datagram { from, to, content: &content }));
        }

        #[test]
        fn one_wrong_byte_is_noticed(v6 in any::<bool>(), at in 0usize..1_000, bits in 1u8..) {
            let (from, to) = ends(v6);
            let mut room = [0; 1_500];
            let length = write(&mut room, from, to, &[7; 100]);
            // Ports and content; the rest is the IP header's, and a length of its own reason.
            let udp = length - 108;
            let at = udp + [0, 1, 2, 3].into_iter().chain(8..108).nth(at % 104).unwrap();
            room[at] ^= bits;
            prop_assert_eq!(read(&room[..length]), Err("inner_checksum"));
        }

        #[test]
        fn arbitrary_bytes_are_no_harm(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _any = (is_udp(&packet), read(&packet).is_ok());
        }
    }

    #[test]
    fn what_has_no_room_or_two_families_is_not_written() {
        let (from, to) = ends(false);
        assert_eq!(write(&mut [0; 100], from, to, &[0; 73]), 0);
        assert_eq!(write(&mut [0; 100], from, ends(true).1, &[]), 0);
        assert_eq!(write(&mut [0; 70_000], from, to, &[0; 65_530]), 0);
        assert_eq!(write(&mut [0; 100], from, to, &[0; 72]), 100);
    }

    #[test]
    fn ipv4_may_go_without_a_checksum() {
        let (from, to) = ends(false);
        let mut room = [0; 100];
        let length = write(&mut room, from, to, b"x");
        room[26..28].fill(0);
        assert!(read(&room[..length]).is_ok());
        let (from, to) = ends(true);
        let length = write(&mut room, from, to, b"x");
        room[46..48].fill(0);
        assert_eq!(read(&room[..length]), Err("inner_checksum"));
    }
}
