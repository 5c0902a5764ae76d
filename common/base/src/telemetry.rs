//! Takes the log level and format of a configuration; gives structured logs on stderr. `POSTERN_LOG` overrides the level.

use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub mod recent;

/// What may stand alone.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Strangers can have this library warn as often as they like, of what is ended at once: it would bury the warnings that are for somebody.
/// A filter that names it is obeyed.
const QUIET: &str = "h2=error";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    Json,
    /// For people.
    #[default]
    Text,
}

/// A filter that could not be understood.
#[derive(Debug, thiserror::Error)]
#[error("log level {filter:?}: {reason}; use error, warn, info, debug, trace, off, or module=level")]
pub struct TelemetryError {
    filter: String,
    reason: String,
}

/// Checks a filter such as `info` or `postern_relay=debug,warn`.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |reason| TelemetryError { filter: filter.to_owned(), reason };
    // A word alone that is no level would be a module of that name: nothing would be logged, and nothing said.
    let words = filter.split(',').filter(|word| !word.contains(['=', '[']));
    for word in words {
        if !LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level)) {
            return Err(wrong(format!("{word:?} is no level")));
        }
    }
    EnvFilter::try_new(filter).map_err(|e| wrong(e.to_string()))
}

/// Installs the subscriber for this process; later calls do nothing.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let chosen = std::env::var("POSTERN_LOG").ok().filter(|v| !v.is_empty());
    let wanted = chosen.as_deref().unwrap_or(filter);
    // By itself, so that a mistake is told in the words that were written.
    parse_filter(wanted)?;
    let filter = parse_filter(&format!("{QUIET},{wanted}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation (tests in one process) keeps the first subscriber.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).finish().with(recent::Recent).try_init(),
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .finish()
            .with(recent::Recent)
            .try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_that_there_is() {
        for good in
            ["info", "WARN", "off", "postern_relay=debug,warn", "warn,postern_wire=trace", "x[span]=info"]
        {
            parse_filter(good).unwrap();
        }
        for (bad, named) in [
            ("loud", "\"loud\" is no level"),
            ("info,loud", "\"loud\" is no level"),
            ("postern_relay", "\"postern_relay\" is no level"),
            ("", "\"\" is no level"),
            ("info,", "\"\" is no level"),
            ("info, warn", "\" warn\" is no level"),
            ("x=loud", "x=loud"),
        ] {
            let said = parse_filter(bad).unwrap_err().to_string();
            assert!(said.contains(named) && said.contains("trace, off, or module=level"), "{bad}: {said}");
        }
    }
}
