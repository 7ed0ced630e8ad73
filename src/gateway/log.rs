//! Logs: one line per event on standard error, as text or JSON.
//!
//! Levels are promises: error means broken, warn may wake someone, info is about the life of the gateway, debug about
//! single connections, trace about packets. A panic that was contained is logged as an error with its place. A reload
//! may change the level, not the format.
//!
//! Lines are handed to a thread of their own over a bounded queue: a standard error that is full, closed or not read
//! costs log lines, which are counted (`portway_log_lines_dropped`), and never a turn of an arbiter. So does a full disk.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{Handle, Layer as Reloadable};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use super::config::{Level, Log, LogFormat};

/// Lines that may wait for a slow reader of standard error.
const WAITING: usize = 16_384;

/// A process has one log, so it has one count of what the log lost, and one level.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();
static LEVEL: OnceLock<Handle<LevelFilter, Registry>> = OnceLock::new();
/// Lines that standard error did not take: a full disk, say.
static UNWRITTEN: AtomicUsize = AtomicUsize::new(0);

/// Standard error, with a count of what it does not take.
#[derive(Debug)]
struct Counted<W>(W);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    /// One line: what writes logs says nothing of errors.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.write_all(line).inspect_err(|_| {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Sets up logging for the process. A second call in one process changes nothing. The guard writes what still waits
/// when it is dropped, for at most about a second.
pub(super) fn start(log: &Log) -> WorkerGuard {
    let (level, handle) = Reloadable::new(filter(log.level));
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING).finish(Counted(io::stderr()));
    let lost = writer.error_counter();
    let lines = fmt::layer().with_writer(writer).with_target(false).log_internal_errors(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(level).with(lines).try_init().is_ok() {
        LOST.get_or_init(|| lost);
        LEVEL.get_or_init(|| handle);
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string);
            let message = info.payload_as_str().unwrap_or("a panic without a message");
            tracing::error!(place, message, "panic");
        }));
    }
    guard
}

/// From now on lines of this level and above are written. Nothing, where the log is the embedding program's.
pub(super) fn set_level(level: Level) {
    if let Some(handle) = LEVEL.get()
        && let Err(error) = handle.reload(filter(level))
    {
        tracing::warn!(%error, "the level of the log stays as it was");
    }
}

/// Log lines that were dropped since the start.
pub(super) fn lines_dropped() -> usize {
    LOST.get().map_or(0, ErrorCounter::dropped_lines).saturating_add(UNWRITTEN.load(Ordering::Relaxed))
}

const fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}
