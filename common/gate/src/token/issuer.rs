//! Takes one issuer's settings and a token; gives what its keys, or its own word, prove; refuses what neither does. The audience comes
//! later: it depends on the service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use postern_base::id::IssuerName;
use serde_json::Value;

use super::claims::{self, Said};
use super::error::{Quoted, TokenError};
use super::exchange::Exchanger;
use super::introspection::{self, Introspector};
use super::jws::Jws;
use super::keyring::{KeySet, Keyring, Verdict};
use super::settings::{self, IssuerSettings, KidMissing};
use super::shape::Shape;
use super::{Accept, token_id};
use crate::principal::Principal;

/// The next issuer's, or the next settings'.
static VERSIONS: AtomicU64 = AtomicU64::new(0);

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
    /// Whether keys tell anything: else the issuer is asked about each token.
    pub has_keys: bool,
    /// Why the last fetch or question failed; none when it succeeded.
    pub error: Option<String>,
}

impl IssuerHealth {
    /// Whether tokens of this issuer can be verified.
    pub fn is_usable(&self, now: SystemTime) -> bool {
        if self.has_keys {
            self.keys > 0 && self.usable_until.is_some_and(|until| now <= until)
        } else {
            self.error.is_none()
        }
    }
}

pub(super) struct Issuer {
    pub(super) settings: IssuerSettings,
    /// No other issuer has it, and no other settings of this one.
    pub(super) version: u64,
    keys: Arc<Keyring>,
    /// Where it is asked about tokens.
    pub(super) asked: Option<Arc<Introspector>>,
    /// As which client it exchanges tokens.
    pub(super) exchanger: Option<Exchanger>,
}

/// Why a token is held to be good.
enum Basis {
    /// By its signature; of the keys that verified it.
    Keys { generation: u64 },
    /// By its issuer's word, which is believed until then.
    Word { until: SystemTime, longest: Duration, shape: Shape },
}

/// A token that is good: all but the audience, which depends on the service.
pub(super) struct Verified {
    pub(super) issuer: Arc<Issuer>,
    basis: Basis,
    pub(super) size: u32,
    pub(super) principal: Arc<Principal>,
}

impl Issuer {
    /// One whose keys come from where those of one before came keeps them; what was answered to the same question is still true.
    pub(super) fn new(settings: IssuerSettings, before: &[Arc<Self>]) -> Self {
        let known = before.iter().find(|other| *other.keys.source() == settings.keys);
        let keys = known
            .map_or_else(|| Arc::new(Keyring::new(settings.keys.clone())), |issuer| Arc::clone(&issuer.keys));
        let asked = settings.introspect.as_ref().map(|how| {
            // Anew, for secrets may be other ones.
            let fresh = Introspector::new(&settings.name, how);
            let known = before.iter().find(|other| other.settings == settings);
            Arc::new(match known.and_then(|issuer| issuer.asked.as_ref()) {
                Some(known) => fresh.remembering(known),
                None => fresh,
            })
        });
        let exchanger = settings.exchange.as_ref().map(Exchanger::new);
        let same = before.iter().find(|other| other.settings == settings);
        let version = same.map_or_else(|| VERSIONS.fetch_add(1, Ordering::Relaxed), |other| other.version);
        Self { settings, version, keys, asked, exchanger }
    }

    /// Where its keys or its endpoints are to be had: fetches them where they are not known yet.
    pub(super) async fn warm(&self, now: SystemTime) {
        if self.settings.has_keys() {
            drop(self.keys.keys(now).await);
        }
        if let Some(asked) = &self.asked {
            asked.warm().await;
        }
    }

    pub(super) fn health(&self) -> IssuerHealth {
        let keys = self.keys.health();
        IssuerHealth {
            name: self.settings.name.clone(),
            keys: keys.keys,
            fetched: keys.fetched,
            usable_until: keys.usable_until,
            has_keys: self.settings.has_keys(),
            error: keys.error.or_else(|| self.asked.as_ref().and_then(|asked| asked.error())),
        }
    }

    /// What the signature of a JWT that names this issuer says.
    pub(super) async fn signature(
        self: &Arc<Self>,
        jws: Jws<'_>,
        token: &str,
        now: SystemTime,
    ) -> Result<Verified, TokenError> {
        self.permits(&jws)?;
        let set = self.signed(&jws, now).await?;
        let Jws { claims, typ, .. } = jws;
        let said = Said::InToken(typ.as_deref());
        let proved = claims::judge(claims, said, &self.settings, token_id(token), now)?;
        Ok(Verified {
            issuer: Arc::clone(self),
            basis: Basis::Keys { generation: set.generation },
            size: u32::try_from(token.len()).unwrap_or(u32::MAX),
            principal: Arc::new(Principal::new(proved)),
        })
    }

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
        if jws.kid.is_none() && self.settings.kid_missing == KidMissing::Refuse {
            return Err(TokenError::NoKeyId);
        }
        Ok(())
    }

    /// What the issuer itself says of a token.
    pub(super) async fn word(
        self: &Arc<Self>,
        asked: &Arc<Introspector>,
        (token, hash): (&str, &[u8; 32]),
        shape: Shape,
        now: SystemTime,
    ) -> Result<Verified, TokenError> {
        let answer = asked.ask(token, hash, now).await?;
        let claims = answer.claims.clone().ok_or(TokenError::Inactive)?;
        // An answer need not say whose it is: it came from the address that the configuration or the issuer names.
        match claims.get("iss") {
            None | Some(Value::Null) => {}
            Some(Value::String(iss)) if self.settings.is_meant_by(iss) => {}
            Some(Value::String(iss)) => return Err(TokenError::UnknownIssuer(Quoted::new(iss))),
            Some(_) => return Err(TokenError::BadClaim("iss")),
        }
        let proved = claims::judge(claims, Said::WhenAsked, &self.settings, token_id(token), now)?;
        let principal = Principal::new(proved).asked_again_at_latest(answer.until);
        Ok(Verified {
            issuer: Arc::clone(self),
            basis: Basis::Word { until: answer.until, longest: asked.longest(), shape },
            size: answer.size,
            principal: Arc::new(principal),
        })
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
    /// Whether what it was found good by still says so: the issuer's keys, or its word.
    pub(super) fn is_current(&self, accept: Accept<'_>, now: SystemTime) -> bool {
        match &self.basis {
            Basis::Keys { generation } => self.issuer.keys.generation(now) == Some(*generation),
            Basis::Word { until, longest, shape } => {
                // Another service may have another issuer asked about it.
                introspection::holds(*until, *longest, now)
                    && (*shape != Shape::Opaque || accept.takes(&self.issuer.settings.name))
            }
        }
    }

    pub(super) fn is_expired(&self, now: SystemTime) -> bool {
        claims::is_expired(self.principal.expires(), self.issuer.settings.leeway, now)
    }

    /// Whether a service takes it. A good token of an issuer that the service does not take is told from a bad one.
    pub(super) fn accepted(&self, accept: Accept<'_>) -> Result<(), TokenError> {
        accepted(&self.issuer.settings, &self.principal, accept)
    }
}

pub(super) fn accepted(
    settings: &IssuerSettings,
    caller: &Principal,
    accept: Accept<'_>,
) -> Result<(), TokenError> {
    let taken = accept.takes(&settings.name);
    let wanted = accept.audience.filter(|_| taken).unwrap_or(&settings.audience);
    if !caller.audience().iter().any(|one| wanted.contains(one)) {
        Err(TokenError::WrongAudience)
    } else if !taken {
        Err(TokenError::IssuerNotAccepted(settings.name.clone()))
    } else {
        Ok(())
    }
}
