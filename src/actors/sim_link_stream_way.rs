//! One direction of a stream: what is under way, what of it may be read or written now, and when to look again.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::Waker;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;

use super::clock;
use super::sim_link::{Faults, Pacer};
use super::sim_random::Random;

/// The length of a segment where no MTU is asked for.
const SEGMENT: usize = 1_500;

/// What a read or a write came to.
pub(super) enum Step<T> {
    Done(T),
    /// Nothing yet; look again when woken, or at that instant.
    Wait(Option<Instant>),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    A,
    B,
}

pub(super) struct Link {
    pub(super) forth: OneWay,
    pub(super) back: OneWay,
}

impl Link {
    /// The direction that `side` writes, and the one that it reads.
    pub(super) fn ways(&mut self, side: Side) -> (&mut OneWay, &mut OneWay) {
        match side {
            Side::A => (&mut self.forth, &mut self.back),
            Side::B => (&mut self.back, &mut self.forth),
        }
    }
}

pub(super) struct OneWay {
    pub(super) faults: Faults,
    jitter: Random,
    write_cuts: Random,
    read_cuts: Random,
    pacer: Pacer,
    /// In the order of sending, which is also that of reading: one that is late holds up those behind it.
    pub(super) flight: VecDeque<Segment>,
    /// Bytes in `flight`, never more than `capacity`.
    pub(super) held: usize,
    capacity: usize,
    /// When the end of the stream arrives, if it is sent.
    pub(super) end: Option<Instant>,
    /// When a reset reaches the reader of this direction (which is the writer of the other).
    pub(super) cut: Option<Instant>,
    pub(super) stalled: bool,
    pub(super) hung_up: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) struct Segment {
    pub(super) arrival: Instant,
    bytes: Bytes,
}

impl OneWay {
    pub(super) fn new(faults: Faults, random: &mut Random, capacity: usize) -> Self {
        Self {
            faults,
            jitter: random.fork(),
            write_cuts: random.fork(),
            read_cuts: random.fork(),
            pacer: Pacer::default(),
            flight: VecDeque::new(),
            held: 0,
            capacity,
            end: None,
            cut: None,
            stalled: false,
            hung_up: false,
            reader: None,
            writer: None,
        }
    }

    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.held)
    }

    pub(super) fn is_cut(&self, now: Instant) -> bool {
        self.cut.is_some_and(|at| at <= now)
    }

    pub(super) fn cut_at(&mut self, at: Instant) {
        self.cut = Some(self.cut.map_or(at, |before| before.min(at)));
    }

    pub(super) fn finish(&mut self, now: Instant) {
        if self.end.is_none() {
            self.end = Some(self.arrival(now, 0));
        }
    }

    /// Sends what there is room for, or less, on its way; says how many bytes that were.
    pub(super) fn accept(&mut self, now: Instant, bufs: &[IoSlice<'_>]) -> usize {
        let offered = bufs.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        let most = offered.min(self.room());
        let len = chop(&mut self.write_cuts, &self.faults, most);
        let mut bytes = BytesMut::with_capacity(len);
        for part in bufs {
            let wanted = part.len().min(len - bytes.len());
            bytes.extend_from_slice(part.get(..wanted).unwrap_or_default());
        }
        self.held += len;
        let mut bytes = bytes.freeze();
        let longest = match self.faults.rate {
            Some(_) => self.faults.mtu.unwrap_or(SEGMENT).max(1),
            None => len,
        };
        while !bytes.is_empty() {
            let segment = bytes.split_to(longest.min(bytes.len()));
            let arrival = self.arrival(now, segment.len());
            self.flight.push_back(Segment { arrival, bytes: segment });
        }
        len
    }

    /// When a segment of `len` bytes that is sent now arrives; it is read after all before it in any case.
    fn arrival(&mut self, now: Instant, len: usize) -> Instant {
        let left = self.faults.rate.map_or(now, |rate| self.pacer.pass(rate, now, len));
        let arrival = clock::later(left, self.faults.delay);
        clock::later(arrival, self.faults.draw_jitter(&mut self.jitter))
    }

    /// Reads what has arrived, or less.
    pub(super) fn take(&mut self, now: Instant, buf: &mut ReadBuf<'_>) -> Step<io::Result<()>> {
        if self.is_cut(now) {
            self.flight.clear();
            self.held = 0;
            return Step::Done(Err(reset_error()));
        }
        if buf.remaining() == 0 {
            return Step::Done(Ok(()));
        }
        if self.stalled {
            return Step::Wait(self.cut);
        }
        let mut there = 0;
        for segment in self.flight.iter().take_while(|segment| segment.arrival <= now) {
            there += segment.bytes.len();
            if there >= buf.remaining() {
                break;
            }
        }
        if there == 0 {
            let next = self.flight.front().map(|segment| segment.arrival).or(self.end);
            return match next {
                Some(at) if at <= now => Step::Done(Ok(())),
                Some(at) => Step::Wait(Some(self.cut.map_or(at, |cut| cut.min(at)))),
                None => Step::Wait(self.cut),
            };
        }
        let mut wanted = chop(&mut self.read_cuts, &self.faults, there.min(buf.remaining()));
        self.held -= wanted;
        while let Some(segment) = self.flight.front_mut()
            && wanted > 0
        {
            let part = wanted.min(segment.bytes.len());
            buf.put_slice(segment.bytes.get(..part).unwrap_or_default());
            segment.bytes.advance(part);
            wanted -= part;
            if segment.bytes.is_empty() {
                self.flight.pop_front();
            }
        }
        Step::Done(Ok(()))
    }
}

/// `len`, or by chance less, but at least one byte of what is not empty.
fn chop(cuts: &mut Random, faults: &Faults, len: usize) -> usize {
    if len > 1 && cuts.chance(faults.chop) { 1 + cuts.below(len as u64 - 1) as usize } else { len }
}

pub(super) fn reset_error() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}
