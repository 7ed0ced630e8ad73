//! Key-value pairs (section 1.4.3): the properties of tracks and objects, and the options of SETUP.
//!
//! Each type is written as its distance from the one before. An even type has a number as its value, an odd one bytes
//! after their length. Properties are kept as they came ([`Properties`]), because whoever does not know one must forward
//! it as it is; they are checked when they come in, and looked into when somebody asks.

use bytes::{Bytes, BytesMut};

use super::codec::{MAX_VALUE, Mistake, Reader, Stop, Unsayable, put_varint};
use super::model::Location;
use super::model_params::Properties;

/// Types of properties that are known (sections 12 and 15.8).
pub mod property {
    /// After so many milliseconds an object is not worth sending any more.
    pub const OBJECT_DELIVERY_TIMEOUT: u64 = 0x02;
    /// For so many milliseconds an object may be served from a cache. Of tracks.
    pub const MAX_CACHE_DURATION: u64 = 0x04;
    /// After so many milliseconds from its end a subgroup is not worth sending any more.
    pub const SUBGROUP_DELIVERY_TIMEOUT: u64 = 0x06;
    /// Properties that no relay may change, not even in how they are written.
    pub const IMMUTABLE: u64 = 0x0b;
    /// The priority of subgroups and datagrams that name none. Of tracks.
    pub const DEFAULT_PUBLISHER_PRIORITY: u64 = 0x0e;
    /// The publisher's wish which groups go first. Of tracks.
    pub const DEFAULT_PUBLISHER_GROUP_ORDER: u64 = 0x22;
    /// Whether a subscriber may ask for a new group. Of tracks.
    pub const DYNAMIC_GROUPS: u64 = 0x30;
    /// So many groups before this object's do not exist. Of objects.
    pub const PRIOR_GROUP_ID_GAP: u64 = 0x3c;
    /// So many objects before this one do not exist. Of objects.
    pub const PRIOR_OBJECT_ID_GAP: u64 = 0x3e;

    /// Whether a track with this property may only be passed on by who understands it (section 2.5.1).
    #[must_use]
    pub const fn is_mandatory(kind: u64) -> bool {
        0x4000 <= kind && kind <= 0x7fff
    }
}

/// What a property says: a number if its type is even, bytes if it is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Of an even type.
    Number(u64),
    /// Of an odd type.
    Bytes(&'a [u8]),
}

/// Walks over pairs, last to be used after the first mistake.
#[derive(Debug, Clone)]
pub(super) struct Pairs<'a> {
    reader: Reader<'a>,
    previous: u64,
}

impl<'a> Pairs<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { reader: Reader::new(bytes), previous: 0 }
    }

    /// The next pair; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Stop> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let kind = self.previous.checked_add(self.reader.varint()?).ok_or(Mistake::Overflow)?;
        self.previous = kind;
        let value = if kind.is_multiple_of(2) {
            Value::Number(self.reader.varint()?)
        } else {
            Value::Bytes(self.reader.bytes(MAX_VALUE, Mistake::ValueTooLong)?)
        };
        Ok(Some((kind, value)))
    }
}

/// The properties in order; see [`Properties::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    pairs: Pairs<'a>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        // They were checked when they were made.
        self.pairs.next().ok().flatten()
    }
}

impl Properties {
    /// Properties of a track from the bytes of a message.
    pub(super) fn of_track(bytes: &[u8]) -> Result<Self, Mistake> {
        let mut pairs = Pairs::new(bytes);
        loop {
            match pairs.next() {
                Ok(Some((kind, value))) => check_of_track(kind, value)?,
                // Kept on its own: the message around it may be far larger, and a track lives long.
                Ok(None) => return Ok(Self(Bytes::copy_from_slice(bytes))),
                Err(Stop::More(_)) => return Err(Mistake::MalformedProperties),
                Err(Stop::Wrong(mistake)) => return Err(mistake),
            }
        }
    }

    /// Properties of an object, which must be laid out as such: who forwards an object vouches for that.
    ///
    /// # Errors
    /// [`Mistake::MalformedObject`] if they are not, contain one that only tracks may have, immutable ones twice or
    /// within each other (sections 2.5.1 and 12.7), or a gap twice or larger than can be (12.8, 12.9).
    pub(super) fn of_object(bytes: Bytes, at: Location) -> Result<Self, Mistake> {
        let mut pairs = Pairs::new(&bytes);
        let mut seen = Seen { at, immutable: false, group_gap: false, object_gap: false };
        while let Some((kind, value)) = object_pair(&mut pairs)? {
            seen.check(kind, value)?;
            let Value::Bytes(inner) = value else { continue };
            if kind == property::IMMUTABLE {
                let mut inner = Pairs::new(inner);
                while let Some((kind, value)) = object_pair(&mut inner)? {
                    seen.check(kind, value)?;
                }
            }
        }
        Ok(Self(bytes))
    }

    /// Each with its type, those within [`property::IMMUTABLE`] not among them.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { pairs: Pairs::new(self.as_bytes()) }
    }

    /// The value of the first property of this type, also if it is an immutable one (section 12.7).
    #[must_use]
    pub fn get(&self, kind: u64) -> Option<Value<'_>> {
        let mine = self.iter().find(|(found, _)| *found == kind);
        mine.or_else(|| self.immutable().find(|(found, _)| *found == kind)).map(|(_, value)| value)
    }

    /// The number of the first property of this even type, also if it is an immutable one.
    #[must_use]
    pub fn number(&self, kind: u64) -> Option<u64> {
        match self.get(kind) {
            Some(Value::Number(number)) => Some(number),
            Some(Value::Bytes(_)) | None => None,
        }
    }

    /// The first property that must be understood to pass the track on, and is not among those that are.
    #[must_use]
    pub fn not_understood(&self, understood: &[u64]) -> Option<u64> {
        let all = self.iter().chain(self.immutable());
        all.map(|(kind, _)| kind).find(|kind| property::is_mandatory(*kind) && !understood.contains(kind))
    }

    fn immutable(&self) -> Iter<'_> {
        let found = self.iter().find_map(|(kind, value)| match value {
            Value::Bytes(bytes) if kind == property::IMMUTABLE => Some(bytes),
            Value::Bytes(_) | Value::Number(_) => None,
        });
        Iter { pairs: Pairs::new(found.unwrap_or_default()) }
    }
}

/// Makes [`Properties`], in any order.
#[derive(Debug, Clone, Default)]
pub struct PropertiesBuilder {
    numbers: Vec<(u64, u64)>,
    bytes: Vec<(u64, Bytes)>,
}

impl PropertiesBuilder {
    /// Adds a number under an even type.
    #[must_use]
    pub fn number(mut self, kind: u64, value: u64) -> Self {
        self.numbers.push((kind, value));
        self
    }

    /// Adds bytes under an odd type.
    #[must_use]
    pub fn bytes(mut self, kind: u64, value: impl Into<Bytes>) -> Self {
        self.bytes.push((kind, value.into()));
        self
    }

    /// The properties, in order of their types.
    ///
    /// # Errors
    /// [`Unsayable`] if a type has the wrong parity, or bytes are longer than [`MAX_VALUE`].
    pub fn finish(self) -> Result<Properties, Unsayable> {
        if self.numbers.iter().any(|(kind, _)| kind % 2 == 1) || self.bytes.iter().any(|(kind, _)| kind % 2 == 0) {
            return Err(Unsayable::Contradiction("the type of a property"));
        }
        if self.bytes.iter().any(|(_, value)| value.len() > MAX_VALUE) {
            return Err(Unsayable::TooLong("a property"));
        }
        let numbers = self.numbers.iter().map(|(kind, value)| (*kind, Value::Number(*value)));
        let bytes = self.bytes.iter().map(|(kind, value)| (*kind, Value::Bytes(value)));
        let mut all: Vec<_> = numbers.chain(bytes).collect();
        all.sort_by_key(|(kind, _)| *kind);
        let mut out = BytesMut::new();
        put_pairs(&all, &mut out);
        Ok(Properties(out.freeze()))
    }
}

/// Writes pairs that are in order of their types.
pub(super) fn put_pairs(pairs: &[(u64, Value<'_>)], out: &mut BytesMut) {
    let mut previous = 0;
    for (kind, value) in pairs {
        put_varint(kind.saturating_sub(previous), out);
        previous = *kind;
        match value {
            Value::Number(number) => put_varint(*number, out),
            Value::Bytes(bytes) => {
                put_varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
        }
    }
}

/// What properties of a track that are known may say (sections 12.4 to 12.7).
fn check_of_track(kind: u64, value: Value<'_>) -> Result<(), Mistake> {
    let allowed = match (kind, value) {
        (property::DEFAULT_PUBLISHER_PRIORITY, Value::Number(number)) => number <= 255,
        (property::DEFAULT_PUBLISHER_GROUP_ORDER, Value::Number(number)) => matches!(number, 1 | 2),
        (property::DYNAMIC_GROUPS, Value::Number(number)) => number <= 1,
        (property::IMMUTABLE, Value::Bytes(inner)) => {
            let mut inner = Pairs::new(inner);
            loop {
                match inner.next() {
                    Ok(Some((property::IMMUTABLE, _))) => return Err(Mistake::MalformedProperties),
                    Ok(Some((kind, value))) => check_of_track(kind, value)?,
                    Ok(None) => return Ok(()),
                    Err(Stop::More(_)) => return Err(Mistake::MalformedProperties),
                    Err(Stop::Wrong(mistake)) => return Err(mistake),
                }
            }
        }
        _ => true,
    };
    if allowed { Ok(()) } else { Err(Mistake::InvalidValue(kind)) }
}

fn object_pair<'a>(pairs: &mut Pairs<'a>) -> Result<Option<(u64, Value<'a>)>, Mistake> {
    match pairs.next() {
        Ok(pair) => Ok(pair),
        // These two end the session wherever they are (section 1.4.3).
        Err(Stop::Wrong(mistake @ (Mistake::Overflow | Mistake::ValueTooLong))) => Err(mistake),
        Err(Stop::Wrong(_) | Stop::More(_)) => Err(Mistake::MalformedObject),
    }
}

/// Which properties of an object were seen that may be there once.
#[derive(Debug)]
struct Seen {
    at: Location,
    immutable: bool,
    group_gap: bool,
    object_gap: bool,
}

impl Seen {
    fn check(&mut self, kind: u64, value: Value<'_>) -> Result<(), Mistake> {
        let beyond = |id: u64| matches!(value, Value::Number(gap) if gap > id);
        let wrong = match kind {
            property::IMMUTABLE => std::mem::replace(&mut self.immutable, true),
            property::PRIOR_GROUP_ID_GAP => std::mem::replace(&mut self.group_gap, true) || beyond(self.at.group),
            property::PRIOR_OBJECT_ID_GAP => std::mem::replace(&mut self.object_gap, true) || beyond(self.at.object),
            kind => property::is_mandatory(kind),
        };
        if wrong { Err(Mistake::MalformedObject) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Location = Location::new(5, 7);

    fn object(bytes: &[u8]) -> Result<Properties, Mistake> {
        Properties::of_object(Bytes::copy_from_slice(bytes), AT)
    }

    fn built(builder: PropertiesBuilder) -> Bytes {
        builder.finish().unwrap().as_bytes().clone()
    }

    #[test]
    fn the_example_of_the_draft_is_read() {
        // Section 11.6: type 4 with 2186796243, type 77 with 21 bytes.
        let bytes =
            built(PropertiesBuilder::default().bytes(77, &b"traceID:1234567890123"[..]).number(4, 2_186_796_243));
        assert_eq!(bytes[..7], [0x04, 0xf0, 0x82, 0x57, 0xdc, 0xd3, 73]);
        let properties = object(&bytes).unwrap();
        let found: Vec<_> = properties.iter().collect();
        assert_eq!(found, [(4, Value::Number(2_186_796_243)), (77, Value::Bytes(b"traceID:1234567890123"))]);
    }

    #[test]
    fn immutable_properties_are_looked_into() {
        let inner = built(PropertiesBuilder::default().number(0x3e, 2).bytes(0x41, &b"x"[..]));
        let properties = object(&built(PropertiesBuilder::default().bytes(property::IMMUTABLE, inner))).unwrap();
        assert_eq!(properties.number(0x3e), Some(2));
        assert_eq!(properties.get(0x41), Some(Value::Bytes(b"x")));
        assert_eq!(properties.get(0x43), None);
        assert_eq!(properties.iter().count(), 1);
    }

    #[test]
    fn objects_that_nobody_may_pass_on_are_refused() {
        let nested = built(PropertiesBuilder::default().bytes(property::IMMUTABLE, &b""[..]));
        let malformed = [
            vec![0x05],
            vec![0x04, 0x80],
            vec![0x05, 0x02, 0x00],
            built(PropertiesBuilder::default().bytes(property::IMMUTABLE, &[0x04][..])).to_vec(),
            built(PropertiesBuilder::default().bytes(property::IMMUTABLE, nested)).to_vec(),
            built(PropertiesBuilder::default().number(0x3c, 1).number(0x3c, 1)).to_vec(),
            built(PropertiesBuilder::default().number(0x3c, AT.group + 1)).to_vec(),
            built(PropertiesBuilder::default().number(0x3e, AT.object + 1)).to_vec(),
            built(PropertiesBuilder::default().number(0x4000, 1)).to_vec(),
        ];
        for bytes in malformed {
            assert_eq!(object(&bytes), Err(Mistake::MalformedObject), "{bytes:x?}");
        }
        assert!(object(&built(PropertiesBuilder::default().number(0x3e, AT.object).number(0x3c, AT.group))).is_ok());
    }

    #[test]
    fn what_ends_the_session_does_so_in_objects_too() {
        let mut overflow = vec![0x04, 0x00];
        put_varint(u64::MAX, &mut overflow);
        assert_eq!(object(&overflow), Err(Mistake::Overflow));
        let mut long = vec![0x05];
        put_varint(65_536, &mut long);
        assert_eq!(object(&long), Err(Mistake::ValueTooLong));
    }

    #[test]
    fn properties_of_tracks_have_the_values_they_may_have() {
        let track = |builder| Properties::of_track(&built(builder));
        let new = PropertiesBuilder::default;
        assert!(track(new().number(0x0e, 255).number(0x22, 2).number(0x30, 1)).is_ok());
        assert_eq!(track(new().number(0x0e, 256)), Err(Mistake::InvalidValue(0x0e)));
        assert_eq!(track(new().number(0x22, 0)), Err(Mistake::InvalidValue(0x22)));
        assert_eq!(track(new().number(0x30, 2)), Err(Mistake::InvalidValue(0x30)));
        let inner = built(new().number(0x30, 2));
        assert_eq!(track(new().bytes(property::IMMUTABLE, inner)), Err(Mistake::InvalidValue(0x30)));
        assert_eq!(Properties::of_track(&[0x05, 0x02, 0x00]), Err(Mistake::MalformedProperties));
        let unknown = track(new().number(0x4002, 1)).unwrap();
        assert_eq!(unknown.not_understood(&[]), Some(0x4002));
        assert_eq!(unknown.not_understood(&[0x4002]), None);
    }

    #[test]
    fn a_type_of_the_wrong_parity_is_not_made() {
        assert!(PropertiesBuilder::default().number(3, 1).finish().is_err());
        assert!(PropertiesBuilder::default().bytes(4, &b""[..]).finish().is_err());
        assert!(PropertiesBuilder::default().bytes(5, vec![0; 65_536]).finish().is_err());
    }

    proptest! {
        #[test]
        fn what_is_made_is_read(
            numbers in proptest::collection::vec((0u64..1 << 40, any::<u64>()), 0..6),
            bytes in proptest::collection::vec((0u64..1 << 40, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
        ) {
            let mut builder = PropertiesBuilder::default();
            let mut expected = Vec::new();
            for (kind, value) in &numbers {
                builder = builder.number(kind * 2, *value);
                expected.push((kind * 2, Value::Number(*value)));
            }
            for (kind, value) in &bytes {
                builder = builder.bytes(kind * 2 + 1, value.clone());
                expected.push((kind * 2 + 1, Value::Bytes(value)));
            }
            expected.sort_by_key(|(kind, _)| *kind);
            let made = builder.finish().unwrap();
            prop_assert_eq!(made.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn any_bytes_are_properties_or_a_mistake(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(properties) = object(&bytes) {
                prop_assert_eq!(properties.as_bytes(), &bytes);
                let _ = properties.iter().count();
            }
            if let Ok(properties) = Properties::of_track(&bytes) {
                prop_assert_eq!(properties.as_bytes(), &bytes);
            }
        }
    }
}
