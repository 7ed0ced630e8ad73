//! Values by key, where the key of a value that is gone never leads to another.
//!
//! A key is a place and a generation of that place; each value put there has a generation of its own. A place that has
//! used up all generations (2³² − 1) is never used again, so a generation never comes round. The table is bounded, and
//! a full one gives the value back.
//!
//! A key means something to the table that made it, and to its clones as they were cloned. It is 8 bytes and does not say
//! of which table it is: shown to another, it finds nothing or another's value. Who has several tables tells their keys
//! apart by type, in a struct around each.

use std::fmt;
use std::num::NonZeroU32;

/// Names one value of one [`Table`]. Another table does not notice: see the example.
///
/// ```
/// use portway::memory::{Key, Table};
///
/// let mut table = Table::new(10);
/// let key: Key = table.insert("a").unwrap();
/// assert_eq!(table.get(key), Some(&"a"));
///
/// let mut other = Table::new(10);
/// assert_eq!(other.get(key), None);
/// other.insert("b").unwrap();
/// assert_eq!(other.get(key), Some(&"b"), "keys say nothing of their table");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    place: u32,
    generation: NonZeroU32,
}

/// The table is full; here is the value again.
///
/// ```
/// use portway::memory::{Full, Table};
///
/// let mut table = Table::new(0);
/// assert_eq!(table.insert("a"), Err(Full("a")));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the table is full")
    }
}

impl<T: fmt::Debug> std::error::Error for Full<T> {}

/// Values by key, for at most so many at once. A key that was removed never leads to another value of the same table.
///
/// ```
/// use portway::memory::Table;
///
/// let mut sessions = Table::new(1_000);
/// let first = sessions.insert("first").unwrap();
/// sessions.remove(first);
/// let second = sessions.insert("second").unwrap();
/// assert_eq!(sessions.get(first), None, "not the second, though it has the same place");
/// assert_eq!(sessions.get(second), Some(&"second"));
/// ```
#[derive(Debug, Clone)]
pub struct Table<T> {
    places: Vec<Place<T>>,
    /// The first of the free places, each of which knows the next.
    free: Option<u32>,
    limit: usize,
    len: usize,
}

#[derive(Debug, Clone)]
struct Place<T> {
    /// Of the value that is here, or else of the next.
    generation: NonZeroU32,
    content: Content<T>,
}

#[derive(Debug, Clone)]
enum Content<T> {
    Value(T),
    Free { next: Option<u32> },
}

impl<T> Table<T> {
    /// A table for `limit` values at once; at most 2³² are possible.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// assert!(Table::<u8>::new(10).is_empty());
    /// ```
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { places: Vec::new(), free: None, limit, len: 0 }
    }

    /// Puts a value in.
    ///
    /// # Errors
    /// [`Full`] with the value.
    ///
    /// ```
    /// # use portway::memory::{Full, Table};
    /// let mut table = Table::new(1);
    /// table.insert("a").unwrap();
    /// assert_eq!(table.insert("b"), Err(Full("b")));
    /// ```
    pub fn insert(&mut self, value: T) -> Result<Key, Full<T>> {
        if self.len >= self.limit {
            return Err(Full(value));
        }
        let Some(at) = self.free.or_else(|| u32::try_from(self.places.len()).ok()) else {
            return Err(Full(value));
        };
        self.len += 1;
        if let Some(place) = self.places.get_mut(at as usize) {
            if let Content::Free { next } = std::mem::replace(&mut place.content, Content::Value(value)) {
                self.free = next;
            }
            return Ok(Key { place: at, generation: place.generation });
        }
        let generation = NonZeroU32::MIN;
        self.places.push(Place { generation, content: Content::Value(value) });
        Ok(Key { place: at, generation })
    }

    /// The value of a key, if it is still there.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// let mut table = Table::new(1);
    /// let key = table.insert("a").unwrap();
    /// assert_eq!(table.get(key), Some(&"a"));
    /// ```
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.places.get(key.place as usize)? {
            Place { generation, content: Content::Value(value) } if *generation == key.generation => Some(value),
            Place { .. } => None,
        }
    }

    /// The value of a key, if it is still there, to be changed.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// let mut table = Table::new(1);
    /// let key = table.insert(1).unwrap();
    /// *table.get_mut(key).unwrap() += 1;
    /// assert_eq!(table.get(key), Some(&2));
    /// ```
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.places.get_mut(key.place as usize)? {
            Place { generation, content: Content::Value(value) } if *generation == key.generation => Some(value),
            Place { .. } => None,
        }
    }

    /// Takes a value out. From then on its key leads nowhere.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// let mut table = Table::new(1);
    /// let key = table.insert("a").unwrap();
    /// assert_eq!((table.remove(key), table.remove(key)), (Some("a"), None));
    /// ```
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.place as usize).filter(|place| place.generation == key.generation)?;
        let value = match std::mem::replace(&mut place.content, Content::Free { next: None }) {
            Content::Value(value) => value,
            free @ Content::Free { .. } => {
                place.content = free;
                return None;
            }
        };
        self.len -= 1;
        // The last generation is never given to a value, so that its place cannot start again.
        if let Some(next) = place.generation.checked_add(1).filter(|next| *next < NonZeroU32::MAX) {
            place.generation = next;
            place.content = Content::Free { next: self.free.replace(key.place) };
        }
        Some(value)
    }

    /// How many values are in.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// let mut table = Table::new(10);
    /// table.insert("a").unwrap();
    /// assert_eq!(table.len(), 1);
    /// ```
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none is in.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// assert!(Table::<u8>::new(10).is_empty());
    /// ```
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All values with their keys, in the order of their places.
    ///
    /// ```
    /// # use portway::memory::Table;
    /// let mut table = Table::new(10);
    /// let key = table.insert("a").unwrap();
    /// assert_eq!(table.iter().collect::<Vec<_>>(), [(key, &"a")]);
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..).zip(&self.places).filter_map(|(at, place)| match &place.content {
            Content::Value(value) => Some((Key { place: at, generation: place.generation }, value)),
            Content::Free { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_that_has_used_up_its_generations_is_not_used_again() {
        let mut table = Table::new(2);
        let first = table.insert(1).unwrap();
        table.places[0].generation = NonZeroU32::new(u32::MAX - 2).unwrap();
        let nearly = Key { generation: table.places[0].generation, ..first };
        assert_eq!(table.remove(nearly), Some(1));
        let last = table.insert(2).unwrap();
        assert_eq!((last.place, last.generation.get()), (0, u32::MAX - 1));
        assert_eq!(table.remove(last), Some(2));
        let elsewhere = table.insert(3).unwrap();
        assert_eq!(elsewhere.place, 1);
        assert_eq!((table.get(first), table.get(nearly), table.get(last)), (None, None, None));
        assert_eq!(table.remove(last), None);
        assert_eq!(table.len(), 1);
        table.insert(4).unwrap();
        assert_eq!(table.insert(5), Err(Full(5)), "a lost place takes nothing from the limit, and adds nothing");
    }

    #[test]
    fn values_without_a_size_have_keys_too() {
        let mut table = Table::new(2);
        let key = table.insert(()).unwrap();
        assert_eq!(table.get(key), Some(&()));
        assert_eq!((table.remove(key), table.remove(key)), (Some(()), None));
    }

    proptest! {
        #[test]
        fn a_key_leads_to_its_own_value_or_to_none(
            steps in proptest::collection::vec((any::<bool>(), 0..20usize), 1..if cfg!(miri) { 30 } else { 200 }),
        ) {
            let mut table = Table::new(8);
            let mut model: HashMap<usize, u32> = HashMap::new();
            let mut keys = Vec::new();
            for (insert, which) in steps {
                if insert {
                    let value = keys.len() as u32;
                    match table.insert(value) {
                        Ok(key) => {
                            prop_assert!(!keys.contains(&key));
                            model.insert(keys.len(), value);
                            keys.push(key);
                        }
                        Err(Full(back)) => prop_assert_eq!((back, model.len()), (value, 8)),
                    }
                } else if let Some(key) = keys.get(which) {
                    prop_assert_eq!(table.remove(*key), model.remove(&which));
                }
                prop_assert_eq!(table.len(), model.len());
                for (which, key) in keys.iter().enumerate() {
                    prop_assert_eq!(table.get(*key), model.get(&which));
                }
                prop_assert!(table.iter().all(|(key, value)| table.get(key) == Some(value)));
                prop_assert_eq!(table.iter().count(), model.len());
            }
        }
    }
}
