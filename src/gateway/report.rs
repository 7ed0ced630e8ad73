//! Mistakes in a configuration file, each with its place, the line itself and a hint.
//!
//! `Mistakes` collects byte ranges while the file is read; [`Report`] is what a caller gets: sorted by place, with
//! lines and columns, and with secrets already masked, so that neither `Debug` nor a log line can leak one. Reading
//! never stops at the first mistake; a syntax error is the exception, since nothing after it can be trusted.

pub(super) mod source;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::Path;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};

use super::config::Place;
use source::{Line, Source};

/// Above this number of mistakes nobody reads them all: only the first [`SHOWN_OF_MANY`] are kept.
const MANY: usize = 10_000;
const SHOWN_OF_MANY: usize = 100;

/// A range of bytes in the text of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl From<std::ops::Range<usize>> for Span {
    fn from(range: std::ops::Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// One mistake while reading: where, what, and what to do about it.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) hint: String,
    /// The other place of a contradiction, and what it is.
    pub(super) also: Option<(Span, String)>,
}

/// Everything found wrong so far, in the order of reading.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Mistake { span, message: message.into(), hint: hint.into(), also: None });
    }

    pub(super) fn add_pair(
        &mut self,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<String>,
        other: Span,
        label: impl Into<String>,
    ) {
        let also = Some((other, label.into()));
        self.0.push(Mistake { span, message: message.into(), hint: hint.into(), also });
    }

    /// Adds to the hints of those that were noted since there were `before`.
    pub(super) fn hint_also(&mut self, before: usize, more: &str) {
        self.0.iter_mut().skip(before).for_each(|mistake| mistake.hint.push_str(more));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorts by place and resolves byte ranges against the text; `secrets` are the ranges to mask.
    pub(super) fn into_report(mut self, file: &str, text: &str, secrets: Vec<Span>) -> Report {
        self.0.sort_by_key(|mistake| mistake.span);
        let total = self.0.len();
        if total > MANY {
            self.0.truncate(SHOWN_OF_MANY);
        }
        let more = total - self.0.len();
        let file = harmless(file);
        let mut source = Source::new(&file, text, secrets);
        let diagnostics = self
            .0
            .into_iter()
            .map(|mistake| Diagnostic {
                line: Some(source.line(mistake.span)),
                also: mistake.also.map(|(span, label)| (source.line(span), label)),
                message: mistake.message,
                hint: mistake.hint,
            })
            .collect();
        Report { file, diagnostics, more }
    }
}

/// One mistake, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    line: Option<Line>,
    also: Option<(Line, String)>,
    message: String,
    hint: String,
}

impl Diagnostic {
    /// Where the mistake is; `None` if the file as a whole could not be read.
    pub fn place(&self) -> Option<&Place> {
        self.line.as_ref().map(|line| &line.place)
    }

    /// The other place, for a mistake that lies in two lines together.
    pub fn other_place(&self) -> Option<&Place> {
        self.also.as_ref().map(|(line, _)| &line.place)
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to write instead.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    fn render(&self, renderer: &Renderer) -> String {
        let mut group = Group::with_title(Level::ERROR.primary_title(&self.message));
        if let Some(line) = &self.line {
            group = group.element(snippet(line, AnnotationKind::Primary, None));
        }
        if let Some((line, label)) = &self.also {
            group = group.element(snippet(line, AnnotationKind::Context, Some(label)));
        }
        if !self.hint.is_empty() {
            group = group.element(Level::HELP.message(&self.hint));
        }
        let mut rendered = renderer.render(&[group]);
        // The renderer counts columns in the line it is shown; masking and cropping have moved them.
        for line in self.line.iter().chain(self.also.iter().map(|(line, _)| line)) {
            let Place { file, line: number, column } = &line.place;
            let (shown, real) = (line.shown_column(), *column);
            if shown != real {
                let at = format!("{file}:{number}:{shown}\n");
                rendered = rendered.replacen(&at, &format!("{file}:{number}:{real}\n"), 1);
            }
        }
        rendered
    }
}

fn snippet<'a>(line: &'a Line, kind: AnnotationKind, label: Option<&'a String>) -> Snippet<'a, Annotation<'a>> {
    let range = line.range.start..line.range.end;
    Snippet::source(line.shown.as_str())
        .path(line.place.file.as_str())
        .line_start(line.place.line)
        .annotation(kind.span(range).label(label))
}

/// All mistakes of one file, sorted by place. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    file: String,
    diagnostics: Vec<Diagnostic>,
    more: usize,
}

impl Report {
    /// The file as a whole is at fault: it cannot be read, or is too large.
    pub(super) fn of_file(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let message = harmless(&message.into());
        let diagnostic = Diagnostic { line: None, also: None, message, hint: hint.into() };
        Self { file: harmless(&path.display().to_string()), diagnostics: vec![diagnostic], more: 0 }
    }

    /// The mistakes, sorted by place: all of them up to 10 000, the first 100 beyond.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// How many mistakes there are, shown or not.
    pub fn count(&self) -> usize {
        self.diagnostics.len() + self.more
    }

    /// The report as text, with terminal colours if `colour`.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for diagnostic in &self.diagnostics {
            text.push_str(&diagnostic.render(&renderer));
            text.push_str("\n\n");
        }
        if self.more > 0 {
            text.push_str(&format!("… and {} more\n", self.more));
        }
        text.push_str(&format!("{} in {}\n", self.counted(), self.file));
        text
    }

    /// Their number in words: `1 mistake`, `2 mistakes`.
    pub(super) fn counted(&self) -> String {
        let noun = if self.count() == 1 { "mistake" } else { "mistakes" };
        format!("{} {noun}", self.count())
    }

    /// Writes the report to standard error, coloured if that is a terminal and `NO_COLOR` is not set.
    pub fn print(&self) {
        let mut stderr = std::io::stderr().lock();
        let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        // A closed standard error leaves no one to tell; the exit code still does.
        drop(stderr.write_all(self.render(colour).as_bytes()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

/// A name of a file, which may hold anything, without what a terminal would act on.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A piece of the file inside a message: short, on one line, harmless to a terminal.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "an empty text".to_owned();
    }
    let mut short: String = text.chars().take(64).collect::<String>().escape_debug().to_string();
    // `escape_debug` is for Rust literals: quotes need no escape here.
    short = short.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(64).is_some() {
        short.push('…');
    }
    format!("`{short}`")
}
