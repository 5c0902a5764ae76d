//! Takes values and text from afar; gives text that is safe on a terminal: control characters escaped, tables, clock times.

use std::fmt::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Text that a relay, an issuer or an upstream chose. Display escapes what could deceive on a terminal; JSON keeps it as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Afar(String);

impl Afar {
    /// As it came: to be compared, not to be shown.
    pub(crate) fn raw(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Afar {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Afar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// Escapes controls (C0, DEL, C1), line separators and the marks that reorder or hide text.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let deceives = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if deceives {
            // Writing to a String cannot fail.
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The width that tables keep to, whatever the terminal: they then look alike in mails and logs.
const WIDTH: u16 = 80;

/// A table with a header (or none) and no lines; `wide` lets it grow beyond 80 columns.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], wide: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header);
    }
    if wide {
        table.set_content_arrangement(ContentArrangement::Disabled);
    } else {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    }
    for row in rows {
        table.add_row(row);
    }
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// `18:02`, or with its date when that is not today.
pub(crate) fn clock(seconds: u64, now: Timestamp, zone: &TimeZone) -> String {
    let Some(at) = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok()) else {
        return "the end of time".to_owned();
    };
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let format = if at.date() == now.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    at.strftime(format).to_string()
}

/// [`clock`] for this machine, now.
pub(crate) fn local_clock(seconds: u64) -> String {
    clock(seconds, Timestamp::now(), &TimeZone::system())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_escaped() {
        assert_eq!(escape("a\u{1b}[31m\nb\u{9b}\u{202e}é"), "a\\u{1b}[31m\\u{a}b\\u{9b}\\u{202e}é");
        assert_eq!(Afar::from("\r").to_string(), "\\u{d}");
        assert_eq!(serde_json::to_string(&Afar::from("x")).unwrap(), "\"x\"");
    }

    #[test]
    fn times_of_another_day_have_their_date() {
        let now: Timestamp = "2026-03-04T17:00:00Z".parse().unwrap();
        let at = |text: &str| u64::try_from(text.parse::<Timestamp>().unwrap().as_second()).unwrap();
        assert_eq!(clock(at("2026-03-04T18:02:30Z"), now, &TimeZone::UTC), "18:02");
        assert_eq!(clock(at("2026-03-05T00:02:00Z"), now, &TimeZone::UTC), "2026-03-05 00:02");
        assert_eq!(clock(u64::MAX, now, &TimeZone::UTC), "the end of time");
    }

    #[test]
    fn tables_keep_to_eighty_columns() {
        let rows = [vec!["billing".to_owned(), "words ".repeat(30)]];
        let text = table(&["SERVICE", "ABOUT"], &rows, false);
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(table(&["SERVICE", "ABOUT"], &rows, true).lines().count(), 2);
    }
}
