//! Every way in which a join or a recovery is refused: what the operator reads, what the agent hears, and whether it counts as a guess.

use postern_base::id::{AgentName, InstanceId};
use postern_base::value::Span;
use postern_wire::join::{JoinAnswer, refusal};

use super::{Barred, CaError, Who};

/// Why nobody was enrolled: what the agent hears is in [`JoinRefused::answer`], what the operator reads is Display.
#[derive(Debug, thiserror::Error)]
pub enum JoinRefused {
    #[error("unknown invite")]
    Unknown,
    #[error("the invite for {agent} was used before")]
    Used { agent: AgentName },
    #[error("the invite for {agent} has expired")]
    Expired { agent: AgentName },
    #[error("bad request of {agent}: {why}")]
    BadRequest { agent: AgentName, why: String },
    #[error("the relay could not enrol anybody: {why}")]
    Unavailable { agent: Option<AgentName>, why: String },
    #[error("malformed join: {0}")]
    Malformed(String),
    #[error("nothing was asked, as when `doctor` looks whether agents get here: {0}")]
    Silent(String),
    #[error("too many failed joins from this address")]
    TooMany,
    #[error("{why}")]
    Barred { who: Who, why: Barred },
    #[error("a recovery with a certificate that is not of this relay's authority: {0}")]
    Foreign(String),
    #[error("a recovery of {0} whose signature is not by the key that it names")]
    Unproved(Who),
    #[error("a recovery of {0} with a key that is none of its own")]
    UnknownKey(Who),
    #[error("a recovery of {0} with an older key of its own: somebody may have a copy of its state")]
    OldKey(Who),
    #[error("{who} was off for longer than agents.recover ({recover}) after its certificate had ended")]
    TooLate { who: Who, recover: Span },
    #[error("{0} asks for certificates too often: wait for ten seconds")]
    TooOften(Who),
}

impl JoinRefused {
    /// What could not be signed for `agent`.
    pub(super) fn of(agent: &AgentName, error: CaError) -> Self {
        let agent = agent.clone();
        if let CaError::Request(why) = error {
            Self::BadRequest { agent, why }
        } else {
            Self::Unavailable { agent: Some(agent), why: error.to_string() }
        }
    }

    /// For whom the invite or the certificate was, where that is known.
    pub fn agent(&self) -> Option<&AgentName> {
        match self {
            Self::Used { agent } | Self::Expired { agent } | Self::BadRequest { agent, .. } => Some(agent),
            Self::Unavailable { agent, .. } => agent.as_ref(),
            Self::Barred { who, .. }
            | Self::Unproved(who)
            | Self::UnknownKey(who)
            | Self::OldKey(who)
            | Self::TooOften(who)
            | Self::TooLate { who, .. } => Some(&who.name),
            Self::Unknown | Self::Malformed(_) | Self::Silent(_) | Self::TooMany | Self::Foreign(_) => None,
        }
    }

    /// Which instance asked, where that is known.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Barred { who, .. }
            | Self::Unproved(who)
            | Self::UnknownKey(who)
            | Self::OldKey(who)
            | Self::TooOften(who)
            | Self::TooLate { who, .. } => who.instance.as_ref(),
            Self::Used { .. }
            | Self::Expired { .. }
            | Self::BadRequest { .. }
            | Self::Unavailable { .. }
            | Self::Unknown
            | Self::Malformed(_)
            | Self::Silent(_)
            | Self::TooMany
            | Self::Foreign(_) => None,
        }
    }

    /// Whether somebody proved a secret that is good, so that this counts as no failure.
    pub(super) fn is_proved(&self) -> bool {
        match self {
            // Any certificate that this authority ever signed comes as far as this, also those of removed instances.
            Self::Barred { why, .. } => !matches!(why, Barred::NotEnrolled(_)),
            Self::OldKey(_) | Self::TooLate { .. } | Self::TooOften(_) => true,
            Self::Unknown
            | Self::Used { .. }
            | Self::Expired { .. }
            | Self::BadRequest { .. }
            | Self::Unavailable { .. }
            | Self::Malformed(_)
            | Self::Silent(_)
            | Self::TooMany
            | Self::Foreign(_)
            | Self::Unproved(_)
            | Self::UnknownKey(_) => false,
        }
    }

    /// Whether somebody proved a secret, however stale: the trace of a stolen invite must not drown in the guesses of others.
    pub(super) fn is_news(&self) -> bool {
        self.is_proved() || matches!(self, Self::Used { .. } | Self::Expired { .. })
    }

    /// What the agent is told: nothing about the relay's inside, and of unknown and used invites the same.
    pub fn answer(&self) -> JoinAnswer {
        let again = |agent: &AgentName| {
            format!(
                "invite it again with `postern-relay agent invite {agent}`, then `postern-agent join RELAY --force`"
            )
        };
        let (code, reason) = match self {
            Self::Unknown | Self::Used { .. } => {
                (refusal::INVALID, "no such invite, or used already".to_owned())
            }
            Self::Expired { .. } => (refusal::EXPIRED, "the invite has expired".to_owned()),
            Self::BadRequest { why, .. } | Self::Malformed(why) | Self::Silent(why) => {
                (refusal::BAD_REQUEST, why.clone())
            }
            Self::TooMany | Self::TooOften(_) => (refusal::TOO_MANY, self.to_string()),
            Self::Unavailable { .. } => {
                (refusal::UNAVAILABLE, "the relay cannot enrol anybody now".to_owned())
            }
            Self::Barred { why: Barred::Suspended { .. } | Barred::Two(_), .. } => {
                (refusal::SUSPENDED, self.to_string())
            }
            Self::Barred { why: Barred::NotEnrolled(_) | Barred::Replaced(_) | Barred::Older(_), .. } => {
                (refusal::NOT_ENROLLED, self.to_string())
            }
            Self::Foreign(_) => {
                let reason = "this certificate is not of this relay's authority: check the relay's name, or have the agent invited again";
                (refusal::NOT_ENROLLED, reason.to_owned())
            }
            Self::Unproved(_) => {
                (refusal::BAD_REQUEST, "the signature is not by the key that was named".to_owned())
            }
            Self::UnknownKey(who) => (refusal::UNKNOWN_KEY, format!("this is no key of {who}")),
            Self::OldKey(who) => (
                refusal::OLD_KEY,
                format!(
                    "this is an older key of {who}, so somebody may have a copy of its state, and it is suspended now. Where this is a copy of yours, do away with it and run `postern-relay agent resume {who}`; where this is the agent, put back to an earlier day, {}; where nobody did either, take the agent's host for broken into: `postern-relay agent remove {who}`, and the agent anew",
                    again(&who.name)
                ),
            ),
            Self::TooLate { who, recover } if recover.0.is_zero() => (
                refusal::TOO_LATE,
                format!(
                    "the certificate of {who} has ended, and agents.recover is off: {}",
                    again(&who.name)
                ),
            ),
            Self::TooLate { who, .. } => (refusal::TOO_LATE, format!("{self}: {}", again(&who.name))),
        };
        JoinAnswer::Refused { code, reason }
    }
}
