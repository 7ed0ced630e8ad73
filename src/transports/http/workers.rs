//! Futures of requests, used again: what a request needs while it is on its way is some kilobytes, and to ask for them
//! anew each time cost more than to find its route.
//!
//! A worker is one future that answers one request after the other. It is lent to a request and comes back when that is
//! answered; with a request that is given up, it goes. So many idle ones are kept for a listener on each arbiter.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;

use super::actor::Client;
use super::body::ToClient;
use super::exchange;
use super::record::Record;
use super::site::Settings;
use crate::actors::shelf;

/// Idle workers that are kept; some hundred kilobytes.
const IDLE: usize = 64;

/// The idle workers of a listener on one arbiter.
#[derive(Default)]
pub(super) struct Workers {
    idle: RefCell<Vec<Worker>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("idle", &self.idle.borrow().len()).finish()
    }
}

impl Workers {
    /// This arbiter's.
    pub(super) fn of(settings: &Arc<Settings>) -> Rc<Self> {
        shelf(settings, Self::default)
    }

    /// Begins to answer a request.
    pub(super) fn begin(
        self: &Rc<Self>,
        client: Rc<Client>,
        request: Request<Incoming>,
        record: Rc<Record>,
    ) -> Running {
        let worker = self.idle.borrow_mut().pop().unwrap_or_else(Worker::new);
        worker.seat.order.set(Some((client, request, record)));
        Running { worker: Some(worker), workers: self.clone() }
    }
}

type Order = (Rc<Client>, Request<Incoming>, Rc<Record>);

/// Where a worker finds what to do, and leaves what came of it.
#[derive(Default)]
struct Seat {
    order: Cell<Option<Order>>,
    answer: Cell<Option<Response<ToClient>>>,
}

struct Worker {
    seat: Rc<Seat>,
    future: Pin<Box<dyn Future<Output = Infallible>>>,
}

impl Worker {
    fn new() -> Self {
        let seat = Rc::new(Seat::default());
        Self { future: Box::pin(work(seat.clone())), seat }
    }
}

async fn work(seat: Rc<Seat>) -> Infallible {
    loop {
        let (client, request, record) = poll_fn(|_| seat.order.take().map_or(Poll::Pending, Poll::Ready)).await;
        let answer = exchange::whole(&client, request, &record).await;
        seat.answer.set(Some(answer));
    }
}

/// A request that is being answered.
pub(super) struct Running {
    /// Until the answer is there.
    worker: Option<Worker>,
    workers: Rc<Workers>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Future for Running {
    type Output = Result<Response<ToClient>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(worker) = &mut self.worker else { return Poll::Pending };
        if let Poll::Ready(never) = worker.future.as_mut().poll(cx) {
            match never {}
        }
        let Some(answer) = worker.seat.answer.take() else { return Poll::Pending };
        let worker = self.worker.take();
        let mut idle = self.workers.idle.borrow_mut();
        if idle.len() < IDLE {
            idle.extend(worker);
        }
        Poll::Ready(Ok(answer))
    }
}
