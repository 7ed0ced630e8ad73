//! Which connections there are inside, whose they are, and how many a peer may have.
//!
//! A flow is a pair of endpoints; its number is its place in a table of fixed size. Each owner (a peer of the tunnel) may
//! have so many flows, and so many that are half open; beyond either a SYN is not answered, and the flows of others are
//! as before.

use std::collections::HashMap;
use std::net::SocketAddr;

/// How many flows there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// Of all owners together. Default 4,096.
    pub flows: usize,
    /// Of one owner. Default 1,024.
    pub per_owner: usize,
    /// Half open, of one owner. Default 64.
    pub half_open: usize,
}

impl Default for FlowLimits {
    fn default() -> Self {
        Self { flows: 4_096, per_owner: 1_024, half_open: 64 }
    }
}

/// The two ends of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The other side's.
    pub remote: SocketAddr,
    /// Ours.
    pub local: SocketAddr,
}

/// Why a flow was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are too many.
    Flows,
    /// This owner has too many.
    Owner,
    /// This owner has too many that are half open.
    HalfOpen,
}

impl Refusal {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Owner => "flows_of_peer",
            Self::HalfOpen => "half_open_of_peer",
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Owned {
    flows: usize,
    half_open: usize,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    ends: Ends,
    owner: u32,
    half_open: bool,
}

/// The table.
#[derive(Debug)]
pub struct Flows {
    limits: FlowLimits,
    by_ends: HashMap<Ends, usize>,
    all: Vec<Option<Flow>>,
    free: Vec<usize>,
    owners: HashMap<u32, Owned>,
}

impl Flows {
    /// An empty table.
    #[must_use]
    pub fn new(limits: FlowLimits) -> Self {
        Self { limits, by_ends: HashMap::new(), all: Vec::new(), free: Vec::new(), owners: HashMap::new() }
    }

    /// The number of a flow.
    #[must_use]
    pub fn find(&self, ends: &Ends) -> Option<usize> {
        self.by_ends.get(ends).copied()
    }

    /// Lets a flow in, half open, and answers its number, which is below the limit of all flows.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn admit(&mut self, ends: Ends, owner: u32) -> Result<usize, Refusal> {
        if self.by_ends.len() >= self.limits.flows {
            return Err(Refusal::Flows);
        }
        let owned = self.owners.get(&owner).copied().unwrap_or_default();
        if owned.flows >= self.limits.per_owner {
            return Err(Refusal::Owner);
        }
        if owned.half_open >= self.limits.half_open {
            return Err(Refusal::HalfOpen);
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        if let Some(place) = self.all.get_mut(number) {
            *place = Some(Flow { ends, owner, half_open: true });
        }
        self.by_ends.insert(ends, number);
        let owned = self.owners.entry(owner).or_default();
        owned.flows += 1;
        owned.half_open += 1;
        Ok(number)
    }

    /// A flow is half open no more.
    pub fn complete(&mut self, number: usize) {
        let Some(flow) = self.all.get_mut(number).and_then(Option::as_mut) else { return };
        if std::mem::replace(&mut flow.half_open, false)
            && let Some(owned) = self.owners.get_mut(&flow.owner)
        {
            owned.half_open = owned.half_open.saturating_sub(1);
        }
    }

    /// Takes a flow out.
    pub fn remove(&mut self, number: usize) {
        let Some(flow) = self.all.get_mut(number).and_then(Option::take) else { return };
        self.by_ends.remove(&flow.ends);
        self.free.push(number);
        if let Some(owned) = self.owners.get_mut(&flow.owner) {
            owned.flows = owned.flows.saturating_sub(1);
            owned.half_open = owned.half_open.saturating_sub(usize::from(flow.half_open));
            if owned.flows == 0 {
                self.owners.remove(&flow.owner);
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_ends.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(n: u16) -> Ends {
        Ends { remote: SocketAddr::from(([10, 0, 0, 2], n)), local: SocketAddr::from(([10, 0, 0, 1], 80)) }
    }

    #[test]
    fn an_owner_is_bounded_and_others_are_not_held_up() {
        let mut flows = Flows::new(FlowLimits { flows: 10, per_owner: 4, half_open: 3 });
        let numbers: Vec<_> = (0..3).map(|n| flows.admit(ends(n), 7).unwrap()).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(flows.admit(ends(3), 7), Err(Refusal::HalfOpen));
        assert_eq!(flows.admit(ends(3), 8), Ok(3));
        flows.complete(0);
        flows.complete(0);
        assert_eq!(flows.admit(ends(4), 7), Ok(4));
        flows.complete(1);
        assert_eq!(flows.admit(ends(5), 7), Err(Refusal::Owner));
        flows.remove(2);
        flows.remove(2);
        assert_eq!(flows.find(&ends(2)), None);
        assert_eq!(flows.admit(ends(5), 7), Ok(2), "the number is used again");
        for n in 6..11 {
            assert!(flows.admit(ends(n), 100 + u32::from(n)).is_ok(), "{n}");
        }
        assert_eq!(flows.len(), 10);
        assert_eq!(flows.admit(ends(100), 100), Err(Refusal::Flows));
        for n in 0..10 {
            flows.remove(n);
        }
        assert!(flows.is_empty() && flows.owners.is_empty());
    }
}
