//! A port shared by several sockets, one for each arbiter: bound in order, closed together, and steered by connection
//! id where the kernel allows.
//!
//! The kernel numbers the sockets of a group in the order they are bound and moves the last one into the place of one
//! that closes, so a member that left would turn the steering of the others. Each member therefore holds all sockets
//! of its group: they close when the last member is gone. Nobody else can join unseen: the first socket is bound alone
//! before it opens itself to the rest.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::options;

/// The most members a group can have: their number is told by one byte of a connection id.
pub const MEMBERS: usize = 128;

/// Why there is no group.
#[derive(Debug)]
#[non_exhaustive]
pub enum GroupError {
    /// Somebody holds the port, alone or as a group of their own.
    InUse(SocketAddr),
    /// None, or more than [`MEMBERS`] sockets were asked for.
    Members(usize),
    /// What the system says.
    Io(io::Error),
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(address) => write!(f, "the UDP port of {address} is in use"),
            Self::Members(n) => write!(f, "{n} sockets for one port; 1 to {MEMBERS} are possible"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for GroupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::InUse(_) | Self::Members(_) => None,
        }
    }
}

impl From<io::Error> for GroupError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The sockets of one port. A clone is the same group.
#[derive(Debug, Clone)]
pub struct Group {
    sockets: Arc<[UdpSocket]>,
    local: SocketAddr,
    steered: bool,
}

/// One socket of a group, for the arbiter of the same number. It keeps the whole group open.
#[derive(Debug)]
pub struct Member {
    socket: UdpSocket,
    group: Group,
}

impl Group {
    /// Binds `members` sockets to one address, port 0 being one of the kernel's choice, and steers datagrams to them
    /// by connection id if `steer` is set. IPv6 sockets take IPv6 only.
    ///
    /// # Errors
    /// See [`GroupError`]. A kernel that does not steer is no error: see [`steered`](Self::steered).
    pub fn bind(address: SocketAddr, members: usize, steer: bool) -> Result<Self, GroupError> {
        let number = u8::try_from(members).ok().filter(|n| (1..=MEMBERS).contains(&usize::from(*n)));
        let number = number.ok_or(GroupError::Members(members))?;
        // Alone first: this fails if anybody holds the port, even a group that would let us in.
        let first = open(address, false)?;
        let local = first.local_addr()?;
        let mut sockets = vec![first];
        if members > 1 {
            for socket in &sockets {
                socket2::SockRef::from(socket).set_reuse_port(true)?;
            }
            for _ in 1..members {
                sockets.push(open(local, true)?);
            }
        }
        let steered = match sockets.last() {
            Some(last) if members > 1 && steer => options::steer(last, number)
                .inspect_err(|error| tracing::info!(%local, %error, "datagrams are not steered by connection id"))
                .is_ok(),
            _ => false,
        };
        Ok(Self { sockets: sockets.into(), local, steered })
    }

    /// The address all are bound to.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many sockets there are.
    #[must_use]
    pub fn members(&self) -> usize {
        self.sockets.len()
    }

    /// Whether the kernel gives each datagram to the socket whose number is the first byte of its connection id,
    /// modulo [`members`](Self::members). If not, it spreads them by address.
    #[must_use]
    pub const fn steered(&self) -> bool {
        self.steered
    }

    /// The socket with this number, for as long as its user lives; nothing if there is none. An actor that is made
    /// anew takes it again, and finds what arrived meanwhile.
    ///
    /// # Errors
    /// When this process has no file descriptor left.
    pub fn member(&self, number: usize) -> io::Result<Option<Member>> {
        let Some(socket) = self.sockets.get(number) else { return Ok(None) };
        Ok(Some(Member { socket: socket.try_clone()?, group: self.clone() }))
    }
}

impl Member {
    /// The socket, and the group that must live as long as it.
    #[must_use]
    pub fn into_parts(self) -> (UdpSocket, Group) {
        (self.socket, self.group)
    }
}

impl AsFd for Member {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(address: SocketAddr, shared: bool) -> Result<UdpSocket, GroupError> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into()).map_err(|error| {
        if error.kind() == ErrorKind::AddrInUse { GroupError::InUse(address) } else { GroupError::Io(error) }
    })?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// Which members have a datagram; each is read empty.
    fn got(group: &Group) -> Vec<usize> {
        let mut buffer = [0; 64];
        (0..group.members()).filter(|n| group.sockets[*n].recv(&mut buffer).is_ok()).collect()
    }

    fn packet(long: bool, first_byte_of_id: u8) -> Vec<u8> {
        let mut packet = vec![0xAA; 40];
        if long {
            packet[..7].copy_from_slice(&[0xC0, 0, 0, 0, 1, 16, first_byte_of_id]);
        } else {
            packet[..2].copy_from_slice(&[0x40, first_byte_of_id]);
        }
        packet
    }

    fn steers_to_owners(group: &Group) {
        let n = u8::try_from(group.members()).expect("few");
        let asked = SocketAddr::new(
            match group.local_addr() {
                SocketAddr::V4(_) => [127, 0, 0, 1].into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            },
            group.local_addr().port(),
        );
        for first_byte in 0..=u8::MAX {
            for long in [false, true] {
                // A new port each time: the id decides, not the address.
                let client = UdpSocket::bind(SocketAddr::new(asked.ip(), 0)).expect("a port");
                client.send_to(&packet(long, first_byte), asked).expect("sent");
                assert_eq!(got(group), [usize::from(first_byte % n)], "first byte {first_byte}, long header {long}");
            }
        }
    }

    #[test]
    fn four_sockets_are_steered_by_connection_id() {
        let group = Group::bind(local(), 4, true).expect("bound");
        assert!(group.steered());
        steers_to_owners(&group);
    }

    #[test]
    fn a_group_on_ipv6_and_on_a_wildcard_is_steered_too() {
        for address in ["[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let group = Group::bind(address.parse().expect("an address"), 3, true).expect("bound");
            assert!(group.steered());
            steers_to_owners(&group);
        }
    }

    /// A packet too short to hold an id must not be lost to everybody.
    #[test]
    fn what_holds_no_id_goes_to_the_first_socket() {
        let group = Group::bind(local(), 4, true).expect("bound");
        let client = UdpSocket::bind(local()).expect("a port");
        for short in [&[0x40][..], &[0xC0, 0, 0, 0, 1], &[]] {
            client.send_to(short, group.local_addr()).expect("sent");
            assert_eq!(got(&group), [0], "{short:?}");
        }
    }

    #[test]
    fn members_close_together() {
        let group = Group::bind(local(), 4, true).expect("bound");
        let members: Vec<Member> = (0..4).map(|n| group.member(n).expect("a descriptor").expect("a member")).collect();
        let address = group.local_addr();
        assert!(group.member(4).expect("a descriptor").is_none());
        drop(group);
        let kept: Vec<Member> = members.into_iter().take(1).collect();
        // Three of four are gone, and yet nothing moved.
        steers_to_owners(&kept[0].group);
        assert!(matches!(Group::bind(address, 1, true), Err(GroupError::InUse(_))));
        drop(kept);
        assert_eq!(Group::bind(address, 2, true).expect("free again").local_addr(), address);
    }

    #[test]
    fn a_held_port_is_refused() {
        let alone = UdpSocket::bind(local()).expect("a port");
        let address = alone.local_addr().expect("its address");
        assert!(matches!(Group::bind(address, 2, true), Err(GroupError::InUse(held)) if held == address));
        // A foreign group would let us in, and take a share of our datagrams.
        let foreign = Group::bind(local(), 2, false).expect("bound");
        assert!(!foreign.steered());
        assert!(matches!(Group::bind(foreign.local_addr(), 2, true), Err(GroupError::InUse(_))));
    }

    #[test]
    fn no_group_without_members_or_with_too_many() {
        for members in [0, MEMBERS + 1] {
            assert!(matches!(Group::bind(local(), members, true), Err(GroupError::Members(n)) if n == members));
        }
        assert_eq!(Group::bind(local(), MEMBERS, true).expect("bound").members(), MEMBERS);
    }
}
