//! Who is in which room, as one arbiter knows it, and the lines that wait to be passed on.
//!
//! Plain data: a member's handle is whatever the hub uses to reach it. Lines of a room are numbered, and each member
//! knows the number of the next line it is to get, so joining in the middle of a batch costs nobody anything.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::rooms_words::{Line, Refusal};
use crate::actors::ActorId;
use crate::memory::{self, Key};

/// A member that other arbiters may not know of yet: it gets lines from its confirmation on.
const NOT_YET: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Seat<H> {
    pub(super) id: ActorId,
    pub(super) handle: H,
    /// The number of the next line for it.
    pub(super) next: u64,
}

#[derive(Debug)]
pub(super) struct Room<H> {
    pub(super) name: Arc<str>,
    pub(super) seats: Vec<Seat<H>>,
    /// The other arbiters that have members of it.
    pub(super) elsewhere: Vec<usize>,
    pub(super) lines: Vec<Line>,
    /// The bytes of the bodies of `lines`.
    pub(super) bytes: usize,
    /// The number of the first of `lines`.
    pub(super) first: u64,
    /// The other arbiters were told that this one has members of it.
    pub(super) announced: bool,
    /// Which announcement that was.
    pub(super) generation: u64,
    /// So many have not yet said that they know.
    pub(super) missing: usize,
    joining: Vec<ActorId>,
    touched: bool,
}

impl<H> Room<H> {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            seats: Vec::new(),
            elsewhere: Vec::new(),
            lines: Vec::new(),
            bytes: 0,
            first: 0,
            announced: false,
            generation: 0,
            missing: 0,
            joining: Vec::new(),
            touched: false,
        }
    }

    const fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    fn push(&mut self, line: Line) {
        self.bytes += line.body.len();
        self.lines.push(line);
    }
}

#[derive(Debug, Clone, Copy)]
struct Spot {
    room: Key,
    seat: usize,
}

/// What came of a wish to join.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// In, and known to all.
    Now,
    /// In, to be confirmed when the other arbiters know.
    Soon,
    /// It was in already.
    Already,
}

/// What a member leaves behind.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) room: Arc<str>,
    /// It was never told that it is in.
    pub(super) unconfirmed: bool,
    /// What was said before it left and has not been passed on to it.
    pub(super) lines: Vec<Line>,
}

#[derive(Debug)]
pub(super) struct Table<H> {
    rooms: memory::Table<Room<H>>,
    names: HashMap<Arc<str>, Key>,
    spots: HashMap<ActorId, Spot>,
    touched: Vec<Key>,
    max_rooms: usize,
    max_seats: usize,
    /// Joining needs no confirmation: there are no other arbiters.
    alone: bool,
}

impl<H> Table<H> {
    pub(super) fn new(max_rooms: usize, max_seats: usize, alone: bool) -> Self {
        Self {
            // Bounded by `max_rooms`, and by what other hubs have, each within its own.
            rooms: memory::Table::new(usize::MAX),
            names: HashMap::new(),
            spots: HashMap::new(),
            touched: Vec::new(),
            max_rooms,
            max_seats,
            alone,
        }
    }

    pub(super) fn members(&self) -> usize {
        self.spots.len()
    }

    pub(super) fn rooms(&self) -> usize {
        self.names.len()
    }

    pub(super) fn room_mut(&mut self, room: Key) -> Option<&mut Room<H>> {
        self.rooms.get_mut(room)
    }

    pub(super) fn find(&self, name: &str) -> Option<Key> {
        self.names.get(name).copied()
    }

    /// All members, for the end of the hub.
    pub(super) fn seats(&self) -> impl Iterator<Item = &Seat<H>> {
        self.rooms.iter().flat_map(|(_, room)| &room.seats)
    }

    /// The next room in which something has changed since it was last taken here.
    pub(super) fn take_touched(&mut self) -> Option<Key> {
        loop {
            let key = self.touched.pop()?;
            if let Some(room) = self.room_mut(key) {
                room.touched = false;
                return Some(key);
            }
        }
    }

    fn touch(&mut self, key: Key) {
        if let Some(room) = self.room_mut(key)
            && !std::mem::replace(&mut room.touched, true)
        {
            self.touched.push(key);
        }
    }

    /// The room of that name, made if there is none.
    fn open(&mut self, name: &Arc<str>) -> Option<Key> {
        if let Some(key) = self.find(name) {
            return Some(key);
        }
        // It has room for more than there can be.
        let key = self.rooms.insert(Room::new(name.clone())).ok()?;
        self.names.insert(name.clone(), key);
        Some(key)
    }

    /// Forgets a room that nobody anywhere is in.
    pub(super) fn close_if_empty(&mut self, key: Key) {
        let unused = |room: &Room<H>| {
            room.seats.is_empty() && room.elsewhere.is_empty() && room.lines.is_empty() && !room.announced
        };
        if self.rooms.get(key).is_some_and(unused)
            && let Some(room) = self.rooms.remove(key)
        {
            self.names.remove(&room.name);
        }
    }

    /// Whether `id` may join; the answer to [`join`](Self::join) otherwise.
    pub(super) fn may_join(&self, id: ActorId, name: &str) -> Result<(), Refusal> {
        let Some(key) = self.find(name) else {
            return if self.names.len() < self.max_rooms { Ok(()) } else { Err(Refusal::TooManyRooms) };
        };
        let taken = self.rooms.get(key).map_or(0, |room| room.seats.len());
        let inside = self.spots.get(&id).is_some_and(|spot| spot.room == key);
        if inside || taken < self.max_seats { Ok(()) } else { Err(Refusal::RoomFull) }
    }

    /// Puts a member that is in no other room into this one.
    pub(super) fn join(&mut self, id: ActorId, name: &Arc<str>, handle: H) -> Joined {
        let Some(key) = self.open(name) else { return Joined::Already };
        if self.spots.get(&id).is_some_and(|spot| spot.room == key) {
            return Joined::Already;
        }
        let alone = self.alone;
        let Some(room) = self.room_mut(key) else { return Joined::Already };
        let known = alone || room.announced && room.missing == 0;
        let next = if known { room.end() } else { NOT_YET };
        let seat = room.seats.len();
        room.seats.push(Seat { id, handle, next });
        if !known {
            room.joining.push(id);
        }
        self.spots.insert(id, Spot { room: key, seat });
        self.touch(key);
        if known { Joined::Now } else { Joined::Soon }
    }

    pub(super) fn room_of(&self, id: ActorId) -> Option<&Arc<str>> {
        let spot = self.spots.get(&id)?;
        self.rooms.get(spot.room).map(|room| &room.name)
    }

    /// Takes a member out of its room.
    pub(super) fn leave(&mut self, id: ActorId) -> Option<Left> {
        let Spot { room: key, seat } = self.spots.remove(&id)?;
        let room = self.rooms.get_mut(key)?;
        if seat >= room.seats.len() {
            return None;
        }
        let gone = room.seats.swap_remove(seat);
        let moved = room.seats.get(seat).map(|moved| moved.id);
        let skip = gone.next.saturating_sub(room.first);
        let lines = room.lines.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX));
        let left = Left {
            room: room.name.clone(),
            unconfirmed: gone.next == NOT_YET,
            lines: lines.filter(|line| line.from != Some(id)).cloned().collect(),
        };
        if room.seats.is_empty() {
            room.joining = Vec::new();
        }
        if let Some(spot) = moved.and_then(|moved| self.spots.get_mut(&moved)) {
            spot.seat = seat;
        }
        self.touch(key);
        Some(left)
    }

    /// Queues what a member says; answers the room and how many bytes wait there now.
    pub(super) fn say(&mut self, id: ActorId, body: Bytes) -> Option<(Key, usize)> {
        let key = self.spots.get(&id)?.room;
        let room = self.room_mut(key)?;
        room.push(Line { from: Some(id), local: true, body });
        let bytes = room.bytes;
        self.touch(key);
        Some((key, bytes))
    }

    /// Queues what was said on another arbiter, if anybody here is in that room; answers as [`say`](Self::say).
    pub(super) fn heard(&mut self, name: &str, lines: &[Line]) -> Option<(Key, usize)> {
        let key = self.find(name)?;
        let room = self.room_mut(key).filter(|room| !room.seats.is_empty())?;
        for line in lines {
            room.push(Line { local: false, ..line.clone() });
        }
        let bytes = room.bytes;
        self.touch(key);
        Some((key, bytes))
    }

    /// Another arbiter has members of a room now, or none any more.
    pub(super) fn elsewhere(&mut self, name: &Arc<str>, hub: usize, has: bool) {
        let key = if has { self.open(name) } else { self.find(name) };
        let Some(key) = key else { return };
        if let Some(room) = self.room_mut(key) {
            room.elsewhere.retain(|other| *other != hub);
            if has {
                room.elsewhere.push(hub);
            }
        }
        self.touch(key);
    }

    /// One more arbiter knows that this one has members. When all do: who can be told so, and from then on gets lines.
    pub(super) fn known(&mut self, name: &str, generation: u64, mut tell: impl FnMut(&Seat<H>)) {
        let Some(key) = self.find(name) else { return };
        let Some(room) = self.rooms.get_mut(key) else { return };
        if !room.announced || room.generation != generation || room.missing == 0 {
            return;
        }
        room.missing -= 1;
        if room.missing > 0 {
            return;
        }
        let end = room.end();
        for id in std::mem::take(&mut room.joining) {
            let Some(spot) = self.spots.get(&id).filter(|spot| spot.room == key) else { continue };
            let Some(seat) = room.seats.get_mut(spot.seat).filter(|seat| seat.next == NOT_YET) else { continue };
            seat.next = end;
            tell(seat);
        }
    }

    /// Confirms a member before others know of it: it wants its answers in order more than it wants to wait.
    pub(super) fn confirm(&mut self, id: ActorId) -> Option<Arc<str>> {
        let spot = self.spots.get(&id)?;
        let room = self.rooms.get_mut(spot.room)?;
        let end = room.end();
        let seat = room.seats.get_mut(spot.seat).filter(|seat| seat.next == NOT_YET)?;
        seat.next = end;
        Some(room.name.clone())
    }

    /// Of the lines that wait in a room, how many belong to members who would get them, were they not their own.
    pub(super) fn own(&self, key: Key) -> usize {
        let Some(room) = self.rooms.get(key) else { return 0 };
        let numbered = (room.first..).zip(&room.lines);
        numbered
            .filter(|(number, line)| {
                let spot = line.from.and_then(|from| self.spots.get(&from)).filter(|spot| spot.room == key);
                spot.and_then(|spot| room.seats.get(spot.seat)).is_some_and(|seat| seat.next <= *number)
            })
            .count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u8) -> Arc<str> {
        Arc::from(format!("room {n}"))
    }

    /// Hands out what waits in all touched rooms, as a hub does at the end of its turn.
    fn flush(table: &mut Table<()>, got: &mut HashMap<u64, Vec<u32>>) {
        while let Some(key) = table.take_touched() {
            if let Some(room) = table.room_mut(key) {
                let lines = std::mem::take(&mut room.lines);
                let (first, end) = (room.first, room.first + lines.len() as u64);
                (room.first, room.bytes) = (end, 0);
                for seat in room.seats.iter_mut().filter(|seat| seat.next < end) {
                    let start = seat.next.saturating_sub(first) as usize;
                    seat.next = end;
                    take(&lines[start..], seat.id, got);
                }
            }
            table.close_if_empty(key);
        }
    }

    fn take(lines: &[Line], by: ActorId, got: &mut HashMap<u64, Vec<u32>>) {
        let bodies = lines.iter().filter(|line| line.from != Some(by)).map(|line| line.body[..].try_into().unwrap());
        got.entry(by.number()).or_default().extend(bodies.map(u32::from_be_bytes));
    }

    proptest! {
        /// Against the simplest model: a broadcast reaches at once everybody who is in the room at that moment.
        #[test]
        fn members_get_what_is_said_while_they_are_in(
            steps in proptest::collection::vec((0..10u8, 0..6u64, 0..3u8), 1..300),
        ) {
            let mut table = Table::new(100, 100, true);
            let mut model: HashMap<u64, u8> = HashMap::new();
            let (mut expected, mut got) = (HashMap::<u64, Vec<u32>>::new(), HashMap::new());
            let mut number = 0u32;
            for (what, who, room) in steps {
                let id = ActorId(who);
                match what {
                    0..=2 => {
                        if table.room_of(id).is_some_and(|inside| *inside != name(room)) {
                            take(&table.leave(id).unwrap().lines, id, &mut got);
                        }
                        table.join(id, &name(room), ());
                        model.insert(who, room);
                    }
                    3 => {
                        let left = table.leave(id);
                        prop_assert_eq!(left.is_some(), model.remove(&who).is_some());
                        if let Some(left) = left {
                            take(&left.lines, id, &mut got);
                        }
                    }
                    4..=7 => {
                        let said = table.say(id, Bytes::copy_from_slice(&number.to_be_bytes()));
                        prop_assert_eq!(said.is_some(), model.contains_key(&who));
                        if let Some(room) = model.get(&who) {
                            for other in (0..6).filter(|other| *other != who && model.get(other) == Some(room)) {
                                expected.entry(other).or_default().push(number);
                            }
                        }
                        number += 1;
                    }
                    _ => flush(&mut table, &mut got),
                }
                prop_assert_eq!(table.members(), model.len());
            }
            flush(&mut table, &mut got);
            for who in 0..6 {
                // In one room the order is that of speaking; changing rooms hands out first what was missing.
                prop_assert_eq!(got.get(&who).cloned().unwrap_or_default(), expected.get(&who).cloned().unwrap_or_default());
            }
            for who in 0..6 {
                table.leave(ActorId(who));
            }
            flush(&mut table, &mut got);
            prop_assert_eq!((table.members(), table.rooms()), (0, 0));
        }
    }

    #[test]
    fn a_member_is_confirmed_when_all_other_arbiters_know() {
        let mut table = Table::new(10, 10, false);
        let (a, b, room) = (ActorId(1), ActorId(2), name(1));
        assert_eq!(table.join(a, &room, ()), Joined::Soon);
        let key = table.take_touched().unwrap();
        let opened = table.room_mut(key).unwrap();
        (opened.announced, opened.generation, opened.missing) = (true, 7, 2);
        assert_eq!(table.join(b, &room, ()), Joined::Soon);
        let mut told = Vec::new();
        table.known(&room, 6, |seat| told.push(seat.id));
        table.known(&room, 7, |seat| told.push(seat.id));
        table.say(a, Bytes::from_static(b"early"));
        assert!(told.is_empty());
        assert!(table.leave(b).unwrap().unconfirmed);
        table.known(&room, 7, |seat| told.push(seat.id));
        assert_eq!(told, [a]);
        assert_eq!(table.room_mut(key).unwrap().seats[0].next, 1, "from the confirmation on");
        assert_eq!(table.join(b, &room, ()), Joined::Now);
    }
}
