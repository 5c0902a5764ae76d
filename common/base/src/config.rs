//! Takes the text of a TOML file; gives typed values; refuses with file, line, column, the line itself with a caret, and what would
//! have been right. Errors of meaning, found after parsing, are located by their key path and shown the same way.

use std::fmt;
use std::path::{Path, PathBuf};

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
}

impl Source {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self { file, text }),
            Err(e) => Err(ConfigError { file, place: None, message: format!("cannot be read: {e}") }),
        }
    }

    /// A text that is already here; `file` is how errors call it.
    pub fn from_text(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into() }
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
        let span =
            DeTable::parse(&self.text).ok().map(|table| deepest(table.get_ref(), table.span(), &problem.at));
        let mut message = problem.message;
        if !problem.at.is_empty() {
            message = format!("{}: {message}", problem.at.join("."));
        }
        ConfigError { file: self.file.clone(), place: span.map(|s| self.place(s.start, s.end)), message }
    }

    fn place(&self, start: usize, end: usize) -> Place {
        let start = start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let column = self.text[line_start..start].chars().count() + 1;
        let text = self.text[line_start..line_end].to_owned();
        let width = self.text[start..end.clamp(start, line_end)].chars().count();
        Place { line: self.text[..line_start].matches('\n').count() + 1, column, text, width }
    }
}

fn deepest(table: &DeTable<'_>, whole: std::ops::Range<usize>, at: &[String]) -> std::ops::Range<usize> {
    let Some((key, rest)) = at.split_first() else { return whole };
    let Some((found, value)) = table.get_key_value(key.as_str()) else { return whole };
    if rest.is_empty() { found.span() } else { deepest_value(value.get_ref(), found.span(), rest) }
}

fn deepest_value(value: &DeValue<'_>, span: std::ops::Range<usize>, at: &[String]) -> std::ops::Range<usize> {
    let Some((key, rest)) = at.split_first() else { return span };
    if let Some(table) = value.as_table() {
        return deepest(table, span, at);
    }
    let entry = value.as_array().zip(key.parse::<usize>().ok()).and_then(|(list, index)| list.get(index));
    match entry {
        Some(entry) => deepest_value(entry.get_ref(), entry.span(), rest),
        None => span,
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
    fn a_missing_file_is_an_error_without_a_place() {
        let error = Source::read(Path::new("/nonexistent/relay.toml")).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/relay.toml: cannot be read"), "{error}");
    }
}
