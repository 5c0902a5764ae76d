//! Takes runs of commands, as they look; keeps them as pages, which are files under `tests/golden/terminal`, and gives at the end what is
//! not as its file has it: by the line, and with how to write the file anew.

use std::collections::BTreeMap;
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
    /// The last one in colour, without its colours.
    stripped: String,
}

impl Pages {
    /// What a terminal shows fits it, but for what nobody may fold: words that are longer, such as tokens and paths; what a service
    /// answered to curl, as it came; and lines of a file, with marks below them.
    pub(super) fn fits(&mut self, typed: &str, screen: &str) {
        let is_whole = |line: &str| {
            let excerpt = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
            line.split(' ').any(|word| word.chars().count() > WIDTH - 4)
                || line.starts_with("{\"type\":\"urn:postern:")
                || excerpt.trim_start().starts_with("| ")
        };
        for line in stripped(screen).lines() {
            // A line that is drawn again ends in what stays; a spinner fills it with blanks, and what comes then is on the next.
            let line = line.rsplit("\u{1b}[2K").next().unwrap_or_default();
            let line = line.split_once(" left   ").map_or(line, |(_, next)| next.trim_start());
            if line.chars().count() > WIDTH && !is_whole(line) {
                self.complaints.push(format!("wider than {WIDTH} columns: {typed}\n{line}"));
            }
        }
    }

    /// Adds a run to a page; what it printed has its fixed words by now.
    pub(super) fn add(&mut self, look: Look, page: &str, typed: &str, output: &Output) {
        let mut text = format!("{typed}\n");
        for (name, shown) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let lines = if look.is_terminal() { String::new() } else { format!("[{name}]\n") };
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
                if let Some((_, with, without)) = difference(&self.stripped, &plain, true) {
                    let what = format!("colour changes more than colour: {typed}\n- {with}\n+ {without}");
                    self.complaints.push(what);
                }
            }
            Look::Piped | Look::Json => {}
        }
        if look != Look::NoColour {
            let shown = text.replace('\u{1b}', "␛").replace('\r', "␍");
            self.texts.entry(format!("{page}.{}", look.ending())).or_default().push_str(&shown);
        }
    }

    /// Holds all pages against their files; in a directory that was seen as a whole, files that nothing was seen for are a mistake as well.
    pub(super) fn finish(mut self, whole: Option<&str>) -> Result<()> {
        let root = Path::new(ROOT).join("tests/golden/terminal");
        for (page, text) in &self.texts {
            let path = root.join(page);
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            let folds = !page.ends_with(".json.txt");
            let Some((number, was, is)) = difference(&kept, text, folds) else { continue };
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
        for file in whole.map(|dir| files(&root.join(dir))).transpose()?.unwrap_or_default() {
            let name = Path::new(&file).strip_prefix(&root)?.display().to_string();
            if !self.texts.contains_key(&name) {
                self.complaints.push(format!("tests/golden/terminal/{name}: nothing prints it: delete it"));
            }
        }
        ensure!(self.complaints.is_empty(), "{}", self.complaints.join("\n\n"));
        Ok(())
    }
}

/// All files below a directory.
pub(super) fn files(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// The words of a command line that say which command it is, and more of them: options in front, and their values, are left out.
pub(super) fn command_words(line: &str) -> Vec<&str> {
    let mut words = line.split(' ').peekable();
    let mut command = Vec::new();
    while let Some(word) = words.next() {
        if word == "--json" {
        } else if matches!(word, "-c" | "-r" | "--profile") && command.is_empty() {
            words.next();
        } else if word.starts_with('-') || word.is_empty() {
            break;
        } else {
            command.push(word);
        }
    }
    command
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

/// The first line that has other words, by its number: as it was, and as it is. How wide columns are, and where a line is folded, goes with
/// what changes from run to run, and is no difference: where there are `folds`, lines that are further in belong to the one above.
fn difference(was: &str, is: &str, folds: bool) -> Option<(usize, String, String)> {
    const END: &str = "(the end)";
    let (before, after) = (paragraphs(was, folds), paragraphs(is, folds));
    let mut number = 1;
    for at in 0..before.len().max(after.len()) {
        let text = |all: &[(usize, String)]| all.get(at).map_or(END.to_owned(), |(_, text)| text.clone());
        if text(&before) != text(&after) {
            return Some((number, text(&before), text(&after)));
        }
        number += before.get(at).map_or(0, |(lines, _)| *lines);
    }
    None
}

/// Each line with those below it that are further in, and how many lines that are.
fn paragraphs(text: &str, folds: bool) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = Vec::new();
    for line in text.lines() {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        match all.last_mut().filter(|_| folds && line.starts_with("  ")) {
            Some((lines, last)) => {
                *lines += 1;
                *last = format!("{last} {words}");
            }
            None => all.push((1, words)),
        }
    }
    all
}

#[test]
fn the_first_line_with_other_words_is_named() {
    let named = |number, was: &str, is: &str| Some((number, was.to_owned(), is.to_owned()));
    assert_eq!(difference("a  b\nc\n", "a b\nc\n", true), None);
    assert_eq!(difference("a\n  b c\nd", "a b\n  c\nd", true), None);
    assert_eq!(difference("a\n  b\nc\n", "a b\nd\n", true), named(3, "c", "d"));
    assert_eq!(difference("a\n  b\n", "a\n  c\n", false), named(2, "b", "c"));
    assert_eq!(difference("a\n", "a\nb\n", true), named(2, "(the end)", "b"));
}

#[test]
fn options_are_no_commands() {
    assert_eq!(command_words("-c bad.toml config check"), ["config", "check"]);
    assert_eq!(command_words("--json -r relay.local:443 ls wiki --wide x"), ["ls", "wiki"]);
    assert!(command_words("").is_empty());
}
