//! `completion`, `man`, `version`: made from the definitions in `cli`.

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use super::{Context, Done};
use crate::cli::Cli;

pub(super) fn completion(context: &Context, shell: Shell) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "postern-agent", &mut script);
    Ok(context.output.raw(&script)?)
}

pub(super) fn man(context: &Context) -> Done {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(context.output.raw(&page)?)
}

pub(super) fn version(context: &Context) -> Done {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.json {
        return Ok(context.output.json(&json!({ "version": version }))?);
    }
    Ok(context.output.line(format!("postern-agent {version}"))?)
}
