//! Finds threads that wait for each other in a circle, in all of the process (feature `deadlock`).
//!
//! It sees every lock of parking_lot, those inside of libraries too, and waits that have no end. A wait with a time
//! limit, and so every wait of a [`Shared`](super::Shared), is not reported: it ends by itself. What is looked for costs
//! each lock some bookkeeping, hence a feature.

use std::fmt;
use std::io;
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One thread of a circle.
///
/// ```
/// use std::time::Duration;
/// use portway::memory::{DeadlockWatch, Waiting};
///
/// fn report(circle: &[Waiting]) {
///     for thread in circle {
///         eprintln!("{:?} waits here:\n{}", thread.thread, thread.stack);
///     }
/// }
/// let watch = DeadlockWatch::start(Duration::from_secs(1), report)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Which thread.
    pub thread: ThreadId,
    /// Where it waits: a backtrace, as text.
    pub stack: String,
}

/// Looks for circles until dropped.
///
/// ```
/// use std::time::Duration;
/// use portway::memory::DeadlockWatch;
///
/// let watch = DeadlockWatch::start(Duration::from_secs(1), |circle| eprintln!("{} threads", circle.len()))?;
/// drop(watch);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct DeadlockWatch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DeadlockWatch {
    /// Looks every so often, on a thread of its own, and reports each circle once. One watch at a time: what one has
    /// seen, another does not see.
    ///
    /// # Errors
    /// The system gives no thread.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use portway::memory::DeadlockWatch;
    /// let mut circles = 0;
    /// let watch = DeadlockWatch::start(Duration::from_secs(1), move |_| circles += 1)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn start(every: Duration, mut report: impl FnMut(&[Waiting]) + Send + 'static) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::Builder::new().name("deadlocks".to_owned()).spawn(move || {
            while !seen.load(Ordering::Acquire) {
                for circle in parking_lot::deadlock::check_deadlock() {
                    let circle: Vec<Waiting> = circle
                        .iter()
                        .map(|thread| Waiting {
                            thread: thread.thread_id(),
                            stack: format!("{:?}", thread.backtrace()),
                        })
                        .collect();
                    report(&circle);
                }
                std::thread::park_timeout(every);
            }
        })?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for DeadlockWatch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _reported = thread.join();
        }
    }
}

impl fmt::Debug for DeadlockWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlockWatch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_circle_of_threads_is_reported_once() {
        let (tell, told) = mpsc::channel();
        let watch = DeadlockWatch::start(Duration::from_millis(5), move |circle| {
            tell.send(circle.to_vec()).unwrap();
        })
        .unwrap();
        let locks = Arc::new((Mutex::new(()), Mutex::new(()), Barrier::new(2)));
        // They wait for each other until the end of the process.
        let waiting: Vec<ThreadId> = [false, true]
            .map(|turned| {
                let locks = locks.clone();
                let thread = std::thread::spawn(move || {
                    let (first, second) = if turned { (&locks.1, &locks.0) } else { (&locks.0, &locks.1) };
                    let _first = first.lock();
                    locks.2.wait();
                    let _never = second.lock();
                });
                thread.thread().id()
            })
            .to_vec();
        let circle = told.recv_timeout(Duration::from_secs(20)).expect("it is found");
        let mut found: Vec<ThreadId> = circle.iter().map(|waiting| waiting.thread).collect();
        found.sort_by_key(|id| waiting.iter().position(|waiting| waiting == id));
        assert_eq!(found, waiting);
        assert!(circle.iter().all(|waiting| !waiting.stack.is_empty()));
        drop(watch);
        assert_eq!(told.try_recv().err(), Some(mpsc::TryRecvError::Disconnected), "reported once");
    }
}
