//! How the servers' commands speak and end: data on stdout, everything said to people on stderr, one exit code for each way to fail.
//! The only room of theirs that prints.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

mod answer;
pub mod bundle;
pub mod checks;
pub mod documents;
pub mod fold;
pub mod shell;
mod verdict;

pub use answer::answer;

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
    /// The agent or the upstream.
    Down = 8,
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
}

/// One line of data for people, which a terminal gets folded; what is to be copied is [`verbatim`].
pub fn line(text: impl Display) -> io::Result<()> {
    verbatim(fold::suited(io::stdout(), text.to_string()))
}

/// Lines of data as they are.
pub fn verbatim(text: impl Display) -> io::Result<()> {
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
    verbatim(serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

/// Rows under a heading, in columns. On a terminal that is too narrow, cells of the columns named in `yielding` go on in lines below.
pub fn table(heading: &[&str], rows: &[Vec<String>], yielding: &[usize]) -> io::Result<()> {
    let Some(columns_there) = fold::columns(io::stdout()) else {
        return columns(heading, rows).into_iter().try_for_each(verbatim);
    };
    wrapped(heading, rows, yielding, columns_there).into_iter().try_for_each(verbatim)
}

fn wrapped(heading: &[&str], rows: &[Vec<String>], yielding: &[usize], width: usize) -> Vec<String> {
    let widths = yielded(heading, rows, yielding, width);
    let in_lines = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| fold::cell(cell, *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        let line = |at: usize| cells.iter().map(|cell| cell.get(at).cloned().unwrap_or_default()).collect();
        (0..height).map(line).collect::<Vec<Vec<String>>>()
    };
    let rows: Vec<_> = rows.iter().flat_map(in_lines).collect();
    columns(heading, &rows)
}

fn columns(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let shown = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all().map(shown).collect()
}

/// The columns that every terminal has.
const WIDTH: usize = 80;
/// A cell that is cut keeps at least this much.
const CELL: usize = 8;

/// The width of each column where all of them have `room`: those named in `yielding`, the widest first, become narrower for that.
fn yielded(heading: &[&str], rows: &[Vec<String>], yielding: &[usize], room: usize) -> Vec<usize> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
    while total(&widths) > room {
        let widest = yielding.iter().copied().max_by_key(|column| widths[*column]);
        let Some(widest) = widest.filter(|column| widths[*column] > CELL) else { break };
        widths[widest] -= 1;
    }
    widths
}

/// The same as lines of at most 80 columns, one for each row: cells of the columns named in `yielding` are cut for that.
pub fn fitted(heading: &[&str], rows: &[Vec<String>], yielding: &[usize]) -> Vec<String> {
    let widths = yielded(heading, rows, yielding, WIDTH);
    let cut = |(cell, width): (&String, &usize)| {
        if cell.chars().count() <= *width {
            return cell.clone();
        }
        cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
    };
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().zip(&widths).map(cut).collect()).collect();
    columns(heading, &rows)
}

/// The largest unit that says something of so many seconds.
fn unit(seconds: u64) -> (u64, &'static str) {
    match seconds {
        0..120 => (1, "s"),
        120..7_200 => (60, "min"),
        7_200..172_800 => (3_600, "h"),
        _ => (86_400, "d"),
    }
}

/// How long something is, never more than it is: `41 s`, `12 min`, `3 h`, `5 d`.
pub fn span(seconds: u64) -> String {
    let (unit, name) = unit(seconds);
    format!("{} {name}", seconds / unit)
}

/// How long to wait, in the same words, never less than it is.
pub fn wait(seconds: u64) -> String {
    let (unit, name) = unit(seconds);
    format!("{} {name}", seconds.div_ceil(unit))
}

/// A round trip: `1.2 ms`, `48 ms`.
pub fn milliseconds(microseconds: u64) -> String {
    // Three digits are what anybody reads.
    match microseconds {
        0..10_000 => format!("{}.{} ms", microseconds / 1_000, microseconds % 1_000 / 100),
        _ => format!("{} ms", microseconds / 1_000),
    }
}

/// Runs a command's own I/O.
pub fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

/// How many there are: `1 request`, `2 requests`.
pub fn count(number: impl TryInto<u64>, noun: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        many => format!("{many} {noun}s"),
    }
}

/// Something that people must see; a terminal gets it folded.
pub fn error(text: impl Display) {
    let text = fold::suited(io::stderr(), text.to_string());
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
    fn a_table_fits_80_columns_by_cutting_what_may_be_cut() {
        let rows = [vec!["a".to_owned(), "b".repeat(60), "c".repeat(40)]];
        let lines = fitted(&["ONE", "TWO", "THREE"], &rows, &[1, 2]);
        assert_eq!(lines.iter().map(|line| line.chars().count()).max(), Some(80));
        assert!(lines[1].contains("b…  c") && lines[1].ends_with("c…"), "{lines:?}");
        assert_eq!(fitted(&["ONE"], &[vec!["x".to_owned()]], &[0]), ["ONE", "x"]);
        // What may not be cut stays whole.
        assert!(fitted(&["ONE", "TWO", "THREE"], &rows, &[])[1].contains(&"b".repeat(60)));
    }

    #[test]
    fn a_table_on_a_terminal_loses_no_words() {
        let rows = [vec!["root".to_owned(), "Postern root of example.com".to_owned(), "0".to_owned()]];
        let lines = wrapped(&["WHAT", "NAME", "EPOCH"], &rows, &[1], 30);
        assert_eq!(lines, ["WHAT  NAME             EPOCH", "root  Postern root of  0", "      example.com"]);
        assert_eq!(wrapped(&["WHAT", "NAME", "EPOCH"], &rows, &[1], 80).len(), 2);
    }

    #[test]
    fn times_are_said_in_one_unit() {
        let all = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(span);
        assert_eq!(all, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
        assert_eq!([119, 121, 7_201].map(wait), ["119 s", "3 min", "3 h"]);
        assert_eq!([0, 1_270, 10_000, 48_900].map(milliseconds), ["0.0 ms", "1.2 ms", "10 ms", "48 ms"]);
        assert_eq!([0, 1, 2].map(|n: usize| count(n, "key")), ["0 keys", "1 key", "2 keys"]);
    }

    #[test]
    fn times_are_utc_to_the_minute() {
        assert_eq!(time(1_769_868_300), "2026-01-31 14:05Z");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
