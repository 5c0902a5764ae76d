//! What agent.toml means: every value parsed, checked and given its default.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use postern_base::config::Problem;
use postern_base::defaults;
use postern_base::id::ServiceName;
use postern_base::telemetry::{LogFormat, parse_filter};
use postern_gate::policy::Ceiling;

use crate::config::{AgentFile, ServiceFile};

/// The whole configuration.
#[derive(Debug)]
pub struct Settings {
    pub relays: Vec<RelayAddress>,
    pub state: PathBuf,
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Tunnels to each relay.
    pub connections: usize,
    pub drain: Duration,
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

/// One service and the only place it leads to.
#[derive(Debug)]
pub struct Service {
    pub name: ServiceName,
    pub scheme: Scheme,
    pub authority: Authority,
    /// What may pass, whatever a relay allowed.
    pub only: Ceiling,
    pub ca: Option<PathBuf>,
    pub server_name: Option<String>,
    pub connect: Duration,
    pub first_byte: Duration,
}

impl Service {
    fn new(name: &ServiceName, file: &ServiceFile, dir: &Path) -> Result<Self, Problem> {
        let refuse = |why: &str| {
            Problem::new(
                "upstream",
                format!("{why}; write it like \"http://127.0.0.1:8080\" or \"https://10.0.5.11:8443\""),
            )
        };
        let uri: http::Uri =
            file.upstream.parse().map_err(|e: http::uri::InvalidUri| refuse(&e.to_string()))?;
        let parts = uri.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let scheme = scheme.ok_or_else(|| refuse("only http:// and https:// are served"))?;
        let authority = parts.authority.ok_or_else(|| refuse("it has no host"))?;
        if authority.as_str().contains('@') || parts.path_and_query.is_some_and(|path| path.as_str() != "/") {
            return Err(refuse("only scheme, host and port belong here"));
        }
        if scheme == Scheme::HTTP && (file.tls.ca.is_some() || file.tls.server_name.is_some()) {
            return Err(Problem::new("tls", "belongs to an https:// upstream; this one is http://"));
        }
        Ok(Self {
            name: name.clone(),
            scheme,
            authority,
            only: Ceiling::new(&file.only.0).map_err(|p| p.under("only"))?,
            ca: file.tls.ca.as_ref().map(|path| dir.join(path)),
            server_name: file.tls.server_name.clone(),
            connect: file.limit.connect.map_or(Duration::from_secs(3), |span| span.0),
            first_byte: file.limit.first_byte.map_or(Duration::from_secs(30), |span| span.0),
        })
    }

    pub fn port(&self) -> u16 {
        let default = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(default)
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
            services,
            connections,
            drain: file.tunnel.drain.map_or(defaults::DRAIN, |span| span.0),
            log,
            format: file.telemetry.format,
            metrics,
        })
    }
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
        assert_eq!(settings.services.len(), 2);
    }
}
