//! What requests and their answers may carry besides their fixed fields: parameters, filters, tokens, properties.
//!
//! One struct holds every parameter of every draft, each absent unless set; which message of which draft may carry which
//! is a table of the codec, which refuses the others in both directions. Times are milliseconds on the wire: a `Duration`
//! read from there may be as long as 2^64 ms, so add it with `checked_add`; what is shorter than a millisecond is rounded
//! up when written.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::model::{GroupOrder, Location};
use super::model_names::Namespace;

/// The most tokens that one message may carry; a message with more ends the session.
pub const MAX_TOKENS: usize = 16;

/// The parameters of a message (section 10.2). Absent ones mean what each says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Params {
    /// After so long an object is not worth sending any more. Absent or zero: never.
    pub object_delivery_timeout: Option<Duration>,
    /// After so long from its end a subgroup is not worth sending any more. Absent or zero: never.
    pub subgroup_delivery_timeout: Option<Duration>,
    /// What the request is authorised by; at most [`MAX_TOKENS`].
    pub tokens: Vec<Token>,
    /// How long SUBSCRIBE may wait for a publisher. Absent: not at all.
    pub rendezvous_timeout: Option<Duration>,
    /// How long a fetch may wait for objects that must be fetched first. Absent: as long as the relay likes.
    pub fill_timeout: Option<Duration>,
    /// When the sender will end the subscription. Absent or zero: not known.
    pub expires: Option<Duration>,
    /// The largest location that the sender knows of the track. Absent: it knows of no object.
    pub largest: Option<Location>,
    /// Whether objects are to be sent. Absent: yes; in an update: as before.
    pub forward: Option<bool>,
    /// The subscriber's priority, lower goes first. Absent: 128; in an update: as before.
    pub priority: Option<u8>,
    /// Which objects. Absent: all; in an update: as before. For a FETCH it is in [`FetchWhat`] instead.
    ///
    /// [`FetchWhat`]: super::model_message::FetchWhat
    pub filter: Option<Filter>,
    /// Which groups go first. Absent: as the publisher prefers, and for a fetch ascending.
    pub group_order: Option<GroupOrder>,
    /// Also deliver the past, on a fetch stream under the number of this request. From draft 20.
    pub fill: Option<Box<Fill>>,
    /// Which objects, by other numbers than their location. From draft 20.
    pub ranges: Vec<RangeFilter>,
    /// The publisher should begin a group newer than this, less one; 0 if none is known.
    pub new_group: Option<u64>,
    /// The new prefix of SUBSCRIBE_NAMESPACE or SUBSCRIBE_TRACKS.
    pub prefix: Option<Namespace>,
    /// Whether the answer should carry properties of the track. Absent: yes. From draft 20.
    pub include_properties: Option<bool>,
}

impl Params {
    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what an update sets, and leaves the rest as it was (section 10.9). What concerns the update alone
    /// (tokens, a fill) is not taken over; filters of a kind that the update names are replaced together (draft 20,
    /// section 5.1.4).
    pub fn update(&mut self, by: &Self) {
        fn take<T: Clone>(mine: &mut Option<T>, by: Option<&T>) {
            if by.is_some() {
                *mine = by.cloned();
            }
        }
        take(&mut self.object_delivery_timeout, by.object_delivery_timeout.as_ref());
        take(&mut self.subgroup_delivery_timeout, by.subgroup_delivery_timeout.as_ref());
        take(&mut self.rendezvous_timeout, by.rendezvous_timeout.as_ref());
        take(&mut self.fill_timeout, by.fill_timeout.as_ref());
        take(&mut self.expires, by.expires.as_ref());
        take(&mut self.largest, by.largest.as_ref());
        take(&mut self.forward, by.forward.as_ref());
        take(&mut self.priority, by.priority.as_ref());
        take(&mut self.filter, by.filter.as_ref());
        take(&mut self.group_order, by.group_order.as_ref());
        take(&mut self.new_group, by.new_group.as_ref());
        take(&mut self.prefix, by.prefix.as_ref());
        take(&mut self.include_properties, by.include_properties.as_ref());
        if !by.ranges.is_empty() {
            self.ranges.retain(|mine| by.ranges.iter().all(|new| new.by.kind() != mine.by.kind()));
            self.ranges.extend(by.ranges.iter().filter(|new| !new.is_removal()).cloned());
        }
    }
}

/// Which objects of a track, by their locations; both ends belong to it (section 5.1.2).
///
/// The same for subscriptions and fetches of every draft. What a draft cannot say is refused when written: draft 18 has
/// no `Relative` beyond the next group, no `Range` in a subscription, and in a fetch nothing relative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Filter {
    /// All of them.
    #[default]
    All,
    /// From the next object on: what follows after the largest.
    NextObject,
    /// From so many groups before the next group on: 0 is the next, 1 the current one.
    Relative(u64),
    /// From here on.
    From(Location),
    /// From here to the end of a group that is not older.
    Groups {
        /// The first.
        start: Location,
        /// The last group, all of it.
        end_group: u64,
    },
    /// From here to there.
    Range {
        /// The first.
        start: Location,
        /// The last. Before the first, it leaves nothing; only draft 18 can say that, and only in a fetch.
        end: Location,
    },
}

impl Filter {
    /// The first and the last location, given the largest that the publisher knows. Without an end: `None`. A range
    /// whose last is before its first holds nothing.
    #[must_use]
    pub fn resolve(self, largest: Option<Location>) -> (Location, Option<Location>) {
        match self {
            Self::All => (Location::START, None),
            Self::NextObject => (largest.map_or(Location::START, next_object), None),
            Self::Relative(back) => {
                let next = largest.map_or(0, |at| at.group.saturating_add(1));
                (Location::new(next.saturating_sub(back), 0), None)
            }
            Self::From(start) => (start, None),
            Self::Groups { start, end_group } => (start, Some(Location::end_of(end_group))),
            Self::Range { start, end } => (start, Some(end)),
        }
    }
}

/// The location behind this one in its group, or the beginning of the next group if the group can have no more.
fn next_object(at: Location) -> Location {
    match at.object.checked_add(1) {
        Some(object) => Location::new(at.group, object),
        None => Location::new(at.group.saturating_add(1), 0),
    }
}

/// The past that a subscription asks for besides what is new (draft 20, FILL_PARAMETERS). What is absent is as in the
/// subscription.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fill {
    /// How long it may wait for objects that must be fetched first.
    pub fill_timeout: Option<Duration>,
    /// Its priority.
    pub priority: Option<u8>,
    /// Which objects; never beyond the largest.
    pub filter: Option<Filter>,
    /// In which order.
    pub group_order: Option<GroupOrder>,
    /// Which objects, by other numbers.
    pub ranges: Vec<RangeFilter>,
}

/// Passes objects, or tracks, by the ranges that a number of theirs lies in (draft 20, section 5.1.4).
///
/// Filters of one set must all pass, and one set is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeFilter {
    /// Which set it belongs to; `None` in an update takes all filters of its kind away, and there are no ranges then.
    pub set: Option<u8>,
    /// Which number is looked at.
    pub by: RangeBy,
    /// The first and the last of each range, in ascending order; without a last one it is open, and none follows.
    pub ranges: Vec<(u64, Option<u64>)>,
}

impl RangeFilter {
    /// Whether it only takes away what was there.
    #[must_use]
    pub const fn is_removal(&self) -> bool {
        self.set.is_none()
    }

    /// Whether a number lies in one of the ranges.
    #[must_use]
    pub fn passes(&self, number: u64) -> bool {
        self.ranges.iter().any(|(first, last)| *first <= number && last.is_none_or(|last| number <= last))
    }
}

/// Which number of an object or track a [`RangeFilter`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RangeBy {
    /// Its subgroup.
    Subgroup,
    /// Its number in the group.
    Object,
    /// The publisher's priority; ranges beyond 255 are refused with the request.
    Priority,
    /// The property of the object that has this type, an even one; who lacks it does not pass.
    ObjectProperty(u64),
    /// The same of the track; only in SUBSCRIBE_TRACKS.
    TrackProperty(u64),
}

impl RangeBy {
    /// The number of the parameter.
    #[must_use]
    pub const fn kind(self) -> u64 {
        match self {
            Self::Subgroup => 0x25,
            Self::Object => 0x26,
            Self::Priority => 0x27,
            Self::ObjectProperty(_) => 0x28,
            Self::TrackProperty(_) => 0x29,
        }
    }
}

/// What authorises a request or a session (section 10.2.1). Its value is a secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// Forget what was registered under this alias.
    Delete {
        /// The sender's name for it.
        alias: u64,
    },
    /// Use this, and remember it under an alias.
    Register {
        /// The sender's name for it from now on.
        alias: u64,
        /// What kind of token; 0 is agreed on elsewhere.
        kind: u64,
        /// The token.
        value: Bytes,
    },
    /// Use what was registered under this alias.
    UseAlias {
        /// The sender's name for it.
        alias: u64,
    },
    /// Use this once.
    UseValue {
        /// What kind of token; 0 is agreed on elsewhere.
        kind: u64,
        /// The token.
        value: Bytes,
    },
}

impl Token {
    /// What a registered token takes of the room that MAX_AUTH_TOKEN_CACHE_SIZE grants (section 10.3.1.3).
    #[must_use]
    pub const fn cache_size(value: &Bytes) -> u64 {
        16 + value.len() as u64
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete { alias } => write!(f, "Delete({alias})"),
            Self::Register { alias, kind, value } => {
                write!(f, "Register({alias}, kind {kind}, {} bytes)", value.len())
            }
            Self::UseAlias { alias } => write!(f, "UseAlias({alias})"),
            Self::UseValue { kind, value } => write!(f, "UseValue(kind {kind}, {} bytes)", value.len()),
        }
    }
}

/// Properties of a track or an object, as they came: whoever forwards them forwards these bytes (section 2.5).
///
/// Always well formed: a sequence of types, each written as the distance from the one before, with their values.
/// `codec_property` reads and makes them.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Properties(pub(super) Bytes);

impl Properties {
    /// The bytes, without a length before them.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Properties({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Location = Location::new(7, 3);

    #[test]
    fn filters_resolve_against_the_largest_object() {
        assert_eq!(Filter::All.resolve(Some(AT)), (Location::START, None));
        assert_eq!(Filter::NextObject.resolve(Some(AT)), (Location::new(7, 4), None));
        assert_eq!(Filter::NextObject.resolve(None), (Location::START, None));
        assert_eq!(Filter::NextObject.resolve(Some(Location::end_of(7))), (Location::new(8, 0), None));
        assert_eq!(Filter::Relative(0).resolve(Some(AT)), (Location::new(8, 0), None));
        assert_eq!(Filter::Relative(1).resolve(Some(AT)), (Location::new(7, 0), None));
        assert_eq!(Filter::Relative(100).resolve(Some(AT)), (Location::START, None));
        assert_eq!(Filter::Relative(0).resolve(None), (Location::START, None));
        let groups = Filter::Groups { start: AT, end_group: 9 };
        assert_eq!(groups.resolve(None), (AT, Some(Location::end_of(9))));
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let mut params =
            Params { forward: Some(true), priority: Some(3), filter: Some(Filter::NextObject), ..Params::default() };
        params.update(&Params {
            forward: Some(false),
            tokens: vec![Token::UseAlias { alias: 1 }],
            ..Params::default()
        });
        assert_eq!(params.forward, Some(false));
        assert_eq!(params.priority, Some(3));
        assert_eq!(params.filter, Some(Filter::NextObject));
        assert!(params.tokens.is_empty());
    }

    #[test]
    fn an_update_replaces_or_removes_filters_of_a_kind_together() {
        let filter = |set, by, first| RangeFilter { set: Some(set), by, ranges: vec![(first, None)] };
        let mut params = Params {
            ranges: vec![filter(0, RangeBy::Object, 1), filter(1, RangeBy::Object, 2), filter(0, RangeBy::Subgroup, 3)],
            ..Params::default()
        };
        let new = vec![filter(0, RangeBy::Object, 9)];
        params.update(&Params { ranges: new, ..Params::default() });
        assert_eq!(params.ranges, [filter(0, RangeBy::Subgroup, 3), filter(0, RangeBy::Object, 9)]);
        let removal = vec![RangeFilter { set: None, by: RangeBy::Subgroup, ranges: Vec::new() }];
        params.update(&Params { ranges: removal, ..Params::default() });
        assert_eq!(params.ranges, [filter(0, RangeBy::Object, 9)]);
    }

    #[test]
    fn a_token_does_not_print_its_value() {
        let token = Token::UseValue { kind: 0, value: Bytes::from_static(b"hunter2") };
        assert_eq!(format!("{token:?}"), "UseValue(kind 0, 7 bytes)");
    }
}
