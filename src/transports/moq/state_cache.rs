//! The objects of a track that are at hand: subgroups and datagrams in the order in which they came, bounded.
//!
//! One [`Groups`] is the truth in the actor of a track, and each arbiter with subscribers has a copy that is fed the
//! same [`Item`]s. What it holds of a subgroup are the bytes of its stream behind the header, as they came, and a
//! [`Mark`] for each object in them; a reader has a place in them and reads as far as they go, in the midst of an object
//! too. Bytes are counted references: a copy costs marks, not payload.
//!
//! # Bounds
//! Bytes, groups and age, with what an entry and a mark cost themselves. Beyond a bound the oldest entries go, whole, in
//! the order they came; of one that alone is too large the front goes. Readers that were there find [`Gone`]. Nothing
//! here waits for a reader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::model::Location;

/// What an entry costs beside its bytes and marks.
const ENTRY: usize = 256;
/// What a group costs beside its entries.
const GROUP: usize = 128;
/// Groups of which it is remembered that they have holes.
const HOLES: usize = 1_024;

/// The bounds of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, with all overhead. Default 8 MiB.
    pub bytes: usize,
    /// Groups. Default 64.
    pub groups: usize,
    /// How long after its first byte an entry goes. Default 60 s.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 8 << 20, groups: 64, age: Duration::from_secs(60) }
    }
}

/// How objects came, and what they have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The group.
    pub group: u64,
    /// The subgroup; `None` for a datagram.
    pub subgroup: Option<u64>,
    /// The publisher's priority, if it is not that of the track.
    pub priority: Option<u8>,
    /// Whether objects have properties.
    pub properties: bool,
    /// Whether the group ends with the last object.
    pub end_of_group: bool,
    /// Whether the first object is the first of its subgroup.
    pub first_object: bool,
}

/// One object in the bytes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its number in its group.
    pub id: u64,
    /// Where its header begins.
    pub at: u64,
    /// Bytes of the header's first field, the distance from the object before.
    pub delta: u8,
    /// Normal, end of group, or end of track, as on the wire.
    pub status: u8,
    /// Bytes of its properties with their length, behind the first field.
    pub properties: u32,
    /// Bytes of the header.
    pub head: u32,
    /// Bytes of the payload.
    pub payload: u64,
    /// When its header was complete.
    pub arrived: Instant,
}

impl Mark {
    /// Where it ends.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.at.saturating_add(self.head as u64).saturating_add(self.payload)
    }
}

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All is there.
    Complete,
    /// Its publisher gave it up, or is gone.
    Reset(u64),
}

/// What happens to a track. The numbers rise with each `Begin`, and are never used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A subgroup's stream, or a datagram.
    Begin {
        /// Its number.
        no: u64,
        /// What it is.
        head: Head,
        /// When it came.
        at: Instant,
    },
    /// More of it. `bytes` follow those before; marks stand in them, or begin there.
    Data {
        /// Of which.
        no: u64,
        /// Objects that begin in these bytes.
        marks: Vec<Mark>,
        /// The bytes.
        bytes: Bytes,
    },
    /// Its end.
    End {
        /// Of which.
        no: u64,
        /// How.
        end: End,
        /// When.
        at: Instant,
    },
}

impl Item {
    /// Bytes it counts against bounds.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Begin { .. } | Self::End { .. } => ENTRY / 4,
            Self::Data { marks, bytes, .. } => bytes.len() + marks.len() * size_of::<Mark>() + ENTRY / 4,
        }
    }
}

/// What was asked for is not at hand any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// One subgroup's stream, or one datagram.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub head: Head,
    /// Its objects, in order.
    pub marks: Vec<Mark>,
    /// How it ended, if it has, and when.
    pub end: Option<(End, Instant)>,
    /// When it came.
    pub at: Instant,
    /// Pieces, each with where it begins.
    chunks: Vec<(u64, Bytes)>,
    /// Where what is at hand begins.
    base: u64,
    length: u64,
}

impl Entry {
    /// Bytes that have come.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Where what is at hand begins.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// The piece at a place, at most this long. Empty where nothing has come yet.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn read(&self, at: u64, most: usize) -> Result<Bytes, Gone> {
        if at < self.base {
            return Err(Gone);
        }
        let after = self.chunks.partition_point(|(begin, _)| *begin <= at);
        let Some((begin, bytes)) = after.checked_sub(1).and_then(|index| self.chunks.get(index)) else {
            return Ok(Bytes::new());
        };
        let from = usize::try_from(at - begin).unwrap_or(usize::MAX);
        if from >= bytes.len() {
            return Ok(Bytes::new());
        }
        Ok(bytes.slice(from..bytes.len().min(from.saturating_add(most))))
    }

    /// The first object with at least this number.
    #[must_use]
    pub fn from(&self, id: u64) -> Option<&Mark> {
        self.marks.get(self.marks.partition_point(|mark| mark.id < id))
    }

    /// The object whose bytes lie at this place.
    #[must_use]
    pub fn mark_at(&self, at: u64) -> Option<&Mark> {
        let after = self.marks.partition_point(|mark| mark.at <= at);
        after.checked_sub(1).and_then(|index| self.marks.get(index))
    }

    /// Whether an object is there to its last byte.
    #[must_use]
    pub const fn has(&self, mark: &Mark) -> bool {
        mark.at >= self.base && mark.end() <= self.length
    }

    fn held(&self) -> usize {
        usize::try_from(self.length - self.base).unwrap_or(usize::MAX)
    }

    fn cost(&self) -> usize {
        self.held().saturating_add(self.marks.len() * size_of::<Mark>()).saturating_add(ENTRY)
    }

    /// Drops pieces from the front until this many bytes went; answers how many did.
    fn trim(&mut self, bytes: usize) -> usize {
        let mut went = 0;
        let mut pieces = 0;
        for (_, chunk) in &self.chunks {
            if went >= bytes {
                break;
            }
            went += chunk.len();
            pieces += 1;
        }
        self.chunks.drain(..pieces);
        self.base += went as u64;
        let (base, before) = (self.base, self.marks.len());
        // An object of which only the end is left is of no use, but the one that is being read is looked for by it.
        let first = self.marks.partition_point(|mark| mark.end() <= base);
        self.marks.drain(..first);
        went + (before - self.marks.len()) * size_of::<Mark>()
    }
}

/// See the top of the file.
#[derive(Debug, Clone)]
pub struct Groups {
    limits: Limits,
    entries: BTreeMap<u64, Entry>,
    groups: BTreeMap<u64, BTreeSet<u64>>,
    bytes: usize,
    /// Of these, those that copies share.
    payload: usize,
    largest: Option<Location>,
    /// From here on all that exists was seen, but for what is in `holes`.
    known_from: Option<Location>,
    holes: BTreeSet<u64>,
    /// The number behind the last.
    next: u64,
    /// Entries that went for want of room before they were old, in all.
    evicted: u64,
}

impl Groups {
    /// Nothing yet.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            groups: BTreeMap::new(),
            bytes: 0,
            payload: 0,
            largest: None,
            known_from: None,
            holes: BTreeSet::new(),
            next: 0,
            evicted: 0,
        }
    }

    /// The bounds.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Other bounds. What is beyond them goes with the next [`shrink`](Self::shrink).
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// All that is published from here on will be seen.
    pub fn know_from(&mut self, from: Location) {
        self.known_from = Some(self.known_from.map_or(from, |known| known.max(from)));
    }

    /// From where on everything was seen; `None` if that is not known yet.
    #[must_use]
    pub const fn known_from(&self) -> Option<Location> {
        self.known_from
    }

    /// What was said to be the largest object, or seen: the larger counts.
    pub fn see(&mut self, at: Location) {
        self.largest = Some(self.largest.map_or(at, |largest| largest.max(at)));
    }

    /// The largest object there is.
    #[must_use]
    pub const fn largest(&self) -> Option<Location> {
        self.largest
    }

    /// Bytes held, with all overhead.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a copy costs beside the original: all but the objects, which they share.
    #[must_use]
    pub const fn overhead(&self) -> usize {
        self.bytes.saturating_sub(self.payload)
    }

    /// Groups of which something is held.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The number that the next entry will have at least.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Entries that went before their time, since this was last asked.
    pub const fn take_evicted(&mut self) -> u64 {
        let evicted = self.evicted;
        self.evicted = 0;
        evicted
    }

    /// An entry, if it is at hand.
    #[must_use]
    pub fn get(&self, no: u64) -> Option<&Entry> {
        self.entries.get(&no)
    }

    /// Entries from this number on.
    pub fn since(&self, no: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range(no..).map(|(no, entry)| (*no, entry))
    }

    /// The entries of a group.
    pub fn of_group(&self, group: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let numbers = self.groups.get(&group).into_iter().flatten();
        numbers.filter_map(|no| self.entries.get(no).map(|entry| (*no, entry)))
    }

    /// The groups held, from this one on.
    pub fn groups_from(&self, group: u64) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.groups.range(group..).map(|(group, _)| *group)
    }

    /// Whether all that exists of these groups is at hand, or will come by itself.
    #[must_use]
    pub fn is_whole(&self, from: Location, to_group: u64) -> bool {
        self.known_from.is_some_and(|known| known <= from)
            && self.holes.range(from.group..=to_group.max(from.group)).next().is_none()
    }

    /// Takes what has happened.
    pub fn apply(&mut self, item: &Item) {
        match item {
            Item::Begin { no, head, at } => {
                let entry = Entry {
                    head: *head,
                    marks: Vec::new(),
                    end: None,
                    at: *at,
                    chunks: Vec::new(),
                    base: 0,
                    length: 0,
                };
                self.bytes += entry.cost();
                self.entries.insert(*no, entry);
                let of_group = self.groups.entry(head.group).or_default();
                self.bytes += if of_group.is_empty() { GROUP } else { 0 };
                of_group.insert(*no);
                self.next = self.next.max(no + 1);
            }
            Item::Data { no, marks, bytes } => {
                let Some(entry) = self.entries.get_mut(no) else { return };
                let before = entry.cost();
                if !bytes.is_empty() {
                    entry.chunks.push((entry.length, bytes.clone()));
                    entry.length += bytes.len() as u64;
                    self.payload += bytes.len();
                }
                entry.marks.extend_from_slice(marks);
                self.bytes = self.bytes - before + entry.cost();
                let group = entry.head.group;
                if let Some(last) = marks.last() {
                    self.see(Location { group, object: last.id });
                }
            }
            Item::End { no, end, at } => {
                let Some(entry) = self.entries.get_mut(no) else { return };
                entry.end = Some((*end, *at));
                if let End::Reset(_) = end {
                    let group = entry.head.group;
                    self.hole(group);
                }
            }
        }
    }

    /// Objects of a group are missing.
    pub fn hole(&mut self, group: u64) {
        self.holes.insert(group);
        if self.holes.len() > HOLES
            && let Some(oldest) = self.holes.pop_first()
        {
            self.forget_to(oldest);
        }
    }

    /// Lets go of what is beyond the bounds. To be called after a batch.
    pub fn shrink(&mut self, now: Instant) {
        while let Some((no, entry)) = self.entries.first_key_value() {
            let (no, crowded) = (*no, self.bytes > self.limits.bytes || self.groups.len() > self.limits.groups);
            let old = now.saturating_duration_since(entry.at) >= self.limits.age && entry.end.is_some();
            if !crowded && !old {
                return;
            }
            if self.entries.len() == 1 && !old {
                self.trim(no);
                return;
            }
            self.evicted += u64::from(!old);
            self.remove(no);
        }
    }

    /// When [`shrink`](Self::shrink) has something to do by age.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let (_, entry) = self.entries.first_key_value()?;
        entry.end.and_then(|_| entry.at.checked_add(self.limits.age))
    }

    /// The ids of all entries that have no end yet.
    #[must_use]
    pub fn open(&self) -> Vec<u64> {
        self.entries.iter().filter(|(_, entry)| entry.end.is_none()).map(|(no, _)| *no).collect()
    }

    /// All that is held, as what happened.
    #[must_use]
    pub fn replay(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for (no, entry) in &self.entries {
            items.push(Item::Begin { no: *no, head: entry.head, at: entry.at });
            let mut marks = entry.marks.as_slice();
            if entry.base > 0 {
                // Its front went: a copy begins at the next object, which is then its first.
                continue;
            }
            for (begin, bytes) in &entry.chunks {
                let end = begin + bytes.len() as u64;
                let here = marks.partition_point(|mark| mark.at < end);
                let (now, later) = marks.split_at(here);
                marks = later;
                items.push(Item::Data { no: *no, marks: now.to_vec(), bytes: bytes.clone() });
            }
            if let Some((end, at)) = entry.end {
                items.push(Item::End { no: *no, end, at });
            }
        }
        items
    }

    /// Up to the end of this group not all is known any more.
    fn forget_to(&mut self, group: u64) {
        let behind = Location::new(group.saturating_add(1), 0);
        self.known_from = self.known_from.map(|known| known.max(behind));
    }

    fn trim(&mut self, no: u64) {
        let over = self.bytes.saturating_sub(self.limits.bytes);
        let Some(entry) = self.entries.get_mut(&no).filter(|_| over > 0) else { return };
        let before = entry.held();
        self.bytes = self.bytes.saturating_sub(entry.trim(over));
        self.payload = self.payload.saturating_sub(before - entry.held());
        let group = entry.head.group;
        self.evicted += 1;
        self.hole(group);
    }

    fn remove(&mut self, no: u64) {
        let Some(entry) = self.entries.remove(&no) else { return };
        self.bytes = self.bytes.saturating_sub(entry.cost());
        self.payload = self.payload.saturating_sub(entry.held());
        let group = entry.head.group;
        if let Some(numbers) = self.groups.get_mut(&group) {
            numbers.remove(&no);
            if numbers.is_empty() {
                self.groups.remove(&group);
                self.bytes = self.bytes.saturating_sub(GROUP);
            }
        }
        self.forget_to(group);
        let kept = self.known_from.map_or(0, |from| from.group);
        self.holes = self.holes.split_off(&kept);
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
