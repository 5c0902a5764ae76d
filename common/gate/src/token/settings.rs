//! Takes `[[issuers]]` as typed in relay.toml or agent.toml; gives what it means; refuses what cannot work or would be unsafe.
//!
//! A token type `""` means a header without `typ`. Keys that later issues deliver (`provider`, `check`, `introspect`, …) are unknown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use postern_base::config::Problem;
use postern_base::http_client::{is_loopback_host, root_store};
use postern_base::id::IssuerName;
use postern_base::value::{OneOrMany, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::claim::ClaimPath;
use super::key::Algorithm;

/// One issuer whose tokens are accepted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerFile {
    /// The short name that roles, rules and services use.
    pub name: IssuerName,
    /// The tokens' `iss`, exactly; keys are found from here by discovery (OpenID Connect, else RFC 8414).
    pub issuer: String,
    /// Whom tokens must be meant for (`aud`); a service may have its own.
    pub audience: OneOrMany<String>,
    /// Signature algorithms accepted. Default: `RS256`, `PS256`, `ES256`, `EdDSA`.
    pub algorithms: Option<OneOrMany<Algorithm>>,
    /// How far clocks may differ, at most 60s. Default: 30s.
    pub leeway: Option<Span>,
    /// The longest life of a token. Default: 24h.
    pub max_lifetime: Option<Span>,
    /// Header types accepted, in any case of letters; "" is a header without one. Default: at+jwt.
    pub token_type: Option<OneOrMany<String>>,
    /// Claims with scopes. Default: scope.
    pub scope_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with roles. Default: roles.
    pub roles_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with groups. Default: groups.
    pub groups_from: Option<OneOrMany<ClaimPath>>,
    /// Claims with the client, the first that is there. Default: `client_id`, `azp`.
    pub client_from: Option<OneOrMany<ClaimPath>>,
    /// The claim with what people call the caller; "email" counts only when verified. Default: sub.
    pub user_from: Option<ClaimPath>,
    /// Where keys come from and how long they last.
    #[serde(default)]
    pub jwks: JwksFile,
    /// PEM of the certificates that the issuer's own is signed by, besides the system's.
    pub ca: Option<PathBuf>,
    /// Whether the issuer's addresses may be private.
    #[serde(default)]
    pub private: bool,
    /// What clients are told, so that people can log in.
    pub login: Option<LoginFile>,
}

/// Where an issuer's keys come from and how long they last.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwksFile {
    /// The key set's address, where discovery does not say.
    pub uri: Option<String>,
    /// How long keys already known serve on while the issuer is down. Default: 24h.
    pub stale: Option<Span>,
}

/// How people log in with this issuer; published to clients.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginFile {
    /// The client's id at the issuer; a public client without a secret.
    pub client_id: String,
    /// Default: pkce and device.
    pub flows: Option<OneOrMany<LoginFlow>>,
    /// Default: `openid`, `offline_access` and all scopes that rules of this issuer name.
    pub scopes: Option<Vec<String>>,
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

/// An issuer, checked and complete.
#[derive(Debug, Clone, PartialEq)]
pub struct IssuerSettings {
    pub name: IssuerName,
    pub issuer: String,
    pub audience: Vec<String>,
    pub login: Option<LoginSettings>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) leeway: Duration,
    pub(super) max_lifetime: Duration,
    /// In lower case and without `application/`; the empty one is a header without `typ`.
    pub(super) token_types: Vec<String>,
    pub(super) scope_from: Vec<ClaimPath>,
    pub(super) roles_from: Vec<ClaimPath>,
    pub(super) groups_from: Vec<ClaimPath>,
    pub(super) client_from: Vec<ClaimPath>,
    pub(super) user_from: Option<ClaimPath>,
    pub(super) keys: KeySource,
}

/// All that decides which keys are fetched and kept: while this stays the same, a reload keeps them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeySource {
    pub(super) name: IssuerName,
    pub(super) issuer: String,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) uri: Option<Uri>,
    pub(super) stale: Duration,
    pub(super) ca: Option<Vec<u8>>,
    pub(super) private: bool,
}

/// How people log in with an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginSettings {
    pub client_id: String,
    pub flows: Vec<LoginFlow>,
    /// None: openid, `offline_access` and all scopes that rules of this issuer name.
    pub scopes: Option<Vec<String>>,
}

const DEFAULT_ALGORITHMS: [Algorithm; 4] =
    [Algorithm::Rs256, Algorithm::Ps256, Algorithm::Es256, Algorithm::EdDsa];
const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);
/// More would accept tokens long after their expiry (security.md 7).
const MAX_LEEWAY: Duration = Duration::from_mins(1);
const DEFAULT_LIFETIME: Duration = Duration::from_hours(24);
const DEFAULT_STALE: Duration = Duration::from_hours(24);

impl IssuerFile {
    /// What the entry means; relative paths start at `dir`. Problems are located from the entry on.
    pub fn settings(self, dir: &Path) -> Result<IssuerSettings, Problem> {
        let issuer = web_url(&self.issuer, "issuer")?;
        if issuer.query().is_some() {
            return Err(Problem::new("issuer", "an issuer has no query: write it exactly as tokens have it"));
        }
        let audience = self.audience.0;
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            return Err(Problem::new("audience", "name at least one audience, as tokens have it in aud"));
        }
        let algorithms = self.algorithms.map_or_else(|| DEFAULT_ALGORITHMS.to_vec(), |many| many.0);
        if algorithms.is_empty() {
            return Err(Problem::new("algorithms", "name at least one algorithm, or leave the key out"));
        }
        let leeway = self.leeway.map_or(DEFAULT_LEEWAY, |span| span.0);
        if leeway > MAX_LEEWAY {
            return Err(Problem::new("leeway", "at most 60s: set the clocks right instead"));
        }
        let max_lifetime = self.max_lifetime.map_or(DEFAULT_LIFETIME, |span| span.0);
        if max_lifetime.is_zero() {
            return Err(Problem::new("max_lifetime", "no token lives for no time: use a longer one"));
        }
        let token_types = self.token_type.map_or_else(|| vec!["at+jwt".to_owned()], |many| many.0);
        if token_types.is_empty() {
            return Err(Problem::new("token_type", "name at least one type, or leave the key out"));
        }
        let uri = match &self.jwks.uri {
            None => None,
            Some(text) => {
                web_url(text, "jwks.uri")?;
                Some(text.parse().map_err(|_| Problem::new("jwks.uri", format!("{text:?} is not a URL")))?)
            }
        };
        let ca = match &self.ca {
            None => None,
            Some(path) => Some(certificates(&dir.join(path)).map_err(|message| Problem::new("ca", message))?),
        };
        let claims = |given: Option<OneOrMany<ClaimPath>>, default: &[&str]| match given {
            Some(many) => many.0,
            None => default.iter().filter_map(|name| name.parse().ok()).collect(),
        };
        Ok(IssuerSettings {
            keys: KeySource {
                name: self.name.clone(),
                issuer: self.issuer.clone(),
                algorithms: algorithms.clone(),
                uri,
                stale: self.jwks.stale.map_or(DEFAULT_STALE, |span| span.0),
                ca,
                private: self.private,
            },
            name: self.name,
            issuer: self.issuer,
            audience,
            login: self.login.map(LoginFile::settings).transpose().map_err(|p| p.under("login"))?,
            algorithms,
            leeway,
            max_lifetime,
            token_types: token_types.iter().map(|text| normal_type(text)).collect(),
            scope_from: claims(self.scope_from, &["scope"]),
            roles_from: claims(self.roles_from, &["roles"]),
            groups_from: claims(self.groups_from, &["groups"]),
            client_from: claims(self.client_from, &["client_id", "azp"]),
            user_from: self.user_from,
        })
    }
}

impl LoginFile {
    fn settings(self) -> Result<LoginSettings, Problem> {
        if self.client_id.is_empty() {
            return Err(Problem::new("client_id", "write the client's id at the issuer"));
        }
        let flows = self.flows.map_or_else(|| vec![LoginFlow::Pkce, LoginFlow::Device], |many| many.0);
        if flows.is_empty() {
            return Err(Problem::new("flows", "name pkce, device or both, or leave the key out"));
        }
        Ok(LoginSettings { client_id: self.client_id, flows, scopes: self.scopes })
    }
}

/// A media type as RFC 7515 4.1.9 compares it: in any case of letters, `application/` left out.
pub(super) fn normal_type(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    lower.strip_prefix("application/").map_or_else(|| lower.clone(), str::to_owned)
}

/// https anywhere, http on loopback; nothing that two parsers could read differently.
fn web_url(text: &str, at: &str) -> Result<Url, Problem> {
    let refuse = |why: &str| Problem::new(at, format!("{text:?} {why}"));
    let url = Url::parse(text).map_err(|e| refuse(&format!("is not a URL: {e}")))?;
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => {}
        "http" if is_loopback_host(host) => {}
        "http" => return Err(refuse("must be https: plain http is for loopback only")),
        _ => return Err(refuse("must be an https URL")),
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refuse("holds blanks or characters that a URL has to escape"));
    }
    if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("must have neither user nor fragment"));
    }
    Ok(url)
}

fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|e| format!("{shown} cannot be read: {e}"))?;
    root_store(Some(&pem)).map_err(|e| format!("{shown}: {e}"))?;
    let begin = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(begin.len()).any(|window| window == begin) {
        return Err(format!(
            "{shown} holds no certificate: it should have -----BEGIN CERTIFICATE----- in it"
        ));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests;
