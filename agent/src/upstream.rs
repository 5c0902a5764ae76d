//! The upstreams: takes a finished request for a service, gives the answer of the one address that our file lists for it. Connections are
//! kept and reused; names may not lead to link-local or metadata addresses, which only a literal address in the file can mean.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use postern_base::http_client::root_store;
use postern_base::id::ServiceName;
use postern_wire::tls::provider;
use rustls::pki_types::ServerName;

use crate::request::UpstreamBody;
use crate::settings::{Service, Settings};

/// Below the 15 s to 75 s after which ordinary servers close idle connections themselves.
const IDLE: Duration = Duration::from_secs(12);
/// Idle connections kept per service and worker.
const IDLE_CONNECTIONS: usize = 256;

/// An upstream that the configuration cannot mean.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("services.{service}.tls.ca {path}: {reason}")]
    Ca { service: ServiceName, path: String, reason: String },
    #[error("services.{service}.tls.server_name: {reason}")]
    ServerName { service: ServiceName, reason: String },
    #[error("services.{service}: {reason}")]
    Tls { service: ServiceName, reason: String },
}

/// Why an upstream gave no answer. The texts go to the caller and name no address.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("connection refused: start the service, or correct its upstream in agent.toml")]
    Refused(String),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("its certificate or TLS handshake is not acceptable: {0}")]
    Tls(String),
    #[error("it answered wrongly: {0}")]
    Answer(String),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("not configured")]
    Unknown(ServiceName),
}

type Pool = Client<InTime, UpstreamBody>;

/// The connections of one worker to all upstreams.
#[derive(Debug)]
pub struct Upstreams {
    pools: HashMap<ServiceName, Pool>,
}

impl Upstreams {
    pub fn new(settings: &Settings) -> Result<Self, UpstreamError> {
        let pools = settings.services.values().map(|service| Ok((service.name.clone(), pool(service)?)));
        Ok(Self { pools: pools.collect::<Result<_, _>>()? })
    }

    /// Sends a request. One that died with a reused connection before any answer is sent once more if its method is idempotent and it
    /// has no body; anything else may have been acted on and is not repeated.
    pub async fn call(
        &self,
        service: &ServiceName,
        request: Request<UpstreamBody>,
    ) -> Result<Response<Incoming>, CallError> {
        let pool = self.pools.get(service).ok_or_else(|| CallError::Unknown(service.clone()))?;
        let again = repeatable(&request);
        match pool.request(request).await {
            Ok(response) => Ok(response),
            Err(error) => match again.filter(|_| died_unanswered(&error)) {
                Some(again) => pool.request(again).await.map_err(|e| classify(&e)),
                None => Err(classify(&error)),
            },
        }
    }
}

fn repeatable(request: &Request<UpstreamBody>) -> Option<Request<UpstreamBody>> {
    let is_idempotent =
        matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    if !is_idempotent || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(UpstreamBody::empty());
    request.method().clone_into(again.method_mut());
    request.uri().clone_into(again.uri_mut());
    request.headers().clone_into(again.headers_mut());
    Some(again)
}

/// The upstream closed the connection, and not a byte of an answer had come.
fn died_unanswered(error: &legacy::Error) -> bool {
    !error.is_connect()
        && sources(error).any(|cause| {
            cause.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_incomplete_message() || e.is_closed())
                || cause.downcast_ref::<std::io::Error>().is_some_and(|e| {
                    matches!(e.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
                })
        })
}

fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn classify(error: &legacy::Error) -> CallError {
    let innermost = sources(error).last().map(ToString::to_string).unwrap_or_default();
    if !error.is_connect() {
        return CallError::Answer(innermost);
    }
    for cause in sources(error) {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return CallError::Tls(tls.to_string());
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            if let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return CallError::Tls(tls.to_string());
            }
            if io.kind() == std::io::ErrorKind::ConnectionRefused {
                return CallError::Refused(io.to_string());
            }
        }
    }
    CallError::Connect(innermost)
}

fn pool(service: &Service) -> Result<Pool, UpstreamError> {
    let name = || service.name.clone();
    let ca = match &service.ca {
        None => None,
        Some(path) => Some(std::fs::read(path).map_err(|e| UpstreamError::Ca {
            service: name(),
            path: path.display().to_string(),
            reason: e.to_string(),
        })?),
    };
    let roots = match &ca {
        // An own authority replaces the system's: nobody else may speak for this upstream.
        Some(pem) => own_roots(pem).map_err(|reason| UpstreamError::Ca {
            service: name(),
            path: service.ca.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            reason,
        })?,
        None => {
            root_store(None).map_err(|e| UpstreamError::Tls { service: name(), reason: e.to_string() })?
        }
    };
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| UpstreamError::Tls { service: name(), reason: e.to_string() })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new_with_resolver(Resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match &service.server_name {
        None => builder,
        Some(server_name) => {
            let fixed = ServerName::try_from(server_name.clone())
                .map_err(|e| UpstreamError::ServerName { service: name(), reason: e.to_string() })?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(fixed))
        }
    };
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_headers(256)
        .build(InTime { inner: builder.enable_http1().wrap_connector(tcp), limit: service.connect }))
}

fn own_roots(pem: &[u8]) -> Result<rustls::RootCertStore, String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| e.to_string())?;
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(roots) }
}

/// A connector with one limit for name, connection and TLS together.
#[derive(Debug, Clone)]
struct InTime {
    inner: Connector,
    limit: Duration,
}

type Connector = HttpsConnector<HttpConnector<Resolver>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower_service::Service<Uri> for InTime {
    type Response = <Connector as tower_service::Service<Uri>>::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (self.inner.call(uri), self.limit);
        Box::pin(async move {
            let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("not within {limit:?}"));
            tokio::time::timeout(limit, connecting).await.map_err(|_| late())?
        })
    }
}

/// The system's resolver, less the addresses that a name must not mean.
#[derive(Debug, Clone)]
struct Resolver;

/// Link-local addresses, cloud metadata services among them.
fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.octets() == [100, 100, 100, 200],
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let all = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<_> = all.filter(|address| !is_forbidden(address.ip())).collect();
            if found.is_empty() {
                return Err(std::io::Error::other(
                    "its name leads to link-local or metadata addresses alone",
                ));
            }
            Ok(found.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_to_metadata_services() {
        for bad in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "100.100.100.200",
            "fd00:ec2::254",
            "0.0.0.0",
        ] {
            assert!(is_forbidden(bad.parse().unwrap()), "{bad}");
        }
        for good in ["127.0.0.1", "10.0.0.1", "::1", "fd00::1"] {
            assert!(!is_forbidden(good.parse().unwrap()), "{good}");
        }
    }
}
