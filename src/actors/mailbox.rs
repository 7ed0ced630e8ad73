//! The way into an actor: `Mail`, permits, asks and watches.
//!
//! A mailbox is bounded exactly, in messages and in bytes, over all its clones. What does not fit comes back to the
//! sender at once: it decides whether to drop and count, to wait for a permit, or to stop reading its own source.
//! Order: messages of one sender arrive in the order they were told. Urgent messages and control signals overtake
//! data. What is queued when an actor ends is dropped; whoever waits for an answer then learns `Closed`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::clock;
use super::lane::{Depth, Lane, Refused, StopCause};
use super::local;
use super::protocol::Exit;

/// How many may watch one actor at once.
pub const WATCHERS: usize = 1_024;

/// The bounds of a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbox {
    /// Messages that may wait, be in work or be reserved at once; at least one. Default 1,024.
    pub messages: usize,
    /// Their bytes, as the protocol's `size` counts them. Default 4 MiB.
    pub bytes: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { messages: 1_024, bytes: 4 << 20 }
    }
}

/// The identity of an actor: never used twice within a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId(pub(crate) u64);

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl ActorId {
    /// The number behind the identity, for logs and for the admin API.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

type Watcher = Box<dyn FnOnce(&Exit) + Send>;

#[derive(Default)]
struct Ending {
    exit: Option<Exit>,
    watchers: Vec<Watcher>,
}

/// What an actor shares with everyone who holds its mailbox.
pub(crate) struct Shared<M> {
    pub(crate) lane: Lane<M>,
    pub(crate) id: ActorId,
    pub(crate) kind: &'static str,
    ending: Mutex<Ending>,
}

impl<M> Shared<M> {
    pub(crate) fn new(id: ActorId, kind: &'static str, inbox: Inbox, size: fn(&M) -> usize) -> Arc<Self> {
        Arc::new(Self {
            lane: Lane::new(inbox.messages, inbox.bytes, size),
            id,
            kind,
            ending: Mutex::new(Ending::default()),
        })
    }

    /// Publishes why the actor ended. Only the first call counts.
    pub(crate) fn ended(&self, why: &Exit) {
        let watchers = {
            let mut ending = self.ending.lock();
            if ending.exit.is_some() {
                return;
            }
            ending.exit = Some(why.clone());
            std::mem::take(&mut ending.watchers)
        };
        for watcher in watchers {
            watcher(why);
        }
    }

    pub(crate) fn on_exit(&self, watcher: Watcher) -> Result<(), WatchError> {
        let mut ending = self.ending.lock();
        if let Some(exit) = ending.exit.clone() {
            drop(ending);
            watcher(&exit);
            return Ok(());
        }
        if ending.watchers.len() >= WATCHERS {
            return Err(WatchError::TooMany);
        }
        ending.watchers.push(watcher);
        Ok(())
    }
}

/// A lane without its message type: what introspection and drain need of any actor.
pub(crate) trait Controlled: Send + Sync {
    fn depth(&self) -> Depth;
    fn stop(&self, cause: StopCause);
    fn drain(&self, by: Instant);
    fn quiesce(&self);
    fn remake(&self, at: Instant);
    fn number(&self) -> u64;
}

impl<M: Send> Controlled for Shared<M> {
    fn depth(&self) -> Depth {
        self.lane.depth()
    }

    fn stop(&self, cause: StopCause) {
        self.lane.signal(|s| s.stop = Some(s.stop.unwrap_or(cause)));
    }

    fn drain(&self, by: Instant) {
        self.lane.signal(|s| s.drain = Some(s.drain.map_or(by, |d| d.min(by))));
    }

    fn quiesce(&self) {
        self.lane.signal(|s| s.quiesce = true);
    }

    fn remake(&self, at: Instant) {
        self.lane.signal(|s| s.remake = Some(s.remake.map_or(at, |old| old.max(at))));
    }

    fn number(&self) -> u64 {
        self.id.0
    }
}

/// The mailbox of an actor, usable from any thread. A clone is one reference-count increment.
///
/// An actor does not end because its last `Mail` is dropped: it ends by itself, by [`Control::Stop`], by a
/// fault, or when its mesh stops.
pub struct Mail<M> {
    pub(crate) shared: Arc<Shared<M>>,
}

impl<M> Clone for Mail<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<M> fmt::Debug for Mail<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail").field("kind", &self.shared.kind).field("id", &self.shared.id).finish()
    }
}

impl<M: Send + 'static> Mail<M> {
    /// Sends a message. Never waits.
    ///
    /// # Errors
    /// The message comes back: [`Refused::Full`] when the bound is reached or others wait for a permit,
    /// [`Refused::TooLarge`] when it can never fit, [`Refused::Closed`] when the actor has ended.
    pub fn tell(&self, m: M) -> Result<(), Refused<M>> {
        self.shared.lane.tell(m)
    }

    /// Sends messages from the front of `from` until one does not fit, with one lock and at most one wake-up. Answers
    /// how many were taken; the rest stays in `from`. None are taken from then on once the actor has ended: tell that
    /// apart from a full mailbox with [`is_closed`](Self::is_closed).
    pub fn tell_many(&self, from: &mut VecDeque<M>) -> usize {
        self.shared.lane.tell_many(from)
    }

    /// Sends a message that overtakes all data. At most 16 may wait, whatever the bounds of the mailbox.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub fn urgent(&self, m: M) -> Result<(), Refused<M>> {
        self.shared.lane.urgent(m)
    }

    /// Sends a control signal. It overtakes all data and is never refused; repeating one changes nothing, and one for
    /// an actor that has ended is void.
    pub fn control(&self, c: Control) {
        match c {
            Control::Stop => Controlled::stop(&*self.shared, StopCause::Asked),
            Control::Drain(by) => Controlled::drain(&*self.shared, by),
            Control::Quiesce => Controlled::quiesce(&*self.shared),
        }
    }

    /// Waits for room for one message of at most `bytes` and reserves it. Those who wait are served in the order they
    /// came, before any [`tell`](Self::tell). A reader of a stream takes the permit first and reads its socket after.
    ///
    /// # Errors
    /// [`Refused::Closed`] when the actor has ended, [`Refused::TooLarge`] when `bytes` can never fit.
    pub async fn permit(&self, bytes: usize) -> Result<Permit<M>, Refused<()>> {
        let mut line = Line { shared: &self.shared, ticket: None };
        std::future::poll_fn(|cx| line.poll(bytes, cx)).await?;
        drop(line);
        Ok(Permit { shared: Some(self.shared.clone()), bytes })
    }

    /// Reserves room for one message of at most `bytes` if there is some now.
    ///
    /// # Errors
    /// As [`tell`](Self::tell), with nothing inside.
    pub fn try_permit(&self, bytes: usize) -> Result<Permit<M>, Refused<()>> {
        self.shared.lane.reserve(bytes)?;
        Ok(Permit { shared: Some(self.shared.clone()), bytes })
    }

    /// Asks and waits for the answer, at most `within`. Costs a wake-up of each side: not for data paths.
    ///
    /// # Panics
    /// Outside a mesh or a simulation, where no tokio runtime with time enabled is running.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(Reply<R>) -> M,
        within: Duration,
    ) -> Result<R, AskError> {
        let (reply, answer) = Reply::new();
        self.tell(question(reply)).map_err(|refused| AskError::from(&refused))?;
        answer.within(within).await
    }

    /// [`ask`](Self::ask) with an [urgent](Self::urgent) question: how a flooded actor can still be talked to.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask_urgent<R: Send + 'static>(
        &self,
        question: impl FnOnce(Reply<R>) -> M,
        within: Duration,
    ) -> Result<R, AskError> {
        let (reply, answer) = Reply::new();
        self.urgent(question(reply)).map_err(|refused| AskError::from(&refused))?;
        answer.within(within).await
    }

    /// [`ask`](Self::ask) for plain threads: blocks the calling thread.
    ///
    /// # Errors
    /// [`AskError::OnArbiter`] on a thread of a mesh, of actix or of a simulation, where blocking would stop everyone
    /// on it; otherwise as `ask`. In a task of another event loop it does block that task's thread: use `ask` there.
    pub fn ask_blocking<R: Send + 'static>(
        &self,
        question: impl FnOnce(Reply<R>) -> M,
        within: Duration,
    ) -> Result<R, AskError> {
        if local::on_event_loop() {
            return Err(AskError::OnArbiter);
        }
        let (reply, answer) = Reply::new();
        self.tell(question(reply)).map_err(|refused| AskError::from(&refused))?;
        local::block_on_plain_thread(within, answer.0)
            .map_or(Err(AskError::Timeout), |a| a.map_err(|_| AskError::Closed))
    }

    /// Waits until the actor has ended and answers why.
    pub async fn closed(&self) -> Exit {
        let (tell, told) = oneshot::channel();
        let watching = self.shared.on_exit(Box::new(move |exit| drop(tell.send(exit.clone()))));
        match watching {
            Ok(()) => told.await.unwrap_or(Exit::Normal),
            Err(WatchError::TooMany | WatchError::Full) => {
                // Too many watch already: look again now and then.
                loop {
                    if let Some(exit) = self.exit() {
                        return exit;
                    }
                    clock::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Why the actor ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.shared.ending.lock().exit.clone()
    }

    /// True once nothing is taken any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lane.is_closed()
    }

    /// How full the mailbox is.
    #[must_use]
    pub fn depth(&self) -> Depth {
        self.shared.lane.depth()
    }

    /// Who this is the mailbox of.
    #[must_use]
    pub fn id(&self) -> ActorId {
        self.shared.id
    }
}

/// Waits for a future on a plain thread, at most `within`. The future must not need an event loop.
///
/// # Errors
/// [`AskError::OnArbiter`] where blocking would stop actors, [`AskError::Timeout`].
#[cfg(feature = "quic")]
pub(crate) fn wait_blocking<F: Future>(within: Duration, future: F) -> Result<F::Output, AskError> {
    if local::on_event_loop() {
        return Err(AskError::OnArbiter);
    }
    local::block_on_plain_thread(within, future).ok_or(AskError::Timeout)
}

/// A place in the line of those who wait for a permit, given up when the caller stops waiting.
struct Line<'a, M> {
    shared: &'a Shared<M>,
    ticket: Option<u64>,
}

impl<M> Line<'_, M> {
    fn poll(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<Result<(), Refused<()>>> {
        self.shared.lane.poll_reserve(bytes, &mut self.ticket, cx)
    }
}

impl<M> Drop for Line<'_, M> {
    fn drop(&mut self) {
        if let Some(number) = self.ticket {
            self.shared.lane.forget_ticket(number);
        }
    }
}

/// What a mailbox can be asked ahead of all data; see [`Mail::control`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// End now. What is queued is dropped.
    Stop,
    /// Finish what was accepted and end, at the latest at this instant.
    Drain(Instant),
    /// Take no new work from outside; go on with what is there.
    Quiesce,
}

/// Room reserved in a mailbox for one message. Dropping it gives the room back.
pub struct Permit<M> {
    shared: Option<Arc<Shared<M>>>,
    bytes: usize,
}

impl<M: Send> Permit<M> {
    /// Sends the message the room was reserved for.
    ///
    /// # Errors
    /// [`Refused::TooLarge`] when the message is larger than what was reserved (the room is given back),
    /// [`Refused::Closed`] when the actor has ended. It is never `Full`.
    pub fn tell(mut self, m: M) -> Result<(), Refused<M>> {
        self.put(m, false)
    }

    /// A permit for room already reserved for a message of any size.
    pub(crate) const fn reserved(shared: Arc<Shared<M>>) -> Self {
        Self { shared: Some(shared), bytes: 0 }
    }

    /// Sends a message that must arrive, whatever its size: an answer the actor itself asked for.
    pub(crate) fn tell_answer(mut self, m: M) -> Result<(), Refused<M>> {
        self.put(m, true)
    }

    fn put(&mut self, m: M, must: bool) -> Result<(), Refused<M>> {
        let Some(shared) = self.shared.take() else { return Err(Refused::Closed(m)) };
        let answer = shared.lane.tell_reserved(m, self.bytes, must);
        if matches!(answer, Err(Refused::TooLarge(_))) {
            shared.lane.release(self.bytes);
        }
        answer
    }
}

impl<M> Drop for Permit<M> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.lane.release(self.bytes);
        }
    }
}

impl<M> fmt::Debug for Permit<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The way back for one answer. Dropping it tells the asker `Closed`.
#[derive(Debug)]
pub struct Reply<R>(oneshot::Sender<R>);

/// The answer to come.
#[derive(Debug)]
pub(crate) struct Answer<R>(pub(crate) oneshot::Receiver<R>);

impl<R> Answer<R> {
    pub(crate) async fn within(self, within: Duration) -> Result<R, AskError> {
        match clock::within(within, self.0).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AskError::Closed),
            Err(clock::Elapsed) => Err(AskError::Timeout),
        }
    }
}

impl<R> Reply<R> {
    pub(crate) fn new() -> (Self, Answer<R>) {
        let (give, get) = oneshot::channel();
        (Self(give), Answer(get))
    }

    /// Answers.
    ///
    /// # Errors
    /// The answer comes back if nobody waits for it any more.
    pub fn send(self, answer: R) -> Result<(), R> {
        self.0.send(answer)
    }
}

/// Why a question got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AskError {
    /// The mailbox had no room for the question.
    Full,
    /// The question alone is larger than the mailbox allows.
    TooLarge,
    /// The actor has ended, or dropped the question.
    Closed,
    /// No answer in the time allowed.
    Timeout,
    /// A blocking call was made on a thread of a mesh, of actix or of a simulation.
    OnArbiter,
}

impl<M> From<&Refused<M>> for AskError {
    fn from(refused: &Refused<M>) -> Self {
        match refused {
            Refused::Full(_) => Self::Full,
            Refused::TooLarge(_) => Self::TooLarge,
            Refused::Closed(_) => Self::Closed,
        }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the mailbox is full",
            Self::TooLarge => "the question is larger than the mailbox allows",
            Self::Closed => "the actor has ended or dropped the question",
            Self::Timeout => "no answer in the time allowed",
            Self::OnArbiter => "a blocking call on a thread that runs an event loop",
        })
    }
}

impl std::error::Error for AskError {}

/// Why an actor cannot be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchError {
    /// The watcher's own mailbox has no room to reserve for the news.
    Full,
    /// [`WATCHERS`] watch it already.
    TooMany,
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the watcher's mailbox has no room for the news",
            Self::TooMany => "too many watch this actor already",
        })
    }
}

impl std::error::Error for WatchError {}
