//! What is typed: the commands of `postern-agent` with their flags. Completions and the man page come from here too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::commands;
use crate::settings::RelayAddress;

const EXIT_CODES: &str =
    "Exit codes: 0 ok · 1 other failure · 2 usage · 3 configuration invalid · 7 relay unreachable";

/// The agent of Postern, beside the services.
#[derive(Debug, Parser)]
#[command(name = "postern-agent", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    /// The configuration.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        env = "POSTERN_AGENT_CONFIG",
        default_value = "/etc/postern/agent.toml"
    )]
    pub(crate) config: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say only what went wrong.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enrol at a relay with an invite from a file, `POSTERN_INVITE` or a prompt.
    Join(Join),
    /// Serve until SIGTERM or SIGINT.
    Run,
    /// Check or explain the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Print a completion script.
    Completion { shell: Shell },
    /// Print the man page.
    Man,
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The relay: host[:port].
    #[arg(value_name = "RELAY")]
    pub(crate) relay: RelayAddress,
    /// A file with the invite.
    #[arg(long, value_name = "F")]
    pub(crate) invite_file: Option<PathBuf>,
    /// Where key and certificate are kept, if there is no agent.toml yet to say it [default: /var/lib/postern-agent].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Replace the agent that the state directory holds.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check the configuration.
    Check,
    /// Print the JSON Schema of agent.toml.
    Schema,
    /// Print a commented example.
    Example,
}

/// Runs one command; gives its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(cli) => commands::run(cli),
        Err(usage) => {
            // With its stream closed there is nobody to tell.
            let _ = usage.print();
            u8::try_from(usage.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_hold_together_and_nothing_secret_is_an_argument() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("postern-agent join relay.example.com:8443 --invite-file i --state s").is_ok());
        for bad in [
            "postern-agent join",
            "postern-agent join relay.example.com pst1.x.y",
            "postern-agent join http://relay.example.com",
            "postern-agent run -q -v",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
