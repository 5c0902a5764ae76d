//! `config check --expand`: takes a configuration that was found good; prints its issuers with every key said, as TOML (or JSON) that
//! means the same. Secrets stay references.

use postern_base::config::{ConfigError, Source};
use postern_base::console::{self, Done};
use postern_gate::token::settings::IssuerFile;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::config::file::RelayFile;

/// `config check --expand --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Expanded {
    issuers: Vec<IssuerFile>,
}

pub(super) fn print(context: &Context) -> Done {
    let read = || -> Result<RelayFile, ConfigError> { Source::read(&context.config)?.parse() };
    let file = read().map_err(|error| context.invalid(&[error]))?;
    let expanded = Expanded { issuers: file.issuers.into_iter().map(IssuerFile::filled).collect() };
    if context.output.json {
        return Ok(console::json(&expanded)?);
    }
    Ok(console::raw(toml::to_string(&expanded)?.as_bytes())?)
}
