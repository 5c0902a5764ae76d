//! Takes the address that a proof names and the public one of its request; says whether they are the same, written differently or not
//! (RFC 9449 4.3: query and fragment aside, after the normalisation of RFC 3986 6.2.2 and 6.2.3).

use crate::path::{CanonicalPath, PathMode};

/// Whether both name the same. What is no absolute http(s) address is the same as nothing else.
pub(super) fn is_same(claimed: &str, public: &str) -> bool {
    claimed == public
        || matches!((parts(claimed), parts(public)), (Some(claimed), Some(public)) if claimed.is_same(&public))
}

struct Parts<'a> {
    scheme: &'static str,
    host: &'a str,
    /// Without zeros in front; that of the scheme where none is written.
    port: &'a str,
    path: CanonicalPath<'a>,
}

impl Parts<'_> {
    fn is_same(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.host.eq_ignore_ascii_case(other.host)
            && self.port == other.port
            && self.path.as_str() == other.path.as_str()
    }
}

fn parts(uri: &str) -> Option<Parts<'_>> {
    let uri = uri.split(['?', '#']).next()?;
    let (scheme, rest) = uri.split_once("://")?;
    let (scheme, default) = match scheme {
        _ if scheme.eq_ignore_ascii_case("https") => ("https", "443"),
        _ if scheme.eq_ignore_ascii_case("http") => ("http", "80"),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // A colon in brackets belongs to an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = if port.is_empty() { default } else { port.trim_start_matches('0') };
    let path = if path.is_empty() {
        CanonicalPath::root()
    } else {
        CanonicalPath::parse(path, PathMode::Loose).ok()?
    };
    Some(Parts { scheme, host, port, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings_of_one_address_are_the_same() {
        let public = "https://relay.example.com/billing/v1/~ada/x";
        for same in [
            public,
            "https://relay.example.com/billing/v1/~ada/x?page=2",
            "https://relay.example.com/billing/v1/~ada/x#top",
            "https://relay.example.com/billing/v1/~ada/x?a#b?c",
            "HTTPS://Relay.Example.COM/billing/v1/~ada/x",
            "https://relay.example.com:443/billing/v1/~ada/x",
            "https://relay.example.com:/billing/v1/~ada/x",
            "https://relay.example.com:0443/billing/v1/~ada/x",
            "https://relay.example.com/billing/v1/%7Eada/x",
            "https://relay.example.com/billing/v1/%7eada/%78",
            "https://relay.example.com/billing/./v1/y/../~ada/x",
        ] {
            assert!(is_same(same, public), "{same}");
        }
        assert!(is_same("https://relay.example.com", "https://relay.example.com/"));
        assert!(is_same("https://[::1]:8443/", "https://[::1]:8443"));
        assert!(is_same("https://relay.example.com/a%2fb", "https://relay.example.com/a%2Fb"));
    }

    #[test]
    fn other_addresses_are_not() {
        let public = "https://relay.example.com/billing/v1/x";
        for other in [
            "",
            "/billing/v1/x",
            "relay.example.com/billing/v1/x",
            "//relay.example.com/billing/v1/x",
            "http://relay.example.com/billing/v1/x",
            "ftp://relay.example.com/billing/v1/x",
            "https:/relay.example.com/billing/v1/x",
            "https://relay.example.com:8443/billing/v1/x",
            "https://relay.example.com:x/billing/v1/x",
            "https://relay.example.com.evil.example/billing/v1/x",
            "https://ada@relay.example.com/billing/v1/x",
            "https://relay.example.com@evil.example/billing/v1/x",
            "https://relay.example.com\\@evil.example/billing/v1/x",
            "https://other.example.com/billing/v1/x",
            "https://relay.example.com/billing/v1/x/",
            "https://relay.example.com/billing//v1/x",
            "https://relay.example.com/billing/v1/X",
            "https://relay.example.com/billing%2Fv1/x",
            "https://relay.example.com/billing/v1/x%00",
            "https://relay.example.com/",
            "https://relay.example.com",
            "https://relay.example.com?/billing/v1/x",
            "https://relay%2eexample.com/billing/v1/x",
            " https://relay.example.com/billing/v1/x",
            "https://relay.example.com/billing/v1/x ",
            "https://relay.example.com/../billing/v1/y",
        ] {
            assert!(!is_same(other, public), "{other}");
        }
        assert!(!is_same("https://[::1]/", "https://[::2]/"));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(one in "\\PC{0,60}", other in "(https?://)?\\PC{0,60}") {
            prop_assert_eq!(is_same(&one, &other), is_same(&other, &one));
        }
    }
}
