//! The way out through an HTTP proxy. Takes `"env"`, `"off"` or a URL; gives TCP connections, direct or after `CONNECT` (RFC 9110,
//! 9.3.6). Refuses proxies that are not plain HTTP, and answers that are late, long or not a success; every error names its fix.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use crate::secret::Secret;

/// More than any proxy says to a `CONNECT`; error pages are not read.
const ANSWER: usize = 16 * 1024;

/// Why the way through a proxy is closed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(
        "{0:?} is not a proxy: write \"env\", \"off\" or a URL such as \"http://proxy.example.com:3128\""
    )]
    Syntax(String),
    #[error(
        "proxies are reached by http:// alone, not by {0}://: give the address at which the proxy takes plain CONNECT"
    )]
    Scheme(String),
    #[error("HTTPS_PROXY: {0}; or do without it by proxy = \"off\"")]
    Environment(Box<Self>),
    #[error(
        "the proxy {proxy} cannot be reached: {source}; check its address (proxy, HTTPS_PROXY) and that it runs"
    )]
    Unreachable { proxy: String, source: std::io::Error },
    #[error(
        "the proxy {proxy} opened no way to {target} within {limit:?}: check that it can reach that address"
    )]
    Late { proxy: String, target: String, limit: Duration },
    #[error(
        "the proxy {0} wants a user and a password: write them into its URL, http://USER:PASSWORD@HOST:PORT"
    )]
    Unauthorized(String),
    #[error(
        "the proxy {proxy} does not allow connections to {target} (status {status}): have it allow CONNECT to that host and port"
    )]
    Forbidden { proxy: String, target: String, status: u16 },
    #[error(
        "the proxy {proxy} could not reach {target} (status {status}): check that name and port are right and reachable from there"
    )]
    Gateway { proxy: String, target: String, status: u16 },
    #[error("{0} answered like no HTTP proxy: check its address (proxy, HTTPS_PROXY)")]
    Malformed(String),
}

/// Where connections go first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proxy {
    via: Option<Via>,
    /// Hosts that are reached directly; only the environment says so.
    direct: Vec<Direct>,
}

/// One proxy.
#[derive(Debug, Clone)]
pub struct Via {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    credentials: Option<Secret>,
}

impl PartialEq for Via {
    fn eq(&self, other: &Self) -> bool {
        let of = |via: &Self| via.credentials.as_ref().map(|secret| secret.expose().to_owned());
        self.host == other.host && self.port == other.port && of(self) == of(other)
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    Everything,
    /// The name itself and all below it.
    Name(String, Option<u16>),
    Net(IpNet),
}

impl Direct {
    /// Entries that mean nothing are passed over, as every other program does.
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        match entry.as_str() {
            "" => return None,
            "*" => return Some(Self::Everything),
            _ => {}
        }
        let bare = entry.trim_matches(['[', ']']);
        if let Ok(net) = bare.parse::<IpNet>() {
            return Some(Self::Net(net));
        }
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Net(address.into()));
        }
        match entry.rsplit_once(':') {
            Some((name, port)) => {
                Some(Self::Name(name.trim_matches(['[', ']']).to_owned(), Some(port.parse().ok()?)))
            }
            None => Some(Self::Name(entry, None)),
        }
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Net(net) => host.parse::<IpAddr>().is_ok_and(|address| net.contains(&address)),
            Self::Name(name, only) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                let below = host.strip_suffix(name.as_str());
                below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                    && only.is_none_or(|only| only == port)
            }
        }
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    /// `env` reads the environment of this process now.
    fn from_str(text: &str) -> Result<Self, ProxyError> {
        match text {
            "off" => Ok(Self::default()),
            "env" => Self::from_env(|name| std::env::var(name).ok()),
            url => Ok(Self { via: Some(url.parse()?), direct: Vec::new() }),
        }
    }
}

impl Proxy {
    /// `HTTPS_PROXY` and `NO_PROXY`, in small letters first, as curl has it. What runs on this machine is reached directly: no proxy
    /// elsewhere could.
    ///
    /// # Errors
    /// The value is no proxy's address.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let first =
            |names: [&str; 2]| names.into_iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let via = first(["https_proxy", "HTTPS_PROXY"]).map(|url| url.parse::<Via>()).transpose();
        let via = via.map_err(|e| ProxyError::Environment(Box::new(e)))?;
        let direct = first(["no_proxy", "NO_PROXY"]).unwrap_or_default();
        let direct = ["localhost", "127.0.0.0/8", "::1"].into_iter().chain(direct.split(','));
        Ok(Self { via, direct: direct.filter_map(Direct::parse).collect() })
    }

    /// The proxy on the way to `host`, if there is one.
    pub fn towards(&self, host: &str, port: u16) -> Option<&Via> {
        self.via.as_ref().filter(|_| !self.direct.iter().any(|direct| direct.covers(host, port)))
    }
}

impl FromStr for Via {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        // What stands before the host is a secret, and this text may be shown.
        let shown = || text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("…@{rest}"));
        // "proxy.example.com:3128", as the environment often has it.
        let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
        let url = url.map_err(|_| ProxyError::Syntax(shown()))?;
        if url.scheme() != "http" {
            return Err(ProxyError::Scheme(url.scheme().to_owned()));
        }
        let host =
            url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| ProxyError::Syntax(shown()))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyError::Syntax(shown()));
        }
        let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let credentials = (!url.username().is_empty()).then(|| {
            let mut pair = decoded(url.username());
            pair.push(b':');
            pair.extend(decoded(url.password().unwrap_or_default()));
            Secret::new(format!("Basic {}", BASE64.encode(pair)))
        });
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: url.port().unwrap_or(80), credentials })
    }
}

impl Via {
    /// A connection to `host` through this proxy, which resolves the name; `limit` is for all of it.
    ///
    /// # Errors
    /// The proxy could not be reached, refused, or did not answer in time or like a proxy.
    pub async fn connect(&self, host: &str, port: u16, limit: Duration) -> Result<TcpStream, ProxyError> {
        let target = authority(host, port);
        match tokio::time::timeout(limit, self.open(&target)).await {
            Ok(opened) => opened,
            Err(_) => Err(ProxyError::Late { proxy: self.to_string(), target, limit }),
        }
    }

    async fn open(&self, target: &str) -> Result<TcpStream, ProxyError> {
        let unreachable = |source| ProxyError::Unreachable { proxy: self.to_string(), source };
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        let authorization =
            self.credentials.as_ref().map(|value| format!("Proxy-Authorization: {}\r\n", value.expose()));
        let authorization = authorization.unwrap_or_default();
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        stream.write_all(request.as_bytes()).await.map_err(unreachable)?;
        match self.status(&mut stream).await? {
            200..=299 => Ok(stream),
            407 => Err(ProxyError::Unauthorized(self.to_string())),
            status @ (400..=499 | 501) => {
                Err(ProxyError::Forbidden { proxy: self.to_string(), target: target.to_owned(), status })
            }
            status => Err(ProxyError::Gateway { proxy: self.to_string(), target: target.to_owned(), status }),
        }
    }

    /// Reads the answer's head, and nothing behind it: from there on the bytes belong to whoever is at the other end.
    async fn status(&self, stream: &mut TcpStream) -> Result<u16, ProxyError> {
        let malformed = || ProxyError::Malformed(self.to_string());
        let mut head = Vec::with_capacity(512);
        while head.len() < ANSWER {
            let read = stream.read_buf(&mut head).await;
            if read.map_err(|source| ProxyError::Unreachable { proxy: self.to_string(), source })? == 0 {
                break;
            }
            let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let status = status_of(&head).ok_or_else(malformed)?;
            // Through the tunnel nobody speaks before we do: what follows a success at once is not from there.
            let is_clean = head.len() == end + 4 || !(200..300).contains(&status);
            return if is_clean { Ok(status) } else { Err(malformed()) };
        }
        Err(malformed())
    }
}

/// RFC 9112, 4: `HTTP/1.1 200 ...`.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let status = line.split(' ').nth(1)?.trim_end();
    (status.len() == 3).then(|| status.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
