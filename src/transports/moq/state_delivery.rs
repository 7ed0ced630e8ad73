//! What one subscription still has to be sent, and what is next.
//!
//! A place in each entry of the track's cache that passes the filter, nothing more: no object waits here. The session
//! asks for the [`Rank`] of what is ready, takes the lowest of all its subscriptions, and carries out a [`Step`] while
//! its connection has room. A subscriber that takes too little keeps its places until the cache lets go of what lies
//! there; then it skips, is told by a reset, and is counted.
//!
//! # What makes a stream end
//! FIN when all objects of the subgroup from the subscription's start on were written (draft, section 11.4.3). Anything
//! else is a reset with its code: the publisher reset, objects were too late, the cache let go of them, or forwarding
//! was off for a part of them. Once a stream was left, the same subgroup goes on only in a new one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::model::{GroupOrder, Location};
use super::model_codes::ResetCode;
use super::state_cache::{End, Entry, Groups, Head, Mark};

/// What a subscriber asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Lower goes first.
    pub priority: u8,
    /// Which groups go first.
    pub order: GroupOrder,
    /// Whether objects are sent at all.
    pub forward: bool,
    /// The first object.
    pub start: Location,
    /// The last object.
    pub end: Option<Location>,
    /// An object is of no use this long after it came.
    pub object_timeout: Option<Duration>,
    /// A subgroup is of no use this long after its end came.
    pub subgroup_timeout: Option<Duration>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            priority: super::model::DEFAULT_PRIORITY,
            order: GroupOrder::Ascending,
            forward: true,
            start: Location::START,
            end: None,
            object_timeout: None,
            subgroup_timeout: None,
        }
    }
}

/// The place of something among all that a session could send: lower goes first (draft, section 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The subscriber's priority.
    pub subscriber: u8,
    /// The publisher's.
    pub publisher: u8,
    /// The group, or its distance from the last.
    group: u64,
    subgroup: u64,
    /// The entry.
    pub no: u64,
}

/// What is to be done with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Open a stream and write its header, and the first field of the first object, its number: what follows begins
    /// behind it.
    Open {
        /// What the header says.
        head: Head,
        /// The number of the first object; `None` if there is none.
        first: Option<u64>,
        /// The priority that counts.
        publisher: u8,
    },
    /// Write these bytes.
    Write {
        /// Them.
        bytes: Bytes,
        /// By then they are of no use.
        expires: Option<Instant>,
        /// Whether the stream ends with them.
        last: bool,
    },
    /// Send a datagram.
    Datagram {
        /// What its header says.
        head: Head,
        /// The object.
        mark: Mark,
        /// Its header's properties and the payload.
        bytes: Bytes,
        /// By then it is of no use.
        expires: Option<Instant>,
    },
    /// All was written.
    Finish,
    /// Give the stream up.
    Reset(ResetCode),
    /// Nothing was opened, and nothing will be.
    Skip,
    /// Nothing more at present.
    Wait,
}

#[derive(Debug, Clone, Copy)]
struct Out {
    /// What is written next.
    at: u64,
    open: bool,
    /// The subscription began in the midst of it, and not by its filter.
    torn: bool,
    /// The stream takes nothing now.
    blocked: bool,
}

/// See the top of the file.
#[derive(Debug, Clone)]
pub struct Delivery {
    wishes: Wishes,
    /// The publisher's priority where an entry names none.
    default_priority: u8,
    /// Entries below were looked at.
    seen: u64,
    out: BTreeMap<u64, Out>,
    /// Forwarding was off up to here.
    resumed: Location,
    /// Streams that were opened.
    opened: u64,
    /// Entries that went before they were sent, since this was last asked.
    skipped: u64,
}

impl Delivery {
    /// From what is at hand on.
    #[must_use]
    pub const fn new(wishes: Wishes, default_priority: u8) -> Self {
        Self {
            wishes,
            default_priority,
            seen: 0,
            out: BTreeMap::new(),
            resumed: Location::START,
            opened: 0,
            skipped: 0,
        }
    }

    /// What was asked for.
    #[must_use]
    pub const fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    /// Streams that were opened.
    #[must_use]
    pub const fn opened(&self) -> u64 {
        self.opened
    }

    /// Entries that were skipped since this was last asked.
    pub const fn take_skipped(&mut self) -> u64 {
        let skipped = self.skipped;
        self.skipped = 0;
        skipped
    }

    /// Whether nothing is being sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Other wishes. Answers the entries whose streams are to be reset.
    pub fn update(&mut self, wishes: Wishes, groups: &Groups) -> Vec<u64> {
        let was = std::mem::replace(&mut self.wishes, wishes);
        let mut left = Vec::new();
        if was.forward && !wishes.forward {
            left.extend(self.out.iter().filter(|(_, out)| out.open).map(|(no, _)| *no));
            self.out.clear();
        } else if !was.forward && wishes.forward {
            self.resumed = groups.largest().map_or(Location::START, next);
            self.seen = 0;
        } else if wishes.start < was.start {
            // What was passed over may be wanted now. What is on its way is not touched.
            self.seen = 0;
        }
        let (start, end) = (wishes.start, wishes.end.map(|end| end.group));
        self.out.retain(|no, out| {
            let Some(entry) = groups.get(*no) else { return true };
            let group = entry.head.group;
            let inside = group >= start.group && end.is_none_or(|end| group <= end);
            if !inside && out.open {
                left.push(*no);
            }
            inside
        });
        left
    }

    /// Takes note of entries that have come. True if something may be ready.
    pub fn look(&mut self, groups: &Groups) -> bool {
        let next = groups.next();
        if self.wishes.forward {
            for (no, entry) in groups.since(self.seen) {
                let group = entry.head.group;
                let inside = group >= self.wishes.start.group && self.wishes.end.is_none_or(|end| group <= end.group);
                let past = group < self.resumed.group;
                if inside && !past && !self.out.contains_key(&no) {
                    self.out.insert(no, Out { at: 0, open: false, torn: false, blocked: false });
                }
            }
        }
        self.seen = next;
        !self.out.is_empty()
    }

    /// What is to be sent first, if anything is ready.
    #[must_use]
    pub fn first(&self, groups: &Groups) -> Option<Rank> {
        let ready = self.out.iter().filter(|(no, out)| !out.blocked && self.is_ready(**no, out, groups));
        ready.map(|(no, _)| self.rank(*no, groups.get(*no))).min()
    }

    fn is_ready(&self, no: u64, out: &Out, groups: &Groups) -> bool {
        let Some(entry) = groups.get(no) else { return true };
        if entry.end.is_some() || out.at < entry.base() {
            return true;
        }
        if out.open { entry.length() > out.at } else { self.begin(entry).is_some() }
    }

    fn rank(&self, no: u64, entry: Option<&Entry>) -> Rank {
        let Some(entry) = entry else {
            // To be given up, which costs nothing.
            return Rank { subscriber: 0, publisher: 0, group: 0, subgroup: 0, no };
        };
        let head = &entry.head;
        let group = match self.wishes.order {
            GroupOrder::Ascending => head.group,
            GroupOrder::Descending => u64::MAX - head.group,
        };
        let publisher = head.priority.unwrap_or(self.default_priority);
        Rank { subscriber: self.wishes.priority, publisher, group, subgroup: head.subgroup.unwrap_or(0), no }
    }

    /// Where what is wanted of an entry ends.
    fn limit(&self, entry: &Entry) -> u64 {
        let Some(end) = self.wishes.end.filter(|end| end.group == entry.head.group) else { return u64::MAX };
        let behind = end.object.checked_add(1).and_then(|object| entry.from(object));
        behind.map_or(u64::MAX, |mark| mark.at)
    }

    /// The first object of an entry that is wanted.
    fn begin<'a>(&self, entry: &'a Entry) -> Option<&'a Mark> {
        let group = entry.head.group;
        let of = |from: Location| if from.group == group { from.object } else { 0 };
        let first = of(self.wishes.start).max(of(self.resumed));
        let end = self.wishes.end.filter(|end| end.group == group).map_or(u64::MAX, |end| end.object);
        entry.from(first).filter(|mark| mark.at >= entry.base() && mark.id <= end)
    }

    /// What is to be done with an entry now; at most this many bytes can be written.
    pub fn step(&mut self, no: u64, groups: &Groups, room: usize, now: Instant) -> Step {
        let Some(out) = self.out.get(&no).copied() else { return Step::Wait };
        let Some(entry) = groups.get(no) else { return self.give_up(no, out, ResetCode::TooFarBehind) };
        if !out.open {
            return self.open(no, entry, now);
        }
        if out.at < entry.base() {
            return self.give_up(no, out, ResetCode::TooFarBehind);
        }
        let mark = entry.mark_at(out.at);
        let timed_out = self.is_late(mark, now) && entry.length() > out.at;
        if timed_out || self.is_over(entry, now) && entry.length() > out.at {
            return self.give_up(no, out, ResetCode::DeliveryTimeout);
        }
        let limit = self.limit(entry);
        if out.at >= limit {
            // The subscription ends in the midst of it.
            self.out.remove(&no);
            return Step::Reset(ResetCode::Cancelled);
        }
        let room = room.min(usize::try_from(limit - out.at).unwrap_or(usize::MAX));
        match entry.read(out.at, room) {
            Ok(bytes) if !bytes.is_empty() => {
                let expires = self.expires(mark, entry);
                let at = out.at + bytes.len() as u64;
                let last = at == entry.length() && matches!(entry.end, Some((End::Complete, _))) && !out.torn;
                if last {
                    self.out.remove(&no);
                } else if let Some(out) = self.out.get_mut(&no) {
                    out.at = at;
                }
                Step::Write { bytes, expires, last }
            }
            Ok(_) if out.at < entry.length() => Step::Wait,
            Ok(_) => match entry.end {
                None => Step::Wait,
                Some((End::Complete, _)) if !out.torn => {
                    self.out.remove(&no);
                    Step::Finish
                }
                Some((End::Complete, _)) => {
                    self.out.remove(&no);
                    Step::Reset(ResetCode::Cancelled)
                }
                Some((End::Reset(code), _)) => {
                    self.out.remove(&no);
                    Step::Reset(ResetCode::from_number(code, super::model::Draft::D18))
                }
            },
            Err(_) => self.give_up(no, out, ResetCode::TooFarBehind),
        }
    }

    fn open(&mut self, no: u64, entry: &Entry, now: Instant) -> Step {
        let Some(mark) = self.begin(entry).copied() else {
            if entry.base() > 0 && entry.marks.last().is_none_or(|last| last.at < entry.base()) && entry.length() > 0 {
                // All of it that has come is gone, and its next object is not here yet.
                return if entry.end.is_some() { self.forget(no) } else { Step::Wait };
            }
            return if entry.end.is_some() { self.nothing_in(no, entry) } else { Step::Wait };
        };
        if self.is_late(Some(&mark), now) || self.is_over(entry, now) {
            return self.forget(no);
        }
        let publisher = entry.head.priority.unwrap_or(self.default_priority);
        if entry.head.subgroup.is_none() {
            if !entry.has(&mark) {
                return self.forget(no);
            }
            let expires = self.expires(Some(&mark), entry);
            self.out.remove(&no);
            let (begin, end) = (mark.at + u64::from(mark.delta), mark.end());
            let length = usize::try_from(end - begin).unwrap_or(0);
            let bytes = entry.read(begin, length).unwrap_or_default();
            return Step::Datagram {
                head: Head { priority: Some(publisher).filter(|_| entry.head.priority.is_some()), ..entry.head },
                mark,
                bytes,
                expires,
            };
        }
        let whole = entry.base() == 0 && entry.marks.first().is_some_and(|first| first.at == mark.at);
        let by_filter =
            self.wishes.start.group == entry.head.group && self.wishes.start.object >= self.resumed_in(entry);
        if let Some(out) = self.out.get_mut(&no) {
            out.open = true;
            out.at = mark.at + u64::from(mark.delta);
            out.torn = !whole && !by_filter;
        }
        self.opened += 1;
        let head = Head { first_object: entry.head.first_object && whole, ..entry.head };
        Step::Open { head, first: Some(mark.id), publisher }
    }

    const fn resumed_in(&self, entry: &Entry) -> u64 {
        if self.resumed.group == entry.head.group { self.resumed.object } else { 0 }
    }

    /// It has ended without an object that is wanted.
    fn nothing_in(&mut self, no: u64, entry: &Entry) -> Step {
        let empty = entry.marks.is_empty() && matches!(entry.end, Some((End::Complete, _)));
        if empty && entry.head.subgroup.is_some() && !self.out.get(&no).is_none_or(|out| out.open) {
            // A subgroup without objects is told as such.
            if let Some(out) = self.out.get_mut(&no) {
                out.open = true;
            }
            self.opened += 1;
            return Step::Open {
                head: entry.head,
                first: None,
                publisher: entry.head.priority.unwrap_or(self.default_priority),
            };
        }
        self.out.remove(&no);
        Step::Skip
    }

    /// The stream of an entry takes nothing now.
    pub fn block(&mut self, no: u64) {
        if let Some(out) = self.out.get_mut(&no) {
            out.blocked = true;
        }
    }

    /// It does again.
    pub fn unblock(&mut self, no: u64) {
        if let Some(out) = self.out.get_mut(&no) {
            out.blocked = false;
        }
    }

    /// All may be tried again: streams can be opened.
    pub fn unblock_all(&mut self) {
        self.out.values_mut().for_each(|out| out.blocked = false);
    }

    /// A stream could not be opened after all: it was not.
    pub fn not_opened(&mut self, no: u64) {
        if let Some(out) = self.out.get_mut(&no).filter(|out| out.open) {
            *out = Out { at: 0, open: false, torn: false, blocked: true };
            self.opened = self.opened.saturating_sub(1);
        }
    }

    /// The subscriber wants no more of an entry, or its stream is gone.
    pub fn drop_entry(&mut self, no: u64) {
        self.out.remove(&no);
    }

    /// Whether the stream of an entry is open.
    #[must_use]
    pub fn is_open(&self, no: u64) -> bool {
        self.out.get(&no).is_some_and(|out| out.open)
    }

    /// Entries with open streams.
    pub fn open_entries(&self) -> impl Iterator<Item = u64> + '_ {
        self.out.iter().filter(|(_, out)| out.open).map(|(no, _)| *no)
    }

    fn give_up(&mut self, no: u64, out: Out, code: ResetCode) -> Step {
        self.out.remove(&no);
        self.skipped += 1;
        if out.open { Step::Reset(code) } else { Step::Skip }
    }

    fn forget(&mut self, no: u64) -> Step {
        self.out.remove(&no);
        self.skipped += 1;
        Step::Skip
    }

    fn is_late(&self, mark: Option<&Mark>, now: Instant) -> bool {
        let (Some(limit), Some(mark)) = (self.wishes.object_timeout, mark) else { return false };
        now.saturating_duration_since(mark.arrived) > limit
    }

    fn is_over(&self, entry: &Entry, now: Instant) -> bool {
        let (Some(limit), Some((_, at))) = (self.wishes.subgroup_timeout, entry.end) else { return false };
        now.saturating_duration_since(at) > limit
    }

    fn expires(&self, mark: Option<&Mark>, entry: &Entry) -> Option<Instant> {
        let of_object = self.wishes.object_timeout.zip(mark).and_then(|(limit, mark)| mark.arrived.checked_add(limit));
        let limit = self.wishes.subgroup_timeout;
        let of_subgroup = match entry.head.subgroup {
            Some(_) => limit.zip(entry.end).and_then(|(limit, (_, at))| at.checked_add(limit)),
            None => limit.zip(mark).and_then(|(limit, mark)| mark.arrived.checked_add(limit)),
        };
        [of_object, of_subgroup].into_iter().flatten().min()
    }
}

/// The location behind one.
#[must_use]
pub const fn next(of: Location) -> Location {
    match of.object.checked_add(1) {
        Some(object) => Location { group: of.group, object },
        None => Location { group: of.group.saturating_add(1), object: 0 },
    }
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;
