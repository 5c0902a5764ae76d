//! Opens a tunnel: over QUIC, and where that does not come about over TCP, with both certificates; says hello. Only the relay's welcome
//! means connected, and only its answer to a heartbeat means usable, which is for [`super::control`] to see.

use std::sync::Arc;
use std::time::Duration;

use postern_base::proxy::ProxyError;
use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage, ServiceOffer, ServiceRefusal, refusal};
use postern_wire::link::{Link, RecvStream, SendStream, StreamError};
use postern_wire::tls;
use tokio::sync::watch;

use super::SUSPENDED_AGAIN;
use super::pace::Failure;
use crate::config::Transport;
use crate::settings::RelayAddress;
use crate::supervisor::Agent;

pub mod names;
pub mod quic;
pub mod race;
pub mod tcp;

use names::Names;
use race::{Raced, race};

/// From the relay's name to both certificates.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(4);
/// Hello and welcome; a relay that needs longer has too much to do, and is given time.
const GREETING: Duration = Duration::from_secs(4);
/// How long QUIC has the way to itself: more than a handshake and a hello take on slow paths, and where UDP is blocked the first request
/// does not wait long.
pub(crate) const HEAD_START: Duration = Duration::from_millis(1500);
/// The same where UDP did not get through the last time: enough for QUIC to win where it does again.
const SHORT_HEAD_START: Duration = Duration::from_millis(300);

/// A welcomed tunnel.
#[derive(Debug)]
pub struct Tunnel {
    pub link: Link,
    /// QUIC's socket; it must outlive the link's goodbye.
    pub endpoint: Option<quinn::Endpoint>,
    pub send: SendStream,
    pub recv: RecvStream,
    /// What changes after the hello.
    pub offers: watch::Receiver<Arc<Vec<ServiceOffer>>>,
    pub heartbeat: Duration,
    pub relay: RelayAddress,
    /// What this agent may not serve.
    pub refused: Vec<ServiceRefusal>,
}

/// Why no relay was reached over one kind of link.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{host} cannot be resolved: {reason}; check the name (relay) and this machine's DNS")]
    Name { host: String, reason: String },
    #[error("no answer over UDP from {0}")]
    SilentUdp(RelayAddress),
    #[error("no answer over TCP from {0}")]
    SilentTcp(RelayAddress),
    #[error("{0} over TCP: {1}")]
    Unreachable(RelayAddress, std::io::Error),
    #[error("{0} takes no more connections for now")]
    Busy(RelayAddress),
    #[error("{0} is not this agent's relay: {1}")]
    Foreign(RelayAddress, String),
    #[error("{0} does not speak Postern's protocol: {1}")]
    Unspoken(RelayAddress, String),
    #[error("{0} ended the handshake: {1}")]
    Handshake(RelayAddress, String),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl ConnectError {
    /// Whether nobody was there.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Name { .. } | Self::SilentUdp(_) | Self::SilentTcp(_) | Self::Unreachable(..) => true,
            Self::Proxy(e) => matches!(
                e,
                ProxyError::Unreachable { .. } | ProxyError::Late { .. } | ProxyError::Gateway { .. }
            ),
            Self::Busy(_) | Self::Foreign(..) | Self::Unspoken(..) | Self::Handshake(..) | Self::Tls(_) => {
                false
            }
        }
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the relay did not answer the hello within {GREETING:?}")]
    Unanswered,
    #[error("the relay refused this agent: {reason}")]
    Refused { code: u16, reason: String, retry_after: Option<Duration> },
    #[error("the relay broke the protocol: {0}")]
    Protocol(String),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("{quic}; {tcp}")]
    Both { quic: Box<Self>, tcp: Box<Self> },
}

impl DialError {
    /// Whether an operator suspended this agent.
    pub(super) fn is_suspended(&self) -> bool {
        matches!(self, Self::Refused { code: refusal::SUSPENDED, .. })
    }

    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Connect(e) if e.is_silence() => Failure::Silent,
            Self::Refused { code: refusal::SUSPENDED, .. } => Failure::Asked(SUSPENDED_AGAIN),
            Self::Refused { retry_after: Some(wait), .. } => Failure::Asked(*wait),
            Self::Both { quic, tcp } if quic.failure() == Failure::Silent => tcp.failure(),
            Self::Connect(_)
            | Self::Unanswered
            | Self::Refused { .. }
            | Self::Protocol(_)
            | Self::Stream(_)
            | Self::Both { .. } => Failure::Refused,
        }
    }
}

/// What is wanted of a dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A tunnel, over whatever works.
    Any {
        /// UDP did not get through the last time.
        was_tcp: bool,
    },
    /// Is QUIC back?
    Quic,
}

/// Dials one relay.
#[derive(Debug)]
pub struct Dialer {
    agent: Arc<Agent>,
    relay: RelayAddress,
    names: Names,
}

impl Dialer {
    pub fn new(agent: Arc<Agent>, relay: RelayAddress) -> Self {
        Self { agent, relay, names: Names::default() }
    }

    pub fn relay(&self) -> &RelayAddress {
        &self.relay
    }

    /// Ends within seconds, whatever the network does.
    pub async fn dial(&self, want: Want) -> Result<Tunnel, DialError> {
        // Both are large, and not what a tunnel should carry about for its life.
        let (quic, tcp) = (Box::pin(self.over_quic()), Box::pin(self.over_tcp()));
        match (self.agent.settings.transport, want) {
            (Transport::Quic, _) | (Transport::Auto, Want::Quic) => quic.await,
            (Transport::Tcp, _) => tcp.await,
            (Transport::Auto, Want::Any { was_tcp }) => {
                let head_start = if was_tcp { SHORT_HEAD_START } else { HEAD_START };
                // The relay's own word holds for both links.
                let is_final = |e: &DialError| matches!(e, DialError::Refused { .. });
                match race(quic, tcp, head_start, is_final).await {
                    Ok(tunnel) => Ok(tunnel),
                    Err(Raced::Final(e)) => Err(e),
                    // The name, for one.
                    Err(Raced::Both { quic, tcp }) if quic.to_string() == tcp.to_string() => Err(tcp),
                    Err(Raced::Both { quic, tcp }) => {
                        Err(DialError::Both { quic: Box::new(quic), tcp: Box::new(tcp) })
                    }
                }
            }
        }
    }

    fn tls(&self, alpn: &[u8]) -> Result<rustls::ClientConfig, ConnectError> {
        let identity = &self.agent.identity;
        let (roots, domain) = (identity.roots(), identity.domain().clone());
        Ok(tls::tunnel_config(identity.tls(), &roots, domain, identity.floor(), alpn)?)
    }

    async fn over_quic(&self) -> Result<Tunnel, DialError> {
        let tls = self.tls(tls::ALPN_TUNNEL)?;
        let streams = postern_wire::link::quic::STREAMS;
        let (connection, endpoint) = quic::connect(&self.relay, &self.names, tls, streams).await?;
        self.greet(Link::quic(connection), Some(endpoint)).await
    }

    async fn over_tcp(&self) -> Result<Tunnel, DialError> {
        let tls = self.tls(tls::ALPN_TUNNEL_TCP)?;
        let link = tcp::connect(&self.relay, &self.names, &self.agent.settings.proxy, tls).await?;
        self.greet(link, None).await
    }

    async fn greet(&self, link: Link, endpoint: Option<quinn::Endpoint>) -> Result<Tunnel, DialError> {
        match tokio::time::timeout(GREETING, self.hello(link, endpoint)).await {
            Ok(greeted) => greeted,
            Err(_) => Err(DialError::Unanswered),
        }
    }

    async fn hello(&self, link: Link, endpoint: Option<quinn::Endpoint>) -> Result<Tunnel, DialError> {
        let (agent, epoch) = (self.agent.clone(), tls::epoch(&link.peer_chain()));
        if epoch > agent.identity.floor() {
            // It goes to the disk, once in each rotation.
            drop(tokio::task::spawn_blocking(move || agent.identity.saw(epoch)).await);
        }
        let (mut send, mut recv) = link.control().await?;
        let mut offers = self.agent.health.offers();
        let hello = AgentMessage::Hello {
            minor: MINOR,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.agent.identity.instance().to_string(),
            services: offers.borrow_and_update().to_vec(),
        };
        send.message(&hello, CONTROL_LIMIT).await?;
        let bytes = recv.message(CONTROL_LIMIT).await?;
        let bytes = bytes.ok_or_else(|| DialError::Protocol("no welcome".to_owned()))?;
        let message = codec::decode(&bytes).map_err(|e| DialError::Protocol(e.to_string()))?;
        match message {
            RelayMessage::Welcome { relay: name, heartbeat_ms, refused, .. } => {
                for refusal in &refused {
                    let (service, reason) = (refusal.service.escape_debug(), refusal.reason.escape_debug());
                    tracing::warn!(%service, %reason, "the relay does not let this agent serve a service");
                }
                if self.agent.is_resumed() {
                    tracing::info!(relay = %self.relay, "this agent was resumed");
                }
                let (relay, link_kind) = (self.relay.clone(), link.kind());
                tracing::info!(%relay, name = %name.escape_debug(), link = %link_kind, "tunnel open");
                let heartbeat =
                    Duration::from_millis(u64::from(heartbeat_ms)).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT);
                Ok(Tunnel { link, endpoint, send, recv, offers, heartbeat, relay, refused })
            }
            RelayMessage::Refused { code, reason, retry_after_ms } => {
                let retry_after = retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
                Err(DialError::Refused { code, reason: reason.escape_debug().to_string(), retry_after })
            }
            RelayMessage::HeartbeatAck { .. }
            | RelayMessage::Renewed { .. }
            | RelayMessage::RenewRefused { .. }
            | RelayMessage::Draining { .. }
            | RelayMessage::Revoked
            | RelayMessage::Lease { .. }
            | RelayMessage::ChainHead { .. }
            | RelayMessage::Suspended { .. }
            | RelayMessage::RenewNow
            | RelayMessage::Time { .. }
            | RelayMessage::Probe { .. } => {
                Err(DialError::Protocol("the first message was no welcome".to_owned()))
            }
        }
    }
}

/// A relay may ask for heartbeats, not for a flood of them or for none.
const MIN_HEARTBEAT: Duration = Duration::from_millis(500);
const MAX_HEARTBEAT: Duration = Duration::from_mins(1);
