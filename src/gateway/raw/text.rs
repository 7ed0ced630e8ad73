//! References in string values: `${VAR}`, `${VAR:-default}` and `file:PATH`.
//!
//! They are expanded after parsing, so that what a variable or file holds can never change the shape of the document.
//! `${VAR:-default}` takes the default if the variable is unset or empty; `$${` stands for a literal `${`. `file:` counts
//! only where the document itself says it, never when a variable does, and one line end at the end of the file is cut.
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::{Zeroize, Zeroizing};

use crate::gateway::report::quoted;

/// A referenced file holds one value: a key, a token, a certificate chain.
const MAX_FILE: u64 = 64 * 1024;

/// Looks up an environment variable: its value, or `None` if it is not set.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<std::ffi::OsString>;

/// A string value after expansion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) text: String,
    /// It came from outside of the file: no message may quote it.
    pub(crate) hidden: bool,
}

impl Text {
    /// The text itself, for whom it is no secret or who keeps it as one.
    pub(crate) fn into_plain(mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// The value as a message may show it.
    pub(crate) fn shown(&self) -> String {
        if self.hidden { "the referenced value".to_owned() } else { quoted(&self.text) }
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// A reference that cannot be expanded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// The part of the value that is wrong, as the document writes it.
    pub(crate) part: String,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Whether a value holds a reference, so that neither it nor what it stands for is shown.
pub(crate) fn is_reference(value: &str) -> bool {
    value.contains("${") || value.starts_with("file:")
}

/// Expands all references of a value, or says what is wrong with each.
pub(crate) fn expand(value: &str, folder: &Path, env: Env<'_>) -> Result<Text, Vec<Broken>> {
    if !is_reference(value) {
        return Ok(Text { text: value.to_owned(), hidden: false });
    }
    let mut text = variables(value, env)?;
    let Some(path) = text.strip_prefix("file:").filter(|_| value.starts_with("file:")) else {
        return Ok(Text { text: std::mem::take(&mut *text), hidden: true });
    };
    let text = read(&folder.join(path)).map_err(|why| {
        let message = format!("cannot read {}: {why}", quoted(value));
        let hint = "a path after `file:` counts from the folder of this configuration file".to_owned();
        vec![Broken { part: value.to_owned(), message, hint }]
    })?;
    Ok(Text { text, hidden: true })
}

/// The text comes together at once: one that grew would leave parts of a secret behind.
fn variables(value: &str, env: Env<'_>) -> Result<Zeroizing<String>, Vec<Broken>> {
    let mut parts: Vec<Zeroizing<String>> = Vec::new();
    let mut broken = Vec::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(literal) = before.strip_suffix('$') {
            parts.push(format!("{literal}${{").into());
            rest = after;
            continue;
        }
        parts.push(before.to_owned().into());
        let Some((inside, tail)) = after.split_once('}') else {
            broken.push(Broken {
                part: "${".to_owned(),
                message: "a `${` without its `}`".to_owned(),
                hint: "write `${NAME}`, or `$${` for a literal `${`".to_owned(),
            });
            break;
        };
        match variable(inside, env) {
            Ok(text) => parts.push(text),
            Err(problem) => broken.push(problem),
        }
        rest = tail;
    }
    parts.push(rest.to_owned().into());
    if !broken.is_empty() {
        return Err(broken);
    }
    let mut out = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| out.push_str(part));
    Ok(out)
}

fn variable(inside: &str, env: Env<'_>) -> Result<Zeroizing<String>, Broken> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let wrong = |message: String, hint: String| Broken { part: format!("${{{inside}}}"), message, hint };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
        // The text is not quoted: it may be a secret that merely starts with `${`.
        let hint = "write `${NAME}` or `${NAME:-default}`, or `$${` for a literal `${`";
        return Err(wrong("a reference without a proper variable name".to_owned(), hint.to_owned()));
    }
    let found = env(name).filter(|value| default.is_none() || !value.is_empty());
    match (found, default) {
        (Some(value), _) => value.into_string().map(Zeroizing::new).map_err(|_| {
            wrong(format!("the environment variable `{name}` is not UTF-8"), "set it to valid UTF-8".to_owned())
        }),
        (None, Some(default)) => Ok(default.to_owned().into()),
        (None, None) => Err(wrong(
            format!("the environment variable {} is not set", quoted(name)),
            format!("set it, or write `${{{name}:-default}}`"),
        )),
    }
}

fn read(path: &Path) -> Result<String, String> {
    // Opening a pipe would wait for its writer.
    let about = path.metadata().map_err(reason)?;
    if !about.is_file() {
        return Err("not a regular file".to_owned());
    }
    // Room for all of it and for seeing its end.
    let mut bytes = Zeroizing::new(Vec::with_capacity(about.len().min(MAX_FILE) as usize + 1));
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(reason)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("larger than 64KiB".to_owned());
    }
    let mut text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        error.into_bytes().zeroize();
        "not UTF-8".to_owned()
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Why a file cannot be read, without the words of the system where ours are plainer.
pub(crate) fn reason(error: io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        "no such file".to_owned()
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "permission denied".to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<String, Vec<String>> {
        let env = |name: &str| match name {
            "HOST" => Some("::1".into()),
            "TRICK" => Some("file:/etc/passwd ${HOST}".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        };
        expand(value, Path::new("tests/data/config/good"), &env)
            .map(Text::into_plain)
            .map_err(|broken| broken.into_iter().map(|b| b.message).collect())
    }

    #[test]
    fn variables_are_expanded_once() {
        assert_eq!(of("plain $ and $5").unwrap(), "plain $ and $5");
        assert_eq!(of("[${HOST}]:${PORT:-7001}").unwrap(), "[::1]:7001");
        assert_eq!(of("${EMPTY}|${EMPTY:-d}|${NONE:-}").unwrap(), "|d|");
        assert_eq!(of("$${HOST} ${HOST}").unwrap(), "${HOST} ::1");
        assert_eq!(of("${TRICK}").unwrap(), "file:/etc/passwd ${HOST}");
    }

    #[test]
    fn every_broken_reference_is_reported() {
        assert_eq!(of("${A} ${B} ${HOST").unwrap_err().len(), 3);
        assert_eq!(of("${A B}").unwrap_err(), ["a reference without a proper variable name"]);
        assert_eq!(of("file:none.key").unwrap_err(), ["cannot read `file:none.key`: no such file"]);
        assert_eq!(of("file:.").unwrap_err(), ["cannot read `file:.`: not a regular file"]);
    }
}
