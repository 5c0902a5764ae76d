//! What `[services.NAME]` of agent.toml means: takes it as typed, gives addresses of one protocol and everything that holds for them;
//! refuses what the protocol does not know, with what to write instead.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Uri};
use postern_base::config::Problem;
use postern_base::id::ServiceName;
use postern_base::secret::SecretRef;
use postern_base::value::Span;
use postern_gate::policy::Ceiling;
use postern_wire::fields::{folded, is_of_the_connection, is_steering};
use rustls::pki_types::ServerName;

use crate::config::service::{HealthFile, LimitFile, ServiceFile, TlsFile, TlsVersion};

/// One service and the only places it leads to.
#[derive(Debug)]
pub struct Service {
    pub name: ServiceName,
    pub protocol: Protocol,
    /// At least one; a bit set holds them all.
    pub addresses: Vec<Address>,
    pub tls: Option<Tls>,
    /// What may pass, whatever a relay allowed.
    pub only: Ceiling,
    /// Added here, in place of what a relay sent under these names.
    pub inject: Vec<(HeaderName, SecretRef)>,
    pub host: Option<HeaderValue>,
    /// Hosts and ports under which the upstream may speak of itself.
    pub origins: Vec<(String, u16)>,
    pub health: Option<HealthCheck>,
    pub limit: Limit,
    /// The caller's own token is asked for and judged here.
    pub verifies: bool,
}

/// What is spoken with the upstream; TLS aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name or a literal address.
    Port {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Port { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug)]
pub struct Tls {
    pub ca: Option<PathBuf>,
    /// In place of the address's host.
    pub server_name: Option<ServerName<'static>>,
    /// Files of the certificate that we show, and of its key.
    pub own: Option<(PathBuf, PathBuf)>,
    pub min_version: TlsVersion,
}

#[derive(Debug)]
pub struct HealthCheck {
    /// None: a connection is enough.
    pub path: Option<PathAndQuery>,
    pub every: Duration,
    pub unhealthy_after: u32,
}

#[derive(Debug)]
pub struct Limit {
    pub concurrent: Option<usize>,
    pub connect: Duration,
    pub first_byte: Duration,
    pub idle: Duration,
}

/// As many as the set of those that were tried has bits.
const ADDRESSES: usize = 64;

impl Service {
    pub(super) fn new(name: &ServiceName, file: &ServiceFile, dir: &Path) -> Result<Self, Problem> {
        let mut parsed = Vec::new();
        for (index, text) in file.upstream.0.iter().enumerate() {
            let at =
                if file.upstream.0.len() > 1 { format!("upstream.{index}") } else { "upstream".to_owned() };
            parsed.push(upstream(text).map_err(|why| Problem::new(&at, why))?);
        }
        let Some((scheme, _)) = parsed.first() else {
            return Err(Problem::new("upstream", "name at least one address"));
        };
        let scheme = *scheme;
        if parsed.len() > ADDRESSES {
            return Err(Problem::new("upstream", format!("at most {ADDRESSES} addresses are served")));
        }
        if parsed.iter().any(|(other, _)| *other != scheme) {
            let why = "all addresses of a service must be of one kind, such as all https://";
            return Err(Problem::new("upstream", why));
        }
        let addresses: Vec<Address> = parsed.into_iter().map(|(_, address)| address).collect();
        let protocol = scheme.protocol();
        if protocol == Protocol::Tcp {
            only_for_http(file)?;
        }
        let host = file.host.as_deref().map(host).transpose()?;
        let mut origins: Vec<(String, u16)> = Vec::new();
        for address in &addresses {
            if let Address::Port { host, port } = address {
                origins.push((host.clone(), *port));
            }
        }
        if let Some((host, port)) = host.as_ref().map(|authority| (authority.host(), authority.port_u16())) {
            let ports = port.map_or(vec![80, 443], |port| vec![port]);
            origins.extend(ports.into_iter().map(|port| (bare(host).to_owned(), port)));
        }
        Ok(Self {
            name: name.clone(),
            protocol,
            addresses,
            tls: tls(&file.tls, scheme, dir).map_err(|p| p.under("tls"))?,
            only: Ceiling::new(&file.only.0).map_err(|p| p.under("only"))?,
            inject: inject(file, dir).map_err(|p| p.under("inject"))?,
            host: host.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()),
            origins,
            health: file.health.as_ref().map(health).transpose().map_err(|p| p.under("health"))?,
            limit: limit(&file.limit).map_err(|p| p.under("limit"))?,
            verifies: file.verify.is_some(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    H2c,
    H2,
    Unix,
    Tcp,
}

impl Scheme {
    fn protocol(self) -> Protocol {
        match self {
            Self::Http | Self::Https | Self::Unix => Protocol::Http1,
            Self::H2c | Self::H2 => Protocol::Http2,
            Self::Tcp => Protocol::Tcp,
        }
    }

    /// Where no port is written; a TCP service has no usual one.
    fn port(self) -> Option<u16> {
        match self {
            Self::Http | Self::H2c => Some(80),
            Self::Https | Self::H2 => Some(443),
            Self::Unix | Self::Tcp => None,
        }
    }
}

fn upstream(text: &str) -> Result<(Scheme, Address), String> {
    let refuse =
        |why: &str| format!("{why}; write it like \"http://127.0.0.1:8080\" or \"https://10.0.5.11:8443\"");
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err("a unix socket needs its whole path, like \"unix:/run/app.sock\"".to_owned());
        }
        return Ok((Scheme::Unix, Address::Unix(path)));
    }
    let uri: Uri = text.parse().map_err(|e: http::uri::InvalidUri| refuse(&e.to_string()))?;
    let parts = uri.into_parts();
    let scheme = match parts.scheme.as_ref().map(http::uri::Scheme::as_str) {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some("h2c") => Scheme::H2c,
        Some("h2") => Scheme::H2,
        Some("tcp") => Scheme::Tcp,
        _ => return Err(refuse("only http, https, h2c, h2, unix and tcp are served")),
    };
    let authority = parts.authority.ok_or_else(|| refuse("it has no host"))?;
    let host = bare(authority.host());
    if host.is_empty() {
        return Err(refuse("it has no host"));
    }
    if authority.as_str().contains('@') || parts.path_and_query.is_some_and(|path| path.as_str() != "/") {
        return Err(refuse("only scheme, host and port belong here"));
    }
    let port = match port_of(&authority)? {
        Some(port) => port,
        None => scheme.port().ok_or("a TCP service needs its port, like \"tcp://10.0.5.20:5432\"")?,
    };
    Ok((scheme, Address::Port { host: host.to_owned(), port }))
}

/// An authority may end in a number that is no port.
fn port_of(authority: &Authority) -> Result<Option<u16>, String> {
    if authority.as_str() == authority.host() {
        return Ok(None);
    }
    let port = authority.port_u16().filter(|port| *port > 0);
    port.map(Some).ok_or_else(|| "its port must lie between 1 and 65535".to_owned())
}

fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

fn only_for_http(file: &ServiceFile) -> Result<(), Problem> {
    let used = [
        ("only", !file.only.0.is_empty()),
        ("inject", !file.inject.is_empty()),
        ("host", file.host.is_some()),
        ("limit.first_byte", file.limit.first_byte.is_some()),
        ("limit.idle", file.limit.idle.is_some()),
        ("health.path", file.health.as_ref().is_some_and(|health| health.path.is_some())),
    ];
    match used.into_iter().find(|(_, used)| *used) {
        Some((key, _)) => Err(Problem::new(key, "belongs to HTTP; this is a tcp:// upstream: leave it out")),
        None => Ok(()),
    }
}

fn host(text: &str) -> Result<Authority, Problem> {
    let refuse = |why: String| Problem::new("host", format!("{why}; write it like \"billing.corp\""));
    let authority: Authority = text.parse().map_err(|e: http::uri::InvalidUri| refuse(e.to_string()))?;
    if authority.host().is_empty() || text.contains('@') {
        return Err(refuse(format!("{text:?} is not a host")));
    }
    port_of(&authority).map_err(refuse)?;
    Ok(authority)
}

fn tls(file: &TlsFile, scheme: Scheme, dir: &Path) -> Result<Option<Tls>, Problem> {
    let TlsFile { ca, server_name, cert, key, min_version } = file;
    if !matches!(scheme, Scheme::Https | Scheme::H2) {
        let is_used =
            ca.is_some() || server_name.is_some() || cert.is_some() || key.is_some() || min_version.is_some();
        let why = "belongs to an upstream that begins with https:// or h2://; write that, or leave this out";
        return if is_used { Err(Problem::new("", why)) } else { Ok(None) };
    }
    let server_name = server_name.clone().map(ServerName::try_from).transpose();
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((dir.join(cert), dir.join(key))),
        (None, None) => None,
        (Some(_), None) => return Err(Problem::new("cert", "needs key, the file of its private key")),
        (None, Some(_)) => return Err(Problem::new("key", "needs cert, the file of its certificate")),
    };
    Ok(Some(Tls {
        ca: ca.as_ref().map(|path| dir.join(path)),
        server_name: server_name
            .map_err(|_| Problem::new("server_name", "is neither a DNS name nor an address"))?,
        own,
        min_version: min_version.unwrap_or(TlsVersion::V12),
    }))
}

fn inject(file: &ServiceFile, dir: &Path) -> Result<Vec<(HeaderName, SecretRef)>, Problem> {
    let mut fields: Vec<(HeaderName, SecretRef)> = Vec::new();
    for (text, secret) in &file.inject {
        let refuse = |why: &str| Problem { at: vec![text.clone()], message: why.to_owned() };
        let name: HeaderName = text.parse().map_err(|_| refuse("is not the name of a header field"))?;
        let plain = folded(&name);
        if is_of_the_connection(&plain)
            || is_steering(&plain)
            || matches!(&*plain, "content-length" | "trailer" | "host")
        {
            return Err(refuse(
                "is not for secrets: it steers the connection or the request (host has a key of its own)",
            ));
        }
        if fields.iter().any(|(other, _)| folded(other) == plain) {
            return Err(refuse("is there twice, in two spellings"));
        }
        let secret = match secret {
            SecretRef::File(path) => SecretRef::File(dir.join(path)),
            SecretRef::Env(_) | SecretRef::Credential(_) => secret.clone(),
        };
        fields.push((name, secret));
    }
    Ok(fields)
}

fn health(file: &HealthFile) -> Result<HealthCheck, Problem> {
    let path = file.path.as_deref().map(|text| {
        let path = text.parse::<PathAndQuery>().ok().filter(|_| text.starts_with('/'));
        path.ok_or_else(|| Problem::new("path", format!("{text:?} is not a path: write it like \"/ping\"")))
    });
    let unhealthy_after = file.unhealthy_after.unwrap_or(3);
    if unhealthy_after == 0 {
        return Err(Problem::new("unhealthy_after", "must be at least 1"));
    }
    Ok(HealthCheck {
        path: path.transpose()?,
        every: span("every", file.every, Duration::from_secs(10))?,
        unhealthy_after,
    })
}

fn limit(file: &LimitFile) -> Result<Limit, Problem> {
    if file.concurrent == Some(0) {
        return Err(Problem::new("concurrent", "must be at least 1; leave it out for no limit"));
    }
    Ok(Limit {
        concurrent: file.concurrent,
        connect: span("connect", file.connect, Duration::from_secs(3))?,
        first_byte: span("first_byte", file.first_byte, Duration::from_secs(30))?,
        idle: span("idle", file.idle, Duration::from_mins(5))?,
    })
}

/// Shorter ones would keep a service from ever answering, or its checks from ever resting.
const SHORTEST: Duration = Duration::from_millis(10);

fn span(key: &str, written: Option<Span>, default: Duration) -> Result<Duration, Problem> {
    match written {
        None => Ok(default),
        Some(Span(span)) if span >= SHORTEST => Ok(span),
        Some(_) => Err(Problem::new(key, "must be at least 10ms")),
    }
}

#[cfg(test)]
mod tests;
