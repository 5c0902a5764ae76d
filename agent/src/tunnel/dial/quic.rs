//! Dials over QUIC: every address of the relay, and all of them once more from a fresh socket. Gives a connection whose handshake is done,
//! with the socket that it needs.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postern_wire::link::quic;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
use tokio::time::{Instant, timeout_at};

use super::names::{Names, STAGGER, one_after_another};
use super::{ConnectError, HANDSHAKE};
use crate::settings::RelayAddress;

/// When all addresses are tried once more, from other ports: what stands in the way may be a flow that a NAT or firewall remembers. It
/// also keeps the pauses between packets short (QUIC repeats its first one after 1, 3 and 7 s), so that a path's return is seen soon.
const ONCE_MORE: Duration = Duration::from_millis(1500);

/// A socket on whatever address leads to `peer`. It is bound to none, so it goes on when this machine's address changes.
pub(crate) fn any(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

/// `streams` is how many the relay may open.
pub(crate) async fn connect(
    relay: &RelayAddress,
    names: &Names,
    tls: rustls::ClientConfig,
    streams: u32,
) -> Result<(Connection, Endpoint), ConnectError> {
    let addresses = names.addresses(relay).await?;
    let config = QuicClientConfig::try_from(tls);
    let config = config.map_err(|e| ConnectError::Unspoken(relay.clone(), e.to_string()))?;
    let mut client = quinn::ClientConfig::new(Arc::new(config));
    client.transport_config(quic::transport(streams));
    let end = Instant::now() + HANDSHAKE;
    // Whoever gave an answer that will not change is not asked again.
    let is_settled: Vec<AtomicBool> = addresses.iter().map(|_| AtomicBool::new(false)).collect();
    let mut attempts = Vec::new();
    for first in [STAGGER, ONCE_MORE] {
        for (index, (address, is_settled)) in addresses.iter().zip(&is_settled).enumerate() {
            let pause = if index == 0 { first } else { STAGGER };
            let attempt = attempt(relay, *address, client.clone());
            let in_time = async move {
                let silent = || Err(ConnectError::SilentUdp(relay.clone()));
                if is_settled.load(Ordering::Relaxed) {
                    return silent();
                }
                let outcome = timeout_at(end, attempt).await.unwrap_or_else(|_| silent());
                let settles = |e: &ConnectError| !e.is_silence() && !matches!(e, ConnectError::Busy(_));
                is_settled.store(outcome.as_ref().is_err_and(settles), Ordering::Relaxed);
                outcome
            };
            attempts.push((pause, in_time));
        }
    }
    one_after_another(attempts).await.unwrap_or_else(|| Err(ConnectError::SilentUdp(relay.clone())))
}

async fn attempt(
    relay: &RelayAddress,
    address: SocketAddr,
    client: quinn::ClientConfig,
) -> Result<(Connection, Endpoint), ConnectError> {
    let endpoint = Endpoint::client(any(address)).map_err(|e| ConnectError::Unreachable(relay.clone(), e))?;
    let failed = |reason: String| ConnectError::Handshake(relay.clone(), reason);
    // The name in TLS plays no part in who the relay is; it helps balancers that look at it.
    let connecting = endpoint.connect_with(client, address, &relay.host);
    match connecting.map_err(|e| failed(e.to_string()))?.await {
        Ok(connection) => Ok((connection, endpoint)),
        Err(e) => Err(refused(relay, e)),
    }
}

/// RFC 8446, 6: no common ALPN.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// RFC 9001, 4.8: TLS alerts are 0x0100 to 0x01ff.
fn is_crypto(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

fn refused(relay: &RelayAddress, error: ConnectionError) -> ConnectError {
    let relay = relay.clone();
    match error {
        ConnectionError::TransportError(e)
            if e.code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL) =>
        {
            ConnectError::Unspoken(relay, e.reason)
        }
        ConnectionError::TransportError(e) if is_crypto(e.code) => ConnectError::Foreign(relay, e.reason),
        ConnectionError::ConnectionClosed(e) if e.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            ConnectError::Busy(relay)
        }
        ConnectionError::ConnectionClosed(e) if is_crypto(e.error_code) => {
            ConnectError::Unspoken(relay, e.to_string())
        }
        ConnectionError::VersionMismatch => ConnectError::Unspoken(relay, error.to_string()),
        ConnectionError::TimedOut => ConnectError::SilentUdp(relay),
        ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => ConnectError::Handshake(relay, error.to_string()),
    }
}
