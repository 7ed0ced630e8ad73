//! Which parts of a configuration file must never be shown: the ranges that a report masks.
//!
//! A value is secret if a key on its way is named like one, or if it is a reference (`${…}`, `file:…`), whose default
//! may be one. Rather too much is masked than too little: a message names key and reason in any case.
use toml::de::{DeTable, DeValue};

use super::text::is_reference;
use crate::gateway::report::Span;

const NAMES: [&str; 4] = ["key", "secret", "token", "password"];

/// The secrets of a document: values, and comments that look as if they held one.
pub(crate) fn of_document(document: &DeTable<'_>, text: &str) -> Vec<Span> {
    let mut found = Found::default();
    found.table(document, false);
    found.comments(text);
    found.secrets
}

/// Keys that are named like secrets and hold none: paths, a public key, and whether to make a key.
fn is_open(key: &str, value: &DeValue<'_>) -> bool {
    match (key, value) {
        ("public_key", DeValue::String(_)) | ("generate_key", DeValue::Boolean(_)) => true,
        ("private_key_file" | "preshared_key_file", DeValue::String(path)) => !is_like_a_key(path),
        (_, _) => false,
    }
}

/// Whether a text may be a key, or most of one, where the name of its file should stand.
pub(crate) fn is_like_a_key(text: &str) -> bool {
    text.len() >= 40 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

#[derive(Default)]
struct Found {
    secrets: Vec<Span>,
    /// All strings: what looks like a comment in there is none.
    strings: Vec<Span>,
}

impl Found {
    fn table(&mut self, table: &DeTable<'_>, secret: bool) {
        for (key, value) in table {
            let secret = secret || named(key.get_ref()).is_some() && !is_open(key.get_ref(), value.get_ref());
            self.value(value.get_ref(), value.span().into(), secret);
        }
    }

    fn value(&mut self, value: &DeValue<'_>, span: Span, secret: bool) {
        match value {
            DeValue::Table(table) => self.table(table, secret),
            DeValue::Array(array) => {
                array.iter().for_each(|item| self.value(item.get_ref(), item.span().into(), secret));
            }
            DeValue::String(text) => {
                self.strings.push(span);
                self.secrets.extend((secret || is_reference(text)).then_some(span));
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
                self.secrets.extend(secret.then_some(span));
            }
        }
    }

    /// A secret that somebody has commented out is still one.
    fn comments(&mut self, text: &str) {
        self.strings.sort();
        let mut strings = self.strings.iter().peekable();
        let mut end = 0;
        for (at, _) in text.match_indices('#') {
            while strings.next_if(|string| string.end <= at).is_some() {}
            if at < end || strings.peek().is_some_and(|string| string.start <= at) {
                continue;
            }
            let comment = text.get(at + 1..).and_then(|rest| rest.lines().next()).unwrap_or_default();
            end = at + 1 + comment.len();
            if named(comment).is_some() || is_reference(comment) {
                self.secrets.push(Span { start: at + 1, end });
            }
        }
    }
}

/// What to mask in the line of a syntax error, where the document cannot be trusted to say what is a value.
pub(crate) fn of_broken_line(text: &str, at: usize) -> Option<Span> {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let (above, rest) = text.split_at_checked(start)?;
    let line = rest.lines().next()?;
    let whole = Span { start, end: start + line.len() };

    let inside = |quotes: &str| above.matches(quotes).count() % 2 == 1;
    if inside("\"\"\"") || inside("'''") {
        return Some(whole);
    }
    let value = |from: usize| {
        let from = line.find('=').map_or(from, |equals| equals + 1);
        let blanks = line.get(from..).map_or(0, |value| value.len() - value.trim_start().len());
        Some(Span { start: start + from + blanks, end: whole.end })
    };
    let own = named(line).or_else(|| line.find("${")).or_else(|| line.find("file:"));
    if let Some(word) = own {
        return value(word);
    }
    let header = above.lines().rev().find(|line| line.trim_start().starts_with('['));
    if header.is_some_and(|header| named(header).is_some()) {
        return value(0);
    }
    // A line of a list that was opened further up.
    let opened = above.lines().rev().find(|line| line.contains('=') || line.trim_start().starts_with('['));
    let continues = !line.contains('=') && opened.is_some_and(|line| named(line).is_some());
    continues.then_some(whole)
}

/// Where the first word ends that marks a secret.
fn named(text: &str) -> Option<usize> {
    let lower = text.to_ascii_lowercase();
    NAMES.iter().filter_map(|name| lower.find(name).map(|at| at + name.len())).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str, marker: &str) -> Option<String> {
        of_broken_line(text, text.find(marker).unwrap()).map(|span| text[span.start..span.end].to_owned())
    }

    #[test]
    fn a_broken_line_hides_what_may_be_secret() {
        assert_eq!(masked("a = 1\nx = !\n", "!"), None);
        assert_eq!(masked("api_key = \"hunter2\n", "hunter2").as_deref(), Some("\"hunter2"));
        assert_eq!(masked("password \"hunter2\"\n", "hunter2").as_deref(), Some("\"hunter2\""));
        assert_eq!(masked("pem = \"\"\"\nhunter2 \\q\n\"\"\"\n", "hunter2").as_deref(), Some("hunter2 \\q"));
        assert_eq!(masked("tokens = [\n  \"hunter2,\n]\n", "hunter2").as_deref(), Some("  \"hunter2,"));
        assert_eq!(masked("[listener.options.tokens]\na = \"hunter2\n", "hunter2").as_deref(), Some("\"hunter2"));
        assert_eq!(masked("a = \"${B:-hunter2}\n", "hunter2").as_deref(), Some("\"${B:-hunter2}"));
    }
}
