//! A service as relay.toml means it: takes its file type and the known issuers, gives checked addresses, headers and limits; refuses two
//! services at one address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use postern_base::config::Problem;
use postern_base::id::{AgentName, IssuerName, ServiceName};
use postern_base::value::Span;
use postern_gate::path::{CanonicalPath, PathMode};
use postern_gate::token::IssuerSettings;

use super::Problems;
use crate::config::file::{PathsFile, ServiceFile};

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
        let mut header = |at: String, text: &str| {
            let name = text.parse::<HeaderName>().ok();
            if name.is_none() {
                problems.push(Problem::new(&at, format!("{text:?} is not a header name")));
            }
            name
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
            if name.as_ref().is_some_and(crate::request::headers::is_ours) {
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
