//! Reads and checks a configuration file: the whole of it, before anything is bound.
//!
//! [`load`] and [`parse`] give a [`Config`] without mistakes or a [`Report`] with all of them. The file is parsed, each
//! value is judged on its own (`raw`), then what the values mean together (here): names and addresses that occur twice,
//! tables of another protocol, limits that contradict each other. Nothing here opens a socket.

pub(super) mod admin;
#[cfg(feature = "http")]
pub(super) mod guards;
pub(super) mod hello;
#[cfg(feature = "http")]
pub(super) mod http;
pub(super) mod listener;
pub(super) mod moq;
pub(super) mod quic;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod udp;
pub(super) mod upstream;
#[cfg(feature = "wireguard")]
pub(super) mod wireguard;
#[cfg(feature = "wireguard")]
mod wireguard_peer;
#[cfg(feature = "wireguard")]
pub(super) mod wireguard_service;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use toml::de::{DeTable, Error};
use zeroize::Zeroizing;

use super::config::{Config, Log, Runtime};
use super::raw::secrets;
use super::raw::section::Reader;
use super::raw::text::{Env, reason};
use super::raw::{self, RawFile, RawLog, RawRuntime};
use super::report::source::Source;
use super::report::{Mistakes, Report, Span};
use quic::{Around, CertificateNames};

/// Larger files are refused unread: a configuration that long is a mistake in itself.
const MAX_FILE: u64 = 1 << 20;

/// What an embedding program adds to the words of the file. Default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    protocols: BTreeSet<String>,
}

impl Known {
    /// Adds a protocol: a listener may name it, and its `[listener.options]` reach the program unchecked.
    ///
    /// A word that a later version reserves (`moq`, say) may be taken; `framed`, `relay`, `http` and `quic` stay the built-in
    /// ones.
    #[must_use]
    pub fn protocol(mut self, name: impl Into<String>) -> Self {
        self.protocols.insert(name.into());
        self
    }

    pub(super) fn protocols(&self) -> impl Iterator<Item = &str> {
        self.protocols.iter().map(String::as_str)
    }
}

/// Reads and checks the file at `path`.
///
/// # Errors
///
/// All mistakes of the file; or one, if it cannot be read, is larger than 1 MiB or is not UTF-8.
pub fn load(path: &Path, known: &Known) -> Result<Config, Report> {
    let bytes = read(path).map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "`portway example > config.toml` writes one to start from"
        } else {
            "name a file that this user may read with `--config FILE`"
        };
        Report::of_file(path, format!("cannot read {}: {}", path.display(), reason(error)), hint)
    })?;
    if bytes.len() as u64 > MAX_FILE {
        let message = format!("{} is larger than 1MiB", path.display());
        return Err(Report::of_file(path, message, "name a configuration file with `--config FILE`"));
    }
    let name = path.display().to_string();
    match String::from_utf8(bytes) {
        // Keys may stand in it.
        Ok(text) => parse(&name, &Zeroizing::new(text), known),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = error.as_bytes().get(..valid).map(String::from_utf8_lossy).unwrap_or_default();
            let at = Source::new(&name, &text, Vec::new()).place(valid);
            let message = format!("{at} is not UTF-8");
            Err(Report::of_file(path, message, "save the file as UTF-8, the encoding of TOML"))
        }
    }
}

/// Checks a configuration that is already in memory; `file_name` stands in messages, and its folder is where `file:`
/// references start from.
///
/// # Errors
///
/// All mistakes of the text.
pub fn parse(file_name: &str, text: &str, known: &Known) -> Result<Config, Report> {
    parse_with(file_name, text, known, &|name: &str| -> Option<OsString> { std::env::var_os(name) })
}

/// [`parse`] with an environment of the caller's.
pub(super) fn parse_with(file_name: &str, text: &str, known: &Known, env: Env<'_>) -> Result<Config, Report> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let document = document.get_ref();
    let mut secrets = secrets::of_document(document, text);
    let mut mistakes = Mistakes::default();
    if let Some(error) = errors.iter().find(|error| !is_duplicate(error)) {
        let at = place_of(error, text);
        secrets.extend(secrets::of_broken_line(text, at.start));
        let hint = "this is not TOML; nothing behind it was checked, so mend it and check again";
        let message = if error.span().is_some() { error.message() } else { "this key is nested too deep" };
        mistakes.add(at, message, hint);
        return Err(mistakes.into_report(file_name, text, secrets));
    }
    for error in &errors {
        let at = place_of(error, text);
        secrets.extend(secrets::of_broken_line(text, at.start));
        mistakes.add(at, "this key or table is here for the second time", "take one of the two out");
    }

    let folder = Path::new(file_name).parent().unwrap_or_else(|| Path::new(""));
    let mut reader = Reader { text, folder, env, mistakes, shape: None };
    let raw = raw::file(&mut reader, document, known);
    let Reader { mut mistakes, .. } = reader;
    let config = checked(raw, file_name, text, &mut mistakes);
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes.into_report(file_name, text, secrets)) }
}

fn checked(raw: RawFile, file_name: &str, text: &str, mistakes: &mut Mistakes) -> Config {
    let mut source = Source::new(file_name, text, Vec::new());
    // Like `file:` references, from the folder of the file.
    let folder = Path::new(file_name).parent().unwrap_or_else(|| Path::new(""));
    let admin_at = raw.admin.as_ref().and_then(|admin| quic::is(&admin.listen).cloned());
    let certificate_names = CertificateNames::of(&raw.certificates);
    let certificates = quic::certificates(raw.certificates, folder, &mut source, mistakes);
    let names = upstream::Names::of(&raw.upstreams);
    upstream::ways(&raw.upstreams, &raw.listeners, mistakes);
    let around = Around { upstreams: &names, certificates: &certificate_names, folder };
    let upstreams = upstream::all(raw.upstreams, &around, mistakes);
    let listeners = listener::all(raw.listeners, &around, admin_at.as_ref(), &mut source, mistakes);
    let admin = raw.admin.and_then(|raw| admin::admin(raw, &around, &mut source, mistakes));
    Config { runtime: runtime(raw.runtime), admin, log: log(raw.log), certificates, upstreams, listeners }
}

fn runtime(raw: RawRuntime) -> Runtime {
    let default = Runtime::default();
    let arbiters = raw.arbiters.value().flatten().and_then(|n| NonZeroUsize::new(usize::try_from(n).ok()?));
    Runtime {
        arbiters: arbiters.or(default.arbiters),
        pin_cores: raw.pin_cores.value().unwrap_or(default.pin_cores),
        memory: raw.memory.value().flatten().or(default.memory),
        drain: raw.drain.value().unwrap_or(default.drain),
    }
}

fn log(raw: RawLog) -> Log {
    let default = Log::default();
    Log { level: raw.level.value().unwrap_or(default.level), format: raw.format.value().unwrap_or(default.format) }
}

/// A second key of the same name leaves the rest of the document readable, unlike any other syntax error.
fn is_duplicate(error: &Error) -> bool {
    error.message() == "duplicate key"
}

fn place_of(error: &Error, text: &str) -> Span {
    error.span().map_or_else(
        || {
            // Only a key nested too deep comes without a place: find it by its dots.
            let mut start = 0;
            for line in text.split_inclusive('\n') {
                if line.matches('.').count() > 70 {
                    return Span { start, end: start };
                }
                start += line.len();
            }
            Span { start: 0, end: 0 }
        },
        Span::from,
    )
}

/// A pipe or a device may never end, or never begin: only regular files are read, and opening one never waits.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // Room for all of it and for seeing its end: what grows leaves a copy behind.
    let mut bytes = Vec::with_capacity(about.len().min(MAX_FILE) as usize + 1);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
