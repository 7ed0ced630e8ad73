//! The command line: arguments in, exit code out. Programs that bring a protocol of their own get the same one.
//!
//! Exit codes: 0 fine, 1 failed at run time, 2 bad usage or configuration.

pub(super) mod texts;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use tracing_appender::non_blocking::WorkerGuard;

use super::config::Config;
use super::watch::{Watched, stamp};
use super::{Builder, Gateway, Plan, ask, check, control, limits, log, service};
use crate::actors::clock;

/// How often a watched configuration file is looked at. It counts as changed when two looks find it alike.
const WATCH: Duration = Duration::from_millis(500);

pub(super) const FAILED: u8 = 1;
pub(super) const REFUSED: u8 = 2;

/// A multi-protocol gateway configured by one TOML file.
#[derive(Debug, Parser)]
#[command(name = "portway", version)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = "config.toml", env = "PORTWAY_CONFIG")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the gateway until SIGTERM or SIGINT; it then finishes what it accepted. A second signal ends it at once
    Run,
    /// Report every mistake of the configuration file; opens no socket
    Check {
        /// Ask the running gateway of this configuration what a reload would do: keep, change, drain, start
        #[arg(long)]
        diff: bool,
        /// With --diff: as JSON
        #[arg(long, requires = "diff")]
        json: bool,
    },
    /// Have the running gateway of this configuration read it again: applied as a difference, or refused whole
    Reload,
    /// Show how the running gateway of this configuration is: by its control socket, or else its admin listener
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a configuration file to start from: without a name the one with every key and its default
    Example {
        /// Another one; `--list` names them
        name: Option<String>,
        /// Print the names of all examples
        #[arg(long, conflicts_with = "name")]
        list: bool,
    },
    /// Print the JSON Schema (2020-12) of the configuration file, for editors
    Schema,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Say what this machine gives a gateway, and what this configuration would miss of it, if there is one
    Doctor,
    /// Make new keys
    Keygen {
        #[command(subcommand)]
        kind: KeyKind,
    },
    /// Questions about WireGuard listeners
    #[cfg(feature = "wireguard")]
    Wireguard {
        #[command(subcommand)]
        what: WireguardCommand,
    },
    /// The helper of a private network, started by the gateway itself
    #[command(hide = true)]
    PrivateNetwork,
}

/// What keys are for.
#[derive(Debug, Subcommand)]
pub(super) enum KeyKind {
    /// A private key, its public key and a preshared key, printed or written to files
    Wireguard {
        /// Write NAME.key and NAME.psk, readable by their owner alone, and print only the public key
        #[arg(long, value_name = "NAME")]
        out: Option<PathBuf>,
    },
}

#[cfg(feature = "wireguard")]
#[derive(Debug, Subcommand)]
pub(super) enum WireguardCommand {
    /// Print a wg-quick file for a peer of this configuration
    Client {
        /// The peer's name in the configuration, or its public key
        name: String,
        /// Where the client finds this gateway; default: where it listens
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<String>,
        /// A file with the client's private key; without it the file has a line to fill in
        #[arg(long, value_name = "FILE")]
        private_key: Option<PathBuf>,
        /// Send everything through the tunnel
        #[arg(long)]
        everything: bool,
    },
}

/// Does what the command line asks for.
#[must_use]
pub fn main(builder: &Builder) -> ExitCode {
    let Arguments { command, config: path } = Arguments::parse();
    match &command {
        Command::Example { name, list } => return texts::example(name.as_deref(), *list),
        Command::Schema => return texts::schema(&builder.known()),
        Command::Completions { shell } => return texts::completions(*shell),
        Command::Man => return texts::man(),
        Command::PrivateNetwork => return private_network(),
        Command::Keygen { kind: KeyKind::Wireguard { out } } => return keygen(out.as_deref()),
        #[cfg(feature = "wireguard")]
        Command::Wireguard { .. } => {}
        Command::Doctor if !path.exists() => return doctor(None),
        Command::Run | Command::Check { .. } | Command::Reload | Command::Status { .. } | Command::Doctor => {}
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
        Command::Run => run(builder, config, &path),
        Command::Status { json } => status(&config, json),
        Command::Reload => ask_reload(&config),
        Command::Check { diff: true, json } => ask_plan(&config, json),
        Command::Doctor => doctor(Some(&config)),
        #[cfg(feature = "wireguard")]
        Command::Wireguard { what } => client(&config, &what),
        Command::Check { .. }
        | Command::Example { .. }
        | Command::Schema
        | Command::Completions { .. }
        | Command::Man
        | Command::PrivateNetwork
        | Command::Keygen { .. } => {
            #[cfg(feature = "wireguard")]
            for listener in &config.listeners {
                for warning in super::tunnels::of(listener).iter().flat_map(|tunnel| &tunnel.warnings) {
                    let _unread =
                        std::io::stderr().write_all(format!("warning: {}: {warning}\n", listener.name).as_bytes());
                }
            }
            let plural = if config.listeners.len() == 1 { "listener" } else { "listeners" };
            say(&format!("{}: fine, {} {plural}\n", path.display(), config.listeners.len()))
        }
    }
}

fn doctor(config: Option<&Config>) -> ExitCode {
    let program = std::env::current_exe().unwrap_or_default();
    let (text, fine) = super::doctor::look(config, &program);
    let said = say(&text);
    if fine { said } else { ExitCode::from(FAILED) }
}

#[cfg(feature = "wireguard")]
fn client(config: &Config, what: &WireguardCommand) -> ExitCode {
    let WireguardCommand::Client { name, endpoint, private_key, everything } = what;
    let wish = super::wg_client::Wish {
        endpoint: endpoint.as_deref(),
        private_key: private_key.as_deref(),
        everything: *everything,
    };
    match super::wg_client::text(config, name, &wish) {
        Ok(text) => say(&text),
        Err(why) => say_error(&why, REFUSED),
    }
}

#[cfg(feature = "wireguard")]
fn keygen(out: Option<&Path>) -> ExitCode {
    let done = super::keygen::Keys::generate().and_then(|keys| match out {
        None => Ok(keys.text()),
        Some(name) => keys.write(name).map(Into::into),
    });
    match done {
        Ok(text) => say(&text),
        Err(error) => complain(&error, FAILED),
    }
}

#[cfg(not(feature = "wireguard"))]
fn keygen(_: Option<&Path>) -> ExitCode {
    private_network()
}

#[cfg(feature = "wireguard")]
fn private_network() -> ExitCode {
    match crate::transports::tun::serve_private_network() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, FAILED),
    }
}

#[cfg(not(feature = "wireguard"))]
fn private_network() -> ExitCode {
    say_error("this program was built without the feature `wireguard`", REFUSED)
}

fn run(builder: &Builder, config: Config, path: &Path) -> ExitCode {
    let builder = builder.clone().passed_sockets();
    let log = log::start(&config.log);
    let files = limits::raise_open_files();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, FAILED),
    };
    // Before anything is started, so that a signal sent during the start is not lost.
    let mut signals = {
        let _entered = runtime.enter();
        match Signals::new(log) {
            Ok(signals) => signals,
            Err(error) => return complain(&error, FAILED),
        }
    };
    let control = match config.admin.as_ref().and_then(|admin| admin.control.clone()) {
        Some(path) => match control::bind(&path) {
            Ok(socket) => Some((socket, path)),
            Err(error) => {
                return say_error(&format!("the control socket {} cannot be opened: {error}", path.display()), FAILED);
            }
        },
        None => None,
    };
    // This very program, with `private-network` as its argument, is the helper of private networks.
    let builder = &match std::env::current_exe() {
        Ok(program) => builder.helper(program),
        Err(_) => builder,
    };
    let gateway = match builder.start(config) {
        Ok(gateway) => gateway,
        Err(error) => {
            let _gone_already = control.map(|(_, path)| std::fs::remove_file(path));
            return complain(&error, FAILED);
        }
    };
    tracing::info!(arbiters = gateway.mesh().arbiters(), open_files = files, "running");
    gateway.reloads_by(path.to_owned(), {
        let (gateway, builder, path) = (gateway.clone(), builder.clone(), path.to_owned());
        move || reload(&gateway, &builder, &path)
    });
    let (socket, socket_path) = control.unzip();
    let complete = runtime.block_on(until_told(&gateway, &mut signals, builder, path, socket));
    // A later gateway replaces it anyway.
    let _gone_already = socket_path.map(std::fs::remove_file);
    let mesh = gateway.mesh().clone();
    // On a thread of its own, so that a second signal still ends the process while threads are joined.
    let stopping = std::thread::spawn(move || gateway.stop());
    runtime.block_on(async {
        while !stopping.is_finished() {
            tokio::select! {
                name = signals.again() => signals.end_at_once(name),
                () = clock::sleep(Duration::from_millis(5)) => {}
            }
        }
    });
    let out: u64 = mesh.pools().iter().flat_map(|(_, pools)| pools).map(|pool| pool.out).sum();
    if out > 0 {
        tracing::error!(buffers_out = out, "buffers were leaked");
    }
    tracing::info!(buffers_out = out, "stopped");
    if complete { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Serves until a signal, then drains. True if everything accepted was finished.
async fn until_told(
    gateway: &Gateway,
    signals: &mut Signals,
    builder: &Builder,
    path: &Path,
    control: Option<std::os::unix::net::UnixListener>,
) -> bool {
    let controlled = async {
        match control.map(tokio::net::UnixListener::from_std) {
            Some(Ok(socket)) => {
                control::serve(socket, async |command| obey(gateway, builder, path, command).await).await
            }
            Some(Err(error)) => tracing::error!(%error, "the control socket is not served"),
            None => {}
        }
        std::future::pending::<()>().await;
    };
    let mut hangup = signals.hangup.take();
    let reloads = async {
        while let Some(hangup) = &mut hangup
            && let Some(()) = hangup.recv().await
        {
            reload(gateway, builder, path);
        }
    };
    let watched = async {
        let mut watched = Watched::new(stamp(path));
        loop {
            clock::sleep(WATCH).await;
            let now = stamp(path);
            if !gateway.watches_its_file() {
                watched.uses(now);
            } else if watched.look(now) {
                tracing::info!(file = %path.display(), "the configuration has changed");
                reload(gateway, builder, path);
            }
        }
    };
    #[cfg(any(feature = "http", feature = "quic"))]
    let certificates = gateway.keep_certificates();
    #[cfg(not(any(feature = "http", feature = "quic")))]
    let certificates = std::future::pending::<()>();
    service::ready();
    tokio::select! {
        () = certificates => {}
        name = signals.next() => tracing::info!(signal = name, "draining"),
        () = service::report_in(gateway.mesh()) => {}
        () = gateway.keep_budget() => {}
        () = reloads => {}
        () = watched => {}
        () = controlled => {}
    }
    service::stopping();
    let report = tokio::select! {
        report = gateway.drain() => report,
        () = service::report_in(gateway.mesh()) => return false,
        name = signals.again() => signals.end_at_once(name),
        () = gateway.keep_budget() => return false,
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

fn ask_reload(config: &Config) -> ExitCode {
    let Some(path) = config.admin.as_ref().and_then(|admin| admin.control.as_ref()) else {
        return say_error("this configuration has no `control` socket in [admin]; send SIGHUP instead", REFUSED);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, FAILED),
    };
    match runtime.block_on(ask::reload(path)) {
        Ok((true, done)) => say(&format!("reloaded: {done}\n")),
        Ok((false, why)) => say_error(&format!("reload refused, the old configuration goes on\n{why}"), FAILED),
        Err(error) => complain(&error, FAILED),
    }
}

fn ask_plan(config: &Config, json: bool) -> ExitCode {
    let Some(path) = config.admin.as_ref().and_then(|admin| admin.control.as_ref()) else {
        return say_error("this configuration has no `control` socket in [admin] to ask by", REFUSED);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, FAILED),
    };
    match runtime.block_on(ask::plan(path)) {
        Ok((true, plan)) if json => say(&(plan + "\n")),
        Ok((true, plan)) => match serde_json::from_str::<Plan>(&plan) {
            Ok(plan) => say(&plan.text()),
            Err(error) => say_error(&format!("not a portway of this version: {error}"), FAILED),
        },
        Ok((false, why)) => say_error(&format!("a reload would be refused\n{why}"), FAILED),
        Err(error) => complain(&error, FAILED),
    }
}

async fn obey(gateway: &Gateway, builder: &Builder, path: &Path, command: control::Command) -> (bool, String) {
    match command {
        control::Command::Reload => reload(gateway, builder, path),
        control::Command::Plan => match check::load(path, &builder.known()) {
            Ok(config) => match gateway.plan(&config).map(|plan| serde_json::to_string_pretty(&plan)) {
                Ok(Ok(plan)) => (true, plan),
                Ok(Err(error)) => (false, error.to_string()),
                Err(error) => (false, error.to_string()),
            },
            Err(report) => (false, report.render(false)),
        },
        control::Command::Status => match serde_json::to_string_pretty(&gateway.overview().await) {
            Ok(overview) => (true, overview),
            Err(error) => (false, error.to_string()),
        },
    }
}

fn status(config: &Config, json: bool) -> ExitCode {
    let Some(admin) = &config.admin else {
        return say_error("this configuration has no [admin] listener to ask", REFUSED);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, FAILED),
    };
    match runtime.block_on(ask::overview(admin, &config.certificates)) {
        Ok(overview) if json => match serde_json::to_string_pretty(&overview) {
            Ok(text) => say(&(text + "\n")),
            Err(error) => complain(&error, FAILED),
        },
        Ok(overview) => say(&overview.text()),
        Err(error) => complain(&error, FAILED),
    }
}

/// Reads the file again and applies it, or says why not and changes nothing.
fn reload(gateway: &Gateway, builder: &Builder, path: &Path) -> (bool, String) {
    service::reloading();
    let result = read_and_apply(gateway, builder, path);
    service::ready();
    result
}

fn read_and_apply(gateway: &Gateway, builder: &Builder, path: &Path) -> (bool, String) {
    let config = match check::load(path, &builder.known()) {
        Ok(config) => config,
        Err(report) => {
            tracing::error!(mistakes = report.count(), "reload refused, the old configuration goes on");
            report.print();
            let first = report.diagnostics().first().and_then(|d| d.place());
            let first = first.map(|place| format!(", the first at {place}")).unwrap_or_default();
            gateway.reload_refused(format!("{}{first}", report.counted()));
            return (false, report.render(false));
        }
    };
    match gateway.reload(config) {
        Ok(done) => {
            tracing::info!(%done, "reloaded");
            (true, done.to_string())
        }
        Err(error) => {
            tracing::error!(%error, "reload refused, the old configuration goes on");
            (false, error.to_string())
        }
    }
}

/// Signals that come so soon after the first were meant as one: a terminal and a script may both tell of the same end. No
/// hand is so quick.
const TOGETHER: Duration = Duration::from_millis(100);

struct Signals {
    hangup: Option<tokio::signal::unix::Signal>,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// When the first came.
    told: Option<Instant>,
    /// Writes what still waits when it is dropped, which an exit does not do.
    log: Option<WorkerGuard>,
}

impl Signals {
    fn new(log: WorkerGuard) -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            hangup: Some(signal(SignalKind::hangup())?),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            told: None,
            log: Some(log),
        })
    }

    async fn next(&mut self) -> &'static str {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        self.told.get_or_insert_with(clock::now);
        name
    }

    /// The next that was not sent together with the first.
    async fn again(&mut self) -> &'static str {
        loop {
            let name = self.next().await;
            if self.told.is_none_or(|first| clock::now().saturating_duration_since(first) >= TOGETHER) {
                return name;
            }
            tracing::info!(signal = name, "draining already");
        }
    }

    fn end_at_once(&mut self, signal: &str) -> ! {
        tracing::warn!(signal, "ended at once by a second signal");
        drop(self.log.take());
        std::process::exit(i32::from(FAILED));
    }
}

/// Prints. A reader that has had enough (`| head`) is no failure.
pub(super) fn say(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(FAILED),
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    say_error(&error.to_string(), code)
}

pub(super) fn say_error(text: &str, code: u8) -> ExitCode {
    // Standard error gone: the exit code still tells.
    let _unheard = std::io::stderr().write_all(format!("portway: {text}\n").as_bytes());
    ExitCode::from(code)
}
