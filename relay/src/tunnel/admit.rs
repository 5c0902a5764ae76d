//! Who is at the other end: takes a link after its handshake, gives an enrolled agent and its first words; refuses everyone else.
//! The name comes from the proved leaf alone, and enrolment is looked up after every handshake.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use postern_base::id::{AgentName, InstanceId, ServiceName, SpiffeId};
use postern_gate::policy::ServiceKind;
use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{
    self, AgentMessage, MINOR, RelayMessage, SUSPENDED_AGAIN, ServiceOffer, ServiceRefusal, refusal,
};
use postern_wire::link::{Link, RecvStream, SendStream, StreamError};
use postern_wire::tls;

use super::registry::Offer;
use super::suspend_for_two;
use crate::enroll::{Barred, Enrolled, Grounds, Shown};
use crate::relay::{Relay, Snapshot};
use crate::settings::{Service, TokenUse};

/// The first message of a tunnel must be here by then (protocol.md, Encoding).
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a refused agent is given to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// An agent that is not enrolled stays so until somebody acts.
const REMOVED_AGAIN: Duration = Duration::from_mins(1);
/// Services that an agent may offer.
pub const OFFERS_LIMIT: usize = 4096;
/// How much of a service's name is told to people where it may be anything.
const SHOWN: usize = 64;
/// How often agents are asked to send a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Why a tunnel was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error("the agent showed no certificate")]
    NoCertificate,
    #[error("the certificate names no agent: {0}")]
    BadName(String),
    #[error("agent {0} of another trust domain")]
    ForeignDomain(AgentName),
    #[error(transparent)]
    Barred(#[from] Barred),
    #[error("agent {0} sent no proper hello within 10 s")]
    NoHello(AgentName),
    #[error("agent {0} said another instance than its certificate")]
    WrongInstance(AgentName),
    #[error("agent {0} offers more than {OFFERS_LIMIT} services")]
    TooManyServices(AgentName),
    #[error("agent {0} opens tunnels too often")]
    TooOften(AgentName),
    #[error("the relay is draining")]
    Draining,
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl AdmitError {
    /// Whether this is about a certificate that was proved, in words of ours.
    pub fn is_proved(&self) -> bool {
        !matches!(self, Self::NoCertificate | Self::Stream(_))
    }
}

/// An agent that proved itself and was welcomed.
#[derive(Debug)]
pub struct Admitted {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub send: SendStream,
    pub recv: RecvStream,
    /// What it may serve of what it offered.
    pub services: Vec<Offer>,
    /// The protocol's minor version that it speaks.
    pub minor: u16,
    /// On what it was let in.
    pub grounds: Grounds,
}

pub async fn admit(relay: &Arc<Relay>, link: &Link, now: SystemTime) -> Result<Admitted, AdmitError> {
    let chain = link.peer_chain();
    let leaf = chain.first().ok_or(AdmitError::NoCertificate)?;
    let id = tls::spiffe_id(leaf).map_err(|e| AdmitError::BadName(e.to_string()))?;
    let (agent, instance) = match id {
        SpiffeId::Agent { domain, name, instance } => {
            if domain != relay.snapshot().settings.agents.trust_domain {
                return Err(AdmitError::ForeignDomain(name));
            }
            (name, instance)
        }
        SpiffeId::Relay { .. } => return Err(AdmitError::BadName("it is a relay's".to_owned())),
    };
    let refuse = async |send: &mut SendStream, code, reason: &str, retry_after: Option<Duration>| {
        let retry_after_ms = retry_after.and_then(|wait| u32::try_from(wait.as_millis()).ok());
        let refused = RelayMessage::Refused { code, reason: reason.to_owned(), retry_after_ms };
        // Best effort: the connection is closed with the same reason right after.
        let told = async {
            if send.message(&refused, CONTROL_LIMIT).await.is_ok() {
                send.finish();
                send.stopped().await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, told).await;
    };
    let shown = Shown::of(&chain).map_err(|e| AdmitError::BadName(e.to_string()))?;
    let (enrolled, grounds) = match relay.enrollment().admit(&agent, &instance, shown, now) {
        Ok(admitted) => admitted,
        Err(barred) => {
            if matches!(barred, Barred::Two(_)) {
                suspend_for_two(relay, &agent, &instance, link.peer_address().ip().to_canonical()).await;
            }
            // Known from the certificate alone: who is out is not waited for.
            let control = tokio::time::timeout(LAST_WORDS, link.control()).await;
            let Ok(Ok((mut send, _recv))) = control else { return Err(barred.into()) };
            let (code, again) = match &barred {
                Barred::NotEnrolled(_) => (refusal::NOT_ENROLLED, REMOVED_AGAIN),
                Barred::Suspended { .. } | Barred::Two(_) => (refusal::SUSPENDED, SUSPENDED_AGAIN),
                Barred::Replaced(_) => (refusal::REPLACED, REMOVED_AGAIN),
                // Somebody has to act; or it was given two certificates while it dialled.
                Barred::Older(_) => (refusal::REPLACED, SUSPENDED_AGAIN),
            };
            refuse(&mut send, code, &barred.to_string(), Some(again)).await;
            return Err(barred.into());
        }
    };
    let (mut send, recv, hello) = first_message(link, &agent).await?;
    if relay.shutdown().is_draining() {
        let wait = Some(Duration::from_secs(1));
        refuse(&mut send, refusal::DRAINING, "the relay is draining", wait).await;
        return Err(AdmitError::Draining);
    }
    let AgentMessage::Hello { minor, version, instance: said, services } = hello else {
        return Err(AdmitError::NoHello(agent));
    };
    if said != instance.as_str() {
        let error = AdmitError::WrongInstance(agent);
        refuse(&mut send, refusal::PROTOCOL, &error.to_string(), None).await;
        return Err(error);
    }
    if services.len() > OFFERS_LIMIT {
        let error = AdmitError::TooManyServices(agent);
        refuse(&mut send, refusal::PROTOCOL, &error.to_string(), None).await;
        return Err(error);
    }
    if let Err(wait) = relay.registry().may_open(&instance, Instant::now()) {
        let error = AdmitError::TooOften(agent);
        refuse(&mut send, refusal::PROTOCOL, &error.to_string(), Some(wait)).await;
        return Err(error);
    }
    let (services, refused) = assigned(&relay.snapshot(), &agent, &enrolled, &services);
    let welcome = RelayMessage::Welcome {
        minor: MINOR,
        relay: relay.snapshot().settings.name.to_string(),
        heartbeat_ms: u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX),
        other_relays: Vec::new(),
        refused,
    };
    let welcomed = tokio::time::timeout(FIRST_MESSAGE, send.message(&welcome, CONTROL_LIMIT)).await;
    welcomed.map_err(|_| StreamError::Truncated)??;
    let not_after = tls::not_after(leaf).unwrap_or_default();
    let left = not_after
        - i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())).unwrap_or(0);
    tracing::info!(%agent, %instance, link = %link.kind(), version = %version.escape_debug(), certificate_seconds_left = left, "tunnel open");
    Ok(Admitted { agent, instance, send, recv, services, minor, grounds })
}

async fn first_message(
    link: &Link,
    agent: &AgentName,
) -> Result<(SendStream, RecvStream, AgentMessage), AdmitError> {
    let first = async {
        let (send, mut recv) = link.control().await?;
        let bytes = recv.message(CONTROL_LIMIT).await?.ok_or(StreamError::Truncated)?;
        Ok::<_, StreamError>((send, recv, codec::decode(&bytes)?))
    };
    match tokio::time::timeout(FIRST_MESSAGE, first).await {
        Ok(Ok(first)) => Ok(first),
        Ok(Err(StreamError::Codec(_))) | Err(_) => Err(AdmitError::NoHello(agent.clone())),
        Ok(Err(e @ (StreamError::Lost(_) | StreamError::Peer(_) | StreamError::Truncated))) => Err(e.into()),
    }
}

/// Says where relay.toml and agent.toml disagree about the caller's token: requests would be refused there, or it would be sent for nothing.
fn warn_of_token(agent: &AgentName, service: &Service, wanted: bool) {
    let service_name = &service.name;
    match (wanted, service.caller_token == TokenUse::Agent) {
        (true, false) => tracing::warn!(
            %agent, service = %service_name,
            "the agent decides again (verify in agent.toml) and will refuse every request: add caller_token = \"agent\" to the service in relay.toml"
        ),
        (false, true) => tracing::warn!(
            %agent, service = %service_name,
            "the caller's token goes to an agent that does not look at it: add verify to the service in agent.toml, or take caller_token = \"agent\" out of relay.toml"
        ),
        (true, true) | (false, false) => {}
    }
}

/// Each service once, however often it is offered: a second one would count twice wherever tunnels are weighed.
fn distinct(offers: &[ServiceOffer]) -> impl Iterator<Item = &ServiceOffer> {
    let mut names = HashSet::new();
    offers.iter().filter(move |offer| names.insert(offer.name.as_str()))
}

/// What an agent offers and its invite lets it serve, and, with the reason, what it may not serve now. What relay.toml assigns may change
/// while the tunnel lives, so that is looked at again whenever the registry is rebuilt.
pub fn assigned(
    snapshot: &Snapshot,
    agent: &AgentName,
    Enrolled { services: narrowed }: &Enrolled,
    offers: &[ServiceOffer],
) -> (Vec<Offer>, Vec<ServiceRefusal>) {
    let mut services = Vec::new();
    let mut refused = Vec::new();
    for offer in distinct(offers) {
        let shown: String = offer.name.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        let name = offer.name.parse::<ServiceName>().ok();
        let kind = match offer.kind {
            control::ServiceKind::Http => ServiceKind::Http,
            control::ServiceKind::Tcp => ServiceKind::Tcp,
        };
        let allowed = name.filter(|name| narrowed.as_ref().is_none_or(|only| only.contains(name)));
        let reason = match (&allowed, snapshot.settings.services.get(offer.name.as_str())) {
            (_, None) => Some(format!("relay.toml has no service {shown}")),
            (_, Some(service)) if !service.agents.contains(agent) => {
                Some(format!("relay.toml does not give service {shown} to agent {agent}"))
            }
            (None, Some(_)) => Some(format!("the invite of agent {agent} leaves service {shown} out")),
            (Some(_), Some(service)) if service.kind != kind => Some(format!(
                "service {shown} is of kind {} in relay.toml and {kind} in agent.toml: make them agree",
                service.kind
            )),
            (Some(_), Some(_)) => None,
        };
        if let (None, Some(service)) = (&reason, snapshot.settings.services.get(offer.name.as_str())) {
            warn_of_token(agent, service, offer.wants_caller_token);
        }
        services.extend(allowed.filter(|_| offer.healthy).map(|name| Offer { name, kind }));
        refused.extend(reason.map(|reason| ServiceRefusal { service: offer.name.clone(), reason }));
    }
    (services, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_counts_once_however_often_it_is_offered() {
        let offer = |name: &str, healthy| ServiceOffer {
            name: name.into(),
            kind: control::ServiceKind::Http,
            healthy,
            wants_caller_token: false,
        };
        let mut offers = vec![offer("wiki", true), offer("git", false)];
        offers.extend(std::iter::repeat_n(offer("wiki", false), 4000));
        let seen: Vec<_> = distinct(&offers).map(|offer| (offer.name.as_str(), offer.healthy)).collect();
        assert_eq!(seen, [("wiki", true), ("git", false)]);
    }

    #[test]
    fn the_words_of_a_peer_are_no_news() {
        assert!(AdmitError::TooOften("dc1".parse().unwrap()).is_proved());
        assert!(!AdmitError::Stream(StreamError::Truncated).is_proved());
        assert!(!AdmitError::NoCertificate.is_proved());
    }
}
