//! Takes requests to switch protocols; gives the answers and, where they are the switch, the bytes behind them: over HTTP/1.1 on a
//! connection of its own (Upgrade), and over HTTP/2 on streams of one connection (extended CONNECT, RFC 8441).

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Body, empty, tls};
use crate::wait;

/// The bytes behind a switch.
pub type Stream = TokioIo<Upgraded>;

async fn dial(port: u16, roots: RootCertStore, protocol: &[u8]) -> Result<TokioIo<TlsStream<TcpStream>>> {
    let mut config = tls(roots)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1")?;
    Ok(TokioIo::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
}

/// One HTTP/1.1 connection, whose request says itself what it wants to switch to.
pub struct Once {
    pub answer: Response<Incoming>,
    tasks: JoinSet<()>,
}

impl Once {
    pub async fn send(port: u16, roots: RootCertStore, request: Request<Body>) -> Result<Self> {
        let io = dial(port, roots, b"http/1.1").await?;
        let (mut sender, connection) = http1::handshake(io).await?;
        let mut tasks = JoinSet::new();
        // Its end is seen by whoever reads.
        tasks.spawn(async { drop(connection.with_upgrades().await) });
        let answer =
            wait::within("the answer to an upgrade", wait::SOON, sender.send_request(request)).await??;
        Ok(Self { answer, tasks })
    }

    /// The bytes behind the switch.
    pub async fn stream(self) -> Result<Stream> {
        let status = self.answer.status();
        ensure!(status == StatusCode::SWITCHING_PROTOCOLS, "{status}: {:?}", self.answer.headers());
        switched(self.answer).await
    }

    /// Whether the relay ends the connection once its answer is read.
    pub async fn closes(mut self) -> Result<()> {
        use http_body_util::BodyExt;
        wait::within("the answer's body", wait::SOON, self.answer.into_body().collect()).await??;
        wait::within("the end of the connection", wait::SOON, self.tasks.join_next()).await?;
        Ok(())
    }
}

/// One HTTP/2 connection.
pub struct Many {
    sender: http2::SendRequest<Body>,
    authority: String,
    _tasks: JoinSet<()>,
}

impl Many {
    pub async fn connect(port: u16, roots: RootCertStore) -> Result<Self> {
        let io = dial(port, roots, b"h2").await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(connection.await) });
        let mut many = Self { sender, authority: format!("127.0.0.1:{port}"), _tasks: tasks };
        // Extended CONNECT is allowed once the relay's settings are here, and so they are with an answer.
        let first = Request::get(many.uri("/")).body(empty())?;
        many.sender.send_request(first).await?;
        Ok(many)
    }

    fn uri(&self, path: &str) -> String {
        format!("https://{}{path}", self.authority)
    }

    /// An extended CONNECT.
    pub async fn ask(
        &mut self,
        protocol: &'static str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<Response<Incoming>> {
        let mut request = Request::connect(self.uri(path)).extension(Protocol::from_static(protocol));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let sent = self.sender.send_request(request.body(empty())?);
        wait::within("the answer to an extended CONNECT", wait::SOON, sent).await?.context("extended CONNECT")
    }
}

/// The bytes behind an answer that switches.
pub async fn switched(answer: Response<Incoming>) -> Result<Stream> {
    let upgraded = wait::within("the switch", wait::SOON, hyper::upgrade::on(answer)).await??;
    Ok(TokioIo::new(upgraded))
}
