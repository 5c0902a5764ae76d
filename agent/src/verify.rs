//! Decides again: takes the caller's own credential, which the relay passes on, and what the relay asks for; gives the caller whom this
//! agent proved itself. Refuses, whatever the relay says: no credential, a token that is not good here, a proof that was made for another
//! request or was used before, and what the agent's own rules do not allow. The relay's word of who calls is never looked at.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, HeaderValue};
use moka::sync::Cache;
use postern_base::config::Problem;
use postern_base::id::ServiceName;
use postern_gate::path::{CanonicalPath, PathMode};
use postern_gate::policy::{CONNECT, Context, Policy, ServiceKind, Target};
use postern_gate::principal::Principal;
use postern_gate::token::{
    Accept, IssuerHealth, Issuers, Presented, Proof, ProofSettings, Scheme, TokenError,
};
use postern_wire::fields::{encoded, folded};
use postern_wire::head::Credential;
use url::Url;

use crate::settings::verify::{Verification, Verify};

mod live;

pub use live::Watched;

/// Renewals name several streams by one proof; each is judged once and then remembered, until the last of them has asked.
const RENEWALS: u64 = 4096;
const RENEWAL: Duration = Duration::from_secs(30);
/// The relay's own address at which leases are renewed.
const LEASE: &str = "/.postern/lease";

/// Why this agent says no. The texts go to the caller, through the relay.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the relay sent no token of the caller's: set caller_token = \"agent\" for this service in relay.toml"
    )]
    NoCredential,
    #[error("the caller's token came in no known way")]
    Scheme,
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error(
        "the token is bound to a key, and this service has no `verify.urls` that its proofs could be for: add them in agent.toml"
    )]
    NoUrls,
    #[error(
        "the caller's proof is for another address than this service's: add it to `verify.urls` in agent.toml if it is one"
    )]
    OtherAddress,
    #[error("what the relay asks for is not what the caller asked for")]
    OtherRequest,
    #[error("the renewal is another caller's")]
    OtherCaller,
    #[error("{0}")]
    Denied(String),
}

/// What the relay asks this agent to do.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub service: &'a ServiceName,
    pub method: &'a str,
    /// Without its query; nothing for TCP services.
    pub path: &'a str,
    pub is_upgrade: bool,
}

/// Says who calls as this agent proved it, in place of what the relay says. Roles are the relay's own and stay its word.
pub fn say(caller: &Principal, headers: &mut HeaderMap) {
    let fields = [
        ("x-postern-subject", Some(encoded([caller.subject()]))),
        ("x-postern-issuer", Some(encoded([caller.iss()]))),
        ("x-postern-client", caller.client().map(|client| encoded([client]))),
        ("x-postern-scopes", Some(encoded(caller.scopes().iter().map(String::as_str)))),
    ];
    // Also as upstreams read them that take `_` for `-`.
    let theirs = headers.keys().filter(|name| fields.iter().any(|(ours, _)| folded(name) == *ours));
    for name in theirs.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
    for (name, value) in fields {
        let name = HeaderName::from_static(name);
        // What is encoded is visible ASCII.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
}

/// The gate of all services that verify, shared by all workers.
#[derive(Debug)]
pub struct Verifier {
    issuers: Issuers,
    policy: Arc<Policy>,
    renewals: Cache<[u8; 32], Arc<Principal>>,
}

impl Verifier {
    /// # Errors
    /// Two issuers are one, or a secret is not there.
    pub fn new(verification: &Verification, now: SystemTime) -> Result<Self, Problem> {
        let issuers = Issuers::new(verification.issuers.clone())?;
        issuers.check_secrets()?;
        Ok(Self {
            issuers: issuers.taking_proofs(ProofSettings::without_nonces(), now),
            policy: verification.policy.clone(),
            renewals: Cache::builder().max_capacity(RENEWALS).time_to_live(RENEWAL).build(),
        })
    }

    /// Keys that are known before the first request spare it the wait.
    pub async fn warm(&self) {
        self.issuers.warm().await;
    }

    /// How the issuers stand.
    pub fn issuers(&self) -> Vec<IssuerHealth> {
        self.issuers.health()
    }

    /// Judges one request. A proof that was found good is spent with it.
    pub async fn judge(
        &self,
        verify: &Verify,
        asked: &Call<'_>,
        credential: Option<&Credential<'_>>,
        now: SystemTime,
    ) -> Result<Arc<Principal>, Refused> {
        let credential = credential.ok_or(Refused::NoCredential)?;
        let presented = presented(credential)?;
        if presented.scheme == Scheme::Dpop {
            is_for(verify, asked, credential)?;
        }
        let caller = self.issuers.authenticate(&presented, accept(verify), now).await?;
        self.allow(&caller, verify, asked, now)?;
        Ok(caller)
    }

    /// Judges a renewal for what `caller` opened: the same caller, by the same issuer, client and key, who may still do it.
    pub async fn renew(
        &self,
        verify: &Verify,
        asked: &Call<'_>,
        caller: &Principal,
        credential: &Credential<'_>,
        now: SystemTime,
    ) -> Result<Arc<Principal>, Refused> {
        let key = fingerprint(credential);
        let fresh = if let Some(known) = self.renewals.get(&key) {
            known
        } else {
            let presented = presented(credential)?;
            let is_lease = Url::parse(credential.public_uri).is_ok_and(|url| url.path() == LEASE);
            if presented.scheme == Scheme::Dpop && !(is_lease && credential.method == "POST") {
                return Err(Refused::OtherRequest);
            }
            let fresh = self.issuers.authenticate(&presented, accept(verify), now).await?;
            self.renewals.insert(key, fresh.clone());
            fresh
        };
        // Remembered for one service, judged for each.
        self.issuers.accepts(&fresh, accept(verify))?;
        if !fresh.is_same_caller(caller) {
            return Err(Refused::OtherCaller);
        }
        self.allow(&fresh, verify, asked, now)?;
        Ok(fresh)
    }

    fn allow(
        &self,
        caller: &Principal,
        verify: &Verify,
        asked: &Call<'_>,
        now: SystemTime,
    ) -> Result<(), Refused> {
        let (method, path) = match verify.kind {
            ServiceKind::Http => (asked.method, CanonicalPath::parse(asked.path, PathMode::Loose)),
            ServiceKind::Tcp => (CONNECT, Ok(CanonicalPath::root())),
        };
        let path = path.map_err(|e| Refused::Denied(e.to_string()))?;
        let target = Target { service: asked.service, method, path: &path };
        // No rule here asks for one.
        let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let decided = self.policy.decide(caller, &target, &Context { address, now });
        decided.map(drop).map_err(|denial| Refused::Denied(denial.detail()))
    }
}

fn accept(verify: &Verify) -> Accept<'_> {
    Accept { audience: verify.audience.as_deref(), issuers: verify.issuers.as_deref() }
}

fn presented<'a>(credential: &Credential<'a>) -> Result<Presented<'a>, Refused> {
    let proof = |jwt| Proof { jwt, method: credential.method, uri: credential.public_uri };
    Ok(Presented {
        scheme: Scheme::named(credential.scheme).ok_or(Refused::Scheme)?,
        token: credential.token,
        proof: credential.proof.map(proof),
        certificate: credential.certificate_sha256,
    })
}

/// Whether what the proof was made for, as the relay says it, is what the relay asks for. That it was made for this is judged with it.
fn is_for(verify: &Verify, asked: &Call<'_>, credential: &Credential<'_>) -> Result<(), Refused> {
    let same_method = match (verify.kind, asked.is_upgrade) {
        // Upgrades come as GET, or over HTTP/2 as CONNECT (RFC 8441).
        (ServiceKind::Tcp, _) => ["GET", CONNECT].contains(&credential.method),
        (ServiceKind::Http, true) => asked.method == "GET" && ["GET", CONNECT].contains(&credential.method),
        (ServiceKind::Http, false) => credential.method == asked.method,
    };
    if verify.urls.is_empty() {
        return Err(Refused::NoUrls);
    }
    let uri = Url::parse(credential.public_uri).map_err(|_| Refused::OtherAddress)?;
    let mut is_ours = false;
    for url in verify.urls.iter().filter(|url| url.origin() == uri.origin()) {
        let is_same_path = match verify.kind {
            ServiceKind::Tcp => uri.path() == url.path(),
            ServiceKind::Http => uri.path().strip_prefix(url.path()).is_some_and(|rest| {
                is_ours = true;
                // Both spelled the one way that policy knows; `Url` leaves escapes as they are.
                let rest = format!("/{rest}");
                CanonicalPath::parse(&rest, PathMode::Loose).is_ok_and(|path| path.as_str() == asked.path)
            }),
        };
        if is_same_path && same_method {
            return Ok(());
        }
    }
    Err(if is_ours { Refused::OtherRequest } else { Refused::OtherAddress })
}

/// Names token and proof together.
fn fingerprint(credential: &Credential<'_>) -> [u8; 32] {
    let mut text = Vec::with_capacity(credential.token.len() + 1024);
    for part in [
        credential.scheme.as_bytes(),
        credential.token.as_bytes(),
        credential.proof.unwrap_or_default().as_bytes(),
        credential.certificate_sha256.as_ref().map_or(&[][..], |hash| hash),
    ] {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &text).as_ref());
    hash
}

#[cfg(test)]
mod tests;
