//! Actors that are one future: a library's connection, a handshake, an accept loop written with `await`.
//!
//! The future need not be `Send`. It gets the same containment, gauges, control and drain as any actor.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::clock;
use super::mailbox::Mail;
use super::mesh::{Mesh, Place, SpawnError, Spec};
use super::metrics::Counter;
use super::protocol::{Fault, Progress, Protocol, Traffic, Turn};

/// What a driven future can see of its host.
#[derive(Clone, Default)]
pub struct Driver {
    inner: Rc<Asked>,
}

#[derive(Default)]
struct Asked {
    quiet: Cell<bool>,
    by: Cell<Option<Instant>>,
    waiting: RefCell<Vec<Waker>>,
    now: Cell<Option<Instant>>,
    alarm: Cell<Option<Instant>>,
    held: Cell<usize>,
    traffic: Cell<Traffic>,
}

impl Driver {
    /// By when the future is to be done, once it was asked to.
    #[must_use]
    pub fn draining(&self) -> Option<Instant> {
        self.inner.by.get()
    }

    /// Waits until the actor is asked to take no new work (the first step of a drain).
    pub async fn quiesced(&self) {
        self.until(|asked| asked.quiet.get() || asked.by.get().is_some()).await;
    }

    /// Waits until the actor is asked to finish. A future that goes on beyond [`draining`](Self::draining) is dropped.
    pub async fn drained(&self) {
        self.until(|asked| asked.by.get().is_some()).await;
    }

    /// The time at which this turn began; read once per turn.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.inner.now.get().unwrap_or_else(clock::now)
    }

    /// Has the future polled at `at`, or not. One alarm for an actor; far ones cost the event loop nothing, where a
    /// [`clock::Sleep`] would.
    pub fn alarm(&self, at: Option<Instant>) {
        self.inner.alarm.set(at);
    }

    /// Says how many bytes the future holds in buffers of its own, for the memory budget.
    pub fn holds(&self, bytes: usize) {
        self.inner.held.set(bytes);
    }

    /// Says with whom the future speaks.
    pub fn speaks_to(&self, peer: SocketAddr) {
        self.inner.traffic.set(Traffic { peer: Some(peer), ..self.inner.traffic.get() });
    }

    /// Adds bytes that came from its peer, and such that went there.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64) {
        let so_far = self.inner.traffic.get();
        self.inner.traffic.set(Traffic {
            bytes_in: so_far.bytes_in.wrapping_add(bytes_in),
            bytes_out: so_far.bytes_out.wrapping_add(bytes_out),
            ..so_far
        });
    }

    /// The mesh and the arbiter the future lives on, to start actors beside it.
    #[must_use]
    pub fn here(&self) -> Option<(Mesh, Place)> {
        super::local::current().map(|local| (local.mesh.clone(), Place::On(local.index)))
    }

    /// A counter of this arbiter, to be kept. Looking it up costs a map access.
    #[must_use]
    pub fn counter(&self, family: &'static str, scope: &Arc<str>, reason: &'static str) -> Counter {
        super::local::current().map(|local| local.counters.counter(family, scope, reason)).unwrap_or_default()
    }

    /// Adds one to a counter of the arbiter the future runs on. Costs a map access.
    pub fn raise(&self, family: &'static str, scope: &str, reason: &'static str) {
        if let Some(local) = super::local::current() {
            local.counters.raise(family, scope, reason);
        }
    }

    /// For a host that is not this library's [`Mesh::drive`]: a turn begins at this time.
    #[cfg(all(feature = "http", feature = "quic"))]
    pub(crate) fn turn(&self, now: Instant) {
        self.inner.now.set(Some(now));
    }

    /// The same: it is to be done by then.
    #[cfg(all(feature = "http", feature = "quic"))]
    pub(crate) fn drain(&self, by: Instant) {
        self.inner.by.set(Some(by));
        self.inner.waiting.take().into_iter().for_each(Waker::wake);
    }

    async fn until(&self, what: impl Fn(&Asked) -> bool) {
        std::future::poll_fn(|cx| {
            if what(&self.inner) {
                return Poll::Ready(());
            }
            let mut waiting = self.inner.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("draining", &self.draining()).finish_non_exhaustive()
    }
}

/// The protocol of an actor that is one future.
struct Driven<F, K> {
    future: Pin<Box<F>>,
    driver: Driver,
    _kind: std::marker::PhantomData<K>,
}

/// Names the kind of a driven actor.
pub trait Kind: 'static {
    /// As [`Protocol::KIND`].
    const KIND: &'static str;
}

impl<F: Future<Output = Result<(), Fault>> + 'static, K: Kind> Protocol for Driven<F, K> {
    type Msg = Infallible;
    const KIND: &'static str = K::KIND;

    fn on(&mut self, m: Infallible, _: &mut Turn<'_, Infallible>) -> Result<(), Fault> {
        match m {}
    }

    fn deadline(&self) -> Option<Instant> {
        self.driver.inner.alarm.get()
    }

    fn on_deadline(&mut self, _: &mut Turn<'_, Infallible>) -> Result<(), Fault> {
        self.driver.inner.alarm.set(None);
        Ok(())
    }

    fn held(&self) -> usize {
        self.driver.inner.held.get()
    }

    fn traffic(&self) -> Traffic {
        self.driver.inner.traffic.get()
    }

    fn io(&mut self, turn: &mut Turn<'_, Infallible>) -> Result<Progress, Fault> {
        self.driver.inner.now.set(Some(turn.now()));
        match self.future.as_mut().poll(&mut turn.cx()) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => turn.stop(),
            Poll::Ready(Err(fault)) => return Err(fault),
        }
        Ok(Progress::Idle)
    }

    fn quiesce(&mut self, _: &mut Turn<'_, Infallible>) {
        self.driver.inner.quiet.set(true);
        self.wake();
    }

    fn drain(&mut self, by: Instant, _: &mut Turn<'_, Infallible>) {
        self.driver.inner.by.set(Some(by));
        self.wake();
    }
}

impl<F, K> Driven<F, K> {
    /// `io` follows in the same turn, but a future that waits in a set of its own needs its own waker called.
    fn wake(&self) {
        self.driver.inner.waiting.take().into_iter().for_each(Waker::wake);
    }
}

impl Mesh {
    /// Starts an actor that is one future. `make` runs on its arbiter; the future stays there.
    ///
    /// A drain asks the future to finish (see [`Driver`]); one that never looks is dropped at the deadline.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn drive<K, F>(
        &self,
        place: Place,
        spec: Spec,
        make: impl FnOnce(Driver) -> F + Send + 'static,
    ) -> Result<Mail<Infallible>, SpawnError>
    where
        K: Kind,
        F: Future<Output = Result<(), Fault>> + 'static,
    {
        self.spawn(place, spec, move || driven::<K, F>(make))
    }
}

impl<M: Send + 'static> Turn<'_, M> {
    /// [`Mesh::drive`], as a child of this actor.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn drive<K, F>(
        &self,
        place: Place,
        spec: Spec,
        make: impl FnOnce(Driver) -> F + Send + 'static,
    ) -> Result<Mail<Infallible>, SpawnError>
    where
        K: Kind,
        F: Future<Output = Result<(), Fault>> + 'static,
    {
        self.spawn(place, spec, move || driven::<K, F>(make))
    }
}

fn driven<K, F>(make: impl FnOnce(Driver) -> F) -> Driven<F, K> {
    let driver = Driver::default();
    Driven { future: Box::pin(make(driver.clone())), driver, _kind: std::marker::PhantomData }
}
