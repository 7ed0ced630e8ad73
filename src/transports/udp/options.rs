//! The socket options that neither std, socket2 nor rustix set: steering of a reuseport group, the kernel's count of
//! dropped datagrams, fragments, and no time stamps. The one file of the UDP sockets with `unsafe`; it holds system calls alone.
#![allow(unsafe_code, reason = "setsockopt and getsockopt with arguments that the safe crates do not know")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// From linux/filter.h and linux/bpf_common.h: load a byte at an offset into A.
const LOAD_BYTE: u16 = 0x30;
/// Skip `jt` instructions if A has one of the bits, else `jf`.
const JUMP_IF_SET: u16 = 0x45;
/// Skip instructions.
const JUMP: u16 = 0x05;
/// A modulo a constant.
const MODULO: u16 = 0x94;
/// The answer is A: the number of the socket in its group.
const RETURN: u16 = 0x16;

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Gives each datagram to the socket of the group whose number is the first byte of the connection id modulo
/// `members`. The group is the one `socket` belongs to; its sockets are numbered in the order they were bound.
///
/// The id begins at byte 6 of a long header and at byte 1 of a short one (RFC 9000, sections 17.2 and 17.3; the top
/// bit of byte 0 tells them apart). What is shorter loads as 0 and goes to the first socket.
///
/// # Errors
/// What the system says: a kernel before 4.5, or one that forbids it.
pub(super) fn steer(socket: &impl AsFd, members: u8) -> io::Result<()> {
    let mut program = [
        op(LOAD_BYTE, 0, 0, 0),
        op(JUMP_IF_SET, 2, 0, 0x80),
        op(LOAD_BYTE, 0, 0, 1),
        op(JUMP, 0, 0, 1),
        op(LOAD_BYTE, 0, 0, 6),
        op(MODULO, 0, 0, u32::from(members.max(1))),
        op(RETURN, 0, 0, 0),
    ];
    // 7 instructions.
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &filter)
}

/// Stops the kernel from reading its clock for each datagram of this socket; nobody here looks at the stamps.
///
/// # Errors
/// What the system says.
pub(super) fn no_timestamps(socket: &impl AsFd) -> io::Result<()> {
    set::<c_int>(socket, libc::SO_TIMESTAMPNS, &0)
}

/// Has the kernel refuse every train of this socket from now on, as one whose network card has no checksums does:
/// offload needs them, and without them it answers `EINVAL`.
#[cfg(test)]
pub(super) fn refuse_trains(socket: &impl AsFd) -> io::Result<()> {
    set::<c_int>(socket, libc::SO_NO_CHECK, &1)
}

/// How many datagrams the kernel dropped at this socket for want of room. It counts modulo 2³².
///
/// # Errors
/// What the system says: a kernel before 4.12.
pub(super) fn dropped(socket: &impl AsFd) -> io::Result<u32> {
    // linux/sock_diag.h: nine numbers, of which the last one is `SK_MEMINFO_DROPS`.
    let mut numbers = [0_u32; 9];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the descriptor is open, since it is borrowed. `numbers` and `length` live beyond the call, and the
    // kernel writes at most `length` bytes, which is the size of `numbers`; any bits are a valid u32.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if answer == 0 { Ok(numbers[8]) } else { Err(io::Error::last_os_error()) }
}

/// Lets datagrams leave in fragments again, which quinn-udp forbids. Over IPv4 the interface's limit counts, not what
/// somebody says of the path: routers cut further (ip(7), `IP_PMTUDISC_OMIT`). Over IPv6 they may not, so the path counts.
///
/// # Errors
/// What the system says.
pub(super) fn fragment(socket: &impl AsFd, ipv4: bool) -> io::Result<()> {
    // From linux/in.h and linux/in6.h.
    const OMIT: c_int = 5;
    const DONT: c_int = 0;
    if ipv4 {
        return set_at(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &OMIT);
    }
    set_at(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &DONT)?;
    set_at(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, &0)
}

fn set<T>(socket: &impl AsFd, option: c_int, value: &T) -> io::Result<()> {
    set_at(socket, libc::SOL_SOCKET, option, value)
}

fn set_at<T>(socket: &impl AsFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open, since it is borrowed. The kernel reads `size_of::<T>()` bytes of `value`, which
    // is borrowed for longer than the call. All types used here are plain C data; the program that `sock_fprog`
    // points to lives in the caller's frame, and the kernel copies it before it answers.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
