//! The `postern` command: logs in, shows what one may reach, and forwards local ports to services behind a relay.
//!
//! [`main`] takes arguments and gives an exit code; it reads its environment and prints, so that another program (the demo) can be
//! `postern` by calling it.

mod channel;
mod cli;
mod commands;
mod dial;
mod failure;
mod forward;
mod issuer;
mod lease;
mod login;
mod output;
mod relay_api;
mod session;
mod settings;
mod socks;
mod splice;
#[cfg(test)]
mod testing;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use postern_base::telemetry::{self, LogFormat};

pub use cli::definition;
pub use commands::documents;

use crate::failure::{Exit, Failure};
use crate::output::Output;

/// What still blocks in the keyring when the command is over is not worth waiting for.
const LEAVE: Duration = Duration::from_millis(100);

/// Runs one command to its end. The first argument is the program's name. The exit codes are those of `postern --help`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match cli::parse(args.iter().cloned()) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error, args.iter().any(|arg| arg == "--json")),
    };
    let is_lent = cli.command.as_ref().is_some_and(cli::Command::lends_stdout);
    let out = Output::new(cli.globals.json, cli.globals.quiet).lending_stdout(is_lent);
    match run(cli, &out).and_then(output::delivered) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

fn run(cli: cli::Cli, out: &Output) -> Result<u8, Failure> {
    let level = match cli.globals.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    telemetry::init(level, LogFormat::Text).map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Other, format!("the runtime does not start: {e}")))?;
    let result = runtime.block_on(commands::run(cli, out));
    runtime.shutdown_timeout(LEAVE);
    result
}
