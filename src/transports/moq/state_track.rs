//! What a relay knows of one track: who feeds it, what is true of it, and what of what comes is passed on.
//!
//! Publishers number what they bring by themselves; here it gets numbers that never repeat, what is there already is
//! left out, and what contradicts the track is found before it is passed on or kept (draft, section 2.4.2). A subgroup
//! that one publisher brings is not taken from another unless the first gave it up. LARGEST is the larger of what
//! publishers say and what has come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::model::{Location, ObjectStatus};
use super::model_codes::{DoneCode, RequestCode, ResetCode};
use super::model_params::Properties;
use super::state_cache::{End, Groups, Head, Item, Limits, Mark};
use super::state_delivery::next;
use super::state_directory::SessionId;

/// Subgroups, groups and datagrams of which it is remembered how they ended.
const REMEMBERED: usize = 4_096;

/// How a track contradicts itself: a word for counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// What subscribers are told of a track.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Status {
    /// No publisher has accepted yet.
    #[default]
    Pending,
    /// It is fed, or will be again.
    Live(Properties),
    /// No publisher will.
    Failed(RequestCode),
    /// It was, and is no more.
    Ended(DoneCode),
}

#[derive(Debug, Default)]
struct Source {
    live: bool,
    open: BTreeMap<u64, Open>,
}

/// What a publisher brings at present.
#[derive(Debug)]
struct Open {
    head: Head,
    at: Instant,
    /// Its number here, once something of it is passed on.
    no: Option<u64>,
    /// Bytes of it that were left out before that.
    shift: u64,
    length: u64,
    /// Objects up to this one are left out.
    known: Option<u64>,
    last: Option<u64>,
    /// All of it is left out.
    duplicate: bool,
}

#[derive(Debug, Clone, Copy)]
struct Subgroup {
    by: SessionId,
    priority: Option<u8>,
    last: Option<u64>,
    end: Option<End>,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Track {
    groups: Groups,
    status: Status,
    sources: BTreeMap<SessionId, Source>,
    subgroups: BTreeMap<(u64, u64), Subgroup>,
    datagrams: BTreeSet<Location>,
    /// In these groups there is nothing from this number on.
    ends: BTreeMap<u64, u64>,
    /// From here on there is nothing.
    end: Option<Location>,
    next: u64,
    duplicates: u64,
}

impl Track {
    /// One of which nothing is known.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            groups: Groups::new(limits),
            status: Status::Pending,
            sources: BTreeMap::new(),
            subgroups: BTreeMap::new(),
            datagrams: BTreeSet::new(),
            ends: BTreeMap::new(),
            end: None,
            next: 0,
            duplicates: 0,
        }
    }

    /// Other bounds of what is at hand, from the next [`shrink`](Self::shrink) on.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.groups.set_limits(limits);
    }

    /// What is at hand.
    #[must_use]
    pub const fn groups(&self) -> &Groups {
        &self.groups
    }

    /// What subscribers are told.
    #[must_use]
    pub const fn status(&self) -> &Status {
        &self.status
    }

    /// Whether it was said where the track ends, and what the last location is.
    #[must_use]
    pub const fn end(&self) -> Option<Location> {
        self.end
    }

    /// Objects and streams that were there already, since this was last asked.
    pub const fn take_duplicates(&mut self) -> u64 {
        let duplicates = self.duplicates;
        self.duplicates = 0;
        duplicates
    }

    /// Publishers that feed it or may.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// A publisher was asked, or offers it.
    pub fn add(&mut self, source: SessionId) {
        self.sources.entry(source).or_default();
    }

    /// A publisher has accepted, or publishes by itself. True if subscribers are to be told.
    pub fn live(&mut self, source: SessionId, largest: Option<Location>, properties: &Properties) -> bool {
        self.sources.entry(source).or_default().live = true;
        if let Some(largest) = largest {
            self.groups.see(largest);
        }
        if matches!(self.status, Status::Live(_) | Status::Ended(_)) {
            return false;
        }
        self.groups.know_from(largest.map_or(Location::START, next));
        self.status = Status::Live(properties.clone());
        true
    }

    /// A publisher refuses. True if that was the last hope.
    pub fn refused(&mut self, source: SessionId, code: RequestCode) -> bool {
        self.sources.remove(&source);
        if !self.sources.is_empty() || self.status != Status::Pending {
            return false;
        }
        self.status = Status::Failed(code);
        true
    }

    /// A publisher has gone, without a word if there is no code. Answers what its open streams come to; the track goes
    /// on if others feed it or may, and else ends at once only with a word.
    pub fn gone(&mut self, source: SessionId, code: Option<DoneCode>, now: Instant) -> Vec<Item> {
        let Some(source) = self.sources.remove(&source) else { return Vec::new() };
        let reset = End::Reset(ResetCode::Cancelled.number(super::model::Draft::D18));
        let items: Vec<Item> =
            source.open.values().filter_map(|open| open.no).map(|no| Item::End { no, end: reset, at: now }).collect();
        for open in source.open.values() {
            self.note_end(open, reset);
        }
        items.iter().for_each(|item| self.groups.apply(item));
        if let Some(code) = code.filter(|_| self.sources.is_empty()) {
            self.finish(code);
        }
        // What comes while nobody feeds it is not seen.
        if self.sources.is_empty()
            && let Some(largest) = self.groups.largest()
        {
            self.groups.hole(largest.group);
        }
        items
    }

    /// No more will come.
    pub fn finish(&mut self, code: DoneCode) {
        self.status = match self.status {
            Status::Pending => Status::Failed(RequestCode::DoesNotExist),
            Status::Failed(code) => Status::Failed(code),
            Status::Live(_) | Status::Ended(_) => Status::Ended(code),
        };
    }

    /// Takes what a publisher brings; answers what is new of it.
    ///
    /// # Errors
    /// [`Malformed`]: the publisher contradicts the track. Nothing of what contradicts was kept; what came before it is
    /// in `new`.
    pub fn take(
        &mut self,
        source: SessionId,
        items: Vec<Item>,
        now: Instant,
        new: &mut Vec<Item>,
    ) -> Result<(), Malformed> {
        let begin = new.len();
        let done = items.into_iter().try_for_each(|item| self.item(source, item, new));
        new.iter().skip(begin).for_each(|item| self.groups.apply(item));
        self.groups.shrink(now);
        while self.subgroups.len() > REMEMBERED {
            self.subgroups.pop_first();
        }
        while self.datagrams.len() > REMEMBERED {
            self.datagrams.pop_first();
        }
        while self.ends.len() > REMEMBERED {
            self.ends.pop_first();
        }
        done
    }

    /// Forgets what is too old.
    pub fn shrink(&mut self, now: Instant) {
        self.groups.shrink(now);
    }

    /// Entries that went before their time, since this was last asked.
    pub const fn take_evicted(&mut self) -> u64 {
        self.groups.take_evicted()
    }

    fn item(&mut self, source: SessionId, item: Item, new: &mut Vec<Item>) -> Result<(), Malformed> {
        match item {
            Item::Begin { no, head, at } => {
                let open = self.begin(source, head, at)?;
                self.sources.entry(source).or_default().open.insert(no, open);
            }
            Item::Data { no, marks, bytes } => {
                let Some(mut open) = self.sources.get_mut(&source).and_then(|known| known.open.remove(&no)) else {
                    return Ok(());
                };
                let done = self.data(source, &mut open, marks, bytes, new);
                if let Some(known) = self.sources.get_mut(&source) {
                    known.open.insert(no, open);
                }
                done?;
            }
            Item::End { no, end, at } => {
                let Some(open) = self.sources.get_mut(&source).and_then(|known| known.open.remove(&no)) else {
                    return Ok(());
                };
                let mut open = open;
                if open.no.is_none() && !open.duplicate && open.known.is_none() {
                    // A subgroup without objects.
                    self.pass_on(source, &mut open, new);
                }
                new.extend(open.no.map(|no| Item::End { no, end, at }));
                self.note_end(&open, end);
            }
        }
        Ok(())
    }

    fn begin(&self, source: SessionId, head: Head, at: Instant) -> Result<Open, Malformed> {
        let mut open = Open { head, at, no: None, shift: 0, length: 0, known: None, last: None, duplicate: false };
        let Some(subgroup) = head.subgroup else { return Ok(open) };
        if let Some(before) = self.subgroups.get(&(head.group, subgroup)) {
            if before.priority != head.priority && before.last.is_some() {
                return Err(Malformed("priority_changed"));
            }
            match before.end {
                Some(End::Complete) => open.duplicate = true,
                None if before.by != source => open.duplicate = true,
                Some(End::Reset(_)) | None => open.known = before.last,
            }
        }
        Ok(open)
    }

    fn data(
        &mut self,
        source: SessionId,
        open: &mut Open,
        mut marks: Vec<Mark>,
        mut bytes: bytes::Bytes,
        new: &mut Vec<Item>,
    ) -> Result<(), Malformed> {
        let from = open.length;
        open.length += bytes.len() as u64;
        self.check(open, &marks)?;
        if open.duplicate {
            self.duplicates += marks.len() as u64;
            return Ok(());
        }
        if open.head.subgroup.is_none() {
            let there = |mark: &Mark| self.datagrams.contains(&Location::new(open.head.group, mark.id));
            if marks.iter().any(there) {
                self.duplicates += 1;
                open.duplicate = true;
                return Ok(());
            }
            self.datagrams.extend(marks.iter().map(|mark| Location::new(open.head.group, mark.id)));
        }
        if open.no.is_none() {
            let first = marks.partition_point(|mark| open.known.is_some_and(|known| mark.id <= known));
            self.duplicates += first as u64;
            marks.drain(..first);
            let Some(mark) = marks.first() else { return Ok(()) };
            open.shift = mark.at;
            let skip = usize::try_from(mark.at.saturating_sub(from)).unwrap_or(usize::MAX);
            bytes = bytes.slice(skip.min(bytes.len())..);
            if open.known.is_some() {
                open.head.first_object = false;
            }
            self.pass_on(source, open, new);
        }
        let Some(no) = open.no else { return Ok(()) };
        for mark in &mut marks {
            mark.at = mark.at.saturating_sub(open.shift);
        }
        if let (Some(last), Some(subgroup)) = (marks.last(), open.head.subgroup) {
            open.last = Some(last.id);
            if let Some(known) = self.subgroups.get_mut(&(open.head.group, subgroup)) {
                known.last = known.last.max(open.last);
            }
        }
        new.push(Item::Data { no, marks, bytes });
        Ok(())
    }

    /// Something of it is new.
    fn pass_on(&mut self, source: SessionId, open: &mut Open, new: &mut Vec<Item>) {
        let no = self.next;
        self.next += 1;
        open.no = Some(no);
        if let Some(subgroup) = open.head.subgroup {
            let known = Subgroup { by: source, priority: open.head.priority, last: open.known, end: None };
            self.subgroups.insert((open.head.group, subgroup), known);
        }
        new.push(Item::Begin { no, head: open.head, at: open.at });
    }

    fn note_end(&mut self, open: &Open, end: End) {
        let (group, Some(subgroup)) = (open.head.group, open.head.subgroup) else { return };
        if open.no.is_some()
            && let Some(known) = self.subgroups.get_mut(&(group, subgroup))
        {
            known.end = Some(end);
        }
        if let (End::Complete, true, Some(last)) = (end, open.head.end_of_group, open.last) {
            self.ends.entry(group).or_insert_with(|| last.saturating_add(1));
        }
    }

    /// Objects that cannot be.
    fn check(&mut self, open: &Open, marks: &[Mark]) -> Result<(), Malformed> {
        let group = open.head.group;
        for mark in marks {
            let at = Location::new(group, mark.id);
            let says_end = mark.status != 0;
            if self.ends.get(&group).is_some_and(|end| mark.id > *end || mark.id == *end && !says_end) {
                return Err(Malformed("object_behind_end_of_group"));
            }
            if self.end.is_some_and(|end| at > end || at == end && !says_end) {
                return Err(Malformed("object_behind_end_of_track"));
            }
            if open.duplicate
                && let Some(subgroup) = open.head.subgroup
                && let Some(known) = self.subgroups.get(&(group, subgroup))
                && known.end == Some(End::Complete)
                && known.last.is_none_or(|last| mark.id > last)
            {
                return Err(Malformed("object_behind_end_of_subgroup"));
            }
            match ObjectStatus::from_number(u64::from(mark.status)) {
                Some(ObjectStatus::EndOfGroup) => {
                    self.ends.entry(group).or_insert(mark.id);
                }
                Some(ObjectStatus::EndOfTrack) => {
                    self.end.get_or_insert(at);
                }
                Some(ObjectStatus::Normal) | None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "track_tests.rs"]
mod tests;
