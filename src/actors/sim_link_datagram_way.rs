//! One direction of a datagram link: what happens to each datagram between being sent and being read.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::clock;
use super::sim_link::{Faults, Pacer};
use super::sim_random::Random;

/// Datagrams under way in one direction; a limit against a sender that never lets time pass.
const UNDER_WAY: usize = 65_536;
/// The receive buffer, unless the plug says otherwise; Linux gives a socket as many bytes.
const RECEIVE_MESSAGES: usize = 4_096;
const RECEIVE_BYTES: usize = 212_992;

/// What became of the datagrams of one direction.
///
/// `sent + duplicated = delivered + lost + dropped_full + dropped_mtu`, plus what is under way or waits to be read.
/// What happens on arrival is counted when the link is next sent on or read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Datagrams given to the link.
    pub sent: u64,
    /// Datagrams read at the other end.
    pub delivered: u64,
    /// Payload bytes read at the other end, or cut off there by a buffer that was too short.
    pub bytes: u64,
    /// Datagrams that vanished, by chance or because the other end was gone.
    pub lost: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Datagrams and copies with a flipped bit.
    pub corrupted: u64,
    /// Datagrams and copies that arrived after one that was sent later.
    pub reordered: u64,
    /// Dropped for want of room: at the rate limit, under way, or in the receive buffer.
    pub dropped_full: u64,
    /// Dropped for being longer than the path takes.
    pub dropped_mtu: u64,
}

pub(super) struct OneWay {
    pub(super) faults: Faults,
    random: Random,
    pacer: Pacer,
    /// By arrival; the number tells apart what arrives at the same instant, in the order of sending.
    pub(super) flight: BTreeMap<(Instant, u64), Parcel>,
    entered: u64,
    /// The latest sent of those that arrived.
    latest: u64,
    pub(super) inbox: VecDeque<Bytes>,
    inbox_bytes: usize,
    pub(super) most_messages: usize,
    pub(super) most_bytes: usize,
    pub(super) stats: Stats,
    pub(super) reader: Option<Waker>,
    hung_up: bool,
    lost_in_a_row: u32,
}

pub(super) struct Parcel {
    number: u64,
    bytes: Bytes,
}

impl OneWay {
    pub(super) fn new(faults: Faults, random: Random) -> Self {
        Self {
            faults,
            random,
            pacer: Pacer::default(),
            flight: BTreeMap::new(),
            entered: 0,
            latest: 0,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            most_messages: RECEIVE_MESSAGES,
            most_bytes: RECEIVE_BYTES,
            stats: Stats::default(),
            reader: None,
            hung_up: false,
            lost_in_a_row: 0,
        }
    }

    /// Sends on its way what survives; gives back the reader if it has to look earlier than it thought.
    pub(super) fn send(&mut self, now: Instant, datagram: &[u8]) -> Option<Waker> {
        self.settle(now);
        self.stats.sent += 1;
        // All draws are made before anything is decided, so that one fault does not shift another's.
        let mut dice = self.random.fork();
        let (lost, doubled) = (dice.chance(self.faults.loss), dice.chance(self.faults.duplicate));
        let (mut first, mut second) = (dice.fork(), dice.fork());

        if self.faults.mtu.is_some_and(|most| datagram.len() > most) {
            self.stats.dropped_mtu += 1;
            return None;
        }
        let mut left = now;
        if let Some(rate) = self.faults.rate {
            let waiting = self.pacer.backlog(rate, now);
            if waiting > 0 && waiting.saturating_add(datagram.len()) > self.faults.queue {
                self.stats.dropped_full += 1;
                return None;
            }
            left = self.pacer.pass(rate, now, datagram.len());
        }
        if (lost && self.lost_in_a_row < self.faults.in_a_row) || self.hung_up {
            self.lost_in_a_row = self.lost_in_a_row.saturating_add(1);
            self.stats.lost += 1;
            return None;
        }
        self.lost_in_a_row = 0;
        let before = self.next_arrival();
        let bytes = Bytes::copy_from_slice(datagram);
        if doubled {
            self.stats.duplicated += 1;
            self.launch(left, bytes.clone(), &mut first);
            self.launch(left, bytes, &mut second);
        } else {
            self.launch(left, bytes, &mut first);
        }
        let after = self.next_arrival();
        if after != before { self.reader.take() } else { None }
    }

    /// Puts one copy under way.
    fn launch(&mut self, left: Instant, mut bytes: Bytes, dice: &mut Random) {
        if self.flight.len() >= UNDER_WAY {
            self.stats.dropped_full += 1;
            return;
        }
        let (damaged, held_back) = (dice.chance(self.faults.corrupt), dice.chance(self.faults.reorder));
        let (mut jitter_dice, mut bit_dice) = (dice.fork(), dice.fork());
        if damaged && !bytes.is_empty() {
            bytes = flip_one_bit(&bytes, &mut bit_dice);
            self.stats.corrupted += 1;
        }
        let mut arrival = clock::later(left, self.faults.delay);
        arrival = clock::later(arrival, self.faults.draw_jitter(&mut jitter_dice));
        if held_back {
            arrival = clock::later(arrival, self.faults.reorder_by);
        }
        self.entered += 1;
        let parcel = Parcel { number: self.stats.sent, bytes };
        self.flight.insert((arrival, self.entered), parcel);
    }

    /// Moves what has arrived by `now` to the receive buffer.
    pub(super) fn settle(&mut self, now: Instant) {
        while let Some(entry) = self.flight.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let Parcel { number, bytes } = entry.remove();
            if number < self.latest {
                self.stats.reordered += 1;
            }
            self.latest = self.latest.max(number);
            let too_many = self.inbox.len() >= self.most_messages;
            if too_many || self.inbox_bytes.saturating_add(bytes.len()) > self.most_bytes {
                self.stats.dropped_full += 1;
            } else {
                self.inbox_bytes += bytes.len();
                self.inbox.push_back(bytes);
            }
        }
    }

    pub(super) fn take(&mut self) -> Option<Bytes> {
        let bytes = self.inbox.pop_front()?;
        self.inbox_bytes -= bytes.len();
        self.stats.delivered += 1;
        self.stats.bytes += bytes.len() as u64;
        Some(bytes)
    }

    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.flight.first_key_value().map(|(key, _)| key.0)
    }

    /// The reading end is gone: all that is not read is lost.
    pub(super) fn hang_up(&mut self) -> Option<Waker> {
        self.hung_up = true;
        self.stats.lost += (self.flight.len() + self.inbox.len()) as u64;
        self.flight.clear();
        self.inbox.clear();
        self.inbox_bytes = 0;
        self.reader.take()
    }
}

fn flip_one_bit(bytes: &[u8], dice: &mut Random) -> Bytes {
    let bit = dice.below(bytes.len() as u64 * 8) as usize;
    let mut bytes = BytesMut::from(bytes);
    if let Some(byte) = bytes.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
    bytes.freeze()
}
