//! What is in a bundle, and what never is.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use flate2::read::GzDecoder;

use super::*;

const JWT: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n";

#[test]
fn everything_that_looks_like_a_secret_goes_and_the_rest_stays() {
    for (text, expected) in [
        (format!("a {KEY}b"), "a [redacted]\nb".to_owned()),
        ("-----BEGIN EC PRIVATE KEY-----\nMIGH".to_owned(), GONE.to_owned()),
        (format!("token {JWT}, next"), format!("token {GONE}, next")),
        ("invite pst1.AbC-_d.EfG refused".to_owned(), format!("invite {GONE} refused")),
        ("invite pst2.AbC-_d.7.EfG refused".to_owned(), format!("invite {GONE} refused")),
        (
            "http://user:p@ss@proxy.example.com:3128/".to_owned(),
            format!("http://{GONE}@proxy.example.com:3128/"),
        ),
        ("Authorization: Bearer 0123456789abcdef0".to_owned(), format!("Authorization: {GONE}")),
        ("sent Bearer 0123456789abcdef0".to_owned(), format!("sent Bearer {GONE}")),
        ("client_secret = \"a b\"".to_owned(), format!("client_secret = {GONE}")),
        ("x?access_token=abc".to_owned(), format!("x?access_token={GONE}")),
    ] {
        assert_eq!(redacted(&text), expected);
    }
    for kept in [
        "the relay's key is beside it: move root-key.pem away",
        "https://relay.example.com/path",
        "client_secret = { credential = \"partners\" }",
        "no basic authentication here",
        "the token expired 3 min ago",
    ] {
        assert_eq!(redacted(kept), kept);
    }
    assert_eq!(
        unquoted("invalid type: string \"hunter2\", expected a table"),
        "invalid type: string \"…\", expected a table"
    );
}

#[test]
fn no_password_of_a_proxy_is_left_whatever_is_in_it() {
    for password in ["it's", "a\"b", "ab\"", "a%27b", "p@ss", "a'\"@%27", "a:b", "a\\b"] {
        let url = format!("http://hunter:{password}@proxy.example.com:3128/");
        let left = [
            redacted(&format!("proxy {url} refused it")),
            redacted(&format!("{{\"proxy\":{},\"n\":1}}", json!(url))),
            json_redacted(json!({ "proxy": [url] }), false).to_string(),
            json_redacted(json!(format!("by {url}: refused")), false).to_string(),
            toml_redacted(toml::Value::String(url.clone()), false).to_string(),
        ];
        for text in left {
            assert!(!text.contains("hunter") && !text.contains(password), "{password}: {text}");
            assert!(text.contains("://[redacted]@proxy.example.com:3128/"), "{password}: {text}");
        }
    }
    // No URL, and cut at its first slash by whoever reads it as one.
    let odd = json_redacted(json!("http://hunter:a/b@proxy"), false).to_string();
    assert_eq!(odd, "\"http://[redacted]@proxy\"");
    let line = r#"{"url":"https://relay.example.com","user":"ada@example.com"}"#;
    assert_eq!(redacted(line), line);
    let page = "https://relay.example.com/a@b";
    assert_eq!(json_redacted(json!(page), false), json!(page));
}

#[test]
fn the_archive_is_private_holds_what_was_added_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.tar.gz");
    let mut bundle = Bundle::new("postern-agent", "1.2.3");
    bundle.text("log.txt", &format!("x {JWT}"));
    bundle.json(
        "status.json",
        &json!({ "proxy": "http://u:hunter2@p", "client_secret": "hunter2", "n": [KEY, 7] }),
    );
    let config = "# password hunter2\nproxy = \"http://u:hunter2@p:1/\"\n[a]\nsecret = { env = \"KEPT\" }\npassword = \"hunter2\"\n";
    bundle.toml("agent.toml", config);
    bundle.toml("bad.toml", "hunter2 = ");
    bundle.write(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let mut archive = tar::Archive::new(GzDecoder::new(std::fs::File::open(&path).unwrap()));
    let mut files = std::collections::BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    let expected = ["about.json", "agent.toml", "bad.toml", "log.txt", "status.json"];
    assert_eq!(names, expected.map(|name| format!("postern-agent/{name}")));
    let all = files.values().map(String::as_str).collect::<String>();
    for secret in ["hunter2", "eyJ", "MIGH"] {
        assert!(!all.contains(secret), "{all}");
    }
    assert!(all.contains("KEPT") && all.contains("\"version\": \"1.2.3\"") && all.contains('7'), "{all}");

    let again = Bundle::new("postern-agent", "1.2.3").write(&path).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
}
