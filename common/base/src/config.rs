//! Takes the text of a TOML file; gives typed values; refuses with file, line, column, the line itself with a caret, and what would
//! have been right. Errors of meaning, found after parsing, are located by their key path and shown the same way.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// A configuration that cannot be used. Display is several lines, ready for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as the user named it.
    pub file: String,
    /// Line and column, counted from 1, and that line; absent where the file could not be read at all.
    pub place: Option<Place>,
    pub message: String,
}

/// Where in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    pub text: String,
    pub width: usize,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else { return write!(f, "{}: {}", self.file, self.message) };
        writeln!(f, "{}:{}:{}: {}", self.file, place.line, place.column, self.message)?;
        let margin = place.line.to_string().len();
        writeln!(f, "{} | {}", place.line, place.text)?;
        let lead: String =
            place.text.chars().take(place.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, "{:margin$} | {lead}{}", "", "^".repeat(place.width.max(1)))
    }
}

impl std::error::Error for ConfigError {}

/// A mistake in what a file means: where (`services.billing.rules.0.allow`; numbers count list entries) and what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub at: Vec<String>,
    pub message: String,
}

impl Problem {
    /// `at` is a dotted path; no key of ours that is used here contains a dot, except where [`Problem::under`] adds it whole.
    pub fn new(at: &str, message: impl Into<String>) -> Self {
        let at = at.split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        Self { at, message: message.into() }
    }

    /// The same problem, one level further out.
    #[must_use]
    pub fn under(mut self, key: impl fmt::Display) -> Self {
        self.at.insert(0, key.to_string());
        self
    }
}

/// One configuration file: its name and its text.
#[derive(Debug, Clone)]
pub struct Source {
    file: String,
    text: String,
    /// Made when the first mistake of meaning is located: a file may have as many as it has lines.
    index: OnceLock<Index>,
}

/// Where everything in a file is.
#[derive(Debug, Clone, Default)]
struct Index {
    /// Of each key and list entry, by its path; of the file by the empty one. Empty where the file cannot be parsed.
    spans: HashMap<Vec<String>, Range<usize>>,
    /// Where each line begins, but the first.
    lines: Vec<usize>,
}

impl Source {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::from_text(file, text)),
            Err(e) => Err(ConfigError { file, place: None, message: format!("cannot be read: {e}") }),
        }
    }

    /// A text that is already here; `file` is how errors call it.
    pub fn from_text(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into(), index: OnceLock::new() }
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The directory that relative paths in this file start from.
    pub fn dir(&self) -> PathBuf {
        Path::new(&self.file).parent().map(Path::to_path_buf).unwrap_or_default()
    }

    /// Parses the whole text.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|e| {
            let place = e.span().map(|span| self.place(span.start, span.end));
            ConfigError { file: self.file.clone(), place, message: with_nearest(e.message()) }
        })
    }

    /// Turns a mistake of meaning into an error with its place: the deepest part of the path that the file has.
    pub fn locate(&self, problem: Problem) -> ConfigError {
        let spans = &self.index().spans;
        let span = (0..=problem.at.len()).rev().find_map(|depth| spans.get(&problem.at[..depth]));
        let mut message = problem.message;
        if !problem.at.is_empty() {
            message = format!("{}: {message}", problem.at.join("."));
        }
        ConfigError { file: self.file.clone(), place: span.map(|s| self.place(s.start, s.end)), message }
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of(&self.text))
    }

    fn place(&self, start: usize, end: usize) -> Place {
        let start = start.min(self.text.len());
        let lines = &self.index().lines;
        let line = lines.partition_point(|begin| *begin <= start);
        let line_start = line.checked_sub(1).map_or(0, |before| lines[before]);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let column = self.text[line_start..start].chars().count() + 1;
        let text = self.text[line_start..line_end].to_owned();
        let width = self.text[start..end.clamp(start, line_end)].chars().count();
        Place { line: line + 1, column, text, width }
    }
}

impl Index {
    fn of(text: &str) -> Self {
        let mut index = Self::default();
        index.lines.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        if let Ok(table) = DeTable::parse(text) {
            index.spans.insert(Vec::new(), table.span());
            index.table(table.get_ref(), &mut Vec::new());
        }
        index
    }

    fn table(&mut self, table: &DeTable<'_>, path: &mut Vec<String>) {
        for (key, value) in table {
            self.entry(key.get_ref().to_string(), key.span(), value.get_ref(), path);
        }
    }

    fn entry(&mut self, name: String, span: Range<usize>, value: &DeValue<'_>, path: &mut Vec<String>) {
        path.push(name);
        self.spans.insert(path.clone(), span);
        if let Some(table) = value.as_table() {
            self.table(table, path);
        }
        for (at, entry) in value.as_array().into_iter().flat_map(|list| list.iter()).enumerate() {
            self.entry(at.to_string(), entry.span(), entry.get_ref(), path);
        }
        path.pop();
    }
}

/// serde says "unknown field `agnet`, expected one of `agent`, `hosts`": adds the nearest of those.
fn with_nearest(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    let nearest = known
        .iter()
        .copied()
        .max_by(|a, b| strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown)));
    match nearest {
        Some(name) if strsim::jaro_winkler(name, unknown) > 0.75 => {
            format!("unknown key {unknown:?}: did you mean {name:?}?")
        }
        Some(_) => format!("unknown key {unknown:?}: the keys here are {}", known.join(", ")),
        None => format!("unknown key {unknown:?}: no keys are expected here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsing is under test")]
    struct Service {
        agent: Option<String>,
        hosts: Option<Vec<String>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsing is under test")]
    struct File {
        version: u8,
        services: std::collections::BTreeMap<String, Service>,
    }

    #[test]
    fn an_unknown_key_is_shown_with_its_nearest() {
        let source = Source::from_text("relay.toml", "version = 1\n[services.wiki]\nagnet = \"dc1\"\n");
        let error = source.parse::<File>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "relay.toml:3:1: unknown key \"agnet\": did you mean \"agent\"?\n3 | agnet = \"dc1\"\n  | ^^^^^"
        );
    }

    #[test]
    fn a_mistake_of_meaning_is_located_by_its_path() {
        let source = Source::from_text("r.toml", "version = 1\n[services.wiki]\nhosts = [\"a\", \"b c\"]\n");
        let error = source.locate(Problem::new("services.wiki.hosts.1", "not a host"));
        assert_eq!(
            error.to_string(),
            "r.toml:3:15: services.wiki.hosts.1: not a host\n3 | hosts = [\"a\", \"b c\"]\n  |               ^^^^^"
        );
        let error = source.locate(Problem::new("services.wiki.agent", "is required"));
        assert_eq!(error.place.unwrap().line, 2);
    }

    #[test]
    fn many_mistakes_are_located_at_once() {
        let tables: Vec<_> = (0..20_000).map(|n| format!("[services.s{n}]\nhosts = [\"a b\"]\n")).collect();
        let text = tables.concat();
        let source = Source::from_text("r.toml", text);
        let start = std::time::Instant::now();
        for n in 0..20_000 {
            let error = source.locate(Problem::new(&format!("services.s{n}.hosts.0"), "not a host"));
            assert_eq!(error.place.map(|place| (place.line, place.column)), Some((n * 2 + 2, 10)));
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_missing_file_is_an_error_without_a_place() {
        let error = Source::read(Path::new("/nonexistent/relay.toml")).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/relay.toml: cannot be read"), "{error}");
    }
}
