//! Patterns against targets, and patterns that are refused.

use super::*;

fn path(raw: &str) -> CanonicalPath<'_> {
    CanonicalPath::parse(raw, PathMode::Loose).unwrap()
}

fn allows(pattern: &str, method: &str, raw: &str) -> bool {
    Pattern::allowing(pattern).unwrap().allows(method, &path(raw))
}

fn denies(pattern: &str, method: &str, raw: &str) -> bool {
    Pattern::denying(pattern).unwrap().denies(method, &path(raw), &path(raw).readings())
}

#[test]
fn allowing_is_exact() {
    for (pattern, yes, no) in [
        ("* /", &["/"][..], &["/a", "//", "/a/"][..]),
        ("* /**", &["/", "/a", "/a/", "/a/b", "/a;b", "//"], &[]),
        (
            "* /x/**",
            &["/x", "/x/", "/x/y", "/x/y/z/", "/x//y", "/x/a%2Fb"],
            &["/", "/xy", "/X/y", "/y/x", "//x/y"],
        ),
        ("* /x/*", &["/x/y", "/x/a%2Fb", "/x/y;v=1"], &["/x", "/x/", "/x/y/", "/x/y/z", "/x//y"]),
        ("* /x/*/z", &["/x/y/z"], &["/x//z", "/x/z", "/x/y/z/", "/x/y/w/z"]),
        ("* /*/**", &["/x", "/x/", "/x/y"], &["/", "//x"]),
        ("* /x", &["/x"], &["/x/", "/x;a", "/X", "/%58%2F"]),
        ("* /x/", &["/x/"], &["/x"]),
        ("* /%7eada/%c3%a9", &["/~ada/%C3%A9", "/%7Eada/%c3%a9"], &["/~ADA/%C3%A9"]),
        ("* /@admin", &["/@admin"], &["/%40admin"]),
        ("* /x%2Ay", &["/x%2Ay"], &["/x*y", "/xzy"]),
    ] {
        for raw in yes {
            assert!(allows(pattern, "GET", raw), "{pattern} should allow {raw}");
        }
        for raw in no {
            assert!(!allows(pattern, "GET", raw), "{pattern} should not allow {raw}");
        }
    }
}

#[test]
fn denying_sees_through_spelling() {
    for (pattern, yes, no) in [
        (
            "* /debug/**",
            &[
                "/debug",
                "/debug/",
                "/DEBUG/x",
                "/Debug/x/y",
                "//debug/x",
                "/debug;a=b/x",
                "/debug%2Fx",
                "/%2Fdebug/x",
                "/%2564ebug/x",
                "/;a=b/debug/x",
                "/debug;%2Fx",
                "/debug%3Bx/y",
                "/%25252564ebug",
                "/debug%253bx",
                "/d%2565bug/",
            ][..],
            &["/", "/debugger", "/x/debug", "/x;debug/y"][..],
        ),
        ("* /@Admin", &["/@admin", "/%40ADMIN", "/%40admin/"], &["/@admin/x", "/admin"]),
        ("* /caf%C3%89", &["/caf%C3%A9", "/CAF%C3%89"], &["/cafe"]),
        ("* /x/*", &["/x/y", "/x/y/", "/x/a%2Fb", "/x//y"], &["/x", "/x/", "/x/y/z"]),
        ("* /.well-known/x", &["/.WELL-KNOWN/X"], &["/well-known/x"]),
        ("* /", &["/", "//"], &["/x"]),
        ("* /**", &["/", "/x", "/x;y//z"], &[]),
    ] {
        for raw in yes {
            assert!(denies(pattern, "GET", raw), "{pattern} should deny {raw}");
        }
        for raw in no {
            assert!(!denies(pattern, "GET", raw), "{pattern} should not deny {raw}");
        }
    }
    assert!(denies("GET /x", "get", "/x") && denies("GET /x", "HEAD", "/x") && denies("* /x", "brew", "/x"));
    assert!(!denies("GET /x", "POST", "/x"));
}

#[test]
fn methods_are_those_named() {
    assert!(allows("GET /x", "GET", "/x") && allows("GET /x", "HEAD", "/x"));
    assert!(allows("PUT,DELETE /x", "DELETE", "/x") && allows("* /x", "BREW", "/x"));
    assert!(!allows("HEAD /x", "GET", "/x") && !allows("PUT,DELETE /x", "HEAD", "/x"));
    assert!(!allows("GET /x", "get", "/x") && !allows("GET /x", "POST", "/x"));
    let pattern = Pattern::allowing("PUT,GET  /x").unwrap();
    assert_eq!(pattern.methods().iter().map(|m| &**m).collect::<Vec<_>>(), ["PUT", "GET", "HEAD"]);
}

#[test]
fn connect_is_no_method_among_others() {
    for pattern in ["* /**", "* /", "GET /**"] {
        assert!(!allows(pattern, CONNECT, "/"), "{pattern}");
    }
    assert!(
        allows("CONNECT", CONNECT, "/")
            && !allows("CONNECT", "GET", "/")
            && !allows("CONNECT", "connect", "/")
    );
    // Denials of everything cover it, those of some path do not.
    assert!(denies("CONNECT", CONNECT, "/") && denies("* /**", CONNECT, "/"));
    for pattern in ["* /", "* /debug/**", "* /*", "GET /**"] {
        assert!(!denies(pattern, CONNECT, "/"), "{pattern}");
    }
    assert!(!denies("CONNECT", "GET", "/x"));
}

#[test]
fn patterns_that_mislead_are_refused() {
    for (pattern, part) in [
        ("", "is not METHOD[,METHOD] PATH: write \"GET /v1/**\" or \"* /v1/**\""),
        ("GET", "is not METHOD[,METHOD] PATH"),
        ("/x", "is not METHOD[,METHOD] PATH"),
        (" /x", "is not METHOD[,METHOD] PATH"),
        ("GET ", "is not METHOD[,METHOD] PATH"),
        ("CONNECT /x", "CONNECT stands alone"),
        ("CONNECT,GET /x", "CONNECT stands alone"),
        ("GET,CONNECT", "is not METHOD[,METHOD] PATH"),
        ("connect", "is not METHOD[,METHOD] PATH"),
        ("get /x", "\"get\" is not a method: write them in capitals"),
        ("GET,,PUT /x", "\"\" is not a method"),
        ("GET,* /x", "is not a method"),
        ("G(T /x", "is not a method"),
        ("GET, PUT /x", "\"\" is not a method"),
        ("GET x", "must start with \"/\""),
        ("GET *", "must start with \"/\""),
        ("GET https://a.example/x", "must start with \"/\""),
        ("GET /a/../b", "\"/a/../b\" has dot segments: write \"/b\""),
        ("GET /a/%2e%2e/b", "has dot segments"),
        ("GET /./a", "has dot segments"),
        ("GET /a/.", "has dot segments"),
        ("GET /a//b", "empty segment"),
        ("GET /a%2Fb", "escaped slash"),
        ("GET /a;b", "\";\" at byte 2"),
        ("GET /a\\b", "backslash"),
        ("GET /a?b=c", "(0x3F) must be percent-encoded"),
        ("GET /a#b", "must be percent-encoded"),
        ("GET /a b", "(0x20) must be percent-encoded"),
        ("GET /é", "must be percent-encoded"),
        ("GET /%2541", "twice escaped"),
        ("GET /%zz", "hexadecimal"),
        ("GET /%00", "control character"),
        ("GET /a/**/b", "\"/a/**/b\" has ** before its end: it may only be the last segment"),
        ("GET /**/**", "has ** before its end"),
        ("GET /a*", "* stands for a whole segment; for the character itself write %2A"),
        ("GET /a/*b/c", "* stands for a whole segment"),
        ("GET /a/***", "* stands for a whole segment"),
        ("GET /a**", "* stands for a whole segment"),
    ] {
        for refused in [Pattern::allowing(pattern), Pattern::denying(pattern)] {
            let error = refused.unwrap_err();
            assert!(error.contains(part), "{pattern}: {error}");
        }
    }
}
