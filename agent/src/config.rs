//! agent.toml as it is typed: the file types and reading them. What the file means is in [`crate::settings`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_base::audit::RotateFile;
use postern_base::config::{ConfigError, Source};
use postern_base::id::ServiceName;
use postern_base::telemetry::LogFormat;
use postern_base::value::{OneOrMany, Span};
use postern_gate::token::settings::IssuerFile;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::settings::Settings;

pub mod service;

pub use service::ServiceFile;

/// A commented configuration that `config check` accepts.
pub const EXAMPLE: &str = include_str!("../example.toml");

/// agent.toml.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// The version of this format: 1.
    pub version: u8,
    /// `host[:port]` of a relay, or a list: tunnels to each. Port 443 where none is given.
    pub relay: OneOrMany<String>,
    /// Key, certificate and pinned root; 0700.
    pub state: PathBuf,
    /// The HTTP proxy on the way out, for tunnels over TCP and for `[[issuers]]`: `"env"` (`HTTPS_PROXY`, `NO_PROXY`; the default), a URL, or `"off"`.
    pub proxy: Option<String>,
    /// A certificate that is made elsewhere, with this agent's SPIFFE name: read again when it changes, and neither joined for nor renewed.
    pub identity: Option<IdentityFile>,
    /// The services that this agent can reach; nothing else is ever connected to.
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceFile>,
    /// How relays are reached.
    #[serde(default)]
    pub tunnel: TunnelFile,
    /// Whose tokens services with `verify` take; the same keys as a relay's. `jwks = { file = "…" }` where there is no way to the issuer.
    #[serde(default)]
    pub issuers: Vec<IssuerFile>,
    /// The agent's own audit log.
    #[serde(default)]
    pub audit: AuditFile,
    /// What the process says of itself.
    #[serde(default)]
    pub telemetry: TelemetryFile,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityFile {
    /// The agent's certificate and what lies between it and the bundle, PEM, leaf first; its one name is
    /// `spiffe://TRUST-DOMAIN/agent/NAME/INSTANCE`.
    pub cert: PathBuf,
    /// Its key, PEM; 0600.
    pub key: PathBuf,
    /// The roots that relays are judged by, PEM.
    pub bundle: PathBuf,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    /// One JSON line per request and per head of a relay's audit log; `audit.jsonl` in the state directory by default, `-` is stdout,
    /// `off` for none.
    pub file: Option<PathBuf>,
    /// When a file is put aside and when it goes.
    pub rotate: Option<RotateFile>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelFile {
    /// Tunnels to each relay; 2 by default, so that one may break.
    pub connections: Option<usize>,
    /// `"auto"` (the default: QUIC, and TCP where UDP does not get through), `"quic"` or `"tcp"`.
    #[serde(default)]
    pub transport: Transport,
    /// How long a tunnel stays on TCP before QUIC is tried again; 2 minutes by default.
    pub retry_quic: Option<Span>,
    /// How long a drain may take; default 20s.
    pub drain: Option<Span>,
}

/// What tunnels run over.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    Auto,
    Quic,
    Tcp,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryFile {
    /// `error`, `warn`, `info`, `debug` or `trace`; default info.
    pub log: Option<String>,
    /// How log lines look; default text.
    #[serde(default)]
    pub format: LogFormat,
    /// `/metrics`, `/healthz` and `/readyz`; left out = off.
    pub metrics: Option<String>,
}

/// A configuration that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Arc<Settings>,
    pub warnings: Vec<String>,
}

/// Reads and checks a configuration; changes nothing.
///
/// # Errors
/// Every mistake found, each with its place; at least one.
pub fn load(path: &Path) -> Result<Loaded, Vec<ConfigError>> {
    check(&Source::read(path).map_err(|e| vec![e])?)
}

/// The same for a text that is not the file's yet.
///
/// # Errors
/// As of [`load`].
pub fn check(source: &Source) -> Result<Loaded, Vec<ConfigError>> {
    let file: AgentFile = source.parse().map_err(|e| vec![e])?;
    let settings = Settings::new(&file, &source.dir())
        .map_err(|problems| problems.into_iter().map(|p| source.locate(p)).collect::<Vec<_>>())?;
    let warnings = if settings.services.is_empty() {
        vec!["no services: this agent will serve nothing; add [services.NAME] with an upstream".to_owned()]
    } else {
        Vec::new()
    };
    Ok(Loaded { settings: Arc::new(settings), warnings })
}
