//! The `portway` binary: see `portway::gateway::cli`.

use std::process::ExitCode;

use portway::gateway::{Builder, cli};

fn main() -> ExitCode {
    cli::main(&Builder::new())
}
