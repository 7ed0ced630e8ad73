//! Logs: one line per event on standard error, as text or JSON.
//!
//! Levels are promises: error means broken, warn may wake someone, info is about the life of the gateway, debug about
//! single connections, trace about packets. A panic that was contained is logged as an error with its place.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::config::{Level, Log, LogFormat};

/// Sets up logging for the process. A second call in one process changes nothing.
pub(super) fn start(log: &Log) {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var("PORTWAY_LOG").from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let done = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if done.is_ok() {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string);
            let message = info.payload_as_str().unwrap_or("a panic without a message");
            tracing::error!(place, message, "panic");
        }));
    }
}
