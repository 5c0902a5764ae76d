//! `[services.NAME]` of agent.toml as it is typed. What it means is in [`crate::settings::service`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use postern_base::id::IssuerName;
use postern_base::secret::SecretRef;
use postern_base::value::{OneOrMany, Span};
use postern_gate::policy::RuleFile;
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceFile {
    /// `http://host:port`, `https://host:port`, `h2c://host:port` (HTTP/2 without TLS), `h2://host:port` (HTTP/2 over TLS), `unix:/path`,
    /// or `tcp://host:port` for a TCP service; or a list of one kind, over which requests are spread.
    pub upstream: OneOrMany<String>,
    /// The agent's own ceiling, whatever a relay allows: `"GET,POST /v1/**"`, or a list. Left out = everything.
    #[serde(default)]
    pub only: OneOrMany<String>,
    /// How TLS is spoken with the upstream.
    #[serde(default)]
    pub tls: TlsFile,
    /// Header fields that are added here, and where their secret values are kept; callers and relays never see them.
    #[serde(default)]
    pub inject: BTreeMap<String, SecretRef>,
    /// `Host` for the upstream; left out = the caller's.
    pub host: Option<String>,
    /// Checks that find out whether the upstream serves; left out = none.
    pub health: Option<HealthFile>,
    /// What requests to it may take.
    #[serde(default)]
    pub limit: LimitFile,
    /// Decide again, here, on the caller's own token; left out = the relay's decision is enough. The relay must send it: `caller_token =
    /// "agent"` in relay.toml.
    pub verify: Option<VerifyFile>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyFile {
    /// Whose tokens; may be left out where there is one entry in `[[issuers]]`.
    #[serde(default)]
    pub issuers: OneOrMany<IssuerName>,
    /// Whom its tokens must be meant for, instead of the issuer's list.
    #[serde(default)]
    pub audience: OneOrMany<String>,
    /// The service's public addresses, for proofs of possession (DPoP): what follows one of them is what the upstream is asked for.
    #[serde(default)]
    pub urls: OneOrMany<String>,
    /// Who may do what, as in relay.toml, without roles, `from`, `rate` and `quota`; left out = a good token is enough.
    #[serde(default)]
    pub rules: Vec<RuleFile>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// PEM of the certificate authority that the upstream's certificate comes from, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The name in the upstream's certificate, where it is not the host of `upstream`.
    pub server_name: Option<String>,
    /// PEM of the certificate, with its chain, that this agent shows the upstream; `key` belongs to it.
    pub cert: Option<PathBuf>,
    /// PEM of the private key of `cert`.
    pub key: Option<PathBuf>,
    /// The oldest version of TLS that is spoken with the upstream; 1.2 by default.
    pub min_version: Option<TlsVersion>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V12,
    #[serde(rename = "1.3")]
    V13,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthFile {
    /// A path that answers GET with a status from 200 to 399 while the service works; left out = a connection is enough.
    pub path: Option<String>,
    /// How often each address is looked at; 10 s by default.
    pub every: Option<Span>,
    /// Failed checks in a row after which an address is left out until a check succeeds; 3 by default.
    pub unhealthy_after: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitFile {
    /// Requests or connections at once; the next one is turned away. Left out = no limit.
    pub concurrent: Option<usize>,
    /// Connecting to one address of the upstream, name and TLS included; 3 s by default.
    pub connect: Option<Span>,
    /// From the end of the request to the first byte of the answer; 30 s by default.
    pub first_byte: Option<Span>,
    /// How long an answer or an upgraded connection may stand still; 5 m by default.
    pub idle: Option<Span>,
}
