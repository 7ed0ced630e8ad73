//! Streams that answer a fetch (section 11.4.4): after the head of `codec_stream`, objects in order of their locations, and
//! ends of ranges in which there is nothing, or nothing is known.
//!
//! Fields that are as in the object before are left out, so both ends remember it. Objects pass through as on subgroup
//! streams: the head, then the payload in pieces.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Gather, MAX_PROPERTIES, Mistake, Reader, Stop, Unsayable, put_varint};
use super::codec_subgroup::{Piece, take_payload};
use super::model::{Draft, GroupOrder, Location};
use super::model_params::Properties;

/// Bits of the flags of an object.
mod bit {
    pub(super) const SUBGROUP: u64 = 0x03;
    pub(super) const SUBGROUP_PRIOR: u64 = 0x01;
    pub(super) const SUBGROUP_NEXT: u64 = 0x02;
    pub(super) const SUBGROUP_GIVEN: u64 = 0x03;
    pub(super) const OBJECT: u64 = 0x04;
    pub(super) const GROUP: u64 = 0x08;
    pub(super) const PRIORITY: u64 = 0x10;
    pub(super) const PROPERTIES: u64 = 0x20;
    pub(super) const DATAGRAM: u64 = 0x40;
    pub(super) const ALL: u64 = 0x7f;
}

/// What stands in place of flags at the end of a range.
mod end {
    pub(super) const MISSING: u64 = 0x8c;
    pub(super) const UNKNOWN: u64 = 0x10c;
    pub(super) const TIMED_OUT: u64 = 0x20c;
}

/// What a fetch delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchItem {
    /// An object.
    Object(FetchObject),
    /// Nothing between the item before, if any, and here.
    Gap {
        /// The last location of it.
        end: Location,
        /// Why nothing.
        why: Gap,
    },
}

impl FetchItem {
    /// Where it is, or ends.
    #[must_use]
    pub const fn at(&self) -> Location {
        match self {
            Self::Object(object) => object.at,
            Self::Gap { end, .. } => *end,
        }
    }
}

/// The head of an object in a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchObject {
    /// Where it is.
    pub at: Location,
    /// Its subgroup; `None` if it is one that goes in a datagram.
    pub subgroup: Option<u64>,
    /// The publisher's priority.
    pub priority: u8,
    /// Its properties, well formed.
    pub properties: Properties,
    /// Bytes of payload that follow.
    pub length: u64,
}

/// Why there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gap {
    /// There are no such objects, and will be none.
    Missing,
    /// Whether there are any cannot be found out.
    Unknown,
    /// They did not come in time. From draft 20; written as unknown where that is not known.
    TimedOut,
}

/// What both ends remember of items before.
#[derive(Debug, Clone, Copy, Default)]
struct Prior {
    at: Option<Location>,
    /// Of the last object; 0 if that goes in datagrams.
    subgroup: Option<u64>,
    priority: Option<u8>,
}

impl Prior {
    const fn remember(&mut self, item: &FetchItem) {
        self.at = Some(item.at());
        if let FetchItem::Object(object) = item {
            self.subgroup = match object.subgroup {
                None => Some(0),
                given => given,
            };
            self.priority = Some(object.priority);
        }
    }
}

/// Reads the stream of one fetch, behind its head.
#[derive(Debug)]
pub struct FetchDecoder {
    order: GroupOrder,
    draft: Draft,
    prior: Prior,
    left: u64,
    gather: Gather,
}

/// An item whose properties are not looked into yet: where they begin, and how many bytes they have.
struct Fields {
    item: FetchItem,
    properties: (usize, usize),
}

impl FetchDecoder {
    /// A decoder for a fetch that asked for this order.
    #[must_use]
    pub fn new(order: GroupOrder, draft: Draft) -> Self {
        Self { order, draft, prior: Prior::default(), left: 0, gather: Gather::default() }
    }

    /// Reads what comes next from the front of `input`, of which it takes what it needs: call it until it says `None`,
    /// then come again with more.
    ///
    /// # Errors
    /// [`Mistake`]; the decoder is then of no more use.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Piece<FetchItem>>, Mistake> {
        if self.left > 0 {
            return Ok(take_payload(&mut self.left, input));
        }
        let (prior, order, draft) = (self.prior, self.order, self.draft);
        let Some((fields, raw)) = self.gather.head(input, |reader| read_item(reader, prior, order, draft))? else {
            return Ok(None);
        };
        let Fields { mut item, properties: (from, length) } = fields;
        if let FetchItem::Object(object) = &mut item {
            let bytes = raw.get(from..from + length).map(|bytes| raw.slice_ref(bytes)).unwrap_or_default();
            object.properties = Properties::of_object(bytes, object.at)?;
            self.left = object.length;
        }
        self.prior.remember(&item);
        Ok(Some(Piece::Head(item)))
    }

    /// Bytes of payload that the current object still needs.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// The stream has ended properly.
    ///
    /// # Errors
    /// [`Mistake::CutOff`] if it must not end here: in the middle of an item (section 11.4).
    pub fn finish(&self) -> Result<(), Mistake> {
        if self.left == 0 && self.gather.is_empty() { Ok(()) } else { Err(Mistake::CutOff) }
    }
}

fn read_item(reader: &mut Reader<'_>, prior: Prior, order: GroupOrder, draft: Draft) -> Result<Fields, Stop> {
    let all = reader.remaining();
    let flags = reader.varint()?;
    let gap = match flags {
        end::MISSING => Some(Gap::Missing),
        end::UNKNOWN => Some(Gap::Unknown),
        end::TIMED_OUT if draft.profile().range_filters => Some(Gap::TimedOut),
        _ => None,
    };
    if let Some(why) = gap {
        let end = Location::new(reader.varint()?, reader.varint()?);
        return Ok(Fields { item: FetchItem::Gap { end, why }, properties: (0, 0) });
    }
    if flags & !bit::ALL != 0 {
        return Err(Mistake::UnknownFetchFlags(flags).into());
    }
    let group = match (flags & bit::GROUP != 0, prior.at) {
        (false, Some(at)) => at.group,
        (true, None) => reader.varint()?,
        (true, Some(at)) => {
            let step = reader.varint()?.checked_add(1).ok_or(Mistake::Overflow)?;
            let group = match order {
                GroupOrder::Ascending => at.group.checked_add(step),
                GroupOrder::Descending => at.group.checked_sub(step),
            };
            group.ok_or(Mistake::Overflow)?
        }
        (false, None) => return Err(Mistake::NothingBefore.into()),
    };
    let subgroup = if flags & bit::DATAGRAM != 0 {
        None
    } else {
        Some(match flags & bit::SUBGROUP {
            bit::SUBGROUP_GIVEN => reader.varint()?,
            bit::SUBGROUP_PRIOR => prior.subgroup.ok_or(Mistake::NothingBefore)?,
            bit::SUBGROUP_NEXT => {
                let before = prior.subgroup.ok_or(Mistake::NothingBefore)?;
                before.checked_add(1).ok_or(Mistake::Overflow)?
            }
            _ => 0,
        })
    };
    let object = match (flags & bit::OBJECT != 0, prior.at) {
        (false, Some(at)) => at.object.checked_add(1).ok_or(Mistake::Overflow)?,
        (false, None) => return Err(Mistake::NothingBefore.into()),
        // In the same group it is a distance, else a number.
        (true, Some(at)) if flags & bit::GROUP == 0 => {
            at.object.checked_add(reader.varint()?).ok_or(Mistake::Overflow)?
        }
        (true, _) => reader.varint()?,
    };
    let priority =
        if flags & bit::PRIORITY != 0 { reader.byte()? } else { prior.priority.ok_or(Mistake::NothingBefore)? };
    let mut properties = (0, 0);
    if flags & bit::PROPERTIES != 0 {
        let bytes = reader.bytes(MAX_PROPERTIES, Mistake::PropertiesTooLong)?;
        properties = (all - reader.remaining() - bytes.len(), bytes.len());
    }
    let length = reader.varint()?;
    let at = Location::new(group, object);
    let item = FetchItem::Object(FetchObject { at, subgroup, priority, properties: Properties::default(), length });
    Ok(Fields { item, properties })
}

/// Writes the items of one fetch's stream, behind its head. Payload goes behind each object, as long as it says.
#[derive(Debug)]
pub struct FetchEncoder {
    order: GroupOrder,
    draft: Draft,
    prior: Prior,
}

impl FetchEncoder {
    /// An encoder for a fetch that asked for this order.
    #[must_use]
    pub fn new(order: GroupOrder, draft: Draft) -> Self {
        Self { order, draft, prior: Prior::default() }
    }

    /// Writes an item, as short as the one before allows.
    ///
    /// # Errors
    /// [`Unsayable`] if it does not follow the one before in the order of the fetch; nothing is written then.
    pub fn put(&mut self, item: &FetchItem, out: &mut BytesMut) -> Result<(), Unsayable> {
        const UNORDERED: Unsayable = Unsayable::Contradiction("an item out of the order of its fetch");
        let at = item.at();
        let step = self.prior.at.map(|before| match self.order {
            GroupOrder::Ascending => at.group.checked_sub(before.group),
            GroupOrder::Descending => before.group.checked_sub(at.group),
        });
        let step = match step {
            None => None,
            Some(step) => Some(step.ok_or(UNORDERED)?),
        };
        if step == Some(0) && self.prior.at.is_some_and(|before| at.object <= before.object) {
            return Err(UNORDERED);
        }
        match item {
            FetchItem::Gap { end, why } => {
                put_varint(self.gap(*why), out);
                put_varint(end.group, out);
                put_varint(end.object, out);
            }
            FetchItem::Object(object) => self.put_object(object, step, out)?,
        }
        self.prior.remember(item);
        Ok(())
    }

    const fn gap(&self, why: Gap) -> u64 {
        match why {
            Gap::Missing => end::MISSING,
            Gap::TimedOut if self.draft.profile().range_filters => end::TIMED_OUT,
            Gap::Unknown | Gap::TimedOut => end::UNKNOWN,
        }
    }

    /// `step`: how many groups it is from the item before, if there is one.
    fn put_object(&self, object: &FetchObject, step: Option<u64>, out: &mut BytesMut) -> Result<(), Unsayable> {
        if object.properties.as_bytes().len() > MAX_PROPERTIES {
            return Err(Unsayable::TooLong("properties of an object"));
        }
        let at = object.at;
        let group = match step {
            None => Some(at.group),
            Some(step) => step.checked_sub(1),
        };
        let before = self.prior.at.map_or(0, |before| before.object);
        let number = if group.is_some() {
            Some(at.object)
        } else {
            Some(at.object.saturating_sub(before)).filter(|distance| *distance != 1)
        };
        let priority = Some(object.priority).filter(|priority| self.prior.priority != Some(*priority));
        let mut flags = match (object.subgroup, self.prior.subgroup) {
            (None, _) => bit::DATAGRAM,
            (Some(0), _) => 0,
            (Some(subgroup), Some(before)) if subgroup == before => bit::SUBGROUP_PRIOR,
            (Some(subgroup), Some(before)) if subgroup.checked_sub(1) == Some(before) && before > 0 => {
                bit::SUBGROUP_NEXT
            }
            (Some(_), _) => bit::SUBGROUP_GIVEN,
        };
        for (set, flag) in [
            (group.is_some(), bit::GROUP),
            (number.is_some(), bit::OBJECT),
            (priority.is_some(), bit::PRIORITY),
            (!object.properties.is_empty(), bit::PROPERTIES),
        ] {
            if set {
                flags |= flag;
            }
        }
        put_varint(flags, out);
        if let Some(group) = group {
            put_varint(group, out);
        }
        if flags & (bit::SUBGROUP | bit::DATAGRAM) == bit::SUBGROUP_GIVEN {
            put_varint(object.subgroup.unwrap_or_default(), out);
        }
        if let Some(number) = number {
            put_varint(number, out);
        }
        if let Some(priority) = priority {
            out.put_u8(priority);
        }
        if !object.properties.is_empty() {
            put_varint(object.properties.as_bytes().len() as u64, out);
            out.extend_from_slice(object.properties.as_bytes());
        }
        put_varint(object.length, out);
        Ok(())
    }
}

#[cfg(test)]
#[path = "codec_fetch_tests.rs"]
mod tests;
