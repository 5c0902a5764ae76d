//! Takes runs of commands, as they look; keeps them as pages, which are files under `tests/golden/terminal`, and gives at the end what is
//! not as its file has it: by the line, and with how to write the file anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postern_tests::process::Output;

use super::seen::Look;

/// What a terminal has.
const WIDTH: usize = 80;
pub(super) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Pages of transcripts, by name.
#[derive(Debug, Default)]
pub(super) struct Pages {
    texts: BTreeMap<String, String>,
    pub(super) complaints: Vec<String>,
    /// Lines wider than a terminal. There are some, which are to become shorter; there must not be new ones.
    wide: BTreeSet<String>,
    /// The last one in colour, without its colours.
    stripped: String,
}

impl Pages {
    /// Adds a run to a page; what it printed has its fixed words by now.
    pub(super) fn add(&mut self, look: Look, page: &str, typed: &str, output: &Output) {
        let mut text = format!("{typed}\n");
        for (name, shown) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let lines =
                if look == Look::Piped || look == Look::Json { format!("[{name}]\n") } else { String::new() };
            if !shown.is_empty() {
                text.push_str(&(lines + shown));
                text.push_str(if shown.ends_with('\n') { "" } else { "\n" });
            }
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, "[exit {}]", output.code);
        let plain = stripped(&text);
        match look {
            Look::Piped | Look::Json if plain != text => {
                self.complaints.push(format!("colours where there is no terminal:\n{text}"));
            }
            Look::Colour => self.stripped.clone_from(&plain),
            Look::NoColour if plain != text => {
                self.complaints.push(format!("colours in spite of NO_COLOR:\n{text}"));
            }
            Look::NoColour => {
                if let Some((_, with, without)) = difference(&self.stripped, &plain) {
                    let what = format!("colour changes more than colour: {typed}\n- {with}\n+ {without}");
                    self.complaints.push(what);
                }
            }
            Look::Piped | Look::Json => {}
        }
        if look == Look::NoColour {
            return;
        }
        for line in plain.lines().filter(|line| look != Look::Json && !line.starts_with(typed)) {
            let url = line.trim().starts_with("http") && !line.trim().contains(' ');
            if line.chars().count() > WIDTH && !url {
                self.wide.insert(format!("{page}: {line}\n"));
            }
        }
        let shown = text.replace('\u{1b}', "␛").replace('\r', "␍");
        self.texts.entry(format!("{page}.{}", look.ending())).or_default().push_str(&shown);
    }

    /// Holds all pages against their files; files of these directories that nothing was seen for are a mistake as well. Where words are
    /// the same, their columns may be wider or narrower: that goes with what changes from run to run.
    pub(super) fn finish(mut self, name: &str, dirs: &[&str]) -> Result<()> {
        let root = Path::new(ROOT).join("tests/golden/terminal");
        self.texts.insert(name.to_owned(), self.wide.iter().map(String::as_str).collect());
        for (page, text) in &self.texts {
            let path = root.join(page);
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            let Some((number, was, is)) = difference(&kept, text) else { continue };
            if std::env::var_os("POSTERN_BLESS").is_some() {
                std::fs::create_dir_all(path.parent().context("no directory")?)?;
                std::fs::write(&path, text)?;
                continue;
            }
            self.complaints.push(format!(
                "tests/golden/terminal/{page}, line {number}:\n- {was}\n+ {is}\n\
                 If it was changed on purpose: run this test with POSTERN_BLESS=1, and look at the file."
            ));
        }
        for dir in dirs {
            let files = std::fs::read_dir(root.join(dir))?;
            for file in files.flatten() {
                let name = format!("{dir}/{}", file.file_name().to_string_lossy());
                if file.path().is_file() && !self.texts.contains_key(&name) {
                    self.complaints
                        .push(format!("tests/golden/terminal/{name}: nothing prints it: delete it"));
                }
            }
        }
        ensure!(self.complaints.is_empty(), "{}", self.complaints.join("\n\n"));
        Ok(())
    }
}

/// Without escape sequences that choose colours and weights.
fn stripped(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_colour = |codes: &str| codes.bytes().all(|b| b.is_ascii_digit() || b == b';');
        if let Some((_, rest)) = part.split_once('m').filter(|(codes, _)| is_colour(codes)) {
            plain.push_str(rest);
        } else {
            plain.push_str("\u{1b}[");
            plain.push_str(part);
        }
    }
    plain
}

/// The first line that has other words, by its number: as it was, and as it is.
fn difference<'a>(was: &'a str, is: &'a str) -> Option<(usize, &'a str, &'a str)> {
    const END: &str = "(the end)";
    let (mut before, mut after) = (was.lines(), is.lines());
    for number in 1.. {
        let (before, after) = (before.next(), after.next());
        if before.is_none() && after.is_none() {
            break;
        }
        let words = |line: Option<&'a str>| line.map(|line| line.split_whitespace().collect::<Vec<_>>());
        if words(before) != words(after) {
            return Some((number, before.unwrap_or(END), after.unwrap_or(END)));
        }
    }
    None
}

#[test]
fn the_first_line_with_other_words_is_named() {
    assert_eq!(difference("a  b\nc\n", "a b\nc\n"), None);
    assert_eq!(difference("a\nb\n", "a\nc\n"), Some((2, "b", "c")));
    assert_eq!(difference("a\n", "a\nb\n"), Some((2, "(the end)", "b")));
}
