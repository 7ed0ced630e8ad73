//! What the metrics page says of buffer pools and locks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::actors::MeshView;
use crate::memory::{Contention, PoolStats};

/// The pools of all arbiters.
#[derive(Debug)]
pub(super) struct Pools(Vec<(Arc<str>, PoolStats)>);

impl Pools {
    pub(super) fn of(view: &MeshView) -> Self {
        let named = |arbiter: &Arc<str>, pools: &[PoolStats]| -> Vec<_> {
            pools.iter().map(|stats| (arbiter.clone(), *stats)).collect()
        };
        Self(view.arbiters.iter().flat_map(|arbiter| named(&arbiter.name, &arbiter.pools)).collect())
    }
}

/// How many circles of waiting threads were found.
#[cfg(feature = "deadlock")]
#[derive(Debug)]
pub(super) struct Deadlocks;

#[cfg(feature = "deadlock")]
impl Collector for Deadlocks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Circles of threads that wait for each other";
        let mut metric = encoder.encode_descriptor("deadlocks", help, None, MetricType::Counter)?;
        let none: [(&str, &str); 0] = [];
        ConstCounter::new(crate::gateway::deadlocks::found()).encode(metric.encode_family(&none)?)
    }
}

/// How often a reload found another one going on.
#[derive(Debug)]
pub(super) struct Locks(pub(super) Contention);

impl Collector for Locks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Contention { refused, waited, timed_out } = self.0;
        for (name, help, value) in [
            ("lock_refused", "Times a lock was not free and nobody waited", refused),
            ("lock_waited", "Times somebody had to wait for a lock", waited),
            ("lock_timed_out", "Waits for a lock that were for nothing", timed_out),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric.encode_family(&[("lock", "reload")])?)?;
        }
        Ok(())
    }
}

type Read = fn(&PoolStats) -> u64;

const GAUGES: &[(&str, &str, Read)] = &[
    ("pool_buffers", "Buffers that a pool has, in use or not", |pool| pool.made),
    ("pool_buffers_limit", "Buffers that a pool may have", |pool| pool.limit as u64),
    ("pool_buffers_out", "Buffers of a pool in use", |pool| pool.out),
    ("pool_buffers_high", "The most buffers of a pool that ever were in use at once", |pool| pool.high),
];

const COUNTERS: &[(&str, &str, Read)] = &[
    ("pool_exhausted", "Times a pool had no buffer to give", |pool| pool.exhausted),
    ("pool_came_home", "Buffers that came back to a pool from another thread", |pool| pool.came_home),
    ("pool_resized", "Buffers that came back to a pool with another size", |pool| pool.resized),
];

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let labels =
            |arbiter: &Arc<str>, pool: &PoolStats| [("arbiter", arbiter.to_string()), ("bytes", pool.size.to_string())];
        for (name, help, read) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (arbiter, pool) in &self.0 {
                ConstGauge::new(read(pool) as f64).encode(metric.encode_family(&labels(arbiter, pool))?)?;
            }
        }
        for (name, help, read) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (arbiter, pool) in &self.0 {
                ConstCounter::new(read(pool)).encode(metric.encode_family(&labels(arbiter, pool))?)?;
            }
        }
        Ok(())
    }
}
