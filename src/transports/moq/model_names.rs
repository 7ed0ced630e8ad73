//! Names of tracks: a namespace of fields, and a name within it (section 2.4.1).
//!
//! All of it is plain bytes, compared as such. A name is bounded when it is made, costs one allocation for the namespace
//! and one for the name, and is cloned by counting. Printed as the draft recommends (section 1.5): fields joined by `-`,
//! `--` before the name, and every byte that is not a letter, a digit or `_` as `.` and two hex digits.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most fields of a namespace.
pub const MAX_FIELDS: usize = 32;

/// The most bytes of a namespace and the name within it, lengths not counted.
pub const MAX_NAME: usize = 4096;

/// Bytes of a length before each field.
const PREFIX: usize = 2;

/// A name that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// More than [`MAX_FIELDS`] fields.
    TooManyFields,
    /// A field of 0 bytes.
    EmptyField,
    /// More than [`MAX_NAME`] bytes.
    TooLong,
    /// Text that is not what such a name prints as.
    Malformed,
}

impl NameError {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooManyFields => "name_too_many_fields",
            Self::EmptyField => "name_empty_field",
            Self::TooLong => "name_too_long",
            Self::Malformed => "name_malformed",
        }
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyFields => write!(f, "a namespace of more than {MAX_FIELDS} fields"),
            Self::EmptyField => f.write_str("a namespace with an empty field"),
            Self::TooLong => write!(f, "a name of more than {MAX_NAME} bytes"),
            Self::Malformed => f.write_str("not a name as MoQT prints it"),
        }
    }
}

impl std::error::Error for NameError {}

/// A namespace, or the beginning or the rest of one: up to 32 fields of at least one byte each.
///
/// Kept as one piece of memory, each field after its length, so that a namespace begins with a prefix exactly if its
/// bytes do, and comparing, hashing and sorting are those of bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    /// For each field its length in two bytes, most significant first, and itself.
    packed: Arc<[u8]>,
}

impl Default for Namespace {
    fn default() -> Self {
        Self { packed: Arc::from([]) }
    }
}

impl Namespace {
    /// A namespace of these fields.
    ///
    /// # Errors
    /// [`NameError`] if there are too many of them, or bytes in them, or one is empty.
    pub fn new<F: AsRef<[u8]>>(fields: impl IntoIterator<Item = F>) -> Result<Self, NameError> {
        let mut builder = NamespaceBuilder::default();
        for field in fields {
            builder.push(field.as_ref())?;
        }
        Ok(builder.finish())
    }

    /// Its fields in order.
    #[must_use]
    pub fn fields(&self) -> Fields<'_> {
        Fields { rest: &self.packed }
    }

    /// How many fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fields().count()
    }

    /// Whether it has no field: as a prefix, it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// Bytes of all fields together, as limits count them.
    #[must_use]
    pub fn size(&self) -> usize {
        self.packed.len() - PREFIX * self.len()
    }

    /// Whether the first fields are those of `prefix` (section 9.5: field by field, each in full).
    #[must_use]
    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.packed.starts_with(&prefix.packed)
    }

    /// What follows after `prefix`; `None` if it does not begin so.
    #[must_use]
    pub fn strip_prefix(&self, prefix: &Self) -> Option<Self> {
        self.packed.strip_prefix(&*prefix.packed).map(|rest| Self { packed: Arc::from(rest) })
    }

    /// This prefix with the rest behind it.
    ///
    /// # Errors
    /// [`NameError`] if that is too long.
    pub fn join(&self, rest: &Self) -> Result<Self, NameError> {
        if rest.is_empty() {
            return Ok(self.clone());
        }
        Self::new(self.fields().chain(rest.fields()))
    }

    /// The first `count` fields, or all if there are fewer.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let to: usize = self.fields().take(count).map(|field| PREFIX + field.len()).sum();
        self.packed.get(..to).map_or_else(|| self.clone(), |packed| Self { packed: Arc::from(packed) })
    }

    /// Whether its first field begins with a full stop: reserved, never forwarded (section 3.2.1).
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.fields().next().is_some_and(|field| field.starts_with(b"."))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nr, field) in self.fields().enumerate() {
            if nr > 0 {
                f.write_str("-")?;
            }
            write_escaped(field, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({self})")
    }
}

impl FromStr for Namespace {
    type Err = NameError;

    /// Reads what `Display` prints, and nothing else (section 1.5.1).
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut builder = NamespaceBuilder::default();
        for field in text.split('-') {
            builder.push(&unescape(field)?)?;
        }
        Ok(builder.finish())
    }
}

/// The fields of a [`Namespace`], first to last.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<PREFIX>()?;
        let (field, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.rest = rest;
        Some(field)
    }
}

/// A namespace in the making, field by field, never beyond its bounds.
#[derive(Debug, Default)]
pub struct NamespaceBuilder {
    packed: Vec<u8>,
    fields: usize,
}

impl NamespaceBuilder {
    /// Adds a field.
    ///
    /// # Errors
    /// [`NameError`] if it is empty or there is no room for it; the builder is as it was.
    pub fn push(&mut self, field: &[u8]) -> Result<(), NameError> {
        if field.is_empty() {
            return Err(NameError::EmptyField);
        }
        if self.fields == MAX_FIELDS {
            return Err(NameError::TooManyFields);
        }
        let size = self.packed.len() - PREFIX * self.fields;
        let length = u16::try_from(field.len()).map_err(|_| NameError::TooLong)?;
        if size + field.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        self.fields += 1;
        self.packed.extend_from_slice(&length.to_be_bytes());
        self.packed.extend_from_slice(field);
        Ok(())
    }

    /// The namespace.
    #[must_use]
    pub fn finish(self) -> Namespace {
        Namespace { packed: Arc::from(self.packed) }
    }
}

/// The name of a track within its namespace; may be empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackName(Arc<[u8]>);

impl Default for TrackName {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl TrackName {
    /// A name of these bytes.
    ///
    /// # Errors
    /// [`NameError::TooLong`] beyond [`MAX_NAME`] bytes.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let name = name.as_ref();
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        Ok(Self(Arc::from(name)))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TrackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(&self.0, f)
    }
}

impl fmt::Debug for TrackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrackName({self})")
    }
}

/// What one track is called within a scope: its namespace and its name, at most [`MAX_NAME`] bytes together.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FullTrackName {
    namespace: Namespace,
    name: TrackName,
}

impl FullTrackName {
    /// The track of this name in this namespace.
    ///
    /// # Errors
    /// [`NameError::TooLong`] if both together are.
    pub fn new(namespace: Namespace, name: TrackName) -> Result<Self, NameError> {
        if namespace.size() + name.as_bytes().len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        Ok(Self { namespace, name })
    }

    /// The track of this name in the namespace of these fields.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn of<F: AsRef<[u8]>>(
        namespace: impl IntoIterator<Item = F>,
        name: impl AsRef<[u8]>,
    ) -> Result<Self, NameError> {
        Self::new(Namespace::new(namespace)?, TrackName::new(name)?)
    }

    /// Its namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its name there.
    #[must_use]
    pub const fn name(&self) -> &TrackName {
        &self.name
    }
}

impl fmt::Display for FullTrackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}--{}", self.namespace, self.name)
    }
}

impl fmt::Debug for FullTrackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FullTrackName({self})")
    }
}

impl FromStr for FullTrackName {
    type Err = NameError;

    /// Reads what `Display` prints, and nothing else (section 1.5.1).
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.rsplit_once("--").ok_or(NameError::Malformed)?;
        Self::new(namespace.parse()?, TrackName::new(unescape(name)?)?)
    }
}

const fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn write_escaped(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in bytes {
        if is_literal(*byte) {
            write!(f, "{}", char::from(*byte))?;
        } else {
            write!(f, ".{byte:02x}")?;
        }
    }
    Ok(())
}

fn unescape(text: &str) -> Result<Vec<u8>, NameError> {
    fn digit(byte: Option<u8>) -> Result<u8, NameError> {
        match byte {
            Some(digit @ b'0'..=b'9') => Ok(digit - b'0'),
            Some(digit @ b'a'..=b'f') => Ok(digit - b'a' + 10),
            _ => Err(NameError::Malformed),
        }
    }
    let mut bytes = text.bytes();
    let mut found = Vec::with_capacity(text.len().min(MAX_NAME));
    while let Some(byte) = bytes.next() {
        if is_literal(byte) {
            found.push(byte);
        } else if byte == b'.' {
            let value = digit(bytes.next())? << 4 | digit(bytes.next())?;
            if is_literal(value) {
                return Err(NameError::Malformed);
            }
            found.push(value);
        } else {
            return Err(NameError::Malformed);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn namespace(fields: &[&str]) -> Namespace {
        Namespace::new(fields).unwrap()
    }

    #[test]
    fn it_prints_as_in_the_draft() {
        let track =
            FullTrackName::new(namespace(&["example.net", "team2", "project_x"]), TrackName::new("report").unwrap())
                .unwrap();
        assert_eq!(track.to_string(), "example.2enet-team2-project_x--report");
        assert_eq!("example.2enet-team2-project_x--report".parse(), Ok(track));
    }

    #[test]
    fn text_that_is_not_canonical_is_refused() {
        for text in ["a.2E", "a.61", "a.", "a.2", "a b", "a/b", "a.5f", "é"] {
            assert_eq!(text.parse::<Namespace>(), Err(NameError::Malformed), "{text}");
        }
        assert_eq!("a--".parse::<Namespace>(), Err(NameError::EmptyField));
        assert_eq!("a-b".parse::<FullTrackName>(), Err(NameError::Malformed));
    }

    #[test]
    fn bounds_hold() {
        assert_eq!(Namespace::new(vec!["f"; 32]).unwrap().len(), 32);
        assert_eq!(Namespace::new(vec!["f"; 33]), Err(NameError::TooManyFields));
        assert_eq!(Namespace::new(["a", ""]), Err(NameError::EmptyField));
        assert_eq!(Namespace::new([vec![0u8; 4096]]).unwrap().size(), 4096);
        assert_eq!(Namespace::new([vec![0u8; 4096], vec![0; 1]]), Err(NameError::TooLong));
        assert_eq!(Namespace::new([vec![0u8; 70_000]]), Err(NameError::TooLong));
        assert_eq!(TrackName::new(vec![0u8; 4097]), Err(NameError::TooLong));
        let (half, name) = (Namespace::new([vec![0u8; 2048]]).unwrap(), TrackName::new(vec![0u8; 2048]).unwrap());
        assert!(FullTrackName::new(half.clone(), name.clone()).is_ok());
        assert_eq!(FullTrackName::new(half.join(&namespace(&["x"])).unwrap(), name), Err(NameError::TooLong));
    }

    #[test]
    fn a_prefix_matches_whole_fields_only() {
        let whole = namespace(&["example.com", "meeting", "1"]);
        assert!(whole.starts_with(&namespace(&["example.com", "meeting"])));
        assert!(whole.starts_with(&Namespace::default()));
        assert!(whole.starts_with(&whole));
        assert!(!whole.starts_with(&namespace(&["example.com", "meet"])));
        assert!(!whole.starts_with(&namespace(&["example.com", "meeting", "1", "2"])));
        assert_eq!(whole.strip_prefix(&namespace(&["example.com"])), Some(namespace(&["meeting", "1"])));
        assert_eq!(whole.strip_prefix(&namespace(&["other"])), None);
        assert_eq!(whole.first(2), namespace(&["example.com", "meeting"]));
        assert_eq!(whole.first(9), whole);
        assert!(namespace(&[".session", "x"]).is_reserved() && !whole.is_reserved());
    }

    proptest! {
        #[test]
        fn text_goes_both_ways(
            fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8),
            name in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let namespace = Namespace::new(&fields).unwrap();
            prop_assert_eq!(namespace.fields().collect::<Vec<_>>(), fields.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(namespace.to_string().parse(), Ok(namespace.clone()));
            let track = FullTrackName::new(namespace, TrackName::new(&name).unwrap()).unwrap();
            prop_assert_eq!(track.to_string().parse(), Ok(track));
        }

        #[test]
        fn what_is_cut_off_can_be_joined_again(fields in proptest::collection::vec("[a-z]{1,5}", 0..8), at in 0..9usize) {
            let whole = Namespace::new(&fields).unwrap();
            let prefix = whole.first(at);
            let rest = whole.strip_prefix(&prefix).unwrap();
            prop_assert_eq!(prefix.join(&rest), Ok(whole));
        }

        #[test]
        fn no_text_is_read_that_is_not_printed_so(text in "[a-z0-9._-]{0,30}") {
            if let Ok(namespace) = text.parse::<Namespace>() {
                prop_assert_eq!(namespace.to_string(), text);
            }
        }
    }
}
