//! relay.toml as it is typed: the file types, reading it with its includes, and the checks that need the whole of it. What the file
//! means is in [`crate::settings`]; nothing else of the program sees these types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_base::config::{ConfigError, Problem, Source};
use postern_base::id::{AgentName, IssuerName, ServiceName, TrustDomain};
use postern_base::telemetry::LogFormat;
use postern_base::value::{OneOrMany, Size, Span};
use postern_gate::policy::{Policy, PolicySource, RoleFile, RuleFile, ServiceRules, TestFile};
use postern_gate::token::settings::IssuerFile;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::settings::{self, Settings};

/// A commented configuration that `config check` accepts.
pub const EXAMPLE: &str = include_str!("../example.toml");

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
    pub listen: ListenFile,
    pub tls: TlsFile,
    pub state: StateFile,
    pub agents: AgentsFile,
    #[serde(default)]
    pub issuers: Vec<IssuerFile>,
    /// Who is what.
    #[serde(default)]
    pub roles: BTreeMap<String, RoleFile>,
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceFile>,
    /// Rules for all services; `deny` only.
    #[serde(default)]
    pub rules: Vec<RuleFile>,
    /// Run by `config check`, `policy test`, at start and at each reload.
    #[serde(default)]
    pub tests: Vec<TestFile>,
    #[serde(default)]
    pub limits: LimitsFile,
    #[serde(default)]
    pub audit: AuditFile,
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
    /// Callers: TCP address and port. Port 0 picks one and says which.
    pub https: String,
    /// Agents: UDP address and port.
    pub quic: String,
    /// `/metrics`, `/healthz` and `/readyz`; left out = off.
    pub metrics: Option<String>,
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
    pub mode: TlsMode,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// Invites, agents and the issuing CA.
    pub dir: PathBuf,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentsFile {
    pub trust_domain: TrustDomain,
    /// How long an agent's certificate lives; renewed at half-life.
    #[serde(default = "AgentsFile::cert_ttl")]
    pub cert_ttl: Span,
    #[serde(default = "AgentsFile::invite_ttl")]
    pub invite_ttl: Span,
}

impl AgentsFile {
    fn cert_ttl() -> Span {
        Span(settings::CERT_TTL)
    }
    fn invite_ttl() -> Span {
        Span(settings::INVITE_TTL)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PathsFile {
    #[default]
    Strict,
    Loose,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceFile {
    /// A line for people.
    pub about: Option<String>,
    /// The agents that may serve it.
    pub agent: OneOrMany<AgentName>,
    /// Host names of its own; one leading wildcard label is allowed.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// A path prefix on the relay's host; default `/<name>` for services without hosts.
    pub path: Option<String>,
    #[serde(default = "ServiceFile::strip_prefix")]
    pub strip_prefix: bool,
    /// Whose tokens it accepts; required when there are several issuers.
    #[serde(default)]
    pub issuers: Vec<IssuerName>,
    /// The audience its tokens must carry, instead of the issuer's.
    #[serde(default)]
    pub audience: Vec<String>,
    /// Callers whom no rule names get 404, not 403.
    #[serde(default)]
    pub hidden: bool,
    #[serde(default)]
    pub paths: PathsFile,
    /// Header names under which the upstream learns who calls.
    #[serde(default)]
    pub send: SendFile,
    /// Request fields that never reach the upstream.
    #[serde(default)]
    pub strip_request: Vec<String>,
    /// Response fields that never reach the caller.
    #[serde(default)]
    pub strip_response: Vec<String>,
    #[serde(default)]
    pub limit: ServiceLimitFile,
    #[serde(default)]
    pub rules: Vec<RuleFile>,
}

impl ServiceFile {
    fn strip_prefix() -> bool {
        true
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendFile {
    pub user: Option<String>,
    pub roles: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceLimitFile {
    /// The largest request body; default none.
    pub body: Option<Size>,
    /// How long the first byte of the answer may take.
    pub first_byte: Option<Span>,
    /// How long nothing may move in a body.
    pub idle: Option<Span>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Threads, each with a runtime of its own; 0 = one per core.
    pub workers: Option<usize>,
    /// Callers' connections in all.
    pub connections: Option<usize>,
    /// Callers' connections per address (IPv6: per /64).
    pub per_address: Option<usize>,
    /// Requests in flight.
    pub requests: Option<usize>,
    /// The TLS handshake.
    pub handshake: Option<Span>,
    /// From the end of TLS to the first byte.
    pub first_byte_in: Option<Span>,
    /// A request's head.
    pub head: Option<Span>,
    /// Between two bytes of a request body.
    pub body_stall: Option<Span>,
    /// Between two requests of a connection.
    pub keepalive: Option<Span>,
    /// Bytes of a request's header fields.
    pub headers: Option<Size>,
    /// Number of a request's header fields.
    pub fields: Option<usize>,
    /// Failed authentications, such as `20/s per address`.
    pub failed_auth: Option<String>,
    /// How long a drain may take.
    pub drain: Option<Span>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    /// One JSON line per decision and per finished request; `-` is stdout.
    pub file: PathBuf,
}

impl Default for AuditFile {
    fn default() -> Self {
        Self { file: PathBuf::from("-") }
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryFile {
    /// error, warn, info, debug or trace.
    pub log: Option<String>,
    #[serde(default)]
    pub format: LogFormat,
}

/// A configuration that passed every check, its own tests included.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Arc<Settings>,
    pub policy: Arc<Policy>,
    pub warnings: Vec<String>,
}

/// Reads, parses, compiles and tests a configuration; changes nothing.
///
/// # Errors
/// Every mistake found, each with its place; at least one.
pub fn load(path: &Path) -> Result<Loaded, Vec<ConfigError>> {
    check(&read(path).map_err(|e| vec![e])?)
}

/// The main file, its includes, and which file each service and test came from.
#[derive(Debug)]
struct Files {
    main: Source,
    file: RelayFile,
    services: BTreeMap<ServiceName, (Arc<Source>, ServiceFile)>,
    /// Source and index there, in the order in which the policy sees them.
    tests: Vec<(Arc<Source>, usize, TestFile)>,
}

fn read(path: &Path) -> Result<Files, ConfigError> {
    let main = Source::read(path)?;
    let mut file: RelayFile = main.parse()?;
    if file.version != 1 {
        return Err(main.locate(Problem::new("version", "this relay reads version = 1")));
    }
    let shared = Arc::new(main.clone());
    let mut services: BTreeMap<_, _> = std::mem::take(&mut file.services)
        .into_iter()
        .map(|(name, service)| (name, (shared.clone(), service)))
        .collect();
    let mut tests: Vec<_> = std::mem::take(&mut file.tests)
        .into_iter()
        .enumerate()
        .map(|(n, test)| (shared.clone(), n, test))
        .collect();
    for (index, pattern) in file.include.iter().enumerate() {
        let at = |message: String| main.locate(Problem::new(&format!("include.{index}"), message));
        for path in expand(&main.dir(), pattern).map_err(at)? {
            let source = Arc::new(Source::read(&path)?);
            let included: IncludeFile = source.parse()?;
            for (name, service) in included.services {
                if let Some((first, _)) = services.get(&name) {
                    let message = format!("service {name} is already in {}", first.file());
                    return Err(
                        source.locate(Problem { at: vec!["services".into(), name.to_string()], message })
                    );
                }
                services.insert(name, (source.clone(), service));
            }
            tests.extend(included.tests.into_iter().enumerate().map(|(n, test)| (source.clone(), n, test)));
        }
    }
    Ok(Files { main, file, services, tests })
}

/// The files that an include names; a pattern may match none, a plain name must exist.
fn expand(dir: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = dir.join(pattern);
    let Some(suffix) =
        path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('*'))
    else {
        return if pattern.contains('*') {
            Err("only the last part may be a pattern, such as \"services.d/*.toml\"".to_owned())
        } else {
            Ok(vec![path])
        };
    };
    let parent = path.parent().unwrap_or(dir);
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(format!("{}: {e}", parent.display())),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|p| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(suffix) && !n.starts_with('.'))
        })
        .collect();
    found.sort();
    Ok(found)
}

fn check(files: &Files) -> Result<Loaded, Vec<ConfigError>> {
    let locate = |problem: Problem| files.locate(problem);
    let settings =
        Settings::new(&files.file, files.services.iter().map(|(name, (_, s))| (name, s)), &files.main.dir())
            .map_err(|problems| problems.into_iter().map(locate).collect::<Vec<_>>())?;
    let rules_of = |service: &ServiceFile| ServiceRules {
        issuers: service.issuers.clone(),
        hidden: service.hidden,
        rules: service.rules.clone(),
    };
    let source = PolicySource {
        issuers: settings.issuers.iter().map(|issuer| issuer.name.clone()).collect(),
        roles: files.file.roles.clone(),
        services: files.services.iter().map(|(name, (_, s))| (name.clone(), rules_of(s))).collect(),
        rules: files.file.rules.clone(),
        tests: files.tests.iter().map(|(_, _, test)| test.clone()).collect(),
    };
    let policy =
        Policy::compile(source).map_err(|problems| problems.into_iter().map(locate).collect::<Vec<_>>())?;
    let failed: Vec<ConfigError> = policy
        .run_tests()
        .into_iter()
        .enumerate()
        .filter(|(_, outcome)| !outcome.passed)
        .map(|(index, outcome)| {
            locate(Problem::new(
                &format!("tests.{index}"),
                format!("test {:?} fails: {}", outcome.name, outcome.detail),
            ))
        })
        .collect();
    if !failed.is_empty() {
        return Err(failed);
    }
    let warnings =
        settings.warnings(|name| files.services.get(name).is_some_and(|(_, s)| s.rules.is_empty()));
    Ok(Loaded { settings: Arc::new(settings), policy: Arc::new(policy), warnings })
}

impl Files {
    /// Shows a problem in the file that the service or test it speaks of came from.
    fn locate(&self, mut problem: Problem) -> ConfigError {
        match (problem.at.first().map(String::as_str), problem.at.get(1)) {
            (Some("services"), Some(name)) => {
                self.services.get(name.as_str()).map_or(&self.main, |(source, _)| source).locate(problem)
            }
            (Some("tests"), Some(index)) => {
                let origin = index.parse::<usize>().ok().and_then(|index| self.tests.get(index));
                let Some((source, index, _)) = origin else { return self.main.locate(problem) };
                problem.at[1] = index.to_string();
                source.locate(problem)
            }
            _ => self.main.locate(problem),
        }
    }
}
