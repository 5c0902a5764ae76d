//! Takes the fields of a request or an answer; gives those that go on to the other side: without those of this hop (RFC 9110, 7.6.1),
//! without credentials, with addresses as the other side knows them. A WebSocket's upgrade is the one that goes on.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LOCATION, EXPECT, HOST, LOCATION, ORIGIN, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use crate::forward::location::Map;
use crate::relay_api::lease::LEASE;
use crate::session::pass::DPOP;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether this asks to become a WebSocket (RFC 6455, 4.1).
pub(super) fn asks_for_websocket(head: &Parts) -> bool {
    let says = |name: HeaderName, word: &str| {
        let values = head.headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && says(UPGRADE, "websocket")
        && says(CONNECTION, "upgrade")
}

/// The request's fields for the relay.
pub(super) fn outward(headers: &mut HeaderMap, origin: &str, switch: bool) {
    let trailers = headers.get_all(TE).iter().any(|te| te.to_str().is_ok_and(|te| te.contains("trailers")));
    remove_hop_by_hop(headers);
    for name in [HOST, AUTHORIZATION, EXPECT, DPOP] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if switch {
        insert_switch(headers);
    }
    // The guard saw that it names this port; to the service its own public origin is what that means.
    if headers.contains_key(ORIGIN)
        && let Ok(origin) = HeaderValue::try_from(origin)
    {
        headers.insert(ORIGIN, origin);
    }
}

/// The answer's fields for the local program, which asked for `asked` at `local`.
pub(super) fn inward(headers: &mut HeaderMap, map: &Map, asked: &Uri, local: &str, switched: bool) {
    remove_hop_by_hop(headers);
    headers.remove(LEASE);
    if switched {
        insert_switch(headers);
    }
    for name in [LOCATION, CONTENT_LOCATION] {
        let home = headers.get(&name).and_then(|v| map.inward(v.to_str().ok()?, asked, local));
        if let Some(value) = home.and_then(|home| HeaderValue::try_from(home).ok()) {
            headers.insert(name, value);
        }
    }
}

fn insert_switch(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let known = ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"];
    for name in named.into_iter().chain([CONNECTION, TE, TRANSFER_ENCODING, UPGRADE]) {
        headers.remove(name);
    }
    for name in known {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn only_a_whole_websocket_request_is_one() {
        let asks = |method: &str, version, upgrade: &str, connection: &str| {
            let request = Request::builder().method(method).version(version);
            let request = request.header(UPGRADE, upgrade).header(CONNECTION, connection).body(()).unwrap();
            asks_for_websocket(&request.into_parts().0)
        };
        let h1 = Version::HTTP_11;
        assert!(
            asks("GET", h1, "websocket", "Upgrade") && asks("GET", h1, "x, WebSocket", "keep-alive, upgrade")
        );
        assert!(
            !asks("POST", h1, "websocket", "Upgrade")
                && !asks("GET", Version::HTTP_10, "websocket", "Upgrade")
        );
        assert!(!asks("GET", h1, "h2c", "Upgrade") && !asks("GET", h1, "websocket", "close"));
    }

    #[test]
    fn another_upgrade_stays_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings"), ("http2-settings", "x")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        outward(&mut headers, "https://relay.example.com", false);
        assert!(headers.is_empty(), "{headers:?}");
    }
}
