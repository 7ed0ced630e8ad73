//! Logs: one line per event on standard error, as text or JSON.
//!
//! Levels are promises: error means broken, warn may wake someone, info is about the life of the gateway, debug about
//! single connections, trace about packets. A panic that was contained is logged as an error with its place.
//!
//! Lines are handed to a thread of their own over a bounded queue: a standard error that is full, closed or not read
//! costs log lines, which are counted (`portway_log_lines_dropped`), and never a turn of an arbiter.

use std::sync::OnceLock;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

use super::config::{Level, Log, LogFormat};

/// Lines that may wait for a slow reader of standard error.
const WAITING: usize = 16_384;

/// A process has one log, so it has one count of what the log lost.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Sets up logging for the process. A second call in one process changes nothing. The guard writes what still waits
/// when it is dropped, for at most about a second.
pub(super) fn start(log: &Log) -> WorkerGuard {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING).finish(std::io::stderr());
    let lost = writer.error_counter();
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(writer)
        .with_target(false)
        .log_internal_errors(false);
    let done = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if done.is_ok() {
        LOST.get_or_init(|| lost);
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string);
            let message = info.payload_as_str().unwrap_or("a panic without a message");
            tracing::error!(place, message, "panic");
        }));
    }
    guard
}

/// Log lines that were dropped since the start.
pub(super) fn lines_dropped() -> usize {
    LOST.get().map_or(0, ErrorCounter::dropped_lines)
}
