//! Takes what a person types for a relay or a call (`relay.example.com:8443`, `billing/v1/invoices`) and the addresses a relay
//! publishes; gives typed addresses; refuses anything that is not https, or that would lead a token away from the relay typed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use postern_base::id::ServiceName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("{0:?} is not a relay: write its host, host:port or https URL, such as relay.example.com")]
    Relay(String),
    #[error("{0:?} is not a call: write the service and the path within it, such as billing/v1/invoices")]
    Target(String),
    #[error("{service}: the relay says it lives at {url:?}, which is not at {relay}: no token goes there")]
    Elsewhere { service: ServiceName, url: String, relay: RelayUrl },
}

/// A relay: always https, no path. Shown as `host` or `host:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct RelayUrl(Arc<Url>);

impl RelayUrl {
    /// `https://host[:port]`, as RFC 6454 writes it.
    pub(crate) fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    pub(crate) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(443)
    }

    /// One of the relay's own addresses; `path` starts with a slash.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }

    /// Whether some URL has this relay's scheme, host and port.
    pub(crate) fn is_origin_of(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| url.origin() == self.0.origin())
    }

    /// Where a service is called: `published` when its TLS and TCP end at this relay's own port, whatever its host is called
    /// (the connection is made to the relay's address either way).
    pub(crate) fn service_at(&self, service: &ServiceName, published: &str) -> Result<Url, AddressError> {
        let refuse = || AddressError::Elsewhere {
            service: service.clone(),
            url: published.to_owned(),
            relay: self.clone(),
        };
        let url = Url::parse(published).map_err(|_| refuse())?;
        let here = match url.host() {
            Some(Host::Domain(_)) => url.port_or_known_default() == Some(self.port()),
            Some(Host::Ipv4(_) | Host::Ipv6(_)) => url.origin() == self.0.origin(),
            None => false,
        };
        let plain = url.scheme() == "https"
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        if here && plain { Ok(url) } else { Err(refuse()) }
    }

    /// Where a service is called when the relay has not said so: under its default prefix.
    pub(crate) fn service_by_default(&self, service: &ServiceName) -> Url {
        let mut url = Url::clone(&self.0);
        url.set_path(&format!("/{service}/"));
        url
    }
}

impl FromStr for RelayUrl {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = || AddressError::Relay(text.to_owned());
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = Url::parse(&url).map_err(|_| refuse())?;
        let plain = url.scheme() == "https"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none();
        if plain { Ok(Self(Arc::new(url))) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for RelayUrl {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<RelayUrl> for String {
    fn from(relay: RelayUrl) -> Self {
        relay.origin()
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.authority())
    }
}

impl fmt::Debug for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A call as people write it: `billing/v1/invoices/7?page=2`. The path is the service's own and starts with a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) service: ServiceName,
    pub(crate) path: String,
}

impl FromStr for Target {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (service, path) = text.split_once('/').unwrap_or((text, ""));
        let service = service.parse().map_err(|_| AddressError::Target(text.to_owned()))?;
        Ok(Self { service, path: format!("/{path}") })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.service, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relay(text: &str) -> RelayUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_relay_is_typed_in_three_ways() {
        for text in
            ["relay.example.com", "relay.example.com:443", "https://relay.example.com/", "RELAY.example.com"]
        {
            assert_eq!(relay(text).origin(), "https://relay.example.com", "{text}");
        }
        assert_eq!(relay("relay.example.com:8443").to_string(), "relay.example.com:8443");
        assert_eq!(relay("[::1]:8443").port(), 8443);
        for bad in [
            "",
            "http://relay.example.com",
            "relay.example.com/x",
            "ada@relay.example.com",
            "https://r?x",
            "a b",
        ] {
            assert!(bad.parse::<RelayUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_elsewhere_gets_no_token() {
        let here = relay("relay.example.com");
        let billing: ServiceName = "billing".parse().unwrap();
        for good in ["https://relay.example.com/billing/", "https://billing.example.com/"] {
            assert_eq!(here.service_at(&billing, good).unwrap().as_str(), good);
        }
        for bad in [
            "http://relay.example.com/billing/",
            "https://relay.example.com:8443/billing/",
            "https://192.0.2.7/",
            "https://ada:x@relay.example.com/",
            "https://relay.example.com/billing/?to=",
            "billing",
        ] {
            assert!(here.service_at(&billing, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn calls_name_a_service_and_a_path() {
        let target: Target = "billing".parse().unwrap();
        assert_eq!((target.service.as_str(), target.path.as_str()), ("billing", "/"));
        assert!("/v1".parse::<Target>().is_err() && "Bill/x".parse::<Target>().is_err());
    }

    proptest! {
        #[test]
        fn a_relay_reads_back_as_it_is_shown(text in "\\PC{0,40}") {
            if let Ok(relay) = text.parse::<RelayUrl>() {
                prop_assert_eq!(relay.to_string().parse::<RelayUrl>().unwrap(), relay);
            }
        }

        #[test]
        fn a_call_reads_back_as_it_is_shown(text in "[a-z]{1,8}(/[ -~]{0,20})?") {
            let target: Target = text.parse().unwrap();
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
    }
}
