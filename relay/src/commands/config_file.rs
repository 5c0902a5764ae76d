//! `config check`, `config schema`, `config example`.

use serde_json::json;

use super::{Context, Done, Exit, Failure};
use crate::cli::Config;
use crate::config::{self, file::RelayFile};
use crate::output;

pub(super) fn run(context: &Context, command: &Config) -> Done {
    match command {
        Config::Check => check(context),
        Config::Schema => Ok(output::json(&schemars::schema_for!(RelayFile))?),
        Config::Example => Ok(output::raw(config::EXAMPLE.as_bytes())?),
    }
}

fn check(context: &Context) -> Done {
    let output = context.output;
    match config::load(&context.config) {
        Ok(loaded) => {
            if output.json {
                return Ok(output::json(&json!({ "ok": true, "warnings": loaded.warnings }))?);
            }
            for warning in &loaded.warnings {
                output.note(format!("! {warning}"));
            }
            let (services, tests) = (loaded.settings.services.len(), loaded.policy.run_tests().len());
            output.note(format!(
                "{} is good: {services} service(s), {tests} test(s) passed",
                context.config.display()
            ));
            Ok(())
        }
        Err(errors) if output.json => {
            let errors: Vec<_> = errors
                .iter()
                .map(|error| {
                    let (line, column) = error.place.as_ref().map(|place| (place.line, place.column)).unzip();
                    json!({ "file": error.file, "line": line, "column": column, "message": error.message })
                })
                .collect();
            output::json(&json!({ "ok": false, "errors": errors }))?;
            Err(Failure::silent(Exit::Config))
        }
        Err(errors) => Err(context.invalid(&errors)),
    }
}
