//! Takes an issuer's entry as it was typed; gives it with everything that was left out filled in: by the habits of its provider, and
//! where that has none by the defaults. What was typed stays as it was.

use std::time::Duration;

use postern_base::value::{OneOrMany, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::claim::ClaimPath;
use super::key::Algorithm;
use super::settings::{
    Check, Discovery, IntrospectAuth, IntrospectFile, IssuerFile, JwksFile, KidMissing, LoginFile, LoginFlow,
    Plain, SenderConstrained,
};

/// A kind of issuer whose habits are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Header type JWT with the payload's `typ` Bearer (DPoP for bound tokens), realm roles, the client in `azp`.
    Keycloak,
    /// No header type, scopes in `scp`, the client in `cid`.
    Okta,
    /// Header type JWT, permissions of the user beside scopes of the client; logs in by `audience`.
    Auth0,
    /// Header type JWT, scopes in `scp`, the client in `azp` (v2) or `appid` (v1).
    Entra,
    /// No header type and no `aud`; `token_use` tells access tokens.
    Cognito,
    /// Access tokens are ID tokens by all that is in them: only the issuer can tell, so it is asked.
    Dex,
    /// Access tokens are opaque: the issuer is asked.
    Google,
    /// Nothing but the standards (RFC 9068).
    Generic,
}

/// What an issuer does unless it was set up otherwise.
struct Habits {
    check: Check,
    token_type: &'static [&'static str],
    require: &'static [(&'static str, &'static [&'static str])],
    audience_claim: &'static [&'static str],
    scope_from: &'static [&'static str],
    roles_from: &'static [&'static str],
    groups_from: &'static [&'static str],
    client_from: &'static [&'static str],
    /// None: the same as the subject.
    user_from: &'static [&'static str],
    /// Whether it takes, or at least ignores, `resource` in a login (RFC 8707).
    resource: bool,
    /// Whether it wants `audience` in a login.
    asks_audience: bool,
    /// Whether a redirect's path must be one that it was told, as the client's cannot be (RFC 8252 7.3 frees the port alone).
    exact_redirects: bool,
}

const GENERIC: Habits = Habits {
    check: Check::Jwt,
    token_type: &["at+jwt"],
    require: &[],
    audience_claim: &["aud"],
    scope_from: &["scope"],
    roles_from: &["roles"],
    groups_from: &["groups"],
    client_from: &["client_id", "azp"],
    user_from: &[],
    resource: true,
    asks_audience: false,
    exact_redirects: false,
};

const ALGORITHMS: [Algorithm; 4] = [Algorithm::Rs256, Algorithm::Ps256, Algorithm::Es256, Algorithm::EdDsa];
const LEEWAY: Duration = Duration::from_secs(30);
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// How often an unknown key may cause a fetch (security.md 8); it may be less often, never more.
pub(super) const MIN_TTL: Duration = Duration::from_secs(5);
/// How soon a key that the issuer withdrew is forgotten.
const MAX_TTL: Duration = Duration::from_mins(10);
const STALE: Duration = Duration::from_hours(24);
/// How long a revocation at the issuer may go unnoticed.
const CACHE: Duration = Duration::from_secs(30);
/// Shorter: a token may be asked about a moment before it is good.
const NEGATIVE: Duration = Duration::from_secs(10);

impl Provider {
    fn habits(self) -> Habits {
        match self {
            Self::Keycloak => Habits {
                token_type: &["JWT", "at+jwt"],
                require: &[("typ", &["Bearer", "DPoP"])],
                roles_from: &["realm_access.roles"],
                client_from: &["azp", "client_id"],
                user_from: &["preferred_username"],
                ..GENERIC
            },
            Self::Okta => Habits {
                token_type: &["", "at+jwt"],
                scope_from: &["scp"],
                client_from: &["cid"],
                exact_redirects: true,
                ..GENERIC
            },
            Self::Auth0 => Habits {
                token_type: &["JWT", "at+jwt"],
                // What the user may do; `scope` says how much of it the client was given.
                roles_from: &["permissions"],
                client_from: &["azp", "client_id"],
                asks_audience: true,
                exact_redirects: true,
                ..GENERIC
            },
            Self::Entra => Habits {
                token_type: &["JWT"],
                scope_from: &["scp"],
                client_from: &["azp", "appid"],
                user_from: &["preferred_username", "upn"],
                resource: false,
                exact_redirects: true,
                ..GENERIC
            },
            Self::Cognito => Habits {
                token_type: &["", "JWT"],
                require: &[("token_use", &["access"])],
                audience_claim: &["aud", "client_id"],
                groups_from: &["cognito:groups"],
                client_from: &["client_id"],
                user_from: &["username"],
                exact_redirects: true,
                ..GENERIC
            },
            Self::Dex => Habits {
                check: Check::Introspect,
                require: &[("token_use", &["access_token"])],
                groups_from: &["ext.groups"],
                client_from: &["client_id"],
                user_from: &["username"],
                ..GENERIC
            },
            Self::Google => Habits {
                check: Check::Introspect,
                audience_claim: &["aud", "client_id"],
                client_from: &["client_id"],
                user_from: &["username"],
                resource: false,
                ..GENERIC
            },
            Self::Generic => GENERIC,
        }
    }
}

fn paths(names: &[&str]) -> OneOrMany<ClaimPath> {
    OneOrMany(names.iter().filter_map(|name| name.parse().ok()).collect())
}

impl IssuerFile {
    /// The same entry with every key said. Keys that mean nothing for the way in which tokens are checked stay out.
    #[must_use]
    pub fn filled(mut self) -> Self {
        let habits = self.provider.get_or_insert(Provider::Generic).habits();
        let check = *self.check.get_or_insert(habits.check);
        self.also.get_or_insert_default();
        self.audience_claim.get_or_insert_with(|| paths(habits.audience_claim));
        self.discovery.get_or_insert(Discovery::Auto);
        if check != Check::Introspect {
            self.jwks = Some(self.jwks.unwrap_or_default().filled());
            self.kid_missing.get_or_insert(KidMissing::Try);
            self.algorithms.get_or_insert_with(|| OneOrMany(ALGORITHMS.to_vec()));
            self.token_type.get_or_insert_with(|| {
                OneOrMany(habits.token_type.iter().map(|text| (*text).to_owned()).collect())
            });
        }
        self.introspect = self.introspect.map(IntrospectFile::filled);
        self.leeway.get_or_insert(Span(LEEWAY));
        self.max_lifetime.get_or_insert(Span(MAX_LIFETIME));
        self.require.get_or_insert_with(|| {
            let values = |all: &[&str]| OneOrMany(all.iter().map(|one| Plain::from(*one)).collect());
            let required = habits.require.iter();
            required.filter_map(|(name, all)| Some((name.parse().ok()?, values(all)))).collect()
        });
        self.forbid.get_or_insert_default();
        self.scope_from.get_or_insert_with(|| paths(habits.scope_from));
        self.roles_from.get_or_insert_with(|| paths(habits.roles_from));
        self.groups_from.get_or_insert_with(|| paths(habits.groups_from));
        self.client_from.get_or_insert_with(|| paths(habits.client_from));
        let subject = self.subject_from.get_or_insert_with(|| paths(&["sub"]));
        if habits.user_from.is_empty() {
            self.user_from.get_or_insert_with(|| subject.clone());
        } else {
            self.user_from.get_or_insert_with(|| paths(habits.user_from));
        }
        self.sender_constrained.get_or_insert(SenderConstrained::Optional);
        self.private.get_or_insert_default();
        let audience = self.audience.0.first().filter(|_| habits.asks_audience).cloned();
        self.login = self.login.map(|login| login.filled(&habits, audience));
        self
    }
}

impl JwksFile {
    fn filled(mut self) -> Self {
        if self.file.is_none() {
            self.min_ttl.get_or_insert(Span(MIN_TTL));
            self.max_ttl.get_or_insert(Span(MAX_TTL));
        }
        self.stale.get_or_insert(Span(STALE));
        self
    }
}

impl IntrospectFile {
    fn filled(mut self) -> Self {
        self.auth.get_or_insert(IntrospectAuth::Basic);
        self.cache.get_or_insert(Span(CACHE));
        self.negative.get_or_insert(Span(NEGATIVE));
        self
    }
}

impl LoginFile {
    /// `scopes` stays out: it then grows with the rules.
    fn filled(mut self, habits: &Habits, audience: Option<String>) -> Self {
        let pkce = Some(LoginFlow::Pkce).filter(|_| !habits.exact_redirects);
        self.flows.get_or_insert_with(|| OneOrMany(pkce.into_iter().chain([LoginFlow::Device]).collect()));
        self.resource.get_or_insert(habits.resource);
        self.audience = self.audience.or(audience);
        self
    }
}

#[cfg(test)]
mod tests;
