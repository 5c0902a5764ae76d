//! `config check`, `config diff`, `config schema`, `config example`.

use std::fs::File;
use std::path::Path;

use postern_base::audit::Destination;
use postern_base::config::{ConfigError, Problem, Source};

use super::{Context, diff, expand};
use crate::cli::Config;
use crate::config::{self, Loaded, file::RelayFile};
use crate::settings::TlsSettings;
use postern_base::console::{self, Done};

pub(super) fn run(context: &Context, command: &Config) -> Done {
    match command {
        Config::Check { expand: false } => check(context),
        Config::Check { expand: true } => {
            let loaded = config::load(&context.config).and_then(|loaded| openable(context, loaded));
            loaded.map_err(|errors| context.invalid(&errors))?;
            expand::print(context)
        }
        Config::Diff { file } => diff::run(context, file.as_deref()),
        Config::Schema => Ok(console::json(&schemars::schema_for!(RelayFile))?),
        Config::Example => Ok(console::raw(config::EXAMPLE.as_bytes())?),
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
    if let Destination::File(path) = &settings.audit.log.to {
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
    let found = config::load(&context.config).and_then(|loaded| openable(context, loaded)).map(|loaded| {
        let (services, tests) = (loaded.settings.services.len(), loaded.policy.run_tests().len());
        let file = context.config.display();
        (format!("{file} is good: {services} service(s), {tests} test(s) passed"), loaded.warnings)
    });
    context.output.checked(found, |errors| context.invalid(errors))
}
