//! Recovery: an agent that was off, or asleep, for longer than its certificate's life proves its newest key on the join ALPN and is given
//! the next certificate. Takes a certificate that ended; gives one in force, or why there will be none. It is tried again while relays are
//! silent, busy, or say that the instance is suspended; where they say no for good it ends, with what to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::id::AgentName;
use postern_wire::join::{JoinAnswer, Question, RecoverRequest, refusal};
use postern_wire::tls;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use tokio::time::Instant;

use crate::identity::{AgentIdentity, IdentityError, Recovery, elsewhere};
use crate::join::ask::{AskError, Proved, Way};
use crate::settings::RelayAddress;
use crate::supervisor::Agent;
use crate::tunnel::SUSPENDED_AGAIN;
use crate::tunnel::clock::TOLERATED;
use crate::tunnel::pace::{Failure, Pace};

/// How often at least the certificate's end is looked at: the wall clock may be set.
const LOOK: Duration = Duration::from_mins(1);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("this agent is suspended: {0}")]
    Suspended(String),
    #[error("the relay is busy: {0}")]
    Busy(String),
    #[error(
        "the relay does not know this agent any more: it was removed, or the relay's state is another one now; {0}"
    )]
    Removed(Anew),
    #[error("this agent's certificate ended longer ago than agents.recover of relay.toml allows; {0}")]
    TooLate(Anew),
    #[error(
        "this state directory holds an older key of this agent than the relay gave out last: it is a copy, or came back from a backup, and \
         somebody else may have the newer one. The instance is suspended now. Stop whatever runs with the newer one; then {0}"
    )]
    OldKey(Anew),
    #[error("the relay does not know this agent's key, as after it was restored from an older backup; {0}")]
    UnknownKey(Anew),
    #[error(
        "the relay refused the recovery (code {code}): {reason}; check that both programs have matching versions"
    )]
    Refused { code: u16, reason: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What to do where nothing but an invite helps.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "ask for a new invite (postern-relay agent invite {0}) and run: postern-agent join RELAY --invite-file FILE"
)]
pub struct Anew(AgentName);

impl RecoverError {
    /// Whether asking again leads to nothing.
    fn is_final(&self) -> bool {
        match self {
            Self::Removed(_) | Self::TooLate(_) | Self::OldKey(_) | Self::UnknownKey(_) => true,
            Self::Ask(_) | Self::Suspended(_) | Self::Busy(_) | Self::Refused { .. } | Self::Identity(_) => {
                false
            }
        }
    }

    fn failure(&self) -> Failure {
        match self {
            Self::Ask(e) if e.is_silence() => Failure::Silent,
            Self::Suspended(_) => Failure::Asked(SUSPENDED_AGAIN),
            Self::Ask(_)
            | Self::Busy(_)
            | Self::Removed(_)
            | Self::TooLate(_)
            | Self::OldKey(_)
            | Self::UnknownKey(_)
            | Self::Refused { .. }
            | Self::Identity(_) => Failure::Refused,
        }
    }
}

/// Recovers whenever the certificate has ended. Runs until all relays refuse for good, and gives why.
pub async fn watch(agent: &Arc<Agent>) -> RecoverError {
    if agent.identity.files().is_some() {
        // Nobody but whoever makes them can do anything.
        elsewhere::watch(agent).await;
        return std::future::pending().await;
    }
    let way = Way { transport: agent.settings.transport, proxy: agent.settings.proxy.clone() };
    let (mut pace, mut said) = (Pace::new(), String::new());
    let mut wakes = agent.wakes.subscribe();
    let mut is_doubted = false;
    loop {
        let now = agent.now();
        let mut pause = agent.identity.not_after().duration_since(now).unwrap_or_default();
        if agent.identity.is_expired(now) || is_doubted {
            match round(agent, &way, &mut said, is_doubted).await {
                Ok(None) => (pace, said) = (Pace::new(), String::new()),
                Ok(Some(how)) => pause = pace.failed(how, Instant::now(), rand::random()),
                Err(refused) => return refused,
            }
            is_doubted = false;
        } else {
            // A certificate's last second is its own.
            pause = (pause + Duration::from_secs(1)).min(LOOK);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // What was heard of the time before is worth nothing now.
            Ok(()) = wakes.changed() => agent.clock.forget(),
            // A relay would not have this agent. By its clock the certificate may have ended already.
            () = agent.doubts.notified() => is_doubted = agent.identity.is_expired(agent.now() + TOLERATED),
        }
    }
}

/// Asks one relay after the other. Gives how it failed, where it did and may be tried again.
///
/// # Errors
/// All of them refused for good.
async fn round(
    agent: &Agent,
    way: &Way,
    said: &mut String,
    is_doubted: bool,
) -> Result<Option<Failure>, RecoverError> {
    // A tunnel that still lives may renew at the same time.
    let _only = agent.renewals.turn().await;
    if !agent.identity.is_expired(agent.now()) && !is_doubted {
        return Ok(None);
    }
    if said.is_empty() && !is_doubted {
        tracing::warn!("this agent's certificate has ended; asking for the next one with its newest key");
    }
    let (mut hope, mut refused) = (None, None);
    for relay in &agent.settings.relays {
        let Err(error) = recover(&agent.identity, relay, way).await else {
            tracing::info!(%relay, "this agent has a certificate again");
            agent.is_resumed();
            agent.renewals.succeeded();
            // It was made just now, whatever our clock says.
            agent.clock.lies_within(
                agent.identity.not_before(),
                agent.identity.not_after(),
                SystemTime::now(),
            );
            return Ok(None);
        };
        report(agent, relay, &error, said);
        let kept = if error.is_final() { &mut refused } else { &mut hope };
        *kept = Some(error);
    }
    match (hope, refused) {
        // One that may yet say yes is waited for.
        (Some(hope), _) => Ok(Some(hope.failure())),
        (None, Some(refused)) => Err(refused),
        (None, None) => Ok(Some(Failure::Silent)),
    }
}

/// Says what is news; all of it is counted and kept.
fn report(agent: &Agent, relay: &RelayAddress, error: &RecoverError, said: &mut String) {
    let text = error.to_string();
    agent.metrics.renewal_failures.inc();
    agent.renewals.failed(&text, Duration::ZERO, Instant::now(), rand::random());
    agent.failed(&format!("recovery at {relay}: {text}"));
    if matches!(error, RecoverError::Suspended(_)) {
        agent.suspended_by(relay, &text);
        *said = text;
    } else if error.is_final() {
        // Where it is the last word, the whole agent ends with it.
        tracing::debug!(%relay, error = %text, "the relay refuses for good");
    } else if *said == text {
        tracing::debug!(%relay, error = %text, "not recovered yet");
    } else {
        tracing::warn!(%relay, error = %text, "not recovered yet; trying again");
        *said = text;
    }
}

/// One relay, once. The key that a renewal asked for comes first: where its answer was lost, that is the newest, and the identity's own
/// an old one which would suspend this instance.
async fn recover(identity: &Arc<AgentIdentity>, relay: &RelayAddress, way: &Way) -> Result<(), RecoverError> {
    let keeper = identity.clone();
    let made = tokio::task::spawn_blocking(move || keeper.recovery()).await;
    let Recovery { next, is_asked, own } = made.map_err(|e| AskError::NoAnswer(e.to_string()))??;
    let mut answer = Err(refused(refusal::UNKNOWN_KEY, "", identity.name()));
    if is_asked {
        answer = ask(identity, (relay, way), next.key(), next.csr()).await;
    }
    if matches!(answer, Err(RecoverError::UnknownKey(_))) {
        answer = ask(identity, (relay, way), &own.0, next.csr()).await;
    }
    let (chain, keeper) = (answer?, identity.clone());
    let kept = tokio::task::spawn_blocking(move || keeper.accept(next, chain)).await;
    Ok(kept.map_err(|e| AskError::NoAnswer(e.to_string()))??)
}

/// Proves one key; gives the chain that was granted.
async fn ask(
    identity: &AgentIdentity,
    (relay, way): (&RelayAddress, &Way),
    key: &KeyPair,
    csr: &[u8],
) -> Result<Vec<Vec<u8>>, RecoverError> {
    let (roots, floor) = (identity.roots(), identity.floor());
    let tls = |alpn: &[u8]| tls::recover_config(&roots, identity.domain().clone(), floor, alpn);
    let proved = Proved::connect(relay, way, tls).await?;
    let signed = RecoverRequest::signed(&proved.link.exporter(), csr);
    let request = RecoverRequest {
        chain: identity.tls().chain().iter().map(|certificate| certificate.to_vec()).collect(),
        key: key.subject_public_key_info(),
        csr: csr.to_vec(),
        signature: key.sign(&signed).map_err(IdentityError::from)?,
    };
    match proved.ask(&Question::Recover(request)).await? {
        JoinAnswer::Granted { chain, .. } => Ok(chain),
        JoinAnswer::Refused { code, reason } => Err(refused(code, &reason, identity.name())),
    }
}

fn refused(code: u16, reason: &str, name: &AgentName) -> RecoverError {
    let anew = Anew(name.clone());
    let reason = reason.escape_debug().to_string();
    match code {
        refusal::SUSPENDED => RecoverError::Suspended(reason),
        refusal::NOT_ENROLLED => RecoverError::Removed(anew),
        refusal::TOO_LATE => RecoverError::TooLate(anew),
        refusal::OLD_KEY => RecoverError::OldKey(anew),
        refusal::UNKNOWN_KEY => RecoverError::UnknownKey(anew),
        refusal::TOO_MANY | refusal::UNAVAILABLE => RecoverError::Busy(reason),
        _ => RecoverError::Refused { code, reason },
    }
}

#[cfg(test)]
mod tests;
