//! Takes the command line; gives typed arguments, those of larger commands in a file each; refuses with clap's own messages.
//! Completions and the manual are generated from these definitions.

pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod login;
pub(crate) mod profile;
pub(crate) mod proxy;
pub(crate) mod services;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use postern_base::id::ServiceName;

use crate::relay_api::address::RelayUrl;
use crate::session::profile::ProfileName;

const EXIT_CODES: &str = "Exit codes: 0 ok · 1 other failure · 2 usage · 3 configuration invalid · 4 login needed or expired · \
5 denied by policy · 6 no such service · 7 relay unreachable · 8 agent or upstream down · 9 rate limited · 130 interrupted";

/// Reach internal services through a Postern relay
#[derive(Debug, Parser)]
#[command(name = "postern", version, after_help = EXIT_CODES, disable_help_subcommand = true, max_term_width = 80)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The relay: host, host:port or its https URL [default: `POSTERN_RELAY`, then the profile's]
    #[arg(short, long, global = true, display_order = 900)]
    pub(crate) relay: Option<RelayUrl>,
    /// The session to use, by its name: several relays, or several identities at one [default: `POSTERN_PROFILE`, then the one last
    /// used to log in]
    #[arg(long, global = true, display_order = 900, value_name = "NAME")]
    pub(crate) profile: Option<ProfileName>,
    /// Print JSON
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Print no progress, only results, warnings and errors
    #[arg(short, long, global = true, display_order = 900)]
    pub(crate) quiet: bool,
    /// Log what happens to stderr; twice for more
    #[arg(short, long, global = true, display_order = 900, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Trust the certificates in this PEM file, besides the system's [default: `POSTERN_CA`]
    #[arg(long, global = true, display_order = 900, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in to a relay
    Login(login::Login),
    /// Revoke the session and forget it
    Logout {
        /// Of every relay
        #[arg(long)]
        all: bool,
    },
    /// Show who the relay says I am
    Whoami,
    /// The relays and identities that have a session here
    #[command(subcommand)]
    Profile(profile::Profile),
    /// List what I may reach, and whether it is up
    Ls(services::Ls),
    /// Show a service: what I may do there, how often, whether it is up, how to reach it
    Show(services::Show),
    /// Ask whether a call would be allowed, which rule says so, what is missing
    Can(services::Can),
    /// Serve a service on a local port, HTTP or TCP; ordinary programs need no token there
    Forward(forward::Forward),
    /// Connect standard input and output to a TCP service (ssh's `ProxyCommand`)
    Connect {
        /// The service
        service: ServiceName,
    },
    /// Serve all services by their names to programs that speak SOCKS5; nothing else leaves
    Proxy(proxy::Proxy),
    /// Run the system's curl on a service, with the token added outside of it
    Curl {
        /// curl's own arguments, then SERVICE/PATH
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CURL_ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Print an access token
    Token(services::Token),
    /// Show session, relay, services and running forwards
    Status(health::Status),
    /// Find out what does not work on the way to the relay, or to a service, and what to do about it
    Doctor(health::Doctor),
    /// Print a completion script
    Completion {
        /// For this shell
        shell: Shell,
    },
    /// Print the manual (read it with `man -l -`)
    Man,
    /// Print the version
    Version,
}

impl Command {
    /// Whether stdout is a service's, or another program's.
    pub(crate) fn lends_stdout(&self) -> bool {
        let runs_another = matches!(self, Self::Forward(args) if !args.command.is_empty());
        runs_another || matches!(self, Self::Connect { .. } | Self::Curl { .. })
    }
}

/// Parses; everything after `curl` is curl's, even what looks like an option of ours.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if let Some(at) = curl_at(&args)
        && args.get(at + 1).is_some_and(|next| next != "--help" && next != "-h")
    {
        args.insert(at + 1, "--".into());
    }
    Cli::try_parse_from(args)
}

/// Where the command `curl` stands: the first argument that is neither an option nor an option's value.
fn curl_at(args: &[OsString]) -> Option<usize> {
    let mut at = 1;
    while let Some(arg) = args.get(at) {
        if arg == "-r" || arg == "--relay" || arg == "--profile" || arg == "--ca" {
            at += 2;
        } else if arg.as_encoded_bytes().starts_with(b"-") {
            at += 1;
        } else {
            return (arg == "curl").then_some(at);
        }
    }
    None
}

/// The definitions, for completions and the manual.
pub fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests;
