//! News for whoever reads the events of a connection: kept as what is new, not as a list of everything that happened,
//! so that a reader who stays away costs as much room as there are streams, and never more than for 4,096 of them:
//! beyond that the oldest stream's news are dropped, and [`Event::Missed`] says how many were.
//!
//! Events of one stream come in the order opened, readable, writable, finished or reset, stopped, expired; the end of
//! the connection comes last and once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::session::{End, Event, StreamId, StreamKind};

/// Streams with news that are kept.
const STREAMS: usize = 4_096;

/// What is new about one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fresh {
    opened: bool,
    readable: bool,
    writable: bool,
    finished: bool,
    reset: Option<u64>,
    stopped: Option<u64>,
    expired: bool,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct News {
    connected: bool,
    streams: BTreeMap<StreamId, Fresh>,
    openable: [bool; 2],
    datagrams: bool,
    path: Option<(SocketAddr, SocketAddr)>,
    end: Option<End>,
    missed: u64,
    /// The end was read: nothing is new after it.
    over: bool,
}

impl News {
    /// Whether nothing is new.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        !self.connected
            && self.streams.is_empty()
            && !self.datagrams
            && self.openable == [false; 2]
            && self.path.is_none()
            && self.end.is_none()
    }

    /// Takes note of an event.
    pub(super) fn add(&mut self, event: &Event) {
        if self.over || self.end.is_some() {
            return;
        }
        match event {
            Event::Connected => self.connected = true,
            Event::Opened(stream) => self.fresh(*stream).opened = true,
            Event::Readable(stream) => self.fresh(*stream).readable = true,
            Event::Writable(stream) => self.fresh(*stream).writable = true,
            Event::Finished(stream) => self.fresh(*stream).finished = true,
            Event::Reset(stream, code) => self.fresh(*stream).reset = Some(*code),
            Event::Stopped(stream, code) => self.fresh(*stream).stopped = Some(*code),
            Event::Expired(stream) => self.fresh(*stream).expired = true,
            Event::Openable(StreamKind::Bidirectional) => self.openable[0] = true,
            Event::Openable(StreamKind::Unidirectional) => self.openable[1] = true,
            Event::Datagrams => self.datagrams = true,
            Event::Missed(missed) => self.missed += missed,
            Event::PathChanged { local, peer } => self.path = Some((*local, *peer)),
            Event::Closed(end) => self.end = Some(end.clone()),
        }
    }

    /// Takes back what was taken and not read: it is older than what has become new since.
    pub(super) fn put_back(&mut self, older: Vec<Event>) {
        let newer = self.take();
        self.over = false;
        for event in older.into_iter().chain(newer) {
            self.add(&event);
        }
    }

    fn fresh(&mut self, stream: StreamId) -> &mut Fresh {
        if self.streams.len() >= STREAMS && !self.streams.contains_key(&stream) {
            self.streams.pop_first();
            self.missed += 1;
        }
        self.streams.entry(stream).or_default()
    }

    /// All that is new, in order; nothing is new afterwards.
    pub(super) fn take(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        if std::mem::take(&mut self.connected) {
            events.push(Event::Connected);
        }
        if let Some((local, peer)) = self.path.take() {
            events.push(Event::PathChanged { local, peer });
        }
        match std::mem::take(&mut self.missed) {
            0 => {}
            missed => events.push(Event::Missed(missed)),
        }
        for (stream, fresh) in std::mem::take(&mut self.streams) {
            let flags = [
                (fresh.opened, Event::Opened(stream)),
                (fresh.readable, Event::Readable(stream)),
                (fresh.writable, Event::Writable(stream)),
                (fresh.finished, Event::Finished(stream)),
                (fresh.expired, Event::Expired(stream)),
            ];
            events.extend(flags.into_iter().filter(|(is_new, _)| *is_new).map(|(_, event)| event));
            events.extend(fresh.reset.map(|code| Event::Reset(stream, code)));
            events.extend(fresh.stopped.map(|code| Event::Stopped(stream, code)));
        }
        let [bidirectional, unidirectional] = std::mem::take(&mut self.openable);
        if bidirectional {
            events.push(Event::Openable(StreamKind::Bidirectional));
        }
        if unidirectional {
            events.push(Event::Openable(StreamKind::Unidirectional));
        }
        if std::mem::take(&mut self.datagrams) {
            events.push(Event::Datagrams);
        }
        if let Some(end) = self.end.take() {
            self.over = true;
            events.push(Event::Closed(end));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::{Code, Who};
    use super::*;

    fn end(reason: &'static str) -> End {
        End { who: Who::Peer, code: Code::None, text: "".into(), reason }
    }

    #[test]
    fn news_do_not_pile_up() {
        let mut news = News::default();
        assert!(news.is_empty());
        for _ in 0..1_000 {
            news.add(&Event::Readable(StreamId(0)));
            news.add(&Event::Datagrams);
        }
        news.add(&Event::Opened(StreamId(0)));
        assert_eq!(news.take(), [Event::Opened(StreamId(0)), Event::Readable(StreamId(0)), Event::Datagrams]);
        assert!(news.is_empty());
    }

    #[test]
    fn news_of_too_many_streams_are_missed_and_counted() {
        let mut news = News::default();
        for number in 0..5_000 {
            news.add(&Event::Opened(StreamId(number * 4)));
        }
        let events = news.take();
        assert_eq!((events.len(), &events[0]), (4_097, &Event::Missed(904)));
        assert_eq!(events[1], Event::Opened(StreamId(904 * 4)));
    }

    #[test]
    fn the_end_comes_last_and_once() {
        let mut news = News::default();
        news.add(&Event::Closed(end("first")));
        news.add(&Event::Closed(end("second")));
        news.add(&Event::Readable(StreamId(4)));
        assert_eq!(news.take(), [Event::Closed(end("first"))]);
        news.add(&Event::Closed(end("third")));
        assert!(news.is_empty() && news.take().is_empty());
    }

    #[test]
    fn what_comes_back_is_older_and_the_end_stays_last() {
        let mut news = News::default();
        let (old, new) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let moved = |peer| Event::PathChanged { local: old, peer };
        news.add(&moved(old));
        news.add(&Event::Readable(StreamId(4)));
        let taken = news.take();
        news.add(&moved(new));
        news.add(&Event::Closed(end("first")));
        news.put_back(taken);
        let all = [moved(new), Event::Readable(StreamId(4)), Event::Closed(end("first"))];
        assert_eq!(news.take(), all);
        news.put_back(all.to_vec());
        assert_eq!((news.take(), news.is_empty()), (all.to_vec(), true));
    }
}
