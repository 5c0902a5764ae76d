//! One authority, and what a refusal says of where its metadata is.

use super::*;

fn head(uri: &str, hosts: &[&str], version: Version) -> http::request::Parts {
    let mut request = http::Request::builder().uri(uri).version(version);
    for host in hosts {
        request = request.header(header::HOST, *host);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn metadata_is_named_by_the_path_alone() {
    for (path, suffix) in [
        ("/billing", "/billing"),
        ("/billing/v1/invoices", "/billing"),
        ("/billing/", "/billing"),
        ("/", ""),
        ("//x", ""),
        ("", ""),
        ("/.postern/tcp/db", ""),
        ("/.well-known/postern", ""),
    ] {
        assert_eq!(metadata_path(path), suffix, "{path}");
    }
}

#[test]
fn one_authority_and_no_other() {
    let ok = |uri, hosts: &[&str], version| authority(&head(uri, hosts, version)).map(|a| a.to_string()).ok();
    assert_eq!(ok("/x", &["a.example"], Version::HTTP_11).as_deref(), Some("a.example"));
    assert_eq!(ok("http://a.example/x", &["A.example"], Version::HTTP_11).as_deref(), Some("a.example"));
    assert_eq!(ok("https://a.example/x", &[], Version::HTTP_2).as_deref(), Some("a.example"));
    for (uri, hosts, version) in [
        ("/x", &[][..], Version::HTTP_11),
        ("/x", &["a.example", "b.example"], Version::HTTP_11),
        ("/x", &["a.example", "a.example"], Version::HTTP_11),
        ("http://b.example/x", &["a.example"], Version::HTTP_11),
        ("http://a.example/x", &[], Version::HTTP_11),
        ("https://a.example/x", &["b.example"], Version::HTTP_2),
        ("/x", &["u@a.example"], Version::HTTP_11),
        ("/x", &["a b"], Version::HTTP_11),
        ("/x", &[""], Version::HTTP_11),
        ("/x", &["a.example:443,evil.example"], Version::HTTP_11),
        ("/x", &["a.example:evil"], Version::HTTP_11),
        ("/x", &["a.example:99999"], Version::HTTP_11),
        ("/x", &["a.example:"], Version::HTTP_11),
    ] {
        assert_eq!(ok(uri, hosts, version), None, "{uri} {hosts:?}");
    }
}
