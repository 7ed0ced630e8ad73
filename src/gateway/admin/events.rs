//! `/api/events`: the stream that the dashboard lives on, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Each event is the difference between the sample that this reader was told last and the newest one. A reader that
//! takes its bytes slowly is asked for no patience by anybody: hyper does not come back for more until there is room,
//! and the samples in between are left out and counted (`admin_events_skipped`).

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame};

use super::sample::Sample;
use super::sampler::{PERIOD, Seat};
use crate::actors::{Driver, clock};

/// How long after the next sample is due it is looked for, and how often again until it is there.
const LOOK: Duration = Duration::from_millis(50);

/// The body of an answer of the admin listener.
#[derive(Debug)]
pub(super) enum Answer {
    Whole(Full<Bytes>),
    Events(Box<Events>),
}

impl From<Bytes> for Answer {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Events(events) => events.poll(cx).map(|bytes| Some(Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// When a connection that streams was last given something; `None` while it answers requests.
pub(super) type Progress = Rc<Cell<Option<Instant>>>;

/// One reader's stream.
pub(super) struct Events {
    seat: Seat,
    told: Option<Arc<Sample>>,
    timer: clock::Sleep,
    progress: Progress,
    driver: Driver,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("told", &self.told.as_ref().map(|told| told.number)).finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn new(seat: Seat, progress: Progress, driver: Driver) -> Self {
        progress.set(Some(clock::now()));
        Self { seat, told: None, timer: clock::sleep(LOOK), progress, driver }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            if let Some((text, skipped)) = self.newer() {
                for _ in 0..skipped.min(1_000) {
                    self.driver.raise("admin_events_skipped", "admin", "");
                }
                self.progress.set(Some(clock::now()));
                self.timer = clock::sleep(PERIOD.saturating_sub(LOOK));
                return Poll::Ready(text);
            }
            std::task::ready!(Pin::new(&mut self.timer).poll(cx));
            self.timer = clock::sleep(LOOK);
        }
    }

    /// The next event, and how many samples are left out before it.
    fn newer(&mut self) -> Option<(Bytes, u64)> {
        let latest = self.seat.latest()?;
        let told = self.told.as_ref().map(|told| told.number);
        if told == Some(latest.number) {
            return None;
        }
        let skipped = told.map_or(0, |told| latest.number.saturating_sub(told + 1));
        let json = latest.since(self.told.as_deref()).ok()?;
        self.told = Some(latest);
        Some((Bytes::from(format!("data: {json}\n\n")), skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Cell as Actor;
    use super::super::sampler::{Hub, WATCHERS};
    use super::*;

    fn sample(number: u64, actors: u64) -> Arc<Sample> {
        let cells = (0..actors).map(|id| Actor { id, kind: 0, level: 0, flags: 0, restarts: 0 }).collect();
        Arc::new(Sample { number, cells: vec![cells], ..Sample::default() })
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_of_the_newest_and_the_rest_is_counted() {
        let hub = Arc::new(Hub::default());
        let mut events = Events::new(hub.sit().unwrap(), Progress::default(), Driver::default());
        assert!(events.newer().is_none(), "there is no sample yet");
        hub.publish(Some(sample(4, 1)));
        let (text, skipped) = events.newer().unwrap();
        assert!(text.starts_with(b"data: {") && text.ends_with(b"}\n\n") && skipped == 0, "{text:?}");
        assert!(events.newer().is_none(), "it was told");
        for number in 5..=8 {
            hub.publish(Some(sample(number, number)));
        }
        let (text, skipped) = events.newer().unwrap();
        assert_eq!(skipped, 3);
        let json: serde_json::Value = serde_json::from_slice(&text["data: ".len()..]).unwrap();
        assert_eq!((json["number"].as_u64(), json["first"].as_bool()), (Some(8), Some(false)));
        assert_eq!(json["add"].as_array().unwrap().len(), 6 * 7, "all that came since what it was told");
    }

    #[test]
    fn the_places_to_watch_from_are_few_and_come_back() {
        let hub = Arc::new(Hub::default());
        let seats: Vec<_> = (0..WATCHERS).map(|_| hub.sit().unwrap()).collect();
        assert!(hub.sit().is_none() && hub.sit().is_none());
        drop(seats);
        assert!(hub.sit().is_some());
    }
}
