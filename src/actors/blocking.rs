//! Work that keeps its thread, done beside the arbiter: a read from a disk, a password's hash.
//!
//! It runs on a thread of the arbiter's runtime that nothing else needs, and its answer is awaited like any other. At
//! most [`BLOCKING`] pieces run for one arbiter at once; one more is refused, so that what is slow cannot pile up. A
//! piece that has begun is not stopped: who waited may be gone when it ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pieces of work that run beside one arbiter at the same time.
pub const BLOCKING: usize = 16;

thread_local! {
    static RUNNING: Arc<AtomicUsize> = Arc::default();
}

/// Why work was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotDone {
    /// As much runs as may.
    Full,
    /// It panicked, or the runtime ends.
    Lost,
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "as much blocking work runs as may",
            Self::Lost => "the blocking work was lost",
        })
    }
}

impl std::error::Error for NotDone {}

/// One of those that run, until it has ended.
struct Runs(Arc<AtomicUsize>);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does `work` beside the arbiter this is called on. It keeps its place until it has ended, whoever still waits.
///
/// # Errors
/// See [`NotDone`].
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NotDone> {
    let running = RUNNING.with(Arc::clone);
    if running.fetch_add(1, Ordering::Relaxed) >= BLOCKING {
        running.fetch_sub(1, Ordering::Relaxed);
        return Err(NotDone::Full);
    }
    let runs = Runs(running);
    let done = tokio::task::spawn_blocking(move || {
        let _runs = runs;
        work()
    });
    done.await.map_err(|_| NotDone::Lost)
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[test]
    fn work_is_done_elsewhere_and_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let here = std::thread::current().id();
            assert_ne!(blocking(|| std::thread::current().id()).await.unwrap(), here);
            let (hold, held) = std::sync::mpsc::channel::<()>();
            let held = Arc::new(parking_lot::Mutex::new(held));
            let all = (0..BLOCKING + 1).map(|_| {
                let held = held.clone();
                blocking(move || assert!(held.lock().recv().is_err()))
            });
            let mut all: Vec<_> = all.map(Box::pin).collect();
            let last = all.pop().unwrap();
            for work in &mut all {
                assert!(std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_pending())).await);
            }
            assert_eq!(last.await, Err(NotDone::Full));
            drop(hold);
            for work in all {
                work.await.unwrap();
            }
            assert_eq!(blocking(|| 7).await, Ok(7));
            assert_eq!(blocking(|| panic!("told to")).await, Err::<(), _>(NotDone::Lost));
        });
    }
}
