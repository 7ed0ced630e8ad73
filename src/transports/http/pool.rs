//! The connections of one arbiter to the servers of one upstream.
//!
//! Each is an actor of its own, pinned to the arbiter of the clients it serves. Between requests it waits in the pool:
//! HTTP/1.1 connections for one request each, HTTP/2 connections for many at once. At most so many are kept per server;
//! one more is closed. A server that closes a kept connection costs the next request another try.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::body::ToServer;
use super::dial::dial;
use super::nursery::{Brood, Nursery};
use super::site::{Upstream, Version};
use super::state_exchange::{Failure, RetryBudget};
use crate::actors::clock::later;
use crate::actors::{Driver, Fault, Kind, Spec, shelf};
use crate::transports::kit::balance::{Address, ServerId};

/// Requests on one connection of HTTP/2 at the same time; beyond them another connection is made.
const STREAMS: usize = 100;

/// The actor of a connection to a server.
struct Connection;
impl Kind for Connection {
    const KIND: &'static str = "http_upstream";
}

/// The connections of one arbiter to one upstream.
pub(super) struct Pool {
    kept: RefCell<BTreeMap<ServerId, Vec<Lent>>>,
    /// Connections that are being made.
    dialing: RefCell<BTreeMap<u64, Dialing>>,
    /// Whether a server spoke HTTP/2 when it was last reached. Who wants one that did, or that nobody has reached yet,
    /// waits for a connection that somebody else makes.
    shared: RefCell<BTreeMap<ServerId, bool>>,
    next: Cell<u64>,
    pub(super) budget: RefCell<RetryBudget>,
    /// Requests that wait for a server to have room.
    pub(super) waiting: Cell<usize>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// A connection that is being made, and who waits for it.
struct Dialing {
    server: ServerId,
    waiting: Vec<oneshot::Sender<Told>>,
}

/// What those who wait are told.
enum Told {
    Made(Lent),
    Failed(Failure),
    /// It is for one request alone, and somebody else has it.
    Taken,
}

/// What a connection and those who use it know of each other.
struct Life {
    busy: Cell<usize>,
    used: Cell<Option<Instant>>,
}

/// A connection, for one request. Dropped before its answer has ended, an HTTP/1.1 connection is closed.
pub(super) struct Lent {
    sender: Sender,
    server: ServerId,
    life: Rc<Life>,
    /// It has carried a request before.
    used: bool,
}

enum Sender {
    One(http1::SendRequest<ToServer>),
    Many(http2::SendRequest<ToServer>),
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Many(sender) => sender.is_closed(),
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_ready(),
            Self::Many(sender) => sender.is_ready(),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.life.busy.set(self.life.busy.get().saturating_sub(1));
    }
}

/// Why a request got no answer, with the request if nothing of it was sent.
pub(super) type Unsent = (hyper::Error, Option<Request<ToServer>>);

impl Lent {
    fn new(sender: Sender, server: ServerId, life: Rc<Life>) -> Self {
        life.busy.set(life.busy.get() + 1);
        Self { sender, server, life, used: false }
    }

    /// Whether one more request fits on the connection.
    fn has_room(&self) -> bool {
        match self.sender {
            Sender::One(_) => true,
            Sender::Many(_) => self.life.busy.get() < STREAMS,
        }
    }

    /// Whether it has carried a request before.
    pub(super) const fn is_used(&self) -> bool {
        self.used
    }

    /// Whether HTTP/2 is spoken.
    pub(super) const fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Many(_))
    }

    pub(super) async fn send(&mut self, request: Request<ToServer>) -> Result<Response<Incoming>, Unsent> {
        let unsent = |mut error: hyper::client::conn::TrySendError<Request<ToServer>>| {
            let request = error.take_message();
            (error.into_error(), request)
        };
        match &mut self.sender {
            Sender::One(sender) => sender.try_send_request(request).await.map_err(unsent),
            Sender::Many(sender) => sender.try_send_request(request).await.map_err(unsent),
        }
    }
}

impl Pool {
    /// This arbiter's.
    pub(super) fn of(upstream: &Arc<Upstream>) -> Rc<Self> {
        shelf(upstream, || Self {
            kept: RefCell::default(),
            dialing: RefCell::default(),
            shared: RefCell::default(),
            next: Cell::new(0),
            budget: RefCell::default(),
            waiting: Cell::new(0),
        })
    }

    /// A connection to this server: one that was kept if that will do, else a new one.
    pub(super) async fn lend(
        &self,
        upstream: &Arc<Upstream>,
        (server, address): (ServerId, &Address),
        driver: &Driver,
        kept: bool,
    ) -> Result<Lent, Failure> {
        loop {
            if kept && let Some(kept) = self.kept(server) {
                return Ok(kept);
            }
            let (tell, told) = oneshot::channel();
            if let Some(tell) = self.joined(upstream, server, tell) {
                self.dial(upstream, server, address, driver, tell)?;
            }
            match told.await {
                Ok(Told::Made(lent)) => return Ok(lent),
                Ok(Told::Failed(failure)) => return Err(failure),
                Ok(Told::Taken) => {}
                Err(_) => return Err(Failure::NotConnected),
            }
        }
    }

    /// Waits for a connection that is being made, if it will take more than one request; else gives `tell` back.
    fn joined(
        &self,
        upstream: &Upstream,
        server: ServerId,
        tell: oneshot::Sender<Told>,
    ) -> Option<oneshot::Sender<Told>> {
        let many = match upstream.version {
            Version::One => false,
            Version::Two => true,
            Version::Agreed => self.shared.borrow().get(&server).copied().unwrap_or(true),
        };
        let mut dialing = self.dialing.borrow_mut();
        let other = dialing.values_mut().find(|other| many && other.server == server && other.waiting.len() < STREAMS);
        match other {
            Some(other) => {
                other.waiting.push(tell);
                None
            }
            None => Some(tell),
        }
    }

    fn dial(
        &self,
        upstream: &Arc<Upstream>,
        server: ServerId,
        address: &Address,
        driver: &Driver,
        tell: oneshot::Sender<Told>,
    ) -> Result<(), Failure> {
        let (mesh, place) = driver.here().ok_or(Failure::NotConnected)?;
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        self.dialing.borrow_mut().insert(number, Dialing { server, waiting: vec![tell] });
        let (upstream, address) = (upstream.clone(), address.clone());
        let made = mesh.drive::<Connection, _>(place, Spec::named(upstream.name.clone()), move |driver| {
            connection(driver, upstream, server, address, number)
        });
        if made.is_err() {
            self.dialing.borrow_mut().remove(&number);
            return Err(Failure::NoServer);
        }
        Ok(())
    }

    fn kept(&self, server: ServerId) -> Option<Lent> {
        let mut kept = self.kept.borrow_mut();
        let list = kept.get_mut(&server)?;
        // The one used last: the others may then end for want of use. Those that have ended go as they are met.
        let mut at = list.len();
        loop {
            at = at.checked_sub(1)?;
            let lent = list.get(at)?;
            if lent.sender.is_closed() {
                drop(list.remove(at));
            } else if lent.sender.is_ready() && lent.has_room() {
                break;
            }
        }
        let shared = match list.get(at).map(|lent| (&lent.sender, &lent.life)) {
            Some((Sender::Many(sender), life)) => Some(Lent::new(Sender::Many(sender.clone()), server, life.clone())),
            Some((Sender::One(_), _)) | None => None,
        };
        let mut lent = shared.unwrap_or_else(|| {
            let lent = list.remove(at);
            lent.life.busy.set(lent.life.busy.get() + 1);
            lent
        });
        lent.used = true;
        Some(lent)
    }

    /// Takes a connection back whose answer has ended.
    pub(super) fn keep(&self, lent: Lent, now: Instant, most: usize) {
        lent.life.used.set(Some(now));
        // HTTP/2 connections never left.
        if matches!(lent.sender, Sender::Many(_)) || lent.sender.is_closed() {
            return;
        }
        let mut kept = self.kept.borrow_mut();
        let list = kept.entry(lent.server).or_default();
        if list.len() < most {
            // Kept ones are not busy; the count goes up again when it is lent.
            lent.life.busy.set(lent.life.busy.get().saturating_sub(1));
            list.push(lent);
        }
    }

    /// Tells those who wait. The first of them gets the connection; the others share it, or look again.
    fn made(&self, number: u64, mut result: Result<Lent, Failure>) {
        let Some(Dialing { server, waiting }) = self.dialing.borrow_mut().remove(&number) else { return };
        if let Ok(lent) = &result {
            self.shared.borrow_mut().insert(server, lent.is_http2());
        }
        let mut waiting = waiting.into_iter();
        for tell in waiting.by_ref() {
            let (now, left) = match result {
                Err(failure) => (Told::Failed(failure), Err(failure)),
                Ok(lent) => match &lent.sender {
                    Sender::Many(sender) => {
                        let another = Lent::new(Sender::Many(sender.clone()), server, lent.life.clone());
                        (Told::Made(another), Ok(lent))
                    }
                    Sender::One(_) => (Told::Made(lent), Err(Failure::NotConnected)),
                },
            };
            let taken = matches!(now, Told::Made(_)) && left.is_err();
            // Whoever asked may be gone; then the connection ends for want of use.
            drop(tell.send(now));
            result = left;
            if taken {
                break;
            }
        }
        waiting.for_each(|tell| drop(tell.send(Told::Taken)));
    }

    fn forget(&self, server: ServerId, life: &Rc<Life>) {
        let gone: Vec<Lent> = {
            let mut kept = self.kept.borrow_mut();
            let Some(list) = kept.get_mut(&server) else { return };
            let gone = list.extract_if(.., |lent| Rc::ptr_eq(&lent.life, life)).collect();
            if list.is_empty() {
                kept.remove(&server);
            }
            gone
        };
        drop(gone);
    }
}

/// Waits for `future` until `at`, by the alarm of the actor.
pub(super) async fn by<F: Future>(driver: &Driver, at: Instant, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(out) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(out));
        }
        driver.alarm(Some(at));
        if driver.now() >= at { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

async fn connection(
    driver: Driver,
    upstream: Arc<Upstream>,
    server: ServerId,
    address: Address,
    number: u64,
) -> Result<(), Fault> {
    let pool = Pool::of(&upstream);
    let at = later(driver.now(), upstream.connect_timeout);
    let dialled = match by(&driver, at, dial(&upstream, upstream.version, &address)).await {
        Some(Ok(dialled)) => dialled,
        Some(Err(not)) => {
            tracing::debug!(upstream = %upstream.name, server = %address, error = not.why, "not connected");
            pool.made(number, Err(not.failure));
            return Err(Fault::peer(not.failure.reason(), not.why));
        }
        None => {
            pool.made(number, Err(Failure::NotConnected));
            return Err(Fault::peer("connect_timeout", ""));
        }
    };
    let stream = dialled.stream;
    let life = Rc::new(Life { busy: Cell::new(0), used: Cell::new(Some(driver.now())) });
    let result = if dialled.http2 {
        let nursery = Nursery::default();
        let _brood = Brood(nursery.clone());
        let shaken = http2::Builder::new(nursery.clone()).handshake(TokioIo::new(stream)).await;
        let (sender, mut conn) = match shaken {
            Ok(shaken) => shaken,
            Err(error) => {
                pool.made(number, Err(Failure::NotConnected));
                return Err(Fault::peer("handshake", error.to_string()));
            }
        };
        let kept = Lent::new(Sender::Many(sender.clone()), server, life.clone());
        // The one in the pool is not a request.
        life.busy.set(0);
        pool.kept.borrow_mut().entry(server).or_default().push(kept);
        pool.made(number, Ok(Lent::new(Sender::Many(sender), server, life.clone())));
        drive(&driver, &upstream, &life, |cx| {
            let done = Pin::new(&mut conn).poll(cx);
            if nursery.poll(cx) && done.is_pending() { Pin::new(&mut conn).poll(cx) } else { done }
        })
        .await
    } else {
        let shaken = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, mut conn) = match shaken {
            Ok(shaken) => shaken,
            Err(error) => {
                pool.made(number, Err(Failure::NotConnected));
                return Err(Fault::peer("handshake", error.to_string()));
            }
        };
        pool.made(number, Ok(Lent::new(Sender::One(sender), server, life.clone())));
        drive(&driver, &upstream, &life, |cx| Pin::new(&mut conn).poll(cx)).await
    };
    pool.forget(server, &life);
    result
}

/// Runs a connection until it ends, was not used for too long, or is to end while nobody uses it.
async fn drive(
    driver: &Driver,
    upstream: &Upstream,
    life: &Life,
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<hyper::Result<()>>,
) -> Result<(), Fault> {
    poll_fn(|cx| {
        if let Poll::Ready(result) = poll(cx) {
            return Poll::Ready(result.map_err(|error| Fault::peer("broken", error.to_string())));
        }
        let now = driver.now();
        if life.busy.get() > 0 {
            driver.alarm(Some(later(now, upstream.idle)));
            return Poll::Pending;
        }
        let until = later(life.used.get().unwrap_or(now), upstream.idle);
        if driver.draining().is_some() || now >= until {
            return Poll::Ready(Ok(()));
        }
        driver.alarm(Some(until));
        Poll::Pending
    })
    .await
}
