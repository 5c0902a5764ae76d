//! The way to the relay, step by step: its name, a connection, TLS, and whether a Postern relay is there. Says false where there is no
//! going on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::found::Found;
use crate::commands::Context;
use crate::commands::forward::dial;
use crate::dial::innermost;
use crate::failure::{Exit, Failure};
use crate::output::text::escape;
use crate::relay_api::{Published, RelayError};

/// For a name, and for all of its addresses together.
const STEP: Duration = Duration::from_secs(5);

const TOO_LATE: &str = "no answer within 5 s";
const LOST: Exit = Exit::RelayUnreachable;

/// What the relay publishes, where the way leads there.
pub(super) async fn walk(context: &Context, found: &mut Found) -> Result<Option<Published>, Failure> {
    let (relay, proxy) = (&context.relay.url, &context.settings.proxy);
    let host = relay.host().trim_matches(['[', ']']);
    let is_open = match proxy.towards(host, relay.port()) {
        Some(via) => {
            let name = format!("proxy {via}");
            match via.connect(host, relay.port(), STEP).await {
                Ok(_) => found.good(&name, ""),
                Err(error) => found.bad(
                    &name,
                    &error.to_string(),
                    LOST,
                    "check HTTPS_PROXY, or name the relay in NO_PROXY",
                ),
            }
            found.code() == 0
        }
        None => direct(host, relay.port(), found).await,
    };
    if !is_open {
        return Ok(None);
    }
    match dial(context)?.http1().await {
        Ok(_) => found.good("TLS", ""),
        Err(error) => {
            let reason = escape(&innermost(&error));
            found.bad("TLS", &reason, LOST, tls_fix(&reason));
            return Ok(None);
        }
    }
    Ok(match context.relay.published().await {
        Ok(published) => Some(published),
        Err(RelayError::NotPostern { reason, .. }) => {
            let fix = "check the relay's name and port: something else answers there";
            found.bad("relay", &reason, Exit::Other, fix);
            None
        }
        Err(error) => {
            found.failed("relay", &error.into());
            None
        }
    })
}

async fn direct(host: &str, port: u16, found: &mut Found) -> bool {
    let looked_up = tokio::time::timeout(STEP, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<SocketAddr> = match looked_up {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return no_name(&error.to_string(), found),
        Err(_) => return no_name(TOO_LATE, found),
    };
    // An address needs no name.
    if host.parse::<std::net::IpAddr>().is_err() {
        let list = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
        found.good("DNS", list.join(", "));
    }
    let name = format!("TCP {port}");
    match tokio::time::timeout(STEP, TcpStream::connect(&*addresses)).await {
        Ok(Ok(stream)) => {
            found.good(&name, stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default());
            true
        }
        Ok(Err(error)) => {
            let fix = if error.kind() == io::ErrorKind::ConnectionRefused {
                "is the relay running, and is that its port?"
            } else {
                "see whether a firewall is in between, or whether a proxy is needed (HTTPS_PROXY)"
            };
            found.bad(&name, &error.to_string(), LOST, fix);
            false
        }
        Err(_) => {
            found.bad(
                &name,
                TOO_LATE,
                LOST,
                "see whether a firewall is in between, or whether a proxy is needed (HTTPS_PROXY)",
            );
            false
        }
    }
}

fn no_name(reason: &str, found: &mut Found) -> bool {
    found.bad("DNS", reason, LOST, "check the relay's name, and this machine's network");
    false
}

/// The reason is rustls' own word.
fn tls_fix(reason: &str) -> &'static str {
    match reason {
        _ if reason.contains("UnknownIssuer") => {
            "give the CA of its certificate with --ca FILE or POSTERN_CA"
        }
        _ if reason.contains("certificate expired") => {
            "tell whoever runs the relay that its certificate has expired, or set this machine's clock"
        }
        _ if reason.contains("not valid yet") => "set this machine's clock",
        _ if reason.contains("NotValidForName") || reason.contains("not valid for name") => {
            "use the name that the relay's certificate has, or tell whoever runs the relay"
        }
        _ if reason.contains("InvalidContentType") => "that port does not speak TLS: check the port",
        _ => "something in between may meddle with TLS: compare with another network",
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;
    use rustls::pki_types::UnixTime;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_has_a_fix_of_its_own() {
        assert!(tls_fix("invalid peer certificate: UnknownIssuer").contains("--ca"));
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let said = |error: CertificateError| rustls::Error::from(error).to_string();
        let late = said(CertificateError::ExpiredContext { time: at(2), not_after: at(1) });
        assert!(tls_fix(&late).contains("has expired"), "{late}");
        let early = said(CertificateError::NotValidYetContext { time: at(1), not_before: at(2) });
        assert_eq!(tls_fix(&early), "set this machine's clock", "{early}");
        assert!(tls_fix("received corrupt message of type InvalidContentType").contains("port"));
        assert!(tls_fix("tls handshake eof").contains("in between"));
    }
}
