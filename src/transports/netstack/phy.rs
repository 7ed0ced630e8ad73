//! What smoltcp takes for a network card: batches in, a batch out.
//!
//! Packets are read where they lie in their batch and written straight into the one that leaves; nothing is copied. When
//! the batch that leaves is full, nothing more is sent until it is taken away.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::transports::kit::packets::Packets;

/// A batch on its way in: which of its packets are for smoltcp.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) packets: Packets,
    pub(super) keep: Vec<usize>,
    pub(super) next: usize,
}

/// The card.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) incoming: VecDeque<Incoming>,
    pub(super) outgoing: Packets,
    mtu: usize,
    /// What leaves has no room anywhere: nothing is sent.
    pub(super) stopped: bool,
}

impl Card {
    pub(super) fn new(mtu: usize) -> Self {
        Self { incoming: VecDeque::new(), outgoing: Packets::none(), mtu, stopped: false }
    }

    pub(super) fn can_send(&self) -> bool {
        !self.stopped && self.outgoing.room() >= self.mtu
    }
}

/// A packet in its batch.
#[derive(Debug)]
pub(super) struct In<'a>(&'a [u8]);

/// Room in the batch that leaves.
#[derive(Debug)]
pub(super) struct Out<'a>(&'a mut Packets);

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut f = Some(f);
        let mut result = None;
        self.0.push_with(len, |room| {
            result = f.take().map(|f| f(room));
            len
        });
        match (result, f) {
            (Some(result), _) => result,
            // There was no room after all: the packet is written nowhere, as if a network had lost it.
            (None, Some(f)) => f(&mut vec![0; len]),
            #[expect(clippy::unreachable, reason = "`f` is taken only where `result` is set")]
            (None, None) => unreachable!(),
        }
    }
}

impl Device for Card {
    type RxToken<'a> = In<'a>;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Instant) -> Option<(In<'_>, Out<'_>)> {
        // What comes in may have to be answered.
        if !self.can_send() {
            return None;
        }
        while self.incoming.front().is_some_and(|front| front.next >= front.keep.len()) {
            self.incoming.pop_front();
        }
        let front = self.incoming.front_mut()?;
        let at = front.keep.get(front.next).copied();
        front.next += 1;
        let packet = at.and_then(|at| front.packets.get(at))?;
        Some((In(packet), Out(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        self.can_send().then_some(Out(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut can = DeviceCapabilities::default();
        can.medium = Medium::Ip;
        can.max_transmission_unit = self.mtu;
        // The header's checksum was looked at where the packet came out of its tunnel.
        can.checksum.ipv4 = Checksum::Tx;
        can
    }
}
