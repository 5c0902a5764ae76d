//! A service as relay.toml means it: takes its file type and the known issuers, gives checked addresses, headers and limits; refuses
//! keys that mean nothing for its kind, and two services at one address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use postern_base::config::Problem;
use postern_base::id::{AgentName, IssuerName, ServiceName};
use postern_base::value::OrOff;
use postern_gate::path::{CanonicalPath, PathMode};
use postern_gate::policy::ServiceKind;
use postern_gate::token::{Accept, IssuerSettings};

use super::Problems;
use super::onward::{self, Cors, Send, TokenUse};
use crate::config::file::{CallerToken, ServiceFile};

/// A host as a service names it: exact, or any one label before a suffix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(String),
    /// `*.apps.example.com`, kept as `apps.example.com`.
    Wildcard(String),
}

/// The first byte of an answer, or a TCP connection at the agent, comes within this time.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// Nothing moves in a body or WebSocket for this long: one side is gone.
const IDLE: Duration = Duration::from_mins(5);

/// One service, as callers reach it. Limits that are `None` are off.
#[expect(clippy::struct_excessive_bools, reason = "switches of the file, each for itself")]
#[derive(Debug)]
pub struct Service {
    pub name: ServiceName,
    pub kind: ServiceKind,
    pub about: Option<String>,
    pub agents: Vec<AgentName>,
    pub hosts: Vec<HostPattern>,
    /// Canonical, without a slash at the end; `None` for services that have hosts alone, and for TCP services.
    pub prefix: Option<String>,
    pub strip_prefix: bool,
    /// `None`: all of the relay's.
    pub issuers: Option<Vec<IssuerName>>,
    /// `None`: the issuer's own.
    pub audience: Option<Vec<String>>,
    /// Only those whom a rule names may know of it.
    pub hidden: bool,
    /// Its hosts ask for client certificates.
    pub client_certificates: bool,
    pub paths: PathMode,
    pub caller_token: TokenUse,
    /// Every rule that allows something demands a token bound to a key.
    pub is_bound: bool,
    pub send: Send,
    pub cors: Option<Cors>,
    /// Request fields that no caller may set here, folded.
    pub removed: Vec<String>,
    pub strip_response: Vec<HeaderName>,
    pub body_limit: Option<u64>,
    pub first_byte: Option<Duration>,
    pub idle: Option<Duration>,
    /// Requests and streams at once, of all callers.
    pub concurrent: Option<usize>,
}

impl Service {
    pub(super) fn new(
        name: &ServiceName,
        file: &ServiceFile,
        issuers: &[IssuerSettings],
    ) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        if file.agent.0.is_empty() {
            problems.push(Problem::new("agent", "name at least one agent"));
        }
        let is_tcp = file.kind == ServiceKind::Tcp;
        if is_tcp {
            problems.extend(http_only(name, file));
        }
        if file.limit.concurrent == Some(0) {
            problems.push(Problem::new("limit.concurrent", "must be at least 1; leave it out for no limit"));
        }
        if file.client_certificates && file.hosts.is_empty() {
            problems.push(Problem::new(
                "client_certificates",
                "a service without hosts of its own is reached at the relay's: set tls.client_certificates instead",
            ));
        }
        let hosts = hosts(file, &mut problems);
        let prefix = match &file.path {
            Some(path) => Some(path.clone()),
            None if file.hosts.is_empty() && !is_tcp => Some(format!("/{name}")),
            None => None,
        };
        if let Some(path) = &prefix
            && let Err(problem) = check_prefix(path)
        {
            problems.push(problem);
        }
        check_issuers(file, issuers, &mut problems);
        let mut headers = |key: &str, list: &[String]| {
            let parsed = list.iter().enumerate().map(|(n, text)| onward::header(&format!("{key}.{n}"), text));
            parsed.filter_map(|name| name.map_err(|p| problems.push(p)).ok()).collect::<Vec<_>>()
        };
        let strip_request = headers("strip_request", &file.strip_request);
        let strip_response = headers("strip_response", &file.strip_response);
        let send = onward::send(file, &mut problems);
        let caller_token = onward::token_use(file, issuers).map_err(|p| problems.push(p));
        let cors = file.cors.as_ref().map(|cors| onward::cors(cors, file)).transpose();
        let cors = cors.map_err(|p| problems.push(p));
        let idle = file.limit.idle.map_or((!is_tcp).then_some(IDLE), |idle| idle.limit().map(|span| span.0));
        let first_byte = file.limit.first_byte.map_or(Some(FIRST_BYTE), |at| at.limit().map(|span| span.0));
        let (Ok(caller_token), Ok(cors), true) = (caller_token, cors, problems.is_empty()) else {
            return Err(problems);
        };
        Ok(Self {
            name: name.clone(),
            kind: file.kind,
            about: file.about.clone(),
            agents: file.agent.0.clone(),
            hosts,
            prefix,
            strip_prefix: file.strip_prefix.unwrap_or(true),
            issuers: (!file.issuers.is_empty()).then(|| file.issuers.clone()),
            audience: (!file.audience.is_empty()).then(|| file.audience.clone()),
            hidden: file.hidden,
            client_certificates: file.client_certificates,
            paths: file.paths.unwrap_or_default(),
            caller_token,
            is_bound: onward::is_bound(file),
            removed: onward::removed(&strip_request, &send),
            send,
            cors,
            strip_response,
            body_limit: file.limit.body.and_then(OrOff::limit).map(|size| size.0),
            first_byte,
            idle,
            concurrent: file.limit.concurrent.and_then(|n| usize::try_from(n).ok()),
        })
    }

    /// Whose tokens it takes, and for whom they must be meant.
    pub fn accept(&self) -> Accept<'_> {
        Accept { audience: self.audience.as_deref(), issuers: self.issuers.as_deref() }
    }
}

fn hosts(file: &ServiceFile, problems: &mut Problems) -> Vec<HostPattern> {
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
    hosts
}

/// Whose tokens the service takes is said, and they are there.
fn check_issuers(file: &ServiceFile, issuers: &[IssuerSettings], problems: &mut Problems) {
    for (index, issuer) in file.issuers.iter().enumerate() {
        if !issuers.iter().any(|known| known.name == *issuer) {
            problems.push(Problem::new(&format!("issuers.{index}"), format!("there is no issuer {issuer}")));
        }
    }
    let asked = issuers.iter().filter(|issuer| issuer.takes_opaque() && file.issuers.contains(&issuer.name));
    if asked.count() > 1 {
        problems.push(Problem::new(
            "issuers",
            "at most one that is asked about tokens (check = \"introspect\" or \"auto\"): no other may see its tokens",
        ));
    }
    if file.issuers.is_empty() && issuers.len() > 1 {
        problems
            .push(Problem::new("issuers", "with several issuers a service must say whose tokens it accepts"));
    }
}

/// The keys of a TCP service that speak of HTTP; its only address is `/.postern/tcp/NAME` on the relay's own host.
fn http_only<'f>(name: &ServiceName, file: &'f ServiceFile) -> impl Iterator<Item = Problem> + use<'f> {
    let address = format!("services of kind tcp are reached at /.postern/tcp/{name} alone: leave it out");
    let bytes = "services of kind tcp carry bytes, not requests: leave it out".to_owned();
    let idle =
        "streams of kind tcp have no idle limit, their peers are watched by TCP keepalive: leave it out";
    let no_field = "services of kind tcp have no field for a token: only \"none\" and \"agent\" are possible";
    let no_field = no_field.to_owned();
    let limit = &file.limit;
    let sends = file.send.user.is_some() || file.send.roles.is_some() || !file.send.claims.is_empty();
    [
        ("hosts", !file.hosts.is_empty(), address.clone()),
        ("path", file.path.is_some(), address.clone()),
        ("strip_prefix", file.strip_prefix.is_some(), address.clone()),
        ("paths", file.paths.is_some(), address),
        ("send", sends, bytes.clone()),
        ("cors", file.cors.is_some(), bytes.clone()),
        (
            "caller_token",
            matches!(file.caller_token, CallerToken::Upstream | CallerToken::Exchange),
            no_field,
        ),
        ("strip_request", !file.strip_request.is_empty(), bytes.clone()),
        ("strip_response", !file.strip_response.is_empty(), bytes.clone()),
        ("limit.body", limit.body.is_some(), bytes.clone()),
        ("limit.first_byte", limit.first_byte.is_some(), bytes),
        ("limit.idle", limit.idle.is_some_and(|idle| idle.limit().is_some()), idle.to_owned()),
    ]
    .into_iter()
    .filter_map(|(key, is_set, why)| is_set.then(|| Problem::new(key, why)))
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

/// Two services at one address; each comes with the file that names it.
pub(super) fn clashes(services: &[(Arc<Service>, &str)]) -> Problems {
    let mut seen = BTreeMap::new();
    let mut problems = Problems::new();
    for (service, origin) in services {
        let hosts = service.hosts.iter().map(|host| match host {
            HostPattern::Exact(host) => ("hosts", host.clone()),
            HostPattern::Wildcard(suffix) => ("hosts", format!("*.{suffix}")),
        });
        for (key, place) in hosts.chain(service.prefix.clone().map(|prefix| ("path", prefix))) {
            if let Some((first, file)) = seen.insert(place.clone(), (&service.name, origin)) {
                let message = format!("{place} already leads to service {first} in {file}");
                problems.push(Problem::new(key, message).under(&service.name).under("services"));
            }
        }
    }
    problems
}
