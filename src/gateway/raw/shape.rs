//! What the parser reads, told by the parser itself: each table, its keys, and what each of them takes.
//!
//! A reader that carries a [`Shape`] notes in it every key it is asked for, whether the file has it or not. Tables are
//! looked into only when they are there, so [`of_parser`] reads a file of empty tables, again and again, until no new
//! table comes up. So a key that the parser reads is in the shape, and nothing else is.
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::section::Reader;
use crate::gateway::check::Known;
use crate::gateway::report::Mistakes;

/// What a key takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Takes {
    Text {
        /// As the file writes it.
        example: String,
    },
    Words(Vec<String>),
    Boolean,
    Whole(RangeInclusive<u64>),
    /// One of a few numbers.
    Numbers(&'static [u64]),
    Duration(RangeInclusive<Duration>),
    Size(RangeInclusive<u64>),
    /// The word `auto`, or something else.
    AutoOr(Option<Box<Self>>),
    Address,
    Texts,
    TextOrTexts,
    /// One table, by its name.
    Table(&'static str),
    /// A list of tables.
    Tables(&'static str),
    /// A table whose keys are not ours to know.
    Free,
}

/// One key of one table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) table: &'static str,
    pub(crate) key: &'static str,
    pub(crate) takes: Takes,
}

/// All keys, in the order in which they are read.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) keys: Vec<Key>,
    /// Table and key of those without which a table is incomplete.
    pub(crate) required: BTreeSet<(&'static str, &'static str)>,
}

impl Shape {
    /// Notes a key. The first to say what it takes is the one who knows: readers are made of plainer ones.
    pub(crate) fn note(&mut self, table: &'static str, key: &'static str, takes: Takes) {
        match self.keys.iter_mut().find(|known| known.table == table && known.key == key) {
            Some(Key { takes: Takes::AutoOr(inner @ None), .. }) if !matches!(takes, Takes::AutoOr(_)) => {
                *inner = Some(Box::new(takes));
            }
            Some(_) => {}
            None => self.keys.push(Key { table, key, takes }),
        }
    }

    /// The headers of all tables, as a file that has each of them once.
    fn headers(&self) -> String {
        let headers = self
            .keys
            .iter()
            .filter_map(|key| if let Takes::Table(name) | Takes::Tables(name) = key.takes { Some(name) } else { None });
        // Some tables are read in more than one place by the same name.
        let mut seen = BTreeSet::new();
        headers.filter(|name| seen.insert(*name)).flat_map(|name| [name, "\n"]).collect()
    }
}

/// The shape of what the parser reads.
pub(crate) fn of_parser(known: &Known) -> Shape {
    let mut shape = Shape::default();
    loop {
        let (before, text) = (shape.keys.len(), shape.headers());
        let (document, _) = DeTable::parse_recoverable(&text);
        let mistakes = Mistakes::default();
        let mut reader = Reader { text: &text, folder: Path::new(""), env: &|_| None, mistakes, shape: Some(shape) };
        super::file(&mut reader, document.get_ref(), known);
        shape = reader.shape.unwrap_or_default();
        if shape.keys.len() == before {
            return shape;
        }
    }
}
