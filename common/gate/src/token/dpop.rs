//! DPoP proofs (RFC 9449 4.3 and 7.1): takes the proof that came with a bound token, gives leave once; refuses those that are not for
//! this key, this token, this request and this minute, and those that came before ([`ProofError`]).

mod error;
mod nonce;
mod proof;
mod settings;
mod uri;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{self, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub use self::error::ProofError;
use self::nonce::Nonces;
use self::proof::Signed;
pub use self::settings::{DpopFile, NonceUse, ProofSettings};
use super::binding::Proof;
use super::error::TokenError;
use super::key::Algorithm;
use super::replay::{Replay, Seen};

/// How long a proof is good for (security.md: the `iat` window).
const WINDOW: Duration = Duration::from_mins(1);
/// How far a caller's clock may be ahead of ours.
const LEEWAY: Duration = Duration::from_secs(30);
/// Proofs of one key remembered at once: some 300 a second. More than one caller needs, and too few to fill the memory for all others.
const OF_ONE_KEY: usize = 20_000;
/// Proofs remembered at once, some 50 MB when full: more than 10,000 a second, each for as long as it could be sent again.
const REMEMBERED: usize = 1 << 20;

/// Judges proofs, and remembers those it took. One for the life of a program: whoever forgot which proofs came would take them again.
pub(super) struct Proofs {
    settings: ProofSettings,
    memory: Arc<Memory>,
}

struct Memory {
    replay: Replay,
    nonces: Nonces,
    /// What came before is not remembered.
    born: Duration,
}

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proofs").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Proofs {
    pub(super) fn new(settings: ProofSettings, now: SystemTime) -> Self {
        Self::remembering(settings, REMEMBERED, now)
    }

    fn remembering(settings: ProofSettings, capacity: usize, now: SystemTime) -> Self {
        let (replay, nonces) = (Replay::new(capacity, OF_ONE_KEY), Nonces::new());
        Self { settings, memory: Arc::new(Memory { replay, nonces, born: since_epoch(now) }) }
    }

    /// The same memory under other settings, for a reload.
    #[must_use]
    pub(super) fn with(&self, settings: ProofSettings) -> Self {
        Self { settings, memory: Arc::clone(&self.memory) }
    }

    /// What a proof may be signed with.
    pub(super) fn algorithms(&self) -> &[Algorithm] {
        &self.settings.algorithms
    }

    /// What the next proof may have to carry: a nonce for the answer, where nonces are in use.
    pub(super) fn nonce(&self, now: SystemTime) -> Option<String> {
        let is_used = match self.settings.nonce {
            NonceUse::Never => false,
            // Asked for only while proofs from before the start could still be sent again.
            NonceUse::Optional => since_epoch(now) <= self.memory.born + LEEWAY + WINDOW,
            NonceUse::Required => true,
        };
        if is_used { self.memory.nonces.current(now) } else { None }
    }

    /// Takes a proof for a token of this hash that is bound to the key `bound`, once.
    pub(super) fn judge(
        &self,
        proof: &Proof<'_>,
        bound: &[u8; 32],
        token: &[u8; 32],
        now: SystemTime,
    ) -> Result<(), TokenError> {
        let signed = Signed::parse(proof.jwt, &self.settings.algorithms)?;
        // Strangers' keys cost no signature.
        if signed.thumbprint != *bound {
            return Err(TokenError::WrongKey);
        }
        let issued = fits(&signed, proof, token, now)?;
        if !signed.is_genuine() {
            return Err(ProofError::BadSignature.into());
        }
        self.fresh(&signed, issued, now)?;
        let mut hash = digest::Context::new(&SHA256);
        hash.update(bound);
        hash.update(signed.id()?.as_bytes());
        match self.memory.replay.insert(bound, hash.finish().as_ref(), issued + WINDOW, since_epoch(now)) {
            Seen::New => Ok(()),
            Seen::Again => Err(ProofError::Replayed.into()),
            Seen::Full => Err(ProofError::Full.into()),
        }
    }

    /// Whether it was made for this process: a nonce shows it, and, where none is demanded, its time.
    fn fresh(&self, signed: &Signed<'_>, issued: Duration, now: SystemTime) -> Result<(), ProofError> {
        let is_ours = || signed.nonce().is_some_and(|nonce| self.memory.nonces.is_ours(nonce, now));
        let born = self.memory.born;
        match self.settings.nonce {
            // Who cannot ask for a nonce would have to refuse everybody for as long as a clock may be ahead. What such a clock dated
            // after the start can come a second time (docs/threat-model.md).
            NonceUse::Never if issued <= born => Err(ProofError::Older),
            NonceUse::Required if !is_ours() => Err(ProofError::NonceWanted),
            // A clock that is ahead may have dated after the start what came before it.
            NonceUse::Optional if issued <= born + LEEWAY && !is_ours() => Err(ProofError::NonceWanted),
            NonceUse::Never | NonceUse::Required | NonceUse::Optional => Ok(()),
        }
    }
}

/// Whether a proof is for this request, this token and this minute; gives when it was made.
fn fits(
    signed: &Signed<'_>,
    proof: &Proof<'_>,
    token: &[u8; 32],
    now: SystemTime,
) -> Result<Duration, ProofError> {
    if signed.text("htm")? != proof.method {
        return Err(ProofError::Method);
    }
    if !uri::is_same(signed.text("htu")?, proof.uri) {
        return Err(ProofError::Address);
    }
    let mut hash = [0; 43];
    if URL_SAFE_NO_PAD.encode_slice(token, &mut hash) != Ok(43) || signed.text("ath")?.as_bytes() != hash {
        return Err(ProofError::Token);
    }
    let (issued, now) = (signed.issued()?, since_epoch(now));
    if issued > now + LEEWAY {
        Err(ProofError::Early)
    } else if now > issued.saturating_add(WINDOW) {
        Err(ProofError::Stale)
    } else {
        Ok(issued)
    }
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
