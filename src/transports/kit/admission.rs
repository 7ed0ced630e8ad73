//! Who may come in: caps per listener, per source address and on those who have not yet said anything.
//!
//! One acceptor decides for its listener, or one on each arbiter, and then all by one count; a `Ticket` travels with each connection to whatever arbiter it lives on and
//! gives its place back when it is dropped, however the connection ends. Refusing new work beats degrading what was
//! accepted, so a refusal is final and counted under its reason.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::memory::{Budget, Lease};

/// What one listener allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one source: an IPv4 address, or an IPv6 network of 64 bits, since that is what one
    /// host is given.
    pub per_source: usize,
    /// Connections at once that have not yet completed their first message or handshake.
    pub half_open: usize,
    /// Bytes of the memory budget that each connection takes up before it buffers anything.
    pub base_bytes: usize,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// As many connections as the listener allows.
    Connections,
    /// As many connections from this source as the listener allows.
    Source,
    /// As many half-open connections as the listener allows.
    HalfOpen,
    /// The memory budget is at 80 % or above.
    Memory,
    /// Every arbiter is late.
    Overload,
    /// The gateway is draining, or has as many actors as it may.
    Closing,
}

impl Refusal {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "limit_connections",
            Self::Source => "limit_per_source",
            Self::HalfOpen => "limit_half_open",
            Self::Memory => "memory",
            Self::Overload => "overload",
            Self::Closing => "closing",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// How many are in, and from where: readable from anywhere, and handed on from a doorkeeper to its successor.
#[derive(Debug, Default)]
pub struct Occupancy {
    connections: AtomicUsize,
    half_open: AtomicUsize,
    /// Held while one is let in, so that doorkeepers who share this keep the caps exactly. A listener with one
    /// doorkeeper never waits for it.
    sources: Mutex<Sources>,
}

#[derive(Debug, Default)]
struct Sources {
    counts: HashMap<IpAddr, Arc<AtomicUsize>>,
    sweep_at: usize,
}

impl Sources {
    fn of(&mut self, from: IpAddr) -> &Arc<AtomicUsize> {
        self.sweep();
        self.counts.entry(from).or_default()
    }

    /// Forgets sources that have nobody in. The table never grows beyond twice the sources that have somebody in,
    /// plus 1,024.
    fn sweep(&mut self) {
        if self.counts.len() >= self.sweep_at.max(1_024) {
            self.counts.retain(|_, count| count.load(Ordering::Relaxed) > 0);
            self.sweep_at = self.counts.len() * 2;
        }
    }
}

impl Occupancy {
    /// Connections now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Half-open connections now.
    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }
}

/// The doorkeeper of one listener.
#[derive(Debug)]
pub struct Admission {
    caps: Caps,
    budget: Budget,
    occupancy: Arc<Occupancy>,
}

impl Admission {
    /// A doorkeeper of those who are in already by `occupancy`, each counted against its source.
    #[must_use]
    pub const fn new(caps: Caps, budget: Budget, occupancy: Arc<Occupancy>) -> Self {
        Self { caps, budget, occupancy }
    }

    /// Lets one in, or says why not.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing has changed then.
    pub fn admit(&mut self, from: IpAddr) -> Result<Ticket, Refusal> {
        let mut sources = self.occupancy.sources.lock();
        if self.occupancy.connections() >= self.caps.connections {
            return Err(Refusal::Connections);
        }
        if self.occupancy.half_open() >= self.caps.half_open {
            return Err(Refusal::HalfOpen);
        }
        let source = sources.of(source_of(from));
        if source.load(Ordering::Relaxed) >= self.caps.per_source {
            return Err(Refusal::Source);
        }
        let lease = self.budget.lease(self.caps.base_bytes).map_err(|_| Refusal::Memory)?;
        source.fetch_add(1, Ordering::Relaxed);
        let source = source.clone();
        self.occupancy.connections.fetch_add(1, Ordering::Relaxed);
        self.occupancy.half_open.fetch_add(1, Ordering::Relaxed);
        drop(sources);
        Ok(Ticket { occupancy: self.occupancy.clone(), source, lease, half_open: true })
    }
}

fn source_of(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64))),
    }
}

/// A connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct Ticket {
    occupancy: Arc<Occupancy>,
    source: Arc<AtomicUsize>,
    lease: Lease,
    half_open: bool,
}

impl Ticket {
    /// The connection has completed its first message or handshake.
    pub fn complete(&mut self) {
        if std::mem::replace(&mut self.half_open, false) {
            self.occupancy.half_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What the connection leases of the memory budget.
    pub const fn lease(&mut self) -> &mut Lease {
        &mut self.lease
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.complete();
        self.source.fetch_sub(1, Ordering::Relaxed);
        self.occupancy.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(connections: usize, per_source: usize, half_open: usize) -> (Admission, Arc<Occupancy>) {
        let occupancy = Arc::new(Occupancy::default());
        let caps = Caps { connections, per_source, half_open, base_bytes: 10 };
        (Admission::new(caps, Budget::new(1_000_000), occupancy.clone()), occupancy)
    }

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn each_cap_has_its_reason() {
        let (mut keeper, occupancy) = keeper(4, 2, 3);
        let mut one = keeper.admit(v4(1)).unwrap();
        let _two = keeper.admit(v4(1)).unwrap();
        assert_eq!(keeper.admit(v4(1)).err(), Some(Refusal::Source));
        let _three = keeper.admit(v4(2)).unwrap();
        assert_eq!(keeper.admit(v4(3)).err(), Some(Refusal::HalfOpen));
        one.complete();
        one.complete();
        let _four = keeper.admit(v4(3)).unwrap();
        assert_eq!(keeper.admit(v4(4)).err(), Some(Refusal::Connections));
        assert_eq!((occupancy.connections(), occupancy.half_open()), (4, 3));
        drop(one);
        assert_eq!((occupancy.connections(), occupancy.half_open()), (3, 3));
    }

    #[test]
    fn memory_is_a_reason() {
        let caps = Caps { connections: 10, per_source: 10, half_open: 10, base_bytes: 10 };
        let mut keeper = Admission::new(caps, Budget::new(20), Arc::default());
        let one = keeper.admit(v4(1)).unwrap();
        assert_eq!(keeper.admit(v4(1)).err(), Some(Refusal::Memory));
        drop(one);
        assert!(keeper.admit(v4(1)).is_ok());
    }

    #[test]
    fn one_ipv6_network_is_one_source_and_mapped_ipv4_is_ipv4() {
        let (mut keeper, _) = keeper(10, 1, 10);
        let _a = keeper.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(keeper.admit("2001:db8::2".parse().unwrap()).err(), Some(Refusal::Source));
        let _b = keeper.admit("2001:db8:0:1::2".parse().unwrap()).unwrap();
        let _c = keeper.admit("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(keeper.admit("10.0.0.1".parse().unwrap()).err(), Some(Refusal::Source));
    }

    #[test]
    fn the_table_of_sources_is_swept() {
        let (mut keeper, _) = keeper(10, 1, 10);
        for n in 0..10_000 {
            drop(keeper.admit(v4(n)).unwrap());
        }
        assert!(keeper.occupancy.sources.lock().counts.len() <= 1_024);
    }

    /// One doorkeeper on each arbiter, all by one count.
    #[test]
    fn several_doorkeepers_let_in_exactly_as_many_as_the_caps_allow() {
        for caps in [(50, 1_000, 1_000), (1_000, 50, 1_000), (1_000, 1_000, 50)] {
            let occupancy = Arc::new(Occupancy::default());
            let caps = Caps { connections: caps.0, per_source: caps.1, half_open: caps.2, base_bytes: 0 };
            let let_in: usize = std::thread::scope(|scope| {
                let one = || {
                    let mut keeper = Admission::new(caps, Budget::new(1), occupancy.clone());
                    (0..1_000).filter_map(|_| keeper.admit(v4(1)).ok()).collect::<Vec<_>>()
                };
                let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
                let all: Vec<_> = all.into_iter().map(|thread| thread.join().unwrap()).collect();
                all.iter().map(Vec::len).sum()
            });
            assert_eq!(let_in, 50, "{caps:?}");
            assert_eq!((occupancy.connections(), occupancy.half_open()), (0, 0), "all have gone");
        }
    }

    #[test]
    fn a_successor_counts_those_who_are_in() {
        let (mut before, occupancy) = keeper(10, 2, 10);
        let one = before.admit(v4(1)).unwrap();
        let _two = before.admit(v4(1)).unwrap();
        let caps = Caps { connections: 10, per_source: 2, half_open: 10, base_bytes: 10 };
        let mut after = Admission::new(caps, Budget::new(1_000_000), occupancy);
        assert_eq!(after.admit(v4(1)).err(), Some(Refusal::Source));
        drop(one);
        assert!(after.admit(v4(1)).is_ok());
    }
}
