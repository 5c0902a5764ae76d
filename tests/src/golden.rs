//! What people see, kept in files under `tests/golden`: takes what was seen, with what differs from run to run replaced; refuses what is
//! not as the file has it, and shows both. `POSTERN_BLESS=1` writes the files instead, for whoever changed them on purpose to look at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::Output;

/// What stands for the things that differ.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    /// `shown` stands for `real`, wherever it is; the first that fits counts.
    #[must_use]
    pub fn with(mut self, real: impl Into<String>, shown: impl Into<String>) -> Self {
        self.0.push((real.into(), shown.into()));
        self
    }

    /// Ids and times get names as well.
    pub fn apply(&self, text: &str) -> String {
        let text = self.0.iter().fold(text.to_owned(), |text, (real, shown)| text.replace(real, shown));
        let text = between(&text, "[decision ", "]", "01JC8");
        let text = between(&text, "[request ", "]", "01JC9");
        let numbers = ["\"expires\":", "\"down_since\":", "\"since\":", "\"retry_after\":", "\"wait\":"];
        let fields = std::iter::once("\"decision_id\":").chain(numbers);
        let text = fields.fold(text, |text, name| field(&text, name));
        clocks(&text)
    }
}

/// What lies between two marks becomes `shown`, each time, if it is short.
fn between(text: &str, before: &str, after: &str, shown: &str) -> String {
    let mut parts = text.split(before);
    let mut named = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        named.push_str(before);
        match part.split_once(after).filter(|(id, _)| id.len() <= 40 && !id.contains([' ', '{'])) {
            Some((_, rest)) => {
                named.push_str(shown);
                named.push_str(after);
                named.push_str(rest);
            }
            None => named.push_str(part),
        }
    }
    named
}

/// The number or the text of a JSON field becomes 0 or `01JC8`, with or without a blank before it.
fn field(text: &str, name: &str) -> String {
    let mut parts = text.split(name);
    let mut named = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let value = part.trim_start_matches(' ');
        named.push_str(name);
        named.push_str(&part[..part.len() - value.len()]);
        let digits = value.trim_start_matches(|c: char| c.is_ascii_digit());
        if let Some((_, rest)) = value.strip_prefix('"').and_then(|value| value.split_once('"')) {
            named.push_str("\"01JC8\"");
            named.push_str(rest);
        } else if digits.len() < value.len() {
            named.push('0');
            named.push_str(digits);
        } else {
            named.push_str(value);
        }
    }
    named
}

/// Times of the day become one, with and without their date.
fn clocks(text: &str) -> String {
    let is_clock = |word: &str| {
        let b = word.as_bytes();
        b.len() == 5 && b[2] == b':' && [b[0], b[1], b[3], b[4]].iter().all(u8::is_ascii_digit)
    };
    let is_date = |word: &str| {
        word.len() == 10
            && word.split('-').map(str::len).eq([4, 2, 2])
            && word.bytes().all(|b| b.is_ascii_digit() || b == b'-')
    };
    let mut named = String::with_capacity(text.len());
    for piece in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == ':' || c == '-')) {
        let word = piece.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || c == ':' || c == '-'));
        if is_clock(word) {
            named.push_str(&piece.replacen(word, "18:02", 1));
        } else if !is_date(word) {
            named.push_str(piece);
        }
    }
    named
}

/// A run as a file shows it: what was typed, the exit code, and both outputs.
pub fn transcript(typed: &str, output: &Output, names: &Names) -> String {
    let mut text = format!("$ {typed}\n");
    for (name, shown) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !shown.is_empty() {
            text.push_str(&["[", name, "]\n", &names.apply(shown)].concat());
            if !shown.ends_with('\n') {
                text.push('\n');
            }
        }
    }
    text + &format!("[exit {}]\n", output.code)
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// `seen` is as the file has it.
///
/// # Errors
/// It is not: the error shows both.
pub fn check(name: &str, seen: &str) -> Result<()> {
    let path = path(name);
    if std::env::var_os("POSTERN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().context("no directory")?)?;
        return Ok(std::fs::write(path, seen)?);
    }
    let kept = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: to make it, run this test with POSTERN_BLESS=1", path.display()))?;
    if kept != seen {
        bail!("not as {} has it\n--- the file\n{kept}\n--- seen\n{seen}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let names = Names::default().with("127.0.0.1:18443", "relay.example.com");
        let text = "127.0.0.1:18443 said no at 2026-03-04 17:59, 07:01   [decision 01ABC]";
        assert_eq!(names.apply(text), "relay.example.com said no at 18:02, 18:02   [decision 01JC8]");
        assert_eq!(names.apply("[decision made by hand]"), "[decision made by hand]");
        assert_eq!(names.apply("{\"expires\":1790000000}"), "{\"expires\":0}");
        assert_eq!(
            names.apply("\"decision_id\": \"01ABC\",\n\"since\": null"),
            "\"decision_id\": \"01JC8\",\n\"since\": null"
        );
    }
}
