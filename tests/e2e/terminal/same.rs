//! What changes from run to run, and the fixed words that stand for it: the one place for that. Where the words stand in columns, they are
//! as wide as what they replace.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

/// What has no width of its own, applied first: the word stands for the whole.
const LONG: &[(&str, &str)] = &[
    (r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+", "eyJ-a-token"),
    (r"\bpst1\.[\w-]{20,}\.[\w-]{20,}", "pst1.PIN.SECRET"),
    (r"\bpak1_[\w-]{20,}", "pak1_KEY"),
    // What went wrong last is whatever it was, if anything did.
    (
        r"(?m)^(?:\x1b\[33m)?!(?:\x1b\[0m)? (?:\S+: )?last (?:warning|error)[:,][^\n]*\n(?:  [^\n]*(?:\n|\z))*",
        "",
    ),
    // A heartbeat that is late: the machine is busy.
    (r"(?m)^(dc1 .*)\blate\b", "${1}up  "),
    // How far a drain is, after its first line.
    (r"(?m)^\d+ requests? \(\d+ live streams?\), \d+ tunnels?, \d+ connections?\n", ""),
    (r"(?m)^draining: (?:no requests run|\d+ requests? runs?)\n", ""),
    // All but the last turn of a spinner, and that one.
    (r"(?:[^\n\r]*\r\x1b\[2K)+", ""),
    (r" {2,}(?:\S )? *waiting, \d+:\d\d left *", "   ⠋ waiting, 9:41 left\n"),
    // What the terminal shows of Ctrl-C.
    (r"\^C", ""),
];

/// Where a pattern has a group, that alone is replaced; the word is repeated, or cut, to the width of what it replaces.
const SAME: &[(&str, &str)] = &[
    (r"postern-stand-(\w{6})\b", "abcdef"),
    (r"\b[A-Z]{4}-[A-Z]{4}\b", "WDJB-MJHT"),
    // Ids of requests, decisions, instances and locks.
    (r"\b[0-9a-hjkmnp-tv-zA-HJKMNP-TV-Z]{26}\b", "01jc8abcdefghjkmnpqrstvwxy"),
    (r"(?m)^dc1 +(\w{6})  (?:quic|tcp)", "stvwxy"),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "01234567-89ab-cdef-0123-456789abcdef"),
    (r"\b[0-9a-f]{16,}\b", "0123456789abcdef"),
    (r"\b[0-9a-f]{8}\b", "01234567"),
    (r"\b{start-half}[\w-]{43}\b{end-half}=?", "key-"),
    (r"\bport (\d{5})\b", "43210"),
    (r"(?:127\.0\.0\.1|localhost|\[::1\])[:+](\d{5})\b", "43210"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+", "2026-01-31T14:05:06.789012345"),
    (r"\d{4}-\d\d-\d\d(?: |\n +)\d\d:\d\d(?::\d\d\.\d+)?", "2026-01-31 14:05:06.789012345"),
    (r"\b\d\d:\d\d\b", "18:02"),
];

/// How long; not the `m` of an escape sequence. A terminal may have folded the line there.
const SPAN: &str = r"(^|[^\[;\w.])[+-]?\d+(?:\.\d+)?(| |\n +)(?:ms|s|m|min|h|d)\b";

/// Counts and times that have no column of their own: the text takes its place as it is, with `$1` for a group.
const FIXED: &[(&str, &str)] = &[
    (r"\b9 s 9 s\b", "9 s"),
    (r"(?:behind|ahead\s+of)\s+(ours|the relay's)", "beside $1"),
    (r"\bTCP \d{5}\b", "TCP 443"),
    (r"\b\d+(\s+MiB\s+free| lines\b| KiB\b)", "99$1"),
    (r"\b\d+(\s+connection)s?\b", "9${1}s"),
    (
        r"(is cut:)\s+\d+\s+requests?\s+\(\d+\s+live\s+streams?\),\s+\d+\s+tunnels?,",
        "$1 1 request (1 live stream), 2 tunnels,",
    ),
    (r"\b\d+(\s+(?:changed|the\s+same|uncertain|not\s+by\s+rules))", "9$1"),
    (r"\b\d+ line\(s\), seq \d+ to \d+", "99 line(s), seq 1 to 99"),
    (r"\bafter line \d+", "after line 99"),
    (r"(?m)(  9s  |  18:02  )\d{2,}$", "${1}4242"),
    // Seconds and milliseconds since the epoch.
    (r"\b[12]\d{9}(?:\d{3})?\b", "1769868300"),
];

/// Numbers of JSON documents that are others each time.
const NUMBERS: [&str; 20] = [
    "round_trip_us",
    "latency_ms",
    "clock_offset_ms",
    "clock_ahead_ms",
    "lines",
    "connections",
    "pid",
    "port",
    "tick",
    "answered_ms",
    "took_ms",
    "wait",
    "bytes",
    "load",
    "first",
    "proved",
    "seq",
    "same",
    "other",
    "duration_ms",
];

type Table = Vec<(Regex, &'static str)>;

/// A table of patterns, compiled.
fn table(rows: &'static [(&str, &'static str)]) -> Table {
    rows.iter().filter_map(|(pattern, word)| Some((Regex::new(pattern).ok()?, *word))).collect()
}

static TABLES: LazyLock<[Table; 4]> =
    LazyLock::new(|| [table(LONG), table(SAME), table(&[(SPAN, "9 s")]), table(FIXED)]);

/// The text with fixed words.
pub(super) fn words(text: &str) -> String {
    let [long, same, spans, fixed] = &*TABLES;
    let replaced = |text: String, table: &Table| {
        table.iter().fold(text, |text, (pattern, word)| pattern.replace_all(&text, *word).into_owned())
    };
    let text = same.iter().fold(replaced(text.to_owned(), long), |text, (pattern, word)| {
        let replaced = pattern.replace_all(&text, |found: &Captures<'_>| {
            let whole = &found[0];
            let part = found.get(1).map_or(whole, |group| group.as_str());
            let stands: String = word.chars().cycle().take(part.chars().count()).collect();
            whole.replace(part, &stands)
        });
        replaced.into_owned()
    });
    let text = spans.iter().fold(text, |text, (pattern, _)| short(&text, pattern));
    replaced(text, fixed)
}

/// Each span is as short as can be; what follows in the next column stays where it is.
fn short(text: &str, span: &Regex) -> String {
    let (mut shown, mut end) = (String::new(), 0);
    for found in span.captures_iter(text) {
        let (Some(whole), Some(before), Some(gap)) = (found.get(0), found.get(1), found.get(2)) else {
            continue;
        };
        shown.push_str(&text[end..before.end()]);
        shown.push_str(if gap.is_empty() { "9s" } else { "9 s" });
        end = whole.end();
        if text[end..].starts_with("  ") {
            let lost = (end - before.end()).saturating_sub(2 + usize::from(!gap.is_empty()));
            shown.push_str(&" ".repeat(lost));
        }
    }
    shown.push_str(&text[end..]);
    shown
}

/// A document with fixed values.
pub(super) fn document(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "last" | "last_error" => *value = Value::Null,
                    "late" => *value = false.into(),
                    name if value.is_number() && NUMBERS.contains(&name) => *value = 9.into(),
                    _ => document(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(document),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn what_changes_has_the_same_width_and_the_rest_stays() {
    let rows = [LONG.len(), SAME.len(), 1, FIXED.len()];
    assert_eq!(TABLES.each_ref().map(Vec::len), rows, "a pattern is not one");
    for (seen, expected) in [
        ("up at 127.0.0.1:18443, 07:01", "up at 127.0.0.1:43210, 18:02"),
        (
            r#""mac": "-hTwg9WfG5dlhGmgzQ8PukKiBNgmhDfKvohX6XWPfi-""#,
            r#""mac": "key-key-key-key-key-key-key-key-key-key-key""#,
        ),
        ("/tmp/postern-stand-Xy12zW/relay.toml", "/tmp/postern-stand-abcdef/relay.toml"),
        ("dc1    q9w8e7  quic  48 ms  12 s  up", "dc1    stvwxy  quic  9 s    9 s   up"),
        ("for 12\n  min, 3 min 5 s", "for 9 s, 9 s"),
        ("\u{1b}[32m✓\u{1b}[0m up 12 min, clock -0.1 s", "\u{1b}[32m✓\u{1b}[0m up 9 s, clock 9 s"),
        ("GET /v1/invoices/** at most 20/s", "GET /v1/invoices/** at most 20/s"),
        ("a\n! dead: last error, 3 s ago: refused\n  by it\nb", "a\nb"),
        (
            "0 requests (0 live streams), 1 connection, 0 locks",
            "0 requests (0 live streams), 9 connections, 0 locks",
        ),
    ] {
        assert_eq!(words(seen), expected);
    }
    let mut found =
        serde_json::json!({ "last_error": { "text": "x" }, "all": [{ "late": true, "lines": 7 }] });
    document(&mut found);
    assert_eq!(found, serde_json::json!({ "last_error": null, "all": [{ "late": false, "lines": 9 }] }));
}
