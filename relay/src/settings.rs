//! What relay.toml means: every value parsed, checked and given its default. The rest of the relay sees only this.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use postern_base::config::Problem;
use postern_base::id::{RelayName, ServiceName};
use postern_base::telemetry::{LogFormat, parse_filter};
use postern_gate::token::{IssuerSettings, ProofSettings};

use crate::config::file::{RelayFile, ServiceFile, TlsFile, TlsMode};
use crate::enroll::{CaSource, EnrollSettings, Enrollment};

mod agents;
mod audit;
mod limits;
mod onward;
mod service;

pub use agents::{AgentsSettings, CERT_TTL, INVITE_TTL, RECOVER};
pub use audit::{AuditSettings, Redact};
pub use limits::Limits;
pub use onward::{Cors, Exchange, TokenUse};
pub use service::{HostPattern, Service};

use service::clashes;

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
    pub dpop: ProofSettings,
    /// The relay's own host asks for client certificates.
    pub client_certificates: bool,
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    pub limits: Limits,
    pub audit: AuditSettings,
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
    /// Balancers that must say first for whom they connect (PROXY protocol).
    pub proxy_protocol: Vec<IpNet>,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Listen {
    /// Whether a connection from this address begins with a PROXY header.
    pub fn is_balancer(&self, address: IpAddr) -> bool {
        holds(&self.proxy_protocol, address)
    }

    /// Whether requests from this address may come from others, and say so.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        holds(&self.trusted_proxies, address)
    }
}

fn holds(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    pub log: String,
    pub format: LogFormat,
}

type Problems = Vec<Problem>;

impl Settings {
    pub(crate) fn new<'a>(
        file: &RelayFile,
        services: impl Iterator<Item = (&'a ServiceName, &'a ServiceFile, &'a str)>,
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
            if let Ok(url) = &url
                && let Some(problem) = onward::own_issuer(url.origin(), issuer)
            {
                keep(problem.under(index).under("issuers"));
            }
            match issuer.clone().settings(dir) {
                Ok(issuer) => issuers.push(issuer),
                Err(problem) => keep(problem.under(index).under("issuers")),
            }
        }
        if file.issuers.is_empty() {
            keep(Problem::new("issuers", "without an issuer nobody can call: add one [[issuers]] table"));
        }
        let mut built = BTreeMap::new();
        let mut placed = Vec::new();
        for (name, service, origin) in services {
            match Service::new(name, service, &issuers) {
                Ok(service) => {
                    let service = Arc::new(service);
                    placed.push((service.clone(), origin));
                    built.insert(name.clone(), service);
                }
                Err(found) => found.into_iter().for_each(|p| keep(p.under(name).under("services"))),
            }
        }
        clashes(&placed).into_iter().for_each(&mut keep);
        onward::handed_on(&built, &issuers).into_iter().for_each(&mut keep);
        let limits = Limits::new(&file.limits).map_err(|p| keep(p.under("limits")));
        let dpop = file.dpop.settings().map_err(|p| keep(p.under("dpop")));
        let log = file.telemetry.log.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(e) = parse_filter(&log) {
            keep(Problem::new("telemetry.log", e.to_string()));
        }
        let agents = AgentsSettings::new(&file.agents, dir).map_err(|p| keep(p.under("agents")));
        let audit = AuditSettings::new(&file.audit, dir).map_err(|p| keep(p.under("audit")));
        let telemetry = Telemetry { log, format: file.telemetry.format };
        match (url, listen, tls, limits, dpop, audit, agents, relay_name()) {
            (Ok(url), Ok(listen), Ok(tls), Ok(limits), Ok(dpop), Ok(audit), Ok(agents), Ok(name))
                if problems.is_empty() =>
            {
                Ok(Self {
                    url,
                    name,
                    listen,
                    tls,
                    state,
                    agents,
                    issuers,
                    dpop,
                    client_certificates: file.tls.client_certificates,
                    services: built,
                    limits,
                    audit,
                    telemetry,
                })
            }
            _ => Err(problems),
        }
    }

    /// The keys that differ from `old` and that only a restart can change.
    pub(crate) fn needs_restart(&self, old: &Self) -> Vec<&'static str> {
        [
            ("url", self.url != old.url),
            ("listen", self.listen != old.listen),
            ("tls", self.tls != old.tls),
            ("state", self.state != old.state),
            ("agents", self.agents != old.agents),
            ("limits.workers", self.limits.workers != old.limits.workers),
            ("audit", self.audit != old.audit),
            ("telemetry", self.telemetry != old.telemetry),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// What enrolment needs of them.
    pub(crate) fn enrolling(&self) -> EnrollSettings {
        EnrollSettings {
            state: self.state.clone(),
            trust_domain: self.agents.trust_domain.clone(),
            ca: self.agents.ca.clone(),
            cert_ttl: self.agents.cert_ttl,
            invite_ttl: self.agents.invite_ttl,
            recover: self.agents.recover,
        }
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

    /// Services that nobody enrolled can serve. Agents whose certificates are made elsewhere need no enrolment.
    pub(crate) fn without_agents(&self, enrollment: &Enrollment) -> Vec<String> {
        if matches!(self.agents.ca, CaSource::Elsewhere { .. }) {
            return Vec::new();
        }
        let enrolled: HashSet<_> = enrollment.agents().into_iter().map(|row| row.name).collect();
        let alone = self
            .services
            .iter()
            .filter(|(_, service)| !service.agents.iter().any(|agent| enrolled.contains(agent)));
        alone
            .map(|(name, service)| {
                let agents: Vec<_> = service.agents.iter().map(ToString::to_string).collect();
                let (agents, first) = (agents.join(", "), agents.first().map_or("NAME", String::as_str));
                format!(
                    "services.{name}: no agent {agents} is enrolled; run: postern-relay agent invite {first}"
                )
            })
            .collect()
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
    let networks = |key: &str, list: &[String]| {
        let network = |text: &String| {
            let alone = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>()
                .or_else(|_| alone())
                .map_err(|_| Problem::new(key, "write networks or addresses, such as \"10.0.0.0/8\""))
        };
        list.iter().map(network).collect::<Result<Vec<_>, _>>()
    };
    Ok(Listen {
        https: address("https", &file.listen.https)?,
        quic: address("quic", &file.listen.quic)?,
        metrics: file.listen.metrics.as_deref().map(|text| address("metrics", text)).transpose()?,
        proxy_protocol: networks("listen.proxy_protocol", &file.listen.proxy_protocol)?,
        trusted_proxies: networks("listen.trusted_proxies", &file.listen.trusted_proxies)?,
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
