//! What both ends of MoQT speak about, whatever the draft: which draft, where an object lies, what state it is in.
//!
//! Nothing here is bytes: [`Profile`] says what a draft knows and how it spells it, the files beside (`codec*`) write
//! and read it. Section numbers are those of draft-ietf-moq-transport-18 unless another is named.

use std::fmt;

/// A draft of MoQT that is spoken here. Ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Draft {
    /// draft-ietf-moq-transport-18, `moqt-18`.
    D18,
    /// draft-ietf-moq-transport-20, `moqt-20`.
    D20,
    /// draft-ietf-moq-transport-22, `moqt-22`: [`UNCONFIRMED`](Self::UNCONFIRMED).
    D22,
}

impl Draft {
    /// All that are offered and accepted, the newest first: the order in which they are preferred.
    pub const ALL: &'static [Self] = &[Self::D20, Self::D18];

    /// Those that are read and written, but not agreed on with peers: known from implementations alone, here what aiomoqt
    /// 0.13 and moq-net 0.3 have in common, and not from their text.
    pub const UNCONFIRMED: &'static [Self] = &[Self::D22];

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::D18 => 18,
            Self::D20 => 20,
            Self::D22 => 22,
        }
    }

    /// What TLS (ALPN) and WebTransport (`WT-Available-Protocols`) call it (section 3.1).
    #[must_use]
    pub const fn alpn(self) -> &'static str {
        match self {
            Self::D18 => "moqt-18",
            Self::D20 => "moqt-20",
            Self::D22 => "moqt-22",
        }
    }

    /// The draft of this name; `None` if it is not spoken here.
    #[must_use]
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|draft| draft.alpn().as_bytes() == name)
    }

    /// The newest draft among those that a peer offers; `None` if there is none in common.
    #[must_use]
    pub fn newest_of<'a>(offered: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        offered.into_iter().filter_map(Self::from_alpn).max()
    }

    /// What this draft knows and how it spells it.
    #[must_use]
    pub const fn profile(self) -> &'static Profile {
        match self {
            Self::D18 => &D18,
            Self::D20 => &D20,
            Self::D22 => &D22,
        }
    }
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.alpn())
    }
}

/// One row of the table of drafts: everything in which they differ and that more than one place must know.
///
/// Which parameter belongs into which message is a table of the codec; numbers of codes are in `model_codes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// The draft of this row.
    pub draft: Draft,
    /// FETCH has three forms, one standalone and two that join a subscription. Where not, it has one, its range is a
    /// filter, and a subscription asks for the past with [`Fill`](super::model_params::Fill).
    pub joining_fetch: bool,
    /// The end of a fetched range is written as the last object plus one, and 0 for a whole group; where not, as it is.
    pub end_is_exclusive: bool,
    /// What a publisher calls "more streams than I counted" in PUBLISH_DONE.
    pub uncounted_streams: u64,
    /// GOAWAY on a control stream names the first request that was not looked at.
    pub goaway_names_request: bool,
    /// PUBLISH is accepted with the subscriber's wishes; where not, only with an expiry, and the wishes follow in
    /// REQUEST_UPDATE.
    pub publish_ok_has_wishes: bool,
    /// A track may be subscribed to more than once in a session, each time with a request of its own.
    pub many_subscriptions: bool,
    /// The publisher tells what changed on its own side: PUBLISH_STATE_NOTIFY.
    pub state_notify: bool,
    /// A FIN from the one who asked for namespaces or tracks gives that up. All other requests, and those too where not,
    /// it only tells that no more will be said: moq-transport sends it right behind its SUBSCRIBE.
    pub fin_cancels: bool,
    /// Two messages of older drafts are read that peers still send, or the text still lists: PUBLISH_OK as what answers a
    /// PUBLISH, and UNSUBSCRIBE.
    pub reads_older: bool,
    /// Range filters, fills and INCLUDE_PROPERTIES exist, a fetch can tell that objects came too late, and a subscription
    /// begins with what PUBLISH says.
    pub range_filters: bool,
    /// How a filter by location is written.
    pub filter: FilterForm,
    /// The new prefix in an update is written with its length before it.
    pub prefix_has_length: bool,
}

/// How a [`Filter`](super::model_params::Filter) is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterForm {
    /// After its length, a type from 1 to 4 and what it needs (draft 18).
    Typed,
    /// After its length, up to four numbers, whose count says what they mean (drafts 19 to 21).
    Counted,
    /// Without a length, a type from 0 to 5 and what it needs (draft 22).
    Bare,
}

const D18: Profile = Profile {
    draft: Draft::D18,
    joining_fetch: true,
    end_is_exclusive: true,
    uncounted_streams: (1 << 62) - 1,
    goaway_names_request: true,
    publish_ok_has_wishes: true,
    many_subscriptions: false,
    state_notify: false,
    fin_cancels: true,
    reads_older: true,
    range_filters: false,
    filter: FilterForm::Typed,
    prefix_has_length: true,
};

const D20: Profile = Profile {
    draft: Draft::D20,
    joining_fetch: false,
    end_is_exclusive: false,
    uncounted_streams: u64::MAX,
    goaway_names_request: false,
    publish_ok_has_wishes: false,
    many_subscriptions: true,
    state_notify: true,
    fin_cancels: false,
    reads_older: false,
    range_filters: true,
    filter: FilterForm::Counted,
    prefix_has_length: true,
};

const D22: Profile = Profile { draft: Draft::D22, filter: FilterForm::Bare, prefix_has_length: false, ..D20 };

/// Where an object lies in its track. Ordered: by group, then by object (section 1.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Location {
    /// Its group.
    pub group: u64,
    /// Its number within the group.
    pub object: u64,
}

impl Location {
    /// The first of all.
    pub const START: Self = Self { group: 0, object: 0 };

    /// A location.
    #[must_use]
    pub const fn new(group: u64, object: u64) -> Self {
        Self { group, object }
    }

    /// Beyond the last object of a group: as the end of a range it means the whole group.
    #[must_use]
    pub const fn end_of(group: u64) -> Self {
        Self { group, object: u64::MAX }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.object)
    }
}

/// Whether an object is one, or says that no more come (section 11.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ObjectStatus {
    /// An object, perhaps of 0 bytes.
    #[default]
    Normal,
    /// Its group has no object here nor behind it.
    EndOfGroup,
    /// Its track has no object here nor behind it.
    EndOfTrack,
}

impl ObjectStatus {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Normal => 0x0,
            Self::EndOfGroup => 0x3,
            Self::EndOfTrack => 0x4,
        }
    }

    /// The status of this number; `None` for those that no draft defines.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0x0 => Some(Self::Normal),
            0x3 => Some(Self::EndOfGroup),
            0x4 => Some(Self::EndOfTrack),
            _ => None,
        }
    }
}

/// Which groups go first when not all can go at once (section 7.1), and in which order a fetch delivers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GroupOrder {
    /// The older.
    #[default]
    Ascending,
    /// The newer.
    Descending,
}

impl GroupOrder {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Ascending => 0x1,
            Self::Descending => 0x2,
        }
    }

    /// The order of this number; any other ends the session.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0x1 => Some(Self::Ascending),
            0x2 => Some(Self::Descending),
            _ => None,
        }
    }
}

/// Which end of the session something comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Opened the connection; its requests have even numbers.
    Client,
    /// Accepted it; its requests have odd numbers.
    Server,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// The number of its first request; each further one has 2 more (section 10.1).
    #[must_use]
    pub const fn first_request(self) -> u64 {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }

    /// Whether a request of this number may come from here.
    #[must_use]
    pub const fn owns_request(self, id: u64) -> bool {
        id % 2 == self.first_request()
    }
}

/// The priority of what names none, of publishers and subscribers alike (sections 10.2.7 and 12.4). Lower goes first.
pub const DEFAULT_PRIORITY: u8 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_draft_is_chosen() {
        let newest = |offered: &[&'static str]| Draft::newest_of(offered.iter().map(|name| name.as_bytes()));
        assert_eq!(newest(&["moqt-18", "moqt-20", "h3"]), Some(Draft::D20));
        assert_eq!(newest(&["moqt-20", "moqt-18"]), Some(Draft::D20));
        assert_eq!(newest(&["moqt-16", "moqt-18"]), Some(Draft::D18));
        assert_eq!(newest(&["moqt-16", "moq-00", "h3"]), None);
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn drafts_are_listed_newest_first_each_with_its_own_row() {
        assert!(Draft::ALL.is_sorted_by(|newer, older| newer > older));
        for draft in Draft::ALL.iter().chain(Draft::UNCONFIRMED) {
            assert_eq!(draft.profile().draft, *draft);
            assert_eq!(draft.alpn(), format!("moqt-{}", draft.number()));
            let agreed = Some(*draft).filter(|draft| Draft::ALL.contains(draft));
            assert_eq!(Draft::from_alpn(draft.alpn().as_bytes()), agreed);
        }
    }

    #[test]
    fn locations_are_ordered_by_group_then_object() {
        assert!(Location::new(1, 9) < Location::new(2, 0));
        assert!(Location::new(2, 0) < Location::new(2, 1));
        assert!(Location::new(2, u64::MAX - 1) < Location::end_of(2));
        assert!(Location::end_of(2) < Location::new(3, 0));
    }

    #[test]
    fn requests_belong_to_the_side_of_their_parity() {
        assert!(Side::Client.owns_request(0) && Side::Client.owns_request(42));
        assert!(Side::Server.owns_request(1) && !Side::Server.owns_request(2));
        assert_eq!(Side::Client.peer(), Side::Server);
    }
}
