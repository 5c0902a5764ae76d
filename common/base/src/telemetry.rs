//! Takes the log level and format of a configuration; gives structured logs on stderr. `POSTERN_LOG` overrides the level.

use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

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
#[error("log level {filter:?}: {reason}; use error, warn, info, debug, trace, or module=level")]
pub struct TelemetryError {
    filter: String,
    reason: String,
}

/// Checks a filter such as `info` or `postern_relay=debug,warn`.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter)
        .map_err(|e| TelemetryError { filter: filter.to_owned(), reason: e.to_string() })
}

/// Installs the subscriber for this process; later calls do nothing.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let chosen = std::env::var("POSTERN_LOG").ok().filter(|v| !v.is_empty());
    let filter = parse_filter(chosen.as_deref().unwrap_or(filter))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation (tests in one process) keeps the first subscriber.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
    };
    Ok(())
}
