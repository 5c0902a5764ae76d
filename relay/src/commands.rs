//! The commands, one file each, and what they share: how they end, and how they reach the running relay or its files.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use postern_base::admin::{self, Client, ClientError};
use postern_base::config::{ConfigError, Source};
use postern_base::console::{self, Done, Exit, Failure, Output, block_on, shell};
use postern_base::telemetry::{self, LogFormat};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{Cli, Command};
use crate::config::file::StateFile;
use crate::config::{self, Loaded};
use crate::enroll::{EnrollSettings, Enrollment};
use crate::settings::Settings;

mod agent;
mod audit;
mod backup;
mod ca;
mod config_file;
mod diff;
mod doctor;
mod documents;
mod drain;
mod expand;
mod init;
mod issuer;
mod lock;
mod policy;
mod relay;
mod replay;
mod service;
mod session;
mod status;

pub use documents::documents;

/// What every command knows.
#[derive(Debug)]
struct Context {
    config: PathBuf,
    output: Output,
    /// A relay came up between the question whether one runs and the look at its database.
    begin_anew: Cell<bool>,
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    let output = Output { json: cli.json, quiet: cli.quiet, verbose: cli.verbose };
    let context = Context { config: cli.config, output, begin_anew: Cell::default() };
    if !matches!(cli.command, Command::Run) && output.verbose > 0 {
        // A level of ours always parses; POSTERN_LOG may not, and then the command goes on without a log.
        let _ = telemetry::init(output.level().unwrap_or("debug"), LogFormat::Text);
    }
    let again = cli.command.clone();
    let mut done = dispatch(&context, cli.command);
    if context.begin_anew.get() {
        done = dispatch(&context, again);
    }
    console::end(done)
}

fn dispatch(context: &Context, command: Command) -> Done {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Run => relay::run(context),
        Command::Reload => relay::reload(context),
        Command::Drain(args) => drain::run(context, &args),
        Command::Status => status::run(context),
        Command::Doctor(args) => doctor::run(context, &args),
        Command::Agent(command) => agent::run(context, command),
        Command::Ca(command) => ca::run(context, command),
        Command::Service(command) => service::run(context, command),
        Command::Lock(command) => lock::run(context, command),
        Command::Session(command) => session::run(context, &command),
        Command::Issuer(command) => issuer::run(context, &command),
        Command::Backup(args) => backup::backup(context, &args),
        Command::Restore(args) => backup::restore(context, &args),
        Command::Config(command) => config_file::run(context, &command),
        Command::Policy(command) => policy::run(context, &command),
        Command::Audit(command) => audit::run(context, &command),
        Command::Completion { shell } => shell::completion(Cli::command(), shell),
        Command::Man => shell::man(Cli::command()),
        Command::Version => shell::version(&Cli::command(), context.output),
    }
}

impl Context {
    fn load(&self) -> Result<Loaded, Failure> {
        config::load(&self.config).map_err(|errors| self.invalid(&errors))
    }

    /// The configuration to look at, not to run by: of tests that fail it warns.
    fn look(&self) -> Result<Loaded, Failure> {
        let (loaded, failing) = config::look(&self.config).map_err(|errors| self.invalid(&errors))?;
        for test in failing {
            self.output.note(format!("! {test}"));
        }
        Ok(loaded)
    }

    fn invalid(&self, errors: &[ConfigError]) -> Failure {
        let mut lines = vec![format!("{} is not good", self.config.display())];
        if !self.config.exists() {
            lines = vec![format!(
                "there is no {}: run: postern-relay init, or give -c FILE",
                self.config.display()
            )];
        } else if !self.output.quiet {
            lines.extend(errors.iter().map(ToString::to_string));
        }
        Failure { exit: Exit::Config, lines }
    }

    /// The running relay, if one runs. Needs no more of the configuration than the state directory, so that a file that is being
    /// edited does not keep an operator from the relay.
    fn relay(&self) -> Result<Client, Failure> {
        #[derive(Deserialize)]
        struct Where {
            state: StateFile,
        }
        let invalid = |e: ConfigError| self.invalid(&[e]);
        let source = Source::read(&self.config).map_err(invalid)?;
        let found: Where = source.parse().map_err(invalid)?;
        Ok(Client::new(admin::socket_path(&source.dir().join(found.state.dir))))
    }
}

/// The database itself, for when no relay holds it.
fn enrollment(settings: &Settings) -> Result<Enrollment, Failure> {
    Ok(Enrollment::open(enroll_settings(settings))?)
}

/// The same for a command that no relay answered; it waits while somebody else holds the database. Where that turns out to be a relay that has
/// just started, the command is to begin anew and ask it: until then nothing has been done.
fn database(context: &Context, settings: &Settings) -> Result<Enrollment, Failure> {
    let opened = block_on(Enrollment::open_when_free(settings.enrolling()))??;
    opened.ok_or_else(|| {
        context.begin_anew.set(true);
        Failure::new(Exit::Failed, "a relay is starting here: run the command again")
    })
}

fn enroll_settings(settings: &Settings) -> EnrollSettings {
    settings.enrolling()
}

/// An answer of the running relay; `None` where none runs.
fn answer<T: DeserializeOwned>(called: Result<Value, ClientError>) -> Result<Option<T>, Failure> {
    console::answer(called, Exit::Unreachable)
}

fn not_running() -> Failure {
    Failure::new(Exit::Unreachable, "no relay is running here: start one with: postern-relay run")
}
