//! What a doctor says: one line per check, with what to do where it is not good. Takes checks as they end; prints each at once (or all of
//! them as one JSON document), and ends with exit code 1 where one failed.

use std::io::{self, ErrorKind, Write};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Done, Exit, Failure, Output, fold};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    /// Something does not work.
    Bad,
    /// It works, and will not for long, or not as it should.
    Warn,
    /// Not looked at; the detail says why.
    Skipped,
}

impl State {
    fn glyph(self) -> &'static str {
        match self {
            Self::Good => "\x1b[32m✓\x1b[0m",
            Self::Bad => "\x1b[31m✗\x1b[0m",
            Self::Warn => "\x1b[33m!\x1b[0m",
            Self::Skipped => "-",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What was looked at, such as `clock` or `upstream billing`.
    pub name: String,
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Check {
    pub fn good(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Good, detail: detail.into(), fix: None }
    }

    pub fn bad(name: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Bad, detail: detail.into(), fix: Some(fix.into()) }
    }

    pub fn warn(name: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    pub fn skipped(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Skipped, detail: why.into(), fix: None }
    }

    /// In colour: a line, and one of what to do.
    pub fn text(&self) -> String {
        let Self { name, state, detail, fix } = self;
        let detail = if detail.is_empty() { name.clone() } else { format!("{name}: {detail}") };
        let mut text = marked(*state, &detail);
        if let Some(fix) = fix {
            text = format!("{text}\n  Fix: {}", clean(fix));
        }
        text
    }
}

/// A line that something is to be seen of, with the sign of how it stands.
pub fn marked(state: State, text: &str) -> String {
    format!("{} {}", state.glyph(), clean(text))
}

/// One line of what came from elsewhere: it does not steer the terminal.
pub fn clean(text: &str) -> String {
    let words = text.split(|c: char| c == ' ' || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// All that a doctor looked at: `doctor --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Whether no check failed.
    pub ok: bool,
    pub checks: Vec<Check>,
}

/// Prints checks as they come; with `-q` only those that are not good.
#[derive(Debug)]
pub struct Doctor {
    output: Output,
    report: Report,
}

impl Doctor {
    pub fn new(output: Output) -> Self {
        Self { output, report: Report { ok: true, checks: Vec::new() } }
    }

    pub fn add(&mut self, check: Check) -> io::Result<()> {
        let is_news = matches!(check.state, State::Bad | State::Warn);
        if !self.output.json && (is_news || !self.output.quiet) {
            print(&check.text())?;
        }
        self.report.ok &= check.state != State::Bad;
        self.report.checks.push(check);
        Ok(())
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// # Errors
    /// A check failed (exit code 1, and nothing more to say), or stdout takes nothing.
    pub fn end(self) -> Done {
        if self.output.json {
            super::json(&self.report)?;
        }
        if self.report.ok { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
    }
}

/// A line of data with colours, which are left out where stdout is no terminal or `NO_COLOR` is set. A terminal gets it folded.
pub fn print(text: &str) -> io::Result<()> {
    let text = fold::suited(io::stdout(), text.to_owned());
    let mut out = anstream::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // The reader has seen enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(check: &Check) -> String {
        anstream::adapter::strip_str(&check.text()).to_string()
    }

    #[test]
    fn checks_read_well_and_are_folded_for_terminals_alone() {
        assert_eq!(
            plain(&Check::good("clock", "0.2 s behind the relay's")),
            "✓ clock: 0.2 s behind the relay's"
        );
        assert_eq!(plain(&Check::skipped("issuers", "")), "- issuers");
        let long = Check::bad(
            "upstream billing",
            "connection refused by the address that the file names, and this goes on until the line is full",
            "start it, and look whether it listens where the agent's file says: postern-agent doctor --bundle FILE",
        );
        let text = plain(&long);
        assert!(text.starts_with("✗ upstream billing: connection refused"), "{text}");
        assert!(text.contains("\n  Fix: start it, and"), "{text}");
        assert_eq!(text.lines().count(), 2, "a command in a file stays whole: {text}");
        let narrow = anstream::adapter::strip_str(&fold::folded(&long.text(), 60)).to_string();
        assert!(narrow.lines().count() > 3, "{narrow}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
        assert!(narrow.lines().skip(1).all(|line| line.starts_with("  ")), "{narrow}");
        let hostile = Check::warn("name", "a\x1b[2Jb\nc", "d");
        assert_eq!(plain(&hostile), "! name: a [2Jb c\n  Fix: d");
    }

    #[test]
    fn glyphs_are_coloured_and_the_rest_is_not() {
        let colours = [Check::good("a", "b"), Check::bad("a", "b", "c"), Check::warn("a", "b", "c")];
        let colours = colours.map(|check| check.text());
        assert_eq!(colours[0], "\x1b[32m✓\x1b[0m a: b");
        assert_eq!(colours[1], "\x1b[31m✗\x1b[0m a: b\n  Fix: c");
        assert_eq!(colours[2], "\x1b[33m!\x1b[0m a: b\n  Fix: c");
    }

    #[test]
    fn one_bad_check_is_exit_code_1_and_the_shape_is_stable() {
        let quiet = Output { json: false, quiet: true, verbose: 0 };
        let mut doctor = Doctor::new(quiet);
        doctor.add(Check::good("a", "fine")).unwrap();
        assert!(doctor.report().ok);
        let warned = Check::warn("b", "soon", "do");
        doctor.report.checks.push(warned);
        doctor.report.ok &= true;
        let shape = serde_json::json!({ "ok": true, "checks": [
            { "name": "a", "state": "good", "detail": "fine", "fix": null },
            { "name": "b", "state": "warn", "detail": "soon", "fix": "do" },
        ]});
        assert_eq!(serde_json::to_value(doctor.report()).unwrap(), shape);
        let mut failing = Doctor::new(Output { json: true, quiet: false, verbose: 0 });
        failing.add(Check::bad("c", "no", "do")).unwrap();
        assert!(!failing.report().ok);
        failing.output.json = false;
        let failure = failing.end().unwrap_err();
        assert_eq!((failure.exit, failure.lines.len()), (Exit::Failed, 0));
    }
}
