//! Takes bearer tokens; gives proved callers ([`Principal`]); refuses every token that is not, right now, its issuer's word for this
//! audience ([`TokenError`]).
//!
//! In order: `token/jws` takes the token apart, its `iss` picks the issuer, `token/keyring` has the issuer's keys (fetched by
//! `token/discovery`, judged by `token/key`), the signature is checked, `token/claims` judges what it covers, and the service's
//! audience comes last. What was found good is remembered until it expires or the issuer's keys change.

mod binding;
mod claim;
mod claims;
mod discovery;
mod error;
mod json;
mod jws;
mod key;
mod keyring;
pub mod settings;

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
pub use self::error::{Quoted, TokenError};
use self::jws::Jws;
pub use self::key::Algorithm;
use self::keyring::{KeySet, Keyring, Verdict};
pub use self::settings::IssuerSettings;
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

/// What is known of one issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerHealth {
    pub name: IssuerName,
    /// Keys that are fit; none when they were never fetched.
    pub keys: usize,
    /// When they were last fetched.
    pub fetched: Option<SystemTime>,
    /// Until when they serve if the issuer stays silent.
    pub usable_until: Option<SystemTime>,
    /// Why the last fetch failed; none when it succeeded.
    pub error: Option<String>,
}

impl IssuerHealth {
    /// Whether tokens of this issuer can be verified.
    pub fn is_usable(&self, now: SystemTime) -> bool {
        self.keys > 0 && self.usable_until.is_some_and(|until| now <= until)
    }
}

/// All issuers, their keys, and the tokens lately found good. Used from any runtime.
pub struct Issuers {
    all: Vec<Arc<Issuer>>,
    verified: Cache<[u8; 32], Arc<Verified>>,
}

impl std::fmt::Debug for Issuers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|issuer| &issuer.settings.name)).finish()
    }
}

struct Issuer {
    settings: IssuerSettings,
    keys: Arc<Keyring>,
}

/// A token whose signature and claims are good: all but the audience, which depends on the service.
struct Verified {
    issuer: Arc<Issuer>,
    /// Of the keys that verified it.
    generation: u64,
    size: u32,
    principal: Arc<Principal>,
}

impl Issuers {
    /// No two may have the same name or the same `iss`.
    pub fn new(settings: Vec<IssuerSettings>) -> Result<Self, Problem> {
        Self::build(settings, &[])
    }

    /// For a reload: an issuer whose keys come from where they came before keeps them. Tokens are all verified again.
    pub fn rebuild(&self, settings: Vec<IssuerSettings>) -> Result<Self, Problem> {
        Self::build(settings, &self.all)
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
            if all.iter().any(|other| other.settings.issuer == settings.issuer) {
                return Err(same("issuer", &settings.issuer));
            }
            let known = before.iter().find(|other| *other.keys.source() == settings.keys);
            let keys = known.map_or_else(
                || Arc::new(Keyring::new(settings.keys.clone())),
                |issuer| Arc::clone(&issuer.keys),
            );
            all.push(Arc::new(Issuer { settings, keys }));
        }
        let verified = Cache::builder()
            .max_capacity(REMEMBERED)
            .weigher(|_, verified: &Arc<Verified>| verified.size)
            .build();
        Ok(Self { all, verified })
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
        if let Some(known) = self.verified.get(&hash)
            && known.issuer.keys.generation(now) == Some(known.generation)
        {
            if known.is_expired(now) {
                self.verified.invalidate(&hash);
                return Err(TokenError::Expired);
            }
            let principal = known.accepted(accept)?;
            binding::judge(&principal, presented)?;
            return Ok(principal);
        }
        let verified = Arc::new(self.verify(token, &hash, now).await?);
        let principal = verified.accepted(accept)?;
        self.verified.insert(hash, verified);
        binding::judge(&principal, presented)?;
        Ok(principal)
    }

    async fn verify(&self, token: &str, hash: &[u8; 32], now: SystemTime) -> Result<Verified, TokenError> {
        let jws = Jws::parse(token)?;
        let iss = match jws.claims.get("iss") {
            None => return Err(TokenError::Missing("iss")),
            Some(iss) => iss.as_str().ok_or(TokenError::BadClaim("iss"))?,
        };
        let issuer = self.all.iter().find(|issuer| issuer.settings.issuer == iss);
        let issuer = issuer.ok_or_else(|| TokenError::UnknownIssuer(Quoted::new(iss)))?;
        issuer.permits(&jws)?;
        let set = issuer.signed(&jws, now).await?;
        let Jws { claims, typ, .. } = jws;
        let proved = claims::judge(claims, typ.as_deref(), &issuer.settings, short(hash), now)?;
        Ok(Verified {
            issuer: Arc::clone(issuer),
            generation: set.generation,
            size: u32::try_from(token.len()).unwrap_or(u32::MAX),
            principal: Arc::new(Principal::new(proved)),
        })
    }

    /// Fetches the keys of all issuers that have none; failures are logged. For the start, and again now and then, so that an issuer
    /// that was down is found without a caller's help.
    pub async fn warm(&self) {
        let now = SystemTime::now();
        let fetches = futures_util::stream::iter(&self.all);
        fetches.for_each_concurrent(WARM_AT_ONCE, async |issuer| drop(issuer.keys.keys(now).await)).await;
    }

    /// For readiness and metrics.
    pub fn health(&self) -> Vec<IssuerHealth> {
        let health = |issuer: &Arc<Issuer>| {
            let keys = issuer.keys.health();
            IssuerHealth {
                name: issuer.settings.name.clone(),
                keys: keys.keys,
                fetched: keys.fetched,
                usable_until: keys.usable_until,
                error: keys.error,
            }
        };
        self.all.iter().map(health).collect()
    }
}

impl Issuer {
    /// What can be refused without a key.
    fn permits(&self, jws: &Jws<'_>) -> Result<(), TokenError> {
        if !self.settings.algorithms.contains(&jws.algorithm) {
            return Err(TokenError::Algorithm(Quoted::new(&jws.algorithm.to_string())));
        }
        let typ = jws.typ.as_deref().unwrap_or_default();
        let normal = settings::normal_type(typ);
        if !self.settings.token_types.contains(&normal) {
            return Err(TokenError::Type(Quoted::new(typ)));
        }
        Ok(())
    }

    /// The keys that verify the signature; fetched anew, where that is due, when those at hand cannot tell.
    async fn signed(&self, jws: &Jws<'_>, now: SystemTime) -> Result<Arc<KeySet>, TokenError> {
        let silent = || TokenError::Unavailable(self.settings.name.clone());
        let set = self.keys.keys(now).await.ok_or_else(silent)?;
        let (set, verdict) = match set.verify(jws) {
            Verdict::NoKey => {
                let newest = self.keys.newest(now).await.ok_or_else(silent)?;
                let verdict = newest.verify(jws);
                (newest, verdict)
            }
            verdict @ (Verdict::Good | Verdict::Forged) => (set, verdict),
        };
        match (verdict, &jws.kid) {
            (Verdict::Good, _) => Ok(set),
            (Verdict::Forged, _) => Err(TokenError::BadSignature),
            (Verdict::NoKey, Some(kid)) => Err(TokenError::UnknownKey(Quoted::new(kid))),
            (Verdict::NoKey, None) => Err(TokenError::NoKey),
        }
    }
}

impl Verified {
    fn is_expired(&self, now: SystemTime) -> bool {
        claims::is_expired(self.principal.expires(), self.issuer.settings.leeway, now)
    }

    /// Whether a service takes it. A good token of an issuer that the service does not take is told from a bad one.
    fn accepted(&self, accept: Accept<'_>) -> Result<Arc<Principal>, TokenError> {
        let settings = &self.issuer.settings;
        let taken = accept.issuers.is_none_or(|names| names.contains(&settings.name));
        let wanted = accept.audience.filter(|_| taken).unwrap_or(&settings.audience);
        if !self.principal.audience().iter().any(|one| wanted.contains(one)) {
            Err(TokenError::WrongAudience)
        } else if !taken {
            Err(TokenError::IssuerNotAccepted(settings.name.clone()))
        } else {
            Ok(Arc::clone(&self.principal))
        }
    }
}

/// Names a token in logs and audit, also one that was refused.
pub fn token_id(token: &str) -> TokenId {
    short(&hash(token))
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

fn short(hash: &[u8; 32]) -> TokenId {
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    TokenId(id)
}

#[cfg(test)]
mod tests;
