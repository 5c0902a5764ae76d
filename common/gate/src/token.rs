//! Takes tokens; gives proved callers ([`Principal`]); refuses every token that is not, right now, its issuer's word for this
//! audience ([`TokenError`]).
//!
//! In order: `token/jws` takes the token apart, its `iss` picks the issuer (`token/issuer`), `token/keyring` has the issuer's keys
//! (fetched by `token/discovery`, judged by `token/key`), the signature is checked, `token/claims` judges what it covers, and the
//! service's audience comes last. What `token/shape` finds to be no JWT goes to the one issuer that is asked about such tokens
//! (`token/introspection`), and its answer takes the place of the claims. What was found good is remembered until it expires, the
//! issuer's keys change, or its word is no longer believed.

mod binding;
mod breaker;
mod claim;
mod claims;
mod discovery;
mod dpop;
mod error;
pub mod examine;
mod exchange;
mod introspection;
mod issuer;
mod json;
mod jws;
mod key;
mod keyring;
mod presets;
mod replay;
pub mod settings;
mod shape;

use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::StreamExt;
use moka::sync::Cache;
use postern_base::config::Problem;
use postern_base::defaults::TOKEN_BYTES;
use postern_base::id::IssuerName;

pub use self::binding::{Binding, Presented, Proof, Scheme};
pub use self::claim::ClaimPath;
use self::dpop::Proofs;
pub use self::dpop::{DpopFile, NonceUse, ProofError, ProofSettings};
pub use self::error::{Quoted, TokenError};
use self::exchange::Exchanger;
pub use self::exchange::{ExchangeError, Exchanged, Wanted};
use self::introspection::Introspector;
pub use self::issuer::IssuerHealth;
use self::issuer::{Issuer, Verified, accepted};
use self::jws::Jws;
pub use self::key::Algorithm;
pub use self::settings::IssuerSettings;
use self::settings::SenderConstrained;
use self::shape::Shape;
use crate::principal::{Principal, TokenId};

/// Bytes of tokens remembered; their principals take a few times that. Some 10,000 callers with tokens of 1.6 KiB.
const REMEMBERED: u64 = 16 * 1024 * 1024;
/// Issuers asked at once by [`Issuers::warm`].
const WARM_AT_ONCE: usize = 8;

/// What one service accepts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accept<'a> {
    /// Whom the token must be meant for; the issuer's own list where there is none.
    pub audience: Option<&'a [String]>,
    /// Whose tokens are taken; every issuer's where there is none.
    pub issuers: Option<&'a [IssuerName]>,
}

impl Accept<'_> {
    fn takes(&self, issuer: &IssuerName) -> bool {
        self.issuers.is_none_or(|names| names.contains(issuer))
    }
}

/// The issuer that has to be asked about a token, and what the token looks like.
type ToAsk<'a> = (&'a Arc<Issuer>, &'a Arc<Introspector>, Shape);

/// All issuers, their keys, and the tokens lately found good. Used from any runtime.
pub struct Issuers {
    all: Vec<Arc<Issuer>>,
    verified: Cache<[u8; 32], Arc<Verified>>,
    /// None: tokens that are bound to a key of the caller's are refused.
    proofs: Option<Arc<Proofs>>,
}

impl std::fmt::Debug for Issuers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|issuer| &issuer.settings.name)).finish()
    }
}

impl Issuers {
    /// No two may have the same name or the same `iss`.
    pub fn new(settings: Vec<IssuerSettings>) -> Result<Self, Problem> {
        Self::build(settings, &[])
    }

    /// For a reload: an issuer whose keys come from where they came before keeps them. Tokens are all verified again.
    pub fn rebuild(&self, settings: Vec<IssuerSettings>) -> Result<Self, Problem> {
        let rebuilt = Self::build(settings, &self.all)?;
        Ok(Self { proofs: self.proofs.clone(), ..rebuilt })
    }

    /// Takes DPoP proofs too. Rebuilt issuers remember those that came before.
    #[must_use]
    pub fn taking_proofs(self, settings: ProofSettings, now: SystemTime) -> Self {
        let proofs = match &self.proofs {
            Some(proofs) => proofs.with(settings),
            None => Proofs::new(settings, now),
        };
        Self { proofs: Some(Arc::new(proofs)), ..self }
    }

    /// What DPoP proofs may be signed with; nothing where none are taken.
    pub fn proof_algorithms(&self) -> &[Algorithm] {
        self.proofs.as_ref().map_or(&[], |proofs| proofs.algorithms())
    }

    /// What the next proof may have to carry (RFC 9449 8), where nonces are in use.
    pub fn nonce(&self, now: SystemTime) -> Option<String> {
        self.proofs.as_ref().and_then(|proofs| proofs.nonce(now))
    }

    fn build(settings: Vec<IssuerSettings>, before: &[Arc<Issuer>]) -> Result<Self, Problem> {
        let mut all: Vec<Arc<Issuer>> = Vec::with_capacity(settings.len());
        for (at, settings) in settings.into_iter().enumerate() {
            let same = |what: &str, value: &str| {
                Problem::new(&format!("issuers.{at}.{what}"), format!("another issuer has {value:?} already"))
            };
            if all.iter().any(|other| other.settings.name == settings.name) {
                return Err(same("name", settings.name.as_str()));
            }
            let taken = |iss: &str| all.iter().any(|other| other.settings.is_meant_by(iss));
            if let Some((key, iss)) = settings.all_iss().find(|(_, iss)| taken(iss)) {
                return Err(same(&key, iss));
            }
            all.push(Arc::new(Issuer::new(settings, before)));
        }
        let verified = Cache::builder()
            .max_capacity(REMEMBERED)
            .weigher(|_, verified: &Arc<Verified>| verified.size)
            .build();
        Ok(Self { all, verified, proofs: None })
    }

    /// Whether the secrets, keys and certificates are there with which issuers are asked about tokens, and for others. For whoever is
    /// about to serve.
    ///
    /// # Errors
    /// The first that is not, or does not fit.
    pub fn check_secrets(&self) -> Result<(), Problem> {
        for (at, issuer) in self.all.iter().enumerate() {
            if let Some(Err(error)) = issuer.asked.as_ref().map(|asked| asked.check()) {
                return Err(Problem::new(&format!("issuers.{at}.introspect"), error.to_string()));
            }
            if let Some(Err(error)) = issuer.exchanger.as_ref().map(Exchanger::check) {
                return Err(Problem::new(&format!("issuers.{at}.exchange"), error.to_string()));
            }
        }
        Ok(())
    }

    pub fn settings(&self) -> impl Iterator<Item = &IssuerSettings> {
        self.all.iter().map(|issuer| &issuer.settings)
    }

    pub fn by_name(&self, name: &str) -> Option<&IssuerSettings> {
        self.settings().find(|settings| settings.name.as_str() == name)
    }

    /// Judges one token for a service. Waits only when the issuer's keys have to be fetched first, and not long.
    pub async fn authenticate(
        &self,
        presented: &Presented<'_>,
        accept: Accept<'_>,
        now: SystemTime,
    ) -> Result<Arc<Principal>, TokenError> {
        let token = presented.token;
        // Before anything else, also before the hash: the cost of a refusal is bounded.
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let hash = hash(token);
        let verified = self.verified(token, &hash, accept, now).await?;
        self.bound(&verified, presented, &hash, now)?;
        Ok(Arc::clone(&verified.principal))
    }

    /// Whether a token that was authenticated before is still good: what it is bound to was proved then. For what goes on longer than a
    /// request, at [`Principal::asked_again_at`].
    ///
    /// # Errors
    /// As [`Issuers::authenticate`], but for the binding.
    pub async fn confirm(
        &self,
        token: &str,
        accept: Accept<'_>,
        now: SystemTime,
    ) -> Result<Arc<Principal>, TokenError> {
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let verified = self.verified(token, &hash(token), accept, now).await?;
        Ok(Arc::clone(&verified.principal))
    }

    /// From memory where it may be, and remembered where the service takes it.
    async fn verified(
        &self,
        token: &str,
        hash: &[u8; 32],
        accept: Accept<'_>,
        now: SystemTime,
    ) -> Result<Arc<Verified>, TokenError> {
        if let Some(known) = self.verified.get(hash).filter(|known| known.is_current(accept, now)) {
            if known.is_expired(now) {
                self.verified.invalidate(hash);
                return Err(TokenError::Expired);
            }
            known.accepted(accept)?;
            return Ok(known);
        }
        // Boxed, for most tokens are known: what waits here is large, and every request would carry its size about.
        let verified = Arc::new(Box::pin(self.verify(token, hash, accept, now)).await?);
        verified.accepted(accept)?;
        self.verified.insert(*hash, Arc::clone(&verified));
        Ok(verified)
    }

    /// Whether a caller whose token was found good may use it at another service: for what is judged again without being sent again.
    ///
    /// # Errors
    /// As [`Issuers::authenticate`] for the audience and the issuer.
    pub fn accepts(&self, caller: &Principal, accept: Accept<'_>) -> Result<(), TokenError> {
        let is_its = |settings: &&IssuerSettings| {
            settings.name == *caller.issuer() && settings.is_meant_by(caller.iss())
        };
        let settings = self.settings().find(is_its);
        let settings = settings.ok_or_else(|| TokenError::IssuerNotAccepted(caller.issuer().clone()))?;
        accepted(settings, caller, accept)
    }

    /// Whether these judge an issuer's tokens as others do. Callers that others proved are not proved by these where they do not.
    pub fn judges_like(&self, other: &Self, issuer: &IssuerName) -> bool {
        let of = |all: &'_ Self| all.all.iter().find(|one| one.settings.name == *issuer).cloned();
        of(self).zip(of(other)).is_some_and(|(one, other)| one.settings.judges_like(&other.settings))
    }

    /// Names an issuer and all of its settings: differs after a reload that changed one of them.
    pub fn version(&self, issuer: &IssuerName) -> Option<u64> {
        self.all.iter().find(|one| one.settings.name == *issuer).map(|one| one.version)
    }

    fn bound(
        &self,
        verified: &Verified,
        presented: &Presented<'_>,
        hash: &[u8; 32],
        now: SystemTime,
    ) -> Result<(), TokenError> {
        let required = verified.issuer.settings.sender_constrained == SenderConstrained::Required;
        binding::judge(&verified.principal, presented, hash, required, self.proofs.as_deref(), now)
    }

    async fn verify(
        &self,
        token: &str,
        hash: &[u8; 32],
        accept: Accept<'_>,
        now: SystemTime,
    ) -> Result<Verified, TokenError> {
        if let Some((issuer, asked, shape)) = self.whom_to_ask(token, accept)? {
            return issuer.word(asked, (token, hash), shape, now).await;
        }
        let jws = Jws::parse(token)?;
        let iss = match jws.claims.get("iss") {
            None => return Err(TokenError::Missing("iss")),
            Some(iss) => iss.as_str().ok_or(TokenError::BadClaim("iss"))?,
        };
        let issuer = self.meant_by(iss).ok_or_else(|| TokenError::UnknownIssuer(Quoted::new(iss)))?;
        issuer.signature(jws, token, now).await
    }

    fn meant_by(&self, iss: &str) -> Option<&Arc<Issuer>> {
        self.all.iter().find(|issuer| issuer.settings.is_meant_by(iss))
    }

    /// The issuer that has to be asked about a token; none for one whose signature tells. What is no JWT goes to the one issuer of the
    /// service that is asked about such tokens, and to no other.
    fn whom_to_ask(&self, token: &str, accept: Accept<'_>) -> Result<Option<ToAsk<'_>>, TokenError> {
        let asked = |issuer: &&Arc<Issuer>| issuer.asked.is_some();
        if !self.all.iter().any(|issuer| asked(&issuer)) {
            return Ok(None);
        }
        let shape = shape::shape(token);
        let issuer = match shape {
            Shape::Opaque => {
                let mut all =
                    self.all.iter().filter(asked).filter(|issuer| accept.takes(&issuer.settings.name));
                match (all.next(), all.next()) {
                    (Some(issuer), None) => Some(issuer),
                    _ => return Err(TokenError::Opaque),
                }
            }
            // Where keys tell of every issuer, nobody need look whose it is before its signature is.
            Shape::Jwt if self.all.iter().all(|issuer| issuer.settings.has_keys()) => None,
            Shape::Jwt => {
                let issuer = shape::iss(token).and_then(|iss| self.meant_by(&iss));
                issuer.filter(|issuer| !issuer.settings.has_keys())
            }
        };
        Ok(issuer.and_then(|issuer| Some((issuer, issuer.asked.as_ref()?, shape))))
    }

    /// Fetches the keys of all issuers that have none, and finds where the others are asked; failures are logged. For the start, and
    /// again now and then, so that an issuer that was down is found without a caller's help.
    pub async fn warm(&self) {
        let now = SystemTime::now();
        let all = futures_util::stream::iter(&self.all);
        all.for_each_concurrent(WARM_AT_ONCE, async |issuer| issuer.warm(now).await).await;
    }

    /// For readiness and metrics.
    pub fn health(&self) -> Vec<IssuerHealth> {
        self.all.iter().map(|issuer| issuer.health()).collect()
    }
}

/// Names a token in logs, audit and locks, also one that was refused. Of a signed one by what its signature is over: an ECDSA signature
/// has a twin that anyone can work out and that verifies as well, and must not get past a lock.
pub fn token_id(token: &str) -> TokenId {
    let mut id = [0; 8];
    id.copy_from_slice(&hash(shape::covered(token))[..8]);
    TokenId(id)
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests;
