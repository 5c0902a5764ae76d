//! Why a proof was not taken. Display may be shown to whoever sent it: it says what to make otherwise.

use crate::token::error::Quoted;

/// Why a proof was not taken. All but [`ProofError::Full`] are the proof's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("a DPoP token needs a proof: send one in the DPoP field")]
    Missing,
    #[error("the DPoP proof is longer than 4 KiB: use a smaller key")]
    TooLong,
    #[error("the DPoP proof is not a signed JWT: {0}")]
    Malformed(&'static str),
    #[error("the DPoP proof demands extensions (crit or b64) that are not supported")]
    Critical,
    #[error("the DPoP proof's type {0} is not dpop+jwt")]
    Type(Quoted),
    #[error("the DPoP proof's algorithm {0} is not taken here: see algs in the challenge")]
    Algorithm(Quoted),
    #[error("the DPoP proof's jwk is no public key that fits its algorithm")]
    Key,
    #[error("the DPoP proof shows a private key: make a new key, that one is burnt")]
    PrivateKey,
    #[error("the DPoP proof has no {0} claim, or one of the wrong type")]
    Claim(&'static str),
    #[error("the DPoP proof is for another method (htm)")]
    Method,
    #[error("the DPoP proof is for another address (htu): it has to name the public one, without query")]
    Address,
    #[error("the DPoP proof is for another token (ath)")]
    Token,
    #[error("the DPoP proof is older than a minute (iat): make one for each request, and check the clocks")]
    Stale,
    #[error("the DPoP proof was made in the future (iat): check the clocks")]
    Early,
    #[error("the DPoP proof was made before this program started: make a new one")]
    Older,
    #[error("the DPoP proof's signature is not its key's")]
    BadSignature,
    #[error("the DPoP proof needs the nonce that this answer gives: repeat the request with it")]
    NonceWanted,
    #[error("the DPoP proof came before (jti): make one for each request")]
    Replayed,
    /// More proofs came than are remembered; forgetting one would let it come again.
    #[error("too many DPoP proofs came within a minute: try again shortly")]
    Full,
}

impl ProofError {
    /// A stable name for metrics and audit.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "proof_missing",
            Self::TooLong => "proof_too_long",
            Self::Malformed(_) => "proof_malformed",
            Self::Critical => "proof_critical_extension",
            Self::Type(_) => "proof_type",
            Self::Algorithm(_) => "proof_algorithm",
            Self::Key => "proof_key",
            Self::PrivateKey => "proof_private_key",
            Self::Claim(_) => "proof_claim",
            Self::Method => "proof_method",
            Self::Address => "proof_address",
            Self::Token => "proof_token",
            Self::Stale => "proof_stale",
            Self::Early => "proof_early",
            Self::Older => "proof_older",
            Self::BadSignature => "proof_bad_signature",
            Self::NonceWanted => "proof_nonce",
            Self::Replayed => "proof_replayed",
            Self::Full => "proofs_full",
        }
    }
}
