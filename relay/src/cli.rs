//! What is typed: the commands of `postern-relay` with their flags. Completions and the man page come from here too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use postern_base::id::{AgentName, IssuerName, ServiceName};
use postern_base::value::Span;

use crate::commands;
use crate::session::LockId;

mod agent;
mod audit;
mod ca;
mod ops;

pub(crate) use agent::Agent;
pub(crate) use audit::{Audit, FindAudit, VerifyAudit};
pub(crate) use ca::{Ca, Rotate};
pub(crate) use ops::{Backup, Doctor, Drain, Issuer, Restore};

const EXIT_CODES: &str = "Exit codes: 0 ok · 1 other failure · 2 usage · 3 configuration invalid · 4 token not accepted · \
5 denied by policy · 6 no such service · 7 relay unreachable or not running";

/// The public relay of Postern.
#[derive(Debug, Parser)]
#[command(name = "postern-relay", version, after_help = EXIT_CODES, max_term_width = 80)]
pub(crate) struct Cli {
    /// The configuration.
    #[arg(
        short,
        long,
        global = true,
        display_order = 900,
        value_name = "FILE",
        env = "POSTERN_RELAY_CONFIG",
        default_value = "/etc/postern/relay.toml"
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

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Make what is missing: relay.toml, the state directory, the agents' CA, a self-signed certificate.
    Init(Init),
    /// Serve until SIGTERM or SIGINT; SIGHUP reloads.
    Run,
    /// Have the running relay read its configuration again.
    Reload,
    /// Have the running relay finish what runs and end, as SIGTERM does.
    Drain(Drain),
    /// Show what the running relay holds, and what is missing.
    Status,
    /// Look for what does not work, and say how to mend it.
    Doctor(Doctor),
    /// Invite, list, suspend and remove agents.
    #[command(subcommand)]
    Agent(Agent),
    /// Show and replace the authority that signs agents' certificates.
    #[command(subcommand)]
    Ca(Ca),
    /// Put services into the configuration, and take them out.
    #[command(subcommand)]
    Service(Service),
    /// Refuse a user, client, issuer, agent, service or token from now on, and cut what runs of it.
    #[command(subcommand)]
    Lock(LockCommand),
    /// Show live streams.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Look at an issuer and its tokens.
    #[command(subcommand)]
    Issuer(Issuer),
    /// Write the relay's state into one file, which is as secret as the state itself.
    Backup(Backup),
    /// Put a backup back: what is missing comes back, and nobody who was put out comes in.
    Restore(Restore),
    /// Check or explain the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Try the rules.
    #[command(subcommand)]
    Policy(Policy),
    /// Read and prove the audit log.
    #[command(subcommand)]
    Audit(Audit),
    /// Print a completion script.
    Completion { shell: Shell },
    /// Print the man page.
    Man,
    /// Print the version.
    Version,
}

#[derive(Debug, Clone, Args)]
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

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Service {
    /// Write a service into a file of its own, where `include` has a pattern for it, or into the configuration itself; print what belongs
    /// into agent.toml.
    // As clap would write it, in lines that fit a terminal.
    #[command(override_usage = "postern-relay service add [OPTIONS] --agent <A> --allow <WHO>\n       \
        --to <WHAT> <NAME>")]
    Add(ServiceAdd),
    /// List the services of the configuration.
    Ls,
    /// Take a service out.
    Rm {
        name: ServiceName,
        /// Have the running relay read its configuration again.
        #[arg(long)]
        reload: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceAdd {
    pub(crate) name: ServiceName,
    /// The agent beside it; may be repeated.
    #[arg(long = "agent", value_name = "A", required = true)]
    pub(crate) agents: Vec<AgentName>,
    /// Who may call: `role:NAME`, `group:NAME` or the like, `*`; may be repeated.
    #[arg(long, value_name = "WHO", required = true)]
    pub(crate) allow: Vec<String>,
    /// What they may do: `METHOD[,METHOD] PATH`, or CONNECT for a TCP service; may be repeated.
    #[arg(long, value_name = "WHAT", required = true)]
    pub(crate) to: Vec<String>,
    /// Whose tokens it takes, where there are several issuers; may be repeated.
    #[arg(long = "issuer", value_name = "I")]
    pub(crate) issuers: Vec<IssuerName>,
    /// A host name of its own; may be repeated.
    #[arg(long = "host", value_name = "H")]
    pub(crate) hosts: Vec<String>,
    /// A line for people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) about: Option<String>,
    /// Have its agent decide again on the caller's own token: gives it an audience of its own, and prints what agent.toml needs for that.
    #[arg(long)]
    pub(crate) verify: bool,
    /// With --verify: whom its tokens must be meant for [default: its public address].
    #[arg(long, value_name = "A", requires = "verify")]
    pub(crate) audience: Option<String>,
    /// Have the running relay read its configuration again.
    #[arg(long)]
    pub(crate) reload: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum LockCommand {
    /// Lock; prints the lock's id.
    // As clap would write it, in lines that fit a terminal.
    #[command(override_usage = "postern-relay lock add [OPTIONS] --reason <R>\n       \
        <--user <U>|--client <C>|--issuer <I>|--agent <A>|--service <S>|\n       \
        --token <ID>|--token-file <F>|--all>")]
    Add(Box<LockAdd>),
    /// List the locks in force.
    Ls,
    /// Take a lock away.
    Rm {
        /// As `lock ls` shows it.
        id: LockId,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LockAdd {
    #[command(flatten)]
    pub(crate) what: LockWhat,
    /// How long, such as 1h [default: until it is taken away].
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) ttl: Option<Span>,
    /// Why, for the audit log and for whoever finds the lock later.
    #[arg(long, value_name = "R")]
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct LockWhat {
    /// A user, by name or `sub`; with several issuers ISSUER/USER.
    #[arg(long, value_name = "U")]
    pub(crate) user: Option<String>,
    /// An OAuth client; with several issuers ISSUER/CLIENT.
    #[arg(long, value_name = "C")]
    pub(crate) client: Option<String>,
    /// All tokens of an issuer.
    #[arg(long, value_name = "I")]
    pub(crate) issuer: Option<String>,
    /// An agent: its tunnels stay, and carry nothing.
    #[arg(long, value_name = "A")]
    pub(crate) agent: Option<String>,
    /// A service.
    #[arg(long, value_name = "S")]
    pub(crate) service: Option<String>,
    /// One token, by the id that audit lines show (16 digits).
    #[arg(long, value_name = "ID")]
    pub(crate) token: Option<String>,
    /// One token, read from a file.
    #[arg(long, value_name = "F")]
    pub(crate) token_file: Option<PathBuf>,
    /// All services, for all callers.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SessionCommand {
    /// List live streams: whose each is, where it goes, and until when it may.
    Ls,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Config {
    /// Check the configuration and run its tests.
    Check {
        /// Print the issuers with all that their provider and the defaults fill in.
        #[arg(long)]
        expand: bool,
    },
    /// Tell what a file would change against the configuration in force: its parts, and decisions that it would turn round.
    Diff {
        /// The new file [default: the configuration, which may have changed since the relay read it].
        file: Option<PathBuf>,
    },
    /// Print the JSON Schema of relay.toml.
    Schema,
    /// Print a commented example.
    Example,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Policy {
    /// Run the `[[tests]]` of the configuration.
    Test,
    /// Explain whether a call would be allowed, by the running relay's policy or, where none runs, by the file's.
    Why(Why),
    /// Decide the calls of an audit log anew, by the configuration's rules, and list those that would now be decided otherwise.
    Replay {
        /// The log; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        audit: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
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
        assert!(parse("postern-relay agent invite dc1 --service wiki --service billing --ttl 15m").is_ok());
        assert!(parse("postern-relay policy why --token-file t GET wiki/ -c relay.toml").is_ok());
        assert!(parse("postern-relay lock add --token 00112233445566ff --ttl 1h --reason r").is_ok());
        assert!(parse("postern-relay service add wiki --agent dc1 --allow * --to CONNECT --reload").is_ok());
        for bad in [
            "postern-relay agent invite DC1",
            "postern-relay agent invite dc1 --ttl 0s",
            "postern-relay policy why GET wiki/",
            "postern-relay policy why --as a --token-file t GET wiki/",
            "postern-relay -q -v run",
            "postern-relay lock add --user ada",
            "postern-relay lock add --reason r",
            "postern-relay lock add --user ada --all --reason r",
            "postern-relay lock rm ada",
            "postern-relay service add wiki --agent dc1 --allow role:clerk",
            "postern-relay service add wiki --agent dc1 --allow * --to CONNECT --audience a",
            "postern-relay policy replay",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
