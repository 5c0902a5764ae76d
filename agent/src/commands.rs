//! The commands, one file each, and what they share: how they end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use postern_base::admin::{Client, ClientError, socket_path};
use postern_base::config::{ConfigError, Problem, Source};
use postern_base::console::{self, Done, Exit, Failure, Output, block_on, shell};
use postern_base::telemetry::{self, LogFormat};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{Cli, Command};
use crate::config::{self, Loaded};
use crate::identity::{AgentIdentity, IdentityError};
use crate::settings::Settings;

mod config_file;
mod doctor;
mod documents;
mod drain;
mod join;
mod service;
mod status;

pub use documents::documents;

/// What every command knows.
#[derive(Debug)]
struct Context {
    config: PathBuf,
    output: Output,
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    let output = Output { json: cli.json, quiet: cli.quiet, verbose: cli.verbose };
    let context = Context { config: cli.config, output };
    if !matches!(cli.command, Command::Run) && output.verbose > 0 {
        // A level of ours always parses; POSTERN_LOG may not, and then the command goes on without a log.
        let _ = telemetry::init(output.level().unwrap_or("debug"), LogFormat::Text);
    }
    let done = match cli.command {
        Command::Join(args) => join::run(&context, &args),
        Command::Run => serve(&context),
        Command::Status => status::run(&context),
        Command::Drain => drain::run(&context),
        Command::Doctor(args) => doctor::run(&context, args.bundle.as_deref()),
        Command::Service(command) => service::run(&context, command),
        Command::Config(command) => config_file::run(&context, &command),
        Command::Completion { shell } => shell::completion(Cli::command(), shell),
        Command::Man => shell::man(Cli::command()),
        Command::Version => shell::version(&Cli::command(), output),
    };
    console::end(done)
}

fn serve(context: &Context) -> Done {
    let loaded = context.load()?;
    let settings = &loaded.settings;
    telemetry::init(context.output.level().unwrap_or(&settings.log), settings.format)
        .map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    for warning in &loaded.warnings {
        tracing::warn!("{}: {warning}", context.config.display());
    }
    Ok(crate::supervisor::run(loaded)?)
}

impl Context {
    fn load(&self) -> Result<Loaded, Failure> {
        config::load(&self.config).map_err(|errors| self.invalid(&errors))
    }

    /// The running agent, if one runs. Needs no more of the configuration than the state directory, so that a file that is being edited
    /// does not keep an operator from the agent.
    fn agent(&self) -> Result<Client, Failure> {
        #[derive(Deserialize)]
        struct Where {
            state: PathBuf,
        }
        let invalid = |e: ConfigError| self.invalid(&[e]);
        let source = Source::read(&self.config).map_err(invalid)?;
        let found: Where = source.parse().map_err(invalid)?;
        Ok(Client::new(socket_path(&source.dir().join(found.state))))
    }

    fn located(&self, problems: Vec<Problem>) -> Vec<ConfigError> {
        match Source::read(&self.config) {
            Ok(source) => problems.into_iter().map(|problem| source.locate(problem)).collect(),
            Err(e) => vec![e],
        }
    }

    fn invalid(&self, errors: &[ConfigError]) -> Failure {
        let file = self.config.display();
        let lines = if self.config.exists() {
            let shown = errors.iter().map(ToString::to_string);
            std::iter::once(format!("{file} is not good")).chain(shown).collect()
        } else {
            vec![format!("there is no {file}: run: postern-agent join RELAY, or give -c FILE")]
        };
        Failure { exit: Exit::Config, lines }
    }
}

/// An answer of the running agent.
fn answer<T: DeserializeOwned>(called: Result<Value, ClientError>) -> Result<T, Failure> {
    let not_running =
        "no agent is running here: start one with: postern-agent run (or: systemctl start postern-agent)";
    console::answer(called, Exit::Failed)?.ok_or_else(|| Failure::new(Exit::Down, not_running))
}

/// This agent's identity, wherever it is from.
fn identity(settings: &Settings) -> Result<AgentIdentity, IdentityError> {
    match &settings.identity {
        Some(files) => AgentIdentity::elsewhere(files),
        None => AgentIdentity::load(&settings.state),
    }
}
