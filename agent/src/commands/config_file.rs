//! `config check`, `config schema`, `config example`.

use std::fs::File;

use postern_base::config::{ConfigError, Problem};
use serde_json::json;

use super::{Context, Done, Exit, Failure};
use crate::cli::Config;
use crate::config::{self, AgentFile, Loaded};
use crate::output;

pub(super) fn run(context: &Context, command: &Config) -> Done {
    match command {
        Config::Check => check(context),
        Config::Schema => Ok(output::json(&schemars::schema_for!(AgentFile))?),
        Config::Example => Ok(output::raw(config::EXAMPLE.as_bytes())?),
    }
}

/// What calls will need beyond what every command reads: it is there.
fn openable(context: &Context, loaded: Loaded) -> Result<Loaded, Vec<ConfigError>> {
    let services = loaded.settings.services.values();
    let missing = services.filter_map(|service| {
        let path = service.ca.as_ref()?;
        let problem = Problem::new("tls.ca", format!("{}: {}", path.display(), File::open(path).err()?));
        Some(problem.under(&service.name).under("services"))
    });
    let problems: Vec<_> = missing.collect();
    if problems.is_empty() { Ok(loaded) } else { Err(context.located(problems)) }
}

fn check(context: &Context) -> Done {
    let output = context.output;
    match context.read().and_then(|loaded| openable(context, loaded)) {
        Ok(loaded) => {
            if output.json {
                return Ok(output::json(&json!({ "ok": true, "warnings": loaded.warnings }))?);
            }
            for warning in &loaded.warnings {
                output.note(format!("! {warning}"));
            }
            let services = loaded.settings.services.len();
            output.note(format!("{} is good: {services} service(s)", context.config.display()));
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
            Err(Failure { exit: Exit::Config, lines: Vec::new() })
        }
        Err(errors) => Err(context.invalid(&errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;

    #[test]
    fn missing_files_and_impossible_ports_are_found_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output { json: false, quiet: true };
        let context = Context { config: dir.path().join("agent.toml"), verbose: 0, output };
        let write = |service: &str| {
            let text = format!("version = 1\nrelay = \"relay.example.com\"\nstate = \"s\"\n{service}\n");
            std::fs::write(&context.config, text).unwrap();
        };
        write("[services.wiki]\nupstream = \"http://127.0.0.1:65536\"");
        let failure = check(&context).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.lines.concat().contains("65535"), "{failure:?}");
        write("[services.wiki]\nupstream = \"https://[::1]\"\ntls = { ca = \"ca.pem\" }");
        let failure = check(&context).unwrap_err();
        assert!(failure.exit == Exit::Config && failure.lines.concat().contains("ca.pem"), "{failure:?}");
        std::fs::write(dir.path().join("ca.pem"), "").unwrap();
        check(&context).unwrap();
    }
}
