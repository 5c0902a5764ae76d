//! The only room that prints: data to stdout, everything else to stderr; colours and spinners only on a terminal, `NO_COLOR` honoured.
//! Text from afar reaches it escaped (see [`text::Afar`]).

pub(crate) mod text;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::failure::{Exit, Failure};

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// How a command speaks.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) json: bool,
    quiet: bool,
}

#[allow(
    clippy::unused_self,
    reason = "whoever prints holds the handle, whether or not the line depends on its settings"
)]
impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Data: a line (or several) on stdout. A reader that went away is no error of ours.
    pub(crate) fn data(&self, line: &str) {
        let mut stdout = anstream::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }

    /// Data that is not text for people.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
    }

    /// Data: one JSON document on one line.
    pub(crate) fn json(&self, value: &impl Serialize) {
        let line = serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
        self.raw(format!("{line}\n").as_bytes());
    }

    /// Progress, left out by `-q`.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet {
            stderr(line);
        }
    }

    /// Something came to a good end.
    pub(crate) fn done(&self, line: &str) {
        self.note(&format!("{GREEN}✓{PLAIN} {line}"));
    }

    /// Something to know even with `-q`.
    pub(crate) fn warn(&self, line: &str) {
        stderr(&format!("{YELLOW}!{PLAIN} {line}"));
    }

    /// After another program's output, which may end in the middle of a line; where it went is not known here.
    pub(crate) fn fresh_line(&self) {
        stderr("");
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.exit != Exit::Interrupted {
            stderr(&render(failure));
        }
    }

    /// A line that ends in a spinner and the time left; without a terminal it is printed once.
    pub(crate) fn waiting(&self, line: &str) -> Waiting {
        if !std::io::stderr().is_terminal() {
            stderr(line);
            return Waiting(None);
        }
        let style = ProgressStyle::with_template("{prefix}   {spinner} waiting, {msg} left")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        Waiting(Some(ProgressBar::new_spinner().with_style(style).with_prefix(line.to_owned())))
    }
}

/// A spinner; it leaves its line when dropped.
pub(crate) struct Waiting(Option<ProgressBar>);

impl Waiting {
    /// One turn of the spinner.
    pub(crate) fn turn(&self, left: Duration) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("{}:{:02}", left.as_secs() / 60, left.as_secs() % 60));
            bar.tick();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.abandon();
        }
    }
}

/// What a failure looks like: what happened, what helps, what to do.
pub(crate) fn render(failure: &Failure) -> String {
    let mut text = format!("{RED}✗{PLAIN} {}", failure.message);
    let fix = failure.fix.as_ref().map(|fix| format!("Fix: {fix}"));
    for line in failure.details.iter().chain(&fix) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

/// What clap has to say: help and version to stdout (0), mistakes to stderr (2).
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()))
}

fn stderr(line: &str) {
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_what_else_and_what_to_do() {
        let failure =
            Failure::new(Exit::Denied, "Denied (403): no").detail("Closest: \"r\" needs x").fix("ask");
        let text = anstream::adapter::strip_str(&render(&failure)).to_string();
        assert_eq!(text, "✗ Denied (403): no\n  Closest: \"r\" needs x\n  Fix: ask");
    }
}
