//! `[[issuers]]` as it is typed. Every key here does something; unknown ones are refused. What is left out is filled in by
//! `token/presets`, and can be written out again: `config check --expand` shows the result.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use postern_base::id::IssuerName;
use postern_base::secret::SecretRef;
use postern_base::value::{OneOrMany, Span};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::exchange::ExchangeFile;
use crate::token::claim::ClaimPath;
use crate::token::key::Algorithm;
use crate::token::presets::Provider;

/// One issuer whose tokens are accepted.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerFile {
    /// The short name that roles, rules and services use.
    pub name: IssuerName,
    /// Whose habits the keys below start from. Default: generic.
    pub provider: Option<Provider>,
    /// The tokens' `iss`, exactly; its endpoints are found from here.
    pub issuer: String,
    /// Other values of `iss` that mean the same issuer.
    pub also: Option<OneOrMany<String>>,
    /// Whom tokens must be meant for; a service may have its own.
    pub audience: OneOrMany<String>,
    /// The claims that say whom a token is meant for, such as `client_id` where there is no `aud`; the first that is there counts.
    /// Default: aud.
    pub audience_claim: Option<OneOrMany<ClaimPath>>,
    /// Clients whose tokens are taken. Default: all.
    pub clients: Option<OneOrMany<String>>,
    /// Where endpoints are found: `oidc` (OpenID Connect), `oauth` (RFC 8414), `auto` (the one, else the other) or `off`. Default: auto.
    pub discovery: Option<Discovery>,
    /// Where keys come from and how long they last.
    pub jwks: Option<JwksFile>,
    /// Tokens that do not name their key: `try` all that may be meant, or `refuse`. Default: try.
    pub kid_missing: Option<KidMissing>,
    /// Signature algorithms accepted. Default: `RS256`, `PS256`, `ES256`, `EdDSA`.
    pub algorithms: Option<OneOrMany<Algorithm>>,
    /// How tokens are checked: `jwt` (by their signature), `introspect` (by asking the issuer), `auto` (JWTs by their signature, all
    /// others by asking). Default: jwt.
    pub check: Option<Check>,
    /// How the issuer is asked about tokens (RFC 7662).
    pub introspect: Option<IntrospectFile>,
    /// As which client tokens are exchanged for others (RFC 8693), for services with `caller_token = "exchange"`.
    pub exchange: Option<ExchangeFile>,
    /// How far clocks may differ, at most 60s. Default: 30s.
    pub leeway: Option<Span>,
    /// The longest life of a token. Default: 24h.
    pub max_lifetime: Option<Span>,
    /// Header types accepted, in any case of letters; "" is a header without one. Default: at+jwt.
    pub token_type: Option<OneOrMany<String>>,
    /// Claims that a token must have, each with its value or one of several.
    pub require: Option<BTreeMap<ClaimPath, OneOrMany<Plain>>>,
    /// Claims that a token must not have, besides those that give an ID token away.
    pub forbid: Option<OneOrMany<ClaimPath>>,
    /// Claims with scopes. Default: scope.
    pub scope_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with roles. Default: roles.
    pub roles_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with groups. Default: groups.
    pub groups_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with the client, the first that is there. Default: `client_id`, `azp`.
    pub client_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with what the issuer knows the caller by, the first that is there. Default: sub.
    pub subject_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with what people call the caller, the first that is there; "email" counts only when verified. Default: the subject.
    pub user_from: Option<OneOrMany<ClaimPath>>,
    /// Whether tokens must be bound to a key of their bearer's (DPoP, mutual TLS). Default: optional.
    pub sender_constrained: Option<SenderConstrained>,
    /// PEM of the certificates that the issuer's own is signed by, besides the system's.
    pub ca: Option<PathBuf>,
    /// Whether the issuer's addresses may be private. Default: false.
    pub private: Option<bool>,
    /// What clients are told, so that people can log in.
    pub login: Option<LoginFile>,
}

/// Where an issuer's endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Discovery {
    /// In the OpenID Connect document, else in RFC 8414's.
    Auto,
    /// In the OpenID Connect document (Discovery 1.0, 4).
    Oidc,
    /// In the authorization server's metadata (RFC 8414 3).
    Oauth,
    /// Here in the file alone.
    Off,
}

/// What becomes of tokens that do not name their key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KidMissing {
    Try,
    Refuse,
}

/// How an issuer's tokens are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// By their signature; what is not a JWT is refused.
    Jwt,
    /// By asking the issuer, JWTs too.
    Introspect,
    /// JWTs by their signature, all others by asking.
    Auto,
}

/// Whether tokens must be bound to a key of their bearer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SenderConstrained {
    Optional,
    Required,
}

/// Where an issuer's keys come from and how long they last.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwksFile {
    /// The key set's address, where discovery does not say.
    pub uri: Option<String>,
    /// A file with the key set, re-read when it changes: no network is needed.
    pub file: Option<PathBuf>,
    /// How soon after a fetch an unknown key may cause the next, 5s to 10m. Default: 5s.
    pub min_ttl: Option<Span>,
    /// How soon keys are fetched again without being asked for, at most 24h: until then a key that the issuer withdrew may serve.
    /// Default: 10m.
    pub max_ttl: Option<Span>,
    /// How long keys already known serve on while the issuer is down. Default: 24h.
    pub stale: Option<Span>,
}

/// How an issuer is asked about tokens (RFC 7662).
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IntrospectFile {
    /// The address to ask, where discovery does not say.
    pub endpoint: Option<String>,
    /// The relay's own client id at the issuer; needed by all ways but `bearer`.
    pub client_id: Option<String>,
    /// That client's secret, for `basic` and `post`.
    pub client_secret: Option<SecretRef>,
    /// How the relay proves that it is that client. Default: basic.
    pub auth: Option<IntrospectAuth>,
    /// PEM of the private key, for `private_key_jwt` and `mtls`.
    pub key: Option<PathBuf>,
    /// The name under which the issuer knows that key, for `private_key_jwt`.
    pub kid: Option<String>,
    /// PEM of the certificate chain, for `mtls`.
    pub cert: Option<PathBuf>,
    /// A token of the relay's own, for `bearer`.
    pub token: Option<SecretRef>,
    /// How long a good answer is believed, never beyond the token's expiry. Default: 30s, which is the most.
    pub cache: Option<Span>,
    /// How long it is believed that a token is not good. Default: 10s; at most 30s.
    pub negative: Option<Span>,
}

/// How the relay proves to an issuer who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IntrospectAuth {
    /// Client id and secret, form-urlencoded, in HTTP Basic (RFC 6749 2.3.1).
    Basic,
    /// Client id and secret in the body.
    Post,
    /// A JWT signed by a key that the issuer knows (RFC 7523 2.2).
    PrivateKeyJwt,
    /// A TLS client certificate (RFC 8705 2).
    Mtls,
    /// A bearer token of the relay's own.
    Bearer,
}

/// How people log in with this issuer; published to clients.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginFile {
    /// The client's id at the issuer; a public client without a secret.
    pub client_id: String,
    /// Another client's id for the flow `device`, where the issuer wants one. Default: `client_id`.
    pub device_client_id: Option<String>,
    /// The ways to log in. Default: pkce and device; device alone where `provider` compares a redirect's path (okta, auth0, entra, cognito).
    pub flows: Option<OneOrMany<LoginFlow>>,
    /// The scopes that clients ask for. Default: `openid`, `offline_access` and all scopes that rules of this issuer name.
    pub scopes: Option<Vec<String>>,
    /// Whether tokens are asked for by `resource` (RFC 8707), which some issuers refuse. Default: true.
    pub resource: Option<bool>,
    /// What to send as `audience`, which some issuers want instead.
    pub audience: Option<String>,
}

/// A way to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LoginFlow {
    /// In a browser (RFC 8252, RFC 7636).
    Pkce,
    /// With a code on another device (RFC 8628).
    Device,
}

/// A value that a claim is compared with: text, whole number or truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Plain(Value);

impl From<&str> for Plain {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl Plain {
    /// Whether a claim says this: it is this value, or a list that holds it.
    pub(crate) fn is_said_by(&self, claim: &Value) -> bool {
        *claim == self.0 || claim.as_array().is_some_and(|all| all.contains(&self.0))
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a whole number, true or false")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
                Ok(text.into())
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
                Ok(number.into())
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
                Ok(number.into())
            }
        }
        deserializer.deserialize_any(Any).map(Self)
    }
}

impl JsonSchema for Plain {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Plain".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer", "boolean"] })
    }
}
