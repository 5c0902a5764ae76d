//! What is typed: the commands of `postern-agent` with their flags. Completions and the man page come from here too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use postern_base::id::ServiceName;

use crate::commands;
use crate::settings::RelayAddress;

const EXIT_CODES: &str = "Exit codes: 0 ok · 1 other failure, or a check that failed · 2 usage · 3 configuration invalid · 6 no such service · \
     7 relay unreachable · 8 no agent runs here";

/// The agent of Postern, beside the services.
#[derive(Debug, Parser)]
#[command(name = "postern-agent", version, after_help = EXIT_CODES, max_term_width = 80)]
pub(crate) struct Cli {
    /// The configuration.
    #[arg(
        short,
        long,
        global = true,
        display_order = 900,
        value_name = "FILE",
        env = "POSTERN_AGENT_CONFIG",
        default_value = "/etc/postern/agent.toml"
    )]
    pub(crate) config: PathBuf,
    /// Print JSON.
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Say only what went wrong.
    #[arg(short, long, global = true, display_order = 900, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log more; twice for everything.
    #[arg(short, long, global = true, display_order = 900, action = ArgAction::Count)]
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
    /// Show how the running agent stands.
    Status,
    /// Have the running agent take nothing new, finish what it has, and end.
    Drain,
    /// Look for what is wrong, from the configuration to the relay and the upstreams, and say what to do.
    Doctor(Doctor),
    /// Put services into agent.toml, and take them out.
    #[command(subcommand)]
    Service(Service),
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

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Write what was found into a new .tar.gz, without keys, tokens and other secrets, for somebody else to look at.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Put a service into agent.toml, whose comments and order stay; say what the relay needs for it.
    Add {
        name: ServiceName,
        /// Where it is: `http://HOST:PORT`, `https://…`, `h2c://…`, `h2://…`, `unix:/PATH` or `tcp://HOST:PORT`; several of one kind share
        /// the requests.
        #[arg(value_name = "UPSTREAM", required = true)]
        upstreams: Vec<String>,
    },
    /// Take a service out of agent.toml.
    Rm { name: ServiceName },
    /// List the services of agent.toml.
    Ls,
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

/// The definitions, for the reference.
pub fn definition() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs one command; gives its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match postern_base::console::shell::parse(args) {
        Ok(cli) => commands::run(cli),
        Err(code) => code,
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
        assert!(parse("postern-agent service add wiki http://127.0.0.1:1 http://127.0.0.1:2").is_ok());
        assert!(parse("postern-agent doctor --bundle b.tar.gz --json").is_ok());
        for bad in [
            "postern-agent join",
            "postern-agent join relay.example.com pst1.x.y",
            "postern-agent join http://relay.example.com",
            "postern-agent run -q -v",
            "postern-agent service add wiki",
            "postern-agent service add Wiki! http://127.0.0.1",
            "postern-agent status wiki",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
