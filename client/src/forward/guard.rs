//! Takes the head of a request to a forwarded port; refuses what a web page or a rebound name could have sent: a foreign Host (421), a
//! foreign Origin, a Sec-Fetch-Site other than none and same-origin (403). Through the SOCKS proxy the service's own name is what is not
//! foreign, and browsers are refused unless they were meant (403). A unix socket is out of every page's reach.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{HOST, ORIGIN, REFERER, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

/// Which door a request came through.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// The address that was connected to.
    Tcp(SocketAddr),
    /// The name and port that the SOCKS proxy was asked for.
    Named(Arc<str>, u16, Guests),
    Unix,
}

/// Whom the SOCKS proxy serves. A browser that has it as its proxy asks for whatever a page names, and the relay sees the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    Programs,
    Browsers,
}

/// Why a request is refused here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Misdirected,
    OtherName,
    ForeignPage,
    Browser,
    OtherUser,
}

impl Refusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Misdirected | Self::OtherName => StatusCode::MISDIRECTED_REQUEST,
            Self::ForeignPage | Self::Browser | Self::OtherUser => StatusCode::FORBIDDEN,
        }
    }

    /// The problem's name and its fix.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Misdirected => (
                "misdirected",
                "This port answers to 127.0.0.1, localhost and [::1] with its own port number: use one of those in the URL.",
            ),
            Self::OtherName => (
                "misdirected",
                "This connection was opened for another name: ask for the host that the proxy was asked for.",
            ),
            Self::ForeignPage => (
                "foreign-page",
                "A web page from elsewhere may not use this forward: open its address directly.",
            ),
            Self::Browser => (
                "browser",
                "This is a browser's request, and any web page can have your browser ask for your services as you. If you browse through this proxy, start it with: postern proxy --browser",
            ),
            Self::OtherUser => (
                "other-user",
                "This forward belongs to another user of this machine: start one of your own, or ask its owner for `postern forward --unix`.",
            ),
        }
    }
}

const MOZILLA: &[u8] = b"Mozilla";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Judges one request by its head.
pub(crate) fn judge(head: &Parts, door: &Door) -> Result<(), Refusal> {
    let misdirected = match door {
        Door::Tcp(_) => Refusal::Misdirected,
        Door::Named(_, _, Guests::Programs) if is_browsers(&head.headers) => return Err(Refusal::Browser),
        Door::Named(..) => Refusal::OtherName,
        Door::Unix => return Ok(()),
    };
    // HTTP/2 names the host in the target; where a request has both, both are looked at.
    let host = match head.uri.authority() {
        Some(authority) if head.version == Version::HTTP_2 && !head.headers.contains_key(HOST) => {
            authority.as_str()
        }
        _ => only(&head.headers, &HOST).ok_or(misdirected)?,
    };
    let in_target = head.uri.authority().is_none_or(|authority| is_here(authority.as_str(), door));
    if !is_here(host, door) || !in_target {
        return Err(misdirected);
    }
    let page_is_ours = !head.headers.contains_key(ORIGIN)
        || only(&head.headers, &ORIGIN)
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host));
    let sent_by_page_of_ours = !head.headers.contains_key(SEC_FETCH_SITE)
        || only(&head.headers, &SEC_FETCH_SITE).is_some_and(|site| site == "none" || site == "same-origin");
    if page_is_ours && sent_by_page_of_ours { Ok(()) } else { Err(Refusal::ForeignPage) }
}

/// Whether a browser could have sent it: they all call themselves by one name, which no page can change in what it sends unasked.
fn is_browsers(headers: &HeaderMap) -> bool {
    let names_itself = |agent: &HeaderValue| {
        agent.as_bytes().get(..MOZILLA.len()).is_some_and(|start| start.eq_ignore_ascii_case(MOZILLA))
    };
    // Programs that are no browsers send the fields of the WebSocket handshake.
    let is_secure_field = |name: &str| name.starts_with("sec-") && !name.starts_with("sec-websocket-");
    headers.get_all(USER_AGENT).iter().any(names_itself)
        || headers.contains_key(ORIGIN)
        || headers.contains_key(REFERER)
        || headers.keys().any(|name| is_secure_field(name.as_str()))
}

/// The one value of a field; a repeated one is nobody's honest request.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether `host[:port]` names this very place by a name that no stranger's DNS can give: a loopback name, or (when shared) the address
/// that was connected to; in the SOCKS proxy, where nothing is resolved, the name that was asked for.
fn is_here(host: &str, door: &Door) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
        Some(_) | None => (host, Some(80)),
    };
    let local = match door {
        Door::Tcp(local) => local,
        Door::Named(asked, at, _) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            return name.eq_ignore_ascii_case(asked) && port == Some(*at);
        }
        Door::Unix => return true,
    };
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name).parse::<IpAddr>();
    let named = name.eq_ignore_ascii_case("localhost")
        || matches!(name, "127.0.0.1" | "[::1]")
        || address.is_ok_and(|address| address.to_canonical() == local.ip().to_canonical());
    named && port == Some(local.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn judged(target: &str, fields: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut request = Request::get(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        judge(&head, &Door::Tcp("127.0.0.1:8080".parse().unwrap()))
    }

    #[test]
    fn only_loopback_names_with_the_ports_own_number() {
        for good in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST:8080", "[::1]:8080"] {
            assert_eq!(judged("/", &[("host", good)]), Ok(()), "{good}");
        }
        for bad in [
            "localhost",
            "127.0.0.1",
            "localhost:8081",
            "evil.example.com:8080",
            "localhost.evil.example.com:8080",
            "127.0.0.2:8080",
            "0.0.0.0:8080",
            "[::1]",
            "::1:8080:8080",
            "",
            ":8080",
            "ada@localhost:8080",
        ] {
            assert_eq!(judged("/", &[("host", bad)]), Err(Refusal::Misdirected), "{bad}");
        }
        assert_eq!(judged("/", &[]), Err(Refusal::Misdirected), "HTTP/1.0 without Host");
        let two = [("host", "localhost:8080"), ("host", "localhost:8080")];
        assert_eq!(judged("/", &two), Err(Refusal::Misdirected));
        let host = [("host", "localhost:8080")];
        assert_eq!(judged("http://evil.example.com:8080/", &host), Err(Refusal::Misdirected));
        assert_eq!(judged("http://localhost:8080/", &host), Ok(()));
    }

    #[test]
    fn http2_may_name_the_host_in_its_target_alone() {
        let h2 = |target: &str| {
            let request = Request::post(target).version(Version::HTTP_2).body(()).unwrap();
            judge(&request.into_parts().0, &Door::Tcp("127.0.0.1:8080".parse().unwrap()))
        };
        assert_eq!(h2("http://localhost:8080/x"), Ok(()));
        assert_eq!(h2("http://evil.example.com:8080/x"), Err(Refusal::Misdirected));
        assert_eq!(h2("/x"), Err(Refusal::Misdirected));
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let with = |name, value| judged("/", &[("host", "localhost:8080"), (name, value)]);
        assert_eq!(with("origin", "http://localhost:8080"), Ok(()));
        for bad in [
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "https://localhost:8080",
            "null",
            "http://evil.example.com",
        ] {
            assert_eq!(with("origin", bad), Err(Refusal::ForeignPage), "{bad}");
        }
        for good in ["none", "same-origin"] {
            assert_eq!(with("sec-fetch-site", good), Ok(()), "{good}");
        }
        for bad in ["same-site", "cross-site", "", "none, none"] {
            assert_eq!(with("sec-fetch-site", bad), Err(Refusal::ForeignPage), "{bad}");
        }
    }

    #[test]
    fn the_proxy_answers_to_the_name_that_was_asked_for() {
        let through = |port, fields: &[(&str, &str)]| {
            let mut request = Request::get("/");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            judge(
                &request.body(()).unwrap().into_parts().0,
                &Door::Named("billing".into(), port, Guests::Browsers),
            )
        };
        for (port, host) in [(80, "billing"), (80, "Billing:80"), (80, "billing."), (8080, "billing:8080")] {
            assert_eq!(through(port, &[("host", host)]), Ok(()), "{host}");
        }
        for (port, host) in [
            (80, "wiki"),
            (80, "billing:8080"),
            (8080, "billing"),
            (80, "localhost"),
            (80, "billing.evil.example.com"),
        ] {
            assert_eq!(through(port, &[("host", host)]), Err(Refusal::OtherName), "{host}");
        }
        let origin = |origin| through(80, &[("host", "billing"), ("origin", origin)]);
        assert_eq!(origin("http://billing"), Ok(()));
        for foreign in ["http://wiki", "https://billing", "null"] {
            assert_eq!(origin(foreign), Err(Refusal::ForeignPage), "{foreign}");
        }
    }

    #[test]
    fn only_where_it_is_wanted_does_the_proxy_answer_browsers() {
        let asked = |guests, (name, value): (&str, &str)| {
            let request = Request::get("/").header("host", "billing").header(name, value);
            judge(&request.body(()).unwrap().into_parts().0, &Door::Named("billing".into(), 80, guests))
        };
        for field in [
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
            ("user-agent", "mozilla"),
            ("origin", "http://billing"),
            ("referer", "http://billing/"),
            ("sec-fetch-site", "none"),
            ("sec-ch-ua", "x"),
            ("sec-gpc", "1"),
        ] {
            assert_eq!(asked(Guests::Programs, field), Err(Refusal::Browser), "{field:?}");
            assert_eq!(asked(Guests::Browsers, field), Ok(()), "{field:?}");
        }
        for field in
            [("user-agent", "curl/8"), ("user-agent", ""), ("sec-websocket-key", "x"), ("accept", "*/*")]
        {
            assert_eq!(asked(Guests::Programs, field), Ok(()), "{field:?}");
        }
    }

    #[test]
    fn a_shared_port_answers_to_the_address_connected_to() {
        let (head, ()) = Request::get("/").header("host", "192.0.2.7:8080").body(()).unwrap().into_parts();
        assert_eq!(judge(&head, &Door::Tcp("192.0.2.7:8080".parse().unwrap())), Ok(()));
        assert_eq!(judge(&head, &Door::Tcp("192.0.2.8:8080".parse().unwrap())), Err(Refusal::Misdirected));
        assert_eq!(judge(&head, &Door::Unix), Ok(()));
    }

    proptest! {
        #[test]
        fn no_name_but_loopbacks_gets_in(name in "[a-z.-]{1,20}") {
            prop_assume!(name != "localhost");
            let host = format!("{name}:8080");
            prop_assert_eq!(judged("/", &[("host", &host)]), Err(Refusal::Misdirected));
        }
    }
}
