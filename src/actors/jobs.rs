//! Work that waits, run as part of an actor: polled in its turns, dropped with it, contained if it panics.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};

use super::local;
use super::protocol::JobPanicked;

type Job<M> = Pin<Box<dyn Future<Output = Result<M, Arc<str>>>>>;

/// The jobs of one actor. Costs nothing until the first.
pub(crate) struct Jobs<M> {
    set: Option<Box<FuturesUnordered<Job<M>>>>,
    kind: &'static str,
}

impl<M: 'static> Jobs<M> {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self { set: None, kind }
    }

    pub(crate) fn add<F>(&mut self, work: F, then: impl FnOnce(Result<F::Output, JobPanicked>) -> M + 'static)
    where
        F: Future + 'static,
    {
        let kind = self.kind;
        let job = async move {
            let out = Contained { work: Some(Box::pin(work)) }.await.map_err(|message| {
                count_panic(kind, "job", &message);
                JobPanicked
            });
            contain(|| then(out))
        };
        self.set.get_or_insert_default().push(Box::pin(job));
    }

    pub(crate) fn len(&self) -> usize {
        self.set.as_ref().map_or(0, |set| set.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.set.as_ref().is_none_or(|set| set.is_empty())
    }

    /// The next answer, or the message of a panic in the code that was to turn it into one.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<M, Arc<str>>>> {
        match &mut self.set {
            Some(set) if !set.is_empty() => Pin::new(&mut **set).poll_next(cx),
            Some(_) | None => Poll::Ready(None),
        }
    }
}

/// A future whose panic becomes its result.
struct Contained<F: ?Sized> {
    work: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, Arc<str>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        match contain(|| work.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(out)) => Poll::Ready(Ok(out)),
            Err(message) => {
                let work = self.work.take();
                let _panic_while_dropping = contain(|| drop(work));
                Poll::Ready(Err(message))
            }
        }
    }
}

/// Runs `f`; a panic in it becomes its message.
pub(crate) fn contain<R>(f: impl FnOnce() -> R) -> Result<R, Arc<str>> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let message = message_of(&*payload);
        // The payload is the panicking code's own value: its destructor may panic as well, once more at most.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        message
    })
}

fn message_of(payload: &(dyn Any + Send)) -> Arc<str> {
    if let Some(text) = payload.downcast_ref::<&str>() {
        Arc::from(*text)
    } else if let Some(text) = payload.downcast_ref::<String>() {
        Arc::from(text.as_str())
    } else {
        Arc::from("a panic without a message")
    }
}

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}

/// Counts a panic under the kind of actor and the place it happened in.
pub(crate) fn count_panic(kind: &'static str, place: &'static str, message: &str) {
    // A logger that panics while it logs a panic must not come back here.
    if COUNTING.replace(true) {
        return;
    }
    if let Some(local) = local::current() {
        local.counters.raise("actor_panics", kind, place);
    }
    let _panic_in_logger = contain(|| tracing::error!(kind, place, message, "panic contained"));
    COUNTING.set(false);
}
