//! Where the futures live that belong to a connection: the streams of HTTP/2, a tunnel. They are part of its actor, are
//! polled in its turns and end with it.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};
use hyper::rt::Executor;

type Child = Pin<Box<dyn Future<Output = ()>>>;

/// See the top of the file. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Nursery {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Those that came while others were polled.
    born: RefCell<Vec<Child>>,
    set: RefCell<FuturesUnordered<Child>>,
}

impl Nursery {
    /// Polls what was woken. True if one of them ended or began, so that their connection may have more to do.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            let born = self.inner.born.take();
            let Ok(mut set) = self.inner.set.try_borrow_mut() else { return moved };
            moved |= !born.is_empty();
            set.extend(born);
            if set.is_empty() {
                return moved;
            }
            match Pin::new(&mut *set).poll_next(cx) {
                Poll::Ready(Some(())) => moved = true,
                Poll::Ready(None) | Poll::Pending if self.inner.born.borrow().is_empty() => return moved,
                Poll::Ready(None) | Poll::Pending => {}
            }
        }
    }
}

/// Ends all futures of a nursery when it is dropped. They hold their nursery, so that without it a connection that is
/// given up would leave them, and what they hold at servers, for ever.
pub(super) struct Brood(pub(super) Nursery);

impl Drop for Brood {
    fn drop(&mut self) {
        // What ends may look at the nursery: it is empty by then.
        let born = self.0.inner.born.take();
        let set = self.0.inner.set.try_borrow_mut().map(|mut set| std::mem::take(&mut *set));
        drop((born, set));
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Nursery {
    fn execute(&self, child: F) {
        self.inner.born.borrow_mut().push(Box::pin(child));
    }
}

impl fmt::Debug for Nursery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nursery").finish_non_exhaustive()
    }
}
