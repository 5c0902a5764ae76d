//! Takes a host and a port; gives socket addresses; refuses link-local and metadata addresses, which only a literal address in our own
//! file can mean, never a name.

use std::io;
use std::net::{IpAddr, SocketAddr};

pub(super) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = host.parse::<IpAddr>() {
        return Ok(vec![(literal, port).into()]);
    }
    let all = tokio::net::lookup_host((host, port)).await?;
    let found: Vec<_> = all.filter(|address| !is_forbidden(address.ip())).collect();
    if found.is_empty() {
        return Err(io::Error::other("its name leads to link-local or metadata addresses alone"));
    }
    Ok(found)
}

/// Link-local addresses, cloud metadata services among them.
fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.octets() == [100, 100, 100, 200],
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_to_metadata_services() {
        for bad in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "100.100.100.200",
            "fd00:ec2::254",
            "0.0.0.0",
        ] {
            assert!(is_forbidden(bad.parse().unwrap()), "{bad}");
        }
        for good in ["127.0.0.1", "10.0.0.1", "::1", "fd00::1"] {
            assert!(!is_forbidden(good.parse().unwrap()), "{good}");
        }
    }
}
