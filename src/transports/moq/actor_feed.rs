//! What the sessions of one arbiter read of a track: written by the track's mirror there, in its turns, and read by
//! sessions in theirs. It never leaves the arbiter, so a subscriber costs no message.
//!
//! A [`Reader`] is a place in the list of those who are woken when something has come. Readers hold no objects: what
//! they have not read yet is in the cache, bounded, and nobody waits for them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;

use super::actor_mirror::ToMirror;
use super::state_cache::{Groups, Limits};
use super::state_track::Status;
use crate::actors::Mail;

/// Who is woken: one session, with what of it has news.
#[derive(Debug, Default)]
pub(super) struct Bell {
    waker: RefCell<Option<Waker>>,
    rung: RefCell<Vec<u64>>,
}

impl Bell {
    /// Takes note of whom to wake.
    pub(super) fn attend(&self, waker: &Waker) {
        let mut mine = self.waker.borrow_mut();
        if !mine.as_ref().is_some_and(|mine| mine.will_wake(waker)) {
            *mine = Some(waker.clone());
        }
    }

    /// What has news.
    pub(super) fn take(&self) -> Vec<u64> {
        self.rung.take()
    }

    fn ring(&self, number: u64) {
        let mut rung = self.rung.borrow_mut();
        if rung.contains(&number) {
            return;
        }
        rung.push(number);
        if rung.len() == 1
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }
}

struct Listening {
    bell: Rc<Bell>,
    number: u64,
    forward: bool,
}

/// See the top of the file.
pub(super) struct Feed {
    /// What is at hand.
    pub(super) groups: RefCell<Groups>,
    /// What is true of the track.
    pub(super) status: RefCell<Status>,
    /// Whether the track has said so.
    pub(super) heard: Cell<bool>,
    readers: RefCell<BTreeMap<u64, Listening>>,
    next: Cell<u64>,
    forwarding: Cell<usize>,
    mirror: RefCell<Option<Mail<ToMirror>>>,
}

impl Feed {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            groups: RefCell::new(Groups::new(limits)),
            status: RefCell::default(),
            heard: Cell::new(false),
            readers: RefCell::default(),
            next: Cell::new(0),
            forwarding: Cell::new(0),
            mirror: RefCell::default(),
        }
    }

    /// Who writes it.
    pub(super) fn is_written_by(&self, mirror: Mail<ToMirror>) {
        *self.mirror.borrow_mut() = Some(mirror);
    }

    /// Rings `bell` for `number` whenever something has come.
    pub(super) fn read(self: &Rc<Self>, bell: &Rc<Bell>, number: u64, forward: bool) -> Reader {
        let id = self.next.get();
        self.next.set(id + 1);
        self.readers.borrow_mut().insert(id, Listening { bell: bell.clone(), number, forward });
        self.forwarding.set(self.forwarding.get() + usize::from(forward));
        self.look();
        Reader { feed: self.clone(), id }
    }

    /// Readers, and those among them that want objects.
    pub(super) fn readers(&self) -> (usize, usize) {
        (self.readers.borrow().len(), self.forwarding.get())
    }

    /// Something has come.
    pub(super) fn ring(&self) {
        self.readers.borrow().values().for_each(|reader| reader.bell.ring(reader.number));
    }

    /// The mirror is to look at its readers. It finds out by itself if it has no room for that.
    fn look(&self) {
        if let Some(mirror) = &*self.mirror.borrow() {
            let _later = mirror.tell(ToMirror::Look);
        }
    }
}

/// One who reads; until it is dropped.
pub(super) struct Reader {
    pub(super) feed: Rc<Feed>,
    id: u64,
}

impl Reader {
    /// Whether it wants objects.
    pub(super) fn forward(&self, forward: bool) {
        let mut readers = self.feed.readers.borrow_mut();
        let Some(reader) = readers.get_mut(&self.id).filter(|reader| reader.forward != forward) else { return };
        reader.forward = forward;
        drop(readers);
        let now = self.feed.forwarding.get();
        self.feed.forwarding.set(if forward { now + 1 } else { now.saturating_sub(1) });
        self.feed.look();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let went = self.feed.readers.borrow_mut().remove(&self.id);
        if went.is_some_and(|reader| reader.forward) {
            self.feed.forwarding.set(self.feed.forwarding.get().saturating_sub(1));
        }
        self.feed.look();
    }
}

/// The feeds of one arbiter, by the number of their tracks.
#[derive(Default)]
pub(super) struct Feeds {
    of: RefCell<BTreeMap<u64, Rc<Feed>>>,
}

impl Feeds {
    pub(super) fn get(&self, track: u64) -> Option<Rc<Feed>> {
        self.of.borrow().get(&track).cloned()
    }

    pub(super) fn put(&self, track: u64, feed: Rc<Feed>) {
        self.of.borrow_mut().insert(track, feed);
    }

    /// Only if it is still this one.
    pub(super) fn remove(&self, track: u64, feed: &Rc<Feed>) {
        let mut of = self.of.borrow_mut();
        if of.get(&track).is_some_and(|known| Rc::ptr_eq(known, feed)) {
            of.remove(&track);
        }
    }
}
