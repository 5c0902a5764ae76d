//! Requests to speak another protocol: takes a request's head, gives the one it asks for — WebSocket (RFC 6455, and RFC 8441 over HTTP/2)
//! or raw bytes to a TCP service — and at last the head of the answer that switches; refuses a request that asks in a wrong way. What
//! nobody here speaks is not an upgrade: its field is dropped, and the request is an ordinary one.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;

use super::respond::Refusal;

const WEBSOCKET: &str = "websocket";
const TCP: &str = "postern-tcp";

/// What callers of TCP services ask to switch to.
pub const TCP_UPGRADE: HeaderValue = HeaderValue::from_static(TCP);

/// What a connection may switch to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    WebSocket,
    Tcp,
}

/// A request to switch.
#[derive(Debug)]
pub struct Upgrade {
    pub protocol: Protocol,
    /// Gives the connection once the answer that switches has been sent.
    pub on: OnUpgrade,
    is_http2: bool,
}

/// What the request asks for. An extended CONNECT that does is made the GET that it stands for.
pub fn asked(head: &mut http::request::Parts) -> Result<Option<Upgrade>, Refusal> {
    let is_http2 = head.version == Version::HTTP_2;
    let protocol = if head.method == Method::CONNECT {
        let asked = head.extensions.get::<hyper::ext::Protocol>();
        let protocol = asked.and_then(|protocol| named(protocol.as_str()));
        let protocol = protocol.ok_or_else(|| {
            malformed("CONNECT is served with :protocol websocket or postern-tcp alone (RFC 8441)")
        })?;
        head.method = Method::GET;
        // There is none over HTTP/2 (RFC 8441, 5): the agent makes its own.
        head.headers.remove(header::SEC_WEBSOCKET_KEY);
        protocol
    } else {
        let may_switch = head.version == Version::HTTP_11 && head.method == Method::GET;
        let listed = may_switch && lists(&head.headers, &header::CONNECTION, |name| name == "upgrade");
        let mut protocol = None;
        if listed {
            lists(&head.headers, &header::UPGRADE, |name| {
                protocol = named(name);
                protocol.is_some()
            });
        }
        let Some(protocol) = protocol else { return Ok(None) };
        if has_body(&head.headers) {
            return Err(malformed("a request to switch protocols has no body"));
        }
        protocol
    };
    if protocol == Protocol::WebSocket {
        handshake(&head.headers, is_http2)?;
    }
    let Some(on) = head.extensions.remove::<OnUpgrade>() else { return Ok(None) };
    Ok(Some(Upgrade { protocol, on, is_http2 }))
}

/// The relay's own addresses switch to nothing; over HTTP/2 any answer of theirs would be taken for the switch.
pub fn at_own(upgrade: Option<&Upgrade>) -> Result<(), Refusal> {
    if upgrade.is_some_and(|upgrade| upgrade.is_http2) {
        Err(Refusal::OwnMethod("GET, HEAD"))
    } else {
        Ok(())
    }
}

/// What of it a service of kind http is asked for: WebSocket.
pub fn at_http(upgrade: Option<Upgrade>) -> Result<Option<Upgrade>, Refusal> {
    match upgrade {
        Some(upgrade) if upgrade.protocol == Protocol::Tcp && upgrade.is_http2 => {
            Err(malformed("postern-tcp is for services of kind tcp, at /.postern/tcp/SERVICE"))
        }
        upgrade => Ok(upgrade.filter(|upgrade| upgrade.protocol == Protocol::WebSocket)),
    }
}

/// A service of kind tcp can only be switched to.
pub fn at_tcp(upgrade: Option<Upgrade>) -> Result<Upgrade, Refusal> {
    upgrade.filter(|upgrade| upgrade.protocol == Protocol::Tcp).ok_or(Refusal::UpgradeRequired)
}

/// RFC 6455, 4.2.1: the version, and over HTTP/1.1 a key of 16 bytes.
fn handshake(headers: &HeaderMap, is_http2: bool) -> Result<(), Refusal> {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    if one(header::SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return Err(malformed("only version 13 of WebSocket is served (one Sec-WebSocket-Version: 13)"));
    }
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    // 16 bytes are 22 digits of base64, of which the last says only 2 bits, and padding.
    let is_key = |key: &[u8]| {
        key.len() == 24
            && key[..21].iter().all(is_digit)
            && b"AQgw".contains(&key[21])
            && key.ends_with(b"==")
    };
    if is_http2 || one(header::SEC_WEBSOCKET_KEY).is_some_and(is_key) {
        Ok(())
    } else {
        Err(malformed("a WebSocket handshake has one Sec-WebSocket-Key of 16 bytes in base64"))
    }
}

impl Upgrade {
    /// The answer that switches, made of what the agent answered: `fields` are clean. `None` where it does not say what it must.
    pub fn answer(&self, mut fields: HeaderMap) -> Option<Response<()>> {
        let key = fields.remove(header::SEC_WEBSOCKET_ACCEPT);
        fields.remove(header::CONTENT_LENGTH);
        let mut status = StatusCode::OK;
        if !self.is_http2 {
            status = StatusCode::SWITCHING_PROTOCOLS;
            fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            fields.insert(header::UPGRADE, self.protocol.field());
            if self.protocol == Protocol::WebSocket {
                fields.insert(header::SEC_WEBSOCKET_ACCEPT, key?);
            }
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        Some(response)
    }

    /// Whether the caller would take any answer of this status for the switch (RFC 8441, 5).
    pub fn is_taken_for_switch(&self, status: StatusCode) -> bool {
        self.is_http2 && status.is_success()
    }
}

impl Protocol {
    fn field(self) -> HeaderValue {
        match self {
            Self::WebSocket => HeaderValue::from_static(WEBSOCKET),
            Self::Tcp => TCP_UPGRADE,
        }
    }
}

fn named(text: &str) -> Option<Protocol> {
    match text {
        _ if text.eq_ignore_ascii_case(WEBSOCKET) => Some(Protocol::WebSocket),
        _ if text.eq_ignore_ascii_case(TCP) => Some(Protocol::Tcp),
        _ => None,
    }
}

/// Whether some name in the comma-separated lists of a field is wanted; names are looked at in order.
fn lists(headers: &HeaderMap, field: &HeaderName, mut wanted: impl FnMut(&str) -> bool) -> bool {
    let values = headers.get_all(field).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| wanted(&name.trim().to_ascii_lowercase()))
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn malformed(why: &str) -> Refusal {
    Refusal::Malformed(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn head(method: &str, fields: &[(&str, &str)]) -> http::request::Parts {
        let mut request = http::Request::builder().method(method).uri("/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// What comes of a head before the connection is looked for.
    fn outcome(method: &str, fields: &[(&str, &str)]) -> Result<bool, Refusal> {
        let mut head = head(method, fields);
        let listed = lists(&head.headers, &header::UPGRADE, |name| named(name).is_some());
        asked(&mut head).map(|_| listed)
    }

    #[test]
    fn a_handshake_is_whole_or_refused() {
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "h2c, WebSocket")];
        let with = |more: &[(&'static str, &'static str)]| {
            let fields: Vec<_> = websocket.iter().chain(more).copied().collect();
            outcome("GET", &fields)
        };
        let version = ("sec-websocket-version", "13");
        assert!(with(&[version, ("sec-websocket-key", KEY)]).is_ok());
        for bad in [
            &[][..],
            &[version],
            &[("sec-websocket-key", KEY)],
            &[("sec-websocket-version", "8"), ("sec-websocket-key", KEY)],
            &[version, version, ("sec-websocket-key", KEY)],
            &[version, ("sec-websocket-key", KEY), ("sec-websocket-key", KEY)],
            &[version, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZR==")],
            &[version, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j")],
            &[version, ("sec-websocket-key", KEY), ("content-length", "5")],
            &[version, ("sec-websocket-key", KEY), ("transfer-encoding", "chunked")],
        ] {
            assert!(matches!(with(bad), Err(Refusal::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_upgrade_is_an_ordinary_request() {
        let bare = [("upgrade", "websocket")];
        let other = [("connection", "upgrade"), ("upgrade", "h2c")];
        let posted = [("connection", "upgrade"), ("upgrade", "websocket")];
        for (method, fields) in [("GET", &bare[..]), ("GET", &other), ("POST", &posted)] {
            assert!(outcome(method, fields).is_ok(), "{method} {fields:?}");
        }
        assert!(matches!(outcome("CONNECT", &[]), Err(Refusal::Malformed(_))));
    }
}
