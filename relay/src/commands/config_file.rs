//! `config check`, `config schema`, `config example`.

use std::fs::File;
use std::path::Path;

use postern_base::config::{ConfigError, Problem, Source};
use serde_json::json;

use super::{Context, Done, Exit, Failure};
use crate::cli::Config;
use crate::config::{self, Loaded, file::RelayFile};
use crate::output;
use crate::settings::{AuditTo, TlsSettings};

pub(super) fn run(context: &Context, command: &Config) -> Done {
    match command {
        Config::Check => check(context),
        Config::Schema => Ok(output::json(&schemars::schema_for!(RelayFile))?),
        Config::Example => Ok(output::raw(config::EXAMPLE.as_bytes())?),
    }
}

/// What `run` will open beyond what every command reads: it is there.
fn openable(context: &Context, loaded: Loaded) -> Result<Loaded, Vec<ConfigError>> {
    let settings = &loaded.settings;
    let mut problems = Vec::new();
    if let TlsSettings::Files { cert, key } = &settings.tls {
        for (at, path) in [("tls.cert", cert), ("tls.key", key)] {
            if let Err(e) = File::open(path) {
                problems.push(Problem::new(at, format!("{}: {e}", path.display())));
            }
        }
    }
    if let AuditTo::File(path) = &settings.audit {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Err(e) = dir.read_dir() {
            problems.push(Problem::new("audit.file", format!("{}: {e}", dir.display())));
        }
    }
    if problems.is_empty() {
        return Ok(loaded);
    }
    let source = Source::read(&context.config).map_err(|e| vec![e])?;
    Err(problems.into_iter().map(|problem| source.locate(problem)).collect())
}

fn check(context: &Context) -> Done {
    let output = context.output;
    match config::load(&context.config).and_then(|loaded| openable(context, loaded)) {
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
