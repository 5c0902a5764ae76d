//! How `config check` ends: takes what was found; gives words for people, or one document for programs, and the exit code.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Done, Exit, Failure, Output, json};
use crate::config::ConfigError;

/// `config check --json`.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Verdict {
    Good { ok: bool, warnings: Vec<String> },
    Bad { ok: bool, errors: Vec<Mistake> },
}

/// A mistake in a file, and where it is.
#[derive(Serialize, JsonSchema)]
pub(super) struct Mistake {
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
}

impl From<ConfigError> for Mistake {
    fn from(error: ConfigError) -> Self {
        let (line, column) = error.place.map(|place| (place.line, place.column)).unzip();
        Self { file: error.file, line, column, message: error.message }
    }
}

impl Output {
    /// What `config check` found: `good` says what the file holds, and what could be better.
    ///
    /// # Errors
    /// The file is not good: `refused` turns the mistakes into a failure, unless they were printed as JSON.
    pub fn checked(
        self,
        found: Result<(String, Vec<String>), Vec<ConfigError>>,
        refused: impl FnOnce(&[ConfigError]) -> Failure,
    ) -> Done {
        match found {
            Ok((_, warnings)) if self.json => Ok(json(&Verdict::Good { ok: true, warnings })?),
            Ok((good, warnings)) => {
                for warning in warnings {
                    self.note(format!("! {warning}"));
                }
                self.note(good);
                Ok(())
            }
            Err(errors) if self.json => {
                json(&Verdict::Bad { ok: false, errors: errors.into_iter().map(Mistake::from).collect() })?;
                Err(Failure::silent(Exit::Config))
            }
            Err(errors) => Err(refused(&errors)),
        }
    }
}
