//! Opens TUN interfaces, with or without offloads, and reads and writes them.
//!
//! The two ioctls that make and set up a TUN interface have no safe wrapper, and tokio takes a descriptor only on a
//! promise; these are the `unsafe` of this file.
#![allow(unsafe_code, reason = "two ioctls of TUN interfaces without a safe wrapper, and tokio's promise")]

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Updater, ioctl, opcode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `TUNSETIFF` (linux/if_tun.h).
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
/// `TUNSETOFFLOAD`.
const TUNSETOFFLOAD: rustix::ioctl::Opcode = opcode::write::<u32>(b'T', 208);

const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

/// Length of a name, with the zero at its end.
const NAME: usize = 16;

/// `struct ifreq` as these ioctls use it: 40 bytes on 64-bit systems, 32 on 32-bit ones.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// Whether super-packets are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OffloadKnob {
    /// As far as the kernel allows.
    #[default]
    Auto,
    /// TCP only: for kernels whose UDP segmentation is broken.
    TcpOnly,
    /// One packet for each read and write.
    Off,
}

/// An open TUN interface; it does not block. Closing it removes the interface.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    offloads: Offloads,
    /// The errno that super-packets meet, where a test stands for a kernel that refuses them.
    #[cfg(test)]
    pub(super) refuses: Option<i32>,
}

/// What an interface was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Reads and writes begin with a virtio header.
    pub header: bool,
    /// Super-packets of TCP.
    pub tcp: bool,
    /// Super-packets of UDP (Linux 6.2).
    pub udp: bool,
}

impl Tun {
    /// Makes an interface of this name in the network of the calling thread, or opens one that waits for its owner.
    ///
    /// # Errors
    /// [`TunError`].
    pub fn open(node: &Path, name: &str, offload: OffloadKnob) -> Result<Self, TunError> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= NAME || bytes.iter().any(|b| !b.is_ascii_graphic() || *b == b'/') {
            return Err(TunError::Name);
        }
        let fd = rustix::fs::open(node, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(|error| TunError::Node(error.into()))?;
        let header = offload != OffloadKnob::Off;
        let flags = IFF_TUN | IFF_NO_PI | if header { IFF_VNET_HDR } else { 0 };
        let mut request = InterfaceRequest { name: [0; NAME], flags, rest: [0; 22] };
        for (to, from) in request.name.iter_mut().zip(bytes) {
            *to = *from;
        }
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`. `InterfaceRequest` is as long as that is anywhere,
        // has its layout as far as this ioctl looks (name, then flags), holds plain bytes, for which whatever the
        // kernel writes is valid, and lives until the call returns.
        unsafe { ioctl(&fd, Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request)) }
            .map_err(|error| TunError::Make(error.into()))?;
        let name = request.name.split(|b| *b == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        let offloads = set_offloads(&fd, offload);
        Ok(Self::new(fd, name, offloads))
    }

    const fn new(fd: OwnedFd, name: String, offloads: Offloads) -> Self {
        Self {
            fd,
            name,
            offloads,
            #[cfg(test)]
            refuses: None,
        }
    }

    /// An interface that another process opened; the descriptor must have been made with these offloads.
    ///
    /// # Errors
    /// What the system says when the descriptor is set to not block.
    pub fn from_fd(fd: OwnedFd, name: String, offloads: Offloads) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self::new(fd, name, offloads))
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was opened with.
    #[must_use]
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads one packet with its header, as long as `buffer` is at most.
    ///
    /// # Errors
    /// `WouldBlock`; `EBADFD` when the interface has been removed; others.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buffer)?)
    }

    /// Writes one packet with its header.
    ///
    /// # Errors
    /// `EINVAL` if the kernel refuses the header or the packet, `EIO` while the interface is down, `EBADFD` when it
    /// has been removed; others.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(errno) = self.refuses.filter(|_| parts.len() > 2) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(rustix::io::writev(&self.fd, parts)?)
    }

    /// Puts it on this thread's event loop, for reading; writing never waits.
    ///
    /// # Errors
    /// What the system says.
    ///
    /// # Panics
    /// Outside an event loop.
    pub(super) fn on_event_loop(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: `Tun` owns its open descriptor, answers the same one each time, and neither replaces nor closes it
        // before it is dropped or taken out of the `AsyncFd`.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }.map_err(Into::into)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for Tun {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.fd)
    }
}

impl From<Tun> for OwnedFd {
    fn from(tun: Tun) -> Self {
        tun.fd
    }
}

fn set_offloads(fd: &OwnedFd, knob: OffloadKnob) -> Offloads {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    let both = tcp | TUN_F_USO4 | TUN_F_USO6;
    match knob {
        OffloadKnob::Off => Offloads { header: false, tcp: false, udp: false },
        OffloadKnob::Auto if offload(fd, both) => Offloads { header: true, tcp: true, udp: true },
        OffloadKnob::Auto | OffloadKnob::TcpOnly => Offloads { header: true, tcp: offload(fd, tcp), udp: false },
    }
}

fn offload(fd: &OwnedFd, flags: usize) -> bool {
    // SAFETY: TUNSETOFFLOAD takes its argument as a number, a set of TUN_F_ flags, and no memory of ours; flags it
    // does not know it refuses with EINVAL.
    unsafe { ioctl(fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) }.is_ok()
}

/// Why an interface could not be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum TunError {
    /// The name is empty, longer than 15 bytes, or holds something an interface's name may not.
    Name,
    /// The node cannot be opened: it is not there, or not for this user.
    Node(io::Error),
    /// The system refuses the interface: no CAP_NET_ADMIN, or the name is taken.
    Make(io::Error),
}

impl fmt::Display for TunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("an interface's name has 1 to 15 visible characters and no slash"),
            Self::Node(error) => write!(f, "the TUN node cannot be opened: {error}"),
            Self::Make(error) => write!(f, "the interface cannot be made: {error}"),
        }
    }
}

impl std::error::Error for TunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Name => None,
            Self::Node(error) | Self::Make(error) => Some(error),
        }
    }
}
