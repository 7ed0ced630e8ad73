//! The command line: arguments in, exit code out. Programs that bring a protocol of their own get the same one.
//!
//! Exit codes: 0 fine, 1 failed at run time, 2 bad usage or configuration.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use super::config::Config;
use super::{Builder, Gateway, check, limits, log};

const FAILED: u8 = 1;
const REFUSED: u8 = 2;

/// A multi-protocol gateway configured by one TOML file.
#[derive(Debug, Parser)]
#[command(name = "portway", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = "config.toml", env = "PORTWAY_CONFIG")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or SIGINT; it then finishes what it accepted. A second signal ends it at once
    Run,
    /// Report every mistake of the configuration file; opens no socket
    Check,
    /// Print a configuration file to start from, with every key and its default
    Example,
}

/// Does what the command line asks for.
#[must_use]
pub fn main(builder: &Builder) -> ExitCode {
    let Arguments { command, config: path } = Arguments::parse();
    if let Command::Example = command {
        return say(include_str!("../../config.toml"));
    }
    let config = match check::load(&path, &builder.known()) {
        Ok(config) => config,
        Err(report) => {
            report.print();
            return ExitCode::from(REFUSED);
        }
    };
    if let Err(error) = builder.check(&config) {
        return complain(&error, REFUSED);
    }
    match command {
        Command::Run => run(builder, config),
        Command::Check | Command::Example => {
            let plural = if config.listeners.len() == 1 { "listener" } else { "listeners" };
            say(&format!("{}: fine, {} {plural}\n", path.display(), config.listeners.len()))
        }
    }
}

fn run(builder: &Builder, config: Config) -> ExitCode {
    log::start(&config.log);
    let files = limits::raise_open_files();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, FAILED),
    };
    // Before anything is started, so that a signal sent during the start is not lost.
    let signals = {
        let _entered = runtime.enter();
        match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return complain(&error, FAILED),
        }
    };
    let gateway = match builder.start(config) {
        Ok(gateway) => gateway,
        Err(error) => return complain(&error, FAILED),
    };
    tracing::info!(arbiters = gateway.mesh().arbiters(), open_files = files, "running");
    let complete = runtime.block_on(until_told(&gateway, signals));
    gateway.stop();
    if complete { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Serves until a signal, then drains. True if everything accepted was finished.
async fn until_told(gateway: &Gateway, mut signals: Signals) -> bool {
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "draining"),
        () = gateway.keep_budget() => {}
    }
    let second = async {
        let name = signals.next().await;
        tracing::warn!(signal = name, "ended at once by a second signal");
        std::process::exit(i32::from(FAILED));
    };
    let report = tokio::select! {
        report = gateway.drain() => report,
        () = second => return false,
    };
    for left in &report.unfinished {
        tracing::warn!(id = %left.id, kind = left.kind, name = left.name.as_deref(), "did not finish in time");
    }
    for arbiter in &report.stuck {
        tracing::error!(arbiter, "did not answer");
    }
    tracing::info!(actors = report.began_with, unfinished = report.unfinished.len(), took = ?report.took, "drained");
    report.complete()
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Prints. A reader that has had enough (`| head`) is no failure.
fn say(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(FAILED),
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let text: Arc<str> = format!("portway: {error}\n").into();
    // Standard error gone: the exit code still tells.
    let _unheard = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}
