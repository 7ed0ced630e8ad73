//! Reads one table of the file, key by key, and notes every mistake instead of stopping at the first.
//!
//! Each method judges one value on its own: its type, its unit, its range. What values mean together is for `check`.
//! A value that is wrong comes back as [`Field::Bad`], so that nobody reports a second mistake because of the first.
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::shape::{Shape, Takes};
use super::text::{self, Env, Text};
use super::words::{in_code, nearest, nearest_or_list};
use crate::gateway::report::{Mistakes, Span};
use crate::gateway::units;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Field<T> {
    Absent,
    /// Present and wrong; the mistake is noted.
    Bad,
    Is(At<T>),
}

impl<T> Field<T> {
    pub(crate) fn at(self) -> Option<At<T>> {
        match self {
            Self::Is(at) => Some(at),
            Self::Absent | Self::Bad => None,
        }
    }

    pub(crate) fn value(self) -> Option<T> {
        self.at().map(|at| at.value)
    }

    pub(crate) fn and_then<U>(self, f: impl FnOnce(At<T>) -> Field<U>) -> Field<U> {
        match self {
            Self::Absent => Field::Absent,
            Self::Bad => Field::Bad,
            Self::Is(at) => f(at),
        }
    }
}

/// What all tables of a file are read with.
pub(crate) struct Reader<'a> {
    pub(crate) text: &'a str,
    /// The folder of the file, from which `file:` paths count.
    pub(crate) folder: &'a Path,
    pub(crate) env: Env<'a>,
    pub(crate) mistakes: Mistakes,
    /// Where to note which keys are asked for, when that is the question.
    pub(crate) shape: Option<Shape>,
}

impl Reader<'_> {
    /// A string with its references expanded.
    fn expand(&mut self, value: &str, span: Span) -> Field<Text> {
        match text::expand(value, self.folder, self.env) {
            Ok(value) => Field::Is(At { value, span }),
            Err(broken) => {
                for problem in broken {
                    let inside = self.text.get(span.start..span.end).and_then(|text| text.find(&problem.part));
                    let place = inside.map_or(span, |offset| {
                        let start = span.start + offset;
                        Span { start, end: start + problem.part.len() }
                    });
                    self.mistakes.add(place, problem.message, problem.hint);
                }
                Field::Bad
            }
        }
    }

    /// A value of a table whose keys are not ours to know.
    pub(crate) fn free(&mut self, value: &DeValue<'_>, span: Span) -> Option<toml::Value> {
        Some(match value {
            DeValue::String(text) => toml::Value::String(self.expand(text, span).value()?.into_plain()),
            DeValue::Integer(number) => match whole(number) {
                Some(number) => toml::Value::Integer(number),
                None => {
                    self.mistakes.add(span, "the number does not fit into 64 bits", "write a smaller one");
                    return None;
                }
            },
            DeValue::Float(number) => toml::Value::Float(number.as_str().parse().ok()?),
            DeValue::Boolean(value) => toml::Value::Boolean(*value),
            DeValue::Datetime(value) => toml::Value::Datetime(*value),
            DeValue::Array(items) => {
                let items = items.iter().filter_map(|item| self.free(item.get_ref(), item.span().into()));
                toml::Value::Array(items.collect())
            }
            DeValue::Table(table) => toml::Value::Table(self.free_table(table)),
        })
    }

    pub(crate) fn free_table(&mut self, table: &DeTable<'_>) -> toml::Table {
        let values = table.iter().filter_map(|(key, value)| {
            Some((key.get_ref().to_string(), self.free(value.get_ref(), value.span().into())?))
        });
        values.collect()
    }
}

/// One table of the file.
pub(crate) struct Section<'r, 'd> {
    pub(crate) reader: &'r mut Reader<'d>,
    pub(crate) table: &'r DeTable<'r>,
    pub(crate) header: Span,
    /// As a person writes it: `[listener.limits]`.
    pub(crate) name: &'static str,
    pub(crate) keys: &'static [&'static str],
}

impl<'r, 'd> Section<'r, 'd> {
    pub(crate) fn value(&self, key: &'static str) -> Option<&'r Spanned<DeValue<'r>>> {
        debug_assert!(self.keys.contains(&key), "{key} is read but not listed in {}", self.name);
        self.table.get(key)
    }

    /// Says what a key takes, if that is the question.
    pub(crate) fn note(&mut self, key: &'static str, takes: impl FnOnce() -> Takes) {
        if let Some(shape) = &mut self.reader.shape {
            shape.note(self.name, key, takes());
        }
    }

    /// Notes a key that must be there and is not, at the header of its table.
    ///
    /// A misspelt one is an unknown key already; one mistake is not reported twice.
    pub(crate) fn need<T>(&mut self, field: &Field<T>, key: &'static str, hint: &str) {
        if let Some(shape) = &mut self.reader.shape {
            shape.required.insert((self.name, key));
        }
        let misspelt = |word: &str| !self.keys.contains(&word) && nearest(word, self.keys) == Some(key);
        if matches!(field, Field::Absent) && !self.table.keys().any(|word| misspelt(word.get_ref())) {
            let message = format!("{} lacks `{key}`", in_code(self.name));
            self.reader.mistakes.add(self.header, message, format!("add `{key} = {hint}`"));
        }
    }

    pub(crate) fn text(&mut self, key: &'static str, example: &str) -> Field<Text> {
        self.note(key, || Takes::Text { example: example.to_owned() });
        let Some(found) = self.value(key) else { return Field::Absent };
        let span = found.span().into();
        match found.get_ref().as_str() {
            Some(text) => self.reader.expand(text, span),
            None => self.wrong_type(key, found, "a string", &format!("write `{key} = {example}`")),
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T: Clone>(&mut self, key: &'static str, words: &[(&str, T)]) -> Field<T> {
        self.note(key, || Takes::Words(words.iter().map(|(word, _)| (*word).to_owned()).collect()));
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let example = format!("\"{}\"", names.first().copied().unwrap_or_default());
        let found = self.text(key, &example);
        found.and_then(|At { value, span }| {
            if let Some((_, value)) = words.iter().find(|(name, _)| *name == value.text) {
                return Field::Is(At { value: value.clone(), span });
            }
            let hint = nearest_or_list(&value, &names);
            self.bad(span, format!("`{key}` cannot be {}", value.shown()), hint)
        })
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Field<bool> {
        self.note(key, || Takes::Boolean);
        let Some(found) = self.value(key) else { return Field::Absent };
        if let Some(value) = found.get_ref().as_bool() {
            Field::Is(At { value, span: found.span().into() })
        } else if is_reference(found) {
            // The environment only has strings.
            self.choice(key, &[("true", true), ("false", false)])
        } else {
            self.wrong_type(key, found, "true or false", "write `true` or `false` without quotes")
        }
    }

    pub(crate) fn whole(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Field<u64> {
        self.note(key, || Takes::Whole(range.clone()));
        let Some(found) = self.value(key) else { return Field::Absent };
        let span = found.span().into();
        let number = if let Some(number) = found.get_ref().as_integer() {
            Field::Is(At { value: natural(number), span })
        } else if is_reference(found) {
            let text = self.text(key, "1");
            text.and_then(|At { value, span }| Field::Is(At { value: value.text.parse().ok(), span }))
        } else {
            let hint = format!("write a number without quotes, such as `{key} = {}`", range.start());
            self.wrong_type(key, found, "a whole number", &hint)
        };
        number.and_then(|At { value, span }| match value.filter(|value| range.contains(value)) {
            Some(value) => Field::Is(At { value, span }),
            None => {
                let hint = format!("write a whole number from {} to {}", range.start(), range.end());
                self.bad(span, format!("`{key}` is out of range"), hint)
            }
        })
    }

    pub(crate) fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Field<Duration> {
        self.note(key, || Takes::Duration(range.clone()));
        let example = format!("\"{}\"", units::show_duration(*range.end()));
        if let Some(found) = self.value(key)
            && found.get_ref().is_integer()
        {
            let hint = format!("write a number and a unit in quotes, such as `{key} = \"30s\"`");
            return self.bad(found.span().into(), format!("`{key}` needs a unit"), hint);
        }
        let found = self.text(key, &example);
        found.and_then(|At { value: text, span }| match units::duration(&text.text) {
            Ok(value) if range.contains(&value) => Field::Is(At { value, span }),
            Ok(_) => {
                let (from, to) = (units::show_duration(*range.start()), units::show_duration(*range.end()));
                self.bad(span, format!("`{key}` is out of range"), format!("write a duration from {from} to {to}"))
            }
            Err(why) => self.bad(span, format!("`{key}`: {} {why}", text.shown()), why.hint()),
        })
    }

    pub(crate) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Field<u64> {
        self.note(key, || Takes::Size(range.clone()));
        let Some(found) = self.value(key) else { return Field::Absent };
        let span = found.span().into();
        let size = if let Some(number) = found.get_ref().as_integer() {
            Field::Is(At { value: natural(number), span })
        } else if found.get_ref().is_str() {
            let text = self.text(key, "\"64KiB\"");
            text.and_then(|At { value: text, span }| match units::size(&text.text) {
                Ok(size) => Field::Is(At { value: Some(size), span }),
                Err(why) => self.bad(span, format!("`{key}`: {} {why}", text.shown()), why.hint()),
            })
        } else {
            self.wrong_type(key, found, "a size", "write a size such as \"64KiB\"")
        };
        size.and_then(|At { value, span }| match value.filter(|value| range.contains(value)) {
            Some(value) => Field::Is(At { value, span }),
            None => {
                let (from, to) = (units::show_size(*range.start()), units::show_size(*range.end()));
                self.bad(span, format!("`{key}` is out of range"), format!("write a size from {from} to {to}"))
            }
        })
    }

    /// A value that may also be the word `"auto"`, which is `None`.
    pub(crate) fn auto_or<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Self) -> Field<T>,
    ) -> Field<Option<T>> {
        self.note(key, || Takes::AutoOr(None));
        if self.reader.shape.is_some() {
            let _asked: Field<T> = read(self);
            return Field::Absent;
        }
        let Some(found) = self.value(key) else { return Field::Absent };
        if found.get_ref().as_str() == Some("auto") {
            return Field::Is(At { value: None, span: found.span().into() });
        }
        let before = self.reader.mistakes.len();
        let inner = read(self);
        self.reader.mistakes.hint_also(before, " (or `\"auto\"`)");
        inner.and_then(|At { value, span }| Field::Is(At { value: Some(value), span }))
    }

    pub(crate) fn address(&mut self, key: &'static str) -> Field<SocketAddr> {
        self.note(key, || Takes::Address);
        let found = self.text(key, "\"127.0.0.1:7001\"");
        found.and_then(|At { value, span }| match value.text.parse::<SocketAddr>() {
            Ok(address) if !is_of_a_host(address.ip()) => {
                let hint =
                    "name an address of this machine: multicast, broadcast and IPv4 inside IPv6 cannot be listened on";
                self.bad(span, format!("{} is not an address to listen on", value.shown()), hint)
            }
            Ok(address) => Field::Is(At { value: address, span }),
            Err(_) => {
                let hint = address_hint(&value.text);
                self.bad(span, format!("{} is not an address to listen on", value.shown()), hint)
            }
        })
    }

    /// A list of strings; what is no string is [`Field::Bad`] in its place.
    pub(crate) fn texts(&mut self, key: &'static str, example: &str) -> Field<Vec<Field<Text>>> {
        self.note(key, || Takes::Texts);
        let Some(found) = self.value(key) else { return Field::Absent };
        let hint = format!("write a list of strings, such as `{key} = {example}`");
        let DeValue::Array(items) = found.get_ref() else {
            return self.wrong_type(key, found, "a list of strings", &hint);
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            let span = item.span().into();
            texts.push(if let DeValue::String(text) = item.get_ref() {
                self.reader.expand(text, span)
            } else {
                let message = format!("`{key}` takes strings, not {}", kind(item.get_ref()));
                self.bad(span, message, hint.as_str())
            });
        }
        Field::Is(At { value: texts, span: found.span().into() })
    }

    /// A string, or a list of them.
    pub(crate) fn one_or_more(&mut self, key: &'static str, example: &str) -> Field<Vec<Field<Text>>> {
        self.note(key, || Takes::TextOrTexts);
        let Some(found) = self.value(key) else { return Field::Absent };
        if found.get_ref().is_str() {
            let text = self.text(key, example);
            let span = found.span().into();
            return Field::Is(At { value: vec![text], span });
        }
        self.texts(key, &format!("[{example}]"))
    }

    /// A table inside this one: where it starts, and what reads it.
    pub(crate) fn section<'s>(
        &'s mut self,
        key: &'static str,
        name: &'static str,
        keys: &'static [&'static str],
    ) -> Option<Section<'s, 'd>> {
        self.note(key, || if keys.is_empty() { Takes::Free } else { Takes::Table(name) });
        let found = self.value(key)?;
        if let Some(table) = found.get_ref().as_table() {
            return Some(Section { reader: self.reader, table, header: found.span().into(), name, keys });
        }
        let _: Field<()> = self.wrong_type(key, found, "one table", &format!("write `{name}`"));
        None
    }

    pub(crate) fn bad<T>(&mut self, span: Span, message: String, hint: impl Into<String>) -> Field<T> {
        self.reader.mistakes.add(span, message, hint);
        Field::Bad
    }

    fn wrong_type<T>(&mut self, key: &str, found: &Spanned<DeValue<'_>>, wanted: &str, hint: &str) -> Field<T> {
        let message = format!("`{key}` takes {wanted}, not {}", kind(found.get_ref()));
        self.bad(found.span().into(), message, hint)
    }
}

fn is_reference(value: &Spanned<DeValue<'_>>) -> bool {
    value.get_ref().as_str().is_some_and(text::is_reference)
}

pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn whole(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn natural(number: &DeInteger<'_>) -> Option<u64> {
    u64::try_from(whole(number)?).ok()
}

/// Whether a machine can have this address: `bind` refuses the others with words that name no cause.
fn is_of_a_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast() && v6.to_ipv4_mapped().is_none(),
    }
}

fn address_hint(text: &str) -> String {
    let port = text.rsplit_once(':').map(|(_, port)| port);
    let port_is = |f: fn(&str) -> bool| port.is_some_and(f);
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    if text.parse::<IpAddr>().is_ok() {
        "add a port, such as \"127.0.0.1:7001\" or \"[::1]:7001\"".to_owned()
    } else if host.is_empty() {
        "name the address too: \"127.0.0.1\" for this machine only, \"0.0.0.0\" or \"[::]\" for every interface"
            .to_owned()
    } else if text.starts_with("unix:") {
        "listening on Unix sockets is not in this build yet; write an address such as \"127.0.0.1:7001\"".to_owned()
    } else if port_is(|port| {
        !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_err()
    }) {
        "a port goes up to 65535".to_owned()
    } else if host.parse::<std::net::Ipv6Addr>().is_ok() {
        "write an IPv6 address in brackets, such as \"[::1]:7001\"".to_owned()
    } else if host.contains(|c: char| c.is_ascii_alphabetic()) && !host.starts_with('[') {
        "names are not looked up here: write an IP address and a port, such as \"127.0.0.1:7001\"".to_owned()
    } else {
        "write an IP address and a port, such as \"127.0.0.1:7001\" or \"[::1]:7001\"".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_hosts_can_be_listened_on() {
        for good in ["127.0.0.1", "0.0.0.0", "192.0.2.1", "::", "::1", "2001:db8::1"] {
            assert!(is_of_a_host(good.parse().unwrap()), "{good}");
        }
        for bad in ["224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:127.0.0.1"] {
            assert!(!is_of_a_host(bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn address_hints_fit_the_mistake() {
        for (text, part) in [
            ("127.0.0.1", "add a port"),
            ("::1", "add a port"),
            (":7001", "name the address"),
            ("127.0.0.1:70010", "65535"),
            ("fe80::1:7001:x", "in brackets"),
            ("localhost:7001", "names are not"),
            ("unix:/run/a.sock", "Unix"),
        ] {
            assert!(address_hint(text).contains(part), "{text}: {}", address_hint(text));
        }
    }
}
