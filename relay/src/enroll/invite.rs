//! The invite's secret: made here, kept as a hash, compared in constant time; and every way in which a join is refused.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use postern_base::id::AgentName;
use postern_wire::join::{JoinAnswer, refusal};
use zeroize::Zeroizing;

use super::EnrollError;
use super::store::{InviteRecord, SecretHash, State};

/// 160 bits: more than the 128 that the protocol asks for, and still one line to copy.
const SECRET_BYTES: usize = 20;

/// Why a join was refused: what the agent hears is in [`JoinRefused::answer`], what the operator reads is Display.
#[derive(Debug, thiserror::Error)]
pub enum JoinRefused {
    #[error("unknown invite")]
    Unknown,
    #[error("the invite for {agent} was used before")]
    Used { agent: AgentName },
    #[error("the invite for {agent} has expired")]
    Expired { agent: AgentName },
    #[error("bad request with an invite for {agent}: {why}")]
    BadRequest { agent: AgentName, why: String },
    #[error("the relay could not enrol anybody: {why}")]
    Unavailable { agent: Option<AgentName>, why: String },
    #[error("malformed join: {0}")]
    Malformed(String),
    #[error("too many failed joins from this address")]
    TooMany,
}

impl JoinRefused {
    /// For whom the invite was, where that is known.
    pub fn agent(&self) -> Option<&AgentName> {
        match self {
            Self::Used { agent } | Self::Expired { agent } | Self::BadRequest { agent, .. } => Some(agent),
            Self::Unavailable { agent, .. } => agent.as_ref(),
            Self::Unknown | Self::Malformed(_) | Self::TooMany => None,
        }
    }

    /// What the agent is told: nothing about the relay's inside, and of unknown and used invites the same.
    pub fn answer(&self) -> JoinAnswer {
        let (code, reason) = match self {
            Self::Unknown | Self::Used { .. } => {
                (refusal::INVALID, "no such invite, or used already".to_owned())
            }
            Self::Expired { .. } => (refusal::EXPIRED, "the invite has expired".to_owned()),
            Self::BadRequest { why, .. } | Self::Malformed(why) => (refusal::BAD_REQUEST, why.clone()),
            Self::TooMany => (refusal::TOO_MANY, self.to_string()),
            Self::Unavailable { .. } => {
                (refusal::UNAVAILABLE, "the relay cannot enrol anybody now".to_owned())
            }
        };
        JoinAnswer::Refused { code, reason }
    }
}

pub(super) fn secret() -> Result<Zeroizing<Vec<u8>>, EnrollError> {
    let mut secret = Zeroizing::new(vec![0; SECRET_BYTES]);
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| EnrollError::Random)?;
    Ok(secret)
}

pub(super) fn hash(secret: &[u8]) -> SecretHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    hash
}

/// The unused, unexpired invite with this secret. Every invite is compared, whichever fits.
pub(super) fn find<'a>(
    state: &'a State,
    secret: &[u8],
    now: u64,
) -> Result<(SecretHash, &'a InviteRecord), JoinRefused> {
    let wanted = hash(secret);
    let mut found = None;
    for (hash, invite) in &state.invites {
        if verify_slices_are_equal(hash, &wanted).is_ok() {
            found = Some((*hash, invite));
        }
    }
    let (hash, invite) = found.ok_or(JoinRefused::Unknown)?;
    let agent = || invite.agent.clone();
    if invite.used.is_some() {
        return Err(JoinRefused::Used { agent: agent() });
    }
    if invite.expires <= now {
        return Err(JoinRefused::Expired { agent: agent() });
    }
    Ok((hash, invite))
}
