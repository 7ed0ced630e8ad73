//! The JSON Schema (2020-12) of the configuration file: what `portway schema` prints, for editors and their like.
//!
//! Tables, keys, words and ranges come from the parser itself (`raw_shape`), so they cannot differ from what it takes.
//! Descriptions and defaults come from the comments of the shipped `config.toml`, the reference of every key. What
//! values mean together, which table belongs to which protocol for instance, only `portway check` knows.
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::check::Known;
use super::raw::ROOT;
use super::raw::shape::{self, Shape, Takes};
use super::units;

const SHIPPED: &str = include_str!("../../config.toml");

const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
const SIZE: &str = "^[0-9]+([KMGT]i?B|B)?$";
/// `${VAR}` and `file:`, which may stand for any value.
const REFERENCE: &str = "#/$defs/reference";

/// The schema of a configuration with the protocols of this program.
pub(super) fn of(known: &Known) -> Value {
    let shape = shape::of_parser(known);
    let described = described(SHIPPED);
    let mut schema = table(ROOT, &shape, &described);
    if let Some(root) = schema.as_object_mut() {
        root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        root.insert("title".to_owned(), json!("Portway configuration"));
        root.insert(
            "$defs".to_owned(),
            json!({ "reference": {
                "type": "string",
                "pattern": "^file:|\\$\\{",
                "description": "${VAR}, ${VAR:-default} or file:PATH, expanded when the file is read"
            } }),
        );
    }
    schema
}

fn table(name: &str, shape: &Shape, described: &Described<'_>) -> Value {
    let mut properties = Map::new();
    for key in shape.keys.iter().filter(|key| key.table == name) {
        let mut of_key = if let Takes::Table(inner) = &key.takes {
            table(inner, shape, described)
        } else if let Takes::Tables(inner) = &key.takes {
            json!({ "type": "array", "items": table(inner, shape, described) })
        } else {
            value(&key.takes)
        };
        if let (Some(of_key), Some(words)) = (of_key.as_object_mut(), words_of(described, name, key.key)) {
            of_key.insert("description".to_owned(), json!(words.text));
            // A default of free text is more often an example.
            let is_plain = !matches!(
                key.takes,
                Takes::Text { .. } | Takes::Texts | Takes::TextOrTexts | Takes::Address | Takes::Table(_)
            );
            if let Some(default) = words.value.as_ref().filter(|_| words.is_default && is_plain) {
                of_key.insert("default".to_owned(), default.clone());
            } else if let Some(example) = &words.value {
                of_key.insert("examples".to_owned(), json!([example]));
            }
        }
        properties.insert(key.key.to_owned(), of_key);
    }
    let required: Vec<_> = shape.required.iter().filter(|(table, _)| *table == name).map(|(_, key)| *key).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if let (Some(schema), false) = (schema.as_object_mut(), required.is_empty()) {
        schema.insert("required".to_owned(), json!(required));
    }
    schema
}

fn value(takes: &Takes) -> Value {
    let or_reference = |own: Value| json!({ "anyOf": [own, { "$ref": REFERENCE }] });
    match takes {
        Takes::Text { .. } => json!({ "type": "string" }),
        Takes::Address => {
            or_reference(json!({ "type": "string", "pattern": "^(\\[[0-9a-fA-F:.]+\\]|[0-9.]+):[0-9]{1,5}$" }))
        }
        Takes::Words(words) => or_reference(json!({ "enum": words })),
        Takes::Boolean => or_reference(json!({ "type": "boolean" })),
        Takes::Whole(range) => or_reference(whole(range)),
        Takes::Numbers(numbers) => or_reference(json!({ "enum": numbers })),
        Takes::Duration(range) => {
            let (from, to) = (units::show_duration(*range.start()), units::show_duration(*range.end()));
            or_reference(json!({ "type": "string", "pattern": DURATION, "$comment": format!("from {from} to {to}") }))
        }
        Takes::Size(range) => {
            let (from, to) = (units::show_size(*range.start()), units::show_size(*range.end()));
            let text = json!({ "type": "string", "pattern": SIZE, "$comment": format!("from {from} to {to}") });
            json!({ "anyOf": [whole(range), text, { "$ref": REFERENCE }] })
        }
        Takes::AutoOr(inner) => {
            let inner = inner.as_ref().map_or(Value::Bool(false), |inner| value(inner));
            json!({ "anyOf": [{ "const": "auto" }, inner] })
        }
        Takes::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Takes::TextOrTexts => {
            json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
        }
        // Tables are made by their names.
        Takes::Table(_) | Takes::Tables(_) | Takes::Free => json!({ "type": "object" }),
    }
}

fn whole(range: &RangeInclusive<u64>) -> Value {
    json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() })
}

/// What the shipped file says about a key.
#[derive(Debug, PartialEq)]
struct Words {
    text: String,
    value: Option<Value>,
    /// The value stands with a `#` right before the key: taking it away changes nothing.
    is_default: bool,
}

type Described<'a> = BTreeMap<(&'a str, &'a str), Words>;

/// The words for a key, or those of a table of the same kind: routes are routes wherever they stand.
fn words_of<'d>(described: &'d Described<'_>, table: &str, key: &str) -> Option<&'d Words> {
    let of = |fits: &dyn Fn(&str) -> bool| {
        let found = described.iter().find(|((other, name), _)| *name == key && fits(other));
        found.map(|(_, words)| words)
    };
    of(&|other| other == table).or_else(|| of(&|other| last_word(other) == last_word(table)))
}

/// `route` of `[[listener.route]]`.
fn last_word(table: &str) -> &str {
    table.trim_matches(['[', ']']).rsplit('.').next().unwrap_or_default()
}

/// Reads the comments: `#key = value  # text`, and lines that go on with nothing but a comment.
fn described(file: &str) -> Described<'_> {
    let mut all = Described::new();
    let (mut table, mut last) = (ROOT, None);
    for line in file.lines() {
        let bare = line.trim_start_matches(['#', ' ']);
        if line.trim_start().is_empty() {
            last = None;
        } else if bare.starts_with('[') {
            let end = bare.find(']').map_or(0, |at| at + 1);
            let end = if bare.starts_with("[[") { end + 1 } else { end };
            (table, last) = (bare.get(..end).unwrap_or_default(), None);
        } else if let Some(more) = line.strip_prefix("        ") {
            if let Some(words) = last.and_then(|key| all.get_mut(&key)) {
                let words: &mut Words = words;
                words.text.push(' ');
                words.text.push_str(more.trim_start_matches(['#', ' ']));
            }
        } else if let Some((key, rest)) = bare.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            && let Some((value, text)) = rest.rsplit_once(" # ").or_else(|| rest.rsplit_once(" #"))
        {
            let (key, is_default) = ((table, key), line.starts_with('#') && !line.starts_with("# "));
            let value = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
            let value = value.and_then(|mut table| serde_json::to_value(table.remove("value")?).ok());
            all.entry(key).or_insert_with(|| Words {
                text: text.trim().to_owned(),
                value,
                is_default: is_default && !text.trim_start().starts_with("required"),
            });
            last = Some(key);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::raw::TABLES;
    use super::*;

    /// Tables and the rest that needs no line of its own in the reference: their headers are there.
    fn is_described(key: &shape::Key, described: &Described<'_>) -> bool {
        if let Takes::Table(name) | Takes::Tables(name) = key.takes {
            return SHIPPED.contains(name);
        }
        key.takes == Takes::Free || words_of(described, key.table, key.key).is_some()
    }

    #[test]
    fn the_parser_reads_what_its_tables_list_and_nothing_else() {
        let shape = shape::of_parser(&Known::default());
        let read: BTreeSet<_> = shape.keys.iter().map(|key| (key.table, key.key)).collect();
        let listed: BTreeSet<_> =
            TABLES.iter().flat_map(|(table, keys)| keys.iter().map(move |key| (*table, *key))).collect();
        // A table that is not in the list by its own name has the keys of one that is.
        let known = |table: &'static str| {
            let own = TABLES.iter().find(|(name, _)| *name == table);
            own.or_else(|| TABLES.iter().find(|(name, _)| last_word(name) == last_word(table)))
                .map_or(table, |(name, _)| name)
        };
        let in_tables: BTreeSet<_> =
            read.iter().filter(|(table, _)| *table != ROOT).map(|(table, key)| (known(table), *key)).collect();
        let unread: Vec<_> = listed.difference(&in_tables).collect();
        let unlisted: Vec<_> = in_tables.difference(&listed).collect();
        assert!(unread.is_empty(), "in TABLES of raw.rs, but the parser does not read them: {unread:?}");
        assert!(unlisted.is_empty(), "read by the parser, but not in TABLES of raw.rs: {unlisted:?}");
        let incomplete: Vec<_> = shape.required.iter().filter(|key| !read.contains(*key)).collect();
        assert!(incomplete.is_empty(), "required, but never read: {incomplete:?}");
        assert!(shape.required.contains(&(ROOT, "version")) && shape.required.contains(&("[[listener]]", "name")));
    }

    #[test]
    fn every_key_is_described_in_the_shipped_file() {
        let (shape, described) = (shape::of_parser(&Known::default()), described(SHIPPED));
        let missing: Vec<_> = shape
            .keys
            .iter()
            .filter(|key| !is_described(key, &described))
            .map(|key| format!("{} of {}", key.key, key.table))
            .collect();
        assert!(missing.is_empty(), "config.toml lacks a line `key = value  # words` for: {missing:#?}");
    }

    #[test]
    fn comments_become_descriptions() {
        let text =
            "a = 1   # first\n              # and more\n\n[x]\n#b = \"q # r\"  # default\n# c = [1]  # example\n";
        let found = described(text);
        let words =
            |text: &str, value: Value, is_default| Words { text: text.to_owned(), value: Some(value), is_default };
        assert_eq!(found[&(ROOT, "a")], words("first and more", json!(1), false));
        assert_eq!(found[&("[x]", "b")], words("default", json!("q # r"), true));
        assert_eq!(found[&("[x]", "c")], words("example", json!([1]), false));
    }

    #[test]
    fn words_of_an_embedding_program_are_known() {
        let schema = of(&Known::default().protocol("chat"));
        let protocol = &schema["properties"]["listener"]["items"]["properties"]["protocol"];
        assert!(protocol["anyOf"][0]["enum"].as_array().unwrap().contains(&json!("chat")), "{protocol}");
    }
}
