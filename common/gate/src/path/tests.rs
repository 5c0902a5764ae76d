//! Hostile paths in a table, and what must hold of every path.

use proptest::prelude::*;

use super::*;
use crate::cost;

fn strict(raw: &str) -> Result<String, PathError> {
    CanonicalPath::parse(raw, PathMode::Strict).map(|path| path.as_str().to_owned())
}

fn loose(raw: &str) -> Result<String, PathError> {
    CanonicalPath::parse(raw, PathMode::Loose).map(|path| path.as_str().to_owned())
}

#[test]
fn good_paths_get_their_one_spelling() {
    for (raw, canonical) in [
        ("/", "/"),
        ("/v1/invoices/7", "/v1/invoices/7"),
        ("/v1/invoices/", "/v1/invoices/"),
        ("/%7Eada/%41%2d%2E%5f", "/~ada/A-._"),
        ("/a%3ab", "/a%3Ab"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/..", "/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/%2e/b", "/a/b"),
        ("/a/.%2e", "/"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/..b/b..", "/a/..b/b.."),
        ("/100%25", "/100%25"),
        ("/100%25/x%25y", "/100%25/x%25y"),
        ("/a%20b%3Bc", "/a%20b%3Bc"),
        ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ("/%F0%9F%98%80", "/%F0%9F%98%80"),
    ] {
        assert_eq!(strict(raw).as_deref(), Ok(canonical), "{raw}");
        assert_eq!(loose(raw).as_deref(), Ok(canonical), "{raw}");
    }
}

#[test]
fn canonical_paths_are_borrowed() {
    for raw in ["/", "/v1/invoices/7", "/caf%C3%A9/x%20y", "/.well-known/x", "/a/"] {
        let path = CanonicalPath::parse(raw, PathMode::Strict).unwrap();
        assert!(matches!(path.text, Cow::Borrowed(_)), "{raw}");
    }
}

#[test]
fn hostile_paths_are_refused_and_say_where() {
    use PathError as E;
    let both: &[(&str, PathError)] = &[
        ("", E::NotAbsolute),
        ("*", E::NotAbsolute),
        ("a/b", E::NotAbsolute),
        ("./a", E::NotAbsolute),
        ("%2Fa", E::NotAbsolute),
        ("http://evil.example/a", E::NotAbsolute),
        ("\\a", E::NotAbsolute),
        ("/%", E::BadEscape { at: 1 }),
        ("/a%2", E::BadEscape { at: 2 }),
        ("/a%2/b", E::BadEscape { at: 2 }),
        ("/a%zz", E::BadEscape { at: 2 }),
        ("/%u002e", E::BadEscape { at: 1 }),
        ("/%u2216", E::BadEscape { at: 1 }),
        ("/%%32%65", E::BadEscape { at: 1 }),
        ("/%2%65", E::BadEscape { at: 1 }),
        ("/% 2e", E::BadEscape { at: 1 }),
        ("/%+2", E::BadEscape { at: 1 }),
        ("/%00", E::Control { at: 1 }),
        ("/a%00.html", E::Control { at: 2 }),
        ("/a%0d%0aSet-Cookie:x", E::Control { at: 2 }),
        ("/a%0Ab", E::Control { at: 2 }),
        ("/a%09b", E::Control { at: 2 }),
        ("/a%1Fb", E::Control { at: 2 }),
        ("/a%7fb", E::Control { at: 2 }),
        ("/a\0b", E::Control { at: 2 }),
        ("/a\r\nb", E::Control { at: 2 }),
        ("/a\tb", E::Control { at: 2 }),
        ("/a\u{7f}", E::Control { at: 2 }),
        ("/a%C2%85b", E::Control { at: 2 }),
        ("/a\\b", E::Backslash { at: 2 }),
        ("/a\\..\\b", E::Backslash { at: 2 }),
        ("/..\\admin", E::Backslash { at: 3 }),
        ("/a%5cb", E::Backslash { at: 2 }),
        ("/..%5Cadmin", E::Backslash { at: 3 }),
        ("/a b", E::Raw { at: 2, byte: b' ' }),
        ("/a?b", E::Raw { at: 2, byte: b'?' }),
        ("/a#b", E::Raw { at: 2, byte: b'#' }),
        ("/café", E::Raw { at: 4, byte: 0xC3 }),
        ("/a／b", E::Raw { at: 2, byte: 0xEF }),
        ("/%FF", E::NotUtf8 { at: 1 }),
        ("/a%C0%AFb", E::NotUtf8 { at: 2 }),
        ("/%C0%AE%C0%AE/x", E::NotUtf8 { at: 1 }),
        ("/%e0%80%af", E::NotUtf8 { at: 1 }),
        ("/%41%F0%9F%98/x", E::NotUtf8 { at: 4 }),
        ("/%ED%A0%80", E::NotUtf8 { at: 1 }),
        ("/x/..%3B/admin", E::HiddenDots { segment: 2 }),
        ("/%2e%2e%3bx", E::HiddenDots { segment: 1 }),
        ("/x/.%3B/admin", E::HiddenDots { segment: 2 }),
    ];
    let only_strict: &[(&str, PathError)] = &[
        ("//", E::EmptySegment { at: 1 }),
        ("//evil.example/a", E::EmptySegment { at: 1 }),
        ("/a//b", E::EmptySegment { at: 3 }),
        ("/a/..//b", E::EmptySegment { at: 6 }),
        ("/a%2Fb", E::EscapedSlash { at: 2 }),
        ("/a%2fb", E::EscapedSlash { at: 2 }),
        ("/a;b", E::Semicolon { at: 2 }),
        ("/;/admin", E::Semicolon { at: 1 }),
        ("/a;jsessionid=1/b", E::Semicolon { at: 2 }),
        ("/%252F", E::EscapedTwice { at: 5 }),
        ("/%252e%252e/x", E::EscapedTwice { at: 5 }),
        ("/%25%32%46", E::EscapedTwice { at: 7 }),
        ("/%2525", E::EscapedTwice { at: 5 }),
        ("/%25%30%30", E::EscapedTwice { at: 7 }),
        ("/%255c", E::EscapedTwice { at: 5 }),
        ("/%2541", E::EscapedTwice { at: 5 }),
    ];
    // With dots behind what only loose services take.
    let only_loose: &[(&str, PathError)] = &[
        ("/x/..;/admin", E::HiddenDots { segment: 2 }),
        ("/x/..;a=b/admin", E::HiddenDots { segment: 2 }),
        ("/x/.;/admin", E::HiddenDots { segment: 2 }),
        ("/x/..%2Fadmin", E::HiddenDots { segment: 2 }),
        ("/x/a%2F..%2f..%2Fadmin", E::HiddenDots { segment: 2 }),
        ("/x/%252e%252e/admin", E::HiddenDots { segment: 2 }),
        ("/x/%25252e./admin", E::HiddenDots { segment: 2 }),
        ("/x/..%255Cadmin", E::HiddenDots { segment: 2 }),
        ("/x/%25%32%65%252e", E::HiddenDots { segment: 2 }),
        ("/..%253b/x", E::HiddenDots { segment: 1 }),
    ];
    assert!(both.len() + only_strict.len() + only_loose.len() >= 60);
    for (raw, error) in both.iter().chain(only_strict) {
        assert_eq!(strict(raw), Err(*error), "{raw}");
    }
    for (raw, error) in both.iter().chain(only_loose) {
        assert_eq!(loose(raw), Err(*error), "{raw}");
    }
    for (raw, _) in only_loose {
        assert!(strict(raw).is_err(), "{raw}");
    }
    for (raw, _) in only_strict.iter().filter(|(raw, _)| !raw.contains("252e")) {
        assert!(loose(raw).is_ok(), "{raw}");
    }
    assert_eq!(
        strict("/a%2Fb").unwrap_err().to_string(),
        "there is an escaped slash (%2F) at byte 2 of the path: this service does not take one"
    );
}

#[test]
fn loose_keeps_what_it_lets_through() {
    for (raw, canonical) in [
        ("//a", "//a"),
        ("/a//b/", "/a//b/"),
        ("/a//../b", "/a/b"),
        ("/p/group%2fproject", "/p/group%2Fproject"),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/%25%34%31", "/%2541"),
    ] {
        assert_eq!(loose(raw).as_deref(), Ok(canonical), "{raw}");
    }
}

#[test]
fn a_prefix_is_whole_segments() {
    let strip = |raw, prefix: &str| {
        let path = CanonicalPath::parse(raw, PathMode::Strict).unwrap();
        path.strip_prefix(prefix).map(|rest| rest.as_str().to_owned())
    };
    assert_eq!(strip("/billing", "/billing").as_deref(), Some("/"));
    assert_eq!(strip("/billing/", "/billing").as_deref(), Some("/"));
    assert_eq!(strip("/billing/x", "/billing").as_deref(), Some("/x"));
    assert_eq!(strip("/billing/x", "/billing/").as_deref(), Some("/x"));
    assert_eq!(strip("/billing/../billing/./x", "/billing").as_deref(), Some("/x"));
    assert_eq!(strip("/billing/x", "/").as_deref(), Some("/billing/x"));
    assert_eq!(strip("/billingx", "/billing"), None);
    assert_eq!(strip("/Billing/x", "/billing"), None);
    assert_eq!(strip("/billing/..", "/billing"), None);
    assert_eq!(strip("/wiki", "/billing"), None);
    let loose = CanonicalPath::parse("/billing//x", PathMode::Loose).unwrap();
    assert_eq!(loose.strip_prefix("/billing").unwrap().as_str(), "//x");
}

/// The bytes that a path means, dot segments removed by the buffers of RFC 3986, 5.2.4.
fn meaning(raw: &str) -> Vec<u8> {
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(raw).collect();
    let (mut input, mut output) = (bytes.as_slice(), Vec::new());
    while !input.is_empty() {
        if input.starts_with(b"/./") {
            input = &input[2..];
        } else if input == b"/." {
            input = b"/";
        } else if input.starts_with(b"/../") || input == b"/.." {
            input = if input.len() == 3 { b"/" } else { &input[3..] };
            output.truncate(output.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
        } else {
            let end = input.iter().skip(1).position(|byte| *byte == b'/').map_or(input.len(), |at| at + 1);
            output.extend_from_slice(&input[..end]);
            input = &input[end..];
        }
    }
    output
}

fn hostile() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "/", "/", "a", "B", ".", "..", "%2e", "%2E", "%2F", "%2f", "%5c", "%25", "%32", "%46", "41",
        "2e", "%41", "%c3%a9", "%C0%AF", "%00", "%", ";", "%3b", "\\", "~", "%7e", "é", " ", "*", "@", "%40",
        "?",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn canonicalising_twice_changes_nothing(raw in hostile()) {
        for mode in [PathMode::Strict, PathMode::Loose] {
            if let Ok(path) = CanonicalPath::parse(&raw, mode) {
                let again = CanonicalPath::parse(path.as_str(), mode);
                prop_assert_eq!(again.as_ref().map(CanonicalPath::as_str), Ok(path.as_str()));
            }
        }
    }

    #[test]
    fn strict_paths_have_one_reading(raw in hostile()) {
        if let Ok(path) = strict(&raw) {
            prop_assert!(path.starts_with('/') && path.is_ascii() && !path.contains("//"));
            prop_assert!(!path.contains(['\\', ';', '?', '#', ' ']));
            prop_assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
            for (at, _) in path.match_indices('%') {
                let digits = &path[at + 1..at + 3];
                prop_assert_eq!(digits, digits.to_uppercase());
                prop_assert!(!matches!(digits, "2F" | "5C" | "00"));
                let value = u8::from_str_radix(digits, 16).unwrap();
                prop_assert!(!value.is_ascii_alphanumeric() && !b"-._~".contains(&value));
                prop_assert!(digits != "25" || hex(path.as_bytes(), at + 3).is_none());
            }
        }
    }

    #[test]
    fn what_parses_means_the_same_bytes(raw in hostile()) {
        if let Ok(path) = strict(&raw) {
            prop_assert_eq!(percent_encoding::percent_decode_str(&path).collect::<Vec<u8>>(), meaning(&raw));
        }
    }

    #[test]
    fn loose_differs_only_in_what_it_lets_through(raw in hostile()) {
        if let Ok(path) = strict(&raw) {
            prop_assert_eq!(loose(&raw), Ok(path));
        }
    }

    #[test]
    fn nothing_panics(raw in ".{0,40}") {
        for mode in [PathMode::Strict, PathMode::Loose] {
            if let Ok(path) = CanonicalPath::parse(&format!("/{raw}"), mode) {
                path.readings();
            }
        }
    }
}

/// Whatever comes as a path of up to 8 KiB (security.md 2), its cost is bounded: what is done before anyone is known, and what policy
/// does with it then.
#[test]
fn no_path_takes_long() {
    let is_cheap = |raw: &str, mode| {
        let parsed = CanonicalPath::parse(raw, mode);
        let read = || {
            if let Ok(path) = CanonicalPath::parse(raw, mode) {
                path.strip_prefix("/billing");
            }
        };
        let reads = || {
            if let Ok(path) = &parsed {
                path.readings();
            }
        };
        cost::is_within(cost::LIMIT, read) && cost::is_within(cost::LIMIT, reads)
    };
    let modes = [PathMode::Strict, PathMode::Loose];
    for piece in [
        "/", "a", "/a", "/..", "/a/..", "/.", "%25", "%2525", "%2f", ";", "/;", "%41", "%c3%a9", "%C0", "%",
        "/%2e%2e",
    ] {
        let raw = format!("/{}", piece.repeat(8192 / piece.len()));
        assert!(modes.iter().all(|mode| is_cheap(&raw, *mode)), "{piece}");
    }
    let pieces = proptest::collection::vec(hostile(), 0..200);
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..8192), pieces in pieces)| {
        for raw in [format!("/{}", String::from_utf8_lossy(&bytes)), pieces.concat()] {
            prop_assert!(modes.iter().all(|mode| is_cheap(&raw, *mode)), "{}", raw);
        }
    });
}
