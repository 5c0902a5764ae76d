//! Enrolment, the agent's side. Takes a relay's address and an invite; gives a stored identity. The secret leaves this machine only
//! after the relay proved a chain that ends in the root which the invite pins; every refusal says what to do.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use postern_base::file::{self, Access};
use postern_base::id::{InstanceId, SpiffeId};
use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::join::{Invite, JoinAnswer, JoinRequest, refusal};
use postern_wire::link::{Code, Link, StreamError, quic};
use postern_wire::tls;
use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::identity::{AgentIdentity, IdentityError, Renewal};
use crate::settings::RelayAddress;

/// From the name's resolution to the proved relay, and again from there to the answer (protocol.md).
const EXCHANGE: Duration = Duration::from_secs(10);
/// Once one address gave an answer that is no relay of ours, the others have this long to do better.
const OTHERS: Duration = Duration::from_secs(2);
/// How many of a name's addresses are tried, all at once: more than any relay has.
const ADDRESSES: usize = 8;

/// Why this agent is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0} is not known: {1}; check the relay's name and this machine's DNS")]
    Name(RelayAddress, String),
    #[error(
        "{0} does not answer by UDP: {1}; check that the relay runs and that UDP port {port} is open on the way there",
        port = .0.port
    )]
    Unreachable(RelayAddress, String),
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
    /// Whether the relay could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Name(..) | Self::Unreachable(..))
    }
}

/// Enrols this agent and stores its identity in `state`.
pub async fn join(relay: &RelayAddress, invite: &Invite, state: &Path) -> Result<AgentIdentity, JoinError> {
    prepare(state)?;
    let request = Renewal::new()?;
    let (connection, endpoint) = connect(relay, invite.pin).await?;
    let link = Link::new(connection.clone());
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
    let answer = match (answer, connection.close_reason()) {
        (Ok(Ok(answer)), _) => Ok(answer),
        (_, Some(ConnectionError::ApplicationClosed(e))) if e.error_code == Code::OVERLOADED.0.into() => {
            Err(JoinError::TooMany)
        }
        (Ok(Err(e)), _) => Err(JoinError::NoAnswer(e.to_string())),
        (Err(_), _) => Err(JoinError::NoAnswer("nothing came in time".into())),
    };
    link.close(Code::DONE, "");
    // Lets the goodbye out; the relay would only wait for nothing otherwise.
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
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

/// All addresses at once: the first that proves the pinned root is used. Of the failures the most telling is reported.
async fn connect(relay: &RelayAddress, pin: [u8; 32]) -> Result<(Connection, Endpoint), JoinError> {
    let mut deadline = Instant::now() + EXCHANGE;
    let late = || format!("nothing in {} s", EXCHANGE.as_secs());
    let lookup = timeout_at(deadline, tokio::net::lookup_host((relay.host.as_str(), relay.port))).await;
    let lookup = lookup.map_err(|_| JoinError::Name(relay.clone(), late()))?;
    let addresses = lookup.map_err(|e| JoinError::Name(relay.clone(), e.to_string()))?;
    let mut attempts: FuturesUnordered<_> =
        addresses.take(ADDRESSES).map(|address| attempt(relay, address, pin)).collect();
    let mut failure = None;
    while let Ok(Some(outcome)) = timeout_at(deadline, attempts.next()).await {
        match outcome {
            Ok(connected) => return Ok(connected),
            Err(e) if e.is_unreachable() => failure = failure.or(Some(e)),
            Err(e) => {
                failure = Some(e);
                deadline = deadline.min(Instant::now() + OTHERS);
            }
        }
    }
    Err(failure.unwrap_or_else(|| JoinError::Unreachable(relay.clone(), late())))
}

async fn attempt(
    relay: &RelayAddress,
    address: SocketAddr,
    pin: [u8; 32],
) -> Result<(Connection, Endpoint), JoinError> {
    let unreachable = |e: &dyn fmt::Display| JoinError::Unreachable(relay.clone(), e.to_string());
    let own: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let endpoint = Endpoint::client(own).map_err(|e| unreachable(&e))?;
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls::join_config(pin)?);
    let config = config.map_err(|e| JoinError::NoJoins(relay.clone(), e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(config));
    // The relay opens no streams on a join.
    config.transport_config(quic::transport(0));
    let connecting = endpoint.connect_with(config, address, &relay.host).map_err(|e| unreachable(&e))?;
    match connecting.await {
        Ok(connection) => Ok((connection, endpoint)),
        Err(ConnectionError::TransportError(e))
            if e.code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL) =>
        {
            Err(JoinError::NoJoins(relay.clone(), "it does not speak postern-join/1".into()))
        }
        Err(ConnectionError::TransportError(e)) if is_crypto(e.code) => {
            Err(JoinError::NotTheRelay(relay.clone(), e.reason.clone()))
        }
        Err(ConnectionError::ConnectionClosed(e))
            if e.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            Err(JoinError::TooMany)
        }
        Err(ConnectionError::ConnectionClosed(e)) if is_crypto(e.error_code) => {
            Err(JoinError::NoJoins(relay.clone(), e.to_string()))
        }
        Err(other) => Err(unreachable(&other)),
    }
}

/// RFC 8446, 6: no common ALPN.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// RFC 9001, 4.8: TLS alerts are 0x0100 to 0x01ff.
fn is_crypto(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

async fn exchange(link: &Link, question: &JoinRequest) -> Result<JoinAnswer, StreamError> {
    let (mut send, mut recv) = link.open().await?;
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
