//! What comes from a program's own definition of its command line: what was typed, or why that is none of it; `completion`, `man`, `version`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Command, Parser};
use clap_complete::Shell;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Done, Output, line, raw};

/// What was typed.
///
/// # Errors
/// It is not a command: that was printed, as was help that was asked for; the code to end with.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    let usage = match C::try_parse_from(&args) {
        Ok(cli) => return Ok(cli),
        Err(error) => without_environment(C::command(), &args, error),
    };
    // With its stream closed there is nobody to tell.
    let _ = usage.print();
    Err(u8::try_from(usage.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The same mistake told without the environment, of which usage lines would speak as if it had to be typed.
fn without_environment(program: Command, args: &[OsString], error: clap::Error) -> clap::Error {
    if !error.use_stderr() {
        return error;
    }
    let again = program.mut_args(|arg| arg.env(None::<&str>)).try_get_matches_from(args).err();
    again.filter(|again| again.kind() == error.kind()).unwrap_or(error)
}

/// `version --json`, of all programs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Version<'a> {
    pub version: &'a str,
}

/// The completion script for one shell.
///
/// # Errors
/// Stdout did not take it.
pub fn completion(mut program: Command, shell: Shell) -> Done {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut script);
    Ok(raw(&script)?)
}

/// The man page.
///
/// # Errors
/// Stdout did not take it.
pub fn man(program: Command) -> Done {
    let mut page = Vec::new();
    clap_mangen::Man::new(program).render(&mut page)?;
    Ok(raw(&page)?)
}

/// Name and version.
///
/// # Errors
/// Stdout did not take it.
pub fn version(program: &Command, output: Output) -> Done {
    let version = program.get_version().unwrap_or_default();
    if output.json {
        return Ok(super::json(&Version { version })?);
    }
    Ok(line(format!("{} {version}", program.get_name()))?)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{Arg, value_parser};

    use super::*;

    fn told(args: &[&str]) -> clap::Error {
        // A variable that every process of a test has.
        let config =
            Arg::new("config").long("config").global(true).env("CARGO_MANIFEST_DIR").default_value("x");
        let who = Arg::new("who").required(true).value_parser(value_parser!(u8));
        let program = Command::new("program").arg(config).subcommand(Command::new("resume").arg(who));
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let error = program.clone().try_get_matches_from(&args).unwrap_err();
        without_environment(program, &args, error)
    }

    #[test]
    fn usage_names_what_must_be_typed() {
        let missing = told(&["program", "resume"]);
        assert_eq!(missing.kind(), ErrorKind::MissingRequiredArgument);
        let missing = missing.to_string();
        assert!(
            missing.contains("Usage: program resume <who>") && !missing.contains("--config"),
            "{missing}"
        );
        let typed = told(&["program", "resume", "--config", "y"]).to_string();
        assert!(typed.contains("Usage: program resume --config <config> <who>"), "{typed}");
        assert!(told(&["program", "resume", "--help"]).to_string().contains("[env: CARGO_MANIFEST_DIR="));
    }
}
