//! What judging one token takes, step by step: takes a token; gives each step with its outcome, up to the first that fails, by calling what
//! judges every request. What a step says of a token is what its sender may know, and never the token.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::console::checks::Check;
use postern_base::defaults::TOKEN_BYTES;
use postern_base::id::IssuerName;

use super::seconds;
use crate::principal::Principal;
use crate::token::binding::Binding;
use crate::token::issuer::{Issuer, Verified};
use crate::token::jws::Jws;
use crate::token::settings::SenderConstrained;
use crate::token::shape::{self, Shape};
use crate::token::{Accept, Issuers, TokenError, hash};

/// What is judged, in this order. Each holds when the ones before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Length,
    Form,
    Answer,
    Issuer,
    Algorithm,
    Type,
    KeyId,
    Key,
    Signature,
    Expiry,
    NotBefore,
    IssuedAt,
    Lifetime,
    Subject,
    AudienceClaim,
    Kind,
    Claims,
    Client,
    User,
    Names,
    Binding,
    Audience,
    Bound,
}

/// Of a token whose signature tells.
const SIGNED: [Step; 22] = [
    Step::Length,
    Step::Form,
    Step::Issuer,
    Step::Algorithm,
    Step::Type,
    Step::KeyId,
    Step::Key,
    Step::Signature,
    Step::Expiry,
    Step::NotBefore,
    Step::IssuedAt,
    Step::Lifetime,
    Step::Subject,
    Step::AudienceClaim,
    Step::Kind,
    Step::Claims,
    Step::Client,
    Step::User,
    Step::Names,
    Step::Binding,
    Step::Audience,
    Step::Bound,
];
/// Of a token that the issuer is asked about.
const ASKED: [Step; 16] = [
    Step::Length,
    Step::Answer,
    Step::Issuer,
    Step::Expiry,
    Step::NotBefore,
    Step::IssuedAt,
    Step::Lifetime,
    Step::Subject,
    Step::AudienceClaim,
    Step::Kind,
    Step::Claims,
    Step::Client,
    Step::User,
    Step::Names,
    Step::Binding,
    Step::Audience,
];

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Form => "form",
            Self::Answer => "the issuer's answer",
            Self::Issuer => "iss",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::KeyId => "key id",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Expiry => "exp",
            Self::NotBefore => "nbf",
            Self::IssuedAt => "iat",
            Self::Lifetime => "lifetime",
            Self::Subject => "sub",
            Self::AudienceClaim => "aud",
            Self::Kind => "access token, no other kind",
            Self::Claims => "required and forbidden claims",
            Self::Client => "client",
            Self::User => "user",
            Self::Names => "scopes, roles and groups",
            Self::Binding => "cnf",
            Self::Audience => "audience is ours",
            Self::Bound => "bound to a key, where it must be",
        }
    }

    /// Where this was found.
    pub(super) fn of(error: &TokenError) -> Self {
        match error {
            TokenError::TooLong => Self::Length,
            TokenError::Malformed(_) | TokenError::Critical | TokenError::Opaque => Self::Form,
            TokenError::Inactive | TokenError::Unanswered(_) | TokenError::NotJudged(_) => Self::Answer,
            TokenError::UnknownIssuer(_) | TokenError::Missing("iss") | TokenError::BadClaim("iss") => {
                Self::Issuer
            }
            TokenError::Algorithm(_) => Self::Algorithm,
            TokenError::Type(_) => Self::Type,
            TokenError::NoKeyId => Self::KeyId,
            TokenError::UnknownKey(_) | TokenError::NoKey | TokenError::Unavailable(_) => Self::Key,
            TokenError::BadSignature => Self::Signature,
            TokenError::Missing("exp") | TokenError::BadClaim("exp") | TokenError::Expired => Self::Expiry,
            TokenError::BadClaim("nbf") | TokenError::NotYetValid => Self::NotBefore,
            TokenError::BadClaim("iat") | TokenError::IssuedInFuture => Self::IssuedAt,
            TokenError::LivesTooLong => Self::Lifetime,
            TokenError::Missing("sub") | TokenError::BadClaim("sub") => Self::Subject,
            TokenError::Missing("aud") | TokenError::BadClaim("aud") => Self::AudienceClaim,
            TokenError::IdToken
            | TokenError::BadClaim("typ" | "token_use" | "token_type" | "azp" | "client_id" | "client") => {
                Self::Kind
            }
            TokenError::Required(_)
            | TokenError::Forbidden(_)
            | TokenError::BadClaim("required" | "forbidden") => Self::Claims,
            TokenError::ClientNotAccepted => Self::Client,
            TokenError::UnverifiedEmail | TokenError::BadClaim("user") => Self::User,
            TokenError::ClaimElsewhere | TokenError::Missing(_) | TokenError::BadClaim(_) => Self::Names,
            TokenError::Bound => Self::Binding,
            TokenError::WrongAudience | TokenError::IssuerNotAccepted(_) => Self::Audience,
            TokenError::BoundAsBearer
            | TokenError::NotDpop
            | TokenError::WrongKey
            | TokenError::NoCertificate
            | TokenError::WrongCertificate
            | TokenError::NotBound
            | TokenError::Proof(_) => Self::Bound,
        }
    }
}

impl Issuers {
    /// Every step for a token that is shown to this issuer.
    pub(super) async fn steps(&self, issuer: &Arc<Issuer>, token: &str, now: SystemTime) -> Vec<Check> {
        let is_asked =
            issuer.asked.is_some() && (!issuer.settings.has_keys() || shape::shape(token) == Shape::Opaque);
        let steps: &[Step] = if is_asked { &ASKED } else { &SIGNED };
        let judged = self.judged(issuer, token, is_asked, now).await;
        let failed = judged.as_ref().err().map(Step::of);
        let mut checks = Vec::new();
        for step in steps {
            checks.push(match (failed, &judged) {
                (Some(failed), Err(error)) if failed == *step => {
                    // The text says what to do behind a colon, where that is for the bearer to do.
                    Check::bad(step.name(), error.to_string(), fix(*step, &issuer.settings.name))
                }
                (Some(failed), _) if failed < *step => Check::skipped(step.name(), "not reached"),
                (_, Ok(caller)) => Check::good(step.name(), told(*step, caller, now)),
                (_, Err(_)) => Check::good(step.name(), ""),
            });
        }
        checks
    }

    async fn judged(
        &self,
        issuer: &Arc<Issuer>,
        token: &str,
        is_asked: bool,
        now: SystemTime,
    ) -> Result<Arc<Principal>, TokenError> {
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let only = [issuer.settings.name.clone()];
        let verified: Verified = if let Some(asked) = issuer.asked.as_ref().filter(|_| is_asked) {
            issuer.word(asked, (token, &hash(token)), shape::shape(token), now).await?
        } else {
            let jws = Jws::parse(token)?;
            let iss = match jws.claims.get("iss") {
                None => return Err(TokenError::Missing("iss")),
                Some(iss) => iss.as_str().ok_or(TokenError::BadClaim("iss"))?,
            };
            if !issuer.settings.is_meant_by(iss) {
                return Err(TokenError::UnknownIssuer(crate::token::Quoted::new(iss)));
            }
            issuer.signature(jws, token, now).await?
        };
        verified.accepted(Accept { audience: None, issuers: Some(&only) })?;
        let required = issuer.settings.sender_constrained == SenderConstrained::Required;
        if required && verified.principal.binding().is_none() {
            return Err(TokenError::NotBound);
        }
        Ok(Arc::clone(&verified.principal))
    }
}

/// What a good token says there.
fn told(step: Step, caller: &Principal, now: SystemTime) -> String {
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    match step {
        Step::Issuer => caller.iss().to_owned(),
        Step::Expiry => {
            let left = Duration::from_secs(caller.expires().saturating_sub(seconds(now)));
            format!("in {} min {} s", left.as_secs() / 60, left.as_secs() % 60)
        }
        Step::Subject => caller.subject().to_owned(),
        Step::AudienceClaim => list(caller.audience()),
        Step::Client => caller.client().unwrap_or("none named").to_owned(),
        Step::User => caller.user().to_owned(),
        Step::Names => format!(
            "scopes {}; roles {}; groups {}",
            list(caller.scopes()),
            list(caller.token_roles()),
            list(caller.groups())
        ),
        Step::Bound => match caller.binding() {
            None => "no: a plain bearer token".to_owned(),
            Some(Binding::Key(_)) => "to a key (DPoP); each request needs a proof".to_owned(),
            Some(Binding::Certificate(_)) => "to a client certificate".to_owned(),
        },
        Step::Signature => format!("good; the token's id in logs and locks is {}", caller.token_id()),
        Step::Length
        | Step::Form
        | Step::Answer
        | Step::Algorithm
        | Step::Type
        | Step::KeyId
        | Step::Key
        | Step::NotBefore
        | Step::IssuedAt
        | Step::Lifetime
        | Step::Kind
        | Step::Claims
        | Step::Binding
        | Step::Audience => String::new(),
    }
}

/// What whoever runs the relay can do, where that differs from what the bearer can.
fn fix(step: Step, issuer: &IssuerName) -> String {
    let key = |what: &str| {
        format!("or change {what} of issuer {issuer} in the configuration, if such tokens are meant")
    };
    match step {
        Step::Length => "have the issuer put fewer groups or roles into its tokens".to_owned(),
        Step::Form => {
            "show the access token; if the issuer gives opaque ones, say check = \"introspect\" or \"auto\""
                .to_owned()
        }
        Step::Answer => {
            "get a fresh token; if it is fresh, see whether the relay's client may introspect it".to_owned()
        }
        Step::Issuer => format!(
            "compare `iss` with `issuer` of {issuer}: every character counts; `also` takes further ones"
        ),
        Step::Algorithm => key("`algorithms`"),
        Step::Type => key("`token_type`"),
        Step::KeyId => key("`kid_missing`"),
        Step::Key => "get a fresh token; if that fails too, look at the keys above".to_owned(),
        Step::Signature => "the token was changed, or another issuer signed it: get a fresh one".to_owned(),
        Step::Expiry => "get a fresh one; if it is fresh, look at the clocks".to_owned(),
        Step::NotBefore | Step::IssuedAt => "look at the clocks of this machine and of the issuer".to_owned(),
        Step::Lifetime => key("`max_lifetime`"),
        Step::Subject => key("`subject_from`"),
        Step::AudienceClaim => key("`audience_claim`"),
        Step::Kind => "send the access token, not the ID token".to_owned(),
        Step::Claims => key("`require` and `forbid`"),
        Step::Client => key("`clients`"),
        Step::User => key("`user_from`"),
        Step::Names => key("`scope_from`, `roles_from` and `groups_from`"),
        Step::Binding => "have the issuer bind tokens by `jkt` (DPoP) or `x5t#S256` (mTLS)".to_owned(),
        Step::Audience => {
            format!("have the issuer give tokens for {issuer}'s `audience`, {}", key("`audience`"))
        }
        Step::Bound => key("`sender_constrained`"),
    }
}
