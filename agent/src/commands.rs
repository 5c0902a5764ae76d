//! The commands, one file each, and what they share: how they end.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_base::config::{ConfigError, Problem, Source};
use postern_base::telemetry::{self, LogFormat};

use crate::cli::{Cli, Command};
use crate::config::{self, Loaded};
use crate::output::{Output, error};

mod config_file;
mod join;
mod shell;

/// Exit codes, those of cli.md that occur here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Failed = 1,
    Usage = 2,
    Config = 3,
    Unreachable = 7,
}

/// A command that did not succeed: its exit code and what to print, which is nothing where the output said it all.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    lines: Vec<String>,
}

impl Failure {
    fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, lines: vec![text.into()] }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        let mut text = error.to_string();
        // Most errors say their cause themselves; it is not said twice.
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        Self::new(Exit::Failed, text)
    }
}

type Done = Result<(), Failure>;

/// What every command knows.
#[derive(Debug)]
struct Context {
    config: PathBuf,
    verbose: u8,
    output: Output,
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    let output = Output { json: cli.json, quiet: cli.quiet };
    let context = Context { config: cli.config, verbose: cli.verbose, output };
    if !matches!(cli.command, Command::Run) && context.verbose > 0 {
        // A level of ours always parses; POSTERN_LOG may not, and then the command goes on without a log.
        let _ = telemetry::init(context.level().unwrap_or("debug"), LogFormat::Text);
    }
    let done = match cli.command {
        Command::Join(args) => join::run(&context, &args),
        Command::Run => serve(&context),
        Command::Config(command) => config_file::run(&context, &command),
        Command::Completion { shell } => shell::completion(shell),
        Command::Man => shell::man(),
        Command::Version => shell::version(&context),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for (index, line) in failure.lines.iter().enumerate() {
                error(if index == 0 { format!("error: {line}") } else { line.clone() });
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn serve(context: &Context) -> Done {
    let loaded = context.load()?;
    let settings = &loaded.settings;
    telemetry::init(context.level().unwrap_or(&settings.log), settings.format)
        .map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    for warning in &loaded.warnings {
        tracing::warn!("{}: {warning}", context.config.display());
    }
    Ok(crate::run(loaded)?)
}

impl Context {
    /// The log level that `-q` or `-v` asks for.
    fn level(&self) -> Option<&'static str> {
        match (self.output.quiet, self.verbose) {
            (true, _) => Some("warn"),
            (false, 0) => None,
            (false, 1) => Some("debug"),
            (false, _) => Some("trace"),
        }
    }

    fn load(&self) -> Result<Loaded, Failure> {
        self.read().map_err(|errors| self.invalid(&errors))
    }

    fn read(&self) -> Result<Loaded, Vec<ConfigError>> {
        let loaded = config::load(&self.config)?;
        let services = loaded.settings.services.values();
        // An authority may end in a number that is no port.
        let no_port = services.filter(|service| {
            let authority = &service.authority;
            authority.port_u16().is_none() && authority.as_str() != authority.host()
        });
        let problems: Vec<_> = no_port
            .map(|service| {
                let problem = Problem::new("upstream", "its port must lie between 1 and 65535");
                problem.under(&service.name).under("services")
            })
            .collect();
        if problems.is_empty() { Ok(loaded) } else { Err(self.located(problems)) }
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
