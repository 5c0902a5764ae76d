//! Opens a tunnel: resolves the relay's name, shakes hands with both certificates, says hello. Only the relay's welcome means connected.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage, ServiceKind, ServiceOffer};
use postern_wire::link::{Link, RecvStream, SendStream, StreamError, quic};
use postern_wire::tls;

use crate::settings::RelayAddress;
use crate::supervisor::Agent;

/// Name, handshake and welcome, together.
const DIAL: Duration = Duration::from_secs(10);
/// One address of several; the next one is tried while there is still time.
const HANDSHAKE: Duration = Duration::from_secs(4);

/// A welcomed tunnel.
#[derive(Debug)]
pub struct Tunnel {
    pub link: Link,
    pub endpoint: quinn::Endpoint,
    pub send: SendStream,
    pub recv: RecvStream,
    pub heartbeat: Duration,
    pub relay: RelayAddress,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{host} cannot be resolved: {source}")]
    Resolve { host: String, source: std::io::Error },
    #[error("no answer over UDP from {0}: is the relay running, and is UDP to that port open?")]
    Silent(RelayAddress),
    #[error("{address}: {reason}")]
    Handshake { address: SocketAddr, reason: String },
    #[error("the relay refused this agent: {reason}")]
    Refused { reason: String, retry_after: Option<Duration> },
    #[error("the relay broke the protocol: {0}")]
    Protocol(String),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("{0}")]
    Socket(#[from] std::io::Error),
}

impl DialError {
    /// How long the relay asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Resolve { .. }
            | Self::Silent(_)
            | Self::Handshake { .. }
            | Self::Protocol(_)
            | Self::Stream(_)
            | Self::Tls(_)
            | Self::Socket(_) => None,
        }
    }
}

pub async fn dial(agent: &Agent, relay: &RelayAddress) -> Result<Tunnel, DialError> {
    match tokio::time::timeout(DIAL, try_dial(agent, relay)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(DialError::Silent(relay.clone())),
    }
}

async fn try_dial(agent: &Agent, relay: &RelayAddress) -> Result<Tunnel, DialError> {
    let resolve = |source| DialError::Resolve { host: relay.host.clone(), source };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((relay.host.as_str(), relay.port)).await.map_err(resolve)?.collect();
    let identity = &agent.identity;
    let config = tls::tunnel_config(identity.tls(), identity.root(), identity.domain().clone())?;
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)
        .map_err(|e| DialError::Protocol(e.to_string()))?;
    let mut client = quinn::ClientConfig::new(Arc::new(config));
    client.transport_config(quic::transport(quic::STREAMS));
    let mut last = DialError::Silent(relay.clone());
    for address in addresses {
        let any: SocketAddr = if address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let endpoint = quinn::Endpoint::client(any)?;
        // The name in TLS plays no part in who the relay is; it helps balancers that look at it.
        let connecting = endpoint.connect_with(client.clone(), address, &relay.host);
        let connecting = connecting.map_err(|e| DialError::Handshake { address, reason: e.to_string() })?;
        match tokio::time::timeout(HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => return greet(agent, relay, Link::new(connection), endpoint).await,
            Ok(Err(e)) => last = DialError::Handshake { address, reason: e.to_string() },
            Err(_) => last = DialError::Silent(relay.clone()),
        }
    }
    Err(last)
}

async fn greet(
    agent: &Agent,
    relay: &RelayAddress,
    link: Link,
    endpoint: quinn::Endpoint,
) -> Result<Tunnel, DialError> {
    let (mut send, mut recv) = link.open().await?;
    let services = agent.settings.services.keys().map(|name| ServiceOffer {
        name: name.to_string(),
        kind: ServiceKind::Http,
        healthy: true,
        wants_caller_token: false,
    });
    let hello = AgentMessage::Hello {
        minor: MINOR,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: agent.identity.instance().to_string(),
        services: services.collect(),
    };
    send.message(&hello, CONTROL_LIMIT).await?;
    let bytes = match recv.message(CONTROL_LIMIT).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(DialError::Protocol("no welcome".to_owned())),
        Err(e) => return Err(e.into()),
    };
    let message = codec::decode(&bytes).map_err(|e| DialError::Protocol(e.to_string()))?;
    match message {
        RelayMessage::Welcome { relay: name, heartbeat_ms, refused, .. } => {
            for refusal in refused {
                let (service, reason) = (refusal.service.escape_debug(), refusal.reason.escape_debug());
                tracing::warn!(%service, %reason, "the relay does not let this agent serve a service");
            }
            tracing::info!(%relay, name = %name.escape_debug(), "tunnel open");
            let heartbeat =
                Duration::from_millis(u64::from(heartbeat_ms)).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT);
            Ok(Tunnel { link, endpoint, send, recv, heartbeat, relay: relay.clone() })
        }
        RelayMessage::Refused { reason, retry_after_ms, .. } => {
            let retry_after = retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
            Err(DialError::Refused { reason: reason.escape_debug().to_string(), retry_after })
        }
        RelayMessage::HeartbeatAck { .. }
        | RelayMessage::Renewed { .. }
        | RelayMessage::RenewRefused { .. }
        | RelayMessage::Draining { .. }
        | RelayMessage::Revoked => Err(DialError::Protocol("the first message was no welcome".to_owned())),
    }
}

/// A relay may ask for heartbeats, not for a flood of them or for none.
const MIN_HEARTBEAT: Duration = Duration::from_millis(500);
const MAX_HEARTBEAT: Duration = Duration::from_mins(1);
