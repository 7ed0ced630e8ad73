//! The queue under a mailbox: exact bounds, refusal instead of growth, no lost wake-up.
//!
//! Many senders, one owner. Everything that decides whether the owner sleeps or a sender is refused is guarded by one
//! lock that is held for a few instructions: a sender pushes and learns whether it must wake; the owner takes the
//! whole queue at the start of its turn, and at the end either learns that more came in or falls asleep, in one step.
//! What the owner has taken but not yet handled counts against the bound, and so does every permit given out: the sum
//! never exceeds `messages` and `bytes`. This file uses nothing but a mutex and a clock stamp from its neighbours, so
//! that the very same text is also compiled under loom (`tests/loom`).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::clock;
use super::sync::Mutex;

/// Urgent messages that may wait at once; they overtake data, so there must be few.
const URGENT: usize = 16;

/// What came back from a mailbox that did not take a message. The message itself is in it.
#[derive(Clone, PartialEq, Eq)]
pub enum Refused<M> {
    /// No room now: the bound in messages or bytes is reached, or others wait for a permit.
    Full(M),
    /// The message alone is larger than the byte bound, or than its permit: it will never fit.
    TooLarge(M),
    /// The actor has ended.
    Closed(M),
}

impl<M> Refused<M> {
    /// The message that was not taken.
    pub fn into_inner(self) -> M {
        match self {
            Self::Full(m) | Self::TooLarge(m) | Self::Closed(m) => m,
        }
    }

    /// True if the same message may be taken later.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    const fn reason(&self) -> &'static str {
        match self {
            Self::Full(_) => "the mailbox is full",
            Self::TooLarge(_) => "the message is larger than the mailbox allows",
            Self::Closed(_) => "the actor has ended",
        }
    }
}

impl<M> fmt::Debug for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Full(_) => "Full",
            Self::TooLarge(_) => "TooLarge",
            Self::Closed(_) => "Closed",
        };
        f.debug_tuple(name).finish_non_exhaustive()
    }
}

impl<M> fmt::Display for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl<M> std::error::Error for Refused<M> {}

/// What the outside may ask of an actor ahead of all data. Each is a flag, so asking is never refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Signals {
    /// End now; what is queued is dropped.
    pub(crate) stop: Option<StopCause>,
    /// End when what was accepted is done, at the latest at this instant.
    pub(crate) drain: Option<Instant>,
    /// Take no new work, but go on with what is there.
    pub(crate) quiesce: bool,
    /// Be made anew at this instant, because another of the group failed.
    pub(crate) remake: Option<Instant>,
}

/// Who asked an actor to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// Somebody who holds its mailbox.
    Asked,
    /// A drain whose time was up.
    Deadline,
    /// The memory budget, which had to take back what the largest holder has.
    Memory,
    /// Its group, which has given up.
    Group,
}

impl Signals {
    const fn any(&self) -> bool {
        self.stop.is_some() || self.drain.is_some() || self.quiesce || self.remake.is_some()
    }
}

/// A reading of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Depth {
    /// Messages that wait or are in the owner's hands.
    pub messages: usize,
    /// Their bytes, as the protocol's `size` counts them.
    pub bytes: usize,
    /// Messages reserved by permits, jobs and watches.
    pub reserved: usize,
    /// The most messages that ever waited at once.
    pub high: usize,
    /// Messages taken since the start.
    pub accepted: u64,
    /// Messages given back as full, too large or closed.
    pub refused: u64,
    /// When the oldest of the waiting messages came into an empty lane.
    pub since: Option<Instant>,
}

pub(crate) struct Lane<M> {
    state: Mutex<State<M>>,
    size: fn(&M) -> usize,
    messages: usize,
    bytes: usize,
}

struct State<M> {
    queue: VecDeque<M>,
    queue_bytes: usize,
    /// Taken by the owner and not yet handled.
    held: usize,
    held_bytes: usize,
    held_since: Option<Instant>,
    reserved: usize,
    reserved_bytes: usize,
    urgent: VecDeque<M>,
    signals: Signals,
    waiters: BTreeMap<u64, Waiter>,
    next_ticket: u64,
    waiting: usize,
    owner: Option<Waker>,
    asleep: bool,
    closed: bool,
    since: Option<Instant>,
    high: usize,
    accepted: u64,
    refused: u64,
}

struct Waiter {
    bytes: usize,
    granted: bool,
    waker: Waker,
}

impl<M> State<M> {
    fn fits(&self, bytes: usize, max_messages: usize, max_bytes: usize) -> bool {
        self.queue.len() + self.held + self.reserved < max_messages
            && self.queue_bytes + self.held_bytes + self.reserved_bytes + bytes <= max_bytes
    }

    fn fits_many(&self, count: usize, bytes: usize, max_messages: usize, max_bytes: usize) -> bool {
        self.queue.len() + self.held + self.reserved + count <= max_messages
            && self.queue_bytes + self.held_bytes + self.reserved_bytes + bytes <= max_bytes
    }

    fn push_many(&mut self, from: &mut VecDeque<M>, bytes: usize) {
        if self.queue.is_empty() && !from.is_empty() {
            self.since = Some(clock::now());
        }
        self.accepted += from.len() as u64;
        self.queue.append(from);
        self.queue_bytes += bytes;
        self.high = self.high.max(self.queue.len() + self.held);
    }

    fn push(&mut self, m: M, bytes: usize) {
        if self.queue.is_empty() {
            self.since = Some(clock::now());
        }
        self.queue.push_back(m);
        self.queue_bytes += bytes;
        self.accepted += 1;
        self.high = self.high.max(self.queue.len() + self.held);
    }

    fn wake_owner(&mut self) -> Option<Waker> {
        if !self.asleep {
            return None;
        }
        self.asleep = false;
        self.owner.clone()
    }

    /// Gives freed room to those who wait for a permit, in the order they came.
    fn grant(&mut self, max_messages: usize, max_bytes: usize) -> Vec<Waker> {
        let mut wake = Vec::new();
        while self.waiting > 0 {
            let Some(bytes) = self.waiters.values().find(|w| !w.granted).map(|w| w.bytes) else { break };
            if !self.fits(bytes, max_messages, max_bytes) {
                break;
            }
            self.reserved += 1;
            self.reserved_bytes += bytes;
            self.waiting -= 1;
            if let Some(waiter) = self.waiters.values_mut().find(|w| !w.granted) {
                waiter.granted = true;
                wake.push(waiter.waker.clone());
            }
        }
        wake
    }
}

impl<M> Lane<M> {
    pub(crate) fn new(messages: usize, bytes: usize, size: fn(&M) -> usize) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queue_bytes: 0,
                held: 0,
                held_bytes: 0,
                held_since: None,
                reserved: 0,
                reserved_bytes: 0,
                urgent: VecDeque::new(),
                signals: Signals::default(),
                waiters: BTreeMap::new(),
                next_ticket: 0,
                waiting: 0,
                owner: None,
                asleep: false,
                closed: false,
                since: None,
                high: 0,
                accepted: 0,
                refused: 0,
            }),
            size,
            messages: messages.max(1),
            bytes,
        }
    }

    pub(crate) fn tell(&self, m: M) -> Result<(), Refused<M>> {
        let bytes = (self.size)(&m);
        let mut s = self.state.lock();
        if s.closed {
            s.refused += 1;
            return Err(Refused::Closed(m));
        }
        if s.waiting > 0 || !s.fits(bytes, self.messages, self.bytes) {
            s.refused += 1;
            return Err(if bytes > self.bytes { Refused::TooLarge(m) } else { Refused::Full(m) });
        }
        s.push(m, bytes);
        let wake = s.wake_owner();
        drop(s);
        if let Some(waker) = wake {
            waker.wake();
        }
        Ok(())
    }

    /// Takes messages from the front of `from` until one does not fit; answers how many.
    pub(crate) fn tell_many(&self, from: &mut VecDeque<M>) -> usize {
        let all_bytes: usize = from.iter().map(self.size).sum();
        let mut s = self.state.lock();
        let mut taken = 0;
        if !s.closed && s.waiting == 0 {
            if s.fits_many(from.len(), all_bytes, self.messages, self.bytes) {
                taken = from.len();
                s.push_many(from, all_bytes);
            }
            while let Some(bytes) = from.front().map(self.size) {
                if !s.fits(bytes, self.messages, self.bytes) {
                    break;
                }
                let Some(m) = from.pop_front() else { break };
                s.push(m, bytes);
                taken += 1;
            }
        }
        s.refused += from.len() as u64;
        let wake = if taken > 0 { s.wake_owner() } else { None };
        drop(s);
        if let Some(waker) = wake {
            waker.wake();
        }
        taken
    }

    pub(crate) fn urgent(&self, m: M) -> Result<(), Refused<M>> {
        let mut s = self.state.lock();
        if s.closed {
            s.refused += 1;
            return Err(Refused::Closed(m));
        }
        if s.urgent.len() >= URGENT {
            s.refused += 1;
            return Err(Refused::Full(m));
        }
        s.urgent.push_back(m);
        s.accepted += 1;
        let wake = s.wake_owner();
        drop(s);
        if let Some(waker) = wake {
            waker.wake();
        }
        Ok(())
    }

    pub(crate) fn signal(&self, change: impl FnOnce(&mut Signals)) {
        let mut s = self.state.lock();
        if s.closed {
            return;
        }
        change(&mut s.signals);
        let wake = s.wake_owner();
        drop(s);
        if let Some(waker) = wake {
            waker.wake();
        }
    }

    /// Reserves room for one message of at most `bytes`, if there is some now.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<(), Refused<()>> {
        let mut s = self.state.lock();
        if s.closed {
            return Err(Refused::Closed(()));
        }
        if s.waiting > 0 || !s.fits(bytes, self.messages, self.bytes) {
            s.refused += 1;
            return Err(if bytes > self.bytes { Refused::TooLarge(()) } else { Refused::Full(()) });
        }
        s.reserved += 1;
        s.reserved_bytes += bytes;
        Ok(())
    }

    /// Waits for room for one message of at most `bytes`. `ticket` is the waiting caller's place in the line.
    pub(crate) fn poll_reserve(
        &self,
        bytes: usize,
        ticket: &mut Option<u64>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Refused<()>>> {
        let mut s = self.state.lock();
        if s.closed {
            *ticket = None;
            return Poll::Ready(Err(Refused::Closed(())));
        }
        if let Some(number) = *ticket {
            return match s.waiters.get_mut(&number) {
                Some(waiter) if !waiter.granted => {
                    waiter.waker.clone_from(cx.waker());
                    Poll::Pending
                }
                Some(_) | None => {
                    s.waiters.remove(&number);
                    *ticket = None;
                    Poll::Ready(Ok(()))
                }
            };
        }
        if bytes > self.bytes {
            return Poll::Ready(Err(Refused::TooLarge(())));
        }
        if s.waiting == 0 && s.fits(bytes, self.messages, self.bytes) {
            s.reserved += 1;
            s.reserved_bytes += bytes;
            return Poll::Ready(Ok(()));
        }
        let number = s.next_ticket;
        s.next_ticket += 1;
        s.waiters.insert(number, Waiter { bytes, granted: false, waker: cx.waker().clone() });
        s.waiting += 1;
        *ticket = Some(number);
        Poll::Pending
    }

    /// Leaves the line; room already granted goes to the next in it.
    pub(crate) fn forget_ticket(&self, number: u64) {
        let mut s = self.state.lock();
        let Some(waiter) = s.waiters.remove(&number) else { return };
        if waiter.granted {
            s.reserved -= 1;
            s.reserved_bytes -= waiter.bytes;
        } else {
            s.waiting -= 1;
        }
        let wake = s.grant(self.messages, self.bytes);
        drop(s);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Gives reserved room back unused.
    pub(crate) fn release(&self, bytes: usize) {
        let mut s = self.state.lock();
        s.reserved = s.reserved.saturating_sub(1);
        s.reserved_bytes = s.reserved_bytes.saturating_sub(bytes);
        let wake = s.grant(self.messages, self.bytes);
        drop(s);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Puts a message into room reserved for it, which is used up. A message larger than its room is given back and
    /// the room stays reserved, unless `must` says that it has to arrive.
    pub(crate) fn tell_reserved(&self, m: M, reserved_bytes: usize, must: bool) -> Result<(), Refused<M>> {
        let bytes = (self.size)(&m);
        let mut s = self.state.lock();
        if s.closed {
            s.refused += 1;
            return Err(Refused::Closed(m));
        }
        if bytes > reserved_bytes && !must {
            s.refused += 1;
            return Err(Refused::TooLarge(m));
        }
        s.reserved = s.reserved.saturating_sub(1);
        s.reserved_bytes = s.reserved_bytes.saturating_sub(reserved_bytes);
        s.push(m, bytes);
        let wake = s.wake_owner();
        let granted = if bytes < reserved_bytes { s.grant(self.messages, self.bytes) } else { Vec::new() };
        drop(s);
        if let Some(waker) = wake {
            waker.wake();
        }
        granted.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// The owner's turn begins: fills `batch` if it is empty, and `urgent`; answers what was asked.
    pub(crate) fn begin(&self, batch: &mut VecDeque<M>, urgent: &mut VecDeque<M>) -> Signals {
        let mut s = self.state.lock();
        s.asleep = false;
        if batch.is_empty() && !s.queue.is_empty() {
            // An empty ring that starts at its beginning wraps later.
            batch.clear();
            std::mem::swap(&mut s.queue, batch);
            s.held = batch.len();
            s.held_bytes = s.queue_bytes;
            s.queue_bytes = 0;
            s.held_since = s.since.take();
        }
        if !s.urgent.is_empty() {
            std::mem::swap(&mut s.urgent, urgent);
        }
        std::mem::take(&mut s.signals)
    }

    /// The owner has nothing to handle messages with at present: answers what was asked and sleeps, with the messages
    /// left where they are.
    pub(crate) fn wait(&self, waker: &Waker) -> Signals {
        let mut s = self.state.lock();
        s.asleep = true;
        s.owner = Some(waker.clone());
        std::mem::take(&mut s.signals)
    }

    /// The owner's turn ends with `left` messages unhandled and `handled_bytes` done. True if there is more to do
    /// now; otherwise the owner is asleep and the next message wakes `waker`.
    pub(crate) fn end(&self, left: usize, handled_bytes: usize, waker: &Waker) -> bool {
        let mut s = self.state.lock();
        s.held = left;
        if left == 0 {
            s.held_bytes = 0;
            s.held_since = None;
        } else {
            s.held_bytes = s.held_bytes.saturating_sub(handled_bytes);
        }
        let granted = if s.waiting > 0 { s.grant(self.messages, self.bytes) } else { Vec::new() };
        let more = left > 0 || !s.queue.is_empty() || !s.urgent.is_empty() || s.signals.any();
        if more {
            s.asleep = false;
        } else {
            s.asleep = true;
            match &mut s.owner {
                Some(owner) => owner.clone_from(waker),
                owner @ None => *owner = Some(waker.clone()),
            }
        }
        drop(s);
        granted.into_iter().for_each(Waker::wake);
        more
    }

    /// Refuses everything from now on if nothing waits; what is told after that comes back to its sender.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut s = self.state.lock();
        let empty = s.queue.is_empty() && s.urgent.is_empty() && s.held == 0;
        s.closed |= empty;
        empty
    }

    /// Refuses everything from now on; answers what was still queued, to be dropped outside the lock.
    pub(crate) fn close(&self) -> (VecDeque<M>, VecDeque<M>) {
        let mut s = self.state.lock();
        s.closed = true;
        s.held = 0;
        s.held_bytes = 0;
        s.queue_bytes = 0;
        s.since = None;
        s.held_since = None;
        s.owner = None;
        s.waiting = 0;
        let waiters = std::mem::take(&mut s.waiters);
        let left = (std::mem::take(&mut s.queue), std::mem::take(&mut s.urgent));
        drop(s);
        for (_, waiter) in waiters {
            waiter.waker.wake();
        }
        left
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Messages it takes.
    pub(crate) const fn capacity(&self) -> usize {
        self.messages
    }

    pub(crate) fn depth(&self) -> Depth {
        let s = self.state.lock();
        Depth {
            messages: s.queue.len() + s.held + s.urgent.len(),
            bytes: s.queue_bytes + s.held_bytes,
            reserved: s.reserved,
            high: s.high,
            accepted: s.accepted,
            refused: s.refused,
            since: s.held_since.or(s.since),
        }
    }
}
