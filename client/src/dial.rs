//! Takes a relay; gives connections to its address and nowhere else: a service's host is only a name within TLS and HTTP, so that a token
//! goes to the relay that was typed. The way may lead through an HTTP proxy. A relay that is slow to accept, or that vanishes later, is an
//! error in good time.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use postern_base::http_client::{HttpClientError, root_store};
use postern_base::proxy::Proxy;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::relay_api::address::RelayUrl;

/// A relay that takes longer to accept a connection and to agree on TLS is lost for this request.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// A connection that is silent this long is asked for a sign of life, four times: without it a vanished relay would hold a quiet
/// connection for ever.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;
/// The same for bytes that nobody acknowledges.
const UNACKNOWLEDGED: Duration = Duration::from_secs(35);
/// rustls asks for 4 KiB at a time; the kernel is asked for this much, so that bulk costs few calls.
const READ_AHEAD: usize = 64 * 1024;

/// TLS to the relay for a connection of its own.
pub(crate) type Tls = TlsStream<BufReader<TcpStream>>;

/// Makes connections to one relay; clones share its TLS sessions.
#[derive(Clone)]
pub(crate) struct Dial {
    tcp: HttpConnector,
    proxy: Proxy,
    relay: RelayUrl,
    name: ServerName<'static>,
    tls: ClientConfig,
    http1: TlsConnector,
}

impl Dial {
    /// Trusts `roots` (PEM) besides the system's certificates.
    pub(crate) fn new(relay: &RelayUrl, proxy: Proxy, roots: Option<&[u8]>) -> Result<Self, HttpClientError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        let bad = |reason: String| HttpClientError::Roots(reason);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(root_store(roots)?)
            .with_no_client_auth();
        let name = ServerName::try_from(bare(relay).to_owned()).map_err(|e| bad(e.to_string()))?;
        let mut http1 = tls.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tcp, proxy, relay: relay.clone(), name, tls, http1: Arc::new(http1).into() })
    }

    /// What rustls is to know, without ALPN.
    pub(crate) fn tls_config(&self) -> ClientConfig {
        self.tls.clone()
    }

    /// A plain connection to the relay's address.
    pub(crate) async fn tcp(&self) -> io::Result<TcpStream> {
        let (host, port) = (bare(&self.relay), self.relay.port());
        let stream = match self.proxy.towards(host, port) {
            Some(proxy) => {
                proxy.connect(host, port, CONNECT).await.map_err(|e| io::Error::other(e.to_string()))?
            }
            None => self.direct().await?,
        };
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        Ok(stream)
    }

    /// hyper's connector tries all addresses of a name, and the other family when one is slow.
    async fn direct(&self) -> io::Result<TcpStream> {
        let mut tcp = self.tcp.clone();
        let relay = Uri::try_from(self.relay.origin()).map_err(io::Error::other)?;
        std::future::poll_fn(|cx| tcp.poll_ready(cx)).await.map_err(|e| told(&e))?;
        Ok(tcp.call(relay).await.map_err(|e| told(&e))?.into_inner())
    }

    /// A connection that will carry HTTP/1.1 and then, perhaps, something else.
    pub(crate) async fn http1(&self) -> io::Result<Tls> {
        let connect = async {
            let tcp = BufReader::with_capacity(READ_AHEAD, self.tcp().await?);
            self.http1.connect(self.name.clone(), tcp).await
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no TLS within {CONNECT:?}"));
        tokio::time::timeout(CONNECT, connect).await.map_err(late)?
    }
}

/// For hyper's pools: the URI says what is asked for, not where it is.
impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.tcp().await.map(TokioIo::new) })
    }
}

fn bare(relay: &RelayUrl) -> &str {
    relay.host().trim_matches(['[', ']'])
}

fn told(error: &dyn Error) -> io::Error {
    io::Error::other(innermost(error))
}

/// The cause that helps a person: "client error (Connect)" and its like say nothing.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
#[path = "dial/tests.rs"]
mod tests;
