//! What relay.toml means: every value parsed, checked and given its default. The rest of the relay sees only this.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use postern_base::config::Problem;
use postern_base::id::{AgentName, IssuerName, RelayName, ServiceName, TrustDomain};
use postern_base::telemetry::{LogFormat, parse_filter};
use postern_base::value::Span;
use postern_gate::path::{CanonicalPath, PathMode};
use postern_gate::token::IssuerSettings;

use crate::config::{LimitsFile, PathsFile, RelayFile, ServiceFile, TlsFile, TlsMode};

/// Short enough that a stolen certificate is soon worthless, long enough to survive a night without the relay.
pub const CERT_TTL: Duration = Duration::from_hours(24);
/// Time to copy an invite to another machine, not to lose it in a mailbox.
pub const INVITE_TTL: Duration = Duration::from_mins(15);

/// The whole configuration.
#[derive(Debug)]
pub struct Settings {
    pub url: PublicUrl,
    /// The name in the relay's own certificate and in `Welcome`.
    pub name: RelayName,
    pub listen: Listen,
    pub tls: TlsSettings,
    pub state: PathBuf,
    pub agents: AgentsSettings,
    pub issuers: Vec<IssuerSettings>,
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    pub limits: Limits,
    pub audit: AuditTo,
    pub telemetry: Telemetry,
}

/// The relay's origin: scheme https, host, and port where it is not 443.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    origin: String,
    host: String,
    port: u16,
}

impl PublicUrl {
    /// `https://relay.example.com`, without a slash at the end.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The host, as a caller's Host field names it (IPv6 in brackets).
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let refuse =
            |why: &str| Problem::new("url", format!("{why}; write it like \"https://relay.example.com\""));
        let url = url::Url::parse(text).map_err(|e| refuse(&e.to_string()))?;
        let host = url.host_str().ok_or_else(|| refuse("it has no host"))?.to_owned();
        if url.scheme() != "https" {
            return Err(refuse("callers reach a relay over https alone"));
        }
        if url.path() != "/"
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
        {
            return Err(refuse("only scheme, host and port belong here"));
        }
        let port = url.port_or_known_default().unwrap_or(443);
        Ok(Self { origin: url.origin().ascii_serialization(), host, port })
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub https: SocketAddr,
    pub quic: SocketAddr,
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSettings {
    Files {
        cert: PathBuf,
        key: PathBuf,
    },
    /// `tls/cert.pem` and `tls/key.pem` in the state directory.
    SelfSigned {
        cert: PathBuf,
        key: PathBuf,
    },
}

impl TlsSettings {
    pub fn cert(&self) -> &Path {
        match self {
            Self::Files { cert, .. } | Self::SelfSigned { cert, .. } => cert,
        }
    }

    pub fn key(&self) -> &Path {
        match self {
            Self::Files { key, .. } | Self::SelfSigned { key, .. } => key,
        }
    }
}

#[derive(Debug, Clone)]
pub struct AgentsSettings {
    pub trust_domain: TrustDomain,
    pub cert_ttl: Duration,
    pub invite_ttl: Duration,
}

/// A host as a service names it: exact, or any one label before a suffix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(String),
    /// `*.apps.example.com`, kept as `apps.example.com`.
    Wildcard(String),
}

/// One service, as callers reach it.
#[derive(Debug)]
pub struct Service {
    pub name: ServiceName,
    pub about: Option<String>,
    pub agents: Vec<AgentName>,
    pub hosts: Vec<HostPattern>,
    /// Canonical, without a slash at the end; `None` for services that have hosts alone.
    pub prefix: Option<String>,
    pub strip_prefix: bool,
    /// `None`: all of the relay's.
    pub issuers: Option<Vec<IssuerName>>,
    /// `None`: the issuer's own.
    pub audience: Option<Vec<String>>,
    pub paths: PathMode,
    pub send_user: Option<HeaderName>,
    pub send_roles: Option<HeaderName>,
    pub strip_request: Vec<HeaderName>,
    pub strip_response: Vec<HeaderName>,
    pub body_limit: Option<u64>,
    pub first_byte: Duration,
    pub idle: Duration,
}

/// The relay's limits; the numbers of security.md where the file says nothing.
#[derive(Debug, Clone)]
pub struct Limits {
    pub workers: usize,
    pub connections: usize,
    pub per_address: usize,
    pub requests: usize,
    pub handshake: Duration,
    pub first_byte_in: Duration,
    pub head: Duration,
    pub body_stall: Duration,
    pub keepalive: Duration,
    pub headers: usize,
    pub fields: usize,
    /// Failed authentications a second from one address.
    pub failed_auth: u32,
    pub drain: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTo {
    Stdout,
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    pub log: String,
    pub format: LogFormat,
}

type Problems = Vec<Problem>;

impl Settings {
    pub(crate) fn new<'a>(
        file: &RelayFile,
        services: impl Iterator<Item = (&'a ServiceName, &'a ServiceFile)>,
        dir: &Path,
    ) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let mut keep = |problem: Problem| problems.push(problem);
        let url = PublicUrl::parse(&file.url).map_err(&mut keep);
        let listen = listen(file).map_err(&mut keep);
        let state = dir.join(&file.state.dir);
        let tls = tls(&file.tls, dir, &state).map_err(&mut keep);
        let mut issuers = Vec::new();
        for (index, issuer) in file.issuers.iter().enumerate() {
            match issuer.clone().settings(dir) {
                Ok(issuer) => issuers.push(issuer),
                Err(problem) => keep(problem.under(index).under("issuers")),
            }
        }
        if file.issuers.is_empty() {
            keep(Problem::new("issuers", "without an issuer nobody can call: add one [[issuers]] table"));
        }
        let mut built = BTreeMap::new();
        for (name, service) in services {
            match Service::new(name, service, &issuers) {
                Ok(service) => drop(built.insert(name.clone(), Arc::new(service))),
                Err(found) => found.into_iter().for_each(|p| keep(p.under(name).under("services"))),
            }
        }
        clashes(built.values()).into_iter().for_each(&mut keep);
        let limits = Limits::new(&file.limits).map_err(|p| keep(p.under("limits")));
        let log = file.telemetry.log.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(e) = parse_filter(&log) {
            keep(Problem::new("telemetry.log", e.to_string()));
        }
        for (key, span) in
            [("agents.cert_ttl", file.agents.cert_ttl), ("agents.invite_ttl", file.agents.invite_ttl)]
        {
            if span.0.is_zero() {
                keep(Problem::new(key, "must be longer than nothing"));
            }
        }
        let agents = AgentsSettings {
            trust_domain: file.agents.trust_domain.clone(),
            cert_ttl: file.agents.cert_ttl.0,
            invite_ttl: file.agents.invite_ttl.0,
        };
        let audit = if file.audit.file == Path::new("-") {
            AuditTo::Stdout
        } else {
            AuditTo::File(dir.join(&file.audit.file))
        };
        let telemetry = Telemetry { log, format: file.telemetry.format };
        match (url, listen, tls, limits, relay_name()) {
            (Ok(url), Ok(listen), Ok(tls), Ok(limits), Ok(name)) if problems.is_empty() => Ok(Self {
                url,
                name,
                listen,
                tls,
                state,
                agents,
                issuers,
                services: built,
                limits,
                audit,
                telemetry,
            }),
            _ => Err(problems),
        }
    }

    /// The keys that differ from `old` and that only a restart can change.
    pub(crate) fn needs_restart(&self, old: &Self) -> Vec<&'static str> {
        let agents = (&self.agents.trust_domain, self.agents.cert_ttl, self.agents.invite_ttl);
        let old_agents = (&old.agents.trust_domain, old.agents.cert_ttl, old.agents.invite_ttl);
        [
            ("url", self.url != old.url),
            ("listen", self.listen != old.listen),
            ("tls", self.tls != old.tls),
            ("state", self.state != old.state),
            ("agents", agents != old_agents),
            ("limits.workers", self.limits.workers != old.limits.workers),
            ("audit", self.audit != old.audit),
            ("telemetry", self.telemetry != old.telemetry),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// What a reload from `old` changed, for people.
    pub(crate) fn changes_since(&self, old: &Self) -> Vec<String> {
        let added = self.services.keys().filter(|name| !old.services.contains_key(*name));
        let removed = old.services.keys().filter(|name| !self.services.contains_key(*name));
        let issuers = |settings: &Self| settings.issuers.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        let (now, before) = (issuers(self), issuers(old));
        let mut changes: Vec<String> = added.map(|name| format!("service {name} added")).collect();
        changes.extend(removed.map(|name| format!("service {name} removed")));
        changes.extend(
            now.iter().filter(|name| !before.contains(name)).map(|name| format!("issuer {name} added")),
        );
        changes.extend(
            before.iter().filter(|name| !now.contains(name)).map(|name| format!("issuer {name} removed")),
        );
        changes.push(format!("{} services and their rules are in force", self.services.len()));
        changes
    }

    /// What is allowed but probably not meant.
    pub(crate) fn warnings(&self, has_no_rules: impl Fn(&ServiceName) -> bool) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .services
            .keys()
            .filter(|name| has_no_rules(name))
            .map(|name| format!("services.{name}: no rules, so every call is denied; add rules = [{{ allow = …, to = … }}]"))
            .collect();
        for issuer in self.issuers.iter().filter(|issuer| issuer.login.is_none()) {
            warnings.push(format!("issuers.{}: no login, so `postern login` does not offer it", issuer.name));
        }
        warnings
    }
}

/// One relay per trust domain for now; a fleet will name its members.
fn relay_name() -> Result<RelayName, Problem> {
    "relay".parse().map_err(|e: postern_base::id::IdError| Problem::new("", e.to_string()))
}

fn listen(file: &RelayFile) -> Result<Listen, Problem> {
    let address = |key: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| {
            Problem::new(&format!("listen.{key}"), "write an address and a port, such as \"0.0.0.0:443\"")
        })
    };
    Ok(Listen {
        https: address("https", &file.listen.https)?,
        quic: address("quic", &file.listen.quic)?,
        metrics: file.listen.metrics.as_deref().map(|text| address("metrics", text)).transpose()?,
    })
}

fn tls(file: &TlsFile, dir: &Path, state: &Path) -> Result<TlsSettings, Problem> {
    match (file.mode, &file.cert, &file.key) {
        (TlsMode::Files, Some(cert), Some(key)) => {
            Ok(TlsSettings::Files { cert: dir.join(cert), key: dir.join(key) })
        }
        (TlsMode::Files, ..) => Err(Problem::new("tls", "mode = \"files\" needs cert and key")),
        (TlsMode::SelfSigned, None, None) => {
            Ok(TlsSettings::SelfSigned { cert: state.join("tls/cert.pem"), key: state.join("tls/key.pem") })
        }
        (TlsMode::SelfSigned, ..) => Err(Problem::new(
            "tls",
            "mode = \"self-signed\" keeps its own files in the state directory: leave cert and key out",
        )),
    }
}

impl Service {
    fn new(name: &ServiceName, file: &ServiceFile, issuers: &[IssuerSettings]) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        if file.agent.0.is_empty() {
            problems.push(Problem::new("agent", "name at least one agent"));
        }
        let mut hosts = Vec::new();
        for (index, host) in file.hosts.iter().enumerate() {
            match host_pattern(host) {
                Some(pattern) => hosts.push(pattern),
                None => problems.push(Problem::new(
                    &format!("hosts.{index}"),
                    "write a lower-case host name without a port, such as \"billing.example.com\" or \"*.apps.example.com\"",
                )),
            }
        }
        let paths = match file.paths {
            PathsFile::Strict => PathMode::Strict,
            PathsFile::Loose => PathMode::Loose,
        };
        let prefix = match &file.path {
            Some(path) => Some(path.clone()),
            None if file.hosts.is_empty() => Some(format!("/{name}")),
            None => None,
        };
        if let Some(path) = &prefix
            && let Err(problem) = check_prefix(path)
        {
            problems.push(problem);
        }
        for (index, issuer) in file.issuers.iter().enumerate() {
            if !issuers.iter().any(|known| known.name == *issuer) {
                problems
                    .push(Problem::new(&format!("issuers.{index}"), format!("there is no issuer {issuer}")));
            }
        }
        if file.issuers.is_empty() && issuers.len() > 1 {
            problems.push(Problem::new(
                "issuers",
                "with several issuers a service must say whose tokens it accepts",
            ));
        }
        let mut header = |at: String, text: &str| match text.parse::<HeaderName>() {
            Ok(name) => Some(name),
            Err(_) => {
                problems.push(Problem::new(&at, format!("{text:?} is not a header name")));
                None
            }
        };
        let send_user = file.send.user.as_deref().and_then(|text| header("send.user".into(), text));
        let send_roles = file.send.roles.as_deref().and_then(|text| header("send.roles".into(), text));
        let mut headers = |key: &str, list: &[String]| {
            list.iter()
                .enumerate()
                .filter_map(|(n, text)| header(format!("{key}.{n}"), text))
                .collect::<Vec<_>>()
        };
        let strip_request = headers("strip_request", &file.strip_request);
        let strip_response = headers("strip_response", &file.strip_response);
        for (key, name) in [("send.user", &send_user), ("send.roles", &send_roles)] {
            if name.as_ref().is_some_and(|name| crate::request::headers::is_ours(name)) {
                problems.push(Problem::new(
                    key,
                    "the relay sets or removes that field itself; choose another name",
                ));
            }
        }
        let or = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            name: name.clone(),
            about: file.about.clone(),
            agents: file.agent.0.clone(),
            hosts,
            prefix,
            strip_prefix: file.strip_prefix,
            issuers: (!file.issuers.is_empty()).then(|| file.issuers.clone()),
            audience: (!file.audience.is_empty()).then(|| file.audience.clone()),
            paths,
            send_user,
            send_roles,
            strip_request,
            strip_response,
            body_limit: file.limit.body.map(|size| size.0),
            first_byte: or(file.limit.first_byte, Duration::from_secs(30)),
            idle: or(file.limit.idle, Duration::from_mins(5)),
        })
    }
}

fn host_pattern(text: &str) -> Option<HostPattern> {
    let is_host = |host: &str| {
        !host.is_empty()
            && host.len() <= 253
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    };
    match text.strip_prefix("*.") {
        Some(suffix) => {
            (is_host(suffix) && suffix.contains('.')).then(|| HostPattern::Wildcard(suffix.to_owned()))
        }
        None => is_host(text).then(|| HostPattern::Exact(text.to_owned())),
    }
}

fn check_prefix(path: &str) -> Result<(), Problem> {
    let refuse = |why: &str| Problem::new("path", format!("{why}; write it like \"/billing\""));
    let canonical = CanonicalPath::parse(path, PathMode::Strict).map_err(|e| refuse(&e.to_string()))?;
    if canonical.as_str() != path {
        return Err(refuse(&format!("its canonical form is {:?}", canonical.as_str())));
    }
    if path == "/" || path.ends_with('/') {
        return Err(refuse("it needs a name, and no slash at the end"));
    }
    if path.starts_with("/.postern") || path.starts_with("/.well-known") {
        return Err(refuse("/.postern* and /.well-known* are the relay's own"));
    }
    Ok(())
}

/// Two services at one address.
fn clashes<'a>(services: impl Iterator<Item = &'a Arc<Service>>) -> Problems {
    let mut seen = BTreeMap::new();
    let mut problems = Problems::new();
    for service in services {
        let hosts = service.hosts.iter().map(|host| match host {
            HostPattern::Exact(host) => ("hosts", host.clone()),
            HostPattern::Wildcard(suffix) => ("hosts", format!("*.{suffix}")),
        });
        for (key, place) in hosts.chain(service.prefix.clone().map(|prefix| ("path", prefix))) {
            if let Some(first) = seen.insert(place.clone(), &service.name) {
                let message = format!("{place} already leads to service {first}");
                problems.push(Problem::new(key, message).under(&service.name).under("services"));
            }
        }
    }
    problems
}

impl Limits {
    fn new(file: &LimitsFile) -> Result<Self, Problem> {
        let or = |span: Option<Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let failed_auth = match file.failed_auth.as_deref() {
            None => 20,
            Some(text) => text
                .strip_suffix("/s per address")
                .and_then(|number| number.trim().parse().ok())
                .filter(|number| *number > 0)
                .ok_or_else(|| Problem::new("failed_auth", "write it like \"20/s per address\""))?,
        };
        let limits = Self {
            workers: file.workers.filter(|n| *n > 0).unwrap_or(cores),
            connections: file.connections.unwrap_or(20_000),
            per_address: file.per_address.unwrap_or(2048),
            requests: file.requests.unwrap_or(10_000),
            handshake: or(file.handshake, 5),
            first_byte_in: or(file.first_byte_in, 10),
            head: or(file.head, 10),
            body_stall: or(file.body_stall, 15),
            keepalive: or(file.keepalive, 60),
            headers: file.headers.map_or(Ok(32 * 1024), |size| usize::try_from(size.0)).unwrap_or(usize::MAX),
            fields: file.fields.unwrap_or(100),
            failed_auth,
            drain: or(file.drain, 20),
        };
        let at_least_one = [
            ("connections", limits.connections),
            ("per_address", limits.per_address),
            ("requests", limits.requests),
        ];
        if let Some((key, _)) = at_least_one.into_iter().find(|(_, n)| *n == 0) {
            return Err(Problem::new(key, "must be at least 1"));
        }
        if !(8 * 1024..=96 * 1024).contains(&limits.headers) {
            return Err(Problem::new("headers", "must lie between \"8KiB\" and \"96KiB\""));
        }
        if !(10..=1000).contains(&limits.fields) {
            return Err(Problem::new("fields", "must lie between 10 and 1000"));
        }
        if limits.workers > 256 {
            return Err(Problem::new("workers", "must be at most 256"));
        }
        Ok(limits)
    }
}
