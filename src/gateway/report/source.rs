//! From byte ranges to lines as they may be shown: numbered, cropped, with secrets masked.
use super::Span;
use crate::gateway::config::Place;

/// A line longer than this is shown as a window around the mistake.
const WIDE: usize = 240;
const BEFORE: usize = 80;
const MASK: &str = "\"***\"";

/// One line of the file as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) place: Place,
    /// The line, cropped and masked.
    pub(crate) shown: String,
    /// What to underline, in bytes of `shown`.
    pub(crate) range: Span,
}

impl Line {
    /// The column a renderer finds when it counts in `shown`.
    pub(crate) fn shown_column(&self) -> usize {
        self.shown.get(..self.range.start).map_or(1, |before| before.chars().count() + 1)
    }
}

/// The text of a file, its line starts and its secrets.
pub(crate) struct Source<'a> {
    file: String,
    text: &'a str,
    starts: Vec<usize>,
    secrets: Vec<Span>,
    /// Where the last column was counted, so that many mistakes in one huge line stay cheap.
    cursor: (usize, usize, usize),
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &str, text: &'a str, mut secrets: Vec<Span>) -> Self {
        let starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        secrets.sort();
        // A nested secret lies inside one that starts earlier.
        let mut end = 0;
        secrets.retain(|span| {
            let outside = span.end > end;
            end = end.max(span.end);
            outside
        });
        Self { file: file.to_owned(), text, starts, secrets, cursor: (0, 0, 1) }
    }

    /// The place of a byte: line and column count from 1, columns are characters.
    pub(crate) fn place(&mut self, at: usize) -> Place {
        let at = floor(self.text, at);
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let (from, column) = match self.cursor {
            (seen, byte, column) if seen == line && byte <= at => (byte, column),
            _ => (start, 1),
        };
        // The byte order mark is no character of the first line.
        let passed = self.text.get(from..at).map_or(0, |text| text.chars().filter(|c| *c != '\u{feff}').count());
        let column = column + passed;
        self.cursor = (line, at, column);
        Place { file: self.file.clone(), line, column }
    }

    /// The line in which a range starts, ready to be shown.
    pub(crate) fn line(&mut self, span: Span) -> Line {
        let place = self.place(span.start);
        let start = self.starts.get(place.line - 1).copied().unwrap_or(0);
        let end = self.starts.get(place.line).map_or(self.text.len(), |next| next - 1);
        let end = if self.text.get(start..end).is_some_and(|line| line.ends_with('\r')) { end - 1 } else { end };
        let start =
            if self.text.get(start..end).is_some_and(|l| l.starts_with('\u{feff}')) { start + 3 } else { start };
        let (from, to) = if end.saturating_sub(start) > WIDE {
            let from = floor(self.text, span.start.saturating_sub(BEFORE).max(start));
            (from, floor(self.text, (from + WIDE).min(end)))
        } else {
            (start, end)
        };

        let mut shown = Shown { out: String::new(), map: span, range: Span { start: 0, end: 0 } };
        if from > start {
            shown.out.push('…');
        }
        let mut at = from;
        let first = self.secrets.partition_point(|secret| secret.end <= from);
        for secret in self.secrets.iter().skip(first).take_while(|secret| secret.start < to) {
            shown.copy(self.text, at, secret.start.clamp(at, to));
            let stop = secret.end.clamp(at, to);
            shown.mask(secret.start.max(at), stop);
            at = stop;
        }
        let rest = self.text.get(at..to).unwrap_or_default();
        // A comment behind a secret likes to hold the one before it.
        let comment = if at > from { rest.find('#') } else { None };
        let stop = comment.and_then(|offset| Some(at + rest.get(..offset)?.trim_end().len()));
        shown.copy(self.text, at, stop.unwrap_or(to));
        if to < end {
            shown.out.push('…');
        }
        shown.finish(place)
    }
}

/// A line under construction, and where the range to underline lands in it.
struct Shown {
    out: String,
    map: Span,
    range: Span,
}

impl Shown {
    fn copy(&mut self, text: &str, from: usize, to: usize) {
        let base = self.out.len();
        self.note(from, to, |at| base + (at - from));
        self.out.push_str(text.get(from..to).unwrap_or_default());
    }

    fn mask(&mut self, from: usize, to: usize) {
        let base = self.out.len();
        self.note(from, to, |at| if at == to { base + MASK.len() } else { base });
        // An underline that ends inside the secret must not tell where.
        if self.map.end > from && self.map.end < to {
            self.range.end = base + MASK.len();
        }
        self.out.push_str(MASK);
    }

    fn note(&mut self, from: usize, to: usize, place: impl Fn(usize) -> usize) {
        if (from..=to).contains(&self.map.start) {
            self.range.start = place(self.map.start);
        }
        if (from..=to).contains(&self.map.end) {
            self.range.end = place(self.map.end);
        } else if self.map.end > to {
            self.range.end = place(to);
        }
    }

    fn finish(self, place: Place) -> Line {
        let start = floor(&self.out, self.range.start);
        let end = floor(&self.out, self.range.end.max(start));
        Line { place, range: Span { start, end }, shown: self.out }
    }
}

/// The character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
