//! relay.toml as it is typed. Every key here does something; unknown ones are refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postern_base::audit::{RotateFile, WhenFull};
use postern_base::id::{AgentName, IssuerName, ServiceName};
use postern_base::telemetry::LogFormat;
use postern_base::value::{OneOrMany, OrOff, Size, Span};
use postern_gate::path::PathMode;
use postern_gate::policy::{RoleFile, RuleFile, ServiceKind, TestFile};
use postern_gate::token::ClaimPath;
use postern_gate::token::DpopFile;
use postern_gate::token::settings::IssuerFile;
use schemars::JsonSchema;
use serde::Deserialize;

mod agents;

pub use agents::AgentsFile;

/// relay.toml.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RelayFile {
    /// The version of this format: 1.
    pub version: u8,
    /// The relay's public address, such as `https://relay.example.com`.
    pub url: String,
    /// Files with `[services]` and `[[tests]]` only, relative to this one; the last part may be `*.toml`.
    #[serde(default)]
    pub include: Vec<String>,
    /// Where the relay listens.
    pub listen: ListenFile,
    /// The certificate that callers see.
    pub tls: TlsFile,
    /// What must survive a restart.
    pub state: StateFile,
    /// How agents are known.
    pub agents: AgentsFile,
    /// Whose tokens are taken; a token's `iss` picks one.
    #[serde(default)]
    pub issuers: Vec<IssuerFile>,
    #[serde(default)]
    pub dpop: DpopFile,
    /// Who is what.
    #[serde(default)]
    pub roles: BTreeMap<String, RoleFile>,
    /// What callers can reach, by name.
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceFile>,
    /// Rules for all services; `deny` only.
    #[serde(default)]
    pub rules: Vec<RuleFile>,
    /// Run by `config check`, `policy test`, at start and at each reload.
    #[serde(default)]
    pub tests: Vec<TestFile>,
    /// What all callers together may take.
    #[serde(default)]
    pub limits: LimitsFile,
    /// The audit log.
    #[serde(default)]
    pub audit: AuditFile,
    /// What the process says of itself.
    #[serde(default)]
    pub telemetry: TelemetryFile,
}

/// A file named by `include`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IncludeFile {
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceFile>,
    #[serde(default)]
    pub tests: Vec<TestFile>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenFile {
    /// Callers, and agents where UDP is blocked: TCP address and port. Port 0 picks one and says which.
    pub https: String,
    /// Agents: UDP address and port.
    pub quic: String,
    /// `/metrics`, `/healthz` and `/readyz`; left out = off.
    pub metrics: Option<String>,
    /// Balancers in front of `https`, as networks: from these addresses a PROXY protocol header, version 2, is required, and from no others.
    /// QUIC knows no such header: a balancer must pass UDP on with the address that it came from.
    #[serde(default)]
    pub proxy_protocol: Vec<String>,
    /// Proxies in front of `https` that end TLS themselves, as networks: of what they send in X-Forwarded-For the right-most address
    /// that is not one of theirs is the caller's, in rules, limits and audit. From nobody else is the field believed.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Certificate and key from files, re-read when they change.
    Files,
    /// `tls/cert.pem` in the state directory, made by `init`, for clients that are given it with `--ca`.
    SelfSigned,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// `files`: `cert` and `key`, read again when they change; `self-signed`: `tls/cert.pem` in the state directory, made by `init`.
    pub mode: TlsMode,
    /// PEM of the certificate and its chain, for `files`.
    pub cert: Option<PathBuf>,
    /// PEM of its private key, for `files`.
    pub key: Option<PathBuf>,
    /// Whether connections to the relay's own host are asked for a client certificate, for tokens that are bound to one (RFC 8705). Any
    /// is taken: what counts is that its key is there.
    #[serde(default)]
    pub client_certificates: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// Invites, agents and the issuing CA.
    pub dir: PathBuf,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceFile {
    /// A line for people.
    pub about: Option<String>,
    /// The agents that may serve it.
    pub agent: OneOrMany<AgentName>,
    /// What it speaks: `http`, or `tcp` for a service that callers reach by `postern forward` and `postern connect`.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Host names of its own; one leading wildcard label is allowed.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// A path prefix on the relay's host; default `/<name>` for services without hosts.
    pub path: Option<String>,
    /// Whether the upstream sees paths without that prefix; default true.
    pub strip_prefix: Option<bool>,
    /// Whose tokens it accepts; required when there are several issuers.
    #[serde(default)]
    pub issuers: Vec<IssuerName>,
    /// The audience its tokens must carry, instead of the issuer's.
    #[serde(default)]
    pub audience: Vec<String>,
    /// Callers whom no rule names get 404, not 403.
    #[serde(default)]
    pub hidden: bool,
    /// Whether connections to its own hosts are asked for a client certificate, for tokens that are bound to one (RFC 8705). What callers
    /// ask of the relay itself (renewing live streams, too) they ask at its own host: see `tls`.
    #[serde(default)]
    pub client_certificates: bool,
    /// How much ambiguity in a path it puts up with; default strict.
    pub paths: Option<PathMode>,
    /// Whether the caller's own token goes further than the relay, and in which form; default none.
    #[serde(default)]
    pub caller_token: CallerToken,
    /// What `caller_token = "exchange"` asks the token's issuer for (RFC 8693).
    pub exchange: Option<ExchangeFile>,
    /// Web pages that may call it.
    pub cors: Option<CorsFile>,
    /// Header names under which the upstream learns who calls.
    #[serde(default)]
    pub send: SendFile,
    /// Request fields that never reach the upstream.
    #[serde(default)]
    pub strip_request: Vec<String>,
    /// Response fields that never reach the caller.
    #[serde(default)]
    pub strip_response: Vec<String>,
    /// What its callers may take.
    #[serde(default)]
    pub limit: ServiceLimitFile,
    /// Who may do what; without a rule nobody may do anything.
    #[serde(default)]
    pub rules: Vec<RuleFile>,
}

/// Whether the caller's own token goes further than the relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CallerToken {
    /// It ends here.
    #[default]
    None,
    /// To the agent, which decides again on it (`verify` in agent.toml).
    Agent,
    /// To the upstream, as it came.
    Upstream,
    /// The upstream gets another one, for which the issuer exchanges it.
    Exchange,
}

/// The token that the upstream gets instead of the caller's (RFC 8693, 2.1); audience or resource must be there.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeFile {
    /// The upstream's name at the issuer.
    pub audience: Option<String>,
    /// The upstream's address, as the issuer knows it.
    pub resource: Option<String>,
    /// The scopes asked for, separated by blanks; default: what the issuer gives.
    pub scope: Option<String>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsFile {
    /// Origins, such as `https://app.example.com`.
    pub origins: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendFile {
    /// The field with the user's name.
    pub user: Option<String>,
    /// The field with the policy's roles.
    pub roles: Option<String>,
    /// Field names, and the claim that each carries.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimPath>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceLimitFile {
    /// The largest request body; default none.
    pub body: Option<OrOff<Size>>,
    /// How long the first byte of the answer may take; default 30s.
    pub first_byte: Option<OrOff<Span>>,
    /// How long nothing may move in a body or a WebSocket; default 5m.
    pub idle: Option<OrOff<Span>>,
    /// Requests and streams at once, from all callers; default none.
    pub concurrent: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Threads, each with a runtime of its own; 0 = one per core; default 0.
    pub workers: Option<usize>,
    /// Callers' connections in all; default 20000.
    pub connections: Option<usize>,
    /// Callers' connections per address (IPv6: per /64); default 2048.
    pub per_address: Option<usize>,
    /// Requests in flight; default 10000.
    pub requests: Option<usize>,
    /// How long the TLS handshake may take; default 5s.
    pub handshake: Option<Span>,
    /// From the end of TLS to the first byte; default 10s.
    pub first_byte_in: Option<Span>,
    /// How long a request's head may take; default 10s.
    pub head: Option<Span>,
    /// Between two bytes of a request body; default 15s.
    pub body_stall: Option<Span>,
    /// Between two requests of a connection; default 60s.
    pub keepalive: Option<Span>,
    /// Bytes of a request's header fields; default 32KiB.
    pub headers: Option<Size>,
    /// Number of a request's header fields; default 100.
    pub fields: Option<usize>,
    /// Failed authentications before 429; default `20/s per address`.
    pub failed_auth: Option<String>,
    /// How long an answer that began in its token's time may go on after it; default 1h.
    pub lease_grace: Option<Span>,
    /// How long a drain may take; default 20s.
    pub drain: Option<Span>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    /// One JSON line per decision and per finished request; `-` is stdout.
    pub file: PathBuf,
    /// When a file is put aside and when it goes.
    pub rotate: Option<RotateFile>,
    /// What lines name by a keyed pseudonym instead: `subject` (and user), `address`, `path` (the rule's pattern, where one allowed it).
    #[serde(default)]
    pub redact: Vec<RedactFile>,
    /// Room held from the start for the day when the disk is full; 64MiB by default.
    pub reserve: Option<OrOff<Size>>,
    /// What happens when the reserve is gone too: `block` (the default) refuses requests, `drop` goes on and counts what is missing.
    #[serde(default)]
    pub full: WhenFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RedactFile {
    Subject,
    Address,
    Path,
}

impl Default for AuditFile {
    fn default() -> Self {
        Self {
            file: PathBuf::from("-"),
            rotate: None,
            redact: Vec::new(),
            reserve: None,
            full: WhenFull::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryFile {
    /// `error`, `warn`, `info`, `debug` or `trace`; default info.
    pub log: Option<String>,
    /// How log lines look; default text.
    #[serde(default)]
    pub format: LogFormat,
}
