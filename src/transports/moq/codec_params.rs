//! Parameters of messages (section 10.2): which message of which draft may carry which, and how each is written.
//!
//! A parameter is its type, as the distance from the one before, and a value whose form belongs to the type. None can be
//! skipped, so one that is not known, or stands where it must not, ends the session; so do two of a kind that may be there
//! once. Filters by range that cannot be end their request alone.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::codec::{MAX_RANGES, MAX_VALUE, Mistake, Reader, Stop, Unsayable, put_varint};
use super::codec_name::{put_namespace, read_namespace};
use super::model::{Draft, FilterForm, GroupOrder, Location};
use super::model_params::{Fill, Filter, MAX_TOKENS, Params, RangeBy, RangeFilter, Token};

/// Numbers of parameters (section 15.7).
pub mod parameter {
    /// See [`Params::object_delivery_timeout`](super::Params::object_delivery_timeout).
    pub const OBJECT_DELIVERY_TIMEOUT: u64 = 0x02;
    /// See [`Params::tokens`](super::Params::tokens).
    pub const AUTHORIZATION_TOKEN: u64 = 0x03;
    /// See [`Params::rendezvous_timeout`](super::Params::rendezvous_timeout).
    pub const RENDEZVOUS_TIMEOUT: u64 = 0x04;
    /// See [`Params::subgroup_delivery_timeout`](super::Params::subgroup_delivery_timeout).
    pub const SUBGROUP_DELIVERY_TIMEOUT: u64 = 0x06;
    /// See [`Params::expires`](super::Params::expires).
    pub const EXPIRES: u64 = 0x08;
    /// See [`Params::largest`](super::Params::largest).
    pub const LARGEST_OBJECT: u64 = 0x09;
    /// See [`Params::fill_timeout`](super::Params::fill_timeout).
    pub const FILL_TIMEOUT: u64 = 0x0a;
    /// See [`Params::forward`](super::Params::forward).
    pub const FORWARD: u64 = 0x10;
    /// See [`Params::priority`](super::Params::priority).
    pub const SUBSCRIBER_PRIORITY: u64 = 0x20;
    /// See [`Params::filter`](super::Params::filter); from draft 19 LOCATION_FILTER.
    pub const SUBSCRIPTION_FILTER: u64 = 0x21;
    /// See [`Params::group_order`](super::Params::group_order).
    pub const GROUP_ORDER: u64 = 0x22;
    /// See [`Params::fill`](super::Params::fill).
    pub const FILL_PARAMETERS: u64 = 0x23;
    /// See [`RangeBy::Subgroup`](super::RangeBy::Subgroup).
    pub const SUBGROUP_FILTER: u64 = 0x25;
    /// See [`RangeBy::Object`](super::RangeBy::Object).
    pub const OBJECTID_FILTER: u64 = 0x26;
    /// See [`RangeBy::Priority`](super::RangeBy::Priority).
    pub const PRIORITY_FILTER: u64 = 0x27;
    /// See [`RangeBy::ObjectProperty`](super::RangeBy::ObjectProperty).
    pub const OBJECT_PROPERTY_FILTER: u64 = 0x28;
    /// See [`RangeBy::TrackProperty`](super::RangeBy::TrackProperty).
    pub const TRACK_PROPERTY_FILTER: u64 = 0x29;
    /// See [`Params::new_group`](super::Params::new_group).
    pub const NEW_GROUP_REQUEST: u64 = 0x32;
    /// See [`Params::prefix`](super::Params::prefix).
    pub const TRACK_NAMESPACE_PREFIX: u64 = 0x34;
    /// See [`Params::include_properties`](super::Params::include_properties).
    pub const INCLUDE_PROPERTIES: u64 = 0x35;
}

/// Where parameters stand: one bit for each kind of message, and for what REQUEST_OK and REQUEST_UPDATE answer or change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// SUBSCRIBE.
    pub const SUBSCRIBE: Self = Self(1);
    /// SUBSCRIBE_OK.
    pub const SUBSCRIBE_OK: Self = Self(1 << 1);
    /// PUBLISH.
    pub const PUBLISH: Self = Self(1 << 2);
    /// PUBLISH_STATE_NOTIFY.
    pub const NOTIFY: Self = Self(1 << 3);
    /// FETCH.
    pub const FETCH: Self = Self(1 << 4);
    /// FETCH_OK.
    pub const FETCH_OK: Self = Self(1 << 5);
    /// TRACK_STATUS.
    pub const TRACK_STATUS: Self = Self(1 << 6);
    /// PUBLISH_NAMESPACE.
    pub const PUBLISH_NAMESPACE: Self = Self(1 << 7);
    /// SUBSCRIBE_NAMESPACE.
    pub const SUBSCRIBE_NAMESPACE: Self = Self(1 << 8);
    /// SUBSCRIBE_TRACKS.
    pub const SUBSCRIBE_TRACKS: Self = Self(1 << 9);
    /// Within FILL_PARAMETERS.
    pub const FILL: Self = Self(1 << 10);
    /// REQUEST_UPDATE of a subscription, whoever began it.
    pub const UPDATE_SUBSCRIPTION: Self = Self(1 << 11);
    /// REQUEST_UPDATE of a fetch.
    pub const UPDATE_FETCH: Self = Self(1 << 12);
    /// REQUEST_UPDATE of PUBLISH_NAMESPACE.
    pub const UPDATE_PUBLISH_NAMESPACE: Self = Self(1 << 13);
    /// REQUEST_UPDATE of SUBSCRIBE_NAMESPACE.
    pub const UPDATE_SUBSCRIBE_NAMESPACE: Self = Self(1 << 14);
    /// REQUEST_UPDATE of SUBSCRIBE_TRACKS.
    pub const UPDATE_SUBSCRIBE_TRACKS: Self = Self(1 << 15);
    /// REQUEST_OK for PUBLISH.
    pub const PUBLISH_OK: Self = Self(1 << 16);
    /// REQUEST_OK for REQUEST_UPDATE.
    pub const UPDATE_OK: Self = Self(1 << 17);
    /// REQUEST_OK for TRACK_STATUS.
    pub const TRACK_STATUS_OK: Self = Self(1 << 18);
    /// REQUEST_OK for PUBLISH_NAMESPACE, SUBSCRIBE_NAMESPACE and SUBSCRIBE_TRACKS.
    pub const NAMESPACE_OK: Self = Self(1 << 19);

    /// REQUEST_UPDATE, whatever it changes.
    pub const UPDATE: Self = Self::UPDATE_SUBSCRIPTION
        .or(Self::UPDATE_FETCH)
        .or(Self::UPDATE_PUBLISH_NAMESPACE)
        .or(Self::UPDATE_SUBSCRIBE_NAMESPACE)
        .or(Self::UPDATE_SUBSCRIBE_TRACKS);
    /// REQUEST_OK, whatever it answers.
    pub const REQUEST_OK: Self = Self::PUBLISH_OK.or(Self::UPDATE_OK).or(Self::TRACK_STATUS_OK).or(Self::NAMESPACE_OK);

    const NONE: Self = Self(0);

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Millis,
    Number,
    Byte,
    Bool,
    Order,
    Token,
    Location,
    Filter,
    Fill,
    Range,
    Namespace,
}

/// A parameter: its number, its form, where it may stand in draft 18, and where from draft 20 on.
struct Row(u64, Form, Place, Place);

/// What a SUBSCRIBE may ask for in drafts 18 and 20, as far as both agree.
const SUB: Place = Place::SUBSCRIBE.or(Place::UPDATE_SUBSCRIPTION);
/// From draft 20, what a subscription begins with may also stand in SUBSCRIBE_TRACKS and the PUBLISH that follows.
const SUB_20: Place = SUB.or(Place::SUBSCRIBE_TRACKS);
const REQUESTS: Place = Place::SUBSCRIBE
    .or(Place::PUBLISH)
    .or(Place::FETCH)
    .or(Place::TRACK_STATUS)
    .or(Place::PUBLISH_NAMESPACE)
    .or(Place::SUBSCRIBE_NAMESPACE)
    .or(Place::SUBSCRIBE_TRACKS);
const RANGES: Place = SUB_20.or(Place::FETCH).or(Place::FILL);

/// In order of their numbers.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row(parameter::OBJECT_DELIVERY_TIMEOUT, Form::Millis, SUB.or(Place::PUBLISH_OK), SUB_20.or(Place::PUBLISH)),
    Row(parameter::AUTHORIZATION_TOKEN, Form::Token, REQUESTS.or(Place::UPDATE), REQUESTS.or(Place::UPDATE)),
    Row(parameter::RENDEZVOUS_TIMEOUT, Form::Millis, Place::SUBSCRIBE, Place::SUBSCRIBE.or(Place::SUBSCRIBE_TRACKS)),
    Row(parameter::SUBGROUP_DELIVERY_TIMEOUT, Form::Millis, SUB.or(Place::PUBLISH_OK), SUB_20.or(Place::PUBLISH)),
    Row(parameter::EXPIRES, Form::Millis,
        Place::SUBSCRIBE_OK.or(Place::PUBLISH).or(Place::PUBLISH_OK).or(Place::UPDATE_OK),
        Place::SUBSCRIBE_OK.or(Place::PUBLISH).or(Place::PUBLISH_OK).or(Place::UPDATE_OK).or(Place::NAMESPACE_OK)),
    Row(parameter::LARGEST_OBJECT, Form::Location,
        Place::SUBSCRIBE_OK.or(Place::PUBLISH).or(Place::UPDATE_OK).or(Place::TRACK_STATUS_OK),
        Place::SUBSCRIBE_OK.or(Place::PUBLISH).or(Place::UPDATE_OK).or(Place::TRACK_STATUS_OK).or(Place::NOTIFY)),
    Row(parameter::FILL_TIMEOUT, Form::Millis, Place::FETCH, Place::FETCH.or(Place::FILL)),
    Row(parameter::FORWARD, Form::Bool,
        SUB.or(Place::PUBLISH).or(Place::PUBLISH_OK).or(Place::SUBSCRIBE_TRACKS),
        SUB_20.or(Place::PUBLISH).or(Place::NOTIFY).or(Place::UPDATE_SUBSCRIBE_TRACKS)),
    Row(parameter::SUBSCRIBER_PRIORITY, Form::Byte,
        SUB.or(Place::FETCH).or(Place::UPDATE_FETCH).or(Place::PUBLISH_OK),
        SUB_20.or(Place::FETCH).or(Place::UPDATE_FETCH).or(Place::PUBLISH).or(Place::FILL)),
    Row(parameter::SUBSCRIPTION_FILTER, Form::Filter, SUB.or(Place::PUBLISH_OK),
        SUB_20.or(Place::FETCH).or(Place::PUBLISH).or(Place::NOTIFY).or(Place::FILL)),
    Row(parameter::GROUP_ORDER, Form::Order,
        Place::SUBSCRIBE.or(Place::PUBLISH_OK).or(Place::FETCH),
        Place::SUBSCRIBE.or(Place::SUBSCRIBE_TRACKS).or(Place::PUBLISH).or(Place::FETCH).or(Place::FILL)),
    Row(parameter::FILL_PARAMETERS, Form::Fill, Place::NONE, SUB_20),
    Row(parameter::SUBGROUP_FILTER, Form::Range, Place::NONE, RANGES),
    Row(parameter::OBJECTID_FILTER, Form::Range, Place::NONE, RANGES),
    Row(parameter::PRIORITY_FILTER, Form::Range, Place::NONE, RANGES),
    Row(parameter::OBJECT_PROPERTY_FILTER, Form::Range, Place::NONE, RANGES),
    Row(parameter::TRACK_PROPERTY_FILTER, Form::Range, Place::NONE,
        Place::SUBSCRIBE_TRACKS.or(Place::UPDATE_SUBSCRIBE_TRACKS)),
    Row(parameter::NEW_GROUP_REQUEST, Form::Number, SUB.or(Place::PUBLISH_OK), SUB_20),
    Row(parameter::TRACK_NAMESPACE_PREFIX, Form::Namespace,
        Place::UPDATE_SUBSCRIBE_NAMESPACE.or(Place::UPDATE_SUBSCRIBE_TRACKS),
        Place::UPDATE_SUBSCRIBE_NAMESPACE.or(Place::UPDATE_SUBSCRIBE_TRACKS)),
    Row(parameter::INCLUDE_PROPERTIES, Form::Bool, Place::NONE,
        Place::SUBSCRIBE.or(Place::TRACK_STATUS).or(Place::FETCH).or(Place::SUBSCRIBE_TRACKS)),
];

fn row(number: u64, draft: Draft) -> Option<(Form, Place)> {
    let Row(_, form, in_18, from_20) = TABLE.iter().find(|Row(found, ..)| *found == number)?;
    let places = if draft.profile().range_filters { *from_20 } else { *in_18 };
    (places != Place::NONE).then_some((*form, places))
}

/// What messages may carry beyond what the text of their draft says. Earlier releases of moq-net told the group order of a
/// track so; moq-net 0.3 and aiomoqt 0.13 still read it, and it costs nothing. moq-transport tells the publisher's timeouts
/// of objects so, which draft 18 makes properties of the track and draft 20 has here.
fn is_tolerated(number: u64, place: Place) -> bool {
    match number {
        parameter::GROUP_ORDER => Place::SUBSCRIBE_OK.or(Place::PUBLISH).or(Place::FETCH_OK).meets(place),
        parameter::OBJECT_DELIVERY_TIMEOUT => Place::PUBLISH.meets(place),
        _ => false,
    }
}

/// Which of these parameters does not belong into a message of that place; `None` if all do. For REQUEST_OK and
/// REQUEST_UPDATE, whose place is only known to who knows the request.
#[must_use]
pub fn misplaced(params: &Params, place: Place, draft: Draft) -> Option<u64> {
    let numbers = numbers_of(params);
    numbers.into_iter().find(|number| !row(*number, draft).is_some_and(|(_, places)| places.meets(place)))
}

/// The numbers of all parameters that are set, in ascending order, those of filters and tokens once for each.
fn numbers_of(params: &Params) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut note = |is_set: bool, number: u64| {
        if is_set {
            numbers.push(number);
        }
    };
    note(params.object_delivery_timeout.is_some(), parameter::OBJECT_DELIVERY_TIMEOUT);
    for _ in &params.tokens {
        note(true, parameter::AUTHORIZATION_TOKEN);
    }
    note(params.rendezvous_timeout.is_some(), parameter::RENDEZVOUS_TIMEOUT);
    note(params.subgroup_delivery_timeout.is_some(), parameter::SUBGROUP_DELIVERY_TIMEOUT);
    note(params.expires.is_some(), parameter::EXPIRES);
    note(params.largest.is_some(), parameter::LARGEST_OBJECT);
    note(params.fill_timeout.is_some(), parameter::FILL_TIMEOUT);
    note(params.forward.is_some(), parameter::FORWARD);
    note(params.priority.is_some(), parameter::SUBSCRIBER_PRIORITY);
    note(params.filter.is_some(), parameter::SUBSCRIPTION_FILTER);
    note(params.group_order.is_some(), parameter::GROUP_ORDER);
    note(params.fill.is_some(), parameter::FILL_PARAMETERS);
    for range in &params.ranges {
        note(true, range.by.kind());
    }
    note(params.new_group.is_some(), parameter::NEW_GROUP_REQUEST);
    note(params.prefix.is_some(), parameter::TRACK_NAMESPACE_PREFIX);
    note(params.include_properties.is_some(), parameter::INCLUDE_PROPERTIES);
    numbers.sort_unstable();
    numbers
}

/// Writes how many parameters there are, and each.
pub(super) fn put_params(params: &Params, place: Place, draft: Draft, out: &mut BytesMut) -> Result<(), Unsayable> {
    let numbers = numbers_of(params);
    put_varint(numbers.len() as u64, out);
    let mut tokens = params.tokens.iter();
    let mut ranges: Vec<_> = params.ranges.iter().collect();
    ranges.sort_by_key(|range| range.by.kind());
    let mut ranges = ranges.into_iter();
    let mut previous = 0;
    for number in numbers {
        let Some((_, places)) = row(number, draft) else {
            return Err(Unsayable::NotInDraft { what: "this parameter", draft });
        };
        if !places.meets(place) {
            return Err(Unsayable::Contradiction("a parameter of this message"));
        }
        put_varint(number - previous, out);
        previous = number;
        match number {
            parameter::OBJECT_DELIVERY_TIMEOUT => put_millis(params.object_delivery_timeout, out),
            parameter::AUTHORIZATION_TOKEN => {
                put_part(out, |out| tokens.next().map_or(Ok(()), |token| put_token(token, out)))?
            }
            parameter::RENDEZVOUS_TIMEOUT => put_millis(params.rendezvous_timeout, out),
            parameter::SUBGROUP_DELIVERY_TIMEOUT => put_millis(params.subgroup_delivery_timeout, out),
            parameter::EXPIRES => put_millis(params.expires, out),
            parameter::LARGEST_OBJECT => put_location(params.largest.unwrap_or_default(), out),
            parameter::FILL_TIMEOUT => put_millis(params.fill_timeout, out),
            parameter::FORWARD => out.extend_from_slice(&[u8::from(params.forward.unwrap_or(true))]),
            parameter::SUBSCRIBER_PRIORITY => out.extend_from_slice(&[params.priority.unwrap_or_default()]),
            parameter::SUBSCRIPTION_FILTER if draft.profile().filter == FilterForm::Bare => {
                put_bare_filter(params.filter.unwrap_or_default(), out)?;
            }
            parameter::SUBSCRIPTION_FILTER => {
                put_part(out, |out| put_filter(params.filter.unwrap_or_default(), draft, out))?;
            }
            parameter::GROUP_ORDER => out.extend_from_slice(&[params.group_order.unwrap_or_default().number()]),
            parameter::FILL_PARAMETERS => put_part(out, |out| match &params.fill {
                Some(fill) => put_params(&fill_params(fill), Place::FILL, draft, out),
                None => Ok(()),
            })?,
            parameter::NEW_GROUP_REQUEST => put_varint(params.new_group.unwrap_or_default(), out),
            parameter::TRACK_NAMESPACE_PREFIX => {
                let prefix = params.prefix.clone().unwrap_or_default();
                if draft.profile().prefix_has_length {
                    put_part(out, |out| {
                        put_namespace(&prefix, out);
                        Ok(())
                    })?;
                } else {
                    put_namespace(&prefix, out);
                }
            }
            parameter::INCLUDE_PROPERTIES => {
                out.extend_from_slice(&[u8::from(params.include_properties.unwrap_or(true))]);
            }
            _ => put_part(out, |out| ranges.next().map_or(Ok(()), |range| put_range(range, out)))?,
        }
    }
    Ok(())
}

/// Reads how many parameters there are, and each.
pub(super) fn read_params(reader: &mut Reader<'_>, place: Place, draft: Draft) -> Result<Params, Stop> {
    let mut params = Params::default();
    let count = reader.varint()?;
    let mut previous: Option<u64> = None;
    for _ in 0..count {
        let number = previous.unwrap_or(0).checked_add(reader.varint()?).ok_or(Mistake::Overflow)?;
        let (form, places) = row(number, draft).ok_or(Mistake::UnknownParameter(number))?;
        if !places.meets(place) && !is_tolerated(number, place) {
            return Err(Mistake::MisplacedParameter(number).into());
        }
        if previous == Some(number) && !matches!(form, Form::Token | Form::Range) {
            return Err(Mistake::Duplicate(number).into());
        }
        previous = Some(number);
        read_value(reader, number, form, draft, &mut params)?;
    }
    check_ranges(&params)?;
    Ok(params)
}

fn read_value(reader: &mut Reader<'_>, number: u64, form: Form, draft: Draft, params: &mut Params) -> Result<(), Stop> {
    match form {
        Form::Millis => {
            let time = Duration::from_millis(reader.varint()?);
            let field = match number {
                parameter::OBJECT_DELIVERY_TIMEOUT => &mut params.object_delivery_timeout,
                parameter::SUBGROUP_DELIVERY_TIMEOUT => &mut params.subgroup_delivery_timeout,
                parameter::RENDEZVOUS_TIMEOUT => &mut params.rendezvous_timeout,
                parameter::FILL_TIMEOUT => &mut params.fill_timeout,
                _ => &mut params.expires,
            };
            *field = Some(time);
        }
        Form::Number => params.new_group = Some(reader.varint()?),
        Form::Byte => params.priority = Some(reader.byte()?),
        Form::Bool => {
            let value = match reader.byte()? {
                0 => false,
                1 => true,
                _ => return Err(Mistake::InvalidValue(number).into()),
            };
            let field = if number == parameter::FORWARD { &mut params.forward } else { &mut params.include_properties };
            *field = Some(value);
        }
        Form::Order => {
            let order = GroupOrder::from_number(u64::from(reader.byte()?));
            params.group_order = Some(order.ok_or(Mistake::InvalidValue(number))?);
        }
        Form::Token => {
            let token = read_token(&mut reader.part()?).map_err(|_| Mistake::MalformedToken)?;
            if params.tokens.len() == MAX_TOKENS {
                return Err(Mistake::TooManyTokens.into());
            }
            params.tokens.push(token);
        }
        Form::Location => params.largest = Some(read_location(reader)?),
        Form::Filter if draft.profile().filter == FilterForm::Bare => params.filter = Some(read_bare_filter(reader)?),
        Form::Filter => params.filter = Some(within(reader.part()?, |part| read_filter(part, draft))?),
        Form::Fill => {
            let inner = within(reader.part()?, |part| read_params(part, Place::FILL, draft))?;
            params.fill = Some(Box::new(params_fill(inner)));
        }
        Form::Range => {
            let range = read_range(reader.part()?, number)?;
            params.ranges.push(range);
        }
        Form::Namespace => params.prefix = Some(read_prefix(reader)?),
    }
    Ok(())
}

/// Reads all of a part; what is left over, or missing, is wrong.
fn within<'a, T>(mut part: Reader<'a>, read: impl FnOnce(&mut Reader<'a>) -> Result<T, Stop>) -> Result<T, Stop> {
    let value = read(&mut part).map_err(Stop::at_end)?;
    if part.is_empty() { Ok(value) } else { Err(Mistake::TrailingBytes.into()) }
}

/// A token is all of its part, whose end is the end of the value (section 10.2.1).
pub(super) fn read_token(part: &mut Reader<'_>) -> Result<Token, Stop> {
    let token = match part.varint()? {
        0x0 => Token::Delete { alias: part.varint()? },
        0x1 => {
            let (alias, kind) = (part.varint()?, part.varint()?);
            Token::Register { alias, kind, value: Bytes::copy_from_slice(part.take_rest()) }
        }
        0x2 => Token::UseAlias { alias: part.varint()? },
        0x3 => Token::UseValue { kind: part.varint()?, value: Bytes::copy_from_slice(part.take_rest()) },
        _ => return Err(Mistake::MalformedToken.into()),
    };
    if part.is_empty() { Ok(token) } else { Err(Mistake::MalformedToken.into()) }
}

/// Writes a token without its length.
pub(super) fn put_token(token: &Token, out: &mut BytesMut) -> Result<(), Unsayable> {
    match token {
        Token::Delete { alias } => {
            put_varint(0x0, out);
            put_varint(*alias, out);
        }
        Token::Register { alias, kind, value } => {
            put_varint(0x1, out);
            put_varint(*alias, out);
            put_varint(*kind, out);
            out.extend_from_slice(value);
        }
        Token::UseAlias { alias } => {
            put_varint(0x2, out);
            put_varint(*alias, out);
        }
        Token::UseValue { kind, value } => {
            put_varint(0x3, out);
            put_varint(*kind, out);
            out.extend_from_slice(value);
        }
    }
    Ok(())
}

fn read_location(reader: &mut Reader<'_>) -> Result<Location, Stop> {
    Ok(Location::new(reader.varint()?, reader.varint()?))
}

fn put_location(location: Location, out: &mut BytesMut) {
    put_varint(location.group, out);
    put_varint(location.object, out);
}

/// Draft 18: a type and what it needs (section 5.1.2). From draft 19: up to four numbers, whose count says what they
/// mean.
fn read_filter(part: &mut Reader<'_>, draft: Draft) -> Result<Filter, Stop> {
    if draft.profile().filter == FilterForm::Typed {
        return Ok(match part.varint()? {
            0x1 => Filter::Relative(0),
            0x2 => Filter::NextObject,
            0x3 => Filter::From(read_location(part)?),
            0x4 => {
                let start = read_location(part)?;
                let end_group = start.group.checked_add(part.varint()?).ok_or(Mistake::Overflow)?;
                Filter::Groups { start, end_group }
            }
            _ => return Err(Mistake::InvalidValue(parameter::SUBSCRIPTION_FILTER).into()),
        });
    }
    if part.is_empty() {
        return Ok(Filter::All);
    }
    let group = part.varint()?;
    if part.is_empty() {
        return Ok(Filter::Relative(group));
    }
    let start = Location::new(group, part.varint()?);
    if part.is_empty() {
        return Ok(if start == Location::START { Filter::NextObject } else { Filter::From(start) });
    }
    let end_group = start.group.checked_add(part.varint()?).ok_or(Mistake::Overflow)?;
    if part.is_empty() {
        return Ok(Filter::Groups { start, end_group });
    }
    Ok(Filter::Range { start, end: Location::new(end_group, part.varint()?) })
}

/// Draft 22: a type, and what it needs.
fn read_bare_filter(reader: &mut Reader<'_>) -> Result<Filter, Stop> {
    Ok(match reader.varint()? {
        0x0 => Filter::All,
        0x1 => Filter::Relative(reader.varint()?),
        0x2 => Filter::From(read_location(reader)?),
        kind @ (0x3 | 0x4) => {
            let start = read_location(reader)?;
            let end_group = start.group.checked_add(reader.varint()?).ok_or(Mistake::Overflow)?;
            if kind == 0x3 {
                Filter::Groups { start, end_group }
            } else {
                Filter::Range { start, end: Location::new(end_group, reader.varint()?) }
            }
        }
        0x5 => Filter::NextObject,
        _ => return Err(Mistake::InvalidValue(parameter::SUBSCRIPTION_FILTER).into()),
    })
}

fn put_bare_filter(filter: Filter, out: &mut BytesMut) -> Result<(), Unsayable> {
    let kind = match filter {
        Filter::All => 0x0,
        Filter::Relative(_) => 0x1,
        Filter::From(_) => 0x2,
        Filter::Groups { .. } => 0x3,
        Filter::Range { .. } => 0x4,
        Filter::NextObject => 0x5,
    };
    put_varint(kind, out);
    match filter {
        Filter::All | Filter::NextObject => {}
        Filter::Relative(groups) => put_varint(groups, out),
        Filter::From(start) => put_location(start, out),
        Filter::Groups { start, end_group } => put_groups(start, end_group, out)?,
        Filter::Range { start, end } => {
            put_groups(start, end.group, out)?;
            put_varint(end.object, out);
        }
    }
    Ok(())
}

/// Where a range begins, and how many groups on it ends.
fn put_groups(start: Location, end_group: u64, out: &mut BytesMut) -> Result<(), Unsayable> {
    let groups = end_group.checked_sub(start.group);
    put_location(start, out);
    put_varint(groups.ok_or(Unsayable::Contradiction("a filter that ends before it begins"))?, out);
    Ok(())
}

fn put_filter(filter: Filter, draft: Draft, out: &mut BytesMut) -> Result<(), Unsayable> {
    if draft.profile().filter == FilterForm::Typed {
        match filter {
            Filter::Relative(0) => put_varint(0x1, out),
            Filter::NextObject => put_varint(0x2, out),
            // Section 5.1.2: from the very first object on is the same as no filter.
            Filter::All | Filter::From(_) => {
                put_varint(0x3, out);
                put_location(filter.resolve(None).0, out);
            }
            Filter::Groups { start, end_group } => {
                put_varint(0x4, out);
                put_groups(start, end_group, out)?;
            }
            Filter::Relative(_) | Filter::Range { .. } => {
                return Err(Unsayable::NotInDraft { what: "this filter", draft });
            }
        }
        return Ok(());
    }
    match filter {
        // Two zeros would be the next object; from the very first on is no filter (draft 20, section 5.1.2).
        Filter::All | Filter::From(Location::START) => {}
        Filter::NextObject => put_location(Location::START, out),
        Filter::Relative(groups) => put_varint(groups, out),
        Filter::From(start) => put_location(start, out),
        Filter::Groups { start, end_group } => put_groups(start, end_group, out)?,
        Filter::Range { start, end } => {
            put_groups(start, end.group, out)?;
            put_varint(end.object, out);
        }
    }
    Ok(())
}

/// Reads all of a range filter (draft 20, section 5.1.4). What cannot be in it refuses the request, not more.
fn read_range(mut part: Reader<'_>, number: u64) -> Result<RangeFilter, Mistake> {
    let by_number = |kind| match number {
        parameter::SUBGROUP_FILTER => RangeBy::Subgroup,
        parameter::OBJECTID_FILTER => RangeBy::Object,
        parameter::PRIORITY_FILTER => RangeBy::Priority,
        parameter::OBJECT_PROPERTY_FILTER => RangeBy::ObjectProperty(kind),
        _ => RangeBy::TrackProperty(kind),
    };
    if part.is_empty() {
        return Ok(RangeFilter { set: None, by: by_number(0), ranges: Vec::new() });
    }
    let set = Some(part.byte().map_err(Stop::at_end)?);
    let has_kind = matches!(number, parameter::OBJECT_PROPERTY_FILTER | parameter::TRACK_PROPERTY_FILTER);
    let kind = if has_kind { part.varint().map_err(Stop::at_end)? } else { 0 };
    let mut ranges = Vec::new();
    let mut previous = 0u64;
    while !part.is_empty() {
        if ranges.len() == MAX_RANGES {
            return Err(Mistake::InvalidFilter);
        }
        let first = previous.checked_add(part.varint().map_err(Stop::at_end)?).ok_or(Mistake::InvalidFilter)?;
        if part.is_empty() {
            ranges.push((first, None));
            break;
        }
        let last = first.checked_add(part.varint().map_err(Stop::at_end)?).ok_or(Mistake::InvalidFilter)?;
        ranges.push((first, Some(last)));
        previous = last;
    }
    Ok(RangeFilter { set, by: by_number(kind), ranges })
}

fn put_range(range: &RangeFilter, out: &mut BytesMut) -> Result<(), Unsayable> {
    const WRONG: Unsayable = Unsayable::Contradiction("a range filter");
    let Some(set) = range.set else { return Ok(()) };
    out.extend_from_slice(&[set]);
    if let RangeBy::ObjectProperty(kind) | RangeBy::TrackProperty(kind) = range.by {
        put_varint(kind, out);
    }
    let mut previous = Some(0);
    for (first, last) in &range.ranges {
        // Behind an open range nothing can follow.
        put_varint(previous.and_then(|previous| first.checked_sub(previous)).ok_or(WRONG)?, out);
        if let Some(last) = last {
            put_varint(last.checked_sub(*first).ok_or(WRONG)?, out);
        }
        previous = *last;
    }
    Ok(())
}

/// What the filters of a message must not be together or each for itself (draft 20, sections 5.1.4 and 10.2.14 on).
fn check_ranges(params: &Params) -> Result<(), Mistake> {
    let mut seen: Vec<(u8, RangeBy)> = Vec::new();
    let mut count = 0;
    for range in &params.ranges {
        let Some(set) = range.set else { continue };
        count += range.ranges.len();
        let odd = matches!(range.by, RangeBy::ObjectProperty(kind) | RangeBy::TrackProperty(kind) if kind % 2 == 1);
        let beyond = range.by == RangeBy::Priority
            && range.ranges.iter().any(|(first, last)| last.unwrap_or(*first).max(*first) > 255);
        if odd || beyond || count > MAX_RANGES || seen.len() == MAX_RANGES || seen.contains(&(set, range.by)) {
            return Err(Mistake::InvalidFilter);
        }
        seen.push((set, range.by));
    }
    Ok(())
}

/// The prefix is the last parameter of its message. Implementations disagree whether its length stands before it
/// (aiomoqt 0.13 says so for drafts 18 and 20, not for 22; the text does not); no bytes can be read both ways, because a field takes
/// two bytes at least.
fn read_prefix(reader: &mut Reader<'_>) -> Result<super::model_names::Namespace, Stop> {
    let mut with_length = reader.clone();
    if let Ok(part) = with_length.part()
        && with_length.is_empty()
        && let Ok(namespace) = within(part, read_namespace)
    {
        *reader = with_length;
        return Ok(namespace);
    }
    read_namespace(reader)
}

fn fill_params(fill: &Fill) -> Params {
    Params {
        fill_timeout: fill.fill_timeout,
        priority: fill.priority,
        filter: fill.filter,
        group_order: fill.group_order,
        ranges: fill.ranges.clone(),
        ..Params::default()
    }
}

fn params_fill(params: Params) -> Fill {
    Fill {
        fill_timeout: params.fill_timeout,
        priority: params.priority,
        filter: params.filter,
        group_order: params.group_order,
        ranges: params.ranges,
    }
}

/// Milliseconds: what is more than can be written is the most, what is less than one is one.
pub(super) fn millis(time: Duration) -> u64 {
    let rounded = time.as_nanos().div_ceil(1_000_000);
    u64::try_from(rounded).unwrap_or(u64::MAX)
}

fn put_millis(time: Option<Duration>, out: &mut BytesMut) {
    put_varint(millis(time.unwrap_or_default()), out);
}

/// Writes something after its length.
pub(super) fn put_part(
    out: &mut BytesMut,
    put: impl FnOnce(&mut BytesMut) -> Result<(), Unsayable>,
) -> Result<(), Unsayable> {
    let mut part = BytesMut::new();
    put(&mut part)?;
    if part.len() > MAX_VALUE {
        return Err(Unsayable::TooLong("a parameter"));
    }
    put_varint(part.len() as u64, out);
    out.extend_from_slice(&part);
    Ok(())
}

#[cfg(test)]
impl Params {
    /// Those of them that may stand there.
    pub(super) fn kept_at(mut self, place: Place, draft: Draft) -> Self {
        while let Some(number) = misplaced(&self, place, draft) {
            let none = Self::default();
            match number {
                parameter::OBJECT_DELIVERY_TIMEOUT => self.object_delivery_timeout = none.object_delivery_timeout,
                parameter::AUTHORIZATION_TOKEN => self.tokens = none.tokens,
                parameter::RENDEZVOUS_TIMEOUT => self.rendezvous_timeout = none.rendezvous_timeout,
                parameter::SUBGROUP_DELIVERY_TIMEOUT => self.subgroup_delivery_timeout = none.subgroup_delivery_timeout,
                parameter::EXPIRES => self.expires = none.expires,
                parameter::LARGEST_OBJECT => self.largest = none.largest,
                parameter::FILL_TIMEOUT => self.fill_timeout = none.fill_timeout,
                parameter::FORWARD => self.forward = none.forward,
                parameter::SUBSCRIBER_PRIORITY => self.priority = none.priority,
                parameter::SUBSCRIPTION_FILTER => self.filter = none.filter,
                parameter::GROUP_ORDER => self.group_order = none.group_order,
                parameter::FILL_PARAMETERS => self.fill = none.fill,
                parameter::NEW_GROUP_REQUEST => self.new_group = none.new_group,
                parameter::TRACK_NAMESPACE_PREFIX => self.prefix = none.prefix,
                parameter::INCLUDE_PROPERTIES => self.include_properties = none.include_properties,
                _ => self.ranges.retain(|range| range.by.kind() != number),
            }
        }
        self
    }
}
