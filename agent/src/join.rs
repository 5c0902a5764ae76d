//! Enrolment, the agent's side. Takes a relay's address and an invite; gives a stored identity. The secret leaves this machine only
//! after the relay proved a chain that ends in the root which the invite pins, of no authority before the invite's; every refusal says what to do.

use std::path::{Path, PathBuf};

use postern_base::file::{self, Access};
use postern_base::id::{InstanceId, SpiffeId};
use postern_base::proxy::ProxyError;
use postern_wire::join::{Invite, JoinAnswer, JoinRequest, Question, refusal};
use postern_wire::tls;

use crate::identity::{AgentIdentity, IdentityError, Renewal};
use crate::settings::RelayAddress;
use crate::tunnel::dial::ConnectError;

pub(crate) mod ask;

pub use ask::Way;
use ask::{AskError, Proved};

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
        "{0} is not the relay of this invite: {1}; the invite was not sent. Where the relay's name and this machine's clock are right, the relay's root was replaced since, or this is another relay: ask for a new invite. If that one ends here too, somebody may be in between"
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
    #[error(
        "agents of this name are suspended: have them resumed (postern-relay agent resume NAME), then try again"
    )]
    Suspended,
    #[error("the relay's answer did not come in full: {0}; if the invite was used up, ask for a new one")]
    NoAnswer(String),
    #[error("the relay's answer is not for this agent: {0}; ask for a new invite and join again")]
    BadAnswer(String),
    #[error("{path}: {source}; the invite was not used")]
    State { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl JoinError {
    fn of(relay: &RelayAddress, error: AskError) -> Self {
        let relay = relay.clone();
        let error = match error {
            AskError::Connect(error) => error,
            AskError::Silent { .. } => return Self::Unreachable(relay, error.to_string()),
            AskError::Overloaded => return Self::TooMany,
            AskError::NoAnswer(reason) => return Self::NoAnswer(reason),
        };
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

/// Enrols this agent and stores its identity in `state`.
pub async fn join(
    relay: &RelayAddress,
    invite: &Invite,
    state: &Path,
    way: &Way,
) -> Result<AgentIdentity, JoinError> {
    prepare(state)?;
    let request = Renewal::new()?;
    let of = |e| JoinError::of(relay, e);
    let proved = Proved::connect(relay, way, |alpn| tls::join_config(invite.pin, alpn)).await.map_err(of)?;
    let (chain, floor) = (proved.link.peer_chain(), invite.epoch);
    let shown = tls::epoch(&chain);
    if shown < floor {
        let why = format!("its issuing CA has epoch {shown}, and the invite was made under epoch {floor}");
        return Err(JoinError::NotTheRelay(relay.clone(), why));
    }
    let root = tls::pinned_root(&invite.pin, &chain).cloned();
    let root =
        root.ok_or_else(|| JoinError::NotTheRelay(relay.clone(), "no pinned root in its chain".into()))?;
    let instance = InstanceId::random();
    let question = Question::Join(JoinRequest {
        secret: invite.secret.to_vec(),
        csr: request.csr().to_vec(),
        instance: instance.to_string(),
    });
    let (chain, trust_domain) = match proved.ask(&question).await.map_err(of)? {
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

fn refused(code: u16, reason: &str) -> JoinError {
    match code {
        refusal::INVALID => JoinError::InvalidInvite,
        refusal::EXPIRED => JoinError::ExpiredInvite,
        refusal::TOO_MANY => JoinError::TooMany,
        refusal::UNAVAILABLE => JoinError::Unavailable,
        refusal::SUSPENDED => JoinError::Suspended,
        _ => JoinError::Refused { code, reason: reason.escape_debug().to_string() },
    }
}

#[cfg(test)]
pub(crate) mod tests;
