//! Header fields that belong to a connection or steer whoever reads them, in every spelling: relay and agent take them off alike.

use std::borrow::Cow;
use std::fmt::Write;

use http::HeaderName;

/// Fields of one connection, not of the message (RFC 9110, 7.6.1), and what asks that connection for something.
const OF_THE_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
];

/// What some servers take for another method or address than the request's own.
const STEERING: [&str; 7] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-original-method",
    "x-rewrite-url",
];

/// Servers that build CGI-like variables read `-` and `_` alike, so names are compared with both folded.
pub fn folded(name: &HeaderName) -> Cow<'_, str> {
    if name.as_str().contains('_') { name.as_str().replace('_', "-").into() } else { name.as_str().into() }
}

/// Whether a folded name belongs to one connection alone.
pub fn is_of_the_connection(folded: &str) -> bool {
    OF_THE_CONNECTION.contains(&folded)
}

/// Whether a folded name would make a server read another request than the one that policy saw.
pub fn is_steering(folded: &str) -> bool {
    STEERING.contains(&folded)
}

/// An identity as a field's value: visible ASCII as it is; everything else, `%` and `,` percent-encoded; several values separated by commas.
pub fn encoded<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let mut out = String::with_capacity(64);
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        for byte in value.bytes() {
            match byte {
                b'!'..=b'~' if byte != b'%' && byte != b',' => out.push(char::from(byte)),
                _ => write!(out, "%{byte:02X}").unwrap_or_default(),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_known() {
        for name in ["transfer-encoding", "transfer_encoding", "keep_alive", "expect"] {
            assert!(is_of_the_connection(&folded(&name.parse().unwrap())), "{name}");
        }
        assert!(is_steering(&folded(&"x_http-method_override".parse().unwrap())));
        assert!(!is_steering("accept") && !is_of_the_connection("accept"));
    }

    #[test]
    fn identity_values_are_visible_ascii_and_unambiguous() {
        assert_eq!(encoded(["ada", "a,b", "50%", "é", "a b", "\r\n"]), "ada,a%2Cb,50%25,%C3%A9,a%20b,%0D%0A");
        assert_eq!(encoded([]), "");
        assert_ne!(encoded(["", "x"]), encoded(["x"]));
    }
}
