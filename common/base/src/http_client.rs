//! Takes one request to an issuer; gives its whole answer; refuses plain http beyond loopback, private addresses unless allowed,
//! redirects (they are handed back as answers), bodies over the limit and anything later than the timeout.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;

use crate::defaults;
use crate::proxy::Proxy;
use crate::secret::Secret;

/// An HTTP/2 connection on which a request waits this long is asked whether anybody is there, and given up without an answer: after a sleep
/// or a change of networks every request would otherwise wait for a peer that will never answer. Together longer than the timeout, so
/// that it is still the timeout that is told.
const PING: Duration = Duration::from_secs(3);
const PONG: Duration = Duration::from_secs(4);

/// What a client may do. The defaults suit an issuer on the public internet.
#[derive(Debug, Clone)]
pub struct HttpClientOptions {
    /// PEM of certificates trusted besides the system's.
    pub extra_roots_pem: Option<Vec<u8>>,
    /// Shown to servers that ask who calls (RFC 8705 2).
    pub identity: Option<Identity>,
    /// Whether names may resolve to private, link-local or unique-local addresses. Loopback is judged by the URL's host alone:
    /// a URL that says `localhost`, `127.0.0.1` or `[::1]` may go there, no other name may.
    pub allow_private: bool,
    /// From the first byte sent to the last received.
    pub timeout: Duration,
    /// The largest body accepted, in bytes.
    pub body_limit: usize,
    /// The way of https; a proxy resolves names itself, so that `allow_private` then only judges literal addresses.
    pub proxy: Proxy,
}

/// A TLS client certificate with what leads to its root, and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub chain_pem: Vec<u8>,
    pub key_pem: Secret,
}

impl Default for HttpClientOptions {
    fn default() -> Self {
        Self {
            extra_roots_pem: None,
            identity: None,
            allow_private: false,
            timeout: defaults::HTTP_CLIENT_TIMEOUT,
            body_limit: defaults::HTTP_CLIENT_BODY,
            proxy: Proxy::default(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    #[error("{0}: only https is allowed, and http on loopback")]
    Insecure(Uri),
    #[error("{uri}: no answer within {timeout:?}")]
    Timeout { uri: Uri, timeout: Duration },
    #[error("{uri}: the answer is larger than {limit} bytes")]
    TooLarge { uri: Uri, limit: usize },
    #[error("{uri}: {reason}")]
    Transport { uri: Uri, reason: String },
    #[error("certificates: {0}")]
    Roots(String),
}

type Connector = HttpsConnector<Way>;

/// A pooled client; clones share the pool. Connections belong to the runtime that made them, so make one client per runtime.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
    options: Arc<HttpClientOptions>,
}

/// Read once: a hundred files take milliseconds. A system without any is fine as long as the configuration names a certificate.
static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// The root certificates of the system, and those of `extra` (PEM).
pub fn root_store(extra: Option<&[u8]>) -> Result<rustls::RootCertStore, HttpClientError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM.iter().cloned());
    if let Some(pem) = extra {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| HttpClientError::Roots(e.to_string()))?;
            roots.add(certificate).map_err(|e| HttpClientError::Roots(e.to_string()))?;
        }
    }
    Ok(roots)
}

impl Identity {
    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), HttpClientError> {
        let wrong = |what: &str, e: &dyn std::fmt::Display| HttpClientError::Roots(format!("{what}: {e}"));
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.chain_pem).collect();
        let chain = chain.map_err(|e| wrong("the client certificate is not PEM", &e))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.expose().as_bytes());
        Ok((chain, key.map_err(|e| wrong("the client certificate's key is not PEM", &e))?))
    }
}

impl HttpClient {
    pub fn new(options: HttpClientOptions) -> Result<Self, HttpClientError> {
        let roots = root_store(options.extra_roots_pem.as_deref())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| HttpClientError::Roots(e.to_string()))?
            .with_root_certificates(roots);
        let tls = match &options.identity {
            None => tls.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.parse()?;
                tls.with_client_auth_cert(chain, key).map_err(|e| {
                    HttpClientError::Roots(format!("client certificate and key do not fit: {e}"))
                })?
            }
        };
        let mut tcp = HttpConnector::new_with_resolver(Resolver { allow_private: options.allow_private });
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(options.timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(Way { tcp, proxy: options.proxy.clone(), limit: options.timeout });
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_max_idle_per_host(2)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .build(connector);
        Ok(Self { client, options: Arc::new(options) })
    }

    /// Sends one request and reads the whole answer; a redirect is an answer like any other.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpClientError> {
        let uri = request.uri().clone();
        self.check(&uri)?;
        let limit = self.options.body_limit;
        let exchange = async {
            let failed = |reason: String| HttpClientError::Transport { uri: uri.clone(), reason };
            let answer =
                self.client.request(request.map(Full::new)).await.map_err(|e| failed(innermost(&e)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, limit).collect().await.map_err(|e| {
                if e.is::<LengthLimitError>() {
                    HttpClientError::TooLarge { uri: uri.clone(), limit }
                } else {
                    failed(e.to_string())
                }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        match tokio::time::timeout(self.options.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpClientError::Timeout { uri, timeout: self.options.timeout }),
        }
    }

    fn check(&self, uri: &Uri) -> Result<(), HttpClientError> {
        let host = uri.host().unwrap_or_default();
        if uri.scheme_str() != Some("https") && !(uri.scheme_str() == Some("http") && is_loopback_host(host))
        {
            return Err(HttpClientError::Insecure(uri.clone()));
        }
        // Literal addresses never pass through the resolver.
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if !address.is_loopback() && !self.options.allow_private && is_private(address) => {
                Err(HttpClientError::Transport { uri: uri.clone(), reason: private_reason(host) })
            }
            _ => Ok(()),
        }
    }
}

fn private_reason(host: &str) -> String {
    format!("{host} is a private address; say private = true for this issuer if that is meant")
}

/// Whether a URL's host is loopback by its own words: `localhost`, `127.0.0.0/8`, `[::1]`.
pub fn is_loopback_host(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Addresses that mean something else in every network, so that no public name should lead there.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
                    || v6.is_multicast()
            }
        },
    }
}

/// The way to a URL's address, through a proxy where there is one.
#[derive(Debug, Clone)]
struct Way {
    tcp: HttpConnector<Resolver>,
    proxy: Proxy,
    limit: Duration,
}

impl tower_service::Service<Uri> for Way {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        // HTTPS_PROXY says nothing about http, which is for loopback alone here.
        let via = self.proxy.towards(&host, port).filter(|_| uri.scheme_str() == Some("https")).cloned();
        let (direct, limit) = (self.tcp.call(uri), self.limit);
        Box::pin(async move {
            match via {
                // Its own words name the proxy; the cause alone would not.
                Some(via) => Ok(TokioIo::new(
                    via.connect(&host, port, limit)
                        .await
                        .map_err(|e| std::io::Error::other(e.to_string()))?,
                )),
                None => Ok(direct.await?),
            }
        })
    }
}

/// The system's resolver, less the addresses that a name from afar must not lead to.
#[derive(Debug, Clone)]
struct Resolver {
    allow_private: bool,
}

impl Resolver {
    fn permits(&self, host: &str, address: SocketAddr) -> bool {
        if is_loopback_host(host) {
            address.ip().is_loopback()
        } else {
            self.allow_private || !is_private(address.ip())
        }
    }
}

type Resolving = futures_util::future::BoxFuture<'static, std::io::Result<std::vec::IntoIter<SocketAddr>>>;

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Resolving;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let host = name.as_str();
            let found: Vec<_> = tokio::net::lookup_host((host, 0))
                .await?
                .filter(|address| this.permits(host, *address))
                .collect();
            if found.is_empty() {
                return Err(std::io::Error::other(private_reason(host)));
            }
            Ok(found.into_iter())
        })
    }
}

/// hyper's errors say "client error (Connect)"; the cause that helps is the innermost one.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plain_http_and_private_addresses_are_refused_before_any_connection() {
        let client = HttpClient::new(HttpClientOptions::default()).unwrap();
        for url in [
            "http://id.example.com/x",
            "https://10.0.0.1/x",
            "https://169.254.169.254/x",
            "https://[fd00::1]/",
        ] {
            let request = Request::get(url).body(Bytes::new()).unwrap();
            assert!(client.send(request).await.is_err(), "{url}");
        }
        let resolver = Resolver { allow_private: false };
        assert!(!resolver.permits("id.example.com", "127.0.0.1:1".parse().unwrap()), "rebinding to loopback");
        assert!(!resolver.permits("id.example.com", "[::ffff:10.0.0.1]:1".parse().unwrap()));
        assert!(resolver.permits("localhost", "127.0.0.1:1".parse().unwrap()));
    }
}
