//! Takes what follows `forward` (`billing`, `8080:billing`, `[::1]:8080:billing`); gives the service and where to listen; refuses an
//! address beyond loopback that was not meant to be shared.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use postern_base::id::ServiceName;

/// One forward, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) bind: Option<IpAddr>,
    /// Zero: any free port.
    pub(crate) port: u16,
    pub(crate) service: ServiceName,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("{0:?} is not a forward: write SERVICE, PORT:SERVICE or BIND:PORT:SERVICE, such as 8080:billing")]
    Form(String),
    #[error("{0} is a port without its service: write PORT:SERVICE, such as {0}:billing")]
    Port(u16),
    #[error("{0} is beyond loopback: whoever reaches it could use the service as you")]
    Beyond(IpAddr),
    #[error("--share, but {0} is loopback: nothing is shared there")]
    NotShared(IpAddr),
}

impl Spec {
    /// Where to listen; `default` is `--bind`.
    pub(crate) fn address(&self, default: Option<IpAddr>, share: bool) -> Result<SocketAddr, SpecError> {
        let ip = self.bind.or(default).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        match (ip.is_loopback(), share) {
            (false, false) => Err(SpecError::Beyond(ip)),
            (true, true) => Err(SpecError::NotShared(ip)),
            (true, false) | (false, true) => Ok(SocketAddr::new(ip, self.port)),
        }
    }
}

impl FromStr for Spec {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = || SpecError::Form(text.to_owned());
        // A service of such a name is still to be had, as 0:8080.
        if let Ok(port) = text.parse() {
            return Err(SpecError::Port(port));
        }
        let mut parts = text.rsplitn(3, ':');
        let service = parts.next().and_then(|s| s.parse().ok()).ok_or_else(refuse)?;
        let port = parts.next().map_or(Ok(0), |p| p.parse().map_err(|_| refuse()))?;
        let bind = parts.next().map(|ip| {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
            if ip == "localhost" {
                Ok(Ipv4Addr::LOCALHOST.into())
            } else {
                bare.parse().map_err(|_| refuse())
            }
        });
        Ok(Self { bind: bind.transpose()?, port, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(text: &str) -> Spec {
        text.parse().unwrap()
    }

    #[test]
    fn the_three_forms() {
        assert_eq!((spec("billing").bind, spec("billing").port), (None, 0));
        assert_eq!(spec("8080:billing").port, 8080);
        assert_eq!(spec("[::1]:8080:billing").bind, Some("::1".parse().unwrap()));
        assert_eq!(spec("localhost:1:billing").bind, Some("127.0.0.1".parse().unwrap()));
        for bad in
            ["", ":billing", "8080:", "70000:billing", "x:8080:billing", "8080:Billing", "1:2:3:billing"]
        {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_is_not_a_service() {
        let error = "38081".parse::<Spec>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "38081 is a port without its service: write PORT:SERVICE, such as 38081:billing"
        );
        assert_eq!(spec("0:38081").service.as_str(), "38081");
    }

    #[test]
    fn beyond_loopback_only_when_shared() {
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(spec("8080:billing").address(None, false).unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(spec("8080:billing").address(Some(any), false), Err(SpecError::Beyond(any)));
        assert_eq!(spec("8080:billing").address(Some(any), true).unwrap().to_string(), "0.0.0.0:8080");
        assert!(spec("127.0.0.1:1:billing").address(Some(any), false).is_ok(), "the spec's own address wins");
        assert!(matches!(spec("billing").address(None, true), Err(SpecError::NotShared(_))));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Spec>();
        }

        #[test]
        fn what_is_written_is_read(port: u16, ip: IpAddr) {
            let ip_text = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            let read = spec(&format!("{ip_text}:{port}:billing"));
            prop_assert_eq!((read.bind, read.port), (Some(ip), port));
        }
    }
}
