//! Takes a [`Sample`] of the gateway each second while somebody watches, and publishes it to all who do.
//!
//! One actor on the System's thread. It asks each arbiter for a walk over its actors that reads cells and takes no lock;
//! everything else is done here, beside the data paths. While nobody watches it only looks whether somebody does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::super::Status;
use super::super::overview;
use super::sample::{Happened, Sample, TAIL, Top, risen};
use crate::actors::{ArbiterGlance, Driver, Fault, Kind, Mail, Mesh, Place, SpawnError, Spec, Totals, clock};
use crate::memory::Snapshot;

/// Time between two samples.
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// How often it looks whether somebody has begun to watch.
const LOOK: Duration = Duration::from_millis(100);
/// Kinds of drops that are told in one second, at most; the table has them all.
const TOLD: usize = 8;

/// Who watches at the same time, at most.
pub(super) const WATCHERS: usize = 8;

struct Sampler;
impl Kind for Sampler {
    const KIND: &'static str = "admin_sampler";
}

/// Where samples are found.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    latest: Snapshot<Option<Arc<Sample>>>,
    watchers: AtomicUsize,
    /// What callers have done, for the list of what happened: written rarely, by the admin actors, on this thread.
    done: Snapshot<Vec<Happened>>,
    happened: AtomicU64,
}

/// One who watches; dropping it ends that.
#[derive(Debug)]
pub(super) struct Seat(Arc<Hub>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Seat {
    pub(super) fn latest(&self) -> Option<Arc<Sample>> {
        self.0.latest.read().clone()
    }
}

impl Hub {
    /// A place to watch from, unless [`WATCHERS`] are taken.
    pub(super) fn sit(self: &Arc<Self>) -> Option<Seat> {
        let taken = self.watchers.fetch_add(1, Ordering::AcqRel);
        let seat = Seat(self.clone());
        (taken < WATCHERS).then_some(seat)
    }

    pub(super) fn publish(&self, sample: Option<Arc<Sample>>) {
        self.latest.publish(sample);
    }

    /// Notes what somebody has done, for all who watch.
    pub(in crate::gateway) fn note(&self, level: &'static str, text: String) {
        let event = self.event(level, text);
        let noted = self.done.update(|before| {
            let mut all = before.clone();
            all.push(event.clone());
            all.drain(..all.len().saturating_sub(TAIL));
            all
        });
        if let Err(overtaken) = noted {
            tracing::warn!(%overtaken, text = event.text, "an event is missing on the dashboard");
        }
    }

    fn event(&self, level: &'static str, text: String) -> Happened {
        let number = self.happened.fetch_add(1, Ordering::Relaxed) + 1;
        let at_ms = u64::try_from(clock::since_1970().as_millis()).unwrap_or(u64::MAX);
        Happened { number, at_ms, level, text }
    }
}

pub(super) fn start(mesh: &Mesh, status: Arc<Status>, hub: Arc<Hub>) -> Result<Mail<Infallible>, SpawnError> {
    let inner = mesh.clone();
    mesh.drive::<Sampler, _>(Place::System, Spec::named("admin_sampler"), move |driver| run(inner, status, hub, driver))
}

async fn run(mesh: Mesh, status: Arc<Status>, hub: Arc<Hub>, _driver: Driver) -> Result<(), Fault> {
    let mut state: Option<State> = None;
    loop {
        if hub.watchers.load(Ordering::Acquire) == 0 {
            if state.take().is_some() {
                hub.publish(None);
            }
            clock::sleep(LOOK).await;
            continue;
        }
        let began = clock::now();
        let (arbiters, totals) = mesh.glance().await;
        let next = State::after(state.take(), began, arbiters, &totals, &status, &hub);
        hub.publish(Some(next.sample.clone()));
        state = Some(next);
        clock::sleep_until(clock::later(began, PERIOD)).await;
    }
}

/// What is kept from one sample to the next.
struct State {
    at: Instant,
    arbiters: Vec<ArbiterGlance>,
    bytes: [u64; 2],
    sample: Arc<Sample>,
}

impl State {
    fn after(
        before: Option<Self>,
        at: Instant,
        arbiters: Vec<ArbiterGlance>,
        totals: &Totals,
        status: &Status,
        hub: &Hub,
    ) -> Self {
        let old = before.as_ref().map(|before| before.sample.clone()).unwrap_or_default();
        let millis = before.as_ref().map_or(1_000, |before| at.saturating_duration_since(before.at).as_millis());
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        let bytes = moved(totals);
        let bits = |n: usize| {
            let was =
                before.as_ref().and_then(|before| before.bytes.get(n)).or_else(|| bytes.get(n)).copied().unwrap_or(0);
            bytes.get(n).map_or(0, |now| now.saturating_sub(was).saturating_mul(8_000) / millis)
        };
        let mut sample = Sample {
            number: old.number + 1,
            top: Top {
                version: env!("CARGO_PKG_VERSION"),
                uptime_s: clock::now().saturating_duration_since(status.started).as_secs(),
                not_ready: status.not_ready(),
                config: status.applied(),
                last_reload: status.last_reload(),
                bits_in: bits(0),
                bits_out: bits(1),
                memory: (status.budget.used(), status.budget.limit()),
                ..Top::default()
            },
            kinds: old.kinds.clone(),
            listeners: overview::listeners(totals, status),
            servers: overview::servers(status),
            drops: overview::drops(totals),
            happened: old.happened.clone(),
            ..Sample::default()
        };
        let earlier = before.as_ref().map(|before| before.arbiters.as_slice()).unwrap_or_default();
        sample.cells_of(&arbiters, earlier, millis);
        if before.is_some() {
            let risen = risen(&sample.drops, &old.drops);
            let more = risen.len().saturating_sub(TOLD);
            sample.happened.extend(risen.into_iter().take(TOLD).map(|text| hub.event("warn", text)));
            if more > 0 {
                sample.happened.push(hub.event("warn", format!("and {more} more kinds of drops")));
            }
        }
        let known = |event: &&Happened| !sample.happened.iter().any(|known| known.number == event.number);
        let new: Vec<_> = hub.done.read().iter().filter(known).cloned().collect();
        sample.happened.extend(new);
        sample.happened.sort_by_key(|event| event.number);
        sample.happened.drain(..sample.happened.len().saturating_sub(TAIL));
        Self { at, arbiters, bytes, sample: Arc::new(sample) }
    }
}

/// Bytes that have come and gone, counted once each: at the outermost protocol.
fn moved(totals: &Totals) -> [u64; 2] {
    const IN: [&str; 4] = ["bytes_in", "quic_bytes_in", "relay_bytes_up", "wireguard_datagram_bytes_in"];
    const OUT: [&str; 4] = ["bytes_out", "quic_bytes_out", "relay_bytes_down", "wireguard_datagram_bytes_out"];
    [IN, OUT].map(|families| families.iter().map(|family| totals.family(family)).sum())
}
