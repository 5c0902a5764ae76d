//! Takes lines for people; gives them folded between words where they go to a terminal, to its width. What goes to a file or a pipe stays on
//! the lines it has, for `grep`. Refuses to break a word, so that paths, URLs and tokens can be copied.

use std::os::fd::AsFd;

use terminal_size::{Width, terminal_size_of};
use textwrap::{Options, WordSeparator, WordSplitter};

/// What is left of a narrower terminal would be unreadable either way.
const NARROWEST: usize = 40;
/// Lines that were folded go on this far in, or as far as they began.
const INDENT: usize = 2;

/// The columns of the terminal that this is, if it is one.
pub fn columns(stream: impl AsFd) -> Option<usize> {
    terminal_size_of(stream).map(|(Width(columns), _)| usize::from(columns).max(NARROWEST))
}

/// The text as it is to go there: folded for a terminal, as it is for anything else.
pub fn suited(stream: impl AsFd, text: String) -> String {
    match columns(stream) {
        Some(width) => folded(&text, width),
        None => text,
    }
}

/// No line wider than `width`, where words allow it; escape sequences for colours have no width.
pub fn folded(text: &str, width: usize) -> String {
    let lines: Vec<_> = text.split('\n').map(|line| line_folded(line, width)).collect();
    lines.join("\n")
}

fn line_folded(line: &str, width: usize) -> String {
    if textwrap::core::display_width(line) <= width || is_excerpt(line) {
        return line.to_owned();
    }
    let begins = line.len() - line.trim_start_matches(' ').len();
    let indent = " ".repeat(begins.max(INDENT).min(width / 2));
    pieces(line, width, &indent).join("\n")
}

/// The pieces of a line; all but the first begin with `indent`.
fn pieces(line: &str, width: usize, indent: &str) -> Vec<String> {
    let options = Options::new(width)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .break_words(false)
        .subsequent_indent(indent);
    textwrap::wrap(line, options).into_iter().map(std::borrow::Cow::into_owned).collect()
}

/// A cell of a table in lines of at most `width`; a word that is wider is broken.
pub(super) fn cell(text: &str, width: usize) -> Vec<String> {
    let options = Options::new(width.max(1))
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).into_iter().map(std::borrow::Cow::into_owned).collect()
}

/// A line of a file, as mistakes in configurations show it: `12 | allow = …`, with marks below that must stay where they point.
fn is_excerpt(line: &str) -> bool {
    let rest = line.trim_start_matches(' ').trim_start_matches(|c: char| c.is_ascii_digit());
    rest.starts_with(" |") || (rest.starts_with('|') && line.starts_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_between_words_and_go_on_further_in() {
        let text = "error: something long happened here\n  Fix: do what has to be done now";
        assert_eq!(
            folded(text, 24),
            "error: something long\n  happened here\n  Fix: do what has to be\n  done now"
        );
        assert_eq!(folded("short\n\nlines stay", 24), "short\n\nlines stay");
    }

    #[test]
    fn words_excerpts_and_colours_stay_whole() {
        let path = format!("see /{}", "long/".repeat(20));
        assert_eq!(
            folded(&path, 40).lines().map(str::trim).collect::<Vec<_>>(),
            path.split(' ').collect::<Vec<_>>()
        );
        for excerpt in [
            "12 | allow = [\"role:clerk\", \"role:batch\"] # and so on",
            "   | ^^^^^ and a word that goes on for long",
        ] {
            assert_eq!(folded(excerpt, 40), excerpt);
        }
        let coloured = "\u{1b}[31m✗\u{1b}[0m thirty-eight columns and no more here";
        assert_eq!(folded(coloured, 40), coloured);
    }

    #[test]
    fn cells_break_what_is_too_wide() {
        assert_eq!(cell("a stolen laptop", 8), ["a stolen", "laptop"]);
        assert_eq!(cell("0123456789", 8), ["01234567", "89"]);
    }

    #[test]
    fn a_file_is_no_terminal() {
        assert_eq!(columns(tempfile::tempfile().unwrap()), None);
    }
}
