//! Dials over TCP: every address of the relay, or through an HTTP proxy, which knows the name itself; then TLS. Gives a link whose
//! handshake is done.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use postern_base::proxy::Proxy;
use postern_wire::link::{Link, tcp};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::names::{Names, STAGGER, one_after_another};
use super::{ConnectError, HANDSHAKE};
use crate::settings::RelayAddress;

/// A proxy resolves the name and may ask somebody who we are.
const THROUGH_PROXY: Duration = Duration::from_secs(8);
/// Keeps NAT and proxy bindings alive beside the heartbeats, and lets the kernel notice a peer that is gone; data that nobody
/// acknowledges is given up as soon as a tunnel without heartbeats is.
const KEEPALIVE: Duration = Duration::from_secs(15);
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

pub(crate) async fn connect(
    relay: &RelayAddress,
    names: &Names,
    proxy: &Proxy,
    tls: ClientConfig,
) -> Result<Link, ConnectError> {
    let tls = Arc::new(tls);
    if let Some(via) = proxy.towards(&relay.host, relay.port) {
        let opened = async {
            let stream = via.connect(&relay.host, relay.port, THROUGH_PROXY).await?;
            secured(relay, stream, tls).await
        };
        return in_time(relay, Instant::now() + THROUGH_PROXY, opened).await;
    }
    let addresses = names.addresses(relay).await?;
    let end = Instant::now() + HANDSHAKE;
    let mut attempts = Vec::new();
    for address in addresses {
        let tls = tls.clone();
        let attempt = async move {
            let stream = TcpStream::connect(address).await;
            secured(relay, stream.map_err(|e| ConnectError::Unreachable(relay.clone(), e))?, tls).await
        };
        attempts.push((STAGGER, in_time(relay, end, attempt)));
    }
    one_after_another(attempts).await.unwrap_or_else(|| Err(ConnectError::SilentTcp(relay.clone())))
}

async fn in_time<T>(
    relay: &RelayAddress,
    end: Instant,
    attempt: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let silent = |_| Err(ConnectError::SilentTcp(relay.clone()));
    timeout_at(end, attempt).await.unwrap_or_else(silent)
}

async fn secured(
    relay: &RelayAddress,
    stream: TcpStream,
    tls: Arc<ClientConfig>,
) -> Result<Link, ConnectError> {
    let failed = |e: io::Error| refused(relay, &e);
    stream.set_nodelay(true).map_err(failed)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive).map_err(failed)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)).map_err(failed)?;
    let peer = stream.peer_addr().map_err(failed)?;
    let alpn = tls.alpn_protocols.first().cloned();
    // The name in TLS plays no part in who the relay is; it helps balancers that look at it.
    let name = ServerName::try_from(relay.host.clone());
    let name = name.unwrap_or_else(|_| ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()));
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(failed)?;
    // An ordinary HTTPS server may choose nothing and go on.
    if stream.get_ref().1.alpn_protocol() != alpn.as_deref() {
        return Err(ConnectError::Unspoken(relay.clone(), "it is an ordinary HTTPS server".to_owned()));
    }
    tcp::dialled(stream, peer).await.map_err(|e| ConnectError::Handshake(relay.clone(), e.to_string()))
}

fn refused(relay: &RelayAddress, error: &io::Error) -> ConnectError {
    let relay = relay.clone();
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol,
        ) => ConnectError::Unspoken(relay, error.to_string()),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::General(_)) => {
            ConnectError::Foreign(relay, error.to_string())
        }
        Some(_) | None => ConnectError::Handshake(relay, error.to_string()),
    }
}
