//! What is typed: the commands of `postern-relay` with their flags. Completions and the man page come from here too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use postern_base::id::{AgentName, ServiceName};
use postern_base::value::Span;

use crate::commands;

const EXIT_CODES: &str = "Exit codes: 0 ok · 1 other failure · 2 usage · 3 configuration invalid · 4 token not accepted · \
5 denied by policy · 6 no such service · 7 relay unreachable or not running";

/// The public relay of Postern.
#[derive(Debug, Parser)]
#[command(name = "postern-relay", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    /// The configuration.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        env = "POSTERN_RELAY_CONFIG",
        default_value = "/etc/postern/relay.toml"
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
    /// Make what is missing: relay.toml, the state directory, the agents' CA, a self-signed certificate.
    Init(Init),
    /// Serve until SIGTERM or SIGINT; SIGHUP reloads.
    Run,
    /// Have the running relay read its configuration again.
    Reload,
    /// Show what the running relay holds.
    Status,
    /// Invite, list and remove agents.
    #[command(subcommand)]
    Agent(Agent),
    /// Check or explain the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Try the rules.
    #[command(subcommand)]
    Policy(Policy),
    /// Print a completion script.
    Completion { shell: Shell },
    /// Print the man page.
    Man,
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The relay's public address, such as <https://relay.example.com>.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// The issuer whose tokens are accepted, exactly as in their `iss`.
    #[arg(long)]
    pub(crate) issuer: Option<String>,
    /// What tokens must carry in `aud`; by default the URL.
    #[arg(long)]
    pub(crate) audience: Option<String>,
    /// The client id with which people log in.
    #[arg(long)]
    pub(crate) client_id: Option<String>,
    /// The state directory.
    #[arg(long, default_value = "/var/lib/postern")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Print a one-time invite for an agent.
    Invite {
        /// The agent's name, as relay.toml's services give it.
        name: AgentName,
        /// Let it serve only this one of its services; may be repeated.
        #[arg(long = "service", value_name = "S")]
        services: Vec<ServiceName>,
        /// How long the invite is good, such as 1h [default: `invite_ttl` under `[agents]`, which is 15m unless set].
        #[arg(long, value_name = "D", value_parser = duration)]
        ttl: Option<Span>,
    },
    /// List enrolled agents and open invites.
    Ls,
    /// Put all instances of an agent out for good and cut their tunnels; to come back it needs a new invite.
    Remove {
        /// The agent's name, as `agent ls` shows it.
        name: AgentName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check the configuration and run its tests.
    Check,
    /// Print the JSON Schema of relay.toml.
    Schema,
    /// Print a commented example.
    Example,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Run the `[[tests]]` of the configuration.
    Test,
    /// Explain whether a call would be allowed, by the running relay's policy or, where none runs, by the file's.
    Why(Why),
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// TOML with a caller, in the words of a test's `as`.
    #[arg(
        long = "as",
        value_name = "FILE",
        required_unless_present = "token_file",
        conflicts_with = "token_file"
    )]
    pub(crate) caller: Option<PathBuf>,
    /// A file with a token.
    #[arg(long, value_name = "F")]
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) method: String,
    /// The service, and the path behind its prefix; after CONNECT a TCP service alone.
    #[arg(value_name = "SERVICE/PATH")]
    pub(crate) target: String,
}

fn duration(text: &str) -> Result<Span, String> {
    match text.parse() {
        Ok(Span(span)) if span.is_zero() => Err("must be longer than nothing".to_owned()),
        other => other,
    }
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
        assert!(parse("postern-relay agent invite dc1 --service wiki --service billing --ttl 15m").is_ok());
        assert!(parse("postern-relay policy why --token-file t GET wiki/ -c relay.toml").is_ok());
        for bad in [
            "postern-relay agent invite DC1",
            "postern-relay agent invite dc1 --ttl 0s",
            "postern-relay policy why GET wiki/",
            "postern-relay policy why --as a --token-file t GET wiki/",
            "postern-relay -q -v run",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
