//! What changes from run to run, and the fixed words that stand for it, as wide as what they replace, so that columns stay where they are.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Patterns in the order in which they are applied. Where a pattern has a group, that alone is replaced; the word is repeated, or cut, to
/// the width of what it replaces.
const SAME: &[(&str, &str)] = &[
    (r"postern-stand-(\w{6})\b", "abcdef"),
    (r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+", "token"),
    (r"\bpst1\.([\w.-]{20,})", "invite-"),
    (r"\b[A-Z]{4}-[A-Z]{4}\b", "WDJB-MJHT"),
    // Ids of requests, decisions, instances and locks.
    (r"\b[0-9a-hjkmnp-tv-zA-HJKMNP-TV-Z]{26}\b", "01jc8abcdefghjkmnpqrstvwxy"),
    (r"(?m)^dc1 +(\w{6})  (?:quic|tcp)", "stvwxy"),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "01234567-89ab-cdef-0123-456789abcdef"),
    (r"\b[0-9a-f]{16,}\b", "0123456789abcdef"),
    (r"\b[0-9a-f]{8}\b", "01234567"),
    (r"\b[\w-]{43}\b=?", "key-"),
    (r"\bport (\d{5})\b", "43210"),
    (r"(?:127\.0\.0\.1|localhost|\[::1\])[:+](\d{5})\b", "43210"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+", "2026-01-31T14:05:06.789012345"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "2026-01-31 14:05"),
    (r"\b\d\d:\d\d\b", "18:02"),
];

/// The same for what has no width of its own: the text takes its place as it is, with `$1` for a group.
const FIXED: &[(&str, &str)] = &[
    // All but the last turn of a spinner.
    (r"(?:[^\n\r]*\r\x1b\[2K)+", ""),
    (r"\S waiting, \d+:\d\d left *", "⠋ waiting, 9:41 left"),
    (r"(last (?:warning|error))[:,][^\n]*(?:\n  [^\n]*)*", "$1: whatever it was"),
    // How long; not the `m` of an escape sequence.
    (r"(^|[^\[;\w.])[+-]?\d+(?:\.\d+)?( ?)(?:ms|s|m|min|h|d)\b", "${1}9${2}s"),
    (r"(?:behind|ahead of) (ours|the relay's)", "beside $1"),
    (r"\bTCP \d{5}\b", "TCP 443"),
    (r"\b\d+( MiB free| connections?\b| lines\b| KiB\b)", "99$1"),
    (r"(?m)(  9s  |  18:02  )\d{2,}$", "${1}4242"),
    // In JSON.
    (r"\b[12]\d{9}(?:\d{3})?\b", "1769868300"),
    (r#""last": (?:null|\{[^{}]*\})"#, r#""last": null"#),
    (
        r#"("(?:round_trip_us|latency_ms|clock_offset_ms|clock_ahead_ms|lines|connections|pid|port|tick|answered_ms|took_ms|wait|bytes|load)": )-?[\d.]+"#,
        "${1}9",
    ),
];

/// A table of patterns, compiled.
fn table(rows: &'static [(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    rows.iter().filter_map(|(pattern, word)| Some((Regex::new(pattern).ok()?, *word))).collect()
}

static TABLES: LazyLock<[Vec<(Regex, &str)>; 2]> = LazyLock::new(|| [table(SAME), table(FIXED)]);

/// The text with fixed words.
pub(super) fn words(text: &str) -> String {
    let [same, fixed] = &*TABLES;
    let text = same.iter().fold(text.to_owned(), |text, (pattern, word)| {
        let replaced = pattern.replace_all(&text, |found: &Captures<'_>| {
            let whole = &found[0];
            let part = found.get(1).map_or(whole, |group| group.as_str());
            let stands: String = word.chars().cycle().take(part.chars().count()).collect();
            whole.replace(part, &stands)
        });
        replaced.into_owned()
    });
    fixed.iter().fold(text, |text, (pattern, word)| pattern.replace_all(&text, *word).into_owned())
}

#[test]
fn what_changes_has_the_same_width_and_the_rest_stays() {
    assert!(TABLES[0].len() == SAME.len() && TABLES[1].len() == FIXED.len(), "a pattern is not one");
    for (seen, expected) in [
        ("up at 127.0.0.1:18443, 07:01", "up at 127.0.0.1:43210, 18:02"),
        ("/tmp/postern-stand-Xy12zW/relay.toml", "/tmp/postern-stand-abcdef/relay.toml"),
        ("dc1    q9w8e7  quic  48ms", "dc1    stvwxy  quic  9s"),
        ("\u{1b}[32m✓\u{1b}[0m up 12 min, clock -0.1 s", "\u{1b}[32m✓\u{1b}[0m up 9 s, clock 9 s"),
        ("GET /v1/invoices/** at most 20/s", "GET /v1/invoices/** at most 20/s"),
    ] {
        assert_eq!(words(seen), expected);
    }
}
