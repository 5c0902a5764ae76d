//! Takes the command line and the environment; gives typed arguments; refuses with clap's own messages. Completions and the manual
//! are generated from these definitions.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use postern_base::id::ServiceName;
use postern_base::value::Span;

use crate::forward::spec::Spec;
use crate::relay_api::address::{RelayUrl, Target};

const EXIT_CODES: &str = "Exit codes: 0 ok · 1 other failure · 2 usage · 3 configuration invalid · 4 login needed or expired · \
5 denied by policy · 6 no such service · 7 relay unreachable · 8 agent or upstream down · 9 rate limited · 130 interrupted";

/// Reach internal services through a Postern relay
#[derive(Debug, Parser)]
#[command(name = "postern", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The relay: host, host:port or its https URL [default: `POSTERN_RELAY`, then the one last logged in to]
    #[arg(short, long, global = true)]
    pub(crate) relay: Option<RelayUrl>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress, only results, warnings and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log what happens to stderr; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Trust the certificates in this PEM file, besides the system's [default: `POSTERN_CA`]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in to a relay
    Login(Login),
    /// Revoke the session and forget it
    Logout {
        /// Of every relay
        #[arg(long)]
        all: bool,
    },
    /// Show who the relay says I am
    Whoami,
    /// List what I may reach, and whether it is up
    Ls {
        /// Only services whose name contains this, or matches it when it has a `*`
        pattern: Option<String>,
        /// All columns, however wide
        #[arg(long)]
        wide: bool,
    },
    /// Ask whether a call would be allowed, which rule says so, what is missing
    Can {
        /// GET, POST, …; CONNECT for a TCP service
        method: String,
        /// The service and the path within it; the service alone for CONNECT
        #[arg(value_name = "SERVICE/PATH")]
        target: Target,
    },
    /// Serve a service on a local port, HTTP or TCP; ordinary programs need no token there
    Forward(Forward),
    /// Connect standard input and output to a TCP service (ssh's `ProxyCommand`)
    Connect {
        /// The service
        service: ServiceName,
    },
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
    Token {
        /// For this service, when it has an audience of its own
        #[arg(long)]
        service: Option<String>,
        /// As an Authorization header
        #[arg(long)]
        header: bool,
        /// One that lives at least this long, such as 5m, if the issuer gives such tokens
        #[arg(long, value_name = "DURATION", value_parser = |text: &str| text.parse::<Span>())]
        min_ttl: Option<Span>,
    },
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

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The relay: host, host:port or its https URL [default: the one last logged in to]
    #[arg(value_name = "RELAY")]
    pub(crate) to: Option<RelayUrl>,
    /// Which of the relay's logins, when it has several
    #[arg(long, value_name = "NAME")]
    pub(crate) issuer: Option<String>,
    /// Enter a code on another device (the default over SSH and without a display)
    #[arg(long, conflicts_with_all = ["no_browser", "client_credentials"])]
    pub(crate) device: bool,
    /// Print the address instead of opening a browser
    #[arg(long, conflicts_with = "client_credentials")]
    pub(crate) no_browser: bool,
    /// Ask for this scope too; as a program, for this one instead of those that the relay names
    #[arg(long = "scope", value_name = "S")]
    pub(crate) scopes: Vec<String>,
    /// Log in anew, and accept that the relay's issuer or client id changed
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) client: Identity,
}

/// A program's own login: no person, no browser.
#[derive(Debug, Default, Args)]
pub(crate) struct Identity {
    /// Log in as a program, by client credentials
    #[arg(long)]
    pub(crate) client_credentials: bool,
    /// The client that the program is [default: `POSTERN_CLIENT_ID`]
    #[arg(long, value_name = "ID", requires = "client_credentials")]
    pub(crate) client_id: Option<String>,
    /// Its secret [default: `POSTERN_CLIENT_SECRET_FILE`]
    #[arg(long, value_name = "FILE", requires = "client_credentials", group = "proof")]
    pub(crate) client_secret_file: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "client_credentials", group = "proof")]
    pub(crate) client_key: Option<PathBuf>,
    /// A token of the platform that it runs on, by which the issuer knows it; read anew for each login
    #[arg(long, value_name = "FILE", requires = "client_credentials", group = "proof")]
    pub(crate) token_file: Option<PathBuf>,
}

/// The same for one command alone: nothing of it is kept.
#[derive(Debug, Args)]
pub(crate) struct Program {
    #[command(flatten)]
    pub(crate) client: Identity,
    /// Which of the relay's logins, when it has several
    #[arg(long, value_name = "NAME", requires = "client_credentials")]
    pub(crate) issuer: Option<String>,
    /// Ask for this scope instead of those that the relay names
    #[arg(long = "scope", value_name = "S", requires = "client_credentials")]
    pub(crate) scopes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// SERVICE, PORT:SERVICE or BIND:PORT:SERVICE
    #[arg(required = true, value_name = "SPEC")]
    pub(crate) specs: Vec<Spec>,
    /// Listen here [default: 127.0.0.1]; beyond loopback needs --share
    #[arg(long, value_name = "ADDR")]
    pub(crate) bind: Option<IpAddr>,
    /// Let other machines, and other users of this one, use it: needed to listen beyond loopback
    #[arg(long)]
    pub(crate) share: bool,
    /// Listen on a unix socket (0600) instead of a port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["bind", "share"])]
    pub(crate) unix: Option<PathBuf>,
    /// End when the first connection that was of use is closed
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) program: Program,
    /// Run this with `POSTERN_PORT` and `POSTERN_URL` set, and exit with its code
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
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
        if arg == "-r" || arg == "--relay" || arg == "--ca" {
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
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definitions_are_sound() {
        definition().debug_assert();
    }

    #[test]
    fn all_after_curl_is_curls() {
        for line in [
            "postern -r relay.example.com --json curl -v -r 0-9 -q billing/v1",
            "postern curl --json -- billing/v1",
        ] {
            let cli = words(line).unwrap();
            let Some(Command::Curl { args }) = cli.command else { panic!("{line}") };
            assert_eq!(args.last().unwrap(), "billing/v1");
            assert!(args.len() > 1 && cli.globals.verbose == 0, "{args:?}");
        }
        assert_eq!(words("postern curl --help").unwrap_err().kind(), clap::error::ErrorKind::DisplayHelp);
        assert!(words("postern curl").is_err());
    }

    #[test]
    fn a_forward_takes_specs_and_a_command() {
        let cli = words("postern forward 8080:billing wiki --once -- sh -c true").unwrap();
        let Some(Command::Forward(forward)) = cli.command else { panic!() };
        assert_eq!((forward.specs.len(), forward.command.len(), forward.once), (2, 3, true));
        assert!(words("postern forward x:y:z").is_err());
        assert!(words("postern forward --unix /tmp/s --share billing").is_err());
    }

    #[test]
    fn a_program_proves_itself_in_one_way() {
        let login = "postern login r --client-credentials --client-id batch";
        for good in ["", " --client-secret-file s", " --client-key k", " --token-file t --scope a"] {
            assert!(words(&format!("{login}{good}")).is_ok(), "{good}");
        }
        for bad in [" --client-key k --token-file t", " --device", " --no-browser"] {
            assert!(words(&format!("{login}{bad}")).is_err(), "{bad}");
        }
        assert!(words("postern login r --client-id batch").is_err());
        assert!(words("postern forward wiki --client-credentials --token-file t --scope a").is_ok());
        assert!(words("postern forward wiki --scope a").is_err());
    }
}
