//! Which flows one arbiter has: a client's address and the address it asked lead to a flow.
//!
//! The table has no bound of its own; whoever puts a flow in has admitted it before.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::memory::{Key, Table};

/// Between whom a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    /// The client.
    pub(super) peer: SocketAddr,
    /// The address of ours it sent to, from which the answers leave.
    pub(super) asked: IpAddr,
}

/// The flows; `F` is the way to one.
#[derive(Debug)]
pub(super) struct Flows<F> {
    by_ends: HashMap<Ends, Key>,
    all: Table<(Ends, F)>,
}

impl<F> Flows<F> {
    pub(super) fn new() -> Self {
        Self { by_ends: HashMap::new(), all: Table::new(u32::MAX as usize) }
    }

    pub(super) fn find(&self, ends: &Ends) -> Option<Key> {
        self.by_ends.get(ends).copied()
    }

    pub(super) fn get(&self, key: Key) -> Option<&F> {
        self.all.get(key).map(|(_, flow)| flow)
    }

    /// Puts a flow in, in the place of one between the same ends if there is one; gives it back if there is no place.
    pub(super) fn insert(&mut self, ends: Ends, flow: F) -> Result<Key, F> {
        let key = self.all.insert((ends, flow)).map_err(|full| full.0.1)?;
        if let Some(before) = self.by_ends.insert(ends, key) {
            self.all.remove(before);
        }
        Ok(key)
    }

    /// Takes a flow out. One that has been replaced is not there any more.
    pub(super) fn remove(&mut self, key: Key) {
        if let Some((ends, _)) = self.all.remove(key)
            && self.by_ends.get(&ends) == Some(&key)
        {
            self.by_ends.remove(&ends);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_ends.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &F> {
        self.all.iter().map(|(_, (_, flow))| flow)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends(port: u16, asked: u8) -> Ends {
        Ends { peer: SocketAddr::from(([127, 0, 0, 1], port)), asked: IpAddr::from([127, 0, 0, asked]) }
    }

    #[test]
    fn the_address_asked_is_part_of_a_flow() {
        let mut flows = Flows::new();
        let one = flows.insert(ends(1, 1), 'a').unwrap();
        assert_eq!(
            (flows.find(&ends(1, 1)), flows.find(&ends(1, 2)), flows.find(&ends(2, 1))),
            (Some(one), None, None)
        );
    }

    proptest! {
        #[test]
        fn it_knows_what_a_map_knows(steps in proptest::collection::vec((0..8_u16, any::<bool>()), 1..200)) {
            let mut flows = Flows::new();
            let mut model: HashMap<Ends, usize> = HashMap::new();
            let mut keys = Vec::new();
            for (number, (port, insert)) in steps.into_iter().enumerate() {
                let ends = ends(port, 1);
                if insert {
                    keys.push(flows.insert(ends, number).unwrap());
                    model.insert(ends, number);
                } else if let Some(key) = keys.get(usize::from(port)).copied() {
                    // Also keys of flows that were replaced or taken out before.
                    let number = flows.get(key).copied();
                    flows.remove(key);
                    model.retain(|_, known| Some(*known) != number);
                }
                for port in 0..8 {
                    let ends = self::ends(port, 1);
                    let found = flows.find(&ends).and_then(|key| flows.get(key)).copied();
                    prop_assert_eq!(found, model.get(&ends).copied());
                }
                prop_assert_eq!((flows.is_empty(), flows.iter().count()), (model.is_empty(), model.len()));
            }
        }
    }
}
