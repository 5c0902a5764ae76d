//! `completion`, `man`, `version`: made from a program's own definition of its command line.

use clap::Command;
use clap_complete::Shell;
use serde_json::json;

use super::{Done, Output, line, raw};

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
        return Ok(super::json(&json!({ "version": version }))?);
    }
    Ok(line(format!("{} {version}", program.get_name()))?)
}
