//! What becomes of a write that failed, and when joining packets is given up.
//!
//! A super-packet that the kernel refuses is written again packet by packet. If it takes those, the fault is in the
//! offload, which stays off for that kind of packet from then on; if it refuses them as well, the interface is down
//! and nothing changes. Input: the kernel's errno. Output: what to do next.

use super::codec::Gso;
use super::codec_merge::Joins;

const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EBADFD: i32 = 77;
const ENOBUFS: i32 = 105;

/// What to do about a failed read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Write the packets of this super-packet one by one.
    Singly,
    /// The packet is lost, for this reason.
    Lost(&'static str),
    /// The interface is gone.
    Gone,
}

/// What the interface is used with now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    joins: Joins,
}

impl State {
    /// With these offloads to begin with.
    #[must_use]
    pub const fn new(joins: Joins) -> Self {
        Self { joins }
    }

    /// What may be joined.
    #[must_use]
    pub const fn joins(&self) -> Joins {
        self.joins
    }

    /// A read failed with this errno.
    #[must_use]
    pub const fn read_failed(&self, errno: i32) -> After {
        match errno {
            EBADFD | ENODEV => After::Gone,
            _ => After::Lost("read"),
        }
    }

    /// A write failed with this errno; `joined` if it was of a super-packet.
    #[must_use]
    pub const fn write_failed(&self, joined: bool, errno: i32) -> After {
        match errno {
            EBADFD | ENODEV => After::Gone,
            EIO | EINVAL if joined => After::Singly,
            EIO => After::Lost("down"),
            EINVAL => After::Lost("refused"),
            EAGAIN | ENOBUFS | ENOMEM => After::Lost("no_memory"),
            _ => After::Lost("write"),
        }
    }

    /// The packets of a super-packet of this kind were taken one by one after it was refused: such are made no more.
    pub const fn give_up(&mut self, kind: Gso) {
        match kind {
            Gso::Tcp4 | Gso::Tcp6 => self.joins.tcp = false,
            Gso::Udp => self.joins.udp = false,
            Gso::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_super_packet_is_tried_singly_and_only_then_given_up() {
        let mut state = State::new(Joins { tcp: true, udp: true });
        for errno in [EIO, EINVAL] {
            assert_eq!(state.write_failed(true, errno), After::Singly);
        }
        assert_eq!(state.write_failed(false, EIO), After::Lost("down"));
        assert_eq!(state.write_failed(false, EINVAL), After::Lost("refused"));
        assert_eq!(state.joins(), Joins { tcp: true, udp: true }, "an interface that is down keeps its offloads");
        state.give_up(Gso::Udp);
        assert_eq!(state.joins(), Joins { tcp: true, udp: false });
        state.give_up(Gso::Tcp6);
        assert_eq!(state.joins(), Joins { tcp: false, udp: false });
    }

    #[test]
    fn a_removed_interface_is_told_from_a_failed_packet() {
        let state = State::new(Joins { tcp: true, udp: true });
        assert_eq!(state.write_failed(true, EBADFD), After::Gone);
        assert_eq!(state.read_failed(EBADFD), After::Gone);
        assert_eq!(state.read_failed(EIO), After::Lost("read"));
        assert_eq!(state.write_failed(true, ENOBUFS), After::Lost("no_memory"));
        assert_eq!(state.write_failed(false, 1), After::Lost("write"));
    }
}
