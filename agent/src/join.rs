//! Enrolment, the agent's side. Takes a relay's address and an invite; gives a stored identity. The secret leaves this machine only
//! after the relay proved a chain that ends in the root which the invite pins; every refusal says what to do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_base::file::{self, Access};
use postern_base::id::{InstanceId, SpiffeId};
use postern_base::proxy::{Proxy, ProxyError};
use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::join::{Invite, JoinAnswer, JoinRequest, refusal};
use postern_wire::link::{Code, Link, StreamError};
use postern_wire::tls;
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::time::timeout;

use crate::config::Transport;
use crate::identity::{AgentIdentity, IdentityError, Renewal};
use crate::settings::RelayAddress;
use crate::tunnel::dial::names::Names;
use crate::tunnel::dial::race::{Raced, race};
use crate::tunnel::dial::{ConnectError, HEAD_START, quic, tcp};

/// From the proved relay to the answer (protocol.md).
const EXCHANGE: Duration = Duration::from_secs(10);

/// Why this agent is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0} is not known: {1}; check the relay's name and this machine's DNS")]
    Name(RelayAddress, String),
    #[error(
        "{0} does not answer: {1}; check that the relay runs and that UDP or TCP port {port} is open on the way there",
        port = .0.port
    )]
    Unreachable(RelayAddress, String),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(
        "{0} is not the relay of this invite: {1}; the invite was not sent. Check the relay's name and this machine's clock; if both are right, somebody may be in between"
    )]
    NotTheRelay(RelayAddress, String),
    #[error("{0} does not take joins: {1}; check that it is a Postern relay of a matching version")]
    NoJoins(RelayAddress, String),
    #[error(
        "the relay does not know this invite, or it was used already: ask for a new one (postern-relay agent invite NAME)"
    )]
    InvalidInvite,
    #[error("the invite has expired: ask for a new one (postern-relay agent invite NAME)")]
    ExpiredInvite,
    #[error(
        "the relay is busy or saw too many failed joins from here: wait a minute and try again with the same invite"
    )]
    TooMany,
    #[error(
        "the relay cannot enrol agents at the moment: try again with the same invite, and look at the relay's log"
    )]
    Unavailable,
    #[error(
        "the relay refused the join (code {code}): {reason}; check that both programs have matching versions"
    )]
    Refused { code: u16, reason: String },
    #[error("the relay's answer did not come in full: {0}; if the invite was used up, ask for a new one")]
    NoAnswer(String),
    #[error("the relay's answer is not for this agent: {0}")]
    BadAnswer(String),
    #[error("{path}: {source}; the invite was not used")]
    State { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl JoinError {
    fn of(relay: &RelayAddress, error: ConnectError) -> Self {
        let relay = relay.clone();
        match error {
            ConnectError::Name { reason, .. } => Self::Name(relay, reason),
            ConnectError::SilentUdp(_)
            | ConnectError::SilentTcp(_)
            | ConnectError::Unreachable(..)
            | ConnectError::Handshake(..) => Self::Unreachable(relay, error.to_string()),
            ConnectError::Busy(_) => Self::TooMany,
            ConnectError::Foreign(_, reason) => Self::NotTheRelay(relay, reason),
            ConnectError::Unspoken(_, reason) => Self::NoJoins(relay, reason),
            ConnectError::Proxy(e) => Self::Proxy(e),
            ConnectError::Tls(e) => Self::Tls(e),
        }
    }

    /// Whether the relay could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Name(..) | Self::Unreachable(..) | Self::Proxy(_))
    }
}

/// How the relay is reached.
#[derive(Debug, Default)]
pub struct Way {
    pub transport: Transport,
    pub proxy: Proxy,
}

/// Enrols this agent and stores its identity in `state`.
pub async fn join(
    relay: &RelayAddress,
    invite: &Invite,
    state: &Path,
    way: &Way,
) -> Result<AgentIdentity, JoinError> {
    prepare(state)?;
    let request = Renewal::new()?;
    let Proved { link, quic } = connect(relay, invite.pin, way).await?;
    let root = tls::pinned_root(&invite.pin, &link.peer_chain()).cloned();
    let root =
        root.ok_or_else(|| JoinError::NotTheRelay(relay.clone(), "no pinned root in its chain".into()))?;
    let instance = InstanceId::random();
    let question = JoinRequest {
        secret: invite.secret.to_vec(),
        csr: request.csr().to_vec(),
        instance: instance.to_string(),
    };
    let answer = timeout(EXCHANGE, exchange(&link, &question)).await;
    let answer = match (answer, quic.as_ref().and_then(|(connection, _)| connection.close_reason())) {
        (Ok(Ok(answer)), _) => Ok(answer),
        (_, Some(ConnectionError::ApplicationClosed(e))) if e.error_code == Code::OVERLOADED.0.into() => {
            Err(JoinError::TooMany)
        }
        (Ok(Err(e)), _) => Err(JoinError::NoAnswer(e.to_string())),
        (Err(_), _) => Err(JoinError::NoAnswer("nothing came in time".into())),
    };
    link.close(Code::DONE, "");
    if let Some((_, endpoint)) = quic {
        // Lets the goodbye out; the relay would only wait for nothing otherwise.
        let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    }
    let (chain, trust_domain) = match answer? {
        JoinAnswer::Granted { chain, trust_domain } => (chain, trust_domain),
        JoinAnswer::Refused { code, reason } => return Err(refused(code, &reason)),
    };
    let leaf = chain.first().cloned().unwrap_or_default().into();
    match tls::spiffe_id(&leaf)? {
        SpiffeId::Agent { domain, instance: given, .. }
            if given == instance && domain.as_str() == trust_domain => {}
        other @ (SpiffeId::Agent { .. } | SpiffeId::Relay { .. }) => {
            return Err(JoinError::BadAnswer(other.to_string()));
        }
    }
    Ok(AgentIdentity::store(state, &request, chain, root)?)
}

/// An invite must not be spent where its yield cannot be kept.
fn prepare(state: &Path) -> Result<(), JoinError> {
    let probe = state.join(".probe");
    file::create_private_dir(state)
        .and_then(|()| file::write_atomic(&probe, b"", Access::Private))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|source| JoinError::State { path: state.to_owned(), source })
}

/// A link to a relay that proved the pinned root.
struct Proved {
    link: Link,
    /// Where it is QUIC: the connection, which tells how it ended, and its socket.
    quic: Option<(Connection, Endpoint)>,
}

/// QUIC, and TCP where that does not come about.
async fn connect(relay: &RelayAddress, pin: [u8; 32], way: &Way) -> Result<Proved, JoinError> {
    let names = Names::default();
    let over_quic = Box::pin(async {
        // The relay opens no streams on a join.
        let tls = tls::join_config(pin, tls::ALPN_JOIN)?;
        let (connection, endpoint) = quic::connect(relay, &names, tls, 0).await?;
        Ok(Proved { link: Link::quic(connection.clone()), quic: Some((connection, endpoint)) })
    });
    let over_tcp = Box::pin(async {
        let tls = tls::join_config(pin, tls::ALPN_JOIN_TCP)?;
        Ok(Proved { link: tcp::connect(relay, &names, &way.proxy, tls).await?, quic: None })
    });
    let of = |e| JoinError::of(relay, e);
    match way.transport {
        Transport::Quic => over_quic.await.map_err(of),
        Transport::Tcp => over_tcp.await.map_err(of),
        Transport::Auto => {
            let is_final = |e: &ConnectError| matches!(e, ConnectError::Busy(_));
            race(over_quic, over_tcp, HEAD_START, is_final).await.map_err(|raced| match raced {
                Raced::Final(e)
                | Raced::Both { quic: e @ ConnectError::Name { .. }, tcp: ConnectError::Name { .. } } => {
                    of(e)
                }
                Raced::Both { quic, tcp } if quic.is_silence() && tcp.is_silence() => {
                    JoinError::Unreachable(relay.clone(), format!("{quic}; {tcp}"))
                }
                // The more telling one.
                Raced::Both { quic, tcp } => of(if quic.is_silence() { tcp } else { quic }),
            })
        }
    }
}

async fn exchange(link: &Link, question: &JoinRequest) -> Result<JoinAnswer, StreamError> {
    let (mut send, mut recv) = link.control().await?;
    send.message(question, JOIN_LIMIT).await?;
    send.finish();
    let answer = recv.message(JOIN_LIMIT).await?.ok_or(StreamError::Truncated)?;
    Ok(codec::decode(&answer)?)
}

fn refused(code: u16, reason: &str) -> JoinError {
    match code {
        refusal::INVALID => JoinError::InvalidInvite,
        refusal::EXPIRED => JoinError::ExpiredInvite,
        refusal::TOO_MANY => JoinError::TooMany,
        refusal::UNAVAILABLE => JoinError::Unavailable,
        _ => JoinError::Refused { code, reason: reason.escape_debug().to_string() },
    }
}

#[cfg(test)]
mod tests;
