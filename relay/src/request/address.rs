//! From where a caller calls: takes the connection's address and X-Forwarded-For; gives the caller's own address. The field is believed
//! only as far as proxies that relay.toml trusts wrote it: the right-most address that is not one of theirs is the caller's.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::settings::Listen;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The caller's address, as far as it can be believed; a port is known only of the connection's own.
pub fn caller(peer: SocketAddr, headers: &HeaderMap, listen: &Listen) -> SocketAddr {
    if !listen.is_proxy(peer.ip()) {
        return peer;
    }
    let mut caller = peer;
    let fields: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    for field in fields.into_iter().rev() {
        // What is no text was not written by a proxy of ours, nor was anything before it.
        let Ok(text) = field.to_str() else { return caller };
        for entry in text.rsplit(',') {
            let Some(address) = address(entry.trim()) else { return caller };
            caller = SocketAddr::new(address, 0);
            if !listen.is_proxy(address) {
                return caller;
            }
        }
    }
    caller
}

/// An address as proxies write it: with a port or without, IPv6 in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    Some(address.ok()?.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_most_address_that_is_no_proxys_is_the_callers() {
        let any = "0.0.0.0:0".parse().unwrap();
        let listen = Listen {
            https: any,
            quic: any,
            metrics: None,
            proxy_protocol: Vec::new(),
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        };
        let of = |peer: &str, fields: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(FORWARDED_FOR, field.parse().unwrap());
            }
            caller(peer.parse().unwrap(), &headers, &listen).ip().to_string()
        };
        let (proxy, stranger) = ("10.0.0.1:9", "192.0.2.1:9");
        assert_eq!(of(stranger, &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(of(proxy, &[]), "10.0.0.1");
        assert_eq!(of("[::ffff:10.0.0.1]:9", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(of(proxy, &["203.0.113.9, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(of(proxy, &["203.0.113.9, 198.51.100.7 , 10.1.1.1"]), "198.51.100.7");
        assert_eq!(of(proxy, &["203.0.113.9", "198.51.100.7", "10.1.1.1,10.2.2.2"]), "198.51.100.7");
        assert_eq!(of(proxy, &["10.1.1.1, 10.2.2.2"]), "10.1.1.1");
        assert_eq!(of(proxy, &["198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(of(proxy, &["[2001:db9::7]:4711, [2001:db8::1]"]), "2001:db9::7");
        assert_eq!(of(proxy, &["2001:db9::7"]), "2001:db9::7");
        assert_eq!(of(proxy, &["::ffff:198.51.100.7"]), "198.51.100.7");
        // What cannot be read ends what can be believed.
        for junk in ["unknown", "", "198.51.100.7,", "_hidden", "198.51.100.7 203.0.113.9"] {
            assert_eq!(of(proxy, &[junk]), "10.0.0.1", "{junk}");
        }
        assert_eq!(of(proxy, &["203.0.113.9, junk, 10.1.1.1"]), "10.1.1.1");
    }
}
