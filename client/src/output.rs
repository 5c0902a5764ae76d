//! The only room that prints: data to stdout, everything else to stderr; colours and spinners only on a terminal, `NO_COLOR` honoured.
//! Text from afar reaches it escaped (see [`text::Afar`]).

pub(crate) mod text;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use postern_base::console::fold;
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
    /// Whether another program's bytes go to stdout.
    stdout_is_lent: bool,
}

#[allow(
    clippy::unused_self,
    reason = "whoever prints holds the handle, whether or not the line depends on its settings"
)]
impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, stdout_is_lent: false }
    }

    /// Another program's bytes go to stdout: nothing of ours is said there when the command fails.
    #[must_use]
    pub(crate) fn lending_stdout(self, is_lent: bool) -> Self {
        Self { stdout_is_lent: is_lent, ..self }
    }

    /// Data: a line (or several) on stdout.
    pub(crate) fn data(&self, line: &str) {
        let mut stdout = anstream::stdout().lock();
        taken(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
    }

    /// The same, where `●` says that something is up, `○` that it is not, and a mark before a line how it ended.
    pub(crate) fn states(&self, text: &str) {
        self.data(&fold::suited(std::io::stdout(), coloured(text)));
    }

    /// The same on the lines that it has, for whoever asked for them: a row in two pieces is no row.
    pub(crate) fn whole_states(&self, text: &str) {
        self.data(&coloured(text));
    }

    /// Data that is not text for people.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        taken(stdout.write_all(bytes).and_then(|()| stdout.flush()));
    }

    /// Data: one JSON document on one line.
    pub(crate) fn json(&self, value: &impl Serialize) {
        self.raw(format!("{}\n", document(value)).as_bytes());
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

    /// A line that [`Output::finish`] goes on with on a terminal, unless something else is said in between; elsewhere each has its own.
    pub(crate) fn begin(&self, line: &str) {
        if self.quiet || !std::io::stderr().is_terminal() {
            return self.warn(line);
        }
        said(&format!("{YELLOW}!{PLAIN} {line}"));
        UNFINISHED.store(true, Ordering::Relaxed);
    }

    /// What was begun came to a good end.
    pub(crate) fn finish(&self, line: &str) {
        if !UNFINISHED.swap(false, Ordering::Relaxed) {
            return self.done(line);
        }
        said(&format!("  {GREEN}✓{PLAIN} {line}\n"));
    }

    /// After another program's output, which may end in the middle of a line; where it went is not known here.
    pub(crate) fn fresh_line(&self) {
        stderr("");
    }

    /// With `--json` as a document of its own, in the place of the data: [`Failure::told`].
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.exit == Exit::Interrupted {
            return;
        }
        match (self.json, self.stdout_is_lent || LOST.get().is_some()) {
            (true, true) => stderr(&document(&failure.told())),
            (true, false) => self.json(&failure.told()),
            (false, _) => stderr(&render(failure)),
        }
    }

    /// Says what happened and asks; no where nobody is there to be asked. Enter alone means yes.
    pub(crate) async fn agrees(&self, happened: &str, question: &str) -> bool {
        if self.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return false;
        }
        self.warn(happened);
        {
            let mut stderr = anstream::stderr().lock();
            let _ = write!(stderr, "  {question} [Y/n] ").and_then(|()| stderr.flush());
        }
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            // No line at all is the end of the input, and no answer.
            std::io::stdin().read_line(&mut line).ok().filter(|read| *read > 0).map(|_| line)
        });
        let answer = answer.await.ok().flatten();
        answer.is_some_and(|line| matches!(line.trim().to_lowercase().as_str(), "" | "y" | "yes"))
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

/// On one line.
fn document(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
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

/// Escape sequences go on; whoever prints takes them away where they are not wanted.
fn coloured(text: &str) -> String {
    let marks = [("●", GREEN), ("○", RED), ("✓", GREEN), ("✗", RED), ("!", YELLOW)];
    let paint = |text: &str, mark: &str, colour: &str| text.replace(mark, &format!("{colour}{mark}{PLAIN}"));
    let lines: Vec<_> = text
        .lines()
        .map(|line| {
            let body = line.trim_start();
            let marked = marks[2..]
                .iter()
                .find(|(mark, _)| body.strip_prefix(mark).is_some_and(|b| b.starts_with(' ')));
            let line = marked.map_or_else(
                || line.to_owned(),
                |(mark, colour)| line.replacen(mark, &format!("{colour}{mark}{PLAIN}"), 1),
            );
            // In a row of them, or in a column.
            let line = marks[2..].iter().fold(line, |line, (mark, colour)| {
                line.replace(&format!("  {mark} "), &format!("  {colour}{mark}{PLAIN} "))
            });
            marks[..2].iter().fold(line, |line, (mark, colour)| paint(&line, mark, colour))
        })
        .collect();
    lines.join("\n")
}

/// What clap has to say: help and version to stdout (0), mistakes to stderr (2), or as JSON like any failure.
pub(crate) fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let what = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let failure = Failure::new(Exit::Usage, what).fix("see: postern --help");
        Output::new(true, false).failure(&failure);
        return ExitCode::from(failure.exit.code());
    }
    let printed = error.print();
    if !error.use_stderr() {
        taken(printed);
        if let Err(failure) = delivered(()) {
            Output::new(json, false).failure(&failure);
            return ExitCode::from(failure.exit.code());
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()))
}

/// What became of data for stdout. A reader that went away has seen enough: that is no error of ours.
fn taken(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first one is the cause.
        let _ = LOST.set(error.to_string());
    }
}

/// What a command ended with, unless data was lost on its way to stdout.
pub(crate) fn delivered<T>(end: T) -> Result<T, Failure> {
    let Some(error) = LOST.get() else { return Ok(end) };
    Err(Failure::new(Exit::Other, format!("the output was lost: {error}"))
        .fix("make room where it goes, or send it elsewhere"))
}

/// Why stdout did not take all data.
static LOST: OnceLock<String> = OnceLock::new();

/// Whether the last line on the terminal waits for its end.
static UNFINISHED: AtomicBool = AtomicBool::new(false);

fn stderr(line: &str) {
    said(&format!("{}\n", fold::suited(std::io::stderr(), line.to_owned())));
}

/// Writes it whole, so that what another program says there at the same time does not come in between.
fn said(text: &str) {
    let start = if UNFINISHED.swap(false, Ordering::Relaxed) { "\n" } else { "" };
    let text = format!("{start}{text}");
    let stderr = std::io::stderr();
    let is_plain = anstream::AutoStream::choice(&stderr) == anstream::ColorChoice::Never;
    let text = if is_plain { anstream::adapter::strip_str(&text).to_string() } else { text };
    let _ = stderr.lock().write_all(text.as_bytes());
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
