//! Takes requests; gives whole answers or streams; a caller as any program would be: HTTPS with the test authority alone, HTTP/1.1 or
//! HTTP/2, every host name leading to loopback. Redirects are answers. [`raw`] is for requests that no library would send.

pub mod raw;
pub mod switch;

use std::future::{Ready, ready};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::pki::CertFiles;
use crate::{pattern, wait};

/// How long an answer's head may take, and then its body: longer than the relay's own limit for the first byte would be too long.
const PATIENCE: Duration = Duration::from_secs(35);

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body of known length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of unknown length with `total` bytes of the pattern, a chunk of at most `step` every `pause`.
pub fn pattern_body(total: u64, step: u64, pause: Duration) -> Body {
    let frames = stream::unfold(0u64, move |sent| async move {
        if sent >= total {
            return None;
        }
        if sent > 0 && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let data = pattern::chunk(sent, step.min(total - sent));
        let next = sent + data.len() as u64;
        Some((Ok(Frame::data(data)), next))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: not JSON: {}", self.status, self.text()))
    }

    /// The first value of a header, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// Itself if the status is `status`; else an error that shows the answer.
    pub fn expect_status(self, status: u16) -> Result<Self> {
        if self.status.as_u16() == status {
            return Ok(self);
        }
        anyhow::bail!("{} instead of {status}: {:?} {}", self.status, self.headers, self.text())
    }
}

/// Every name leads to loopback, so that tests can use any host.
#[derive(Debug, Clone)]
struct Loopback;

impl tower_service::Service<Name> for Loopback {
    type Response = std::iter::Once<SocketAddr>;
    type Error = std::io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(std::iter::once((Ipv4Addr::LOCALHOST, 0).into())))
    }
}

/// A pooled caller; clones share the pool.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector<Loopback>>, Body>,
}

/// rustls with aws-lc-rs, `roots` alone, and no client certificate.
pub fn tls(roots: RootCertStore) -> Result<ClientConfig> {
    Ok(trusting(roots)?.with_no_client_auth())
}

/// The same, with a client certificate.
pub fn tls_as(roots: RootCertStore, certificate: &CertFiles) -> Result<ClientConfig> {
    let (certificate, key) = certificate.read()?;
    Ok(trusting(roots)?.with_client_auth_cert(vec![certificate], key)?)
}

fn trusting(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots))
}

impl Http {
    /// Speaks HTTP/1.1 only.
    pub fn h1(roots: RootCertStore) -> Result<Self> {
        Ok(Self::over(tls(roots)?))
    }

    /// The same, showing a client certificate to whoever asks for one.
    pub fn h1_as(roots: RootCertStore, certificate: &CertFiles) -> Result<Self> {
        Ok(Self::over(tls_as(roots, certificate)?))
    }

    fn over(tls: ClientConfig) -> Self {
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Self { client: Client::builder(TokioExecutor::new()).build(https.wrap_connector(connector())) }
    }

    /// Speaks HTTP/2 only.
    pub fn h2(roots: RootCertStore) -> Result<Self> {
        let https = HttpsConnectorBuilder::new().with_tls_config(tls(roots)?).https_or_http().enable_http2();
        let mut builder = Client::builder(TokioExecutor::new());
        Ok(Self { client: builder.http2_only(true).build(https.wrap_connector(connector())) })
    }

    /// Sends a request and gives the answer's head with its body still to be read.
    pub async fn stream(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.head(request, PATIENCE).await
    }

    async fn head(&self, request: Request<Body>, limit: Duration) -> Result<Response<Incoming>> {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = wait::within(&what, limit, self.client.request(request)).await?;
        answer.map_err(|e| anyhow::anyhow!("{what}: {}", chain(&e)))
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer> {
        self.send_patiently(request, PATIENCE).await
    }

    /// The same for a request whose own body takes long.
    pub async fn send_patiently(&self, request: Request<Body>, limit: Duration) -> Result<Answer> {
        let what = format!("{} {}", request.method(), request.uri());
        let (head, body) = self.head(request, limit).await?.into_parts();
        let body = wait::within(&what, PATIENCE, body.collect()).await?.with_context(|| what.clone())?;
        let trailers = body.trailers().cloned();
        Ok(Answer {
            status: head.status,
            version: head.version,
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        })
    }

    /// A request without body, with a bearer token where there is one.
    pub async fn call(&self, method: &str, url: &str, token: Option<&str>) -> Result<Answer> {
        self.send(request(method, url, token).body(empty())?).await
    }

    pub async fn get(&self, url: &str, token: Option<&str>) -> Result<Answer> {
        self.call("GET", url, token).await
    }
}

fn connector() -> HttpConnector<Loopback> {
    let mut connector = HttpConnector::new_with_resolver(Loopback);
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(wait::SOON));
    connector.set_nodelay(true);
    connector
}

/// The start of a request.
pub fn request(method: &str, url: &str, token: Option<&str>) -> http::request::Builder {
    let builder = Request::builder().method(method).uri(url);
    match token {
        Some(token) => builder.header("authorization", format!("Bearer {token}")),
        None => builder,
    }
}

/// An error with all its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Reads a streamed answer to its end through the pattern check; gives how many bytes came.
pub async fn read_pattern(mut body: Incoming) -> Result<u64> {
    let mut check = pattern::Check::default();
    while let Some(frame) = wait::within("the next piece of the body", wait::SOON * 2, body.frame()).await? {
        if let Ok(data) = frame.with_context(|| format!("after {} bytes", check.received()))?.into_data() {
            check.feed(&data)?;
        }
    }
    Ok(check.received())
}
