//! What agent.toml means: every value parsed, checked and given its default.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use postern_base::audit::{Destination, LogSettings, Rotate, WhenFull};
use postern_base::config::Problem;
use postern_base::defaults;
use postern_base::id::ServiceName;
use postern_base::proxy::Proxy;
use postern_base::telemetry::{LogFormat, parse_filter};

use crate::config::{AgentFile, AuditFile, Transport};
use crate::identity::elsewhere::Files;

pub mod service;
pub mod verify;

pub use service::Service;
use verify::Verification;

/// A handshake that fails costs a few packets; whoever blocks UDP seldom changes their mind within minutes.
const RETRY_QUIC: Duration = Duration::from_mins(2);

/// The whole configuration.
#[derive(Debug)]
pub struct Settings {
    pub relays: Vec<RelayAddress>,
    pub state: PathBuf,
    pub proxy: Proxy,
    /// None where this agent joins.
    pub identity: Option<Files>,
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// None where no service decides again.
    pub verification: Option<Verification>,
    /// Tunnels to each relay.
    pub connections: usize,
    pub transport: Transport,
    /// How long a tunnel stays on TCP before QUIC is tried again.
    pub retry_quic: Duration,
    pub drain: Duration,
    /// None where it is off.
    pub audit: Option<LogSettings>,
    pub log: String,
    pub format: LogFormat,
    pub metrics: Option<SocketAddr>,
}

/// Where a relay is: a name or an address, and a UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayAddress {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for RelayAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("{text:?} is not a relay: write host or host:port, such as \"relay.example.com\"");
        let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let authority: Authority = bare.parse().map_err(|_| refuse())?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(refuse());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: authority.port_u16().unwrap_or(443) })
    }
}

impl Settings {
    pub(crate) fn new(file: &AgentFile, dir: &Path) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        if file.version != 1 {
            problems.push(Problem::new("version", "this agent reads version = 1"));
        }
        let mut relays = Vec::new();
        for relay in &file.relay.0 {
            match relay.parse() {
                Ok(relay) => relays.push(relay),
                Err(message) => problems.push(Problem::new("relay", message)),
            }
        }
        if file.relay.0.is_empty() {
            problems.push(Problem::new("relay", "name at least one relay"));
        }
        let mut services = BTreeMap::new();
        for (name, service) in &file.services {
            match Service::new(name, service, dir) {
                Ok(service) => drop(services.insert(name.clone(), Arc::new(service))),
                Err(problem) => problems.push(problem.under(name).under("services")),
            }
        }
        let connections = file.tunnel.connections.unwrap_or(2);
        if !(1..=16).contains(&connections) {
            problems.push(Problem::new("tunnel.connections", "must lie between 1 and 16"));
        }
        let retry_quic = file.tunnel.retry_quic.map_or(RETRY_QUIC, |span| span.0);
        if retry_quic < Duration::from_secs(1) {
            problems.push(Problem::new("tunnel.retry_quic", "must be at least \"1s\""));
        }
        if file.tunnel.retry_quic.is_some() && file.tunnel.transport != Transport::Auto {
            problems
                .push(Problem::new("tunnel.retry_quic", "means nothing unless tunnel.transport is \"auto\""));
        }
        let proxy = file.proxy.as_deref().unwrap_or("env").parse::<Proxy>().unwrap_or_else(|e| {
            problems.push(Problem::new("proxy", e.to_string()));
            Proxy::default()
        });
        let verification = verify::verification(file, &services, (dir, &proxy), &mut problems);
        let log = file.telemetry.log.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(e) = parse_filter(&log) {
            problems.push(Problem::new("telemetry.log", e.to_string()));
        }
        let metrics = file.telemetry.metrics.as_deref().map(str::parse).transpose();
        let metrics = metrics.unwrap_or_else(|_| {
            problems.push(Problem::new(
                "telemetry.metrics",
                "write an address and a port, such as \"127.0.0.1:9441\"",
            ));
            None
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            relays,
            state: dir.join(&file.state),
            proxy,
            identity: file.identity.as_ref().map(|files| Files {
                cert: dir.join(&files.cert),
                key: dir.join(&files.key),
                bundle: dir.join(&files.bundle),
            }),
            services,
            verification,
            connections,
            transport: file.tunnel.transport,
            retry_quic,
            drain: file.tunnel.drain.map_or(defaults::DRAIN, |span| span.0),
            audit: audit(&file.audit, &dir.join(&file.state), dir),
            log,
            format: file.telemetry.format,
            metrics,
        })
    }
}

/// A full disk stops no request here: the relay's log has it, and a line counts what this one lacks.
fn audit(file: &AuditFile, state: &Path, dir: &Path) -> Option<LogSettings> {
    let to = match &file.file {
        None => Destination::File(state.join("audit.jsonl")),
        Some(path) if path == Path::new("off") => return None,
        Some(path) if path == Path::new("-") => Destination::Stdout,
        Some(path) => Destination::File(dir.join(path)),
    };
    let rotate = Rotate::from(file.rotate.unwrap_or_default());
    Some(LogSettings { to, rotate, reserve: 0, full: WhenFull::Drop })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_hosts_with_a_port() {
        let of = |text: &str| text.parse::<RelayAddress>().map(|relay| relay.to_string());
        assert_eq!(of("relay.example.com").unwrap(), "relay.example.com:443");
        assert_eq!(of("https://relay.example.com:8443/").unwrap(), "relay.example.com:8443");
        assert_eq!(of("[::1]:4433").unwrap(), "[::1]:4433");
        for bad in ["", "a b", "u@relay.example.com", "relay.example.com/path"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_example_is_valid() {
        let source = postern_base::config::Source::from_text("example.toml", crate::config::EXAMPLE);
        let file: AgentFile = source.parse().unwrap();
        let settings = Settings::new(&file, Path::new("/etc/postern")).unwrap();
        assert_eq!(settings.services.len(), 3);
    }
}
