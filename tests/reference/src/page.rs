//! Takes headings, words and rows; gives Markdown. Cells cannot break out of their table.

use std::fmt::Write;

/// A page that says where it comes from.
pub(crate) struct Page(String);

impl Page {
    pub(crate) fn new(title: &str, intro: &str) -> Self {
        let origin = "<!-- Made from the code: cargo build --workspace && target/debug/reference write -->";
        Self(format!("# {title}\n\n{origin}\n\n{intro}\n"))
    }

    pub(crate) fn heading(&mut self, level: usize, text: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "\n{} {text}\n", "#".repeat(level));
    }

    pub(crate) fn text(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = write!(self.0, "\n{text}\n");
        }
    }

    pub(crate) fn block(&mut self, text: &str) {
        let _ = write!(self.0, "\n```text\n{}\n```\n", text.trim_end());
    }

    pub(crate) fn table(&mut self, heading: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            return;
        }
        let _ = write!(self.0, "\n| {} |\n|{}\n", heading.join(" | "), "---|".repeat(heading.len()));
        for row in rows {
            let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
            let _ = writeln!(self.0, "|{}|", cells.join("|"));
        }
    }

    pub(crate) fn done(self) -> String {
        self.0
    }
}

/// One line that a table can hold, and that is no HTML.
fn cell(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    if line.is_empty() {
        return " ".to_owned();
    }
    let parts = line.split('`').enumerate().map(|(at, part)| {
        // Outside of code, and no address between angle brackets.
        if at % 2 == 0 && !part.contains("<http") { part.replace('<', "&lt;") } else { part.to_owned() }
    });
    format!(" {} ", parts.collect::<Vec<_>>().join("`"))
}

/// As code, if there is any.
pub(crate) fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}
