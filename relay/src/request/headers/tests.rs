use super::*;

const HERE: &str = "relay.example.com:8443";

#[test]
fn every_spelling_of_a_field_of_ours_is_known() {
    for name in [
        "x-postern-subject",
        "x_postern_subject",
        "x-forwarded-for",
        "x_forwarded-for",
        "te",
        "proxy-authorization",
    ] {
        assert!(is_ours(&name.parse().unwrap()), "{name}");
    }
    for name in ["accept", "cookie", "x-forward", "content-type", "range"] {
        assert!(!is_ours(&name.parse().unwrap()), "{name}");
    }
}

#[test]
fn a_trace_goes_on_with_a_new_parent_or_starts_anew() {
    let caller = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let next = trace_parent(Some(&caller));
    assert!(next.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && next.ends_with("-01"), "{next}");
    assert!(!next.contains("b7ad6b7169203331"));
    for bad in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "ff-x"] {
        let fresh = trace_parent(Some(&HeaderValue::from_static(bad)));
        assert_eq!(fresh.len(), 55, "{fresh}");
    }
}

#[test]
fn locations_of_the_service_become_public() {
    let public = |location: &str| public_location(location, HERE, "/billing");
    assert_eq!(public("/v1/x").as_deref(), Some("/billing/v1/x"));
    assert_eq!(
        public("http://relay.example.com:8443/v1/x?y").as_deref(),
        Some("https://relay.example.com:8443/billing/v1/x?y")
    );
    assert_eq!(
        public("https://relay.example.com:8443").as_deref(),
        Some("https://relay.example.com:8443/billing/")
    );
    for other in [
        "https://relay.example.com:84430/x",
        "https://elsewhere.example/x",
        "//elsewhere.example/x",
        "x/y",
        "?a",
    ] {
        assert_eq!(public(other), None, "{other}");
    }
    assert_eq!(public_location("/v1/x", HERE, ""), None);
}

#[test]
fn who_takes_trailers_says_so_among_other_things() {
    let takes = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::TE, HeaderValue::from_static(value));
        }
        takes_trailers(&headers)
    };
    assert!(takes(&["trailers"]) && takes(&["deflate;q=0.5, Trailers"]) && takes(&["gzip", "trailers"]));
    assert!(!takes(&[]) && !takes(&["gzip"]) && !takes(&["x-trailers"]));
}

#[test]
fn what_grpc_needs_survives() {
    let mut trailers = HeaderMap::new();
    for name in
        ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-checksum", "server", "x-postern-roles"]
    {
        trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("0"));
    }
    clean_trailers(&mut trailers);
    assert_eq!(trailers.len(), 4, "{trailers:?}");
    assert!(!trailers.contains_key("server") && !trailers.contains_key("x-postern-roles"));
}
