//! `completion`, `man`, `version`: made from the definitions in `cli`.

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use super::{Context, Done};
use crate::cli::Cli;
use crate::output;

pub(super) fn completion(shell: Shell) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "postern-relay", &mut script);
    Ok(output::raw(&script)?)
}

pub(super) fn man() -> Done {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(output::raw(&page)?)
}

pub(super) fn version(context: &Context) -> Done {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.json {
        return Ok(output::json(&json!({ "version": version }))?);
    }
    Ok(output::line(format!("postern-relay {version}"))?)
}
