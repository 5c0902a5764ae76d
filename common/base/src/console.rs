//! How the servers' commands speak and end: data on stdout, everything said to people on stderr, one exit code for each way to fail.
//! The only room of theirs that prints.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::config::ConfigError;

pub mod shell;

/// Exit codes, the same for all programs (cli.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    Config = 3,
    Login = 4,
    Denied = 5,
    NoSuchService = 6,
    Unreachable = 7,
}

/// A command that did not succeed: its exit code and what to print, which is nothing where the output said it all.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub lines: Vec<String>,
}

impl Failure {
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, lines: vec![text.into()] }
    }

    pub fn silent(exit: Exit) -> Self {
        Self { exit, lines: Vec::new() }
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut text = error.to_string();
        // Most errors say their cause themselves; it is not said twice.
        for cause in std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string) {
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        Self::new(Exit::Failed, text)
    }
}

pub type Done = Result<(), Failure>;

/// Prints what is left to say, and gives the exit code.
pub fn end(done: Done) -> ExitCode {
    let Err(failure) = done else { return ExitCode::SUCCESS };
    for (index, line) in failure.lines.iter().enumerate() {
        error(if index == 0 { format!("error: {line}") } else { line.clone() });
    }
    ExitCode::from(failure.exit as u8)
}

/// How the commands were asked to speak.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    /// How often `-v` was given.
    pub verbose: u8,
}

impl Output {
    /// Something for people; `-q` leaves it out.
    pub fn note(self, text: impl Display) {
        if !self.quiet {
            error(text);
        }
    }

    /// The log level that `-q` or `-v` asks for.
    pub fn level(self) -> Option<&'static str> {
        match (self.quiet, self.verbose) {
            (true, _) => Some("warn"),
            (false, 0) => None,
            (false, 1) => Some("debug"),
            (false, _) => Some("trace"),
        }
    }

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
            Ok((_, warnings)) if self.json => Ok(json(&json!({ "ok": true, "warnings": warnings }))?),
            Ok((good, warnings)) => {
                for warning in warnings {
                    self.note(format!("! {warning}"));
                }
                self.note(good);
                Ok(())
            }
            Err(errors) if self.json => {
                let errors: Vec<_> = errors.iter().map(as_json).collect();
                json(&json!({ "ok": false, "errors": errors }))?;
                Err(Failure::silent(Exit::Config))
            }
            Err(errors) => Err(refused(&errors)),
        }
    }
}

fn as_json(error: &ConfigError) -> serde_json::Value {
    let (line, column) = error.place.as_ref().map(|place| (place.line, place.column)).unzip();
    json!({ "file": error.file, "line": line, "column": column, "message": error.message })
}

/// One line of data.
pub fn line(text: impl Display) -> io::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Data as it is.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader has seen enough (`… | head`).
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// One JSON document.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

/// Rows under a heading, in columns.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    for row in all() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Something that people must see.
pub fn error(text: impl Display) {
    // With stderr closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Seconds since the epoch as UTC: `2026-01-31 14:05Z`.
pub fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.strftime("%Y-%m-%d %H:%MZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_failure_says_its_causes_once() {
        let failure = Failure::from(Outer(io::Error::other("no disk")));
        assert_eq!((failure.exit, failure.lines), (Exit::Failed, vec!["cannot start: no disk".to_owned()]));
        let said = Failure::from(io::Error::other("no disk"));
        assert_eq!(said.lines, ["no disk"]);
    }

    #[test]
    fn times_are_utc_to_the_minute() {
        assert_eq!(time(1_769_868_300), "2026-01-31 14:05Z");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
