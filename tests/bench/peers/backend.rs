//! A backend for large bodies, as a process of its own: `GET …/bytes/N` gives N bytes, `POST …/sink` reads a body to its end and says how
//! many bytes it had; plain and over TLS 1.3. nginx gives answers but discards bodies only after it has answered.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_tests::http::{Body, full};
use postern_tests::process::Program;
use postern_tests::stand::say;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::load::bulk::PIECE;
use crate::site::config::Facts;

static ZEROS: [u8; PIECE] = [0; PIECE];

/// The running backend.
#[derive(Debug)]
pub(crate) struct Backend {
    _program: Program,
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
}

impl Backend {
    /// Starts this program again as the backend, with the site's certificate.
    pub(crate) async fn start(facts: &Facts) -> Result<Self> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["peer", "backend", "--cert"]).arg(&facts.cert.cert).arg("--key").arg(&facts.cert.key);
        let mut program = Program::start("backend", command, &facts.dir.join("backend.log"))?;
        let plain = program.wait_value("plain=").await?.parse()?;
        let tls = program.wait_value("tls=").await?.parse()?;
        Ok(Self { _program: program, plain, tls })
    }
}

/// Chain and key of a PEM pair.
pub(super) fn pair(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(key)?))
}

/// The backend itself: serves until it is killed.
pub(crate) async fn serve(cert: &Path, key: &Path) -> Result<()> {
    let (chain, key) = pair(cert, key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (plain, tls) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    say(&format!("plain={} tls={}", plain.local_addr()?, tls.local_addr()?));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = plain.accept() => {
                let stream = accepted?.0;
                stream.set_nodelay(true)?;
                connections.spawn(speak(stream));
            }
            accepted = tls.accept() => {
                let stream = accepted?.0;
                stream.set_nodelay(true)?;
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    match acceptor.accept(stream).await {
                        Ok(stream) => speak(stream).await,
                        Err(error) => say(&format!("backend: {error}")),
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(request).await));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        say(&format!("backend: {error}"));
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let answered = if path.ends_with("/sink") { sink(request).await } else { bytes(&path) };
    answered.unwrap_or_else(|error| {
        let mut answer = Response::new(full(format!("{error:#}")));
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        answer
    })
}

async fn sink(request: Request<Incoming>) -> Result<Response<Body>> {
    let mut body = request.into_body();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(full(received.to_string())))
}

fn bytes(path: &str) -> Result<Response<Body>> {
    let (_, count) = path.rsplit_once("/bytes/").context("no such path")?;
    let count: u64 = count.parse()?;
    let pieces = stream::unfold(count, |left| async move {
        let size = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        (size > 0).then(|| (Ok(Frame::data(Bytes::from_static(&ZEROS[..size]))), left - size as u64))
    });
    let answer = Response::builder().header("content-length", count);
    Ok(answer.body(StreamBody::new(pieces).boxed_unsync())?)
}
